//! `farrier doctor [--fix]`

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::client::Client;
use super::error::CommandError;
use super::text::{Style, Tone, inert};
use super::{Finished, ask, json_text};
use crate::config::{Config, DhcpMode};
use crate::doctor::facts::{Facts, Rival, RivalsFact};
use crate::doctor::gather::{ask_for_rivals, gather};
use crate::doctor::{Finding, Mend, Severity, judge, would_boot};
use crate::operator::api::{RivalStatus, Status};

const CONFIG_DEFAULT: &str = "/etc/farrier/farrier.toml";
/// A mend can bring to light what the next must mend: a bridge that was missing had no address either.
const ROUNDS_MAX: usize = 4;
/// As wide as a terminal is at least.
const WIDTH: usize = 80;
const SEVERITY_WIDTH: usize = 9;
const CHECK_WIDTH: usize = 18;

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Configuration file
    #[arg(long, value_name = "FILE", default_value = CONFIG_DEFAULT)]
    config: PathBuf,
    /// Run the mends that touch nothing but the bridge, its ports, and what is let through to it; say each; check again
    #[arg(long)]
    fix: bool,
    /// Ask on the bridge for other DHCP servers and routers even if an appliance serves there, which asks every minute
    #[arg(long, conflicts_with = "no_probe")]
    probe: bool,
    /// Ask nobody: without this, one DHCP DISCOVER and one router solicitation are sent, and answers awaited for 4 s
    #[arg(long)]
    no_probe: bool,
    /// Leave out what only virtual machines on this host need: KVM, QEMU and its firmware
    #[arg(long)]
    no_lab: bool,
}

/// A mend that was run.
#[derive(Debug, Serialize)]
struct Mended {
    command: String,
    done: bool,
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct DoctorReport<'a> {
    would_boot: bool,
    findings: &'a [Finding],
    mended: &'a [Mended],
}

pub(super) fn run(arguments: &DoctorArgs, json: bool, style: Style) -> Result<Finished, CommandError> {
    let config = Config::load(&arguments.config)?;
    let lab = !arguments.no_lab;
    let mut facts = gather(&config, lab);
    let mut mended = Vec::new();
    if arguments.fix {
        for _ in 0..ROUNDS_MAX {
            let before = mended.len();
            mend(&judge(&facts), &mut mended);
            if mended.len() == before {
                break;
            }
            facts = look_again(&config, lab, &mended);
        }
    }
    // Last: the bridge may have been made just now, and nobody is asked twice.
    if !arguments.no_probe {
        facts.rivals = rivals(&config, arguments.probe);
    }
    let findings = judge(&facts);
    let would_boot = would_boot(&findings);
    let stdout = match json {
        true => json_text(&DoctorReport { would_boot, findings: &findings, mended: &mended }),
        false => render(&findings, arguments.fix, style),
    };
    Ok(Finished { stdout, stderr: String::new(), code: if would_boot { 0 } else { 1 } })
}

/// Who else answers: what the appliance knows that serves this bridge, or else what answers us.
fn rivals(config: &Config, ask_ourselves: bool) -> RivalsFact {
    let known = if ask_ourselves { None } else { known_to_the_appliance(config) };
    known.map_or_else(|| ask_for_rivals(config), RivalsFact::Told)
}

/// Only as a server does it look for others; and not before its first question could be answered does it know.
fn known_to_the_appliance(config: &Config) -> Option<Vec<Rival>> {
    const ANSWERS_TAKE: Duration = Duration::from_secs(5);
    let client = Client::new(&config.operator.socket);
    let status: Status = ask(async { client.get("/api/v1/status").await }).ok()?;
    let same = status.bridge.name == config.network.bridge.0
        && status.bridge.address == config.network.address.to_string();
    let knows = status.bridge.up
        && status.dhcp.mode == DhcpMode::Server
        && status.uptime_secs >= ANSWERS_TAKE.as_secs();
    let rival = |rival: RivalStatus| Rival {
        kind: rival.kind,
        address: rival.address,
        mac: rival.mac,
        offered: None,
        way_out: Some(rival.way_out),
    };
    (same && knows).then(|| status.rivals.into_iter().map(rival).collect())
}

/// What is seen once what was mended has taken effect: a port that is switched on forwards a moment later.
fn look_again(config: &Config, lab: bool, mended: &[Mended]) -> Facts {
    const AT_MOST: Duration = Duration::from_secs(2);
    const BETWEEN: Duration = Duration::from_millis(50);
    let until = Instant::now() + AT_MOST;
    let was_run = |mend: &Mend| mended.iter().any(|one| one.done && one.command == mend.text());
    loop {
        let facts = gather(config, lab);
        let findings = judge(&facts);
        let mut amiss = findings.iter().filter(|finding| finding.severity > Severity::Ok);
        if !amiss.any(|finding| finding.mends.iter().any(was_run)) || Instant::now() >= until {
            return facts;
        }
        thread::park_timeout(BETWEEN);
    }
}

/// Runs what is safe and was not run before; says so while it happens.
fn mend(findings: &[Finding], mended: &mut Vec<Mended>) {
    let amiss = findings.iter().filter(|finding| finding.severity > Severity::Ok);
    for mend in amiss.flat_map(|finding| &finding.mends).filter(|mend| mend.is_safe()) {
        let command = mend.text();
        if mended.iter().any(|one| one.command == command) {
            continue;
        }
        eprintln!("farrier: {}", inert(&command));
        let error = mend.apply().err();
        if let Some(error) = &error {
            eprintln!("farrier: that failed: {}", inert(error));
        }
        mended.push(Mended { command, done: error.is_none(), error });
    }
}

fn render(findings: &[Finding], fixed: bool, style: Style) -> String {
    let heading = format!("{:<SEVERITY_WIDTH$}{:<CHECK_WIDTH$}FINDING", "", "CHECK");
    let mut text = format!("{}\n", style.paint(Tone::Heading, &heading));
    for finding in findings {
        text.push_str(&rows(finding, style));
    }
    text.push_str(&format!("\n{}\n", conclusion(findings, fixed, style)));
    text
}

fn rows(finding: &Finding, style: Style) -> String {
    let (word, tone) = match finding.severity {
        Severity::Ok => ("ok", Tone::Plain),
        Severity::Warning => ("warning", Tone::Attention),
        Severity::WouldNotBoot => ("NO BOOT", Tone::Bad),
    };
    let start = format!("{word:<SEVERITY_WIDTH$}{:<CHECK_WIDTH$}", finding.check.as_str());
    let mut lines = wrapped(&start, &finding.what);
    let blank = " ".repeat(start.len());
    if !finding.why.is_empty() {
        lines.extend(wrapped(&blank, &finding.why));
    }
    for mend in &finding.mends {
        // A command is one line, however long, so that it can be copied.
        match mend {
            Mend::Advice(advice) => {
                lines.extend(wrapped(&" ".repeat(SEVERITY_WIDTH), &format!("→ {advice}")))
            }
            Mend::Run { .. } | Mend::ChecksumsBySoftware { .. } => {
                lines.push(format!("{}$ {}", " ".repeat(SEVERITY_WIDTH), inert(&mend.text())));
            }
        }
    }
    lines.iter().map(|line| format!("{}\n", style.paint(tone, line))).collect()
}

/// Words as lines; the first begins with `start`, the others are indented as far.
fn wrapped(start: &str, words: &str) -> Vec<String> {
    let indent = start.chars().count();
    let mut lines = vec![start.to_owned()];
    let mut empty = true;
    for word in words.split_whitespace().map(inert) {
        let Some(line) = lines.last_mut() else { break };
        let fits = line.chars().count() + usize::from(!empty) + word.chars().count() <= WIDTH;
        if fits || empty {
            line.push_str(if empty { "" } else { " " });
            line.push_str(&word);
        } else {
            lines.push(format!("{}{word}", " ".repeat(indent)));
        }
        empty = false;
    }
    lines
}

fn conclusion(findings: &[Finding], fixed: bool, style: Style) -> String {
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count() as u64;
    let (obstacles, warnings) = (count(Severity::WouldNotBoot), count(Severity::Warning));
    let mendable = findings
        .iter()
        .filter(|finding| finding.severity > Severity::Ok)
        .any(|finding| finding.mends.iter().any(Mend::is_safe));
    let hint = if mendable && !fixed { "\n`farrier doctor --fix` mends what it safely can" } else { "" };
    let warnings = super::text::counted(warnings, "warning");
    match obstacles {
        0 => style.paint(Tone::Good, &format!("A machine would boot from here: {warnings}{hint}")),
        _ => style.paint(
            Tone::Bad,
            &format!(
                "A machine would not boot from here: {}, {warnings}{hint}",
                super::text::counted(obstacles, "obstacle")
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Check;

    #[test]
    fn findings_fit_eighty_columns_and_commands_stay_whole() {
        let long = "word ".repeat(60);
        let command = ["ip", "link", "set", &"x".repeat(90)];
        let findings = [
            Finding::ok(Check::Bridge, "br0", "fine"),
            Finding::would_not_boot(Check::BridgeNetfilter, "br0", &long, &long)
                .mended_by([Mend::safe(&command), Mend::advice(long.clone())]),
        ];
        let text = render(&findings, false, Style::PLAIN);
        let too_long: Vec<&str> = text.lines().filter(|line| line.chars().count() > WIDTH).collect();
        assert_eq!(too_long, [format!("         $ {}", command.join(" "))]);
        assert!(text.lines().nth(1).unwrap().starts_with("ok       bridge            fine"), "{text}");
        assert!(text.contains("NO BOOT  bridge-netfilter  word word"), "{text}");
        assert!(text.contains("1 obstacle, 0 warnings\n`farrier doctor --fix`"), "{text}");
        assert!(!render(&findings, true, Style::PLAIN).contains("--fix"));
    }

    #[test]
    fn nothing_found_steers_the_terminal() {
        let finding =
            Finding::warning(Check::Sockets, "x", "a\x1b[31mb", "why").mended_by([Mend::safe(&["\x07"])]);
        let text = rows(&finding, Style::PLAIN);
        assert!(
            text.contains("a\\u{1b}[31mb") && text.contains("\\u{7}") && !text.contains('\x1b'),
            "{text}"
        );
    }
}
