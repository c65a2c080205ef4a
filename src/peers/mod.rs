//! The connections to peer nodes: their sockets, their queues, and the order of their turns. What a peer
//! sends goes into the queue of reports for the VM, and large DATA is spliced between its socket and the
//! pipe that the caller passes. How a peer was admitted, and when the VM takes or sends more, are not known
//! here.

pub mod connection;
pub mod splice_source;
pub mod table;
pub mod window;
