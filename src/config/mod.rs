//! Configuration: what the file means, checked once, immutable afterwards.
//!
//! `file` mirrors `config/farrier.toml` key by key (serde, unknown keys refused); this module holds what the
//! program reads. Each mistake is one error that names the key, the value, the rule and the way out.
//!
//! - `file`: the private mirror and what serde has to say about it
//! - `document`: key path ↔ line of the file
//! - `check`: the rules, section by section; `pool`: those about addresses; `operator`: those of the operator plane
//! - `error`: how a mistake is told

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::boot::client::Firmware;
use crate::boot::decision::UnknownPolicy;
use crate::boot::loader::{LoaderName, LoaderTable, UnknownLoaderError};
use crate::boot::script::KernelArgument;
use crate::metadata::document::{Installer, Word};
use crate::net::MacAddr;
use crate::net::hazards::Allowed;
use crate::node::NodeName;

mod check;
mod document;
mod error;
mod file;
mod operator;
mod pool;
#[cfg(test)]
mod tests;

pub use error::ConfigError;

/// A larger file is no configuration of ours; it is refused before it is read into memory.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Debian's installer takes ten minutes on a machine and half an hour on an emulated one; a slow mirror adds an hour.
const INSTALLER_DEADLINE_DEFAULT: Duration = Duration::from_secs(2 * 3600);

#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub network: NetworkConfig,
    pub dhcp: DhcpConfig,
    pub operator: OperatorConfig,
    pub store: StoreConfig,
    pub boot: BootConfig,
    pub metadata: MetadataConfig,
    pub installer: InstallerConfig,
    /// Whom a start as root becomes, by name or number. Without: the package's user, if there is one.
    pub user: Option<String>,
}

/// A Linux interface name; there is no default and no wildcard.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BridgeName(pub String);

impl fmt::Display for BridgeName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct NetworkConfig {
    pub bridge: BridgeName,
    /// Our own address with its prefix: 192.168.2.2/24. Also the server identifier.
    pub address: Ipv4Network,
    pub gateway: Option<Ipv4Addr>,
    pub dns: Vec<Ipv4Addr>,
    /// What speaks against serving the interface and is allowed all the same.
    pub allow: Allowed,
}

/// First and last address of the dynamic pool, inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolRange {
    pub first: Ipv4Addr,
    pub last: Ipv4Addr,
}

/// What part DHCP plays on the bridge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DhcpMode {
    /// The only DHCP server there: addresses and boot files.
    #[default]
    Server,
    /// Beside another server, which gives the addresses: boot files only (PXE 2.1, ProxyDHCP).
    Proxy,
    /// Listens, answers nobody, and tells what a server would have answered.
    Observe,
}

impl DhcpMode {
    pub fn as_str(self) -> &'static str {
        match self {
            DhcpMode::Server => "server",
            DhcpMode::Proxy => "proxy",
            DhcpMode::Observe => "observe",
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Identity {
    /// A client is its MAC: firmware, iPXE, ramdisk and OS get one address (protocol: three client-ids in one boot).
    #[default]
    Mac,
    /// RFC 2131 §4.2 to the letter: option 61 identifies the client when present.
    ClientId,
}

/// `dhcp.on_rival`: what becomes of service while another DHCP server answers on the bridge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnRival {
    /// It is told everywhere, and service goes on.
    #[default]
    Warn,
    /// It is told everywhere, and nobody is answered until the other has been quiet.
    Hold,
}

/// `[dhcp.strangers]`: what machines that nobody registered, and that have not enrolled, may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StrangerLimits {
    /// Percent of the pool they may hold, by leases and offers together.
    pub share: u32,
    /// DISCOVERs of theirs answered in a second.
    pub per_second: u32,
    /// Addresses they may hold behind one port of the bridge; `None` for as many as come.
    pub per_port: Option<u32>,
}

impl Default for StrangerLimits {
    /// Half of the pool is left to known nodes; the rate is more than any rack asks, and less than keeps us from others.
    fn default() -> StrangerLimits {
        StrangerLimits { share: 50, per_second: 10_000, per_port: None }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct DhcpConfig {
    pub mode: DhcpMode,
    /// Without a meaning where another server gives the addresses.
    pub pool: PoolRange,
    pub lease: Duration,
    pub unknown: UnknownPolicy,
    pub identity: Identity,
    pub authoritative: bool,
    /// BOOTP clients of registered machines with a fixed address are answered.
    pub bootp: bool,
    pub on_rival: OnRival,
    pub strangers: StrangerLimits,
    pub reservations: Vec<Reservation>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    pub mac: MacAddr,
    pub address: Ipv4Addr,
    pub name: Option<NodeName>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct OperatorConfig {
    pub socket: PathBuf,
    /// Its members may use the socket; by name or number.
    pub group: Option<String>,
    /// Not the bridge's address, and loopback only unless there is TLS.
    pub listen: Option<SocketAddr>,
    /// Host names and addresses, beside loopback and `listen`, that requests may ask for.
    pub names: Vec<String>,
    pub tls: Option<TlsConfig>,
    /// `/metrics` takes no token.
    pub metrics_open: bool,
    /// Directory of the machines' console logs, one file a port.
    pub consoles: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsConfig {
    /// Made at first start and kept in the state directory.
    SelfSigned,
    Files {
        certificate: PathBuf,
        key: PathBuf,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub struct StoreConfig {
    /// State directory: `farrier.db`, `images/`, `loaders/`.
    pub path: PathBuf,
}

#[derive(Clone, Debug, PartialEq)]
pub struct BootConfig {
    /// Overrides `pxe/loaders.toml`, per firmware.
    pub loaders: BTreeMap<Firmware, LoaderName>,
    /// Which deploy profile of `images/deploy.toml` nodes get: `vm` or `metal`.
    pub profile: String,
    /// Appended to the deploy kernel's command line.
    pub kernel_arguments: Vec<KernelArgument>,
    /// A ramdisk silent for this long after its kernel was fetched has failed.
    pub call_deadline: Duration,
    /// An installed system that has not called for this long after its disk was written has failed.
    pub first_boot_deadline: Duration,
}

/// `[metadata]`: in which ways installed systems read of themselves, beside our own addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetadataConfig {
    /// As EC2 has it, at 169.254.169.254 too.
    pub ec2: bool,
    /// Without a session, as EC2's first version.
    pub imds_v1: bool,
}

impl Default for MetadataConfig {
    fn default() -> Self {
        MetadataConfig { ec2: true, imds_v1: false }
    }
}

/// `[installer]`: what distributions' own installers are told, and how long they may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstallerConfig {
    /// An installer that has not said for this long that it is done has failed.
    pub deadline: Duration,
    pub answers: Installer,
}

impl Default for InstallerConfig {
    fn default() -> Self {
        InstallerConfig { deadline: INSTALLER_DEADLINE_DEFAULT, answers: Installer::default() }
    }
}

impl Config {
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let refuse = |value: String, way_out: &str| ConfigError {
            path: path.into(),
            line: None,
            key: "(the file itself)".to_owned(),
            value,
            rule: format!(
                "the configuration is a readable UTF-8 text file of at most {FILE_BYTES_MAX} bytes"
            ),
            way_out: way_out.to_owned(),
        };
        let name_it = "name another file with --config, or start from a copy of config/farrier.toml";
        let metadata = std::fs::metadata(path).map_err(|error| refuse(error.to_string(), name_it))?;
        if metadata.len() > FILE_BYTES_MAX {
            return Err(refuse(format!("{} bytes", metadata.len()), name_it));
        }
        let text = std::fs::read_to_string(path).map_err(|error| refuse(error.to_string(), name_it))?;
        Config::parse(&text, path)
    }

    /// `path` is named in errors; nothing is read from it.
    pub fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
        let (file, document) = file::read(text, path)?;
        check::Check { path, document: &document }.config(file)
    }

    /// Which loader each firmware gets: the shipped choice for this mode, and the operator's before it.
    pub fn loader_table(&self) -> Result<LoaderTable, UnknownLoaderError> {
        let table = match self.dhcp.mode {
            DhcpMode::Server | DhcpMode::Observe => LoaderTable::built_in(),
            DhcpMode::Proxy => LoaderTable::built_in().beside_another_server(),
        };
        table.with_overrides(&self.boot.loaders)
    }

    fn mirror(&self) -> (&Word, &Word) {
        (&self.installer.answers.mirror, &self.installer.answers.mirror_directory)
    }

    /// Keys that differ in `new` and that a running appliance cannot take over: its sockets and its store are open, and what
    /// it may reach is decided.
    pub fn fixed_at_start(&self, new: &Config) -> Vec<&'static str> {
        let compared = [
            ("network.bridge", self.network.bridge != new.network.bridge),
            ("network.address", self.network.address != new.network.address),
            ("dhcp.mode", self.dhcp.mode != new.dhcp.mode),
            ("network.allow", self.network.allow != new.network.allow),
            ("operator.socket", self.operator.socket != new.operator.socket),
            ("operator.group", self.operator.group != new.operator.group),
            ("operator.listen", self.operator.listen != new.operator.listen),
            ("operator.names", self.operator.names != new.operator.names),
            ("operator.tls", self.operator.tls != new.operator.tls),
            ("operator.metrics_open", self.operator.metrics_open != new.operator.metrics_open),
            ("operator.consoles", self.operator.consoles != new.operator.consoles),
            ("store.path", self.store.path != new.store.path),
            ("metadata.ec2", self.metadata.ec2 != new.metadata.ec2),
            ("metadata.imds_v1", self.metadata.imds_v1 != new.metadata.imds_v1),
            ("installer.mirror", self.mirror() != new.mirror()),
            ("installer.locale", self.installer.answers.locale != new.installer.answers.locale),
            ("installer.time_zone", self.installer.answers.time_zone != new.installer.answers.time_zone),
            ("process.user", self.user != new.user),
        ];
        compared.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
    }
}
