//! What the kernel knows about processes, from proc(5). On systems without it, nothing is known.

use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
use std::fs;
use std::time::{Duration, SystemTime};
use uds_dist::peer::Credentials;
use uds_dist::process;

/// The process of the node whose socket `listener` listens at.
pub fn node_of(listener: &Credentials) -> Option<u32> {
    Some(process::node_of(listener.process()?, listener.uid))
}

/// Whether a process with this id exists, whichever user it belongs to.
pub fn is_there(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| test_kill_process(pid) != Err(Errno::SRCH))
}

/// The start time of a process.
pub fn started(pid: u32) -> Option<SystemTime> {
    /// Index of the field in proc_pid_stat(5), counted from the one after the name.
    const START_TIME: usize = 22 - 3;
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    let (_, behind_name) = stat.rsplit_once(") ")?;
    let ticks: u64 = behind_name.split(' ').nth(START_TIME)?.parse().ok()?;
    let milliseconds = ticks.checked_mul(1000)? / rustix::param::clock_ticks_per_second();
    let system = fs::read_to_string("/proc/stat").ok()?;
    let boot = system
        .lines()
        .find_map(|line| line.strip_prefix("btime "))?;
    let boot = Duration::from_secs(boot.parse().ok()?);
    SystemTime::UNIX_EPOCH.checked_add(boot + Duration::from_millis(milliseconds))
}

/// A process that has this socket open, among those that we may inspect.
pub fn holder_of(inode: u32) -> Option<u32> {
    let socket = format!("socket:[{inode}]");
    let holds = |pid: &u32| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd"));
        let mut links = descriptors
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| fs::read_link(entry.path()).ok());
        links.any(|link| link.as_os_str() == socket.as_str())
    };
    let entries = fs::read_dir("/proc").ok()?.flatten();
    let mut pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.find(holds)
}
