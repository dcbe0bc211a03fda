//! Lines at the bottom of a terminal that are redrawn, with ordinary lines scrolling above them. Where there is no
//! terminal only the ordinary lines are printed.

use std::io::{IsTerminal, Write as _};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

pub struct View {
    live: bool,
    area: MultiProgress,
    rows: Vec<ProgressBar>,
}

impl View {
    pub fn of_stdout() -> View {
        let live = std::io::stdout().is_terminal();
        let target = if live { ProgressDrawTarget::stdout() } else { ProgressDrawTarget::hidden() };
        View { live, area: MultiProgress::with_draw_target(target), rows: Vec::new() }
    }

    /// Ordinary lines only, even on a terminal.
    pub fn lines_only() -> View {
        View {
            live: false,
            area: MultiProgress::with_draw_target(ProgressDrawTarget::hidden()),
            rows: Vec::new(),
        }
    }

    /// Shows nothing at all.
    pub fn hidden() -> View {
        View {
            live: true,
            area: MultiProgress::with_draw_target(ProgressDrawTarget::hidden()),
            rows: Vec::new(),
        }
    }

    /// True if [`View::draw`] shows anything.
    pub fn is_live(&self) -> bool {
        self.live
    }

    pub fn draw(&mut self, lines: &[String]) {
        if !self.live {
            return;
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
        for (row, line) in self.rows.iter().zip(lines) {
            row.set_message(line.clone());
            row.tick();
        }
    }

    /// A line that stays. False when nobody reads any more.
    pub fn say(&self, line: &str) -> bool {
        if self.live {
            self.area.println(line).is_ok()
        } else {
            let mut stdout = std::io::stdout().lock();
            writeln!(stdout, "{line}").and_then(|()| stdout.flush()).is_ok()
        }
    }

    /// Takes the redrawn lines away.
    pub fn clear(&mut self) {
        self.draw(&[]);
        let _ = self.area.clear();
    }
}
