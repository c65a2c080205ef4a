//! Twenty nodes start at the same time and compete for the name of a dead one, again and again.

mod port;

use port::*;
use std::path::Path;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;
use uds_dist::failure::Reason;
use uds_dist::os::peer_credentials;
use uds_dist::port::protocol::Report;

const STARTERS: usize = 20;
const ROUNDS: usize = 50;

#[test]
fn exactly_one_of_twenty_starters_gets_the_name_of_a_dead_one() {
    let directory = TempDir::new();
    let path = directory.path("a.sock");
    let mut dead = Sidecar::start();
    dead.listen(&path);
    dead.kill();
    let mut starters: Vec<_> = (0..STARTERS).map(|_| Sidecar::start()).collect();
    for round in 0..ROUNDS {
        assert_eq!(directory.names(), ["a.sock", "a.sock.lock"]);
        let instant = Barrier::new(STARTERS);
        let owners: Vec<_> = thread::scope(|scope| {
            let ask = |starter| {
                instant.wait();
                gets_the_name(starter, &path)
            };
            let asking: Vec<_> = starters
                .iter_mut()
                .map(|starter| scope.spawn(move || ask(starter)))
                .collect();
            let answers = asking
                .into_iter()
                .map(|thread| thread.join().expect("an answer"));
            (0..STARTERS)
                .zip(answers)
                .filter_map(|(i, is)| is.then_some(i))
                .collect()
        });
        assert_eq!(owners.len(), 1, "owners in round {round}");
        // The socket at the path is that of the winner.
        let peer = peer_credentials(connect_peer(&path)).expect("a connection");
        assert_eq!(peer.pid, starters[owners[0]].pid());
        // The winner is killed and leaves its files to the next round.
        starters.swap_remove(owners[0]).kill();
        starters.push(Sidecar::start());
    }
}

/// Tries until the answer is final, like the VM. A busy name has an owner a moment later.
fn gets_the_name(starter: &mut Sidecar, path: &Path) -> bool {
    let deadline = Instant::now() + LIMIT;
    loop {
        starter.send_listen(0, path, 0o600);
        match starter.expect_report("LISTENING or LISTEN_FAILED") {
            Report::Listening { .. } => return true,
            Report::ListenFailed {
                reason: Reason::DuplicateName,
                ..
            } => return false,
            Report::ListenFailed {
                reason: Reason::NameBusy,
                ..
            } if Instant::now() < deadline => (),
            other => starter.fail(&format!("an owner or a duplicate, not {other:?}")),
        }
    }
}
