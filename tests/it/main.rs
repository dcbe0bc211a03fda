//! The appliance as its clients meet it: the real binary on a real bridge in a network namespace of its own, and
//! on the other end of the wire the programs people use: udhcpc, dhclient, atftp, tftp-hpa, busybox, curl.
//!
//! Each test runs in a process and a namespace of its own (see `support::in_namespace`), so that tests need neither
//! root nor cleaning up, and cannot reach the machine's network.

mod agent_install;
mod boot_contract;
mod bridge;
mod conflicts;
mod dhcp_clients;
mod disk_images;
mod doctor;
mod durability;
mod files;
mod guard;
mod operator;
mod profiles;
mod schema;
mod serve;
mod support;
