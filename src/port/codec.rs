//! Encodes and decodes the packets of [`protocol`](super::protocol). No I/O.

use super::protocol::{
    Command, DATA, DATA_HEAD, MAX_CONTROL_BODY, PACKET_HEAD, Report, Status, WINDOW, kind,
};
use crate::failure::Reason;
use crate::ids::{ConnId, MAX_CONN};
use crate::log_line::{Cause, Level, Line, Subject};
use crate::peer::{Base, Credentials, Policy};
use byteorder::{BigEndian, ByteOrder, ReadBytesExt, WriteBytesExt};
use std::fmt;

/// Why a body is not a packet of this protocol. The rest of the stream cannot be trusted after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DecodeError {
    /// The packet ends before or inside the field of this name.
    Missing(&'static str),
    /// The field of this name has an invalid value.
    Invalid(&'static str),
    /// Bytes follow the last field of a packet of this type.
    Trailing(u8),
    /// No packet has this type.
    UnknownType(u8),
    /// The body has this many bytes, which is over the limit.
    TooLong(usize),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DecodeError::Missing(field) => write!(f, "packet ends inside its field {field}"),
            DecodeError::Invalid(field) => write!(f, "field {field} has an impossible value"),
            DecodeError::Trailing(kind) => write!(f, "bytes after the last field of type {kind}"),
            DecodeError::UnknownType(kind) => write!(f, "unknown packet type {kind}"),
            DecodeError::TooLong(length) => write!(f, "packet of {length} bytes is over the limit"),
        }
    }
}

impl std::error::Error for DecodeError {}

impl Command {
    /// Decodes one complete body.
    ///
    /// # Errors
    /// If the body is not a packet that the VM sends, or is DATA.
    pub fn decode(body: &[u8]) -> Result<Command, DecodeError> {
        let mut fields = Fields(body);
        let packet_type = fields.u8("type")?;
        let command = match packet_type {
            kind::LISTEN => Command::Listen {
                listener: fields.u32("listener")?,
                backlog: fields.u32("backlog")?,
                mode: fields.u16("mode")?,
                vm_pid: fields.u32("vm_pid")?,
                address: fields.address()?,
            },
            kind::UNLISTEN => Command::Unlisten {
                listener: fields.u32("listener")?,
            },
            kind::CONNECT => Command::Connect {
                conn: fields.conn()?,
                address: fields.address()?,
            },
            kind::ESTABLISHED => Command::Established {
                conn: fields.conn()?,
                node: fields.text("node")?,
            },
            kind::CLOSE => Command::Close {
                conn: fields.conn()?,
            },
            kind::ADMIT => Command::Admit(fields.policy()?),
            kind::HAND_OVER => Command::HandOver {
                conn: fields.conn()?,
                node: fields.text("node")?,
            },
            kind::OPEN_CHANNEL => Command::OpenChannel {
                vm_pid: fields.u32("vm_pid")?,
                directory: fields.rest().to_vec(),
            },
            kind::ASK_STATUS => Command::AskStatus,
            kind::ACK => Command::Ack {
                conn: fields.conn()?,
                count: fields.u32("count")?,
            },
            other => return Err(DecodeError::UnknownType(other)),
        };
        match fields.0 {
            [] => Ok(command),
            _ => Err(DecodeError::Trailing(packet_type)),
        }
    }

    /// Appends the packet, length first, to `out`. Only tests use it, in the role of the VM.
    pub fn encode(&self, out: &mut Vec<u8>) {
        packet(out, |out| match self {
            Command::Listen {
                listener,
                backlog,
                mode,
                vm_pid,
                address,
            } => {
                out.push(kind::LISTEN);
                put_u32(out, *listener);
                put_u32(out, *backlog);
                put_u16(out, *mode);
                put_u32(out, *vm_pid);
                out.extend_from_slice(address);
            }
            Command::Unlisten { listener } => {
                out.push(kind::UNLISTEN);
                put_u32(out, *listener);
            }
            Command::Connect { conn, address } => {
                out.push(kind::CONNECT);
                put_u32(out, *conn);
                out.extend_from_slice(address);
            }
            Command::Established { conn, node } => {
                out.push(kind::ESTABLISHED);
                put_u32(out, *conn);
                out.extend_from_slice(node.as_bytes());
            }
            Command::Close { conn } => {
                out.push(kind::CLOSE);
                put_u32(out, *conn);
            }
            Command::Admit(policy) => {
                out.push(kind::ADMIT);
                put_policy(out, policy);
            }
            Command::HandOver { conn, node } => {
                out.push(kind::HAND_OVER);
                put_u32(out, *conn);
                out.extend_from_slice(node.as_bytes());
            }
            Command::OpenChannel { vm_pid, directory } => {
                out.push(kind::OPEN_CHANNEL);
                put_u32(out, *vm_pid);
                out.extend_from_slice(directory);
            }
            Command::AskStatus => out.push(kind::ASK_STATUS),
            Command::Ack { conn, count } => {
                out.push(kind::ACK);
                put_u32(out, *conn);
                put_u32(out, *count);
            }
        });
    }
}

impl Report {
    /// Appends the packet, length first, to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        packet(out, |out| match self {
            Report::Hello {
                version,
                window,
                release,
            } => {
                out.push(kind::HELLO);
                put_u16(out, *version);
                put_u32(out, *window);
                out.extend_from_slice(release.as_bytes());
            }
            Report::Listening { listener } => {
                out.push(kind::LISTENING);
                put_u32(out, *listener);
            }
            Report::ListenFailed {
                listener,
                reason,
                explanation,
            } => put_failure(out, kind::LISTEN_FAILED, *listener, *reason, explanation),
            Report::Unlistened { listener } => {
                out.push(kind::UNLISTENED);
                put_u32(out, *listener);
            }
            Report::Accepted {
                conn,
                peer,
                address,
            } => {
                out.push(kind::ACCEPTED);
                put_u32(out, *conn);
                put_credentials(out, peer);
                out.extend_from_slice(address);
            }
            Report::Connected { conn, peer } => {
                out.push(kind::CONNECTED);
                put_u32(out, *conn);
                put_credentials(out, peer);
            }
            Report::ConnectFailed {
                conn,
                reason,
                explanation,
            } => put_failure(out, kind::CONNECT_FAILED, *conn, *reason, explanation),
            Report::Ack { conn, count } => {
                out.push(kind::ACK);
                put_u32(out, *conn);
                put_u32(out, *count);
            }
            Report::HandedOver { conn } => {
                out.push(kind::HANDED_OVER);
                put_u32(out, *conn);
            }
            Report::Relayed { conn } => {
                out.push(kind::RELAYED);
                put_u32(out, *conn);
            }
            Report::Channel { address } => {
                out.push(kind::CHANNEL);
                out.extend_from_slice(address);
            }
            Report::ChannelFailed { explanation } => {
                out.push(kind::CHANNEL_FAILED);
                out.extend_from_slice(explanation.as_bytes());
            }
            Report::ListenerLost {
                listener,
                explanation,
            } => {
                out.push(kind::LISTENER_LOST);
                put_u32(out, *listener);
                out.extend_from_slice(explanation.as_bytes());
            }
            Report::Closed {
                conn,
                reason,
                explanation,
            } => put_failure(out, kind::CLOSED, *conn, *reason, explanation),
            Report::Log(line) => put_line(out, line),
            Report::Status(status) => {
                out.push(kind::STATUS);
                put_u32(out, status.descriptors);
                put_u32(out, status.descriptor_limit);
                out.write_u64::<BigEndian>(status.memory).expect(VECTOR);
            }
        });
    }

    /// Decodes one complete body. Only tests use it, in the role of the VM.
    ///
    /// # Errors
    /// If the body is not a packet that the sidecar sends, or is DATA.
    pub fn decode(body: &[u8]) -> Result<Report, DecodeError> {
        if body.len() > MAX_CONTROL_BODY {
            return Err(DecodeError::TooLong(body.len()));
        }
        let mut fields = Fields(body);
        let packet_type = fields.u8("type")?;
        let report = match packet_type {
            kind::HELLO => Report::Hello {
                version: fields.u16("version")?,
                window: fields.u32("window")?,
                release: fields.text("release")?,
            },
            kind::LISTENING => Report::Listening {
                listener: fields.u32("listener")?,
            },
            kind::LISTEN_FAILED => Report::ListenFailed {
                listener: fields.u32("listener")?,
                reason: fields.reason()?,
                explanation: fields.text("explanation")?,
            },
            kind::UNLISTENED => Report::Unlistened {
                listener: fields.u32("listener")?,
            },
            kind::ACCEPTED => Report::Accepted {
                conn: fields.conn()?,
                peer: fields.credentials()?,
                address: fields.rest().to_vec(),
            },
            kind::CONNECTED => Report::Connected {
                conn: fields.conn()?,
                peer: fields.credentials()?,
            },
            kind::CONNECT_FAILED => Report::ConnectFailed {
                conn: fields.conn()?,
                reason: fields.reason()?,
                explanation: fields.text("explanation")?,
            },
            kind::ACK => Report::Ack {
                conn: fields.conn()?,
                count: fields.u32("count")?,
            },
            kind::CLOSED => Report::Closed {
                conn: fields.conn()?,
                reason: fields.reason()?,
                explanation: fields.text("explanation")?,
            },
            kind::HANDED_OVER => Report::HandedOver {
                conn: fields.conn()?,
            },
            kind::RELAYED => Report::Relayed {
                conn: fields.conn()?,
            },
            kind::CHANNEL => Report::Channel {
                address: fields.address()?,
            },
            kind::CHANNEL_FAILED => Report::ChannelFailed {
                explanation: fields.text("explanation")?,
            },
            kind::LISTENER_LOST => Report::ListenerLost {
                listener: fields.u32("listener")?,
                explanation: fields.text("explanation")?,
            },
            kind::LOG => Report::Log(fields.line()?),
            kind::STATUS => Report::Status(Status {
                descriptors: fields.u32("descriptors")?,
                descriptor_limit: fields.u32("descriptor_limit")?,
                memory: fields.u64("memory")?,
            }),
            other => return Err(DecodeError::UnknownType(other)),
        };
        match fields.0 {
            [] => Ok(report),
            _ => Err(DecodeError::Trailing(packet_type)),
        }
    }
}

/// The length, type and connection number that precede a payload of `length` bytes in a DATA packet.
pub fn data_head(conn: ConnId, length: usize) -> [u8; PACKET_HEAD + DATA_HEAD] {
    debug_assert!(length <= WINDOW as usize);
    let mut head = [0; PACKET_HEAD + DATA_HEAD];
    BigEndian::write_u32(&mut head, (DATA_HEAD + length) as u32);
    head[PACKET_HEAD] = DATA;
    BigEndian::write_u32(&mut head[PACKET_HEAD + 1..], conn);
    head
}

/// Appends the length and the body that `body` writes.
fn packet(out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let head = out.len();
    put_u32(out, 0);
    body(out);
    let length = (out.len() - head - PACKET_HEAD) as u32;
    BigEndian::write_u32(&mut out[head..], length);
}

fn put_u16(out: &mut Vec<u8>, value: u16) {
    out.write_u16::<BigEndian>(value).expect(VECTOR);
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.write_u32::<BigEndian>(value).expect(VECTOR);
}

/// Why writing cannot fail.
const VECTOR: &str = "writing to a vector cannot fail";

fn put_credentials(out: &mut Vec<u8>, peer: &Credentials) {
    put_u32(out, peer.uid);
    put_u32(out, peer.gid);
    put_u32(out, peer.pid);
}

fn put_policy(out: &mut Vec<u8>, policy: &Policy) {
    out.push(policy.base as u8);
    put_u16(out, policy.uids.len() as u16);
    for id in policy.uids.iter().chain(&policy.gids) {
        put_u32(out, *id);
    }
}

fn put_failure(out: &mut Vec<u8>, kind: u8, id: u32, reason: Reason, explanation: &str) {
    out.push(kind);
    put_u32(out, id);
    out.push(reason as u8);
    out.extend_from_slice(explanation.as_bytes());
}

fn put_line(out: &mut Vec<u8>, line: &Line) {
    out.push(kind::LOG);
    out.push(line.level as u8);
    out.push(line.cause.map_or(0, |cause| cause as u8));
    put_credentials(out, &line.peer);
    let (number, name) = match &line.subject {
        Subject::Nothing => (0, ""),
        Subject::Address(address) => (1, address.as_str()),
        Subject::Node(node) => (2, node.as_str()),
    };
    out.push(number);
    put_u16(out, name.len() as u16);
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(line.text.as_bytes());
}

/// The bounded reader that all packets are decoded with. It holds the bytes that have not been read yet.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        self.0.read_u8().map_err(|_| DecodeError::Missing(field))
    }

    fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        let value = self.0.read_u16::<BigEndian>();
        value.map_err(|_| DecodeError::Missing(field))
    }

    fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        let value = self.0.read_u32::<BigEndian>();
        value.map_err(|_| DecodeError::Missing(field))
    }

    fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        let value = self.0.read_u64::<BigEndian>();
        value.map_err(|_| DecodeError::Missing(field))
    }

    fn conn(&mut self) -> Result<ConnId, DecodeError> {
        match self.u32("conn")? {
            conn @ 1..MAX_CONN => Ok(conn),
            _ => Err(DecodeError::Invalid("conn")),
        }
    }

    fn reason(&mut self) -> Result<Reason, DecodeError> {
        let number = self.u8("reason")?;
        Reason::ALL
            .into_iter()
            .find(|reason| *reason as u8 == number)
            .ok_or(DecodeError::Invalid("reason"))
    }

    fn policy(&mut self) -> Result<Policy, DecodeError> {
        let base = match self.u8("base")? {
            0 => Base::Nobody,
            1 => Base::OwnUserAndRoot,
            2 => Base::Anybody,
            _ => return Err(DecodeError::Invalid("base")),
        };
        let count = self.u16("uids")?;
        let uids = (0..count)
            .map(|_| self.u32("uid"))
            .collect::<Result<_, _>>()?;
        let mut gids = Vec::new();
        while !self.0.is_empty() {
            gids.push(self.u32("gid")?);
        }
        Ok(Policy { base, uids, gids })
    }

    fn credentials(&mut self) -> Result<Credentials, DecodeError> {
        Ok(Credentials {
            uid: self.u32("uid")?,
            gid: self.u32("gid")?,
            pid: self.u32("pid")?,
        })
    }

    fn line(&mut self) -> Result<Line, DecodeError> {
        let level = self.u8("level")?;
        let level = Level::ALL.into_iter().find(|known| *known as u8 == level);
        let level = level.ok_or(DecodeError::Invalid("level"))?;
        let cause = match self.u8("reason")? {
            0 => None,
            number => {
                let cause = Cause::ALL.into_iter().find(|cause| *cause as u8 == number);
                Some(cause.ok_or(DecodeError::Invalid("reason"))?)
            }
        };
        let peer = self.credentials()?;
        let subject = self.u8("subject")?;
        let length = usize::from(self.u16("length")?);
        let (name, text) = self
            .0
            .split_at_checked(length)
            .ok_or(DecodeError::Missing("name"))?;
        self.0 = text;
        let name = String::from_utf8(name.to_vec()).map_err(|_| DecodeError::Invalid("name"))?;
        let subject = match subject {
            0 if name.is_empty() => Subject::Nothing,
            1 => Subject::Address(name),
            2 => Subject::Node(name),
            _ => return Err(DecodeError::Invalid("subject")),
        };
        let text = self.text("text")?;
        Ok(Line {
            level,
            cause,
            peer,
            subject,
            text,
        })
    }

    fn address(&mut self) -> Result<Vec<u8>, DecodeError> {
        match self.rest() {
            [] => Err(DecodeError::Missing("address")),
            address => Ok(address.to_vec()),
        }
    }

    fn text(&mut self, field: &'static str) -> Result<String, DecodeError> {
        String::from_utf8(self.rest().to_vec()).map_err(|_| DecodeError::Invalid(field))
    }

    fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}
