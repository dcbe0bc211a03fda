//! A rule applied to the disks of a machine: the one it means, or why not, disk by disk.
//!
//! What a rule means depends on what the disks *are*, never on what is on them: a disk that carries data, or is in use,
//! does not make the next one the smallest. Otherwise a system disk that was forgotten to be wiped would send an
//! install to a data disk that happens to be empty.

use std::cmp::Reverse;
use std::fmt;

use crate::node::install::disk_rule::{Condition, DiskRule, Field, Flag, Pattern, Preference};
use crate::node::install::task::TargetDisk;

/// A disk as the agent finds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskFacts {
    /// Kernel name, e.g. `vda`.
    pub name: String,
    pub model: Option<String>,
    pub serial: Option<String>,
    /// As in `/dev/disk/by-path`, without the directory.
    pub path: Option<String>,
    pub bytes: u64,
    pub rotational: bool,
    pub removable: bool,
    pub read_only: bool,
    /// What holds it: `mounted at /mnt`, `swap`, `dm-0`.
    pub in_use: Option<String>,
    /// What was found at its start and end.
    pub carries: Vec<Signature>,
}

/// What tells that a disk carries data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signature {
    Gpt,
    Mbr,
    Ext,
    Xfs,
    Btrfs,
    F2fs,
    Fat,
    Exfat,
    Ntfs,
    Iso9660,
    Squashfs,
    Swap,
    Luks,
    Lvm,
    MdRaid,
    /// Of a RAID controller or a firmware's own format.
    FirmwareRaid,
    Bcache,
    Zfs,
    /// Nothing known, but not zero either.
    Unknown,
    /// It could not be read; what cannot be looked at is not overwritten unasked.
    Unreadable,
}

/// What the disk is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// One disk of at least so many bytes; one that carries data only with `wipe`.
    Write { needed: u64, wipe: bool },
    /// One disk, or all of them.
    Clean,
}

/// Why a disk is not the one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    Unmatched {
        condition: String,
    },
    Removable,
    ReadOnly,
    TooSmall {
        by: u64,
    },
    InUse {
        by: String,
    },
    CarriesData {
        what: Vec<Signature>,
    },
    /// It and others are what the rule names.
    Ambiguous {
        with: Vec<String>,
    },
    /// It would do, but the rule means another, which is refused.
    NotPreferred {
        preferred: String,
    },
    /// The task began with another disk.
    NotBegunOn,
}

/// No disk was chosen, and why not each of those that are there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct NoDisk {
    /// The rule, or the disk that the task began with.
    pub wanted: String,
    pub disks: Vec<(String, u64, Reason)>,
}

impl DiskRule {
    /// Indexes into `disks`: exactly one for [`Purpose::Write`], at least one otherwise.
    pub fn choose(&self, disks: &[DiskFacts], purpose: Purpose) -> Result<Vec<usize>, NoDisk> {
        let mut reasons: Vec<Option<Reason>> =
            disks.iter().map(|disk| self.unfit(disk, purpose).err()).collect();
        let mut fit: Vec<usize> = (0..disks.len()).filter(|index| reasons[*index].is_none()).collect();
        let no_disk = |reasons: Vec<Option<Reason>>, preferred: &str| NoDisk {
            wanted: self.to_string(),
            disks: disks
                .iter()
                .zip(reasons)
                .map(|(disk, reason)| {
                    let preferred = preferred.to_owned();
                    let reason = reason.unwrap_or(Reason::NotPreferred { preferred });
                    (disk.name.clone(), disk.bytes, reason)
                })
                .collect(),
        };
        let names = |of: &[usize]| of.iter().map(|index| disks[*index].name.clone()).collect::<Vec<_>>();
        // One preference for several disks at once has one meaning for a task that writes an image: none.
        let one_of_many = self.names_one() || (self.means_all() && matches!(purpose, Purpose::Write { .. }));
        if one_of_many && fit.len() > 1 {
            for index in &fit {
                let others: Vec<usize> = fit.iter().copied().filter(|other| other != index).collect();
                reasons[*index] = Some(Reason::Ambiguous { with: names(&others) });
            }
            return Err(no_disk(reasons, ""));
        }
        let place = |index: &usize| (disks[*index].path.clone(), disks[*index].name.clone());
        match self.preference {
            Preference::Smallest => fit.sort_by_key(|index| (disks[*index].bytes, place(index))),
            Preference::Largest => fit.sort_by_key(|index| (Reverse(disks[*index].bytes), place(index))),
            // A disk without a path comes after those that have one.
            Preference::First => fit.sort_by_key(|index| (disks[*index].path.is_none(), place(index))),
            Preference::All => {}
        }
        if !self.means_all() {
            fit.truncate(1);
        }
        let refused: Vec<usize> = fit
            .iter()
            .copied()
            .filter(|index| {
                reasons[*index] = untouchable(&disks[*index], purpose);
                reasons[*index].is_some()
            })
            .collect();
        if fit.is_empty() || !refused.is_empty() {
            return Err(no_disk(reasons, &names(&refused).join(", ")));
        }
        Ok(fit)
    }

    /// What a disk is, against what is asked for.
    fn unfit(&self, disk: &DiskFacts, purpose: Purpose) -> Result<(), Reason> {
        if let Some(condition) = self.conditions.iter().find(|condition| !condition.holds(disk)) {
            return Err(Reason::Unmatched { condition: condition.to_string() });
        }
        let asked_for = self.names_one()
            || self
                .conditions
                .iter()
                .any(|condition| matches!(condition, Condition::Flag(Flag::Removable, true)));
        if disk.removable && !asked_for {
            return Err(Reason::Removable);
        }
        if disk.read_only {
            return Err(Reason::ReadOnly);
        }
        match purpose {
            Purpose::Write { needed, .. } if disk.bytes < needed => {
                Err(Reason::TooSmall { by: needed - disk.bytes })
            }
            Purpose::Write { .. } | Purpose::Clean => Ok(()),
        }
    }

    /// Whether it says which disk by what no two disks should share.
    fn names_one(&self) -> bool {
        self.conditions.iter().any(|condition| match condition {
            Condition::Text(Field::Name | Field::Serial | Field::Path, pattern) => !pattern.0.contains('*'),
            Condition::Text(Field::Model, _)
            | Condition::AtLeast(_)
            | Condition::AtMost(_)
            | Condition::Flag(..) => false,
        })
    }
}

/// The disks a task began with; only these may be gone on with, whatever is on them by now.
pub fn begun_with(begun_on: &[TargetDisk], disks: &[DiskFacts]) -> Result<Vec<usize>, NoDisk> {
    begun_on.iter().map(|begun| same_disk(begun, disks)).collect()
}

fn same_disk(begun: &TargetDisk, disks: &[DiskFacts]) -> Result<usize, NoDisk> {
    let mut same: Vec<usize> =
        (0..disks.len()).filter(|index| begun.is_same(&disks[*index].target())).collect();
    // Two disks with one serial number are told apart by where they are plugged in.
    if same.len() > 1 && begun.path.is_some() {
        same.retain(|index| disks[*index].path == begun.path);
    }
    let reason_for = |index: usize| match &same[..] {
        [one] if *one == index => untouchable(&disks[index], Purpose::Clean),
        several if several.contains(&index) => Some(Reason::Ambiguous {
            with: several
                .iter()
                .filter(|other| **other != index)
                .map(|other| disks[*other].name.clone())
                .collect(),
        }),
        _ => Some(Reason::NotBegunOn),
    };
    match &same[..] {
        [one] if reason_for(*one).is_none() => Ok(*one),
        _ => Err(NoDisk {
            wanted: format!(
                "the disk it began with ({}, {}{})",
                begun.name,
                size(begun.bytes),
                begun.serial.as_ref().map(|serial| format!(", serial number {serial}")).unwrap_or_default()
            ),
            disks: disks
                .iter()
                .enumerate()
                .map(|(index, disk)| {
                    let reason = reason_for(index).unwrap_or(Reason::NotBegunOn);
                    (disk.name.clone(), disk.bytes, reason)
                })
                .collect(),
        }),
    }
}

/// What forbids to write to the disk that the rule means.
fn untouchable(disk: &DiskFacts, purpose: Purpose) -> Option<Reason> {
    if let Some(by) = &disk.in_use {
        return Some(Reason::InUse { by: by.clone() });
    }
    match purpose {
        Purpose::Write { wipe: false, .. } if !disk.carries.is_empty() => {
            Some(Reason::CarriesData { what: disk.carries.clone() })
        }
        Purpose::Write { .. } | Purpose::Clean => None,
    }
}

impl DiskFacts {
    /// As the appliance is told of it.
    pub fn target(&self) -> TargetDisk {
        TargetDisk {
            name: self.name.clone(),
            serial: self.serial.clone(),
            path: self.path.clone(),
            bytes: self.bytes,
        }
    }
}

impl Condition {
    fn holds(&self, disk: &DiskFacts) -> bool {
        match self {
            Condition::Text(field, pattern) => {
                let text = match field {
                    Field::Name => Some(disk.name.as_str()),
                    Field::Serial => disk.serial.as_deref(),
                    Field::Path => disk.path.as_deref(),
                    Field::Model => disk.model.as_deref(),
                };
                text.is_some_and(|text| pattern.matches(text))
            }
            Condition::AtLeast(bytes) => disk.bytes >= *bytes,
            Condition::AtMost(bytes) => disk.bytes <= *bytes,
            Condition::Flag(Flag::Rotational, wanted) => disk.rotational == *wanted,
            Condition::Flag(Flag::Removable, wanted) => disk.removable == *wanted,
        }
    }
}

impl Pattern {
    /// The parts between stars must come one after the other; the first at the start and the last at the end.
    fn matches(&self, text: &str) -> bool {
        let Some((first, rest)) = self.0.split_once('*') else { return self.0 == text };
        let Some(mut text) = text.strip_prefix(first) else { return false };
        let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
        for part in middle.split('*') {
            match text.split_once(part) {
                Some((_, behind)) => text = behind,
                None => return false,
            }
        }
        text.ends_with(last)
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Signature::Gpt => "a GPT partition table",
            Signature::Mbr => "an MBR partition table",
            Signature::Ext => "an ext2/3/4 file system",
            Signature::Xfs => "an XFS file system",
            Signature::Btrfs => "a btrfs file system",
            Signature::F2fs => "an F2FS file system",
            Signature::Fat => "a FAT file system",
            Signature::Exfat => "an exFAT file system",
            Signature::Ntfs => "an NTFS file system",
            Signature::Iso9660 => "an ISO 9660 file system",
            Signature::Squashfs => "a squashfs file system",
            Signature::Swap => "swap space",
            Signature::Luks => "a LUKS container",
            Signature::Lvm => "an LVM physical volume",
            Signature::MdRaid => "a Linux RAID member",
            Signature::FirmwareRaid => "a RAID controller's member",
            Signature::Bcache => "a bcache device",
            Signature::Zfs => "a ZFS pool's member",
            Signature::Unknown => "bytes that are not zero",
            Signature::Unreadable => "a start or end that cannot be read",
        })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Unmatched { condition } => write!(formatter, "is not {condition}"),
            Reason::Removable => {
                formatter.write_str("is removable (`removable=yes`, or its name, would ask for it)")
            }
            Reason::ReadOnly => formatter.write_str("is read-only"),
            Reason::TooSmall { by } => write!(formatter, "is too small by {}", size(*by)),
            Reason::InUse { by } => write!(formatter, "is in use: {by}"),
            Reason::CarriesData { what } => {
                let what: Vec<String> = what.iter().map(Signature::to_string).collect();
                write!(formatter, "carries data: {} (`--wipe` overwrites it)", what.join(", "))
            }
            Reason::Ambiguous { with } => {
                write!(formatter, "is meant as well as {}: say which, e.g. by path=", with.join(", "))
            }
            Reason::NotPreferred { preferred } => write!(formatter, "would do, but {preferred} is meant"),
            Reason::NotBegunOn => formatter.write_str("is not the disk that the task began with"),
        }
    }
}

impl fmt::Display for NoDisk {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "no disk for `{}`: ", self.wanted)?;
        if self.disks.is_empty() {
            return formatter.write_str("the machine has none");
        }
        for (index, (name, bytes, reason)) in self.disks.iter().enumerate() {
            let comma = if index == 0 { "" } else { "; " };
            write!(formatter, "{comma}{name} ({}) {reason}", size(*bytes))?;
        }
        Ok(())
    }
}

/// As disks are sold; exact bytes below a megabyte.
fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{bytes} bytes"),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        1_000_000_000..1_000_000_000_000 => format!("{:.1} GB", bytes as f64 / 1e9),
        _ => format!("{:.2} TB", bytes as f64 / 1e12),
    }
}
