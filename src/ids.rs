//! The numbers that the VM and its sidecar use for connections and listeners.

/// Number of a connection, which the VM and its sidecar use for it.
pub type ConnId = u32;

/// Connection numbers are below this, so that one fits into a readiness token on every machine.
pub const MAX_CONN: u32 = 1 << 30;

/// Number of a listener, which the VM and its sidecar use for it.
pub type ListenerId = u32;

/// Listener numbers are below this. A VM has one listener, and two while it moves to another address.
pub const MAX_LISTENERS: u32 = 16;
