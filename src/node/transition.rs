//! `apply(state, event) → state`, or a refusal: the whole life of a node in one table.
//!
//! ```text
//!                   enroll       inspecting      inspect failed  manageable
//!  ramdisk served   inspecting   inspecting      inspecting      inspecting
//!  agent hello      inspecting   inspecting      inspecting      inspecting
//!  inventory        -            manageable      manageable      manageable
//!  agent failed     inspect f.   inspect failed  inspect failed  manageable (told, nothing lost)
//!  call overdue     -            inspect failed  -               -
//!  approved         enroll       inspecting      inspect failed  manageable
//! ```
//!
//! A node that is not approved moves nowhere: whatever it fetches or claims, it stays where it is. Nor does one whose
//! state an install decides ([`crate::node::install::intent`]): its ramdisk is not there to enroll it, and its inventory
//! is welcome all the same.

use crate::node::state::ProvisionState;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The whole deploy ramdisk was handed out to it.
    RamdiskServed,
    /// Its agent redeemed a boot token.
    AgentHello,
    InventoryReported,
    /// Its agent says that it cannot go on.
    AgentFailed,
    /// No inventory within the call deadline.
    CallOverdue,
    /// An operator approved it.
    Approved,
}

impl Event {
    pub const ALL: [Event; 6] = [
        Event::RamdiskServed,
        Event::AgentHello,
        Event::InventoryReported,
        Event::AgentFailed,
        Event::CallOverdue,
        Event::Approved,
    ];

    /// The word the timeline shows as the cause of a change.
    pub fn as_str(self) -> &'static str {
        match self {
            Event::RamdiskServed => "ramdisk served",
            Event::AgentHello => "agent called",
            Event::InventoryReported => "inventory reported",
            Event::AgentFailed => "agent failed",
            Event::CallOverdue => "agent never called",
            Event::Approved => "approved",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// An operator has to approve the node first.
    NotApproved,
    /// No inventory is awaited from a node in this state.
    NotAwaited,
}

/// The state after `event`; equal to `state` if the event is fine but moves nothing.
pub fn apply(state: ProvisionState, approved: bool, event: Event) -> Result<ProvisionState, Refusal> {
    use ProvisionState::{
        Active, Available, CleanFailed, CleanWait, Cleaning, DeployFailed, Deploying, Enroll, InspectFailed,
        Inspecting, Manageable, Rescue, RescueFailed, Rescuing, WaitCallBack,
    };
    let from_the_ramdisk = match event {
        Event::RamdiskServed | Event::AgentHello | Event::InventoryReported | Event::AgentFailed => true,
        Event::CallOverdue | Event::Approved => false,
    };
    if from_the_ramdisk && !approved {
        return Err(Refusal::NotApproved);
    }
    let enrolling = match state {
        Enroll | Inspecting | InspectFailed | Manageable => state,
        Available | WaitCallBack | Deploying | DeployFailed | Active | CleanWait | Cleaning | CleanFailed
        | Rescuing | Rescue | RescueFailed => {
            return if event == Event::CallOverdue { Err(Refusal::NotAwaited) } else { Ok(state) };
        }
    };
    match (event, enrolling) {
        (Event::Approved, state) => Ok(state),
        (Event::RamdiskServed | Event::AgentHello, _) => Ok(Inspecting),
        (Event::InventoryReported, Enroll) => Err(Refusal::NotAwaited),
        (Event::InventoryReported, _) => Ok(Manageable),
        // Its inventory is in; a failure while waiting or obeying takes nothing of that back.
        (Event::AgentFailed, Manageable) => Ok(Manageable),
        (Event::AgentFailed, _) => Ok(InspectFailed),
        (Event::CallOverdue, Inspecting) => Ok(InspectFailed),
        (Event::CallOverdue, _) => Err(Refusal::NotAwaited),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ProvisionState::{Enroll, InspectFailed, Inspecting, Manageable};
    use Refusal::{NotApproved, NotAwaited};

    const STATES: [ProvisionState; 4] = [Enroll, Inspecting, InspectFailed, Manageable];

    #[test]
    fn the_table_is_exhaustive_and_as_drawn() {
        let approved = [
            (Event::RamdiskServed, [Ok(Inspecting); 4]),
            (Event::AgentHello, [Ok(Inspecting); 4]),
            (Event::InventoryReported, [Err(NotAwaited), Ok(Manageable), Ok(Manageable), Ok(Manageable)]),
            (Event::AgentFailed, [Ok(InspectFailed), Ok(InspectFailed), Ok(InspectFailed), Ok(Manageable)]),
            (Event::CallOverdue, [Err(NotAwaited), Ok(InspectFailed), Err(NotAwaited), Err(NotAwaited)]),
            (Event::Approved, STATES.map(Ok)),
        ];
        assert_eq!(approved.map(|(event, _)| event), Event::ALL);
        for (event, row) in approved {
            for (state, expected) in STATES.into_iter().zip(row) {
                assert_eq!(apply(state, true, event), expected, "{state} + {event:?}");
            }
        }
    }

    #[test]
    fn what_an_install_decides_no_ramdisk_moves() {
        let installs = ProvisionState::ALL.into_iter().filter(|state| !STATES.contains(state));
        for state in installs {
            for event in Event::ALL {
                let expected = if event == Event::CallOverdue { Err(NotAwaited) } else { Ok(state) };
                assert_eq!(apply(state, true, event), expected, "{state} + {event:?}");
            }
        }
    }

    #[test]
    fn a_node_nobody_approved_moves_nowhere() {
        for event in Event::ALL {
            for state in STATES {
                let expected = match event {
                    Event::Approved => Ok(state),
                    Event::CallOverdue if state == Inspecting => Ok(InspectFailed),
                    Event::CallOverdue => Err(NotAwaited),
                    Event::RamdiskServed
                    | Event::AgentHello
                    | Event::InventoryReported
                    | Event::AgentFailed => Err(NotApproved),
                };
                assert_eq!(apply(state, false, event), expected, "{state} + {event:?}");
            }
        }
    }
}
