//! Entry point of the command line.

use std::env;
use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    match &arguments[..] {
        [] => uds_dist_command_line::run(["--help".into()]),
        _ => uds_dist_command_line::run(arguments),
    }
}
