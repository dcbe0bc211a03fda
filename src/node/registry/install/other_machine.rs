//! Another machine with a node's MAC: what gives it away, and the alarm.
//!
//! Its agent's inventory does, and before that its firmware: DHCP's option 97 has the machine's UUID. A MAC and a UUID in a
//! DHCP message are claims that anybody on the bridge can make, so what firmware says raises the alarm and takes nothing
//! from the node; the agent of such a machine is told nothing.

use uuid::Uuid;

use crate::node::Node;
use crate::node::install::event::InstallEvent;
use crate::node::registry::entry::Act;
use crate::node::state::ProvisionState;

const ALARM: &str = "another machine claims its MAC";

/// Whether there is something that the machine's secrets, disks or system could be lost by.
pub(in crate::node::registry) fn is_at_stake(node: &Node) -> bool {
    node.has_open_task() || node.state == ProvisionState::Active
}

/// For the operator: the node says so until its own machine has reported again.
pub(in crate::node::registry) fn raise(act: &mut Act<'_>, differs: String) {
    act.entry.node.failure = Some(format!(
        "{ALARM} ({differs}); if its board was replaced: `farrier node remove` it and add it again"
    ));
    act.node_changed = true;
    act.note_install(InstallEvent::OtherMachine { differs });
}

/// Firmware asks for an address with this UUID. Once per alarm: the next DISCOVER may claim yet another.
pub(in crate::node::registry) fn notice(act: &mut Act<'_>, claimed: Uuid) {
    let node = &act.entry.node;
    let enrolled = node.inventory.as_ref().and_then(|inventory| inventory.system.uuid);
    let Some(enrolled) = enrolled.filter(|enrolled| !is_same(*enrolled, claimed)) else { return };
    let is_raised = node.failure.as_ref().is_some_and(|failure| failure.starts_with(ALARM));
    if is_raised || !is_at_stake(node) {
        return;
    }
    let differs = format!("system UUID {claimed} instead of {enrolled}");
    tracing::error!(node = %node.id, differs, "another machine claims this node's MAC");
    raise(act, differs);
}

/// Firmware and kernels differ in the order of a UUID's first bytes.
fn is_same(one: Uuid, another: Uuid) -> bool {
    one == another || Uuid::from_bytes_le(one.into_bytes()) == another
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_the_same_in_either_order_of_its_first_bytes() {
        let uuid: Uuid = "00112233-4455-6677-8899-aabbccddeeff".parse().unwrap();
        for (other, same) in [
            ("00112233-4455-6677-8899-aabbccddeeff", true),
            ("33221100-5544-7766-8899-aabbccddeeff", true),
            ("00112233-4455-6677-8899-aabbccddeefe", false),
            ("33221100-4455-6677-8899-aabbccddeeff", false),
        ] {
            assert_eq!(is_same(uuid, other.parse().unwrap()), same, "{other}");
        }
    }
}
