//! What is killed leaves nothing behind, and what it was doing goes on.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use farrier::lab::appliance;
use farrier::lab::config::LabFirmware;
use farrier::lab::launch;
use farrier::lab::process::{self, ProcessId};
use farrier::lab::state::{RunRecord, StateDir};
use farrier::node::timeline::Stage;
use nix::sys::signal::Signal;

use crate::support::{BOOTS_WITHIN, Case, config, farrier};

const ENDS_WITHIN: Duration = Duration::from_secs(10);

/// The supervisor and everything it started.
fn processes(record: &RunRecord) -> Vec<ProcessId> {
    let children = record.programs.iter().filter_map(|program| program.process);
    children.chain([record.supervisor]).collect()
}

fn assert_nothing_runs(record: &RunRecord, before: &[ProcessId]) {
    for process in before {
        assert!(process.wait_ended(ENDS_WITHIN), "process {} is still there", process.pid);
    }
    // One that was being started in that moment is in no record yet; it must go as well.
    for late in process::in_namespace(record.namespace).into_iter().filter_map(ProcessId::of) {
        let program = fs::read_to_string(format!("/proc/{}/cmdline", late.pid)).unwrap_or_default();
        assert!(late.wait_ended(ENDS_WITHIN), "process {} keeps the namespace: {program:?}", late.pid);
    }
    let left = process::in_namespace(record.namespace);
    assert!(left.is_empty(), "processes {left:?} keep the namespace");
}

#[test]
fn h_05_a_machine_enrolls_although_the_appliance_is_killed_under_it() {
    let firmware = [LabFirmware::Bios, LabFirmware::UefiHttp];
    let case = Case::new("appliance-killed", config(&firmware, "")).start().power_on();
    let bios = case.machine(LabFirmware::Bios);
    let (before, _) = case.await_node(bios, "ramdisk fetched", BOOTS_WITHIN, |_, boot| {
        boot.times.contains_key(&Stage::Ramdisk)
    });
    let record = case.lab().run_record().unwrap();
    let killed = record.programs.iter().find(|program| program.name == appliance::NAME).unwrap();
    killed.process.unwrap().signal(Signal::SIGKILL).unwrap();

    let mut addresses = Vec::new();
    for machine in case.machines() {
        let (node, _) = case.await_enrolled(machine);
        addresses.push(node.summary.ports[0].address);
    }
    assert_eq!(addresses[0], before.summary.ports[0].address, "an acknowledged address survives");
    assert_ne!(addresses[0], addresses[1]);
    let record = case.lab().run_record().unwrap();
    let restarted = record.programs.iter().find(|program| program.name == appliance::NAME).unwrap();
    assert_eq!(restarted.starts, 2);
}

#[test]
fn a_killed_supervisor_leaves_nothing() {
    let mut case = Case::new("supervisor-killed", config(&[LabFirmware::Bios], "")).start().power_on();
    let record = case.lab().run_record().unwrap();
    let running = processes(&record);
    assert_eq!(running.len(), 4, "supervisor, capture, appliance and machine: {record:?}");
    assert!(running.iter().all(|process| process.is_alive()));
    record.supervisor.signal(Signal::SIGKILL).unwrap();
    assert_nothing_runs(&record, &running);

    // What remains is files, and the next one to come removes those that lie.
    assert!(case.state.run_record().exists());
    launch::end(&case.state).unwrap();
    assert!(!case.state.run_record().exists() && !case.state.operator_socket().exists());
    drop(case.lab.take());
    drop(case.start());
}

fn lab_command(state: &Path, arguments: &[&str]) -> Output {
    let output = Command::new(farrier())
        .args(arguments)
        .arg("--state")
        .arg(state)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    output
}

#[test]
fn the_lab_goes_up_and_down_by_command() {
    let case = Case::new("up-and-down", config(&[LabFirmware::Bios], ""));
    let root = case.state.root();
    let file = root.join("lab.toml");
    let one = "[lab]\noperator = '127.0.0.1:0'\n[[machine]]\nname = 'a'\nfirmware = 'bios'\nmac = '52:54:00:00:02:01'\n";
    fs::write(&file, one).unwrap();
    lab_command(root, &["lab", "up", "--config", file.to_str().unwrap()]);
    let record = case.state.read_run_record().unwrap().unwrap();
    let running = processes(&record);

    let status: serde_json::Value =
        serde_json::from_slice(&lab_command(root, &["--json", "lab", "status"]).stdout).unwrap();
    assert_eq!(status["machines"][0]["power"], "on", "{status}");
    lab_command(root, &["lab", "power", "a", "off"]);
    let text = String::from_utf8(lab_command(root, &["lab", "status"]).stdout).unwrap();
    assert!(text.contains("off"), "{text}");
    lab_command(root, &["lab", "power", "a", "on"]);
    lab_command(root, &["lab", "console", "a"]);

    // The operator's page is on the host's loopback, and a second lab does not start in the same place.
    let page = std::net::TcpStream::connect(record.operator.unwrap());
    assert!(page.is_ok(), "{page:?}");
    let again = Command::new(farrier()).args(["lab", "up", "--state"]).arg(root).output().unwrap();
    assert!(!again.status.success() && String::from_utf8_lossy(&again.stderr).contains("runs in"));

    lab_command(root, &["lab", "down"]);
    assert_nothing_runs(&record, &running);
    let text = String::from_utf8(lab_command(root, &["lab", "down"]).stdout).unwrap();
    assert!(text.contains("no lab was running"), "{text}");
}

/// Waits for the demo's lab to stand, sends the signal, and expects nothing to be left.
fn demo_ended_by(name: &'static str, signal: Signal) {
    let case = Case::new(name, config(&[LabFirmware::Bios], ""));
    let state: &StateDir = &case.state;
    let mut demo = Command::new(farrier())
        .args(["demo", "--state"])
        .arg(state.root())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap();
    let deadline = Instant::now() + BOOTS_WITHIN;
    let record = loop {
        match state.read_run_record().unwrap() {
            Some(record) if record.programs.iter().all(|program| program.process.is_some()) => break record,
            _ => assert!(Instant::now() < deadline, "the demo's lab does not start"),
        }
        process::look_again();
    };
    let running = processes(&record);
    ProcessId::of(demo.id()).unwrap().signal(signal).unwrap();
    demo.wait().unwrap();
    assert_nothing_runs(&record, &running);
    launch::end(state).unwrap();
}

#[test]
fn an_interrupted_demo_leaves_nothing() {
    demo_ended_by("demo-interrupted", Signal::SIGINT);
}

#[test]
fn a_killed_demo_leaves_nothing() {
    demo_ended_by("demo-killed", Signal::SIGKILL);
}
