//! Addresses of Unix domain sockets, as unix(7) has them: a path, or a name in Linux' abstract
//! namespace. A leaf: whether a system can use an address is for `os` to say.

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
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Path(path) => write!(f, "{}", path.display()),
            Address::Abstract(name) => write!(f, "@{}", name.escape_ascii()),
        }
    }
}
