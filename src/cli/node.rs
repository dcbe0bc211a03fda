//! `farrier node add|list|show|label|approve|quirks|remove|order`; what is done to disks is in `task.rs`

use std::net::Ipv4Addr;

use clap::{Subcommand, ValueEnum};

use super::client::{Client, segment};
use super::error::CommandError;
use super::json_text;
use super::table::Table;
use super::text::{Style, Tone, ago, bytes, counted, inert, memory, or_dash};
use super::timeline::{render_boot, stage_word};
use crate::boot::quirks::Quirks;
use crate::clock::{Clock, Timestamp};
use crate::net::MacAddr;
use crate::node::NodeName;
use crate::node::inventory::{BootedBy, Inventory};
use crate::node::labels::{LabelError, LabelKey, LabelValue, parse_label};
use crate::node::state::{Order, ProvisionState};
use crate::node::timeline::Boot;
use crate::operator::api::{
    NodeDetail, NodePatch, NodeSummary, OrderRequest, PortRequest, RegisterRequest, TaskDetail, TaskPhase,
};

#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Register a machine before its first boot, or give one that was seen a name
    Add {
        /// Port of the machine, with an address to keep for it if wanted: 52:54:00:12:34:56 or 52:54:00:12:34:56=192.168.2.20
        #[arg(required = true, value_name = "MAC[=ADDRESS]", value_parser = parse_port)]
        ports: Vec<PortRequest>,
        /// Name: lower-case letters, digits and inner hyphens
        #[arg(long)]
        name: Option<NodeName>,
    },
    /// List all nodes
    List {
        /// Only nodes with these labels: `rack=r1,owner` is all of rack r1 that have an owner
        #[arg(long, value_name = "KEY[=VALUE],…")]
        label: Option<String>,
    },
    /// Set labels of a node, and take some away
    Label {
        /// Name, MAC address, id or SMBIOS UUID
        #[arg(value_parser = parse_reference)]
        node: String,
        /// `rack=r1` sets a label, `rack-` takes it away
        #[arg(required = true, value_name = "KEY=VALUE|KEY-", value_parser = parse_label_change)]
        labels: Vec<(LabelKey, Option<LabelValue>)>,
    },
    /// Show one node: record, ports, inventory, and where its last boot got to
    Show {
        /// Name, MAC address, id or SMBIOS UUID
        #[arg(value_parser = parse_reference)]
        node: String,
        /// Show this boot instead of the last one; 0 is what happened outside any boot
        #[arg(long, value_name = "NUMBER")]
        boot: Option<u32>,
    },
    /// Let a node boot and enroll that nobody had registered
    Approve {
        /// Name, MAC address, id or SMBIOS UUID
        #[arg(value_parser = parse_reference)]
        node: String,
    },
    /// Change a node's name, ports, reserved addresses or approval; what is not named stays
    Edit {
        /// Name, MAC address, id or SMBIOS UUID
        #[arg(value_parser = parse_reference)]
        node: String,
        /// A new name
        #[arg(long, conflicts_with = "no_name")]
        name: Option<NodeName>,
        /// Take its name away
        #[arg(long)]
        no_name: bool,
        /// All ports it is to have, each with an address to keep for it if wanted; may be repeated
        #[arg(long = "port", value_name = "MAC[=ADDRESS]", value_parser = parse_port)]
        ports: Vec<PortRequest>,
        /// `true` lets it boot and enroll, `false` sends it back to wait for approval
        #[arg(long, value_name = "BOOL")]
        approved: Option<bool>,
    },
    /// Set what is done otherwise for a node's firmware, or show it: options that are given are all that holds
    Quirks {
        /// Name, MAC address, id or SMBIOS UUID
        #[arg(value_parser = parse_reference)]
        node: String,
        #[command(flatten)]
        quirks: super::quirks::QuirkArgs,
    },
    /// Forget a node and its timeline
    Remove {
        /// Name, MAC address, id or SMBIOS UUID
        #[arg(value_parser = parse_reference)]
        node: String,
    },
    /// Register or update every node of a list: CSV, JSON, dnsmasq, dhcpd.conf, Kea, instackenv, Tinkerbell
    Import(super::roster::ImportArgs),
    /// Write all nodes as a list in one of those formats
    Export(super::roster::ExportArgs),
    /// Install a disk image at the node's next netboot, once
    Deploy(super::task::DeployArgs),
    /// Empty the node's disks at its next netboot, and read back that they are
    Clean(super::task::CleanArgs),
    /// Let the node's next netboot be a ramdisk that keys can log in to
    Rescue(super::task::RescueArgs),
    /// Out of the rescue ramdisk, back to what the node was
    Unrescue {
        /// Name, MAC address, id or SMBIOS UUID
        #[arg(value_parser = parse_reference)]
        node: String,
    },
    /// The installed system is needed no more: the node is available
    Release {
        /// Name, MAC address, id or SMBIOS UUID
        #[arg(value_parser = parse_reference)]
        node: String,
    },
    /// End the open task; what it wrote is not undone
    Abort {
        /// Name, MAC address, id or SMBIOS UUID
        #[arg(value_parser = parse_reference)]
        node: String,
    },
    /// Give the node's agent an order; it obeys at its next heartbeat
    Order {
        /// Name, MAC address, id or SMBIOS UUID
        #[arg(value_parser = parse_reference)]
        node: String,
        order: OrderWord,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum OrderWord {
    Reboot,
    PowerOff,
    /// Boot from the local disk, now and on later netboots
    LocalBoot,
}

impl From<OrderWord> for Order {
    fn from(word: OrderWord) -> Order {
        match word {
            OrderWord::Reboot => Order::Reboot,
            OrderWord::PowerOff => Order::PowerOff,
            OrderWord::LocalBoot => Order::LocalBoot,
        }
    }
}

/// Anything may be asked for but nothing, which would be the path of all nodes.
pub(super) fn parse_reference(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        return Err(
            "a name, MAC address, id or SMBIOS UUID is wanted; `farrier node list` shows them".to_owned()
        );
    }
    Ok(text.to_owned())
}

fn parse_port(text: &str) -> Result<PortRequest, String> {
    let (mac, address) = match text.split_once('=') {
        Some((mac, address)) => (mac, Some(address)),
        None => (text, None),
    };
    let mac: MacAddr = mac.parse().map_err(|error| format!("{error}"))?;
    let address = address
        .map(str::parse::<Ipv4Addr>)
        .transpose()
        .map_err(|_| "an IPv4 address is wanted after `=`".to_owned())?;
    Ok(PortRequest { mac, address })
}

/// `key=value` sets, `key-` takes away.
fn parse_label_change(text: &str) -> Result<(LabelKey, Option<LabelValue>), LabelError> {
    match text.strip_suffix('-') {
        Some(key) if !text.contains('=') => Ok((key.parse()?, None)),
        Some(_) | None => parse_label(text).map(|(key, value)| (key, Some(value))),
    }
}

pub(super) async fn run(
    command: NodeCommand,
    client: &Client,
    json: bool,
    style: Style,
) -> Result<String, CommandError> {
    let now = Clock::start().now();
    match command {
        NodeCommand::Add { ports, name } => {
            let node = client.post("/api/v1/nodes", &RegisterRequest { name, ports, quirks: None }).await?;
            Ok(done(&node, "registered", json))
        }
        NodeCommand::List { label } => {
            let query = label.map(|label| format!("?label={}", segment(&label))).unwrap_or_default();
            let nodes: Vec<NodeSummary> = client.list(&format!("/api/v1/nodes{query}")).await?;
            Ok(if json { json_text(&nodes) } else { render_list(&nodes, style, now) })
        }
        NodeCommand::Show { node, boot } => show(&node, boot, client, json, style).await,
        NodeCommand::Approve { node } => {
            let node = client.post(&path(&node, "/approve"), &()).await?;
            Ok(done(&node, "approved", json))
        }
        NodeCommand::Edit { node, name, no_name, ports, approved } => {
            let name = if no_name { Some(None) } else { name.map(Some) };
            let ports = (!ports.is_empty()).then_some(ports);
            let patch = NodePatch { name, ports, approved, ..NodePatch::default() };
            if patch == NodePatch::default() {
                return Err(CommandError::Usage(
                    "nothing to change: name --name, --no-name, --port or --approved".to_owned(),
                ));
            }
            let node = client.patch(&path(&node, ""), &patch).await?;
            Ok(done(&node, "changed", json))
        }
        NodeCommand::Quirks { node, quirks } => super::quirks::run(&node, &quirks, client, json).await,
        NodeCommand::Label { node, labels } => {
            let patch = NodePatch { labels: labels.into_iter().collect(), ..NodePatch::default() };
            let node: NodeDetail = client.patch(&path(&node, ""), &patch).await?;
            let labels = match node.summary.labels.to_string() {
                none if none.is_empty() => "has no labels".to_owned(),
                labels => format!("is labelled {labels}"),
            };
            Ok(done(&node, &labels, json))
        }
        NodeCommand::Remove { node } => {
            let node = client.delete(&path(&node, "")).await?;
            Ok(done(&node, "removed", json))
        }
        NodeCommand::Import(arguments) => super::roster::import(&arguments, client, json, style).await,
        NodeCommand::Export(arguments) => super::roster::export(&arguments, client, json).await,
        NodeCommand::Deploy(arguments) => super::task::deploy(arguments, client, json).await,
        NodeCommand::Clean(arguments) => super::task::clean(arguments, client, json).await,
        NodeCommand::Rescue(arguments) => super::task::rescue(arguments, client, json).await,
        NodeCommand::Unrescue { node } => {
            super::task::act(&node, "/unrescue", "leaves its rescue ramdisk", client, json).await
        }
        NodeCommand::Release { node } => super::task::act(&node, "/release", "released", client, json).await,
        NodeCommand::Abort { node } => {
            super::task::act(&node, "/abort", "no longer has an open task", client, json).await
        }
        NodeCommand::Order { node, order } => {
            let request = OrderRequest { order: order.into() };
            let node = client.post(&path(&node, "/order"), &request).await?;
            Ok(done(
                &node,
                &format!("ordered: {}; waits for the agent's next heartbeat", request.order),
                json,
            ))
        }
    }
}

pub(super) fn path(node: &str, action: &str) -> String {
    format!("/api/v1/nodes/{}{action}", segment(node))
}

fn done(node: &NodeDetail, what: &str, json: bool) -> String {
    if json { json_text(node) } else { format!("{} {what}\n", called(&node.summary)) }
}

/// Its name, else its first MAC, else its id.
pub(super) fn called(node: &NodeSummary) -> String {
    match (&node.name, node.ports.first()) {
        (Some(name), _) => name.to_string(),
        (None, Some(port)) => port.mac.to_string(),
        (None, None) => node.id.to_string(),
    }
}

async fn show(
    node: &str,
    boot: Option<u32>,
    client: &Client,
    json: bool,
    style: Style,
) -> Result<String, CommandError> {
    let detail: NodeDetail = client.get(&path(node, "")).await?;
    // By id: the node may be renamed between the two questions.
    let boots: Vec<Boot> = client.list(&path(&detail.summary.id.to_string(), "/boots")).await?;
    let chosen = match boot {
        None => boots.last(),
        Some(number) => Some(boots.iter().find(|boot| boot.number == number).ok_or_else(|| {
            let kept: Vec<String> = boots.iter().map(|boot| boot.number.to_string()).collect();
            CommandError::NotFound(format!(
                "no boot {number} of this node is kept; kept are: {}",
                kept.join(", ")
            ))
        })?),
    };
    if json {
        return Ok(json_text(&serde_json::json!({ "node": detail, "boot": chosen })));
    }
    Ok(render_detail(&detail, chosen, style, Clock::start().now()))
}

/// State in words, and whether it wants an operator's eye.
pub(super) fn state_words(node: &NodeSummary) -> (Tone, String) {
    if !node.approved {
        return (Tone::Attention, "waits for approval".to_owned());
    }
    let tone = match node.state {
        failed if failed.is_failed() => Tone::Bad,
        ProvisionState::Manageable | ProvisionState::Available | ProvisionState::Active => Tone::Good,
        _ => Tone::Plain,
    };
    (tone, node.state.to_string())
}

pub(super) fn render_list(nodes: &[NodeSummary], style: Style, now: Timestamp) -> String {
    if nodes.is_empty() {
        return "no nodes: netboot a machine, or register one with `farrier node add MAC`\n".to_owned();
    }
    list_table(nodes, now).render(style)
}

pub(super) fn list_table(nodes: &[NodeSummary], now: Timestamp) -> Table {
    let mut table = Table::new(&["NODE", "MAC", "ADDRESS", "FIRMWARE", "STATE", "STAGE", ">BOOT", "SEEN"]);
    for node in nodes {
        let (tone, cells) = node_cells(node, now);
        table.row(tone, cells);
    }
    table
}

/// One node: name, MAC, address, firmware, state, stage, boot, last seen.
pub(super) fn node_cells(node: &NodeSummary, now: Timestamp) -> (Tone, [String; 8]) {
    let (tone, state) = state_words(node);
    let more = match node.ports.len() {
        0 | 1 => String::new(),
        ports => format!(" +{}", ports - 1),
    };
    let mac = node.ports.first().map(|port| format!("{}{more}", port.mac));
    let address =
        node.ports.iter().find_map(|port| port.address).or(node.ports.iter().find_map(|p| p.reserved));
    let boot = node.boot.as_ref();
    let cells = [
        or_dash(node.name.as_ref()),
        or_dash(mac),
        or_dash(address),
        or_dash(node.firmware),
        state,
        or_dash(boot.and_then(|boot| boot.stage).map(stage_word)),
        or_dash(boot.map(|boot| boot.number)),
        or_dash(node.last_seen_at.map(|at| ago(at, now))),
    ];
    (tone, cells)
}

pub(super) fn render_detail(node: &NodeDetail, boot: Option<&Boot>, style: Style, now: Timestamp) -> String {
    let summary = &node.summary;
    let mut text = String::new();
    let mut line = |label: &str, tone: Tone, value: &str| {
        text.push_str(&format!("{label:<10} {}\n", style.paint(tone, &inert(value))));
    };
    line("node", Tone::Heading, &called(summary));
    line("id", Tone::Plain, &summary.id.to_string());
    if let Some(uuid) = node.uuid {
        line("uuid", Tone::Plain, &uuid.to_string());
    }
    let (tone, state) = state_words(summary);
    line("state", tone, &state);
    if let Some(failure) = &summary.failure {
        line("failure", Tone::Bad, failure);
    }
    if let Some(task) = &node.task {
        line("task", Tone::Plain, &task_words(task));
    }
    if let Some(order) = summary.order {
        line("order", Tone::Plain, &format!("{order}, waits for the agent's next heartbeat"));
    }
    let next = match summary.next_boot {
        crate::boot::decision::NextBoot::Ramdisk => "ramdisk",
        crate::boot::decision::NextBoot::LocalDisk => "local disk",
    };
    line("next boot", Tone::Plain, next);
    line("firmware", Tone::Plain, &or_dash(summary.firmware));
    if node.quirks != Quirks::default() {
        line("quirks", Tone::Plain, &node.quirks.summary());
    }
    let origin = match summary.origin {
        crate::node::Origin::Registered => "registered",
        crate::node::Origin::Seen => "first seen",
    };
    line("known", Tone::Plain, &format!("{origin} {}", node.created_at));
    if !summary.labels.is_empty() {
        line("labels", Tone::Plain, &summary.labels.to_string());
    }
    line("seen", Tone::Plain, &or_dash(summary.last_seen_at.map(|at| format!("{at}, {}", ago(at, now)))));
    line("enrolled", Tone::Plain, &or_dash(summary.enrolled_at));
    let mut ports = Table::new(&["PORT", "ADDRESS", "RESERVED"]);
    for port in &summary.ports {
        ports.row(Tone::Plain, [port.mac.to_string(), or_dash(port.address), or_dash(port.reserved)]);
    }
    text.push_str(&format!("\n{}", ports.render(style)));
    match &node.inventory {
        Some(inventory) => text.push_str(&format!("\n{}", render_inventory(inventory, style))),
        None => text.push_str("\nno inventory yet: the agent has not called home\n"),
    }
    match boot {
        Some(boot) => text.push_str(&format!("\n{}", render_boot(boot, style))),
        None => text.push_str("\nno boot yet\n"),
    }
    text
}

fn task_words(task: &TaskDetail) -> String {
    let what = match (&task.image, &task.installer) {
        (Some(image), _) => format!("{} {image}", task.verb),
        (None, Some(installer)) => format!("{} by installer {installer}", task.verb),
        (None, None) => task.verb.to_string(),
    };
    let phase = match task.phase {
        TaskPhase::Waiting => "waits for the next netboot",
        TaskPhase::Running => "running",
        TaskPhase::Written => "written, its system has not called yet",
        TaskPhase::Done => "done",
        TaskPhase::Failed => "failed",
        TaskPhase::Aborted => "aborted",
    };
    let progress = task.progress.filter(|_| task.phase == TaskPhase::Running).map(|it| {
        let percent = it.done.saturating_mul(100).checked_div(it.total).unwrap_or(0);
        format!(", {} {percent} % at {}/s", it.step, bytes(it.rate))
    });
    let disks: Vec<&str> = task.disks.iter().map(|disk| disk.name.as_str()).collect();
    let disks = if disks.is_empty() { String::new() } else { format!(" on {}", disks.join(", ")) };
    format!("{what} (number {}): {phase}{disks}{}", task.generation, progress.unwrap_or_default())
}

fn render_inventory(inventory: &Inventory, style: Style) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: String| text.push_str(&format!("{label:<10} {}\n", inert(&value)));
    let system = &inventory.system;
    let words = |parts: &[&Option<String>]| {
        let present: Vec<&str> = parts.iter().filter_map(|part| part.as_deref()).collect();
        if present.is_empty() { "-".to_owned() } else { present.join(" ") }
    };
    line("system", words(&[&system.vendor, &system.product, &system.version]));
    if let Some(serial) = &system.serial {
        line("serial", serial.clone());
    }
    let booted = match inventory.booted_by {
        BootedBy::Bios => "booted by BIOS",
        BootedBy::Uefi => "booted by UEFI",
        BootedBy::UefiSecureBoot => "booted by UEFI with Secure Boot",
    };
    line(
        "firmware",
        format!("{}, {booted}", words(&[&system.bios_vendor, &system.bios_version, &system.bios_date])),
    );
    let cpu = &inventory.cpu;
    let counts = [(cpu.sockets, "socket"), (cpu.cores, "core"), (cpu.logical, "thread")];
    let counts = counts.map(|(count, thing)| counted(count.into(), thing)).join(", ");
    line("cpu", format!("{} ({}), {counts}", cpu.model, cpu.architecture));
    line("memory", memory(inventory.memory_bytes));
    line("kernel", inventory.kernel.clone());
    let mut disks = Table::new(&["DISK", ">SIZE", "KIND", "MODEL", "SERIAL"]);
    for disk in &inventory.disks {
        let kind = match (disk.removable, disk.rotational) {
            (true, _) => "removable",
            (false, true) => "rotating",
            (false, false) => "solid state",
        };
        let (model, serial) = (or_dash(disk.model.as_ref()), or_dash(disk.serial.as_ref()));
        disks.row(Tone::Plain, [disk.name.clone(), bytes(disk.bytes), kind.to_owned(), model, serial]);
    }
    let mut nics = Table::new(&["NIC", "MAC", "DRIVER", ">SPEED", "LINK"]);
    for nic in &inventory.nics {
        let speed = or_dash(nic.speed_mbps.map(|speed| format!("{speed} Mb/s")));
        let link = if nic.link { "up" } else { "down" };
        let driver = or_dash(nic.driver.as_ref());
        nics.row(Tone::Plain, [nic.name.clone(), nic.mac.to_string(), driver, speed, link.to_owned()]);
    }
    for table in [disks, nics].iter().filter(|table| !table.is_empty()) {
        text.push_str(&format!("\n{}", table.render(style)));
    }
    text
}
