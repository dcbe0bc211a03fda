//! U-Boot, which knows PXELINUX' configuration and neither iPXE's nor GRUB's: Debian's build for QEMU's PC, its commands
//! typed at its console.
//!
//! The kernel it starts gets no ramdisk: this build reads both whole and then tells the kernel that the ramdisk has 12
//! bytes. So what is insisted on ends with the kernel's own first words.

use std::time::Duration;

use farrier::lab::config::{LabFirmware, MachineConfig};
use farrier::lab::plan::ProgramPlan;
use farrier::net::MacAddr;
use farrier::node::timeline::{FileOutcome, Happening, Stage, Transport};

use crate::console::Console;
use crate::support::{BOOTS_WITHIN, Case, config};

const U_BOOT: &str = "/usr/lib/u-boot/qemu-x86/u-boot.rom";
const PROMPT: &str = "=> ";
/// Each of its commands, in TCG on a busy machine.
const COMMAND_WITHIN: Duration = Duration::from_secs(60);

/// The machine, on a tap of its own; it is switched on when somebody takes its console.
fn machine(case: &Case, mac: MacAddr) -> ProgramPlan {
    let bridge = &case.config.bridge;
    let script = format!(
        "ip tuntap add dev uboot0 mode tap\n\
         ip link set uboot0 addrgenmode none master {bridge} up\n\
         exec nice -n 5 qemu-system-x86_64 -accel tcg -machine pc -m 1024 -bios {U_BOOT} -nodefaults -display none \
         -chardev socket,id=ser0,path=console.sock,server=on,wait=on,logfile=serial.log -serial chardev:ser0 \
         -netdev tap,id=net0,ifname=uboot0,script=no,downscript=no -device e1000,netdev=net0,mac={mac} -no-reboot"
    );
    ProgramPlan {
        name: "u-boot".to_owned(),
        arguments: ["sh", "-ec", &script].map(str::to_owned).to_vec(),
        directory: case.state.root().to_owned(),
        log: case.state.root().join("u-boot.log"),
        takes_listener: false,
        restarts: false,
    }
}

#[test]
fn p_18_u_boot_reads_its_configuration_and_boots_what_it_names() {
    let case = Case::new("u-boot", config(&[], "[boot]\nkernel_arguments = ['ignore_loglevel']\n"));
    let mac = MacAddr([0x52, 0x54, 0, 0, 2, 0x18]);
    let program = machine(&case, mac);
    let case = case.start_with(vec![program]);
    let mut console = Console::connect(&case.state.root().join("console.sock"), BOOTS_WITHIN);
    console.await_text("Hit any key to stop autoboot", COMMAND_WITHIN);
    console.ask("", PROMPT, COMMAND_WITHIN);
    // Its own boot file is the configuration, which `pxe get` finds.
    console.ask("setenv autoload no", PROMPT, COMMAND_WITHIN);
    // This build's environment has places for kernel and ramdisk, and none for the configuration.
    console.ask("setenv pxefile_addr_r 0x3000000", PROMPT, COMMAND_WITHIN);
    let leased = console.ask("dhcp", PROMPT, COMMAND_WITHIN);
    assert!(leased.contains("DHCP client bound to address 192.168.2."), "{leased}");
    let got = console.ask("pxe get", PROMPT, COMMAND_WITHIN);
    assert!(got.contains("Config file '") && got.contains("' found"), "{got}");
    let booted = console.ask("pxe boot", "Starting kernel", COMMAND_WITHIN);
    assert!(booted.contains("farrier.mac=52:54:00:00:02:18"), "{booted}");
    console.await_text("Linux version 6.", COMMAND_WITHIN);
    console.leave();
    let machine = MachineConfig {
        name: "u-boot".parse().unwrap(),
        firmware: LabFirmware::Bios,
        mac,
        identity: mac,
        memory_mib: 1024,
        disk_bytes: None,
    };
    let (_, boot) = case.await_node(&machine, "kernel and ramdisk are loaded", BOOTS_WITHIN, |_, boot| {
        boot.stage == Some(Stage::Ramdisk)
    });
    for (wanted, part) in [
        (Stage::Script, "pxelinux.cfg/01-52-54-00-00-02-18"),
        (Stage::Ramdisk, "image/vm/initrd.img"),
        (Stage::Kernel, "image/vm/vmlinuz"),
    ] {
        let whole = boot.events.iter().any(|event| {
            matches!(&event.happening, Happening::File {
                transport: Transport::Tftp, stage, name, size, sent, outcome: FileOutcome::Complete, ..
            } if *stage == Some(wanted) && name.contains(part) && *size == Some(*sent))
        });
        assert!(whole, "{part} in {boot:#?}");
    }
}
