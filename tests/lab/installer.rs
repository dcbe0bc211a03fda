//! Debian's own installer as the deploy kernel: its kernel and initrd netbooted through us, answered by us, and in the end
//! a machine that ssh reaches.
//!
//! The lab reaches no network, and half an hour of partitioning and unpacking without KVM would show nothing of ours. So
//! the mirror that the installer is told of is the lab's own, with one package, which stands for all that come between:
//! it writes a small system to the empty disk, mounts it at `/target`, and does what the installer's last package does
//! (`preseed_command preseed/late_command`, then a reboot). All else is Debian's and ours as it is: network, answers,
//! retriever, the last step, the report, the first boot from the disk.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use farrier::lab::config::{LabConfig, LabFirmware, MachineConfig};
use farrier::metadata::installer::Kind;
use farrier::node::install::event::InstallEvent;
use farrier::node::state::ProvisionState;
use farrier::node::timeline::{Boot, Happening};
use farrier::operator::api::{DeployRequest, NodeDetail, NodePatch, TaskPhase};
use nix::sched::{CloneFlags, setns};

use crate::installs::{await_state, count, key, name_of, ssh, told};
use crate::support::{BOOTS_WITHIN, Case, config, farrier, images};

/// Of the package debian-installer-12-netboot-amd64.
const NETBOOT: &str = "/usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64";
const PROFILE: &str = "debian-installer";
const MIRROR_PORT: u16 = 8080;
/// Kernel and 40 MB of initrd are loaded, and its network set up.
const ANSWERED_WITHIN: Duration = Duration::from_secs(600);
const INSTALLED_WITHIN: Duration = Duration::from_secs(900);
const USER_DATA: &str = "#!/bin/sh\nhostname >/root/user-data-ran\n";

/// What the installer's disk and file system need beyond its initrd.
const MODULES: [&str; 3] = ["drivers/block/virtio_blk.ko", "fs/jbd2/jbd2.ko", "fs/ext4/ext4.ko"];
const PACKAGE: &str = "lab-base";

fn machines(firmware: LabFirmware) -> LabConfig {
    let mut config = config(&[firmware], "");
    let mirror = format!("http://{}:{MIRROR_PORT}/debian", config.address.ip());
    let settings = format!("[boot]\nfirst_boot_deadline = '30m'\n[installer]\nmirror = '{mirror}'\n");
    config.appliance = toml::from_str(&settings).unwrap();
    for machine in &mut config.machines {
        machine.disk_bytes = Some(1 << 30);
    }
    config
}

fn farrier_profile(case: &Case, arguments: &[&str]) {
    let socket = case.state.short_operator_socket().unwrap();
    let output = Command::new(farrier())
        .arg("profile")
        .args(arguments)
        .arg("--socket")
        .arg(socket.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn netboot(name: &str) -> String {
    let path = format!("{NETBOOT}/{name}");
    assert!(Path::new(&path).exists(), "{path} (.ci/packages.txt names the Debian package)");
    path
}

/// Adds the installer as an operator does, with the words that fit a machine in a lab: where DHCP names no name server it
/// would ask for one, its console is a serial port, and nobody signed the lab's mirror.
fn add_installer(case: &Case) {
    let (kernel, initrd) = (netboot("linux"), netboot("initrd.gz"));
    let state = case.state.appliance_state().display().to_string();
    let mut arguments = vec!["add", PROFILE, "--replace", "--state", &state];
    arguments.extend(["--kernel", &kernel, "--initrd", &initrd]);
    let of_lab = [
        "netcfg/get_nameservers=",
        "debian-installer/allow_unauthenticated=true",
        "console=ttyS0,115200",
        "DEBIAN_FRONTEND=text",
    ];
    for word in Kind::Preseed.boot_arguments().iter().chain(&of_lab) {
        arguments.extend(["--arg", word]);
    }
    farrier_profile(case, &arguments);
}

/// A machine that was enrolled, and whose agent waits.
fn enrolled(case: &Case) -> &MachineConfig {
    let machine = &case.machines()[0];
    case.await_enrolled(machine);
    machine
}

fn deploy(case: &Case, machine: &MachineConfig, key: &str) {
    let patch = NodePatch { name: Some(name_of(machine).parse().ok()), ..NodePatch::default() };
    let _: NodeDetail = case.change("PATCH", &format!("/api/v1/nodes/{}", machine.mac), &patch);
    let request = DeployRequest {
        installer: Some(PROFILE.to_owned()),
        ssh_keys: vec![key.to_owned()],
        user_data: Some(USER_DATA.to_owned()),
        ..DeployRequest::default()
    };
    // The agent that waits there is told to reboot; nobody presses a button.
    let node: NodeDetail = case.change("POST", &format!("/api/v1/nodes/{}/deploy", machine.mac), &request);
    assert_eq!(node.summary.state, ProvisionState::WaitCallBack);
}

fn await_told(
    case: &Case,
    machine: &MachineConfig,
    what: &str,
    within: Duration,
    wanted: impl Fn(&InstallEvent) -> bool,
) {
    let has = |node: &NodeDetail, boot: &Boot| {
        assert_ne!(node.summary.state, ProvisionState::DeployFailed, "{:?}", node.summary.failure);
        boot.events
            .iter()
            .any(|event| matches!(&event.happening, Happening::Install { install, .. } if wanted(install)))
    };
    case.await_node(machine, what, within, has);
}

#[test]
#[ignore = "minutes without KVM, and 130 MB of an installer: make test-install"]
fn p_21_debians_installer_makes_a_machine_that_ssh_reaches() {
    let case = Case::new("installer", machines(LabFirmware::Bios));
    let mirror = make_mirror(&case);
    add_installer(&case);
    let case = case.start();
    serve(listen_inside(&case, case.config.address.ip()), mirror);
    let case = case.power_on();
    let (key, machine) = (key(&case), enrolled(&case));
    deploy(&case, machine, &key);

    await_told(&case, machine, "its installer asks for its answers", ANSWERED_WITHIN, |it| {
        *it == InstallEvent::AnswersRead
    });
    await_told(&case, machine, "its installer says that it is done", INSTALLED_WITHIN, |it| {
        matches!(it, InstallEvent::InstallerReported { .. })
    });
    let active = |node: &NodeDetail, _: &Boot| {
        assert_ne!(node.summary.state, ProvisionState::DeployFailed, "{:?}", node.summary.failure);
        node.summary.state == ProvisionState::Active
    };
    let (node, _) = case.await_node(machine, "active", BOOTS_WITHIN, active);

    // Its name, the operator's key and user data, out of what the last step left there; and each step once.
    let name = name_of(machine);
    assert_eq!(ssh(&case, &node, "hostname; cat /root/user-data-ran"), format!("{name}\n{name}"));
    assert_eq!(ssh(&case, &node, "stat -c %a /var/lib/farrier/seed"), "700");
    let events = told(&case, machine);
    for wanted in [
        |it: &InstallEvent| matches!(it, InstallEvent::InstallerStarted { .. }),
        |it: &InstallEvent| *it == InstallEvent::AnswersRead,
        |it: &InstallEvent| matches!(it, InstallEvent::InstallerReported { .. }),
        |it: &InstallEvent| matches!(it, InstallEvent::CalledHome { .. }),
    ] {
        assert_eq!(count(&events, wanted), 1, "{events:#?}");
    }
    let task = node.task.as_ref().expect("a task");
    assert_eq!((task.phase, task.installer.as_deref()), (TaskPhase::Done, Some(PROFILE)));
    farrier_profile(&case, &["rm", PROFILE]);
}

/// Under Secure Boot: Debian's kernel is signed.
#[test]
#[ignore = "minutes without KVM, and 130 MB of an installer: make test-install"]
fn p_21_an_installer_that_lost_its_power_is_not_started_again() {
    let case = Case::new("installer-cut", machines(LabFirmware::UefiSecure));
    add_installer(&case);
    let case = case.start().power_on();
    let (key, machine) = (key(&case), enrolled(&case));
    deploy(&case, machine, &key);
    await_told(&case, machine, "its installer asks for its answers", ANSWERED_WITHIN, |it| {
        *it == InstallEvent::AnswersRead
    });
    let node: NodeDetail = case.ask(&format!("/api/v1/nodes/{}", machine.mac));
    assert_eq!(node.summary.state, ProvisionState::Deploying);
    case.lab().qmp(machine.name.as_str()).unwrap().reset().unwrap();
    let node = await_state(&case, machine, ProvisionState::DeployFailed);
    let failure = node.summary.failure.unwrap_or_default();
    assert!(failure.contains("netbooted again before its installer said that it is done"), "{failure}");
    // It comes back to the ramdisk, where its agent waits for another wish.
    let back = |_: &NodeDetail, boot: &Boot| boot.enrolled && boot.number > 2;
    case.await_node(machine, "in the ramdisk", BOOTS_WITHIN, back);
    let events = told(&case, machine);
    assert_eq!(count(&events, |it| matches!(it, InstallEvent::InstallerStarted { .. })), 1, "{events:#?}");
    farrier_profile(&case, &["rm", PROFILE]);
}

fn run(program: &str, arguments: &[&str], within: &Path) -> Vec<u8> {
    let output = Command::new(program).args(arguments).current_dir(within).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// The release of the installer's kernel, out of its header (Documentation/arch/x86/boot.rst: kernel_version).
fn release() -> String {
    let kernel = fs::read(netboot("linux")).unwrap();
    let at = usize::from(u16::from_le_bytes([kernel[0x20e], kernel[0x20f]])) + 0x200;
    let text = kernel[at..].split(|byte| *byte == b' ').next().unwrap();
    String::from_utf8(text.to_vec()).unwrap()
}

/// Modules of the same kernel, out of the package that installed systems have.
fn modules(release: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("modules-{release}"));
    let inside = |module: &str| format!("./lib/modules/{release}/kernel/{module}");
    if !MODULES.iter().all(|module| folder.join(inside(module)).exists()) {
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        run("apt-get", &["download", &format!("linux-image-{release}")], &folder);
        let wanted = MODULES.map(inside).join(" ");
        run("sh", &["-c", &format!("dpkg-deb --fsys-tarfile *.deb | tar x {wanted} && rm *.deb")], &folder);
    }
    folder
}

/// A mirror of one package, and the system that it writes.
fn make_mirror(case: &Case) -> PathBuf {
    let root = case.state.root().join("mirror");
    let (package, lists) = (root.join("package"), root.join("debian/dists/bookworm/main"));
    let release = release();
    let server = format!("http://{}:{MIRROR_PORT}", case.config.address.ip());
    for folder in
        [&package.join("DEBIAN"), &lists.join("debian-installer/binary-amd64"), &lists.join("binary-amd64")]
    {
        fs::create_dir_all(folder).unwrap();
    }
    run("cp", &["-r", &format!("{}/lib", modules(&release).display()), "package/"], &root);
    // With the kernel's release it counts as the modules without which the installer would not go on.
    let control = format!(
        "Package: {PACKAGE}\nVersion: 1\nArchitecture: amd64\nSection: debian-installer\nPriority: standard\n\
         Maintainer: the lab <lab@example.org>\nKernel-Version: {release}\nInstaller-Menu-Item: 7000\n\
         Description: writes a small system to the disk\n"
    );
    fs::write(package.join("DEBIAN/control"), &control).unwrap();
    let postinst = package.join("DEBIAN/postinst");
    fs::write(&postinst, POSTINST.replace("SERVER", &server)).unwrap();
    run("chmod", &["755", "package/DEBIAN/postinst"], &root);
    run("dpkg-deb", &["--root-owner-group", "-b", "package", &format!("debian/{PACKAGE}.udeb")], &root);
    let size = |path: &Path| fs::metadata(path).unwrap().len();
    let sum = |tool: &str, path: &str| {
        let told = String::from_utf8(run(tool, &[path], &root)).unwrap();
        told.split(' ').next().unwrap().to_owned()
    };
    let udeb = format!("debian/{PACKAGE}.udeb");
    let packages = format!(
        "{control}Filename: {PACKAGE}.udeb\nSize: {}\nMD5sum: {}\nSHA256: {}\n\n",
        size(&root.join(&udeb)),
        sum("md5sum", &udeb),
        sum("sha256sum", &udeb)
    );
    let list = "main/debian-installer/binary-amd64/Packages";
    fs::write(root.join("debian/dists/bookworm").join(list), packages).unwrap();
    fs::write(
        lists.join("binary-amd64/Release"),
        "Archive: oldstable\nComponent: main\nArchitecture: amd64\n",
    )
    .unwrap();
    let path = format!("debian/dists/bookworm/{list}");
    let index = format!(
        "Origin: lab\nSuite: oldstable\nCodename: bookworm\nArchitectures: amd64\nComponents: main\nSHA256:\n {} {} {list}\n",
        sum("sha256sum", &path),
        size(&root.join(&path))
    );
    fs::write(root.join("debian/dists/bookworm/Release"), index).unwrap();

    let state = images().display().to_string();
    let program = farrier().display().to_string();
    run(&program, &["image", "--state", &state, "build", "small", "--output", "small.raw"], &root);
    run("gzip", &["-1", "small.raw"], &root);
    root
}

const POSTINST: &str = "#!/bin/sh\n\
    set -e\n\
    . /usr/share/debconf/confmodule\n\
    exec >&2\n\
    depmod -a\n\
    modprobe virtio_blk\n\
    modprobe ext4\n\
    update-dev --settle\n\
    wget -q -O - SERVER/small.raw.gz | zcat | dd of=/dev/vda bs=1048576\n\
    sync\n\
    blockdev --rereadpt /dev/vda\n\
    update-dev --settle\n\
    mkdir -p /target\n\
    for part in /dev/vda?*; do mount -t ext4 $part /target && break; done\n\
    mount | grep ' /target '\n\
    preseed_command preseed/late_command\n\
    umount /target\n\
    sync\n\
    reboot\n";

/// Serves the files below a folder for as long as the test runs, a request a connection.
fn serve(listener: TcpListener, root: PathBuf) {
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // Who hangs up asks again.
            let _ = answer(stream, &root);
        }
    });
}

fn answer(stream: TcpStream, root: &Path) -> io::Result<()> {
    let mut answers = stream.try_clone()?;
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    for header in lines {
        if header?.is_empty() {
            break;
        }
    }
    let path = request.split(' ').nth(1).unwrap_or_default();
    let file = root.join(path.trim_start_matches('/'));
    if path.contains("..") || !file.is_file() {
        return write!(answers, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    }
    let mut file = File::open(file)?;
    let length = file.metadata()?.len();
    write!(answers, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")?;
    io::copy(&mut file, &mut answers).map(drop)
}

/// A listener belongs to the namespace that its thread was in when it was made.
fn listen_inside(case: &Case, address: Ipv4Addr) -> TcpListener {
    let supervisor = case.lab().run_record().unwrap().supervisor.pid;
    let listen = move || {
        let namespace = File::open(format!("/proc/{supervisor}/ns/net")).unwrap();
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        TcpListener::bind((address, MIRROR_PORT)).unwrap()
    };
    thread::spawn(listen).join().unwrap()
}
