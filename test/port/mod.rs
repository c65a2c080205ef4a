//! Plays the VM's side of the port against the real sidecar, and the peers at its sockets.
//!
//! Nothing here sleeps. A test waits for events, and after [`LIMIT`] it fails and shows what it has seen instead.
//! [`Sidecar`] checks every packet against the port protocol: no bytes beyond a window, and nothing about a
//! connection before it begins or after it has ended.
#![allow(dead_code)] // no suite uses all of it

#[path = "../fixtures/mod.rs"]
mod fixtures;

pub use fixtures::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::Signal;
use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command as Program, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use uds_dist::failure::Reason;
use uds_dist::ids::{ConnId, ListenerId};
use uds_dist::log_line::Line;
use uds_dist::os;
use uds_dist::peer::Credentials;
use uds_dist::port::codec::data_head;
use uds_dist::port::protocol::{
    Command, DATA, DATA_HEAD, HANDSHAKE_WINDOW, PACKET_HEAD, Report, WINDOW,
};

/// More bytes than a window and the largest buffer of a socket together.
pub const MUCH: usize = 16 * WINDOW as usize;

/// The process id of the VM in the tests' LISTEN packets.
pub const VM_PID: u32 = 4_000_001;

/// The sidecar's binary.
pub const BINARY: &str = env!("CARGO_BIN_EXE_uds_dist_sidecar");

// --- the VM's side of the port -------------------------------------------------------------------

/// A running sidecar, and everything that it has reported.
pub struct Sidecar {
    process: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    /// Bytes read from stdout that are not a complete packet yet.
    unread: Vec<u8>,
    /// Reports that the test has not taken yet. DATA and ACK are in `connections`.
    reports: VecDeque<Report>,
    connections: BTreeMap<ConnId, Connection>,
    last_conn: Option<ConnId>,
    log: Receiver<String>,
    /// Log lines that have come up so far.
    lines: Vec<String>,
    /// The lines among them that arrived as LOG.
    logged: Vec<Line>,
    /// Both ends of a connection that is only used to wait for the sidecar.
    answering: Option<(ConnId, UnixStream, TempDir)>,
}

/// A connection as the VM sees it.
#[derive(Default)]
struct Connection {
    established: bool,
    closed: bool,
    /// Bytes from the peer that the test has not taken yet.
    data: Vec<u8>,
    received: u64,
    we_acknowledged: u64,
    sent: u64,
    it_acknowledged: u64,
}

enum Pumped {
    Something,
    Nothing,
    End,
}

impl Sidecar {
    /// Starts a sidecar and receives its HELLO.
    pub fn start() -> Sidecar {
        Sidecar::start_program(&mut Program::new(BINARY))
    }

    /// The same with another command line, such as a shell that sets a limit or changes the user.
    pub fn start_program(program: &mut Program) -> Sidecar {
        let mut sidecar = Sidecar::spawn(program).expect("the sidecar starts");
        match sidecar.expect_report("HELLO") {
            Report::Hello { .. } => sidecar,
            other => sidecar.fail(&format!("HELLO first, not {other:?}")),
        }
    }

    /// Starts a sidecar without receiving anything.
    pub fn spawn(program: &mut Program) -> io::Result<Sidecar> {
        let mut process = program
            .env("UDS_DIST_LOG", "info")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let (line, log) = channel();
        let stderr = BufReader::new(process.stderr.take().expect("a pipe"));
        std::thread::spawn(move || {
            for read in stderr.lines() {
                if line.send(read.expect("a line of text")).is_err() {
                    return;
                }
            }
        });
        let stdin = process.stdin.take().expect("a pipe");
        os::set_nonblocking(&stdin)?;
        Ok(Sidecar {
            stdout: Some(process.stdout.take().expect("a pipe")),
            stdin: Some(stdin),
            process,
            unread: Vec::new(),
            reports: VecDeque::new(),
            connections: BTreeMap::new(),
            last_conn: None,
            log,
            lines: Vec::new(),
            logged: Vec::new(),
            answering: None,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("a live process");
    }

    // Commands of the VM

    /// Sends a command.
    pub fn send(&mut self, command: &Command) {
        let mut packet = Vec::new();
        command.encode(&mut packet);
        self.send_bytes(&packet);
    }

    /// Sends raw bytes. They are lost if the sidecar has ended.
    pub fn send_bytes(&mut self, mut bytes: &[u8]) {
        let deadline = Instant::now() + LIMIT;
        while !bytes.is_empty() {
            let stdin = self.stdin.as_mut().expect("stdin is open");
            match stdin.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if !wait(&*stdin, PollFlags::OUT, deadline) {
                        self.fail("the sidecar to read its stdin");
                    }
                }
                Err(error) => panic!("write to the sidecar: {error}"),
            }
        }
    }

    /// Sends bytes of a connection as one DATA packet.
    pub fn send_data(&mut self, conn: ConnId, bytes: &[u8]) {
        let mut packet = data_head(conn, bytes.len()).to_vec();
        packet.extend(bytes);
        self.send_bytes(&packet);
        self.connection(conn).sent += bytes.len() as u64;
    }

    /// Sends bytes of a connection like the VM, in batches and never more than the window.
    pub fn deliver(&mut self, conn: ConnId, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let count = bytes.len().min(100_000).min(self.available(conn) as usize);
            if count == 0 {
                self.pump_for("an ACK");
                continue;
            }
            self.send_data(conn, &bytes[..count]);
            bytes = &bytes[count..];
        }
    }

    /// Number of bytes that may be sent on a connection now.
    pub fn available(&mut self, conn: ConnId) -> u64 {
        let connection = self.connection(conn);
        u64::from(WINDOW) - (connection.sent - connection.it_acknowledged)
    }

    /// Sends until the window of a connection is used up and no more ACKs arrive. Returns the number of bytes sent.
    pub fn fill(&mut self, conn: ConnId, sent: &[u8]) -> usize {
        let mut written = 0;
        loop {
            self.settle();
            match self.available(conn) as usize {
                0 => return written,
                count => {
                    self.send_data(conn, &sent[written..written + count]);
                    written += count;
                }
            }
        }
    }

    /// Acknowledges bytes of a connection.
    pub fn acknowledge(&mut self, conn: ConnId, count: u64) {
        self.connection(conn).we_acknowledged += count;
        let count = count as u32;
        self.send(&Command::Ack { conn, count });
    }

    /// Reports that the handshake is complete, and acknowledges its bytes that the test has taken: the peer's name,
    /// or more.
    pub fn establish(&mut self, conn: ConnId) {
        let connection = self.connection(conn);
        connection.established = true;
        let taken = connection.received - connection.data.len() as u64;
        let node = format!("peer{conn}@host");
        self.send(&Command::Established { conn, node });
        self.acknowledge(conn, taken);
    }

    /// Requests the socket of a connection.
    pub fn send_hand_over(&mut self, conn: ConnId) {
        let node = format!("peer{conn}@host");
        self.send(&Command::HandOver { conn, node });
    }

    /// Requests a channel for the process `vm_pid`, and returns its address.
    pub fn open_channel(&mut self, vm_pid: u32, directory: impl AsRef<OsStr>) -> Vec<u8> {
        self.send_open_channel(vm_pid, directory);
        match self.expect_report("CHANNEL") {
            Report::Channel { address } => address,
            other => self.fail(&format!("CHANNEL, not {other:?}")),
        }
    }

    /// Requests a channel for the process `vm_pid`.
    pub fn send_open_channel(&mut self, vm_pid: u32, directory: impl AsRef<OsStr>) {
        let directory = directory.as_ref().as_bytes().to_vec();
        self.send(&Command::OpenChannel { vm_pid, directory });
    }

    /// Closes a connection.
    pub fn close(&mut self, conn: ConnId) {
        self.connections.remove(&conn);
        self.send(&Command::Close { conn });
    }

    /// Closes stdin, like a VM that ends.
    pub fn hang_up(&mut self) {
        self.stdin = None;
    }

    /// Closes stdout, like a VM that ends. Reports that have not been read are lost.
    pub fn go_deaf(&mut self) {
        self.stdout = None;
    }

    /// Listens with a backlog that is large enough for all peers of a test.
    pub fn listen(&mut self, address: impl AsRef<OsStr>) {
        self.listen_with(0, address, 0o600);
    }

    /// Listens with this listener and this mode.
    pub fn listen_with(&mut self, listener: ListenerId, address: impl AsRef<OsStr>, mode: u16) {
        self.send_listen(listener, address, mode);
        match self.expect_report("LISTENING") {
            Report::Listening { listener: at } if at == listener => (),
            other => self.fail(&format!("LISTENING, not {other:?}")),
        }
    }

    /// Sends LISTEN.
    pub fn send_listen(&mut self, listener: ListenerId, address: impl AsRef<OsStr>, mode: u16) {
        self.send(&Command::Listen {
            listener,
            backlog: 128,
            mode,
            vm_pid: VM_PID,
            address: address.as_ref().as_bytes().to_vec(),
        });
    }

    /// Tries to listen, and expects a failure.
    pub fn listen_fails(&mut self, address: impl AsRef<OsStr>) -> (Reason, String) {
        self.send_listen(0, address, 0o600);
        match self.expect_report("LISTEN_FAILED") {
            Report::ListenFailed {
                listener: 0,
                reason,
                explanation,
            } => (reason, explanation),
            other => self.fail(&format!("LISTEN_FAILED, not {other:?}")),
        }
    }

    /// Stops listening. Peers that are accepted meanwhile are left to the test.
    pub fn unlisten(&mut self, listener: ListenerId) {
        self.send(&Command::Unlisten { listener });
        self.expect_this(&Report::Unlistened { listener });
    }

    /// Connects to an address where a process listens.
    pub fn connect(&mut self, address: impl AsRef<OsStr>) -> (ConnId, Credentials) {
        let conn = self.send_connect(address);
        match self.expect_report("CONNECTED") {
            Report::Connected { conn: same, peer } if same == conn => (conn, peer),
            other => self.fail(&format!("CONNECTED, not {other:?}")),
        }
    }

    /// Connects to another sidecar, and sends the name of a node.
    pub fn call(&mut self, address: impl AsRef<OsStr>) -> (ConnId, Credentials) {
        let (conn, peer) = self.connect(address);
        self.send_data(conn, NAME);
        (conn, peer)
    }

    /// Tries to connect to an address, and expects a failure.
    pub fn connect_fails(&mut self, address: impl AsRef<OsStr>) -> (Reason, String) {
        let conn = self.send_connect(address);
        match self.expect_report("CONNECT_FAILED") {
            Report::ConnectFailed {
                conn: same,
                reason,
                explanation,
            } if same == conn => (reason, explanation),
            other => self.fail(&format!("CONNECT_FAILED, not {other:?}")),
        }
    }

    fn send_connect(&mut self, address: impl AsRef<OsStr>) -> ConnId {
        let conn = self.last_conn.map_or(1, |last| last + 2);
        self.last_conn = Some(conn);
        self.send(&Command::Connect {
            conn,
            address: address.as_ref().as_bytes().to_vec(),
        });
        conn
    }

    // Reports of the sidecar

    /// Takes the next report that is neither DATA nor ACK.
    pub fn expect_report(&mut self, awaited: &str) -> Report {
        loop {
            if let Some(report) = self.reports.pop_front() {
                return report;
            }
            self.pump_for(awaited);
        }
    }

    /// Takes LISTENER_LOST of a listener, and its explanation.
    pub fn listener_lost(&mut self, listener: ListenerId) -> String {
        match self.expect_report("LISTENER_LOST") {
            Report::ListenerLost {
                listener: lost,
                explanation,
            } if lost == listener => explanation,
            other => self.fail(&format!("LISTENER_LOST of {listener}, not {other:?}")),
        }
    }

    /// Takes the next report that is neither DATA nor ACK, if one arrives within a moment.
    pub fn next_report(&mut self) -> Option<Report> {
        if self.reports.is_empty() {
            self.pump(Instant::now() + Duration::from_millis(1));
        }
        self.reports.pop_front()
    }

    /// Takes this report, whichever others have arrived before it.
    pub fn expect_this(&mut self, report: &Report) {
        while !self.reports.contains(report) {
            self.pump_for(&format!("{report:?}"));
        }
        self.reports.retain(|other| other != report);
    }

    /// True if there are reports that have not been taken.
    pub fn has_report(&self) -> bool {
        !self.reports.is_empty()
    }

    /// Expects that all reports have been taken.
    pub fn expect_no_report(&mut self) {
        if self.has_report() {
            self.fail("no report");
        }
    }

    /// Takes ACCEPTED and the name of the peer.
    pub fn accepted(&mut self) -> (ConnId, Credentials) {
        match self.expect_report("ACCEPTED") {
            Report::Accepted { conn, peer, .. } => {
                assert_eq!(self.take(conn, NAME.len()), NAME);
                (conn, peer)
            }
            other => self.fail(&format!("ACCEPTED, not {other:?}")),
        }
    }

    /// Takes CLOSED and all bytes of the connection that arrived before it. Answers with CLOSE.
    pub fn closed(&mut self, conn: ConnId) -> (Reason, String, Vec<u8>) {
        let ended = self.ended(conn);
        self.send(&Command::Close { conn });
        ended
    }

    /// Takes CLOSED of any connection, and answers with CLOSE.
    pub fn expect_closed(&mut self) -> (ConnId, String) {
        match self.expect_report("CLOSED") {
            Report::Closed {
                conn, explanation, ..
            } => {
                self.close(conn);
                (conn, explanation)
            }
            other => self.fail(&format!("CLOSED, not {other:?}")),
        }
    }

    fn ended(&mut self, conn: ConnId) -> (Reason, String, Vec<u8>) {
        match self.expect_report("CLOSED") {
            Report::Closed {
                conn: same,
                reason,
                explanation,
            } if same == conn => {
                let connection = self.connections.remove(&conn).expect("a connection");
                (reason, explanation, connection.data)
            }
            other => self.fail(&format!("CLOSED of {conn}, not {other:?}")),
        }
    }

    /// Takes this number of bytes of a connection without acknowledging them.
    pub fn take(&mut self, conn: ConnId, count: usize) -> Vec<u8> {
        while self.connection(conn).data.len() < count {
            self.pump_for(&format!("{count} bytes of connection {conn}"));
        }
        self.connection(conn).data.drain(..count).collect()
    }

    /// Takes this number of bytes of an established connection. Acknowledges them like the VM, which waits until they
    /// are a quarter of the window.
    pub fn receive(&mut self, conn: ConnId, count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < count {
            let connection = self.connection(conn);
            if connection.data.is_empty() {
                self.pump_for(&format!("{count} bytes of {conn}, {} came", bytes.len()));
                continue;
            }
            let part = connection.data.len().min(count - bytes.len());
            bytes.extend(connection.data.drain(..part));
            let passed_on = connection.received - connection.data.len() as u64;
            let waiting = passed_on - connection.we_acknowledged;
            if waiting >= u64::from(WINDOW / 4) {
                self.acknowledge(conn, waiting);
            }
        }
        bytes
    }

    /// Number of bytes of a connection that have arrived and have not been taken.
    pub fn untaken(&mut self, conn: ConnId) -> usize {
        self.connection(conn).data.len()
    }

    /// Number of bytes of a connection that the sidecar has acknowledged.
    pub fn acknowledged(&mut self, conn: ConnId) -> u64 {
        self.connection(conn).it_acknowledged
    }

    /// Waits until the sidecar has acknowledged this number of bytes.
    pub fn expect_acknowledged(&mut self, conn: ConnId, count: u64) {
        while self.connection(conn).it_acknowledged < count {
            self.pump_for(&format!("ACK of {count} bytes of connection {conn}"));
        }
    }

    /// Waits until the sidecar has nothing left to do. When this returns, its loop has run many times, and all its
    /// earlier reports have arrived.
    pub fn settle(&mut self) {
        let (conn, mut peer, directory) = self.answering.take().unwrap_or_else(|| {
            let directory = TempDir::new();
            let path = directory.path("answering.sock");
            let listener = std::os::unix::net::UnixListener::bind(&path).expect("a listener");
            self.send_connect(&path);
            let conn = self.last_conn.expect("chosen");
            // Other reports may arrive first; they are left to the test.
            let ours =
                |report: &Report| matches!(report, Report::Connected { conn: c, .. } if *c == conn);
            while !self.reports.iter().any(ours) {
                self.pump_for("CONNECTED");
            }
            self.reports.retain(|report| !ours(report));
            self.establish(conn);
            let (peer, _) = listener.accept().expect("a connection");
            (conn, limited(peer), directory)
        });
        for round in 0..25_u32 {
            let ping = round.to_be_bytes();
            self.deliver(conn, &ping);
            assert_eq!(read(&mut peer, 4), ping);
            peer.write_all(&ping).expect("room");
            assert_eq!(self.receive(conn, 4), ping);
        }
        self.answering = Some((conn, peer, directory));
    }

    /// Waits for a log line that contains this text: a LOG packet while there is a VM, and a line on stderr after it.
    pub fn expect_log(&mut self, text: &str) -> String {
        let deadline = Instant::now() + LIMIT;
        let mut seen = 0;
        loop {
            if let Some(line) = self.lines[seen..].iter().find(|line| line.contains(text)) {
                return line.clone();
            }
            seen = self.lines.len();
            let has_vm = self.stdin.is_some() && self.stdout.is_some();
            if has_vm && matches!(self.pump(deadline), Pumped::Something) {
                continue;
            }
            while self.stdout.is_some() && matches!(self.pump(Instant::now()), Pumped::Something) {}
            let left = deadline.saturating_duration_since(Instant::now());
            match self.log.recv_timeout(left) {
                Ok(line) => self.lines.push(line),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected)
                    if seen == self.lines.len() =>
                {
                    self.fail(&format!("a log line with {text:?}"))
                }
                Err(_) => (),
            }
        }
    }

    /// Waits for a LOG packet that contains this text.
    pub fn expect_line(&mut self, text: &str) -> Line {
        self.expect_log(text);
        let mut logged = self.logged.iter();
        let line = logged.find(|line| line.text.contains(text));
        line.expect("it came as LOG").clone()
    }

    /// All LOG packets so far.
    pub fn logged(&self) -> &[Line] {
        &self.logged
    }

    /// The log so far; after the end of the sidecar, all of it.
    pub fn log(&mut self) -> &[String] {
        while self.stdout.is_some() && matches!(self.pump(Instant::now()), Pumped::Something) {}
        self.lines.extend(self.log.try_iter());
        &self.lines
    }

    /// Waits until the process has ended, even if nobody reads its reports.
    pub fn expect_exit(&mut self) -> ExitStatus {
        let deadline = Instant::now() + LIMIT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.log.recv_timeout(left) {
                Ok(line) => self.lines.push(line),
                // stderr is closed only when the process ends.
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => self.fail("the sidecar to end"),
            }
        }
        while self.stdout.is_some() && !matches!(self.pump(deadline), Pumped::End) {}
        self.process.wait().expect("a child")
    }

    /// Kills the process, like the kernel when memory runs out.
    pub fn kill(mut self) {
        self.process.kill().expect("a child");
        self.process.wait().expect("a child");
    }

    /// Measures that the sidecar is idle while nothing happens. This waits for a fixed time and reads nothing.
    pub fn expect_idle(&mut self) {
        self.expect_idle_for(Duration::from_millis(300));
    }

    /// The same for a longer time.
    pub fn expect_idle_for(&mut self, time: Duration) {
        let before = Usage::of(self.pid());
        match self.log.recv_timeout(time) {
            Err(RecvTimeoutError::Timeout) => (),
            Ok(line) => self.fail(&format!("nothing, not {line:?}")),
            Err(RecvTimeoutError::Disconnected) => self.fail("the sidecar to live on"),
        }
        let after = Usage::of(self.pid());
        // A loop that spins would use tens of ticks. One that polls would wait tens of times.
        if after.ticks - before.ticks > 2 || after.waits - before.waits > 4 {
            self.fail(&format!("no work, not {before:?} to {after:?}"));
        }
    }

    /// Number of times that the sidecar wakes up in this time. This waits for a fixed time and reads nothing.
    pub fn wakeups_in(&mut self, time: Duration) -> u64 {
        let before = Usage::of(self.pid());
        match self.log.recv_timeout(time) {
            Err(RecvTimeoutError::Timeout) => Usage::of(self.pid()).waits - before.waits,
            Ok(line) => self.fail(&format!("nothing, not {line:?}")),
            Err(RecvTimeoutError::Disconnected) => self.fail("the sidecar to live on"),
        }
    }

    fn pump_for(&mut self, awaited: &str) {
        match self.pump(Instant::now() + LIMIT) {
            Pumped::Something => (),
            Pumped::Nothing => self.fail(awaited),
            Pumped::End => self.fail(&format!("{awaited} (the sidecar has ended)")),
        }
    }

    /// Reads stdout once.
    fn pump(&mut self, deadline: Instant) -> Pumped {
        let stdout = self.stdout.as_mut().expect("stdout is open");
        if !wait(&*stdout, PollFlags::IN, deadline) {
            return Pumped::Nothing;
        }
        let mut buffer = vec![0; 256 << 10];
        let count = stdout.read(&mut buffer).expect("a pipe");
        if count == 0 {
            // A sidecar that has lost its VM may end in the middle of a packet.
            assert!(self.stdin.is_none() || self.unread.is_empty());
            return Pumped::End;
        }
        self.unread.extend(&buffer[..count]);
        let mut packets = std::mem::take(&mut self.unread);
        let mut rest = &packets[..];
        while let Some((body, behind)) = first_packet(rest) {
            self.take_packet(body);
            rest = behind;
        }
        let used = packets.len() - rest.len();
        self.unread = packets.split_off(used);
        Pumped::Something
    }

    fn take_packet(&mut self, body: &[u8]) {
        if body[0] == DATA {
            let conn = u32::from_be_bytes(body[1..DATA_HEAD].try_into().expect("4 bytes"));
            let bytes = &body[DATA_HEAD..];
            assert!(!bytes.is_empty(), "DATA without bytes for {conn}");
            if let Some(connection) = self.open_connection(conn, "DATA") {
                connection.data.extend(bytes);
                connection.received += bytes.len() as u64;
                let waiting = connection.received - connection.we_acknowledged;
                let window = match connection.established {
                    true => WINDOW,
                    false => HANDSHAKE_WINDOW,
                };
                assert!(
                    waiting <= u64::from(window),
                    "{waiting} unacknowledged bytes of {conn}, over the window"
                );
            }
            return;
        }
        let report = Report::decode(body).expect("a packet of the protocol");
        match &report {
            Report::Ack { conn, count } => {
                let count = u64::from(*count);
                if let Some(connection) = self.open_connection(*conn, "ACK") {
                    connection.it_acknowledged += count;
                    assert!(connection.it_acknowledged <= connection.sent);
                }
                return;
            }
            Report::Log(line) => {
                let (pid, level) = (self.pid(), line.level.word());
                self.lines
                    .push(format!("uds_dist[{pid}] {level}: {}", line.text));
                self.logged.push(line.clone());
                return;
            }
            Report::Accepted { conn, .. } => {
                assert_eq!(conn % 2, 0, "the sidecar's numbers are even");
                self.begin(*conn);
            }
            Report::Connected { conn, .. } => self.begin(*conn),
            Report::Closed { conn, .. } => {
                if let Some(connection) = self.open_connection(*conn, "CLOSED") {
                    connection.closed = true;
                }
            }
            Report::HandedOver { conn } => {
                if let Some(connection) = self.open_connection(*conn, "HANDED_OVER") {
                    connection.closed = true;
                }
            }
            Report::Relayed { conn } => {
                if let Some(connection) = self.open_connection(*conn, "RELAYED") {
                    connection.established = true;
                }
            }
            _ => (),
        }
        self.reports.push_back(report);
    }

    fn begin(&mut self, conn: ConnId) {
        let before = self.connections.insert(conn, Connection::default());
        assert!(before.is_none(), "{conn} begins twice");
    }

    /// `None` for a connection that this side has closed, because packets can cross.
    fn open_connection(&mut self, conn: ConnId, what: &str) -> Option<&mut Connection> {
        let connection = self.connections.get_mut(&conn)?;
        assert!(!connection.closed, "{what} after CLOSED of {conn}");
        Some(connection)
    }

    fn connection(&mut self, conn: ConnId) -> &mut Connection {
        let Some(connection) = self.connections.get_mut(&conn) else {
            panic!("there is no connection {conn}");
        };
        connection
    }

    /// Fails the test, and shows what has been seen.
    pub fn fail(&mut self, awaited: &str) -> ! {
        self.lines.extend(self.log.try_iter());
        let connections: Vec<_> = self
            .connections
            .iter()
            .filter(|(_, c)| c.received + c.sent > 0 || c.closed)
            .map(|(conn, c)| {
                format!(
                    "{conn}: {} received, {} of them untaken, {} acknowledged, {} sent, {} of them \
                     acknowledged, closed: {}",
                    c.received,
                    c.data.len(),
                    c.we_acknowledged,
                    c.sent,
                    c.it_acknowledged,
                    c.closed
                )
            })
            .collect();
        panic!(
            "awaited: {awaited}\nseen: {:?}\n{} connections, those with bytes: {connections:#?}\n\
             log: {:#?}",
            self.reports,
            self.connections.len(),
            self.lines
        );
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        // Both fail if it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn first_packet(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<PACKET_HEAD>()?;
    rest.split_at_checked(u32::from_be_bytes(*head) as usize)
}

/// Waits for one of `events` or for the end; false if the deadline passes first.
fn wait(fd: impl AsFd, events: PollFlags, deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).expect("a short time");
        match poll(&mut [PollFd::new(&fd, events)], Some(&timeout)) {
            Ok(0) if Instant::now() >= deadline => return false,
            Ok(0) | Err(Errno::INTR) => (),
            Ok(_) => return true,
            Err(errno) => panic!("poll: {errno}"),
        }
    }
}

/// A shell that runs `setup`, for example to set limits, and then becomes the sidecar.
pub fn after_shell(setup: &str) -> Program {
    let mut program = Program::new("/bin/sh");
    program.args(["-c", &format!("{setup} && exec \"$0\" \"$@\""), BINARY]);
    program
}

/// The sidecar as a user without privileges; `None`, with a message, if the test may not change users. The binary
/// is copied to `directory`, because that user may not be able to reach it elsewhere.
pub fn as_nobody(directory: &TempDir) -> Option<Program> {
    const NOBODY: u32 = 65534;
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can start a sidecar as another user");
        return None;
    }
    let binary = directory.path("uds_dist_sidecar");
    // fs::copy would not do: a child of another test could inherit its descriptor for a moment, and a program that
    // is open for writing cannot be started.
    let copied = Program::new("cp").arg(BINARY).arg(&binary).status();
    assert!(copied.expect("cp starts").success());
    let mut program = Program::new(binary);
    program.uid(NOBODY).gid(NOBODY);
    Some(program)
}

/// Asserts that a failure has this reason, and an explanation that contains all of `words`.
pub fn assert_fails((reason, explanation): (Reason, String), expected: Reason, words: &[&str]) {
    assert_eq!(reason, expected, "{explanation:?}");
    for word in words {
        assert!(
            explanation.contains(word),
            "{word:?} is not in {explanation:?}"
        );
    }
}
