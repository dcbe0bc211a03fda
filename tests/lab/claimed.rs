//! A second machine with the first one's MAC and a UUID and serial number of its own: it gets no secrets, no install and no
//! session; the operator is told; and what was wanted waits for the machine that was meant.

use std::fs;
use std::process::Command;

use farrier::lab::config::LabFirmware;
use farrier::node::install::event::InstallEvent;
use farrier::node::state::ProvisionState;
use farrier::node::timeline::{Boot, Happening};
use farrier::operator::api::{NodeDetail, TaskPhase};

use crate::installs::{await_active, count, deploy, key, machines, told};
use crate::support::{BOOTS_WITHIN, Case};

/// Plugs a machine's cable in, or pulls it.
fn plug(case: &Case, tap: &str, state: &str) {
    let record = case.lab().run_record().unwrap();
    let set = Command::new("nsenter")
        .arg(format!("--net=/proc/{}/ns/net", record.supervisor.pid))
        .args(["ip", "link", "set", tap, state])
        .status()
        .unwrap();
    assert!(set.success());
}

fn alarmed(node: &NodeDetail) -> bool {
    node.summary
        .failure
        .as_deref()
        .is_some_and(|failure| failure.starts_with("another machine claims its MAC"))
}

fn refused(boot: &Boot, wanted: &str) -> bool {
    boot.events
        .iter()
        .any(|event| matches!(&event.happening, Happening::AgentRefused { reason, .. } if reason == wanted))
}

#[test]
fn another_machine_that_claims_the_mac_gets_nothing_and_raises_an_alarm() {
    let mut config = machines(&[LabFirmware::Bios]);
    let mut claimant = config.machines[0].clone();
    claimant.name = "claimant".parse().unwrap();
    claimant.identity.0[5] ^= 0x80;
    config.machines.push(claimant);
    let case = Case::new("claimed", config).start();
    let key = key(&case);
    let [machine, claimant] = case.machines() else { panic!("two machines") };
    let power = |name: &str| case.lab().qmp(name).unwrap();
    let alarms = || count(&told(&case, machine), |it| matches!(it, InstallEvent::OtherMachine { .. }));
    let untouched = || {
        let disk = fs::read(case.state.machine(claimant.name.as_str()).disk()).unwrap();
        assert!(disk.iter().all(|byte| *byte == 0), "something was written to its disk");
        let begun = |it: &InstallEvent| matches!(it, InstallEvent::Begun { .. });
        count(&told(&case, machine), begun)
    };

    power("bios").power_on().unwrap();
    case.await_enrolled(machine);
    power("bios").power_off().unwrap();
    deploy(&case, machine, &key);

    // Behind another port, while the first is plugged in: its firmware gives it away, and it is not even given a script.
    power("claimant").power_on().unwrap();
    let (node, _) =
        case.await_node(machine, "no script for it", BOOTS_WITHIN, |_, boot| refused(boot, "wrong-port"));
    assert!(alarmed(&node), "{:?}", node.summary.failure);

    // The first has lost its cable, as if the other had been plugged in instead: its agent comes, and is told nothing.
    plug(&case, "tap0", "down");
    power("claimant").reset().unwrap();
    let (node, _) = case
        .await_node(machine, "its agent is refused", BOOTS_WITHIN, |_, boot| refused(boot, "other-machine"));
    assert!(alarmed(&node) && alarms() >= 2, "{:?}", node.summary.failure);
    let serial = node.inventory.as_ref().and_then(|inventory| inventory.system.serial.as_deref());
    assert_eq!(serial, Some(machine.serial().as_str()), "not the other's inventory");
    assert_eq!(node.summary.state, ProvisionState::WaitCallBack);
    let task = node.task.expect("a task");
    assert_eq!((task.phase, task.generation), (TaskPhase::Waiting, 1));
    assert_eq!(untouched(), 0);

    // The machine that was meant is installed, once, and nothing of the alarm is left.
    power("claimant").power_off().unwrap();
    plug(&case, "tap0", "up");
    power("bios").power_on().unwrap();
    let node = await_active(&case, machine);
    assert_eq!((node.summary.failure.as_deref(), untouched()), (None, 1));

    // While the system runs, the other comes again: it is sent to its own disk.
    let before = alarms();
    power("claimant").power_on().unwrap();
    let (node, _) = case.await_node(machine, "the alarm", BOOTS_WITHIN, |node, _| alarmed(node));
    assert_eq!((node.summary.state, alarms()), (ProvisionState::Active, before + 1));
    assert_eq!(untouched(), 1);
}
