//! DHCP: perfdhcp's four-way exchanges against Kea, dnsmasq and the null server.
//!
//! Its steps are `rate`, `steady`, `restart` and `sync`.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::Plan;
use crate::bed::{Bed, Machine, SERVER};
use crate::dhcp_client::{Agent, Load};
use crate::proof;
use crate::report::{Figure, Section, digits, percentile};
use crate::server::{Job, Kind, Running, Start};
use crate::state;

const CLIENTS: u64 = 50_000;
const MANY_LEASES: u64 = 500_000;
/// A step of the sweep upward while it is short, and once it counts.
const STEP: f64 = 1.3;
const FINE_STEP: f64 = 1.06;
/// Steps that only look for the neighbourhood.
const COARSE_SECONDS: u64 = 1;
/// Where the sweep starts in the first round: well below what each can do on a small machine.
const SWEEP: [(Kind, f64); 4] =
    [(Kind::Farrier, 4000.0), (Kind::Kea, 3000.0), (Kind::Null, 5000.0), (Kind::Dnsmasq, 200.0)];
/// Not even started here: perfdhcp ends before.
const RATE_MAX: f64 = 60_000.0;
const DROPS_MAX: f64 = 0.01;
/// perfdhcp's niceness. It stands for machines elsewhere, and loses replies whenever a server on the same processors keeps
/// it from reading them: what is lost is to be the server's doing, whichever it is.
const FIRST_OF_ALL: &str = "-15";

/// What one run of perfdhcp came to.
#[derive(Clone, Copy, Debug, Default)]
struct Step {
    rate: f64,
    /// ACKs per second.
    goodput: f64,
    drops: f64,
    /// CPU seconds per exchange.
    cpu: f64,
}

#[derive(Default)]
struct Column {
    best: Figure,
    peak: Figure,
    cpu: Figure,
    overload: Figure,
    memory: Figure,
}

pub fn run(bed: &Bed, plan: &Plan) {
    let kinds: Vec<Kind> = SWEEP.map(|(kind, _)| kind).to_vec();
    let mut section = Section::new(
        "DHCP",
        "perfdhcp from one port of the bridge, as the relay it always is: four-way exchanges of 50 000 clients; the \
         highest rate with at most 1 % lost, the most ACKs a second at any rate, and three times that offered. farrier \
         syncs each lease to disk before its ACK; Kea never does. The null server answers without deciding or storing. \
         perfdhcp has the processors first (nice -15), whichever server it loads: it stands for machines elsewhere, and \
         what is lost is to be the server's doing.",
    );
    section.say(&plan.versions(&kinds));
    // Where the sweep is left out, what `steady` does at most is looked for around here.
    let mut best = SWEEP[0].1;
    if plan.takes("rate") {
        best = rates(bed, plan, &mut section);
    }
    if !plan.skips(Kind::Farrier) {
        if plan.takes("steady") {
            steady(bed, plan, &mut section, best);
        }
        if plan.takes("restart") {
            restart(bed, plan, &mut section);
        }
        if plan.takes("sync") {
            sync_order(bed, &mut section);
        }
    }
    section.write(plan);
}

/// What each server does at most; returns our own rate.
fn rates(bed: &Bed, plan: &Plan, section: &mut Section) -> f64 {
    let mut columns: Vec<Column> = SWEEP.iter().map(|_| Column::default()).collect();
    let mut starts: Vec<f64> = SWEEP.map(|(_, rate)| rate).to_vec();
    for round in 1..=plan.rounds {
        for (index, (kind, _)) in SWEEP.into_iter().enumerate() {
            if plan.skips(kind) {
                continue;
            }
            let column = &mut columns[index];
            let server = start(bed, kind, &bed.fresh("dhcp-state"));
            let sweep = sweep(bed, plan, &server, starts[index]);
            // The next round begins closer.
            starts[index] = sweep.best.rate.max(100.0) * 0.8;
            column.best.push(sweep.best.goodput);
            column.cpu.push(sweep.best.cpu * 1e6);
            let over = offer(bed, &server, (sweep.peak * 3.0).min(RATE_MAX), plan.seconds);
            column.peak.push(sweep.peak.max(over.goodput));
            column.overload.push(100.0 * over.goodput / sweep.peak.max(over.goodput));
            column.memory.push(server.peak_memory());
            println!(
                "round {round}: {:12} {} /s, peak {}, {:.1} µs each, overload {:.0} %",
                kind.name(),
                digits(sweep.best.goodput),
                digits(sweep.peak),
                sweep.best.cpu * 1e6,
                100.0 * over.goodput / sweep.peak.max(over.goodput)
            );
            server.stop();
        }
    }
    let rows: Vec<Vec<String>> = SWEEP
        .iter()
        .zip(&columns)
        .map(|((kind, _), column)| {
            let figures = [&column.best, &column.peak, &column.cpu, &column.overload, &column.memory];
            std::iter::once(kind.name().to_owned()).chain(figures.map(Figure::show)).collect()
        })
        .collect();
    section.table(
        &[
            "server",
            "exchanges/s, ≤ 1 % lost",
            "most ACKs/s",
            "CPU µs each",
            "overload, % of peak",
            "peak MiB",
        ],
        &rows,
    );
    let [ours, kea, null, dnsmasq] = &columns[..] else { unreachable!("four servers") };
    let best = ours.best.median();
    section.at_least("exchanges/s", best, 1.9, kea.best.median(), "Kea");
    section.at_least("exchanges/s", best, 20.0, dnsmasq.best.median(), "dnsmasq");
    section.at_least("exchanges/s", best, 0.9, null.best.median(), "null server");
    section.at_most("CPU per exchange, µs", ours.cpu.median(), 0.4, kea.cpu.median(), "Kea");
    let overload = ours.overload.median();
    section.target(
        "goodput at 3× the peak",
        "≥ 90 % of the peak",
        &format!("{overload:.0} %"),
        overload >= 90.0,
    );
    best
}

pub fn agent(machine: &Machine) -> Agent {
    Agent::new(machine.agent_socket(), SERVER)
}

fn start(bed: &Bed, kind: Kind, state: &Path) -> Running {
    Start { bed, job: Job::Dhcp, state, files: state }.run(kind)
}

struct Sweep {
    best: Step,
    peak: f64,
}

/// Up in large, short steps until too much is lost, then up in small ones from the last good rate. A step that fails is
/// given a second try: one hiccup of a shared machine is not the server's limit.
fn sweep(bed: &Bed, plan: &Plan, server: &Running, from: f64) -> Sweep {
    let mut peak: f64 = 0.0;
    let mut holds = |rate: f64, seconds: u64| {
        for _ in 0..2 {
            let step = offer(bed, server, rate, seconds);
            peak = peak.max(step.goodput);
            if step.drops <= DROPS_MAX {
                return Some(step);
            }
        }
        None
    };
    let mut rate = from;
    while rate > 20.0 && holds(rate, COARSE_SECONDS).is_none() {
        // Even the start was too much.
        rate /= 2.0;
    }
    while rate * STEP <= RATE_MAX && holds(rate * STEP, COARSE_SECONDS).is_some() {
        rate *= STEP;
    }
    let mut best = Step::default();
    while rate <= RATE_MAX {
        match holds(rate, plan.seconds) {
            Some(step) => best = step,
            // A second was kind to it.
            None if best.rate == 0.0 && rate > 20.0 => {
                rate /= FINE_STEP.powi(3);
                continue;
            }
            None => break,
        }
        rate *= FINE_STEP;
    }
    Sweep { best, peak }
}

/// One run of perfdhcp.
fn offer(bed: &Bed, server: &Running, rate: f64, seconds: u64) -> Step {
    let machine = bed.first();
    let arguments = [
        "-4".to_owned(),
        "-l".to_owned(),
        machine.nic().to_owned(),
        "-r".to_owned(),
        format!("{}", rate as u64),
        "-R".to_owned(),
        CLIENTS.to_string(),
        "-p".to_owned(),
        format!("{seconds}"),
        "-W".to_owned(),
        "500000".to_owned(),
        SERVER.to_string(),
    ];
    let before = server.used();
    let full_before = (full_queues(None), full_queues(Some(machine)));
    let mut perfdhcp = machine.command("nice");
    perfdhcp.args(["-n", FIRST_OF_ALL, "perfdhcp"]).args(&arguments);
    let output = perfdhcp.output().expect("perfdhcp (package kea-admin)");
    let full = (full_queues(None) - full_before.0, full_queues(Some(machine)) - full_before.1);
    let cpu = server.used().since(before);
    let text = String::from_utf8_lossy(&output.stdout);
    // 3: it has lost some, which is what we are here to see.
    assert!(
        matches!(output.status.code(), Some(0 | 3)),
        "perfdhcp {arguments:?}: {}{text}",
        String::from_utf8_lossy(&output.stderr)
    );
    let (discovers, _) = counts(&text, "DISCOVER-OFFER");
    let (_, acks) = counts(&text, "REQUEST-ACK");
    // It does not always keep the rate it was told; what it did not send is not lost.
    let wanted = (rate * seconds as f64).min(discovers.max(1.0));
    let step = Step {
        rate,
        goodput: acks / seconds as f64,
        drops: if discovers < 0.97 * rate * seconds as f64 { 1.0 } else { 1.0 - acks / wanted },
        cpu: cpu / acks.max(1.0),
    };
    println!(
        "  {} at {}/s for {seconds} s: {}/s done, {:.2} % lost, {:.1} µs each; full queues lost {} requests and {} replies",
        server.kind.name(),
        digits(rate),
        digits(step.goodput),
        100.0 * (1.0 - acks / wanted),
        step.cpu * 1e6,
        full.0,
        full.1
    );
    // What waits in its queues is not the next step's.
    thread::sleep(Duration::from_millis(if step.drops > DROPS_MAX { 1000 } else { 200 }));
    step
}

/// Datagrams lost so far because the socket they were for was full, on the server's side or on a machine.
fn full_queues(machine: Option<&Machine>) -> u64 {
    let text = match machine {
        None => fs::read_to_string("/proc/self/net/snmp").unwrap_or_default(),
        Some(machine) => machine.run("cat", &["/proc/self/net/snmp"]),
    };
    let mut udp = text.lines().filter_map(|line| line.strip_prefix("Udp: ")).map(|line| line.split(' '));
    let (Some(names), Some(values)) = (udp.next(), udp.next()) else { return 0 };
    let found = names.zip(values).find(|(name, _)| *name == "RcvbufErrors");
    found.and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
}

/// Packets sent and received in one of perfdhcp's two reports.
fn counts(text: &str, exchange: &str) -> (f64, f64) {
    let report = text.split("***Statistics for:").find(|part| part.contains(exchange)).unwrap_or_default();
    let number = |key: &str| {
        let line = report.lines().find_map(|line| line.trim().strip_prefix(key)).unwrap_or_default();
        line.trim().parse().unwrap_or(0.0)
    };
    (number("sent packets:"), number("received packets:"))
}

/// 1 000 exchanges a second with 50 000 and with 500 000 leases stored, and what it does at most then, near the rate
/// found before. The two take turns, so that whatever else the machine does meets both.
fn steady(bed: &Bed, plan: &Plan, section: &mut Section, best: f64) {
    let states: Vec<(u64, PathBuf)> = [CLIENTS, MANY_LEASES]
        .into_iter()
        .map(|leases| {
            let state = bed.fresh(&format!("dhcp-state-{leases}"));
            state::with_leases(&state, leases);
            println!("  {leases} leases are stored");
            (leases, state)
        })
        .collect();
    let mut columns: Vec<[Figure; 7]> = states.iter().map(|_| Default::default()).collect();
    for _ in 0..plan.rounds {
        for ((leases, state), column) in states.iter().zip(&mut columns) {
            let [offers, p50, acks, cpu, highest, memory, lost] = column;
            let server = start(bed, Kind::Farrier, state);
            // Reading the leases is the restart's figure.
            agent(bed.first()).first_answer();
            let load = Load { rate: 1000.0, duration: plan.duration(), clients: CLIENTS };
            let before = server.used();
            let mut answers = agent(bed.first()).run(load);
            cpu.push(server.used().since(before) * 1e6 / answers.acks.len().max(1) as f64);
            lost.push(100.0 * answers.lost() as f64 / answers.started.max(1) as f64);
            offers.push(percentile(&mut answers.offers, 0.99));
            acks.push(percentile(&mut answers.acks, 0.99));
            p50.push(percentile(&mut answers.acks, 0.5));
            println!(
                "  {leases} leases, 1 000/s: ACK p50 {:.2} ms, p99 {:.2} ms, last {:.2} ms",
                percentile(&mut answers.acks, 0.5),
                percentile(&mut answers.acks, 0.99),
                percentile(&mut answers.acks, 1.0)
            );
            let steps = [0.9, 1.0, 1.1].map(|part| offer(bed, &server, best * part, plan.seconds).goodput);
            highest.push(steps.into_iter().fold(0.0, f64::max));
            memory.push(server.peak_memory());
            server.stop();
        }
    }
    let worst = columns.iter().map(|column| column[2].median()).fold(0.0, f64::max);
    let peaks: Vec<f64> = columns.iter().map(|column| column[4].median()).collect();
    let rows: Vec<Vec<String>> = states
        .iter()
        .zip(&columns)
        .map(|((leases, _), column)| {
            std::iter::once(digits(*leases as f64)).chain(column.each_ref().map(Figure::show)).collect()
        })
        .collect();
    section.say(
        "farrier at 1 000 exchanges a second, and at its highest rate, with leases stored before the start:",
    );
    section.table(
        &[
            "leases",
            "OFFER p99 ms",
            "ACK p50 ms",
            "ACK p99 ms",
            "CPU µs each",
            "most ACKs/s",
            "peak MiB",
            "lost %",
        ],
        &rows,
    );
    let lost = columns.iter().map(|column| column[6].median()).fold(0.0, f64::max);
    section.target("lost at 1 000/s", "≤ 0.1 %", &format!("{} %", digits(lost)), lost <= 0.1);
    section.target("ACK p99 at 1 000/s", "≤ 10 ms", &format!("{} ms", digits(worst)), worst <= 10.0);
    let flat = peaks[1] / peaks[0];
    section.target(
        "most ACKs/s, 500 000 leases over 50 000",
        "0.9–1.1",
        &format!("{flat:.2}"),
        (0.9..=1.1).contains(&flat),
    );
}

/// From starting the program to its first answer, with 50 000 leases stored.
fn restart(bed: &Bed, plan: &Plan, section: &mut Section) {
    let mut took = Figure::default();
    let state = bed.scratch.join(format!("dhcp-state-{CLIENTS}"));
    if !state.is_dir() {
        // `steady` leaves it behind, unless it was left out.
        state::with_leases(&bed.fresh(&format!("dhcp-state-{CLIENTS}")), CLIENTS);
    }
    let start = Start { bed, job: Job::Dhcp, state: &state, files: &state };
    for _ in 0..plan.rounds {
        let began = Instant::now();
        let server = start.launch(Kind::Farrier);
        took.push((agent(bed.first()).first_answer() - began).as_secs_f64());
        println!("  restarted: {} s so far", took.show());
        server.stop();
    }
    let measured = format!("{} s", took.show());
    section.target("restart to first answer, 50 000 leases", "≤ 1 s", &measured, took.median() <= 1.0);
    for leases in [CLIENTS, MANY_LEASES] {
        let _ = fs::remove_dir_all(bed.scratch.join(format!("dhcp-state-{leases}")));
    }
}

/// strace's word for it: no ACK leaves before its lease is synced.
fn sync_order(bed: &Bed, section: &mut Section) {
    let state = bed.fresh("dhcp-state");
    let trace = bed.scratch.join("strace.out");
    let start = Start { bed, job: Job::Dhcp, state: &state, files: &state };
    let server = proof::under_strace(&start, &trace);
    crate::bed::wait_for("the traced server", || crate::bed::udp_port_is_bound(67));
    let load = Load { rate: 200.0, duration: Duration::from_secs(2), clients: CLIENTS };
    let answers = agent(bed.first()).run(load);
    proof::stop(server);
    let verdict = proof::check(&fs::read_to_string(&trace).unwrap_or_default());
    let measured = format!(
        "{} ACKs sent, {} after an fdatasync of the store's log that began after their REQUEST; {} fdatasync",
        verdict.acks, verdict.synced, verdict.syncs
    );
    let met = verdict.acks > 0 && verdict.synced == verdict.acks && verdict.acks >= answers.acks.len();
    section.target("each lease synced before its ACK (strace)", "all", &measured, met);
}
