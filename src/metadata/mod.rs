//! Metadata: what an installed system reads of itself at its first boot, and how it says that it has come up.
//!
//! - [`document`]: one value per node, from which every format is rendered; [`ssh_key`]: the keys in it
//! - [`seed`]: NoCloud's files and our own small JSON; [`ec2`]: the tree of EC2; [`installer`]: preseed, kickstart,
//!   autoinstall
//! - [`gate`]: who may read what in which state, each secret once; pure
//! - [`session`]: session tokens as EC2's second version has them
//! - [`source`]: what the registry gives and is told; [`memory`]: the same without a disk
//!
//! The wire is [`bootplane::metadata`](crate::bootplane::metadata); `169.254.169.254` is
//! [`net::link_local`](crate::net::link_local).
//!
//! # Where it meets the rest
//! - `appliance/installed.rs` makes a [`document::Document`] of a node and its intent, and is the [`source::MetadataSource`];
//!   the agent's `POST /agent/v1/seed` is answered with [`document::Document::seed`]. That needs no note of a read: the agent
//!   has proved itself with its session, and the files go to the disk.
//! - `node/registry/install/first_call.rs` decides by [`gate`] under the registry's lock, and keeps [`gate::Reads`] beside the
//!   intent; a new one begins with none.
//! - [`gate::Phase::Installing`] is while a distribution's installer is at work, in its own boot and behind its port of the
//!   bridge; its kernel gets [`installer::Kind::boot_arguments`]. [`gate::Phase::AwaitingFirstBoot`] is from when a deployment
//!   is written until its system has phoned home, [`gate::Phase::Active`] from then on until the next intent.
//! - What operators give is parsed when they give it: [`ssh_key::SshKey`], [`document::UserData`], [`document::HostName`].

pub mod document;
pub mod ec2;
pub mod gate;
pub mod installer;
pub mod memory;
pub mod seed;
pub mod session;
pub mod source;
pub mod ssh_key;
#[cfg(test)]
mod testing;
