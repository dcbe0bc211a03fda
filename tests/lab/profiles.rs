//! What boots that is no ramdisk of ours, on real firmware: a kernel with words for this node, an EFI program, an ISO image;
//! once, or every time; and who is told that it cannot be.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use farrier::image::library::Library;
use farrier::lab::config::{LabFirmware, MachineConfig};
use farrier::lab::prepare::PROFILE;
use farrier::node::timeline::{Boot, Happening, ProfileOutcome};
use farrier::operator::api::NodePatch;
use serde_json::Value;

use crate::support::{BOOTS_WITHIN, Case, config, images};

const PROGRAM_SPEAKS: &str = "the program of this test speaks";
const DISC_SPEAKS: &str = "the disc of this test speaks";
/// Says what its command line is, and starts over.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox echo this kernel was told: $(/bin/busybox cat /proc/cmdline)
/bin/busybox reboot -f
";

fn made(command: &mut Command) -> Vec<u8> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().unwrap_or_else(|error| {
        panic!("{name}: {error} (.ci/packages.txt names the Debian package)");
    });
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// The deploy image's kernel, and an initrd of busybox alone.
fn kernel_and_initrd(folder: &Path) -> [PathBuf; 2] {
    let library = Library::open(images()).unwrap();
    let files = ["vmlinuz", "tell.img"].map(|name| folder.join(name));
    fs::write(&files[0], &library.profile(PROFILE).expect("the deploy image").kernel.bytes[..]).unwrap();
    let root = folder.join("tell");
    for part in ["bin", "proc", "dev"] {
        fs::create_dir_all(root.join(part)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    fs::write(root.join("init"), INIT).unwrap();
    made(Command::new("chmod").arg("755").arg(root.join("init")));
    let packed = "find . | cpio --quiet -o -H newc -R 0:0";
    let archive = made(Command::new("sh").args(["-c", packed]).current_dir(&root).stdin(Stdio::null()));
    fs::write(&files[1], archive).unwrap();
    files
}

/// A GRUB that says something and does this.
fn efi_program(folder: &Path, then: &str) -> PathBuf {
    let (script, program) = (folder.join("program.cfg"), folder.join("program.efi"));
    fs::write(&script, format!("serial --unit=0\nterminal_output serial\necho {PROGRAM_SPEAKS}\n{then}\n"))
        .unwrap();
    made(
        Command::new("grub-mkimage")
            .args(["--format", "x86_64-efi", "--prefix", "/grub", "--config"])
            .arg(&script)
            .arg("--output")
            .arg(&program)
            .args(["normal", "serial", "terminal", "echo", "reboot", "minicmd", "sleep"]),
    );
    program
}

/// Boots by BIOS and by UEFI; a file beside its loader is what it says.
fn disc(folder: &Path) -> PathBuf {
    let (root, disc) = (folder.join("disc"), folder.join("disc.iso"));
    fs::create_dir_all(root.join("boot/grub")).unwrap();
    let script = "serial --unit=0\nterminal_output serial\ncat /said\nsleep 600\n";
    fs::write(root.join("boot/grub/grub.cfg"), script).unwrap();
    fs::write(root.join("said"), format!("{DISC_SPEAKS}\n")).unwrap();
    made(
        Command::new("grub-mkrescue")
            .arg("-o")
            .arg(&disc)
            .args(["--fonts=", "--themes=", "--locales="])
            .arg(&root),
    );
    disc
}

fn folder(case: &Case) -> PathBuf {
    let folder = case.state.root().join("profiles");
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn done(case: &Case, arguments: &[&str]) -> String {
    let output = case.farrier(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// In the library that all cases share, so that each profile has its own name; the appliance takes it up by itself.
fn add(case: &Case, name: &str, what: &[&str]) {
    let state = case.state.appliance_state().display().to_string();
    done(case, &[&["profile", "add", name, "--replace", "--state", &state], what].concat());
    case.await_words("shown", BOOTS_WITHIN, || {
        match case.farrier(&["profile", "show", name]).status.success() {
            true => "shown".to_owned(),
            false => format!("profile {name} is not taken up"),
        }
    });
}

fn reset(case: &Case, machine: &MachineConfig) -> usize {
    let said = case.serial(machine, 0).len();
    case.lab().qmp(machine.name.as_str()).unwrap().reset().unwrap();
    // A character may be cut in two by what the log had so far.
    said
}

fn says(case: &Case, machine: &MachineConfig, from: usize, wanted: &str) {
    case.await_words(wanted, BOOTS_WITHIN, || case.serial(machine, from));
}

/// How often a boot's timeline tells of a profile that way.
fn told(boot: &Boot, wanted: impl Fn(&ProfileOutcome) -> bool) -> usize {
    let is_told =
        |happening: &Happening| matches!(happening, Happening::Profile { outcome, .. } if wanted(outcome));
    boot.events.iter().filter(|event| is_told(&event.happening)).count()
}

/// Once more through the ramdisk, in a later boot than this.
fn await_usual_boot(case: &Case, machine: &MachineConfig, after: u32) {
    case.await_node(machine, "the usual boot", BOOTS_WITHIN, |_, boot| boot.number > after && boot.enrolled);
}

#[test]
fn a_kernel_once_an_efi_program_once_and_a_disc_every_time() {
    let mut config = config(&[LabFirmware::Bios, LabFirmware::Uefi], "");
    config.machines.iter_mut().for_each(|machine| machine.disk_bytes = None);
    let case = Case::new("profiles", config).start();
    let folder = folder(&case);
    let (bios, uefi) = (case.machine(LabFirmware::Bios), case.machine(LabFirmware::Uefi));
    let [kernel, initrd] = kernel_and_initrd(&folder).map(|file| file.display().to_string());
    let words = ["--arg", "console=ttyS0", "--arg", "quiet", "--arg", "told={node.name}/{node.label.rack}"];
    add(
        &case,
        "lab-kernel",
        &[&["--kernel", &kernel, "--initrd", &initrd, "--one-shot"][..], &words].concat(),
    );
    let program = efi_program(&folder, "exit").display().to_string();
    add(&case, "lab-program", &["--efi", &program, "--one-shot"]);
    add(&case, "lab-disc", &["--iso", &disc(&folder).display().to_string()]);
    for machine in [bios, uefi] {
        let registered = format!("{}", machine.mac);
        done(&case, &["node", "add", &registered, "--name", &format!("rack1-{}", machine.name)]);
        done(&case, &["node", "label", &registered, "rack=r1"]);
    }
    let by_mac = ["--mac-prefix", "52:54:00:00:02:01"];
    let made = done(&case, &[&["profile", "assign", "lab-kernel"][..], &by_mac].concat());
    assert!(made.starts_with("rule 1: MAC prefix 52:54:00:00:02:01 boots lab-kernel"), "{made}");
    done(&case, &["profile", "assign", "lab-program", "--firmware", "uefi-x64"]);
    let explained = done(&case, &["explain", "--mac", &bios.mac.to_string(), "--firmware", "bios"]);
    assert!(explained.contains("profile rule 1 (MAC prefix 52:54:00:00:02:01)"), "{explained}");
    assert!(explained.contains("told=rack1-bios/r1"), "{explained}");

    // Each boots its own once, and then what it would have booted without.
    for machine in [bios, uefi] {
        case.lab().power_on(machine.name.as_str()).unwrap();
    }
    says(&case, bios, 0, "this kernel was told: ");
    let said = case.serial(bios, 0);
    let line = said.lines().find(|line| line.contains("this kernel was told: ")).unwrap();
    assert!(line.contains("told=rack1-bios/r1") && !line.contains("farrier.token"), "{line}");
    says(&case, uefi, 0, PROGRAM_SPEAKS);
    await_usual_boot(&case, bios, 1);
    // The program returned, and the machine started over.
    await_usual_boot(&case, uefi, 1);
    for machine in [bios, uefi] {
        let boots: Value = case.ask(&format!("/api/v1/nodes/{}/boots?limit=100", machine.mac));
        let boots: Vec<Boot> = serde_json::from_value(boots["items"].clone()).unwrap();
        let started: usize = boots.iter().map(|boot| told(boot, |it| *it == ProfileOutcome::Started)).sum();
        let spent: usize = boots.iter().map(|boot| told(boot, |it| *it == ProfileOutcome::Spent)).sum();
        assert!(started >= 1 && spent == 1, "{}: {boots:#?}", machine.name);
    }
    assert_eq!(case.serial(bios, 0).matches("this kernel was told: ").count(), 1);
    assert_eq!(case.serial(uefi, 0).matches(PROGRAM_SPEAKS).count(), 1);

    // An ISO image, attached by iPXE.
    done(&case, &["profile", "assign", "lab-disc", "--node", "rack1-bios"]);
    let from = reset(&case, bios);
    says(&case, bios, from, DISC_SPEAKS);
}

#[test]
#[ignore = "minutes; `make test-install` runs it"]
fn uefi_boots_discs_and_kernels_and_secure_boot_is_told_why_not() {
    let mut config = config(&[LabFirmware::Uefi, LabFirmware::UefiHttp, LabFirmware::UefiSecure], "");
    config.machines.iter_mut().for_each(|machine| machine.disk_bytes = None);
    let case = Case::new("profiles-uefi", config).start().power_on();
    let folder = folder(&case);
    for machine in case.machines() {
        case.await_enrolled(machine);
        let name = Some(format!("rack1-{}", machine.name).parse().ok());
        let patch = NodePatch { name, ..NodePatch::default() };
        let _: Value = case.change("PATCH", &format!("/api/v1/nodes/{}", machine.mac), &patch);
    }
    let [kernel, initrd] = kernel_and_initrd(&folder).map(|file| file.display().to_string());
    let words = ["--arg", "console=ttyS0", "--arg", "quiet", "--arg", "told={node.name}"];
    add(&case, "lab-every-kernel", &[&["--kernel", &kernel, "--initrd", &initrd][..], &words].concat());
    let program = efi_program(&folder, "sleep 600").display().to_string();
    add(&case, "lab-every-program", &["--efi", &program]);
    add(&case, "lab-disc", &["--iso", &disc(&folder).display().to_string()]);
    let boots = |profile: &str, machine: &MachineConfig, wanted: &str| {
        let node = format!("rack1-{}", machine.name);
        let made: Value =
            serde_json::from_str(&done(&case, &["--json", "profile", "assign", profile, "--node", &node]))
                .unwrap();
        let from = reset(&case, machine);
        says(&case, machine, from, wanted);
        done(&case, &["profile", "unassign", &made["assignment"]["rule"].to_string()]);
    };

    let secure = case.machine(LabFirmware::UefiSecure);
    for (profile, why) in [
        ("lab-every-program", "Secure Boot is on, and its EFI program is not signed"),
        ("lab-disc", "Secure Boot is on, and no signed loader attaches an ISO image"),
    ] {
        let refused = case.farrier(&["profile", "assign", profile, "--node", "rack1-uefi-secure"]);
        let why_not = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && why_not.contains(why), "{why_not}");
    }
    // The kernel is signed.
    boots("lab-every-kernel", secure, "told=rack1-uefi-secure");
    let (uefi, http) = (case.machine(LabFirmware::Uefi), case.machine(LabFirmware::UefiHttp));
    boots("lab-every-kernel", http, "told=rack1-uefi-http");
    boots("lab-every-program", http, PROGRAM_SPEAKS);
    for machine in [uefi, http] {
        boots("lab-disc", machine, DISC_SPEAKS);
    }
}
