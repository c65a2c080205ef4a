//! A connection to a node: the socket, the handshake, and the messages after it. One deadline applies to
//! everything on it, and ticks keep it open until then.

use crate::cookie::Cookie;
use crate::etf::Identity;
use crate::failure::{Failure, Kind};
use crate::handshake::{self, Challenge, MAX_MESSAGE, Status};
use crate::users;
use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};
use uds_dist::address::Address;
use uds_dist::door::probe::{Probe, probe};
use uds_dist::os;
use uds_dist::peer::{Credentials, Policy};

/// Time between two ticks. A node disconnects a peer that has sent nothing for its tick time, which is a minute
/// by default and can be as short as a few seconds.
const TICK_INTERVAL: Duration = Duration::from_millis(500);

/// Time between two attempts to connect to a node whose backlog is full. There is no event to wait for.
const RETRY_INTERVAL: Duration = Duration::from_millis(5);

/// A node that closes its connections because it goes down has stopped listening after this time.
const LISTENER_GRACE: Duration = Duration::from_millis(100);

/// Largest message in bytes. It is far more than anybody reads, and far less than the memory of a machine.
const MAX_FRAME: usize = 256 << 20;

/// Most bytes that are read at once, so that no memory is allocated for a length that was only announced.
const READ_SIZE: usize = 1 << 20;

/// The node to talk to, and what is checked before.
#[derive(Debug)]
pub struct Peer {
    /// The name as the user gave it: `name` or `name@host`.
    pub node: String,
    /// The address where the node listens.
    pub address: Address,
    /// The users and groups that the node may run as.
    pub policy: Policy,
    /// The cookie for the handshake.
    pub cookie: Cookie,
}

/// A connection whose handshake is complete.
#[derive(Debug)]
pub struct Link {
    stream: UnixStream,
    /// The process that listens at the socket.
    pub listener: Credentials,
    deadline: Instant,
    last_sent: Instant,
    /// The name that the node has given us.
    pub identity: Identity,
    /// The node's full name.
    pub node: String,
}

impl Link {
    /// Connects and performs the handshake.
    pub fn open(peer: &Peer, deadline: Instant) -> Result<Link, Failure> {
        let (stream, listener) = connect(peer, deadline)?;
        Handshake {
            stream,
            listener,
            deadline,
            peer,
        }
        .run()
    }

    /// Sends one message.
    pub fn send(&mut self, message: &[u8]) -> Result<(), Failure> {
        let length = u32::try_from(message.len()).expect("a message of less than 4 GiB");
        self.last_sent = Instant::now();
        write_frame(&self.stream, self.deadline, &length.to_be_bytes(), message)
            .map_err(|error| self.broken(&error))
    }

    /// The time at which everything has to be done.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Waits for the next message. Answers ticks, and does not return them.
    pub fn receive(&mut self) -> Result<Vec<u8>, Failure> {
        loop {
            let mut head = [0; 4];
            self.read_exact(&mut head)?;
            let length = u32::from_be_bytes(head) as usize;
            if length > MAX_FRAME {
                return Err(Failure::new(
                    Kind::Lost,
                    format!(
                        "{} announced a message of {length} bytes, but at most {MAX_FRAME} are accepted; \
                         have it write large results to a file",
                        self.node
                    ),
                ));
            }
            if length > 0 {
                return self.read_message(length);
            }
            self.tick();
        }
    }

    /// Waits until the node closes the connection, and returns that as a failure.
    pub fn wait_for_end(&mut self) -> Result<(), Failure> {
        loop {
            self.receive()?;
        }
    }

    fn read_message(&mut self, length: usize) -> Result<Vec<u8>, Failure> {
        let mut message = Vec::new();
        while message.len() < length {
            let start = message.len();
            message.resize(length.min(start + READ_SIZE), 0);
            self.read_exact(&mut message[start..])?;
        }
        Ok(message)
    }

    fn read_exact(&mut self, mut bytes: &mut [u8]) -> Result<(), Failure> {
        while !bytes.is_empty() {
            let tick = self.last_sent + TICK_INTERVAL;
            match read_some(&self.stream, self.deadline.min(tick), bytes) {
                Ok(count) => bytes = &mut bytes[count..],
                Err(error) if is_timeout(&error) && Instant::now() < self.deadline => {
                    self.tick();
                }
                Err(error) => return Err(self.broken(&error)),
            }
        }
        Ok(())
    }

    /// Sends a tick. An error is ignored: the answer may have arrived before the node closed the connection, and
    /// the next read finds out.
    fn tick(&mut self) {
        let _ = self.send(&[]);
    }

    fn broken(&self, error: &io::Error) -> Failure {
        let node = &self.node;
        match error.kind() {
            _ if is_timeout(error) => Failure::new(
                Kind::TimedOut,
                format!("{node} did not answer in time; allow more with --timeout"),
            ),
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset => Failure::new(
                Kind::Lost,
                format!("{node} closed the connection before it answered: it went down"),
            ),
            _ => Failure::new(
                Kind::Lost,
                format!("the connection to {node} broke before it answered: {error}"),
            ),
        }
    }
}

// --- connecting ----------------------------------------------------------------------------------

fn connect(peer: &Peer, deadline: Instant) -> Result<(UnixStream, Credentials), Failure> {
    let Peer { node, address, .. } = peer;
    let socket_address = os::socket_address(address).map_err(|error| {
        let explanation =
            format!("{address} cannot be a socket address: {error}; give another --dir");
        Failure::new(Kind::Usage, explanation)
    })?;
    loop {
        let error = match os::connect(&socket_address) {
            Ok(socket) => return admit(UnixStream::from(socket), peer),
            Err(error) => error,
        };
        let (kind, problem) = match error.kind() {
            ErrorKind::WouldBlock if Instant::now() < deadline => {
                thread::sleep(RETRY_INTERVAL);
                continue;
            }
            ErrorKind::WouldBlock => (
                Kind::TimedOut,
                "accepts no connections: too many are waiting already".into(),
            ),
            ErrorKind::NotFound => (
                Kind::NotThere,
                "is not there: no such socket; is it running, with -proto_dist uds, and is that its socket_dir?"
                    .into(),
            ),
            // Connecting to an abstract name that does not exist is refused too.
            ErrorKind::ConnectionRefused => (
                Kind::NotThere,
                "is not there: nobody listens at its socket; start it".into(),
            ),
            ErrorKind::PermissionDenied => (
                Kind::Refused,
                "does not let this user connect: permission denied; run this as the node's user"
                    .into(),
            ),
            _ => (Kind::Usage, format!("cannot be reached: {error}")),
        };
        return Err(Failure::new(kind, format!("{node} at {address} {problem}")));
    }
}

/// Checks the user and groups of the listener before the first byte is sent, so that a stranger learns nothing.
fn admit(stream: UnixStream, peer: &Peer) -> Result<(UnixStream, Credentials), Failure> {
    let failed = |error: io::Error| Failure::new(Kind::Usage, format!("socket error: {error}"));
    let credentials = os::peer_credentials(&stream).map_err(failed)?;
    let groups = || os::peer_groups(&stream);
    if !peer.policy.admits(&credentials, os::own_uid(), groups) {
        return Err(Failure::new(
            Kind::Refused,
            format!(
                "{} at {} belongs to another user: {}, gid {}, pid {}; run this as that user, \
                 or add --allow-uid {} if you trust them",
                peer.node,
                peer.address,
                users::shown(credentials.uid),
                credentials.gid,
                credentials.pid,
                credentials.uid
            ),
        ));
    }
    stream.set_nonblocking(false).map_err(failed)?;
    Ok((stream, credentials))
}

// --- the handshake -------------------------------------------------------------------------------

struct Handshake<'a> {
    stream: UnixStream,
    /// The process that listens at the socket.
    listener: Credentials,
    deadline: Instant,
    peer: &'a Peer,
}

impl Handshake<'_> {
    fn run(self) -> Result<Link, Failure> {
        let cookie = &self.peer.cookie;
        self.send(&handshake::name(&host_name()))?;
        let identity = match self.parse(&self.receive(Stage::Name)?, Status::decode)? {
            Status::Named(identity) => identity,
            Status::Other(status) => {
                let problem = match status.as_str() {
                    // We have no name yet, so the node looks for our host in its list.
                    "not_allowed" => format!(
                        "admits only the nodes on its list of allowed nodes, which excludes \
                         commands; net_kernel:allow(['{}']) in the node adds them",
                        host_name()
                    ),
                    _ => format!("refuses with the status {status}; see its log"),
                };
                return Err(self.failure(Kind::Refused, &problem));
            }
        };
        let challenge = self.parse(&self.receive(Stage::Name)?, Challenge::decode)?;
        self.check_name(&challenge.node)?;
        let ours = random()
            .map_err(|error| self.failure(Kind::Usage, &format!("no random number: {error}")))?;
        let proof = handshake::proof(cookie, challenge.number);
        self.send(&handshake::reply(ours, proof))?;
        let ack = self.parse(&self.receive(Stage::Proof)?, handshake::decode_ack)?;
        if ack != handshake::proof(cookie, ours) {
            let problem = "does not know the cookie, so it may not be the node; check which process listens there";
            return Err(self.failure(Kind::Refused, problem));
        }
        Ok(Link {
            stream: self.stream,
            listener: self.listener,
            deadline: self.deadline,
            last_sent: Instant::now(),
            identity,
            node: challenge.node,
        })
    }

    /// Checks that the node has the name that was asked for. A name without a host matches any host.
    fn check_name(&self, name: &str) -> Result<(), Failure> {
        let asked = &self.peer.node;
        let same = match asked.contains('@') {
            true => name == asked,
            false => name.split('@').next() == Some(asked),
        };
        if same {
            return Ok(());
        }
        let problem = format!("is another node, {name}; ask for that one, or for another socket");
        Err(self.failure(Kind::Refused, &problem))
    }

    fn send(&self, message: &[u8]) -> Result<(), Failure> {
        let length = u16::try_from(message.len()).expect("a short message");
        write_frame(&self.stream, self.deadline, &length.to_be_bytes(), message)
            .map_err(|error| self.broken(&error, Stage::Name))
    }

    fn receive(&self, stage: Stage) -> Result<Vec<u8>, Failure> {
        let mut head = [0; 2];
        self.read_exact(&mut head, stage)?;
        let length = u16::from_be_bytes(head).into();
        if length > MAX_MESSAGE {
            let problem = format!("answered the handshake with a message of {length} bytes");
            return Err(self.failure(Kind::Lost, &(problem + NO_NODE)));
        }
        let mut message = vec![0; length];
        self.read_exact(&mut message, stage)?;
        Ok(message)
    }

    fn read_exact(&self, mut bytes: &mut [u8], stage: Stage) -> Result<(), Failure> {
        while !bytes.is_empty() {
            match read_some(&self.stream, self.deadline, bytes) {
                Ok(count) => bytes = &mut bytes[count..],
                Err(error) => return Err(self.broken(&error, stage)),
            }
        }
        Ok(())
    }

    fn parse<T>(
        &self,
        message: &[u8],
        decode: fn(&[u8]) -> Result<T, handshake::Malformed>,
    ) -> Result<T, Failure> {
        decode(message).map_err(|malformed| {
            let problem = format!("answered the handshake wrongly: {malformed}");
            self.failure(Kind::Lost, &(problem + NO_NODE))
        })
    }

    /// Explains why the connection broke. A node closes it without a reason, but the stage of the handshake
    /// tells what happened.
    fn broken(&self, error: &io::Error, stage: Stage) -> Failure {
        if is_timeout(error) {
            let problem =
                "is there and does not answer; it may be stopped, still starting, or busy";
            return self.failure(Kind::TimedOut, problem);
        }
        match stage {
            Stage::Name => Failure {
                may_pass: true,
                ..self.failure(Kind::Refused, &self.silence())
            },
            Stage::Proof if self.goes_down() => Failure {
                may_pass: true,
                ..self.failure(Kind::Lost, "went down during the handshake")
            },
            Stage::Proof => {
                let problem = format!(
                    "has a different cookie (cookie mismatch): this command uses the one from {}; \
                     pass the node's with --cookie-file",
                    self.peer.cookie.origin()
                );
                self.failure(Kind::Refused, &problem)
            }
        }
    }

    /// Tells a node that goes down from one that refuses our proof. The former closes its listener at about the
    /// same time as its connections; the latter continues to listen.
    fn goes_down(&self) -> bool {
        let end = self.deadline.min(Instant::now() + LISTENER_GRACE);
        loop {
            match probe(&self.peer.address) {
                Probe::Nobody => return true,
                _ if Instant::now() >= end => return false,
                _ => thread::sleep(LISTENER_GRACE / 4),
            }
        }
    }

    /// Explains why the node closed the connection without an answer. It may not allow our user, or it is going
    /// down. By default, a node allows its own user and root, but its settings may leave them out.
    fn silence(&self) -> String {
        let (own, theirs) = (os::own_uid(), self.listener.uid);
        match own == 0 || own == theirs {
            true => format!(
                "closed the connection without an answer: it is starting or going down, or its allowed_uids \
                 leaves out {}; its log says more, and --wait tries again",
                users::shown(own)
            ),
            false => format!(
                "closed the connection without an answer: it does not allow {}; run this as the node's \
                 user, {}",
                users::shown(own),
                users::shown(theirs)
            ),
        }
    }

    fn failure(&self, kind: Kind, problem: &str) -> Failure {
        let Peer { node, address, .. } = self.peer;
        Failure::new(kind, format!("{node} at {address} {problem}"))
    }
}

const NO_NODE: &str = "; something else listens there";

/// Stages of the handshake.
#[derive(Debug, Clone, Copy)]
enum Stage {
    /// We have sent our name.
    Name,
    /// We have sent the proof that we know the cookie.
    Proof,
}

/// The name of our host. It only informs people at the node's end.
fn host_name() -> String {
    match rustix::system::uname().nodename().to_str() {
        Ok(name) if !name.is_empty() => name.into(),
        _ => "localhost".into(),
    }
}

/// A random challenge. If it were predictable, a process without the cookie could obtain its digest elsewhere.
fn random() -> io::Result<u32> {
    let mut bytes = [0; 4];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u32::from_ne_bytes(bytes))
}

// --- bytes ---------------------------------------------------------------------------------------

/// Reads the bytes that have arrived, or waits for some until the deadline.
fn read_some(mut stream: &UnixStream, deadline: Instant, bytes: &mut [u8]) -> io::Result<usize> {
    loop {
        stream.set_read_timeout(Some(time_left(deadline)?))?;
        match stream.read(bytes) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == ErrorKind::Interrupted => (),
            result => return result,
        }
    }
}

fn write_frame(
    mut stream: &UnixStream,
    deadline: Instant,
    head: &[u8],
    message: &[u8],
) -> io::Result<()> {
    let mut slices = &mut [IoSlice::new(head), IoSlice::new(message)][..];
    while !slices.is_empty() {
        stream.set_write_timeout(Some(time_left(deadline)?))?;
        match stream.write_vectored(slices) {
            Ok(count) => IoSlice::advance_slices(&mut slices, count),
            Err(error) if error.kind() == ErrorKind::Interrupted => (),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn time_left(deadline: Instant) -> io::Result<Duration> {
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(ErrorKind::TimedOut.into()),
        left => Ok(left),
    }
}

/// True if a time limit of the socket has passed. The kind of error depends on the system.
fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock)
}
