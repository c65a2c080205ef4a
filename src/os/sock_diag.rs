//! The messages of sock_diag(7), in the byte order of the machine. See netlink(7) and linux/unix_diag.h. No
//! I/O.

use crate::sockets::{File, Listening};

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
