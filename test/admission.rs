//! Tests which peers are admitted, and what the attackers of SECURITY.md can achieve.
//!
//! Strangers are sidecars of other users that admit everybody, so the tests see what an attacker would see. Only
//! root can start them; for other users these tests print that they are skipped.

mod port;

use port::*;
use rustix::fs::{CWD, FlockOperation, Mode, flock, mkfifoat};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, sendmsg};
use rustix::process::Signal;
use std::collections::{BTreeSet, VecDeque};
use std::fs::{self, Permissions};
use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command as Program;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use uds_dist::door::failures::{BUDGET, REFILL, RESERVE};
use uds_dist::door::visitors::DEADLINE;
use uds_dist::failure::Reason;
use uds_dist::ids::ConnId;
use uds_dist::peer::{Base, Policy};
use uds_dist::port::protocol::{Command, HANDSHAKE_WINDOW, Report};

// --- users ---------------------------------------------------------------------------------------

/// A user and its group. These numbers need no account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct User {
    uid: u32,
    gid: u32,
}

const ROOT: User = User { uid: 0, gid: 0 };
/// The user whose node is attacked.
const OWNER: User = User {
    uid: 61001,
    gid: 61001,
};
const STRANGER: User = User {
    uid: 61002,
    gid: 61002,
};
const ANOTHER_STRANGER: User = User {
    uid: 61003,
    gid: 61003,
};

const EVERYBODY: u16 = 0o666;

/// A directory with the sidecar's binary that several users can reach.
struct Host {
    directory: TempDir,
}

impl Host {
    /// `None`, with a message, if the test cannot change users.
    fn new() -> Option<Host> {
        if !rustix::process::geteuid().is_root() {
            // The output of eprintln is not shown for a test that passes.
            let _ = writeln!(
                io::stderr(),
                "skipped: only root can start sidecars of other users"
            );
            return None;
        }
        let directory = TempDir::new();
        copy_program(BINARY, directory.path("uds_dist_sidecar"));
        set_mode(&directory.path("uds_dist_sidecar"), 0o755);
        set_mode(&directory.path(""), 0o755);
        Some(Host { directory })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path(name)
    }

    /// A new directory.
    fn directory(&self, name: &str, owner: User, mode: u32) -> PathBuf {
        let path = self.path(name);
        fs::create_dir(&path).expect("a new directory");
        give(&path, owner);
        set_mode(&path, mode);
        path
    }

    /// Starts a sidecar of a user like a VM does.
    fn sidecar(&self, user: User) -> Sidecar {
        let mut program = Program::new(self.path("uds_dist_sidecar"));
        Sidecar::start_program(program.uid(user.uid).gid(user.gid))
    }

    /// Starts a sidecar that admits everybody.
    fn attacker(&self, user: User) -> Sidecar {
        let mut sidecar = self.sidecar(user);
        admit(&mut sidecar, Base::Anybody, &[], &[]);
        sidecar
    }
}

fn give(path: &Path, user: User) {
    chown(path, Some(user.uid), Some(user.gid)).expect("chown");
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("chmod");
}

fn admit(sidecar: &mut Sidecar, base: Base, uids: &[u32], gids: &[u32]) {
    sidecar.send(&Command::Admit(Policy {
        base,
        uids: uids.to_vec(),
        gids: gids.to_vec(),
    }));
}

/// Expects that `attacker` can connect, but receives no byte before the connection is closed.
fn assert_kept_out(attacker: &mut Sidecar, path: &Path) {
    let (conn, _) = attacker.connect(path);
    let (reason, _, bytes) = attacker.closed(conn);
    assert_eq!(reason, Reason::PeerClosed);
    assert_eq!(bytes, b"", "a refused peer must not learn a byte");
}

/// Expects that `peer` can connect, and that it is the first peer that `sidecar` reports.
fn assert_let_in(sidecar: &mut Sidecar, peer: &mut Sidecar, user: User, path: &Path) {
    let (outbound, _) = peer.call(path);
    let (inbound, credentials) = sidecar.accepted();
    assert_eq!((credentials.uid, credentials.gid), (user.uid, user.gid));
    assert_eq!(credentials.pid, peer.pid());
    sidecar.send_data(inbound, b"welcome");
    assert_eq!(peer.take(outbound, 7), b"welcome");
    peer.close(outbound);
    sidecar.closed(inbound);
}

// --- incoming peers ------------------------------------------------------------------------------

/// This is the default policy, even if the mode of the file lets everybody connect.
#[test]
fn before_admit_only_the_own_user_and_root_get_in() {
    let Some(host) = Host::new() else { return };
    let path = host.directory("run", OWNER, 0o755).join("a.sock");
    let mut sidecar = host.sidecar(OWNER);
    sidecar.listen_with(0, &path, EVERYBODY);
    assert_kept_out(&mut host.attacker(STRANGER), &path);
    assert_let_in(&mut sidecar, &mut host.attacker(OWNER), OWNER, &path);
    let root = connect_node(&path);
    let (_, credentials) = sidecar.accepted();
    assert_eq!(credentials.uid, 0);
    assert_eq!(credentials.pid, std::process::id());
    drop(root);
}

/// Tests each kind of policy with peers that it admits and peers that it refuses.
#[test]
fn admit_admits_exactly_those_it_lists() {
    let Some(host) = Host::new() else { return };
    let path = host.directory("run", OWNER, 0o755).join("a.sock");
    let mut sidecar = host.sidecar(OWNER);
    sidecar.listen_with(0, &path, EVERYBODY);
    let (own, strange, other) = (OWNER, STRANGER, ANOTHER_STRANGER);
    let mut peers = [own, strange, other].map(|user| (user, host.attacker(user)));
    type Case<'a> = (Base, &'a [u32], &'a [u32], [bool; 3]);
    let cases: [Case; 9] = [
        (Base::Nobody, &[], &[], [false, false, false]),
        (Base::Nobody, &[strange.uid], &[], [false, true, false]),
        (Base::Nobody, &[], &[strange.gid], [false, true, false]),
        // The number of a user is not taken for that of a group, or the other way round.
        (Base::Nobody, &[other.gid + 1], &[], [false, false, false]),
        (Base::Nobody, &[own.uid], &[other.gid], [true, false, true]),
        (Base::OwnUserAndRoot, &[], &[], [true, false, false]),
        (Base::OwnUserAndRoot, &[other.uid], &[], [true, false, true]),
        (
            Base::OwnUserAndRoot,
            &[],
            &[strange.gid],
            [true, true, false],
        ),
        (Base::Anybody, &[], &[], [true, true, true]),
    ];
    for (base, uids, gids, expected) in cases {
        admit(&mut sidecar, base, uids, gids);
        for ((user, peer), let_in) in peers.iter_mut().zip(expected) {
            // Waits until the command has taken effect, because commands and peers arrive independently.
            sidecar.unlisten(0);
            sidecar.listen_with(0, &path, EVERYBODY);
            match let_in {
                true => assert_let_in(&mut sidecar, peer, *user, &path),
                false => assert_kept_out(peer, &path),
            }
        }
    }
    sidecar.expect_no_report();
}

/// A sidecar of a stranger with these supplementary groups.
fn stranger_with_groups(host: &Host, groups: impl IntoIterator<Item = u32>) -> Sidecar {
    let groups: Vec<_> = groups.into_iter().map(|group| group.to_string()).collect();
    let mut program = Program::new("setpriv");
    program.args([
        format!("--reuid={}", STRANGER.uid),
        format!("--regid={}", STRANGER.gid),
        format!("--groups={}", groups.join(",")),
    ]);
    program.arg(host.path("uds_dist_sidecar"));
    let mut sidecar = Sidecar::start_program(&mut program);
    admit(&mut sidecar, Base::Anybody, &[], &[]);
    sidecar
}

/// Both the effective group and supplementary groups of a process count, in both directions.
#[cfg(target_os = "linux")]
#[test]
fn supplementary_groups_count() {
    let Some(host) = Host::new() else { return };
    let path = host.directory("run", OWNER, 0o755).join("a.sock");
    let mut sidecar = host.sidecar(OWNER);
    admit(&mut sidecar, Base::Nobody, &[], &[OWNER.gid]);
    sidecar.listen_with(0, &path, EVERYBODY);
    let mut member = stranger_with_groups(&host, [OWNER.gid]);
    assert_let_in(&mut sidecar, &mut member, STRANGER, &path);
    // The largest number of groups that are examined. The position of the group does not matter.
    let many = (100_000..100_063).chain([OWNER.gid]);
    let mut member = stranger_with_groups(&host, many);
    assert_let_in(&mut sidecar, &mut member, STRANGER, &path);
    let theirs = host.directory("theirs", STRANGER, 0o755).join("a.sock");
    member.listen_with(0, &theirs, EVERYBODY);
    let (outbound, credentials) = sidecar.call(&theirs);
    assert_eq!(credentials.uid, STRANGER.uid);
    member.accepted();
    sidecar.close(outbound);
}

/// A process with other groups, or with too many groups to examine, is still a stranger.
#[test]
fn groups_that_are_not_listed_do_not_count() {
    let Some(host) = Host::new() else { return };
    let path = host.directory("run", OWNER, 0o755).join("a.sock");
    let mut sidecar = host.sidecar(OWNER);
    admit(&mut sidecar, Base::Nobody, &[], &[OWNER.gid]);
    sidecar.listen_with(0, &path, EVERYBODY);
    let mut other = stranger_with_groups(&host, [OWNER.gid + 1, OWNER.gid + 256]);
    assert_kept_out(&mut other, &path);
    sidecar.expect_log(&format!("gid {}, pid {}", STRANGER.gid, other.pid()));
    let mut many = stranger_with_groups(&host, (100_000..100_064).chain([OWNER.gid]));
    assert_kept_out(&mut many, &path);
    // Groups do not matter if the policy has none.
    admit(&mut sidecar, Base::OwnUserAndRoot, &[], &[]);
    let mut member = stranger_with_groups(&host, [OWNER.gid, 0]);
    assert_kept_out(&mut member, &path);
}

/// Even the sidecar's own user is refused if the policy does not include it. This test does not need root.
#[test]
fn a_refused_peer_is_closed_and_not_reported() {
    let directory = TempDir::new();
    let path = directory.path("a.sock");
    let mut sidecar = Sidecar::start();
    admit(&mut sidecar, Base::Nobody, &[], &[]);
    sidecar.listen_with(0, &path, EVERYBODY);
    let mut peer = connect_peer(&path);
    assert_eq!(read_to_end(&mut peer), b"");
    sidecar.unlisten(0);
    sidecar.expect_no_report();
}

/// A new policy does not affect existing connections.
#[test]
fn a_new_policy_applies_to_new_peers_only() {
    let directory = TempDir::new();
    let path = directory.path("a.sock");
    let mut sidecar = Sidecar::start();
    sidecar.listen(&path);
    let mut first = connect_node(&path);
    let (conn, _) = sidecar.accepted();
    admit(&mut sidecar, Base::Nobody, &[], &[]);
    sidecar.send_data(conn, b"still here");
    assert_eq!(read(&mut first, 10), b"still here");
    assert_eq!(read_to_end(&mut connect_peer(&path)), b"");
    admit(&mut sidecar, Base::OwnUserAndRoot, &[], &[]);
    sidecar.unlisten(0);
    sidecar.listen(&path);
    let _third = connect_node(&path);
    sidecar.accepted();
}

/// A line names the peer that was refused, at most once every five seconds, and later lines have a count.
#[test]
fn refusals_are_logged_once_in_five_seconds_for_each_user() {
    let Some(host) = Host::new() else { return };
    let path = host.directory("run", OWNER, 0o755).join("a.sock");
    let mut sidecar = host.sidecar(OWNER);
    sidecar.listen_with(0, &path, EVERYBODY);
    let mut stranger = host.attacker(STRANGER);
    assert_kept_out(&mut stranger, &path);
    let line = sidecar.expect_log("refused a peer");
    let start = Instant::now();
    for part in [
        format!("uid {}", STRANGER.uid),
        format!("gid {}", STRANGER.gid),
        format!("pid {}:", stranger.pid()),
        "allowed_uids and allowed_gids do not include it".into(),
        "(1 refused of this uid)".into(),
    ] {
        assert!(line.contains(&part), "{part:?} is not in {line:?}");
    }
    let mut other = host.attacker(ANOTHER_STRANGER);
    assert_kept_out(&mut other, &path);
    sidecar.expect_log(&format!("uid {}", ANOTHER_STRANGER.uid));

    let ours = |lines: &[String]| -> Vec<String> {
        let text = format!("refused a peer, uid {},", STRANGER.uid);
        let lines = lines.iter().filter(|line| line.contains(&text));
        lines.cloned().collect()
    };
    let mut refused = 0;
    while ours(sidecar.log()).len() == 1 {
        assert!(start.elapsed() < LIMIT, "no second line");
        assert_kept_out(&mut stranger, &path);
        refused += 1;
    }
    assert!(start.elapsed() > Duration::from_secs(4), "too soon");
    // The line arrives independently, so it may be about the last attempt or one shortly before it.
    let line = &ours(sidecar.log())[1];
    let count = line.rsplit_once('(').expect("a count").1;
    let count: u32 = count
        .split(' ')
        .next()
        .expect("a word")
        .parse()
        .expect("a count");
    assert!(count <= refused && count > refused / 2, "{line}");
    assert!(refused > 100, "a flood, not {refused}");
}

// --- listening strangers -------------------------------------------------------------------------

/// A stranger listens at the path of a node, in a directory where everybody may create files.
#[test]
fn a_squatter_receives_no_byte() {
    let Some(host) = Host::new() else { return };
    let path = host.directory("run", ROOT, 0o1777).join("b.sock");
    let mut squatter = host.attacker(STRANGER);
    squatter.listen_with(0, &path, EVERYBODY);
    let mut sidecar = host.sidecar(OWNER);
    assert_fails(
        sidecar.connect_fails(&path),
        Reason::Refused,
        &[
            path.to_str().expect("a text"),
            &format!("belongs to uid {}", STRANGER.uid),
            &format!("gid {}", STRANGER.gid),
            &format!("pid {}", squatter.pid()),
            "allowed_uids",
        ],
    );
    // The VM logs the failure, together with the name of the node.
    assert_eq!(sidecar.log(), Vec::<String>::new());
    // Those who connected before it are behind it.
    squatter.unlisten(0);
    squatter.expect_no_report();
    squatter.listen_with(0, &path, EVERYBODY);

    // The same users, with a policy that includes the other one.
    admit(&mut sidecar, Base::Nobody, &[STRANGER.uid], &[]);
    let (_, peer) = sidecar.connect(&path);
    assert_eq!(
        (peer.uid, peer.gid, peer.pid),
        (STRANGER.uid, STRANGER.gid, squatter.pid())
    );
}

/// The node that wants the name reports who has it, and removes nothing. It may not even be able to connect to the
/// squatter's socket.
#[test]
fn a_name_that_a_stranger_has_is_not_taken() {
    let Some(host) = Host::new() else { return };
    let directory = host.directory("run", ROOT, 0o1777);
    let mut squatter = host.attacker(STRANGER);
    squatter.listen_with(0, directory.join("a.sock"), EVERYBODY);
    squatter.listen_with(1, directory.join("b.sock"), 0o600);
    // Without this, the lock files of the squatter would be in the way already.
    for name in ["a.sock.lock", "b.sock.lock"] {
        fs::remove_file(directory.join(name)).expect("a lock file");
    }
    let before = listing(&directory);
    let mut sidecar = host.sidecar(OWNER);
    assert_fails(
        sidecar.listen_fails(directory.join("a.sock")),
        Reason::DuplicateName,
        &[&squatter.pid().to_string()],
    );
    assert_fails(
        sidecar.listen_fails(directory.join("b.sock")),
        Reason::PermissionDenied,
        &["b.sock", "set socket_dir to"],
    );
    assert_eq!(listing(&directory), before);
    // Those who connected before it are behind it.
    squatter.unlisten(0);
    squatter.expect_no_report();
}

/// Even root's node leaves it alone, so that its owner can take the name again.
#[test]
fn files_of_other_users_are_not_swept() {
    let Some(host) = Host::new() else { return };
    let directory = host.directory("run", ROOT, 0o1777);
    let mut other = host.sidecar(STRANGER);
    other.listen_with(0, directory.join("a.sock"), EVERYBODY);
    other.kill();
    let before = listing(&directory);
    let mut sidecar = host.sidecar(ROOT);
    sidecar.listen_with(0, directory.join("b.sock"), EVERYBODY);
    sidecar.unlisten(0);
    assert_eq!(listing(&directory), before);
}

#[cfg(target_os = "linux")]
mod abstract_names {
    use super::*;

    fn name(test: &str) -> String {
        format!("\0uds_dist-{}/{test}", std::process::id())
    }

    /// Abstract sockets have no file, mode or directory, so only the check of users protects them.
    #[test]
    fn strangers_are_kept_out() {
        let Some(host) = Host::new() else { return };
        let name = name("out");
        let mut sidecar = host.sidecar(OWNER);
        sidecar.listen(&name);
        assert_kept_out(&mut host.attacker(STRANGER), Path::new(&name));
        assert_let_in(
            &mut sidecar,
            &mut host.attacker(OWNER),
            OWNER,
            Path::new(&name),
        );
        admit(&mut sidecar, Base::Nobody, &[STRANGER.uid], &[]);
        sidecar.unlisten(0);
        sidecar.listen(&name);
        assert_let_in(
            &mut sidecar,
            &mut host.attacker(STRANGER),
            STRANGER,
            Path::new(&name),
        );
    }

    #[test]
    fn a_squatter_receives_no_byte() {
        let Some(host) = Host::new() else { return };
        let name = name("squatter");
        let mut squatter = host.attacker(STRANGER);
        squatter.listen(&name);
        let mut sidecar = host.sidecar(OWNER);
        assert_fails(
            sidecar.connect_fails(&name),
            Reason::Refused,
            &[&format!("@{}", &name[1..]), &STRANGER.uid.to_string()],
        );
        // The node does not take the name away either.
        assert_eq!(sidecar.listen_fails(&name).0, Reason::DuplicateName);
        squatter.unlisten(0);
        squatter.expect_no_report();
    }

    /// Root of another user namespace is not root to us.
    #[test]
    fn root_of_another_user_namespace_is_not_root() {
        let Some(host) = Host::new() else { return };
        let path = host.directory("run", OWNER, 0o755).join("a.sock");
        let mut sidecar = host.sidecar(OWNER);
        sidecar.listen_with(0, &path, EVERYBODY);
        let mut program = Program::new("unshare");
        program.args(["--user", "--map-root-user", "--"]);
        program.arg(host.path("uds_dist_sidecar"));
        program.uid(STRANGER.uid).gid(STRANGER.gid);
        let works = Program::new("unshare")
            .args(["--user", "--map-root-user", "true"])
            .uid(STRANGER.uid)
            .gid(STRANGER.gid)
            .output()
            .is_ok_and(|output| output.status.success());
        if !works {
            let _ = writeln!(io::stderr(), "skipped: no user namespaces here");
            return;
        }
        let mut container = Sidecar::start_program(&mut program);
        admit(&mut container, Base::Anybody, &[], &[]);
        assert_kept_out(&mut container, &path);
        sidecar.expect_log(&format!("uid {}, gid {}", STRANGER.uid, STRANGER.gid));

        // Seen from inside the namespace, every process outside has the overflow uid, and is not trusted.
        let name = name("container");
        admit(&mut container, Base::OwnUserAndRoot, &[], &[]);
        container.listen(&name);
        assert_kept_out(&mut host.attacker(OWNER), Path::new(&name));
        container.expect_log("uid 65534, gid 65534");
    }
}

// --- the socket file -----------------------------------------------------------------------------

/// The socket is created with its final mode, whatever the umask of the VM.
#[test]
fn the_socket_has_its_mode_from_the_start() {
    let directory = TempDir::new();
    for (number, mode) in [0o600, 0o660, 0o000, 0o666].into_iter().enumerate() {
        for umask in ["umask 0", "umask 777"] {
            let path = directory.path(&format!("{number}.sock"));
            let mut sidecar = Sidecar::start_program(&mut after_shell(umask));
            let stop = AtomicBool::new(false);
            let seen = thread::scope(|scope| {
                let watcher = scope.spawn(|| {
                    let mut seen = BTreeSet::new();
                    while !stop.load(Ordering::Relaxed) {
                        if let Ok(found) = fs::symlink_metadata(&path) {
                            seen.insert(found.mode() & 0o7777);
                        }
                    }
                    seen
                });
                for _ in 0..100 {
                    sidecar.listen_with(0, &path, mode);
                    let found = fs::symlink_metadata(&path).expect("a socket");
                    assert_eq!(found.mode() & 0o7777, u32::from(mode));
                    sidecar.unlisten(0);
                }
                stop.store(true, Ordering::Relaxed);
                watcher.join().expect("modes")
            });
            assert!(
                seen.is_empty() || seen == [u32::from(mode)].into(),
                "{seen:?} instead of {mode}"
            );
        }
    }
}

/// The mode of the file keeps strangers out. The VM is not told of them.
#[test]
fn the_mode_of_the_socket_keeps_strangers_out() {
    let Some(host) = Host::new() else { return };
    let directory = host.directory("run", OWNER, 0o755);
    let mut sidecar = host.sidecar(OWNER);
    admit(&mut sidecar, Base::Anybody, &[], &[]);
    let group_member = User {
        gid: OWNER.gid,
        ..ANOTHER_STRANGER
    };
    for (listener, mode, expected) in [
        (0, 0o600, [false, false]),
        (1, 0o660, [true, false]),
        (2, 0o666, [true, true]),
        (3, 0o000, [false, false]),
    ] {
        let path = directory.join(format!("{mode:o}.sock"));
        sidecar.listen_with(listener, &path, mode);
        for (user, gets_in) in [group_member, STRANGER].into_iter().zip(expected) {
            let mut peer = host.attacker(user);
            match gets_in {
                true => assert_let_in(&mut sidecar, &mut peer, user, &path),
                false => assert_eq!(peer.connect_fails(&path).0, Reason::PermissionDenied),
            }
        }
    }
    sidecar.expect_no_report();
}

// --- directories ---------------------------------------------------------------------------------

/// A directory is refused if another user could replace the socket in it.
#[test]
fn directories_are_taken_if_nobody_else_can_replace_the_socket() {
    let Some(host) = Host::new() else { return };
    let with_group = |gid| User { gid, ..OWNER };
    let mut sidecar = host.sidecar(OWNER);
    // A user who may be a peer must still not be able to impersonate the node.
    admit(
        &mut sidecar,
        Base::OwnUserAndRoot,
        &[],
        &[ANOTHER_STRANGER.gid],
    );
    for (name, owner, mode) in [
        ("private", OWNER, 0o700),
        ("group-may-look", OWNER, 0o750),
        ("all-may-look", OWNER, 0o755),
        ("own-group", OWNER, 0o3770),
        ("own-group-of-root", User { uid: 0, ..OWNER }, 0o3770),
        ("allowed-group", with_group(ANOTHER_STRANGER.gid), 0o3770),
        ("tmp", ROOT, 0o1777),
        ("own-tmp", OWNER, 0o1777),
        ("sticky-group", with_group(STRANGER.gid), 0o1770),
    ] {
        let path = host.directory(name, owner, mode).join("a.sock");
        sidecar.listen(&path);
        assert_eq!(fs::metadata(&path).expect("a socket").uid(), OWNER.uid);
        sidecar.unlisten(0);
    }
    for (name, owner, mode, words) in [
        (
            "everybody",
            OWNER,
            0o777,
            ["writable by everybody", "chmod o-w"],
        ),
        (
            "everybody-root",
            ROOT,
            0o777,
            ["writable by everybody", "+t"],
        ),
        (
            "foreign-group",
            with_group(STRANGER.gid),
            0o770,
            ["writable by gid 61002", "chmod g-w"],
        ),
        (
            "own-group-without-sticky",
            OWNER,
            0o2770,
            ["writable by gid 61001", "+t"],
        ),
        (
            "own-umask-002",
            OWNER,
            0o775,
            ["writable by gid 61001", "+t"],
        ),
        (
            "allowed-group-without-sticky",
            with_group(ANOTHER_STRANGER.gid),
            0o2770,
            ["writable by gid 61003", "+t"],
        ),
        (
            "allowed-group-of-root",
            User {
                uid: 0,
                ..ANOTHER_STRANGER
            },
            0o775,
            ["writable by gid 61003", "+t"],
        ),
        (
            "foreign",
            STRANGER,
            0o777,
            ["belongs to uid 61002", "run this as that user"],
        ),
        (
            "foreign-tmp",
            STRANGER,
            0o1777,
            ["belongs to uid 61002", "run this as that user"],
        ),
    ] {
        let directory = host.directory(name, owner, mode);
        assert_fails(
            sidecar.listen_fails(directory.join("a.sock")),
            Reason::BadAddress,
            &[&[directory.to_str().expect("a text")], &words[..]].concat(),
        );
        assert_eq!(listing(&directory), Vec::<String>::new());
    }
}

/// In a shared directory, a member of an allowed group may connect, but can neither remove nor impersonate the node.
#[test]
fn an_allowed_group_cannot_move_a_living_nodes_socket() {
    let Some(host) = Host::new() else { return };
    let owner = User {
        gid: STRANGER.gid,
        ..OWNER
    };
    let directory = host.directory("run", owner, 0o3770);
    let path = directory.join("a.sock");
    let mut sidecar = host.sidecar(owner);
    admit(&mut sidecar, Base::OwnUserAndRoot, &[], &[STRANGER.gid]);
    sidecar.listen_with(0, &path, 0o660);
    let before = listing(&directory);
    let script = "cd \"$0\"; mv a.sock b.sock; rm -f a.sock a.sock.lock; ln -sf /dev/null a.sock; \
                  mv a.sock.lock c; : >new && mv -f new a.sock";
    let mut attacker = Program::new("/bin/sh");
    attacker.args(["-c", script]).arg(&directory);
    attacker.uid(STRANGER.uid).gid(STRANGER.gid);
    attacker.output().expect("a shell");
    let after = listing(&directory);
    assert!(before.iter().all(|line| after.contains(line)), "{after:?}");
    assert_let_in(&mut sidecar, &mut host.attacker(STRANGER), STRANGER, &path);
}

/// A stranger could redirect their symbolic link later.
#[test]
fn links_to_a_directory_are_followed_if_they_are_ours() {
    let Some(host) = Host::new() else { return };
    let target = host.directory("target", OWNER, 0o700);
    let foreign = host.directory("foreign", STRANGER, 0o755);
    let mut sidecar = host.sidecar(OWNER);
    for (name, owner) in [("own", OWNER.uid), ("roots", 0)] {
        let link = host.path(name);
        symlink(&target, &link).expect("a link");
        lchown(&link, Some(owner), None).expect("chown");
        sidecar.listen(link.join("a.sock"));
        sidecar.unlisten(0);
    }
    let link = host.path("strangers");
    symlink(&target, &link).expect("a link");
    lchown(&link, Some(STRANGER.uid), None).expect("chown");
    assert_fails(
        sidecar.listen_fails(link.join("a.sock")),
        Reason::BadAddress,
        &[
            "symbolic link owned by uid 61002",
            "name the directory itself",
        ],
    );
    let link = host.path("own-to-foreign");
    symlink(&foreign, &link).expect("a link");
    lchown(&link, Some(OWNER.uid), None).expect("chown");
    assert_fails(
        sidecar.listen_fails(link.join("a.sock")),
        Reason::BadAddress,
        &["belongs to uid 61002"],
    );
    assert_eq!(listing(&target), Vec::<String>::new());
}

/// This holds for any umask of the VM, even in a place where everybody can create files.
#[test]
fn a_missing_directory_becomes_the_users_own() {
    let Some(host) = Host::new() else { return };
    let tmp = host.directory("tmp", ROOT, 0o1777);
    let mut program = Program::new("/bin/sh");
    program.args(["-c", "umask 0 && exec \"$0\" \"$@\""]);
    program.arg(host.path("uds_dist_sidecar"));
    let mut sidecar = Sidecar::start_program(program.uid(OWNER.uid).gid(OWNER.gid));
    sidecar.listen(tmp.join("run/a.sock"));
    let found = fs::metadata(tmp.join("run")).expect("a directory");
    assert_eq!((found.mode() & 0o7777, found.uid()), (0o700, OWNER.uid));
    sidecar.unlisten(0);

    // A stranger has created it first, or a link whose target does not exist yet.
    let taken = host.directory("tmp/taken", STRANGER, 0o777);
    assert_fails(
        sidecar.listen_fails(taken.join("a.sock")),
        Reason::BadAddress,
        &["belongs to uid 61002"],
    );
    symlink(tmp.join("nowhere"), tmp.join("link")).expect("a link");
    lchown(tmp.join("link"), Some(STRANGER.uid), None).expect("chown");
    let (_, explanation) = sidecar.listen_fails(tmp.join("link/a.sock"));
    assert!(explanation.contains("tmp/link"), "{explanation}");
    assert!(!tmp.join("nowhere").exists());
}

// --- lock files and stale sockets ----------------------------------------------------------------

/// Names, types, owners, modes and contents of the files in a directory.
fn listing(directory: &Path) -> Vec<String> {
    let mut entries: Vec<_> = fs::read_dir(directory)
        .expect("a directory")
        .map(|entry| {
            let path = entry.expect("an entry").path();
            let found = fs::symlink_metadata(&path).expect("a file");
            let content = found.is_file().then(|| fs::read(&path).expect("a file"));
            format!(
                "{} {:o} {} {} {content:?}",
                path.display(),
                found.mode(),
                found.uid(),
                found.ino()
            )
        })
        .collect();
    entries.sort();
    entries
}

/// A stranger's file at the path of the lock file is not changed, and neither is the target of a link.
#[test]
fn a_strangers_lock_file_is_refused_and_left_alone() {
    let Some(host) = Host::new() else { return };
    let tmp = host.directory("tmp", ROOT, 0o1777);
    let precious = tmp.join("precious");
    fs::write(&precious, "of the node's user").expect("a file");
    give(&precious, OWNER);
    let mut sidecar = host.sidecar(OWNER);
    let place = |name: &str| tmp.join(format!("{name}.sock.lock"));

    fs::write(place("file"), "").expect("a file");
    set_mode(&place("file"), 0o600);
    fs::write(place("open"), "").expect("a file");
    set_mode(&place("open"), 0o666);
    fs::create_dir(place("dir")).expect("a directory");
    mkfifoat(CWD, place("fifo"), Mode::from_raw_mode(0o666)).expect("a FIFO");
    set_mode(&place("fifo"), 0o666);
    drop(UnixListener::bind(place("socket")).expect("a socket"));
    for name in ["file", "open", "dir", "fifo", "socket"] {
        give(&place(name), STRANGER);
    }
    symlink(&precious, place("link")).expect("a link");
    symlink(tmp.join("nowhere"), place("dangling")).expect("a link");
    for name in ["link", "dangling"] {
        lchown(place(name), Some(STRANGER.uid), None).expect("chown");
    }
    // Strangers can do this if the kernel does not forbid it (fs.protected_hardlinks).
    fs::hard_link(&precious, place("hard")).expect("a link");

    let before = listing(&tmp);
    for (name, problem) in [
        ("file", "belongs to uid 61002"),
        ("open", "belongs to uid 61002"),
        ("dir", "is not a lock file"),
        ("fifo", "is not a lock file"),
        ("socket", "is not a lock file"),
        ("link", "is not a lock file"),
        ("dangling", "is not a lock file"),
        ("hard", "is a hard link to another file"),
    ] {
        assert_fails(
            sidecar.listen_fails(tmp.join(format!("{name}.sock"))),
            Reason::BadAddress,
            &[
                place(name).to_str().expect("a text"),
                problem,
                "remove it, or set socket_dir",
            ],
        );
    }
    assert_eq!(listing(&tmp), before);
}

// --- files that a node of root leaves behind ------------------------------------------------------

/// Simulates a directory that belonged to root while the node ran.
fn roots_lock(directory: &Path) -> PathBuf {
    let lock = directory.join("a.sock.lock");
    fs::write(&lock, "4711\n").expect("a file");
    set_mode(&lock, 0o600);
    lock
}

fn roots_dead_socket(directory: &Path, mode: u32) {
    drop(UnixListener::bind(directory.join("a.sock")).expect("a socket"));
    set_mode(&directory.join("a.sock"), mode);
}

/// The sticky bit keeps other users from removing the file, but not the owner of the directory.
#[test]
fn the_directorys_owner_removes_a_lock_file_that_root_left_behind() {
    let Some(host) = Host::new() else { return };
    for (name, mode, has_socket) in [
        ("private", 0o700, false),
        ("group", 0o3770, false),
        ("tmp", 0o1777, true),
    ] {
        let directory = host.directory(name, OWNER, mode);
        let lock = roots_lock(&directory);
        if has_socket {
            // Our user may connect to this socket, and so can see that nobody listens.
            roots_dead_socket(&directory, 0o666);
        }
        let mut sidecar = host.sidecar(OWNER);
        sidecar.listen(directory.join("a.sock"));
        sidecar.expect_log("a.sock.lock, which a node of root has left behind");
        assert_eq!(fs::metadata(&lock).expect("a lock").uid(), OWNER.uid);
        sidecar.unlisten(0);
        assert_eq!(listing(&directory), Vec::<String>::new());
    }
}

#[test]
fn one_of_many_starters_gets_a_name_that_root_left_behind() {
    let Some(host) = Host::new() else { return };
    for round in 0..5 {
        let directory = host.directory(&format!("run{round}"), OWNER, 0o700);
        let path = directory.join("a.sock");
        roots_lock(&directory);
        let mut starters: Vec<_> = (0..8).map(|_| host.sidecar(OWNER)).collect();
        for starter in &mut starters {
            starter.send_listen(0, &path, 0o600);
        }
        let mut owners = 0;
        for starter in &mut starters {
            match starter.expect_report("LISTENING or LISTEN_FAILED") {
                Report::Listening { .. } => owners += 1,
                Report::ListenFailed {
                    reason: Reason::DuplicateName | Reason::NameBusy,
                    ..
                } => (),
                other => starter.fail(&format!("an owner or a duplicate, not {other:?}")),
            }
        }
        assert_eq!(owners, 1);
        assert!(path.exists());
    }
}

/// A socket that admits only root cannot be probed. In the initial PID namespace, the kernel's tables show that
/// nobody holds the lock and that nobody listens. In others they are incomplete, and both files are left alone.
#[test]
fn the_directorys_owner_removes_a_closed_socket_that_root_left_behind() {
    let Some(host) = Host::new() else { return };
    let directory = host.directory("private", OWNER, 0o700);
    roots_lock(&directory);
    roots_dead_socket(&directory, 0o600);
    let mut sidecar = host.sidecar(OWNER);
    if is_initial_pid_namespace() {
        sidecar.listen(directory.join("a.sock"));
        sidecar.expect_log("a.sock.lock, which a node of root has left behind");
        sidecar.unlisten(0);
        assert_eq!(listing(&directory), Vec::<String>::new());
    } else {
        let before = listing(&directory);
        assert_fails(
            sidecar.listen_fails(directory.join("a.sock")),
            Reason::BadAddress,
            &["a.sock.lock", "belongs to uid 0 alone"],
        );
        assert_eq!(listing(&directory), before);
    }
}

fn is_initial_pid_namespace() -> bool {
    fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link.as_os_str() == "pid:[4026531836]")
}

/// These are, for example, the files of a command of root's that was killed, whose name no node uses again.
#[test]
fn a_node_removes_what_root_left_behind_under_other_names() {
    let Some(host) = Host::new() else { return };
    let directory = host.directory("private", OWNER, 0o700);
    roots_lock(&directory);
    roots_dead_socket(&directory, 0o666);
    let mut sidecar = host.sidecar(OWNER);
    sidecar.listen(directory.join("b.sock"));
    sidecar.expect_log("a.sock.lock, which a node of root has left behind");
    sidecar.unlisten(0);
    assert_eq!(listing(&directory), Vec::<String>::new());
}

/// The lock is held, somebody listens, or the directory belongs to another user. Then a line says who may remove the
/// files, and nothing is touched.
#[test]
fn a_lock_file_that_root_may_hold_is_left_alone() {
    let Some(host) = Host::new() else { return };
    let ours = "this node's user, who owns the directory, may remove it";
    for (name, owner, mode, who) in [
        ("held", OWNER, 0o700, ours),
        ("alive", OWNER, 0o700, ours),
        ("shared", ROOT, 0o1777, "only root may remove it"),
    ] {
        let directory = host.directory(name, owner, mode);
        let lock = fs::File::open(roots_lock(&directory)).expect("a lock file");
        let mut listener = None;
        match name {
            "held" => flock(&lock, FlockOperation::LockExclusive).expect("flock"),
            // A carrier that does not use the lock, at a socket that admits nobody else.
            "alive" => {
                listener = Some(UnixListener::bind(directory.join("a.sock")).expect("a socket"));
                set_mode(&directory.join("a.sock"), 0o600);
            }
            _ => (),
        }
        let before = listing(&directory);
        assert_fails(
            host.sidecar(OWNER).listen_fails(directory.join("a.sock")),
            Reason::BadAddress,
            &["a.sock.lock", "belongs to root (uid 0)", who],
        );
        assert_eq!(listing(&directory), before);
        drop(listener);
    }
}

/// In a sticky directory, only the owner of the socket can remove it. The node says so and does not listen.
#[test]
fn a_strangers_stale_socket_is_left_alone() {
    let Some(host) = Host::new() else { return };
    let tmp = host.directory("tmp", ROOT, 0o1777);
    let path = tmp.join("a.sock");
    drop(UnixListener::bind(&path).expect("a socket"));
    set_mode(&path, 0o666);
    give(&path, STRANGER);
    let before = listing(&tmp);
    assert_fails(
        host.sidecar(OWNER).listen_fails(&path),
        Reason::PermissionDenied,
        &["remove the stale socket", "a.sock", "set socket_dir to"],
    );
    assert_eq!(listing(&tmp), before);
}

/// If somebody replaces both files while the node runs, the new ones are not removed.
#[test]
fn files_that_replaced_ours_are_left_alone() {
    let directory = TempDir::new();
    let path = directory.path("a.sock");
    let mut first = Sidecar::start();
    first.listen(&path);
    fs::remove_file(&path).expect("a socket");
    fs::remove_file(directory.path("a.sock.lock")).expect("a lock file");
    let mut second = Sidecar::start();
    second.listen(&path);
    first.unlisten(0);
    assert_eq!(directory.names(), ["a.sock", "a.sock.lock"]);
    let mut third = Sidecar::start();
    assert_eq!(third.listen_fails(&path).0, Reason::DuplicateName);
    let _peer = connect_node(&path);
    second.accepted();
    assert!(
        fs::symlink_metadata(&path)
            .expect("a file")
            .file_type()
            .is_socket()
    );
}

// --- floods --------------------------------------------------------------------------------------

/// Most handshakes of a sidecar at the same time.
const PLACES: usize = 128;

/// How long a handshake may take while others wait.
const GRACE: Duration = Duration::from_millis(250);

/// Resident memory of a process in KiB.
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.expect("a line").trim().split(' ').next();
    number.expect("a number").parse().expect("a number")
}

fn listen_with_backlog(sidecar: &mut Sidecar, path: &Path, backlog: u32) {
    sidecar.send(&Command::Listen {
        listener: 0,
        backlog,
        mode: EVERYBODY,
        vm_pid: VM_PID,
        address: path.as_os_str().as_encoded_bytes().to_vec(),
    });
    sidecar.expect_this(&Report::Listening { listener: 0 });
}

/// All places are taken by peers that stay silent, or that send only a name. A real node still gets in within a
/// second.
#[test]
fn stalled_handshakes_make_room() {
    for says_a_name in [false, true] {
        let directory = TempDir::new();
        let path = directory.path("a.sock");
        let mut sidecar = Sidecar::start();
        sidecar.listen(&path);
        let connect = || match says_a_name {
            true => connect_node(&path),
            false => connect_peer(&path),
        };
        let crowd: Vec<_> = (0..PLACES).map(|_| connect()).collect();
        if says_a_name {
            for _ in &crowd {
                sidecar.accepted();
            }
        }
        let start = Instant::now();
        let mut peer = connect_node(&path);
        if says_a_name {
            let (_, explanation) = sidecar.expect_closed();
            assert!(explanation.contains("make room"), "{explanation}");
        }
        let (conn, _) = sidecar.accepted();
        let waited = start.elapsed();
        println!("in after {waited:?}");
        sidecar.send_data(conn, b"welcome");
        assert_eq!(read(&mut peer, 7), b"welcome");
        assert!(waited < Duration::from_secs(1), "{waited:?}");
        sidecar.expect_no_report();
        drop(crowd);
    }
}

/// A peer that has sent its name may stay longer than silent ones, even than those that came later.
#[test]
fn silent_peers_make_room_first() {
    let directory = TempDir::new();
    let path = directory.path("a.sock");
    let mut sidecar = Sidecar::start();
    sidecar.listen(&path);
    let _named = connect_node(&path);
    let mut silent: Vec<_> = (1..PLACES).map(|_| connect_peer(&path)).collect();
    sidecar.accepted();
    let _late = connect_node(&path);
    assert_eq!(read_to_end(&mut silent[0]), b"");
    sidecar.accepted();
    sidecar.expect_no_report();
}

/// Refused peers never end the handshake of another peer, even in a flood.
#[test]
fn refused_peers_occupy_no_place() {
    let Some(host) = Host::new() else { return };
    let path = host.directory("run", OWNER, 0o755).join("a.sock");
    let mut sidecar = host.sidecar(OWNER);
    sidecar.listen_with(0, &path, EVERYBODY);
    let mut crowd: Vec<_> = (0..PLACES).map(|_| connect_node(&path)).collect();
    let conns: Vec<_> = crowd.iter().map(|_| sidecar.accepted().0).collect();
    let mut attacker = host.attacker(STRANGER);
    let start = Instant::now();
    while start.elapsed() < 2 * GRACE {
        assert_kept_out(&mut attacker, &path);
    }
    for (peer, conn) in crowd.iter_mut().zip(conns) {
        sidecar.send_data(conn, b"x");
        assert_eq!(read(peer, 1), b"x");
    }
    sidecar.expect_no_report();
}

/// What the peers in a flood do with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Habit {
    Close,
    Keep,
    SayANameAndClose,
    SayANameAndKeep,
}

impl Habit {
    fn says_a_name(self) -> bool {
        matches!(self, Habit::SayANameAndClose | Habit::SayANameAndKeep)
    }

    fn keeps(self) -> bool {
        matches!(self, Habit::Keep | Habit::SayANameAndKeep)
    }
}

const CONNECTS: u32 = 10_000;

/// Connects from several threads, `left` times in all.
fn flood(path: &Path, habit: Habit, left: &AtomicU32) {
    const FLOODERS: usize = 4;
    thread::scope(|scope| {
        for _ in 0..FLOODERS {
            scope.spawn(|| {
                let mut kept = VecDeque::new();
                let next = |left: u32| left.checked_sub(1);
                let order = Ordering::Relaxed;
                while left.fetch_update(order, order, next).is_ok() {
                    let mut stream = UnixStream::connect(path).expect("a connection");
                    if habit.says_a_name() {
                        // It may be closed already, because it took too long.
                        let _ = stream.write_all(NAME);
                    }
                    if habit.keeps() {
                        kept.push_back(stream);
                    }
                    // These were closed long ago. The number of descriptors of a process is limited.
                    if kept.len() > PLACES + 64 {
                        kept.pop_front();
                    }
                }
            });
        }
    });
}

/// Ends the sidecar when a test fails, so that other threads do not wait for it for ever.
struct EndOnFailure(u32);

impl Drop for EndOnFailure {
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = kill(self.0, Signal::KILL);
        }
    }
}

/// Calls `knock` to connect again and again during the flood. The VM answers each admitted peer with one byte. Prints
/// the time that this took, and the sidecar's memory.
fn assert_not_locked_out(
    what: &str,
    sidecar: &mut Sidecar,
    path: &Path,
    habit: Habit,
    knock: impl FnMut() -> Duration + Send,
) {
    let connects = match habit {
        // Each of them takes some time.
        Habit::SayANameAndKeep => CONNECTS / 5,
        _ => CONNECTS,
    };
    let (median, longest) = knock_in_a_flood(what, sidecar, path, (habit, connects), knock);
    // Single peers can find the backlog full many times, so the median counts.
    assert!(median < Duration::from_secs(5), "{median:?}");
    assert!(longest < Duration::from_secs(25), "{longest:?}");
}

/// The median and the longest of these times in a flood of this size.
fn knock_in_a_flood(
    what: &str,
    sidecar: &mut Sidecar,
    path: &Path,
    (habit, connects): (Habit, u32),
    mut knock: impl FnMut() -> Duration + Send,
) -> (Duration, Duration) {
    let before = resident(sidecar.pid());
    let left = AtomicU32::new(connects);
    let over = AtomicBool::new(false);
    let start = Instant::now();
    let mut times = thread::scope(|scope| {
        let flooding = scope.spawn(|| flood(path, habit, &left));
        let knocking = scope.spawn(|| {
            let mut times = Vec::new();
            while left.load(Ordering::Relaxed) > 0 {
                times.push(knock());
            }
            flooding.join().expect("a flood");
            knock();
            over.store(true, Ordering::Relaxed);
            knock(); // by now the backlog is empty: this one is the last that comes in
            times
        });
        let _guard = EndOnFailure(sidecar.pid());
        loop {
            match sidecar.expect_report("ACCEPTED") {
                Report::Accepted { conn, .. } => {
                    let was_over = over.load(Ordering::Relaxed);
                    sidecar.send_data(conn, b"w");
                    if was_over {
                        return knocking.join().expect("times");
                    }
                }
                Report::Closed { conn, .. } => sidecar.close(conn),
                other => sidecar.fail(&format!("ACCEPTED or CLOSED, not {other:?}")),
            }
        }
    });
    let lasted = start.elapsed();
    let after = resident(sidecar.pid());
    times.sort();
    let median = times[times.len() / 2];
    let longest = *times.last().expect("a time");
    println!(
        "{what}: {connects} connects in {lasted:?}; {} peers got in meanwhile, median {median:?}, \
         longest {longest:?}; resident KiB of the sidecar {before} before, {after} after",
        times.len()
    );
    assert!(after < before + 4096, "{before} to {after} KiB");
    let lines = sidecar.log().len() as u64;
    assert!(
        lines <= 10 + lasted.as_secs(),
        "{lines} lines: {:#?}",
        sidecar.log()
    );
    (median, longest)
}

/// Connects and waits for the answer. If the backlog is full, tries again a little later, like a VM.
fn knock_at(path: &Path) -> Duration {
    let address = SocketAddrUnix::new(path).expect("an address");
    let start = Instant::now();
    loop {
        match try_connect_peer(&address) {
            Ok(mut stream) => {
                // The connection was closed: it had to make room before the VM could answer.
                let _ = stream.write_all(NAME);
                if let Ok(1) = stream.read(&mut [0]) {
                    return start.elapsed();
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                thread::park_timeout(Duration::from_millis(10));
            }
            Err(error) => panic!("connect: {error}"),
        }
    }
}

/// The same as another user.
fn knock_by(peer: &mut Sidecar, conn: &mut ConnId, path: &Path) -> Duration {
    let start = Instant::now();
    loop {
        *conn += 2;
        peer.send(&Command::Connect {
            conn: *conn,
            address: path.as_os_str().as_encoded_bytes().to_vec(),
        });
        match peer.expect_report("CONNECTED or CONNECT_FAILED") {
            Report::Connected { .. } => {
                peer.send_data(*conn, NAME);
                assert_eq!(peer.take(*conn, 1), b"w");
                peer.close(*conn);
                return start.elapsed();
            }
            Report::ConnectFailed {
                reason: Reason::BacklogFull,
                ..
            } => thread::park_timeout(Duration::from_millis(10)),
            other => peer.fail(&format!("CONNECTED, not {other:?}")),
        }
    }
}

/// The flood fills the default backlog.
#[test]
fn a_flood_of_an_allowed_user_locks_nobody_out() {
    let directory = TempDir::new();
    let path = directory.path("a.sock");
    let mut sidecar = Sidecar::start();
    listen_with_backlog(&mut sidecar, &path, 5);
    for (what, habit) in [
        ("allowed, closing", Habit::Close),
        ("allowed, silent", Habit::Keep),
        ("allowed, with a name, closing", Habit::SayANameAndClose),
        ("allowed, with a name, silent", Habit::SayANameAndKeep),
    ] {
        assert_not_locked_out(what, &mut sidecar, &path, habit, || knock_at(&path));
    }
}

/// An allowed user connects as fast as possible, with a name, which is reported to the VM, or without one.
#[test]
fn a_long_flood_costs_a_new_node_little() {
    const MANY: u32 = 100_000;
    let directory = TempDir::new();
    let path = directory.path("a.sock");
    let mut sidecar = Sidecar::start();
    listen_with_backlog(&mut sidecar, &path, 5);
    for (what, habit) in [
        ("long, closing", Habit::Close),
        ("long, with a name, closing", Habit::SayANameAndClose),
    ] {
        let flood = (habit, MANY);
        let (median, longest) =
            knock_in_a_flood(what, &mut sidecar, &path, flood, || knock_at(&path));
        assert!(median < Duration::from_secs(1), "{median:?}");
        assert!(longest < Duration::from_secs(2), "{longest:?}");
    }
}

#[test]
fn a_flood_of_a_refused_user_locks_nobody_out() {
    let Some(host) = Host::new() else { return };
    let path = host.directory("run", OWNER, 0o755).join("a.sock");
    let mut sidecar = host.sidecar(OWNER);
    admit(&mut sidecar, Base::Nobody, &[STRANGER.uid], &[]);
    listen_with_backlog(&mut sidecar, &path, 5);
    let mut peer = host.attacker(STRANGER);
    let mut conn = 1;
    for (what, habit) in [
        ("refused, closing", Habit::Close),
        ("refused, silent", Habit::Keep),
    ] {
        assert_not_locked_out(what, &mut sidecar, &path, habit, || {
            knock_by(&mut peer, &mut conn, &path)
        });
    }
    let lines = sidecar.log().iter();
    let lines = lines.filter(|line| line.contains("refused a peer")).count();
    assert!((1..20).contains(&lines), "{lines} lines");
}

/// All places are taken by peers that write without end before they have proved that they know the cookie.
#[test]
fn strangers_make_us_hold_a_bounded_number_of_bytes() {
    let directory = TempDir::new();
    let path = directory.path("a.sock");
    let mut sidecar = Sidecar::start();
    sidecar.listen(&path);
    let window = HANDSHAKE_WINDOW as usize;
    let before = resident(sidecar.pid());
    let garbage = vec![0; 1 << 20];
    let mut peers = Vec::new();
    for _ in 0..PLACES {
        let mut peer = connect_node(&path);
        let (conn, _) = sidecar.accepted();
        write_some(&mut peer, &garbage);
        peers.push((conn, peer));
    }
    for (conn, _) in &peers {
        // If more arrived, it would exceed the window, and the test would fail.
        sidecar.take(*conn, window - NAME.len());
    }
    sidecar.signal(Signal::USR1);
    for (conn, _) in &peers {
        sidecar.expect_log(&format!("notice: {conn} from (handshake)"));
    }
    for line in sidecar.log() {
        assert!(
            !line.contains("(handshake)") || line.contains(": 16384 bytes in, 0 out"),
            "{line}"
        );
    }
    let after = resident(sidecar.pid());
    println!("resident KiB of the sidecar: {before} before, {after} after");
    assert!(after < before + 4096, "{before} to {after} KiB");
}

// --- the gate ------------------------------------------------------------------------------------

/// Number of implausible names that `sidecar` reports.
fn implausible(sidecar: &mut Sidecar) -> usize {
    sidecar.signal(Signal::USR1);
    let line = sidecar.expect_log("; refused: ");
    let (_, refused) = line.split_once("; refused: ").expect("it has it");
    let count = refused.split(' ').next().expect("a count");
    count.parse().expect("a number")
}

/// A first message that cannot be that of a node ends the connection, without a report to the VM.
#[test]
fn peers_that_send_something_else_than_a_name_are_not_reported() {
    let directory = TempDir::new();
    let path = directory.path("a.sock");
    let mut sidecar = Sidecar::start();
    sidecar.listen(&path);
    let long = [
        &b"\x02\x00N\0\0\0\x0f\x07\xdf\x7f\xbd\0\0\0\0\x01\xf1"[..],
        &[b'h'; 497],
    ]
    .concat();
    let messages: [&[u8]; 7] = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0\0",
        b"\0\x11N\0\0\0\x0d\x07\xdf\x7f\xbd\0\0\0\0\0\x02ab",
        b"\0\x0an\0\x05\0\0\0\0a@\n",
        b"\0\x03sok",
        b"\0\x15a\0\0\0\0",
        &long,
    ];
    for message in messages {
        let mut peer = connect_peer(&path);
        peer.write_all(message).expect("room");
        assert_eq!(read_until_closed(&mut peer), b"");
    }
    let line = sidecar.expect_log("refused an implausible name of uid");
    assert!(
        line.contains(&format!("pid {}", std::process::id())),
        "{line}"
    );
    let lines = sidecar.log().iter();
    let lines = lines.filter(|line| line.contains("refused an implausible name of"));
    assert_eq!(lines.count(), 1, "one line for all of them");
    assert_eq!(implausible(&mut sidecar), messages.len());
    sidecar.settle();
    sidecar.expect_no_report();
}

/// No byte is lost, whether the name arrives in pieces or with more data behind it.
#[test]
fn a_name_may_arrive_in_pieces_and_with_more_behind_it() {
    let directory = TempDir::new();
    let path = directory.path("a.sock");
    let mut sidecar = Sidecar::start();
    sidecar.listen(&path);
    let mut peer = connect_peer(&path);
    for byte in NAME {
        sidecar.settle();
        sidecar.expect_no_report();
        peer.write_all(&[*byte]).expect("room");
    }
    sidecar.accepted();
    let mut peer = connect_peer(&path);
    let more = bytes(1, 10_000);
    peer.write_all(&[NAME, &more].concat()).expect("room");
    drop(peer);
    let (conn, _) = sidecar.accepted();
    let (reason, _, came) = sidecar.closed(conn);
    assert_eq!(reason, Reason::PeerClosed);
    assert_same(&came, &more);
}

/// The end of input is announced only once, possibly before the name has been read.
#[test]
fn the_end_of_a_peer_that_sent_its_name_is_reported() {
    let directory = TempDir::new();
    let path = directory.path("a.sock");
    let mut sidecar = Sidecar::start();
    sidecar.listen(&path);
    for round in 0..100 {
        let more = bytes(round, 100);
        sidecar.signal(Signal::STOP);
        let mut peer = connect_peer(&path);
        if round % 2 == 0 {
            // This one is admitted first.
            sidecar.signal(Signal::CONT);
            sidecar.settle();
            sidecar.signal(Signal::STOP);
        }
        peer.write_all(&[NAME, &more].concat()).expect("room");
        drop(peer);
        sidecar.signal(Signal::CONT);
        let (conn, _) = sidecar.accepted();
        assert_same(&sidecar.closed(conn).2, &more);
    }
}

/// Probes of a node end like this, and so do connections that somebody made out of curiosity.
#[test]
fn peers_that_leave_without_a_name_are_not_reported() {
    let directory = TempDir::new();
    let path = directory.path("a.sock");
    let mut sidecar = Sidecar::start();
    sidecar.listen(&path);
    sidecar.settle();
    let before = descriptors(sidecar.pid());
    for end in 0..NAME.len() {
        let mut peer = connect_peer(&path);
        peer.write_all(&NAME[..end]).expect("room");
    }
    sidecar.settle();
    sidecar.expect_no_report();
    assert_eq!(descriptors(sidecar.pid()), before);
    assert_eq!(implausible(&mut sidecar), 0);
}

/// They are closed even if no other peer needs the place, because nothing else would end them.
#[test]
fn peers_that_send_no_name_in_time_are_closed() {
    let directory = TempDir::new();
    let path = directory.path("a.sock");
    let mut sidecar = Sidecar::start();
    sidecar.listen(&path);
    let start = Instant::now();
    let mut silent = connect_peer(&path);
    let mut slow = connect_peer(&path);
    slow.write_all(&NAME[..5]).expect("room");
    for peer in [&mut silent, &mut slow] {
        peer.set_read_timeout(Some(2 * DEADLINE)).expect("a socket");
        assert_eq!(read_to_end(peer), b"");
    }
    let took = start.elapsed();
    assert!(took > DEADLINE / 2 && took < DEADLINE * 3 / 2, "{took:?}");
    sidecar.expect_no_report();
}

// --- handshakes that fail ------------------------------------------------------------------------

/// The first message of a node of this name.
fn introduction(name: &str) -> Vec<u8> {
    let length = name.len() as u16;
    let before = &NAME[2..NAME.len() - 2 - b"peer@host".len()];
    let message = [before, &length.to_be_bytes(), name.as_bytes()].concat();
    [&(message.len() as u16).to_be_bytes(), &message[..]].concat()
}

/// Connects as a node of this name, whose handshake the VM then ends. False if the peer is not reported to the VM.
fn fails(sidecar: &mut Sidecar, attacker: &mut Sidecar, path: &Path, name: &str) -> bool {
    let (outbound, _) = attacker.connect(path);
    attacker.send_data(outbound, &introduction(name));
    loop {
        // One of the two has input.
        if let Some(Report::Accepted { conn, .. }) = sidecar.next_report() {
            sidecar.close(conn);
            attacker.closed(outbound);
            return true;
        }
        if let Some(Report::Closed { conn, .. }) = attacker.next_report() {
            assert_eq!(conn, outbound);
            attacker.close(outbound);
            return false;
        }
    }
}

/// An allowed user who does not know the cookie sends one new name after the other.
#[test]
fn failing_handshakes_hold_off_their_user_but_no_known_node() {
    let Some(host) = Host::new() else { return };
    let path = host.directory("run", OWNER, 0o755).join("a.sock");
    let mut sidecar = host.sidecar(OWNER);
    admit(&mut sidecar, Base::OwnUserAndRoot, &[STRANGER.uid], &[]);
    sidecar.listen_with(0, &path, EVERYBODY);
    let mut attacker = host.attacker(STRANGER);
    // A node of the same user was connected before.
    attacker.call(&path);
    let (conn, _) = sidecar.accepted();
    sidecar.establish(conn);
    sidecar.close(conn);
    attacker.expect_closed();

    let mut failed = 0;
    let begin = Instant::now();
    while fails(
        &mut sidecar,
        &mut attacker,
        &path,
        &format!("x{failed}@host"),
    ) {
        failed += 1;
    }
    let refilled = begin.elapsed().as_secs() / REFILL.as_secs();
    assert!(
        failed >= BUDGET - RESERVE && u64::from(failed + RESERVE - BUDGET) <= refilled,
        "{failed}"
    );
    for number in 0..200 {
        let name = format!("y{number}@host");
        assert!(!fails(&mut sidecar, &mut attacker, &path, &name) || begin.elapsed() > REFILL);
    }
    let line = sidecar.expect_log("too many handshakes of its user have failed");
    assert!(
        line.contains(&format!("uid {}, pid {}", STRANGER.uid, attacker.pid())),
        "{line}"
    );
    let lines = sidecar.log().iter();
    let lines = lines
        .filter(|line| line.contains("too many handshakes"))
        .count();
    assert!(
        lines as u64 <= 2 + begin.elapsed().as_secs() / 5,
        "{lines} lines"
    );

    // A new node of the same user is refused once, and may try when it comes a second time.
    let new_node = "new-node@host";
    assert!(!fails(&mut sidecar, &mut attacker, &path, new_node));
    assert!(fails(&mut sidecar, &mut attacker, &path, new_node));

    // The node may come again any number of times, and so may one that fails under a known name, and other users.
    for _ in 0..20 {
        assert_let_in(&mut sidecar, &mut attacker, STRANGER, &path);
    }
    assert!(fails(&mut sidecar, &mut attacker, &path, "x1@host"));
    assert_let_in(&mut sidecar, &mut host.attacker(OWNER), OWNER, &path);
    assert!(fails(
        &mut sidecar,
        &mut host.attacker(OWNER),
        &path,
        "new@host"
    ));
}

// --- ancillary data ------------------------------------------------------------------------------

/// Descriptors that a peer sends along with its bytes are not received.
#[test]
fn descriptors_that_peers_send_do_not_arrive() {
    let directory = TempDir::new();
    let path = directory.path("a.sock");
    let mut sidecar = Sidecar::start();
    sidecar.listen(&path);
    let peer = connect_node(&path);
    let (conn, _) = sidecar.accepted();
    let before = descriptors(sidecar.pid());
    let sent = vec![peer.as_fd(); 100];
    for count in 1..=50 {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(100))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&sent)));
        let byte = [IoSlice::new(b"x")];
        sendmsg(&peer, &byte, &mut control, SendFlags::empty()).expect("room");
        sidecar.take(conn, 1);
        assert_eq!(descriptors(sidecar.pid()), before, "after {count} messages");
    }
}

// --- the sidecar itself --------------------------------------------------------------------------

/// The sidecar has few privileges and resources, so that an attacker who controls it gains little.
#[test]
fn the_sidecar_gives_up_what_it_does_not_need() {
    let directory = TempDir::new();
    let mut program = after_shell("ulimit -S -c unlimited");
    let mut sidecar = Sidecar::start_program(program.current_dir(directory.path("")));
    let proc = PathBuf::from(format!("/proc/{}", sidecar.pid()));
    let status = fs::read_to_string(proc.join("status")).expect("a process");
    assert!(status.contains("NoNewPrivs:\t1\n"), "{status}");
    let limits = fs::read_to_string(proc.join("limits")).expect("a process");
    let line = limits.lines().find(|line| line.starts_with("Max core"));
    let words: Vec<_> = line.expect("a limit").split_whitespace().collect();
    assert_eq!(words[4..6], ["0", "0"], "{limits}");
    if rustix::process::geteuid().is_root() {
        assert_eq!(
            fs::read_link(proc.join("cwd")).expect("a link"),
            Path::new("/")
        );
    }
    // It still does its work.
    sidecar.listen(directory.path("a.sock"));
}

/// Other processes of its user cannot inspect it, because its /proc/PID belongs to root.
#[test]
fn other_processes_cannot_inspect_the_sidecar() {
    let Some(host) = Host::new() else { return };
    let sidecar = host.sidecar(OWNER);
    for file in ["environ", "maps", "mem", "fd"] {
        let path = format!("/proc/{}/{file}", sidecar.pid());
        assert_eq!(fs::metadata(&path).expect("a process").uid(), 0, "{path}");
        let command = if file == "fd" { "ls" } else { "cat" };
        let output = Program::new(command)
            .arg(&path)
            .uid(OWNER.uid)
            .gid(OWNER.gid)
            .output()
            .expect("a program");
        assert!(!output.status.success(), "{path} can be read");
    }
}
