//! The channel that passes connected sockets to the VM, as SCM_RIGHTS messages of unix(7).
//!
//! It exists only if the VM has asked for it. The VM learns the address of a listener through the port and
//! connects to it; any other process is turned away, as the kernel must identify the peer as the VM. The
//! listener is closed once the VM has connected, or when it did not do so in time. Sockets are passed on
//! Linux only.

use crate::address::Address;
use crate::directory;
use crate::log_limit::LogLimit;
use crate::os;
use crate::peer::Credentials;
use crate::token::Source;
use mio::net::{UnixListener, UnixStream};
use mio::{Interest, Registry};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Length of the listener's backlog. It is short, as the VM connects once and strangers do not stay.
const BACKLOG: u32 = 16;

/// Most strangers that are turned away in one turn, so that a flood of them does not hold up connections.
/// It exceeds the backlog, so that one turn finds the VM if it has connected.
const MAX_STRANGERS_PER_TURN: usize = 32;

/// How long the VM may take to connect. It connects as soon as it knows the address, and retries for a
/// second while strangers fill the backlog.
pub const DEADLINE: Duration = Duration::from_secs(5);

/// The sidecar's end of the channel.
pub struct Channel {
    registry: Registry,
    state: State,
    strangers: LogLimit,
    passed: u64,
}

enum State {
    /// There is no channel.
    Closed,
    /// The listener is open, and the VM has not connected yet.
    Offered(Offer),
    /// The VM has connected.
    Open(UnixStream),
}

struct Offer {
    listener: UnixListener,
    /// Dropped, and so removed, together with the listener.
    _file: Option<SocketFile>,
    vm_pid: u32,
    deadline: Instant,
    /// A process may be waiting to be accepted.
    acceptable: bool,
}

impl Channel {
    /// A closed channel. Its listener will be registered with `registry`.
    pub fn new(registry: Registry) -> Channel {
        Channel {
            registry,
            state: State::Closed,
            strangers: LogLimit::default(),
            passed: 0,
        }
    }

    /// True if there is no channel, so that the VM may ask for one.
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// Opens a listener for the VM, which is the process `vm_pid`, and returns the address to connect to.
    /// The socket file is created in `directory` if only we can create files there; otherwise the address
    /// is abstract. [`Source::Channel`] becomes ready when there is a process to
    /// [`accept`](Self::accept).
    ///
    /// # Errors
    /// If this system cannot pass sockets, or if the listener cannot be opened.
    pub fn offer(&mut self, vm_pid: u32, directory: &[u8], now: Instant) -> io::Result<Vec<u8>> {
        if !os::CAN_PASS_SOCKETS {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let (socket, address, file) = listen(Path::new(OsStr::from_bytes(directory)))?;
        let mut listener = UnixListener::from_std(StdUnixListener::from(socket));
        let token = Source::Channel.into();
        self.registry
            .register(&mut listener, token, Interest::READABLE)?;
        self.state = State::Offered(Offer {
            listener,
            _file: file,
            vm_pid,
            deadline: now + DEADLINE,
            acceptable: false,
        });
        Ok(address)
    }

    /// Records that the listener is ready.
    pub fn ready(&mut self) {
        if let State::Offered(offer) = &mut self.state {
            offer.acceptable = true;
        }
    }

    /// True if a process may be waiting to be accepted.
    pub fn may_accept(&self) -> bool {
        matches!(&self.state, State::Offered(offer) if offer.acceptable)
    }

    /// Accepts the VM, and turns away every other process.
    pub fn accept(&mut self, now: Instant) {
        for _ in 0..MAX_STRANGERS_PER_TURN {
            let State::Offered(offer) = &mut self.state else {
                return;
            };
            match offer.listener.accept() {
                Ok((stream, _)) => {
                    let peer = os::peer_credentials(&stream).unwrap_or(Credentials::UNKNOWN);
                    if offer.is_for(&peer) {
                        self.state = State::Open(stream);
                    } else if let Some(count) = self.strangers.count(peer.uid, now) {
                        log::warn!(
                            "turned away a process that is not the VM: uid {}, pid {} ({count} of \
                             this uid)",
                            peer.uid,
                            peer.pid
                        );
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => (),
                Err(_) => {
                    offer.acceptable = false;
                    return;
                }
            }
        }
    }

    /// The time at which [`expire`](Self::expire) is due.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Offered(offer) => Some(offer.deadline),
            _ => None,
        }
    }

    /// Closes the listener and returns true if the VM did not connect in time.
    pub fn expire(&mut self, now: Instant) -> bool {
        let is_late = self.deadline().is_some_and(|deadline| deadline <= now);
        if is_late {
            self.close();
        }
        is_late
    }

    /// Sends the VM a descriptor of `socket`.
    ///
    /// # Errors
    /// If the VM has not connected to the channel, or if the channel does not take the descriptor.
    pub fn pass(&mut self, socket: impl AsFd) -> io::Result<()> {
        // The VM connects before it asks for a socket, but its connection may not be accepted yet.
        self.accept(Instant::now());
        match &self.state {
            State::Open(channel) => os::send_descriptor(channel, socket)?,
            _ => return Err(io::Error::other("the VM has not connected to the channel")),
        }
        self.passed += 1;
        Ok(())
    }

    /// Number of sockets passed so far.
    pub fn passed(&self) -> u64 {
        self.passed
    }

    /// Closes the channel. The VM can still receive what was sent before.
    pub fn close(&mut self) {
        self.state = State::Closed;
    }
}

impl Offer {
    fn is_for(&self, peer: &Credentials) -> bool {
        peer.process() == Some(self.vm_pid) && peer.uid == os::own_uid()
    }
}

/// A socket file that is removed on drop.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            log::warn!("cannot remove {}: {error}", self.0.display());
        }
    }
}

/// Opens a listener for the VM, and returns it with its address.
fn listen(directory: &Path) -> io::Result<(OwnedFd, Vec<u8>, Option<SocketFile>)> {
    match listen_in(directory) {
        Ok((socket, file)) => {
            let address = file.0.as_os_str().as_bytes().to_vec();
            Ok((socket, address, Some(file)))
        }
        Err(reason) => {
            log::debug!("the channel has no socket in {directory:?}: {reason}");
            let (socket, address) = os::abstract_listener(BACKLOG)?;
            Ok((socket, address, None))
        }
    }
}

fn listen_in(directory: &Path) -> io::Result<(OwnedFd, SocketFile)> {
    if !directory.is_absolute() || !directory::is_private(directory)? {
        return Err(io::Error::other("other users can create files in it"));
    }
    let path = directory.join(format!(".uds_dist-{}.channel", std::process::id()));
    let address = os::socket_address(&Address::Path(path.clone()))?;
    // A sidecar that had our pid and was killed may have left a file behind, at which nothing answers.
    let left_behind = os::connect(&address);
    if left_behind.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
        fs::remove_file(&path)?;
    }
    let socket = os::listen(&address, BACKLOG, 0o600)?;
    Ok((socket, SocketFile(path)))
}
