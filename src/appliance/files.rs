//! What answers on the bridge beside DHCP: TFTP, HTTP with all that machines and installed systems call, and router
//! advertisements.

use std::net::TcpListener;
use std::sync::Arc;

use crate::bootplane;
use crate::bootplane::agent_calls::{AgentCalls, InstallParts, SeedOf};
use crate::bootplane::content::BootContent;
use crate::bootplane::limits::Limits;
use crate::bootplane::metadata::MetadataCalls;
use crate::bootplane::network::{BootPlaneHandle, BootPlaneParts};
use crate::bootplane::service::BootService;
use crate::clock::Clock;
use crate::config::MetadataConfig;
use crate::dhcp::address_book::AddressBook;
use crate::image::disk::shelf::DiskShelf;
use crate::metadata::document::Installer;
use crate::metadata::source::MetadataSource;
use crate::net;
use crate::net::bridge::Bridge;
use crate::net::link_thread::LinkThread;
use crate::node::registry::Registry;
use crate::telemetry::Tally;
use crate::tftp;
use crate::tftp::network::TftpHandle;

use super::StartError;
use super::door;
use super::ground::FileDoors;
use super::installed::InstalledSystems;

/// What answers on the bridge beside DHCP.
pub(super) struct FileServices {
    pub(super) tftp: TftpHandle,
    pub(super) http: BootPlaneHandle,
    pub(super) door: LinkThread,
    pub(super) advertiser: LinkThread,
}

/// What they answer from.
pub(super) struct FileParts {
    pub(super) content: Arc<BootContent>,
    pub(super) disks: Arc<DiskShelf>,
    pub(super) registry: Arc<Registry>,
    pub(super) addresses: Arc<AddressBook>,
    pub(super) metadata: MetadataConfig,
    pub(super) installer: Installer,
    pub(super) tally: Arc<Tally>,
    pub(super) clock: Clock,
}

pub(super) fn serve_files(
    doors: FileDoors,
    bridge: &Bridge,
    parts: FileParts,
) -> Result<FileServices, StartError> {
    let failed = |service| move |source| StartError::Service { service, source };
    let FileDoors { tftp, http: listener, link_local } = doors;
    let FileParts { content, disks, registry, addresses, metadata, installer, tally, clock } = parts;
    let tftp = tftp::network::start(bridge.clone(), tftp, Arc::clone(&content) as _, Arc::clone(&tally))
        .map_err(failed("TFTP"))?;
    let again = [Some(&listener), link_local.as_ref()].into_iter().flatten().map(TcpListener::try_clone);
    let listeners = again.collect::<Result<_, _>>().map_err(failed("HTTP"))?;
    let door = door::keep(bridge.clone(), listeners).map_err(failed("HTTP"))?;
    let systems = Arc::new(InstalledSystems::new(Arc::clone(&registry), bridge.ip(), installer));
    let source = Arc::clone(&systems) as Arc<dyn MetadataSource>;
    let metadata = MetadataCalls::new(source, Arc::clone(&addresses), Arc::clone(&tally), clock, metadata)
        .map_err(|error| StartError::Service { service: "metadata", source: error.into() })?;
    let seeds: SeedOf = Arc::new(move |material| systems.seed(material));
    let agents = AgentCalls::new(
        registry,
        addresses,
        Arc::clone(&tally),
        clock,
        InstallParts { disks: Some(disks), seeds },
    );
    let limits = Limits::default();
    let service =
        BootService::new(content, agents, Arc::clone(&tally), clock, &limits).with_metadata(metadata);
    let parts = BootPlaneParts {
        subnet: bridge.address,
        link_local,
        service: Arc::new(service),
        tally: Arc::clone(&tally),
        limits,
    };
    let http = bootplane::network::start(listener, parts).map_err(failed("HTTP"))?;
    let advertiser = net::advertise::start(bridge.clone(), tally).map_err(failed("router advertisement"))?;
    Ok(FileServices { tftp, http, door, advertiser })
}
