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

use crate::client::{Client, Known, SLOTS, Standing, mac_in, numbered};
use crate::ground::{AGENT, FENCE_FIRST, Who};
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
/// After so many DECLINEs of strangers farrier withholds no more addresses in that hour. They come first, so that what is
/// played does not depend on when.
const DECLINES: u8 = 10;
const AGENT_MAC: MacAddr = MacAddr([2, 0xa9, 0, 0, 0, 5]);

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
        for number in 0..DECLINES {
            let mac = mac_in(SLOTS, 0xfc, number.into());
            let offer = player.insist(DISCOVER, mac, None);
            let decline = player.plain(Kind::Decline, mac, Some(offer), Named::Ours).bytes();
            player.broadcast(mac, &decline);
        }
        for lane in 0..LANES {
            let mac = mac_in(SLOTS, 0xfe, lane.into());
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
                    (Some(done), _) => {
                        self.part(&done);
                        stories[done.place] = done.story;
                    }
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
        let clients = [0, 1].map(|who| Client {
            mac: mac_in(
                (number * 2 + who) % SLOTS,
                if who == 0 { 0xd0 } else { 0xd1 },
                u16::try_from(number).expect("as many as addresses to name"),
            ),
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

    /// Its machines give back what they have: dnsmasq writes all its leases at each change.
    fn part(&mut self, task: &Task<'_>) {
        for client in task.clients {
            let Some(lease) = client.lease else { continue };
            let asked = self.plain(Kind::Release, client.mac, None, Named::Ours);
            let asked = Asked { current: Some(lease), ..asked };
            self.station.send_udp(client.mac, (lease, 68), (SERVER, 67), &asked.bytes());
        }
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
        let bytes = self.plain(kind, mac, Some(wish), Named::Nobody).bytes();
        self.broadcast(mac, &bytes);
        (self.xid, Instant::now(), bytes)
    }

    fn plain(&mut self, kind: Kind, mac: MacAddr, wish: Option<Ipv4Addr>, server: Named) -> Asked {
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
        Asked { machine, step, mac, xid: self.xid, current: None, wish }
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
            let bytes = self.plain(kind, mac, wish, server).bytes();
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

fn xid_of(datagram: &Datagram) -> Option<u32> {
    let reply = datagram.payload.first() == Some(&2);
    datagram.payload.get(4..8).filter(|_| reply)?.first_chunk::<4>().copied().map(u32::from_be_bytes)
}
