//! One machine on the bridge: the storm's simulated firmware until it has enrolled, then an installed system.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Instant;

use farrier::storm::firmware::Kind;
use farrier::storm::machine::{Action, Event, Fetch, Fetched, Goal, Machine};
use farrier::storm::message::{Identity, Reply, ReplyKind};
use farrier::storm::random::Stream;
use farrier::storm::tftp::Download;

use crate::plan::below;
use crate::system::{Claim, Sent, System};

/// What a player asks of the world.
pub enum Order {
    Dhcp(Vec<u8>, SocketAddrV4, Ipv4Addr),
    /// From its address and port to a port of the server.
    Tftp(SocketAddrV4, u16, Vec<u8>),
    Http(Fetch),
    SolicitRouter,
    Wake(u64),
    /// It uses this address from now on, by a lease it asked for then.
    Takes {
        address: Ipv4Addr,
        until: u64,
    },
    GivesUp,
    Enrolled,
    Lost(String),
}

enum Role {
    Off,
    Booting(Box<Machine>),
    Installed(System),
}

pub struct Player {
    pub identity: Identity,
    kind: Kind,
    random: Stream,
    role: Role,
    /// Which of its boots this is: what was meant for an earlier one is not for it.
    pub life: u32,
    pub address: Option<Ipv4Addr>,
    download: Option<(u16, Download)>,
    /// A repeated hello is told from a stolen token by it; ours has one, older agents have not.
    nonce: Option<String>,
    /// Of the last REQUEST, for the beginning of the lease.
    asked_at: u64,
    last_message: Vec<u8>,
    lease_millis: u64,
    began: Instant,
    began_at: u64,
}

impl Player {
    pub fn new(kind: Kind, identity: Identity, random: Stream) -> Player {
        Player {
            identity,
            kind,
            random,
            role: Role::Off,
            life: 0,
            address: None,
            download: None,
            nonce: None,
            asked_at: 0,
            last_message: Vec::new(),
            lease_millis: 0,
            began: Instant::now(),
            began_at: 0,
        }
    }

    /// Enrolled, and its system has an address.
    pub fn is_served(&self) -> bool {
        matches!(&self.role, Role::Installed(system) if system.has_address())
    }

    pub fn describe(&self) -> String {
        let doing = match &self.role {
            Role::Off => "off".to_owned(),
            Role::Booting(machine) => format!("at {}, {:?}", machine.stage(), machine.record.setbacks),
            Role::Installed(_) => "installed, without an address".to_owned(),
        };
        format!("{} ({}): {doing}, life {}", self.identity.mac, self.kind.as_str(), self.life)
    }

    pub fn power_on(&mut self, now: u64, instant: Instant) -> Vec<Order> {
        self.life += 1;
        self.address = None;
        self.download = None;
        let nonce = (u128::from(self.random.next_u64()) << 64) | u128::from(self.random.next_u64());
        self.nonce = self.random.chance(0.8).then(|| format!("{nonce:032x}"));
        (self.began, self.began_at) = (instant, now);
        let stream = Stream::new(self.random.next_u64(), u64::from(self.life));
        self.role = Role::Booting(Box::new(Machine::new(self.kind, self.identity, Goal::Enroll, stream)));
        self.event(Event::PowerOn, instant)
    }

    pub fn wake(&mut self, now: u64, instant: Instant) -> Vec<Order> {
        let mut orders = Vec::new();
        if self.download.is_some() {
            orders.extend(self.wake_download(instant));
        }
        match &mut self.role {
            Role::Off => {}
            Role::Booting(_) => orders.extend(self.event(Event::Woken, instant)),
            Role::Installed(system) => {
                let mut sent = Vec::new();
                let claim = system.wake(now, &mut sent);
                orders.extend(self.obey_system(claim, sent));
            }
        }
        orders
    }

    pub fn reply(&mut self, reply: Reply, lease_millis: u64, now: u64, instant: Instant) -> Vec<Order> {
        match &mut self.role {
            Role::Off => Vec::new(),
            Role::Booting(_) => {
                if reply.kind == ReplyKind::Ack {
                    self.lease_millis = lease_millis;
                }
                self.event(Event::Reply(reply), instant)
            }
            Role::Installed(system) => {
                let mut sent = Vec::new();
                let claim = system.handle(&reply, lease_millis, now, &mut sent);
                self.obey_system(claim, sent)
            }
        }
    }

    fn obey_system(&mut self, claim: Claim, sent: Vec<Sent>) -> Vec<Order> {
        let Role::Installed(system) = &self.role else { return Vec::new() };
        let mut orders = vec![Order::Wake(system.wake_at)];
        match claim {
            Claim::Same => {}
            Claim::Takes(address) => {
                let until = system.lease_ends();
                self.address = Some(address);
                orders.push(Order::Takes { address, until });
            }
            Claim::GivesUp => {
                self.address = None;
                orders.push(Order::GivesUp);
            }
        }
        orders.extend(sent.into_iter().map(|it| Order::Dhcp(it.bytes, it.source, it.destination)));
        orders
    }

    fn millis(&self, instant: Instant) -> u64 {
        self.began_at + instant.saturating_duration_since(self.began).as_millis() as u64
    }

    pub fn event(&mut self, event: Event, instant: Instant) -> Vec<Order> {
        let now = self.millis(instant);
        let Role::Booting(machine) = &mut self.role else { return Vec::new() };
        let mut actions = Vec::new();
        machine.handle(event, instant, &mut actions);
        let (wake_at, over) = (machine.wake_at(), machine.is_over());
        let (lost, complete) = (machine.record.lost, machine.record.is_complete());
        let mut orders = Vec::new();
        for action in actions {
            match action {
                Action::SendDhcp(bytes) => {
                    // A new conversation, or the same message again: the lease counts from the first.
                    if !self.repeats(&bytes) {
                        self.asked_at = now;
                    }
                    let source = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68);
                    orders.push(Order::Dhcp(bytes, source, Ipv4Addr::BROADCAST));
                }
                Action::SolicitRouter => orders.push(Order::SolicitRouter),
                Action::Bind(address) => {
                    self.address = Some(address);
                    let until = self.asked_at + self.lease_millis;
                    orders.push(Order::Takes { address, until });
                }
                Action::Fetch(fetch) => orders.extend(self.fetch(fetch, instant)),
            }
        }
        if let Some(at) = wake_at {
            orders.push(Order::Wake(self.millis(at) + 1));
        }
        if over && complete {
            orders.push(Order::Enrolled);
            // What was installed starts; its lease is another of the same client.
            self.life += 1;
            let start = now + 5000 + below(&mut self.random, 20_000);
            let stream = Stream::new(self.random.next_u64(), 1);
            self.role = Role::Installed(System::start(self.identity, stream, self.address, start));
            orders.push(Order::Wake(start));
        } else if over {
            self.role = Role::Off;
            self.life += 1;
            self.download = None;
            orders.push(Order::Lost(lost.map_or_else(String::new, |(stage, why)| format!("{stage}: {why}"))));
        }
        // Orders are carried out for the life that follows; a wake of the last one finds nothing to do.
        orders
    }

    /// Whether this DHCP message is the REQUEST of before. Resends differ in `secs` only, which counts from the first.
    fn repeats(&mut self, bytes: &[u8]) -> bool {
        let mut same = bytes.to_vec();
        same[8..10].fill(0);
        let repeats = self.last_message == same;
        self.last_message = same;
        repeats
    }

    // --- files ------------------------------------------------------------------------------------------------------

    fn fetch(&mut self, fetch: Fetch, instant: Instant) -> Vec<Order> {
        let Fetch::Tftp { server, name, probe, keep } = fetch else { return vec![Order::Http(fetch)] };
        let Role::Booting(machine) = &self.role else { return Vec::new() };
        let manners = &machine.manners().tftp;
        let port = 1024 + below(&mut self.random, 60_000) as u16;
        let mut sent = Vec::new();
        let download = Download::start(manners, server, &name, probe, keep, instant, &mut sent);
        self.download = Some((port, download));
        self.send_tftp(sent)
    }

    fn send_tftp(&mut self, sent: Vec<(u16, Vec<u8>)>) -> Vec<Order> {
        let Some((port, download)) = &self.download else { return Vec::new() };
        let from = SocketAddrV4::new(self.address.unwrap_or(Ipv4Addr::UNSPECIFIED), *port);
        let wake = Order::Wake(self.millis(download.deadline()) + 1);
        let datagrams = sent.into_iter().map(|(to, bytes)| Order::Tftp(from, to, bytes));
        datagrams.chain([wake]).collect()
    }

    pub fn tftp(&mut self, to: u16, from: u16, bytes: &[u8], instant: Instant) -> Vec<Order> {
        let Some((_, download)) = self.download.as_mut().filter(|(port, _)| *port == to) else {
            return Vec::new();
        };
        let mut sent = Vec::new();
        let source = SocketAddrV4::new(*download.server().ip(), from);
        let ended = download.handle(source, bytes, instant, &mut sent);
        self.go_on(sent, ended, instant)
    }

    fn wake_download(&mut self, instant: Instant) -> Vec<Order> {
        let Some((_, download)) = &mut self.download else { return Vec::new() };
        let mut sent = Vec::new();
        let ended = download.wake(instant, &mut sent);
        self.go_on(sent, ended, instant)
    }

    fn go_on(
        &mut self,
        sent: Vec<(u16, Vec<u8>)>,
        ended: Option<Result<farrier::storm::tftp::Received, farrier::storm::machine::Trouble>>,
        instant: Instant,
    ) -> Vec<Order> {
        let mut orders = self.send_tftp(sent);
        if let Some(outcome) = ended {
            self.download = None;
            orders.extend(self.event(Event::Fetched(outcome.map(Fetched::File)), instant));
        }
        orders
    }

    /// Our own agent's hello carries a nonce; the storm's does not.
    pub fn sign(&self, body: Vec<u8>) -> Vec<u8> {
        let Some(nonce) = &self.nonce else { return body };
        let Ok(mut call) = serde_json::from_slice::<serde_json::Value>(&body) else { return body };
        if call.get("token").is_some() {
            call["nonce"] = nonce.clone().into();
        }
        call.to_string().into_bytes()
    }
}
