//! The closing report: what came of the storm, in figures.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use serde::Serialize;

use crate::net::MacAddr;
use crate::storm::firmware::Kind;
use crate::storm::machine::{Machine, Stage};
use crate::storm::wire::Counters;

/// Machines named one by one.
const SLOWEST: usize = 5;

#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub nodes: usize,
    pub completed: usize,
    pub lost: usize,
    /// Ended by Ctrl-C: the machines under way count as lost.
    pub interrupted: bool,
    pub seed: u64,
    /// Equal for two storms with the same machines, power-on times, transaction numbers and losses.
    pub schedule: String,
    pub loss: f64,
    /// The last stage asked for; another server's ramdisk is the end, for it calls nobody we know.
    pub goal: &'static str,
    /// From the first power-on to the last machine's end.
    pub wall_secs: f64,
    pub downloaded_bytes: u64,
    pub dhcp: Dhcp,
    pub tftp_resends: u64,
    /// TFTP and HTTP transfers that machines began and gave up.
    pub given_up_transfers: usize,
    /// HTTP 503 with `Retry-After`.
    pub told_to_wait: u64,
    /// Addresses that two machines held at once: the server's fault, always.
    pub address_conflicts: usize,
    /// Frames that did not leave the storm's own end, and datagrams it had no room for: its own fault, always.
    pub own_drops: u64,
    pub flood: Option<FloodReport>,
    /// What passed on the storm's end of the cable, strangers included.
    pub wire: Counters,
    pub stages: Vec<StageTimes>,
    pub total: Spread,
    /// What went wrong how often; machines may have recovered.
    pub setbacks: Vec<Setback>,
    pub losses: Vec<Setback>,
    pub slowest: Vec<Slow>,
    pub storm_cpu_secs: f64,
    pub server: Option<ServerUse>,
    /// Of every machine that completed; not told where strangers have their share in it.
    pub per_node: Option<Cost>,
}

/// DISCOVERs sent besides, by strangers, and what came after them.
#[derive(Clone, Debug, Serialize)]
pub struct FloodReport {
    pub per_second: u32,
    pub sent: u64,
    /// Unknown machines that were switched on as the flood ended.
    pub newcomers: usize,
    pub newcomers_served: usize,
    /// From the flood's end until the last of them had its address; `None` if one never got any.
    pub recovery_secs: Option<f64>,
}

/// What one boot costs, on average.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Cost {
    pub server_cpu_ms: f64,
    pub packets: f64,
    pub bytes: f64,
    pub disk_bytes: f64,
}

impl FloodReport {
    pub fn of(per_second: u32, sent: u64, newcomers: &[&Machine]) -> FloodReport {
        let took: Vec<Duration> = newcomers
            .iter()
            .filter(|machine| machine.record.is_complete())
            .filter_map(|machine| machine.record.total())
            .collect();
        let all = took.len() == newcomers.len();
        let last = took.iter().max().map(Duration::as_secs_f64);
        FloodReport {
            per_second,
            sent,
            newcomers: newcomers.len(),
            newcomers_served: took.len(),
            recovery_secs: last.filter(|_| all),
        }
    }
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
    /// From the first power-on until the last machine was through.
    pub last_at_secs: f64,
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
    /// What it made the kernel write to disk.
    pub written_bytes: u64,
}

impl ServerUse {
    /// What it has used since; the peak is of its whole life.
    pub fn since(self, earlier: ServerUse) -> ServerUse {
        ServerUse {
            cpu_secs: self.cpu_secs - earlier.cpu_secs,
            peak_memory_bytes: self.peak_memory_bytes,
            written_bytes: self.written_bytes.saturating_sub(earlier.written_bytes),
        }
    }
}

/// What the storm itself knows beside its machines.
#[derive(Clone, Debug, Default)]
pub struct Circumstances {
    pub seed: u64,
    pub schedule: String,
    pub loss: f64,
    pub goal: &'static str,
    pub address_conflicts: usize,
    pub own_drops: u64,
    pub interrupted: bool,
    pub flood: Option<FloodReport>,
    pub wire: Counters,
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
            let last = records().filter_map(|record| record.left_at[stage as usize]).max();
            let last_at = last.zip(first).map_or(Duration::ZERO, |(last, first)| last.duration_since(first));
            (!took.is_empty()).then(|| StageTimes {
                stage,
                spread: Spread::of(took),
                last_at_secs: last_at.as_secs_f64(),
            })
        });
        let complete = records().filter(|record| record.is_complete());
        let reached = Stage::ALL.into_iter().rfind(|stage| {
            records().any(|record| record.is_complete() && record.took[*stage as usize].is_some())
        });
        Report {
            nodes: machines.len(),
            completed,
            lost: machines.len() - completed,
            interrupted: circumstances.interrupted,
            seed: circumstances.seed,
            schedule: circumstances.schedule,
            loss: circumstances.loss,
            goal: reached.map_or(circumstances.goal, Stage::as_str),
            wall_secs: wall.as_secs_f64(),
            downloaded_bytes: records().map(|record| record.bytes).sum(),
            dhcp: Dhcp {
                reply: Spread::of(records().flat_map(|record| record.replies.iter().copied()).collect()),
                resends: records().map(|record| u64::from(record.dhcp_resends)).sum(),
            },
            tftp_resends: records().map(|record| u64::from(record.tftp_resends)).sum(),
            given_up_transfers: records()
                .flat_map(|record| record.setbacks.iter())
                .filter(|(_, trouble)| trouble.is_given_up_transfer())
                .count(),
            told_to_wait: records().map(|record| u64::from(record.told_to_wait)).sum(),
            address_conflicts: circumstances.address_conflicts,
            own_drops: circumstances.own_drops,
            flood: circumstances.flood,
            wire: circumstances.wire,
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
            per_node: None,
        }
    }

    /// Adds what the server's process used.
    pub fn with_server(mut self, server: ServerUse) -> Report {
        let each = |sum: f64| sum / self.completed.max(1) as f64;
        let Counters { packets_to_machines, bytes_to_machines, packets_from_machines, bytes_from_machines } =
            self.wire;
        self.per_node = (self.completed > 0 && self.flood.is_none()).then(|| Cost {
            server_cpu_ms: each(server.cpu_secs * 1000.0),
            packets: each((packets_to_machines + packets_from_machines) as f64),
            bytes: each((bytes_to_machines + bytes_from_machines) as f64),
            disk_bytes: each(server.written_bytes as f64),
        });
        self.server = Some(server);
        self
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
