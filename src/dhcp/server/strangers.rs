//! What machines may take that nobody registered and that never called home, `[dhcp.strangers]`.
//!
//! Anybody on the bridge can be as many machines as he likes. Whatever he makes up, a part of the pool, and of our time,
//! is left to those we know: strangers hold so many addresses at most, all together and behind one port, and ask so often.
//! Who calls home (its agent redeems a boot token) or is registered is a stranger no more, and its address not counted.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use crate::boot::decision::Standing;
use crate::clock::Timestamp;
use crate::config::StrangerLimits;
use crate::dhcp::server::{Directory, Silence};
use crate::net::MacAddr;

/// A pool of a few dozen addresses would otherwise turn away a rack that is switched on.
const STRANGERS_MIN: u32 = 16;
/// Of what strangers may hold, the part that may be offered and not yet taken: a flood of made-up MACs, which takes
/// nothing, leaves the rest to strangers that are machines.
const OFFERED_PART: u32 = 4;
/// Counting anew who still holds what looks at the whole table: not oftener than this, however many are turned away.
const RECOUNT_EVERY: Duration = Duration::from_secs(1);
/// DISCOVERs of one MAC in [`ASKING_WINDOW`]; the hastiest firmware sends four.
const ASKS_MAX: u32 = 20;
const ASKING_WINDOW: Duration = Duration::from_secs(10);
/// MACs whose asking is counted at once; who makes up more than these is held by the other limits.
const ASKERS_MAX: usize = 8192;

/// An address in a stranger's hands, or in those of one that was none when last counted.
#[derive(Clone, Copy, Debug)]
struct Held {
    mac: MacAddr,
    /// The bridge port it asked from, if ports are counted.
    port: Option<u32>,
}

#[derive(Debug, Default)]
pub(super) struct Strangers {
    held: HashMap<Ipv4Addr, Held>,
    recounted_at: Option<Timestamp>,
    /// The second that is being counted, and DISCOVERs answered in it.
    second: (u64, u32),
    asking: HashMap<MacAddr, u32>,
    asking_since: Timestamp,
}

/// Whether operators or its own agent vouch for it.
pub(super) fn is_stranger(standing: &Standing) -> bool {
    match standing {
        Standing::Stranger => true,
        Standing::Known(node) => !node.proven && node.reserved.is_none(),
    }
}

/// How many addresses strangers may hold, all together.
fn held_max(limits: &StrangerLimits, pool_size: u32) -> u32 {
    let share = u64::from(pool_size) * u64::from(limits.share) / 100;
    u32::try_from(share).unwrap_or(u32::MAX).max(STRANGERS_MIN)
}

/// How many of them by offers that they have not taken yet.
pub(super) fn offered_max(limits: &StrangerLimits, pool_size: u32) -> u32 {
    (held_max(limits, pool_size).min(pool_size) / OFFERED_PART).max(1)
}

impl Strangers {
    /// Whether a stranger's DISCOVER is worth a look: neither it nor all of them ask too often.
    pub(super) fn may_ask(
        &mut self,
        mac: MacAddr,
        limits: &StrangerLimits,
        now: Timestamp,
    ) -> Result<(), Silence> {
        if now.since(self.asking_since) >= ASKING_WINDOW || now < self.asking_since {
            self.asking.clear();
            self.asking_since = now;
        }
        if self.asking.len() < ASKERS_MAX || self.asking.contains_key(&mac) {
            let asked = self.asking.entry(mac).or_default();
            *asked = asked.saturating_add(1);
            if *asked > ASKS_MAX {
                return Err(Silence::AsksTooOften);
            }
        }
        let second = now.as_millis() / 1000;
        if self.second.0 != second {
            self.second = (second, 0);
        }
        if self.second.1 >= limits.per_second {
            return Err(Silence::StrangerRate);
        }
        self.second.1 += 1;
        Ok(())
    }

    /// Whether a stranger may have one more address.
    pub(super) fn may_have(
        &mut self,
        (mac, pool_size): (MacAddr, u32),
        limits: &StrangerLimits,
        in_use: impl Fn() -> Vec<(Ipv4Addr, MacAddr)>,
        directory: &dyn Directory,
        now: Timestamp,
    ) -> Result<(), Silence> {
        let most = held_max(limits, pool_size) as usize;
        let port = limits.per_port.and_then(|_| directory.behind(mac));
        let refused = |strangers: &Strangers| {
            let behind =
                || strangers.held.values().filter(|held| held.port == port && held.mac != mac).count();
            // First: who has filled a port makes room behind that one, not behind another's.
            if limits.per_port.is_some_and(|most| port.is_some() && behind() >= most as usize) {
                return Some(Silence::PortLimit);
            }
            (strangers.held.len() >= most).then_some(Silence::StrangerLimit)
        };
        let counted = self.recounted_at.is_some();
        if counted && refused(self).is_none() {
            return Ok(());
        }
        let due = self.recounted_at.is_none_or(|at| now.since(at) >= RECOUNT_EVERY || now < at);
        if due {
            self.recounted_at = Some(now);
            let before = std::mem::take(&mut self.held);
            for (address, mac) in in_use() {
                if is_stranger(&directory.standing(mac, now)) {
                    let known =
                        before.get(&address).filter(|held| held.mac == mac).and_then(|held| held.port);
                    let port = known.or_else(|| limits.per_port.and_then(|_| directory.behind(mac)));
                    self.held.insert(address, Held { mac, port });
                }
            }
        }
        refused(self).map_or(Ok(()), Err)
    }

    /// A stranger was promised this address.
    pub(super) fn took(
        &mut self,
        address: Ipv4Addr,
        mac: MacAddr,
        limits: &StrangerLimits,
        directory: &dyn Directory,
    ) {
        let port = limits.per_port.and_then(|_| directory.behind(mac));
        self.held.insert(address, Held { mac, port });
    }

    /// Whether a stranger is known to hold it.
    pub(super) fn holds(&self, address: Ipv4Addr) -> bool {
        self.held.contains_key(&address)
    }

    /// Whether one behind this port of the bridge does.
    pub(super) fn holds_behind(&self, address: Ipv4Addr, port: Option<u32>) -> bool {
        port.is_some() && self.held.get(&address).is_some_and(|held| held.port == port)
    }

    /// Nobody holds it any more, or somebody we know.
    pub(super) fn left(&mut self, address: Ipv4Addr) {
        self.held.remove(&address);
    }
}
