//! Process 1: mounts, starts the agent proper, reaps every orphan, restarts the agent if it dies. Never ends.
//!
//! The kernel gives process 1 no default signal actions, so nothing short of a fault in these few lines can end it.
//! Whatever goes wrong in the agent, a panic included, is therefore survivable and visible on the console.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::Pid;

use crate::agent::backoff::pause;
use crate::agent::console::Console;
use crate::agent::{BUSYBOX, parameters};

/// Tells the second process that it is the agent proper.
pub const CHILD_ARGUMENT: &str = "--agent";

/// Between two starts of an agent that keeps dying: readable on the screen, and no busy loop.
const RESTART_PAUSE: Duration = Duration::from_secs(5);

const MOUNTS: &[(&str, &str, &str, &str)] = &[
    ("proc", "/proc", "proc", ""),
    ("sysfs", "/sys", "sysfs", ""),
    ("devtmpfs", "/dev", "devtmpfs", "mode=0755"),
    // Only a shell and the lease script write here; a runaway must not eat the machine's memory.
    ("tmpfs", "/run", "tmpfs", "mode=0755,size=16m"),
];

pub fn run() -> ExitCode {
    let failed: Vec<String> = MOUNTS.iter().filter_map(|mount| mount_one(mount).err()).collect();
    let console = Console::open(Path::new("/"));
    for failure in &failed {
        console.trouble("mounting", failure, "The kernel is not one farrier built a ramdisk for.");
    }
    if wants_shell() {
        console.say(format_args!("`{}` is on the kernel command line: opening a shell", parameters::SHELL));
        spawn_shell(&console);
    }
    let mut agent = spawn_agent(&console);
    loop {
        match wait() {
            Ok(status) if agent.is_some() && ended(status) == agent => {
                console.trouble(
                    "the agent",
                    &format!("farrier-agent ended unexpectedly: {status:?}"),
                    "It starts again now. If this repeats, keep the text above and report it.",
                );
                // The DHCP client it left behind; the next agent starts its own.
                let _ = agent.map(|group| killpg(group, Signal::SIGKILL));
                pause(RESTART_PAUSE);
                agent = spawn_agent(&console);
            }
            Ok(_) | Err(Errno::EINTR) => {}
            // No child is left, not even an agent: starting it failed before.
            Err(_) => {
                pause(RESTART_PAUSE);
                agent = spawn_agent(&console);
            }
        }
    }
}

fn mount_one(&(source, target, kind, options): &(&str, &str, &str, &str)) -> Result<(), String> {
    // Missing directories show as the mount's own error.
    let _ = fs::create_dir_all(target);
    let flags = MsFlags::MS_NOSUID | if kind == "devtmpfs" { MsFlags::empty() } else { MsFlags::MS_NODEV };
    match mount(Some(source), target, Some(kind), flags, Some(options)) {
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(errno) => Err(format!("{kind} on {target}: {}", errno.desc())),
    }
}

fn ended(status: WaitStatus) -> Option<Pid> {
    match status {
        WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _) => Some(pid),
        WaitStatus::Stopped(..)
        | WaitStatus::PtraceEvent(..)
        | WaitStatus::PtraceSyscall(_)
        | WaitStatus::Continued(_)
        | WaitStatus::StillAlive => None,
    }
}

fn spawn_agent(console: &Console) -> Option<Pid> {
    // Reaped by `wait` above, so the handle is not kept.
    let program = std::env::current_exe().unwrap_or_else(|_| "/init".into());
    // A process group of its own, so that all it started can be ended with it.
    match Command::new(program).arg(CHILD_ARGUMENT).env("PATH", "/bin").process_group(0).spawn() {
        Ok(child) => i32::try_from(child.id()).ok().map(Pid::from_raw),
        Err(error) => {
            console.trouble(
                "starting the agent",
                &error.to_string(),
                "The ramdisk is damaged: build it again.",
            );
            None
        }
    }
}

fn wants_shell() -> bool {
    fs::read_to_string("/proc/cmdline")
        .is_ok_and(|text| text.split_ascii_whitespace().any(|word| word == parameters::SHELL))
}

pub fn spawn_shell(console: &Console) {
    let line = "/bin/busybox --install -s /bin; exec setsid cttyhack sh";
    let shell = Command::new(BUSYBOX).args(["sh", "-c", line]).env("PATH", "/bin").spawn();
    if let Err(error) = shell {
        console.say(format_args!("no shell: {error}"));
    }
}
