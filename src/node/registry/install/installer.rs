//! A distribution's installer as the deploy kernel: who is told to start it, and what it may fetch.
//!
//! `Begun` is on disk before any loader is told of the installer's kernel; who asks before that asks again. What is
//! asked comes from threads that may not wait, so nothing here does: the store says when it has written. Memory moves at
//! once and stays moved if the disk fails: the record is written again before anybody is told anything, and a crash in
//! between finds an intent that nobody was told of.
//!
//! A boot is what the timeline shows as one, named by the time it began. If the appliance lost that in a crash, the boot
//! is another to it, and the installer's start is lost rather than repeated.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::boot::decision::ScriptPlan;
use crate::boot::profile::ProfileName;
use crate::clock::Timestamp;
use crate::metadata::gate::Secret;
use crate::net::MacAddr;
use crate::node::install::event::InstallEvent;
use crate::node::install::intent::{IntentEvent, Phase, Start};
use crate::node::registry::Registry;
use crate::node::registry::agent::AgentRefusal;
use crate::node::registry::entry::{Act, Entry};
use crate::node::state::Order;
use crate::node::timeline::Happening;
use crate::node::{Node, NodeId};
use crate::store::{Change, CommitError};

/// What an operator is told whose machine lost its installer.
const STARTED_ANEW: &str = "the machine netbooted again before its installer said that it is done, and an installer is started once for each wish: what is on its disk is not to be relied on. See its console and its boot order, then `farrier node deploy` again";

/// What a loader is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstallerStart {
    /// It may be told of the installer's kernel: that is on disk.
    Ready,
    /// Not yet: ask again once the store has written.
    NotYet,
    /// Nothing of an installer: there is none to be started, or it was lost with that.
    No,
    /// There is none to be started yet: the profile is not there.
    Waits,
    /// Nothing at all: the machine whose installer runs is behind another port of the bridge.
    Elsewhere,
}

/// The boot whose `Begun` is on disk, or on its way; the store's thread writes here. Goes with its intent.
#[derive(Clone, Debug, Default)]
pub(super) struct Begun(Arc<Mutex<Option<(Timestamp, bool)>>>);

impl Begun {
    /// Whether this boot's is on disk; nothing if it is not even on its way.
    fn of(&self, boot: Timestamp) -> Option<bool> {
        self.lock().filter(|(of, _)| *of == boot).map(|(_, durable)| durable)
    }

    fn set(&self, begun: Option<(Timestamp, bool)>) {
        *self.lock() = begun;
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Timestamp, bool)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// Whether the installer was given its answers.
    fn answered(&self) -> bool {
        self.first_boot.as_ref().is_some_and(|it| it.reads.has(Secret::Installer))
    }

    /// Whether what the timeline shows now is the boot that runs the task.
    pub(super) fn is_in_its_boot(&self) -> bool {
        let boot = self.history.current_since();
        self.node.intent.as_ref().is_some_and(|intent| boot.is_some_and(|boot| intent.is_run_by(boot)))
    }
}

impl Registry {
    /// A loader of this machine, at this address, asks by this `name` what to boot, and an installer is wanted. `there`:
    /// its profile can be served. `settled` is called when whoever was told [`InstallerStart::NotYet`] may ask again.
    pub fn start_installer(
        &self,
        mac: MacAddr,
        address: Ipv4Addr,
        name: &str,
        there: bool,
        settled: impl Fn() + Send + 'static,
        now: Timestamp,
    ) -> InstallerStart {
        let port = self.port_of(mac);
        let mut book = self.lock_at(now);
        let Some(id) = book.owner_of(mac) else { return InstallerStart::No };
        let Some(entry) = book.get(id).filter(|entry| book.lets_in(entry)) else { return InstallerStart::No };
        let Some(intent) = &entry.node.intent else { return InstallerStart::No };
        let start = intent.start(entry.history.current_since(), entry.answered());
        match start {
            Start::Never => return InstallerStart::No,
            Start::Begin | Start::Again if !there => return InstallerStart::Waits,
            Start::Begin | Start::Again | Start::Lost => {}
        }
        if self.is_elsewhere(entry, mac, port, now) {
            let _told = self.refuse(&mut book, "", mac, address, AgentRefusal::WrongPort, now);
            return InstallerStart::Elsewhere;
        }
        let deadline = book.settings().installer_deadline;
        let begin = |act: &mut Act<'_>| {
            act.entry.token_until = Some(now.plus(deadline));
            act.entry.token_port = port.map(|port| (mac, port));
            match start {
                Start::Begin => act.begin_installer(name),
                Start::Lost => {
                    act.lose_installer();
                    None
                }
                Start::Again | Start::Never => act.entry.history.current_since(),
            }
        };
        let Some((boot, effects)) = book.change(id, now, begin) else { return InstallerStart::No };
        let (mut changes, events) = (effects.changes, effects.events);
        self.announce(events);
        let Some(boot) = boot else {
            self.submit_for(id, changes);
            return InstallerStart::No;
        };
        let Some(entry) = book.get(id) else { return InstallerStart::No };
        let begun = entry.work.begun.clone();
        let told = |durable| if durable { InstallerStart::Ready } else { InstallerStart::NotYet };
        if let Some(durable) = begun.of(boot) {
            self.submit_for(id, changes);
            return told(durable);
        }
        // Also if it was begun before: what this run of the appliance has not seen reach the disk may not be there.
        if start != Start::Begin {
            changes.push(Change::PutNode(Box::new(entry.node.clone())));
        }
        self.submit_start(id, boot, changes, begun.clone(), settled);
        told(begun.of(boot) == Some(true))
    }

    /// Called with the book locked, so that order is kept.
    fn submit_start(
        &self,
        id: NodeId,
        boot: Timestamp,
        changes: Vec<Change>,
        begun: Begun,
        settled: impl Fn() + Send + 'static,
    ) {
        begun.set(Some((boot, false)));
        let unsaved = Arc::clone(&self.unsaved);
        let when_durable = move |result: Result<(), CommitError>| {
            match result {
                Ok(()) => begun.set(Some((boot, true))),
                Err(error) => {
                    tracing::warn!(node = %id, reason = %error, "the start of an installer is not on disk, so it is not started");
                    begun.set(None);
                    unsaved.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
                }
            }
            settled();
        };
        self.store.submit(changes, Box::new(when_durable));
    }

    /// The installer cannot be started by this machine: the task fails before it began.
    pub fn installer_unfit(&self, mac: MacAddr, reason: &str, now: Timestamp) {
        let mut book = self.lock_at(now);
        let Some(id) = book.owner_of(mac) else { return };
        let fail = |act: &mut Act<'_>| {
            let waits = act.entry.node.intent.as_ref().is_some_and(|it| it.phase == Phase::Waiting);
            if waits {
                act.fail_installer(reason, "the machine cannot start the installer");
            }
        };
        if let Some(((), effects)) = book.change(id, now, fail) {
            self.settle(id, effects);
        }
    }

    /// Whether this machine may fetch the files of a boot profile because it starts its installer.
    pub fn installs_by(&self, mac: MacAddr, profile: &ProfileName) -> bool {
        let book = self.lock();
        let entry = book.owner_of(mac).and_then(|id| book.get(id));
        entry.is_some_and(|entry| entry.node.installer() == Some(profile) && entry.is_in_its_boot())
    }

    /// A node whose installer comes out of this profile, and is not through.
    pub fn who_installs_by(&self, profile: &ProfileName) -> Option<Node> {
        let book = self.lock();
        let mut ids = book.ids_with_open_intent().into_iter();
        ids.find_map(|id| book.view(id).filter(|node| node.installer() == Some(profile)))
    }
}

impl Act<'_> {
    /// The boot that begins.
    fn begin_installer(&mut self, name: &str) -> Option<Timestamp> {
        if self.entry.history.current_since().is_none() {
            // Nothing was heard of this boot before its script.
            let plan = ScriptPlan::Installer;
            self.note(Happening::Script { name: name.to_owned(), plan, token_issued_at: None });
        }
        let boot = self.entry.history.current_since()?;
        self.intent_event(&IntentEvent::Begun { boot, disks: Vec::new() }).ok()?;
        let profile = self.entry.node.installer().map(ToString::to_string).unwrap_or_default();
        self.note_install(InstallEvent::InstallerStarted { profile });
        // It did boot again; whoever ordered that has what he wanted.
        self.entry.node.order = self.entry.node.order.filter(|order| *order != Order::Reboot);
        self.follow_intent("its installer is started");
        Some(boot)
    }

    fn lose_installer(&mut self) {
        self.fail_installer(STARTED_ANEW, "the machine netbooted again");
    }

    fn fail_installer(&mut self, reason: &str, cause: &str) {
        let event = IntentEvent::Failed { reason: reason.to_owned() };
        if let Ok(true) = self.intent_event(&event) {
            self.note_install(InstallEvent::Failed { reason: reason.to_owned() });
            self.follow_intent(cause);
            self.entry.node.failure = Some(reason.to_owned());
            // Nobody is told of it any more; so it is only something to lose.
            self.put_first_boot(None);
        }
    }
}
