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
//!            | <-------------------------------- LOG |   from then on, at any time
//!            | ADMIT ------------------------------> |   who may be a peer
//!            | LISTEN -----------------------------> |
//!            | <---------- LISTENING / LISTEN_FAILED |
//!            | <--------------------- ACCEPTED, DATA |   a peer came in, and has said its name
//!            | CONNECT ----------------------------> |
//!            | <--------- CONNECTED / CONNECT_FAILED |   or we go out to one
//!            | <------------- DATA, ACK -----------> |   both ways, while it is open
//!            | ESTABLISHED ------------------------> |   the handshake is through: the sidecar relays
//!            | <----------------------------- CLOSED |   the socket has ended
//!            | CLOSE ------------------------------> |   always, once: the VM is done with it
//!            | UNLISTEN ---------------------------> |
//!            | <------------------------- UNLISTENED |
//!            | <---------------------- LISTENER_LOST |   or: the name was taken away
//!            | ASK_STATUS -------------------------> |
//!            | <----------------------------- STATUS |
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
//! |    9 | ASK_STATUS     | VM → sidecar |                                                         |
//! |   16 | DATA           | both ways    | conn:32 bytes:rest                                      |
//! |   17 | ACK            | both ways    | conn:32 count:32                                        |
//! |   32 | HELLO          | sidecar → VM | version:16 window:32 release:text                       |
//! |   33 | LISTENING      | sidecar → VM | listener:32                                             |
//! |   34 | LISTEN_FAILED  | sidecar → VM | listener:32 reason:8 explanation:text                   |
//! |   35 | UNLISTENED     | sidecar → VM | listener:32                                             |
//! |   36 | ACCEPTED       | sidecar → VM | conn:32 listener:32 uid:32 gid:32 pid:32 address:rest   |
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
//! **Handshakes.** ACCEPTED comes when the first message of the peer's handshake is complete and can be that
//! of a node, and DATA with it follows at once. Of who says nothing, goes again or says something else
//! the VM never hears. A connection that came in has one of 128 places until the VM says ESTABLISHED,
//! HAND_OVER or CLOSE. CLOSED does not free it: nobody comes in before the VM has dealt with those who
//! came before. Who takes long makes room when all places are taken and somebody waits. A peer that came
//! in before UNLISTENED or LISTENER_LOST may be reported after it.
//!
//! **Admission.** ADMIT says who may be a peer, from then on and in both directions: whom `base`
//! says (0 nobody, 1 the sidecar's own user and root, 2 anybody), processes of one of the `uid`s
//! (`uids` is their number), and of one of the `gid`s (the rest of the packet). Until then `base` is
//! 1. A peer that comes in and is refused is closed without a byte, and without a packet to the VM.
//!
//! **Addresses** are those of unix(7): a path, or NUL and an abstract name. That of ACCEPTED is where the
//! peer's socket is bound; it is empty if it is not, as those of most nodes that call.
//!
//! **Log.** From HELLO on, LOG carries each record of the sidecar that its level lets through (UDS_DIST_LOG): one
//! line of text without control characters, and the facts in it for those who do not read text. `level` is that
//! of syslog(3): 3 error, 4 warning, 5 notice, 6 info, 7 debug. `reason` is the number of one of the words of
//! [`Cause`], or 0. `uid`, `gid` and `pid` are those of a peer, or all ones and 0 if the line is not about one.
//! `subject` says what `name` is: 0 nothing, and it is empty; 1 an address, as people write it; 2 a node. Lines
//! give way to every other packet: they wait until sockets could be read, and if too many wait, the latest
//! are dropped, and one line says how many.
//!
//! **Status.** To each ASK_STATUS there is one STATUS. A field is 0 where the system does not tell; `memory` is
//! resident, in bytes.
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
pub const VERSION: u16 = 4;

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

/// Longest text of a LOG packet, and longest name in it: a node's, of 255 characters of 4 bytes. Both of them
/// fit into [`MAX_CONTROL_BODY`].
pub const MAX_LINE: usize = 1000;
/// See [`MAX_LINE`].
pub const MAX_SUBJECT: usize = 1020;

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
    /// How is the sidecar?
    AskStatus,
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
        /// Version of the program.
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
    /// A peer has connected and said its name, which follows as DATA.
    Accepted {
        /// A number that the sidecar chooses: even, and not in use.
        conn: ConnId,
        /// Where it came in.
        listener: ListenerId,
        /// Who it is.
        peer: Credentials,
        /// unix(7) path, or NUL and abstract name; empty if its socket is not bound.
        address: Vec<u8>,
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
    /// A record of the log.
    Log(Line),
    /// How the sidecar is.
    Status(Status),
}

/// A line of the log, with its facts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// How important it is.
    pub level: Level,
    /// What has happened, if that has a word.
    pub cause: Option<Cause>,
    /// The peer that it is about, or [`Credentials::UNKNOWN`].
    pub peer: Credentials,
    /// What else it is about.
    pub subject: Subject,
    /// For people.
    pub text: String,
}

impl Line {
    /// A line without facts.
    pub fn new(level: Level, text: String) -> Line {
        Line {
            level,
            cause: None,
            peer: Credentials::UNKNOWN,
            subject: Subject::Nothing,
            text,
        }
    }
}

/// What a line is about, besides a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// Nothing that has a name.
    Nothing,
    /// An address, as people write it.
    Address(String),
    /// The name of a node.
    Node(String),
}

/// Levels of syslog(3), which are those of the VM's logger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Level {
    /// Something does not work.
    Error = 3,
    /// Something may be wrong.
    Warning = 4,
    /// Nothing is wrong, but operators want to know.
    Notice = 5,
    /// For those who ask.
    Info = 6,
    /// For those who work on the sidecar.
    Debug = 7,
}

impl Level {
    /// Every level, in the order of its number.
    pub const ALL: [Level; 5] = [
        Level::Error,
        Level::Warning,
        Level::Notice,
        Level::Info,
        Level::Debug,
    ];
}

/// What a line of the log says has happened, in a word for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Cause {
    /// A peer is not one of those that ADMIT allows.
    Refused = 1,
    /// A peer has said what cannot be the name of a node.
    ImplausibleName = 2,
    /// Too many handshakes of a peer's user have failed.
    HandshakesFailed = 3,
    /// A peer could not be accepted, for want of descriptors or because the system failed.
    CannotAccept = 4,
    /// Peers can be accepted again.
    AcceptsAgain = 5,
    /// The socket of a node that was killed has been replaced or removed.
    TookOver = 6,
    /// A file of ours was removed or replaced by somebody else.
    FileTaken = 7,
    /// A socket could not be handed over to the VM.
    NotHandedOver = 8,
    /// A connection was closed before its peer had read everything.
    Undelivered = 9,
    /// A signal has come.
    Signal = 10,
    /// Lines of the log were lost.
    LinesLost = 11,
}

impl Cause {
    /// Every cause, in the order of its number.
    pub const ALL: [Cause; 11] = [
        Cause::Refused,
        Cause::ImplausibleName,
        Cause::HandshakesFailed,
        Cause::CannotAccept,
        Cause::AcceptsAgain,
        Cause::TookOver,
        Cause::FileTaken,
        Cause::NotHandedOver,
        Cause::Undelivered,
        Cause::Signal,
        Cause::LinesLost,
    ];

    /// The word, which the VM's log has as an atom.
    pub fn word(self) -> &'static str {
        match self {
            Cause::Refused => "refused",
            Cause::ImplausibleName => "implausible_name",
            Cause::HandshakesFailed => "handshakes_failed",
            Cause::CannotAccept => "cannot_accept",
            Cause::AcceptsAgain => "accepts_again",
            Cause::TookOver => "took_over",
            Cause::FileTaken => "file_taken",
            Cause::NotHandedOver => "not_handed_over",
            Cause::Undelivered => "undelivered",
            Cause::Signal => "signal",
            Cause::LinesLost => "lines_lost",
        }
    }

    /// The cause of this word.
    pub fn of_word(word: &str) -> Option<Cause> {
        Cause::ALL.into_iter().find(|cause| cause.word() == word)
    }
}

/// How the sidecar is; 0 where the system does not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// Open descriptors.
    pub descriptors: u32,
    /// How many it may have.
    pub descriptor_limit: u32,
    /// Resident memory in bytes.
    pub memory: u64,
}
