//! One connection to a peer node: its socket, its queue of bytes to send, its windows, and how it ends. Other
//! connections, and the order of their turns, are the business of the [table](super::table).

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
use std::time::Instant;

/// Smaller pieces are collected, up to this many bytes, and written together at the end of a turn. A larger
/// piece is worth a system call of its own, which saves the copy.
const COALESCE: usize = 16 << 10;

/// A queue with a larger capacity than this, in bytes, frees its memory once it is empty.
const RETAINED_CAPACITY: usize = 16 << 10;

/// The side that opened a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The peer connected to us.
    In,
    /// We connected to the peer.
    Out,
}

/// The phase of a connection's life.
#[derive(Debug)]
enum Stage {
    /// The peer has not proved yet that it knows the cookie.
    Handshake,
    /// The connection carries distribution traffic with the node of this name.
    Established(String),
    /// The VM has closed it; queued bytes are still delivered.
    Closing,
}

/// The state of a socket after a read.
#[derive(Debug)]
pub enum ReadOutcome {
    /// There may be more to read.
    More,
    /// There is nothing more to read until the socket is ready again.
    Drained,
    /// The last byte has been read, and the connection has ended.
    Ended(Failure),
}

/// One connection to a peer.
pub struct Connection {
    stream: UnixStream,
    peer: Credentials,
    direction: Direction,
    opened: Instant,
    stage: Stage,
    /// Bytes from the VM that the socket has not taken yet.
    outgoing: VecDeque<u8>,
    /// Error of the write that failed. What the peer sent before that is still read.
    write_error: Option<io::Error>,
    /// The socket announced bytes that never came.
    lost: bool,
    /// The socket may have something to read.
    readable: bool,
    /// The peer will send no more. This is announced only once, so reads go on until they reach the end.
    read_closed: bool,
    /// Window for bytes from the VM.
    from_vm: ReceiveWindow,
    /// Window for bytes to the VM.
    to_vm: SendWindow,
    /// Bytes read from the socket so far.
    bytes_in: u64,
    /// Bytes written to the socket so far.
    bytes_out: u64,
}

impl Connection {
    /// A connection whose handshake has not begun.
    pub fn new(stream: UnixStream, peer: Credentials, direction: Direction) -> Self {
        Connection {
            stream,
            peer,
            direction,
            opened: Instant::now(),
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

    /// An incoming connection, from which `count` bytes have been read already.
    pub fn named(stream: UnixStream, peer: Credentials, count: usize) -> Self {
        let mut connection = Connection::new(stream, peer, Direction::In);
        connection.count_read(count);
        connection
    }

    /// The socket, to register it with the loop.
    pub fn stream_mut(&mut self) -> &mut UnixStream {
        &mut self.stream
    }

    // --- its stages ------------------------------------------------------------------------------

    /// True until the handshake is complete.
    pub fn is_in_handshake(&self) -> bool {
        matches!(self.stage, Stage::Handshake)
    }

    /// True once the VM has closed it.
    pub fn is_closing(&self) -> bool {
        matches!(self.stage, Stage::Closing)
    }

    /// Opens the full windows after a completed handshake with `node`.
    pub fn establish(&mut self, node: String) {
        self.stage = Stage::Established(node);
        // What fits into the send buffer can be spliced; the rest has to wait in `outgoing`.
        os::enlarge_send_buffer(&self.stream, WINDOW);
        self.to_vm.widen(WINDOW);
    }

    /// Writes the queue and enlarges the send buffer, before the socket is passed to the VM.
    pub fn prepare_hand_over(&mut self) {
        self.flush();
        os::enlarge_send_buffer(&self.stream, WINDOW);
    }

    /// Records that the VM has closed the connection.
    pub fn close(&mut self) {
        self.stage = Stage::Closing;
    }

    // --- from the VM to the peer -----------------------------------------------------------------

    /// Number of bytes that the socket has not taken yet.
    pub fn unsent(&self) -> usize {
        self.outgoing.len()
    }

    /// Sends bytes from the VM. Small pieces are queued until [`flush`](Self::flush).
    ///
    /// # Errors
    /// If they exceed the window.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), RuleBroken> {
        self.from_vm.received(bytes.len())?;
        if self.write_error.is_some() {
            // The peer is gone; the connection is reported down when its input has been read.
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

    /// Splices up to `limit` bytes from the VM's pipe to the socket, and returns the number of bytes moved; 0
    /// means that they have to be read and passed to [`send`](Self::send).
    pub fn splice_from(&mut self, pipe: impl AsFd, limit: usize) -> usize {
        self.flush();
        if !self.outgoing.is_empty() || self.write_error.is_some() || !self.from_vm.admits(limit) {
            return 0;
        }
        match os::splice(pipe, &self.stream, limit) {
            Ok(count) => {
                let within_window = self.from_vm.received(count);
                within_window.expect("no more than the window admits");
                self.wrote(count);
                count
            }
            // If something is wrong with the socket, the next write shows it.
            Err(_) => 0,
        }
    }

    /// Writes queued bytes until the socket is full.
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

    /// Writes once, and returns the number of bytes; 0 if the socket is full or broken.
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
                    // EPIPE, ECONNRESET: the peer is gone. The connection is reported down once everything
                    // that the peer sent before has been read.
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

    /// The number of bytes to acknowledge to the VM now, if an acknowledgement is due.
    pub fn take_acknowledgement(&mut self) -> Option<u32> {
        self.from_vm.take_acknowledgement()
    }

    // --- from the peer to the VM -----------------------------------------------------------------

    /// Records that the socket is ready.
    pub fn ready(&mut self, readable: bool, read_closed: bool) {
        self.readable |= readable || read_closed;
        self.read_closed |= read_closed;
    }

    /// True if there may be something to read and the window has room for it.
    pub fn wants_read(&self) -> bool {
        self.readable && self.window() > 0 && !self.is_closing()
    }

    /// Number of bytes that may be sent to the VM now.
    pub fn window(&self) -> usize {
        self.to_vm.available() as usize
    }

    /// True until the first byte from the peer has been read.
    fn is_silent(&self) -> bool {
        self.bytes_in == 0
    }

    /// Records that the VM acknowledged `count` bytes of the peer.
    ///
    /// # Errors
    /// If that is more than was sent and not acknowledged.
    pub fn acknowledged(&mut self, count: u32) -> Result<(), RuleBroken> {
        self.to_vm.acknowledged(count)
    }

    /// The number of bytes in the socket that can be spliced to the VM, at most `limit`; `None` if there are
    /// too few. They count as read from now on, and [`move_to`](Self::move_to) has to move them.
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

    /// Moves up to `count` bytes that [`reserve_splice`](Self::reserve_splice) has counted to the VM's pipe.
    /// Returns `None` if the socket has no bytes to give.
    ///
    /// # Errors
    /// `WouldBlock` if the pipe is full, `BrokenPipe` if the VM is gone.
    pub fn move_to(&mut self, pipe: impl AsFd, count: usize) -> io::Result<Option<Moved>> {
        match os::splice(&self.stream, &pipe, count) {
            Ok(0) => return Ok(None),
            Ok(count) => return Ok(Some(Moved::Spliced(count))),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Err(error),
            Err(error) if error.kind() == ErrorKind::WouldBlock && !os::is_writable(&pipe) => {
                return Err(error);
            }
            Err(error) => log::debug!("cannot splice from a socket, reading it instead: {error}"),
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

    /// Records that the socket gave fewer bytes than it had announced. The next read ends the connection.
    pub fn lose(&mut self) {
        self.lost = true;
        self.readable = true;
    }

    /// Reads once into `buffer`, which must not be longer than [`window`](Self::window), and returns the
    /// number of bytes.
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
                    // A short read has emptied the socket, and an event will announce more. The end of the
                    // stream has been announced already, and will not be again.
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

    /// The failure for a connection that the peer ended. A peer that does not admit us closes without a byte,
    /// but has no reason to if it runs as our own user.
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
            "{direction} {node} uid {} gid {} pid {}, {} s old: {} bytes in, {} out, {} wait for the \
             peer, {} of the window of {} for the VM",
            self.peer.uid,
            self.peer.gid,
            self.peer.pid,
            self.opened.elapsed().as_secs(),
            self.bytes_in,
            self.bytes_out,
            self.outgoing.len(),
            self.to_vm.unacknowledged(),
            self.to_vm.size(),
        )
    }
}
