//! sqlite
use std::path::Path;

use crate::store::{Change, LoadError, Snapshot, Store, WhenDurable};

pub struct SqliteStore {}

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
    /// Set while the last commit was a failure: the appliance is degraded.
    pub last_error: Option<String>,
}

impl SqliteStore {
    pub fn open(_path: &Path) -> Result<SqliteStore, LoadError> {
        unimplemented!()
    }
    pub fn stats(&self) -> StoreStats {
        unimplemented!()
    }
}

impl Store for SqliteStore {
    fn load(&self) -> Result<Snapshot, LoadError> {
        unimplemented!()
    }
    fn submit(&self, _changes: Vec<Change>, _when_durable: WhenDurable) {
        unimplemented!()
    }
}
