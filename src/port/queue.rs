//! Reports wait here for the VM to read them. No I/O: the caller writes the bytes.
//!
//! The bytes of a large DATA packet stay in their socket until their turn has come, and are spliced
//! from there to the VM: the queue has only the packet's head, and knows what is to follow it.

use super::MIN_SPLICE;
use super::buffer::Buffer;
use super::codec::data_head;
use super::protocol::{ConnId, DATA_HEAD, PACKET_HEAD, Report};
use crate::os;
use std::io;

/// Most bytes that one read of a socket brings here. More are spliced, where the system can do that.
pub const MAX_READ: usize = if os::CAN_SPLICE {
    MIN_SPLICE
} else {
    128 << 10
};

/// Most bytes of one DATA packet that is spliced. The VM copies every packet once, so larger ones only
/// make the next connection wait.
pub const MAX_SPLICE: usize = 256 << 10;

/// While more than this waits, sockets are not read: the VM is the slower one, and what it must
/// hear in time (ACK, CLOSED, another connection's tick) should not stand behind more bulk.
const HIGH_WATER: usize = 128 << 10;

const HEAD: usize = PACKET_HEAD + DATA_HEAD;

/// Encoded reports that the VM has not taken yet.
#[derive(Debug)]
pub struct ReportQueue {
    buffer: Buffer,
    pending_splice: Option<PendingSplice>,
    /// A report on its way into the buffer, empty between calls.
    scratch: Vec<u8>,
}

/// Bytes of a socket that belong into the stream.
#[derive(Debug)]
struct PendingSplice {
    /// How many bytes of the buffer go before them.
    before: usize,
    conn: ConnId,
    /// Bytes that are still to come; never 0.
    missing: usize,
    /// The first of them, where they cannot be spliced; `missing` counts them.
    instead: Buffer,
}

/// What the VM should read next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next<'a> {
    /// Nothing waits.
    Nothing,
    /// These; at least one.
    Bytes(&'a [u8]),
    /// So many bytes of the connection's socket.
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
    /// Appends a report. These are few and small, or bounded by a window: there is always room.
    pub fn push(&mut self, report: &Report) {
        report.encode(&mut self.scratch);
        self.buffer.append(&self.scratch);
        self.scratch.clear();
    }

    /// Appends a DATA packet of what `read` puts into the slice it is given, `limit` bytes or
    /// fewer; nothing if it reads nothing or fails. Only bytes that are there are announced.
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

    /// Appends a DATA packet of bytes that were read before; at least one.
    pub fn push_bytes(&mut self, conn: ConnId, bytes: &[u8]) {
        self.buffer.append(&data_head(conn, bytes.len()));
        self.buffer.append(bytes);
    }

    /// Appends a DATA packet of `count` bytes that are in the connection's socket already. Until they
    /// have been spliced, sockets are not to be read.
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

    /// What the VM should read next.
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

    /// The first `count` bytes of [`Next::Bytes`] are with the VM.
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

    /// These stand for the first bytes of [`Next::Splice`], which cannot be spliced.
    pub fn instead(&mut self, bytes: &[u8]) {
        let splice = self.pending_splice.as_mut().expect("only after a head");
        assert!(splice.before == 0 && splice.instead.len() + bytes.len() <= splice.missing);
        splice.instead.append(bytes);
    }

    /// The first `count` bytes of [`Next::Splice`] are with the VM.
    pub fn spliced(&mut self, count: usize) {
        let splice = self.pending_splice.as_mut().expect("only after a head");
        assert!(splice.before == 0 && count <= splice.missing);
        splice.missing -= count;
        if splice.missing == 0 {
            self.pending_splice = None;
        }
    }
}
