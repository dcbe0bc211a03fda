//! Which client has which address, and which addresses are free; every step in constant or logarithmic time.
//!
//! ```text
//!             offered                bound, quarantined
//!   free ───────────────> claimed ────────────────────────> claimed
//!    ^                       │  its end has come, or given back │
//!    └───────────────────────┴──────────────────────────────────┘
//! ```
//!
//! A [`Slot`] exists for each address that was ever offered or bound. A slot is *claimed* until the later of its
//! offer's and its binding's end, and stands in `claims`, ordered by that end; when the end has come it moves to
//! `free`, ordered by how long it has been free, so that the address given to a newcomer is the one whose last client
//! has been away longest. Addresses never touched are not stored at all: `fresh` is the first of them. No message
//! scans the pool.
//!
//! Whether a claim stands is always decided by its time, never by the index it is found in; the indexes may lag.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;

use crate::clock::Timestamp;
use crate::config::PoolRange;
use crate::dhcp::lease::{
    Binding, BindingState, ClientKey, LeaseState, LeaseView, OFFER_HOLD, PoolUse, QUARANTINE,
};
use crate::net::MacAddr;
use crate::store::Change;

/// Ended claims moved to `free` per message: more than one message can create, so that a backlog shrinks, and few
/// enough that thousands of leases ending in one instant do not hold up a reply.
const EXPIRE_BATCH: usize = 256;
/// Free addresses looked at for one client before giving up until it asks again; those skipped are reserved.
const CANDIDATES_MAX: usize = 1024;

#[derive(Debug)]
pub struct LeaseTable {
    pool: PoolRange,
    slots: HashMap<Ipv4Addr, Slot>,
    clients: HashMap<ClientKey, Places>,
    /// Claimed slots by the end of their claim.
    claims: BTreeSet<(Timestamp, Ipv4Addr)>,
    /// Slots of the pool without a claim, by the time they became free.
    free: BTreeSet<(Timestamp, Ipv4Addr)>,
    /// All addresses of the pool from here on have no slot, or one that is in an index; `None` past the end.
    fresh: Option<Ipv4Addr>,
    usage: PoolUse,
    newcomers: u32,
}

#[derive(Debug, Default)]
struct Slot {
    binding: Option<Binding>,
    offer: Option<Offer>,
    /// Where the client stood before the binding's last change: it may hold an ACK for this long (see `forget`).
    acknowledged_until: Timestamp,
    index: Index,
    counted: Counted,
}

#[derive(Clone, Debug)]
struct Offer {
    key: ClientKey,
    mac: MacAddr,
    until: Timestamp,
    /// Made to a client of which nothing was known.
    newcomer: bool,
}

/// The addresses of one client. They differ only while it moves from one to the other.
#[derive(Debug, Default)]
struct Places {
    bound: Option<Ipv4Addr>,
    offered: Option<Ipv4Addr>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Index {
    #[default]
    None,
    Claim(Timestamp),
    Free(Timestamp),
}

/// What a slot adds to [`PoolUse`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Counted {
    #[default]
    Nothing,
    Offered {
        newcomer: bool,
    },
    Bound,
    Quarantined,
}

/// Whether a client may have an address, as far as other clients are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Availability {
    /// Its own, by a live binding or offer.
    Own,
    /// Nobody's.
    Free,
    /// Another client's.
    Taken,
    /// Withheld after a DECLINE.
    Quarantined,
}

impl LeaseTable {
    pub fn new(pool: PoolRange, bindings: Vec<Binding>, now: Timestamp) -> LeaseTable {
        let mut table = LeaseTable {
            pool,
            slots: HashMap::with_capacity(bindings.len()),
            clients: HashMap::with_capacity(bindings.len()),
            claims: BTreeSet::new(),
            free: BTreeSet::new(),
            fresh: Some(pool.first),
            usage: PoolUse::default(),
            newcomers: 0,
        };
        for binding in bindings {
            table.load(binding);
        }
        table.set_pool(pool, now);
        table
    }

    fn load(&mut self, binding: Binding) {
        let address = binding.address;
        if binding.state != BindingState::Quarantined {
            let places = self.clients.entry(binding.key.clone()).or_default();
            // A crash may leave two records of one client; the newer one is where it is.
            let newer = match places.bound.and_then(|other| self.slots.get(&other)?.binding.as_ref()) {
                Some(other) => other.granted_at < binding.granted_at,
                None => true,
            };
            if newer {
                places.bound = Some(address);
            }
        }
        let acknowledged_until = binding.expires_at;
        self.slots.insert(address, Slot { binding: Some(binding), acknowledged_until, ..Slot::default() });
    }

    /// Takes a new pool; bindings stay on record wherever they are.
    pub fn set_pool(&mut self, pool: PoolRange, now: Timestamp) {
        self.pool = pool;
        self.fresh = Some(pool.first);
        self.claims.clear();
        self.free.clear();
        self.newcomers = 0;
        let size = u32::from(pool.last).saturating_sub(u32::from(pool.first)).saturating_add(1);
        self.usage = PoolUse { size, ..PoolUse::default() };
        let addresses: Vec<Ipv4Addr> = self.slots.keys().copied().collect();
        for address in addresses {
            if let Some(slot) = self.slots.get_mut(&address) {
                slot.index = Index::None;
                slot.counted = Counted::Nothing;
            }
            self.reindex(address, now);
        }
    }

    pub fn in_pool(&self, address: Ipv4Addr) -> bool {
        (self.pool.first..=self.pool.last).contains(&address)
    }

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

    /// The client's binding, live or ended.
    pub fn binding(&self, key: &ClientKey) -> Option<&Binding> {
        let address = self.clients.get(key)?.bound?;
        self.slots.get(&address)?.binding.as_ref()
    }

    /// The client's live binding.
    pub fn live_binding(&self, key: &ClientKey, now: Timestamp) -> Option<&Binding> {
        self.binding(key).filter(|binding| binding.state == BindingState::Bound && binding.expires_at > now)
    }

    /// The address held for the client by a live offer.
    pub fn offered(&self, key: &ClientKey, now: Timestamp) -> Option<Ipv4Addr> {
        let address = self.clients.get(key)?.offered?;
        let offer = self.slots.get(&address)?.offer.as_ref()?;
        (offer.until > now && offer.key == *key).then_some(address)
    }

    pub fn availability(&self, address: Ipv4Addr, key: &ClientKey, now: Timestamp) -> Availability {
        let Some(slot) = self.slots.get(&address) else { return Availability::Free };
        let owned = |owner: &ClientKey| if owner == key { Availability::Own } else { Availability::Taken };
        if let Some(offer) = slot.offer.as_ref().filter(|offer| offer.until > now) {
            return owned(&offer.key);
        }
        match slot.binding.as_ref().filter(|binding| binding.expires_at > now) {
            Some(binding) => match binding.state {
                BindingState::Bound => owned(&binding.key),
                BindingState::Quarantined => Availability::Quarantined,
                BindingState::Released => Availability::Free,
            },
            None => Availability::Free,
        }
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

    /// Offers made to newcomers that still stand.
    pub fn newcomers(&self) -> u32 {
        self.newcomers
    }

    /// Promises an address, which the caller has found available to this client, until `OFFER_HOLD` from now.
    pub fn offer(
        &mut self,
        address: Ipv4Addr,
        key: &ClientKey,
        mac: MacAddr,
        newcomer: bool,
        now: Timestamp,
    ) {
        // Another's offer may have lapsed here unnoticed.
        self.reindex(address, now);
        let earlier = self.clients.entry(key.clone()).or_default().offered.replace(address);
        let mut newcomer = newcomer;
        if let Some(earlier) = earlier {
            let offer = self.slots.get_mut(&earlier).and_then(|slot| slot.offer.take_if(|it| it.key == *key));
            // It stays a newcomer until it requests, however often it asks.
            newcomer |= offer.is_some_and(|offer| offer.newcomer && offer.until > now);
            if earlier != address {
                self.reindex(earlier, now);
            }
        }
        let until = now.plus(OFFER_HOLD);
        let slot = self.slots.entry(address).or_default();
        slot.offer = Some(Offer { key: key.clone(), mac, until, newcomer });
        self.reindex(address, now);
    }

    /// Takes the client's offer back: it chose another server.
    pub fn withdraw_offer(&mut self, key: &ClientKey, now: Timestamp) {
        let Some(address) = self.clients.get(key).and_then(|places| places.offered) else { return };
        if let Some(slot) = self.slots.get_mut(&address) {
            slot.offer.take_if(|offer| offer.key == *key);
        }
        self.set_offered(key, None);
        self.reindex(address, now);
    }

    /// Keeps an offer alive that a client uses without ever having requested it.
    pub fn keep_offer(&mut self, address: Ipv4Addr, now: Timestamp) {
        let Some(offer) = self.slots.get_mut(&address).and_then(|slot| slot.offer.as_mut()) else { return };
        if offer.until > now {
            offer.until = now.plus(OFFER_HOLD);
            self.reindex(address, now);
        }
    }

    /// Grants an address, which the caller has found available to this client. The changes must be durable before
    /// the client hears of it.
    pub fn bind(&mut self, binding: Binding, now: Timestamp) -> Vec<Change> {
        let mut changes = Vec::with_capacity(1);
        let (address, key) = (binding.address, binding.key.clone());
        self.withdraw_offer(&key, now);
        let places = self.clients.entry(key.clone()).or_default();
        if let Some(earlier) = places.bound.replace(address).filter(|earlier| *earlier != address) {
            if let Some(slot) = self.slots.get_mut(&earlier)
                && slot.binding.take_if(|binding| binding.key == key).is_some()
            {
                changes.push(Change::DropBinding { address: earlier });
            }
            self.reindex(earlier, now);
        }
        let slot = self.slots.entry(address).or_default();
        slot.acknowledged_until = Timestamp::default();
        if let Some(previous) = slot.binding.take() {
            if previous.key == key {
                slot.acknowledged_until = previous.expires_at;
            } else if previous.state != BindingState::Quarantined {
                self.clear_bound(&previous.key, address);
            }
        }
        changes.push(Change::PutBinding(binding.clone()));
        self.slots.entry(address).or_default().binding = Some(binding);
        self.reindex(address, now);
        changes
    }

    /// Ends a client's live binding at its own wish; the address stays its first choice.
    pub fn release(&mut self, key: &ClientKey, now: Timestamp) -> Option<Change> {
        let address = self.live_binding(key, now)?.address;
        let binding = self.slots.get_mut(&address)?.binding.as_mut()?;
        binding.state = BindingState::Released;
        binding.expires_at = now;
        let change = Change::PutBinding(binding.clone());
        self.reindex(address, now);
        Some(change)
    }

    /// Withholds an address that its client found in use.
    pub fn quarantine(&mut self, address: Ipv4Addr, key: &ClientKey, mac: MacAddr, now: Timestamp) -> Change {
        self.withdraw_offer(key, now);
        if let Some(previous) = self.slots.get_mut(&address).and_then(|slot| slot.binding.take()) {
            self.clear_bound(&previous.key, address);
        }
        let binding = Binding {
            address,
            key: key.clone(),
            mac,
            client_id: None,
            hostname: None,
            state: BindingState::Quarantined,
            granted_at: now,
            expires_at: now.plus(QUARANTINE),
        };
        self.slots.entry(address).or_default().binding = Some(binding.clone());
        self.reindex(address, now);
        Change::PutBinding(binding)
    }

    /// Shortens grants whose commit failed: the client was never told of them.
    ///
    /// Nothing else needs undoing. What memory holds beyond the disk only keeps addresses from others, and a client
    /// that asks again is granted and committed again. But its earlier ACK, if any, still stands, so the binding is
    /// cut back to that, or to the time an offer would wait for another try. Bindings changed since are left alone.
    pub fn forget(&mut self, changes: &[Change], now: Timestamp) {
        for change in changes {
            let Change::PutBinding(lost) = change else { continue };
            let Some(slot) = self.slots.get_mut(&lost.address) else { continue };
            let acknowledged_until = slot.acknowledged_until;
            if let Some(binding) = slot.binding.as_mut().filter(|binding| *binding == lost)
                && binding.state == BindingState::Bound
            {
                let until = acknowledged_until.max(now.plus(OFFER_HOLD));
                binding.expires_at = binding.expires_at.min(until);
                self.reindex(lost.address, now);
            }
        }
    }

    /// All bindings and standing offers, by address.
    pub fn views(&self) -> Vec<LeaseView> {
        let mut views: Vec<LeaseView> = self
            .slots
            .iter()
            .filter_map(|(address, slot)| match (&slot.offer, &slot.binding) {
                // An offer over a live binding is a client starting over; the binding says more.
                (_, Some(binding)) if slot.counted == Counted::Bound => Some(view_of(binding)),
                (Some(offer), _) => Some(LeaseView {
                    address: *address,
                    mac: offer.mac,
                    hostname: None,
                    client_id: None,
                    state: LeaseState::Offered,
                    granted_at: None,
                    expires_at: offer.until,
                }),
                (None, Some(binding)) => Some(view_of(binding)),
                (None, None) => None,
            })
            .collect();
        views.sort_unstable_by_key(|view| view.address);
        views
    }

    pub fn pool_use(&self) -> PoolUse {
        self.usage
    }

    fn set_offered(&mut self, key: &ClientKey, offered: Option<Ipv4Addr>) {
        if let Some(places) = self.clients.get_mut(key) {
            places.offered = offered;
            if places.bound.is_none() && places.offered.is_none() {
                self.clients.remove(key);
            }
        }
    }

    fn clear_bound(&mut self, key: &ClientKey, address: Ipv4Addr) {
        if let Some(places) = self.clients.get_mut(key) {
            if places.bound == Some(address) {
                places.bound = None;
            }
            if places.bound.is_none() && places.offered.is_none() {
                self.clients.remove(key);
            }
        }
    }

    /// Puts a slot where its times say it belongs. The only place that touches the indexes and the counters, but for
    /// the rotation in `find_free`.
    fn reindex(&mut self, address: Ipv4Addr, now: Timestamp) {
        let in_pool = self.in_pool(address);
        let Some(slot) = self.slots.get_mut(&address) else { return };
        let lapsed = slot.offer.take_if(|offer| offer.until <= now);
        let bound_until = slot.binding.as_ref().map(|binding| binding.expires_at).unwrap_or_default();
        let end = slot.offer.as_ref().map_or(bound_until, |offer| offer.until.max(bound_until));
        let index = if end > now {
            Index::Claim(end)
        } else if in_pool {
            let ended = lapsed.as_ref().map_or(bound_until, |offer| offer.until.max(bound_until));
            Index::Free(if ended == Timestamp::default() { now } else { ended })
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
        let vacant = slot.binding.is_none() && slot.offer.is_none();
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

fn view_of(binding: &Binding) -> LeaseView {
    LeaseView {
        address: binding.address,
        mac: binding.mac,
        hostname: binding.hostname.clone(),
        client_id: binding.client_id.clone(),
        state: match binding.state {
            BindingState::Bound => LeaseState::Bound,
            BindingState::Released => LeaseState::Released,
            BindingState::Quarantined => LeaseState::Quarantined,
        },
        granted_at: Some(binding.granted_at),
        expires_at: binding.expires_at,
    }
}

#[cfg(test)]
mod tests;
