//! The sidecar's log: records of the crate `log` become lines of the VM's log, with their facts, from HELLO on and
//! as long as there is a VM. Before and after that they go to stderr, through env_logger.
//!
//! A record may come at any moment and must not wait for the VM: it stands in a bounded queue here until
//! the event loop has room for it among the reports. Records that find the queue full are counted, and the
//! count is logged as soon as there is room again. Nothing here does I/O but the logger for stderr.

use crate::peer::Credentials;
use crate::port::protocol::{Cause, Level, Line, MAX_LINE, MAX_SUBJECT, Subject};
use log::kv::{self, Key, ToValue, Value, VisitSource};
use log::{Log, Metadata, Record};
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Target of records at the level notice, which the crate `log` does not have: events of which an
/// operator should hear at the default level, and which are no cause for concern.
pub const NOTICE: &str = "notice";

/// Most lines that wait for the VM. With [`MAX_LINE`] this bounds their memory to a quarter of a MiB. What is
/// logged for each stranger is limited elsewhere (`log_limit`), so that only `debug` or a VM that has stopped
/// can fill it.
pub const MAX_WAITING: usize = 256;

/// Where records go, and those that wait. One for the process, as the crate `log` has one logger.
static QUEUE: Mutex<Queue> = Mutex::new(Queue::new());

/// Lines on their way to the VM.
#[derive(Debug)]
pub struct Queue {
    goes_to_vm: bool,
    waiting: VecDeque<Line>,
    /// Records that found no room since the last line was taken.
    lost: u64,
}

impl Queue {
    /// Empty; records go to stderr.
    pub const fn new() -> Queue {
        Queue {
            goes_to_vm: false,
            waiting: VecDeque::new(),
            lost: 0,
        }
    }

    /// Appends a line, if there is room for it.
    pub fn push(&mut self, line: Line) {
        match self.waiting.len() < MAX_WAITING {
            true => self.waiting.push_back(line),
            false => self.lost += 1,
        }
    }

    /// The line that waits longest; after the last of them, how many were lost.
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
    // A panic ends the process; until then the lines are as good as before.
    QUEUE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// There is a VM that takes lines: it has been said HELLO to.
pub fn begin() {
    queue().goes_to_vm = true;
}

/// The next line for the VM.
pub fn next() -> Option<Line> {
    queue().pop()
}

/// Nobody takes lines any more. What waits goes to stderr, as does everything from now on.
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

/// The process's logger.
#[derive(Debug)]
pub struct Journal<L> {
    stderr: L,
}

impl<L: Log> Journal<L> {
    /// `stderr` also decides which records count.
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
    /// That of a record.
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

    /// As the VM writes it.
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

/// A record with its facts. What files, peers and nodes are called has no control characters in the log.
pub fn line(record: &Record<'_>) -> Line {
    let text = one_line(&record.args().to_string(), MAX_LINE);
    let mut line = Line::new(Level::of(record.metadata()), text);
    // Unknown keys are none of the VM's business.
    let _ = record.key_values().visit(&mut Facts(&mut line));
    line
}

/// One line without control characters, cut where it gets longer than `limit` bytes.
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
