//! `farrier watch`: every node with its stage, redrawn as things happen; event lines scroll above.
//!
//! On a terminal the table stays at the bottom and is left standing, cursor and all, when Ctrl-C ends it. Elsewhere
//! each event is one line: text, or JSON with `--json`.

use std::io::Write as _;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use super::client::{Client, EventStream, WatchEvent};
use super::error::CommandError;
use super::node::node_cells;
use super::table::Table;
use super::text::{Style, Tone, inert};
use super::timeline::{Line, describe, describe_bridge};
use super::view::View;
use crate::clock::{Clock, Timestamp};
use crate::operator::api::{EventMessage, NodeSummary};

/// Events within this time are drawn together.
const REDRAW_AFTER: Duration = Duration::from_millis(150);
/// Without events, so that "seen 12s ago" stays true.
const REDRAW_EVERY: Duration = Duration::from_secs(2);
/// Rows drawn; more would scroll the heading away on a usual terminal. `node list` shows all.
const ROWS_MAX: usize = 40;

pub(super) async fn run(client: &Client, json: bool, style: Style) -> Result<String, CommandError> {
    let stream = client.events().await?;
    let failed = |error: std::io::Error| CommandError::Failed(format!("signals: {error}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut screen = Screen::new(json);
    let followed = tokio::select! {
        followed = follow(client, stream, &mut screen, json, style) => followed,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    };
    screen.leave();
    followed.map(|()| String::new())
}

/// Returns when the appliance ends the stream, or when nobody reads what is printed.
async fn follow(
    client: &Client,
    mut stream: EventStream,
    screen: &mut Screen,
    json: bool,
    style: Style,
) -> Result<(), CommandError> {
    let mut redraw_at = Instant::now();
    loop {
        let event = tokio::select! {
            event = stream.next() => event?,
            () = sleep_until(redraw_at), if screen.view.is_live() => {
                let nodes: Vec<NodeSummary> = client.list("/api/v1/nodes").await?;
                screen.draw(&nodes, style);
                redraw_at = Instant::now() + REDRAW_EVERY;
                continue;
            }
        };
        let Some(event) = event else {
            return Err(CommandError::unreachable(client.socket(), "it ended the stream; it is stopping"));
        };
        let line = if json { event_json(&event) } else { event_line(&event, style) };
        if !screen.view.say(&line) {
            return Ok(());
        }
        redraw_at = redraw_at.min(Instant::now() + REDRAW_AFTER);
    }
}

pub(super) fn event_json(event: &WatchEvent) -> String {
    let text = match event {
        WatchEvent::Timeline(message) => serde_json::to_string(message),
        WatchEvent::Bridge(event) => serde_json::to_string(event),
        WatchEvent::Lagged(message) => serde_json::to_string(message),
    };
    text.unwrap_or_default()
}

pub(super) fn event_line(event: &WatchEvent, style: Style) -> String {
    match event {
        WatchEvent::Timeline(message) => {
            let line = describe(&message.event.happening);
            timed_line(message.event.at, &whose(message), &line, style)
        }
        WatchEvent::Bridge(event) => timed_line(event.at, "bridge", &describe_bridge(event), style),
        WatchEvent::Lagged(message) => style.paint(
            Tone::Attention,
            &format!("{} events were left out: this watcher is too slow", message.left_out),
        ),
    }
}

fn timed_line(at: Timestamp, whose: &str, line: &Line, style: Style) -> String {
    let at = at.to_string();
    // The date does not change often enough to repeat it on every line.
    let time = at.split_once('T').map_or(at.as_str(), |(_, time)| time).trim_end_matches('Z');
    style.paint(line.tone, &format!("{time}  {whose:<17}  {}", line.sentence()))
}

fn whose(message: &EventMessage) -> String {
    match (&message.node_name, message.node_mac) {
        (Some(name), _) => inert(name.as_str()),
        (None, Some(mac)) => mac.to_string(),
        (None, None) => message.event.node.to_string(),
    }
}

/// The live table, and what it showed last.
struct Screen {
    view: View,
    last: Vec<String>,
}

impl Screen {
    fn new(json: bool) -> Screen {
        let view = if json { View::lines_only() } else { View::of_stdout() };
        Screen { view, last: Vec::new() }
    }

    fn draw(&mut self, nodes: &[NodeSummary], style: Style) {
        let mut lines = vec![String::new()];
        lines.extend(watch_table(&nodes[..nodes.len().min(ROWS_MAX)], Clock::start().now()).lines(style));
        if nodes.len() > ROWS_MAX {
            lines.push(format!("and {} more: `farrier node list`", nodes.len() - ROWS_MAX));
        }
        if nodes.is_empty() {
            lines.push("no nodes yet: netboot a machine on the bridge".to_owned());
        }
        self.view.draw(&lines);
        self.last = lines;
    }

    /// Takes the live area away and leaves its last state as ordinary text.
    fn leave(&mut self) {
        if self.view.is_live() {
            self.view.clear();
            let mut stdout = std::io::stdout().lock();
            for line in &self.last {
                let _ = writeln!(stdout, "{line}");
            }
        }
    }
}

/// What `node list` shows, with what changes on the left: a narrow terminal cuts lines at its right end.
fn watch_table(nodes: &[NodeSummary], now: Timestamp) -> Table {
    let mut table = Table::new(&["NODE", "STAGE", "STATE", "SEEN", "ADDRESS", "FIRMWARE", "MAC", ">BOOT"]);
    for node in nodes {
        let (tone, cells) = node_cells(node, now);
        let [name, mac, address, firmware, state, stage, boot, seen] = cells;
        // Without a name and cut off, the MAC is all that tells rows apart.
        let (name, mac) = if node.name.is_none() { (mac, name) } else { (name, mac) };
        table.row(tone, [name, stage, state, seen, address, firmware, mac, boot]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::summary;

    #[test]
    fn a_narrow_terminal_keeps_who_and_how_far() {
        let mut nameless = summary();
        nameless.name = None;
        let now = nameless.last_seen_at.unwrap();
        let lines = watch_table(&[summary(), nameless], now).lines(Style::PLAIN);
        let cut = |row: usize, columns: usize| lines[row].chars().take(columns).collect::<String>();
        assert!(cut(1, 40).contains("rack1-node07") && cut(1, 40).contains("enrolled"), "{lines:?}");
        assert!(cut(2, 40).contains("52:54:00:00:00:01") && cut(2, 40).contains("enrolled"), "{lines:?}");
        assert!(cut(1, 60).contains("manageable") && cut(1, 60).contains("now"), "{lines:?}");
    }
}
