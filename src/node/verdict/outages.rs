//! An outage that is over, and what it broke: a boot that fell silent, or whose download broke off, while the bridge or its
//! port was out fell silent for that reason.

use crate::bridge_log::outages::{Outage, OutageOf};
use crate::clock::Timestamp;
use crate::node::timeline::Happening;
use crate::node::verdict::chain::{Chain, is_news};
use crate::node::verdict::{Cause, Evidence, Finding, Outcome, Surroundings, cite, silence};

/// What the finding comes to if the bridge was out when the next step was due.
pub(super) fn behind(finding: &Finding, chain: &Chain<'_>, around: &Surroundings) -> Option<Finding> {
    if finding.outcome != Outcome::Stopped || !is_of_silence(finding.cause) {
        return None;
    }
    // A restart in between is no sign of the machine.
    let last = chain.last(|happening| is_news(happening) && *happening != Happening::ApplianceStarted)?;
    let took = match &last.happening {
        Happening::File { took_millis, .. } => std::time::Duration::from_millis(*took_millis),
        _ => std::time::Duration::ZERO,
    };
    let (from, until) = (last.at.minus(took), last.at.plus(silence::patience(chain, around)));
    let overlaps = |outage: &&Outage| {
        outage.from <= until.min(around.now)
            && outage.to.is_none_or(|to| to >= from)
            && concerns(outage, around)
    };
    let outage = around.outages.iter().rfind(overlaps)?;
    let (cause, what) = match &outage.of {
        OutageOf::Bridge(fault) => {
            (Cause::BridgeDown, format!("the bridge {} was {}", around.bridge.name, fault.words()))
        }
        OutageOf::Port { name, state } => (
            Cause::PortNotForwarding,
            format!("the bridge port {name}, which it is behind, was {}", state.as_str()),
        ),
    };
    let when = when(outage, around.now);
    let evidence =
        vec![cite(last), Evidence { at: outage.from, text: format!("{what} {when}"), event: None }];
    let headline = format!("{what} {when}, in the middle of this boot, and the machine did not go on");
    Some(Finding { cause, headline, evidence, ..finding.clone() })
}

/// Findings that say no more than that nothing came, or came through.
fn is_of_silence(cause: Cause) -> bool {
    matches!(
        cause,
        Cause::OfferNotRequested
            | Cause::NoAddressElsewhere
            | Cause::LoaderNotFetched
            | Cause::TransferLost
            | Cause::TransferMtu
            | Cause::SecureBootRefused
            | Cause::LoaderSilent
            | Cause::ScriptNotFetched
            | Cause::KernelNotFetched
            | Cause::RamdiskNotFetched
            | Cause::DownloadStalled
            | Cause::DownloadCut
            | Cause::AgentNoDriver
            | Cause::AgentNoRoute
            | Cause::InventoryMissing
            | Cause::ApplianceRestarted
    )
}

/// A port's outage is that of the machines behind it.
fn concerns(outage: &Outage, around: &Surroundings) -> bool {
    match &outage.of {
        OutageOf::Bridge(_) => true,
        OutageOf::Port { name, .. } => around.ports.iter().any(|port| port.learned && port.name == *name),
    }
}

fn when(outage: &Outage, now: Timestamp) -> String {
    match outage.to.filter(|to| *to <= now) {
        Some(to) => {
            let lasted = to.since(outage.from).as_secs_f64();
            format!("from {} to {to} ({lasted:.0} s)", outage.from)
        }
        None => format!("from {} on", outage.from),
    }
}
