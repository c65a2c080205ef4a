//! The sidecar: one process per Erlang VM that owns the VM's Unix domain sockets. The command line, a
//! program of its own in `command_line/`, uses some of the rooms as well.
//!
//! A byte on its way from the VM to a peer passes these rooms from top to bottom, and from the
//! peer to the VM the other way:
//!
//! | room             | what it is                                                                    |
//! |------------------|-------------------------------------------------------------------------------|
//! | [`event_loop`]   | waits for readiness of the pipes, signals and sockets, and gives each its turn |
//! | [`wait`]         | whether to spin or to block while waiting                                     |
//! | [`port`]         | stdin and stdout: the protocol, its codec, commands in, reports out           |
//! | [`switchboard`]  | takes what the VM says to the room that it is for                             |
//! | [`door`]         | listeners, who owns a name, who may come in, the gate, how many may shake hands |
//! | [`channel`]      | the channel through which a connected socket goes to the VM                   |
//! | [`peers`]        | the connections: table, queues, flow control, splicing                        |
//!
//! and all of them stand on
//!
//! | leaf             | what it is                                                                    |
//! |------------------|-------------------------------------------------------------------------------|
//! | [`peer`]         | who a peer is, and who may be one                                             |
//! | [`address`]      | unix(7) addresses                                                             |
//! | [`directory`]    | who can put something into a directory                                        |
//! | [`failure`]      | why something failed: a reason for the VM, a line for people                  |
//! | [`log_limit`]    | how often what strangers do is worth a log line                               |
//! | [`token`]        | what readiness events come from                                               |
//! | [`os`]           | the system calls that std lacks, with one file per operating system           |
//!
//! Imports go one way: the loop knows the switchboard, which knows door, channel and peers; these know
//! the port's packets and queue, and everybody knows the leaves. What does no I/O is tested with random
//! events: the codec, the reader, the queue, the windows, the gate, the crowd of handshakes.
//!
//! A connection that is through its handshake leaves by way of [`channel`] if the VM wants that, and its
//! bytes come by here no more. Otherwise they do, and on Linux a large piece of DATA bypasses the
//! buffers: splice(2) moves it from pipe to socket or back.

pub mod address;
pub mod channel;
pub mod directory;
pub mod door;
pub mod event_loop;
pub mod failure;
pub mod log_limit;
pub mod os;
pub mod peer;
pub mod peers;
pub mod port;
pub mod switchboard;
pub mod token;
pub mod wait;
