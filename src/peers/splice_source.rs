//! The source of a splice to the VM that has been announced but not completed.

use super::connection::Connection;
use crate::ids::ConnId;

/// The connection whose announced bytes the VM is waiting for. If it ends in the meantime, its socket is
/// kept open here until the VM has them.
pub struct SpliceSource {
    conn: ConnId,
    /// The connection itself, once it has left the table.
    ended: Option<Connection>,
}

impl SpliceSource {
    /// A connection that is in the table.
    pub fn new(conn: ConnId) -> SpliceSource {
        SpliceSource { conn, ended: None }
    }

    /// Takes a connection that has left the table. Unless the VM is waiting for its bytes, its socket is
    /// closed.
    pub fn connection_ended(&mut self, conn: ConnId, connection: Connection) {
        if self.conn == conn {
            self.ended = Some(connection);
        }
    }

    /// The connection, if it has left the table already.
    pub fn ended(&mut self) -> Option<&mut Connection> {
        self.ended.as_mut()
    }
}
