//! One listening socket, and the name that it owns. Which peers are admitted is not known here.

use super::ownership::{self, OwnedName};
use crate::address::Address;
use crate::failure::{Failure, Reason};
use crate::os;
use mio::net::{UnixListener, UnixStream};
use std::io;
use std::os::unix::net::UnixListener as StdUnixListener;

/// A socket that accepts peers. Dropping it closes the socket and removes its files.
pub struct Listener {
    // Declared, and so dropped, before the name: the name must not be free while we still accept.
    socket: UnixListener,
    name: Option<OwnedName>,
    address: Address,
    /// A peer may be waiting to be accepted.
    acceptable: bool,
}

impl Listener {
    /// Claims the name at `address` and listens there. `mode` is the mode of the socket file.
    ///
    /// # Errors
    /// If the address is invalid, the name is not available, or the socket cannot be opened.
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
            name,
            address,
            acceptable: false,
        })
    }

    /// The socket, to register it with the loop.
    pub fn socket_mut(&mut self) -> &mut UnixListener {
        &mut self.socket
    }

    /// The address at which it listens.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// True if the listener has a socket file, which others may remove or replace.
    pub fn has_file(&self) -> bool {
        self.name.is_some()
    }

    /// Checks whether the socket file was removed or replaced, and if so, explains what happened.
    pub fn is_lost(&mut self) -> Option<String> {
        self.name.as_mut()?.is_lost()
    }

    /// True if a peer may be waiting to be accepted.
    pub fn is_acceptable(&self) -> bool {
        self.acceptable
    }

    /// Records that a peer may be waiting, because of an event or because only accept(2) can tell.
    pub fn ready(&mut self) {
        self.acceptable = true;
    }

    /// Takes a peer that waits, and where its socket is bound; `WouldBlock` if none does.
    pub fn accept(&mut self) -> io::Result<(UnixStream, Vec<u8>)> {
        loop {
            match self.socket.accept() {
                Ok((stream, address)) => return Ok((stream, os::address_bytes(&address))),
                // The peer closed its connection before it was accepted.
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

/// The VM puts "cannot listen" before the explanation.
fn bind_failure(error: &io::Error, address: &Address) -> Failure {
    let (reason, what) = match error.kind() {
        io::ErrorKind::AddrInUse if address.path().is_none() => (
            Reason::DuplicateName,
            format!("the name {address} is in use by a live process"),
        ),
        // A process that does not take the lock was faster; the next attempt finds out which.
        io::ErrorKind::AddrInUse => (
            Reason::NameBusy,
            format!("another process has just taken the name {address}"),
        ),
        kind => (
            match kind {
                io::ErrorKind::PermissionDenied => Reason::PermissionDenied,
                _ => Reason::SystemError,
            },
            format!("listening at {address} failed: {error}"),
        ),
    };
    Failure::new(reason, what)
}
