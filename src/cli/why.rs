//! `farrier why NODE`

use clap::Args;

use super::client::{Client, segment};
use super::error::CommandError;
use super::json_text;
use super::text::{Style, Tone, ago, inert};
use super::timeline::stage_word;
use crate::clock::{Clock, Timestamp};
use crate::node::registry::NodeRef;
use crate::node::verdict::{Outcome, StageMark, StageState, Verdict};

#[derive(Debug, Args)]
pub struct WhyArgs {
    /// Name, MAC address (registered or not), id or SMBIOS UUID
    #[arg(value_parser = parse_reference)]
    node: String,
    /// Judge this boot instead of the last one
    #[arg(long, value_name = "NUMBER")]
    boot: Option<u32>,
    /// Judge as of this time (RFC 3339): what happened later is left out, what is late by then is late
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    at: Option<Timestamp>,
}

fn parse_reference(text: &str) -> Result<String, String> {
    text.parse::<NodeRef>().map(|reference| reference.to_string()).map_err(|error| error.to_string())
}

fn parse_time(text: &str) -> Result<Timestamp, String> {
    serde_json::from_value(serde_json::Value::String(text.to_owned()))
        .map_err(|_| format!("`{text}` is no time as in 2026-11-20T13:00:00Z"))
}

pub(super) async fn run(
    arguments: &WhyArgs,
    client: &Client,
    json: bool,
    style: Style,
) -> Result<String, CommandError> {
    let boot = arguments.boot.map(|number| format!("boot={number}"));
    let at = arguments.at.map(|at| format!("at={}", segment(&at.to_string())));
    let query: Vec<String> = boot.into_iter().chain(at).collect();
    let mark = if query.is_empty() { "" } else { "?" };
    let path = format!("/api/v1/nodes/{}/why{mark}{}", segment(&arguments.node), query.join("&"));
    let verdict: Verdict = client.get(&path).await?;
    let now = arguments.at.unwrap_or_else(|| Clock::start().now());
    Ok(if json { json_text(&verdict) } else { render(&verdict, style, now) })
}

/// One screen: the sentence, the chain, what it is told by, what to do.
pub(super) fn render(verdict: &Verdict, style: Style, now: Timestamp) -> String {
    let tone = match verdict.outcome {
        Outcome::Succeeded => Tone::Good,
        Outcome::UnderWay => Tone::Plain,
        Outcome::Waiting => Tone::Attention,
        Outcome::Stopped => Tone::Bad,
    };
    let name = verdict.name.as_ref().map(ToString::to_string);
    let mac = verdict.mac.map(|mac| mac.to_string());
    let who = match (name, mac) {
        (Some(name), Some(mac)) => format!("{name} ({mac})"),
        (Some(who), None) | (None, Some(who)) => who,
        (None, None) => verdict.node.map_or_else(|| "machine".to_owned(), |id| id.to_string()),
    };
    let boot = verdict.boot.map(|number| format!(", boot {number}")).unwrap_or_default();
    let mut text = format!("{}\n", style.paint(Tone::Heading, &inert(&format!("{who}{boot}"))));
    text.push_str(&format!("{}\n", style.paint(tone, &inert(&verdict.headline))));
    text.push_str(&format!("cause: {}\n", verdict.cause));
    if verdict.boot.is_some() {
        text.push('\n');
        let start = verdict.stages.iter().filter_map(|mark| mark.at).min();
        for mark in &verdict.stages {
            text.push_str(&stage_line(mark, start, style));
        }
    }
    if !verdict.evidence.is_empty() {
        text.push_str(&format!("\n{}\n", style.paint(Tone::Heading, "EVIDENCE")));
        for evidence in &verdict.evidence {
            text.push_str(&format!("  {:<12} {}\n", ago(evidence.at, now), inert(&evidence.text)));
        }
    }
    if !verdict.remedy.is_empty() {
        text.push_str(&format!("\n{}\n", style.paint(Tone::Heading, "WHAT TO DO")));
        for line in &verdict.remedy {
            text.push_str(&format!("  - {}\n", inert(line)));
        }
    }
    text
}

fn stage_line(mark: &StageMark, start: Option<Timestamp>, style: Style) -> String {
    let (sign, tone) = match mark.state {
        StageState::Passed => ("✓", Tone::Good),
        StageState::Stopped => ("✗", Tone::Bad),
        StageState::Awaited => ("…", Tone::Attention),
        StageState::Ahead => (" ", Tone::Plain),
        StageState::Skipped => ("-", Tone::Plain),
    };
    let after = match (mark.at, start) {
        (Some(at), Some(start)) => format!("+{:.1}s", at.since(start).as_secs_f64()),
        (_, _) => String::new(),
    };
    let line = format!("  {sign} {:<9} {after:>8}  {}", stage_word(mark.stage), inert(&mark.text));
    format!("{}\n", style.paint(tone, line.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::MacAddr;
    use crate::node::timeline::Stage;
    use crate::node::verdict::{Cause, EventRef, Evidence};

    #[test]
    fn a_verdict_is_one_screen_and_inert() {
        let at = Timestamp::from_millis(1_795_000_000_000);
        let mark = |stage, state, at, text: &str| StageMark { stage, state, at, text: text.to_owned() };
        let verdict = Verdict {
            node: None,
            name: Some("rack1".parse().unwrap()),
            mac: Some(MacAddr([0x52, 0x54, 0, 0, 0, 1])),
            boot: Some(3),
            at,
            outcome: Outcome::Stopped,
            stage: Some(Stage::Loader),
            cause: Cause::LoaderNotFound,
            headline: "it asked for \x1b[31mx".to_owned(),
            stages: vec![
                mark(Stage::Dhcp, StageState::Passed, Some(at), "192.168.2.9"),
                mark(
                    Stage::Loader,
                    StageState::Stopped,
                    Some(at.plus(std::time::Duration::from_millis(1500))),
                    "x: not found",
                ),
                mark(Stage::Script, StageState::Ahead, None, ""),
            ],
            evidence: vec![Evidence {
                at,
                text: "a\nb".to_owned(),
                event: Some(EventRef { boot: 3, sequence: 1 }),
            }],
            remedy: vec!["mend it".to_owned()],
        };
        let text = render(&verdict, Style::PLAIN, at.plus(std::time::Duration::from_secs(7)));
        let expected = "rack1 (52:54:00:00:00:01), boot 3\n\
                        it asked for \\u{1b}[31mx\n\
                        cause: loader-not-found\n\n\
                        \u{20} ✓ dhcp         +0.0s  192.168.2.9\n\
                        \u{20} ✗ loader       +1.5s  x: not found\n\
                        \u{20}   script\n\n\
                        EVIDENCE\n  7s ago       a\\u{a}b\n\n\
                        WHAT TO DO\n  - mend it\n";
        assert_eq!(text, expected);
    }
}
