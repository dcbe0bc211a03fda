//! Each format as its own program writes it, each thing that can be wrong in it, and back again.

use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;

/// One entry in words: `line name mac[=address] …`.
fn told(entry: &RosterEntry) -> String {
    let name = entry.name.as_ref().map_or("-", |name| name.as_str());
    let port = |port: &RosterPort| match port.address {
        Some(address) => format!("{}={address}", port.mac),
        None => port.mac.to_string(),
    };
    let ports: Vec<String> = entry.ports.iter().map(port).collect();
    format!("{} {name} {}", entry.line, ports.join(" "))
}

fn entries(text: &str, format: Format) -> Vec<String> {
    assert_eq!(Format::guess(text), Some(format), "guessed from\n{text}");
    let roster = parse(text.as_bytes(), None).unwrap_or_else(|error| panic!("{format}: {error}"));
    roster.entries.iter().map(told).collect()
}

fn notes(text: &str) -> Vec<String> {
    let roster = parse(text.as_bytes(), None).expect("a good list");
    roster.notes.iter().map(|note| format!("{} {}", note.line, note.text)).collect()
}

fn refused(text: &str, format: Format) -> String {
    parse(text.as_bytes(), Some(format)).expect_err(text).to_string()
}

#[test]
fn spreadsheets_with_any_separator_and_column_order() {
    let rows = ["1", "rack1-a 52:54:00:00:00:01=192.168.2.20"];
    let expected = [format!("2 {}", rows[1]), "3 - 52:54:00:00:00:02".to_owned()];
    for text in [
        "name,mac,address\nrack1-a,52:54:00:00:00:01,192.168.2.20\n,52-54-00-00-00-02,\n",
        "MAC;IP;Hostname\n525400000001;192.168.2.20;rack1-a\n52:54:00:00:00:02;;\n",
        "\u{feff}\"mac\"\t\"name\"\t\"serial\"\t\"address\"\r\n52:54:00:00:00:01\track1-a\tX\t192.168.2.20\r\n52:54:00:00:00:02\t\tY\t\r\n",
    ] {
        assert_eq!(entries(text, Format::Csv), expected, "{text}");
    }
    let two =
        "mac,name,address\n52:54:00:00:00:01 52:54:00:00:00:02,a,192.168.2.20\n\n52:54:00:00:00:03,a,\n";
    assert_eq!(
        entries(two, Format::Csv),
        ["2 a 52:54:00:00:00:01=192.168.2.20 52:54:00:00:00:02 52:54:00:00:00:03"]
    );
}

#[test]
fn a_bad_row_is_told_with_its_line() {
    for (text, says) in [
        ("mac\n52:54:00:00:00:01\n52:54:00:00:00:zz\n", "line 3: `52:54:00:00:00:zz` is not a MAC address"),
        ("mac,name\n52:54:00:00:00:01,a_b\n", "line 2: `a_b` is not a node name"),
        ("mac,address\n52:54:00:00:00:01,10.0.0\n", "line 2: `10.0.0` is not an IPv4 address"),
        (
            "mac\n52:54:00:00:00:01\n\n52:54:00:00:00:01\n",
            "line 4: 52:54:00:00:00:01 stands in line 2 already",
        ),
        (
            "mac,ip\n52:54:00:00:00:01,10.0.0.1\n52:54:00:00:00:02,10.0.0.1\n",
            "line 3: 10.0.0.1 is given in line 2",
        ),
        ("mac\n01:00:5e:00:00:01\n", "line 2: 01:00:5e:00:00:01 is a group address"),
        ("mac,name\n,a\n", "line 2: no MAC address"),
        ("address\n10.0.0.1\n", "line 1: the first line names the columns"),
        ("mac\n", "there is no node in it"),
    ] {
        let told = refused(text, Format::Csv);
        assert!(told.starts_with(says), "{text:?}: {told}");
    }
    let told = parse(b"mac\n\xff\xfe\n", None).expect_err("not text").to_string();
    assert!(told.starts_with("line 2: this is not UTF-8"), "{told}");
    assert!(parse(b"hello\n", None).expect_err("nothing of ours").to_string().contains("name the format"));
}

#[test]
fn dnsmasq_hosts_among_other_options() {
    let text = "# rack\ninterface=ooodemo\ndhcp-range=192.168.2.50,192.168.2.99,12h\n\
        dhcp-host=52:54:00:00:00:01,192.168.2.20,Node-A,infinite # first\n\
        dhcp-host=52:54:00:00:00:02,52:54:00:00:00:03,192.168.2.21,b,45m\n\
        dhcp-host=id:01:52:54:00:00:00:04,192.168.2.22\ndhcp-host=52:54:00:00:00:05,ignore\n\
        dhcp-host=11:22:33:*:*:*,set:known\n  dhcp-host = 52:54:00:00:00:06 , set:red, [fd00::6]\n";
    assert_eq!(
        entries(text, Format::Dnsmasq),
        [
            "4 node-a 52:54:00:00:00:01=192.168.2.20",
            "5 b 52:54:00:00:00:02=192.168.2.21 52:54:00:00:00:03",
            "9 - 52:54:00:00:00:06",
        ]
    );
    let notes = notes(text);
    for wanted in [
        "4 Node-A is called node-a",
        "5 its address is kept for the first",
        "6 left out",
        "7 left out",
        "8 left out",
    ] {
        assert!(notes.iter().any(|note| note.starts_with(wanted)), "{wanted} in {notes:#?}");
    }
    assert!(refused("dhcp-host=52:54:00:00:00:01,x_y\n", Format::Dnsmasq).starts_with("line 1: `x_y`"));
}

#[test]
fn isc_host_blocks_at_any_depth() {
    let text = "option domain-name \"x\"; # not a host { }\nsubnet 192.168.2.0 netmask 255.255.255.0 {\n  group {\n    \
        host a { hardware ethernet 52:54:00:00:00:01; fixed-address 192.168.2.20, 192.168.2.21; }\n    host b.example.org {\n      \
        hardware ethernet 52:54:00:00:00:02;\n      filename \"pxelinux.0\";\n      if known { deny booting; }\n    }\n  }\n}\n\
        host c { option host-name \"cee\"; hardware ethernet 52:54:00:00:00:03; }\nhost d { fixed-address 192.168.2.9; }\n";
    assert_eq!(
        entries(text, Format::Dhcpd),
        ["4 a 52:54:00:00:00:01=192.168.2.20", "5 b 52:54:00:00:00:02", "12 cee 52:54:00:00:00:03",]
    );
    let notes = notes(text);
    assert!(notes.iter().any(|note| note.starts_with("7 filename: not taken over")), "{notes:#?}");
    assert!(notes.iter().any(|note| note.starts_with("13 host d: left out")), "{notes:#?}");
    for (text, says) in [
        ("host a { hardware ethernet 52:54; }", "line 1: `52:54` is not a MAC"),
        (
            "host a {\n hardware ethernet 52:54:00:00:00:01;\n fixed-address web.example.org;\n}",
            "line 3: `web.example.org` is not an IPv4",
        ),
        ("host a { hardware ethernet 52:54:00:00:00:01;", "line 1: host a: its block is not closed"),
        ("host \"a", "line 1: a string begins here"),
        ("host a {\nhardware token-ring 1; }", "line 2: hardware token-ring: only ethernet"),
    ] {
        let told = refused(text, Format::Dhcpd);
        assert!(told.starts_with(says), "{text:?}: {told}");
    }
}

#[test]
fn kea_reservations_with_its_comments() {
    let text = "// the rack\n{ \"Dhcp4\": {\n\t\"interfaces-config\": { \"interfaces\": [ \"br0\" ], },\n  # global\n  \
        \"reservations\": [ { \"hw-address\": \"52:54:00:00:00:01\", \"hostname\": \"a\" } ],\n  \"subnet4\": [ { \"subnet\": \"192.168.2.0/24\",\n    \
        \"reservations\": [\n      { /* two\n      lines */ \"hw-address\": \"52:54:00:00:00:02\", \"ip-address\": \"192.168.2.20\" },\n      \
        { \"client-id\": \"01:02\", \"ip-address\": \"192.168.2.21\" },\n    ] } ],\n  \"shared-networks\": [ { \"name\": \"//x\", \"subnet4\": [\n    \
        { \"reservations\": [ { \"hw-address\": \"52:54:00:00:00:03\" } ] } ] } ]\n} }\n";
    assert_eq!(
        entries(text, Format::Kea),
        ["5 a 52:54:00:00:00:01", "8 - 52:54:00:00:00:02=192.168.2.20", "13 - 52:54:00:00:00:03"]
    );
    assert!(notes(text).iter().any(|note| note.starts_with("10 left out: it names no hw-address")));
    let bad = text.replace("52:54:00:00:00:03", "52:54");
    assert!(refused(&bad, Format::Kea).starts_with("line 13: `52:54` is not a MAC"));
    assert!(refused("{ \"Dhcp4\": { \"reservations\": 7 } }", Format::Kea).starts_with("line 1: "));
}

#[test]
fn tripleo_and_our_own_json() {
    let text = "{\n  \"nodes\": [\n    { \"name\": \"a\", \"mac\": [ \"52:54:00:00:00:01\", \"52:54:00:00:00:02\" ],\n      \
        \"pm_type\": \"ipmi\", \"pm_addr\": \"10.0.0.9\", \"pm_password\": \"secret\", \"cpu\": \"4\" },\n    \
        { \"pm_type\": \"ipmi\", \"ports\": [ { \"address\": \"52:54:00:00:00:03\", \"physical_network\": \"p\" } ] }\n  ]\n}\n";
    assert_eq!(
        entries(text, Format::Instackenv),
        ["3 a 52:54:00:00:00:01 52:54:00:00:00:02", "5 - 52:54:00:00:00:03"]
    );
    assert!(notes(text).iter().all(|note| !note.contains("secret")));
    assert_eq!(notes(text).len(), 1);
    let ours = "[\n {\"name\": \"a\", \"ports\": [{\"mac\": \"52:54:00:00:00:01\", \"address\": \"192.168.2.20\"}]},\n \
        {\"ports\": [{\"mac\": \"52:54:00:00:00:02\"}]}\n]\n";
    assert_eq!(entries(ours, Format::Json), ["2 a 52:54:00:00:00:01=192.168.2.20", "3 - 52:54:00:00:00:02"]);
    // What it holds at the moment is no wish.
    let answer = "{\"items\": [{\"id\": \"x\", \"name\": null, \"ports\": [{\"mac\": \"52:54:00:00:00:01\", \"reserved\": null, \"address\": \"192.168.2.50\"}]}]}";
    assert_eq!(entries(answer, Format::Json), ["1 - 52:54:00:00:00:01"]);
    assert!(refused("[\n{\"name\": \"a\"}\n]", Format::Json).starts_with("line 2: "));
}

#[test]
fn tinkerbell_hardware() {
    let text = "apiVersion: tinkerbell.org/v1alpha1\nkind: Hardware\nmetadata:\n  name: a\nspec:\n  interfaces:\n    - dhcp:\n        \
        mac: \"52:54:00:00:00:01\"\n        hostname: a\n        ip:\n          address: 192.168.2.20\n          netmask: 255.255.255.0\n      \
        netboot:\n        allowPXE: true\n---\nkind: Machine\nspec: {}\n---\nkind: Hardware\nmetadata: { name: b }\nspec:\n  interfaces: [ { dhcp: { mac: 52:54:00:00:00:02 } } ]\n";
    assert_eq!(
        entries(text, Format::Tinkerbell),
        ["6 a 52:54:00:00:00:01=192.168.2.20", "22 b 52:54:00:00:00:02"]
    );
    assert!(refused(&text.replace("192.168.2.20", "x"), Format::Tinkerbell).starts_with("line "));
}

#[test]
fn alias_bombs_and_depth_are_refused_in_no_time() {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let inner = vec![format!("*a{}", level - 1); 10].join(", ");
        bomb.push_str(&format!("a{level}: &a{level} [{inner}]\n"));
    }
    bomb.push_str("kind: Hardware\n");
    assert!(parse(bomb.as_bytes(), Some(Format::Tinkerbell)).is_err());
    let deep = "[".repeat(200_000);
    for format in [Format::Json, Format::Kea, Format::Tinkerbell, Format::Instackenv] {
        assert!(parse(deep.as_bytes(), Some(format)).is_err(), "{format}");
    }
}

fn entry(name: Option<&str>, ports: &[(u8, Option<u8>)]) -> RosterEntry {
    let port = |(mac, address): &(u8, Option<u8>)| RosterPort {
        mac: MacAddr([0x52, 0x54, 0, 0, 0, *mac]),
        address: address.map(|last| Ipv4Addr::new(192, 168, 2, last)),
    };
    let name = name.map(|name| name.parse().expect("a name"));
    RosterEntry { line: 0, name, ports: ports.iter().map(port).collect(), labels: Default::default() }
}

#[test]
fn what_is_written_reads_back_the_same() {
    let written = [
        entry(Some("rack1-a"), &[(1, Some(20)), (2, None)]),
        entry(Some("b"), &[(3, Some(21))]),
        entry(None, &[(4, None)]),
    ];
    for format in Format::ALL {
        let text = emit(&written, format);
        let roster = parse(text.as_bytes(), None).unwrap_or_else(|error| panic!("{format}: {error}\n{text}"));
        assert_eq!(roster.format, format, "{text}");
        let read: Vec<_> = roster.entries.into_iter().map(|read| RosterEntry { line: 0, ..read }).collect();
        let mut expected = written.to_vec();
        match format {
            // These two want every host called something.
            Format::Tinkerbell | Format::Dhcpd => {
                expected[2].name = Some("node-52-54-00-00-00-04".parse().expect("a name"));
            }
            // It knows no addresses.
            Format::Instackenv => {
                expected.iter_mut().flat_map(|entry| &mut entry.ports).for_each(|port| port.address = None);
            }
            Format::Csv | Format::Json | Format::Dnsmasq | Format::Kea => {}
        }
        assert_eq!(read, expected, "{format}: {text}");
    }
}

proptest! {
    #[test]
    fn no_text_makes_a_reader_panic(text in "[ -~\n\t{}\\[\\]\",:;#/*=\\\\é\u{202e}]{0,300}") {
        for format in Format::ALL {
            let _ = parse(text.as_bytes(), Some(format));
        }
    }

    #[test]
    fn blanking_keeps_every_place(text in "[a\n\t\",/*#{}\\[\\]\\\\é]{0,200}") {
        let plain = document::plain_json(&text);
        prop_assert_eq!(plain.chars().count(), text.chars().count());
        let lines = |text: &str| text.chars().enumerate().filter(|(_, c)| *c == '\n').map(|(at, _)| at).collect::<Vec<_>>();
        prop_assert_eq!(lines(&plain), lines(&text));
    }
}
