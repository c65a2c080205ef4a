//! Entry point of the sidecar, which a VM starts as a port program: it speaks the port protocol on
//! stdin and stdout, and ends with the VM.

use std::env;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;
use uds_dist::event_loop::EventLoop;

/// Environment variable with a log filter in the syntax of env_logger, such as `debug` or `warn`.
const LOG_FILTER: &str = "UDS_DIST_LOG";

/// Environment variable with the busy-poll budget in microseconds: how long the loop may spin
/// before it blocks.
const SPIN: &str = "UDS_DIST_SPIN";

/// More than this would be no short wait on any machine.
const MAX_SPIN: u64 = 1000;

/// Several times what a message and its answer take between two nodes that are awake.
const DEFAULT_SPIN: u64 = 50;

/// Exit status of a program that was called wrongly: EX_USAGE of sysexits.h.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    let Some(vm_pid) = vm_pid(&arguments) else {
        return misused("its only argument is the number of the VM's process");
    };
    if io::stdin().is_terminal() {
        return misused("stdin is a terminal, not a VM");
    }
    set_up_log();
    uds_dist::os::give_up_privileges();
    let spin = match spin() {
        Ok(spin) => spin,
        Err(problem) => {
            log::error!("{problem}");
            return ExitCode::from(USAGE);
        }
    };
    match run(vm_pid, spin) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(vm_pid: Option<u32>, spin: Duration) -> io::Result<()> {
    let mut event_loop = EventLoop::new(io::stdin(), io::stdout(), vm_pid, spin)?;
    event_loop.catch_signals()?;
    event_loop.run()
}

/// The process that may have sockets handed over, if the VM names it; `None` for other arguments.
fn vm_pid(arguments: &[OsString]) -> Option<Option<u32>> {
    match arguments {
        [] => Some(None),
        [number] => number.to_str()?.parse().ok().map(Some),
        _ => None,
    }
}

/// People start a sidecar only by mistake: one line says how it is meant.
fn misused(problem: &str) -> ExitCode {
    eprintln!(
        "uds_dist_sidecar: {problem}; a VM starts its sidecar itself: \
         erl -pa <uds_dist>/ebin -proto_dist uds -no_epmd -sname myapp"
    );
    ExitCode::from(USAGE)
}

fn set_up_log() {
    env_logger::Builder::new()
        .filter_level(log::LevelFilter::Info)
        .parse_env(LOG_FILTER)
        .format(|out, record| {
            let level = record.level().as_str().to_lowercase();
            writeln!(
                out,
                "uds_dist[{}] {level}: {}",
                std::process::id(),
                record.args()
            )
        })
        .init();
}

/// On a single processor, spinning would keep the processes that it waits for from running.
fn spin() -> Result<Duration, String> {
    let text = env::var_os(SPIN).unwrap_or_default();
    let text = text.to_string_lossy();
    let microseconds = match text.parse() {
        Ok(number) if number <= MAX_SPIN => number,
        _ if !text.is_empty() => {
            return Err(format!(
                "{SPIN}={text} must be a number of microseconds from 0 to {MAX_SPIN}"
            ));
        }
        _ if thread::available_parallelism().is_ok_and(|count| count.get() > 1) => DEFAULT_SPIN,
        _ => 0,
    };
    Ok(Duration::from_micros(microseconds))
}
