//! Which of a machine's disks a task means: conditions and one preference, as an operator writes them.
//!
//! ```text
//!  smallest                     the smallest disk that fits; what counts when nothing else is said
//!  largest | first              the other preferences; `first` goes by where a disk is plugged in
//!  all                          every disk that meets the conditions; only for cleaning
//!  name=vda                     the kernel's name, which may be another one at the next boot
//!  serial=W461ABCD              the serial number
//!  path=pci-0000:00:04.0*       where it is plugged in, as in /dev/disk/by-path
//!  model=Samsung*               `*` stands for any letters, in these four
//!  size>=100G, size<=2T         K, M, G, T as disks are sold, Ki, Mi, Gi, Ti in powers of 1024
//!  rotational=no                also `removable=yes`: removable disks are left out unless they are asked for
//! ```
//! Separated by commas; all conditions must hold. The text has one canonical form, which is what is kept and shown.
//! [`choice`] applies a rule to the disks that are there.

pub mod choice;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use choice::{DiskFacts, NoDisk, Purpose, Signature};

/// A rule is read by people; one longer than this was made by a mistake.
const TEXT_MAX: usize = 512;
/// Units by how much they stand for, from small to large; decimal ones first where a number can be said in both.
const UNITS: [(&str, u64); 8] = [
    ("K", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
];

/// Conditions in canonical order without doubles, and a preference among the disks that meet them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DiskRule {
    conditions: Vec<Condition>,
    preference: Preference,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Preference {
    #[default]
    Smallest,
    Largest,
    First,
    All,
}

/// One thing a disk must be. The order is that of the canonical text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Condition {
    Text(Field, Pattern),
    AtLeast(u64),
    AtMost(u64),
    Flag(Flag, bool),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Field {
    Name,
    Serial,
    Path,
    Model,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Flag {
    Rotational,
    Removable,
}

/// Text in which `*` stands for any letters, also none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Pattern(String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a disk rule: {fault}")]
pub struct ParseDiskRuleError {
    pub text: String,
    pub fault: DiskRuleFault,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskRuleFault {
    #[error("it is longer than {TEXT_MAX} characters")]
    Long,
    #[error("there is an empty part; write `smallest` for the smallest disk that fits")]
    Empty,
    #[error(
        "`{part}` is neither a preference (smallest, largest, first, all) nor a condition (name=, serial=, path=, \
         model=, size>=, size<=, rotational=, removable=)"
    )]
    Unknown { part: String },
    #[error("`{part}`: a value without control characters is wanted")]
    Value { part: String },
    #[error("`{part}`: a size such as 100G, 2T or 64Gi is wanted")]
    Size { part: String },
    #[error("`{part}`: `yes` or `no` is wanted")]
    Flag { part: String },
    #[error("`{key}` is said twice")]
    Twice { key: &'static str },
    #[error("two preferences: one of smallest, largest, first, all is wanted")]
    Preferences,
    #[error("size>= asks for more than size<= allows")]
    Bounds,
}

impl DiskRule {
    /// Every disk.
    pub fn all() -> DiskRule {
        DiskRule { conditions: Vec::new(), preference: Preference::All }
    }

    /// Whether it means every disk, which makes sense for cleaning alone.
    pub fn means_all(&self) -> bool {
        self.preference == Preference::All
    }
}

impl Preference {
    const ALL: [Preference; 4] =
        [Preference::Smallest, Preference::Largest, Preference::First, Preference::All];

    fn word(self) -> &'static str {
        match self {
            Preference::Smallest => "smallest",
            Preference::Largest => "largest",
            Preference::First => "first",
            Preference::All => "all",
        }
    }
}

impl Field {
    const ALL: [Field; 4] = [Field::Name, Field::Serial, Field::Path, Field::Model];

    fn word(self) -> &'static str {
        match self {
            Field::Name => "name",
            Field::Serial => "serial",
            Field::Path => "path",
            Field::Model => "model",
        }
    }
}

impl Flag {
    const ALL: [Flag; 2] = [Flag::Rotational, Flag::Removable];

    fn word(self) -> &'static str {
        match self {
            Flag::Rotational => "rotational",
            Flag::Removable => "removable",
        }
    }
}

impl Condition {
    fn parse(part: &str) -> Result<Condition, DiskRuleFault> {
        let told = || part.escape_debug().to_string();
        if let Some(text) = part.strip_prefix("size>=") {
            return size(text).map(Condition::AtLeast).ok_or_else(|| DiskRuleFault::Size { part: told() });
        }
        if let Some(text) = part.strip_prefix("size<=") {
            return size(text).map(Condition::AtMost).ok_or_else(|| DiskRuleFault::Size { part: told() });
        }
        let unknown = || DiskRuleFault::Unknown { part: told() };
        let (key, value) = part.split_once('=').ok_or_else(unknown)?;
        let value = value.trim();
        if let Some(flag) = Flag::ALL.into_iter().find(|flag| flag.word() == key) {
            return match value {
                "yes" => Ok(Condition::Flag(flag, true)),
                "no" => Ok(Condition::Flag(flag, false)),
                _ => Err(DiskRuleFault::Flag { part: told() }),
            };
        }
        let field = Field::ALL.into_iter().find(|field| field.word() == key).ok_or_else(unknown)?;
        // The kernel's name is often written with its directory.
        let value = match field {
            Field::Name => value.strip_prefix("/dev/").unwrap_or(value),
            Field::Path => value.strip_prefix("/dev/disk/by-path/").unwrap_or(value),
            Field::Serial | Field::Model => value,
        };
        if value.is_empty() || value.chars().any(char::is_control) {
            return Err(DiskRuleFault::Value { part: told() });
        }
        Ok(Condition::Text(field, Pattern(value.to_owned())))
    }

    /// What may be said once.
    fn key(&self) -> &'static str {
        match self {
            Condition::Text(field, _) => field.word(),
            Condition::AtLeast(_) => "size>=",
            Condition::AtMost(_) => "size<=",
            Condition::Flag(flag, _) => flag.word(),
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Condition::Text(field, pattern) => write!(formatter, "{}={}", field.word(), pattern.0),
            Condition::AtLeast(bytes) => write!(formatter, "size>={}", size_text(*bytes)),
            Condition::AtMost(bytes) => write!(formatter, "size<={}", size_text(*bytes)),
            Condition::Flag(flag, wanted) => {
                write!(formatter, "{}={}", flag.word(), if *wanted { "yes" } else { "no" })
            }
        }
    }
}

fn size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    // `B` and `iB` may stand behind it.
    let unit = unit.strip_suffix(['B', 'b']).unwrap_or(unit);
    let factor = match unit {
        "" => 1,
        unit => UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?.1,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// With the unit that leaves the fewest digits.
fn size_text(bytes: u64) -> String {
    UNITS
        .iter()
        .filter(|(_, factor)| bytes > 0 && bytes.is_multiple_of(*factor))
        .map(|(name, factor)| (bytes / factor, *name))
        .min_by_key(|(number, _)| *number)
        .map_or_else(|| bytes.to_string(), |(number, unit)| format!("{number}{unit}"))
}

impl FromStr for DiskRule {
    type Err = ParseDiskRuleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text)
            .map_err(|fault| ParseDiskRuleError { text: text.escape_debug().take(TEXT_MAX).collect(), fault })
    }
}

fn parse(text: &str) -> Result<DiskRule, DiskRuleFault> {
    if text.chars().count() > TEXT_MAX {
        return Err(DiskRuleFault::Long);
    }
    let mut conditions: Vec<Condition> = Vec::new();
    let mut preference = None;
    for part in text.split(',').map(str::trim) {
        if part.is_empty() {
            return Err(DiskRuleFault::Empty);
        }
        if let Some(named) = Preference::ALL.into_iter().find(|preference| preference.word() == part) {
            if preference.replace(named).is_some() {
                return Err(DiskRuleFault::Preferences);
            }
            continue;
        }
        let condition = Condition::parse(part)?;
        if conditions.iter().any(|earlier| earlier.key() == condition.key()) {
            return Err(DiskRuleFault::Twice { key: condition.key() });
        }
        conditions.push(condition);
    }
    conditions.sort();
    let bound = |of: fn(&Condition) -> Option<u64>| conditions.iter().find_map(of);
    let at_least = bound(|condition| match condition {
        Condition::AtLeast(bytes) => Some(*bytes),
        Condition::Text(..) | Condition::AtMost(_) | Condition::Flag(..) => None,
    });
    let at_most = bound(|condition| match condition {
        Condition::AtMost(bytes) => Some(*bytes),
        Condition::Text(..) | Condition::AtLeast(_) | Condition::Flag(..) => None,
    });
    if at_least.zip(at_most).is_some_and(|(least, most)| least > most) {
        return Err(DiskRuleFault::Bounds);
    }
    Ok(DiskRule { conditions, preference: preference.unwrap_or_default() })
}

impl TryFrom<String> for DiskRule {
    type Error = ParseDiskRuleError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<DiskRule> for String {
    fn from(rule: DiskRule) -> Self {
        rule.to_string()
    }
}

/// The canonical text: conditions in their order, then the preference unless it goes without saying.
impl fmt::Display for DiskRule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, condition) in self.conditions.iter().enumerate() {
            if index > 0 {
                formatter.write_str(",")?;
            }
            write!(formatter, "{condition}")?;
        }
        match (self.conditions.is_empty(), self.preference) {
            (true, preference) => formatter.write_str(preference.word()),
            (false, Preference::Smallest) => Ok(()),
            (false, preference) => write!(formatter, ",{}", preference.word()),
        }
    }
}

#[cfg(test)]
mod tests;
