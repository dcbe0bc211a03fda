//! Questions to the wire that are under way, and the requests that wait for them.
//!
//! No thread waits: a request is put aside until its address answers or the wait is over, and everybody else is
//! served meanwhile.

use std::collections::{HashMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use crate::dhcp::server::{PROBE_WAIT, Received, Report, Service};
use crate::net::MacAddr;
use crate::net::arp::ArpProber;

/// A request put aside.
pub(super) struct Waiting {
    bytes: Vec<u8>,
    source: SocketAddrV4,
    destination: Ipv4Addr,
    service: Service,
    pub(super) report: Option<Report>,
}

impl Waiting {
    pub(super) fn received(&self) -> Received<'_> {
        let Waiting { bytes, source, destination, service, report: _ } = self;
        Received { bytes, source: *source, destination: *destination, service: *service }
    }
}

/// As many as the core asks at once, which is bounded there.
#[derive(Default)]
pub(super) struct Questions {
    /// All wait equally long: the first asked is the first over.
    asked: VecDeque<(Instant, Ipv4Addr)>,
    waiting: HashMap<Ipv4Addr, Waiting>,
}

impl Questions {
    pub(super) fn is_empty(&self) -> bool {
        self.asked.is_empty()
    }

    pub(super) fn ask(&mut self, arp: &ArpProber, own: MacAddr, addresses: &[Ipv4Addr]) {
        if addresses.is_empty() {
            return;
        }
        if self.asked.is_empty() {
            // What was said before nobody asked is no answer. The kernel's queue bounds it.
            while let Ok(Some(_)) = arp.receive() {}
        }
        arp.ask(own, addresses);
        let over = Instant::now() + PROBE_WAIT;
        self.asked.extend(addresses.iter().map(|address| (over, *address)));
    }

    /// A client that asks again replaces what it asked before.
    pub(super) fn hold(&mut self, address: Ipv4Addr, received: &Received<'_>, report: Option<Report>) {
        let Received { bytes, source, destination, service } = *received;
        let bytes = bytes.to_vec();
        self.waiting.insert(address, Waiting { bytes, source, destination, service, report });
    }

    pub(super) fn release(&mut self, address: Ipv4Addr) -> Option<Waiting> {
        self.waiting.remove(&address)
    }

    /// The next question whose wait is over.
    pub(super) fn next_over(&mut self, now: Instant) -> Option<Ipv4Addr> {
        let (over, address) = *self.asked.front()?;
        if over > now {
            return None;
        }
        self.asked.pop_front();
        Some(address)
    }

    /// How long the thread may sleep; a little more than to the end of the first wait.
    pub(super) fn due_in(&self) -> Option<Duration> {
        let (over, _) = self.asked.front()?;
        Some(over.saturating_duration_since(Instant::now()) + Duration::from_millis(1))
    }
}
