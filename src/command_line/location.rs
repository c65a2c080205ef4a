//! Where the sockets of nodes are. This must agree with the carrier (`uds_dist_address:of_node/2`).

use crate::failure::{Failure, Kind};
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use uds_dist::address::Address;

/// A `socket_dir`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Directory {
    /// A directory of socket files, `<name>.sock`.
    Path(PathBuf),
    /// A namespace of abstract names, `<namespace>/<name>`.
    Namespace(Vec<u8>),
}

impl Directory {
    /// Parses a `socket_dir`. A leading `@` selects the abstract namespace.
    pub fn new(value: &OsStr) -> Directory {
        match value.as_bytes() {
            [b'@', namespace @ ..] => Directory::Namespace(namespace.to_vec()),
            _ => Directory::Path(PathBuf::from(value)),
        }
    }

    /// The address of the node of this name.
    pub fn address(&self, name: &[u8]) -> Address {
        match self {
            Directory::Path(path) => {
                let file = [name, b".sock"].concat();
                Address::Path(path.join(OsStr::from_bytes(&file)))
            }
            Directory::Namespace(namespace) => {
                Address::Abstract([namespace, &b"/"[..], name].concat())
            }
        }
    }
}

/// A relative path is made absolute: users may not know which directory they are in.
impl fmt::Display for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Directory::Path(path) => {
                let absolute = std::path::absolute(path).unwrap_or_else(|_| path.clone());
                let plain: PathBuf = absolute.components().collect(); // no slash at the end
                write!(f, "{}", plain.display())
            }
            Directory::Namespace(namespace) => write!(f, "@{}", namespace.escape_ascii()),
        }
    }
}

/// The place where one node listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// In this directory, under its name.
    In(Directory),
    /// At this address, whatever its name is.
    At(Address),
}

impl Location {
    /// Parses a path, or an `@` followed by an abstract name.
    pub fn socket(value: &OsStr) -> Location {
        Location::At(match value.as_bytes() {
            [b'@', name @ ..] => Address::Abstract(name.to_vec()),
            _ => Address::Path(Path::new(value).to_owned()),
        })
    }

    /// The address of `node`. It does not matter which host part the name has, if it has one.
    ///
    /// # Errors
    /// If `node` cannot be the name of a node.
    pub fn address(&self, node: &str) -> Result<Address, Failure> {
        let (name, host) = node
            .split_once('@')
            .map_or((node, None), |(name, host)| (name, Some(host)));
        let has_wrong_host = host.is_some_and(|host| host.is_empty() || host.contains('@'));
        if name.is_empty() || name.contains(['/', '\0']) || has_wrong_host {
            return Err(Failure::new(
                Kind::Usage,
                format!("{node:?} is not a node name; write it like myapp or myapp@host"),
            ));
        }
        Ok(match self {
            Location::In(directory) => directory.address(name.as_bytes()),
            Location::At(address) => address.clone(),
        })
    }
}

/// What is wrong with a directory that looks right on a screen, but is not what anybody meant. The carrier
/// refuses the same (`uds_dist_socket_dir:check/3`).
pub fn blemish(text: &[u8]) -> Option<&'static str> {
    match text {
        [.., b'\r'] => Some(
            "ends in a carriage return; remove it: the file that sets it may have Windows line ends",
        ),
        _ if text.iter().any(u8::is_ascii_control) => {
            Some("contains a control character; remove it")
        }
        [b' ', ..] | [.., b' '] => Some("begins or ends with a blank; remove it"),
        _ => None,
    }
}
