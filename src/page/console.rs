//! What a machine said last on its serial console, where somebody keeps that: `operator.consoles` names a directory with
//! one file a port, called `52-54-00-12-34-56.log`. The lab has one; a console server can be told to.
//!
//! The text comes from a machine: escape sequences and control characters are taken out, lines and their length bounded.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use crate::net::MacAddr;

/// Bytes read from the end of the file.
const TAIL_BYTES: u64 = 16 * 1024;
const LINES_MAX: usize = 30;
const LINE_CHARS_MAX: usize = 200;

/// The last lines of the first of these ports that has a log with something in it.
pub(super) fn tail(directory: &Path, ports: &[MacAddr]) -> Option<String> {
    let logs = ports.iter().map(|mac| directory.join(format!("{}.log", mac.dashed())));
    logs.filter_map(|path| end_of(&path)).map(|bytes| last_lines(&bytes)).find(|text| !text.is_empty())
}

fn end_of(path: &Path) -> Option<Vec<u8>> {
    let mut file = File::open(path).ok()?;
    let metadata = file.metadata().ok()?;
    // A pipe or a device could keep us waiting for ever.
    if !metadata.is_file() {
        return None;
    }
    file.seek(SeekFrom::Start(metadata.len().saturating_sub(TAIL_BYTES))).ok()?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

fn last_lines(bytes: &[u8]) -> String {
    let text = without_escapes(&String::from_utf8_lossy(bytes));
    // A carriage return begins the line anew: what stood there was overwritten.
    let shown = |line: &str| -> String {
        let line = line.trim_end_matches('\r');
        let line = line.rsplit('\r').next().unwrap_or_default();
        line.chars().filter(|c| !c.is_control()).take(LINE_CHARS_MAX).collect()
    };
    let lines: Vec<String> = text.split('\n').map(shown).filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(LINES_MAX)..].join("\n")
}

/// Without ECMA-48 control sequences, which firmware draws its menus with.
fn without_escapes(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '\u{1b}' {
            plain.push(c);
        } else if chars.next_if_eq(&'[').is_some() {
            // Parameters and intermediates, up to the final byte.
            while chars.next_if(|c| ('\u{20}'..='\u{3f}').contains(c)).is_some() {}
            chars.next();
        } else {
            chars.next();
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_told_without_what_a_terminal_would_obey() {
        let directory = tempfile::tempdir().unwrap();
        let mac = |last| MacAddr([0x52, 0x54, 0, 0, 0, last]);
        assert_eq!(tail(directory.path(), &[mac(1)]), None);
        let log = directory.path().join("52-54-00-00-00-02.log");
        let mut text = (0..100).map(|number| format!("line {number}\r\n")).collect::<String>();
        text.push_str("\u{1b}[2J\u{1b}[01;01HiPXE <b>\u{7} 10%\r20%\r\n\u{1b}c\n");
        std::fs::write(&log, &text).unwrap();
        let told = tail(directory.path(), &[mac(1), mac(2)]).unwrap();
        let lines: Vec<&str> = told.lines().collect();
        assert_eq!(lines.len(), LINES_MAX);
        assert_eq!((lines[0], lines[LINES_MAX - 1]), ("line 71", "20%"));
        std::fs::write(&log, "x".repeat(100_000)).unwrap();
        assert_eq!(tail(directory.path(), &[mac(2)]).unwrap().len(), LINE_CHARS_MAX);
        std::fs::remove_file(&log).unwrap();
        std::fs::create_dir(&log).unwrap();
        assert_eq!(tail(directory.path(), &[mac(2)]), None);
    }
}
