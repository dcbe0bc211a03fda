//! Whole lists over the API: import, with a plan first if wanted, and export.

use axum::Json;
use axum::extract::State;

use super::access::Principal;
use super::api::{ExportedList, ImportReport, ImportRequest, ImportedEntry, ListedNode, PortRequest};
use super::asked::{Asked, Document, NoQuery};
use super::nodes::{check_reservable, unavailable, waiting};
use super::problem::{Problem, ProblemKind};
use super::routes::Shared;
use crate::node::registry::{Action, ImportError, Planned};
use crate::node::roster::{self, Format, Roster, RosterEntry, RosterError};

pub(super) async fn import(
    State(parts): State<Shared>,
    principal: Principal,
    _: NoQuery,
    Document(request): Document<ImportRequest>,
) -> Result<Json<ImportReport>, Problem> {
    waiting(parts, move |parts| {
        let Roster { format, entries, notes } = roster::parse(request.text.as_bytes(), request.format)?;
        for entry in &entries {
            for address in entry.ports.iter().filter_map(|port| port.address) {
                check_reservable(parts, address).map_err(|problem| problem.in_line(entry.line))?;
            }
        }
        let now = parts.clock.now();
        let planned = if request.dry_run {
            parts.registry.plan_import(&entries, now)?
        } else {
            parts.registry.import(&entries, now)?
        };
        let report = report(format, request.dry_run, planned, notes);
        if !request.dry_run {
            let changed: Vec<&ImportedEntry> =
                report.entries.iter().filter(|entry| entry.action != Action::Unchanged).collect();
            if !changed.is_empty() {
                let before: Vec<_> = changed.iter().filter_map(|entry| entry.before.as_ref()).collect();
                let after: Vec<_> = changed.iter().map(|entry| &entry.after).collect();
                let subject = format!("{} nodes, read as {format}", after.len());
                let (before, after) = (serde_json::to_value(before).ok(), serde_json::to_value(after).ok());
                parts.audit.record(&principal, "node.import", subject, before, after);
            }
        }
        Ok(Json(report))
    })
    .await
}

pub(super) async fn export(
    State(parts): State<Shared>,
    mut asked: Asked,
) -> Result<Json<ExportedList>, Problem> {
    let format = asked.word("format")?.unwrap_or(Format::Csv);
    asked.finish()?;
    let entries: Vec<RosterEntry> = parts.registry.nodes().iter().map(RosterEntry::from).collect();
    let nodes = entries.len() as u64;
    Ok(Json(ExportedList { format, nodes, text: roster::emit(&entries, format) }))
}

fn report(format: Format, dry_run: bool, planned: Vec<Planned>, notes: Vec<roster::Note>) -> ImportReport {
    let count = |action| planned.iter().filter(|entry| entry.action == action).count() as u64;
    let (registered, updated) = (count(Action::Register), count(Action::Update));
    let unchanged = count(Action::Unchanged);
    let entries = planned.into_iter().map(|planned| ImportedEntry {
        line: planned.line as u64,
        action: planned.action,
        before: planned.before.map(listed),
        after: listed(planned.after),
    });
    ImportReport { format, dry_run, registered, updated, unchanged, entries: entries.collect(), notes }
}

fn listed(entry: RosterEntry) -> ListedNode {
    let ports = entry.ports.iter().map(|port| PortRequest { mac: port.mac, address: port.address });
    ListedNode { name: entry.name, ports: ports.collect(), labels: entry.labels }
}

impl From<RosterError> for Problem {
    fn from(error: RosterError) -> Problem {
        Problem::new(ProblemKind::Invalid, error.to_string())
            .field("text")
            .way_out("mend that line; nothing of the list was taken")
    }
}

impl From<ImportError> for Problem {
    fn from(error: ImportError) -> Problem {
        let detail = error.to_string();
        match error {
            // The text is good, and contradicts what is known.
            ImportError::Entry(_) => Problem::new(ProblemKind::Conflict, detail)
                .field("text")
                .way_out("mend that line, or the node it names; nothing of the list was taken"),
            ImportError::Full { .. } => Problem::new(ProblemKind::Conflict, detail),
            ImportError::NoRandomness => Problem::new(ProblemKind::Unavailable, detail),
            ImportError::Store(source) => unavailable(&detail, &source),
        }
    }
}
