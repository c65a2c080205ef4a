//! Flow control: *a sender has at most a window of bytes of a connection sent and not acknowledged.
//! The receiver acknowledges bytes when it has passed them on, at the latest when a quarter of the
//! window waits for its acknowledgement.* And no connection waits for the peer of another.

mod port;

use port::*;
use std::os::unix::net::UnixStream;
use uds_dist::ids::ConnId;
use uds_dist::port::protocol::{HANDSHAKE_WINDOW, WINDOW};

const WHOLE: usize = WINDOW as usize;
const HANDSHAKE: usize = HANDSHAKE_WINDOW as usize - NAME.len();

/// Most bytes in the pipe to the VM and waiting for it, with some reserve. The pipe holds 256 pieces, and a splice from
/// a socket can make pieces of 32 KiB.
const PIPE: usize = 256 * (32 << 10);
const KEPT: usize = 512 << 10;

/// Most bytes in a socket that nobody reads.
fn socket_capacity() -> usize {
    let (mut near, _far) = UnixStream::pair().expect("two sockets");
    write_some(&mut near, &vec![0; 16 * WHOLE])
}

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

/// Lets the peer write until the sidecar stops reading. Returns the number of bytes.
fn fill_from_peer(sidecar: &mut Sidecar, peer: &mut UnixStream, sent: &[u8]) -> usize {
    let mut written = 0;
    loop {
        sidecar.settle();
        match write_some(peer, &sent[written..]) {
            0 => return written,
            count => written += count,
        }
        assert!(written < sent.len(), "nothing has stopped the peer");
    }
}

// --- from the peer to the VM ---------------------------------------------------------------------

#[test]
fn a_handshake_brings_exactly_its_window() {
    let (mut sidecar, directory) = listening();
    let (conn, mut peer) = inbound(&mut sidecar, &directory);
    let sent = bytes(1, 4 * WHOLE);
    fill_from_peer(&mut sidecar, &mut peer, &sent);
    assert_eq!(sidecar.untaken(conn), HANDSHAKE);
    assert_same(&sidecar.take(conn, HANDSHAKE), &sent[..HANDSHAKE]);
}

#[test]
fn an_established_connection_brings_exactly_a_window_without_ack() {
    let (mut sidecar, directory) = listening();
    let (conn, mut peer) = inbound(&mut sidecar, &directory);
    let sent = bytes(1, 4 * WHOLE);
    let mut written = fill_from_peer(&mut sidecar, &mut peer, &sent);
    sidecar.establish(conn);
    written += fill_from_peer(&mut sidecar, &mut peer, &sent[written..]);
    // The bytes of the handshake count too.
    assert_eq!(sidecar.untaken(conn), WHOLE);
    let mut seen = sidecar.take(conn, WHOLE);
    for acknowledged in [1, 2, 100_000, WHOLE - 100_003] {
        sidecar.acknowledge(conn, acknowledged as u64);
        written += fill_from_peer(&mut sidecar, &mut peer, &sent[written..]);
        assert_eq!(sidecar.untaken(conn), acknowledged);
        seen.extend(sidecar.take(conn, acknowledged));
    }
    assert_same(&seen, &sent[..2 * WHOLE]);
}

#[test]
fn establishing_needs_no_further_event_to_go_on() {
    let (mut sidecar, directory) = listening();
    let (conn, mut peer) = inbound(&mut sidecar, &directory);
    let sent = bytes(1, HANDSHAKE + 1);
    assert_eq!(write_some(&mut peer, &sent), sent.len());
    sidecar.settle();
    assert_eq!(sidecar.untaken(conn), HANDSHAKE);
    sidecar.establish(conn);
    assert_same(&sidecar.take(conn, sent.len()), &sent);
}

#[test]
fn bytes_of_a_peer_that_has_gone_wait_for_the_window_as_well() {
    let (mut sidecar, directory) = listening();
    let (conn, mut peer) = inbound(&mut sidecar, &directory);
    sidecar.establish(conn);
    let sent = bytes(1, 4 * WHOLE);
    let written = fill_from_peer(&mut sidecar, &mut peer, &sent);
    drop(peer);
    sidecar.settle();
    assert_eq!(sidecar.untaken(conn), WHOLE);
    sidecar.take(conn, WHOLE);
    sidecar.acknowledge(conn, WINDOW.into());
    let (_, _, rest) = sidecar.closed(conn);
    assert_same(&rest, &sent[WHOLE..written]);
}

// --- from the VM to the peer ---------------------------------------------------------------------

#[test]
fn the_vm_may_send_a_window_and_is_acknowledged_what_the_peer_can_read() {
    let (mut sidecar, directory) = listening();
    let (conn, mut peer) = inbound(&mut sidecar, &directory);
    let sent = bytes(1, 8 * WHOLE);
    let written = sidecar.fill(conn, &sent);
    let acknowledged = sidecar.acknowledged(conn) as usize;
    assert_eq!(acknowledged, written - WHOLE);
    let passed_on = readable(&peer, sent.len());
    assert!(acknowledged <= passed_on);
    assert!(passed_on - acknowledged < WHOLE / 4);
    // The peer reads, and the sidecar acknowledges until less than a quarter of the window is unacknowledged.
    assert_same(&read(&mut peer, written), &sent[..written]);
    sidecar.expect_acknowledged(conn, (written - WHOLE / 4 + 1) as u64);
}

#[test]
fn a_stalled_peer_gets_everything_once_it_reads() {
    let (mut sidecar, directory) = listening();
    let (conn, mut peer) = inbound(&mut sidecar, &directory);
    let sent = bytes(1, 8 * WHOLE);
    let mut written = sidecar.fill(conn, &sent);
    let mut seen = 0;
    while seen < sent.len() {
        let more = (sidecar.available(conn) as usize).min(sent.len() - written);
        sidecar.send_data(conn, &sent[written..written + more]);
        written += more;
        let count = (written - seen).min(200_000);
        assert_same(&read(&mut peer, count), &sent[seen..seen + count]);
        seen += count;
        if seen == written {
            // Only the acknowledgement is on its way.
            sidecar.expect_acknowledged(conn, (written - WHOLE / 4 + 1) as u64);
        }
    }
}

#[test]
fn a_quarter_of_a_window_is_acknowledged_and_less_is_not() {
    let (mut sidecar, directory) = listening();
    let (conn, mut peer) = inbound(&mut sidecar, &directory);
    let quarter = bytes(1, WHOLE / 4);
    let (all_but_one, last) = quarter.split_at(WHOLE / 4 - 1);
    sidecar.deliver(conn, all_but_one);
    read(&mut peer, all_but_one.len());
    sidecar.settle();
    assert_eq!(sidecar.acknowledged(conn), 0);
    sidecar.deliver(conn, last);
    read(&mut peer, 1);
    sidecar.expect_acknowledged(conn, quarter.len() as u64);
}

// --- other connections ---------------------------------------------------------------------------

#[test]
fn a_stalled_peer_delays_no_other_connection() {
    const ROUNDS: u32 = 300;
    let (mut sidecar, directory) = listening();
    let sent = bytes(1, 8 * WHOLE);
    let mut stalled = Vec::new();
    for _ in 0..3 {
        let (conn, mut peer) = inbound(&mut sidecar, &directory);
        sidecar.establish(conn);
        sidecar.fill(conn, &sent);
        fill_from_peer(&mut sidecar, &mut peer, &sent);
        stalled.push((conn, peer));
    }
    let (conn, mut peer) = inbound(&mut sidecar, &directory);
    sidecar.establish(conn);
    for round in 0..ROUNDS {
        let ping = bytes(u64::from(round), 1000);
        sidecar.send_data(conn, &ping);
        assert_same(&read(&mut peer, ping.len()), &ping);
        assert_eq!(write_some(&mut peer, &ping), ping.len());
        assert_same(&sidecar.receive(conn, ping.len()), &ping);
    }
    for (conn, _) in &stalled {
        assert_eq!(sidecar.untaken(*conn), WHOLE);
        assert_eq!(sidecar.available(*conn), 0);
    }
}

#[test]
fn the_vm_may_leave_its_port_unread() {
    // This is more than the pipe and the sidecar hold. The sidecar stops reading the sockets, but it still reads from
    // the VM, and the VM's bytes still reach the peers.
    let (mut sidecar, directory) = listening();
    let sent = bytes(1, 4 * WHOLE);
    let mut connections = Vec::new();
    for _ in 0..16 {
        let (conn, peer) = inbound(&mut sidecar, &directory);
        sidecar.establish(conn);
        connections.push((conn, peer, 0));
    }
    sidecar.settle();
    // Nobody reads stdout from here on.
    let mut stopped = false;
    while !stopped {
        stopped = true;
        for (conn, peer, written) in &mut connections {
            let count = write_some(peer, &sent[*written..]);
            *written += count;
            stopped &= count == 0;
            // This shows that the loop of the sidecar has run after the write.
            sidecar.send_data(*conn, b"ping");
            assert_eq!(read(peer, 4), b"ping");
        }
    }
    let total: usize = connections.iter().map(|(_, _, written)| written).sum();
    // At most what the sockets and the pipe hold, and what the sidecar buffers before it stops reading.
    let most = connections.len() * socket_capacity() + PIPE + KEPT;
    assert!((WHOLE..most).contains(&total), "{total} of {most} bytes");
    for (conn, peer, written) in &mut connections {
        let mut seen = 0;
        while seen < *written {
            let count = (*written - seen).min(10_000);
            assert_same(&sidecar.receive(*conn, count), &sent[seen..seen + count]);
            seen += count;
        }
        assert_eq!(write_some(peer, b"pong"), 4);
        assert_eq!(sidecar.receive(*conn, 4), b"pong");
    }
}
