//! TFTP against tftpd-hpa, dnsmasq and atftpd: one client, a crowd, and a bad cable.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::Plan;
use crate::bed::Bed;
use crate::report::{Figure, Section, digits};
use crate::server::{Job, Kind, Running, Start};
use crate::state::{self, Files, KIB, MIB, kernel_name};
use crate::tftp_client::{Fetch, Fetched, fetch_many, fetch_one};

const KINDS: [Kind; 4] = [Kind::Farrier, Kind::TftpdHpa, Kind::Dnsmasq, Kind::Atftpd];
const BLKSIZES: [u16; 3] = [512, 1024, 1468];
const WINDOWS: [u16; 3] = [4, 16, 64];
const CROWDS: [usize; 2] = [100, 1000];
/// Percent lost each way, the time it may take in seconds, rounds: more loss, longer rounds.
const LOSSES: [(u32, f64); 3] = [(1, 2.0), (5, 10.0), (20, 120.0)];
/// A machine runs one loader; of one address no more than this are served at once by farrier, and none needs more.
const CLIENTS_PER_ADDRESS: usize = 8;

/// Small enough that a round is over in seconds at the slowest setting.
const ONE_SIZE: usize = 32 * MIB;
const CROWD_SIZE: usize = 4 * MIB;
const LOSS_SIZE: usize = MIB;

struct Contents {
    one: Vec<u8>,
    crowd: Vec<u8>,
    loss: Vec<u8>,
    /// The machine's other addresses.
    addresses: Vec<Ipv4Addr>,
}

pub fn run(bed: &Bed, plan: &Plan) {
    let mut section = Section::new(
        "TFTP",
        "A client of our own that compares every byte; 32 MiB to one client, 4 MiB to each of a crowd, 1 MiB over a \
         cable that loses packets. MiB/s, and the server's CPU milliseconds per MiB.",
    );
    section.say(&plan.versions(&KINDS));
    let files = Files::new(bed);
    let contents = Contents {
        one: state::content(ONE_SIZE),
        crowd: state::content(CROWD_SIZE),
        loss: state::content(LOSS_SIZE),
        addresses: (0..CROWDS[1].div_ceil(CLIENTS_PER_ADDRESS))
            .map(|number| Ipv4Addr::new(10, 32, 1, u8::try_from(number + 1).unwrap_or(u8::MAX)))
            .collect(),
    };
    files.add_bytes("one", &contents.one);
    files.add_bytes("crowd", &contents.crowd);
    files.add_bytes("loss", &contents.loss);
    bed.first().add_addresses(contents.addresses.iter().copied());
    let known = contents.addresses.iter().copied().chain([bed.first().address]);
    state::with_leases_of(&files.state, known);
    one_client(bed, plan, &files, &contents, &mut section);
    crowd(bed, plan, &files, &contents, &mut section);
    loss(bed, plan, &files, &contents, &mut section);
    section.write(plan);
}

fn start(bed: &Bed, files: &Files, kind: Kind) -> Running {
    Start { bed, job: Job::Tftp, state: &files.state, files: &files.tree }.run(kind)
}

fn fetch<'a>(name: &'a str, content: &'a [u8], blksize: u16, windowsize: u16) -> Fetch<'a> {
    Fetch { name, blksize, windowsize, content, deadline: Duration::from_secs(300) }
}

/// Figures by setting and server.
type Grid = Vec<[Figure; KINDS.len()]>;

fn grid(settings: usize) -> Grid {
    (0..settings).map(|_| Default::default()).collect()
}

fn best_peer(figures: &[Figure; KINDS.len()], but: impl Fn(Kind) -> bool) -> f64 {
    let peers = KINDS.iter().zip(figures).skip(1).filter(|(kind, _)| !but(**kind));
    peers.map(|(_, figure)| figure.median()).filter(|median| median.is_finite()).fold(0.0, f64::max)
}

fn one_client(bed: &Bed, plan: &Plan, files: &Files, contents: &Contents, section: &mut Section) {
    let settings: Vec<(u16, u16)> = BLKSIZES
        .iter()
        .map(|blksize| (*blksize, 1))
        .chain(WINDOWS.iter().map(|windowsize| (1468, *windowsize)))
        .collect();
    let (mut rates, mut cpus) = (grid(settings.len()), grid(settings.len()));
    let name = kernel_name("one");
    let mib = ONE_SIZE as f64 / MIB as f64;
    for _ in 0..plan.rounds {
        for (place, kind) in KINDS.into_iter().enumerate().filter(|(_, kind)| !plan.skips(*kind)) {
            let server = start(bed, files, kind);
            for (index, (blksize, windowsize)) in settings.iter().enumerate() {
                let before = server.used();
                let fetched = fetch_one(bed.first(), fetch(&name, &contents.one, *blksize, *windowsize));
                assert_eq!(fetched.exact, 1, "{} with {blksize}, {windowsize}", kind.name());
                rates[index][place].push(mib / fetched.seconds);
                cpus[index][place].push(server.used().since(before) * 1000.0 / mib);
                if plan.verbose {
                    println!("  {} {blksize}/{windowsize}: {fetched:?}", kind.name());
                }
            }
            server.stop();
        }
    }
    let mut rows = Vec::new();
    for (index, (blksize, windowsize)) in settings.iter().enumerate() {
        let setting = match windowsize {
            1 => format!("blksize {blksize}, lock-step"),
            window => format!("blksize {blksize}, windowsize {window}"),
        };
        let shown = rates[index].iter().zip(&cpus[index]);
        let cells = shown.map(|(rate, cpu)| format!("{}; {} ms", rate.show(), digits(cpu.median())));
        rows.push(std::iter::once(setting.clone()).chain(cells).collect());
        let ours = rates[index][0].median();
        if *windowsize == 1 {
            section.at_least(&setting, ours, 1.1, best_peer(&rates[index], |_| false), "best peer");
        } else {
            let atftpd = rates[index][3].median();
            section.at_least(&setting, ours, 1.3, atftpd, "atftpd");
            let others = best_peer(&rates[index], |kind| kind == Kind::Atftpd);
            section.at_least(&setting, ours, 2.5, others, "best that ignores it");
        }
    }
    section.table(&["one client, MiB/s; CPU per MiB", "farrier", "tftpd-hpa", "dnsmasq", "atftpd"], &rows);
}

fn crowd(bed: &Bed, plan: &Plan, files: &Files, contents: &Contents, section: &mut Section) {
    let (mut rates, mut cpus, mut memory) = (grid(2), grid(2), grid(2));
    let mut exact = [[0_usize; KINDS.len()]; 2];
    let name = kernel_name("crowd");
    for _ in 0..plan.rounds {
        for (place, kind) in KINDS.into_iter().enumerate().filter(|(_, kind)| !plan.skips(*kind)) {
            for (index, clients) in CROWDS.into_iter().enumerate() {
                let server = start(bed, files, kind);
                let addresses: Vec<Ipv4Addr> =
                    contents.addresses.iter().copied().cycle().take(clients).collect();
                let wanted =
                    Fetch { deadline: Duration::from_secs(120), ..fetch(&name, &contents.crowd, 1468, 1) };
                let before = server.used();
                let fetched = fetch_many(bed.first(), &addresses, wanted);
                let mib = (fetched.exact * CROWD_SIZE) as f64 / MIB as f64;
                rates[index][place].push(mib / fetched.seconds);
                cpus[index][place].push(server.used().since(before) * 1000.0 / mib.max(1.0));
                memory[index][place].push(server.peak_memory());
                exact[index][place] += fetched.exact;
                if plan.verbose {
                    println!("  {} {clients} clients: {fetched:?}", kind.name());
                }
                server.stop();
            }
        }
    }
    let mut rows = Vec::new();
    for (index, clients) in CROWDS.into_iter().enumerate() {
        let all = clients * plan.rounds as usize;
        for (place, kind) in KINDS.into_iter().enumerate() {
            rows.push(vec![
                clients.to_string(),
                kind.name().to_owned(),
                rates[index][place].show(),
                cpus[index][place].show(),
                memory[index][place].show(),
                format!("{} of {all}", exact[index][place]),
            ]);
        }
        let what = format!("{clients} clients, 4 MiB each");
        let measured = format!("{} of {all}", exact[index][0]);
        section.target(&format!("{what}: exact"), "all", &measured, exact[index][0] == all);
        let best = best_peer(&rates[index], |_| false);
        section.at_least(&what, rates[index][0].median(), 1.5, best, "best peer");
        let peers = cpus[index][1..].iter().map(Figure::median).filter(|cpu| cpu.is_finite());
        section.at_most(
            &format!("{what}: CPU ms per MiB"),
            cpus[index][0].median(),
            0.5,
            peers.fold(f64::INFINITY, f64::min),
            "best peer",
        );
    }
    section.table(&["clients", "server", "MiB/s", "CPU ms per MiB", "peak MiB", "exact"], &rows);
}

fn loss(bed: &Bed, plan: &Plan, files: &Files, contents: &Contents, section: &mut Section) {
    let mut seconds = grid(LOSSES.len());
    let mut failed = [[0_usize; KINDS.len()]; LOSSES.len()];
    let name = kernel_name("loss");
    let machine = bed.first();
    for (index, (percent, _)) in LOSSES.into_iter().enumerate() {
        for round in 0..plan.rounds {
            for (place, kind) in KINDS.into_iter().enumerate().filter(|(_, kind)| !plan.skips(*kind)) {
                // A peer takes minutes at 5 %; once is enough to know it, and at 20 % none ends in bearable time.
                if kind != Kind::Farrier && (percent > 5 || (percent > 1 && round > 0)) {
                    continue;
                }
                let server = start(bed, files, kind);
                machine.lose(percent);
                let wanted =
                    Fetch { deadline: Duration::from_secs(150), ..fetch(&name, &contents.loss, 1468, 1) };
                let fetched: Fetched = fetch_one(machine, wanted);
                machine.lose(0);
                seconds[index][place].push(fetched.seconds);
                failed[index][place] += fetched.failed;
                if plan.verbose {
                    println!("  {} {percent} %: {fetched:?}", kind.name());
                }
                server.stop();
            }
        }
    }
    let mut rows = Vec::new();
    for (index, (percent, limit)) in LOSSES.into_iter().enumerate() {
        let cells = seconds[index].iter().zip(failed[index]).map(|(figure, failed)| match failed {
            0 => figure.show(),
            failed => format!("{}, {failed} failed", figure.show()),
        });
        rows.push(std::iter::once(format!("{percent} %")).chain(cells).collect());
        let median = seconds[index][0].median();
        let met = median <= limit && failed[index][0] == 0;
        let what = format!("{} KiB with {percent} % lost each way", LOSS_SIZE / KIB);
        section.target(&what, &format!("≤ {limit} s"), &format!("{} s", seconds[index][0].show()), met);
    }
    section.table(&["lost each way, seconds", "farrier", "tftpd-hpa", "dnsmasq", "atftpd"], &rows);
}
