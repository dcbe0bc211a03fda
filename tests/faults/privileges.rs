//! S-14 and S-15: who the running appliance is, what it may do, and that it never starts a program.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use crate::support::{TestBed, eventually, farrier_program, in_namespace, run};

/// A field of /proc/PID/status.
fn field(pid: i32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process");
    let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
    line.unwrap_or_else(|| panic!("{name} in {status}")).trim().to_owned()
}

/// linux/capability.h
const CAP_NET_ADMIN: u64 = 1 << 12;
const CAP_NET_RAW: u64 = 1 << 13;

/// Entries of this folder of /proc that are numbers.
fn numbers_in(folder: &str) -> Vec<i32> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder}: {error}")).flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Every process whose parent this one is.
fn children(parent: i32) -> Vec<i32> {
    let is_child = |pid: &i32| {
        // One that ended meanwhile is none.
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line == format!("PPid:\t{parent}"))
    };
    numbers_in("/proc").into_iter().filter(is_child).collect()
}

/// This thread has that one capability, can get no other, and cannot make every system call.
fn assert_bare(thread: i32, capability: u64) {
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        let mask = u64::from_str_radix(&field(thread, set), 16).expect("a mask");
        assert_eq!(mask, capability, "{set} of thread {thread}");
    }
    for set in ["CapInh", "CapAmb"] {
        assert_eq!(u64::from_str_radix(&field(thread, set), 16), Ok(0), "{set}");
    }
    assert_eq!(field(thread, "NoNewPrivs"), "1");
    assert_eq!(field(thread, "Seccomp"), "2", "a filter");
}

/// The one process that is left behind, to take 169.254.169.254 away in the end.
fn assert_keeper_is_bare(bed: &TestBed) {
    let made = children(bed.server_pid());
    let [keeper] = made[..] else { panic!("one child, not {made:?}") };
    assert_eq!(children(keeper), Vec::<i32>::new());
    assert_eq!(field(keeper, "Threads"), "1");
    assert_bare(keeper, CAP_NET_ADMIN);
    for who in ["Uid", "Gid", "Groups"] {
        assert_eq!(field(keeper, who), field(bed.server_pid(), who), "{who}: the appliance's own");
    }
    // What it waits for, and what it will say its one thing by; no file, no log, no socket of the bridge's.
    let open = format!("/proc/{keeper}/fd");
    let open: Vec<_> =
        numbers_in(&open).into_iter().map(|file| fs::read_link(format!("{open}/{file}"))).collect();
    let is_socket = |target: &std::io::Result<std::path::PathBuf>| {
        target.as_ref().is_ok_and(|target| target.to_string_lossy().starts_with("socket:["))
    };
    assert!(open.len() == 2 && open.iter().all(is_socket), "{open:?}");
}

fn assert_confined(bed: &TestBed) {
    // Every thread, for each has its own.
    for thread in numbers_in(&format!("/proc/{}/task", bed.server_pid())) {
        assert_bare(thread, CAP_NET_RAW);
    }
    assert_keeper_is_bare(bed);
    let process = &bed.farrier_json(&["status"])["process"];
    assert_eq!(process["capabilities"], serde_json::json!(["CAP_NET_RAW"]));
    assert_eq!(process["no_new_privileges"], true);
    assert_eq!(process["seccomp"], true);
    assert!(!has_landlock() || process["landlock"] != "off", "{process}");
    assert!(bed.log().contains("privileges given up"), "{}", bed.log());
}

/// Whether the kernel takes Landlock's rules at all.
fn has_landlock() -> bool {
    use landlock::{AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr};
    let rules = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    rules.handle_access(AccessFs::ReadFile).and_then(Ruleset::create).is_ok()
}

fn mode(path: &std::path::Path) -> u32 {
    fs::symlink_metadata(path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .permissions()
        .mode()
        & 0o777
}

#[test]
fn s_14_the_appliance_keeps_one_capability_and_serves_on() {
    in_namespace("privileges::s_14_the_appliance_keeps_one_capability_and_serves_on", || {
        let mut bed = TestBed::new("");
        fs::create_dir(bed.state()).expect("a state directory");
        fs::set_permissions(bed.state(), fs::Permissions::from_mode(0o755)).expect("open to all");
        bed.publish("metal", b"kernel", b"ramdisk");
        bed.start_server();
        assert_confined(&bed);
        assert_eq!(mode(&bed.state()), 0o700);
        for file in ["farrier.db", "farrier.db-wal", "farrier.db-shm", "farrier.db.lock"] {
            assert_eq!(mode(&bed.state().join(file)), 0o600, "{file}");
        }
        // What it keeps is what a bridge takes that was deleted and made anew.
        let machine = bed.plug("02:00:00:00:09:01");
        let address = machine.boot_udhcpc();
        run("ip", &["link", "del", "br0"]);
        crate::support::add_bridge("br0", "192.168.77.2/24");
        run("ip", &["link", "set", "port1", "master", "br0"]);
        assert_eq!(machine.boot_udhcpc(), address);
        let fetched = eventually("HTTP is back", || {
            let output = machine.output(
                "curl",
                &["-s", "-o", "kernel", "-w", "%{http_code}", "http://192.168.77.2/nothing-here"],
            );
            (output.status.success()).then(|| String::from_utf8_lossy(&output.stdout).into_owned())
        });
        assert_eq!(fetched, "404");
        // And a changed configuration is read, beyond Landlock or not.
        bed.configure("[dhcp]\nlease = \"1h\"\n");
        bed.signal(nix::sys::signal::Signal::SIGHUP);
        eventually("reloaded", || bed.log().contains("configuration reloaded").then_some(()));
    });
}

#[test]
fn s_14_the_appliance_becomes_the_user_it_is_told() {
    in_namespace("privileges::s_14_the_appliance_becomes_the_user_it_is_told", || {
        let refused = |name: &str| {
            let bed = TestBed::new(&format!("[process]\nuser = \"{name}\"\n"));
            let output = Command::new(farrier_program())
                .args(["serve", "--config"])
                .arg(bed.path("farrier.toml"))
                .output()
                .expect("farrier starts");
            run("ip", &["link", "del", "br0"]);
            (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
        };
        let (code, told) = refused("no-such-user");
        assert!(code == Some(2) && told.contains("useradd"), "{told}");
        let maps = fs::read_to_string("/proc/self/uid_map").expect("the map of users");
        if maps.split_whitespace().nth(2) == Some("1") {
            // A namespace with one user: there is nobody else to become, and that is told.
            let (code, told) = refused("nobody");
            assert!(
                code == Some(2) && told.contains("cannot be taken on") || told.contains("cannot be given"),
                "{told}"
            );
            return;
        }
        let mut bed = TestBed::new("[process]\nuser = \"nobody\"\n");
        // Others have to get through to it.
        fs::set_permissions(bed.directory.path(), fs::Permissions::from_mode(0o755)).expect("open to all");
        bed.publish("metal", b"kernel", b"ramdisk");
        bed.start_server();
        assert_confined(&bed);
        let pid = bed.server_pid();
        let nobody = fs::metadata(bed.state()).expect("the state directory").uid();
        assert_ne!(nobody, 0);
        assert_eq!(field(pid, "Uid"), [nobody; 4].map(|uid| uid.to_string()).join("\t"));
        assert_eq!(field(pid, "Groups"), "");
        assert_eq!(mode(&bed.state()), 0o700);
        assert_eq!(fs::metadata(bed.state().join("farrier.db")).expect("the store").uid(), nobody);
        assert_eq!(bed.farrier_json(&["status"])["process"]["user"], "nobody");
        let machine = bed.plug("02:00:00:00:09:02");
        let address = machine.boot_udhcpc();
        // A second start finds everything its own.
        bed.kill_server();
        bed.start_server();
        assert_eq!(machine.boot_udhcpc(), address);
    });
}

#[test]
fn s_14_files_elsewhere_are_out_of_reach_whatever_their_modes_say() {
    in_namespace("privileges::s_14_files_elsewhere_are_out_of_reach_whatever_their_modes_say", || {
        let mut bed = TestBed::new("");
        let elsewhere = tempfile::tempdir().expect("another directory");
        let open_to_all = |path: &std::path::Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("open to all");
        };
        let (named, kept) = (bed.path("farrier.toml"), elsewhere.path().join("kept.toml"));
        fs::rename(&named, &kept).expect("it is moved");
        std::os::unix::fs::symlink(&kept, &named).expect("a link to it");
        open_to_all(elsewhere.path(), 0o755);
        open_to_all(&kept, 0o644);
        bed.publish("metal", b"kernel", b"ramdisk");
        // Nothing but Landlock is in the way: before it is on, the file is read.
        bed.start_server();
        bed.signal(nix::sys::signal::Signal::SIGHUP);
        let says = |words: &str| eventually(words, || bed.log().contains(words).then_some(()));
        if has_landlock() {
            says("configuration not reloaded");
            says("Permission denied");
        } else {
            says("configuration reloaded");
        }
        // A file of its own that is no link is read as ever.
        fs::remove_file(&named).expect("the link goes");
        fs::copy(&kept, &named).expect("a file again");
        bed.signal(nix::sys::signal::Signal::SIGHUP);
        eventually("reloaded", || bed.log().contains("configuration reloaded").then_some(()));
    });
}

#[test]
fn s_15_no_program_is_started_while_machines_are_served() {
    in_namespace("privileges::s_15_no_program_is_started_while_machines_are_served", || {
        let mut bed = TestBed::new("");
        bed.publish("metal", b"kernel", b"ramdisk");
        bed.start_server();
        let trace = bed.path("trace");
        let strace = Command::new("strace")
            .args(["-f", "-e", "trace=execve,execveat,fork,vfork,clone,clone3", "-o"])
            .arg(&trace)
            .args(["-p", &bed.server_pid().to_string()])
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("strace (.ci/packages.txt)");
        let mut strace = crate::support::Process(strace);
        eventually("strace is attached", || (field(bed.server_pid(), "TracerPid") != "0").then_some(()));
        let machine = bed.plug("02:00:00:00:09:03");
        machine.boot_udhcpc();
        machine.output("curl", &["-s", "http://192.168.77.2/boot.ipxe"]);
        machine.output("busybox", &["tftp", "-g", "-r", "undionly.kpxe", "192.168.77.2"]);
        bed.farrier_json(&["node", "list"]);
        bed.configure("[dhcp]\nlease = \"1h\"\n");
        bed.signal(nix::sys::signal::Signal::SIGHUP);
        eventually("reloaded", || bed.log().contains("configuration reloaded").then_some(()));
        bed.signal(nix::sys::signal::Signal::SIGTERM);
        bed.wait_server();
        let _ = strace.0.wait();
        let traced = fs::read_to_string(&trace).expect("a trace");
        assert!(traced.contains("exited with 0"), "{traced}");
        for line in traced.lines() {
            assert!(!line.contains("exec") && !line.contains("fork"), "{line}");
            assert!(!line.contains("clone(") || line.contains("CLONE_THREAD"), "{line}");
        }
    });
}
