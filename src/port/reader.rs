//! Decodes the bytes that the VM writes to its port. No I/O: the caller reads them.
//!
//! DATA is streamed: its bytes are handed on as they arrive, so that a large packet neither waits for its
//! end nor needs a buffer of its size. The bytes of a large packet may bypass the reader altogether, if the
//! caller splices them.

use super::MIN_SPLICE;
use super::buffer::Buffer;
use super::codec::DecodeError;
use super::protocol::{Command, DATA, DATA_HEAD, MAX_CONTROL_BODY, MAX_DATA_BODY, PACKET_HEAD};
use crate::ids::{ConnId, MAX_CONN};
use byteorder::{BigEndian, ByteOrder};

/// Most bytes in the buffer, and so of one read of stdin. This is many times the longest packet that has to
/// be complete, and enough for an efficient read of DATA that cannot be spliced.
const CAPACITY: usize = 64 << 10;

/// A piece of the VM's input.
#[derive(Debug, PartialEq, Eq)]
pub enum Input<'a> {
    /// A complete packet other than DATA.
    Command(Command),
    /// The next bytes of a DATA packet.
    Data {
        /// The connection that they belong to.
        conn: ConnId,
        /// The bytes; never empty.
        bytes: &'a [u8],
    },
}

/// Cuts the VM's byte stream into [`Input`]s.
#[derive(Debug)]
pub struct CommandReader {
    /// Bytes that were read but not consumed yet.
    buffer: Buffer,
    /// The DATA packet that is being streamed: its connection, and how many bytes are missing (never 0).
    streaming: Option<(ConnId, usize)>,
    /// The last large DATA packet was spliced, and only DATA has come since. The next packet may be as large,
    /// so only its head must be read: bytes in the buffer cannot be spliced.
    head_only: bool,
}

impl Default for CommandReader {
    fn default() -> Self {
        CommandReader {
            buffer: Buffer::with_capacity(CAPACITY),
            streaming: None,
            head_only: false,
        }
    }
}

impl CommandReader {
    /// The space to read the next bytes into; never empty once [`next`](Self::next) has returned `None`.
    pub fn space(&mut self) -> &mut [u8] {
        const HEADS: usize = PACKET_HEAD + DATA_HEAD;
        let wanted = match (self.head_only, self.streaming) {
            (false, _) => CAPACITY,
            (true, None) => HEADS,
            (true, Some((_, missing))) => CAPACITY.min(missing + HEADS),
        };
        // There is room: `next` leaves less than one control packet in the buffer.
        self.buffer.space(wanted - self.buffer.len())
    }

    /// Records that the first `count` bytes of [`space`](Self::space) were read.
    pub fn filled(&mut self, count: usize) {
        self.buffer.filled(count);
    }

    /// The connection and number of the next bytes of DATA, if there are enough to splice and none of them
    /// has been read already.
    pub fn spliceable(&self) -> Option<(ConnId, usize)> {
        self.streaming
            .filter(|(_, missing)| self.buffer.is_empty() && *missing >= MIN_SPLICE)
    }

    /// Records that the next `count` bytes of [`spliceable`](Self::spliceable) were spliced.
    ///
    /// # Panics
    /// If fewer bytes of DATA are missing.
    pub fn spliced(&mut self, count: usize) {
        let (conn, missing) = self.streaming.expect("only DATA is spliced");
        assert!(count <= missing);
        self.streaming = (count < missing).then_some((conn, missing - count));
        self.head_only = true;
    }

    /// Takes the next input, or returns `None` if more bytes are needed.
    ///
    /// # Errors
    /// If the bytes are no packet of the protocol. The stream is then out of step and cannot be read further.
    #[allow(clippy::should_implement_trait)] // an Iterator could not lend its buffer
    pub fn next(&mut self) -> Result<Option<Input<'_>>, DecodeError> {
        loop {
            if let Some((conn, missing)) = self.streaming {
                let count = missing.min(self.buffer.len());
                if count == 0 {
                    return Ok(None);
                }
                self.streaming = (count < missing).then_some((conn, missing - count));
                let bytes = self.buffer.take(count);
                return Ok(Some(Input::Data { conn, bytes }));
            }
            let Some((head, body)) = self.buffer.bytes().split_at_checked(PACKET_HEAD) else {
                return Ok(None);
            };
            let length = BigEndian::read_u32(head) as usize;
            if length == 0 {
                return Err(DecodeError::Missing("type"));
            }
            match body.first() {
                None => return Ok(None),
                Some(&DATA) => {
                    if length > MAX_DATA_BODY {
                        return Err(DecodeError::TooLong(length));
                    }
                    if length < DATA_HEAD {
                        return Err(DecodeError::Missing("conn"));
                    }
                    if body.len() < DATA_HEAD {
                        return Ok(None);
                    }
                    let conn = BigEndian::read_u32(&body[1..DATA_HEAD]);
                    if !(1..MAX_CONN).contains(&conn) {
                        return Err(DecodeError::Invalid("conn"));
                    }
                    self.buffer.take(PACKET_HEAD + DATA_HEAD);
                    self.streaming = (length > DATA_HEAD).then_some((conn, length - DATA_HEAD));
                }
                Some(_) => {
                    self.head_only = false;
                    if length > MAX_CONTROL_BODY {
                        return Err(DecodeError::TooLong(length));
                    }
                    let Some(body) = body.get(..length) else {
                        return Ok(None);
                    };
                    let command = Command::decode(body)?;
                    self.buffer.take(PACKET_HEAD + length);
                    return Ok(Some(Input::Command(command)));
                }
            }
        }
    }
}
