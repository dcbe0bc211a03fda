//! Boot profiles in the library: `images/profiles/<name>.json`, each naming blobs like any other's.
//!
//! A document is written after its blobs, whole or not at all. `farrier profile add` writes it while the appliance runs,
//! which looks at the directory every second and reads what is new. A profile that is damaged is not served, and said so;
//! the rest of the library is served meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use super::{
    Blob, BlobRef, Damage, Held, Library, MANIFEST_BYTES_MAX, PROFILES_MAX, PublishError, Temporary,
    open_blob, read_manifest, writing_lock,
};
use crate::boot::profile::{BootProfile, ProfileFile, ProfileName};
use crate::image::digest::Digest;
use crate::image::executable;

/// File systems stamp changes by their clock's tick: a second change within it leaves the same time.
const STAMP_GRAIN: Duration = Duration::from_secs(1);

/// A boot profile with its blobs open and verified.
#[derive(Clone, Debug)]
pub struct ServedProfile {
    pub profile: BootProfile,
    blobs: BTreeMap<ProfileFile, Blob>,
}

impl ServedProfile {
    pub fn blob(&self, file: ProfileFile) -> Option<&Blob> {
        self.blobs.get(&file)
    }
}

#[derive(Debug, Default)]
pub(super) struct BootShelf {
    profiles: BTreeMap<ProfileName, Arc<ServedProfile>>,
    pub(super) damage: Vec<Damage>,
    /// When the directory had changed last when it was read; absent if it may change again without showing it.
    read_as_of: Option<SystemTime>,
}

impl BootShelf {
    pub(super) fn blobs(&self) -> impl Iterator<Item = &Blob> {
        self.profiles.values().flat_map(|served| served.blobs.values())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    #[error("there is no boot profile {0}")]
    NotFound(ProfileName),
    #[error("{path} could not be removed")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Library {
    fn boot_directory(&self) -> PathBuf {
        self.images.join("profiles")
    }

    pub fn boot_profile(&self, name: &ProfileName) -> Option<Arc<ServedProfile>> {
        self.boot.load().profiles.get(name).cloned()
    }

    /// Every boot profile that can be served, by name.
    pub fn boot_profiles(&self) -> Vec<Arc<ServedProfile>> {
        self.boot.load().profiles.values().cloned().collect()
    }

    /// Boot profiles that are not served, and why.
    pub fn boot_damage(&self) -> Vec<Damage> {
        self.boot.load().damage.clone()
    }

    /// Makes the document what the profile of its name is. Its blobs must have been [added](Library::add).
    pub fn publish_boot_profile(&self, profile: &BootProfile) -> Result<(), PublishError> {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, blob) in profile.what.files() {
            let path = self.blob_path(blob.digest);
            open_blob(&path, blob).map_err(|reason| PublishError::BadBlob { path, reason })?;
        }
        let directory = self.boot_directory();
        make_like_parent(&directory)
            .map_err(|source| PublishError::Write { path: directory.clone(), source })?;
        let path = directory.join(format!("{}.json", profile.name));
        let replaced = read_document(&path).ok();
        let mut temporary = Temporary::create(&directory)?;
        let written = |source| PublishError::Write { path: path.clone(), source };
        let text = serde_json::to_string_pretty(profile).map_err(io::Error::from).map_err(written)?;
        temporary.file.write_all(text.as_bytes()).map_err(written)?;
        temporary.publish_as(&path)?;
        if let Some(replaced) = replaced {
            self.drop_unused(&digests(&replaced));
        }
        self.read_boot_shelf(None);
        Ok(())
    }

    /// Takes the document away, then the blobs that only it named. What is being sent is sent to its end.
    pub fn remove_boot_profile(&self, name: &ProfileName) -> Result<(), RemoveError> {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = self.boot_directory();
        let path = directory.join(format!("{name}.json"));
        let removed = read_document(&path).ok();
        let gone = fs::remove_file(&path).and_then(|()| File::open(&directory)?.sync_all());
        gone.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => RemoveError::NotFound(name.clone()),
            _ => RemoveError::Write { path, source },
        })?;
        if let Some(removed) = removed {
            self.drop_unused(&digests(&removed));
        }
        self.read_boot_shelf(None);
        Ok(())
    }

    /// Removes blobs that were added for a profile and that nothing came to name. While somebody else adds blobs they stay,
    /// for they may be his as well; `gc` takes them later.
    pub fn forget_blobs(&self, held: Held, blobs: &[BlobRef]) {
        drop(held);
        let Ok(alone) = writing_lock(&self.images) else { return };
        if alone.try_lock().is_err() {
            return;
        }
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.drop_unused(&blobs.iter().map(|blob| blob.digest).collect::<Vec<_>>());
    }

    /// Reads the boot profiles again if their directory has changed; true if it had. Hashes what is new, so it may take
    /// as long as that.
    pub fn notice_boot_profiles(&self) -> bool {
        let stamp = stamp_of(&self.boot_directory());
        let before = self.boot.load();
        if stamp.is_none() && before.profiles.is_empty() && before.damage.is_empty() {
            return false;
        }
        if stamp.is_some() && stamp == before.read_as_of {
            return false;
        }
        drop(before);
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.read_boot_shelf(None)
    }

    /// Everything that a manifest or a boot profile names; `None` if one cannot be read, for what it names is unknown then.
    pub fn used_blobs(&self) -> Option<BTreeSet<Digest>> {
        let mut used = BTreeSet::new();
        for path in self.manifest_paths().ok()? {
            let manifest = read_manifest(&path).ok()?;
            used.extend([manifest.kernel.digest, manifest.ramdisk.digest]);
        }
        for path in self.document_paths().ok()? {
            used.extend(digests(&read_document(&path).ok()?));
        }
        Some(used)
    }

    fn document_paths(&self) -> io::Result<Vec<PathBuf>> {
        super::json_files_if_any(&self.boot_directory())
    }

    /// True if what is served, or what is not, is another than before.
    pub(super) fn read_boot_shelf(&self, doubted: Option<Digest>) -> bool {
        let directory = self.boot_directory();
        // Before it is read: what changes meanwhile shows at the next look.
        let stamp = stamp_of(&directory)
            .filter(|stamp| SystemTime::now().duration_since(*stamp).is_ok_and(|since| since > STAMP_GRAIN));
        let before = self.boot.load_full();
        let verified = before.blobs().filter(|blob| Some(blob.digest) != doubted);
        let mut verified: BTreeMap<Digest, Blob> = verified.map(|blob| (blob.digest, blob.clone())).collect();
        let mut shelf = BootShelf { read_as_of: stamp, ..BootShelf::default() };
        let paths = self.document_paths().unwrap_or_else(|error| {
            shelf.damage.push(Damage { path: directory, reason: error.to_string() });
            Vec::new()
        });
        for path in paths {
            if shelf.profiles.len() == PROFILES_MAX {
                shelf.damage.push(Damage { path, reason: format!("more than {PROFILES_MAX} profiles") });
                break;
            }
            match self.open_document(&path, &mut verified) {
                Ok(served) => {
                    shelf.profiles.insert(served.profile.name.clone(), Arc::new(served));
                }
                Err(damage) => shelf.damage.push(damage),
            }
        }
        let same = shelf.damage == before.damage
            && shelf.profiles.len() == before.profiles.len()
            && shelf.profiles.iter().zip(&before.profiles).all(|(a, b)| a.1.profile == b.1.profile);
        for damage in shelf.damage.iter().filter(|damage| !before.damage.contains(damage)) {
            tracing::error!(path = %damage.path.display(), reason = damage.reason, "boot profile not served");
        }
        self.boot.store(Arc::new(shelf));
        !same
    }

    fn open_document(
        &self,
        path: &Path,
        verified: &mut BTreeMap<Digest, Blob>,
    ) -> Result<ServedProfile, Damage> {
        let damaged = |reason| Damage { path: path.to_owned(), reason };
        let mut profile = read_document(path).map_err(damaged)?;
        let mut blobs = BTreeMap::new();
        for (file, blob) in profile.what.files() {
            let open = match verified.get(&blob.digest).filter(|open| open.size == blob.bytes) {
                Some(open) => open.clone(),
                None => {
                    let path = self.blob_path(blob.digest);
                    let opened = open_blob(&path, blob);
                    opened.map_err(|reason| Damage { path: path.clone(), reason })?
                }
            };
            verified.insert(blob.digest, open.clone());
            blobs.insert(file, open);
        }
        let main = blobs.get(&profile.what.main().0);
        profile.program = main.map(|blob| executable::program(&blob.bytes)).unwrap_or_default();
        Ok(ServedProfile { profile, blobs })
    }
}

fn digests(profile: &BootProfile) -> Vec<Digest> {
    profile.what.files().iter().map(|(_, blob)| blob.digest).collect()
}

fn stamp_of(directory: &Path) -> Option<SystemTime> {
    fs::metadata(directory).and_then(|metadata| metadata.modified()).ok()
}

fn read_document(path: &Path) -> Result<BootProfile, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let mut text = String::new();
    file.take(MANIFEST_BYTES_MAX).read_to_string(&mut text).map_err(|error| error.to_string())?;
    let profile: BootProfile = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    let named = path.file_stem().and_then(|stem| stem.to_str());
    if named != Some(profile.name.as_str()) {
        return Err(format!("it describes profile `{}`", profile.name));
    }
    profile.check()?;
    Ok(profile)
}

/// The appliance takes profiles away as a user of its own, whoever made the directory.
fn make_like_parent(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    let Some(parent) = directory.parent() else { return Ok(()) };
    let (wanted, now) = (fs::metadata(parent)?, fs::metadata(directory)?);
    match (wanted.uid(), wanted.gid()) == (now.uid(), now.gid()) {
        true => Ok(()),
        false => chown(directory, Some(wanted.uid()), Some(wanted.gid())),
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::boot::profile::{Program, What};
    use crate::image::library::Manifest;

    fn library() -> (TempDir, Library) {
        let state = tempfile::tempdir().unwrap();
        let library = Library::open(state.path()).unwrap();
        (state, library)
    }

    fn live(library: &Library, name: &str, kernel: &str, initrd: &str) -> BootProfile {
        let add = |text: &str| library.add(&mut text.as_bytes()).unwrap();
        let what = What::Kernel { kernel: add(kernel), initrds: vec![add(initrd)], arguments: Vec::new() };
        BootProfile {
            name: name.parse().unwrap(),
            what,
            one_shot: false,
            description: None,
            program: Program::default(),
        }
    }

    fn blobs(state: &TempDir) -> usize {
        fs::read_dir(state.path().join("images/blobs")).unwrap().count()
    }

    #[test]
    fn a_profile_is_served_once_it_is_whole_and_gone_with_its_blobs_once_removed() {
        let (state, library) = library();
        let profile = live(&library, "live", "kernel", "initrd");
        library.publish_boot_profile(&profile).unwrap();
        let served = library.boot_profile(&profile.name).unwrap();
        assert_eq!(served.profile, profile);
        assert_eq!(&served.blob(ProfileFile::Initrd(0)).unwrap().bytes[..], b"initrd");
        assert!(served.blob(ProfileFile::Iso).is_none() && library.profiles().is_empty());
        // Another start finds it; what it shares with another stays.
        let other = live(&library, "other", "kernel", "second");
        library.publish_boot_profile(&other).unwrap();
        assert_eq!(Library::open(state.path()).unwrap().boot_profiles().len(), 2);
        assert_eq!(library.used_blobs().unwrap().len(), 3);
        library.remove_boot_profile(&profile.name).unwrap();
        assert!(library.boot_profile(&profile.name).is_none());
        assert_eq!(blobs(&state), 2, "the kernel is the other's as well");
        assert!(matches!(library.remove_boot_profile(&profile.name), Err(RemoveError::NotFound(_))));
        // One that is replaced lets go of what it was made of.
        library.publish_boot_profile(&live(&library, "other", "kernel", "third")).unwrap();
        assert_eq!(blobs(&state), 2);
    }

    #[test]
    fn blobs_of_profiles_outlive_the_deploy_image_that_named_them_too() {
        let (state, library) = library();
        let publish = |ramdisk: &str| {
            let manifest = Manifest {
                profile: "vm".to_owned(),
                kernel: library.add(&mut "kernel".as_bytes()).unwrap(),
                ramdisk: library.add(&mut ramdisk.as_bytes()).unwrap(),
                arguments: Vec::new(),
                built_from: BTreeMap::new(),
            };
            library.publish(&manifest).unwrap();
        };
        publish("ramdisk");
        let profile = live(&library, "same", "kernel", "ramdisk");
        library.publish_boot_profile(&profile).unwrap();
        publish("another");
        assert_eq!(blobs(&state), 3);
        assert_eq!(
            &library.boot_profile(&profile.name).unwrap().blob(ProfileFile::Initrd(0)).unwrap().bytes[..],
            b"ramdisk"
        );
    }

    #[test]
    fn what_another_program_adds_is_noticed_and_damage_is_told() {
        let (state, library) = library();
        assert!(!library.notice_boot_profiles());
        let writer = Library::open(state.path()).unwrap();
        let profile = live(&writer, "live", "kernel", "initrd");
        writer.publish_boot_profile(&profile).unwrap();
        assert!(library.notice_boot_profiles());
        assert!(library.boot_profile(&profile.name).is_some());
        assert!(!library.notice_boot_profiles(), "nothing new");

        let path = state.path().join("images/profiles/broken.json");
        for (text, why) in [
            ("{", "EOF"),
            (
                "{\"name\":\"live\",\"what\":{\"kind\":\"iso\",\"image\":{\"digest\":\"x\",\"bytes\":1}}}",
                "digest",
            ),
        ] {
            fs::write(&path, text).unwrap();
            library.reload().unwrap();
            let told = library.damage();
            assert!(told.len() == 1 && told[0].path == path, "{told:?} {why}");
        }
        assert!(library.used_blobs().is_none(), "what it names is unknown: nothing is unused");
        fs::remove_file(&path).unwrap();
        assert!(library.notice_boot_profiles() && library.damage().is_empty());

        // A blob that changed is not served, nor is its profile.
        let (_, kernel) = profile.what.main();
        let blob = state.path().join("images/blobs").join(kernel.digest.to_string());
        fs::remove_file(&blob).unwrap();
        fs::write(&blob, "kernal").unwrap();
        let again = Library::open(state.path()).unwrap();
        assert!(again.boot_profiles().is_empty());
        assert!(again.damage()[0].reason.contains("hash"), "{:?}", again.damage());
    }
}
