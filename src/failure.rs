//! Why an operation failed or a connection ended: a reason for the VM, and one line for people.

/// A machine-readable cause, which decides what the VM does next. The numbers are those of the port
/// protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    /// A live process is already listening under this name.
    DuplicateName = 1,
    /// Another process holds the name's lock, but nothing answers yet: it is starting up or shutting down.
    NameBusy = 2,
    /// The peer's backlog is full: the peer is alive, and a retry may succeed.
    BacklogFull = 3,
    /// Nothing listens at the address.
    NotListening = 4,
    /// The operating system denied access.
    PermissionDenied = 5,
    /// The address can never work: it is too long or empty, is not a socket, or has no directory.
    BadAddress = 6,
    /// The peer closed the connection.
    PeerClosed = 7,
    /// Any other error, usually of the operating system.
    SystemError = 8,
    /// The peer is reachable, but the policy set by ADMIT does not allow it.
    Refused = 9,
}

impl Reason {
    /// All reasons, ordered by number.
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

/// A reason with its explanation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The cause, for the VM.
    pub reason: Reason,
    /// One line for people: what happened, where, and what to do about it.
    pub explanation: String,
}

impl Failure {
    /// A failure with this reason and explanation.
    pub fn new(reason: Reason, explanation: impl Into<String>) -> Failure {
        Failure {
            reason,
            explanation: explanation.into(),
        }
    }

    /// A failure with [`Reason::SystemError`], which the VM has no specific answer to.
    pub fn system(explanation: impl Into<String>) -> Failure {
        Failure::new(Reason::SystemError, explanation)
    }
}
