//! Programs for the ramdisk: they must run without a dynamic loader, and need no symbols there.
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    #[error("it is not a 64-bit little-endian ELF program")]
    NotElf,
    #[error("it needs a dynamic loader, which a ramdisk does not have: a static program is wanted")]
    Dynamic,
    #[error("its program headers point outside the file")]
    Damaged,
}

/// The program without everything the kernel does not load: its sections' table, symbols and debug information.
pub fn static_program(bytes: &[u8]) -> Result<Vec<u8>, ElfError> {
    let header = bytes.get(..HEADER_BYTES).ok_or(ElfError::NotElf)?;
    if !header.starts_with(MAGIC) || header[4] != CLASS_64 || header[5] != LITTLE_ENDIAN {
        return Err(ElfError::NotElf);
    }
    let table = usize::try_from(long(bytes, 32)?).map_err(|_| ElfError::Damaged)?;
    let (size, count) = (usize::from(short(bytes, 54)?), usize::from(short(bytes, 56)?));
    if size != SEGMENT_BYTES {
        return Err(ElfError::Damaged);
    }
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

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(mut bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400)) {
            let _ = static_program(&bytes);
            for (at, byte) in b"\x7fELF\x02\x01".iter().enumerate().take(bytes.len()) {
                bytes[at] = *byte;
            }
            if bytes.len() >= 56 {
                bytes[54..56].copy_from_slice(&[56, 0]);
            }
            let _ = static_program(&bytes);
        }
    }
}
