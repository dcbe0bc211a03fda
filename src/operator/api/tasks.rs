//! Tasks on nodes' disks: what operators ask for, and how it is going.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::clock::Timestamp;
use crate::node::install::disk_rule::DiskRule;
use crate::node::install::intent::{CleanMethod, Verb};
use crate::node::install::task::{Progress, TargetDisk};
use crate::node::registry::Sample;

/// `POST /api/v1/nodes/{ref}/deploy`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeployRequest {
    /// A disk image's name; left out, the one that was deployed last, or the installer that did it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub image: Option<String>,
    /// A boot profile that is a distribution's installer, which does it instead of an image; not with `image`, `disk` or
    /// `wipe`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub installer: Option<String>,
    /// Which disk: `smallest`, `serial=…`, `size>=100G,rotational=no`, …; the smallest that fits if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Option<String>)]
    pub disk: Option<DiskRule>,
    /// Whether a disk that carries data may be overwritten.
    #[serde(default)]
    pub wipe: bool,
    /// Public keys, each as a line of `authorized_keys`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 64)]
    pub ssh_keys: Vec<String>,
    /// A script that the installed system runs once, or what its own first boot understands; at most 64 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub user_data: Option<String>,
}

/// `POST /api/v1/nodes/{ref}/clean`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CleanRequest {
    /// Which disks; all of them if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Option<String>)]
    pub disk: Option<DiskRule>,
    pub method: CleanMethod,
}

/// `POST /api/v1/nodes/{ref}/rescue`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RescueRequest {
    /// Who may log in, each as a line of `authorized_keys`.
    #[schema(max_items = 64)]
    pub ssh_keys: Vec<String>,
}

/// The last thing wanted for a node's disks, and what became of it: a part of the node, and with its chart
/// `GET /api/v1/nodes/{ref}/task`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TaskDetail {
    pub intent: Uuid,
    /// Counts the tasks of a node, from 1.
    pub generation: u64,
    pub verb: Verb,
    /// The image that is deployed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The boot profile of the installer that does it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installer: Option<String>,
    /// SHA-256 of its manifest, which says which bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<String>,
    /// Which disks were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub disk: Option<DiskRule>,
    pub phase: TaskPhase,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    pub created_at: Timestamp,
    /// When it came to this phase, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase_at: Option<Timestamp>,
    /// The disks that are, or were, written to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<TargetDisk>,
    /// When its agent was last heard of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// The course it took, oldest first; only where it is asked for by itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub samples: Vec<Sample>,
}

/// How far a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TaskPhase {
    /// The next netboot begins with it.
    Waiting,
    /// Its agent works, or is to be heard of again; or its installer was started.
    Running,
    /// The disk is written; the installed system has not called.
    Written,
    Done,
    Failed,
    Aborted,
}
