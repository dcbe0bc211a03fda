//! The guard: who else answers on the bridge.
//!
//! Two DHCP servers on one segment are the commonest reason why machines do not boot, and the hardest to see: each works,
//! and whose offer is quicker decides. So the bridge is listened to, and asked.
//!
//! ```text
//!  frames from port 67 ──┐
//!  router advertisements ┼─ sighting ─► Heard ─► Rivals (hear, probed, expire) ─► News ─► log, counters, status, hold
//!  REQUESTs for others ──┘                         ▲
//!  DISCOVER of our own, every minute ── probe ─────┘ and its answers
//! ```
//!
//! - `rivals`: who is there and since when, as a function of what was heard and asked (pure)
//! - `sighting`: a frame → what was heard (pure)
//! - `probe`: the DISCOVER and the router solicitation we ask with, and when (pure)
//! - `process`: which process of this host it is, and which line of which file mends it
//! - `network`: sockets and the thread
//!
//! All of it rests on what anybody on the bridge may send. A forged OFFER raises the alarm, and with
//! `dhcp.on_rival = "hold"` it stops service: that is what "hold" asks for. What a mere client says (a REQUEST that
//! names another server) raises the alarm and never holds.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::clock::Timestamp;
use crate::config::OnRival;
use crate::dhcp::wire;
use crate::net::MacAddr;

pub mod network;
pub mod probe;
pub mod process;
pub mod rivals;
pub mod sighting;

use rivals::{Evidence, Heard, Kind, Rival, Rivals};

/// What the guard knows, shared by its thread, the DHCP thread and the operator plane.
#[derive(Debug, Default)]
pub struct Guard {
    /// The MAC our own DISCOVERs come from.
    probe: Option<MacAddr>,
    rivals: Mutex<Rivals>,
    hold_wanted: AtomicBool,
    holding: AtomicBool,
    /// Wakes the guard's thread: there is news from elsewhere.
    waker: Option<EventFd>,
}

impl Guard {
    pub fn new(on_rival: OnRival) -> std::io::Result<Guard> {
        let mut mac = [0; 6];
        getrandom::fill(&mut mac).map_err(std::io::Error::other)?;
        // Locally administered, one machine's: no card has it.
        mac[0] = mac[0] & 0xfc | 0x02;
        let waker = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let guard = Guard { probe: Some(MacAddr(mac)), waker: Some(waker), ..Guard::default() };
        guard.set_policy(on_rival);
        Ok(guard)
    }

    pub fn set_policy(&self, on_rival: OnRival) {
        self.hold_wanted.store(on_rival == OnRival::Hold, Ordering::Relaxed);
        self.decide(&self.lock());
    }

    /// Whether nobody is to be answered for now.
    pub fn holds(&self) -> bool {
        self.holding.load(Ordering::Relaxed)
    }

    /// Whether this DHCP message is a question of our own that came back to us.
    pub fn is_own_probe(&self, message: &[u8]) -> bool {
        self.probe.is_some_and(|mac| wire::discover_of(message) == Some(mac.0))
    }

    /// A client took the offer of another server.
    pub fn chosen(&self, server: Ipv4Addr, client: MacAddr, now: Timestamp) {
        let heard = Heard {
            kind: Kind::Dhcp,
            address: IpAddr::V4(server),
            mac: None,
            evidence: Evidence::Chosen,
            client: Some(client),
            harmless: false,
        };
        self.hear(&heard, now);
    }

    /// Everybody else who answers, the first heard first.
    pub fn rivals(&self) -> Vec<Rival> {
        self.lock().list().to_vec()
    }

    fn hear(&self, heard: &Heard, now: Timestamp) {
        let mut rivals = self.lock();
        rivals.hear(heard, now);
        self.decide(&rivals);
        let is_news = rivals.has_news();
        drop(rivals);
        if let Some(waker) = self.waker.as_ref().filter(|_| is_news) {
            let _ = waker.write(1);
        }
    }

    fn decide(&self, rivals: &Rivals) {
        let hold = self.hold_wanted.load(Ordering::Relaxed) && rivals.answered();
        self.holding.store(hold, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Rivals> {
        self.rivals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
