//! What takes privileges, opened before they are given up: the bridge's sockets and the operators'.
//!
//! A start that fails is to leave nothing behind, so this is also where everything is tried that can fail before the
//! state directory is made.

use std::net::TcpListener;
use std::path::Path;

use super::{StartError, loader_table};
use crate::boot::loader::LoaderTable;
use crate::config::{Config, DhcpMode, MetadataConfig, NetworkConfig};
use crate::dhcp;
use crate::net::bridge::Bridge;
use crate::net::link_local::{self, LinkLocal};
use crate::net::neighbours;
use crate::operator::{HandedOver, Listeners};
use crate::privileges::{self, Confinement, Keeper, Reach};
use crate::store::place;
use crate::tftp;

/// Port of the HTTP boot plane; firmware knows no other.
pub(super) const HTTP_PORT: u16 = 80;

/// Where files are asked for.
pub(super) struct FileDoors {
    pub(super) tftp: tftp::network::Doors,
    pub(super) http: TcpListener,
    /// 169.254.169.254, if it is wanted and can be had.
    pub(super) link_local: Option<TcpListener>,
}

impl FileDoors {
    fn open(bridge: &Bridge, metadata: MetadataConfig, user: Option<&str>) -> Result<FileDoors, StartError> {
        let taken = |service| move |source| StartError::Service { service, source };
        Ok(FileDoors {
            tftp: tftp::network::Doors::open(bridge).map_err(taken("TFTP"))?,
            http: bridge.tcp_listener(HTTP_PORT).map_err(taken("HTTP"))?,
            link_local: if metadata.ec2 { open_link_local(bridge, &Keeper::prepare(user)?) } else { None },
        })
    }
}

/// Serving goes on without it: NoCloud, and EC2's tree at our own address, are there all the same.
fn open_link_local(bridge: &Bridge, keeper: &Keeper) -> Option<TcpListener> {
    let way_out = "write ec2 = false under [metadata] if no node needs it";
    if let Err(error) = LinkLocal::put_on(&bridge.name, || keeper.confine()) {
        tracing::warn!("{error}; {way_out}");
        return None;
    }
    let listener = bridge.link_local_listener(HTTP_PORT);
    listener
        .map_err(|error| tracing::warn!("nobody can listen on {}: {error}; {way_out}", link_local::ADDRESS))
        .ok()
}

/// Everything an [`super::Appliance`] stands on.
pub struct Ground {
    pub(super) bridge: Bridge,
    pub(super) table: LoaderTable,
    pub(super) dhcp: dhcp::network::Doors,
    /// Absent where we only observe.
    pub(super) files: Option<FileDoors>,
    pub(super) listeners: Listeners,
    pub(super) confinement: Confinement,
}

impl Ground {
    /// Opens what the configuration names and gives up what serving does not take. Must be called while the process has
    /// one thread: what is given up is given up by this thread and by those it makes.
    pub fn open(config: &Config, config_file: &Path, handed: HandedOver) -> Result<Ground, StartError> {
        let NetworkConfig { bridge, address, allow, .. } = &config.network;
        let bridge = Bridge::admit(bridge, *address, *allow)?;
        neighbours::warn_if_below(config.dhcp.pool.size());
        let table = loader_table(config)?;
        let listeners = Listeners::open(config, handed).map_err(StartError::Operator)?;
        place::check(&config.store.path)?;
        let dhcp = dhcp::network::Doors::open(&bridge).map_err(StartError::Dhcp)?;
        let files = match config.dhcp.mode {
            DhcpMode::Server | DhcpMode::Proxy => {
                Some(FileDoors::open(&bridge, config.metadata, config.user.as_deref())?)
            }
            DhcpMode::Observe => None,
        };
        let loaders = table.files().map(|file| file.path.clone()).collect();
        let confinement = privileges::give_up(&Reach { config, config_file, loaders })?;
        // Root may write anywhere; whoever we are now may not.
        place::check(&config.store.path)?;
        Ok(Ground { bridge, table, dhcp, files, listeners, confinement })
    }
}
