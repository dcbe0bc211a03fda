//! DHCP clients behind a relay agent that keep a steady load, and a log of what they were promised, which is a model of
//! what the appliance must keep: nobody loses what was acknowledged, and no two hold one address.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::support::{ClientMachine, SERVER, TestBed, eventually};

/// Where the relay agent is; outside of [`POOL`].
pub const RELAY: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 254);
pub const POOL: &str = "[dhcp]\npool = \"192.168.77.10-192.168.77.250\"\n";
/// Fewer than the pool has addresses, so that everybody can be served.
pub const CLIENTS: usize = 200;
/// Long enough for an answer, short enough to be sure of silence many times over.
pub const SHORTLY: Duration = Duration::from_millis(600);
/// Answers later than this are not waited for.
const LOST_AFTER: Duration = Duration::from_secs(1);

pub const DISCOVER: u8 = 1;
pub const OFFER: u8 = 2;
pub const REQUEST: u8 = 3;
pub const ACK: u8 = 5;
pub const NAK: u8 = 6;
const RELEASE: u8 = 7;

/// What one client was told last.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Promise {
    pub address: Ipv4Addr,
    pub told: Instant,
    pub lease: Duration,
}

#[derive(Debug, Default)]
pub struct Book {
    promises: HashMap<usize, Promise>,
    pub acks: u64,
    pub naks: u64,
    pub lost: u64,
    pub exchanges: u64,
    /// Milliseconds from REQUEST to ACK, since they were last taken.
    pub latencies: Vec<f64>,
    /// What must never be.
    pub violations: Vec<String>,
}

/// Shared by the load and the test that watches it.
#[derive(Default)]
pub struct Model {
    book: Mutex<Book>,
    stop: AtomicBool,
    xid: AtomicU64,
}

impl Model {
    pub fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn promises(&self) -> HashMap<usize, Promise> {
        self.book().promises.clone()
    }

    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// Every promise that stood before and after the appliance listed its leases is in the list, for its time.
    pub fn compare(&self, bed: &TestBed) {
        let before = self.promises();
        let listed = bed.farrier_json(&["lease", "list"]);
        let now = Instant::now();
        let after = self.promises();
        let listed: HashMap<&str, &serde_json::Value> = listed
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|lease| Some((lease["address"].as_str()?, lease)))
            .collect();
        for (client, promise) in before.iter().filter(|(client, promise)| after.get(client) == Some(promise))
        {
            let address = promise.address.to_string();
            let lease = listed.get(address.as_str());
            let held = lease.is_some_and(|lease| {
                let until = lease["expires_at"].as_str().and_then(|text| humantime::parse_rfc3339(text).ok());
                let left = until.and_then(|until| until.duration_since(std::time::SystemTime::now()).ok());
                // The promise counts from when it was heard; the two clocks were read a moment apart.
                let promised = promise.lease.saturating_sub(now - promise.told);
                lease["mac"] == mac_text(*client).as_str()
                    && lease["state"] == "bound"
                    && left.is_some_and(|left| left + Duration::from_secs(5) >= promised)
            });
            if !held {
                let told = format!("{} was promised {address}, the store has {lease:?}", mac_text(*client));
                self.book().violations.push(told);
            }
        }
        let violations = std::mem::take(&mut self.book().violations);
        assert!(violations.is_empty(), "{} violations, such as {}", violations.len(), violations[0]);
    }
}

pub fn mac(client: usize) -> [u8; 6] {
    [0x02, 0xfa, 0, 0, (client >> 8) as u8, client as u8]
}

pub fn mac_text(client: usize) -> String {
    mac(client).map(|byte| format!("{byte:02x}")).join(":")
}

/// A message of `client`, as the relay agent passes it on.
pub fn message(kind: u8, client: usize, xid: u32, address: Option<Ipv4Addr>) -> Vec<u8> {
    let mut bytes = vec![0; 240];
    bytes[..4].copy_from_slice(&[1, 1, 6, 1]);
    bytes[4..8].copy_from_slice(&xid.to_be_bytes());
    bytes[24..28].copy_from_slice(&RELAY.octets());
    bytes[28..34].copy_from_slice(&mac(client));
    bytes[236..240].copy_from_slice(&[99, 130, 83, 99]);
    bytes.extend([53, 1, kind]);
    if let Some(address) = address {
        bytes.extend([54, 4]);
        bytes.extend(SERVER.octets());
        match kind {
            RELEASE => bytes[12..16].copy_from_slice(&address.octets()),
            _ => {
                bytes.extend([50, 4]);
                bytes.extend(address.octets());
            }
        }
    }
    bytes.extend([55, 3, 1, 3, 51, 255]);
    bytes
}

/// Kind, xid, address and lease time of a reply.
pub fn read_reply(bytes: &[u8]) -> Option<(u8, u32, Ipv4Addr, Duration)> {
    let xid = u32::from_be_bytes(bytes.get(4..8)?.try_into().ok()?);
    let address = Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(16..20)?).ok()?);
    let (mut kind, mut lease) = (None, 0);
    let mut rest = bytes.get(240..)?;
    while let [code, len, behind @ ..] = rest {
        let (data, next) = match *code {
            255 => break,
            0 => {
                rest = &rest[1..];
                continue;
            }
            _ => behind.split_at_checked(usize::from(*len))?,
        };
        match (*code, data) {
            (53, [value]) => kind = Some(*value),
            (51, data) => lease = u32::from_be_bytes(data.try_into().ok()?),
            _ => {}
        }
        rest = next;
    }
    Some((kind?, xid, address, Duration::from_secs(u64::from(lease))))
}

/// Plugs the relay agent's machine in.
pub fn plug_relay(bed: &mut TestBed) -> ClientMachine {
    let machine = bed.plug("02:fa:ff:00:00:01");
    machine.run("ip", &["addr", "add", &format!("{RELAY}/24"), "dev", "eth0"]);
    machine
}

/// In the machine's network only.
pub fn open_socket() -> UdpSocket {
    let socket = UdpSocket::bind((RELAY, 67)).expect("the relay agent's port");
    socket.set_read_timeout(Some(Duration::from_millis(1))).expect("a read timeout");
    socket
}

fn send(socket: &UdpSocket, bytes: &[u8]) {
    // While the appliance is gone its port is closed; that is what retries are for.
    let _ = socket.send_to(bytes, (SERVER, 67));
}

/// One exchange by hand: repeats the message until it is answered, or gives up.
pub fn ask(socket: &UdpSocket, bytes: &[u8], patience: Duration) -> Option<(u8, Ipv4Addr, Duration)> {
    let until = Instant::now() + patience;
    let wanted = u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    let mut buffer = [0; 1500];
    while Instant::now() < until {
        send(socket, bytes);
        let again = Instant::now() + Duration::from_millis(250);
        while Instant::now() < again.min(until) {
            if let Ok((length, _)) = socket.recv_from(&mut buffer)
                && let Some((kind, xid, address, lease)) = read_reply(&buffer[..length])
                && xid == wanted
            {
                return Some((kind, address, lease));
            }
        }
    }
    None
}

/// DISCOVER and REQUEST; the address and the lease if it was acknowledged.
pub fn bind(client: usize, patience: Duration) -> Option<(Ipv4Addr, Duration)> {
    let socket = open_socket();
    let xid = 0x1000_0000 + client as u32;
    let (kind, address, _) = ask(&socket, &message(DISCOVER, client, xid, None), patience)?;
    assert_eq!(kind, OFFER);
    drop(socket);
    renew(client, address, patience)
}

/// REQUEST with the address as its own, until it is acknowledged.
pub fn renew(client: usize, address: Ipv4Addr, patience: Duration) -> Option<(Ipv4Addr, Duration)> {
    let socket = open_socket();
    let request = message(REQUEST, client, 0x2000_0000 + client as u32, Some(address));
    let (kind, address, lease) = ask(&socket, &request, patience)?;
    assert_eq!(kind, ACK, "a NAK for a client with nothing wrong");
    Some((address, lease))
}

enum Step {
    Offered,
    Acknowledged,
}

struct Exchange {
    client: usize,
    wanted: Step,
    asked: Instant,
    address: Option<Ipv4Addr>,
}

/// Keeps `rate` exchanges a second going until told to stop. A tenth of the clients that hold a lease give it back
/// instead, half of the rest begin anew, and `malformed` of all that is sent is nonsense.
pub fn run(model: &Model, rate: f64, malformed: f64) {
    let socket = open_socket();
    let mut under_way: HashMap<u32, Exchange> = HashMap::new();
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let mut buffer = [0; 1500];
    let began = Instant::now();
    let mut started = 0_u64;
    while !model.stop.load(Ordering::SeqCst) {
        while (started as f64) < began.elapsed().as_secs_f64() * rate {
            started += 1;
            if dice.below(1000) < (malformed * 1000.0) as u64 {
                send(&socket, &nonsense(&mut dice));
            }
            begin(model, &socket, &mut under_way, &mut dice);
        }
        match socket.recv_from(&mut buffer) {
            Ok((length, _)) => hear(model, &socket, &mut under_way, &buffer[..length]),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::ConnectionRefused
                ) => {}
            Err(error) => panic!("the relay agent's socket: {error}"),
        }
        let before = under_way.len();
        under_way.retain(|_, exchange| exchange.asked.elapsed() < LOST_AFTER);
        model.book().lost += (before - under_way.len()) as u64;
    }
}

fn begin(model: &Model, socket: &UdpSocket, under_way: &mut HashMap<u32, Exchange>, dice: &mut Dice) {
    let client = dice.below(CLIENTS as u64) as usize;
    if under_way.values().any(|exchange| exchange.client == client) {
        return;
    }
    let xid = model.xid.fetch_add(1, Ordering::Relaxed) as u32;
    let held = model.book().promises.get(&client).copied();
    let (kind, address, wanted) = match (held, dice.below(10)) {
        (Some(promise), 0) => {
            // Whether it arrives is not known, so from here on nothing is promised.
            model.book().promises.remove(&client);
            return send(socket, &message(RELEASE, client, xid, Some(promise.address)));
        }
        (Some(promise), 1..=5) => (REQUEST, Some(promise.address), Step::Acknowledged),
        (Some(_) | None, _) => (DISCOVER, None, Step::Offered),
    };
    model.book().exchanges += 1;
    send(socket, &message(kind, client, xid, address));
    under_way.insert(xid, Exchange { client, wanted, asked: Instant::now(), address });
}

fn hear(model: &Model, socket: &UdpSocket, under_way: &mut HashMap<u32, Exchange>, bytes: &[u8]) {
    let Some((kind, xid, address, lease)) = read_reply(bytes) else { return };
    let Some(exchange) = under_way.get_mut(&xid) else { return };
    match (kind, &exchange.wanted) {
        (OFFER, Step::Offered) => {
            exchange.wanted = Step::Acknowledged;
            exchange.asked = Instant::now();
            exchange.address = Some(address);
            send(socket, &message(REQUEST, exchange.client, xid, Some(address)));
        }
        (ACK, Step::Acknowledged) => {
            let (client, took) = (exchange.client, exchange.asked.elapsed());
            under_way.remove(&xid);
            acknowledged(&mut model.book(), client, Promise { address, told: Instant::now(), lease }, took);
        }
        (NAK, Step::Acknowledged) => {
            // What it asked for is its own or was just offered to it.
            let told = format!("{} was refused {:?}", mac_text(exchange.client), exchange.address);
            under_way.remove(&xid);
            let mut book = model.book();
            book.naks += 1;
            book.violations.push(told);
        }
        _ => {}
    }
}

fn acknowledged(book: &mut Book, client: usize, promise: Promise, took: Duration) {
    book.acks += 1;
    book.latencies.push(took.as_secs_f64() * 1000.0);
    let other =
        book.promises.iter().find(|(other, held)| **other != client && held.address == promise.address);
    if let Some((other, held)) = other.filter(|(_, held)| held.told.elapsed() < held.lease) {
        let told = format!(
            "{} was given {}, which {} has held for {:?}",
            mac_text(client),
            promise.address,
            mac_text(*other),
            held.told.elapsed()
        );
        book.violations.push(told);
    }
    book.promises.insert(client, promise);
}

/// A message with some of it changed, cut off or made up.
fn nonsense(dice: &mut Dice) -> Vec<u8> {
    let mut bytes = message(DISCOVER, dice.below(1 << 16) as usize, dice.below(1 << 32) as u32, None);
    match dice.below(3) {
        0 => bytes.truncate(dice.below(bytes.len() as u64) as usize),
        1 => (0..8).for_each(|_| {
            let place = dice.below(bytes.len() as u64) as usize;
            bytes[place] = dice.below(256) as u8;
        }),
        _ => bytes.iter_mut().skip(240).for_each(|byte| *byte = dice.below(256) as u8),
    }
    bytes
}

/// Repeatable chance (xorshift).
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// Runs `watch` while the load goes on.
pub fn under_load<T>(
    machine: &ClientMachine,
    rate: f64,
    malformed: f64,
    watch: impl FnOnce(&Model) -> T,
) -> T {
    let model = Model::default();
    std::thread::scope(|scope| {
        let loading = scope.spawn(|| machine.inside(|| run(&model, rate, malformed)));
        // However the watch ends, the load ends with it.
        let watched = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| watch(&model)));
        model.stop();
        loading.join().expect("the load");
        watched.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Waits until the clients were acknowledged `more` times.
pub fn await_acks(model: &Model, more: u64) {
    let wanted = model.book().acks + more;
    eventually("clients are acknowledged", || (model.book().acks >= wanted).then_some(()));
}
