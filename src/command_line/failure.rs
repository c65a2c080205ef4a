//! How a command ends when it does not succeed: an exit code for scripts, a line for people.

use std::fmt;
use std::process::ExitCode;

/// Why a command has failed. The numbers are the exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// `ping` has found out that the node is not there.
    Down = 1,
    /// The node does not let us in, or is not the one that we mean to talk to.
    Refused = 2,
    /// The time is over.
    TimedOut = 3,
    /// The connection broke: the node went down, or speaks another protocol.
    Lost = 4,
    /// Nobody listens where the node should.
    NotThere = 5,
    /// The node answers `ping`, and is not as far as was asked.
    NotReady = 6,
    /// The node answers, and cannot say what it was asked: it has another carrier, or an older release
    /// of ours.
    Unanswered = 7,
    /// The command cannot be carried out as it was given: its arguments, the cookie, a directory.
    Usage = 64,
    /// The result cannot be written to where it should go.
    Output = 74,
    /// The reader of the output has gone, as `head` does, and nothing is said. A shell reports this code
    /// for a program that SIGPIPE has ended.
    NoReader = 141,
}

/// Code of `rpc` and `eval` when the code that they have called has failed.
pub const RAISED: u8 = 1;

/// All exit codes, for people.
pub const EXIT_CODES: [(&str, &str); 11] = [
    ("0", "done; the node answers"),
    (
        "1",
        "ping: the node is not there; rpc, eval: the called code raised an exception",
    ),
    (
        "2",
        "refused: the cookies differ, one side does not admit the other one's user, or another node \
         listens there",
    ),
    (
        "3",
        "the time is over (--timeout): the node is there, and not done yet",
    ),
    (
        "4",
        "the connection broke before the answer: the node went down",
    ),
    ("5", "the node is not there (all commands but ping)"),
    (
        "6",
        "ping: the node answers, but has not started (--started), or an application does not run (--app)",
    ),
    (
        "7",
        "peers: the node cannot say: it has another carrier, or an older uds_dist",
    ),
    (
        "64",
        "nothing was tried: arguments, cookie file or directory are not right",
    ),
    ("74", "the result could not be written"),
    ("141", "nobody reads the output any more, as in `| head -1`"),
];

/// What has happened, where, and what to do about it: one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// For scripts.
    pub kind: Kind,
    /// For people.
    pub explanation: String,
    /// A node that is starting, or about to, looks like that: it is worth another try.
    pub may_pass: bool,
}

impl Failure {
    /// Says what has happened.
    pub fn new(kind: Kind, explanation: impl Into<String>) -> Failure {
        Failure {
            kind,
            explanation: explanation.into(),
            may_pass: matches!(kind, Kind::NotThere | Kind::TimedOut | Kind::NotReady),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.explanation)
    }
}

impl From<Kind> for ExitCode {
    fn from(kind: Kind) -> ExitCode {
        ExitCode::from(kind as u8)
    }
}
