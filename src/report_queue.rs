//! Reports wait here for the VM to read them. Pure: the caller writes the bytes.

use crate::protocol::{ConnId, DATA_HEAD, PACKET_HEAD, Report, data_head};
use std::io;

/// Most bytes of one DATA packet to the VM. The VM copies every packet once, so larger ones only
/// make the next connection wait.
pub const MAX_DATA: usize = 128 << 10;

/// While more than this waits, sockets are not read: the VM is the slower one, and what it must
/// hear in time (ACK, CLOSED, another connection's tick) should not stand behind more bulk.
const HIGH_WATER: usize = 256 << 10;

const HEAD: usize = PACKET_HEAD + DATA_HEAD;

/// Encoded reports that the VM has not taken yet.
pub struct ReportQueue {
    /// `buffer[start..end]` waits; `start <= end <= buffer.len()`. What is behind `end` is
    /// scratch space that sockets are read into.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    scratch: Vec<u8>,
}

impl Default for ReportQueue {
    fn default() -> Self {
        ReportQueue {
            buffer: vec![0; HIGH_WATER + HEAD + MAX_DATA],
            start: 0,
            end: 0,
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

    /// True while sockets may be read.
    pub fn has_room(&self) -> bool {
        self.end - self.start < HIGH_WATER
    }

    /// What the VM should read next.
    pub fn pending(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// The first `count` bytes of [`pending`](Self::pending) are with the VM.
    pub fn written(&mut self, count: usize) {
        assert!(count <= self.end - self.start);
        self.start += count;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    fn reserve(&mut self, count: usize) {
        if self.buffer.len() - self.end >= count {
            return;
        }
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let needed = self.end + count;
        if needed > self.buffer.len() {
            self.buffer.resize(needed, 0);
        }
    }
}
