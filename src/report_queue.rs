//! Reports wait here for the VM to read them. Pure: the caller writes the bytes.
//!
//! The bytes of a long DATA packet stay in their socket until their turn has come, and go from there
//! to the VM directly: the queue has a gap for them.

use crate::command_reader::LONG;
use crate::protocol::{ConnId, DATA_HEAD, PACKET_HEAD, Report, data_head};
use std::io;

/// Most bytes that one read of a socket brings here. More go by, where the system can do that.
pub const MAX_DATA: usize = if cfg!(any(target_os = "linux", target_os = "android")) {
    LONG
} else {
    128 << 10
};

/// Most bytes of one DATA packet that goes by. The VM copies every packet once, so larger ones only
/// make the next connection wait.
pub const MAX_GAP: usize = 256 << 10;

/// While more than this waits, sockets are not read: the VM is the slower one, and what it must
/// hear in time (ACK, CLOSED, another connection's tick) should not stand behind more bulk.
const HIGH_WATER: usize = 128 << 10;

const HEAD: usize = PACKET_HEAD + DATA_HEAD;

/// Encoded reports that the VM has not taken yet.
pub struct ReportQueue {
    /// `buffer[start..end]` waits; `start <= end <= buffer.len()`. What is behind `end` is
    /// scratch space that sockets are read into.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Where bytes of a socket belong; `start <= at <= end`.
    gap: Option<Gap>,
    scratch: Vec<u8>,
}

struct Gap {
    at: usize,
    conn: ConnId,
    /// Bytes that are still to come; never 0.
    missing: usize,
}

/// What the VM should read next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next<'a> {
    /// Nothing waits.
    Nothing,
    /// These; at least one.
    Bytes(&'a [u8]),
    /// So many bytes of the connection's socket.
    FromSocket(ConnId, usize),
}

impl Default for ReportQueue {
    fn default() -> Self {
        ReportQueue {
            buffer: vec![0; HIGH_WATER + HEAD + MAX_DATA],
            start: 0,
            end: 0,
            gap: None,
            scratch: Vec::new(),
        }
    }
}

impl ReportQueue {
    /// Appends a report. These are few and small, or bounded by a window: there is always room.
    pub fn push(&mut self, report: &Report) {
        let mut scratch = std::mem::take(&mut self.scratch);
        report.encode(&mut scratch);
        self.reserve(scratch.len());
        self.buffer[self.end..self.end + scratch.len()].copy_from_slice(&scratch);
        self.end += scratch.len();
        scratch.clear();
        self.scratch = scratch;
    }

    /// Appends a DATA packet of what `read` puts into the slice it is given, `limit` bytes or
    /// fewer; nothing if it reads nothing or fails. Only bytes that are there are announced.
    pub fn push_data(
        &mut self,
        conn: ConnId,
        limit: usize,
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        self.reserve(HEAD + limit);
        let body = self.end + HEAD;
        let count = read(&mut self.buffer[body..body + limit])?;
        assert!(count <= limit);
        if count > 0 {
            self.buffer[self.end..body].copy_from_slice(&data_head(conn, count));
            self.end = body + count;
        }
        Ok(count)
    }

    /// Appends a DATA packet of `count` bytes that are in the connection's socket already. Until they
    /// are with the VM, sockets are not to be read.
    pub fn push_gap(&mut self, conn: ConnId, count: usize) {
        assert!(self.gap.is_none() && count > 0);
        self.reserve(HEAD);
        let at = self.end + HEAD;
        self.buffer[self.end..at].copy_from_slice(&data_head(conn, count));
        self.end = at;
        self.gap = Some(Gap {
            at,
            conn,
            missing: count,
        });
    }

    /// The connection whose bytes are to go by.
    pub fn gap(&self) -> Option<ConnId> {
        self.gap.as_ref().map(|gap| gap.conn)
    }

    /// True while sockets may be read.
    pub fn has_room(&self) -> bool {
        self.gap.is_none() && self.end - self.start < HIGH_WATER
    }

    /// What the VM should read next.
    pub fn next(&self) -> Next<'_> {
        match &self.gap {
            Some(gap) if gap.at == self.start => Next::FromSocket(gap.conn, gap.missing),
            Some(gap) => Next::Bytes(&self.buffer[self.start..gap.at]),
            None if self.start == self.end => Next::Nothing,
            None => Next::Bytes(&self.buffer[self.start..self.end]),
        }
    }

    /// The first `count` bytes of [`Next::Bytes`] are with the VM.
    pub fn written(&mut self, count: usize) {
        let end = self.gap.as_ref().map_or(self.end, |gap| gap.at);
        assert!(count <= end - self.start);
        self.start += count;
        self.rewind();
    }

    /// The first `count` bytes of [`Next::FromSocket`] are with the VM.
    pub fn went_by(&mut self, count: usize) {
        let gap = self.gap.as_mut().expect("only a gap is filled");
        assert!(gap.at == self.start && count <= gap.missing);
        gap.missing -= count;
        if gap.missing == 0 {
            self.gap = None;
            self.rewind();
        }
    }

    fn rewind(&mut self) {
        if self.start == self.end && self.gap.is_none() {
            (self.start, self.end) = (0, 0);
        }
    }

    fn reserve(&mut self, count: usize) {
        if self.buffer.len() - self.end >= count {
            return;
        }
        self.buffer.copy_within(self.start..self.end, 0);
        if let Some(gap) = &mut self.gap {
            gap.at -= self.start;
        }
        (self.start, self.end) = (0, self.end - self.start);
        let needed = self.end + count;
        if needed > self.buffer.len() {
            self.buffer.resize(needed, 0);
        }
    }
}
