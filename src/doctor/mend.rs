//! What puts a finding right, and doing it.
//!
//! `--fix` runs a mend only if it is safe: it touches the configured bridge, its ports, or what is let through to
//! them, and nothing else. Everything further reaching is told, never done.

use std::process::{Command, Stdio};

use serde::ser::{Serialize, SerializeStruct, Serializer};

use crate::net::sys;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mend {
    Run {
        words: Vec<String>,
        /// It touches nothing but the bridge and its ports.
        safe: bool,
    },
    /// `ethtool -K PORT tx off`, done by ourselves: ethtool is seldom installed.
    ChecksumsBySoftware { port: String },
    /// What a command cannot do.
    Advice(String),
}

impl Mend {
    pub fn safe(words: &[&str]) -> Mend {
        Mend::Run { words: words.iter().map(|word| (*word).to_owned()).collect(), safe: true }
    }

    pub fn command(words: &[&str]) -> Mend {
        Mend::Run { words: words.iter().map(|word| (*word).to_owned()).collect(), safe: false }
    }

    pub fn advice(text: impl Into<String>) -> Mend {
        Mend::Advice(text.into())
    }

    pub fn is_safe(&self) -> bool {
        match self {
            Mend::Run { safe, .. } => *safe,
            Mend::ChecksumsBySoftware { .. } => true,
            Mend::Advice(_) => false,
        }
    }

    pub fn is_command(&self) -> bool {
        !matches!(self, Mend::Advice(_))
    }

    /// As it is typed into a shell, or read.
    pub fn text(&self) -> String {
        match self {
            Mend::Run { words, .. } => words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "),
            Mend::ChecksumsBySoftware { port } => format!("ethtool -K {} tx off", quoted(port)),
            Mend::Advice(text) => text.clone(),
        }
    }

    /// Does it, if it is safe.
    pub fn apply(&self) -> Result<(), String> {
        match self {
            Mend::Run { words, safe: true } => run(words),
            Mend::ChecksumsBySoftware { port } => {
                sys::set_checksum_offload(port, false).map_err(|error| error.to_string())
            }
            Mend::Run { safe: false, .. } | Mend::Advice(_) => Err("this is yours to decide".to_owned()),
        }
    }
}

fn run(words: &[String]) -> Result<(), String> {
    let Some((program, arguments)) = words.split_first() else { return Ok(()) };
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{}: {}", output.status, said.trim()))
}

/// For a POSIX shell.
fn quoted(word: &str) -> String {
    let plain = |character: char| character.is_ascii_alphanumeric() || "-_./:=,@+%".contains(character);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

impl Serialize for Mend {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut document = serializer.serialize_struct("Mend", 3)?;
        document.serialize_field("kind", if self.is_command() { "command" } else { "advice" })?;
        document.serialize_field("text", &self.text())?;
        document.serialize_field("safe", &self.is_safe())?;
        document.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_can_be_pasted_into_a_shell() {
        let mend = Mend::safe(&["nft", "insert", "{ 67, 69 }", "it's", ""]);
        assert_eq!(mend.text(), r"nft insert '{ 67, 69 }' 'it'\''s' ''");
        let output =
            Command::new("sh").args(["-c", &format!("printf '[%s]' {}", &mend.text()[4..])]).output();
        assert_eq!(output.unwrap().stdout, b"[insert][{ 67, 69 }][it's][]");
    }

    #[test]
    fn only_what_is_safe_is_done() {
        assert_eq!(Mend::safe(&["true"]).apply(), Ok(()));
        assert!(Mend::safe(&["false"]).apply().is_err());
        assert!(Mend::safe(&["no-such-program-anywhere"]).apply().unwrap_err().contains("no-such-program"));
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("made");
        assert!(Mend::command(&["touch", file.to_str().unwrap()]).apply().is_err());
        assert!(!file.exists());
    }
}
