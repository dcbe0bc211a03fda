//! An operating system's DHCP client, after the machine has enrolled: RFC 2131 §4.4 with leases, renewal and moods.
//!
//! ```text
//!   INIT ─ DISCOVER ─► SELECTING ─ OFFER ─► REQUESTING ─ ACK ─► BOUND ─ half ─► RENEWING ─ 7/8 ─► REBINDING ─ end ─► INIT
//!                                    INIT-REBOOT ───── ACK ──────▲  │ NAK: INIT anywhere
//!                                                                   └─ RELEASE, DECLINE: INIT
//! ```

use std::net::{Ipv4Addr, SocketAddrV4};

use farrier::storm::firmware::{DhcpManners, RAMDISK};
use farrier::storm::message::{self, Ask, Identity, Reply, ReplyKind};
use farrier::storm::random::Stream;

use crate::appliance::SERVER;

const RETRIES_MILLIS: [u64; 4] = [4000, 8000, 16_000, 32_000];
const KIND: usize = 242;
const DECLINE: u8 = 4;
const RELEASE: u8 = 7;

/// A datagram to port 67.
pub struct Sent {
    pub bytes: Vec<u8>,
    pub source: SocketAddrV4,
    pub destination: Ipv4Addr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Init,
    Selecting,
    Requesting(Ipv4Addr),
    Rebooting(Ipv4Addr),
    Bound(Ipv4Addr),
    Renewing(Ipv4Addr),
    Rebinding(Ipv4Addr),
}

/// What the client makes of its lease, for the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    Same,
    Takes(Ipv4Addr),
    GivesUp,
}

pub struct System {
    who: Identity,
    random: Stream,
    state: State,
    xid: u32,
    attempt: usize,
    /// Of this exchange: leases count from the REQUEST (RFC 2131 §4.4.1).
    asked_at: u64,
    leased_at: u64,
    until: u64,
    pub wake_at: u64,
}

const ORDER_BARE: &[u8] = &[53, 57, 55, 60, 61];
const ORDER_REBOOT: &[u8] = &[53, 57, 50, 55, 60, 61];

fn manners(order: &'static [u8]) -> DhcpManners {
    DhcpManners { vendor_class: b"dhcpcd-9.4.1", order, ..RAMDISK.dhcp }
}

impl System {
    /// Starts with the address the ramdisk had, as an installed system with its lease file would, or from nothing.
    pub fn start(who: Identity, mut random: Stream, had: Option<Ipv4Addr>, now: u64) -> System {
        let xid = random.next_u32();
        let state = had.filter(|_| random.chance(0.5)).map_or(State::Init, State::Rebooting);
        System { who, random, state, xid, attempt: 0, asked_at: now, leased_at: now, until: 0, wake_at: now }
    }

    pub fn has_address(&self) -> bool {
        matches!(self.state, State::Bound(_) | State::Renewing(_) | State::Rebinding(_))
    }

    /// Until when it uses its address.
    pub fn lease_ends(&self) -> u64 {
        self.until
    }

    pub fn wake(&mut self, now: u64, out: &mut Vec<Sent>) -> Claim {
        if now < self.wake_at {
            return Claim::Same;
        }
        if self.has_address() && now >= self.until {
            self.begin_again(now, 0);
            return Claim::GivesUp;
        }
        match self.state {
            State::Init => {
                self.xid = self.random.next_u32();
                self.attempt = 0;
                self.state = State::Selecting;
                self.send(now, out);
            }
            State::Bound(address) => {
                if self.random.chance(0.05) {
                    self.give_back(RELEASE, address, out);
                    self.begin_again(now, 20_000);
                    return Claim::GivesUp;
                }
                self.xid = self.random.next_u32();
                self.attempt = 0;
                self.state = State::Renewing(address);
                self.send(now, out);
            }
            State::Renewing(address) if now >= self.until - (self.until - self.leased_at) / 8 => {
                self.attempt = 0;
                self.state = State::Rebinding(address);
                self.send(now, out);
            }
            State::Renewing(_) | State::Rebinding(_) => self.send(now, out),
            State::Selecting | State::Requesting(_) | State::Rebooting(_) => {
                if self.attempt >= RETRIES_MILLIS.len() {
                    self.begin_again(now, 1000);
                } else {
                    self.send(now, out);
                }
            }
        }
        Claim::Same
    }

    pub fn handle(&mut self, reply: &Reply, lease_millis: u64, now: u64, out: &mut Vec<Sent>) -> Claim {
        if reply.xid != self.xid || reply.mac != self.who.mac {
            return Claim::Same;
        }
        match (self.state, reply.kind) {
            (State::Selecting, ReplyKind::Offer) => {
                self.attempt = 0;
                self.state = State::Requesting(reply.address);
                self.send(now, out);
                Claim::Same
            }
            (
                State::Requesting(address)
                | State::Rebooting(address)
                | State::Renewing(address)
                | State::Rebinding(address),
                ReplyKind::Ack,
            ) if reply.address == address => {
                // Somebody else answers ARP there, it thinks.
                if !self.has_address() && self.random.chance(0.01) {
                    self.give_back(DECLINE, address, out);
                    self.begin_again(now, 10_000);
                    return Claim::GivesUp;
                }
                self.state = State::Bound(address);
                self.leased_at = self.asked_at;
                self.until = self.asked_at + lease_millis;
                self.wake_at = (self.asked_at + lease_millis / 2).max(now + 1);
                Claim::Takes(address)
            }
            (
                State::Requesting(_) | State::Rebooting(_) | State::Renewing(_) | State::Rebinding(_),
                ReplyKind::Nak,
            ) => {
                self.begin_again(now, 1000);
                Claim::GivesUp
            }
            _ => Claim::Same,
        }
    }

    fn begin_again(&mut self, now: u64, wait: u64) {
        self.state = State::Init;
        self.wake_at = now + wait;
    }

    fn send(&mut self, now: u64, out: &mut Vec<Sent>) {
        // A renewal's retries are new requests as far as the lease's beginning goes; a late ACK is for the first.
        if self.attempt == 0 {
            self.asked_at = now;
        }
        let wait = match self.state {
            State::Renewing(_) | State::Rebinding(_) => {
                (self.until.saturating_sub(now) / 3).clamp(2000, 60_000)
            }
            _ => RETRIES_MILLIS[self.attempt.min(RETRIES_MILLIS.len() - 1)],
        };
        self.attempt += 1;
        self.wake_at = now + wait;
        if self.has_address() {
            self.wake_at = self.wake_at.min(self.until);
        }
        let nowhere = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68);
        let request = |order, address| {
            let ask = Ask::Request { address, server: SERVER };
            message::emit(&manners(order), &self.who, ask, self.xid, 0)
        };
        let (bytes, source, destination) = match self.state {
            State::Init => return,
            State::Selecting => {
                let bytes =
                    message::emit(&manners(RAMDISK.dhcp.order), &self.who, Ask::Discover, self.xid, 0);
                (bytes, nowhere, Ipv4Addr::BROADCAST)
            }
            State::Requesting(address) => {
                (request(RAMDISK.dhcp.order, address), nowhere, Ipv4Addr::BROADCAST)
            }
            State::Rebooting(address) => (request(ORDER_REBOOT, address), nowhere, Ipv4Addr::BROADCAST),
            State::Bound(address) | State::Renewing(address) => {
                (using(request(ORDER_BARE, address), address), SocketAddrV4::new(address, 68), SERVER)
            }
            State::Rebinding(address) => {
                let bytes = using(request(ORDER_BARE, address), address);
                (bytes, SocketAddrV4::new(address, 68), Ipv4Addr::BROADCAST)
            }
        };
        out.push(Sent { bytes, source, destination });
    }

    fn give_back(&mut self, kind: u8, address: Ipv4Addr, out: &mut Vec<Sent>) {
        let ask = Ask::Request { address, server: SERVER };
        let xid = self.random.next_u32();
        let mut bytes = message::emit(&RAMDISK.dhcp, &self.who, ask, xid, 0);
        bytes[KIND] = kind;
        let (source, destination) = match kind {
            RELEASE => (SocketAddrV4::new(address, 68), SERVER),
            _ => (SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68), Ipv4Addr::BROADCAST),
        };
        if kind == RELEASE {
            bytes = using(bytes, address);
        }
        out.push(Sent { bytes, source, destination });
    }
}

/// Sets `ciaddr`.
fn using(mut bytes: Vec<u8>, address: Ipv4Addr) -> Vec<u8> {
    bytes[12..16].copy_from_slice(&address.octets());
    bytes
}
