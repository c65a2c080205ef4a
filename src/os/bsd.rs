//! macOS and the BSDs. They have no splice(2) and no abstract names, getpeereid(3) does not report the
//! process, and sockets are not passed to the VM.

use crate::peer::Credentials;
use crate::sockets::{File, Listening};
use nix::unistd::getpeereid;
use rustix::fs::{Dev, major, minor};
use rustix::io::{FdFlags, fcntl_setfd, ioctl_fionbio};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, socket};
use std::fs::Metadata;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::SocketAddr;

/// Longest path of a socket in bytes: `sun_path` of unix(4) has 104, the last of which is a NUL.
pub const MAX_PATH: usize = 103;

/// Whether the kernel can move bytes between sockets and pipes.
pub const CAN_SPLICE: bool = false;

/// Whether sockets can be passed to the VM. The VM is recognized by its process id, which these systems do
/// not report.
pub const CAN_PASS_SOCKETS: bool = false;

/// Moves nothing, as these systems have no splice(2); every caller falls back to reading and writing.
pub fn splice(_from: impl AsFd, _to: impl AsFd, _limit: usize) -> io::Result<usize> {
    Err(io::ErrorKind::WouldBlock.into())
}

/// Always 0, as [`splice`] moves nothing.
pub fn spliceable(_socket: impl AsFd) -> usize {
    0
}

/// Does nothing: pipes grow by themselves on these systems.
pub fn enlarge_pipe(_fd: impl AsFd) {}

/// Creates a non-blocking, close-on-exec stream socket. Not all of these systems can do so in one step,
/// but the sidecar starts no programs in between.
pub fn unix_socket() -> io::Result<OwnedFd> {
    let socket = socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
    fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
    ioctl_fionbio(&socket, true)?;
    Ok(socket)
}

/// Always fails: these systems have no abstract names.
pub fn abstract_address(_name: &[u8]) -> io::Result<SocketAddrUnix> {
    Err(io::ErrorKind::Unsupported.into())
}

/// This system has no abstract names.
pub fn abstract_name(_address: &SocketAddr) -> Option<&[u8]> {
    None
}

/// Directory with an entry for each descriptor of this process.
pub const DESCRIPTORS: &str = "/dev/fd";

/// These systems tell it only by ways that are not worth a dependency.
pub fn resident_memory() -> Option<u64> {
    None
}

/// Always fails: these systems have no abstract names.
pub fn abstract_listener(_backlog: u32) -> io::Result<(OwnedFd, Vec<u8>)> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Always fails: sockets are passed on Linux only.
pub fn send_descriptor(_socket: impl AsFd, _descriptor: impl AsFd) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The user and group at the other end of a socket, without the process: getpeereid(3).
pub fn peer_credentials(socket: impl AsFd) -> io::Result<Credentials> {
    let (uid, gid) = getpeereid(socket)?;
    Ok(Credentials {
        uid: uid.as_raw(),
        gid: gid.as_raw(),
        pid: Credentials::UNKNOWN.pid,
    })
}

/// Returns no groups: these systems do not report supplementary groups.
pub fn peer_groups(_socket: impl AsFd) -> io::Result<Vec<u32>> {
    Ok(Vec::new())
}

/// Always fails: these systems have no such list.
pub fn listening_sockets() -> io::Result<Vec<Listening>> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Major and minor number of the device of a file's file system.
pub fn device(file: &Metadata) -> (u32, u32) {
    // Some of these systems have fewer bits here than std returns.
    let device = file.dev() as Dev;
    (major(device), minor(device))
}

/// The file that has this metadata.
pub fn socket_file(metadata: &Metadata) -> File {
    File {
        inode: metadata.ino() as u32,
        device: metadata.dev() as u32,
    }
}

/// Does nothing: these systems offer nothing beyond what the caller has already done.
pub fn give_up_privileges() {}
