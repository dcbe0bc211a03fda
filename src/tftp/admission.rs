//! Who may start a transfer, and how many: limits that keep one machine from taking the service away from the others.
//!
//! A refusal is silence, never an error: a boot ROM that hears nothing asks again a second later, when there may be
//! room; one that hears an error falls through to the next boot device.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnetwork::Ipv4Network;

use crate::telemetry::Level;

/// A rack powered on at once, four times over. Each costs less than a kilobyte.
pub const SESSIONS_MAX: usize = 4096;
/// A machine runs one boot loader, and a loader reads a few files at a time.
pub const SESSIONS_PER_PEER_MAX: u16 = 16;
/// PXELINUX and GRUB ask for a dozen names that do not exist before one that does; nobody asks more often than this
/// for long. Sustained, and at once.
pub const REQUEST_INTERVAL: Duration = Duration::from_millis(20);
pub const REQUEST_BURST: u32 = 200;
/// Addresses remembered for their rate. More can only be forged ones, or a subnet larger than one appliance serves.
const PEERS_MAX: usize = 16_384;
/// Looking for addresses to forget is proportional to their number, so not for every packet of a flood.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Why a datagram on port 69 gets no answer. The same word counts, logs and is tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// From outside the bridge's subnet, or from an address no machine can have there.
    ForeignSource,
    /// Sent to a broadcast address (RFC 1123 §4.2.3.5).
    Broadcast,
    /// Not RRQ or WRQ.
    NotARequest,
    /// The transfer it asks for runs already.
    RepeatedRequest,
    RateLimited,
    PeerBusy,
    ServerBusy,
    /// What the file rests on is on its way to the disk.
    NotYet,
}

impl Silence {
    pub fn as_str(self) -> &'static str {
        match self {
            Silence::ForeignSource => "foreign-source",
            Silence::Broadcast => "broadcast",
            Silence::NotARequest => "not-a-request",
            Silence::RepeatedRequest => "repeated-request",
            Silence::RateLimited => "rate-limited",
            Silence::PeerBusy => "peer-busy",
            Silence::ServerBusy => "server-busy",
            Silence::NotYet => "not-durable-yet",
        }
    }
}

#[derive(Debug)]
struct Peer {
    /// When this address will have used no more than its rate (the generic cell rate algorithm's one variable).
    even_at: Instant,
    sessions: u16,
}

#[derive(Debug)]
pub struct Admission {
    subnet: Ipv4Network,
    peers: HashMap<Ipv4Addr, Peer>,
    sessions: usize,
    /// Where `sessions` can be seen.
    shown: Arc<Level>,
    swept_at: Option<Instant>,
}

impl Admission {
    /// `subnet`: our own address with the bridge's prefix. `shown` follows the number of sessions.
    pub fn new(subnet: Ipv4Network, shown: Arc<Level>) -> Self {
        Self { subnet, peers: HashMap::new(), sessions: 0, shown, swept_at: None }
    }

    /// Whether `source` may be a machine on the bridge: rule out every address an answer must not be sent to.
    pub fn is_node(&self, source: SocketAddrV4) -> bool {
        let ip = *source.ip();
        let ends =
            self.subnet.prefix() < 31 && (ip == self.subnet.network() || ip == self.subnet.broadcast());
        self.subnet.contains(ip)
            && ip != self.subnet.ip()
            && !ends
            && !ip.is_multicast()
            && !ip.is_loopback()
            && source.port() != 0
    }

    /// Whether an answer may be sent to this request at all.
    pub fn admit_request(&mut self, source: SocketAddrV4, now: Instant) -> Result<(), Silence> {
        if !self.is_node(source) {
            return Err(Silence::ForeignSource);
        }
        if self.peers.len() >= PEERS_MAX && !self.peers.contains_key(source.ip()) {
            self.sweep(now);
            if self.peers.len() >= PEERS_MAX {
                return Err(Silence::ServerBusy);
            }
        }
        let peer = self.peers.entry(*source.ip()).or_insert(Peer { even_at: now, sessions: 0 });
        let even_at = peer.even_at.max(now);
        if even_at.duration_since(now) > REQUEST_INTERVAL * (REQUEST_BURST - 1) {
            return Err(Silence::RateLimited);
        }
        peer.even_at = even_at + REQUEST_INTERVAL;
        Ok(())
    }

    /// Whether an admitted request may become a transfer; [`Self::session_started`] is to follow if it does.
    pub fn admit_session(&self, source: SocketAddrV4) -> Result<(), Silence> {
        if self.sessions >= SESSIONS_MAX {
            return Err(Silence::ServerBusy);
        }
        match self.peers.get(source.ip()) {
            Some(peer) if peer.sessions >= SESSIONS_PER_PEER_MAX => Err(Silence::PeerBusy),
            Some(_) | None => Ok(()),
        }
    }

    pub fn session_started(&mut self, source: SocketAddrV4, now: Instant) {
        self.sessions += 1;
        self.shown.set(self.sessions as u64);
        self.peers.entry(*source.ip()).or_insert(Peer { even_at: now, sessions: 0 }).sessions += 1;
    }

    pub fn session_ended(&mut self, source: SocketAddrV4) {
        self.sessions = self.sessions.saturating_sub(1);
        self.shown.set(self.sessions as u64);
        if let Some(peer) = self.peers.get_mut(source.ip()) {
            peer.sessions = peer.sessions.saturating_sub(1);
        }
    }

    fn sweep(&mut self, now: Instant) {
        if self.swept_at.is_none_or(|swept_at| now >= swept_at + SWEEP_INTERVAL) {
            self.swept_at = Some(now);
            self.peers.retain(|_, peer| peer.sessions > 0 || peer.even_at > now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission() -> Admission {
        Admission::new("192.168.2.2/24".parse().unwrap(), Level::new(SESSIONS_MAX as u64))
    }

    fn source(text: &str) -> SocketAddrV4 {
        text.parse().unwrap()
    }

    #[test]
    fn only_addresses_a_machine_on_the_bridge_can_have_are_answered() {
        for (address, node) in [
            ("192.168.2.100:2070", true),
            ("192.168.2.1:69", true),
            ("192.168.2.2:2070", false),
            ("192.168.2.255:2070", false),
            ("192.168.2.0:2070", false),
            ("192.168.3.7:2070", false),
            ("0.0.0.0:2070", false),
            ("255.255.255.255:2070", false),
            ("224.0.0.1:2070", false),
            ("127.0.0.1:2070", false),
            ("192.168.2.100:0", false),
        ] {
            assert_eq!(admission().is_node(source(address)), node, "{address}");
        }
        assert_eq!(
            admission().admit_request(source("10.0.0.1:9"), Instant::now()),
            Err(Silence::ForeignSource)
        );
    }

    #[test]
    fn a_burst_is_admitted_then_fifty_a_second() {
        let (mut admission, now) = (admission(), Instant::now());
        let mut admitted =
            |at| (0..1000).filter(|_| admission.admit_request(source("192.168.2.9:1"), at).is_ok()).count();
        assert_eq!(admitted(now), 200);
        assert_eq!(admitted(now + Duration::from_secs(1)), 50);
        assert_eq!(admitted(now + Duration::from_secs(60)), 200);
        assert!(
            admission.admit_request(source("192.168.2.10:1"), now).is_ok(),
            "another machine is not affected"
        );
    }

    #[test]
    fn sessions_are_counted_per_machine_and_in_all() {
        let (mut admission, now) = (admission(), Instant::now());
        let peer = source("192.168.2.9:1");
        for _ in 0..SESSIONS_PER_PEER_MAX {
            assert_eq!(admission.admit_session(peer), Ok(()));
            admission.session_started(peer, now);
        }
        assert_eq!(admission.admit_session(peer), Err(Silence::PeerBusy));
        admission.session_ended(peer);
        assert_eq!(admission.admit_session(peer), Ok(()));
        admission.sessions = SESSIONS_MAX;
        assert_eq!(admission.admit_session(source("192.168.2.10:1")), Err(Silence::ServerBusy));
    }

    #[test]
    fn a_flood_of_forged_addresses_is_forgotten_again() {
        let mut admission = Admission::new("10.0.0.1/8".parse().unwrap(), Level::new(SESSIONS_MAX as u64));
        let now = Instant::now();
        let forged = |n: u32| SocketAddrV4::new(Ipv4Addr::from(0x0a10_0000 + n), 7);
        for n in 0..PEERS_MAX as u32 {
            admission.admit_request(forged(n), now).unwrap();
        }
        assert_eq!(admission.admit_request(forged(1 << 20), now), Err(Silence::ServerBusy));
        assert!(admission.admit_request(forged(3), now).is_ok(), "known ones go on");
        assert_eq!(admission.admit_request(forged(1 << 20), now + Duration::from_secs(1)), Ok(()));
        assert_eq!(admission.peers.len(), 1);
    }
}
