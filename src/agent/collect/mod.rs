//! The inventory: what sysfs, procfs and the DMI tables say about this machine.
//!
//! Everything is read below a root directory, so that tests read fixture trees. Nothing here fails: what cannot be
//! read is left out, since half an inventory enrolls a machine and an error does not.

pub mod cpu;
pub mod disks;
pub mod dmi;
pub mod memory;
pub mod nics;

use std::path::Path;

use nix::mount::{MsFlags, mount};

use crate::agent::console::uptime;
use crate::node::inventory::{BootedBy, DISKS_MAX, Inventory, NICS_MAX, TEXT_MAX};

/// `SecureBoot` under the EFI global variable GUID (UEFI 2.10 §3.3): four bytes of attributes, then 0 or 1.
const SECURE_BOOT: &str = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";

const EFIVARS: &str = "/sys/firmware/efi/efivars";
const EFIVARS_FLAGS: MsFlags =
    MsFlags::MS_RDONLY.union(MsFlags::MS_NOSUID).union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

pub fn inventory(root: &Path) -> Inventory {
    let mut disks = disks::disks(root);
    disks.truncate(DISKS_MAX);
    let mut nics = nics::nics(root);
    nics.truncate(NICS_MAX);
    Inventory {
        system: dmi::system(root),
        cpu: cpu::cpu(root),
        memory_bytes: memory::bytes(root),
        disks,
        nics,
        uptime_secs: uptime(root),
        kernel: text(&root.join("proc/sys/kernel/osrelease")).unwrap_or_default(),
        booted_by: booted_by(root),
    }
}

fn booted_by(root: &Path) -> BootedBy {
    if !root.join("sys/firmware/efi").exists() {
        return BootedBy::Bios;
    }
    match std::fs::read(root.join(SECURE_BOOT)).as_deref() {
        Ok([_, _, _, _, 1, ..]) => BootedBy::UefiSecureBoot,
        Ok(_) | Err(_) => BootedBy::Uefi,
    }
}

/// Makes [`SECURE_BOOT`] readable. Read-only: a ramdisk has no business changing firmware settings, but for the entry
/// of a system it installed.
pub fn mount_efivars() {
    // Without it the machine counts as booted by UEFI without Secure Boot.
    let _ = mount(Some("efivarfs"), EFIVARS, Some("efivarfs"), EFIVARS_FLAGS, None::<&str>);
}

/// Lets firmware variables be changed, and no longer.
pub fn unlock_efivars(unlock: bool) {
    let locked = EFIVARS_FLAGS | MsFlags::MS_REMOUNT;
    let flags = if unlock { locked - MsFlags::MS_RDONLY } else { locked };
    // Where it fails, so does the write, which says so.
    let _ = mount(None::<&str>, EFIVARS, None::<&str>, flags, None::<&str>);
}

/// A file's text without surrounding space and control characters, bounded; `None` if it is absent or empty.
fn text(path: &Path) -> Option<String> {
    let bytes = std::fs::read(path).ok()?;
    tidy(&String::from_utf8_lossy(&bytes))
}

fn tidy(text: &str) -> Option<String> {
    let clean: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>().trim().to_owned();
    let kept: String = clean.chars().take(TEXT_MAX).collect();
    (!kept.is_empty()).then_some(kept)
}

fn number<N: std::str::FromStr>(path: &Path) -> Option<N> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Names in a directory, sorted, so that an inventory lists things in the same order each time.
pub fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .map(|entries| entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
        .unwrap_or_default();
    names.sort();
    names
}

#[cfg(test)]
mod tests;
