//! One socket to a peer node: what waits for it, how much may be on its way, and when it ends. Other
//! connections, and whose turn it is, are the table's.

use super::window::{ReceiveWindow, RuleBroken, SendWindow};
use crate::failure::{Failure, Reason};
use crate::os;
use crate::peer::Credentials;
use crate::port::MIN_SPLICE;
use crate::port::pipes::Moved;
use crate::port::protocol::{HANDSHAKE_WINDOW, WINDOW};
use mio::net::UnixStream;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::os::fd::AsFd;

/// Pieces up to this size are collected and written together at the end of a turn; a larger one
/// is worth a system call of its own and spares the copy.
const COALESCE: usize = 16 << 10;

/// A queue that is larger than this gives its memory back when it is empty again.
const RETAINED_CAPACITY: usize = 16 << 10;

/// Who made a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The peer connected to us.
    In,
    /// We connected to the peer.
    Out,
}

/// How far a connection has come.
#[derive(Debug)]
enum Stage {
    /// The peer has not shown yet that it knows the cookie.
    Handshake,
    /// Open for distribution with the node of this name.
    Established(String),
    /// The VM has closed it; what waits is still delivered.
    Closing,
}

/// What one read has brought.
#[derive(Debug)]
pub enum ReadOutcome {
    /// There may be more.
    More,
    /// Nothing more until the socket is readable again.
    Drained,
    /// The last byte has been read.
    Ended(Failure),
}

/// One socket to a peer.
pub struct Connection {
    stream: UnixStream,
    peer: Credentials,
    direction: Direction,
    stage: Stage,
    /// From the VM, not yet taken by the socket.
    outgoing: VecDeque<u8>,
    /// The socket failed when it was written to. What the peer sent before that is still read.
    write_error: Option<io::Error>,
    /// Bytes that the socket had announced did not come.
    lost: bool,
    /// The socket may have something to read.
    readable: bool,
    /// The socket has said that the peer will send no more; reads must go on until they say so.
    read_closed: bool,
    /// Bytes from the VM.
    from_vm: ReceiveWindow,
    /// Bytes to the VM.
    to_vm: SendWindow,
    /// Bytes read from the socket so far.
    bytes_in: u64,
    /// Bytes written to the socket so far.
    bytes_out: u64,
}

impl Connection {
    /// A connection at its beginning.
    pub fn new(stream: UnixStream, peer: Credentials, direction: Direction) -> Self {
        Connection {
            stream,
            peer,
            direction,
            stage: Stage::Handshake,
            outgoing: VecDeque::new(),
            write_error: None,
            lost: false,
            readable: false,
            read_closed: false,
            from_vm: ReceiveWindow::new(WINDOW),
            to_vm: SendWindow::new(HANDSHAKE_WINDOW),
            bytes_in: 0,
            bytes_out: 0,
        }
    }

    /// A connection that came in, and of which `heard` bytes were read.
    pub fn introduced(stream: UnixStream, peer: Credentials, heard: usize) -> Self {
        let mut connection = Connection::new(stream, peer, Direction::In);
        connection.count_read(heard);
        connection
    }

    /// The socket, to register it with the loop.
    pub fn stream_mut(&mut self) -> &mut UnixStream {
        &mut self.stream
    }

    // --- its stages ------------------------------------------------------------------------------

    /// True until the handshake is through.
    pub fn is_in_handshake(&self) -> bool {
        matches!(self.stage, Stage::Handshake)
    }

    /// True once the VM has closed it.
    pub fn is_closing(&self) -> bool {
        matches!(self.stage, Stage::Closing)
    }

    /// The handshake is through.
    pub fn establish(&mut self, node: String) {
        self.stage = Stage::Established(node);
        // What fits there can be spliced; what does not has to wait in `outgoing`.
        os::enlarge_send_buffer(&self.stream, WINDOW);
        self.to_vm.widen(WINDOW);
    }

    /// The socket is about to go to the VM, in the state in which [`establish`](Self::establish) would
    /// leave it.
    pub fn prepare_hand_over(&mut self) {
        self.flush();
        os::enlarge_send_buffer(&self.stream, WINDOW);
    }

    /// The VM has closed it.
    pub fn close(&mut self) {
        self.stage = Stage::Closing;
    }

    // --- from the VM to the peer -----------------------------------------------------------------

    /// Bytes that wait for the socket.
    pub fn unsent(&self) -> usize {
        self.outgoing.len()
    }

    /// Takes bytes of the VM. Small ones wait for [`flush`](Self::flush).
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), RuleBroken> {
        self.from_vm.received(bytes.len())?;
        if self.write_error.is_some() {
            // Nobody will read them; the connection is reported down when its input is read.
            self.from_vm.passed_on(bytes.len());
        } else if self.outgoing.len() + bytes.len() < COALESCE {
            self.outgoing.extend(bytes);
        } else {
            self.flush();
            let written = match self.outgoing.is_empty() {
                true => self.write(bytes),
                false => 0,
            };
            match self.write_error {
                None => self.outgoing.extend(&bytes[written..]),
                Some(_) => self.from_vm.passed_on(bytes.len() - written),
            }
        }
        Ok(())
    }

    /// Splices the VM's next bytes, `limit` at most, from its pipe to the socket; the number of those
    /// that went, 0 if they have to take the way of [`send`](Self::send).
    pub fn splice_from(&mut self, pipe: impl AsFd, limit: usize) -> usize {
        self.flush();
        if !self.outgoing.is_empty() || self.write_error.is_some() || !self.from_vm.admits(limit) {
            return 0;
        }
        match os::splice(pipe, &self.stream, limit) {
            Ok(count) => {
                self.from_vm.received(count).expect("it was asked");
                self.wrote(count);
                count
            }
            // What is wrong with the socket, writing to it will tell.
            Err(_) => 0,
        }
    }

    /// Writes what waits, as far as the socket takes it.
    pub fn flush(&mut self) {
        let mut queue = std::mem::take(&mut self.outgoing);
        while !queue.is_empty() {
            let (front, back) = queue.as_slices();
            let pieces = [IoSlice::new(front), IoSlice::new(back)];
            let count = if back.is_empty() { 1 } else { 2 };
            match self.write_once(&pieces[..count]) {
                0 => break,
                count => drop(queue.drain(..count)),
            }
        }
        if self.write_error.is_some() {
            self.from_vm.passed_on(queue.len());
            queue.clear();
        }
        if queue.is_empty() && queue.capacity() > RETAINED_CAPACITY {
            queue = VecDeque::new();
        }
        self.outgoing = queue;
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        let mut written = 0;
        while written < bytes.len() {
            match self.write_once(&[IoSlice::new(&bytes[written..])]) {
                0 => break,
                count => written += count,
            }
        }
        written
    }

    /// Writes once; 0 if the socket takes no more for now, or for ever.
    fn write_once(&mut self, bytes: &[IoSlice<'_>]) -> usize {
        loop {
            return match self.stream.write_vectored(bytes) {
                Ok(count) => {
                    self.wrote(count);
                    count
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                Err(error) => {
                    // EPIPE, ECONNRESET: the peer is gone. What it sent before it went is read
                    // first, then the connection is reported down.
                    self.write_error = Some(error);
                    self.readable = true;
                    0
                }
            };
        }
    }

    fn wrote(&mut self, count: usize) {
        self.bytes_out += count as u64;
        self.from_vm.passed_on(count);
    }

    /// Bytes that the VM is to be told have gone on to the peer, if it is time to.
    pub fn take_acknowledgement(&mut self) -> Option<u32> {
        self.from_vm.take_acknowledgement()
    }

    // --- from the peer to the VM -----------------------------------------------------------------

    /// Readiness news of the socket.
    pub fn ready(&mut self, readable: bool, read_closed: bool) {
        self.readable |= readable || read_closed;
        self.read_closed |= read_closed;
    }

    /// True if a read could bring something that the VM has room for.
    pub fn wants_read(&self) -> bool {
        self.readable && self.window() > 0 && !self.is_closing()
    }

    /// Bytes that the VM has room for.
    pub fn window(&self) -> usize {
        self.to_vm.available() as usize
    }

    /// True until the first byte of the peer has been read.
    fn is_silent(&self) -> bool {
        self.bytes_in == 0
    }

    /// The VM has passed on `count` bytes of the peer.
    pub fn acknowledged(&mut self, count: u32) -> Result<(), RuleBroken> {
        self.to_vm.acknowledged(count)
    }

    /// Bytes that wait in the socket, `limit` at most, if they are enough to be spliced to the VM. They
    /// count as read: [`splice_to`](Self::splice_to) moves them.
    pub fn reserve_splice(&mut self, limit: usize) -> Option<usize> {
        if limit < MIN_SPLICE || self.lost || !matches!(self.stage, Stage::Established(_)) {
            return None;
        }
        let count = os::spliceable(&self.stream).min(limit);
        if count < MIN_SPLICE {
            return None;
        }
        self.count_read(count);
        Some(count)
    }

    /// Moves bytes that [`reserve_splice`](Self::reserve_splice) has counted to the VM's pipe, `count` at
    /// most. `WouldBlock` says that the pipe is full, `None` that the socket has none to give.
    pub fn move_to(&mut self, pipe: impl AsFd, count: usize) -> io::Result<Option<Moved>> {
        match os::splice(&self.stream, &pipe, count) {
            Ok(0) => return Ok(None),
            Ok(count) => return Ok(Some(Moved::Spliced(count))),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Err(error),
            Err(error) if error.kind() == ErrorKind::WouldBlock && !os::is_writable(&pipe) => {
                return Err(error);
            }
            Err(error) => log::debug!("a socket does not splice: {error}"),
        }
        let mut bytes = vec![0; count.min(MIN_SPLICE)];
        Ok(match os::read(&self.stream, &mut bytes) {
            Ok(0) | Err(_) => None,
            Ok(count) => {
                bytes.truncate(count);
                Some(Moved::Read(bytes))
            }
        })
    }

    /// The socket has given less than it has announced: reading it finds the end.
    pub fn lose(&mut self) {
        self.lost = true;
        self.readable = true;
    }

    /// Reads once into `buffer`, which must not be longer than the VM has room for.
    pub fn read(&mut self, buffer: &mut [u8]) -> (usize, ReadOutcome) {
        if self.lost {
            let explanation = "bytes of the peer cannot be read: it has sent out-of-band data";
            return (0, ReadOutcome::Ended(Failure::system(explanation)));
        }
        loop {
            return match self.stream.read(buffer) {
                Ok(0) => (0, ReadOutcome::Ended(self.peer_closed())),
                Ok(count) => {
                    self.count_read(count);
                    // A short read has emptied the socket: the loop will say when there is more.
                    // Not so at the end of the stream, which is announced only once.
                    let more =
                        count == buffer.len() || self.read_closed || self.write_error.is_some();
                    self.readable = more;
                    let outcome = match more {
                        true => ReadOutcome::More,
                        false => ReadOutcome::Drained,
                    };
                    (count, outcome)
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.readable = false;
                    match self.write_error.take() {
                        None => (0, ReadOutcome::Drained),
                        Some(error) => (0, ReadOutcome::Ended(self.failed("write to", &error))),
                    }
                }
                Err(error) => (0, ReadOutcome::Ended(self.failed("read from", &error))),
            };
        }
    }

    fn count_read(&mut self, count: usize) {
        self.bytes_in += count as u64;
        self.to_vm.sent(count as u32);
    }

    fn peer_closed(&self) -> Failure {
        match self.outgoing.len() {
            0 => self.ended("the peer closed the connection".into()),
            lost => self.ended(format!(
                "the peer closed the connection with {lost} bytes unsent to it"
            )),
        }
    }

    fn failed(&self, what: &str, error: &io::Error) -> Failure {
        let explanation = format!("cannot {what} the peer: {error}");
        match error.kind() {
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => self.ended(explanation),
            _ => Failure::new(Reason::SystemError, explanation),
        }
    }

    /// The peer has ended the connection. One that does not admit us says nothing at all; of our own
    /// user, it has no reason to.
    fn ended(&self, explanation: String) -> Failure {
        let is_refusal =
            self.direction == Direction::Out && self.is_silent() && self.peer.uid != os::own_uid();
        let explanation = match is_refusal {
            true => format!(
                "the peer, of uid {}, closed the connection before it said anything; it may not \
                 allow this node's user (allowed_uids)",
                self.peer.uid
            ),
            false => explanation,
        };
        Failure::new(Reason::PeerClosed, explanation)
    }

    // --- for people ------------------------------------------------------------------------------

    /// One line for a table of connections.
    pub fn describe(&self) -> String {
        let direction = match self.direction {
            Direction::In => "from",
            Direction::Out => "to",
        };
        let node = match &self.stage {
            Stage::Handshake => "(handshake)",
            Stage::Established(node) => node,
            Stage::Closing => "(closing)",
        };
        format!(
            "{direction} {node} uid {} pid {}: {} bytes in, {} out, {} wait for the peer, {} for the VM",
            self.peer.uid,
            self.peer.pid,
            self.bytes_in,
            self.bytes_out,
            self.outgoing.len(),
            self.to_vm.unacknowledged(),
        )
    }
}
