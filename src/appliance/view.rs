//! What the operator plane sees of the running appliance.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::bridge_watch::{Objection, fault_of};
use super::ground::HTTP_PORT;
use crate::boot::loader::LoaderTable;
use crate::bootplane::content::BootContent;
use crate::bootplane::profiles::ProfileDesk;
use crate::config::{Config, DhcpMode};
use crate::dhcp::lease::PoolUse;
use crate::dhcp::network::DhcpHandle;
use crate::dhcp::rivals::OtherServer;
use crate::explain::DeployImage;
use crate::guard::Guard;
use crate::image::digest::Digest;
use crate::image::disk::shelf::{DiskImage, DiskShelf};
use crate::image::executable::Signature;
use crate::image::library::{BlobRef, Library};
use crate::net;
use crate::net::MacAddr;
use crate::net::bridge::Bridge;
use crate::net::link::Link;
use crate::operator::api::{
    BridgeStatus, DiskImageEntry, ImageEntry, ImageStatus, ProcessStatus, RivalStatus, ServiceStatus,
    StoreStatus,
};
use crate::operator::sparing::Sparing;
use crate::operator::views::{self, Leases};
use crate::operator::{ApplianceView, PageAddress, Premises, WantedImage};
use crate::privileges::Confinement;
use crate::store::sqlite::SqliteStore;

pub(super) struct View {
    pub(super) bridge: Bridge,
    /// Where operators are served by TCP.
    pub(super) page: Option<PageAddress>,
    pub(super) config: Arc<ArcSwap<Config>>,
    pub(super) store: Arc<SqliteStore>,
    pub(super) library: Arc<Library>,
    pub(super) disks: Arc<DiskShelf>,
    pub(super) dhcp: Arc<DhcpHandle>,
    pub(super) leases: Sparing<Leases>,
    pub(super) pool_use: Sparing<PoolUse>,
    pub(super) content: Arc<BootContent>,
    pub(super) profiles: Arc<ProfileDesk>,
    pub(super) confinement: Confinement,
    pub(super) guard: Arc<Guard>,
    pub(super) objection: Arc<Objection>,
}

impl ApplianceView for View {
    fn bridge(&self) -> BridgeStatus {
        let found = self.bridge.state();
        BridgeStatus {
            name: self.bridge.name.to_string(),
            address: self.bridge.address.to_string(),
            up: found.is_ok(),
            reason: found.as_ref().err().map(ToString::to_string),
            objection: self.objection.load().as_deref().cloned(),
            // A bridge made anew has another MAC.
            mac: found.map_or(self.bridge.mac, |bridge| bridge.mac),
        }
    }

    fn services(&self) -> Vec<ServiceStatus> {
        // Without the bridge, with it down or without our address, nothing can be served.
        let up = self.bridge.state().is_ok();
        let ip = self.bridge.ip();
        let bridge = &self.bridge.name;
        let service =
            |name: &str, listens: String, running| ServiceStatus { name: name.to_owned(), listens, running };
        let config = self.config.load();
        let dhcp = |part| service("dhcp", format!("{bridge}, UDP 67 and 4011{part}"), up);
        let files = || {
            vec![
                service("tftp", format!("{ip}, UDP 69"), up),
                service("http", format!("{ip}, TCP {HTTP_PORT}"), up),
                service("router-advertisement", format!("{bridge}, ICMPv6"), up),
            ]
        };
        let mut services = match config.dhcp.mode {
            DhcpMode::Server => [vec![dhcp("")], files()].concat(),
            DhcpMode::Proxy => [vec![dhcp(", as a proxy")], files()].concat(),
            DhcpMode::Observe => vec![dhcp(", listening only")],
        };
        services.push(service("operator", config.operator.socket.display().to_string(), true));
        if let Some(page) = &self.page {
            services.push(service("page", page.to_string(), true));
        }
        services
    }

    fn rivals(&self) -> Vec<RivalStatus> {
        let held = self.guard.holds();
        let told = |rival| views::rival(rival, &self.bridge.name, held);
        self.guard.rivals().into_iter().map(told).collect()
    }

    fn image(&self) -> ImageStatus {
        let profile = self.config.load().boot.profile.clone();
        ImageStatus { present: self.library.profile(&profile).is_some(), profile }
    }

    fn store(&self) -> StoreStatus {
        let path: PathBuf = self.config.load().store.path.join("farrier.db");
        let stats = self.store.stats();
        StoreStatus {
            path: path.display().to_string(),
            last_error: stats.last_error,
            commits: stats.commits,
            batches: stats.batches,
            changes: stats.changes,
            failed_commits: stats.failed_commits,
            queued: stats.queued,
            largest_group: stats.largest_group,
            last_commit_micros: stats.last_commit_micros,
        }
    }

    fn process(&self) -> ProcessStatus {
        let Confinement { user, capabilities, no_new_privileges, landlock, seccomp } =
            self.confinement.clone();
        ProcessStatus { user, capabilities, no_new_privileges, landlock, seccomp }
    }

    fn leases(&self) -> Arc<Leases> {
        self.leases.get(|| Leases::new(self.dhcp.leases()))
    }

    fn pool_use(&self) -> PoolUse {
        *self.pool_use.get(|| self.dhcp.pool_use())
    }

    fn other_servers(&self) -> Vec<OtherServer> {
        self.dhcp.other_servers()
    }

    fn disk_images(&self) -> Vec<DiskImageEntry> {
        let entry = |image: &Arc<DiskImage>| DiskImageEntry {
            name: image.name.clone(),
            description: image.description.clone(),
            source: image.source.clone(),
            imported_at: image.imported_at,
            bytes: image.manifest.bytes,
            filled_bytes: image.manifest.filled_bytes(),
            stored_bytes: image.manifest.stored_bytes(),
            sha256: image.manifest.sha256.to_string(),
            manifest: image.manifest_blob.digest.to_string(),
        };
        self.disks.list().iter().map(entry).collect()
    }

    fn disk_image(&self, name: &str) -> Option<WantedImage> {
        let image = self.disks.get(name)?;
        let BlobRef { digest, bytes } = image.manifest_blob;
        Some(WantedImage { manifest: digest, manifest_bytes: bytes, bytes: image.manifest.bytes })
    }

    fn pin_image(&self, manifest: Digest) -> Result<(), String> {
        self.disks.pin(manifest).map_err(|error| error.to_string())
    }

    fn images(&self) -> Vec<ImageEntry> {
        views::images(&self.library, &self.config.load().boot.profile)
    }

    fn premises(&self, mac: Option<MacAddr>) -> Premises {
        let fault = fault_of(self.bridge.state().err().as_ref());
        let link = Link::find(&self.bridge.name.0).ok().flatten();
        let ports = link.and_then(|link| net::ports::of_bridge(link.index, mac).ok()).unwrap_or_default();
        Premises { fault, ports }
    }

    fn neighbour(&self, address: Ipv4Addr) -> Option<MacAddr> {
        net::ports::neighbour(address).ok().flatten()
    }

    fn kernel_altered(&self) -> bool {
        let profile = self.library.profile(&self.config.load().boot.profile);
        profile.is_some_and(|profile| profile.kernel_signature == Signature::Broken)
    }

    fn loader_table(&self) -> Arc<LoaderTable> {
        Arc::new(self.content.loaders().table.clone())
    }

    fn boot_profiles(&self) -> Option<Arc<ProfileDesk>> {
        Some(Arc::clone(&self.profiles))
    }

    fn deploy_image(&self) -> Option<DeployImage> {
        let profile = self.library.profile(&self.config.load().boot.profile)?;
        Some(DeployImage {
            arguments: profile.arguments.clone(),
            kernel_bytes: profile.kernel.size,
            ramdisk_bytes: profile.ramdisk.size,
        })
    }
}
