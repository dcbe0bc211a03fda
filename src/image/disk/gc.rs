//! Taking images away: first the name ([`remove`]), later the blobs that nothing names any more ([`collect`]).
//!
//! A blob stays if its digest stands in any document below `images/` (catalogue, deploy profiles, boot profiles), if it is
//! a pinned manifest, or if a manifest that stays names it. A document that cannot be read could name anything, so then
//! nothing is removed. Names only go while this runs, for it has the writing lock alone: what is unnamed stays unnamed.
//! The catalogue is read before the pins; see [`DiskShelf::pin`](super::shelf::DiskShelf::pin).

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::image::digest::Digest;
use crate::image::disk::catalogue::Entry;
use crate::image::disk::manifest::DiskManifest;
use crate::image::disk::place::{Place, digests_in, remove_durably};
use crate::image::disk::shelf::MANIFEST_BYTES_MAX;
use crate::image::library::is_profile_name;

/// `images/<kind>/<name>.json` is as deep as any lies.
const DEPTH_MAX: usize = 3;
/// Documents are small; manifests are blobs.
const DOCUMENT_BYTES_MAX: u64 = 4 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    #[error("no disk image `{name}`: `farrier image list` tells which there are")]
    NotFound { name: String },
    #[error(
        "image `{name}` is wanted by an install (manifest {manifest} is pinned): wait for it, or `farrier node abort`"
    )]
    Pinned { name: String, manifest: Digest },
    #[error("{} cannot be removed", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Takes a name out of the catalogue. Its blobs stay until [`collect`].
pub fn remove(place: &Place, name: &str) -> Result<Option<Entry>, RemoveError> {
    let path = place.entry(name);
    if !is_profile_name(name) || !path.exists() {
        return Err(RemoveError::NotFound { name: name.escape_default().collect() });
    }
    // One that cannot be read may be removed all the same.
    let entry = Entry::read(&path).ok();
    if let Some(entry) = &entry
        && place.pin(entry.manifest.digest).exists()
    {
        return Err(RemoveError::Pinned { name: name.to_owned(), manifest: entry.manifest.digest });
    }
    remove_durably(&path).map_err(|source| RemoveError::Write { path, source })?;
    Ok(entry)
}

#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    #[error("an import or a build is running, and its blobs have no name yet: try again when it is done")]
    Busy,
    #[error(
        "{} cannot be read ({reason}), so nobody knows which blobs it names: mend or remove it first",
        path.display()
    )]
    Unreadable { path: PathBuf, reason: String },
    #[error("{} cannot be removed", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// What was removed, and what stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    pub blobs: u64,
    pub bytes: u64,
    pub kept_blobs: u64,
    pub kept_bytes: u64,
}

/// Removes the blobs that nothing names, what interrupted writers left, and marks of damage of blobs that are gone.
pub fn collect(place: &Place) -> Result<Collected, CollectError> {
    let unreadable = |path: &Path, error: io::Error| CollectError::Unreadable {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    let images = place.images();
    let lock = place.writing_lock().map_err(|error| unreadable(images, error))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(CollectError::Busy),
        Err(TryLockError::Error(error)) => return Err(unreadable(images, error)),
    }
    let mut named = BTreeSet::new();
    name_by_documents(images, DEPTH_MAX, &mut named)?;
    name_by_manifests(place, &mut named)?;

    let mut collected = Collected::default();
    let blobs = fs::read_dir(place.blobs()).map_err(|error| unreadable(&place.blobs(), error))?;
    for blob in blobs {
        let blob = blob.map_err(|error| unreadable(&place.blobs(), error))?;
        let bytes = blob.metadata().map_or(0, |metadata| metadata.len());
        match blob.file_name().to_str().map(|name| (name, name.parse::<Digest>())) {
            Some((_, Ok(digest))) if named.contains(&digest) => {
                collected.kept_blobs += 1;
                collected.kept_bytes += bytes;
                continue;
            }
            Some((_, Ok(_))) => {}
            // Nobody is writing: its writer is gone.
            Some((name, Err(_))) if name.starts_with(".new-") => {}
            // Somebody else's, whatever it is.
            Some((_, Err(_))) | None => continue,
        }
        let path = blob.path();
        fs::remove_file(&path).map_err(|source| CollectError::Write { path, source })?;
        collected.blobs += 1;
        collected.bytes += bytes;
    }
    forget_marks(place)?;
    forget_partial(place, &mut collected)?;
    Ok(collected)
}

/// Every digest in every document.
fn name_by_documents(
    directory: &Path,
    depth: usize,
    named: &mut BTreeSet<Digest>,
) -> Result<(), CollectError> {
    let unreadable = |path: &Path, reason: String| CollectError::Unreadable { path: path.to_owned(), reason };
    let entries = fs::read_dir(directory).map_err(|error| unreadable(directory, error.to_string()))?;
    for entry in entries {
        let path = entry.map_err(|error| unreadable(directory, error.to_string()))?.path();
        if path.is_dir() && depth > 0 && !path.ends_with("blobs") {
            name_by_documents(&path, depth - 1, named)?;
        } else if path.extension().is_some_and(|extension| extension == "json") {
            let read = read_bounded(&path, DOCUMENT_BYTES_MAX);
            let parsed = read.and_then(|text| serde_json::from_slice(&text).map_err(io::Error::from));
            let document: Value = parsed.map_err(|error| unreadable(&path, error.to_string()))?;
            name_by_value(&document, named);
        }
    }
    Ok(())
}

/// serde_json refuses documents that nest deeper than this can go.
fn name_by_value(value: &Value, named: &mut BTreeSet<Digest>) {
    match value {
        Value::String(text) => named.extend(text.parse::<Digest>().ok()),
        Value::Array(values) => values.iter().for_each(|value| name_by_value(value, named)),
        Value::Object(fields) => fields.iter().for_each(|(key, value)| {
            named.extend(key.parse::<Digest>().ok());
            name_by_value(value, named);
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Manifests of the catalogue, then those that are pinned, and their chunks.
fn name_by_manifests(place: &Place, named: &mut BTreeSet<Digest>) -> Result<(), CollectError> {
    let mut manifests = BTreeSet::new();
    let entries = fs::read_dir(place.disks()).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    for path in paths.filter(|path| path.extension().is_some_and(|extension| extension == "json")) {
        match Entry::read(&path) {
            Ok(entry) => drop(manifests.insert(entry.manifest.digest)),
            Err(reason) if path.exists() => return Err(CollectError::Unreadable { path, reason }),
            // Removed just now.
            Err(_) => {}
        }
    }
    let pins = digests_in(&place.pins());
    manifests.extend(
        pins.map_err(|error| CollectError::Unreadable { path: place.pins(), reason: error.to_string() })?,
    );
    named.extend(&manifests);
    for digest in manifests {
        let path = place.blob(digest);
        if !path.exists() {
            // Its chunks are worth nothing without it; an import writes them anew.
            continue;
        }
        let read = read_bounded(&path, MANIFEST_BYTES_MAX);
        let parsed = read.and_then(|text| serde_json::from_slice(&text).map_err(io::Error::from));
        let manifest: DiskManifest =
            parsed.map_err(|error| CollectError::Unreadable { path, reason: error.to_string() })?;
        named.extend(manifest.chunks.iter().map(|chunk| chunk.blob));
    }
    Ok(())
}

fn read_bounded(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)?.take(bytes_max).read_to_end(&mut text)?;
    Ok(text)
}

fn forget_marks(place: &Place) -> Result<(), CollectError> {
    for digest in digests_in(&place.damaged()).unwrap_or_default() {
        if !place.blob(digest).exists() {
            let path = place.damage(digest);
            remove_durably(&path).map_err(|source| CollectError::Write { path, source })?;
        }
    }
    Ok(())
}

/// Downloads that nobody goes on with at the moment.
fn forget_partial(place: &Place, collected: &mut Collected) -> Result<(), CollectError> {
    for digest in digests_in(&place.partial()).unwrap_or_default() {
        let path = place.partial().join(digest.to_string());
        let Ok(file) = File::open(&path) else { continue };
        if file.try_lock().is_err() {
            continue;
        }
        collected.blobs += 1;
        collected.bytes += file.metadata().map_or(0, |metadata| metadata.len());
        let _ = fs::remove_file(path.with_extension("tag"));
        fs::remove_file(&path).map_err(|source| CollectError::Write { path, source })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
