//! The VM's port: what the VM and its sidecar say to each other on stdin and stdout, and how bytes
//! become commands and reports become bytes. Sockets are not known here.

pub mod buffer;
pub mod codec;
pub mod pipes;
pub mod protocol;
pub mod queue;
pub mod reader;

/// Bytes of DATA from which on a system call of their own is worth it, which splices them between pipe
/// and socket inside the kernel. Fewer are cheaper to read and write.
pub const MIN_SPLICE: usize = 16 << 10;
