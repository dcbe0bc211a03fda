//! Request heads as they arrive, byte by byte, beside hyper: what hyper would let pass and RFC 9112 does not. Pure.
//!
//! hyper reads leniently: a bare LF ends a line (§2.2), `Transfer-Encoding` silently wins over `Content-Length`
//! (§6.3), equal lengths may repeat, a request may name no host (§3.2). Each leniency is a way to make two readers
//! disagree on where a request ends. This reader sees the same bytes and pushes one verdict per head; whoever
//! answers the request asks for the verdict first. No boot client sends a chunked request, so none is accepted,
//! which keeps the end of every body known.

/// Far above any boot client's (GRUB 200 bytes, a browser 1 KiB); the same limit hyper is given.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;

/// What is wrong with a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadFault {
    /// LF without CR before it, or CR without LF after it (RFC 9112 §2.2).
    BareLineEnd,
    /// A NUL byte.
    Nul,
    /// A header line that continues the one before (RFC 9112 §5.2).
    Folded,
    /// A header line without a colon, or with a space before it (RFC 9112 §5.1).
    NoName,
    /// `Content-Length` twice, or not a number (RFC 9112 §6.3).
    BadLength,
    /// `Content-Length` and `Transfer-Encoding` together: request smuggling (RFC 9112 §6.1).
    LengthAndEncoding,
    /// A transfer coding: bodies must come with their length here (RFC 9110 §15.5.12).
    Encoding,
    /// HTTP/1.1 without exactly one `Host` (RFC 9112 §3.2).
    Host,
    TooLarge,
}

impl HeadFault {
    /// The same word in log, counter and answer.
    pub fn as_str(self) -> &'static str {
        match self {
            HeadFault::BareLineEnd => "bare-line-end",
            HeadFault::Nul => "nul-in-head",
            HeadFault::Folded => "folded-header",
            HeadFault::NoName => "header-without-name",
            HeadFault::BadLength => "bad-content-length",
            HeadFault::LengthAndEncoding => "length-and-encoding",
            HeadFault::Encoding => "transfer-encoding",
            HeadFault::Host => "not-one-host",
            HeadFault::TooLarge => "head-too-large",
        }
    }
}

pub type Verdict = Result<(), HeadFault>;

/// Follows one connection's requests: head, body of known length, head, …
#[derive(Debug, Default)]
pub struct HeadReader {
    state: State,
}

#[derive(Debug)]
enum State {
    Head(Head),
    Body {
        left: u64,
    },
    /// After a fault nobody knows where the next request begins; the connection ends with this one.
    Lost,
}

impl Default for State {
    fn default() -> Self {
        State::Head(Head::default())
    }
}

#[derive(Debug, Default)]
struct Head {
    line: Vec<u8>,
    bytes: usize,
    /// The request line has been read.
    begun: bool,
    version_1_1: bool,
    hosts: u32,
    encoded: bool,
    length: Option<u64>,
}

impl HeadReader {
    /// Takes what was read from the connection; calls `decided` for each head that ends, or fails, within it.
    pub fn feed(&mut self, mut bytes: &[u8], mut decided: impl FnMut(Verdict)) {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Lost => return,
                State::Body { left } => {
                    let skipped = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    bytes = &bytes[skipped..];
                    *left -= skipped as u64;
                    if *left == 0 {
                        self.state = State::default();
                    }
                }
                State::Head(head) => {
                    let (taken, result) = head.feed(bytes);
                    bytes = &bytes[taken..];
                    match result {
                        Ok(None) => {}
                        Ok(Some(0)) => {
                            decided(Ok(()));
                            self.state = State::default();
                        }
                        Ok(Some(left)) => {
                            decided(Ok(()));
                            self.state = State::Body { left };
                        }
                        Err(fault) => {
                            decided(Err(fault));
                            self.state = State::Lost;
                        }
                    }
                }
            }
        }
    }

    /// True while a head has begun and not ended well: nobody may stay here long.
    pub fn inside_head(&self) -> bool {
        match &self.state {
            State::Head(head) => head.bytes > 0,
            State::Body { .. } => false,
            State::Lost => true,
        }
    }
}

impl Head {
    /// Returns how many bytes were taken, and the body's length once the head is complete.
    fn feed(&mut self, bytes: &[u8]) -> (usize, Result<Option<u64>, HeadFault>) {
        for (index, byte) in bytes.iter().enumerate() {
            self.bytes += 1;
            let after_cr = self.line.last() == Some(&b'\r');
            let result = match byte {
                _ if self.bytes > HEAD_BYTES_MAX => Err(HeadFault::TooLarge),
                b'\n' if after_cr => {
                    let mut line = std::mem::take(&mut self.line);
                    line.pop();
                    self.take_line(&line)
                }
                b'\n' => Err(HeadFault::BareLineEnd),
                _ if after_cr => Err(HeadFault::BareLineEnd),
                0 => Err(HeadFault::Nul),
                byte => {
                    self.line.push(*byte);
                    Ok(None)
                }
            };
            if !matches!(result, Ok(None)) {
                return (index + 1, result);
            }
        }
        (bytes.len(), Ok(None))
    }

    fn take_line(&mut self, line: &[u8]) -> Result<Option<u64>, HeadFault> {
        match (self.begun, line) {
            // RFC 9112 §2.2: empty lines before a request line are skipped.
            (false, b"") => Ok(None),
            (false, line) => {
                self.begun = true;
                self.version_1_1 = line.ends_with(b" HTTP/1.1");
                Ok(None)
            }
            (true, b"") => self.finish().map(Some),
            (true, line) => self.take_header(line).map(|()| None),
        }
    }

    fn take_header(&mut self, line: &[u8]) -> Result<(), HeadFault> {
        if matches!(line.first(), Some(b' ' | b'\t')) {
            return Err(HeadFault::Folded);
        }
        let colon = line.iter().position(|byte| *byte == b':').ok_or(HeadFault::NoName)?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.is_empty() || name.iter().any(u8::is_ascii_whitespace) {
            return Err(HeadFault::NoName);
        }
        if name.eq_ignore_ascii_case(b"host") {
            self.hosts += 1;
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.encoded = true;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
            let text = std::str::from_utf8(value).unwrap_or_default();
            match (digits, text.parse()) {
                (true, Ok(length)) if self.length.is_none() => self.length = Some(length),
                (true | false, Ok(_) | Err(_)) => return Err(HeadFault::BadLength),
            }
        }
        Ok(())
    }

    fn finish(&self) -> Result<u64, HeadFault> {
        match (self.encoded, self.length) {
            (true, Some(_)) => Err(HeadFault::LengthAndEncoding),
            (true, None) => Err(HeadFault::Encoding),
            (false, _) if self.version_1_1 && self.hosts != 1 => Err(HeadFault::Host),
            (false, length) => Ok(length.unwrap_or(0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn verdicts(stream: &[u8], piece: usize) -> Vec<Verdict> {
        let mut reader = HeadReader::default();
        let mut verdicts = Vec::new();
        for bytes in stream.chunks(piece.max(1)) {
            reader.feed(bytes, |verdict| verdicts.push(verdict));
        }
        verdicts
    }

    #[test]
    fn heads_bodies_and_heads_are_told_apart_however_they_are_cut() {
        let stream = b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n\
            POST /x HTTP/1.1\r\nhost:a\r\nContent-Length: 6\r\n\r\n\n\n\0\r\nxHEAD / HTTP/1.0\r\n\r\n";
        for piece in 1..stream.len() {
            assert_eq!(verdicts(stream, piece), [Ok(()), Ok(()), Ok(())], "{piece}");
        }
    }

    #[test]
    fn every_fault_is_found_and_ends_the_connection() {
        let table: [(&[u8], HeadFault); 15] = [
            (b"GET / HTTP/1.1\nHost: a\n\n", HeadFault::BareLineEnd),
            (b"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n", HeadFault::BareLineEnd),
            (b"GET / HTTP/1.1\r\nHost: a\0\r\n\r\n", HeadFault::Nul),
            (b"GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", HeadFault::Folded),
            (b"GET / HTTP/1.1\r\nHost: a\r\n\tb\r\n\r\n", HeadFault::Folded),
            (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", HeadFault::NoName),
            (b"GET / HTTP/1.1\r\nHost\r\n\r\n", HeadFault::NoName),
            (
                b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
                HeadFault::BadLength,
            ),
            (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n", HeadFault::BadLength),
            (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n", HeadFault::BadLength),
            (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", HeadFault::BadLength),
            (
                b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
                HeadFault::LengthAndEncoding,
            ),
            (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", HeadFault::Encoding),
            (b"GET / HTTP/1.1\r\n\r\n", HeadFault::Host),
            (b"GET / HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n", HeadFault::Host),
        ];
        for (stream, fault) in table {
            let followed = [stream, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"].concat();
            for piece in [1, 7, followed.len()] {
                assert_eq!(verdicts(&followed, piece), [Err(fault)], "{}", stream.escape_ascii());
            }
        }
    }

    #[test]
    fn a_head_without_end_is_too_large() {
        let endless = [b"GET / HTTP/1.1\r\nX: ".to_vec(), vec![b'a'; HEAD_BYTES_MAX]].concat();
        assert_eq!(verdicts(&endless, 1000), [Err(HeadFault::TooLarge)]);
    }

    proptest! {
        #[test]
        fn cutting_never_changes_a_verdict(
            stream in proptest::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b':'), Just(b'a'), any::<u8>()], 0..200),
            piece in 1usize..50,
        ) {
            prop_assert_eq!(verdicts(&stream, piece), verdicts(&stream, stream.len()));
        }
    }
}
