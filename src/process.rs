//! Finds the process of a node, in proc(5). On systems without it, only the process that listens is known.

use crate::os;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;

/// The process of a node, given the process that listens at its socket and runs as `uid`: the VM if that is
/// a sidecar, and otherwise the process itself.
pub fn node_of(process: u32, uid: u32) -> u32 {
    vm_of(process, uid).unwrap_or(process)
}

/// The VM that has started this sidecar. It starts port programs through erl_child_setup, a process between
/// it and them.
fn vm_of(sidecar: u32, uid: u32) -> Option<u32> {
    const BETWEEN: &str = "erl_child_setup";
    let setup = Status::of(sidecar, uid)?.parent;
    let between = Status::of(setup, uid)?;
    let vm = (between.name == BETWEEN).then_some(between.parent)?;
    Status::of(vm, uid).map(|_| vm)
}

/// The process that holds the flock(2) of a file, if it is one that we can see.
pub fn lock_holder(file: &Metadata) -> Option<u32> {
    let (major, minor) = os::device(file);
    let identity = format!("{major:02x}:{minor:02x}:{}", file.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    // "1: FLOCK ADVISORY WRITE 4711 fe:00:815 0 EOF"; one that waits for a lock has "->" before its kind.
    locks.lines().find_map(|line| {
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        match fields[..] {
            [_, "FLOCK", _, _, pid, file, ..] if file == identity => pid.parse().ok(),
            _ => None,
        }
    })
}

/// True if [`lock_holder`] would see every holder of a lock in the file system of `ours`, a file that this
/// process has locked. Holders in other PID namespaces are listed only in the initial one, and on some file
/// systems, the list has other inode numbers than stat(2) returns.
pub fn sees_lock_holders(ours: &Metadata) -> bool {
    // PROC_PID_INIT_INO of the kernel.
    const INITIAL: &str = "pid:[4026531836]";
    fs::read_link("/proc/self/ns/pid").is_ok_and(|namespace| namespace.as_os_str() == INITIAL)
        && lock_holder(ours) == Some(std::process::id())
}

/// True if a process with this id exists, and `uid` is its effective user.
pub fn is_of(pid: u32, uid: u32) -> bool {
    Status::of(pid, uid).is_some()
}

struct Status {
    name: String,
    parent: u32,
}

impl Status {
    /// The status of a process; `None` if it does not exist or belongs to another user.
    fn of(pid: u32, uid: u32) -> Option<Status> {
        let text = fs::read(format!("/proc/{pid}/status")).ok()?;
        let text = String::from_utf8_lossy(&text);
        let field = |name: &str| {
            let mut lines = text.lines();
            lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"))
        };
        // The real, effective, saved and file system uid.
        let effective = field("Uid")?.split('\t').nth(1)?;
        (effective.parse() == Ok(uid)).then_some(())?;
        Some(Status {
            name: field("Name")?.into(),
            parent: field("PPid")?.parse().ok()?,
        })
    }
}
