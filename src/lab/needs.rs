//! What the lab needs from the distribution. Everything missing is told at once, each with its Debian package and
//! what it is for, before anything is started.

use std::env;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};

use crate::lab::config::{LabConfig, LabFirmware};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// A program in `PATH`, or a file by its absolute path.
    pub file: &'static str,
    pub source: Source,
    pub purpose: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Debian's package.
    Package(&'static str),
    /// A device, and how one gets to use it.
    Device(&'static str),
}

const ALWAYS: [Need; 5] = [
    Need {
        file: "qemu-system-x86_64",
        source: Source::Package("qemu-system-x86"),
        purpose: "the lab's machines",
    },
    Need { file: "ip", source: Source::Package("iproute2"), purpose: "the lab's bridge, taps and addresses" },
    Need { file: "unshare", source: Source::Package("util-linux"), purpose: "the lab's network namespace" },
    Need {
        file: "nice",
        source: Source::Package("coreutils"),
        purpose: "machines that leave the appliance its turn",
    },
    Need {
        file: "/dev/net/tun",
        source: Source::Device("open it for reading and writing: be root, or chmod 666; module `tun`"),
        purpose: "the machines' network cards",
    },
];

const BIOS: [Need; 1] = [Need {
    file: "/usr/lib/ipxe/qemu/pxe-virtio.rom",
    source: Source::Package("ipxe-qemu"),
    purpose: "network boot ROM of BIOS machines",
}];

/// Directories administrators' programs live in, which a user's `PATH` may lack.
const ALSO_SEARCHED: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub struct MissingNeeds(pub Vec<Need>);

impl fmt::Display for MissingNeeds {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "the lab needs what is not installed here:")?;
        for need in &self.0 {
            let Need { file, source, purpose } = need;
            match source {
                Source::Package(package) => {
                    writeln!(formatter, "  {file} (Debian package {package}): {purpose}")?
                }
                Source::Device(way_out) => writeln!(formatter, "  {file} ({way_out}): {purpose}")?,
            }
        }
        let packages: Vec<&str> = self
            .0
            .iter()
            .filter_map(|need| match need.source {
                Source::Package(package) => Some(package),
                Source::Device(_) => None,
            })
            .collect();
        match packages.as_slice() {
            [] => Ok(()),
            packages => write!(formatter, "on Debian: apt-get install {}", packages.join(" ")),
        }
    }
}

/// Looks for everything this lab needs.
pub fn check(config: &LabConfig) -> Result<(), MissingNeeds> {
    missing(&wanted(config), |need| match need.source {
        Source::Package(_) => is_there(need.file),
        Source::Device(_) => File::options().read(true).write(true).open(need.file).is_ok(),
    })
}

fn wanted(config: &LabConfig) -> Vec<Need> {
    let mut needs = ALWAYS.to_vec();
    for firmware in LabFirmware::ALL {
        if !config.machines.iter().any(|machine| machine.firmware == firmware) {
            continue;
        }
        match firmware.uefi_files() {
            None => needs.extend(BIOS),
            Some(files) => {
                let need = |file| Need {
                    file,
                    source: Source::Package("ovmf"),
                    purpose: "UEFI firmware of the lab's machines",
                };
                needs.extend([need(files.code), need(files.variables)]);
            }
        }
    }
    needs
}

fn missing(needs: &[Need], is_there: impl Fn(&Need) -> bool) -> Result<(), MissingNeeds> {
    let mut missing: Vec<Need> = Vec::new();
    for need in needs.iter().filter(|need| !is_there(need)) {
        // One line per package is enough.
        if !missing.iter().any(|told| told.source == need.source) {
            missing.push(*need);
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(MissingNeeds(missing)) }
}

/// True for an existing absolute path, or a program found in `PATH` or the administrators' directories.
pub fn is_there(file: &str) -> bool {
    if file.starts_with('/') {
        return Path::new(file).exists();
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(ALSO_SEARCHED.iter().map(PathBuf::from))
        .any(|directory| directory.join(file).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_missing_is_told_at_once() {
        let needs = wanted(&LabConfig::built_in().unwrap());
        assert_eq!(missing(&needs, |_| true), Ok(()));
        let error = missing(&needs, |need| need.file == "ip").unwrap_err().to_string();
        assert!(error.contains("qemu-system-x86_64 (Debian package qemu-system-x86): the lab's"), "{error}");
        assert!(error.contains("/dev/net/tun (open it"), "{error}");
        assert!(
            error.ends_with("apt-get install qemu-system-x86 util-linux coreutils ipxe-qemu ovmf"),
            "{error}"
        );
    }

    #[test]
    fn a_lab_without_uefi_needs_no_ovmf() {
        let mut config = LabConfig::built_in().unwrap();
        config.machines.truncate(1);
        assert!(wanted(&config).iter().all(|need| need.source != Source::Package("ovmf")));
    }

    #[test]
    fn programs_are_found_and_files_too() {
        assert!(is_there("sh"));
        assert!(is_there("/proc/self/stat"));
        assert!(!is_there("no-such-program-anywhere"));
    }
}
