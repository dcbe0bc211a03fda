//! `farrier node deploy|clean|rescue|unrescue|release|abort`, and following how it goes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};

use super::client::Client;
use super::error::CommandError;
use super::json_text;
use super::node::{called, parse_reference, path};
use super::text::bytes;
use crate::metadata::document::USER_DATA_BYTES_MAX;
use crate::metadata::ssh_key::{ParseSshKeyError, SshKey};
use crate::node::install::disk_rule::DiskRule;
use crate::node::install::intent::{CleanMethod, Verb};
use crate::node::install::task::Progress;
use crate::operator::api::{CleanRequest, DeployRequest, NodeDetail, RescueRequest, TaskDetail, TaskPhase};

/// Agents tell their progress twice a second.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// A file of public keys is a few kilobytes.
const KEYS_FILE_MAX: u64 = 1024 * 1024;

#[derive(Debug, Args)]
pub struct DeployArgs {
    /// Name, MAC address, id or SMBIOS UUID
    #[arg(value_parser = parse_reference)]
    node: String,
    /// Disk image [default: the one deployed on this node last, or the installer that did it]
    #[arg(long, value_name = "NAME")]
    image: Option<String>,
    /// A distribution's installer does it: a boot profile with its kernel (see `farrier profile add`)
    #[arg(long, value_name = "PROFILE", conflicts_with_all = ["image", "disk", "wipe"])]
    installer: Option<String>,
    /// Which disk: `smallest`, `serial=…`, `path=…`, `size>=100G,rotational=no`, … [default: the smallest that fits]
    #[arg(long, value_name = "RULE")]
    disk: Option<DiskRule>,
    /// Overwrite the disk even if it carries data
    #[arg(long)]
    wipe: bool,
    /// Public key that may log in, or a file of such; may be repeated
    #[arg(long = "ssh-key", value_name = "KEY|FILE")]
    ssh_keys: Vec<String>,
    /// A script that the installed system runs once
    #[arg(long, value_name = "FILE")]
    user_data: Option<PathBuf>,
    /// Follow it until the installed system calls, or it fails
    #[arg(long)]
    wait: bool,
}

#[derive(Debug, Args)]
pub struct CleanArgs {
    /// Name, MAC address, id or SMBIOS UUID
    #[arg(value_parser = parse_reference)]
    node: String,
    /// Which disks [default: all]
    #[arg(long, value_name = "RULE")]
    disk: Option<DiskRule>,
    /// `discard` tells the disk to forget, `overwrite` writes zeros over all of it; both are read back
    #[arg(long, value_enum, default_value = "discard")]
    method: MethodWord,
    /// Follow it to its end
    #[arg(long)]
    wait: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum MethodWord {
    Discard,
    Overwrite,
}

#[derive(Debug, Args)]
pub struct RescueArgs {
    /// Name, MAC address, id or SMBIOS UUID
    #[arg(value_parser = parse_reference)]
    node: String,
    /// Public key that may log in, or a file of such; may be repeated
    #[arg(long = "ssh-key", value_name = "KEY|FILE", required = true)]
    ssh_keys: Vec<String>,
}

pub(super) async fn deploy(
    arguments: DeployArgs,
    client: &Client,
    json: bool,
) -> Result<String, CommandError> {
    let request = DeployRequest {
        image: arguments.image,
        installer: arguments.installer,
        disk: arguments.disk,
        wipe: arguments.wipe,
        ssh_keys: keys(&arguments.ssh_keys)?,
        user_data: arguments.user_data.as_deref().map(user_data).transpose()?,
    };
    let node: NodeDetail = client.post(&path(&arguments.node, "/deploy"), &request).await?;
    wanted(&node, arguments.wait, client, json).await
}

pub(super) async fn clean(arguments: CleanArgs, client: &Client, json: bool) -> Result<String, CommandError> {
    let method = match arguments.method {
        MethodWord::Discard => CleanMethod::Discard,
        MethodWord::Overwrite => CleanMethod::Overwrite,
    };
    let request = CleanRequest { disk: arguments.disk, method };
    let node: NodeDetail = client.post(&path(&arguments.node, "/clean"), &request).await?;
    wanted(&node, arguments.wait, client, json).await
}

pub(super) async fn rescue(
    arguments: RescueArgs,
    client: &Client,
    json: bool,
) -> Result<String, CommandError> {
    let request = RescueRequest { ssh_keys: keys(&arguments.ssh_keys)? };
    let node: NodeDetail = client.post(&path(&arguments.node, "/rescue"), &request).await?;
    wanted(&node, false, client, json).await
}

/// `abort`, `release`, `unrescue`.
pub(super) async fn act(
    node: &str,
    action: &str,
    told: &str,
    client: &Client,
    json: bool,
) -> Result<String, CommandError> {
    let node: NodeDetail = client.post(&path(node, action), &()).await?;
    let state = node.summary.state;
    Ok(if json { json_text(&node) } else { format!("{} {told}; it is {state}\n", called(&node.summary)) })
}

async fn wanted(node: &NodeDetail, wait: bool, client: &Client, json: bool) -> Result<String, CommandError> {
    if wait {
        return follow(node, client, json).await;
    }
    if json {
        return Ok(json_text(node));
    }
    let name = called(&node.summary);
    let what = node.task.as_ref().map(words).unwrap_or_default();
    Ok(format!(
        "{name}: {what} at its next netboot, or at once if its agent waits; `farrier node show {name}` tells\n"
    ))
}

fn words(task: &TaskDetail) -> String {
    if let Some(installer) = &task.installer {
        return format!("it will be installed by {installer}");
    }
    match (task.verb, &task.image) {
        (Verb::Deploy, Some(image)) => format!("{image} will be installed"),
        (Verb::Deploy, None) => "it will be installed".to_owned(),
        (Verb::Clean, _) => "its disks will be emptied".to_owned(),
        (Verb::Rescue, _) => "the rescue ramdisk will be booted".to_owned(),
    }
}

/// Shows how the task goes until nothing more comes of it.
async fn follow(node: &NodeDetail, client: &Client, json: bool) -> Result<String, CommandError> {
    let name = called(&node.summary);
    let id = node.summary.id.to_string();
    let intent = node.task.as_ref().map(|task| task.intent);
    let bar = bar();
    loop {
        let now: NodeDetail = client.get(&path(&id, "")).await?;
        let Some(task) = now.task.as_ref().filter(|task| Some(task.intent) == intent) else {
            bar.finish_and_clear();
            return Err(CommandError::Failed(format!("{name}: something else was asked of it meanwhile")));
        };
        draw(&bar, &name, &now);
        let over = matches!(task.phase, TaskPhase::Done | TaskPhase::Failed | TaskPhase::Aborted);
        if over || now.summary.state.is_failed() {
            bar.finish_and_clear();
            return ended(&now, task, &name, json);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Where the node's task is now.
pub(super) fn draw(bar: &ProgressBar, name: &str, node: &NodeDetail) {
    let Some(task) = &node.task else { return };
    bar.set_prefix(name.to_owned());
    match task.phase {
        TaskPhase::Waiting => bar.set_message("waits for its next netboot"),
        TaskPhase::Running if task.installer.is_some() => bar.set_message("its installer is at work"),
        TaskPhase::Running => show(bar, task.progress.as_ref()),
        TaskPhase::Written => {
            bar.set_position(bar.length().unwrap_or_default());
            bar.set_message("written; its system boots");
        }
        TaskPhase::Done | TaskPhase::Failed | TaskPhase::Aborted => {
            bar.set_message(node.summary.state.to_string());
        }
    }
}

/// Where no person looks, nothing is drawn.
pub(super) fn bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    bar.set_style(style("{prefix:<12} {msg}"));
    bar
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn show(bar: &ProgressBar, progress: Option<&Progress>) {
    let Some(progress) = progress else {
        bar.set_message("begins");
        return;
    };
    if progress.total == 0 {
        // Nothing to count, of which a bar would be full.
        bar.set_message(progress.step.to_string());
        return;
    }
    if bar.length() == Some(0) {
        bar.set_style(style("{prefix:<12} {bar:30} {bytes:>10}/{total_bytes:<10} {msg}"));
    }
    bar.set_length(progress.total);
    bar.set_position(progress.done);
    let left = progress.seconds_left.map(|left| format!(", {left} s left")).unwrap_or_default();
    bar.set_message(format!("{} at {}/s{left}", progress.step, bytes(progress.rate)));
}

fn ended(node: &NodeDetail, task: &TaskDetail, name: &str, json: bool) -> Result<String, CommandError> {
    let failed = node.summary.state.is_failed() || task.phase != TaskPhase::Done;
    if failed {
        let reason = node.summary.failure.clone().or_else(|| task.reason.clone()).unwrap_or_default();
        let state = node.summary.state;
        return Err(CommandError::Failed(format!(
            "{name} is {state}: {reason}; `farrier node show {name}` has the whole course"
        )));
    }
    Ok(if json { json_text(node) } else { format!("{name} is {}\n", node.summary.state) })
}

/// Keys as they are given, or out of files; each checked here, where its file can be named.
pub(super) fn keys(given: &[String]) -> Result<Vec<String>, CommandError> {
    let mut keys = Vec::new();
    for text in given {
        if text.contains(' ') {
            keys.push(key(text).map_err(|error| CommandError::Usage(error.to_string()))?);
            continue;
        }
        let file = Path::new(text);
        let content = read_text(file, KEYS_FILE_MAX)?;
        let lines = content.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let before = keys.len();
        for line in lines {
            let key =
                key(line).map_err(|error| CommandError::Usage(format!("{}: {error}", file.display())))?;
            keys.push(key);
        }
        if keys.len() == before {
            return Err(CommandError::Usage(format!("{}: there is no key in it", file.display())));
        }
    }
    Ok(keys)
}

fn key(line: &str) -> Result<String, ParseSshKeyError> {
    line.parse::<SshKey>().map(|key| key.to_string())
}

fn user_data(file: &Path) -> Result<String, CommandError> {
    read_text(file, USER_DATA_BYTES_MAX as u64)
}

fn read_text(file: &Path, most: u64) -> Result<String, CommandError> {
    let refused = |reason: String| CommandError::Usage(format!("{}: {reason}", file.display()));
    let size = std::fs::metadata(file).map_err(|error| refused(error.to_string()))?.len();
    if size > most {
        return Err(refused(format!("{size} bytes are too many: at most {most}")));
    }
    std::fs::read_to_string(file).map_err(|error| refused(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMmETQO+uVZSIFDYBbUYOip7NwVrffHaml4BnS0O5hHV operator@example";

    #[test]
    fn keys_come_by_themselves_or_in_files() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("keys.pub");
        std::fs::write(&file, format!("# ours\n\n{KEY}\n{KEY}\n")).unwrap();
        let given = [KEY.to_owned(), file.display().to_string()];
        assert_eq!(keys(&given).unwrap(), [KEY, KEY, KEY]);
        std::fs::write(&file, "-----BEGIN OPENSSH PRIVATE KEY-----\n").unwrap();
        let told = keys(&[file.display().to_string()]).unwrap_err().to_string();
        assert!(told.contains("keys.pub") && told.contains(".pub"), "{told}");
        assert!(keys(&["/nowhere.pub".to_owned()]).unwrap_err().to_string().contains("/nowhere.pub"));
    }
}
