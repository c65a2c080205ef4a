//! Dispatches the VM's commands to the modules that carry them out, and gives each module its turn.
//!
//! There are three: the door (listeners and handshakes in progress), the table of connections, and the
//! channel that passes sockets to the VM. This module knows neither how they work nor where the VM's bytes
//! come from.

use crate::address::Address;
use crate::channel::Channel;
use crate::door::{Arrival, Door, NamedPeer, Newcomer};
use crate::failure::Failure;
use crate::ids::{ConnId, ListenerId, MAX_CONN};
use crate::log_line::Cause;
use crate::os;
use crate::peer::Credentials;
use crate::peers::connection::{Connection, Direction};
use crate::peers::table::{Table, Turn};
use crate::port::pipes::Moved;
use crate::port::protocol::{Command, Report, Status};
use crate::port::queue::ReportQueue;
use crate::port::reader::Input;
use crate::token::Source;
use mio::Registry;
use mio::event::Event;
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

/// Most peers that are accepted or refused in one turn: even a flood of connects that are all refused must
/// not hold up existing connections.
const MAX_ACCEPTED_PER_TURN: usize = 64;

/// A violation of the port protocol by the VM. Nothing that it sends afterwards can be trusted.
#[derive(Debug)]
pub struct Violation(String);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The listeners, connections and channel of one VM.
pub struct Switchboard {
    door: Door,
    table: Table,
    channel: Channel,
    /// The number given to the latest incoming connection.
    last_inbound: ConnId,
}

impl Switchboard {
    /// A switchboard without listeners or connections. Sockets will be registered with `registry`.
    ///
    /// # Errors
    /// If `registry` cannot be cloned.
    pub fn new(registry: &Registry) -> io::Result<Self> {
        Ok(Switchboard {
            door: Door::new(registry.try_clone()?)?,
            table: Table::new(registry.try_clone()?),
            channel: Channel::new(registry.try_clone()?),
            last_inbound: 0,
        })
    }

    // --- input from the VM -----------------------------------------------------------------------

    /// Carries out a command of the VM, or takes DATA for a peer.
    ///
    /// # Errors
    /// If the VM violates the protocol.
    pub fn input(&mut self, input: Input<'_>, reports: &mut ReportQueue) -> Result<(), Violation> {
        match input {
            Input::Command(command) => self.command(command, reports),
            Input::Data { conn, bytes } => self
                .table
                .send(conn, bytes)
                .map_err(|_| Violation(format!("DATA beyond the window of connection {conn}"))),
        }
    }

    fn command(&mut self, command: Command, reports: &mut ReportQueue) -> Result<(), Violation> {
        match command {
            Command::Listen {
                listener,
                backlog,
                mode,
                vm_pid,
                address,
            } => {
                if !self.door.is_free(listener) {
                    return Err(Violation(format!(
                        "LISTEN with listener {listener}, which is in use or out of range"
                    )));
                }
                let address = Address::from_bytes(&address);
                let listening = self.door.listen(listener, address, backlog, mode, vm_pid);
                reports.push(&listened(listener, listening));
            }
            Command::Unlisten { listener } => {
                self.door.unlisten(listener);
                reports.push(&Report::Unlistened { listener });
            }
            Command::Connect { conn, address } => {
                if conn % 2 == 0 || self.table.contains(conn) {
                    return Err(Violation(format!(
                        "CONNECT with connection {conn}, which is in use or even"
                    )));
                }
                let connecting = self.connect(conn, &Address::from_bytes(&address));
                reports.push(&connected(conn, connecting));
            }
            Command::Established { conn, node } => {
                self.door.connected(conn, &node);
                self.table.establish(conn, node);
            }
            Command::OpenChannel { vm_pid, directory } => {
                if !self.channel.is_closed() {
                    return Err(Violation("OPEN_CHANNEL while there is a channel".into()));
                }
                let offered = self.channel.offer(vm_pid, &directory, Instant::now());
                reports.push(&channel_offered(offered));
            }
            Command::HandOver { conn, node } => self.hand_over(conn, node, reports),
            Command::Close { conn } => {
                self.door.closed(conn, Instant::now());
                if self.table.close(conn) {
                    self.descriptor_freed();
                }
            }
            Command::Admit(policy) => self.door.set_policy(policy),
            Command::AskStatus => reports.push(&Report::Status(status())),
            Command::Ack { conn, count } => {
                self.table.acknowledged(conn, count).map_err(|_| {
                    Violation(format!(
                        "ACK of {count} bytes too many for connection {conn}"
                    ))
                })?;
            }
        }
        Ok(())
    }

    fn connect(&mut self, conn: ConnId, address: &Address) -> Result<Credentials, Failure> {
        let (stream, peer) = self.door.dial(address)?;
        let connection = Connection::new(stream, peer, Direction::Out);
        match self.table.insert(conn, connection) {
            Ok(()) => Ok(peer),
            Err(error) => Err(Failure::system(format!(
                "the connection to {address} failed: {error}"
            ))),
        }
    }

    /// Passes the connection's socket to the VM. What was read from it has been reported already; the VM
    /// reads the rest.
    fn hand_over(&mut self, conn: ConnId, node: String, reports: &mut ReportQueue) {
        self.door.connected(conn, &node);
        let channel = &mut self.channel;
        match self.table.give_away(conn, |socket| channel.pass(socket)) {
            None => (), // it ended while HAND_OVER was on its way
            Some(Ok(())) => {
                log::debug!("connection {conn} with {node} is handed over");
                self.descriptor_freed();
                reports.push(&Report::HandedOver { conn });
            }
            Some(Err(error)) => {
                log::warn!(
                    reason = Cause::NotHandedOver, node = node.as_str();
                    "the connection with {node} is not handed over to the VM: {error}"
                );
                self.table.establish(conn, node);
                reports.push(&Report::Relayed { conn });
            }
        }
    }

    /// Splices up to `limit` bytes of DATA from the VM's pipe to the connection's socket. Returns the
    /// number of bytes moved; 0 means that they have to be read and passed to [`input`](Self::input).
    pub fn splice_from(&mut self, pipe: impl AsFd, conn: ConnId, limit: usize) -> usize {
        self.table.splice_from(pipe, conn, limit)
    }

    /// Moves bytes that were announced to the VM from their socket to the VM's pipe; `missing` is the
    /// number still to come.
    ///
    /// # Errors
    /// `WouldBlock` if the pipe is full; any other error is that of the pipe.
    pub fn splice_to(
        &mut self,
        pipe: impl AsFd,
        conn: ConnId,
        missing: usize,
    ) -> io::Result<Moved> {
        self.table.splice_to(pipe, conn, missing)
    }

    // --- turns -----------------------------------------------------------------------------------

    /// Records that a listener, a connection or the channel is ready.
    pub fn ready(&mut self, source: Source, event: &Event) {
        match source {
            Source::Channel => self.channel.ready(),
            Source::Listener(listener) => self.door.ready(listener),
            Source::Connection(conn) if self.door.has_visitor(conn) => {
                let read_closed = event.is_read_closed() || event.is_error();
                self.door.visitor_ready(conn, read_closed);
            }
            Source::Connection(conn) => self.table.ready(conn, event),
            Source::Stdin | Source::Stdout | Source::Signals => (),
        }
    }

    /// Writes queued bytes to their sockets, and acknowledges to the VM what was written.
    pub fn write(&mut self, reports: &mut ReportQueue) {
        while let Some(turn) = self.table.write_next(reports) {
            self.finish_turn(turn, reports);
        }
    }

    /// Accepts the VM at the channel, and peers at the listeners: as many as may shake hands at a time, and
    /// only while the VM keeps up with reports.
    pub fn accept(&mut self, reports: &mut ReportQueue) {
        if self.channel.may_accept() {
            self.channel.accept(Instant::now());
        }
        self.accept_peers(reports);
        self.read_visitors(reports);
    }

    fn accept_peers(&mut self, reports: &mut ReportQueue) {
        for _ in 0..MAX_ACCEPTED_PER_TURN {
            if !reports.has_room() {
                return;
            }
            let now = Instant::now();
            match self.door.accept(now) {
                Arrival::Nobody => return,
                Arrival::Examined => (),
                Arrival::NeedsRoom(conn) if self.door.dismiss(conn, now) => (),
                Arrival::NeedsRoom(conn) => {
                    self.table.end(conn);
                    let failure = Failure::system("it had to make room for other handshakes");
                    self.ended(conn, failure, reports);
                }
                Arrival::Peer(newcomer) => {
                    let conn = self.next_number();
                    self.door.enter(conn, newcomer, now);
                }
            }
        }
    }

    /// The next number for an incoming connection: even, and not in use.
    fn next_number(&mut self) -> ConnId {
        loop {
            self.last_inbound = match self.last_inbound + 2 {
                conn if conn < MAX_CONN => conn,
                _ => 2,
            };
            let conn = self.last_inbound;
            if !self.table.contains(conn) && !self.door.has_visitor(conn) {
                return conn;
            }
        }
    }

    /// Reads from the peers that have not sent their names yet, while the VM keeps up, and reports those
    /// that now have.
    fn read_visitors(&mut self, reports: &mut ReportQueue) {
        for _ in 0..self.door.visitors_due() {
            if !reports.has_room() {
                return;
            }
            if let Some(named) = self.door.read_visitor(Instant::now()) {
                self.named(named, reports);
            }
        }
    }

    fn named(&mut self, named: NamedPeer, reports: &mut ReportQueue) {
        let NamedPeer {
            conn,
            newcomer,
            bytes,
            read_closed,
        } = named;
        let Newcomer {
            stream,
            peer,
            address,
        } = newcomer;
        reports.push(&Report::Accepted {
            conn,
            peer,
            address,
        });
        reports.push_bytes(conn, &bytes);
        let mut connection = Connection::named(stream, peer, bytes.len());
        // There may be more to read; only a read can tell.
        connection.ready(true, read_closed);
        self.table.insert_registered(conn, connection);
    }

    /// Reads the connections in turn while the VM keeps up, each at most once.
    pub fn read(&mut self, reports: &mut ReportQueue) {
        for _ in 0..self.table.reads_due() {
            let Some(turn) = self.table.read_next(reports) else {
                return;
            };
            self.finish_turn(turn, reports);
        }
    }

    fn finish_turn(&mut self, turn: Turn, reports: &mut ReportQueue) {
        match turn {
            Turn::Continues => (),
            Turn::Ended(conn, failure) => self.ended(conn, failure, reports),
            Turn::Over => self.descriptor_freed(),
        }
    }

    /// Reports a connection that ended before the VM closed it.
    fn ended(&mut self, conn: ConnId, failure: Failure, reports: &mut ReportQueue) {
        self.door.ended(conn);
        self.descriptor_freed();
        let Failure {
            reason,
            explanation,
        } = failure;
        reports.push(&Report::Closed {
            conn,
            reason,
            explanation,
        });
    }

    /// Records that a socket was closed, which frees a descriptor.
    fn descriptor_freed(&mut self) {
        self.door.descriptor_freed(Instant::now());
    }

    /// True if there is work to do without waiting for readiness. `has_room` is true while the VM keeps up
    /// with reports.
    pub fn has_work(&self, has_room: bool) -> bool {
        self.table.has_writes_due()
            || self.channel.may_accept()
            || has_room
                && (self.table.reads_due() > 0
                    || self.door.visitors_due() > 0
                    || self.door.may_accept(Instant::now()))
    }

    /// The time at which [`tick`](Self::tick) is due.
    pub fn deadline(&self, has_room: bool) -> Option<Instant> {
        let deadlines = [
            self.table.deadline(),
            self.door.deadline(has_room),
            self.channel.deadline(),
        ];
        deadlines.into_iter().flatten().min()
    }

    /// Handles everything that has become due by `now`.
    pub fn tick(&mut self, now: Instant, reports: &mut ReportQueue) {
        while self.table.expire(now) {
            self.descriptor_freed();
        }
        self.door.tick(now);
        while let Some((listener, explanation)) = self.door.lost_listener(now) {
            reports.push(&Report::ListenerLost {
                listener,
                explanation,
            });
        }
        if self.channel.expire(now) {
            let explanation = "the VM did not connect to the sidecar in time".into();
            reports.push(&Report::ChannelFailed { explanation });
        }
    }

    // --- the end ---------------------------------------------------------------------------------

    /// Gives up the names, stops reading, and writes what the sockets still take.
    pub fn begin_shutdown(&mut self, reports: &mut ReportQueue) {
        self.door.close();
        self.channel.close();
        self.table.stop_reading();
        self.write(reports);
    }

    /// Delivers what is left after [`begin_shutdown`](Self::begin_shutdown); true once nothing is.
    pub fn is_delivered(&mut self) -> bool {
        self.table.deliver()
    }

    /// Checks the files of the listeners at the next [`tick`](Self::tick), even if that is not due yet.
    pub fn check_listeners(&mut self) {
        self.door.check_soon(Instant::now());
    }

    /// A table of listeners and connections, for people: the lines of the log that show it.
    pub fn describe(&self) -> Vec<String> {
        let connections = self.table.describe();
        let Status {
            descriptors,
            descriptor_limit,
            memory,
        } = status();
        let totals = [
            format!(
                "{} connections, {} in handshake, {} handed over so far; refused: {} implausible \
                 names, {} peers of users with too many failed handshakes",
                connections.len(),
                self.door.handshakes(),
                self.channel.passed(),
                self.door.implausible_names(),
                self.door.over_budget()
            ),
            format!(
                "{descriptors} descriptors of {descriptor_limit} are open; {} KiB of memory are \
                 resident",
                memory >> 10
            ),
        ];
        let lines = self.door.describe().into_iter();
        lines.chain(totals).chain(connections).collect()
    }
}

fn status() -> Status {
    Status {
        descriptors: os::open_descriptors().unwrap_or_default(),
        descriptor_limit: os::descriptor_limit().unwrap_or_default(),
        memory: os::resident_memory().unwrap_or_default(),
    }
}

fn listened(listener: ListenerId, result: Result<(), Failure>) -> Report {
    match result {
        Ok(()) => Report::Listening { listener },
        Err(Failure {
            reason,
            explanation,
        }) => Report::ListenFailed {
            listener,
            reason,
            explanation,
        },
    }
}

fn channel_offered(result: io::Result<Vec<u8>>) -> Report {
    match result {
        Ok(address) => Report::Channel { address },
        Err(error) => Report::ChannelFailed {
            explanation: format!("the sidecar cannot open a channel: {error}"),
        },
    }
}

fn connected(conn: ConnId, result: Result<Credentials, Failure>) -> Report {
    match result {
        Ok(peer) => Report::Connected { conn, peer },
        Err(Failure {
            reason,
            explanation,
        }) => Report::ConnectFailed {
            conn,
            reason,
            explanation,
        },
    }
}
