//! Memory installed: what the firmware's DMI tables say the slots hold; failing that, what its memory map hands to an
//! operating system; failing that, what the kernel has left of it.

use std::path::Path;

use crate::agent::collect::{dmi, names};

pub fn bytes(root: &Path) -> u64 {
    [dmi::installed_memory(root), memory_map(root), kernel_total(root)]
        .into_iter()
        .flatten()
        .find(|bytes| *bytes > 0)
        .unwrap_or(0)
}

fn memory_map(root: &Path) -> Option<u64> {
    let directory = root.join("sys/firmware/memmap");
    let address = |entry: &str, file: &str| {
        let text = std::fs::read_to_string(directory.join(entry).join(file)).ok()?;
        u64::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
    };
    let mut total = 0_u64;
    for entry in names(&directory) {
        let kind = std::fs::read_to_string(directory.join(&entry).join("type")).unwrap_or_default();
        if kind.trim() == "System RAM"
            && let (Some(start), Some(end)) = (address(&entry, "start"), address(&entry, "end"))
        {
            // `end` is the last byte, not the one after.
            total = total.saturating_add(end.saturating_sub(start).saturating_add(1));
        }
    }
    Some(total)
}

fn kernel_total(root: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let kib: u64 = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?
        .trim()
        .strip_suffix("kB")?
        .trim()
        .parse()
        .ok()?;
    kib.checked_mul(1024)
}
