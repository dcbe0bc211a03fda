//! The agent's side of a task: begin, progress, done; what it reads. `begin` and `done` are on disk before they return.

use std::net::Ipv4Addr;

use crate::boot::decision::NextBoot;
use crate::clock::Timestamp;
use crate::image::digest::Digest;
use crate::net::MacAddr;
use crate::node::install::event::InstallEvent;
use crate::node::install::intent::{IntentEvent, IntentId, IntentRefusal, Phase, Verb, Work};
use crate::node::install::task::{Progress, Report, TargetDisk, prove};
use crate::node::registry::Registry;
use crate::node::registry::agent::AgentRefusal;
use crate::node::registry::entry::Act;
use crate::node::registry::install::first_call::SeedMaterial;
use crate::node::registry::install::put_back;
use crate::node::timeline::{Happening, TimelineEvent};
use crate::node::token::is_same_secret;

/// Who calls, with what.
#[derive(Clone, Copy, Debug)]
pub struct AgentCaller<'a> {
    pub session: &'a str,
    pub mac: MacAddr,
    pub address: Ipv4Addr,
    pub now: Timestamp,
}

impl Registry {
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
            if !is_same_secret(&expected, &report.signature) {
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
                Some(current) if current.id == intent && matches!(current.work, Work::Installer { .. }) => {
                    Err(IntentRefusal::NotPartOfIt)
                }
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
}
