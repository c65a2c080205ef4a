//! The crowd at the door: connections that came in and are still shaking hands. How many there may be,
//! how long one may take while others wait, and who makes room for them. No I/O, and no clock: the
//! caller says what time it is.
//!
//! A crowd that does nothing must not lock nodes out. While there is room, everybody may take as long as
//! the VM lets them; when there is none, a connection that has had its time makes room for the next. And
//! one that comes and goes must not bury the VM: a place is free when the VM is done with who had it.

use crate::port::protocol::ConnId;
use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

/// Handshakes that may go on at the same time. Bounds what strangers can occupy: this many
/// descriptors and handshake windows, and processes of the VM. A handshake takes about a millisecond.
pub const MAX_HANDSHAKES: usize = 128;

/// How long a peer may say nothing when others wait for its place. A node says its name as soon as it
/// is connected.
pub const SILENCE_GRACE: Duration = Duration::from_millis(50);

/// How long a handshake may take in all when others wait for its place. A node is through in
/// milliseconds.
pub const HANDSHAKE_GRACE: Duration = Duration::from_millis(250);

/// Who has a place.
#[derive(Debug, Default)]
pub struct Crowd {
    /// By the time from which on they make room; those who have ended are not here.
    by_time: BTreeSet<(Instant, ConnId)>,
    /// The same the other way round, and those who have ended.
    places: HashMap<ConnId, Place>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Of one who shakes hands, and makes room from this time on.
    Taken(Instant),
    /// The connection has ended, and the VM is not done with it.
    Ended,
}

impl Crowd {
    /// Nobody.
    pub fn new() -> Crowd {
        Crowd::default()
    }

    /// How many places are taken.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// True if there is nobody.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// A connection has come in.
    pub fn enter(&mut self, conn: ConnId, now: Instant) {
        self.put(conn, Place::Taken(now + SILENCE_GRACE));
    }

    /// The first bytes of its handshake have come: from now on it counts as one that does something.
    pub fn begin(&mut self, conn: ConnId) {
        if let Some(Place::Taken(time)) = self.places.get(&conn) {
            let time = *time + (HANDSHAKE_GRACE - SILENCE_GRACE);
            self.put(conn, Place::Taken(time));
        }
    }

    /// It has ended. Its place is free when the VM is done with it too.
    pub fn ended(&mut self, conn: ConnId) {
        if self.places.contains_key(&conn) {
            self.put(conn, Place::Ended);
        }
    }

    /// Its handshake is over and the VM is done with it, one way or the other; nothing happens if it was
    /// not here.
    pub fn leave(&mut self, conn: ConnId) {
        if let Some(Place::Taken(time)) = self.places.remove(&conn) {
            self.by_time.remove(&(time, conn));
        }
    }

    /// True if one more may come in.
    pub fn has_room(&self) -> bool {
        self.len() < MAX_HANDSHAKES
    }

    /// Who has to go, now or at that time, if one more wants to come in. Nobody does while there is room, or
    /// while the place of one that has ended is about to be free.
    pub fn makes_room(&self) -> Option<(Instant, ConnId)> {
        let is_one_leaving = self.by_time.len() < self.places.len();
        match self.has_room() || is_one_leaving {
            true => None,
            false => self.by_time.first().copied(),
        }
    }

    fn put(&mut self, conn: ConnId, place: Place) {
        self.leave(conn);
        self.places.insert(conn, place);
        if let Place::Taken(time) = place {
            self.by_time.insert((time, conn));
        }
    }
}
