//! `farrier node import`, `farrier node export`: whole lists of nodes, in other programs' formats.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::client::Client;
use super::error::CommandError;
use super::json_text;
use super::table::Table;
use super::text::{Style, Tone, counted, inert};
use crate::node::registry::Action;
use crate::node::roster::{Format, Note};
use crate::operator::api::{ExportedList, ImportReport, ImportRequest, ImportedEntry, ListedNode};

/// A request body has 1 MiB at most, and JSON writes some characters as two.
const FILE_BYTES_MAX: u64 = 960 * 1024;

#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The list; `-` reads standard input
    file: PathBuf,
    /// Format of the list [default: told by what it looks like]
    #[arg(long, value_parser = formats())]
    format: Option<Format>,
    /// Say what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Format to write
    #[arg(long, value_parser = formats(), default_value = "csv")]
    format: Format,
    /// Write to this file instead of standard output
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

fn formats() -> impl TypedValueParser<Value = Format> {
    PossibleValuesParser::new(Format::ALL.map(Format::as_str)).try_map(|word| word.parse::<Format>())
}

pub(super) async fn import(
    arguments: &ImportArgs,
    client: &Client,
    json: bool,
    style: Style,
) -> Result<String, CommandError> {
    let text = read(&arguments.file)?;
    let request = ImportRequest { text, format: arguments.format, dry_run: arguments.dry_run };
    let report: ImportReport =
        client.post("/api/v1/import", &request).await.map_err(|error| match error {
            // Which file it is the appliance does not know.
            CommandError::Usage(told) => CommandError::Usage(format!("{}: {told}", arguments.file.display())),
            CommandError::Refused(told) => {
                CommandError::Refused(format!("{}: {told}", arguments.file.display()))
            }
            other => other,
        })?;
    Ok(if json { json_text(&report) } else { render(&report, style) })
}

pub(super) async fn export(
    arguments: &ExportArgs,
    client: &Client,
    json: bool,
) -> Result<String, CommandError> {
    let format = arguments.format;
    let list: ExportedList = client.get(&format!("/api/v1/export?format={format}")).await?;
    if let Some(file) = &arguments.output {
        let failed = |error| CommandError::Failed(format!("{}: {error}", file.display()));
        fs::write(file, &list.text).map_err(failed)?;
        let told = format!("{} written to {}\n", counted(list.nodes, "node"), file.display());
        return Ok(if json { json_text(&list) } else { told });
    }
    Ok(if json { json_text(&list) } else { list.text })
}

fn read(file: &Path) -> Result<String, CommandError> {
    let unreadable = |error: std::io::Error| CommandError::Usage(format!("{}: {error}", file.display()));
    let mut bytes = Vec::new();
    let source: Box<dyn std::io::Read> = if file == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(fs::File::open(file).map_err(unreadable)?)
    };
    source.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let told = format!("{}: more than {FILE_BYTES_MAX} bytes: split the list", file.display());
        return Err(CommandError::Usage(told));
    }
    String::from_utf8(bytes).map_err(|error| {
        let line =
            1 + error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count();
        CommandError::Usage(format!(
            "{}: line {line}: this is not UTF-8 text: save the file as UTF-8",
            file.display()
        ))
    })
}

fn render(report: &ImportReport, style: Style) -> String {
    let mut text = String::new();
    let changed: Vec<&ImportedEntry> =
        report.entries.iter().filter(|entry| entry.action != Action::Unchanged).collect();
    if !changed.is_empty() {
        let mut table = Table::new(&[">LINE", "DOES", "NODE", "PORTS"]);
        for entry in changed {
            let (tone, does) = match entry.action {
                Action::Register => (Tone::Good, "register"),
                Action::Update => (Tone::Attention, "update"),
                Action::Unchanged => (Tone::Plain, "-"),
            };
            let before = entry.before.as_ref();
            let name = change(before.map(name_of), name_of(&entry.after));
            let ports = change(before.map(ports_of), ports_of(&entry.after));
            table.row(tone, [entry.line.to_string(), does.to_owned(), name, ports]);
        }
        text.push_str(&table.render(style));
    }
    for Note { line, text: note } in &report.notes {
        text.push_str(&format!("line {line}: {}\n", inert(note)));
    }
    let (would, tense) = if report.dry_run { ("would be ", "; nothing was changed") } else { ("", "") };
    text.push_str(&format!(
        "{}{}: {} {would}registered, {} {would}updated, {} unchanged{tense}\n",
        counted(report.entries.len() as u64, "node"),
        format_args!(" read as {}", report.format),
        report.registered,
        report.updated,
        report.unchanged
    ));
    text
}

fn name_of(node: &ListedNode) -> String {
    node.name.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string)
}

fn ports_of(node: &ListedNode) -> String {
    let port = |port: &crate::operator::api::PortRequest| match port.address {
        Some(address) => format!("{}={address}", port.mac),
        None => port.mac.to_string(),
    };
    node.ports.iter().map(port).collect::<Vec<_>>().join(" ")
}

fn change(before: Option<String>, after: String) -> String {
    match before {
        Some(before) if before != after => format!("{before} -> {after}"),
        Some(_) | None => after,
    }
}
