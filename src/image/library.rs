//! The image library: immutable blobs named by their SHA-256, and manifests that say which of them a profile is.
//!
//! # On disk
//! ```text
//! <state>/images/blobs/<sha256>     bytes; written once, read-only, never changed or truncated
//! <state>/images/<profile>.json     Manifest: which blobs are the profile's kernel and ramdisk
//! <state>/images/profiles/<name>.json  a boot profile: see `boot_profiles`
//! ```
//! # What is atomic
//! A blob is written to a temporary name, synced, and renamed to its digest; a manifest likewise, after its blobs.
//! A reader therefore sees the old profile or the new one, whole. Running transfers keep the old blobs mapped
//! even after their names are gone.
//!
//! # What is refused
//! Each blob is hashed when it is opened for a manifest. One that is missing, of another size, or whose bytes do
//! not hash to its name is not served, and neither is its profile: [`Library::damage`] says so until a reload
//! finds it whole. The rest of the library is served meanwhile.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use arc_swap::ArcSwap;
use bytes::Bytes;
use nix::unistd::Uid;
use serde::{Deserialize, Serialize};

use crate::boot::script::{KernelArgument, ParseKernelArgumentError};
use crate::clock::Timestamp;
use crate::image::digest::Digest;
use crate::image::executable::{self, Signature};
use crate::net::sys;

mod boot_profiles;

pub use boot_profiles::{RemoveError, ServedProfile};

use boot_profiles::BootShelf;

/// A manifest is a few hundred bytes; anything much larger is not one.
const MANIFEST_BYTES_MAX: u64 = 1024 * 1024;
/// Profiles are few (`vm`, `metal`, a site's own); a directory full of files is a mistake, and is reported.
const PROFILES_MAX: usize = 256;

/// Which blobs make a profile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub profile: String,
    pub kernel: BlobRef,
    pub ramdisk: BlobRef,
    /// Words for the kernel command line that this kernel and ramdisk want, before the configuration's.
    #[serde(default)]
    pub arguments: Vec<String>,
    /// What it was made from, for people: package or file → version or digest.
    pub built_from: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlobRef {
    pub digest: Digest,
    pub bytes: u64,
}

/// Immutable bytes and what they hash to.
#[derive(Clone, Debug)]
pub struct Blob {
    pub bytes: Bytes,
    /// The file that `bytes` maps from its first byte to its last, for sendfile(2); absent for bytes in memory.
    pub file: Option<Arc<File>>,
    pub digest: Digest,
    pub size: u64,
    pub modified: Timestamp,
}

/// A manifest with its blobs open and verified.
#[derive(Clone, Debug)]
pub struct Profile {
    pub manifest: Manifest,
    /// The manifest's kernel command line words, checked.
    pub arguments: Vec<KernelArgument>,
    pub kernel: Blob,
    /// Whether the kernel still is what was signed.
    pub kernel_signature: Signature,
    pub ramdisk: Blob,
}

/// Something on disk that is not served, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub path: PathBuf,
    pub reason: String,
}

#[derive(Debug, thiserror::Error)]
#[error("{path}: the image library cannot be used here; the state directory must be writable by farrier")]
pub struct OpenError {
    pub path: PathBuf,
    #[source]
    pub source: io::Error,
}

#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error(
        "`{name}` is not a profile name: 1 to 63 lower-case letters, digits and inner hyphens are wanted"
    )]
    ProfileName { name: String },
    #[error("{path} could not be written")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is not what the manifest says ({reason}): add the blob again")]
    BadBlob { path: PathBuf, reason: String },
}

#[derive(Debug)]
pub struct Library {
    images: PathBuf,
    shelf: ArcSwap<Shelf>,
    boot: ArcSwap<BootShelf>,
    /// Reloads and publications, one at a time.
    writing: Mutex<()>,
}

#[derive(Debug, Default)]
struct Shelf {
    profiles: BTreeMap<String, Arc<Profile>>,
    damage: Vec<Damage>,
}

impl Library {
    /// Whether there is one in this state directory.
    pub fn exists(state: &Path) -> bool {
        state.join("images").is_dir()
    }

    /// Opens `<state>/images`, creating it if need be, and verifies everything the manifests name.
    pub fn open(state: &Path) -> Result<Library, OpenError> {
        let images = state.join("images");
        let blobs = images.join("blobs");
        fs::create_dir_all(&blobs).map_err(|source| OpenError { path: blobs, source })?;
        let library =
            Library { images, shelf: ArcSwap::default(), boot: ArcSwap::default(), writing: Mutex::new(()) };
        library.reload()?;
        Ok(library)
    }

    pub fn profile(&self, name: &str) -> Option<Arc<Profile>> {
        self.shelf.load().profiles.get(name).cloned()
    }

    /// Every profile that can be served, by name.
    pub fn profiles(&self) -> Vec<Arc<Profile>> {
        self.shelf.load().profiles.values().cloned().collect()
    }

    pub fn damage(&self) -> Vec<Damage> {
        self.shelf.load().damage.iter().chain(&self.boot.load().damage).cloned().collect()
    }

    /// Reads the manifests again. Blobs already open and verified are kept, not hashed again.
    pub fn reload(&self) -> Result<(), OpenError> {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.read_shelf(None)
    }

    /// Hashes a blob again that is open, and stops serving what needs it if it is not what it was.
    pub fn doubt(&self, digest: Digest) -> Result<(), OpenError> {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.read_shelf(Some(digest))
    }

    /// Every blob that is served, and its size.
    pub fn blobs(&self) -> BTreeMap<Digest, u64> {
        let (shelf, boot) = (self.shelf.load(), self.boot.load());
        let deploy = shelf.profiles.values().flat_map(|profile| [&profile.kernel, &profile.ramdisk]);
        deploy.chain(boot.blobs()).map(|blob| (blob.digest, blob.size)).collect()
    }

    /// Keeps `gc` away until what is added is named. Waits while one runs.
    pub fn hold(&self) -> Result<Held, PublishError> {
        let locked = writing_lock(&self.images).and_then(|file| file.lock_shared().map(|()| file));
        let path = self.images.clone();
        locked.map(|file| Held { _locked: file }).map_err(|source| PublishError::Write { path, source })
    }

    /// Stores the bytes of `source` under their digest. Storing the same bytes twice is one blob.
    pub fn add(&self, source: &mut dyn Read) -> Result<BlobRef, PublishError> {
        let blobs = self.images.join("blobs");
        let mut temporary = Temporary::create(&blobs)?;
        let path = temporary.path.clone();
        let written = |source| PublishError::Write { path: path.clone(), source };
        let (digest, bytes) = Digest::of_stream(source, |piece| temporary.file.write_all(piece))
            .and_then(|hashed| {
                // Read-only from here on: a mapped blob that shrank would kill the appliance with SIGBUS.
                temporary.file.set_permissions(Permissions::from_mode(0o444))?;
                Ok(hashed)
            })
            .map_err(written)?;
        temporary.publish_as(&blobs.join(digest.to_string()))?;
        Ok(BlobRef { digest, bytes })
    }

    /// Makes `manifest` what its profile is, then removes the blobs that only the manifest before it named.
    ///
    /// Its blobs must have been [added](Library::add); they are verified before the manifest is written.
    pub fn publish(&self, manifest: &Manifest) -> Result<(), PublishError> {
        if !is_profile_name(&manifest.profile) {
            return Err(PublishError::ProfileName { name: manifest.profile.escape_default().collect() });
        }
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        for blob in [manifest.kernel, manifest.ramdisk] {
            let path = self.blob_path(blob.digest);
            open_blob(&path, blob).map_err(|reason| PublishError::BadBlob { path, reason })?;
        }
        let path = self.images.join(format!("{}.json", manifest.profile));
        let replaced = read_manifest(&path).ok();
        let mut temporary = Temporary::create(&self.images)?;
        let written = |source| PublishError::Write { path: path.clone(), source };
        let text = serde_json::to_string_pretty(manifest).map_err(io::Error::from).map_err(written)?;
        temporary.file.write_all(text.as_bytes()).map_err(written)?;
        temporary.publish_as(&path)?;
        if let Some(replaced) = replaced {
            self.drop_unused(&[replaced.kernel.digest, replaced.ramdisk.digest]);
        }
        self.read_shelf(None).map_err(|error| PublishError::Write { path: error.path, source: error.source })
    }

    pub(in crate::image) fn blob_path(&self, digest: Digest) -> PathBuf {
        self.images.join("blobs").join(digest.to_string())
    }

    fn manifest_paths(&self) -> io::Result<Vec<PathBuf>> {
        json_files(&self.images)
    }

    /// Reads everything again. What is open was hashed then and is taken for good, `doubted` excepted.
    fn read_shelf(&self, doubted: Option<Digest>) -> Result<(), OpenError> {
        let paths =
            self.manifest_paths().map_err(|source| OpenError { path: self.images.clone(), source })?;
        let before = self.shelf.load_full();
        let mut verified: BTreeMap<Digest, Blob> = BTreeMap::new();
        for profile in before.profiles.values() {
            for blob in [&profile.kernel, &profile.ramdisk] {
                verified.insert(blob.digest, blob.clone());
            }
        }
        verified.retain(|digest, _| Some(*digest) != doubted);
        let mut shelf = Shelf::default();
        for path in paths {
            if shelf.profiles.len() == PROFILES_MAX {
                shelf.damage.push(Damage { path, reason: format!("more than {PROFILES_MAX} profiles") });
                break;
            }
            match self.open_profile(&path, &mut verified) {
                Ok(profile) => {
                    shelf.profiles.insert(profile.manifest.profile.clone(), Arc::new(profile));
                }
                Err(damage) => shelf.damage.push(damage),
            }
        }
        for damage in &shelf.damage {
            tracing::error!(path = %damage.path.display(), reason = damage.reason, "image not served");
        }
        self.shelf.store(Arc::new(shelf));
        self.read_boot_shelf(doubted);
        Ok(())
    }

    fn open_profile(&self, path: &Path, verified: &mut BTreeMap<Digest, Blob>) -> Result<Profile, Damage> {
        let manifest = read_manifest(path).map_err(|reason| Damage { path: path.to_owned(), reason })?;
        let mut open = |blob: BlobRef| -> Result<Blob, Damage> {
            let path = self.blob_path(blob.digest);
            match verified.get(&blob.digest) {
                Some(open) if open.size == blob.bytes => Ok(open.clone()),
                Some(_) | None => {
                    let opened = open_blob(&path, blob).map_err(|reason| Damage { path, reason })?;
                    verified.insert(blob.digest, opened.clone());
                    Ok(opened)
                }
            }
        };
        let (kernel, ramdisk) = (open(manifest.kernel)?, open(manifest.ramdisk)?);
        let arguments = manifest.arguments.iter().map(|word| word.parse()).collect::<Result<_, _>>();
        let arguments = arguments.map_err(|error: ParseKernelArgumentError| Damage {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
        let kernel_signature = executable::signature(&kernel.bytes);
        Ok(Profile { manifest, arguments, kernel, kernel_signature, ramdisk })
    }

    /// Removes those of `digests` that nothing names. Failing to is not an error: the blobs only take space.
    fn drop_unused(&self, digests: &[Digest]) {
        let Some(used) = self.used_blobs() else { return };
        for digest in digests.iter().filter(|digest| !used.contains(digest)) {
            let path = self.blob_path(*digest);
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "replaced blob not removed");
            }
        }
    }
}

/// The documents of a directory, by name.
fn json_files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// The same of a directory that is made with its first document.
pub(super) fn json_files_if_any(directory: &Path) -> io::Result<Vec<PathBuf>> {
    match json_files(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        found => found,
    }
}

/// A host name label, as everything that ends up in a URL and a file name here.
pub fn is_profile_name(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&name.len())
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

fn read_manifest(path: &Path) -> Result<Manifest, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let mut text = String::new();
    file.take(MANIFEST_BYTES_MAX).read_to_string(&mut text).map_err(|error| error.to_string())?;
    let manifest: Manifest = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    let named = path.file_stem().and_then(|stem| stem.to_str());
    if named != Some(&manifest.profile) || !is_profile_name(&manifest.profile) {
        return Err(format!("it describes profile `{}`", manifest.profile.escape_default()));
    }
    Ok(manifest)
}

/// Opens a blob of the size it should have.
pub(in crate::image) fn open_sized(path: &Path, expected: u64) -> Result<(File, Metadata), String> {
    let read = |error: io::Error| error.to_string();
    let file = File::open(path).map_err(read)?;
    let metadata = file.metadata().map_err(read)?;
    if !metadata.is_file() {
        return Err("not a regular file".to_owned());
    }
    if metadata.len() != expected {
        return Err(format!("{} bytes, {expected} are wanted", metadata.len()));
    }
    Ok((file, metadata))
}

/// Hashes a blob and maps the file that was hashed, which nobody may write to. The pass over all of it also brings it
/// into the page cache before the first node asks; reading, and not touching the mapping, keeps those pages out of
/// our own memory: HTTP sends them from the file, and never needs them here.
fn open_blob(path: &Path, expected: BlobRef) -> Result<Blob, String> {
    let read = |error: io::Error| error.to_string();
    let (mut file, metadata) = open_sized(path, expected.bytes)?;
    let (digest, size) = Digest::of_stream(&mut file, |_| Ok(())).map_err(read)?;
    if digest != expected.digest || size != expected.bytes {
        return Err(format!("its bytes hash to {digest}"));
    }
    map_blob(file, &metadata, expected).map_err(read)
}

/// An open blob, mapped.
pub(in crate::image) fn map_blob(file: File, metadata: &Metadata, named: BlobRef) -> io::Result<Blob> {
    let bytes = map_bytes(&file, named.bytes)?;
    let (digest, size) = (named.digest, named.bytes);
    Ok(Blob { bytes, file: Some(Arc::new(file)), digest, size, modified: modified_at(metadata) })
}

/// When a file was last written; 1970 if its file system cannot tell.
pub fn modified_at(metadata: &Metadata) -> Timestamp {
    let since = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    Timestamp::default().plus(since.unwrap_or_default())
}

fn map_bytes(file: &File, size: u64) -> io::Result<Bytes> {
    // mmap(2) has no mapping of length zero.
    if size == 0 { Ok(Bytes::new()) } else { Ok(Bytes::from_owner(sys::map_file(file)?)) }
}

/// While it lives, no blob is taken away because nothing names it yet.
#[derive(Debug)]
pub struct Held {
    _locked: File,
}

/// The file whose lock says who is writing blobs: whoever adds shares it, `gc` wants it alone.
pub(in crate::image) fn writing_lock(images: &Path) -> io::Result<File> {
    let path = images.join(".writing");
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    own_like(&file, images)?;
    Ok(file)
}

/// What root makes in a directory of the appliance is the appliance's: it runs as a user of its own.
pub(in crate::image) fn own_like(made: &File, directory: &Path) -> io::Result<()> {
    let (wanted, now) = (fs::metadata(directory)?, made.metadata()?);
    if Uid::effective().is_root() && (wanted.uid(), wanted.gid()) != (now.uid(), now.gid()) {
        fchown(made, Some(wanted.uid()), Some(wanted.gid()))?;
    }
    Ok(())
}

/// A file being written beside its final name; removed again unless published.
pub(in crate::image) struct Temporary {
    path: PathBuf,
    directory: PathBuf,
    pub(in crate::image) file: File,
    published: bool,
}

impl Temporary {
    pub(in crate::image) fn create(directory: &Path) -> Result<Temporary, PublishError> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!(".new-{}-{number}", std::process::id()));
        // A leftover of a process that died with our id.
        let _ = fs::remove_file(&path);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path);
        match file.and_then(|file| own_like(&file, directory).map(|()| file)) {
            Ok(file) => Ok(Temporary { path, directory: directory.to_owned(), file, published: false }),
            Err(source) => Err(PublishError::Write { path, source }),
        }
    }

    /// Durable under its final name when this returns: file synced, renamed, directory synced.
    pub(in crate::image) fn publish_as(&mut self, path: &Path) -> Result<(), PublishError> {
        self.place_as(path)?;
        let synced = File::open(&self.directory).and_then(|directory| directory.sync_all());
        synced.map_err(|source| PublishError::Write { path: path.to_owned(), source })
    }

    /// Whole under its final name, durable once its directory is synced: of thousands of files, once for all.
    pub(in crate::image) fn place_as(&mut self, path: &Path) -> Result<(), PublishError> {
        let placed = self.file.sync_all().and_then(|()| fs::rename(&self.path, path));
        placed.map_err(|source| PublishError::Write { path: path.to_owned(), source })?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.published {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests;
