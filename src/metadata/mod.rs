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
//! # What is wired where
//! The registry:
//! 1. implements [`source::MetadataSource`]. `grant` makes a [`document::Document`] of the intent's deployment and the node
//!    ([`document::Document::new`] with the intent's id, the node's name, the MAC it boots from, and
//!    `PhoneHome { server: network.address, token: PhoneHomeToken::of(&intent.nonce, intent.id) }`, then `ssh_keys`,
//!    `user_data`, `vendor_data`), and a [`gate::Grant`] with all the node's ports;
//! 2. keeps [`gate::Reads`] with the intent (it is serde; a new intent begins with `Reads::default()`), and writes it where
//!    [`gate::Grant::read`] returns `Some`;
//! 3. says [`gate::Phase::AwaitingFirstBoot`] from when a deployment is `Written` (where an installer is the deploy kernel,
//!    which reads its answers while it runs: from its boot) until the first boot has phoned home,
//!    [`gate::Phase::Active`] from then on until the next intent, and `Phase::None` else;
//! 4. answers the agent's `POST /agent/v1/seed` with [`document::Document::seed`]. That needs no note of a read: the
//!    agent has proved itself with its session, and the files go to the disk;
//! 5. parses what operators give when they give it: [`ssh_key::SshKey`], [`document::UserData`], [`document::HostName`].
//!
//! The composition root passes the registry on: `metadata_source` of `appliance.rs` returns
//! `Some(Arc::clone(registry) as Arc<dyn MetadataSource>)`. Everything behind it is wired: `BootService::with_metadata`, and
//! the listener on `169.254.169.254`, which `appliance/ground.rs` opens and the same service answers.
//!
//! A deploy kernel that is an installer gets [`installer::Kind::boot_arguments`] on its command line.

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
