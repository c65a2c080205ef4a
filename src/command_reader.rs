//! Bytes of the VM's port become commands. Pure: the caller reads the bytes.
//!
//! DATA is streamed: its bytes are handed on as they arrive, whatever the length of the packet, so
//! that a large one neither waits for its end nor needs a buffer of its size. The bytes of a long
//! one need not come here at all.

use crate::protocol::{
    Command, ConnId, DATA, DATA_HEAD, DecodeError, MAX_CONN, MAX_CONTROL_BODY, MAX_DATA_BODY,
    PACKET_HEAD,
};
use byteorder::{BigEndian, ByteOrder};

/// One read of stdin takes at most this much: many times the longest packet that must stand here
/// whole, and as much of DATA as a read should bring at least where it has to come this way.
const CAPACITY: usize = 64 << 10;

/// Bytes of DATA that are worth the system call of their own that moves them past us.
pub const LONG: usize = 16 << 10;

/// What the VM said.
#[derive(Debug, PartialEq, Eq)]
pub enum Input<'a> {
    /// A complete packet.
    Command(Command),
    /// The next bytes of a DATA packet.
    Data {
        /// Connection they are for.
        conn: ConnId,
        /// At least one byte.
        bytes: &'a [u8],
    },
}

/// Cuts the VM's byte stream into [`Input`]s.
pub struct CommandReader {
    /// `buffer[start..end]` is read and not consumed; `start <= end <= buffer.len()`.
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Connection and missing bytes of the DATA packet that is being streamed; never 0 bytes.
    streaming: Option<(ConnId, usize)>,
    /// The last DATA that was long went by, and nothing but DATA has come since. The next may be long
    /// too: nothing behind its head is to be read.
    only_head: bool,
}

impl Default for CommandReader {
    fn default() -> Self {
        CommandReader {
            buffer: vec![0; CAPACITY].into_boxed_slice(),
            start: 0,
            end: 0,
            streaming: None,
            only_head: false,
        }
    }
}

impl CommandReader {
    /// Where the next bytes belong; never empty once [`next`](Self::next) has returned `None`.
    pub fn space(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.start > 0 {
            // What is left is less than one control packet: `next` stops nowhere else.
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let capacity = match (self.only_head, self.streaming) {
            (false, _) => self.buffer.len(),
            (true, None) => PACKET_HEAD + DATA_HEAD,
            (true, Some((_, missing))) => self.buffer.len().min(missing + PACKET_HEAD + DATA_HEAD),
        };
        &mut self.buffer[self.end..capacity]
    }

    /// Connection and number of the bytes of DATA that come next, if they are many and none of them
    /// is here already.
    pub fn long_data(&self) -> Option<(ConnId, usize)> {
        let is_empty = self.start == self.end;
        self.streaming
            .filter(|(_, missing)| is_empty && *missing >= LONG)
    }

    /// The next `count` bytes of [`long_data`](Self::long_data) have gone another way.
    pub fn went_by(&mut self, count: usize) {
        let (conn, missing) = self.streaming.expect("only DATA goes by");
        assert!(count <= missing);
        self.streaming = (count < missing).then_some((conn, missing - count));
        self.only_head = true;
    }

    /// The first `count` bytes of [`space`](Self::space) have been filled.
    pub fn filled(&mut self, count: usize) {
        assert!(count <= self.buffer.len() - self.end);
        self.end += count;
    }

    /// Takes the next input, or `None` when more bytes are needed. After an error the stream is
    /// out of step and nothing more can be read from it.
    #[allow(clippy::should_implement_trait)] // an Iterator could not lend its buffer
    pub fn next(&mut self) -> Result<Option<Input<'_>>, DecodeError> {
        loop {
            if let Some((conn, missing)) = self.streaming {
                let count = missing.min(self.end - self.start);
                if count == 0 {
                    return Ok(None);
                }
                self.streaming = (count < missing).then_some((conn, missing - count));
                let bytes = &self.buffer[self.start..self.start + count];
                self.start += count;
                return Ok(Some(Input::Data { conn, bytes }));
            }
            let pending = &self.buffer[self.start..self.end];
            let Some((head, body)) = pending.split_at_checked(PACKET_HEAD) else {
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
                    self.start += PACKET_HEAD + DATA_HEAD;
                    self.streaming = (length > DATA_HEAD).then_some((conn, length - DATA_HEAD));
                }
                Some(_) => {
                    self.only_head = false;
                    if length > MAX_CONTROL_BODY {
                        return Err(DecodeError::TooLong(length));
                    }
                    let Some(body) = body.get(..length) else {
                        return Ok(None);
                    };
                    let command = Command::decode(body)?;
                    self.start += PACKET_HEAD + length;
                    return Ok(Some(Input::Command(command)));
                }
            }
        }
    }
}
