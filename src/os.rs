//! The thin layer over what differs between operating systems, or what std does not offer.

use crate::protocol::Credentials;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect as connect_fd, socket,
};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Bytes a pipe to or from the VM should hold: the most that an unprivileged process may ask for
/// (/proc/sys/fs/pipe-max-size). With the usual 64 KiB each batch costs many wake-ups.
#[cfg(any(target_os = "linux", target_os = "android"))]
const PIPE_SIZE: i32 = 1 << 20;

/// Reads what is there; `WouldBlock` if nothing is, `Ok(0)` at the end.
pub fn read(fd: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(retry(|| nix::unistd::read(fd.as_fd(), buffer))?)
}

/// Writes as much as there is room for; `WouldBlock` if there is none.
pub fn write(fd: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    Ok(retry(|| nix::unistd::write(fd.as_fd(), bytes))?)
}

/// Moves up to `limit` bytes between a pipe and a socket inside the kernel; `WouldBlock` if there is
/// nothing to move, if there is no room for it, or if this system cannot do it.
pub fn splice(from: impl AsFd, to: impl AsFd, limit: usize) -> io::Result<usize> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        use nix::fcntl::{SpliceFFlags, splice};
        let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
        let moved = retry(|| splice(from.as_fd(), None, to.as_fd(), None, limit, flags))?;
        Ok(moved)
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    {
        let _ = (from, to, limit);
        Err(io::ErrorKind::WouldBlock.into())
    }
}

/// Bytes of a socket that [`splice`] can move to a pipe right now.
pub fn spliceable(socket: impl AsFd) -> usize {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        // Some kernels only look like Linux; to find out is to try, once.
        use std::sync::LazyLock;
        static SPLICES: LazyLock<bool> = LazyLock::new(|| splice_one_byte().is_ok());
        match *SPLICES {
            true => rustix::io::ioctl_fionread(socket).map_or(0, |count| count as usize),
            false => 0,
        }
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    {
        let _ = socket;
        0
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn splice_one_byte() -> io::Result<()> {
    use std::io::Write;
    let (mut near, far) = std::os::unix::net::UnixStream::pair()?;
    let (_reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    near.write_all(&[0])?;
    splice(far, writer, 1)?;
    Ok(())
}

/// Makes reads and writes return instead of waiting.
pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Lets a pipe hold as much as it may. It works with a smaller one too, only slower.
pub fn enlarge_pipe(fd: impl AsFd) {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if let Err(errno) = fcntl(fd.as_fd(), FcntlArg::F_SETPIPE_SZ(PIPE_SIZE)) {
        log::debug!("a pipe to the VM keeps its size: {}", errno.desc());
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = fd;
}

/// A stream socket that neither blocks nor is inherited.
pub fn unix_socket() -> Result<OwnedFd, Errno> {
    #[cfg(not(target_vendor = "apple"))]
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    #[cfg(target_vendor = "apple")]
    let flags = SockFlag::empty();
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    #[cfg(target_vendor = "apple")]
    {
        fcntl(&socket, FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
        fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    }
    Ok(socket)
}

/// Connects, which a Unix domain socket does at once or not at all: `WouldBlock` says that the
/// backlog of the listener is full.
pub fn connect(address: &UnixAddr) -> io::Result<OwnedFd> {
    let socket = unix_socket()?;
    retry(|| connect_fd(socket.as_raw_fd(), address))?;
    Ok(socket)
}

/// A listener under a name that the kernel chooses, and that name: autobind of unix(7).
#[cfg(any(target_os = "linux", target_os = "android"))]
pub fn nameless_listener(backlog: i32) -> io::Result<(OwnedFd, Vec<u8>)> {
    use nix::sys::socket::{Backlog, bind, getsockname, listen};
    let socket = unix_socket()?;
    bind(socket.as_raw_fd(), &UnixAddr::new_unnamed())?;
    listen(&socket, Backlog::new(backlog)?)?;
    let address: UnixAddr = getsockname(socket.as_raw_fd())?;
    let name = address.as_abstract().ok_or(io::ErrorKind::Unsupported)?;
    let address = [&[0], name].concat();
    Ok((socket, address))
}

/// Sends a descriptor, with the one byte that it needs: SCM_RIGHTS of unix(7). `WouldBlock` if the
/// socket takes no more.
pub fn send_descriptor(socket: impl AsFd, descriptor: impl AsFd) -> io::Result<()> {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let socket = socket.as_fd().as_raw_fd();
    let descriptors = [descriptor.as_fd().as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let byte = [io::IoSlice::new(&[0])];
    retry(|| sendmsg::<()>(socket, &byte, &rights, MsgFlags::MSG_NOSIGNAL, None))?;
    Ok(())
}

/// Lets a socket hold up to `size` bytes that its peer has not read; the system may allow it less.
pub fn enlarge_send_buffer(socket: impl AsFd, size: u32) {
    use nix::sys::socket::{setsockopt, sockopt::SndBuf};
    if let Err(errno) = setsockopt(&socket, SndBuf, &(size as usize)) {
        log::debug!("a socket keeps the size of its buffer: {}", errno.desc());
    }
}

/// Who is at the other end: SO_PEERCRED of unix(7), getpeereid(3).
pub fn peer_credentials(socket: impl AsFd) -> io::Result<Credentials> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
        let peer = getsockopt(&socket, PeerCredentials)?;
        Ok(Credentials {
            uid: peer.uid(),
            gid: peer.gid(),
            // 0 for a process of a pid namespace that we cannot see into.
            pid: peer.pid() as u32,
        })
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    {
        let (uid, gid) = nix::unistd::getpeereid(socket)?;
        Ok(Credentials {
            uid: uid.as_raw(),
            gid: gid.as_raw(),
            pid: Credentials::UNKNOWN.pid,
        })
    }
}

/// Gives up what the sidecar has no use for: new privileges, being looked into by other processes of
/// its user, a core file with the buffers of connections, and a hold on the working directory.
pub fn give_up_privileges() {
    let done = [
        ("change to /", nix::unistd::chdir("/")),
        ("do without core files", no_core_files()),
        #[cfg(any(target_os = "linux", target_os = "android"))]
        (
            "do without new privileges",
            nix::sys::prctl::set_no_new_privs(),
        ),
        #[cfg(any(target_os = "linux", target_os = "android"))]
        ("become undumpable", nix::sys::prctl::set_dumpable(false)),
    ];
    for (what, result) in done {
        if let Err(errno) = result {
            log::warn!("cannot {what}: {}", errno.desc());
        }
    }
}

fn no_core_files() -> Result<(), Errno> {
    use nix::sys::resource::{Resource, setrlimit};
    setrlimit(Resource::RLIMIT_CORE, 0, 0)
}

/// The users whose files we trust: our own, and root, who could change ours anyway.
pub fn is_trusted_owner(uid: u32) -> bool {
    uid == 0 || is_own_user(uid)
}

/// The user we act as.
pub fn is_own_user(uid: u32) -> bool {
    uid == nix::unistd::geteuid().as_raw()
}

/// One of our groups.
pub fn is_own_group(gid: u32) -> bool {
    let own = nix::unistd::getegid().as_raw();
    let others = nix::unistd::getgroups().unwrap_or_default();
    gid == own || others.iter().any(|group| group.as_raw() == gid)
}

/// The process, or the whole system, has no descriptor or memory left for another socket.
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM]
        .iter()
        .any(|errno| error.raw_os_error() == Some(*errno as i32))
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::EINTR) => (),
            result => return result,
        }
    }
}
