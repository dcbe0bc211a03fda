//! Around the database: modes, the lock, and what happens to a file that is broken as a whole.

use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::store::sqlite::database::{self, Database, OpenFailure, SCHEMA_VERSION};
use crate::store::sqlite::unreadable;
use crate::store::{Change, LoadError, Snapshot};

/// The smallest page SQLite writes; the header lies in the first.
const HEADER_MIN: u64 = 512;
/// Whoever held the lock may be gone already while the kernel still takes it apart, or while a child it was about to
/// start has not yet let go of what it inherited: a supervisor's restart must not fail for that.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
const LOCK_LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Damaged files kept side by side; beyond it the newest takes the last name again.
const DAMAGED_FILES_MAX: u32 = 100;

/// Directory 0700, file 0600 (SQLite gives the WAL the same mode), and the lock. True if the file is new.
pub(super) fn prepare_files(path: &Path) -> Result<(File, bool), LoadError> {
    let prepare = || -> io::Result<(File, bool)> {
        if let Some(directory) = path.parent().filter(|directory| !directory.exists()) {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let lock = options.open(with_suffix(path, ".lock"))?;
        let is_new = !path.exists();
        let file = options.open(path)?;
        file.set_permissions(Permissions::from_mode(0o600))?;
        Ok((lock, is_new))
    };
    let (lock, is_new) = prepare().map_err(|error| unreadable(path, &error))?;
    let until = Instant::now() + LOCK_PATIENCE;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok((lock, is_new)),
            Err(TryLockError::WouldBlock) if Instant::now() < until => {
                std::thread::park_timeout(LOCK_LOOK_AGAIN)
            }
            Err(TryLockError::WouldBlock) => {
                return Err(LoadError::InUse { path: path.display().to_string() });
            }
            Err(TryLockError::Error(error)) => return Err(unreadable(path, &error)),
        }
    }
}

/// A new file's name is durable only once its directory is.
pub(super) fn sync_directory(path: &Path) -> Result<(), LoadError> {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    File::open(directory).and_then(|file| file.sync_all()).map_err(|error| unreadable(path, &error))
}

pub(super) fn open_or_replace(path: &Path) -> Result<(Database, Vec<String>), LoadError> {
    // SQLite takes a file that is too short for a header for a new one, and would say nothing of what was lost.
    let len = path.metadata().map_err(|error| unreadable(path, &error))?.len();
    let opened = match len {
        1..HEADER_MIN => Err(OpenFailure::Damaged(format!("{len} bytes are left of it"))),
        _ => Database::open(path),
    };
    let reason = match opened {
        Ok(database) => return Ok((database, Vec::new())),
        Err(OpenFailure::TooNew { found }) => {
            let path = path.display().to_string();
            return Err(LoadError::TooNew { path, found, known: SCHEMA_VERSION });
        }
        Err(OpenFailure::Unreadable(reason)) => return Err(unreadable(path, &reason)),
        Err(OpenFailure::Damaged(reason)) => reason,
    };
    let aside = set_file_aside(path).map_err(|error| unreadable(path, &error))?;
    let rescued = Database::rescue(&aside);
    let mut database = Database::open(path).map_err(|failure| unreadable(path, &failure))?;
    let mut damage = vec![format!(
        "{} was damaged ({reason}): kept as {}; {} bindings, {} nodes and {} events could be read from it",
        path.display(),
        aside.display(),
        rescued.bindings.len(),
        rescued.nodes.len(),
        rescued.events.len(),
    )];
    put_back(&mut database, &rescued).map_err(|error| unreadable(path, &error))?;
    sync_directory(path)?;
    damage.extend(rescued.damage);
    Ok((database, damage))
}

fn put_back(database: &mut Database, rescued: &Snapshot) -> Result<(), rusqlite::Error> {
    let mut changes: Vec<Change> = Vec::new();
    changes.extend(rescued.bindings.iter().cloned().map(Change::PutBinding));
    changes.extend(rescued.nodes.iter().cloned().map(|node| Change::PutNode(Box::new(node))));
    changes.extend(rescued.events.iter().cloned().map(|event| Change::PutEvent(Box::new(event))));
    changes.extend(rescued.tokens.iter().cloned().map(|token| Change::PutToken(Box::new(token))));
    changes.extend(rescued.audit.iter().cloned().map(Change::PutAudit));
    let events = rescued.bridge_events.iter().cloned();
    changes.extend(events.map(|event| Change::PutBridgeEvent(Box::new(event))));
    let records = rescued.profile_records.iter().cloned();
    changes.extend(
        records.map(|record| Change::ProfileRecord { key: record.key(), record: Some(Box::new(record)) }),
    );
    changes.extend(rescued.first_boots.iter().cloned().map(|it| Change::PutFirstBoot(Box::new(it))));
    changes.extend(rescued.answers.iter().cloned().map(|answer| Change::PutAnswer(Box::new(answer))));
    database.commit(std::iter::once(changes.as_slice()))?;
    for (name, value) in &rescued.secrets {
        database::put_rescued_secret(database, name, value)?;
    }
    Ok(())
}

/// Renames the file and what SQLite keeps beside it to the first free `.damaged-<n>`.
fn set_file_aside(path: &Path) -> io::Result<PathBuf> {
    let named = |number: u32| with_suffix(path, &format!(".damaged-{number}"));
    let number = (1..DAMAGED_FILES_MAX).find(|number| !named(*number).exists()).unwrap_or(DAMAGED_FILES_MAX);
    let aside = named(number);
    for suffix in ["", "-wal", "-shm"] {
        let from = with_suffix(path, suffix);
        if from.exists() {
            std::fs::rename(from, with_suffix(&aside, suffix))?;
        }
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).open(path)?;
    Ok(aside)
}

pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
