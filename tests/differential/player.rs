//! Plays sequences to one server, many side by side on one cable, each with machines of its own.
//!
//! Whether an answer will come is never decided by waiting. Behind a message that is not answered at once goes a *fence*:
//! a request that is always answered, and that no server answers before the message in front of it. When the fence's answer
//! is here, the other's is, or there is none. Servers work off one queue; what they do later they do later with the fence:
//!
//! - a lease has to be stored first: so has the fence's, which is renewed by it;
//! - farrier asks the wire before an offer: a second fence is a DISCOVER for an address that has to be asked for as well;
//! - a kernel asks by ARP where to send to: seen, answered, and another fence follows the answer.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use farrier::net::MacAddr;

use crate::ground::{AGENT, FENCE_FIRST, NAMED_FIRST, POOL_FIRST, POOL_LAST, Who};
use crate::message::{ACK, Answer, Asked, DISCOVER, OFFER, REQUEST};
use crate::sequence::{Class, Identifier, Kind, List, Machine, Named, Oddity, Path, Place, Sequence, Step};
use crate::station::{Datagram, Station};
use crate::support::SERVER;

/// Sequences under way at once.
const LANES: u8 = 48;
/// Most answers are here by then; a fence for each message would double the work.
const FENCE_AFTER: Duration = Duration::from_millis(20);
/// A fence that was lost is sent again.
const FENCE_AGAIN: Duration = Duration::from_secs(3);
/// Only a server that hangs reaches it.
const PATIENCE: Duration = Duration::from_secs(30);
/// Odd, so that each number has a MAC of its own.
const SCATTER: u32 = 0x009e_3779;
const AGENT_MAC: MacAddr = MacAddr([2, 0xa9, 0, 0, 0, 5]);

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

/// One step as it went.
#[derive(Clone, Debug)]
pub struct Played {
    pub asked: Asked,
    pub standing: Standing,
    /// What the addresses in the message are to the client that sends it.
    pub current: Place,
    pub wish: Place,
    /// `None`: silence.
    pub told: Option<Told>,
}

#[derive(Clone, Debug)]
pub struct Told {
    pub answer: Answer,
    /// What the address it gives is to the client.
    pub address: &'static str,
}

pub type Story = Vec<Played>;

#[derive(Clone, Copy)]
struct Client {
    mac: MacAddr,
    standing: Standing,
    offer: Option<Ipv4Addr>,
    lease: Option<Ipv4Addr>,
    former: Option<Ipv4Addr>,
}

/// A sequence under way.
struct Task<'a> {
    place: usize,
    number: u32,
    sequence: &'a Sequence,
    clients: [Client; 2],
    story: Story,
    waiting: Waiting,
}

/// The message that was sent last, and what is known of its answer.
struct Waiting {
    asked: Asked,
    since: Instant,
    current: Place,
    wish: Place,
    fence: Option<(u32, Instant, Vec<u8>)>,
    /// Somebody was asked by ARP since the last fence left, to send there.
    resolving: bool,
    /// The fence that waits as long as an offer does has been passed.
    past_offers: bool,
}

struct Lane<'a> {
    fence: MacAddr,
    address: Ipv4Addr,
    task: Option<Task<'a>>,
}

pub struct Player {
    who: Who,
    station: Station,
    fences: Vec<(MacAddr, Ipv4Addr)>,
    xid: u32,
    /// Fences that are DISCOVERs, so far.
    strangers: u32,
}

impl Player {
    /// Waits until the server serves: until each lane's fence has its lease.
    pub fn new(who: Who, station: Station) -> Player {
        station.own(AGENT, AGENT_MAC);
        let mut player = Player { who, station, fences: Vec::new(), xid: 0x4400_0000, strangers: 0 };
        for lane in 0..LANES {
            let mac = clear_of_named([2, 0xfe, 0, 0, 0, lane]);
            let offer = player.insist(DISCOVER, mac, None);
            let address = player.insist(REQUEST, mac, Some(offer));
            player.fences.push((mac, address));
        }
        player
    }

    pub fn play(&mut self, first: u32, sequences: &[Sequence]) -> Vec<Story> {
        let mut stories: Vec<Story> = vec![Vec::new(); sequences.len()];
        let mut todo = sequences.iter().enumerate();
        let mut lanes: Vec<Lane<'_>> =
            self.fences.iter().map(|&(fence, address)| Lane { fence, address, task: None }).collect();
        let mut by_xid: HashMap<u32, usize> = HashMap::new();
        loop {
            for (index, lane) in lanes.iter_mut().enumerate().filter(|(_, lane)| lane.task.is_none()) {
                let Some((place, sequence)) = todo.next() else { break };
                let number = first + u32::try_from(place).expect("few at once");
                let task = self.begin(place, number, sequence);
                by_xid.insert(task.waiting.asked.xid, index);
                lane.task = Some(task);
            }
            if lanes.iter().all(|lane| lane.task.is_none()) {
                return stories;
            }
            let datagram = self.station.receive(Instant::now() + FENCE_AFTER / 2);
            let resolved = self.station.resolved.take();
            for task in lanes.iter_mut().filter_map(|lane| lane.task.as_mut()) {
                let asks_for_it = |address: &Ipv4Addr| {
                    let relayed = task.waiting.asked.machine.path != Path::Direct;
                    Some(*address) == task.waiting.asked.current || relayed && *address == AGENT
                };
                task.waiting.resolving |= resolved.iter().any(asks_for_it);
            }
            let xid = datagram.as_ref().and_then(xid_of);
            if let Some(datagram) = &datagram
                && let Some(xid) = xid
                && let Some(index) = by_xid.remove(&xid)
            {
                let lane = &mut lanes[index];
                let task = lane.task.as_mut().expect("a lane that waits has a task");
                if xid == task.waiting.asked.xid {
                    self.step_over(task, Some(datagram));
                } else if task.waiting.is_settled() {
                    self.step_over(task, None);
                } else {
                    // One more, in the place of the one that was passed.
                    let fence = self.fence(task.waiting.needs(), lane.fence, lane.address);
                    task.waiting.past_offers |= task.waiting.needs() == Fence::Offer;
                    task.waiting.resolving = false;
                    by_xid.insert(fence.0, index);
                    task.waiting.fence = Some(fence);
                    continue;
                }
                by_xid.remove(&task.waiting.asked.xid);
                if let Some((fence, _, _)) = task.waiting.fence {
                    by_xid.remove(&fence);
                }
                let done = lane.task.take_if(|task| task.story.len() == task.sequence.steps.len());
                match (done, lane.task.as_mut()) {
                    (Some(done), _) => stories[done.place] = done.story,
                    (None, Some(task)) => {
                        task.waiting =
                            self.send_next(task.number, task.sequence, &task.clients, task.story.len());
                        by_xid.insert(task.waiting.asked.xid, index);
                    }
                    (None, None) => {}
                }
            }
            self.look_after(&mut lanes, &mut by_xid);
        }
    }

    /// Fences behind messages that have waited, again where one was lost.
    fn look_after(&mut self, lanes: &mut [Lane<'_>], by_xid: &mut HashMap<u32, usize>) {
        let now = Instant::now();
        for (index, lane) in lanes.iter_mut().enumerate() {
            let Some(task) = lane.task.as_mut() else { continue };
            let waited = now - task.waiting.since;
            assert!(
                waited < PATIENCE,
                "{} answers nobody: seed {}, {:?}",
                self.who.name(),
                task.sequence.seed,
                task.waiting.asked
            );
            match &mut task.waiting.fence {
                None if waited >= FENCE_AFTER => {
                    let fence = self.fence(Fence::Lease, lane.fence, lane.address);
                    task.waiting.resolving = false;
                    by_xid.insert(fence.0, index);
                    task.waiting.fence = Some(fence);
                }
                Some((_, sent, bytes)) if now - *sent >= FENCE_AGAIN => {
                    self.broadcast(lane.fence, bytes);
                    *sent = now;
                }
                None | Some(_) => {}
            }
        }
    }

    fn begin<'a>(&mut self, place: usize, number: u32, sequence: &'a Sequence) -> Task<'a> {
        // Neighbours in number are not neighbours by dnsmasq's hash.
        let [_, high, middle, low] = number.wrapping_mul(SCATTER).to_be_bytes();
        let clients = [0xd0, 0xd1].map(|who| Client {
            mac: clear_of_named([2, who, 0, high, middle, low]),
            standing: Standing::New,
            offer: None,
            lease: None,
            former: None,
        });
        let waiting = self.send_next(number, sequence, &clients, 0);
        Task { place, number, sequence, clients, story: Vec::new(), waiting }
    }

    fn send_next(&mut self, number: u32, sequence: &Sequence, clients: &[Client; 2], at: usize) -> Waiting {
        let step = sequence.steps[at];
        let ground = Known::of(number, clients, step.who);
        let (current, wish) = (ground.resolve(step.current), ground.resolve(step.wish));
        self.xid += 1;
        let asked = Asked {
            machine: sequence.machines[step.who],
            step,
            mac: clients[step.who].mac,
            xid: self.xid,
            current,
            wish,
        };
        let waiting = Waiting {
            current: ground.place_of(current),
            wish: ground.place_of(wish),
            fence: None,
            resolving: false,
            past_offers: false,
            since: Instant::now(),
            asked,
        };
        let asked = &waiting.asked;
        if let Some(current) = current {
            self.station.own(current, asked.mac);
        }
        let from = if asked.machine.path == Path::Direct { asked.mac } else { AGENT_MAC };
        self.station.send_udp(from, asked.source(), (asked.destination(), 67), &asked.bytes());
        waiting
    }

    /// Takes note of what came of a step, and of what it changes for the client.
    fn step_over(&self, task: &mut Task<'_>, frame: Option<&Datagram>) {
        let Waiting { asked, current, wish, .. } = &task.waiting;
        let who = asked.step.who;
        let ground = Known::of(task.number, &task.clients, who);
        let told = frame.map(|frame| {
            let answer = Answer::read(frame, asked);
            let address = ground.word_for(answer.address, asked);
            Told { answer, address }
        });
        if let Some(current) = asked.current {
            self.station.disown(current);
        }
        let client = &mut task.clients[who];
        let standing = client.standing;
        client.learn(asked, told.as_ref());
        let (asked, current, wish) = (asked.clone(), *current, *wish);
        task.story.push(Played { asked, standing, current, wish, told });
    }

    fn fence(&mut self, kind: Fence, mac: MacAddr, address: Ipv4Addr) -> (u32, Instant, Vec<u8>) {
        let (mac, kind, wish) = match kind {
            Fence::Lease => (mac, Kind::Request, address),
            Fence::Offer => {
                self.strangers += 1;
                let [_, high, middle, low] = self.strangers.to_be_bytes();
                (
                    MacAddr([2, 0xfd, 0, high, middle, low]),
                    Kind::Discover,
                    numbered(FENCE_FIRST, self.strangers),
                )
            }
        };
        let bytes = self.plain(kind, mac, Some(wish), Named::Nobody);
        self.broadcast(mac, &bytes);
        (self.xid, Instant::now(), bytes)
    }

    fn plain(&mut self, kind: Kind, mac: MacAddr, wish: Option<Ipv4Addr>, server: Named) -> Vec<u8> {
        self.xid += 1;
        let machine = Machine {
            identifier: Identifier::None,
            class: Class::System,
            list: List::None,
            path: Path::Direct,
            broadcast: true,
            lease: None,
            size: None,
            host_name: false,
        };
        let (current, place, oddity) = (Place::Nothing, Place::Nothing, Oddity::None);
        let step = Step { who: 0, kind, current, wish: place, server, unicast: false, oddity };
        Asked { machine, step, mac, xid: self.xid, current: None, wish }.bytes()
    }

    fn broadcast(&self, mac: MacAddr, bytes: &[u8]) {
        self.station.send_udp(mac, (Ipv4Addr::UNSPECIFIED, 68), (Ipv4Addr::BROADCAST, 67), bytes);
    }

    /// Asks until it is answered; gives the address.
    fn insist(&mut self, kind: u8, mac: MacAddr, wish: Option<Ipv4Addr>) -> Ipv4Addr {
        let (kind, server, wanted) = match kind {
            DISCOVER => (Kind::Discover, Named::Nobody, OFFER),
            _ => (Kind::Request, Named::Ours, ACK),
        };
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            let bytes = self.plain(kind, mac, wish, server);
            self.broadcast(mac, &bytes);
            let again = Instant::now() + Duration::from_secs(1);
            while let Some(datagram) = self.station.receive(again) {
                if xid_of(&datagram) == Some(self.xid) {
                    let yiaddr = datagram.payload[16..20].first_chunk::<4>().expect("four bytes");
                    assert!(datagram.payload.windows(3).any(|option| option == [53, 1, wanted]));
                    return Ipv4Addr::from(*yiaddr);
                }
            }
        }
        panic!("{} does not serve", self.who.name());
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fence {
    /// Waits for the disk.
    Lease,
    /// Waits for the wire.
    Offer,
}

impl Waiting {
    /// Whether a fence that has been passed settles it: no answer is under way.
    fn is_settled(&self) -> bool {
        !self.resolving && (self.past_offers || self.asked.step.kind != Kind::Discover)
    }

    fn needs(&self) -> Fence {
        match self.past_offers || self.asked.step.kind != Kind::Discover {
            true => Fence::Lease,
            false => Fence::Offer,
        }
    }
}

impl Client {
    fn learn(&mut self, asked: &Asked, told: Option<&Told>) {
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
struct Known<'a> {
    client: &'a Client,
    other: &'a Client,
    free: [Ipv4Addr; 2],
    outside: Ipv4Addr,
    foreign: Ipv4Addr,
}

impl Known<'_> {
    fn of<'a>(number: u32, clients: &'a [Client; 2], who: usize) -> Known<'a> {
        Known {
            client: &clients[who],
            other: &clients[1 - who],
            free: [numbered(NAMED_FIRST, number * 2), numbered(NAMED_FIRST, number * 2 + 1)],
            outside: numbered(Ipv4Addr::new(192, 162, 0, 0), number),
            foreign: numbered(Ipv4Addr::new(10, 9, 0, 0), number),
        }
    }

    /// What it has not, it makes up.
    fn resolve(&self, place: Place) -> Option<Ipv4Addr> {
        let Client { offer, lease, former, .. } = *self.client;
        let [first, second] = self.free.map(Some);
        match place {
            Place::Nothing => None,
            Place::Offer => offer.or(lease).or(first),
            Place::Lease => lease.or(offer).or(first),
            Place::Former => former.or(second),
            Place::Free(0) => first,
            Place::Free(_) => second,
            Place::Theirs => self.other.lease.or(self.other.offer).or(second),
            Place::OutsideThePool => Some(self.outside),
            Place::OtherSubnet => Some(self.foreign),
            Place::TheServers => Some(SERVER),
        }
    }

    fn place_of(&self, address: Option<Ipv4Addr>) -> Place {
        let Client { offer, lease, former, .. } = *self.client;
        match address {
            None => Place::Nothing,
            Some(SERVER) => Place::TheServers,
            own if own == lease => Place::Lease,
            own if own == offer => Place::Offer,
            other if other == self.other.lease || other == self.other.offer => Place::Theirs,
            own if own == former => Place::Former,
            Some(address) if address == self.outside => Place::OutsideThePool,
            Some(address) if address == self.foreign => Place::OtherSubnet,
            Some(address) => Place::Free(u8::from(address == self.free[1])),
        }
    }

    /// What the address of an answer is to the client that asked.
    fn word_for(&self, address: Option<Ipv4Addr>, asked: &Asked) -> &'static str {
        let Some(given) = address else { return "no address" };
        match self.place_of(address) {
            Place::Free(_) if address == asked.wish || address == asked.current => "the asked one",
            Place::Free(_) if self.free.contains(&given) => "a free one it once asked for",
            Place::Free(_) if (POOL_FIRST..=POOL_LAST).contains(&given) => "a new one",
            Place::Free(_) => "one outside the pool",
            place => place.tag(),
        }
    }
}

/// One address for each number, and none that ends in 0 or 255.
fn numbered(first: Ipv4Addr, number: u32) -> Ipv4Addr {
    assert!(number < 200 * 256, "more addresses are named than there are");
    Ipv4Addr::from(u32::from(first) + (number / 200) * 256 + number % 200 + 10)
}

/// A MAC whose first address by dnsmasq's hash is none that clients name by themselves.
fn clear_of_named(mut mac: [u8; 6]) -> MacAddr {
    /// Each DECLINE moves all by one.
    const MOVED: u32 = 20_000;
    let size = u32::from(POOL_LAST) - u32::from(POOL_FIRST) + 1;
    let clear = u32::from(NAMED_FIRST) - u32::from(POOL_FIRST) - MOVED;
    let hash = |mac: [u8; 6]| {
        mac.iter().fold(0_u32, |hash, byte| {
            let shifted = (hash << 6).wrapping_add(hash << 16).wrapping_sub(hash);
            shifted.wrapping_add(u32::from(*byte))
        })
    };
    while hash(mac) % size >= clear {
        mac[2] += 1;
    }
    MacAddr(mac)
}

fn xid_of(datagram: &Datagram) -> Option<u32> {
    let reply = datagram.payload.first() == Some(&2);
    datagram.payload.get(4..8).filter(|_| reply)?.first_chunk::<4>().copied().map(u32::from_be_bytes)
}
