//! Entry point of the sidecar, which the VM starts as a port program. It speaks the port protocol on stdin
//! and stdout, and exits when the VM does.

use env_logger::Target;
use log::LevelFilter;
use std::env;
use std::io::{self, IsTerminal, Stderr, Write};
use std::process::ExitCode;
use std::time::Duration;
use uds_dist::event_loop::EventLoop;
use uds_dist::journal::{self, Journal};
use uds_dist::log_line::Level;
use uds_dist::os;

/// Environment variable with the least important level that is logged.
const LOG_LEVEL: &str = "UDS_DIST_LOG";

/// Environment variable with the busy-poll budget in microseconds: how long the loop may spin before it
/// blocks.
const SPIN: &str = "UDS_DIST_SPIN";

/// Largest busy-poll budget, in microseconds. No machine needs longer to wake a sleeping processor.
const MAX_SPIN: u64 = 1000;

/// Exit status for wrong usage: EX_USAGE of sysexits.h.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    if env::args_os().len() > 1 {
        return misused("it takes no arguments");
    }
    if io::stdin().is_terminal() {
        return misused("stdin is a terminal, not a VM");
    }
    if let Err(problem) = set_up_log() {
        return misconfigured(&problem);
    }
    os::give_up_privileges();
    let spin = match spin() {
        Ok(spin) => spin,
        Err(problem) => return misconfigured(&problem),
    };
    if !(os::is_pipe(io::stdin()) && os::is_pipe(io::stdout())) {
        return misused("stdin and stdout are not pipes to a VM");
    }
    let result = run(spin);
    // Nobody reads our reports any more.
    journal::end();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(spin: Duration) -> io::Result<()> {
    let mut event_loop = EventLoop::new(io::stdin(), io::stdout(), spin)?;
    event_loop.catch_signals()?;
    event_loop.run()
}

/// Explains in one line how the sidecar is meant to be started. People start it only by mistake.
fn misused(problem: &str) -> ExitCode {
    eprintln!(
        "uds_dist_sidecar: {problem}; a VM starts its sidecar itself: \
         erl -pa <uds_dist>/ebin -proto_dist uds -no_epmd -sname myapp"
    );
    ExitCode::from(USAGE)
}

/// The VM checks what it passes on; this is for those who start a sidecar without it.
fn misconfigured(problem: &str) -> ExitCode {
    eprintln!("uds_dist[{}] error: {problem}", std::process::id());
    ExitCode::from(USAGE)
}

fn set_up_log() -> Result<(), String> {
    let level = level()?;
    let stderr = env_logger::Builder::new()
        .filter_level(level)
        .target(Target::Pipe(Box::new(Impatient {
            stderr: io::stderr(),
            is_stuck: false,
        })))
        .format(|out, record| {
            let level = Level::of(record.metadata()).word();
            writeln!(
                out,
                "uds_dist[{}] {level}: {}",
                std::process::id(),
                record.args()
            )
        })
        .build();
    log::set_max_level(level);
    log::set_boxed_logger(Box::new(Journal::new(stderr))).map_err(|error| error.to_string())
}

/// How long a line may wait for room on stderr.
const STDERR_LIMIT: Duration = Duration::from_millis(100);

/// A stderr that nobody has to read. Once it has been full for long, lines that find no room are lost: at the
/// end of the VM, peers would otherwise have to wait until somebody reads it.
struct Impatient {
    stderr: Stderr,
    is_stuck: bool,
}

impl Write for Impatient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let limit = match self.is_stuck {
            true => Duration::ZERO,
            false => STDERR_LIMIT,
        };
        self.is_stuck = !os::becomes_writable(&self.stderr, limit);
        match self.is_stuck {
            true => Ok(bytes.len()),
            false => self.stderr.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stderr.flush()
    }
}

fn level() -> Result<LevelFilter, String> {
    let word = env::var_os(LOG_LEVEL).unwrap_or_default();
    let word = word.to_string_lossy();
    Ok(match &*word {
        "off" => LevelFilter::Off,
        "error" => LevelFilter::Error,
        "warn" => LevelFilter::Warn,
        "" | "info" => LevelFilter::Info,
        "debug" => LevelFilter::Debug,
        _ => {
            return Err(format!(
                "{LOG_LEVEL}={word} must be off, error, warn, info or debug"
            ));
        }
    })
}

/// The busy-poll budget. The VM sets it, as it knows the number of processors; unset, there is no spinning.
fn spin() -> Result<Duration, String> {
    let text = env::var_os(SPIN).unwrap_or_default();
    let text = text.to_string_lossy();
    let microseconds = match text.parse() {
        Ok(number) if number <= MAX_SPIN => number,
        _ if text.is_empty() => 0,
        _ => {
            return Err(format!(
                "{SPIN}={text} must be a number of microseconds from 0 to {MAX_SPIN}"
            ));
        }
    };
    Ok(Duration::from_micros(microseconds))
}
