//! GRUBs of our own making, of Debian's modules: one that has HTTP, and one that never comes to its script.

use std::fs;
use std::path::Path;
use std::process::Command;

use farrier::boot::decision::NothingToBoot;
use farrier::lab::config::LabFirmware;
use farrier::node::registry::BOOT_LOOP_AT;
use farrier::node::state::ProvisionState;
use farrier::node::timeline::{Boot, FileOutcome, Happening, Transport};
use farrier::node::verdict::{Cause, Verdict};

use crate::support::{BOOTS_WITHIN, Case, config};

/// A GRUB that does this first, with these modules beside what it always needs.
fn make(file: &Path, first: &str, modules: &[&str]) {
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    let script = file.with_extension("cfg");
    fs::write(&script, first).unwrap();
    let made = Command::new("grub-mkimage")
        .args(["--format", "x86_64-efi", "--prefix", "/grub", "--config"])
        .arg(&script)
        .arg("--output")
        .arg(file)
        .args(modules)
        .output()
        .expect("grub-mkimage (.ci/packages.txt names the Debian package)");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// Whole files, by transport.
fn whole<'b>(boot: &'b Boot, by: Transport) -> Vec<&'b str> {
    let name =
        |happening: &'b Happening| match happening {
            Happening::File {
                transport, name, outcome: FileOutcome::Complete | FileOutcome::Range, ..
            } if *transport == by => Some(name.as_str()),
            _ => None,
        };
    boot.events.iter().filter_map(|event| name(&event.happening)).collect()
}

/// Two machines at once, since each waits most of the time: HTTP Boot loads a GRUB that reads its configuration, kernel
/// and ramdisk by HTTP; PXE loads a GRUB whose script is broken, so that it starts over.
#[test]
fn h_08_p_11_grub_boots_by_http_and_a_loader_with_a_broken_script_is_given_three_times() {
    let loaders = "[boot.loaders]\nuefi-x64-http = 'grub-http.efi'\nuefi-x64 = 'ipxe-i386.efi'\n";
    let case = Case::new("grubs", config(&[LabFirmware::Uefi, LabFirmware::UefiHttp], loaders));
    let server = case.config.address.ip();
    let folder = case.own_loaders();
    make(
        &folder.join("usr/lib/farrier/grub-http.efi"),
        &format!("net_bootp\nset root=(http,{server})\nconfigfile ($root)/grub/grub.cfg\n"),
        &["efinet", "net", "http", "linux", "normal", "configfile", "echo", "test", "sleep", "true"],
    );
    // The one name in the table that no package's file stands behind: whatever is put there is served.
    make(&folder.join("usr/lib/ipxe/ipxe-i386.efi"), "no such command\nreboot\n", &["normal", "reboot"]);
    let case = case.start().power_on();

    let by_http = case.machine(LabFirmware::UefiHttp);
    let (node, boot) = case.await_enrolled(by_http);
    assert_eq!(node.summary.state, ProvisionState::Manageable);
    let files = whole(&boot, Transport::Http);
    for name in ["grub-http.efi", "grub/grub.cfg", "image/vm/vmlinuz", "image/vm/initrd.img"] {
        assert!(files.iter().any(|file| file.ends_with(name)), "{name} in {files:?}");
    }
    assert_eq!(whole(&boot, Transport::Tftp), Vec::<&str>::new());

    let looping = case.machine(LabFirmware::Uefi);
    let is_loop =
        |boot: &Boot| boot.events.iter().any(|event| matches!(event.happening, Happening::BootLoop { .. }));
    // Each attempt is a boot of its own; the loop is told of in the one that completes it.
    case.await_node(looping, "the loop is noticed", BOOTS_WITHIN, |_, boot| is_loop(boot));
    let (_, refused) = case.await_node(looping, "no loader is offered", BOOTS_WITHIN, |_, boot| {
        boot.events.iter().any(|event| {
            matches!(event.happening, Happening::Dhcp { nothing_to_boot: Some(NothingToBoot::BootLoop), .. })
        })
    });
    assert_eq!(whole(&refused, Transport::Tftp), Vec::<&str>::new());
    assert_eq!(refused.number, BOOT_LOOP_AT + 1, "three attempts, and no more");
    let verdict: Verdict = case.ask(&format!("/api/v1/nodes/{}/why?boot={}", looping.mac, refused.number));
    assert_eq!(verdict.cause, Cause::BootLoop, "{verdict:#?}");
}
