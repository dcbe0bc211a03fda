//! `farrier status`

use std::time::Duration;

use super::client::Client;
use super::error::CommandError;
use super::json_text;
use super::table::Table;
use super::text::{Style, Tone, ago, counted, duration, inert};
use crate::clock::{Clock, Timestamp};
use crate::config::DhcpMode;
use crate::operator::api::{ProcessStatus, Severity, Status};

pub(super) async fn run(client: &Client, json: bool, style: Style) -> Result<String, CommandError> {
    let status: Status = client.get("/api/v1/status").await?;
    Ok(if json { json_text(&status) } else { render(&status, style, Clock::start().now()) })
}

pub(super) fn render(status: &Status, style: Style, now: Timestamp) -> String {
    let mut text = String::new();
    let mut line = |label: &str, tone: Tone, value: &str| {
        text.push_str(&format!("{label:<10} {}\n", style.paint(tone, &inert(value))));
    };
    let up = duration(Duration::from_secs(status.uptime_secs));
    line("farrier", Tone::Plain, &format!("{}, up {up}", status.version));
    let bridge = &status.bridge;
    line("bridge", Tone::Plain, &format!("{} {} {}", bridge.name, bridge.address, bridge.mac));
    if let Some(objection) = &bridge.objection {
        line("", Tone::Bad, objection);
    }
    if !bridge.up {
        let reason = bridge.reason.as_deref().unwrap_or("it is down");
        line("", Tone::Bad, &format!("nothing is served: {reason}"));
    }
    for (index, service) in status.services.iter().enumerate() {
        let label = if index == 0 { "services" } else { "" };
        let (tone, state) = if service.running { (Tone::Plain, "") } else { (Tone::Bad, ", not running") };
        line(label, tone, &format!("{} on {}{state}", service.name, service.listens));
    }
    for server in &status.dhcp.other_servers {
        let said = format!(
            "{} ({}): {} offers, {} acks, {} naks, last {}",
            server.address,
            server.mac,
            server.offers,
            server.acks,
            server.naks,
            ago(server.last_heard_at, now)
        );
        line("heard", Tone::Plain, &said);
    }
    for (index, rival) in status.rivals.iter().enumerate() {
        let label = if index == 0 { "rivals" } else { "" };
        line(label, Tone::Bad, &rival.headline());
        if rival.holding {
            line("", Tone::Bad, "nobody is answered until it is quiet: dhcp.on_rival = \"hold\"");
        }
        line("", Tone::Attention, &rival.way_out);
    }
    let pool = &status.pool;
    let used = pool.bound + pool.offered + pool.quarantined;
    let tone = if pool.size > 0 && used >= pool.size { Tone::Bad } else { Tone::Plain };
    let pool_text = format!(
        "{}-{}: {} of {} bound, {} offered, {} quarantined",
        pool.first, pool.last, pool.bound, pool.size, pool.offered, pool.quarantined
    );
    match status.dhcp.mode {
        DhcpMode::Server => line("pool", tone, &pool_text),
        DhcpMode::Proxy => {
            line("pool", Tone::Plain, "none: another DHCP server gives the addresses (dhcp.mode = \"proxy\")")
        }
        DhcpMode::Observe => line(
            "mode",
            Tone::Attention,
            "observe: nobody is answered; dhcp.mode = \"server\" or \"proxy\" makes it answer",
        ),
    }
    let transfers = status.transfers;
    let under_way = format!("{} by TFTP, {} by HTTP under way", transfers.tftp, transfers.http);
    line("transfers", Tone::Plain, &under_way);
    let total: u64 = status.nodes.values().sum();
    let states: Vec<String> = status
        .nodes
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    let listed = if states.is_empty() { String::new() } else { format!(": {}", states.join(", ")) };
    line("nodes", Tone::Plain, &format!("{}{listed}", counted(total, "node")));
    if status.waiting_for_approval > 0 {
        let waiting = counted(status.waiting_for_approval, "node");
        line("", Tone::Attention, &format!("{waiting} waiting for approval: `farrier node approve NODE`"));
    }
    let profile = &status.image.profile;
    if status.image.present {
        line("image", Tone::Plain, &format!("{profile}: deploy kernel and ramdisk present"));
    } else {
        let missing = format!(
            "{profile}: missing, nothing can be booted: `farrier image build deploy --profile {profile}`, then `systemctl reload farrier`"
        );
        line("image", Tone::Bad, &missing);
    }
    line("store", Tone::Plain, &status.store.path);
    if let Some(error) = &status.store.last_error {
        line("", Tone::Bad, &format!("last commit failed: {error}"));
    }
    let (tone, text_of_process) = process(&status.process);
    line("process", tone, &text_of_process);
    text.push_str(&problems(status, style, now));
    text.push_str(&counters(status, style));
    text
}

/// Attention where the kernel, or the way it was started, leaves it more than it should have.
fn process(process: &ProcessStatus) -> (Tone, String) {
    let ProcessStatus { user, capabilities, no_new_privileges, landlock, seccomp } = process;
    let held = if capabilities.is_empty() { "no capabilities".to_owned() } else { capabilities.join(" ") };
    let on = |on: bool| if on { "on" } else { "off" };
    let (privileges, calls) = (on(*no_new_privileges), on(*seccomp));
    let text =
        format!("user {user}, {held}; no_new_privs {privileges}, Landlock {landlock}, seccomp {calls}");
    let confined = *no_new_privileges && *seccomp && landlock != "off" && user != "root";
    (if confined { Tone::Plain } else { Tone::Attention }, text)
}

fn problems(status: &Status, style: Style, now: Timestamp) -> String {
    if status.problems.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&["WHEN", "LAST PROBLEMS"]);
    for problem in &status.problems {
        let tone = match problem.severity {
            Severity::Warning => Tone::Attention,
            Severity::Error => Tone::Bad,
        };
        table.row(tone, [ago(problem.at, now), problem.message.clone()]);
    }
    format!("\n{}", table.render(style))
}

fn counters(status: &Status, style: Style) -> String {
    if status.counters.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&["SERVICE", "OUTCOME", ">COUNT"]);
    for counter in &status.counters {
        table.row(Tone::Plain, [&counter.service, &counter.outcome, &counter.count.to_string()]);
    }
    format!("\n{}", table.render(style))
}
