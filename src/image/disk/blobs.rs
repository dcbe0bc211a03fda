//! Blobs of disk images, as an import writes them: each whole and named by its digest, or not there.
//!
//! A blob that is there already is hashed before it is relied on. Writing it then heals one that had gone bad.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::image::digest::Digest;
use crate::image::disk::place::{Place, remove_durably};
use crate::image::library::{BlobRef, PublishError, Temporary, open_sized};

/// Where one import puts its blobs, and what it has put there. Shared by its threads.
pub struct BlobWriter<'a> {
    place: &'a Place,
    added: Mutex<BTreeSet<Digest>>,
    added_bytes: AtomicU64,
}

impl<'a> BlobWriter<'a> {
    pub fn new(place: &'a Place) -> BlobWriter<'a> {
        BlobWriter { place, added: Mutex::default(), added_bytes: AtomicU64::new(0) }
    }

    /// Keeps the bytes, unless they are kept already. Durable after [`BlobWriter::sync`].
    pub fn keep(&self, bytes: &[u8]) -> Result<BlobRef, PublishError> {
        let blob = BlobRef { digest: Digest::of(bytes), bytes: bytes.len() as u64 };
        let path = self.place.blob(blob.digest);
        if check_blob(&path, blob).is_err() {
            // One that has gone bad is named by others already, and stays theirs.
            let is_new = !path.exists();
            let mut temporary = Temporary::create(&self.place.blobs())?;
            let written = temporary.file.write_all(bytes).and_then(|()| {
                // Read-only from here on: a mapped blob that shrank would kill the appliance with SIGBUS.
                temporary.file.set_permissions(Permissions::from_mode(0o444))
            });
            written.map_err(|source| PublishError::Write { path: path.clone(), source })?;
            temporary.place_as(&path)?;
            if is_new {
                self.added.lock().unwrap_or_else(PoisonError::into_inner).insert(blob.digest);
            }
            self.added_bytes.fetch_add(blob.bytes, Ordering::Relaxed);
        }
        // It is good now, whatever was found once.
        let mark = self.place.damage(blob.digest);
        remove_durably(&mark).map_err(|source| PublishError::Write { path: mark, source })?;
        Ok(blob)
    }

    /// The names of everything kept so far outlive a power cut from here on.
    pub fn sync(&self) -> Result<(), PublishError> {
        let path = self.place.blobs();
        let synced = File::open(&path).and_then(|directory| directory.sync_all());
        synced.map_err(|source| PublishError::Write { path, source })
    }

    /// Bytes that were not there before.
    pub fn added_bytes(&self) -> u64 {
        self.added_bytes.load(Ordering::Relaxed)
    }

    /// Removes what was added. Only while nobody else adds: another import may rely on it by now.
    pub fn take_back(&self) -> io::Result<()> {
        let added = std::mem::take(&mut *self.added.lock().unwrap_or_else(PoisonError::into_inner));
        added.into_iter().try_for_each(|digest| fs::remove_file(self.place.blob(digest)))
    }
}

/// Whether a blob still is what its name says; reads all of it.
pub fn check_blob(path: &Path, named: BlobRef) -> Result<(), String> {
    let (mut file, _) = open_sized(path, named.bytes)?;
    let (digest, _) = Digest::of_stream(&mut file, |_| Ok(())).map_err(|error| error.to_string())?;
    if digest == named.digest { Ok(()) } else { Err(format!("its bytes hash to {digest}")) }
}
