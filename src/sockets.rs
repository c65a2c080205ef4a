//! Sockets that listen, as the system lists them.

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
