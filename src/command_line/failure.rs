//! Failures of a command: an exit code for scripts, and one line for people.

use std::fmt;
use std::process::ExitCode;

/// Kinds of failures. The numbers are the exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// `ping`: the node is not there.
    Down = 1,
    /// The node refuses us, or it is not the node that was asked for.
    Refused = 2,
    /// The command took longer than its time limit.
    TimedOut = 3,
    /// The connection broke: the node went down, or it speaks another protocol.
    Lost = 4,
    /// Nobody listens at the node's socket.
    NotThere = 5,
    /// `ping`: the node answers, but is not ready.
    NotReady = 6,
    /// The node answers, but does not know what it was asked, because it has another carrier or an older
    /// release of this one.
    Unanswered = 7,
    /// The command cannot be carried out because of its arguments, the cookie or a directory.
    Usage = 64,
    /// The result cannot be printed.
    Output = 74,
    /// Nobody reads the output any more, such as in `| head -1`. This is not reported in a line. A shell uses
    /// the same code for a program that was ended by SIGPIPE.
    NoReader = 141,
}

/// Exit code of `rpc` and `eval` if the called code raised an exception.
pub const RAISED: u8 = 1;

/// All exit codes, and what they mean.
pub const EXIT_CODES: [(&str, &str); 11] = [
    ("0", "done; the node answers"),
    (
        "1",
        "ping: the node is not there; rpc, eval: the called code raised an exception",
    ),
    (
        "2",
        "refused: the cookies differ, one side does not allow the other's user, or another node \
         listens there",
    ),
    (
        "3",
        "timed out (--timeout): the node is there, but did not answer in time",
    ),
    (
        "4",
        "the connection broke before the answer: the node went down",
    ),
    ("5", "the node is not there (all commands except ping)"),
    (
        "6",
        "ping: the node answers, but has not started (--started), or an application is not running (--app)",
    ),
    (
        "7",
        "peers: the node cannot say, because it has another carrier or an older uds_dist",
    ),
    (
        "64",
        "nothing was tried: something is wrong with the arguments, the cookie file or the directory",
    ),
    ("74", "the result could not be written"),
    (
        "141",
        "nobody reads the output any more, such as in `| head -1`",
    ),
];

/// A failure, with one line that says what happened, where, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The exit code.
    pub kind: Kind,
    /// The line for people.
    pub explanation: String,
    /// The node may just be starting, so `--wait` tries again.
    pub may_pass: bool,
}

impl Failure {
    /// A failure of this kind.
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
