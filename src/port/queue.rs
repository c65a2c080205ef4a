//! The queue of encoded reports for the VM. No I/O: the caller writes the bytes.
//!
//! The bytes of a large DATA packet stay in their socket until it is their turn to be spliced to the VM. The
//! queue holds only the head of such a packet, and knows which bytes have to follow it.

use super::MIN_SPLICE;
use super::buffer::Buffer;
use super::codec::data_head;
use super::protocol::{DATA_HEAD, PACKET_HEAD, Report};
use crate::ids::ConnId;
use crate::os;
use std::io;

/// Most bytes that one read of a socket adds to the queue. Where the system can splice, larger amounts are
/// spliced.
pub const MAX_READ: usize = if os::CAN_SPLICE {
    MIN_SPLICE
} else {
    128 << 10
};

/// Most bytes in one DATA packet that is spliced. The VM copies every packet anyway, so larger packets would
/// only make the next connection wait longer.
pub const MAX_SPLICE: usize = 256 << 10;

/// Sockets are not read while more bytes than this are queued. The VM is then slower than its peers, and
/// packets that it needs in time (ACK, CLOSED, another connection's tick) must not queue behind more bulk.
const HIGH_WATER: usize = 128 << 10;

const HEAD: usize = PACKET_HEAD + DATA_HEAD;

/// The encoded reports that the VM has not read yet.
#[derive(Debug)]
pub struct ReportQueue {
    buffer: Buffer,
    pending_splice: Option<PendingSplice>,
    /// Space for encoding one report; empty between calls.
    scratch: Vec<u8>,
}

/// Bytes that are still in a socket but have their place in the queue.
#[derive(Debug)]
struct PendingSplice {
    /// Number of bytes of the buffer that come before them.
    before: usize,
    conn: ConnId,
    /// Number of bytes still to come; never 0.
    missing: usize,
    /// The first of these bytes, if they had to be read instead of spliced. `missing` includes them.
    instead: Buffer,
}

/// What has to be written to the VM next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next<'a> {
    /// The queue is empty.
    Nothing,
    /// These bytes; never empty.
    Bytes(&'a [u8]),
    /// This number of bytes, from the socket of this connection.
    Splice(ConnId, usize),
}

impl Default for ReportQueue {
    fn default() -> Self {
        ReportQueue {
            buffer: Buffer::with_capacity(HIGH_WATER + HEAD + MAX_READ),
            pending_splice: None,
            scratch: Vec::new(),
        }
    }
}

impl ReportQueue {
    /// Appends a report. There is always room, as reports are small, and few or bounded by a window.
    pub fn push(&mut self, report: &Report) {
        report.encode(&mut self.scratch);
        self.buffer.append(&self.scratch);
        self.scratch.clear();
    }

    /// Appends a DATA packet with the bytes that `read` puts into the slice that it is given, which has
    /// `limit` bytes. Returns their number. If `read` brings nothing, nothing is appended.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn push_data(
        &mut self,
        conn: ConnId,
        limit: usize,
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let (head, body) = self.buffer.space(HEAD + limit).split_at_mut(HEAD);
        let count = read(body)?;
        assert!(count <= limit);
        if count > 0 {
            head.copy_from_slice(&data_head(conn, count));
            self.buffer.filled(HEAD + count);
        }
        Ok(count)
    }

    /// Appends a DATA packet with bytes that have been read already; there must be at least one.
    pub fn push_bytes(&mut self, conn: ConnId, bytes: &[u8]) {
        self.buffer.append(&data_head(conn, bytes.len()));
        self.buffer.append(bytes);
    }

    /// Appends the head of a DATA packet whose `count` bytes are in the connection's socket already. Until
    /// they have been spliced, no socket may be read.
    ///
    /// # Panics
    /// If another splice is pending, or if `count` is 0.
    pub fn push_splice(&mut self, conn: ConnId, count: usize) {
        assert!(self.pending_splice.is_none() && count > 0);
        self.buffer.append(&data_head(conn, count));
        self.pending_splice = Some(PendingSplice {
            before: self.buffer.len(),
            conn,
            missing: count,
            instead: Buffer::with_capacity(0),
        });
    }

    /// True while sockets may be read.
    pub fn has_room(&self) -> bool {
        self.pending_splice.is_none() && self.buffer.len() < HIGH_WATER
    }

    /// What has to be written to the VM next.
    pub fn next(&self) -> Next<'_> {
        let bytes = self.buffer.bytes();
        match &self.pending_splice {
            Some(splice) if splice.before == 0 && !splice.instead.is_empty() => {
                Next::Bytes(splice.instead.bytes())
            }
            Some(splice) if splice.before == 0 => Next::Splice(splice.conn, splice.missing),
            Some(splice) => Next::Bytes(&bytes[..splice.before]),
            None if bytes.is_empty() => Next::Nothing,
            None => Next::Bytes(bytes),
        }
    }

    /// Records that the first `count` bytes of [`Next::Bytes`] were written.
    pub fn written(&mut self, count: usize) {
        if let Some(splice) = &mut self.pending_splice {
            if splice.before == 0 {
                splice.instead.take(count);
                return self.spliced(count);
            }
            assert!(count <= splice.before);
            splice.before -= count;
        }
        self.buffer.take(count);
    }

    /// Queues `bytes` in place of the first bytes of [`Next::Splice`], which could not be spliced.
    pub fn instead(&mut self, bytes: &[u8]) {
        let splice = self.pending_splice.as_mut().expect("only after a head");
        assert!(splice.before == 0 && splice.instead.len() + bytes.len() <= splice.missing);
        splice.instead.append(bytes);
    }

    /// Records that the first `count` bytes of [`Next::Splice`] were spliced.
    pub fn spliced(&mut self, count: usize) {
        let splice = self.pending_splice.as_mut().expect("only after a head");
        assert!(splice.before == 0 && count <= splice.missing);
        splice.missing -= count;
        if splice.missing == 0 {
            self.pending_splice = None;
        }
    }
}
