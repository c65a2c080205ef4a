//! Finds out who listens at an address, by connecting to it.

use crate::address::Address;
use crate::os;
use crate::peer::Credentials;
use std::io;

/// What connecting to an address shows.
#[derive(Debug)]
pub enum Probe {
    /// There is nobody.
    Nobody,
    /// Somebody; who, where the system tells.
    Answers(Option<Credentials>),
    /// It is not for us to find out.
    Failed(io::Error),
}

/// Is somebody listening there? Only a refused connection says no: a full backlog is a sign of
/// life, and what we may not connect to is not ours to judge.
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
