//! Boot profiles, and the rules that assign them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::boot::client::Firmware;
use crate::boot::profile::rules::RuleNumber;
use crate::boot::profile::{ProfileKind, ProfileName};
use crate::clock::Timestamp;
use crate::net::MacAddr;
use crate::node::{NodeId, NodeName};

/// One row of `GET /api/v1/profiles`: what a node can boot that is not our ramdisk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProfileEntry {
    /// The file's name, if the document cannot be read.
    pub name: String,
    pub kind: Option<ProfileKind>,
    pub description: Option<String>,
    /// Each node boots it once for each rule.
    pub one_shot: bool,
    /// Whole on disk; one that is damaged is not served.
    pub served: bool,
    /// Why it is not served.
    pub damage: Option<String>,
    pub files: Vec<ProfileFileEntry>,
    /// Of the kernel's command line, with values of the node in braces.
    pub arguments: Vec<String>,
    /// Whether its kernel or EFI program is signed, and still what was signed; absent for images.
    pub signature: Option<SignatureEntry>,
    /// The UEFI platform its kernel or program is for, if it is for one.
    pub platform: Option<Firmware>,
    /// Numbers of the rules that assign it.
    pub rules: Vec<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProfileFileEntry {
    /// As nodes ask for it, by TFTP or HTTP.
    pub name: String,
    /// SHA-256, in 64 lower-case hexadecimal digits.
    pub digest: String,
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SignatureEntry {
    Absent,
    Whole,
    /// It was changed after it was signed.
    Broken,
}

/// Which machines a rule is for; exactly one of these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AssignedTo {
    /// A node, by name, MAC address, id or SMBIOS UUID; answers name its id.
    Node(String),
    /// `key=value`, or `key` for any value, with commas between.
    Label(String),
    /// The machine's SMBIOS UUID; it need not be known yet.
    Uuid(Uuid),
    /// `52:54:00`: the first bytes of one of its MAC addresses.
    MacPrefix(String),
    Firmware(Firmware),
}

/// One row of `GET /api/v1/assignments`, in the order in which rules are asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AssignmentEntry {
    #[schema(value_type = u32)]
    pub rule: RuleNumber,
    #[schema(value_type = String)]
    pub profile: ProfileName,
    pub to: AssignedTo,
    /// Of the node it names, if it names one that is known and has a name.
    pub node_name: Option<NodeName>,
    pub assigned_at: Timestamp,
    /// Nodes that have started it, if it is a one-shot.
    pub runs: Vec<RunEntry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RunEntry {
    pub mac: MacAddr,
    pub node: NodeId,
    pub state: RunStateEntry,
    pub at: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RunStateEntry {
    /// Its script was handed out; it is not handed out to another boot.
    Started,
    /// Its kernel or program went out whole.
    Spent,
}

/// `POST /api/v1/assignments`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AssignRequest {
    #[schema(value_type = String)]
    pub profile: ProfileName,
    pub to: AssignedTo,
    /// The rule before which this one is asked; without it, after all others.
    #[serde(default)]
    #[schema(value_type = Option<u32>)]
    pub before: Option<RuleNumber>,
}

/// What an assignment came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Assigned {
    pub assignment: AssignmentEntry,
    /// Machines that it is for and that cannot boot it, or of which that is not known; a line each.
    pub warnings: Vec<String>,
}
