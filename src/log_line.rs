//! One line of the log: its text, and its facts for programs. Where it goes is not known here.

use crate::peer::Credentials;
use log::kv::{self, Key, ToValue, Value, VisitSource};
use log::{Metadata, Record};

/// Target of records at the level notice, which the crate `log` does not have. It is for events that an
/// operator should see at the default level, but that are no cause for concern.
pub const NOTICE: &str = "notice";

/// Longest text of a line in bytes. It fits into one packet of the port with a name of [`MAX_SUBJECT`].
pub const MAX_LINE: usize = 1000;

/// Longest name of a subject in bytes: that of a node, with 255 characters of 4 bytes.
pub const MAX_SUBJECT: usize = 1020;

/// A line of the sidecar's log, with its facts as fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Severity of the line.
    pub level: Level,
    /// Kind of event, if it is one that programs can tell apart.
    pub cause: Option<Cause>,
    /// Credentials of the peer that the line is about, or [`Credentials::UNKNOWN`].
    pub peer: Credentials,
    /// Address or node that the line is about.
    pub subject: Subject,
    /// The line itself, without control characters.
    pub text: String,
}

impl Line {
    /// A line that is not about a peer, an address or a node.
    pub fn new(level: Level, text: String) -> Line {
        Line {
            level,
            cause: None,
            peer: Credentials::UNKNOWN,
            subject: Subject::Nothing,
            text,
        }
    }
}

/// The address or node that a log line is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// Neither an address nor a node.
    Nothing,
    /// An address in printable form.
    Address(String),
    /// The name of a node.
    Node(String),
}

/// Levels of syslog(3), which the VM's logger also uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Level {
    /// Something does not work.
    Error = 3,
    /// Something may be wrong.
    Warning = 4,
    /// Nothing is wrong, but operators want to know.
    Notice = 5,
    /// Detail for operators who enable it.
    Info = 6,
    /// Detail for developers of the sidecar.
    Debug = 7,
}

impl Level {
    /// All levels, ordered by number.
    pub const ALL: [Level; 5] = [
        Level::Error,
        Level::Warning,
        Level::Notice,
        Level::Info,
        Level::Debug,
    ];

    /// The level of a record.
    pub fn of(metadata: &Metadata<'_>) -> Level {
        match metadata.level() {
            log::Level::Error => Level::Error,
            log::Level::Warn => Level::Warning,
            log::Level::Info if metadata.target() == NOTICE => Level::Notice,
            log::Level::Info => Level::Info,
            log::Level::Debug | log::Level::Trace => Level::Debug,
        }
    }

    /// The level of the crate `log` that comes closest.
    pub fn of_crate(self) -> log::Level {
        match self {
            Level::Error => log::Level::Error,
            Level::Warning => log::Level::Warn,
            Level::Notice | Level::Info => log::Level::Info,
            Level::Debug => log::Level::Debug,
        }
    }

    /// The level's name in the VM's logger.
    pub fn word(self) -> &'static str {
        match self {
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Notice => "notice",
            Level::Info => "info",
            Level::Debug => "debug",
        }
    }
}

/// The kind of event that a log line reports, for programs. The numbers are those of the port protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Cause {
    /// A peer was refused by the policy that ADMIT sets.
    Refused = 1,
    /// A peer sent something that cannot be the name of a node.
    ImplausibleName = 2,
    /// Too many handshakes with processes of one user failed.
    HandshakesFailed = 3,
    /// A connection could not be accepted, because descriptors ran out or the system failed.
    CannotAccept = 4,
    /// Connections are being accepted again.
    AcceptsAgain = 5,
    /// The socket file of a node that was killed was replaced or removed.
    TookOver = 6,
    /// A file of ours was removed or replaced by another process.
    FileTaken = 7,
    /// A socket could not be handed over to the VM.
    NotHandedOver = 8,
    /// A connection was closed before all its bytes were delivered to the peer.
    Undelivered = 9,
    /// A signal arrived.
    Signal = 10,
    /// Log lines were dropped.
    LinesLost = 11,
}

impl Cause {
    /// All causes, ordered by number.
    pub const ALL: [Cause; 11] = [
        Cause::Refused,
        Cause::ImplausibleName,
        Cause::HandshakesFailed,
        Cause::CannotAccept,
        Cause::AcceptsAgain,
        Cause::TookOver,
        Cause::FileTaken,
        Cause::NotHandedOver,
        Cause::Undelivered,
        Cause::Signal,
        Cause::LinesLost,
    ];

    /// The name of the cause, which is an atom in the metadata of the VM's log events.
    pub fn word(self) -> &'static str {
        match self {
            Cause::Refused => "refused",
            Cause::ImplausibleName => "implausible_name",
            Cause::HandshakesFailed => "handshakes_failed",
            Cause::CannotAccept => "cannot_accept",
            Cause::AcceptsAgain => "accepts_again",
            Cause::TookOver => "took_over",
            Cause::FileTaken => "file_taken",
            Cause::NotHandedOver => "not_handed_over",
            Cause::Undelivered => "undelivered",
            Cause::Signal => "signal",
            Cause::LinesLost => "lines_lost",
        }
    }

    /// The cause with this name.
    pub fn of_word(word: &str) -> Option<Cause> {
        Cause::ALL.into_iter().find(|cause| cause.word() == word)
    }
}

impl ToValue for Cause {
    fn to_value(&self) -> Value<'_> {
        Value::from(self.word())
    }
}

/// The line for a record, with its facts. Control characters are escaped, because names of files, peers and
/// nodes may contain them.
pub fn line(record: &Record<'_>) -> Line {
    let text = one_line(&record.args().to_string(), MAX_LINE);
    let mut line = Line::new(Level::of(record.metadata()), text);
    // The visitor ignores keys that it does not know, and never fails.
    let _ = record.key_values().visit(&mut Facts(&mut line));
    line
}

/// Escapes control characters in `text`, and truncates it to `limit` bytes.
fn one_line(text: &str, limit: usize) -> String {
    const CUT: &str = "...";
    let mut line = String::new();
    for c in text.chars() {
        let end = line.len();
        match c.is_control() {
            true => line.extend(c.escape_default()),
            false => line.push(c),
        }
        if line.len() > limit - CUT.len() {
            line.truncate(end);
            return line + CUT;
        }
    }
    line
}

struct Facts<'a>(&'a mut Line);

impl<'kvs> VisitSource<'kvs> for Facts<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        let line = &mut *self.0;
        let number = || value.to_u64().and_then(|number| u32::try_from(number).ok());
        match key.as_str() {
            "reason" => line.cause = value.to_borrowed_str().and_then(Cause::of_word),
            "uid" => line.peer.uid = number().unwrap_or(Credentials::UNKNOWN.uid),
            "gid" => line.peer.gid = number().unwrap_or(Credentials::UNKNOWN.gid),
            "pid" => line.peer.pid = number().unwrap_or(Credentials::UNKNOWN.pid),
            "address" => line.subject = Subject::Address(name(&value)),
            "node" => line.subject = Subject::Node(name(&value)),
            _ => (),
        }
        Ok(())
    }
}

fn name(value: &Value<'_>) -> String {
    one_line(&value.to_string(), MAX_SUBJECT)
}
