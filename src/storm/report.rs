//! The closing report: what came of the storm, in figures.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use serde::Serialize;

use crate::net::MacAddr;
use crate::storm::firmware::Kind;
use crate::storm::machine::{Machine, Stage};

/// Machines named one by one.
const SLOWEST: usize = 5;

#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub nodes: usize,
    pub completed: usize,
    pub lost: usize,
    pub seed: u64,
    pub loss: f64,
    /// The last stage asked for; another server's ramdisk is the end, for it calls nobody we know.
    pub goal: &'static str,
    /// From the first power-on to the last machine's end.
    pub wall_secs: f64,
    pub downloaded_bytes: u64,
    pub dhcp: Dhcp,
    pub tftp_resends: u64,
    /// HTTP 503 with `Retry-After`.
    pub told_to_wait: u64,
    /// Addresses that two machines held at once: the server's fault, always.
    pub address_conflicts: usize,
    /// Frames that did not leave the storm's own end: its own fault, always.
    pub own_drops: u64,
    /// DISCOVERs sent besides, by strangers.
    pub strangers: u64,
    pub stages: Vec<StageTimes>,
    pub total: Spread,
    /// What went wrong how often; machines may have recovered.
    pub setbacks: Vec<Setback>,
    pub losses: Vec<Setback>,
    pub slowest: Vec<Slow>,
    pub storm_cpu_secs: f64,
    pub server: Option<ServerUse>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Dhcp {
    /// From the first DISCOVER or REQUEST of a conversation to its answer, resends included.
    pub reply: Spread,
    pub resends: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    pub count: usize,
    pub p50_secs: f64,
    pub p99_secs: f64,
    pub max_secs: f64,
}

#[derive(Clone, Debug, Serialize)]
pub struct StageTimes {
    pub stage: Stage,
    #[serde(flatten)]
    pub spread: Spread,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Setback {
    pub stage: Stage,
    pub reason: String,
    pub count: usize,
}

#[derive(Clone, Debug, Serialize)]
pub struct Slow {
    pub mac: MacAddr,
    pub kind: Kind,
    pub address: Option<Ipv4Addr>,
    pub total_secs: f64,
    /// Where most of the time went.
    pub stage: Stage,
    pub stage_secs: f64,
    pub why: String,
}

/// What the server's process used, where it is ours to look at.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ServerUse {
    pub cpu_secs: f64,
    pub peak_memory_bytes: u64,
}

/// What the storm itself knows beside its machines.
#[derive(Clone, Copy, Debug, Default)]
pub struct Circumstances {
    pub seed: u64,
    pub loss: f64,
    pub goal: &'static str,
    pub address_conflicts: usize,
    pub own_drops: u64,
    pub strangers: u64,
    pub storm_cpu_secs: f64,
}

impl Spread {
    pub fn of(mut values: Vec<Duration>) -> Spread {
        values.sort_unstable();
        let at = |share: f64| {
            // Nearest rank: the smallest value that this share of all values does not exceed.
            let rank = (values.len() as f64 * share).ceil() as usize;
            values.get(rank.saturating_sub(1)).map_or(0.0, Duration::as_secs_f64)
        };
        Spread { count: values.len(), p50_secs: at(0.5), p99_secs: at(0.99), max_secs: at(1.0) }
    }
}

impl Report {
    pub fn of(machines: &[&Machine], circumstances: Circumstances) -> Report {
        let records = || machines.iter().map(|machine| &machine.record);
        let completed = records().filter(|record| record.is_complete()).count();
        let first = records().filter_map(|record| record.powered_on).min();
        let last = records().filter_map(|record| record.ended).max();
        let wall = first.zip(last).map_or(Duration::ZERO, |(first, last)| last.duration_since(first));
        let stages = Stage::ALL.into_iter().filter_map(|stage| {
            let took: Vec<Duration> = records().filter_map(|record| record.took[stage as usize]).collect();
            (!took.is_empty()).then(|| StageTimes { stage, spread: Spread::of(took) })
        });
        let complete = records().filter(|record| record.is_complete());
        let reached = Stage::ALL.into_iter().rfind(|stage| {
            records().any(|record| record.is_complete() && record.took[*stage as usize].is_some())
        });
        Report {
            nodes: machines.len(),
            completed,
            lost: machines.len() - completed,
            seed: circumstances.seed,
            loss: circumstances.loss,
            goal: reached.map_or(circumstances.goal, Stage::as_str),
            wall_secs: wall.as_secs_f64(),
            downloaded_bytes: records().map(|record| record.bytes).sum(),
            dhcp: Dhcp {
                reply: Spread::of(records().flat_map(|record| record.replies.iter().copied()).collect()),
                resends: records().map(|record| u64::from(record.dhcp_resends)).sum(),
            },
            tftp_resends: records().map(|record| u64::from(record.tftp_resends)).sum(),
            told_to_wait: records().map(|record| u64::from(record.told_to_wait)).sum(),
            address_conflicts: circumstances.address_conflicts,
            own_drops: circumstances.own_drops,
            strangers: circumstances.strangers,
            stages: stages.collect(),
            total: Spread::of(complete.filter_map(|record| record.total()).collect()),
            setbacks: counted(
                records()
                    .flat_map(|record| record.setbacks.iter().map(|(stage, why)| (*stage, why.to_string()))),
            ),
            losses: counted(
                records().filter_map(|record| record.lost).map(|(stage, why)| (stage, why.to_string())),
            ),
            slowest: slowest(machines),
            storm_cpu_secs: circumstances.storm_cpu_secs,
            server: None,
        }
    }
}

fn counted(troubles: impl Iterator<Item = (Stage, String)>) -> Vec<Setback> {
    let mut counts: BTreeMap<(Stage, String), usize> = BTreeMap::new();
    for trouble in troubles {
        *counts.entry(trouble).or_default() += 1;
    }
    let mut setbacks: Vec<Setback> =
        counts.into_iter().map(|((stage, reason), count)| Setback { stage, reason, count }).collect();
    setbacks.sort_by_key(|setback| std::cmp::Reverse(setback.count));
    setbacks
}

/// The slowest of those that arrived, and the first of those that did not, each with its reason.
fn slowest(machines: &[&Machine]) -> Vec<Slow> {
    let mut order: Vec<&&Machine> =
        machines.iter().filter(|machine| machine.record.ended.is_some()).collect();
    order.sort_by_key(|machine| (machine.record.is_complete(), std::cmp::Reverse(machine.record.total())));
    order.into_iter().take(SLOWEST).map(|machine| slow(machine)).collect()
}

fn slow(machine: &Machine) -> Slow {
    let record = &machine.record;
    let longest = Stage::ALL.into_iter().max_by_key(|stage| record.took[*stage as usize]);
    let stage = record.lost.map(|(stage, _)| stage).or(longest).unwrap_or(Stage::FirmwareDhcp);
    let mut reasons = Vec::new();
    if let Some((stage, trouble)) = record.lost {
        reasons.push(format!("lost in {stage}: {trouble}"));
    }
    for (count, what) in [
        (record.dhcp_resends, "DHCP resends"),
        (record.tftp_resends, "TFTP resends"),
        (record.told_to_wait, "times told to wait"),
    ] {
        if count > 0 {
            reasons.push(format!("{count} {what}"));
        }
    }
    if record.lost.is_none() {
        reasons.extend(record.setbacks.iter().take(3).map(|(stage, trouble)| format!("{stage}: {trouble}")));
    }
    if reasons.is_empty() {
        reasons.push(format!("longest in {stage}"));
    }
    Slow {
        mac: machine.identity().mac,
        kind: machine.kind,
        address: record.address,
        total_secs: record.total().map_or(0.0, |total| total.as_secs_f64()),
        stage,
        stage_secs: record.took[stage as usize].map_or(0.0, |took| took.as_secs_f64()),
        why: reasons.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let spread = Spread::of((1..=200).map(Duration::from_secs).collect());
        assert_eq!((spread.p50_secs, spread.p99_secs, spread.max_secs), (100.0, 198.0, 200.0));
        assert_eq!(Spread::of(Vec::new()), Spread::default());
        let one = Spread::of(vec![Duration::from_secs(3)]);
        assert_eq!((one.count, one.p50_secs, one.p99_secs), (1, 3.0, 3.0));
    }
}
