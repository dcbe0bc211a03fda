//! What it means that nothing came: no next step, or nothing at all.
//!
//! Each stage has a deadline, which is what the slowest firmware in the field takes (measured, or read in its source)
//! with a margin. Before it the boot is under way; from then on its silence is a finding.

use std::time::Duration;

use crate::boot::client::{ClientClass, Firmware};
use crate::boot::decision::{ScriptPlan, UnknownPolicy};
use crate::bridge_log::event::BridgeFault;
use crate::config::DhcpMode;
use crate::net::ports::{BridgePort, PortState};
use crate::node::NodeId;
use crate::node::registry::StrangerTrace;
use crate::node::timeline::{Happening, ProfileOutcome, Stage, TimelineEvent};
use crate::node::verdict::chain::{Chain, gives_address, is_news, is_problem};
use crate::node::verdict::{
    Case, Cause, Evidence, Finding, Outcome, Surroundings, Verdict, cite, compose, judge_chain, loaders,
    seen_now, words,
};

/// OFFER → REQUEST: edk2 collects offers for 3.6 s, iPXE for 3; a lost one is asked for again within 4.
pub(super) const OFFER_TAKEN_WITHIN: Duration = Duration::from_secs(10);
/// ACK → first file: iPXE waits 13 s for a router where none is announced; edk2 asks port 4011 up to 10 s.
pub(super) const LOADER_WITHIN: Duration = Duration::from_secs(30);
/// Loader → script: it starts, gets an address of its own (3 s and the same 13), asks.
pub(super) const SCRIPT_WITHIN: Duration = Duration::from_secs(45);
/// Script → kernel → ramdisk: loaders go on at once; a connection that is not answered is tried for 20 s (edk2, iPXE).
pub(super) const FILE_WITHIN: Duration = Duration::from_secs(30);

fn deadline(reached: Option<Stage>, granted: bool, around: &Surroundings) -> Duration {
    match reached {
        None | Some(Stage::Dhcp) if !granted => OFFER_TAKEN_WITHIN,
        None | Some(Stage::Dhcp) => LOADER_WITHIN,
        Some(Stage::Loader) => SCRIPT_WITHIN,
        Some(Stage::Script | Stage::Kernel) => FILE_WITHIN,
        Some(Stage::Ramdisk | Stage::Agent | Stage::Enrolled) => around.call_deadline,
    }
}

/// How long the next step of this boot may take.
pub(super) fn patience(chain: &Chain<'_>, around: &Surroundings) -> Duration {
    deadline(chain.reached, is_granted(chain), around)
}

fn is_granted(chain: &Chain<'_>) -> bool {
    chain.last(gives_address).is_some()
}

/// What follows on what was reached.
fn next_stage(chain: &Chain<'_>) -> Stage {
    match chain.reached {
        None => Stage::Dhcp,
        Some(Stage::Dhcp) if !is_granted(chain) => Stage::Dhcp,
        Some(Stage::Dhcp) if wants_script(chain) => Stage::Script,
        Some(Stage::Dhcp) => Stage::Loader,
        Some(Stage::Loader) => Stage::Script,
        Some(Stage::Script) => Stage::Kernel,
        Some(Stage::Kernel) => Stage::Ramdisk,
        Some(Stage::Ramdisk) => Stage::Agent,
        Some(Stage::Agent | Stage::Enrolled) => Stage::Enrolled,
    }
}

fn wants_script(chain: &Chain<'_>) -> bool {
    let booting = chain.last_dhcp(ClientClass::wants_boot);
    booting.is_some_and(|event| {
        matches!(event.happening, Happening::Dhcp { class: ClientClass::Ipxe { can_boot: true, .. }, .. })
    })
}

/// A boot in which nothing went wrong, and that is not through.
pub(super) fn meaning(chain: &Chain<'_>, around: &Surroundings) -> Finding {
    if let Some((event, ScriptPlan::AwaitApproval)) = chain.script_plan()
        && chain.reached == Some(Stage::Script)
    {
        return waiting(chain, event);
    }
    if let Some((event, ScriptPlan::ProfileRefused)) = chain.script_plan()
        && chain.reached == Some(Stage::Script)
    {
        return refused(chain, event);
    }
    if let Some(down) = bridge_down(chain, around) {
        return down;
    }
    if let Some(under_way) = under_way(chain, around) {
        return under_way;
    }
    port_not_forwarding(chain, around).unwrap_or_else(|| by_stage(chain, around))
}

fn waiting(chain: &Chain<'_>, event: &TimelineEvent) -> Finding {
    let headline = match chain.approved {
        false => "it waits at its loader for an operator's approval",
        true => "approved; it goes on when it asks again, within seconds",
    };
    Finding {
        outcome: Outcome::Waiting,
        stage: Stage::Script,
        cause: Cause::AwaitsApproval,
        headline: headline.to_owned(),
        evidence: vec![cite(event)],
    }
}

fn refused(chain: &Chain<'_>, script: &TimelineEvent) -> Finding {
    let why = chain.last(|happening| {
        matches!(happening, Happening::Profile { outcome: ProfileOutcome::Refused(_), .. })
    });
    let headline = match why.map(|event| &event.happening) {
        Some(Happening::Profile { profile, outcome: ProfileOutcome::Refused(reason), .. }) => {
            format!("it waits at its loader: boot profile {profile} is refused, {reason}")
        }
        Some(_) | None => "it waits at its loader: its boot profile is refused".to_owned(),
    };
    Finding {
        outcome: Outcome::Waiting,
        stage: Stage::Script,
        cause: Cause::ProfileRefused,
        headline,
        evidence: why.into_iter().chain([script]).map(cite).collect(),
    }
}

fn under_way(chain: &Chain<'_>, around: &Surroundings) -> Option<Finding> {
    if chain.overtaken {
        return None;
    }
    let stage = next_stage(chain);
    let finding = |stage, headline| Finding {
        outcome: Outcome::UnderWay,
        stage,
        cause: Cause::UnderWay,
        headline,
        evidence: chain.last_news().map(cite).into_iter().collect(),
    };
    if let Some(fetching) = around.fetching.filter(|fetching| fetching.since <= around.now) {
        let secs = around.now.since(fetching.since).as_secs();
        let what = words::stage_word(fetching.stage);
        return Some(finding(
            fetching.stage.max(stage),
            format!("under way: it has been fetching its {what} for {secs} s"),
        ));
    }
    let quiet = chain.quiet_for(around.now);
    let limit = patience(chain, around);
    let headline = format!(
        "under way: {} is next, due within {} s",
        words::stage_word(stage),
        limit.saturating_sub(quiet).as_secs().saturating_add(1)
    );
    (quiet <= limit).then(|| finding(stage, headline))
}

/// The appliance was started again in the middle, and nothing has come since.
pub(super) fn after_restart(
    chain: &Chain<'_>,
    restart: &TimelineEvent,
    around: &Surroundings,
) -> Option<Finding> {
    let before = chain
        .events
        .iter()
        .rev()
        .find(|event| event.sequence < restart.sequence && is_news(&event.happening))?;
    // A boot that had fallen silent by then did so for another reason.
    if restart.at.since(before.at) > patience(chain, around) {
        return None;
    }
    if let Some(under_way) = under_way(chain, around) {
        return Some(under_way);
    }
    Some(Finding {
        outcome: Outcome::Stopped,
        stage: next_stage(chain),
        cause: Cause::ApplianceRestarted,
        headline: "the appliance was restarted in the middle of the boot, and the machine did not try again"
            .to_owned(),
        evidence: vec![cite(before), cite(restart)],
    })
}

fn stopped(chain: &Chain<'_>, cause: Cause, headline: impl Into<String>, evidence: Vec<Evidence>) -> Finding {
    Finding {
        outcome: Outcome::Stopped,
        stage: next_stage(chain),
        cause,
        headline: headline.into(),
        evidence,
    }
}

fn bridge_down(chain: &Chain<'_>, around: &Surroundings) -> Option<Finding> {
    let what = bridge_words(around)?;
    let mut evidence: Vec<Evidence> = chain.last_news().map(cite).into_iter().collect();
    evidence.push(seen_now(around, what.clone()));
    (!chain.overtaken).then(|| {
        stopped(chain, Cause::BridgeDown, format!("{what}: nothing can reach the appliance"), evidence)
    })
}

fn bridge_words(around: &Surroundings) -> Option<String> {
    let name = &around.bridge.name;
    Some(match around.bridge.fault? {
        BridgeFault::Down => format!("the bridge {name} is down"),
        BridgeFault::Gone => format!("the bridge {name} is gone"),
        BridgeFault::WithoutAddress => format!("the bridge {name} does not carry {}", around.bridge.address),
    })
}

/// The machine is behind a port that does not forward.
fn port_not_forwarding(chain: &Chain<'_>, around: &Surroundings) -> Option<Finding> {
    let port = around.ports.iter().find(|port| port.learned && port.state != PortState::Forwarding)?;
    let mut evidence: Vec<Evidence> = chain.last_news().map(cite).into_iter().collect();
    evidence.push(seen_now(around, port_words(port)));
    let headline = format!("it is behind the bridge port {}, which is {}", port.name, port.state.as_str());
    (!chain.overtaken).then(|| stopped(chain, Cause::PortNotForwarding, headline, evidence))
}

fn port_words(port: &BridgePort) -> String {
    let carrier = if port.carrier { "" } else { ", without carrier" };
    let learned = if port.learned { "; its MAC was heard there" } else { "" };
    format!("port {} is {}{carrier}{learned}", port.name, port.state.as_str())
}

fn by_stage(chain: &Chain<'_>, around: &Surroundings) -> Finding {
    let last: Vec<Evidence> = chain.last_news().map(cite).into_iter().collect();
    let dhcp = chain.last_dhcp(ClientClass::wants_boot);
    let found = |cause, headline: &str, event: Option<&TimelineEvent>| {
        let evidence = event.map_or_else(|| last.clone(), |event| vec![cite(event)]);
        stopped(chain, cause, headline, evidence)
    };
    match chain.reached {
        None | Some(Stage::Dhcp) if dhcp.is_none() => Finding {
            stage: Stage::Dhcp,
            ..found(Cause::NoNetboot, "it asks for an address only: what runs there is no boot ROM", None)
        },
        None | Some(Stage::Dhcp) if !is_granted(chain) && around.mode == DhcpMode::Proxy => found(
            Cause::NoAddressElsewhere,
            "it has our boot file and took no address: the other DHCP server gave it none",
            dhcp,
        ),
        None | Some(Stage::Dhcp) if !is_granted(chain) => {
            found(Cause::OfferNotRequested, "it got our offer and requested none", dhcp)
        }
        None | Some(Stage::Dhcp) if wants_script(chain) => found(
            Cause::ScriptNotFetched,
            "iPXE has its address and the URL of its script, and did not fetch it",
            dhcp,
        ),
        None | Some(Stage::Dhcp) => found(
            Cause::LoaderNotFetched,
            "it has its address and the name of its loader, and asked for no file",
            dhcp,
        ),
        Some(Stage::Loader) => match chain.file_of(Stage::Loader) {
            Some(fetched) => loaders::silent(chain, fetched, around),
            None => found(Cause::LoaderSilent, "its loader was fetched, and nothing was heard since", None),
        },
        Some(Stage::Script) => {
            let script = chain.script_plan().map(|(event, _)| event);
            found(Cause::KernelNotFetched, "it has its script, and did not fetch the kernel it names", script)
        }
        Some(Stage::Kernel) => {
            let kernel = chain.file_of(Stage::Kernel);
            // Only a UEFI machine can have Secure Boot, and one without it starts such a kernel.
            let uefi = chain.firmware().is_some_and(|firmware| firmware.platform() != Firmware::Bios);
            if around.kernel_altered && uefi {
                let headline = "the kernel was fetched whole and not started: it was changed after it was signed, and Secure Boot starts only what its signature is of";
                return Finding { stage: Stage::Kernel, ..found(Cause::SecureBootRefused, headline, kernel) };
            }
            found(Cause::RamdiskNotFetched, "it has its kernel, and did not fetch the ramdisk", kernel)
        }
        Some(Stage::Ramdisk) => agent_silent(chain),
        Some(Stage::Agent | Stage::Enrolled) => {
            found(Cause::InventoryMissing, "its agent called, and its inventory never came", None)
        }
    }
}

/// The ramdisk was handed out and its agent never called: how far its network came is told by what it asked of DHCP.
fn agent_silent(chain: &Chain<'_>) -> Finding {
    let ramdisk = chain.file_of(Stage::Ramdisk);
    let asked: Vec<&TimelineEvent> = chain
        .events
        .iter()
        .filter(|event| {
            ramdisk.is_none_or(|ramdisk| event.at >= ramdisk.at && event.sequence > ramdisk.sequence)
                && matches!(&event.happening, Happening::Dhcp { class, .. } if !class.wants_boot())
        })
        .copied()
        .collect();
    let granted = asked.iter().rev().find(|event| gives_address(&event.happening)).copied();
    let (cause, headline, shown) = match (granted, asked.last().copied()) {
        (Some(event), _) => (
            Cause::AgentNoRoute,
            "the ramdisk has an address, and its agent does not reach the appliance",
            Some(event),
        ),
        (None, Some(event)) => (
            Cause::AgentNoAddress,
            if is_problem(&event.happening) {
                "the ramdisk asked for an address and got none"
            } else {
                "the ramdisk was offered an address, and never came to have it"
            },
            Some(event),
        ),
        (None, None) => (
            Cause::AgentNoDriver,
            "kernel and ramdisk were loaded, and nothing was heard since: no network in the ramdisk, or it did not start",
            None,
        ),
    };
    let evidence = ramdisk.into_iter().chain(shown).map(cite).collect();
    stopped(chain, cause, headline, evidence)
}

/// There is no boot to judge: a stranger, or a node that was never heard.
pub(super) fn without_boot(case: &Case<'_>, around: &Surroundings) -> Verdict {
    let traced: Vec<TimelineEvent> = case.trace.map(|trace| events_of(trace, case)).unwrap_or_default();
    let outside: &[TimelineEvent] = case.outside.map_or(&[], |outside| &outside.events);
    let dhcp = |events: &[TimelineEvent]| -> Vec<TimelineEvent> {
        let asked = events
            .iter()
            .filter(|event| matches!(event.happening, Happening::Dhcp { .. }) && event.at <= around.now);
        asked.cloned().collect()
    };
    let heard = match case.node {
        // What it asked before somebody registered it was answered by other rules.
        Some(node) => {
            let mut heard = dhcp(outside);
            heard.extend(dhcp(&traced).into_iter().filter(|event| event.at >= node.created_at));
            heard
        }
        None => dhcp(&traced),
    };
    let chain = Chain::new(&heard, case, around.now);
    let mut finding = match heard.is_empty() {
        true => never_heard(case, &chain, &dhcp(&traced), around),
        false => judge_chain(&chain, around),
    };
    if let (Cause::UnknownMac, Some(trace), Some(last)) = (finding.cause, case.trace, chain.last_at()) {
        let ago = around.now.since(last).as_secs();
        finding.headline = format!(
            "unknown MAC, ignored by policy (dhcp.unknown = \"ignore\"); asked {} times, last {ago} s ago",
            trace.asked
        );
    }
    compose(case, None, &chain, finding, around)
}

fn never_heard(
    case: &Case<'_>,
    chain: &Chain<'_>,
    earlier: &[TimelineEvent],
    around: &Surroundings,
) -> Finding {
    if let Some(down) = bridge_down(chain, around) {
        return down;
    }
    let behind = around.ports.iter().find(|port| port.learned);
    // A port that listens, learns or blocks has somebody at its other end; one that is disabled may have nobody.
    let held = |port: &&BridgePort| match port.state {
        PortState::Listening | PortState::Learning | PortState::Blocking => true,
        PortState::Disabled | PortState::Forwarding => false,
    };
    let port = behind.filter(|port| port.state != PortState::Forwarding);
    let port = port.or_else(|| around.ports.iter().filter(|_| behind.is_none()).find(held));
    if let Some(port) = port {
        let headline = format!(
            "nothing was ever heard from it, and the bridge port {} is {}",
            port.name,
            port.state.as_str()
        );
        return stopped(chain, Cause::PortNotForwarding, headline, vec![seen_now(around, port_words(port))]);
    }
    let mut evidence: Vec<Evidence> = earlier.last().map(cite).into_iter().collect();
    let dead = around.ports.iter().filter(|port| !port.carrier || port.state == PortState::Disabled);
    evidence.extend(behind.into_iter().chain(dead).map(|port| seen_now(around, port_words(port))));
    if evidence.is_empty() {
        let ports = around.ports.len();
        evidence.push(seen_now(around, format!("its MAC was heard at none of the bridge's {ports} ports")));
    }
    let headline = match (behind, earlier.last(), case.node) {
        (_, Some(_), Some(_)) => "it has not asked since it was registered".to_owned(),
        (Some(port), _, _) => {
            format!("its frames arrive at port {}, but it never asked for an address", port.name)
        }
        (None, _, _) => format!("nothing was ever heard from this MAC since {}", around.started_at),
    };
    stopped(chain, Cause::NeverHeard, headline, evidence)
}

/// A trace in the words of the timeline; its events belong to no node.
fn events_of(trace: &StrangerTrace, case: &Case<'_>) -> Vec<TimelineEvent> {
    let Some(port) = case.mac.or_else(|| case.node.and_then(|node| node.ports.first()).map(|port| port.mac))
    else {
        return Vec::new();
    };
    let steps = trace.steps.iter().enumerate();
    steps
        .map(|(index, step)| TimelineEvent {
            node: NodeId(uuid::Uuid::nil()),
            boot: 0,
            sequence: u32::try_from(index).unwrap_or(u32::MAX),
            at: step.at,
            happening: Happening::Dhcp {
                port,
                class: step.class,
                message: step.message.to_owned(),
                xid: step.xid,
                answer: step.answer.map(str::to_owned).map_err(str::to_owned),
                address: step.address,
                boot_file: None,
                nothing_to_boot: None,
                other_server: step.other_server,
            },
        })
        .collect()
}

/// Whether policy lets nobody in who is not registered; remedies differ.
pub(super) fn ignores_strangers(around: &Surroundings) -> bool {
    match around.unknown {
        UnknownPolicy::Ignore => true,
        UnknownPolicy::Enroll | UnknownPolicy::Approve => false,
    }
}
