//! Addresses of Unix domain sockets as defined by unix(7): a path, or a name in Linux's abstract
//! namespace. Whether the system at hand supports an address is decided in [`os`](crate::os).

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The address of a listening socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A socket file.
    Path(PathBuf),
    /// A name in the abstract namespace, without its leading NUL.
    Abstract(Vec<u8>),
}

impl Address {
    /// Parses the form used by the port protocol, where a leading NUL selects the abstract namespace.
    pub fn from_bytes(bytes: &[u8]) -> Address {
        match bytes {
            [0, name @ ..] => Address::Abstract(name.to_vec()),
            path => Address::Path(PathBuf::from(OsStr::from_bytes(path))),
        }
    }

    /// The path of the socket file; `None` for an abstract name.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Address::Path(path) => Some(path),
            Address::Abstract(_) => None,
        }
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
