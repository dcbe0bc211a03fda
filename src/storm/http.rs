//! An HTTP/1.1 client: one request and its answer, as bytes in and out. Bodies that nobody reads are counted.

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::storm::machine::Trouble;

/// A response head longer than this is none that firmware would take.
const HEAD_MAX: usize = 16 * 1024;
/// Scripts and answers to calls; what is longer is not one.
const KEPT_MAX: u64 = 256 * 1024;

/// `http://ADDRESS[:PORT]/PATH`; boot URLs carry addresses, for firmware may not resolve names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    pub server: SocketAddrV4,
    pub path: String,
}

impl Url {
    pub fn parse(text: &str) -> Option<Url> {
        let rest = text.strip_prefix("http://")?;
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let server =
            host.parse().or_else(|_| host.parse::<Ipv4Addr>().map(|ip| SocketAddrV4::new(ip, 80))).ok()?;
        Some(Url { server, path: if path.is_empty() { "/".to_owned() } else { path.to_owned() } })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Head,
    Get,
    Post,
}

/// An answer, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// Bytes of body announced; for HEAD none of them came.
    pub length: u64,
    pub retry_after: Option<u64>,
    /// The body, where it was asked for or the status was no success.
    pub content: Vec<u8>,
    /// The connection may be used again.
    pub keep_alive: bool,
}

/// One request under way.
#[derive(Debug)]
pub struct Exchange {
    method: Method,
    keep: bool,
    request: Vec<u8>,
    written: usize,
    head: Vec<u8>,
    answer: Option<Answer>,
    body_left: u64,
    moved: u64,
}

impl Exchange {
    pub fn new(
        method: Method,
        url: &Url,
        user_agent: &str,
        bearer: Option<&str>,
        body: &[u8],
        keep: bool,
    ) -> Exchange {
        let word = match method {
            Method::Head => "HEAD",
            Method::Get => "GET",
            Method::Post => "POST",
        };
        let mut head = format!(
            "{word} {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: {user_agent}\r\nAccept: */*\r\nConnection: keep-alive\r\n",
            url.path,
            url.server.ip()
        );
        if let Some(bearer) = bearer {
            head.push_str(&format!("Authorization: Bearer {bearer}\r\n"));
        }
        if method == Method::Post {
            head.push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        let mut request = head.into_bytes();
        request.extend_from_slice(body);
        Exchange { method, keep, request, written: 0, head: Vec::new(), answer: None, body_left: 0, moved: 0 }
    }

    /// Starts over, on another connection.
    pub fn restart(&mut self) {
        self.written = 0;
        self.head.clear();
        self.answer = None;
        self.body_left = 0;
        self.moved = 0;
    }

    pub fn pending(&self) -> &[u8] {
        &self.request[self.written..]
    }

    pub fn wrote(&mut self, bytes: usize) {
        self.written = (self.written + bytes).min(self.request.len());
    }

    /// Bytes received so far, of head and body.
    pub fn moved(&self) -> u64 {
        self.moved
    }

    /// How many bytes of body may be thrown away unread; `None` while head or body are wanted.
    pub fn discardable(&self) -> Option<u64> {
        let answer = self.answer.as_ref()?;
        (!self.is_kept(answer)).then_some(self.body_left)
    }

    fn is_kept(&self, answer: &Answer) -> bool {
        self.keep || !(200..300).contains(&answer.status)
    }

    pub fn discarded(&mut self, bytes: u64) -> Option<Result<Answer, Trouble>> {
        self.moved += bytes;
        self.body_left = self.body_left.saturating_sub(bytes);
        if self.body_left == 0 { self.answer.take().map(Ok) } else { None }
    }

    pub fn feed(&mut self, bytes: &[u8]) -> Option<Result<Answer, Trouble>> {
        let mut body = bytes;
        if self.answer.is_none() {
            self.head.extend_from_slice(bytes);
            let Some(end) = self.head.windows(4).position(|window| window == b"\r\n\r\n") else {
                self.moved += bytes.len() as u64;
                return (self.head.len() > HEAD_MAX).then_some(Err(Trouble::HttpNonsense));
            };
            let Some(answer) = parse_head(&self.head[..end]) else { return Some(Err(Trouble::HttpNonsense)) };
            let in_head = self.head.len() - (end + 4);
            self.moved += (bytes.len() - in_head) as u64;
            body = &bytes[bytes.len() - in_head..];
            self.body_left = if self.method == Method::Head { 0 } else { answer.length };
            if self.is_kept(&answer) && self.body_left > KEPT_MAX {
                return Some(Err(Trouble::HttpNonsense));
            }
            self.answer = Some(answer);
        }
        let take = usize::try_from(self.body_left).unwrap_or(usize::MAX).min(body.len());
        if let Some(answer) = &mut self.answer
            && (self.keep || !(200..300).contains(&answer.status))
        {
            answer.content.extend_from_slice(&body[..take]);
        }
        self.discarded(take as u64)
    }
}

/// Without a length firmware cannot tell a whole file from a broken one.
fn parse_head(head: &[u8]) -> Option<Answer> {
    let text = std::str::from_utf8(head).ok()?;
    let mut lines = text.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    let (mut length, mut retry_after, mut keep_alive) = (None, None, true);
    for line in lines {
        let (name, value) = line.split_once(':')?;
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().ok(),
            "retry-after" => retry_after = value.parse().ok(),
            "connection" => keep_alive = !value.eq_ignore_ascii_case("close"),
            _ => {}
        }
    }
    let length = length.or((status == 204 || status == 304).then_some(0))?;
    Some(Answer { status, length, retry_after, content: Vec::new(), keep_alive })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exchange(method: Method, keep: bool) -> Exchange {
        let url = Url::parse("http://10.0.0.1/a").unwrap();
        Exchange::new(method, &url, "test", None, b"", keep)
    }

    #[test]
    fn urls_carry_addresses() {
        let url = Url::parse("http://10.0.0.1:8080/a/b").unwrap();
        assert_eq!((url.server.to_string().as_str(), url.path.as_str()), ("10.0.0.1:8080", "/a/b"));
        assert_eq!(Url::parse("http://10.0.0.1").unwrap().path, "/");
        assert!(Url::parse("https://10.0.0.1/").is_none());
        assert!(Url::parse("http://boot.example/").is_none());
    }

    #[test]
    fn an_answer_may_come_in_any_pieces() {
        let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
        for cut in 0..bytes.len() {
            let mut exchange = exchange(Method::Get, true);
            assert_eq!(exchange.feed(&bytes[..cut]), None, "{cut}");
            let answer = exchange.feed(&bytes[cut..]).unwrap().unwrap();
            assert_eq!((answer.content.as_slice(), answer.keep_alive), (&b"hello"[..], false));
            assert_eq!(exchange.moved(), bytes.len() as u64);
        }
    }

    #[test]
    fn a_body_nobody_wants_is_thrown_away() {
        let mut exchange = exchange(Method::Get, false);
        assert_eq!(exchange.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe"), None);
        assert_eq!(exchange.discardable(), Some(3));
        assert_eq!(exchange.discarded(3).unwrap().unwrap().length, 5);
    }

    #[test]
    fn head_has_no_body_and_a_busy_server_says_when() {
        let mut head = exchange(Method::Head, false);
        let answer = head.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n").unwrap().unwrap();
        assert_eq!(answer.length, 500);
        let mut busy = exchange(Method::Get, false);
        let answer =
            busy.feed(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nRetry-After: 7\r\n\r\n").unwrap().unwrap();
        assert_eq!((answer.status, answer.retry_after), (503, Some(7)));
        let chunked =
            exchange(Method::Get, false).feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        assert_eq!(chunked, Some(Err(Trouble::HttpNonsense)));
    }
}
