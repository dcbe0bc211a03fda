//! DHCP as udhcpc and dhclient speak it.

use std::fs;

use crate::support::{ClientMachine, Process, TestBed, add_bridge, eventually, in_namespace};

fn lease_of(bed: &TestBed, mac: &str) -> Option<serde_json::Value> {
    let leases = bed.farrier_json(&["lease", "list"]);
    leases.as_array().expect("a list").iter().find(|lease| lease["mac"] == mac).cloned()
}

fn udhcpc_until_bound(machine: &ClientMachine) -> Process {
    machine.write_udhcpc_script();
    let child = machine
        .command(
            "udhcpc",
            &["-i", "eth0", "-f", "-R", "-t", "8", "-T", "1", "-s", "./udhcpc.sh", "-p", "udhcpc.pid"],
        )
        .spawn()
        .expect("udhcpc starts");
    let process = Process(child);
    eventually("udhcpc is bound", || machine.path("bound.env").exists().then_some(()));
    process
}

fn signal_udhcpc(machine: &ClientMachine, signal: nix::sys::signal::Signal) {
    let pid: i32 = fs::read_to_string(machine.path("udhcpc.pid")).unwrap().trim().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).expect("udhcpc runs");
}

#[test]
fn d_01_udhcpc_gets_renews_and_releases_an_address() {
    in_namespace("dhcp_clients::d_01_udhcpc_gets_renews_and_releases_an_address", || {
        let mut bed = TestBed::start("");
        let machine = bed.plug("02:00:00:00:00:01");
        let mut udhcpc = udhcpc_until_bound(&machine);
        let address = eventually("the script has set the address", || machine.address());
        let environment = fs::read_to_string(machine.path("bound.env")).unwrap();
        assert!(environment.contains("serverid=192.168.77.2\n"), "{environment}");
        assert!(environment.contains("mask=24\n"), "{environment}");
        let lease = lease_of(&bed, "02:00:00:00:00:01").expect("a lease");
        assert_eq!(lease["address"], address.to_string());

        signal_udhcpc(&machine, nix::sys::signal::Signal::SIGUSR1);
        eventually("udhcpc has renewed", || machine.path("renew.env").exists().then_some(()));
        // Its script takes the address away and sets it again.
        eventually("the same address", || machine.address().filter(|now| *now == address));

        signal_udhcpc(&machine, nix::sys::signal::Signal::SIGTERM);
        eventually("udhcpc has ended", || udhcpc.0.try_wait().unwrap());
        eventually("the lease is released", || {
            (lease_of(&bed, "02:00:00:00:00:01")?["state"] == "released").then_some(())
        });
    });
}

/// dhclient with its files in the machine's directory.
struct Dhclient<'a>(&'a ClientMachine);

impl Dhclient<'_> {
    fn set_up<'a>(machine: &'a ClientMachine, configuration: &str) -> Dhclient<'a> {
        use std::os::unix::fs::PermissionsExt;
        let script = machine.path("dhclient.sh");
        fs::write(
            &script,
            "#!/bin/sh\necho \"$reason $new_ip_address\" >> reasons\ncase $reason in\n\
             BOUND|RENEW|REBOOT|REBIND) ip addr flush dev $interface; ip addr add $new_ip_address/24 dev $interface ;;\n\
             RELEASE|STOP) ip addr flush dev $interface ;;\nesac\n",
        )
        .unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(machine.path("dhclient.conf"), format!("timeout 20;\n{configuration}")).unwrap();
        fs::write(machine.path("leases"), "").unwrap();
        Dhclient(machine)
    }

    fn arguments<'a>(extra: &[&'a str]) -> Vec<&'a str> {
        let files = ["-cf", "dhclient.conf", "-lf", "leases", "-pf", "dhclient.pid", "-sf", "./dhclient.sh"];
        [&["-4", "-v"], &files[..], extra, &["eth0"]].concat()
    }

    /// Runs it to its end, or until it is in the background; gives what it said.
    fn run(&self, extra: &[&str]) -> String {
        self.0.run("dhclient", &Dhclient::arguments(extra))
    }

    /// Starts it in the foreground, writing to a file.
    fn start(&self) -> Process {
        let said = fs::File::create(self.0.path("said")).unwrap();
        let mut command = self.0.command("dhclient", &Dhclient::arguments(&["-d"]));
        Process(command.stderr(said).stdout(std::process::Stdio::null()).spawn().expect("dhclient starts"))
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&self.0.read("said")).into_owned()
    }
}

#[test]
fn d_01_dhclient_gets_renews_and_releases_an_address() {
    in_namespace("dhcp_clients::d_01_dhclient_gets_renews_and_releases_an_address", || {
        let mut bed = TestBed::start("");
        let machine = bed.plug("02:00:00:00:00:02");
        let dhclient = Dhclient::set_up(&machine, "");
        let said = dhclient.run(&["-1"]);
        let address = machine.address().unwrap_or_else(|| panic!("an address: {said}"));
        assert_eq!(lease_of(&bed, "02:00:00:00:00:02").unwrap()["address"], address.to_string());
        dhclient.run(&["-r"]);
        eventually("the lease is released", || {
            (lease_of(&bed, "02:00:00:00:00:02")?["state"] == "released").then_some(())
        });
    });
}

#[test]
fn d_01_dhcpcd_gets_renews_and_releases_an_address() {
    in_namespace("dhcp_clients::d_01_dhcpcd_gets_renews_and_releases_an_address", || {
        use nix::sys::signal::Signal;
        let mut bed = TestBed::start("");
        let machine = bed.plug("02:00:00:00:00:04");
        // Asking the network for five seconds whether the address is taken is left out.
        fs::write(machine.path("dhcpcd.conf"), "duid\nipv4only\nnoipv4ll\nnoarp\nscript /bin/true\n")
            .unwrap();
        // Its directories are not ours to choose: it gets others in their place.
        let places = "mount -t tmpfs tmpfs /run && mkdir -p /run/dhcpcd && mount -t tmpfs tmpfs /var/lib/dhcpcd && \
                      exec dhcpcd --nobackground --debug --config dhcpcd.conf eth0";
        let said = fs::File::create(machine.path("said")).unwrap();
        let mut command = machine.command("unshare", &["--mount", "sh", "-c", places]);
        command.stdout(said.try_clone().unwrap()).stderr(said);
        let mut dhcpcd = Process(command.spawn().expect("dhcpcd starts"));
        let said = || String::from_utf8_lossy(&machine.read("said")).into_owned();
        let signal = |signal| {
            let pid = nix::unistd::Pid::from_raw(i32::try_from(dhcpcd.0.id()).unwrap());
            nix::sys::signal::kill(pid, signal).unwrap_or_else(|error| panic!("{error}: {}", said()));
        };
        let address = eventually("dhcpcd has set an address", || machine.address());
        let lease = lease_of(&bed, "02:00:00:00:00:04").expect("a lease");
        assert_eq!((&lease["address"], &lease["state"]), (&address.to_string().into(), &"bound".into()));

        signal(Signal::SIGUSR1);
        eventually("the lease is longer", || {
            (lease_of(&bed, "02:00:00:00:00:04")?["expires_at"] != lease["expires_at"]).then_some(())
        });
        assert_eq!(machine.address(), Some(address), "{}", said());
        // Ends, and gives the address back.
        signal(Signal::SIGALRM);
        eventually("the lease is released", || {
            (lease_of(&bed, "02:00:00:00:00:04")?["state"] == "released").then_some(())
        });
        eventually("dhcpcd has ended", || dhcpcd.0.try_wait().unwrap());
    });
}

#[test]
fn d_14_dhclient_keeps_its_address_or_is_told_that_it_is_none() {
    in_namespace("dhcp_clients::d_14_dhclient_keeps_its_address_or_is_told_that_it_is_none", || {
        let mut bed = TestBed::start("");
        let machine = bed.plug("02:00:00:00:00:02");
        let dhclient = Dhclient::set_up(&machine, "");
        dhclient.run(&["-1"]);
        let address = machine.address().expect("an address");
        // Started again with its lease file, without a release, it asks for the same address by INIT-REBOOT.
        dhclient.run(&["-x"]);
        let said = dhclient.run(&["-1"]);
        let granted = said.contains(&format!("DHCPREQUEST for {address}")) && said.contains("DHCPACK");
        assert!(granted && !said.contains("DHCPDISCOVER"), "{said}");
        assert_eq!(machine.address(), Some(address));
        dhclient.run(&["-x"]);
        // On another network meanwhile: what it remembers is refused at once, and it starts over.
        let lease = "lease {\n interface \"eth0\";\n fixed-address 10.9.9.9;\n option subnet-mask 255.255.255.0;\n \
                     option dhcp-lease-time 3600;\n option dhcp-message-type 5;\n \
                     option dhcp-server-identifier 10.9.9.1;\n renew never;\n rebind never;\n expire never;\n}\n";
        fs::write(machine.path("leases"), lease).unwrap();
        let said = dhclient.run(&["-1"]);
        let order = ["DHCPREQUEST for 10.9.9.9", "DHCPNAK", "DHCPDISCOVER", "DHCPACK"];
        let places: Vec<Option<usize>> = order.iter().map(|word| said.find(word)).collect();
        assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{said}");
        assert_eq!(machine.address(), Some(address));
        dhclient.run(&["-x"]);
    });
}

#[test]
fn d_15_dhclient_renews_with_an_appliance_that_was_killed_meanwhile() {
    in_namespace("dhcp_clients::d_15_dhclient_renews_with_an_appliance_that_was_killed_meanwhile", || {
        let mut bed = TestBed::start("[dhcp]\nlease = \"60s\"\n");
        let machine = bed.plug("02:00:00:00:00:02");
        // It would renew after half a minute by itself.
        let dhclient =
            Dhclient::set_up(&machine, "supersede dhcp-renewal-time 3;\nsupersede dhcp-rebinding-time 50;\n");
        let _running = dhclient.start();
        let address = eventually("an address", || machine.address());
        let expiry =
            |bed: &TestBed| lease_of(bed, "02:00:00:00:00:02").expect("a lease")["expires_at"].clone();
        let first = expiry(&bed);
        bed.kill_server();
        bed.start_server();
        let before = dhclient.said().len();
        let to_us = format!("DHCPREQUEST for {address} on eth0 to 192.168.77.2 port 67");
        eventually("dhclient has renewed since", || {
            let said = dhclient.said();
            let (_, behind) = said[before..].split_once(&to_us)?;
            behind.contains("DHCPACK").then_some(())
        });
        assert!(!dhclient.said().contains("DHCPNAK"), "{}", dhclient.said());
        // Its script takes the address away and sets it again.
        eventually("the same address", || machine.address().filter(|now| *now == address));
        assert_ne!(expiry(&bed), first, "the lease is longer now");
    });
}

#[test]
fn a_second_bridge_gets_no_answer() {
    in_namespace("dhcp_clients::a_second_bridge_gets_no_answer", || {
        let mut bed = TestBed::start("");
        add_bridge("br1", "192.168.88.2/24");
        let stranger = bed.plug_into("br1", "02:00:00:00:00:03");
        stranger.write_udhcpc_script();
        let arguments = ["-i", "eth0", "-n", "-q", "-f", "-t", "3", "-T", "1", "-s", "./udhcpc.sh"];
        let output = stranger.output("udhcpc", &arguments);
        assert!(!output.status.success(), "a machine on another bridge got an answer");
        assert!(lease_of(&bed, "02:00:00:00:00:03").is_none());
        // The same machine on our bridge is served, so the silence was no accident.
        let ours = bed.plug("02:00:00:00:00:03");
        ours.boot_udhcpc();
        // Nothing else answers there either: every boot-plane port is closed on the other bridge.
        stranger.run("ip", &["addr", "add", "192.168.88.9/24", "dev", "eth0"]);
        let fetched = stranger.output("curl", &["-s", "-m", "2", "http://192.168.88.2/ipxe.efi"]);
        assert!(!fetched.status.success());
    });
}

#[test]
fn a_registered_node_gets_its_reserved_address() {
    in_namespace("dhcp_clients::a_registered_node_gets_its_reserved_address", || {
        let mut bed = TestBed::start("");
        let added = bed.farrier(&["node", "add", "02:00:00:00:00:07=192.168.77.7", "--name", "rack1-node7"]);
        assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
        let machine = bed.plug("02:00:00:00:00:07");
        assert_eq!(machine.boot_udhcpc().to_string(), "192.168.77.7");
    });
}

#[test]
fn s_05_strangers_are_ignored_where_the_policy_says_so() {
    in_namespace("dhcp_clients::s_05_strangers_are_ignored_where_the_policy_says_so", || {
        let mut bed = TestBed::start("[dhcp]\nunknown = \"ignore\"\n");
        let machine = bed.plug("02:00:00:00:00:09");
        machine.write_udhcpc_script();
        let arguments = ["-i", "eth0", "-n", "-q", "-f", "-t", "2", "-T", "1", "-s", "./udhcpc.sh"];
        assert!(!machine.output("udhcpc", &arguments).status.success());
        assert!(bed.log().contains("unknown-mac"), "the silence has a reason");
        assert!(bed.farrier(&["node", "add", "02:00:00:00:00:09"]).status.success());
        machine.boot_udhcpc();
    });
}
