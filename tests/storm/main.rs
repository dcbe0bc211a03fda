//! `farrier storm` against our appliance, against dnsmasq, and against nobody.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

const FARRIER: &str = env!("CARGO_BIN_EXE_farrier");

/// The storm in a lab of its own; its report.
fn storm(state: &Path, arguments: &[&str]) -> Value {
    let output = Command::new(FARRIER)
        .args(["--json", "storm", "--state"])
        .arg(state)
        .args(["--kernel", "256", "--ramdisk", "300"])
        .args(arguments)
        .output()
        .expect("farrier starts");
    let log = fs::read_to_string(state.join("appliance.log")).unwrap_or_default();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success(),
        "{said}{}\n--- what the appliance said ---\n{log}",
        String::from_utf8_lossy(&output.stdout)
    );
    serde_json::from_slice(&output.stdout).expect("a report")
}

/// Runs a shell script in a network namespace with a bridge `br0` on which something may serve.
fn on_a_bridge(directory: &Path, script: &str) -> Output {
    let mut command = Command::new("unshare");
    if !nix::unistd::Uid::effective().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    // `--kill-child` takes the whole of it down with this process, however it ends.
    command.args(["--net", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-ec"]);
    let bridge = "ip link set lo up\n\
                  ip link add br0 type bridge forward_delay 0 stp_state 0\n\
                  ip addr add 192.168.79.1/24 dev br0\n\
                  ip link set br0 up\n";
    command
        .arg(format!("{bridge}{script}"))
        .current_dir(directory)
        .output()
        .expect("unshare is part of util-linux")
}

fn stage<'a>(report: &'a Value, name: &str) -> &'a Value {
    let stages = report["stages"].as_array().expect("stages");
    stages.iter().find(|stage| stage["stage"] == name).unwrap_or_else(|| panic!("no stage {name}: {report}"))
}

#[test]
fn every_machine_of_every_firmware_enrolls() {
    let directory = tempfile::tempdir().unwrap();
    let report = storm(directory.path(), &["--nodes", "9"]);
    assert_eq!((report["completed"].as_u64(), report["lost"].as_u64()), (Some(9), Some(0)));
    assert_eq!(report["address_conflicts"], 0);
    for name in
        ["firmware-dhcp", "loader", "ipxe-dhcp", "script", "kernel", "ramdisk", "agent-dhcp", "enroll"]
    {
        assert_eq!(stage(&report, name)["count"], 9, "{name}");
    }
    // Three conversations each, OFFER and ACK.
    assert_eq!(report["dhcp"]["reply"]["count"], 9 * 6);
    assert!(report["downloaded_bytes"].as_u64() > Some(9 * 556 * 1024), "{report}");
    assert!(report["server"]["peak_memory_bytes"].as_u64() > Some(1 << 20));
}

#[test]
fn a_lossy_link_with_strangers_costs_resends_and_no_registered_machine() {
    let directory = tempfile::tempdir().unwrap();
    let report = storm(
        directory.path(),
        &[
            "--nodes",
            "6",
            "--profile",
            "bios",
            "--loss",
            "0.1",
            "--until",
            "script",
            "--strangers",
            "50",
            "--registered",
        ],
    );
    assert_eq!(report["completed"], 6, "{report}");
    assert!(report["tftp_resends"].as_u64() > Some(0), "{report}");
    assert!(report["strangers"].as_u64() > Some(50), "{report}");
}

#[test]
fn any_server_can_be_stormed() {
    let directory = tempfile::tempdir().unwrap();
    let tftp = directory.path().join("tftp");
    fs::create_dir(&tftp).unwrap();
    fs::write(tftp.join("undionly.kpxe"), vec![7; 70_000]).unwrap();
    fs::write(tftp.join("boot.ipxe"), "#!ipxe\nkernel http://192.168.79.1/vmlinuz\nboot\n").unwrap();
    let script = format!(
        "dnsmasq --no-daemon --conf-file=/dev/null --user=root --port=0 --interface=br0 --bind-interfaces \
         --dhcp-range=192.168.79.10,192.168.79.200 --dhcp-leasefile=leases --pid-file=pid \
         --dhcp-match=set:ipxe,175 --dhcp-boot=tag:!ipxe,undionly.kpxe --dhcp-boot=tag:ipxe,boot.ipxe \
         --enable-tftp --tftp-root={} 2>dnsmasq.log &\n\
         until grep -q started dnsmasq.log; do sleep 0.05; done\n\
         {FARRIER} --json storm --bridge br0 --nodes 4 --profile bios --until script",
        tftp.display()
    );
    let output = on_a_bridge(directory.path(), &script);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stdout));
    let report: Value = serde_json::from_slice(&output.stdout).expect("a report");
    assert_eq!(report["completed"], 4);
    assert!(report["server"].is_null(), "a foreign server is not looked into");
}

#[test]
fn machines_that_nobody_serves_are_lost_with_their_reason() {
    let directory = tempfile::tempdir().unwrap();
    let script = format!("{FARRIER} --json storm --bridge br0 --nodes 2 --patience 1s --over 1ms");
    let output = on_a_bridge(directory.path(), &script);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).expect("a report");
    assert_eq!(report["losses"][0]["reason"], "the storm was over first");
    assert_eq!(report["losses"][0]["count"], 2);
    let output = on_a_bridge(directory.path(), &format!("{FARRIER} storm --bridge br1 --nodes 1"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("no cable can be plugged into bridge `br1`"), "{said}");
}
