//! Visitors: who has come in and has not said its name yet. The VM does not know of them, and hears only
//! of those who pass the gate.

use super::Newcomer;
use super::gate::{Gate, MAX_HELD, Name, Verdict};
use crate::peer::Credentials;
use crate::port::protocol::ConnId;
use crate::token::Source;
use mio::{Interest, Registry};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io::{self, ErrorKind, Read};
use std::time::{Duration, Instant};

/// How long a visitor may take to say its name when nobody needs its place. As long as net_kernel gives
/// a node for the first step of its handshake, with some to spare: 7 seconds (net_setuptime).
pub const DEADLINE: Duration = Duration::from_secs(10);

/// All of them.
pub struct Visitors {
    registry: Registry,
    visitors: HashMap<ConnId, Visitor>,
    /// Those who may have said something, in the order of their turns; each once.
    to_hear: VecDeque<ConnId>,
    /// Until when each of them may take.
    deadlines: BTreeSet<(Instant, ConnId)>,
}

struct Visitor {
    newcomer: Newcomer,
    gate: Gate,
    deadline: Instant,
    /// Its socket has said that it will send no more, which it says only once.
    read_closed: bool,
    /// It stands in `to_hear`.
    awaits_turn: bool,
}

/// What the turn of one visitor has come to.
#[derive(Debug)]
pub enum Heard {
    /// It has not said its name yet.
    Waits,
    /// It has gone again, without a name.
    Gone(ConnId),
    /// It has said what no node says, and is closed.
    Implausible {
        /// The number that it had.
        conn: ConnId,
        /// Who it was.
        peer: Credentials,
        /// What was wrong with it.
        problem: &'static str,
    },
    /// It may be a node of this name.
    Introduced(Introduction, Name),
}

/// A visitor who has said what may be a name.
#[derive(Debug)]
pub struct Introduction {
    /// Its number. The socket is registered under it.
    pub conn: ConnId,
    /// It.
    pub newcomer: Newcomer,
    /// What it has said so far.
    pub bytes: Vec<u8>,
    /// Its socket has said that it will send no more.
    pub read_closed: bool,
}

impl Visitors {
    /// Nobody; sockets will be registered with `registry`.
    pub fn new(registry: Registry) -> Visitors {
        Visitors {
            registry,
            visitors: HashMap::new(),
            to_hear: VecDeque::new(),
            deadlines: BTreeSet::new(),
        }
    }

    /// True if one has this number.
    pub fn contains(&self, conn: ConnId) -> bool {
        self.visitors.contains_key(&conn)
    }

    /// One has come in, under a number that is not in use.
    pub fn enter(&mut self, conn: ConnId, mut newcomer: Newcomer, now: Instant) -> io::Result<()> {
        let token = Source::Connection(conn).into();
        self.registry
            .register(&mut newcomer.stream, token, Interest::READABLE)?;
        let visitor = Visitor {
            newcomer,
            gate: Gate::default(),
            deadline: now + DEADLINE,
            read_closed: false,
            awaits_turn: false,
        };
        self.deadlines.insert((visitor.deadline, conn));
        self.visitors.insert(conn, visitor);
        // A node has said its name by now, as often as not.
        self.ready(conn, false);
        Ok(())
    }

    /// Readiness news of one.
    pub fn ready(&mut self, conn: ConnId, read_closed: bool) {
        if let Some(visitor) = self.visitors.get_mut(&conn) {
            visitor.read_closed |= read_closed;
            if !std::mem::replace(&mut visitor.awaits_turn, true) {
                self.to_hear.push_back(conn);
            }
        }
    }

    /// How many may have said something.
    pub fn due(&self) -> usize {
        self.to_hear.len()
    }

    /// Gives the next one its turn, if somebody may have said something.
    pub fn hear(&mut self) -> Option<Heard> {
        let conn = self.to_hear.pop_front()?;
        let Some(visitor) = self.visitors.get_mut(&conn) else {
            return Some(Heard::Waits);
        };
        visitor.awaits_turn = false;
        let verdict = match visitor.read() {
            Ok(verdict) => verdict,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Some(Heard::Waits),
            // Somebody has looked whether this node lives, or lost patience.
            Err(_) => {
                self.dismiss(conn);
                return Some(Heard::Gone(conn));
            }
        };
        if verdict == Verdict::Incomplete {
            self.ready(conn, false);
            return Some(Heard::Waits);
        }
        let Visitor {
            newcomer,
            gate,
            read_closed,
            ..
        } = self.remove(conn)?;
        let peer = newcomer.peer;
        Some(match (verdict, gate.pass()) {
            (_, Some((name, bytes))) => Heard::Introduced(
                Introduction {
                    conn,
                    newcomer,
                    bytes,
                    read_closed,
                },
                name,
            ),
            (Verdict::Implausible(problem), None) => Heard::Implausible {
                conn,
                peer,
                problem,
            },
            (_, None) => Heard::Gone(conn),
        })
    }

    /// Closes one; false if there is none of this number.
    pub fn dismiss(&mut self, conn: ConnId) -> bool {
        self.remove(conn).is_some()
    }

    fn remove(&mut self, conn: ConnId) -> Option<Visitor> {
        let visitor = self.visitors.remove(&conn)?;
        self.deadlines.remove(&(visitor.deadline, conn));
        Some(visitor)
    }

    /// When [`expire`](Self::expire) is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(time, _)| *time)
    }

    /// Closes one who has taken too long, if there is one.
    pub fn expire(&mut self, now: Instant) -> Option<ConnId> {
        let (_, conn) = *self.deadlines.first().filter(|(time, _)| *time <= now)?;
        self.dismiss(conn);
        Some(conn)
    }

    /// Closes all of them.
    pub fn clear(&mut self) {
        self.visitors.clear();
        self.to_hear.clear();
        self.deadlines.clear();
    }
}

impl Visitor {
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
