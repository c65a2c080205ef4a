//! Peers that have stopped reading cost the sidecar no more memory than their windows.

mod port;

use port::*;
use std::fs;
use uds_dist::port::protocol::WINDOW;

const PEERS: usize = 50;
const WHOLE: usize = WINDOW as usize;

/// Resident memory of a process in bytes.
fn resident(pid: u32) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a live process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.expect("VmRSS").trim().trim_end_matches(" kB");
    kib.parse::<usize>().expect("a number") << 10
}

#[test]
fn memory_is_bounded_by_connections_times_window() {
    let directory = TempDir::new();
    let mut sidecar = Sidecar::start();
    sidecar.listen(directory.path("a.sock"));
    let mut peers: Vec<_> = (0..PEERS)
        .map(|_| {
            let peer = connect_node(directory.path("a.sock"));
            let (conn, _) = sidecar.accepted();
            sidecar.establish(conn);
            (conn, peer)
        })
        .collect();
    sidecar.settle();
    let before = resident(sidecar.pid());

    // Neither the peers nor the VM read, so both directions fill up.
    let (there, back) = (bytes(1, MUCH), bytes(2, MUCH));
    let sent: Vec<_> = peers
        .iter()
        .map(|(conn, _)| sidecar.fill(*conn, &there))
        .collect();
    let written: Vec<_> = peers
        .iter_mut()
        .map(|(conn, peer)| {
            let mut written = 0;
            loop {
                sidecar.settle();
                match write_some(peer, &back[written..]) {
                    0 => break,
                    count => written += count,
                }
            }
            assert_eq!(sidecar.untaken(*conn), WHOLE);
            written
        })
        .collect();
    let after = resident(sidecar.pid());
    println!(
        "{PEERS} peers that do not read: {} KiB before, {} KiB after",
        before >> 10,
        after >> 10
    );
    assert!(
        after - before <= 2 * PEERS * WHOLE,
        "{before} bytes before, {after} bytes after"
    );

    // Both continue where they stopped.
    for (((conn, peer), sent), written) in peers.iter_mut().zip(sent).zip(written) {
        assert_same(&read(peer, sent), &there[..sent]);
        assert_same(&sidecar.receive(*conn, written), &back[..written]);
    }
}
