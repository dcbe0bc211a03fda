//! The documents that appliance and agent exchange about a task; the same types on both sides.
//!
//! ```text
//!  POST /agent/v1/heartbeat  {mac}                           -> {order?, task?: AgentTask}
//!  POST /agent/v1/begin      {mac, intent, disks: [TargetDisk]} -> {}      on disk before it answers: the fence
//!  GET  /agent/v1/image/<manifest digest>                    -> DiskManifest, from the deploy task on
//!  GET  /agent/v1/chunk/<blob digest>                        -> one zstd frame, while the deploy task runs
//!  POST /agent/v1/seed       {mac, intent}                   -> Seed
//!  POST /agent/v1/progress   {mac, intent, progress}         -> {go_on: bool}
//!  POST /agent/v1/done       {mac, intent, report}           -> {}      on disk before it answers
//!  POST /agent/v1/failure    {mac, step, message, intent?}   -> {}
//! ```
//! Each carries `Authorization: Bearer <session>`. A task that is no longer this agent's is 409, and the agent stops
//! writing at once; 401 ends its boot. `begin` and `done` may be repeated, with the same outcome.

use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use utoipa::ToSchema;

use crate::image::digest::Digest;
use crate::node::install::disk_rule::DiskRule;
use crate::node::install::intent::{CleanMethod, IntentId, IntentNonce};

/// What an agent is to do, apart from waiting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentTask {
    pub intent: IntentId,
    pub generation: u64,
    /// The key of [`prove`]; told to nobody else.
    pub nonce: IntentNonce,
    /// The disks it had begun with before; empty at the first try. Only these may be gone on with, and what is on them
    /// already may be kept where it is what is wanted.
    pub begun_on: Vec<TargetDisk>,
    pub work: AgentWork,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "verb", deny_unknown_fields)]
pub enum AgentWork {
    Deploy {
        /// The image's name, for people.
        image: String,
        manifest: Digest,
        /// Size of the manifest's blob.
        manifest_bytes: u64,
        disk: DiskRule,
        /// Whether a disk that carries data may be overwritten.
        wipe: bool,
    },
    Clean {
        disk: DiskRule,
        method: CleanMethod,
    },
    Rescue {
        /// Lines as in `authorized_keys`.
        ssh_keys: Vec<String>,
    },
}

/// A disk as the agent names one it chose.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TargetDisk {
    /// Kernel name, e.g. `vda`; another one after the next boot, perhaps.
    pub name: String,
    pub serial: Option<String>,
    /// As in `/dev/disk/by-path`, without the directory.
    pub path: Option<String>,
    pub bytes: u64,
}

impl TargetDisk {
    /// Whether both are the same disk, as far as can be told: by serial number, else by where it is plugged in.
    pub fn is_same(&self, other: &TargetDisk) -> bool {
        let same = |one: &Option<String>, another: &Option<String>| match (one, another) {
            (Some(one), Some(another)) => Some(one == another),
            (None, _) | (_, None) => None,
        };
        self.bytes == other.bytes
            && same(&self.serial, &other.serial)
                .or_else(|| same(&self.path, &other.path))
                .unwrap_or(self.name == other.name)
    }
}

/// What a running task is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
#[schema(as = TaskStep)]
pub enum Step {
    /// The disk is chosen and looked at.
    Preparing,
    /// Stale data goes.
    Discarding,
    Writing,
    /// What was written is read back.
    Verifying,
    /// The node's own files, the boot entry.
    Finishing,
}

impl std::fmt::Display for Step {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Step::Preparing => "preparing",
            Step::Discarding => "discarding",
            Step::Writing => "writing",
            Step::Verifying => "verifying",
            Step::Finishing => "finishing",
        })
    }
}

/// Told twice a second; the last one stands.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    pub step: Step,
    /// Bytes of disk this step has done, and how many it has to do.
    pub done: u64,
    pub total: u64,
    /// Of `done`, what was there already and was kept.
    pub kept: u64,
    /// Bytes of disk per second, over the last few seconds.
    pub rate: u64,
    pub seconds_left: Option<u32>,
}

/// The files a node's first boot finds on its disk, in a file system labelled `CIDATA`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seed {
    pub files: Vec<SeedFile>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeedFile {
    /// `meta-data`, `user-data`, `network-config`, `vendor-data`: no directory, at most 64 letters.
    pub name: String,
    pub text: String,
}

impl std::fmt::Debug for SeedFile {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // User data holds passwords.
        write!(formatter, "SeedFile({}, {} bytes)", self.name, self.text.len())
    }
}

/// That the task is done, on which disks, by whom was given its nonce.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    pub disks: Vec<TargetDisk>,
    /// Bytes of disk that are as the task wants them, and of these how many were written by this boot.
    pub bytes: u64,
    pub written: u64,
    pub took_millis: u64,
    /// Hexadecimal; see [`prove`].
    pub signature: String,
}

/// The signature under a report: HMAC-SHA256 with the intent's nonce over what it is about.
pub fn prove(nonce: &IntentNonce, intent: IntentId, generation: u64, bytes: u64) -> String {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(nonce.bytes()) else {
        // HMAC takes keys of any length.
        return String::new();
    };
    mac.update(b"farrier task done");
    mac.update(intent.0.as_bytes());
    mac.update(&generation.to_be_bytes());
    mac.update(&bytes.to_be_bytes());
    HEXLOWER.encode(&mac.finalize().into_bytes())
}
