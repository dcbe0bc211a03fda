//! What a seed decides of a run before it begins: who is there, how bad the network and the disk are, and for how long.

use std::net::Ipv4Addr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use farrier::boot::decision::UnknownPolicy;
use farrier::boot::loader::LoaderTable;
use farrier::config::{DhcpMode, Identity, PoolRange, StrangerLimits};
use farrier::dhcp::server::Settings;
use farrier::node::registry::RegistrySettings;
use farrier::storm::random::Stream;

use crate::appliance::SERVER;

pub const FIRST: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 100);
static LOADERS: LazyLock<Arc<LoaderTable>> = LazyLock::new(|| Arc::new(LoaderTable::built_in()));

/// Chances are per packet, per commit or per second; times in milliseconds.
#[derive(Clone, Debug)]
pub struct Plan {
    pub machines: usize,
    /// Made-up MACs that ask once and never come back, a second.
    pub strangers: f64,
    pub pool: u32,
    pub lease: Duration,
    pub unknown: UnknownPolicy,
    pub loss: f64,
    pub repetition: f64,
    pub delay_max: u64,
    pub sync_max: u64,
    pub commit_fails: f64,
    /// A second; once full it stays so for a while.
    pub disk_fills: f64,
    /// A second.
    pub crashes: f64,
    pub jumps: f64,
    pub reconfigures: f64,
    /// Until when things go wrong.
    pub faults_until: u64,
}

pub fn pick<T: Clone>(random: &mut Stream, choices: &[T]) -> T {
    choices[below(random, choices.len() as u64) as usize].clone()
}

pub fn below(random: &mut Stream, bound: u64) -> u64 {
    random.next_u64() % bound.max(1)
}

impl Plan {
    pub fn of(seed: u64) -> Plan {
        let random = &mut Stream::new(seed, 0);
        let machines = 1 + below(random, 5) as usize;
        Plan {
            machines,
            strangers: pick(random, &[0.0, 0.0, 0.05, 0.5]),
            // Declined addresses are withheld for an hour, strangers hold what they were offered for two minutes.
            pool: machines as u32 + 3 + below(random, 8) as u32,
            lease: Duration::from_secs(pick(random, &[120, 300, 3600, 43_200])),
            unknown: pick(random, &[UnknownPolicy::Enroll, UnknownPolicy::Enroll, UnknownPolicy::Approve]),
            loss: pick(random, &[0.0, 0.01, 0.1, 0.3]),
            repetition: pick(random, &[0.0, 0.05, 0.3]),
            delay_max: pick(random, &[2, 50, 1000, 5000]),
            sync_max: pick(random, &[3, 30, 2000, 20_000]),
            commit_fails: pick(random, &[0.0, 0.02, 0.3]),
            disk_fills: pick(random, &[0.0, 0.0, 0.02]),
            crashes: pick(random, &[0.0, 0.01, 0.05, 0.3]),
            jumps: pick(random, &[0.0, 0.0, 0.3]),
            reconfigures: pick(random, &[0.0, 0.0, 0.02]),
            faults_until: 1000 * (30 + below(random, 270)),
        }
    }

    /// `shift`: a reload moves the pool, but never shrinks it below what all need.
    pub fn dhcp(&self, shift: u32) -> Settings {
        let first = u32::from(FIRST) + shift;
        Settings {
            mode: DhcpMode::Server,
            bootp: false,
            strangers: StrangerLimits::default(),
            network: ipnetwork::Ipv4Network::new(SERVER, 16).expect("a prefix"),
            gateway: None,
            dns: Vec::new(),
            pool: PoolRange { first: Ipv4Addr::from(first), last: Ipv4Addr::from(first + self.pool - 1) },
            lease: self.lease,
            unknown: self.unknown,
            identity: Identity::Mac,
            authoritative: true,
            loaders: Arc::clone(&LOADERS),
        }
    }

    pub fn registry(&self) -> RegistrySettings {
        RegistrySettings {
            unknown: self.unknown,
            call_deadline: Duration::from_secs(300),
            first_boot_deadline: Duration::from_secs(1800),
            installer_deadline: Duration::from_secs(7200),
            reservations: Vec::new(),
        }
    }
}
