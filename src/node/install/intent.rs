//! One wish of an operator for a node's disks: what, how far it has come, and what moves it.
//!
//! ```text
//!  waiting ──agent begins──> running ──its signed report──> written ──installed system calls──> done
//!     │                       │  ^ │                          (deploy; cleaning is done with the report)
//!     │ aborted, failed       │  └─┘ the next boot goes on, with the same disks
//!     v                       v
//!  aborted / failed        aborted / failed
//! ```
//!
//! *At most once* rests on this table and on one fence: what writes to a disk asks first, [`IntentEvent::Begun`] is on
//! disk here before it is answered, and every byte of the image is handed to the boot that began last. A boot that
//! comes late finds the intent beyond `running` and is given nothing; one that comes again goes on with the same disks
//! and keeps what is right on them. Silence ends nothing: it only shows ([`Phase::Running`]'s `stalled`).
//!
//! Where a distribution's installer does the work ([`Work::Installer`]) nothing of ours runs in the machine, and nothing
//! can go on where another boot left off. So the fence is its start ([`Intent::start`]): `Begun` is on disk before a
//! loader is told of the installer's kernel, and no other boot is ever told of it; a boot that netboots again before the
//! installer reported has lost it. The second fence is its answers, which it gets once: a boot that starts anew without
//! anybody noticing finds them read, and is told nothing more.
//!
//! The model checks in `intent/model.rs` and `intent/model/installer.rs` try every order of crashes, lost answers, late
//! calls and boots.

use std::fmt;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::boot::profile::ProfileName;
use crate::clock::Timestamp;
use crate::image::digest::Digest;
use crate::node::install::disk_rule::DiskRule;
use crate::node::install::task::TargetDisk;
use crate::node::state::ProvisionState;

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
        HEXLOWER.encode(&nonce.0)
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
    /// A deployment as well, by a distribution's own installer out of a boot profile.
    Installer {
        profile: ProfileName,
    },
    Clean {
        disk: DiskRule,
        method: CleanMethod,
    },
    Rescue {
        ssh_keys: Vec<String>,
    },
}

/// Whose program does the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Runner {
    /// Ours: it asks before it writes, and goes on where another boot left off.
    Agent,
    /// A distribution's, which begins once.
    Installer,
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
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "phase")]
pub enum Phase {
    /// The next netboot begins with it.
    Waiting,
    /// An agent began with it: from here on disks are written to.
    Running {
        since: Timestamp,
        /// The boot that may write, by the issue time of its token; an installer's by the time it began.
        boot: Timestamp,
        disks: Vec<TargetDisk>,
        /// Nothing was heard of it for a long time.
        stalled: bool,
    },
    /// The disk is written and the agent, or the installer, said so; the installed system has not called yet.
    Written {
        at: Timestamp,
        boot: Timestamp,
        disks: Vec<TargetDisk>,
        /// Its first call should have come by now.
        overdue: bool,
    },
    /// Nothing more will come of it.
    Done {
        at: Timestamp,
        boot: Timestamp,
    },
    Failed {
        at: Timestamp,
        reason: String,
    },
    Aborted {
        at: Timestamp,
        /// Whether disks were written to.
        begun: bool,
    },
}

/// What may happen to an intent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IntentEvent {
    /// The agent of this boot has chosen its disks and asks to begin, or to go on; or its loader is to start an installer.
    Begun { boot: Timestamp, disks: Vec<TargetDisk> },
    /// The agent of this boot says that all is done, under the intent's own key.
    Reported { boot: Timestamp },
    /// The agent says that it cannot go on.
    Failed { reason: String },
    /// Nothing was heard of a running task for too long.
    Stalled,
    /// The installed system called, with the intent's own token.
    CalledHome,
    /// The installed system should have called by now.
    FirstBootOverdue,
    /// The operator wants it no more.
    Aborted,
}

/// Why an event is none for this intent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IntentRefusal {
    #[error("the task was not begun")]
    NotBegun,
    #[error("another boot of this machine goes on with the task")]
    NotThisBoot,
    #[error("the task was begun on another disk, which is not to be written to twice: abort it and ask anew")]
    OtherDisk,
    #[error("the task is over")]
    Over,
    #[error("another boot of this machine started its installer, which is started once")]
    StartedBefore,
    #[error("no such thing is part of this task")]
    NotPartOfIt,
}

impl IntentRefusal {
    pub fn as_str(self) -> &'static str {
        match self {
            IntentRefusal::NotBegun => "task-not-begun",
            IntentRefusal::NotThisBoot => "task-of-another-boot",
            IntentRefusal::OtherDisk => "task-on-another-disk",
            IntentRefusal::Over => "task-over",
            IntentRefusal::StartedBefore => "installer-started-before",
            IntentRefusal::NotPartOfIt => "no-part-of-task",
        }
    }
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
    /// The node's state before it.
    pub from: ProvisionState,
    pub created_at: Timestamp,
    /// The deployment whose system is on the disks while the machine is looked after by hand; a rescue does not touch it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployment: Option<Box<Intent>>,
}

impl Intent {
    /// Without the keys that sign its reports.
    pub fn without_secrets(mut self) -> Intent {
        self.nonce = IntentNonce::from_bytes([0; IntentNonce::LEN]);
        self.deployment = self.deployment.map(|deployment| Box::new(deployment.without_secrets()));
        self
    }

    /// The phase after `event`; equal to the present one if it is fine but moves nothing.
    pub fn apply(&self, event: &IntentEvent, now: Timestamp) -> Result<Phase, IntentRefusal> {
        next_phase(self.work.verb(), self.work.runner(), &self.phase, event, now)
    }

    /// What a loader that asks in this boot is to be told of the installer. `answered`: the installer has its answers.
    pub fn start(&self, boot: Option<Timestamp>, answered: bool) -> Start {
        match (self.work.runner(), &self.phase) {
            (Runner::Installer, phase) => start(phase, boot, answered),
            (Runner::Agent, _) => Start::Never,
        }
    }

    /// The state of a node that has this intent.
    pub fn state(&self) -> ProvisionState {
        use ProvisionState as State;
        match (self.work.verb(), &self.phase) {
            (_, Phase::Aborted { begun: false, .. }) => self.from,
            (Verb::Deploy, Phase::Waiting) => State::WaitCallBack,
            (Verb::Deploy, Phase::Running { stalled: false, .. } | Phase::Written { overdue: false, .. }) => {
                State::Deploying
            }
            (Verb::Deploy, Phase::Done { .. }) => State::Active,
            (
                Verb::Deploy,
                Phase::Running { stalled: true, .. }
                | Phase::Written { overdue: true, .. }
                | Phase::Failed { .. }
                | Phase::Aborted { begun: true, .. },
            ) => State::DeployFailed,
            (Verb::Clean, Phase::Waiting) => State::CleanWait,
            (Verb::Clean, Phase::Running { stalled: false, .. }) => State::Cleaning,
            // Cleaning has no first boot: with the report it is done.
            (Verb::Clean, Phase::Written { .. } | Phase::Done { .. }) => State::Available,
            (
                Verb::Clean,
                Phase::Running { stalled: true, .. }
                | Phase::Failed { .. }
                | Phase::Aborted { begun: true, .. },
            ) => State::CleanFailed,
            (Verb::Rescue, Phase::Waiting) => State::Rescuing,
            // Who looks after the machine by hand does not report.
            (Verb::Rescue, Phase::Running { .. } | Phase::Written { .. }) => State::Rescue,
            (Verb::Rescue, Phase::Failed { .. }) => State::RescueFailed,
            (Verb::Rescue, Phase::Done { .. } | Phase::Aborted { begun: true, .. }) => self.from,
        }
    }

    /// Whether the node has to netboot for it.
    pub fn needs_netboot(&self) -> bool {
        match self.phase {
            Phase::Waiting | Phase::Running { .. } => true,
            Phase::Written { .. } | Phase::Done { .. } | Phase::Failed { .. } | Phase::Aborted { .. } => {
                false
            }
        }
    }

    /// Whether the ramdisk's agent is the one that does it, now.
    pub fn needs_ramdisk(&self) -> bool {
        self.needs_netboot() && self.work.runner() == Runner::Agent
    }

    /// The boot profile that is to do it, or does.
    pub fn installer(&self) -> Option<&ProfileName> {
        match &self.work {
            Work::Installer { profile } if self.needs_netboot() => Some(profile),
            Work::Installer { .. } | Work::Deploy(_) | Work::Clean { .. } | Work::Rescue { .. } => None,
        }
    }

    /// Whether it may still come to something.
    pub fn is_open(&self) -> bool {
        self.needs_netboot() || matches!(self.phase, Phase::Written { .. })
    }

    /// Whether this boot is the one that may write: its agent may have the image's bytes, its installer the answers.
    pub fn is_run_by(&self, boot: Timestamp) -> bool {
        matches!(self.phase, Phase::Running { boot: runner, .. } if runner == boot)
    }

    /// The image it needs kept.
    pub fn pinned(&self) -> Option<Digest> {
        match &self.work {
            Work::Deploy(deployment) if self.needs_ramdisk() => Some(deployment.manifest),
            Work::Deploy(_) | Work::Installer { .. } | Work::Clean { .. } | Work::Rescue { .. } => None,
        }
    }

    pub fn disks(&self) -> &[TargetDisk] {
        match &self.phase {
            Phase::Running { disks, .. } | Phase::Written { disks, .. } => disks,
            Phase::Waiting | Phase::Done { .. } | Phase::Failed { .. } | Phase::Aborted { .. } => &[],
        }
    }
}

/// What kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Verb {
    Deploy,
    Clean,
    Rescue,
}

impl fmt::Display for Verb {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Verb::Deploy => "deploy",
            Verb::Clean => "clean",
            Verb::Rescue => "rescue",
        })
    }
}

impl Work {
    pub fn verb(&self) -> Verb {
        match self {
            Work::Deploy(_) | Work::Installer { .. } => Verb::Deploy,
            Work::Clean { .. } => Verb::Clean,
            Work::Rescue { .. } => Verb::Rescue,
        }
    }

    fn runner(&self) -> Runner {
        match self {
            Work::Installer { .. } => Runner::Installer,
            Work::Deploy(_) | Work::Clean { .. } | Work::Rescue { .. } => Runner::Agent,
        }
    }
}

/// What a loader is to be told of an installer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Its kernel, once `Begun` is on disk.
    Begin,
    /// Its kernel again: the same boot asks once more, and nothing was heard of the installer yet.
    Again,
    /// Nothing: the installer was started before, and the machine has started anew since. The intent has failed.
    Lost,
    /// Nothing: there is none to be started.
    Never,
}

fn start(phase: &Phase, boot: Option<Timestamp>, answered: bool) -> Start {
    match phase {
        Phase::Waiting => Start::Begin,
        Phase::Running { boot: runner, .. } if boot == Some(*runner) && !answered => Start::Again,
        Phase::Running { .. } => Start::Lost,
        Phase::Written { .. } | Phase::Done { .. } | Phase::Failed { .. } | Phase::Aborted { .. } => {
            Start::Never
        }
    }
}

/// The table.
fn next_phase(
    verb: Verb,
    by: Runner,
    phase: &Phase,
    event: &IntentEvent,
    now: Timestamp,
) -> Result<Phase, IntentRefusal> {
    let at = now;
    match (phase, event) {
        (Phase::Done { .. } | Phase::Failed { .. } | Phase::Aborted { .. }, event) => match (phase, event) {
            // Both may be said again: the answer was lost.
            (Phase::Done { boot: runner, .. }, IntentEvent::Reported { boot }) if runner == boot => {
                Ok(phase.clone())
            }
            (Phase::Done { .. }, IntentEvent::CalledHome) if verb == Verb::Deploy => Ok(phase.clone()),
            _ => Err(IntentRefusal::Over),
        },
        (Phase::Waiting, IntentEvent::Begun { boot, disks }) => {
            Ok(Phase::Running { since: now, boot: *boot, disks: disks.clone(), stalled: false })
        }
        (Phase::Running { boot: runner, .. }, IntentEvent::Begun { boot, .. }) if by == Runner::Installer => {
            if runner == boot {
                Ok(phase.clone())
            } else {
                Err(IntentRefusal::StartedBefore)
            }
        }
        (Phase::Running { since, disks: begun_on, .. }, IntentEvent::Begun { boot, disks }) => {
            let same = begun_on.len() == disks.len()
                && begun_on.iter().all(|one| disks.iter().any(|another| one.is_same(another)));
            let running =
                || Phase::Running { since: *since, boot: *boot, disks: disks.clone(), stalled: false };
            if same { Ok(running()) } else { Err(IntentRefusal::OtherDisk) }
        }
        (Phase::Running { boot: runner, disks, .. }, IntentEvent::Reported { boot }) => match verb {
            _ if runner != boot => Err(IntentRefusal::NotThisBoot),
            Verb::Deploy => Ok(Phase::Written { at, boot: *boot, disks: disks.clone(), overdue: false }),
            Verb::Clean => Ok(Phase::Done { at, boot: *boot }),
            Verb::Rescue => Err(IntentRefusal::NotPartOfIt),
        },
        (Phase::Running { since, boot, disks, .. }, IntentEvent::Stalled) => match verb {
            Verb::Deploy | Verb::Clean => {
                Ok(Phase::Running { since: *since, boot: *boot, disks: disks.clone(), stalled: true })
            }
            Verb::Rescue => Err(IntentRefusal::NotPartOfIt),
        },
        (Phase::Written { .. }, IntentEvent::Begun { .. } | IntentEvent::Failed { .. }) => {
            Err(IntentRefusal::Over)
        }
        (Phase::Written { boot: runner, .. }, IntentEvent::Reported { boot }) => {
            if runner == boot {
                Ok(phase.clone())
            } else {
                Err(IntentRefusal::NotThisBoot)
            }
        }
        (Phase::Written { boot, .. }, IntentEvent::CalledHome) => Ok(Phase::Done { at, boot: *boot }),
        (Phase::Written { at, boot, disks, .. }, IntentEvent::FirstBootOverdue) => {
            Ok(Phase::Written { at: *at, boot: *boot, disks: disks.clone(), overdue: true })
        }
        (Phase::Waiting | Phase::Running { .. }, IntentEvent::Failed { reason }) => {
            Ok(Phase::Failed { at, reason: reason.clone() })
        }
        (Phase::Waiting, IntentEvent::Aborted) => Ok(Phase::Aborted { at, begun: false }),
        (Phase::Running { .. } | Phase::Written { .. }, IntentEvent::Aborted) => {
            Ok(Phase::Aborted { at, begun: true })
        }
        (
            Phase::Waiting,
            IntentEvent::Reported { .. }
            | IntentEvent::Stalled
            | IntentEvent::CalledHome
            | IntentEvent::FirstBootOverdue,
        )
        | (Phase::Running { .. }, IntentEvent::CalledHome | IntentEvent::FirstBootOverdue)
        | (Phase::Written { .. }, IntentEvent::Stalled) => Err(IntentRefusal::NotBegun),
    }
}

#[cfg(test)]
mod model;
