//! The sidecar's log. From HELLO until the VM goes away, records of the crate `log` are sent to the VM's log,
//! with their facts. Before and after that they go to stderr, through env_logger.
//!
//! A record can be logged at any moment and must not wait for the VM, so it is put into a bounded queue until
//! the event loop has room for it among the reports. Records that find the queue full are counted, and the
//! count is logged once there is room again. Only the logger for stderr does I/O.

use crate::peer::Credentials;
use crate::port::protocol::{Cause, Level, Line, MAX_LINE, MAX_SUBJECT, Subject};
use log::kv::{self, Key, ToValue, Value, VisitSource};
use log::{Log, Metadata, Record};
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Target of records at the level notice, which the crate `log` does not have. It is for events that an
/// operator should see at the default level, but that are no cause for concern.
pub const NOTICE: &str = "notice";

/// Most lines that wait for the VM. With [`MAX_LINE`] and [`MAX_SUBJECT`] this bounds their memory to half
/// a MiB. Lines that strangers can cause are limited elsewhere (`log_limit`), so only the level debug or a VM
/// that has stopped reading can fill the queue.
pub const MAX_WAITING: usize = 256;

/// The queue of this process. There is only one, because the crate `log` has one logger.
static QUEUE: Mutex<Queue> = Mutex::new(Queue::new());

/// Log lines that wait for the VM.
#[derive(Debug)]
pub struct Queue {
    /// False if records go to stderr.
    goes_to_vm: bool,
    waiting: VecDeque<Line>,
    /// Number of records that found the queue full, and have not been reported yet.
    lost: u64,
}

impl Queue {
    /// An empty queue; records go to stderr.
    pub const fn new() -> Queue {
        Queue {
            goes_to_vm: false,
            waiting: VecDeque::new(),
            lost: 0,
        }
    }

    /// Appends a line, or counts it as lost if the queue is full.
    pub fn push(&mut self, line: Line) {
        match self.waiting.len() < MAX_WAITING {
            true => self.waiting.push_back(line),
            false => self.lost += 1,
        }
    }

    /// Takes the oldest line. Once the queue is empty, this is a line with the number of lost records, if
    /// any.
    pub fn pop(&mut self) -> Option<Line> {
        self.waiting.pop_front().or_else(|| {
            let lost = std::mem::take(&mut self.lost);
            (lost > 0).then(|| lines_lost(lost))
        })
    }
}

impl Default for Queue {
    fn default() -> Self {
        Queue::new()
    }
}

fn lines_lost(count: u64) -> Line {
    Line {
        cause: Some(Cause::LinesLost),
        ..Line::new(
            Level::Warning,
            format!(
                "{count} lines of the sidecar's log were lost: the VM did not take them in time"
            ),
        )
    }
}

fn queue() -> MutexGuard<'static, Queue> {
    // A panic ends the process, and until then the queue is still consistent.
    QUEUE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts sending records to the VM. Called after HELLO.
pub fn begin() {
    queue().goes_to_vm = true;
}

/// Takes the next line for the VM.
pub fn next() -> Option<Line> {
    queue().pop()
}

/// Stops sending records to the VM. Lines that still wait go to stderr, and so do all later records.
pub fn end() {
    let waiting = {
        let mut queue = queue();
        queue.goes_to_vm = false;
        std::iter::from_fn(|| queue.pop()).collect::<Vec<_>>()
    };
    for line in waiting {
        log::logger().log(
            &Record::builder()
                .level(line.level.of_crate())
                .target(match line.level {
                    Level::Notice => NOTICE,
                    _ => module_path!(),
                })
                .args(format_args!("{}", line.text))
                .build(),
        );
    }
}

/// The logger of this process.
#[derive(Debug)]
pub struct Journal<L> {
    stderr: L,
}

impl<L: Log> Journal<L> {
    /// A logger that writes to `stderr` while there is no VM. `stderr` also decides which records are logged.
    pub fn new(stderr: L) -> Journal<L> {
        Journal { stderr }
    }
}

impl<L: Log> Log for Journal<L> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.stderr.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut queue = queue();
        match queue.goes_to_vm {
            true => queue.push(line(record)),
            false => {
                drop(queue);
                self.stderr.log(record);
            }
        }
    }

    fn flush(&self) {
        self.stderr.flush();
    }
}

impl Level {
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

    fn of_crate(self) -> log::Level {
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

impl ToValue for Cause {
    fn to_value(&self) -> Value<'_> {
        Value::from(self.word())
    }
}
