//! One connection, from accepted to closed: the bytes pass here on their way to hyper and back.
//!
//! What hyper writes is looked at once more: parts of a mapped file are sent by the kernel from the file itself,
//! behind whatever head comes before them (see [`line`](crate::bootplane::line)).
//!
//! # Turns
//! Downloads of one worker send one at a time, [`TURN_BYTES_MAX`] each, in the order they asked: each takes the
//! worker's only permit for its turn, and gives it back when its task is run again, that is when everybody who was
//! ready meanwhile has had a go. A permit given back in the same go would be free whenever another download asks for it,
//! and a script would stand behind all that are ready; so, however many there are, only one of them is ahead of it.
//!
//! # Whole packets
//! While more of a file is under way than the kernel queues, the socket is corked: an acknowledgement that arrives in the
//! middle of a sendfile(2) would otherwise have the kernel send what it has of the last packet at once, since Nagle's
//! algorithm is off for the sake of scripts. Cut up like that the same bytes are more packets, and more work at both ends.
//! The end of a file is not: corked to its last byte, a file of a kernel's size took half as long again. (Measured with
//! BBR; with Reno, which our link has instead, neither could be told from the spread.)
//!
//! # Pace
//! An answer to a machine that is to be sent files slowly is written a few milliseconds' worth at a time
//! ([`pace`](crate::net::pace)).

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::net::Ipv4Addr;
use std::pin::{Pin, pin};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, ready};

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::errno::Errno;
use nix::sys::sendfile::sendfile64;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::bootplane::body::{AnswerBody, TURN_BYTES_MAX};
use crate::bootplane::head::HEAD_BYTES_MAX;
use crate::bootplane::limits::Limits;
use crate::bootplane::line::{Line, Place};
use crate::bootplane::pulse::{Judgement, Overdue};
use crate::net::Urgency;
use crate::net::pace::Pace;

/// Unsent bytes the kernel takes for one connection: what a slow reader ties up. They are pages of the file itself,
/// and what is queued here the kernel sends on without waking us.
pub const UNSENT_BYTES_MAX: u32 = 4 * 1024 * 1024;

/// The kernel's own bound is usually the same, and to ask for it once more with `TCP_NOTSENT_LOWAT` costs throughput.
static BOUND_BY_KERNEL: LazyLock<bool> = LazyLock::new(|| {
    let limits = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_wmem").unwrap_or_default();
    send_queue_max(&limits).is_some_and(|most| most <= u64::from(UNSENT_BYTES_MAX))
});

/// The last of the three numbers of `net.ipv4.tcp_wmem`.
fn send_queue_max(limits: &str) -> Option<u64> {
    limits.split_whitespace().nth(2)?.parse().ok()
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// By either side between requests, or after the last answer.
    Orderly,
    /// hyper gave up: not HTTP, too large a head, a vanished peer.
    Broken,
    Overdue(Overdue),
}

impl Closed {
    pub fn as_str(self) -> &'static str {
        match self {
            Closed::Orderly | Closed::Overdue(Overdue::Linger) => "closed",
            Closed::Broken => "broken-connection",
            Closed::Overdue(overdue) => overdue.as_str(),
        }
    }
}

/// Serves one connection until it ends, is overdue, or `stop` asks it to finish its answer. `ended` is told how before
/// the socket is closed: whoever sees a connection cut finds it counted.
pub async fn serve<A, F>(
    socket: TcpStream,
    turns: Arc<Semaphore>,
    limits: &Limits,
    mut stop: watch::Receiver<bool>,
    answer: A,
    ended: impl FnOnce(Closed),
) where
    A: Fn(Arc<Line>, Request<Incoming>) -> F,
    F: Future<Output = Response<AnswerBody>>,
{
    let options = socket2::SockRef::from(&socket);
    // Failing to set either only costs speed.
    let _ = options.set_tcp_nodelay(true);
    if !*BOUND_BY_KERNEL {
        let _ = options.set_tcp_notsent_lowat(UNSENT_BYTES_MAX);
    }
    let line = Arc::new(Line::new(Instant::now()));
    let stream = Stream::new(socket, Arc::clone(&line), turns);
    let service = service_fn(|request| {
        let answer = answer(Arc::clone(&line), request);
        async { Ok::<_, std::convert::Infallible>(answer.await) }
    });
    let connection = http1::Builder::new()
        // GRUB and older shims compare header names by case (protocol.md finding 1).
        .title_case_headers(true)
        .keep_alive(true)
        .half_close(true)
        .max_buf_size(HEAD_BYTES_MAX)
        // hyper counts idle time as header time; `Pulse` tells them apart, this one only backs it up.
        .timer(TokioTimer::new())
        .header_read_timeout(limits.idle + limits.head)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let mut stopping = pin!(async move {
        // A sender that is gone has stopped as well.
        let _ = stop.wait_for(|stop| *stop).await;
    });
    let mut stopped = false;
    let mut alarm = pin!(sleep_until(Instant::now() + limits.head));
    let mut go = |context: &mut Context<'_>| {
        if !stopped && stopping.as_mut().poll(context).is_ready() {
            stopped = true;
            connection.as_mut().graceful_shutdown();
        }
        if let Poll::Ready(result) = connection.as_mut().poll(context) {
            return Poll::Ready(result.map_or(Closed::Broken, |()| Closed::Orderly));
        }
        loop {
            match line.pulse.judge(limits, Instant::now()) {
                Judgement::Close(overdue) => return Poll::Ready(Closed::Overdue(overdue)),
                // A later deadline needs no new alarm: the old one goes off, and asks again.
                Judgement::Wait(due) if due < alarm.deadline() => alarm.as_mut().reset(due),
                Judgement::Wait(due) => {
                    ready!(alarm.as_mut().poll(context));
                    alarm.as_mut().reset(due);
                }
            }
        }
    };
    let closed = poll_fn(|context| {
        line.end_turn();
        let gone = go(context);
        if line.has_turn() {
            // To give it back.
            context.waker().wake_by_ref();
        }
        gone
    })
    .await;
    ended(closed);
}

/// The peer's address, if it is one we can know.
pub fn ipv4_of(peer: std::net::SocketAddr) -> Option<Ipv4Addr> {
    match peer {
        std::net::SocketAddr::V4(peer) => Some(*peer.ip()),
        std::net::SocketAddr::V6(peer) => peer.ip().to_ipv4_mapped(),
    }
}

/// The socket, with its pulse taken.
struct Stream {
    socket: TcpStream,
    line: Arc<Line>,
    turns: Arc<Semaphore>,
    /// A place in the queue for the next turn.
    turn: Option<PlaceInQueue>,
    /// Until the machine's pace allows more.
    pause: Option<Pin<Box<Sleep>>>,
    sent_this_turn: usize,
    /// As the socket has it: prompt, like its listener, until it sends a file.
    urgency: Urgency,
    /// As the socket has it.
    corked: bool,
    write_closed: bool,
}

type PlaceInQueue = Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send>>;

impl Stream {
    fn new(socket: TcpStream, line: Arc<Line>, turns: Arc<Semaphore>) -> Stream {
        let urgency = Urgency::Prompt;
        Stream {
            socket,
            line,
            turns,
            turn: None,
            pause: None,
            sent_this_turn: 0,
            urgency,
            corked: false,
            write_closed: false,
        }
    }

    /// Pending once a turn is used up, with the next one asked for.
    fn poll_yield(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.sent_this_turn < TURN_BYTES_MAX {
            return Poll::Ready(());
        }
        self.sent_this_turn = 0;
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// How much may leave now, of an answer whose pace is bounded.
    fn poll_pace(&mut self, context: &mut Context<'_>) -> Poll<Option<(Arc<Pace>, usize)>> {
        let Some(pace) = self.line.pace() else { return Poll::Ready(None) };
        loop {
            let until = match pace.room(Instant::now().into_std()) {
                Ok(room) => return Poll::Ready(Some((pace, room))),
                Err(until) => Instant::from_std(until),
            };
            let pause = self.pause.get_or_insert_with(|| Box::pin(sleep_until(until)));
            pause.as_mut().reset(until);
            ready!(pause.as_mut().poll(context));
        }
    }

    /// This worker's permit to send parts of files, which one connection has at a time; for this go of its task.
    fn poll_turn(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.line.has_turn() {
            return Poll::Ready(Ok(()));
        }
        let place = self.turn.get_or_insert_with(|| Box::pin(Arc::clone(&self.turns).acquire_owned()));
        let permit = ready!(place.as_mut().poll(context));
        self.turn = None;
        self.line.begin_turn(permit.map_err(io::Error::other)?);
        Poll::Ready(Ok(()))
    }

    /// Sends a part of a file, and what is to be written before it.
    fn poll_send_part(
        &mut self,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
        part: &FilePart,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.socket.poll_write_ready(context))?;
            ready!(self.poll_turn(context))?;
            match self.socket.try_io(Interest::WRITABLE, || send_part(&self.socket, slices, part)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    /// Text overtakes files on a full link; one connection carries both, one after the other.
    fn hurry(&mut self, urgency: Urgency) {
        if self.urgency != urgency {
            self.urgency = urgency;
            urgency.set_on(&self.socket);
        }
    }

    /// Has the kernel keep, or let go of, the part of a packet at the end of what it was given.
    fn cork(&mut self, corked: bool) {
        if self.corked != corked {
            self.corked = corked;
            // Failing to only costs speed: what is corked leaves after 200 ms at the latest.
            let _ = socket2::SockRef::from(&self.socket).set_tcp_cork(corked);
        }
    }

    fn count_sent(&mut self, count: usize) -> usize {
        self.sent_this_turn += count;
        self.line.pulse.sent(count, Instant::now());
        count
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.socket).poll_read(context, buffer))?;
        let received = &buffer.filled()[before..];
        if !received.is_empty() {
            self.line.pulse.received(received, Instant::now());
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_yield(context));
        self.hurry(Urgency::Prompt);
        let count = ready!(Pin::new(&mut self.socket).poll_write(context, bytes))?;
        Poll::Ready(Ok(self.count_sent(count)))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_yield(context));
        let paced = ready!(self.poll_pace(context));
        let cut;
        let slices = match &paced {
            None => slices,
            Some((_, room)) => {
                cut = first_bytes(slices, *room);
                &cut
            }
        };
        let place = |(index, slice): (usize, &IoSlice<'_>)| {
            self.line.place_of(slice).map(|place| FilePart { index, place, length: slice.len() })
        };
        let count = match slices.iter().enumerate().find_map(place) {
            None => {
                self.hurry(Urgency::Prompt);
                ready!(Pin::new(&mut self.socket).poll_write_vectored(context, slices))?
            }
            Some(part) => {
                self.hurry(Urgency::Bulk);
                self.cork(paced.is_none() && part.place.left > UNSENT_BYTES_MAX as usize);
                ready!(self.poll_send_part(context, slices, &part))?
            }
        };
        if let Some((pace, _)) = paced {
            pace.sent(count, Instant::now().into_std());
        }
        Poll::Ready(Ok(self.count_sent(count)))
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes in the middle of a body as well.
        if self.corked && !self.line.sends_from_file() {
            self.cork(false);
        }
        Pin::new(&mut self.socket).poll_flush(context)
    }

    /// Closes our direction, then reads on until the peer closes its own: closing a socket with unread input resets
    /// the connection, and the reset can overtake the answer that explains it (RFC 9112 §9.6).
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.write_closed {
            ready!(Pin::new(&mut self.socket).poll_shutdown(context))?;
            self.write_closed = true;
            self.line.pulse.lingering_began(Instant::now());
        }
        let mut scratch = [0; 4096];
        loop {
            let mut buffer = ReadBuf::new(&mut scratch);
            ready!(Pin::new(&mut self.socket).poll_read(context, &mut buffer))?;
            if buffer.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

/// The slices up to this many bytes.
fn first_bytes<'a>(slices: &'a [IoSlice<'_>], mut most: usize) -> Vec<IoSlice<'a>> {
    let mut first = Vec::with_capacity(slices.len());
    for slice in slices {
        let taken = slice.len().min(most);
        first.push(IoSlice::new(&slice[..taken]));
        most -= taken;
    }
    first
}

/// The first of the slices to write that is a part of a file.
struct FilePart {
    index: usize,
    place: Place,
    length: usize,
}

/// Sends the slices before the part, then the part from its file; tells how many bytes the kernel took.
fn send_part(socket: &TcpStream, slices: &[IoSlice<'_>], part: &FilePart) -> io::Result<usize> {
    let options = socket2::SockRef::from(socket);
    let before = &slices[..part.index];
    let mut sent = 0;
    if !before.is_empty() {
        // MSG_MORE: the head leaves in one packet with the first bytes of the body.
        sent = options.send_vectored_with_flags(before, libc::MSG_MORE | libc::MSG_NOSIGNAL)?;
        if sent < before.iter().map(|slice| slice.len()).sum() {
            return Ok(sent);
        }
    }
    let mut offset = i64::try_from(part.place.offset).map_err(io::Error::other)?;
    let result = match sendfile64(socket, &*part.place.file, Some(&mut offset), part.length) {
        // The file ends before its mapping does: somebody cut what must never change.
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        // A file system without splicing; the mapping serves as well.
        Err(Errno::EINVAL | Errno::ENOSYS) => {
            options.send_with_flags(&slices[part.index], libc::MSG_NOSIGNAL)
        }
        result => result.map_err(io::Error::from),
    };
    match result {
        Ok(count) => Ok(sent + count),
        // What was sent counts; the same error comes again when only the part is left.
        Err(_) if sent > 0 => Ok(sent),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Duration;

    use bytes::Bytes;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use crate::bootplane::line::{Mapped, Source};

    use super::*;

    async fn connected() -> (Stream, TcpStream) {
        connected_to(&Arc::new(Semaphore::new(1))).await
    }

    async fn connected_to(turns: &Arc<Semaphore>) -> (Stream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        let line = Arc::new(Line::new(Instant::now()));
        (Stream::new(socket, line, Arc::clone(turns)), peer)
    }

    impl Stream {
        /// As the kernel has it.
        fn socket_priority(&self) -> Urgency {
            match nix::sys::socket::getsockopt(&self.socket, nix::sys::socket::sockopt::Priority).unwrap() {
                2 => Urgency::Bulk,
                0 | 6 => Urgency::Prompt,
                other => panic!("priority {other}"),
            }
        }
    }

    async fn write(stream: &mut Stream, slices: &[&[u8]]) -> io::Result<usize> {
        let slices: Vec<IoSlice<'_>> = slices.iter().map(|slice| IoSlice::new(slice)).collect();
        poll_fn(|context| Pin::new(&mut *stream).poll_write_vectored(context, &slices)).await
    }

    /// A "mapping" unlike its file shows which of the two was sent.
    fn mapped() -> Mapped {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"from the file").unwrap();
        Mapped { file: Arc::new(file), bytes: Bytes::from(b"in the memory".to_vec()) }
    }

    fn whole(mapped: &Mapped) -> Source {
        Source { mapped: mapped.clone(), answer: mapped.bytes.clone() }
    }

    #[tokio::test]
    async fn packets_are_whole_until_the_rest_of_a_file_is_queued_at_once() {
        let (mut stream, mut peer) = connected().await;
        let size = UNSENT_BYTES_MAX as usize + 3;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; size]).unwrap();
        let mapped = Mapped { file: Arc::new(file), bytes: Bytes::from(vec![0; size]) };
        stream.line.sending_from(Some(whole(&mapped)));
        let corked = |stream: &Stream| socket2::SockRef::from(&stream.socket).tcp_cork().unwrap();
        assert!(!corked(&stream));
        assert_eq!(write(&mut stream, &[b"head, ", &mapped.bytes[..3]]).await.unwrap(), 9);
        assert!(corked(&stream), "more than that follows");
        let mut received = [0; 9];
        assert_eq!(write(&mut stream, &[&mapped.bytes[3..6]]).await.unwrap(), 3);
        assert!(!corked(&stream));
        peer.read_exact(&mut received).await.unwrap();
        assert_eq!(&received, b"head, \x07\x07\x07");
        // Nor is anything kept back of what comes to another end.
        stream.cork(true);
        stream.line.sending_from(None);
        poll_fn(|context| Pin::new(&mut stream).poll_flush(context)).await.unwrap();
        assert!(!corked(&stream));
    }

    #[test]
    fn the_kernels_bound_is_the_last_of_three() {
        assert_eq!(send_queue_max("4096\t16384\t4194304\n"), Some(4_194_304));
        for nothing in ["", "4096 16384", "4096 16384 much"] {
            assert_eq!(send_queue_max(nothing), None);
        }
    }

    #[tokio::test]
    async fn the_kernel_sends_a_mapped_part_from_its_file_behind_the_head() {
        let (mut stream, mut peer) = connected().await;
        let mapped = mapped();
        stream.line.sending_from(Some(whole(&mapped)));
        for (slices, expected) in [
            ([&b"head, "[..], &mapped.bytes[..]], &b"head, from the file"[..]),
            ([&b"head, "[..], &mapped.bytes[9..]], b"head, file"),
            ([&mapped.bytes[..4], b""], b"from"),
            ([&b"head, "[..], b"and memory"], b"head, and memory"),
        ] {
            assert_eq!(write(&mut stream, &slices).await.unwrap(), expected.len());
            let mut received = vec![0; expected.len()];
            peer.read_exact(&mut received).await.unwrap();
            assert_eq!(received, expected, "{}", received.escape_ascii());
        }
    }

    #[tokio::test]
    async fn one_download_has_the_turn_until_its_next_go_and_text_needs_none() {
        let turns = Arc::new(Semaphore::new(1));
        let (mut first, _peer) = connected_to(&turns).await;
        let (mut second, _other_peer) = connected_to(&turns).await;
        let mapped = mapped();
        for stream in [&mut first, &mut second] {
            stream.line.sending_from(Some(whole(&mapped)));
            assert_eq!(write(stream, &[b"text"]).await.unwrap(), 4);
            assert_eq!(stream.socket_priority(), Urgency::Prompt);
        }
        assert_eq!(write(&mut first, &[&mapped.bytes[..4]]).await.unwrap(), 4);
        assert_eq!(first.socket_priority(), Urgency::Bulk);
        assert_eq!(write(&mut first, &[&mapped.bytes[4..5]]).await.unwrap(), 1);
        let part = [IoSlice::new(&mapped.bytes[..4])];
        let waits = poll_fn(|context| {
            Poll::Ready(Pin::new(&mut second).poll_write_vectored(context, &part).is_pending())
        });
        assert!(waits.await);
        assert_eq!(write(&mut second, &[b"text"]).await.unwrap(), 4);
        first.line.end_turn();
        assert_eq!(write(&mut second, &[&mapped.bytes[..4]]).await.unwrap(), 4);
        assert!(second.line.has_turn() && !first.line.has_turn());
    }

    #[tokio::test]
    async fn what_has_a_pace_leaves_part_by_part_from_memory_and_from_a_file() {
        let (mut stream, mut peer) = connected().await;
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..100_000_u32).map(|index| (index / 7) as u8).collect();
        file.write_all(&content).unwrap();
        let mapped = Mapped { file: Arc::new(file), bytes: Bytes::from(content.clone()) };
        let reader = tokio::spawn(async move {
            let mut received = vec![0; 200_000];
            peer.read_exact(&mut received).await.map(|_| received)
        });
        // A megabyte a second: 4000 bytes in each part.
        stream.line.paced_by(Some(Arc::new(Pace::new(8))));
        let began = Instant::now();
        for from_file in [true, false] {
            stream.line.sending_from(from_file.then(|| whole(&mapped)));
            let mut sent = 0;
            while sent < content.len() {
                let rest = if from_file { &mapped.bytes[sent..] } else { &content[sent..] };
                let count = write(&mut stream, &[b"", rest]).await.unwrap();
                assert!((1..=4000).contains(&count), "{count}");
                sent += count;
                stream.line.end_turn();
            }
        }
        assert!(began.elapsed() >= Duration::from_millis(180), "{:?}", began.elapsed());
        assert!(reader.await.unwrap().unwrap() == content.repeat(2));
    }

    #[tokio::test]
    async fn a_file_that_was_cut_ends_the_connection_and_nothing_else() {
        let (mut stream, _peer) = connected().await;
        let mapped = mapped();
        mapped.file.set_len(4).unwrap();
        stream.line.sending_from(Some(whole(&mapped)));
        assert_eq!(write(&mut stream, &[b"head, ", &mapped.bytes]).await.unwrap(), 10);
        let error = write(&mut stream, &[&mapped.bytes[4..]]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
