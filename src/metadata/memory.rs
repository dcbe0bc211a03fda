//! A source without a disk: the model the registry's own is held against, and what tests serve from.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::clock::Timestamp;
use crate::metadata::document::Document;
use crate::metadata::gate::{
    self, Answered, Grant, Phase, PhoneCall, PhoneRefusal, ReadRefusal, Reader, Secret,
};
use crate::metadata::source::MetadataSource;
use crate::net::MacAddr;

#[derive(Debug, Default)]
pub struct MemorySource {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    nodes: Vec<(Arc<Document>, Grant)>,
    calls: BTreeMap<MacAddr, Vec<PhoneCall>>,
    refusals: Vec<(MacAddr, &'static str)>,
    disk_is_full: bool,
}

impl MemorySource {
    /// A node; it replaces what was of the same ports.
    pub fn put(&self, document: Document, grant: Grant) {
        let mut state = self.lock();
        state.nodes.retain(|(_, known)| known.ports != grant.ports);
        state.nodes.push((Arc::new(document), grant));
    }

    pub fn set_phase(&self, mac: MacAddr, phase: Phase) {
        if let Some((_, grant)) = self.lock().of(mac) {
            grant.phase = phase;
        }
    }

    /// As the registry does once the node is active.
    pub fn forget_user_data(&self, mac: MacAddr) {
        if let Some((document, _)) = self.lock().of(mac) {
            Arc::make_mut(document).user_data = None;
        }
    }

    /// From now on nothing is noted.
    pub fn fill_disk(&self, full: bool) {
        self.lock().disk_is_full = full;
    }

    pub fn phase(&self, mac: MacAddr) -> Option<Phase> {
        self.lock().of(mac).map(|(_, grant)| grant.phase)
    }

    /// Calls that were taken, oldest first.
    pub fn calls(&self, mac: MacAddr) -> Vec<PhoneCall> {
        self.lock().calls.get(&mac).cloned().unwrap_or_default()
    }

    pub fn refusals(&self) -> Vec<(MacAddr, &'static str)> {
        self.lock().refusals.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn of(&mut self, mac: MacAddr) -> Option<&mut (Arc<Document>, Grant)> {
        self.nodes.iter_mut().find(|(_, grant)| grant.ports.contains(&mac))
    }
}

impl MetadataSource for MemorySource {
    fn grant(&self, mac: MacAddr, _now: Timestamp) -> Option<(Arc<Document>, Grant)> {
        self.lock().of(mac).map(|found| found.clone())
    }

    fn secret_read(
        &self,
        mac: MacAddr,
        secret: Secret,
        reader: Reader,
        now: Timestamp,
    ) -> Result<(), ReadRefusal> {
        let mut state = self.lock();
        let full = state.disk_is_full;
        let (_, grant) = state.of(mac).ok_or(ReadRefusal::NotFound)?;
        match grant.read(mac, secret, reader, now)? {
            Some(_) if full => Err(ReadRefusal::NotDurable),
            Some(reads) => {
                grant.reads = reads;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn phone_home(&self, mac: MacAddr, call: &PhoneCall, _now: Timestamp) -> Result<Answered, PhoneRefusal> {
        let mut state = self.lock();
        let full = state.disk_is_full;
        let (document, grant) = state.of(mac).ok_or(PhoneRefusal::NotAwaited)?;
        let answered = gate::phone_home(mac, document, grant, call)?;
        if full {
            return Err(PhoneRefusal::NotDurable);
        }
        grant.phase = Phase::Active;
        state.calls.entry(mac).or_default().push(call.clone());
        Ok(answered)
    }

    fn installer_done(
        &self,
        mac: MacAddr,
        call: &PhoneCall,
        _now: Timestamp,
    ) -> Result<Answered, PhoneRefusal> {
        let mut state = self.lock();
        let full = state.disk_is_full;
        let (document, grant) = state.of(mac).ok_or(PhoneRefusal::NotAwaited)?;
        let answered = gate::installer_done(mac, document, grant, call)?;
        if full {
            return Err(PhoneRefusal::NotDurable);
        }
        if answered == Answered::First {
            grant.phase = Phase::AwaitingFirstBoot;
        }
        Ok(answered)
    }

    fn refused(&self, mac: MacAddr, reason: &'static str, _now: Timestamp) {
        self.lock().refusals.push((mac, reason));
    }
}
