//! Programs for ramdisks and small systems: what the kernel and the dynamic loader read of them.
//!
//! A ramdisk's must run without a dynamic loader, and need no symbols there; a system's bring their libraries along.
//!
//! Symbols and line tables are four fifths of a debug build. They are cut off here instead of by `strip`, so that no
//! further tool is needed and the result depends on the program alone. Layout: ELF-64 Object File Format, 1.5.

const MAGIC: &[u8] = b"\x7fELF";
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const HEADER_BYTES: usize = 64;
const SEGMENT_BYTES: usize = 56;
/// Segment type: path of the dynamic loader.
const INTERPRETER: u32 = 3;

/// Segment types: what is loaded, and the table for the dynamic loader.
const LOADED: u32 = 1;
const DYNAMIC: u32 = 2;
/// Entries of that table: its end, a library's name, where names are.
const END: u64 = 0;
const NEEDED: u64 = 1;
const NAMES: u64 = 5;
/// No program needs more; bounds what a damaged table costs.
const DYNAMIC_ENTRIES_MAX: usize = 4096;

/// What a program or a library needs beside itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Path of the dynamic loader, if it is a program.
    pub interpreter: Option<String>,
    /// Names of libraries, e.g. `libc.so.6`.
    pub libraries: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    #[error("it is not a 64-bit little-endian ELF program")]
    NotElf,
    #[error("it needs a dynamic loader, which a ramdisk does not have: a static program is wanted")]
    Dynamic,
    #[error("its program headers point outside the file")]
    Damaged,
}

/// Where the table of segments is, and how many it has.
fn segments(bytes: &[u8]) -> Result<(usize, usize), ElfError> {
    let header = bytes.get(..HEADER_BYTES).ok_or(ElfError::NotElf)?;
    if !header.starts_with(MAGIC) || header[4] != CLASS_64 || header[5] != LITTLE_ENDIAN {
        return Err(ElfError::NotElf);
    }
    let table = offset(long(bytes, 32)?)?;
    let (size, count) = (usize::from(short(bytes, 54)?), usize::from(short(bytes, 56)?));
    if size != SEGMENT_BYTES || table.checked_add(size * count).is_none() {
        return Err(ElfError::Damaged);
    }
    Ok((table, count))
}

/// The program without everything the kernel does not load: its sections' table, symbols and debug information.
pub fn static_program(bytes: &[u8]) -> Result<Vec<u8>, ElfError> {
    let (table, count) = segments(bytes)?;
    let size = SEGMENT_BYTES;
    let mut end = table.checked_add(size * count).ok_or(ElfError::Damaged)?.max(HEADER_BYTES);
    for number in 0..count {
        let at = table + number * size;
        if word(bytes, at)? == INTERPRETER {
            return Err(ElfError::Dynamic);
        }
        let last = long(bytes, at + 8)?.checked_add(long(bytes, at + 32)?).ok_or(ElfError::Damaged)?;
        end = end.max(usize::try_from(last).map_err(|_| ElfError::Damaged)?);
    }
    let mut kept = bytes.get(..end).ok_or(ElfError::Damaged)?.to_vec();
    // e_shoff, then e_shentsize, e_shnum, e_shstrndx: there are no sections any more.
    kept[40..48].fill(0);
    kept[58..64].fill(0);
    Ok(kept)
}

/// What a program or library asks the dynamic loader for; nothing, if it is static.
pub fn needs(bytes: &[u8]) -> Result<Needs, ElfError> {
    let (table, count) = segments(bytes)?;
    let mut needs = Needs::default();
    let mut dynamic = None;
    for number in 0..count {
        let at = table + number * SEGMENT_BYTES;
        let (place, length) = (offset(long(bytes, at + 8)?)?, offset(long(bytes, at + 32)?)?);
        match word(bytes, at)? {
            INTERPRETER => needs.interpreter = Some(name(bytes, place)?),
            DYNAMIC => dynamic = Some((place, length)),
            _ => {}
        }
    }
    let Some((place, length)) = dynamic else { return Ok(needs) };
    let mut names = None;
    let mut wanted = Vec::new();
    for number in 0..(length / 16).min(DYNAMIC_ENTRIES_MAX) {
        let at = place.checked_add(number * 16).ok_or(ElfError::Damaged)?;
        let value = long(bytes, at.checked_add(8).ok_or(ElfError::Damaged)?)?;
        match long(bytes, at)? {
            END => break,
            NEEDED => wanted.push(offset(value)?),
            NAMES => names = Some(value),
            _ => {}
        }
    }
    if wanted.is_empty() {
        return Ok(needs);
    }
    let names = in_file(bytes, table, count, names.ok_or(ElfError::Damaged)?)?;
    for at in wanted {
        needs.libraries.push(name(bytes, names.checked_add(at).ok_or(ElfError::Damaged)?)?);
    }
    Ok(needs)
}

/// Where in the file an address is that the loader puts something at.
fn in_file(bytes: &[u8], table: usize, count: usize, address: u64) -> Result<usize, ElfError> {
    for number in 0..count {
        let at = table + number * SEGMENT_BYTES;
        let (start, length) = (long(bytes, at + 16)?, long(bytes, at + 32)?);
        if word(bytes, at)? == LOADED && (start..start.saturating_add(length)).contains(&address) {
            return offset(long(bytes, at + 8)?.checked_add(address - start).ok_or(ElfError::Damaged)?);
        }
    }
    Err(ElfError::Damaged)
}

fn name(bytes: &[u8], at: usize) -> Result<String, ElfError> {
    let text = bytes.get(at..).and_then(|rest| rest.split(|byte| *byte == 0).next());
    let text = text.and_then(|text| std::str::from_utf8(text).ok()).ok_or(ElfError::Damaged)?;
    // A path, or the name of a file; longer than any is damage.
    if (1..256).contains(&text.len()) { Ok(text.to_owned()) } else { Err(ElfError::Damaged) }
}

fn offset(value: u64) -> Result<usize, ElfError> {
    // Far from overflow in every sum that follows.
    usize::try_from(value).ok().filter(|value| *value < usize::MAX / 4).ok_or(ElfError::Damaged)
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], ElfError> {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().ok_or(ElfError::Damaged)
}

fn short(bytes: &[u8], at: usize) -> Result<u16, ElfError> {
    field(bytes, at).map(u16::from_le_bytes)
}

fn word(bytes: &[u8], at: usize) -> Result<u32, ElfError> {
    field(bytes, at).map(u32::from_le_bytes)
}

fn long(bytes: &[u8], at: usize) -> Result<u64, ElfError> {
    field(bytes, at).map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn this_very_program_still_runs_without_its_sections() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let Ok(kept) = static_program(&own) else {
            // Built without crt-static: then the refusal is right, and nothing is left to run.
            assert_eq!(static_program(&own), Err(ElfError::Dynamic));
            return;
        };
        assert!(kept.len() < own.len());
        assert_eq!(static_program(&kept).as_deref(), Ok(kept.as_slice()));
        let directory = tempfile::tempdir().unwrap();
        let (bytes, path) = (directory.path().join("bytes"), directory.path().join("program"));
        std::fs::write(&bytes, &kept).unwrap();
        // Not written by us: a process that another test starts meanwhile would inherit the open file, and what somebody
        // may still write to cannot be started (ETXTBSY).
        assert!(Command::new("install").arg(&bytes).arg(&path).status().unwrap().success());
        let listed = Command::new(&path).arg("--list").output().unwrap();
        assert!(listed.status.success());
    }

    #[test]
    fn the_shells_libraries_are_those_the_loader_names() {
        let shell = std::fs::read("/bin/sh").unwrap();
        let found = needs(&shell).unwrap();
        let loader = found.interpreter.expect("Debian's shell is dynamic");
        let listed = Command::new(&loader).args(["--list", "/bin/sh"]).output().unwrap();
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        assert!(!found.libraries.is_empty());
        for library in &found.libraries {
            assert!(listed.contains(&format!("{library} =>")), "{library}: {listed}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(mut bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400)) {
            let _ = (static_program(&bytes), needs(&bytes));
            for (at, byte) in b"\x7fELF\x02\x01".iter().enumerate().take(bytes.len()) {
                bytes[at] = *byte;
            }
            if bytes.len() >= 56 {
                bytes[54..56].copy_from_slice(&[56, 0]);
            }
            let _ = (static_program(&bytes), needs(&bytes));
        }
    }
}
