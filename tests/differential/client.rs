//! A client of a sequence: what it has been told so far, what it can name by that, and its MAC.

use std::net::Ipv4Addr;

use farrier::net::MacAddr;

use crate::ground::{NAMED_FIRST, POOL_FIRST, POOL_LAST};
use crate::message::Asked;
use crate::player::Told;
use crate::sequence::{Kind, Named, Place};
use crate::support::SERVER;

/// Parts of the pool in which machines that play at the same time have their first addresses; one more is the fences'.
pub const SLOTS: u32 = 1024;
/// What a client has been through when it asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    New,
    Offered,
    Bound,
    Released,
    Declined,
    Refused,
    /// It chose another server.
    Elsewhere,
}

impl Standing {
    pub fn tag(self) -> &'static str {
        match self {
            Standing::New => "new",
            Standing::Offered => "offered",
            Standing::Bound => "bound",
            Standing::Released => "released",
            Standing::Declined => "declined",
            Standing::Refused => "refused",
            Standing::Elsewhere => "elsewhere",
        }
    }
}

#[derive(Clone, Copy)]
pub struct Client {
    pub mac: MacAddr,
    pub standing: Standing,
    pub offer: Option<Ipv4Addr>,
    pub lease: Option<Ipv4Addr>,
    pub former: Option<Ipv4Addr>,
}

impl Client {
    pub fn learn(&mut self, asked: &Asked, told: Option<&Told>) {
        let given = told.and_then(|told| told.answer.address);
        match (told.map(|told| told.answer.kind), asked.step.kind) {
            (Some("offer"), _) => {
                self.offer = given;
                self.standing = Standing::Offered;
            }
            (Some("ack"), Kind::Request) => {
                self.offer = None;
                self.former = self.lease.filter(|lease| Some(*lease) != given).or(self.former);
                self.lease = given;
                self.standing = Standing::Bound;
            }
            (Some("nak"), _) => {
                let offer = self.offer.take();
                self.former = self.lease.take().or(offer).or(self.former);
                self.standing = Standing::Refused;
            }
            (None, Kind::Request) if asked.step.server == Named::Other => {
                self.offer = None;
                self.standing = Standing::Elsewhere;
            }
            (None, Kind::Decline) if asked.step.server != Named::Other => {
                let own = [self.lease, self.offer].contains(&asked.wish) && asked.wish.is_some();
                if own {
                    self.lease.take_if(|lease| Some(*lease) == asked.wish);
                    self.offer.take_if(|offer| Some(*offer) == asked.wish);
                    self.former = asked.wish;
                    self.standing = Standing::Declined;
                }
            }
            (None, Kind::Release) if asked.step.server != Named::Other => {
                if let Some(lease) = self.lease.take_if(|lease| Some(*lease) == asked.current) {
                    self.offer = None;
                    self.former = Some(lease);
                    self.standing = Standing::Released;
                }
            }
            (_, _) => {}
        }
    }
}

/// The addresses that a client of a sequence may name.
pub struct Known<'a> {
    client: &'a Client,
    other: &'a Client,
    free: [Ipv4Addr; 2],
    outside: Ipv4Addr,
    foreign: Ipv4Addr,
}

impl Known<'_> {
    pub fn of<'a>(number: u32, clients: &'a [Client; 2], who: usize) -> Known<'a> {
        Known {
            client: &clients[who],
            other: &clients[1 - who],
            free: [numbered(NAMED_FIRST, number * 2), numbered(NAMED_FIRST, number * 2 + 1)],
            outside: numbered(Ipv4Addr::new(192, 162, 0, 0), number),
            foreign: numbered(Ipv4Addr::new(10, 9, 0, 0), number),
        }
    }

    /// What it has not, it makes up.
    pub fn resolve(&self, place: Place) -> Option<Ipv4Addr> {
        let Client { offer, lease, former, .. } = *self.client;
        let [first, second] = self.free.map(Some);
        match place {
            Place::Nothing => None,
            Place::Offer => offer.or(lease).or(first),
            Place::Lease => lease.or(offer).or(first),
            Place::Former => former.or(second),
            Place::Free(0) => first,
            Place::Free(_) => second,
            Place::TheirFormer => self.other.former.or(second),
            Place::Theirs => self.other.lease.or(self.other.offer).or(second),
            Place::OutsideThePool => Some(self.outside),
            Place::OtherSubnet => Some(self.foreign),
            Place::TheServers => Some(SERVER),
        }
    }

    pub fn place_of(&self, address: Option<Ipv4Addr>) -> Place {
        let Client { offer, lease, former, .. } = *self.client;
        match address {
            None => Place::Nothing,
            Some(SERVER) => Place::TheServers,
            own if own == lease => Place::Lease,
            own if own == offer => Place::Offer,
            other if other == self.other.lease || other == self.other.offer => Place::Theirs,
            own if own == former => Place::Former,
            other if other == self.other.former => Place::TheirFormer,
            Some(address) if address == self.outside => Place::OutsideThePool,
            Some(address) if address == self.foreign => Place::OtherSubnet,
            Some(address) => Place::Free(u8::from(address == self.free[1])),
        }
    }

    /// What the address of an answer is to the client that asked.
    pub fn word_for(&self, address: Option<Ipv4Addr>, asked: &Asked) -> &'static str {
        let Some(given) = address else { return "no address" };
        match self.place_of(address) {
            Place::Free(_) | Place::TheirFormer if address == asked.wish || address == asked.current => {
                "the asked one"
            }
            Place::Free(_) if self.free.contains(&given) => "a free one it once asked for",
            Place::Free(_) if (POOL_FIRST..=POOL_LAST).contains(&given) => "a new one",
            Place::Free(_) => "one outside the pool",
            place => place.tag(),
        }
    }
}

/// One address for each number, and none that ends in 0 or 255.
pub fn numbered(first: Ipv4Addr, number: u32) -> Ipv4Addr {
    assert!(number < 200 * 256, "more addresses are named than there are");
    Ipv4Addr::from(u32::from(first) + (number / 200) * 256 + number % 200 + 10)
}

/// A MAC with this number whose first address by dnsmasq's hash lies in this slot of the pool, where nobody else's does who
/// plays at the same time, and no address that clients name by themselves: dnsmasq remembers no offer.
pub fn mac_in(slot: u32, kind: u8, number: u16) -> MacAddr {
    /// Each DECLINE moves all by one.
    const MOVED: u32 = 20_000;
    let size = u32::from(POOL_LAST) - u32::from(POOL_FIRST) + 1;
    let width = (u32::from(NAMED_FIRST) - u32::from(POOL_FIRST) - MOVED) / (SLOTS + 1);
    let places = slot * width..slot * width + width / 2;
    let [high, low] = number.to_be_bytes();
    let hash = |mac: [u8; 6]| {
        mac.iter().fold(0_u32, |hash, byte| {
            let shifted = (hash << 6).wrapping_add(hash << 16).wrapping_sub(hash);
            shifted.wrapping_add(u32::from(*byte))
        })
    };
    let tried = (0..=u16::MAX).map(|free| [2, kind, free.to_be_bytes()[0], free.to_be_bytes()[1], high, low]);
    let found = tried.into_iter().find(|mac| places.contains(&(hash(*mac) % size)));
    MacAddr(found.expect("one of 65536 in 2048"))
}
