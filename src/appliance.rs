//! The composition root: opens, wires, starts and joins all of it; the only place that knows every part.
//!
//! Order matters twice. Starting: `ground` opens what takes privileges and gives them up, before there are threads;
//! then the store is read before anything answers, DHCP before the services whose clients need an address, the operator
//! plane last, so that whoever it answers finds everything running. Stopping is the reverse, except that the store goes
//! last: every ACK under way still finds its disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use nix::net::if_::if_nametoindex;
use tokio::task::JoinHandle;

use crate::boot::loader::{LoaderTable, UnknownLoaderError};
use crate::bootplane::content::{BootContent, ContentParts, ScriptSettings};
use crate::bootplane::profiles::ProfileDesk;
use crate::bridge_log::BridgeLog;
use crate::clock::Clock;
use crate::config::{BridgeName, Config, DhcpMode};
use crate::dhcp::address_book::AddressBook;
use crate::dhcp::network::{DhcpHandle, DhcpParts};
use crate::guard::Guard;
use crate::guard::network::GuardHandle;
use crate::image::disk::shelf::DiskShelf;
use crate::image::library::{Library, OpenError};
use crate::image::loaders::Loaders;
use crate::net::MacAddr;
use crate::net::bridge::{Bridge, BridgeError};
use crate::net::link::Netlink;
use crate::node::registry::{Registry, RegistrySettings, Whereabouts};
use crate::node::token::{TokenKey, TokenKeyError};
use crate::operator::access::Access;
use crate::operator::audit::AuditLog;
use crate::operator::idempotency::Keys;
use crate::operator::problems::ProblemLog;
use crate::operator::sparing::Sparing;
use crate::operator::{OperatorHandle, OperatorParts, SocketError};
use crate::privileges::PrivilegeError;
use crate::store::place::UnusablePlaceError;
use crate::store::sqlite::SqliteStore;
use crate::store::{LoadError, Store};
use crate::telemetry::Tally;
use crate::{dhcp, guard, net, operator};

mod bridge_watch;
mod disk_images;
mod door;
mod files;
mod ground;
mod installed;
mod view;

use bridge_watch::{BridgeWatch, Objection};
use files::{FileParts, FileServices, serve_files};
pub use ground::Ground;
use view::View;

/// How often overdue nodes are looked for, background writes that failed are tried again, and the bridge is looked at.
const TICK: Duration = Duration::from_secs(1);

/// The running appliance.
pub struct Appliance {
    config: Arc<ArcSwap<Config>>,
    clock: Clock,
    registry: Arc<Registry>,
    content: Arc<BootContent>,
    library: Arc<Library>,
    dhcp: Arc<DhcpHandle>,
    guard: Arc<Guard>,
    /// Absent where others give the addresses.
    watchman: Option<GuardHandle>,
    /// Absent where we only observe.
    files: Option<FileServices>,
    operator: OperatorHandle,
    ticker: JoinHandle<()>,
    images: JoinHandle<()>,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Bridge(#[from] BridgeError),
    #[error("boot.loaders")]
    Loader(#[source] UnknownLoaderError),
    #[error(transparent)]
    Place(#[from] UnusablePlaceError),
    #[error(transparent)]
    Privileges(#[from] PrivilegeError),
    #[error("store.path: the store does not open")]
    Store(#[source] LoadError),
    #[error("store.path: the key of boot tokens cannot be kept")]
    TokenKey(#[source] TokenKeyError),
    #[error("store.path: images cannot be read")]
    Library(#[source] OpenError),
    #[error("the DHCP service does not start")]
    Dhcp(#[source] dhcp::network::BindError),
    #[error("the {service} service does not start: is its port on the bridge taken by another program?")]
    Service { service: &'static str, source: std::io::Error },
    #[error("the operator plane does not start")]
    Operator(#[source] SocketError),
}

impl StartError {
    /// True if the way out is in the configuration file: `farrier serve` then exits with 2.
    pub fn is_configuration(&self) -> bool {
        match self {
            StartError::Bridge(_)
            | StartError::Loader(_)
            | StartError::Operator(_)
            | StartError::Place(_)
            | StartError::Privileges(PrivilegeError::User(_)) => true,
            StartError::Privileges(
                PrivilegeError::State { .. }
                | PrivilegeError::Capabilities { .. }
                | PrivilegeError::NoNewPrivileges { .. }
                | PrivilegeError::Seccomp { .. },
            )
            | StartError::Store(_)
            | StartError::TokenKey(_)
            | StartError::Library(_)
            | StartError::Dhcp(_)
            | StartError::Service { .. } => false,
        }
    }
}

impl Appliance {
    /// Opens the rest of what the configuration names and starts serving.
    pub async fn start(
        config: Config,
        ground: Ground,
        problems: Arc<ProblemLog>,
        clock: Clock,
    ) -> Result<Appliance, StartError> {
        let Ground { bridge, table, dhcp: doors, files, listeners, confinement } = ground;
        let mode = config.dhcp.mode;
        let database = config.store.path.join("farrier.db");
        let store = Arc::new(SqliteStore::open(&database).map_err(StartError::Store)?);
        listeners.keep_certificate().map_err(StartError::Operator)?;
        let mut snapshot = store.load().map_err(StartError::Store)?;
        for damage in &snapshot.damage {
            tracing::warn!(path = %database.display(), "set aside on reading the store: {damage}");
        }
        let loaders = read_loaders(table, &config);
        let library = Arc::new(Library::open(&config.store.path).map_err(StartError::Library)?);
        let disks = Arc::new(DiskShelf::open(&config.store.path).map_err(StartError::Library)?);
        let token_key = TokenKey::load_or_create(&snapshot, &*store).map_err(StartError::TokenKey)?;

        let durable: Arc<dyn Store> = Arc::clone(&store) as Arc<dyn Store>;
        let tally = Arc::new(Tally::default());
        store.time_commits(Arc::clone(&tally));
        let addresses = Arc::new(address_book(&bridge, mode));
        let settings = registry_settings(&config);
        let audit = Arc::new(AuditLog::new(std::mem::take(&mut snapshot.audit), Arc::clone(&durable), clock));
        let answers = std::mem::take(&mut snapshot.answers);
        let keys = Arc::new(Keys::new(answers, Arc::clone(&durable), clock));
        let events = std::mem::take(&mut snapshot.bridge_events);
        let bridge_log = Arc::new(BridgeLog::new(events, Arc::clone(&durable)));
        let objection = Arc::<Objection>::default();
        let watch = BridgeWatch::open(bridge.clone(), Arc::clone(&bridge_log), Arc::clone(&objection));
        let watch = watch.map_err(|source| StartError::Service { service: "bridge watch", source })?;
        let records = std::mem::take(&mut snapshot.profile_records);
        let profiles = Arc::new(ProfileDesk::new(records, Arc::clone(&library), Arc::clone(&durable)));
        let tokens = std::mem::take(&mut snapshot.tokens);
        let access = Access::new(tokens, Arc::clone(&durable), Arc::clone(&tally), clock, listeners.door());
        let bindings = std::mem::take(&mut snapshot.bindings);
        let registry = Arc::new(Registry::new(Arc::clone(&durable), snapshot, settings, token_key));
        registry.follow_profiles(Box::new(Arc::clone(&profiles)));
        registry.watch_ports(Box::new(PortsOf::new(config.network.bridge.clone())));
        let leased =
            bindings.iter().filter(|binding| binding.is_live(clock.now())).map(|binding| binding.mac);
        registry.started(leased, clock.now());
        let config = Arc::new(ArcSwap::from_pointee(config));
        let guarding = |source| StartError::Service { service: "guard", source };
        let guard = Arc::new(Guard::new(config.load().dhcp.on_rival).map_err(guarding)?);

        let dhcp = Arc::new(
            dhcp::network::start_at(
                doors,
                DhcpParts {
                    bridge: bridge.clone(),
                    config: config.load_full(),
                    loaders: Arc::new(loaders.table.clone()),
                    bindings,
                    registry: Arc::clone(&registry) as _,
                    store: durable,
                    addresses: Arc::clone(&addresses),
                    tally: Arc::clone(&tally),
                    guard: Arc::clone(&guard),
                    clock,
                },
            )
            .map_err(StartError::Dhcp)?,
        );
        // Beside another DHCP server there is nobody to warn of, and an observer asks nothing.
        let watchman = match mode {
            DhcpMode::Server => Some(
                guard::network::start(
                    bridge.clone(),
                    Arc::clone(&guard),
                    Arc::clone(&bridge_log),
                    Arc::clone(&tally),
                    clock,
                )
                .map_err(guarding)?,
            ),
            DhcpMode::Proxy | DhcpMode::Observe => None,
        };
        let content = Arc::new(BootContent::new(ContentParts {
            settings: ScriptSettings::from(&**config.load()),
            loaders,
            library: Arc::clone(&library),
            profiles: Arc::clone(&profiles),
            registry: Arc::clone(&registry),
            addresses: Arc::clone(&addresses),
            in_use: {
                let dhcp = Arc::clone(&dhcp);
                Arc::new(move |address| dhcp.in_use(address))
            },
            tally: Arc::clone(&tally),
            clock,
        }));
        let files = match files {
            Some(doors) => {
                let parts = FileParts {
                    installer: config.load().installer.answers.clone(),
                    content: Arc::clone(&content),
                    disks: Arc::clone(&disks),
                    registry: Arc::clone(&registry),
                    addresses: Arc::clone(&addresses),
                    metadata: config.load().metadata,
                    tally: Arc::clone(&tally),
                    clock,
                };
                Some(serve_files(doors, &bridge, parts)?)
            }
            None => {
                tracing::warn!("dhcp.mode = \"observe\": nobody on the bridge is answered");
                None
            }
        };

        let page = listeners.page();
        if let Some(page) = &page {
            tracing::info!("operators are served on {page}");
        }
        let view = View {
            bridge,
            page,
            config: Arc::clone(&config),
            store,
            library: Arc::clone(&library),
            disks: Arc::clone(&disks),
            dhcp: Arc::clone(&dhcp),
            leases: Sparing::default(),
            pool_use: Sparing::default(),
            content: Arc::clone(&content),
            profiles,
            confinement,
            guard: Arc::clone(&guard),
            objection,
        };
        let operator = operator::start(
            OperatorParts {
                registry: Arc::clone(&registry),
                appliance: Arc::new(view),
                tally,
                problems,
                access,
                audit,
                bridge_log,
                keys,
                tls: listeners.tls(),
                config: Arc::clone(&config),
                clock,
                started_at: clock.now(),
            },
            listeners,
        )
        .map_err(StartError::Operator)?;
        say_what_is_missing(&content);
        let running = config.load();
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            bridge = %running.network.bridge,
            address = %running.network.address,
            mode = running.dhcp.mode.as_str(),
            "serving"
        );
        drop(running);
        let ticker = tokio::spawn(tick(Arc::clone(&registry), Arc::clone(&library), watch, clock));
        let images =
            tokio::spawn(disk_images::look_after(disks, Arc::clone(&library), Arc::clone(&registry), clock));
        Ok(Appliance {
            config,
            clock,
            registry,
            content,
            library,
            dhcp,
            guard,
            watchman,
            files,
            operator,
            ticker,
            images,
        })
    }

    /// Takes over a configuration whose fixed keys are unchanged ([`Config::fixed_at_start`]). Files published since
    /// the start, and certificates, are picked up as well.
    pub fn reload(&self, config: Config) -> Result<(), StartError> {
        let loaders = read_loaders(loader_table(&config)?, &config);
        if let Err(error) = self.library.reload() {
            tracing::error!(error = &error as &dyn std::error::Error, "images not read again");
        }
        self.registry.reconfigure(registry_settings(&config), self.clock.now());
        let table = Arc::new(loaders.table.clone());
        // A loader that has come is served before it is advertised. One that has gone is a miss for a moment.
        self.content.reconfigure(ScriptSettings::from(&config), loaders);
        self.dhcp.reconfigure(&config, table);
        self.guard.set_policy(config.dhcp.on_rival);
        self.operator.read_certificate();
        say_what_is_missing(&self.content);
        self.config.store(Arc::new(config));
        Ok(())
    }

    /// Stops serving in good order: nothing acknowledged is lost, transfers are told, watchers see their streams end.
    pub async fn stop(self) {
        self.ticker.abort();
        self.images.abort();
        drop(self.watchman);
        let (tftp, http) = match self.files {
            Some(FileServices { tftp, http, door, advertiser }) => {
                drop((advertiser, door));
                (Some(tftp), Some(http))
            }
            None => (None, None),
        };
        let dhcp = Arc::clone(&self.dhcp);
        // Both join a thread of their own.
        let wire = tokio::task::spawn_blocking(move || {
            dhcp.stop();
            if let Some(tftp) = tftp {
                tftp.stop();
            }
        });
        let http_stops = async {
            if let Some(http) = http {
                http.stop().await;
            }
        };
        // Side by side: each may take its whole time.
        tokio::join!(http_stops, self.operator.stop());
        if wire.await.is_err() {
            tracing::error!("the DHCP or TFTP thread ended badly");
        }
    }
}

fn loader_table(config: &Config) -> Result<LoaderTable, StartError> {
    config.loader_table().map_err(StartError::Loader)
}

/// Reads the loader files. DHCP is given the table that comes of it: what is advertised is served.
fn read_loaders(table: LoaderTable, config: &Config) -> Loaders {
    let loaders = Loaders::read(table, &config.store.path);
    loaders.log_lacking(&config.boot.loaders.keys().copied().collect());
    loaders
}

fn registry_settings(config: &Config) -> RegistrySettings {
    RegistrySettings {
        unknown: config.dhcp.unknown,
        call_deadline: config.boot.call_deadline,
        first_boot_deadline: config.boot.first_boot_deadline,
        installer_deadline: config.installer.deadline,
        reservations: config.dhcp.reservations.clone(),
    }
}

/// Whose an address is: by our leases, or where another server gives the addresses by what the kernel knows.
fn address_book(bridge: &Bridge, mode: DhcpMode) -> AddressBook {
    match mode {
        DhcpMode::Server | DhcpMode::Observe => AddressBook::default(),
        DhcpMode::Proxy => {
            let name = bridge.name.clone();
            AddressBook::of_claims(Box::new(move |address| {
                // By name: a bridge that was made anew has another index.
                let link = if_nametoindex(name.0.as_str()).ok()?;
                net::ports::neighbour_on(link, address).ok().flatten()
            }))
        }
    }
}

fn say_what_is_missing(content: &BootContent) {
    for problem in content.problems() {
        tracing::warn!("{problem}");
    }
}

async fn tick(registry: Arc<Registry>, library: Arc<Library>, mut watch: BridgeWatch, clock: Clock) {
    let mut looking: Option<JoinHandle<()>> = None;
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        registry.tick(clock.now());
        watch.look(clock.now());
        // A new profile is hashed, which may take longer than until the next look.
        if looking.as_ref().is_none_or(JoinHandle::is_finished) {
            let library = Arc::clone(&library);
            looking = Some(tokio::task::spawn_blocking(move || {
                if library.notice_boot_profiles() {
                    tracing::info!("boot profiles read again");
                }
            }));
        }
    }
}

/// The ports of the bridge that has this name now.
struct PortsOf {
    bridge: BridgeName,
    /// Its index when it was last looked for. A bridge that is made anew has another, and nobody else gets this one.
    index: AtomicU32,
    netlink: Netlink,
}

impl PortsOf {
    fn new(bridge: BridgeName) -> PortsOf {
        PortsOf { bridge, index: AtomicU32::new(0), netlink: Netlink::default() }
    }

    fn index(&self) -> Option<u32> {
        let index = if_nametoindex(self.bridge.0.as_str()).ok()?;
        self.index.store(index, Ordering::Relaxed);
        Some(index)
    }
}

impl Whereabouts for PortsOf {
    fn behind(&self, mac: MacAddr) -> Option<u32> {
        let behind = |index| net::ports::behind(&self.netlink, index, mac);
        match self.index.load(Ordering::Relaxed) {
            0 => behind(self.index()?).ok().flatten(),
            // Each script asks; the bridge is looked for only when it is not the one it was.
            known => behind(known).or_else(|_| self.index().map_or(Ok(None), behind)).ok().flatten(),
        }
    }

    fn is_plugged(&self, port: u32) -> bool {
        self.index().is_some_and(|bridge| net::ports::is_plugged(bridge, port).unwrap_or(false))
    }
}
