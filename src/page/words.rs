//! Times, sizes, rates and names as elements: what a number means is beside it, and what is absolute in its title.

use std::time::Duration;

use maud::{Markup, html};

use crate::cli::text::{self, inert};
use crate::clock::Timestamp;
use crate::node::timeline::Stage;
use crate::operator::api::NodeSummary;

/// `3s ago`, with the moment itself for machines and on hover. The script keeps it true.
pub(super) fn ago(then: Timestamp, now: Timestamp) -> Markup {
    let words = if then > now { text::ago(now, now) } else { text::ago(then, now) };
    html! { time datetime=(then) title=(full(then)) data-ago { (words) } }
}

pub(super) fn ago_or_never(then: Option<Timestamp>, now: Timestamp) -> Markup {
    match then {
        Some(then) => ago(then, now),
        None => html! { span.quiet { "never" } },
    }
}

/// `in 11h 58m`, or how long ago it was.
pub(super) fn until(then: Timestamp, now: Timestamp) -> Markup {
    if then <= now {
        return ago(then, now);
    }
    html! { time datetime=(then) title=(full(then)) { "in " (text::duration(then.since(now))) } }
}

/// The time of day, with the date in its title.
pub(super) fn clock(then: Timestamp) -> Markup {
    let full_text = then.to_string();
    let of_day = full_text.get(11..19).unwrap_or_default().to_owned();
    html! { time datetime=(then) title=(full(then)) { (of_day) } }
}

/// `2026-11-20 12:00:00 UTC`
pub(super) fn full(then: Timestamp) -> String {
    let text = then.to_string();
    format!("{} {} UTC", text.get(..10).unwrap_or_default(), text.get(11..19).unwrap_or_default())
}

pub(super) fn rate(bytes: u64, took: Duration) -> Option<String> {
    let secs = took.as_secs_f64();
    // A transfer that took less than the clock's grain has no rate worth telling.
    (secs >= 0.001 && bytes > 0).then(|| format!("{}/s", text::bytes((bytes as f64 / secs) as u64)))
}

pub(super) fn per_second(rate: f64) -> String {
    format!("{}/s", text::bytes(rate as u64))
}

/// The operator's name for it, else its first MAC.
pub(super) fn title_of(node: &NodeSummary) -> String {
    let mac = || node.ports.first().map_or_else(|| node.id.to_string(), |port| port.mac.to_string());
    node.name.as_ref().map_or_else(mac, ToString::to_string)
}

pub(super) fn stage_title(stage: Stage) -> &'static str {
    match stage {
        Stage::Dhcp => "DHCP",
        Stage::Loader => "loader",
        Stage::Script => "script",
        Stage::Kernel => "kernel",
        Stage::Ramdisk => "ramdisk",
        Stage::Agent => "agent",
        Stage::Enrolled => "enrolled",
    }
}

/// Characters of text from the wire that a cell of a table has room for.
const CELL_CHARS: usize = 80;
/// The longest that is kept of any such text, escaped.
const SENTENCE_CHARS: usize = 600;

/// Text from the wire in a table: shown as it is read, never obeyed. Long text is cut; its title has more of it.
pub(super) fn wire(raw: &str) -> Markup {
    cut(raw, CELL_CHARS)
}

/// The same where there is room for a sentence.
pub(super) fn sentence(raw: &str) -> Markup {
    cut(raw, SENTENCE_CHARS)
}

fn cut(raw: &str, most: usize) -> Markup {
    let safe = inert(raw);
    if safe.chars().count() <= most {
        return html! { bdi.wire { (safe) } };
    }
    let shown: String = safe.chars().take(most).collect();
    let more: String = safe.chars().take(SENTENCE_CHARS).collect();
    html! { bdi.wire title=(more) { (shown) "…" } }
}

pub(super) fn plural(count: u64, one: &str, many: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{} {many}", grouped(count)) }
}

/// `12 345`, with a narrow space that does not break.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3 * 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_units_and_times_have_dates() {
        let then = Timestamp::from_millis(1_700_000_000_000);
        let shown = ago(then, then.plus(Duration::from_secs(42))).into_string();
        assert!(shown.contains(">42s ago</time>"), "{shown}");
        assert!(shown.contains("datetime=\"2023-11-14T22:13:20.000Z\""), "{shown}");
        assert!(shown.contains("title=\"2023-11-14 22:13:20 UTC\""), "{shown}");
        assert_eq!(clock(then).into_string().matches("22:13:20").count(), 3);
        assert_eq!(rate(14_200_000, Duration::from_millis(500)).as_deref(), Some("28.4 MB/s"));
        assert_eq!(rate(14, Duration::ZERO), None);
        assert_eq!(
            [0, 999, 12_345, 1_234_567].map(grouped),
            ["0", "999", "12\u{202f}345", "1\u{202f}234\u{202f}567"]
        );
    }

    #[test]
    fn text_from_the_wire_is_escaped_cut_and_never_turns_the_line() {
        let nasty = "<script>alert(1)</script>\u{1b}[31m\n\u{202e}txt.exe";
        let shown = wire(nasty).into_string();
        assert!(!shown.contains('<') || !shown.contains("<script"), "{shown}");
        assert!(shown.contains("&lt;script&gt;") && shown.contains("\\u{1b}") && shown.contains("\\u{202e}"));
        let long = wire(&"x".repeat(4096)).into_string();
        assert!(long.len() < 1000, "{}", long.len());
    }
}
