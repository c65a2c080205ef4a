//! The sidecar: one process per Erlang VM that owns the VM's Unix domain sockets. The command line, a
//! program of its own in `command_line/`, uses the rooms at the bottom of this table as well.
//!
//! A byte on its way from the VM to a peer passes these rooms from top to bottom, and from the
//! peer to the VM the other way:
//!
//! | module              | what it is                                                          |
//! |---------------------|---------------------------------------------------------------------|
//! | [`protocol`]        | the packets that VM and sidecar exchange: tables, limits, codec     |
//! | [`event_loop`]      | waits for readiness of stdin, stdout, signals and sockets           |
//! | [`alertness`]       | how long to stay awake while waiting                                |
//! | [`vm_port`]         | stdin and stdout, the two pipes of the VM's port                    |
//! | [`command_reader`]  | bytes of stdin → commands of the VM                                 |
//! | [`report_queue`]    | reports to the VM → bytes for stdout                                |
//! | [`switchboard`]     | which connections and listeners there are, and whose turn it is     |
//! | [`connection`]      | one socket to a peer: its queue and its windows                     |
//! | [`window`]          | flow control: what may be on its way, and what to acknowledge       |
//! | [`handover`]        | the channel through which a connected socket goes to the VM         |
//! | [`listener`]        | one listening socket                                                |
//! | [`ownership`]       | who owns a socket path: lock file, stale sockets                    |
//! | [`probe`]           | who listens at an address                                           |
//! | [`admission`]       | whom we talk to: users and groups of peers                          |
//! | [`address`]         | unix(7) addresses                                                   |
//! | [`os`]              | the system calls that differ between operating systems              |
//!
//! The codec, the reader, the queue and the windows do no I/O. A connection that is through its
//! handshake leaves by way of [`handover`] where that can be, and its bytes come by here no more.
//! Where it cannot, they do, and on Linux a long piece of DATA skips the rooms between port and
//! connection: splice(2) moves it from pipe to socket or back.

pub mod address;
pub mod admission;
pub mod alertness;
pub mod command_reader;
pub mod connection;
pub mod event_loop;
pub mod handover;
pub mod listener;
pub mod os;
pub mod ownership;
pub mod probe;
pub mod protocol;
pub mod report_queue;
pub mod switchboard;
pub mod vm_port;
pub mod window;
