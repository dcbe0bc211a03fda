//! `farrier event follow`, `farrier event list`, `farrier event bridge`: what happens, as it happens, and what happened to
//! one node, or to the bridge.

use clap::{Args, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use super::client::{Client, segment};
use super::error::CommandError;
use super::json_text;
use super::table::Table;
use super::text::Style;
use super::timeline::{describe_bridge, render_boot};
use super::view::View;
use super::watch::{event_json, event_line};
use crate::bridge_log::event::BridgeEvent;
use crate::node::timeline::Boot;

#[derive(Debug, Subcommand)]
pub enum EventCommand {
    /// Print each event as it happens, until Ctrl-C
    Follow(FollowArgs),
    /// Print what happened to the bridge itself: outages, held ports, other servers
    Bridge,
    /// Print the events kept of one node, boot by boot
    List {
        /// Name, MAC address, id or SMBIOS UUID
        node: String,
        /// Only this boot; 0 is what happened outside any boot
        #[arg(long, value_name = "NUMBER")]
        boot: Option<u32>,
    },
}

#[derive(Debug, Args)]
pub struct FollowArgs {
    /// Only events of this node: name, MAC address, id or SMBIOS UUID
    #[arg(long)]
    node: Option<String>,
    /// Only events that bring a boot to this stage: dhcp, loader, script, kernel, ramdisk, agent, enrolled
    #[arg(long)]
    stage: Option<String>,
}

pub(super) async fn run(
    command: &EventCommand,
    client: &Client,
    json: bool,
    style: Style,
) -> Result<String, CommandError> {
    match command {
        EventCommand::Follow(arguments) => follow(arguments, client, json, style).await,
        EventCommand::Bridge => {
            let events: Vec<BridgeEvent> = client.list("/api/v1/bridge/events").await?;
            if json {
                return Ok(json_text(&events));
            }
            let mut table = Table::new(&["TIME", "WHAT", "DETAIL"]);
            for event in &events {
                let line = describe_bridge(event);
                table.row(line.tone, [event.at.to_string(), line.what, line.detail]);
            }
            Ok(table.render(style))
        }
        EventCommand::List { node, boot } => {
            let boots: Vec<Boot> = client.list(&format!("/api/v1/nodes/{}/boots", segment(node))).await?;
            let wanted = |kept: &Boot| boot.is_none_or(|number| kept.number == number);
            let boots: Vec<Boot> = boots.into_iter().filter(wanted).collect();
            if boots.is_empty() {
                let which = boot.map_or_else(String::new, |number| format!(" of boot {number}"));
                return Err(CommandError::NotFound(format!("no events{which} are kept of {node}")));
            }
            let text: Vec<String> = boots.iter().map(|boot| render_boot(boot, style)).collect();
            Ok(if json { json_text(&boots) } else { text.join("\n") })
        }
    }
}

async fn follow(
    arguments: &FollowArgs,
    client: &Client,
    json: bool,
    style: Style,
) -> Result<String, CommandError> {
    let filters = [("node", &arguments.node), ("stage", &arguments.stage)];
    let query: Vec<String> = filters
        .iter()
        .filter_map(|(name, value)| value.as_ref().map(|value| format!("{name}={}", segment(value))))
        .collect();
    let mut stream = client.events_of(&query.join("&")).await?;
    let failed = |error: std::io::Error| CommandError::Failed(format!("signals: {error}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let lines = View::lines_only();
    loop {
        let event = tokio::select! {
            event = stream.next() => event?,
            _ = interrupt.recv() => return Ok(String::new()),
            _ = terminate.recv() => return Ok(String::new()),
        };
        let Some(event) = event else {
            return Err(CommandError::unreachable(client.socket(), "it ended the stream; it is stopping"));
        };
        let line = if json { event_json(&event) } else { event_line(&event, style) };
        if !lines.say(&line) {
            return Ok(String::new());
        }
    }
}
