//! The crowd at the door: connections that came in and are still shaking hands. How many there may be,
//! how long one may take while others wait, and who makes room for them. No I/O, and no clock: the
//! caller says what time it is.
//!
//! A crowd that does nothing must not lock nodes out. While there is room, everybody may take as long as
//! the VM lets them; when there is none, a connection that has had its time makes room for the next.

use crate::port::protocol::ConnId;
use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

/// Handshakes that may go on at the same time. Bounds what strangers can occupy: this many
/// descriptors and handshake windows. A handshake takes about a millisecond.
pub const MAX_HANDSHAKES: usize = 128;

/// How long a peer may say nothing when others wait for its place. A node says its name as soon as it
/// is connected.
pub const SILENCE_GRACE: Duration = Duration::from_millis(50);

/// How long a handshake may take in all when others wait for its place. A node is through in
/// milliseconds.
pub const HANDSHAKE_GRACE: Duration = Duration::from_millis(250);

/// Handshakes in progress, by the time from which on they make room.
#[derive(Debug, Default)]
pub struct Crowd {
    by_time: BTreeSet<(Instant, ConnId)>,
    /// The same the other way round.
    times: HashMap<ConnId, Instant>,
}

impl Crowd {
    /// Nobody.
    pub fn new() -> Crowd {
        Crowd::default()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.times.len()
    }

    /// True if there is nobody.
    pub fn is_empty(&self) -> bool {
        self.times.is_empty()
    }

    /// A connection has come in.
    pub fn enter(&mut self, conn: ConnId, now: Instant) {
        self.insert(conn, now + SILENCE_GRACE);
    }

    /// The first bytes of its handshake have come: from now on it counts as one that does something.
    pub fn begin(&mut self, conn: ConnId) {
        if let Some(time) = self.remove(conn) {
            self.insert(conn, time + (HANDSHAKE_GRACE - SILENCE_GRACE));
        }
    }

    /// Its handshake is over, one way or the other; nothing happens if it was not here.
    pub fn leave(&mut self, conn: ConnId) {
        self.remove(conn);
    }

    /// True if one more may come in: there is a place, or somebody who makes room.
    pub fn has_room(&self, now: Instant) -> bool {
        let first = self.by_time.first();
        self.len() < MAX_HANDSHAKES || first.is_some_and(|(time, _)| *time <= now)
    }

    /// Who has to go if one more comes in.
    pub fn makes_room(&self) -> Option<ConnId> {
        if self.len() < MAX_HANDSHAKES {
            return None;
        }
        self.by_time.first().map(|(_, conn)| *conn)
    }

    /// When there will be room, if there is none.
    pub fn next_room(&self) -> Option<Instant> {
        if self.len() < MAX_HANDSHAKES {
            return None;
        }
        self.by_time.first().map(|(time, _)| *time)
    }

    fn insert(&mut self, conn: ConnId, time: Instant) {
        self.times.insert(conn, time);
        self.by_time.insert((time, conn));
    }

    fn remove(&mut self, conn: ConnId) -> Option<Instant> {
        let time = self.times.remove(&conn)?;
        self.by_time.remove(&(time, conn));
        Some(time)
    }
}
