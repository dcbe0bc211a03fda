//! The installed system: what it is given, and its first call.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::net::MacAddr;
use crate::node::Node;
use crate::node::install::event::InstallEvent;
use crate::node::install::first_boot::FirstBoot;
use crate::node::install::intent::{Intent, IntentEvent};
use crate::node::registry::Registry;
use crate::node::registry::entry::{Act, Entry};
use crate::node::registry::install::put_back;
use crate::store::CommitError;

/// What the seed of an installed system is made of.
#[derive(Clone, Debug)]
pub struct SeedMaterial {
    pub node: Node,
    pub intent: Intent,
    pub first_boot: FirstBoot,
    /// With which the installed system calls.
    pub token: String,
}

/// Why an installed system's call is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallHomeRefusal {
    #[error("the token is not one this appliance gave to this node's system")]
    Forged,
    #[error("the system's install is over, or another one is wanted by now")]
    Over,
    #[error("the appliance cannot write to its disk")]
    NotDurable(#[from] CommitError),
}

impl CallHomeRefusal {
    pub fn as_str(&self) -> &'static str {
        match self {
            CallHomeRefusal::Forged => "call-home-forged",
            CallHomeRefusal::Over => "call-home-over",
            CallHomeRefusal::NotDurable(_) => "not-durable",
        }
    }
}

impl Registry {
    pub(super) fn material(&self, entry: &Entry) -> Option<SeedMaterial> {
        let intent = entry.node.intent.as_deref()?.clone();
        let first_boot = entry.first_boot.clone().filter(|it| it.intent == intent.id)?;
        let token = self.tokens.issue_call_home(intent.id);
        Some(SeedMaterial { node: entry.node.without_secrets(), intent, first_boot, token })
    }

    /// What the metadata service tells this node's installed system, if it has one.
    pub fn metadata_of(&self, mac: MacAddr) -> Option<SeedMaterial> {
        let book = self.lock();
        let entry = book.owner_of(mac).and_then(|id| book.get(id))?;
        self.material(entry)
    }

    /// Notes that a secret part goes out over the network; `Err` if it did before. On disk before it returns.
    pub fn hand_out_secret(
        &self,
        mac: MacAddr,
        part: &str,
        again_within: Duration,
        now: Timestamp,
    ) -> Result<(), CallHomeRefusal> {
        let mut book = self.lock_at(now);
        let id = book.owner_of(mac).ok_or(CallHomeRefusal::Over)?;
        let hand_out = |act: &mut Act<'_>| {
            let Some(mut first_boot) = act.entry.first_boot.clone() else {
                return Err(CallHomeRefusal::Over);
            };
            match first_boot.handed_out.iter().find(|(name, _)| name == part) {
                Some((_, at)) if now.since(*at) <= again_within => Ok(()),
                Some(_) => Err(CallHomeRefusal::Over),
                None => {
                    first_boot.handed_out.push((part.to_owned(), now));
                    act.put_first_boot(Some(first_boot));
                    Ok(())
                }
            }
        };
        let (outcome, effects) = book.change(id, now, hand_out).ok_or(CallHomeRefusal::Over)?;
        let pending = self.settle_durably(id, effects);
        drop(book);
        pending.wait()?;
        outcome
    }

    /// The installed system calls for the first time, or again because the answer was lost.
    pub fn call_home(
        &self,
        mac: MacAddr,
        token: &str,
        host_name: Option<&str>,
        now: Timestamp,
    ) -> Result<Node, CallHomeRefusal> {
        let called = self.tokens.read_call_home(token).map_err(|_| CallHomeRefusal::Forged)?;
        let mut book = self.lock_at(now);
        let id = book.owner_of(mac).ok_or(CallHomeRefusal::Over)?;
        let before = book.get(id).map(|entry| entry.node.clone()).ok_or(CallHomeRefusal::Over)?;
        let call = |act: &mut Act<'_>| {
            let current = act.entry.node.intent.as_ref().is_some_and(|intent| intent.id == called);
            if !current {
                return Err(CallHomeRefusal::Over);
            }
            act.entry.node.last_seen_at = Some(now);
            let moved = act.intent_event(&IntentEvent::CalledHome).map_err(|_| CallHomeRefusal::Over)?;
            if moved {
                act.note_install(InstallEvent::CalledHome { host_name: host_name.map(str::to_owned) });
                act.follow_intent("the installed system called");
                // What it was given is on its disk by now; here it is only something to lose.
                let public = act.entry.first_boot.clone().map(|it| FirstBoot { user_data: None, ..it });
                act.put_first_boot(public);
            }
            Ok(())
        };
        let (outcome, effects) = book.change(id, now, call).ok_or(CallHomeRefusal::Over)?;
        let node = book.view(id);
        let pending = self.settle_durably(id, effects);
        drop(book);
        if let Err(error) = pending.wait() {
            self.undo(id, now, |node| put_back(node, &before));
            return Err(error.into());
        }
        outcome?;
        node.ok_or(CallHomeRefusal::Over)
    }
}
