//! Real faults: kills, power cuts, damage, full and failing disks, restarts in the middle; and what the appliance may do.
//!
//! Tests are named by the acceptance ids of the requirements they answer (R-01, S-14, …). Counts are short, to cost seconds;
//! `make faults` runs the full ones (`FAULTS_KILLS`, `FAULTS_POWER_CUTS`, `FAULTS_INJECTIONS`), and `make soak MINUTES=n`
//! the soak. The last full figures are in tests/RELIABILITY.md.

mod backup;
mod clock;
mod crashes;
mod damage;
mod disk;
mod load;
mod power;
mod privileges;
mod soak;
#[path = "../it/support.rs"]
#[allow(dead_code, reason = "it serves other tests as well")]
mod support;
mod transfers;

/// A count the environment may raise.
fn count(variable: &str, short: usize) -> usize {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable}={text}: a number is wanted")),
        Err(_) => short,
    }
}
