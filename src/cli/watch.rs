//! `farrier watch`: every node with its stage, redrawn as things happen; event lines scroll above.
//!
//! On a terminal the table stays at the bottom and is left standing, cursor and all, when Ctrl-C ends it. Elsewhere
//! each event is one line: text, or JSON with `--json`.

use std::io::{IsTerminal, Write as _};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use super::client::{Client, EventStream, WatchEvent};
use super::error::CommandError;
use super::node::list_table;
use super::text::{Style, Tone, inert};
use super::timeline::describe;
use crate::clock::Clock;
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
    let live = std::io::stdout().is_terminal() && !json;
    let mut screen = Screen::new(live, style);
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
            () = sleep_until(redraw_at), if screen.live => {
                let nodes: Vec<NodeSummary> = client.get("/api/v1/nodes").await?;
                screen.draw(&nodes, style);
                redraw_at = Instant::now() + REDRAW_EVERY;
                continue;
            }
        };
        let Some(event) = event else {
            return Err(CommandError::unreachable(client.socket(), "it ended the stream; it is stopping"));
        };
        let line = if json { event_json(&event) } else { event_line(&event, style) };
        if !screen.print(&line) {
            return Ok(());
        }
        redraw_at = redraw_at.min(Instant::now() + REDRAW_AFTER);
    }
}

fn event_json(event: &WatchEvent) -> String {
    let text = match event {
        WatchEvent::Timeline(message) => serde_json::to_string(message),
        WatchEvent::Lagged(message) => serde_json::to_string(message),
    };
    text.unwrap_or_default()
}

pub(super) fn event_line(event: &WatchEvent, style: Style) -> String {
    match event {
        WatchEvent::Timeline(message) => {
            let line = describe(&message.event.happening);
            let at = message.event.at.to_string();
            // The date does not change often enough to repeat it on every line.
            let time = at.split_once('T').map_or(at.as_str(), |(_, time)| time).trim_end_matches('Z');
            style.paint(line.tone, &format!("{time}  {:<17}  {}", whose(message), line.sentence()))
        }
        WatchEvent::Lagged(message) => style.paint(
            Tone::Attention,
            &format!("{} events were left out: this watcher is too slow", message.left_out),
        ),
    }
}

fn whose(message: &EventMessage) -> String {
    match (&message.node_name, message.node_mac) {
        (Some(name), _) => inert(name.as_str()),
        (None, Some(mac)) => mac.to_string(),
        (None, None) => message.event.node.to_string(),
    }
}

/// The live table: one bar without a bar per line; indicatif knows the terminal's width and redraws in place.
struct Screen {
    live: bool,
    area: MultiProgress,
    rows: Vec<ProgressBar>,
    last: Vec<String>,
}

impl Screen {
    fn new(live: bool, _style: Style) -> Screen {
        let target = if live { ProgressDrawTarget::stdout() } else { ProgressDrawTarget::hidden() };
        Screen { live, area: MultiProgress::with_draw_target(target), rows: Vec::new(), last: Vec::new() }
    }

    fn draw(&mut self, nodes: &[NodeSummary], style: Style) {
        let mut lines = vec![String::new()];
        lines.extend(list_table(&nodes[..nodes.len().min(ROWS_MAX)], Clock::start().now()).lines(style));
        if nodes.len() > ROWS_MAX {
            lines.push(format!("and {} more: `farrier node list`", nodes.len() - ROWS_MAX));
        }
        if nodes.is_empty() {
            lines.push("no nodes yet: netboot a machine on the bridge".to_owned());
        }
        while self.rows.len() > lines.len() {
            if let Some(row) = self.rows.pop() {
                self.area.remove(&row);
            }
        }
        while self.rows.len() < lines.len() {
            // The template is a constant; should it ever be refused, the default still shows the message.
            let look =
                ProgressStyle::with_template("{wide_msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
            self.rows.push(self.area.add(ProgressBar::new_spinner().with_style(look)));
        }
        for (row, line) in self.rows.iter().zip(&lines) {
            row.set_message(line.clone());
            row.tick();
        }
        self.last = lines;
    }

    /// False when nobody reads any more.
    fn print(&self, line: &str) -> bool {
        if self.live {
            self.area.println(line).is_ok()
        } else {
            let mut stdout = std::io::stdout().lock();
            writeln!(stdout, "{line}").and_then(|()| stdout.flush()).is_ok()
        }
    }

    /// Takes the live area away and leaves its last state as ordinary text.
    fn leave(&mut self) {
        if self.live {
            let _ = self.area.clear();
            let mut stdout = std::io::stdout().lock();
            for line in &self.last {
                let _ = writeln!(stdout, "{line}");
            }
        }
    }
}
