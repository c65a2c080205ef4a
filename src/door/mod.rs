//! The door: accepts and dials peers, checks whether they may connect, and limits the handshakes in
//! progress. What happens to a connection afterwards is not known here.
//!
//! A *newcomer* has been accepted and passed the check of its user and group. A *visitor* is a newcomer
//! that has not sent its node name yet; the VM does not know of it.

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
use crate::ids::{ConnId, ListenerId, MAX_LISTENERS};
use crate::log_limit::LogLimit;
use crate::log_line::{Cause, NOTICE};
use crate::os;
use crate::peer::{Credentials, Policy};
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
pub use visitors::{NamedPeer, Newcomer};
use visitors::{Progress, Visitors};

/// How often the files of listeners are checked. A node whose socket file is gone is unreachable, and has
/// no other way to notice.
pub const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// The listeners of one VM, and the incoming peers that have not completed their handshakes.
pub struct Door {
    registry: Registry,
    admission: Admission,
    listeners: BTreeMap<ListenerId, Listener>,
    /// The time of the next check of the listeners' files.
    next_check: Instant,
    crowd: Crowd,
    /// The newcomer that enters as soon as there is a place.
    next: Option<Newcomer>,
    visitors: Visitors,
    implausible_log: LogLimit,
    /// Number of visitors refused because of their first message.
    implausible_names: u64,
    /// User and node name of each incoming handshake that the VM knows of.
    handshakes_with_vm: HashMap<ConnId, (u32, Name)>,
    failures: Failures,
    failing_log: LogLimit,
    /// Number of visitors refused because too many handshakes of their user have failed.
    over_budget: u64,
    pause: Pause,
}

/// The outcome of one attempt to accept a peer.
#[derive(Debug)]
pub enum Arrival {
    /// No peer can enter now.
    Nobody,
    /// One connection was examined: it was refused, was gone already, or enters next.
    Examined,
    /// A peer may be waiting, and this connection has to end to make room for it.
    NeedsRoom(ConnId),
    /// A peer that may enter.
    Peer(Newcomer),
}

impl Door {
    /// A door without listeners. Sockets will be registered with `registry`.
    ///
    /// # Errors
    /// If the system has no descriptor left for a clone of `registry`.
    pub fn new(registry: Registry) -> io::Result<Door> {
        Ok(Door {
            visitors: Visitors::new(registry.try_clone()?),
            registry,
            admission: Admission::default(),
            listeners: BTreeMap::new(),
            next_check: Instant::now() + CHECK_INTERVAL,
            crowd: Crowd::new(),
            next: None,
            implausible_log: LogLimit::default(),
            implausible_names: 0,
            handshakes_with_vm: HashMap::new(),
            failures: Failures::default(),
            failing_log: LogLimit::default(),
            over_budget: 0,
            pause: Pause::default(),
        })
    }

    /// Replaces the policy of admission. Open connections are not affected.
    pub fn set_policy(&mut self, policy: Policy) {
        self.admission.set_policy(policy);
    }

    // --- listeners -------------------------------------------------------------------------------

    /// True if this number is valid for a listener, and not in use.
    pub fn is_free(&self, listener: ListenerId) -> bool {
        listener < MAX_LISTENERS && !self.listeners.contains_key(&listener)
    }

    /// Claims the name at `address` and listens there. The number `id` must be free.
    ///
    /// # Errors
    /// If the address is invalid, the name is not available, or the socket cannot be opened.
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

    /// Closes a listener and gives up its name.
    pub fn unlisten(&mut self, id: ListenerId) {
        if let Some(listener) = self.listeners.remove(&id) {
            log::debug!("stopped listening at {}", listener.address());
        }
    }

    /// Closes all listeners, and every connection that the VM does not know of.
    pub fn close(&mut self) {
        self.listeners.clear();
        self.next = None;
        self.visitors.clear();
    }

    /// Makes the check of the listeners' files due now.
    pub fn check_soon(&mut self, now: Instant) {
        self.next_check = now;
    }

    /// Closes one listener whose socket file was removed or replaced, if a check is due and finds one.
    /// Returns its number and what happened.
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

    /// Records that a listener is ready.
    pub fn ready(&mut self, id: ListenerId) {
        if let Some(listener) = self.listeners.get_mut(&id) {
            listener.ready();
        }
    }

    // --- incoming peers --------------------------------------------------------------------------

    /// True if a peer may be waiting, and [`accept`](Self::accept) can make progress.
    pub fn may_accept(&self, now: Instant) -> bool {
        match self.next {
            Some(_) => self.crowd.has_room() || self.late(now).is_some(),
            None if self.pause.is_on() => {
                self.pause.lacks_descriptor(now) && self.late(now).is_some()
            }
            None => self.listeners.values().any(Listener::is_acceptable),
        }
    }

    /// The connection that has to make room now, if another one needs it.
    fn late(&self, now: Instant) -> Option<ConnId> {
        let (time, conn) = self.crowd.makes_room()?;
        (time <= now).then_some(conn)
    }

    /// Accepts one peer, if one may enter. When all places are taken, one newcomer is kept waiting here:
    /// only a peer that is admitted can force another connection to make room. Without a descriptor, who
    /// is waiting cannot be known, so any peer can.
    pub fn accept(&mut self, now: Instant) -> Arrival {
        match self.next.take() {
            None if self.pause.lacks_descriptor(now) => self.make_room(now),
            None if self.pause.is_on() => Arrival::Nobody,
            None => self.accept_next(now),
            Some(newcomer) if self.crowd.has_room() => Arrival::Peer(newcomer),
            waiting => {
                self.next = waiting;
                self.make_room(now)
            }
        }
    }

    fn make_room(&self, now: Instant) -> Arrival {
        self.late(now).map_or(Arrival::Nobody, Arrival::NeedsRoom)
    }

    fn accept_next(&mut self, now: Instant) -> Arrival {
        let mut listeners = self.listeners.values_mut();
        let Some(listener) = listeners.find(|listener| listener.is_acceptable()) else {
            return Arrival::Nobody;
        };
        match listener.accept() {
            Ok((stream, address)) => {
                self.next = self.examine(stream, address, now);
                Arrival::Examined
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if self.pause.recover() {
                    log::info!(
                        target: NOTICE, reason = Cause::AcceptsAgain;
                        "accepting connections again: no peer is waiting any more"
                    );
                }
                Arrival::Examined
            }
            Err(error) => {
                self.begin_pause(&error, now);
                Arrival::Nobody
            }
        }
    }

    fn examine(&mut self, stream: UnixStream, address: Vec<u8>, now: Instant) -> Option<Newcomer> {
        let peer = match os::peer_credentials(stream.as_fd()) {
            Ok(peer) => peer,
            Err(error) => {
                self.dropped(&error, now);
                return None;
            }
        };
        match self
            .admission
            .check(&peer, || os::peer_groups(&stream), now)
        {
            Ok(()) => Some(Newcomer {
                stream,
                peer,
                address,
            }),
            Err(Refusal { count }) => {
                if let Some(count) = count {
                    log::warn!(
                        reason = Cause::Refused, uid = peer.uid, gid = peer.gid, pid = peer.pid;
                        "refused a peer, uid {}, gid {}, pid {}: allowed_uids and allowed_gids do \
                         not include it ({count} refused of this uid)",
                        peer.uid, peer.gid, peer.pid
                    );
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
            log::error!(
                reason = Cause::CannotAccept;
                "cannot accept connections: {error}; existing connections are not affected{advice}"
            );
        }
    }

    /// Makes the newcomer a visitor, under a number that is not in use.
    pub fn enter(&mut self, conn: ConnId, newcomer: Newcomer, now: Instant) {
        self.visitors.enter(conn, newcomer, now);
        self.crowd.enter(conn, now);
    }

    fn dropped(&mut self, error: &io::Error, now: Instant) {
        if let Some(count) = self.failing_log.count(Credentials::UNKNOWN.uid, now) {
            log::warn!(
                reason = Cause::CannotAccept;
                "dropped an incoming connection: {error} ({count} of them)"
            );
        }
    }

    /// True if this is the number of a visitor.
    pub fn has_visitor(&self, conn: ConnId) -> bool {
        self.visitors.contains(conn)
    }

    /// Records that a visitor's socket is ready.
    pub fn visitor_ready(&mut self, conn: ConnId, read_closed: bool) {
        self.visitors.ready(conn, read_closed);
    }

    /// Number of visitors whose sockets may have something to read.
    pub fn visitors_due(&self) -> usize {
        self.visitors.due()
    }

    /// Reads from the next visitor. Once it has sent an acceptable name, it is returned for the VM: it is
    /// no longer a visitor, but keeps its place among the handshakes.
    pub fn read_visitor(&mut self, now: Instant) -> Option<NamedPeer> {
        match self.visitors.read_next()? {
            Progress::Incomplete => (),
            Progress::Closed { conn, peer } => {
                log::debug!(
                    uid = peer.uid, gid = peer.gid, pid = peer.pid;
                    "process {} of uid {} left before it sent its name", peer.pid, peer.uid
                );
                self.visitor_left(conn, now);
            }
            Progress::NotWatched(conn, error) => {
                self.dropped(&error, now);
                self.visitor_left(conn, now);
            }
            Progress::Implausible {
                conn,
                peer,
                problem,
            } => {
                self.implausible_names += 1;
                if let Some(count) = self.implausible_log.count(peer.uid, now) {
                    log::warn!(
                        reason = Cause::ImplausibleName,
                        uid = peer.uid, gid = peer.gid, pid = peer.pid;
                        "refused an implausible name of uid {}, pid {}: {problem} ({count} of this \
                         uid)",
                        peer.uid,
                        peer.pid
                    );
                }
                self.visitor_left(conn, now);
            }
            Progress::Named(named, name) => {
                let NamedPeer { conn, newcomer, .. } = &named;
                let (conn, peer) = (*conn, newcomer.peer);
                if self.failures.may_try(peer.uid, &name, now) {
                    self.crowd.begin(conn);
                    self.handshakes_with_vm.insert(conn, (peer.uid, name));
                    return Some(named);
                }
                self.over_budget += 1;
                if let Some(count) = self.failing_log.count(peer.uid, now) {
                    log::warn!(
                        reason = Cause::HandshakesFailed,
                        uid = peer.uid, gid = peer.gid, pid = peer.pid;
                        "refused a peer, uid {}, pid {}: too many handshakes of its user have failed, \
                         under new names ({count} refused of this uid)",
                        peer.uid,
                        peer.pid
                    );
                }
                drop(named);
                self.visitor_left(conn, now);
            }
        }
        None
    }

    /// Closes a visitor that has to make room; false if there is none with this number.
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

    /// Records that a connection has ended. It keeps its place until the VM has closed it, too.
    pub fn ended(&mut self, conn: ConnId) {
        self.crowd.ended(conn);
    }

    /// Records that a handshake was completed, whichever side opened the connection.
    pub fn connected(&mut self, conn: ConnId, node: &str) {
        match self.handshakes_with_vm.remove(&conn) {
            None => self.failures.connected(node),
            Some((_, Name::Own(name))) => self.failures.connected(&name),
            // A given name is never used again, so there is nothing to remember.
            Some((_, Name::ToBeGiven)) => (),
        }
        self.crowd.leave(conn);
    }

    /// Records that the VM has closed a connection. If its handshake was not completed, it counts as failed.
    pub fn closed(&mut self, conn: ConnId, now: Instant) {
        if let Some((uid, name)) = self.handshakes_with_vm.remove(&conn) {
            self.failures.failed(uid, &name, now);
        }
        self.crowd.leave(conn);
    }

    /// Number of incoming connections whose handshakes are not complete.
    pub fn handshakes(&self) -> usize {
        self.crowd.len()
    }

    /// Records that a descriptor was freed, so that accepting may go on.
    pub fn descriptor_freed(&mut self, now: Instant) {
        self.pause.cut_short(now);
    }

    // --- outgoing connections --------------------------------------------------------------------

    /// Connects to a peer, and checks that it is admitted.
    ///
    /// # Errors
    /// If the address is invalid, the peer cannot be reached, or the policy does not admit it.
    pub fn dial(&mut self, address: &Address) -> Result<(UnixStream, Credentials), Failure> {
        let socket_address = os::socket_address(address).map_err(|error| {
            let explanation = format!("{address} cannot be a socket address: {error}");
            Failure::new(Reason::BadAddress, explanation)
        })?;
        let socket =
            os::connect(&socket_address).map_err(|error| unreachable_peer(address, &error))?;
        let peer = os::peer_credentials(&socket)
            .map_err(|error| failed("identify the peer at", address, &error))?;
        // The VM logs the refusal, at most once a minute for each node that it dials.
        if !self.admission.admits(&peer, || os::peer_groups(&socket)) {
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

    /// The time at which [`tick`](Self::tick) or [`accept`](Self::accept) is due without an event. `has_room`
    /// is true while the VM keeps up with reports.
    pub fn deadline(&self, has_room: bool) -> Option<Instant> {
        let is_room_needed = match self.next {
            Some(_) => !self.crowd.has_room(),
            None => self.pause.is_on(),
        };
        let next_room = self.crowd.makes_room().map(|(time, _)| time);
        let awaited = next_room.filter(|_| has_room && is_room_needed);
        let has_files = self.listeners.values().any(Listener::has_file);
        let deadlines = [
            awaited,
            self.pause.ends(),
            self.visitors.deadline(),
            has_files.then_some(self.next_check),
        ];
        deadlines.into_iter().flatten().min()
    }

    /// Handles everything that has become due by `now`.
    pub fn tick(&mut self, now: Instant) {
        while let Some((conn, peer)) = self.visitors.expire(now) {
            log::debug!(
                uid = peer.uid, gid = peer.gid, pid = peer.pid;
                "closed the connection of process {} of uid {}, which did not send its name in time",
                peer.pid, peer.uid
            );
            self.visitor_left(conn, now);
        }
        if self.pause.end(now) {
            // Peers may be waiting since before the pause; only accept(2) can tell.
            self.listeners.values_mut().for_each(Listener::ready);
        }
    }

    /// Number of visitors refused because their first message cannot be that of a node.
    pub fn implausible_names(&self) -> u64 {
        self.implausible_names
    }

    /// Number of visitors refused because too many handshakes of their user have failed.
    pub fn over_budget(&self) -> u64 {
        self.over_budget
    }

    /// One line for each listener, for a table that people read.
    pub fn describe(&self) -> Vec<String> {
        let line = |listener: &Listener| format!("listening at {}", listener.address());
        self.listeners.values().map(line).collect()
    }
}

/// The VM puts "cannot connect to" and the name of the node before the explanation.
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
        ErrorKind::PermissionDenied => {
            format!("the connect to {address} failed: {error}; run this as the user of that node")
        }
        _ => format!("the connect to {address} failed: {error}"),
    };
    Failure::new(reason, explanation)
}

fn failed(what: &str, address: &Address, error: &io::Error) -> Failure {
    Failure::system(format!("cannot {what} {address}: {error}"))
}
