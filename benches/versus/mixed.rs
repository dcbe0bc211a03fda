//! Everything at once: what DHCP and scripts are worth while image downloads fill the link.

use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::Plan;
use crate::bed::{Bed, Machine, SERVER};
use crate::dhcp_client::{self, Load};
use crate::http::{self, script_path};
use crate::report::{Figure, Section, percentile};
use crate::server::Kind;
use crate::state::{kernel_name, machine_mac};

const DOWNLOADS: u32 = 200;
/// The last machine is left to the clients that are timed.
const DOWNLOADS_PER_MACHINE: u32 = 25;
/// DHCP exchanges, and scripts, a second: a rack that powers on while another installs.
const RATE: f64 = 100.0;

pub fn run(bed: &Bed, plan: &Plan) {
    let mut section = Section::new(
        "Mixed load",
        "200 downloads of a 1 GiB image at once, without a pause; meanwhile 100 DHCP exchanges and 100 scripts a second.",
    );
    let files = http::prepare(bed);
    let (mut dhcp, mut scripts, mut gigabytes) = (Figure::default(), Figure::default(), Figure::default());
    for _ in 0..plan.rounds {
        let server = http::start(bed, &files, Kind::Farrier);
        let seconds = plan.seconds + 1;
        let (downloads, mut answers, mut waits) = thread::scope(|scope| {
            let timed = bed.machines.last().expect("machines");
            let dhcp = scope.spawn(move || {
                thread::sleep(Duration::from_millis(500));
                dhcp_client::run(timed, Load { rate: RATE, duration: plan.duration(), clients: 1000 })
            });
            let scripts = scope.spawn(move || {
                thread::sleep(Duration::from_millis(500));
                time_scripts(timed, plan.duration())
            });
            let path = |_| format!("/{}", kernel_name("large"));
            let downloads = http::wrk_at_most(bed, seconds, DOWNLOADS, DOWNLOADS_PER_MACHINE, path);
            (downloads, dhcp.join().expect("DHCP"), scripts.join().expect("scripts"))
        });
        if plan.verbose {
            println!("  {downloads:?}, {} of {} DHCP lost", answers.lost(), answers.started);
        }
        gigabytes.push(downloads.bytes / downloads.seconds / 1e9);
        // What was lost came later than anything that came.
        answers.acks.extend((0..answers.lost()).map(|_| dhcp_client::LOST_AFTER.as_secs_f64() * 1000.0));
        dhcp.push(percentile(&mut answers.acks, 0.99).max(percentile(&mut answers.offers, 0.99)));
        scripts.push(percentile(&mut waits, 0.99));
        server.stop();
    }
    section.say(&format!("The downloads together: {} GB/s.", gigabytes.show()));
    let shown = |figure: &Figure| format!("{} ms", figure.show());
    section.target("DHCP p99 under 200 downloads", "≤ 50 ms", &shown(&dhcp), dhcp.median() <= 50.0);
    section.target(
        "scripts p99 under 200 downloads",
        "≤ 100 ms",
        &shown(&scripts),
        scripts.median() <= 100.0,
    );
    section.write(plan);
}

/// Milliseconds of each script, asked for at a steady rate over one connection.
fn time_scripts(machine: &Machine, duration: Duration) -> Vec<f64> {
    let address = SocketAddrV4::new(SERVER, 80);
    let mut stream = machine.inside(|| TcpStream::connect(address).expect("the server accepts"));
    stream.set_nodelay(true).expect("it can");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("it can");
    let path = script_path(machine_mac(machine.address));
    let request = format!("GET {path} HTTP/1.1\r\nHost: {SERVER}\r\nUser-Agent: bench\r\n\r\n");
    let (mut waits, began) = (Vec::new(), Instant::now());
    while began.elapsed() < duration {
        let asked = Instant::now();
        stream.write_all(request.as_bytes()).expect("the server reads");
        read_answer(&mut stream);
        waits.push(asked.elapsed().as_secs_f64() * 1000.0);
        let next = Duration::from_secs_f64(waits.len() as f64 / RATE);
        thread::sleep(next.saturating_sub(began.elapsed()));
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
