//! Operators' wishes: deploy, clean, rescue; abort, unrescue, release. Each is on disk before it returns.

use crate::boot::decision::NextBoot;
use crate::clock::Timestamp;
use crate::node::Node;
use crate::node::install::event::InstallEvent;
use crate::node::install::first_boot::{FirstBoot, FirstBootError};
use crate::node::install::intent::{Intent, IntentEvent, IntentId, IntentNonce, Phase, Verb};
use crate::node::install::{first_boot, intent};
use crate::node::registry::edit::Expected;
use crate::node::registry::entry::Act;
use crate::node::registry::install::{Work, put_back};
use crate::node::registry::operator::locate_expected;
use crate::node::registry::{NodeRef, OperatorError, Registry};
use crate::node::state::{Order, ProvisionState};
use crate::store::CommitError;

/// What an operator wants done.
#[derive(Clone, Debug)]
pub struct InstallRequest {
    pub work: intent::Work,
    /// For the installed system.
    pub ssh_keys: Vec<String>,
    pub user_data: Option<String>,
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
        let (ssh_keys, user_data) = first_boot::check(&request.ssh_keys, request.user_data)?;
        let (id, nonce) = random_identity().ok_or(InstallError::NoRandomness)?;
        let verb = request.work.verb();
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
            if node.has_open_task() {
                let _ = act.intent_event(&IntentEvent::Aborted);
            }
            let node = &mut act.entry.node;
            let generation = node.intent.as_ref().map_or(0, |intent| intent.generation) + 1;
            let (image, installer) = match &request.work {
                intent::Work::Deploy(deployment) => (Some(deployment.image.clone()), None),
                intent::Work::Installer { profile } => (None, Some(profile.to_string())),
                intent::Work::Clean { .. } | intent::Work::Rescue { .. } => (None, None),
            };
            if installer.is_some() {
                // An agent that waits there cannot do it, but it can make room.
                node.order = Some(Order::Reboot);
            }
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
                    reads: Default::default(),
                };
                act.put_first_boot(Some(first_boot));
            }
            act.note_install(InstallEvent::Wanted { verb, image, installer });
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
            // What the system that runs was given stays: a rescue is not about that.
            if !rescue {
                act.put_first_boot(None);
            }
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
            if act.entry.node.has_open_task() {
                let _ = act.intent_event(&IntentEvent::Aborted);
            }
            act.entry.node.next_boot = NextBoot::Ramdisk;
            act.put_first_boot(None);
            act.note_install(InstallEvent::Released);
            act.set_state(ProvisionState::Available, "released by an operator");
            Ok(())
        })
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

fn random_identity() -> Option<(IntentId, IntentNonce)> {
    let (mut id, mut nonce) = ([0; 16], [0; IntentNonce::LEN]);
    getrandom::fill(&mut id).ok()?;
    getrandom::fill(&mut nonce).ok()?;
    Some((IntentId(uuid::Builder::from_random_bytes(id).into_uuid()), IntentNonce::from_bytes(nonce)))
}
