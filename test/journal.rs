//! The log: lines that are sent to the VM, lines on stderr, and lines that are dropped in favour of packets.

mod port;

use log::{Level as LogLevel, Record};
use port::*;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, connect, socket};
use rustix::process::Signal;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::Command as Program;
use uds_dist::journal::{MAX_WAITING, Queue};
use uds_dist::log_line::{Cause, Level, Line, MAX_LINE, MAX_SUBJECT, Subject, line};
use uds_dist::peer::{Base, Credentials, Policy};
use uds_dist::port::protocol::{Command, Report, Status};

/// The credentials of this process, as the kernel reports them to the sidecar.
fn ourselves() -> Credentials {
    Credentials {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        pid: std::process::id(),
    }
}

// --- facts ---------------------------------------------------------------------------------------

#[test]
fn a_refusal_has_its_facts() {
    let directory = TempDir::new();
    let mut sidecar = Sidecar::start();
    sidecar.listen(directory.path("a.sock"));
    sidecar.send(&Command::Admit(Policy::just(Base::Nobody)));
    // The answer comes after the command has taken effect.
    sidecar.send(&Command::Unlisten { listener: 3 });
    let unlistened = Report::Unlistened { listener: 3 };
    assert_eq!(sidecar.expect_report("UNLISTENED"), unlistened);
    assert_eq!(
        read_to_end(&mut connect_peer(directory.path("a.sock"))),
        b""
    );
    let Line { text, .. } = sidecar.expect_line("refused a peer");
    let us = ourselves();
    assert!(text.contains(&format!("uid {}, gid {}, pid {}", us.uid, us.gid, us.pid)));
    let expected = Line {
        level: Level::Warning,
        cause: Some(Cause::Refused),
        peer: us,
        subject: Subject::Nothing,
        text,
    };
    assert_eq!(sidecar.logged(), [expected]);
}

#[test]
fn a_name_that_was_taken_over_is_worth_a_notice() {
    let directory = TempDir::new();
    let stale = directory.path("a.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).expect("a listener"));
    let mut sidecar = Sidecar::start();
    sidecar.listen(&stale);
    let line = sidecar.expect_line("took over");
    assert_eq!(line.level, Level::Notice);
    assert_eq!(line.cause, Some(Cause::TookOver));
    assert_eq!(line.peer, Credentials::UNKNOWN);
    assert_eq!(line.subject, Subject::Address(stale.display().to_string()));
}

#[test]
fn a_peer_that_is_bound_has_its_address() {
    let directory = TempDir::new();
    let mut sidecar = Sidecar::start();
    sidecar.listen(directory.path("a.sock"));
    let ours = directory.path("b.sock");
    let peer = socket(AddressFamily::UNIX, SocketType::STREAM, None).expect("a socket");
    bind(&peer, &SocketAddrUnix::new(&ours).expect("a path")).expect("a name");
    let theirs = SocketAddrUnix::new(directory.path("a.sock")).expect("a path");
    connect(&peer, &theirs).expect("a listener");
    let mut peer = std::os::unix::net::UnixStream::from(peer);
    peer.write_all(NAME).expect("room");
    match sidecar.expect_report("ACCEPTED") {
        Report::Accepted { address, .. } => {
            assert_eq!(address, ours.as_os_str().as_encoded_bytes());
        }
        other => sidecar.fail(&format!("ACCEPTED, not {other:?}")),
    }
    let _unbound = connect_node(directory.path("a.sock"));
    match sidecar.expect_report("ACCEPTED") {
        Report::Accepted { address, .. } => assert_eq!(address, b""),
        other => sidecar.fail(&format!("ACCEPTED, not {other:?}")),
    }
}

#[test]
fn the_status_is_the_systems() {
    let mut sidecar = Sidecar::start_program(&mut after_shell("ulimit -n 77"));
    sidecar.send(&Command::AskStatus);
    let Report::Status(status) = sidecar.expect_report("STATUS") else {
        sidecar.fail("STATUS")
    };
    let Status {
        descriptors,
        descriptor_limit,
        memory,
    } = status;
    assert_eq!(descriptor_limit, 77);
    // Root can count the descriptors; other users have to rely on the report.
    if let Ok(entries) = std::fs::read_dir(format!("/proc/{}/fd", sidecar.pid())) {
        assert_eq!(descriptors as usize, entries.count());
    }
    assert!(descriptors > 3, "{descriptors}");
    assert!((256 << 10..64 << 20).contains(&memory), "{memory}");
}

// --- where lines go ------------------------------------------------------------------------------

#[test]
fn lines_are_on_stderr_when_the_vm_is_gone_and_only_then() {
    let mut sidecar = Sidecar::start();
    sidecar.signal(Signal::TERM);
    sidecar.expect_line("SIGTERM");
    let directory = TempDir::new();
    sidecar.listen(directory.path("a.sock"));
    // Only the sidecar notices this.
    std::fs::remove_file(directory.path("a.sock")).expect("a file");
    let before = sidecar.logged().len();
    sidecar.hang_up();
    assert!(sidecar.expect_exit().success());
    sidecar.expect_log("warning: ");
    assert_eq!(sidecar.logged().len(), before);
}

/// A probe ends like this, and so does a ping that gives up early.
#[test]
fn a_peer_that_leaves_without_a_name_is_logged_at_debug() {
    let mut sidecar = Sidecar::start_program(&mut after_shell("export UDS_DIST_LOG=debug"));
    let directory = TempDir::new();
    sidecar.listen(directory.path("a.sock"));
    drop(connect_peer(directory.path("a.sock")));
    let line = sidecar.expect_line("left before it sent its name");
    assert_eq!(line.level, Level::Debug);
    assert_eq!(line.peer, ourselves());
}

/// The VM reads nothing. Then only log lines are dropped.
#[test]
fn lines_give_way_to_packets() {
    const ROUNDS: u32 = 20_000;
    let mut sidecar = Sidecar::start_program(&mut after_shell("export UDS_DIST_LOG=debug"));
    // Each round makes two packets and two lines. Together, they exceed the pipe and the queue.
    for _ in 0..ROUNDS {
        sidecar.send(&Command::Listen {
            listener: 0,
            backlog: 1,
            mode: 0o600,
            vm_pid: 1,
            address: [b"\0uds_dist/", std::process::id().to_string().as_bytes()].concat(),
        });
        sidecar.send(&Command::Unlisten { listener: 0 });
    }
    for _ in 0..ROUNDS {
        let listening = Report::Listening { listener: 0 };
        assert_eq!(sidecar.expect_report("LISTENING"), listening);
        let unlistened = Report::Unlistened { listener: 0 };
        assert_eq!(sidecar.expect_report("UNLISTENED"), unlistened);
    }
    sidecar.settle();
    let lost = sidecar.expect_line("lines of the sidecar's log were lost");
    assert_eq!(lost.cause, Some(Cause::LinesLost));
    assert_eq!(lost.level, Level::Warning);
    let counts = sidecar.logged().iter();
    let counts = counts.filter(|line| line.cause == Some(Cause::LinesLost));
    let counts: Vec<u32> = counts
        .map(|line| {
            line.text
                .split(' ')
                .next()
                .and_then(|count| count.parse().ok())
        })
        .map(|count| count.expect("a count"))
        .collect();
    let logged = sidecar.logged().iter();
    let seen = logged
        .filter(|line| line.text.contains("listening at"))
        .count();
    assert_eq!(seen as u32 + counts.iter().sum::<u32>(), 2 * ROUNDS);
}

/// Connections whose peers have names that end in `suffix`. Nobody listens any more, so no check of a file is due.
fn connections(
    sidecar: &mut Sidecar,
    directory: &TempDir,
    count: usize,
    suffix: &str,
) -> Vec<UnixStream> {
    sidecar.listen(directory.path("a.sock"));
    let connect = |_| {
        let peer = connect_node(directory.path("a.sock"));
        let (conn, _) = sidecar.accepted();
        let node = format!("peer{conn}@{suffix}");
        sidecar.send(&Command::Established { conn, node });
        peer
    };
    let peers = (0..count).map(connect).collect();
    sidecar.unlisten(0);
    sidecar.settle();
    peers
}

/// Expects one line of the table for each connection, and that none is lost.
fn expect_table(sidecar: &mut Sidecar, count: usize) {
    let last = 2 * count;
    sidecar.expect_line(&format!("{last} from peer{last}@"));
    let lines = sidecar.logged().iter();
    let lines = lines.filter(|line| line.text.contains(" from peer"));
    assert_eq!(lines.count(), count);
    let mut causes = sidecar.logged().iter().map(|line| line.cause);
    assert!(causes.all(|cause| cause != Some(Cause::LinesLost)));
}

#[test]
fn a_table_with_more_lines_than_can_wait_is_complete() {
    const COUNT: usize = MAX_WAITING + 144;
    let directory = TempDir::new();
    let mut sidecar = Sidecar::start();
    let _peers = connections(&mut sidecar, &directory, COUNT, "host");
    sidecar.signal(Signal::USR1);
    expect_table(&mut sidecar, COUNT);
}

/// The sidecar stops taking lines when its reports are long. That must not last until something else happens.
#[test]
fn lines_that_wait_for_room_among_the_reports_need_no_event_to_go_on() {
    const COUNT: usize = MAX_WAITING - 16;
    let directory = TempDir::new();
    let mut sidecar = Sidecar::start();
    let _peers = connections(&mut sidecar, &directory, COUNT, &"h".repeat(MAX_LINE));
    sidecar.signal(Signal::USR1);
    expect_table(&mut sidecar, COUNT);
}

#[test]
fn a_full_queue_counts_what_it_does_not_take() {
    let mut queue = Queue::new();
    let numbered = |number: usize| Line::new(Level::Info, number.to_string());
    (0..MAX_WAITING + 7).for_each(|number| queue.push(numbered(number)));
    for number in 0..MAX_WAITING {
        assert_eq!(queue.pop(), Some(numbered(number)));
    }
    let lost = queue.pop().expect("a line");
    assert!(lost.text.starts_with("7 lines "), "{lost:?}");
    assert_eq!(queue.pop(), None);
}

// --- records -------------------------------------------------------------------------------------

fn text_of(text: &str) -> Line {
    line(
        &Record::builder()
            .level(LogLevel::Info)
            .args(format_args!("{text}"))
            .build(),
    )
}

#[test]
fn a_line_is_one_line_without_control_characters() {
    let text = text_of("a\nb\x1b[31m\u{85}\u{9b}c").text;
    assert_eq!(text, "a\\nb\\u{1b}[31m\\u{85}\\u{9b}c");
}

#[test]
fn a_long_line_is_cut_between_characters() {
    for character in ["a", "ö", "€", "😀", "\n"] {
        let text = text_of(&character.repeat(2 * MAX_LINE)).text;
        assert!(text.ends_with("..."), "{text}");
        assert!((MAX_LINE - 12..=MAX_LINE).contains(&text.len()), "{text}");
    }
    assert_eq!(
        text_of(&"a".repeat(MAX_LINE - 3)).text,
        "a".repeat(MAX_LINE - 3)
    );
}

#[test]
fn the_longest_line_fits_into_a_packet() {
    let long = "😀".repeat(MAX_LINE);
    let source = [("node", log::kv::Value::from(long.as_str()))];
    let record = line(
        &Record::builder()
            .level(LogLevel::Warn)
            .key_values(&source)
            .args(format_args!("{long}"))
            .build(),
    );
    let Subject::Node(node) = &record.subject else {
        panic!("{record:?}")
    };
    assert!((MAX_SUBJECT - 8..=MAX_SUBJECT).contains(&node.len()));
    let mut encoded = Vec::new();
    Report::Log(record.clone()).encode(&mut encoded);
    assert_eq!(Report::decode(&encoded[4..]), Ok(Report::Log(record)));
}

#[test]
fn a_sidecar_without_a_vm_says_it_on_stderr() {
    let output = Program::new(BINARY)
        .env("UDS_DIST_SPIN", "long")
        .stdin(std::process::Stdio::null())
        .output()
        .expect("it starts");
    assert_eq!(output.stdout, b"");
    assert!(String::from_utf8_lossy(&output.stderr).contains("error: UDS_DIST_SPIN=long"));
}
