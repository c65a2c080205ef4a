//! The readiness loop: waits for the VM, the peers and signals, and gives each its turn.
//!
//! mio reports readiness once (edge-triggered), so a ready source is remembered until a read or write
//! returns `WouldBlock`. No turn is longer than one buffer, and nothing here waits for one particular
//! peer, or for the VM.

use crate::journal;
use crate::log_line::{Cause, NOTICE};
use crate::os;
use crate::port::pipes::{CommandPipe, ReportPipe, protocol_error};
use crate::port::protocol::{Report, VERSION, WINDOW};
use crate::switchboard::Switchboard;
use crate::token::Source;
use crate::wait::BusyPoll;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook_mio::v1_0::Signals;
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd};
use std::thread;
use std::time::{Duration, Instant};

/// How long peers may take to read what the VM sent them before it ended. It is short because people
/// expect the sidecar to end with the VM.
const SHUTDOWN: Duration = Duration::from_millis(500);

/// Most events that one poll returns.
const EVENTS: usize = 256;

/// The running sidecar. `I` is the pipe from the VM, `O` the pipe to it.
pub struct EventLoop<I, O> {
    poll: Poll,
    events: Events,
    busy_poll: BusyPoll,
    signals: Option<Signals>,
    commands: CommandPipe<I>,
    reports: ReportPipe<O>,
    switchboard: Switchboard,
    /// Lines of the table of SIGUSR1 that are not in the log yet. There can be more than the journal holds.
    table: VecDeque<String>,
}

impl<I: AsFd, O: AsFd> EventLoop<I, O> {
    /// Takes over the pipes and queues HELLO. `spin` is how long a wait may spin before it blocks.
    ///
    /// # Errors
    /// If the pipes cannot be registered for readiness events.
    pub fn new(stdin: I, stdout: O, spin: Duration) -> io::Result<Self> {
        let poll = Poll::new()?;
        let registry = poll.registry();
        for (pipe, source, interest) in [
            (stdin.as_fd(), Source::Stdin, Interest::READABLE),
            (stdout.as_fd(), Source::Stdout, Interest::WRITABLE),
        ] {
            os::set_nonblocking(pipe)?;
            os::enlarge_pipe(pipe);
            registry.register(&mut SourceFd(&pipe.as_raw_fd()), source.into(), interest)?;
        }
        let switchboard = Switchboard::new(registry)?;
        let mut reports = ReportPipe::new(stdout);
        reports.queue().push(&Report::Hello {
            version: VERSION,
            window: WINDOW,
            release: env!("CARGO_PKG_VERSION").into(),
        });
        journal::begin();
        Ok(EventLoop {
            poll,
            events: Events::with_capacity(EVENTS),
            busy_poll: BusyPoll::new(spin),
            signals: None,
            commands: CommandPipe::new(stdin),
            reports,
            switchboard,
            table: VecDeque::new(),
        })
    }

    /// Catches the signals that would end the process: systemd signals every process of a service at once,
    /// but the VM decides when the sidecar ends.
    ///
    /// # Errors
    /// If the handlers cannot be installed.
    pub fn catch_signals(&mut self) -> io::Result<()> {
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1])?;
        self.poll
            .registry()
            .register(&mut signals, Source::Signals.into(), Interest::READABLE)?;
        self.signals = Some(signals);
        Ok(())
    }

    /// Runs until the VM closes the port, and then delivers what is left.
    ///
    /// # Errors
    /// If the VM violates the protocol, or if a system call fails that should not.
    pub fn run(mut self) -> io::Result<()> {
        while self.turn(None)? {}
        log::debug!("the VM has closed the port");
        self.shut_down()
    }

    /// Gives the VM and every peer one turn, and returns false once the VM is gone. With nothing to do, it
    /// first waits, but not longer than `limit`.
    ///
    /// # Errors
    /// The same as those of [`run`](Self::run).
    pub fn turn(&mut self, limit: Option<Duration>) -> io::Result<bool> {
        self.report_lines();
        if !self.write_reports()? {
            return Ok(false);
        }
        let deadline = self.switchboard.deadline(self.reports.has_room());
        match self.has_work() {
            true => self.collect(Some(Duration::ZERO))?,
            false => self.wait(earlier(limit, deadline))?,
        }
        if deadline.is_some() {
            self.switchboard.tick(Instant::now(), self.reports.queue());
        }
        let vm_lives = self.read_commands()?;
        let reports = self.reports.queue();
        self.switchboard.write(reports);
        self.switchboard.accept(reports);
        self.switchboard.read(reports);
        Ok(vm_lives)
    }

    /// True if the last turn began with readiness events. Only tests use it.
    pub fn had_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// True if the next turn has work to do without waiting for readiness.
    pub fn has_work(&self) -> bool {
        let has_room = self.reports.has_room();
        self.commands.is_readable()
            || self.switchboard.has_work(has_room)
            || has_room && (journal::is_waiting() || !self.table.is_empty())
    }

    // --- the port --------------------------------------------------------------------------------

    /// Lines of the log give way to all else: they wait while the VM does not keep up. A line of the table
    /// goes to the journal only when the journal is empty, so that the table never fills it.
    fn report_lines(&mut self) {
        while self.reports.has_room() {
            if let Some(line) = journal::next() {
                self.reports.queue().push(&Report::Log(line));
            } else if let Some(line) = self.table.pop_front() {
                log_table_line(&line);
            } else {
                return;
            }
        }
    }

    /// Writes reports until the pipe is full; false if the VM is gone.
    fn write_reports(&mut self) -> io::Result<bool> {
        let switchboard = &mut self.switchboard;
        self.reports
            .write(|pipe, conn, missing| switchboard.splice_to(pipe, conn, missing))
    }

    /// Reads from the VM once and handles everything that this brings; false at the end of input.
    fn read_commands(&mut self) -> io::Result<bool> {
        let switchboard = &mut self.switchboard;
        if !self.commands.is_readable() {
            return Ok(true);
        }
        let splice = |pipe: &I, conn, limit| switchboard.splice_from(pipe, conn, limit);
        if self.commands.splice(splice) {
            return Ok(true);
        }
        if !self.commands.read()? {
            return Ok(false);
        }
        let reports = self.reports.queue();
        while let Some(input) = self.commands.next()? {
            switchboard.input(input, reports).map_err(protocol_error)?;
        }
        Ok(true)
    }

    // --- readiness -------------------------------------------------------------------------------

    /// Waits for readiness, and spins first if the wait is expected to be short. Between polls it yields
    /// the processor to other processes.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        if timeout == Some(Duration::ZERO) {
            return self.collect(timeout);
        }
        let start = Instant::now();
        if self.commands.take_spliced() | self.reports.take_spliced() {
            self.busy_poll.spliced(start);
        }
        let budget = self.busy_poll.budget(start);
        while start.elapsed() < budget {
            self.collect(Some(Duration::ZERO))?;
            if !self.events.is_empty() {
                self.busy_poll.spun(start.elapsed());
                return Ok(());
            }
            thread::yield_now();
        }
        self.collect(timeout)?;
        self.busy_poll.blocked(start.elapsed(), !budget.is_zero());
        Ok(())
    }

    /// Polls for at most `timeout`, and records which sources are ready.
    fn collect(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            result => result?,
        }
        for event in &self.events {
            match Source::from(event.token()) {
                Source::Stdin => self.commands.ready(event.is_read_closed()),
                Source::Stdout => self.reports.ready(),
                Source::Signals => {
                    handle_signals(&mut self.signals, &mut self.switchboard, &mut self.table);
                }
                source => self.switchboard.ready(source, event),
            }
        }
        Ok(())
    }

    // --- the end ---------------------------------------------------------------------------------

    /// Delivers what the VM has sent, and gives up on peers that do not read it in time.
    fn shut_down(&mut self) -> io::Result<()> {
        journal::end();
        self.table.drain(..).for_each(|line| log_table_line(&line));
        let deadline = Instant::now() + SHUTDOWN;
        self.switchboard.begin_shutdown(self.reports.queue());
        // A failed write of a report can be the first sign that the VM is gone. Its last commands may then
        // still be in the other pipe.
        let mut all_read = false;
        while !(all_read && self.switchboard.is_delivered()) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                log::info!("the VM ended before its peers had read everything");
                return Ok(());
            }
            if !all_read {
                all_read = !self.read_commands()?;
                self.switchboard.write(self.reports.queue());
                if self.commands.is_readable() {
                    continue;
                }
            }
            self.collect(Some(left))?;
        }
        Ok(())
    }
}

fn earlier(limit: Option<Duration>, deadline: Option<Instant>) -> Option<Duration> {
    let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
    limit.into_iter().chain(left).min()
}

fn log_table_line(line: &str) {
    log::info!(target: NOTICE, reason = Cause::Signal; "{line}");
}

/// Handles the signals that have arrived. SIGUSR1 replaces what is left of an earlier `table`.
fn handle_signals(
    signals: &mut Option<Signals>,
    switchboard: &mut Switchboard,
    table: &mut VecDeque<String>,
) {
    for signal in signals.iter_mut().flat_map(Signals::pending) {
        match signal {
            SIGUSR1 => *table = switchboard.describe().into(),
            SIGTERM => log::info!(reason = Cause::Signal; "SIGTERM: continuing until the VM ends"),
            SIGINT => log::info!(reason = Cause::Signal; "SIGINT: continuing until the VM ends"),
            SIGHUP => {
                log::info!(
                    reason = Cause::Signal;
                    "SIGHUP: continuing until the VM ends, and checking the socket files"
                );
                switchboard.check_listeners();
            }
            other => log::info!("signal {other}: continuing until the VM ends"),
        }
    }
}
