//! farrier: a boot appliance that owns one Linux bridge.
//!
//! The parts, in reading order. Pure cores come first; they name no socket, file, clock or runtime.
//! ARCHITECTURE.md draws the picture and lists the invariants that tests hold.

pub mod clock;
pub mod telemetry;

pub mod config;

pub mod boot;
pub mod dhcp;
pub mod node;
pub mod tftp;

pub mod explain;
pub mod image;
pub mod metadata;
pub mod store;

pub mod bridge_log;
pub mod guard;
pub mod net;

pub mod bootplane;
pub mod operator;
pub mod page;

pub mod privileges;

pub mod appliance;

pub mod agent;
pub mod cli;
pub mod doctor;
pub mod lab;
pub mod storm;
