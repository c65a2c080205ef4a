//! Who a peer is, in the kernel's words, and who may be one. A leaf: it asks nobody anything.

/// What the kernel says about the process at the other end of a socket. [`Credentials::UNKNOWN`]
/// where the operating system does not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credentials {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Process: the one that called connect(2) or listen(2).
    pub pid: u32,
}

impl Credentials {
    /// No user, group or process has these numbers: (uid_t)-1 is reserved, pid 0 is the kernel.
    pub const UNKNOWN: Credentials = Credentials {
        uid: u32::MAX,
        gid: u32::MAX,
        pid: 0,
    };

    /// The process, where the system tells.
    pub fn process(&self) -> Option<u32> {
        (self.pid != Credentials::UNKNOWN.pid).then_some(self.pid)
    }
}

/// The users and groups whose processes may be peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Who is admitted besides the users and groups below.
    pub base: Base,
    /// Effective users.
    pub uids: Vec<u32>,
    /// Effective groups.
    pub gids: Vec<u32>,
}

/// What a [`Policy`] adds to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Base {
    /// Nobody.
    Nobody = 0,
    /// Our own effective user, and root, who could do anything anyway.
    OwnUserAndRoot = 1,
    /// Everybody whom the file system lets connect.
    Anybody = 2,
}

impl Policy {
    /// A policy that names no user and no group.
    pub fn just(base: Base) -> Policy {
        Policy {
            base,
            uids: Vec::new(),
            gids: Vec::new(),
        }
    }

    /// Whether it admits this peer; `own_uid` is the user we act as.
    pub fn admits(&self, peer: &Credentials, own_uid: u32) -> bool {
        let by_base = match self.base {
            Base::Nobody => false,
            Base::OwnUserAndRoot => peer.uid == 0 || peer.uid == own_uid,
            Base::Anybody => true,
        };
        by_base || self.uids.contains(&peer.uid) || self.gids.contains(&peer.gid)
    }
}
