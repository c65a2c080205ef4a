//! The sidecar's log. From HELLO until the VM goes away, records of the crate `log` are sent to the VM's log,
//! with their facts. Before and after that they go to stderr, through env_logger.
//!
//! A record can be logged at any moment and must not wait for the VM, so it is put into a bounded queue until
//! the event loop has room for it among the reports. Records that find the queue full are counted, and the
//! count is logged once there is room again. Only the logger for stderr does I/O.

use crate::log_line::{Cause, Level, Line, NOTICE, line};
use log::{Log, Metadata, Record};
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Most lines that wait for the VM. With [`MAX_LINE`](crate::log_line::MAX_LINE) and
/// [`MAX_SUBJECT`](crate::log_line::MAX_SUBJECT) this bounds their memory to half
/// a MiB. Lines that strangers can cause are limited elsewhere (`log_limit`), and the table of SIGUSR1 waits
/// in the event loop, so only the level debug or a VM that has stopped reading can fill the queue.
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

    /// True if [`pop`](Self::pop) would return a line.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty() || self.lost > 0
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

/// True if a line waits for the VM.
pub fn is_waiting() -> bool {
    queue().is_waiting()
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
