//! The virtual namespace: every name a node may ask for, by TFTP or HTTP, and the content it stands for.
//!
//! TFTP names and HTTP paths are one namespace (a path is a name after its leading slash). No file system path is
//! ever built from a name; a name either is one of these patterns or does not exist:
//!
//! | name | content |
//! |---|---|
//! | `undionly.kpxe`, `uefi-x64/shimx64.efi`, … | a loader of `pxe/loaders.toml` |
//! | `boot/52-54-00-00-00-01/script.ipxe`, `autoexec.ipxe` | the asking node's iPXE script |
//! | `grub/grub.cfg-01-52-54-00-00-00-01`, `grub/grub.cfg` | the asking node's GRUB configuration |
//! | `pxelinux.cfg/01-52-54-00-00-00-01` | the asking node's configuration for U-Boot and PXELINUX |
//! | `image/vm/vmlinuz`, `image/vm/initrd.img` | deploy kernel and ramdisk of a profile |
//! | `profile/live/kernel`, `profile/live/initrd/0` | kernel and first initrd of a boot profile |
//! | `profile/memtest/boot.efi`, `profile/dos/image.iso` | EFI program, ISO image of a boot profile |
//!
//! GRUB looks beside its loader and below `grub/`, so its two names exist in the root, in each loader folder, and
//! in `grub/` below either.

use crate::boot::loader::{LoaderName, LoaderTable};
use crate::boot::profile::{INITRDS_MAX, ProfileFile, ProfileName};
use crate::net::MacAddr;
use crate::node::timeline::Stage;

/// No name of ours comes near this; RFC 1350 gives none, file systems stop at it.
pub const NAME_LEN_MAX: usize = 255;

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    Loader(LoaderName),
    /// `mac` is what the name says; it must be the asking node's own.
    IpxeScript {
        mac: Option<MacAddr>,
    },
    GrubConfig {
        mac: Option<MacAddr>,
    },
    PxelinuxConfig {
        mac: MacAddr,
    },
    Kernel {
        profile: String,
    },
    Ramdisk {
        profile: String,
    },
    /// There only for the nodes it is assigned to.
    ProfileFile {
        profile: ProfileName,
        file: ProfileFile,
    },
}

/// Why a name cannot be one of ours, whatever files exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameRefusal {
    #[error("empty name")]
    Empty,
    #[error("name longer than {NAME_LEN_MAX} bytes")]
    TooLong,
    #[error("name has bytes outside printable ASCII")]
    Unprintable,
    #[error("name has a `..` component")]
    Traversal,
}

/// The one spelling of a name: `\` as `/`, no leading, doubled or trailing slash, no `.` component, no space before a
/// slash or the end.
///
/// Trailing bytes outside printable ASCII are cut off first: old UEFI firmware reads option 67 past its end and
/// asks for `name.efi\xff`.
pub fn canonical(raw: &[u8]) -> Result<String, NameRefusal> {
    let garbage = raw.iter().rev().take_while(|byte| !byte.is_ascii_graphic()).count();
    let raw = &raw[..raw.len() - garbage];
    if raw.len() > NAME_LEN_MAX {
        return Err(NameRefusal::TooLong);
    }
    if !raw.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ') {
        return Err(NameRefusal::Unprintable);
    }
    let mut name = String::with_capacity(raw.len());
    for component in raw.split(|byte| matches!(byte, b'/' | b'\\')) {
        match component.trim_ascii_end() {
            b"" | b"." => {}
            b".." => return Err(NameRefusal::Traversal),
            component => {
                if !name.is_empty() {
                    name.push('/');
                }
                name.extend(component.iter().map(|byte| char::from(*byte)));
            }
        }
    }
    if name.is_empty() { Err(NameRefusal::Empty) } else { Ok(name) }
}

/// Looks a canonical name up, as written first and then in lower case (FAT-minded firmware shouts).
pub fn resolve(name: &str, loaders: &LoaderTable) -> Option<Content> {
    resolve_exactly(name, loaders).or_else(|| resolve_exactly(&name.to_ascii_lowercase(), loaders))
}

/// What a name stands for that stands for nothing, for firmware whose load options make shim ask for
/// `<folder>/<garbage>Onboard` or `<folder>/?USB` (shim issues 649 and 696): the file that shim fetches next. What shim
/// and GRUB look for in vain has a dot in it, and is not there for this machine either.
pub fn beside_shim<'t>(raw: &[u8], loaders: &'t LoaderTable) -> Option<&'t LoaderName> {
    let cut = raw.iter().rposition(|byte| matches!(byte, b'/' | b'\\'))?;
    let (folder, file) = (canonical(&raw[..cut]).ok()?, &raw[cut + 1..]);
    let odd =
        !file.is_empty() && (!file.contains(&b'.') || !file.iter().all(|byte| (b' '..=b'~').contains(byte)));
    let in_folder = |name: &LoaderName| name.0.rsplit_once('/').is_some_and(|(other, _)| other == folder);
    let shim = loaders.files().find(|file| file.second.is_some() && in_folder(&file.name))?;
    shim.second.as_ref().filter(|_| odd)
}

fn resolve_exactly(name: &str, loaders: &LoaderTable) -> Option<Content> {
    let loader = LoaderName(name.to_owned());
    if loaders.file(&loader).is_some() {
        return Some(Content::Loader(loader));
    }
    let (folder, file) = name.rsplit_once('/').unwrap_or(("", name));
    if file == "autoexec.ipxe" && holds_loaders(folder, loaders) {
        return Some(Content::IpxeScript { mac: None });
    }
    if let Some(suffix) = file.strip_prefix("grub.cfg") {
        return resolve_grub_config(folder, suffix, loaders);
    }
    match *name.split('/').collect::<Vec<_>>() {
        ["boot", mac, "script.ipxe"] => Some(Content::IpxeScript { mac: Some(mac.parse().ok()?) }),
        ["pxelinux.cfg", file] | [_, "pxelinux.cfg", file] => {
            let mac = file.strip_prefix("01-")?.parse().ok()?;
            Some(Content::PxelinuxConfig { mac })
        }
        ["image", profile, "vmlinuz"] => Some(Content::Kernel { profile: profile.to_owned() }),
        ["image", profile, "initrd.img"] => Some(Content::Ramdisk { profile: profile.to_owned() }),
        ["profile", profile, ref file @ ..] => {
            let file = match *file {
                ["kernel"] => ProfileFile::Kernel,
                ["initrd", number] => ProfileFile::Initrd(initrd_number(number)?),
                ["boot.efi"] => ProfileFile::EfiProgram,
                ["image.iso"] => ProfileFile::Iso,
                _ => return None,
            };
            Some(Content::ProfileFile { profile: profile.parse().ok()?, file })
        }
        _ => None,
    }
}

/// One spelling only: no sign, no zero in front.
fn initrd_number(text: &str) -> Option<usize> {
    let number: usize = text.parse().ok()?;
    (number < INITRDS_MAX && number.to_string() == text).then_some(number)
}

/// `grub.cfg` and `grub.cfg-01-<mac>`. Debian's signed GRUB asks for `/grub/grub.cfg` only, so that name is rendered
/// for whoever asks; other builds search by UUID, MAC and address, and need but one hit.
fn resolve_grub_config(folder: &str, suffix: &str, loaders: &LoaderTable) -> Option<Content> {
    let parent = folder.strip_suffix("grub").map(|parent| parent.trim_end_matches('/')).unwrap_or(folder);
    if !holds_loaders(parent, loaders) {
        return None;
    }
    match suffix.strip_prefix("-01-") {
        Some(mac) => Some(Content::GrubConfig { mac: Some(mac.parse().ok()?) }),
        None => suffix.is_empty().then_some(Content::GrubConfig { mac: None }),
    }
}

/// The root, or a folder that some loader is served from.
fn holds_loaders(folder: &str, loaders: &LoaderTable) -> bool {
    folder.is_empty()
        || loaders.files().any(|file| file.name.0.rsplit_once('/').is_some_and(|(f, _)| f == folder))
}

pub fn ipxe_script_name(mac: MacAddr) -> String {
    format!("boot/{}/script.ipxe", mac.dashed())
}

pub fn grub_config_name(mac: MacAddr) -> String {
    format!("grub/grub.cfg-01-{}", mac.dashed())
}

pub fn pxelinux_config_name(mac: MacAddr) -> String {
    format!("pxelinux.cfg/01-{}", mac.dashed())
}

pub fn kernel_name(profile: &str) -> String {
    format!("image/{profile}/vmlinuz")
}

pub fn ramdisk_name(profile: &str) -> String {
    format!("image/{profile}/initrd.img")
}

pub fn profile_file_name(profile: &ProfileName, file: ProfileFile) -> String {
    match file {
        ProfileFile::Kernel => format!("profile/{profile}/kernel"),
        ProfileFile::Initrd(number) => format!("profile/{profile}/initrd/{number}"),
        ProfileFile::EfiProgram => format!("profile/{profile}/boot.efi"),
        ProfileFile::Iso => format!("profile/{profile}/image.iso"),
    }
}

/// The stage of a boot that fetching this content belongs to.
pub fn stage_of(content: &Content) -> Stage {
    match content {
        Content::Loader(_) => Stage::Loader,
        Content::IpxeScript { .. } | Content::GrubConfig { .. } | Content::PxelinuxConfig { .. } => {
            Stage::Script
        }
        // Behind a profile's initrds no agent of ours is awaited, so they are not the ramdisk.
        Content::Kernel { .. } | Content::ProfileFile { .. } => Stage::Kernel,
        Content::Ramdisk { .. } => Stage::Ramdisk,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);

    fn found(name: &str) -> Option<Content> {
        resolve(&canonical(name.as_bytes()).ok()?, &LoaderTable::built_in())
    }

    #[test]
    fn names_are_read_as_firmware_spells_them() {
        let shim = Content::Loader(LoaderName("uefi-x64/shimx64.efi".into()));
        for name in [
            "uefi-x64/shimx64.efi",
            "/uefi-x64//shimx64.efi",
            "\\uefi-x64\\shimx64.efi",
            "UEFI-X64/SHIMX64.EFI",
            "./uefi-x64/shimx64.efi",
        ] {
            assert_eq!(found(name), Some(shim.clone()), "{name}");
        }
        assert_eq!(canonical(b"undionly.kpxe\xff\xff").unwrap(), "undionly.kpxe");
    }

    #[test]
    fn what_we_advertise_resolves() {
        assert_eq!(found(&ipxe_script_name(MAC)), Some(Content::IpxeScript { mac: Some(MAC) }));
        assert_eq!(found(&grub_config_name(MAC)), Some(Content::GrubConfig { mac: Some(MAC) }));
        assert_eq!(found(&kernel_name("vm")), Some(Content::Kernel { profile: "vm".into() }));
        assert_eq!(found(&ramdisk_name("vm")), Some(Content::Ramdisk { profile: "vm".into() }));
    }

    #[test]
    fn u_boot_finds_its_configuration_beside_its_boot_file_by_mac_only() {
        for folder in ["", "uefi-x64/"] {
            let by_mac = format!("{folder}{}", pxelinux_config_name(MAC));
            assert_eq!(found(&by_mac), Some(Content::PxelinuxConfig { mac: MAC }), "{by_mac}");
        }
        for name in [
            "pxelinux.cfg/default",
            "pxelinux.cfg/C0A80232",
            "pxelinux.cfg/01-nonsense",
            "a/b/pxelinux.cfg/01-52-54-00-00-00-01",
        ] {
            assert_eq!(found(name), None, "{name}");
        }
    }

    #[test]
    fn grub_finds_its_configuration_in_every_folder_it_looks() {
        for folder in ["", "grub/", "uefi-x64/", "uefi-x64/grub/"] {
            let by_mac = format!("{folder}grub.cfg-01-52-54-00-00-00-01");
            assert_eq!(found(&by_mac), Some(Content::GrubConfig { mac: Some(MAC) }), "{by_mac}");
            assert_eq!(found(&format!("{folder}grub.cfg")), Some(Content::GrubConfig { mac: None }));
        }
        for miss in
            ["etc/grub.cfg", "grub/grub.cfg-C0A80232", "grub/grub.cfg-01-nonsense", "grub/grub/grub.cfg"]
        {
            assert_eq!(found(miss), None, "{miss}");
        }
    }

    #[test]
    fn a_boot_profiles_files_have_one_name_each() {
        let profile: ProfileName = "live".parse().unwrap();
        for file in [
            ProfileFile::Kernel,
            ProfileFile::Initrd(0),
            ProfileFile::Initrd(INITRDS_MAX - 1),
            ProfileFile::EfiProgram,
            ProfileFile::Iso,
        ] {
            let name = profile_file_name(&profile, file);
            let profile = profile.clone();
            assert_eq!(found(&name), Some(Content::ProfileFile { profile, file }), "{name}");
        }
        for miss in [
            "profile/live",
            "profile/live/initrd",
            "profile/live/initrd/16",
            "profile/live/initrd/00",
            "profile/live/initrd/+1",
            "profile/live/kernel/x",
            "profile/-/kernel",
            "profile/live/blob",
        ] {
            assert_eq!(found(miss), None, "{miss}");
        }
    }

    #[test]
    fn what_garbled_load_options_make_shim_ask_for_is_its_second_stage() {
        let loaders = LoaderTable::built_in();
        let grub = LoaderName("uefi-x64/grubx64.efi".to_owned());
        for garbled in [
            &b"uefi-x64/\xb5\x01Onboard NIC"[..],
            b"/uefi-x64\\?USB",
            b"uefi-x64/\x01\x02.efi",
            b"\\uefi-x64\\Onboard",
        ] {
            assert_eq!(beside_shim(garbled, &loaders), Some(&grub), "{}", garbled.escape_ascii());
        }
        for other in [
            &b"uefi-x64/revocations.efi"[..],
            b"uefi-x64/shim_certificate_0.efi",
            b"uefi-x64/grub.cfg-C0A80232",
            b"uefi-x64/x86_64-efi/command.lst",
            b"oader/revocations.efi",
            b"uefi-x64/",
            b"elsewhere/\xb5Onboard",
            b"../uefi-x64/\xb5Onboard",
            b"\xb5Onboard",
        ] {
            assert_eq!(beside_shim(other, &loaders), None, "{}", other.escape_ascii());
        }
    }

    #[test]
    fn everything_outside_is_not_there() {
        for name in [
            "etc/passwd",
            "uefi-x64/revocations.efi",
            "image/vm/../vmlinuz",
            "image/vm",
            "boot/x/script.ipxe",
        ] {
            assert_eq!(found(name), None, "{name}");
        }
        assert_eq!(canonical(b"../../etc/passwd"), Err(NameRefusal::Traversal));
        assert_eq!(canonical(b"a\\..\\b"), Err(NameRefusal::Traversal));
        assert_eq!(canonical(b"a/.. /."), Err(NameRefusal::Traversal));
        assert_eq!(canonical(b"a//./b /").unwrap(), "a/b", "one spelling, however often it is asked for");
        assert_eq!(canonical(b"a\0b"), Err(NameRefusal::Unprintable));
        assert_eq!(canonical(b"\xff"), Err(NameRefusal::Empty));
        assert_eq!(canonical(&[b'a'; 256]), Err(NameRefusal::TooLong));
    }

    proptest! {
        #[test]
        fn a_canonical_name_stays_as_it_is(raw in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(name) = canonical(&raw) {
                prop_assert_eq!(canonical(name.as_bytes()), Ok(name.clone()));
                prop_assert!(!name.starts_with('/') && !name.contains("//"));
                prop_assert!(name.split('/').all(|component| component != ".."));
                let _ = resolve(&name, &LoaderTable::built_in());
            }
        }
    }
}
