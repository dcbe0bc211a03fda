//! Which of a machine's disks a task means.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// As an operator writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DiskRule(String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a disk rule")]
pub struct ParseDiskRuleError {
    pub text: String,
}

impl FromStr for DiskRule {
    type Err = ParseDiskRuleError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(DiskRule(text.to_owned()))
    }
}
impl TryFrom<String> for DiskRule {
    type Error = ParseDiskRuleError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}
impl From<DiskRule> for String {
    fn from(rule: DiskRule) -> Self {
        rule.0
    }
}
impl fmt::Display for DiskRule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}
