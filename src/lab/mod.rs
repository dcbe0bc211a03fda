//! The lab: a bridge, the appliance on it, and machines that imitate bare metal, in a network namespace of their own.
//!
//! A *user* of the appliance: nothing outside this folder, its commands and the tests knows that there is a lab.
//!
//! - [`config`] reads `lab.toml`
//! - [`needs`], [`accel`]: what must be installed; KVM where it really works
//! - [`machine`], [`qmp`]: QEMU's arguments, and the machine's power switch
//! - [`plan`], [`topology`], [`supervisor`]: the process in the namespace and what it is told
//! - [`appliance`], [`launch`]: configuration for the appliance; starting and ending it all
//! - [`progress`], [`follow`], [`console`]: what the machines are doing, for people
//! - [`prepare`]: deploy image and loaders, made when missing
//! - [`state`], [`process`]: what is on disk, and which processes are ours

pub mod accel;
pub mod appliance;
pub mod config;
pub mod console;
pub mod follow;
pub mod launch;
pub mod machine;
pub mod needs;
pub mod plan;
pub mod prepare;
pub mod process;
pub mod progress;
pub mod qmp;
pub mod state;
pub mod supervisor;
pub mod topology;

pub use launch::{Lab, LabOptions, Services};
