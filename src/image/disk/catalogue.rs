//! What a name stands for: one small document a disk image.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::image::digest::Digest;
use crate::image::disk::place::{Place, write_text};
use crate::image::library::{BlobRef, Damage, PublishError, is_profile_name, json_files_if_any};

/// An entry is a few hundred bytes; anything much larger is not one.
const ENTRY_BYTES_MAX: u64 = 64 * 1024;
/// A site has a handful of images; a directory full of files is a mistake, and is reported.
pub const IMAGES_MAX: usize = 256;
/// What an operator writes beside an image is a line.
pub const DESCRIPTION_LENGTH_MAX: usize = 1000;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    pub name: String,
    pub manifest: BlobRef,
    /// Of the disk, and what its bytes hash to; as the manifest says.
    pub bytes: u64,
    pub sha256: Digest,
    /// Where it came from: a file, a URL, a recipe. For people.
    pub source: String,
    #[serde(default)]
    pub description: String,
    pub imported_at: Timestamp,
}

/// Everything the catalogue says, by name, and what in it says nothing.
#[derive(Debug, Default)]
pub struct Catalogue {
    pub entries: Vec<Entry>,
    pub damage: Vec<Damage>,
}

impl Catalogue {
    pub fn read(place: &Place) -> io::Result<Catalogue> {
        let mut catalogue = Catalogue::default();
        for path in json_files_if_any(&place.disks())? {
            if catalogue.entries.len() == IMAGES_MAX {
                let reason = format!("more than {IMAGES_MAX} disk images");
                catalogue.damage.push(Damage { path, reason });
                break;
            }
            match Entry::read(&path) {
                Ok(entry) => catalogue.entries.push(entry),
                Err(reason) => catalogue.damage.push(Damage { path, reason }),
            }
        }
        Ok(catalogue)
    }

    pub fn names_manifest(&self, digest: Digest) -> bool {
        self.entries.iter().any(|entry| entry.manifest.digest == digest)
    }
}

impl Entry {
    pub fn read(path: &Path) -> Result<Entry, String> {
        let file = File::open(path).map_err(|error| error.to_string())?;
        let mut text = String::new();
        file.take(ENTRY_BYTES_MAX).read_to_string(&mut text).map_err(|error| error.to_string())?;
        let entry: Entry = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let named = path.file_stem().and_then(|stem| stem.to_str());
        if named != Some(&entry.name) || !is_profile_name(&entry.name) {
            return Err(format!("it describes image `{}`", entry.name.escape_default()));
        }
        Ok(entry)
    }

    pub fn publish(&self, place: &Place) -> Result<(), PublishError> {
        let path = place.entry(&self.name);
        let text = serde_json::to_string_pretty(self).map_err(io::Error::from);
        let text = text.map_err(|source| PublishError::Write { path: path.clone(), source })?;
        write_text(&path, &text)
    }
}
