//! Recipe → system image: a raw disk that boots by itself, on BIOS and on UEFI with Secure Boot.
//!
//! ```text
//!  recipe, choices ─> base (busybox, or Debian by mmdebstrap) ─> tree ─> ext4 ─┐
//!  shim, signed GRUB, where its configuration is ──────────────────────> FAT ──┼─> GPT disk
//!  grub-pc-bin's modules ─> core image, boot sector ───────────────────────────┘
//! ```
//!
//! - [`recipe`], [`choices`]: what is wanted, and what the host would choose
//! - [`tree`], [`ext4`], [`esp`], [`layout`], [`grub`]: the parts of a disk
//! - [`busybox`], [`debian`], [`libraries`]: where its files come from
//!
//! Nothing is mounted and nobody needs to be root. The same packages, recipe, choices and time are the same bytes: the
//! time is SOURCE_DATE_EPOCH, and every name that is random elsewhere is made of the other inputs.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use indicatif::ProgressBar;
use uuid::Uuid;

use crate::image::build::{BuildError, Builder};
use crate::image::cpio::CpioError;
use crate::image::digest::Digest;
use crate::image::package::{PackageError, Packages, Scratch};
use crate::image::system::ext4::{Ext4, Ext4Error};
use crate::image::system::grub::{BiosGrub, GrubError};
use crate::image::system::layout::{Layout, ROOT_NUMBER, TableError, TableIds, Window};
use crate::image::system::libraries::LibrariesError;
use crate::image::system::recipe::{Base, Choices, SystemRecipe, SystemRecipeError};
use crate::image::system::tree::{Tree, TreeError};

pub mod busybox;
pub mod choices;
pub mod debian;
pub mod esp;
pub mod ext4;
pub mod grub;
pub mod layout;
pub mod libraries;
pub mod recipe;
pub mod tree;

const FIRST_BOOT: &[u8] = include_bytes!("../../../images/first-boot/first-boot");
const FIRST_BOOT_PLACE: &str = "usr/lib/farrier/first-boot";
const KEYS_PLACE: &str = "etc/farrier/authorized_keys";
/// The volume's label, which nothing depends on; it is for people who look at the disk.
const ROOT_LABEL: &str = "root";

/// What a base makes: a whole tree with kernel and ramdisk in `boot`, and the loaders.
#[derive(Debug)]
pub struct System {
    pub tree: Tree,
    /// As in `boot/vmlinuz-<release>`.
    pub release: String,
    pub loaders: EfiLoaders,
    /// GRUB's modules for BIOS, unpacked, and what has to stay for them to be there.
    pub grub_modules: PathBuf,
    pub keeps: Scratch,
    /// What went in, for the summary.
    pub built_from: BTreeMap<String, String>,
}

/// As Microsoft and Debian signed them.
#[derive(Debug)]
pub struct EfiLoaders {
    pub shim: Vec<u8>,
    pub grub: Vec<u8>,
}

/// A finished disk.
#[derive(Debug)]
pub struct Built {
    pub raw: PathBuf,
    pub bytes: u64,
    pub sha256: Digest,
    pub built_from: BTreeMap<String, String>,
}

#[derive(Debug, thiserror::Error)]
pub enum SystemError {
    #[error(transparent)]
    Recipe(#[from] SystemRecipeError),
    #[error(transparent)]
    Part(#[from] BuildError),
    #[error(transparent)]
    Package(#[from] PackageError),
    #[error(transparent)]
    Libraries(#[from] LibrariesError),
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error("the ramdisk cannot be put together: {0}")]
    Cpio(#[from] CpioError),
    #[error(transparent)]
    Ext4(#[from] Ext4Error),
    #[error(transparent)]
    Grub(#[from] GrubError),
    #[error("the EFI system partition cannot be made; it has {bytes} bytes")]
    Esp { bytes: u64, source: io::Error },
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(transparent)]
    Debian(#[from] debian::DebianError),
    #[error("{}: {what}", path.display())]
    File { path: PathBuf, what: &'static str, source: io::Error },
}

/// Builds the raw disk `output`, which appears under its name when it is whole. `time` is seconds since 1970.
pub fn build(
    recipe: &SystemRecipe,
    choices: &Choices,
    time: u64,
    builder: &Builder,
    output: &Path,
    progress: &ProgressBar,
) -> Result<Built, SystemError> {
    let packages = Packages::open(&builder.state)?;
    let scratch = packages.scratch()?;
    let keys = choices.ssh_keys.as_deref().unwrap_or_default();
    let system = match &recipe.base {
        Base::Busybox { modules, programs } => {
            busybox::make(recipe, modules, programs, keys, builder, &packages, progress)?
        }
        Base::Debian { suite, components, packages: wanted } => {
            let wanted = debian::Wanted { suite, components, packages: wanted };
            debian::make(recipe, &wanted, choices, time, &packages, &scratch.path, progress)?
        }
    };
    let ids = Ids::derive(recipe, &system, time);
    let mut name = output.as_os_str().to_owned();
    name.push(".part");
    let part = PathBuf::from(name);
    let made = assemble(recipe, system, &ids, time, &part, &scratch.path, progress);
    let finished = made.and_then(|(sha256, bytes, built_from)| {
        fs::rename(&part, output).map_err(|source| file_error(output, "the image cannot be kept", source))?;
        Ok(Built { raw: output.to_owned(), bytes, sha256, built_from })
    });
    if finished.is_err() {
        // What is left of it is of no use; the error is what matters.
        let _ = fs::remove_file(&part);
    }
    progress.finish_and_clear();
    finished
}

fn file_error(path: &Path, what: &'static str, source: io::Error) -> SystemError {
    SystemError::File { path: path.to_owned(), what, source }
}

/// Everything that is called by a random name elsewhere.
struct Ids {
    table: TableIds,
    root: Uuid,
    esp_volume: u32,
}

impl Ids {
    fn derive(recipe: &SystemRecipe, system: &System, time: u64) -> Ids {
        let inputs = format!("{} {} {time}", recipe.digest, system.release);
        let id = |role: &str| {
            let digest = Digest::of_parts(&[b"farrier image", role.as_bytes(), inputs.as_bytes()]);
            let bytes: [u8; 16] = std::array::from_fn(|at| digest.bytes()[at]);
            // Version 8: made in a way of one's own.
            uuid::Builder::from_custom_bytes(bytes).into_uuid()
        };
        let volume = id("esp volume").as_u128();
        Ids {
            table: TableIds { disk: id("disk"), bios: id("bios"), esp: id("esp"), root: id("root") },
            root: id("root file system"),
            // The lowest bits of it.
            esp_volume: (volume & u128::from(u32::MAX)) as u32,
        }
    }
}

fn assemble(
    recipe: &SystemRecipe,
    mut system: System,
    ids: &Ids,
    time: u64,
    part: &Path,
    scratch: &Path,
    progress: &ProgressBar,
) -> Result<(Digest, u64, BTreeMap<String, String>), SystemError> {
    let menu = grub_menu(recipe, &system.release, ids.root);
    system.tree.file("boot/grub/grub.cfg", 0o644, menu)?;
    system.tree.file("etc/fstab", 0o644, fstab(ids))?;
    let layout = Layout::new(recipe.esp_bytes, root_bytes(&system.tree, recipe.root_free_bytes));
    progress.set_message("making the root file system");
    let root = scratch.join("root.ext4");
    let ext4 = Ext4 { label: ROOT_LABEL, uuid: ids.root, bytes: layout.root.bytes, time };
    ext4.write(&system.tree, &root, scratch)?;
    progress.set_message("making the boot loaders");
    let prefix = format!("(,gpt{ROOT_NUMBER})/boot/grub");
    let BiosGrub { boot_code, core } = grub::make(&system.grub_modules, &prefix, layout.bios, scratch)?;
    progress.set_message("writing the disk");
    let cannot = |source| file_error(part, "the disk cannot be written", source);
    let disk =
        File::options().create(true).truncate(true).read(true).write(true).open(part).map_err(cannot)?;
    disk.set_len(layout.disk_bytes).map_err(cannot)?;
    let mut disk = layout.write(disk, ids.table, boot_code)?;
    disk.seek(SeekFrom::Start(layout.bios.start)).and_then(|_| disk.write_all(&core)).map_err(cannot)?;
    let search = grub_search(ids.root);
    // The fallback name firmware boots without an entry; shim starts the GRUB beside it, which looks for its
    // configuration where Debian's is.
    let files: [(&str, &[u8]); 3] = [
        ("EFI/BOOT/BOOTX64.EFI", &system.loaders.shim),
        ("EFI/BOOT/grubx64.efi", &system.loaders.grub),
        ("EFI/debian/grub.cfg", search.as_bytes()),
    ];
    esp::write(Window::new(&mut disk, layout.esp), ids.esp_volume, &files)
        .map_err(|source| SystemError::Esp { bytes: layout.esp.bytes, source })?;
    let mut from = File::open(&root).map_err(|source| file_error(&root, "it cannot be read", source))?;
    copy_filled(&mut from, &mut disk, layout.root.start).map_err(cannot)?;
    disk.sync_all().map_err(cannot)?;
    progress.set_message("hashing the disk");
    disk.seek(SeekFrom::Start(0)).map_err(cannot)?;
    let (sha256, bytes) = Digest::of_stream(&mut disk, |_| Ok(())).map_err(cannot)?;
    let mut built_from = system.built_from;
    built_from.insert("recipe".to_owned(), format!("{} {}", recipe.file, recipe.digest));
    Ok((sha256, bytes, built_from))
}

/// What a file system needs for the tree, its own tables and journal, and what is to be free.
fn root_bytes(tree: &Tree, free: u64) -> u64 {
    const JOURNAL: u64 = 16 << 20;
    // Inode tables, group descriptors and what is reserved for the superuser: 2 % and 1 %, and some for indirection.
    (tree.bytes(ext4::BLOCK_BYTES) + JOURNAL + free) / 100 * 106
}

/// Copies what is not zero; the disk is zero where nothing is written, and takes no space there.
fn copy_filled(from: &mut impl Read, disk: &mut File, start: u64) -> io::Result<()> {
    let mut piece = vec![0_u8; 64 * 1024];
    let mut at = start;
    loop {
        let mut filled = 0;
        while filled < piece.len() {
            match from.read(&mut piece[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        if filled == 0 {
            return Ok(());
        }
        if piece[..filled].iter().any(|byte| *byte != 0) {
            disk.seek(SeekFrom::Start(at))?;
            disk.write_all(&piece[..filled])?;
        }
        at += filled as u64;
    }
}

fn fstab(ids: &Ids) -> String {
    let (root, esp) = (ids.root, ids.esp_volume);
    format!(
        "UUID={root} / ext4 errors=remount-ro 0 1\nUUID={:04X}-{:04X} /boot/efi vfat umask=0077,nofail 0 2\n",
        esp >> 16,
        esp & 0xFFFF
    )
}

/// On the EFI system partition: where the menu is.
fn grub_search(root: Uuid) -> String {
    format!(
        "search --no-floppy --fs-uuid --set=root {root}\nset prefix=($root)/boot/grub\nconfigfile $prefix/grub.cfg\n"
    )
}

fn grub_menu(recipe: &SystemRecipe, release: &str, root: Uuid) -> String {
    let arguments: String = recipe.arguments.iter().map(|word| format!(" {word}")).collect();
    format!(
        "# Made with the image.\n\
         set timeout={}\n\
         set default=0\n\
         # Firmware of the other kind has the serial line for its console already, if there is one.\n\
         if [ \"$grub_platform\" = pc ]; then\n\
         \x20 if serial --unit=0 --speed=115200; then\n\
         \x20   terminal_input console serial\n\
         \x20   terminal_output console serial\n\
         \x20 fi\n\
         fi\n\
         menuentry \"{}\" {{\n\
         \x20 linux /boot/vmlinuz-{release} root=UUID={root} ro{arguments}\n\
         \x20 initrd /boot/initrd.img-{release}\n\
         }}\n",
        recipe.menu_seconds, recipe.name
    )
}

/// Keys that may log in whatever the seed says.
fn first_boot_keys(tree: &mut Tree, keys: &[String]) -> Result<(), TreeError> {
    tree.directory("etc/farrier", 0o755)?;
    if keys.is_empty() {
        return Ok(());
    }
    let lines: String = keys.iter().map(|key| format!("{}\n", key.trim())).collect();
    tree.file(KEYS_PLACE, 0o644, lines)
}

/// GRUB for BIOS as modules, and the versions of all loaders.
struct GrubParts {
    modules: Scratch,
    versions: BTreeMap<String, String>,
}

/// Loaders out of packages that need not be installed.
fn loaders(packages: &Packages, progress: &ProgressBar) -> Result<(EfiLoaders, GrubParts), SystemError> {
    let mut versions = BTreeMap::new();
    let mut fetched = |name: &str| {
        progress.set_message(format!("fetching {name}"));
        let package = packages.candidate(name)?;
        versions.insert(name.to_owned(), package.version.clone());
        Ok::<_, PackageError>(package)
    };
    let shim = packages.read_file(
        &fetched("shim-signed")?,
        Path::new("/usr/lib/shim/shimx64.efi.signed"),
        progress,
    )?;
    let signed = Path::new("/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed");
    let grub = packages.read_file(&fetched("grub-efi-amd64-signed")?, signed, progress)?;
    let modules = packages.unpack(&fetched("grub-pc-bin")?, progress)?;
    Ok((EfiLoaders { shim, grub }, GrubParts { modules, versions }))
}

#[cfg(test)]
mod tests;
