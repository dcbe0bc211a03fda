//! Installed systems: what they are told of themselves, out of the registry, and that they have come up.

use std::net::Ipv4Addr;
use std::sync::Arc;

use crate::clock::Timestamp;
use crate::metadata::document::{Document, HostName, Installer, PhoneHome, PhoneHomeToken};
use crate::metadata::gate::{self, Answered, Grant, PhoneCall, PhoneRefusal, ReadRefusal, Reader, Secret};
use crate::metadata::source::MetadataSource;
use crate::net::MacAddr;
use crate::node::install::task::Seed;
use crate::node::registry::{Registry, SeedMaterial};
use crate::node::timeline::Happening;

/// The registry, as one that knows its own address.
pub(super) struct InstalledSystems {
    registry: Arc<Registry>,
    server: Ipv4Addr,
    installer: Installer,
}

impl InstalledSystems {
    pub(super) fn new(registry: Arc<Registry>, server: Ipv4Addr, installer: Installer) -> InstalledSystems {
        InstalledSystems { registry, server, installer }
    }

    /// What an installed system finds on its disk.
    pub(super) fn seed(&self, material: &SeedMaterial) -> Seed {
        self.document(material).seed()
    }

    fn document(&self, material: &SeedMaterial) -> Document {
        let SeedMaterial { node, intent, first_boot } = material;
        let port = node.ports.first().map_or(MacAddr([0; 6]), |port| port.mac);
        let host_name = node.name.as_ref().map_or_else(|| HostName::from(port), HostName::from);
        let token = PhoneHomeToken::of(&intent.nonce, intent.id);
        let phone_home = PhoneHome { server: self.server, token };
        Document {
            ssh_keys: first_boot.ssh_keys.clone(),
            user_data: first_boot.user_data.clone(),
            installer: self.installer.clone(),
            ..Document::new(intent.id, host_name, port, phone_home)
        }
    }
}

impl MetadataSource for InstalledSystems {
    fn grant(&self, mac: MacAddr, now: Timestamp) -> Option<(Arc<Document>, Grant)> {
        let material = self.registry.installed(mac, now)?;
        Some((Arc::new(self.document(&material)), material.grant()))
    }

    fn secret_read(
        &self,
        mac: MacAddr,
        secret: Secret,
        reader: Reader,
        now: Timestamp,
    ) -> Result<(), ReadRefusal> {
        self.registry.secret_read(mac, secret, reader, now)
    }

    fn phone_home(&self, mac: MacAddr, call: &PhoneCall, now: Timestamp) -> Result<Answered, PhoneRefusal> {
        let judge = |material: &SeedMaterial| {
            gate::phone_home(mac, &self.document(material), &material.grant(), call)
        };
        self.registry.call_home(mac, call.host_name.as_deref(), judge, now)
    }

    fn installer_done(
        &self,
        mac: MacAddr,
        call: &PhoneCall,
        now: Timestamp,
    ) -> Result<Answered, PhoneRefusal> {
        let judge = |material: &SeedMaterial| {
            gate::installer_done(mac, &self.document(material), &material.grant(), call)
        };
        self.registry.installer_done(mac, call.host_name.as_deref(), judge, now)
    }

    fn refused(&self, mac: MacAddr, reason: &'static str, now: Timestamp) {
        let happening = Happening::AgentRefused { reason: reason.to_owned(), token_issued_at: None };
        self.registry.record(mac, happening, now);
    }
}
