//! Tests the sidecar's state machine against a model, with random commands of the VM and random actions of peers in
//! any order, valid or not. Bytes must arrive completely and in order, both on relayed connections and in sockets that
//! are handed over. No receiver is sent more than a window, and nothing panics.
//!
//! `PROPTEST_CASES` sets the number of runs; `make fuzz` uses many.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

#[path = "fixtures/mod.rs"]
mod fixtures;

use fixtures::NAME;
use proptest::prelude::*;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg, send};
use rustix::pipe::{PipeFlags, pipe_with};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use uds_dist::address::Address;
use uds_dist::event_loop::EventLoop;
use uds_dist::ids::ConnId;
use uds_dist::os;
use uds_dist::port::codec::data_head;
use uds_dist::port::protocol::{Command, DATA, HANDSHAKE_WINDOW, Report, WINDOW};

/// The next step. Indices choose among the existing connections.
#[derive(Debug, Clone)]
enum Step {
    /// A peer connects and sends its name, at once or a little later, and then this number of bytes. It may then close.
    PeerConnects {
        at_once: bool,
        more: usize,
        goes: bool,
    },
    /// A peer connects and sends this number of bytes of a name, which may be invalid, and nothing more.
    StrangerConnects(usize, bool),
    VmConnects,
    VmOpensChannel(bool),
    VmEntersChannel,
    PeerWrites(usize, usize),
    PeerReads(usize, usize),
    PeerSendsOutOfBand(usize),
    PeerCloses(usize),
    VmReads(usize),
    VmSends(usize, usize),
    VmAcknowledges(usize, u8),
    VmEstablishes(usize),
    VmHandsOver(usize),
    VmCloses(usize),
    VmTalksNonsense(Vec<u8>),
    VmOversteps(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let index = 0..6usize;
    let amount = prop_oneof![0..20usize, 0..5000usize, 0..300_000usize];
    prop_oneof![
        3 => Just(Step::PeerConnects { at_once: true, more: 0, goes: false }),
        1 => (any::<bool>(), 0..5000usize, any::<bool>())
            .prop_map(|(at_once, more, goes)| Step::PeerConnects { at_once, more, goes }),
        1 => (0..NAME.len(), any::<bool>()).prop_map(|(n, b)| Step::StrangerConnects(n, b)),
        2 => Just(Step::VmConnects),
        1 => any::<bool>().prop_map(Step::VmOpensChannel),
        2 => Just(Step::VmEntersChannel),
        10 => (index.clone(), amount.clone()).prop_map(|(i, n)| Step::PeerWrites(i, n)),
        10 => (index.clone(), amount.clone()).prop_map(|(i, n)| Step::PeerReads(i, n)),
        1 => index.clone().prop_map(Step::PeerSendsOutOfBand),
        1 => index.clone().prop_map(Step::PeerCloses),
        10 => amount.clone().prop_map(Step::VmReads),
        10 => (index.clone(), amount).prop_map(|(i, n)| Step::VmSends(i, n)),
        6 => (index.clone(), any::<u8>()).prop_map(|(i, n)| Step::VmAcknowledges(i, n)),
        3 => index.clone().prop_map(Step::VmEstablishes),
        3 => index.clone().prop_map(Step::VmHandsOver),
        1 => index.clone().prop_map(Step::VmCloses),
    ]
}

/// A step that may end the sidecar. It is the last step of a run.
fn last_step() -> impl Strategy<Value = Option<Step>> {
    prop_oneof![
        3 => Just(None),
        1 => proptest::collection::vec(any::<u8>(), 1..64).prop_map(|b| Some(Step::VmTalksNonsense(b))),
        1 => (0..6usize).prop_map(|i| Some(Step::VmOversteps(i))),
    ]
}

/// The byte at a position of a stream, so that bytes out of place are noticed.
fn byte_at(seed: u32, position: u64) -> u8 {
    (position.wrapping_mul(31).wrapping_add(u64::from(seed)) % 251) as u8
}

fn stream(seed: u32, from: u64, count: usize) -> Vec<u8> {
    (0..count as u64).map(|i| byte_at(seed, from + i)).collect()
}

/// The expected state of a connection.
struct Model {
    /// The peer's end, until it is closed.
    peer: Option<UnixStream>,
    /// The peer's name has not arrived yet. It is not included in the numbers below.
    awaits_name: bool,
    /// Bytes that the VM has sent, and that the peer has read.
    vm_sent: u64,
    peer_read: u64,
    vm_acknowledged: u64,
    /// Bytes that the peer has written, and that the VM has read and acknowledged.
    peer_wrote: u64,
    vm_read: u64,
    acknowledged: u64,
    established: bool,
    /// The VM has requested the socket and waits for the answer.
    handing_over: bool,
    /// The VM has received the socket. It may have closed it since.
    handed_over: bool,
    socket: Option<UnixStream>,
    vm_closed: bool,
    ended: bool,
    /// The peer has sent out-of-band data, so the rest of its stream is undefined.
    out_of_band: bool,
}

impl Model {
    fn new(peer: UnixStream, awaits_name: bool) -> Model {
        peer.set_nonblocking(true).unwrap();
        Model {
            peer: Some(peer),
            awaits_name,
            vm_sent: 0,
            peer_read: 0,
            vm_acknowledged: 0,
            peer_wrote: 0,
            vm_read: 0,
            acknowledged: 0,
            established: false,
            handing_over: false,
            handed_over: false,
            socket: None,
            vm_closed: false,
            ended: false,
            out_of_band: false,
        }
    }

    /// The VM may send commands about it.
    fn open_for_vm(&self) -> bool {
        !self.vm_closed && !self.ended && !self.handed_over
    }

    /// The VM and the sidecar are done with its number.
    fn is_done_with(&self) -> bool {
        self.vm_closed && self.ended || self.is_dropped()
    }

    /// The VM closes the socket that it has received.
    fn is_dropped(&self) -> bool {
        self.handed_over && self.socket.is_none()
    }

    /// The VM writes to the socket that it has received.
    fn vm_writes(&mut self, seed: u32, count: usize) {
        let Some(socket) = &mut self.socket else {
            return;
        };
        match socket.write(&stream(seed, self.vm_sent, count)) {
            Ok(written) => self.vm_sent += written as u64,
            Err(error) => {
                let expected = error.kind() == ErrorKind::WouldBlock || self.peer.is_none();
                assert!(expected, "the VM's write: {error}");
            }
        }
    }

    /// The VM reads from the socket that it has received. Returns the number of bytes.
    fn vm_reads(&mut self, seed: u32, count: usize) -> usize {
        let Some(socket) = &mut self.socket else {
            return 0;
        };
        let mut buffer = vec![0; count];
        match socket.read(&mut buffer) {
            Ok(read) => {
                assert!(
                    self.out_of_band || buffer[..read] == stream(seed, self.vm_read, read)[..],
                    "the VM got other bytes than the peer of {seed} wrote"
                );
                self.vm_read += read as u64;
                read
            }
            Err(error) => {
                let expected = error.kind() == ErrorKind::WouldBlock || self.peer.is_none();
                assert!(expected, "the VM's read: {error}");
                0
            }
        }
    }

    fn peer_reads(&mut self, seed: u32, count: usize) -> usize {
        let Some(peer) = &mut self.peer else { return 0 };
        let mut buffer = vec![0; count];
        match peer.read(&mut buffer) {
            Ok(read) => {
                assert!(
                    buffer[..read] == stream(seed, self.peer_read, read)[..],
                    "the peer of {seed} got other bytes than the VM sent"
                );
                self.peer_read += read as u64;
                read
            }
            Err(error) => {
                let expected = [ErrorKind::WouldBlock, ErrorKind::ConnectionReset];
                assert!(expected.contains(&error.kind()), "the peer's read: {error}");
                0
            }
        }
    }
}

/// A sidecar, its VM and its peers.
struct World {
    sidecar: EventLoop<OwnedFd, OwnedFd>,
    /// The VM's ends of the port.
    to_sidecar: File,
    from_sidecar: File,
    directory: PathBuf,
    /// The address to which the VM connects.
    elsewhere: UnixListener,
    models: BTreeMap<ConnId, Model>,
    /// Peers that have connected and sent their names, in the order in which they will be accepted.
    coming_in: Vec<(ConnId, Model)>,
    /// The last number of an incoming connection.
    last_inbound: ConnId,
    /// Peers that must not be reported to the VM.
    strangers: Vec<UnixStream>,
    /// Bytes from the sidecar that are not a complete packet yet.
    partly_read: Vec<u8>,
    last_conn: ConnId,
    channel: Channel,
}

/// The VM's end of the channel.
enum Channel {
    Closed,
    AskedFor,
    Offered(Vec<u8>),
    Open(UnixStream),
}

static WORLDS: AtomicUsize = AtomicUsize::new(0);

impl World {
    fn new() -> World {
        let number = WORLDS.fetch_add(1, Ordering::Relaxed);
        let name = format!("uds_dist_model.{}.{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir(&directory).unwrap();
        let elsewhere = UnixListener::bind(directory.join("elsewhere")).unwrap();
        let flags = PipeFlags::NONBLOCK | PipeFlags::CLOEXEC;
        let (stdin, to_sidecar) = pipe_with(flags).unwrap();
        let (from_sidecar, stdout) = pipe_with(flags).unwrap();
        let mut world = World {
            sidecar: EventLoop::new(stdin, stdout, Duration::ZERO).unwrap(),
            to_sidecar: to_sidecar.into(),
            from_sidecar: from_sidecar.into(),
            elsewhere,
            models: BTreeMap::new(),
            coming_in: Vec::new(),
            last_inbound: 0,
            strangers: Vec::new(),
            partly_read: Vec::new(),
            last_conn: 16_777_215,
            channel: Channel::Closed,
            directory,
        };
        world.command(&Command::Listen {
            listener: 0,
            backlog: 128,
            mode: 0o600,
            vm_pid: 1,
            address: world.path("here"),
        });
        world.vm_reads(usize::MAX);
        world
    }

    fn path(&self, name: &str) -> Vec<u8> {
        self.directory.join(name).as_os_str().as_bytes().to_vec()
    }

    fn command(&mut self, command: &Command) {
        let mut bytes = Vec::new();
        command.encode(&mut bytes);
        assert!(self.feed(&bytes), "a valid command was refused");
    }

    /// The VM writes these bytes; false if the sidecar would end.
    fn feed(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            match self.to_sidecar.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            if !self.turn() {
                return false;
            }
        }
        true
    }

    /// Runs the loop until there is nothing left to do; false if the sidecar would end.
    fn turn(&mut self) -> bool {
        loop {
            match self.sidecar.turn(Some(Duration::ZERO)) {
                Err(_) => return false,
                Ok(vm_lives) => assert!(vm_lives),
            }
            if !self.sidecar.had_events() && !self.sidecar.has_work() {
                return true;
            }
        }
    }

    fn chosen(&self, index: usize) -> Option<ConnId> {
        let count = self.models.len().max(1);
        self.models.keys().nth(index % count).copied()
    }

    fn take(&mut self, step: &Step) -> bool {
        match step {
            Step::PeerConnects {
                at_once,
                more,
                goes,
            } => {
                let (mut peer, conn) = self.come_in();
                assert!(*at_once || self.turn());
                let more = stream(conn, 0, *more);
                peer.write_all(&[NAME, &more].concat()).unwrap();
                let mut model = Model::new(peer, true);
                model.peer_wrote = more.len() as u64;
                if *goes {
                    model.peer = None;
                }
                self.coming_in.push((conn, model));
            }
            Step::StrangerConnects(count, is_wrong) => {
                let (mut stranger, _) = self.come_in();
                stranger.write_all(&NAME[..*count]).unwrap();
                if *is_wrong {
                    stranger.write_all(&[0; 26]).unwrap();
                }
                self.strangers.push(stranger);
            }
            Step::VmConnects => {
                let conn = self.number();
                self.command(&Command::Connect {
                    conn,
                    address: self.path("elsewhere"),
                });
                let (peer, _) = self.elsewhere.accept().unwrap();
                self.models.insert(conn, Model::new(peer, false));
            }
            Step::VmOpensChannel(here) => {
                if matches!(self.channel, Channel::Closed) {
                    self.channel = Channel::AskedFor;
                    self.command(&Command::OpenChannel {
                        vm_pid: std::process::id(),
                        directory: if *here { self.path("") } else { Vec::new() },
                    });
                }
            }
            Step::VmEntersChannel => {
                if let Channel::Offered(address) = &self.channel {
                    let address = os::socket_address(&Address::from_bytes(address)).unwrap();
                    let channel = UnixStream::from(os::connect(&address).unwrap());
                    self.channel = Channel::Open(channel);
                }
            }
            Step::VmReads(count) => self.vm_reads(*count),
            Step::VmTalksNonsense(bytes) => return self.feed(bytes),
            Step::PeerWrites(index, _)
            | Step::PeerReads(index, _)
            | Step::PeerSendsOutOfBand(index)
            | Step::PeerCloses(index)
            | Step::VmSends(index, _)
            | Step::VmAcknowledges(index, _)
            | Step::VmEstablishes(index)
            | Step::VmHandsOver(index)
            | Step::VmCloses(index)
            | Step::VmOversteps(index) => {
                if let Some(conn) = self.chosen(*index) {
                    return self.take_with(step, conn);
                }
            }
        }
        true
    }

    /// Connects a peer. Returns it with the number that it will have.
    fn come_in(&mut self) -> (UnixStream, ConnId) {
        self.last_inbound += 2;
        let stream = UnixStream::connect(self.directory.join("here")).unwrap();
        (stream, self.last_inbound)
    }

    /// A number for an outgoing connection, either unused or in use.
    fn number(&mut self) -> ConnId {
        let mut of_ours = self.models.iter().filter(|(conn, _)| *conn % 2 == 1);
        if let Some((conn, _)) = of_ours.find(|(_, model)| model.is_done_with()) {
            return *conn;
        }
        self.last_conn += 2;
        self.last_conn
    }

    fn take_with(&mut self, step: &Step, conn: ConnId) -> bool {
        let model = self.models.get_mut(&conn).unwrap();
        match step {
            Step::PeerWrites(_, count) => {
                if let Some(peer) = &mut model.peer {
                    let bytes = stream(conn, model.peer_wrote, *count);
                    match peer.write(&bytes) {
                        Ok(written) => model.peer_wrote += written as u64,
                        Err(error) => assert!(
                            error.kind() == ErrorKind::WouldBlock
                                || model.vm_closed
                                || model.is_dropped()
                                || model.out_of_band,
                            "the peer's write: {error}"
                        ),
                    }
                }
            }
            Step::PeerReads(_, count) => {
                model.peer_reads(conn, *count);
            }
            Step::PeerSendsOutOfBand(_) => {
                if let Some(peer) = &model.peer {
                    // This fails if there is no room, or if the system has no out-of-band data.
                    model.out_of_band |= send(peer, b"!", SendFlags::OOB).is_ok();
                }
            }
            Step::PeerCloses(_) => model.peer = None,
            Step::VmSends(_, count) if model.handed_over => model.vm_writes(conn, *count),
            Step::VmAcknowledges(_, part) if model.handed_over => {
                model.vm_reads(conn, usize::from(*part) * 1000);
            }
            Step::VmSends(_, count) if model.open_for_vm() && !model.handing_over => {
                let available = u64::from(WINDOW) - (model.vm_sent - model.vm_acknowledged);
                let count = (*count).min(available as usize);
                let mut packet = data_head(conn, count).to_vec();
                packet.extend(stream(conn, model.vm_sent, count));
                model.vm_sent += count as u64;
                assert!(self.feed(&packet), "DATA within the window was refused");
            }
            Step::VmAcknowledges(_, part) if model.open_for_vm() && model.established => {
                let count = (model.vm_read - model.acknowledged) * u64::from(*part) / 255;
                model.acknowledged += count;
                self.command(&Command::Ack {
                    conn,
                    count: count as u32,
                });
            }
            Step::VmEstablishes(_) | Step::VmHandsOver(_)
                if !model.open_for_vm() || model.established || model.handing_over => {}
            Step::VmHandsOver(_) => {
                model.handing_over = true;
                self.command(&Command::HandOver {
                    conn,
                    node: "peer@host".into(),
                });
            }
            Step::VmEstablishes(_) => {
                model.established = true;
                self.command(&Command::Established {
                    conn,
                    node: "peer@host".into(),
                });
            }
            Step::VmCloses(_) if model.handed_over => model.socket = None,
            Step::VmCloses(_) if !model.vm_closed => {
                model.vm_closed = true;
                self.command(&Command::Close { conn });
            }
            Step::VmOversteps(_) if model.open_for_vm() => {
                let acknowledged = model.vm_read - model.acknowledged + 1;
                let mut bytes = Vec::new();
                Command::Ack {
                    conn,
                    count: acknowledged as u32 + WINDOW,
                }
                .encode(&mut bytes);
                // The command may be ignored only if the sidecar is done with the connection meanwhile.
                let refused = !self.feed(&bytes);
                let model = &self.models[&conn];
                assert!(
                    refused || model.peer.is_none() || model.handing_over || model.out_of_band,
                    "too large an ACK was taken"
                );
                return !refused;
            }
            _ => (),
        }
        true
    }

    /// The VM reads some bytes from its port and checks the reports.
    fn vm_reads(&mut self, count: usize) {
        assert!(self.turn());
        let read = (&self.from_sidecar).take(count as u64);
        if let Err(error) = { read }.read_to_end(&mut self.partly_read) {
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
        }
        while let Some((head, rest)) = self.partly_read.split_first_chunk::<4>() {
            let length = u32::from_be_bytes(*head) as usize;
            if rest.len() < length {
                break;
            }
            let body = rest[..length].to_vec();
            self.partly_read.drain(..4 + length);
            match body {
                _ if body[0] == DATA => self.vm_got_data(&body),
                _ => self.vm_got(Report::decode(&body).unwrap()),
            }
        }
    }

    fn vm_got_data(&mut self, body: &[u8]) {
        let conn = ConnId::from_be_bytes(body[1..5].try_into().unwrap());
        let model = self.models.get_mut(&conn).expect("DATA of no connection");
        assert!(!model.ended && !model.handed_over, "DATA after the end");
        let mut bytes = &body[5..];
        assert!(!bytes.is_empty());
        if std::mem::take(&mut model.awaits_name) {
            bytes = bytes.strip_prefix(NAME).expect("a name first");
        }
        assert!(
            model.out_of_band || bytes == &stream(conn, model.vm_read, bytes.len())[..],
            "the VM got other bytes than the peer of {conn} wrote"
        );
        model.vm_read += bytes.len() as u64;
        let window = match model.established {
            true => WINDOW,
            false => HANDSHAKE_WINDOW,
        };
        assert!(model.vm_read - model.acknowledged <= u64::from(window));
        assert!(model.out_of_band || model.vm_read <= model.peer_wrote);
    }

    fn vm_got(&mut self, report: Report) {
        match report {
            Report::Accepted { conn, .. } => {
                let (expected, model) = self.coming_in.remove(0);
                assert_eq!(conn, expected);
                assert!(self.models.insert(conn, model).is_none());
            }
            Report::Ack { conn, count } => {
                let model = self.models.get_mut(&conn).expect("ACK of no connection");
                model.vm_acknowledged += u64::from(count);
                assert!(model.vm_acknowledged <= model.vm_sent);
            }
            Report::Closed { conn, .. } => {
                let model = self.models.get_mut(&conn).expect("CLOSED of no connection");
                assert!(!model.ended, "CLOSED twice");
                assert!(
                    model.peer.is_none() || model.out_of_band,
                    "CLOSED while the peer is there"
                );
                assert!(
                    model.out_of_band || model.vm_closed || model.vm_read == model.peer_wrote,
                    "bytes lost"
                );
                model.ended = true;
            }
            Report::Channel { address } => self.channel = Channel::Offered(address),
            Report::HandedOver { conn } => {
                let socket = self.socket();
                let model = self.models.get_mut(&conn).expect("no such connection");
                assert!(model.handing_over && !model.ended);
                model.handing_over = false;
                model.handed_over = true;
                if !model.vm_closed {
                    socket.set_nonblocking(true).unwrap();
                    model.socket = Some(socket);
                }
            }
            Report::Relayed { conn } => {
                let model = self.models.get_mut(&conn).expect("no such connection");
                assert!(model.handing_over && !model.ended);
                model.handing_over = false;
                model.established = true;
            }
            Report::Hello { .. } | Report::Connected { .. } | Report::Listening { .. } => (),
            other => panic!("unexpected {other:?}"),
        }
    }

    /// Receives the next socket from the channel.
    fn socket(&self) -> UnixStream {
        let Channel::Open(channel) = &self.channel else {
            panic!("a socket without a channel");
        };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let place = &mut [IoSliceMut::new(&mut byte)];
        recvmsg(channel, place, &mut control, RecvFlags::DONTWAIT).unwrap();
        let Some(RecvAncillaryMessage::ScmRights(mut descriptors)) = control.drain().next() else {
            panic!("no descriptor");
        };
        UnixStream::from(descriptors.next().unwrap())
    }

    /// Peers and VM read and acknowledge everything. Then no bytes may be missing.
    fn settle(&mut self) {
        for conn in self.models.keys().copied().collect::<Vec<_>>() {
            self.take_with(&Step::VmEstablishes(0), conn);
        }
        loop {
            let before = self.progress();
            assert!(self.turn());
            self.vm_reads(usize::MAX);
            for conn in self.models.keys().copied().collect::<Vec<_>>() {
                self.take_with(&Step::VmEstablishes(0), conn);
                self.take_with(&Step::VmAcknowledges(0, 255), conn);
                let model = self.models.get_mut(&conn).unwrap();
                while model.vm_reads(conn, 1 << 20) > 0 {}
                while self
                    .models
                    .get_mut(&conn)
                    .unwrap()
                    .peer_reads(conn, 1 << 20)
                    > 0
                {}
            }
            if self.progress() == before && self.coming_in.is_empty() {
                break;
            }
        }
        for (conn, model) in &self.models {
            if model.out_of_band {
                continue;
            }
            if model.peer.is_some() {
                assert_eq!(
                    model.peer_read, model.vm_sent,
                    "bytes to the peer of {conn}"
                );
                assert!(!model.ended);
                assert!(
                    model.vm_closed || model.is_dropped() || model.vm_read == model.peer_wrote,
                    "bytes of {conn}"
                );
            } else {
                assert!(
                    model.ended || model.vm_closed || model.handed_over,
                    "{conn} was not reported down"
                );
            }
        }
    }

    fn progress(&self) -> (usize, usize, u64) {
        let bytes = self.models.values().map(|m| {
            m.peer_read + m.vm_read + m.acknowledged + m.vm_acknowledged + u64::from(m.ended)
        });
        (self.models.len(), self.partly_read.len(), bytes.sum())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // This fails only if the directory does not exist any more, which does not matter.
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bytes_arrive_in_order_within_the_window(
        steps in proptest::collection::vec(step(), 1..120),
        last in last_step(),
    ) {
        let mut world = World::new();
        for step in &steps {
            prop_assert!(world.take(step));
            prop_assert!(world.turn());
        }
        match last {
            // The sidecar may continue, if the input happens to be valid, or end, but it must not panic.
            Some(last) => drop(world.take(&last)),
            None => world.settle(),
        }
    }
}
