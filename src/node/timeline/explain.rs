//! The line that says why a boot is no further: the last thing that went wrong since it last got on, or what it is
//! expected to do next.

use crate::boot::decision::{NothingToBoot, ScriptPlan};
use crate::node::timeline::history::BootLog;
use crate::node::timeline::{ADDRESS_ELSEWHERE, AgentCall, FileOutcome, Happening, ProfileOutcome, Stage};

pub(super) fn stopped_at(log: &BootLog) -> String {
    // What went wrong before the boot got on does not matter any more: loaders probe for many files that are not there.
    let last_step = log.events.iter().rposition(|event| {
        event.happening.stage().is_some_and(|stage| Some(stage) == log.stage && !is_problem(&event.happening))
    });
    let since = &log.events[last_step.map_or(0, |index| index + 1)..];
    let problem = since.iter().rev().find_map(|event| problem(&event.happening, log.stage));
    problem.unwrap_or_else(|| awaited(log))
}

/// A step that was tried and did not succeed; it carries its stage all the same.
fn is_problem(happening: &Happening) -> bool {
    match happening {
        Happening::Dhcp { answer: Err(reason), .. } => reason != ADDRESS_ELSEWHERE,
        happening => matches!(happening, Happening::Agent { call: AgentCall::Failure { .. } }),
    }
}

fn problem(happening: &Happening, reached: Option<Stage>) -> Option<String> {
    match happening {
        Happening::Dhcp { answer: Err(reason), .. } if reason == ADDRESS_ELSEWHERE => None,
        Happening::Dhcp { answer: Err(reason), message, .. } if reached <= Some(Stage::Dhcp) => {
            Some(format!("{message} was not answered: {reason}"))
        }
        Happening::File { stage, name, size, sent, outcome, .. } => match outcome {
            FileOutcome::NotFound => {
                // A name we know nothing of is a probe, until the script has been read: then it is a wrong URL.
                let wanted = stage.map_or(reached >= Some(Stage::Script), |stage| Some(stage) >= reached);
                wanted.then(|| format!("{}: {name} not found", stage_word(*stage)))
            }
            FileOutcome::Aborted(reason) => {
                let of = size.map(|size| format!(" of {size}")).unwrap_or_default();
                let word = stage_word(*stage);
                Some(format!("{word}: {name} ended after {sent}{of} bytes: {reason}"))
            }
            FileOutcome::Complete | FileOutcome::Probe | FileOutcome::Range => None,
        },
        Happening::Agent { call: AgentCall::Failure { step, message } } => {
            Some(format!("agent: {step}: {message}"))
        }
        Happening::AgentRefused { reason, .. } => Some(format!("agent was refused: {reason}")),
        Happening::BootLoop { loaders } => {
            Some(format!("loader was fetched {loaders} times, and no script ever asked for"))
        }
        Happening::Profile { profile, outcome: ProfileOutcome::Refused(reason), .. } => {
            (reached <= Some(Stage::Script)).then(|| format!("boot profile {profile} is refused: {reason}"))
        }
        Happening::Dhcp { .. }
        | Happening::OtherServer { .. }
        | Happening::Profile { .. }
        | Happening::Agent { .. }
        | Happening::Script { .. }
        | Happening::OrderGiven { .. }
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

fn awaited(log: &BootLog) -> String {
    let (mut script, mut boot_file, mut nothing) = (None, None, None);
    for event in &log.events {
        if let Happening::Script { plan, .. } = &event.happening {
            script = Some(*plan);
        }
        if let Happening::Dhcp { boot_file: named, nothing_to_boot, answer: Ok(_), .. } = &event.happening {
            (boot_file, nothing) = (Some(named.is_some()), *nothing_to_boot);
        }
    }
    let line = match (log.stage, script) {
        (None, _) => "nothing was fetched",
        (Some(Stage::Dhcp), _) if boot_file == Some(false) => nothing_line(nothing),
        (Some(Stage::Dhcp), _) => "address given, no loader fetched",
        (Some(Stage::Loader), _) => "loader loaded, no script asked for",
        (Some(Stage::Script), Some(ScriptPlan::AwaitApproval)) => "waits for an operator's approval",
        (Some(Stage::Script), Some(ScriptPlan::LocalDisk)) => "handed over to the local disk",
        (Some(Stage::Script), Some(ScriptPlan::Profile)) => {
            "script loaded, nothing of its boot profile fetched"
        }
        (Some(Stage::Script), Some(ScriptPlan::Installer)) => {
            "script loaded, nothing of its installer fetched"
        }
        (Some(Stage::Kernel), Some(ScriptPlan::Installer)) => "handed over to its installer",
        (Some(Stage::Script), Some(ScriptPlan::ProfileRefused)) => "its boot profile is refused",
        (Some(Stage::Kernel), Some(ScriptPlan::Profile)) => "handed over to its boot profile",
        (Some(Stage::Script), Some(ScriptPlan::Ramdisk) | None) => "script loaded, no kernel fetched",
        (Some(Stage::Kernel), _) => "kernel loaded, no ramdisk fetched",
        (Some(Stage::Ramdisk), _) => "ramdisk loaded, agent never called",
        (Some(Stage::Agent), _) => "agent called, inventory never came",
        (Some(Stage::Enrolled), _) => "enrolled",
    };
    line.to_owned()
}

fn nothing_line(reason: Option<NothingToBoot>) -> &'static str {
    match reason {
        Some(NothingToBoot::NoLoader) => "address given; no loader for its firmware is installed",
        Some(NothingToBoot::UnknownFirmware) => "address given; its firmware is of a kind nobody knows",
        Some(NothingToBoot::LocalDisk) => "address given; it is to boot from its own disk",
        Some(NothingToBoot::BootLoop) => "address given; no loader any more, since none ever led to a script",
        Some(NothingToBoot::NotABootClient) | None => "address given, and nothing to boot",
    }
}

fn stage_word(stage: Option<Stage>) -> &'static str {
    match stage {
        Some(Stage::Dhcp) => "dhcp",
        Some(Stage::Loader) => "loader",
        Some(Stage::Script) => "script",
        Some(Stage::Kernel) => "kernel",
        Some(Stage::Ramdisk) => "ramdisk",
        Some(Stage::Agent) => "agent",
        Some(Stage::Enrolled) => "enrolled",
        None => "file",
    }
}
