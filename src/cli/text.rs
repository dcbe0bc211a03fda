//! Text for people: colours, durations, sizes, and strings from the wire made harmless.

use std::io::IsTerminal;
use std::time::Duration;

use crate::clock::Timestamp;

/// Whether and how output is coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    pub colour: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    #[default]
    Plain,
    Heading,
    Good,
    Attention,
    Bad,
}

impl Style {
    pub const PLAIN: Style = Style { colour: false };

    pub fn of_stdout() -> Style {
        Style { colour: std::io::stdout().is_terminal() && colours_wanted() }
    }

    pub fn paint(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Plain => return text.to_owned(),
            Tone::Heading => "1",
            Tone::Good => "32",
            Tone::Attention => "33",
            Tone::Bad => "31",
        };
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// <https://no-color.org>: present and not empty means no colours.
pub fn colours_wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// One line that cannot steer a terminal: control characters and those that change the direction of writing are
/// shown as `\u{…}`.
pub fn inert(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut inert, character| {
        if steers(character) {
            inert.extend(character.escape_unicode());
        } else {
            inert.push(character);
        }
        inert
    })
}

/// The same for text of several lines.
pub fn inert_lines(text: &str) -> String {
    text.split('\n').map(inert).collect::<Vec<_>>().join("\n")
}

fn steers(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// `0.34s`, `12.0s`, `3m 07s`, `5h 02m`, `3d 4h`
pub fn duration(duration: Duration) -> String {
    let secs = duration.as_secs();
    match secs {
        0..60 if secs < 10 => format!("{:.2}s", duration.as_secs_f64()),
        0..60 => format!("{:.1}s", duration.as_secs_f64()),
        60..3600 => format!("{}m {:02}s", secs / 60, secs % 60),
        3600..86400 => format!("{}h {:02}m", secs / 3600, secs % 3600 / 60),
        _ => format!("{}d {}h", secs / 86400, secs % 86400 / 3600),
    }
}

/// Coarser than [`duration`]: what happened that long ago.
pub fn ago(then: Timestamp, now: Timestamp) -> String {
    let passed = now.since(then);
    match passed.as_secs() {
        0 => "now".to_owned(),
        secs @ 1..60 => format!("{secs}s ago"),
        _ => format!("{} ago", duration(passed)),
    }
}

/// Decimal units, as files and disks are sold: `812 B`, `14.2 MB`
pub fn bytes(bytes: u64) -> String {
    scaled(bytes, 1000, &["B", "kB", "MB", "GB", "TB", "PB"])
}

/// Binary units, as memory is sold: `2.0 GiB`
pub fn memory(bytes: u64) -> String {
    scaled(bytes, 1024, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"])
}

fn scaled(bytes: u64, step: u64, units: &[&str]) -> String {
    let mut divisor = 1;
    let mut unit = 0;
    while bytes / divisor >= step && unit + 1 < units.len() {
        divisor *= step;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} {}", units[0]),
        _ => format!("{:.1} {}", bytes as f64 / divisor as f64, units[unit]),
    }
}

/// `one node`, `2 nodes`
pub fn counted(count: u64, thing: &str) -> String {
    if count == 1 { format!("1 {thing}") } else { format!("{count} {thing}s") }
}

pub fn or_dash(text: Option<impl ToString>) -> String {
    text.map_or_else(|| "-".to_owned(), |text| text.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_the_wire_steers_the_terminal() {
        assert_eq!(inert("a\x1b[31mb\r\nc\u{202e}d\u{9b}ä"), "a\\u{1b}[31mb\\u{d}\\u{a}c\\u{202e}d\\u{9b}ä");
        assert_eq!(inert_lines("a\nb\x07"), "a\nb\\u{7}");
    }

    #[test]
    fn durations_and_sizes_read_well() {
        let millis = |millis| duration(Duration::from_millis(millis));
        assert_eq!(
            [40, 9_999, 12_340, 187_000, 18_120_000, 273_600_000].map(millis),
            ["0.04s", "10.00s", "12.3s", "3m 07s", "5h 02m", "3d 4h"]
        );
        assert_eq!([0, 812, 1000, 14_212_000].map(bytes), ["0 B", "812 B", "1.0 kB", "14.2 MB"]);
        assert_eq!(memory(2 << 30), "2.0 GiB");
        assert_eq!(ago(Timestamp::from_millis(0), Timestamp::from_millis(61_000)), "1m 01s ago");
    }

    #[test]
    fn colours_appear_only_when_asked_for() {
        assert_eq!(Style::PLAIN.paint(Tone::Bad, "x"), "x");
        assert_eq!(Style { colour: true }.paint(Tone::Bad, "x"), "\x1b[31mx\x1b[0m");
    }
}
