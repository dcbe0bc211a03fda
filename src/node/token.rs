//! Boot tokens and agent sessions that need no write when issued.
//!
//! A *boot token* travels in a kernel command line, which is public: it is good for one call home, from one address,
//! by one MAC, within half an hour. A *session* is what that call buys. Both are hexadecimal text of a few fixed
//! fields and an HMAC-SHA256 tag over them under the appliance's own key, so that issuing them needs no disk; what
//! makes a token single-use is one durable field of the node, the issue time of the newest token redeemed.
//! The first byte names the purpose, so neither can stand in for the other.
//!
//! The answer to the one call can be lost after the redemption is on disk. An agent therefore comes with a nonce of
//! its own, the same for the whole boot; the node keeps a hash of token and nonce, and whoever repeats both is the
//! one who redeemed.
//!
//! ```text
//!  boot token: purpose 1 | mac 6 | address 4 | issued_at 8 | nonce 16 | tag 16    51 bytes, 102 characters
//!  session:    purpose 1 | mac 6 |             issued_at 8 |            tag 16    31 bytes,  62 characters
//! ```

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::time::Duration;

use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::clock::Timestamp;
use crate::net::MacAddr;
use crate::store::{Change, CommitError, Snapshot, Store};

/// Slowest machines (POST of a full memory check between script and agent) need minutes; protocol.md 6.2 allows 30.
pub const TOKEN_LIFETIME: Duration = Duration::from_secs(30 * 60);

/// Name of the key among the store's secrets.
const SECRET: &str = "token-key";
const KEY_LEN: usize = 32;
/// 128 bits: nobody guesses one within its half hour.
const NONCE_LEN: usize = 16;
/// HMAC-SHA256 cut to 128 bits (RFC 2104 §5 allows half the hash and more).
const TAG_LEN: usize = 16;

/// Written into the first byte, and so under the tag. The letter is the stage a boot token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    RamdiskBoot = b'R' as isize,
    AgentSession = b'S' as isize,
}

/// The appliance's own key; it never leaves the state directory.
#[derive(Clone)]
pub struct TokenKey([u8; KEY_LEN]);

impl fmt::Debug for TokenKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("TokenKey(secret)")
    }
}

#[derive(Debug, thiserror::Error)]
pub enum TokenKeyError {
    #[error("the kernel gave no random bytes for the token key")]
    NoRandomness,
    #[error("the token key could not be stored: boot tokens would not outlive this run")]
    NotStored(#[source] CommitError),
}

/// Why a text is no valid boot token or session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenFault {
    Malformed,
    /// The tag does not fit: altered, of another purpose, or of another appliance.
    Forged,
}

/// What a genuine boot token says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootToken {
    pub mac: MacAddr,
    pub address: Ipv4Addr,
    pub issued_at: Timestamp,
}

/// What a genuine session says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    pub mac: MacAddr,
    /// Issue time of the boot token it was bought with.
    pub token_issued_at: Timestamp,
}

/// What an agent made up when it started: tells its own repeated call from another's use of the token, which anyone
/// on the bridge may have seen. In text, 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AgentNonce([u8; NONCE_LEN]);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a nonce is 32 lower-case hexadecimal digits")]
pub struct ParseNonceError;

#[cfg(test)]
impl AgentNonce {
    /// One of many that differ.
    pub fn numbered(number: u128) -> AgentNonce {
        AgentNonce(number.to_be_bytes())
    }
}

impl FromStr for AgentNonce {
    type Err = ParseNonceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = parse_hex(text, NONCE_LEN).ok_or(ParseNonceError)?;
        bytes.try_into().map(AgentNonce).map_err(|_| ParseNonceError)
    }
}

impl TryFrom<String> for AgentNonce {
    type Error = ParseNonceError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<AgentNonce> for String {
    fn from(nonce: AgentNonce) -> Self {
        HEXLOWER.encode(&nonce.0)
    }
}

impl fmt::Debug for AgentNonce {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("AgentNonce(secret)")
    }
}

/// Who redeemed a token: a hash of the token's text and the nonce it came with, so that the store holds neither.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Redeemer(String);

impl Redeemer {
    pub fn of(token: &str, nonce: &AgentNonce) -> Redeemer {
        // The nonce has a fixed length, so no other pair gives the same text.
        Redeemer(HEXLOWER.encode(&Sha256::new().chain_update(nonce.0).chain_update(token).finalize()))
    }
}

impl BootToken {
    pub fn is_expired(&self, now: Timestamp) -> bool {
        // A token from the future (the clock was set back between two starts) is as good as expired.
        now < self.issued_at || now.since(self.issued_at) > TOKEN_LIFETIME
    }
}

impl TokenKey {
    pub fn from_bytes(bytes: [u8; KEY_LEN]) -> TokenKey {
        TokenKey(bytes)
    }

    /// The key of the last run, or a new one, stored before it is used. A damaged one is replaced.
    pub fn load_or_create(snapshot: &Snapshot, store: &dyn Store) -> Result<TokenKey, TokenKeyError> {
        let kept = snapshot.secrets.iter().find(|(name, _)| name == SECRET);
        if let Some(bytes) = kept.and_then(|(_, value)| <[u8; KEY_LEN]>::try_from(value.as_slice()).ok()) {
            return Ok(TokenKey(bytes));
        }
        let mut bytes = [0; KEY_LEN];
        getrandom::fill(&mut bytes).map_err(|_| TokenKeyError::NoRandomness)?;
        store
            .commit(vec![Change::PutSecret { name: SECRET, value: bytes.to_vec() }])
            .map_err(TokenKeyError::NotStored)?;
        Ok(TokenKey(bytes))
    }

    /// `None` only if the kernel has no random bytes.
    pub fn issue_boot_token(&self, mac: MacAddr, address: Ipv4Addr, now: Timestamp) -> Option<String> {
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).ok()?;
        let mut fields = vec![Purpose::RamdiskBoot as u8];
        fields.extend_from_slice(&mac.0);
        fields.extend_from_slice(&address.octets());
        fields.extend_from_slice(&now.as_millis().to_be_bytes());
        fields.extend_from_slice(&nonce);
        Some(self.seal(fields))
    }

    pub fn read_boot_token(&self, text: &str) -> Result<BootToken, TokenFault> {
        let fields: [u8; 1 + 6 + 4 + 8 + NONCE_LEN] = self.open(Purpose::RamdiskBoot, text)?;
        let [_, a, b, c, d, e, f, i, j, k, l, t0, t1, t2, t3, t4, t5, t6, t7, ..] = fields;
        Ok(BootToken {
            mac: MacAddr([a, b, c, d, e, f]),
            address: Ipv4Addr::new(i, j, k, l),
            issued_at: Timestamp::from_millis(u64::from_be_bytes([t0, t1, t2, t3, t4, t5, t6, t7])),
        })
    }

    pub fn issue_session(&self, session: Session) -> String {
        let mut fields = vec![Purpose::AgentSession as u8];
        fields.extend_from_slice(&session.mac.0);
        fields.extend_from_slice(&session.token_issued_at.as_millis().to_be_bytes());
        self.seal(fields)
    }

    pub fn read_session(&self, text: &str) -> Result<Session, TokenFault> {
        let fields: [u8; 1 + 6 + 8] = self.open(Purpose::AgentSession, text)?;
        let [_, a, b, c, d, e, f, t0, t1, t2, t3, t4, t5, t6, t7] = fields;
        Ok(Session {
            mac: MacAddr([a, b, c, d, e, f]),
            token_issued_at: Timestamp::from_millis(u64::from_be_bytes([t0, t1, t2, t3, t4, t5, t6, t7])),
        })
    }

    fn seal(&self, mut fields: Vec<u8>) -> String {
        let tag = self.mac(&fields).finalize().into_bytes();
        fields.extend_from_slice(&tag[..TAG_LEN]);
        HEXLOWER.encode(&fields)
    }

    fn open<const LEN: usize>(&self, purpose: Purpose, text: &str) -> Result<[u8; LEN], TokenFault> {
        let bytes = parse_hex(text, LEN + TAG_LEN).ok_or(TokenFault::Malformed)?;
        let (fields, tag) = bytes.split_at(LEN);
        // `verify_truncated_left` compares in constant time.
        self.mac(fields).verify_truncated_left(tag).map_err(|_| TokenFault::Forged)?;
        let fields = <[u8; LEN]>::try_from(fields).map_err(|_| TokenFault::Malformed)?;
        if fields[0] == purpose as u8 { Ok(fields) } else { Err(TokenFault::Forged) }
    }

    fn mac(&self, fields: &[u8]) -> Hmac<Sha256> {
        // A key shorter than the hash's block is padded with zeros (RFC 2104 §2); doing it here cannot fail.
        let mut block = [0; 64];
        block[..KEY_LEN].copy_from_slice(&self.0);
        let mut mac = Hmac::<Sha256>::new(&block.into());
        mac.update(fields);
        mac
    }
}

/// Compares in the same time wherever they differ.
pub fn is_same_secret(one: &str, another: &str) -> bool {
    let differences = one.bytes().zip(another.bytes()).fold(0, |all, (a, b)| all | (a ^ b));
    one.len() == another.len() && differences == 0
}

/// Exactly `len` bytes in lower-case hexadecimal.
pub(crate) fn parse_hex(text: &str, len: usize) -> Option<Vec<u8>> {
    // Whatever length it has is not decoded first.
    if text.len() == len * 2 { HEXLOWER.decode(text.as_bytes()).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryStore;

    const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 50);
    const NOW: Timestamp = Timestamp::from_millis(1_795_000_000_000);

    fn key() -> TokenKey {
        TokenKey::from_bytes([7; KEY_LEN])
    }

    #[test]
    fn a_boot_token_says_whom_it_was_issued_to() {
        let text = key().issue_boot_token(MAC, ADDRESS, NOW).unwrap();
        assert_eq!(text.len(), 102);
        assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric()), "inert in a kernel command line");
        let token = key().read_boot_token(&text).unwrap();
        assert_eq!(token, BootToken { mac: MAC, address: ADDRESS, issued_at: NOW });
        assert_ne!(text, key().issue_boot_token(MAC, ADDRESS, NOW).unwrap());
    }

    #[test]
    fn every_changed_character_is_noticed() {
        let text = key().issue_boot_token(MAC, ADDRESS, NOW).unwrap();
        for index in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[index] = if changed[index] == b'0' { b'1' } else { b'0' };
            let changed = String::from_utf8(changed).unwrap();
            assert_eq!(key().read_boot_token(&changed), Err(TokenFault::Forged), "{index}");
        }
        for text in ["", "zz", &text[2..], &text.to_uppercase(), &"é".repeat(51)] {
            assert_eq!(key().read_boot_token(text), Err(TokenFault::Malformed), "{text}");
        }
        let other = TokenKey::from_bytes([8; KEY_LEN]);
        assert_eq!(other.read_boot_token(&text), Err(TokenFault::Forged));
    }

    #[test]
    fn purposes_do_not_mix() {
        let session = Session { mac: MAC, token_issued_at: NOW };
        let text = key().issue_session(session);
        assert_eq!(key().read_session(&text), Ok(session));
        // Same length and a good tag, but sealed for the other purpose.
        let mut fields = vec![Purpose::RamdiskBoot as u8];
        fields.extend_from_slice(&MAC.0);
        fields.extend_from_slice(&NOW.as_millis().to_be_bytes());
        assert_eq!(key().read_session(&key().seal(fields)), Err(TokenFault::Forged));
    }

    #[test]
    fn a_token_lives_half_an_hour() {
        let token = BootToken { mac: MAC, address: ADDRESS, issued_at: NOW };
        assert!(!token.is_expired(NOW.plus(TOKEN_LIFETIME)));
        assert!(token.is_expired(NOW.plus(TOKEN_LIFETIME + Duration::from_millis(1))));
        assert!(token.is_expired(NOW.minus(Duration::from_millis(1))));
    }

    #[test]
    fn a_redeemer_is_known_by_token_and_nonce_together() {
        let (nonce, other) = (AgentNonce::numbered(1), AgentNonce::numbered(2));
        let redeemer = Redeemer::of("token", &nonce);
        assert_eq!(redeemer, Redeemer::of("token", &nonce));
        assert_ne!(redeemer, Redeemer::of("token", &other));
        assert_ne!(redeemer, Redeemer::of("tokem", &nonce));
        let text = String::from(nonce);
        assert!(!redeemer.0.contains(&text));
        assert_eq!(text.parse(), Ok(nonce));
        for text in ["", "00", &text[1..], &text.to_uppercase().replace(|c: char| c.is_ascii_digit(), "A")] {
            assert_eq!(text.parse::<AgentNonce>(), Err(ParseNonceError), "{text}");
        }
    }

    #[test]
    fn the_key_is_made_once_and_stored_before_use() {
        let store = MemoryStore::new();
        let first = TokenKey::load_or_create(&store.load().unwrap(), &store).unwrap();
        let second = TokenKey::load_or_create(&store.load().unwrap(), &store).unwrap();
        assert_eq!(first.0, second.0);
        let failing = MemoryStore::new();
        failing.fail_next_commits(1);
        assert!(TokenKey::load_or_create(&failing.load().unwrap(), &failing).is_err());
        assert_eq!(format!("{first:?}"), "TokenKey(secret)");
    }
}
