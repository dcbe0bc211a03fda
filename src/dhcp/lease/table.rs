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
use crate::dhcp::lease::table::index::{Counted, Index};
use crate::dhcp::lease::{
    Binding, BindingState, ClientKey, LeaseState, LeaseView, OFFER_HOLD, PoolUse, QUARANTINE,
};
use crate::net::MacAddr;
use crate::store::{Change, LeaseChange};

mod index;

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
    /// The live binding of a client that has moved elsewhere, and until when the address still waits for it: should the
    /// commit of the move fail, its earlier ACK stands (see `forget`).
    vacated: Option<(Binding, Timestamp)>,
    /// Where the client stood before the binding's last change: it may hold an ACK for this long (see `forget`).
    acknowledged_until: Timestamp,
    promised: Promised,
    index: Index,
    counted: Counted,
}

/// Ends of the last bindings of one client at one address, newest first. Those whose commit failed are taken out again,
/// and commits end in the order they were begun: so what is older than the one that just failed is on disk.
#[derive(Clone, Copy, Debug, Default)]
struct Promised([Option<Timestamp>; Promised::DEPTH]);

impl Promised {
    /// As many repeats of one request may be under way at once; beyond it the oldest is forgotten, and with it what could
    /// still be said while the disk is full.
    const DEPTH: usize = 4;

    fn push(&mut self, until: Timestamp) {
        self.0.rotate_right(1);
        self.0[0] = Some(until);
    }

    /// Takes out what was not stored, and gives what was before it.
    fn take_back(&mut self, until: Timestamp) -> Option<Timestamp> {
        let place = self.0.iter().rposition(|promised| *promised == Some(until))?;
        self.0[place..].rotate_left(1);
        self.0[Promised::DEPTH - 1] = None;
        self.0[place]
    }
}

/// What a client was acknowledged and the disk still has, though the extension it asked for could not be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StillStored {
    pub address: Ipv4Addr,
    pub mac: MacAddr,
    pub until: Timestamp,
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
        let mut promised = Promised::default();
        if binding.state == BindingState::Bound {
            promised.push(binding.expires_at);
        }
        let slot = Slot { binding: Some(binding), acknowledged_until, promised, ..Slot::default() };
        self.slots.insert(address, slot);
    }

    /// Takes other times for a binding that was loaded: the clock was set. They are not on disk yet.
    pub fn carry_over(&mut self, binding: &Binding, now: Timestamp) {
        let Some(slot) = self.slots.get_mut(&binding.address) else { return };
        slot.promised = Promised::default();
        if let Some(stored) = slot.binding.replace(binding.clone())
            && stored.state == BindingState::Bound
        {
            slot.promised.push(stored.expires_at.min(binding.expires_at));
        }
        slot.acknowledged_until = binding.expires_at;
        self.reindex(binding.address, now);
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

    /// The client's binding, live or ended.
    pub fn binding(&self, key: &ClientKey) -> Option<&Binding> {
        let address = self.clients.get(key)?.bound?;
        self.slots.get(&address)?.binding.as_ref()
    }

    /// The client's live binding.
    pub fn live_binding(&self, key: &ClientKey, now: Timestamp) -> Option<&Binding> {
        self.binding(key).filter(|binding| binding.is_live(now))
    }

    /// The address held for the client by a live offer.
    pub fn offered(&self, key: &ClientKey, now: Timestamp) -> Option<Ipv4Addr> {
        let address = self.clients.get(key)?.offered?;
        let offer = self.slots.get(&address)?.offer.as_ref()?;
        (offer.until > now && offer.key == *key).then_some(address)
    }

    /// What is on record for this address.
    pub fn binding_at(&self, address: Ipv4Addr) -> Option<&Binding> {
        self.slots.get(&address)?.binding.as_ref()
    }

    #[cfg(test)]
    pub(crate) fn bindings(&self) -> impl Iterator<Item = &Binding> {
        self.slots.values().filter_map(|slot| slot.binding.as_ref())
    }

    pub fn availability(&self, address: Ipv4Addr, key: &ClientKey, now: Timestamp) -> Availability {
        let Some(slot) = self.slots.get(&address) else { return Availability::Free };
        let owned = |owner: &ClientKey| if owner == key { Availability::Own } else { Availability::Taken };
        if let Some(offer) = slot.offer.as_ref().filter(|offer| offer.until > now) {
            return owned(&offer.key);
        }
        if let Some((vacated, _)) = slot.vacated.as_ref().filter(|(_, until)| *until > now) {
            return owned(&vacated.key);
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

    /// Keeps an offer alive that a client uses without ever having requested it. Who is at work is no newcomer any more:
    /// a flood of strangers shall not take its address away.
    pub fn keep_offer(&mut self, address: Ipv4Addr, now: Timestamp) {
        let Some(offer) = self.slots.get_mut(&address).and_then(|slot| slot.offer.as_mut()) else { return };
        if offer.until > now {
            offer.until = now.plus(OFFER_HOLD);
            offer.newcomer = false;
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
                && let Some(left) = slot.binding.take_if(|binding| binding.key == key)
            {
                changes.push(Change::DropBinding { address: earlier });
                let until = left.expires_at.min(now.plus(OFFER_HOLD));
                slot.vacated = (left.state == BindingState::Bound).then_some((left, until));
            }
            self.reindex(earlier, now);
        }
        let slot = self.slots.entry(address).or_default();
        slot.acknowledged_until = Timestamp::default();
        slot.vacated = None;
        let previous = slot.binding.take();
        if previous.as_ref().is_none_or(|previous| previous.key != key) {
            slot.promised = Promised::default();
        }
        if let Some(previous) = previous {
            if previous.key == key {
                slot.acknowledged_until = previous.expires_at;
            } else if previous.state != BindingState::Quarantined {
                self.clear_bound(&previous.key, address);
            }
        }
        let slot = self.slots.entry(address).or_default();
        slot.promised.push(binding.expires_at);
        changes.push(Change::PutBinding(binding.clone()));
        slot.binding = Some(binding);
        self.reindex(address, now);
        changes
    }

    /// Ends a client's live binding at its own wish; the address stays its first choice.
    pub fn release(&mut self, key: &ClientKey, now: Timestamp) -> Option<Change> {
        let address = self.live_binding(key, now)?.address;
        let slot = self.slots.get_mut(&address)?;
        slot.promised = Promised::default();
        let binding = slot.binding.as_mut()?;
        binding.state = BindingState::Released;
        binding.expires_at = now;
        let change = Change::PutBinding(binding.clone());
        self.reindex(address, now);
        Some(change)
    }

    /// Ends a client's binding at this address, and forgets that there was one.
    pub fn part(&mut self, key: &ClientKey, address: Ipv4Addr, now: Timestamp) -> Option<Change> {
        self.binding(key).filter(|binding| binding.address == address)?;
        let slot = self.slots.get_mut(&address)?;
        slot.promised = Promised::default();
        slot.binding = None;
        self.clear_bound(key, address);
        self.reindex(address, now);
        Some(Change::DropBinding { address })
    }

    /// Withholds an address that its client found in use.
    pub fn quarantine(&mut self, address: Ipv4Addr, key: &ClientKey, mac: MacAddr, now: Timestamp) -> Change {
        // An offer of another address is left alone.
        if self.offered(key, now) == Some(address) {
            self.withdraw_offer(key, now);
        }
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
        let slot = self.slots.entry(address).or_default();
        slot.vacated = None;
        slot.promised = Promised::default();
        slot.binding = Some(binding.clone());
        self.reindex(address, now);
        Change::PutBinding(binding)
    }

    /// Shortens grants whose commit failed: the client was never told of them.
    ///
    /// Nothing else needs undoing. What memory holds beyond the disk only keeps addresses from others, and a client
    /// that asks again is granted and committed again. But its earlier ACK, if any, still stands, so the binding is
    /// cut back to that, or to the time an offer would wait for another try. Bindings changed since are left alone.
    pub fn forget(&mut self, changes: &[Change], now: Timestamp) -> Vec<StillStored> {
        let mut still_stored = Vec::new();
        for change in changes {
            match change.of_lease() {
                Some(LeaseChange::Put(lost)) => {
                    still_stored.extend(self.still_stored(lost, now));
                    self.shorten(lost, now);
                }
                Some(LeaseChange::Drop(address)) => self.move_back(address, now),
                None => {}
            }
        }
        still_stored
    }

    fn still_stored(&mut self, lost: &Binding, now: Timestamp) -> Option<StillStored> {
        let slot = self.slots.get_mut(&lost.address)?;
        let until = slot.promised.take_back(lost.expires_at)?;
        let holder = slot.binding.as_ref()?;
        let holds = holder.state == BindingState::Bound && holder.key == lost.key && until > now;
        holds.then_some(StillStored { address: lost.address, mac: lost.mac, until })
    }

    fn shorten(&mut self, lost: &Binding, now: Timestamp) {
        let Some(slot) = self.slots.get_mut(&lost.address) else { return };
        let until = slot.acknowledged_until.max(now.plus(OFFER_HOLD));
        if let Some(binding) = slot.binding.as_mut().filter(|binding| *binding == lost)
            && binding.state == BindingState::Bound
        {
            binding.expires_at = binding.expires_at.min(until);
            self.reindex(lost.address, now);
        }
    }

    fn move_back(&mut self, address: Ipv4Addr, now: Timestamp) {
        let Some(slot) = self.slots.get_mut(&address) else { return };
        let Some((binding, _)) = slot.vacated.take_if(|(_, until)| *until > now) else { return };
        self.clients.entry(binding.key.clone()).or_default().bound = Some(address);
        slot.binding = Some(binding);
        // The disk refused, and may have dropped it all the same.
        slot.promised = Promised::default();
        self.reindex(address, now);
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

    /// Addresses of the pool that are bound, offered or withheld now, each with the MAC that has it so.
    pub fn in_use(&self, now: Timestamp) -> Vec<(Ipv4Addr, MacAddr)> {
        let holder = |slot: &Slot| {
            let bound = slot.binding.as_ref().filter(|binding| binding.expires_at > now);
            let offered = || slot.offer.as_ref().filter(|offer| offer.until > now);
            bound.map(|binding| binding.mac).or_else(|| offered().map(|offer| offer.mac))
        };
        let slots = self.slots.iter().filter(|(address, _)| self.in_pool(**address));
        slots.filter_map(|(address, slot)| Some((*address, holder(slot)?))).collect()
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
