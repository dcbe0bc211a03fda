//! Prometheus text exposition (format 0.0.4) of the status document.

use std::fmt::Write as _;

use super::api::Status;

pub(super) fn render(status: &Status) -> String {
    let mut text = Text::default();
    text.family("farrier_build_info", "gauge", "The running version.");
    text.sample("farrier_build_info", &[("version", &status.version)], 1);
    text.family("farrier_uptime_seconds", "gauge", "Seconds since the appliance started.");
    text.sample("farrier_uptime_seconds", &[], status.uptime_secs);
    text.family("farrier_service_running", "gauge", "1 while the service runs.");
    for service in &status.services {
        text.sample("farrier_service_running", &[("service", &service.name)], service.running.into());
    }
    text.family("farrier_outcomes_total", "counter", "What each service answered, and why it did not.");
    for counter in &status.counters {
        let labels = [("service", counter.service.as_str()), ("outcome", counter.outcome.as_str())];
        text.sample("farrier_outcomes_total", &labels, counter.count);
    }
    text.family("farrier_nodes", "gauge", "Known nodes by provision state.");
    for (state, count) in &status.nodes {
        text.sample("farrier_nodes", &[("state", &state.to_string())], *count);
    }
    text.family("farrier_nodes_waiting_for_approval", "gauge", "Nodes an operator has to approve.");
    text.sample("farrier_nodes_waiting_for_approval", &[], status.waiting_for_approval);
    text.family("farrier_pool_addresses", "gauge", "Addresses of the dynamic pool by use.");
    let pool = &status.pool;
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
    text.family("farrier_image_present", "gauge", "1 if the deploy image of the profile can be served.");
    let profile = [("profile", status.image.profile.as_str())];
    text.sample("farrier_image_present", &profile, status.image.present.into());
    text.family("farrier_store_failing", "gauge", "1 while the last commit to the store failed.");
    text.sample("farrier_store_failing", &[], status.store.last_error.is_some().into());
    text.0
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        self.0.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            let opening = if index == 0 { '{' } else { ',' };
            let _ = write!(self.0, "{opening}{label}=\"{}\"", escaped(text));
        }
        let closing = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{closing} {value}");
    }
}

/// Label values escape backslash, quote and line feed.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_values_are_escaped() {
        let mut text = Text::default();
        text.sample("x", &[("a", "q\"b\\s\nn"), ("b", "")], 3);
        assert_eq!(text.0, "x{a=\"q\\\"b\\\\s\\nn\",b=\"\"} 3\n");
    }
}
