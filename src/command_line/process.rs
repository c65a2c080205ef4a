//! What the kernel says about processes, by proc(5). Where there is no such table nothing is known.

use std::fs;
use std::time::{Duration, SystemTime};
use uds_dist::peer::Credentials;

/// The process of the node whose socket `listener` listens at: the VM where the listener is
/// its sidecar, and otherwise the listener itself. It is always a process of the listener's user.
pub fn node_of(listener: &Credentials) -> Option<u32> {
    let process = listener.process()?;
    Some(vm_of(process, listener.uid).unwrap_or(process))
}

/// A VM starts its port programs by erl_child_setup, a process between it and them.
fn vm_of(sidecar: u32, uid: u32) -> Option<u32> {
    const BETWEEN: &str = "erl_child_setup";
    let setup = Status::of(sidecar, uid)?.parent;
    let between = Status::of(setup, uid)?;
    let vm = (between.name == BETWEEN).then_some(between.parent)?;
    Status::of(vm, uid).map(|_| vm)
}

/// When a process was started.
pub fn started(pid: u32) -> Option<SystemTime> {
    /// Of proc_pid_stat(5), counted from the one behind the name.
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

/// A process that has this socket open, of those that we may look into.
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

struct Status {
    name: String,
    parent: u32,
}

impl Status {
    /// That of a process of this user.
    fn of(pid: u32, uid: u32) -> Option<Status> {
        let text = fs::read(format!("/proc/{pid}/status")).ok()?;
        let text = String::from_utf8_lossy(&text);
        let field = |name: &str| {
            let mut lines = text.lines();
            lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"))
        };
        // Real, effective, saved and file system's.
        let effective = field("Uid")?.split('\t').nth(1)?;
        (effective.parse() == Ok(uid)).then_some(())?;
        Some(Status {
            name: field("Name")?.into(),
            parent: field("PPid")?.parse().ok()?,
        })
    }
}
