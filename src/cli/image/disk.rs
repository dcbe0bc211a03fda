//! `farrier image import|show|verify|rm|gc`: disk images, in the state directory itself; the appliance need not run, and
//! one that does sees the change.

use std::path::Path;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::cli::error::{CommandError, error_chain};
use crate::cli::json_text;
use crate::cli::text::{bytes, counted, inert, memory};
use crate::clock::Timestamp;
use crate::image::build::progress_bar;
use crate::image::digest::Digest;
use crate::image::disk::chunker::ChunkError;
use crate::image::disk::download::DownloadError;
use crate::image::disk::gc::{CollectError, RemoveError, collect, remove};
use crate::image::disk::import::{ImportError, Imported, Request, import};
use crate::image::disk::input::InputError;
use crate::image::disk::place::Place;
use crate::image::disk::qcow2::Qcow2Fault;
use crate::image::disk::scrub::{Verified, VerifyError, verify};
use crate::image::disk::shelf::{DiskImage, DiskShelf};
use crate::image::disk::source::{Source, SourceError};
use crate::image::library::{BlobRef, Library, OpenError};

#[derive(Debug, Args)]
pub struct ImportArgs {
    /// A file, or an http:// or https:// URL: raw, .zst, .gz, .xz, or a qcow2 that needs no other file
    #[arg(value_name = "FILE|URL")]
    source: String,
    /// What the image is called from now on; one that has the name already is replaced
    #[arg(long, value_name = "NAME")]
    name: String,
    /// Digest of the file as it is given; wanted for a URL
    #[arg(long, value_name = "HEX")]
    sha256: Option<Digest>,
    /// Refuse files, and disks in them, that are larger, e.g. 20G
    #[arg(long, value_name = "SIZE", default_value = "64GiB", value_parser = parse_size)]
    max_size: u64,
    /// A line for people
    #[arg(long, value_name = "TEXT", default_value = "")]
    description: String,
}

/// Binary units, with or without `iB`, as `qemu-img` and `truncate` read them; `GB` and the like are decimal.
fn parse_size(text: &str) -> Result<u64, String> {
    let wanted = || "a number of bytes is wanted, or one with a unit: 512M, 20GiB, 64GB".to_owned();
    let digits = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wanted())?;
    let power = |letter: char| "KMGT".find(letter.to_ascii_uppercase()).map(|index| index as u32 + 1);
    let mut letters = unit.chars();
    let factor = match (letters.next(), letters.as_str()) {
        (None, _) => 1,
        (Some(letter), "" | "iB") => 1024_u64.pow(power(letter).ok_or_else(wanted)?),
        (Some(letter), "B") => 1000_u64.pow(power(letter).ok_or_else(wanted)?),
        (Some(_), _) => return Err(wanted()),
    };
    number.checked_mul(factor).filter(|size| *size > 0).ok_or_else(wanted)
}

/// A disk image as `--json` prints it.
#[derive(Debug, Serialize)]
pub struct DiskDocument {
    kind: &'static str,
    name: String,
    description: String,
    source: String,
    imported_at: Timestamp,
    manifest: BlobRef,
    /// Of the disk.
    bytes: u64,
    sha256: Digest,
    chunks: usize,
    /// Of these, bytes in chunks that are not all zero: what an install writes.
    filled_bytes: u64,
    /// What an install fetches.
    stored_bytes: u64,
    /// Whether an install wants it.
    pinned: bool,
}

impl DiskDocument {
    pub fn of(image: &DiskImage, pinned: bool) -> DiskDocument {
        DiskDocument {
            kind: "disk",
            name: image.name.clone(),
            description: image.description.clone(),
            source: image.source.clone(),
            imported_at: image.imported_at,
            manifest: image.manifest_blob,
            bytes: image.manifest.bytes,
            sha256: image.manifest.sha256,
            chunks: image.manifest.chunks.len(),
            filled_bytes: image.manifest.filled_bytes(),
            stored_bytes: image.manifest.stored_bytes(),
            pinned,
        }
    }
}

pub(super) fn run_import(state: &Path, arguments: &ImportArgs, json: bool) -> Result<String, CommandError> {
    let source: Source = arguments.source.parse().map_err(|error| told(&ImportError::Source(error)))?;
    let request = Request {
        source,
        name: arguments.name.clone(),
        description: arguments.description.clone(),
        sha256: arguments.sha256,
        bytes_max: arguments.max_size,
    };
    let progress = transfer_bar();
    let imported = import(state, &request, &progress);
    progress.finish_and_clear();
    let imported = imported.map_err(|error| told(&error))?;
    let Imported { image, format, added_bytes, replaced } = imported;
    if json {
        return Ok(json_text(&DiskDocument::of(&image, false)));
    }
    let mut text = format!(
        "imported {} ({}): a disk of {}, {} in {}, {} of them new\n",
        image.name,
        format.as_str(),
        memory(image.manifest.bytes),
        bytes(image.manifest.stored_bytes()),
        counted(image.manifest.chunks.len() as u64, "chunk"),
        bytes(added_bytes),
    );
    text.push_str(&format!(
        "disk sha256 {}\nmanifest    {}\n",
        image.manifest.sha256, image.manifest_blob.digest
    ));
    if let Some(replaced) = replaced {
        text.push_str(&format!("it replaces {replaced}; installs that have begun go on with that\n"));
    }
    if !begins_like_a_disk(state, &image) {
        text.push_str(
            "note: its first sector has no boot signature, so it has no partition table: firmware will not boot it\n",
        );
    }
    Ok(text)
}

/// Whether there is what any partition table begins with.
fn begins_like_a_disk(state: &Path, image: &DiskImage) -> bool {
    let first = image.manifest.chunks.first().filter(|chunk| chunk.index == 0);
    let read = first.and_then(|chunk| {
        let (_, length) = image.manifest.place(chunk);
        crate::image::disk::scrub::read_chunk(&Place::at(state).blob(chunk.blob), chunk, length).ok()
    });
    read.is_some_and(|bytes| bytes.get(510..512) == Some(&[0x55, 0xaa]))
}

pub(super) fn show(state: &Path, name: &str, json: bool) -> Result<String, CommandError> {
    let shelf = open(state, name)?;
    let Some(image) = shelf.get(name) else { return Err(not_served(state, &shelf, name)) };
    let pinned = shelf.pins().contains(&image.manifest_blob.digest);
    let document = DiskDocument::of(&image, pinned);
    if json {
        return Ok(json_text(&document));
    }
    let manifest = &image.manifest;
    let lines = [
        ("name", document.name),
        ("description", document.description),
        ("source", document.source),
        ("imported", document.imported_at.to_string()),
        ("disk", format!("{} ({} bytes)", memory(manifest.bytes), manifest.bytes)),
        ("to write", bytes(document.filled_bytes)),
        (
            "to fetch",
            format!("{} in {}", bytes(document.stored_bytes), counted(document.chunks as u64, "chunk")),
        ),
        ("sha256", document.sha256.to_string()),
        ("manifest", document.manifest.digest.to_string()),
        ("pinned", if pinned { "by an install" } else { "no" }.to_owned()),
    ];
    Ok(lines.iter().map(|(what, value)| format!("{what:<12} {}\n", inert(value))).collect())
}

pub(super) fn run_verify(state: &Path, name: &str, json: bool) -> Result<String, CommandError> {
    let shelf = open(state, name)?;
    let progress = transfer_bar();
    progress.set_message(format!("verifying {name}"));
    if let Some(image) = shelf.get(name) {
        progress.set_length(image.manifest.stored_bytes());
    }
    let verified = verify(&shelf, name, &|done| progress.set_position(done));
    progress.finish_and_clear();
    let Verified { chunks, stored_bytes, bytes: of_disk } = verified.map_err(|error| match error {
        VerifyError::NotFound { .. } => CommandError::NotFound(error_chain(&error)),
        VerifyError::Damaged { .. } | VerifyError::Write(_) => CommandError::Failed(error_chain(&error)),
    })?;
    if json {
        let document = serde_json::json!({
            "name": name, "whole": true, "chunks": chunks, "stored_bytes": stored_bytes, "bytes": of_disk,
        });
        return Ok(json_text(&document));
    }
    Ok(format!(
        "{name} is whole: {} in {}, a disk of {}\n",
        bytes(stored_bytes),
        counted(chunks, "chunk"),
        memory(of_disk)
    ))
}

pub(super) fn run_remove(state: &Path, name: &str, json: bool) -> Result<String, CommandError> {
    let removed = remove(&Place::at(state), name).map_err(|error| {
        let text = error_chain(&error);
        match error {
            RemoveError::NotFound { .. } => CommandError::NotFound(text),
            RemoveError::Pinned { .. } => CommandError::Refused(text),
            RemoveError::Write { .. } => CommandError::Failed(text),
        }
    })?;
    if json {
        let manifest = removed.map(|entry| entry.manifest);
        return Ok(json_text(&serde_json::json!({ "name": name, "manifest": manifest })));
    }
    Ok(format!("removed {name}; `farrier image gc` frees what only it needed\n"))
}

pub(super) fn run_gc(state: &Path, json: bool) -> Result<String, CommandError> {
    if !Library::exists(state) {
        return Err(CommandError::NotFound(format!("no images in {}", state.display())));
    }
    let place = Place::open(state).map_err(|error| CommandError::Failed(error_chain(&error)))?;
    let collected = collect(&place).map_err(|error| {
        let text = error_chain(&error);
        match error {
            CollectError::Busy | CollectError::Unreadable { .. } => CommandError::Refused(text),
            CollectError::Write { .. } => CommandError::Failed(text),
        }
    })?;
    if json {
        let document = serde_json::json!({
            "removed_blobs": collected.blobs, "removed_bytes": collected.bytes,
            "kept_blobs": collected.kept_blobs, "kept_bytes": collected.kept_bytes,
        });
        return Ok(json_text(&document));
    }
    Ok(format!(
        "removed {}, {}; {}, {}, stay\n",
        counted(collected.blobs, "file"),
        bytes(collected.bytes),
        counted(collected.kept_blobs, "blob"),
        bytes(collected.kept_bytes),
    ))
}

/// Where there are no images at all there is none of that name, and nothing is made by looking.
fn open(state: &Path, name: &str) -> Result<DiskShelf, CommandError> {
    if !Library::exists(state) {
        return Err(not_found(state, name));
    }
    DiskShelf::open(state).map_err(|error: OpenError| CommandError::Failed(error_chain(&error)))
}

fn not_found(state: &Path, name: &str) -> CommandError {
    CommandError::NotFound(format!(
        "no disk image `{name}` in {}: `farrier image list` tells which there are, `farrier image import` brings one",
        state.display()
    ))
}

fn not_served(state: &Path, shelf: &DiskShelf, name: &str) -> CommandError {
    if !Place::at(state).entry(name).exists() {
        return not_found(state, name);
    }
    let damage = shelf.damage();
    let said = damage.iter().map(|damage| format!("\n  {}: {}", damage.path.display(), damage.reason));
    CommandError::Failed(format!("disk image `{name}` is damaged and not served{}", said.collect::<String>()))
}

/// How far a file is read, how fast, and for how long yet. Hidden where standard error is no terminal.
fn transfer_bar() -> ProgressBar {
    let bar = progress_bar();
    let template = "{spinner} {msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

fn told(error: &ImportError) -> CommandError {
    let text = error_chain(error);
    match error {
        ImportError::Name { .. } | ImportError::Description | ImportError::NoDigest { .. } => {
            CommandError::Usage(text)
        }
        ImportError::Source(error) => match error {
            SourceError::Scheme { .. } | SourceError::Server { .. } => CommandError::Usage(text),
            SourceError::NotAFile { .. } | SourceError::Link { .. } => CommandError::Refused(text),
            SourceError::Open { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                CommandError::NotFound(text)
            }
            SourceError::Open { .. } => CommandError::Failed(text),
        },
        ImportError::Download(DownloadError::TooLarge { .. } | DownloadError::Busy { .. })
        | ImportError::WrongDigest { .. }
        | ImportError::Changed { .. }
        | ImportError::Full { .. }
        | ImportError::ManifestSize { .. } => CommandError::Refused(text),
        ImportError::Input { source, .. } => match source {
            InputError::Read(_) | InputError::Qcow2(Qcow2Fault::Read(_)) => CommandError::Failed(text),
            InputError::Foreign { .. }
            | InputError::Within { .. }
            | InputError::TooLarge { .. }
            | InputError::Empty
            | InputError::Qcow2(_) => CommandError::Refused(text),
        },
        ImportError::Disk { source, .. } => match source {
            ChunkError::TooLarge { .. } | ChunkError::Bomb | ChunkError::Manifest(_) => {
                CommandError::Refused(text)
            }
            ChunkError::Read(_) | ChunkError::Compress(_) | ChunkError::Write(_) => {
                CommandError::Failed(text)
            }
        },
        ImportError::Download(_)
        | ImportError::Read { .. }
        | ImportError::Open(_)
        | ImportError::Publish(_)
        | ImportError::Catalogue(_) => CommandError::Failed(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let sizes = ["512", "1k", "20G", "64GiB", "64GB", "2T"].map(|text| parse_size(text).unwrap());
        assert_eq!(sizes, [512, 1024, 20 << 30, 64 << 30, 64_000_000_000, 2 << 40]);
        for text in ["", "G", "-1", "1.5G", "1Gi", "1X", "1 G", "99999999999T", "0"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
