//! Kernel modules: an index the builder writes, and loading what the machine's devices ask for.
//!
//! Every device names itself in its `modalias` file; every module lists patterns of the names it drives. Loading by
//! match, instead of loading everything, keeps a ramdisk with forty drivers as quick as one with four, and keeps
//! drivers for absent hardware from filling the console with complaints.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use serde::{Deserialize, Serialize};

/// File name of the index below [`crate::agent::MODULES_DIR`].
pub const INDEX_FILE: &str = "index.json";

/// What a module is for; the order of these is the order of loading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Makes other devices appear: buses and transports.
    Bus,
    Network,
    Storage,
    /// Loaded with storage when a device asks, or by name.
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModuleEntry {
    pub name: String,
    pub file: String,
    pub role: Role,
    /// Modules to load before this one, in order.
    pub needs: Vec<String>,
    /// Patterns of the device names it drives.
    pub aliases: Vec<String>,
}

/// All modules of the ramdisk, dependencies before dependents.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModuleIndex {
    pub modules: Vec<ModuleEntry>,
}

impl ModuleIndex {
    /// Modules of the given roles whose aliases match one of `devices`, each preceded by what it needs.
    pub fn wanted(&self, roles: &[Role], devices: &BTreeSet<String>) -> Vec<&ModuleEntry> {
        let by_name = self.by_name();
        let mut chosen = Vec::new();
        let mut roles = roles.to_vec();
        roles.sort();
        for role in roles {
            for module in self.modules.iter().filter(|module| module.role == role) {
                let asked = devices
                    .iter()
                    .any(|device| module.aliases.iter().any(|alias| alias_matches(alias, device)));
                if asked {
                    self.add(module, &by_name, &mut chosen);
                }
            }
        }
        chosen
    }

    /// One module by name with what it needs; empty if the ramdisk has none of that name (or it is built in).
    pub fn named(&self, name: &str) -> Vec<&ModuleEntry> {
        let by_name = self.by_name();
        let mut chosen = Vec::new();
        if let Some(module) = by_name.get(name) {
            self.add(module, &by_name, &mut chosen);
        }
        chosen
    }

    fn by_name(&self) -> BTreeMap<&str, &ModuleEntry> {
        self.modules.iter().map(|module| (module.name.as_str(), module)).collect()
    }

    fn add<'a>(
        &'a self,
        module: &'a ModuleEntry,
        by_name: &BTreeMap<&str, &'a ModuleEntry>,
        chosen: &mut Vec<&'a ModuleEntry>,
    ) {
        // `needs` is complete and ordered, so no recursion and no cycle.
        for name in module.needs.iter().map(String::as_str).chain([module.name.as_str()]) {
            if let Some(entry) = by_name.get(name)
                && !chosen.iter().any(|other| other.name == entry.name)
            {
                chosen.push(entry);
            }
        }
    }
}

/// Shell pattern with `*`, `?` and `[…]`, as `modules.alias` uses; `-` and `_` differ.
pub fn alias_matches(pattern: &str, device: &str) -> bool {
    let (pattern, device) = (pattern.as_bytes(), device.as_bytes());
    let (mut at, mut seen) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while seen < device.len() {
        let step = match pattern.get(at) {
            Some(b'*') => {
                star = Some((at + 1, seen));
                at += 1;
                continue;
            }
            Some(b'?') => Some(at + 1),
            Some(b'[') => class_matches(&pattern[at..], device[seen]).map(|length| at + length),
            Some(byte) if *byte == device[seen] => Some(at + 1),
            Some(_) | None => None,
        };
        match (step, star) {
            (Some(next), _) => {
                at = next;
                seen += 1;
            }
            (None, Some((after_star, from))) => {
                at = after_star;
                seen = from + 1;
                star = Some((after_star, from + 1));
            }
            (None, None) => return false,
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

/// Length of a `[…]` class at the start of `pattern` if it holds `byte`.
fn class_matches(pattern: &[u8], byte: u8) -> Option<usize> {
    let end = pattern.iter().position(|byte| *byte == b']')?;
    let class = &pattern[1..end];
    let mut at = 0;
    while at < class.len() {
        let (low, high, length) = match class.get(at..at + 3) {
            Some([low, b'-', high]) => (*low, *high, 3),
            Some(_) | None => (class[at], class[at], 1),
        };
        if (low..=high).contains(&byte) {
            return Some(end + 1);
        }
        at += length;
    }
    None
}

/// The `modalias` of every device the kernel knows now. By way of the buses: each lists its devices flat, whereas a
/// walk through `/sys/devices` reads thousands of directories, which takes a tenth of a second under emulation.
pub fn devices(root: &Path) -> BTreeSet<String> {
    let entries = |directory: &Path| {
        std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
    };
    entries(&root.join("sys/bus"))
        .flat_map(|bus| entries(&bus.join("devices")).collect::<Vec<_>>())
        .filter_map(|device| std::fs::read_to_string(device.join("modalias")).ok())
        .map(|text| text.trim().to_owned())
        .filter(|text| !text.is_empty())
        .collect()
}

#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    #[error("{} cannot be read: the ramdisk is incomplete", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is not a module index: {source}", path.display())]
    Format { path: PathBuf, source: serde_json::Error },
}

/// A module the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub name: String,
    pub why: String,
}

/// Loads modules and remembers which it tried, so that each is tried once.
pub struct Loader {
    directory: PathBuf,
    index: ModuleIndex,
    tried: BTreeSet<String>,
}

impl Loader {
    pub fn open(directory: &Path) -> Result<Self, IndexError> {
        let path = directory.join(INDEX_FILE);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(source) => return Err(IndexError::Read { path, source }),
        };
        let index = serde_json::from_slice(&text).map_err(|source| IndexError::Format { path, source })?;
        Ok(Loader { directory: directory.to_owned(), index, tried: BTreeSet::new() })
    }

    /// No modules at all: everything the machine needs must be built into the kernel.
    pub fn empty() -> Self {
        Loader { directory: PathBuf::new(), index: ModuleIndex::default(), tried: BTreeSet::new() }
    }

    /// Loads for the devices present, again and again while loading makes further devices appear.
    pub fn load_for_devices(&mut self, root: &Path, roles: &[Role]) -> Vec<Refused> {
        let mut refused = Vec::new();
        loop {
            let present = devices(root);
            let wanted: Vec<ModuleEntry> = self.index.wanted(roles, &present).into_iter().cloned().collect();
            let before = self.tried.len();
            self.load(&wanted, &mut refused);
            if self.tried.len() == before {
                return refused;
            }
        }
    }

    pub fn load_named(&mut self, name: &str) -> Vec<Refused> {
        let mut refused = Vec::new();
        let wanted: Vec<ModuleEntry> = self.index.named(name).into_iter().cloned().collect();
        self.load(&wanted, &mut refused);
        refused
    }

    fn load(&mut self, wanted: &[ModuleEntry], refused: &mut Vec<Refused>) {
        for module in wanted {
            if !self.tried.insert(module.name.clone()) {
                continue;
            }
            if let Err(why) = insert(&self.directory.join(&module.file)) {
                refused.push(Refused { name: module.name.clone(), why });
            }
        }
    }
}

fn insert(path: &Path) -> Result<(), String> {
    let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    match finit_module(&file, c"", ModuleInitFlags::empty()) {
        // Loaded already; or a driver that finds nothing to drive, such as a cipher for a newer processor.
        Ok(()) | Err(Errno::EEXIST | Errno::ENODEV) => Ok(()),
        Err(errno) => Err(errno.desc().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, role: Role, needs: &[&str], aliases: &[&str]) -> ModuleEntry {
        ModuleEntry {
            name: name.to_owned(),
            file: format!("{name}.ko"),
            role,
            needs: needs.iter().map(|need| (*need).to_owned()).collect(),
            aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
        }
    }

    fn names(modules: &[&ModuleEntry]) -> Vec<String> {
        modules.iter().map(|module| module.name.clone()).collect()
    }

    #[test]
    fn patterns_match_as_the_kernels_do() {
        let card = "pci:v00001AF4d00001041sv00001AF4sd00001100bc02sc00i00";
        for (pattern, matches) in [
            ("pci:v00001AF4d*sv*sd*bc*sc*i*", true),
            ("pci:v00008086d*sv*sd*bc*sc*i*", false),
            ("pci:v*d*sv*sd*bc0[12]sc0[0-6]i00", true),
            ("pci:v*d*sv*sd*bc0[3-9]sc*i*", false),
            ("pci:v00001AF4d0000104?*", true),
            ("*", true),
            ("", false),
            ("pci:v00001AF4d[", false),
        ] {
            assert_eq!(alias_matches(pattern, card), matches, "{pattern}");
        }
        assert!(alias_matches("", ""));
        assert!(!alias_matches("a*b*c", "aXbX"));
    }

    #[test]
    fn only_asked_for_modules_load_and_what_they_need_comes_first() {
        let index = ModuleIndex {
            modules: vec![
                entry("virtio", Role::Bus, &[], &[]),
                entry("virtio_pci", Role::Bus, &["virtio"], &["pci:v00001AF4d*"]),
                entry("failover", Role::Network, &[], &[]),
                entry("virtio_net", Role::Network, &["failover", "virtio"], &["virtio:d00000001v*"]),
                entry("mlx5_core", Role::Network, &[], &["pci:v000015B3d*"]),
                entry("virtio_blk", Role::Storage, &["virtio"], &["virtio:d00000002v*"]),
            ],
        };
        let devices: BTreeSet<String> =
            ["virtio:d00000002v00001AF4", "virtio:d00000001v00001AF4", "pci:v00001AF4d00001000"]
                .map(str::to_owned)
                .into();
        let first = index.wanted(&[Role::Network, Role::Bus], &devices);
        assert_eq!(names(&first), ["virtio", "virtio_pci", "failover", "virtio_net"]);
        let second = index.wanted(&[Role::Storage], &devices);
        assert_eq!(names(&second), ["virtio", "virtio_blk"]);
        assert_eq!(names(&index.named("mlx5_core")), ["mlx5_core"]);
        assert!(index.named("absent").is_empty());
    }

    #[test]
    fn devices_are_those_of_all_buses() {
        let root = tempfile::tempdir().unwrap();
        for (device, alias) in
            [("pci/devices/0000:00:03.0", "pci:v00001AF4\n"), ("virtio/devices/virtio0", "virtio:d1\n")]
        {
            let device = root.path().join("sys/bus").join(device);
            std::fs::create_dir_all(&device).unwrap();
            std::fs::write(device.join("modalias"), alias).unwrap();
        }
        std::fs::create_dir_all(root.path().join("sys/bus/cpu/devices/cpu0")).unwrap();
        let found: Vec<String> = devices(root.path()).into_iter().collect();
        assert_eq!(found, ["pci:v00001AF4", "virtio:d1"]);
    }
}
