//! A verdict as it is read: the sentence first, the chain it comes from, what tells so, and what to do.

use maud::{Markup, html};

use crate::node::verdict::{Outcome, StageState, Verdict};
use crate::page::fleet::Condition;
use crate::page::words;

pub(super) fn show(verdict: &Verdict) -> Markup {
    let condition = match verdict.outcome {
        Outcome::Succeeded => Condition::Enrolled,
        Outcome::UnderWay => Condition::Booting,
        Outcome::Waiting => Condition::Waiting,
        Outcome::Stopped => Condition::Failed,
    };
    html! {
        p class={ "verdict is-" (condition.key()) } { (condition.glyph()) span { (words::sentence(&verdict.headline)) } }
        @if !verdict.stages.is_empty() {
            ol.verdict-chain aria-label="Stages of this boot" {
                @for mark in &verdict.stages {
                    @let (look, word) = state(mark.state);
                    li class=[look.map(|look| format!("is-{}", look.key()))] {
                        b {
                            @if let Some(look) = look { (look.glyph()) }
                            (words::stage_title(mark.stage)) span.visually-hidden { ", " (word) }
                        }
                        span { @if mark.text.is_empty() { span.quiet { (word) } } @else { (words::sentence(&mark.text)) } }
                    }
                }
            }
        }
        @if !verdict.remedy.is_empty() {
            h3 { "What to do" }
            ol.remedy { @for line in &verdict.remedy { li { (commands(line)) } } }
        }
        @if !verdict.evidence.is_empty() {
            details #evidence {
                summary { "What tells so (" (verdict.evidence.len()) ")" }
                ul.evidence {
                    @for told in &verdict.evidence { li { (words::clock(told.at)) " " (words::sentence(&told.text)) } }
                }
            }
        }
        p.quiet.cause { "Cause: " code { (verdict.cause.as_str()) } }
    }
}

fn state(state: StageState) -> (Option<Condition>, &'static str) {
    match state {
        StageState::Passed => (Some(Condition::Enrolled), "passed"),
        StageState::Stopped => (Some(Condition::Failed), "stopped here"),
        StageState::Awaited => (Some(Condition::Booting), "awaited"),
        StageState::Ahead => (None, "not reached"),
        StageState::Skipped => (None, "not part of this boot"),
    }
}

/// What stands in backquotes is to be typed.
fn commands(line: &str) -> Markup {
    html! {
        @for (index, part) in line.split('`').enumerate() {
            @if index % 2 == 1 { code { (words::sentence(part)) } } @else { (part) }
        }
    }
}
