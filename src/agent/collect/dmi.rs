//! What the firmware says about the machine: the kernel's reading of DMI, and memory sizes from the tables themselves.

use std::path::Path;

use uuid::Uuid;

use crate::agent::collect::{text, tidy};
use crate::node::inventory::System;

/// DMI structure type "Memory Device" (DMTF DSP0134 §7.18).
const MEMORY_DEVICE: u8 = 17;
const END_OF_TABLE: u8 = 127;

/// What vendors leave in fields they did not fill in.
const PLACEHOLDERS: &[&str] = &[
    "to be filled by o.e.m.",
    "default string",
    "not specified",
    "not applicable",
    "system serial number",
    "system product name",
    "system manufacturer",
    "system version",
    "none",
    "n/a",
    "0",
    "0123456789",
];

pub fn system(root: &Path) -> System {
    let field = |name: &str| {
        text(&root.join("sys/class/dmi/id").join(name))
            .filter(|value| !PLACEHOLDERS.contains(&value.to_ascii_lowercase().as_str()))
    };
    System {
        vendor: field("sys_vendor"),
        product: field("product_name"),
        version: field("product_version"),
        serial: field("product_serial"),
        // The kernel prints it with the byte order of SMBIOS 2.6 already undone (dmi_save_uuid).
        uuid: field("product_uuid").and_then(|text| Uuid::try_parse(&text).ok()).filter(is_set),
        bios_vendor: field("bios_vendor"),
        bios_version: field("bios_version"),
        bios_date: field("bios_date"),
    }
}

/// All zeros and all ones mean "not set" (DSP0134 §7.2.1).
fn is_set(uuid: &Uuid) -> bool {
    !uuid.is_nil() && !uuid.is_max()
}

/// Sum of all memory devices, or `None` when the tables are absent or name no size.
pub fn installed_memory(root: &Path) -> Option<u64> {
    let table = std::fs::read(root.join("sys/firmware/dmi/tables/DMI")).ok()?;
    let total = structures(&table)
        .filter(|structure| structure[0] == MEMORY_DEVICE)
        .filter_map(memory_device_bytes)
        .fold(0_u64, u64::saturating_add);
    (total > 0).then_some(total)
}

/// Formatted areas of all structures: type, length, handle, fields. Stops at anything malformed.
fn structures(table: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = table;
    std::iter::from_fn(move || {
        let length = usize::from(*rest.get(1)?);
        let formatted = rest.get(..length).filter(|_| length >= 4)?;
        if formatted[0] == END_OF_TABLE {
            return None;
        }
        // Strings follow, each with a zero, and one zero more ends them.
        let strings = rest.get(length..)?;
        let end = strings.windows(2).position(|pair| pair == [0, 0])? + 2;
        rest = &strings[end..];
        Some(formatted)
    })
}

fn memory_device_bytes(structure: &[u8]) -> Option<u64> {
    let size = u16::from_le_bytes(*structure.get(0x0c..)?.first_chunk()?);
    match size {
        // Empty slot, or unknown.
        0 | 0xffff => None,
        // Too large for 16 bits: megabytes at offset 0x1c, bit 31 reserved.
        0x7fff => {
            let megabytes = u32::from_le_bytes(*structure.get(0x1c..)?.first_chunk()?) & 0x7fff_ffff;
            Some(u64::from(megabytes) << 20)
        }
        // Bit 15: kilobytes instead of megabytes.
        kilobytes if kilobytes & 0x8000 != 0 => Some(u64::from(kilobytes & 0x7fff) << 10),
        megabytes => Some(u64::from(megabytes) << 20),
    }
}

/// A serial number or model as the kernel hands it over, without the placeholders.
pub fn meaningful(value: &str) -> Option<String> {
    tidy(value).filter(|value| !PLACEHOLDERS.contains(&value.to_ascii_lowercase().as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn device(size: u16, extended: u32) -> Vec<u8> {
        let mut bytes = vec![MEMORY_DEVICE, 0x28, 0, 0x11];
        bytes.resize(0x28, 0);
        bytes[0x0c..0x0e].copy_from_slice(&size.to_le_bytes());
        bytes[0x1c..0x20].copy_from_slice(&extended.to_le_bytes());
        bytes.extend(b"DIMM 0\0QEMU\0\0");
        bytes
    }

    #[test]
    fn every_size_encoding_is_summed() {
        let mut table = vec![0, 4, 0, 0, 0, 0];
        for (size, extended) in [(1024, 0), (0x8000 | 512, 0), (0x7fff, 65_536), (0, 0), (0xffff, 0)] {
            table.extend(device(size, extended));
        }
        table.extend([END_OF_TABLE, 4, 0, 0, 0, 0]);
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("sys/firmware/dmi/tables");
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("DMI"), &table).unwrap();
        assert_eq!(installed_memory(root.path()), Some((1024 << 20) + (512 << 10) + (65_536 << 20)));
    }

    proptest! {
        #[test]
        fn no_table_panics(table in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = structures(&table).filter_map(memory_device_bytes).count();
        }
    }
}
