//! The acceptance checks of the wire, each a test with its number in its name; `INDEX.md` lists them all. `ground.rs` tells how
//! they share an appliance.
//!
//! And: real firmware on the wire, replayed through the DHCP core; what it answers is checked in as text.
//!
//! `captures/*.pcap` were taken from OVMF, iPXE, udhcpc and dhclient talking to dnsmasq. Each capture has two
//! transcripts. `*.captured.txt` feeds the packets as they are: these clients speak to another server, on another
//! network, and that is mostly answered with silence or NAK. `*.ours.txt` is the conversation they would have had
//! with us: the server identifier, and each address the other server gave out, replaced by what we answered.
//!
//! `UPDATE=1 cargo test --test conformance` rewrites the transcripts; review the diff.

mod browse;
mod capture;
mod dhcp;
mod dhcp_leases;
mod dhcp_replies;
mod ground;
mod http;
mod index;
mod leases;
mod pxe;
mod quirks;
mod reliability;
mod security;
mod station;
#[path = "../it/support.rs"]
#[expect(dead_code, reason = "shared with the other black-box tests, which use more of it")]
mod support;
mod tftp;
mod transcript;

use std::fs;
use std::path::{Path, PathBuf};

use capture::Datagram;
use transcript::{Conversation, replay};

fn captures() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance/captures");
    let mut paths: Vec<PathBuf> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "pcap"))
        .collect();
    paths.sort();
    assert_eq!(paths.len(), 2, "both captures are there");
    paths
}

fn client_datagrams(path: &Path) -> Vec<Datagram> {
    let datagrams = capture::client_datagrams(&fs::read(path).unwrap());
    assert!(!datagrams.is_empty(), "{}", path.display());
    datagrams
}

fn check(path: &Path, actual: &str) {
    if std::env::var_os("UPDATE").is_some() {
        fs::write(path, actual).unwrap();
        return;
    }
    let expected = fs::read_to_string(path).unwrap_or_default();
    for (number, (expected, actual)) in expected.lines().zip(actual.lines()).enumerate() {
        assert_eq!(expected, actual, "{}:{}; UPDATE=1 rewrites it", path.display(), number + 1);
    }
    assert_eq!(expected.lines().count(), actual.lines().count(), "{}", path.display());
}

#[test]
fn captured_clients_are_answered_as_recorded() {
    for path in captures() {
        let datagrams = client_datagrams(&path);
        check(&path.with_extension("captured.txt"), &replay(&datagrams, Conversation::AsCaptured));
        check(&path.with_extension("ours.txt"), &replay(&datagrams, Conversation::WithUs));
    }
}

#[test]
fn a_packet_cut_off_anywhere_is_survived_and_below_the_fixed_part_ignored() {
    for path in captures() {
        for datagram in client_datagrams(&path) {
            for len in 0..datagram.payload.len() {
                transcript::survives_cut(&datagram, len);
            }
        }
    }
}

#[test]
fn a_packet_with_any_one_byte_wrong_is_survived() {
    for path in captures() {
        for datagram in client_datagrams(&path) {
            for offset in 0..datagram.payload.len() {
                for value in [0, 1, 0x7f, 0xff] {
                    transcript::survives_change(&datagram, offset, value);
                }
            }
        }
    }
}
