//! `farrier image` and disk images: what `qemu-img` and web servers hand out, taken or refused by the real program.
//!
//! Every refusal is checked for what it leaves: nothing.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use farrier::image::digest::Digest;
use farrier::image::disk::shelf::DiskShelf;
use serde_json::Value;
use tokio_rustls::rustls;

use crate::support::{eventually, farrier_program, run};

const MIB: usize = 1024 * 1024;

struct Bench {
    directory: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        Bench { directory: tempfile::tempdir().expect("a temporary directory") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn state(&self) -> PathBuf {
        self.path("state")
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(farrier_program());
        command.arg("image").args(arguments).arg("--state").arg(self.state()).stdin(Stdio::null());
        command
    }

    fn image(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("farrier runs")
    }

    /// What a command that is done prints.
    fn done(&self, arguments: &[&str]) -> String {
        let output = self.image(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn import(&self, source: &Path, name: &str) -> String {
        self.done(&["import", source.to_str().unwrap(), "--name", name])
    }

    /// What a command that is not done says, with its exit code.
    fn refused(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.image(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty());
        said
    }

    /// A refused import, which names the file and leaves nothing.
    fn refuses(&self, source: &Path, what: &str) {
        let source = source.to_str().unwrap();
        let said = self.refused(4, &["import", source, "--name", "one"]);
        assert!(said.contains(what) && said.contains(source), "{said}");
        self.nothing_is_left();
    }

    fn nothing_is_left(&self) {
        for directory in ["blobs", "disks", "partial"] {
            let names = self.names(directory);
            assert!(names.is_empty(), "{directory}: {names:?}");
        }
    }

    fn names(&self, directory: &str) -> Vec<String> {
        let entries = fs::read_dir(self.state().join("images").join(directory)).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn shown(&self, name: &str) -> Value {
        serde_json::from_str(&self.done(&["show", name, "--json"])).unwrap()
    }

    fn has(&self, name: &str, disk: &[u8]) {
        assert_eq!(self.shown(name)["sha256"], Digest::of(disk).to_string());
        self.done(&["verify", name]);
    }
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut stream = farrier::storm::random::Stream::new(seed, 1);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&stream.next_u64().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Data, a hole, a little more, and an end that is no whole cluster of any size but the smallest.
fn disk() -> Vec<u8> {
    let mut disk = noise(1, 3 * MIB);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk.resize(9 * MIB, 0);
    disk.extend(b"farrier ".repeat(40_000));
    disk.resize(10 * MIB + 1536, 0);
    disk
}

fn qemu_img(arguments: &[&str]) {
    run("qemu-img", arguments);
}

#[test]
fn what_qemu_makes_of_a_disk_comes_back_as_the_disk() {
    let bench = Bench::new();
    let raw = bench.write("raw", &disk());
    let raw = raw.to_str().unwrap();
    let kinds: [&[&str]; 8] = [
        &["-O", "qcow2"],
        &["-O", "qcow2", "-o", "compat=0.10"],
        &["-O", "qcow2", "-o", "cluster_size=512"],
        &["-O", "qcow2", "-o", "cluster_size=2M"],
        &["-O", "qcow2", "-o", "preallocation=metadata"],
        &["-O", "qcow2", "-c"],
        &["-O", "qcow2", "-c", "-o", "compression_type=zstd"],
        &["-O", "qcow2", "-c", "-o", "compat=0.10,cluster_size=4096"],
    ];
    for (index, kind) in kinds.iter().enumerate() {
        let made = bench.path("made");
        qemu_img(&[&["convert", "-f", "raw"], *kind, &[raw, made.to_str().unwrap()]].concat());
        let said = bench.import(&made, &format!("image-{index}"));
        assert!(said.contains("(qcow2)"), "{kind:?}: {said}");
        bench.has(&format!("image-{index}"), &disk());
    }
    // A snapshot within is not the disk as it is now.
    let made = bench.path("made");
    let made = made.to_str().unwrap();
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", raw, made]);
    qemu_img(&["snapshot", "-c", "before", made]);
    run("qemu-io", &["-c", "write -P 7 0 1M", made]);
    bench.import(Path::new(made), "later");
    let mut later = disk();
    later[..MIB].fill(7);
    bench.has("later", &later);
}

#[test]
fn s_10_what_names_another_file_is_refused_and_so_is_what_is_no_disk() {
    let bench = Bench::new();
    let raw = bench.write("raw", &disk());
    let raw = raw.to_str().unwrap();
    let create = |options: &[&str], what: &str| {
        let made = bench.path("made");
        let _ = fs::remove_file(&made);
        qemu_img(&[&["create", "-q"], options, &[made.to_str().unwrap(), "16M"]].concat());
        bench.refuses(&made, what);
    };
    create(&["-f", "qcow2", "-b", raw, "-F", "raw"], "backing file");
    create(&["-f", "qcow2", "-u", "-b", "/etc/shadow", "-F", "raw"], "backing file");
    create(&["-f", "qcow2", "-u", "-b", "json:{\"driver\":\"nbd\"}", "-F", "raw"], "backing file");
    let beside = bench.path("data");
    create(&["-f", "qcow2", "-o", &format!("data_file={}", beside.display())], "data file");
    create(&["-f", "qcow2", "-o", &format!("data_file={},data_file_raw=on", beside.display())], "data file");
    create(&["-f", "qcow2", "-o", "extended_l2=on,cluster_size=128k"], "subclusters");
    // LUKS would do as well, but making it measures the processor, and fails on a busy one.
    let secret = "secret,id=key,data=word";
    create(
        &["--object", secret, "-f", "qcow2", "-o", "encrypt.format=aes,encrypt.key-secret=key"],
        "encrypted",
    );
    let kinds = [
        ("vpc", "subformat=fixed", "a VHD image"),
        ("vpc", "subformat=dynamic", "a VHD image"),
        ("vhdx", "subformat=dynamic", "a VHDX image"),
        ("vmdk", "subformat=monolithicSparse", "a VMDK image"),
        ("vmdk", "subformat=monolithicFlat", "a VMDK description"),
        ("vdi", "static=off", "a VDI image"),
        ("qed", "cluster_size=64k", "a QED image"),
    ];
    for (format, options, what) in kinds {
        create(&["-f", format, "-o", options], what);
    }
    // Larger than allowed, and told so before it is read.
    let huge = bench.path("huge");
    qemu_img(&["create", "-q", "-f", "qcow2", huge.to_str().unwrap(), "65G"]);
    bench.refuses(&huge, "the limit is");
}

#[test]
fn s_10_what_is_not_a_plain_file_is_refused_and_so_are_bombs() {
    let bench = Bench::new();
    let raw = bench.write("raw", &disk());
    symlink(&raw, bench.path("link")).unwrap();
    nix::unistd::mkfifo(&bench.path("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    bench.refuses(&bench.path("link"), "symbolic link");
    bench.refuses(&bench.path("pipe"), "a pipe");
    bench.refuses(bench.directory.path(), "a directory");
    bench.refuses(Path::new("/dev/zero"), "a device");
    let packed = zstd::encode_all(std::io::repeat(b'A').take(1 << 30), 1).unwrap();
    bench.refuses(&bench.write("bomb.zst", &packed), "bomb");
    let packed = zstd::encode_all(std::io::repeat(0).take(1 << 26), 1).unwrap();
    let zeros = bench.write("zeros.zst", &packed);
    let zeros = zeros.to_str().unwrap();
    let said = bench.refused(4, &["import", zeros, "--name", "one", "--max-size", "32M"]);
    assert!(said.contains("--max-size"), "{said}");
    bench.nothing_is_left();
    bench.done(&["import", zeros, "--name", "one", "--max-size", "64M"]);
    bench.done(&["rm", "one"]);
    bench.done(&["gc"]);

    let raw = raw.to_str().unwrap();
    let wrong = Digest::of(b"something else").to_string();
    let said = bench.refused(4, &["import", raw, "--name", "one", "--sha256", &wrong]);
    assert!(said.contains(&wrong) && said.contains(&Digest::of(&disk()).to_string()), "{said}");
    let url = format!("file://{raw}");
    assert!(bench.refused(2, &["import", &url, "--name", "one"]).contains("`file:`"));
    assert!(bench.refused(2, &["import", "ftp://a/b", "--name", "one"]).contains("`ftp:`"));
    assert!(bench.refused(2, &["import", "https://a/b", "--name", "one"]).contains("--sha256"));
    assert!(bench.refused(2, &["import", raw, "--name", "One"]).contains("`One`"));
    bench.refused(2, &["import", raw, "--name", "one", "--sha256", "abc"]);
    bench.refused(3, &["import", "/nowhere/at/all", "--name", "one"]);
    bench.nothing_is_left();
}

#[test]
fn an_image_is_listed_shown_verified_healed_and_removed() {
    let bench = Bench::new();
    let raw = bench.write("raw", &disk());
    let digest = Digest::of(&disk()).to_string();
    assert!(bench.done(&["list"]).contains("no images"));
    let said = bench.done(&[
        "import",
        raw.to_str().unwrap(),
        "--name",
        "one",
        "--sha256",
        &digest,
        "--description",
        "for tests",
    ]);
    assert!(
        said.contains("imported one (raw)") && said.contains(&digest) && !said.contains("note:"),
        "{said}"
    );
    assert!(bench.import(&bench.write("flat", &noise(4, MIB)), "flat").contains("no boot signature"));
    let listed = bench.done(&["list"]);
    assert!(listed.contains("DISK IMAGE") && listed.contains("for tests") && listed.contains(&digest[..12]));
    let documents: Value = serde_json::from_str(&bench.done(&["list", "--json"])).unwrap();
    assert_eq!((&documents[0]["kind"], &documents[1]["name"]), (&"disk".into(), &"one".into()));
    let shown = bench.shown("one");
    assert_eq!((&shown["bytes"], &shown["pinned"]), (&disk().len().into(), &false.into()));
    assert_eq!(shown["source"], raw.to_str().unwrap());
    assert!(bench.done(&["show", "one"]).contains(&digest));
    assert!(bench.done(&["verify", "one"]).contains("one is whole"));
    for verb in ["show", "verify", "rm"] {
        assert!(bench.refused(3, &[verb, "none"]).contains("`none`"));
    }

    // A bit flips; what is found is not served, whoever asks.
    let shelf = DiskShelf::open(&bench.state()).unwrap();
    let chunk = shelf.get("one").unwrap().manifest.chunks[0].blob.to_string();
    let blob = bench.state().join("images/blobs").join(&chunk);
    let mut bytes = fs::read(&blob).unwrap();
    bytes[1000] ^= 1;
    fs::remove_file(&blob).unwrap();
    fs::write(&blob, bytes).unwrap();
    let said = bench.refused(1, &["verify", "one"]);
    assert!(said.contains("`one`") && said.contains(&chunk), "{said}");
    assert!(bench.refused(1, &["show", "one"]).contains(&chunk));
    assert!(bench.done(&["list"]).contains("not served: "));
    assert!(shelf.refresh_if_changed().unwrap() && shelf.get("one").is_none() && shelf.get("flat").is_some());
    bench.import(&raw, "one");
    bench.has("one", &disk());
    assert!(shelf.refresh_if_changed().unwrap() && shelf.get("one").is_some());

    // An install wants it.
    let manifest = shelf.get("one").unwrap().manifest_blob.digest;
    shelf.pin(manifest).unwrap();
    assert!(bench.refused(4, &["rm", "one"]).contains(&manifest.to_string()));
    assert_eq!(bench.shown("one")["pinned"], true);
    shelf.unpin(manifest).unwrap();
    bench.done(&["rm", "one"]);
    let freed: Value = serde_json::from_str(&bench.done(&["gc", "--json"])).unwrap();
    assert!(freed["removed_bytes"].as_u64().unwrap() > 3 * MIB as u64, "{freed}");
    bench.has("flat", &noise(4, MIB));
    bench.done(&["rm", "flat"]);
    bench.done(&["gc"]);
    bench.nothing_is_left();
}

#[test]
fn an_import_that_is_killed_publishes_nothing_and_is_gone_on_with() {
    let bench = Bench::new();
    let raw = bench.write("raw", &noise(5, 192 * MIB));
    let raw = raw.to_str().unwrap();
    let mut child = bench
        .command(&["import", raw, "--name", "one"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("farrier runs");
    eventually("a first chunk", || (!bench.names("blobs").is_empty()).then_some(()));
    child.kill().unwrap();
    child.wait().unwrap();
    // As a rule it was killed in the middle; on a machine that is fast enough it was done.
    if bench.names("disks").is_empty() {
        bench.refused(3, &["show", "one"]);
        let kept: u64 = bench.names("blobs").iter().filter(|name| !name.starts_with('.')).count() as u64;
        let said = bench.import(Path::new(raw), "one");
        let (before, _) = said.split_once(" of them new").unwrap();
        let added: f64 = before.rsplit(", ").next().unwrap().split(' ').next().unwrap().parse().unwrap();
        let all = 192.0 * MIB as f64 / 1e6;
        assert!(added <= all - (kept as f64 - 1.0) * 4.0, "{kept} chunks were there, {said}");
    }
    bench.has("one", &noise(5, 192 * MIB));
    bench.done(&["rm", "one"]);
    bench.done(&["gc"]);
    bench.nothing_is_left();
}

/// A web server that does for each request, one after another, what it is told.
struct WebServer {
    address: String,
    heads: Arc<Mutex<Vec<String>>>,
}

impl WebServer {
    fn start(mut serve: impl FnMut(usize, &str, TcpStream) + Send + 'static) -> WebServer {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = listener.local_addr().unwrap().to_string();
        let heads: Arc<Mutex<Vec<String>>> = Arc::default();
        let noted = heads.clone();
        thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let Ok(stream) = stream else { return };
                let head = read_head(&stream);
                noted.lock().unwrap().push(head.clone());
                serve(number, &head, stream);
            }
        });
        WebServer { address, heads }
    }

    fn url(&self) -> String {
        format!("http://user:word@{}/disk.img?key=secret", self.address)
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

fn read_head(stream: impl Read) -> String {
    let mut head = String::new();
    let mut lines = BufReader::new(stream);
    while lines.read_line(&mut head).is_ok_and(|count| count > 2) {}
    head.to_lowercase()
}

fn range_of(head: &str) -> Option<usize> {
    let line = head.lines().find_map(|line| line.strip_prefix("range: bytes="))?;
    line.trim_end().strip_suffix('-')?.parse().ok()
}

fn answer(mut stream: impl Write, status: &str, headers: &str, length: usize, body: &[u8]) {
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n");
    // The program may have enough of it.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
}

/// Sends what is asked for, and at most `most` bytes of it.
fn serve_part(stream: impl Write, head: &str, bytes: &[u8], tag: &str, most: usize) {
    match range_of(head) {
        Some(from) if head.contains(&format!("if-range: {tag}\r\n")) => {
            let range =
                format!("ETag: {tag}\r\nContent-Range: bytes {from}-{}/{}\r\n", bytes.len() - 1, bytes.len());
            let rest = &bytes[from..];
            answer(stream, "206 Partial Content", &range, rest.len(), &rest[..rest.len().min(most)]);
        }
        Some(_) | None => {
            let tag = format!("ETag: {tag}\r\n");
            answer(stream, "200 OK", &tag, bytes.len(), &bytes[..bytes.len().min(most)]);
        }
    }
}

#[test]
fn a_download_that_breaks_off_goes_on_where_it_was() {
    let bench = Bench::new();
    let packed = zstd::bulk::compress(&disk(), 3).unwrap();
    let digest = Digest::of(&packed).to_string();
    let sent = packed.clone();
    // Twice cut, and each time gone on with by the same command.
    let server = WebServer::start(move |number, head, stream| {
        let most = if number < 2 { MIB } else { usize::MAX };
        serve_part(stream, head, &sent, "\"v1\"", most);
    });
    let said = bench.done(&["import", &server.url(), "--name", "one", "--sha256", &digest]);
    assert!(said.contains("(zst)"), "{said}");
    let ranges: Vec<Option<usize>> = server.heads().iter().map(|head| range_of(head)).collect();
    assert_eq!(ranges, [None, Some(MIB), Some(2 * MIB)]);
    bench.has("one", &disk());
    let source = bench.shown("one")["source"].as_str().unwrap().to_owned();
    assert!(source.ends_with("/disk.img") && !source.contains("word"), "{source}");
    assert!(bench.names("partial").is_empty());
}

#[test]
fn a_download_that_is_killed_goes_on_as_well_unless_the_file_is_another() {
    let bench = Bench::new();
    let packed = zstd::bulk::compress(&disk(), 3).unwrap();
    let digest = Digest::of(&packed).to_string();
    let sent = packed.clone();
    let mut held = Vec::new();
    let server = WebServer::start(move |number, head, mut stream| match number {
        // The line stays open, and nothing more comes.
        0 => {
            serve_part(&mut stream, head, &sent, "\"v1\"", MIB);
            held.push(stream);
        }
        // Another version by now: what is there is of no use.
        _ => serve_part(stream, head, &sent, "\"v2\"", usize::MAX),
    });
    let arguments = ["import", &server.url(), "--name", "one", "--sha256", &digest];
    let mut child: Child = bench.command(&arguments).stderr(Stdio::null()).spawn().expect("farrier runs");
    let partial = bench.state().join("images/partial").join(&digest);
    eventually("a part", || fs::metadata(&partial).ok().filter(|file| file.len() == MIB as u64));
    // Who else wants the same waits for another time.
    assert!(bench.refused(4, &arguments).contains("another import"));
    child.kill().unwrap();
    child.wait().unwrap();
    bench.done(&arguments);
    let heads = server.heads();
    assert_eq!(heads.iter().map(|head| range_of(head)).collect::<Vec<_>>(), [None, Some(MIB)]);
    assert!(heads[1].contains("if-range: \"v1\""), "{}", heads[1]);
    bench.has("one", &disk());
}

#[test]
fn s_10_what_a_server_sends_is_bounded_and_checked_before_it_is_used() {
    let bench = Bench::new();
    let digest = Digest::of(&disk()).to_string();
    let import = |server: &WebServer, code, most: &str| {
        let url = server.url();
        let arguments = ["import", &url, "--name", "one", "--sha256", &digest, "--max-size", most];
        let said = bench.refused(code, &arguments);
        assert!(!said.contains("word") && !said.contains("secret"), "{said}");
        assert!(bench.names("blobs").is_empty() && bench.names("disks").is_empty());
        said
    };
    // Something else: it is not unpacked, and not kept.
    let other = WebServer::start(|_, head, stream| {
        let bomb = zstd::encode_all(std::io::repeat(b'A').take(1 << 20), 1).unwrap();
        serve_part(stream, head, &bomb, "\"v1\"", usize::MAX);
    });
    assert!(import(&other, 4, "1G").contains(&digest));
    assert!(bench.names("partial").is_empty());
    let gone = WebServer::start(|_, _, stream| answer(stream, "404 Not Found", "", 4, b"gone"));
    assert!(import(&gone, 1, "1G").contains("404"));
    // Announced too large, and larger than announced: nothing tells how much will come.
    let large = WebServer::start(|_, _, stream| answer(stream, "200 OK", "", 5 * MIB, &[1; 1000]));
    assert!(import(&large, 4, "4M").contains("the limit is"));
    let endless = WebServer::start(|_, _, mut stream| {
        let head = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
        let piece = vec![1; 64 * 1024];
        while head.is_ok() && stream.write_all(&piece).is_ok() {}
    });
    assert!(import(&endless, 4, "4M").contains("the limit is"));
    // Nothing but breaking off is given up on, and says what helps.
    let breaking = WebServer::start(|_, _, stream| drop(stream));
    assert!(import(&breaking, 1, "1G").contains("goes on there"));
    assert_eq!(breaking.heads().len(), 5);
}

#[test]
fn https_is_believed_by_the_certificates_of_the_machine() {
    let bench = Bench::new();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let certificate = bench.write("certificate.pem", made.cert.pem().as_bytes());
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let connection = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut stream = rustls::StreamOwned::new(connection, stream);
            let head = read_head(&mut stream);
            serve_part(&mut stream, &head, &disk(), "\"v1\"", usize::MAX);
            stream.conn.send_close_notify();
            let _ = stream.flush();
        }
    });
    let digest = Digest::of(&disk()).to_string();
    let url = format!("https://localhost:{port}/disk.img");
    let arguments = ["import", &url, "--name", "one", "--sha256", &digest];
    let strangers = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let strangers = bench.write("strangers.pem", strangers.cert.pem().as_bytes());
    let refused = bench.command(&arguments).env("SSL_CERT_FILE", strangers).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("certificate"), "{said}");
    let none = bench.command(&arguments).env("SSL_CERT_FILE", "/nowhere").output().unwrap();
    assert!(String::from_utf8_lossy(&none.stderr).contains("ca-certificates"));
    let done = bench.command(&arguments).env("SSL_CERT_FILE", certificate).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    bench.has("one", &disk());
}
