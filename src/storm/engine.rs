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
use crate::storm::firmware::{Kind, OVMF};
use crate::storm::machine::{Action, Event, Goal, Machine, Stage};
use crate::storm::message::{self, Ask, Identity};
use crate::storm::random::Stream;
use crate::storm::report::{Circumstances, Report};
use crate::storm::wire::{Addresses, Tap, dhcp_frame, interface_index, solicitation_frame};

mod transfer;

use transfer::{Moved, Transfer};

const DHCP: Token = Token(usize::MAX - 1);
const ROUTERS: Token = Token(usize::MAX - 2);
/// Between two reports of progress.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);
/// Strangers come in small groups, not one by one.
const STRANGERS_EVERY: Duration = Duration::from_millis(5);
/// Frames read before machines' sockets get their turn.
const FRAMES_AT_ONCE: usize = 256;
/// Streams of the seed beside the machines' own: when they are switched on, what strangers are called, and (one per
/// machine, counted down) which datagrams are lost.
const POWER_STREAM: u64 = u64::MAX;
const STRANGER_STREAM: u64 = u64::MAX - 1;
const LOSS_STREAMS: u64 = u64::MAX - 2;

/// A storm, as ordered.
#[derive(Clone, Debug)]
pub struct Order {
    /// Firmware of each machine.
    pub machines: Vec<Kind>,
    pub goal: Goal,
    pub seed: u64,
    /// Share of datagrams lost, each way.
    pub loss: f64,
    /// All machines are switched on within this time.
    pub over: Duration,
    /// Who has not come home by then is lost.
    pub patience: Duration,
    /// DISCOVERs a second from MACs that never come again.
    pub strangers: u32,
}

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
    /// Decides which of its datagrams are lost, so that a machine's luck does not hang on the others' pace.
    luck: Stream,
    transfer: Option<Transfer>,
    /// A connection to use again.
    spare: Option<transfer::Spare>,
    bound: Option<Ipv4Addr>,
    /// The earliest entry of this machine in the timers.
    armed: Option<Instant>,
}

pub struct Engine {
    slots: Vec<Slot>,
    by_mac: HashMap<MacAddr, usize>,
    holders: HashMap<Ipv4Addr, usize>,
    address_conflicts: usize,
    timers: BinaryHeap<Reverse<(Instant, usize)>>,
    /// Transfers with more to read than one turn allows.
    unfinished: VecDeque<usize>,
    frames: Vec<(MacAddr, Vec<u8>)>,
    poll: Poll,
    dhcp: Tap,
    routers: Tap,
    addresses: Addresses,
    loss: f64,
    /// Frames our own end could not send.
    drops: u64,
    strangers: Strangers,
    over: usize,
}

struct Strangers {
    per_second: u32,
    random: Stream,
    began: Instant,
    sent: u64,
}

/// Locally administered, so that no real machine has it; two bytes of the seed, so that two storms differ.
pub fn identity(seed: u64, number: usize) -> Identity {
    let seed = Stream::new(seed, 0).next_u64().to_be_bytes();
    let [_, a, b, c] = (number as u32).to_be_bytes();
    let mac = MacAddr([0x02, seed[0], seed[1], a, b, c]);
    let mut uuid = *b"farrier-storm\0\0\0";
    uuid[10..].copy_from_slice(&mac.0);
    uuid[6] = (uuid[6] & 0x0f) | 0x80;
    uuid[8] = (uuid[8] & 0x3f) | 0x80;
    Identity { mac, uuid }
}

impl Engine {
    /// `interface`: our end of the cable, in the namespace this thread is in.
    pub fn open(interface: &str, order: &Order) -> io::Result<Engine> {
        let index = interface_index(interface)?;
        let poll = Poll::new()?;
        let (dhcp, routers) = (Tap::open_dhcp(index)?, Tap::open_routers(index)?);
        for (tap, token) in [(&dhcp, DHCP), (&routers, ROUTERS)] {
            poll.registry().register(&mut SourceFd(&tap.as_raw_fd()), token, Interest::READABLE)?;
        }
        let slots: Vec<Slot> = order
            .machines
            .iter()
            .enumerate()
            .map(|(number, kind)| {
                let stream = Stream::new(order.seed, number as u64);
                let machine = Machine::new(*kind, identity(order.seed, number), order.goal, stream);
                let luck = Stream::new(order.seed, LOSS_STREAMS - number as u64);
                Slot { machine, luck, transfer: None, spare: None, bound: None, armed: None }
            })
            .collect();
        let by_mac =
            slots.iter().enumerate().map(|(number, slot)| (slot.machine.identity().mac, number)).collect();
        Ok(Engine {
            slots,
            by_mac,
            holders: HashMap::new(),
            address_conflicts: 0,
            timers: BinaryHeap::new(),
            unfinished: VecDeque::new(),
            frames: Vec::new(),
            poll,
            dhcp,
            routers,
            addresses: Addresses::open(index)?,
            loss: order.loss,
            drops: 0,
            strangers: Strangers {
                per_second: order.strangers,
                random: Stream::new(order.seed, STRANGER_STREAM),
                began: Instant::now(),
                sent: 0,
            },
            over: 0,
        })
    }

    /// Runs the storm to its end.
    pub fn run(mut self, order: &Order, tell: &mut dyn FnMut(&Progress)) -> io::Result<Report> {
        let began = Instant::now();
        self.strangers.began = began;
        let mut power = Stream::new(order.seed, POWER_STREAM);
        for number in 0..self.slots.len() {
            let after = order.over.mul_f64(power.unit());
            self.slots[number].armed = Some(began + after);
            self.timers.push(Reverse((began + after, number)));
        }
        let ends_at = began + order.patience;
        let mut tell_at = began;
        let mut events = Events::with_capacity(1024);
        let mut buffer = vec![0; transfer::BUFFER];
        while self.over < self.slots.len() {
            let now = Instant::now();
            if now >= ends_at {
                break;
            }
            if now >= tell_at {
                tell(&self.progress());
                tell_at = now + PROGRESS_EVERY;
            }
            self.ring(now)?;
            self.send_strangers(now);
            for number in std::mem::take(&mut self.unfinished) {
                self.read(number, &mut buffer)?;
            }
            self.flush();
            let mut until = ends_at.min(tell_at);
            if let Some(Reverse((at, _))) = self.timers.peek() {
                until = until.min(*at);
            }
            if self.strangers.per_second > 0 {
                until = until.min(now + STRANGERS_EVERY);
            }
            let wait = if self.unfinished.is_empty() {
                // epoll counts in milliseconds: rounded up, or the last one would be spent spinning.
                until.saturating_duration_since(Instant::now()) + Duration::from_micros(999)
            } else {
                Duration::ZERO
            };
            match self.poll.poll(&mut events, Some(wait)) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                Ok(()) | Err(_) => {}
            }
            for event in &events {
                match event.token() {
                    DHCP => self.receive_dhcp(&mut buffer)?,
                    ROUTERS => self.receive_routers(&mut buffer)?,
                    Token(number) => self.read(number, &mut buffer)?,
                }
            }
            self.flush();
        }
        tell(&self.progress());
        let now = Instant::now();
        for slot in &mut self.slots {
            slot.machine.end(now);
        }
        let machines: Vec<&Machine> = self.slots.iter().map(|slot| &slot.machine).collect();
        let circumstances = Circumstances {
            seed: order.seed,
            loss: order.loss,
            goal: order.goal.last_stage().as_str(),
            address_conflicts: self.address_conflicts,
            own_drops: self.drops,
            strangers: self.strangers.sent,
            storm_cpu_secs: thread_cpu_secs(),
        };
        Ok(Report::of(&machines, circumstances))
    }

    fn progress(&self) -> Progress {
        let mut progress = Progress::default();
        for machine in self.slots.iter().map(|slot| &slot.machine) {
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
    fn ring(&mut self, now: Instant) -> io::Result<()> {
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
        self.addresses.add(address)
    }

    // --- the wire ---------------------------------------------------------------------------------------------------

    fn flush(&mut self) {
        if !self.frames.is_empty() {
            self.drops += self.dhcp.send(&self.frames);
            self.frames.clear();
        }
    }

    fn send_strangers(&mut self, now: Instant) {
        let strangers = &mut self.strangers;
        if strangers.per_second == 0 {
            return;
        }
        let due = now.duration_since(strangers.began).as_secs_f64() * f64::from(strangers.per_second);
        while (strangers.sent as f64) < due {
            strangers.sent += 1;
            let bytes = strangers.random.next_u64().to_be_bytes();
            let mac = MacAddr([0x06, bytes[0], bytes[1], bytes[2], bytes[3], bytes[4]]);
            let who = Identity { mac, uuid: [0; 16] };
            let message = message::emit(&OVMF.dhcp, &who, Ask::Discover, strangers.random.next_u32(), 0);
            self.frames.push(dhcp_frame(mac, &message));
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
                self.unfinished.push_back(number);
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
