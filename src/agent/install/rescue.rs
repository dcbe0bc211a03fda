//! Standing by for an operator: a shell on the console, and one by ssh for whoever has the key.
//!
//! No password opens anything. The ssh server is an optional part of the ramdisk (`ssh` in `images/deploy.toml`);
//! without it the console is what there is.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::mount::{MsFlags, mount};

use crate::agent::install::{Achieved, Fault, Ground, Halt, Outcome, until_answered};
use crate::agent::supervisor;
use crate::node::install::task::AgentTask;

/// Where the builder puts the ssh server.
pub const SSH_SERVER: &str = "/usr/sbin/dropbear";
/// A line of `authorized_keys`; a long RSA key has 800 letters.
const KEY_MAX: usize = 8 * 1024;
const KEYS_MAX: usize = 64;

pub(super) fn run(ground: &Ground, task: &AgentTask, keys: &[String]) -> Result<Achieved, Halt> {
    until_answered(ground, "begin", || ground.calls.begin(task.intent, &[]))?;
    let fault = |what: String| Fault::Rescue { what };
    let keys = authorized_keys(keys);
    write_files(ground.root, &keys).map_err(|error| fault(format!("writing its files: {error}")))?;
    supervisor::spawn_shell(ground.console);
    if keys.is_empty() {
        ground.console.say("rescue: no ssh key was given; the shell on this console is what there is");
    } else if ground.root.join(SSH_SERVER.trim_start_matches('/')).exists() {
        start_ssh().map_err(|error| fault(format!("starting {SSH_SERVER}: {error}")))?;
        ground.console.say("rescue: `ssh root@` this machine's address, with the operator's key");
    } else {
        ground.console.say(
            "rescue: this ramdisk has no ssh server (`ssh = true` in images/deploy.toml puts one in); the shell on \
             this console is what there is",
        );
    }
    Ok(Achieved { disks: Vec::new(), bytes: 0, written: 0, next: Outcome::Stay })
}

/// Lines that are one line each.
fn authorized_keys(keys: &[String]) -> String {
    keys.iter()
        .map(|key| key.trim())
        .filter(|key| !key.is_empty() && key.len() <= KEY_MAX && !key.chars().any(char::is_control))
        .take(KEYS_MAX)
        .flat_map(|key| [key, "\n"])
        .collect()
}

fn write_files(root: &Path, keys: &str) -> io::Result<()> {
    let put = |name: &str, mode: u32, text: &str| {
        let path = root.join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, Permissions::from_mode(mode))
    };
    for directory in ["etc/dropbear", "root/.ssh", "dev/pts"] {
        fs::create_dir_all(root.join(directory))?;
    }
    for directory in ["root", "root/.ssh"] {
        fs::set_permissions(root.join(directory), Permissions::from_mode(0o700))?;
    }
    // `*` is no password's hash.
    put("etc/passwd", 0o644, "root:*:0:0:root:/root:/bin/sh\n")?;
    put("etc/group", 0o644, "root:x:0:\n")?;
    put("etc/shells", 0o644, "/bin/sh\n")?;
    put("root/.ssh/authorized_keys", 0o600, keys)
}

fn start_ssh() -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    // Missing only where it was mounted already; a terminal that cannot be had shows at the first login.
    let _ = mount(Some("devpts"), "/dev/pts", Some("devpts"), flags, Some("mode=0620,ptmxmode=0666"));
    // Host keys are made when first needed (-R); no password (-s), no forwarding (-j, -k).
    Command::new(SSH_SERVER)
        .args(["-R", "-s", "-j", "-k", "-F", "-p", "22"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // The agent may be restarted; whoever is logged in stays.
        .process_group(0)
        .spawn()
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_lines_become_keys_and_no_password_opens() {
        let root = tempfile::tempdir().unwrap();
        let keys = authorized_keys(&[
            " ssh-ed25519 AAAA me ".to_owned(),
            "ssh-rsa BBBB\ncommand=\"x\" ssh-rsa CCCC".to_owned(),
            String::new(),
        ]);
        assert_eq!(keys, "ssh-ed25519 AAAA me\n");
        write_files(root.path(), &keys).unwrap();
        let file = root.path().join("root/.ssh/authorized_keys");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_to_string(file).unwrap(), keys);
        assert!(fs::read_to_string(root.path().join("etc/passwd")).unwrap().starts_with("root:*:0:0:"));
    }
}
