//! `farrier.toml` key by key, as serde reads it. Private: the program reads [`super::Config`].
//!
//! Every value is optional and as plain as TOML has it; `check` gives it its meaning, so that each refusal can name
//! the rule in our words and not in a parser's.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::document::{Document, line_at};
use super::error::{ConfigError, nearest};

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct FileConfig {
    pub(super) network: NetworkSection,
    pub(super) dhcp: DhcpSection,
    pub(super) operator: OperatorSection,
    pub(super) store: StoreSection,
    pub(super) boot: BootSection,
    pub(super) metadata: MetadataSection,
    pub(super) installer: InstallerSection,
    pub(super) process: ProcessSection,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct NetworkSection {
    pub(super) bridge: Option<String>,
    pub(super) address: Option<String>,
    pub(super) gateway: Option<String>,
    pub(super) dns: Vec<String>,
    pub(super) allow: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct DhcpSection {
    pub(super) mode: Option<String>,
    pub(super) pool: Option<String>,
    pub(super) lease: Option<String>,
    pub(super) unknown: Option<String>,
    pub(super) identity: Option<String>,
    pub(super) authoritative: Option<bool>,
    pub(super) bootp: Option<bool>,
    pub(super) on_rival: Option<String>,
    pub(super) strangers: StrangersSection,
    pub(super) reservation: Vec<ReservationEntry>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct StrangersSection {
    pub(super) share: Option<String>,
    pub(super) per_second: Option<u32>,
    pub(super) per_port: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ReservationEntry {
    pub(super) mac: Option<String>,
    pub(super) address: Option<String>,
    pub(super) name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct OperatorSection {
    pub(super) socket: Option<String>,
    pub(super) group: Option<String>,
    pub(super) listen: Option<String>,
    pub(super) names: Vec<String>,
    pub(super) metrics_open: Option<bool>,
    pub(super) consoles: Option<String>,
    pub(super) tls: TlsSection,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct TlsSection {
    pub(super) certificate: Option<String>,
    pub(super) key: Option<String>,
    pub(super) self_signed: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct StoreSection {
    pub(super) path: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ProcessSection {
    pub(super) user: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct BootSection {
    pub(super) profile: Option<String>,
    pub(super) kernel_arguments: Vec<String>,
    pub(super) call_deadline: Option<String>,
    pub(super) first_boot_deadline: Option<String>,
    pub(super) loaders: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct MetadataSection {
    pub(super) ec2: Option<bool>,
    pub(super) imds_v1: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct InstallerSection {
    pub(super) deadline: Option<String>,
    pub(super) mirror: Option<String>,
    pub(super) locale: Option<String>,
    pub(super) time_zone: Option<String>,
}

/// Reads the text into the mirror, or says what is wrong with it and where.
pub(super) fn read<'a>(text: &'a str, path: &Path) -> Result<(FileConfig, Document<'a>), ConfigError> {
    let document = Document::parse(text).map_err(|error| syntax_error(text, path, &error))?;
    match toml::from_str::<FileConfig>(text) {
        Ok(file) => Ok((file, document)),
        Err(error) => Err(value_error(text, path, &document, &error)),
    }
}

fn syntax_error(text: &str, path: &Path, error: &toml::de::Error) -> ConfigError {
    let line = error.span().map(|span| line_at(text, span.start));
    let content = line.and_then(|line| text.lines().nth(line as usize - 1)).unwrap_or_default();
    ConfigError {
        path: path.into(),
        line,
        key: "(the file's syntax)".to_owned(),
        value: content.trim().chars().take(120).collect(),
        rule: format!("the file is TOML: {}", error.message().replace('\n', "; ")),
        way_out: "correct the line; strings stand in quotes, lists in [ ], each key once".to_owned(),
    }
}

fn value_error(text: &str, path: &Path, document: &Document<'_>, error: &toml::de::Error) -> ConfigError {
    let span = error.span().unwrap_or(0..0);
    let (key, value) = document.key_at(&span);
    let line = Some(line_at(text, span.start));
    let (rule, way_out) = match expected_keys(error.message()) {
        Some(expected) => {
            let word = key.rsplit('.').next().unwrap_or_default();
            let way_out = match nearest(word, expected.iter().map(String::as_str)) {
                Some(meant) => format!("write `{meant}` if that is meant, or remove the key"),
                None => "remove the key".to_owned(),
            };
            (format!("only known keys are allowed here: {}", expected.join(", ")), way_out)
        }
        None => (
            error.message().replace('\n', "; "),
            "write the kind of value named in the rule; config/farrier.toml shows every key".to_owned(),
        ),
    };
    let value = value.unwrap_or_else(|| "(a section)".to_owned());
    ConfigError { path: path.into(), line, key, value, rule, way_out }
}

/// The keys serde lists in its message about an unknown one; none for any other message.
pub(super) fn expected_keys(message: &str) -> Option<Vec<String>> {
    let (_, expected) = message.strip_prefix("unknown field ")?.split_once(", expected ")?;
    Some(expected.split('`').skip(1).step_by(2).map(str::to_owned).collect())
}
