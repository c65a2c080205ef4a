//! Which process a node is, in the kernel's words: proc(5). Where there is no such table nothing is known
//! beyond the number of a process. A leaf.

use rustix::fs::{major, minor};
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;

/// The process of the node whose socket `process` listens at, as a process of the user `uid`: the VM where
/// it is the sidecar of one, and otherwise the process itself.
pub fn node_of(process: u32, uid: u32) -> u32 {
    vm_of(process, uid).unwrap_or(process)
}

/// A VM starts its port programs by erl_child_setup, a process between it and them.
fn vm_of(sidecar: u32, uid: u32) -> Option<u32> {
    const BETWEEN: &str = "erl_child_setup";
    let setup = Status::of(sidecar, uid)?.parent;
    let between = Status::of(setup, uid)?;
    let vm = (between.name == BETWEEN).then_some(between.parent)?;
    Status::of(vm, uid).map(|_| vm)
}

/// The process that holds the flock(2) of a file, if it is one that we can see.
pub fn lock_holder(file: &Metadata) -> Option<u32> {
    let (major, minor) = (major(file.dev()), minor(file.dev()));
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
/// process has locked. A process in another PID namespace is only seen from the initial one; and some file
/// systems give files other numbers there than stat(2) does.
pub fn sees_lock_holders(ours: &Metadata) -> bool {
    // PROC_PID_INIT_INO of the kernel.
    const INITIAL: &str = "pid:[4026531836]";
    fs::read_link("/proc/self/ns/pid").is_ok_and(|namespace| namespace.as_os_str() == INITIAL)
        && lock_holder(ours) == Some(std::process::id())
}

/// True if there is a process of this number, and this is its effective user.
pub fn is_of(pid: u32, uid: u32) -> bool {
    Status::of(pid, uid).is_some()
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
