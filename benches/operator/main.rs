//! The operator plane with 10 000 nodes that have a history: how long lists and nodes take, whether 1 000 watchers
//! hold, and what a busy operator plane does to DHCP.
//!
//! Prints a table; a target that is missed ends it with 1. `make bench-operator` builds what it needs.

#![allow(
    clippy::disallowed_methods,
    reason = "a load keeps to a schedule; nothing here waits for a condition by sleeping long enough"
)]

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use farrier::boot::client::{ClientClass, Firmware};
use farrier::boot::decision::NextBoot;
use farrier::clock::{Clock, Timestamp};
use farrier::net::{MacAddr, sys};
use farrier::node::state::ProvisionState;
use farrier::node::timeline::{Happening, TimelineEvent};
use farrier::node::{Node, NodeId, NodeName, Origin, Port};
use farrier::store::sqlite::SqliteStore;
use farrier::store::{Change, Store};

#[path = "../versus/bed.rs"]
#[allow(dead_code)]
mod bed;
#[path = "../versus/dhcp_client.rs"]
#[allow(dead_code)]
mod dhcp_client;

use bed::{BRIDGE, Bed, PREFIX, SERVER};
use dhcp_client::{Agent, Load};

const NODES: u32 = 10_000;
const BOOTS: u32 = 3;
const EVENTS_PER_BOOT: u32 = 12;
const WATCHERS: usize = 1000;
const REQUESTS: usize = 500;
const LISTEN: &str = "127.0.0.1:8067";
/// Exchanges a second: a rack that boots, not an overload.
const DHCP_RATE: f64 = 500.0;
const DHCP_FOR: Duration = Duration::from_secs(10);
/// Odd, for the median.
const ROUNDS: usize = 5;

fn main() {
    bed::isolated();
    let bed = Bed::new(1);
    let state = bed.fresh("operator");
    seed(&state);
    let socket = state.join("operator.sock");
    let appliance = Appliance::start(&state, &socket);
    let mut table = Table::default();

    let lists = timed(|number| {
        let cursor =
            format!("{:x}-{}", millis(number as u32 * 17 % NODES), id(number as u32 * 17 % NODES).0.simple());
        get(&socket, &format!("/api/v1/nodes?limit=100&cursor={cursor}"))
    });
    table.row("list of 100 of 10 000 nodes, p99", "≤ 50 ms", percentile(&lists, 0.99), 50.0);
    let whole = timed(|_| get(&socket, "/api/v1/nodes?limit=1000"));
    table.row("list of 1 000 of them, p99", "≤ 50 ms", percentile(&whole, 0.99), 50.0);
    let searched = timed(|number| get(&socket, &format!("/api/v1/nodes?q=node{:05}", number * 13)));
    table.row("search among all of them, p99", "≤ 50 ms", percentile(&searched, 0.99), 50.0);
    let nodes = timed(|number| get(&socket, &format!("/api/v1/nodes/node{:05}", number * 13)));
    table.row("node document, p99", "≤ 100 ms", percentile(&nodes, 0.99), 100.0);
    let boots = timed(|number| get(&socket, &format!("/api/v1/nodes/node{:05}/boots", number * 13)));
    table.row("its boots, p99", "≤ 100 ms", percentile(&boots, 0.99), 100.0);

    let list_page = timed(|_| get(&socket, "/nodes"));
    table.row("page of the nodes, drawn, p99", "≤ 100 ms", percentile(&list_page, 0.99), 100.0);
    let node_page = timed(|number| get(&socket, &format!("/nodes/node{:05}", number * 13)));
    table.row("page of one node, drawn, p99", "≤ 100 ms", percentile(&node_page, 0.99), 100.0);

    let held = watchers(&socket);
    table.row("1 000 watchers, all told of 20 events, worst", "≤ 2 000 ms", held, 2000.0);

    let token = token(&socket);
    let (mut alone, mut loaded) = (Vec::new(), Vec::new());
    // In turns, because the machine's own speed drifts by more than what is looked for.
    for round in 1..=ROUNDS {
        alone.push(dhcp_p99(&bed));
        let mut wrk = wrk(&token);
        loaded.push(dhcp_p99(&bed));
        let _ = wrk.kill();
        let told = wrk.wait_with_output().map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let (alone, loaded) = (alone[round - 1], loaded[round - 1]);
        println!("DHCP ACK p99 alone {alone:.2} ms, under wrk {loaded:.2} ms");
        println!("{}", told.unwrap_or_default());
    }
    let part = 100.0 * percentile(&loaded, 0.5) / percentile(&alone, 0.5);
    table.row("DHCP ACK p99 under wrk, of what it is alone", "≤ 110 %", part, 110.0);
    drop(appliance);
    table.finish();
}

fn id(number: u32) -> NodeId {
    NodeId(uuid::Uuid::from_u128(0x4000_8000_0000_0000_0000 | u128::from(number) << 96))
}

fn millis(number: u32) -> u64 {
    1_790_000_000_000 + u64::from(number)
}

/// The state directory as ten thousand boots leave it.
fn seed(state: &Path) {
    let store = SqliteStore::open(&state.join("farrier.db")).expect("a store");
    let now = Clock::start().now();
    for first in (0..NODES).step_by(100) {
        let changes = (first..first + 100).flat_map(|number| node(number, now)).collect();
        store.commit(changes).expect("the disk takes it");
    }
}

fn node(number: u32, now: Timestamp) -> Vec<Change> {
    let [_, a, b, c] = number.to_be_bytes();
    let mac = MacAddr([2, 0, 1, a, b, c]);
    let name: Option<NodeName> = format!("node{number:05}").parse().ok();
    let record = Node {
        id: id(number),
        name,
        uuid: None,
        ports: vec![Port { mac, reserved: None }],
        origin: Origin::Registered,
        approved: true,
        state: ProvisionState::Manageable,
        quirks: Default::default(),
        next_boot: NextBoot::Ramdisk,
        firmware: Some(Firmware::UefiX64),
        created_at: Timestamp::from_millis(millis(number)),
        last_seen_at: Some(now),
        enrolled_at: Some(now),
        inventory: None,
        order: None,
        redeemed_token_at: None,
        redeemed_by: None,
        intent: None,
        labels: Default::default(),
        failure: None,
        version: 7,
    };
    let event = |boot, sequence| TimelineEvent {
        node: id(number),
        boot,
        sequence,
        at: now,
        happening: Happening::Dhcp {
            port: mac,
            class: ClientClass::Firmware { firmware: Firmware::UefiX64 },
            message: "discover".to_owned(),
            xid: number,
            answer: Ok("offer".to_owned()),
            address: Some(Ipv4Addr::new(10, 33, b, c)),
            boot_file: Some("shimx64.efi".to_owned()),
            nothing_to_boot: None,
            other_server: None,
        },
    };
    let events = (1..=BOOTS).flat_map(|boot| (0..EVENTS_PER_BOOT).map(move |sequence| (boot, sequence)));
    let events = events.map(|(boot, sequence)| Change::PutEvent(Box::new(event(boot, sequence))));
    std::iter::once(Change::PutNode(Box::new(record))).chain(events).collect()
}

struct Appliance(Child);

impl Appliance {
    fn start(state: &Path, socket: &Path) -> Appliance {
        let config = state.join("farrier.toml");
        let text = format!(
            "[network]\nbridge = \"{BRIDGE}\"\naddress = \"{SERVER}/{PREFIX}\"\n\
             [operator]\nsocket = \"{}\"\nlisten = \"{LISTEN}\"\n[store]\npath = \"{}\"\n\
             [dhcp]\npool = \"10.33.0.0-10.33.255.255\"\n",
            socket.display(),
            state.display()
        );
        fs::write(&config, text).expect("a configuration");
        let log = fs::File::create(state.join("serve.log")).expect("a log");
        let mut command = Command::new(binary());
        command.args(["serve", "--config"]).arg(&config).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a handle")).stderr(log);
        let mut appliance = Appliance(sys::die_with_parent(&mut command).spawn().expect("farrier starts"));
        bed::wait_for("farrier to answer", || {
            let ended = appliance.0.try_wait().expect("a child of ours");
            assert!(
                ended.is_none(),
                "farrier ends: {}",
                fs::read_to_string(state.join("serve.log")).unwrap_or_default()
            );
            UnixStream::connect(socket).is_ok()
        });
        appliance
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn binary() -> PathBuf {
    let directory = std::env::var_os("FARRIER_BINARIES");
    PathBuf::from(directory.expect("FARRIER_BINARIES: `make bench-operator` sets it")).join("farrier")
}

/// Milliseconds of each request, connection included.
fn timed(ask: impl Fn(usize) -> String) -> Vec<f64> {
    let one = |number| {
        let asked = Instant::now();
        let answer = ask(number);
        let took = asked.elapsed().as_secs_f64() * 1000.0;
        assert!(answer.starts_with("HTTP/1.1 200"), "{}", &answer[..answer.len().min(400)]);
        took
    };
    (0..REQUESTS).map(one).collect()
}

fn get(socket: &Path, path: &str) -> String {
    let mut stream = UnixStream::connect(socket).expect("the appliance accepts");
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    answer
}

fn percentile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * part).ceil() as usize]
}

/// Milliseconds from the first of twenty events until the last of the watchers has all of them.
fn watchers(socket: &Path) -> f64 {
    let mut streams: Vec<UnixStream> = (0..WATCHERS)
        .map(|_| {
            let mut stream = UnixStream::connect(socket).expect("a place for each watcher");
            stream.set_read_timeout(Some(Duration::from_secs(30))).expect("it can");
            stream.write_all(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("it reads");
            stream
        })
        .collect();
    for stream in &mut streams {
        read_until(stream, 1, "retry: ");
    }
    let began = Instant::now();
    for number in 0..20 {
        let body = "{\"order\":\"reboot\"}";
        let mut stream = UnixStream::connect(socket).expect("the appliance accepts");
        let request = format!(
            "POST /api/v1/nodes/node{number:05}/order HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    for stream in &mut streams {
        read_until(stream, 20, "\"order-given\"");
    }
    began.elapsed().as_secs_f64() * 1000.0
}

fn read_until(stream: &mut UnixStream, count: usize, word: &str) {
    let (mut text, mut buffer) = (String::new(), [0; 16 * 1024]);
    while text.matches(word).count() < count {
        let read = stream.read(&mut buffer).expect("an event within its time");
        assert!(read > 0, "the stream ended after {text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..read]));
        assert!(!text.contains("event: lagged"), "a watcher lost events");
    }
}

fn dhcp_p99(bed: &Bed) -> f64 {
    let agent = Agent::new(bed.first().agent_socket(), SERVER);
    agent.first_answer();
    let load = Load { rate: DHCP_RATE, duration: DHCP_FOR, clients: 5000 };
    // Before others: that the client waits for a processor is no delay of the server's.
    let timed = || {
        sys::run_before_others();
        agent.run(load)
    };
    let answers = thread::scope(|scope| scope.spawn(timed).join()).expect("a client that ends");
    assert!(answers.lost() * 100 < answers.started, "{} of {} lost", answers.lost(), answers.started);
    percentile(&answers.acks, 0.99)
}

fn token(socket: &Path) -> String {
    let socket = socket.display().to_string();
    let arguments = ["--socket", &socket, "--json", "token", "create", "bench", "--role", "viewer"];
    let text = bed::run(binary().to_str().expect("a path"), &arguments);
    let document: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    document["token"].as_str().expect("the token's text").to_owned()
}

/// As many requests as the operator plane takes, by eight connections. Below our own priority: it is the load, not
/// what is measured.
fn wrk(token: &str) -> Child {
    let mut command = Command::new("nice");
    command.args(["-n", "10", "wrk", "-t1", "-c8", "-d60s", "--latency"]);
    command.args([
        "-H",
        &format!("Authorization: Bearer {token}"),
        &format!("http://{LISTEN}/api/v1/nodes?limit=100"),
    ]);
    let child = sys::die_with_parent(&mut command).stdout(Stdio::piped()).spawn().expect("wrk starts");
    thread::park_timeout(Duration::from_millis(500));
    child
}

#[derive(Default)]
struct Table {
    missed: bool,
}

impl Table {
    fn row(&mut self, what: &str, target: &str, value: f64, most: f64) {
        let met = value <= most;
        self.missed |= !met;
        println!("{what:<48} {value:>10.2}   {target:<12} {}", if met { "met" } else { "MISSED" });
    }

    fn finish(&self) {
        if self.missed {
            std::process::exit(1);
        }
    }
}
