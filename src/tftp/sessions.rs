//! The live transfers: found by slot, by peer and by deadline.
//!
//! A slot is used again after its transfer ended, with a new generation, so that an event or a deadline that was
//! meant for the previous one finds nothing. Deadlines move with every packet; the heap is told only when one moves
//! forward, and a session whose time has not come when its entry surfaces is put back.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::net::SocketAddrV4;
use std::time::Instant;

use crate::tftp::session::Session;

/// Peers remembered after their session: what a rack leaves on the wire in the moment it takes to arrive.
const DEPARTED_MAX: usize = 256;

/// Names one session, once and for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionKey {
    slot: u32,
    generation: u32,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    session: Option<Session>,
}

#[derive(Default)]
pub struct Sessions {
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_peer: HashMap<SocketAddrV4, SessionKey>,
    deadlines: BinaryHeap<Reverse<(Instant, SessionKey)>>,
    /// Peers whose sessions have ended, the latest last.
    departed: VecDeque<SocketAddrV4>,
}

impl Sessions {
    fn next_key(&self) -> SessionKey {
        match self.free.last() {
            Some(&slot) => SessionKey { slot, generation: self.slots[slot as usize].generation },
            None => SessionKey { slot: self.slots.len() as u32, generation: 0 },
        }
    }

    /// A peer has one session; the caller has removed the previous one.
    pub fn insert(&mut self, session: Session) {
        let key = self.next_key();
        if self.free.pop().is_none() {
            self.slots.push(Slot::default());
        }
        self.by_peer.insert(session.peer(), key);
        self.slots[key.slot as usize].session = Some(session);
        self.arm(key);
    }

    pub fn remove(&mut self, key: SessionKey) -> Option<Session> {
        let slot = self.slots.get_mut(key.slot as usize).filter(|slot| slot.generation == key.generation)?;
        let session = slot.session.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(key.slot);
        self.by_peer.remove(&session.peer());
        if self.departed.len() >= DEPARTED_MAX {
            self.departed.pop_front();
        }
        self.departed.push_back(session.peer());
        Some(session)
    }

    /// Whether a session with this peer has ended lately.
    pub fn has_departed(&self, peer: SocketAddrV4) -> bool {
        self.departed.contains(&peer)
    }

    pub fn len(&self) -> usize {
        self.by_peer.len()
    }

    pub fn get_mut(&mut self, key: SessionKey) -> Option<&mut Session> {
        let slot = self.slots.get_mut(key.slot as usize)?;
        slot.session.as_mut().filter(|_| slot.generation == key.generation)
    }

    pub fn find(&self, peer: SocketAddrV4) -> Option<SessionKey> {
        self.by_peer.get(&peer).copied()
    }

    pub fn keys(&self) -> Vec<SessionKey> {
        self.by_peer.values().copied().collect()
    }

    /// Makes sure that [`Self::due`] names the session when its deadline passes.
    pub fn arm(&mut self, key: SessionKey) {
        let Some(session) = self.get_mut(key) else { return };
        let Some(deadline) = session.transfer().next_deadline() else { return };
        if session.armed_at.is_none_or(|armed_at| deadline < armed_at) {
            session.armed_at = Some(deadline);
            self.deadlines.push(Reverse((deadline, key)));
        }
    }

    /// The earliest moment at which [`Self::due`] may have something.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.peek().map(|Reverse((deadline, _))| *deadline)
    }

    /// Takes the next session whose deadline has passed; to be armed again by the caller.
    pub fn due(&mut self, now: Instant) -> Option<SessionKey> {
        loop {
            let &Reverse((deadline, key)) = self.deadlines.peek()?;
            if deadline > now {
                return None;
            }
            self.deadlines.pop();
            let Some(session) = self.get_mut(key).filter(|session| session.armed_at == Some(deadline)) else {
                continue;
            };
            session.armed_at = None;
            if session.transfer().next_deadline().is_some_and(|deadline| deadline <= now) {
                return Some(key);
            }
            self.arm(key);
        }
    }
}
