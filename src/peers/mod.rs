//! The connections to peer nodes: their sockets, their queues, and the order of their turns. How a peer was
//! admitted, and how the VM is reached, are not known here.

pub mod connection;
pub mod splice;
pub mod table;
pub mod window;
