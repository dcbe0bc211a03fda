//! From an empty disk to a system that ssh reaches: netboot, `node deploy`, the disk written and read back, first boot from
//! the disk, and the call home. By BIOS and by UEFI with Secure Boot; with the plug pulled; with the appliance killed.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use farrier::boot::decision::ScriptPlan;
use farrier::lab::config::{LabConfig, LabFirmware, MachineConfig};
use farrier::lab::process;
use farrier::node::install::event::InstallEvent;
use farrier::node::install::intent::CleanMethod;
use farrier::node::install::task::Step;
use farrier::node::state::ProvisionState;
use farrier::node::timeline::{Boot, Happening};
use farrier::operator::api::{
    CleanRequest, DeployRequest, NodeDetail, NodePatch, RescueRequest, TaskDetail, TaskPhase,
};
use nix::sys::signal::Signal;
use serde::Serialize;
use serde_json::Value;

use crate::support::{BOOTS_WITHIN, Case, config, farrier, images};

/// Written and read back in TCG, then booted.
pub const INSTALLS_WITHIN: Duration = Duration::from_secs(420);
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
pub fn machines(firmware: &[LabFirmware]) -> LabConfig {
    small_image();
    let mut config = config(firmware, "[boot]\nfirst_boot_deadline = '10m'\n");
    for machine in &mut config.machines {
        machine.disk_bytes = Some(1 << 30);
    }
    config
}

pub fn key(case: &Case) -> String {
    let path = case.state.root().join("key");
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "operator", "-f"])
        .arg(&path)
        .status()
        .expect("ssh-keygen (.ci/packages.txt names the Debian package)");
    assert!(made.success());
    fs::read_to_string(path.with_extension("pub")).unwrap().trim().to_owned()
}

pub fn name_of(machine: &MachineConfig) -> String {
    format!("rack1-{}", machine.name)
}

/// Names the node and asks for the install.
pub fn deploy(case: &Case, machine: &MachineConfig, key: &str) -> NodeDetail {
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

pub fn await_active(case: &Case, machine: &MachineConfig) -> NodeDetail {
    let active = |node: &NodeDetail, _: &Boot| {
        let state = node.summary.state;
        assert_ne!(state, ProvisionState::DeployFailed, "{}: {:?}", machine.name, node.summary.failure);
        state == ProvisionState::Active
    };
    case.await_node(machine, "active", INSTALLS_WITHIN, active).0
}

/// What ssh answers from within the lab's network, with the operator's key and no other way in.
pub fn ssh(case: &Case, node: &NodeDetail, command: &str) -> String {
    let address = node.summary.ports[0].address.expect("an address");
    let record = case.lab().run_record().unwrap();
    let deadline = Instant::now() + BOOTS_WITHIN;
    loop {
        let output = Command::new("nsenter")
            .arg(format!("--net=/proc/{}/ns/net", record.supervisor.pid))
            .args(["ssh", "-i", "key", "-F", "/dev/null", "-o", "UserKnownHostsFile=/dev/null"])
            .args(["-o", "StrictHostKeyChecking=no", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20"])
            // A machine that goes down in between says no goodbye.
            .args([
                "-o",
                "ServerAliveInterval=5",
                "-o",
                "LogLevel=ERROR",
                &format!("root@{address}"),
                command,
            ])
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
pub fn told(case: &Case, machine: &MachineConfig) -> Vec<InstallEvent> {
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

pub fn count(events: &[InstallEvent], wanted: impl Fn(&InstallEvent) -> bool) -> usize {
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
    let handed_over = |_: &NodeDetail, boot: &Boot| {
        let to_disk = |happening: &Happening| {
            matches!(happening, Happening::Script { plan: ScriptPlan::LocalDisk, .. })
        };
        boot.number > 2 && boot.events.iter().any(|event| to_disk(&event.happening))
    };
    let (node, _) = case.await_node(machine, "sent to its disk", BOOTS_WITHIN, handed_over);
    assert_eq!(ssh(&case, &node, "cat /root/user-data-ran | wc -l"), "1");
    assert_eq!(told(&case, machine).len(), before);
    rescue_release_and_clean(&case, machine, &key);
}

/// Signed GRUB has no HTTP: iPXE comes first, and starts it. Firmware by itself tries all its other entries before the disk.
#[test]
#[ignore = "a minute; `make test-install` runs it"]
fn uefi_http_boot_goes_on_to_the_disk_it_was_installed_to() {
    let case = Case::new("installs-http", machines(&[LabFirmware::UefiHttp])).start().power_on();
    let key = key(&case);
    let machine = case.machine(LabFirmware::UefiHttp);
    case.await_enrolled(machine);
    deploy(&case, machine, &key);
    let asked = Instant::now();
    let node = await_active(&case, machine);
    eprintln!("UEFI HTTP Boot: active {} s after it was asked for", asked.elapsed().as_secs());
    check_installed(&case, machine, &node);
    let said = case.serial(machine, 0);
    assert!(said.contains("Welcome to GRUB!") && !said.contains("HTTP Boot over IPv6"), "{said}");

    // A system of somebody else's, in a folder of its own: it is found as well.
    let power = || case.lab().qmp(machine.name.as_str()).unwrap();
    power().power_off().unwrap();
    let disk = case.state.machine(machine.name.as_str()).disk();
    let at = format!("{}@@{}", disk.display(), 0x1000 * 512);
    for arguments in [
        &["mmove", "-i", &at, "::/EFI/BOOT", "::/EFI/foreign"][..],
        &["mmove", "-i", &at, "::/EFI/foreign/BOOTX64.EFI", "::/EFI/foreign/shimx64.efi"],
    ] {
        let moved = Command::new(arguments[0]).args(&arguments[1..]).output().unwrap();
        assert!(moved.status.success(), "{}", String::from_utf8_lossy(&moved.stderr));
    }
    power().power_on().unwrap();
    case.await_words("login:", BOOTS_WITHIN, || case.serial(machine, said.len()));
    assert!(!case.serial(machine, said.len()).contains("HTTP Boot over IPv6"));
}

/// How often each kind of accident happens; `make test-install` says 10.
fn cuts() -> u32 {
    std::env::var("INSTALL_CUTS").ok().and_then(|count| count.parse().ok()).unwrap_or(1)
}

/// What happens in the middle of an install.
#[derive(Clone, Copy, Debug)]
enum Accident {
    /// The machine loses power, and has it back at once.
    Plug,
    /// The appliance dies; the lab starts it again.
    Appliance,
}

/// Waits until the agent has written for so long; `false` if it was done before.
fn await_cut(case: &Case, machine: &MachineConfig, after: Duration) -> bool {
    let path = format!("/api/v1/nodes/{}/task", machine.mac);
    let deadline = Instant::now() + INSTALLS_WITHIN;
    let mut running_since = None;
    loop {
        let task: TaskDetail = case.ask(&path);
        match task.phase {
            TaskPhase::Running => {
                if running_since.get_or_insert_with(Instant::now).elapsed() >= after {
                    return true;
                }
            }
            TaskPhase::Written | TaskPhase::Done => return false,
            TaskPhase::Waiting | TaskPhase::Failed | TaskPhase::Aborted => {}
        }
        assert!(Instant::now() < deadline, "{}: its install never began", machine.name);
        process::look_again();
    }
}

/// Whether the machine's firmware would find something to boot on its disk: a boot sector, or a partition table at
/// either end.
fn may_boot(case: &Case, machine: &MachineConfig) -> bool {
    let disk = File::open(case.state.machine(machine.name.as_str()).disk()).unwrap();
    let size = disk.metadata().unwrap().len();
    let sector = |at: u64| {
        let mut bytes = [0; 512];
        disk.read_exact_at(&mut bytes, at).unwrap();
        bytes
    };
    sector(0)[510..] == [0x55, 0xaa]
        || [512, size - 512].iter().any(|at| sector(*at).starts_with(b"EFI PART"))
}

/// The same install over and over, with an accident in each at another moment: it always ends installed, once.
fn survives(name: &'static str, accident: Accident) {
    let case = Case::new(name, machines(&[LabFirmware::Bios])).start().power_on();
    let key = key(&case);
    let machine = case.machine(LabFirmware::Bios);
    case.await_enrolled(machine);
    let mut half_written = 0;
    for round in 0..cuts() {
        let generation = u64::from(round) + 1;
        if round == 0 {
            deploy(&case, machine, &key);
        } else {
            let node = format!("/api/v1/nodes/{}", machine.mac);
            let _: NodeDetail = case.change("POST", &format!("{node}/release"), &());
            let again = DeployRequest {
                wipe: true,
                ssh_keys: vec![key.clone()],
                user_data: Some(USER_DATA.to_owned()),
                ..DeployRequest::default()
            };
            let _: NodeDetail = case.change("POST", &format!("{node}/deploy"), &again);
            case.lab().qmp(machine.name.as_str()).unwrap().reset().unwrap();
        }
        // From the first write to the report it takes some three seconds.
        let after = Duration::from_millis(300 + u64::from(round) * 2700 / u64::from(cuts()));
        if await_cut(&case, machine, after) {
            match accident {
                Accident::Plug => {
                    let bootable = may_boot(&case, machine);
                    case.lab().qmp(machine.name.as_str()).unwrap().reset().unwrap();
                    let task: TaskDetail = case.ask(&format!("/api/v1/nodes/{}/task", machine.mac));
                    // The tables are the last that is written: with them there, all else is.
                    let finishing = task.progress.is_some_and(|progress| progress.step == Step::Finishing);
                    assert!(!bootable || finishing || task.phase != TaskPhase::Running, "{task:#?}");
                    half_written += u32::from(!bootable);
                }
                Accident::Appliance => case.signal_appliance(Signal::SIGKILL),
            }
        }
        let done = |node: &NodeDetail, _: &Boot| {
            node.summary.state == ProvisionState::Active
                && node.task.as_ref().is_some_and(|task| task.generation == generation)
        };
        let (node, _) = case.await_node(machine, "installed in spite of it", INSTALLS_WITHIN, done);
        assert_eq!(ssh(&case, &node, "hostname"), name_of(machine), "round {round}");
        let events = told(&case, machine);
        let reported = count(&events, |it| matches!(it, InstallEvent::Reported { .. }));
        // Timelines keep the last boots only.
        assert!(reported <= round as usize + 1, "round {round}: {events:#?}");
        eprintln!("{accident:?} {round}, {} ms after the first write: installed once", after.as_millis());
    }
    if let Accident::Plug = accident {
        assert!(half_written > 0, "no plug was pulled before the disk was complete");
    }
}

#[test]
fn an_install_goes_on_after_the_plug_was_pulled() {
    survives("installs-plug", Accident::Plug);
}

#[test]
fn an_install_goes_on_after_the_appliance_was_killed() {
    survives("installs-killed", Accident::Appliance);
}

fn post(case: &Case, machine: &MachineConfig, action: &str, body: &impl Serialize) -> NodeDetail {
    case.change("POST", &format!("/api/v1/nodes/{}/{action}", machine.mac), body)
}

pub fn await_state(case: &Case, machine: &MachineConfig, wanted: ProvisionState) -> NodeDetail {
    let reached = |node: &NodeDetail, _: &Boot| node.summary.state == wanted;
    case.await_node(machine, &wanted.to_string(), INSTALLS_WITHIN, reached).0
}

/// Out of use: a ramdisk to look at the disk, back to the system, and then the disk is emptied.
fn rescue_release_and_clean(case: &Case, machine: &MachineConfig, key: &str) {
    let reset = || case.lab().qmp(machine.name.as_str()).unwrap().reset().unwrap();
    let rescue = RescueRequest { ssh_keys: vec![key.to_owned()] };
    assert_eq!(post(case, machine, "rescue", &rescue).summary.state, ProvisionState::Rescuing);
    reset();
    let node = await_state(case, machine, ProvisionState::Rescue);
    assert_eq!(
        ssh(case, &node, "test -b /dev/vda && test ! -e /root/user-data-ran && echo rescue"),
        "rescue"
    );

    // The agent that waits there brings the machine back to its disk.
    assert_eq!(post(case, machine, "unrescue", &()).summary.state, ProvisionState::Active);
    assert_eq!(ssh(case, &node, "test -e /root/user-data-ran && wc -l </root/user-data-ran"), "1");

    assert_eq!(post(case, machine, "release", &()).summary.state, ProvisionState::Available);
    let clean = CleanRequest { disk: None, method: CleanMethod::Discard };
    assert_eq!(post(case, machine, "clean", &clean).summary.state, ProvisionState::CleanWait);
    reset();
    let cleaned = |node: &NodeDetail, _: &Boot| {
        node.summary.state == ProvisionState::Available
            && node.task.as_ref().is_some_and(|task| task.phase == TaskPhase::Done)
    };
    case.await_node(machine, "cleaned", INSTALLS_WITHIN, cleaned);
    let disk = fs::read(case.state.machine(machine.name.as_str()).disk()).unwrap();
    assert!(disk.iter().all(|byte| *byte == 0), "something is left on the disk");
}
