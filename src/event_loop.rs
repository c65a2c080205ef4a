//! The readiness loop: waits for the VM, the peers and signals, and gives each its turn.
//!
//! mio reports readiness once (edge-triggered), so everything that is ready is remembered until a
//! read or write says `WouldBlock`. No turn is longer than one buffer, and nothing here waits for
//! one particular peer, or for the VM.

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
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd};
use std::thread;
use std::time::{Duration, Instant};

/// How long peers may take to read what the VM left behind for them. The VM is gone, and people
/// expect the sidecar to be gone with it.
const SHUTDOWN: Duration = Duration::from_millis(500);

/// Events that one look at the system may bring.
const EVENTS: usize = 256;

/// The sidecar at work: `I` and `O` are the pipes from and to the VM.
pub struct EventLoop<I, O> {
    poll: Poll,
    events: Events,
    busy_poll: BusyPoll,
    signals: Option<Signals>,
    commands: CommandPipe<I>,
    reports: ReportPipe<O>,
    switchboard: Switchboard,
}

impl<I: AsFd, O: AsFd> EventLoop<I, O> {
    /// Takes over the pipes and says HELLO. `spin` is how long a wait may spin before it blocks.
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
        });
        Ok(EventLoop {
            poll,
            events: Events::with_capacity(EVENTS),
            busy_poll: BusyPoll::new(spin),
            signals: None,
            commands: CommandPipe::new(stdin),
            reports,
            switchboard,
        })
    }

    /// Takes over the signals that would end the process: systemd signals every process of a service
    /// at once, and when to end is for the VM to say.
    pub fn catch_signals(&mut self) -> io::Result<()> {
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1])?;
        self.poll
            .registry()
            .register(&mut signals, Source::Signals.into(), Interest::READABLE)?;
        self.signals = Some(signals);
        Ok(())
    }

    /// Works until the VM closes the port.
    ///
    /// # Errors
    /// When the VM breaks the protocol, or the system fails at what cannot fail.
    pub fn run(mut self) -> io::Result<()> {
        while self.turn(None)? {}
        log::debug!("the VM has closed the port");
        self.shut_down()
    }

    /// One turn of everybody; false when the VM is gone. If there is nothing to do, it waits for
    /// `limit` at most.
    ///
    /// # Errors
    /// Those of [`run`](Self::run).
    pub fn turn(&mut self, limit: Option<Duration>) -> io::Result<bool> {
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

    /// True if the last turn began with news of readiness.
    pub fn had_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// True if the next turn has something to do without waiting for readiness.
    pub fn has_work(&self) -> bool {
        self.commands.is_readable() || self.switchboard.has_work(self.reports.has_room())
    }

    // --- the port --------------------------------------------------------------------------------

    /// Writes reports as far as the VM takes them; false when it is gone.
    fn write_reports(&mut self) -> io::Result<bool> {
        let switchboard = &mut self.switchboard;
        self.reports
            .write(|pipe, conn, missing| switchboard.splice_to(pipe, conn, missing))
    }

    /// One read of what the VM says, and all that it means; false at its end.
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

    /// Waits for readiness, and spins at first if that is worth it. Other processes that want the
    /// processor have it meanwhile.
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
                return Ok(());
            }
            thread::yield_now();
        }
        self.collect(timeout)?;
        self.busy_poll.waited(start.elapsed());
        Ok(())
    }

    /// Takes note of what is ready, at the latest after `timeout`.
    fn collect(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            result => result?,
        }
        for event in &self.events {
            match Source::from(event.token()) {
                Source::Stdin => self.commands.ready(event.is_read_closed()),
                Source::Stdout => self.reports.ready(),
                Source::Signals => handle_signals(&mut self.signals, &self.switchboard),
                source => self.switchboard.ready(source, event),
            }
        }
        Ok(())
    }

    // --- the end ---------------------------------------------------------------------------------

    /// What the VM gave us reaches the peers that read; nobody waits long for those that do not.
    fn shut_down(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + SHUTDOWN;
        self.switchboard.begin_shutdown(self.reports.queue());
        // A report that nobody reads can be the first sign of a VM that is gone. What it has written
        // before is in the pipe then.
        let mut all_read = false;
        while !(all_read && self.switchboard.is_delivered()) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                log::info!("the VM is gone before its peers had read everything");
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

fn handle_signals(signals: &mut Option<Signals>, switchboard: &Switchboard) {
    for signal in signals.iter_mut().flat_map(Signals::pending) {
        match signal {
            SIGUSR1 => switchboard.log_table(),
            SIGTERM => log::info!("SIGTERM: going on until the VM ends"),
            SIGINT => log::info!("SIGINT: going on until the VM ends"),
            SIGHUP => log::info!("SIGHUP: going on until the VM ends"),
            other => log::info!("signal {other}: going on until the VM ends"),
        }
    }
}
