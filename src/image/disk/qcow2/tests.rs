use std::io::Write;

use proptest::prelude::*;

use super::*;
use crate::image::disk::testing::noise;

const CLUSTER: usize = 512;

/// A small image made by hand: 512-byte clusters, so that a level 2 table has 64 entries.
struct Made {
    file: Vec<u8>,
}

#[derive(Clone, Debug)]
enum Part {
    Absent,
    Zero,
    Raw(u8),
    Packed(u8),
}

fn bytes_of(part: &Part) -> Vec<u8> {
    match part {
        Part::Absent | Part::Zero => vec![0; CLUSTER],
        Part::Raw(seed) => noise(u64::from(*seed), CLUSTER),
        // Half of it compresses.
        Part::Packed(seed) => [vec![*seed; CLUSTER / 2], noise(u64::from(*seed), CLUSTER / 2)].concat(),
    }
}

impl Made {
    fn new(parts: &[Part], zstd: bool) -> Made {
        let tables = parts.len().div_ceil(64).max(1);
        let level_1_clusters = (tables * 8).div_ceil(CLUSTER);
        let mut made = Made { file: vec![0; CLUSTER * (1 + level_1_clusters + tables)] };
        made.file[..4].copy_from_slice(&MAGIC);
        made.put_32(4, 3);
        made.put_32(20, 9);
        made.put_64(24, (parts.len() * CLUSTER) as u64);
        made.put_32(36, tables as u32);
        made.put_64(40, CLUSTER as u64);
        made.put_64(72, if zstd { 1 << 3 } else { 0 });
        made.put_32(100, 112);
        made.file[104] = u8::from(zstd);
        for table in 0..tables {
            let at = CLUSTER * (1 + level_1_clusters + table);
            made.put_64(CLUSTER + table * 8, at as u64 | COPIED);
        }
        for (index, part) in parts.iter().enumerate() {
            let entry = CLUSTER * (1 + level_1_clusters) + index * 8;
            let at = made.file.len().next_multiple_of(CLUSTER);
            match part {
                Part::Absent => {}
                Part::Zero => {
                    made.put_64(entry, ZERO);
                }
                Part::Raw(_) => {
                    made.file.resize(at, 0);
                    made.file.extend(bytes_of(part));
                    made.put_64(entry, at as u64 | COPIED);
                }
                Part::Packed(_) => {
                    // Where the one before ended, as QEMU packs them.
                    let at = made.file.len();
                    let packed = pack(&bytes_of(part), zstd);
                    made.file.extend(&packed);
                    let sectors = (at + packed.len() - 1) / 512 - at / 512;
                    made.put_64(entry, COMPRESSED | (sectors as u64) << 61 | at as u64);
                }
            }
        }
        made
    }

    fn put_32(&mut self, at: usize, number: u32) -> &mut Made {
        self.file[at..at + 4].copy_from_slice(&number.to_be_bytes());
        self
    }

    fn put_64(&mut self, at: usize, number: u64) -> &mut Made {
        self.file[at..at + 8].copy_from_slice(&number.to_be_bytes());
        self
    }

    fn cut(&mut self, length: usize) -> &mut Made {
        self.file.truncate(length);
        self
    }

    fn open(&self) -> Result<Qcow2<&[u8]>, Qcow2Fault> {
        Qcow2::open(self.file.as_slice(), self.file.len() as u64)
    }

    fn read(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open().map_err(io::Error::other)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

fn pack(bytes: &[u8], zstd: bool) -> Vec<u8> {
    if zstd {
        return zstd::bulk::compress(bytes, 3).unwrap();
    }
    let mut packed = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

fn parts() -> Vec<Part> {
    vec![Part::Raw(1), Part::Absent, Part::Packed(2), Part::Packed(3), Part::Zero, Part::Raw(4)]
}

fn fault(change: impl FnOnce(&mut Made) -> &mut Made) -> Qcow2Fault {
    let mut made = Made::new(&parts(), false);
    change(&mut made);
    made.open().err().expect("a fault")
}

#[test]
fn images_that_name_another_file_are_refused_whatever_it_is() {
    let other = |fault: &Qcow2Fault| matches!(fault, Qcow2Fault::OtherFile { .. });
    assert!(other(&fault(|made| made.put_64(8, 300).put_32(16, 11))));
    assert!(other(&fault(|made| made.put_64(8, 300))));
    assert!(other(&fault(|made| made.put_32(16, 1))));
    assert!(other(&fault(|made| made.put_64(72, 1 << 2))));
    // In extensions only, behind one of another kind.
    for kind in [0xe279_2aca, 0x4441_5441] {
        assert!(other(&fault(|made| made
            .put_32(112, 0x6803_f857)
            .put_32(116, 3)
            .put_32(128, kind)
            .put_32(132, 5))));
    }
    // In version 2 they follow at once.
    assert!(other(&fault(|made| made.put_32(4, 2).put_32(72, 0xe279_2aca).put_32(76, 5))));
}

#[test]
fn what_is_not_known_to_the_bit_is_refused() {
    assert!(matches!(fault(|made| made.put_32(32, 1)), Qcow2Fault::Encrypted));
    assert!(matches!(fault(|made| made.put_32(112, 0x0537_be77).put_32(116, 16)), Qcow2Fault::Encrypted));
    assert!(matches!(fault(|made| made.put_64(72, 1)), Qcow2Fault::Dirty));
    assert!(matches!(fault(|made| made.put_64(72, 1 << 1)), Qcow2Fault::Corrupt));
    for features in [1 << 4, 1 << 5, 1 << 63] {
        assert!(matches!(fault(|made| made.put_64(72, features)), Qcow2Fault::Unsupported { .. }));
    }
    for version in [0, 1, 4] {
        assert!(matches!(fault(|made| made.put_32(4, version)), Qcow2Fault::Unsupported { .. }));
    }
    // A compression that is announced and not told, or told and not known.
    assert!(matches!(fault(|made| made.put_64(72, 1 << 3)), Qcow2Fault::Unsupported { .. }));
}

#[test]
fn headers_that_fit_nothing_are_refused() {
    let changes: [fn(&mut Made) -> &mut Made; 9] = [
        |made| made.put_32(0, 0),
        |made| made.cut(71),
        |made| made.put_32(20, 8),
        |made| made.put_32(20, 22),
        |made| made.put_32(36, 0),
        |made| made.put_64(24, u64::MAX),
        |made| made.put_64(40, 1 << 40),
        |made| made.put_64(40, 513),
        |made| made.put_32(100, 8),
    ];
    for (index, change) in changes.into_iter().enumerate() {
        assert!(matches!(fault(change), Qcow2Fault::Malformed { .. }), "{index}");
    }
}

#[test]
fn tables_that_lead_nowhere_end_the_reading() {
    let level_2 = CLUSTER * 2;
    let entries: [(usize, u64); 9] = [
        (CLUSTER, 1 << 40),
        (CLUSTER, 256),
        (CLUSTER, 1 << 60),
        (level_2, 1 << 40),
        (level_2, 700),
        (level_2, 2),
        (level_2, 1 << 61),
        (level_2, COMPRESSED | 1 << 40),
        // Into the header, which is no packed data.
        (level_2, COMPRESSED | 1 << 61),
    ];
    for (at, entry) in entries {
        let mut made = Made::new(&parts(), false);
        made.put_64(at, entry);
        assert_eq!(made.read().unwrap_err().kind(), io::ErrorKind::InvalidData, "{at} {entry:x}");
    }
    // Version 2 has no zero clusters.
    let mut made = Made::new(&parts(), false);
    made.put_32(4, 2).put_64(72, 0);
    assert!(made.read().is_err());
}

#[test]
fn a_file_may_end_within_its_last_cluster() {
    let mut made = Made::new(&[Part::Raw(1), Part::Raw(2)], false);
    made.file.truncate(made.file.len() - 100);
    let mut expected = [bytes_of(&Part::Raw(1)), bytes_of(&Part::Raw(2))].concat();
    expected[924..].fill(0);
    assert_eq!(made.read().unwrap(), expected);
    made.file.truncate(made.file.len() - 412);
    assert!(made.read().is_err(), "and not before it");
}

fn any_part() -> impl Strategy<Value = Part> {
    prop_oneof![
        Just(Part::Absent),
        Just(Part::Zero),
        any::<u8>().prop_map(Part::Raw),
        any::<u8>().prop_map(Part::Packed),
    ]
}

proptest! {
    #[test]
    fn the_disk_is_what_its_clusters_are(parts in proptest::collection::vec(any_part(), 1..150), zstd: bool) {
        let expected: Vec<u8> = parts.iter().flat_map(bytes_of).collect();
        prop_assert_eq!(Made::new(&parts, zstd).read().unwrap(), expected);
    }

    /// Whatever is changed, reading ends, and gives as many bytes as the header says or an error.
    #[test]
    fn changed_images_never_panic(
        parts in proptest::collection::vec(any_part(), 1..20),
        zstd: bool,
        changes in proptest::collection::vec((0_usize..3000, any::<u8>()), 1..6),
    ) {
        let mut made = Made::new(&parts, zstd);
        for (at, byte) in changes {
            let at = at % made.file.len();
            made.file[at] = byte;
        }
        if let Ok(disk) = made.open() {
            let mut bytes = Vec::new();
            let announced = disk.disk_bytes();
            if disk.take(1 << 20).read_to_end(&mut bytes).is_ok() {
                prop_assert_eq!(bytes.len() as u64, announced.min(1 << 20));
            }
        }
    }
}
