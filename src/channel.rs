//! The channel through which connected sockets go to the VM: SCM_RIGHTS of unix(7).
//!
//! The VM connects to a listener whose name the kernel has chosen and the port has told it. Nobody
//! else comes in: the peer has to be the VM's own process. The listener goes when the VM is there.
//! Where there are no abstract names (outside Linux), no socket is handed over.

use crate::os;
use crate::token::Source;
use mio::net::{UnixListener, UnixStream};
use mio::{Interest, Registry};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener as StdUnixListener;

/// The VM connects once, and any other process is turned away at once.
const BACKLOG: i32 = 16;

/// How far the channel has come.
enum State {
    /// There is none.
    Off,
    /// The VM may come in.
    Offered {
        listener: UnixListener,
        address: Vec<u8>,
        vm_pid: u32,
    },
    /// The VM has come in.
    Open(UnixStream),
}

/// The sidecar's end of the channel.
pub struct Channel {
    state: State,
    passed: u64,
}

impl Channel {
    /// No socket can be passed.
    pub fn off() -> Channel {
        Channel {
            state: State::Off,
            passed: 0,
        }
    }

    /// Offers the channel to the VM with this process number. [`Source::Channel`] becomes ready when
    /// somebody is there to [`accept`](Self::accept).
    pub fn offer(vm_pid: u32, registry: &Registry) -> Channel {
        let mut channel = Channel::off();
        match listen(registry) {
            Ok((listener, address)) => {
                channel.state = State::Offered {
                    listener,
                    address,
                    vm_pid,
                };
            }
            Err(error) => log::debug!("sockets are not handed over: {error}"),
        }
        channel
    }

    /// Where the VM has to connect; empty if it cannot.
    pub fn address(&self) -> Vec<u8> {
        match &self.state {
            State::Offered { address, .. } => address.clone(),
            _ => Vec::new(),
        }
    }

    /// Lets the VM in, and nobody else.
    pub fn accept(&mut self) {
        while let State::Offered {
            listener, vm_pid, ..
        } = &self.state
        {
            match listener.accept() {
                Ok((stream, _)) if is_vm(&stream, *vm_pid) => self.state = State::Open(stream),
                Ok(_) => log::warn!("turned away a process that is not the VM"),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => (),
                Err(_) => return,
            }
        }
    }

    /// Sends the VM a socket.
    pub fn pass(&mut self, socket: impl AsFd) -> io::Result<()> {
        // It has connected before it asked for this.
        self.accept();
        match &self.state {
            State::Open(channel) => os::send_descriptor(channel, socket)?,
            _ => return Err(io::Error::other("the VM has not connected to the channel")),
        }
        self.passed += 1;
        Ok(())
    }

    /// Sockets that were passed.
    pub fn passed(&self) -> u64 {
        self.passed
    }
}

fn is_vm(stream: &UnixStream, vm_pid: u32) -> bool {
    os::peer_credentials(stream)
        .is_ok_and(|peer| peer.process() == Some(vm_pid) && peer.uid == os::own_uid())
}

fn listen(registry: &Registry) -> io::Result<(UnixListener, Vec<u8>)> {
    let (socket, address) = os::abstract_listener(BACKLOG)?;
    let mut listener = UnixListener::from_std(StdUnixListener::from(socket));
    registry.register(&mut listener, Source::Channel.into(), Interest::READABLE)?;
    Ok((listener, address))
}
