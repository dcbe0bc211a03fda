//! The node's own files on its disk: a small FAT file system that the first boot reads.

use std::io::{self, Cursor, Read, Seek, Write};

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};

use crate::agent::install::overlay::{Overlay, Window};
use crate::agent::install::table::SeedPlace;
use crate::node::install::task::{Seed, SeedFile};

/// As the directory entry spells [`crate::agent::install::table::LABEL`].
const LABEL: [u8; 11] = *b"CIDATA     ";
const NAME_MAX: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    #[error("`{name}` is no name for a file of a seed: at most {NAME_MAX} letters, digits, `.`, `-`, `_`")]
    Name { name: String },
    #[error("the seed has {bytes} bytes; {room} are what its partition holds")]
    Size { bytes: u64, room: u64 },
    #[error("writing the seed's files")]
    Io(#[from] io::Error),
}

/// Puts the files into the partition: into its file system if it has one, else into a new one.
pub fn put(overlay: &mut Overlay, place: SeedPlace, seed: &Seed) -> Result<(), SeedError> {
    let bytes: u64 = seed.files.iter().map(|file| file.text.len() as u64).sum();
    // The file system's own tables and the ends of clusters take less than an eighth.
    let room = place.length / 8 * 7;
    if bytes > room {
        return Err(SeedError::Size { bytes, room });
    }
    let bad = seed.files.iter().find(|file| !is_name(&file.name));
    if let Some(SeedFile { name, .. }) = bad {
        return Err(SeedError::Name { name: name.escape_debug().take(NAME_MAX).collect() });
    }
    if place.exists {
        return Ok(fill(Window::new(overlay, place.start, place.length), seed)?);
    }
    // Ours is small: made in memory, written in one go.
    let mut volume = Cursor::new(vec![0; usize::try_from(place.length).map_err(io::Error::other)?]);
    fatfs::format_volume(&mut volume, FormatVolumeOptions::new().volume_label(LABEL))?;
    volume.set_position(0);
    fill(&mut volume, seed)?;
    Ok(overlay.put(place.start, volume.get_ref())?)
}

fn is_name(name: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(letter) && !name.starts_with('.')
}

fn fill(volume: impl Read + Write + Seek, seed: &Seed) -> io::Result<()> {
    let system = FileSystem::new(volume, FsOptions::new())?;
    for file in &seed.files {
        let root = system.root_dir();
        let mut target = root.create_file(&file.name)?;
        target.truncate()?;
        target.write_all(file.text.as_bytes())?;
        target.flush()?;
    }
    system.unmount()
}
