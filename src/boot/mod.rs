//! What a machine boots, and why: pure functions from who asks to what it gets.
//!
//! - [`client`]: who is asking, read from DHCP options 60, 77, 93, 94, 97 and 175
//! - [`decision`]: (client, what we know of the machine, policy) → [`decision::BootPlan`]; the only place that chooses
//! - [`loader`]: firmware → boot loader → where the distribution keeps it (`pxe/loaders.toml`)
//! - [`namespace`]: every name a node may ask for, by TFTP or HTTP, and the content it stands for
//! - [`profile`]: what a node boots that is not our ramdisk, who is to boot it, and whether its firmware can
//! - [`quirks`]: what a node's firmware has to be humoured in
//! - [`script`]: iPXE and GRUB text rendered from typed values

pub mod client;
pub mod decision;
pub mod loader;
pub mod namespace;
pub mod profile;
pub mod quirks;
pub mod script;
