//! SHA-256 as a value: the name of a blob, its ETag, and the proof that it is what was published.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// The SHA-256 of some bytes. Text form is 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; Digest::LEN]);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a SHA-256 digest: 64 lower-case hexadecimal digits are wanted")]
pub struct ParseDigestError {
    pub text: String,
}

impl Digest {
    pub const LEN: usize = 32;

    pub fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    /// Of the parts one after the other.
    pub fn of_parts(parts: &[&[u8]]) -> Digest {
        let mut hash = Sha256::new();
        parts.iter().for_each(|part| hash.update(part));
        Digest(hash.finalize().into())
    }

    /// What a hash that was fed elsewhere came to.
    pub fn from_bytes(bytes: [u8; Digest::LEN]) -> Digest {
        Digest(bytes)
    }

    pub fn bytes(&self) -> &[u8; Digest::LEN] {
        &self.0
    }

    /// Hashes `source` to its end while handing every piece to `sink`; returns the digest and the byte count.
    pub fn of_stream(
        source: &mut dyn Read,
        mut sink: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<(Digest, u64)> {
        /// Large enough that hashing, not system calls, sets the pace.
        const PIECE: usize = 256 * 1024;
        let mut hash = Sha256::new();
        let mut total = 0;
        let mut piece = vec![0; PIECE];
        loop {
            let count = match source.read(&mut piece) {
                Ok(0) => return Ok((Digest(hash.finalize().into()), total)),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            hash.update(&piece[..count]);
            sink(&piece[..count])?;
            total += count as u64;
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || ParseDigestError { text: text.escape_default().take(80).collect() };
        let mut bytes = [0; Digest::LEN];
        if text.len() != 2 * Digest::LEN {
            return Err(refused());
        }
        // Upper case is refused: one digest has one name on disk.
        HEXLOWER.decode_mut(text.as_bytes(), &mut bytes).map_err(|_| refused())?;
        Ok(Digest(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_of_nothing_is_the_published_one() {
        let text = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").to_string(), text);
        assert_eq!(text.parse(), Ok(Digest::of(b"")));
    }

    #[test]
    fn a_stream_hashes_like_its_bytes() {
        let bytes = vec![7; 600_000];
        let mut copy = Vec::new();
        let hashed = Digest::of_stream(&mut bytes.as_slice(), |piece| {
            copy.extend_from_slice(piece);
            Ok(())
        });
        assert_eq!(hashed.unwrap(), (Digest::of(&bytes), 600_000));
        assert_eq!(copy, bytes);
    }

    #[test]
    fn only_one_spelling_is_read() {
        for text in ["", "e3", &"E3".repeat(32), &"g0".repeat(32), &"ä".repeat(32)] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }
}
