//! One run: machines and systems, a network, the appliance, its disk, and one clock that all of them are told.
//!
//! Until [`Plan::faults_until`] packets are lost, repeated and late, commits fail, the power goes and comes back with
//! another wall clock. Then everything works, and whoever is there has to be served before [`PATIENCE`] is over.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt::Display;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant};

use farrier::boot::decision::UnknownPolicy;
use farrier::bootplane::content::Ticket;
use farrier::clock::Timestamp;
use farrier::net::MacAddr;
use farrier::node::registry::NodeRef;
use farrier::node::timeline::FileOutcome;
use farrier::storm::firmware::Kind;
use farrier::storm::http::{Answer, Method};
use farrier::storm::machine::{Event, Fetch, Fetched, Trouble};
use farrier::storm::message::{self, Identity};
use farrier::storm::random::Stream;

use crate::appliance::{Appliance, Begun, Call};
use crate::checks::{Checks, TIMELINES_EVERY};
use crate::disk::{Disk, Fate};
use crate::plan::{Plan, below, pick};
use crate::player::{Order, Player};

/// A BIOS ROM asks for a minute before it gives up, a boot loop is let go after ten, an agent's token lasts thirty.
const PATIENCE: u64 = 45 * 60 * 1000;
/// The wall clock of the first start.
const EPOCH: u64 = 1_795_000_000_000;
const TICK: u64 = 5000;
/// By how much the wall clock is off after a restart, seconds: a step of NTP, a time zone, a battery that is empty.
const JUMPS: [i64; 6] = [1, 60, 3600, 86_400, 31_536_000, TEN_YEARS];
const TEN_YEARS: i64 = 315_576_000;
const SKEW_MAX: i64 = TEN_YEARS * 1000;
/// Nodes that could not be saved are saved by a tick; the last ones after the last machine was served.
const SETTLING: u64 = 4 * TICK;
/// Far beyond what any seed needs: a run that goes in circles is a finding.
const STEPS_MAX: u64 = 2_000_000;

/// Something that will happen. `life`: of the machine it is for; `epoch`: of the appliance it came from.
#[derive(Clone)]
enum Next {
    PowerOn(usize),
    Wake(usize, u32),
    DhcpIn(Vec<u8>, SocketAddrV4, Ipv4Addr),
    Receive,
    DhcpOut(MacAddr, Vec<u8>),
    TftpIn(SocketAddrV4, u16, Vec<u8>),
    TftpOut(usize, u32, u16, u16, Vec<u8>),
    TftpTimer,
    Request(usize, u32, Fetch),
    Answer(usize, u32, u32, Result<Answer, Trouble>, Option<Ticket>),
    RouterSeen(usize, u32),
    Sync,
    TakeBack,
    Tick,
    Crash,
    Restart,
    DiskFull(bool),
    Reconfigure,
    Stranger,
    Calm,
}

struct Waiting {
    player: usize,
    life: u32,
    inventory: bool,
    call: Call<Answer>,
}

pub struct World {
    pub plan: Plan,
    random: Stream,
    begin: Instant,
    pub now: u64,
    /// Of the appliance's wall clock.
    skew: i64,
    order: u64,
    queue: BinaryHeap<Reverse<(u64, u64, usize)>>,
    things: Vec<Option<Next>>,
    free: Vec<usize>,
    pub players: Vec<Player>,
    pub disk: Arc<Disk>,
    pub appliance: Option<Appliance>,
    epoch: u32,
    inbox: Vec<(Vec<u8>, SocketAddrV4, Ipv4Addr)>,
    calls: Vec<Waiting>,
    approvals: Vec<Call<bool>>,
    sync_scheduled: bool,
    take_back_scheduled: bool,
    tftp_timer: Option<u64>,
    disk_is_full: bool,
    pool_shift: u32,
    calm: bool,
    strangers: u32,
    pub checks: Checks,
    trace: bool,
}

impl World {
    pub fn new(seed: u64, trace: bool) -> World {
        let plan = Plan::of(seed);
        let mut random = Stream::new(seed, 1);
        let players = (0..plan.machines)
            .map(|number| {
                let mac = MacAddr([0x52, 0x54, 0, 7, 0, number as u8]);
                let identity = Identity { mac, uuid: [number as u8 + 1; 16] };
                Player::new(pick(&mut random, &Kind::MIX), identity, Stream::new(seed, 100 + number as u64))
            })
            .collect();
        let mut world = World {
            random,
            begin: Instant::now(),
            now: 0,
            skew: 0,
            order: 0,
            queue: BinaryHeap::new(),
            things: Vec::new(),
            free: Vec::new(),
            players,
            disk: Arc::new(Disk::new(Arc::default())),
            appliance: None,
            epoch: 0,
            inbox: Vec::new(),
            calls: Vec::new(),
            approvals: Vec::new(),
            sync_scheduled: false,
            take_back_scheduled: false,
            tftp_timer: None,
            disk_is_full: false,
            pool_shift: 0,
            calm: false,
            strangers: 0,
            checks: Checks::default(),
            trace,
            plan,
        };
        if trace {
            println!("{:?}", world.plan);
        }
        world.at(0, Next::Restart);
        world.at(TICK, Next::Tick);
        world.at(world.plan.faults_until, Next::Calm);
        for player in 0..world.players.len() {
            let first = below(&mut world.random, 30_000);
            world.at(first, Next::PowerOn(player));
        }
        world.sow();
        world
    }

    /// Everything that goes wrong a number of times a second, until it is calm.
    fn sow(&mut self) {
        for second in 0..self.plan.faults_until / 1000 {
            let mut chance = |probability| self.random.chance(probability);
            let (crash, full, moved, stranger) = (
                chance(self.plan.crashes),
                chance(self.plan.disk_fills),
                chance(self.plan.reconfigures),
                chance(self.plan.strangers),
            );
            let at = second * 1000 + below(&mut self.random, 1000);
            if crash {
                self.at(at, Next::Crash);
            }
            if full {
                self.at(at, Next::DiskFull(true));
                let long = 1000 * below(&mut self.random, 60);
                self.at(at + long, Next::DiskFull(false));
            }
            if moved {
                self.at(at, Next::Reconfigure);
            }
            if stranger {
                self.at(at, Next::Stranger);
            }
        }
    }

    fn at(&mut self, time: u64, next: Next) {
        let place = self.free.pop().unwrap_or_else(|| {
            self.things.push(None);
            self.things.len() - 1
        });
        self.things[place] = Some(next);
        self.order += 1;
        self.queue.push(Reverse((time.max(self.now), self.order, place)));
    }

    fn after(&mut self, wait: u64, next: Next) {
        self.at(self.now + wait, next);
    }

    pub fn instant(&self) -> Instant {
        self.begin + Duration::from_millis(self.now)
    }

    /// The appliance's wall clock.
    fn wall(&self) -> Timestamp {
        wall(self.skew, self.now)
    }

    fn say(&self, what: impl Display) {
        if self.trace {
            println!("{:>9.3} {what}", self.now as f64 / 1000.0);
        }
    }

    /// `Err`: what does not hold.
    pub fn run(&mut self) -> Result<(), String> {
        let mut served_at = None;
        let mut steps = 0_u64;
        while let Some(Reverse((time, _, place))) = self.queue.pop() {
            self.now = time;
            let Some(next) = self.things[place].take() else { continue };
            self.free.push(place);
            self.step(next)?;
            self.settle()?;
            steps += 1;
            if let Some(appliance) = &self.appliance {
                self.checks.bounds(appliance, &self.disk)?;
                if steps.is_multiple_of(TIMELINES_EVERY) {
                    self.checks.timelines(appliance)?;
                }
            }
            if steps > STEPS_MAX {
                return Err(format!("{STEPS_MAX} steps, and no end"));
            }
            if !self.calm {
                continue;
            }
            if self.players.iter().all(Player::is_served) {
                let since = *served_at.get_or_insert(self.now);
                // Something may have been handed to the disk just now; it need not take as long again.
                let settled = if self.waiting() == 0 { SETTLING } else { 2 * SETTLING };
                if self.now > since + settled {
                    return self.conclude();
                }
            } else {
                served_at = None;
            }
            if self.now > self.plan.faults_until + PATIENCE {
                let hungry: Vec<String> =
                    self.players.iter().filter(|player| !player.is_served()).map(Player::describe).collect();
                return Err(format!("not served {PATIENCE} ms after the faults: {}", hungry.join("; ")));
            }
        }
        Err("nothing more happens".to_owned())
    }

    /// What waits for the disk.
    fn waiting(&self) -> usize {
        self.calls.len() + self.approvals.len() + self.disk.waiting()
    }

    fn conclude(&mut self) -> Result<(), String> {
        self.say("all are served");
        if let Some(appliance) = &self.appliance {
            let waiting = self.waiting();
            if waiting > 0 {
                return Err(format!("{waiting} things still wait for the disk"));
            }
            self.checks.memory_is_on_disk(appliance, &self.disk)?;
            self.checks.timelines(appliance)?;
        }
        // A last time, and nothing is in flight: what was acknowledged is found again.
        self.crash();
        self.restart()?;
        Ok(())
    }

    fn step(&mut self, next: Next) -> Result<(), String> {
        let instant = self.instant();
        match next {
            Next::PowerOn(player) => self.power_on(player),
            Next::Wake(player, life) => {
                if self.players[player].life == life {
                    let orders = self.players[player].wake(self.now, instant);
                    self.obey(player, orders)?;
                }
            }
            Next::DhcpIn(bytes, source, destination) => {
                if self.appliance.is_some() {
                    if self.inbox.is_empty() {
                        let wait = below(&mut self.random, 4);
                        self.after(wait, Next::Receive);
                    }
                    self.inbox.push((bytes, source, destination));
                }
            }
            Next::Receive => {
                let (datagrams, now) = (std::mem::take(&mut self.inbox), self.wall());
                if let Some(appliance) = &mut self.appliance {
                    appliance.dhcp(&datagrams, now);
                }
            }
            Next::DhcpOut(mac, bytes) => {
                let Some(player) = self.players.iter().position(|it| it.identity.mac == mac) else {
                    return Ok(());
                };
                let Some(reply) = message::parse(&bytes) else {
                    return Err("a reply that no client can read".to_owned());
                };
                let lease = crate::checks::lease_of(&bytes).unwrap_or_default();
                let orders = self.players[player].reply(reply, lease, self.now, instant);
                self.obey(player, orders)?;
            }
            Next::TftpIn(from, port, bytes) => {
                let wall = self.wall();
                let Some(appliance) = &mut self.appliance else { return Ok(()) };
                let sent = appliance.tftp(from, port, &bytes, instant, wall);
                for (tid, bytes) in sent {
                    self.tftp_out(from, tid, bytes);
                }
            }
            Next::TftpOut(player, life, to, from, bytes) => {
                if self.players[player].life == life {
                    let orders = self.players[player].tftp(to, from, &bytes, instant);
                    self.obey(player, orders)?;
                }
            }
            Next::TftpTimer => {
                self.tftp_timer = None;
                let wall = self.wall();
                let sent =
                    self.appliance.as_mut().map(|it| it.tftp_timers(instant, wall)).unwrap_or_default();
                for (peer, tid, bytes) in sent {
                    self.tftp_out(peer, tid, bytes);
                }
            }
            Next::Request(player, life, fetch) => self.request(player, life, fetch),
            Next::Answer(player, life, epoch, answer, ticket) => {
                let same = epoch == self.epoch && self.appliance.is_some();
                let now = self.wall();
                if let (true, Some(appliance), Some(ticket)) = (same, &self.appliance, &ticket) {
                    appliance.fetched(ticket, FileOutcome::Complete, now);
                }
                // What had left may arrive; what had not is broken off.
                let answer = if same || self.random.chance(0.5) { answer } else { Err(Trouble::HttpBroken) };
                if self.players[player].life == life {
                    let event = Event::Fetched(answer.map(Fetched::Answer));
                    let orders = self.players[player].event(event, instant);
                    self.obey(player, orders)?;
                }
            }
            Next::RouterSeen(player, life) => {
                if self.players[player].life == life && self.appliance.is_some() {
                    let orders = self.players[player].event(Event::RouterSeen, instant);
                    self.obey(player, orders)?;
                }
            }
            Next::Sync => self.sync()?,
            Next::TakeBack => {
                self.take_back_scheduled = false;
                let now = self.wall();
                if let Some(appliance) = &mut self.appliance {
                    appliance.take_back(now);
                }
            }
            Next::Tick => {
                let now = self.wall();
                if let Some(appliance) = &self.appliance {
                    appliance.registry.tick(now);
                }
                self.approve();
                self.after(TICK, Next::Tick);
            }
            Next::Crash => {
                if self.appliance.is_some() {
                    self.crash();
                    let down = below(&mut self.random, 15_000);
                    self.after(down, Next::Restart);
                }
            }
            Next::Restart => self.restart()?,
            Next::DiskFull(full) => self.disk_is_full = full,
            Next::Reconfigure => {
                self.pool_shift = below(&mut self.random, 4) as u32;
                let (settings, now) = (self.plan.dhcp(self.pool_shift), self.wall());
                if let Some(appliance) = &mut self.appliance {
                    appliance.desk.server.reconfigure(settings, now);
                }
            }
            Next::Stranger => {
                self.strangers += 1;
                let [a, b, c, d] = self.strangers.to_be_bytes();
                let identity = Identity { mac: MacAddr([2, 0xee, a, b, c, d]), uuid: [9; 16] };
                let manners = &pick(&mut self.random, &Kind::MIX).manners().dhcp;
                let bytes = message::emit(manners, &identity, message::Ask::Discover, self.strangers, 0);
                self.send_to_server(bytes, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68), Ipv4Addr::BROADCAST);
            }
            Next::Calm => self.become_calm()?,
        }
        Ok(())
    }

    /// After every step: what it put in motion, and what must hold.
    fn settle(&mut self) -> Result<(), String> {
        let now = self.wall();
        let Some(appliance) = &mut self.appliance else { return Ok(()) };
        let sent = std::mem::take(&mut *appliance.outbox.sent.lock().expect("the outbox"));
        appliance.sent += sent.len() as u64;
        let failed = !appliance.outbox.failed.lock().expect("the outbox").is_empty();
        let deadline = appliance.tftp_deadline();
        for (parcel, waited) in &sent {
            if self.trace
                && let Some(report) = &parcel.report
            {
                let (kind, address) = (parcel.reply.kind.as_str(), parcel.reply.address);
                println!("{:>9.3} {kind} {address:?} to {}", self.now as f64 / 1000.0, report.mac);
            }
            self.checks.reply(appliance, &self.disk, parcel, *waited, now)?;
        }
        let unaccounted = appliance.unaccounted();
        if unaccounted != 0 {
            return Err(format!("{unaccounted} datagrams have neither an answer nor a reason for silence"));
        }
        for (parcel, _) in sent {
            if let Some(report) = parcel.report {
                self.carry(Next::DhcpOut(report.mac, parcel.reply.bytes));
            }
        }
        if failed && !self.take_back_scheduled {
            self.take_back_scheduled = true;
            let wait = below(&mut self.random, 3);
            self.after(wait, Next::TakeBack);
        }
        if self.disk.waiting() > 0 && !self.sync_scheduled {
            self.sync_scheduled = true;
            let longest = if self.calm { 3 } else { self.plan.sync_max };
            let wait = 1 + below(&mut self.random, longest);
            self.after(wait, Next::Sync);
        }
        if let Some(deadline) = deadline {
            let at = self.begin + Duration::from_millis(self.now);
            let wait = deadline.saturating_duration_since(at).as_millis() as u64 + 1;
            let at = self.now + wait;
            if self.tftp_timer.is_none_or(|before| before > at) {
                self.tftp_timer = Some(at);
                self.at(at, Next::TftpTimer);
            }
        }
        Ok(())
    }

    // --- the network --------------------------------------------------------------------------------------------------

    fn delay(&mut self) -> u64 {
        // Most packets are quick even where some are not.
        let most = if self.calm || self.random.chance(0.7) { 2 } else { self.plan.delay_max };
        below(&mut self.random, most)
    }

    /// Loses, repeats and delays one datagram.
    fn carry(&mut self, next: Next) {
        if !self.calm && self.random.chance(self.plan.loss) {
            return;
        }
        if !self.calm && self.random.chance(self.plan.repetition) {
            let wait = self.delay();
            self.after(wait, next.clone());
        }
        let wait = self.delay();
        self.after(wait, next);
    }

    fn send_to_server(&mut self, bytes: Vec<u8>, source: SocketAddrV4, destination: Ipv4Addr) {
        self.carry(Next::DhcpIn(bytes, source, destination));
    }

    fn tftp_out(&mut self, peer: SocketAddrV4, tid: u16, bytes: Vec<u8>) {
        let here = |player: &Player| player.address == Some(*peer.ip());
        let Some(player) = self.players.iter().position(here) else { return };
        let life = self.players[player].life;
        self.carry(Next::TftpOut(player, life, peer.port(), tid, bytes));
    }

    fn request(&mut self, player: usize, life: u32, fetch: Fetch) {
        if self.players[player].life != life {
            return;
        }
        let Fetch::Http { method, url, bearer, body, .. } = fetch else { return };
        let (now, epoch) = (self.wall(), self.epoch);
        let (Some(appliance), Some(address)) = (&self.appliance, self.players[player].address) else {
            let wait = 500 + below(&mut self.random, 2500);
            return self.after(wait, Next::Answer(player, life, epoch, Err(Trouble::NoConnection), None));
        };
        if method != Method::Post {
            let (answer, ticket) = appliance.get(address, method, &url.path, now);
            let wait = 1 + self.delay();
            return self.after(wait, Next::Answer(player, life, epoch, Ok(answer), ticket));
        }
        let inventory = url.path.ends_with("inventory");
        let body = self.players[player].sign(body);
        match appliance.post(address, &url.path, bearer, body, now) {
            Begun::Done(answer) => self.answer(player, life, answer),
            Begun::Waits(call) => self.calls.push(Waiting { player, life, inventory, call }),
        }
    }

    fn answer(&mut self, player: usize, life: u32, answer: Answer) {
        self.say(format_args!("{} is answered {}", self.players[player].identity.mac, answer.status));
        let wait = 1 + self.delay();
        let epoch = self.epoch;
        self.after(wait, Next::Answer(player, life, epoch, Ok(answer), None));
    }

    // --- machines -----------------------------------------------------------------------------------------------------

    fn power_on(&mut self, player: usize) {
        self.checks.gives_up(self.players[player].identity.mac);
        let instant = self.instant();
        let orders = self.players[player].power_on(self.now, instant);
        self.say(format_args!("{} is switched on", self.players[player].identity.mac));
        // It cannot fail: nothing is claimed yet.
        let _ = self.obey(player, orders);
    }

    fn obey(&mut self, player: usize, orders: Vec<Order>) -> Result<(), String> {
        let life = self.players[player].life;
        for order in orders {
            match order {
                Order::Dhcp(bytes, source, destination) => {
                    self.checks.sends(self.players[player].identity.mac, &bytes);
                    self.send_to_server(bytes, source, destination);
                }
                Order::Tftp(from, port, bytes) => self.carry(Next::TftpIn(from, port, bytes)),
                Order::Http(fetch) => {
                    let wait = self.delay();
                    self.after(wait, Next::Request(player, life, fetch));
                }
                Order::SolicitRouter => {
                    if self.random.chance(0.8) {
                        self.after(20, Next::RouterSeen(player, life));
                    }
                }
                Order::Takes { address, until } => {
                    let mac = self.players[player].identity.mac;
                    self.say(format_args!("{mac} uses {address}"));
                    self.checks.takes(mac, address, until, self.now)?;
                }
                Order::GivesUp => self.checks.gives_up(self.players[player].identity.mac),
                Order::Wake(at) => self.at(at, Next::Wake(player, life)),
                Order::Enrolled => {
                    self.say(format_args!("{} has enrolled", self.players[player].identity.mac));
                    let (appliance, mac) = (self.appliance.as_ref(), self.players[player].identity.mac);
                    self.checks.enrolled(appliance, &self.disk, mac)?;
                }
                Order::Lost(why) => {
                    self.say(format_args!("{} gave up: {why}", self.players[player].identity.mac));
                    let wait = 3000 + below(&mut self.random, 30_000);
                    self.after(wait, Next::PowerOn(player));
                }
            }
        }
        Ok(())
    }

    fn approve(&mut self) {
        if self.plan.unknown != UnknownPolicy::Approve || !(self.calm || self.random.chance(0.2)) {
            return;
        }
        let (Some(appliance), now) = (&self.appliance, self.wall()) else { return };
        let unapproved = appliance.registry.nodes().into_iter().filter(|node| !node.approved);
        let ids: Vec<_> = unapproved.filter_map(|node| Some(NodeRef::Mac(node.ports.first()?.mac))).collect();
        for id in ids {
            match appliance.approve(id, now) {
                Begun::Done(_) => {}
                Begun::Waits(call) => self.approvals.push(call),
            }
        }
    }

    // --- the appliance's life -----------------------------------------------------------------------------------------

    fn sync(&mut self) -> Result<(), String> {
        self.sync_scheduled = false;
        let fate = if self.calm {
            Fate::Synced
        } else if self.disk_is_full {
            Fate::Refused
        } else if self.random.chance(self.plan.commit_fails) {
            pick(
                &mut self.random,
                &[Fate::Refused, Fate::SyncFailed { kept: true }, Fate::SyncFailed { kept: false }],
            )
        } else {
            Fate::Synced
        };
        if fate != Fate::Synced {
            self.say(format_args!("commit: {fate:?}"));
        }
        self.disk.sync(fate);
        for Waiting { player, life, inventory, call } in std::mem::take(&mut self.calls) {
            let answer = call.end();
            if inventory && answer.status == 200 {
                self.checks.inventory_is_on_disk(&self.disk, self.players[player].identity.mac)?;
            }
            self.answer(player, life, answer);
        }
        for call in std::mem::take(&mut self.approvals) {
            call.end();
        }
        Ok(())
    }

    fn crash(&mut self) {
        let survive = if self.calm { 0 } else { below(&mut self.random, self.disk.waiting() as u64 + 1) };
        self.say(format_args!(
            "the power goes; {survive} of {} batches are found again",
            self.disk.waiting()
        ));
        self.disk.cut(survive as usize);
        self.appliance = None;
        self.inbox.clear();
        self.epoch += 1;
        for Waiting { player, life, call, .. } in std::mem::take(&mut self.calls) {
            call.end();
            let (wait, epoch) = (self.delay(), self.epoch);
            self.after(wait, Next::Answer(player, life, epoch, Err(Trouble::HttpBroken), None));
        }
        for call in std::mem::take(&mut self.approvals) {
            call.end();
        }
        self.checks.most_waiting = self.checks.most_waiting.max(self.disk.most_waiting());
    }

    fn restart(&mut self) -> Result<(), String> {
        if self.appliance.is_some() {
            return Ok(());
        }
        if !self.calm && self.random.chance(self.plan.jumps) {
            let size = pick(&mut self.random, &JUMPS) * 1000;
            // Not ten years back and ten years back again until it is 1970.
            let ahead = if self.skew.abs() > SKEW_MAX { self.skew < 0 } else { self.random.chance(0.5) };
            self.skew += if ahead { size } else { -size };
            self.say(format_args!("the clock goes {} by {size} ms", if ahead { "forward" } else { "back" }));
        }
        self.disk = Arc::new(self.disk.reopened());
        let now = self.wall();
        let settings = self.plan.dhcp(self.pool_shift);
        let appliance = Appliance::start(&self.disk, settings, self.plan.registry(), now);
        self.say("the appliance starts");
        self.checks.nothing_acknowledged_is_lost(&appliance, self.now, |time| wall(self.skew, time))?;
        self.appliance = Some(appliance);
        Ok(())
    }

    /// From here on all goes well. Half of those who are through start over: who boots now must get through.
    fn become_calm(&mut self) -> Result<(), String> {
        self.say("calm");
        self.calm = true;
        self.disk_is_full = false;
        self.restart()?;
        for player in 0..self.players.len() {
            if self.players[player].is_served() && self.random.chance(0.5) {
                self.power_on(player);
            }
        }
        Ok(())
    }
}

/// What a wall clock that is off by so much says at a true time.
fn wall(skew: i64, time: u64) -> Timestamp {
    Timestamp::from_millis((EPOCH + time).saturating_add_signed(skew))
}
