//! Verdicts: why a machine's boot ended where it did, in one sentence, with the events that say so and what to do.
//!
//! ```text
//!  boot (events, oldest first) ┐
//!  surroundings (what is so now├─► of() ─► Verdict { stage, cause, headline, stages, evidence, remedy }
//!   and what no event tells)   ┘
//! ```
//!
//! Pure: a boot is judged from its events alone, and from [`Surroundings`] where no event can tell: the bridge, the
//! port, the pool, whether the loader it fetched is signed. Time is part of the surroundings: a boot that is waited for
//! is *under way* until the deadline of its stage, which is what firmware itself allows, and *quiet* from then on.
//!
//! - [`cause`]: every cause there is, and its word
//! - `chain`: the stages of one boot with their times; which of them is not passed
//! - `findings`: event → what went wrong there; `silence`: what it means that nothing came
//! - `outages`: what the bridge's outages broke
//! - `remedy`: what to do about each cause

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::clock::Timestamp;
use crate::net::MacAddr;
use crate::node::timeline::Stage;
use crate::node::{NodeId, NodeName};

pub mod cause;
mod chain;
mod findings;
mod loaders;
mod outages;
mod remedy;
mod silence;
pub mod surroundings;
mod words;

pub use cause::Cause;
pub use surroundings::{BridgeView, Surroundings};

use crate::node::Node;
use crate::node::registry::StrangerTrace;
use crate::node::timeline::{Boot, TimelineEvent};
use chain::Chain;

/// What is judged: a boot of a node, or the lack of one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Case<'a> {
    pub node: Option<&'a Node>,
    /// The MAC that was asked about, if it was asked by MAC.
    pub mac: Option<MacAddr>,
    pub boot: Option<&'a Boot>,
    /// When the next boot began, if one did: this one will not go on.
    pub overtaken_at: Option<Timestamp>,
    /// What happened outside any boot.
    pub outside: Option<&'a Boot>,
    /// What the MAC asked while it was no node.
    pub trace: Option<&'a StrangerTrace>,
}

/// Judges one case.
pub fn of(case: &Case<'_>, around: &Surroundings) -> Verdict {
    match case.boot {
        Some(boot) => judge_boot(case, boot, around),
        None => silence::without_boot(case, around),
    }
}

fn judge_boot(case: &Case<'_>, boot: &Boot, around: &Surroundings) -> Verdict {
    let chain = Chain::new(&boot.events, case, around.now);
    let finding = judge_chain(&chain, around);
    compose(case, Some(boot.number), &chain, finding, around)
}

/// The decisive finding of a chain: what went wrong, else what its silence means.
fn judge_chain(chain: &Chain<'_>, around: &Surroundings) -> Finding {
    let finding = findings::success(chain)
        .or_else(|| findings::problem(chain, around))
        .or_else(|| findings::handed_to_profile(chain))
        .unwrap_or_else(|| silence::meaning(chain, around));
    outages::behind(&finding, chain, around).unwrap_or(finding)
}

/// What was found out, before it is put into words for this node.
#[derive(Clone, Debug)]
struct Finding {
    outcome: Outcome,
    stage: Stage,
    cause: Cause,
    headline: String,
    evidence: Vec<Evidence>,
}

fn compose(
    case: &Case<'_>,
    boot: Option<u32>,
    chain: &Chain<'_>,
    finding: Finding,
    around: &Surroundings,
) -> Verdict {
    let Finding { outcome, stage, cause, mut headline, mut evidence } = finding;
    if let (Some(_), Outcome::Stopped, Some(number)) = (case.overtaken_at, outcome, boot) {
        headline.push_str(&format!("; boot {} followed", number.saturating_add(1)));
    }
    evidence.sort_by_key(|evidence| evidence.at);
    let mac = chain.port().or(case.mac).or_else(|| first_port(case));
    Verdict {
        node: case.node.map(|node| node.id),
        name: case.node.and_then(|node| node.name.clone()),
        mac,
        boot,
        at: around.now,
        outcome,
        stage: (!chain.events.is_empty()).then_some(stage),
        cause,
        headline,
        stages: chain.marks(outcome, stage),
        evidence,
        remedy: remedy::of(cause, &remedy::Context { case, chain, around, mac }),
    }
}

fn first_port(case: &Case<'_>) -> Option<MacAddr> {
    case.node.and_then(|node| node.ports.first()).map(|port| port.mac)
}

/// An event as evidence.
fn cite(event: &TimelineEvent) -> Evidence {
    // What a trace remembers belongs to no timeline.
    let kept = event.node.0 != uuid::Uuid::nil();
    let event_ref = EventRef { boot: event.boot, sequence: event.sequence };
    Evidence { at: event.at, text: words::tell(&event.happening), event: kept.then_some(event_ref) }
}

/// Something that is so now.
fn seen_now(around: &Surroundings, text: String) -> Evidence {
    Evidence { at: around.now, text, event: None }
}

/// What came of one boot attempt, or that there was none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Verdict {
    /// Absent for a MAC that is no node.
    pub node: Option<NodeId>,
    pub name: Option<NodeName>,
    /// The port that booted, or the MAC that was asked about.
    pub mac: Option<MacAddr>,
    /// Which boot, from 1; absent if it never booted.
    pub boot: Option<u32>,
    /// As of when.
    pub at: Timestamp,
    pub outcome: Outcome,
    /// The stage that is not passed, or the last one if it succeeded; absent if the machine was never heard.
    pub stage: Option<Stage>,
    pub cause: Cause,
    /// One sentence for people.
    pub headline: String,
    /// The whole chain, in order.
    pub stages: Vec<StageMark>,
    /// What the cause is told by, oldest first.
    pub evidence: Vec<Evidence>,
    /// What to do, the most likely first; commands in backquotes. Empty if nothing is to be done.
    pub remedy: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It came as far as it was to come.
    Succeeded,
    /// The next step is not due yet.
    UnderWay,
    /// An operator has to act; nothing is wrong.
    Waiting,
    /// It stopped.
    Stopped,
}

/// One stage of the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StageMark {
    pub stage: Stage,
    pub state: StageState,
    /// When it was reached, or tried last.
    pub at: Option<Timestamp>,
    /// What happened there, in a few words; empty if nothing did.
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StageState {
    Passed,
    /// It stopped here.
    Stopped,
    /// The next step, not due yet.
    Awaited,
    /// Not reached.
    Ahead,
    /// Not part of this boot: a machine sent to its disk loads no kernel.
    Skipped,
}

/// Something that was seen, and says why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Evidence {
    pub at: Timestamp,
    pub text: String,
    /// The timeline event that shows it; absent for what is so now (a bridge that is down).
    pub event: Option<EventRef>,
}

/// A timeline event of the node the verdict is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub struct EventRef {
    pub boot: u32,
    pub sequence: u32,
}

#[cfg(test)]
mod tests;
