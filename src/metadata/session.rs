//! Session tokens as EC2's second version has them: got by PUT, sent with every GET, kept nowhere.
//!
//! A program that can be talked into fetching an address for somebody else can seldom be talked into a PUT and a header of
//! its own. A token is good for one MAC at one address until it runs out, and until the appliance restarts: its key is
//! made at every start, and clients get another token when one is refused.
//!
//! ```text
//!  purpose 1 | mac 6 | address 4 | expires 8 | nonce 16 | tag 16    51 bytes, 102 characters
//! ```

use std::fmt;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::time::Duration;

use data_encoding::HEXLOWER;

use crate::clock::Timestamp;
use crate::metadata::document::tag;
use crate::metadata::gate::Reader;
use crate::net::MacAddr;
use crate::node::token::parse_hex;

/// What EC2 takes for `X-aws-ec2-metadata-token-ttl-seconds`.
pub const TTL_SECONDS: RangeInclusive<u64> = 1..=21_600;
pub const NONCE_LEN: usize = 16;

const PURPOSE: u8 = b'M';
const FIELDS_LEN: usize = 1 + 6 + 4 + 8 + NONCE_LEN;
const TAG_LEN: usize = 16;

#[derive(Clone)]
pub struct SessionKey([u8; 32]);

/// Why a text is no session of its sender's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionFault {
    Malformed,
    /// Not ours, changed, or of the run before this one.
    Forged,
    Expired,
    /// A good one, of another machine or address.
    Foreign,
}

impl SessionKey {
    pub fn from_bytes(bytes: [u8; 32]) -> SessionKey {
        SessionKey(bytes)
    }

    pub fn issue(
        &self,
        mac: MacAddr,
        address: Ipv4Addr,
        expires: Timestamp,
        nonce: [u8; NONCE_LEN],
    ) -> String {
        let mut fields = vec![PURPOSE];
        fields.extend_from_slice(&mac.0);
        fields.extend_from_slice(&address.octets());
        fields.extend_from_slice(&expires.as_millis().to_be_bytes());
        fields.extend_from_slice(&nonce);
        let tag = tag(&self.0, &[&fields]);
        fields.extend_from_slice(&tag[..TAG_LEN]);
        HEXLOWER.encode(&fields)
    }

    /// Whoever has this session, as the gate knows readers.
    pub fn read(
        &self,
        text: &str,
        mac: MacAddr,
        address: Ipv4Addr,
        now: Timestamp,
    ) -> Result<Reader, SessionFault> {
        let bytes = parse_hex(text, FIELDS_LEN + TAG_LEN).ok_or(SessionFault::Malformed)?;
        let (fields, claimed) = bytes.split_at(FIELDS_LEN);
        let tag = tag(&self.0, &[fields]);
        // In the same time whichever byte is wrong.
        let differing = tag.iter().zip(claimed).fold(0, |seen, (own, other)| seen | (own ^ other));
        let Some(expires) = fields.get(11..19).and_then(|bytes| bytes.first_chunk()) else {
            return Err(SessionFault::Malformed);
        };
        let expires = Timestamp::from_millis(u64::from_be_bytes(*expires));
        match fields {
            _ if differing != 0 => Err(SessionFault::Forged),
            [PURPOSE, rest @ ..] if rest.starts_with(&mac.0) && rest[6..].starts_with(&address.octets()) => {
                if now < expires {
                    Ok(self.reader(b"session", fields))
                } else {
                    Err(SessionFault::Expired)
                }
            }
            _ => Err(SessionFault::Foreign),
        }
    }

    /// Whoever is at the other end of a connection of this run.
    pub fn connection(&self, number: u64) -> Reader {
        self.reader(b"connect", &number.to_be_bytes())
    }

    fn reader(&self, kind: &[u8; 7], what: &[u8]) -> Reader {
        let tag = tag(&self.0, &[kind, what]);
        Reader::from_bytes(tag.first_chunk().copied().unwrap_or_default())
    }
}

impl fmt::Debug for SessionKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SessionKey(secret)")
    }
}

/// The lifetime a client asks for, if it is one that EC2 would grant.
pub fn ttl_from(text: &str) -> Option<Duration> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = digits.then(|| text.parse().ok()).flatten()?;
    TTL_SECONDS.contains(&seconds).then(|| Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
    const OTHER: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 2]);
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 50);
    const NOW: Timestamp = Timestamp::from_millis(1_795_000_000_000);

    fn key() -> SessionKey {
        SessionKey::from_bytes([7; 32])
    }

    #[test]
    fn a_session_is_of_one_machine_at_one_address_for_a_time() {
        let ttl = Duration::from_secs(60);
        let text = key().issue(MAC, ADDRESS, NOW.plus(ttl), [1; NONCE_LEN]);
        let reader = key().read(&text, MAC, ADDRESS, NOW).unwrap();
        assert_eq!(key().read(&text, MAC, ADDRESS, NOW.plus(ttl / 2)), Ok(reader));
        assert_eq!(key().read(&text, OTHER, ADDRESS, NOW), Err(SessionFault::Foreign));
        assert_eq!(key().read(&text, MAC, Ipv4Addr::new(192, 168, 2, 51), NOW), Err(SessionFault::Foreign));
        assert_eq!(key().read(&text, MAC, ADDRESS, NOW.plus(ttl)), Err(SessionFault::Expired));
        assert_eq!(SessionKey::from_bytes([8; 32]).read(&text, MAC, ADDRESS, NOW), Err(SessionFault::Forged));
        let another = key().issue(MAC, ADDRESS, NOW.plus(ttl), [2; NONCE_LEN]);
        assert_ne!(key().read(&another, MAC, ADDRESS, NOW), Ok(reader));
    }

    #[test]
    fn every_changed_character_is_noticed() {
        let text = key().issue(MAC, ADDRESS, NOW.plus(Duration::from_secs(60)), [1; NONCE_LEN]);
        for index in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[index] = if changed[index] == b'0' { b'1' } else { b'0' };
            let changed = String::from_utf8(changed).unwrap();
            assert_eq!(key().read(&changed, MAC, ADDRESS, NOW), Err(SessionFault::Forged), "{index}");
        }
        for wrong in ["", "zz", &text[2..], &text.to_uppercase(), &"é".repeat(51)] {
            assert_eq!(key().read(wrong, MAC, ADDRESS, NOW), Err(SessionFault::Malformed), "{wrong}");
        }
    }

    #[test]
    fn connections_are_told_apart() {
        assert_eq!(key().connection(1), key().connection(1));
        assert_ne!(key().connection(1), key().connection(2));
        assert_ne!(key().connection(1), SessionKey::from_bytes([8; 32]).connection(1));
    }

    #[test]
    fn lifetimes_are_those_of_ec2() {
        assert_eq!(ttl_from("1"), Some(Duration::from_secs(1)));
        assert_eq!(ttl_from("21600"), Some(Duration::from_secs(21_600)));
        for text in ["", "0", "21601", "-1", "+60", "60s", " 60", "6e1", "99999999999999999999999"] {
            assert_eq!(ttl_from(text), None, "{text}");
        }
    }
}
