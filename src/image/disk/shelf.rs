//! The disk images that can be installed, as the appliance serves them.
//!
//! A manifest is served while a name in the catalogue stands for it, or while it is pinned: an install goes on with the
//! bytes it began with, whatever the name stands for by then. Its chunks are opened when they are first asked for, and a
//! bounded number of them stays open; all downloads of one chunk send the same pages.
//!
//! # What is refused
//! A manifest is hashed when it is read, and its chunks must all be there, of the right size. A blob that was found to be
//! something else ([`super::scrub`]) is marked on disk; images that need it are damage until it is imported again.
//! Chunks are not hashed when they are opened: whoever installs them does that.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;

use crate::clock::Timestamp;
use crate::image::digest::Digest;
use crate::image::disk::blobs::check_blob;
use crate::image::disk::catalogue::{Catalogue, Entry};
use crate::image::disk::manifest::DiskManifest;
use crate::image::disk::place::{Place, digests_in, remove_durably, write_text};
use crate::image::library::{Blob, BlobRef, Damage, OpenError, PublishError, map_blob, open_sized};

/// A million chunks: 4 TiB all filled. It is parsed as a whole, here and in a ramdisk.
pub const MANIFEST_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Chunks held open: half a GiB of disk, which is as far apart as ten machines that install at once drift.
const OPEN_CHUNKS_MAX: usize = 128;
/// A directory changed this lately may change once more within the same tick of its file system's clock.
const TICK: Duration = Duration::from_secs(1);

/// One image of the catalogue.
#[derive(Clone, Debug)]
pub struct DiskImage {
    pub name: String,
    pub description: String,
    pub source: String,
    pub imported_at: Timestamp,
    pub manifest_blob: BlobRef,
    pub manifest: Arc<DiskManifest>,
}

impl DiskImage {
    pub fn new(entry: Entry, manifest: Arc<DiskManifest>) -> DiskImage {
        let Entry { name, description, source, imported_at, manifest: manifest_blob, .. } = entry;
        DiskImage { name, description, source, imported_at, manifest_blob, manifest }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum PinError {
    #[error("no image in the catalogue has the manifest {manifest}: `farrier image list`")]
    NotThere { manifest: Digest },
    #[error(transparent)]
    Write(#[from] PublishError),
}

#[derive(Debug)]
pub struct DiskShelf {
    place: Place,
    held: ArcSwap<Held>,
    /// Reloads, one at a time, and what the directories looked like at the last one.
    seen: Mutex<Option<Seen>>,
    open: Mutex<OpenChunks>,
}

#[derive(Debug, Default)]
struct Held {
    images: BTreeMap<String, Arc<DiskImage>>,
    manifests: BTreeMap<Digest, Arc<Served>>,
    pins: BTreeSet<Digest>,
    damage: Vec<Damage>,
}

/// A manifest that may be asked for.
#[derive(Debug)]
struct Served {
    blob: Blob,
    manifest: Arc<DiskManifest>,
    /// Size of each blob it names.
    chunks: HashMap<Digest, u32>,
}

/// When each watched directory was changed last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen([Option<SystemTime>; 3]);

/// Blobs that were asked for lately, the last one last.
#[derive(Debug, Default)]
struct OpenChunks {
    blobs: HashMap<Digest, Blob>,
    order: VecDeque<Digest>,
}

impl DiskShelf {
    /// Opens what is in `<state>/images`, making directories that are missing. Where nothing can be made, what is there
    /// is served all the same.
    pub fn open(state: &Path) -> Result<DiskShelf, OpenError> {
        let place = match Place::open(state) {
            Ok(place) => place,
            Err(error) if is_read_only(&error.source) => Place::at(state),
            Err(error) => return Err(error),
        };
        let shelf =
            DiskShelf { place, held: ArcSwap::default(), seen: Mutex::default(), open: Mutex::default() };
        shelf.reload()?;
        Ok(shelf)
    }

    /// Every image that can be installed, by name.
    pub fn list(&self) -> Vec<Arc<DiskImage>> {
        self.held.load().images.values().cloned().collect()
    }

    pub fn get(&self, name: &str) -> Option<Arc<DiskImage>> {
        self.held.load().images.get(name).cloned()
    }

    /// A manifest as it is kept, of an image or pinned.
    pub fn manifest(&self, digest: Digest) -> Option<Blob> {
        self.held.load().manifests.get(&digest).map(|served| served.blob.clone())
    }

    pub fn disk_manifest(&self, digest: Digest) -> Option<Arc<DiskManifest>> {
        self.held.load().manifests.get(&digest).map(|served| served.manifest.clone())
    }

    /// A chunk, if that manifest names it.
    pub fn chunk(&self, manifest: Digest, blob: Digest) -> Option<Blob> {
        let size = *self.held.load().manifests.get(&manifest)?.chunks.get(&blob)?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = open.get(blob) {
            return Some(known);
        }
        let path = self.place.blob(blob);
        let named = BlobRef { digest: blob, bytes: size.into() };
        let opened = open_sized(&path, named.bytes)
            .and_then(|(file, metadata)| map_blob(file, &metadata, named).map_err(|error| error.to_string()));
        match opened {
            Ok(chunk) => {
                open.insert(chunk.clone());
                Some(chunk)
            }
            Err(reason) => {
                drop(open);
                tracing::error!(path = %path.display(), reason, "chunk of a disk image not served");
                // Whoever made it go missing may have made others: look at all of them. Too many files open is no reason.
                if check_size(&path, named.bytes).is_err() {
                    let _ = self.reload_anew();
                }
                None
            }
        }
    }

    pub fn damage(&self) -> Vec<Damage> {
        self.held.load().damage.clone()
    }

    /// Keeps a manifest and its chunks for an install, until unpinned.
    ///
    /// The pin is on disk before the catalogue is asked, and `gc` asks the catalogue before the pins: a manifest that
    /// loses its name meanwhile is seen by one of both.
    pub fn pin(&self, manifest: Digest) -> Result<(), PinError> {
        let path = self.place.pin(manifest);
        let had = path.exists();
        write_text(&path, "")?;
        let named = Catalogue::read(&self.place).is_ok_and(|catalogue| catalogue.names_manifest(manifest));
        if !had && !named {
            self.unpin(manifest)?;
            return Err(PinError::NotThere { manifest });
        }
        Ok(self.reload().map_err(write_error)?)
    }

    pub fn unpin(&self, manifest: Digest) -> Result<(), PublishError> {
        let path = self.place.pin(manifest);
        remove_durably(&path).map_err(|source| PublishError::Write { path, source })?;
        self.reload().map_err(write_error)
    }

    pub fn pins(&self) -> BTreeSet<Digest> {
        self.held.load().pins.clone()
    }
}

/// Keeping the shelf what the directories say.
impl DiskShelf {
    /// Reads the catalogue, the pins and the marks of damage again. Manifests that are served stay as they are.
    pub fn reload(&self) -> Result<(), OpenError> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.held.load_full();
        self.read(&mut seen, &before.manifests)
    }

    /// The same, with every manifest and chunk looked for again.
    fn reload_anew(&self) -> Result<(), OpenError> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        self.read(&mut seen, &BTreeMap::new())
    }

    /// Reloads if another process imported, removed or pinned something; whether it did. Costs three calls if not.
    pub fn refresh_if_changed(&self) -> Result<bool, OpenError> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.is_some_and(|seen| seen == self.look()) {
            return Ok(false);
        }
        let before = self.held.load_full();
        self.read(&mut seen, &before.manifests)?;
        Ok(true)
    }

    /// A blob was found to be something else: nothing that needs it is served any more, also after a restart.
    pub fn mark_damaged(&self, blob: Digest, reason: &str) -> Result<(), PublishError> {
        let marked = write_text(&self.place.damage(blob), reason);
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(blob);
        self.reload().map_err(write_error)?;
        marked
    }

    /// A blob that was marked is what it should be.
    pub fn clear_damage(&self, blob: Digest) -> Result<(), PublishError> {
        let path = self.place.damage(blob);
        match remove_durably(&path).map_err(|source| PublishError::Write { path, source })? {
            true => self.reload().map_err(write_error),
            false => Ok(()),
        }
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// Every blob that is served, manifests and chunks.
    pub(super) fn blobs(&self) -> BTreeMap<Digest, u64> {
        let held = self.held.load();
        let manifests = held.manifests.iter().map(|(digest, served)| (*digest, served.blob.size));
        let chunks = held.manifests.values().flat_map(|served| &served.chunks);
        manifests.chain(chunks.map(|(digest, size)| (*digest, u64::from(*size)))).collect()
    }

    pub(super) fn serves(&self, blob: Digest) -> bool {
        let held = self.held.load();
        held.manifests.contains_key(&blob)
            || held.manifests.values().any(|served| served.chunks.contains_key(&blob))
    }

    fn look(&self) -> Seen {
        let changed = |path: PathBuf| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
        Seen([self.place.disks(), self.place.pins(), self.place.damaged()].map(changed))
    }

    fn read(&self, seen: &mut Option<Seen>, known: &BTreeMap<Digest, Arc<Served>>) -> Result<(), OpenError> {
        let failed = |path: PathBuf| move |source| OpenError { path, source };
        let looks = self.look();
        let catalogue = Catalogue::read(&self.place).map_err(failed(self.place.disks()))?;
        let pins = digests_in(&self.place.pins()).map_err(failed(self.place.pins()))?;
        let marked = digests_in(&self.place.damaged()).map_err(failed(self.place.damaged()))?;
        let marked = Marked { place: &self.place, blobs: marked.into_iter().collect() };
        let mut held = Held { damage: catalogue.damage, ..Held::default() };
        for entry in catalogue.entries {
            match self.serve(entry.manifest, &entry.name, known, &marked) {
                Ok(served) => {
                    let image = DiskImage::new(entry, served.manifest.clone());
                    held.manifests.insert(image.manifest_blob.digest, served);
                    held.images.insert(image.name.clone(), Arc::new(image));
                }
                Err(damage) => held.damage.push(damage),
            }
        }
        for digest in pins {
            held.pins.insert(digest);
            if held.manifests.contains_key(&digest) {
                continue;
            }
            // The pin does not say how large it is; its digest does.
            let bytes = fs::metadata(self.place.blob(digest)).map_or(0, |metadata| metadata.len());
            match self.serve(BlobRef { digest, bytes }, "pinned", known, &marked) {
                Ok(served) => drop(held.manifests.insert(digest, served)),
                Err(damage) if held.damage.contains(&damage) => {}
                Err(damage) => held.damage.push(damage),
            }
        }
        let before = self.held.load();
        for damage in held.damage.iter().filter(|damage| !before.damage.contains(damage)) {
            tracing::error!(path = %damage.path.display(), reason = damage.reason, "disk image not served");
        }
        self.held.store(Arc::new(held));
        let now = SystemTime::now();
        let settled = |time: SystemTime| now.duration_since(time).is_ok_and(|age| age > TICK);
        *seen = Some(looks).filter(|Seen(times)| times.iter().flatten().all(|time| settled(*time)));
        Ok(())
    }

    /// Reads a manifest, unless it is known, and sees whether its chunks are there.
    fn serve(
        &self,
        named: BlobRef,
        image: &str,
        known: &BTreeMap<Digest, Arc<Served>>,
        marked: &Marked,
    ) -> Result<Arc<Served>, Damage> {
        marked.check(named.digest, image)?;
        let served = match known.get(&named.digest) {
            Some(served) => served.clone(),
            None => Arc::new(read_manifest(&self.place, named, image)?),
        };
        for digest in served.chunks.keys().filter(|_| !marked.blobs.is_empty()) {
            marked.check(*digest, image)?;
        }
        Ok(served)
    }
}

/// Whether a blob is there, without opening it.
fn check_size(path: &Path, expected: u64) -> Result<(), String> {
    let metadata = fs::metadata(path).map_err(|error| error.to_string())?;
    match metadata.is_file() && metadata.len() == expected {
        true => Ok(()),
        false => Err(format!("{} bytes, {expected} are wanted", metadata.len())),
    }
}

fn is_read_only(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

fn write_error(error: OpenError) -> PublishError {
    PublishError::Write { path: error.path, source: error.source }
}

struct Marked<'a> {
    place: &'a Place,
    blobs: BTreeSet<Digest>,
}

impl Marked<'_> {
    fn check(&self, blob: Digest, image: &str) -> Result<(), Damage> {
        /// A mark is a line.
        const REASON_BYTES_MAX: u64 = 1000;
        if !self.blobs.contains(&blob) {
            return Ok(());
        }
        let mut reason = String::new();
        let mark = File::open(self.place.damage(blob));
        let read = mark.and_then(|file| {
            io::Read::read_to_string(&mut io::Read::take(file, REASON_BYTES_MAX), &mut reason)
        });
        if read.is_err() {
            reason = "marked as damaged".to_owned();
        }
        Err(Damage { path: self.place.blob(blob), reason: of_image(image, &reason) })
    }
}

/// What is wrong with an image's blob, and what helps.
fn of_image(image: &str, reason: &str) -> String {
    format!("image `{image}`: {reason}; import it again")
}

fn read_manifest(place: &Place, named: BlobRef, image: &str) -> Result<Served, Damage> {
    let path = place.blob(named.digest);
    let damage =
        |path: &Path, reason: &str| Damage { path: path.to_owned(), reason: of_image(image, reason) };
    if named.bytes > MANIFEST_BYTES_MAX {
        return Err(damage(&path, "its manifest is larger than any"));
    }
    check_blob(&path, named).map_err(|reason| damage(&path, &reason))?;
    let opened = open_sized(&path, named.bytes)
        .and_then(|(file, metadata)| map_blob(file, &metadata, named).map_err(|error| error.to_string()));
    let blob = opened.map_err(|reason| damage(&path, &reason))?;
    let manifest: DiskManifest =
        serde_json::from_slice(&blob.bytes).map_err(|error| damage(&path, &error.to_string()))?;
    manifest.check().map_err(|fault| damage(&path, &fault.to_string()))?;
    let mut chunks = HashMap::with_capacity(manifest.chunks.len());
    for chunk in &manifest.chunks {
        if chunks.insert(chunk.blob, chunk.stored_bytes).is_none() {
            let path = place.blob(chunk.blob);
            check_size(&path, chunk.stored_bytes.into()).map_err(|reason| damage(&path, &reason))?;
        }
    }
    Ok(Served { blob, manifest: Arc::new(manifest), chunks })
}

impl OpenChunks {
    fn get(&mut self, digest: Digest) -> Option<Blob> {
        let blob = self.blobs.get(&digest)?.clone();
        // Bounded, so looking for it is short.
        self.order.retain(|other| *other != digest);
        self.order.push_back(digest);
        Some(blob)
    }

    fn insert(&mut self, blob: Blob) {
        if self.order.len() == OPEN_CHUNKS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.blobs.remove(&oldest);
        }
        self.order.push_back(blob.digest);
        self.blobs.insert(blob.digest, blob);
    }

    fn remove(&mut self, digest: Digest) {
        self.order.retain(|other| *other != digest);
        self.blobs.remove(&digest);
    }
}

#[cfg(test)]
mod tests;
