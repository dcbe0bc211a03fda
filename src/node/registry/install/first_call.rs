//! The installed system: what it is given, each secret once, and its first call; before that, the installer that makes it.

use crate::boot::decision::NextBoot;
use crate::clock::Timestamp;
use crate::metadata::gate::{self, Answered, Grant, PhoneRefusal, ReadRefusal, Reader, Secret};
use crate::net::MacAddr;
use crate::node::Node;
use crate::node::install::event::InstallEvent;
use crate::node::install::first_boot::FirstBoot;
use crate::node::install::intent::{Intent, IntentEvent, Phase};
use crate::node::registry::Registry;
use crate::node::registry::entry::{Act, Entry};
use crate::node::registry::install::put_back;

/// What an installed system's document is made of.
#[derive(Clone, Debug)]
pub struct SeedMaterial {
    pub node: Node,
    pub intent: Intent,
    pub first_boot: FirstBoot,
}

impl SeedMaterial {
    fn of(entry: &Entry) -> Option<SeedMaterial> {
        let intent = entry.node.intent.as_deref()?.clone();
        let first_boot = entry.first_boot.clone().filter(|it| it.intent == intent.id)?;
        Some(SeedMaterial { node: entry.node.clone(), intent, first_boot })
    }

    /// Who may read it now.
    pub fn grant(&self) -> Grant {
        Grant {
            intent: self.intent.id,
            ports: self.node.ports.iter().map(|port| port.mac).collect(),
            phase: match self.intent.phase {
                Phase::Running { .. } if self.intent.installer().is_some() => gate::Phase::Installing,
                Phase::Written { .. } => gate::Phase::AwaitingFirstBoot,
                Phase::Done { .. } => gate::Phase::Active,
                Phase::Waiting | Phase::Running { .. } | Phase::Failed { .. } | Phase::Aborted { .. } => {
                    gate::Phase::None
                }
            },
            reads: self.first_boot.reads.clone(),
        }
    }
}

impl Registry {
    pub(super) fn material(&self, entry: &Entry) -> Option<SeedMaterial> {
        SeedMaterial::of(entry)
    }

    /// What is known of the system that was, or is being, installed on the node with this port. Of one that is being
    /// installed, nothing but to the boot that does it, behind the port it was started behind.
    pub fn installed(&self, mac: MacAddr, now: Timestamp) -> Option<SeedMaterial> {
        let port = self.port_of(mac);
        let book = self.lock();
        let entry = book.owner_of(mac).and_then(|id| book.get(id))?;
        self.admitted(entry, mac, port, now)
    }

    fn admitted(
        &self,
        entry: &Entry,
        mac: MacAddr,
        port: Option<u32>,
        now: Timestamp,
    ) -> Option<SeedMaterial> {
        let material = SeedMaterial::of(entry)?;
        let elsewhere = || !entry.is_in_its_boot() || self.is_elsewhere(entry, mac, port, now);
        match material.grant().phase {
            gate::Phase::Installing if elsewhere() => None,
            _ => Some(material),
        }
    }

    /// Notes that this reader is given a secret. On disk before it returns.
    pub fn secret_read(
        &self,
        mac: MacAddr,
        secret: Secret,
        reader: Reader,
        now: Timestamp,
    ) -> Result<(), ReadRefusal> {
        let port = self.port_of(mac);
        let mut book = self.lock_at(now);
        let id = book.owner_of(mac).ok_or(ReadRefusal::NotFound)?;
        let material = book.get(id).and_then(|entry| self.admitted(entry, mac, port, now));
        let material = material.ok_or(ReadRefusal::NotFound)?;
        let mut unread = None;
        let read = |act: &mut Act<'_>| {
            if let Some(reads) = material.grant().read(mac, secret, reader, now)? {
                unread = Some(material.first_boot.clone());
                if secret == Secret::Installer {
                    act.note_install(InstallEvent::AnswersRead);
                }
                act.put_first_boot(Some(FirstBoot { reads, ..material.first_boot }));
            }
            Ok(())
        };
        let (outcome, effects) = book.change(id, now, read).ok_or(ReadRefusal::NotFound)?;
        let pending = self.settle_durably(id, effects);
        drop(book);
        if pending.wait().is_err() {
            // Noted in memory only, it would be given to this reader at its next try, and after a restart to another.
            let mut book = self.lock_at(now);
            let _ = book.change(id, now, |act| act.entry.first_boot = unread.or(act.entry.first_boot.take()));
            return Err(ReadRefusal::NotDurable);
        }
        outcome
    }

    /// The installed system calls for the first time, or again because the answer was lost. `judge` says whether it is
    /// the one. On disk before it returns.
    pub fn call_home(
        &self,
        mac: MacAddr,
        host_name: Option<&str>,
        judge: impl FnOnce(&SeedMaterial) -> Result<Answered, PhoneRefusal>,
        now: Timestamp,
    ) -> Result<Answered, PhoneRefusal> {
        self.take_call(mac, judge, now, |act, material| {
            if act.intent_event(&IntentEvent::CalledHome).map_err(|_| PhoneRefusal::NotAwaited)? {
                act.note_install(InstallEvent::CalledHome { host_name: host_name.map(str::to_owned) });
                act.follow_intent("the installed system called");
                act.entry.node.next_boot = NextBoot::LocalDisk;
                // What it was given is on its disk by now; here it is only something to lose.
                act.put_first_boot(Some(FirstBoot { user_data: None, ..material.first_boot }));
            }
            Ok(())
        })
    }

    /// An installer says that it is done, or again because the answer was lost. On disk before it returns.
    pub fn installer_done(
        &self,
        mac: MacAddr,
        host_name: Option<&str>,
        judge: impl FnOnce(&SeedMaterial) -> Result<Answered, PhoneRefusal>,
        now: Timestamp,
    ) -> Result<Answered, PhoneRefusal> {
        self.take_call(mac, judge, now, |act, material| {
            let (Phase::Running { boot, .. } | Phase::Written { boot, .. } | Phase::Done { boot, .. }) =
                material.intent.phase
            else {
                return Err(PhoneRefusal::NotAwaited);
            };
            let reported = IntentEvent::Reported { boot };
            if act.intent_event(&reported).map_err(|_| PhoneRefusal::NotAwaited)? {
                act.note_install(InstallEvent::InstallerReported { host_name: host_name.map(str::to_owned) });
                act.entry.node.next_boot = NextBoot::LocalDisk;
                act.follow_intent("its installer says that it is done");
            }
            Ok(())
        })
    }

    /// A call with the intent's token: judged, carried out, on disk before it returns, and taken back if it cannot be.
    fn take_call(
        &self,
        mac: MacAddr,
        judge: impl FnOnce(&SeedMaterial) -> Result<Answered, PhoneRefusal>,
        now: Timestamp,
        carry_out: impl FnOnce(&mut Act<'_>, SeedMaterial) -> Result<(), PhoneRefusal>,
    ) -> Result<Answered, PhoneRefusal> {
        let port = self.port_of(mac);
        let mut book = self.lock_at(now);
        let id = book.owner_of(mac).ok_or(PhoneRefusal::NotAwaited)?;
        let material = book.get(id).and_then(|entry| self.admitted(entry, mac, port, now));
        let material = material.ok_or(PhoneRefusal::NotAwaited)?;
        let before = book.get(id).map(|entry| entry.node.clone()).ok_or(PhoneRefusal::NotAwaited)?;
        let mut given = None;
        let call = |act: &mut Act<'_>| {
            let answered = judge(&material)?;
            act.entry.node.last_seen_at = Some(now);
            given = Some(material.first_boot.clone());
            carry_out(act, material)?;
            Ok(answered)
        };
        let (outcome, effects) = book.change(id, now, call).ok_or(PhoneRefusal::NotAwaited)?;
        let pending = self.settle_durably(id, effects);
        drop(book);
        if pending.wait().is_err() {
            self.undo(id, now, |node| put_back(node, &before));
            let mut book = self.lock_at(now);
            // It will call again, and may have to read again before it does.
            let _ = book.change(id, now, |act| act.entry.first_boot = given.or(act.entry.first_boot.take()));
            return Err(PhoneRefusal::NotDurable);
        }
        outcome
    }
}
