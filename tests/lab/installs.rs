//! From an empty disk to a system that ssh reaches: netboot, `node deploy`, the disk written and read back, first boot from
//! the disk, and the call home. By BIOS and by UEFI with Secure Boot; with the plug pulled; with the appliance killed.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use farrier::lab::config::{LabConfig, LabFirmware, MachineConfig};
use farrier::lab::process;
use farrier::node::install::event::InstallEvent;
use farrier::node::state::ProvisionState;
use farrier::node::timeline::{Boot, Happening};
use farrier::operator::api::{DeployRequest, NodeDetail, NodePatch, TaskPhase};
use serde_json::Value;

use crate::support::{BOOTS_WITHIN, Case, config, farrier, images};

/// Written and read back in TCG, then booted.
const INSTALLS_WITHIN: Duration = Duration::from_secs(420);
const USER_DATA: &str = "#!/bin/sh\nhostname >/root/user-data-ran\n";

/// The small image, made once and in the library that all cases share.
fn small_image() {
    static MADE: OnceLock<()> = OnceLock::new();
    MADE.get_or_init(|| {
        let built = Command::new(farrier())
            .args(["image", "--state"])
            .arg(images())
            .args(["build", "small"])
            .env("SOURCE_DATE_EPOCH", "1700000000")
            .output()
            .unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    });
}

/// Machines with a disk that the small image fits many times.
fn machines(firmware: &[LabFirmware]) -> LabConfig {
    small_image();
    let mut config = config(firmware, "[boot]\nfirst_boot_deadline = '10m'\n");
    for machine in &mut config.machines {
        machine.disk_bytes = Some(1 << 30);
    }
    config
}

fn key(case: &Case) -> String {
    let path = case.state.root().join("key");
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "operator", "-f"])
        .arg(&path)
        .status()
        .expect("ssh-keygen (.ci/packages.txt names the Debian package)");
    assert!(made.success());
    fs::read_to_string(path.with_extension("pub")).unwrap().trim().to_owned()
}

fn name_of(machine: &MachineConfig) -> String {
    format!("rack1-{}", machine.name)
}

/// Names the node and asks for the install.
fn deploy(case: &Case, machine: &MachineConfig, key: &str) -> NodeDetail {
    let patch = NodePatch { name: Some(name_of(machine).parse().ok()), ..NodePatch::default() };
    let named: NodeDetail = case.change("PATCH", &format!("/api/v1/nodes/{}", machine.mac), &patch);
    assert_eq!(named.summary.state, ProvisionState::Manageable);
    let request = DeployRequest {
        image: Some("small".to_owned()),
        ssh_keys: vec![key.to_owned()],
        user_data: Some(USER_DATA.to_owned()),
        ..DeployRequest::default()
    };
    let node: NodeDetail = case.change("POST", &format!("/api/v1/nodes/{}/deploy", machine.mac), &request);
    assert_eq!(node.summary.state, ProvisionState::WaitCallBack);
    node
}

fn await_active(case: &Case, machine: &MachineConfig) -> NodeDetail {
    let active = |node: &NodeDetail, _: &Boot| {
        let state = node.summary.state;
        assert_ne!(state, ProvisionState::DeployFailed, "{}: {:?}", machine.name, node.summary.failure);
        state == ProvisionState::Active
    };
    case.await_node(machine, "active", INSTALLS_WITHIN, active).0
}

/// What ssh answers from within the lab's network, with the operator's key and no other way in.
fn ssh(case: &Case, node: &NodeDetail, command: &str) -> String {
    let address = node.summary.ports[0].address.expect("an address");
    let record = case.lab().run_record().unwrap();
    let deadline = Instant::now() + BOOTS_WITHIN;
    loop {
        let output = Command::new("nsenter")
            .arg(format!("--net=/proc/{}/ns/net", record.supervisor.pid))
            .args(["ssh", "-i", "key", "-F", "/dev/null", "-o", "UserKnownHostsFile=/dev/null"])
            .args(["-o", "StrictHostKeyChecking=no", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20"])
            .args(["-o", "LogLevel=ERROR", &format!("root@{address}"), command])
            .current_dir(case.state.root())
            .output()
            .unwrap();
        if output.status.success() {
            return String::from_utf8_lossy(&output.stdout).trim().to_owned();
        }
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !complaint.contains("Permission denied") && Instant::now() < deadline,
            "{command}: {complaint}"
        );
        process::look_again();
    }
}

/// Everything the timeline tells of installs, in order.
fn told(case: &Case, machine: &MachineConfig) -> Vec<InstallEvent> {
    let boots: Value = case.ask(&format!("/api/v1/nodes/{}/boots?limit=100", machine.mac));
    let boots: Vec<Boot> = serde_json::from_value(boots["items"].clone()).unwrap();
    let mut events: Vec<_> = boots.into_iter().flat_map(|boot| boot.events).collect();
    events.sort_by_key(|event| (event.at, event.boot, event.sequence));
    let of_install = |happening| match happening {
        Happening::Install { install, .. } => Some(install),
        _ => None,
    };
    events.into_iter().filter_map(|event| of_install(event.happening)).collect()
}

fn count(events: &[InstallEvent], wanted: impl Fn(&InstallEvent) -> bool) -> usize {
    events.iter().filter(|event| wanted(event)).count()
}

/// Installed once, reachable, named, its user data run, its root grown.
fn check_installed(case: &Case, machine: &MachineConfig, node: &NodeDetail) {
    let name = name_of(machine);
    assert_eq!(ssh(case, node, "hostname; cat /root/user-data-ran"), format!("{name}\n{name}"));
    let mib: u64 = ssh(case, node, "df -m / | awk 'END { print $2 }'").parse().unwrap();
    assert!((850..1024).contains(&mib), "the root has {mib} MiB of a disk of 1024");
    let events = told(case, machine);
    assert_eq!(count(&events, |it| matches!(it, InstallEvent::Reported { .. })), 1, "{events:#?}");
    assert_eq!(count(&events, |it| matches!(it, InstallEvent::CalledHome { .. })), 1, "{events:#?}");
    let task = node.task.as_ref().expect("a task");
    assert_eq!((task.phase, task.generation), (TaskPhase::Done, 1));
}

#[test]
fn from_an_empty_disk_to_ssh_by_bios_and_secure_boot() {
    let case = Case::new("installs", machines(&[LabFirmware::Bios, LabFirmware::UefiSecure]));
    let case = case.start().power_on();
    let key = key(&case);
    for machine in case.machines() {
        case.await_enrolled(machine);
        deploy(&case, machine, &key);
    }
    for machine in case.machines() {
        let node = await_active(&case, machine);
        check_installed(&case, machine, &node);
        let secure = ssh(&case, &node, "dmesg | grep -c 'Secure boot enabled' || true");
        assert_eq!(secure != "0", machine.firmware == LabFirmware::UefiSecure, "{}", machine.name);
    }
    // Switched off and on: from the disk again, whatever the boot order says, and no second install.
    let machine = case.machine(LabFirmware::Bios);
    let before = told(&case, machine).len();
    case.lab().qmp(machine.name.as_str()).unwrap().reset().unwrap();
    let node: NodeDetail = case.ask(&format!("/api/v1/nodes/{}", machine.mac));
    let since = case.state.machine(machine.name.as_str()).serial_log();
    case.await_words("boots from its local disk", BOOTS_WITHIN, || text(&since));
    assert_eq!(ssh(&case, &node, "cat /root/user-data-ran | wc -l"), "1");
    assert_eq!(told(&case, machine).len(), before);
}

fn text(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}
