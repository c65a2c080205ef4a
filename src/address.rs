//! Addresses of Unix domain sockets, as unix(7) has them: a path, or a name in Linux' abstract
//! namespace.

use crate::protocol::Reason;
use nix::sys::socket::UnixAddr;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Where a node listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A socket file.
    Path(PathBuf),
    /// An abstract name, without its leading NUL.
    Abstract(Vec<u8>),
}

impl Address {
    /// Reads the protocol's form: a leading NUL selects the abstract namespace.
    pub fn from_bytes(bytes: &[u8]) -> Address {
        match bytes {
            [0, name @ ..] => Address::Abstract(name.to_vec()),
            path => Address::Path(PathBuf::from(OsStr::from_bytes(path))),
        }
    }

    /// The socket's path, if it has one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Address::Path(path) => Some(path),
            Address::Abstract(_) => None,
        }
    }

    /// The address as the kernel takes it. Fails if it is too long (the limit is the kernel's:
    /// 107 bytes on Linux, 103 on BSD and macOS), holds a NUL where none can be, or is of a kind
    /// that this operating system does not have.
    pub fn to_socket_address(&self) -> Result<UnixAddr, Failure> {
        let address = match self {
            Address::Path(path) => UnixAddr::new(path),
            #[cfg(any(target_os = "linux", target_os = "android"))]
            Address::Abstract(name) => UnixAddr::new_abstract(name),
            #[cfg(not(any(target_os = "linux", target_os = "android")))]
            Address::Abstract(_) => Err(nix::errno::Errno::ENOTSUP),
        };
        address.map_err(|error| Failure {
            reason: Reason::BadAddress,
            explanation: format!("{self} cannot be a socket address: {}", error.desc()),
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Path(path) => write!(f, "{}", path.display()),
            Address::Abstract(name) => write!(f, "@{}", name.escape_ascii()),
        }
    }
}

/// Why an address could not be used: for the program, and one line for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What the VM acts on.
    pub reason: Reason,
    /// What happened, where, and what to do.
    pub explanation: String,
}
