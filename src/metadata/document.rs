//! What a node is told of itself: one value, however many formats it is served in.
//!
//! Everything here is checked when it is made. A host name, a key and a token have no letter that means anything to a
//! shell, to JSON, YAML, preseed or kickstart; user data may hold anything, and is never put into another text.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit, Mac};
use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::metadata::ssh_key::SshKey;
use crate::net::MacAddr;
use crate::node::NodeName;
use crate::node::install::intent::{IntentId, IntentNonce};
use crate::node::token::is_same_secret;

/// User data of EC2 has 16 KiB at most; of NoCloud, what fits a small file system.
pub const USER_DATA_BYTES_MAX: usize = 64 * 1024;
/// Operators of one machine; their keys are in every answer.
pub const SSH_KEYS_MAX: usize = 64;
/// RFC 1123 §2.1.
const HOST_NAME_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;
/// Longer than any device path, mirror or time zone we know.
const WORD_BYTES_MAX: usize = 128;

/// All that the nodes' first boot, cloud-init and installers read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// The intent that installed it: another install is another instance, and cloud-init begins anew.
    pub instance: IntentId,
    pub host_name: HostName,
    /// At most [`SSH_KEYS_MAX`].
    pub ssh_keys: Vec<SshKey>,
    pub user_data: Option<UserData>,
    /// The operator's own, beside what makes cloud-init phone home.
    pub vendor_data: Option<UserData>,
    pub network: Network,
    pub phone_home: PhoneHome,
    pub installer: Installer,
}

impl Document {
    /// With DHCP on the port that boots, and nothing that nobody asked for.
    pub fn new(
        instance: IntentId,
        host_name: HostName,
        boot_mac: MacAddr,
        phone_home: PhoneHome,
    ) -> Document {
        Document {
            instance,
            host_name,
            ssh_keys: Vec::new(),
            user_data: None,
            vendor_data: None,
            network: Network { ports: vec![NetworkPort { mac: boot_mac, addressing: Addressing::Dhcp }] },
            phone_home,
            installer: Installer::default(),
        }
    }
}

/// One or more labels of RFC 1123, in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostName(String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not a host name: labels of 1 to 63 lower-case letters, digits and inner hyphens are wanted, with dots between them, as in node07.example.org"
)]
pub struct ParseHostNameError {
    text: String,
}

impl HostName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HostName {
    type Err = ParseHostNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let label = |label: &str| {
            (1..=LABEL_BYTES_MAX).contains(&label.len())
                && label.bytes().all(letter)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if text.len() <= HOST_NAME_BYTES_MAX && text.split('.').all(label) {
            Ok(HostName(text.to_owned()))
        } else {
            Err(ParseHostNameError { text: printable(text) })
        }
    }
}

impl From<&NodeName> for HostName {
    fn from(name: &NodeName) -> Self {
        // A node's name is one such label.
        HostName(name.as_str().to_owned())
    }
}

/// Of a node that nobody named.
impl From<MacAddr> for HostName {
    fn from(mac: MacAddr) -> Self {
        // Dashes in place of colons: a label.
        HostName(format!("node-{}", mac.dashed()))
    }
}

impl TryFrom<String> for HostName {
    type Error = ParseHostNameError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<HostName> for String {
    fn from(name: HostName) -> Self {
        name.0
    }
}

/// What of a refused text may be shown.
pub(super) fn printable(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control()).take(80).collect()
}

/// Text for the installed system's first boot; it often holds passwords.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UserData(String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserDataError {
    #[error(
        "user data has at most {USER_DATA_BYTES_MAX} bytes, and these are {bytes}: put the rest where it can be fetched from"
    )]
    TooLarge { bytes: usize },
    #[error(
        "user data is text without NUL bytes: compressed data and programs go into an archive that it fetches"
    )]
    Nul,
}

impl UserData {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for UserData {
    type Error = UserDataError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.len() {
            bytes if bytes > USER_DATA_BYTES_MAX => Err(UserDataError::TooLarge { bytes }),
            _ if text.contains('\0') => Err(UserDataError::Nul),
            _ => Ok(UserData(text)),
        }
    }
}

impl From<UserData> for String {
    fn from(data: UserData) -> Self {
        data.0
    }
}

impl fmt::Debug for UserData {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "UserData({} bytes)", self.0.len())
    }
}

/// How the installed system reaches networks, port by port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    pub ports: Vec<NetworkPort>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPort {
    /// The kernel's names for ports change from boot to boot.
    pub mac: MacAddr,
    pub addressing: Addressing,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addressing {
    Dhcp,
    Fixed { address: Ipv4Network, gateway: Option<Ipv4Addr>, dns: Vec<Ipv4Addr> },
}

/// Where the first boot says that it has come up, and how it proves that it is the one we installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PhoneHome {
    /// The appliance's address on the bridge.
    pub server: Ipv4Addr,
    pub token: PhoneHomeToken,
}

impl PhoneHome {
    /// Where everything of ours is, without a slash at the end.
    pub fn base(&self) -> String {
        format!("http://{}/metadata/v1", self.server)
    }

    pub fn url(&self) -> String {
        format!("{}/phone-home", self.base())
    }
}

/// 64 hexadecimal digits; of one intent.
#[derive(Clone, PartialEq, Eq)]
pub struct PhoneHomeToken(String);

impl PhoneHomeToken {
    /// Made of the intent's own secret, so that nothing more has to be kept: whoever has the nonce may know it, and it does
    /// not tell the nonce.
    pub fn of(nonce: &IntentNonce, intent: IntentId) -> PhoneHomeToken {
        PhoneHomeToken(HEXLOWER.encode(&tag(nonce.bytes(), &[b"farrier phone home", intent.0.as_bytes()])))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Takes the same time whichever letter is wrong.
    pub fn is(&self, claimed: &str) -> bool {
        is_same_secret(&self.0, claimed)
    }
}

impl fmt::Debug for PhoneHomeToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("PhoneHomeToken(secret)")
    }
}

/// HMAC-SHA256 over parts of which all but the last have a fixed length.
pub(super) fn tag(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    // A key shorter than the hash's block is padded with zeros (RFC 2104 §2); doing it here cannot fail.
    let mut block = [0; 64];
    block[..key.len()].copy_from_slice(key);
    let mut mac = Hmac::<Sha256>::new(&block.into());
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// What an installer asks besides; the agent that writes images needs none of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installer {
    /// `/dev/vda`; without it the installer takes the only disk, or asks.
    pub disk: Option<Word>,
    pub locale: Word,
    pub time_zone: Word,
    /// Where Debian's packages come from: host, and directory there.
    pub mirror: Word,
    pub mirror_directory: Word,
}

impl Default for Installer {
    fn default() -> Self {
        let word = |text: &str| Word(text.to_owned());
        Installer {
            disk: None,
            locale: word("en_US.UTF-8"),
            time_zone: word("Etc/UTC"),
            mirror: word("deb.debian.org"),
            mirror_directory: word("/debian"),
        }
    }
}

/// A word that means nothing but itself in a shell, quoted or not, in a preseed file, a kickstart file, JSON and YAML.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Word(String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` cannot be written into an installer's file: 1 to {WORD_BYTES_MAX} letters, digits and - . _ : / = + @ , are wanted, not - at the beginning"
)]
pub struct ParseWordError {
    text: String,
}

impl Word {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a text is inert, however long it is.
    pub(super) fn is_inert(text: &str) -> bool {
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:/=+@,".contains(&byte);
        !text.is_empty() && !text.starts_with('-') && text.bytes().all(letter)
    }
}

impl FromStr for Word {
    type Err = ParseWordError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() <= WORD_BYTES_MAX && Word::is_inert(text) {
            Ok(Word(text.to_owned()))
        } else {
            Err(ParseWordError { text: printable(text) })
        }
    }
}

impl TryFrom<String> for Word {
    type Error = ParseWordError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Word> for String {
    fn from(word: Word) -> Self {
        word.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn host_names_are_labels_and_nothing_else() {
        for text in ["a", "rack1-node07", "node07.example.org", &"a".repeat(63)] {
            assert_eq!(text.parse::<HostName>().unwrap().as_str(), text);
        }
        let long = ["a"; 130].join(".");
        for text in [
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "-a",
            "a-",
            "A",
            "a_b",
            "a b",
            "a\nb",
            "a\"",
            "a'; reboot; '",
            "a$(id)",
            "a\u{1b}[31m",
            "ä",
            &"a".repeat(64),
            &long,
        ] {
            let error = text.parse::<HostName>().unwrap_err();
            assert!(!error.to_string().contains(['\n', '\u{1b}']), "{text:?}");
        }
    }

    #[test]
    fn user_data_is_text_of_bounded_size() {
        assert!(UserData::try_from("#cloud-config\n".to_owned()).is_ok());
        assert!(UserData::try_from("x".repeat(USER_DATA_BYTES_MAX)).is_ok());
        let large = UserData::try_from("x".repeat(USER_DATA_BYTES_MAX + 1));
        assert_eq!(large, Err(UserDataError::TooLarge { bytes: USER_DATA_BYTES_MAX + 1 }));
        assert_eq!(UserData::try_from("a\0b".to_owned()), Err(UserDataError::Nul));
        let secret = UserData::try_from("password: hunter2".to_owned()).unwrap();
        assert_eq!(format!("{secret:?}"), "UserData(17 bytes)");
    }

    #[test]
    fn a_token_is_of_one_intent_and_one_nonce() {
        let (nonce, other) = (IntentNonce::from_bytes([1; 32]), IntentNonce::from_bytes([2; 32]));
        let (intent, next) = (IntentId(uuid::Uuid::from_u128(1)), IntentId(uuid::Uuid::from_u128(2)));
        let token = PhoneHomeToken::of(&nonce, intent);
        assert_eq!(token, PhoneHomeToken::of(&nonce, intent));
        for another in [PhoneHomeToken::of(&other, intent), PhoneHomeToken::of(&nonce, next)] {
            assert!(token != another && !token.is(another.as_str()));
        }
        let text = token.as_str().to_owned();
        assert!(token.is(&text) && text.len() == 64 && Word::is_inert(&text));
        for wrong in ["", &text[1..], &format!("{text}0"), &text.replace(|c: char| c.is_ascii_digit(), "x")] {
            assert!(!token.is(wrong), "{wrong}");
        }
        assert_eq!(format!("{token:?}"), "PhoneHomeToken(secret)");
    }

    proptest! {
        #[test]
        fn whatever_is_taken_as_a_word_or_a_name_is_inert(text in "\\PC{0,20}|[ -~\n\t]{0,20}") {
            let special = |letter: char| " \t\n\r\"'`$\\;&|<>(){}[]*?!#%^~".contains(letter) || !letter.is_ascii();
            if let Ok(word) = text.parse::<Word>() {
                prop_assert!(!word.as_str().contains(special));
            }
            if let Ok(name) = text.parse::<HostName>() {
                prop_assert!(Word::is_inert(name.as_str()));
            }
        }
    }
}
