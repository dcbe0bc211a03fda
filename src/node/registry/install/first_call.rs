//! The installed system: what it is given, each secret once, and its first call.

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

    /// What is known of the system that was installed on the node with this port, if one was.
    pub fn installed(&self, mac: MacAddr) -> Option<SeedMaterial> {
        let book = self.lock();
        book.owner_of(mac).and_then(|id| book.get(id)).and_then(SeedMaterial::of)
    }

    /// Notes that this reader is given a secret. On disk before it returns.
    pub fn secret_read(
        &self,
        mac: MacAddr,
        secret: Secret,
        reader: Reader,
        now: Timestamp,
    ) -> Result<(), ReadRefusal> {
        let mut book = self.lock_at(now);
        let id = book.owner_of(mac).ok_or(ReadRefusal::NotFound)?;
        let mut unread = None;
        let read = |act: &mut Act<'_>| {
            let material = SeedMaterial::of(act.entry).ok_or(ReadRefusal::NotFound)?;
            if let Some(reads) = material.grant().read(mac, secret, reader, now)? {
                unread = Some(material.first_boot.clone());
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
        let mut book = self.lock_at(now);
        let id = book.owner_of(mac).ok_or(PhoneRefusal::NotAwaited)?;
        let before = book.get(id).map(|entry| entry.node.clone()).ok_or(PhoneRefusal::NotAwaited)?;
        let mut given = None;
        let call = |act: &mut Act<'_>| {
            let material = SeedMaterial::of(act.entry).ok_or(PhoneRefusal::NotAwaited)?;
            let answered = judge(&material)?;
            act.entry.node.last_seen_at = Some(now);
            let moved = act.intent_event(&IntentEvent::CalledHome).map_err(|_| PhoneRefusal::NotAwaited)?;
            if moved {
                act.note_install(InstallEvent::CalledHome { host_name: host_name.map(str::to_owned) });
                act.follow_intent("the installed system called");
                act.entry.node.next_boot = NextBoot::LocalDisk;
                // What it was given is on its disk by now; here it is only something to lose.
                given = Some(material.first_boot.clone());
                act.put_first_boot(Some(FirstBoot { user_data: None, ..material.first_boot }));
            }
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
