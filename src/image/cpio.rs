//! The ramdisk's container: a cpio archive in the kernel's "newc" form (Linux, driver-api/early-userspace/buffer-format).
//!
//! Everything that could differ between two builds is fixed: members are sorted by path, owned by root, numbered in
//! order, and carry no times. The same members therefore are the same bytes.

use std::collections::BTreeMap;

const MAGIC: &[u8] = b"070701";
const TRAILER: &str = "TRAILER!!!";
const HEADER_BYTES: usize = 110;

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// One member; the path it goes by is the archive's business.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub kind: Kind,
    /// Permission bits only.
    pub permissions: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Directory,
    File(Vec<u8>),
    Symlink(String),
    CharacterDevice { major: u32, minor: u32 },
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CpioError {
    #[error("`{path}` has {bytes} bytes; a member of a ramdisk has less than 4 GiB")]
    TooLarge { path: String, bytes: usize },
    #[error("`{path}` cannot be a path in a ramdisk: it must be relative, without `.`, `..` or empty parts")]
    Path { path: String },
}

/// Members by path; parents are added by themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Archive {
    members: BTreeMap<String, Member>,
}

impl Archive {
    pub fn directory(&mut self, path: &str) -> Result<(), CpioError> {
        self.add(path, Member { kind: Kind::Directory, permissions: 0o755 })
    }

    pub fn file(&mut self, path: &str, permissions: u32, bytes: Vec<u8>) -> Result<(), CpioError> {
        self.add(path, Member { kind: Kind::File(bytes), permissions })
    }

    pub fn symlink(&mut self, path: &str, target: &str) -> Result<(), CpioError> {
        self.add(path, Member { kind: Kind::Symlink(target.to_owned()), permissions: 0o777 })
    }

    pub fn character_device(&mut self, path: &str, major: u32, minor: u32) -> Result<(), CpioError> {
        self.add(path, Member { kind: Kind::CharacterDevice { major, minor }, permissions: 0o600 })
    }

    pub fn members(&self) -> &BTreeMap<String, Member> {
        &self.members
    }

    fn add(&mut self, path: &str, member: Member) -> Result<(), CpioError> {
        let parts: Vec<&str> = path.split('/').collect();
        if parts.iter().any(|part| matches!(*part, "" | "." | "..")) || path.contains('\0') {
            return Err(CpioError::Path { path: path.escape_default().collect() });
        }
        for length in 1..parts.len() {
            let parent = Member { kind: Kind::Directory, permissions: 0o755 };
            self.members.entry(parts[..length].join("/")).or_insert(parent);
        }
        self.members.insert(path.to_owned(), member);
        Ok(())
    }

    /// A parent sorts before what is in it, which the kernel relies on.
    pub fn emit(&self) -> Result<Vec<u8>, CpioError> {
        let mut out = Vec::new();
        for (number, (path, member)) in self.members.iter().enumerate() {
            emit_member(&mut out, number, path, member)?;
        }
        let trailer = Member { kind: Kind::File(Vec::new()), permissions: 0 };
        emit_header(&mut out, 0, TRAILER, &trailer, 0, 0);
        Ok(out)
    }
}

fn emit_member(out: &mut Vec<u8>, number: usize, path: &str, member: &Member) -> Result<(), CpioError> {
    let data: &[u8] = match &member.kind {
        Kind::File(bytes) => bytes,
        Kind::Symlink(target) => target.as_bytes(),
        Kind::Directory | Kind::CharacterDevice { .. } => &[],
    };
    let size = u32::try_from(data.len())
        .map_err(|_| CpioError::TooLarge { path: path.to_owned(), bytes: data.len() })?;
    // Number 0 is the trailer's.
    emit_header(
        out,
        u32::try_from(number + 1).unwrap_or(u32::MAX),
        path,
        member,
        kind_bits(&member.kind),
        size,
    );
    out.extend_from_slice(data);
    pad(out);
    Ok(())
}

fn kind_bits(kind: &Kind) -> u32 {
    match kind {
        Kind::Directory => DIRECTORY,
        Kind::File(_) => REGULAR,
        Kind::Symlink(_) => SYMLINK,
        Kind::CharacterDevice { .. } => CHARACTER_DEVICE,
    }
}

fn emit_header(out: &mut Vec<u8>, number: u32, path: &str, member: &Member, kind: u32, size: u32) {
    let (major, minor) = match member.kind {
        Kind::CharacterDevice { major, minor } => (major, minor),
        Kind::Directory | Kind::File(_) | Kind::Symlink(_) => (0, 0),
    };
    let links = if kind == DIRECTORY { 2 } else { 1 };
    let name_bytes = u32::try_from(path.len() + 1).unwrap_or(u32::MAX);
    let (owner, time, device, checksum) = (0, 0, 0, 0);
    out.extend_from_slice(MAGIC);
    for field in [
        number,
        kind | member.permissions,
        owner,
        owner,
        links,
        time,
        size,
        device,
        device,
        major,
        minor,
        name_bytes,
        checksum,
    ] {
        out.extend_from_slice(format!("{field:08X}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    pad(out);
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

/// Reads an archive this module wrote; `None` for anything else. Serves the tests and `image list`.
pub fn parse(bytes: &[u8]) -> Option<Archive> {
    let mut archive = Archive::default();
    let mut at = 0;
    loop {
        let header = bytes.get(at..at + HEADER_BYTES)?;
        if !header.starts_with(MAGIC) {
            return None;
        }
        let field = |index: usize| {
            let digits = std::str::from_utf8(header.get(6 + index * 8..14 + index * 8)?).ok()?;
            u32::from_str_radix(digits, 16).ok()
        };
        let (mode, size, name_bytes) =
            (field(1)?, usize::try_from(field(6)?).ok()?, usize::try_from(field(11)?).ok()?);
        let name_at = at + HEADER_BYTES;
        let name = bytes.get(name_at..name_at.checked_add(name_bytes)?)?.strip_suffix(&[0])?;
        let path = std::str::from_utf8(name).ok()?.to_owned();
        if path == TRAILER {
            return Some(archive);
        }
        let data_at = (name_at + name_bytes).next_multiple_of(4);
        let data = bytes.get(data_at..data_at.checked_add(size)?)?.to_vec();
        let kind = match mode & 0o170_000 {
            DIRECTORY => Kind::Directory,
            REGULAR => Kind::File(data),
            SYMLINK => Kind::Symlink(String::from_utf8(data).ok()?),
            CHARACTER_DEVICE => Kind::CharacterDevice { major: field(9)?, minor: field(10)? },
            _ => return None,
        };
        archive.members.insert(path, Member { kind, permissions: mode & 0o7777 });
        at = (data_at + size).next_multiple_of(4);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    fn sample() -> Archive {
        let mut archive = Archive::default();
        archive.file("init", 0o755, b"#!/bin/busybox sh\n".to_vec()).unwrap();
        archive.file("lib/modules/virtio.ko", 0o644, vec![7; 513]).unwrap();
        archive.symlink("bin/sh", "busybox").unwrap();
        archive.directory("proc").unwrap();
        archive.character_device("dev/console", 5, 1).unwrap();
        archive
    }

    #[test]
    fn what_is_written_is_read_again() {
        let archive = sample();
        assert_eq!(parse(&archive.emit().unwrap()), Some(archive));
    }

    #[test]
    fn the_order_of_adding_does_not_show() {
        let mut reversed = Archive::default();
        for (path, member) in sample().members().iter().rev() {
            reversed.add(path, member.clone()).unwrap();
        }
        assert_eq!(reversed.emit(), sample().emit());
    }

    #[test]
    fn paths_that_would_leave_the_ramdisk_are_refused() {
        for path in ["", "/etc/passwd", "a//b", "../a", "a/./b", "a\0b"] {
            assert!(Archive::default().directory(path).is_err(), "{path:?}");
        }
    }

    fn listed_by_cpio(options: &str) -> String {
        let mut child = Command::new("cpio")
            .args(["--quiet", options])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("Debian's package cpio is installed for this test");
        child.stdin.take().unwrap().write_all(&sample().emit().unwrap()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn the_cpio_of_the_distribution_reads_it() {
        let names = listed_by_cpio("-it");
        assert_eq!(names.lines().collect::<Vec<_>>(), sample().members().keys().collect::<Vec<_>>());
        let details = listed_by_cpio("-itvn");
        for wanted in ["-rwxr-xr-x   1 0", "bin/sh -> busybox", "crw-------", "5,   1"] {
            assert!(details.contains(wanted), "{wanted}: {details}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic_the_reader(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
            let mut framed = MAGIC.to_vec();
            framed.extend(bytes);
            let _ = parse(&framed);
        }
    }
}
