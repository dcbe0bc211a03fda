//! TFTP against tftpd-hpa, dnsmasq and atftpd: one client, a crowd, and a bad cable.
//!
//! Its steps are `one`, `crowd` and `loss`.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::Plan;
use crate::bed::Bed;
use crate::report::{Figure, Section, digits};
use crate::server::{Job, Kind, Running, Start};
use crate::state::{self, Files, KIB, MIB, kernel_name};
use crate::tftp_client::{Fetch, Fetched, apart, fetch_many, fetch_one};

const KINDS: [Kind; 4] = [Kind::Farrier, Kind::TftpdHpa, Kind::Dnsmasq, Kind::Atftpd];
/// A crowd meets the limit as well, in lock-step.
const CROWD_KINDS: [Kind; 5] = [Kind::Farrier, Kind::TftpdHpa, Kind::Dnsmasq, Kind::Atftpd, Kind::Null];
const BLKSIZES: [u16; 3] = [512, 1024, 1468];
const WINDOWS: [u16; 3] = [4, 16, 64];
const CROWDS: [usize; 2] = [100, 1000];
/// Lock-step as iPXE and BIOS ROMs do it; and what edk2 asks for.
const CROWD_WINDOWS: [u16; 2] = [1, 4];
/// Percent lost each way, and the time it may take in seconds.
const LOSSES: [(u32, f64); 3] = [(1, 2.0), (5, 10.0), (20, 120.0)];
/// How long a peer may take over it: it is known that they take minutes, and how many is nobody's concern.
const PEER_PATIENCE: Duration = Duration::from_secs(10);
/// How long a crowd may take; a rate is known by then.
const CROWD_PATIENCE: Duration = Duration::from_secs(60);
/// A machine runs one loader; of one address no more than this are served at once by farrier, and none needs more.
const CLIENTS_PER_ADDRESS: usize = 8;

/// Small enough that a round is over in seconds at the slowest setting, and large enough for the clock ticks in which CPU
/// time is counted.
const ONE_SIZE: usize = 32 * MIB;
pub const CROWD_SIZE: usize = 4 * MIB;
pub const CROWD_BLKSIZE: u16 = 1468;
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
        "Clients of our own that compare every byte; 32 MiB to one client, 4 MiB to each of a crowd, 1 MiB over a \
         cable that loses packets. MiB/s, and the server's CPU milliseconds per MiB. One client polls, as firmware \
         does, and shares no core with the server, as two machines do; a crowd takes one datagram out of many by one \
         call, and sleeps. The rate of a crowd is that of the bytes that arrived, within a minute at most, and that of \
         lock-step where windows are ignored. A peer has 10 s for a lossy cable, and is not sent again a crowd that it did \
         not serve whole. The null server remembers nothing of any client: it costs the system calls of lock-step, and \
         nothing else.",
    );
    section.say(&plan.versions(&CROWD_KINDS));
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
    if plan.takes("one") {
        one_client(bed, plan, &files, &contents, &mut section);
    }
    if plan.takes("crowd") {
        crowd(bed, plan, &files, &contents, &mut section);
    }
    if plan.takes("loss") {
        loss(bed, plan, &files, &contents, &mut section);
    }
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
            let server = apart(|| start(bed, files, kind));
            for (index, (blksize, windowsize)) in settings.iter().enumerate() {
                let before = server.used();
                let fetched = fetch_one(bed.first(), fetch(&name, &contents.one, *blksize, *windowsize));
                assert_eq!(fetched.exact, 1, "{} with {blksize}, {windowsize}", kind.name());
                rates[index][place].push(mib / fetched.seconds);
                cpus[index][place].push(server.used().since(before) * 1000.0 / mib);
                println!(
                    "  {}, blksize {blksize}, windowsize {windowsize}: {} MiB/s",
                    kind.name(),
                    digits(mib / fetched.seconds)
                );
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
            let others = best_peer(&rates[index], |kind| !ignores_windows(kind));
            section.at_least(&setting, ours, 2.5, others, "best that ignores it");
        }
    }
    section.table(&["one client, MiB/s; CPU per MiB", "farrier", "tftpd-hpa", "dnsmasq", "atftpd"], &rows);
}

fn ignores_windows(kind: Kind) -> bool {
    matches!(kind, Kind::TftpdHpa | Kind::Dnsmasq | Kind::Null)
}

/// Figures of a crowd by server.
#[derive(Default)]
struct CrowdFigures {
    rates: [Figure; CROWD_KINDS.len()],
    cpus: [Figure; CROWD_KINDS.len()],
    memory: [Figure; CROWD_KINDS.len()],
    /// Clients that got the whole file, and that asked for it.
    exact: [usize; CROWD_KINDS.len()],
    asked: [usize; CROWD_KINDS.len()],
}

impl CrowdFigures {
    /// A peer that left clients without their file has been seen to; it would take its minute in each round.
    fn has_seen_enough(&self, kind: Kind, place: usize) -> bool {
        kind != Kind::Farrier && self.exact[place] < self.asked[place]
    }
}

fn crowd(bed: &Bed, plan: &Plan, files: &Files, contents: &Contents, section: &mut Section) {
    let settings: Vec<(usize, u16)> =
        CROWDS.iter().flat_map(|clients| CROWD_WINDOWS.map(|window| (*clients, window))).collect();
    let mut figures: Vec<CrowdFigures> = settings.iter().map(|_| CrowdFigures::default()).collect();
    for _ in 0..plan.rounds {
        for (place, kind) in CROWD_KINDS.into_iter().enumerate().filter(|(_, kind)| !plan.skips(*kind)) {
            for ((clients, window), figures) in settings.iter().zip(&mut figures) {
                // It would be lock-step once more.
                let repeats = *window > 1 && ignores_windows(kind);
                if !repeats && !figures.has_seen_enough(kind, place) {
                    one_crowd(bed, files, contents, (kind, place), (*clients, *window), figures);
                }
            }
        }
    }
    let mut rows = Vec::new();
    for (index, (clients, window)) in settings.iter().enumerate() {
        let lock_step = &figures[index - index % CROWD_WINDOWS.len()];
        let figures = &figures[index];
        let what = match window {
            1 => format!("{clients} clients, lock-step"),
            window => format!("{clients} clients, windowsize {window}"),
        };
        let (mut best_rate, mut best_cpu) = (0.0_f64, f64::INFINITY);
        let limit = lock_step.rates[CROWD_KINDS.len() - 1].median();
        for (place, kind) in CROWD_KINDS.into_iter().enumerate() {
            let shown = if ignores_windows(kind) { lock_step } else { figures };
            rows.push(vec![
                what.clone(),
                kind.name().to_owned(),
                shown.rates[place].show(),
                shown.cpus[place].show(),
                shown.memory[place].show(),
                format!("{} of {}", shown.exact[place], shown.asked[place]),
            ]);
            if !matches!(kind, Kind::Farrier | Kind::Null) {
                // `max` and `min` pass over what was not measured.
                best_rate = best_rate.max(shown.rates[place].median());
                best_cpu = best_cpu.min(shown.cpus[place].median());
            }
        }
        let (exact, asked) = (figures.exact[0], figures.asked[0]);
        section.target(&format!("{what}: exact"), "all", &format!("{exact} of {asked}"), exact == asked);
        section.at_least(&what, figures.rates[0].median(), 1.5, best_rate, "best peer");
        let cpu = figures.cpus[0].median();
        section.at_most(&format!("{what}: CPU ms per MiB"), cpu, 0.5, best_cpu, "best peer");
        if *window == 1 {
            section.at_least(&what, figures.rates[0].median(), 0.9, limit, "null server");
        }
    }
    section.table(&["4 MiB each", "server", "MiB/s", "CPU ms per MiB", "peak MiB", "exact"], &rows);
}

fn one_crowd(
    bed: &Bed,
    files: &Files,
    contents: &Contents,
    (kind, place): (Kind, usize),
    (clients, window): (usize, u16),
    figures: &mut CrowdFigures,
) {
    let server = start(bed, files, kind);
    let addresses: Vec<Ipv4Addr> = contents.addresses.iter().copied().cycle().take(clients).collect();
    let name = kernel_name("crowd");
    let wanted = Fetch { deadline: CROWD_PATIENCE, ..fetch(&name, &contents.crowd, CROWD_BLKSIZE, window) };
    let before = server.used();
    let fetched = fetch_many(bed.first(), &addresses, wanted);
    let mib = fetched.bytes as f64 / MIB as f64;
    let (rate, cpu) = (mib / fetched.seconds, server.used().since(before) * 1000.0 / mib.max(1.0));
    figures.rates[place].push(rate);
    figures.cpus[place].push(cpu);
    figures.memory[place].push(server.peak_memory());
    figures.exact[place] += fetched.exact;
    figures.asked[place] += clients;
    println!(
        "  {}, {clients} clients, windowsize {window}: {} MiB/s, {} CPU ms per MiB, {} exact",
        kind.name(),
        digits(rate),
        digits(cpu),
        fetched.exact
    );
    server.stop();
}

fn loss(bed: &Bed, plan: &Plan, files: &Files, contents: &Contents, section: &mut Section) {
    let mut seconds = grid(LOSSES.len());
    let mut failed = [[0_usize; KINDS.len()]; LOSSES.len()];
    let name = kernel_name("loss");
    let machine = bed.first();
    for (index, (percent, limit)) in LOSSES.into_iter().enumerate() {
        for round in 0..plan.rounds {
            for (place, kind) in KINDS.into_iter().enumerate().filter(|(_, kind)| !plan.skips(*kind)) {
                // A peer needs to be seen once, and at 20 % none ends in bearable time.
                if kind != Kind::Farrier && (percent > 5 || round > 0) {
                    continue;
                }
                let deadline = match kind {
                    Kind::Farrier => Duration::from_secs_f64(limit * 1.5),
                    _ => PEER_PATIENCE,
                };
                let server = apart(|| start(bed, files, kind));
                machine.lose(percent);
                let wanted = Fetch { deadline, ..fetch(&name, &contents.loss, 1468, 1) };
                let fetched: Fetched = fetch_one(machine, wanted);
                machine.lose(0);
                seconds[index][place].push(fetched.seconds);
                failed[index][place] += fetched.failed;
                println!(
                    "  {}, {percent} % lost: {} KiB in {} s",
                    kind.name(),
                    fetched.bytes / KIB as u64,
                    digits(fetched.seconds)
                );
                server.stop();
            }
        }
    }
    let mut rows = Vec::new();
    for (index, (percent, limit)) in LOSSES.into_iter().enumerate() {
        let cells = seconds[index].iter().zip(failed[index]).map(|(figure, failed)| match failed {
            0 => figure.show(),
            failed => format!("{}, {failed} not finished", figure.show()),
        });
        rows.push(std::iter::once(format!("{percent} %")).chain(cells).collect());
        let median = seconds[index][0].median();
        let met = median <= limit && failed[index][0] == 0;
        let what = format!("{} KiB with {percent} % lost each way", LOSS_SIZE / KIB);
        section.target(&what, &format!("≤ {limit} s"), &format!("{} s", seconds[index][0].show()), met);
    }
    section.table(&["lost each way, seconds", "farrier", "tftpd-hpa", "dnsmasq", "atftpd"], &rows);
}
