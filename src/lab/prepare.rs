//! What a lab boots: deploy kernel, ramdisk and boot loaders, made when missing or out of date.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, bail};
use indicatif::ProgressBar;

use crate::boot::client::Firmware;
use crate::boot::loader::{LoaderFile, LoaderTable};
use crate::image::build::{Builder, build};
use crate::image::digest::Digest;
use crate::image::elf::static_program;
use crate::image::fetch::{Fetched, fetch_loaders};
use crate::image::library::{Library, Manifest};
use crate::image::recipe::Recipe;
use crate::lab::progress::seconds;
use crate::lab::state::StateDir;

/// The profile lab machines boot: they have virtio devices only.
pub const PROFILE: &str = "vm";

/// What lab machines ask for; loaders of other architectures are not fetched for them.
const FIRMWARE: [Firmware; 3] = [Firmware::Bios, Firmware::UefiX64, Firmware::UefiX64Http];

/// Makes sure that `appliance_state` holds loaders and a current image of [`PROFILE`]; `builder_agent` is the
/// `farrier-agent` it is to hold. Says in a line each what it had to do.
pub fn prepare(
    appliance_state: &Path,
    builder_agent: &Path,
    progress: &ProgressBar,
    tell: &mut dyn FnMut(&str),
) -> anyhow::Result<()> {
    fs::create_dir_all(appliance_state)
        .with_context(|| format!("{} cannot be made", appliance_state.display()))?;
    let started = Instant::now();
    let table = LoaderTable::built_in();
    let fetched = fetch_loaders(loaders_of_lab_firmware(&table), appliance_state, progress)?;
    for (name, outcome) in fetched {
        match outcome {
            Fetched::Present(_) => {}
            Fetched::Extracted { package, version, .. } => {
                tell(&format!("boot loader {name} taken out of {package} {version}"));
            }
            Fetched::NotPackaged(path) => {
                bail!("boot loader {name} is in no package; put it at {}", path.display())
            }
            Fetched::Failed(error) => bail!("boot loader {name} cannot be had: {error}"),
        }
    }
    let recipe = Recipe::built_in();
    let library = Library::open(appliance_state)?;
    let published = library.profile(PROFILE);
    if published.is_some_and(|profile| is_current(&profile.manifest, &recipe, builder_agent)) {
        return Ok(());
    }
    let mut builder = Builder::beside_this_program(appliance_state)?;
    builder_agent.clone_into(&mut builder.agent);
    let manifest = build(&recipe, PROFILE, &builder, progress)?;
    tell(&format!(
        "deploy image built in {}: kernel {} and ramdisk {} from {}",
        seconds(started.elapsed()),
        crate::cli::text::bytes(manifest.kernel.bytes),
        crate::cli::text::bytes(manifest.ramdisk.bytes),
        manifest.built_from.get("kernel").map_or("a recipe", String::as_str),
    ));
    Ok(())
}

/// The same for the state directory of a lab.
pub fn images(
    state: &StateDir,
    builder_agent: &Path,
    progress: &ProgressBar,
    tell: &mut dyn FnMut(&str),
) -> anyhow::Result<()> {
    prepare(&state.appliance_state(), builder_agent, progress, tell)
}

/// Lets an appliance use the images and loaders that were prepared in another state directory.
pub fn share(prepared: &Path, appliance_state: &Path) -> io::Result<()> {
    fs::create_dir_all(appliance_state)?;
    for part in ["images", "loaders"] {
        fs::create_dir_all(prepared.join(part))?;
        symlink(fs::canonicalize(prepared.join(part))?, appliance_state.join(part))?;
    }
    Ok(())
}

/// Same recipe, same agent. The kernel package may have moved on; a lab does not rebuild for that.
fn is_current(manifest: &Manifest, recipe: &Recipe, agent: &Path) -> bool {
    let Ok(agent) = fs::read(agent).map_err(drop).and_then(|bytes| static_program(&bytes).map_err(drop))
    else {
        // The build says what is wrong with it.
        return false;
    };
    let made_from = |part: &str, digest: Digest| {
        manifest.built_from.get(part).is_some_and(|text| text.ends_with(&digest.to_string()))
    };
    made_from("recipe", recipe.digest) && made_from("agent", Digest::of(&agent))
}

fn loaders_of_lab_firmware(table: &LoaderTable) -> Vec<&LoaderFile> {
    let mut files: Vec<&LoaderFile> = Vec::new();
    for firmware in FIRMWARE {
        let mut next = table.for_firmware(firmware).and_then(|name| table.file(name));
        while let Some(file) = next.filter(|file| files.iter().all(|seen| seen.name != file.name)) {
            files.push(file);
            next = file.second.as_ref().and_then(|name| table.file(name));
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_loader_the_lab_firmware_asks_for_is_wanted() {
        let table = LoaderTable::built_in();
        let names: Vec<String> =
            loaders_of_lab_firmware(&table).iter().map(|file| file.name.to_string()).collect();
        assert_eq!(names.len(), 4, "{names:?}");
        for loader in ["undionly.kpxe", "shimx64.efi", "grubx64.efi", "ipxe.efi"] {
            assert!(names.iter().any(|name| name.ends_with(loader)), "{loader} in {names:?}");
        }
    }
}
