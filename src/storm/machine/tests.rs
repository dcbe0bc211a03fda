use super::*;
use crate::net::MacAddr;
use crate::storm::message::ReplyKind;

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 50);
const WHO: Identity = Identity { mac: MacAddr([2, 0, 0, 0, 0, 1]), uuid: [7; 16] };

/// A machine, a clock, and a server that answers what it is told to.
struct Bench {
    machine: Machine,
    now: Instant,
    began: Instant,
    out: Vec<Action>,
}

impl Bench {
    fn power_on(kind: Kind, goal: Goal) -> Bench {
        let now = Instant::now();
        let machine = Machine::new(kind, WHO, goal, Stream::new(1, 1));
        let mut bench = Bench { machine, now, began: now, out: Vec::new() };
        bench.event(Event::PowerOn);
        bench
    }

    fn event(&mut self, event: Event) {
        self.machine.handle(event, self.now, &mut self.out);
    }

    /// Lets time pass until the machine wants to be woken.
    fn wake(&mut self) {
        self.now = self.machine.wake_at().expect("it waits for something");
        self.event(Event::Woken);
    }

    fn after(&self) -> f64 {
        self.now.duration_since(self.began).as_secs_f64()
    }

    /// Kind and transaction of the DHCP messages sent since the last look.
    fn sent(&mut self) -> Vec<(u8, u32)> {
        let sent = self.out.iter().filter_map(|action| match action {
            Action::SendDhcp(bytes) => {
                Some((bytes[242], u32::from_be_bytes(bytes[4..8].try_into().unwrap())))
            }
            _ => None,
        });
        let sent = sent.collect();
        self.out.retain(|action| !matches!(action, Action::SendDhcp(_)));
        sent
    }

    fn reply(&mut self, kind: ReplyKind, xid: u32, file: &str) {
        let reply = Reply {
            kind,
            xid,
            mac: WHO.mac,
            address: ADDRESS,
            server: Some(SERVER),
            next_server: Some(SERVER),
            boot_file: (!file.is_empty()).then(|| file.to_owned()),
            for_http: file.starts_with("http") && self.machine.role == Role::Firmware,
            settled: true,
        };
        self.event(Event::Reply(reply));
    }

    /// From DISCOVER to ACK, the offer window waited for.
    fn bind(&mut self, file: &str) {
        let (kind, xid) = self.sent().pop().expect("a DISCOVER");
        assert_eq!(kind, 1);
        self.reply(ReplyKind::Offer, xid, file);
        if matches!(self.machine.phase, Phase::Discovering { .. }) {
            self.wake();
        }
        assert_eq!(self.sent(), [(3, xid)]);
        self.reply(ReplyKind::Ack, xid, file);
    }

    fn fetch(&mut self) -> Fetch {
        let fetch = self.out.drain(..).find_map(|action| match action {
            Action::Fetch(fetch) => Some(fetch),
            _ => None,
        });
        fetch.expect("a fetch")
    }

    fn file(&mut self, bytes: u64) {
        self.event(Event::Fetched(Ok(Fetched::File(Received { bytes, content: Vec::new() }))));
    }

    fn answer(&mut self, status: u16, content: &str) {
        let content = content.as_bytes().to_vec();
        let answer =
            Answer { status, length: content.len() as u64, retry_after: Some(7), content, keep_alive: true };
        self.event(Event::Fetched(Ok(Fetched::Answer(answer))));
    }

    fn http_path(&mut self) -> String {
        match self.fetch() {
            Fetch::Http { url, .. } => url.path,
            Fetch::Tftp { name, .. } => panic!("TFTP for {name}"),
        }
    }
}

const SCRIPT: &str = "#!ipxe\nkernel http://10.0.0.1/k farrier.server=http://10.0.0.1 farrier.token=T || goto failed\n\
                      initrd http://10.0.0.1/i\nboot\n:failed\nsleep 10\nchain http://10.0.0.1/s\n";

#[test]
fn ovmf_collects_offers_then_asks_for_the_size_then_for_the_file() {
    let mut bench = Bench::power_on(Kind::Uefi, Goal::Loader);
    bench.bind("ipxe.efi");
    assert!((3.5..3.7).contains(&bench.after()), "{}", bench.after());
    assert!(matches!(bench.fetch(), Fetch::Tftp { probe: true, .. }));
    bench.file(99);
    assert!(matches!(bench.fetch(), Fetch::Tftp { probe: false, name, .. } if name == "ipxe.efi"));
    bench.file(99);
    assert!(bench.machine.record.is_complete());
    assert_eq!(bench.machine.record.bytes, 99);
}

#[test]
fn silence_is_met_with_the_captured_patience_and_then_given_up() {
    let mut bench = Bench::power_on(Kind::Uefi, Goal::Loader);
    let mut times = Vec::new();
    while !bench.machine.is_over() {
        bench.wake();
        times.push(bench.after());
    }
    assert_eq!(bench.sent().len(), 4);
    for (time, expected) in times.iter().zip([4.0, 12.0, 28.0, 60.0]) {
        assert!((time / expected - 1.0).abs() < 0.04, "{time} {expected}");
    }
    assert_eq!(bench.machine.record.lost, Some((Stage::FirmwareDhcp, Trouble::NoOffer)));
}

#[test]
fn shim_and_grub_keep_the_lease_and_take_all_by_tftp() {
    let mut bench = Bench::power_on(Kind::UefiSecure, Goal::Enroll);
    bench.bind("uefi-x64/shimx64.efi");
    assert!(matches!(bench.fetch(), Fetch::Tftp { probe: true, .. }));
    bench.file(9);
    assert!(matches!(bench.fetch(), Fetch::Tftp { probe: false, .. }));
    bench.file(9);
    let by_tftp = |bench: &mut Bench| match bench.fetch() {
        Fetch::Tftp { name, .. } => (name, bench.machine.manners().tftp.blksize),
        Fetch::Http { url, .. } => panic!("HTTP for {}", url.path),
    };
    bench.wake();
    assert_eq!(by_tftp(&mut bench), ("uefi-x64/revocations.efi".to_owned(), 512));
    bench.event(Event::Fetched(Err(Trouble::FileMissing)));
    assert_eq!(by_tftp(&mut bench), ("uefi-x64/grubx64.efi".to_owned(), 512));
    bench.file(9);
    bench.wake();
    assert_eq!(by_tftp(&mut bench), ("/grub/grub.cfg".to_owned(), 1024));
    let text = b"linux /k farrier.server=http://10.0.0.1 farrier.token=T\ninitrd /i\nboot\nsleep 10\nsource /grub/g\n";
    let content = text.to_vec();
    bench.event(Event::Fetched(Ok(Fetched::File(Received { bytes: content.len() as u64, content }))));
    assert_eq!(by_tftp(&mut bench).0, "/k");
    bench.file(9);
    assert_eq!(by_tftp(&mut bench).0, "/i");
    bench.event(Event::Fetched(Err(Trouble::TftpStalled)));
    bench.wake();
    assert_eq!(by_tftp(&mut bench).0, "/grub/g", "its own way back");
    assert_eq!(bench.sent(), [], "GRUB never speaks DHCP");
}

fn in_ipxe(kind: Kind) -> Bench {
    let mut bench = Bench::power_on(kind, Goal::Enroll);
    bench.bind("undionly.kpxe");
    drop(bench.fetch());
    bench.file(9);
    drop(bench.fetch());
    bench.file(9);
    bench.wake();
    bench
}

#[test]
fn ipxe_waits_for_a_router_unless_one_shows() {
    let mut bench = in_ipxe(Kind::Bios);
    assert!(bench.out.contains(&Action::SolicitRouter));
    bench.bind("http://10.0.0.1/s");
    let bound = bench.after();
    bench.wake();
    assert!((12.0..14.0).contains(&(bench.after() - bound)));
    assert_eq!(bench.http_path(), "/s");
    let mut bench = in_ipxe(Kind::Bios);
    bench.event(Event::RouterSeen);
    bench.bind("http://10.0.0.1/s");
    assert_eq!(bench.http_path(), "/s");
}

fn with_script() -> Bench {
    let mut bench = in_ipxe(Kind::Bios);
    bench.event(Event::RouterSeen);
    bench.bind("http://10.0.0.1/s");
    assert_eq!(bench.http_path(), "/s");
    bench.answer(200, SCRIPT);
    assert_eq!(bench.http_path(), "/k");
    bench
}

#[test]
fn a_whole_boot_ends_enrolled() {
    let mut bench = with_script();
    bench.answer(200, "kernel");
    assert_eq!(bench.http_path(), "/i");
    bench.answer(200, "ramdisk");
    bench.wake();
    bench.bind("");
    assert_eq!(bench.http_path(), "/agent/v1/hello");
    bench.answer(503, "");
    bench.wake();
    assert_eq!(bench.http_path(), "/agent/v1/hello");
    bench.answer(200, r#"{"session":"s","node":"n","heartbeat_secs":5}"#);
    let Fetch::Http { bearer, body, .. } = bench.fetch() else { panic!("HTTP") };
    assert_eq!(bearer.as_deref(), Some("s"));
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    let inventory: crate::node::inventory::Inventory =
        serde_json::from_value(body["inventory"].clone()).unwrap();
    assert_eq!(inventory.nics[0].mac, WHO.mac);
    bench.answer(200, "{}");
    let record = &bench.machine.record;
    assert!(record.is_complete());
    assert!(record.took.iter().all(Option::is_some));
    assert_eq!(record.told_to_wait, 1);
}

#[test]
fn a_busy_server_is_asked_again_when_it_said_and_a_broken_file_starts_the_script_over() {
    let mut bench = with_script();
    bench.answer(503, "");
    let asked = bench.now;
    bench.wake();
    assert_eq!(bench.now - asked, Duration::from_secs(7));
    assert_eq!(bench.http_path(), "/k");
    bench.answer(404, "");
    let failed = bench.now;
    bench.wake();
    assert_eq!(bench.now - failed, Duration::from_secs(10));
    assert_eq!(bench.http_path(), "/s");
    assert_eq!(bench.machine.record.setbacks, [(Stage::Kernel, Trouble::HttpStatus(404))]);
}

#[test]
fn a_server_that_changes_its_mind_is_told_on() {
    let mut bench = Bench::power_on(Kind::Bios, Goal::Address);
    let (_, xid) = bench.sent().pop().unwrap();
    bench.reply(ReplyKind::Offer, xid, "undionly.kpxe");
    bench.reply(ReplyKind::Nak, xid, "");
    assert_eq!(bench.machine.record.lost, Some((Stage::FirmwareDhcp, Trouble::Nak)));
}
