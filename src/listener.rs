//! One listening socket, and the name it stands under.

use crate::address::{Address, Failure};
use crate::os;
use crate::ownership::{self, OwnedName};
use crate::protocol::Reason;
use mio::net::{UnixListener, UnixStream};
use nix::errno::Errno;
use nix::sys::socket::{Backlog, UnixAddr, bind, listen};
use nix::sys::stat::{Mode, umask};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// A socket that accepts peers. Dropped, it stops and its files are gone.
pub struct Listener {
    // Before the name: nobody is told that the name is free while we still accept.
    socket: UnixListener,
    _name: Option<OwnedName>,
    /// Where it listens.
    pub address: Address,
    /// A peer may be waiting.
    pub acceptable: bool,
}

impl Listener {
    /// Owns the name of `address` and listens there. `mode` is that of the socket file.
    pub fn open(
        address: Address,
        backlog: u32,
        mode: u16,
        vm_pid: u32,
    ) -> Result<Listener, Failure> {
        let socket_address = address.to_socket_address()?;
        let mut name = match address.path() {
            Some(path) => Some(OwnedName::claim(path, vm_pid)?),
            None => None, // the kernel owns abstract names
        };
        let socket = bind_and_listen(&socket_address, backlog, mode)
            .map_err(|errno| bind_failure(errno, &address))?;
        if let Some(name) = &mut name {
            name.bound().map_err(|error| {
                bind_failure(Errno::try_from(error).unwrap_or(Errno::EIO), &address)
            })?;
        }
        if let Some(path) = address.path() {
            ownership::sweep(path);
        }
        Ok(Listener {
            socket: UnixListener::from_std(socket.into()),
            _name: name,
            address,
            acceptable: false,
        })
    }

    /// The socket, to register it with the loop.
    pub fn socket_mut(&mut self) -> &mut UnixListener {
        &mut self.socket
    }

    /// Takes a peer that waits; `WouldBlock` if none does.
    pub fn accept(&self) -> io::Result<UnixStream> {
        loop {
            match self.socket.accept() {
                Ok((stream, _)) => return Ok(stream),
                // The peer went away again before its turn came.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => (),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => return Err(error),
            }
        }
    }
}

fn bind_and_listen(address: &UnixAddr, backlog: u32, mode: u16) -> Result<OwnedFd, Errno> {
    // The kernel caps it at net.core.somaxconn; nix's Backlog does not take more than SOMAXCONN.
    let backlog = i32::try_from(backlog)
        .ok()
        .and_then(|backlog| Backlog::new(backlog).ok())
        .unwrap_or(Backlog::MAXCONN);
    let socket = os::unix_socket()?;
    // The file is created with its final mode: it is never open to more, not even for a moment.
    let before = umask(Mode::from_bits_truncate(!libc_mode(mode)));
    let bound = bind(socket.as_raw_fd(), address);
    umask(before);
    bound?;
    listen(&socket, backlog)?;
    Ok(socket)
}

fn libc_mode(mode: u16) -> nix::libc::mode_t {
    nix::libc::mode_t::from(mode)
}

fn bind_failure(errno: Errno, address: &Address) -> Failure {
    let (reason, what) = match errno {
        Errno::EADDRINUSE if address.path().is_none() => (
            Reason::DuplicateName,
            "the name is in use by a live process".into(),
        ),
        // Somebody who does not know the lock was faster; the next try sees who.
        Errno::EADDRINUSE => (Reason::NameBusy, "somebody else just took the name".into()),
        Errno::EACCES | Errno::EPERM => (Reason::PermissionDenied, errno.desc().to_string()),
        errno => (Reason::SystemError, errno.desc().to_string()),
    };
    Failure {
        reason,
        explanation: format!("cannot listen at {address}: {what}"),
    }
}
