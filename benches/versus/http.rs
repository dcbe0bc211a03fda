//! HTTP: wrk against nginx with sendfile, and scripts rendered per request.

use std::io::{self, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::process::Stdio;
use std::time::Duration;

use farrier::net::MacAddr;

use crate::Plan;
use crate::bed::{self, Bed};
use crate::report::{Figure, Section, digits};
use crate::server::{Job, Kind, Running, Start};
use crate::state::{self, Files, kernel_name, machine_mac};

/// wrk runs on this many machines, as one address may have no more than 32 connections to farrier.
pub const MACHINES: u8 = 10;
const KINDS: [Kind; 2] = [Kind::Farrier, Kind::Nginx];
pub const KERNEL_SIZE: usize = 14 * 1000 * 1000;
const IMAGE_SIZE: u64 = 1 << 30;
const CONNECTIONS: [u32; 3] = [1, 16, 128];
const GIB: f64 = (1_u64 << 30) as f64;

/// What one or several wrk together came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wrk {
    pub bytes: f64,
    pub requests: f64,
    pub seconds: f64,
    /// The slowest machine's 99th percentile, milliseconds.
    pub p99: f64,
    pub errors: f64,
}

/// Images and leases for every machine of the bed.
pub fn prepare(bed: &Bed) -> Files {
    let files = Files::new(bed);
    files.add_bytes("small", &state::content(KERNEL_SIZE));
    files.add_sparse("large", IMAGE_SIZE);
    state::with_leases_of(&files.state, bed.machines.iter().map(|machine| machine.address));
    state::with_nodes(&files.state, bed.machines.iter().map(|machine| machine_mac(machine.address)));
    files
}

/// Starts it and waits until both files are served: farrier hashes a gigabyte before, which is not what is compared.
pub fn start(bed: &Bed, files: &Files, kind: Kind) -> Running {
    let running = Start { bed, job: Job::Http, state: &files.state, files: &files.tree }.run(kind);
    for profile in ["small", "large"] {
        let path = format!("/{}", kernel_name(profile));
        bed::wait_for(&path, || bed.first().inside(|| is_served(kind, &path)).unwrap_or(false));
    }
    running
}

fn is_served(kind: Kind, path: &str) -> io::Result<bool> {
    let mut stream = TcpStream::connect(SocketAddrV4::new(bed::SERVER, kind.http_port()))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "HEAD {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", bed::SERVER)?;
    let mut head = String::new();
    stream.read_to_string(&mut head)?;
    Ok(head.starts_with("HTTP/1.1 200 "))
}

/// The path of the script of the machine with this MAC.
pub fn script_path(mac: MacAddr) -> String {
    format!("/boot/{}/script.ipxe", mac.to_string().replace(':', "-"))
}

/// `connections` spread over machines, at most 16 on each, all for `seconds`.
pub fn wrk(bed: &Bed, seconds: u64, connections: u32, port: u16, path: impl Fn(MacAddr) -> String) -> Wrk {
    wrk_at_most(bed, seconds, connections, 16, port, path)
}

pub fn wrk_at_most(
    bed: &Bed,
    seconds: u64,
    connections: u32,
    per_machine: u32,
    port: u16,
    path: impl Fn(MacAddr) -> String,
) -> Wrk {
    let machines = connections.div_ceil(per_machine);
    assert!(machines as usize <= bed.machines.len(), "{connections} connections need more machines");
    let children: Vec<_> = bed.machines[..machines as usize]
        .iter()
        .map(|machine| {
            let path = path(machine_mac(machine.address));
            let mut command = machine.command("wrk");
            command.args(["-t1", "-c", &(connections / machines).to_string(), "-d", &format!("{seconds}s")]);
            command.args(["--latency", "--timeout", "10s", &format!("http://{}:{port}{path}", bed::SERVER)]);
            command.stdout(Stdio::piped()).spawn().expect("wrk (package wrk) starts")
        })
        .collect();
    let mut total = Wrk::default();
    for child in children {
        let output = child.wait_with_output().expect("wrk ends");
        let one = parse(&String::from_utf8_lossy(&output.stdout));
        total.bytes += one.bytes;
        total.requests += one.requests;
        total.errors += one.errors;
        total.seconds = total.seconds.max(one.seconds);
        total.p99 = total.p99.max(one.p99);
    }
    total
}

/// `  1234 requests in 4.01s, 16.10GB read`, `     99%    1.20ms`, `  Socket errors: connect 0, read 0, …`.
fn parse(text: &str) -> Wrk {
    let mut wrk = Wrk::default();
    for line in text.lines().map(str::trim) {
        if let Some((requests, rest)) = line.split_once(" requests in ") {
            let (seconds, read) = rest.split_once(", ").unwrap_or((rest, ""));
            wrk.requests = requests.parse().unwrap_or(0.0);
            wrk.seconds = with_unit(seconds, &[("ms", 1e-3), ("s", 1.0), ("m", 60.0)]);
            let units =
                [("TB", 1e4_f64.powi(3)), ("GB", GIB), ("MB", 1_048_576.0), ("KB", 1024.0), ("B", 1.0)];
            wrk.bytes = with_unit(read.trim_end_matches(" read"), &units);
        } else if let Some(p99) = line.strip_prefix("99%") {
            wrk.p99 = 1000.0 * with_unit(p99.trim(), &[("us", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0)]);
        } else if let Some(count) = line.strip_prefix("Non-2xx or 3xx responses: ") {
            wrk.errors += count.parse::<f64>().unwrap_or(1.0);
        } else if let Some(errors) = line.strip_prefix("Socket errors: ") {
            wrk.errors += errors
                .split(|c: char| !c.is_ascii_digit())
                .filter_map(|n| n.parse::<f64>().ok())
                .sum::<f64>();
        }
    }
    wrk
}

fn with_unit(text: &str, units: &[(&str, f64)]) -> f64 {
    let matching = units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)));
    matching.and_then(|(number, factor)| Some(number.parse::<f64>().ok()? * factor)).unwrap_or(0.0)
}

/// One measurement: GB/s, and the server's CPU seconds per GiB.
fn download(
    bed: &Bed,
    plan: &Plan,
    server: &Running,
    connections: u32,
    label: &str,
    path: impl Fn(MacAddr) -> String,
) -> (f64, f64) {
    let before = server.used();
    let done = wrk(bed, plan.seconds, connections, server.kind.http_port(), path);
    let used = server.used().since(before);
    let (rate, cpu) = (done.bytes / done.seconds / 1e9, used / (done.bytes / GIB));
    println!("  {} {label}: {} GB/s, {} CPU s/GiB", server.kind.name(), digits(rate), digits(cpu));
    if plan.verbose {
        println!("    {done:?}, {used:.2} s");
    }
    (rate, cpu)
}

/// What TCP's connections begin with that are made meanwhile, in this namespace.
struct CongestionControl {
    before: String,
}

impl CongestionControl {
    const PATH: &str = "/proc/sys/net/ipv4/tcp_congestion_control";

    fn set(name: &str) -> CongestionControl {
        let before = CongestionControl::current();
        std::fs::write(CongestionControl::PATH, name).expect("a congestion control that everybody may use");
        CongestionControl { before }
    }

    fn current() -> String {
        std::fs::read_to_string(CongestionControl::PATH).expect("Linux").trim().to_owned()
    }
}

impl Drop for CongestionControl {
    fn drop(&mut self) {
        let _ = std::fs::write(CongestionControl::PATH, &self.before);
    }
}

pub fn run(bed: &Bed, plan: &Plan) {
    let mut section = Section::new(
        "HTTP",
        "wrk, up to 16 connections a machine; both servers read the same files from the page cache and log every \
         request. They run side by side and are loaded in turns, measurement by measurement. GB/s (10⁹), and the \
         server's CPU seconds per GiB.",
    );
    section.say(&plan.versions(&KINDS));
    section.say(&format!(
        "This system's congestion control is {}. farrier replaces BBR by Reno on its own link (`src/net/congestion.rs`); \
         nginx has no setting for it, and is shown as well on a system whose default is Reno.",
        CongestionControl::current()
    ));
    let files = prepare(bed);
    let settings: Vec<(&str, &str, u32)> = [("14 MB kernel", "small"), ("1 GiB image", "large")]
        .into_iter()
        .flat_map(|(label, profile)| CONNECTIONS.map(|connections| (label, profile, connections)))
        .collect();
    let mut rates: Vec<[Figure; 2]> = settings.iter().map(|_| Default::default()).collect();
    let mut cpus = rates.clone();
    let mut without_timers: Vec<[Figure; 2]> = rates.clone();
    let mut memory: [Figure; 2] = Default::default();
    let (mut scripts, mut script_p99, mut script_cpu) =
        (Figure::default(), Figure::default(), Figure::default());
    for round in 0..plan.rounds {
        // Both run all the time, so that what is compared lies seconds apart; the one that is not asked does nothing.
        let wanted = KINDS.into_iter().enumerate().filter(|(_, kind)| !plan.skips(*kind));
        let mut servers: Vec<(usize, Running)> =
            wanted.map(|(place, kind)| (place, start(bed, &files, kind))).collect();
        if round % 2 == 1 {
            servers.reverse();
        }
        for (index, (_, profile, connections)) in settings.iter().enumerate() {
            let label = format!("{profile} {connections}");
            let path = |_| format!("/{}", kernel_name(profile));
            for (place, server) in &servers {
                let (rate, cpu) = download(bed, plan, server, *connections, &label, path);
                rates[index][*place].push(rate);
                cpus[index][*place].push(cpu);
            }
            if let Some((_, nginx)) = servers.iter().find(|(_, server)| server.kind == Kind::Nginx) {
                let _reno = CongestionControl::set("reno");
                let (rate, cpu) = download(bed, plan, nginx, *connections, &format!("(reno) {label}"), path);
                without_timers[index][0].push(rate);
                without_timers[index][1].push(cpu);
            }
        }
        for (place, server) in servers {
            if server.kind == Kind::Farrier {
                let before = server.used();
                let done = wrk(bed, plan.seconds, 64, server.kind.http_port(), script_path);
                scripts.push(done.requests / done.seconds);
                script_p99.push(done.p99);
                script_cpu.push(server.used().since(before) * 1e6 / done.requests.max(1.0));
                println!(
                    "  {} scripts: {} /s, p99 {} ms",
                    server.kind.name(),
                    digits(done.requests / done.seconds),
                    digits(done.p99)
                );
                assert!(done.errors < 1.0, "scripts: {done:?}");
            }
            memory[place].push(server.peak_memory());
            server.stop();
        }
    }
    let mut rows = Vec::new();
    for (index, (label, _, connections)) in settings.iter().enumerate() {
        let what = format!("{label}, {connections} connections");
        let [ours, theirs] = &rates[index];
        let [our_cpu, their_cpu] = &cpus[index];
        section.at_least(&what, ours.median(), 1.0, theirs.median(), "nginx");
        let cpu = format!("{what}: CPU s per GiB");
        section.at_most(&cpu, our_cpu.median(), 1.0, their_cpu.median(), "nginx");
        let [their_rate, their_work] = &without_timers[index];
        rows.push(vec![
            what,
            ours.show(),
            theirs.show(),
            their_rate.show(),
            our_cpu.show(),
            their_cpu.show(),
            their_work.show(),
        ]);
    }
    rows.push(vec![
        "peak MiB, mapped files included".to_owned(),
        memory[0].show(),
        memory[1].show(),
        String::new(),
        String::new(),
        String::new(),
        String::new(),
    ]);
    section.table(
        &[
            "",
            "farrier GB/s",
            "nginx GB/s",
            "nginx, Reno GB/s",
            "farrier CPU s/GiB",
            "nginx CPU s/GiB",
            "nginx, Reno CPU s/GiB",
        ],
        &rows,
    );
    let (rate, p99) = (scripts.median(), script_p99.median());
    section.say(&format!(
        "Scripts rendered per request, 64 connections: {} /s, p99 {} ms, {} µs CPU each.",
        scripts.show(),
        script_p99.show(),
        digits(script_cpu.median())
    ));
    section.target(
        "scripts rendered per request",
        "≥ 40 000/s",
        &format!("{} /s", digits(rate)),
        rate >= 40_000.0,
    );
    section.target("scripts, p99", "≤ 5 ms", &format!("{} ms", digits(p99)), p99 <= 5.0);
    section.write(plan);
}
