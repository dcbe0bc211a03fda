//! What a person in front of the machine reads: one short line a step, a box when something is wrong.
//!
//! The kernel sends our standard output to one console only. A machine with a screen and a serial port has two, so
//! lines go to every console the kernel lists as active.

use std::fmt::Display;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

/// Characters between the borders of a box; fits an 80 column screen.
const BOX_WIDTH: usize = 72;

pub struct Console {
    outputs: Mutex<Vec<File>>,
    started: Instant,
    /// Kernel time when we started, so that our seconds continue the kernel's.
    kernel_secs: f64,
}

impl Console {
    /// Every active console, or standard output when there is none to open (a test, a container).
    pub fn open(root: &Path) -> Self {
        let active = std::fs::read_to_string(root.join("sys/class/tty/console/active")).unwrap_or_default();
        let outputs: Vec<File> = active
            .split_ascii_whitespace()
            .filter(|name| !name.contains('/'))
            .filter_map(|name| File::options().write(true).open(root.join("dev").join(name)).ok())
            .collect();
        Console { outputs: Mutex::new(outputs), started: Instant::now(), kernel_secs: uptime(root) }
    }

    /// Seconds since the kernel started.
    pub fn seconds(&self) -> f64 {
        self.kernel_secs + self.started.elapsed().as_secs_f64()
    }

    pub fn say(&self, text: impl Display) {
        self.write(&format!("[{:8.3}] farrier: {}\n", self.seconds(), printable(&text.to_string())));
    }

    /// A failure: which step, what happened, what to do about it.
    pub fn trouble(&self, step: &str, what: &str, way_out: &str) {
        self.write(&boxed(self.seconds(), step, what, way_out));
    }

    fn write(&self, text: &str) {
        let mut outputs = match self.outputs.lock() {
            Ok(outputs) => outputs,
            Err(poisoned) => poisoned.into_inner(),
        };
        // A console that cannot be written to must not stop the machine from enrolling.
        if outputs.is_empty() {
            let _ = std::io::stdout().write_all(text.as_bytes());
        }
        for output in outputs.iter_mut() {
            let _ = output.write_all(text.as_bytes());
        }
    }
}

/// Kernel seconds from `/proc/uptime`; zero if it cannot be read.
pub fn uptime(root: &Path) -> f64 {
    std::fs::read_to_string(root.join("proc/uptime"))
        .ok()
        .and_then(|text| text.split_ascii_whitespace().next()?.parse().ok())
        .unwrap_or(0.0)
}

/// Text from the network or from firmware must not move the cursor or recolour the screen.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(512).collect()
}

fn boxed(seconds: f64, step: &str, what: &str, way_out: &str) -> String {
    let rule = "-".repeat(BOX_WIDTH + 2);
    let mut text = format!("\n+{rule}+\n");
    let title = format!("farrier: {step} failed after {seconds:.1} s");
    let lines = [title.as_str(), "", what, "", way_out];
    for line in lines.into_iter().flat_map(|line| wrapped(&printable(line))) {
        text.push_str(&format!("| {line:<BOX_WIDTH$} |\n"));
    }
    text.push_str(&format!("+{rule}+\n\n"));
    text
}

/// Breaks at spaces; a word longer than the box is cut.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let mut rest: Vec<char> = word.chars().collect();
        loop {
            let line = lines.last_mut().map_or(0, |line| line.chars().count());
            let gap = usize::from(line > 0);
            if line + gap + rest.len() <= BOX_WIDTH {
                if let Some(last) = lines.last_mut() {
                    last.extend(" ".repeat(gap).chars().chain(rest));
                }
                break;
            }
            if line == 0 {
                let tail = rest.split_off(BOX_WIDTH);
                if let Some(last) = lines.last_mut() {
                    last.extend(rest);
                }
                rest = tail;
            }
            lines.push(String::new());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_box_keeps_its_right_border_whatever_it_holds() {
        let long = "word ".repeat(40) + &"x".repeat(200) + " \u{1b}[31mred";
        let text = boxed(3.12, "hello", &long, "look at the appliance: `farrier node list`");
        let widths: Vec<usize> =
            text.lines().filter(|line| !line.is_empty()).map(|l| l.chars().count()).collect();
        assert!(widths.iter().all(|width| *width == BOX_WIDTH + 4), "{text}");
        assert!(!text.contains('\u{1b}'));
        assert!(text.contains("hello failed after 3.1 s"));
    }

    #[test]
    fn words_are_kept_whole_where_they_fit() {
        assert_eq!(wrapped(""), [""]);
        assert_eq!(wrapped("one two"), ["one two"]);
        let lines = wrapped(&"abcdefgh ".repeat(12));
        assert!(lines.len() == 2 && lines[0].ends_with("abcdefgh"), "{lines:?}");
    }
}
