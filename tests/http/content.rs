//! Who may fetch what, and what is told of it.

use farrier::boot::decision::ScriptPlan;
use farrier::node::registry::NodeRef;
use farrier::node::timeline::{FileOutcome, Happening, Stage, Transport};
use farrier::tftp::{FileSource, NotServed, TransferReport};
use std::net::SocketAddrV4;
use std::time::Duration;

use crate::support::{NODE, NODE_IP, OTHER_IP, Plane, STRANGER_IP};

const SCRIPT: &str = "/boot/52-54-00-00-00-01/script.ipxe";

fn token_of(script: &str) -> Option<&str> {
    script.split_ascii_whitespace().find_map(|word| word.strip_prefix("farrier.token="))
}

#[tokio::test]
async fn a_script_is_rendered_for_its_node_with_a_token_of_its_own_each_time() {
    let plane = Plane::start().await;
    let (first, second) = (plane.get(SCRIPT).await, plane.get(SCRIPT).await);
    assert_eq!(first.header("Cache-Control"), Some("no-store"));
    assert_eq!(first.header("Etag"), None);
    assert!(first.text().contains("farrier.mac=52:54:00:00:00:01 "), "{}", first.text());
    assert!(first.text().contains("quiet console=ttyS0 "), "the image's words, then the configuration's");
    assert_ne!(token_of(&first.text()).unwrap(), token_of(&second.text()).unwrap());
    for path in
        ["/autoexec.ipxe", "/grub/grub.cfg", "/uefi-x64/grub.cfg", "/grub/grub.cfg-01-52-54-00-00-00-01"]
    {
        let answer = plane.get(path).await;
        assert!(token_of(&answer.text()).is_some(), "{path}: {}", answer.text());
    }
}

#[tokio::test]
async fn another_nodes_script_does_not_exist() {
    let plane = Plane::start().await;
    for path in [SCRIPT, "/grub/grub.cfg-01-52-54-00-00-00-01"] {
        assert_eq!(plane.get_from(OTHER_IP, path).await.status, 404, "{path}");
    }
    assert_eq!(plane.tally.value("content", "foreign-mac"), 2);
}

#[tokio::test]
async fn a_machine_nobody_knows_waits_with_its_script_and_may_have_what_is_public() {
    let plane = Plane::start().await;
    let script = plane.get_from(OTHER_IP, "/boot/52-54-00-00-00-02/script.ipxe").await;
    assert!(script.text().contains("waits for approval"), "{}", script.text());
    assert_eq!(token_of(&script.text()), None);
    assert_eq!(plane.get_from(OTHER_IP, "/image/vm/vmlinuz").await.status, 200);
}

#[tokio::test]
async fn an_address_we_never_gave_gets_nothing() {
    let plane = Plane::start().await;
    for path in ["/image/vm/vmlinuz", "/uefi-x64/shimx64.efi", SCRIPT, "/nothing"] {
        assert_eq!(plane.get_from(STRANGER_IP, path).await.status, 403, "{path}");
    }
    assert_eq!(plane.tally.value("content", "unknown-peer"), 4);
}

#[tokio::test]
async fn the_timeline_tells_each_file_with_bytes_and_how_it_ended() {
    let plane = Plane::start().await;
    let mut client = plane.connect().await;
    for (method, path, headers) in [
        ("HEAD", "/uefi-x64/shimx64.efi", ""),
        ("GET", "/uefi-x64/revocations.efi", ""),
        ("GET", SCRIPT, ""),
        ("GET", "/image/vm/vmlinuz", "Range: bytes=0-99\r\n"),
        ("GET", "/image/vm/initrd.img", ""),
    ] {
        client.request(method, path, headers).await;
    }
    plane.file_event("image/vm/initrd.img").await;
    let told: Vec<_> = plane
        .happenings()
        .into_iter()
        .filter_map(|happening| match happening {
            Happening::File { transport: Transport::Http, stage, name, sent, outcome, .. } => {
                Some((stage, name, sent, outcome))
            }
            _ => None,
        })
        .collect();
    let script_bytes = told.iter().find(|(stage, ..)| *stage == Some(Stage::Script)).unwrap().2;
    assert!(script_bytes > 100);
    let named = |name: &str| name.to_owned();
    assert_eq!(
        told,
        [
            (Some(Stage::Loader), named("uefi-x64/shimx64.efi"), 0, FileOutcome::Probe),
            (None, named("uefi-x64/revocations.efi"), 0, FileOutcome::NotFound),
            (Some(Stage::Script), named(&SCRIPT[1..]), script_bytes, FileOutcome::Complete),
            (Some(Stage::Kernel), named("image/vm/vmlinuz"), 100, FileOutcome::Range),
            (Some(Stage::Ramdisk), named("image/vm/initrd.img"), 20_000_000, FileOutcome::Complete),
        ]
    );
    let rendered = |happening: &Happening| matches!(happening, Happening::Script { plan: ScriptPlan::Ramdisk, name, .. } if *name == SCRIPT[1..]);
    assert_eq!(plane.happenings().iter().filter(|happening| rendered(happening)).count(), 1);
}

#[tokio::test]
async fn misses_with_wild_names_are_shown_tame_and_do_not_flood() {
    let plane = Plane::start().await;
    let mut client = plane.connect().await;
    client.request("GET", "/%1b[31mred", "").await;
    client.request("GET", "/caf%c3%a9x", "").await;
    for number in 0..500 {
        client.request("GET", &format!("/guess-{number}"), "").await;
    }
    let names: Vec<String> = plane
        .happenings()
        .into_iter()
        .filter_map(|happening| match happening {
            Happening::File { name, outcome: FileOutcome::NotFound, .. } => Some(name),
            _ => None,
        })
        .collect();
    assert!(names.contains(&"caf\\xc3\\xa9x".to_owned()), "{names:?}");
    assert!(names.len() < 100, "{}", names.len());
    assert!(names.iter().all(|name| name.bytes().all(|byte| byte.is_ascii_graphic())));
}

#[tokio::test]
async fn tftp_gets_the_same_content_and_tells_the_same_story() {
    let plane = Plane::start().await;
    let peer = SocketAddrV4::new(NODE_IP, 2000);
    let open = |name: &[u8]| FileSource::open(&*plane.content, peer, name);
    let shim = open(b"uefi-x64\\shimx64.efi\xff").unwrap();
    assert!(shim.bytes == plane.get("/uefi-x64/shimx64.efi").await.body);
    let config = open(b"grub/grub.cfg-01-52-54-00-00-00-01").unwrap();
    assert!(config.bytes.starts_with(b"echo"));
    assert_eq!(open(b"uefi-x64/revocations.efi").unwrap_err(), NotServed::NotFound);
    assert_eq!(open(b"../etc/passwd").unwrap_err(), NotServed::Refused);
    let stranger = SocketAddrV4::new(STRANGER_IP, 2000);
    assert_eq!(
        FileSource::open(&*plane.content, stranger, b"undionly.kpxe").unwrap_err(),
        NotServed::Refused
    );
    FileSource::finished(
        &*plane.content,
        TransferReport {
            peer,
            name: "grub/grub.cfg-01-52-54-00-00-00-01".to_owned(),
            ticket: config.ticket,
            size: config.bytes.len() as u64,
            sent: 17,
            took: Duration::from_millis(3),
            outcome: FileOutcome::Aborted("gone".to_owned()),
            retransmissions: 0,
            blksize: 512,
            windowsize: 1,
        },
    );
    let told = plane.file_event("grub/grub.cfg-01-52-54-00-00-00-01").await;
    assert_eq!(told, (FileOutcome::Aborted("gone".to_owned()), 17));
}

#[tokio::test]
async fn a_node_removed_while_it_boots_waits() {
    let plane = Plane::start().await;
    assert!(token_of(&plane.get(SCRIPT).await.text()).is_some());
    plane.registry.remove(&NodeRef::Mac(NODE), plane.clock.now()).unwrap();
    let script = plane.get(SCRIPT).await;
    assert!(script.text().contains("waits for approval"), "{}", script.text());
}
