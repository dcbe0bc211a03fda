//! The API against its own OpenAPI document: schemathesis makes requests up, a running appliance answers them.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::support::{TestBed, in_namespace, inside_namespace};

/// From PyPI; an upgrade may find more, and is made on purpose.
const SCHEMATHESIS: &str = "schemathesis==4.32.5";
/// How long it makes requests up; the phases before it end by themselves.
const SECONDS: &str = "30";

#[test]
fn no_request_gets_an_answer_the_document_does_not_name() {
    // Inside the namespace there is no network to install it from.
    if !inside_namespace() {
        install();
    }
    in_namespace("schema::no_request_gets_an_answer_the_document_does_not_name", || {
        let bed = TestBed::start("");
        bed.publish("metal", b"kernel", b"ramdisk");
        bed.signal(nix::sys::signal::Signal::SIGHUP);
        for (mac, name) in [("02:00:00:00:00:01=192.168.77.20", "web1"), ("02:00:00:00:00:02", "web2")] {
            let added = bed.farrier(&["node", "add", mac, "--name", name]);
            assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
        }
        let address = forward_to(bed.path("operator.sock"));
        let output = Command::new(environment().join("bin/schemathesis"))
            .args(["run", &format!("http://{address}/api/v1/openapi.json")])
            .args(["--max-time", SECONDS, "--seed", "1", "--no-color"])
            .args(["--checks", CHECKS, "--suppress-health-check", "all", "--request-timeout", "10"])
            .current_dir(bed.directory.path())
            .output()
            .expect("schemathesis starts");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
        assert!(said.contains("list_nodes") || said.contains("passed"), "it tested nothing: {said}");
        assert!(STREAMS.load(Ordering::Relaxed) > 0, "no stream of events was opened: {said}");
    });
}

const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
                      response_headers_conformance,response_schema_conformance,unsupported_method,\
                      allow_header_conformance,use_after_free";

fn environment() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("schemathesis")
}

/// A Python environment of its own, made once.
fn install() {
    let environment = environment();
    let done = environment.join(SCHEMATHESIS);
    if done.exists() {
        return;
    }
    let run = |program: &Path, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| {
            panic!("{}: {error} (.ci/packages.txt names the Debian package)", program.display())
        });
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{} {arguments:?}: {said}", program.display());
    };
    run(Path::new("python3"), &["-m", "venv", &environment.display().to_string()]);
    run(&environment.join("bin/pip"), &["install", "--quiet", "--disable-pip-version-check", SCHEMATHESIS]);
    std::fs::write(done, "").expect("a mark that it is whole");
}

/// Streams of events that were cut off by [`answers`].
static STREAMS: AtomicU32 = AtomicU32::new(0);

/// A TCP address on loopback whose connections reach this Unix socket; lives as long as the process.
fn forward_to(socket: PathBuf) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
    let address = listener.local_addr().expect("its address").to_string();
    std::thread::spawn(move || {
        for near in listener.incoming().flatten() {
            let Ok(far) = UnixStream::connect(&socket) else { continue };
            std::thread::spawn(move || both_ways(&near, &far));
        }
    });
    address
}

fn both_ways(near: &TcpStream, far: &UnixStream) {
    let back = (near.try_clone(), far.try_clone());
    let answers = std::thread::spawn(move || {
        if let (Ok(near), Ok(far)) = back {
            let _ = answers(&far, &near);
            let _ = near.shutdown(Shutdown::Both);
            let _ = far.shutdown(Shutdown::Both);
        }
    });
    let _ = io::copy(&mut &*near, &mut &*far);
    let _ = far.shutdown(Shutdown::Write);
    let _ = answers.join();
}

/// Answers as they are; but a stream of events, which no reader of whole answers sees the end of, ends in good order
/// behind what it begins with.
fn answers(mut far: &UnixStream, mut near: &TcpStream) -> io::Result<()> {
    let mut piece = vec![0; 64 * 1024];
    loop {
        let length = far.read(&mut piece)?;
        if length == 0 {
            return Ok(());
        }
        let piece = &piece[..length];
        if !begins_stream(piece) {
            near.write_all(piece)?;
            continue;
        }
        let mut answer = piece.to_vec();
        loop {
            if let Some(whole) = first_chunk(&answer) {
                STREAMS.fetch_add(1, Ordering::Relaxed);
                return near.write_all(&whole);
            }
            let mut more = [0; 4096];
            let length = far.read(&mut more)?;
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            answer.extend_from_slice(&more[..length]);
        }
    }
}

fn begins_stream(piece: &[u8]) -> bool {
    let head = String::from_utf8_lossy(piece).to_lowercase();
    let head = head.split("\r\n\r\n").next().unwrap_or_default();
    head.starts_with("http/1.1 200 ") && head.contains("content-type: text/event-stream")
}

/// The head, the first chunk, and an end (RFC 9112 §7.1); `None` while that is not there yet.
fn first_chunk(answer: &[u8]) -> Option<Vec<u8>> {
    let end_of = |from: usize, mark: &[u8]| {
        answer[from..].windows(mark.len()).position(|at| at == mark).map(|at| from + at + mark.len())
    };
    let head = end_of(0, b"\r\n\r\n")?;
    let data = end_of(head, b"\r\n")?;
    let length = usize::from_str_radix(std::str::from_utf8(&answer[head..data]).ok()?.trim(), 16).ok()?;
    let chunk = answer.get(head..data + length + 2)?;
    Some([&answer[..head - 2], b"connection: close\r\n\r\n", chunk, b"0\r\n\r\n"].concat())
}
