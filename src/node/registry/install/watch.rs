//! What goes wrong by itself: agents that fall silent, installers that never end, systems that never call, machines that
//! are not the node's.

use std::net::Ipv4Addr;

use crate::clock::Timestamp;
use crate::net::MacAddr;
use crate::node::NodeId;
use crate::node::install::event::InstallEvent;
use crate::node::install::intent::{IntentEvent, Phase};
use crate::node::inventory::Inventory;
use crate::node::registry::Registry;
use crate::node::registry::agent::AgentRefusal;
use crate::node::registry::book::Book;
use crate::node::registry::entry::Act;
use crate::node::registry::install::STALLED_AFTER;
use crate::node::registry::install::other_machine;

impl Registry {
    /// Another machine with this node's MAC is told nothing while there is something to be told.
    #[expect(clippy::too_many_arguments)]
    pub(in crate::node::registry) fn recognise(
        &self,
        book: &mut Book,
        id: NodeId,
        inventory: &Inventory,
        session: &str,
        mac: MacAddr,
        address: Ipv4Addr,
        now: Timestamp,
    ) -> Result<(), AgentRefusal> {
        let Some(entry) = book.get(id) else { return Err(AgentRefusal::UnknownNode) };
        let differs = entry.node.inventory.as_ref().and_then(|known| differs(known, inventory));
        let Some(differs) = differs.filter(|_| other_machine::is_at_stake(&entry.node)) else {
            return Ok(());
        };
        tracing::error!(%mac, ip = %address, differs, "another machine claims this node's MAC: it is told nothing");
        let alarm = |act: &mut Act<'_>| {
            let node = &mut act.entry.node;
            // Its session is over with that, and its token spent: the node's own machine may boot behind another port.
            act.entry.token_until = None;
            node.redeemed_token_at = node.redeemed_token_at.max(Some(now));
            node.redeemed_by = None;
            other_machine::raise(act, differs);
        };
        if let Some(((), effects)) = book.change(id, now, alarm) {
            self.settle(id, effects);
        }
        Err(self.refuse(book, session, mac, address, AgentRefusal::OtherMachine, now))
    }

    /// Deadlines of open tasks.
    pub(in crate::node::registry) fn tick_installs(&self, book: &mut Book, now: Timestamp) {
        let deadline = book.settings().first_boot_deadline;
        let installer_deadline = book.settings().installer_deadline;
        for id in book.ids_with_open_intent() {
            let look = |act: &mut Act<'_>| {
                let Some(intent) = act.entry.node.intent.as_deref() else { return };
                let phase = intent.phase.clone();
                let heard = *act.entry.work.heard_at.get_or_insert(now);
                let by_installer = intent.installer().is_some();
                match phase {
                    // Between its answers and its report an installer says nothing.
                    Phase::Running { stalled: false, since, .. } if by_installer => {
                        if now.since(since) > installer_deadline
                            && act.intent_event(&IntentEvent::Stalled).is_ok()
                        {
                            let waited_secs = now.since(since).as_secs();
                            act.note_install(InstallEvent::InstallerOverdue { waited_secs });
                            act.follow_intent("the installer never said that it is done");
                            act.entry.node.failure = Some(format!(
                                "its installer was started, and has not said within {} that it is done: see its console, where it may be asking something; `farrier node deploy` tries again",
                                humantime::format_duration(installer_deadline)
                            ));
                        }
                    }
                    Phase::Running { stalled: false, .. } if now.since(heard) > STALLED_AFTER => {
                        if act.intent_event(&IntentEvent::Stalled).is_ok() {
                            let silent_secs = now.since(heard).as_secs();
                            act.note_install(InstallEvent::Stalled { silent_secs });
                            act.follow_intent("nothing is heard of the agent");
                            act.entry.node.failure = Some(format!(
                                "nothing was heard of its agent for {silent_secs} s; its next netboot goes on where it was"
                            ));
                        }
                    }
                    Phase::Written { at, overdue: false, .. } if now.since(at) > deadline => {
                        if act.intent_event(&IntentEvent::FirstBootOverdue).is_ok() {
                            let waited_secs = now.since(at).as_secs();
                            act.note_install(InstallEvent::FirstBootOverdue { waited_secs });
                            act.follow_intent("the installed system never called");
                            act.entry.node.failure = Some(format!(
                                "its disk was written, and the installed system has not called within {}: see its console; `farrier node deploy` tries again",
                                humantime::format_duration(deadline)
                            ));
                        }
                    }
                    Phase::Waiting
                    | Phase::Running { .. }
                    | Phase::Written { .. }
                    | Phase::Done { .. }
                    | Phase::Failed { .. }
                    | Phase::Aborted { .. } => {}
                }
            };
            if let Some(((), effects)) = book.change(id, now, look) {
                self.settle(id, effects);
            }
        }
    }
}

/// What tells the two machines apart: a UUID or a serial number that both have.
fn differs(known: &Inventory, claimed: &Inventory) -> Option<String> {
    let (known, claimed) = (&known.system, &claimed.system);
    let other = |what: &str, one: Option<String>, another: Option<String>| {
        let (one, another) = (one?, another?);
        (one != another).then(|| format!("{what} {another} instead of {one}"))
    };
    let uuid = |id: &Option<uuid::Uuid>| id.map(|id| id.to_string());
    other("system UUID", uuid(&known.uuid), uuid(&claimed.uuid))
        .or_else(|| other("serial number", known.serial.clone(), claimed.serial.clone()))
}
