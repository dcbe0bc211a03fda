//! What agents may call, and the body of each call; anything else in a body is refused.

use serde::Deserialize;

use crate::bootplane::agent_calls::PREFIX;
use crate::image::digest::Digest;
use crate::net::MacAddr;
use crate::node::install::intent::IntentId;
use crate::node::install::task::{Progress, Report, TargetDisk};
use crate::node::inventory::Inventory;
use crate::node::state::Order;
use crate::node::token::AgentNonce;

#[derive(Clone, Copy, Debug)]
pub(super) enum Call {
    Hello,
    Inventory,
    Heartbeat,
    Failure,
    Obeying,
    Begin,
    Progress,
    Seed,
    Done,
}

impl Call {
    pub(super) fn from_path(path: &str) -> Option<Call> {
        match path {
            "/agent/v1/hello" => Some(Call::Hello),
            "/agent/v1/inventory" => Some(Call::Inventory),
            "/agent/v1/heartbeat" => Some(Call::Heartbeat),
            "/agent/v1/failure" => Some(Call::Failure),
            "/agent/v1/obeying" => Some(Call::Obeying),
            "/agent/v1/begin" => Some(Call::Begin),
            "/agent/v1/progress" => Some(Call::Progress),
            "/agent/v1/seed" => Some(Call::Seed),
            "/agent/v1/done" => Some(Call::Done),
            _ => None,
        }
    }
}

/// What may be read of an image.
#[derive(Clone, Copy, Debug)]
pub(super) enum ImagePart {
    Manifest(Digest),
    Chunk(Digest),
}

impl ImagePart {
    pub(super) fn from_path(path: &str) -> Option<ImagePart> {
        let (kind, digest) = path.strip_prefix(PREFIX)?.strip_prefix("v1/")?.split_once('/')?;
        let digest = digest.parse().ok()?;
        match kind {
            "image" => Some(ImagePart::Manifest(digest)),
            "chunk" => Some(ImagePart::Chunk(digest)),
            _ => None,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HelloBody {
    pub(super) token: String,
    pub(super) nonce: Option<AgentNonce>,
    pub(super) mac: MacAddr,
    pub(super) uptime_secs: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct InventoryBody {
    pub(super) mac: MacAddr,
    pub(super) inventory: Inventory,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HeartbeatBody {
    pub(super) mac: MacAddr,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FailureBody {
    pub(super) mac: MacAddr,
    pub(super) step: String,
    pub(super) message: String,
    /// The task it failed in.
    pub(super) intent: Option<IntentId>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ObeyingBody {
    pub(super) mac: MacAddr,
    pub(super) order: Order,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BeginBody {
    pub(super) mac: MacAddr,
    pub(super) intent: IntentId,
    pub(super) disks: Vec<TargetDisk>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProgressBody {
    pub(super) mac: MacAddr,
    pub(super) intent: IntentId,
    pub(super) progress: Progress,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SeedBody {
    pub(super) mac: MacAddr,
    pub(super) intent: IntentId,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DoneBody {
    pub(super) mac: MacAddr,
    pub(super) intent: IntentId,
    pub(super) report: Report,
}
