//! The VM's port: the protocol that the VM and its sidecar speak on stdin and stdout, its codec, and the
//! buffers and pipes that carry it. Nothing here knows of sockets.

pub mod buffer;
pub mod codec;
pub mod pipes;
pub mod protocol;
pub mod queue;
pub mod reader;

/// Smallest piece of DATA, in bytes, that is spliced between pipe and socket inside the kernel. Reading and
/// writing a smaller piece is cheaper than the system call that splicing takes.
pub const MIN_SPLICE: usize = 16 << 10;
