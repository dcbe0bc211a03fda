//! The program inside the deploy ramdisk: finds the machine's hardware, calls home, waits for orders.
//!
//! It runs as `/init`. Two processes come of it: process 1 mounts the kernel's file systems, starts the agent proper
//! and from then on only reaps children and restarts the agent should it ever die; process 1 itself must not end,
//! or the kernel panics. The agent proper is a straight line of blocking steps:
//!
//! ```text
//!  parameters ──> drivers ──> port ──> lease ──> hello ──> inventory ──> heartbeat … order
//!  (cmdline)     (modalias)  (sysfs)  (udhcpc)  └──────────── HTTP, retried with backoff ──────┘
//! ```
//!
//! - [`parameters`]: what the boot script put on the kernel command line
//! - [`supervisor`]: process 1
//! - [`console`]: what a person at the machine's screen reads
//! - [`drivers`]: kernel modules, loaded when a device asks for them
//! - [`uevent`]: waiting for the kernel to announce devices
//! - [`lease`]: the port with our MAC, and its address
//! - [`calls`]: the appliance's HTTP interface; [`backoff`] says when to try again
//! - [`install`]: what a task does to the machine's disks
//! - [`session`]: hello, inventory, heartbeats, orders, tasks; [`keepsake`] is what a restarted agent goes on with
//! - [`collect`]: the inventory, read below any root so that tests read fixture trees

pub mod backoff;
pub mod calls;
pub mod collect;
pub mod console;
pub mod drivers;
pub mod install;
pub mod keepsake;
pub mod lease;
pub mod parameters;
pub mod session;
pub mod supervisor;
pub mod uevent;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

/// Where the builder puts the module index and the modules it names.
pub const MODULES_DIR: &str = "/lib/modules";
/// The script `udhcpc` runs; the builder puts it there.
pub const LEASE_SCRIPT: &str = "/lib/farrier/lease.sh";
pub const BUSYBOX: &str = "/bin/busybox";

/// The agent's `main`: process 1, the agent proper below it, or a tool that prints the inventory.
pub fn run(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    match arguments.next().as_deref().and_then(|argument| argument.to_str()) {
        Some("--inventory") => match serde_json::to_string_pretty(&collect::inventory(Path::new("/"))) {
            Ok(text) => {
                println!("{text}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("the inventory cannot be written as JSON: {error}");
                ExitCode::FAILURE
            }
        },
        Some(supervisor::CHILD_ARGUMENT) => session::run(),
        _ if std::process::id() == 1 => supervisor::run(),
        _ => {
            eprintln!(
                "farrier-agent is the /init of farrier's deploy ramdisk and runs as process 1.\n\
                 Elsewhere only `farrier-agent --inventory` is of use: it prints this machine's inventory as JSON."
            );
            ExitCode::from(2)
        }
    }
}
