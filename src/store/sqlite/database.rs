//! The file: its schema, one connection, and what is done with rows that mean nothing.
//!
//! What operators may rely on: table `bindings` (and view `leases`, with dotted addresses and readable times), table
//! `nodes` and `events` with the record as JSON beside the columns worth asking for. Read a live file with
//! `sqlite3 -readonly`. Tables are STRICT, so a value of the wrong type can only come from damage.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use rusqlite::types::Value;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior, params, params_from_iter};

use crate::store::sqlite::rows::{
    apply, decode_answer, decode_audit, decode_binding, decode_bridge_event, decode_event, decode_first_boot,
    decode_node, decode_profile_record, decode_secret, decode_token,
};
use crate::store::{Change, Snapshot};

/// Kept in `user_version`; a file with a higher one is left alone.
pub(super) const SCHEMA_VERSION: i64 = 1;

const SCHEMA: &str = "
CREATE TABLE bindings (
  address    INTEGER PRIMARY KEY,  -- IPv4 address as a number
  mac        TEXT NOT NULL,
  key_kind   TEXT NOT NULL,        -- 'mac' or 'client-id': who holds it
  key        BLOB NOT NULL,
  client_id  BLOB,
  hostname   TEXT,
  state      TEXT NOT NULL,        -- 'bound', 'released', 'quarantined'
  granted_at INTEGER NOT NULL,     -- milliseconds since 1970
  expires_at INTEGER NOT NULL
) STRICT;
CREATE VIEW leases AS SELECT
  (address >> 24) || '.' || ((address >> 16) & 255) || '.' || ((address >> 8) & 255) || '.' || (address & 255) AS ip,
  mac, hostname, state,
  datetime(granted_at / 1000, 'unixepoch') AS granted, datetime(expires_at / 1000, 'unixepoch') AS expires
  FROM bindings;
CREATE TABLE nodes (
  id         TEXT PRIMARY KEY,
  name       TEXT,
  state      TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  record     TEXT NOT NULL         -- JSON
) STRICT;
CREATE TABLE events (
  node       TEXT NOT NULL,
  boot       INTEGER NOT NULL,     -- 0: outside any boot
  sequence   INTEGER NOT NULL,
  at         INTEGER NOT NULL,
  happening  TEXT NOT NULL,        -- JSON
  PRIMARY KEY (node, boot, sequence)
) STRICT, WITHOUT ROWID;
CREATE TABLE secrets (
  name       TEXT PRIMARY KEY,
  value      BLOB NOT NULL
) STRICT;
CREATE TABLE damaged (             -- rows that could not be read, for a person to look at
  origin     TEXT NOT NULL,
  reason     TEXT NOT NULL,
  content    TEXT NOT NULL
) STRICT;
";

/// Tables that came later, added to a file that lacks them. An older farrier does not look at them, so the schema's
/// number stays.
const SCHEMA_ADDED: &str = "
CREATE TABLE IF NOT EXISTS tokens (  -- of the operator plane
  id         TEXT PRIMARY KEY,
  name       TEXT NOT NULL,
  role       TEXT NOT NULL,        -- 'viewer', 'operator', 'admin'
  hash       BLOB NOT NULL,        -- SHA-256 of the token
  created_at INTEGER NOT NULL,
  expires_at INTEGER
) STRICT;
CREATE TABLE IF NOT EXISTS audit (
  sequence   INTEGER PRIMARY KEY,
  at         INTEGER NOT NULL,
  entry      TEXT NOT NULL         -- JSON: who, what, before, after
) STRICT;
CREATE TABLE IF NOT EXISTS bridge_events (
  sequence   INTEGER PRIMARY KEY,
  at         INTEGER NOT NULL,
  happening  TEXT NOT NULL         -- JSON
) STRICT;
CREATE TABLE IF NOT EXISTS profile_records (  -- of boot profiles: who boots which, and one-shots
  key        TEXT PRIMARY KEY,     -- 'rules', or 'run/<rule>/<mac>'
  record     TEXT NOT NULL         -- JSON
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS first_boots (  -- what operators gave for installed systems
  node       TEXT PRIMARY KEY,
  record     TEXT NOT NULL         -- JSON
) STRICT;
CREATE TABLE IF NOT EXISTS answers (  -- to requests with an Idempotency-Key
  who        TEXT NOT NULL,
  key        TEXT NOT NULL,
  request    TEXT NOT NULL,        -- SHA-256 of its body
  kept_until INTEGER NOT NULL,
  answer     TEXT NOT NULL,        -- JSON: status, headers, body
  PRIMARY KEY (who, key)
) STRICT, WITHOUT ROWID;
";

/// Another process that holds the file this long (a backup, a shell) makes commits fail; DHCP clients retry at 4 s.
const BUSY_TIMEOUT: Duration = Duration::from_millis(500);
/// A damaged tree may point at itself; reading stops here instead of never. Twenty times the largest sound file.
const ROWS_MAX: usize = 5_000_000;

#[derive(Debug)]
pub(super) enum OpenFailure {
    TooNew {
        found: i64,
    },
    /// No amount of trying again will make it readable.
    Damaged(String),
    /// The disk, permissions, another process.
    Unreadable(String),
}

impl From<rusqlite::Error> for OpenFailure {
    fn from(error: rusqlite::Error) -> Self {
        // What we ask is right; a column that is not there was damaged away.
        if matches!(error, rusqlite::Error::SqlInputError { .. }) {
            return OpenFailure::Damaged(error.to_string());
        }
        match error.sqlite_error_code() {
            // `Unknown` is plain SQLITE_ERROR, as in "no such table"; that is damage too.
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown) => {
                OpenFailure::Damaged(error.to_string())
            }
            Some(_) | None => OpenFailure::Unreadable(error.to_string()),
        }
    }
}

impl fmt::Display for OpenFailure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenFailure::TooNew { found } => {
                write!(formatter, "schema {found}, this one knows {SCHEMA_VERSION}")
            }
            OpenFailure::Damaged(reason) | OpenFailure::Unreadable(reason) => formatter.write_str(reason),
        }
    }
}

pub(super) struct Database {
    connection: Connection,
}

/// A row that is there but means nothing.
struct BadRow {
    table: &'static Table,
    row: Vec<Value>,
    reason: String,
}

struct Table {
    name: &'static str,
    /// The first `key` of them are the key.
    columns: &'static [&'static str],
    key: usize,
    /// Key columns to sort by; the order of a snapshot.
    order: &'static [&'static str],
}

const BINDINGS: Table = Table {
    name: "bindings",
    columns: &[
        "address",
        "mac",
        "key_kind",
        "key",
        "client_id",
        "hostname",
        "state",
        "granted_at",
        "expires_at",
    ],
    key: 1,
    order: &["address"],
};
const NODES: Table =
    Table { name: "nodes", columns: &["id", "record"], key: 1, order: &["created_at", "id"] };
const EVENTS: Table = Table {
    name: "events",
    columns: &["node", "boot", "sequence", "at", "happening"],
    key: 3,
    order: &["node", "boot", "sequence"],
};
const SECRETS: Table = Table { name: "secrets", columns: &["name", "value"], key: 1, order: &["name"] };

const TOKENS: Table = Table {
    name: "tokens",
    columns: &["id", "name", "role", "hash", "created_at", "expires_at"],
    key: 1,
    order: &["created_at", "id"],
};
const AUDIT: Table =
    Table { name: "audit", columns: &["sequence", "at", "entry"], key: 1, order: &["sequence"] };
const BRIDGE_EVENTS: Table =
    Table { name: "bridge_events", columns: &["sequence", "at", "happening"], key: 1, order: &["sequence"] };
const PROFILE_RECORDS: Table =
    Table { name: "profile_records", columns: &["key", "record"], key: 1, order: &["key"] };
const FIRST_BOOTS: Table =
    Table { name: "first_boots", columns: &["node", "record"], key: 1, order: &["node"] };
const ANSWERS: Table = Table {
    name: "answers",
    columns: &["who", "key", "request", "kept_until", "answer"],
    key: 2,
    order: &["kept_until", "who", "key"],
};

impl Database {
    /// Opens or creates the file and makes sure it is whole.
    pub(super) fn open(path: &Path) -> Result<Database, OpenFailure> {
        let database = Database::connect(path)?;
        let verdict: String = database.connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if verdict != "ok" {
            return Err(OpenFailure::Damaged(verdict));
        }
        let later = [&TOKENS, &AUDIT, &FIRST_BOOTS, &ANSWERS, &BRIDGE_EVENTS, &PROFILE_RECORDS];
        for table in [&BINDINGS, &NODES, &EVENTS, &SECRETS].into_iter().chain(later) {
            database.connection.prepare(&table.select(""))?;
        }
        Ok(database)
    }

    /// Opens again after a failed commit. What the page cache holds may never reach the disk, not even by another
    /// fsync, so everything in the WAL is written once more, to the main file, and the WAL begins anew. Then something is
    /// written to it: a disk that is still full lets itself be opened, and is not to pass for mended.
    pub(super) fn reopen(path: &Path) -> Result<Database, OpenFailure> {
        let database = Database::connect(path)?;
        let busy: i64 =
            database.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
        if busy != 0 {
            return Err(OpenFailure::Unreadable("another process is reading the file".to_owned()));
        }
        database.connection.execute_batch(&format!("PRAGMA user_version={SCHEMA_VERSION}"))?;
        Ok(database)
    }

    fn connect(path: &Path) -> Result<Database, OpenFailure> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.set_prepared_statement_cache_capacity(32);
        let mode: String = connection.query_row("PRAGMA journal_mode=WAL", [], |row| row.get(0))?;
        if mode != "wal" {
            return Err(OpenFailure::Unreadable(format!("the file system allows no WAL (mode {mode})")));
        }
        connection.execute_batch(
            "PRAGMA synchronous=FULL; PRAGMA mmap_size=0; PRAGMA temp_store=MEMORY; PRAGMA trusted_schema=OFF; PRAGMA cell_size_check=ON;",
        )?;
        // The query answers, so it cannot go into the batch above. The writer checkpoints when it has time.
        connection.query_row("PRAGMA wal_autocheckpoint=0", [], |_| Ok(()))?;
        let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        match version {
            SCHEMA_VERSION => {}
            0 => {
                let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
                transaction.execute_batch(SCHEMA)?;
                transaction.execute_batch(&format!("PRAGMA user_version={SCHEMA_VERSION}"))?;
                transaction.commit()?;
            }
            newer if newer > SCHEMA_VERSION => return Err(OpenFailure::TooNew { found: newer }),
            other => return Err(OpenFailure::Damaged(format!("schema version {other}"))),
        }
        connection.execute_batch(SCHEMA_ADDED)?;
        Ok(Database { connection })
    }

    /// Everything that can be read; what cannot is moved to `damaged`, with a line each.
    pub(super) fn read(&mut self) -> Result<Snapshot, rusqlite::Error> {
        let (mut snapshot, bad_rows, unread) = self.read_tables();
        for (table, error) in unread {
            // Damage that the check at opening missed costs its rows, not the start; a failing disk is another matter.
            match error.sqlite_error_code() {
                Some(ErrorCode::DatabaseCorrupt) => snapshot.damage.push(format!("{table}: {error}")),
                Some(_) | None => return Err(error),
            }
        }
        snapshot.damage.extend(bad_rows.iter().map(BadRow::describe));
        if let Err(error) = self.set_aside(&bad_rows) {
            snapshot.damage.push(format!("damaged rows could not be set aside: {error}"));
        }
        Ok(snapshot)
    }

    /// What a damaged file still yields: each table is read from both ends until the damage.
    pub(super) fn rescue(path: &Path) -> Snapshot {
        let opened = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE);
        let Ok(connection) = opened else {
            return Snapshot::default();
        };
        let (mut snapshot, bad_rows, unread) = Database { connection }.read_tables();
        snapshot.damage.extend(bad_rows.iter().map(BadRow::describe));
        snapshot.damage.extend(unread.iter().map(|(table, error)| format!("{table}: {error}")));
        snapshot
    }

    fn read_tables(&self) -> (Snapshot, Vec<BadRow>, Vec<(&'static str, rusqlite::Error)>) {
        let mut bad = Vec::new();
        let mut unread = Vec::new();
        let snapshot = Snapshot {
            bindings: self.read_table(&BINDINGS, decode_binding, &mut bad, &mut unread),
            nodes: self.read_table(&NODES, decode_node, &mut bad, &mut unread),
            events: self.read_table(&EVENTS, decode_event, &mut bad, &mut unread),
            secrets: self.read_table(&SECRETS, decode_secret, &mut bad, &mut unread),
            tokens: self.read_added(&TOKENS, decode_token, &mut bad, &mut unread),
            audit: self.read_added(&AUDIT, decode_audit, &mut bad, &mut unread),
            bridge_events: self.read_added(&BRIDGE_EVENTS, decode_bridge_event, &mut bad, &mut unread),
            profile_records: self.read_added(&PROFILE_RECORDS, decode_profile_record, &mut bad, &mut unread),
            first_boots: self.read_added(&FIRST_BOOTS, decode_first_boot, &mut bad, &mut unread),
            answers: self.read_added(&ANSWERS, decode_answer, &mut bad, &mut unread),
            damage: Vec::new(),
        };
        (snapshot, bad, unread)
    }

    /// A table of [`SCHEMA_ADDED`]. A file from before it existed lacks it, and that is no damage.
    fn read_added<T>(
        &self,
        table: &'static Table,
        decode: fn(&[Value]) -> Result<T, String>,
        bad: &mut Vec<BadRow>,
        unread: &mut Vec<(&'static str, rusqlite::Error)>,
    ) -> Vec<T> {
        if self.has(table) { self.read_table(table, decode, bad, unread) } else { Vec::new() }
    }

    fn has(&self, table: &Table) -> bool {
        let found = self.connection.query_row(
            "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = ?",
            [table.name],
            |row| row.get::<_, i64>(0),
        );
        found.map_or(true, |count| count > 0)
    }

    fn read_table<T>(
        &self,
        table: &'static Table,
        decode: fn(&[Value]) -> Result<T, String>,
        bad: &mut Vec<BadRow>,
        unread: &mut Vec<(&'static str, rusqlite::Error)>,
    ) -> Vec<T> {
        let mut values = Vec::new();
        let mut take = |row: Vec<Value>, values: &mut Vec<T>| match decode(&row) {
            Ok(value) => values.push(value),
            Err(reason) => bad.push(BadRow { table, row, reason }),
        };
        let Err(error) = self.for_each_row(table, "", |row| take(row, &mut values)) else {
            return values;
        };
        unread.push((table.name, error));
        // Once more from the other end, now with an eye on which rows were there before.
        let (mut tail, mut seen) = (Vec::new(), BTreeSet::new());
        let key = |row: &[Value]| format!("{:?}", &row[..table.key]);
        let _ = self.for_each_row(table, "", |row| {
            seen.insert(key(&row));
        });
        let _ = self.for_each_row(table, " DESC", |row| {
            if seen.insert(key(&row)) {
                take(row, &mut tail);
            }
        });
        values.extend(tail.into_iter().rev());
        values
    }

    fn for_each_row(
        &self,
        table: &Table,
        direction: &str,
        mut take: impl FnMut(Vec<Value>),
    ) -> Result<(), rusqlite::Error> {
        let mut statement = self.connection.prepare(&table.select(direction))?;
        let mut rows = statement.query([])?;
        let mut count = 0;
        while let Some(row) = rows.next()? {
            let columns = 0..table.columns.len();
            take(columns.map(|index| raw_value(row, index)).collect::<Result<Vec<_>, _>>()?);
            count += 1;
            if count >= ROWS_MAX {
                break;
            }
        }
        Ok(())
    }

    fn set_aside(&mut self, bad_rows: &[BadRow]) -> Result<(), rusqlite::Error> {
        if bad_rows.is_empty() {
            return Ok(());
        }
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for bad in bad_rows {
            let key = &bad.table.columns[..bad.table.key];
            let wanted = key.iter().map(|column| format!("{column} IS ?")).collect::<Vec<_>>().join(" AND ");
            transaction.execute(
                "INSERT INTO damaged (origin, reason, content) VALUES (?, ?, ?)",
                params![bad.table.name, bad.reason, format!("{:?}", bad.row)],
            )?;
            transaction.execute(
                &format!("DELETE FROM {} WHERE {wanted}", bad.table.name),
                params_from_iter(bad.row[..key.len()].iter()),
            )?;
        }
        transaction.commit()
    }

    /// One transaction for all batches; on return it is on disk.
    pub(super) fn commit<'a>(
        &mut self,
        batches: impl Iterator<Item = &'a [Change]>,
    ) -> Result<(), rusqlite::Error> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for change in batches.flatten() {
            apply(&transaction, change)?;
        }
        transaction.commit()
    }

    /// Pages in the WAL; asking costs microseconds and moves nothing.
    pub(super) fn wal_pages(&self) -> Result<u64, rusqlite::Error> {
        self.connection.query_row("PRAGMA wal_checkpoint(NOOP)", [], |row| {
            row.get::<_, i64>(1).map(|pages| u64::try_from(pages).unwrap_or(0))
        })
    }

    /// Copies what it can from the WAL to the main file without making anyone wait.
    pub(super) fn checkpoint(&self) -> Result<(), rusqlite::Error> {
        self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
    }
}

impl Table {
    fn select(&self, direction: &str) -> String {
        let order = self.order.iter().map(|column| format!("{column}{direction}")).collect::<Vec<_>>();
        format!("SELECT {} FROM {} ORDER BY {}", self.columns.join(", "), self.name, order.join(", "))
    }
}

impl BadRow {
    fn describe(&self) -> String {
        let key: Vec<String> = self.row[..self.table.key].iter().map(|value| format!("{value:?}")).collect();
        format!("{} {}: {}, set aside", self.table.name, key.join(" "), self.reason)
    }
}

/// Text that is no UTF-8 is kept as bytes, so that its row can be set aside.
fn raw_value(row: &rusqlite::Row<'_>, index: usize) -> Result<Value, rusqlite::Error> {
    use rusqlite::types::ValueRef;
    Ok(match row.get_ref(index)? {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(number) => Value::Integer(number),
        ValueRef::Real(number) => Value::Real(number),
        ValueRef::Text(text) => match std::str::from_utf8(text) {
            Ok(text) => Value::Text(text.to_owned()),
            Err(_) => Value::Blob(text.to_vec()),
        },
        ValueRef::Blob(bytes) => Value::Blob(bytes.to_vec()),
    })
}

/// A secret that was rescued; its name is no constant of this program any more.
pub(super) fn put_rescued_secret(
    database: &mut Database,
    name: &str,
    value: &[u8],
) -> Result<(), rusqlite::Error> {
    database.connection.execute("INSERT OR REPLACE INTO secrets VALUES (?, ?)", params![name, value])?;
    Ok(())
}
