//! Lists of nodes: in from other programs' formats, and out.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::PortRequest;
use crate::node::NodeName;
use crate::node::labels::Labels;
use crate::node::registry::Action;
use crate::node::roster::{Format, Note};

/// `POST /api/v1/import`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportRequest {
    /// The list, as the file has it.
    pub text: String,
    /// Told by what the text looks like if it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// Say what would be done, and do nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// What an import did, or would do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ImportReport {
    pub format: Format,
    pub dry_run: bool,
    pub registered: u64,
    pub updated: u64,
    pub unchanged: u64,
    /// In the order of the list.
    pub entries: Vec<ImportedEntry>,
    /// What was understood and left out.
    pub notes: Vec<Note>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ImportedEntry {
    pub line: u64,
    pub action: Action,
    /// What is known already of this machine.
    pub before: Option<ListedNode>,
    pub after: ListedNode,
}

/// A node as a list has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ListedNode {
    pub name: Option<NodeName>,
    pub ports: Vec<PortRequest>,
    #[serde(default)]
    pub labels: Labels,
}

/// `GET /api/v1/export`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ExportedList {
    pub format: Format,
    pub nodes: u64,
    /// The list, as a file is to have it.
    pub text: String,
}
