//! The facts of a machine's disks that a rule is applied to: from sysfs, procfs and the disks' own ends, below any root.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::OFlag;

use crate::agent::collect;
use crate::agent::install::signatures::{ENDS, signatures};
use crate::node::install::disk_rule::{DiskFacts, Signature};

/// Every disk the inventory lists, looked at.
pub fn facts(root: &Path) -> Vec<DiskFacts> {
    let mounts = read(&root.join("proc/mounts"));
    let swaps = read(&root.join("proc/swaps"));
    collect::disks::disks(root)
        .into_iter()
        .map(|disk| {
            let directory = root.join("sys/block").join(&disk.name);
            DiskFacts {
                path: path_of(&directory, &disk.name),
                read_only: read(&directory.join("ro")).trim() == "1",
                in_use: in_use(&directory, &disk.name, &mounts, &swaps),
                carries: carries(&root.join("dev").join(&disk.name), disk.bytes),
                name: disk.name,
                model: disk.model,
                serial: disk.serial,
                bytes: disk.bytes,
                rotational: disk.rotational,
                removable: disk.removable,
            }
        })
        .collect()
}

/// Bytes of a sector, as the disk's own numbering and so its partition table count; 512 where sysfs does not say.
pub fn sector_bytes(root: &Path, name: &str) -> u64 {
    let file = root.join("sys/block").join(name).join("queue/logical_block_size");
    read(&file).trim().parse().unwrap_or(512)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn names(directory: &Path) -> Vec<String> {
    collect::names(directory)
}

/// The disk itself, or any partition of it.
fn in_use(directory: &Path, name: &str, mounts: &str, swaps: &str) -> Option<String> {
    // A partition is a directory in the disk's own, with a file that says its number.
    let partitions =
        names(directory).into_iter().filter(|entry| directory.join(entry).join("partition").exists());
    let parts: Vec<String> = std::iter::once(name.to_owned()).chain(partitions).collect();
    for part in &parts {
        let device = format!("/dev/{part}");
        let listed = |table: &str| {
            table
                .lines()
                .find(|line| line.split_ascii_whitespace().next() == Some(&device))
                .map(|line| line.split_ascii_whitespace().nth(1).unwrap_or_default().to_owned())
        };
        if let Some(place) = listed(mounts) {
            return Some(format!("{part} is mounted at {place}"));
        }
        if listed(swaps).is_some() {
            return Some(format!("{part} is swap space"));
        }
        let below = if part == name { directory.to_owned() } else { directory.join(part) };
        if let Some(holder) = names(&below.join("holders")).into_iter().next() {
            return Some(format!("{part} is a part of {holder}"));
        }
    }
    None
}

fn carries(device: &Path, bytes: u64) -> Vec<Signature> {
    match ends(device, bytes) {
        Ok((start, end)) => signatures(&start, &end, bytes),
        Err(_) => vec![Signature::Unreadable],
    }
}

fn ends(device: &Path, bytes: u64) -> io::Result<(Vec<u8>, Vec<u8>)> {
    // Not waiting: a drive without a medium answers at once.
    let file = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(device)?;
    let length = ENDS.min(bytes);
    let read = |at: u64| {
        let mut part = vec![0; length as usize];
        file.read_exact_at(&mut part, at).map(|()| part)
    };
    Ok((read(0)?, read(bytes - length)?))
}

/// Where a disk is plugged in, by the names that udev's `path_id` gives in `/dev/disk/by-path`.
///
/// Made from the path of its directory in sysfs: the last PCI function on it, then what comes behind.
fn path_of(directory: &Path, name: &str) -> Option<String> {
    let real = std::fs::canonicalize(directory).ok()?;
    let parts: Vec<&str> = real.iter().filter_map(|part| part.to_str()).collect();
    let pci = parts.iter().rposition(|part| is_pci_function(part))?;
    let below = &parts[pci + 1..];
    let above = |count: usize| real.iter().take(count).collect::<std::path::PathBuf>();
    let mut path = format!("pci-{}", parts[pci]);
    let number = |part: &str, prefix: &str| {
        part.strip_prefix(prefix)?.parse::<u32>().ok().map(|_| part[prefix.len()..].to_owned())
    };
    for (index, part) in below.iter().enumerate() {
        if let Some(port) = number(part, "ata") {
            // The kernel counts ports over all controllers, udev those of one.
            let file = above(pci + 2 + index).join("ata_port").join(part).join("port_no");
            let own = read(&file).trim().to_owned();
            return Some(format!("{path}-ata-{}", if own.is_empty() { port } else { own }));
        }
        if number(part, "nvme").is_some() {
            let own = read(&directory.join("nsid")).trim().to_owned();
            let namespace = if own.is_empty() { name.rsplit('n').next()?.to_owned() } else { own };
            return Some(format!("{path}-nvme-{namespace}"));
        }
        // The interface of a USB device: `1-2.1:1.0` is port 2.1, configuration 1, interface 0.
        if let Some((port, interface)) = part.split_once(':').filter(|(port, _)| is_usb_port(port)) {
            let port = port.split_once('-').map_or(port, |(_, port)| port);
            path.push_str(&format!("-usb-0:{port}:{interface}"));
        }
        if let Some((host, target)) = scsi_address(part) {
            // Hosts are numbered in the order they appeared; udev counts from the first of the same controller.
            let place = below.iter().position(|part| number(part, "host").is_some())?;
            let first = names(&above(pci + 1 + place))
                .iter()
                .filter_map(|entry| entry.strip_prefix("host")?.parse::<u32>().ok())
                .min()
                .unwrap_or(host);
            return Some(format!("{path}-scsi-{}:{target}", host.saturating_sub(first)));
        }
    }
    Some(path)
}

/// `0000:00:1f.2`
fn is_pci_function(part: &str) -> bool {
    let hexadecimal =
        |text: &str, length| text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut fields = part.split([':', '.']);
    let mut field = |length| fields.next().is_some_and(|field| hexadecimal(field, length));
    // Domains behind a volume management device have five or more digits.
    part.matches(':').count() == 2
        && part.split(':').next().is_some_and(|domain| domain.len() >= 4)
        && field(part.find(':').unwrap_or_default())
        && field(2)
        && field(2)
        && field(1)
}

fn is_usb_port(text: &str) -> bool {
    text.split_once('-').is_some_and(|(bus, port)| {
        bus.bytes().all(|byte| byte.is_ascii_digit())
            && !port.is_empty()
            && port.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
    })
}

/// `2:0:1:0` as host and the rest.
fn scsi_address(part: &str) -> Option<(u32, &str)> {
    let (host, rest) = part.split_once(':')?;
    let three = rest.split(':').count() == 3 && rest.split(':').all(|field| field.parse::<u64>().is_ok());
    three.then_some((host.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// A machine of plain files: each disk below the device path given, with its partitions.
    fn machine(disks: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("sys/block")).unwrap();
        fs::create_dir_all(root.path().join("dev")).unwrap();
        fs::create_dir_all(root.path().join("proc")).unwrap();
        for (name, device) in disks {
            let directory = root.path().join("sys/devices").join(device).join("block").join(name);
            fs::create_dir_all(directory.join("queue")).unwrap();
            fs::write(directory.join("size"), "8192\n").unwrap();
            symlink(&directory, root.path().join("sys/block").join(name)).unwrap();
            File::create(root.path().join("dev").join(name)).unwrap().set_len(8192 * 512).unwrap();
        }
        root
    }

    #[test]
    fn where_a_disk_is_plugged_in() {
        let root = machine(&[
            ("vda", "pci0000:00/0000:00:04.0/virtio1"),
            ("sda", "pci0000:00/0000:00:1f.2/ata5/host4/target4:0:0/4:0:0:0"),
            ("sdb", "pci0000:00/0000:00:05.0/virtio2/host7/target7:0:1/7:0:1:0"),
            ("sdc", "pci0000:00/0000:00:14.0/usb1/1-2/1-2.1/1-2.1:1.0/host9/target9:0:0/9:0:0:0"),
            ("nvme0n1", "pci0000:00/0000:00:1d.0/0000:03:00.0/nvme/nvme0"),
            ("nvme1n1", "pci0000:00/0000:00:0e.0/pci10000:e0/10000:e0:06.0/nvme/nvme1"),
            ("mmcblk0", "platform/soc/mmc0"),
        ]);
        let ata = root.path().join("sys/devices/pci0000:00/0000:00:1f.2/ata5/ata_port/ata5");
        fs::create_dir_all(&ata).unwrap();
        fs::write(ata.join("port_no"), "2\n").unwrap();
        fs::write(root.path().join("sys/block/nvme0n1/nsid"), "1\n").unwrap();
        let found = facts(root.path());
        let path = |name: &str| {
            let disk = found.iter().find(|disk| disk.name == name).unwrap_or_else(|| panic!("{name}"));
            disk.path.clone().unwrap_or_default()
        };
        for (name, wanted) in [
            ("vda", "pci-0000:00:04.0"),
            ("sda", "pci-0000:00:1f.2-ata-2"),
            ("sdb", "pci-0000:00:05.0-scsi-0:0:1:0"),
            ("sdc", "pci-0000:00:14.0-usb-0:2.1:1.0-scsi-0:0:0:0"),
            ("nvme0n1", "pci-0000:03:00.0-nvme-1"),
            ("nvme1n1", "pci-10000:e0:06.0-nvme-1"),
            ("mmcblk0", ""),
        ] {
            assert_eq!(path(name), wanted, "{name}");
        }
    }

    #[test]
    fn what_holds_a_disk() {
        let root = machine(&[("sda", "a"), ("sdb", "b"), ("sdc", "c"), ("sdd", "d"), ("sdaa", "aa")]);
        fs::write(root.path().join("proc/mounts"), "/dev/sda1 /mnt ext4 rw 0 0\n").unwrap();
        fs::write(root.path().join("proc/swaps"), "Filename Type\n/dev/sdb partition 1 0\n").unwrap();
        let partition = |disk: &str, name: &str| {
            let directory = root.path().join("sys/block").join(disk).join(name);
            fs::create_dir_all(directory.join("holders")).unwrap();
            fs::write(directory.join("partition"), "1").unwrap();
            directory
        };
        partition("sda", "sda1");
        fs::write(partition("sdc", "sdc1").join("holders/dm-0"), "").unwrap();
        fs::write(root.path().join("sys/block/sdd/ro"), "1\n").unwrap();
        let found = facts(root.path());
        let uses: Vec<_> = found.iter().map(|disk| disk.in_use.clone().unwrap_or_default()).collect();
        let wanted = ["sda1 is mounted at /mnt", "", "sdb is swap space", "sdc1 is a part of dm-0", ""];
        assert_eq!(uses, wanted);
        assert!(found[4].read_only && !found[0].read_only);
    }

    #[test]
    fn what_lies_on_a_disk() {
        let root = machine(&[("sda", "a"), ("sdb", "b"), ("sdc", "c")]);
        let write = |name: &str, at, bytes: &[u8]| {
            let disk = File::options().write(true).open(root.path().join("dev").join(name)).unwrap();
            disk.write_all_at(bytes, at).unwrap();
        };
        write("sdb", 8192 * 512 - 512, b"EFI PART");
        fs::remove_file(root.path().join("dev/sdc")).unwrap();
        let found: Vec<_> = facts(root.path()).into_iter().map(|disk| disk.carries).collect();
        assert_eq!(found, [vec![], vec![Signature::Gpt], vec![Signature::Unreadable]]);
    }
}
