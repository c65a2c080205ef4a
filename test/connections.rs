//! Connections from beginning to end: CONNECT and ACCEPTED, bytes in both directions, and closing.

mod port;

use port::*;
use rustix::net::{SendFlags, SocketAddrUnix, send};
use rustix::process::Signal;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::thread;
use uds_dist::failure::Reason;
use uds_dist::ids::ConnId;
use uds_dist::peer::Credentials;
use uds_dist::port::protocol::WINDOW;

/// A sidecar that listens at the first path of the directory.
fn listening() -> (Sidecar, TempDir) {
    let directory = TempDir::new();
    let mut sidecar = Sidecar::start();
    sidecar.listen(directory.path("a.sock"));
    (sidecar, directory)
}

/// A sidecar with an established connection that a peer has opened.
fn connected() -> (Sidecar, ConnId, UnixStream, TempDir) {
    let (mut sidecar, directory) = listening();
    let (conn, peer) = inbound(&mut sidecar, &directory);
    (sidecar, conn, peer, directory)
}

fn inbound(sidecar: &mut Sidecar, directory: &TempDir) -> (ConnId, UnixStream) {
    let peer = connect_node(directory.path("a.sock"));
    let (conn, _) = sidecar.accepted();
    sidecar.establish(conn);
    (conn, peer)
}

fn outbound(sidecar: &mut Sidecar, directory: &TempDir) -> (ConnId, UnixStream) {
    let path = directory.path("peer.sock");
    let listener = UnixListener::bind(&path).expect("a free path");
    let (conn, _) = sidecar.connect(&path);
    sidecar.establish(conn);
    let (peer, _) = listener.accept().expect("the sidecar");
    fs::remove_file(&path).expect("our socket");
    (conn, limited(peer))
}

// --- the beginning -------------------------------------------------------------------------------

#[test]
fn both_sides_learn_who_the_peer_is() {
    let us = Credentials {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        pid: std::process::id(),
    };
    let (mut sidecar, directory) = listening();
    let _peer = connect_node(directory.path("a.sock"));
    assert_eq!(sidecar.accepted().1, us);
    let _listener = UnixListener::bind(directory.path("b.sock")).expect("a listener");
    assert_eq!(sidecar.connect(directory.path("b.sock")).1, us);
}

#[test]
fn the_sidecar_numbers_what_it_accepts_with_even_numbers() {
    let (mut sidecar, directory) = listening();
    let mut peers = Vec::new();
    for expected in [2, 4, 6] {
        peers.push(connect_node(directory.path("a.sock")));
        assert_eq!(sidecar.accepted().0, expected);
    }
}

#[test]
fn two_sidecars_talk_to_each_other() {
    let (mut a, directory) = listening();
    let mut b = Sidecar::start();
    let (conn_b, _) = b.call(directory.path("a.sock"));
    let (conn_a, _) = a.accepted();
    a.establish(conn_a);
    b.establish(conn_b);
    let (there, back) = (bytes(1, 300_000), bytes(2, 300_000));
    a.send_data(conn_a, &there);
    b.send_data(conn_b, &back);
    assert_same(&b.receive(conn_b, there.len()), &there);
    assert_same(&a.receive(conn_a, back.len()), &back);
    a.close(conn_a);
    assert_fails(reason(b.closed(conn_b)), Reason::PeerClosed, &[]);
}

#[test]
fn nobody_listens_where_there_is_no_socket() {
    let directory = TempDir::new();
    let mut sidecar = Sidecar::start();
    assert_fails(
        sidecar.connect_fails(directory.path("a.sock")),
        Reason::NotListening,
        &["no socket", "a.sock"],
    );
    assert_fails(
        sidecar.connect_fails(directory.path("missing/a.sock")),
        Reason::NotListening,
        &["missing/a.sock"],
    );
}

#[test]
fn nobody_listens_at_a_stale_socket() {
    let directory = TempDir::new();
    drop(UnixListener::bind(directory.path("a.sock")).expect("a listener"));
    let mut sidecar = Sidecar::start();
    assert_fails(
        sidecar.connect_fails(directory.path("a.sock")),
        Reason::NotListening,
        &["nobody listens", "a.sock"],
    );
    assert_eq!(directory.names(), ["a.sock"]);
}

#[test]
fn nobody_listens_at_a_file() {
    let directory = TempDir::new();
    fs::write(directory.path("file"), "").expect("a file");
    let mut sidecar = Sidecar::start();
    assert_fails(
        sidecar.connect_fails(directory.path("file")),
        Reason::NotListening,
        &["file"],
    );
}

#[test]
fn a_socket_of_another_kind_is_an_error() {
    let directory = TempDir::new();
    let _datagram = UnixDatagram::bind(directory.path("a.sock")).expect("a socket");
    let mut sidecar = Sidecar::start();
    assert_fails(
        sidecar.connect_fails(directory.path("a.sock")),
        Reason::SystemError,
        &["a.sock"],
    );
}

#[test]
fn a_full_backlog_is_not_taken_for_a_missing_listener() {
    let directory = TempDir::new();
    let path = directory.path("a.sock");
    let address = SocketAddrUnix::new(&path).expect("an address");
    let foreign = listen_only(&address, 1);
    let waiting = fill_backlog(&address);
    let mut sidecar = Sidecar::start();
    assert_fails(
        sidecar.connect_fails(&path),
        Reason::BacklogFull,
        &["the connect to ", "a.sock failed: "],
    );
    let foreign = UnixListener::from(foreign);
    for _ in waiting {
        foreign.accept().expect("one that waits");
    }
    sidecar.connect(&path);
}

#[test]
fn a_socket_that_we_may_not_use_is_a_denied_permission() {
    let directory = TempDir::new();
    let Some(mut nobody) = as_nobody(&directory) else {
        return;
    };
    let path = directory.path("a.sock");
    let _foreign = UnixListener::bind(&path).expect("a listener");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("our socket");
    let mut sidecar = Sidecar::start_program(&mut nobody);
    assert_fails(
        sidecar.connect_fails(&path),
        Reason::PermissionDenied,
        &[
            "the connect to ",
            "a.sock failed: ",
            "run this as the user of that node",
        ],
    );
}

// --- bytes ---------------------------------------------------------------------------------------

/// Sizes around every boundary in the sidecar: zero, coalescing, reads, and the window.
const SIZES: [usize; 15] = [
    0,
    1,
    2,
    (16 << 10) - 1,
    16 << 10,
    (16 << 10) + 1,
    (128 << 10) - 1,
    128 << 10,
    (128 << 10) + 1,
    (256 << 10) - 1,
    256 << 10,
    (256 << 10) + 1,
    WINDOW as usize - 1,
    WINDOW as usize,
    WINDOW as usize + 1,
];

#[test]
fn bytes_of_the_vm_reach_the_peer() {
    let (mut sidecar, conn, mut peer, _directory) = connected();
    let reader = thread::spawn(move || {
        for (seed, size) in SIZES.into_iter().enumerate() {
            assert_same(&read(&mut peer, size), &bytes(seed as u64, size));
        }
    });
    for (seed, size) in SIZES.into_iter().enumerate() {
        sidecar.deliver(conn, &bytes(seed as u64, size));
    }
    joined(reader);
}

#[test]
fn bytes_of_the_peer_reach_the_vm() {
    let (mut sidecar, conn, mut peer, _directory) = connected();
    let writer = thread::spawn(move || {
        for (seed, size) in SIZES.into_iter().enumerate() {
            peer.write_all(&bytes(seed as u64, size)).expect("a reader");
        }
        peer
    });
    for (seed, size) in SIZES.into_iter().enumerate() {
        assert_same(&sidecar.receive(conn, size), &bytes(seed as u64, size));
    }
    joined(writer);
}

#[test]
fn packets_of_any_size_make_one_stream() {
    let (mut sidecar, conn, mut peer, _directory) = connected();
    let mut expected = Vec::new();
    for (seed, size) in [0, 1, 0, 5, 20_000, 3, 0, 16_384, 7, 130_000, 1, 1]
        .into_iter()
        .enumerate()
    {
        let packet = bytes(seed as u64, size);
        sidecar.send_data(conn, &packet);
        expected.extend(packet);
    }
    assert_same(&read(&mut peer, expected.len()), &expected);
}

#[test]
fn a_packet_of_a_whole_window_is_streamed() {
    let (mut sidecar, conn, mut peer, _directory) = connected();
    let packet = bytes(1, WINDOW as usize);
    let expected = packet.clone();
    let reader = thread::spawn(move || assert_same(&read(&mut peer, expected.len()), &expected));
    sidecar.send_data(conn, &packet);
    joined(reader);
}

#[test]
fn megabytes_go_both_ways_at_once() {
    const SIZE: usize = 8 << 20;
    let (mut sidecar, directory) = listening();
    // If the peer left before the sidecar has read CLOSE, that would be reported.
    let mut peers = Vec::new();
    for (seed, connect) in [inbound, outbound].into_iter().enumerate() {
        let (conn, mut peer) = connect(&mut sidecar, &directory);
        let (there, back) = (bytes(seed as u64, SIZE), bytes(seed as u64 + 10, SIZE));
        let mut peers_writer = peer.try_clone().expect("a descriptor");
        let written = back.clone();
        let writer = thread::spawn(move || peers_writer.write_all(&written).expect("a reader"));
        let reader = thread::spawn(move || (read(&mut peer, SIZE), peer));
        let mut received = Vec::new();
        for part in there.chunks(SIZE / 32) {
            sidecar.deliver(conn, part);
            received.extend(sidecar.receive(conn, part.len()));
        }
        joined(writer);
        assert_same(&received, &back);
        let (seen, peer) = joined(reader);
        assert_same(&seen, &there);
        sidecar.close(conn);
        peers.push(peer);
    }
}

#[test]
fn a_peer_may_write_byte_by_byte() {
    let (mut sidecar, conn, mut peer, _directory) = connected();
    let sent = bytes(1, 3000);
    for byte in &sent {
        peer.write_all(&[*byte]).expect("a reader");
    }
    assert_same(&sidecar.receive(conn, sent.len()), &sent);
}

#[test]
fn a_peer_may_read_byte_by_byte() {
    let (mut sidecar, conn, mut peer, _directory) = connected();
    let sent = bytes(1, 3000);
    sidecar.deliver(conn, &sent);
    let mut seen = Vec::new();
    while seen.len() < sent.len() {
        seen.extend(read(&mut peer, 1));
    }
    assert_same(&seen, &sent);
}

#[test]
fn a_peer_may_write_odd_pieces() {
    let (mut sidecar, conn, mut peer, _directory) = connected();
    let sent = bytes(1, 500_000);
    let written = sent.clone();
    let writer = thread::spawn(move || {
        let mut rest = &written[..];
        for size in [1, 3, 7, 61, 1021, 16_381, 65_537, 11].into_iter().cycle() {
            let (piece, behind) = rest.split_at(rest.len().min(size));
            peer.write_all(piece).expect("a reader");
            rest = behind;
            if rest.is_empty() {
                return peer;
            }
        }
        unreachable!("the sizes are a cycle");
    });
    assert_same(&sidecar.receive(conn, sent.len()), &sent);
    joined(writer);
}

#[test]
fn connections_do_not_mix() {
    const COUNT: usize = 20;
    const SIZE: usize = 200_000;
    let (mut sidecar, directory) = listening();
    let connections: Vec<_> = (0..COUNT)
        .map(|_| inbound(&mut sidecar, &directory))
        .collect();
    let mut echoes = Vec::new();
    let mut conns = Vec::new();
    for (conn, mut peer) in connections {
        conns.push(conn);
        echoes.push(thread::spawn(move || {
            let mut left = SIZE;
            let mut buffer = vec![0; 10_007];
            while left > 0 {
                let count = peer.read(&mut buffer).expect("bytes of the VM");
                peer.write_all(&buffer[..count]).expect("a reader");
                left -= count;
            }
            peer
        }));
    }
    for part in 0..10 {
        for conn in &conns {
            let sent = bytes(u64::from(*conn), SIZE);
            sidecar.deliver(*conn, &sent[part * SIZE / 10..(part + 1) * SIZE / 10]);
        }
    }
    for (conn, echo) in conns.into_iter().zip(echoes) {
        assert_same(&sidecar.receive(conn, SIZE), &bytes(u64::from(conn), SIZE));
        joined(echo);
    }
}

// --- the end -------------------------------------------------------------------------------------

/// Takes CLOSED, without bytes before it.
fn reason((reason, explanation, _): (Reason, String, Vec<u8>)) -> (Reason, String) {
    (reason, explanation)
}

fn joined<T>(thread: thread::JoinHandle<T>) -> T {
    match thread.join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

#[test]
fn a_peer_that_closes_is_reported() {
    let (mut sidecar, directory) = listening();
    for connect in [inbound, outbound] {
        let (conn, peer) = connect(&mut sidecar, &directory);
        drop(peer);
        assert_fails(
            reason(sidecar.closed(conn)),
            Reason::PeerClosed,
            &["the peer closed"],
        );
    }
}

#[test]
fn all_bytes_come_before_the_end_of_a_peer_that_closes_in_the_middle_of_a_frame() {
    let (mut sidecar, directory) = listening();
    for size in [1, 7, 16_384, 100_000] {
        let (conn, mut peer) = inbound(&mut sidecar, &directory);
        let frame = [&1_000_000_u32.to_be_bytes()[..], &bytes(1, size)].concat();
        peer.write_all(&frame).expect("room");
        drop(peer);
        let (reason, explanation, seen) = sidecar.closed(conn);
        assert_fails((reason, explanation), Reason::PeerClosed, &[]);
        assert_same(&seen, &frame);
    }
}

#[test]
fn bytes_of_a_peer_that_closed_before_it_was_accepted_arrive() {
    let (mut sidecar, directory) = listening();
    let mut peer = connect_node(directory.path("a.sock"));
    peer.write_all(b"last words").expect("room");
    drop(peer);
    let (conn, _) = sidecar.accepted();
    let (reason, _, seen) = sidecar.closed(conn);
    assert_eq!(
        (reason, &seen[..]),
        (Reason::PeerClosed, &b"last words"[..])
    );
}

#[test]
fn a_peer_that_closes_with_bytes_unread_is_reported_after_its_own() {
    let (mut sidecar, directory) = listening();
    for unread in [2, 100_000, WINDOW as usize] {
        let (conn, mut peer) = inbound(&mut sidecar, &directory);
        sidecar.send_data(conn, &bytes(1, unread));
        read(&mut peer, 1); // some of it is here
        sidecar.settle();
        peer.write_all(b"last words").expect("room");
        drop(peer); // a reset, since bytes are unread
        let (reason, _, seen) = sidecar.closed(conn);
        assert_eq!(
            (reason, &seen[..]),
            (Reason::PeerClosed, &b"last words"[..])
        );
    }
}

#[test]
fn a_peer_that_is_gone_while_the_vm_sends_is_reported_once() {
    let (mut sidecar, conn, peer, _directory) = connected();
    drop(peer);
    for _ in 0..10 {
        sidecar.send_data(conn, &bytes(1, 50_000));
    }
    assert_fails(reason(sidecar.closed(conn)), Reason::PeerClosed, &[]);
    sidecar.settle(); // and nothing comes after it
}

#[test]
fn a_peer_that_shuts_down_writing_has_closed() {
    let (mut sidecar, conn, mut peer, _directory) = connected();
    peer.write_all(b"last words").expect("room");
    peer.shutdown(Shutdown::Write).expect("a socket");
    let (reason, _, seen) = sidecar.closed(conn);
    assert_eq!(
        (reason, &seen[..]),
        (Reason::PeerClosed, &b"last words"[..])
    );
    assert_eq!(read_to_end(&mut peer), b"");
}

#[test]
fn a_peer_that_shut_down_reading_is_detected_by_writing() {
    let (mut sidecar, conn, mut peer, _directory) = connected();
    peer.write_all(b"last words").expect("room");
    peer.shutdown(Shutdown::Read).expect("a socket");
    sidecar.send_data(conn, b"hello");
    let (reason, _, seen) = sidecar.closed(conn);
    assert_eq!(
        (reason, &seen[..]),
        (Reason::PeerClosed, &b"last words"[..])
    );
}

#[test]
fn the_end_is_reported_after_the_bytes_before_it() {
    // This is more than the window of a handshake, so the sidecar cannot have read to the end yet.
    let (mut sidecar, directory) = listening();
    let mut peer = connect_node(directory.path("a.sock"));
    let (conn, _) = sidecar.accepted();
    let sent = bytes(1, 100_000);
    peer.write_all(&sent).expect("room");
    drop(peer);
    let mut seen = sidecar.take(conn, (16 << 10) - NAME.len());
    sidecar.settle();
    assert_eq!(sidecar.untaken(conn), 0);
    sidecar.establish(conn);
    let (reason, _, rest) = sidecar.closed(conn);
    seen.extend(rest);
    assert_eq!(reason, Reason::PeerClosed);
    assert_same(&seen, &sent);
}

#[test]
fn close_ends_a_connection_without_a_report() {
    let (mut sidecar, directory) = listening();
    for connect in [inbound, outbound] {
        let (conn, mut peer) = connect(&mut sidecar, &directory);
        sidecar.close(conn);
        assert_eq!(read_to_end(&mut peer), b"");
        sidecar.settle(); // any report about it would fail the next test of a report
    }
    let (conn, peer) = inbound(&mut sidecar, &directory);
    drop(peer);
    sidecar.closed(conn);
}

#[test]
fn bytes_sent_before_close_reach_a_slow_reader() {
    let (mut sidecar, directory) = listening();
    for connect in [inbound, outbound] {
        let (conn, mut peer) = connect(&mut sidecar, &directory);
        let sent = bytes(1, MUCH);
        let count = sidecar.fill(conn, &sent);
        sidecar.close(conn);
        sidecar.settle();
        let mut seen = Vec::new();
        let mut piece = [0; 4096];
        loop {
            match peer.read(&mut piece).expect("bytes of the VM") {
                0 => break,
                count => seen.extend(&piece[..count]),
            }
        }
        assert_same(&seen, &sent[..count]);
    }
}

#[cfg(target_os = "linux")] // /proc has the number
#[test]
fn bytes_sent_before_close_are_dropped_when_the_peer_goes() {
    let (mut sidecar, conn, mut peer, _directory) = connected();
    let before = descriptors(sidecar.pid());
    sidecar.fill(conn, &bytes(1, MUCH));
    sidecar.close(conn);
    read(&mut peer, 1);
    drop(peer);
    sidecar.settle();
    sidecar.settle();
    // The connection has one less, and the connection that settle uses is one more.
    assert_eq!(descriptors(sidecar.pid()), before);
}

#[test]
fn input_after_close_is_not_reported() {
    let (mut sidecar, conn, mut peer, _directory) = connected();
    let sent = bytes(1, MUCH);
    let count = sidecar.fill(conn, &sent);
    sidecar.close(conn);
    peer.write_all(b"anybody there?").expect("room");
    sidecar.settle(); // a report would be about a connection that is not there
    assert_same(&read_to_end_or_reset(&mut peer), &sent[..count]);
}

/// The sidecar closes before it has read all bytes of the peer. The peer still receives everything before the end.
fn read_to_end_or_reset(peer: &mut UnixStream) -> Vec<u8> {
    let mut seen = Vec::new();
    match peer.read_to_end(&mut seen) {
        Ok(_) => seen,
        Err(error) if error.kind() == ErrorKind::ConnectionReset => seen,
        Err(error) => panic!("awaited: the end, seen: {} bytes, {error}", seen.len()),
    }
}

/// Out-of-band data counts as readable, but cannot be read. The sidecar must not wait for bytes that never arrive.
#[cfg(target_os = "linux")]
#[test]
fn out_of_band_data_stops_nobody() {
    const LARGE: usize = 40_000;
    const OUT_OF_BAND: usize = 0;
    for (parts, is_the_end) in [
        (&[OUT_OF_BAND][..], false),
        (&[10, OUT_OF_BAND, 10], false),
        (&[LARGE, OUT_OF_BAND], true),
        (&[OUT_OF_BAND, LARGE], true),
        (&[LARGE, OUT_OF_BAND, LARGE], true),
        (&[LARGE, OUT_OF_BAND, OUT_OF_BAND, LARGE, OUT_OF_BAND], true),
    ] {
        for goes_at_once in [false, true] {
            let (mut sidecar, conn, mut peer, directory) = connected();
            let (other, mut other_peer) = inbound(&mut sidecar, &directory);
            sidecar.signal(Signal::STOP);
            for part in parts {
                match *part {
                    OUT_OF_BAND => drop(send(&peer, b"!", SendFlags::OOB).expect("room")),
                    count => assert_eq!(write_some(&mut peer, &bytes(1, count)), count),
                }
            }
            let mut peer = (!goes_at_once).then_some(peer);
            sidecar.signal(Signal::CONT);
            for _ in 0..20 {
                sidecar.send_data(other, b"ping");
                assert_eq!(read(&mut other_peer, 4), b"ping");
                other_peer.write_all(b"pong").expect("room");
                assert_eq!(sidecar.take(other, 4), b"pong");
            }
            if is_the_end || goes_at_once {
                let (reason, explanation, _) = sidecar.closed(conn);
                let why = (reason, explanation.contains("out-of-band"));
                assert!(
                    why == (Reason::SystemError, true) || goes_at_once,
                    "{explanation}"
                );
            } else if let Some(peer) = &mut peer {
                // A read ends at such data, as if there were no more, and continues with the next event.
                peer.write_all(b"more").expect("room");
                sidecar.receive(conn, parts.iter().sum::<usize>() + 4);
            }
            sidecar.settle();
            sidecar.expect_idle();
            drop(peer);
        }
    }
}

#[test]
fn packets_about_a_connection_that_has_ended_are_ignored() {
    let (mut sidecar, conn, peer, _directory) = connected();
    drop(peer);
    sidecar.closed(conn);
    use uds_dist::port::protocol::Command;
    let mut stream = uds_dist::port::codec::data_head(conn, 5).to_vec();
    stream.extend(b"hello");
    let late = [
        Command::Ack { conn, count: 5 },
        Command::Established {
            conn,
            node: "late@host".into(),
        },
        Command::Close { conn },
        Command::Close { conn: 12345 },
    ];
    for command in late {
        command.encode(&mut stream);
    }
    sidecar.send_bytes(&stream);
    sidecar.settle();
}

#[test]
fn the_end_of_one_connection_leaves_the_others_alone() {
    let (mut sidecar, directory) = listening();
    let connections: Vec<_> = (0..10).map(|_| inbound(&mut sidecar, &directory)).collect();
    let mut kept = Vec::new();
    for (index, (conn, mut peer)) in connections.into_iter().enumerate() {
        match index % 3 {
            0 => {
                drop(peer);
                assert_eq!(sidecar.expect_closed().0, conn);
            }
            1 => {
                sidecar.close(conn);
                assert_eq!(read_to_end(&mut peer), b"");
            }
            _ => kept.push((conn, peer)),
        }
    }
    for (conn, mut peer) in kept {
        sidecar.send_data(conn, b"ping");
        assert_eq!(read(&mut peer, 4), b"ping");
        peer.write_all(b"pong").expect("room");
        assert_eq!(sidecar.receive(conn, 4), b"pong");
    }
}
