//! `farrier image …`: build deploy images, import disk images, fetch loaders, list what the library holds.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};
use indicatif::HumanBytes;

use crate::boot::loader::LoaderTable;
use crate::cli::error::CommandError;
use crate::cli::image::disk::{DiskDocument, ImportArgs};
use crate::cli::image::system::SystemArgs;
use crate::cli::json_text;
use crate::cli::table::Table;
use crate::cli::text::{Style, Tone, bytes, memory};
use crate::image::build::{BuildError, Builder, build, progress_bar};
use crate::image::digest::Digest;
use crate::image::disk::shelf::DiskShelf;
use crate::image::fetch::{FetchError, Fetched, fetch_loaders};
use crate::image::library::{Library, Manifest};
use crate::image::recipe::{Recipe, RecipeError};

mod disk;
mod system;

#[derive(Debug, Args)]
pub struct ImageArgs {
    /// The appliance's state directory
    #[arg(long, value_name = "DIR", default_value = "/var/lib/farrier", global = true)]
    state: PathBuf,
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// Make an image and put it into the library
    #[command(subcommand)]
    Build(BuildCommand),
    /// Take a disk image into the library, to be installed on nodes
    Import(ImportArgs),
    /// List the images in the library
    List,
    /// Say what is known of a disk image
    Show { name: String },
    /// Read all of a disk image back, and see whether it still is what was imported
    Verify { name: String },
    /// Take a disk image out of the library; refused while an install wants it
    Rm { name: String },
    /// Remove blobs that no image, profile or install needs any more
    Gc,
}

#[derive(Debug, Subcommand)]
enum BuildCommand {
    /// The deploy kernel and ramdisk
    Deploy {
        /// Profile of the recipe: `metal`, which farrier serves unless configured otherwise, or `vm`
        #[arg(long, default_value = "metal")]
        profile: String,
        /// Another recipe than the one shipped (images/deploy.toml)
        #[arg(long, value_name = "FILE")]
        recipe: Option<PathBuf>,
        /// The static farrier-agent [default: beside this program]
        #[arg(long, value_name = "FILE")]
        agent: Option<PathBuf>,
    },
    /// The boot loaders whose packages are not installed here
    Loaders,
    /// A bootable disk for tests: busybox, an ssh server, first boot
    Small(SystemArgs),
    /// A bootable disk with Debian 12
    #[command(name = "debian-12")]
    Debian12(SystemArgs),
    /// A bootable disk after a recipe like images/debian-12.toml: `farrier image build FILE.toml`
    #[command(external_subcommand)]
    Recipe(Vec<String>),
}

pub(super) fn run(arguments: &ImageArgs, json: bool) -> Result<String, CommandError> {
    let state = &arguments.state;
    let done = match &arguments.command {
        ImageCommand::Build(BuildCommand::Deploy { profile, recipe, agent }) => {
            deploy(state, profile, recipe.as_deref(), agent.as_deref())
        }
        ImageCommand::Build(BuildCommand::Loaders) => loaders(state),
        ImageCommand::Import(import) => return disk::run_import(state, import, json),
        ImageCommand::List => return list(state, json).map_err(told),
        ImageCommand::Show { name } => return disk::show(state, name, json),
        ImageCommand::Verify { name } => return disk::run_verify(state, name, json),
        ImageCommand::Rm { name } => return disk::run_remove(state, name, json),
        ImageCommand::Gc => return disk::run_gc(state, json),
        ImageCommand::Build(BuildCommand::Small(wanted)) => {
            return system::run("small", wanted, state, json).map_err(told);
        }
        ImageCommand::Build(BuildCommand::Debian12(wanted)) => {
            return system::run("debian-12", wanted, state, json).map_err(told);
        }
        ImageCommand::Build(BuildCommand::Recipe(words)) => {
            return system::run_words(words, state, json).map_err(told);
        }
    };
    done.map(|()| String::new()).map_err(told)
}

/// A recipe is configuration, and so is the profile asked of it.
fn told(error: anyhow::Error) -> CommandError {
    let text = format!("{error:#}");
    let in_build = matches!(error.downcast_ref(), Some(BuildError::Recipe(_)));
    if in_build || error.is::<RecipeError>() || system::is_usage(&error) {
        CommandError::Usage(text)
    } else {
        CommandError::Failed(text)
    }
}

fn deploy(state: &Path, profile: &str, recipe: Option<&Path>, agent: Option<&Path>) -> anyhow::Result<()> {
    let recipe = match recipe {
        None => Recipe::built_in(),
        Some(path) => {
            let text =
                fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
            Recipe::parse(&path.display().to_string(), &text)?
        }
    };
    let mut builder = Builder::beside_this_program(state)?;
    if let Some(agent) = agent {
        builder.agent = agent.to_owned();
    }
    let manifest = build(&recipe, profile, &builder, &progress_bar())?;
    println!(
        "built {profile}: kernel {} ({}), ramdisk {} with {} modules",
        manifest.built_from.get("kernel release").map_or("", String::as_str),
        HumanBytes(manifest.kernel.bytes),
        HumanBytes(manifest.ramdisk.bytes),
        modules(&manifest)
    );
    println!("ramdisk sha256 {}", manifest.ramdisk.digest);
    println!("a running appliance serves it from its next reload on: `systemctl reload farrier`, or SIGHUP");
    Ok(())
}

fn modules(manifest: &Manifest) -> usize {
    manifest.built_from.get("modules").map_or(0, |names| names.split_whitespace().count())
}

fn loaders(state: &Path) -> anyhow::Result<()> {
    let table = LoaderTable::built_in();
    let progress = progress_bar();
    let fetched = fetch_loaders(table.files_in_use(), state, &progress)?;
    progress.finish_and_clear();
    let mut unpackaged = Vec::new();
    for (name, result) in &fetched {
        match result {
            Fetched::NotPackaged(_) => unpackaged.push(name.to_string()),
            Fetched::Present(path) => println!("{name}: {}", path.display()),
            Fetched::Extracted { path, package, version } => {
                println!("{name}: {} (from {package} {version})", path.display());
            }
            Fetched::Failed(error @ FetchError::Revoked { source, .. }) => {
                println!("{name}: {error}, {source}");
            }
            Fetched::Failed(error) => println!("{name}: not available here: {error}"),
        }
    }
    if !unpackaged.is_empty() {
        let place = state.join("loaders/usr/lib/ipxe");
        println!("in no package, put them into {} if wanted: {}", place.display(), unpackaged.join(", "));
    }
    Ok(())
}

/// A deploy profile as `--json` prints it.
#[derive(serde::Serialize)]
struct DeployDocument<'a> {
    kind: &'static str,
    #[serde(flatten)]
    manifest: &'a Manifest,
}

fn list(state: &Path, json: bool) -> anyhow::Result<String> {
    let nothing = || format!("no images in {}; `farrier image build deploy` makes one\n", state.display());
    // Opening makes the directories, which who only looks does not expect.
    if !Library::exists(state) {
        return Ok(if json { "[]\n".to_owned() } else { nothing() });
    }
    let (library, shelf) = (Library::open(state)?, DiskShelf::open(state)?);
    let (profiles, disks, pins) = (library.profiles(), shelf.list(), shelf.pins());
    let documents: Vec<DiskDocument> = disks
        .iter()
        .map(|image| DiskDocument::of(image, pins.contains(&image.manifest_blob.digest)))
        .collect();
    if json {
        let profiles = profiles.iter().map(|profile| {
            serde_json::to_value(DeployDocument { kind: "deploy", manifest: &profile.manifest })
        });
        let all: Result<Vec<_>, _> = profiles.chain(documents.iter().map(serde_json::to_value)).collect();
        return Ok(json_text(&all?));
    }
    let mut text = String::new();
    let style = Style::of_stdout();
    if !profiles.is_empty() {
        let mut table =
            Table::new(&["PROFILE", "KERNEL", ">KERNEL SIZE", ">RAMDISK", ">MODULES", "RAMDISK SHA-256"]);
        for profile in &profiles {
            let manifest = &profile.manifest;
            let cells = [
                manifest.profile.clone(),
                manifest.built_from.get("kernel release").cloned().unwrap_or_default(),
                HumanBytes(manifest.kernel.bytes).to_string(),
                HumanBytes(manifest.ramdisk.bytes).to_string(),
                modules(manifest).to_string(),
                short(manifest.ramdisk.digest),
            ];
            table.row(Tone::Plain, cells);
        }
        text.push_str(&table.render(style));
    }
    if !disks.is_empty() {
        if !text.is_empty() {
            text.push('\n');
        }
        let mut table =
            Table::new(&["DISK IMAGE", ">DISK", ">TO FETCH", "IMPORTED", "SHA-256", "DESCRIPTION"]);
        for image in &disks {
            let cells = [
                image.name.clone(),
                memory(image.manifest.bytes),
                bytes(image.manifest.stored_bytes()),
                image.imported_at.to_string().chars().take(10).collect(),
                short(image.manifest.sha256),
                image.description.clone(),
            ];
            table.row(Tone::Plain, cells);
        }
        text.push_str(&table.render(style));
    }
    if text.is_empty() {
        text = nothing();
    }
    for damage in library.damage().into_iter().chain(shelf.damage()) {
        text.push_str(&format!("not served: {}: {}\n", damage.path.display(), damage.reason));
    }
    Ok(text)
}

/// Enough of a digest to tell two apart.
fn short(digest: Digest) -> String {
    digest.to_string().chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_makes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        for json in [false, true] {
            list(&state, json).unwrap();
        }
        assert!(!state.exists());
    }

    #[test]
    fn a_mistake_is_told_once() {
        let directory = tempfile::tempdir().unwrap();
        let error = deploy(directory.path(), "nope", None, Some(Path::new("/dev/null"))).unwrap_err();
        let told = format!("{error:#}");
        assert_eq!(told.matches("nope").count(), 1, "{told}");
        assert!(matches!(super::told(error), CommandError::Usage(_)));
    }
}
