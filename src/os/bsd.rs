//! macOS and the BSDs: no splice(2), no abstract names, getpeereid(3) without a process number, and no
//! handing over of sockets.

use crate::peer::Credentials;
use nix::unistd::getpeereid;
use rustix::io::{FdFlags, fcntl_setfd, ioctl_fionbio};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, socket};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// Longest path of a socket: `sun_path` of unix(4) has 104 bytes, and ends with a NUL.
pub const MAX_PATH: usize = 103;

/// Whether bytes can go from a socket to a pipe without being read.
pub const CAN_SPLICE: bool = false;

/// Whether sockets can be handed over to the VM: it is known by its process, which these systems do not
/// tell.
pub const CAN_PASS_SOCKETS: bool = false;

/// Moves nothing: this system has no such call, and every caller has another way.
pub fn splice(_from: impl AsFd, _to: impl AsFd, _limit: usize) -> io::Result<usize> {
    Err(io::ErrorKind::WouldBlock.into())
}

/// No bytes, as [`splice`] moves none.
pub fn spliceable(_socket: impl AsFd) -> usize {
    0
}

/// Pipes of these systems grow by themselves.
pub fn enlarge_pipe(_fd: impl AsFd) {}

/// A stream socket that neither blocks nor is inherited. Not all of these systems can create one in
/// one step; the sidecar starts no programs in between.
pub fn unix_socket() -> io::Result<OwnedFd> {
    let socket = socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
    fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
    ioctl_fionbio(&socket, true)?;
    Ok(socket)
}

/// This system has no abstract names.
pub fn abstract_address(_name: &[u8]) -> io::Result<SocketAddrUnix> {
    Err(io::ErrorKind::Unsupported.into())
}

/// This system has no abstract names.
pub fn abstract_listener(_backlog: u32) -> io::Result<(OwnedFd, Vec<u8>)> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Sockets are handed over on Linux only.
pub fn send_descriptor(_socket: impl AsFd, _descriptor: impl AsFd) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Who is at the other end, without its process: getpeereid(3).
pub fn peer_credentials(socket: impl AsFd) -> io::Result<Credentials> {
    let (uid, gid) = getpeereid(socket)?;
    Ok(Credentials {
        uid: uid.as_raw(),
        gid: gid.as_raw(),
        pid: Credentials::UNKNOWN.pid,
    })
}

/// There is nothing beyond what every system has.
pub fn give_up_privileges() {}
