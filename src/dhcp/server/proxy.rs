//! ProxyDHCP (PXE 2.1 §2.2): boot data beside another server's addresses.
//!
//! The offer has no address and names option 60 "PXEClient" with option 43 "just use the boot file", so that firmware
//! takes the file from it and need not ask port 4011; who asks there all the same is answered. iPXE, whose wait for
//! proxy offers ends with the first, gets the URL of its script as its boot file; HTTP Boot firmware a URL and
//! "HTTPClient".

use crate::dhcp::request::MessageKind;
use crate::dhcp::server::handling::Visit;
use crate::dhcp::server::{DhcpServer, Reply, ReplyKind, Silence};

impl DhcpServer {
    /// What port 67 gets, unless it is meant for port 4011.
    pub(super) fn proxy(&self, visit: &Visit<'_>) -> Result<Reply, Silence> {
        let request = visit.request;
        match request.kind {
            MessageKind::Discover if request.server.is_some() => Err(Silence::DiscoverNamesServer),
            MessageKind::Discover if !request.class.wants_boot() => Err(Silence::NotABootClient),
            MessageKind::Discover => {
                let destination = visit.destination(ReplyKind::Offer, None);
                let draft = self.draft(visit, ReplyKind::Offer, destination);
                if draft.boot_file.is_none() { Err(Silence::NothingToBoot) } else { Ok(draft.compose()) }
            }
            MessageKind::Inform if request.class.wants_boot() => self.boot_server(visit),
            MessageKind::Inform => Err(Silence::NotABootClient),
            MessageKind::Bootp => Err(Silence::Bootp),
            MessageKind::Request | MessageKind::Decline | MessageKind::Release => {
                Err(Silence::AddressElsewhere)
            }
        }
    }
}
