//! How far the machines of a lab have come, read from the appliance's timelines. Pure: documents in, rows out.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use crate::cli::table::Table;
use crate::cli::text::{Tone, bytes};
use crate::cli::timeline::stage_word;
use crate::clock::Timestamp;
use crate::lab::config::{LabFirmware, MachineConfig};
use crate::net::MacAddr;
use crate::node::timeline::{Boot, Happening, Stage};

/// In the order a boot reaches them.
pub const STAGES: [Stage; 7] =
    [Stage::Dhcp, Stage::Loader, Stage::Script, Stage::Kernel, Stage::Ramdisk, Stage::Agent, Stage::Enrolled];

/// One machine, from power-on.
#[derive(Clone, Debug, PartialEq)]
pub struct MachineProgress {
    pub name: String,
    pub firmware: LabFirmware,
    pub mac: MacAddr,
    pub powered_on_at: Option<Timestamp>,
    pub address: Option<Ipv4Addr>,
    /// Bytes of files sent to it.
    pub bytes: u64,
    /// Boots since power-on; more than one means that it started over.
    pub boots: usize,
    /// When each stage was first reached, in the newest boot.
    pub times: BTreeMap<Stage, Timestamp>,
    /// Why it is no further, in the appliance's words.
    pub stopped_at: Option<String>,
    /// How its QEMU ended, if it did.
    pub failed: Option<String>,
}

impl MachineProgress {
    pub fn new(machine: &MachineConfig) -> MachineProgress {
        MachineProgress {
            name: machine.name.to_string(),
            firmware: machine.firmware,
            mac: machine.mac,
            powered_on_at: None,
            address: None,
            bytes: 0,
            boots: 0,
            times: BTreeMap::new(),
            stopped_at: None,
            failed: None,
        }
    }

    /// Takes over what the appliance recorded; boots of before the power-on are history. Returns the stages newly reached.
    pub fn update(&mut self, boots: &[Boot]) -> Vec<Stage> {
        let Some(powered_on_at) = self.powered_on_at else { return Vec::new() };
        let current: Vec<&Boot> =
            boots.iter().filter(|boot| boot.number > 0 && boot.started_at >= powered_on_at).collect();
        let Some(newest) = current.iter().max_by_key(|boot| boot.number) else { return Vec::new() };
        let started_over = current.len() > self.boots;
        let before = if started_over { BTreeMap::new() } else { std::mem::take(&mut self.times) };
        self.boots = current.len();
        self.times.clone_from(&newest.times);
        self.stopped_at.clone_from(&newest.stopped_at);
        self.bytes = 0;
        for event in &newest.events {
            match &event.happening {
                Happening::File { sent, .. } => self.bytes += sent,
                Happening::Dhcp { address: Some(address), answer: Ok(_), .. } => {
                    self.address = Some(*address)
                }
                _ => {}
            }
        }
        self.times.keys().filter(|stage| !before.contains_key(stage)).copied().collect()
    }

    pub fn stage(&self) -> Option<Stage> {
        self.times.keys().next_back().copied()
    }

    pub fn is_enrolled(&self) -> bool {
        self.times.contains_key(&Stage::Enrolled)
    }

    /// Nothing more is to be expected of it.
    pub fn is_finished(&self) -> bool {
        self.is_enrolled() || self.failed.is_some()
    }

    /// From power-on to the moment a stage was reached.
    pub fn time_to(&self, stage: Stage) -> Option<Duration> {
        Some(self.times.get(&stage)?.since(self.powered_on_at?))
    }

    /// From power-on to now, or to the end.
    fn elapsed(&self, now: Timestamp) -> Option<Duration> {
        self.time_to(Stage::Enrolled).or_else(|| Some(now.since(self.powered_on_at?)))
    }
}

/// What is going on now. A narrow terminal cuts lines at its right end, so what matters most is on the left.
pub fn live_table(machines: &[MachineProgress], now: Timestamp) -> Table {
    let mut table = Table::new(&["MACHINE", "STAGE", ">TIME", "FIRMWARE", "ADDRESS", ">SENT"]);
    for machine in machines {
        let tone = if machine.is_enrolled() { Tone::Good } else { Tone::Plain };
        let stage = match (machine.stage(), machine.powered_on_at) {
            (None, None) => "off".to_owned(),
            (None, Some(_)) => "firmware starts".to_owned(),
            (Some(reached), _) => stages_so_far(machine, reached),
        };
        let row = [
            machine.name.clone(),
            stage,
            machine.elapsed(now).map(seconds).unwrap_or_default(),
            machine.firmware.to_string(),
            machine.address.map(|address| address.to_string()).unwrap_or_default(),
            if machine.bytes > 0 { bytes(machine.bytes) } else { String::new() },
        ];
        table.row(tone, row);
    }
    table
}

/// `[====   ] kernel`: stages passed of those there are; a machine that started over says so.
fn stages_so_far(machine: &MachineProgress, reached: Stage) -> String {
    let passed = STAGES.iter().filter(|stage| **stage <= reached).count();
    let again = if machine.boots > 1 { format!(", start {}", machine.boots) } else { String::new() };
    format!("[{:<width$}] {}{again}", "=".repeat(passed), stage_word(reached), width = STAGES.len())
}

/// The closing table: time from power-on to each stage.
pub fn closing_table(machines: &[MachineProgress]) -> Table {
    let mut headings = vec!["MACHINE", "FIRMWARE", "ADDRESS"];
    headings.extend([">DHCP", ">LOADER", ">SCRIPT", ">KERNEL", ">RAMDISK", ">AGENT", ">ENROLLED"]);
    let mut table = Table::new(&headings);
    for machine in machines {
        let mut row = vec![
            machine.name.clone(),
            machine.firmware.to_string(),
            machine.address.map(|address| address.to_string()).unwrap_or_else(|| "-".to_owned()),
        ];
        row.extend(
            STAGES.iter().map(|stage| machine.time_to(*stage).map_or_else(|| "-".to_owned(), seconds)),
        );
        table.row(if machine.is_enrolled() { Tone::Good } else { Tone::Bad }, row);
    }
    table
}

pub fn seconds(duration: Duration) -> String {
    format!("{:.1}s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::client::{ClientClass, Firmware};
    use crate::cli::text::Style;
    use crate::lab::config::LabConfig;
    use crate::node::NodeId;
    use crate::node::timeline::{FileOutcome, TimelineEvent, Transport};

    fn at(secs: u64) -> Timestamp {
        Timestamp::from_millis(1_795_000_000_000 + secs * 1000)
    }

    fn boot(number: u32, started: u64, times: &[(Stage, u64)], happenings: Vec<Happening>) -> Boot {
        let times: BTreeMap<_, _> = times.iter().map(|(stage, secs)| (*stage, at(*secs))).collect();
        let event = |happening| TimelineEvent {
            node: NodeId(uuid::Uuid::nil()),
            boot: number,
            sequence: 0,
            at: at(started),
            happening,
        };
        Boot {
            number,
            started_at: at(started),
            stage: times.keys().next_back().copied(),
            enrolled: times.contains_key(&Stage::Enrolled),
            times,
            stopped_at: None,
            events: happenings.into_iter().map(event).collect(),
            unrecorded: 0,
        }
    }

    fn happenings() -> Vec<Happening> {
        let dhcp = Happening::Dhcp {
            port: MacAddr([0x52, 0x54, 0, 0, 2, 1]),
            class: ClientClass::Firmware { firmware: Firmware::Bios },
            message: "request".to_owned(),
            xid: 1,
            answer: Ok("ack".to_owned()),
            address: Some(Ipv4Addr::new(192, 168, 2, 130)),
            boot_file: None,
            nothing_to_boot: None,
            other_server: None,
        };
        let file = Happening::File {
            transport: Transport::Http,
            stage: Some(Stage::Kernel),
            name: "image/vm/vmlinuz".to_owned(),
            size: Some(14_000_000),
            sent: 14_000_000,
            took_millis: 20,
            outcome: FileOutcome::Complete,
            tftp: None,
        };
        vec![dhcp, file]
    }

    #[test]
    fn a_boot_is_followed_from_power_on_to_enrolled() {
        let mut machine = MachineProgress::new(&LabConfig::built_in().unwrap().machines[0]);
        let old = boot(1, 1, &[(Stage::Enrolled, 9)], Vec::new());
        assert!(machine.update(std::slice::from_ref(&old)).is_empty(), "it is not even on");
        machine.powered_on_at = Some(at(100));
        assert!(machine.update(std::slice::from_ref(&old)).is_empty(), "that was another life");
        let text = live_table(std::slice::from_ref(&machine), at(103)).render(Style::PLAIN);
        assert!(text.contains("firmware starts") && text.contains("3.0s"), "{text}");

        let young = boot(2, 102, &[(Stage::Dhcp, 102), (Stage::Kernel, 104)], happenings());
        assert_eq!(machine.update(&[old.clone(), young]), [Stage::Dhcp, Stage::Kernel]);
        let text = live_table(std::slice::from_ref(&machine), at(105)).render(Style::PLAIN);
        assert!(text.contains("192.168.2.130") && text.contains("14.0 MB"), "{text}");
        // What a terminal of 40 columns leaves of it.
        let cut: String = text.lines().nth(1).unwrap().chars().take(40).collect();
        assert!(cut.contains("[====   ] kernel") && cut.contains("5.0s"), "{cut}");

        let done =
            boot(2, 102, &[(Stage::Dhcp, 102), (Stage::Kernel, 104), (Stage::Enrolled, 107)], happenings());
        assert_eq!(machine.update(&[old, done]), [Stage::Enrolled]);
        assert!(machine.is_enrolled());
        let text = closing_table(std::slice::from_ref(&machine)).render(Style::PLAIN);
        assert!(
            text.trim_end().ends_with("2.0s       -       -    4.0s        -      -      7.0s"),
            "{text}"
        );
    }

    #[test]
    fn a_machine_that_starts_over_says_so() {
        let mut machine = MachineProgress::new(&LabConfig::built_in().unwrap().machines[0]);
        machine.powered_on_at = Some(at(0));
        machine.update(&[boot(1, 1, &[(Stage::Dhcp, 1), (Stage::Kernel, 3)], Vec::new())]);
        let first = boot(1, 1, &[(Stage::Dhcp, 1), (Stage::Kernel, 3)], Vec::new());
        let second = boot(2, 10, &[(Stage::Dhcp, 10)], Vec::new());
        assert_eq!(machine.update(&[first, second]), [Stage::Dhcp], "told again for the new start");
        assert_eq!(machine.stage(), Some(Stage::Dhcp));
        let text = live_table(std::slice::from_ref(&machine), at(11)).render(Style::PLAIN);
        assert!(text.contains("dhcp, start 2"), "{text}");
    }
}
