//! Proof by strace that each ACK waited for the disk.
//!
//! The trace is read in the order strace wrote it. A REQUEST counts as received when the call that brought it has
//! ended; an ACK as sent when its call begins. Between the two an `fdatasync` of the store's log must both begin and
//! end. A call strace cuts in two (`<unfinished ...>`, `resumed`) begins at the first line and ends at the second.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command};

use farrier::net::sys;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::server::{Kind, Start};

/// The options of a REQUEST and of an ACK begin here; what strace shows of a message reaches further.
const SHOWN: &str = "320";

pub struct Traced {
    strace: Child,
}

pub fn under_strace(start: &Start<'_>, trace: &Path) -> Traced {
    let server = start.command(Kind::Farrier);
    let mut command = Command::new("strace");
    command.args([
        "-f",
        "-v",
        "-y",
        "-xx",
        "-s",
        SHOWN,
        "-e",
        "trace=fdatasync,fsync,recvmmsg,sendmmsg,sendmsg,sendto",
    ]);
    command.arg("-o").arg(trace);
    // What is traced goes on when its tracer is killed, unless it asks for the same end.
    command.args(["setpriv", "--pdeathsig", "KILL", "--"]).arg(server.get_program()).args(server.get_args());
    let log = File::create(trace.with_extension("log")).expect("a log");
    command.stdout(log.try_clone().expect("a log")).stderr(log);
    let strace = sys::die_with_parent(&mut command).spawn().expect("strace (package strace) starts");
    Traced { strace }
}

/// Stops the server; strace ends with it.
pub fn stop(mut traced: Traced) {
    let pid = traced.strace.id();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    for child in children.split_whitespace().filter_map(|child| child.parse().ok()) {
        let _ = kill(Pid::from_raw(child), Signal::SIGTERM);
    }
    let _ = traced.strace.wait();
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub acks: usize,
    /// ACKs with a whole sync between their REQUEST and them.
    pub synced: usize,
    pub syncs: usize,
}

/// Judges a trace.
pub fn check(trace: &str) -> Verdict {
    let mut verdict = Verdict::default();
    // xid → line at which its REQUEST had arrived.
    let mut requests: HashMap<u32, usize> = HashMap::new();
    // Thread → line at which its sync began.
    let mut syncing: HashMap<&str, usize> = HashMap::new();
    // Thread → `synced_from` when its send began.
    let mut sending: HashMap<&str, Option<usize>> = HashMap::new();
    // Begin of the sync that began last, of those that have ended.
    let mut synced_from: Option<usize> = None;
    for (number, line) in trace.lines().enumerate() {
        let Some((thread, call)) = line.split_once(char::is_whitespace) else { continue };
        let call = call.trim_start();
        if call.starts_with("fdatasync(") || call.starts_with("fsync(") {
            if !is_of_log(call) {
                continue;
            }
            verdict.syncs += 1;
            if call.contains("<unfinished") {
                syncing.insert(thread, number);
            } else if call.ends_with("= 0") {
                synced_from = synced_from.max(Some(number));
            }
        } else if call.starts_with("<... fdatasync resumed") || call.starts_with("<... fsync resumed") {
            if let Some(began) = syncing.remove(thread).filter(|_| call.ends_with("= 0")) {
                synced_from = synced_from.max(Some(began));
            }
        } else if call.contains("recvmmsg") {
            for (xid, _) in messages(call).into_iter().filter(|(_, kind)| *kind == 3) {
                requests.insert(xid, number);
            }
        } else if call.starts_with("send") || (call.starts_with("<... send") && call.contains(" resumed")) {
            // A call that was cut in two began at its first line, wherever strace shows the messages.
            let synced_then = sending.remove(thread).unwrap_or(synced_from);
            if call.contains("<unfinished") {
                sending.insert(thread, synced_then);
            }
            for (xid, _) in messages(call).into_iter().filter(|(_, kind)| *kind == 5) {
                verdict.acks += 1;
                let arrived = requests.get(&xid).copied();
                verdict.synced += usize::from(arrived.is_some() && synced_then > arrived);
            }
        }
    }
    verdict
}

/// `-xx` writes paths as hexadecimal, too.
fn is_of_log(call: &str) -> bool {
    const NAME: &str = "-wal";
    let hexadecimal: String = NAME.bytes().map(|byte| format!("\\x{byte:02x}")).collect();
    call.contains(NAME) || call.contains(&hexadecimal)
}

/// (xid, message type) of each DHCP message among the call's buffers.
fn messages(call: &str) -> Vec<(u32, u8)> {
    call.split('"')
        .skip(1)
        .step_by(2)
        .filter_map(|text| {
            let bytes: Vec<u8> = text
                .split("\\x")
                .skip(1)
                .filter_map(|digits| u8::from_str_radix(digits.get(..2)?, 16).ok())
                .collect();
            let [53, 1, kind] = *bytes.get(240..243)? else { return None };
            Some((u32::from_be_bytes(bytes.get(4..8)?.try_into().ok()?), kind))
        })
        .collect()
}
