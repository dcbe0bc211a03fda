//! How far a task is, told to the appliance twice a second and to the console seldom; and the one place that stops it.
//!
//! Whoever works adds what it has done and asks [`Meter::go_on`] before it touches the disk. Whoever learns that the
//! work must end says so with [`Meter::halt`]; the first reason stands.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::agent::calls::CallError;
use crate::agent::console::Console;
use crate::agent::install::{Calls, Halt};
use crate::node::install::intent::IntentId;
use crate::node::install::task::{Progress, Step};

/// How often the appliance hears of us.
const TOLD_EVERY: Duration = Duration::from_millis(500);
/// What the rate is taken over.
const RATE_OVER: Duration = Duration::from_secs(5);
/// The console says how far it is after this long, or after a tenth.
const SAID_EVERY: Duration = Duration::from_secs(5);

pub struct Meter {
    state: Mutex<State>,
    /// The work is over, or must be.
    changed: Condvar,
    halted: AtomicBool,
    done: AtomicU64,
    kept: AtomicU64,
    /// Bytes of disk written in all steps.
    written: AtomicU64,
}

struct State {
    step: Step,
    total: u64,
    halt: Option<Halt>,
    finished: bool,
}

impl Default for Meter {
    fn default() -> Self {
        Meter {
            state: Mutex::new(State { step: Step::Preparing, total: 0, halt: None, finished: false }),
            changed: Condvar::new(),
            halted: AtomicBool::new(false),
            done: AtomicU64::new(0),
            kept: AtomicU64::new(0),
            written: AtomicU64::new(0),
        }
    }
}

impl Meter {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new step, of so many bytes of disk.
    pub fn enter(&self, step: Step, total: u64) {
        let mut state = self.state();
        (state.step, state.total) = (step, total);
        self.done.store(0, Ordering::Relaxed);
        self.kept.store(0, Ordering::Relaxed);
    }

    pub fn step(&self) -> Step {
        self.state().step
    }

    pub fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Done without writing: it was there.
    pub fn keep(&self, bytes: u64) {
        self.kept.fetch_add(bytes, Ordering::Relaxed);
        self.add(bytes);
    }

    pub fn wrote(&self, bytes: u64) {
        self.written.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// The reason that was there first stands.
    pub fn halt(&self, halt: Halt) {
        self.state().halt.get_or_insert(halt);
        self.halted.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    /// Whether the work may go on; asked before each write.
    pub fn go_on(&self) -> Result<(), Halt> {
        if !self.halted.load(Ordering::Acquire) {
            return Ok(());
        }
        self.state().halt.clone().map_or(Ok(()), Err)
    }

    /// Lets time pass between two attempts, unless the work must end.
    pub fn pause(&self, duration: Duration) -> Result<(), Halt> {
        let state = self.state();
        let waited = self.changed.wait_timeout_while(state, duration, |state| state.halt.is_none());
        drop(waited);
        self.go_on()
    }

    fn snapshot(&self) -> (Step, u64, u64, u64) {
        let state = self.state();
        (state.step, self.done.load(Ordering::Relaxed), state.total, self.kept.load(Ordering::Relaxed))
    }

    /// Runs `work` while a second thread tells how far it is.
    pub fn tell_while<A>(
        &self,
        calls: &dyn Calls,
        intent: IntentId,
        console: &Console,
        work: impl FnOnce() -> A,
    ) -> A {
        std::thread::scope(|scope| {
            let teller = || self.tell(calls, intent, console);
            // Without a thread the work goes on unwatched, which the appliance can tell by its silence.
            if let Err(error) =
                std::thread::Builder::new().name("progress".to_owned()).spawn_scoped(scope, teller)
            {
                console.say(format_args!("no thread to tell progress: {error}"));
            }
            let outcome = work();
            self.state().finished = true;
            self.changed.notify_all();
            outcome
        })
    }

    fn tell(&self, calls: &dyn Calls, intent: IntentId, console: &Console) {
        let started = Instant::now();
        let mut pace = Pace::default();
        let mut said = Said::default();
        loop {
            let (step, done, total, kept) = self.snapshot();
            let progress = pace.progress(started.elapsed(), step, done, total, kept);
            if let Some(line) = said.line(started.elapsed(), &progress) {
                console.say(line);
            }
            match calls.progress(intent, &progress) {
                Ok(true) => {}
                Ok(false) => {
                    self.halt(Halt::Superseded { reason: "the appliance said so".to_owned() });
                }
                Err(CallError::Superseded { reason }) => self.halt(Halt::Superseded { reason }),
                Err(CallError::Refused { reason }) => self.halt(Halt::Refused { reason }),
                // The work goes on; the chunks' own calls say that nobody answers.
                Err(CallError::Later { .. } | CallError::Rejected { .. }) => {}
            }
            let state = self.state();
            let over = |state: &mut State| !state.finished && state.halt.is_none();
            let (state, _) = self
                .changed
                .wait_timeout_while(state, TOLD_EVERY, over)
                .unwrap_or_else(PoisonError::into_inner);
            if state.finished || state.halt.is_some() {
                return;
            }
        }
    }
}

/// Rate and time left, from what was done when.
#[derive(Default)]
struct Pace {
    step: Option<Step>,
    samples: VecDeque<(Duration, u64)>,
}

impl Pace {
    fn progress(&mut self, now: Duration, step: Step, done: u64, total: u64, kept: u64) -> Progress {
        if self.step != Some(step) {
            self.step = Some(step);
            self.samples.clear();
            // The step may have begun since the last look.
            self.samples.push_back((now.saturating_sub(TOLD_EVERY), 0));
        }
        self.samples.push_back((now, done));
        while self.samples.len() > 2 && self.samples.front().is_some_and(|(then, _)| now - *then > RATE_OVER)
        {
            self.samples.pop_front();
        }
        let (then, before) = self.samples.front().copied().unwrap_or((now, done));
        let seconds = now.saturating_sub(then).as_secs_f64();
        let rate = if seconds > 0.0 { done.saturating_sub(before) as f64 / seconds } else { 0.0 };
        let left = (total.saturating_sub(done)) as f64 / rate;
        // Infinite or not a number while nothing moves.
        let seconds_left = (left.is_finite() && left <= f64::from(u32::MAX)).then_some(left.ceil() as u32);
        Progress { step, done, total, kept, rate: rate as u64, seconds_left }
    }
}

/// When the console says something: at a new step, after a tenth, after some seconds.
#[derive(Default)]
struct Said {
    step: Option<Step>,
    at: Duration,
    tenths: u64,
    done: u64,
}

impl Said {
    fn line(&mut self, now: Duration, progress: &Progress) -> Option<String> {
        let tenths = (progress.done * 10).checked_div(progress.total).unwrap_or(0);
        let new_step = self.step != Some(progress.step);
        let moved = progress.done != self.done;
        let due = tenths > self.tenths || (moved && now - self.at >= SAID_EVERY);
        if !(new_step || due) {
            return None;
        }
        *self = Said { step: Some(progress.step), at: now, tenths, done: progress.done };
        let step = match progress.step {
            Step::Preparing => "preparing",
            Step::Discarding => "discarding what was on the disk",
            Step::Writing => "writing",
            Step::Verifying => "reading back",
            Step::Finishing => "finishing",
        };
        if progress.total == 0 {
            return Some(step.to_owned());
        }
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        let left = progress.seconds_left.map(|left| format!(", {left} s left")).unwrap_or_default();
        let kept = match progress.kept {
            0 => String::new(),
            kept => format!(", {:.0} MB of it were there", megabytes(kept)),
        };
        Some(format!(
            "{step}: {:.0} of {:.0} MB ({} %), {:.1} MB/s{left}{kept}",
            megabytes(progress.done),
            megabytes(progress.total),
            (progress.done * 100).checked_div(progress.total).unwrap_or(0),
            megabytes(progress.rate),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let mut pace = Pace::default();
        let first = pace.progress(seconds(10.0), Step::Writing, 0, 1000, 0);
        assert_eq!((first.rate, first.seconds_left), (0, None));
        for second in 1..=10_u32 {
            pace.progress(seconds(10.0 + f64::from(second)), Step::Writing, u64::from(second) * 10, 1000, 0);
        }
        let slow = pace.progress(seconds(21.0), Step::Writing, 110, 1000, 0);
        assert_eq!((slow.rate, slow.seconds_left), (10, Some(89)));
        for second in 1..=6_u32 {
            pace.progress(
                seconds(21.0 + f64::from(second)),
                Step::Writing,
                110 + u64::from(second) * 100,
                1000,
                0,
            );
        }
        let fast = pace.progress(seconds(28.0), Step::Writing, 810, 1000, 0);
        assert_eq!((fast.rate, fast.seconds_left), (100, Some(2)));
        let next = pace.progress(seconds(28.5), Step::Verifying, 0, 1000, 0);
        assert_eq!((next.rate, next.seconds_left), (0, None), "another step, another rate");
    }

    #[test]
    fn the_console_is_told_seldom() {
        let mut said = Said::default();
        let progress = |done| Progress {
            step: Step::Writing,
            done,
            total: 100_000_000,
            kept: 0,
            rate: 1_000_000,
            seconds_left: Some(7),
        };
        let mut lines = Vec::new();
        // Twice a second, ten seconds for each tenth: a line each five seconds.
        for half in 0..60 {
            let now = seconds(f64::from(half) / 2.0);
            lines.extend(said.line(now, &progress(u64::from(half as u32) * 500_000)));
        }
        assert!((6..=9).contains(&lines.len()), "{lines:#?}");
        assert_eq!(lines[0], "writing: 0 of 100 MB (0 %), 1.0 MB/s, 7 s left");
        assert!(said.line(seconds(100.0), &progress(29_500_000)).is_some());
        assert!(said.line(seconds(200.0), &progress(29_500_000)).is_none(), "nothing moved");
    }

    #[test]
    fn the_first_reason_to_stop_stands() {
        let meter = Meter::default();
        assert_eq!(meter.go_on(), Ok(()));
        assert_eq!(meter.pause(Duration::from_millis(1)), Ok(()));
        let first = Halt::Superseded { reason: "aborted".to_owned() };
        meter.halt(first.clone());
        meter.halt(Halt::Refused { reason: "later".to_owned() });
        assert_eq!(meter.go_on(), Err(first.clone()));
        assert_eq!(meter.pause(Duration::from_secs(3600)), Err(first));
    }
}
