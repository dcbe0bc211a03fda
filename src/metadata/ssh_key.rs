//! Public keys as OpenSSH writes them: `ssh-ed25519 AAAA… comment`, looked into and not only at.
//!
//! A line of `authorized_keys` may begin with options (`command="…"`), which run programs; a key has none.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::metadata::document::printable;

/// An RSA key of 16 384 bits has less than 3 KB.
const LINE_BYTES_MAX: usize = 8 * 1024;
const COMMENT_CHARS_MAX: usize = 128;

/// What OpenSSH takes today, and of how many fields each consists behind its name (RFC 4253 §6.6, RFC 5656 §3.1, RFC 8709
/// §4, PROTOCOL.u2f). DSA is gone.
const KINDS: [(&str, usize); 7] = [
    ("ssh-ed25519", 1),
    ("ssh-rsa", 2),
    ("ecdsa-sha2-nistp256", 2),
    ("ecdsa-sha2-nistp384", 2),
    ("ecdsa-sha2-nistp521", 2),
    ("sk-ssh-ed25519@openssh.com", 2),
    ("sk-ecdsa-sha2-nistp256@openssh.com", 3),
];

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SshKey {
    /// Kind and key, inert in every text.
    bare: String,
    /// What people wrote; may be empty.
    comment: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseSshKeyError {
    #[error(
        "`{text}` is not an OpenSSH public key: one line such as `ssh-ed25519 AAAA… name` is wanted, as in a file that ends in .pub"
    )]
    NotAKey { text: String },
    #[error("this is a private key: keep it to yourself, and give the file that ends in .pub")]
    Private,
    #[error("a public key has at most {LINE_BYTES_MAX} bytes")]
    TooLong,
}

impl SshKey {
    /// Without the comment.
    pub fn bare(&self) -> &str {
        &self.bare
    }
}

impl fmt::Display for SshKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.bare)?;
        if self.comment.is_empty() { Ok(()) } else { write!(formatter, " {}", self.comment) }
    }
}

impl fmt::Debug for SshKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SshKey({self})")
    }
}

impl FromStr for SshKey {
    type Err = ParseSshKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > LINE_BYTES_MAX {
            return Err(ParseSshKeyError::TooLong);
        }
        if text.contains("PRIVATE KEY") {
            return Err(ParseSshKeyError::Private);
        }
        let refused = || ParseSshKeyError::NotAKey { text: printable(text) };
        let line = text.trim();
        let mut words = line.splitn(3, [' ', '\t']);
        let (kind, base64) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let comment = words.next().unwrap_or_default().trim();
        let (kind, fields) = KINDS.into_iter().find(|(known, _)| *known == kind).ok_or_else(refused)?;
        let blob = decode_base64(base64).ok_or_else(refused)?;
        let plain =
            !comment.chars().any(|letter| letter.is_control() || ('\u{200b}'..='\u{206f}').contains(&letter));
        if !is_whole(&blob, kind, fields) || !plain || comment.chars().count() > COMMENT_CHARS_MAX {
            return Err(refused());
        }
        Ok(SshKey { bare: format!("{kind} {base64}"), comment: comment.to_owned() })
    }
}

impl TryFrom<String> for SshKey {
    type Error = ParseSshKeyError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<SshKey> for String {
    fn from(key: SshKey) -> Self {
        key.to_string()
    }
}

/// Whether a key names its own kind and then has so many fields, none of them empty, and nothing else.
fn is_whole(blob: &[u8], kind: &str, fields: usize) -> bool {
    let mut rest = blob;
    let mut field = || {
        let (length, behind) = rest.split_first_chunk::<4>()?;
        let (value, behind) = behind.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        rest = behind;
        Some(value)
    };
    let named = field() == Some(kind.as_bytes());
    let complete = (0..fields).all(|_| field().is_some_and(|value| !value.is_empty()));
    named && complete && rest.is_empty()
}

/// RFC 4648 §4, padded, and nothing that decodes to the same bytes otherwise.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let value = |byte: u8| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let digits = text.trim_end_matches('=');
    if text.is_empty() || !text.len().is_multiple_of(4) || text.len() - digits.len() > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    for group in digits.as_bytes().chunks(4) {
        let mut bits = 0_u32;
        for byte in group {
            bits = bits << 6 | u32::from(value(*byte)?);
        }
        let left = 4 - group.len();
        bits <<= 6 * left;
        let whole = bits.to_be_bytes();
        // What the padding leaves over is zero.
        if left == 3 || whole[4 - left..].iter().any(|byte| *byte != 0) {
            return None;
        }
        bytes.extend_from_slice(&whole[1..4 - left]);
    }
    Some(bytes)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::metadata::document::Word;

    /// Made by ssh-keygen for this test.
    pub(crate) const ED25519: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMmETQO+uVZSIFDYBbUYOip7NwVrffHaml4BnS0O5hHV operator@example";

    fn encode(bytes: &[u8]) -> String {
        const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut text = String::new();
        for group in bytes.chunks(3) {
            let mut whole = [0; 4];
            whole[1..=group.len()].copy_from_slice(group);
            let bits = u32::from_be_bytes(whole);
            for place in 0..4 {
                let digit = DIGITS[(bits >> (18 - 6 * place)) as usize & 63];
                text.push(if place <= group.len() { char::from(digit) } else { '=' });
            }
        }
        text
    }

    fn key_of(kind: &str, fields: &[&[u8]]) -> String {
        let mut blob = Vec::new();
        for field in [kind.as_bytes()].iter().chain(fields) {
            blob.extend_from_slice(&(field.len() as u32).to_be_bytes());
            blob.extend_from_slice(field);
        }
        format!("{kind} {}", encode(&blob))
    }

    #[test]
    fn every_kind_is_read_and_written_as_it_was() {
        assert_eq!(ED25519.parse::<SshKey>().unwrap().to_string(), ED25519);
        for (kind, fields) in KINDS {
            let line = key_of(kind, &vec![&b"field"[..]; fields]);
            assert_eq!(line.parse::<SshKey>().unwrap().to_string(), line);
            let spaced = format!("  {line} \n").parse::<SshKey>().unwrap();
            assert_eq!(spaced.bare(), line);
            for wrong in [fields - 1, fields + 1] {
                assert!(
                    key_of(kind, &vec![&b"field"[..]; wrong]).parse::<SshKey>().is_err(),
                    "{kind} {wrong}"
                );
            }
        }
    }

    #[test]
    fn what_only_looks_like_a_key_is_refused() {
        let bare = ED25519.rsplit_once(' ').unwrap().0;
        let (kind, base64) = bare.split_once(' ').unwrap();
        for text in [
            String::new(),
            kind.to_owned(),
            base64.to_owned(),
            format!("command=\"reboot\" {bare}"),
            format!("no-pty,{bare}"),
            format!("ssh-rsa {base64}"),
            format!("ssh-dss {base64}"),
            format!("{kind} {}", &base64[4..]),
            format!("{kind} {}", &base64[..base64.len() - 4]),
            format!("{kind} {base64}AAAA"),
            format!("{kind} {base64}="),
            format!("{kind} {}$(id)", &base64[..base64.len() - 5]),
            format!("{bare} a\ncommand=\"reboot\" {bare}"),
            format!("{bare} \u{1b}[31mred"),
            format!("{bare} \u{202e}gnp"),
            format!("{bare} {}", "x".repeat(COMMENT_CHARS_MAX + 1)),
            key_of("ssh-ed25519", &[b""]),
        ] {
            let error = text.parse::<SshKey>().unwrap_err();
            assert!(!error.to_string().contains(['\n', '\u{1b}']), "{text:?}");
        }
        let private = "-----BEGIN OPENSSH PRIVATE KEY-----\nsecret";
        let error = private.parse::<SshKey>().unwrap_err();
        assert!(error == ParseSshKeyError::Private && !error.to_string().contains("secret"));
        assert_eq!("x".repeat(LINE_BYTES_MAX + 1).parse::<SshKey>(), Err(ParseSshKeyError::TooLong));
    }

    #[test]
    fn a_hostile_comment_stays_a_comment() {
        let text = format!("{} $(reboot) '\"`; %end #", ED25519.rsplit_once(' ').unwrap().0);
        let key = text.parse::<SshKey>().unwrap();
        assert_eq!(key.to_string(), text);
        assert!(key.bare().split(' ').all(Word::is_inert));
    }

    proptest! {
        #[test]
        fn base64_is_undone(bytes in proptest::collection::vec(any::<u8>(), 1..100)) {
            prop_assert_eq!(decode_base64(&encode(&bytes)), Some(bytes));
        }

        #[test]
        fn what_is_read_is_written_the_same(text in "\\PC{0,60}", comment in "\\PC{0,20}") {
            let line = format!("{} {comment}", ED25519.rsplit_once(' ').unwrap().0);
            for text in [text, line] {
                if let Ok(key) = text.parse::<SshKey>() {
                    prop_assert_eq!(key.to_string().parse(), Ok(key));
                }
            }
        }
    }
}
