//! One socket to a peer node: what waits for it, how much may be on its way, and when it ends.

use crate::command_reader::LONG;
use crate::os;
use crate::protocol::{Credentials, HANDSHAKE_WINDOW, Reason, WINDOW};
use crate::window::{ReceiveWindow, RuleBroken, SendWindow};
use mio::net::UnixStream;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::os::fd::AsFd;
use std::time::Instant;

/// Pieces up to this size are collected and written together at the end of a turn; a larger one
/// is worth a system call of its own and spares the copy.
const COALESCE: usize = 16 << 10;

/// A queue that had to grow gives its memory back when it is empty again.
const KEPT_CAPACITY: usize = 16 << 10;

/// How far a connection has come.
#[derive(Debug)]
pub enum Stage {
    /// The peer has not shown yet that it knows the cookie.
    Handshake,
    /// Open for distribution with the node of this name.
    Established(String),
    /// The VM has closed it; what waits is still delivered.
    Closing,
}

/// Why a connection is over.
#[derive(Debug)]
pub struct Ended {
    /// What the VM acts on.
    pub reason: Reason,
    /// One line for people.
    pub explanation: String,
}

/// What a turn of reading brought.
#[derive(Debug)]
pub enum ReadOutcome {
    /// There may be more.
    More,
    /// Nothing more until the socket is readable again.
    Drained,
    /// The last byte is read.
    Ended(Ended),
}

/// One socket to a peer.
pub struct Connection {
    stream: UnixStream,
    /// From the VM, not yet taken by the socket.
    outgoing: VecDeque<u8>,
    /// The socket failed when it was written to. What the peer sent before that is still read.
    write_error: Option<io::Error>,
    /// The socket has said that the peer will send no more; reads must go on until they say so.
    read_closed: bool,
    /// The socket may have something to read.
    pub readable: bool,
    /// Stands in the switchboard's queue of connections to read.
    pub queued: bool,
    /// Stands in the switchboard's list of connections to flush.
    pub unflushed: bool,
    /// The loop reports when the socket can be written to. Only while something waits for that:
    /// otherwise each read by the peer would wake us up.
    pub watched_for_writing: bool,
    /// Bytes from the VM.
    pub from_vm: ReceiveWindow,
    /// Bytes to the VM.
    pub to_vm: SendWindow,
    /// How far it has come.
    pub stage: Stage,
    /// Of a connection that came in, until its handshake is over: from when on it makes room if
    /// others wait.
    pub expendable: Option<Instant>,
    /// We made it, the peer listens.
    pub outbound: bool,
    /// Who the peer is.
    pub peer: Credentials,
    /// Bytes read from the socket so far.
    pub bytes_in: u64,
    /// Bytes written to the socket so far.
    pub bytes_out: u64,
}

/// Who made a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The peer.
    In {
        /// [`Connection::expendable`].
        expendable: Instant,
    },
    /// We did.
    Out,
}

impl Connection {
    /// A connection at its beginning.
    pub fn new(stream: UnixStream, peer: Credentials, direction: Direction) -> Self {
        Connection {
            stream,
            outgoing: VecDeque::new(),
            write_error: None,
            read_closed: false,
            readable: false,
            queued: false,
            unflushed: false,
            watched_for_writing: false,
            from_vm: ReceiveWindow::new(WINDOW),
            to_vm: SendWindow::new(HANDSHAKE_WINDOW),
            stage: Stage::Handshake,
            expendable: match direction {
                Direction::In { expendable } => Some(expendable),
                Direction::Out => None,
            },
            outbound: direction == Direction::Out,
            peer,
            bytes_in: 0,
            bytes_out: 0,
        }
    }

    /// The socket, to register it with the loop.
    pub fn stream_mut(&mut self) -> &mut UnixStream {
        &mut self.stream
    }

    /// The handshake is through.
    pub fn establish(&mut self, node: String) {
        self.stage = Stage::Established(node);
        // What fits there goes by, and what does not must be kept here.
        os::enlarge_send_buffer(&self.stream, WINDOW);
        self.to_vm.widen(WINDOW);
    }

    /// The socket is to go to the VM, as one that [`establish`](Self::establish) would leave.
    pub fn prepare_handover(&mut self) {
        self.flush();
        os::enlarge_send_buffer(&self.stream, WINDOW);
    }

    /// Readiness news of the socket.
    pub fn ready(&mut self, readable: bool, read_closed: bool) {
        self.readable |= readable || read_closed;
        self.read_closed |= read_closed;
    }

    /// True if a read could bring something that the VM has room for.
    pub fn wants_read(&self) -> bool {
        self.readable && self.to_vm.available() > 0 && !matches!(self.stage, Stage::Closing)
    }

    /// Bytes that wait for the socket.
    pub fn waiting(&self) -> usize {
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

    /// Moves the VM's next bytes, `limit` at most, from its pipe to the socket; the number of those
    /// that went, 0 if they have to take the way of [`send`](Self::send).
    pub fn send_from(&mut self, pipe: impl AsFd, limit: usize) -> usize {
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
        if queue.is_empty() && queue.capacity() > KEPT_CAPACITY {
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

    /// Bytes that wait in the socket, `limit` at most, if they are many enough to go from there to the
    /// VM directly. They count as read: [`receive_into`](Self::receive_into) moves them.
    pub fn take_long(&mut self, limit: usize) -> Option<usize> {
        if limit < LONG || !matches!(self.stage, Stage::Established(_)) {
            return None;
        }
        let count = os::spliceable(&self.stream).min(limit);
        if count < LONG {
            return None;
        }
        self.read_some(count);
        Some(count)
    }

    /// Moves bytes that [`take_long`](Self::take_long) has counted to the VM's pipe.
    pub fn receive_into(&self, pipe: impl AsFd, count: usize) -> io::Result<usize> {
        os::splice(&self.stream, pipe, count)
    }

    fn read_some(&mut self, count: usize) {
        self.bytes_in += count as u64;
        self.to_vm.sent(count as u32);
    }

    /// Reads once into `buffer`, which must not be longer than the VM has room for.
    pub fn read(&mut self, buffer: &mut [u8]) -> (usize, ReadOutcome) {
        loop {
            return match self.stream.read(buffer) {
                Ok(0) => (0, ReadOutcome::Ended(self.peer_closed())),
                Ok(count) => {
                    self.read_some(count);
                    // A short read has emptied the socket: the loop will say when there is more.
                    // Not so at the end of the stream, which is announced only once.
                    let more =
                        count == buffer.len() || self.read_closed || self.write_error.is_some();
                    self.readable = more;
                    let outcome = if more {
                        ReadOutcome::More
                    } else {
                        ReadOutcome::Drained
                    };
                    (count, outcome)
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.readable = false;
                    match self.write_error.take() {
                        None => (0, ReadOutcome::Drained),
                        Some(error) => (0, ReadOutcome::Ended(failed("write to", &error))),
                    }
                }
                Err(error) => (0, ReadOutcome::Ended(failed("read from", &error))),
            };
        }
    }

    fn peer_closed(&self) -> Ended {
        Ended {
            reason: Reason::PeerClosed,
            explanation: match self.outgoing.len() {
                0 => "the peer closed the connection".into(),
                lost => format!("the peer closed the connection with {lost} bytes unsent to it"),
            },
        }
    }
}

fn failed(what: &str, error: &io::Error) -> Ended {
    let reason = match error.kind() {
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => Reason::PeerClosed,
        _ => Reason::SystemError,
    };
    Ended {
        reason,
        explanation: format!("cannot {what} the peer: {error}"),
    }
}
