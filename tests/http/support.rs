//! A running boot plane, and a client that shows every byte.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use farrier::boot::decision::UnknownPolicy;
use farrier::boot::loader::{LoaderName, LoaderTable};
use farrier::bootplane::agent_calls::{AgentCalls, InstallParts};
use farrier::bootplane::content::{BootContent, ContentParts, ScriptSettings};
use farrier::bootplane::limits::Limits;
use farrier::bootplane::metadata::MetadataCalls;
use farrier::bootplane::network::{self, BootPlaneHandle, BootPlaneParts};
use farrier::bootplane::profiles::ProfileDesk;
use farrier::bootplane::service::BootService;
use farrier::clock::Clock;
use farrier::config::MetadataConfig;
use farrier::dhcp::address_book::AddressBook;
use farrier::image::library::{Library, Manifest};
use farrier::image::loaders::Loaders;
use farrier::metadata::source::MetadataSource;
use farrier::net::MacAddr;
use farrier::node::NodeId;
use farrier::node::registry::{NewNode, NodeRef, Registry, RegistrySettings};
use farrier::node::timeline::{FileOutcome, Happening, TimelineEvent};
use farrier::node::token::TokenKey;
use farrier::store::Store;
use farrier::store::memory::MemoryStore;
use farrier::telemetry::Tally;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

pub const NODE: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
pub const OTHER_NODE: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 2]);
pub const NODE_IP: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
pub const OTHER_IP: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
pub const STRANGER_IP: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
pub const OFF_SUBNET_IP: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 1);

pub const KERNEL_BYTES: usize = 3_000_001;
/// More than the kernel takes for a client that does not read.
pub const RAMDISK_BYTES: usize = 20_000_000;

/// Anything that takes longer has failed; generous, because two cores run many tests at once.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Plane {
    pub handle: BootPlaneHandle,
    pub address: SocketAddr,
    /// Plays 169.254.169.254.
    pub link_local: SocketAddr,
    pub content: Arc<BootContent>,
    pub registry: Arc<Registry>,
    pub store: Arc<MemoryStore>,
    pub tally: Arc<Tally>,
    pub clock: Clock,
    pub kernel: Vec<u8>,
    pub ramdisk: Vec<u8>,
    _state: TempDir,
}

impl Plane {
    pub async fn start() -> Plane {
        Plane::start_with(Limits::default()).await
    }

    pub async fn start_with(limits: Limits) -> Plane {
        Plane::start_as(limits, None).await
    }

    pub async fn start_with_metadata(source: Arc<dyn MetadataSource>, config: MetadataConfig) -> Plane {
        Plane::start_as(Limits::default(), Some((source, config))).await
    }

    async fn start_as(limits: Limits, metadata: Option<(Arc<dyn MetadataSource>, MetadataConfig)>) -> Plane {
        let state = tempfile::tempdir().unwrap();
        let (kernel, ramdisk) = (patterned(KERNEL_BYTES), patterned(RAMDISK_BYTES));
        let library = Arc::new(Library::open(state.path()).unwrap());
        let manifest = Manifest {
            profile: "vm".to_owned(),
            kernel: library.add(&mut kernel.as_slice()).unwrap(),
            ramdisk: library.add(&mut ramdisk.as_slice()).unwrap(),
            arguments: vec!["quiet".to_owned()],
            built_from: BTreeMap::new(),
        };
        library.publish(&manifest).unwrap();
        let (store, clock, tally) =
            (Arc::new(MemoryStore::new()), Clock::start(), Arc::new(Tally::default()));
        let registry = registry(&store, clock);
        let addresses = Arc::new(AddressBook::default());
        addresses.set(NODE_IP, NODE);
        addresses.set(OTHER_IP, OTHER_NODE);
        let content = Arc::new(BootContent::new(ContentParts {
            settings: ScriptSettings {
                server: Ipv4Addr::new(192, 168, 2, 2),
                profile: "vm".to_owned(),
                arguments: vec!["console=ttyS0".parse().unwrap()],
            },
            loaders: loaders(&state),
            profiles: profiles(&library, &store, &registry),
            library,
            registry: Arc::clone(&registry),
            addresses: Arc::clone(&addresses),
            in_use: Arc::new(|_| {}),
            tally: Arc::clone(&tally),
            clock,
        }));
        let agents = AgentCalls::new(
            Arc::clone(&registry),
            Arc::clone(&addresses),
            Arc::clone(&tally),
            clock,
            InstallParts::none(),
        );
        let service = BootService::new(Arc::clone(&content), agents, Arc::clone(&tally), clock, &limits);
        let service = match metadata {
            Some((source, config)) => service.with_metadata(
                MetadataCalls::new(source, addresses, Arc::clone(&tally), clock, config).unwrap(),
            ),
            None => service,
        };
        let listener = std::net::TcpListener::bind((NODE_IP, 0)).unwrap();
        let second = std::net::TcpListener::bind((NODE_IP, 0)).unwrap();
        let link_local = second.local_addr().unwrap();
        let parts = BootPlaneParts {
            subnet: "127.0.0.0/24".parse().unwrap(),
            link_local: Some(second),
            service: Arc::new(service),
            tally: Arc::clone(&tally),
            limits,
        };
        let handle = network::start(listener, parts).unwrap();
        let address = handle.local_address();
        Plane {
            handle,
            address,
            link_local,
            content,
            registry,
            store,
            tally,
            clock,
            kernel,
            ramdisk,
            _state: state,
        }
    }

    pub async fn connect(&self) -> Client {
        self.connect_from(NODE_IP).await
    }

    pub async fn connect_from(&self, ip: Ipv4Addr) -> Client {
        Client::connect(ip, self.address).await
    }

    pub async fn connect_link_local(&self) -> Client {
        Client::connect(NODE_IP, self.link_local).await
    }

    /// One request on a connection of its own.
    pub async fn get_from(&self, ip: Ipv4Addr, path: &str) -> Answer {
        let mut client = self.connect_from(ip).await;
        client.request("GET", path, "").await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.get_from(NODE_IP, path).await
    }

    pub fn node_id(&self) -> NodeId {
        self.registry.find(&NodeRef::Mac(NODE)).unwrap().id
    }

    /// Everything on the node's timeline, in order.
    pub fn happenings(&self) -> Vec<Happening> {
        let boots = self.registry.boots(self.node_id());
        boots
            .into_iter()
            .flat_map(|boot| boot.events)
            .map(|TimelineEvent { happening, .. }| happening)
            .collect()
    }

    /// Waits until the timeline has a file event of this name, and tells how it ended and what was sent.
    pub async fn file_event(&self, wanted: &str) -> (FileOutcome, u64) {
        until(|| {
            self.happenings().into_iter().find_map(|happening| match happening {
                Happening::File { name, outcome, sent, .. } if name == wanted => Some((outcome, sent)),
                _ => None,
            })
        })
        .await
    }

    pub async fn counted(&self, service: &'static str, outcome: &'static str) -> u64 {
        self.counted_up_to(service, outcome, 1).await
    }

    /// Waits until it has been counted so often; how often.
    pub async fn counted_up_to(&self, service: &'static str, outcome: &'static str, least: u64) -> u64 {
        until(|| Some(self.tally.value(service, outcome)).filter(|count| *count >= least)).await
    }
}

fn profiles(library: &Arc<Library>, store: &Arc<MemoryStore>, registry: &Registry) -> Arc<ProfileDesk> {
    let desk =
        Arc::new(ProfileDesk::new(Vec::new(), Arc::clone(library), Arc::clone(store) as Arc<dyn Store>));
    registry.follow_profiles(Box::new(Arc::clone(&desk)));
    desk
}

fn registry(store: &Arc<MemoryStore>, clock: Clock) -> Arc<Registry> {
    let snapshot = store.load().unwrap();
    let key = TokenKey::load_or_create(&snapshot, &**store).unwrap();
    let settings = RegistrySettings {
        unknown: UnknownPolicy::Enroll,
        call_deadline: Duration::from_secs(300),
        first_boot_deadline: Duration::from_secs(1800),
        installer_deadline: Duration::from_secs(7200),
        reservations: Vec::new(),
    };
    let registry = Registry::new(Arc::clone(store) as Arc<dyn Store>, snapshot, settings, key);
    let node =
        NewNode { name: Some("rack1-node07".parse().unwrap()), macs: vec![(NODE, None)], quirks: None };
    registry.register(node, clock.now()).unwrap();
    Arc::new(registry)
}

/// Every loader of the table, wherever this machine has them; those it lacks come from the state directory.
fn loaders(state: &TempDir) -> Loaders {
    let table = LoaderTable::built_in();
    for file in table.files() {
        let place = state.path().join("loaders").join(file.path.strip_prefix("/").unwrap());
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        std::fs::write(place, patterned(70_000)).unwrap();
    }
    Loaders::read(table, state.path())
}

pub fn shim() -> LoaderName {
    LoaderName("uefi-x64/shimx64.efi".to_owned())
}

/// Bytes in which every slice tells where it is from.
fn patterned(size: usize) -> Vec<u8> {
    static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let mut bytes = Vec::with_capacity(RAMDISK_BYTES);
        for index in 0..RAMDISK_BYTES as u32 / 4 {
            bytes.extend_from_slice(&index.wrapping_mul(2_654_435_761).to_le_bytes());
        }
        bytes
    });
    PATTERN[..size].to_vec()
}

/// Waits for a condition instead of a time.
pub async fn until<T>(mut condition: impl FnMut() -> Option<T>) -> T {
    tokio::time::timeout(PATIENCE, async {
        loop {
            if let Some(value) = condition() {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .expect("the condition came true")
}

pub struct Client {
    pub stream: TcpStream,
    unread: Vec<u8>,
}

#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    /// Status line and headers as they were on the wire.
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    /// A header by its exact spelling.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Client {
    async fn connect(from: Ipv4Addr, to: SocketAddr) -> Client {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::V4(SocketAddrV4::new(from, 0))).unwrap();
        Client { stream: socket.connect(to).await.unwrap(), unread: Vec::new() }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        // The other side may have closed already; what it answered is still to be read.
        let _ = self.stream.write_all(bytes.as_ref()).await;
    }

    /// `headers` is lines that end in CRLF.
    pub async fn request(&mut self, method: &str, path: &str, headers: &str) -> Answer {
        self.send(format!("{method} {path} HTTP/1.1\r\nHost: farrier\r\n{headers}\r\n")).await;
        self.answer_to(method).await
    }

    pub async fn post(&mut self, path: &str, headers: &str, body: &str) -> Answer {
        let length = body.len();
        self.send(format!(
            "POST {path} HTTP/1.1\r\nHost: farrier\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
        ))
        .await;
        self.answer_to("POST").await
    }

    pub async fn answer(&mut self) -> Answer {
        self.answer_to("GET").await
    }

    pub async fn answer_to(&mut self, method: &str) -> Answer {
        tokio::time::timeout(PATIENCE, self.read_answer(method)).await.expect("an answer")
    }

    async fn read_answer(&mut self, method: &str) -> Answer {
        let head_len = loop {
            if let Some(end) = self.unread.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            assert!(
                self.read_more().await > 0,
                "closed inside a head: {:?}",
                String::from_utf8_lossy(&self.unread)
            );
        };
        let head = String::from_utf8(self.unread.drain(..head_len).collect()).unwrap();
        let status = head[9..12].parse().unwrap();
        let answer = Answer { status, head, body: Vec::new() };
        let length = match answer.header("Content-Length") {
            Some(length) if method != "HEAD" => length.parse().unwrap(),
            _ => 0,
        };
        while self.unread.len() < length {
            assert!(self.read_more().await > 0, "closed inside a body");
        }
        Answer { body: self.unread.drain(..length).collect(), ..answer }
    }

    async fn read_more(&mut self) -> usize {
        self.stream.read_buf(&mut self.unread).await.unwrap_or(0)
    }

    /// Reads until the other side closes; returns what came.
    pub async fn read_to_close(&mut self) -> Vec<u8> {
        tokio::time::timeout(PATIENCE, async { while self.read_more().await > 0 {} }).await.expect("closed");
        std::mem::take(&mut self.unread)
    }
}
