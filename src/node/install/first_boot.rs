//! What an operator gave for the system that is installed: kept beside the node, and no longer than it is needed.

use serde::{Deserialize, Serialize};

use crate::node::NodeId;
use crate::node::install::intent::IntentId;

pub const SSH_KEYS_MAX: usize = 64;
/// An RSA key of 16 384 bits has 2.8 KB in this form.
pub const SSH_KEY_LEN_MAX: usize = 8 * 1024;
/// What EC2 and most clouds take is 16 KiB; compressed archives are none of ours.
pub const USER_DATA_MAX: usize = 64 * 1024;

/// Keyed by node; a new intent replaces it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirstBoot {
    pub node: NodeId,
    pub intent: IntentId,
    /// Lines as in `authorized_keys`.
    pub ssh_keys: Vec<String>,
    /// Gone once the installed system has called, or has read it.
    pub user_data: Option<String>,
    /// Secret parts that were handed out over the network, and when.
    #[serde(default)]
    pub handed_out: Vec<(String, crate::clock::Timestamp)>,
}

impl std::fmt::Debug for FirstBoot {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // User data holds passwords.
        write!(formatter, "FirstBoot({}, intent {})", self.node, self.intent)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FirstBootError {
    #[error("{count} SSH keys are too many: at most {SSH_KEYS_MAX}")]
    TooManyKeys { count: usize },
    #[error(
        "`{start}…` is not an OpenSSH public key: a line as in authorized_keys, of {SSH_KEY_LEN_MAX} bytes at most, is wanted (ssh-ed25519 AAAA… comment)"
    )]
    NotAKey { start: String },
    #[error("that is a private key: give the public one, which ends in .pub")]
    PrivateKey,
    #[error("user data of {bytes} bytes is too long: at most {USER_DATA_MAX}")]
    UserDataTooLong { bytes: usize },
    #[error("user data contains a NUL: text is wanted")]
    UserDataNotText,
}

/// One line as in `authorized_keys`, trimmed. Options before the key are refused: what they allow is for the image to say.
pub fn check_ssh_key(line: &str) -> Result<String, FirstBootError> {
    let line = line.trim();
    if line.contains("PRIVATE KEY") {
        return Err(FirstBootError::PrivateKey);
    }
    let refused = || FirstBootError::NotAKey { start: line.escape_default().take(24).collect() };
    let mut words = line.split(' ');
    let kind = words.next().unwrap_or_default();
    let known =
        ["ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"];
    let hardware = ["sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com"];
    let body = words.next().unwrap_or_default();
    // The body of every kind begins with the length of the kind's name: three zero bytes.
    let sane = body.len() >= 40
        && body.starts_with("AAAA")
        && body.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte));
    let printable = line.chars().all(|letter| !letter.is_control());
    if line.len() <= SSH_KEY_LEN_MAX
        && printable
        && sane
        && (known.contains(&kind) || hardware.contains(&kind))
    {
        Ok(line.to_owned())
    } else {
        Err(refused())
    }
}

/// The operator's wishes, checked.
pub fn check(ssh_keys: &[String], user_data: Option<&str>) -> Result<Vec<String>, FirstBootError> {
    if ssh_keys.len() > SSH_KEYS_MAX {
        return Err(FirstBootError::TooManyKeys { count: ssh_keys.len() });
    }
    if let Some(text) = user_data {
        if text.len() > USER_DATA_MAX {
            return Err(FirstBootError::UserDataTooLong { bytes: text.len() });
        }
        if text.contains('\0') {
            return Err(FirstBootError::UserDataNotText);
        }
    }
    ssh_keys.iter().map(|key| check_ssh_key(key)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGVhc3QtYXMtd2VzdC1ub3J0aC1zb3V0aC0xMjM0 ops@example";

    #[test]
    fn keys_are_lines_of_authorized_keys() {
        assert_eq!(check_ssh_key(&format!("  {KEY}\n")).as_deref(), Ok(KEY));
        for text in [
            "",
            "ssh-ed25519",
            "ssh-ed25519 AAAA",
            "command=\"sh\" ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGVhc3QtYXMtd2VzdC1ub3J0aC1zb3V0aC0xMjM0",
            &KEY.replace("AAAAC3", "$(id)"),
            &format!("{KEY}\nssh-rsa x"),
        ] {
            assert!(matches!(check_ssh_key(text), Err(FirstBootError::NotAKey { .. })), "{text:?}");
        }
        let private = "-----BEGIN OPENSSH PRIVATE KEY-----";
        assert_eq!(check_ssh_key(private), Err(FirstBootError::PrivateKey));
    }

    #[test]
    fn user_data_is_bounded_text() {
        assert!(check(&[KEY.to_owned()], Some("#!/bin/sh\necho hello\n")).is_ok());
        let long = "x".repeat(USER_DATA_MAX + 1);
        assert!(matches!(check(&[], Some(&long)), Err(FirstBootError::UserDataTooLong { .. })));
        assert_eq!(check(&[], Some("a\0b")), Err(FirstBootError::UserDataNotText));
        let many = vec![KEY.to_owned(); SSH_KEYS_MAX + 1];
        assert!(matches!(check(&many, None), Err(FirstBootError::TooManyKeys { .. })));
    }
}
