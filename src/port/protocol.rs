//! The port protocol: what the VM and its sidecar say to each other.
//!
//! This page is the protocol's one description. `codec.rs` and, on the VM's side,
//! `uds_dist_protocol.erl` encode and decode it, and `test/port_protocol.vectors` holds both to it.
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

use crate::failure::Reason;
use crate::peer::{Credentials, Policy};

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

/// Listener identifiers are below this: a VM has one listener, and one more while it moves.
pub const MAX_LISTENERS: u32 = 16;

/// The first byte of a body: which packet it is.
pub(super) mod kind {
    pub const LISTEN: u8 = 1;
    pub const UNLISTEN: u8 = 2;
    pub const CONNECT: u8 = 3;
    pub const ESTABLISHED: u8 = 4;
    pub const CLOSE: u8 = 5;
    pub const ADMIT: u8 = 6;
    pub const HAND_OVER: u8 = 7;
    pub const ACK: u8 = 17;
    pub const HELLO: u8 = 32;
    pub const LISTENING: u8 = 33;
    pub const LISTEN_FAILED: u8 = 34;
    pub const UNLISTENED: u8 = 35;
    pub const ACCEPTED: u8 = 36;
    pub const CONNECTED: u8 = 37;
    pub const CONNECT_FAILED: u8 = 38;
    pub const CLOSED: u8 = 39;
    pub const HANDED_OVER: u8 = 40;
    pub const KEPT: u8 = 41;
}

/// Type byte of DATA, for those who stream its bytes instead of collecting them.
pub const DATA: u8 = 16;

/// Identifies a connection between the VM and its sidecar.
pub type ConnId = u32;

/// Identifies a listener between the VM and its sidecar.
pub type ListenerId = u32;

/// A packet from the VM, DATA excepted: its bytes are streamed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Own the name at `address` and accept connections there.
    Listen {
        /// A number that the VM chooses; no other open listener has it.
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
        /// The number that LISTEN has given the listener.
        listener: ListenerId,
    },
    /// Connect to the node that listens at `address`.
    Connect {
        /// A number that the VM chooses: odd, and not in use.
        conn: ConnId,
        /// unix(7) path, or NUL and abstract name.
        address: Vec<u8>,
    },
    /// The handshake is through, and the sidecar keeps the connection: the full window counts from here.
    Established {
        /// The number that CONNECT or ACCEPTED has given the connection.
        conn: ConnId,
        /// Name of the peer node, for people who read the sidecar's table.
        node: String,
    },
    /// End the connection; what was sent before is still delivered.
    Close {
        /// The number that CONNECT or ACCEPTED has given the connection.
        conn: ConnId,
    },
    /// These may be peers from now on.
    Admit(Policy),
    /// The handshake is through, and the VM wants the socket.
    HandOver {
        /// The number that CONNECT or ACCEPTED has given the connection.
        conn: ConnId,
        /// Name of the peer node, for people who read the log.
        node: String,
    },
    /// The VM has passed on `count` bytes of the connection.
    Ack {
        /// The number that CONNECT or ACCEPTED has given the connection.
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
        /// The number that LISTEN has given the listener.
        listener: ListenerId,
    },
    /// The name could not be had.
    ListenFailed {
        /// The number that LISTEN has given the listener.
        listener: ListenerId,
        /// What the VM acts on.
        reason: Reason,
        /// One line for people.
        explanation: String,
    },
    /// The name is given up: its socket and lock file are gone.
    Unlistened {
        /// The number that LISTEN has given the listener.
        listener: ListenerId,
    },
    /// A peer connected.
    Accepted {
        /// A number that the sidecar chooses: even, and not in use.
        conn: ConnId,
        /// Where it came in.
        listener: ListenerId,
        /// Who it is.
        peer: Credentials,
    },
    /// The peer of a CONNECT is there.
    Connected {
        /// The number that CONNECT has given the connection.
        conn: ConnId,
        /// Who it is.
        peer: Credentials,
    },
    /// The peer of a CONNECT could not be reached.
    ConnectFailed {
        /// The number that CONNECT has given the connection.
        conn: ConnId,
        /// What the VM acts on.
        reason: Reason,
        /// One line for people.
        explanation: String,
    },
    /// The socket has passed on `count` bytes of the connection.
    Ack {
        /// The number that CONNECT or ACCEPTED has given the connection.
        conn: ConnId,
        /// Bytes since the last ACK.
        count: u32,
    },
    /// The socket of the connection lies in the channel.
    HandedOver {
        /// The number that CONNECT or ACCEPTED has given the connection.
        conn: ConnId,
    },
    /// The socket cannot be passed: the connection is established at the sidecar.
    Kept {
        /// The number that CONNECT or ACCEPTED has given the connection.
        conn: ConnId,
    },
    /// The connection ended, and not by CLOSE.
    Closed {
        /// The number that CONNECT or ACCEPTED has given the connection.
        conn: ConnId,
        /// What the VM acts on.
        reason: Reason,
        /// One line for people.
        explanation: String,
    },
}
