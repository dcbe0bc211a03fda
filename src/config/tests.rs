use std::path::Path;
use std::time::Duration;

use super::*;

const SHOWN: &str = include_str!("../../config/farrier.toml");
const MINIMAL: &str = "[network]\nbridge = \"br-deploy\"\naddress = \"192.168.2.2/24\"\n";

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("farrier.toml"))
}

/// `config/farrier.toml` with every default it shows made active.
fn shown_defaults() -> String {
    SHOWN
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase()) => rest,
            _ => line,
        })
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn the_shown_file_shows_the_defaults() {
    assert_eq!(parse(&shown_defaults()), parse(MINIMAL));
    let config = parse(MINIMAL).unwrap();
    assert_eq!(config.dhcp.pool.to_string(), "192.168.2.128-192.168.2.254");
    assert_eq!(config.dhcp.lease, Duration::from_secs(12 * 3600));
    assert_eq!(config.boot.call_deadline, Duration::from_secs(300));
    assert!(config.dhcp.authoritative);
}

#[test]
fn the_shown_examples_are_accepted() {
    let text: Vec<&str> = SHOWN.lines().map(|line| line.strip_prefix("# e.g. ").unwrap_or(line)).collect();
    let text = text.join("\n").replace("#bridge", "bridge").replace("#address", "address");
    let config = parse(&text).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.dhcp.reservations.len(), 1);
    assert_eq!(config.boot.kernel_arguments.len(), 1);
    assert_eq!(config.boot.loaders.len(), 1);
    assert!(config.network.gateway.is_some());
}

#[test]
fn the_shown_file_names_every_key() {
    let sections = [
        ("", "[nonsense]"),
        ("network", "[network]\nnonsense = 1"),
        ("dhcp", "[dhcp]\nnonsense = 1"),
        ("dhcp.strangers", "[dhcp.strangers]\nnonsense = 1"),
        ("reservation", "[[dhcp.reservation]]\nnonsense = 1"),
        ("operator", "[operator]\nnonsense = 1"),
        ("operator.tls", "[operator.tls]\nnonsense = 1"),
        ("store", "[store]\nnonsense = 1"),
        ("boot", "[boot]\nnonsense = 1"),
        ("metadata", "[metadata]\nnonsense = 1"),
        ("installer", "[installer]\nnonsense = 1"),
        ("process", "[process]\nnonsense = 1"),
    ];
    for (section, text) in sections {
        let error = toml::from_str::<file::FileConfig>(text).unwrap_err();
        let keys = file::expected_keys(error.message()).unwrap_or_else(|| panic!("{section}: {error}"));
        assert!(!keys.is_empty());
        for key in keys {
            let shown = SHOWN.lines().any(|line| {
                let line = line.trim_start_matches('#').trim_start().trim_start_matches("e.g. ");
                line.starts_with(&format!("{key} = "))
                    || line == format!("[{key}]")
                    || line == format!("[{section}.{key}]")
                    || line == format!("[[{section}.{key}]]")
            });
            assert!(shown, "config/farrier.toml does not show {section}.{key}");
        }
    }
}

/// One mistake: the file's text after the two required keys, and what the message must say.
struct Mistake {
    text: &'static str,
    key: &'static str,
    value: &'static str,
    line: u32,
    rule: &'static str,
    way_out: &'static str,
}

fn mistake(
    text: &'static str,
    (line, key, value): (u32, &'static str, &'static str),
    rule: &'static str,
    way_out: &'static str,
) -> Mistake {
    Mistake { text, key, value, line, rule, way_out }
}

fn assert_refused(full: &str, mistake: &Mistake) {
    let error = parse(full).expect_err(full);
    assert_eq!((error.key.as_str(), error.value.as_str()), (mistake.key, mistake.value), "{error}");
    assert_eq!(error.line, Some(mistake.line).filter(|line| *line > 0), "{error}");
    assert!(error.rule.contains(mistake.rule), "{error}");
    assert!(error.way_out.contains(mistake.way_out), "{error}");
    let told = error.to_string();
    for part in [mistake.key, mistake.value, mistake.rule, mistake.way_out] {
        assert!(told.contains(part), "{told}");
    }
}

#[test]
fn each_mistake_in_network_names_key_value_rule_and_way_out() {
    let at = |key, value| (2, key, value);
    let mistakes = [
        mistake(
            "[network]\naddress = \"10.0.0.1/8\"",
            (1, "network.bridge", ""),
            "no default",
            "ip link show",
        ),
        mistake("[network]\nbridge = \"br 0\"", at("network.bridge", "\"br 0\""), "printable", "ip link"),
        mistake(
            "[network]\nbridge = \"a-very-long-bridge-name\"",
            at("network.bridge", "\"a-very-long-bridge-name\""),
            "1 to 15",
            "ip link",
        ),
        mistake(
            "[network]\nbridge = 5",
            at("network.bridge", "5"),
            "expected a string",
            "config/farrier.toml",
        ),
        mistake("[network]\nbridge = \"b\"", (1, "network.address", ""), "must be given", "192.168.2.2/24"),
    ];
    for mistake in &mistakes {
        assert_refused(mistake.text, mistake);
    }
    let addresses = [
        ("192.168.2.2", "prefix length"),
        ("fd00::1/64", "IPv4"),
        ("192.168.2.2/31", "between 8 and 30"),
        ("192.168.2.0/24", "network address"),
        ("192.168.2.255/24", "broadcast address"),
        ("224.0.0.5/24", "unicast"),
        ("127.0.0.1/8", "unicast"),
    ];
    for (address, rule) in addresses {
        let error = parse(&format!("[network]\nbridge = \"b\"\naddress = \"{address}\"")).unwrap_err();
        assert_eq!((error.key.as_str(), error.line), ("network.address", Some(3)));
        assert_eq!(error.value, format!("\"{address}\""));
        assert!(error.rule.contains(rule), "{error}");
        assert!(error.way_out.contains("192.168.2.2/24"), "{error}");
    }
}

#[test]
fn each_other_mistake_names_key_value_rule_and_way_out() {
    // MINIMAL has three lines; the text below starts at line 4.
    let mistakes = [
        mistake("brigde = \"b\"", (4, "network.brigde", "\"b\""), "only known keys", "`bridge`"),
        mistake("[dchp]\nlease = \"1h\"", (4, "dchp", "(a section)"), "only known keys", "`dhcp`"),
        mistake("[dhcp]\nleese = \"1h\"", (5, "dhcp.leese", "\"1h\""), "pool, lease, unknown", "`lease`"),
        mistake("[dhcp]\ncolour = 1", (5, "dhcp.colour", "1"), "only known keys", "remove the key"),
        mistake("[[dhcp.reservation]]\nmak = \"x\"", (5, "dhcp.reservation[0].mak", "\"x\""), "mac", "`mac`"),
        mistake(
            "gateway = \"192.168.3.1\"",
            (4, "network.gateway", "\"192.168.3.1\""),
            "192.168.2.0/24",
            "leave",
        ),
        mistake(
            "gateway = \"192.168.2.255\"",
            (4, "network.gateway", "\"192.168.2.255\""),
            "no host",
            "leave",
        ),
        mistake("dns = [\"x\"]", (4, "network.dns[0]", "\"x\""), "IPv4 host address", "[]"),
        mistake(
            "dns = \"192.168.2.1\"",
            (4, "network.dns", "\"192.168.2.1\""),
            "expected a sequence",
            "kind of value",
        ),
        mistake(
            "[dhcp]\npool = \"192.168.3.10-192.168.3.20\"",
            (5, "dhcp.pool", "\"192.168.3.10-192.168.3.20\""),
            "in the subnet of network.address, 192.168.2.0/24; 192.168.3.10 does not",
            "192.168.2.128-192.168.2.254",
        ),
        mistake("[dhcp]\npool = \"all\"", (5, "dhcp.pool", "\"all\""), "hyphen", "192.168.2.128"),
        mistake(
            "[dhcp]\npool = \"192.168.2.20-192.168.2.10\"",
            (5, "dhcp.pool", "\"192.168.2.20-192.168.2.10\""),
            "before",
            "192.168.2.128",
        ),
        mistake(
            "[dhcp]\npool = \"192.168.2.1-192.168.2.9\"",
            (5, "dhcp.pool", "\"192.168.2.1-192.168.2.9\""),
            "our own address, 192.168.2.2",
            "192.168.2.128",
        ),
        mistake(
            "gateway = \"192.168.2.9\"\n[dhcp]\npool = \"192.168.2.3-192.168.2.9\"",
            (6, "dhcp.pool", "\"192.168.2.3-192.168.2.9\""),
            "the gateway, 192.168.2.9",
            "192.168.2.128",
        ),
        mistake(
            "[dhcp]\npool = \"192.168.2.9-192.168.2.255\"",
            (5, "dhcp.pool", "\"192.168.2.9-192.168.2.255\""),
            "broadcast",
            "192.168.2.128",
        ),
        mistake("[dhcp]\nlease = \"59s\"", (5, "dhcp.lease", "\"59s\""), "from 60s to 365d", "\"12h\""),
        mistake("[dhcp]\nlease = \"-1h\"", (5, "dhcp.lease", "\"-1h\""), "not negative", "\"12h\""),
        mistake(
            "[dhcp]\nlease = \"99999999999999999999h\"",
            (5, "dhcp.lease", "\"99999999999999999999h\""),
            "too large",
            "\"12h\"",
        ),
        mistake("[dhcp]\nlease = \"soon\"", (5, "dhcp.lease", "\"soon\""), "unit", "\"12h\""),
        mistake("[dhcp]\nlease = 3600", (5, "dhcp.lease", "3600"), "expected a string", "kind of value"),
        mistake("[dhcp]\nunknown = \"enrol\"", (5, "dhcp.unknown", "\"enrol\""), "\"approve\"", "\"enroll\""),
        mistake("[dhcp]\nidentity = \"uuid\"", (5, "dhcp.identity", "\"uuid\""), "\"client-id\"", "\"mac\""),
        mistake(
            "[operator]\nlisten = \"0.0.0.0:8067\"",
            (5, "operator.listen", "\"0.0.0.0:8067\""),
            "would include the bridge",
            "127.0.0.1:8067",
        ),
        mistake(
            "[operator]\nlisten = \"10.0.0.5:8067\"",
            (5, "operator.listen", "\"10.0.0.5:8067\""),
            "takes TLS",
            "self_signed = true",
        ),
        mistake(
            "[operator]\nlisten = \"192.168.2.2:8067\"\n[operator.tls]\nself_signed = true",
            (5, "operator.listen", "\"192.168.2.2:8067\""),
            "not served on the bridge",
            "another interface",
        ),
        mistake(
            "[operator]\nlisten = \"[::ffff:0.0.0.0]:8067\"",
            (5, "operator.listen", "\"[::ffff:0.0.0.0]:8067\""),
            "would include the bridge",
            "127.0.0.1:8067",
        ),
        mistake("[operator]\nlisten = \"8067\"", (5, "operator.listen", "\"8067\""), "a port", "\"off\""),
        mistake("[operator]\ngroup = \"a b\"", (5, "operator.group", "\"a b\""), "a group", "/etc/group"),
        mistake(
            "[operator]\nnames = [\"a\", \"http://b\"]",
            (5, "operator.names[1]", "\"http://b\""),
            "without port or scheme",
            "boot.example.org",
        ),
        mistake(
            "[operator.tls]\nself_signed = true\nkey = \"/k\"",
            (5, "operator.tls.self_signed", "true"),
            "either",
            "self_signed = true",
        ),
        mistake(
            "[operator]\nsocket = \"f.sock\"",
            (5, "operator.socket", "\"f.sock\""),
            "absolute",
            "/run/farrier",
        ),
        mistake("[store]\npath = \"state\"", (5, "store.path", "\"state\""), "absolute", "/var/lib/farrier"),
        mistake("[boot]\nprofile = \"../x\"", (5, "boot.profile", "\"../x\""), "lower-case", "\"metal\""),
        mistake(
            "[installer]\nmirror = \"https://deb.debian.org/debian\"",
            (5, "installer.mirror", "\"https://deb.debian.org/debian\""),
            "by http",
            "http://deb.debian.org/debian",
        ),
        mistake(
            "[installer]\ntime_zone = \"Europe/Berlin; id\"",
            (5, "installer.time_zone", "\"Europe/Berlin; id\""),
            "letters, digits",
            "Europe/Berlin",
        ),
        mistake(
            "[boot]\ncall_deadline = \"1s\"",
            (5, "boot.call_deadline", "\"1s\""),
            "from 30s to 1d",
            "\"5m\"",
        ),
        mistake(
            "[boot]\nkernel_arguments = [\"quiet\", \"a b\"]",
            (5, "boot.kernel_arguments[1]", "\"a b\""),
            "one word",
            "word of its own",
        ),
        mistake(
            "[boot]\nkernel_arguments = [\"farrier.token=x\"]",
            (5, "boot.kernel_arguments[0]", "\"farrier.token=x\""),
            "appliance's own",
            "remove",
        ),
        mistake(
            "[boot.loaders]\nuefi-x46 = \"ipxe.efi\"",
            (5, "boot.loaders.uefi-x46", "\"ipxe.efi\""),
            "uefi-arm64",
            "`uefi-x64`",
        ),
        mistake(
            "[boot.loaders]\nbios = \"undionly.kpx\"",
            (5, "boot.loaders.bios", "\"undionly.kpx\""),
            "known boot loader",
            "undionly.kpxe",
        ),
        mistake("dns = [", (4, "(the file's syntax)", "dns = ["), "TOML", "correct the line"),
        mistake("bridge = \"c\"", (4, "(the file's syntax)", "bridge = \"c\""), "TOML", "each key once"),
    ];
    for mistake in &mistakes {
        assert_refused(&format!("{MINIMAL}{}", mistake.text), mistake);
    }
}

#[test]
fn reservations_never_overlap() {
    let table = |mac: &str, address: &str| {
        format!("[[dhcp.reservation]]\nmac = \"{mac}\"\naddress = \"{address}\"\n")
    };
    let first = table("52:54:00:00:00:01", "192.168.2.20");
    let refused = [
        (table("52:54:00:00:00:02", "192.168.2.20"), "address", "dhcp.reservation[0] reserves it too"),
        (table("52-54-00-00-00-01", "192.168.2.21"), "mac", "dhcp.reservation[0] has the same MAC"),
        (table("52:54:00:00:00:02", "192.168.2.2"), "address", "our own address"),
        (table("52:54:00:00:00:02", "192.168.2.1"), "address", "the gateway"),
        (table("52:54:00:00:00:02", "192.168.9.1"), "address", "subnet of network.address"),
        (table("52:54:00:00:00:02", "192.168.2.0"), "address", "no host"),
        (table("52:54:00:00:00:02", "x"), "address", "an IPv4 address is wanted"),
        (table("01:00:5e:00:00:02", "192.168.2.30"), "mac", "not multicast"),
        (table("52:54", "192.168.2.30"), "mac", "six bytes"),
        (format!("{}name = \"Rack 1\"", table("52:54:00:00:00:02", "192.168.2.30")), "name", "lower-case"),
        ("[[dhcp.reservation]]\naddress = \"192.168.2.30\"".to_owned(), "mac", "names the MAC"),
        ("[[dhcp.reservation]]\nmac = \"52:54:00:00:00:02\"".to_owned(), "address", "names the address"),
    ];
    for (second, field, rule) in refused {
        let error =
            parse(&format!("{MINIMAL}gateway = \"192.168.2.1\"\n{first}{second}")).expect_err(&second);
        assert_eq!(error.key, format!("dhcp.reservation[1].{field}"), "{error}");
        assert!(error.rule.contains(rule), "{error}");
        assert!(error.line.is_some_and(|line| line >= 8), "{error}");
    }
    let both = format!("{MINIMAL}{first}{}", table("52:54:00:00:00:02", "192.168.2.130"));
    assert_eq!(parse(&both).unwrap().dhcp.reservations.len(), 2);
}

#[test]
fn the_default_pool_avoids_us_and_the_gateway() {
    let pool = |address: &str, gateway: &str| {
        let text = format!("[network]\nbridge = \"b\"\naddress = \"{address}\"\n{gateway}");
        parse(&text).map(|config| config.dhcp.pool.to_string()).map_err(|error| error.key)
    };
    assert_eq!(pool("192.168.2.254/24", "").unwrap(), "192.168.2.128-192.168.2.253");
    assert_eq!(
        pool("192.168.2.200/24", "gateway = \"192.168.2.254\"").unwrap(),
        "192.168.2.128-192.168.2.199"
    );
    assert_eq!(pool("10.0.0.1/8", "").unwrap(), "10.128.0.0-10.128.255.255");
    assert_eq!(pool("10.0.0.1/30", "").unwrap(), "10.0.0.2-10.0.0.2");
    assert_eq!(pool("10.0.0.2/30", "").unwrap_err(), "dhcp.pool");
}

#[test]
fn a_file_that_cannot_be_read_is_refused_by_name() {
    let error = Config::load(Path::new("/nonexistent/farrier.toml")).unwrap_err();
    assert!(error.to_string().starts_with("/nonexistent/farrier.toml: "), "{error}");
    assert!(error.value.contains("No such file"), "{error}");
}

#[test]
fn what_needs_a_restart_is_named() {
    let old = parse(MINIMAL).unwrap();
    let mut new = old.clone();
    new.dhcp.lease = Duration::from_secs(600);
    assert!(old.fixed_at_start(&new).is_empty());
    new.store.path = "/srv/farrier".into();
    assert_eq!(old.fixed_at_start(&new), ["store.path"]);
}
