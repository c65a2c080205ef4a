//! Where sockets are: the same places in which the carrier puts them (`uds_dist_config:address/2`).

use crate::failure::{Failure, Kind};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use uds_dist::address::Address;

/// A `socket_dir`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Directory {
    /// Of files, `<name>.sock`.
    Path(PathBuf),
    /// Of abstract names, `<namespace>/<name>`.
    Namespace(Vec<u8>),
}

impl Directory {
    /// A leading `@` selects the abstract namespace.
    pub fn new(value: &OsStr) -> Directory {
        match value.as_bytes() {
            [b'@', namespace @ ..] => Directory::Namespace(namespace.to_vec()),
            _ => Directory::Path(PathBuf::from(value)),
        }
    }

    /// Where the node of this name listens.
    pub fn address(&self, name: &str) -> Address {
        match self {
            Directory::Path(path) => Address::Path(path.join(format!("{name}.sock"))),
            Directory::Namespace(namespace) => {
                Address::Abstract([namespace, &b"/"[..], name.as_bytes()].concat())
            }
        }
    }
}

/// Where one node listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// At the place that its name gives it.
    In(Directory),
    /// At this one.
    At(Address),
}

impl Location {
    /// A path, or `@` and an abstract name.
    pub fn socket(value: &OsStr) -> Location {
        Location::At(match value.as_bytes() {
            [b'@', name @ ..] => Address::Abstract(name.to_vec()),
            _ => Address::Path(Path::new(value).to_owned()),
        })
    }

    /// The socket of `node`: what stands after `@` makes no difference.
    pub fn address(&self, node: &str) -> Result<Address, Failure> {
        let name = node.split('@').next().unwrap_or_default();
        if name.is_empty() || name.contains(['/', '\0']) {
            return Err(Failure::new(
                Kind::Usage,
                format!("{node:?} is not a node name; give one like myapp or myapp@host"),
            ));
        }
        Ok(match self {
            Location::In(directory) => directory.address(name),
            Location::At(address) => address.clone(),
        })
    }
}
