//! What waits to leave by one socket, for however many clients: few system calls for many datagrams.

use std::io::{self, IoSlice};
use std::net::SocketAddrV4;
use std::os::fd::AsFd;

use bytes::Bytes;

use crate::net::sys::{self, BATCH_MAX, Pieces};
use crate::tftp::transfer::{Burst, Transmit};
use crate::tftp::wire::DATA_HEADER_LEN;

/// Longer batches would keep those at their beginning waiting, and their memory.
const WAITING_MAX: usize = BATCH_MAX;

#[derive(Debug)]
struct Parcel {
    to: SocketAddrV4,
    contents: Transmit,
}

#[derive(Debug)]
pub struct Outbox {
    waiting: Vec<Parcel>,
    /// The kernel cuts a burst into datagrams for us.
    cutting: bool,
}

impl Default for Outbox {
    fn default() -> Self {
        Self { waiting: Vec::new(), cutting: true }
    }
}

impl Outbox {
    /// To leave with the next [`Self::flush`]. A full outbox sends what it has.
    pub fn push(&mut self, socket: &impl AsFd, to: SocketAddrV4, contents: Transmit) {
        self.waiting.push(Parcel { to, contents });
        if self.waiting.len() >= WAITING_MAX {
            self.flush(socket);
        }
    }

    /// One datagram that is not of a transfer.
    pub fn push_datagram(&mut self, socket: &impl AsFd, to: SocketAddrV4, datagram: Vec<u8>) {
        self.push(socket, to, Transmit::OptionAck(Bytes::from(datagram)));
    }

    /// Sends everything. A datagram the kernel does not take now is a lost datagram: its transfer's timer sends it again.
    pub fn flush(&mut self, socket: &impl AsFd) {
        match self.waiting.as_slice() {
            [] => return,
            [Parcel { to, contents: Transmit::Blocks(burst) }] if burst.count == 1 => {
                send_separately(socket, *to, burst);
            }
            [Parcel { to, contents: Transmit::OptionAck(whole) }] => {
                let slices = [IoSlice::new(whole)];
                let _ = sys::send_pieces(
                    socket,
                    &[Pieces { slices: &slices, to: *to, from: None, cut_at: None }],
                );
            }
            _ => self.flush_batch(socket),
        }
        self.waiting.clear();
    }

    fn flush_batch(&mut self, socket: &impl AsFd) {
        let headers: Vec<[u8; DATA_HEADER_LEN]> = self.waiting.iter().flat_map(Parcel::headers).collect();
        let mut headers = headers.iter();
        let mut slices = Vec::with_capacity(2 * self.waiting.len());
        // (parcel, its slices, where to cut), one for each message.
        let mut messages = Vec::with_capacity(self.waiting.len());
        for (index, parcel) in self.waiting.iter().enumerate() {
            let mut start = slices.len();
            match &parcel.contents {
                Transmit::OptionAck(whole) => {
                    slices.push(IoSlice::new(whole));
                    messages.push((index, start..slices.len(), None));
                }
                Transmit::Blocks(burst) => {
                    for (data, header) in burst.payloads().zip(headers.by_ref().take(burst.count)) {
                        slices.push(IoSlice::new(header));
                        slices.push(IoSlice::new(data));
                        if !self.cutting || burst.count == 1 {
                            messages.push((index, start..slices.len(), None));
                            start = slices.len();
                        }
                    }
                    if start < slices.len() {
                        messages.push((index, start..slices.len(), u16::try_from(burst.segment_len()).ok()));
                    }
                }
            }
        }
        let pieces: Vec<Pieces<'_>> = messages
            .iter()
            .map(|(index, range, cut_at)| Pieces {
                slices: &slices[range.clone()],
                to: self.waiting[*index].to,
                from: None,
                cut_at: *cut_at,
            })
            .collect();
        let mut sent = 0;
        while sent < pieces.len() {
            match sys::send_pieces(socket, &pieces[sent..]) {
                Ok(count) => sent += count.max(1),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // No room for any of them.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    if let (Some(_), Transmit::Blocks(burst)) =
                        (pieces[sent].cut_at, &self.waiting[messages[sent].0].contents)
                    {
                        self.cutting &= !never_cuts(&error);
                        send_separately(socket, pieces[sent].to, burst);
                    }
                    sent += 1;
                }
            }
        }
    }
}

impl Parcel {
    fn headers(&self) -> impl Iterator<Item = [u8; DATA_HEADER_LEN]> {
        let burst = match &self.contents {
            Transmit::OptionAck(_) => None,
            Transmit::Blocks(burst) => Some(burst),
        };
        burst.into_iter().flat_map(Burst::headers)
    }
}

fn send_separately(socket: &impl AsFd, to: SocketAddrV4, burst: &Burst) {
    for (header, data) in burst.segments() {
        let slices = [IoSlice::new(&header), IoSlice::new(data)];
        if sys::send_pieces(socket, &[Pieces { slices: &slices, to, from: None, cut_at: None }]).is_err() {
            return;
        }
    }
}

/// The device cannot checksum, or the kernel is too old; otherwise (EINVAL, EMSGSIZE: the path became narrower than a
/// block) the next burst may be cut again.
fn never_cuts(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EOPNOTSUPP))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

    use super::*;

    fn socket() -> (UdpSocket, SocketAddrV4) {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
        let SocketAddr::V4(address) = socket.local_addr().unwrap() else { panic!("loopback is IPv4 here") };
        (socket, address)
    }

    fn burst(first: u64, count: usize, bytes: usize) -> Transmit {
        let payload = (0..bytes).map(|index| index as u8).collect::<Vec<_>>().into();
        Transmit::Blocks(Burst { first, count, payload, blksize: 100 })
    }

    fn drain(socket: &UdpSocket, count: usize) -> Vec<(u8, usize)> {
        let mut buffer = [0; 600];
        (0..count).map(|_| socket.recv(&mut buffer).map(|length| (buffer[3], length)).unwrap()).collect()
    }

    #[test]
    fn everything_leaves_in_order_cut_or_not() {
        let (server, _) = socket();
        let ((one, to_one), (two, to_two)) = (socket(), socket());
        for cutting in [true, false] {
            let mut outbox = Outbox { cutting, ..Outbox::default() };
            outbox.push(&server, to_one, burst(7, 4, 350));
            outbox.push_datagram(&server, to_two, b"oack".to_vec());
            outbox.push(&server, to_two, burst(1, 1, 0));
            outbox.flush(&server);
            assert_eq!(drain(&one, 4), [(7, 104), (8, 104), (9, 104), (10, 54)], "{cutting}");
            assert_eq!(drain(&two, 2), [(b'k', 4), (1, 4)], "{cutting}");
            assert!(outbox.waiting.is_empty());
        }
    }

    #[test]
    fn what_the_kernel_does_not_cut_or_send_does_not_hold_up_the_rest() {
        let (server, _) = socket();
        let (client, to) = socket();
        let mut outbox = Outbox::default();
        let too_long = Burst { first: 1, count: 2, payload: Bytes::from(vec![0; 140_000]), blksize: 70_000 };
        outbox.push(&server, to, Transmit::Blocks(too_long));
        outbox.push(&server, to, burst(5, 2, 150));
        outbox.flush(&server);
        assert_eq!(drain(&client, 2), [(5, 104), (6, 54)]);
    }
}
