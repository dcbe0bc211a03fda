//! Timeline events in words: what happened, with bytes and durations.

use std::time::Duration;

use super::table::Table;
use super::text::{Style, Tone, bytes, duration, inert};
use crate::boot::client::ClientClass;
use crate::boot::decision::ScriptPlan;
use crate::bridge_log::event::BridgeEvent;
use crate::clock::Timestamp;
use crate::node::install::event::InstallEvent;
use crate::node::timeline::{
    ADDRESS_ELSEWHERE, AgentCall, Boot, FileOutcome, Happening, ProfileOutcome, Stage, Transport, edited,
};

/// One event's cells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line {
    pub tone: Tone,
    pub what: String,
    pub detail: String,
    /// Bytes sent, when it was a file.
    pub bytes: Option<u64>,
    pub took: Option<Duration>,
}

impl Line {
    fn new(tone: Tone, what: &str, detail: impl Into<String>) -> Line {
        Line { tone, what: what.to_owned(), detail: detail.into(), bytes: None, took: None }
    }

    /// All of it in one line that cannot steer a terminal.
    pub fn sentence(&self) -> String {
        let mut text = format!("{} {}", self.what, self.detail).trim_end().to_owned();
        if let Some(sent) = self.bytes {
            text.push_str(&format!(", {}", bytes(sent)));
        }
        if let Some(took) = self.took {
            text.push_str(&format!(" in {}", duration(took)));
        }
        inert(&text)
    }
}

pub fn stage_word(stage: Stage) -> &'static str {
    match stage {
        Stage::Dhcp => "dhcp",
        Stage::Loader => "loader",
        Stage::Script => "script",
        Stage::Kernel => "kernel",
        Stage::Ramdisk => "ramdisk",
        Stage::Agent => "agent",
        Stage::Enrolled => "enrolled",
    }
}

pub fn describe(happening: &Happening) -> Line {
    match happening {
        Happening::Dhcp { class, message, answer, address, boot_file, nothing_to_boot, .. } => {
            let (tone, mut detail) = match answer {
                Ok(answer) => (Tone::Plain, format!("{} -> {answer}", class_words(*class))),
                Err(reason) if reason == ADDRESS_ELSEWHERE => {
                    (Tone::Plain, format!("{} -> left to the other server", class_words(*class)))
                }
                Err(reason) => (Tone::Attention, format!("{} -> no answer: {reason}", class_words(*class))),
            };
            if let Some(address) = address {
                detail.push_str(&format!(" {address}"));
            }
            if let Some(file) = boot_file {
                detail.push_str(&format!(", boot {file}"));
            }
            if let Some(reason) = nothing_to_boot {
                detail.push_str(&format!(", nothing to boot: {}", reason.as_str()));
            }
            Line::new(tone, message, detail)
        }
        Happening::OtherServer { server, message, address, boot_file, .. } => {
            let mut detail = format!("by the DHCP server {server}");
            if let Some(address) = address {
                detail.push_str(&format!(": {address}"));
            }
            if let Some(file) = boot_file {
                detail.push_str(&format!(", boot {file}"));
            }
            Line::new(Tone::Plain, message, detail)
        }
        Happening::File { transport, name, size, sent, took_millis, outcome, .. } => {
            let took = Some(Duration::from_millis(*took_millis));
            Line { bytes: Some(*sent), took, ..file_line(*transport, name, *size, outcome) }
        }
        Happening::Script { name, plan, .. } => {
            Line::new(Tone::Plain, "script", format!("{name}: {}", plan_words(*plan)))
        }
        Happening::Profile { profile, rule, outcome } => {
            let tone = match outcome {
                ProfileOutcome::Boots | ProfileOutcome::Started | ProfileOutcome::Spent => Tone::Plain,
                ProfileOutcome::PassedOver(_) => Tone::Attention,
                ProfileOutcome::Refused(_) => Tone::Bad,
            };
            Line::new(tone, "profile", format!("{profile} by rule {rule}: {}", outcome.words()))
        }
        Happening::Agent { call } => agent_line(call),
        Happening::AgentRefused { reason, .. } => Line::new(Tone::Bad, "agent", format!("refused: {reason}")),
        Happening::OrderGiven { order } => Line::new(Tone::Plain, "order", order.to_string()),
        Happening::State { from, to, cause } => {
            Line::new(Tone::Plain, "state", format!("{from} -> {to}: {cause}"))
        }
        Happening::Approved => Line::new(Tone::Good, "approved", ""),
        Happening::QuirksSet { quirks } => Line::new(Tone::Plain, "quirks", quirks.summary()),
        Happening::Registered => Line::new(Tone::Plain, "registered", ""),
        Happening::Edited { changes } => Line::new(Tone::Plain, "edited", edited::told(changes)),
        Happening::Removed { .. } => Line::new(Tone::Attention, "removed", ""),
        Happening::BootLoop { loaders } => {
            let detail = format!(
                "the loader was fetched {loaders} times and never asked for a script; none is offered now"
            );
            Line::new(Tone::Bad, "boot loop", detail)
        }
        Happening::Install { install, .. } => {
            let tone = match install {
                InstallEvent::Reported { .. }
                | InstallEvent::InstallerReported { .. }
                | InstallEvent::CalledHome { .. } => Tone::Good,
                trouble if trouble.is_trouble() => Tone::Bad,
                _ => Tone::Plain,
            };
            Line::new(tone, "install", install.words())
        }
        Happening::ApplianceStarted => Line::new(Tone::Attention, "farrier", "started again"),
        Happening::PortConflict { port, owner } => {
            Line::new(Tone::Bad, "port", format!("{port} already belongs to node {owner}"))
        }
    }
}

/// An event of the bridge.
pub fn describe_bridge(event: &BridgeEvent) -> Line {
    let (what, detail) = event.happening.words(event.at);
    let tone = if event.happening.is_trouble() { Tone::Bad } else { Tone::Good };
    Line::new(tone, what, detail)
}

fn file_line(transport: Transport, name: &str, size: Option<u64>, outcome: &FileOutcome) -> Line {
    let what = match transport {
        Transport::Tftp => "tftp",
        Transport::Http => "http",
    };
    let whole = size.map(|size| format!(" (the whole is {})", bytes(size))).unwrap_or_default();
    match outcome {
        FileOutcome::Complete => Line::new(Tone::Plain, what, name),
        FileOutcome::Probe => Line::new(Tone::Plain, what, format!("{name}: its size only")),
        FileOutcome::Range => Line::new(Tone::Plain, what, format!("{name}: a part{whole}")),
        FileOutcome::NotFound => Line::new(Tone::Attention, what, format!("{name}: no such file")),
        FileOutcome::Aborted(reason) => {
            Line::new(Tone::Bad, what, format!("{name}: broken off{whole}: {reason}"))
        }
    }
}

fn agent_line(call: &AgentCall) -> Line {
    match call {
        AgentCall::Hello { uptime_secs, .. } => Line::new(
            Tone::Plain,
            "agent",
            format!("called home {uptime_secs:.1} s after its kernel started"),
        ),
        AgentCall::Inventory => Line::new(Tone::Good, "agent", "sent its inventory"),
        AgentCall::Failure { step, message } => {
            Line::new(Tone::Bad, "agent", format!("failed in {step}: {message}"))
        }
        AgentCall::Obeying { order } => Line::new(Tone::Plain, "agent", format!("obeys: {order}")),
    }
}

fn plan_words(plan: ScriptPlan) -> &'static str {
    match plan {
        ScriptPlan::Ramdisk => "boot the ramdisk",
        ScriptPlan::AwaitApproval => "wait for approval",
        ScriptPlan::LocalDisk => "go on to the local disk",
        ScriptPlan::Profile => "boot its profile",
        ScriptPlan::Installer => "start its installer",
        ScriptPlan::ProfileRefused => "wait: its profile is refused",
    }
}

fn class_words(class: ClientClass) -> String {
    match class {
        ClientClass::Firmware { firmware } => firmware.to_string(),
        ClientClass::UnknownFirmware { arch } => format!("unknown firmware (architecture {arch})"),
        ClientClass::Ipxe { firmware, can_boot: true } => format!("ipxe {firmware}"),
        ClientClass::Ipxe { firmware, can_boot: false } => format!("ipxe {firmware} without http"),
        ClientClass::Ramdisk => "ramdisk".to_owned(),
        ClientClass::OperatingSystem => "operating system".to_owned(),
    }
}

/// One boot as a table: times relative to its start, and where it stopped.
pub fn render_boot(boot: &Boot, style: Style) -> String {
    let title = if boot.number == 0 {
        "outside any boot".to_owned()
    } else {
        format!("boot {}, {}, {}", boot.number, boot.started_at, outcome(boot))
    };
    let mut table = Table::new(&[">TIME", "WHAT", "DETAIL", ">BYTES", ">TOOK"]).indented("  ");
    for event in &boot.events {
        let line = describe(&event.happening);
        let cells = [
            relative(event.at, boot.started_at),
            line.what,
            line.detail,
            line.bytes.map(bytes).unwrap_or_default(),
            line.took.map(duration).unwrap_or_default(),
        ];
        table.row(line.tone, cells);
    }
    let mut text = format!("{}\n{}", style.paint(Tone::Heading, &title), table.render(style));
    if boot.unrecorded > 0 {
        text.push_str(&format!("  and {} more that were counted, not kept\n", boot.unrecorded));
    }
    if let Some(stopped) = boot.stopped_at.as_ref().filter(|_| boot.number > 0 && !boot.enrolled) {
        text.push_str(&format!(
            "  {}\n",
            style.paint(Tone::Attention, &format!("stopped at: {}", inert(stopped)))
        ));
    }
    text
}

fn outcome(boot: &Boot) -> String {
    let since_start =
        |stage| boot.times.get(&stage).map(|at: &Timestamp| duration(at.since(boot.started_at)));
    match (boot.enrolled, boot.stage) {
        (true, _) => match since_start(Stage::Enrolled) {
            Some(took) => format!("enrolled after {took}"),
            None => "enrolled".to_owned(),
        },
        (false, Some(stage)) => format!("reached {}", stage_word(stage)),
        (false, None) => "nothing reached".to_owned(),
    }
}

fn relative(at: Timestamp, start: Timestamp) -> String {
    format!("+{:.3}s", at.since(start).as_secs_f64())
}
