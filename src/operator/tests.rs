use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::*;
use crate::boot;
use crate::boot::client::{ClientClass, Firmware};
use crate::boot::decision::UnknownPolicy;
use crate::bridge_log::BridgeLog;
use crate::cli::client::{Client, WatchEvent};
use crate::cli::error::CommandError;
use crate::config::OperatorConfig;
use crate::dhcp::lease::{LeaseState, LeaseView};
use crate::net::MacAddr;
use crate::node::NodeId;
use crate::node::registry::RegistrySettings;
use crate::node::state::{Order, ProvisionState};
use crate::node::timeline::{Boot, Happening};
use crate::node::token::TokenKey;
use crate::operator::api::*;
use crate::store::Store as _;
use crate::store::memory::MemoryStore;

mod access;
mod api;
mod command_line;

const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
const HELD: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 130);

/// An appliance that runs nothing but its operator plane.
struct Quiet {
    clock: Clock,
    has_image: Arc<AtomicBool>,
    ailing: Arc<Ailing>,
}

/// What is wrong with it.
#[derive(Default)]
struct Ailing {
    bridge_down: AtomicBool,
    disk_full: Mutex<Option<String>>,
}

impl ApplianceView for Quiet {
    fn bridge(&self) -> BridgeStatus {
        let (up, reason) = match self.ailing.bridge_down.load(Ordering::Relaxed) {
            true => (false, Some("the bridge is down".to_owned())),
            false => (true, None),
        };
        let (name, address) = ("br-test".to_owned(), "192.168.2.2/24".to_owned());
        BridgeStatus { name, address, mac: MAC, up, reason, objection: None }
    }

    fn services(&self) -> Vec<ServiceStatus> {
        vec![ServiceStatus { name: "dhcp".to_owned(), listens: "nowhere".to_owned(), running: true }]
    }

    fn image(&self) -> ImageStatus {
        ImageStatus { profile: "metal".to_owned(), present: self.has_image.load(Ordering::Relaxed) }
    }

    fn store(&self) -> StoreStatus {
        let last_error = self.ailing.disk_full.lock().unwrap().clone();
        StoreStatus { path: "memory".to_owned(), last_error, ..StoreStatus::default() }
    }

    fn leases(&self) -> Arc<Leases> {
        Arc::new(Leases::new(vec![LeaseView {
            address: HELD,
            mac: MAC,
            hostname: None,
            client_id: None,
            state: LeaseState::Bound,
            granted_at: None,
            expires_at: self.clock.now().plus(Duration::from_secs(3600)),
        }]))
    }

    fn pool_use(&self) -> PoolUse {
        PoolUse { size: 127, bound: 1, offered: 0, quarantined: 0 }
    }

    fn images(&self) -> Vec<ImageEntry> {
        api::images()
    }
}

struct Rig {
    directory: tempfile::TempDir,
    registry: Arc<Registry>,
    bridge_log: Arc<BridgeLog>,
    store: Arc<MemoryStore>,
    handle: OperatorHandle,
    client: Client,
    loopback: SocketAddr,
    /// What people are told of the TCP listener.
    described: String,
    access: Arc<Access>,
    has_image: Arc<AtomicBool>,
    ailing: Arc<Ailing>,
}

impl Rig {
    fn start() -> Rig {
        Rig::start_with(|_| {})
    }

    /// The same, with a configuration of its own.
    fn start_with(configure: impl FnOnce(&mut Config)) -> Rig {
        Rig::start_on(Arc::new(MemoryStore::new()), configure)
    }

    /// The same, with what an earlier one left.
    fn start_on(store: Arc<MemoryStore>, configure: impl FnOnce(&mut Config)) -> Rig {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("run/operator.sock");
        let text =
            "[network]\nbridge = \"br-test\"\naddress = \"192.168.2.2/24\"\ngateway = \"192.168.2.1\"\n";
        let mut config = Config::parse(text, Path::new("farrier.toml")).unwrap();
        let listen = "127.0.0.1:0".parse().ok();
        config.operator = OperatorConfig { socket: socket.clone(), listen, ..OperatorConfig::default() };
        config.store.path = directory.path().to_owned();
        configure(&mut config);
        let listeners = Listeners::open(&config, HandedOver::default()).unwrap();
        listeners.keep_certificate().unwrap();
        let clock = Clock::start();
        let mut snapshot = store.load().unwrap();
        let answers = std::mem::take(&mut snapshot.answers);
        let bridge_events = std::mem::take(&mut snapshot.bridge_events);
        let keys = Arc::new(Keys::new(answers, Arc::clone(&store) as _, clock));
        let settings = RegistrySettings {
            unknown: UnknownPolicy::Approve,
            call_deadline: config.boot.call_deadline,
            first_boot_deadline: config.boot.first_boot_deadline,
            installer_deadline: config.installer.deadline,
            reservations: Vec::new(),
        };
        let shared: Arc<dyn crate::store::Store> = Arc::clone(&store) as _;
        let key = TokenKey::from_bytes([7; 32]);
        let registry = Arc::new(Registry::new(shared, snapshot, settings, key));
        let has_image = Arc::new(AtomicBool::new(true));
        let ailing = Arc::<Ailing>::default();
        let tally = Arc::<Tally>::default();
        let bridge_log = Arc::new(BridgeLog::new(bridge_events, Arc::clone(&store) as _));
        let parts = OperatorParts {
            access: Access::new(
                Vec::new(),
                Arc::clone(&store) as _,
                Arc::clone(&tally),
                clock,
                listeners.door(),
            ),
            audit: Arc::new(AuditLog::new(Vec::new(), Arc::clone(&store) as _, clock)),
            bridge_log: Arc::clone(&bridge_log),
            keys,
            tls: listeners.tls(),
            registry: Arc::clone(&registry),
            appliance: Arc::new(Quiet {
                clock,
                has_image: Arc::clone(&has_image),
                ailing: Arc::clone(&ailing),
            }),
            tally,
            problems: ProblemLog::new(clock),
            config: Arc::new(ArcSwap::from_pointee(config.clone())),
            clock,
            started_at: clock.now(),
        };
        parts.tally.count("dhcp", "ack");
        let loopback = listeners.tcp_address().unwrap();
        let described = listeners.page().unwrap().to_string();
        let access = Arc::clone(&parts.access);
        let handle = start(parts, listeners).unwrap();
        let client = Client::new(socket);
        Rig {
            directory,
            registry,
            bridge_log,
            store,
            handle,
            client,
            loopback,
            described,
            access,
            has_image,
            ailing,
        }
    }

    fn socket(&self) -> PathBuf {
        self.client.socket().to_owned()
    }

    async fn register(&self, name: &str) -> NodeDetail {
        self.client.post("/api/v1/nodes", &request(name, MAC, None)).await.unwrap()
    }

    /// A request as text over the Unix socket; the whole answer as text.
    async fn raw(&self, request: &str) -> String {
        exchange(tokio::net::UnixStream::connect(self.socket()).await.unwrap(), request).await
    }

    async fn raw_loopback(&self, request: &str) -> String {
        exchange(tokio::net::TcpStream::connect(self.loopback).await.unwrap(), request).await
    }
}

fn request(name: &str, mac: MacAddr, address: Option<Ipv4Addr>) -> RegisterRequest {
    RegisterRequest { name: name.parse().ok(), ports: vec![PortRequest { mac, address }], quirks: None }
}

/// A machine nobody registered, as DHCP saw it.
fn stranger() -> boot::client::Client {
    let class = ClientClass::Firmware { firmware: Firmware::Bios };
    boot::client::Client { mac: MacAddr([0x52, 0x54, 0, 0, 0, 2]), class, uuid: None }
}

/// Longer than anything here takes on a busy machine; only a hang reaches it, and then it is to say what was missing.
const PATIENCE: Duration = Duration::from_secs(30);

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let whole = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    let answer = String::from_utf8(answer).unwrap();
    let closed = whole.unwrap_or_else(|_| panic!("the connection is still open after {answer:?}"));
    closed.unwrap();
    answer
}

fn get(path: &str, host: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_registered_found_ordered_and_removed() {
    let rig = Rig::start();
    let node = rig.register("rack1-node07").await;
    assert_eq!(node.summary.ports[0], PortSummary { mac: MAC, reserved: None, address: Some(HELD) });
    assert!(node.summary.approved);
    for reference in ["rack1-node07", "52-54-00-00-00-01", &node.summary.id.to_string()] {
        let found: NodeDetail = rig.client.get(&format!("/api/v1/nodes/{reference}")).await.unwrap();
        assert_eq!(found.summary.id, node.summary.id);
    }
    let listed: Vec<NodeSummary> = rig.client.list("/api/v1/nodes").await.unwrap();
    assert_eq!(listed.len(), 1);
    let leases: Vec<LeaseEntry> = rig.client.list("/api/v1/leases").await.unwrap();
    assert_eq!(leases[0].node_name, node.summary.name);

    let order = OrderRequest { order: Order::PowerOff };
    let ordered: NodeDetail = rig.client.post("/api/v1/nodes/rack1-node07/order", &order).await.unwrap();
    assert_eq!(ordered.summary.order, Some(Order::PowerOff));
    let boots: Vec<Boot> = rig.client.list("/api/v1/nodes/rack1-node07/boots").await.unwrap();
    assert!(boots.iter().all(|boot| boot.number == 0), "{boots:?}");

    let status: Status = rig.client.get("/api/v1/status").await.unwrap();
    assert_eq!(status.nodes[&ProvisionState::Enroll], 1);
    assert_eq!((status.pool.size, status.waiting_for_approval), (127, 0));
    assert_eq!(status.counters[0].count, 1);

    let removed: NodeDetail = rig.client.delete("/api/v1/nodes/rack1-node07").await.unwrap();
    assert_eq!(removed.summary.id, node.summary.id);
    let gone = rig.client.get::<NodeDetail>("/api/v1/nodes/rack1-node07").await.unwrap_err();
    assert!(matches!(gone, CommandError::NotFound(_)), "{gone}");
    rig.handle.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_say_what_is_wrong_and_the_way_out() {
    let rig = Rig::start();
    rig.register("first").await;
    let other = MacAddr([0x52, 0x54, 0, 0, 0, 2]);
    let group = MacAddr([1, 0, 0x5e, 0, 0, 1]);
    let refused = [
        (request("second", MAC, None), 4, "already is a port of first"),
        (request("first", other, None), 4, "name first is taken"),
        (request("second", group, None), 2, "cannot be a port"),
        (RegisterRequest { name: None, ports: Vec::new(), quirks: None }, 2, "at least one port"),
        (
            request("second", other, Some([192, 168, 3, 1].into())),
            2,
            "outside the bridge's subnet 192.168.2.0/24",
        ),
        (request("second", other, Some([192, 168, 2, 2].into())), 2, "own address or the gateway"),
        (request("second", other, Some([192, 168, 2, 255].into())), 2, "broadcast"),
    ];
    for (request, code, told) in refused {
        let error = rig.client.post::<NodeDetail>("/api/v1/nodes", &request).await.unwrap_err();
        assert_eq!(error.exit_code(), code, "{error}");
        assert!(error.to_string().contains(told), "{error}");
    }
    for (path, code) in [("nobody", 3), ("52:54:00:00:00:09", 3), ("Not%20a%20name", 2)] {
        let error = rig.client.get::<NodeDetail>(&format!("/api/v1/nodes/{path}")).await.unwrap_err();
        assert_eq!(error.exit_code(), code, "{error}");
        let error = rig.client.post::<NodeDetail>(&format!("/api/v1/nodes/{path}/approve"), &()).await;
        assert_eq!(error.unwrap_err().exit_code(), code);
    }
    let listed: Vec<NodeSummary> = rig.client.list("/api/v1/nodes").await.unwrap();
    assert_eq!(listed.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_answered_as_done_that_the_store_refused() {
    let rig = Rig::start();
    rig.store.fail_next_commits(1);
    let error = rig.client.post::<NodeDetail>("/api/v1/nodes", &request("a", MAC, None)).await.unwrap_err();
    assert!(matches!(error, CommandError::Failed(_)), "{error}");
    assert!(error.to_string().contains("not registered"), "{error}");
    rig.register("a").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_get_problem_documents() {
    let rig = Rig::start();
    let post = |body: &str| {
        let length = body.len();
        format!(
            "POST /api/v1/nodes HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )
    };
    let too_long = format!(
        "POST /api/v1/nodes HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        2 << 20
    );
    let requests = [
        (post("{}"), "400", "urn:farrier:problem:invalid"),
        (post("{\"name\":null,\"ports\":[],\"colour\":1}"), "400", "unknown field"),
        (too_long, "413", "urn:farrier:problem:too-large"),
        (get("/nowhere", "x"), "404", "urn:farrier:problem:not-found"),
        (post("{}").replace("/nodes ", "/status "), "405", "urn:farrier:problem:method-not-allowed"),
    ];
    for (request, status, told) in requests {
        let answer = rig.raw(&request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(answer.contains("content-type: application/problem+json\r\n"), "{answer}");
        assert!(answer.contains(told), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_streamed_and_end_with_the_appliance() {
    let rig = Rig::start();
    let mut stream = rig.client.events().await.unwrap();
    let node = rig.register("watched").await;
    let WatchEvent::Timeline(message) = stream.next().await.unwrap().unwrap() else { panic!("lagged") };
    assert_eq!(message.node_name, node.summary.name);
    assert_eq!(message.event.node, node.summary.id);
    assert_eq!(message.event.happening, Happening::Registered);
    let _removed: NodeDetail = rig.client.delete("/api/v1/nodes/watched").await.unwrap();
    let WatchEvent::Timeline(message) = stream.next().await.unwrap().unwrap() else { panic!("lagged") };
    assert!(matches!(message.event.happening, Happening::Removed { .. }));
    assert_eq!((message.node_name, message.node_mac), (node.summary.name, Some(MAC)));
    let _seen: Option<NodeId> = rig.registry.granted(&stranger(), Clock::start().now());
    let _approved: NodeDetail =
        rig.client.post("/api/v1/nodes/52:54:00:00:00:02/approve", &()).await.unwrap();
    let WatchEvent::Timeline(message) = stream.next().await.unwrap().unwrap() else { panic!("lagged") };
    assert_eq!(message.event.happening, Happening::Approved);

    let before = std::time::Instant::now();
    rig.handle.stop().await;
    assert_eq!(stream.next().await.unwrap(), None);
    assert!(before.elapsed() < STOP_WITHIN, "{:?}", before.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_deploy_image_it_is_healthy_and_not_ready() {
    let rig = Rig::start();
    rig.has_image.store(false, Ordering::Relaxed);
    let healthy = rig.raw_loopback(&get("/healthz", "localhost")).await;
    assert!(healthy.starts_with("HTTP/1.1 200 "), "{healthy}");
    let answer = rig.raw_loopback(&get("/readyz", "localhost")).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    for part in ["degraded", "`metal`", "farrier image build deploy"] {
        assert!(answer.contains(part), "{part}: {answer}");
    }
}

#[tokio::test]
async fn the_socket_is_private_and_replaces_only_a_dead_one() {
    let rig = Rig::start();
    let path = rig.socket();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode, 0o660);
    let text =
        "[network]\nbridge = \"br-test\"\naddress = \"192.168.2.2/24\"\n[operator]\nlisten = \"off\"\n";
    let mut config = Config::parse(text, Path::new("farrier.toml")).unwrap();
    config.operator.socket = path.clone();
    let reopened = || Listeners::open(&config, HandedOver::default());
    assert!(matches!(reopened(), Err(SocketError::InUse { .. })));
    rig.handle.stop().await;
    assert!(!path.exists(), "the socket's file goes with its appliance");

    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "left over as after a crash");
    drop(reopened().unwrap());

    std::fs::write(&path, "a file").unwrap();
    assert!(matches!(reopened(), Err(SocketError::NotASocket { .. })));
    let left: Vec<_> = std::fs::read_dir(rig.directory.path().join("run")).unwrap().collect();
    assert_eq!(left.len(), 1);
    assert!(!std::fs::metadata(&path).unwrap().file_type().is_socket());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_works_over_the_socket() {
    let rig = Rig::start();
    let socket = rig.socket().display().to_string();
    let farrier = |words: &[&str]| {
        let words: Vec<std::ffi::OsString> =
            ["farrier", "--socket", &socket].iter().chain(words).map(Into::into).collect();
        tokio::task::spawn_blocking(move || crate::cli::run(words))
    };
    let added = farrier(&["node", "add", "52:54:00:00:00:01=192.168.2.20", "--name", "anvil"]).await.unwrap();
    assert_eq!((added.code, added.stdout.as_str()), (0, "anvil registered\n"), "{}", added.stderr);
    let again = farrier(&["node", "add", "52:54:00:00:00:01"]).await.unwrap();
    assert_eq!(again.code, 4, "{}", again.stderr);
    let shown = farrier(&["node", "show", "anvil", "--json"]).await.unwrap();
    let document: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!(document["node"]["ports"][0]["reserved"], "192.168.2.20");
    let listed = farrier(&["node", "list"]).await.unwrap();
    assert!(
        listed.stdout.lines().nth(1).unwrap().starts_with("anvil  52:54:00:00:00:01"),
        "{}",
        listed.stdout
    );
    let ordered = farrier(&["node", "order", "anvil", "local-boot"]).await.unwrap();
    assert_eq!(ordered.code, 0, "{}", ordered.stderr);
    let status = farrier(&["status"]).await.unwrap();
    assert!(status.stdout.contains("br-test 192.168.2.2/24"), "{}", status.stdout);
    assert_eq!(farrier(&["lease", "list"]).await.unwrap().stdout.lines().count(), 2);
    assert_eq!(farrier(&["node", "remove", "anvil"]).await.unwrap().code, 0);
    let gone = farrier(&["node", "show", "anvil"]).await.unwrap();
    assert_eq!((gone.code, gone.stdout.as_str()), (3, ""));
    assert!(gone.stderr.contains("farrier node list"), "{}", gone.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_a_proxy_speak_of_no_pool() {
    let page = async |rig: &Rig, path: &str| rig.raw(&get(path, "localhost")).await;
    let server = Rig::start();
    let proxy = Rig::start_with(|config| config.dhcp.mode = crate::config::DhcpMode::Proxy);
    let (overview, leases) = (page(&server, "/").await, page(&server, "/leases").await);
    assert!(overview.contains("1 of 127 addresses") && leases.contains("of 127 addresses"), "{leases}");
    let (overview, leases) = (page(&proxy, "/").await, page(&proxy, "/leases").await);
    assert!(overview.contains("another server gives the addresses"), "{overview}");
    assert!(leases.contains("farrier gives out no addresses here"), "{leases}");
    for page in [overview, leases, page(&proxy, "/status").await] {
        assert!(!page.contains("of 127") && !page.contains("in use"), "{page}");
    }
}
