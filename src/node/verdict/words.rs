//! Events in words, for evidence and stages. Texts from the wire are bounded where they are recorded; whoever prints
//! them makes them inert.

use crate::boot::client::ClientClass;
use crate::boot::decision::ScriptPlan;
use crate::node::timeline::{AgentCall, FileOutcome, Happening, Stage, Transport, edited};

pub(super) fn tell(happening: &Happening) -> String {
    match happening {
        Happening::Dhcp {
            class,
            message,
            xid,
            answer,
            address,
            boot_file,
            nothing_to_boot,
            other_server,
            ..
        } => {
            let mut text =
                format!("{} of {} (transaction {xid:08x})", message.to_uppercase(), class_words(*class));
            match answer {
                Ok(answer) => text.push_str(&format!(" answered with {}", answer.to_uppercase())),
                Err(reason) => text.push_str(&format!(" not answered: {reason}")),
            }
            if let Some(server) = other_server {
                text.push_str(&format!(", it chose the server {server}"));
            }
            if let Some(address) = address {
                text.push_str(&format!(", {address}"));
            }
            match (boot_file, nothing_to_boot) {
                (Some(file), _) => text.push_str(&format!(", boot file {file}")),
                (None, Some(reason)) => text.push_str(&format!(", nothing to boot: {}", reason.as_str())),
                (None, None) => {}
            }
            text
        }
        Happening::OtherServer { server, server_mac, message, xid, address, boot_file, .. } => {
            let address = address.map(|address| format!(" {address}")).unwrap_or_default();
            let file = boot_file.as_ref().map(|file| format!(", boot file {file}")).unwrap_or_default();
            format!(
                "{}{address} by the DHCP server {server} ({server_mac}, transaction {xid:08x}){file}",
                message.to_uppercase()
            )
        }
        Happening::File { transport, name, size, sent, took_millis, outcome, tftp, .. } => {
            let by = match transport {
                Transport::Tftp => "TFTP",
                Transport::Http => "HTTP",
            };
            let of = size.map(|size| format!(" of {size}")).unwrap_or_default();
            let took = format!("{:.1} s", std::time::Duration::from_millis(*took_millis).as_secs_f64());
            let resent = match tftp {
                Some(facts) if facts.resent > 0 => {
                    format!(", {} packets sent again, blocks of {}", facts.resent, facts.blksize)
                }
                Some(_) | None => String::new(),
            };
            match outcome {
                FileOutcome::Complete => format!("{name} by {by}: {sent} bytes in {took}{resent}"),
                FileOutcome::Range => format!("{name} by {by}: {sent}{of} bytes, the part asked for"),
                FileOutcome::Probe => format!("{name} by {by}: asked for its size"),
                FileOutcome::NotFound => format!("{name} by {by}: not found"),
                FileOutcome::Aborted(reason) => {
                    format!("{name} by {by}: ended after {sent}{of} bytes and {took}: {reason}{resent}")
                }
            }
        }
        Happening::Script { name, plan, .. } => format!("{name} handed out: {}", plan_words(*plan)),
        Happening::Profile { profile, rule, outcome } => {
            format!("boot profile {profile} by rule {rule}: {}", outcome.words())
        }
        Happening::Agent { call } => match call {
            AgentCall::Hello { uptime_secs, .. } => {
                format!("agent called, {uptime_secs:.1} s after its kernel started")
            }
            AgentCall::Inventory => "inventory stored".to_owned(),
            AgentCall::Failure { step, message } => format!("agent failed in step {step}: {message}"),
            AgentCall::Obeying { order } => format!("agent obeys: {order}"),
        },
        Happening::AgentRefused { reason, token_issued_at } => {
            let token = token_issued_at.map(|at| format!(", token of {at}")).unwrap_or_default();
            format!("agent refused: {reason}{token}")
        }
        Happening::OrderGiven { order } => format!("ordered: {order}"),
        Happening::State { from, to, cause } => format!("{from} → {to}: {cause}"),
        Happening::Approved => "approved".to_owned(),
        Happening::QuirksSet { quirks } => format!("quirks: {}", quirks.summary()),
        Happening::Registered => "registered".to_owned(),
        Happening::Edited { changes } => format!("edited: {}", edited::told(changes)),
        Happening::Removed { .. } => "removed".to_owned(),
        Happening::BootLoop { loaders } => format!("loader fetched {loaders} times and no script asked for"),
        Happening::PortConflict { port, owner } => format!("{port} already is a port of {owner}"),
        Happening::Install { install, .. } => install.words(),
        Happening::ApplianceStarted => "the appliance was started again".to_owned(),
    }
}

/// The stage an event is about, also if it did not succeed.
pub(super) fn stage_tried(happening: &Happening) -> Option<Stage> {
    match happening {
        Happening::Dhcp { .. } | Happening::OtherServer { .. } => Some(Stage::Dhcp),
        Happening::File { stage, .. } => *stage,
        Happening::Script { .. } | Happening::Profile { .. } => Some(Stage::Script),
        Happening::Agent { call } => match call {
            AgentCall::Inventory => Some(Stage::Enrolled),
            AgentCall::Hello { .. } | AgentCall::Failure { .. } | AgentCall::Obeying { .. } => {
                Some(Stage::Agent)
            }
        },
        Happening::AgentRefused { .. } => Some(Stage::Agent),
        Happening::BootLoop { .. } => Some(Stage::Loader),
        Happening::OrderGiven { .. }
        | Happening::State { .. }
        | Happening::Approved
        | Happening::QuirksSet { .. }
        | Happening::Registered
        | Happening::Edited { .. }
        | Happening::Removed { .. }
        | Happening::PortConflict { .. }
        | Happening::Install { .. }
        | Happening::ApplianceStarted => None,
    }
}

pub(super) fn class_words(class: ClientClass) -> String {
    match class {
        ClientClass::Firmware { firmware } => format!("{firmware} firmware"),
        ClientClass::UnknownFirmware { arch } => format!("firmware of architecture {arch:#06x}"),
        ClientClass::Ipxe { firmware, .. } => format!("iPXE on {firmware}"),
        ClientClass::Ramdisk => "the ramdisk".to_owned(),
        ClientClass::OperatingSystem => "an operating system".to_owned(),
    }
}

fn plan_words(plan: ScriptPlan) -> &'static str {
    match plan {
        ScriptPlan::Ramdisk => "it boots the deploy ramdisk",
        ScriptPlan::AwaitApproval => "it waits for approval",
        ScriptPlan::LocalDisk => "it boots from its disk",
        ScriptPlan::Profile => "it boots its boot profile",
        ScriptPlan::Installer => "it starts its installer",
        ScriptPlan::ProfileRefused => "it waits, for its boot profile is refused",
    }
}

pub(super) fn stage_word(stage: Stage) -> &'static str {
    match stage {
        Stage::Dhcp => "DHCP",
        Stage::Loader => "loader",
        Stage::Script => "script",
        Stage::Kernel => "kernel",
        Stage::Ramdisk => "ramdisk",
        Stage::Agent => "agent",
        Stage::Enrolled => "inventory",
    }
}
