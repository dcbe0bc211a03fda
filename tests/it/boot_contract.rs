//! What is advertised is served: every name a decision or a script can put on the wire is fetched by TFTP and HTTP.

use std::fs;

use farrier::boot::client::{ClientClass, Firmware};
use farrier::boot::decision::{BootPlan, Standing, UnknownPolicy, boot_file, decide};
use farrier::boot::loader::LoaderTable;
use farrier::boot::namespace;
use farrier::net::MacAddr;

use crate::support::{ClientMachine, SERVER, TestBed, eventually, in_namespace, pattern};

const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

/// Puts a file where each loader is looked for when its package is not installed; all but those below `without`.
fn provide_loaders(bed: &TestBed, table: &LoaderTable, without: Option<&str>) {
    let wanted = |name: &str| without.is_none_or(|folder| !name.starts_with(folder));
    for file in table.files().filter(|file| wanted(&file.name.0)) {
        let place = bed.state().join("loaders").join(file.path.strip_prefix("/").unwrap());
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::write(place, pattern(10_000 + file.name.0.len())).unwrap();
    }
}

/// Everything DHCP can name for any client, and everything those loaders and scripts fetch next.
fn advertised(table: &LoaderTable) -> Vec<String> {
    let mut names = Vec::new();
    for firmware in Firmware::ALL {
        let classes = [
            ClientClass::Firmware { firmware: *firmware },
            ClientClass::Ipxe { firmware: *firmware, can_boot: true },
            ClientClass::Ipxe { firmware: *firmware, can_boot: false },
        ];
        for class in classes {
            let plan = decide(class, &Standing::Stranger, UnknownPolicy::Enroll, table);
            if let Some(boot) = boot_file(&plan, SERVER, MAC) {
                let url = format!("http://{SERVER}/");
                names.push(boot.file.strip_prefix(&url).unwrap_or(&boot.file).to_owned());
            }
            if let BootPlan::Loader { loader, .. } = plan {
                let mut second = table.file(&loader).and_then(|file| file.second.clone());
                while let Some(name) = second {
                    names.push(name.0.clone());
                    second = table.file(&name).and_then(|file| file.second.clone());
                }
            }
        }
    }
    names.extend([namespace::grub_config_name(MAC), "grub/grub.cfg".into(), "autoexec.ipxe".into()]);
    names.push(namespace::pxelinux_config_name(MAC));
    names.extend([namespace::kernel_name("vm"), namespace::ramdisk_name("vm")]);
    names.sort();
    names.dedup();
    names
}

fn fetch(machine: &ClientMachine, scheme: &str, name: &str) -> Vec<u8> {
    machine.run("curl", &["-sS", "--fail", "-o", "got", &format!("{scheme}://{SERVER}/{name}")]);
    machine.read("got")
}

#[test]
fn every_name_a_decision_can_give_is_served_by_tftp_and_http() {
    in_namespace("boot_contract::every_name_a_decision_can_give_is_served_by_tftp_and_http", || {
        let mut bed = TestBed::new("[boot]\nprofile = \"vm\"\n");
        let table = LoaderTable::built_in();
        provide_loaders(&bed, &table, None);
        bed.publish("vm", &pattern(100_000), &pattern(200_000));
        bed.start_server();
        let machine = bed.plug(&MAC.to_string());
        assert!(bed.farrier(&["node", "add", &MAC.to_string(), "--name", "node1"]).status.success());
        machine.boot_udhcpc();
        let names = advertised(&table);
        assert!(names.len() >= 10, "{names:?}");
        for name in names {
            let by_tftp = fetch(&machine, "tftp", &name);
            let by_http = fetch(&machine, "http", &name);
            assert!(!by_tftp.is_empty(), "{name}");
            // Scripts carry a fresh token each time; everything else is the same file by either road.
            let rendered =
                name.contains("grub.cfg") || name.contains("pxelinux.cfg") || name.ends_with(".ipxe");
            assert!(rendered || by_tftp == by_http, "{name} differs");
        }
    });
}

#[test]
fn a_loader_that_is_not_installed_is_not_advertised() {
    in_namespace("boot_contract::a_loader_that_is_not_installed_is_not_advertised", || {
        let mut bed = TestBed::new("[boot]\nprofile = \"vm\"\n");
        bed.publish("vm", b"kernel", b"ramdisk");
        provide_loaders(&bed, &LoaderTable::built_in(), Some("uefi-arm64/"));
        bed.start_server();
        let lacking = "no loader: loader uefi-arm64/shimaa64.efi is not at";
        let lines =
            || bed.log().lines().filter(|line| line.contains(lacking)).map(str::to_owned).collect::<Vec<_>>();
        assert!(matches!(lines().as_slice(), [line] if line.contains("INFO")), "{:?}", lines());
        // Whose user the appliance is, and what it says of that, is the machine's that runs the test.
        let problems = |bed: &TestBed| {
            let status = bed.farrier_json(&["status"]);
            let told = status["problems"].as_array().expect("problems").iter();
            let told = told.map(|problem| problem["message"].to_string());
            told.filter(|message| !message.contains("the appliance stays root")).collect::<Vec<_>>()
        };
        assert_eq!(problems(&bed), [""; 0], "a choice is no problem");

        let machine = bed.plug(&MAC.to_string());
        machine.write_udhcpc_script();
        let options = ["-V", "PXEClient:Arch:00011:UNDI:003000", "-x", "0x5d:000b"];
        let usual = ["-i", "eth0", "-n", "-q", "-f", "-t", "8", "-T", "1", "-s", "./udhcpc.sh"];
        machine.run("udhcpc", &[usual.as_slice(), &options].concat());
        let environment = fs::read_to_string(machine.path("bound.env")).unwrap();
        assert!(machine.address().is_some() && !environment.contains("boot_file="), "{environment}");
        let told = problems(&bed);
        assert!(matches!(told.as_slice(), [one] if one.contains("package shim-signed:arm64")), "{told:?}");
        let shown = bed.farrier(&["node", "show", &MAC.to_string()]);
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        assert!(shown.contains("nothing to boot: no-loader"), "{shown}");
        assert!(
            shown.contains("stopped at: address given; no loader for its firmware is installed"),
            "{shown}"
        );

        // Installed since, and read again.
        provide_loaders(&bed, &LoaderTable::built_in(), None);
        bed.signal(nix::sys::signal::Signal::SIGHUP);
        eventually("the loader is advertised", || {
            machine.run("udhcpc", &[usual.as_slice(), &options].concat());
            let environment = fs::read_to_string(machine.path("bound.env")).unwrap();
            environment.contains("boot_file=uefi-arm64/shimaa64.efi\n").then_some(())
        });
        assert!(!fetch(&machine, "tftp", "uefi-arm64/grubaa64.efi").is_empty());
    });
}

#[test]
fn each_script_names_only_what_is_served() {
    in_namespace("boot_contract::each_script_names_only_what_is_served", || {
        let mut bed = TestBed::new("[boot]\nprofile = \"vm\"\n");
        bed.publish("vm", &pattern(1000), &pattern(2000));
        bed.start_server();
        let machine = bed.plug(&MAC.to_string());
        assert!(bed.farrier(&["node", "add", &MAC.to_string(), "--name", "node1"]).status.success());
        machine.boot_udhcpc();
        let script = String::from_utf8(fetch(&machine, "http", &namespace::ipxe_script_name(MAC))).unwrap();
        let urls: Vec<_> =
            script.split_whitespace().filter_map(|word| word.strip_prefix("http://192.168.77.2/")).collect();
        assert!(urls.len() >= 3, "{script}");
        for name in urls {
            fetch(&machine, "http", name);
        }
        let grub = String::from_utf8(fetch(&machine, "tftp", "grub/grub.cfg")).unwrap();
        for command in ["linux /", "initrd /", "source /"] {
            let line = grub.lines().find_map(|line| line.strip_prefix(command));
            let name =
                line.unwrap_or_else(|| panic!("{command} in {grub}")).split_whitespace().next().unwrap();
            fetch(&machine, "tftp", name);
        }
    });
}

#[test]
fn another_nodes_script_is_not_there() {
    in_namespace("boot_contract::another_nodes_script_is_not_there", || {
        let mut bed = TestBed::new("[boot]\nprofile = \"vm\"\n");
        bed.publish("vm", b"kernel", b"ramdisk");
        bed.start_server();
        let victim = "02:00:00:00:00:aa".parse().unwrap();
        assert!(bed.farrier(&["node", "add", "02:00:00:00:00:aa", "--name", "victim"]).status.success());
        let machine = bed.plug(&MAC.to_string());
        machine.boot_udhcpc();
        let url = format!("http://{SERVER}/{}", namespace::ipxe_script_name(victim));
        assert_eq!(machine.run("curl", &["-sS", "-o", "got", "-w", "%{http_code}", &url]), "404");
        let grub = format!("tftp://{SERVER}/{}", namespace::grub_config_name(victim));
        assert!(!machine.output("curl", &["-sS", "--fail", "-o", "got", &grub]).status.success());
    });
}
