//! Entry point of the sidecar: what to do, and where log lines go.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use uds_dist::event_loop::EventLoop;

/// Environment variable with a log filter, as env_logger has them: `debug`, `warn`, ...
const LOG_FILTER: &str = "UDS_DIST_LOG";

const ABOUT: &str = "\
uds_dist is the sidecar of an Erlang VM that clusters over Unix domain sockets.
The VM starts it, and it ends with the VM; there is nothing to do by hand.

    erl -pa <uds_dist>/ebin -proto_dist uds -no_epmd -sname myapp

Usage: uds_dist sidecar      speak the port protocol on stdin and stdout
       uds_dist --version
       uds_dist --help

Environment: UDS_DIST_LOG    what to log on stderr: error, warn, info (default), debug
Signals:     SIGUSR1         log a table of connections
";

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(|a| a.to_str()).collect();
    match arguments[..] {
        [Some("sidecar")] if io::stdin().is_terminal() => {
            eprint!("uds_dist: stdin is a terminal, not a VM\n\n{ABOUT}");
            ExitCode::from(2)
        }
        [Some("sidecar")] => sidecar(),
        [Some("--version" | "-V")] => print(&format!("uds_dist {}\n", env!("CARGO_PKG_VERSION"))),
        [] | [Some("--help" | "-h")] => print(ABOUT),
        _ => {
            eprint!("uds_dist: unknown arguments\n\n{ABOUT}");
            ExitCode::from(2)
        }
    }
}

fn sidecar() -> ExitCode {
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

fn print(text: &str) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE, // nobody reads it
    }
}
