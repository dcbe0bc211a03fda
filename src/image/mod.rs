//! Images: what nodes boot after their loader, and the loaders themselves.
//!
//! - [`digest`]: SHA-256 as a value; a blob's name and its ETag
//! - [`disk`]: disk images in chunks, for installing
//! - [`library`]: content-addressed blobs and the manifests that name them; what the boot plane serves
//! - [`loaders`]: the distribution's boot loaders, read once at start
//! - [`recipe`], [`package`], [`modules`], [`elf`], [`cpio`], [`ssh_server`]: the parts of building
//! - [`build`]: recipe → deploy kernel and ramdisk
//! - [`system`]: recipe → disk image of a whole system
//! - [`executable`]: whether a loader is revoked, and still what was signed
//! - [`fetch`]: boot loaders taken out of packages that are not installed
//!
//! What makes an image (recipe → kernel, modules, ramdisk) stands beside these and ends in
//! [`library::Library::publish`]. Serving never builds, building never serves.

pub mod build;
pub mod cpio;
pub mod digest;
pub mod disk;
pub mod elf;
pub mod executable;
pub mod fetch;
pub mod library;
pub mod loaders;
pub mod modules;
pub mod package;
pub mod recipe;
pub mod ssh_server;
pub mod system;
