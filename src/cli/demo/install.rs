//! The second half of the demo: what has enrolled is installed, before your eyes, and boots from its disk.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use indicatif::{MultiProgress, ProgressBar};
use tokio::task::spawn_blocking;

use crate::cli::client::Client;
use crate::cli::lab::print;
use crate::cli::node::path;
use crate::cli::task;
use crate::lab::Lab;
use crate::node::state::ProvisionState;
use crate::operator::api::{DeployRequest, NodeDetail};

/// Small enough to be written by emulated processors while somebody watches.
const IMAGE: &str = "small";
/// Written, read back and booted by four machines on two busy cores with TCG.
const INSTALLED_WITHIN: Duration = Duration::from_secs(900);
/// Agents tell their progress twice a second.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Makes the image that is installed, in the library of this appliance. Ctrl-C reaches the program that makes it as well.
pub(super) async fn make_image(farrier: &Path, state: &Path) -> anyhow::Result<()> {
    let mut command = Command::new(farrier);
    command.args(["image", "--state"]).arg(state).args(["build", IMAGE]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let built = spawn_blocking(move || command.status()).await?;
    let built = built.with_context(|| format!("{} cannot be run", farrier.display()))?;
    if !built.success() {
        bail!("the disk image `{IMAGE}` could not be made; the lines above say why");
    }
    Ok(())
}

/// Deploys on every machine and shows a bar for each; true if all systems have called.
pub(super) async fn run(lab: &Lab) -> anyhow::Result<bool> {
    let socket = lab.state().short_operator_socket()?;
    let client = Client::new(socket.path());
    let bars = MultiProgress::new();
    let mut machines: Vec<(String, String, ProgressBar)> = Vec::new();
    for machine in lab.machines() {
        let mac = machine.mac.to_string();
        // The demo's disks hold what an earlier demo put there.
        let request = DeployRequest { image: Some(IMAGE.to_owned()), wipe: true, ..DeployRequest::default() };
        let _: NodeDetail = client.post(&path(&mac, "/deploy"), &request).await?;
        machines.push((machine.name.to_string(), mac, bars.add(task::bar())));
    }
    let began = Instant::now();
    let deadline = began + INSTALLED_WITHIN;
    let mut active = BTreeSet::new();
    loop {
        let mut failed = None;
        for (name, mac, bar) in &machines {
            let node: NodeDetail = client.get(&path(mac, "")).await?;
            task::draw(bar, name, &node);
            let state = node.summary.state;
            if state == ProvisionState::Active && active.insert(name) {
                let said = format!("{:>6.1}s  {name:<12} runs from its disk", began.elapsed().as_secs_f64());
                if bars.is_hidden() {
                    print(&format!("{said}\n"));
                } else {
                    bars.println(said)?;
                }
            }
            if state.is_failed() {
                failed = Some(format!("{name}: {}", node.summary.failure.unwrap_or_default()));
            }
        }
        let all = active.len() == machines.len();
        if all || failed.is_some() || Instant::now() > deadline {
            for (_, _, bar) in &machines {
                bar.abandon();
            }
            if let Some(failed) = failed {
                bail!("not installed: {failed}");
            }
            return Ok(all);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
