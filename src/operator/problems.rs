//! The appliance's last problems, for `farrier status`: every warning and error it logged, newest kept.
//!
//! A tracing layer fills it, so that a problem cannot be logged and yet be missing from the status.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::api::{ReportedProblem, Severity};
use crate::clock::Clock;

/// What fits on one screen; older problems are in the log.
const PROBLEMS_MAX: usize = 20;
const MESSAGE_CHARS_MAX: usize = 400;

#[derive(Debug)]
pub struct ProblemLog {
    clock: Clock,
    problems: Mutex<VecDeque<ReportedProblem>>,
}

impl ProblemLog {
    pub fn new(clock: Clock) -> Arc<ProblemLog> {
        Arc::new(ProblemLog { clock, problems: Mutex::default() })
    }

    /// Oldest first.
    pub fn snapshot(&self) -> Vec<ReportedProblem> {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// The layer that records what is logged from now on.
    pub fn layer(self: &Arc<Self>) -> ProblemLayer {
        ProblemLayer(Arc::clone(self))
    }

    fn push(&self, severity: Severity, message: String) {
        let at = self.clock.now();
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        // The same thing over and over is one problem, at its latest time.
        problems.retain(|problem| problem.message != message);
        if problems.len() == PROBLEMS_MAX {
            problems.pop_front();
        }
        problems.push_back(ReportedProblem { at, severity, message });
    }
}

#[derive(Debug)]
pub struct ProblemLayer(Arc<ProblemLog>);

impl<S: Subscriber> Layer<S> for ProblemLayer {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let severity = match *event.metadata().level() {
            Level::ERROR => Severity::Error,
            Level::WARN => Severity::Warning,
            _ => return,
        };
        let mut text = Text::default();
        event.record(&mut text);
        let whole = format!("{}{}", text.message, text.fields);
        self.0.push(severity, whole.chars().take(MESSAGE_CHARS_MAX).collect());
    }
}

/// The message, then each field as ` name=value`.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let written = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
        // Writing into a String does not fail; a value's own Debug might, and then it is left out.
        let _ = written;
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[test]
    fn warnings_and_errors_are_kept_once_and_bounded() {
        let log = ProblemLog::new(Clock::start());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(log.layer()), || {
            tracing::info!("all is well");
            for number in 0..30 {
                tracing::warn!(number, "a number");
            }
            for _ in 0..3 {
                tracing::error!(file = "x", "cannot read");
            }
        });
        let problems = log.snapshot();
        assert_eq!(problems.len(), PROBLEMS_MAX);
        let last = problems.last().unwrap();
        assert_eq!((last.message.as_str(), last.severity), ("cannot read file=x", Severity::Error));
        assert_eq!(problems[0].message, "a number number=11");
    }
}
