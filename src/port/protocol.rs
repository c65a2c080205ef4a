//! The port protocol, which the VM and its sidecar speak.
//!
//! The protocol is specified on this page and nowhere else. `codec.rs` and, in the VM,
//! `uds_dist_protocol.erl` encode and decode it, and both are tested against `test/port_protocol.vectors`.
//!
//! The VM opens the sidecar as a port with `{packet, 4}`: every packet is a 32-bit length and a body, and the
//! first byte of the body is the packet's type. All integers are unsigned and big-endian. `text` is UTF-8.
//! `rest` and a `text` without a length extend to the end of the packet.
//!
//! ```text
//!           VM                                  sidecar
//!            | <------------------------------ HELLO |   the first packet, sent once
//!            | <-------------------------------- LOG |   at any time after HELLO
//!            | ADMIT ------------------------------> |   sets the policy that admits peers
//!            | LISTEN -----------------------------> |
//!            | <---------- LISTENING / LISTEN_FAILED |
//!            | <--------------------- ACCEPTED, DATA |   a peer connected, and sent its name
//!            | CONNECT ----------------------------> |   the VM connects to a peer
//!            | <--------- CONNECTED / CONNECT_FAILED |
//!            | <------------- DATA, ACK -----------> |   in both directions, while it is open
//!            | ESTABLISHED ------------------------> |   the handshake is complete: the sidecar relays
//!            | <----------------------------- CLOSED |   the socket is closed
//!            | CLOSE ------------------------------> |   always, once: the VM is done with it
//!            | UNLISTEN ---------------------------> |
//!            | <------------------------- UNLISTENED |
//!            | <---------------------- LISTENER_LOST |   or the name was lost
//!            | ASK_STATUS -------------------------> |
//!            | <----------------------------- STATUS |
//!
//! with the transport `direct`, in which the VM holds the sockets
//!
//!            | OPEN_CHANNEL -----------------------> |   once, before the first HAND_OVER
//!            | <----------- CHANNEL / CHANNEL_FAILED |
//!            | HAND_OVER --------------------------> |   instead of ESTABLISHED
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
//! |    9 | ASK_STATUS     | VM → sidecar |                                                         |
//! |   16 | DATA           | both ways    | conn:32 bytes:rest                                      |
//! |   17 | ACK            | both ways    | conn:32 count:32                                        |
//! |   32 | HELLO          | sidecar → VM | version:16 window:32 release:text                       |
//! |   33 | LISTENING      | sidecar → VM | listener:32                                             |
//! |   34 | LISTEN_FAILED  | sidecar → VM | listener:32 reason:8 explanation:text                   |
//! |   35 | UNLISTENED     | sidecar → VM | listener:32                                             |
//! |   36 | ACCEPTED       | sidecar → VM | conn:32 uid:32 gid:32 pid:32 address:rest               |
//! |   37 | CONNECTED      | sidecar → VM | conn:32 uid:32 gid:32 pid:32                            |
//! |   38 | CONNECT_FAILED | sidecar → VM | conn:32 reason:8 explanation:text                       |
//! |   39 | CLOSED         | sidecar → VM | conn:32 reason:8 explanation:text                       |
//! |   40 | HANDED_OVER    | sidecar → VM | conn:32                                                 |
//! |   41 | RELAYED        | sidecar → VM | conn:32                                                 |
//! |   42 | CHANNEL        | sidecar → VM | address:rest                                            |
//! |   43 | CHANNEL_FAILED | sidecar → VM | explanation:text                                        |
//! |   44 | LISTENER_LOST  | sidecar → VM | listener:32 explanation:text                            |
//! |   45 | LOG            | sidecar → VM | level:8 reason:8 uid:32 gid:32 pid:32                   |
//! |      |                |              | subject:8 length:16 name:length text:text               |
//! |   46 | STATUS         | sidecar → VM | descriptors:32 descriptor_limit:32 memory:64            |
//!
//! **Listeners.** The VM chooses `listener`, from 0 to 15. LISTENER_LOST reports that the socket file is gone
//! or was replaced: the number is free again, and the VM may listen again. If the VM's UNLISTEN crosses a
//! LISTENER_LOST, the sidecar still answers UNLISTENED.
//!
//! **Connections.** The side that opens a connection chooses its `conn`, from 1 to 2^30 - 1: the VM (CONNECT)
//! an odd number, the sidecar (ACCEPTED) an even one. A number is in use until both sides are done with it.
//! The sidecar is done when it sends CLOSED, HANDED_OVER or CONNECT_FAILED, or when it has delivered all DATA
//! that preceded CLOSE. The VM is done when it sends CLOSE. It does so exactly once for each connection
//! reported by ACCEPTED or CONNECTED, also after CLOSED, but not after HANDED_OVER. A side ignores packets
//! about a connection that it is done with, because they may have crossed its own last packet.
//!
//! **Handshakes.** The sidecar sends ACCEPTED once the first message of the peer's handshake is complete and
//! can be that of a node; DATA with this message follows at once. The VM never learns of a peer that sends
//! nothing, disconnects early, or sends anything else. Each incoming connection occupies one of 128 places
//! until the VM sends ESTABLISHED, HAND_OVER or CLOSE. CLOSED does not free the place, so that peers cannot
//! connect faster than the VM deals with them. When all places are taken and another peer is waiting,
//! a connection whose handshake takes too long is closed. Peers that connected before UNLISTENED or
//! LISTENER_LOST may be reported after it.
//!
//! **Admission.** ADMIT sets which peers are admitted from then on, in both directions: those that `base`
//! admits (0 nobody, 1 the sidecar's own user and root, 2 anybody), processes of one of the `uid`s
//! (`uids` is their number), and processes of one of the `gid`s (the rest of the packet). Before the first
//! ADMIT, `base` is 1 and both lists are empty. If an incoming peer is not admitted, its connection is closed
//! without sending a byte to the peer or a packet about it, other than LOG, to the VM.
//!
//! **Addresses** are those of unix(7): a path, or NUL and an abstract name. The address in ACCEPTED is the one
//! to which the peer's socket is bound; it is empty if the socket is not bound, which is the usual case.
//!
//! **Log.** After HELLO, each log record of the sidecar at an enabled level (UDS_DIST_LOG) is sent as a LOG:
//! one line of text without control characters, with its facts as separate fields for programs. `level` is
//! that of syslog(3): 3 error, 4 warning, 5 notice, 6 info, 7 debug. `reason` is the number of a [`Cause`],
//! or 0. `uid`, `gid` and `pid` are those of a peer; if the line is not about a peer, they are all ones, all
//! ones and 0. `subject` tells what `name` is: 0 nothing, and `name` is empty; 1 an address in printable
//! form; 2 a node. Log lines give way to every other packet: they wait until ready sockets have been read. If
//! too many are waiting, the newest are dropped, and one line reports how many.
//!
//! **Status.** The sidecar answers each ASK_STATUS with one STATUS. A field that the system does not report is
//! 0; `memory` is resident memory in bytes.
//!
//! **Channel.** OPEN_CHANNEL asks for a channel through which sockets can be passed to the process `vm_pid`;
//! the sidecar opens none unasked. The sidecar listens for that process, and answers with CHANNEL. The
//! address is in `directory` if nobody else can create files there; otherwise, or if `directory` is empty, it
//! is an abstract name. The VM connects to it once, within 5 seconds, and sends nothing. CHANNEL_FAILED
//! reports that there is no channel, at once or when the 5 seconds have passed: connections are relayed, and
//! the VM may ask again. It must not ask again in any other case.
//!
//! **Handover.** The sidecar answers HAND_OVER with HANDED_OVER, which follows all DATA that it has read.
//! Before that, it sends one byte through the channel, with the socket as SCM_RIGHTS of unix(7), so sockets
//! arrive in the order of their HANDED_OVERs. The connection belongs to the VM from then on, and the sidecar
//! forgets its number. RELAYED reports that the socket cannot be passed, for a reason that the sidecar has
//! logged, and that the sidecar treats the HAND_OVER as an ESTABLISHED. The VM sends no DATA between
//! HAND_OVER and its answer.
//!
//! **Flow control** follows the same rule in both directions: *a sender has at most a window of bytes of
//! a connection sent and not acknowledged. The receiver acknowledges bytes when it has passed them on, at the
//! latest when a quarter of the window waits for its acknowledgement.* The sidecar passes bytes on to the
//! socket, the VM to the distribution. HELLO gives the size of the window. Until ESTABLISHED or RELAYED, the
//! sidecar uses a window of 16 KiB, and the VM acknowledges nothing: a peer that has not proved that it knows
//! the cookie cannot make the VM hold more than that.
//!
//! **DATA** carries the bytes of the connection's stream, in order, in pieces of any size. Nothing of this
//! protocol appears on the socket. After CLOSE, the sidecar still delivers the DATA sent before it, for
//! a bounded time. CLOSED follows the last byte that the peer sent.

use crate::failure::Reason;
use crate::ids::{ConnId, ListenerId};
use crate::log_line::Line;
use crate::peer::{Credentials, Policy};

/// Version of this protocol. The VM refuses a sidecar that announces another one.
pub const VERSION: u16 = 5;

/// Window of an established connection in bytes: how much a sender may have unacknowledged. It holds two
/// batches of a bulk transfer, so that one is written while the next is encoded. It bounds the sidecar's
/// memory to one window per connection.
pub const WINDOW: u32 = 1 << 20;

/// Window of a connection in its handshake, in bytes. It is several times the longest handshake (a name
/// of 255 characters each way, challenge, digest), so that only garbage reaches it.
pub const HANDSHAKE_WINDOW: u32 = 16 << 10;

/// Longest body of a packet other than DATA, in bytes. An address has at most 108 bytes, a node name at most
/// 255 characters of 4 bytes, and lists of users and groups are short (five hundred ids fit). A longer body
/// means that the stream is out of step.
pub const MAX_CONTROL_BODY: usize = 2048;

/// Longest body of a DATA packet in bytes: a full window.
pub const MAX_DATA_BODY: usize = DATA_HEAD + WINDOW as usize;

/// Bytes of a DATA body before the payload: type and conn.
pub const DATA_HEAD: usize = 5;

/// Bytes of the length field before each body.
pub const PACKET_HEAD: usize = 4;

/// The types of the packets, which are the first byte of the body.
pub(super) mod kind {
    pub const LISTEN: u8 = 1;
    pub const UNLISTEN: u8 = 2;
    pub const CONNECT: u8 = 3;
    pub const ESTABLISHED: u8 = 4;
    pub const CLOSE: u8 = 5;
    pub const ADMIT: u8 = 6;
    pub const HAND_OVER: u8 = 7;
    pub const OPEN_CHANNEL: u8 = 8;
    pub const ASK_STATUS: u8 = 9;
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
    pub const LOG: u8 = 45;
    pub const STATUS: u8 = 46;
}

/// Type of DATA. It is public because code that streams the payload handles DATA without [`Command`] and
/// [`Report`].
pub const DATA: u8 = 16;

/// A packet from the VM, other than DATA, whose payload is streamed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Takes the name at `address` and accepts connections there.
    Listen {
        /// Number of the listener, which the VM chooses; unique while the listener is open.
        listener: ListenerId,
        /// Number of connections that may wait to be accepted, as in listen(2).
        backlog: u32,
        /// Mode of the socket file, as in chmod(2).
        mode: u16,
        /// Process id of the VM, which the sidecar notes in the lock file for people who look there. Other
        /// sidecars that find the name in use ask the kernel instead.
        vm_pid: u32,
        /// unix(7) path, or NUL and abstract name.
        address: Vec<u8>,
    },
    /// Gives up the name and stops listening.
    Unlisten {
        /// Number of the listener from LISTEN.
        listener: ListenerId,
    },
    /// Connects to the node that listens at `address`.
    Connect {
        /// Number of the connection, which the VM chooses: odd, and not in use.
        conn: ConnId,
        /// unix(7) path, or NUL and abstract name.
        address: Vec<u8>,
    },
    /// Reports that the handshake is complete. The sidecar keeps the socket, and opens the full window.
    Established {
        /// Number of the connection from CONNECT or ACCEPTED.
        conn: ConnId,
        /// Name of the peer node, for the sidecar's log and its table of connections.
        node: String,
    },
    /// Reports that the VM is done with the connection. If it is still open, the sidecar closes it when it
    /// has delivered the DATA sent before.
    Close {
        /// Number of the connection from CONNECT or ACCEPTED.
        conn: ConnId,
    },
    /// Sets the policy that decides which peers are admitted from now on.
    Admit(Policy),
    /// Reports that the handshake is complete, and asks for the socket.
    HandOver {
        /// Number of the connection from CONNECT or ACCEPTED.
        conn: ConnId,
        /// Name of the peer node, for the sidecar's log.
        node: String,
    },
    /// Opens a channel through which sockets are passed to the VM.
    OpenChannel {
        /// Process id of the VM, the only process that may connect to the channel.
        vm_pid: u32,
        /// Directory for the channel's socket file; empty if there is none.
        directory: Vec<u8>,
    },
    /// Asks for a STATUS.
    AskStatus,
    /// Acknowledges `count` bytes that the VM has passed on to the distribution.
    Ack {
        /// Number of the connection from CONNECT or ACCEPTED.
        conn: ConnId,
        /// Bytes passed on since the last ACK.
        count: u32,
    },
}

/// A packet to the VM, other than DATA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// Introduces the sidecar; its first packet.
    Hello {
        /// [`VERSION`].
        version: u16,
        /// [`WINDOW`].
        window: u32,
        /// Version of the sidecar program.
        release: String,
    },
    /// Reports that the sidecar owns the name and that peers can connect.
    Listening {
        /// Number of the listener from LISTEN.
        listener: ListenerId,
    },
    /// Reports that the sidecar could not take the name or listen there.
    ListenFailed {
        /// Number of the listener from LISTEN.
        listener: ListenerId,
        /// The cause, for the VM.
        reason: Reason,
        /// One line for people.
        explanation: String,
    },
    /// Reports that the name is given up: its socket and lock file are removed.
    Unlistened {
        /// Number of the listener from LISTEN.
        listener: ListenerId,
    },
    /// Reports that a peer has connected and sent its name, which follows as DATA.
    Accepted {
        /// Number of the connection, which the sidecar chooses: even, and not in use.
        conn: ConnId,
        /// Credentials of the peer.
        peer: Credentials,
        /// unix(7) path, or NUL and abstract name, of the peer's socket; empty if it is not bound.
        address: Vec<u8>,
    },
    /// Reports that a CONNECT has succeeded.
    Connected {
        /// Number of the connection from CONNECT.
        conn: ConnId,
        /// Credentials of the peer.
        peer: Credentials,
    },
    /// Reports that a CONNECT has failed.
    ConnectFailed {
        /// Number of the connection from CONNECT.
        conn: ConnId,
        /// The cause, for the VM.
        reason: Reason,
        /// One line for people.
        explanation: String,
    },
    /// Acknowledges `count` bytes that the sidecar has passed on to the socket.
    Ack {
        /// Number of the connection from CONNECT or ACCEPTED.
        conn: ConnId,
        /// Bytes passed on since the last ACK.
        count: u32,
    },
    /// Reports that the socket of the connection has been sent through the channel.
    HandedOver {
        /// Number of the connection from CONNECT or ACCEPTED.
        conn: ConnId,
    },
    /// Reports that the socket cannot be passed, and that the sidecar relays the connection.
    Relayed {
        /// Number of the connection from CONNECT or ACCEPTED.
        conn: ConnId,
    },
    /// Reports that the VM can connect to the channel.
    Channel {
        /// unix(7) path, or NUL and abstract name.
        address: Vec<u8>,
    },
    /// Reports that there is no channel.
    ChannelFailed {
        /// One line for people.
        explanation: String,
    },
    /// Reports that a listener has lost its name.
    ListenerLost {
        /// Number of the listener from LISTEN.
        listener: ListenerId,
        /// One line for people.
        explanation: String,
    },
    /// Reports that the connection has ended before the VM sent CLOSE.
    Closed {
        /// Number of the connection from CONNECT or ACCEPTED.
        conn: ConnId,
        /// The cause, for the VM.
        reason: Reason,
        /// One line for people.
        explanation: String,
    },
    /// Carries a line of the sidecar's log.
    Log(Line),
    /// Answers ASK_STATUS.
    Status(Status),
}

/// Resources that the sidecar uses. A value that the system does not report is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// Number of open file descriptors.
    pub descriptors: u32,
    /// Most file descriptors that it may have open (RLIMIT_NOFILE).
    pub descriptor_limit: u32,
    /// Resident memory in bytes.
    pub memory: u64,
}
