//! HTTP/1.1 byte by byte: what is sent is what is written here, what came is all of it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::support::PATIENCE;

pub struct Answer {
    pub status: u16,
    /// Status line and headers as they were on the wire.
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    /// A header by its exact spelling.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

pub fn connect(address: impl Into<SocketAddr>) -> TcpStream {
    let stream = TcpStream::connect(address.into()).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    stream
}

/// One answer; `Content-Length` says where it ends, in whatever case.
pub fn answer(stream: &mut TcpStream, method: &str) -> Answer {
    let (mut bytes, mut part) = (Vec::new(), [0; 65536]);
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4) {
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let lower = head.to_ascii_lowercase();
            let length = lower.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length: usize = match method {
                "HEAD" => 0,
                _ => length.and_then(|word| word.parse().ok()).unwrap_or(0),
            };
            if bytes.len() - end >= length {
                let status = head[9..12].parse().expect("a status");
                return Answer { status, head, body: bytes[end..end + length].to_vec() };
            }
        }
        let count = stream.read(&mut part).expect("more of the answer");
        assert!(count > 0, "closed inside an answer: {}", bytes[..bytes.len().min(500)].escape_ascii());
        bytes.extend_from_slice(&part[..count]);
    }
}

/// One request on a connection that stays; `headers` is lines that end in CRLF.
pub fn request(stream: &mut TcpStream, method: &str, path: &str, headers: &str, body: &str) -> Answer {
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let text = format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}{length}\r\n{body}");
    // The other side may have refused already; what it answered is still to be read.
    let _ = stream.write_all(text.as_bytes());
    answer(stream, method)
}
