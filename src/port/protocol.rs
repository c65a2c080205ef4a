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
//!            | ESTABLISHED ------------------------> |   the handshake is through: the sidecar relays
//!            | <----------------------------- CLOSED |   the socket has ended
//!            | CLOSE ------------------------------> |   always, once: the VM is done with it
//!            | UNLISTEN ---------------------------> |
//!            | <------------------------- UNLISTENED |
//!            | <---------------------- LISTENER_LOST |   or: the name was taken away
//!
//! where the VM wants the sockets themselves
//!
//!            | OPEN_CHANNEL -----------------------> |   once, before the first HAND_OVER
//!            | <----------- CHANNEL / CHANNEL_FAILED |
//!            | HAND_OVER --------------------------> |   in place of ESTABLISHED
//!            | <-------------- HANDED_OVER / RELAYED |   the VM has the socket, or the sidecar relays
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
//! |    8 | OPEN_CHANNEL   | VM → sidecar | vm_pid:32 directory:rest                                |
//! |   16 | DATA           | both ways    | conn:32 bytes:rest                                      |
//! |   17 | ACK            | both ways    | conn:32 count:32                                        |
//! |   32 | HELLO          | sidecar → VM | version:16 window:32                                    |
//! |   33 | LISTENING      | sidecar → VM | listener:32                                             |
//! |   34 | LISTEN_FAILED  | sidecar → VM | listener:32 reason:8 explanation:text                   |
//! |   35 | UNLISTENED     | sidecar → VM | listener:32                                             |
//! |   36 | ACCEPTED       | sidecar → VM | conn:32 listener:32 uid:32 gid:32 pid:32                |
//! |   37 | CONNECTED      | sidecar → VM | conn:32 uid:32 gid:32 pid:32                            |
//! |   38 | CONNECT_FAILED | sidecar → VM | conn:32 reason:8 explanation:text                       |
//! |   39 | CLOSED         | sidecar → VM | conn:32 reason:8 explanation:text                       |
//! |   40 | HANDED_OVER    | sidecar → VM | conn:32                                                 |
//! |   41 | RELAYED        | sidecar → VM | conn:32                                                 |
//! |   42 | CHANNEL        | sidecar → VM | address:rest                                            |
//! |   43 | CHANNEL_FAILED | sidecar → VM | explanation:text                                        |
//! |   44 | LISTENER_LOST  | sidecar → VM | listener:32 explanation:text                            |
//!
//! **Listeners.** The VM chooses `listener`, from 0 to 15. LISTENER_LOST says that the socket file is
//! gone or is another one: the number is free, and the VM may listen again. To an UNLISTEN that crosses
//! it the sidecar still answers UNLISTENED.
//!
//! **Connections.** A `conn` is chosen by who makes the connection: odd by the VM (CONNECT), even by
//! the sidecar (ACCEPTED), each from 1 to 2^30 - 1. It is in use until both sides are done with it: the
//! sidecar by CLOSED, HANDED_OVER or CONNECT_FAILED, or when it has delivered what came before CLOSE;
//! the VM by CLOSE, which it sends exactly once for each connection that was reported to it by ACCEPTED
//! or CONNECTED, also after CLOSED, but not after HANDED_OVER. A packet about a connection that the
//! reader is done with is ignored: the two ends cross on the way.
//!
//! **Handshakes.** A connection that came in has one of 128 places until the VM says ESTABLISHED,
//! HAND_OVER or CLOSE. CLOSED does not free it: nobody comes in before the VM has dealt with those who
//! came before. Who takes long makes room when all places are taken and somebody waits.
//!
//! **Admission.** ADMIT says who may be a peer, from then on and in both directions: whom `base`
//! says (0 nobody, 1 the sidecar's own user and root, 2 anybody), processes of one of the `uid`s
//! (`uids` is their number), and of one of the `gid`s (the rest of the packet). Until then `base` is
//! 1. A peer that comes in and is refused is closed without a byte, and without a packet to the VM.
//!
//! **Addresses** are those of unix(7): a path, or NUL and an abstract name.
//!
//! **Channel.** OPEN_CHANNEL asks for a way by which sockets can be passed to the process `vm_pid`; without
//! it there is none. The sidecar listens for that process, under a name in `directory` if that is a
//! directory into which nobody else can put anything, and else (or if it is empty) under an abstract
//! name, and answers with CHANNEL. The VM connects to its address once, within 5 seconds, and says nothing.
//! CHANNEL_FAILED says that there is no channel, at once or when that time is over: connections are
//! relayed, and the VM may ask again. It asks again in no other case.
//!
//! **Handover.** To HAND_OVER the sidecar answers with HANDED_OVER, which comes after all DATA that it has
//! read, and before that it sends one byte through the channel, with the socket as SCM_RIGHTS of
//! unix(7): sockets come in the order of their HANDED_OVERs. The connection is the VM's then, and its
//! number means nothing to the sidecar. RELAYED says that the socket cannot be passed, and makes HAND_OVER
//! an ESTABLISHED: why, the sidecar has logged. The VM sends no DATA between HAND_OVER and the answer.
//!
//! **Flow control**, the same rule in both directions: *a sender has at most a window of bytes of
//! a connection sent and not acknowledged. The receiver acknowledges bytes when it has passed them
//! on, at the latest when a quarter of the window waits for its acknowledgement.* The sidecar
//! passes on to the socket, the VM to the distribution. The window is the one that HELLO names. Until
//! ESTABLISHED or RELAYED the sidecar keeps to one of 16 KiB, and the VM acknowledges nothing: that is all
//! that a peer can make the VM hold before it has shown that it knows the cookie.
//!
//! **Bytes** of DATA are those of the connection's stream, in order, cut anywhere. Nothing of this
//! protocol appears on the socket. CLOSE still delivers what was sent before it, for a bounded
//! time; CLOSED comes after the last byte the peer sent.

use crate::failure::Reason;
use crate::peer::{Credentials, Policy};

/// Version of this protocol. The VM refuses a sidecar that says another one.
pub const VERSION: u16 = 3;

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
    pub const OPEN_CHANNEL: u8 = 8;
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
    pub const RELAYED: u8 = 41;
    pub const CHANNEL: u8 = 42;
    pub const CHANNEL_FAILED: u8 = 43;
    pub const LISTENER_LOST: u8 = 44;
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
    /// The VM is done with the connection. If it has not ended, it ends when what was sent before is
    /// delivered.
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
    /// Make a way for sockets to the VM.
    OpenChannel {
        /// Process of the VM.
        vm_pid: u32,
        /// Where the channel may have its socket file; it may be empty.
        directory: Vec<u8>,
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
        /// [`WINDOW`].
        window: u32,
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
    Relayed {
        /// The number that CONNECT or ACCEPTED has given the connection.
        conn: ConnId,
    },
    /// The channel is open for the VM.
    Channel {
        /// unix(7) path, or NUL and abstract name.
        address: Vec<u8>,
    },
    /// There is no channel.
    ChannelFailed {
        /// One line for people.
        explanation: String,
    },
    /// A name that was ours is not ours any more.
    ListenerLost {
        /// The number that LISTEN has given the listener.
        listener: ListenerId,
        /// One line for people.
        explanation: String,
    },
    /// The socket has ended, before the VM has sent CLOSE.
    Closed {
        /// The number that CONNECT or ACCEPTED has given the connection.
        conn: ConnId,
        /// What the VM acts on.
        reason: Reason,
        /// One line for people.
        explanation: String,
    },
}
