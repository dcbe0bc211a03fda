//! What part DHCP plays on the bridge, and how strictly: beside another server, observing, with RFC 2131's identity, behind
//! relays, for BOOTP. The real appliance on a real bridge; dnsmasq, a relay agent and packets made by hand around it.
//!
//! Names begin with the number of the acceptance check (`d_24_…`, `p_07_…`) where there is one.

mod bootp;
mod identity;
mod observe;
mod proxy;
mod relay;
#[path = "../it/support.rs"]
#[expect(dead_code, reason = "shared with the other black-box tests, which use more of it")]
mod support;
mod wire;
