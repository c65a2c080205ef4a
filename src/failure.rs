//! Why something could not be done, or has ended: a reason for the VM, and one line for people. A leaf.

/// What a program acts on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    /// A live process listens under this name.
    DuplicateName = 1,
    /// Somebody holds the name's lock, but nothing answers there: about to appear or to go away.
    NameBusy = 2,
    /// The peer's backlog is full: it is alive, try again.
    BacklogFull = 3,
    /// Nobody listens at the address.
    NotListening = 4,
    /// The operating system denies the access.
    PermissionDenied = 5,
    /// The address can never work: too long, empty, not a socket, no such directory.
    BadAddress = 6,
    /// The peer closed the connection.
    PeerClosed = 7,
    /// The operating system failed at something else.
    SystemError = 8,
    /// The peer is there, but it is not one that ADMIT allows.
    Refused = 9,
}

impl Reason {
    /// Every reason, in the order of its number.
    pub const ALL: [Reason; 9] = [
        Reason::DuplicateName,
        Reason::NameBusy,
        Reason::BacklogFull,
        Reason::NotListening,
        Reason::PermissionDenied,
        Reason::BadAddress,
        Reason::PeerClosed,
        Reason::SystemError,
        Reason::Refused,
    ];
}

/// A reason, and what happened, where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What the VM acts on.
    pub reason: Reason,
    /// One line for people.
    pub explanation: String,
}

impl Failure {
    /// Says what has happened.
    pub fn new(reason: Reason, explanation: impl Into<String>) -> Failure {
        Failure {
            reason,
            explanation: explanation.into(),
        }
    }

    /// The system has failed at something that a program can do nothing about.
    pub fn system(explanation: impl Into<String>) -> Failure {
        Failure::new(Reason::SystemError, explanation)
    }
}
