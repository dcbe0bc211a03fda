//! `farrier audit`: who changed what, newest first.

use clap::Args;

use super::client::Client;
use super::error::CommandError;
use super::json_text;
use super::table::Table;
use super::text::{Style, Tone};
use crate::operator::api::Page;
use crate::operator::audit::AuditEntry;

/// What a line of a terminal takes of one value.
const VALUE_CHARS_MAX: usize = 48;

#[derive(Debug, Args)]
pub struct AuditArgs {
    /// How many of the newest changes
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
}

pub(super) async fn run(
    arguments: &AuditArgs,
    client: &Client,
    json: bool,
    style: Style,
) -> Result<String, CommandError> {
    let path = format!("/api/v1/audit?limit={}", arguments.limit);
    let Page { items: entries, next: _ } = client.get::<Page<AuditEntry>>(&path).await?;
    Ok(if json { json_text(&entries) } else { render(&entries, style) })
}

fn render(entries: &[AuditEntry], style: Style) -> String {
    if entries.is_empty() {
        return "nothing has been changed yet\n".to_owned();
    }
    let mut table = Table::new(&["WHEN", "WHO", "BY", "ACTION", "SUBJECT", "CHANGE"]);
    for entry in entries {
        let cells = [
            entry.at.to_string(),
            entry.who.clone(),
            entry.means.clone(),
            entry.action.clone(),
            entry.subject.clone(),
            change(entry),
        ];
        table.row(Tone::Plain, cells);
    }
    table.render(style)
}

/// What differs, one `member: before -> after` each; the whole is in `--json`.
fn change(entry: &AuditEntry) -> String {
    let member = |value: Option<&serde_json::Value>, key: &str| {
        value.and_then(|value| value.get(key)).filter(|member| !member.is_null()).map(ToString::to_string)
    };
    let keys = [&entry.before, &entry.after].into_iter().flatten().filter_map(|value| value.as_object());
    let mut keys: Vec<&String> = keys.flat_map(|object| object.keys()).collect();
    keys.sort();
    keys.dedup();
    let (Some(before), Some(after)) = (&entry.before, &entry.after) else { return String::new() };
    let differing = keys.into_iter().filter_map(|key| {
        let (old, new) = (member(Some(before), key), member(Some(after), key));
        (old != new).then(|| format!("{key}: {} -> {}", shown(old), shown(new)))
    });
    differing.collect::<Vec<_>>().join(", ")
}

fn shown(value: Option<String>) -> String {
    let text = value.unwrap_or_else(|| "-".to_owned());
    match text.char_indices().nth(VALUE_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::clock::Timestamp;
    use crate::operator::access::Role;

    #[test]
    fn a_line_says_who_did_what_and_what_changed() {
        let entry = AuditEntry {
            sequence: 7,
            at: Timestamp::from_millis(0),
            who: "ada\x1b[31m".to_owned(),
            role: Role::Operator,
            means: "token".to_owned(),
            action: "node.approve".to_owned(),
            subject: "anvil".to_owned(),
            before: Some(json!({"approved": false, "name": "anvil", "note": "x".repeat(60)})),
            after: Some(json!({"approved": true, "name": "anvil", "note": null})),
        };
        let text = render(std::slice::from_ref(&entry), Style::PLAIN);
        assert!(text.contains("ada\\u{1b}[31m  token  node.approve  anvil"), "{text}");
        assert!(text.contains("approved: false -> true, note: \"xxx"), "{text}");
        assert!(text.contains("… -> -") && !text.contains("name:"), "{text}");
        assert!(render(&[], Style::PLAIN).contains("nothing"));
    }
}
