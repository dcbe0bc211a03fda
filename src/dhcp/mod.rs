//! DHCPv4 for the bridge: RFC 2131 with the boot options of RFC 4578 and the PXE specification.
//!
//! - [`wire`]: bytes ↔ message; the only place that knows RFC field names and option numbers
//! - [`request`]: message → request in our words, or the reason it is refused
//! - [`server`]: `handle(request, what we know, now) → Outcome`; pure
//! - [`lease`]: pool, bindings, offers, quarantine; pure
//! - [`reply`]: where an answer goes (RFC 2131 §4.1) and what it carries
//! - [`address_book`]: which MAC has which address now, for TFTP and HTTP
//! - [`rivals`]: other servers, where we are not the one that gives the addresses
//! - [`network`]: bridge-bound sockets and the loop of the DHCP thread

pub mod address_book;
pub mod lease;
pub mod network;
pub mod reply;
pub mod request;
pub mod rivals;
pub mod server;
#[cfg(test)]
pub(crate) mod testing;
pub mod wire;
