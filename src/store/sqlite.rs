//! One SQLite file, one connection, one thread that writes it.
//!
//! [`SqliteStore::submit`] puts a batch into a bounded queue. The writer takes what has gathered (at most
//! [`GROUP_MAX`] batches), commits it as one transaction with `synchronous=FULL`, and then calls each batch's
//! `when_durable`: under load the groups grow by themselves, and an fsync is shared by hundreds of leases. Batches that
//! nobody waits for leave with the next that somebody does. It copies the WAL back into the main file when it has nothing
//! else to do, or when the WAL has grown too long.
//!
//! A failed commit is told to every batch of its group. Its connection is thrown away: after a failed fsync nobody
//! knows what of the page cache will ever reach the disk, so the next commit first reopens the file and rewrites it
//! from the WAL (`Database::reopen`).
//!
//! Bad data never prevents the start. Rows that mean nothing are moved to a table `damaged`; a file that is broken
//! as a whole is renamed to `farrier.db.damaged-<n>`, and what can still be read from it goes into a fresh one.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::store::sqlite::database::Database;
use crate::store::sqlite::files::{open_or_replace, prepare_files, sync_directory};
use crate::store::{Change, CommitError, LoadError, Snapshot, Store, WhenDurable};
use crate::telemetry::Tally;
use crate::telemetry::stages::Timed;

pub mod backup;
mod database;
mod files;
mod rows;
#[cfg(test)]
mod tests;

/// Batches one transaction takes: at 5 ms an fsync, still 100 000 leases a second.
pub const GROUP_MAX: usize = 512;
/// Least time between the beginnings of two commits of leases: a sync costs as much as ten leases, and those that come
/// within this time share one. A batch that comes alone is committed at once.
const LEASE_COMMIT_PERIOD: Duration = Duration::from_millis(2);
/// How long a batch that nobody waits for may wait for company. A machine that boots leaves some ten of them, each with
/// the disk's sync to pay for.
const BACKGROUND_WAIT_MAX: Duration = Duration::from_millis(3);
/// Batches that may wait; beyond it the disk is too slow to promise anything and callers are told so at once.
pub const QUEUE_MAX: usize = 16_384;
/// 16 MiB of WAL: the writer stops for a checkpoint even under load, so that the file stays small.
const WAL_PAGES_MAX: u64 = 4096;
/// Commits between two looks at the WAL's length.
const WAL_LOOK_EVERY: u64 = 64;
/// A pause this long is used to checkpoint, or to try a broken disk again.
const IDLE: Duration = Duration::from_millis(250);
/// Lines of damage worth reading; the rest is counted.
const DAMAGE_LINES_MAX: usize = 100;

/// What the store has done since it was opened; telemetry reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Transactions synced to disk.
    pub commits: u64,
    /// Batches made durable by them, and the changes in these.
    pub batches: u64,
    pub changes: u64,
    /// Most batches one transaction carried.
    pub largest_group: u64,
    /// Transactions that failed, and the batches that were told so.
    pub failed_commits: u64,
    pub failed_batches: u64,
    pub checkpoints: u64,
    /// Batches waiting now.
    pub queued: u64,
    pub last_commit_micros: u64,
    /// Set while the disk cannot be written: the appliance is degraded.
    pub last_error: Option<String>,
}

#[derive(Default)]
struct Shared {
    stats: Mutex<StoreStats>,
    queued: AtomicU64,
    tally: OnceLock<Arc<Tally>>,
}

enum Message {
    Batch(Batch),
    Load(SyncSender<Result<Snapshot, LoadError>>),
}

struct Batch {
    changes: Vec<Change>,
    when_durable: WhenDurable,
    /// Somebody waits for it.
    is_awaited: bool,
}

impl Batch {
    fn is_of_leases(&self) -> bool {
        self.changes.iter().all(|change| change.of_lease().is_some())
    }
}

pub struct SqliteStore {
    /// `None` only while dropping.
    queue: Option<SyncSender<Message>>,
    writer: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
}

impl SqliteStore {
    /// Opens or creates the file, with a directory of mode 0700 around it if there is none.
    pub fn open(path: &Path) -> Result<SqliteStore, LoadError> {
        let (lock, file_is_new) = prepare_files(path)?;
        let (database, damage) = open_or_replace(path)?;
        if file_is_new {
            sync_directory(path)?;
        }
        let shared = Arc::new(Shared::default());
        let (queue, messages) = sync_channel(QUEUE_MAX);
        let writer = Writer {
            path: path.to_owned(),
            database: Some(database),
            damage,
            shared: Arc::clone(&shared),
            commits_since_look: 0,
            leases_at: None,
            checkpoint_due: true,
            _lock: lock,
        };
        let writer = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || {
                // An ACK waits for it.
                crate::net::sys::run_before_others();
                writer.run(&messages);
            })
            .map_err(|error| unreadable(path, &error))?;
        Ok(SqliteStore { queue: Some(queue), writer: Some(writer), shared })
    }

    /// Times each commit from now on.
    pub fn time_commits(&self, tally: Arc<Tally>) {
        let _ = self.shared.tally.set(tally);
    }

    fn enqueue(&self, batch: Batch) {
        let Some(queue) = &self.queue else {
            return (batch.when_durable)(Err(CommitError::Closed));
        };
        let waiting = self.shared.queued.fetch_add(1, Ordering::Relaxed);
        let (returned, error) = match queue.try_send(Message::Batch(batch)) {
            Ok(()) => return,
            Err(TrySendError::Full(returned)) => {
                let waiting = usize::try_from(waiting).unwrap_or(usize::MAX);
                (returned, CommitError::QueueFull { waiting })
            }
            Err(TrySendError::Disconnected(returned)) => (returned, CommitError::Closed),
        };
        self.shared.queued.fetch_sub(1, Ordering::Relaxed);
        if let Message::Batch(batch) = returned {
            (batch.when_durable)(Err(error));
        }
    }

    pub fn stats(&self) -> StoreStats {
        let mut stats = self.shared.stats().clone();
        stats.queued = self.shared.queued.load(Ordering::Relaxed);
        stats
    }
}

impl Shared {
    fn stats(&self) -> MutexGuard<'_, StoreStats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for SqliteStore {
    fn load(&self) -> Result<Snapshot, LoadError> {
        let closed =
            || LoadError::Unreadable { path: "the store".to_owned(), reason: "it is closed".to_owned() };
        let (sender, receiver) = sync_channel(1);
        let queue = self.queue.as_ref().ok_or_else(closed)?;
        queue.send(Message::Load(sender)).map_err(|_| closed())?;
        receiver.recv().map_err(|_| closed())?
    }

    fn submit(&self, changes: Vec<Change>, when_durable: WhenDurable) {
        self.enqueue(Batch { changes, when_durable, is_awaited: true });
    }

    fn submit_in_background(&self, changes: Vec<Change>, when_durable: WhenDurable) {
        self.enqueue(Batch { changes, when_durable, is_awaited: false });
    }
}

impl Drop for SqliteStore {
    /// Finishes what is queued.
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take() {
            // The last handle may be dropped by a `when_durable`, on the writer itself; it will end by itself then.
            if writer.thread().id() != std::thread::current().id() {
                let _ = writer.join();
            }
        }
    }
}

struct Writer {
    path: PathBuf,
    /// `None` after a failed commit, until the file could be reopened.
    database: Option<Database>,
    /// What opening the file found.
    damage: Vec<String>,
    shared: Arc<Shared>,
    commits_since_look: u64,
    /// Begin of the last commit of leases.
    leases_at: Option<Instant>,
    /// There may be something in the WAL.
    checkpoint_due: bool,
    /// Two programs must not own one file; the lock ends with this one, however it ends.
    _lock: File,
}

impl Writer {
    fn run(mut self, messages: &Receiver<Message>) {
        loop {
            match messages.recv_timeout(IDLE) {
                Ok(Message::Load(reply)) => {
                    let _ = reply.send(self.load());
                }
                Ok(Message::Batch(batch)) => self.commit_group(batch, messages),
                Err(RecvTimeoutError::Timeout) => self.use_pause(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Takes what else is queued and commits all of it.
    fn commit_group(&mut self, first: Batch, messages: &Receiver<Message>) {
        let mut group = vec![first];
        let mut load = await_company(&mut group, messages);
        if group.last().is_some_and(|batch| batch.is_awaited && batch.is_of_leases()) {
            self.let_gather();
        }
        while group.len() < GROUP_MAX && load.is_none() {
            match messages.try_recv() {
                Ok(Message::Batch(batch)) => group.push(batch),
                // It was asked for after the batches before it, so it has to see them.
                Ok(Message::Load(reply)) => load = Some(reply),
                Err(_) => break,
            }
        }
        self.shared.queued.fetch_sub(group.len() as u64, Ordering::Relaxed);
        let started = Instant::now();
        let result = self.commit(group.iter().map(|batch| batch.changes.as_slice()));
        self.account(&group, started.elapsed(), &result);
        for batch in group {
            (batch.when_durable)(result.clone());
        }
        self.look_at_wal();
        if let Some(reply) = load {
            let _ = reply.send(self.load());
        }
    }

    /// See [`LEASE_COMMIT_PERIOD`].
    fn let_gather(&mut self) {
        if let Some(rest) = self.leases_at.and_then(|at| LEASE_COMMIT_PERIOD.checked_sub(at.elapsed())) {
            std::thread::park_timeout(rest);
        }
        self.leases_at = Some(Instant::now());
    }

    fn commit<'a>(&mut self, batches: impl Iterator<Item = &'a [Change]>) -> Result<(), CommitError> {
        let database = self.database()?;
        database.commit(batches).map_err(|error| {
            self.database = None;
            CommitError::Write { reason: error.to_string() }
        })?;
        self.checkpoint_due = true;
        Ok(())
    }

    fn database(&mut self) -> Result<&mut Database, CommitError> {
        let database = match self.database.take() {
            Some(database) => database,
            None => Database::reopen(&self.path)
                .map_err(|failure| CommitError::Write { reason: failure.to_string() })?,
        };
        Ok(self.database.insert(database))
    }

    fn account(&self, group: &[Batch], took: Duration, result: &Result<(), CommitError>) {
        if let Some(tally) = self.shared.tally.get() {
            tally.took(Timed::StoreCommit, took);
        }
        let mut stats = self.shared.stats();
        let batches = group.len() as u64;
        match result {
            Ok(()) => {
                stats.commits += 1;
                stats.batches += batches;
                stats.changes += group.iter().map(|batch| batch.changes.len() as u64).sum::<u64>();
                stats.largest_group = stats.largest_group.max(batches);
                stats.last_commit_micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
                stats.last_error = None;
            }
            Err(error) => {
                stats.failed_commits += 1;
                stats.failed_batches += batches;
                stats.last_error = Some(error.to_string());
                tracing::error!(reason = %error, batches, "commit failed");
            }
        }
    }

    fn look_at_wal(&mut self) {
        self.commits_since_look += 1;
        if self.commits_since_look < WAL_LOOK_EVERY {
            return;
        }
        self.commits_since_look = 0;
        let pages = self.database.as_ref().map(Database::wal_pages);
        if let Some(Ok(WAL_PAGES_MAX..)) = pages {
            self.checkpoint();
        }
    }

    fn use_pause(&mut self) {
        if self.database.is_none() {
            if self.database().is_ok() {
                self.shared.stats().last_error = None;
            }
        } else if self.checkpoint_due {
            self.checkpoint();
        }
    }

    fn checkpoint(&mut self) {
        let Some(database) = &self.database else {
            return;
        };
        self.checkpoint_due = false;
        match database.checkpoint() {
            Ok(()) => self.shared.stats().checkpoints += 1,
            Err(error) => {
                // The WAL still has everything; but this connection saw the disk fail.
                tracing::error!(reason = %error, "checkpoint failed");
                self.shared.stats().last_error = Some(error.to_string());
                self.database = None;
            }
        }
    }

    fn load(&mut self) -> Result<Snapshot, LoadError> {
        let path = self.path.clone();
        let database = self.database().map_err(|error| unreadable(&path, &error))?;
        let mut snapshot = database.read().map_err(|error| unreadable(&path, &error))?;
        let mut damage = self.damage.clone();
        damage.append(&mut snapshot.damage);
        snapshot.damage = shorten(damage);
        Ok(snapshot)
    }
}

/// While nobody waits for any of the group: see [`BACKGROUND_WAIT_MAX`]. Whoever asks to load ends it as well.
fn await_company(
    group: &mut Vec<Batch>,
    messages: &Receiver<Message>,
) -> Option<SyncSender<Result<Snapshot, LoadError>>> {
    let until = Instant::now() + BACKGROUND_WAIT_MAX;
    while group.len() < GROUP_MAX && group.last().is_some_and(|batch| !batch.is_awaited) {
        match messages.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(Message::Batch(batch)) => group.push(batch),
            Ok(Message::Load(reply)) => return Some(reply),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
        }
    }
    None
}

fn unreadable(path: &Path, reason: &dyn std::fmt::Display) -> LoadError {
    LoadError::Unreadable { path: path.display().to_string(), reason: reason.to_string() }
}

fn shorten(mut lines: Vec<String>) -> Vec<String> {
    if lines.len() > DAMAGE_LINES_MAX {
        let rest = lines.len() - DAMAGE_LINES_MAX;
        lines.truncate(DAMAGE_LINES_MAX);
        lines.push(format!("and {rest} more"));
    }
    lines
}
