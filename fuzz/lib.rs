//! The targets of tests/fuzz, for libFuzzer.

#[path = "../tests/fuzz/targets.rs"]
mod targets;

/// Feeds the target of that name.
pub fn run(name: &str, data: &[u8]) {
    let found = targets::TARGETS.iter().find(|(target, _)| *target == name);
    let (_, target) = found.expect("a target of that name");
    target(data);
}
