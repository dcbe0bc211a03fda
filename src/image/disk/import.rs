//! From what an operator names to an image in the catalogue.
//!
//! # What is atomic
//! Chunks are blobs, whole and durable each by itself; the manifest is one after them; the catalogue entry comes last.
//! Whoever looks sees the image before, or this one. An import that is refused or fails takes back what it had added; one
//! that is killed leaves blobs that no name leads to, which the next try finds and uses, or `gc` removes.
//!
//! # What is checked
//! With a digest, what was given is hashed before a byte of it is unpacked. It may be as large as `bytes_max`, and so may
//! what is in it.

use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use indicatif::ProgressBar;

use crate::clock::Clock;
use crate::image::digest::Digest;
use crate::image::disk::blobs::BlobWriter;
use crate::image::disk::catalogue::{Catalogue, DESCRIPTION_LENGTH_MAX, Entry, IMAGES_MAX};
use crate::image::disk::chunker::{ChunkError, Chunked, Pace, chunk_up};
use crate::image::disk::download::{DownloadError, download};
use crate::image::disk::input::{Format, Input, InputError, check_tail};
use crate::image::disk::manifest::DiskManifest;
use crate::image::disk::place::Place;
use crate::image::disk::shelf::{DiskImage, MANIFEST_BYTES_MAX};
use crate::image::disk::source::{Source, SourceError, Url, open_file};
use crate::image::library::{OpenError, PublishError, is_profile_name};

/// Of a file, and of the disk in it, unless somebody says otherwise.
pub const DISK_BYTES_MAX_DEFAULT: u64 = 64 * 1024 * 1024 * 1024;

/// What an image is called, and what people are told of it.
#[derive(Clone, Debug)]
pub struct Label {
    pub name: String,
    pub description: String,
    /// Where it came from.
    pub source: String,
}

/// What is to be imported, and what must be true of it.
#[derive(Clone, Debug)]
pub struct Request {
    pub source: Source,
    pub name: String,
    pub description: String,
    /// Of the file as given.
    pub sha256: Option<Digest>,
    pub bytes_max: u64,
}

#[derive(Debug)]
pub struct Imported {
    pub image: DiskImage,
    pub format: Format,
    /// Of blobs that were not there before.
    pub added_bytes: u64,
    /// The manifest that the name stood for until now, if it was another.
    pub replaced: Option<Digest>,
}

#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("`{name}` is no image name: 1 to 63 lower-case letters, digits and inner hyphens are wanted")]
    Name { name: String },
    #[error("a description is one line of at most {DESCRIPTION_LENGTH_MAX} letters")]
    Description,
    #[error("{url}: what comes from a URL is imported only with its digest: add `--sha256 HEX`")]
    NoDigest { url: String },
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Download(#[from] DownloadError),
    #[error("{what}")]
    Input {
        what: String,
        #[source]
        source: InputError,
    },
    #[error(
        "{what} has the SHA-256 {found}, and {expected} was wanted: it is not that file, or it is damaged"
    )]
    WrongDigest { what: String, expected: Digest, found: Digest },
    #[error("{what} changed while it was read: import it when nobody writes to it")]
    Changed { what: String },
    #[error("{what}")]
    Disk {
        what: String,
        #[source]
        source: ChunkError,
    },
    #[error("{what} cannot be read")]
    Read {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("{count} disk images are in the catalogue, as many as it holds: `farrier image rm` one")]
    Full { count: usize },
    #[error("its manifest is {bytes} bytes, more than {MANIFEST_BYTES_MAX}: the disk holds too much")]
    ManifestSize { bytes: u64 },
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Publish(#[from] PublishError),
    #[error("the catalogue cannot be read")]
    Catalogue(#[source] io::Error),
}

/// Takes a file or a URL into the catalogue, under its name.
pub fn import(state: &Path, request: &Request, progress: &ProgressBar) -> Result<Imported, ImportError> {
    check_name(&request.name, &request.description)?;
    match &request.source {
        Source::File(path) => {
            let file = open_file(path)?;
            let place = Place::open(state)?;
            take_in(&place, &file, request, progress)
        }
        Source::Url(url) => {
            let expected = request.sha256.ok_or(ImportError::NoDigest { url: url.to_string() })?;
            let place = Place::open(state)?;
            from_url(&place, url, expected, request, progress)
        }
    }
}

/// Takes the raw disk that `reader` gives into the catalogue. Sets the position of `progress` to the bytes read.
pub fn import_raw(
    state: &Path,
    reader: &mut dyn Read,
    label: &Label,
    progress: &ProgressBar,
) -> Result<DiskImage, ImportError> {
    check_name(&label.name, &label.description)?;
    let place = Place::open(state)?;
    let disk = |blobs: &BlobWriter| {
        // It is ours: whatever it grows to is what was meant.
        let consumed = || u64::MAX;
        let told = |bytes| progress.set_position(bytes);
        let pace = Pace { bytes_max: DISK_BYTES_MAX_DEFAULT, consumed: &consumed, progress: &told };
        let unfit = |source| ImportError::Disk { what: label.source.clone(), source };
        chunk_up(reader, blobs, &pace).map_err(unfit)
    };
    publish(&place, label, disk).map(|(image, _)| image)
}

fn check_name(name: &str, description: &str) -> Result<(), ImportError> {
    if !is_profile_name(name) {
        return Err(ImportError::Name { name: name.escape_default().collect() });
    }
    if description.chars().count() > DESCRIPTION_LENGTH_MAX || description.chars().any(char::is_control) {
        return Err(ImportError::Description);
    }
    Ok(())
}

fn from_url(
    place: &Place,
    url: &Url,
    expected: Digest,
    request: &Request,
    progress: &ProgressBar,
) -> Result<Imported, ImportError> {
    progress.set_message(format!("downloading {url}"));
    let downloaded = download(place, url, expected, request.bytes_max, progress)?;
    let imported = take_in(place, &downloaded.file, request, progress);
    match &imported {
        // It is good, and somebody may make room: what was downloaded is not downloaded again.
        Err(ImportError::Publish(_) | ImportError::Full { .. } | ImportError::Catalogue(_)) => {}
        Err(ImportError::Disk { source: ChunkError::Write(_), .. }) => {}
        Ok(_) | Err(_) => downloaded.discard(),
    }
    imported
}

fn take_in(
    place: &Place,
    file: &File,
    request: &Request,
    progress: &ProgressBar,
) -> Result<Imported, ImportError> {
    let what = || request.source.to_string();
    let unreadable = |source| ImportError::Read { what: what(), source };
    let before = file.metadata().map_err(unreadable)?;
    progress.set_length(before.len());
    progress.set_position(0);
    if let Some(expected) = request.sha256 {
        progress.set_message(format!("checking {}", request.source));
        let mut copy = file.try_clone().map_err(unreadable)?;
        copy.seek(SeekFrom::Start(0)).map_err(unreadable)?;
        let hashed = Digest::of_stream(&mut copy, |piece| {
            progress.inc(piece.len() as u64);
            Ok(())
        });
        let (found, _) = hashed.map_err(unreadable)?;
        if found != expected {
            return Err(ImportError::WrongDigest { what: what(), expected, found });
        }
        copy.seek(SeekFrom::Start(0)).map_err(unreadable)?;
    }
    progress.set_message(format!("importing {}", request.name));
    progress.set_position(0);
    progress.reset_eta();
    let label = Label {
        name: request.name.clone(),
        description: request.description.clone(),
        source: request.source.to_string(),
    };
    let replaced = Entry::read(&place.entry(&label.name)).ok().map(|entry| entry.manifest.digest);
    let mut format = Format::Raw;
    let disk = |blobs: &BlobWriter| {
        let given = file.try_clone().map_err(unreadable)?;
        let unfit = |source| ImportError::Input { what: what(), source };
        let mut input = Input::open(given, request.bytes_max).map_err(unfit)?;
        format = input.format;
        let consumed = input.consumed();
        let told = |bytes| match input.format {
            // Read here and there: how much of the disk has come is all there is to tell.
            Format::Qcow2 => progress.set_position(bytes),
            Format::Raw | Format::Zstd | Format::Gzip | Format::Xz => progress.set_position(consumed()),
        };
        if let Some(bytes) = input.disk_bytes {
            progress.set_length(bytes);
        }
        let pace = Pace { bytes_max: request.bytes_max, consumed: &consumed, progress: &told };
        let unfit = |source| ImportError::Disk { what: what(), source };
        let chunked = chunk_up(&mut input.reader, blobs, &pace).map_err(unfit)?;
        check_tail(&chunked.tail).map_err(|source| ImportError::Input { what: what(), source })?;
        let after = file.metadata().map_err(unreadable)?;
        if stamp(&before) != stamp(&after) {
            return Err(ImportError::Changed { what: what() });
        }
        Ok(chunked)
    };
    let (image, added_bytes) = publish(place, &label, disk)?;
    let replaced = replaced.filter(|manifest| *manifest != image.manifest_blob.digest);
    Ok(Imported { image, format, added_bytes, replaced })
}

/// What differs when somebody wrote to a file.
fn stamp(metadata: &Metadata) -> (u64, i64, i64) {
    (metadata.len(), metadata.mtime(), metadata.mtime_nsec())
}

/// Chunks, manifest, catalogue entry, in that order; or nothing.
fn publish(
    place: &Place,
    label: &Label,
    disk: impl FnOnce(&BlobWriter) -> Result<Chunked, ImportError>,
) -> Result<(DiskImage, u64), ImportError> {
    let write_error = |source| PublishError::Write { path: place.images().to_owned(), source };
    let catalogue = Catalogue::read(place).map_err(ImportError::Catalogue)?;
    let known = catalogue.entries.iter().any(|entry| entry.name == label.name);
    if !known && catalogue.entries.len() >= IMAGES_MAX {
        return Err(ImportError::Full { count: catalogue.entries.len() });
    }
    let lock = place.writing_lock().map_err(write_error)?;
    lock.lock_shared().map_err(write_error)?;
    let blobs = BlobWriter::new(place);
    let published = disk(&blobs).and_then(|chunked| name_it(place, label, &blobs, chunked.manifest));
    if published.is_err() && lock.try_lock().is_ok() {
        // Alone, so nobody relies on what is removed. It takes space only, should that fail.
        let _ = blobs.take_back();
    }
    Ok((published?, blobs.added_bytes()))
}

fn name_it(
    place: &Place,
    label: &Label,
    blobs: &BlobWriter,
    manifest: DiskManifest,
) -> Result<DiskImage, ImportError> {
    let text = serde_json::to_vec(&manifest).map_err(|error| {
        ImportError::Publish(PublishError::Write { path: place.blobs(), source: error.into() })
    })?;
    if text.len() as u64 > MANIFEST_BYTES_MAX {
        return Err(ImportError::ManifestSize { bytes: text.len() as u64 });
    }
    let manifest_blob = blobs.keep(&text)?;
    blobs.sync()?;
    let entry = Entry {
        name: label.name.clone(),
        manifest: manifest_blob,
        bytes: manifest.bytes,
        sha256: manifest.sha256,
        source: label.source.clone(),
        description: label.description.clone(),
        imported_at: Clock::start().now(),
    };
    entry.publish(place)?;
    Ok(DiskImage::new(entry, Arc::new(manifest)))
}

#[cfg(test)]
mod tests;
