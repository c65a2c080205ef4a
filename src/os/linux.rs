//! Linux: splice(2) between pipes and sockets, abstract socket names, SO_PEERCRED, SO_PEERGROUPS,
//! SCM_RIGHTS, sock_diag(7).

use super::shared::{begin_listening, warn_unless};
use super::sock_diag::{self, End};
use crate::peer::Credentials;
use crate::sockets::{File, Listening};
use nix::errno::Errno;
use nix::getsockopt_impl;
use nix::libc::{self, SO_PEERGROUPS, SOL_SOCKET};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::{GetStruct, PeerCredentials};
use rustix::fs::{major, minor};
use rustix::io::{ioctl_fionread, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, netlink, recv, send, sendmsg, socket_with,
};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::set_no_new_privs;
use std::fs::Metadata;
use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::sync::LazyLock;

/// Longest path of a socket in bytes: `sun_path` of unix(7) has 108, the last of which is a NUL.
pub const MAX_PATH: usize = 107;

/// Whether the kernel can move bytes between sockets and pipes.
pub const CAN_SPLICE: bool = true;

/// Whether sockets can be passed to the VM.
pub const CAN_PASS_SOCKETS: bool = true;

/// Capacity of the pipes from and to the VM, in bytes: the most that an unprivileged process may ask for
/// (/proc/sys/fs/pipe-max-size). With the usual 64 KiB, each batch costs many wake-ups.
const PIPE_SIZE: usize = 1 << 20;

/// Moves up to `limit` bytes between a pipe and a socket inside the kernel, and returns how many.
///
/// # Errors
/// `WouldBlock` if there is nothing to move, or no room for it; otherwise those of splice(2).
pub fn splice(from: impl AsFd, to: impl AsFd, limit: usize) -> io::Result<usize> {
    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
    Ok(retry_on_intr(|| {
        rustix::pipe::splice(&from, None, &to, None, limit, flags)
    })?)
}

/// Number of bytes that [`splice`] can move from a socket to a pipe right now.
pub fn spliceable(socket: impl AsFd) -> usize {
    // Some kernels that claim to be Linux cannot splice. The only way to find out is to try.
    static SPLICES: LazyLock<bool> = LazyLock::new(|| splice_one_byte().is_ok());
    match *SPLICES {
        true => ioctl_fionread(socket).map_or(0, |count| count as usize),
        false => 0,
    }
}

fn splice_one_byte() -> io::Result<()> {
    let (mut near, far) = UnixStream::pair()?;
    let (_reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    near.write_all(&[0])?;
    splice(far, writer, 1)?;
    Ok(())
}

/// Enlarges a pipe to 1 MiB, if that is allowed. A smaller pipe works too, but more slowly.
pub fn enlarge_pipe(fd: impl AsFd) {
    if let Err(errno) = fcntl_setpipe_size(fd, PIPE_SIZE) {
        log::debug!("a pipe to the VM keeps its size: {errno}");
    }
}

/// Creates a non-blocking, close-on-exec stream socket.
pub fn unix_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    Ok(socket)
}

/// The address of an abstract `name`, which is given without its leading NUL.
pub fn abstract_address(name: &[u8]) -> io::Result<SocketAddrUnix> {
    Ok(SocketAddrUnix::new_abstract_name(name)?)
}

/// The abstract name of an address, without its leading NUL, if it is one.
pub fn abstract_name(address: &SocketAddr) -> Option<&[u8]> {
    address.as_abstract_name()
}

/// Directory with an entry for each descriptor of this process.
pub const DESCRIPTORS: &str = "/proc/self/fd";

/// Resident memory of this process in bytes, if the system tells.
pub fn resident_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}

/// Opens a listener under an abstract name that the kernel chooses (autobind of unix(7)), and returns it
/// with that name, which includes the leading NUL.
pub fn abstract_listener(backlog: u32) -> io::Result<(OwnedFd, Vec<u8>)> {
    let socket = unix_socket()?;
    rustix::net::bind(&socket, &SocketAddrUnix::new_unnamed())?;
    begin_listening(&socket, backlog)?;
    let address = SocketAddrUnix::try_from(rustix::net::getsockname(&socket)?)?;
    let name = address
        .abstract_name()
        .ok_or(io::ErrorKind::AddrNotAvailable)?;
    let address = [&[0], name].concat();
    Ok((socket, address))
}

/// Sends a descriptor as an SCM_RIGHTS message of unix(7), with the one byte that this requires.
///
/// # Errors
/// `WouldBlock` if the socket is full; otherwise those of sendmsg(2).
pub fn send_descriptor(socket: impl AsFd, descriptor: impl AsFd) -> io::Result<()> {
    let descriptors = [descriptor.as_fd()];
    let byte = [IoSlice::new(&[0])];
    retry_on_intr(|| {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fits = control.push(SendAncillaryMessage::ScmRights(&descriptors));
        assert!(fits, "the space is that of one descriptor");
        sendmsg(&socket, &byte, &mut control, SendFlags::NOSIGNAL)
    })?;
    Ok(())
}

/// The user, group and process at the other end of a socket: SO_PEERCRED of unix(7).
pub fn peer_credentials(socket: impl AsFd) -> io::Result<Credentials> {
    let peer = getsockopt(&socket, PeerCredentials)?;
    Ok(Credentials {
        uid: peer.uid(),
        gid: peer.gid(),
        // 0 if the process is in a pid namespace that we cannot see.
        pid: peer.pid() as u32,
    })
}

/// The supplementary groups of the process at the other end, as they were when it called connect(2) or
/// listen(2): SO_PEERGROUPS of socket(7). Fails if there are more than 64.
pub fn peer_groups(socket: impl AsFd) -> io::Result<Vec<u32>> {
    // The safe wrapper takes an answer that fills its buffer exactly, and nothing else. The kernel fills
    // none that is too small, and what it says of a connected socket never changes.
    macro_rules! exactly {
        ($($count:literal)*) => {
            $({
                #[derive(Clone, Copy)]
                struct Groups;
                getsockopt_impl!(
                    Groups, SOL_SOCKET, SO_PEERGROUPS, [u32; $count], GetStruct<[u32; $count]>
                );
                match getsockopt(&socket, Groups) {
                    Err(Errno::ERANGE) => (),
                    groups => return Ok(groups?.to_vec()),
                }
            })*
        };
    }
    exactly!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31);
    exactly!(32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59);
    exactly!(60 61 62 63 64);
    Err(Errno::ERANGE.into())
}

/// All listening sockets in this network namespace, from sock_diag(7) and UNIX_DIAG. Unlike the lines of
/// /proc/net/unix, its answer cannot be forged by a name that contains a newline. It also tells which file a
/// socket is bound to, even if there is another file at its path by now.
///
/// # Errors
/// If the kernel does not list them.
pub fn listening_sockets() -> io::Result<Vec<Listening>> {
    const DATAGRAM: usize = 1 << 16;
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    send(&socket, &sock_diag::request(), SendFlags::empty())?;
    let mut found = Vec::new();
    let mut datagram = vec![0; DATAGRAM];
    loop {
        let (_, length) = recv(&socket, &mut datagram[..], RecvFlags::empty())?;
        match sock_diag::read(&datagram[..length], &mut found) {
            Some(End::Done) => return Ok(found),
            Some(End::Error) => return Err(io::ErrorKind::Unsupported.into()),
            None => (),
        }
    }
}

/// Major and minor number of the device of a file's file system.
pub fn device(file: &Metadata) -> (u32, u32) {
    (major(file.dev()), minor(file.dev()))
}

/// How [`listening_sockets`] identifies the file that has this metadata.
pub fn socket_file(metadata: &Metadata) -> File {
    let (major, minor) = device(metadata);
    File {
        inode: metadata.ino() as u32,
        device: major << 20 | minor,
    }
}

/// Gives up the privileges that only Linux lets a process give up.
pub fn give_up_privileges() {
    warn_unless(
        "rule out new privileges",
        set_no_new_privs(true).map_err(io::Error::from),
    );
    warn_unless(
        "become undumpable",
        set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(io::Error::from),
    );
}
