//! The life of a sidecar: its start, invalid input from its VM, signals, and its end.

mod port;

use port::*;
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command as Program, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use uds_dist::ids::ConnId;
use uds_dist::port::codec::data_head;
use uds_dist::port::protocol::{Command, MAX_CONTROL_BODY, MAX_DATA_BODY, Report, VERSION, WINDOW};

fn listening() -> (Sidecar, TempDir) {
    let directory = TempDir::new();
    let mut sidecar = Sidecar::start();
    sidecar.listen(directory.path("a.sock"));
    (sidecar, directory)
}

fn connected() -> (Sidecar, ConnId, UnixStream, TempDir) {
    let (mut sidecar, directory) = listening();
    let peer = connect_node(directory.path("a.sock"));
    let (conn, _) = sidecar.accepted();
    sidecar.establish(conn);
    (sidecar, conn, peer, directory)
}

// --- the beginning -------------------------------------------------------------------------------

#[test]
fn hello_is_the_first_report() {
    let mut sidecar = Sidecar::spawn(&mut Program::new(BINARY)).expect("the sidecar starts");
    // Even if the VM sends something first.
    sidecar.send(&Command::Unlisten { listener: 3 });
    assert_eq!(
        sidecar.expect_report("HELLO"),
        Report::Hello {
            version: VERSION,
            window: WINDOW,
            release: env!("CARGO_PKG_VERSION").into(),
        }
    );
    assert_eq!(
        sidecar.expect_report("UNLISTENED"),
        Report::Unlistened { listener: 3 }
    );
}

#[test]
fn arguments_are_refused() {
    for arguments in [&["--help"][..], &["1"], &[""]] {
        let output = Program::new(BINARY).args(arguments).output();
        assert_misused(&output.expect("the sidecar starts"), "takes no arguments");
    }
}

#[test]
fn a_terminal_is_no_vm() {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&terminal)
        .and_then(|()| unlockpt(&terminal))
        .expect("a terminal");
    let stdin = ioctl_tiocgptpeer(&terminal, OpenptFlags::RDWR | OpenptFlags::NOCTTY);
    let output = Program::new(BINARY)
        .stdin(stdin.expect("its other side"))
        .output();
    assert_misused(
        &output.expect("the sidecar starts"),
        "stdin is a terminal, not a VM",
    );
}

/// As without a terminal, in a container or under systemd.
#[test]
fn the_null_device_is_no_vm() {
    let output = Program::new(BINARY).stdin(Stdio::null()).output();
    assert_misused(
        &output.expect("the sidecar starts"),
        "stdin and stdout are not pipes to a VM",
    );
}

/// One line says what is wrong, and what to do instead.
fn assert_misused(output: &Output, problem: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64));
    assert_eq!(output.stdout, b"");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    for words in ["uds_dist_sidecar: ", problem, "-proto_dist uds"] {
        assert!(stderr.contains(words), "{words} is not in {stderr}");
    }
}

// --- a VM that breaks the protocol ---------------------------------------------------------------

/// The sidecar must end, and say why in one line.
fn assert_refused(mut sidecar: Sidecar, why: &str) {
    let pid = sidecar.pid();
    let status = sidecar.expect_exit();
    let expected = format!("uds_dist[{pid}] error: the VM broke the port protocol: {why}");
    assert_eq!(sidecar.log(), [expected]);
    assert_eq!(status.code(), Some(1));
}

fn refused_bytes(bytes: &[u8], why: &str) {
    let mut sidecar = Sidecar::start();
    sidecar.send_bytes(bytes);
    assert_refused(sidecar, why);
}

#[test]
fn a_packet_of_unknown_type_is_refused() {
    refused_bytes(b"\0\0\0\x01\xff", "unknown packet type 255");
}

#[test]
fn an_empty_packet_is_refused() {
    refused_bytes(b"\0\0\0\0", "packet ends inside its field type");
}

#[test]
fn a_truncated_packet_is_refused() {
    refused_bytes(b"\0\0\0\x04\x05\0\0\0", "packet ends inside its field conn");
}

#[test]
fn an_impossible_connection_is_refused() {
    refused_bytes(
        b"\0\0\0\x05\x05\0\0\0\0",
        "field conn has an impossible value",
    );
}

#[test]
fn a_long_packet_is_refused_before_it_has_arrived() {
    let over = MAX_CONTROL_BODY as u32 + 1;
    let head = [&over.to_be_bytes()[..], &[3]].concat();
    refused_bytes(&head, "packet of 2049 bytes is over the limit");
}

#[test]
fn a_long_data_packet_is_refused_before_it_has_arrived() {
    let over = MAX_DATA_BODY as u32 + 1;
    let head = [&over.to_be_bytes()[..], &[16]].concat();
    refused_bytes(&head, "packet of 1048582 bytes is over the limit");
}

#[test]
fn data_beyond_the_window_is_refused() {
    let (mut sidecar, conn, _peer, _directory) = connected();
    // The peer reads nothing. Once no more ACKs arrive, a whole window is on its way.
    loop {
        sidecar.settle();
        match sidecar.available(conn) as usize {
            0 => break,
            count => sidecar.send_data(conn, &vec![0; count]),
        }
    }
    sidecar.send_data(conn, b"x");
    assert_refused(
        sidecar,
        &format!("DATA beyond the window of connection {conn}"),
    );
}

#[test]
fn an_acknowledgement_of_too_much_is_refused() {
    let (mut sidecar, conn, mut peer, _directory) = connected();
    assert_eq!(write_some(&mut peer, b"hello"), 5);
    sidecar.take(conn, 5);
    sidecar.acknowledge(conn, 6);
    assert_refused(
        sidecar,
        &format!("ACK of 6 bytes too many for connection {conn}"),
    );
}

#[test]
fn a_connection_with_a_number_of_the_sidecar_is_refused() {
    let mut sidecar = Sidecar::start();
    sidecar.send(&Command::Connect {
        conn: 2,
        address: b"a.sock".to_vec(),
    });
    assert_refused(
        sidecar,
        "CONNECT with connection 2, which is in use or even",
    );
}

#[test]
fn a_second_connection_with_the_same_number_is_refused() {
    let directory = TempDir::new();
    let path = directory.path("a.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&path).expect("a listener");
    let mut sidecar = Sidecar::start();
    let (conn, _) = sidecar.connect(&path);
    sidecar.send(&Command::Connect {
        conn,
        address: path.as_os_str().as_bytes().to_vec(),
    });
    assert_refused(
        sidecar,
        &format!("CONNECT with connection {conn}, which is in use or even"),
    );
}

#[test]
fn a_number_is_in_use_until_both_sides_are_done_with_it() {
    for is_closed in [true, false] {
        let directory = TempDir::new();
        let path = directory.path("a.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).expect("a listener");
        let mut sidecar = Sidecar::start();
        let connect = Command::Connect {
            conn: 1,
            address: path.as_os_str().as_bytes().to_vec(),
        };
        sidecar.send(&connect);
        sidecar.expect_report("CONNECTED");
        drop(listener.accept().expect("the sidecar"));
        sidecar.expect_report("CLOSED");
        if is_closed {
            sidecar.close(1);
        }
        sidecar.send(&connect);
        match is_closed {
            true => drop(sidecar.expect_report("CONNECTED")),
            false => assert_refused(
                sidecar,
                "CONNECT with connection 1, which is in use or even",
            ),
        }
    }
}

#[test]
fn a_second_listener_with_the_same_number_is_refused() {
    let (mut sidecar, directory) = listening();
    sidecar.send_listen(0, directory.path("b.sock"), 0o600);
    assert_refused(
        sidecar,
        "LISTEN with listener 0, which is in use or out of range",
    );
    assert_eq!(directory.names(), Vec::<String>::new());
}

#[test]
fn a_listener_with_too_high_a_number_is_refused() {
    let directory = TempDir::new();
    let mut sidecar = Sidecar::start();
    sidecar.listen_with(15, directory.path("a.sock"), 0o600);
    sidecar.send_listen(16, directory.path("b.sock"), 0o600);
    assert_refused(
        sidecar,
        "LISTEN with listener 16, which is in use or out of range",
    );
}

#[test]
fn commands_before_a_refused_one_are_done() {
    let (mut sidecar, conn, mut peer, _directory) = connected();
    let mut stream = data_head(conn, 5).to_vec();
    stream.extend(b"hello\0\0\0\x01\xff");
    sidecar.send_bytes(&stream);
    assert_refused(sidecar, "unknown packet type 255");
    // The peer may or may not receive these bytes. It receives no others, and then the end.
    let seen = read_to_end(&mut peer);
    assert!(b"hello".starts_with(&seen), "{seen:?}");
}

// --- the end -------------------------------------------------------------------------------------

#[test]
fn the_end_of_stdin_ends_it_and_removes_its_files() {
    let directory = TempDir::new();
    let mut sidecar = Sidecar::start();
    sidecar.listen_with(0, directory.path("a.sock"), 0o600);
    sidecar.listen_with(1, directory.path("b.sock"), 0o600);
    let mut peer = connect_node(directory.path("b.sock"));
    sidecar.accepted();
    sidecar.hang_up();
    assert!(sidecar.expect_exit().success());
    assert_eq!(directory.names(), Vec::<String>::new());
    assert_eq!(sidecar.log(), Vec::<String>::new());
    assert_eq!(read_to_end(&mut peer), b"");
}

#[test]
fn the_end_of_stdin_in_the_middle_of_a_packet_ends_it_as_well() {
    let (mut sidecar, directory) = listening();
    sidecar.send_bytes(b"\0\0\0\x05\x05\0");
    sidecar.hang_up();
    assert!(sidecar.expect_exit().success());
    assert_eq!(directory.names(), Vec::<String>::new());
}

#[test]
fn what_the_vm_sent_before_its_end_reaches_a_peer_that_reads() {
    let (mut sidecar, conn, mut peer, _directory) = connected();
    let sent = bytes(1, WINDOW as usize);
    let reader = thread::spawn(move || read_to_end(&mut peer));
    sidecar.send_data(conn, &sent);
    sidecar.hang_up();
    assert!(sidecar.expect_exit().success());
    match reader.join() {
        Ok(seen) => assert_same(&seen, &sent),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

#[test]
fn a_peer_may_begin_to_read_after_the_end_of_the_vm() {
    let (mut sidecar, conn, mut peer, directory) = connected();
    let mut idle_peer = connect_node(directory.path("a.sock"));
    sidecar.accepted();
    // A little more than a socket usually buffers.
    let sent = bytes(1, 256 << 10);
    sidecar.send_data(conn, &sent);
    sidecar.hang_up();
    // Connections that have nothing left to deliver are closed at once.
    assert_eq!(read_to_end(&mut idle_peer), b"");
    assert_same(&read_to_end(&mut peer), &sent);
    assert!(sidecar.expect_exit().success());
}

#[test]
fn a_peer_that_does_not_read_holds_the_end_up_no_longer_than_two_seconds() {
    let (mut sidecar, conn, _peer, directory) = connected();
    sidecar.fill(conn, &bytes(1, MUCH));
    let begin = Instant::now();
    sidecar.hang_up();
    assert!(sidecar.expect_exit().success());
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(directory.names(), Vec::<String>::new());
    sidecar.expect_log("before its peers had read everything");
}

#[test]
fn reports_that_nobody_reads_do_not_hold_the_end_up() {
    let (mut sidecar, _, _peer, directory) = connected();
    // Each is answered with a packet of 9 bytes, and the pipe holds at most a megabyte.
    let mut packet = Vec::new();
    Command::Unlisten { listener: 7 }.encode(&mut packet);
    sidecar.send_bytes(&packet.repeat(200_000));
    sidecar.hang_up();
    assert!(sidecar.expect_exit().success());
    assert_eq!(directory.names(), Vec::<String>::new());
}

#[test]
fn a_vm_that_closes_its_end_is_gone() {
    let (mut sidecar, _, _peer, directory) = connected();
    sidecar.go_deaf();
    sidecar.send(&Command::Unlisten { listener: 7 });
    assert!(sidecar.expect_exit().success());
    assert_eq!(directory.names(), Vec::<String>::new());
}

#[test]
fn a_sidecar_that_was_just_started_ends_as_well() {
    let mut sidecar = Sidecar::spawn(&mut Program::new(BINARY)).expect("the sidecar starts");
    sidecar.hang_up();
    assert!(sidecar.expect_exit().success());
}

// --- signals -------------------------------------------------------------------------------------

#[test]
fn termination_signals_do_not_end_it() {
    let (mut sidecar, conn, mut peer, directory) = connected();
    for (signal, name) in [
        (Signal::TERM, "SIGTERM"),
        (Signal::INT, "SIGINT"),
        (Signal::HUP, "SIGHUP"),
    ] {
        sidecar.signal(signal);
        let line = sidecar.expect_log(name);
        assert!(line.contains("continuing until the VM ends"), "{line}");
        sidecar.send_data(conn, b"ping");
        assert_eq!(read(&mut peer, 4), b"ping");
    }
    assert_eq!(directory.names(), ["a.sock", "a.sock.lock"]);
    sidecar.hang_up();
    assert!(sidecar.expect_exit().success());
}

#[test]
fn sigusr1_logs_a_table() {
    let (mut sidecar, conn, mut peer, directory) = connected();
    let _shaking_hands = connect_node(directory.path("a.sock"));
    let (second, _) = sidecar.accepted();
    sidecar.send_data(conn, b"hello");
    read(&mut peer, 5);
    assert_eq!(write_some(&mut peer, b"bye"), 3);
    sidecar.take(conn, 3);
    sidecar.signal(Signal::USR1);
    sidecar.expect_log(&format!(
        "listening at {}",
        directory.path("a.sock").display()
    ));
    sidecar.expect_log(
        "2 connections, 1 in handshake, 0 handed over so far; refused: 0 implausible names",
    );
    let who = format!(
        "uid {} gid {} pid {}, 0 s old",
        rustix::process::geteuid(),
        rustix::process::getegid(),
        std::process::id()
    );
    sidecar.expect_log(&format!(
        "{conn} from peer{conn}@host {who}: {} bytes in, 5 out, 0 wait for the peer, 3 \
         of the window of {WINDOW} for the VM",
        NAME.len() + 3
    ));
    sidecar.expect_log(&format!(
        "{second} from (handshake) {who}: {} bytes in, 0 out",
        NAME.len()
    ));
}

#[test]
fn a_stopped_sidecar_goes_on_when_it_is_continued() {
    let (mut sidecar, conn, mut peer, _directory) = connected();
    sidecar.signal(Signal::STOP);
    sidecar.send_data(conn, b"ping");
    sidecar.signal(Signal::CONT);
    assert_eq!(read(&mut peer, 4), b"ping");
}

#[test]
fn sigkill_leaves_no_process_and_ends_its_connections() {
    let (mut sidecar, _, mut peer, _directory) = connected();
    sidecar.signal(Signal::KILL);
    assert_eq!(sidecar.expect_exit().signal(), Some(9));
    assert_eq!(read_to_end(&mut peer), b"");
}

#[test]
fn the_log_filter_comes_from_the_environment() {
    let directory = TempDir::new();
    let stale = directory.path("a.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).expect("a listener"));
    let mut sidecar = Sidecar::start_program(&mut after_shell("export UDS_DIST_LOG=warn"));
    sidecar.listen(&stale); // "took over" is a notice
    sidecar.signal(Signal::TERM);
    sidecar.settle();
    sidecar.hang_up();
    assert!(sidecar.expect_exit().success());
    assert_eq!(sidecar.log(), Vec::<String>::new());
}

#[test]
fn a_log_level_that_is_none_is_refused() {
    for wrong in ["loud", "INFO", "uds_dist=debug", "7"] {
        let set = format!("export UDS_DIST_LOG='{wrong}'");
        let mut sidecar = Sidecar::spawn(&mut after_shell(&set)).expect("it starts");
        let expected = format!("UDS_DIST_LOG={wrong} must be off, error, warn, info or debug");
        sidecar.expect_log(&expected);
        assert_eq!(sidecar.expect_exit().code(), Some(64));
        assert_eq!(sidecar.log().len(), 1);
    }
}

#[test]
fn an_invalid_busy_poll_budget_is_refused() {
    for wrong in ["1001", "-1", "1ms", " "] {
        let set = format!("export UDS_DIST_SPIN='{wrong}'");
        let mut sidecar = Sidecar::spawn(&mut after_shell(&set)).expect("it starts");
        let expected = format!("UDS_DIST_SPIN={wrong} must be a number of microseconds");
        sidecar.expect_log(&expected);
        assert_eq!(sidecar.expect_exit().code(), Some(64));
    }
}
