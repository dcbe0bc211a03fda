//! Tasks on nodes' disks: wanted by operators, run by agents, ended by the installed system's call.
//!
//! What moves an intent is in [`crate::node::install::intent`]; here it meets the node's record, the store and the
//! timeline. Whoever is answered that something happened is answered after it is on disk: `begin` is the fence that
//! keeps a disk from being written twice, and a report that is answered is never asked for again.
//!
//! How far an agent is lives in memory only: it tells us again half a second later.

use std::collections::{BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::boot::decision::NextBoot;
use crate::clock::Timestamp;
use crate::image::digest::Digest;
use crate::net::MacAddr;
use crate::node::install::event::InstallEvent;
use crate::node::install::first_boot::{self, FirstBoot, FirstBootError};
use crate::node::install::intent::{
    self, Intent, IntentEvent, IntentId, IntentNonce, IntentRefusal, Phase, Verb,
};
use crate::node::install::task::{AgentTask, AgentWork, Progress, Report, Step, TargetDisk, prove};
use crate::node::inventory::Inventory;
use crate::node::registry::agent::AgentRefusal;
use crate::node::registry::book::Book;
use crate::node::registry::edit::Expected;
use crate::node::registry::entry::{Act, Entry};
use crate::node::registry::operator::locate_expected;
use crate::node::registry::{NodeRef, OperatorError, Registry};
use crate::node::state::{Order, ProvisionState};
use crate::node::timeline::{Happening, TimelineEvent};
use crate::node::{Node, NodeId};
use crate::store::{Change, CommitError};

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

/// What an operator wants done.
#[derive(Clone, Debug)]
pub struct InstallRequest {
    pub work: intent::Work,
    /// For the installed system.
    pub ssh_keys: Vec<String>,
    pub user_data: Option<String>,
}

/// What the seed of an installed system is made of.
#[derive(Clone, Debug)]
pub struct SeedMaterial {
    pub node: Node,
    pub intent: Intent,
    pub first_boot: FirstBoot,
    /// With which the installed system calls.
    pub token: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InstallError {
    #[error(transparent)]
    Operator(#[from] OperatorError),
    #[error("a node that is {state} is not {}: {way_out}", participle(*.verb))]
    NotNow { verb: Verb, state: ProvisionState, way_out: &'static str },
    #[error("there is nothing to abort: no task of this node is open")]
    NothingOpen,
    #[error("a node that is {state} is not released: {way_out}")]
    NotReleased { state: ProvisionState, way_out: &'static str },
    #[error("this node is {state}, not in rescue")]
    NotInRescue { state: ProvisionState },
    #[error("an operator has to approve this node first: `farrier node approve`")]
    NotApproved,
    #[error(transparent)]
    FirstBoot(#[from] FirstBootError),
    #[error("the kernel gave no random bytes for the task's key")]
    NoRandomness,
}

impl From<CommitError> for InstallError {
    fn from(error: CommitError) -> Self {
        InstallError::Operator(OperatorError::Store(error))
    }
}

/// Why an installed system's call is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallHomeRefusal {
    #[error("the token is not one this appliance gave to this node's system")]
    Forged,
    #[error("the system's install is over, or another one is wanted by now")]
    Over,
    #[error("the appliance cannot write to its disk")]
    NotDurable(#[from] CommitError),
}

impl CallHomeRefusal {
    pub fn as_str(&self) -> &'static str {
        match self {
            CallHomeRefusal::Forged => "call-home-forged",
            CallHomeRefusal::Over => "call-home-over",
            CallHomeRefusal::NotDurable(_) => "not-durable",
        }
    }
}

fn participle(verb: Verb) -> &'static str {
    match verb {
        Verb::Deploy => "deployed",
        Verb::Clean => "cleaned",
        Verb::Rescue => "rescued",
    }
}

/// Whether a task may be wanted of a node in this state, or what has to happen first.
fn may_want(verb: Verb, state: ProvisionState) -> Result<(), &'static str> {
    use ProvisionState as State;
    match (verb, state) {
        (Verb::Deploy | Verb::Clean, State::Active) => {
            Err("its installed system is in use; `farrier node release` says that it is not")
        }
        (_, State::WaitCallBack | State::Deploying | State::CleanWait | State::Cleaning) => {
            Err("a task is open; `farrier node abort` ends it")
        }
        (_, State::Rescuing | State::Rescue) => Err("`farrier node unrescue` comes first"),
        (
            Verb::Deploy | Verb::Rescue | Verb::Clean,
            State::Enroll
            | State::Inspecting
            | State::InspectFailed
            | State::Manageable
            | State::Available
            | State::DeployFailed
            | State::CleanFailed
            | State::RescueFailed,
        )
        | (Verb::Rescue, State::Active) => Ok(()),
    }
}

impl Registry {
    /// An operator wants something done to a node's disks; its next netboot, or the agent that waits there, does it.
    pub fn want(
        &self,
        reference: &NodeRef,
        expected: &Expected,
        request: InstallRequest,
        now: Timestamp,
    ) -> Result<Node, InstallError> {
        let ssh_keys = first_boot::check(&request.ssh_keys, request.user_data.as_deref())?;
        let (id, nonce) = random_identity().ok_or(InstallError::NoRandomness)?;
        let (verb, user_data) = (request.work.verb(), request.user_data);
        self.change_intent(reference, expected, now, move |act| {
            let node = &act.entry.node;
            if !act.approved {
                return Err(InstallError::NotApproved);
            }
            let state = node.state;
            may_want(verb, state).map_err(|way_out| InstallError::NotNow { verb, state, way_out })?;
            let from = match state {
                // A failed task is no state to come back to.
                ProvisionState::DeployFailed | ProvisionState::CleanFailed => ProvisionState::Available,
                ProvisionState::RescueFailed => node.intent.as_ref().map_or(state, |intent| intent.from),
                other => other,
            };
            // One that stalled, or whose system never called, is open still; this one takes its place.
            if node.intent.as_ref().is_some_and(|intent| intent.is_open()) {
                let _ = act.intent_event(&IntentEvent::Aborted);
            }
            let node = &mut act.entry.node;
            let generation = node.intent.as_ref().map_or(0, |intent| intent.generation) + 1;
            let image = match &request.work {
                intent::Work::Deploy(deployment) => Some(deployment.image.clone()),
                intent::Work::Clean { .. } | intent::Work::Rescue { .. } => None,
            };
            let work = request.work;
            let intent = Intent { id, generation, nonce, work, phase: Phase::Waiting, from, created_at: now };
            node.intent = Some(Box::new(intent));
            act.entry.work = Work::default();
            act.entry.loaders.forgive();
            if verb == Verb::Deploy {
                let first_boot = FirstBoot {
                    node: act.entry.node.id,
                    intent: id,
                    ssh_keys,
                    user_data,
                    handed_out: Vec::new(),
                };
                act.put_first_boot(Some(first_boot));
            }
            act.note_install(InstallEvent::Wanted { verb, image });
            act.follow_intent("wanted by an operator");
            Ok(())
        })
    }

    /// The operator wants the open task no more.
    pub fn abort(
        &self,
        reference: &NodeRef,
        expected: &Expected,
        now: Timestamp,
    ) -> Result<Node, InstallError> {
        self.change_intent(reference, expected, now, |act| {
            let rescue = act.entry.node.intent.as_ref().is_some_and(|it| it.work.verb() == Verb::Rescue);
            act.intent_event(&IntentEvent::Aborted).map_err(|_| InstallError::NothingOpen)?;
            let begun = act
                .entry
                .node
                .intent
                .as_ref()
                .is_some_and(|it| matches!(it.phase, Phase::Aborted { begun: true, .. }));
            act.note_install(InstallEvent::Aborted { begun });
            act.follow_intent("aborted by an operator");
            if begun && !rescue {
                act.entry.node.failure =
                    Some("aborted by an operator; what is on its disk is not to be relied on".to_owned());
            }
            act.put_first_boot(None);
            Ok(())
        })
    }

    /// Out of the rescue ramdisk, back to what the node was before.
    pub fn unrescue(
        &self,
        reference: &NodeRef,
        expected: &Expected,
        now: Timestamp,
    ) -> Result<Node, InstallError> {
        self.change_intent(reference, expected, now, |act| {
            let state = act.entry.node.state;
            let rescue = act.entry.node.intent.as_ref().is_some_and(|it| it.work.verb() == Verb::Rescue);
            if !rescue || act.intent_event(&IntentEvent::Aborted).is_err() {
                return Err(InstallError::NotInRescue { state });
            }
            act.note_install(InstallEvent::Aborted { begun: false });
            act.follow_intent("rescue ended by an operator");
            // The agent that waits there brings it back.
            act.entry.node.order = Some(Order::Reboot);
            Ok(())
        })
    }

    /// The installed system is needed no more. Nothing is written: that is for the next install, or for cleaning.
    pub fn release(
        &self,
        reference: &NodeRef,
        expected: &Expected,
        now: Timestamp,
    ) -> Result<Node, InstallError> {
        self.change_intent(reference, expected, now, |act| {
            let state = act.entry.node.state;
            let way_out = match state {
                ProvisionState::Active
                | ProvisionState::DeployFailed
                | ProvisionState::CleanFailed
                | ProvisionState::RescueFailed
                | ProvisionState::Available => None,
                ProvisionState::WaitCallBack
                | ProvisionState::Deploying
                | ProvisionState::CleanWait
                | ProvisionState::Cleaning => Some("a task is open; `farrier node abort` ends it"),
                ProvisionState::Rescuing | ProvisionState::Rescue => {
                    Some("`farrier node unrescue` comes first")
                }
                ProvisionState::Enroll
                | ProvisionState::Inspecting
                | ProvisionState::InspectFailed
                | ProvisionState::Manageable => Some("nothing was installed on it"),
            };
            if let Some(way_out) = way_out {
                return Err(InstallError::NotReleased { state, way_out });
            }
            if act.entry.node.intent.as_ref().is_some_and(|intent| intent.is_open()) {
                let _ = act.intent_event(&IntentEvent::Aborted);
            }
            act.entry.node.next_boot = NextBoot::Ramdisk;
            act.put_first_boot(None);
            act.note_install(InstallEvent::Released);
            act.set_state(ProvisionState::Available, "released by an operator");
            Ok(())
        })
    }

    /// The agent has chosen its disks and asks to write. On disk before it returns.
    pub fn begin_task(
        &self,
        caller: &AgentCaller<'_>,
        intent: IntentId,
        disks: Vec<TargetDisk>,
    ) -> Result<(), AgentRefusal> {
        self.task_call(caller, intent, |act, boot| {
            let again = act.entry.node.intent.as_ref().is_some_and(|it| it.phase != Phase::Waiting);
            let event = IntentEvent::Begun { boot, disks: disks.clone() };
            if act.intent_event(&event)? {
                act.note_install(InstallEvent::Begun { disks, again });
                act.follow_intent("the agent began");
            }
            Ok(())
        })
    }

    /// How far it is; whether it is to go on.
    pub fn task_progress(
        &self,
        caller: &AgentCaller<'_>,
        intent: IntentId,
        progress: Progress,
    ) -> Result<bool, AgentRefusal> {
        let now = caller.now;
        let mut book = self.lock_at(now);
        let id = self.admit_session(&mut book, caller.session, caller.mac, caller.address, now)?;
        let heard = |act: &mut Act<'_>| {
            act.entry.node.last_seen_at = Some(now);
            let boot = act.entry.node.redeemed_token_at.unwrap_or_default();
            let current = act.entry.node.intent.as_ref().filter(|it| it.id == intent && it.is_open());
            let Some(current) = current else { return (false, None) };
            let generation = current.generation;
            // It was only slow.
            let stalled =
                matches!(current.phase, Phase::Running { stalled: true, boot: runner, .. } if runner == boot);
            let disks = current.disks().to_vec();
            if stalled && act.intent_event(&IntentEvent::Begun { boot, disks }).is_ok() {
                act.follow_intent("the agent was heard of again");
            }
            if act.entry.work.note(progress, now) {
                act.note_install(InstallEvent::Reached { step: progress.step });
            }
            let install = act.entry.work.tell(now).then_some(InstallEvent::Progress { progress });
            (true, install.map(|install| Happening::Install { generation, install }))
        };
        let ((go_on, happening), effects) = book.change(id, now, heard).ok_or(AgentRefusal::UnknownNode)?;
        self.settle(id, effects);
        // For those who watch now; no timeline keeps it.
        let told =
            happening.map(|happening| TimelineEvent { node: id, boot: 0, sequence: 0, at: now, happening });
        self.announce(told.into_iter().map(std::sync::Arc::new).collect());
        Ok(go_on)
    }

    /// The agent says that all is done. On disk before it returns; may be said again.
    pub fn report_task(
        &self,
        caller: &AgentCaller<'_>,
        intent: IntentId,
        report: &Report,
    ) -> Result<(), AgentRefusal> {
        self.task_call(caller, intent, |act, boot| {
            let Some(current) = &act.entry.node.intent else { return Err(IntentRefusal::Over) };
            let expected = prove(&current.nonce, current.id, current.generation, report.bytes);
            if !same_text(&expected, &report.signature) {
                return Err(IntentRefusal::NotPartOfIt);
            }
            let verb = current.work.verb();
            if act.intent_event(&IntentEvent::Reported { boot })? {
                let Report { bytes, written, took_millis, .. } = *report;
                act.note_install(InstallEvent::Reported { bytes, written, took_millis });
                if verb == Verb::Deploy {
                    act.entry.node.next_boot = NextBoot::LocalDisk;
                }
                act.follow_intent("the agent reported success");
            }
            Ok(())
        })
    }

    /// The manifest of the image that this agent may read, if it runs a deployment. Before it begins with one, it may
    /// read the manifest itself, which says how large a disk must be, and no chunk.
    pub fn image_for(&self, caller: &AgentCaller<'_>, chunks: bool) -> Result<Digest, AgentRefusal> {
        let now = caller.now;
        let mut book = self.lock_at(now);
        let id = self.admit_session(&mut book, caller.session, caller.mac, caller.address, now)?;
        let node = book.get(id).map(|entry| &entry.node).ok_or(AgentRefusal::UnknownNode)?;
        let boot = node.redeemed_token_at.unwrap_or_default();
        match &node.intent {
            Some(intent) if intent.is_run_by(boot) || (!chunks && intent.needs_ramdisk()) => {
                intent.pinned().ok_or(AgentRefusal::Task(IntentRefusal::NotPartOfIt))
            }
            Some(intent) if intent.needs_ramdisk() => Err(AgentRefusal::Task(IntentRefusal::NotBegun)),
            Some(_) | None => Err(AgentRefusal::Task(IntentRefusal::Over)),
        }
    }

    /// What the running deployment's seed is made of.
    pub fn seed_for(&self, caller: &AgentCaller<'_>, intent: IntentId) -> Result<SeedMaterial, AgentRefusal> {
        let now = caller.now;
        let mut book = self.lock_at(now);
        let id = self.admit_session(&mut book, caller.session, caller.mac, caller.address, now)?;
        let entry = book.get(id).ok_or(AgentRefusal::UnknownNode)?;
        let boot = entry.node.redeemed_token_at.unwrap_or_default();
        let current = entry.node.intent.as_ref().filter(|it| it.id == intent && it.is_run_by(boot));
        if current.is_none() {
            return Err(AgentRefusal::Task(IntentRefusal::Over));
        }
        self.material(entry).ok_or(AgentRefusal::Task(IntentRefusal::NotPartOfIt))
    }

    fn material(&self, entry: &Entry) -> Option<SeedMaterial> {
        let intent = entry.node.intent.as_deref()?.clone();
        let first_boot = entry.first_boot.clone().filter(|it| it.intent == intent.id)?;
        let token = self.tokens.issue_call_home(intent.id);
        Some(SeedMaterial { node: entry.node.without_secrets(), intent, first_boot, token })
    }

    /// What the metadata service tells this node's installed system, if it has one.
    pub fn metadata_of(&self, mac: MacAddr) -> Option<SeedMaterial> {
        let book = self.lock();
        let entry = book.owner_of(mac).and_then(|id| book.get(id))?;
        self.material(entry)
    }

    /// Notes that a secret part goes out over the network; `Err` if it did before. On disk before it returns.
    pub fn hand_out_secret(
        &self,
        mac: MacAddr,
        part: &str,
        again_within: Duration,
        now: Timestamp,
    ) -> Result<(), CallHomeRefusal> {
        let mut book = self.lock_at(now);
        let id = book.owner_of(mac).ok_or(CallHomeRefusal::Over)?;
        let hand_out = |act: &mut Act<'_>| {
            let Some(mut first_boot) = act.entry.first_boot.clone() else {
                return Err(CallHomeRefusal::Over);
            };
            match first_boot.handed_out.iter().find(|(name, _)| name == part) {
                Some((_, at)) if now.since(*at) <= again_within => Ok(()),
                Some(_) => Err(CallHomeRefusal::Over),
                None => {
                    first_boot.handed_out.push((part.to_owned(), now));
                    act.put_first_boot(Some(first_boot));
                    Ok(())
                }
            }
        };
        let (outcome, effects) = book.change(id, now, hand_out).ok_or(CallHomeRefusal::Over)?;
        let pending = self.settle_durably(id, effects);
        drop(book);
        pending.wait()?;
        outcome
    }

    /// The installed system calls for the first time, or again because the answer was lost.
    pub fn call_home(
        &self,
        mac: MacAddr,
        token: &str,
        host_name: Option<&str>,
        now: Timestamp,
    ) -> Result<Node, CallHomeRefusal> {
        let called = self.tokens.read_call_home(token).map_err(|_| CallHomeRefusal::Forged)?;
        let mut book = self.lock_at(now);
        let id = book.owner_of(mac).ok_or(CallHomeRefusal::Over)?;
        let before = book.get(id).map(|entry| entry.node.clone()).ok_or(CallHomeRefusal::Over)?;
        let call = |act: &mut Act<'_>| {
            let current = act.entry.node.intent.as_ref().is_some_and(|intent| intent.id == called);
            if !current {
                return Err(CallHomeRefusal::Over);
            }
            act.entry.node.last_seen_at = Some(now);
            let moved = act.intent_event(&IntentEvent::CalledHome).map_err(|_| CallHomeRefusal::Over)?;
            if moved {
                act.note_install(InstallEvent::CalledHome { host_name: host_name.map(str::to_owned) });
                act.follow_intent("the installed system called");
                // What it was given is on its disk by now; here it is only something to lose.
                let public = act.entry.first_boot.clone().map(|it| FirstBoot { user_data: None, ..it });
                act.put_first_boot(public);
            }
            Ok(())
        };
        let (outcome, effects) = book.change(id, now, call).ok_or(CallHomeRefusal::Over)?;
        let node = book.view(id);
        let pending = self.settle_durably(id, effects);
        drop(book);
        if let Err(error) = pending.wait() {
            self.undo(id, now, |node| put_back(node, &before));
            return Err(error.into());
        }
        outcome?;
        node.ok_or(CallHomeRefusal::Over)
    }

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

    /// Another machine with this node's MAC is told nothing while there is something to be told.
    #[expect(clippy::too_many_arguments)]
    pub(super) fn recognise(
        &self,
        book: &mut Book,
        id: NodeId,
        inventory: &Inventory,
        session: &str,
        mac: MacAddr,
        address: Ipv4Addr,
        now: Timestamp,
    ) -> Result<(), AgentRefusal> {
        let Some(entry) = book.get(id) else { return Err(AgentRefusal::UnknownNode) };
        let at_stake = entry.node.intent.as_ref().is_some_and(|intent| intent.is_open())
            || entry.node.state == ProvisionState::Active;
        let differs = entry.node.inventory.as_ref().and_then(|known| differs(known, inventory));
        let Some(differs) = differs.filter(|_| at_stake) else { return Ok(()) };
        tracing::error!(%mac, ip = %address, differs, "another machine claims this node's MAC: it is told nothing");
        let alarm = |act: &mut Act<'_>| {
            act.entry.node.failure = Some(format!(
                "another machine claims its MAC ({differs}); if its board was replaced: `farrier node remove` it and add it again"
            ));
            let node = &mut act.entry.node;
            // Its session is over with that, and its token spent.
            node.redeemed_token_at = node.redeemed_token_at.max(Some(now));
            node.redeemed_by = None;
            act.node_changed = true;
            act.note_install(InstallEvent::OtherMachine { differs });
        };
        if let Some(((), effects)) = book.change(id, now, alarm) {
            self.settle(id, effects);
        }
        Err(self.refuse(book, session, mac, address, AgentRefusal::OtherMachine, now))
    }

    /// Deadlines of open tasks.
    pub(super) fn tick_installs(&self, book: &mut Book, now: Timestamp) {
        let deadline = book.settings().first_boot_deadline;
        for id in book.ids_with_open_intent() {
            let look = |act: &mut Act<'_>| {
                let Some(intent) = act.entry.node.intent.as_deref() else { return };
                let phase = intent.phase.clone();
                let heard = *act.entry.work.heard_at.get_or_insert(now);
                match phase {
                    Phase::Running { stalled: false, .. } if now.since(heard) > STALLED_AFTER => {
                        if act.intent_event(&IntentEvent::Stalled).is_ok() {
                            let silent_secs = now.since(heard).as_secs();
                            act.note_install(InstallEvent::Stalled { silent_secs });
                            act.follow_intent("nothing is heard of the agent");
                            act.entry.node.failure = Some(format!(
                                "nothing was heard of its agent for {silent_secs} s; its next netboot goes on where it was"
                            ));
                        }
                    }
                    Phase::Written { at, overdue: false, .. } if now.since(at) > deadline => {
                        if act.intent_event(&IntentEvent::FirstBootOverdue).is_ok() {
                            let waited_secs = now.since(at).as_secs();
                            act.note_install(InstallEvent::FirstBootOverdue { waited_secs });
                            act.follow_intent("the installed system never called");
                            act.entry.node.failure = Some(format!(
                                "its disk was written, and the installed system has not called within {}: see its console; `farrier node deploy` tries again",
                                humantime::format_duration(deadline)
                            ));
                        }
                    }
                    Phase::Waiting
                    | Phase::Running { .. }
                    | Phase::Written { .. }
                    | Phase::Done { .. }
                    | Phase::Failed { .. }
                    | Phase::Aborted { .. } => {}
                }
            };
            if let Some(((), effects)) = book.change(id, now, look) {
                self.settle(id, effects);
            }
        }
    }

    /// A call about a task: admitted, carried out, on disk before it returns, and taken back if it cannot be.
    fn task_call(
        &self,
        caller: &AgentCaller<'_>,
        intent: IntentId,
        call: impl FnOnce(&mut Act<'_>, Timestamp) -> Result<(), IntentRefusal>,
    ) -> Result<(), AgentRefusal> {
        let AgentCaller { session, mac, address, now } = *caller;
        let mut book = self.lock_at(now);
        let id = self.admit_session(&mut book, session, mac, address, now)?;
        let before = book.get(id).map(|entry| entry.node.clone()).ok_or(AgentRefusal::UnknownNode)?;
        let carry_out = |act: &mut Act<'_>| {
            act.entry.node.last_seen_at = Some(now);
            act.entry.work.heard_at = Some(now);
            let boot = act.entry.node.redeemed_token_at.unwrap_or_default();
            match &act.entry.node.intent {
                Some(current) if current.id == intent => call(act, boot),
                Some(_) | None => Err(IntentRefusal::Over),
            }
        };
        let (outcome, effects) = book.change(id, now, carry_out).ok_or(AgentRefusal::UnknownNode)?;
        if let Err(refusal) = outcome {
            self.settle(id, effects);
            return Err(self.refuse(&mut book, session, mac, address, AgentRefusal::Task(refusal), now));
        }
        let pending = self.settle_durably(id, effects);
        drop(book);
        if let Err(error) = pending.wait() {
            self.undo(id, now, |node| put_back(node, &before));
            return Err(error.into());
        }
        Ok(())
    }

    fn change_intent(
        &self,
        reference: &NodeRef,
        expected: &Expected,
        now: Timestamp,
        change: impl FnOnce(&mut Act<'_>) -> Result<(), InstallError>,
    ) -> Result<Node, InstallError> {
        let not_found = || OperatorError::NotFound { reference: reference.to_string() };
        let mut book = self.lock_at(now);
        let id = locate_expected(&book, reference, expected)?;
        let entry = book.get(id).ok_or_else(not_found)?;
        let (before, first_boot) = (entry.node.clone(), entry.first_boot.clone());
        let (outcome, effects) = book.change(id, now, change).ok_or_else(not_found)?;
        let node = book.view(id);
        if outcome.is_err() {
            // Nothing was changed yet when it was refused.
            self.settle(id, effects);
            outcome?;
            return node.ok_or_else(|| not_found().into());
        }
        let pending = self.settle_durably(id, effects);
        drop(book);
        if let Err(error) = pending.wait() {
            let mut book = self.lock_at(now);
            let _ = book.change(id, now, |act| {
                put_back(&mut act.entry.node, &before);
                act.entry.first_boot = first_boot;
            });
            drop(book);
            self.mark_unsaved(id);
            return Err(error.into());
        }
        node.ok_or_else(|| not_found().into())
    }
}

/// Who calls, with what.
#[derive(Clone, Copy, Debug)]
pub struct AgentCaller<'a> {
    pub session: &'a str,
    pub mac: MacAddr,
    pub address: Ipv4Addr,
    pub now: Timestamp,
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

fn random_identity() -> Option<(IntentId, IntentNonce)> {
    let (mut id, mut nonce) = ([0; 16], [0; IntentNonce::LEN]);
    getrandom::fill(&mut id).ok()?;
    getrandom::fill(&mut nonce).ok()?;
    Some((IntentId(uuid::Builder::from_random_bytes(id).into_uuid()), IntentNonce::from_bytes(nonce)))
}

/// In the same time wherever they differ.
fn same_text(one: &str, another: &str) -> bool {
    let differences = one.bytes().zip(another.bytes()).fold(0, |all, (a, b)| all | (a ^ b));
    one.len() == another.len() && differences == 0
}

/// What tells the two machines apart: a UUID or a serial number that both have.
fn differs(known: &Inventory, claimed: &Inventory) -> Option<String> {
    let (known, claimed) = (&known.system, &claimed.system);
    let other = |what: &str, one: Option<String>, another: Option<String>| {
        let (one, another) = (one?, another?);
        (one != another).then(|| format!("{what} {another} instead of {one}"))
    };
    let uuid = |id: &Option<uuid::Uuid>| id.map(|id| id.to_string());
    other("system UUID", uuid(&known.uuid), uuid(&claimed.uuid))
        .or_else(|| other("serial number", known.serial.clone(), claimed.serial.clone()))
}
