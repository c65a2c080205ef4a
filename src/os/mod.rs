//! The system calls that std lacks, and those that differ between systems: one file for each kind of
//! system behind the functions of this page. What the sidecar uses them for is not known here.

#[cfg_attr(any(target_os = "linux", target_os = "android"), path = "linux.rs")]
#[cfg_attr(not(any(target_os = "linux", target_os = "android")), path = "bsd.rs")]
mod system;

pub use system::{
    CAN_PASS_SOCKETS, CAN_SPLICE, abstract_listener, enlarge_pipe, peer_credentials,
    send_descriptor, splice, spliceable,
};

use crate::address::Address;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, Mode, OFlags, RawMode, flock};
use rustix::io::{Errno, ioctl_fionbio, retry_on_intr};
use rustix::net::{SocketAddrUnix, sockopt};
use rustix::process::{Resource, Rlimit, geteuid, setrlimit, umask};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Flags of open(2) for a file that others may have put in place: a symbolic link is not followed,
/// and a FIFO is not waited for.
pub const OPEN_WARILY: i32 = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).bits() as i32;

// --- bytes ---------------------------------------------------------------------------------------

/// Reads what is there; `WouldBlock` if nothing is, `Ok(0)` at the end.
pub fn read(fd: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(retry_on_intr(|| {
        rustix::io::read(fd.as_fd(), &mut *buffer)
    })?)
}

/// Writes as much as there is room for; `WouldBlock` if there is none.
pub fn write(fd: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    Ok(retry_on_intr(|| rustix::io::write(fd.as_fd(), bytes))?)
}

/// True if a write would find room, or fail. So it is if this cannot be found out: the write will tell.
pub fn is_writable(fd: impl AsFd) -> bool {
    const AT_ONCE: Timespec = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut polled = [PollFd::new(&fd, PollFlags::OUT)];
    poll(&mut polled, Some(&AT_ONCE)) != Ok(0)
}

/// Makes reads and writes return instead of waiting.
pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    Ok(ioctl_fionbio(fd, true)?)
}

// --- sockets -------------------------------------------------------------------------------------

/// The address as the kernel takes it. Fails if it is too long, holds a NUL where none can be, or is
/// of a kind that this system does not have.
pub fn socket_address(address: &Address) -> io::Result<SocketAddrUnix> {
    match address {
        Address::Path(path) if path.as_os_str().len() > system::MAX_PATH => {
            Err(Errno::NAMETOOLONG.into())
        }
        Address::Path(path) => Ok(SocketAddrUnix::new(path)?),
        Address::Abstract(name) => system::abstract_address(name),
    }
}

/// Connects, which a Unix domain socket does at once or not at all: `WouldBlock` says that the
/// backlog of the listener is full. The socket neither blocks nor is inherited.
pub fn connect(address: &SocketAddrUnix) -> io::Result<OwnedFd> {
    let socket = system::unix_socket()?;
    retry_on_intr(|| rustix::net::connect(&socket, address))?;
    Ok(socket)
}

/// Listens at an address. A socket file is created with its final mode: it is never open to more,
/// not even for a moment. The kernel caps the backlog at net.core.somaxconn.
pub fn listen(address: &SocketAddrUnix, backlog: u32, mode: u16) -> io::Result<OwnedFd> {
    let socket = system::unix_socket()?;
    let before = umask(!Mode::from_raw_mode(RawMode::from(mode)) & Mode::from_raw_mode(0o777));
    let bound = rustix::net::bind(&socket, address);
    umask(before);
    bound?;
    begin_listening(&socket, backlog)?;
    Ok(socket)
}

fn begin_listening(socket: &OwnedFd, backlog: u32) -> io::Result<()> {
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    Ok(rustix::net::listen(socket, backlog)?)
}

/// Lets a socket hold up to `size` bytes that its peer has not read; the system may allow it less.
pub fn enlarge_send_buffer(socket: impl AsFd, size: u32) {
    if let Err(errno) = sockopt::set_socket_send_buffer_size(socket, size as usize) {
        log::debug!("a socket keeps the size of its buffer: {errno}");
    }
}

/// The process, or the whole system, has no descriptor or memory left for another socket.
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    let exhausted = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|errno| exhausted.contains(&errno))
}

// --- files ---------------------------------------------------------------------------------------

/// Takes the exclusive lock of flock(2), which lasts until the file is closed; `WouldBlock` if
/// another process has it.
pub fn lock(file: &File) -> io::Result<()> {
    Ok(retry_on_intr(|| {
        flock(file, FlockOperation::NonBlockingLockExclusive)
    })?)
}

// --- users and privileges ------------------------------------------------------------------------

/// The user we act as.
pub fn own_uid() -> u32 {
    geteuid().as_raw()
}

/// The users whose files we trust: our own, and root, who could change ours anyway.
pub fn is_trusted_owner(uid: u32) -> bool {
    uid == 0 || uid == own_uid()
}

/// Gives up what the sidecar has no use for: new privileges, being looked into by other processes of
/// its user, a core file with the buffers of connections, and a hold on the working directory.
pub fn give_up_privileges() {
    warn_unless("change to /", std::env::set_current_dir(Path::new("/")));
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    warn_unless(
        "do without core files",
        setrlimit(Resource::Core, none).map_err(io::Error::from),
    );
    system::give_up_privileges();
}

fn warn_unless(what: &str, result: io::Result<()>) {
    if let Err(error) = result {
        log::warn!("cannot {what}: {error}");
    }
}
