//! Who gets which address, when, and for how long.

use std::net::Ipv4Addr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use farrier::dhcp::lease::{OFFER_HOLD_MIN, QUARANTINE};

use crate::dhcp::*;
use crate::ground::{Ground, Group, alone, with_files, with_nothing};
use crate::support::{Process, SERVER, eventually};

static GROUP: Group = Group::new(
    "dhcp_leases",
    "[[dhcp.reservation]]\nmac = \"52:54:00:aa:00:01\"\naddress = \"192.168.200.1\"\n",
    with_files,
);
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(10, 9, 8, 7);

fn lease_of(ground: &Ground, address: Ipv4Addr) -> Option<serde_json::Value> {
    ground.leases().into_iter().find(|lease| lease["address"] == address.to_string())
}

/// What `lease list` says of an address, once it says so.
fn await_state(ground: &Ground, address: Ipv4Addr, state: &str) {
    eventually(&format!("{address} is {state}"), || {
        (lease_of(ground, address)?["state"] == state).then_some(())
    });
}

#[test]
fn d_09_the_same_client_gets_the_same_offer_and_200_clients_get_200() {
    GROUP.check(|ground| {
        let station = ground.station();
        let mut client = Client::new(&station, ground.mac());
        let first = client.offer().yiaddr;
        for _ in 0..3 {
            assert_eq!(client.offer().yiaddr, first);
        }
        let mut clients: Vec<_> = (0..200).map(|_| Client::new(&station, ground.mac())).collect();
        let discovers: Vec<_> = clients.iter_mut().map(|client| client.message(DISCOVER)).collect();
        for (client, discover) in clients.iter().zip(&discovers) {
            client.send(discover);
        }
        let mut offers = std::collections::BTreeMap::new();
        let mut until = Instant::now() + crate::station::PATIENCE;
        while offers.len() < 200 {
            let datagram = station.receive(until).expect("an offer for everybody");
            let payload = &datagram.payload;
            if discovers.iter().any(|discover| payload[4..8] == discover.xid.to_be_bytes()) {
                offers.insert(payload[28..34].to_vec(), payload[16..20].to_vec());
                until = Instant::now() + crate::station::PATIENCE;
            }
        }
        let distinct: std::collections::BTreeSet<_> = offers.values().collect();
        assert_eq!(distinct.len(), 200);
    });
}

/// A pool that strangers may have all of, so that what one holds is soon wanted.
fn open_to_strangers(pool: &str) -> String {
    format!("[dhcp]\npool = \"{pool}\"\n[dhcp.strangers]\nshare = \"100%\"\n")
}

/// What the 120 s of a hold are worth while a flood of strangers wants its addresses: nobody else is offered one in the
/// time firmware takes for its REQUEST, and then they are used again. Its end without a flood needs no wire and no
/// waiting: `src/dhcp/server/tests.rs` has the clock as an argument.
#[test]
fn d_10_an_offered_address_is_kept_from_others_and_then_free_again() {
    // Four of seventeen addresses may be offered to strangers at a time; twelve are taken, and one is left.
    alone(&open_to_strangers("192.168.77.100-192.168.77.116"), with_nothing, |ground| {
        let station = ground.station();
        for _ in 0..12 {
            Client::new(&station, ground.mac()).bind();
        }
        let began = Instant::now();
        let held: Vec<_> = (0..4).map(|_| Client::new(&station, ground.mac()).offer().yiaddr).collect();
        let mut distinct = held.clone();
        distinct.sort();
        distinct.dedup();
        assert_eq!(distinct.len(), 4, "nobody was offered what another holds");
        let late = [(); 2].map(|()| {
            let mut late = Client::new(&station, ground.mac());
            let offer = eventually("room again", || {
                let discover = late.message(DISCOVER);
                late.send(&discover);
                late.reply_within(ONE_ANSWER)
            });
            assert!(began.elapsed() >= OFFER_HOLD_MIN, "taken after {:?}", began.elapsed());
            offer.yiaddr
        });
        // Two, of which the address that nobody had is one at most.
        assert_ne!(late[0], late[1]);
        assert!(
            late.iter().any(|address| held[..2].contains(address)),
            "the oldest offers make room: {late:?}"
        );
        assert!(
            !late.iter().any(|address| held[2..].contains(address)),
            "and no others: {late:?} of {held:?}"
        );
    });
}

#[test]
fn d_11_a_client_that_only_ever_saw_an_offer_keeps_its_address_while_it_loads() {
    alone(&open_to_strangers("192.168.77.100-192.168.77.119"), with_files, |ground| {
        let station = ground.station();
        // A Raspberry Pi's ROM: OFFER, no REQUEST, TFTP from the offered address.
        let mut pi = Client::new(&station, ground.mac());
        let address = pi.offer().yiaddr;
        let machine = ground.machine(pi.mac);
        machine.run("ip", &["addr", "add", &format!("{address}/16"), "dev", "eth0"]);
        // With it, a quarter of the pool is offered; all else is taken.
        for _ in 0..15 {
            Client::new(&station, ground.mac()).bind();
        }
        for _ in 0..4 {
            Client::new(&station, ground.mac()).offer();
        }
        let began = Instant::now();
        let mut others = Vec::new();
        while began.elapsed() < 2 * OFFER_HOLD_MIN {
            machine.run("curl", &["-sS", "-o", "loader", &format!("tftp://{SERVER}/undionly.kpxe")]);
            let mut stranger = Client::new(&station, ground.mac());
            let discover = stranger.message(DISCOVER);
            stranger.send(&discover);
            others.extend(stranger.reply_within(ONE_ANSWER).map(|offer| offer.yiaddr));
        }
        assert!(others.len() >= 4, "the others' offers were taken back: {others:?}");
        assert!(!others.contains(&address), "{address} was offered to somebody else");
        // To everybody, for the bridge may have seen the MAC on either cable.
        let discover = pi.message(DISCOVER).broadcast();
        assert_eq!(pi.ask(&discover).yiaddr, address);
    });
}

#[test]
fn d_12_a_request_to_another_server_is_met_with_silence_and_frees_the_address() {
    alone("[dhcp]\npool = \"192.168.77.100-192.168.77.100\"\n", with_nothing, |ground| {
        let station = ground.station();
        let mut client = Client::new(&station, ground.mac());
        let address = client.offer().yiaddr;
        let request = client.message(REQUEST).with(50, [192, 168, 77, 50]).with(54, [192, 168, 77, 1]);
        client.send(&request);
        client.is_silent();
        assert_eq!(Client::new(&station, ground.mac()).offer().yiaddr, address, "at once");
    });
}

#[test]
fn d_13_a_request_for_anothers_address_is_refused_to_everybody_in_few_words() {
    GROUP.check(|ground| {
        let station = ground.station();
        let owner = Client::new(&station, ground.mac()).bind().yiaddr;
        let mut thief = Client::new(&station, ground.mac());
        let request =
            rom(thief.selecting(owner), 7).with(61, b"\x01thief").with(97, [1; 17]).with(55, [1, 3, 6]);
        let nak = thief.ask(&request);
        assert_eq!((nak.kind, nak.yiaddr, nak.ciaddr, nak.siaddr), (NAK, NOWHERE, NOWHERE, NOWHERE));
        assert_eq!((nak.frame.to.0, nak.frame.destination), ([0xff; 6], (EVERYBODY, 68)));
        let codes: Vec<u8> = nak.options.iter().map(|(code, _)| *code).collect();
        assert_eq!(codes, [53, 54, 56, 61]);
        assert_eq!(nak.file_field(), "");
    });
}

#[test]
fn d_14_init_reboot_is_granted_refused_or_recovered() {
    GROUP.check(|ground| {
        let station = ground.station();
        let mut client = Client::new(&station, ground.mac());
        let address = client.bind().yiaddr;
        let other = Client::new(&station, ground.mac()).bind().yiaddr;
        for (wanted, kind) in [(address, ACK), (ELSEWHERE, NAK), (other, NAK), (address, ACK)] {
            let request = client.message(REQUEST).with(50, wanted.octets());
            let reply = client.ask(&request);
            assert_eq!(reply.kind, kind, "{wanted}");
            assert_eq!(reply.yiaddr, if kind == ACK { address } else { NOWHERE });
        }
        // Somebody we know nothing of: we alone serve this bridge, so a record was lost, and is restored.
        let mut unknown = Client::new(&station, ground.mac());
        let remembered = Ipv4Addr::new(192, 168, 250, 9);
        let request = unknown.message(REQUEST).with(50, remembered.octets());
        let reply = unknown.ask(&request);
        assert_eq!((reply.kind, reply.yiaddr), (ACK, remembered));
        let request = unknown.message(REQUEST).with(50, other.octets());
        assert_eq!(unknown.ask(&request).kind, NAK);
    });
}

#[test]
fn d_15_renewing_is_answered_to_the_client_alone_also_after_a_restart() {
    alone("[dhcp]\nlease = \"60s\"\n", with_nothing, |ground| {
        let station = ground.station();
        let mut client = Client::new(&station, ground.mac());
        let ack = client.bind();
        assert_eq!(ack.seconds(51), Some(60));
        let renew = |client: &mut Client<'_>| {
            let message = client.message(REQUEST).at(ack.yiaddr);
            client.send_unicast(&message);
            let again = client.reply();
            assert_eq!((again.kind, again.yiaddr, again.ciaddr), (ACK, ack.yiaddr, ack.yiaddr));
            assert_eq!((again.frame.to, again.frame.destination), (client.mac, (ack.yiaddr, 68)));
            assert_eq!(again.seconds(51), Some(60));
        };
        renew(&mut client);
        let mut bed = ground.bed();
        bed.kill_server();
        bed.start_server();
        drop(bed);
        renew(&mut client);
        // Another machine that says it is there is told off.
        let mut thief = Client::new(&station, ground.mac());
        let message = thief.message(REQUEST).at(ack.yiaddr);
        thief.send_unicast(&message);
        assert_eq!(thief.reply().kind, NAK);
    });
}

#[test]
fn d_16_rebinding_is_answered_and_a_modest_server_is_silent_to_strangers() {
    alone("[dhcp]\nauthoritative = false\n", with_nothing, |ground| {
        let station = ground.station();
        let mut client = Client::new(&station, ground.mac());
        let address = client.bind().yiaddr;
        let rebind = client.message(REQUEST).at(address);
        let ack = client.ask(&rebind);
        assert_eq!((ack.kind, ack.yiaddr, ack.frame.destination), (ACK, address, (address, 68)));
        let mut unknown = Client::new(&station, ground.mac());
        let rebind = unknown.message(REQUEST).at(Ipv4Addr::new(192, 168, 250, 8));
        unknown.send(&rebind);
        unknown.is_silent();
        let reboot = unknown.message(REQUEST).with(50, [192, 168, 250, 8]);
        unknown.send(&reboot);
        unknown.is_silent();
        assert_eq!(ground.counted("dhcp", "unknown-client"), 2);
    });
}

#[test]
fn d_17_a_declined_address_is_withheld_until_its_probation_is_over() {
    alone("[dhcp]\npool = \"192.168.77.100-192.168.77.101\"\n", with_nothing, |ground| {
        let station = ground.station();
        let mut client = Client::new(&station, ground.mac());
        let address = client.bind().yiaddr;
        let decline = |client: &mut Client<'_>, address: Ipv4Addr| {
            let message = client.message(DECLINE).with(50, address.octets()).with(54, SERVER.octets());
            client.send(&message);
            client.is_silent();
        };
        // Not by somebody else, not of what it does not have, not without saying which.
        let mut other = Client::new(&station, ground.mac());
        decline(&mut other, address);
        decline(&mut client, Ipv4Addr::new(192, 168, 77, 101));
        let unsaid = client.message(DECLINE).with(54, SERVER.octets());
        client.send(&unsaid);
        client.is_silent();
        assert_eq!(ground.counted("dhcp", "decline-unfounded"), 3);
        assert_eq!(lease_of(ground, address).expect("a lease")["state"], "bound");
        decline(&mut client, address);
        // Whoever answered there is not this client, and will be gone when it is looked at again.
        station.disown(address);
        await_state(ground, address, "quarantined");
        // Withheld: the other address goes out, then nothing is left, and nobody who asks for it gets it.
        let second = client.bind().yiaddr;
        assert_ne!(second, address);
        let discover = other.message(DISCOVER).with(50, address.octets());
        other.send(&discover);
        other.is_silent();
        // The hour passes while the appliance is off: its record of it is moved into the past.
        pass_time(ground, QUARANTINE + Duration::from_secs(1));
        assert_eq!(other.offer().yiaddr, address);
        // Against a lease that time is not counted: its client declines what it has.
        assert_eq!(lease_of(ground, second).expect("a lease")["state"], "bound");
        decline(&mut client, second);
        await_state(ground, second, "quarantined");
    });
}

/// Stops the appliance, moves every binding so far into the past, and starts it again.
fn pass_time(ground: &Ground, time: Duration) {
    let mut bed = ground.bed();
    bed.signal(nix::sys::signal::Signal::SIGTERM);
    bed.wait_server();
    let database = rusqlite::Connection::open(bed.state().join("farrier.db")).expect("the database");
    let millis = i64::try_from(time.as_millis()).expect("fits");
    let moved = database
        .execute("UPDATE bindings SET expires_at = expires_at - ?1, granted_at = granted_at - ?1", [millis])
        .expect("bindings");
    assert!(moved > 0);
    drop(database);
    bed.start_server();
}

#[test]
fn d_19_a_release_frees_and_the_same_client_gets_it_back() {
    GROUP.check(|ground| {
        let station = ground.station();
        let mut client = Client::new(&station, ground.mac());
        let address = client.bind().yiaddr;
        let mut foreign = Client::new(&station, ground.mac());
        let release = foreign.message(RELEASE).at(address).with(54, SERVER.octets());
        foreign.send_unicast(&release);
        foreign.is_silent();
        let elsewhere = client.message(RELEASE).at(address).with(54, ELSEWHERE.octets());
        client.send_unicast(&elsewhere);
        client.is_silent();
        assert_eq!(lease_of(ground, address).expect("a lease")["state"], "bound");
        let release = client.message(RELEASE).at(address).with(54, SERVER.octets());
        client.send_unicast(&release);
        client.is_silent();
        await_state(ground, address, "released");
        for _ in 0..5 {
            assert_ne!(Client::new(&station, ground.mac()).offer().yiaddr, address);
        }
        assert_eq!(client.offer().yiaddr, address);
    });
}

#[test]
fn d_20_inform_gets_configuration_without_a_lease() {
    GROUP.check(|ground| {
        let station = ground.station();
        let mut client = Client::new(&station, ground.mac());
        let (here, port) = (Ipv4Addr::new(192, 168, 77, 201), 68);
        station.own(here, client.mac);
        let from_ciaddr = client.message(INFORM).at(here).with(55, [1, 28]);
        client.send_unicast(&from_ciaddr);
        let by_ciaddr = client.reply();
        assert_eq!(by_ciaddr.ciaddr, here);
        // `ciaddr` left empty: the answer goes where the question came from.
        let from_source = client.message(INFORM);
        station.send_udp(client.mac, (here, port), (SERVER, 67), &from_source.bytes());
        let by_source = client.reply();
        for ack in [by_ciaddr, by_source] {
            assert_eq!((ack.kind, ack.yiaddr), (ACK, NOWHERE));
            assert_eq!((ack.frame.to, ack.frame.destination), (client.mac, (here, port)));
            assert!([51, 58, 59].iter().all(|code| ack.option(*code).is_none()), "{ack:?}");
            assert!(ack.option(1).is_some());
        }
        let nowhere = client.message(INFORM);
        client.send(&nowhere);
        client.is_silent();
        let off_network = client.message(INFORM).at(ELSEWHERE);
        client.send(&off_network);
        client.is_silent();
        assert!(ground.leases().iter().all(|lease| lease["address"] != here.to_string()));
    });
}

#[test]
fn d_22_one_machine_with_three_identifiers_has_one_lease() {
    GROUP.check(|ground| {
        let station = ground.station();
        let mut client = Client::new(&station, ground.mac());
        let own = [&[1], &client.mac.0[..]].concat();
        let ids = [None, Some(own), Some(vec![255, 1, 2, 3, 4, 0, 2, 0, 0, 0xab, 0x11, 9, 9, 9, 9])];
        let mut addresses = Vec::new();
        for id in ids.iter().chain(ids.iter().rev()) {
            let mut discover = client.message(DISCOVER);
            let with = |message: Message| match id {
                Some(id) => message.with(61, id),
                None => message,
            };
            discover = with(discover);
            let offer = client.ask(&discover);
            let request = with(client.selecting(offer.yiaddr));
            let ack = client.ask(&request);
            assert_eq!((ack.kind, ack.option(61)), (ACK, id.as_deref()));
            addresses.push(ack.yiaddr);
        }
        addresses.dedup();
        assert_eq!(addresses.len(), 1, "{addresses:?}");
        let mac = client.mac.to_string();
        assert_eq!(ground.leases().iter().filter(|lease| lease["mac"] == mac.as_str()).count(), 1);
    });
}

#[test]
fn d_23_two_machines_with_one_identifier_have_two_leases() {
    GROUP.check(|ground| {
        let station = ground.station();
        let bound = |client: &mut Client<'_>| {
            let discover = client.message(DISCOVER).with(61, b"\xffcloned machine");
            let offer = client.ask(&discover);
            let request = client.selecting(offer.yiaddr).with(61, b"\xffcloned machine");
            assert_eq!(client.ask(&request).kind, ACK);
            offer.yiaddr
        };
        let (mut one, mut two) = (Client::new(&station, ground.mac()), Client::new(&station, ground.mac()));
        let (first, second) = (bound(&mut one), bound(&mut two));
        assert_ne!(first, second);
        assert_eq!(bound(&mut one), first);
        // And the operator is told.
        let told = eventually("a warning", || {
            let status = ground.bed().farrier_json(&["status"]);
            let problems = status["problems"].as_array()?.clone();
            problems
                .iter()
                .map(|told| told["message"].to_string())
                .find(|text| text.contains("client identifier"))
        });
        assert!(told.contains(&one.mac.to_string()) && told.contains(&two.mac.to_string()), "{told}");
    });
}

#[test]
fn d_33_an_exhausted_pool_is_silence_and_an_event_and_renewals_go_on() {
    alone("[dhcp]\npool = \"192.168.77.100-192.168.77.101\"\n", with_nothing, |ground| {
        let station = ground.station();
        let mut owners = [Client::new(&station, ground.mac()), Client::new(&station, ground.mac())];
        let addresses: Vec<_> = owners.iter_mut().map(|client| client.bind().yiaddr).collect();
        let mut late = Client::new(&station, ground.mac());
        for _ in 0..3 {
            let discover = late.message(DISCOVER);
            late.send(&discover);
            late.is_silent();
        }
        assert_eq!(ground.counted("dhcp", "pool-exhausted"), 3);
        let status = ground.bed().farrier_json(&["status"]);
        assert!(status["problems"].to_string().contains("no address is left"), "{status}");
        for (client, address) in owners.iter_mut().zip(addresses) {
            let renew = client.message(REQUEST).at(address);
            client.send_unicast(&renew);
            assert_eq!((client.reply().kind, client.offer().yiaddr), (ACK, address));
        }
    });
}

#[test]
fn d_35_another_bridge_may_have_its_dnsmasq() {
    alone("", with_nothing, |ground| {
        crate::support::add_bridge("br1", "10.88.0.1/24");
        let leases = ground.bed().path("dnsmasq.leases");
        // As libvirt starts it: bound to its bridge alone.
        let child = std::process::Command::new("dnsmasq")
            .args(["--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--interface=br1"])
            .args(["--except-interface=lo", "--bind-dynamic", "--dhcp-range=10.88.0.50,10.88.0.60,1h"])
            .args(["--user=root", "--dhcp-authoritative", "--no-ping"])
            .arg(format!("--log-facility={}", ground.bed().path("dnsmasq.log").display()))
            .arg(format!("--pid-file={}", ground.bed().path("dnsmasq.pid").display()))
            .arg(format!("--dhcp-leasefile={}", leases.display()))
            .stdin(Stdio::null())
            .spawn()
            .expect("dnsmasq (.ci/packages.txt names the Debian package)");
        let _dnsmasq = Process(child);
        let theirs = ground.bed().plug_into("br1", "52:54:00:bb:00:01");
        let ours = ground.booted();
        let their_address = theirs.boot_udhcpc();
        assert_eq!(their_address.octets()[..3], [10, 88, 0]);
        assert_eq!(ours.address().expect("an address").octets()[..2], [192, 168]);
        // And with the neighbour at work, a restart of ours still finds its ports.
        let mut bed = ground.bed();
        bed.kill_server();
        bed.start_server();
        drop(bed);
        ground.booted();
        assert!(ground.leases().iter().all(|lease| lease["mac"] != "52:54:00:bb:00:01"));
    });
}

#[test]
fn d_36_a_reservation_is_kept_whatever_others_want() {
    GROUP.check(|ground| {
        let station = ground.station();
        let reserved = Ipv4Addr::new(192, 168, 200, 1);
        let mut stranger = Client::new(&station, ground.mac());
        let wish = stranger.message(DISCOVER).with(50, reserved.octets());
        assert_ne!(stranger.ask(&wish).yiaddr, reserved);
        for request in [
            stranger.selecting(reserved),
            stranger.message(REQUEST).with(50, reserved.octets()),
            stranger.message(REQUEST).at(reserved),
        ] {
            let mut request = request;
            request.xid = stranger.message(REQUEST).xid;
            assert_eq!(stranger.ask(&request).kind, NAK);
        }
        let mut owner = Client::new(&station, "52:54:00:aa:00:01".parse().expect("a MAC"));
        let wish = owner.message(DISCOVER).with(50, [192, 168, 201, 7]);
        assert_eq!(owner.ask(&wish).yiaddr, reserved, "whatever it asks for");
        assert_eq!(owner.bind().yiaddr, reserved);
        let release = owner.message(RELEASE).at(reserved).with(54, SERVER.octets());
        owner.send_unicast(&release);
        await_state(ground, reserved, "released");
        let wish = stranger.message(DISCOVER).with(50, reserved.octets());
        assert_ne!(stranger.ask(&wish).yiaddr, reserved, "not even when nobody uses it");
        assert_eq!(owner.bind().yiaddr, reserved);
        // By command as well, and over an address somebody else has: the machine gets it once that is free.
        let mac = ground.mac();
        let fixed = Ipv4Addr::new(192, 168, 200, 2);
        let added = ground.bed().farrier(&["node", "add", &format!("{mac}={fixed}")]);
        assert!(added.status.success(), "{added:?}");
        assert_eq!(Client::new(&station, mac).bind().yiaddr, fixed);
    });
}

#[test]
fn d_36_an_expired_reservation_is_nobody_elses() {
    alone(
        "[dhcp]\npool = \"192.168.77.100-192.168.77.101\"\nlease = \"60s\"\n\
         [[dhcp.reservation]]\nmac = \"52:54:00:aa:00:01\"\naddress = \"192.168.77.100\"\n",
        with_nothing,
        |ground| {
            let station = ground.station();
            let mut owner = Client::new(&station, "52:54:00:aa:00:01".parse().expect("a MAC"));
            let reserved = owner.bind().yiaddr;
            pass_time(ground, Duration::from_secs(86_400));
            let mut stranger = Client::new(&station, ground.mac());
            assert_ne!(stranger.bind().yiaddr, reserved);
            let mut late = Client::new(&station, ground.mac());
            let discover = late.message(DISCOVER);
            late.send(&discover);
            late.is_silent();
            assert_eq!(owner.bind().yiaddr, reserved);
        },
    );
}

#[test]
fn replies_dissect_without_a_mark() {
    GROUP.dissect();
}
