//! Boot profiles, as operators make them and machines boot them: the command line, the real appliance, and clients that
//! ask as a boot ROM, iPXE and GRUB do.

use std::fs;
use std::net::UdpSocket;
use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use farrier::boot::namespace;
use farrier::net::MacAddr;

use crate::support::{ClientMachine, SERVER, TestBed, eventually, in_namespace, pattern, run};

const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const CONFIGURATION: &str = "[boot]\nprofile = \"vm\"\n";

/// The appliance with a deploy image, loaders, and one registered machine on a cable.
fn bed() -> (TestBed, ClientMachine) {
    let mut bed = TestBed::new(CONFIGURATION);
    bed.publish("vm", &pattern(10_000), &pattern(20_000));
    bed.install_loaders();
    bed.start_server();
    let machine = bed.plug(&MAC.to_string());
    done(bed.farrier(&["node", "add", &MAC.to_string(), "--name", "anvil"]));
    (bed, machine)
}

fn done(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn refused(output: &Output, code: i32) -> String {
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{told}");
    told
}

fn file(bed: &TestBed, name: &str, bytes: &[u8]) -> String {
    let path: PathBuf = bed.path(name);
    fs::write(&path, bytes).unwrap();
    path.display().to_string()
}

/// Adds a profile as an operator does, and waits until the running appliance has taken it up by itself.
fn add(bed: &TestBed, name: &str, arguments: &[&str]) -> String {
    let state = bed.state().display().to_string();
    let said = done(bed.farrier(&[&["profile", "add", name, "--state", &state], arguments].concat()));
    eventually("the appliance has noticed the profile", || {
        bed.farrier(&["profile", "show", name]).status.success().then_some(())
    });
    said
}

/// The machine is switched on: its ROM asks for an address and a loader.
fn boot(machine: &ClientMachine, arch: u8) {
    machine.write_udhcpc_script();
    let class = format!("PXEClient:Arch:{arch:05}:UNDI:003000");
    let code = format!("0x5d:{arch:04x}");
    let usual = ["-i", "eth0", "-n", "-q", "-f", "-t", "8", "-T", "1", "-s", "./udhcpc.sh"];
    machine.run("udhcpc", &[usual.as_slice(), &["-V", &class, "-x", &code]].concat());
}

fn loader(machine: &ClientMachine) -> String {
    let told = fs::read_to_string(machine.path("bound.env")).unwrap();
    told.lines().find_map(|line| line.strip_prefix("boot_file=")).unwrap_or_default().to_owned()
}

fn get(machine: &ClientMachine, name: &str) -> Option<Vec<u8>> {
    let url = format!("http://{SERVER}/{name}");
    let code = machine.run("curl", &["-sS", "-o", "got", "-w", "%{http_code}", &url]);
    (code == "200").then(|| machine.read("got"))
}

fn script(machine: &ClientMachine) -> String {
    let text = get(machine, &namespace::ipxe_script_name(MAC)).expect("a script");
    String::from_utf8(text).unwrap()
}

/// GRUB's way: it asks again when nothing comes, which is what it is told by silence.
fn grub_configuration(machine: &ClientMachine) -> String {
    machine.inside(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
        let mut answer = [0; 4096];
        eventually("GRUB's configuration", || {
            socket.send_to(b"\0\x01grub/grub.cfg\0octet\0blksize\x001400\0", (SERVER, 69)).ok()?;
            // An OACK, which is acknowledged, then the one block.
            let (length, from) = socket.recv_from(&mut answer).ok()?;
            assert_eq!(answer[..2], [0, 6], "{:?}", answer[..length].escape_ascii().to_string());
            socket.send_to(&[0, 4, 0, 0], from).ok()?;
            let (length, _) = socket.recv_from(&mut answer).ok()?;
            socket.send_to(&[0, 4, 0, 1], from).ok()?;
            (answer[..4] == [0, 3, 0, 1]).then(|| String::from_utf8_lossy(&answer[4..length]).into_owned())
        })
    })
}

/// A program for x86-64 UEFI, as far as its headers go.
fn efi_program() -> Vec<u8> {
    let mut file = vec![0; 1024];
    file[..2].copy_from_slice(b"MZ");
    file[0x3c] = 64;
    file[64..68].copy_from_slice(b"PE\0\0");
    file[68..70].copy_from_slice(&0x8664_u16.to_le_bytes());
    file[84..88].copy_from_slice(&[240, 0, 2, 0]);
    file[88..90].copy_from_slice(&0x20b_u16.to_le_bytes());
    file[88 + 68] = 10;
    file[88 + 108] = 16;
    file
}

fn iso_image() -> Vec<u8> {
    let mut image = pattern(20 * 2048);
    image[16 * 2048..16 * 2048 + 7].copy_from_slice(b"\x01CD001\x01");
    image
}

#[test]
fn a_profile_is_served_to_those_it_is_assigned_to_without_a_reload() {
    in_namespace("profiles::a_profile_is_served_to_those_it_is_assigned_to_without_a_reload", || {
        let (mut bed, machine) = bed();
        let stranger = bed.plug("06:00:00:00:00:02");
        let (kernel, first, second) = (pattern(300_000), pattern(70_000), pattern(5_000));
        let files =
            [("k", &kernel), ("a", &first), ("b", &second)].map(|(name, bytes)| file(&bed, name, bytes));
        let said = add(
            &bed,
            "live",
            &[
                "--kernel",
                &files[0],
                "--initrd",
                &files[1],
                "--initrd",
                &files[2],
                "--arg",
                "h={node.name}",
                "--arg",
                "s={metadata}",
                "--arg",
                "a={node.address}",
            ],
        );
        assert!(said.contains("added profile live: kernel") && said.contains("not signed"), "{said}");
        boot(&machine, 0);
        assert!(script(&machine).contains("/image/vm/vmlinuz"), "nothing is assigned yet");

        let made = done(bed.farrier(&["profile", "assign", "live", "--mac-prefix", "02:00"]));
        assert!(made.starts_with("rule 1: MAC prefix 02:00 boots live"), "{made}");
        boot(&machine, 0);
        let address = machine.address().unwrap();
        let text = script(&machine);
        let words = format!(
            "initrd=initrd0.img initrd=initrd1.img h=anvil s=http://{SERVER}/metadata/v1 a={address} ||"
        );
        assert!(text.contains(&format!("kernel http://{SERVER}/profile/live/kernel {words}")), "{text}");
        assert!(!text.contains("farrier.token"), "{text}");
        for (name, bytes) in [("kernel", &kernel), ("initrd/0", &first), ("initrd/1", &second)] {
            assert_eq!(get(&machine, &format!("profile/live/{name}")).as_ref(), Some(bytes), "{name}");
        }
        let why = bed.farrier_json(&["why", "anvil"]);
        assert_eq!(why["cause"], "profile-handed-out", "{why}");
        assert!(
            get(&machine, "profile/live/initrd/2").is_none()
                && get(&machine, "profile/live/boot.efi").is_none()
        );
        assert!(grub_configuration(&machine).contains("linux /profile/live/kernel h=anvil"));
        stranger.boot_udhcpc();
        assert!(get(&stranger, "profile/live/kernel").is_none(), "not its profile");

        let shown = done(bed.farrier(&["event", "list", "anvil"]));
        assert!(shown.contains("live by rule 1: booted"), "{shown}");
        let explained =
            done(bed.farrier(&["explain", "--mac", &MAC.to_string(), "--firmware", "uefi-secure"]));
        assert!(
            explained.contains("profile rule 1 (MAC prefix 02:00): passed over: Secure Boot is on"),
            "{explained}"
        );
        let explained = done(bed.farrier(&["explain", "--mac", &MAC.to_string(), "--firmware", "bios"]));
        assert!(explained.contains("it boots profile live") && explained.contains("h=anvil"), "{explained}");

        assert!(refused(&bed.farrier(&["profile", "rm", "live"]), 4).contains("unassign 1"));
        done(bed.farrier(&["profile", "unassign", "1"]));
        done(bed.farrier(&["profile", "rm", "live"]));
        refused(&bed.farrier(&["profile", "show", "live"]), 3);
        assert!(get(&machine, "profile/live/kernel").is_none());
        boot(&machine, 0);
        assert!(script(&machine).contains("/image/vm/vmlinuz"));
        let actions = done(bed.farrier(&["audit"]));
        for action in ["profile.assign", "profile.unassign", "profile.remove"] {
            assert!(actions.contains(action), "{actions}");
        }
    });
}

#[test]
fn a_one_shot_is_booted_once_whatever_is_restarted() {
    in_namespace("profiles::a_one_shot_is_booted_once_whatever_is_restarted", || {
        let (mut bed, machine) = bed();
        let (kernel, initrd) = (file(&bed, "k", &pattern(50_000)), file(&bed, "i", &pattern(9_000)));
        add(&bed, "wipe", &["--kernel", &kernel, "--initrd", &initrd, "--one-shot"]);
        let assign = |bed: &TestBed| done(bed.farrier(&["profile", "assign", "wipe", "--node", "anvil"]));
        let names = |text: &str| text.contains("profile/wipe/kernel");
        assign(&bed);

        // A loader that asks again within its boot is told the same, by either loader.
        boot(&machine, 0);
        assert!(get(&machine, "profile/wipe/kernel").is_none(), "no script has named it yet");
        assert!(names(&grub_configuration(&machine)) && names(&script(&machine)));
        // The power goes before the kernel is fetched: lost, not repeated.
        bed.kill_server();
        bed.start_server();
        assert!(!names(&script(&machine)) && get(&machine, "profile/wipe/kernel").is_none());

        done(bed.farrier(&["profile", "unassign", "1"]));
        assign(&bed);
        boot(&machine, 0);
        assert!(names(&script(&machine)));
        assert_eq!(get(&machine, "profile/wipe/kernel"), Some(pattern(50_000)));
        eventually("the one-shot is spent", || {
            let shown = bed.farrier_json(&["profile", "show", "wipe"]);
            (shown["assignments"][0]["runs"][0]["state"] == "spent").then_some(())
        });
        assert!(get(&machine, "profile/wipe/kernel").is_none(), "not a second time");
        assert_eq!(get(&machine, "profile/wipe/initrd/0"), Some(pattern(9_000)), "its boot goes on");
        assert!(!names(&script(&machine)));
        bed.kill_server();
        bed.start_server();
        for _ in 0..2 {
            boot(&machine, 0);
            assert!(script(&machine).contains("/image/vm/vmlinuz"), "the ramdisk, as before");
            assert!(get(&machine, "profile/wipe/kernel").is_none());
        }
        let shown = done(bed.farrier(&["event", "list", "anvil"]));
        for told in ["wipe by rule 1: started", "wipe by rule 2: handed out whole"] {
            assert!(shown.contains(told), "{told}: {shown}");
        }

        // It outranks the local disk, and once it is spent the disk it is.
        done(bed.farrier(&["profile", "unassign", "2"]));
        let socket = bed.path("operator.sock").display().to_string();
        let patch = ["-sS", "--fail", "-X", "PATCH", "-H", "Content-Type: application/json", "-d"];
        let what = ["{\"next_boot\":\"local-disk\"}", "--unix-socket", &socket];
        run("curl", &[&patch[..], &what, &["http://localhost/api/v1/nodes/anvil"]].concat());
        boot(&machine, 0);
        assert!(script(&machine).contains("boots from its local disk"));
        assign(&bed);
        boot(&machine, 0);
        assert!(names(&script(&machine)));
    });
}

#[test]
fn an_installer_is_started_once_and_answered_once_whatever_is_restarted() {
    in_namespace("profiles::an_installer_is_started_once_and_answered_once_whatever_is_restarted", || {
        let (mut bed, machine) = bed();
        let (kernel, initrd) = (file(&bed, "k", &pattern(50_000)), file(&bed, "i", &pattern(9_000)));
        add(&bed, "live", &["--kernel", &kernel, "--initrd", &initrd]);
        add(
            &bed,
            "di",
            &["--kernel", &kernel, "--initrd", &initrd, "--arg", "auto=true", "--arg", "url={preseed}"],
        );
        let deploy =
            |bed: &TestBed, more: &[&str]| bed.farrier(&[&["node", "deploy", "anvil"], more].concat());
        let told = refused(&deploy(&bed, &["--installer", "live"]), 4);
        assert!(told.contains("live is no installer") && told.contains("url={preseed}"), "{told}");
        refused(&deploy(&bed, &["--installer", "nowhere"]), 3);
        refused(&deploy(&bed, &["--installer", "di", "--image", "x"]), 2);
        let said = done(deploy(&bed, &["--installer", "di"]));
        assert!(said.contains("it will be installed by di"), "{said}");
        assert!(refused(&bed.farrier(&["profile", "rm", "di"]), 4).contains("anvil is being installed"));
        let explained = done(bed.farrier(&["explain", "--mac", &MAC.to_string(), "--firmware", "bios"]));
        assert!(explained.contains("it starts installer di"), "{explained}");

        // What it may fetch, and when: in the boot that was told of it, by either loader.
        let answers = "metadata/v1/preseed.cfg";
        let names = |text: &str| text.contains("/profile/di/kernel");
        boot(&machine, 0);
        assert!(get(&machine, "profile/di/kernel").is_none() && get(&machine, answers).is_none());
        assert!(names(&grub_configuration(&machine)));
        let text = script(&machine);
        assert!(names(&text) && text.contains(&format!("auto=true url=http://{SERVER}/{answers}")), "{text}");
        assert!(!text.contains("farrier.token"), "{text}");
        // The appliance dies, and the loader goes on.
        bed.kill_server();
        bed.start_server();
        assert!(names(&script(&machine)));
        assert_eq!(get(&machine, "profile/di/kernel"), Some(pattern(50_000)));
        assert_eq!(get(&machine, "profile/di/initrd/0"), Some(pattern(9_000)));
        let why = bed.farrier_json(&["why", "anvil"]);
        assert_eq!(why["cause"], "installer-handed-out", "{why}");
        let shown = done(bed.farrier(&["node", "show", "anvil"]));
        assert!(shown.contains("deploy by installer di (number 1): running"), "{shown}");
        let given = String::from_utf8(get(&machine, answers).unwrap()).unwrap();
        assert!(given.contains("d-i netcfg/get_hostname string anvil"), "{given}");
        assert!(get(&machine, answers).is_none(), "once");

        // The machine starts over: it has lost its installer, and boots what it would boot without one.
        boot(&machine, 0);
        assert!(script(&machine).contains("/image/vm/vmlinuz"));
        assert!(
            get(&machine, "profile/di/kernel").is_none() && get(&machine, "metadata/v1/node.json").is_none()
        );
        let shown = bed.farrier_json(&["node", "show", "anvil"])["node"].clone();
        assert_eq!(shown["state"], "deploy-failed", "{shown}");
        let failure = shown["failure"].as_str().unwrap();
        assert!(failure.contains("netbooted again before its installer said that it is done"), "{failure}");

        // Another wish, and this time it says that it is done.
        done(deploy(&bed, &[]));
        boot(&machine, 0);
        assert!(names(&script(&machine)));
        let given = String::from_utf8(get(&machine, answers).unwrap()).unwrap();
        let last = given.lines().rfind(|line| line.contains("sh /tmp/last-step")).unwrap();
        let words: Vec<&str> = last.split('\'').collect();
        let body = format!("{{\"instance_id\":\"{}\",\"token\":\"{}\"}}", words[3], words[5]);
        let call = |name: &str| {
            let url = format!("http://{SERVER}/metadata/v1/{name}");
            let usual = ["-sS", "-o", "got", "-w", "%{http_code}", "-H", "Content-Type: application/json"];
            machine.run("curl", &[&usual[..], &["-d", &body, &url]].concat())
        };
        assert_eq!(
            (call("phone-home"), call("installed"), call("installed")),
            ("401".into(), "200".into(), "200".into())
        );
        boot(&machine, 0);
        assert!(script(&machine).contains("boots from its local disk"));
        assert_eq!(call("phone-home"), "200");
        let shown = bed.farrier_json(&["node", "show", "anvil"])["node"].clone();
        assert_eq!(
            (&shown["state"], &shown["task"]["installer"]),
            (&"active".into(), &"di".into()),
            "{shown}"
        );
        let events = done(bed.farrier(&["event", "list", "anvil"]));
        for line in [
            "installer di is started, once",
            "the installer has its answers",
            "the installer says that it is done",
        ] {
            assert!(events.contains(line), "{line}: {events}");
        }
    });
}

#[test]
fn an_installer_that_its_firmware_cannot_start_is_refused_when_it_is_asked_for() {
    in_namespace(
        "profiles::an_installer_that_its_firmware_cannot_start_is_refused_when_it_is_asked_for",
        || {
            let (bed, machine) = bed();
            let program = file(&bed, "stub", &efi_program());
            add(&bed, "stub", &["--kernel", &program, "--arg", "url={preseed}"]);
            let deploy = |bed: &TestBed| bed.farrier(&["node", "deploy", "anvil", "--installer", "stub"]);
            // Nobody knows its firmware yet; so it is found out when it boots, and before anything has begun.
            done(deploy(&bed));
            boot(&machine, 0);
            assert!(script(&machine).contains("/image/vm/vmlinuz"));
            assert!(get(&machine, "profile/stub/kernel").is_none());
            let shown = bed.farrier_json(&["node", "show", "anvil"])["node"].clone();
            let told = shown["failure"].as_str().unwrap_or_default();
            assert!(
                shown["state"] == "deploy-failed" && told.contains("its kernel starts by UEFI only"),
                "{shown}"
            );
            let told = refused(&deploy(&bed), 4);
            assert!(
                told.contains("anvil cannot boot profile stub: its kernel starts by UEFI only"),
                "{told}"
            );
        },
    );
}

#[test]
fn who_cannot_boot_it_is_named_when_it_is_assigned_and_passed_over_when_it_boots() {
    in_namespace(
        "profiles::who_cannot_boot_it_is_named_when_it_is_assigned_and_passed_over_when_it_boots",
        || {
            let (bed, machine) = bed();
            let (program, image, kernel) = (
                file(&bed, "m.efi", &efi_program()),
                file(&bed, "d.iso", &iso_image()),
                file(&bed, "k", b"kernel"),
            );
            let said = add(&bed, "memtest", &["--efi", &program, "--description", "memory test"]);
            assert!(said.contains("for uefi-x64, not signed"), "{said}");
            add(&bed, "disc", &["--iso", &image]);
            add(&bed, "live", &["--kernel", &kernel]);
            boot(&machine, 0);
            let told = refused(&bed.farrier(&["profile", "assign", "memtest", "--node", "anvil"]), 4);
            assert!(told.contains("anvil cannot boot profile memtest: it is an EFI program"), "{told}");
            refused(&bed.farrier(&["profile", "assign", "memtest", "--firmware", "bios"]), 4);
            refused(&bed.farrier(&["profile", "assign", "disk", "--firmware", "bios"]), 3);
            let made = done(bed.farrier(&["profile", "assign", "disc", "--firmware", "uefi-x64"]));
            assert!(made.contains("warning: machines with Secure Boot turned on are passed over"), "{made}");
            let made =
                done(bed.farrier(&["profile", "assign", "memtest", "--mac-prefix", "02", "--before", "1"]));
            assert!(made.contains("warning: passed over: anvil: it is an EFI program"), "{made}");
            done(bed.farrier(&["profile", "assign", "live", "--mac-prefix", "02"]));

            // BIOS: the EFI program is passed over, and the timeline says so; the image is for others.
            boot(&machine, 0);
            assert!(script(&machine).contains("/profile/live/kernel"));
            let shown = done(bed.farrier(&["event", "list", "anvil"]));
            assert!(shown.contains("memtest by rule 2: passed over: it is an EFI program"), "{shown}");
            // UEFI: the program, by GRUB as well.
            boot(&machine, 7);
            assert!(loader(&machine).ends_with("shimx64.efi"), "{}", loader(&machine));
            assert!(script(&machine).contains("chain http://192.168.77.2/profile/memtest/boot.efi"));
            assert!(grub_configuration(&machine).contains("chainloader /profile/memtest/boot.efi; then\n"));
            assert_eq!(get(&machine, "profile/memtest/boot.efi"), Some(efi_program()));
            // Without it the image: it takes iPXE, which reads it in parts.
            done(bed.farrier(&["profile", "unassign", "2"]));
            boot(&machine, 7);
            assert_eq!(loader(&machine), "ipxe.efi");
            assert!(
                script(&machine).contains("sanboot --no-describe http://192.168.77.2/profile/disc/image.iso")
            );
            let url = format!("http://{SERVER}/profile/disc/image.iso");
            let code =
                machine.run("curl", &["-sS", "-r", "32768-34815", "-o", "got", "-w", "%{http_code}", &url]);
            assert_eq!((code.as_str(), machine.read("got")), ("206", iso_image()[32768..34816].to_vec()));
            // A machine that came by GRUB all the same is given the next.
            assert!(grub_configuration(&machine).contains("linux /profile/live/kernel"));
            // A value that is not there: it waits and says why, until it is.
            let labelled = file(&bed, "k2", b"labelled");
            add(&bed, "racked", &["--kernel", &labelled, "--arg", "rack={node.label.rack}"]);
            done(bed.farrier(&["profile", "assign", "racked", "--node", "anvil", "--before", "1"]));
            boot(&machine, 7);
            assert!(script(&machine).contains("cannot boot profile racked: node.label.rack is wanted"));
            assert_eq!(bed.farrier_json(&["why", "anvil"])["cause"], "profile-refused");
            done(bed.farrier(&["node", "label", "anvil", "rack=r1"]));
            assert!(script(&machine).contains("/profile/racked/kernel rack=r1 "));
        },
    );
}
