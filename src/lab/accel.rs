//! KVM where it works, TCG where it does not.
//!
//! A present `/dev/kvm` proves little: nested virtualisation and emulated CPUs accept a guest and then fail in its
//! firmware ("KVM internal error"). So the firmware itself is the probe: OVMF, the most demanding we have, has to
//! write its first byte to the serial port.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::lab::config::{AccelWish, LabFirmware};
use crate::lab::machine::QEMU;

/// OVMF writes to the serial port within a second of KVM; more means that it never will.
const PROBE_WITHIN: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    Kvm,
    Tcg,
}

impl From<Accel> for AccelWish {
    fn from(accel: Accel) -> AccelWish {
        match accel {
            Accel::Kvm => AccelWish::Kvm,
            Accel::Tcg => AccelWish::Tcg,
        }
    }
}

/// What was chosen and why, for the log and for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub accel: Accel,
    pub reason: String,
}

impl Accel {
    pub fn as_str(self) -> &'static str {
        match self {
            Accel::Kvm => "kvm",
            Accel::Tcg => "tcg",
        }
    }
}

/// Chooses; `scratch` is a directory for the probe's copy of the firmware's variables.
pub fn choose(wish: AccelWish, scratch: &Path) -> Choice {
    let chosen = |accel, reason: &str| Choice { accel, reason: reason.to_owned() };
    match wish {
        AccelWish::Kvm => chosen(Accel::Kvm, "configured"),
        AccelWish::Tcg => chosen(Accel::Tcg, "configured"),
        AccelWish::Auto => {
            if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
                return chosen(Accel::Tcg, &format!("/dev/kvm cannot be opened: {error}"));
            }
            match probe(scratch) {
                Ok(Probe::Boots) => chosen(Accel::Kvm, "UEFI firmware runs in it"),
                Ok(Probe::Fails(said)) => chosen(Accel::Tcg, &format!("KVM is present but fails: {said}")),
                Err(error) => chosen(Accel::Tcg, &format!("KVM cannot be tried: {error}")),
            }
        }
    }
}

enum Probe {
    Boots,
    Fails(String),
}

fn probe(scratch: &Path) -> io::Result<Probe> {
    let Some(files) = LabFirmware::Uefi.uefi_files() else {
        return Ok(Probe::Fails("no firmware".to_owned()));
    };
    let variables = scratch.join("probe-vars.fd");
    fs::copy(files.variables, &variables)?;
    let child = Command::new(QEMU)
        .args(["-accel", "kvm", "-cpu", "host", "-machine", "q35", "-m", "256", "-display", "none"])
        .args(["-monitor", "none", "-nic", "none", "-serial", "stdio", "-no-reboot", "-drive"])
        .arg(format!("if=pflash,format=raw,readonly=on,file={}", files.code))
        .args(["-drive", "if=pflash,format=raw,file=probe-vars.fd"])
        .current_dir(scratch)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let outcome = child.and_then(|mut child| {
        let outcome = watch(&mut child);
        let _ = child.kill();
        child.wait()?;
        outcome
    });
    let removed = fs::remove_file(&variables);
    let outcome = outcome?;
    removed.map(|()| outcome)
}

/// The first sign of life decides: a byte from the firmware, or QEMU's complaint.
fn watch(child: &mut Child) -> io::Result<Probe> {
    let (sender, first) = mpsc::channel();
    let (Some(mut serial), Some(mut errors)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(io::Error::from(io::ErrorKind::BrokenPipe));
    };
    let from_firmware = sender.clone();
    // Both threads end when the child is killed and its pipes close.
    thread::spawn(move || {
        if serial.read_exact(&mut [0]).is_ok() {
            let _ = from_firmware.send(Probe::Boots);
        }
    });
    thread::spawn(move || {
        let mut said = Vec::new();
        let mut chunk = [0; 4096];
        while let Ok(count @ 1..) = errors.read(&mut chunk) {
            said.extend_from_slice(&chunk[..count]);
            let text = String::from_utf8_lossy(&said).into_owned();
            // Warnings about CPU features are common and harmless.
            if let Some(line) = text.lines().find(|line| line.contains("error") || line.contains("failed")) {
                let _ = sender.send(Probe::Fails(line.trim().to_owned()));
                return;
            }
        }
        let _ = sender.send(Probe::Fails("QEMU ended".to_owned()));
    });
    match first.recv_timeout(PROBE_WITHIN) {
        Ok(outcome) => Ok(outcome),
        Err(_) => Ok(Probe::Fails(format!("firmware silent for {} s", PROBE_WITHIN.as_secs()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_is_not_questioned() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(choose(AccelWish::Tcg, directory.path()).accel, Accel::Tcg);
        assert_eq!(choose(AccelWish::Kvm, directory.path()).accel, Accel::Kvm);
    }

    #[test]
    fn trying_ends_in_time_and_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let started = std::time::Instant::now();
        let choice = choose(AccelWish::Auto, directory.path());
        assert!(!choice.reason.is_empty());
        assert!(started.elapsed() < PROBE_WITHIN + Duration::from_secs(5), "{choice:?}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
