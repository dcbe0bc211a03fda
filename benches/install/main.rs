//! How fast an image gets onto disks: one machine beside `curl | zstd -d | dd oflag=direct` (`pipe.rs`), and a rack at
//! once over one link (`rack.rs`).
//!
//! `make bench-install`; INSTALL_MIB, RACK_MIB, RACK_MACHINES and ROUNDS set sizes and repetitions. Runs in a network
//! namespace of its own.

#[path = "../versus/bed.rs"]
#[allow(
    dead_code,
    clippy::disallowed_methods,
    reason = "the namespace and the waiting, as the other benchmarks have them"
)]
mod bed;
mod ground;
mod image;
mod nginx;
mod pipe;
mod rack;
#[path = "../../tests/it/support.rs"]
#[allow(dead_code, reason = "the appliance on its bridge, and machines; not what tests alone need")]
mod testbed;

use std::time::Duration;

pub const MIB: u64 = 1024 * 1024;

fn main() {
    let number = |name: &str, otherwise: u64| {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
    };
    bed::isolated();
    let _turn = bed::take_turn();
    let rounds = number("ROUNDS", 3);
    pipe::measure(number("INSTALL_MIB", 1024) * MIB, rounds);
    let machines = usize::try_from(number("RACK_MACHINES", 10)).unwrap_or(10);
    rack::measure(number("RACK_MIB", 192) * MIB, machines, rounds);
}

/// In seconds.
pub fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64()
}
