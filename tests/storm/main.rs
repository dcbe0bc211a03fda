//! `farrier storm` against our appliance, against dnsmasq, and against nobody.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

/// The program under test: the release one if the environment names its directory, as `make test` does, else the one
/// built beside this test.
fn farrier() -> String {
    match std::env::var_os("FARRIER_BINARIES") {
        Some(directory) => std::path::Path::new(&directory).join("farrier").display().to_string(),
        None => env!("CARGO_BIN_EXE_farrier").to_owned(),
    }
}

/// The storm in a lab of its own; its report.
fn storm(state: &Path, arguments: &[&str]) -> Value {
    let output = Command::new(farrier())
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
fn r_10_every_machine_of_every_firmware_enrolls() {
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
            "--flood",
            "50",
            "--flood-seconds",
            "3",
            "--over",
            "1s",
            "--registered",
        ],
    );
    assert_eq!(report["completed"], 6, "{report}");
    assert!(report["tftp_resends"].as_u64() > Some(0), "{report}");
    assert_eq!(report["flood"]["sent"], 150, "{report}");
}

#[test]
fn the_signed_chain_loads_everything_by_tftp_and_enrolls() {
    let directory = tempfile::tempdir().unwrap();
    let report = storm(directory.path(), &["--nodes", "3", "--profile", "uefi-secure"]);
    assert_eq!(report["completed"], 3, "{report}");
    for name in ["firmware-dhcp", "loader", "script", "kernel", "ramdisk", "agent-dhcp", "enroll"] {
        assert_eq!(stage(&report, name)["count"], 3, "{name}");
    }
    // The firmware's conversation and the agent's: GRUB keeps the firmware's lease.
    assert_eq!(report["dhcp"]["reply"]["count"], 3 * 4);
    assert_eq!(report["given_up_transfers"], 0, "{report}");
    let log = fs::read_to_string(directory.path().join("appliance.log")).unwrap();
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn r_11_a_flood_of_strangers_holds_no_registered_machine_up_and_is_recovered_from() {
    let directory = tempfile::tempdir().unwrap();
    let report = storm(
        directory.path(),
        &[
            "--nodes",
            "20",
            "--profile",
            "bios",
            "--registered",
            "--flood",
            "2000",
            "--flood-seconds",
            "3",
            "--until",
            "script",
        ],
    );
    assert_eq!(report["completed"], 20, "{report}");
    let flood = &report["flood"];
    assert!(flood["sent"].as_u64() > Some(5000), "{report}");
    assert_eq!(flood["newcomers_served"], flood["newcomers"], "{report}");
    assert!(flood["recovery_secs"].as_f64() <= Some(5.0), "{report}");
    assert!(report["server"]["peak_memory_bytes"].as_u64() < Some(150 << 20), "{report}");
}

#[test]
fn the_same_seed_is_the_same_storm() {
    let farrier = farrier();
    let directory = tempfile::tempdir().unwrap();
    // Nobody serves: what the machines do is theirs alone.
    let storm = |seed: &str| {
        let script = format!(
            "{farrier} --json storm --bridge br0 --nodes 50 --seed {seed} --loss 0.1 --over 500ms --patience 600ms"
        );
        let output = on_a_bridge(directory.path(), &script);
        let report: Value = serde_json::from_slice(&output.stdout).expect("a report");
        // The first DISCOVERs that the seed does not lose, and the solicitations of nobody: to the frame.
        (report["schedule"].clone(), report["wire"]["packets_from_machines"].clone())
    };
    let (first, again, other) = (storm("7"), storm("7"), storm("8"));
    assert_eq!(first, again);
    assert_ne!(first.0, other.0);
    assert!(first.1.as_u64() > Some(30) && first.1.as_u64() < Some(50), "a tenth is lost: {first:?}");
}

#[test]
fn ctrl_c_prints_the_report_so_far() {
    let farrier = farrier();
    let directory = tempfile::tempdir().unwrap();
    let script = format!(
        "{farrier} --json storm --bridge br0 --nodes 5 --patience 60s --over 1ms >report & storm=$!\n\
         until ip link show master br0 | grep -q storm; do sleep 0.05; done\n\
         until ip -s link show master br0 | grep -A1 RX: | grep -q '[1-9]'; do sleep 0.05; done\n\
         kill -INT $storm; wait $storm && code=0 || code=$?; echo $code"
    );
    let output = on_a_bridge(directory.path(), &script);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "1", "{said}");
    assert!(said.contains("interrupted: 0 of 5 machines were through"), "{said}");
    let text = fs::read_to_string(directory.path().join("report")).unwrap();
    let report: Value = serde_json::from_str(&text).expect("a report");
    assert_eq!((&report["interrupted"], &report["lost"]), (&Value::Bool(true), &Value::from(5)));
    assert_eq!(report["losses"][0]["reason"], "the storm was interrupted first");
}

#[test]
fn a_bridge_that_leads_further_is_not_stormed() {
    let farrier = farrier();
    let directory = tempfile::tempdir().unwrap();
    let storm = |preparation: &str, bridge: &str| {
        let script = format!("{preparation}\n{farrier} storm --bridge {bridge} --nodes 1 --flood 10");
        let output = on_a_bridge(directory.path(), &script);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = storm("ip route add default via 192.168.79.9 dev br0", "br0");
    assert!(code == Some(2) && said.contains("the default route leaves by `br0`"), "{said}");
    let (code, said) = storm("ip link add dummy0 type veth peer name dummy1", "dummy0");
    assert!(code == Some(2) && said.contains("`dummy0` is not a bridge"), "{said}");
    let (code, said) = storm("", "br1");
    assert!(code == Some(2) && said.contains("there is no interface `br1` here"), "{said}");
}

/// What takes a port away from a bridge must not take the address of the server there along: machines that know it would ask
/// nobody, until they forget it half a minute later.
#[test]
fn a_storm_leaves_the_address_of_the_bridge_alone() {
    let farrier = farrier();
    let directory = tempfile::tempdir().unwrap();
    // The bridge has the address of its port, as every bridge that was given none.
    let script = format!(
        "ip link add port0 address fe:54:00:00:00:01 type veth peer name far0\n\
         ip link set port0 master br0 up\n\
         address() {{ ip -br link show br0 | awk '{{ print $3 }}'; }}\n\
         address\n\
         for storm in 1 2; do\n\
           {farrier} storm --bridge br0 --nodes 1 --patience 60s >report & storms=\"$storms $!\"\n\
         done\n\
         until [ $(ip -br link show master br0 | grep -c ^storm) = 2 ]; do sleep 0.05; done\n\
         address\n\
         kill -INT $storms\n\
         wait\n\
         while ip -br link show master br0 | grep -q ^storm; do sleep 0.05; done\n\
         address\n"
    );
    let output = on_a_bridge(directory.path(), &script);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        said.lines().collect::<Vec<_>>(),
        ["fe:54:00:00:00:01"; 3],
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Whoever had these addresses a moment ago.
#[test]
fn the_machines_of_a_second_storm_are_found_where_they_are() {
    let farrier = farrier();
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().display();
    // A bridge without a cable forgets whom it knew: `port0` is what other stations there are.
    let configuration = format!(
        "[network]\nbridge = \"br0\"\naddress = \"192.168.79.1/24\"\n\
         [operator]\nsocket = \"{home}/socket\"\nlisten = \"off\"\n[store]\npath = \"{home}/state\"\n\
         [boot.loaders]\nuefi-x64 = \"ipxe.efi\"\n"
    );
    fs::write(directory.path().join("farrier.toml"), configuration).unwrap();
    let script = format!(
        "ip link add port0 type veth peer name far0\n\
         ip link set far0 addrgenmode none up\n\
         ip link set port0 master br0 addrgenmode none up\n\
         {farrier} serve --config farrier.toml >serve.log 2>&1 & server=$!\n\
         until {farrier} --socket {home}/socket status >status 2>&1; do\n\
           kill -0 $server || {{ cat serve.log; exit 1; }}\n\
           sleep 0.05\n\
         done\n\
         for storm in 1 2; do\n\
           {farrier} --json storm --bridge br0 --nodes 6 --profile uefi-http --until script >report || cat serve.log report\n\
           while ip -br link show master br0 | grep -q ^storm; do sleep 0.05; done\n\
         done\n\
         cat report"
    );
    let output = on_a_bridge(directory.path(), &script);
    let said = String::from_utf8_lossy(&output.stdout);
    let report: Value = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
    assert_eq!(report["completed"], 6, "{report}");
}

#[test]
fn any_server_can_be_stormed() {
    let farrier = farrier();
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
         {farrier} --json storm --bridge br0 --nodes 4 --profile bios --until script",
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
    let farrier = farrier();
    let directory = tempfile::tempdir().unwrap();
    let script = format!("{farrier} --json storm --bridge br0 --nodes 2 --patience 1s --over 1ms");
    let output = on_a_bridge(directory.path(), &script);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).expect("a report");
    assert_eq!(report["losses"][0]["reason"], "the storm was over first");
    assert_eq!(report["losses"][0]["count"], 2);
}

#[test]
fn a_command_line_that_makes_no_sense_is_told_so() {
    for arguments in [
        &["--nodes", "0"][..],
        &["--loss", "1.5"],
        &["--profile", "amiga"],
        &["--flood", "0"],
        &["--flood-seconds", "5"],
        &["--gateway", "10.0.0.1"],
    ] {
        let output = Command::new(farrier()).arg("storm").args(arguments).output().expect("farrier starts");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
}
