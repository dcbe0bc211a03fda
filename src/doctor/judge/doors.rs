//! The ports we serve, and who else has them.

use crate::doctor::facts::{Door, DoorState, Facts, Holder};
use crate::doctor::{Check, Finding, Mend};

const WHY: &str = "farrier does not start while another program has the port on all devices or on the bridge";

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let findings: Vec<Finding> =
        facts.doors.iter().filter_map(|door| finding(door, &facts.wanted.bridge)).collect();
    if !findings.is_empty() {
        return findings;
    }
    let ours = facts.doors.iter().find_map(|door| match &door.state {
        DoorState::Taken(holders) => holders.iter().find(|holder| is_farrier(holder)),
        DoorState::Free | DoorState::Refused(_) | DoorState::NotTried => None,
    });
    let names: Vec<String> =
        facts.doors.iter().map(|door| format!("{} {}", door.protocol, door.port)).collect();
    let names = names.join(", ");
    let what = match ours {
        Some(holder) => format!("farrier serves {names} (process {})", holder.pid),
        None if facts.doors.iter().all(|door| door.state == DoorState::NotTried) => {
            "not tried without the bridge".to_owned()
        }
        None => format!("free: {names}"),
    };
    vec![Finding::ok(Check::Sockets, &facts.wanted.bridge, what)]
}

fn is_farrier(holder: &Holder) -> bool {
    holder.program == "farrier"
}

fn finding(door: &Door, bridge: &str) -> Option<Finding> {
    let name = format!("{} {}", door.protocol, door.port);
    match &door.state {
        DoorState::Free | DoorState::NotTried => None,
        DoorState::Taken(holders) if holders.iter().any(is_farrier) => None,
        DoorState::Taken(holders) => {
            let who: Vec<String> = holders.iter().map(described).collect();
            let who = if who.is_empty() {
                "a program we may not see (try as root)".to_owned()
            } else {
                who.join(", ")
            };
            let what = format!("{} ({name}) is taken by {who}", door.service);
            let mends: Vec<Mend> = match holders.as_slice() {
                [] => vec![Mend::advice(format!(
                    "as root, `ss -lnp 'sport = :{}'` tells whose it is: stop that, or keep it off {bridge}",
                    door.port
                ))],
                holders => holders.iter().flat_map(|holder| way_out(holder, bridge)).collect(),
            };
            Some(Finding::would_not_boot(Check::Sockets, &name, what, WHY).mended_by(mends))
        }
        DoorState::Refused(error) => {
            let what = format!("{} ({name}) cannot be opened: {error}", door.service);
            let why = "farrier does not start without its ports";
            let advice = "run it as root, or by the systemd unit, which gives the right to open it";
            Some(Finding::would_not_boot(Check::Sockets, &name, what, why).mended_by([Mend::advice(advice)]))
        }
    }
}

fn described(holder: &Holder) -> String {
    let Holder { pid, program, .. } = holder;
    match configuration(holder) {
        Some(file) => format!("{program} (process {pid}, configured by {file})"),
        None => format!("{program} (process {pid})"),
    }
}

/// The file a program was told to read, or reads when told nothing.
fn configuration(holder: &Holder) -> Option<String> {
    /// How DHCP, TFTP and web servers are told: `--conf-file=X`, `-C X`, `-c X`, `-cf X`.
    const FLAGS: [&str; 6] = ["--conf-file", "--config", "--config-file", "-C", "-c", "-cf"];
    const USUAL: [(&str, &str); 9] = [
        ("dnsmasq", "/etc/dnsmasq.conf"),
        ("dhcpd", "/etc/dhcp/dhcpd.conf"),
        ("kea-dhcp4", "/etc/kea/kea-dhcp4.conf"),
        ("in.tftpd", "/etc/default/tftpd-hpa"),
        ("atftpd", "/etc/default/atftpd"),
        ("nginx", "/etc/nginx/nginx.conf"),
        ("apache2", "/etc/apache2/apache2.conf"),
        ("httpd", "/etc/httpd/conf/httpd.conf"),
        ("lighttpd", "/etc/lighttpd/lighttpd.conf"),
    ];
    let mut arguments = holder.arguments.iter().skip(1).map(String::as_str);
    while let Some(word) = arguments.next() {
        if FLAGS.contains(&word) {
            return arguments.next().map(str::to_owned);
        }
        let told = FLAGS.iter().filter(|flag| flag.starts_with("--"));
        if let Some(file) = told.filter_map(|flag| word.strip_prefix(flag)?.strip_prefix('=')).next() {
            return Some(file.to_owned());
        }
    }
    USUAL.iter().find(|(program, _)| *program == holder.program).map(|(_, file)| (*file).to_owned())
}

/// Another program is its owner's to stop.
fn way_out(holder: &Holder, bridge: &str) -> Vec<Mend> {
    let mut mends = Vec::new();
    if holder.program == "dnsmasq" {
        let file = configuration(holder).unwrap_or_default();
        mends.push(Mend::advice(format!(
            "keep it off the bridge: except-interface={bridge} and bind-dynamic in {file}"
        )));
    }
    match &holder.unit {
        Some(unit) => mends.push(Mend::command(&["systemctl", "disable", "--now", unit])),
        None => mends.push(Mend::command(&["kill", &holder.pid.to_string()])),
    }
    mends
}
