//! Labels: what operators know of a node and we do not (its rack, its owner, its part), as keys and values.
//!
//! Written as Kubernetes writes them, so that the same words do in both: a key is a name of at most 63 characters, with a
//! DNS name and a slash before it if wanted; a value is such a name, or nothing. Lists are chosen from by selectors:
//! `rack=r1,owner` is every node whose rack is r1 and that has an owner.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Labels one node may have: twice what anybody has been seen to use.
pub const LABELS_MAX: usize = 64;
const NAME_MAX: usize = 63;
const PREFIX_MAX: usize = 253;
/// Terms of one selector.
const TERMS_MAX: usize = 16;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabelKey(String);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabelValue(String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    #[error(
        "`{text}` is no key of a label: at most {NAME_MAX} letters, digits, `-`, `_` and `.`, with a letter or digit at both ends, are wanted, as in rack; a DNS name and `/` may stand before it, as in example.org/rack"
    )]
    Key { text: String },
    #[error(
        "`{text}` is no value of a label: at most {NAME_MAX} letters, digits, `-`, `_` and `.`, with a letter or digit at both ends, are wanted, or nothing at all"
    )]
    Value { text: String },
    #[error("`{text}` is no label: key=value is wanted, as in rack=r1")]
    NoLabel { text: String },
    #[error("{count} labels are too many: a node has at most {LABELS_MAX}")]
    TooMany { count: usize },
    #[error("more than {TERMS_MAX} labels are asked for at once")]
    TooManyTerms,
}

/// What a refusal repeats of a text that is wrong.
fn told(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(80).collect()
}

fn is_name(text: &str) -> bool {
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= NAME_MAX
        && ends(bytes.first())
        && ends(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

/// A DNS subdomain (RFC 1123).
fn is_prefix(text: &str) -> bool {
    let is_part = |part: &str| {
        let ends =
            |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        let bytes = part.as_bytes();
        ends(bytes.first())
            && ends(bytes.last())
            && bytes.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-')
    };
    text.len() <= PREFIX_MAX && text.split('.').all(is_part)
}

impl LabelKey {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl LabelValue {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LabelKey {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (prefix, name) = match text.split_once('/') {
            Some((prefix, name)) => (Some(prefix), name),
            None => (None, text),
        };
        match prefix.is_none_or(is_prefix) && is_name(name) {
            true => Ok(LabelKey(text.to_owned())),
            false => Err(LabelError::Key { text: told(text) }),
        }
    }
}

impl FromStr for LabelValue {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.is_empty() || is_name(text) {
            true => Ok(LabelValue(text.to_owned())),
            false => Err(LabelError::Value { text: told(text) }),
        }
    }
}

macro_rules! text_in_json {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = LabelError;
            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }
    };
}

text_in_json!(LabelKey);
text_in_json!(LabelValue);

/// `key=value`.
pub fn parse_label(text: &str) -> Result<(LabelKey, LabelValue), LabelError> {
    let (key, value) = text.split_once('=').ok_or_else(|| LabelError::NoLabel { text: told(text) })?;
    Ok((key.parse()?, value.parse()?))
}

/// The labels of a node, by key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Labels(BTreeMap<LabelKey, LabelValue>);

/// Labels to set, and keys to take away.
pub type LabelEdit = BTreeMap<LabelKey, Option<LabelValue>>;

impl Labels {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&LabelKey, &LabelValue)> {
        self.0.iter()
    }

    pub fn get(&self, key: &LabelKey) -> Option<&LabelValue> {
        self.0.get(key)
    }

    /// What an edit makes of them.
    pub fn edited(&self, edit: &LabelEdit) -> Result<Labels, LabelError> {
        let mut labels = self.0.clone();
        for (key, value) in edit {
            match value {
                Some(value) => drop(labels.insert(key.clone(), value.clone())),
                None => drop(labels.remove(key)),
            }
        }
        match labels.len() {
            count if count > LABELS_MAX => Err(LabelError::TooMany { count }),
            _ => Ok(Labels(labels)),
        }
    }

    /// An edit that sets all of these.
    pub fn as_edit(&self) -> LabelEdit {
        self.iter().map(|(key, value)| (key.clone(), Some(value.clone()))).collect()
    }

    /// Whether one of them, written `key=value`, has this in it.
    pub fn mention(&self, text: &str) -> bool {
        self.iter().any(|(key, value)| format!("{key}={value}").to_lowercase().contains(text))
    }
}

impl FromIterator<(LabelKey, LabelValue)> for Labels {
    fn from_iter<I: IntoIterator<Item = (LabelKey, LabelValue)>>(labels: I) -> Labels {
        Labels(labels.into_iter().collect())
    }
}

/// `key=value key=value`, which no value can be mistaken in: none holds a space.
impl fmt::Display for Labels {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (key, value)) in self.iter().enumerate() {
            let space = if number == 0 { "" } else { " " };
            write!(formatter, "{space}{key}={value}")?;
        }
        Ok(())
    }
}

/// Which nodes are wanted; all terms must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabelSelector(Vec<(LabelKey, Option<LabelValue>)>);

impl LabelSelector {
    pub fn selects(&self, labels: &Labels) -> bool {
        self.0.iter().all(|(key, wanted)| {
            labels.get(key).is_some_and(|value| wanted.as_ref().is_none_or(|wanted| wanted == value))
        })
    }
}

/// `key=value` or `key`, with commas between.
impl FromStr for LabelSelector {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let terms: Vec<&str> = text.split(',').collect();
        if terms.len() > TERMS_MAX {
            return Err(LabelError::TooManyTerms);
        }
        let term = |term: &str| match term.split_once('=') {
            Some(_) => parse_label(term).map(|(key, value)| (key, Some(value))),
            None => term.parse().map(|key| (key, None)),
        };
        terms.into_iter().map(|text| term(text.trim())).collect::<Result<_, _>>().map(LabelSelector)
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (key, value)) in self.0.iter().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            match value {
                Some(value) => write!(formatter, "{comma}{key}={value}")?,
                None => write!(formatter, "{comma}{key}")?,
            }
        }
        Ok(())
    }
}

impl TryFrom<String> for LabelSelector {
    type Error = LabelError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<LabelSelector> for String {
    fn from(selector: LabelSelector) -> String {
        selector.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_are_written_as_kubernetes_writes_them() {
        for good in ["rack", "a", "A.b_c-9", "example.org/rack", "x.y/A", &"k".repeat(63)] {
            assert_eq!(good.parse::<LabelKey>().unwrap().as_str(), good);
        }
        let long = format!("{}/k", "d".repeat(254));
        for bad in
            ["", "-a", "a-", "a b", "a/b/c", "/a", "a/", "Ex.org/a", "x..y/a", "ä", &"k".repeat(64), &long]
        {
            assert!(matches!(bad.parse::<LabelKey>(), Err(LabelError::Key { .. })), "{bad}");
        }
        for good in ["", "r1", "v1.2_3-rc", &"v".repeat(63)] {
            assert_eq!(good.parse::<LabelValue>().unwrap().as_str(), good);
        }
        for bad in ["-", "a b", "a/b", "_a", "a,b", "a=b", &"v".repeat(64)] {
            assert!(matches!(bad.parse::<LabelValue>(), Err(LabelError::Value { .. })), "{bad}");
        }
        let refused = serde_json::from_str::<Labels>("{\"rack\":\"r 1\"}").unwrap_err();
        assert!(refused.to_string().contains("`r 1` is no value"), "{refused}");
    }

    #[test]
    fn edits_set_and_take_away_and_are_bounded() {
        let none = Labels::default();
        let edit = |text: &str| -> LabelEdit {
            let (key, value) = text.split_once('=').unwrap_or((text, ""));
            [(key.parse().unwrap(), text.contains('=').then(|| value.parse().unwrap()))].into()
        };
        let labels = none.edited(&edit("rack=r1")).unwrap().edited(&edit("owner=")).unwrap();
        assert_eq!(labels.to_string(), "owner= rack=r1");
        assert_eq!(labels.edited(&edit("owner")).unwrap().to_string(), "rack=r1");
        assert!(labels.mention("rack=r") && !labels.mention("rack=x"));
        let many: LabelEdit =
            (0..=LABELS_MAX).map(|n| (format!("k{n}").parse().unwrap(), "v".parse().ok())).collect();
        assert_eq!(none.edited(&many), Err(LabelError::TooMany { count: LABELS_MAX + 1 }));
    }

    #[test]
    fn selectors_want_every_term() {
        let labels: Labels =
            ["rack=r1", "owner="].map(|text| parse_label(text).unwrap()).into_iter().collect();
        let selects = |text: &str| text.parse::<LabelSelector>().unwrap().selects(&labels);
        assert!(selects("rack=r1") && selects("rack") && selects("rack=r1, owner") && selects("owner="));
        assert!(!selects("rack=r2") && !selects("rack=r1,site") && !selects("rack="));
        for bad in ["", "a b", "rack=r1,", &"k,".repeat(TERMS_MAX)] {
            assert!(bad.parse::<LabelSelector>().is_err(), "{bad}");
        }
        assert!(LabelSelector::default().selects(&Labels::default()));
    }
}
