//! One mistake in the configuration: which key, what it says, what rule it breaks, and the way out.

use std::fmt;
use std::path::Path;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    pub path: Box<Path>,
    /// 1-based; absent when the key is not in the file.
    pub line: Option<u32>,
    /// Full path of the key: `dhcp.reservation[1].mac`.
    pub key: String,
    /// What the file says, as written; empty when it says nothing.
    pub value: String,
    pub rule: String,
    pub way_out: String,
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.path.display())?;
        if let Some(line) = self.line {
            write!(formatter, ":{line}")?;
        }
        let value = if self.value.is_empty() { "(not set)" } else { &self.value };
        write!(
            formatter,
            ": configuration refused\n  key:     {}\n  value:   {value}\n  rule:    {}\n  way out: {}",
            self.key, self.rule, self.way_out
        )
    }
}

/// The candidate a typing error is most likely meant to be; none when nothing is close.
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len().min(word.len()) / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance over characters.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut previous: Vec<usize> = (0..=right.len()).collect();
    for (row, a) in left.chars().enumerate() {
        let mut current = vec![row + 1];
        for (column, b) in right.iter().enumerate() {
            let replaced = previous[column] + usize::from(a != *b);
            current.push(replaced.min(previous[column + 1] + 1).min(current[column] + 1));
        }
        previous = current;
    }
    previous.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_close() {
        let keys = ["bridge", "address", "gateway", "dns"];
        assert_eq!(nearest("brigde", keys), Some("bridge"));
        assert_eq!(nearest("adress", keys), Some("address"));
        assert_eq!(nearest("gatway", keys), Some("gateway"));
        assert_eq!(nearest("colour", keys), None);
    }
}
