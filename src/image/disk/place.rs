//! What lies where below `<state>/images`, as far as disk images go.
//!
//! ```text
//! images/disks/<name>.json         catalogue entry: which manifest a name stands for
//! images/blobs/<sha256>            manifests and chunks, beside the blobs of deploy profiles
//! images/pins/<manifest digest>    an install wants these bytes, whatever becomes of the name
//! images/damaged/<blob digest>     this blob was found to be something else; the text says what
//! images/partial/<sha256>          a download that is not whole yet
//! images/.writing                  its lock: whoever adds blobs shares it, `gc` has it alone
//! ```
//! Directories are for the appliance alone. What root makes here is given to the directory's owner.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::image::digest::Digest;
use crate::image::library::{OpenError, PublishError, Temporary, own_like, writing_lock};

#[derive(Clone, Debug)]
pub struct Place {
    images: PathBuf,
}

impl Place {
    /// The same paths, with nothing made.
    pub fn at(state: &Path) -> Place {
        Place { images: state.join("images") }
    }

    /// Makes what is not there yet.
    pub fn open(state: &Path) -> Result<Place, OpenError> {
        let place = Place::at(state);
        let images = &place.images;
        // A library that several appliances share is a link to somewhere else, and whose it is is decided there.
        let shared = fs::symlink_metadata(images).is_ok_and(|metadata| metadata.is_symlink());
        let made = fs::create_dir_all(images).and_then(|()| match shared {
            true => Ok(()),
            false => own_like(&File::open(images)?, state),
        });
        made.map_err(|source| OpenError { path: images.clone(), source })?;
        for directory in [place.blobs(), place.disks(), place.pins(), place.damaged(), place.partial()] {
            make(&directory, images).map_err(|source| OpenError { path: directory.clone(), source })?;
        }
        Ok(place)
    }

    pub fn images(&self) -> &Path {
        &self.images
    }

    pub fn blobs(&self) -> PathBuf {
        self.images.join("blobs")
    }

    pub fn blob(&self, digest: Digest) -> PathBuf {
        self.blobs().join(digest.to_string())
    }

    pub fn disks(&self) -> PathBuf {
        self.images.join("disks")
    }

    pub fn entry(&self, name: &str) -> PathBuf {
        self.disks().join(format!("{name}.json"))
    }

    pub fn pins(&self) -> PathBuf {
        self.images.join("pins")
    }

    pub fn pin(&self, manifest: Digest) -> PathBuf {
        self.pins().join(manifest.to_string())
    }

    pub fn damaged(&self) -> PathBuf {
        self.images.join("damaged")
    }

    pub fn damage(&self, blob: Digest) -> PathBuf {
        self.damaged().join(blob.to_string())
    }

    pub fn partial(&self) -> PathBuf {
        self.images.join("partial")
    }

    /// Not locked yet.
    pub fn writing_lock(&self) -> io::Result<File> {
        writing_lock(&self.images)
    }
}

fn make(directory: &Path, like: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    own_like(&File::open(directory)?, like)
}

/// Text under its name, whole and durable.
pub fn write_text(path: &Path, text: &str) -> Result<(), PublishError> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut temporary = Temporary::create(directory)?;
    let written = temporary.file.write_all(text.as_bytes());
    written.map_err(|source| PublishError::Write { path: path.to_owned(), source })?;
    temporary.publish_as(path)
}

/// Removes a name for good; whether there was one.
pub fn remove_durably(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    }
    let directory = path.parent().unwrap_or(Path::new("."));
    File::open(directory)?.sync_all().map(|()| true)
}

/// The digests that are names of files in a directory, ascending. Other names are somebody else's, or half written.
pub fn digests_in(directory: &Path) -> io::Result<Vec<Digest>> {
    let mut digests = Vec::new();
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(digests),
        Err(error) => return Err(error),
    };
    for entry in entries {
        if let Some(digest) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
            digests.push(digest);
        }
    }
    digests.sort();
    Ok(digests)
}
