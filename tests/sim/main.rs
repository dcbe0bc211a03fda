//! The appliance in a world that goes wrong: virtual time, a seeded network, a seeded disk, power cuts at any step.
//!
//! ```text
//!   machines (storm's state machines) ─┐              ┌─ DHCP desk, TFTP transfers, boot content, agents' calls
//!   systems (an RFC 2131 client) ──────┤─ network ────┤       │
//!   strangers ─────────────────────────┘  loses,      └─ registry ─ disk: slow, full, failing, torn
//!                                         repeats,              └─ power: gone at any moment, another clock after
//!                                         delays
//! ```
//!
//! The appliance is the product's own cores, put together as it does: DHCP server, lease table and desk; registry with
//! timelines and tokens; boot content and scripts; TFTP transfers; the agents' calls. What it is not, and who tests that:
//!
//! - sockets, threads, hyper and the wire format of HTTP: `tests/it`, `tests/http`, `tests/tftp`, `tests/conformance`
//! - the guard of the bridge, rivals and asking by ARP before an offer: `tests/net`, `tests/it/guard.rs`, `tests/it/conflicts.rs`
//! - the operator's API and page: `tests/it/operator.rs`, `tests/page`
//! - installing a system: `tests/it/agent_install.rs`, `tests/lab`
//! - SQLite and files: the disk is a model that keeps what SQLite promises. The store itself: `tests/faults/power.rs`,
//!   `disk.rs`, `damage.rs`, and kills of the whole program in `tests/faults/crashes.rs`
//!
//! The power goes between two events, never inside one: an event is one call into a core, and cores do not wait. What
//! waits is the disk, and the power goes while it does, with none, some or all of what was written kept. The clock jumps
//! when the appliance starts, since that is when it reads it; `tests/faults/clock.rs` does that to the program.
//!
//! One number decides everything, so that a failure is had again with one command, which is printed. (Node ids and
//! tokens are random all the same; nothing here depends on their value.)
//!
//! `SIM_SEEDS=n` runs that many, `SIM_SEED=n` one of them, with its story.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use world::World;

mod appliance;
mod checks;
mod disk;
mod plan;
mod player;
mod system;
mod world;

/// Seeds of a plain `cargo test`.
const SEEDS: u64 = 300;
/// Failures worth printing.
const SHOWN: usize = 5;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

fn run(seed: u64, trace: bool) -> Result<u64, String> {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(seed, trace);
        let outcome = world.run();
        outcome.map(|()| world.checks.acks).map_err(|error| format!("{error} (at {} ms)", world.now))
    }));
    outcome.unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        Err(format!("panicked: {}", said.or(panic.downcast_ref::<&str>().copied()).unwrap_or("?")))
    })
}

#[test]
fn everybody_is_served_and_nothing_acknowledged_is_lost() {
    if let Some(seed) = number("SIM_SEED") {
        let acks = run(seed, true).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        println!("seed {seed}: all well, {acks} ACKs");
        return;
    }
    let first = number("SIM_FROM").unwrap_or(0);
    let seeds = number("SIM_SEEDS").unwrap_or(SEEDS);
    let next = AtomicU64::new(first);
    let (acks, failures) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    let workers = thread::available_parallelism().map_or(2, usize::from);
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds {
                        return;
                    }
                    match run(seed, false) {
                        Ok(number) => drop(acks.fetch_add(number, Ordering::Relaxed)),
                        Err(error) => failures.lock().expect("failures").push((seed, error)),
                    }
                }
            });
        }
    });
    let acks = acks.into_inner();
    let mut failures = failures.into_inner().expect("failures");
    failures.sort();
    println!("{seeds} seeds, {acks} leases acknowledged, {} failures", failures.len());
    let story: Vec<String> = failures
        .iter()
        .take(SHOWN)
        .map(|(seed, error)| {
            format!("seed {seed}: {error}\n  again: SIM_SEED={seed} cargo test --test sim -- --nocapture")
        })
        .collect();
    assert!(failures.is_empty(), "{} of {seeds} seeds fail:\n{}", failures.len(), story.join("\n"));
    // A run that serves nobody proves nothing.
    assert!(acks >= seeds, "only {acks} leases in {seeds} seeds");
}
