//! Which module files a list of module names needs: `modules.dep` and its companions, resolved in loading order.
//!
//! Pure: the texts come in, an index and a list of files come out. The formats are depmod's (modules.dep(5)).

use std::collections::{BTreeMap, BTreeSet};

use crate::agent::drivers::{ModuleEntry, ModuleIndex, Role};
use crate::image::recipe::WantedModule;

/// What depmod and the kernel package say of all modules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModuleTree {
    /// By name: path below the module directory, and names of what it needs, in the order to load them.
    modules: BTreeMap<String, (String, Vec<String>)>,
    built_in: BTreeSet<String>,
    aliases: BTreeMap<String, Vec<String>>,
    /// Modules to load first although the file does not say so itself ("pre" in modules.softdep).
    soft: BTreeMap<String, Vec<String>>,
}

/// The four texts a [`ModuleTree`] is read from.
#[derive(Clone, Copy, Debug, Default)]
pub struct ModuleTexts<'a> {
    pub dependencies: &'a str,
    pub built_in: &'a str,
    pub aliases: &'a str,
    pub soft_dependencies: &'a str,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModulesError {
    #[error("line {line} names module `{name}`, which this kernel neither has as a file nor built in")]
    Unknown { name: String, line: usize },
    #[error("modules.dep is damaged: `{name}` needs `{missing}`, which is not listed")]
    Incomplete { name: String, missing: String },
}

/// The index for the ramdisk, and where each file of it comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    pub index: ModuleIndex,
    /// Index file name → path below the module directory, maybe compressed.
    pub sources: BTreeMap<String, String>,
    pub built_in: Vec<String>,
}

impl ModuleTree {
    pub fn parse(texts: ModuleTexts<'_>) -> ModuleTree {
        let mut tree = ModuleTree::default();
        for line in texts.dependencies.lines() {
            let Some((path, needs)) = line.split_once(':') else { continue };
            // depmod lists the deepest dependency last.
            let needs = needs.split_whitespace().rev().map(module_name).collect();
            tree.modules.insert(module_name(path), (path.to_owned(), needs));
        }
        tree.built_in = texts.built_in.lines().map(module_name).collect();
        for line in texts.aliases.lines() {
            let mut words = line.split_whitespace();
            if let (Some("alias"), Some(pattern), Some(name)) = (words.next(), words.next(), words.next()) {
                tree.aliases.entry(name.replace('-', "_")).or_default().push(pattern.to_owned());
            }
        }
        for line in texts.soft_dependencies.lines() {
            let mut words = line.split_whitespace();
            if words.next() != Some("softdep") {
                continue;
            }
            let Some(name) = words.next() else { continue };
            let first = words.skip_while(|word| *word != "pre:").skip(1).take_while(|word| *word != "post:");
            tree.soft.entry(name.replace('-', "_")).or_default().extend(first.map(str::to_owned));
        }
        tree
    }

    /// The wanted modules and all they need, each once, dependencies before dependents.
    pub fn resolve(&self, wanted: &[WantedModule]) -> Result<Resolved, ModulesError> {
        let mut resolved = Resolved::default();
        let mut placed = BTreeSet::new();
        for module in wanted {
            if self.built_in.contains(&module.name) {
                resolved.built_in.push(module.name.clone());
                continue;
            }
            if !self.modules.contains_key(&module.name) {
                return Err(ModulesError::Unknown { name: module.name.clone(), line: module.line });
            }
            for name in self.loading_order(&module.name)? {
                if placed.insert(name.clone()) {
                    self.place(&name, module.role, wanted, &mut resolved)?;
                }
            }
        }
        Ok(resolved)
    }

    fn place(
        &self,
        name: &str,
        needed_for: Role,
        wanted: &[WantedModule],
        resolved: &mut Resolved,
    ) -> Result<(), ModulesError> {
        let Some((path, _)) = self.modules.get(name) else { return Ok(()) };
        let file = format!("{name}.ko");
        let own = wanted.iter().find(|module| module.name == name);
        let mut needs = self.loading_order(name)?;
        needs.pop();
        resolved.sources.insert(file.clone(), path.clone());
        resolved.index.modules.push(ModuleEntry {
            name: name.to_owned(),
            file,
            role: own.map_or(needed_for, |module| module.role),
            needs,
            // One that is only needed by others is loaded for them, not for a device.
            aliases: own.and_then(|_| self.aliases.get(name).cloned()).unwrap_or_default(),
        });
        Ok(())
    }

    /// `name` preceded by everything to load before it.
    fn loading_order(&self, name: &str) -> Result<Vec<String>, ModulesError> {
        let mut order = Vec::new();
        self.visit(name, &mut BTreeSet::new(), &mut order)?;
        Ok(order)
    }

    fn visit(
        &self,
        name: &str,
        seen: &mut BTreeSet<String>,
        order: &mut Vec<String>,
    ) -> Result<(), ModulesError> {
        // Soft dependencies may form a circle; each module is visited once.
        if !seen.insert(name.to_owned()) {
            return Ok(());
        }
        let Some((_, needs)) = self.modules.get(name) else { return Ok(()) };
        for soft in self.soft.get(name).into_iter().flatten() {
            for provider in self.providers(soft) {
                self.visit(&provider, seen, order)?;
            }
        }
        for need in needs {
            if !self.modules.contains_key(need) && !self.built_in.contains(need) {
                let (name, missing) = (name.to_owned(), need.clone());
                return Err(ModulesError::Incomplete { name, missing });
            }
            self.visit(need, seen, order)?;
        }
        order.push(name.to_owned());
        Ok(())
    }

    /// A soft dependency names a module, or an alias that several modules offer; one that nothing offers is optional.
    fn providers(&self, soft: &str) -> Vec<String> {
        let name = soft.replace('-', "_");
        if self.modules.contains_key(&name) {
            return vec![name];
        }
        self.aliases
            .iter()
            .filter(|(_, patterns)| patterns.iter().any(|pattern| pattern == soft))
            .map(|(name, _)| name.clone())
            .collect()
    }
}

/// `kernel/drivers/virtio/virtio-rng.ko.xz` → `virtio_rng`.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXTS: ModuleTexts<'static> = ModuleTexts {
        dependencies: "kernel/a/virtio.ko: kernel/a/virtio_ring.ko\n\
                       kernel/a/virtio_ring.ko:\n\
                       kernel/a/virtio_pci.ko: kernel/a/virtio_pci_modern_dev.ko kernel/a/virtio.ko kernel/a/virtio_ring.ko\n\
                       kernel/a/virtio_pci_modern_dev.ko:\n\
                       kernel/net/net-failover.ko.xz: kernel/net/failover.ko.xz\n\
                       kernel/net/failover.ko.xz:\n\
                       kernel/net/virtio_net.ko.xz: kernel/net/net-failover.ko.xz kernel/net/failover.ko.xz kernel/a/virtio.ko kernel/a/virtio_ring.ko\n\
                       kernel/net/r8169.ko: kernel/net/libphy.ko\n\
                       kernel/net/libphy.ko:\n\
                       kernel/net/realtek.ko: kernel/net/libphy.ko\n\
                       kernel/lib/libcrc32c.ko:\n\
                       kernel/crypto/crc32c_generic.ko:\n\
                       kernel/crypto/crc32c-intel.ko:\n\
                       kernel/net/bnx2x.ko: kernel/lib/libcrc32c.ko\n\
                       kernel/net/broken.ko: kernel/net/gone.ko\n",
        built_in: "kernel/drivers/nvme/host/nvme-core.ko\nkernel/drivers/nvme/host/nvme.ko\n",
        aliases: "# Aliases\nalias virtio:d00000001v* virtio_net\nalias pci:v00001AF4d*sv*sd*bc*sc*i* virtio_pci\n\
                  alias crypto-crc32c crc32c_generic\nalias crc32c crc32c_generic\nalias crc32c crc32c_intel\n",
        soft_dependencies: "softdep r8169 pre: realtek\nsoftdep libcrc32c pre: crc32c\n\
                            softdep realtek pre: r8169 post: nothing\nsoftdep virtio_net pre: no-such\n",
    };

    fn wanted(names: &[(&str, Role)]) -> Vec<WantedModule> {
        let each = names.iter().enumerate();
        each.map(|(at, (name, role))| WantedModule { name: (*name).to_owned(), role: *role, line: at + 1 })
            .collect()
    }

    fn order(resolved: &Resolved) -> Vec<&str> {
        resolved.index.modules.iter().map(|module| module.name.as_str()).collect()
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let list = wanted(&[("virtio_pci", Role::Bus), ("virtio_net", Role::Network)]);
        let resolved = ModuleTree::parse(TEXTS).resolve(&list).unwrap();
        assert_eq!(
            order(&resolved),
            [
                "virtio_ring",
                "virtio",
                "virtio_pci_modern_dev",
                "virtio_pci",
                "failover",
                "net_failover",
                "virtio_net"
            ]
        );
        let net = resolved.index.modules.last().unwrap();
        assert_eq!(net.needs, ["virtio_ring", "virtio", "failover", "net_failover"]);
        assert_eq!(net.aliases, ["virtio:d00000001v*"]);
        assert_eq!(resolved.sources["net_failover.ko"], "kernel/net/net-failover.ko.xz");
        assert!(resolved.index.modules.iter().all(|module| module.role != Role::Storage));
    }

    #[test]
    fn soft_dependencies_come_along_even_in_circles_and_by_alias() {
        let tree = ModuleTree::parse(TEXTS);
        let realtek = tree.resolve(&wanted(&[("r8169", Role::Network)])).unwrap();
        assert_eq!(order(&realtek), ["libphy", "realtek", "r8169"]);
        let bnx2x = tree.resolve(&wanted(&[("bnx2x", Role::Network)])).unwrap();
        assert_eq!(order(&bnx2x), ["crc32c_generic", "crc32c_intel", "libcrc32c", "bnx2x"]);
    }

    #[test]
    fn what_is_built_in_is_left_out_and_what_is_unknown_is_named() {
        let tree = ModuleTree::parse(TEXTS);
        let list = wanted(&[("virtio", Role::Bus), ("nvme", Role::Storage)]);
        let resolved = tree.resolve(&list).unwrap();
        assert_eq!(resolved.built_in, ["nvme"]);
        assert_eq!(order(&resolved), ["virtio_ring", "virtio"]);
        let unknown = tree.resolve(&wanted(&[("virtio", Role::Bus), ("e1001", Role::Network)]));
        assert_eq!(unknown, Err(ModulesError::Unknown { name: "e1001".to_owned(), line: 2 }));
        let broken = tree.resolve(&wanted(&[("broken", Role::Network)]));
        assert!(matches!(broken, Err(ModulesError::Incomplete { .. })));
    }
}
