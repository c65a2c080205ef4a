//! The system calls that std lacks, and those that differ between systems. There is one file per kind of
//! system, behind the functions of this module; `shared` has what those files and this one have in common.

#[cfg_attr(any(target_os = "linux", target_os = "android"), path = "linux.rs")]
#[cfg_attr(not(any(target_os = "linux", target_os = "android")), path = "bsd.rs")]
mod system;

mod shared;

#[cfg(any(target_os = "linux", target_os = "android"))]
pub mod sock_diag;

pub use system::{
    CAN_PASS_SOCKETS, CAN_SPLICE, abstract_listener, device, enlarge_pipe, listening_sockets,
    peer_credentials, send_descriptor, socket_file, splice, spliceable,
};

use crate::address::Address;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, FlockOperation, Mode, OFlags, RawMode, flock, fstat};
use rustix::io::{Errno, ioctl_fionbio, retry_on_intr};
use rustix::net::{SocketAddrUnix, sockopt};
use rustix::process::{Resource, Rlimit, geteuid, getrlimit, setrlimit, umask};
use shared::{begin_listening, warn_unless};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// Flags of open(2) for a file that another user may have created: they do not follow a symbolic link, and
/// do not block on a FIFO.
pub const OPEN_WARILY: i32 = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).bits() as i32;

// --- bytes ---------------------------------------------------------------------------------------

/// Reads what is available into `buffer`, and returns the number of bytes; 0 is the end of the input.
///
/// # Errors
/// `WouldBlock` if nothing is available; otherwise those of read(2).
pub fn read(fd: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(retry_on_intr(|| {
        rustix::io::read(fd.as_fd(), &mut *buffer)
    })?)
}

/// Writes as many bytes as there is room for, and returns their number.
///
/// # Errors
/// `WouldBlock` if there is no room; otherwise those of write(2).
pub fn write(fd: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    Ok(retry_on_intr(|| rustix::io::write(fd.as_fd(), bytes))?)
}

/// True if a write would find room, or would fail. Also true if poll(2) itself fails, as the write then
/// shows what is wrong.
pub fn is_writable(fd: impl AsFd) -> bool {
    becomes_writable(fd, Duration::ZERO)
}

/// The same, after waiting for it, but not longer than `limit`.
pub fn becomes_writable(fd: impl AsFd, limit: Duration) -> bool {
    let limit = Timespec {
        tv_sec: limit.as_secs() as i64,
        tv_nsec: limit.subsec_nanos().into(),
    };
    let mut polled = [PollFd::new(&fd, PollFlags::OUT)];
    poll(&mut polled, Some(&limit)) != Ok(0)
}

/// True for a pipe, and for a socket, which some systems use as one.
pub fn is_pipe(fd: impl AsFd) -> bool {
    let kind = fstat(fd).map(|found| FileType::from_raw_mode(found.st_mode));
    matches!(kind, Ok(FileType::Fifo | FileType::Socket))
}

/// Makes reads and writes return `WouldBlock` instead of waiting.
///
/// # Errors
/// Those of ioctl(2).
pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    Ok(ioctl_fionbio(fd, true)?)
}

// --- sockets -------------------------------------------------------------------------------------

/// Converts an address to the form that the kernel takes.
///
/// # Errors
/// If the address is too long, if a path contains a NUL, or if this system has no abstract names.
pub fn socket_address(address: &Address) -> io::Result<SocketAddrUnix> {
    match address {
        Address::Path(path) if path.as_os_str().len() > system::MAX_PATH => {
            Err(Errno::NAMETOOLONG.into())
        }
        Address::Path(path) => Ok(SocketAddrUnix::new(path)?),
        Address::Abstract(name) => system::abstract_address(name),
    }
}

/// The kernel's address as the protocol writes it: a path, or NUL and an abstract name; empty if the socket
/// is not bound.
pub fn address_bytes(address: &SocketAddr) -> Vec<u8> {
    match address.as_pathname() {
        Some(path) => path.as_os_str().as_bytes().to_vec(),
        None => system::abstract_name(address).map_or_else(Vec::new, |name| [b"\0", name].concat()),
    }
}

/// Connects a new non-blocking, close-on-exec socket. A Unix domain socket connects at once or not at all.
///
/// # Errors
/// `WouldBlock` if the listener's backlog is full; otherwise those of connect(2).
pub fn connect(address: &SocketAddrUnix) -> io::Result<OwnedFd> {
    let socket = system::unix_socket()?;
    retry_on_intr(|| rustix::net::connect(&socket, address))?;
    Ok(socket)
}

/// Opens a non-blocking, close-on-exec listener. Its socket file is created with `mode`, and is never more
/// widely accessible, not even for a moment. The kernel caps `backlog` at net.core.somaxconn.
///
/// # Errors
/// Those of bind(2) and listen(2).
pub fn listen(address: &SocketAddrUnix, backlog: u32, mode: u16) -> io::Result<OwnedFd> {
    let socket = system::unix_socket()?;
    let before = umask(!Mode::from_raw_mode(RawMode::from(mode)) & Mode::from_raw_mode(0o777));
    let bound = rustix::net::bind(&socket, address);
    umask(before);
    bound?;
    begin_listening(&socket, backlog)?;
    Ok(socket)
}

/// Returns the supplementary groups of the peer. There are none if the system does not report them, or if
/// there are too many.
pub fn peer_groups(socket: impl AsFd) -> Vec<u32> {
    system::peer_groups(socket).unwrap_or_else(|error| {
        log::debug!("the supplementary groups of a peer are not known: {error}");
        Vec::new()
    })
}

/// Asks for a send buffer of `size` bytes; the system may grant less.
pub fn enlarge_send_buffer(socket: impl AsFd, size: u32) {
    if let Err(errno) = sockopt::set_socket_send_buffer_size(socket, size as usize) {
        log::debug!("a socket keeps the size of its buffer: {errno}");
    }
}

/// True if the process or the whole system has no descriptor or memory left for another socket.
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    let exhausted = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|errno| exhausted.contains(&errno))
}

// --- files ---------------------------------------------------------------------------------------

/// Takes the exclusive flock(2) of `file`, which lasts until the file is closed.
///
/// # Errors
/// `WouldBlock` if another process holds the lock; otherwise those of flock(2).
pub fn lock(file: &File) -> io::Result<()> {
    Ok(retry_on_intr(|| {
        flock(file, FlockOperation::NonBlockingLockExclusive)
    })?)
}

/// True if a path cannot be followed because of symbolic links that lead back to themselves.
pub fn is_link_loop(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::LOOP)
}

// --- this process --------------------------------------------------------------------------------

/// Open descriptors of this process, if the system tells.
pub fn open_descriptors() -> Option<u32> {
    match std::fs::read_dir(system::DESCRIPTORS) {
        // One of them is for looking.
        Ok(entries) => Some((entries.count() as u32).saturating_sub(1)),
        Err(error) if is_out_of_descriptors(&error) => descriptor_limit(),
        Err(_) => None,
    }
}

/// How many descriptors this process may have; `None` if there is no limit.
pub fn descriptor_limit() -> Option<u32> {
    let limit = getrlimit(Resource::Nofile).current?;
    Some(u32::try_from(limit).unwrap_or(u32::MAX))
}

pub use system::resident_memory;

// --- users and privileges ------------------------------------------------------------------------

/// Our effective user id.
pub fn own_uid() -> u32 {
    geteuid().as_raw()
}

/// True for the users whose files we trust: our own, and root, which could change ours anyway.
pub fn is_trusted_owner(uid: u32) -> bool {
    uid == 0 || uid == own_uid()
}

/// Gives up what the sidecar does not need. It moves to `/`, so as not to keep the VM's working directory
/// busy, and writes no core files, which would contain the buffers of connections. On Linux it also gains no
/// new privileges, and other processes of its user cannot inspect it.
pub fn give_up_privileges() {
    warn_unless("change to /", std::env::set_current_dir(Path::new("/")));
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    warn_unless(
        "turn core files off",
        setrlimit(Resource::Core, none).map_err(io::Error::from),
    );
    system::give_up_privileges();
}
