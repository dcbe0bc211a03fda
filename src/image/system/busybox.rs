//! The small system: a static busybox, a few programs with their libraries, and a ramdisk that finds the root.

use std::collections::BTreeMap;

use indicatif::ProgressBar;

use crate::image::build::{self, Builder, KERNEL_PACKAGE_PREFIX, Kernel};
use crate::image::cpio::Archive;
use crate::image::digest::Digest;
use crate::image::package::Packages;
use crate::image::recipe::{Compression, WantedModule};
use crate::image::system::libraries;
use crate::image::system::recipe::{Program, SystemRecipe};
use crate::image::system::tree::{Kind, Node, Tree};
use crate::image::system::{FIRST_BOOT, FIRST_BOOT_PLACE, System, SystemError, first_boot_keys, loaders};

const INIT: &[u8] = include_bytes!("../../../images/first-boot/small/init");
const RC: &[u8] = include_bytes!("../../../images/first-boot/small/rc");
const INITTAB: &[u8] = include_bytes!("../../../images/first-boot/small/inittab");
const LEASE: &[u8] = include_bytes!("../../../images/first-boot/small/lease");
/// Nobody logs in with a password, for there is none; keys only.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
const SHADOW: &str = "root:*:19000:0:99999:7:::\nnobody:*:19000:0:99999:7:::\n";
const GROUP: &str = "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n";
const EMPTY_DIRECTORIES: [&str; 8] =
    ["dev", "proc", "sys", "run", "mnt", "etc/dropbear", "var/lib", "var/log"];
const BUSYBOX: &str = "bin/busybox";
/// What is called by others than a shell; Debian's busybox needs no links for what a shell calls.
const NAMES: [&str; 9] = [
    "bin/sh",
    "bin/login",
    "bin/sync",
    "bin/umount",
    "sbin/init",
    "sbin/getty",
    "sbin/reboot",
    "sbin/modprobe",
    "usr/bin/env",
];
/// Half a megabyte more than the highest level makes, in a tenth of its time.
const RAMDISK_COMPRESSION: Compression = Compression::Zstd(9);

pub fn make(
    recipe: &SystemRecipe,
    modules: &[WantedModule],
    programs: &[Program],
    ssh_keys: &[String],
    builder: &Builder,
    packages: &Packages,
    progress: &ProgressBar,
) -> Result<System, SystemError> {
    let step = |what: String| progress.set_message(what);
    step("finding the kernel package".to_owned());
    let package = packages.behind(&recipe.kernel, KERNEL_PACKAGE_PREFIX)?;
    let busybox = build::busybox(builder, packages, progress)?;
    step(format!("fetching and unpacking {} {}", package.name, package.version));
    let unpacked = packages.unpack(&package, progress)?;
    let kernel = Kernel::find(&unpacked.path, &package)?;
    step("resolving modules".to_owned());
    let resolved = kernel.resolve(&unpacked.path, modules, &recipe.file)?;

    let mut ramdisk = Archive::default();
    ramdisk.file("init", 0o755, INIT.to_vec())?;
    ramdisk.file(BUSYBOX, 0o755, busybox.clone())?;
    for directory in ["dev", "proc", "sys", "root"] {
        ramdisk.directory(directory)?;
    }
    // The kernel opens it for process 1 before anything is mounted.
    ramdisk.character_device("dev/console", 5, 1)?;
    let mut order = String::new();
    for module in &resolved.index.modules {
        order.push_str(&module.file);
        order.push('\n');
        if let Some(source) = resolved.sources.get(&module.file) {
            ramdisk.file(&format!("modules/{}", module.file), 0o644, kernel.module(source)?)?;
        }
    }
    ramdisk.file("modules/order", 0o644, order.into_bytes())?;
    step("compressing the ramdisk".to_owned());
    let ramdisk = build::compress(&ramdisk.emit()?, RAMDISK_COMPRESSION)
        .map_err(|source| build::BuildError::Compress { source })?;

    let mut tree = Tree::default();
    tree.file(&format!("boot/vmlinuz-{}", kernel.release), 0o644, kernel.image)?;
    tree.file(&format!("boot/initrd.img-{}", kernel.release), 0o644, ramdisk)?;
    for directory in EMPTY_DIRECTORIES {
        tree.directory(directory, 0o755)?;
    }
    tree.directory("root", 0o700)?;
    tree.directory("tmp", 0o1777)?;
    let busybox_digest = Digest::of(&busybox);
    tree.file(BUSYBOX, 0o755, busybox)?;
    for name in NAMES {
        tree.symlink(name, "/bin/busybox")?;
    }
    for (path, permissions, bytes) in [
        ("etc/rc", 0o755, RC),
        ("etc/inittab", 0o644, INITTAB),
        ("etc/passwd", 0o644, PASSWD.as_bytes()),
        ("etc/shadow", 0o600, SHADOW.as_bytes()),
        ("etc/group", 0o644, GROUP.as_bytes()),
        ("etc/shells", 0o644, b"/bin/sh\n".as_slice()),
        ("etc/hostname", 0o644, b"small\n".as_slice()),
        ("etc/hosts", 0o644, b"127.0.0.1 localhost\n::1 localhost\n".as_slice()),
        ("usr/lib/farrier/lease", 0o755, LEASE),
        (FIRST_BOOT_PLACE, 0o755, FIRST_BOOT),
    ] {
        tree.file(path, permissions, bytes)?;
    }
    tree.symlink("etc/mtab", "/proc/mounts")?;
    first_boot_keys(&mut tree, ssh_keys)?;
    let console = Node::new(Kind::Device { block: false, major: 5, minor: 1 }, 0o600);
    tree.add("dev/console", console)?;
    let versions = libraries::install(programs, packages, &mut tree, progress)?;

    let (loaders, grub) = loaders(packages, progress)?;
    let mut built_from = BTreeMap::from([
        ("kernel".to_owned(), format!("{} {}", package.name, package.version)),
        ("busybox".to_owned(), busybox_digest.to_string()),
    ]);
    built_from.extend(versions);
    built_from.extend(grub.versions);
    let grub_modules = grub.modules.path.join("usr/lib/grub/i386-pc");
    Ok(System { tree, release: kernel.release, loaders, grub_modules, keeps: grub.modules, built_from })
}
