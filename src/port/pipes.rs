//! The two pipes of the VM's port. Commands come in on one, and reports go out on the other. Large payloads
//! bypass the buffers of both: the kernel splices them between pipe and socket. The sockets are the
//! caller's.

use super::queue::{Next, ReportQueue};
use super::reader::{CommandReader, Input};
use crate::ids::ConnId;
use crate::os;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;

/// The pipe from the VM, with the reader that decodes its input.
#[derive(Debug)]
pub struct CommandPipe<I> {
    pipe: I,
    reader: CommandReader,
    readable: bool,
    /// The VM has closed its end. This is announced only once, so reads go on until they reach the end.
    read_closed: bool,
    /// Bytes were spliced since the last call of [`take_spliced`](Self::take_spliced).
    spliced: bool,
}

impl<I: AsFd> CommandPipe<I> {
    /// Takes over a pipe in non-blocking mode.
    pub fn new(pipe: I) -> Self {
        CommandPipe {
            pipe,
            reader: CommandReader::default(),
            readable: false,
            read_closed: false,
            spliced: false,
        }
    }

    /// Records that the pipe is ready; `read_closed` is true if the VM has closed its end.
    pub fn ready(&mut self, read_closed: bool) {
        self.readable = true;
        self.read_closed |= read_closed;
    }

    /// True if there may be something to read.
    pub fn is_readable(&self) -> bool {
        self.readable
    }

    /// True if bytes were spliced since the last call.
    pub fn take_spliced(&mut self) -> bool {
        std::mem::take(&mut self.spliced)
    }

    /// Lets `splice` move the next bytes of DATA from the pipe to their connection's socket and return how
    /// many went. Returns false if none did, in which case they have to be read.
    pub fn splice(&mut self, splice: impl FnOnce(&I, ConnId, usize) -> usize) -> bool {
        let Some((conn, missing)) = self.reader.spliceable() else {
            return false;
        };
        match splice(&self.pipe, conn, missing) {
            // The pipe is empty, or the socket is full. Reading is right in either case: a slow peer must
            // not hold up the VM's packets for others.
            0 => false,
            count => {
                self.reader.spliced(count);
                self.spliced = true;
                true
            }
        }
    }

    /// Reads once; false at the end of input.
    ///
    /// # Errors
    /// If read(2) fails.
    pub fn read(&mut self) -> io::Result<bool> {
        let space = self.reader.space();
        let room = space.len();
        match os::read(&self.pipe, space) {
            Ok(0) => return Ok(false),
            Ok(count) => {
                // A short read has emptied the pipe, and an event will announce more. The end of input
                // has been announced already, and will not be again.
                self.readable = count == room || self.read_closed;
                self.reader.filled(count);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    /// Takes the next input from the bytes that have been read.
    ///
    /// # Errors
    /// If the VM violates the protocol.
    #[allow(clippy::should_implement_trait)] // an Iterator could not lend its buffer
    pub fn next(&mut self) -> io::Result<Option<Input<'_>>> {
        self.reader.next().map_err(protocol_error)
    }
}

/// The outcome of moving bytes from a socket to the VM's pipe.
#[derive(Debug)]
pub enum Moved {
    /// This number of bytes was spliced.
    Spliced(usize),
    /// These bytes could not be spliced; they were read, and have yet to be written.
    Read(Vec<u8>),
}

/// The pipe to the VM, with the queue of reports.
#[derive(Debug)]
pub struct ReportPipe<O> {
    pipe: O,
    queue: ReportQueue,
    full: bool,
    /// Bytes were spliced since the last call of [`take_spliced`](Self::take_spliced).
    spliced: bool,
}

impl<O: AsFd> ReportPipe<O> {
    /// Takes over a pipe in non-blocking mode.
    pub fn new(pipe: O) -> Self {
        ReportPipe {
            pipe,
            queue: ReportQueue::default(),
            full: false,
            spliced: false,
        }
    }

    /// The queue of reports.
    pub fn queue(&mut self) -> &mut ReportQueue {
        &mut self.queue
    }

    /// Records that the pipe is ready.
    pub fn ready(&mut self) {
        self.full = false;
    }

    /// True while sockets may be read.
    pub fn has_room(&self) -> bool {
        self.queue.has_room()
    }

    /// True if bytes were spliced since the last call.
    pub fn take_spliced(&mut self) -> bool {
        std::mem::take(&mut self.spliced)
    }

    /// Writes reports until the pipe is full; false if the VM is gone. Where bytes of a socket have to
    /// follow, `splice` moves some from that connection's socket to the pipe, or fails with `WouldBlock`
    /// if the pipe is full.
    ///
    /// # Errors
    /// If write(2) or splice(2) fails for a reason other than a full or closed pipe.
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

/// The error for a violation of the protocol by the VM, after which nothing that it sends can be trusted.
pub fn protocol_error(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(
        ErrorKind::InvalidData,
        format!("the VM broke the port protocol: {what}"),
    )
}
