//! What the timeline tells of an install.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::node::install::intent::Verb;
use crate::node::install::task::{Progress, Step, TargetDisk};
use crate::node::inventory::clean_text;

/// Characters kept of a text that an agent or an installed system sends.
const TEXT_MAX: usize = 256;
/// Disks shown of a task that concerns many.
const DISKS_SHOWN: usize = 16;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum InstallEvent {
    /// An operator wants it.
    Wanted {
        verb: Verb,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        image: Option<String>,
        /// The boot profile of a distribution's installer.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        installer: Option<String>,
    },
    /// The loader is told of this installer's kernel: from here on it may write to disks.
    InstallerStarted { profile: String },
    /// The installer has its answers.
    AnswersRead,
    /// The installer says that all is done.
    InstallerReported { host_name: Option<String> },
    /// The installer should have said so by now.
    InstallerOverdue { waited_secs: u64 },
    /// The agent may write to these disks from here on.
    Begun {
        disks: Vec<TargetDisk>,
        /// It goes on with what an earlier boot began.
        again: bool,
    },
    /// It has come to this step.
    Reached { step: Step },
    /// How far the step is. Only for those who watch: no timeline keeps it.
    Progress { progress: Progress },
    /// The agent says that all is done.
    Reported {
        /// Bytes of disk that are as they should be; of these, how many this boot wrote.
        bytes: u64,
        written: u64,
        took_millis: u64,
    },
    /// The agent could not go on.
    Failed { reason: String },
    /// Nothing was heard of it for this long.
    Stalled { silent_secs: u64 },
    /// The installed system called.
    CalledHome { host_name: Option<String> },
    /// The installed system should have called by now.
    FirstBootOverdue { waited_secs: u64 },
    /// The operator wants it no more; disks may have been written to.
    Aborted { begun: bool },
    /// The node is free for something else.
    Released,
    /// A machine that is not this node's claims its MAC: it is told nothing.
    OtherMachine { differs: String },
}

impl InstallEvent {
    pub fn bounded(mut self) -> InstallEvent {
        match &mut self {
            InstallEvent::Begun { disks, .. } => disks.truncate(DISKS_SHOWN),
            InstallEvent::Failed { reason } => *reason = clean_text(reason, TEXT_MAX),
            InstallEvent::OtherMachine { differs } => *differs = clean_text(differs, TEXT_MAX),
            InstallEvent::CalledHome { host_name: Some(name) }
            | InstallEvent::InstallerReported { host_name: Some(name) } => *name = clean_text(name, TEXT_MAX),
            InstallEvent::Wanted { .. }
            | InstallEvent::Reached { .. }
            | InstallEvent::Progress { .. }
            | InstallEvent::Reported { .. }
            | InstallEvent::Stalled { .. }
            | InstallEvent::CalledHome { host_name: None }
            | InstallEvent::InstallerStarted { .. }
            | InstallEvent::AnswersRead
            | InstallEvent::InstallerReported { host_name: None }
            | InstallEvent::InstallerOverdue { .. }
            | InstallEvent::FirstBootOverdue { .. }
            | InstallEvent::Aborted { .. }
            | InstallEvent::Released => {}
        }
        self
    }

    /// Whether an operator has to do something about it.
    pub fn is_trouble(&self) -> bool {
        match self {
            InstallEvent::Failed { .. }
            | InstallEvent::Stalled { .. }
            | InstallEvent::FirstBootOverdue { .. }
            | InstallEvent::InstallerOverdue { .. }
            | InstallEvent::OtherMachine { .. } => true,
            InstallEvent::Wanted { .. }
            | InstallEvent::Begun { .. }
            | InstallEvent::Reached { .. }
            | InstallEvent::Progress { .. }
            | InstallEvent::Reported { .. }
            | InstallEvent::CalledHome { .. }
            | InstallEvent::InstallerStarted { .. }
            | InstallEvent::AnswersRead
            | InstallEvent::InstallerReported { .. }
            | InstallEvent::Aborted { .. }
            | InstallEvent::Released => false,
        }
    }

    /// In a line, for people.
    pub fn words(&self) -> String {
        match self {
            InstallEvent::Wanted { verb, image, installer } => match (image, installer) {
                (Some(image), _) => format!("{verb} {image} wanted"),
                (None, Some(installer)) => format!("{verb} by installer {installer} wanted"),
                (None, None) => format!("{verb} wanted"),
            },
            InstallEvent::InstallerStarted { profile } => {
                format!("installer {profile} is started, once and never again")
            }
            InstallEvent::AnswersRead => "the installer has its answers".to_owned(),
            InstallEvent::InstallerReported { host_name } => match host_name {
                Some(name) => format!("the installer says that {name} is installed"),
                None => "the installer says that it is done".to_owned(),
            },
            InstallEvent::InstallerOverdue { waited_secs } => {
                format!("the installer has not said within {waited_secs} s that it is done")
            }
            InstallEvent::Begun { disks, again } => {
                let names: Vec<&str> = disks.iter().map(|disk| disk.name.as_str()).collect();
                let verb = if *again { "goes on with" } else { "begins with" };
                let names = if names.is_empty() { "no disk".to_owned() } else { names.join(", ") };
                format!("the agent {verb} {names}")
            }
            InstallEvent::Reached { step } => step.to_string(),
            InstallEvent::Progress { progress } => {
                let percent = progress.done.saturating_mul(100).checked_div(progress.total).unwrap_or(0);
                format!("{} {percent} %", progress.step)
            }
            InstallEvent::Reported { bytes, written, took_millis } => format!(
                "done: {} MiB as wanted, {} MiB of them written, in {:.1} s",
                bytes >> 20,
                written >> 20,
                *took_millis as f64 / 1000.0
            ),
            InstallEvent::Failed { reason } => format!("failed: {reason}"),
            InstallEvent::Stalled { silent_secs } => {
                format!("nothing was heard of it for {silent_secs} s; its next netboot goes on with it")
            }
            InstallEvent::CalledHome { host_name } => match host_name {
                Some(name) => format!("the installed system called, as {name}"),
                None => "the installed system called".to_owned(),
            },
            InstallEvent::FirstBootOverdue { waited_secs } => {
                format!("the installed system has not called within {waited_secs} s")
            }
            InstallEvent::Aborted { begun: true } => "aborted; its disk is not to be relied on".to_owned(),
            InstallEvent::Aborted { begun: false } => "aborted before it began".to_owned(),
            InstallEvent::Released => "released".to_owned(),
            InstallEvent::OtherMachine { differs } => {
                format!("another machine claims this node's MAC ({differs}): it was told nothing")
            }
        }
    }
}
