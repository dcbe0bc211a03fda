//! Debian: mmdebstrap makes a tree of it as an archive, which is read here, cleaned of what differs from build to build,
//! and given what makes it a machine: first boot, network, fstab, keys.
//!
//! What runs inside the new system (its packages' own scripts, `locale-gen`, `useradd`) is mmdebstrap's to run, in
//! whatever way this user may; everything that is only a file is put in here.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use indicatif::ProgressBar;

use crate::image::package::{PackageError, Packages, spinner_style};
use crate::image::system::recipe::{Choices, SystemRecipe};
use crate::image::system::tree::{Content, Kind, Node, Tree, TreeError};
use crate::image::system::{
    EfiLoaders, FIRST_BOOT, FIRST_BOOT_PLACE, System, SystemError, file_error, first_boot_keys,
};

const TOOL: &str = "mmdebstrap";
/// Lines of a failed run that are worth telling.
const COMPLAINT_LINES: usize = 8;
const SERVICE: &[u8] = include_bytes!("../../../images/first-boot/debian/farrier-first-boot.service");
const FINISH: &[u8] = include_bytes!("../../../images/first-boot/debian/farrier-first-boot-finish.service");
/// Every Ethernet interface, after what first boot writes for a particular one.
const NETWORK: &str =
    "# Used where the seed says nothing else.\n[Match]\nType=ether\n\n[Network]\nDHCP=ipv4\n";
/// One interface with an address will do, and a machine without a cable boots as well.
const WAIT_ONLINE: &str =
    "[Service]\nExecStart=\nExecStart=/lib/systemd/systemd-networkd-wait-online --any --timeout=60\n";
const SUDOERS: &str = "# There is no password to ask for: keys only.\ndebian ALL=(ALL) NOPASSWD:ALL\n";
/// What is written while packages are installed, and says when, or is another at every machine's first boot.
const REMOVED: &[&str] = &[
    "etc/ssh/ssh_host_",
    "etc/machine-id",
    "var/lib/dbus/machine-id",
    "var/log/apt/",
    "var/log/dpkg.log",
    "var/log/alternatives.log",
    "var/log/bootstrap.log",
    "var/log/lastlog",
    "var/log/faillog",
    "var/log/btmp",
    "var/log/wtmp",
    "var/cache/ldconfig/aux-cache",
    "var/cache/debconf/templates.dat-old",
    "var/cache/debconf/config.dat-old",
    "var/cache/debconf/passwords.dat-old",
    "var/lib/dpkg/status-old",
    "var/lib/dpkg/diversions-old",
    "var/lib/dpkg/statoverride-old",
    "var/lib/systemd/random-seed",
    "var/lib/systemd/credential.secret",
    "etc/passwd-",
    "etc/shadow-",
    "etc/group-",
    "etc/gshadow-",
    "etc/subuid-",
    "etc/subgid-",
    "etc/.pwd.lock",
];

/// What the recipe wants installed.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub suite: &'a str,
    pub components: &'a [String],
    pub packages: &'a [String],
}

#[derive(Debug, thiserror::Error)]
pub enum DebianError {
    #[error("mmdebstrap ended with an error, its last words: {complaint}")]
    Failed { complaint: String },
    #[error("the archive that mmdebstrap made cannot be read")]
    Archive { source: io::Error },
    #[error("`{path}` is a {what}, which an image of ours cannot have")]
    Unknown { path: String, what: &'static str },
    #[error("the packages brought {count} kernels instead of one")]
    Kernels { count: usize },
    #[error("the recipe's packages bring no `{path}`; package `{package}` has it")]
    Lacking { path: &'static str, package: &'static str },
}

pub fn make(
    recipe: &SystemRecipe,
    wanted: &Wanted<'_>,
    choices: &Choices,
    time: u64,
    packages: &Packages,
    scratch: &Path,
    progress: &ProgressBar,
) -> Result<System, SystemError> {
    let archive = scratch.join("root.tar");
    debootstrap(recipe, wanted, choices, time, &archive, progress)?;
    progress.set_style(spinner_style());
    progress.set_message("reading what mmdebstrap made");
    let files = scratch.join("files");
    fs::create_dir(&files).map_err(|source| file_error(&files, "the directory cannot be made", source))?;
    let file = File::open(&archive).map_err(|source| file_error(&archive, "it cannot be read", source))?;
    let mut tree = read_archive(file, &files, time)?;
    // As large as all of them together.
    let _ = fs::remove_file(&archive);
    let removed = |path: &str| REMOVED.iter().any(|prefix| path.starts_with(prefix));
    let gone: Vec<String> =
        tree.iter().map(|(path, _)| path).filter(|path| removed(path)).map(str::to_owned).collect();
    gone.iter().for_each(|path| drop(tree.remove(path)));
    let release = kernel_release(&tree)?;
    furnish(&mut tree, recipe, choices)?;
    let loaders = EfiLoaders {
        shim: required(&tree, "usr/lib/shim/shimx64.efi.signed", "shim-signed")?,
        grub: required(&tree, "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed", "grub-efi-amd64-signed")?,
    };
    let grub_modules = grub_modules(&mut tree, scratch)?;
    let installed = tree.content("var/lib/dpkg/status")?.read();
    let installed = installed.map_err(|source| DebianError::Archive { source })?;
    let mut built_from = BTreeMap::from([
        ("kernel release".to_owned(), release.clone()),
        ("suite".to_owned(), wanted.suite.to_owned()),
    ]);
    let count =
        String::from_utf8_lossy(&installed).lines().filter(|line| line.starts_with("Package:")).count();
    built_from.insert("packages".to_owned(), format!("{count}"));
    Ok(System { tree, release, loaders, grub_modules, keeps: packages.scratch()?, built_from })
}

/// Runs mmdebstrap; what it says goes to the progress line, and its last words into the error.
fn debootstrap(
    recipe: &SystemRecipe,
    wanted: &Wanted<'_>,
    choices: &Choices,
    time: u64,
    archive: &Path,
    progress: &ProgressBar,
) -> Result<(), SystemError> {
    let mut command = Command::new(TOOL);
    command.args(arguments(recipe, wanted, choices)).arg(wanted.suite).arg(archive);
    command.args(sources(wanted, choices));
    // mke2fs and others live where users other than root do not look.
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    command.env("PATH", path).env("LC_ALL", "C.UTF-8").env("SOURCE_DATE_EPOCH", time.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => PackageError::NoTool { tool: TOOL.to_owned(), package: TOOL },
        _ => PackageError::Start { tool: TOOL.to_owned(), source },
    })?;
    let mut words: Vec<String> = Vec::new();
    if let Some(said) = child.stderr.take() {
        let mut said = BufReader::new(said);
        let mut line = Vec::new();
        // Not by `lines`: packages' scripts may say what is no UTF-8.
        while matches!(said.read_until(b'\n', &mut line), Ok(count) if count > 0) {
            let text = String::from_utf8_lossy(&line).trim().replace(char::is_control, " ");
            line.clear();
            if text.is_empty() {
                continue;
            }
            progress.set_message(format!("mmdebstrap: {}", text.trim_start_matches("I: ")));
            words.push(text);
            if words.len() > COMPLAINT_LINES {
                words.remove(0);
            }
        }
    }
    let status = child.wait().map_err(|source| PackageError::Start { tool: TOOL.to_owned(), source })?;
    if status.success() {
        return Ok(());
    }
    Err(DebianError::Failed { complaint: words.join(" | ") }.into())
}

fn arguments(recipe: &SystemRecipe, wanted: &Wanted<'_>, choices: &Choices) -> Vec<String> {
    let mut packages: Vec<&str> = wanted.packages.iter().map(String::as_str).collect();
    packages.push(&recipe.kernel);
    let mut arguments = vec![
        "--variant=minbase".to_owned(),
        "--format=tar".to_owned(),
        format!("--include={}", packages.join(",")),
        "--dpkgopt=force-confold".to_owned(),
    ];
    let mut hook = |script: String| arguments.push(format!("--customize-hook={script}"));
    // Each value was checked to be plain; see `choices::check`.
    if let Some(locale) =
        choices.locale.as_deref().filter(|locale| !locale.starts_with("C.") && *locale != "C")
    {
        let charset = locale.split_once('.').map_or("UTF-8", |(_, charset)| charset);
        hook(format!("echo '{locale} {charset}' > \"$1/etc/locale.gen\" && chroot \"$1\" locale-gen"));
    }
    if let Some(zone) = &choices.timezone {
        hook(format!(
            "test -e \"$1/usr/share/zoneinfo/{zone}\" && ln -sf '/usr/share/zoneinfo/{zone}' \"$1/etc/localtime\" \
             && echo '{zone}' > \"$1/etc/timezone\""
        ));
    }
    hook("chroot \"$1\" useradd --create-home --shell /bin/bash --groups sudo debian".to_owned());
    hook("chroot \"$1\" passwd --lock root".to_owned());
    hook("chroot \"$1\" systemctl enable systemd-networkd.service".to_owned());
    arguments
}

fn sources(wanted: &Wanted<'_>, choices: &Choices) -> Vec<String> {
    let mirror = choices.mirror.as_deref().unwrap_or_default().trim_end_matches('/');
    let security = choices.security_mirror.as_deref().unwrap_or_default().trim_end_matches('/');
    let (suite, components) = (wanted.suite, wanted.components.join(" "));
    vec![
        format!("deb {mirror} {suite} {components}"),
        format!("deb {mirror} {suite}-updates {components}"),
        format!("deb {security} {suite}-security {components}"),
    ]
}

/// Every member of the archive; files' bytes go to `files`, numbered. Nothing may be younger than the image.
fn read_archive(archive: impl io::Read, files: &Path, time: u64) -> Result<Tree, SystemError> {
    let broken = |source| DebianError::Archive { source };
    let mut tree = Tree::default();
    let mut archive = tar::Archive::new(archive);
    for (number, entry) in archive.entries().map_err(broken)?.enumerate() {
        let mut entry = entry.map_err(broken)?;
        let Some(path) = inner_path(&entry.path_bytes())? else { continue };
        let header = entry.header();
        let kind = match header.entry_type() {
            tar::EntryType::Directory => Kind::Directory,
            tar::EntryType::Regular | tar::EntryType::Continuous => {
                let place = files.join(number.to_string());
                let bytes = keep(&mut entry, &place)?;
                Kind::File(Content::Kept(place, bytes))
            }
            tar::EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                Kind::Symlink(utf8(&target)?)
            }
            tar::EntryType::Link => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                Kind::HardLink(inner_path(&target)?.unwrap_or_default())
            }
            kind @ (tar::EntryType::Char | tar::EntryType::Block) => Kind::Device {
                block: kind == tar::EntryType::Block,
                major: header.device_major().map_err(broken)?.unwrap_or(0),
                minor: header.device_minor().map_err(broken)?.unwrap_or(0),
            },
            tar::EntryType::Fifo => return Err(DebianError::Unknown { path, what: "named pipe" }.into()),
            _ => return Err(DebianError::Unknown { path, what: "member of an unknown kind" }.into()),
        };
        let header = entry.header();
        let number = |value: io::Result<u64>| -> Result<u32, SystemError> {
            let value = value.map_err(broken)?;
            u32::try_from(value).map_err(|error| broken(io::Error::other(error)).into())
        };
        let mut node = Node::new(kind, header.mode().map_err(broken)? & 0o7777);
        node.owner = number(header.uid())?;
        node.group = number(header.gid())?;
        node.modified = Some(header.mtime().map_err(broken)?.min(time));
        if let Some(extensions) = entry.pax_extensions().map_err(broken)? {
            for extension in extensions {
                let extension = extension.map_err(broken)?;
                let key = extension.key_bytes();
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    node.attributes.insert(utf8(name)?, extension.value_bytes().to_vec());
                }
            }
        }
        tree.add(&path, node)?;
    }
    Ok(tree)
}

fn keep(entry: &mut impl io::Read, place: &Path) -> Result<u64, SystemError> {
    let unwritable = |source| file_error(place, "it cannot be written", source);
    let mut file = File::create(place).map_err(unwritable)?;
    io::copy(entry, &mut file).map_err(unwritable)
}

fn utf8(bytes: &[u8]) -> Result<String, TreeError> {
    String::from_utf8(bytes.to_vec())
        .map_err(|_| TreeError::Path { path: String::from_utf8_lossy(bytes).escape_default().collect() })
}

/// `./usr/bin/` → `usr/bin`; `None` for the root itself.
fn inner_path(bytes: &[u8]) -> Result<Option<String>, TreeError> {
    let path = utf8(bytes)?;
    let path = path.trim_start_matches("./").trim_end_matches('/');
    Ok((!path.is_empty() && path != ".").then(|| path.to_owned()))
}

fn kernel_release(tree: &Tree) -> Result<String, DebianError> {
    let mut releases = tree.iter().filter_map(|(path, _)| path.strip_prefix("boot/vmlinuz-"));
    match (releases.next(), releases.count()) {
        (Some(release), 0) => Ok(release.to_owned()),
        (None, _) => Err(DebianError::Kernels { count: 0 }),
        (Some(_), more) => Err(DebianError::Kernels { count: 1 + more }),
    }
}

fn required(tree: &Tree, path: &'static str, package: &'static str) -> Result<Vec<u8>, SystemError> {
    let content = tree.content(path).map_err(|_| DebianError::Lacking { path, package })?;
    Ok(content.read().map_err(|source| DebianError::Archive { source })?)
}

/// GRUB's modules: into a directory for `grub-mkimage`, and to where GRUB looks for what a later menu may ask for.
fn grub_modules(tree: &mut Tree, scratch: &Path) -> Result<PathBuf, SystemError> {
    const PLACE: &str = "usr/lib/grub/i386-pc/";
    let directory = scratch.join("i386-pc");
    let unwritable = |source| file_error(&directory, "it cannot be written", source);
    fs::create_dir(&directory).map_err(unwritable)?;
    let modules: Vec<(String, Node)> = tree
        .iter()
        .filter_map(|(path, node)| Some((path.strip_prefix(PLACE)?.to_owned(), node.clone())))
        .filter(|(name, node)| !name.contains('/') && matches!(node.kind, Kind::File(_)))
        .collect();
    if modules.is_empty() {
        return Err(DebianError::Lacking { path: "usr/lib/grub/i386-pc", package: "grub-pc-bin" }.into());
    }
    for (name, node) in modules {
        if let Kind::File(content) = &node.kind {
            let bytes = content.read().map_err(|source| DebianError::Archive { source })?;
            fs::write(directory.join(&name), bytes).map_err(unwritable)?;
        }
        if name.ends_with(".mod") || name.ends_with(".lst") {
            tree.add(&format!("boot/grub/i386-pc/{name}"), node)?;
        }
    }
    Ok(directory)
}

/// What makes a machine of a tree of packages.
fn furnish(tree: &mut Tree, recipe: &SystemRecipe, choices: &Choices) -> Result<(), TreeError> {
    let locale = choices.locale.as_deref().unwrap_or("C.UTF-8");
    let arguments: Vec<String> = recipe.arguments.iter().map(ToString::to_string).collect();
    let grub = format!(
        "# Used when a later kernel makes a new menu.\nGRUB_DEFAULT=0\nGRUB_TIMEOUT={}\nGRUB_DISTRIBUTOR=Debian\n\
         GRUB_CMDLINE_LINUX=\"{}\"\nGRUB_TERMINAL=\"console serial\"\nGRUB_SERIAL_COMMAND=\"serial --unit=0 --speed=115200\"\n",
        recipe.menu_seconds,
        arguments.join(" ")
    );
    let locale = format!("LANG={locale}\n");
    for (path, permissions, bytes) in [
        (FIRST_BOOT_PLACE, 0o755, FIRST_BOOT),
        ("etc/systemd/system/farrier-first-boot.service", 0o644, SERVICE),
        ("etc/systemd/system/farrier-first-boot-finish.service", 0o644, FINISH),
        ("etc/systemd/network/80-ethernet.network", 0o644, NETWORK.as_bytes()),
        ("etc/systemd/system/systemd-networkd-wait-online.service.d/any.conf", 0o644, WAIT_ONLINE.as_bytes()),
        ("etc/sudoers.d/debian", 0o440, SUDOERS.as_bytes()),
        ("etc/default/grub", 0o644, grub.as_bytes()),
        ("etc/default/locale", 0o644, locale.as_bytes()),
        ("etc/hostname", 0o644, b"debian\n"),
        ("etc/hosts", 0o644, b"127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"),
        // Empty: systemd gives the machine an identity of its own when it boots first.
        ("etc/machine-id", 0o444, b""),
    ] {
        tree.file(path, permissions, bytes)?;
    }
    let units = [("sysinit", "farrier-first-boot"), ("multi-user", "farrier-first-boot-finish")];
    for (target, unit) in units {
        let place = format!("etc/systemd/system/{target}.target.wants/{unit}.service");
        tree.symlink(&place, &format!("/etc/systemd/system/{unit}.service"))?;
    }
    tree.symlink("etc/resolv.conf", "/run/systemd/resolve/stub-resolv.conf")?;
    tree.directory("boot/efi", 0o755)?;
    first_boot_keys(tree, choices.ssh_keys.as_deref().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe() -> SystemRecipe {
        SystemRecipe::built_in("debian-12").unwrap()
    }

    #[test]
    fn choices_become_hooks_and_sources() {
        let choices = Choices {
            mirror: Some("http://near.example/debian/".to_owned()),
            security_mirror: Some("http://s.example/debian-security".to_owned()),
            locale: Some("de_DE.UTF-8".to_owned()),
            timezone: Some("Europe/Berlin".to_owned()),
            ..Choices::default()
        };
        let components = ["main".to_owned()];
        let wanted = Wanted { suite: "bookworm", components: &components, packages: &[] };
        let given = arguments(&recipe(), &wanted, &choices).join("\n");
        for wanted in
            ["--include=linux-image-amd64\n", "'de_DE.UTF-8 UTF-8'", "/usr/share/zoneinfo/Europe/Berlin"]
        {
            assert!(given.contains(wanted), "{wanted}: {given}");
        }
        let sources = sources(&wanted, &choices);
        assert_eq!(sources[0], "deb http://near.example/debian bookworm main");
        assert_eq!(sources[2], "deb http://s.example/debian-security bookworm-security main");
        let plain = Choices { locale: Some("C.UTF-8".to_owned()), ..Choices::default() };
        assert!(!arguments(&recipe(), &wanted, &plain).join("\n").contains("locale-gen"));
    }

    #[test]
    fn an_archive_becomes_a_tree() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(5);
        header.set_mode(0o4755);
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(2_000);
        let capability = [("SCHILY.xattr.security.capability", b"\x01\x00\xff".as_slice())];
        builder.append_pax_extensions(capability).unwrap();
        builder.append_data(&mut header, "./usr/bin/tool", b"bytes".as_slice()).unwrap();
        let mut link = tar::Header::new_ustar();
        link.set_size(0);
        link.set_mtime(500);
        link.set_uid(0);
        link.set_gid(0);
        link.set_mode(0o777);
        link.set_entry_type(tar::EntryType::Link);
        builder.append_link(&mut link, "./usr/bin/other", "./usr/bin/tool").unwrap();
        link.set_entry_type(tar::EntryType::Symlink);
        builder.append_link(&mut link, "./bin", "usr/bin").unwrap();
        let archive = builder.into_inner().unwrap();
        let files = tempfile::tempdir().unwrap();
        let tree = read_archive(archive.as_slice(), files.path(), 1_000).unwrap();
        let tool = tree.get("usr/bin/tool").unwrap();
        assert_eq!((tool.permissions, tool.owner, tool.group), (0o4755, 7, 8));
        // Nothing is younger than the image.
        assert_eq!(tool.modified, Some(1_000));
        assert_eq!(tool.attributes["security.capability"], [1, 0, 255]);
        assert_eq!(tree.content("usr/bin/other").unwrap().read().unwrap(), b"bytes");
        assert_eq!(tree.get("bin").unwrap().kind, Kind::Symlink("usr/bin".to_owned()));
        assert_eq!(tree.get("bin").unwrap().modified, Some(500));
    }

    #[test]
    fn one_kernel_is_wanted() {
        let mut tree = Tree::default();
        assert!(kernel_release(&tree).is_err());
        tree.file("boot/vmlinuz-6.1.0-1-amd64", 0o644, b"").unwrap();
        assert_eq!(kernel_release(&tree).unwrap(), "6.1.0-1-amd64");
        tree.file("boot/vmlinuz-6.1.0-2-amd64", 0o644, b"").unwrap();
        assert!(kernel_release(&tree).is_err());
    }
}
