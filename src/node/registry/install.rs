//! Tasks on nodes' disks: wanted by operators, run by agents, ended by the installed system's call.
//!
//! What moves an intent is in [`crate::node::install::intent`]; here it meets the node's record, the store and the
//! timeline. Whoever is answered that something happened is answered after it is on disk: `begin` is the fence that
//! keeps a disk from being written twice, and a report that is answered is never asked for again.
//!
//! How far an agent is lives in memory only: it tells us again half a second later.
//!
//! - `wanted`: operators' wishes
//! - `agent`: the agent's side of a task
//! - `installer`: the same where a distribution's installer does the work: its start, what it may fetch
//! - `first_call`: what an installer and the installed system are given, and what they say
//! - `watch`: deadlines, and machines that are not the node's

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::clock::Timestamp;
use crate::image::digest::Digest;
use crate::node::install::event::InstallEvent;
use crate::node::install::first_boot::FirstBoot;
use crate::node::install::intent;
use crate::node::install::intent::{Intent, IntentEvent, IntentId, IntentRefusal};
use crate::node::install::task::{AgentTask, AgentWork, Progress, Step};
use crate::node::registry::Registry;
use crate::node::registry::entry::{Act, Entry};
use crate::node::state::{Order, ProvisionState};
use crate::node::timeline::Happening;
use crate::node::{Node, NodeId};
use crate::store::Change;

mod agent;
mod first_call;
mod installer;
pub(super) mod other_machine;
mod wanted;
mod watch;

pub use agent::AgentCaller;
pub use first_call::SeedMaterial;
pub use installer::InstallerStart;
pub use wanted::{InstallError, InstallRequest};

/// An agent tells its progress twice a second; one that has said nothing for this long is not there any more.
pub(super) const STALLED_AFTER: Duration = Duration::from_secs(120);
/// Watchers are told of progress this often at most.
const PROGRESS_TOLD: Duration = Duration::from_millis(900);
/// Points of the chart of one task; when there are more, every other one goes.
const SAMPLES_MAX: usize = 240;

/// How a task is going, as far as memory knows.
#[derive(Debug, Default)]
pub(super) struct Work {
    heard_at: Option<Timestamp>,
    begun: installer::Begun,
    progress: Option<Progress>,
    told_at: Option<Timestamp>,
    samples: VecDeque<Sample>,
    /// Between two samples kept.
    spacing: Duration,
}

/// A point of the chart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Sample {
    pub at: Timestamp,
    pub step: Step,
    pub done: u64,
    pub total: u64,
    /// Bytes of disk a second.
    pub rate: u64,
}

/// A task as it is going.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InstallView {
    pub heard_at: Option<Timestamp>,
    pub progress: Option<Progress>,
    /// Oldest first.
    pub samples: Vec<Sample>,
}

/// What waits for an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instructions {
    pub order: Option<Order>,
    pub task: Option<AgentTask>,
}

impl Registry {
    /// The manifests that open tasks need.
    pub fn pinned_images(&self) -> BTreeSet<Digest> {
        let book = self.lock();
        let ids = book.ids_with_open_intent();
        let intents = ids.iter().filter_map(|id| book.get(*id)?.node.intent.as_deref());
        intents.filter_map(Intent::pinned).collect()
    }

    /// How the task of a node is going.
    pub fn install_view(&self, id: NodeId) -> InstallView {
        let book = self.lock();
        book.get(id).map(|entry| entry.work.view()).unwrap_or_default()
    }
}

fn put_back(node: &mut Node, before: &Node) {
    node.intent = before.intent.clone();
    node.state = before.state;
    node.next_boot = before.next_boot;
    node.failure = before.failure.clone();
    node.order = before.order;
}

impl Entry {
    /// What its agent is to do.
    pub(super) fn task(&self) -> Option<AgentTask> {
        let intent = self.node.intent.as_deref().filter(|intent| intent.needs_ramdisk())?;
        let work = match &intent.work {
            intent::Work::Deploy(deployment) => AgentWork::Deploy {
                image: deployment.image.clone(),
                manifest: deployment.manifest,
                manifest_bytes: deployment.manifest_bytes,
                disk: deployment.disk.clone(),
                wipe: deployment.wipe,
            },
            intent::Work::Clean { disk, method } => AgentWork::Clean { disk: disk.clone(), method: *method },
            intent::Work::Rescue { ssh_keys } => AgentWork::Rescue { ssh_keys: ssh_keys.clone() },
            // Not the agent's, and asked for above.
            intent::Work::Installer { .. } => return None,
        };
        Some(AgentTask {
            intent: intent.id,
            generation: intent.generation,
            nonce: intent.nonce.clone(),
            begun_on: intent.disks().to_vec(),
            work,
        })
    }
}

impl Act<'_> {
    /// Moves the intent; tells whether it moved at all.
    fn intent_event(&mut self, event: &IntentEvent) -> Result<bool, IntentRefusal> {
        let now = self.now;
        let intent = self.entry.node.intent.as_mut().ok_or(IntentRefusal::Over)?;
        let phase = intent.apply(event, now)?;
        let moved = intent.phase != phase;
        intent.phase = phase;
        self.node_changed |= moved;
        Ok(moved)
    }

    /// Lets the node's state be what its intent says.
    fn follow_intent(&mut self, cause: &str) {
        if let Some(to) = self.entry.node.intent.as_ref().map(|intent| intent.state()) {
            self.set_state(to, cause);
        }
    }

    fn set_state(&mut self, to: ProvisionState, cause: &str) {
        let from = self.entry.node.state;
        self.node_changed = true;
        if !to.is_failed() {
            self.entry.node.failure = None;
        }
        if from != to {
            self.entry.node.state = to;
            self.note(Happening::State { from, to, cause: cause.to_owned() });
        }
    }

    fn note_install(&mut self, install: InstallEvent) {
        let generation = self.entry.node.intent.as_ref().map_or(0, |intent| intent.generation);
        self.note(Happening::Install { generation, install });
    }

    fn put_first_boot(&mut self, first_boot: Option<FirstBoot>) {
        let change = match &first_boot {
            Some(first_boot) => Change::PutFirstBoot(Box::new(first_boot.clone())),
            None => Change::DropFirstBoot(self.entry.node.id),
        };
        self.effects.changes.push(change);
        self.entry.first_boot = first_boot;
    }

    /// The agent says that it cannot go on with a task.
    pub(super) fn task_failed(&mut self, intent: Option<IntentId>, reason: String) {
        let current = self.entry.node.intent.as_ref().map(|it| it.id);
        if intent.is_none() || current != intent {
            return;
        }
        let event = IntentEvent::Failed { reason: reason.clone() };
        if let Ok(true) = self.intent_event(&event) {
            self.note_install(InstallEvent::Failed { reason });
            self.follow_intent("the agent gave up");
        }
    }
}

impl Work {
    pub(super) fn view(&self) -> InstallView {
        let samples = self.samples.iter().copied().collect();
        InstallView { heard_at: self.heard_at, progress: self.progress, samples }
    }

    /// Tells whether this is a step it was not at before.
    fn note(&mut self, progress: Progress, now: Timestamp) -> bool {
        self.heard_at = Some(now);
        let is_new = self.progress.is_none_or(|before| before.step != progress.step);
        self.progress = Some(progress);
        let Progress { step, done, total, rate, .. } = progress;
        if is_new || self.samples.back().is_none_or(|last| now.since(last.at) >= self.spacing) {
            self.samples.push_back(Sample { at: now, step, done, total, rate });
        }
        if self.samples.len() > SAMPLES_MAX {
            let mut number = 0_usize;
            self.samples.retain(|_| {
                number += 1;
                number % 2 == 1
            });
            self.spacing = (self.spacing * 2).max(Duration::from_secs(1));
        }
        is_new
    }

    fn tell(&mut self, now: Timestamp) -> bool {
        let due = self.told_at.is_none_or(|told| now.since(told) >= PROGRESS_TOLD);
        if due {
            self.told_at = Some(now);
        }
        due
    }
}
