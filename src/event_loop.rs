//! The readiness loop: waits for the VM, the peers and signals, and gives each its turn.
//!
//! mio reports readiness once (edge-triggered), so everything that is ready is remembered until a
//! read or write says `WouldBlock`. No turn is longer than one buffer, and nothing here waits for
//! one particular peer, or for the VM.

use crate::alertness::Alertness;
use crate::handover::Handover;
use crate::os;
use crate::protocol::{FEATURES, HANDSHAKE_WINDOW, Report, VERSION, WINDOW};
use crate::switchboard::{FIRST_TOKEN, Switchboard};
use crate::vm_port::VmPort;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook_mio::v1_0::Signals;
use std::io::{self, ErrorKind, Stdin, Stdout};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

const STDIN: Token = Token(0);
const STDOUT: Token = Token(1);
const SIGNALS: Token = Token(2);
const HANDOVER: Token = Token(3);
const _: () = assert!(HANDOVER.0 < FIRST_TOKEN);

/// How long peers may take to read what the VM left behind for them. The VM is gone, and people
/// expect the sidecar to be gone with it.
const SHUTDOWN: Duration = Duration::from_millis(500);

/// The sidecar at work.
pub struct EventLoop {
    poll: Poll,
    alertness: Alertness,
    signals: Signals,
    port: VmPort<Stdin, Stdout>,
    switchboard: Switchboard,
}

impl EventLoop {
    /// Takes over stdin and stdout and says HELLO. `vm_pid` is the process that may have sockets handed
    /// over, `spin` how long the loop may stay awake while it waits.
    pub fn new(vm_pid: Option<u32>, spin: Duration) -> io::Result<EventLoop> {
        let (stdin, stdout) = (io::stdin(), io::stdout());
        os::set_nonblocking(&stdin)?;
        os::set_nonblocking(&stdout)?;
        os::enlarge_pipe(&stdin);
        os::enlarge_pipe(&stdout);
        let poll = Poll::new()?;
        let registry = poll.registry();
        registry.register(&mut SourceFd(&stdin.as_raw_fd()), STDIN, Interest::READABLE)?;
        registry.register(
            &mut SourceFd(&stdout.as_raw_fd()),
            STDOUT,
            Interest::WRITABLE,
        )?;
        // systemd signals every process of a service at once. When to end is for the VM to say.
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1])?;
        registry.register(&mut signals, SIGNALS, Interest::READABLE)?;
        let handover = vm_pid.map_or_else(Handover::off, |vm_pid| {
            Handover::offer(vm_pid, registry, HANDOVER)
        });
        let channel = handover.address();
        let mut switchboard = Switchboard::new(registry.try_clone()?, handover);
        switchboard.reports.push(&Report::Hello {
            version: VERSION,
            features: FEATURES,
            window: WINDOW,
            handshake_window: HANDSHAKE_WINDOW,
            channel,
            release: env!("CARGO_PKG_VERSION").into(),
        });
        Ok(EventLoop {
            poll,
            alertness: Alertness::new(spin),
            signals,
            port: VmPort::new(stdin, stdout),
            switchboard,
        })
    }

    /// Works until the VM closes the port.
    ///
    /// # Errors
    /// When the VM breaks the protocol, or the system fails at what cannot fail.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(256);
        while self.turn(&mut events)? {}
        log::debug!("the VM has closed the port");
        self.shut_down(&mut events)
    }

    /// One turn of everybody; false when the VM is gone.
    fn turn(&mut self, events: &mut Events) -> io::Result<bool> {
        if !self.port.write(&mut self.switchboard)? {
            return Ok(false);
        }
        let timeout = if self.port.is_readable() || self.switchboard.has_work() {
            Some(Duration::ZERO)
        } else {
            self.switchboard
                .deadline()
                .map(|at| at.saturating_duration_since(Instant::now()))
        };
        match timeout {
            Some(Duration::ZERO) => self.collect(events, timeout)?,
            _ => self.wait(events, timeout)?,
        }
        if timeout.is_some() {
            self.switchboard.tick(Instant::now());
        }
        let vm_lives = self.port.read(&mut self.switchboard)?;
        self.switchboard.write();
        self.switchboard.accept();
        self.switchboard.read();
        Ok(vm_lives)
    }

    /// Waits for readiness, awake at first if that is worth it. Where others want the processor, they
    /// have it meanwhile.
    fn wait(&mut self, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        let start = Instant::now();
        if self.port.take_long() {
            self.alertness.bulk(start);
        }
        let awake = self.alertness.awake(start);
        while start.elapsed() < awake {
            self.collect(events, Some(Duration::ZERO))?;
            if !events.is_empty() {
                return Ok(());
            }
            thread::yield_now();
        }
        self.collect(events, timeout)?;
        self.alertness.waited(start.elapsed());
        Ok(())
    }

    /// Takes note of what is ready, at the latest after `timeout`.
    fn collect(&mut self, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        match self.poll.poll(events, timeout) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            result => result?,
        }
        for event in events.iter() {
            match event.token() {
                STDIN => self.port.stdin_ready(event.is_read_closed()),
                STDOUT => self.port.stdout_ready(),
                SIGNALS => self.handle_signals(),
                HANDOVER => self.switchboard.handover_ready(),
                _ => self.switchboard.readiness(event),
            }
        }
        Ok(())
    }

    fn handle_signals(&mut self) {
        for signal in self.signals.pending() {
            match signal {
                SIGUSR1 => self.switchboard.log_table(),
                SIGTERM => log::info!("SIGTERM: going on until the VM ends"),
                SIGINT => log::info!("SIGINT: going on until the VM ends"),
                SIGHUP => log::info!("SIGHUP: going on until the VM ends"),
                other => log::info!("signal {other}: going on until the VM ends"),
            }
        }
    }

    /// What the VM gave us reaches the peers that read; nobody waits long for those that do not.
    fn shut_down(&mut self, events: &mut Events) -> io::Result<()> {
        let deadline = Instant::now() + SHUTDOWN;
        self.switchboard.begin_shutdown();
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
                all_read = !self.port.read(&mut self.switchboard)?;
                self.switchboard.write();
                if self.port.is_readable() {
                    continue;
                }
            }
            self.collect(events, Some(left))?;
        }
        Ok(())
    }
}
