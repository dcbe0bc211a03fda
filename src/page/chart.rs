//! One boot in time: a lane for each stage, bars for what was fetched, marks for what was said.
//!
//! Positions are percentages of the boot's duration, so that the chart fills any width and its text keeps its size.

use std::time::Duration;

use maud::{Markup, html};

use crate::cli::text;
use crate::cli::timeline::describe;
use crate::clock::Timestamp;
use crate::node::timeline::{AgentCall, Boot, FileOutcome, Happening, Stage, TimelineEvent};
use crate::page::overview::fixed;
use crate::page::words;

/// Lanes in the order of a boot.
const LANES: [Stage; 6] =
    [Stage::Dhcp, Stage::Loader, Stage::Script, Stage::Kernel, Stage::Ramdisk, Stage::Agent];
/// A bar is never so short that one cannot point at it.
const BAR_PERCENT_MIN: f64 = 0.35;
/// Gaps between ticks that read well, in milliseconds.
const TICK_STEPS: [u64; 16] = [
    10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 30_000, 60_000, 300_000, 600_000, 3_600_000,
    21_600_000,
];
const TICKS_MAX: u64 = 7;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tone {
    Good,
    Bad,
    /// Time that passes between what we see: a kernel that starts.
    Pale,
}

#[derive(Clone, Debug)]
struct Bar {
    from: Timestamp,
    until: Timestamp,
    tone: Tone,
    label: String,
    title: String,
}

#[derive(Clone, Debug)]
struct Mark {
    at: Timestamp,
    tone: Tone,
    title: String,
}

#[derive(Clone, Debug, Default)]
struct Lane {
    bars: Vec<Bar>,
    marks: Vec<Mark>,
    bytes: u64,
    took: Duration,
    files: u64,
}

pub(super) fn draw(boot: &Boot) -> Markup {
    let (start, end) = span(boot);
    let lanes = LANES.map(|stage| (stage, lane(boot, stage)));
    let length = end.since(start);
    let ticks = ticks(length);
    html! {
        figure.chart role="group" aria-label={ "Boot " (boot.number) " over " (text::duration(length)) } {
            @for (stage, lane) in &lanes {
                div class={ "lane lane-" (words::stage_title(*stage).to_lowercase()) @if lane.is_empty() { " is-empty" } } {
                    span.lane-name { (words::stage_title(*stage)) }
                    svg.lane-bars width="100%" height="30" role="img" aria-label=(lane.said(*stage)) {
                        @for tick in &ticks { line.tick x1={ (tick.0) "%" } x2={ (tick.0) "%" } y1="0" y2="30" {} }
                        @for bar in &lane.bars { (bar.draw(start, length)) }
                        @for mark in &lane.marks { (mark.draw(start, length)) }
                    }
                    span.lane-total { (lane.total(boot, *stage)) }
                }
            }
            div.lane.axis aria-hidden="true" {
                span.lane-name {}
                svg.lane-bars width="100%" height="20" {
                    @for (place, label) in &ticks {
                        text x={ (place) "%" } y="14" text-anchor=(anchor(place)) { (label) }
                    }
                }
                span.lane-total {}
            }
            figcaption.quiet {
                "Started " (words::full(boot.started_at)) ", " (text::duration(length)) " to its last event."
                @if boot.unrecorded > 0 { " " (words::plural(boot.unrecorded.into(), "event was", "events were")) " counted, not kept." }
            }
        }
    }
}

/// From the first thing that began to the last that ended; a little room behind it, so that the end is seen.
fn span(boot: &Boot) -> (Timestamp, Timestamp) {
    let begins = boot.events.iter().map(began).min().unwrap_or(boot.started_at).min(boot.started_at);
    let ends = boot.events.iter().map(|event| event.at).max().unwrap_or(boot.started_at);
    let length = ends.since(begins).max(Duration::from_millis(100));
    (begins, begins.plus(length + length / 50))
}

fn began(event: &TimelineEvent) -> Timestamp {
    match &event.happening {
        Happening::File { took_millis, .. } => event.at.minus(Duration::from_millis(*took_millis)),
        _ => event.at,
    }
}

fn lane(boot: &Boot, stage: Stage) -> Lane {
    let mut lane = Lane::default();
    for event in &boot.events {
        lane.add(event, stage, boot);
    }
    lane
}

impl Lane {
    fn is_empty(&self) -> bool {
        self.bars.is_empty() && self.marks.is_empty()
    }

    fn add(&mut self, event: &TimelineEvent, stage: Stage, boot: &Boot) {
        let title = describe(&event.happening).sentence();
        let mut mark = |tone| self.marks.push(Mark { at: event.at, tone, title: title.clone() });
        match (&event.happening, stage) {
            (Happening::Dhcp { answer, .. }, Stage::Dhcp) => {
                mark(if answer.is_ok() { Tone::Good } else { Tone::Bad });
            }
            (Happening::File { stage: Some(of), sent, took_millis, outcome, .. }, stage) if *of == stage => {
                self.add_file(event, *sent, Duration::from_millis(*took_millis), outcome, title);
            }
            // A name nobody knows: the loader asks for what is not there.
            (Happening::File { stage: None, outcome: FileOutcome::NotFound, .. }, Stage::Loader) => {
                mark(Tone::Pale)
            }
            (Happening::Script { .. }, Stage::Script) => mark(Tone::Good),
            (Happening::BootLoop { .. }, Stage::Loader) | (Happening::AgentRefused { .. }, Stage::Agent) => {
                mark(Tone::Bad);
            }
            (Happening::Agent { call }, Stage::Agent) => match call {
                AgentCall::Failure { .. } => mark(Tone::Bad),
                AgentCall::Inventory | AgentCall::Obeying { .. } => mark(Tone::Good),
                AgentCall::Hello { uptime_secs, .. } => {
                    mark(Tone::Good);
                    self.kernel_start(event.at, *uptime_secs, boot);
                }
            },
            _ => {}
        }
    }

    fn add_file(
        &mut self,
        event: &TimelineEvent,
        sent: u64,
        took: Duration,
        outcome: &FileOutcome,
        title: String,
    ) {
        let tone = match outcome {
            FileOutcome::Complete | FileOutcome::Range => Tone::Good,
            FileOutcome::Aborted(_) | FileOutcome::NotFound => Tone::Bad,
            FileOutcome::Probe => Tone::Pale,
        };
        let rate = words::rate(sent, took);
        let label = match (&rate, tone) {
            (_, Tone::Pale) | (None, _) => String::new(),
            (Some(rate), _) => format!("{} · {rate}", text::bytes(sent)),
        };
        let title = rate.map_or(title.clone(), |rate| format!("{title}, {rate}"));
        self.bytes += sent;
        self.took += took;
        self.files += u64::from(tone != Tone::Pale);
        self.bars.push(Bar { from: began(event), until: event.at, tone, label, title });
    }

    /// From the kernel's own first moment to the agent's call: firmware and kernel are at work, and we see nothing.
    fn kernel_start(&mut self, called: Timestamp, uptime_secs: f64, boot: &Boot) {
        let up = Duration::try_from_secs_f64(uptime_secs).unwrap_or_default();
        let from = called.minus(up).max(boot.started_at);
        let label = format!("kernel starts, {}", text::duration(called.since(from)));
        self.bars.push(Bar { from, until: called, tone: Tone::Pale, title: label.clone(), label });
    }

    /// The lane in a sentence, for those who do not see it.
    fn said(&self, stage: Stage) -> String {
        let name = words::stage_title(stage);
        if self.is_empty() {
            return format!("{name}: nothing");
        }
        let said: Vec<&str> = self
            .bars
            .iter()
            .map(|bar| bar.title.as_str())
            .chain(self.marks.iter().map(|mark| mark.title.as_str()))
            .take(6)
            .collect();
        format!("{name}: {}", said.join("; "))
    }

    fn total(&self, boot: &Boot, stage: Stage) -> Markup {
        let reached = match stage {
            Stage::Agent => boot.times.get(&Stage::Enrolled).or(boot.times.get(&Stage::Agent)),
            _ => boot.times.get(&stage),
        };
        html! {
            @if self.files > 0 {
                b { (text::bytes(self.bytes)) } " " span.quiet { (text::duration(self.took)) }
            } @else if let Some(at) = reached {
                span.quiet { "+" (text::duration(at.since(boot.started_at))) }
            } @else if !self.is_empty() {
                span.quiet { (words::plural(self.marks.len() as u64, "event", "events")) }
            } @else {
                span.quiet { "–" }
            }
        }
    }
}

fn place(at: Timestamp, start: Timestamp, length: Duration) -> f64 {
    at.since(start).as_secs_f64() * 100.0 / length.as_secs_f64().max(0.001)
}

impl Bar {
    fn draw(&self, start: Timestamp, length: Duration) -> Markup {
        let from = place(self.from, start, length).min(100.0 - BAR_PERCENT_MIN);
        let width = (place(self.until, start, length) - from).max(BAR_PERCENT_MIN);
        let end = from + width;
        // Beside the bar where there is room, in it where it fills the lane.
        let (x, anchor, inside) = if end <= 62.0 {
            (end, "start", false)
        } else if from >= 38.0 {
            (from, "end", false)
        } else {
            (from + width / 2.0, "middle", true)
        };
        let shift = match anchor {
            "start" => "6",
            "end" => "-6",
            _ => "0",
        };
        html! {
            g class={ "bar-" (self.tone.key()) } {
                rect x={ (fixed(from)) "%" } width={ (fixed(width)) "%" } y="6" height="18" rx="3" { title { (self.title) } }
                @if !self.label.is_empty() && (width > 1.5 || self.tone != Tone::Pale) {
                    text class={ "bar-label" @if inside { " is-inside" } } x={ (fixed(x)) "%" } dx=(shift) y="19" text-anchor=(anchor) { (self.label) }
                }
            }
        }
    }
}

impl Mark {
    fn draw(&self, start: Timestamp, length: Duration) -> Markup {
        let at = fixed(place(self.at, start, length));
        html! {
            svg.mark x={ (at) "%" } y="0" width="1" height="30" overflow="visible" {
                path class={ "mark-" (self.tone.key()) } d=(match self.tone {
                    Tone::Bad => "M-5 10 0 15-5 20-3 22 2 17 7 22 9 20 4 15 9 10 7 8 2 13-3 8z",
                    Tone::Good | Tone::Pale => "M0 8 6 15 0 22-6 15z",
                }) { title { (self.title) } }
            }
        }
    }
}

impl Tone {
    fn key(self) -> &'static str {
        match self {
            Tone::Good => "good",
            Tone::Bad => "bad",
            Tone::Pale => "pale",
        }
    }
}

/// Where ticks stand, in percent, and what they say.
fn ticks(length: Duration) -> Vec<(String, String)> {
    let millis = u64::try_from(length.as_millis()).unwrap_or(u64::MAX).max(1);
    let step =
        TICK_STEPS.into_iter().find(|step| millis / step <= TICKS_MAX).unwrap_or(millis / TICKS_MAX + 1);
    (0..=millis / step)
        .map(|index| {
            let at = index * step;
            (fixed(at as f64 * 100.0 / millis as f64), tick_label(at, step))
        })
        .collect()
}

fn tick_label(at: u64, step: u64) -> String {
    match (at, step) {
        (0, _) => "0".to_owned(),
        (at, ..1000) => format!("{}s", at as f64 / 1000.0),
        (at, 1000..60_000) => format!("{}s", at / 1000),
        (at, 60_000..3_600_000) => format!("{}m", at / 60_000),
        (at, 3_600_000..) => format!("{}h", at / 3_600_000),
    }
}

fn anchor(place: &str) -> &'static str {
    match place.parse::<f64>() {
        Ok(place) if place < 2.0 => "start",
        Ok(place) if place > 97.0 => "end",
        Ok(_) | Err(_) => "middle",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_few_and_round() {
        let labels = |millis| {
            ticks(Duration::from_millis(millis)).into_iter().map(|(_, label)| label).collect::<Vec<_>>()
        };
        assert_eq!(labels(9_400), ["0", "2s", "4s", "6s", "8s"]);
        assert_eq!(labels(300), ["0", "0.05s", "0.1s", "0.15s", "0.2s", "0.25s", "0.3s"]);
        assert_eq!(labels(130_000), ["0", "30s", "60s", "90s", "120s"]);
        for millis in [1, 99, 12_345, 3_600_000, 900_000_000, u64::MAX] {
            assert!(labels(millis).len() <= 8, "{millis}");
        }
    }
}
