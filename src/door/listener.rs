//! One listening socket, and the name it stands under. Who may come in is not known here.

use super::ownership::{self, OwnedName};
use crate::address::Address;
use crate::failure::{Failure, Reason};
use crate::os;
use mio::net::{UnixListener, UnixStream};
use std::io;
use std::os::unix::net::UnixListener as StdUnixListener;

/// A socket that accepts peers. Dropped, it stops and its files are gone.
pub struct Listener {
    // Before the name: nobody is told that the name is free while we still accept.
    socket: UnixListener,
    _name: Option<OwnedName>,
    address: Address,
    /// A peer may be waiting.
    acceptable: bool,
}

impl Listener {
    /// Owns the name of `address` and listens there. `mode` is that of the socket file.
    pub fn open(
        address: Address,
        backlog: u32,
        mode: u16,
        vm_pid: u32,
    ) -> Result<Listener, Failure> {
        let socket_address = os::socket_address(&address).map_err(|error| {
            let explanation = format!("{address} cannot be a socket address: {error}");
            Failure::new(Reason::BadAddress, explanation)
        })?;
        let mut name = match address.path() {
            Some(path) => Some(OwnedName::claim(path, vm_pid)?),
            None => None, // the kernel owns abstract names
        };
        let socket = os::listen(&socket_address, backlog, mode)
            .map_err(|error| bind_failure(&error, &address))?;
        if let Some(name) = &mut name {
            name.bound()
                .map_err(|error| bind_failure(&error, &address))?;
        }
        if let Some(path) = address.path() {
            ownership::sweep(path);
        }
        Ok(Listener {
            socket: UnixListener::from_std(StdUnixListener::from(socket)),
            _name: name,
            address,
            acceptable: false,
        })
    }

    /// The socket, to register it with the loop.
    pub fn socket_mut(&mut self) -> &mut UnixListener {
        &mut self.socket
    }

    /// Where it listens.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// True if a peer may be waiting.
    pub fn is_acceptable(&self) -> bool {
        self.acceptable
    }

    /// A peer may be waiting: the loop says so, or only accepting can tell.
    pub fn ready(&mut self) {
        self.acceptable = true;
    }

    /// Takes a peer that waits; `WouldBlock` if none does.
    pub fn accept(&mut self) -> io::Result<UnixStream> {
        loop {
            match self.socket.accept() {
                Ok((stream, _)) => return Ok(stream),
                // The peer went away again before its turn came.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => (),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => {
                    self.acceptable = false;
                    return Err(error);
                }
            }
        }
    }
}

fn bind_failure(error: &io::Error, address: &Address) -> Failure {
    let (reason, what) = match error.kind() {
        io::ErrorKind::AddrInUse if address.path().is_none() => (
            Reason::DuplicateName,
            "the name is in use by a live process".into(),
        ),
        // Somebody who does not know the lock was faster; the next try sees who.
        io::ErrorKind::AddrInUse => (Reason::NameBusy, "somebody else just took the name".into()),
        io::ErrorKind::PermissionDenied => (Reason::PermissionDenied, error.to_string()),
        _ => (Reason::SystemError, error.to_string()),
    };
    Failure::new(reason, format!("cannot listen at {address}: {what}"))
}
