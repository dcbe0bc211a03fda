//! The timeline: every boot of a node, event by event, durable and bounded.
//!
//! A boot is opened when firmware starts over (see [`Stage`]) and numbered per node from 1. Events carry what an
//! operator needs to see where a boot stopped: the DHCP message and our answer or silence, each file with bytes
//! and duration, each call of the agent, each change of state.
//!
//! - `history`: one node's boots in memory: where a boot begins, what is kept of it
//! - [`edited`]: what an operator changed in a node's record
//! - `explain`: the line that says why a boot is no further

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::boot::client::ClientClass;
use crate::boot::decision::{NothingToBoot, ScriptPlan};
use crate::boot::profile::ProfileName;
use crate::boot::profile::rules::RuleNumber;
use crate::boot::quirks::Quirks;
use crate::clock::Timestamp;
use crate::net::MacAddr;
use crate::node::install::event::InstallEvent;
use crate::node::inventory::clean_text;
use crate::node::state::{Order, ProvisionState};
use crate::node::timeline::edited::NodeChange;
use crate::node::{NodeId, NodeName};

pub mod edited;
mod explain;
pub(in crate::node) mod history;

/// Boots kept per node; the oldest is dropped.
pub const BOOTS_MAX: usize = 16;
/// Events kept per boot; a client that keeps asking past this is counted, not recorded.
pub const EVENTS_PER_BOOT_MAX: usize = 256;

/// How far a boot has come; later stages never go back within one boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Firmware asked for an address.
    Dhcp,
    /// A boot loader was fetched.
    Loader,
    /// An iPXE script or GRUB configuration was fetched.
    Script,
    Kernel,
    Ramdisk,
    /// The agent called.
    Agent,
    /// The agent's inventory is stored.
    Enrolled,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TimelineEvent {
    pub node: NodeId,
    /// Boot number, from 1, per node. 0 holds what happened outside any boot (registration, approval).
    pub boot: u32,
    /// Order within the boot, from 0.
    pub sequence: u32,
    pub at: Timestamp,
    #[serde(flatten)]
    pub happening: Happening,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", tag = "event")]
pub enum Happening {
    /// One DHCP message of the node and what came of it.
    Dhcp {
        port: MacAddr,
        class: ClientClass,
        /// `discover`, `request`, …
        message: String,
        xid: u32,
        /// `offer`, `ack`, `nak`; or the reason of our silence.
        #[schema(value_type = BTreeMap<String, String>)]
        answer: Result<String, String>,
        #[schema(value_type = Option<String>, format = "ipv4")]
        address: Option<Ipv4Addr>,
        /// Boot file name or URL in the answer.
        boot_file: Option<String>,
        /// Why there is none, if it asked for one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        nothing_to_boot: Option<NothingToBoot>,
        /// The server it took an offer of, if that is another (option 54).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(value_type = Option<String>, format = "ipv4")]
        other_server: Option<Ipv4Addr>,
    },
    /// Another DHCP server answered this node, where we are not the server (`dhcp.mode`).
    OtherServer {
        port: MacAddr,
        #[schema(value_type = String, format = "ipv4")]
        server: Ipv4Addr,
        server_mac: MacAddr,
        /// `offer`, `ack`, `nak`.
        message: String,
        xid: u32,
        #[schema(value_type = Option<String>, format = "ipv4")]
        address: Option<Ipv4Addr>,
        boot_file: Option<String>,
    },
    /// One file asked for by TFTP or HTTP, told when the transfer ended.
    File {
        transport: Transport,
        stage: Option<Stage>,
        name: String,
        /// Size of the file; absent when there is none of that name.
        size: Option<u64>,
        sent: u64,
        took_millis: u64,
        outcome: FileOutcome,
        /// How TFTP fared on the way.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tftp: Option<TftpFacts>,
    },
    /// Script text was rendered for this node.
    Script {
        name: String,
        plan: ScriptPlan,
        /// Issue time of the boot token in it, which tells it from other tokens of the node.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token_issued_at: Option<Timestamp>,
    },
    /// What came of a boot profile that a rule assigns to this node.
    Profile {
        #[schema(value_type = String)]
        profile: ProfileName,
        #[schema(value_type = u32)]
        rule: RuleNumber,
        outcome: ProfileOutcome,
    },
    Agent {
        call: AgentCall,
    },
    /// The appliance refused an agent's call; the reason is the same word metrics use.
    AgentRefused {
        reason: String,
        /// Issue time of the boot token it came with, if it was a genuine one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token_issued_at: Option<Timestamp>,
    },
    OrderGiven {
        order: Order,
    },
    State {
        from: ProvisionState,
        to: ProvisionState,
        cause: String,
    },
    Approved,
    /// An operator said what its firmware has to be humoured in, or no longer.
    QuirksSet {
        quirks: Quirks,
    },
    Registered,
    /// An operator changed its record.
    Edited {
        changes: Vec<NodeChange>,
    },
    /// The node is known no more, nor is its timeline: watchers are told, nothing is kept.
    Removed {
        name: Option<NodeName>,
        port: Option<MacAddr>,
    },
    /// The same loader was fetched over and over with no script in between; no loader is offered any more.
    BootLoop {
        loaders: u32,
    },
    /// A MAC the agent reports already belongs to another node.
    PortConflict {
        port: MacAddr,
        owner: NodeId,
    },
    /// A step of an install, or of another task on the node's disks.
    Install {
        /// Which of the node's intents, from 1.
        generation: u64,
        install: InstallEvent,
    },
    /// The appliance was started while this boot was under way; what was sent meanwhile was not heard.
    ApplianceStarted,
}

/// Why we say nothing to a client that has its address from another server: no failure, and verdicts go by the word.
pub const ADDRESS_ELSEWHERE: &str = "address-elsewhere";

/// Why a transfer ended early, where it was not the client that said so: verdicts go by these words.
pub mod aborted {
    /// TFTP: not one packet of the client came after its request.
    pub const NO_ANSWER: &str = "no answer to the first packet";
    /// TFTP: the client acknowledged, and stopped.
    pub const FELL_SILENT: &str = "the client stopped answering";
    /// TFTP: the same client asked again instead of going on.
    pub const BEGAN_ANEW: &str = "the client began another transfer";
    /// What the client said in a TFTP ERROR follows.
    pub const CLIENT_ERROR: &str = "client error";
    /// HTTP: the connection was closed, and not by us.
    pub const CLOSED: &str = "connection closed";
    /// HTTP: too few bytes moved for too long, so we closed it.
    pub const TOO_SLOW: &str = "too slow: nothing moved any more";
    /// We stopped in the middle.
    pub const STOPPED: &str = "the server stopped";
}

/// What a TFTP transfer tells of the network in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TftpFacts {
    pub blksize: u16,
    pub windowsize: u16,
    /// Datagrams sent more than once.
    pub resent: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    Tftp,
    Http,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", tag = "result", content = "reason")]
pub enum FileOutcome {
    Complete,
    /// The client asked for the size only and ended the transfer (UEFI's probe), or sent HEAD.
    Probe,
    /// The part asked for was sent whole.
    Range,
    NotFound,
    /// Ended early: the peer's error text, a time-out, a closed connection.
    Aborted(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", tag = "result", content = "reason")]
pub enum ProfileOutcome {
    /// Its script was handed out.
    Boots,
    /// The same, of a one-shot: on disk before the script left.
    Started,
    /// The one-shot was handed out whole: it is not booted again.
    Spent,
    /// The machine cannot boot it, so the next rule was asked.
    PassedOver(String),
    /// A value its arguments want is missing, or makes no word: the machine waits and asks again.
    Refused(String),
}

impl ProfileOutcome {
    /// In a few words.
    pub fn words(&self) -> String {
        match self {
            ProfileOutcome::Boots => "booted".to_owned(),
            ProfileOutcome::Started => "started, once and never again".to_owned(),
            ProfileOutcome::Spent => "handed out whole; the one-shot is spent".to_owned(),
            ProfileOutcome::PassedOver(reason) => format!("passed over: {reason}"),
            ProfileOutcome::Refused(reason) => format!("refused: {reason}"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum AgentCall {
    /// Token redeemed; the agent runs.
    Hello {
        uptime_secs: f64,
        /// Issue time of the token it redeemed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token_issued_at: Option<Timestamp>,
    },
    Inventory,
    /// The agent says what went wrong, and in which step.
    Failure {
        step: String,
        message: String,
    },
    /// The agent acts on an order.
    Obeying {
        order: Order,
    },
}

/// Characters kept of any text in an event; TFTP names and error texts come from the wire.
pub const EVENT_TEXT_MAX: usize = 256;

impl Happening {
    /// With every text cut to [`EVENT_TEXT_MAX`] characters and free of control characters.
    pub fn bounded(mut self) -> Happening {
        match &mut self {
            Happening::Dhcp { message, answer, boot_file, .. } => {
                clean(message);
                match answer {
                    Ok(text) | Err(text) => clean(text),
                }
                boot_file.iter_mut().for_each(clean);
            }
            Happening::OtherServer { message, boot_file, .. } => {
                clean(message);
                boot_file.iter_mut().for_each(clean);
            }
            Happening::File { name, outcome, .. } => {
                clean(name);
                if let FileOutcome::Aborted(reason) = outcome {
                    clean(reason);
                }
            }
            Happening::Script { name, .. } => clean(name),
            Happening::Profile {
                outcome: ProfileOutcome::PassedOver(reason) | ProfileOutcome::Refused(reason),
                ..
            } => clean(reason),
            Happening::Agent { call: AgentCall::Failure { step, message } } => {
                clean(step);
                clean(message);
            }
            Happening::AgentRefused { reason, .. } => clean(reason),
            Happening::State { cause, .. } => clean(cause),
            Happening::Install { generation, install } => {
                return Happening::Install { generation: *generation, install: install.clone().bounded() };
            }
            Happening::Agent { .. }
            | Happening::Profile { .. }
            | Happening::OrderGiven { .. }
            | Happening::Approved
            | Happening::QuirksSet { .. }
            | Happening::Registered
            | Happening::Edited { .. }
            | Happening::Removed { .. }
            | Happening::BootLoop { .. }
            | Happening::PortConflict { .. }
            | Happening::ApplianceStarted => {}
        }
        self
    }

    /// The stage a boot has reached by this, if any.
    pub fn stage(&self) -> Option<Stage> {
        match self {
            Happening::Dhcp { .. } => Some(Stage::Dhcp),
            Happening::File { stage, outcome, .. } => match outcome {
                FileOutcome::Complete | FileOutcome::Range => *stage,
                FileOutcome::Probe | FileOutcome::NotFound | FileOutcome::Aborted(_) => None,
            },
            Happening::Script { .. } => Some(Stage::Script),
            Happening::Agent { call } => match call {
                AgentCall::Hello { .. } | AgentCall::Failure { .. } | AgentCall::Obeying { .. } => {
                    Some(Stage::Agent)
                }
                AgentCall::Inventory => Some(Stage::Enrolled),
            },
            Happening::OtherServer { .. }
            | Happening::Profile { .. }
            | Happening::AgentRefused { .. }
            | Happening::OrderGiven { .. }
            | Happening::State { .. }
            | Happening::Approved
            | Happening::QuirksSet { .. }
            | Happening::Registered
            | Happening::Edited { .. }
            | Happening::Removed { .. }
            | Happening::BootLoop { .. }
            | Happening::PortConflict { .. }
            | Happening::Install { .. }
            | Happening::ApplianceStarted => None,
        }
    }
}

fn clean(text: &mut String) {
    if text.len() > EVENT_TEXT_MAX || text.contains(char::is_control) {
        *text = clean_text(text, EVENT_TEXT_MAX);
    }
}

/// How far a boot has come, without its events: what lists of many nodes show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootProgress {
    pub number: u32,
    pub started_at: Timestamp,
    pub stage: Option<Stage>,
    /// When that stage was reached.
    pub stage_at: Option<Timestamp>,
    pub enrolled: bool,
    /// Why it is no further, in a line; absent once enrolled.
    pub stopped_at: Option<String>,
}

/// One boot as `node show` presents it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Boot {
    /// From 1; 0 holds what happened outside any boot.
    pub number: u32,
    pub started_at: Timestamp,
    /// How far it has come; absent for number 0.
    pub stage: Option<Stage>,
    /// When each stage was first reached.
    pub times: BTreeMap<Stage, Timestamp>,
    /// True once the agent's inventory is stored.
    pub enrolled: bool,
    /// Why it is no further, in a line; absent once enrolled.
    pub stopped_at: Option<String>,
    pub events: Vec<TimelineEvent>,
    /// Events past [`EVENTS_PER_BOOT_MAX`], and repetitions: counted, not kept.
    pub unrecorded: u32,
}
