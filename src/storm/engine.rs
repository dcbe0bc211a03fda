//! The one loop that drives all machines: readiness, timers, and the actions machines ask for.
//!
//! One thread is enough: most machines wait most of the time, and what does move costs little, because bodies nobody
//! reads are dropped in the kernel (`MSG_TRUNC`), and a timer that only moved later is not touched.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use crate::net::MacAddr;
use crate::storm::firmware::Kind;
use crate::storm::machine::{Action, Event, Goal, Machine, Stage, Trouble};
use crate::storm::message;
use crate::storm::random::Stream;
use crate::storm::report::{Circumstances, FloodReport, Report};
use crate::storm::schedule::{Flood, Order, Part, Schedule};
use crate::storm::wire::{
    Addresses, Counters, Tap, announcement_frame, datagrams_dropped, dhcp_frame, interface_called,
    solicitation_frame,
};

mod flood;
mod stop;
mod transfer;

use flood::Strangers;
pub use stop::Stop;
use transfer::{Moved, Transfer};

const DHCP: Token = Token(usize::MAX - 1);
const ROUTERS: Token = Token(usize::MAX - 2);
const STOP: Token = Token(usize::MAX - 3);
/// Between two reports of progress.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);
/// Frames read before machines' sockets get their turn.
const FRAMES_AT_ONCE: usize = 256;
/// Bodies are read for this long, or for as long as DHCP and TFTP last took, before those get their turn again. A window
/// of TFTP waits for its ACK, a body for nobody: read as they came, the bodies of 600 machines held each window of the
/// others up for 200 ms.
const BODIES_AT_ONCE: Duration = Duration::from_millis(1);
/// Machines that nobody knows, switched on as a flood ends: when they have addresses, the server has recovered.
const NEWCOMERS: usize = 10;

/// How far they are, while it lasts.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    pub completed: usize,
    pub lost: usize,
    pub off: usize,
    /// Machines now in each stage.
    pub at: [usize; Stage::ALL.len()],
}

struct Slot {
    machine: Machine,
    power_on: Duration,
    luck: Stream,
    transfer: Option<Transfer>,
    /// A connection to use again.
    spare: Option<transfer::Spare>,
    bound: Option<Ipv4Addr>,
    /// The earliest entry of this machine in the timers.
    armed: Option<Instant>,
    /// Stands in `unfinished`.
    queued: bool,
}

pub struct Engine {
    /// The machines, and newcomers behind them.
    slots: Vec<Slot>,
    nodes: usize,
    by_mac: HashMap<MacAddr, usize>,
    holders: HashMap<Ipv4Addr, usize>,
    address_conflicts: usize,
    timers: BinaryHeap<Reverse<(Instant, usize)>>,
    /// Transfers over HTTP with something to read.
    unfinished: VecDeque<usize>,
    /// How long these may be read in the next turn.
    bodies_for: Duration,
    frames: Vec<(MacAddr, Vec<u8>)>,
    poll: Poll,
    interface: String,
    /// Of the interface.
    mac: MacAddr,
    dhcp: Tap,
    routers: Tap,
    stop: Stop,
    interrupted: bool,
    addresses: Addresses,
    loss: f64,
    /// Frames our own end could not send.
    drops: u64,
    strangers: Option<Strangers>,
    over: usize,
    fingerprint: String,
}

impl Slot {
    fn new(part: Part, goal: Goal) -> Slot {
        let machine = Machine::new(part.kind, part.identity, goal, part.random);
        let Part { power_on, luck, .. } = part;
        Slot { machine, power_on, luck, transfer: None, spare: None, bound: None, armed: None, queued: false }
    }
}

/// Which machines are switched on behind a flood.
fn newcomers(seed: u64, nodes: usize, flood: Option<Flood>) -> impl Iterator<Item = Part> {
    flood.into_iter().flat_map(move |flood| {
        (0..NEWCOMERS).map(move |number| Part {
            power_on: flood.lasts,
            ..Schedule::part(seed, nodes + number, Kind::Bios)
        })
    })
}

impl Engine {
    /// `interface`: our end of the cable, in the namespace this thread is in.
    pub fn open(interface: &str, order: &Order, stop: Stop) -> io::Result<Engine> {
        let (index, mac) = interface_called(interface)?;
        let poll = Poll::new()?;
        let (dhcp, routers) = (Tap::open_dhcp(index)?, Tap::open_routers(index)?);
        for (fd, token) in
            [(dhcp.as_raw_fd(), DHCP), (routers.as_raw_fd(), ROUTERS), (stop.as_raw_fd(), STOP)]
        {
            poll.registry().register(&mut SourceFd(&fd), token, Interest::READABLE)?;
        }
        let schedule = Schedule::of(order);
        let fingerprint = schedule.fingerprint(order.loss);
        let nodes = schedule.parts.len();
        let strangers = order.flood.map(|flood| Strangers::new(flood, schedule.strangers));
        let machines = schedule.parts.into_iter().map(|part| Slot::new(part, order.goal));
        let newcomers = newcomers(order.seed, nodes, order.flood).map(|part| Slot::new(part, Goal::Address));
        let slots: Vec<Slot> = machines.chain(newcomers).collect();
        let by_mac =
            slots.iter().enumerate().map(|(number, slot)| (slot.machine.identity().mac, number)).collect();
        Ok(Engine {
            slots,
            nodes,
            by_mac,
            holders: HashMap::new(),
            address_conflicts: 0,
            timers: BinaryHeap::new(),
            unfinished: VecDeque::new(),
            bodies_for: BODIES_AT_ONCE,
            frames: Vec::new(),
            poll,
            interface: interface.to_owned(),
            mac,
            dhcp,
            routers,
            stop,
            interrupted: false,
            addresses: Addresses::open(index)?,
            loss: order.loss,
            drops: 0,
            strangers,
            over: 0,
            fingerprint,
        })
    }

    /// The storm's end of the cable has this address, besides its machines'.
    pub fn hold(&mut self, address: Ipv4Addr) -> io::Result<()> {
        self.addresses.add(address)
    }

    /// Runs the storm to its end.
    pub fn run(mut self, order: &Order, tell: &mut dyn FnMut(&Progress)) -> io::Result<Report> {
        let began = Instant::now();
        if let Some(strangers) = &mut self.strangers {
            strangers.begin(began);
        }
        for (number, slot) in self.slots.iter_mut().enumerate() {
            let at = began + slot.power_on;
            slot.armed = Some(at);
            self.timers.push(Reverse((at, number)));
        }
        let before = Counters::read(&self.interface)?;
        let ends_at = began + order.patience;
        let mut tell_at = began;
        let mut events = Events::with_capacity(1024);
        let mut buffer = vec![0; transfer::BUFFER];
        while !self.is_over(Instant::now()) {
            let now = Instant::now();
            if now >= ends_at {
                break;
            }
            if now >= tell_at {
                tell(&self.progress());
                tell_at = now + PROGRESS_EVERY;
            }
            self.turn(now, ends_at.min(tell_at), &mut events, &mut buffer)?;
        }
        tell(&self.progress());
        let now = Instant::now();
        let trouble = if self.interrupted { Trouble::Interrupted } else { Trouble::OutOfTime };
        for slot in &mut self.slots {
            slot.machine.end(trouble, now);
        }
        let wire = Counters::read(&self.interface)?.since(before);
        Ok(self.report(order, wire))
    }

    fn is_over(&self, now: Instant) -> bool {
        let calm = self.strangers.as_ref().is_none_or(|strangers| strangers.is_over(now));
        self.interrupted || (calm && self.over == self.slots.len())
    }

    /// What is due, a wait for what may come, and what has come.
    fn turn(
        &mut self,
        now: Instant,
        until: Instant,
        events: &mut Events,
        buffer: &mut [u8],
    ) -> io::Result<()> {
        self.ring(now, buffer)?;
        let bodies_until = Instant::now() + self.bodies_for;
        while let Some(number) = self.unfinished.pop_front() {
            self.slots[number].queued = false;
            self.read(number, buffer)?;
            if Instant::now() >= bodies_until {
                break;
            }
        }
        if let Some(strangers) = &mut self.strangers {
            strangers.send(now, &mut self.frames);
        }
        self.flush();
        let mut until = until;
        if let Some(Reverse((at, _))) = self.timers.peek() {
            until = until.min(*at);
        }
        if self.strangers.as_ref().is_some_and(|strangers| !strangers.is_over(now)) {
            until = until.min(now + flood::EVERY);
        }
        let wait = if self.unfinished.is_empty() {
            // epoll counts in milliseconds: rounded up, or the last one would be spent spinning.
            until.saturating_duration_since(Instant::now()) + Duration::from_micros(999)
        } else {
            Duration::ZERO
        };
        match self.poll.poll(events, Some(wait)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let woke = Instant::now();
        for event in events.iter() {
            match event.token() {
                DHCP => self.receive_dhcp(buffer)?,
                ROUTERS => self.receive_routers(buffer)?,
                STOP => self.interrupted |= self.stop.is_wanted(),
                Token(number) if self.is_over_http(number) => self.queue(number),
                Token(number) => self.read(number, buffer)?,
            }
        }
        self.bodies_for = woke.elapsed().max(BODIES_AT_ONCE);
        self.flush();
        Ok(())
    }

    fn is_over_http(&self, number: usize) -> bool {
        let transfer = self.slots.get(number).and_then(|slot| slot.transfer.as_ref());
        transfer.is_some_and(Transfer::is_over_http)
    }

    fn queue(&mut self, number: usize) {
        if !std::mem::replace(&mut self.slots[number].queued, true) {
            self.unfinished.push_back(number);
        }
    }

    fn report(&self, order: &Order, wire: Counters) -> Report {
        let machines: Vec<&Machine> = self.slots.iter().map(|slot| &slot.machine).collect();
        let (machines, newcomers) = machines.split_at(self.nodes);
        let flood = self.strangers.as_ref().map(|strangers| {
            FloodReport::of(order.flood.map_or(0, |flood| flood.per_second), strangers.sent(), newcomers)
        });
        let circumstances = Circumstances {
            seed: order.seed,
            schedule: self.fingerprint.clone(),
            loss: order.loss,
            goal: order.goal.last_stage().as_str(),
            address_conflicts: self.address_conflicts,
            own_drops: self.drops + datagrams_dropped(),
            interrupted: self.interrupted,
            flood,
            wire,
            storm_cpu_secs: thread_cpu_secs(),
        };
        Report::of(machines, circumstances)
    }

    fn progress(&self) -> Progress {
        let mut progress = Progress::default();
        for machine in self.slots[..self.nodes].iter().map(|slot| &slot.machine) {
            if machine.record.is_complete() {
                progress.completed += 1;
            } else if machine.record.lost.is_some() {
                progress.lost += 1;
            } else if machine.record.powered_on.is_none() {
                progress.off += 1;
            } else {
                progress.at[machine.stage() as usize] += 1;
            }
        }
        progress
    }

    fn lost(&mut self, number: usize) -> bool {
        self.slots[number].luck.chance(self.loss)
    }

    // --- time -------------------------------------------------------------------------------------------------------

    /// Wakes every machine whose time has come.
    fn ring(&mut self, now: Instant, buffer: &mut [u8]) -> io::Result<()> {
        while let Some(Reverse((at, number))) = self.timers.peek().copied() {
            if at > now {
                break;
            }
            self.timers.pop();
            let slot = &mut self.slots[number];
            if slot.armed != Some(at) {
                continue;
            }
            slot.armed = None;
            if slot.machine.record.powered_on.is_none() {
                self.deliver(number, Event::PowerOn, now)?;
            } else if slot.machine.wake_at().is_some_and(|wake_at| wake_at <= now) {
                self.deliver(number, Event::Woken, now)?;
            } else if self.slots[number].queued {
                // What has come and was not read yet is no stall of the server's; if nothing has, the next look says so.
                self.slots[number].queued = false;
                self.read(number, buffer)?;
            } else {
                self.wake_transfer(number, now)?;
            }
            self.arm(number);
        }
        Ok(())
    }

    /// A later deadline leaves an earlier entry in place: it finds nothing to do and arms again.
    fn arm(&mut self, number: usize) {
        let slot = &mut self.slots[number];
        let transfer = slot.transfer.as_ref().map(Transfer::deadline);
        let Some(at) = slot.machine.wake_at().into_iter().chain(transfer).min() else { return };
        if slot.armed.is_none_or(|armed| armed > at) {
            slot.armed = Some(at);
            self.timers.push(Reverse((at, number)));
        }
    }

    // --- machines ---------------------------------------------------------------------------------------------------

    /// Hands a machine an event and carries out what it asks for.
    fn deliver(&mut self, number: usize, event: Event, now: Instant) -> io::Result<()> {
        let mut next = Some(event);
        let mut actions = Vec::new();
        while let Some(event) = next.take() {
            let was_over = self.slots[number].machine.is_over();
            self.slots[number].machine.handle(event, now, &mut actions);
            for action in actions.drain(..) {
                if let Some(failed) = self.carry_out(number, action, now)? {
                    next = Some(failed);
                }
            }
            if !was_over && self.slots[number].machine.is_over() {
                self.over += 1;
                self.slots[number].spare = None;
            }
        }
        self.arm(number);
        Ok(())
    }

    /// What comes back is an event that the action has already led to.
    fn carry_out(&mut self, number: usize, action: Action, now: Instant) -> io::Result<Option<Event>> {
        let mac = self.slots[number].machine.identity().mac;
        match action {
            Action::SendDhcp(payload) => {
                // Another program runs now, and its connections are not the last one's.
                self.slots[number].spare = None;
                if !self.lost(number) {
                    self.frames.push(dhcp_frame(mac, &payload));
                }
            }
            Action::SolicitRouter => self.frames.push(solicitation_frame(mac)),
            Action::Bind(address) => self.bind(number, address)?,
            Action::Fetch(fetch) => {
                let slot = &mut self.slots[number];
                let Some(address) = slot.machine.record.address else { return Ok(None) };
                let manners = slot.machine.manners();
                let spare = slot.spare.take();
                match Transfer::start(
                    fetch,
                    manners,
                    address,
                    spare,
                    Token(number),
                    self.poll.registry(),
                    now,
                ) {
                    Ok((transfer, first)) => {
                        slot.transfer = Some(transfer);
                        self.send_datagrams(number, first);
                    }
                    Err(trouble) => return Ok(Some(Event::Fetched(Err(trouble)))),
                }
            }
        }
        Ok(None)
    }

    fn bind(&mut self, number: usize, address: Ipv4Addr) -> io::Result<()> {
        match self.holders.insert(address, number) {
            Some(holder) if holder == number => return Ok(()),
            Some(_) => self.address_conflicts += 1,
            None => {}
        }
        let before = self.slots[number].bound.replace(address);
        if let Some(before) = before.filter(|before| self.holders.get(before) == Some(&number)) {
            self.holders.remove(&before);
            self.addresses.remove(before)?;
        }
        self.addresses.add(address)?;
        // A server that met the last holder of this address, of an earlier storm perhaps, would go on sending there. At once:
        // what the machine fetches next is asked for by the kernel, which does not wait for our frames.
        self.drops += self.dhcp.send(&[announcement_frame(self.mac, address)]);
        Ok(())
    }

    // --- the wire ---------------------------------------------------------------------------------------------------

    fn flush(&mut self) {
        if !self.frames.is_empty() {
            self.drops += self.dhcp.send(&self.frames);
            self.frames.clear();
        }
    }

    fn receive_dhcp(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        // Edge-triggered: what is left after this many is read when the next one arrives, or a turn later.
        for _ in 0..FRAMES_AT_ONCE {
            let Some(length) = self.dhcp.receive(buffer)? else { return Ok(()) };
            let Some(reply) = message::payload_for_client(&buffer[..length]).and_then(message::parse) else {
                continue;
            };
            let Some(number) = self.by_mac.get(&reply.mac).copied() else { continue };
            if !self.lost(number) {
                self.deliver(number, Event::Reply(reply), Instant::now())?;
            }
        }
        self.poll.registry().reregister(&mut SourceFd(&self.dhcp.as_raw_fd()), DHCP, Interest::READABLE)
    }

    fn receive_routers(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let mut seen = false;
        while self.routers.receive(buffer)?.is_some() {
            seen = true;
        }
        if seen {
            let now = Instant::now();
            for number in 0..self.slots.len() {
                self.deliver(number, Event::RouterSeen, now)?;
            }
        }
        Ok(())
    }

    fn send_datagrams(&mut self, number: usize, datagrams: Vec<(u16, Vec<u8>)>) {
        for (port, payload) in datagrams {
            if !self.lost(number)
                && let Some(transfer) = &self.slots[number].transfer
            {
                transfer.send(port, &payload);
            }
        }
    }

    /// Reads what a machine's transfer has to read, and writes what it has to write.
    fn read(&mut self, number: usize, buffer: &mut [u8]) -> io::Result<()> {
        let now = Instant::now();
        let Some(slot) = self.slots.get_mut(number) else { return Ok(()) };
        let Some(transfer) = &mut slot.transfer else { return Ok(()) };
        let (loss, luck) = (self.loss, &mut slot.luck);
        let mut out = Vec::new();
        let moved = transfer.work(buffer, now, &mut || luck.chance(loss), &mut out);
        self.send_datagrams(number, out);
        self.settle(number, moved, now)
    }

    fn wake_transfer(&mut self, number: usize, now: Instant) -> io::Result<()> {
        let Some(transfer) = &mut self.slots[number].transfer else { return Ok(()) };
        let mut out = Vec::new();
        let moved = transfer.wake(now, &mut out);
        self.send_datagrams(number, out);
        self.settle(number, moved, now)
    }

    fn settle(&mut self, number: usize, moved: Moved, now: Instant) -> io::Result<()> {
        let outcome = match moved {
            Moved::Waiting => return Ok(()),
            Moved::MoreToRead => {
                self.queue(number);
                return Ok(());
            }
            Moved::Lonely => {
                // The kept connection was closed meanwhile: the request goes out again on a new one.
                let slot = &mut self.slots[number];
                let again =
                    slot.transfer.as_mut().map(|transfer| transfer.reconnect(self.poll.registry(), now));
                match again {
                    Some(Err(trouble)) => Err(trouble),
                    Some(Ok(())) | None => return Ok(()),
                }
            }
            Moved::Done(outcome) => outcome,
        };
        let slot = &mut self.slots[number];
        if let Some(transfer) = slot.transfer.take() {
            slot.machine.record.tftp_resends += transfer.resends();
            if outcome.is_ok() {
                slot.spare = transfer.into_spare();
            }
        }
        self.deliver(number, Event::Fetched(outcome), now)
    }
}

/// Processor time of this thread, which is the storm's.
fn thread_cpu_secs() -> f64 {
    use nix::sys::resource::{UsageWho, getrusage};
    getrusage(UsageWho::RUSAGE_THREAD).map_or(0.0, |usage| {
        let secs = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
        secs(usage.user_time()) + secs(usage.system_time())
    })
}
