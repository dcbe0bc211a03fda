//! Ethernet addresses: parsed once, compared as values, written the two ways the field writes them.

use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A 48-bit Ethernet address. Text form is `52:54:00:00:00:01`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a MAC address: six bytes in hexadecimal are wanted, as in 52:54:00:12:34:56")]
pub struct ParseMacError {
    pub text: String,
}

impl MacAddr {
    pub const BROADCAST: MacAddr = MacAddr([0xff; 6]);

    /// `52-54-00-00-00-01`, as PXELINUX, GRUB and our own URLs write it.
    pub fn dashed(self) -> String {
        self.to_string().replace(':', "-")
    }

    /// True for an address one machine can own: not multicast, not all zero.
    pub fn is_station(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Every script has it several times, every line of the log once: `{:02x}` six times would be slow.
        let mut text = [b':'; 17];
        for (byte, digits) in self.0.iter().zip(text.chunks_mut(3)) {
            HEXLOWER.encode_mut(&[*byte], &mut digits[..2]);
        }
        formatter.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "MacAddr({self})")
    }
}

impl FromStr for MacAddr {
    type Err = ParseMacError;

    /// Accepts `:` or `-` between bytes, or none at all; upper or lower case.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || ParseMacError { text: text.chars().take(64).collect() };
        let separated = text.len() == 17;
        if !(separated || text.len() == 12) || !text.is_ascii() {
            return Err(refused());
        }
        let step = if separated { 3 } else { 2 };
        let mut bytes = [0; 6];
        for (index, byte) in bytes.iter_mut().enumerate() {
            let digits = &text[index * step..index * step + 2];
            if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(refused());
            }
            *byte = u8::from_str_radix(digits, 16).map_err(|_| refused())?;
        }
        let separator = text.as_bytes()[2];
        let separators_agree = !separated
            || (matches!(separator, b':' | b'-')
                && (0..5).all(|index| text.as_bytes()[index * 3 + 2] == separator));
        if separators_agree { Ok(MacAddr(bytes)) } else { Err(refused()) }
    }
}

impl Serialize for MacAddr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_customary_spelling_is_read() {
        let mac = MacAddr([0x52, 0x54, 0, 0xab, 0xcd, 0xef]);
        for text in ["52:54:00:ab:cd:ef", "52-54-00-AB-CD-EF", "525400abcdef"] {
            assert_eq!(text.parse(), Ok(mac), "{text}");
        }
        assert_eq!(mac.to_string(), "52:54:00:ab:cd:ef");
        assert_eq!(mac.dashed(), "52-54-00-ab-cd-ef");
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "52:54:00:ab:cd",
            "52:54:00:ab:cd:eg",
            "52:54-00:ab:cd:ef",
            "+2:54:00:ab:cd:ef",
            "ä2:54:00:ab:cd:e",
        ] {
            assert!(text.parse::<MacAddr>().is_err(), "{text}");
        }
    }
}
