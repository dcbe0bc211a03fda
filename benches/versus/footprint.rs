//! What it takes to have it: memory, size, time to start.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use crate::Plan;
use crate::bed::Bed;
use crate::dhcp::agent;
use crate::dhcp_client::client_mac;
use crate::report::{Figure, Section, digits};
use crate::server::{Job, Kind, Start, farrier_binary};
use crate::state::{self, Files};

const NODES: u64 = 10_000;
/// About the size of a deploy kernel.
const IMAGE_SIZE: usize = 14_000_000;
/// What a start leaves behind to be done is done by then.
const SETTLES_WITHIN: Duration = Duration::from_millis(500);
/// Memory in MB is in units of 10⁶ bytes, as in the targets.
const MEBIBYTE: f64 = 1.048_576;

/// What the kernel counts as a process's memory, MB.
struct Memory {
    resident: f64,
    /// Pages shared with others count for their share only.
    proportional: f64,
    /// Not of files.
    own: f64,
}

impl Memory {
    fn of(pid: u32) -> Memory {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("the server runs");
        let of = |key: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(key)).expect("the kernel tells");
            let kib: f64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
            kib * 1024.0 / 1e6
        };
        Memory { resident: of("Rss:"), proportional: of("Pss:"), own: of("Anonymous:") }
    }
}

pub fn run(bed: &Bed, plan: &Plan) {
    let mut section = Section::new(
        "Footprint",
        "farrier with one deploy image of 14 MB and the loaders that are installed here, half a second after its first \
         answer and before any load; /proc/<pid>/smaps_rollup. MB are 10⁶ bytes. What is not its own are pages of \
         files, the program's own among them: shared, and given back when memory is short.",
    );
    let files = Files::new(bed);
    files.add_bytes("small", &state::content(IMAGE_SIZE));
    let mut rows = Vec::new();
    // The target is judged by everything resident, the stricter of the two.
    let mut resident = [Figure::default(), Figure::default()];
    let mut started = Figure::default();
    for (index, what) in ["idle", "10 000 nodes with leases"].into_iter().enumerate() {
        let (mut own, mut proportional) = (Figure::default(), Figure::default());
        if index == 1 {
            state::with_nodes(&files.state, (0..NODES).map(client_mac));
            state::with_leases(&files.state, NODES);
        }
        for _ in 0..plan.rounds {
            let start = Start { bed, job: Job::Dhcp, state: &files.state, files: &files.tree };
            let began = Instant::now();
            let server = start.launch(Kind::Farrier);
            let answered = agent(bed.first()).first_answer();
            if index == 0 {
                started.push((answered - began).as_secs_f64() * 1000.0);
            }
            thread::sleep(SETTLES_WITHIN);
            let memory = Memory::of(server.pid());
            println!(
                "  {what}: first answer after {:.1} ms, {:.1} MB resident, {:.1} MB its own",
                (answered - began).as_secs_f64() * 1000.0,
                memory.resident,
                memory.own
            );
            resident[index].push(memory.resident);
            proportional.push(memory.proportional);
            own.push(memory.own);
            server.stop();
        }
        rows.push(vec![
            what.to_owned(),
            resident[index].show(),
            digits(resident[index].median() / MEBIBYTE),
            proportional.show(),
            own.show(),
        ]);
    }
    let head = ["", "resident MB", "the same in MiB", "its share (PSS) MB", "its own MB"];
    section.table(&head, &rows);
    let shown = |figure: &Figure| format!("{} MB resident", figure.show());
    let [idle, many] = &resident;
    section.target("idle memory", "≤ 20 MB", &shown(idle), idle.median() <= 20.0);
    section.target("memory with 10 000 nodes and leases", "≤ 100 MB", &shown(many), many.median() <= 100.0);
    let size = fs::metadata(farrier_binary()).map_or(f64::NAN, |metadata| metadata.len() as f64 / 1e6);
    section.target("release binary", "≤ 25 MB", &format!("{size:.1} MB"), size <= 25.0);
    let took = format!("{} ms to the first answer", started.show());
    section.target("start to serving", "≤ 100 ms", &took, started.median() <= 100.0);
    section.write(plan);
}
