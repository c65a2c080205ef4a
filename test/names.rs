//! Ownership of names: LISTEN and UNLISTEN, lock files, stale sockets, and other files at the path.

mod port;

use port::*;
use rustix::fs::{CWD, Mode, mkfifoat};
use rustix::net::SocketAddrUnix;
use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command as Program;
use std::time::Instant;
use uds_dist::door::CHECK_INTERVAL;
use uds_dist::failure::Reason;
use uds_dist::port::protocol::{Command, Report};

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("a file").mode() & 0o7777
}

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

// --- files of a listener -------------------------------------------------------------------------

#[test]
fn listen_creates_a_private_socket_and_a_lock_file_and_unlisten_removes_both() {
    let directory = TempDir::new();
    let path = directory.path("a.sock");
    let mut sidecar = Sidecar::start();
    sidecar.listen(&path);
    assert!(is_socket(&path));
    assert_eq!(mode(&path), 0o600);
    let lock = directory.path("a.sock.lock");
    assert_eq!(mode(&lock), 0o600);
    assert_eq!(
        fs::read_to_string(&lock).expect("a lock file"),
        format!("{VM_PID}\n")
    );
    sidecar.unlisten(0);
    assert_eq!(directory.names(), Vec::<String>::new());
}

#[test]
fn a_name_can_be_had_again_after_unlisten() {
    let directory = TempDir::new();
    let mut sidecar = Sidecar::start();
    let mut peers = Vec::new();
    for _ in 0..3 {
        sidecar.listen(directory.path("a.sock"));
        peers.push(connect_node(directory.path("a.sock")));
        sidecar.accepted();
        sidecar.unlisten(0);
    }
}

#[test]
fn the_socket_has_the_mode_that_the_vm_asks_for() {
    let directory = TempDir::new();
    let mut sidecar = Sidecar::start_program(&mut after_shell("umask 077"));
    for (listener, mode_asked) in [0o600, 0o660, 0o666, 0o777].into_iter().enumerate() {
        let path = directory.path(&format!("{listener}.sock"));
        sidecar.listen_with(listener as u32, &path, mode_asked);
        assert_eq!(mode(&path), u32::from(mode_asked));
    }
}

#[test]
fn a_sidecar_accepts_at_two_listeners_and_closes_the_one_that_is_named() {
    let directory = TempDir::new();
    let mut sidecar = Sidecar::start();
    sidecar.listen_with(0, directory.path("old.sock"), 0o600);
    sidecar.listen_with(1, directory.path("new.sock"), 0o600);
    let mut peers = Vec::new();
    for name in ["new.sock", "old.sock", "new.sock"] {
        peers.push(connect_node(directory.path(name)));
        sidecar.accepted();
    }
    sidecar.unlisten(0);
    assert_eq!(directory.names(), ["new.sock", "new.sock.lock"]);
    peers.push(connect_node(directory.path("new.sock")));
    sidecar.accepted();
}

#[test]
fn unlisten_keeps_connections() {
    let directory = TempDir::new();
    let mut sidecar = Sidecar::start();
    sidecar.listen(directory.path("a.sock"));
    let mut peer = connect_node(directory.path("a.sock"));
    let (conn, _) = sidecar.accepted();
    sidecar.unlisten(0);
    sidecar.send_data(conn, b"still here");
    assert_eq!(read(&mut peer, 10), b"still here");
}

#[test]
fn unlisten_leaves_a_socket_that_replaced_ours() {
    let directory = TempDir::new();
    let path = directory.path("a.sock");
    let mut sidecar = Sidecar::start();
    sidecar.listen(&path);
    fs::remove_file(&path).expect("our socket");
    let _successor = UnixListener::bind(&path).expect("a free path");
    sidecar.unlisten(0);
    assert_eq!(directory.names(), ["a.sock"]);
    sidecar.expect_log("no longer ours");
    connect_node(&path);
}

#[test]
fn unlisten_of_a_removed_socket_says_so() {
    let directory = TempDir::new();
    let path = directory.path("a.sock");
    let mut sidecar = Sidecar::start();
    sidecar.listen(&path);
    fs::remove_file(&path).expect("our socket");
    sidecar.unlisten(0);
    sidecar.expect_log("removed by somebody else");
    assert_eq!(directory.names(), Vec::<String>::new());
}

// --- names in use --------------------------------------------------------------------------------

#[test]
fn a_name_of_another_sidecar_is_a_duplicate_and_names_its_process() {
    let directory = TempDir::new();
    let path = directory.path("a.sock");
    let mut first = Sidecar::start();
    first.listen(&path);
    let mut second = Sidecar::start();
    assert_fails(
        second.listen_fails(&path),
        Reason::DuplicateName,
        &["in use by process", &first.pid().to_string(), "a.sock"],
    );
    assert_eq!(directory.names(), ["a.sock", "a.sock.lock"]);
    first.unlisten(0);
    second.listen(&path);
}

/// The content of a lock file is not trusted; the kernel reports who has the name.
#[test]
fn a_lock_file_is_not_believed_about_a_process() {
    let directory = TempDir::new();
    let path = directory.path("a.sock");
    let mut first = Sidecar::start();
    first.listen(&path);
    fs::write(directory.path("a.sock.lock"), "1\n").expect("the lock file");
    let mut second = Sidecar::start();
    let by_first = format!("in use by process {}:", first.pid());
    assert_fails(
        second.listen_fails(&path),
        Reason::DuplicateName,
        &[&by_first],
    );
    fs::remove_file(&path).expect("its socket");
    let by_first = format!("is locked by process {},", first.pid());
    assert_fails(second.listen_fails(&path), Reason::NameBusy, &[&by_first]);
}

#[test]
fn a_name_of_the_same_sidecar_is_a_duplicate() {
    let directory = TempDir::new();
    let path = directory.path("a.sock");
    let mut sidecar = Sidecar::start();
    sidecar.listen_with(1, &path, 0o600);
    assert_fails(sidecar.listen_fails(&path), Reason::DuplicateName, &[]);
    connect_node(&path);
}

#[test]
fn a_live_listener_without_a_lock_file_is_a_duplicate() {
    let directory = TempDir::new();
    let path = directory.path("a.sock");
    let foreign = UnixListener::bind(&path).expect("a listener");
    let mut sidecar = Sidecar::start();
    let own_pid = std::process::id().to_string();
    assert_fails(
        sidecar.listen_fails(&path),
        Reason::DuplicateName,
        &["in use", &own_pid],
    );
    assert_eq!(directory.names(), ["a.sock"]);
    foreign.accept().expect("the probe");
    connect_node(&path);
    foreign.accept().expect("the peer");
}

#[test]
fn a_listener_with_a_full_backlog_is_alive() {
    let directory = TempDir::new();
    let mut sidecar = Sidecar::start();
    for backlog in [0, 1] {
        let path = directory.path(&format!("{backlog}.sock"));
        let address = SocketAddrUnix::new(&path).expect("an address");
        let _foreign = listen_only(&address, backlog);
        let _waiting = fill_backlog(&address);
        assert_fails(
            sidecar.listen_fails(&path),
            Reason::DuplicateName,
            &["in use"],
        );
        assert!(is_socket(&path));
    }
    assert_eq!(directory.names(), ["0.sock", "1.sock"]);
}

/// The limit is the kernel's net.core.somaxconn, not SOMAXCONN of the C library, which is 4096 or 128.
#[cfg(target_os = "linux")]
#[test]
fn the_backlog_is_as_long_as_the_kernel_allows() {
    const BACKLOG: u32 = 5000;
    let setup = "echo 6000 >/proc/sys/net/core/somaxconn";
    let works = Program::new("unshare")
        .args(["--net", "sh", "-c", setup])
        .output();
    if !works.is_ok_and(|output| output.status.success()) {
        println!("skipped: only root can raise somaxconn, in a network namespace");
        return;
    }
    let mut program = Program::new("unshare");
    program.args(["--net", "sh", "-c", &format!("{setup} && exec \"$0\"")]);
    let mut sidecar = Sidecar::start_program(program.arg(BINARY));
    let directory = TempDir::new();
    let path = directory.path("a.sock");
    sidecar.send(&Command::Listen {
        listener: 0,
        backlog: BACKLOG,
        mode: 0o600,
        vm_pid: VM_PID,
        address: path.as_os_str().as_encoded_bytes().to_vec(),
    });
    sidecar.expect_this(&Report::Listening { listener: 0 });
    // It accepts no connections while it is stopped.
    sidecar.signal(Signal::STOP);
    let waiting = fill_backlog(&SocketAddrUnix::new(&path).expect("an address"));
    // A stream socket lets one more peer wait than its backlog says.
    assert_eq!(waiting.len(), BACKLOG as usize + 1);
}

#[test]
fn a_locked_name_where_nobody_answers_is_busy() {
    let directory = TempDir::new();
    let path = directory.path("a.sock");
    let mut owner = Sidecar::start();
    owner.listen(&path);
    fs::remove_file(&path).expect("its socket");
    let mut sidecar = Sidecar::start();
    assert_fails(
        sidecar.listen_fails(&path),
        Reason::NameBusy,
        &["taken", "by process", &owner.pid().to_string()],
    );
    assert_eq!(directory.names(), ["a.sock.lock"]);
}

#[test]
fn one_of_many_starters_gets_the_name_of_a_dead_one() {
    let directory = TempDir::new();
    let path = directory.path("a.sock");
    drop(UnixListener::bind(&path).expect("a listener"));
    let mut starters: Vec<_> = (0..8).map(|_| Sidecar::start()).collect();
    for starter in &mut starters {
        starter.send_listen(0, &path, 0o600);
    }
    let mut owners = 0;
    for starter in &mut starters {
        match starter.expect_report("LISTENING or LISTEN_FAILED") {
            Report::Listening { .. } => {
                owners += 1;
                let _peer = connect_node(&path);
                // Other processes that probed the name have connected too. Our peer is the last one.
                starter.settle();
            }
            Report::ListenFailed {
                reason: Reason::DuplicateName | Reason::NameBusy,
                ..
            } => (),
            other => starter.fail(&format!("an owner or a duplicate, not {other:?}")),
        }
    }
    assert_eq!(owners, 1);
    assert_eq!(directory.names(), ["a.sock", "a.sock.lock"]);
}

// --- names that are taken away -------------------------------------------------------------------

/// Changes that others may make to the files of a node, and the reaction of the node.
#[test]
fn a_name_that_is_taken_away_is_lost_and_may_be_had_again() {
    type Deed = fn(&TempDir);
    let deeds: [(&str, Deed, &[&str]); 6] = [
        (
            "somebody has removed",
            |directory| fs::remove_file(directory.path("x/a.sock")).expect("a socket"),
            &[],
        ),
        (
            "somebody has removed",
            |directory| fs::remove_file(directory.path("x/a.sock.lock")).expect("a lock file"),
            &[],
        ),
        (
            "somebody has replaced",
            |directory| {
                drop(UnixListener::bind(directory.path("new")).expect("a listener"));
                fs::rename(directory.path("new"), directory.path("x/a.sock")).expect("a socket");
            },
            &["a.sock"],
        ),
        (
            "somebody has replaced",
            |directory| {
                fs::write(directory.path("new"), "").expect("a file");
                fs::rename(directory.path("new"), directory.path("x/a.sock.lock")).expect("a file");
            },
            &["a.sock.lock"],
        ),
        (
            "somebody has removed",
            |directory| {
                fs::rename(directory.path("x"), directory.path("y")).expect("a directory");
            },
            &[],
        ),
        (
            "somebody has replaced",
            |directory| {
                fs::rename(directory.path("x"), directory.path("y")).expect("a directory");
                fs::create_dir(directory.path("x")).expect("a directory");
                fs::write(directory.path("x/a.sock"), "").expect("a file");
            },
            &["a.sock"],
        ),
    ];
    for (what, deed, left) in deeds {
        let directory = TempDir::new();
        fs::create_dir(directory.path("x")).expect("a directory");
        let path = directory.path("x/a.sock");
        let mut sidecar = Sidecar::start();
        sidecar.listen(&path);
        let mut peer = connect_node(&path);
        let (conn, _) = sidecar.accepted();
        let begin = Instant::now();
        deed(&directory);
        let explanation = sidecar.listener_lost(0);
        assert!(
            begin.elapsed() < 2 * CHECK_INTERVAL,
            "{:?}",
            begin.elapsed()
        );
        assert!(explanation.contains(what), "{explanation}");
        assert!(explanation.contains("x/a.sock"), "{explanation}");
        // Only our own file is removed.
        let names = fs::read_dir(directory.path("x")).into_iter().flatten();
        let names: Vec<_> = names
            .map(|entry| entry.expect("a name").file_name())
            .collect();
        assert_eq!(names, left);
        // Connections stay up, and the number of the listener is free.
        sidecar.send_data(conn, b"still here");
        assert_eq!(read(&mut peer, 10), b"still here");
        for name in left {
            fs::remove_file(directory.path("x").join(name)).expect("a file");
        }
        sidecar.listen(&path);
        let _another = connect_node(&path);
        sidecar.accepted();
    }
}

#[test]
fn sighup_looks_at_once() {
    let directory = TempDir::new();
    let path = directory.path("a.sock");
    let mut sidecar = Sidecar::start();
    sidecar.listen(&path);
    sidecar.listen_with(1, directory.path("b.sock"), 0o600);
    let mut looked_late = 0;
    for _ in 0..5 {
        fs::remove_file(&path).expect("a socket");
        let begin = Instant::now();
        sidecar.signal(Signal::HUP);
        sidecar.listener_lost(0);
        looked_late += u32::from(begin.elapsed() > CHECK_INTERVAL / 4);
        sidecar.listen(&path);
    }
    assert!(looked_late < 3, "{looked_late} times of 5");
    sidecar.expect_log("SIGHUP");
    sidecar.expect_no_report();
}

/// It checks the files every two seconds, and is idle otherwise.
#[test]
fn watching_the_path_wakes_an_idle_sidecar_once_in_two_seconds() {
    const LOOKS: u32 = 3;
    let directory = TempDir::new();
    let mut sidecar = Sidecar::start();
    sidecar.listen(directory.path("a.sock"));
    sidecar.listen_with(1, directory.path("b.sock"), 0o600);
    sidecar.settle();
    let wakeups = sidecar.wakeups_in(LOOKS * CHECK_INTERVAL);
    // The first interval may have begun before.
    assert!((1..=u64::from(LOOKS) + 1).contains(&wakeups), "{wakeups}");
}

#[test]
fn unlisten_that_crosses_the_loss_is_answered() {
    let directory = TempDir::new();
    let path = directory.path("a.sock");
    let mut sidecar = Sidecar::start();
    sidecar.listen(&path);
    fs::remove_file(&path).expect("a socket");
    sidecar.listener_lost(0);
    sidecar.unlisten(0);
    sidecar.listen(&path);
}

/// The owner may change the files, as long as they are not replaced.
#[test]
fn a_name_with_other_rights_is_not_lost() {
    let directory = TempDir::new();
    let path = directory.path("a.sock");
    let mut sidecar = Sidecar::start();
    sidecar.listen(&path);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("ours");
    fs::hard_link(&path, directory.path("another_name")).expect("a link");
    fs::write(directory.path("a.sock.lock"), "something else").expect("ours");
    fs::rename(directory.path("a.sock"), directory.path("b.sock")).expect("ours");
    fs::rename(directory.path("b.sock"), directory.path("a.sock")).expect("ours");
    sidecar.signal(Signal::HUP);
    sidecar.expect_log("SIGHUP");
    sidecar.settle();
    sidecar.expect_idle_for(CHECK_INTERVAL + CHECK_INTERVAL / 4);
    sidecar.expect_no_report();
}

// --- dead owners ---------------------------------------------------------------------------------

#[test]
fn the_socket_of_a_killed_sidecar_is_taken_over() {
    let directory = TempDir::new();
    let path = directory.path("a.sock");
    let mut killed = Sidecar::start();
    killed.listen(&path);
    killed.kill();
    assert_eq!(directory.names(), ["a.sock", "a.sock.lock"]);
    let mut sidecar = Sidecar::start();
    sidecar.listen(&path);
    sidecar.expect_log("took over");
    let _peer = connect_node(&path);
    sidecar.accepted();
    sidecar.unlisten(0);
    assert_eq!(directory.names(), Vec::<String>::new());
}

#[test]
fn only_files_of_killed_sidecars_are_swept() {
    let directory = TempDir::new();
    let names = ["dead.sock", "live.sock"].map(|name| directory.path(name));
    let [mut dead, mut live] = [Sidecar::start(), Sidecar::start()];
    dead.listen(&names[0]);
    live.listen(&names[1]);
    dead.kill();
    // Neither sockets that were never ours nor files that only look like sockets.
    drop(UnixListener::bind(directory.path("other.sock")).expect("a socket"));
    fs::write(directory.path("file.sock"), "").expect("a file");
    fs::write(directory.path("file.sock.lock"), "").expect("a file");
    fs::write(directory.path("gone.sock.lock"), "").expect("a file");
    let mut sidecar = Sidecar::start();
    sidecar.listen(directory.path("new.sock"));
    sidecar.expect_log("dead.sock, whose owner is dead");
    assert_eq!(
        directory.names(),
        [
            "file.sock",
            "file.sock.lock",
            "live.sock",
            "live.sock.lock",
            "new.sock",
            "new.sock.lock",
            "other.sock"
        ]
    );
}

#[test]
fn a_stale_socket_without_a_lock_file_is_taken_over() {
    let directory = TempDir::new();
    let path = directory.path("a.sock");
    drop(UnixListener::bind(&path).expect("a listener"));
    let mut sidecar = Sidecar::start();
    sidecar.listen(&path);
    let _peer = connect_node(&path);
    sidecar.accepted();
}

#[test]
fn a_lock_file_that_nobody_holds_is_no_obstacle() {
    let directory = TempDir::new();
    fs::write(directory.path("a.sock.lock"), "123456789\n").expect("a file");
    let mut sidecar = Sidecar::start();
    sidecar.listen(directory.path("a.sock"));
    let noted = fs::read_to_string(directory.path("a.sock.lock")).expect("the lock file");
    assert_eq!(noted, format!("{VM_PID}\n"));
}

// --- other files at the path ----------------------------------------------------------------------

#[test]
fn anything_but_a_socket_is_never_removed() {
    let directory = TempDir::new();
    let mut sidecar = Sidecar::start();
    fs::write(directory.path("file"), "precious").expect("a file");
    fs::create_dir(directory.path("directory")).expect("a directory");
    symlink("file", directory.path("link")).expect("a link");
    symlink("nowhere", directory.path("dangling")).expect("a link");
    for name in ["file", "directory", "link", "dangling"] {
        assert_fails(
            sidecar.listen_fails(directory.path(name)),
            Reason::BadAddress,
            &[name, "in the way", "remove it"],
        );
    }
    let names = ["dangling", "directory", "file", "link"];
    assert_eq!(directory.names(), names);
    let content = fs::read_to_string(directory.path("file")).expect("the file");
    assert_eq!(content, "precious");
}

#[test]
fn a_link_at_the_lock_file_is_not_followed() {
    let directory = TempDir::new();
    fs::write(directory.path("victim"), "precious").expect("a file");
    symlink("victim", directory.path("a.sock.lock")).expect("a link");
    let mut sidecar = Sidecar::start();
    let (_, explanation) = sidecar.listen_fails(directory.path("a.sock"));
    assert!(explanation.contains("a.sock.lock"), "{explanation}");
    assert_eq!(directory.names(), ["a.sock.lock", "victim"]);
    let content = fs::read_to_string(directory.path("victim")).expect("the file");
    assert_eq!(content, "precious");
}

#[test]
fn a_dangling_link_at_the_lock_file_creates_nothing() {
    let directory = TempDir::new();
    symlink("elsewhere", directory.path("a.sock.lock")).expect("a link");
    let mut sidecar = Sidecar::start();
    sidecar.listen_fails(directory.path("a.sock"));
    assert_eq!(directory.names(), ["a.sock.lock"]);
}

#[test]
fn anything_but_a_lock_file_is_left_alone() {
    let directory = TempDir::new();
    let lock = directory.path("a.sock.lock");
    let mut sidecar = Sidecar::start();
    fs::create_dir(&lock).expect("a directory");
    let (_, explanation) = sidecar.listen_fails(directory.path("a.sock"));
    assert!(explanation.contains("a.sock.lock"), "{explanation}");
    fs::remove_dir(&lock).expect("an empty directory");
    mkfifoat(CWD, &lock, Mode::RWXU).expect("a FIFO");
    assert_fails(
        sidecar.listen_fails(directory.path("a.sock")),
        Reason::BadAddress,
        &["a.sock.lock", "not a lock file"],
    );
    assert_eq!(directory.names(), ["a.sock.lock"]);
}

// --- directories ---------------------------------------------------------------------------------

#[test]
fn a_missing_directory_is_created_for_its_owner_alone() {
    let directory = TempDir::new();
    let mut sidecar = Sidecar::start_program(&mut after_shell("umask 022"));
    sidecar.listen(directory.path("new/a.sock"));
    assert_eq!(mode(&directory.path("new")), 0o700);
    sidecar.unlisten(0);
    assert!(directory.path("new").is_dir());
}

#[test]
fn only_the_last_directory_is_created() {
    let directory = TempDir::new();
    let mut sidecar = Sidecar::start();
    assert_fails(
        sidecar.listen_fails(directory.path("new/newer/a.sock")),
        Reason::BadAddress,
        &["new/newer", "does not exist", "socket_dir"],
    );
    assert_eq!(directory.names(), Vec::<String>::new());
}

#[test]
fn a_link_to_a_missing_directory_is_explained() {
    let directory = TempDir::new();
    symlink(directory.path("nowhere"), directory.path("x")).expect("a link");
    assert_fails(
        Sidecar::start().listen_fails(directory.path("x/a.sock")),
        Reason::BadAddress,
        &["/x is a symbolic link to a directory that does not exist"],
    );
}

#[test]
fn a_file_is_no_directory() {
    let directory = TempDir::new();
    fs::write(directory.path("file"), "").expect("a file");
    let mut sidecar = Sidecar::start();
    assert_fails(
        sidecar.listen_fails(directory.path("file/a.sock")),
        Reason::BadAddress,
        &["file is not a directory", "socket_dir"],
    );
}

#[test]
fn an_unwritable_directory_is_a_denied_permission() {
    let directory = TempDir::new();
    let Some(mut nobody) = as_nobody(&directory) else {
        return;
    };
    fs::create_dir(directory.path("theirs")).expect("a directory");
    let mut sidecar = Sidecar::start_program(&mut nobody);
    let cases = [
        ("theirs/a.sock", "run this as the user that it is for"),
        ("missing/a.sock", "install -d -o 65534 -m 0700"),
    ];
    for (path, advice) in cases {
        assert_fails(
            sidecar.listen_fails(directory.path(path)),
            Reason::PermissionDenied,
            &[
                path.split_once('/').expect("two parts").0,
                advice,
                "socket_dir",
            ],
        );
    }
    assert_eq!(directory.names(), ["theirs", "uds_dist_sidecar"]);
    let theirs = fs::read_dir(directory.path("theirs")).expect("a directory");
    assert_eq!(theirs.count(), 0);
}

#[test]
fn a_socket_of_another_user_is_not_stale() {
    let directory = TempDir::new();
    let Some(mut nobody) = as_nobody(&directory) else {
        return;
    };
    let shared = directory.path("shared");
    fs::create_dir(&shared).expect("a directory");
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o1777)).expect("our directory");
    let path = directory.path("shared/a.sock");
    // There is no lock file, and the user nobody may not connect to it.
    let _foreign = UnixListener::bind(&path).expect("a listener");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("our socket");
    let mut sidecar = Sidecar::start_program(&mut nobody);
    assert_fails(
        sidecar.listen_fails(&path),
        Reason::PermissionDenied,
        &["a.sock"],
    );
    assert!(is_socket(&path));
}

// --- addresses -----------------------------------------------------------------------------------

/// sun_path of unix(7) has 108 bytes on Linux and 104 elsewhere, and the last one is NUL.
const LONGEST_PATH: usize = if cfg!(target_os = "linux") { 107 } else { 103 };

#[test]
fn the_longest_path_works_and_a_longer_one_is_a_bad_address() {
    let directory = TempDir::new();
    let mut sidecar = Sidecar::start();
    let length = directory.path("").as_os_str().len();
    let longest = directory.path(&"x".repeat(LONGEST_PATH - length));
    sidecar.listen(&longest);
    let _peer = connect_node(&longest);
    sidecar.accepted();
    sidecar.unlisten(0);
    let too_long = directory.path(&"x".repeat(LONGEST_PATH - length + 1));
    assert_fails(
        sidecar.listen_fails(&too_long),
        Reason::BadAddress,
        &["xxx", "cannot be a socket address"],
    );
    assert_fails(sidecar.connect_fails(&too_long), Reason::BadAddress, &[]);
    assert_eq!(directory.names(), Vec::<String>::new());
}

#[test]
fn a_path_with_a_nul_is_a_bad_address() {
    let mut sidecar = Sidecar::start();
    assert_fails(sidecar.listen_fails("a\0b"), Reason::BadAddress, &[]);
    assert_fails(sidecar.connect_fails("a\0b"), Reason::BadAddress, &[]);
}

#[cfg(target_os = "linux")]
mod abstract_namespace {
    use super::*;
    use std::io::Write;

    fn name(test: &str) -> String {
        format!("uds_dist-{}/{test}", std::process::id())
    }

    #[test]
    fn a_name_is_listened_at_and_connected_to() {
        let name = name("connect");
        let address = SocketAddrUnix::new_abstract_name(name.as_bytes()).expect("an address");
        let mut sidecar = Sidecar::start();
        sidecar.listen(format!("\0{name}"));
        let mut peer = try_connect_peer(&address).expect("a connection");
        peer.write_all(NAME).expect("room");
        let (conn, _) = sidecar.accepted();
        sidecar.send_data(conn, b"hello");
        assert_eq!(read(&mut peer, 5), b"hello");
        let mut other = Sidecar::start();
        other.call(format!("\0{name}"));
        sidecar.accepted();
    }

    #[test]
    fn a_name_in_use_is_a_duplicate() {
        let name = name("duplicate");
        let mut first = Sidecar::start();
        first.listen(format!("\0{name}"));
        let mut second = Sidecar::start();
        assert_fails(
            second.listen_fails(format!("\0{name}")),
            Reason::DuplicateName,
            &[&format!("the name @{name} is in use by a live process")],
        );
        first.unlisten(0);
        second.listen(format!("\0{name}"));
    }

    #[test]
    fn nobody_listens_at_an_unused_name() {
        let name = name("unused");
        let mut sidecar = Sidecar::start();
        assert_fails(
            sidecar.connect_fails(format!("\0{name}")),
            Reason::NotListening,
            &[&format!("@{name}")],
        );
    }

    #[test]
    fn the_longest_name_works_and_a_longer_one_is_a_bad_address() {
        let mut sidecar = Sidecar::start();
        let name = name("");
        let padding = "x".repeat(LONGEST_PATH - name.len());
        sidecar.listen(format!("\0{name}{padding}"));
        sidecar.unlisten(0);
        assert_fails(
            sidecar.listen_fails(format!("\0{name}{padding}x")),
            Reason::BadAddress,
            &[],
        );
    }
}
