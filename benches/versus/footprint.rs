//! What it takes to have it: memory, size, time to start.

use std::fs;
use std::time::Instant;

use crate::Plan;
use crate::bed::Bed;
use crate::dhcp_client::{self, client_mac};
use crate::report::{Figure, Section};
use crate::server::{Job, Kind, Start, farrier_binary};
use crate::state::{self, Files};

const NODES: u64 = 10_000;
/// About the size of a deploy kernel.
const IMAGE_SIZE: usize = 14_000_000;

pub fn run(bed: &Bed, plan: &Plan) {
    let mut section = Section::new(
        "Footprint",
        "farrier with one deploy image of 14 MB. Memory is what is resident: all of it, and what is its own (files \
         mapped from the page cache are shared, and given back when memory is short).",
    );
    let files = Files::new(bed);
    files.add_bytes("small", &state::content(IMAGE_SIZE));
    let mut rows = Vec::new();
    // The target is judged by everything resident, the stricter of the two.
    let mut resident = [Figure::default(), Figure::default()];
    let mut started = Figure::default();
    for (index, what) in ["idle", "10 000 nodes with leases"].into_iter().enumerate() {
        let mut own = Figure::default();
        if index == 1 {
            state::with_nodes(&files.state, (0..NODES).map(client_mac));
            state::with_leases(&files.state, NODES);
        }
        for _ in 0..plan.rounds {
            let start = Start { bed, job: Job::Dhcp, state: &files.state, files: &files.tree };
            let began = Instant::now();
            let server = start.launch(Kind::Farrier);
            let answered = dhcp_client::first_answer(bed.first());
            if index == 0 {
                started.push((answered - began).as_secs_f64() * 1000.0);
            }
            let (all, anonymous) = server.memory();
            resident[index].push(all);
            own.push(anonymous);
            server.stop();
        }
        rows.push(vec![what.to_owned(), resident[index].show(), own.show()]);
    }
    section.table(&["", "resident MiB", "its own MiB"], &rows);
    let shown = |figure: &Figure| format!("{} MiB resident", figure.show());
    section.target("idle memory", "≤ 20 MB", &shown(&resident[0]), resident[0].median() <= 20.0 / 1.048_576);
    let many = resident[1].median() <= 100.0 / 1.048_576;
    section.target("memory with 10 000 nodes and leases", "≤ 100 MB", &shown(&resident[1]), many);
    let size = fs::metadata(farrier_binary()).map_or(f64::NAN, |metadata| metadata.len() as f64 / 1e6);
    section.target("release binary", "≤ 25 MB", &format!("{size:.1} MB"), size <= 25.0);
    let took = format!("{} ms to the first answer", started.show());
    section.target("start to serving", "≤ 100 ms", &took, started.median() <= 100.0);
    section.write(plan);
}
