//! Entry point: the sidecar of a VM, or a command of somebody's.

use std::env;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use uds_dist::client;
use uds_dist::client::failure::Kind;
use uds_dist::event_loop::EventLoop;

/// Environment variable with a log filter, as env_logger has them: `debug`, `warn`, ...
const LOG_FILTER: &str = "UDS_DIST_LOG";

fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    match &arguments[..] {
        // First, so that a VM does not wait for what only people need.
        [word] if word == "sidecar" => sidecar(),
        [] => client::run(["--help".into()]),
        _ => client::run(arguments),
    }
}

fn sidecar() -> ExitCode {
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
    match EventLoop::new().and_then(EventLoop::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
    }
}
