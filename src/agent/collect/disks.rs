//! Disks: what `/sys/block` lists, without what the kernel makes up itself.

use std::path::Path;

use crate::agent::collect::dmi::meaningful;
use crate::agent::collect::{names, number};
use crate::node::inventory::Disk;

/// sysfs counts in these whatever the device's own block size is.
const SECTOR: u64 = 512;

/// Not disks: loop, RAM, device mapper, RAID and network block devices, optical and floppy drives.
const NOT_DISKS: &[&str] = &["loop", "ram", "zram", "dm-", "md", "nbd", "sr", "fd", "mtdblock", "drbd"];

pub fn disks(root: &Path) -> Vec<Disk> {
    let block = root.join("sys/block");
    names(&block)
        .into_iter()
        .filter(|name| !NOT_DISKS.iter().any(|prefix| made_of(name, prefix)))
        .filter_map(|name| disk(&block.join(&name), name))
        .collect()
}

/// `sr0` but not `srx`: prefix, then a number.
fn made_of(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix)
        .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
}

fn disk(directory: &Path, name: String) -> Option<Disk> {
    // One path of a multipath NVMe namespace; the namespace itself is listed as well.
    if number::<u8>(&directory.join("hidden")) == Some(1) {
        return None;
    }
    // A card reader without a card has size zero.
    let bytes = number::<u64>(&directory.join("size")).filter(|sectors| *sectors > 0)?.checked_mul(SECTOR)?;
    let flag = |file: &str| number::<u8>(&directory.join(file)) == Some(1);
    let read = |file: &str| {
        std::fs::read(directory.join(file))
            .ok()
            .and_then(|bytes| meaningful(&String::from_utf8_lossy(&bytes)))
    };
    Some(Disk {
        name,
        model: read("device/model"),
        // virtio has it on the block device, NVMe on the controller, SCSI and SATA in VPD page 0x80.
        serial: read("serial").or_else(|| read("device/serial")).or_else(|| vpd_serial(directory)),
        bytes,
        rotational: flag("queue/rotational"),
        removable: flag("removable"),
    })
}

/// SPC-4 §7.8.10: two bytes of type and page code, two of length, then the serial number.
fn vpd_serial(directory: &Path) -> Option<String> {
    let page = std::fs::read(directory.join("device/vpd_pg80")).ok()?;
    let length = usize::from(u16::from_be_bytes(*page.get(2..)?.first_chunk()?));
    let serial = page.get(4..)?;
    meaningful(&String::from_utf8_lossy(&serial[..length.min(serial.len())]))
}
