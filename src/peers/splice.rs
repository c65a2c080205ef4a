//! A splice from a socket to the VM that has been announced and is not done.

use super::connection::Connection;
use crate::port::protocol::ConnId;

/// The connection whose bytes the VM awaits. It may end meanwhile: then its socket stays open here until
/// the bytes are with the VM, as they were announced.
pub struct PendingSplice {
    conn: ConnId,
    ended: Option<Connection>,
}

impl PendingSplice {
    /// The VM awaits bytes of this connection, which is in the table.
    pub fn new(conn: ConnId) -> PendingSplice {
        PendingSplice { conn, ended: None }
    }

    /// A connection has left the table; its socket is closed if the VM awaits nothing of it.
    pub fn connection_ended(&mut self, conn: ConnId, connection: Connection) {
        if self.conn == conn {
            self.ended = Some(connection);
        }
    }

    /// The connection, if it has left the table.
    pub fn ended(&mut self) -> Option<&mut Connection> {
        self.ended.as_mut()
    }
}
