//! A copy of the store while it is in use, and a store made from a copy.
//!
//! A backup is one file, the database as it was at one moment: leases, nodes, timelines, tokens, the audit log and the
//! keys. (Images and loaders are not in it; they can be built and fetched again.) SQLite reads it in one transaction, which
//! stops no writer. A restore checks the copy before it touches anything, keeps what it replaces, and replaces it in one
//! step, so that a power cut leaves the one store or the other.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use super::database::SCHEMA_VERSION;
use super::files::{prepare_files, sync_directory, with_suffix};
use crate::store::LoadError;

/// Stores kept from before a restore; beyond it the last name is taken again.
const KEPT_MAX: u32 = 100;

/// What a copy holds, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contents {
    pub bindings: u64,
    pub nodes: u64,
    pub bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("{path} is not there: name the state directory with --state")]
    Missing { path: String },
    #[error("{path} is no whole backup: {reason}; nothing was changed")]
    NotWhole { path: String, reason: String },
    #[error(
        "{path} was written by a newer farrier (schema {found}, this one knows {known}): install that version; nothing was changed"
    )]
    TooNew { path: String, found: i64, known: i64 },
    #[error(
        "an appliance is running on {path}: stop it first, `systemctl stop farrier`; nothing was changed"
    )]
    Running { path: String },
    #[error("{path}: {reason}")]
    Failed { path: String, reason: String },
}

fn failed(path: &Path) -> impl Fn(&dyn std::fmt::Display) -> BackupError + '_ {
    move |reason| BackupError::Failed { path: path.display().to_string(), reason: reason.to_string() }
}

/// Copies the store to `copy`, which appears whole or not at all.
pub fn back_up(database: &Path, copy: &Path) -> Result<Contents, BackupError> {
    if !database.exists() {
        return Err(BackupError::Missing { path: database.display().to_string() });
    }
    let part = with_suffix(copy, ".part");
    let _ = fs::remove_file(&part);
    let at = failed(&part);
    let mut options = OpenOptions::new();
    let created = options.write(true).create_new(true).mode(0o600).open(&part);
    created.map_err(|error| at(&error))?;
    let copied = copy_into(database, &part).and_then(|()| check(&part)).and_then(|contents| {
        let synced = File::open(&part).and_then(|file| file.sync_all());
        synced.and_then(|()| fs::rename(&part, copy)).map_err(|error| at(&error))?;
        sync_directory(copy).map_err(|error| at(&error))?;
        Ok(contents)
    });
    if copied.is_err() {
        let _ = fs::remove_file(&part);
    }
    copied
}

fn copy_into(database: &Path, part: &Path) -> Result<(), BackupError> {
    let at = failed(database);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(database, flags).map_err(|error| at(&error))?;
    let into = part.to_str().ok_or_else(|| at(&"the name of the backup is not UTF-8"))?;
    connection.execute("VACUUM INTO ?", [into]).map_err(|error| at(&error))?;
    Ok(())
}

/// Whether the file is a whole store that this program understands.
fn check(copy: &Path) -> Result<Contents, BackupError> {
    let path = || copy.display().to_string();
    let not_whole =
        |reason: &dyn std::fmt::Display| BackupError::NotWhole { path: path(), reason: reason.to_string() };
    let bytes = fs::metadata(copy).map_err(|error| not_whole(&error))?.len();
    // A backup has no WAL, and is not to get one by being looked at.
    let uri = format!(
        "file:{}?immutable=1",
        copy.display().to_string().replace('%', "%25").replace('?', "%3f").replace('#', "%23")
    );
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let connection = Connection::open_with_flags(uri, flags).map_err(|error| not_whole(&error))?;
    let ask = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
    let version = ask("PRAGMA user_version").map_err(|error| not_whole(&error))?;
    if version > SCHEMA_VERSION {
        return Err(BackupError::TooNew { path: path(), found: version, known: SCHEMA_VERSION });
    }
    if version < 1 {
        return Err(not_whole(&"it is no store of farrier's"));
    }
    let verdict: String = connection
        .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
        .map_err(|error| not_whole(&error))?;
    if verdict != "ok" {
        return Err(not_whole(&verdict));
    }
    let count = |table: &str| {
        let rows = ask(&format!("SELECT count(*) FROM {table}")).map_err(|error| not_whole(&error))?;
        Ok(u64::try_from(rows).unwrap_or(0))
    };
    Ok(Contents { bindings: count("bindings")?, nodes: count("nodes")?, bytes })
}

/// Makes `copy` the store. Gives what is in it, and where the store before it is kept.
pub fn restore(copy: &Path, database: &Path) -> Result<(Contents, Option<PathBuf>), BackupError> {
    let contents = check(copy)?;
    let (_lock, is_new) = prepare_files(database).map_err(|error| match error {
        LoadError::InUse { path } => BackupError::Running { path },
        LoadError::TooNew { .. } | LoadError::Unreadable { .. } => failed(database)(&error),
    })?;
    let at = failed(database);
    let part = with_suffix(database, ".restoring");
    place_copy(copy, &part, database).map_err(|error| at(&error))?;
    check(&part)?;
    let kept = if is_new { None } else { Some(keep(database).map_err(|error| at(&error))?) };
    fs::rename(&part, database).map_err(|error| at(&error))?;
    sync_directory(database).map_err(|error| at(&error))?;
    Ok((contents, kept))
}

/// The copy beside the store, on disk, its directory's owner's and nobody else's.
fn place_copy(copy: &Path, part: &Path, database: &Path) -> io::Result<()> {
    let _ = fs::remove_file(part);
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(part)?;
    io::copy(&mut File::open(copy)?, &mut file)?;
    if let Some(directory) = database.parent() {
        let owner = fs::metadata(directory)?;
        // The lock, too, may just have been made by root. Without the right to give files away they are ours already.
        for path in [part, &with_suffix(database, ".lock")] {
            let _ = chown(path, Some(owner.uid()), Some(owner.gid()));
        }
    }
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.sync_all()
}

/// Gives the store a second name, so that at no moment there is none. What its WAL still holds is moved into it first; a
/// store too damaged for that keeps its WAL beside it.
fn keep(database: &Path) -> io::Result<PathBuf> {
    let named = |number: u32| with_suffix(database, &format!(".before-restore-{number}"));
    let number = (1..KEPT_MAX).find(|number| !named(*number).exists()).unwrap_or(KEPT_MAX);
    let kept = named(number);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    if let Ok(connection) = Connection::open_with_flags(database, flags) {
        let _ = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        let _ = connection.close();
    }
    let _ = fs::remove_file(&kept);
    fs::hard_link(database, &kept)?;
    for suffix in ["-wal", "-shm"] {
        let beside = with_suffix(database, suffix);
        if beside.exists() {
            fs::rename(beside, with_suffix(&kept, suffix))?;
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dhcp::lease::BindingState;
    use crate::store::sqlite::SqliteStore;
    use crate::store::tests::{binding, node};
    use crate::store::{Change, Store};

    fn put(last: u8) -> Vec<Change> {
        vec![Change::PutBinding(binding(last, BindingState::Bound, 1))]
    }

    fn addresses(path: &Path) -> Vec<u8> {
        let snapshot = SqliteStore::open(path).unwrap().load().unwrap();
        assert_eq!(snapshot.damage, Vec::<String>::new());
        snapshot.bindings.iter().map(|binding| binding.address.octets()[3]).collect()
    }

    #[test]
    fn a_backup_of_a_store_in_use_is_whole_and_comes_back() {
        let here = tempfile::tempdir().unwrap();
        let (database, copy) = (here.path().join("state/farrier.db"), here.path().join("copy"));
        let store = SqliteStore::open(&database).unwrap();
        store.commit(put(1)).unwrap();
        store.commit(vec![Change::PutNode(Box::new(node(1, 1)))]).unwrap();
        // Written to while it is copied.
        let contents = std::thread::scope(|scope| {
            scope.spawn(|| (2..=100).for_each(|last| store.commit(put(last)).unwrap()));
            back_up(&database, &copy).unwrap()
        });
        assert!(contents.bindings >= 1 && contents.nodes == 1, "{contents:?}");
        assert_eq!(fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);
        let running = restore(&copy, &database).unwrap_err();
        assert!(matches!(running, BackupError::Running { .. }), "{running}");
        drop(store);
        let (restored, kept) = restore(&copy, &database).unwrap();
        assert_eq!(restored, contents);
        assert_eq!(addresses(&database).len() as u64, contents.bindings);
        let kept = kept.expect("there was a store");
        assert_eq!(addresses(&kept).len(), 100, "what was replaced is all there");
        assert_eq!(fs::metadata(&database).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_is_no_whole_backup_changes_nothing() {
        let here = tempfile::tempdir().unwrap();
        let (database, copy) = (here.path().join("farrier.db"), here.path().join("copy"));
        let store = SqliteStore::open(&database).unwrap();
        store.commit((1..=200).flat_map(put).collect()).unwrap();
        back_up(&database, &copy).unwrap();
        drop(store);
        let sound = fs::read(&copy).unwrap();
        let mut garbled = sound.clone();
        garbled[4096..4096 + 64].fill(0xa5);
        let newer = here.path().join("newer");
        fs::write(&newer, &sound).unwrap();
        Connection::open(&newer).unwrap().execute_batch("PRAGMA user_version=99").unwrap();
        let newer = fs::read(&newer).unwrap();
        let before = fs::read(&database).unwrap();
        for (bytes, word) in [
            (&sound[..sound.len() / 2], "no whole backup"),
            (&garbled, "no whole backup"),
            (b"not a database at all", "no whole backup"),
            (b"", "no store of farrier's"),
            (&newer, "newer farrier"),
        ] {
            fs::write(&copy, bytes).unwrap();
            let error = restore(&copy, &database).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("nothing was changed"), "{word}: {error}");
            assert_eq!(fs::read(&database).unwrap(), before);
        }
        let absent = back_up(&here.path().join("absent"), &copy).unwrap_err();
        assert!(matches!(absent, BackupError::Missing { .. }), "{absent}");
    }

    #[test]
    fn a_store_is_restored_where_there_is_none() {
        let here = tempfile::tempdir().unwrap();
        let (database, copy) = (here.path().join("farrier.db"), here.path().join("copy"));
        let store = SqliteStore::open(&database).unwrap();
        store.commit(put(7)).unwrap();
        back_up(&database, &copy).unwrap();
        drop(store);
        let elsewhere = here.path().join("new/state/farrier.db");
        assert_eq!(restore(&copy, &elsewhere).unwrap().1, None);
        assert_eq!(addresses(&elsewhere), [7]);
    }
}
