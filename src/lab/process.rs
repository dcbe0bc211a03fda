//! Processes we started earlier, perhaps in another run: known by id *and* start time, so that a recycled id is
//! never mistaken for ours and never signalled.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// Between two looks at what is about to change.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    pub pid: u32,
    /// Clock ticks between the machine's start and the process's (`/proc/<pid>/stat`, field 22).
    pub started: u64,
}

impl ProcessId {
    pub fn of(pid: u32) -> Option<ProcessId> {
        stat(pid).map(|stat| ProcessId { pid, started: stat.started })
    }

    /// True while it runs; a zombie has ended.
    pub fn is_alive(self) -> bool {
        stat(self.pid).is_some_and(|stat| stat.started == self.started && !matches!(stat.state, b'Z' | b'X'))
    }

    /// Sends a signal if it still is the process we know.
    pub fn signal(self, signal: Signal) -> Result<(), Errno> {
        if !self.is_alive() {
            return Err(Errno::ESRCH);
        }
        kill(Pid::from_raw(self.pid.cast_signed()), signal)
    }

    /// Waits until it has ended; false if it outlives the time-out.
    pub fn wait_ended(self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        while self.is_alive() {
            if Instant::now() >= deadline {
                return false;
            }
            look_again();
        }
        true
    }
}

/// Waits a moment, for conditions that nothing tells us of: the end of a process that is not our child, a socket that
/// another process is about to make. Always in a loop with a deadline.
#[expect(
    clippy::disallowed_methods,
    reason = "no event to wait for; every caller looks again until a deadline"
)]
pub fn look_again() {
    thread::sleep(LOOK_AGAIN);
}

struct Stat {
    state: u8,
    started: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// `pid (name) state ppid …`; the name may hold anything, parentheses and spaces included.
fn parse_stat(text: &str) -> Option<Stat> {
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    // `state` is field 3, start time field 22.
    let started = fields.nth(18)?.parse().ok()?;
    Some(Stat { state, started })
}

/// Ids of all processes in the network namespace with this inode, ours and foreign.
pub fn in_namespace(inode: u64) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let wanted = format!("net:[{inode}]");
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|link| link.as_os_str() == wanted.as_str())
        })
        .collect()
}

/// Inode of our own network namespace.
pub fn own_namespace() -> Option<u64> {
    let link = fs::read_link("/proc/self/ns/net").ok()?;
    link.to_str()?.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_known_by_more_than_its_number() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = ProcessId::of(child.id()).unwrap();
        assert!(process.is_alive());
        let recycled = ProcessId { started: process.started + 1, ..process };
        assert!(!recycled.is_alive());
        assert_eq!(recycled.signal(Signal::SIGKILL), Err(Errno::ESRCH));
        process.signal(Signal::SIGKILL).unwrap();
        assert!(process.wait_ended(Duration::from_secs(5)), "a zombie counts as ended");
        child.wait().unwrap();
    }

    #[test]
    fn a_name_with_parentheses_does_not_confuse() {
        let line = "7 (a) b (c)) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 1";
        let stat = parse_stat(line).unwrap();
        assert_eq!((stat.state, stat.started), (b'S', 4242));
        assert!(parse_stat("").is_none());
        assert!(parse_stat("7 (a").is_none());
    }

    #[test]
    fn we_are_in_our_own_namespace() {
        let inode = own_namespace().unwrap();
        assert!(in_namespace(inode).contains(&std::process::id()));
    }
}
