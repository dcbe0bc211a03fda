//! The audit log: every change an operator made, with who, what, before and after.
//!
//! A handler records what it did after the change is on disk. The entry goes into the store's queue at once and is
//! written with the next commit; an entry the disk refused is kept and handed in again with the next one. The log is
//! bounded, in entries and in bytes; the oldest go first.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::access::{Principal, Role};
use crate::clock::{Clock, Timestamp};
use crate::store::{Change, Store};

/// Years of a busy site's changes.
pub const ENTRIES_MAX: usize = 10_000;
/// What all entries together may hold in memory and in the file.
const BYTES_MAX: usize = 16 * 1024 * 1024;
/// `before` and `after` of one entry; a node with a full inventory is about as large.
const VALUE_BYTES_MAX: usize = 8 * 1024;
/// `subject` and `who`: names of ours, or what a request called a thing that does not exist.
const TEXT_CHARS_MAX: usize = 200;

/// One change. `GET /api/v1/audit` lists them, newest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AuditEntry {
    /// Counts up by one; a gap means an entry that was lost with the disk.
    pub sequence: u64,
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// A user's name on the socket, or a token's.
    pub who: String,
    pub role: Role,
    /// `socket`, `token` or `session`.
    pub means: String,
    /// What was done, such as `node.register`.
    pub action: String,
    /// To which node, token, lease or image.
    pub subject: String,
    /// What was recorded before; absent for what is new. Of a large record, only what differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Value>,
    /// What is recorded now; absent for what is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Value>,
}

/// An entry as the store keeps it: its place, its time, and the whole as JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRecord {
    pub sequence: u64,
    pub at: Timestamp,
    pub entry: Arc<str>,
}

/// Which entries are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditQuery {
    /// Only those older than this sequence number.
    pub before: Option<u64>,
    pub since: Option<Timestamp>,
    pub limit: usize,
}

pub struct AuditLog {
    store: Arc<dyn Store>,
    clock: Clock,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// By sequence, oldest first.
    records: VecDeque<AuditRecord>,
    bytes: usize,
    next: u64,
    /// The disk refused these; they go in again with the next entry. A part of `records`, so bounded as they are.
    unsaved: Vec<u64>,
}

impl AuditLog {
    /// `records` as the store held them, in order.
    pub fn new(records: Vec<AuditRecord>, store: Arc<dyn Store>, clock: Clock) -> AuditLog {
        let next = records.last().map_or(1, |record| record.sequence + 1);
        let bytes = records.iter().map(AuditRecord::bytes).sum();
        let mut state = State { records: records.into(), bytes, next, unsaved: Vec::new() };
        state.trim();
        AuditLog { store, clock, state: Arc::new(Mutex::new(state)) }
    }

    pub fn record(
        &self,
        principal: &Principal,
        action: &'static str,
        subject: String,
        before: Option<Value>,
        after: Option<Value>,
    ) {
        let (before, after) = fitting(before, after);
        let at = self.clock.now();
        let mut state = lock(&self.state);
        let sequence = state.next;
        let entry = AuditEntry {
            sequence,
            at,
            who: principal.name.chars().take(TEXT_CHARS_MAX).collect(),
            role: principal.role,
            means: principal.means.as_str().to_owned(),
            action: action.to_owned(),
            subject: subject.chars().take(TEXT_CHARS_MAX).collect(),
            before,
            after,
        };
        tracing::info!(who = ?entry.who, means = entry.means, action, subject = ?entry.subject, "changed");
        let text = match serde_json::to_string(&entry) {
            Ok(text) => text,
            Err(error) => {
                tracing::error!(%error, action, "an audit entry cannot be written as JSON");
                return;
            }
        };
        state.next += 1;
        let record = AuditRecord { sequence, at, entry: text.into() };
        state.bytes += record.bytes();
        state.records.push_back(record.clone());
        let mut changes: Vec<Change> = state.take_unsaved().into_iter().map(Change::PutAudit).collect();
        changes.push(Change::PutAudit(record));
        changes.extend(state.trim().map(|oldest| Change::DropAuditBelow { sequence: oldest }));
        // The store may call back on this thread.
        drop(state);
        self.submit(changes);
    }

    fn submit(&self, changes: Vec<Change>) {
        let written: Vec<u64> = changes.iter().filter_map(sequence_of).collect();
        let state = Arc::clone(&self.state);
        let when_durable = move |result: Result<(), crate::store::CommitError>| {
            if let Err(error) = result {
                tracing::error!(%error, "the audit log is not written; it goes in again with the next change");
                lock(&state).unsaved.extend(written);
            }
        };
        self.store.submit(changes, Box::new(when_durable));
    }

    /// Newest first.
    pub fn list(&self, query: &AuditQuery) -> Vec<AuditEntry> {
        let state = lock(&self.state);
        let wanted = |record: &&AuditRecord| {
            query.before.is_none_or(|before| record.sequence < before)
                && query.since.is_none_or(|since| record.at >= since)
        };
        let records = state.records.iter().rev().filter(wanted);
        records.filter_map(|record| serde_json::from_str(&record.entry).ok()).take(query.limit).collect()
    }

    pub fn len(&self) -> usize {
        lock(&self.state).records.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn sequence_of(change: &Change) -> Option<u64> {
    if let Change::PutAudit(record) = change { Some(record.sequence) } else { None }
}

impl AuditRecord {
    fn bytes(&self) -> usize {
        self.entry.len() + size_of::<AuditRecord>()
    }
}

impl State {
    /// The lowest sequence that stays, if anything had to go.
    fn trim(&mut self) -> Option<u64> {
        let mut trimmed = false;
        while self.records.len() > ENTRIES_MAX || self.bytes > BYTES_MAX {
            let Some(oldest) = self.records.pop_front() else { break };
            self.bytes -= oldest.bytes();
            trimmed = true;
        }
        trimmed.then(|| self.records.front().map_or(self.next, |record| record.sequence))
    }

    fn take_unsaved(&mut self) -> Vec<AuditRecord> {
        let unsaved = std::mem::take(&mut self.unsaved);
        self.records.iter().filter(|record| unsaved.contains(&record.sequence)).cloned().collect()
    }
}

/// Both values, cut to what differs where they are too large whole.
fn fitting(before: Option<Value>, after: Option<Value>) -> (Option<Value>, Option<Value>) {
    if size(before.as_ref()) + size(after.as_ref()) <= VALUE_BYTES_MAX {
        return (before, after);
    }
    let (before, after) = match (before, after) {
        (Some(Value::Object(mut before)), Some(Value::Object(mut after))) => {
            let same: Vec<String> = before
                .iter()
                .filter(|(key, old)| after.get(*key) == Some(old))
                .map(|(key, _)| key.clone())
                .collect();
            for key in same {
                before.remove(&key);
                after.remove(&key);
            }
            (Some(Value::Object(before)), Some(Value::Object(after)))
        }
        others => others,
    };
    (before.map(shortened), after.map(shortened))
}

/// The members that fit; of what does not, how large it was.
fn shortened(value: Value) -> Value {
    let total = size(Some(&value));
    if total <= VALUE_BYTES_MAX / 2 {
        return value;
    }
    let left_out = |bytes: usize| serde_json::json!({ "left_out_bytes": bytes });
    let Value::Object(members) = value else { return left_out(total) };
    let mut room = VALUE_BYTES_MAX / 2;
    let kept = members.into_iter().map(|(key, member)| {
        let bytes = size(Some(&member)) + key.len();
        match room.checked_sub(bytes) {
            Some(rest) => {
                room = rest;
                (key, member)
            }
            None => (key, left_out(bytes)),
        }
    });
    let kept = Value::Object(kept.collect());
    // A thousand members too large each are no record of ours, but they must not get through either.
    if size(Some(&kept)) <= VALUE_BYTES_MAX { kept } else { left_out(total) }
}

fn size(value: Option<&Value>) -> usize {
    value.map_or(0, |value| value.to_string().len())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::operator::access::Means;
    use crate::store::memory::MemoryStore;

    fn who() -> Principal {
        Principal { name: "ada".to_owned(), role: Role::Operator, means: Means::Socket { uid: 1000 } }
    }

    fn log(store: &Arc<MemoryStore>) -> AuditLog {
        AuditLog::new(store.load().unwrap().audit, Arc::clone(store) as _, Clock::start())
    }

    const ALL: AuditQuery = AuditQuery { before: None, since: None, limit: usize::MAX };

    #[test]
    fn entries_survive_a_restart_and_come_newest_first() {
        let store = Arc::new(MemoryStore::new());
        let first = log(&store);
        first.record(&who(), "node.register", "anvil".to_owned(), None, Some(json!({"name": "anvil"})));
        first.record(&who(), "node.remove", "anvil".to_owned(), Some(json!({"name": "anvil"})), None);
        let again = log(&store);
        let listed = again.list(&ALL);
        assert_eq!(listed, first.list(&ALL));
        let told: Vec<_> = listed.iter().map(|entry| (entry.sequence, entry.action.as_str())).collect();
        assert_eq!(told, [(2, "node.remove"), (1, "node.register")]);
        assert_eq!((listed[1].who.as_str(), listed[1].means.as_str()), ("ada", "socket"));
        assert_eq!(
            (&listed[1].before, listed[1].after.as_ref().unwrap()["name"].as_str()),
            (&None, Some("anvil"))
        );
        again.record(&who(), "node.approve", "x".to_owned(), None, None);
        assert_eq!(again.list(&AuditQuery { before: Some(3), limit: 1, since: None })[0].sequence, 2);
    }

    #[test]
    fn what_the_disk_refused_is_written_with_the_next_entry() {
        let store = Arc::new(MemoryStore::new());
        let log = log(&store);
        store.fail_next_commits(1);
        log.record(&who(), "node.approve", "one".to_owned(), None, None);
        assert!(store.load().unwrap().audit.is_empty());
        log.record(&who(), "node.approve", "two".to_owned(), None, None);
        let kept: Vec<u64> = store.load().unwrap().audit.iter().map(|record| record.sequence).collect();
        assert_eq!(kept, [1, 2]);
    }

    #[test]
    fn the_log_is_bounded_in_memory_and_on_disk() {
        let store = Arc::new(MemoryStore::new());
        let log = log(&store);
        for number in 0..ENTRIES_MAX + 5 {
            log.record(&who(), "node.approve", number.to_string(), None, None);
        }
        assert_eq!(log.len(), ENTRIES_MAX);
        let kept = store.load().unwrap().audit;
        assert_eq!((kept.len(), kept[0].sequence), (ENTRIES_MAX, 6));
    }

    #[test]
    fn of_a_large_record_only_what_differs_is_kept() {
        let disks = "x".repeat(VALUE_BYTES_MAX);
        let record = |state: &str| Some(json!({"state": state, "disks": disks}));
        let (before, after) = fitting(record("enroll"), record("manageable"));
        assert_eq!((before, after), (Some(json!({"state": "enroll"})), Some(json!({"state": "manageable"}))));
        let (_, after) = fitting(None, record("enroll"));
        let after = after.unwrap();
        assert_eq!(after["state"], "enroll");
        assert!(after["disks"]["left_out_bytes"].as_u64().unwrap() > 8000, "{after}");
        let many: serde_json::Map<String, Value> = (0..5000).map(|n| (format!("k{n}"), json!("v"))).collect();
        assert!(size(fitting(None, Some(Value::Object(many))).1.as_ref()) <= VALUE_BYTES_MAX);
    }
}
