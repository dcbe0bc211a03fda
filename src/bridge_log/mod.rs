//! What happened to the bridge itself, rather than to one machine on it: outages, and who else answers there.
//!
//! ```text
//!  links, ports, routes ── Observer (a look → what is different) ──┐
//!  guard: a rival came, a rival is gone ───────────────────────────┴─► BridgeLog ─► store, watchers, verdicts
//! ```
//!
//! The log is kept on disk, for who asks tomorrow why a machine did not boot today, and is bounded: the oldest go first.
//! An event the disk refused is kept and handed in again with the next one.
//!
//! - [`event`]: the events, and their words
//! - [`outages`]: what a look at the bridge has shown since the last one; which outages there were (pure)

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::broadcast;

use crate::clock::Timestamp;
use crate::store::{Change, CommitError, Store};
use event::{BridgeEvent, BridgeHappening};
use outages::Outage;

pub mod event;
pub mod outages;

/// Months of a bridge that is sound, and a day of one whose ports come and go every minute.
pub const EVENTS_MAX: usize = 2000;
/// Events a slow watcher may fall behind before it loses the oldest.
const WATCH_BACKLOG: usize = 256;
/// Others on the bridge can come and go as quickly as they send; more than this in a minute is one that plays.
const RIVALS_PER_MINUTE: u32 = 60;
const MINUTE: Duration = Duration::from_secs(60);

pub struct BridgeLog {
    store: Arc<dyn Store>,
    watchers: broadcast::Sender<Arc<BridgeEvent>>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// By sequence, oldest first.
    events: VecDeque<Arc<BridgeEvent>>,
    next: u64,
    /// The disk refused these; a part of `events`, so bounded as they are.
    unsaved: Vec<u64>,
    /// When the minute began in which rivals are counted, and how many there were.
    rivals: (Timestamp, u32),
}

impl BridgeLog {
    /// `events` as the store held them, in order.
    pub fn new(events: Vec<BridgeEvent>, store: Arc<dyn Store>) -> BridgeLog {
        let next = events.last().map_or(1, |event| event.sequence + 1);
        let events = events.into_iter().map(Arc::new).collect();
        let mut state = State { events, next, ..State::default() };
        state.trim();
        let watchers = broadcast::channel(WATCH_BACKLOG).0;
        BridgeLog { store, watchers, state: Arc::new(Mutex::new(state)) }
    }

    pub fn record(&self, happening: BridgeHappening, at: Timestamp) {
        let mut state = lock(&self.state);
        if happening.is_of_rival() && !state.may_tell_of_rival(at) {
            return;
        }
        let event = Arc::new(BridgeEvent { sequence: state.next, at, happening });
        state.next += 1;
        state.events.push_back(Arc::clone(&event));
        let mut changes = state.take_unsaved();
        changes.push(Change::PutBridgeEvent(Box::new((*event).clone())));
        changes.extend(state.trim().map(|oldest| Change::DropBridgeEventsBelow { sequence: oldest }));
        // Told in the order of their numbers. No watcher is no mistake.
        let _ = self.watchers.send(event);
        // The store may call back on this thread.
        drop(state);
        self.submit(changes);
    }

    fn submit(&self, changes: Vec<Change>) {
        let written: Vec<u64> = changes
            .iter()
            .filter_map(
                |change| if let Change::PutBridgeEvent(event) = change { Some(event.sequence) } else { None },
            )
            .collect();
        let state = Arc::clone(&self.state);
        let when_durable = move |result: Result<(), CommitError>| {
            if let Err(error) = result {
                tracing::warn!(reason = %error, "events of the bridge are not written; they go in again with the next");
                lock(&state).unsaved.extend(written);
            }
        };
        self.store.submit_in_background(changes, Box::new(when_durable));
    }

    /// Every event from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<BridgeEvent>> {
        self.watchers.subscribe()
    }

    /// Oldest first.
    pub fn events(&self) -> Vec<Arc<BridgeEvent>> {
        lock(&self.state).events.iter().cloned().collect()
    }

    /// When the bridge or a port of it was out, oldest first.
    pub fn outages(&self) -> Vec<Outage> {
        outages::of_events(lock(&self.state).events.iter().map(|event| &**event))
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// The lowest sequence that stays, if anything had to go.
    fn trim(&mut self) -> Option<u64> {
        let surplus = self.events.len().checked_sub(EVENTS_MAX).filter(|surplus| *surplus > 0)?;
        self.events.drain(..surplus);
        self.events.front().map(|event| event.sequence)
    }

    fn take_unsaved(&mut self) -> Vec<Change> {
        let unsaved = std::mem::take(&mut self.unsaved);
        let again = self.events.iter().filter(|event| unsaved.contains(&event.sequence));
        again.map(|event| Change::PutBridgeEvent(Box::new((**event).clone()))).collect()
    }

    fn may_tell_of_rival(&mut self, now: Timestamp) -> bool {
        if now.since(self.rivals.0) >= MINUTE {
            self.rivals = (now, 0);
        }
        self.rivals.1 = self.rivals.1.saturating_add(1);
        self.rivals.1 <= RIVALS_PER_MINUTE
    }
}

#[cfg(test)]
mod tests;
