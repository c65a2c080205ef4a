//! What the kernel says about processes, by proc(5). Where there is no such table nothing is known.

use std::fs;
use uds_dist::protocol::Credentials;

/// The process of the node whose socket `listener` listens at: the VM where that is a sidecar's
/// parent's parent, and otherwise the listener itself. Nobody can make it a process of somebody else's.
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
