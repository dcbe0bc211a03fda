//! What becomes of leases when the server starts again: nobody knows how long it was down, nor whether the clock by which
//! it stored them was set since.
//!
//! ```text
//!   stored   ├── lease ──────────│───────────┤
//!                                │ last ACK of all          now
//!   from now on                  └───── not counted ─────────├───────────┤ what was left of it then
//! ```
//!
//! A machine uses an address for as long as it was granted, whatever our clock says. So the time between the last ACK and
//! the start is not counted, whether it seems long (in truth, or because the clock was put forward) or negative (it was set
//! back): what was left of a lease at that ACK is left of it now. Machines that are there renew it; who is gone loses its
//! address after that, one period later at most. After a long time without us a full pool turns newcomers away for so
//! long: that is the price, since the other mistake is an address in use twice.
//!
//! The new times are stored with whatever is stored first ([`Carried`]), before any lease by the new clock is: so the
//! stored times are always by one clock, also when it is set again.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::dhcp::lease::table::LeaseTable;
use crate::dhcp::lease::{Binding, BindingState};
use crate::store::Change;

/// How long it takes at most until it is known whether a commit failed.
const COMMIT_KNOWN: Duration = Duration::from_secs(300);

/// A machine renews in the middle of its lease, and what it loses of its end does not hurt: not worth storing them all anew.
const COUNTED_MAX: Duration = Duration::from_secs(60);
const COUNTED_PART: u32 = 100;

/// The bindings whose times have to be others by this clock, with those.
pub fn set_to_clock(bindings: &[Binding], period: Duration, now: Timestamp) -> Vec<Binding> {
    let latest = bindings.iter().map(|binding| binding.granted_at).max().unwrap_or(now);
    let (forward, back) = (now.since(latest), latest.since(now));
    if forward.max(back) <= COUNTED_MAX.min(period / COUNTED_PART) {
        return Vec::new();
    }
    let moved = |at: Timestamp| at.plus(forward).minus(back);
    let lasted = |binding: &&Binding| binding.state == BindingState::Bound && binding.expires_at > latest;
    // What had ended by then is over, and quarantine passes without us; unless all of it is in the future now.
    let lasting = bindings.iter().filter(|binding| !back.is_zero() || lasted(binding));
    lasting
        .map(|binding| Binding {
            granted_at: moved(binding.granted_at),
            expires_at: moved(binding.expires_at),
            ..binding.clone()
        })
        .collect()
}

/// Whose bindings have new times that are not stored yet.
#[derive(Debug, Default)]
pub struct Carried {
    waiting: Vec<Ipv4Addr>,
    riding: Option<Riding>,
}

/// Given out to be stored, which may fail.
#[derive(Debug)]
struct Riding {
    since: Timestamp,
    whose: Vec<Ipv4Addr>,
    /// Tells the changes they are among.
    first: Change,
}

impl Carried {
    pub fn new(bindings: &[Binding]) -> Carried {
        Carried { waiting: bindings.iter().map(|binding| binding.address).collect(), riding: None }
    }

    /// How many have not been given out to be stored.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whatever is stored first takes them along, in front of itself. They are told as the table has them: what a failed
    /// commit left of something newer is by the new clock as well.
    pub fn ride_with(&mut self, changes: &mut Vec<Change>, table: &LeaseTable, now: Timestamp) {
        self.riding.take_if(|riding| now.since(riding.since) > COMMIT_KNOWN);
        if self.waiting.is_empty() || changes.is_empty() {
            return;
        }
        let whose = std::mem::take(&mut self.waiting);
        let bindings = whose.iter().filter_map(|address| table.binding_at(*address).cloned());
        changes.splice(0..0, bindings.map(Change::PutBinding));
        self.riding = changes.first().cloned().map(|first| Riding { since: now, whose, first });
    }

    /// These could not be stored: if they were among them, they wait for the next.
    pub fn missed(&mut self, changes: &[Change]) {
        if let Some(riding) = self.riding.take_if(|riding| changes.contains(&riding.first)) {
            self.waiting = riding.whose;
        }
    }
}
