//! One wish of an operator for a node's disks: what, how far it has come, and what moves it.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::clock::Timestamp;
use crate::image::digest::Digest;
use crate::node::install::disk_rule::DiskRule;
use crate::node::install::task::TargetDisk;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct IntentId(pub Uuid);

impl fmt::Display for IntentId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// What only the agent that is given the task knows besides us: it signs its report with it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IntentNonce([u8; IntentNonce::LEN]);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a nonce is 64 lower-case hexadecimal digits")]
pub struct ParseNonceError;

impl IntentNonce {
    pub const LEN: usize = 32;

    pub fn from_bytes(bytes: [u8; IntentNonce::LEN]) -> IntentNonce {
        IntentNonce(bytes)
    }

    pub fn bytes(&self) -> &[u8; IntentNonce::LEN] {
        &self.0
    }
}

impl fmt::Debug for IntentNonce {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("IntentNonce(secret)")
    }
}

impl TryFrom<String> for IntentNonce {
    type Error = ParseNonceError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        // A digest is written in the same way.
        text.parse::<Digest>().map(|digest| IntentNonce(*digest.bytes())).map_err(|_| ParseNonceError)
    }
}

impl From<IntentNonce> for String {
    fn from(nonce: IntentNonce) -> Self {
        nonce.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// How a disk is emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CleanMethod {
    /// The disk is told that nothing on it is needed; what does not read as zero afterwards is overwritten.
    Discard,
    /// Zeros are written over all of it.
    Overwrite,
}

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "verb")]
pub enum Work {
    Deploy(Deployment),
    Clean { disk: DiskRule, method: CleanMethod },
    Rescue { ssh_keys: Vec<String> },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    /// The image's name when it was asked for; `manifest` says which bytes.
    pub image: String,
    pub manifest: Digest,
    pub manifest_bytes: u64,
    pub disk: DiskRule,
    pub wipe: bool,
}

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "phase")]
pub enum Phase {
    /// The next netboot runs it.
    Waiting,
    /// An agent began with it: from here on disks are written to.
    Running {
        since: Timestamp,
        disks: Vec<TargetDisk>,
    },
    /// The disk is written and the agent said so; the installed system has not called yet.
    Written {
        at: Timestamp,
        disks: Vec<TargetDisk>,
    },
    /// Nothing more will come of it.
    Done {
        at: Timestamp,
    },
    Failed {
        at: Timestamp,
        reason: String,
    },
    Aborted {
        at: Timestamp,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    pub id: IntentId,
    /// Counts the intents of a node, from 1.
    pub generation: u64,
    pub nonce: IntentNonce,
    pub work: Work,
    #[serde(flatten)]
    pub phase: Phase,
    pub created_at: Timestamp,
}
