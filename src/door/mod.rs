//! The door: where peers come in and where we go out to them, who is let through, and how many at a
//! time. What is done with a connection afterwards is not known here.

pub mod admission;
pub mod crowd;
pub mod listener;
pub mod ownership;
pub mod pause;
pub mod probe;

use crate::address::Address;
use crate::failure::{Failure, Reason};
use crate::os;
use crate::peer::{Credentials, Policy};
use crate::port::protocol::{ConnId, ListenerId, MAX_LISTENERS};
use crate::token::Source;
use admission::{Admission, Refusal};
use crowd::Crowd;
use listener::Listener;
use mio::net::UnixStream;
use mio::{Interest, Registry};
use pause::Pause;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::Instant;

/// The listeners of one VM, and those who have come in and are shaking hands.
pub struct Door {
    registry: Registry,
    admission: Admission,
    listeners: BTreeMap<ListenerId, Listener>,
    crowd: Crowd,
    /// May come in as soon as there is a place.
    next: Option<Newcomer>,
    pause: Pause,
}

/// What one try to accept has brought.
#[derive(Debug)]
pub enum Arrival {
    /// Nobody who may come in now.
    Nobody,
    /// Somebody, who was turned away, was gone already, or may be next.
    Examined,
    /// Somebody who waits, and for whom this connection has to end.
    NeedsRoom(ConnId),
    /// A peer that may shake hands.
    Peer(Newcomer),
}

/// A peer that has connected, and may be one.
#[derive(Debug)]
pub struct Newcomer {
    /// Where it came in.
    pub listener: ListenerId,
    /// Its socket.
    pub stream: UnixStream,
    /// Who it is.
    pub peer: Credentials,
}

impl Door {
    /// Without a listener; sockets will be registered with `registry`.
    pub fn new(registry: Registry) -> Door {
        Door {
            registry,
            admission: Admission::default(),
            listeners: BTreeMap::new(),
            crowd: Crowd::new(),
            next: None,
            pause: Pause::default(),
        }
    }

    /// These may be peers from now on; connections that are open stay.
    pub fn set_policy(&mut self, policy: Policy) {
        self.admission.set_policy(policy);
    }

    // --- listeners -------------------------------------------------------------------------------

    /// Whether a listener may have this number.
    pub fn is_free(&self, listener: ListenerId) -> bool {
        listener < MAX_LISTENERS && !self.listeners.contains_key(&listener)
    }

    /// Owns a name and listens there, under a number that is free.
    pub fn listen(
        &mut self,
        id: ListenerId,
        address: Address,
        backlog: u32,
        mode: u16,
        vm_pid: u32,
    ) -> Result<(), Failure> {
        let mut listener = Listener::open(address, backlog, mode, vm_pid)?;
        let token = Source::Listener(id).into();
        self.registry
            .register(listener.socket_mut(), token, Interest::READABLE)
            .map_err(|error| failed("watch", listener.address(), &error))?;
        log::debug!("listening at {}", listener.address());
        self.listeners.insert(id, listener);
        Ok(())
    }

    /// Gives a name up.
    pub fn unlisten(&mut self, id: ListenerId) {
        if let Some(listener) = self.listeners.remove(&id) {
            log::debug!("stopped listening at {}", listener.address());
        }
    }

    /// Gives all names up.
    pub fn close(&mut self) {
        self.listeners.clear();
        self.next = None;
    }

    /// Readiness news of a listener.
    pub fn ready(&mut self, id: ListenerId) {
        if let Some(listener) = self.listeners.get_mut(&id) {
            listener.ready();
        }
    }

    // --- those who come in -----------------------------------------------------------------------

    /// True if somebody may be waiting, and something can be done about it.
    pub fn may_accept(&self, now: Instant) -> bool {
        match self.next {
            Some(_) => self.crowd.has_room() || self.late(now).is_some(),
            None => !self.pause.is_on() && self.listeners.values().any(Listener::is_acceptable),
        }
    }

    /// Who makes room now, if anybody needs it.
    fn late(&self, now: Instant) -> Option<ConnId> {
        let (time, conn) = self.crowd.makes_room()?;
        (time <= now).then_some(conn)
    }

    /// Accepts one peer, if one may come in. One waits for its place here: who it is decides whether
    /// anybody has to make room.
    pub fn accept(&mut self, now: Instant) -> Arrival {
        match self.next.take() {
            None => match self.pause.is_on() {
                true => Arrival::Nobody,
                false => self.accept_next(now),
            },
            Some(newcomer) if self.crowd.has_room() => Arrival::Peer(newcomer),
            waiting => {
                self.next = waiting;
                self.late(now).map_or(Arrival::Nobody, Arrival::NeedsRoom)
            }
        }
    }

    fn accept_next(&mut self, now: Instant) -> Arrival {
        let mut listeners = self.listeners.iter_mut();
        let Some((&id, listener)) = listeners.find(|(_, listener)| listener.is_acceptable()) else {
            return Arrival::Nobody;
        };
        match listener.accept() {
            Ok(stream) => {
                self.next = self.examine(id, stream, now);
                Arrival::Examined
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if self.pause.recover() {
                    log::warn!("accepting connections again, nobody waits any more");
                }
                Arrival::Examined
            }
            Err(error) => {
                self.begin_pause(&error, now);
                Arrival::Nobody
            }
        }
    }

    fn examine(
        &mut self,
        listener: ListenerId,
        stream: UnixStream,
        now: Instant,
    ) -> Option<Newcomer> {
        let peer = match os::peer_credentials(stream.as_fd()) {
            Ok(peer) => peer,
            Err(error) => {
                log::warn!("dropped a peer that nobody knows: {error}");
                return None;
            }
        };
        match self.admission.check(&peer, now) {
            Ok(()) => Some(Newcomer {
                listener,
                stream,
                peer,
            }),
            Err(Refusal { count }) => {
                if let Some(count) = count {
                    log::warn!("refused a peer, {}", describe_refused(&peer, count));
                }
                None
            }
        }
    }

    fn begin_pause(&mut self, error: &io::Error, now: Instant) {
        if self.pause.begin(now) {
            let advice = match os::is_out_of_descriptors(error) {
                true => "; raise the limit of open files (ulimit -n, LimitNOFILE=)",
                false => "",
            };
            log::error!("cannot accept connections: {error}; existing ones go on{advice}");
        }
    }

    /// A connection that was accepted is shaking hands.
    pub fn enter(&mut self, conn: ConnId, now: Instant) {
        self.crowd.enter(conn, now);
    }

    /// The peer has said its first bytes.
    pub fn begin(&mut self, conn: ConnId) {
        self.crowd.begin(conn);
    }

    /// The connection has ended, and the VM is to be done with it.
    pub fn ended(&mut self, conn: ConnId) {
        self.crowd.ended(conn);
    }

    /// The handshake is over and the VM is done with it, one way or the other.
    pub fn leave(&mut self, conn: ConnId) {
        self.crowd.leave(conn);
    }

    /// How many are shaking hands.
    pub fn handshakes(&self) -> usize {
        self.crowd.len()
    }

    /// A connection has ended, and its descriptor is free.
    pub fn descriptor_freed(&mut self, now: Instant) {
        self.pause.cut_short(now);
    }

    // --- those whom we go out to -----------------------------------------------------------------

    /// Connects to a peer, if it is one that may be.
    pub fn dial(&mut self, address: &Address) -> Result<(UnixStream, Credentials), Failure> {
        let socket_address = os::socket_address(address).map_err(|error| {
            let explanation = format!("{address} cannot be a socket address: {error}");
            Failure::new(Reason::BadAddress, explanation)
        })?;
        let socket =
            os::connect(&socket_address).map_err(|error| unreachable_peer(address, &error))?;
        let peer = os::peer_credentials(&socket)
            .map_err(|error| failed("know the peer at", address, &error))?;
        if let Err(Refusal { count }) = self.admission.check(&peer, Instant::now()) {
            if let Some(count) = count {
                let who = describe_refused(&peer, count);
                log::warn!("refused to connect to {address}, {who}");
            }
            return Err(Failure::new(
                Reason::Refused,
                format!(
                    "{address} belongs to uid {}, gid {}, pid {}, which allowed_uids and \
                     allowed_gids do not include",
                    peer.uid, peer.gid, peer.pid
                ),
            ));
        }
        Ok((UnixStream::from_std(StdUnixStream::from(socket)), peer))
    }

    // --- time ------------------------------------------------------------------------------------

    /// When [`tick`](Self::tick) or [`accept`](Self::accept) has something to do that no event
    /// announces. `has_room` says whether the VM keeps up with those who come and go.
    pub fn deadline(&self, has_room: bool) -> Option<Instant> {
        let next_room = self.crowd.makes_room().map(|(time, _)| time);
        let awaited = next_room.filter(|_| has_room && self.next.is_some());
        awaited.into_iter().chain(self.pause.ends()).min()
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Instant) {
        if self.pause.end(now) {
            // Peers may have waited through the pause; only accepting tells.
            self.listeners.values_mut().for_each(Listener::ready);
        }
    }

    /// One line for each listener, for people.
    pub fn describe(&self) -> Vec<String> {
        let line = |listener: &Listener| format!("listening at {}", listener.address());
        self.listeners.values().map(line).collect()
    }
}

/// Says who was refused, how often, and what decides about it.
fn describe_refused(peer: &Credentials, count: u32) -> String {
    format!(
        "uid {}, gid {}, pid {}: allowed_uids and allowed_gids do not include it \
         ({count} refused of this uid)",
        peer.uid, peer.gid, peer.pid
    )
}

fn unreachable_peer(address: &Address, error: &io::Error) -> Failure {
    let reason = match error.kind() {
        ErrorKind::WouldBlock => Reason::BacklogFull,
        ErrorKind::ConnectionRefused | ErrorKind::NotFound => Reason::NotListening,
        ErrorKind::PermissionDenied => Reason::PermissionDenied,
        _ => Reason::SystemError,
    };
    let explanation = match error.kind() {
        ErrorKind::NotFound => format!("there is no socket {address}"),
        ErrorKind::ConnectionRefused => format!("nobody listens at {address}"),
        _ => format!("cannot connect to {address}: {error}"),
    };
    Failure::new(reason, explanation)
}

fn failed(what: &str, address: &Address, error: &io::Error) -> Failure {
    Failure::system(format!("cannot {what} {address}: {error}"))
}
