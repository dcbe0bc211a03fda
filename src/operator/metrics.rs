//! Prometheus text exposition (format 0.0.4).

use std::fmt::Write as _;

use super::OperatorParts;
use super::api::{BridgeStatus, PoolStatus, Status, StoreStatus, TransfersStatus};
use super::views;
use crate::guard::rivals::Kind;
use crate::telemetry::Tally;
use crate::telemetry::stages::{BOUNDS_MICROS, Distribution, Timed};

pub(super) const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) fn render(parts: &OperatorParts) -> String {
    let status = views::status(parts);
    let mut text = Text::default();
    appliance(&mut text, &status);
    text.family("farrier_outcomes_total", "counter", "What each service answered, and why it did not.");
    let is_sum = |outcome: &str| SUMS.iter().any(|(word, _, _)| *word == outcome);
    for counter in status.counters.iter().filter(|counter| !is_sum(&counter.outcome)) {
        let labels = [("service", counter.service.as_str()), ("outcome", counter.outcome.as_str())];
        text.sample("farrier_outcomes_total", &labels, counter.count);
    }
    for (word, name, help) in SUMS {
        text.family(name, "counter", help);
        for service in ["tftp", "http"] {
            text.sample(name, &[("service", service)], parts.tally.value(service, word));
        }
    }
    text.family("farrier_nodes", "gauge", "Known nodes by provision state.");
    for (state, count) in &status.nodes {
        text.sample("farrier_nodes", &[("state", &state.to_string())], *count);
    }
    text.family("farrier_nodes_waiting_for_approval", "gauge", "Nodes an operator has to approve.");
    text.sample("farrier_nodes_waiting_for_approval", &[], status.waiting_for_approval);
    pool(&mut text, &status.pool);
    transfers(&mut text, status.transfers);
    store(&mut text, &status.store);
    durations(&mut text, &parts.tally);
    in_use(&mut text, &parts.tally);
    text.0
}

/// Counters that are no outcomes but sums: word, name, meaning.
const SUMS: [(&str, &str, &str); 2] = [
    ("bytes", "farrier_sent_bytes_total", "Bytes of files sent."),
    ("retransmissions", "farrier_retransmissions_total", "Blocks sent again."),
];

fn appliance(text: &mut Text, status: &Status) {
    text.family("farrier_build_info", "gauge", "The running version.");
    text.sample("farrier_build_info", &[("version", &status.version)], 1);
    text.family("farrier_uptime_seconds", "gauge", "Seconds since the appliance started.");
    text.sample("farrier_uptime_seconds", &[], status.uptime_secs);
    text.family("farrier_service_running", "gauge", "1 while the service runs.");
    for service in &status.services {
        text.sample("farrier_service_running", &[("service", &service.name)], service.running.into());
    }
    let BridgeStatus { name, up, .. } = &status.bridge;
    text.family("farrier_bridge_up", "gauge", "1 while the bridge is up and has our address.");
    text.sample("farrier_bridge_up", &[("bridge", name)], (*up).into());
    text.family("farrier_rivals", "gauge", "Others who answer on the bridge; there should be none.");
    for kind in [Kind::Dhcp, Kind::RouterAdvertisement] {
        let count = status.rivals.iter().filter(|rival| rival.kind == kind).count();
        text.sample("farrier_rivals", &[("kind", kind.as_str())], count as u64);
    }
    text.family("farrier_image_present", "gauge", "1 if the deploy image of the profile can be served.");
    let profile = [("profile", status.image.profile.as_str())];
    text.sample("farrier_image_present", &profile, status.image.present.into());
}

fn pool(text: &mut Text, pool: &PoolStatus) {
    text.family("farrier_pool_addresses", "gauge", "Addresses of the dynamic pool by use.");
    let taken = pool.bound + pool.offered + pool.quarantined;
    let uses = [
        ("bound", pool.bound),
        ("offered", pool.offered),
        ("quarantined", pool.quarantined),
        ("free", pool.size.saturating_sub(taken)),
    ];
    for (used, count) in uses {
        text.sample("farrier_pool_addresses", &[("use", used)], count);
    }
}

fn transfers(text: &mut Text, transfers: TransfersStatus) {
    text.family("farrier_transfers", "gauge", "Transfers under way.");
    text.sample("farrier_transfers", &[("service", "tftp")], transfers.tftp);
    text.sample("farrier_transfers", &[("service", "http")], transfers.http);
}

fn store(text: &mut Text, store: &StoreStatus) {
    text.family("farrier_store_failing", "gauge", "1 while the last commit to the store failed.");
    text.sample("farrier_store_failing", &[], store.last_error.is_some().into());
    let counters = [
        ("farrier_store_commits_total", "Transactions synced to disk.", store.commits),
        ("farrier_store_batches_total", "Batches made durable by them.", store.batches),
        ("farrier_store_changes_total", "Changes in these batches.", store.changes),
        ("farrier_store_failed_commits_total", "Transactions that failed.", store.failed_commits),
    ];
    for (name, help, value) in counters {
        text.family(name, "counter", help);
        text.sample(name, &[], value);
    }
    let gauges = [
        ("farrier_store_queued_batches", "Batches that wait for the disk.", store.queued),
        ("farrier_store_batch_size_max", "Most batches one transaction carried.", store.largest_group),
    ];
    for (name, help, value) in gauges {
        text.family(name, "gauge", help);
        text.sample(name, &[], value);
    }
}

fn durations(text: &mut Text, tally: &Tally) {
    const NAME: &str = "farrier_duration_seconds";
    text.family(NAME, "histogram", "How long each stage took us.");
    for timed in Timed::ALL {
        text.histogram(NAME, ("stage", timed.as_str()), &tally.distribution(timed));
    }
}

fn in_use(text: &mut Text, tally: &Tally) {
    let levels = tally.levels();
    text.family("farrier_in_use", "gauge", "How much of what each service bounds is in use.");
    for (service, what, now, _) in &levels {
        text.sample("farrier_in_use", &[("service", service), ("what", what)], *now);
    }
    text.family("farrier_in_use_limit", "gauge", "The bound of farrier_in_use.");
    for (service, what, _, most) in &levels {
        text.sample("farrier_in_use_limit", &[("service", service), ("what", what)], *most);
    }
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        self.line(name, labels, &value.to_string());
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: &str) {
        self.0.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            let opening = if index == 0 { '{' } else { ',' };
            let _ = write!(self.0, "{opening}{label}=\"{}\"", escaped(text));
        }
        let closing = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{closing} {value}");
    }

    /// Buckets are cumulative, and the last one has no end.
    fn histogram(&mut self, name: &str, label: (&str, &str), times: &Distribution) {
        let bucket = format!("{name}_bucket");
        let mut below = 0;
        for (place, count) in times.counts.iter().enumerate() {
            below += count;
            let end = BOUNDS_MICROS.get(place).map_or_else(|| "+Inf".to_owned(), |micros| seconds(*micros));
            self.sample(&bucket, &[label, ("le", &end)], below);
        }
        self.line(&format!("{name}_sum"), &[label], &seconds(times.sum_micros));
        self.sample(&format!("{name}_count"), &[label], below);
    }
}

/// Microseconds as seconds, without the noise of binary fractions.
fn seconds(micros: u64) -> String {
    let text = format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
    let text = text.trim_end_matches('0').trim_end_matches('.');
    text.to_owned()
}

/// Label values escape backslash, quote and line feed.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
pub(super) mod tests;
