//! The door: where peers come in and where we go out to them, who is let through, and how many at a
//! time. What is done with a connection afterwards is not known here.

pub mod admission;
pub mod crowd;
pub mod failures;
pub mod gate;
pub mod listener;
pub mod ownership;
pub mod pause;
pub mod probe;
pub mod visitors;

use crate::address::Address;
use crate::failure::{Failure, Reason};
use crate::log_limit::LogLimit;
use crate::os;
use crate::peer::{Credentials, Policy};
use crate::port::protocol::{ConnId, ListenerId, MAX_LISTENERS};
use crate::token::Source;
use admission::{Admission, Refusal};
use crowd::Crowd;
use failures::Failures;
use gate::Name;
use listener::Listener;
use mio::net::UnixStream;
use mio::{Interest, Registry};
use pause::Pause;
use std::collections::{BTreeMap, HashMap};
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::{Duration, Instant};
pub use visitors::Introduction;
use visitors::{Heard, Visitors};

/// How often it is looked whether the files of listeners are still there. A node whose socket is gone
/// notices it by nothing else, and nobody can reach it.
pub const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// The listeners of one VM, and those who have come in and are shaking hands.
pub struct Door {
    registry: Registry,
    admission: Admission,
    listeners: BTreeMap<ListenerId, Listener>,
    /// When the files of listeners are looked at next.
    next_check: Instant,
    crowd: Crowd,
    /// May come in as soon as there is a place.
    next: Option<Newcomer>,
    visitors: Visitors,
    implausible: LogLimit,
    /// How many visitors have been refused for what they said.
    turned_away: u64,
    /// Whose handshake it is, of those that came in.
    shaking_hands: HashMap<ConnId, (u32, Name)>,
    failures: Failures,
    failing: LogLimit,
    /// How many visitors have been refused because handshakes of their user fail.
    held_off: u64,
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
    /// A peer that may come in.
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
    ///
    /// # Errors
    /// When the system has no descriptor for it.
    pub fn new(registry: Registry) -> io::Result<Door> {
        Ok(Door {
            visitors: Visitors::new(registry.try_clone()?),
            registry,
            admission: Admission::default(),
            listeners: BTreeMap::new(),
            next_check: Instant::now() + CHECK_INTERVAL,
            crowd: Crowd::new(),
            next: None,
            implausible: LogLimit::default(),
            turned_away: 0,
            shaking_hands: HashMap::new(),
            failures: Failures::default(),
            failing: LogLimit::default(),
            held_off: 0,
            pause: Pause::default(),
        })
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
        self.visitors.clear();
    }

    /// Looks after the files of listeners at the next [`tick`](Self::tick).
    pub fn check_soon(&mut self, now: Instant) {
        self.next_check = now;
    }

    /// Gives up a listener whose file somebody has taken away, if there is one, and says what has happened.
    pub fn lost_listener(&mut self, now: Instant) -> Option<(ListenerId, String)> {
        if now < self.next_check {
            return None;
        }
        let lost = |(id, listener): (&ListenerId, &mut Listener)| Some((*id, listener.is_lost()?));
        let found = self.listeners.iter_mut().find_map(lost);
        match &found {
            Some((id, _)) => drop(self.listeners.remove(id)),
            None => self.next_check = now + CHECK_INTERVAL,
        }
        found
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
                self.dropped(&error, now);
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

    /// A peer that may come in does, under a number that is not in use.
    pub fn enter(&mut self, conn: ConnId, newcomer: Newcomer, now: Instant) {
        match self.visitors.enter(conn, newcomer, now) {
            Ok(()) => self.crowd.enter(conn, now),
            Err(error) => self.dropped(&error, now),
        }
    }

    fn dropped(&mut self, error: &io::Error, now: Instant) {
        if let Some(count) = self.failing.count(Credentials::UNKNOWN.uid, now) {
            log::warn!("dropped a peer that came in: {error} ({count} of them)");
        }
    }

    /// True if one who has not said its name has this number.
    pub fn has_visitor(&self, conn: ConnId) -> bool {
        self.visitors.contains(conn)
    }

    /// Readiness news of a visitor.
    pub fn visitor_ready(&mut self, conn: ConnId, read_closed: bool) {
        self.visitors.ready(conn, read_closed);
    }

    /// How many visitors may have said something.
    pub fn visitors_due(&self) -> usize {
        self.visitors.due()
    }

    /// Hears what the next visitor has to say. One who has said its name is not here any more, but has its
    /// place, and the VM is to be told.
    pub fn hear(&mut self, now: Instant) -> Option<Introduction> {
        match self.visitors.hear()? {
            Heard::Waits => (),
            Heard::Gone(conn) => self.visitor_left(conn, now),
            Heard::Implausible {
                conn,
                peer,
                problem,
            } => {
                self.turned_away += 1;
                if let Some(count) = self.implausible.count(peer.uid, now) {
                    log::warn!(
                        "refused an implausible name of uid {}, pid {}: {problem} ({count} of this \
                         uid)",
                        peer.uid,
                        peer.pid
                    );
                }
                self.visitor_left(conn, now);
            }
            Heard::Introduced(introduction, name) => {
                let Introduction { conn, newcomer, .. } = &introduction;
                let (conn, peer) = (*conn, newcomer.peer);
                if self.failures.may_try(peer.uid, &name, now) {
                    self.crowd.begin(conn);
                    self.shaking_hands.insert(conn, (peer.uid, name));
                    return Some(introduction);
                }
                self.held_off += 1;
                if let Some(count) = self.failing.count(peer.uid, now) {
                    log::warn!(
                        "refused a peer, uid {}, pid {}: too many handshakes of its user have failed, \
                         under new names ({count} refused of this uid)",
                        peer.uid,
                        peer.pid
                    );
                }
                drop(introduction);
                self.visitor_left(conn, now);
            }
        }
        None
    }

    /// Closes a visitor who has to make room; false if there is none of this number.
    pub fn dismiss(&mut self, conn: ConnId, now: Instant) -> bool {
        let was_here = self.visitors.dismiss(conn);
        if was_here {
            self.visitor_left(conn, now);
        }
        was_here
    }

    fn visitor_left(&mut self, conn: ConnId, now: Instant) {
        self.crowd.leave(conn);
        self.descriptor_freed(now);
    }

    /// The connection has ended, and the VM is to be done with it.
    pub fn ended(&mut self, conn: ConnId) {
        self.crowd.ended(conn);
    }

    /// The handshake is through; a connection that we made counts, too.
    pub fn connected(&mut self, conn: ConnId, node: &str) {
        match self.shaking_hands.remove(&conn) {
            None => self.failures.connected(node),
            Some((_, Name::Own(name))) => self.failures.connected(&name),
            // It will not come again under this name.
            Some((_, Name::ToBeGiven)) => (),
        }
        self.crowd.leave(conn);
    }

    /// The VM is done with a connection. If it was not through its handshake, that has failed.
    pub fn closed(&mut self, conn: ConnId, now: Instant) {
        if let Some((uid, name)) = self.shaking_hands.remove(&conn) {
            self.failures.failed(uid, &name, now);
        }
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
        let has_files = self.listeners.values().any(Listener::has_file);
        let deadlines = [
            awaited,
            self.pause.ends(),
            self.visitors.deadline(),
            has_files.then_some(self.next_check),
        ];
        deadlines.into_iter().flatten().min()
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Instant) {
        while let Some(conn) = self.visitors.expire(now) {
            log::debug!("closed a peer that did not say its name");
            self.visitor_left(conn, now);
        }
        if self.pause.end(now) {
            // Peers may have waited through the pause; only accepting tells.
            self.listeners.values_mut().for_each(Listener::ready);
        }
    }

    /// How many visitors were refused because what they said cannot be a name.
    pub fn turned_away(&self) -> u64 {
        self.turned_away
    }

    /// How many visitors were refused because too many handshakes of their user have failed.
    pub fn held_off(&self) -> u64 {
        self.held_off
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
