//! Lists listening sockets, with sock_diag(7) and UNIX_DIAG. Unlike the lines of /proc/net/unix, its answer
//! cannot be forged by a name that contains a newline. It also tells which file a socket is bound to, even if
//! there is another file at its path by now.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;

/// A stream socket that listens at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listening {
    /// The path that was passed to bind(2).
    pub path: Vec<u8>,
    /// The number of the socket.
    pub inode: u32,
    /// The file to which the socket is bound.
    pub file: Option<File>,
    /// The owner of the socket.
    pub uid: Option<u32>,
}

/// The identity of a file, which does not depend on its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct File {
    /// The lower 32 bits of the inode number.
    pub inode: u32,
    /// The device of the file system: 12 bits of major and 20 bits of minor number.
    pub device: u32,
}

/// All listening sockets in this network namespace.
///
/// # Errors
/// If the system does not list them.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub fn listening() -> io::Result<Vec<Listening>> {
    use rustix::net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send,
        socket_with,
    };
    const DATAGRAM: usize = 1 << 16;
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    send(&socket, &diag::request(), SendFlags::empty())?;
    let mut found = Vec::new();
    let mut datagram = vec![0; DATAGRAM];
    loop {
        let (_, length) = recv(&socket, &mut datagram[..], RecvFlags::empty())?;
        match diag::read(&datagram[..length], &mut found) {
            Some(diag::End::Done) => return Ok(found),
            Some(diag::End::Error) => return Err(io::ErrorKind::Unsupported.into()),
            None => (),
        }
    }
}

impl File {
    /// The identity of the file that has this metadata.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub fn of(metadata: &Metadata) -> File {
        let (major, minor) = (
            rustix::fs::major(metadata.dev()),
            rustix::fs::minor(metadata.dev()),
        );
        File {
            inode: metadata.ino() as u32,
            device: major << 20 | minor,
        }
    }

    /// The identity of the file that has this metadata.
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    pub fn of(metadata: &Metadata) -> File {
        File {
            inode: metadata.ino() as u32,
            device: metadata.dev() as u32,
        }
    }
}

/// Always an error, because this system has no such list.
///
/// # Errors
/// Always.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub fn listening() -> io::Result<Vec<Listening>> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The messages of sock_diag(7), in the byte order of the machine. See netlink(7) and linux/unix_diag.h.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub mod diag {
    use super::{File, Listening};

    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const REQUEST_DUMP: u16 = 0x301;
    const AF_UNIX: u8 = 1;
    const SOCK_STREAM: u8 = 1;
    const TCP_LISTEN: u32 = 10;
    const SHOW_NAME_FILE_UID: u32 = 0x1 | 0x2 | 0x40;

    const ERROR: u16 = 2;
    const DONE: u16 = 3;

    const NAME: u16 = 0;
    const FILE: u16 = 1;
    const UID: u16 = 7;

    /// nlmsghdr, unix_diag_msg and nlattr.
    const HEAD: usize = 16;
    const MESSAGE: usize = 16;
    const ATTRIBUTE: usize = 4;

    /// The end of an answer.
    #[derive(Debug, PartialEq, Eq)]
    pub enum End {
        /// The list is complete.
        Done,
        /// The kernel reported an error.
        Error,
    }

    /// The request for all listening sockets.
    pub fn request() -> Vec<u8> {
        const LENGTH: u32 = 40;
        let mut bytes = Vec::new();
        bytes.extend(LENGTH.to_ne_bytes());
        bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        bytes.extend(REQUEST_DUMP.to_ne_bytes());
        bytes.extend([0; 8]); // sequence number, port
        bytes.extend([AF_UNIX, 0, 0, 0]);
        bytes.extend((1u32 << TCP_LISTEN).to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes()); // any inode
        bytes.extend(SHOW_NAME_FILE_UID.to_ne_bytes());
        bytes.extend([0; 8]); // cookie
        bytes
    }

    /// Reads the messages of a datagram. A truncated message ends it.
    pub fn read(mut datagram: &[u8], found: &mut Vec<Listening>) -> Option<End> {
        while let Some((head, rest)) = datagram.split_at_checked(HEAD) {
            let length = u32_at(head, 0)? as usize;
            let (body, _) = rest.split_at_checked(length.checked_sub(HEAD)?)?;
            match u16_at(head, 4)? {
                DONE => return Some(End::Done),
                ERROR => return Some(End::Error),
                SOCK_DIAG_BY_FAMILY => found.extend(socket(body)),
                _ => (),
            }
            datagram = rest.get(aligned(body.len())..).unwrap_or_default();
        }
        None
    }

    fn socket(body: &[u8]) -> Option<Listening> {
        let (head, mut attributes) = body.split_at_checked(MESSAGE)?;
        let mut socket = Listening {
            path: Vec::new(),
            inode: u32_at(head, 4)?,
            file: None,
            uid: None,
        };
        while let Some(head) = attributes.get(..ATTRIBUTE) {
            let length: usize = u16_at(head, 0)?.into();
            let value = attributes.get(ATTRIBUTE..length)?;
            match u16_at(head, 2)? {
                NAME => socket.path = value.strip_suffix(&[0]).unwrap_or(value).into(),
                FILE => {
                    let [inode, device] = [u32_at(value, 0)?, u32_at(value, 4)?];
                    socket.file = Some(File { inode, device });
                }
                UID => socket.uid = u32_at(value, 0),
                _ => (),
            }
            attributes = attributes.get(aligned(length)..).unwrap_or_default();
        }
        let is_stream = head.get(1) == Some(&SOCK_STREAM);
        (is_stream && socket.path.starts_with(b"/")).then_some(socket)
    }

    fn aligned(length: usize) -> usize {
        length.next_multiple_of(4)
    }

    fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
        let bytes = bytes.get(at..)?.first_chunk()?;
        Some(u32::from_ne_bytes(*bytes))
    }

    fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
        let bytes = bytes.get(at..)?.first_chunk()?;
        Some(u16::from_ne_bytes(*bytes))
    }
}
