//! farrier: a boot appliance that owns one Linux bridge.
//!
//! The parts, in reading order. Pure cores come first; they name no socket, file, clock or runtime.
//! ARCHITECTURE.md draws the picture and lists the invariants that tests hold.
//!
//! `unsafe` is forbidden everywhere but in [`net`], which forbids it everywhere but in one file.

#[forbid(unsafe_code)]
pub mod clock;
#[forbid(unsafe_code)]
pub mod telemetry;

#[forbid(unsafe_code)]
pub mod config;

#[forbid(unsafe_code)]
pub mod boot;
#[forbid(unsafe_code)]
pub mod dhcp;
#[forbid(unsafe_code)]
pub mod node;
#[forbid(unsafe_code)]
pub mod tftp;

#[forbid(unsafe_code)]
pub mod explain;
#[forbid(unsafe_code)]
pub mod image;
#[forbid(unsafe_code)]
pub mod metadata;
#[forbid(unsafe_code)]
pub mod store;

#[forbid(unsafe_code)]
pub mod bridge_log;
#[forbid(unsafe_code)]
pub mod guard;
pub mod net;

#[forbid(unsafe_code)]
pub mod bootplane;
#[forbid(unsafe_code)]
pub mod operator;
#[forbid(unsafe_code)]
pub mod page;

#[forbid(unsafe_code)]
pub mod privileges;

#[forbid(unsafe_code)]
pub mod appliance;

#[forbid(unsafe_code)]
pub mod agent;
#[forbid(unsafe_code)]
pub mod cli;
#[forbid(unsafe_code)]
pub mod doctor;
#[forbid(unsafe_code)]
pub mod lab;
#[forbid(unsafe_code)]
pub mod storm;
