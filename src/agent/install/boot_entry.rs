//! The firmware's own list of what to boot: an entry for the installed system, by efivarfs.
//!
//! UEFI 2.10 §3.1.3: `Boot####` is a load option, `BootOrder` lists them by number, `BootCurrent` is the one this boot
//! came from. The new entry stands right behind that one: the machine keeps netbooting first, and the appliance says
//! when it goes to its disk. Firmware that gives up on the network finds the disk next.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::agent::install::table::SystemPartition;

/// Below the root; absent on a machine that BIOS booted.
const DIRECTORY: &str = "sys/firmware/efi/efivars";
/// `EFI_GLOBAL_VARIABLE`.
const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";
/// What efivarfs puts before a variable's value: it is kept, and both firmware and systems see it.
const ATTRIBUTES: u32 = 0x7;
/// `LOAD_OPTION_ACTIVE`
const ACTIVE: u32 = 1;
/// Our entries are known by it, and replaced.
const OURS: &str = "farrier: ";
/// Letters of an image's name in the firmware's menu.
const NAME_MAX: usize = 48;
/// The path that removable media boot by; images have it, whatever they call themselves.
const LOADER: &str =
    if cfg!(target_arch = "aarch64") { "\\EFI\\BOOT\\BOOTAA64.EFI" } else { "\\EFI\\BOOT\\BOOTX64.EFI" };

/// Whether UEFI booted this machine.
pub fn has_firmware_variables(root: &Path) -> bool {
    root.join(DIRECTORY).is_dir()
}

/// Registers the installed system; returns the entry's name.
pub fn register(root: &Path, image: &str, partition: &SystemPartition) -> io::Result<String> {
    let variables = root.join(DIRECTORY);
    let options = load_options(&variables)?;
    let ours: Vec<u16> = options
        .iter()
        .filter(|(_, option)| description(option).is_some_and(|text| text.starts_with(OURS)))
        .map(|(number, _)| *number)
        .collect();
    let order = numbers(&value(&variables, "BootOrder")?.unwrap_or_default());
    let current = numbers(&value(&variables, "BootCurrent")?.unwrap_or_default()).first().copied();
    let number = ours
        .first()
        .copied()
        .or_else(|| (0..=u16::MAX).find(|number| !options.contains_key(number)))
        .ok_or_else(|| io::Error::other("all 65536 numbers of boot entries are taken"))?;
    let name = format!("Boot{number:04X}");
    set(&variables, &name, &load_option(image, partition))?;
    let ordered: Vec<u8> =
        placed(&order, number, current, &ours).into_iter().flat_map(u16::to_le_bytes).collect();
    set(&variables, "BootOrder", &ordered)?;
    // Only now: an order that names what is gone would be worse than an entry too many.
    for old in ours.iter().skip(1) {
        fs::remove_file(file(&variables, &format!("Boot{old:04X}")))?;
    }
    Ok(name)
}

/// Right behind the entry of this boot, or last; without other entries of ours.
fn placed(order: &[u16], number: u16, current: Option<u16>, ours: &[u16]) -> Vec<u16> {
    let mut placed: Vec<u16> =
        order.iter().copied().filter(|other| *other != number && !ours.contains(other)).collect();
    let behind =
        placed.iter().position(|other| Some(*other) == current).map_or(placed.len(), |place| place + 1);
    placed.insert(behind, number);
    placed
}

fn load_option(image: &str, partition: &SystemPartition) -> Vec<u8> {
    let name: String = image.chars().filter(|letter| !letter.is_control()).take(NAME_MAX).collect();
    let path = device_path(partition);
    let mut option = ACTIVE.to_le_bytes().to_vec();
    // Under a hundred bytes.
    option.extend((path.len() as u16).to_le_bytes());
    option.extend(utf16(&format!("{OURS}{name}")));
    option.extend(path);
    option
}

/// §10.3.5.1, a hard drive's partition; §10.3.5.4, a file; §10.3.1, the end.
fn device_path(partition: &SystemPartition) -> Vec<u8> {
    let node = |kind: u8, subtype: u8, data: &[u8]| {
        let length = (data.len() + 4) as u16;
        [&[kind, subtype], &length.to_le_bytes()[..], data].concat()
    };
    let drive = [
        &partition.number.to_le_bytes()[..],
        &partition.start_sector.to_le_bytes(),
        &partition.sectors.to_le_bytes(),
        // As it stands on the disk: the first three fields little-endian.
        &partition.guid.to_bytes_le(),
        // A GPT, and a signature that is a GUID.
        &[2, 2],
    ]
    .concat();
    [node(4, 1, &drive), node(4, 4, &utf16(LOADER)), node(0x7f, 0xff, &[])].concat()
}

/// With the zero that ends it.
fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect()
}

fn description(option: &[u8]) -> Option<String> {
    let letters = numbers(option.get(6..)?).into_iter().take_while(|letter| *letter != 0);
    Some(String::from_utf16_lossy(&letters.collect::<Vec<_>>()))
}

fn numbers(bytes: &[u8]) -> Vec<u16> {
    bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect()
}

fn file(variables: &Path, name: &str) -> PathBuf {
    variables.join(format!("{name}-{GLOBAL}"))
}

fn load_options(variables: &Path) -> io::Result<BTreeMap<u16, Vec<u8>>> {
    let mut options = BTreeMap::new();
    for entry in fs::read_dir(variables)? {
        let name = entry?.file_name();
        let Some(digits) = name
            .to_str()
            .and_then(|name| name.strip_suffix(GLOBAL)?.strip_suffix('-')?.strip_prefix("Boot"))
            .filter(|digits| digits.len() == 4)
        else {
            continue;
        };
        if let Ok(number) = u16::from_str_radix(digits, 16)
            && let Some(option) = value(variables, &format!("Boot{digits}"))?
        {
            options.insert(number, option);
        }
    }
    Ok(options)
}

/// Without its attributes; `None` if there is none.
fn value(variables: &Path, name: &str) -> io::Result<Option<Vec<u8>>> {
    match fs::read(file(variables, name)) {
        Ok(bytes) => Ok(bytes.get(4..).map(<[u8]>::to_vec)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// In one call, as efivarfs wants it; the variable is that value afterwards, whatever it was.
fn set(variables: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    let text = [&ATTRIBUTES.to_le_bytes()[..], value].concat();
    let mut target =
        fs::File::options().write(true).create(true).truncate(true).open(file(variables, name))?;
    match target.write(&text)? {
        written if written == text.len() => Ok(()),
        written => Err(io::Error::other(format!("{written} of {} bytes of {name} were taken", text.len()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition() -> SystemPartition {
        let guid = "11223344-5566-7788-99aa-bbccddeeff00".parse().unwrap();
        SystemPartition { number: 15, start_sector: 2048, sectors: 204_800, guid }
    }

    fn machine(variables: &[(&str, &[u8])]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join(DIRECTORY)).unwrap();
        for (name, bytes) in variables {
            set(&root.path().join(DIRECTORY), name, bytes).unwrap();
        }
        root
    }

    fn order(root: &Path) -> Vec<u16> {
        numbers(&value(&root.join(DIRECTORY), "BootOrder").unwrap().unwrap())
    }

    #[test]
    fn the_entry_stands_behind_the_one_that_netbooted() {
        let root = machine(&[
            ("BootOrder", &[0, 0, 1, 0, 2, 0]),
            ("BootCurrent", &[1, 0]),
            ("Boot0000", b"\x01\0\0\0\0\0U\0i\0\0\0"),
            ("Boot0001", b"\x01\0\0\0\0\0P\0X\0E\0\0\0"),
            ("Boot0002", b"\x01\0\0\0\0\0D\0\0\0"),
        ]);
        assert!(has_firmware_variables(root.path()));
        assert_eq!(register(root.path(), "debian-12", &partition()).unwrap(), "Boot0003");
        assert_eq!(order(root.path()), [0, 1, 3, 2]);
        // Again, for another image: the same entry.
        assert_eq!(register(root.path(), "small", &partition()).unwrap(), "Boot0003");
        assert_eq!(order(root.path()), [0, 1, 3, 2]);
        let option = value(&root.path().join(DIRECTORY), "Boot0003").unwrap().unwrap();
        assert_eq!(description(&option).as_deref(), Some("farrier: small"));
    }

    #[test]
    fn older_entries_of_ours_go_and_an_unknown_current_one_means_last() {
        let ours = load_option("old", &partition());
        let root = machine(&[("BootOrder", &[7, 0, 5, 0, 9, 0]), ("Boot0005", &ours), ("Boot0007", &ours)]);
        assert_eq!(register(root.path(), "new", &partition()).unwrap(), "Boot0005");
        assert_eq!(order(root.path()), [9, 5]);
        assert!(!file(&root.path().join(DIRECTORY), "Boot0007").exists());
    }

    #[test]
    fn a_load_option_is_laid_out_as_the_specification_says() {
        let option = load_option("x", &partition());
        let described = utf16("farrier: x").len();
        let path = &option[6 + described..];
        assert_eq!(usize::from(u16::from_le_bytes([option[4], option[5]])), path.len());
        assert_eq!(path[..8], [4, 1, 42, 0, 15, 0, 0, 0]);
        assert_eq!(path[24..32], [0x44, 0x33, 0x22, 0x11, 0x66, 0x55, 0x88, 0x77]);
        assert_eq!(path[40..42], [2, 2]);
        assert_eq!(path[path.len() - 4..], [0x7f, 0xff, 4, 0]);
    }
}
