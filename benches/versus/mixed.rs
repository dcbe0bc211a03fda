//! Everything at once: what DHCP and scripts are worth while image downloads fill the link.

use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::Plan;
use crate::bed::{self, BRIDGE, Bed, Machine, SERVER};
use crate::dhcp::agent;
use crate::dhcp_client::{self, Load};
use crate::http::{self, script_path};
use crate::report::{Figure, Section, digits, percentile};
use crate::server::{Kind, Running};
use crate::state::{kernel_name, machine_mac};

const DOWNLOADS: u32 = 200;
/// The last machine is left to the clients that are timed.
const DOWNLOADS_PER_MACHINE: u32 = 25;
/// DHCP exchanges, and scripts, a second: a rack that powers on while another installs.
const RATE: f64 = 100.0;
/// Downloads run alone for this long: until the link's queue is as long as it gets.
const HEAD_START: Duration = Duration::from_millis(1000);

/// What the appliance's packets leave by. All of them, DHCP's and scripts' among the downloads', share one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    /// 1 Gbit/s behind the queue that Linux gives a network card (`pfifo_fast`, 1000 packets).
    Gigabit,
    /// As fast as the processors copy: what is short is processor time, which the clients here share.
    Unlimited,
}

impl Link {
    fn as_str(self) -> &'static str {
        match self {
            Link::Gigabit => "1 Gbit/s",
            Link::Unlimited => "no limit",
        }
    }

    fn lay(self) {
        match self {
            Link::Gigabit => {
                // The burst holds two of the largest segments the kernel hands over whole.
                let rate = "qdisc replace dev @ root handle 1: tbf rate 1gbit burst 128kb latency 50ms";
                for words in [rate, "qdisc replace dev @ parent 1:1 handle 10: pfifo_fast"] {
                    let words: Vec<&str> =
                        words.split(' ').map(|word| if word == "@" { BRIDGE } else { word }).collect();
                    bed::run("tc", &words);
                }
            }
            Link::Unlimited => {
                bed::run("tc", &["qdisc", "replace", "dev", BRIDGE, "root", "noqueue"]);
            }
        }
    }
}

#[derive(Default)]
struct Figures {
    dhcp: Figure,
    scripts: Figure,
    gigabytes: Figure,
    busy: Figure,
}

pub fn run(bed: &Bed, plan: &Plan) {
    let mut section = Section::new(
        "Mixed load",
        "200 downloads of a 1 GiB image at once, without a pause; meanwhile 100 DHCP exchanges and 100 scripts a second, \
         timed from when each was due. The targets are about a full link, so what the bridge sends is held to \
         1 Gbit/s (`tc tbf`, behind it `pfifo_fast`). Without a limit the 200 clients and the server fill \
         the processors instead, and what waits is whoever is to be scheduled; that is here for information.",
    );
    let files = http::prepare(bed);
    let links = [Link::Gigabit, Link::Unlimited];
    let mut figures: [Figures; 2] = Default::default();
    for _ in 0..plan.rounds {
        let server = http::start(bed, &files, Kind::Farrier);
        for (link, figures) in links.iter().zip(&mut figures) {
            link.lay();
            measure(bed, plan, *link, &server, figures);
            Link::Unlimited.lay();
        }
        server.stop();
    }
    let mut rows = Vec::new();
    for (link, figures) in links.iter().zip(&figures) {
        rows.push(vec![
            link.as_str().to_owned(),
            figures.gigabytes.show(),
            figures.busy.show(),
            figures.dhcp.show(),
            figures.scripts.show(),
        ]);
    }
    section.table(&["link", "downloads GB/s", "server CPU s/s", "DHCP p99 ms", "scripts p99 ms"], &rows);
    let [full, _] = &figures;
    let shown = |figure: &Figure| format!("{} ms", figure.show());
    section.target("DHCP p99 under 200 downloads", "≤ 50 ms", &shown(&full.dhcp), full.dhcp.median() <= 50.0);
    section.target(
        "scripts p99 under 200 downloads",
        "≤ 100 ms",
        &shown(&full.scripts),
        full.scripts.median() <= 100.0,
    );
    section.write(plan);
}

fn measure(bed: &Bed, plan: &Plan, link: Link, server: &Running, figures: &mut Figures) {
    // The last answers may take a second to be counted as lost.
    let seconds = plan.seconds + HEAD_START.as_secs() + 1;
    let before = server.used();
    let (downloads, mut answers, mut waits) = thread::scope(|scope| {
        let timed = bed.machines.last().expect("machines");
        let dhcp = scope.spawn(move || {
            thread::sleep(HEAD_START);
            agent(timed).run(Load { rate: RATE, duration: plan.duration(), clients: 1000 })
        });
        let scripts = scope.spawn(move || {
            thread::sleep(HEAD_START);
            time_scripts(timed, plan.duration())
        });
        let path = |_| format!("/{}", kernel_name("large"));
        let port = server.kind.http_port();
        let downloads = http::wrk_at_most(bed, seconds, DOWNLOADS, DOWNLOADS_PER_MACHINE, port, path);
        (downloads, dhcp.join().expect("DHCP"), scripts.join().expect("scripts"))
    });
    let busy = server.used().since(before) / downloads.seconds;
    // What was lost came later than anything that came.
    let lost = answers.lost();
    answers.acks.extend((0..lost).map(|_| dhcp_client::LOST_AFTER.as_secs_f64() * 1000.0));
    let mut p99 = |share| {
        let (acks, offers) = (percentile(&mut answers.acks, share), percentile(&mut answers.offers, share));
        (acks.max(offers), percentile(&mut waits, share))
    };
    let ((dhcp, scripts), (dhcp_median, scripts_median)) = (p99(0.99), p99(0.5));
    let gigabytes = downloads.bytes / downloads.seconds / 1e9;
    println!(
        "  {}: downloads {} GB/s, server {busy:.2} CPU s/s; DHCP p50 {} p99 {} ms, {lost} of {} lost; \
         scripts p50 {} p99 {} ms, {} asked",
        link.as_str(),
        digits(gigabytes),
        digits(dhcp_median),
        digits(dhcp),
        answers.started,
        digits(scripts_median),
        digits(scripts),
        waits.len()
    );
    figures.dhcp.push(dhcp);
    figures.scripts.push(scripts);
    figures.gigabytes.push(gigabytes);
    figures.busy.push(busy);
}

/// Milliseconds of each script, asked for at a steady rate over one connection; an answer that is late makes the next
/// ones late as well.
fn time_scripts(machine: &Machine, duration: Duration) -> Vec<f64> {
    let address = SocketAddrV4::new(SERVER, 80);
    let mut stream = machine.inside(|| TcpStream::connect(address).expect("the server accepts"));
    stream.set_nodelay(true).expect("it can");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("it can");
    let path = script_path(machine_mac(machine.address));
    let request = format!("GET {path} HTTP/1.1\r\nHost: {SERVER}\r\nUser-Agent: bench\r\n\r\n");
    let (mut waits, began) = (Vec::new(), Instant::now());
    while began.elapsed() < duration {
        let due = began + Duration::from_secs_f64(waits.len() as f64 / RATE);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        stream.write_all(request.as_bytes()).expect("the server reads");
        read_answer(&mut stream);
        waits.push(due.elapsed().as_secs_f64() * 1000.0);
    }
    waits
}

/// One response with a Content-Length, to its end.
fn read_answer(stream: &mut TcpStream) {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer).expect("an answer within ten seconds");
        assert!(count > 0, "the server closed: {}", String::from_utf8_lossy(&bytes));
        bytes.extend_from_slice(&buffer[..count]);
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        if length
            .and_then(|length| length.trim().parse().ok())
            .is_none_or(|length: usize| body.len() >= length)
        {
            return;
        }
    }
}
