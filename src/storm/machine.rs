//! One machine, from power-on until it has enrolled or given up: events in, actions out, no socket and no clock.
//!
//! ```text
//!   firmware  DISCOVER … ACK ─ (size) ─ loader ─┐
//!   iPXE      DISCOVER … ACK ─ script ─ kernel ─ ramdisk ─┐
//!   ramdisk   DISCOVER … ACK ─ hello ─ inventory ─ enrolled
//! ```
//! Under Secure Boot the loader is shim, which fetches GRUB, which keeps the firmware's lease and goes on by TFTP.
//!
//! Whoever drives it carries out the [`Action`]s, reports each fetch's end, and wakes it at [`Machine::wake_at`].

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use crate::storm::firmware::{Kind, Manners, RAMDISK, SHIM};
use crate::storm::http::{Answer, Method, Url};
use crate::storm::message::{Identity, Reply};
use crate::storm::random::Stream;
use crate::storm::script::{self, Boot, Instruction, Source};
use crate::storm::tftp::Received;

mod calls;
mod dhcp;
mod record;

pub use record::{Goal, Record, Stage, Trouble};

/// What shim asks for, in the folder it came from; a miss is its usual answer.
const REVOCATIONS: &str = "revocations.efi";
const SECOND_LOADER: &str = "grubx64.efi";
/// Where Debian's signed GRUB looks for its text.
const GRUB_TEXT: &str = "/grub/grub.cfg";
/// Times vary by this much either way: no two machines are equally quick.
const JITTER: f64 = 0.03;
/// What iPXE does to a 503 whose `Retry-After` it cannot read.
const COME_BACK_SECS: u64 = 5;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Broadcast this DHCP message.
    SendDhcp(Vec<u8>),
    /// Ask for an IPv6 router.
    SolicitRouter,
    /// The address is ours from now on, and any earlier one no longer.
    Bind(Ipv4Addr),
    Fetch(Fetch),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fetch {
    /// `probe`: the size only. `keep`: the content is wanted.
    Tftp {
        server: SocketAddrV4,
        name: String,
        probe: bool,
        keep: bool,
    },
    Http {
        method: Method,
        url: Url,
        bearer: Option<String>,
        body: Vec<u8>,
        keep: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fetched {
    File(Received),
    Answer(Answer),
}

#[derive(Debug)]
pub enum Event {
    PowerOn,
    Reply(Reply),
    /// A router advertisement went by.
    RouterSeen,
    Fetched(Result<Fetched, Trouble>),
    /// The time has come that was asked for.
    Woken,
}

/// Which program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Firmware,
    Shim,
    /// iPXE, or GRUB.
    ScriptReader,
    Ramdisk,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    LoaderSize,
    Loader,
    Revocations,
    SecondLoader,
    Script(Source),
    Kernel,
    Ramdisk(usize),
    Hello,
    Inventory,
}

#[derive(Debug)]
struct Conversation {
    xid: u32,
    /// Of this kind of message.
    first_sent: Instant,
    attempt: usize,
    resend_at: Instant,
}

#[derive(Debug)]
enum Phase {
    Off,
    Starting,
    Discovering {
        talk: Conversation,
        offer: Option<Reply>,
    },
    Requesting {
        talk: Conversation,
        offer: Reply,
    },
    /// Bound; iPXE gives IPv6 a chance.
    AwaitingRouter(Reply),
    Fetching(Step),
    Pausing(Step),
    Over,
}

#[derive(Debug)]
pub struct Machine {
    pub kind: Kind,
    identity: Identity,
    goal: Goal,
    random: Stream,
    role: Role,
    phase: Phase,
    address: Option<Ipv4Addr>,
    loader: Option<Source>,
    boot: Option<Boot>,
    session: String,
    router_seen: bool,
    stage: Stage,
    stage_began: Option<Instant>,
    calls_failed: u32,
    wake_at: Option<Instant>,
    pub record: Record,
}

impl Machine {
    pub fn new(kind: Kind, identity: Identity, goal: Goal, random: Stream) -> Machine {
        Machine {
            kind,
            identity,
            goal,
            random,
            role: Role::Firmware,
            phase: Phase::Off,
            address: None,
            loader: None,
            boot: None,
            session: String::new(),
            router_seen: false,
            stage: Stage::FirmwareDhcp,
            stage_began: None,
            calls_failed: 0,
            wake_at: None,
            record: Record::default(),
        }
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    pub fn stage(&self) -> Stage {
        self.stage
    }

    pub fn wake_at(&self) -> Option<Instant> {
        self.wake_at
    }

    pub fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over)
    }

    /// Of the program that runs now.
    pub fn manners(&self) -> &'static Manners {
        match self.role {
            Role::Firmware => self.kind.manners(),
            Role::Shim => &SHIM,
            Role::ScriptReader => self.kind.script_reader(),
            Role::Ramdisk => &RAMDISK,
        }
    }

    pub fn handle(&mut self, event: Event, now: Instant, out: &mut Vec<Action>) {
        match event {
            Event::PowerOn => {
                self.record.powered_on = Some(now);
                self.discover(now, out);
            }
            Event::Reply(reply) => self.handle_reply(reply, now, out),
            // Only a program that listens hears it, and what it heard is forgotten with it.
            Event::RouterSeen if self.role == Role::ScriptReader => {
                self.router_seen = true;
                if let Phase::AwaitingRouter(reply) = &self.phase {
                    let reply = reply.clone();
                    self.use_lease(&reply, now, out);
                }
            }
            Event::RouterSeen => {}
            Event::Fetched(outcome) => self.handle_fetched(outcome, now, out),
            Event::Woken => self.handle_time(now, out),
        }
    }

    /// The storm is over, and this machine not done.
    pub fn end(&mut self, why: Trouble, now: Instant) {
        if !self.is_over() {
            self.give_up(why, now);
        }
    }

    fn millis(&mut self, millis: u64) -> Duration {
        let factor = 1.0 + JITTER * (2.0 * self.random.unit() - 1.0);
        Duration::from_millis(millis).mul_f64(factor)
    }

    fn enter(&mut self, stage: Stage, now: Instant) {
        self.stage = stage;
        self.stage_began = Some(now);
    }

    /// The stage is done; true if that was all there was to do.
    fn leave(&mut self, now: Instant) -> bool {
        let took = self.stage_began.map_or(Duration::ZERO, |began| now.duration_since(began));
        self.record.took[self.stage as usize] = Some(took);
        self.record.left_at[self.stage as usize] = Some(now);
        if self.stage != self.goal.last_stage() {
            return false;
        }
        self.finish(now);
        true
    }

    fn finish(&mut self, now: Instant) {
        self.record.ended = Some(now);
        self.phase = Phase::Over;
        self.wake_at = None;
    }

    fn give_up(&mut self, trouble: Trouble, now: Instant) {
        self.record.lost = Some((self.stage, trouble));
        self.finish(now);
    }

    fn give_up_on(&mut self, trouble: Trouble, now: Instant) {
        self.record.setbacks.push((self.stage, trouble));
        self.give_up(trouble, now);
    }

    fn handle_time(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.wake_at.is_none_or(|at| now < at) {
            return;
        }
        self.wake_at = None;
        match &self.phase {
            Phase::Off | Phase::Fetching(_) | Phase::Over => {}
            Phase::Starting => self.discover(now, out),
            Phase::Discovering { talk, offer } => {
                if offer.is_some() && now < talk.resend_at {
                    self.request(now, out);
                } else {
                    self.resend(now, out);
                }
            }
            Phase::Requesting { .. } => self.resend(now, out),
            Phase::AwaitingRouter(reply) => {
                let reply = reply.clone();
                self.use_lease(&reply, now, out);
            }
            Phase::Pausing(step) => {
                let step = step.clone();
                self.take(step, now, out);
            }
        }
    }

    /// Bound: on to what the lease says is to be loaded.
    fn use_lease(&mut self, reply: &Reply, now: Instant, out: &mut Vec<Action>) {
        self.wake_at = None;
        if self.leave(now) {
            return;
        }
        if self.role == Role::Ramdisk {
            self.enter(Stage::Enroll, now);
            return self.take(Step::Hello, now, out);
        }
        let file = reply.boot_file.as_deref();
        let source = file.and_then(|file| Source::of_boot_file(file, reply.next_server));
        let Some(source) = source else { return self.give_up(Trouble::NoBootFile, now) };
        if self.role == Role::ScriptReader {
            self.enter(Stage::Script, now);
            return self.take(Step::Script(source), now, out);
        }
        self.enter(Stage::Loader, now);
        let manners = self.manners();
        let asks_size = match &source {
            Source::Tftp(..) => manners.tftp.probes_size,
            Source::Http(_) => manners.http.asks_size,
        };
        self.loader = Some(source);
        self.take(if asks_size { Step::LoaderSize } else { Step::Loader }, now, out);
    }

    // --- files ------------------------------------------------------------------------------------------------------

    /// Sets out to fetch what the step needs.
    fn take(&mut self, step: Step, now: Instant, out: &mut Vec<Action>) {
        let beside_loader = |name| self.loader.as_ref().and_then(|loader| loader.beside(name));
        let fetch = match &step {
            Step::LoaderSize => self.loader.as_ref().map(|loader| get(loader, true, false)),
            Step::Loader => self.loader.as_ref().map(|loader| get(loader, false, false)),
            Step::Revocations => beside_loader(REVOCATIONS).map(|source| get(&source, false, false)),
            Step::SecondLoader => beside_loader(SECOND_LOADER).map(|source| get(&source, false, false)),
            Step::Script(source) => Some(get(source, false, true)),
            Step::Kernel => self.boot.as_ref().map(|boot| get(&boot.kernel, false, false)),
            Step::Ramdisk(index) => self
                .boot
                .as_ref()
                .and_then(|boot| boot.ramdisks.get(*index))
                .map(|source| get(source, false, false)),
            Step::Hello | Step::Inventory => self.call(&step, now),
        };
        match fetch {
            Some(fetch) => {
                self.phase = Phase::Fetching(step);
                self.wake_at = None;
                out.push(Action::Fetch(fetch));
            }
            None => self.give_up(Trouble::BadScript, now),
        }
    }

    fn pause(&mut self, step: Step, secs: f64, now: Instant) {
        self.phase = Phase::Pausing(step);
        self.wake_at = Some(now + Duration::from_secs_f64(secs));
    }

    fn handle_fetched(&mut self, outcome: Result<Fetched, Trouble>, now: Instant, out: &mut Vec<Action>) {
        let Phase::Fetching(step) = &self.phase else { return };
        let step = step.clone();
        if matches!(step, Step::Hello | Step::Inventory) {
            return self.handle_answer(step, outcome, now, out);
        }
        let (bytes, content) = match outcome {
            Ok(Fetched::File(file)) => (file.bytes, file.content),
            Ok(Fetched::Answer(answer)) if answer.status == 200 => (answer.length, answer.content),
            Ok(Fetched::Answer(answer)) if answer.status == 503 && self.manners().http.comes_back => {
                self.record.told_to_wait += 1;
                return self.pause(step, answer.retry_after.unwrap_or(COME_BACK_SECS) as f64, now);
            }
            Ok(Fetched::Answer(answer)) => {
                return self.handle_missing(Trouble::HttpStatus(answer.status), now);
            }
            Err(Trouble::FileMissing) if step == Step::Revocations => {
                return self.take(Step::SecondLoader, now, out);
            }
            Err(trouble) => return self.handle_missing(trouble, now),
        };
        self.record.bytes += if step == Step::LoaderSize { 0 } else { bytes };
        match step {
            Step::LoaderSize => self.take(Step::Loader, now, out),
            Step::Loader if self.kind == Kind::UefiSecure => {
                self.role = Role::Shim;
                let starts = self.millis(SHIM.starts_within).as_secs_f64();
                self.pause(Step::Revocations, starts, now);
            }
            Step::Loader => {
                if !self.leave(now) {
                    self.start(Role::ScriptReader, now);
                }
            }
            Step::Revocations => self.take(Step::SecondLoader, now, out),
            Step::SecondLoader => {
                if !self.leave(now) {
                    self.start_grub(now);
                }
            }
            Step::Script(source) => self.obey(&String::from_utf8_lossy(&content), &source, now, out),
            Step::Kernel => {
                if !self.leave(now) {
                    self.enter(Stage::Ramdisk, now);
                    self.load_ramdisk(0, now, out);
                }
            }
            Step::Ramdisk(index) => self.load_ramdisk(index + 1, now, out),
            Step::Hello | Step::Inventory => {}
        }
    }

    fn load_ramdisk(&mut self, index: usize, now: Instant, out: &mut Vec<Action>) {
        let boot = self.boot.as_ref();
        if boot.is_some_and(|boot| index < boot.ramdisks.len()) {
            return self.take(Step::Ramdisk(index), now, out);
        }
        let calls_home =
            boot.is_some_and(|boot| script::argument(&boot.arguments, "farrier.token").is_some());
        if self.leave(now) {
            return;
        }
        if calls_home {
            self.start(Role::Ramdisk, now);
        } else {
            // Another server's ramdisk: what it does next is not ours to imitate.
            self.finish(now);
        }
    }

    /// The loaded program takes over.
    fn start(&mut self, role: Role, now: Instant) {
        let wait = self.millis(self.manners().starts_within);
        self.role = role;
        self.router_seen = false;
        self.phase = Phase::Starting;
        self.wake_at = Some(now + wait);
    }

    /// GRUB keeps the lease, and asks where it came from.
    fn start_grub(&mut self, now: Instant) {
        let text = self.loader.as_ref().and_then(|loader| loader.beside(GRUB_TEXT));
        let Some(text) = text else { return self.give_up(Trouble::BadScript, now) };
        let wait = self.millis(self.manners().starts_within).as_secs_f64();
        self.role = Role::ScriptReader;
        self.enter(Stage::Script, now);
        self.pause(Step::Script(text), wait, now);
    }

    fn obey(&mut self, text: &str, source: &Source, now: Instant, out: &mut Vec<Action>) {
        let instruction = match self.kind {
            Kind::UefiSecure => script::parse_grub(text, source),
            Kind::Bios | Kind::Uefi | Kind::UefiHttp => script::parse_ipxe(text, source),
        };
        match instruction {
            Some(Instruction::Boot(boot)) => {
                self.boot = Some(boot);
                if !self.leave(now) {
                    self.enter(Stage::Kernel, now);
                    self.take(Step::Kernel, now, out);
                }
            }
            Some(Instruction::Chain { after_secs, script }) => {
                self.pause(Step::Script(script), after_secs as f64, now);
            }
            Some(Instruction::Leave) => self.give_up(Trouble::LocalDisk, now),
            None => self.give_up(Trouble::BadScript, now),
        }
    }

    /// A file could not be had. Firmware gives up; a script may know what to do.
    fn handle_missing(&mut self, trouble: Trouble, now: Instant) {
        let again = self.boot.as_ref().and_then(|boot| boot.again.clone());
        match again {
            Some((secs, script)) if matches!(self.stage, Stage::Kernel | Stage::Ramdisk) => {
                self.record.setbacks.push((self.stage, trouble));
                self.stage = Stage::Script;
                self.pause(Step::Script(script), secs as f64, now);
            }
            Some(_) | None => self.give_up_on(trouble, now),
        }
    }
}

/// The fetch of a file; `size_only`: TFTP's probe, HTTP's HEAD.
fn get(source: &Source, size_only: bool, keep: bool) -> Fetch {
    match source {
        Source::Tftp(server, name) => {
            Fetch::Tftp { server: *server, name: name.clone(), probe: size_only, keep }
        }
        Source::Http(url) => {
            let method = if size_only { Method::Head } else { Method::Get };
            Fetch::Http { method, url: url.clone(), bearer: None, body: Vec::new(), keep }
        }
    }
}

#[cfg(test)]
mod tests;
