//! The sidecar: one process per Erlang VM that owns the VM's Unix domain sockets. The command line, a
//! separate program in `command_line/`, shares some of these modules.
//!
//! A byte travelling from the VM to a peer passes these modules from top to bottom, and from a peer to
//! the VM from bottom to top:
//!
//! | module           | what it does                                                                  |
//! |------------------|-------------------------------------------------------------------------------|
//! | [`event_loop`]   | waits for readiness of the pipes, signals and sockets, and gives each its turn |
//! | [`wait`]         | decides whether to spin or to block while waiting                             |
//! | [`port`]         | stdin and stdout: the protocol, its codec, commands in, reports out           |
//! | [`switchboard`]  | dispatches the VM's commands to the modules below                             |
//! | [`door`]         | listeners, ownership of names, admission of peers, limits on handshakes       |
//! | [`channel`]      | passes connected sockets to the VM                                            |
//! | [`peers`]        | the connections: table, queues, flow control, splicing                        |
//!
//! All of them build on these leaves, which import nothing but other leaves:
//!
//! | leaf             | what it does                                                                  |
//! |------------------|-------------------------------------------------------------------------------|
//! | [`peer`]         | the identity of a peer, and the policy that admits it                         |
//! | [`process`]      | finds the process of a node, in proc(5)                                       |
//! | [`sockets`]      | sockets that listen, wherever their files are, as the system lists them       |
//! | [`address`]      | unix(7) addresses                                                             |
//! | [`directory`]    | checks who can create or replace files in a directory                         |
//! | [`failure`]      | why something failed: a reason for the VM, a line for people                  |
//! | [`log_line`]     | one line of the log, with its facts                                           |
//! | [`journal`]      | where lines go: to the VM, and to stderr while there is none                  |
//! | [`log_limit`]    | rate limits for log lines that strangers can trigger                          |
//! | [`ids`]          | the numbers of connections and listeners                                      |
//! | [`token`]        | maps mio tokens to the sources of readiness events                            |
//! | [`os`]           | the system calls that std lacks, with one file per operating system           |
//!
//! Imports go one way: the loop uses the switchboard, which uses door, channel and peers. The peers use the
//! port's packets and queue, and everything uses the leaves. The parts without I/O are tested with random
//! events: codec, reader, queue, windows, gate and the crowd of handshakes.
//!
//! Once the handshake is complete, the VM may ask for the socket. [`channel`] then passes it on, and the
//! connection's bytes no longer go through the sidecar. Otherwise they do, and on Linux large DATA
//! packets bypass the buffers: splice(2) moves them between pipe and socket.

pub mod address;
pub mod channel;
pub mod directory;
pub mod door;
pub mod event_loop;
pub mod failure;
pub mod ids;
pub mod journal;
pub mod log_limit;
pub mod log_line;
pub mod os;
pub mod peer;
pub mod peers;
pub mod port;
pub mod process;
pub mod sockets;
pub mod switchboard;
pub mod token;
pub mod wait;
