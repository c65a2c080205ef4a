//! Bytes of the VM's port become commands. No I/O: the caller reads the bytes.
//!
//! DATA is streamed: its bytes are handed on as they arrive, whatever the length of the packet, so
//! that a large one neither waits for its end nor needs a buffer of its size. The bytes of a large one
//! need not come here at all: the caller may splice them.

use super::MIN_SPLICE;
use super::buffer::Buffer;
use super::codec::DecodeError;
use super::protocol::{
    Command, ConnId, DATA, DATA_HEAD, MAX_CONN, MAX_CONTROL_BODY, MAX_DATA_BODY, PACKET_HEAD,
};
use byteorder::{BigEndian, ByteOrder};

/// One read of stdin takes at most this much: many times the longest packet that must stand here
/// whole, and as much of DATA as a read should bring at least where it has to come this way.
const CAPACITY: usize = 64 << 10;

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
#[derive(Debug)]
pub struct CommandReader {
    /// Read and not consumed.
    buffer: Buffer,
    /// Connection and missing bytes of the DATA packet that is being streamed; never 0 bytes.
    streaming: Option<(ConnId, usize)>,
    /// Bytes of the last large DATA packet were spliced, and only DATA has come since. The next
    /// packet may be as large: nothing behind its head is to be read, so that it can be spliced too.
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
    /// Where the next bytes belong; never empty once [`next`](Self::next) has returned `None`.
    pub fn space(&mut self) -> &mut [u8] {
        const HEADS: usize = PACKET_HEAD + DATA_HEAD;
        let wanted = match (self.head_only, self.streaming) {
            (false, _) => CAPACITY,
            (true, None) => HEADS,
            (true, Some((_, missing))) => CAPACITY.min(missing + HEADS),
        };
        // What waits is less than one control packet: `next` stops nowhere else.
        self.buffer.space(wanted - self.buffer.len())
    }

    /// The first `count` bytes of [`space`](Self::space) have been filled.
    pub fn filled(&mut self, count: usize) {
        self.buffer.filled(count);
    }

    /// Connection and number of the bytes of DATA that come next, if they are worth a splice and none
    /// of them has been read already.
    pub fn spliceable(&self) -> Option<(ConnId, usize)> {
        self.streaming
            .filter(|(_, missing)| self.buffer.is_empty() && *missing >= MIN_SPLICE)
    }

    /// The next `count` bytes of [`spliceable`](Self::spliceable) have been spliced.
    pub fn spliced(&mut self, count: usize) {
        let (conn, missing) = self.streaming.expect("only DATA is spliced");
        assert!(count <= missing);
        self.streaming = (count < missing).then_some((conn, missing - count));
        self.head_only = true;
    }

    /// Takes the next input, or `None` when more bytes are needed. After an error the stream is
    /// out of step and nothing more can be read from it.
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
