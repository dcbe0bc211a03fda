//! What a node's firmware has to be humoured in: caps and exceptions that an operator sets for it alone.
//!
//! ```text
//!  blksize_max         TFTP negotiation      firmware that says it takes larger blocks than it does
//!  windowsize_max      TFTP negotiation      a network card with a short queue; 1 is no window at all
//!  broadcast_replies   DHCP                  firmware deaf to what is not sent to everybody
//!  shim_fallback       names                 firmware that makes shim ask for `dir/<garbage>Onboard`
//!  rate_mbps_max       TFTP and HTTP         drivers that stall on a fast link
//! ```
//! Nothing of it is guessed from what a machine says: the operator picks, by a known [`QuirkProfile`] or value by
//! value. [`Quirks::effective`] is what is obeyed.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A number that has to lie within bounds, wherever it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u16")]
pub struct Bounded<const MIN: u16, const MAX: u16>(u16);

/// Bytes of a TFTP block. A client that asks for no size gets 512: less would be more than it has to take.
pub type BlksizeMax = Bounded<512, 65464>;
/// Blocks in flight. Nobody gets more than 64, and 1 is the protocol without windows (RFC 1350).
pub type WindowsizeMax = Bounded<1, 64>;
/// Million bits a second. Below 1 the patience of loaders runs out before a ramdisk has come.
pub type RateMax = Bounded<1, 10_000>;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a whole number from {min} to {max}")]
pub struct OutOfBoundsError {
    pub text: String,
    pub min: u16,
    pub max: u16,
}

impl<const MIN: u16, const MAX: u16> Bounded<MIN, MAX> {
    pub fn get(self) -> u16 {
        self.0
    }

    fn refused(text: impl fmt::Display) -> OutOfBoundsError {
        OutOfBoundsError { text: text.to_string().chars().take(40).collect(), min: MIN, max: MAX }
    }
}

impl<const MIN: u16, const MAX: u16> TryFrom<u32> for Bounded<MIN, MAX> {
    type Error = OutOfBoundsError;

    fn try_from(value: u32) -> Result<Self, OutOfBoundsError> {
        match u16::try_from(value) {
            Ok(value) if (MIN..=MAX).contains(&value) => Ok(Bounded(value)),
            Ok(_) | Err(_) => Err(Self::refused(value)),
        }
    }
}

impl<const MIN: u16, const MAX: u16> From<Bounded<MIN, MAX>> for u16 {
    fn from(value: Bounded<MIN, MAX>) -> u16 {
        value.0
    }
}

impl<const MIN: u16, const MAX: u16> FromStr for Bounded<MIN, MAX> {
    type Err = OutOfBoundsError;

    fn from_str(text: &str) -> Result<Self, OutOfBoundsError> {
        text.parse::<u32>().map_err(|_| Self::refused(text.escape_debug()))?.try_into()
    }
}

impl<const MIN: u16, const MAX: u16> fmt::Display for Bounded<MIN, MAX> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// What farrier does otherwise for one node than for all. With nothing set, nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Quirks {
    /// Quirks that are known by a name; what is set beside it holds as well, and of two caps the lower.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<QuirkProfile>,
    /// No TFTP block is larger, whatever the firmware asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u16>, minimum = 512, maximum = 65464)]
    pub blksize_max: Option<BlksizeMax>,
    /// No more TFTP blocks are in flight; with 1 the window option is not granted at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u16>, minimum = 1, maximum = 64)]
    pub windowsize_max: Option<WindowsizeMax>,
    /// DHCP answers go to everybody, as if the firmware had asked for that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub broadcast_replies: bool,
    /// A name that stands for nothing, beside shim, stands for the loader that shim fetches next.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shim_fallback: bool,
    /// Files are sent no faster, in million bits a second, by TFTP and HTTP together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u16>, minimum = 1, maximum = 10_000)]
    pub rate_mbps_max: Option<RateMax>,
}

/// Faults of firmware that others have met before (protocol.md §2.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum QuirkProfile {
    /// UEFI that asks for blocks it cannot take: 1024 bytes at most.
    SmallBlocks,
    /// Dell and Wyse firmware, whose load options make shim ask for a name that is garbage.
    GarbledShimNames,
    /// Firmware that does not ask for broadcasts, and hears nothing else.
    DeafToUnicast,
    /// UEFI drivers of network cards that stall on a fast link: 100 Mbit/s, one block at a time.
    StallsOnFastLinks,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no quirk profile: {known}")]
pub struct UnknownProfileError {
    pub text: String,
    pub known: String,
}

impl QuirkProfile {
    pub const ALL: [QuirkProfile; 4] = [
        QuirkProfile::SmallBlocks,
        QuirkProfile::GarbledShimNames,
        QuirkProfile::DeafToUnicast,
        QuirkProfile::StallsOnFastLinks,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            QuirkProfile::SmallBlocks => "small-blocks",
            QuirkProfile::GarbledShimNames => "garbled-shim-names",
            QuirkProfile::DeafToUnicast => "deaf-to-unicast",
            QuirkProfile::StallsOnFastLinks => "stalls-on-fast-links",
        }
    }

    fn quirks(self) -> Quirks {
        match self {
            QuirkProfile::SmallBlocks => Quirks { blksize_max: Some(Bounded(1024)), ..Quirks::default() },
            QuirkProfile::GarbledShimNames => Quirks { shim_fallback: true, ..Quirks::default() },
            QuirkProfile::DeafToUnicast => Quirks { broadcast_replies: true, ..Quirks::default() },
            QuirkProfile::StallsOnFastLinks => Quirks {
                windowsize_max: Some(Bounded(1)),
                rate_mbps_max: Some(Bounded(100)),
                ..Quirks::default()
            },
        }
    }
}

impl fmt::Display for QuirkProfile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl FromStr for QuirkProfile {
    type Err = UnknownProfileError;

    fn from_str(text: &str) -> Result<QuirkProfile, UnknownProfileError> {
        QuirkProfile::ALL.into_iter().find(|profile| profile.as_str() == text).ok_or_else(|| {
            UnknownProfileError {
                text: text.chars().filter(|c| !c.is_control()).take(80).collect(),
                known: QuirkProfile::ALL.map(QuirkProfile::as_str).join(", "),
            }
        })
    }
}

impl Quirks {
    /// With what its profile stands for.
    pub fn effective(self) -> Quirks {
        let known = self.profile.map(QuirkProfile::quirks).unwrap_or_default();
        Quirks {
            profile: self.profile,
            blksize_max: lower(self.blksize_max, known.blksize_max),
            windowsize_max: lower(self.windowsize_max, known.windowsize_max),
            broadcast_replies: self.broadcast_replies || known.broadcast_replies,
            shim_fallback: self.shim_fallback || known.shim_fallback,
            rate_mbps_max: lower(self.rate_mbps_max, known.rate_mbps_max),
        }
    }

    /// What comes of it, a line for each; none if nothing is set.
    pub fn told(self) -> Vec<String> {
        let Quirks { profile, blksize_max, windowsize_max, broadcast_replies, shim_fallback, rate_mbps_max } =
            self.effective();
        let window = |max: WindowsizeMax| match max.get() {
            1 => "TFTP sends one block at a time".to_owned(),
            max => format!("TFTP has at most {max} blocks in flight"),
        };
        let said = |holds: bool, words: &str| holds.then(|| words.to_owned());
        [
            profile.map(|profile| format!("profile {profile}")),
            blksize_max.map(|max| format!("TFTP blocks have at most {max} bytes")),
            windowsize_max.map(window),
            said(broadcast_replies, "DHCP answers go to everybody"),
            said(shim_fallback, "an odd name beside shim is the loader that shim fetches next"),
            rate_mbps_max.map(|max| format!("files are sent at {max} Mbit/s at most")),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// The same in one line.
    pub fn summary(self) -> String {
        let told = self.told();
        if told.is_empty() { "none".to_owned() } else { told.join("; ") }
    }
}

fn lower<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Quirks, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_set_is_written_and_read_back_and_nothing_is_nothing() {
        assert_eq!(serde_json::to_string(&Quirks::default()).unwrap(), "{}");
        assert_eq!(read("{}"), Ok(Quirks::default()));
        assert_eq!(Quirks::default().told(), Vec::<String>::new());
        for profile in QuirkProfile::ALL {
            assert_eq!(profile.to_string().parse(), Ok(profile));
            assert_eq!(serde_json::to_value(profile).unwrap(), profile.as_str());
            let quirks = Quirks { profile: Some(profile), ..profile.quirks() };
            assert_eq!(read(&serde_json::to_string(&quirks).unwrap()), Ok(quirks));
            assert!(quirks.told().len() >= 2, "{quirks:?}");
        }
        assert!("dell".parse::<QuirkProfile>().unwrap_err().to_string().contains("garbled-shim-names"));
    }

    #[test]
    fn numbers_out_of_bounds_and_words_nobody_knows_are_refused() {
        for (json, why) in [
            (r#"{"blksize_max":511}"#, "`511` is not a whole number from 512 to 65464"),
            (r#"{"blksize_max":65465}"#, "from 512 to 65464"),
            (r#"{"windowsize_max":0}"#, "from 1 to 64"),
            (r#"{"windowsize_max":65537}"#, "`65537` is not"),
            (r#"{"rate_mbps_max":10001}"#, "from 1 to 10000"),
            (r#"{"rate_mbps_max":-1}"#, "invalid value"),
            (r#"{"blksize":1024}"#, "unknown field"),
            (r#"{"profile":"dell"}"#, "unknown variant"),
        ] {
            let refused = read(json).unwrap_err();
            assert!(refused.contains(why), "{json}: {refused}");
        }
        assert_eq!("64".parse::<WindowsizeMax>().map(Bounded::get), Ok(64));
        assert!("\u{1b}[2J".parse::<RateMax>().unwrap_err().to_string().contains("\\u{1b}"));
    }

    #[test]
    fn of_a_profile_and_a_value_the_stricter_holds() {
        let strict = read(r#"{"profile":"small-blocks","blksize_max":600,"broadcast_replies":true}"#);
        let effective = strict.unwrap().effective();
        assert_eq!(effective.blksize_max.map(Bounded::get), Some(600));
        assert!(effective.broadcast_replies && !effective.shim_fallback);
        let lax = read(r#"{"profile":"small-blocks","blksize_max":1468}"#).unwrap();
        assert_eq!(lax.effective().blksize_max.map(Bounded::get), Some(1024));
    }
}
