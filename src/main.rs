//! Entry point: the sidecar of a VM, or a command of somebody's.

use std::env;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;
use uds_dist::client;
use uds_dist::client::failure::Kind;
use uds_dist::event_loop::EventLoop;

/// Environment variable with a log filter, as env_logger has them: `debug`, `warn`, ...
const LOG_FILTER: &str = "UDS_DIST_LOG";

/// Environment variable with the time that the sidecar may stay awake in a wait, in microseconds.
const SPIN: &str = "UDS_DIST_SPIN";

/// More than this would be no short wait on any machine.
const MAX_SPIN: u64 = 1000;

/// Several times what a message and its answer take between two nodes that are awake.
const DEFAULT_SPIN: u64 = 50;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    match &arguments[..] {
        // First, so that a VM does not wait for what only people need.
        [word] if word == "sidecar" => sidecar(None),
        [word, text] if word == "sidecar" => match text.to_str().and_then(|text| text.parse().ok())
        {
            Some(vm_pid) => sidecar(Some(vm_pid)),
            None => client::run(arguments),
        },
        [] => client::run(["--help".into()]),
        _ => client::run(arguments),
    }
}

/// `vm_pid` is the VM's process: the one to which sockets are handed over, if it says so.
fn sidecar(vm_pid: Option<u32>) -> ExitCode {
    if io::stdin().is_terminal() {
        eprintln!(
            "uds_dist: stdin is a terminal, not a VM, which starts its sidecar itself: \
             erl -pa <uds_dist>/ebin -proto_dist uds -no_epmd -sname myapp"
        );
        return Kind::Usage.into();
    }
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
    uds_dist::os::give_up_privileges();
    let spin = match spin() {
        Ok(spin) => spin,
        Err(problem) => {
            log::error!("{problem}");
            return Kind::Usage.into();
        }
    };
    match EventLoop::new(vm_pid, spin).and_then(EventLoop::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Where there is one processor, to stay awake would keep the others from it.
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
