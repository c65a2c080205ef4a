//! Limits on the resources of a sidecar (handshakes, descriptors, time, processor time), and their release.
#![cfg(target_os = "linux")] // /proc has the measurements

mod port;

use port::*;
use std::collections::VecDeque;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};
use uds_dist::door::visitors::DEADLINE;
use uds_dist::failure::Reason;
use uds_dist::ids::ConnId;
use uds_dist::port::protocol::{Command, Report, WINDOW};

/// MAX_HANDSHAKES in the sidecar.
const HANDSHAKES: usize = 128;

fn listening() -> (Sidecar, TempDir) {
    let directory = TempDir::new();
    let mut sidecar = Sidecar::start();
    sidecar.listen(directory.path("a.sock"));
    (sidecar, directory)
}

fn inbound(sidecar: &mut Sidecar, directory: &TempDir) -> (ConnId, UnixStream) {
    let peer = connect_node(directory.path("a.sock"));
    (sidecar.accepted().0, peer)
}

// --- handshakes ----------------------------------------------------------------------------------

/// Every way to end a handshake frees its place, so that no other one has to make room.
#[test]
fn a_completed_handshake_frees_its_place() {
    for way in 0..4 {
        let (mut sidecar, directory) = listening();
        let crowd: Vec<_> = (0..HANDSHAKES)
            .map(|_| inbound(&mut sidecar, &directory))
            .collect();
        let mut open = Vec::new();
        for (conn, peer) in crowd {
            match way {
                0 => {
                    sidecar.establish(conn);
                    open.push(peer);
                }
                1 => {
                    sidecar.close(conn);
                    // A peer that leaves before CLOSE is read would be reported.
                    open.push(peer);
                }
                2 => {
                    drop(peer);
                    sidecar.closed(conn);
                }
                _ => {
                    // Its peer does not read these bytes, so it lingers, but it is not in a handshake.
                    sidecar.send_data(conn, &bytes(1, WINDOW as usize / 4));
                    sidecar.close(conn);
                    open.push(peer);
                }
            }
        }
        let _next: Vec<_> = (0..HANDSHAKES)
            .map(|_| inbound(&mut sidecar, &directory))
            .collect();
        sidecar.settle();
        sidecar.expect_no_report();
    }
}

/// Peers that come and go faster than the VM can handle wait in the backlog.
#[test]
fn a_place_is_freed_only_when_the_vm_is_done_with_its_connection() {
    let (mut sidecar, directory) = listening();
    let crowd: Vec<_> = (0..HANDSHAKES)
        .map(|_| inbound(&mut sidecar, &directory))
        .collect();
    let (crowd, peers): (Vec<_>, Vec<_>) = crowd.into_iter().unzip();
    drop(peers);
    for _ in &crowd {
        let report = sidecar.expect_report("CLOSED");
        assert!(matches!(report, Report::Closed { .. }), "{report:?}");
    }
    let mut next = connect_node(directory.path("a.sock"));
    // This is longer than a silent peer may stay while others wait.
    sidecar.expect_idle();
    sidecar.settle();
    sidecar.expect_no_report();
    sidecar.send(&Command::Close { conn: crowd[7] });
    let (conn, _) = sidecar.accepted();
    sidecar.send_data(conn, b"ping");
    assert_eq!(read(&mut next, 4), b"ping");
    // Each free place admits one peer.
    let _another = connect_node(directory.path("a.sock"));
    sidecar.settle();
    sidecar.expect_no_report();
    sidecar.send(&Command::Established {
        conn: crowd[8],
        node: "late@host".into(),
    });
    sidecar.accepted();
}

#[test]
fn outgoing_connections_need_no_place_among_handshakes() {
    let (mut sidecar, directory) = listening();
    let crowd: Vec<_> = (0..HANDSHAKES)
        .map(|_| inbound(&mut sidecar, &directory))
        .collect();
    let listener = UnixListener::bind(directory.path("b.sock")).expect("a listener");
    let mut peers = Vec::new();
    for _ in 0..3 {
        let (conn, _) = sidecar.connect(directory.path("b.sock"));
        let mut peer = limited(listener.accept().expect("the sidecar").0);
        sidecar.send_data(conn, b"ping");
        assert_eq!(read(&mut peer, 4), b"ping");
        sidecar.establish(conn);
        sidecar.close(conn);
        peers.push(peer);
    }
    // Their end makes no room for strangers; one of the others has to.
    let _one_more = connect_node(directory.path("a.sock"));
    let (_, explanation, _) = sidecar.closed(crowd[0].0);
    assert!(explanation.contains("make room"), "{explanation}");
    sidecar.accepted();
    sidecar.settle();
    sidecar.expect_no_report();
}

// --- descriptors ---------------------------------------------------------------------------------

#[test]
fn connections_leave_no_descriptor_behind() {
    const ROUNDS: usize = 500;
    let (mut sidecar, directory) = listening();
    let listener = UnixListener::bind(directory.path("b.sock")).expect("a listener");
    sidecar.settle();
    let before = descriptors(sidecar.pid());
    for round in 0..ROUNDS {
        let (conn, mut peer) = match round % 2 {
            0 => inbound(&mut sidecar, &directory),
            _ => {
                let (conn, _) = sidecar.connect(directory.path("b.sock"));
                (conn, limited(listener.accept().expect("the sidecar").0))
            }
        };
        sidecar.send_data(conn, b"ping");
        match round % 5 {
            0 => drop(peer), // with a byte unread, or not
            1 => {
                read(&mut peer, 4);
                drop(peer);
            }
            2 => {
                sidecar.establish(conn);
                peer.write_all(b"pong").expect("room");
                sidecar.take(conn, 4);
                drop(peer);
            }
            3 => {
                sidecar.close(conn);
                assert_eq!(read_to_end(&mut peer), b"ping");
                continue;
            }
            _ => {
                peer.shutdown(Shutdown::Both).expect("a socket");
            }
        }
        assert_eq!(sidecar.closed(conn).0, Reason::PeerClosed);
    }
    sidecar.settle();
    assert_eq!(descriptors(sidecar.pid()), before);
}

#[test]
fn failures_leave_no_descriptor_behind() {
    let (mut sidecar, directory) = listening();
    std::fs::write(directory.path("file"), "").expect("a file");
    drop(UnixListener::bind(directory.path("stale.sock")).expect("a listener"));
    let live = UnixListener::bind(directory.path("live.sock")).expect("a listener");
    sidecar.settle();
    let before = descriptors(sidecar.pid());
    for _ in 0..20 {
        sidecar.connect_fails(directory.path("nothing"));
        sidecar.connect_fails(directory.path("stale.sock"));
        sidecar.connect_fails(directory.path("x").join("y".repeat(200)));
        for name in ["file", "live.sock", "missing/missing/a.sock"] {
            sidecar.send_listen(1, directory.path(name), 0o600);
            match sidecar.expect_report("LISTEN_FAILED") {
                Report::ListenFailed { .. } => (),
                other => sidecar.fail(&format!("LISTEN_FAILED, not {other:?}")),
            }
        }
        live.accept().expect("the probe");
        sidecar.listen_with(1, directory.path("c.sock"), 0o600);
        sidecar.unlisten(1);
    }
    sidecar.settle();
    assert_eq!(descriptors(sidecar.pid()), before);
}

type Connections = VecDeque<(ConnId, UnixStream)>;

/// A sidecar with few descriptors, which listens twice.
fn with_few_descriptors() -> (Sidecar, TempDir) {
    let directory = TempDir::new();
    let mut sidecar = Sidecar::start_program(&mut after_shell("ulimit -n 24"));
    sidecar.listen(directory.path("a.sock"));
    sidecar.listen_with(1, directory.path("b.sock"), 0o600);
    sidecar.settle();
    (sidecar, directory)
}

/// The next peer, which completes its handshake. Otherwise it would have to make room.
fn connected(sidecar: &mut Sidecar) -> ConnId {
    let (conn, _) = sidecar.accepted();
    sidecar.establish(conn);
    conn
}

/// A sidecar that has run out of descriptors, with its connections and waiting peers.
fn exhausted() -> (Sidecar, Connections, VecDeque<UnixStream>, TempDir) {
    const PEERS: usize = 60;
    let (mut sidecar, directory) = with_few_descriptors();
    let mut waiting: VecDeque<_> = (0..PEERS)
        .map(|_| connect_node(directory.path("a.sock")))
        .collect();
    sidecar.expect_log("cannot accept connections");
    sidecar.settle();
    let mut connections = VecDeque::new();
    while sidecar.has_report() {
        let peer = waiting.pop_front().expect("one that waits");
        connections.push_back((connected(&mut sidecar), peer));
    }
    assert!(
        (1..24).contains(&connections.len()),
        "{}",
        connections.len()
    );
    (sidecar, connections, waiting, directory)
}

fn complaints(sidecar: &mut Sidecar) -> usize {
    let complaint = |line: &&String| line.contains("cannot accept connections");
    sidecar.log().iter().filter(complaint).count()
}

#[test]
fn existing_connections_go_on_without_descriptors() {
    let (mut sidecar, mut connections, _waiting, directory) = exhausted();
    let line = sidecar.expect_log("cannot accept connections");
    assert!(
        line.contains("existing connections are not affected"),
        "{line}"
    );
    assert!(line.contains("ulimit -n"), "{line}");
    for (conn, peer) in &mut connections {
        sidecar.send_data(*conn, b"ping");
        assert_eq!(read(peer, 4), b"ping");
        peer.write_all(b"pong").expect("room");
        assert_eq!(sidecar.take(*conn, 4), b"pong");
    }
    assert_fails(
        sidecar.connect_fails(directory.path("a.sock")),
        Reason::SystemError,
        &["open files"],
    );
    // This is longer than the pause, so it tries again. It neither spins nor repeats its log line.
    sidecar.expect_idle_for(Duration::from_millis(1200));
    assert_eq!(complaints(&mut sidecar), 1);
}

#[test]
fn accepting_resumes_at_once_when_a_descriptor_is_free() {
    let (mut sidecar, mut connections, mut waiting, _directory) = exhausted();
    let begin = Instant::now();
    const ROUNDS: u32 = 12;
    for round in 0..ROUNDS {
        let (conn, peer) = connections.pop_front().expect("one left");
        match round % 2 {
            0 => sidecar.close(conn),
            _ => {
                drop(peer);
                sidecar.closed(conn);
            }
        }
        let peer = waiting.pop_front().expect("one that waits");
        connections.push_back((connected(&mut sidecar), peer));
    }
    // Waiting for the end of the pause would take a second each time.
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(ROUNDS.into()) / 2, "{took:?}");
    // Peers have been waiting all the time, so the shortage has not ended in between.
    assert_eq!(complaints(&mut sidecar), 1);
    while !waiting.is_empty() {
        let (conn, _peer) = connections.pop_front().expect("one left");
        sidecar.close(conn);
        let peer = waiting.pop_front().expect("one that waits");
        connections.push_back((connected(&mut sidecar), peer));
    }
    let (conn, _peer) = connections.pop_front().expect("one left");
    sidecar.close(conn);
    sidecar.expect_log("accepting connections again");
}

#[test]
fn accepting_resumes_by_itself_when_a_descriptor_comes_from_elsewhere() {
    let (mut sidecar, _connections, _waiting, _directory) = exhausted();
    sidecar.unlisten(1);
    sidecar.accepted();
}

/// Peers that stay silent, or that send only a name, have taken all descriptors, and more of them wait. A real node
/// still gets in soon.
#[test]
fn without_descriptors_stalled_handshakes_make_room() {
    const CROWD: usize = 60;
    for names in [0, CROWD] {
        let (mut sidecar, directory) = with_few_descriptors();
        let path = directory.path("a.sock");
        let _silent: Vec<_> = (names..CROWD).map(|_| connect_peer(&path)).collect();
        let _named: Vec<_> = (0..names).map(|_| connect_node(&path)).collect();
        let start = Instant::now();
        let mut peer = connect_node(&path);
        let mut accepted = Vec::new();
        while accepted.len() <= names {
            match sidecar.expect_report("ACCEPTED or CLOSED") {
                Report::Accepted { conn, .. } => accepted.push(conn),
                Report::Closed {
                    conn, explanation, ..
                } => {
                    assert!(explanation.contains("make room"), "{explanation}");
                    sidecar.close(conn);
                }
                other => sidecar.fail(&format!("ACCEPTED or CLOSED, not {other:?}")),
            }
        }
        let waited = start.elapsed();
        println!("in after {waited:?}, with {names} names");
        assert!(waited < DEADLINE / 2, "{waited:?}");
        sidecar.send_data(accepted[names], b"welcome");
        assert_eq!(read(&mut peer, 7), b"welcome");
        sidecar.expect_log("cannot accept connections");
        assert_eq!(complaints(&mut sidecar), 1);
    }
}

// --- time ----------------------------------------------------------------------------------------

#[test]
fn a_closed_connection_lingers_for_a_bounded_time() {
    let (mut sidecar, directory) = listening();
    sidecar.settle();
    let before = descriptors(sidecar.pid());
    let (conn, _peer) = inbound(&mut sidecar, &directory);
    sidecar.fill(conn, &bytes(1, MUCH));
    sidecar.close(conn);
    sidecar.expect_log("before its peer had read everything");
    sidecar.settle();
    assert_eq!(descriptors(sidecar.pid()), before);
}

// --- processor time -------------------------------------------------------------------------------

#[test]
fn idle_after_traffic() {
    let (mut sidecar, directory) = listening();
    sidecar.expect_idle();
    let (conn, mut peer) = inbound(&mut sidecar, &directory);
    sidecar.establish(conn);
    for round in 0..20 {
        let sent = bytes(round, 100_000);
        sidecar.deliver(conn, &sent);
        assert_same(&read(&mut peer, sent.len()), &sent);
        peer.write_all(&sent).expect("a reader");
        assert_same(&sidecar.receive(conn, sent.len()), &sent);
    }
    sidecar.settle();
    sidecar.expect_idle();
}

#[test]
fn idle_with_silent_and_half_open_peers() {
    let (mut sidecar, directory) = listening();
    let _silent = connect_peer(directory.path("a.sock"));
    let mut half_a_name = connect_peer(directory.path("a.sock"));
    half_a_name.write_all(&NAME[..10]).expect("room");
    let (half, mut half_a_frame) = inbound(&mut sidecar, &directory);
    half_a_frame.write_all(b"\0").expect("room");
    sidecar.take(half, 1);
    let (_, deaf) = inbound(&mut sidecar, &directory);
    deaf.shutdown(Shutdown::Read).expect("a socket");
    let (mute, mute_peer) = inbound(&mut sidecar, &directory);
    mute_peer.shutdown(Shutdown::Write).expect("a socket");
    sidecar.closed(mute);
    let (gone, peer) = inbound(&mut sidecar, &directory);
    drop(peer);
    sidecar.closed(gone);
    sidecar.settle();
    sidecar.expect_idle();
}

#[test]
fn idle_with_a_peer_that_writes_more_than_the_window() {
    let (mut sidecar, directory) = listening();
    let (conn, mut peer) = inbound(&mut sidecar, &directory);
    let garbage = vec![0; WINDOW as usize];
    while write_some(&mut peer, &garbage) > 0 {
        sidecar.settle();
    }
    sidecar.expect_idle();
    drop(peer);
    sidecar.settle();
    sidecar.expect_idle();
    assert_eq!(sidecar.untaken(conn), (16 << 10) - NAME.len());
}

#[test]
fn idle_with_a_peer_that_does_not_read() {
    let (mut sidecar, directory) = listening();
    let (conn, _peer) = inbound(&mut sidecar, &directory);
    sidecar.establish(conn);
    sidecar.fill(conn, &bytes(1, MUCH));
    sidecar.settle();
    sidecar.expect_idle();
    sidecar.close(conn);
    sidecar.settle();
    sidecar.expect_idle(); // and while it lingers
}

#[test]
fn idle_with_a_vm_that_does_not_read() {
    let (mut sidecar, directory) = listening();
    let mut connections: Vec<_> = (0..8).map(|_| inbound(&mut sidecar, &directory)).collect();
    for (conn, _) in &connections {
        sidecar.establish(*conn);
    }
    let sent = bytes(1, WINDOW as usize);
    let mut stopped = false;
    while !stopped {
        stopped = true;
        for (conn, peer) in &mut connections {
            stopped &= write_some(peer, &sent) == 0;
            sidecar.send_data(*conn, b"ping");
            assert_eq!(read(peer, 4), b"ping");
        }
    }
    sidecar.expect_idle();
}

#[test]
fn idle_after_a_shortage_of_descriptors() {
    let (mut sidecar, connections, waiting, _directory) = exhausted();
    drop(waiting);
    for (conn, _) in &connections {
        sidecar.close(*conn);
    }
    sidecar.expect_log("accepting connections again");
    sidecar.settle();
    sidecar.expect_idle();
}
