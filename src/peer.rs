//! The identity of a peer as reported by the kernel, and the policy that decides which peers are admitted.
//! No I/O.

/// The kernel's information about the process at the other end of a socket. Values that the operating
/// system does not report are those of [`Credentials::UNKNOWN`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credentials {
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// Id of the process that called connect(2) or listen(2).
    pub pid: u32,
}

impl Credentials {
    /// Ids that no user, group or process has: (uid_t)-1 is reserved, and pid 0 is the kernel.
    pub const UNKNOWN: Credentials = Credentials {
        uid: u32::MAX,
        gid: u32::MAX,
        pid: 0,
    };

    /// The process id, if the system reports it.
    pub fn process(&self) -> Option<u32> {
        (self.pid != Credentials::UNKNOWN.pid).then_some(self.pid)
    }
}

/// The users and groups whose processes are admitted as peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The peers that are admitted in addition to the users and groups below.
    pub base: Base,
    /// Effective user ids that are admitted.
    pub uids: Vec<u32>,
    /// Group ids that are admitted: the effective one of a process, or a supplementary one.
    pub gids: Vec<u32>,
}

/// The peers that a [`Policy`] admits whatever users and groups it lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Base {
    /// Nobody.
    Nobody = 0,
    /// Our own effective user, and root, which could do anything anyway.
    OwnUserAndRoot = 1,
    /// Every process that the file system's permissions let connect.
    Anybody = 2,
}

impl Policy {
    /// A policy that lists no users and no groups.
    pub fn just(base: Base) -> Policy {
        Policy {
            base,
            uids: Vec::new(),
            gids: Vec::new(),
        }
    }

    /// True if the policy admits `peer`; `own_uid` is our own effective user id, and `groups` fetches the
    /// peer's supplementary groups if they matter.
    pub fn admits(
        &self,
        peer: &Credentials,
        own_uid: u32,
        groups: impl FnOnce() -> Vec<u32>,
    ) -> bool {
        let by_base = match self.base {
            Base::Nobody => false,
            Base::OwnUserAndRoot => peer.uid == 0 || peer.uid == own_uid,
            Base::Anybody => true,
        };
        by_base
            || self.uids.contains(&peer.uid)
            || self.gids.contains(&peer.gid)
            || !self.gids.is_empty() && groups().iter().any(|group| self.gids.contains(group))
    }
}
