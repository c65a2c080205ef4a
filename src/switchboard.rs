//! Which listeners and connections there are, what the VM's commands do to them, and whose turn
//! it is to read.
//!
//! Sockets are read in turn, one piece each, and only while the VM keeps up. Whoever is slow, a
//! peer or the VM, is waited for by nobody else.

use crate::address::{Address, Failure};
use crate::admission::Admission;
use crate::command_reader::Input;
use crate::connection::{Connection, Direction, Ended, ReadOutcome, Stage};
use crate::handover::Handover;
use crate::listener::Listener;
use crate::os;
use crate::protocol::{Command, ConnId, Credentials, ListenerId, MAX_CONN, Reason, Report};
use crate::report_queue::{MAX_DATA, MAX_GAP, ReportQueue};
use mio::event::Event;
use mio::net::UnixStream;
use mio::{Interest, Registry, Token};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::{Duration, Instant};

/// Accepted connections that may shake hands at the same time. Bounds what strangers can occupy:
/// this many descriptors and handshake windows. A handshake takes about a millisecond.
const MAX_HANDSHAKES: usize = 128;

/// How long a handshake may take when others wait for its place. A node is through in milliseconds.
const HANDSHAKE_GRACE: Duration = Duration::from_millis(250);

/// How long a peer may say nothing when others wait for its place. A node says its name as soon as it
/// is connected.
const SILENCE_GRACE: Duration = Duration::from_millis(50);

/// How long a connection that the VM has closed may take to deliver what it was given before.
const LINGER: Duration = Duration::from_secs(5);

/// How long accepting rests when descriptors have run out and no connection ends meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Peers that are accepted, or refused, in one turn: those who come in faster than we can refuse
/// them must not hold up the connections that there are.
const MAX_ACCEPTED_PER_TURN: usize = 64;

/// Listeners of one VM: the one it has, and one more while it moves.
const MAX_LISTENERS: u32 = 16;

/// Readiness tokens below this are the event loop's own.
pub const FIRST_TOKEN: usize = 16;
const FIRST_CONN_TOKEN: usize = FIRST_TOKEN + MAX_LISTENERS as usize;

/// The VM has broken the protocol: nothing that it says can be trusted any more.
#[derive(Debug)]
pub struct Violation(pub String);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The listeners and connections of one VM.
pub struct Switchboard {
    registry: Registry,
    /// What the VM is told.
    pub reports: ReportQueue,
    admission: Admission,
    /// How connections get to the VM once they are through the handshake.
    handover: Handover,
    listeners: BTreeMap<ListenerId, Listener>,
    connections: HashMap<ConnId, Connection>,
    /// Connections that want to be read, in the order of their turns.
    turns: VecDeque<ConnId>,
    /// Connections with something to write, or to acknowledge, at the end of this turn.
    unflushed: Vec<ConnId>,
    /// Connections that the VM has closed with something left to deliver, and until when they may
    /// take; in the order of these times.
    lingering: VecDeque<(Instant, ConnId)>,
    /// A connection that has ended, and whose socket still has bytes for a gap in the reports.
    parting: Option<Connection>,
    /// Accepted connections that are still shaking hands, by the time from when on they make room.
    handshakes: BTreeSet<(Instant, ConnId)>,
    last_accepted: ConnId,
    /// Descriptors have run out, and not everybody who has waited since has come in.
    accept_failing: bool,
    /// When to try again, while accepting rests.
    accept_resumes: Option<Instant>,
}

impl Switchboard {
    /// Empty; sockets will be registered with `registry`, and handed over by `handover`.
    pub fn new(registry: Registry, handover: Handover) -> Self {
        Switchboard {
            registry,
            reports: ReportQueue::default(),
            admission: Admission::default(),
            handover,
            listeners: BTreeMap::new(),
            connections: HashMap::new(),
            turns: VecDeque::new(),
            unflushed: Vec::new(),
            lingering: VecDeque::new(),
            parting: None,
            handshakes: BTreeSet::new(),
            last_accepted: 0,
            accept_failing: false,
            accept_resumes: None,
        }
    }

    /// Does what the VM says.
    pub fn input(&mut self, input: Input<'_>) -> Result<(), Violation> {
        match input {
            Input::Data { conn, bytes } => self.send(conn, bytes),
            Input::Command(command) => self.command(command),
        }
    }

    fn command(&mut self, command: Command) -> Result<(), Violation> {
        match command {
            Command::Listen {
                listener,
                backlog,
                mode,
                vm_pid,
                address,
            } => {
                if listener >= MAX_LISTENERS || self.listeners.contains_key(&listener) {
                    return Err(Violation(format!("LISTEN with listener {listener}")));
                }
                let address = Address::from_bytes(&address);
                let report = match self.listen(listener, address, backlog, mode, vm_pid) {
                    Ok(()) => Report::Listening { listener },
                    Err(Failure {
                        reason,
                        explanation,
                    }) => Report::ListenFailed {
                        listener,
                        reason,
                        explanation,
                    },
                };
                self.reports.push(&report);
                Ok(())
            }
            Command::Unlisten { listener } => {
                if let Some(listener) = self.listeners.remove(&listener) {
                    log::debug!("stopped listening at {}", listener.address);
                }
                self.reports.push(&Report::Unlistened { listener });
                Ok(())
            }
            Command::Connect { conn, address } => {
                if conn % 2 == 0 || self.connections.contains_key(&conn) {
                    return Err(Violation(format!("CONNECT with connection {conn}")));
                }
                let address = Address::from_bytes(&address);
                let report = match self.connect(conn, &address) {
                    Ok(peer) => Report::Connected { conn, peer },
                    Err(Failure {
                        reason,
                        explanation,
                    }) => Report::ConnectFailed {
                        conn,
                        reason,
                        explanation,
                    },
                };
                self.reports.push(&report);
                Ok(())
            }
            Command::Established { conn, node } => {
                self.establish(conn, node);
                Ok(())
            }
            Command::HandOver { conn, node } => {
                self.hand_over(conn, node);
                Ok(())
            }
            Command::Close { conn } => {
                self.close(conn);
                Ok(())
            }
            Command::Admit(policy) => {
                self.admission.set_policy(policy);
                Ok(())
            }
            Command::Ack { conn, count } => {
                if let Some(connection) = self.connections.get_mut(&conn) {
                    connection.to_vm.acknowledged(count).map_err(|_| {
                        Violation(format!(
                            "ACK of {count} bytes too many for connection {conn}"
                        ))
                    })?;
                    self.await_turn(conn);
                }
                Ok(())
            }
        }
    }

    fn listen(
        &mut self,
        id: ListenerId,
        address: Address,
        backlog: u32,
        mode: u16,
        vm_pid: u32,
    ) -> Result<(), Failure> {
        let mut listener = Listener::open(address, backlog, mode, vm_pid)?;
        self.registry
            .register(
                listener.socket_mut(),
                Token(FIRST_TOKEN + id as usize),
                Interest::READABLE,
            )
            .map_err(|error| system_error("watch", &listener.address, &error))?;
        log::debug!("listening at {}", listener.address);
        self.listeners.insert(id, listener);
        Ok(())
    }

    fn connect(&mut self, conn: ConnId, address: &Address) -> Result<Credentials, Failure> {
        let socket_address = address.to_socket_address()?;
        let socket = os::connect(&socket_address).map_err(|error| Failure {
            reason: match error.kind() {
                io::ErrorKind::WouldBlock => Reason::BacklogFull,
                io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Reason::NotListening,
                io::ErrorKind::PermissionDenied => Reason::PermissionDenied,
                _ => Reason::SystemError,
            },
            explanation: match error.kind() {
                io::ErrorKind::NotFound => format!("there is no socket {address}"),
                io::ErrorKind::ConnectionRefused => format!("nobody listens at {address}"),
                _ => format!("cannot connect to {address}: {error}"),
            },
        })?;
        let peer = os::peer_credentials(&socket)
            .map_err(|error| system_error("know the peer at", address, &error))?;
        if let Err(refusal) = self.admission.check(&peer, Instant::now()) {
            if let Some(count) = refusal.count {
                log::warn!("refused to connect to {address}, {}", refused(&peer, count));
            }
            return Err(Failure {
                reason: Reason::Refused,
                explanation: format!(
                    "{address} belongs to uid {}, gid {}, pid {}, which allowed_uids and \
                     allowed_gids do not include",
                    peer.uid, peer.gid, peer.pid
                ),
            });
        }
        let stream = UnixStream::from_std(StdUnixStream::from(socket));
        self.add(conn, Connection::new(stream, peer, Direction::Out))
            .map_err(|error| system_error("connect to", address, &error))?;
        Ok(peer)
    }

    fn add(&mut self, conn: ConnId, mut connection: Connection) -> io::Result<()> {
        let stream = connection.stream_mut();
        self.registry
            .register(stream, conn_token(conn), Interest::READABLE)?;
        if let Some(expendable) = connection.expendable {
            self.handshakes.insert((expendable, conn));
        }
        self.connections.insert(conn, connection);
        Ok(())
    }

    fn establish(&mut self, conn: ConnId, node: String) {
        self.handshake_over(conn);
        match self.connections.get_mut(&conn) {
            Some(connection) if matches!(connection.stage, Stage::Handshake) => {
                log::debug!("connection {conn} is established with {node}");
                connection.establish(node);
                self.await_turn(conn);
            }
            _ => (),
        }
    }

    /// Gives the VM the socket: what was read of it is reported already, and the rest is the VM's.
    fn hand_over(&mut self, conn: ConnId, node: String) {
        let Some(connection) = self.connections.get_mut(&conn) else {
            return; // it ended while this was on its way
        };
        if !matches!(connection.stage, Stage::Handshake) {
            return;
        }
        connection.prepare_handover();
        let passed = match connection.waiting() {
            0 => self.handover.pass(connection.stream_mut()),
            count => Err(io::Error::other(format!("{count} bytes wait for the peer"))),
        };
        match passed {
            Ok(()) => {
                log::debug!("connection {conn} with {node} is handed over");
                // The VM's descriptor keeps the socket alive, and epoll would go on with it.
                let _ = self.registry.deregister(connection.stream_mut());
                self.remove(conn);
                self.reports.push(&Report::HandedOver { conn });
            }
            Err(error) => {
                log::warn!("the connection with {node} is not handed over to the VM: {error}");
                self.establish(conn, node);
                self.reports.push(&Report::Kept { conn });
            }
        }
    }

    /// The VM may wait to be let into the channel.
    pub fn handover_ready(&mut self) {
        self.handover.accept();
    }

    /// An accepted connection has left its handshake, one way or the other.
    fn handshake_over(&mut self, conn: ConnId) {
        let connection = self.connections.get_mut(&conn);
        if let Some(expendable) = connection.and_then(|c| c.expendable.take()) {
            self.handshakes.remove(&(expendable, conn));
        }
    }

    /// The first bytes of a handshake have come.
    fn handshake_begun(&mut self, conn: ConnId) {
        let connection = self.connections.get_mut(&conn);
        if let Some(expendable) = connection.and_then(|c| c.expendable.as_mut()) {
            self.handshakes.remove(&(*expendable, conn));
            *expendable += HANDSHAKE_GRACE - SILENCE_GRACE;
            self.handshakes.insert((*expendable, conn));
        }
    }

    fn send(&mut self, conn: ConnId, bytes: &[u8]) -> Result<(), Violation> {
        let Some(connection) = self.connections.get_mut(&conn) else {
            return Ok(()); // it ended while this was on its way
        };
        if matches!(connection.stage, Stage::Closing) {
            return Ok(()); // to the VM it has ended, whether something lingers or not
        }
        connection
            .send(bytes)
            .map_err(|_| Violation(format!("DATA beyond the window of connection {conn}")))?;
        self.await_flush(conn);
        Ok(())
    }

    /// Moves the next bytes of DATA, `limit` at most, from the VM's pipe to the connection's socket;
    /// the number of those that went, 0 if they have to come by [`input`](Self::input).
    pub fn send_from(&mut self, pipe: impl AsFd, conn: ConnId, limit: usize) -> usize {
        let Some(connection) = self.connections.get_mut(&conn) else {
            return 0;
        };
        if matches!(connection.stage, Stage::Closing) {
            return 0;
        }
        let count = connection.send_from(pipe, limit);
        // To acknowledge it, or to find out by reading what is wrong.
        self.await_flush(conn);
        count
    }

    /// Moves the bytes of a gap in the reports from their socket to the VM's pipe.
    pub fn receive_into(
        &mut self,
        pipe: impl AsFd,
        conn: ConnId,
        missing: usize,
    ) -> io::Result<()> {
        let connection = self.connections.get(&conn).or(self.parting.as_ref());
        let count = connection.map_or(Ok(0), |c| c.receive_into(pipe, missing))?;
        if count == 0 {
            return Err(io::Error::other(format!(
                "connection {conn} lost {missing} bytes that were announced to the VM"
            )));
        }
        self.reports.went_by(count);
        if self.reports.gap().is_none() {
            self.parting = None;
        }
        Ok(())
    }

    /// The VM wants it closed: as soon as what it sent before is delivered.
    fn close(&mut self, conn: ConnId) {
        self.handshake_over(conn);
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        connection.flush();
        if connection.waiting() == 0 {
            log::debug!("connection {conn} is closed");
            self.remove(conn);
        } else {
            connection.stage = Stage::Closing;
            self.lingering.push_back((Instant::now() + LINGER, conn));
            self.await_flush(conn);
        }
    }

    fn remove(&mut self, conn: ConnId) {
        self.handshake_over(conn);
        if let Some(connection) = self.connections.remove(&conn) {
            if self.reports.gap() == Some(conn) {
                self.parting = Some(connection);
            }
            // A descriptor is free again.
            if let Some(resumes) = &mut self.accept_resumes {
                *resumes = Instant::now();
            }
        }
    }

    /// Takes note of a socket's readiness.
    pub fn readiness(&mut self, event: &Event) {
        let Token(token) = event.token();
        if token < FIRST_CONN_TOKEN {
            let id = (token - FIRST_TOKEN) as ListenerId;
            if let Some(listener) = self.listeners.get_mut(&id) {
                listener.acceptable = true;
            }
            return;
        }
        let conn = (token - FIRST_CONN_TOKEN) as ConnId;
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        connection.ready(
            event.is_readable() || event.is_error(),
            event.is_read_closed() || event.is_error(),
        );
        let writable = event.is_writable() || event.is_write_closed() || event.is_error();
        if writable && connection.waiting() > 0 {
            self.await_flush(conn);
        }
        self.await_turn(conn);
    }

    fn await_flush(&mut self, conn: ConnId) {
        if let Some(connection) = self.connections.get_mut(&conn) {
            if !connection.unflushed {
                connection.unflushed = true;
                self.unflushed.push(conn);
            }
        }
    }

    fn await_turn(&mut self, conn: ConnId) {
        if let Some(connection) = self.connections.get_mut(&conn) {
            if connection.wants_read() && !connection.queued {
                connection.queued = true;
                self.turns.push_back(conn);
            }
        }
    }

    /// Lets peers in, as many as may shake hands.
    pub fn accept(&mut self) {
        for _ in 0..MAX_ACCEPTED_PER_TURN {
            let Some(id) = self.next_to_accept() else {
                return;
            };
            self.accept_one(id);
        }
    }

    /// A listener where a peer may be waiting that may come in: there is a place for it, and the VM
    /// keeps up with what it is told about those who come and go.
    fn next_to_accept(&self) -> Option<ListenerId> {
        let crowded = self.handshakes.len() >= MAX_HANDSHAKES && !self.has_expendable();
        if crowded || self.accept_resumes.is_some() || !self.reports.has_room() {
            return None;
        }
        let waiting = |(id, listener): (&ListenerId, &Listener)| listener.acceptable.then_some(*id);
        self.listeners.iter().find_map(waiting)
    }

    /// Who takes long makes room when others wait, so that a crowd that does nothing cannot lock
    /// nodes out.
    fn has_expendable(&self) -> bool {
        let first = self.handshakes.first();
        first.is_some_and(|(expendable, _)| *expendable <= Instant::now())
    }

    /// Ends the most expendable handshake if there are as many as there may be.
    fn make_room(&mut self) {
        let Some(&(_, conn)) = self.handshakes.first() else {
            return;
        };
        if self.handshakes.len() >= MAX_HANDSHAKES {
            self.ended(
                conn,
                Ended {
                    reason: Reason::SystemError,
                    explanation: "it had to make room for other handshakes".into(),
                },
            );
        }
    }

    fn accept_one(&mut self, id: ListenerId) {
        let Some(listener) = self.listeners.get_mut(&id) else {
            return;
        };
        match listener.accept() {
            Ok(stream) => self.accepted(id, stream),
            Err(error) => {
                listener.acceptable = false;
                if error.kind() != io::ErrorKind::WouldBlock {
                    self.pause_accepting(&error);
                } else if std::mem::take(&mut self.accept_failing) {
                    log::warn!("accepting connections again, nobody waits any more");
                }
            }
        }
    }

    fn accepted(&mut self, listener: ListenerId, stream: UnixStream) {
        let now = Instant::now();
        let peer = match os::peer_credentials(stream.as_fd()) {
            Ok(peer) => peer,
            Err(error) => return log::warn!("dropped a peer that nobody knows: {error}"),
        };
        if let Err(refusal) = self.admission.check(&peer, now) {
            if let Some(count) = refusal.count {
                log::warn!("refused a peer, {}", refused(&peer, count));
            }
            return;
        }
        // Not sooner: one that is refused takes nobody's place.
        self.make_room();
        let conn = self.next_accepted();
        let direction = Direction::In {
            expendable: now + SILENCE_GRACE,
        };
        match self.add(conn, Connection::new(stream, peer, direction)) {
            Ok(()) => self.reports.push(&Report::Accepted {
                conn,
                listener,
                peer,
            }),
            Err(error) => log::warn!("dropped a peer: {error}"),
        }
    }

    /// Peers wait in the backlog meanwhile; trying again at once would only burn the CPU.
    fn pause_accepting(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.accept_failing, true) {
            let advice = match os::is_out_of_descriptors(error) {
                true => "; raise the limit of open files (ulimit -n, LimitNOFILE=)",
                false => "",
            };
            log::error!("cannot accept connections: {error}; existing ones go on{advice}");
        }
        self.accept_resumes = Some(Instant::now() + ACCEPT_PAUSE);
    }

    /// Even numbers are the sidecar's.
    fn next_accepted(&mut self) -> ConnId {
        loop {
            self.last_accepted = match self.last_accepted + 2 {
                id if id < MAX_CONN => id,
                _ => 2,
            };
            if !self.connections.contains_key(&self.last_accepted) {
                return self.last_accepted;
            }
        }
    }

    /// Reads sockets in turn while the VM keeps up, each connection at most once.
    pub fn read(&mut self) {
        for _ in 0..self.turns.len() {
            if !self.reports.has_room() {
                return;
            }
            let Some(conn) = self.turns.pop_front() else {
                return;
            };
            let Some(connection) = self.connections.get_mut(&conn) else {
                continue;
            };
            connection.queued = false;
            if !connection.wants_read() {
                continue;
            }
            let available = connection.to_vm.available() as usize;
            if let Some(count) = connection.take_long(available.min(MAX_GAP)) {
                self.reports.push_gap(conn, count);
                self.await_turn(conn);
                continue;
            }
            let limit = available.min(MAX_DATA);
            let is_first = connection.bytes_in == 0;
            let mut outcome = ReadOutcome::Drained;
            let _ = self.reports.push_data(conn, limit, |buffer| {
                let count;
                (count, outcome) = connection.read(buffer);
                Ok(count)
            });
            if is_first && connection.bytes_in > 0 {
                self.handshake_begun(conn);
            }
            match outcome {
                ReadOutcome::More => self.await_turn(conn),
                ReadOutcome::Drained => (),
                ReadOutcome::Ended(ended) => self.ended(conn, ended),
            }
        }
    }

    fn ended(&mut self, conn: ConnId, ended: Ended) {
        self.remove(conn);
        self.reports.push(&Report::Closed {
            conn,
            reason: ended.reason,
            explanation: ended.explanation,
        });
    }

    /// Writes what waits, and tells the VM what has been written.
    pub fn write(&mut self) {
        for conn in std::mem::take(&mut self.unflushed) {
            let Some(connection) = self.connections.get_mut(&conn) else {
                continue;
            };
            connection.unflushed = false;
            connection.flush();
            if !matches!(connection.stage, Stage::Closing) {
                if let Some(count) = connection.from_vm.take_acknowledgement() {
                    self.reports.push(&Report::Ack { conn, count });
                }
            } else if connection.waiting() == 0 {
                self.remove(conn);
                continue;
            }
            self.watch_for_writing(conn);
            // A failed write is found out by reading.
            self.await_turn(conn);
        }
    }

    fn watch_for_writing(&mut self, conn: ConnId) {
        let Some(connection) = self.connections.get_mut(&conn) else {
            return;
        };
        let wanted = connection.waiting() > 0;
        if wanted == connection.watched_for_writing {
            return;
        }
        let interest = match wanted {
            true => Interest::READABLE | Interest::WRITABLE,
            false => Interest::READABLE,
        };
        let stream = connection.stream_mut();
        match self.registry.reregister(stream, conn_token(conn), interest) {
            Ok(()) => connection.watched_for_writing = wanted,
            Err(error) => self.ended(
                conn,
                Ended {
                    reason: Reason::SystemError,
                    explanation: format!("cannot watch the socket: {error}"),
                },
            ),
        }
    }

    /// True if there is something to do without waiting for readiness.
    pub fn has_work(&self) -> bool {
        !self.unflushed.is_empty()
            || (!self.turns.is_empty() && self.reports.has_room())
            || self.next_to_accept().is_some()
    }

    /// When [`tick`](Self::tick) is due.
    pub fn deadline(&self) -> Option<Instant> {
        let lingering = self.lingering.front().map(|(until, _)| *until);
        let crowded = match self.handshakes.first() {
            Some((expendable, _)) if self.handshakes.len() >= MAX_HANDSHAKES => Some(*expendable),
            _ => None,
        };
        let somebody_waits =
            self.reports.has_room() && self.listeners.values().any(|l| l.acceptable);
        lingering
            .into_iter()
            .chain(crowded.filter(|_| somebody_waits))
            .chain(self.accept_resumes)
            .min()
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Instant) {
        while let Some(&(until, conn)) = self.lingering.front() {
            if until > now {
                break;
            }
            self.lingering.pop_front();
            if self.connections.contains_key(&conn) {
                log::info!("connection {conn} was closed before its peer had read everything");
                self.remove(conn);
            }
        }
        if self.accept_resumes.is_some_and(|resumes| resumes <= now) {
            self.accept_resumes = None;
            // Peers may have waited through the pause; only accepting tells.
            for listener in self.listeners.values_mut() {
                listener.acceptable = true;
            }
        }
    }

    /// Gives the names up, and writes what waits once more.
    pub fn begin_shutdown(&mut self) {
        self.listeners.clear();
        self.turns.clear();
        self.write();
    }

    /// Delivers what is left, after [`begin_shutdown`](Self::begin_shutdown); true when all is.
    pub fn is_delivered(&mut self) -> bool {
        self.unflushed.clear();
        self.connections.retain(|_, connection| {
            connection.flush();
            connection.waiting() > 0
        });
        self.connections.is_empty()
    }

    /// Writes a table of what there is to the log.
    pub fn log_table(&self) {
        for listener in self.listeners.values() {
            log::info!("listening at {}", listener.address);
        }
        let mut ids: Vec<_> = self.connections.keys().copied().collect();
        ids.sort_unstable();
        log::info!(
            "{} connections, {} shaking hands, {} handed over so far",
            ids.len(),
            self.handshakes.len(),
            self.handover.passed()
        );
        for id in ids {
            let connection = &self.connections[&id];
            let with = match &connection.stage {
                Stage::Handshake => "(handshake)",
                Stage::Established(node) => node,
                Stage::Closing => "(closing)",
            };
            log::info!(
                "{id} {} {with} uid {} pid {}: {} bytes in, {} out, {} wait for the peer, {} for the VM",
                if connection.outbound { "to" } else { "from" },
                connection.peer.uid,
                connection.peer.pid,
                connection.bytes_in,
                connection.bytes_out,
                connection.waiting(),
                connection.to_vm.unacknowledged(),
            );
        }
    }
}

fn conn_token(conn: ConnId) -> Token {
    Token(FIRST_CONN_TOKEN + conn as usize)
}

/// Says who was refused, how often, and what decides about it.
fn refused(peer: &Credentials, count: u32) -> String {
    format!(
        "uid {}, gid {}, pid {}: allowed_uids and allowed_gids do not include it \
         ({count} refused of this uid)",
        peer.uid, peer.gid, peer.pid
    )
}

fn system_error(what: &str, address: &Address, error: &io::Error) -> Failure {
    Failure {
        reason: Reason::SystemError,
        explanation: format!("cannot {what} {address}: {error}"),
    }
}
