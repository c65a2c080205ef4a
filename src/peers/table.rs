//! The table of connections: which are open, which are due to be read or written, and which linger after
//! the VM has closed them.
//!
//! Sockets are read in turn, one piece each, and only while the VM keeps up. So a slow peer never holds up
//! anyone else, and a slow VM costs no memory.

use super::connection::{Connection, ReadOutcome};
use super::splice_source::SpliceSource;
use super::window::RuleBroken;
use crate::failure::Failure;
use crate::ids::ConnId;
use crate::log_line::Cause;
use crate::port::pipes::Moved;
use crate::port::protocol::Report;
use crate::port::queue::{MAX_READ, MAX_SPLICE, ReportQueue};
use crate::token::Source;
use mio::event::Event;
use mio::net::UnixStream;
use mio::{Interest, Registry};
use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// How long a connection that the VM has closed may take to deliver what was queued before.
const LINGER: Duration = Duration::from_secs(5);

/// All connections of one VM.
pub struct Table {
    registry: Registry,
    entries: HashMap<ConnId, Entry>,
    /// Numbers of connections that have ended and that the VM has not closed yet.
    ended: HashSet<ConnId>,
    /// Connections that are due to be read, in the order of their turns, each once.
    to_read: VecDeque<ConnId>,
    /// Connections that have something to write or to acknowledge at the end of this turn, each once.
    to_write: VecDeque<ConnId>,
    /// Connections that the VM closed while bytes were queued, each with its deadline, in the order of the
    /// deadlines.
    lingering: VecDeque<(Instant, ConnId)>,
    /// The connection whose bytes the report queue is waiting for.
    splice_source: Option<SpliceSource>,
}

struct Entry {
    connection: Connection,
    /// The connection is in `to_read`.
    awaits_read: bool,
    /// The connection is in `to_write`.
    awaits_write: bool,
    /// The socket is registered for writability. It is so only while bytes are queued: otherwise each read
    /// by the peer would wake us up.
    watched_for_writing: bool,
}

/// The state of a connection after its turn.
#[derive(Debug)]
pub enum Turn {
    /// The connection goes on.
    Continues,
    /// The connection has ended, which has to be reported to the VM.
    Ended(ConnId, Failure),
    /// The connection was closed by the VM, and everything has been delivered.
    Over,
}

impl Table {
    /// An empty table. Sockets will be registered with `registry`.
    pub fn new(registry: Registry) -> Table {
        Table {
            registry,
            entries: HashMap::new(),
            ended: HashSet::new(),
            to_read: VecDeque::new(),
            to_write: VecDeque::new(),
            lingering: VecDeque::new(),
            splice_source: None,
        }
    }

    // --- adding and removing ---------------------------------------------------------------------

    /// True if the number is in use: the connection is open, or the VM has not closed it yet.
    pub fn contains(&self, conn: ConnId) -> bool {
        self.entries.contains_key(&conn) || self.ended.contains(&conn)
    }

    /// Adds a connection under a number that is not in use, and registers its socket.
    ///
    /// # Errors
    /// If the socket cannot be registered.
    pub fn insert(&mut self, conn: ConnId, mut connection: Connection) -> io::Result<()> {
        let token = Source::Connection(conn).into();
        self.registry
            .register(connection.stream_mut(), token, Interest::READABLE)?;
        self.insert_registered(conn, connection);
        Ok(())
    }

    /// Adds a connection whose socket is registered already.
    pub fn insert_registered(&mut self, conn: ConnId, connection: Connection) {
        let entry = Entry {
            connection,
            awaits_read: false,
            awaits_write: false,
            watched_for_writing: false,
        };
        self.entries.insert(conn, entry);
        self.await_read(conn);
    }

    /// Removes a connection that has ended. Its number stays in use until the VM closes it.
    pub fn end(&mut self, conn: ConnId) {
        if self.remove(conn) {
            self.ended.insert(conn);
        }
    }

    /// Removes a connection, and returns false if there is none. Its socket is closed, unless the report
    /// queue is waiting for its bytes.
    fn remove(&mut self, conn: ConnId) -> bool {
        let Some(entry) = self.entries.remove(&conn) else {
            return false;
        };
        if let Some(source) = &mut self.splice_source {
            source.connection_ended(conn, entry.connection);
        }
        true
    }

    // --- commands of the VM ----------------------------------------------------------------------

    /// Opens the full windows of a connection whose handshake is complete.
    pub fn establish(&mut self, conn: ConnId, node: String) {
        match self.entries.get_mut(&conn) {
            Some(entry) if entry.connection.is_in_handshake() => {
                log::debug!("connection {conn} is established with {node}");
                entry.connection.establish(node);
                self.await_read(conn);
            }
            _ => (), // it ended while ESTABLISHED was on its way
        }
    }

    /// Removes a connection whose handshake is complete, and gives its socket to `pass`. Returns `None` if
    /// there is no such connection. If bytes are queued or `pass` fails, the connection stays in the table.
    pub fn give_away(
        &mut self,
        conn: ConnId,
        pass: impl FnOnce(&UnixStream) -> io::Result<()>,
    ) -> Option<io::Result<()>> {
        let connection = &mut self.entries.get_mut(&conn)?.connection;
        if !connection.is_in_handshake() {
            return None;
        }
        connection.prepare_hand_over();
        let passed = match connection.unsent() {
            0 => pass(connection.stream_mut()),
            count => Err(io::Error::other(format!(
                "{count} bytes are queued for the peer"
            ))),
        };
        if passed.is_ok() {
            // The VM's descriptor keeps the socket alive, so epoll would not forget it by itself.
            let _ = self.registry.deregister(connection.stream_mut());
            self.remove(conn);
        }
        Some(passed)
    }

    /// Sends bytes from the VM to a peer.
    ///
    /// # Errors
    /// If they exceed the connection's window.
    pub fn send(&mut self, conn: ConnId, bytes: &[u8]) -> Result<(), RuleBroken> {
        let Some(connection) = self.open_to_vm(conn) else {
            return Ok(()); // it ended while DATA was on its way
        };
        connection.send(bytes)?;
        self.await_write(conn);
        Ok(())
    }

    /// Splices up to `limit` bytes of DATA from the VM's pipe to the connection's socket. Returns the
    /// number of bytes moved; 0 means that they have to be read and passed to [`send`](Self::send).
    pub fn splice_from(&mut self, pipe: impl AsFd, conn: ConnId, limit: usize) -> usize {
        let Some(connection) = self.open_to_vm(conn) else {
            return 0;
        };
        let count = connection.splice_from(pipe, limit);
        // The turn acknowledges the bytes, or finds out by reading why none were moved.
        self.await_write(conn);
        count
    }

    /// Records that the VM acknowledged `count` bytes of a connection.
    ///
    /// # Errors
    /// If that is more than was sent and not acknowledged.
    pub fn acknowledged(&mut self, conn: ConnId, count: u32) -> Result<(), RuleBroken> {
        if let Some(entry) = self.entries.get_mut(&conn) {
            entry.connection.acknowledged(count)?;
            self.await_read(conn);
        }
        Ok(())
    }

    /// Closes a connection as soon as everything that the VM sent before has been delivered. Returns true
    /// if it is closed already.
    pub fn close(&mut self, conn: ConnId) -> bool {
        self.ended.remove(&conn);
        let Some(entry) = self.entries.get_mut(&conn) else {
            return false;
        };
        entry.connection.flush();
        if entry.connection.unsent() == 0 {
            log::debug!("connection {conn} is closed");
            return self.remove(conn);
        }
        entry.connection.close();
        self.lingering.push_back((Instant::now() + LINGER, conn));
        self.await_write(conn);
        false
    }

    fn is_closing(&self, conn: ConnId) -> bool {
        let entry = self.entries.get(&conn);
        entry.is_some_and(|entry| entry.connection.is_closing())
    }

    /// A connection that the VM has not closed.
    fn open_to_vm(&mut self, conn: ConnId) -> Option<&mut Connection> {
        let connection = &mut self.entries.get_mut(&conn)?.connection;
        (!connection.is_closing()).then_some(connection)
    }

    // --- turns -----------------------------------------------------------------------------------

    /// Records that a connection's socket is ready.
    pub fn ready(&mut self, conn: ConnId, event: &Event) {
        let Some(entry) = self.entries.get_mut(&conn) else {
            return;
        };
        entry.connection.ready(
            event.is_readable() || event.is_error(),
            event.is_read_closed() || event.is_error(),
        );
        let writable = event.is_writable() || event.is_write_closed() || event.is_error();
        if writable && entry.connection.unsent() > 0 {
            self.await_write(conn);
        }
        self.await_read(conn);
    }

    fn await_read(&mut self, conn: ConnId) {
        if let Some(entry) = self.entries.get_mut(&conn) {
            if entry.connection.wants_read() && !entry.awaits_read {
                entry.awaits_read = true;
                self.to_read.push_back(conn);
            }
        }
    }

    fn await_write(&mut self, conn: ConnId) {
        if let Some(entry) = self.entries.get_mut(&conn) {
            if !entry.awaits_write {
                entry.awaits_write = true;
                self.to_write.push_back(conn);
            }
        }
    }

    /// Number of connections that are due to be read.
    pub fn reads_due(&self) -> usize {
        self.to_read.len()
    }

    /// True if a connection is due to be written.
    pub fn has_writes_due(&self) -> bool {
        !self.to_write.is_empty()
    }

    /// Reads one piece of the connection whose turn it is. Returns `None` if no connection is due, or if
    /// the VM does not keep up.
    pub fn read_next(&mut self, reports: &mut ReportQueue) -> Option<Turn> {
        if !reports.has_room() {
            return None;
        }
        let conn = self.to_read.pop_front()?;
        let Some(entry) = self.entries.get_mut(&conn) else {
            return Some(Turn::Continues);
        };
        entry.awaits_read = false;
        let connection = &mut entry.connection;
        if !connection.wants_read() {
            return Some(Turn::Continues);
        }
        let window = connection.window();
        if let Some(count) = connection.reserve_splice(window.min(MAX_SPLICE)) {
            reports.push_splice(conn, count);
            self.splice_source = Some(SpliceSource::new(conn));
            self.await_read(conn);
            return Some(Turn::Continues);
        }
        let mut outcome = ReadOutcome::Drained;
        let _ = reports.push_data(conn, window.min(MAX_READ), |buffer| {
            let count;
            (count, outcome) = connection.read(buffer);
            Ok(count)
        });
        match outcome {
            ReadOutcome::More => self.await_read(conn),
            ReadOutcome::Drained => (),
            ReadOutcome::Ended(failure) => {
                self.end(conn);
                return Some(Turn::Ended(conn, failure));
            }
        }
        Some(Turn::Continues)
    }

    /// Writes the queue of one connection, and acknowledges to the VM what was written. Returns `None` if no
    /// connection is due.
    pub fn write_next(&mut self, reports: &mut ReportQueue) -> Option<Turn> {
        let conn = self.to_write.pop_front()?;
        let Some(entry) = self.entries.get_mut(&conn) else {
            return Some(Turn::Continues);
        };
        entry.awaits_write = false;
        entry.connection.flush();
        if !entry.connection.is_closing() {
            if let Some(count) = entry.connection.take_acknowledgement() {
                reports.push(&Report::Ack { conn, count });
            }
        } else if entry.connection.unsent() == 0 {
            self.remove(conn);
            return Some(Turn::Over);
        }
        if let Err(error) = entry.watch_for_writing(&self.registry, conn) {
            if entry.connection.is_closing() {
                self.remove(conn);
                return Some(Turn::Over);
            }
            self.end(conn);
            let failure = Failure::system(format!("cannot watch the socket: {error}"));
            return Some(Turn::Ended(conn, failure));
        }
        // If the write failed, reading finds the end.
        self.await_read(conn);
        Some(Turn::Continues)
    }

    /// Moves bytes that were announced to the VM from their socket to the VM's pipe; `missing` is the number
    /// still to come.
    ///
    /// All other reports are queued behind these bytes, so only the VM itself may delay them. A socket can
    /// announce more bytes than it then gives, for example if the peer sent out-of-band data. The missing
    /// bytes are replaced with zeros, and the connection ends.
    ///
    /// # Errors
    /// `WouldBlock` if the pipe is full; any other error is that of the pipe.
    pub fn splice_to(
        &mut self,
        pipe: impl AsFd,
        conn: ConnId,
        missing: usize,
    ) -> io::Result<Moved> {
        let mut open = self
            .entries
            .get_mut(&conn)
            .map(|entry| &mut entry.connection);
        let ended = self.splice_source.as_mut().and_then(SpliceSource::ended);
        let moved = match open.as_deref_mut().or(ended) {
            Some(connection) => connection.move_to(pipe, missing)?,
            None => None,
        };
        let moved = match moved {
            Some(moved) => moved,
            None => {
                if let Some(connection) = open {
                    connection.lose();
                    self.await_read(conn);
                }
                Moved::Read(vec![0; missing])
            }
        };
        let count = match &moved {
            Moved::Spliced(count) => *count,
            Moved::Read(bytes) => bytes.len(),
        };
        if count == missing {
            self.splice_source = None;
        }
        Ok(moved)
    }

    // --- time, and the end -----------------------------------------------------------------------

    /// The time at which [`expire`](Self::expire) is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.lingering.front().map(|(until, _)| *until)
    }

    /// Closes one connection that has lingered for too long; false if there is none.
    pub fn expire(&mut self, now: Instant) -> bool {
        while let Some((until, conn)) = self.lingering.front().copied() {
            if until > now {
                return false;
            }
            self.lingering.pop_front();
            // Its number may belong to another connection by now.
            if self.is_closing(conn) && self.remove(conn) {
                log::info!(
                    reason = Cause::Undelivered;
                    "connection {conn} was closed before its peer had read everything"
                );
                return true;
            }
        }
        false
    }

    /// Stops reading from sockets.
    pub fn stop_reading(&mut self) {
        self.to_read.clear();
    }

    /// Writes what is queued, during shutdown; true once everything has been delivered.
    pub fn deliver(&mut self) -> bool {
        self.to_write.clear();
        self.entries.retain(|_, entry| {
            entry.connection.flush();
            entry.connection.unsent() > 0
        });
        self.entries.is_empty()
    }

    /// One line for each connection, for a table that people read.
    pub fn describe(&self) -> Vec<String> {
        let mut conns: Vec<_> = self.entries.keys().copied().collect();
        conns.sort_unstable();
        let line = |conn| format!("{conn} {}", self.entries[&conn].connection.describe());
        conns.into_iter().map(line).collect()
    }
}

impl Entry {
    /// Registers the socket for writability while bytes are queued, and only then.
    fn watch_for_writing(&mut self, registry: &Registry, conn: ConnId) -> io::Result<()> {
        let wanted = self.connection.unsent() > 0;
        if wanted != self.watched_for_writing {
            let interest = match wanted {
                true => Interest::READABLE | Interest::WRITABLE,
                false => Interest::READABLE,
            };
            let token = Source::Connection(conn).into();
            registry.reregister(self.connection.stream_mut(), token, interest)?;
            self.watched_for_writing = wanted;
        }
        Ok(())
    }
}
