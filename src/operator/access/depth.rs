//! How deep a document is nested, told before any parser sees it.
//!
//! Parsers recurse; serde_json's own limit is 128 levels, a handler's may be none. This walks the bytes once, with
//! strings skipped, and counts brackets. It does not say that the text is JSON: what is not will be refused later.

/// Our own documents have five levels.
pub const LEVELS_MAX: usize = 32;

/// Whether the text could be JSON and is nested deeper than [`LEVELS_MAX`].
pub fn is_too_deep(text: &[u8]) -> bool {
    let mut level = 0_usize;
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'[' | b'{' => level += 1,
            b']' | b'}' => level = level.saturating_sub(1),
            b'"' => {
                // To the closing quote; a backslash takes the next byte with it.
                while let Some(byte) = bytes.next() {
                    match byte {
                        b'"' => break,
                        b'\\' => drop(bytes.next()),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        if level > LEVELS_MAX {
            return true;
        }
    }
    false
}

/// Whether a body begins as a JSON object or list does, whatever its media type says.
pub fn looks_like_json(text: &[u8]) -> bool {
    text.iter().find(|byte| !byte.is_ascii_whitespace()).is_some_and(|byte| matches!(byte, b'[' | b'{'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(levels: usize) -> Vec<u8> {
        format!("{}{}", "[".repeat(levels), "]".repeat(levels)).into_bytes()
    }

    #[test]
    fn thirty_two_levels_are_read_and_no_more() {
        assert!(!is_too_deep(&nested(LEVELS_MAX)));
        assert!(is_too_deep(&nested(LEVELS_MAX + 1)));
        assert!(is_too_deep(&b"{\"a\":".repeat(33)));
    }

    #[test]
    fn brackets_in_strings_and_beside_each_other_do_not_count() {
        assert!(!is_too_deep(&b"{},".repeat(100)));
        let string = format!("[\"{}\\\"{}\\\\\"]", "[".repeat(50), "{".repeat(50));
        assert!(!is_too_deep(string.as_bytes()));
        assert!(!is_too_deep(b"\"never closed [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\\"));
        let after = [b"[\"]\",".repeat(33)].concat();
        assert!(is_too_deep(&after), "a bracket in a string closes nothing");
    }

    #[test]
    fn json_is_known_by_its_first_byte() {
        assert!(looks_like_json(b" \n[1]") && looks_like_json(b"{}"));
        assert!(!looks_like_json(b"mac,name\n") && !looks_like_json(b""));
    }
}
