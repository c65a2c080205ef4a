//! The crowd at the door: the incoming connections that have not completed their handshake. Limits how many
//! there are and how long one may take while others wait, and decides which one makes room for them. No I/O,
//! and no clock: the caller passes the time.
//!
//! Peers that connect and stay silent must not lock nodes out. While there is room, a connection may take as
//! long as the VM allows; when there is none, one that has exceeded its time makes room for the next. Peers
//! that connect and disconnect quickly must not flood the VM, so a place is free only when the VM is
//! done with the connection that had it.

use crate::ids::ConnId;
use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

/// Most handshakes that may be in progress at the same time. This bounds what strangers can occupy: as many
/// descriptors, handshake windows and processes of the VM. A handshake takes about a millisecond.
pub const MAX_HANDSHAKES: usize = 128;

/// How long a peer may take to send its name while others wait for its place. A node sends it as soon as it
/// is connected.
pub const SILENCE_GRACE: Duration = Duration::from_millis(50);

/// How long a handshake may take in all while others wait for its place. A node completes it within
/// milliseconds.
pub const HANDSHAKE_GRACE: Duration = Duration::from_millis(250);

/// The connections that occupy a place.
#[derive(Debug, Default)]
pub struct Crowd {
    /// The open connections, ordered by the time from which they have to make room.
    by_time: BTreeSet<(Instant, ConnId)>,
    /// All connections, including those that have ended but still occupy a place.
    places: HashMap<ConnId, Place>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// A visitor, which the VM does not know of yet. From this time, it has to make room.
    Visitor(Instant),
    /// A peer that is in its handshake with the VM. From this time, it has to make room.
    Handshake(Instant),
    /// The connection has ended, but the VM is not done with it.
    Ended,
}

impl Crowd {
    /// An empty crowd.
    pub fn new() -> Crowd {
        Crowd::default()
    }

    /// Number of places that are taken.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// True if no place is taken.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Gives a place to a new visitor, which connected at `now`.
    pub fn enter(&mut self, conn: ConnId, now: Instant) {
        self.put(conn, Place::Visitor(now + SILENCE_GRACE));
    }

    /// Records that a visitor has sent its name, and that its handshake with the VM begins.
    pub fn begin(&mut self, conn: ConnId) {
        if let Some(Place::Visitor(time)) = self.places.get(&conn) {
            let time = *time + (HANDSHAKE_GRACE - SILENCE_GRACE);
            self.put(conn, Place::Handshake(time));
        }
    }

    /// Records that a connection has ended. Its place becomes free when the VM is done with it too.
    pub fn ended(&mut self, conn: ConnId) {
        if self.places.contains_key(&conn) {
            self.put(conn, Place::Ended);
        }
    }

    /// Frees the place of a connection whose handshake the VM has completed or given up, or of a visitor that
    /// has left. Does nothing if it has no place.
    pub fn leave(&mut self, conn: ConnId) {
        if let Some(Place::Visitor(time) | Place::Handshake(time)) = self.places.remove(&conn) {
            self.by_time.remove(&(time, conn));
        }
    }

    /// True if there is a place for another connection.
    pub fn has_room(&self) -> bool {
        self.len() < MAX_HANDSHAKES
    }

    /// The connection that has to make room if another one needs it, and the time from which it has to.
    /// Closing a visitor frees its place at once. A handshake is not closed while the VM is about to free
    /// the place of a connection that has ended.
    pub fn makes_room(&self) -> Option<(Instant, ConnId)> {
        let (time, conn) = *self.by_time.first()?;
        let has_ended_ones = self.by_time.len() < self.places.len();
        let is_visitor = matches!(self.places[&conn], Place::Visitor(_));
        (is_visitor || !has_ended_ones).then_some((time, conn))
    }

    fn put(&mut self, conn: ConnId, place: Place) {
        self.leave(conn);
        self.places.insert(conn, place);
        if let Place::Visitor(time) | Place::Handshake(time) = place {
            self.by_time.insert((time, conn));
        }
    }
}
