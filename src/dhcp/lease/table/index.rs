//! The order of claims and of free addresses, and the counters: what makes every step of the table cheap.

use std::net::Ipv4Addr;

use crate::clock::Timestamp;
use crate::dhcp::lease::table::{LeaseTable, Slot};
use crate::dhcp::lease::{BindingState, OFFER_HOLD, OFFER_HOLD_MIN};

/// Ended claims moved to `free` per message: more than one message can create, so that a backlog shrinks, and few
/// enough that thousands of leases ending in one instant do not hold up a reply.
pub(super) const EXPIRE_BATCH: usize = 256;
/// Free addresses looked at for one client before giving up until it asks again; those skipped are reserved.
const CANDIDATES_MAX: usize = 1024;

/// Claims looked at for an offer to recall; the oldest are first, and in a flood nearly all are such.
const RECALLS_MAX: usize = 64;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Index {
    #[default]
    None,
    Claim(Timestamp),
    Free(Timestamp),
}

/// What a slot adds to `PoolUse`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Counted {
    #[default]
    Nothing,
    Offered {
        newcomer: bool,
    },
    Bound,
    Quarantined,
}

impl LeaseTable {
    /// Moves claims whose end has come to the free addresses, some at a time. Returns whether more are waiting.
    pub fn expire(&mut self, now: Timestamp) -> bool {
        for _ in 0..EXPIRE_BATCH {
            if !self.expire_one(now) {
                return false;
            }
        }
        true
    }

    fn expire_one(&mut self, now: Timestamp) -> bool {
        match self.claims.first() {
            Some(&(end, address)) if end <= now => {
                self.reindex(address, now);
                true
            }
            Some(_) | None => false,
        }
    }

    /// When the next claim ends.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.claims.first().map(|(end, _)| *end)
    }

    /// Takes the oldest offer to a newcomer back that is of a wanted address, if it has stood for [`OFFER_HOLD_MIN`]: when
    /// there is no more to be had, those who did not come for their address make room for those who ask.
    pub fn recall_newcomer(&mut self, now: Timestamp, wanted: impl Fn(Ipv4Addr) -> bool) -> Option<Ipv4Addr> {
        let recallable = now.plus(OFFER_HOLD.saturating_sub(OFFER_HOLD_MIN));
        let candidates = self.claims.iter().take_while(|(end, _)| *end <= recallable).take(RECALLS_MAX);
        let mut newcomers = candidates.filter(|(_, address)| {
            let slot = self.slots.get(address);
            slot.is_some_and(|slot| slot.counted == Counted::Offered { newcomer: true }) && wanted(*address)
        });
        let &(_, address) = newcomers.next()?;
        let key = self.slots.get(&address)?.offer.as_ref()?.key.clone();
        self.withdraw_offer(&key, now);
        Some(address)
    }

    /// A free address of the pool that `usable` accepts: one never used, else the one free for longest.
    pub fn find_free(
        &mut self,
        now: Timestamp,
        mut usable: impl FnMut(Ipv4Addr) -> bool,
    ) -> Option<Ipv4Addr> {
        let mut candidates = CANDIDATES_MAX;
        while let Some(address) = self.next_fresh() {
            if usable(address) {
                return Some(address);
            }
            // Reserved, or our own: it waits among the free ones, should that ever change.
            self.slots.insert(address, Slot::default());
            self.reindex(address, now);
            candidates = candidates.checked_sub(1)?;
        }
        loop {
            let mut skipped = Vec::new();
            let mut found = None;
            for &(since, address) in self.free.iter().take(candidates) {
                if usable(address) {
                    found = Some(address);
                    break;
                }
                skipped.push((since, address));
            }
            candidates -= skipped.len();
            for (since, address) in skipped {
                // To the end of the line, so that the next client does not meet it again.
                self.free.remove(&(since, address));
                self.free.insert((now, address));
                if let Some(slot) = self.slots.get_mut(&address) {
                    slot.index = Index::Free(now);
                }
            }
            if found.is_some() || candidates == 0 || !self.expire_one(now) {
                return found;
            }
        }
    }

    /// The addresses [`LeaseTable::find_free`] would look at next, at most so many; nothing is moved.
    pub fn next_free(&self, count: usize) -> impl Iterator<Item = Ipv4Addr> {
        let (first, last) = (self.fresh, u32::from(self.pool.last));
        let fresh = first.into_iter().flat_map(move |first| u32::from(first)..=last).map(Ipv4Addr::from);
        // Those that have a slot were stepped over, or will be: they are among the free ones or claimed.
        let untouched = fresh.take(count).filter(|address| !self.slots.contains_key(address));
        untouched.chain(self.free.iter().map(|(_, address)| *address)).take(count)
    }

    /// Steps over addresses that have a slot; each is passed once in the life of the table.
    fn next_fresh(&mut self) -> Option<Ipv4Addr> {
        while let Some(address) = self.fresh {
            if !self.slots.contains_key(&address) {
                return Some(address);
            }
            self.fresh = (address < self.pool.last)
                .then(|| u32::from(address).checked_add(1).map(Ipv4Addr::from))
                .flatten();
        }
        None
    }

    /// Puts a slot where its times say it belongs. The only place that touches the indexes and the counters, but for
    /// the rotation in `find_free`.
    pub(super) fn reindex(&mut self, address: Ipv4Addr, now: Timestamp) {
        let in_pool = self.in_pool(address);
        let Some(slot) = self.slots.get_mut(&address) else { return };
        let bound_until = slot.binding.as_ref().map(|binding| binding.expires_at).unwrap_or_default();
        let offered_until = slot.offer.as_ref().map(|offer| offer.until).unwrap_or_default();
        let vacated_until = slot.vacated.as_ref().map(|(_, until)| *until).unwrap_or_default();
        let end = bound_until.max(offered_until).max(vacated_until);
        let lapsed = slot.offer.take_if(|offer| offer.until <= now);
        slot.vacated.take_if(|(_, until)| *until <= now);
        let index = if end > now {
            Index::Claim(end)
        } else if in_pool {
            Index::Free(if end == Timestamp::default() { now } else { end })
        } else {
            Index::None
        };
        let counted = match (&slot.binding, &slot.offer) {
            (Some(binding), _) if bound_until > now => match binding.state {
                BindingState::Bound => Counted::Bound,
                BindingState::Quarantined => Counted::Quarantined,
                BindingState::Released => Counted::Nothing,
            },
            (_, Some(offer)) => Counted::Offered { newcomer: offer.newcomer },
            (_, None) => Counted::Nothing,
        };
        let before =
            (std::mem::replace(&mut slot.index, index), std::mem::replace(&mut slot.counted, counted));
        let vacant = slot.binding.is_none() && slot.offer.is_none() && slot.vacated.is_none();
        if before.0 != index {
            self.move_index(address, before.0, index);
        }
        // An address outside the pool is on record only while there is something to record.
        if vacant && !in_pool {
            self.slots.remove(&address);
        }
        self.count(before.1, in_pool, -1);
        self.count(counted, in_pool, 1);
        if let Some(offer) = lapsed
            && self.clients.get(&offer.key).is_some_and(|places| places.offered == Some(address))
        {
            self.set_offered(&offer.key, None);
        }
    }

    fn move_index(&mut self, address: Ipv4Addr, from: Index, to: Index) {
        match from {
            Index::None => {}
            Index::Claim(at) => drop(self.claims.remove(&(at, address))),
            Index::Free(at) => drop(self.free.remove(&(at, address))),
        }
        match to {
            Index::None => {}
            Index::Claim(at) => drop(self.claims.insert((at, address))),
            Index::Free(at) => drop(self.free.insert((at, address))),
        }
    }

    fn count(&mut self, counted: Counted, in_pool: bool, step: i32) {
        if !in_pool {
            return;
        }
        let counter = match counted {
            Counted::Nothing => return,
            Counted::Offered { newcomer } => {
                if newcomer {
                    self.newcomers = self.newcomers.saturating_add_signed(step);
                }
                &mut self.usage.offered
            }
            Counted::Bound => &mut self.usage.bound,
            Counted::Quarantined => &mut self.usage.quarantined,
        };
        *counter = counter.saturating_add_signed(step);
    }
}
