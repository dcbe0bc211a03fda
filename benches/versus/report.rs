//! Figures of several rounds, tables, and `benches/RESULTS.md`, one section for each part.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::Plan;

/// One figure, measured once per round.
#[derive(Clone, Debug, Default)]
pub struct Figure(Vec<f64>);

impl Figure {
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        match sorted.len() {
            0 => f64::NAN,
            count if count % 2 == 1 => sorted[count / 2],
            count => (sorted[count / 2 - 1] + sorted[count / 2]) / 2.0,
        }
    }

    /// `median (lowest–highest)`, to three digits.
    pub fn show(&self) -> String {
        if self.0.is_empty() {
            return "–".to_owned();
        }
        let lowest = self.0.iter().copied().fold(f64::INFINITY, f64::min);
        let highest = self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        format!("{} ({}–{})", digits(self.median()), digits(lowest), digits(highest))
    }
}

/// Three significant digits, thousands apart.
pub fn digits(value: f64) -> String {
    if !value.is_finite() {
        return "–".to_owned();
    }
    match value.abs() {
        size if size >= 100.0 => {
            let whole = (value.round() as i64).to_string();
            match whole.len() {
                5.. => format!("{} {}", &whole[..whole.len() - 3], &whole[whole.len() - 3..]),
                _ => whole,
            }
        }
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

pub fn ratio(ours: f64, theirs: f64) -> String {
    let ratio = ours / theirs;
    if ratio.is_finite() { format!("{ratio:.2}×") } else { "–".to_owned() }
}

/// This machine in a line, with what else there is to know of a run.
pub fn machine(run: &str) -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let (cpuinfo, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let kib: u64 = memory.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or(0);
    format!(
        "{} cores of {}, {:.1} GiB, Linux {}; {run}; load average before: {}.",
        std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        model.trim_start_matches([' ', '\t', ':']),
        kib as f64 / 1024.0 / 1024.0,
        read("/proc/sys/kernel/osrelease").trim(),
        read("/proc/loadavg").split(' ').next().unwrap_or_default()
    )
}

/// The value at this share of the sorted samples.
pub fn percentile(samples: &mut [f64], share: f64) -> f64 {
    if samples.is_empty() {
        return f64::NAN;
    }
    samples.sort_by(f64::total_cmp);
    let index = (samples.len() as f64 * share).ceil() as usize;
    samples[index.clamp(1, samples.len()) - 1]
}

/// A section of the results under construction; printed as it grows.
pub struct Section {
    title: &'static str,
    text: String,
    verdicts: Vec<[String; 4]>,
}

impl Section {
    pub fn new(title: &'static str, about: &str) -> Section {
        Section { title, text: format!("{about}\n\n"), verdicts: Vec::new() }
    }

    pub fn say(&mut self, line: &str) {
        println!("{line}");
        let _ = writeln!(self.text, "{line}\n");
    }

    pub fn table(&mut self, head: &[&str], rows: &[Vec<String>]) {
        let mut table = format!("| {} |\n|{}\n", head.join(" | "), "---|".repeat(head.len()));
        for row in rows {
            let _ = writeln!(table, "| {} |", row.join(" | "));
        }
        println!("{table}");
        let _ = writeln!(self.text, "{table}");
    }

    /// A target of the issue, and what came of it.
    pub fn target(&mut self, work: &str, target: &str, measured: &str, met: bool) {
        let verdict = if met { "met" } else { "**missed**" };
        println!("{verdict:12} {work}: {measured}, target {target}");
        self.verdicts.push([work.to_owned(), target.to_owned(), measured.to_owned(), verdict.to_owned()]);
    }

    /// `ours` against `bound` times `theirs`: more is better.
    pub fn at_least(&mut self, work: &str, ours: f64, bound: f64, theirs: f64, whose: &str) {
        let measured = format!("{} of {} {whose}: {}", digits(ours), digits(theirs), ratio(ours, theirs));
        self.target(work, &format!("≥ {bound}× {whose}"), &measured, ours >= bound * theirs);
    }

    /// `ours` against `bound` times `theirs`: less is better.
    pub fn at_most(&mut self, work: &str, ours: f64, bound: f64, theirs: f64, whose: &str) {
        let measured = format!("{} of {} {whose}: {}", digits(ours), digits(theirs), ratio(ours, theirs));
        self.target(work, &format!("≤ {bound}× {whose}"), &measured, ours <= bound * theirs);
    }

    /// Puts the section in place of its predecessor in `benches/RESULTS.md`; the other sections stay.
    pub fn write(mut self, plan: &Plan) {
        if !self.verdicts.is_empty() {
            let rows: Vec<Vec<String>> = self.verdicts.iter().map(|row| row.to_vec()).collect();
            self.say("");
            self.table(&["work", "target", "measured", ""], &rows);
        }
        if plan.is_partial() {
            println!("not written: some servers or steps were left out");
            return;
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/RESULTS.md");
        let before = fs::read_to_string(&path).unwrap_or_default();
        let mut sections: Vec<(String, String)> = before
            .split("\n## ")
            .skip(1)
            .filter_map(|section| section.split_once('\n'))
            .map(|(title, text)| (title.trim().to_owned(), text.trim().to_owned()))
            .collect();
        let text = format!("{}\n\n{}", plan.machine, self.text.trim());
        match sections.iter_mut().find(|(title, _)| title == self.title) {
            Some(section) => section.1 = text,
            None => sections.push((self.title.to_owned(), text)),
        }
        let mut whole = format!("{}\n", HEAD.trim());
        for (title, text) in sections {
            let _ = write!(whole, "\n## {title}\n\n{text}\n");
        }
        fs::write(&path, whole).expect("benches/RESULTS.md can be written");
        println!("written: {}", path.display());
    }
}

const HEAD: &str = "
# Side by side with the servers it replaces

Written by `make bench`; each section by the part it is named after. In one run the servers take turns on the same
machine, in network namespaces joined by a bridge, so ratios mean more than figures. A figure is the median of its
rounds, with the lowest and highest; load generators share the cores with the server.
";
