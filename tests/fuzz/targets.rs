//! What is fed with anything at all: one function a target, each of which panics when something does not hold.
//!
//! `cargo fuzz` runs them guided by coverage (`make fuzz`), `cargo test --test fuzz` replays the corpora and mutates
//! them. Never panicking is the least of it: a reply must be one that clients read, a transfer's datagrams bounded, a
//! list that was read the same when it is written and read again.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use farrier::boot::decision::{Standing, UnknownPolicy};
use farrier::boot::loader::LoaderTable;
use farrier::boot::namespace;
use farrier::bootplane::agent_calls::{AgentCalls, InstallParts};
use farrier::bootplane::files::{FileFacts, answer, decode_path};
use farrier::bootplane::head::HeadReader;
use farrier::clock::{Clock, Timestamp};
use farrier::config::{Config, DhcpMode, Identity, PoolRange, StrangerLimits};
use farrier::dhcp::address_book::AddressBook;
use farrier::dhcp::server::{Answer, DhcpServer, Directory, Received, ReplyKind, Service, Settings};
use farrier::image::disk::manifest::DiskManifest;
use farrier::image::disk::qcow2::Qcow2;
use farrier::net::MacAddr;
use farrier::node::registry::{Registry, RegistrySettings};
use farrier::node::roster::{self, Format};
use farrier::node::token::TokenKey;
use farrier::operator::access::documents;
use farrier::operator::api;
use farrier::store::Store;
use farrier::store::memory::MemoryStore;
use farrier::store::sqlite::SqliteStore;
use farrier::storm::message;
use farrier::telemetry::Tally;
use farrier::tftp::transfer::{Limits, PROGRESS_TIMEOUT, Transfer, Transmit};
use farrier::tftp::wire;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode};
use rusqlite::types::Value;
use serde::de::DeserializeOwned;

pub type Target = (&'static str, fn(&[u8]));

/// By the name of their corpus.
pub const TARGETS: [Target; 14] = [
    ("dhcp_messages", dhcp_messages),
    ("dhcp_options", dhcp_options),
    ("tftp_request", tftp_request),
    ("tftp_session", tftp_session),
    ("http_head", http_head),
    ("http_range", http_range),
    ("names", names),
    ("config", config),
    ("roster", roster),
    ("store", store),
    ("agent_calls", agent_calls),
    ("api_bodies", api_bodies),
    ("qcow2", qcow2),
    ("disk_manifest", disk_manifest),
];

const SERVER: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 2);
const NOW: Timestamp = Timestamp::from_millis(1_795_000_000_000);
static LOADERS: LazyLock<Arc<LoaderTable>> = LazyLock::new(|| Arc::new(LoaderTable::built_in()));

/// The first byte, for choices, and the rest.
fn choice(data: &[u8]) -> (u8, &[u8]) {
    data.split_first().map_or((0, data), |(first, rest)| (*first, rest))
}

/// Pieces behind two bytes of length each; the last may be cut short.
fn pieces(mut data: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let [high, low, rest @ ..] = data else { return None };
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
        let (piece, rest) = rest.split_at(length);
        data = rest;
        Some(piece)
    })
}

// --- DHCP -------------------------------------------------------------------------------------------------------------

struct Nobody;

impl Directory for Nobody {
    fn standing(&self, _: MacAddr, _: Timestamp) -> Standing {
        Standing::Stranger
    }

    fn reserved_for(&self, _: Ipv4Addr) -> Option<MacAddr> {
        None
    }
}

fn dhcp_settings(flags: u8) -> Settings {
    Settings {
        mode: if flags & 128 == 0 { DhcpMode::Server } else { DhcpMode::Proxy },
        bootp: true,
        strangers: StrangerLimits::default(),
        network: "192.168.2.2/24".parse().expect("a network"),
        gateway: Some(Ipv4Addr::new(192, 168, 2, 1)),
        dns: vec![Ipv4Addr::new(192, 168, 2, 3)],
        pool: PoolRange { first: Ipv4Addr::new(192, 168, 2, 50), last: Ipv4Addr::new(192, 168, 2, 60) },
        lease: Duration::from_secs(3600),
        unknown: UnknownPolicy::Enroll,
        identity: if flags & 1 == 0 { Identity::Mac } else { Identity::ClientId },
        authoritative: flags & 2 == 0,
        loaders: Arc::clone(&LOADERS),
    }
}

fn ask(server: &mut DhcpServer, bytes: &[u8], flags: u8, now: Timestamp) {
    let service = if flags & 4 == 0 { Service::Dhcp } else { Service::BootServer };
    let source = match flags & 8 {
        0 => SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68),
        _ => SocketAddrV4::new(Ipv4Addr::new(192, 168, 2, 51), 68),
    };
    let destination = if flags & 16 == 0 { Ipv4Addr::BROADCAST } else { SERVER };
    let outcome = server.handle(&Received { bytes, source, destination, service }, &Nobody, now);
    let Answer::Reply(reply) = outcome.answer else { return };
    assert!((300..=1472).contains(&reply.bytes.len()), "{} bytes", reply.bytes.len());
    // Clients of other hardware types read what ours do not; the storm's reader is one for Ethernet.
    if bytes[1..3] == [1, 6] {
        let read = message::parse(&reply.bytes).expect("a reply that clients read");
        assert_eq!(read.xid.to_be_bytes(), bytes[4..8]);
        assert_eq!(read.mac.0, bytes[28..34]);
    }
    match reply.kind {
        ReplyKind::Offer | ReplyKind::Nak => assert!(outcome.changes.is_empty(), "{:?}", outcome.changes),
        ReplyKind::Ack | ReplyKind::Bootp => {}
    }
    let usage = server.pool_use();
    assert!(usage.bound + usage.offered + usage.quarantined <= usage.size, "{usage:?}");
}

/// A conversation: flags, then messages.
fn dhcp_messages(data: &[u8]) {
    let (flags, rest) = choice(data);
    let mut server = DhcpServer::new(dhcp_settings(flags), Vec::new(), NOW);
    let mut now = NOW;
    for piece in pieces(rest).take(16) {
        ask(&mut server, piece, flags, now);
        // A minute a message: offers lapse within a conversation.
        now = now.plus(Duration::from_secs(u64::from(flags & 64)));
    }
}

/// A well-formed message whose options are the input: code, then as many pieces as there are. Most of what `dhcp_messages`
/// makes up is thrown away before an option is read.
fn dhcp_options(data: &[u8]) {
    let [flags, kind, rest @ ..] = data else { return };
    let mut bytes = vec![0; 236];
    bytes[..3].copy_from_slice(&[1, 1, 6]);
    bytes[28..34].copy_from_slice(&[0x52, 0x54, 0, 0, 0, 1]);
    if flags & 32 != 0 {
        bytes[24..28].copy_from_slice(&[192, 168, 2, 200]);
    }
    bytes.extend_from_slice(&[99, 130, 83, 99, 53, 1, kind % 9]);
    for piece in pieces(rest).take(32) {
        let Some((code, value)) = piece.split_first() else { continue };
        let code =
            [43, 77, 82, 60, 93, 97, 175, 61, 12, 55, 57, 50, 54, 81, 52, 124, 125].get(usize::from(*code));
        for part in value.chunks(255) {
            bytes.push(*code.unwrap_or(&43));
            bytes.push(part.len() as u8);
            bytes.extend_from_slice(part);
        }
    }
    bytes.push(255);
    let mut server = DhcpServer::new(dhcp_settings(*flags), Vec::new(), NOW);
    ask(&mut server, &bytes, *flags, NOW);
    ask(&mut server, &bytes, flags ^ 4, NOW.plus(Duration::from_secs(1)));
}

// --- TFTP -------------------------------------------------------------------------------------------------------------

const LIMITS: Limits = Limits { blksize_max: 1468, windowsize_max: 64 };

/// Writes and mail are refused before a transfer begins.
fn is_served(request: &wire::Request<'_>) -> bool {
    request.operation == wire::Operation::Read && request.mode != wire::Mode::Mail
}

fn tftp_request(data: &[u8]) {
    let _ = wire::parse_datagram(data);
    let Ok(request) = wire::parse_request(data) else { return };
    if !is_served(&request) {
        return;
    }
    let mut transfer = Transfer::new(&request, &LIMITS, Bytes::from_static(b"content\n"), Instant::now());
    while transfer.poll_transmit().is_some() {}
}

/// A request, then datagrams; an empty one lets the next deadline pass.
fn tftp_session(data: &[u8]) {
    let (size, rest) = choice(data);
    let mut pieces = pieces(rest);
    let Some(Ok(request)) = pieces.next().map(wire::parse_request) else { return };
    if !is_served(&request) {
        return;
    }
    let content: Vec<u8> = (0..u32::from(size) * 97).flat_map(u32::to_le_bytes).collect();
    let octets = request.mode == wire::Mode::Octet;
    let (begin, mut now) = (Instant::now(), Instant::now());
    let mut transfer = Transfer::new(&request, &LIMITS, content.clone().into(), now);
    let (mut datagrams, mut steps) = (0, 0);
    let mut drain = |transfer: &mut Transfer| {
        while let Some(transmit) = transfer.poll_transmit() {
            datagrams += 1;
            if let Transmit::Blocks(burst) = transmit {
                datagrams += burst.count;
                assert!(burst.count <= 64);
                let from = (burst.first as usize - 1) * burst.blksize;
                assert!(
                    !octets || content[from..].starts_with(&burst.payload),
                    "other bytes than the file's"
                );
            }
        }
    };
    drain(&mut transfer);
    for piece in pieces.take(64) {
        steps += 1;
        match (piece, transfer.next_deadline()) {
            ([], Some(deadline)) => {
                now = now.max(deadline);
                transfer.handle_timeout(now);
            }
            ([0], _) => transfer.handle_repeated_request(now),
            _ => transfer.handle_datagram(piece, now),
        }
        drain(&mut transfer);
    }
    // Left alone it ends, and soon.
    while let Some(deadline) = transfer.next_deadline() {
        steps += 1;
        now = now.max(deadline);
        transfer.handle_timeout(now);
        drain(&mut transfer);
        assert!(now - begin <= PROGRESS_TIMEOUT * 70, "a transfer that does not end");
    }
    assert!(transfer.outcome().is_some());
    assert!(datagrams <= (steps + 1) * 200, "{datagrams} datagrams in {steps} steps");
}

// --- HTTP -------------------------------------------------------------------------------------------------------------

/// However a head is cut, the verdicts are the same.
fn http_head(data: &[u8]) {
    let (cut, bytes) = choice(data);
    let read = |parts: &mut dyn Iterator<Item = &[u8]>| {
        let (mut reader, mut verdicts) = (HeadReader::default(), Vec::new());
        parts.for_each(|part| reader.feed(part, |verdict| verdicts.push(verdict)));
        (verdicts, reader.inside_head())
    };
    let whole = read(&mut std::iter::once(bytes));
    assert_eq!(whole, read(&mut bytes.chunks(usize::from(cut).max(1))));
}

/// A method, a size, and header lines.
fn http_range(data: &[u8]) {
    let [flags, a, b, rest @ ..] = data else { return };
    let method = [Method::GET, Method::HEAD][usize::from(flags & 1)].clone();
    let modified = (flags & 2 == 0).then_some(NOW);
    let size = u64::from(u16::from_be_bytes([*a, *b]));
    let file = FileFacts { size, digest: None, modified, media_type: "text/plain" };
    let mut headers = HeaderMap::new();
    for line in rest.split(|byte| *byte == b'\n').take(32) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    let answer = answer(&method, &headers, &file);
    let length = answer.headers.get("content-length").and_then(|it| it.to_str().ok()?.parse::<u64>().ok());
    match answer.part {
        Some(part) => {
            assert!(part.start <= part.end && part.end <= size, "{part:?} of {size}");
            assert_eq!(length, Some(part.end - part.start));
            let whole = part == (0..size);
            assert_eq!(
                answer.status == StatusCode::PARTIAL_CONTENT,
                answer.headers.contains_key("content-range")
            );
            assert!(whole || answer.status == StatusCode::PARTIAL_CONTENT);
        }
        None => assert!(method == Method::HEAD || !answer.status.is_success(), "{}", answer.status),
    }
}

fn names(data: &[u8]) {
    if let Ok(path) = std::str::from_utf8(data) {
        let _ = decode_path(path);
    }
    let Ok(name) = namespace::canonical(data) else { return };
    assert!(name.len() <= namespace::NAME_LEN_MAX);
    assert!(!name.split('/').any(|part| part.is_empty() || part == "." || part == ".."), "{name}");
    assert_eq!(namespace::canonical(name.as_bytes()).as_deref(), Ok(&*name), "one spelling");
    let _ = namespace::resolve(&name, &LOADERS).map(|content| namespace::stage_of(&content));
}

// --- files ------------------------------------------------------------------------------------------------------------

fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Config::parse(text, Path::new("farrier.toml")) {
        Ok(config) => {
            assert!(config.dhcp.pool.first <= config.dhcp.pool.last);
            assert!(config.fixed_at_start(&config).is_empty());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn roster(data: &[u8]) {
    let (format, text) = choice(data);
    let format = Format::ALL.get(usize::from(format & 15)).copied();
    let Ok(read) = roster::parse(text, format) else { return };
    // Lines belong together by their name: a spreadsheet cannot say that two ports without one are one machine's.
    let all_named = read.entries.iter().all(|entry| entry.name.is_some() || entry.ports.len() == 1);
    for format in [Format::Json, Format::Csv].into_iter().filter(|it| *it == Format::Json || all_named) {
        let written = roster::emit(&read.entries, format);
        let again = roster::parse(written.as_bytes(), Some(format));
        let again = again.unwrap_or_else(|error| panic!("{error:?} in our own {format:?}:\n{written}"));
        let bare = |entries: &[roster::RosterEntry]| -> Vec<_> {
            entries.iter().map(|entry| (entry.name.clone(), entry.ports.clone())).collect()
        };
        assert_eq!(bare(&again.entries), bare(&read.entries), "{written}");
    }
}

const TABLES: [&str; 6] = ["bindings", "nodes", "events", "secrets", "tokens", "audit"];

/// The first bytes of the disk in it: as many as it says, the same however they are asked for.
fn qcow2(data: &[u8]) {
    const BYTES_MAX: u64 = 1 << 20;
    let read = |most: usize| {
        let disk = Qcow2::open(data, data.len() as u64).ok()?;
        let announced = disk.disk_bytes().min(BYTES_MAX);
        let mut disk = disk.take(BYTES_MAX);
        let (mut bytes, mut piece) = (Vec::new(), vec![0; most]);
        loop {
            match disk.read(&mut piece) {
                Ok(0) => break,
                Ok(count) => bytes.extend_from_slice(&piece[..count]),
                Err(_) => return Some((bytes, false)),
            }
        }
        assert_eq!(bytes.len() as u64, announced);
        Some((bytes, true))
    };
    assert_eq!(read(64 * 1024), read(1000));
}

/// Whoever follows a manifest that was checked stays within its disk.
fn disk_manifest(data: &[u8]) {
    let Ok(manifest) = serde_json::from_slice::<DiskManifest>(data) else { return };
    if manifest.check().is_err() {
        return;
    }
    let mut end = 0;
    for chunk in &manifest.chunks {
        let (start, length) = manifest.place(chunk);
        assert!(start >= end && length > 0 && start + u64::from(length) <= manifest.bytes);
        end = start + u64::from(length);
    }
    assert!(manifest.filled_bytes() <= manifest.bytes);
    let written = serde_json::to_vec(&manifest).expect("a document");
    assert_eq!(serde_json::from_slice::<DiskManifest>(&written).expect("our own"), manifest);
}

/// Either a whole file, or rows: table, then values. Bad data never prevents the start.
fn store(data: &[u8]) {
    static EMPTY: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let folder = folder();
        let path = folder.path().join("farrier.db");
        drop(SqliteStore::open(&path).expect("a new store"));
        std::fs::read(path).expect("its file")
    });
    let (kind, rest) = choice(data);
    let folder = folder();
    let path = folder.path().join("farrier.db");
    if kind == 0 {
        std::fs::write(&path, rest).expect("a file");
    } else {
        std::fs::write(&path, &*EMPTY).expect("a file");
        insert(&path, kind, rest);
    }
    let store = match SqliteStore::open(&path) {
        Ok(store) => store,
        // A file may say that it is of a newer farrier.
        Err(error) => {
            assert!(kind == 0, "rows prevent a start: {error}");
            return;
        }
    };
    let mut snapshot = store.load().expect("what was opened can be read");
    let bindings = std::mem::take(&mut snapshot.bindings);
    let (events, nodes) = (snapshot.events.len(), snapshot.nodes.len());
    let registry = Registry::new(Arc::new(MemoryStore::new()), snapshot, settings(), key());
    assert!(registry.nodes().len() == nodes && (nodes > 0 || events == 0 || kind != 0));
    let server = DhcpServer::new(dhcp_settings(0), bindings, NOW);
    let _ = (server.leases(), server.pool_use());
}

fn folder() -> tempfile::TempDir {
    // In memory, if that is to be had: a sync each time would leave no time for anything else.
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.expect("a folder")
}

fn insert(path: &Path, kind: u8, rest: &[u8]) {
    let connection = rusqlite::Connection::open(path).expect("the file");
    connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF").expect("pragmas");
    let table = TABLES[usize::from(kind) % TABLES.len()];
    let columns = connection
        .prepare(&format!("SELECT * FROM {table}"))
        .map(|statement| statement.column_count())
        .unwrap_or_else(|error| panic!("{table}: {error}"));
    let mut values = pieces(rest).map(|piece| match piece.split_first() {
        None => Value::Null,
        Some((0, text)) => Value::Text(String::from_utf8_lossy(text).into_owned()),
        Some((1, blob)) => Value::Blob(blob.to_vec()),
        Some((2, number)) => Value::Real(number.len() as f64 / 3.0),
        Some((_, digits)) => {
            Value::Integer(digits.iter().take(8).fold(0, |sum, byte| sum << 8 | i64::from(*byte)))
        }
    });
    let marks = vec!["?"; columns].join(",");
    for _ in 0..16 {
        let row: Vec<Value> = values.by_ref().take(columns).collect();
        if row.len() < columns {
            return;
        }
        // What the schema itself refuses is not there to be read.
        let _ = connection.execute(
            &format!("INSERT OR IGNORE INTO {table} VALUES ({marks})"),
            rusqlite::params_from_iter(row),
        );
    }
}

// --- calls ------------------------------------------------------------------------------------------------------------

fn settings() -> RegistrySettings {
    RegistrySettings {
        unknown: UnknownPolicy::Enroll,
        call_deadline: Duration::from_secs(600),
        first_boot_deadline: Duration::from_secs(1800),
        installer_deadline: Duration::from_secs(7200),
        reservations: Vec::new(),
    }
}

fn key() -> TokenKey {
    TokenKey::from_bytes([7; 32])
}

/// Which call, with which credential, and its body. The machine has booted and holds the token and the session of it.
fn agent_calls(data: &[u8]) {
    use farrier::boot::client::{Client, ClientClass, Firmware};
    use farrier::node::registry::{Hello, NodeRef};
    use farrier::node::timeline::{FileOutcome, Happening, Stage, Transport};

    const PATHS: [&str; 6] = ["hello", "inventory", "heartbeat", "failure", "obeying", "nonsense"];
    const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 50);

    let (flags, body) = choice(data);
    let registry = Arc::new(Registry::new(
        Arc::new(MemoryStore::new()),
        farrier::store::Snapshot::default(),
        settings(),
        key(),
    ));
    let class = ClientClass::Firmware { firmware: Firmware::UefiX64 };
    registry.granted(&Client { mac: MAC, class, uuid: None }, NOW);
    let fetched = Happening::File {
        transport: Transport::Http,
        stage: Some(Stage::Ramdisk),
        name: "image/vm/initrd.img".to_owned(),
        size: Some(1),
        sent: 1,
        took_millis: 1,
        outcome: FileOutcome::Complete,
        tftp: None,
    };
    registry.record(MAC, fetched, NOW);
    let token = registry.issue_token(MAC, ADDRESS, NOW).expect("a token").text;
    let credential = match flags >> 4 {
        0..=7 => {
            let hello = Hello { token: &token, nonce: None, uptime_secs: 1.0 };
            Some(registry.hello(&hello, MAC, ADDRESS, NOW).expect("a session").session)
        }
        8..=11 => Some(token),
        12 | 13 => Some(String::from_utf8_lossy(body).into_owned()),
        _ => None,
    };
    let addresses = Arc::new(AddressBook::default());
    addresses.set(ADDRESS, MAC);
    let calls = AgentCalls::new(
        Arc::clone(&registry),
        addresses,
        Arc::new(Tally::default()),
        Clock::start(),
        InstallParts::none(),
    );
    let path = format!("/agent/v1/{}", PATHS[usize::from(flags & 15) % PATHS.len()]);
    let answer = calls.answer_read(ADDRESS, &path, credential, body, NOW);
    serde_json::from_slice::<serde_json::Value>(&answer.body).expect("JSON");
    assert!(matches!(answer.status.as_u16(), 200 | 400 | 401 | 404), "{}", answer.status);
    let node = registry.find(&NodeRef::Mac(MAC)).expect("the node");
    let stored = serde_json::to_vec(&node).expect("a record");
    assert_eq!(serde_json::from_slice::<farrier::node::Node>(&stored).expect("the record again"), node);
}

/// Operators' bodies, by document.
fn api_bodies(data: &[u8]) {
    fn read<T: DeserializeOwned>(body: &[u8]) {
        // The same reader that the handlers have: an error names its field.
        let mut reader = serde_json::Deserializer::from_slice(body);
        if let Err(error) = serde_path_to_error::deserialize::<_, T>(&mut reader) {
            assert!(!error.to_string().is_empty());
        }
    }
    let (document, body) = choice(data);
    match document % 13 {
        0 => read::<api::RegisterRequest>(body),
        1 => read::<api::NodePatch>(body),
        2 => read::<api::NodePut>(body),
        3 => read::<api::OrderRequest>(body),
        4 => read::<api::ImportRequest>(body),
        5 => read::<api::ReservationPut>(body),
        7 => read::<api::DeployRequest>(body),
        8 => read::<api::CleanRequest>(body),
        9 => read::<api::RescueRequest>(body),
        10 => read::<api::AssignRequest>(body),
        11 => read::<documents::TokenRequest>(body),
        12 => read::<documents::LoginLinkRequest>(body),
        _ => {
            let text = String::from_utf8_lossy(body);
            let _ = text.parse::<farrier::node::registry::NodeRef>();
            let _ = text.parse::<farrier::node::registry::NodeCursor>();
            let _ = text.parse::<MacAddr>();
        }
    }
}
