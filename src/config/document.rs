//! Where things stand in the file: key path → line, and byte offset → key path.
//!
//! Serde tells *that* a value is wrong and at which byte; an operator wants the key and the line.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

pub(super) struct Document<'a> {
    text: &'a str,
    root: Spanned<DeTable<'a>>,
}

impl<'a> Document<'a> {
    pub(super) fn parse(text: &'a str) -> Result<Self, toml::de::Error> {
        Ok(Document { text, root: DeTable::parse(text)? })
    }

    /// Line of a key such as `dhcp.reservation[1].mac`; of its nearest parent that is in the file otherwise.
    pub(super) fn line_of(&self, key: &str) -> Option<u32> {
        let mut offset = None;
        let mut value: Option<&DeValue<'a>> = None;
        for segment in key.split('.') {
            let (name, index) = split_index(segment);
            let table = match value {
                None => self.root.get_ref(),
                Some(DeValue::Table(table)) => table,
                Some(_) => break,
            };
            let Some((found, entry)) = table.iter().find(|(candidate, _)| candidate.get_ref() == name) else {
                break;
            };
            offset = Some(found.span().start);
            value = Some(entry.get_ref());
            if let (Some(index), DeValue::Array(items)) = (index, entry.get_ref()) {
                let Some(item) = items.get(index) else { break };
                offset = Some(item.span().start);
                value = Some(item.get_ref());
            }
        }
        offset.map(|offset| line_at(self.text, offset))
    }

    /// The key a span of the file belongs to, and the text of its value when the span lies on a value.
    pub(super) fn key_at(&self, span: &Range<usize>) -> (String, Option<String>) {
        let mut path = String::new();
        let value = descend(self.root.get_ref(), span.start, &mut path)
            .map(|value_span| self.text.get(value_span).unwrap_or_default().to_owned());
        (path, value)
    }
}

/// 1-based line of a byte offset.
pub(super) fn line_at(text: &str, offset: usize) -> u32 {
    let newlines = text.bytes().take(offset).filter(|byte| *byte == b'\n').count();
    u32::try_from(newlines + 1).unwrap_or(u32::MAX)
}

fn split_index(segment: &str) -> (&str, Option<usize>) {
    match segment.strip_suffix(']').and_then(|rest| rest.split_once('[')) {
        Some((name, index)) => (name, index.parse().ok()),
        None => (segment, None),
    }
}

fn descend(table: &DeTable<'_>, offset: usize, path: &mut String) -> Option<Range<usize>> {
    // A key on exactly this byte wins over a table whose span happens to cover it.
    let on_key = table.iter().find(|(key, _)| key.span().contains(&offset));
    let on_value = || table.iter().find(|(_, value)| holds(value, offset));
    let (key, value) = on_key.or_else(on_value)?;
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(key.get_ref());
    match value.get_ref() {
        DeValue::Table(inner) => descend(inner, offset, path),
        DeValue::Array(items) => {
            let Some((index, item)) = items.iter().enumerate().find(|(_, item)| holds(item, offset)) else {
                return Some(value.span());
            };
            path.push_str(&format!("[{index}]"));
            match item.get_ref() {
                DeValue::Table(inner) => descend(inner, offset, path),
                _ => Some(item.span()),
            }
        }
        _ => Some(value.span()),
    }
}

/// Spans of `[table]` headers cover the header only, so their entries are asked too.
fn holds(value: &Spanned<DeValue<'_>>, offset: usize) -> bool {
    value.span().contains(&offset)
        || match value.get_ref() {
            DeValue::Table(table) => {
                table.iter().any(|(key, inner)| key.span().contains(&offset) || holds(inner, offset))
            }
            DeValue::Array(items) => items.iter().any(|item| holds(item, offset)),
            _ => false,
        }
}
