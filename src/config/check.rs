//! From what the file says to what it means: every rule of the configuration, one function per section.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnetwork::Ipv4Network;

use super::document::Document;
use super::error::{ConfigError, nearest};
use super::file::{
    BootSection, DhcpSection, FileConfig, InstallerSection, MetadataSection, NetworkSection, StoreSection,
    StrangersSection,
};
use super::{
    BootConfig, BridgeName, Config, DhcpConfig, DhcpMode, Identity, InstallerConfig, MetadataConfig,
    NetworkConfig, OnRival, PoolRange, StoreConfig, StrangerLimits,
};
use crate::boot::client::Firmware;
use crate::boot::decision::UnknownPolicy;
use crate::boot::loader::{LoaderName, LoaderTable};
use crate::boot::script::KernelArgument;
use crate::config::pool;
use crate::metadata::document::Word;
use crate::net::hazards::{Allowed, Hazard};

/// IFNAMSIZ without the final NUL (linux/if.h).
const INTERFACE_NAME_MAX: usize = 15;
/// Name servers in one DHCP reply; resolvers use three, and the reply has other things to carry.
const DNS_MAX: usize = 8;
/// Below a minute, renewals at half the lease would come faster than firmware boots.
const LEASE_MIN: Duration = Duration::from_secs(60);
const LEASE_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
const LEASE_DEFAULT: Duration = Duration::from_secs(12 * 3600);
const CALL_DEADLINE_MIN: Duration = Duration::from_secs(30);
const CALL_DEADLINE_MAX: Duration = Duration::from_secs(24 * 3600);
/// Slow real machines spend two to three minutes between kernel and agent.
/// A machine restarts, boots from its disk and grows its file system in far less, but a full memory check takes long.
const FIRST_BOOT_DEADLINE_DEFAULT: Duration = Duration::from_secs(30 * 60);
const FIRST_BOOT_DEADLINE_MIN: Duration = Duration::from_secs(60);
const INSTALLER_DEADLINE_MIN: Duration = Duration::from_secs(60);
const CALL_DEADLINE_DEFAULT: Duration = Duration::from_secs(5 * 60);
/// The x86 kernel takes 2047 bytes of command line; half of that is left to our own arguments.
const KERNEL_ARGUMENTS_BYTES_MAX: usize = 1024;
/// More than one appliance answers.
const STRANGERS_PER_SECOND_MAX: u32 = 100_000;
const PROFILE_NAME_MAX: usize = 32;

const STORE_DEFAULT: &str = "/var/lib/farrier";
const PROFILE_DEFAULT: &str = "metal";

/// The file being checked; makes errors that know its path and lines.
pub(super) struct Check<'a> {
    pub(super) path: &'a Path,
    pub(super) document: &'a Document<'a>,
}

impl Check<'_> {
    pub(super) fn refuse(
        &self,
        key: &str,
        value: impl Display,
        rule: impl Display,
        way_out: impl Display,
    ) -> ConfigError {
        ConfigError {
            path: self.path.into(),
            line: self.document.line_of(key),
            key: key.to_owned(),
            value: value.to_string(),
            rule: rule.to_string(),
            way_out: way_out.to_string(),
        }
    }

    pub(super) fn config(&self, file: FileConfig) -> Result<Config, ConfigError> {
        let network = self.network(file.network)?;
        let dhcp = self.dhcp(file.dhcp, &network)?;
        let operator = self.operator(file.operator, &network)?;
        let store = self.store(file.store)?;
        let boot = self.boot(file.boot)?;
        let metadata = self.metadata(&file.metadata)?;
        let installer = self.installer(file.installer)?;
        let user = file.process.user.map(|name| self.account("process.user", "user", name)).transpose()?;
        Ok(Config { network, dhcp, operator, store, boot, metadata, installer, user })
    }

    fn network(&self, section: NetworkSection) -> Result<NetworkConfig, ConfigError> {
        let bridge = self.bridge(section.bridge)?;
        let address = self.address(section.address)?;
        let gateway = match section.gateway {
            None => None,
            Some(text) => Some(self.gateway(&text, address)?),
        };
        let dns = self.dns(&section.dns)?;
        let allow = self.allow(&section.allow)?;
        Ok(NetworkConfig { bridge, address, gateway, dns, allow })
    }

    fn allow(&self, texts: &[String]) -> Result<Allowed, ConfigError> {
        let words = Hazard::ALL.map(Hazard::as_str);
        let hazard = |(index, text): (usize, &String)| {
            Hazard::ALL.into_iter().find(|hazard| hazard.as_str() == text).ok_or_else(|| {
                let meant = nearest(text, words).unwrap_or(words[0]);
                let rule = format!("what may be allowed: {}", words.map(quoted).join(", "));
                let way_out = format!("write \"{meant}\" if that is meant, or remove it");
                self.refuse(&format!("network.allow[{index}]"), quoted(text), rule, way_out)
            })
        };
        let hazards: Vec<Hazard> = texts.iter().enumerate().map(hazard).collect::<Result<_, _>>()?;
        Ok(Allowed::of(&hazards))
    }

    fn strangers(&self, section: &StrangersSection) -> Result<StrangerLimits, ConfigError> {
        let default = StrangerLimits::default();
        let share = match &section.share {
            None => default.share,
            Some(text) => {
                let percent = text.strip_suffix('%').and_then(|number| number.trim().parse().ok());
                percent.filter(|percent| (1..=100).contains(percent)).ok_or_else(|| {
                    let rule = "a part of the pool, from \"1%\" to \"100%\"";
                    let way_out = format!("write share = \"{}%\"", default.share);
                    self.refuse("dhcp.strangers.share", quoted(text), rule, way_out)
                })?
            }
        };
        let positive = |key: &str, number: Option<u32>, most: u32| match number {
            Some(number) if !(1..=most).contains(&number) => {
                let rule = format!("a number from 1 to {most}");
                Err(self.refuse(key, number, rule, "write such a number, or leave the key out"))
            }
            other => Ok(other),
        };
        let per_second = positive("dhcp.strangers.per_second", section.per_second, STRANGERS_PER_SECOND_MAX)?;
        let per_port = positive("dhcp.strangers.per_port", section.per_port, pool::POOL_MAX)?;
        Ok(StrangerLimits { share, per_second: per_second.unwrap_or(default.per_second), per_port })
    }

    fn bridge(&self, text: Option<String>) -> Result<BridgeName, ConfigError> {
        let key = "network.bridge";
        let text = text.ok_or_else(|| {
            self.refuse(
                key,
                "",
                "the bridge to serve must be named; there is no default, so that no other network is served by accident",
                "write bridge = \"NAME\" under [network]; `ip link show type bridge` lists the bridges of this machine",
            )
        })?;
        let fits = (1..=INTERFACE_NAME_MAX).contains(&text.len());
        let legal = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':');
        if fits && legal && text != "." && text != ".." {
            Ok(BridgeName(text))
        } else {
            Err(self.refuse(
                key,
                quoted(&text),
                format!(
                    "an interface name has 1 to {INTERFACE_NAME_MAX} printable characters without `/` and `:`"
                ),
                "write the name as `ip link show type bridge` shows it",
            ))
        }
    }

    fn address(&self, text: Option<String>) -> Result<Ipv4Network, ConfigError> {
        let key = "network.address";
        let example =
            "write address = \"192.168.2.2/24\" under [network], with the address the bridge carries";
        let text =
            text.ok_or_else(|| self.refuse(key, "", "our own address on the bridge must be given", example))?;
        let parsed = text.contains('/').then(|| text.parse::<Ipv4Network>().ok()).flatten();
        let Some(network) = parsed else {
            let rule = "an IPv4 address with its prefix length is wanted";
            return Err(self.refuse(key, quoted(&text), rule, example));
        };
        if !(8..=30).contains(&network.prefix()) {
            let rule = "the prefix length lies between 8 and 30, so that there is room for machines";
            return Err(self.refuse(key, quoted(&text), rule, example));
        }
        let ip = network.ip();
        if !is_host(ip) {
            let rule = "the address is a unicast address of a host";
            return Err(self.refuse(key, quoted(&text), rule, example));
        }
        if ip == network.network() || ip == network.broadcast() {
            let what = if ip == network.network() { "network" } else { "broadcast" };
            let rule = format!("{ip} is the {what} address of that subnet; the host bits must name a host");
            return Err(self.refuse(key, quoted(&text), rule, example));
        }
        Ok(network)
    }

    fn gateway(&self, text: &str, subnet: Ipv4Network) -> Result<Ipv4Addr, ConfigError> {
        self.host_in_subnet("network.gateway", text, subnet, "leave the key out if machines need no gateway")
    }

    /// An address that a host of the subnet may have.
    pub(super) fn host_in_subnet(
        &self,
        key: &str,
        text: &str,
        subnet: Ipv4Network,
        way_out: &str,
    ) -> Result<Ipv4Addr, ConfigError> {
        let net = network_text(subnet);
        let range = format!("write an address of {net}; {way_out}");
        let Ok(address) = text.parse::<Ipv4Addr>() else {
            return Err(self.refuse(key, quoted(text), "an IPv4 address is wanted", range));
        };
        if !subnet.contains(address) {
            let rule = format!("the address lies in the subnet of network.address, {net}");
            return Err(self.refuse(key, quoted(text), rule, range));
        }
        if address == subnet.network() || address == subnet.broadcast() {
            let rule = format!("the network and broadcast addresses of {net} belong to no host");
            return Err(self.refuse(key, quoted(text), rule, range));
        }
        Ok(address)
    }

    fn dns(&self, texts: &[String]) -> Result<Vec<Ipv4Addr>, ConfigError> {
        if texts.len() > DNS_MAX {
            let rule = format!("at most {DNS_MAX} name servers fit a DHCP reply");
            return Err(self.refuse(
                "network.dns",
                format!("{} addresses", texts.len()),
                rule,
                "remove some",
            ));
        }
        let address = |(index, text): (usize, &String)| {
            text.parse().ok().filter(|address| is_host(*address)).ok_or_else(|| {
                let key = format!("network.dns[{index}]");
                let rule = "each name server is an IPv4 host address";
                self.refuse(&key, quoted(text), rule, "write dns = [\"192.168.2.1\"], or [] for none")
            })
        };
        texts.iter().enumerate().map(address).collect()
    }

    fn dhcp(&self, section: DhcpSection, network: &NetworkConfig) -> Result<DhcpConfig, ConfigError> {
        let modes = [DhcpMode::Server, DhcpMode::Proxy, DhcpMode::Observe].map(|mode| (mode.as_str(), mode));
        let mode = self.one_of("dhcp.mode", section.mode, &modes)?;
        let pool = match &section.pool {
            Some(text) => self.pool(text, network)?,
            None if mode == DhcpMode::Proxy => pool::default_pool(network).unwrap_or_else(|| {
                // Nobody is given an address of it, and ours is none that anybody may have.
                let own = network.address.ip();
                PoolRange { first: own, last: own }
            }),
            None => pool::default_pool(network).ok_or_else(|| {
                let rule = format!("{} leaves no address for a pool", network_text(network.address));
                self.refuse("dhcp.pool", "", rule, "choose a larger subnet in network.address")
            })?,
        };
        let lease = self.duration("dhcp.lease", section.lease, LEASE_DEFAULT, LEASE_MIN, LEASE_MAX)?;
        let unknown = self.one_of(
            "dhcp.unknown",
            section.unknown,
            &[
                ("enroll", UnknownPolicy::Enroll),
                ("approve", UnknownPolicy::Approve),
                ("ignore", UnknownPolicy::Ignore),
            ],
        )?;
        let identities = [("mac", Identity::Mac), ("client-id", Identity::ClientId)];
        let identity = self.one_of("dhcp.identity", section.identity, &identities)?;
        let reservations = self.reservations(section.reservation, network)?;
        let authoritative = section.authoritative.unwrap_or(true);
        let bootp = section.bootp.unwrap_or(false);
        let policies = [("warn", OnRival::Warn), ("hold", OnRival::Hold)];
        let on_rival = self.one_of("dhcp.on_rival", section.on_rival, &policies)?;
        let strangers = self.strangers(&section.strangers)?;
        Ok(DhcpConfig {
            mode,
            pool,
            lease,
            unknown,
            identity,
            authoritative,
            bootp,
            on_rival,
            strangers,
            reservations,
        })
    }

    fn store(&self, section: StoreSection) -> Result<StoreConfig, ConfigError> {
        Ok(StoreConfig { path: self.absolute("store.path", section.path, STORE_DEFAULT)? })
    }

    fn boot(&self, section: BootSection) -> Result<BootConfig, ConfigError> {
        let profile = section.profile.unwrap_or_else(|| PROFILE_DEFAULT.to_owned());
        let letters = profile.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !letters || profile.starts_with('-') || !(1..=PROFILE_NAME_MAX).contains(&profile.len()) {
            let rule =
                format!("a profile name has 1 to {PROFILE_NAME_MAX} lower-case letters, digits and hyphens");
            let way_out = "write \"metal\", \"vm\", or a profile of images/deploy.toml";
            return Err(self.refuse("boot.profile", quoted(&profile), rule, way_out));
        }
        Ok(BootConfig {
            loaders: self.loaders(&section.loaders)?,
            profile,
            kernel_arguments: self.kernel_arguments(&section.kernel_arguments)?,
            call_deadline: self.duration(
                "boot.call_deadline",
                section.call_deadline,
                CALL_DEADLINE_DEFAULT,
                CALL_DEADLINE_MIN,
                CALL_DEADLINE_MAX,
            )?,
            first_boot_deadline: self.duration(
                "boot.first_boot_deadline",
                section.first_boot_deadline,
                FIRST_BOOT_DEADLINE_DEFAULT,
                FIRST_BOOT_DEADLINE_MIN,
                CALL_DEADLINE_MAX,
            )?,
        })
    }

    fn installer(&self, section: InstallerSection) -> Result<InstallerConfig, ConfigError> {
        let InstallerConfig { deadline, mut answers } = InstallerConfig::default();
        let deadline = self.duration(
            "installer.deadline",
            section.deadline,
            deadline,
            INSTALLER_DEADLINE_MIN,
            CALL_DEADLINE_MAX,
        )?;
        let word = |key: &str, text: String| {
            text.parse::<Word>().map_err(|error| {
                let way_out = "write it as Debian's installer takes it, as in en_US.UTF-8 and Europe/Berlin";
                self.refuse(key, quoted(&text), error.to_string(), way_out)
            })
        };
        if let Some(text) = section.mirror {
            let rule =
                "a mirror is the URL of a directory, by http, of letters, digits and - . _ : / = + @ ,";
            let way_out = "write it as in \"http://deb.debian.org/debian\"";
            let refused = || self.refuse("installer.mirror", quoted(&text), rule, way_out);
            let rest = text.strip_prefix("http://").ok_or_else(refused)?;
            let (host, directory) = rest.split_once('/').unwrap_or((rest, ""));
            answers.mirror = host.parse().map_err(|_| refused())?;
            let directory = format!("/{}", directory.trim_end_matches('/'));
            answers.mirror_directory = directory.parse().map_err(|_| refused())?;
        }
        if let Some(text) = section.locale {
            answers.locale = word("installer.locale", text)?;
        }
        if let Some(text) = section.time_zone {
            answers.time_zone = word("installer.time_zone", text)?;
        }
        Ok(InstallerConfig { deadline, answers })
    }

    fn metadata(&self, section: &MetadataSection) -> Result<MetadataConfig, ConfigError> {
        let default = MetadataConfig::default();
        let ec2 = section.ec2.unwrap_or(default.ec2);
        let imds_v1 = section.imds_v1.unwrap_or(default.imds_v1);
        if imds_v1 && !ec2 {
            let rule = "the first version of EC2's metadata is served only where the second is";
            let way_out = "remove it, or write ec2 = true";
            return Err(self.refuse("metadata.imds_v1", imds_v1, rule, way_out));
        }
        Ok(MetadataConfig { ec2, imds_v1 })
    }

    fn kernel_arguments(&self, texts: &[String]) -> Result<Vec<KernelArgument>, ConfigError> {
        let argument = |(index, text): (usize, &String)| {
            let key = format!("boot.kernel_arguments[{index}]");
            let argument = text.parse::<KernelArgument>().map_err(|_| {
                let rule = format!(
                    "one word of printable ASCII without quotes, $ {{ }} \\ ; & | < > ( ) # and backquote, at most {} bytes",
                    KernelArgument::LEN_MAX
                );
                self.refuse(&key, quoted(text), rule, "write each argument as a word of its own in the list")
            })?;
            if text.starts_with("farrier.") {
                let rule = "arguments beginning with `farrier.` are the appliance's own";
                return Err(self.refuse(
                    &key,
                    quoted(text),
                    rule,
                    "remove it; the appliance sets what its agent needs",
                ));
            }
            Ok(argument)
        };
        let arguments: Vec<_> = texts.iter().enumerate().map(argument).collect::<Result<_, _>>()?;
        let bytes: usize = texts.iter().map(|text| text.len() + 1).sum();
        if bytes > KERNEL_ARGUMENTS_BYTES_MAX {
            let rule = format!("all arguments together have at most {KERNEL_ARGUMENTS_BYTES_MAX} bytes");
            let value = format!("{bytes} bytes");
            return Err(self.refuse("boot.kernel_arguments", value, rule, "remove some arguments"));
        }
        Ok(arguments)
    }

    fn loaders(
        &self,
        entries: &BTreeMap<String, String>,
    ) -> Result<BTreeMap<Firmware, LoaderName>, ConfigError> {
        let table = LoaderTable::built_in();
        let mut loaders = BTreeMap::new();
        for (firmware_text, loader_text) in entries {
            let key = format!("boot.loaders.{firmware_text}");
            let names: Vec<String> = Firmware::ALL.iter().map(Firmware::to_string).collect();
            let Some(firmware) = Firmware::ALL.iter().find(|firmware| firmware.to_string() == *firmware_text)
            else {
                let meant = nearest(firmware_text, names.iter().map(String::as_str)).unwrap_or("uefi-x64");
                let rule = format!("the key is a firmware: {}", names.join(", "));
                return Err(self.refuse(
                    &key,
                    quoted(loader_text),
                    rule,
                    format!("write `{meant}` if that is meant"),
                ));
            };
            let name = LoaderName(loader_text.clone());
            if table.file(&name).is_none() {
                let known: Vec<&str> = table.files().map(|file| file.name.0.as_str()).collect();
                let meant = nearest(loader_text, known.iter().copied()).unwrap_or("ipxe.efi");
                let rule = format!("the value is a known boot loader: {}", known.join(", "));
                return Err(self.refuse(
                    &key,
                    quoted(loader_text),
                    rule,
                    format!("write \"{meant}\" if that is meant"),
                ));
            }
            loaders.insert(*firmware, name);
        }
        Ok(loaders)
    }

    fn duration(
        &self,
        key: &str,
        text: Option<String>,
        default: Duration,
        min: Duration,
        max: Duration,
    ) -> Result<Duration, ConfigError> {
        let Some(text) = text else { return Ok(default) };
        let spell = humantime::format_duration;
        let way_out = format!("write a duration such as \"{}\"", spell(default));
        match humantime::parse_duration(&text) {
            Ok(duration) if (min..=max).contains(&duration) && duration.subsec_nanos() == 0 => Ok(duration),
            Ok(_) => {
                let rule = format!("from {} to {}, in whole seconds", whole(min), whole(max));
                Err(self.refuse(key, quoted(&text), rule, way_out))
            }
            Err(error) => {
                let rule = match error {
                    _ if text.trim_start().starts_with('-') => {
                        format!("a duration is not negative: from {} to {}", whole(min), whole(max))
                    }
                    humantime::DurationError::NumberOverflow => {
                        format!("the number is too large: from {} to {}", whole(min), whole(max))
                    }
                    humantime::DurationError::InvalidCharacter(_)
                    | humantime::DurationError::NumberExpected(_)
                    | humantime::DurationError::UnknownUnit { .. }
                    | humantime::DurationError::Empty => {
                        "a number with a unit is wanted: s, m, h or d".to_owned()
                    }
                };
                Err(self.refuse(key, quoted(&text), rule, way_out))
            }
        }
    }

    fn one_of<T: Copy + Default>(
        &self,
        key: &str,
        text: Option<String>,
        words: &[(&str, T)],
    ) -> Result<T, ConfigError> {
        let Some(text) = text else { return Ok(T::default()) };
        if let Some((_, meaning)) = words.iter().find(|(word, _)| *word == text) {
            return Ok(*meaning);
        }
        let listed: Vec<String> = words.iter().map(|(word, _)| quoted(word)).collect();
        let meant = nearest(&text, words.iter().map(|(word, _)| *word)).unwrap_or(words[0].0);
        let rule = format!("one of {}", listed.join(", "));
        Err(self.refuse(key, quoted(&text), rule, format!("write \"{meant}\" if that is meant")))
    }

    pub(super) fn absolute(
        &self,
        key: &str,
        text: Option<String>,
        default: &str,
    ) -> Result<PathBuf, ConfigError> {
        let text = text.unwrap_or_else(|| default.to_owned());
        if text.starts_with('/') && !text.contains('\0') {
            return Ok(PathBuf::from(text));
        }
        let rule = "an absolute path is wanted, so that it means the same wherever the appliance is started";
        Err(self.refuse(key, quoted(&text), rule, format!("write a path such as \"{default}\"")))
    }
}

/// Strings from the file are shown as TOML would write them, which keeps control characters off the terminal.
pub(super) fn quoted(text: &str) -> String {
    format!("{text:?}")
}

/// The subnet without host bits: 192.168.2.0/24.
pub(super) fn network_text(subnet: Ipv4Network) -> String {
    format!("{}/{}", subnet.network(), subnet.prefix())
}

fn whole(duration: Duration) -> String {
    let secs = duration.as_secs();
    match secs {
        s if s % 86400 == 0 => format!("{}d", s / 86400),
        s if s % 3600 == 0 => format!("{}h", s / 3600),
        s => format!("{s}s"),
    }
}

fn is_host(address: Ipv4Addr) -> bool {
    // 0/8 and 240/4 are no host addresses either (RFC 6890 §2.2.2).
    let first = address.octets()[0];
    first != 0 && first < 224 && !address.is_loopback()
}
