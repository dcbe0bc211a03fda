//! An operator plane in this process, with an appliance behind it that only says what it is told to.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use farrier::boot::decision::UnknownPolicy;
use farrier::bridge_log::BridgeLog;
use farrier::clock::{Clock, Timestamp};
use farrier::config::Config;
use farrier::dhcp::lease::{LeaseState, LeaseView, PoolUse};
use farrier::net::MacAddr;
use farrier::node::registry::{Registry, RegistrySettings};
use farrier::node::token::TokenKey;
use farrier::operator::access::{Access, Role};
use farrier::operator::api::{BlobEntry, BridgeStatus, ImageEntry, ImageStatus, ServiceStatus, StoreStatus};
use farrier::operator::audit::AuditLog;
use farrier::operator::idempotency::Keys;
use farrier::operator::problems::ProblemLog;
use farrier::operator::views::Leases;
use farrier::operator::{self, ApplianceView, HandedOver, Listeners, OperatorHandle, OperatorParts};
use farrier::store::memory::MemoryStore;
use farrier::store::{Snapshot, Store};
use farrier::telemetry::Tally;

use crate::browser::{Browser, Width};

/// What the appliance says it is.
#[derive(Default)]
pub struct Told {
    pub leases: Vec<LeaseView>,
    pub image_missing: bool,
    pub store_error: Option<String>,
    pub dead_service: bool,
}

struct Puppet {
    clock: Clock,
    told: Arc<Mutex<Told>>,
}

impl ApplianceView for Puppet {
    fn bridge(&self) -> BridgeStatus {
        let mac = MacAddr([0x52, 0x54, 0, 0xfa, 0, 1]);
        BridgeStatus {
            name: "br-rack".to_owned(),
            address: "10.20.0.2/22".to_owned(),
            mac,
            up: true,
            reason: None,
            objection: None,
        }
    }

    fn services(&self) -> Vec<ServiceStatus> {
        let dead = self.told.lock().unwrap().dead_service;
        [("dhcp", "br-rack, UDP 67 and 4011"), ("tftp", "10.20.0.2, UDP 69"), ("http", "10.20.0.2, TCP 80")]
            .into_iter()
            .chain([("router-advertisement", "br-rack, ICMPv6"), ("operator", "/run/farrier/operator.sock")])
            .map(|(name, listens)| ServiceStatus {
                name: name.to_owned(),
                listens: listens.to_owned(),
                running: !(dead && name == "tftp"),
            })
            .collect()
    }

    fn image(&self) -> ImageStatus {
        ImageStatus { profile: "metal".to_owned(), present: !self.told.lock().unwrap().image_missing }
    }

    fn store(&self) -> StoreStatus {
        let last_error = self.told.lock().unwrap().store_error.clone();
        StoreStatus { path: "/var/lib/farrier/farrier.db".to_owned(), last_error, ..StoreStatus::default() }
    }

    fn leases(&self) -> Arc<Leases> {
        Arc::new(Leases::new(self.told.lock().unwrap().leases.clone()))
    }

    fn images(&self) -> Vec<ImageEntry> {
        if self.told.lock().unwrap().image_missing {
            return Vec::new();
        }
        let blob = |part: &str, digit: &str, bytes| BlobEntry {
            digest: digit.repeat(64),
            bytes,
            modified_at: self.clock.now().minus(Duration::from_secs(400_000)),
            used_by: vec![format!("metal/{part}")],
        };
        let entry = |profile: &str, damage: Option<&str>| ImageEntry {
            profile: profile.to_owned(),
            in_use: profile == "metal",
            served: damage.is_none(),
            damage: damage.map(str::to_owned),
            kernel: damage.is_none().then(|| blob("kernel", "4", 9_216_544)),
            ramdisk: damage.is_none().then(|| blob("ramdisk", "a", 38_411_264)),
            arguments: vec!["console=tty0".to_owned(), "console=ttyS0,115200".to_owned()],
            built_from: [
                ("linux-image-amd64", "6.1.170-1"),
                ("busybox-static", "1:1.35.0-4+b7"),
                ("farrier-agent", "0.1.0"),
            ]
            .map(|(source, version)| (source.to_owned(), version.to_owned()))
            .into(),
        };
        vec![entry("metal", None), entry("rescue", Some("images/rescue.json: the ramdisk is 12 bytes long"))]
    }

    fn pool_use(&self) -> PoolUse {
        let leases = &self.told.lock().unwrap().leases;
        let count = |state| leases.iter().filter(|lease| lease.state == state).count() as u32;
        PoolUse {
            size: 411,
            bound: count(LeaseState::Bound),
            offered: count(LeaseState::Offered),
            quarantined: count(LeaseState::Quarantined),
        }
    }
}

pub struct Rig {
    pub registry: Arc<Registry>,
    pub tally: Arc<Tally>,
    pub clock: Clock,
    pub told: Arc<Mutex<Told>>,
    pub access: Arc<Access>,
    pub base: String,
    _handle: OperatorHandle,
    _directory: tempfile::TempDir,
}

impl Rig {
    pub async fn start() -> Rig {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let socket = directory.path().join("operator.sock");
        let text = "[network]\nbridge = \"br-rack\"\naddress = \"10.20.0.2/22\"\ngateway = \"10.20.0.1\"\n\
                    [dhcp]\npool = \"10.20.0.100-10.20.1.254\"\nunknown = \"approve\"\n";
        let mut config = Config::parse(text, Path::new("farrier.toml")).expect("a configuration");
        config.operator.socket = socket;
        config.operator.listen = "127.0.0.1:0".parse().ok();
        let clock = Clock::start();
        let store = Arc::new(MemoryStore::new());
        let settings = RegistrySettings {
            unknown: UnknownPolicy::Approve,
            call_deadline: config.boot.call_deadline,
            first_boot_deadline: config.boot.first_boot_deadline,
            installer_deadline: config.installer.deadline,
            reservations: Vec::new(),
        };
        let durable: Arc<dyn Store> = Arc::clone(&store) as _;
        let key = TokenKey::from_bytes([7; 32]);
        let registry = Arc::new(Registry::new(durable, Snapshot::default(), settings, key));
        let (told, tally) = (Arc::<Mutex<Told>>::default(), Arc::<Tally>::default());
        let listeners = Listeners::open(&config, HandedOver::default()).expect("a socket");
        let address = listeners.tcp_address().expect("a port");
        let access =
            Access::new(Vec::new(), Arc::clone(&store) as _, Arc::clone(&tally), clock, listeners.door());
        let parts = OperatorParts {
            registry: Arc::clone(&registry),
            appliance: Arc::new(Puppet { clock, told: Arc::clone(&told) }),
            tally: Arc::clone(&tally),
            access: Arc::clone(&access),
            audit: Arc::new(AuditLog::new(Vec::new(), Arc::clone(&store) as _, clock)),
            keys: Arc::new(Keys::new(Vec::new(), Arc::clone(&store) as _, clock)),
            tls: listeners.tls(),
            bridge_log: Arc::new(BridgeLog::new(Vec::new(), Arc::clone(&store) as _)),
            problems: ProblemLog::new(clock),
            config: Arc::new(ArcSwap::from_pointee(config)),
            clock,
            started_at: clock.now().minus(Duration::from_secs(93_784)),
        };
        let handle = operator::start(parts, listeners).expect("the operator plane starts");
        let base = format!("http://{address}");
        Rig { registry, tally, clock, told, access, base, _handle: handle, _directory: directory }
    }

    /// A token's text, as `farrier token create` shows it once.
    pub fn token(&self, name: &str, role: Role) -> String {
        let name = name.parse().expect("a token's name");
        self.access.tokens.create(name, role, None, self.now()).expect("a token").1
    }

    /// A browser that has logged in.
    pub async fn browser(&self, width: Width, role: Role) -> Browser {
        let browser = Browser::open(&self.base, width).await;
        let token = self.token(&format!("{role}-{}", width.pixels()), role);
        browser.log_in(&token).await;
        browser
    }

    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub fn lease(&self, address: Ipv4Addr, mac: MacAddr, state: LeaseState, hostname: Option<&str>) {
        let now = self.now();
        let leases = &mut self.told.lock().unwrap().leases;
        leases.retain(|lease| lease.address != address);
        leases.push(LeaseView {
            address,
            mac,
            hostname: hostname.map(str::to_owned),
            client_id: None,
            state,
            granted_at: (state != LeaseState::Offered).then(|| now.minus(Duration::from_secs(3000))),
            expires_at: now.plus(Duration::from_secs(40_000)),
        });
        leases.sort_by_key(|lease| lease.address);
    }
}
