//! Boot clients that were answered and are no nodes yet.
//!
//! A DISCOVER costs its sender nothing: who sends a thousand under made-up MACs must not fill the registry. A stranger
//! becomes a node when it goes on, with a REQUEST that is granted or a file it fetches; what it did until then waits
//! here, so that its timeline begins where its boot began. Nothing here is stored.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::boot::client::Client;
use crate::clock::Timestamp;
use crate::net::MacAddr;
use crate::node::timeline::Happening;

/// Strangers that wait at once: those of 10 000 machines switched on together that are between OFFER and REQUEST;
/// about 5 MB.
pub const WAITING_MAX: usize = 4096;
/// Happenings kept of each: a PXE ROM sends four DISCOVERs before it gives up.
pub const WAITING_HAPPENINGS_MAX: usize = 4;
/// As long as an offer stands.
pub const WAITING_LIFETIME: Duration = Duration::from_secs(120);

#[derive(Default)]
pub(super) struct WaitingRoom {
    strangers: BTreeMap<MacAddr, Stranger>,
    by_age: BTreeSet<(Timestamp, MacAddr)>,
}

pub(super) struct Stranger {
    pub(super) client: Client,
    answered_at: Timestamp,
    /// Oldest first.
    pub(super) happenings: VecDeque<(Timestamp, Happening)>,
}

impl WaitingRoom {
    /// A stranger got an answer; who was answered longest ago makes room for it.
    pub(super) fn answered(&mut self, client: &Client, now: Timestamp) {
        self.expire(now);
        let before = self.take(client.mac, now);
        if self.strangers.len() >= WAITING_MAX
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.strangers.remove(&oldest);
        }
        let happenings = before.map(|stranger| stranger.happenings).unwrap_or_default();
        self.by_age.insert((now, client.mac));
        self.strangers.insert(client.mac, Stranger { client: client.clone(), answered_at: now, happenings });
    }

    /// Keeps what happened, if the stranger waits here; its oldest happening makes room.
    pub(super) fn note(&mut self, mac: MacAddr, happening: Happening, now: Timestamp) {
        self.expire(now);
        let Some(stranger) = self.strangers.get_mut(&mac) else { return };
        if stranger.happenings.len() >= WAITING_HAPPENINGS_MAX {
            stranger.happenings.pop_front();
        }
        stranger.happenings.push_back((now, happening.bounded()));
    }

    pub(super) fn take(&mut self, mac: MacAddr, now: Timestamp) -> Option<Stranger> {
        self.expire(now);
        let stranger = self.strangers.remove(&mac)?;
        self.by_age.remove(&(stranger.answered_at, mac));
        Some(stranger)
    }

    pub(super) fn has(&mut self, mac: MacAddr, now: Timestamp) -> bool {
        self.expire(now);
        self.strangers.contains_key(&mac)
    }

    fn expire(&mut self, now: Timestamp) {
        while let Some((at, mac)) = self.by_age.first().copied()
            && now.since(at) > WAITING_LIFETIME
        {
            self.by_age.remove(&(at, mac));
            self.strangers.remove(&mac);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.strangers.len()
    }
}
