//! What a node may fetch: the one place that TFTP and HTTP both ask.
//!
//! A peer is who the address book says has its address. Loaders, kernels and ramdisks are public to every such peer.
//! Scripts and GRUB configurations are rendered for the asking node, at the moment it asks, with a boot token of its
//! own; a name that carries another node's MAC does not exist for it.
//!
//! What was fetched, and what was not there, is told to the registry for the node's timeline; every refusal is
//! counted under the word that is logged.

use std::fs::File;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;

use crate::boot::decision::ScriptPlan;
use crate::boot::namespace::{self, Content, NameRefusal};
use crate::boot::profile::fit::Reader;
use crate::boot::quirks::Quirks;
use crate::boot::script::KernelArgument;
use crate::bootplane::files::media_type;
use crate::bootplane::paces::Paces;
use crate::bootplane::per_minute::PerMinute;
use crate::bootplane::profiles::ProfileDesk;
use crate::clock::{Clock, Timestamp};
use crate::config::Config;
use crate::dhcp::address_book::AddressBook;
use crate::image::digest::Digest;
use crate::image::library::{Blob, Library};
use crate::image::loaders::Loaders;
use crate::net::MacAddr;
use crate::node::registry::Registry;
use crate::node::timeline::{FileOutcome, Happening, Stage, TftpFacts, Transport};
use crate::telemetry::Tally;
use crate::telemetry::stages::Timed;
use crate::tftp::Restraint;

mod by_tftp;
mod profile;
mod scripts;

/// Misses of one machine on its timeline. GRUB's whole search has 12 names, shim's 4, PXELINUX' 11.
const MISSES_PER_MINUTE: u32 = 40;
/// Refusals of one peer in the log, for anything it asks of the boot plane; the rest is there with RUST_LOG=debug.
pub const REFUSALS_PER_MINUTE: u32 = 10;
/// Fetches of one machine in the log. A boot by GRUB has some 30, each seek a request of its own.
const FETCHES_PER_MINUTE: u32 = 100;
/// An address in use is told the DHCP thread this often: offers are held for two minutes.
const IN_USE_PER_MINUTE: u32 = 1;

/// What scripts are rendered from, apart from the node.
#[derive(Clone, Debug, PartialEq)]
pub struct ScriptSettings {
    pub server: Ipv4Addr,
    pub profile: String,
    pub arguments: Vec<KernelArgument>,
}

impl From<&Config> for ScriptSettings {
    fn from(config: &Config) -> Self {
        ScriptSettings {
            server: config.network.address.ip(),
            profile: config.boot.profile.clone(),
            arguments: config.boot.kernel_arguments.clone(),
        }
    }
}

pub struct ContentParts {
    pub settings: ScriptSettings,
    pub loaders: Loaders,
    pub library: Arc<Library>,
    pub profiles: Arc<ProfileDesk>,
    pub registry: Arc<Registry>,
    pub addresses: Arc<AddressBook>,
    pub in_use: AddressInUse,
    pub tally: Arc<Tally>,
    pub clock: Clock,
}

/// Told of an address whose client fetches something: an offer in use is kept even if it is never requested
/// (Raspberry Pi ROMs do not).
pub type AddressInUse = Arc<dyn Fn(Ipv4Addr) + Send + Sync>;

pub struct BootContent {
    settings: ArcSwap<ScriptSettings>,
    loaders: ArcSwap<Loaders>,
    library: Arc<Library>,
    profiles: Arc<ProfileDesk>,
    registry: Arc<Registry>,
    addresses: Arc<AddressBook>,
    in_use: AddressInUse,
    tally: Arc<Tally>,
    clock: Clock,
    /// Put on timelines.
    misses: PerMinute<MacAddr>,
    /// Told in the log.
    refusals: PerMinute<Ipv4Addr>,
    /// Told in the log.
    fetches: PerMinute<MacAddr>,
    /// Told the DHCP thread.
    uses: PerMinute<Ipv4Addr>,
    paces: Paces,
}

/// A file as it is at this moment; a replacement does not change it.
#[derive(Clone, Debug)]
pub struct Served {
    pub bytes: Bytes,
    /// The file that `bytes` maps, if they are not just in memory.
    pub file: Option<Arc<File>>,
    /// Absent for text rendered for one node.
    pub digest: Option<Digest>,
    pub modified: Option<Timestamp>,
    pub media_type: &'static str,
    pub ticket: Ticket,
    /// What this machine gets less of than everybody.
    pub restraint: Restraint,
}

/// Who fetches what: goes back to [`BootContent::finished`] when it is over.
#[derive(Clone, Debug, PartialEq)]
pub struct Ticket {
    pub mac: MacAddr,
    pub transport: Transport,
    pub stage: Stage,
    /// The canonical name: printable ASCII, bounded.
    pub name: String,
    pub size: u64,
    /// For scripts: what the text does.
    pub plan: Option<ScriptPlan>,
    /// For scripts: issue time of the boot token in the text.
    pub token_issued_at: Option<Timestamp>,
    /// For scripts: what came of boot profiles on the way.
    pub profile: Vec<Happening>,
}

/// Why nothing is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unserved {
    /// We gave this peer no address, so it is not one of ours.
    UnknownPeer,
    BadName(NameRefusal),
    NoSuchName,
    /// The name stands for something that is not there: a loader not installed, a profile not built or damaged.
    NotInstalled,
    /// A script or configuration with another node's MAC.
    ForeignMac,
    /// The node is to boot the ramdisk or its installer, but may not have its token, or is elsewhere.
    NoToken,
    /// A boot profile's file, and not of one that is this node's to boot now.
    NotAssigned,
    /// The start of a one-shot profile, or of an installer, is on its way to the disk: ask again.
    NotYet,
}

impl Unserved {
    /// The same word in log and counter.
    pub fn as_str(self) -> &'static str {
        match self {
            Unserved::UnknownPeer => "unknown-peer",
            Unserved::BadName(_) => "bad-name",
            Unserved::NoSuchName => "not-found",
            Unserved::NotInstalled => "not-installed",
            Unserved::ForeignMac => "foreign-mac",
            Unserved::NoToken => "no-token",
            Unserved::NotAssigned => "not-assigned",
            Unserved::NotYet => "not-durable-yet",
        }
    }
}

impl BootContent {
    pub fn new(parts: ContentParts) -> BootContent {
        BootContent {
            settings: ArcSwap::from_pointee(parts.settings),
            loaders: ArcSwap::from_pointee(parts.loaders),
            library: parts.library,
            profiles: parts.profiles,
            registry: parts.registry,
            addresses: parts.addresses,
            in_use: parts.in_use,
            tally: parts.tally,
            clock: parts.clock,
            misses: PerMinute::new(MISSES_PER_MINUTE),
            refusals: PerMinute::new(REFUSALS_PER_MINUTE),
            fetches: PerMinute::new(FETCHES_PER_MINUTE),
            uses: PerMinute::new(IN_USE_PER_MINUTE),
            paces: Paces::default(),
        }
    }

    /// Takes over a new configuration and loader files read again. What is being sent stays as it is.
    pub fn reconfigure(&self, settings: ScriptSettings, loaders: Loaders) {
        self.loaders.store(Arc::new(loaders));
        self.settings.store(Arc::new(settings));
    }

    /// The loaders as they are served now.
    pub fn loaders(&self) -> Arc<Loaders> {
        self.loaders.load_full()
    }

    /// What keeps machines from booting, a line each: no deploy image, damage. (Loaders tell for themselves.)
    pub fn problems(&self) -> Vec<String> {
        let damage = self.library.damage();
        let mut problems: Vec<String> =
            damage.iter().map(|damage| format!("{}: {}", damage.path.display(), damage.reason)).collect();
        let profile = &self.settings.load().profile;
        if self.library.profile(profile).is_none() {
            problems.push(format!(
                "there is no deploy image for profile {profile}: `farrier image build deploy --profile {profile}`, then `systemctl reload farrier`"
            ));
        }
        problems
    }

    /// Looks a name up for a peer. Renders, if it is a script, but tells the registry nothing yet.
    pub fn open(
        &self,
        peer: Ipv4Addr,
        name: &[u8],
        transport: Transport,
        now: Timestamp,
    ) -> Result<Served, Unserved> {
        let Some(mac) = self.addresses.owner(peer) else {
            return Err(self.refused(Unserved::UnknownPeer, peer, name));
        };
        if self.uses.may_note(peer, now) {
            (self.in_use)(peer);
        }
        let quirks = self.registry.quirks_of(mac);
        let found = namespace::canonical(name)
            .map_err(Unserved::BadName)
            .and_then(|name| self.find(peer, mac, name, transport, now));
        let found = found.or_else(|reason| match self.stands_for(reason, quirks, name) {
            Some(loader) => self.find(peer, mac, loader, transport, now),
            None => Err(reason),
        });
        let found = found.map(|served| Served { restraint: self.restraint(mac, quirks), ..served });
        found.map_err(|reason| {
            if reason == Unserved::NotYet {
                self.tally.count("content", reason.as_str());
                return reason;
            }
            self.record_miss(mac, name, transport, now);
            self.refused(reason, peer, name)
        })
    }

    /// The name that an odd one beside shim stands for, with a machine that asks for such.
    fn stands_for(&self, reason: Unserved, quirks: Quirks, name: &[u8]) -> Option<String> {
        match reason {
            Unserved::BadName(_) | Unserved::NoSuchName if quirks.shim_fallback => {
                let loaders = self.loaders.load();
                namespace::beside_shim(name, &loaders.table).map(|loader| loader.0.clone())
            }
            Unserved::BadName(_)
            | Unserved::NoSuchName
            | Unserved::UnknownPeer
            | Unserved::NotInstalled
            | Unserved::ForeignMac
            | Unserved::NoToken
            | Unserved::NotAssigned
            | Unserved::NotYet => None,
        }
    }

    fn restraint(&self, mac: MacAddr, quirks: Quirks) -> Restraint {
        Restraint {
            blksize_max: quirks.blksize_max.map(u16::from),
            windowsize_max: quirks.windowsize_max.map(u16::from),
            pace: quirks.rate_mbps_max.map(|rate| self.paces.of(mac, rate, Instant::now())),
        }
    }

    /// A fetch of a whole file or part begins: a script is put on the timeline when it is handed out.
    pub fn began(&self, ticket: &Ticket, now: Timestamp) {
        self.registry.fetch_began(ticket.mac, ticket.stage, now);
        if let Some(plan) = ticket.plan {
            let (name, token_issued_at) = (ticket.name.clone(), ticket.token_issued_at);
            let happening = Happening::Script { name, plan, token_issued_at };
            self.registry.record(ticket.mac, happening, now);
        }
        for happening in &ticket.profile {
            self.registry.record(ticket.mac, happening.clone(), now);
        }
    }

    /// A fetch is over, well or not.
    pub fn finished(&self, ticket: &Ticket, sent: u64, took: Duration, outcome: FileOutcome, now: Timestamp) {
        self.conclude(ticket, sent, took, outcome, None, now);
    }

    fn conclude(
        &self,
        ticket: &Ticket,
        sent: u64,
        took: Duration,
        outcome: FileOutcome,
        tftp: Option<TftpFacts>,
        now: Timestamp,
    ) {
        // HEAD asks for no byte, and began nothing.
        if ticket.transport == Transport::Tftp || outcome != FileOutcome::Probe {
            self.registry.fetch_ended(ticket.mac);
        }
        let word = match &outcome {
            FileOutcome::Complete => "complete",
            FileOutcome::Probe => "probe",
            FileOutcome::Range => "range",
            FileOutcome::NotFound => "not-found",
            FileOutcome::Aborted(_) => "aborted",
        };
        let timed = match ticket.transport {
            Transport::Tftp => Timed::TftpTransfer,
            Transport::Http => Timed::HttpRequest,
        };
        self.tally.took(timed, took);
        // TFTP counts and logs how its own transfers end.
        if ticket.transport == Transport::Http {
            self.tally.count("http", word);
            self.tally.add("http", "bytes", sent);
            if self.fetches.may_note(ticket.mac, now) {
                tracing::info!(mac = %ticket.mac, name = ticket.name, outcome = word, sent, ?took, "file by HTTP");
            } else {
                self.tally.count("http", "not-logged");
            }
        }
        let happening = Happening::File {
            transport: ticket.transport,
            stage: Some(ticket.stage),
            name: ticket.name.clone(),
            size: Some(ticket.size),
            sent,
            took_millis: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            outcome,
            tftp,
        };
        let whole = matches!(happening, Happening::File { outcome: FileOutcome::Complete, .. });
        self.registry.record(ticket.mac, happening, now);
        if whole {
            self.handed_out(ticket, now);
        }
    }

    /// Changes when what was not durable yet may be asked for again.
    pub fn settled(&self) -> tokio::sync::watch::Receiver<u64> {
        self.profiles.settled()
    }

    fn find(
        &self,
        peer: Ipv4Addr,
        mac: MacAddr,
        name: String,
        transport: Transport,
        now: Timestamp,
    ) -> Result<Served, Unserved> {
        let loaders = self.loaders.load();
        let content = namespace::resolve(&name, &loaders.table).ok_or(Unserved::NoSuchName)?;
        let stage = namespace::stage_of(&content);
        let ticket = Ticket {
            mac,
            transport,
            stage,
            name,
            size: 0,
            plan: None,
            token_issued_at: None,
            profile: Vec::new(),
        };
        match content {
            Content::Loader(loader) => {
                let blob = loaders.blob(&loader).ok_or(Unserved::NotInstalled)?;
                Ok(serve_blob(blob, media_type(&loader.0), ticket))
            }
            Content::Kernel { profile } => {
                let profile = self.library.profile(&profile).ok_or(Unserved::NotInstalled)?;
                Ok(serve_blob(&profile.kernel, "application/octet-stream", ticket))
            }
            // Not by its suffix: UEFI would take an .img for a disk image.
            Content::Ramdisk { profile } => {
                let profile = self.library.profile(&profile).ok_or(Unserved::NotInstalled)?;
                Ok(serve_blob(&profile.ramdisk, "application/octet-stream", ticket))
            }
            Content::ProfileFile { profile, file } => self.serve_profile_file(&profile, file, ticket),
            Content::IpxeScript { mac: named } => self.serve_script(peer, named, Reader::Ipxe, ticket, now),
            Content::PxelinuxConfig { mac: named } => {
                self.serve_script(peer, Some(named), Reader::Pxelinux, ticket, now)
            }
            Content::GrubConfig { mac: named } => self.serve_script(peer, named, Reader::Grub, ticket, now),
        }
    }

    fn refused(&self, reason: Unserved, peer: Ipv4Addr, name: &[u8]) -> Unserved {
        self.tally.count("content", reason.as_str());
        // Misses are normal (shim and GRUB search); they are no warning.
        let (name, word) = (printable(name), reason.as_str());
        if self.refusals.may_note(peer, self.clock.now()) {
            tracing::info!(ip = %peer, name, reason = word, "not served");
        } else {
            self.tally.count("content", "refusal-not-logged");
            tracing::debug!(ip = %peer, name, reason = word, "not served");
        }
        reason
    }

    fn record_miss(&self, mac: MacAddr, name: &[u8], transport: Transport, now: Timestamp) {
        if !self.misses.may_note(mac, now) {
            self.tally.count("content", "miss-not-recorded");
            return;
        }
        // A name of ours whose content is not there is no probe of a loader.
        let stage = namespace::canonical(name)
            .ok()
            .and_then(|name| namespace::resolve(&name, &self.loaders.load().table))
            .map(|content| namespace::stage_of(&content));
        let happening = Happening::File {
            transport,
            stage,
            name: printable(name),
            size: None,
            sent: 0,
            took_millis: 0,
            outcome: FileOutcome::NotFound,
            tftp: None,
        };
        self.registry.record(mac, happening, now);
    }
}

fn serve_blob(blob: &Blob, media_type: &'static str, ticket: Ticket) -> Served {
    Served {
        bytes: blob.bytes.clone(),
        file: blob.file.clone(),
        digest: Some(blob.digest),
        modified: Some(blob.modified),
        media_type,
        ticket: Ticket { size: blob.size, ..ticket },
        restraint: Restraint::default(),
    }
}

/// A name from the wire as it may be shown and kept: printable ASCII, at most 128 characters.
fn printable(name: &[u8]) -> String {
    /// Our own longest name has half of this.
    const SHOWN_MAX: usize = 128;
    name.escape_ascii().map(char::from).take(SHOWN_MAX).collect()
}
