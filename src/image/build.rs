//! Recipe → deploy kernel and ramdisk, published as one profile of the image library.
//!
//! ```text
//!  recipe ─> kernel package ─> modules.dep ─> module list ─┐
//!  busybox-static, farrier-agent, lease script, dropbear ──┴─> cpio ─> zstd ─> library
//! ```
//!
//! The same recipe, package version, agent and busybox give the same bytes: nothing of the time, the user or the
//! directory it is built in goes in. Publishing is the last step and atomic, so a build that fails changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use indicatif::ProgressBar;

use crate::agent::drivers::INDEX_FILE;
use crate::agent::{BUSYBOX, LEASE_SCRIPT, MODULES_DIR};
use crate::image::cpio::{Archive, CpioError};
use crate::image::digest::Digest;
use crate::image::elf::{ElfError, static_program};
use crate::image::library::{Library, Manifest, OpenError, PublishError};
use crate::image::modules::{ModuleTexts, ModuleTree, ModulesError, Resolved};
use crate::image::package::{Package, PackageError, Packages, run, spinner_style};
use crate::image::recipe::{Compression, Recipe, RecipeError, WantedModule};
use crate::image::ssh_server;

const LEASE_SCRIPT_TEXT: &[u8] = include_bytes!("../../images/lease.sh");
pub(in crate::image) const KERNEL_PACKAGE_PREFIX: &str = "linux-image-";
/// Files that are in every ramdisk as directories only: places to mount on, and the shell's home.
const EMPTY_DIRECTORIES: &[&str] = &["dev", "proc", "sys", "run", "tmp", "root"];

/// Where a build finds its parts and puts its result.
#[derive(Clone, Debug)]
pub struct Builder {
    /// The appliance's state directory.
    pub state: PathBuf,
    /// The static `farrier-agent`.
    pub agent: PathBuf,
    /// The installed static busybox; when there is none, it is taken out of Debian's `busybox-static`.
    pub busybox: PathBuf,
}

impl Builder {
    /// The agent beside the running program, the busybox where Debian puts it.
    pub fn beside_this_program(state: &Path) -> io::Result<Builder> {
        Ok(Builder {
            state: state.to_owned(),
            agent: std::env::current_exe()?.with_file_name("farrier-agent"),
            busybox: PathBuf::from("/bin/busybox"),
        })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    #[error("the agent {} cannot be read; `cargo build` makes it beside `farrier`", path.display())]
    Agent { path: PathBuf, source: io::Error },
    #[error("{} cannot go into a ramdisk: {reason}", path.display())]
    Program { path: PathBuf, reason: ElfError },
    #[error(transparent)]
    Package(#[from] PackageError),
    #[error("package `{package}` holds no kernel: {what}")]
    NoKernel { package: String, what: &'static str },
    #[error("{file}: {reason}")]
    Modules { file: String, reason: ModulesError },
    #[error("{} cannot be read", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the ramdisk cannot be put together: {0}")]
    Cpio(#[from] CpioError),
    #[error("the ramdisk cannot be compressed")]
    Compress { source: io::Error },
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Publish(#[from] PublishError),
}

/// A spinner with the current step; downloads turn it into a bar. Hidden where standard error is no terminal.
pub fn progress_bar() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    bar.set_style(spinner_style());
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// Builds `profile` and publishes it.
pub fn build(
    recipe: &Recipe,
    profile: &str,
    builder: &Builder,
    progress: &ProgressBar,
) -> Result<Manifest, BuildError> {
    let profile = recipe.profile(profile)?;
    // First what fails fastest.
    let library = Library::open(&builder.state)?;
    let packages = Packages::open(&builder.state)?;
    let agent = read_program(&builder.agent).map_err(|error| agent_error(error, &builder.agent))?;
    step(progress, "finding the kernel package");
    let package = packages.behind(&profile.kernel, KERNEL_PACKAGE_PREFIX)?;
    let busybox = busybox(builder, &packages, progress)?;
    step(progress, &format!("fetching and unpacking {} {}", package.name, package.version));
    let tree = packages.unpack(&package, progress)?;
    let kernel = Kernel::find(&tree.path, &package)?;
    step(progress, "resolving modules");
    let resolved = kernel.resolve(&tree.path, &profile.modules, &recipe.file)?;
    step(progress, "packing the ramdisk");
    let mut archive = ramdisk(&kernel, &resolved, agent.clone(), busybox.clone())?;
    let ssh = if profile.ssh {
        step(progress, "fetching the ssh server");
        ssh_server::add(&mut archive, &packages, progress)?
    } else {
        "none".to_owned()
    };
    let unpacked = archive.emit()?;
    step(progress, "compressing the ramdisk");
    let packed =
        compress(&unpacked, profile.compression).map_err(|source| BuildError::Compress { source })?;
    step(progress, "publishing");
    let _until_named = library.hold()?;
    let manifest = Manifest {
        profile: profile.name.clone(),
        kernel: library.add(&mut kernel.image.as_slice())?,
        ramdisk: library.add(&mut packed.as_slice())?,
        arguments: profile.arguments.iter().map(ToString::to_string).collect(),
        built_from: BTreeMap::from([
            ("kernel".to_owned(), format!("{} {}", package.name, package.version)),
            ("kernel release".to_owned(), kernel.release.clone()),
            ("recipe".to_owned(), format!("{} {}", recipe.file, recipe.digest)),
            ("agent".to_owned(), format!("{} {}", env!("CARGO_PKG_VERSION"), Digest::of(&agent))),
            ("busybox".to_owned(), Digest::of(&busybox).to_string()),
            ("ssh server".to_owned(), ssh),
            ("modules".to_owned(), module_names(&resolved)),
            ("ramdisk unpacked".to_owned(), format!("{} bytes", unpacked.len())),
        ]),
    };
    library.publish(&manifest)?;
    progress.finish_and_clear();
    Ok(manifest)
}

fn step(progress: &ProgressBar, what: &str) {
    progress.set_message(what.to_owned());
}

fn module_names(resolved: &Resolved) -> String {
    resolved.index.modules.iter().map(|module| module.name.as_str()).collect::<Vec<_>>().join(" ")
}

fn agent_error(error: BuildError, path: &Path) -> BuildError {
    match error {
        BuildError::Read { source, .. } => BuildError::Agent { path: path.to_owned(), source },
        other => other,
    }
}

fn read(path: &Path) -> Result<Vec<u8>, BuildError> {
    fs::read(path).map_err(|source| BuildError::Read { path: path.to_owned(), source })
}

fn read_program(path: &Path) -> Result<Vec<u8>, BuildError> {
    let program = |reason| BuildError::Program { path: path.to_owned(), reason };
    static_program(&read(path)?).map_err(program)
}

/// The installed busybox if it is a static one, else Debian's static one, downloaded.
pub(in crate::image) fn busybox(
    builder: &Builder,
    packages: &Packages,
    progress: &ProgressBar,
) -> Result<Vec<u8>, BuildError> {
    if let Ok(program) = read_program(&builder.busybox) {
        return Ok(program);
    }
    step(progress, "fetching busybox-static");
    let package = packages.candidate("busybox-static")?;
    // Debian 12 has it in /bin, later ones in /usr/bin.
    let path = Path::new("/bin/busybox");
    let bytes = match packages.read_file(&package, path, progress) {
        Ok(bytes) => bytes,
        Err(PackageError::NoFile { .. }) => {
            packages.read_file(&package, &Path::new("/usr").join("bin/busybox"), progress)?
        }
        Err(error) => return Err(error.into()),
    };
    static_program(&bytes).map_err(|reason| BuildError::Program { path: path.to_owned(), reason })
}

/// An unpacked kernel package.
pub(in crate::image) struct Kernel {
    pub release: String,
    pub image: Vec<u8>,
    modules: PathBuf,
}

impl Kernel {
    pub fn find(root: &Path, package: &Package) -> Result<Kernel, BuildError> {
        let release = package.name.strip_prefix(KERNEL_PACKAGE_PREFIX).unwrap_or(&package.name).to_owned();
        let none = |what| BuildError::NoKernel { package: package.name.clone(), what };
        let image = fs::read(root.join("boot").join(format!("vmlinuz-{release}")))
            .map_err(|_| none("it has no /boot/vmlinuz of its own name"))?;
        // Later Debian releases have it below /usr.
        let modules = ["lib/modules", "usr/lib/modules"]
            .into_iter()
            .map(|place| root.join(place).join(&release))
            .find(|place| place.is_dir())
            .ok_or_else(|| none("it has no module directory of its own name"))?;
        Ok(Kernel { release, image, modules })
    }

    pub fn resolve(&self, root: &Path, modules: &[WantedModule], file: &str) -> Result<Resolved, BuildError> {
        // depmod looks for lib/modules below its base.
        let base = self.modules.ancestors().nth(3).unwrap_or(root);
        run(Command::new("depmod").arg("-b").arg(base).arg(&self.release), "kmod")?;
        let text = |name: &str| {
            let path = self.modules.join(name);
            fs::read_to_string(&path).map_err(|source| BuildError::Read { path, source })
        };
        let (dependencies, built_in) = (text("modules.dep")?, text("modules.builtin")?);
        let (aliases, soft_dependencies) = (text("modules.alias")?, text("modules.softdep")?);
        let texts = ModuleTexts {
            dependencies: &dependencies,
            built_in: &built_in,
            aliases: &aliases,
            soft_dependencies: &soft_dependencies,
        };
        ModuleTree::parse(texts)
            .resolve(modules)
            .map_err(|reason| BuildError::Modules { file: file.to_owned(), reason })
    }

    /// A module's bytes, uncompressed whatever the package does: the ramdisk is compressed as a whole. The signature
    /// at its end stays, or a kernel locked down by Secure Boot would refuse it.
    pub fn module(&self, path: &str) -> Result<Vec<u8>, BuildError> {
        let path = self.modules.join(path);
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("xz") => Ok(run(Command::new("xz").arg("-dc").arg(&path), "xz-utils")?.stdout),
            Some("gz") => Ok(run(Command::new("gzip").arg("-dc").arg(&path), "gzip")?.stdout),
            Some("zst") => zstd::decode_all(read(&path)?.as_slice())
                .map_err(|source| BuildError::Read { path: path.clone(), source }),
            Some(_) | None => read(&path),
        }
    }
}

fn ramdisk(
    kernel: &Kernel,
    resolved: &Resolved,
    agent: Vec<u8>,
    busybox: Vec<u8>,
) -> Result<Archive, BuildError> {
    let mut archive = Archive::default();
    archive.file("init", 0o755, agent)?;
    archive.file(inside(BUSYBOX), 0o755, busybox)?;
    archive.file(inside(LEASE_SCRIPT), 0o755, LEASE_SCRIPT_TEXT.to_vec())?;
    for directory in EMPTY_DIRECTORIES {
        archive.directory(directory)?;
    }
    // The kernel opens it for process 1 before anything is mounted.
    archive.character_device("dev/console", 5, 1)?;
    for (file, source) in &resolved.sources {
        archive.file(&format!("{}/{file}", inside(MODULES_DIR)), 0o644, kernel.module(source)?)?;
    }
    // Strings in ordered lists: this cannot fail, and if it did it would be a read error of the ramdisk's own part.
    let index =
        serde_json::to_vec(&resolved.index).map_err(|error| BuildError::Compress { source: error.into() })?;
    archive.file(&format!("{}/{INDEX_FILE}", inside(MODULES_DIR)), 0o644, index)?;
    Ok(archive)
}

/// Paths in an archive are relative to its root.
fn inside(path: &'static str) -> &'static str {
    path.trim_start_matches('/')
}

/// One frame, one thread: the same bytes on every machine.
pub(in crate::image) fn compress(bytes: &[u8], compression: Compression) -> io::Result<Vec<u8>> {
    match compression {
        Compression::None => Ok(bytes.to_vec()),
        Compression::Zstd(level) => zstd::bulk::compress(bytes, i32::from(level)),
    }
}

#[cfg(test)]
mod tests;
