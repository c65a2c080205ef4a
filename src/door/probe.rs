//! Finds out which process listens at an address, by connecting to it.

use crate::address::Address;
use crate::os;
use crate::peer::Credentials;
use std::io;

/// The result of probing an address.
#[derive(Debug)]
pub enum Probe {
    /// No process listens there.
    Nobody,
    /// A process listens there. Its identity is included if the system reports it.
    Answers(Option<Credentials>),
    /// The probe failed, so a process may or may not be listening.
    Failed(io::Error),
}

/// Probes whether a process listens at `address`. Only a refused connection or a missing file proves that
/// none does: a full backlog is a sign of life, and a socket that we may not connect to may well be alive.
pub fn probe(address: &Address) -> Probe {
    let connected = os::socket_address(address).and_then(|address| os::connect(&address));
    match connected {
        Ok(socket) => Probe::Answers(os::peer_credentials(&socket).ok()),
        Err(error) => match error.kind() {
            io::ErrorKind::WouldBlock => Probe::Answers(None),
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Probe::Nobody,
            _ => Probe::Failed(error),
        },
    }
}
