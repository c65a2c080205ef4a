//! The port protocol: what the VM and its sidecar say to each other. Pure: no I/O.
//!
//! This page is the protocol's one description; `uds_dist_protocol.erl` is the same codec on
//! the VM's side, and `test/port_protocol.vectors` holds both to it.
//!
//! The VM opens the sidecar as a port with `{packet, 4}`: every packet is a 32-bit length and a
//! body, and every body starts with one byte that says what it is. All integers are unsigned and
//! big-endian. `text` is UTF-8 and runs to the end of the packet.
//!
//! ```text
//!           VM                                  sidecar
//!            | <------------------------------ HELLO |   always first, once
//!            | ADMIT ------------------------------> |   who may be a peer
//!            | LISTEN -----------------------------> |
//!            | <---------- LISTENING / LISTEN_FAILED |
//!            | <--------------------------- ACCEPTED |   a peer came in
//!            | CONNECT ----------------------------> |
//!            | <--------- CONNECTED / CONNECT_FAILED |   or we go out to one
//!            | <------------- DATA, ACK -----------> |   both ways, while it is open
//!            | HAND_OVER --------------------------> |   the handshake is through: the VM wants the socket
//!            | <--------------- HANDED_OVER or KEPT |   and has it, or the sidecar goes on with it
//!            | ESTABLISHED ------------------------> |   or: the sidecar is to keep it
//!            | CLOSE --------> or <---------- CLOSED |   exactly one of the two ends what the sidecar has
//!            | UNLISTEN ---------------------------> |
//!            | <------------------------- UNLISTENED |
//! ```
//!
//! | type | packet         | direction    | fields after the type byte                              |
//! |-----:|----------------|--------------|---------------------------------------------------------|
//! |    1 | LISTEN         | VM → sidecar | listener:32 backlog:32 mode:16 vm_pid:32 address:rest   |
//! |    2 | UNLISTEN       | VM → sidecar | listener:32                                             |
//! |    3 | CONNECT        | VM → sidecar | conn:32 address:rest                                    |
//! |    4 | ESTABLISHED    | VM → sidecar | conn:32 node:text                                       |
//! |    5 | CLOSE          | VM → sidecar | conn:32                                                 |
//! |    6 | ADMIT          | VM → sidecar | base:8 uids:16 uid:32 ... gid:32 ...                    |
//! |    7 | HAND_OVER      | VM → sidecar | conn:32 node:text                                       |
//! |   16 | DATA           | both ways    | conn:32 bytes:rest                                      |
//! |   17 | ACK            | both ways    | conn:32 count:32                                        |
//! |   32 | HELLO          | sidecar → VM | version:16 features:32 window:32 handshake_window:32 length:8 channel:length release:text |
//! |   33 | LISTENING      | sidecar → VM | listener:32                                             |
//! |   34 | LISTEN_FAILED  | sidecar → VM | listener:32 reason:8 explanation:text                   |
//! |   35 | UNLISTENED     | sidecar → VM | listener:32                                             |
//! |   36 | ACCEPTED       | sidecar → VM | conn:32 listener:32 uid:32 gid:32 pid:32                |
//! |   37 | CONNECTED      | sidecar → VM | conn:32 uid:32 gid:32 pid:32                            |
//! |   38 | CONNECT_FAILED | sidecar → VM | conn:32 reason:8 explanation:text                       |
//! |   39 | CLOSED         | sidecar → VM | conn:32 reason:8 explanation:text                       |
//! |   40 | HANDED_OVER    | sidecar → VM | conn:32                                                 |
//! |   41 | KEPT           | sidecar → VM | conn:32                                                 |
//!
//! **Identifiers.** The VM chooses `listener`, from 0 to 15. A `conn` is chosen by who makes the
//! connection: odd by the VM (CONNECT), even by the sidecar (ACCEPTED), each from 1 to 2^30 - 1, and
//! is not used again before the numbers wrap around. A packet about a connection that the reader has
//! already ended is ignored: the two ends cross on the way.
//!
//! **Admission.** ADMIT says who may be a peer, from then on and in both directions: whom `base`
//! says (0 nobody, 1 the sidecar's own user and root, 2 anybody), processes of one of the `uid`s
//! (`uids` is their number), and of one of the `gid`s (the rest of the packet). Until then `base` is
//! 1. A peer that comes in and is refused is closed without a byte, and without a packet to the VM.
//!
//! **Addresses** are those of unix(7): a path, or NUL and an abstract name.
//!
//! **Handover.** `channel` of HELLO is the address of a listener of the sidecar's, for its VM alone; it
//! is empty where sockets cannot be passed. The VM connects there once, and says nothing. To HAND_OVER
//! the sidecar answers with HANDED_OVER, which comes after all DATA that it has read, and before that
//! it sends one byte through the channel, with the socket as SCM_RIGHTS of unix(7): sockets come in
//! the order of their HANDED_OVERs. The connection is the VM's then, and its number means nothing to
//! the sidecar. KEPT stands for ESTABLISHED: why, the sidecar has logged. The VM sends no DATA between
//! HAND_OVER and the answer.
//!
//! **Flow control**, the same rule in both directions: *a sender has at most a window of bytes of
//! a connection sent and not acknowledged. The receiver acknowledges bytes when it has passed them
//! on, at the latest when a quarter of the window waits for its acknowledgement.* The sidecar
//! passes on to the socket, the VM to the distribution. `window` and `handshake_window` are the
//! ones HELLO names. Until ESTABLISHED or KEPT the sidecar keeps to `handshake_window`, and the VM
//! acknowledges nothing: all that a peer can make the VM hold before it has shown that it knows
//! the cookie are `handshake_window` bytes.
//!
//! **Bytes** of DATA are those of the connection's stream, in order, cut anywhere. Nothing of this
//! protocol appears on the socket. CLOSE still delivers what was sent before it, for a bounded
//! time; CLOSED comes after the last byte the peer sent.

use crate::admission::{Base, Policy};
use byteorder::{BigEndian, ByteOrder};
use std::fmt;

/// Version of this protocol. The VM refuses a sidecar that says another one.
pub const VERSION: u16 = 2;

/// Features of this sidecar beyond the version's own; none are defined yet.
pub const FEATURES: u32 = 0;

/// Bytes a side may have unacknowledged on one connection: two batches of a bulk transfer, so that
/// one is written while the next is made. Bounds the sidecar's memory to connections x window.
pub const WINDOW: u32 = 1 << 20;

/// Bytes of a connection that is still shaking hands: several times the longest handshake (a name
/// of 255 characters each way, challenge, digest), so that only garbage reaches the limit.
pub const HANDSHAKE_WINDOW: u32 = 16 << 10;

/// Longest body of a packet other than DATA: an address has at most 108 bytes, a node name at most
/// 255 characters of 4 bytes, and lists of users and groups are short (five hundred fit). More is a
/// sign that the stream is out of step.
pub const MAX_CONTROL_BODY: usize = 2048;

/// Longest body of a DATA packet: nobody may send more than a window.
pub const MAX_DATA_BODY: usize = DATA_HEAD + WINDOW as usize;

/// Bytes of a DATA body before the connection's own: type and conn.
pub const DATA_HEAD: usize = 5;

/// Bytes of the packet length that stands before each body.
pub const PACKET_HEAD: usize = 4;

/// Connection identifiers are below this, so that one fits a readiness token on every machine.
pub const MAX_CONN: u32 = 1 << 30;

const LISTEN: u8 = 1;
const UNLISTEN: u8 = 2;
const CONNECT: u8 = 3;
const ESTABLISHED: u8 = 4;
const CLOSE: u8 = 5;
const ADMIT: u8 = 6;
const HAND_OVER: u8 = 7;
/// Type byte of DATA, for those who stream its bytes instead of collecting them.
pub const DATA: u8 = 16;
const ACK: u8 = 17;
const HELLO: u8 = 32;
const LISTENING: u8 = 33;
const LISTEN_FAILED: u8 = 34;
const UNLISTENED: u8 = 35;
const ACCEPTED: u8 = 36;
const CONNECTED: u8 = 37;
const CONNECT_FAILED: u8 = 38;
const CLOSED: u8 = 39;
const HANDED_OVER: u8 = 40;
const KEPT: u8 = 41;

/// Identifies a connection between the VM and its sidecar.
pub type ConnId = u32;

/// Identifies a listener between the VM and its sidecar.
pub type ListenerId = u32;

/// A packet from the VM, DATA excepted: its bytes are streamed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Own the name at `address` and accept connections there.
    Listen {
        /// Chosen by the VM.
        listener: ListenerId,
        /// Connections that may wait to be accepted, as in listen(2).
        backlog: u32,
        /// Mode of the socket file, as in chmod(2).
        mode: u16,
        /// Process of the VM, for those who find the name in use.
        vm_pid: u32,
        /// unix(7) path, or NUL and abstract name.
        address: Vec<u8>,
    },
    /// Give the name up.
    Unlisten {
        /// Of LISTEN.
        listener: ListenerId,
    },
    /// Connect to the node that listens at `address`.
    Connect {
        /// Chosen by the VM, odd.
        conn: ConnId,
        /// unix(7) path, or NUL and abstract name.
        address: Vec<u8>,
    },
    /// The handshake is through, and the sidecar keeps the connection: the full window counts from here.
    Established {
        /// Of CONNECT or ACCEPTED.
        conn: ConnId,
        /// Name of the peer node, for people who read the sidecar's table.
        node: String,
    },
    /// End the connection; what was sent before is still delivered.
    Close {
        /// Of CONNECT or ACCEPTED.
        conn: ConnId,
    },
    /// These may be peers from now on.
    Admit(Policy),
    /// The handshake is through, and the VM wants the socket.
    HandOver {
        /// Of CONNECT or ACCEPTED.
        conn: ConnId,
        /// Name of the peer node, for people who read the log.
        node: String,
    },
    /// The VM has passed on `count` bytes of the connection.
    Ack {
        /// Of CONNECT or ACCEPTED.
        conn: ConnId,
        /// Bytes since the last ACK.
        count: u32,
    },
}

/// A packet to the VM, DATA excepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// First packet of a sidecar.
    Hello {
        /// [`VERSION`].
        version: u16,
        /// [`FEATURES`].
        features: u32,
        /// [`WINDOW`].
        window: u32,
        /// [`HANDSHAKE_WINDOW`].
        handshake_window: u32,
        /// unix(7) address where the VM gets sockets, 255 bytes at most; empty if it cannot.
        channel: Vec<u8>,
        /// Version of the program, for people.
        release: String,
    },
    /// The name is ours and peers can connect.
    Listening {
        /// Of LISTEN.
        listener: ListenerId,
    },
    /// The name could not be had.
    ListenFailed {
        /// Of LISTEN.
        listener: ListenerId,
        /// For the program.
        reason: Reason,
        /// For people.
        explanation: String,
    },
    /// The name is given up: its socket and lock file are gone.
    Unlistened {
        /// Of UNLISTEN.
        listener: ListenerId,
    },
    /// A peer connected.
    Accepted {
        /// Chosen by the sidecar, even.
        conn: ConnId,
        /// Where it came in.
        listener: ListenerId,
        /// Who it is.
        peer: Credentials,
    },
    /// The peer of a CONNECT is there.
    Connected {
        /// Of CONNECT.
        conn: ConnId,
        /// Who it is.
        peer: Credentials,
    },
    /// The peer of a CONNECT could not be reached.
    ConnectFailed {
        /// Of CONNECT.
        conn: ConnId,
        /// For the program.
        reason: Reason,
        /// For people.
        explanation: String,
    },
    /// The socket has passed on `count` bytes of the connection.
    Ack {
        /// Of CONNECT or ACCEPTED.
        conn: ConnId,
        /// Bytes since the last ACK.
        count: u32,
    },
    /// The socket of the connection lies in the channel.
    HandedOver {
        /// Of HAND_OVER.
        conn: ConnId,
    },
    /// The socket cannot be passed: the connection is established at the sidecar.
    Kept {
        /// Of HAND_OVER.
        conn: ConnId,
    },
    /// The connection ended, and not by CLOSE.
    Closed {
        /// Of CONNECT or ACCEPTED.
        conn: ConnId,
        /// For the program.
        reason: Reason,
        /// For people.
        explanation: String,
    },
}

/// What the kernel says about the process at the other end of a socket. [`Credentials::UNKNOWN`]
/// where the operating system does not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credentials {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Process: the one that called connect(2) or listen(2).
    pub pid: u32,
}

impl Credentials {
    /// No user, group or process has these numbers: (uid_t)-1 is reserved, pid 0 is the kernel.
    pub const UNKNOWN: Credentials = Credentials {
        uid: u32::MAX,
        gid: u32::MAX,
        pid: 0,
    };

    /// The process, where the system tells.
    pub fn process(&self) -> Option<u32> {
        (self.pid != Credentials::UNKNOWN.pid).then_some(self.pid)
    }
}

/// Why something could not be done, as far as a program acts on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    /// A live process listens under this name.
    DuplicateName = 1,
    /// Somebody holds the name's lock, but nothing answers there: about to appear or to go away.
    NameBusy = 2,
    /// The peer's backlog is full: it is alive, try again.
    BacklogFull = 3,
    /// Nobody listens at the address.
    NotListening = 4,
    /// The operating system denies the access.
    PermissionDenied = 5,
    /// The address can never work: too long, empty, not a socket, no such directory.
    BadAddress = 6,
    /// The peer closed the connection.
    PeerClosed = 7,
    /// The operating system failed at something else.
    SystemError = 8,
    /// The peer is there, but it is not one that ADMIT allows.
    Refused = 9,
}

impl Reason {
    /// Every reason, in the order of its number.
    pub const ALL: [Reason; 9] = [
        Reason::DuplicateName,
        Reason::NameBusy,
        Reason::BacklogFull,
        Reason::NotListening,
        Reason::PermissionDenied,
        Reason::BadAddress,
        Reason::PeerClosed,
        Reason::SystemError,
        Reason::Refused,
    ];
}

/// A packet of the VM that breaks this protocol. The stream behind it cannot be trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DecodeError {
    /// The packet ends inside the field of this name.
    Missing(&'static str),
    /// The field of this name has a value that it must not have.
    Invalid(&'static str),
    /// Bytes follow the last field of a packet of this type.
    Trailing(u8),
    /// No packet has this type.
    UnknownType(u8),
    /// A body of this many bytes, over its cap.
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
    /// Reads one complete body.
    pub fn decode(body: &[u8]) -> Result<Command, DecodeError> {
        let mut fields = Fields(body);
        let kind = fields.u8("type")?;
        let command = match kind {
            LISTEN => Command::Listen {
                listener: fields.u32("listener")?,
                backlog: fields.u32("backlog")?,
                mode: fields.u16("mode")?,
                vm_pid: fields.u32("vm_pid")?,
                address: fields.address()?,
            },
            UNLISTEN => Command::Unlisten {
                listener: fields.u32("listener")?,
            },
            CONNECT => Command::Connect {
                conn: fields.conn()?,
                address: fields.address()?,
            },
            ESTABLISHED => Command::Established {
                conn: fields.conn()?,
                node: fields.text("node")?,
            },
            CLOSE => Command::Close {
                conn: fields.conn()?,
            },
            ADMIT => Command::Admit(fields.policy()?),
            HAND_OVER => Command::HandOver {
                conn: fields.conn()?,
                node: fields.text("node")?,
            },
            ACK => Command::Ack {
                conn: fields.conn()?,
                count: fields.u32("count")?,
            },
            other => return Err(DecodeError::UnknownType(other)),
        };
        match fields.0 {
            [] => Ok(command),
            _ => Err(DecodeError::Trailing(kind)),
        }
    }

    /// Appends the packet, length first. The VM's side of the codec, for tests that play the VM.
    pub fn encode(&self, out: &mut Vec<u8>) {
        packet(out, |out| match self {
            Command::Listen {
                listener,
                backlog,
                mode,
                vm_pid,
                address,
            } => {
                out.push(LISTEN);
                put_u32(out, *listener);
                put_u32(out, *backlog);
                put_u16(out, *mode);
                put_u32(out, *vm_pid);
                out.extend_from_slice(address);
            }
            Command::Unlisten { listener } => {
                out.push(UNLISTEN);
                put_u32(out, *listener);
            }
            Command::Connect { conn, address } => {
                out.push(CONNECT);
                put_u32(out, *conn);
                out.extend_from_slice(address);
            }
            Command::Established { conn, node } => {
                out.push(ESTABLISHED);
                put_u32(out, *conn);
                out.extend_from_slice(node.as_bytes());
            }
            Command::Close { conn } => {
                out.push(CLOSE);
                put_u32(out, *conn);
            }
            Command::Admit(policy) => {
                out.push(ADMIT);
                put_policy(out, policy);
            }
            Command::HandOver { conn, node } => {
                out.push(HAND_OVER);
                put_u32(out, *conn);
                out.extend_from_slice(node.as_bytes());
            }
            Command::Ack { conn, count } => {
                out.push(ACK);
                put_u32(out, *conn);
                put_u32(out, *count);
            }
        });
    }
}

impl Report {
    /// Appends the packet, length first.
    pub fn encode(&self, out: &mut Vec<u8>) {
        packet(out, |out| match self {
            Report::Hello {
                version,
                features,
                window,
                handshake_window,
                channel,
                release,
            } => {
                out.push(HELLO);
                put_u16(out, *version);
                put_u32(out, *features);
                put_u32(out, *window);
                put_u32(out, *handshake_window);
                debug_assert!(channel.len() <= u8::MAX as usize);
                out.push(channel.len() as u8);
                out.extend_from_slice(channel);
                out.extend_from_slice(release.as_bytes());
            }
            Report::Listening { listener } => {
                out.push(LISTENING);
                put_u32(out, *listener);
            }
            Report::ListenFailed {
                listener,
                reason,
                explanation,
            } => put_failure(out, LISTEN_FAILED, *listener, *reason, explanation),
            Report::Unlistened { listener } => {
                out.push(UNLISTENED);
                put_u32(out, *listener);
            }
            Report::Accepted {
                conn,
                listener,
                peer,
            } => {
                out.push(ACCEPTED);
                put_u32(out, *conn);
                put_u32(out, *listener);
                put_credentials(out, peer);
            }
            Report::Connected { conn, peer } => {
                out.push(CONNECTED);
                put_u32(out, *conn);
                put_credentials(out, peer);
            }
            Report::ConnectFailed {
                conn,
                reason,
                explanation,
            } => put_failure(out, CONNECT_FAILED, *conn, *reason, explanation),
            Report::Ack { conn, count } => {
                out.push(ACK);
                put_u32(out, *conn);
                put_u32(out, *count);
            }
            Report::HandedOver { conn } => {
                out.push(HANDED_OVER);
                put_u32(out, *conn);
            }
            Report::Kept { conn } => {
                out.push(KEPT);
                put_u32(out, *conn);
            }
            Report::Closed {
                conn,
                reason,
                explanation,
            } => put_failure(out, CLOSED, *conn, *reason, explanation),
        });
    }

    /// Reads one complete body. The VM's side of the codec, for tests that play the VM.
    pub fn decode(body: &[u8]) -> Result<Report, DecodeError> {
        if body.len() > MAX_CONTROL_BODY {
            return Err(DecodeError::TooLong(body.len()));
        }
        let mut fields = Fields(body);
        let kind = fields.u8("type")?;
        let report = match kind {
            HELLO => Report::Hello {
                version: fields.u16("version")?,
                features: fields.u32("features")?,
                window: fields.u32("window")?,
                handshake_window: fields.u32("handshake_window")?,
                channel: fields.short_bytes("channel")?,
                release: fields.text("release")?,
            },
            LISTENING => Report::Listening {
                listener: fields.u32("listener")?,
            },
            LISTEN_FAILED => Report::ListenFailed {
                listener: fields.u32("listener")?,
                reason: fields.reason()?,
                explanation: fields.text("explanation")?,
            },
            UNLISTENED => Report::Unlistened {
                listener: fields.u32("listener")?,
            },
            ACCEPTED => Report::Accepted {
                conn: fields.conn()?,
                listener: fields.u32("listener")?,
                peer: fields.credentials()?,
            },
            CONNECTED => Report::Connected {
                conn: fields.conn()?,
                peer: fields.credentials()?,
            },
            CONNECT_FAILED => Report::ConnectFailed {
                conn: fields.conn()?,
                reason: fields.reason()?,
                explanation: fields.text("explanation")?,
            },
            ACK => Report::Ack {
                conn: fields.conn()?,
                count: fields.u32("count")?,
            },
            CLOSED => Report::Closed {
                conn: fields.conn()?,
                reason: fields.reason()?,
                explanation: fields.text("explanation")?,
            },
            HANDED_OVER => Report::HandedOver {
                conn: fields.conn()?,
            },
            KEPT => Report::Kept {
                conn: fields.conn()?,
            },
            other => return Err(DecodeError::UnknownType(other)),
        };
        match fields.0 {
            [] => Ok(report),
            _ => Err(DecodeError::Trailing(kind)),
        }
    }
}

/// Writes the length, type and connection that stand before `length` bytes of a DATA packet.
pub fn data_head(conn: ConnId, length: usize) -> [u8; PACKET_HEAD + DATA_HEAD] {
    debug_assert!(length <= WINDOW as usize);
    let mut head = [0; PACKET_HEAD + DATA_HEAD];
    BigEndian::write_u32(&mut head, (DATA_HEAD + length) as u32);
    head[PACKET_HEAD] = DATA;
    BigEndian::write_u32(&mut head[PACKET_HEAD + 1..], conn);
    head
}

/// Appends a body and writes its length before it.
fn packet(out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let head = out.len();
    put_u32(out, 0);
    body(out);
    let length = (out.len() - head - PACKET_HEAD) as u32;
    BigEndian::write_u32(&mut out[head..], length);
}

fn put_u16(out: &mut Vec<u8>, value: u16) {
    out.extend_from_slice(&value.to_be_bytes());
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_be_bytes());
}

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

/// The one bounded reader of packets: what is left of a body.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize, field: &'static str) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self
            .0
            .split_at_checked(count)
            .ok_or(DecodeError::Missing(field))?;
        self.0 = rest;
        Ok(taken)
    }

    fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        Ok(self.take(1, field)?[0])
    }

    fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        Ok(BigEndian::read_u16(self.take(2, field)?))
    }

    fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        Ok(BigEndian::read_u32(self.take(4, field)?))
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

    /// Bytes behind an 8-bit length.
    fn short_bytes(&mut self, field: &'static str) -> Result<Vec<u8>, DecodeError> {
        let length = self.u8("length")?;
        Ok(self.take(length as usize, field)?.to_vec())
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
