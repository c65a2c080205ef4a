//! The VM's port: commands come in on one pipe, reports go out on the other.
//!
//! What is long goes by: the kernel moves it between pipe and socket, and only its head is seen
//! here.

use crate::command_reader::CommandReader;
use crate::os;
use crate::report_queue::Next;
use crate::switchboard::Switchboard;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;

/// Both pipes, and what is known of their readiness.
pub struct VmPort<I, O> {
    stdin: I,
    stdout: O,
    commands: CommandReader,
    readable: bool,
    /// The VM has closed its end: reads must go on until they say so.
    read_closed: bool,
    full: bool,
    /// Something long went by since [`take_long`](Self::take_long) was asked.
    long: bool,
}

impl<I: AsFd, O: AsFd> VmPort<I, O> {
    /// Takes over two pipes that return instead of waiting.
    pub fn new(stdin: I, stdout: O) -> Self {
        VmPort {
            stdin,
            stdout,
            commands: CommandReader::default(),
            readable: false,
            read_closed: false,
            full: false,
            long: false,
        }
    }

    /// Readiness news of stdin.
    pub fn stdin_ready(&mut self, read_closed: bool) {
        self.readable = true;
        self.read_closed |= read_closed;
    }

    /// Readiness news of stdout.
    pub fn stdout_ready(&mut self) {
        self.full = false;
    }

    /// True if [`read`](Self::read) may find something.
    pub fn is_readable(&self) -> bool {
        self.readable
    }

    /// Whether something long went by since this was asked last.
    pub fn take_long(&mut self) -> bool {
        std::mem::take(&mut self.long)
    }

    /// One read of stdin, and all that it says; false at its end.
    ///
    /// # Errors
    /// When the VM breaks the protocol, or the system fails at what cannot fail.
    pub fn read(&mut self, switchboard: &mut Switchboard) -> io::Result<bool> {
        if !self.readable {
            return Ok(true);
        }
        if let Some((conn, missing)) = self.commands.long_data() {
            let count = switchboard.send_from(&self.stdin, conn, missing);
            if count > 0 {
                self.commands.went_by(count);
                self.long = true;
                return Ok(true);
            }
            // The pipe is empty, or the socket is full. In either case reading is right: nobody
            // waits for this socket.
        }
        let space = self.commands.space();
        let room = space.len();
        match os::read(&self.stdin, space) {
            Ok(0) => return Ok(false),
            Ok(count) => {
                // A short read has emptied the pipe; its end, though, is announced only once.
                self.readable = count == room || self.read_closed;
                self.commands.filled(count);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
            Err(error) => return Err(error),
        }
        loop {
            match self.commands.next() {
                Ok(None) => return Ok(true),
                Ok(Some(input)) => switchboard.input(input).map_err(protocol_error)?,
                Err(error) => return Err(protocol_error(error)),
            }
        }
    }

    /// Writes reports as far as the VM takes them; false when it is gone.
    ///
    /// # Errors
    /// When the system fails at what cannot fail.
    pub fn write(&mut self, switchboard: &mut Switchboard) -> io::Result<bool> {
        while !self.full {
            let result = match switchboard.reports.next() {
                Next::Nothing => break,
                Next::Bytes(bytes) => {
                    os::write(&self.stdout, bytes).map(|count| switchboard.reports.written(count))
                }
                Next::FromSocket(conn, missing) => {
                    self.long = true;
                    switchboard.receive_into(&self.stdout, conn, missing)
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

fn protocol_error(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(
        ErrorKind::InvalidData,
        format!("the VM broke the port protocol: {what}"),
    )
}
