//! A machine: one QEMU process that imitates bare metal with the firmware asked for.
//!
//! Arguments are those measured to boot here: `pc` with the iPXE ROM of the virtio card for BIOS, `q35` with OVMF in
//! flash for UEFI. All paths given to QEMU are relative to the machine's own directory, so that neither commas in
//! a path nor the 107 bytes of a socket's path matter.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use crate::lab::accel::Accel;
use crate::lab::config::{LabFirmware, MachineConfig};
use crate::lab::plan::ProgramPlan;
use crate::lab::state::MachineDir;

pub const QEMU: &str = "qemu-system-x86_64";

/// Machines yield to the appliance: with four of them on two cores that alone saved 11 s of lock-step TFTP.
const NICENESS: &str = "5";

/// OVMF's code and its variables' template, as Debian installs them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UefiFiles {
    pub code: &'static str,
    pub variables: &'static str,
}

#[derive(Debug, thiserror::Error)]
pub enum PrepareMachineError {
    #[error("machine `{machine}`: `{}` cannot be made", path.display())]
    File { machine: String, path: PathBuf, source: io::Error },
}

impl LabFirmware {
    pub fn uefi_files(self) -> Option<UefiFiles> {
        match self {
            LabFirmware::Bios => None,
            LabFirmware::Uefi | LabFirmware::UefiHttp => Some(UefiFiles {
                code: "/usr/share/OVMF/OVMF_CODE_4M.fd",
                variables: "/usr/share/OVMF/OVMF_VARS_4M.fd",
            }),
            LabFirmware::UefiSecure => Some(UefiFiles {
                code: "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd",
                variables: "/usr/share/OVMF/OVMF_VARS_4M.ms.fd",
            }),
        }
    }

    /// Name of the writable copy of the variables. It names the template: variables of one are no use to the other.
    fn variables_copy(self) -> &'static str {
        match self {
            LabFirmware::Bios | LabFirmware::Uefi | LabFirmware::UefiHttp => "vars.fd",
            LabFirmware::UefiSecure => "vars-secure.fd",
        }
    }
}

/// Makes the machine's directory, disk and firmware variables; what is there already is kept.
pub fn prepare(machine: &MachineConfig, directory: &MachineDir) -> Result<(), PrepareMachineError> {
    let failed =
        |path: PathBuf, source| PrepareMachineError::File { machine: machine.name.to_string(), path, source };
    fs::create_dir_all(&directory.0).map_err(|source| failed(directory.0.clone(), source))?;
    if let Some(bytes) = machine.disk_bytes {
        let path = directory.disk();
        File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .and_then(|file| file.set_len(bytes))
            .map_err(|source| failed(path, source))?;
    }
    if let Some(files) = machine.firmware.uefi_files() {
        let path = directory.0.join(machine.firmware.variables_copy());
        if !path.exists() {
            fs::copy(files.variables, &path).map_err(|source| failed(path, source))?;
        }
    }
    Ok(())
}

/// The program that is this machine, switched off. Power comes by QMP.
pub fn program(machine: &MachineConfig, directory: &MachineDir, tap: &str, accel: Accel) -> ProgramPlan {
    let mut arguments: Vec<String> =
        ["nice", "-n", NICENESS, QEMU, "-S", "-action", "shutdown=pause"].map(str::to_owned).to_vec();
    let mut option = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
    option("-name", machine.name.to_string());
    option("-accel", accel.as_str().to_owned());
    if accel == Accel::Kvm {
        option("-cpu", "host".to_owned());
    }
    option("-m", format!("{}M", machine.memory_mib));
    option("-uuid", machine.uuid().to_string());
    option(
        "-smbios",
        format!("type=1,manufacturer=farrier,product=lab-{},serial={}", machine.firmware, machine.serial()),
    );
    for (name, value) in firmware_options(machine.firmware) {
        option(name, value);
    }
    // The iPXE ROM is BIOS's network boot; OVMF has its own and would only lose time with it.
    let rom = if machine.firmware == LabFirmware::Bios { "" } else { ",romfile=" };
    option("-netdev", format!("tap,id=net0,ifname={tap},script=no,downscript=no"));
    option("-device", format!("virtio-net-pci,netdev=net0,mac={},bootindex=1{rom}", machine.mac));
    if machine.disk_bytes.is_some() {
        option("-drive", "if=none,id=disk0,format=raw,discard=unmap,file=disk.raw".to_owned());
        option("-device", format!("virtio-blk-pci,drive=disk0,serial={},bootindex=2", machine.serial()));
    }
    option("-device", "virtio-rng-pci".to_owned());
    option("-chardev", "socket,id=ser0,path=console.sock,server=on,wait=off,logfile=serial.log".to_owned());
    option("-serial", "chardev:ser0".to_owned());
    option("-chardev", "socket,id=qmp0,path=qmp.sock,server=on,wait=off".to_owned());
    option("-mon", "chardev=qmp0,mode=control".to_owned());
    option("-display", "none".to_owned());
    option("-monitor", "none".to_owned());
    ProgramPlan {
        name: machine.name.to_string(),
        arguments,
        directory: directory.0.clone(),
        log: directory.qemu_log(),
        takes_listener: false,
        restarts: false,
    }
}

fn firmware_options(firmware: LabFirmware) -> Vec<(&'static str, String)> {
    let mut options = Vec::new();
    let Some(files) = firmware.uefi_files() else { return vec![("-machine", "pc".to_owned())] };
    if firmware == LabFirmware::UefiSecure {
        // Secure Boot's variables are writable from system management mode only.
        options.push(("-machine", "q35,smm=on".to_owned()));
        options.push(("-global", "driver=cfi.pflash01,property=secure,value=on".to_owned()));
    } else {
        options.push(("-machine", "q35".to_owned()));
    }
    options.push(("-drive", format!("if=pflash,format=raw,readonly=on,file={}", files.code)));
    options.push(("-drive", format!("if=pflash,format=raw,file={}", firmware.variables_copy())));
    if firmware == LabFirmware::UefiHttp {
        // PXE left out, the firmware goes straight to HTTP Boot.
        for protocol in ["IPv4PXESupport", "IPv6PXESupport"] {
            options.push(("-fw_cfg", format!("name=opt/org.tianocore/{protocol},string=n")));
        }
    }
    options
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::lab::config::LabConfig;

    #[test]
    fn a_machine_prepared_twice_keeps_its_disk() {
        let directory = tempfile::tempdir().unwrap();
        let directory = MachineDir(directory.path().join("machines/bios"));
        let machine = &LabConfig::built_in().unwrap().machines[0];
        prepare(machine, &directory).unwrap();
        let disk = File::options().write(true).open(directory.disk()).unwrap();
        disk.write_all_at(b"boot sector", 0).unwrap();
        prepare(machine, &directory).unwrap();
        let mut start = [0; 11];
        let disk = File::open(directory.disk()).unwrap();
        disk.read_exact_at(&mut start, 0).unwrap();
        assert_eq!(&start, b"boot sector");
        assert_eq!(disk.metadata().unwrap().len(), 8 << 30);
    }

    #[test]
    fn no_option_holds_a_path_of_the_state_directory() {
        let directory = MachineDir(PathBuf::from("/a,b/machines/m"));
        for machine in LabConfig::built_in().unwrap().machines {
            let program = program(&machine, &directory, "tap0", Accel::Tcg);
            let text = program.arguments.join(" ");
            assert!(!text.contains("/a,b"), "{text}");
            assert!(text.contains(&format!("mac={}", machine.mac)));
            assert_eq!(text.contains("romfile="), machine.firmware != LabFirmware::Bios);
            assert_eq!(text.contains("smm=on"), machine.firmware == LabFirmware::UefiSecure, "{text}");
        }
    }
}
