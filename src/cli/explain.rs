//! `farrier explain`

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::client::Client;
use super::error::CommandError;
use super::json_text;
use super::text::{Style, Tone, inert};
use super::timeline::stage_word;
use crate::boot::decision::{KnownNode, NextBoot, Standing};
use crate::boot::quirks::Quirks;
use crate::clock::{Clock, Timestamp};
use crate::config::Config;
use crate::dhcp::server::Directory;
use crate::explain::profiles::ProfileKnowledge;
use crate::explain::{DeployImage, Dialogue, Knowledge, Machine, Party, Step, explain};
use crate::image::library::Library;
use crate::image::loaders::Loaders;
use crate::net::MacAddr;
use crate::node::NodeId;

#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// The machine's MAC address; it need not exist
    #[arg(long)]
    mac: MacAddr,
    /// How it boots: bios, uefi, uefi-http, uefi-secure, ipxe, ipxe-uefi, or a firmware of pxe/loaders.toml
    #[arg(long)]
    firmware: Machine,
    /// Show every DHCP message byte by byte
    #[arg(long)]
    bytes: bool,
    /// Ask this configuration file instead of the running appliance: no leases, no nodes but its reservations
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) async fn run(
    arguments: &ExplainArgs,
    client: &Client,
    json: bool,
    style: Style,
) -> Result<String, CommandError> {
    let dialogue = match &arguments.config {
        Some(path) => of_configuration(arguments, path)?,
        None => {
            let ExplainArgs { mac, firmware, bytes, .. } = arguments;
            client.get(&format!("/api/v1/explain?mac={mac}&firmware={firmware}&bytes={bytes}")).await?
        }
    };
    Ok(if json { json_text(&dialogue) } else { render(&dialogue, style) })
}

/// The configuration's reservations are all the nodes there are.
struct Reservations<'a>(&'a Config);

impl Directory for Reservations<'_> {
    fn standing(&self, mac: MacAddr, _now: Timestamp) -> Standing {
        let entry = self.0.dhcp.reservations.iter().find(|entry| entry.mac == mac);
        entry.map_or(Standing::Stranger, |entry| {
            Standing::Known(KnownNode {
                id: NodeId(uuid::Uuid::nil()),
                approved: true,
                proven: true,
                next_boot: NextBoot::Ramdisk,
                task_open: false,
                installer: None,
                profile: None,
                reserved: Some(entry.address),
                fruitless_loaders: 0,
                quirks: Quirks::default(),
            })
        })
    }

    fn reserved_for(&self, address: std::net::Ipv4Addr) -> Option<MacAddr> {
        self.0.dhcp.reservations.iter().find(|entry| entry.address == address).map(|entry| entry.mac)
    }
}

fn of_configuration(arguments: &ExplainArgs, path: &std::path::Path) -> Result<Dialogue, CommandError> {
    let config = Config::load(path)?;
    let table = config.loader_table();
    let table = table.map_err(|error| CommandError::Usage(error.to_string()))?;
    let loaders = Loaders::read(table, &config.store.path);
    let reservation = config.dhcp.reservations.iter().find(|entry| entry.mac == arguments.mac);
    let knowledge = Knowledge {
        config: &config,
        loaders: Arc::new(loaders.table.clone()),
        leases: Vec::new(),
        directory: &Reservations(&config),
        name: reservation.and_then(|entry| entry.name.clone()),
        image: deploy_image(&config),
        // Rules are the running appliance's.
        profiles: ProfileKnowledge::default(),
        now: Clock::start().now(),
    };
    let dialogue = explain(arguments.mac, arguments.firmware, arguments.bytes, &knowledge);
    Ok(Dialogue { live: false, ..dialogue })
}

/// The image below the state directory, if one was ever published there; looking makes nothing.
fn deploy_image(config: &Config) -> Option<DeployImage> {
    let state = &config.store.path;
    let library = state.join("images/blobs").is_dir().then(|| Library::open(state).ok()).flatten()?;
    let profile = library.profile(&config.boot.profile)?;
    Some(DeployImage {
        arguments: profile.arguments.clone(),
        kernel_bytes: profile.kernel.size,
        ramdisk_bytes: profile.ramdisk.size,
    })
}

pub(super) fn render(dialogue: &Dialogue, style: Style) -> String {
    let Dialogue { mac, name, firmware, live, steps, decisions, ends } = dialogue;
    let name = name.as_ref().map(|name| format!("{name} ")).unwrap_or_default();
    let basis =
        if *live { "the running appliance" } else { "the configuration alone, without leases and nodes" };
    let heading = format!("{name}{mac} with {firmware} firmware, by {basis}; nothing was sent or changed");
    let mut text = format!("{}\n", style.paint(Tone::Heading, &inert(&heading)));
    for decision in decisions {
        text.push_str(&format!("  {}: {}\n", inert(&decision.setting), inert(&decision.effect)));
    }
    text.push('\n');
    for step in steps {
        text.push_str(&step_text(step, style));
    }
    text.push_str(&format!("\n{}\n", style.paint(Tone::Heading, &inert(ends))));
    text
}

fn step_text(step: &Step, style: Style) -> String {
    let (arrow, tone) = match step.from {
        Party::Machine => ("→", Tone::Plain),
        Party::Appliance => ("←", Tone::Good),
    };
    let line = format!("{:<8} {arrow} {}", stage_word(step.stage), inert(&step.text));
    let mut text = format!("{}\n", style.paint(tone, &line));
    for option in &step.options {
        text.push_str(&format!(
            "             {:>3} {:<18} {}\n",
            option.code,
            option.name,
            inert(&option.value)
        ));
    }
    if let Some(bytes) = &step.bytes {
        text.push_str(&dump(bytes));
    }
    if let Some(script) = &step.script {
        for line in script.lines() {
            text.push_str(&format!("             | {}\n", inert(line)));
        }
    }
    text
}

/// Hexadecimal digits as offset, bytes and ASCII, sixteen a line; runs of zeros as one `*`, like hexdump(1).
fn dump(digits: &str) -> String {
    let pairs = digits.as_bytes().chunks_exact(2);
    let bytes: Vec<u8> =
        pairs.filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect();
    let mut text = String::new();
    let mut zeros = false;
    for (index, line) in bytes.chunks(16).enumerate() {
        let blank = line.len() == 16 && line.iter().all(|byte| *byte == 0);
        if blank && zeros {
            if !text.ends_with("*\n") {
                text.push_str("             *\n");
            }
            continue;
        }
        zeros = blank;
        let hex: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        let shown =
            |byte: &u8| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '.' };
        let ascii: String = line.iter().map(shown).collect();
        text.push_str(&format!("             {:04x}  {:<47}  {ascii}\n", index * 16, hex.join(" ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_dumped_with_runs_of_zeros_folded() {
        let digits: String = [b'A', 0x1b].iter().map(|byte| format!("{byte:02x}")).collect::<String>()
            + &"00".repeat(14 + 64)
            + "ff";
        let text = dump(&digits);
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        assert_eq!(lines[0], "0000  41 1b 00 00 00 00 00 00 00 00 00 00 00 00 00 00  A...............");
        assert_eq!(lines[2], "*");
        assert_eq!(lines[3], format!("0050  {:<47}  .", "ff"));
        assert_eq!(lines.len(), 4);
    }
}
