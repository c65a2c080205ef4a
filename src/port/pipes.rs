//! The two pipes of the VM's port. Commands come in on one, reports go out on the other, and large
//! payloads bypass both buffers: the kernel splices them between pipe and socket. Whose socket that
//! is, the caller knows.

use super::protocol::ConnId;
use super::queue::{Next, ReportQueue};
use super::reader::{CommandReader, Input};
use crate::os;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;

/// Where the VM's commands come in.
#[derive(Debug)]
pub struct CommandPipe<I> {
    pipe: I,
    reader: CommandReader,
    readable: bool,
    /// The VM has closed its end: reads must go on until they say so.
    read_closed: bool,
    /// Bytes were spliced since [`take_spliced`](Self::take_spliced) was asked.
    spliced: bool,
}

impl<I: AsFd> CommandPipe<I> {
    /// Takes over a pipe whose reads return instead of waiting.
    pub fn new(pipe: I) -> Self {
        CommandPipe {
            pipe,
            reader: CommandReader::default(),
            readable: false,
            read_closed: false,
            spliced: false,
        }
    }

    /// Readiness news of the pipe.
    pub fn ready(&mut self, read_closed: bool) {
        self.readable = true;
        self.read_closed |= read_closed;
    }

    /// True if a read may find something.
    pub fn is_readable(&self) -> bool {
        self.readable
    }

    /// Whether bytes were spliced since this was asked last.
    pub fn take_spliced(&mut self) -> bool {
        std::mem::take(&mut self.spliced)
    }

    /// Gives the next bytes of DATA to `splice`, which moves some from the pipe to that connection's
    /// socket and says how many; false if none went, and they have to be read.
    pub fn splice(&mut self, splice: impl FnOnce(&I, ConnId, usize) -> usize) -> bool {
        let Some((conn, missing)) = self.reader.spliceable() else {
            return false;
        };
        match splice(&self.pipe, conn, missing) {
            // The pipe is empty, or the socket is full. In either case reading is right: a slow peer
            // must not hold up what the VM says to others.
            0 => false,
            count => {
                self.reader.spliced(count);
                self.spliced = true;
                true
            }
        }
    }

    /// One read; false at the end.
    ///
    /// # Errors
    /// When the system fails at what cannot fail.
    pub fn read(&mut self) -> io::Result<bool> {
        let space = self.reader.space();
        let room = space.len();
        match os::read(&self.pipe, space) {
            Ok(0) => return Ok(false),
            Ok(count) => {
                // A short read has emptied the pipe; its end, though, is announced only once.
                self.readable = count == room || self.read_closed;
                self.reader.filled(count);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    /// Takes the next input of what has been read.
    ///
    /// # Errors
    /// When the VM breaks the protocol.
    #[allow(clippy::should_implement_trait)] // an Iterator could not lend its buffer
    pub fn next(&mut self) -> io::Result<Option<Input<'_>>> {
        self.reader.next().map_err(protocol_error)
    }
}

/// How the next bytes of a socket got to the VM's pipe.
#[derive(Debug)]
pub enum Moved {
    /// So many were spliced.
    Spliced(usize),
    /// They could not be spliced: these are to be written.
    Read(Vec<u8>),
}

/// Where reports go out to the VM.
#[derive(Debug)]
pub struct ReportPipe<O> {
    pipe: O,
    queue: ReportQueue,
    full: bool,
    /// Bytes were spliced since [`take_spliced`](Self::take_spliced) was asked.
    spliced: bool,
}

impl<O: AsFd> ReportPipe<O> {
    /// Takes over a pipe whose writes return instead of waiting.
    pub fn new(pipe: O) -> Self {
        ReportPipe {
            pipe,
            queue: ReportQueue::default(),
            full: false,
            spliced: false,
        }
    }

    /// The reports that wait.
    pub fn queue(&mut self) -> &mut ReportQueue {
        &mut self.queue
    }

    /// Readiness news of the pipe.
    pub fn ready(&mut self) {
        self.full = false;
    }

    /// True while sockets may be read.
    pub fn has_room(&self) -> bool {
        self.queue.has_room()
    }

    /// Whether bytes were spliced since this was asked last.
    pub fn take_spliced(&mut self) -> bool {
        std::mem::take(&mut self.spliced)
    }

    /// Writes reports as far as the VM takes them; false when it is gone. Where bytes of a socket are to
    /// follow, `splice` moves some from that connection's socket to the pipe; `WouldBlock` says that the
    /// pipe is full.
    ///
    /// # Errors
    /// When the system fails at what cannot fail.
    pub fn write(
        &mut self,
        mut splice: impl FnMut(&O, ConnId, usize) -> io::Result<Moved>,
    ) -> io::Result<bool> {
        while !self.full {
            let result = match self.queue.next() {
                Next::Nothing => break,
                Next::Bytes(bytes) => {
                    os::write(&self.pipe, bytes).map(|count| self.queue.written(count))
                }
                Next::Splice(conn, missing) => {
                    self.spliced = true;
                    splice(&self.pipe, conn, missing).map(|moved| match moved {
                        Moved::Spliced(count) => self.queue.spliced(count),
                        Moved::Read(bytes) => self.queue.instead(&bytes),
                    })
                }
            };
            match result {
                Ok(()) => (),
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.full = true,
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// The VM has said what it must not say: nothing that it says can be trusted any more.
pub fn protocol_error(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(
        ErrorKind::InvalidData,
        format!("the VM broke the port protocol: {what}"),
    )
}
