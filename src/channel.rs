//! The channel through which connected sockets go to the VM: SCM_RIGHTS of unix(7).
//!
//! It exists only where the VM has asked for it. The VM connects to a listener whose address the port has
//! told it, and nobody else comes in: the peer has to be the VM's own process. The listener goes when
//! the VM is there, or when it has not come in time. Outside Linux no socket is handed over.

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

/// The VM connects once, and any other process is turned away at once.
const BACKLOG: u32 = 16;

/// Strangers who are turned away in one turn, so that a flood of them does not hold up connections. More
/// than the backlog: if the VM has connected, it is found in one turn.
const MAX_STRANGERS_PER_TURN: usize = 32;

/// How long the VM may take to connect. It does so as soon as it knows the address, and tries again for
/// a second while strangers fill the backlog.
pub const DEADLINE: Duration = Duration::from_secs(5);

/// The sidecar's end of the channel.
pub struct Channel {
    registry: Registry,
    state: State,
    strangers: LogLimit,
    passed: u64,
}

/// How far the channel has come.
enum State {
    /// There is none.
    Closed,
    /// The VM may come in.
    Offered(Offer),
    /// The VM has come in.
    Open(UnixStream),
}

struct Offer {
    listener: UnixListener,
    /// Removed with the listener.
    _file: Option<SocketFile>,
    vm_pid: u32,
    deadline: Instant,
    /// Somebody may be waiting.
    acceptable: bool,
}

impl Channel {
    /// No socket can be passed. The listener will be registered with `registry`.
    pub fn new(registry: Registry) -> Channel {
        Channel {
            registry,
            state: State::Closed,
            strangers: LogLimit::default(),
            passed: 0,
        }
    }

    /// True if the VM may ask for a channel: there is none.
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// Opens a listener for the VM with this process number, and says where it has to connect: in
    /// `directory` if only we can put something there. [`Source::Channel`] becomes ready when somebody
    /// is there to [`accept`](Self::accept).
    ///
    /// # Errors
    /// When the system cannot pass sockets, or has nothing to listen with.
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

    /// Readiness news of the listener.
    pub fn ready(&mut self) {
        if let State::Offered(offer) = &mut self.state {
            offer.acceptable = true;
        }
    }

    /// True if somebody may be waiting.
    pub fn may_accept(&self) -> bool {
        matches!(&self.state, State::Offered(offer) if offer.acceptable)
    }

    /// Lets the VM in, and nobody else.
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

    /// When [`expire`](Self::expire) is due.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Offered(offer) => Some(offer.deadline),
            _ => None,
        }
    }

    /// Closes the listener if the VM has not come in time, and says so.
    pub fn expire(&mut self, now: Instant) -> bool {
        let is_late = self.deadline().is_some_and(|deadline| deadline <= now);
        if is_late {
            self.close();
        }
        is_late
    }

    /// Sends the VM a socket.
    pub fn pass(&mut self, socket: impl AsFd) -> io::Result<()> {
        // It has connected before it asked for this.
        self.accept(Instant::now());
        match &self.state {
            State::Open(channel) => os::send_descriptor(channel, socket)?,
            _ => return Err(io::Error::other("the VM has not connected to the channel")),
        }
        self.passed += 1;
        Ok(())
    }

    /// Sockets that were passed.
    pub fn passed(&self) -> u64 {
        self.passed
    }

    /// Ends the channel. What lies in it is the VM's to take.
    pub fn close(&mut self) {
        self.state = State::Closed;
    }
}

impl Offer {
    fn is_for(&self, peer: &Credentials) -> bool {
        peer.process() == Some(self.vm_pid) && peer.uid == os::own_uid()
    }
}

/// A socket file, which is removed when this is dropped.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            log::warn!("cannot remove {}: {error}", self.0.display());
        }
    }
}

/// A listener for the VM, and its address.
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
        return Err(io::Error::other("others can put something there"));
    }
    let path = directory.join(format!(".uds_dist-{}.channel", std::process::id()));
    let address = os::socket_address(&Address::Path(path.clone()))?;
    // Of a sidecar that was killed and had our number: nobody answers there.
    let left_behind = os::connect(&address);
    if left_behind.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
        fs::remove_file(&path)?;
    }
    let socket = os::listen(&address, BACKLOG, 0o600)?;
    Ok((socket, SocketFile(path)))
}
