//! What the other files of this directory have in common.

use std::io;
use std::os::fd::OwnedFd;

/// Makes a bound socket a listener. The kernel caps `backlog` at net.core.somaxconn.
pub fn begin_listening(socket: &OwnedFd, backlog: u32) -> io::Result<()> {
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    Ok(rustix::net::listen(socket, backlog)?)
}

/// Logs a warning if the process could not do `what`, which it does not depend on.
pub fn warn_unless(what: &str, result: io::Result<()>) {
    if let Err(error) = result {
        log::warn!("cannot {what}: {error}");
    }
}
