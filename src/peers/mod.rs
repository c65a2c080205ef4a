//! The sockets to peer nodes: which there are, what waits for each, and whose turn it is. How a peer
//! got in, and how the VM is reached, is not known here.

pub mod connection;
pub mod splice;
pub mod table;
pub mod window;
