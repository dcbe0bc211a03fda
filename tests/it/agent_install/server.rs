//! The appliance's side of the wire, as far as an install needs it: a thread for each connection, on loopback.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use farrier::agent::install::{Blob, Calls};
use farrier::node::install::intent::IntentId;
use farrier::node::install::task::{Progress, Report, TargetDisk};
use serde::Deserialize;
use serde_json::{Value, json};

use super::image::Image;
use super::machine::{Fake, Script};

pub const SESSION: &str = "the-session";

pub struct Server {
    pub url: String,
    pub fake: Arc<Fake>,
    /// Requests for a part.
    pub ranges: Arc<AtomicUsize>,
}

impl Server {
    /// Ends with the test's process; nothing it holds outlives that.
    pub fn start(image: &Image, script: Script) -> Server {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (fake, ranges) = (Arc::new(Fake::new(image, script)), Arc::new(AtomicUsize::new(0)));
        let server = Server { url, fake: Arc::clone(&fake), ranges: Arc::clone(&ranges) };
        let chunks = Arc::new(AtomicUsize::new(0));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (fake, ranges, chunks) = (Arc::clone(&fake), Arc::clone(&ranges), Arc::clone(&chunks));
                std::thread::spawn(move || {
                    let mut reader = BufReader::new(stream);
                    while serve(&mut reader, &fake, &ranges, &chunks).is_some() {}
                });
            }
        });
        server
    }
}

#[derive(Deserialize)]
struct Body {
    mac: String,
    intent: IntentId,
    disks: Option<Vec<TargetDisk>>,
    progress: Option<Progress>,
    report: Option<Report>,
    step: Option<String>,
    message: Option<String>,
}

/// One request; `None` ends the connection.
fn serve(
    reader: &mut BufReader<TcpStream>,
    fake: &Fake,
    ranges: &AtomicUsize,
    chunks: &AtomicUsize,
) -> Option<()> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|count| *count > 0)?;
    let mut words = line.split_ascii_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let (mut length, mut from, mut known) = (0, None, false);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let line = line.trim_end().to_ascii_lowercase();
        let Some((name, value)) = line.split_once(": ") else { break };
        match name {
            "content-length" => length = value.parse().ok()?,
            "range" => from = value.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok(),
            "authorization" => known = value == format!("bearer {SESSION}"),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let stream = reader.get_mut();
    assert!(known, "every call says who it is: {method} {path}");
    if let Some((after, status)) = fake.script.refuse_after
        && chunks.load(Ordering::SeqCst) >= after
    {
        let body = r#"{"reason":"told by the test"}"#;
        return answer(stream, &format!("{status} No"), "", body.as_bytes(), body.len());
    }
    if let Some(name) = path.strip_prefix("/agent/v1/chunk/").or(path.strip_prefix("/agent/v1/image/")) {
        let digest = name.parse().unwrap();
        let is_chunk = path.contains("/chunk/");
        let blob = fake.blob(if is_chunk { Blob::Chunk(digest) } else { Blob::Manifest(digest) })?;
        let number = if is_chunk { chunks.fetch_add(1, Ordering::SeqCst) } else { 0 };
        let part = &blob[from.unwrap_or(0)..];
        let breaks =
            from.is_none() && fake.script.break_every.is_some_and(|every| number % every == every - 1);
        let sent = if breaks { part.len() / 2 } else { part.len() };
        if let Some(from) = from {
            ranges.fetch_add(1, Ordering::SeqCst);
            let range = format!("Content-Range: bytes {from}-{}/{}\r\n", blob.len() - 1, blob.len());
            return answer(stream, "206 Partial Content", &range, part, part.len());
        }
        answer(stream, "200 OK", "", &part[..sent], part.len())?;
        return (!breaks).then_some(());
    }
    let told = call(fake, &path, &body).to_string();
    answer(stream, "200 OK", "", told.as_bytes(), told.len())
}

fn call(fake: &Fake, path: &str, body: &[u8]) -> Value {
    let body: Body = serde_json::from_slice(body).unwrap();
    assert_eq!(body.mac, super::machine::mac().to_string());
    match path {
        "/agent/v1/begin" => fake.begin(body.intent, &body.disks.unwrap()).map(|()| json!({})),
        "/agent/v1/seed" => fake.seed(body.intent).map(|seed| json!(seed)),
        "/agent/v1/progress" => {
            fake.progress(body.intent, &body.progress.unwrap()).map(|go_on| json!({ "go_on": go_on }))
        }
        "/agent/v1/done" => fake.done(body.intent, &body.report.unwrap()).map(|()| json!({})),
        "/agent/v1/failure" => {
            fake.failure(body.intent, &body.step.unwrap(), &body.message.unwrap()).map(|()| json!({}))
        }
        _ => panic!("{path} is none of the agent's calls"),
    }
    .unwrap()
}

fn answer(stream: &mut TcpStream, status: &str, more: &str, body: &[u8], length: usize) -> Option<()> {
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{more}\r\n");
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).ok()
}
