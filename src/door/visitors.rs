//! Visitors: incoming peers that have not sent their node names yet. The VM does not know of them; it is
//! told only of those that pass the gate.

use super::gate::{Gate, MAX_HELD, Name, Verdict};
use crate::ids::ConnId;
use crate::peer::Credentials;
use crate::token::Source;
use mio::net::UnixStream;
use mio::{Interest, Registry};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io::{self, ErrorKind, Read};
use std::time::{Duration, Instant};

/// How long a visitor may take to send its name when no other peer needs its place. It exceeds the 7
/// seconds that net_kernel allows for a handshake (net_setuptime).
pub const DEADLINE: Duration = Duration::from_secs(10);

/// The visitors of one VM.
pub struct Visitors {
    registry: Registry,
    visitors: HashMap<ConnId, Visitor>,
    /// Visitors whose sockets may have something to read, in the order of their turns. Each is in it once.
    ready_to_read: VecDeque<ConnId>,
    /// The deadline of each visitor.
    deadlines: BTreeSet<(Instant, ConnId)>,
}

/// An accepted connection whose user or group is admitted.
#[derive(Debug)]
pub struct Newcomer {
    /// The socket of the connection.
    pub stream: UnixStream,
    /// The identity of the peer.
    pub peer: Credentials,
    /// Where its socket is bound, as the protocol writes it; empty if it is not.
    pub address: Vec<u8>,
}

struct Visitor {
    newcomer: Newcomer,
    gate: Gate,
    deadline: Instant,
    /// The socket is registered with the loop. Most visitors of a flood are gone at their first turn, and
    /// are never registered.
    is_watched: bool,
    /// The peer will send no more. This is announced only once.
    read_closed: bool,
    /// The visitor is in `ready_to_read`.
    is_queued: bool,
}

/// The state of a visitor after its turn.
#[derive(Debug)]
pub enum Progress {
    /// The visitor has not sent its name yet.
    Incomplete,
    /// The visitor has closed its connection without sending a name.
    Closed {
        /// The number that the connection had.
        conn: ConnId,
        /// The identity of the peer.
        peer: Credentials,
    },
    /// The visitor's socket could not be registered, and was closed.
    NotWatched(ConnId, io::Error),
    /// The visitor has sent something that no node sends, and was closed.
    Implausible {
        /// The number that the connection had.
        conn: ConnId,
        /// The identity of the peer.
        peer: Credentials,
        /// What was wrong with its message.
        problem: &'static str,
    },
    /// The visitor may be a node with this name, and is no longer a visitor.
    Named(NamedPeer, Name),
}

/// A former visitor that has sent its name.
#[derive(Debug)]
pub struct NamedPeer {
    /// The connection's number, under which its socket is registered.
    pub conn: ConnId,
    /// The accepted connection.
    pub newcomer: Newcomer,
    /// All bytes received from it so far.
    pub bytes: Vec<u8>,
    /// The peer will send no more.
    pub read_closed: bool,
}

impl Visitors {
    /// An empty set of visitors. Sockets will be registered with `registry`.
    pub fn new(registry: Registry) -> Visitors {
        Visitors {
            registry,
            visitors: HashMap::new(),
            ready_to_read: VecDeque::new(),
            deadlines: BTreeSet::new(),
        }
    }

    /// True if a visitor has this number.
    pub fn contains(&self, conn: ConnId) -> bool {
        self.visitors.contains_key(&conn)
    }

    /// Adds a visitor, under a number that is not in use.
    pub fn enter(&mut self, conn: ConnId, newcomer: Newcomer, now: Instant) {
        let visitor = Visitor {
            newcomer,
            gate: Gate::default(),
            deadline: now + DEADLINE,
            is_watched: false,
            read_closed: false,
            is_queued: false,
        };
        self.deadlines.insert((visitor.deadline, conn));
        self.visitors.insert(conn, visitor);
        // The name of a node has often arrived by now.
        self.ready(conn, false);
    }

    /// Records that a visitor's socket is ready.
    pub fn ready(&mut self, conn: ConnId, read_closed: bool) {
        if let Some(visitor) = self.visitors.get_mut(&conn) {
            visitor.read_closed |= read_closed;
            if !std::mem::replace(&mut visitor.is_queued, true) {
                self.ready_to_read.push_back(conn);
            }
        }
    }

    /// Number of visitors whose sockets may have something to read.
    pub fn due(&self) -> usize {
        self.ready_to_read.len()
    }

    /// Reads from the next visitor whose socket may have something to read; `None` if there is none.
    pub fn read_next(&mut self) -> Option<Progress> {
        let conn = self.ready_to_read.pop_front()?;
        let Some(visitor) = self.visitors.get_mut(&conn) else {
            return Some(Progress::Incomplete);
        };
        visitor.is_queued = false;
        let verdict = match visitor.read() {
            Ok(verdict) => Some(verdict),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            // The peer only probed whether this node is alive, or lost patience.
            Err(_) => {
                let peer = visitor.newcomer.peer;
                self.dismiss(conn);
                return Some(Progress::Closed { conn, peer });
            }
        };
        // What has arrived since the read is announced as soon as the socket is registered.
        if let Err(error) = visitor.watch(&self.registry, conn) {
            self.dismiss(conn);
            return Some(Progress::NotWatched(conn, error));
        }
        let Some(verdict) = verdict else {
            return Some(Progress::Incomplete);
        };
        if verdict == Verdict::Incomplete {
            self.ready(conn, false);
            return Some(Progress::Incomplete);
        }
        let Visitor {
            newcomer,
            gate,
            read_closed,
            ..
        } = self.remove(conn)?;
        let peer = newcomer.peer;
        Some(match (verdict, gate.pass()) {
            (_, Some((name, bytes))) => Progress::Named(
                NamedPeer {
                    conn,
                    newcomer,
                    bytes,
                    read_closed,
                },
                name,
            ),
            (Verdict::Implausible(problem), None) => Progress::Implausible {
                conn,
                peer,
                problem,
            },
            (_, None) => Progress::Closed { conn, peer },
        })
    }

    /// Closes a visitor; false if there is none with this number.
    pub fn dismiss(&mut self, conn: ConnId) -> bool {
        self.remove(conn).is_some()
    }

    fn remove(&mut self, conn: ConnId) -> Option<Visitor> {
        let visitor = self.visitors.remove(&conn)?;
        self.deadlines.remove(&(visitor.deadline, conn));
        Some(visitor)
    }

    /// The time at which [`expire`](Self::expire) is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(time, _)| *time)
    }

    /// Closes one visitor that has taken too long. Returns its number and its identity.
    pub fn expire(&mut self, now: Instant) -> Option<(ConnId, Credentials)> {
        let (_, conn) = *self.deadlines.first().filter(|(time, _)| *time <= now)?;
        let visitor = self.remove(conn)?;
        Some((conn, visitor.newcomer.peer))
    }

    /// Closes all visitors.
    pub fn clear(&mut self) {
        self.visitors.clear();
        self.ready_to_read.clear();
        self.deadlines.clear();
    }
}

impl Visitor {
    fn watch(&mut self, registry: &Registry, conn: ConnId) -> io::Result<()> {
        if !self.is_watched {
            let token = Source::Connection(conn).into();
            registry.register(&mut self.newcomer.stream, token, Interest::READABLE)?;
            self.is_watched = true;
        }
        Ok(())
    }

    fn read(&mut self) -> io::Result<Verdict> {
        let mut buffer = [0; MAX_HELD];
        let space = &mut buffer[..self.gate.room()];
        loop {
            return match self.newcomer.stream.read(space) {
                Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => Ok(self.gate.push(&space[..count])),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
        }
    }
}
