//! The command line against peers that are no nodes: whatever they say, a command ends with an exit
//! code and one line.

mod fixtures;
#[path = "../src/command_line/write_docs.rs"]
mod write_docs;

use fixtures::{TempDir, bytes, kill, limited, read, read_to_end};
use rustix::process::Signal;
use std::ffi::OsStr;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command as Program, Output, Stdio};
use std::thread::{self, JoinHandle};
use uds_dist_command_line::cookie::{Cookie, Source};
use uds_dist_command_line::etf::{Identity, Reader, Writer};
use uds_dist_command_line::handshake::proof;

/// The program.
const BINARY: &str = env!("CARGO_BIN_EXE_uds_dist");

const COOKIE: &str = "secret";

/// A command with the cookie and the directory set, and nothing else of ours.
fn command(directory: &TempDir, arguments: &[impl AsRef<OsStr>]) -> Program {
    let mut program = Program::new(BINARY);
    program
        .args(arguments)
        .env_clear()
        .env("UDS_DIST_DIR", directory.path(""))
        .env("ERLANG_COOKIE", COOKIE)
        .stdin(Stdio::null());
    program
}

fn run(directory: &TempDir, arguments: &[&str]) -> Output {
    command(directory, arguments).output().expect("it starts")
}

/// It has failed with this code and with one line that has all these words.
fn assert_fails(output: &Output, code: i32, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert_eq!(output.stdout, b"", "{stderr}");
    assert!(stderr.starts_with("uds_dist: "), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "{word} is not in {stderr}");
    }
}

// --- a peer --------------------------------------------------------------------------------------

/// Plays a node of the name `n`, for one connection.
struct Peer {
    directory: TempDir,
    thread: JoinHandle<()>,
}

impl Peer {
    fn new(script: impl FnOnce(&mut UnixStream) + Send + 'static) -> Peer {
        let directory = TempDir::new();
        let listener = UnixListener::bind(directory.path("n.sock")).expect("a socket");
        let thread = thread::spawn(move || {
            let (stream, _) = listener.accept().expect("a connection");
            script(&mut limited(stream));
        });
        Peer { directory, thread }
    }

    /// The handshake is as it should be; the script has what comes then.
    fn connected(script: impl FnOnce(&mut UnixStream) + Send + 'static) -> Peer {
        Peer::new(|stream| {
            shake_hands(stream, |challenge| proof(&cookie(), challenge).to_vec());
            script(stream);
        })
    }

    /// What a command says to that.
    fn asked(self, arguments: &[&str]) -> Output {
        let output = run(&self.directory, arguments);
        self.thread
            .join()
            .expect("the peer has seen what it should");
        output
    }
}

fn cookie() -> Cookie {
    let source = Source::Argument(COOKIE.into());
    source.read(|_| None).expect("a cookie")
}

fn send(stream: &mut UnixStream, message: &[u8]) {
    let length = u16::try_from(message.len()).expect("a short message");
    let frame = [&length.to_be_bytes(), message].concat();
    stream.write_all(&frame).expect("somebody who reads");
}

fn receive(stream: &mut UnixStream) -> Vec<u8> {
    let head = read(stream, 2);
    let length = u16::from_be_bytes(head.try_into().expect("2 bytes"));
    read(stream, length.into())
}

const NAMED: &[u8] = b"snamed:\0\x03x@h\0\0\0\x07";

fn challenge(name: &str) -> Vec<u8> {
    let mut message = vec![b'N'];
    message.extend(u64::MAX.to_be_bytes());
    message.extend(b"\0\0\x30\x39\0\0\0\x01");
    message.extend((name.len() as u16).to_be_bytes());
    message.extend(name.as_bytes());
    message
}

/// As far as the answer to the command's challenge.
fn shake_hands(stream: &mut UnixStream, acknowledge: impl FnOnce(u32) -> Vec<u8>) {
    assert_eq!(receive(stream)[0], b'N');
    send(stream, NAMED);
    send(stream, &challenge("n@h"));
    let reply = receive(stream);
    assert_eq!(reply[0], b'r');
    assert_eq!(reply[5..], proof(&cookie(), 0x3039));
    let theirs = u32::from_be_bytes(reply[1..5].try_into().expect("4 bytes"));
    send(stream, &[&b"a"[..], &acknowledge(theirs)].concat());
}

fn send_frame(stream: &mut UnixStream, message: &[u8]) {
    let frame = [&(message.len() as u32).to_be_bytes()[..], message].concat();
    stream.write_all(&frame).expect("somebody who reads");
}

/// The next message that is no tick.
fn receive_frame(stream: &mut UnixStream) -> Vec<u8> {
    loop {
        let head = read(stream, 4);
        match u32::from_be_bytes(head.try_into().expect("4 bytes")) {
            0 => (),
            length => return read(stream, length as usize),
        }
    }
}

/// A message to the command's process, of this term.
fn message(term: impl FnOnce(&mut Writer<'_>)) -> Vec<u8> {
    let us = Identity {
        node: "x@h".into(),
        creation: 7,
    };
    let mut bytes = vec![112];
    Writer::new(&mut bytes)
        .tuple(3)
        .integer(2)
        .atom("")
        .pid(&us);
    term(&mut Writer::new(&mut bytes));
    bytes
}

fn yes(out: &mut Writer<'_>) {
    out.tuple(2).integer(1).atom("yes");
}

/// The result of a call, in the external format.
fn result(term: &[u8]) -> Vec<u8> {
    let mut bytes = message(|out| {
        out.tuple(2).atom("result");
    });
    bytes.extend(term);
    bytes
}

// --- who is there --------------------------------------------------------------------------------

#[test]
fn a_node_that_is_not_there() {
    let directory = TempDir::new();
    let words = ["n.sock is not there: no such socket"];
    assert_fails(&run(&directory, &["ping", "n"]), 1, &words);
    assert_fails(&run(&directory, &["pid", "n"]), 5, &words);
    assert_fails(&run(&directory, &["rpc", "n", "erlang", "node"]), 5, &words);
}

#[test]
fn a_node_that_was_killed() {
    let directory = TempDir::new();
    drop(UnixListener::bind(directory.path("n.sock")).expect("a socket"));
    let output = run(&directory, &["ping", "n"]);
    assert_fails(&output, 1, &["nobody listens at its socket"]);
}

#[test]
fn places_without_nodes() {
    let directory = TempDir::new();
    let long = "x".repeat(200);
    let output = run(&directory, &["ping", "n", "--dir", &long]);
    assert_fails(
        &output,
        64,
        &["cannot be a socket address", "give another --dir"],
    );
    let output = run(&directory, &["names", "--dir", "none/at/all"]);
    assert_fails(&output, 64, &["cannot list none/at/all"]);
    let output = run(&directory, &["ping", "../n"]);
    assert_fails(&output, 64, &["is not a node name"]);
}

#[test]
fn names_are_listed_with_what_is_known_of_them() {
    let directory = TempDir::new();
    let _up = UnixListener::bind(directory.path("up.sock")).expect("a socket");
    fs::write(directory.path("up.sock.lock"), "4711\n").expect("a file");
    let _other = UnixListener::bind(directory.path("other.sock")).expect("a socket");
    drop(UnixListener::bind(directory.path("dead.sock")).expect("a socket"));
    fs::write(directory.path("file.sock"), "").expect("a file");
    let us = (std::process::id(), rustix::process::geteuid());
    let output = run(&directory, &["names", "--json"]);
    let expected = format!(
        r#"[{{"name":"dead","pid":null,"uid":null,"state":"stale"}},{{"name":"other","pid":{},"uid":{},"state":"up"}},{{"name":"up","pid":4711,"uid":{},"state":"up"}}]"#,
        us.0, us.1, us.1
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected + "\n");
    let output = run(&directory, &["names"]);
    let table = String::from_utf8_lossy(&output.stdout);
    let rows: Vec<Vec<_>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(rows[0], ["NAME", "PID", "UID", "STATE"]);
    assert_eq!(rows[1], ["dead", "-", "-", "stale"]);
    assert_eq!(rows[3], ["up", "4711", &us.1.to_string(), "up"]);
    assert_eq!(output.status.code(), Some(0));
}

#[cfg(target_os = "linux")]
#[test]
fn abstract_names_are_listed() {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::SocketAddr;
    let namespace = format!("uds_dist_test.{}", std::process::id());
    let address = SocketAddr::from_abstract_name(format!("{namespace}/n")).expect("an address");
    let _listener = UnixListener::bind_addr(&address).expect("a socket");
    let directory = format!("@{namespace}");
    let output = run(&TempDir::new(), &["names", "--dir", &directory]);
    let table = String::from_utf8_lossy(&output.stdout);
    let row: Vec<_> = table
        .lines()
        .last()
        .expect("a row")
        .split_whitespace()
        .collect();
    let uid = rustix::process::geteuid().to_string();
    assert_eq!(row, ["n", &std::process::id().to_string(), &uid, "up"]);
}

/// It comes up while the command waits.
#[test]
fn waiting_until_a_node_is_there() {
    let directory = TempDir::new();
    let waiting = command(&directory, &["ping", "n", "--wait", "10s"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let listener = UnixListener::bind(directory.path("n.sock")).expect("a socket");
    // One that hangs up, as a node does that goes down, is not the one that is waited for.
    drop(listener.accept().expect("a connection"));
    let (stream, _) = listener.accept().expect("a connection");
    let mut stream = limited(stream);
    shake_hands(&mut stream, |challenge| {
        proof(&cookie(), challenge).to_vec()
    });
    receive_frame(&mut stream);
    send_frame(&mut stream, &message(yes));
    let output = waiting.wait_with_output().expect("it ends");
    assert_eq!(output.stdout, b"pong from n@h\n");
}

#[test]
fn waiting_ends() {
    let output = run(&TempDir::new(), &["ping", "n", "--wait", "50ms"]);
    assert_fails(&output, 1, &["is not there"]);
}

// --- the handshake -------------------------------------------------------------------------------

#[test]
fn a_peer_that_answers_is_there() {
    let peer = Peer::connected(|stream| {
        let asked = receive_frame(stream);
        let mut control = Reader::new(&asked[1..]).expect("a term");
        assert_eq!(control.tuple("control"), Ok(4));
        assert_eq!(control.integer("operation"), Ok(6));
        // What every node may get, and what has nothing to do with the question.
        send_frame(stream, b"");
        let mut monitor = vec![112];
        Writer::new(&mut monitor)
            .tuple(2)
            .integer(19)
            .atom("anything");
        send_frame(stream, &monitor);
        send_frame(stream, &message(yes));
    });
    let output = peer.asked(&["ping", "n"]);
    assert_eq!(output.stdout, b"pong from n@h\n");
    assert_eq!(output.stderr, b"");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_peer_that_hangs_up_at_once() {
    let peer = Peer::new(|_| ());
    assert_fails(
        &peer.asked(&["ping", "n"]),
        2,
        &["hung up without an answer", "uid"],
    );
}

#[test]
fn a_peer_that_is_silent() {
    let peer = Peer::new(|stream| {
        read_to_end(stream);
    });
    let output = peer.asked(&["ping", "n", "--timeout", "100ms"]);
    assert_fails(&output, 3, &["is there and does not answer"]);
}

#[test]
fn a_peer_that_speaks_another_protocol() {
    let peer = Peer::new(|stream| {
        stream
            .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .expect("somebody who reads");
        read_until_reset(stream);
    });
    let output = peer.asked(&["ping", "n"]);
    assert_fails(&output, 4, &["something else listens there"]);
}

/// The other side may close with our bytes unread.
fn read_until_reset(stream: &mut UnixStream) {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => (),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
}

#[test]
fn a_peer_that_speaks_nonsense() {
    for seed in 0..20 {
        let peer = Peer::new(move |stream| {
            receive(stream);
            send(stream, &bytes(seed, 1 + seed as usize * 7));
            read_until_reset(stream);
        });
        assert_fails(
            &peer.asked(&["ping", "n"]),
            4,
            &["answered the handshake wrongly"],
        );
    }
}

#[test]
fn a_peer_that_hangs_up_in_mid_frame() {
    let peer = Peer::new(|stream| {
        receive(stream);
        stream.write_all(b"\0\x10sna").expect("somebody who reads");
    });
    assert_fails(&peer.asked(&["ping", "n"]), 2, &["hung up"]);
}

#[test]
fn a_peer_that_refuses() {
    for status in ["not_allowed", "nok", "alive", "ok", "ok_simultaneous"] {
        let peer = Peer::new(move |stream| {
            receive(stream);
            send(stream, format!("s{status}").as_bytes());
            read_to_end(stream);
        });
        let words = ["refuses with the status", status];
        assert_fails(&peer.asked(&["ping", "n"]), 2, &words);
    }
}

#[test]
fn a_peer_of_another_name() {
    for (asked, name) in [("n", "m@h"), ("n@g", "n@h"), ("n", "nn@h")] {
        let peer = Peer::new(move |stream| {
            receive(stream);
            send(stream, NAMED);
            send(stream, &challenge(name));
            // It has not seen our proof.
            assert_eq!(read_to_end(stream), b"");
        });
        assert_fails(&peer.asked(&["ping", asked]), 2, &["is another node", name]);
    }
}

#[test]
fn a_peer_with_another_cookie() {
    let peer = Peer::new(|stream| {
        receive(stream);
        send(stream, NAMED);
        send(stream, &challenge("n@h"));
        receive(stream);
    });
    let output = peer.asked(&["ping", "n"]);
    assert_fails(&output, 2, &["its cookie is another one", "--cookie-file"]);
}

#[test]
fn a_peer_that_does_not_know_the_cookie() {
    let peer = Peer::new(|stream| {
        shake_hands(stream, |_| vec![0; 16]);
        assert_eq!(read_to_end(stream), b"");
    });
    assert_fails(
        &peer.asked(&["ping", "n"]),
        2,
        &["does not know the cookie"],
    );
}

// --- answers -------------------------------------------------------------------------------------

#[test]
fn ticks_keep_a_call_alive() {
    let peer = Peer::connected(|stream| {
        receive_frame(stream);
        for _ in 0..2 {
            assert_eq!(read(stream, 4), [0; 4]);
        }
        send_frame(stream, &result(b"a\x07"));
    });
    let output = peer.asked(&["rpc", "--json", "n", "m", "f"]);
    assert_eq!(output.stdout, b"7\n");
}

#[test]
fn a_call_that_is_not_answered() {
    let peer = Peer::connected(|stream| {
        receive_frame(stream);
        read_until_reset(stream);
    });
    let output = peer.asked(&["rpc", "n", "m", "f", "--timeout", "100ms"]);
    assert_fails(&output, 3, &["has not answered in time", "--timeout"]);
}

#[test]
fn a_node_that_goes_down_in_a_call() {
    let peer = Peer::connected(|stream| {
        receive_frame(stream);
    });
    let output = peer.asked(&["rpc", "n", "m", "f"]);
    assert_fails(&output, 4, &["it went down"]);
    let peer = Peer::connected(|stream| {
        receive_frame(stream);
        stream
            .write_all(b"\0\0\0\x10ab")
            .expect("somebody who reads");
    });
    assert_fails(&peer.asked(&["rpc", "n", "m", "f"]), 4, &["it went down"]);
}

#[test]
fn a_message_longer_than_any() {
    let peer = Peer::connected(|stream| {
        receive_frame(stream);
        stream.write_all(&[255; 4]).expect("somebody who reads");
        read_until_reset(stream);
    });
    let output = peer.asked(&["rpc", "n", "m", "f"]);
    assert_fails(&output, 4, &["a message of 4294967295 bytes"]);
}

/// No memory is taken for what is only announced: a limit that the announced length exceeds is no
/// trouble.
#[test]
fn a_long_message_that_does_not_come() {
    let peer = Peer::connected(|stream| {
        receive_frame(stream);
        let announced = 250u32 << 20;
        stream
            .write_all(&announced.to_be_bytes())
            .expect("somebody who reads");
    });
    let mut program = Program::new("/bin/sh");
    program
        .args(["-c", "ulimit -v 65536 && exec \"$0\" \"$@\"", BINARY])
        .args(["rpc", "n", "m", "f"])
        .env("UDS_DIST_DIR", peer.directory.path(""))
        .env("ERLANG_COOKIE", COOKIE);
    let output = program.output().expect("it starts");
    assert_fails(&output, 4, &["it went down"]);
    peer.thread.join().expect("a connection");
}

#[test]
fn messages_that_are_none() {
    let not_spawned = {
        let mut bytes = vec![112];
        let out = &mut Writer::new(&mut bytes);
        out.tuple(5)
            .integer(31)
            .integer(1)
            .integer(1)
            .integer(0)
            .atom("notsup");
        bytes
    };
    let ended = {
        let mut bytes = vec![112];
        let out = &mut Writer::new(&mut bytes);
        out.tuple(5)
            .integer(21)
            .integer(1)
            .integer(1)
            .integer(1)
            .atom("killed");
        bytes
    };
    let strange = message(|out| {
        out.tuple(2).atom("greetings").integer(1);
    });
    for (sent, words) in [
        (b"\x44anything".to_vec(), "cannot be understood"),
        (b"p".to_vec(), "cannot be understood"),
        (b"p\x83h".to_vec(), "cannot be understood"),
        (b"p\x83h\x02w\x01aw\x01b".to_vec(), "cannot be understood"),
        (message(|_| ())[..20].to_vec(), "cannot be understood"),
        (strange, "invalid answer"),
        (not_spawned, "could not start the call: notsup"),
        (ended, "ended the call without a result"),
    ] {
        let peer = Peer::connected(move |stream| {
            receive_frame(stream);
            send_frame(stream, &sent);
            read_until_reset(stream);
        });
        assert_fails(&peer.asked(&["rpc", "n", "m", "f"]), 4, &[words]);
    }
}

#[test]
fn results_that_cannot_be_printed() {
    let too_deep = [&b"h\x01".repeat(1_000_000)[..], b"j"].concat();
    for (form, sent, words) in [
        ("--json", b"\xff".to_vec(), "unknown tag 255"),
        (
            "--json",
            b"m\xff\xff\xff\xffx".to_vec(),
            "ends within its binary",
        ),
        ("--json", too_deep, "nested deeper than 500 levels"),
        ("--timeout=9s", b"a\x01".to_vec(), "invalid text"),
    ] {
        let peer = Peer::connected(move |stream| {
            receive_frame(stream);
            send_frame(stream, &result(&sent));
            read_until_reset(stream);
        });
        let output = peer.asked(&["rpc", form, "n", "m", "f"]);
        assert_fails(&output, 74, &["the result of n@h cannot be printed", words]);
    }
}

#[test]
fn what_is_printed_is_the_result_alone_where_a_script_reads_it() {
    let script = |stream: &mut UnixStream| {
        receive_frame(stream);
        send_frame(
            stream,
            &message(|out| {
                out.tuple(2).atom("output").binary("gr\u{fc}n\n".as_bytes());
            }),
        );
        send_frame(stream, &result(b"m\0\0\0\x02ok"));
    };
    let output = Peer::connected(script).asked(&["rpc", "n", "m", "f"]);
    assert_eq!(output.stdout, "gr\u{fc}n\nok\n".as_bytes());
    assert_eq!(output.stderr, b"");
    let output = Peer::connected(script).asked(&["rpc", "--json", "n", "m", "f"]);
    assert_eq!(output.stdout, b"\"ok\"\n");
    assert_eq!(output.stderr, "gr\u{fc}n\n".as_bytes());
}

#[test]
fn an_exception_is_no_result() {
    let peer = Peer::connected(|stream| {
        receive_frame(stream);
        send_frame(
            stream,
            &message(|out| {
                out.tuple(2)
                    .atom("raised")
                    .binary(b"** exception error: badarg");
            }),
        );
    });
    let output = peer.asked(&["eval", "n", "1"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(output.stderr, b"** exception error: badarg\n");
    assert_eq!(output.stdout, b"");
}

#[cfg(target_os = "linux")]
#[test]
fn a_result_that_nobody_can_have() {
    let peer = Peer::connected(|stream| {
        receive_frame(stream);
        send_frame(stream, &result(b"m\0\0\0\x02ok"));
    });
    let full = fs::File::options().write(true).open("/dev/full");
    let output = command(&peer.directory, &["rpc", "n", "m", "f"])
        .stdout(full.expect("a device that is full"))
        .output()
        .expect("it starts");
    assert_fails(&output, 74, &["cannot print the result"]);
    peer.thread.join().expect("a connection");
}

// --- cookies and files ---------------------------------------------------------------------------

#[test]
fn a_cookie_in_the_arguments_is_warned_of() {
    let output = run(&TempDir::new(), &["ping", "n", "--cookie", "c"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        stderr.contains("warning: everybody who can list processes"),
        "{stderr}"
    );
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn without_a_cookie_nothing_is_tried() {
    let directory = TempDir::new();
    let output = command(&directory, &["ping", "n"])
        .env_remove("ERLANG_COOKIE")
        .output()
        .expect("it starts");
    assert_fails(&output, 64, &["no cookie"]);
}

#[test]
fn expressions_that_cannot_be_read() {
    let directory = TempDir::new();
    let output = run(&directory, &["eval", "n", "--file", "/none"]);
    assert_fails(&output, 64, &["cannot read /none"]);
    let file = directory.path("latin1");
    fs::write(&file, b"\xfc").expect("a file");
    let output = run(
        &directory,
        &["eval", "n", "--file", &file.to_string_lossy()],
    );
    assert_fails(&output, 64, &["cannot read", "utf-8"]);
}

#[test]
fn a_signal_ends_a_command() {
    let directory = TempDir::new();
    let listener = UnixListener::bind(directory.path("n.sock")).expect("a socket");
    let child = command(&directory, &["ping", "n", "--timeout", "60s"]).spawn();
    let mut child = child.expect("it starts");
    let (stream, _) = listener.accept().expect("a connection");
    let mut stream = limited(stream);
    receive(&mut stream);
    kill(child.id(), Signal::TERM).expect("it runs");
    assert_eq!(read_to_end(&mut stream), b"");
    let status = child.wait().expect("it ends");
    assert_eq!(status.signal(), Some(Signal::TERM.as_raw()));
}

// --- what it says of itself ----------------------------------------------------------------------

/// Status, output and errors of a command that needs no node.
fn run_alone(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = run(&TempDir::new(), arguments);
    let text = |bytes| String::from_utf8(bytes).expect("a text");
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn version_is_that_of_the_package() {
    let expected = format!("uds_dist {}\n", env!("CARGO_PKG_VERSION"));
    for option in ["--version", "-V"] {
        let (status, stdout, stderr) = run_alone(&[option]);
        assert_eq!((status, &stdout, &stderr[..]), (Some(0), &expected, ""));
    }
}

#[test]
fn help_says_what_it_is_for() {
    for arguments in [&["--help"][..], &["-h"], &[]] {
        let (status, stdout, stderr) = run_alone(arguments);
        assert_eq!((status, &stderr[..]), (Some(0), ""));
        for word in ["-proto_dist uds", "Exit codes:", "ping"] {
            assert!(stdout.contains(word), "{word} is not in {stdout}");
        }
    }
}

#[test]
fn unknown_arguments_are_refused() {
    for arguments in [&["--verbose"][..], &["sidecar"], &[""]] {
        let (status, stdout, stderr) = run_alone(arguments);
        assert_eq!((status, &stdout[..]), (Some(64), ""));
        assert!(stderr.starts_with("error: "), "{stderr}");
        assert!(stderr.contains("Usage:"), "{stderr}");
    }
    let not_a_text = command(&TempDir::new(), &[OsStr::from_bytes(b"\xff")]).output();
    assert_eq!(not_a_text.expect("it starts").status.code(), Some(64));
}

#[cfg(target_os = "linux")]
#[test]
fn output_that_nobody_can_have_is_a_failure() {
    let full = fs::File::options().write(true).open("/dev/full");
    let status = command(&TempDir::new(), &["--version"])
        .stdout(full.expect("a device that is full"))
        .status()
        .expect("it starts");
    assert_eq!(status.code(), Some(74));
}

// --- documentation -------------------------------------------------------------------------------

#[test]
fn man_pages_and_completions_are_written() {
    let directory = TempDir::new();
    let share = directory.path("share");
    write_docs::write(&share).expect("a directory");
    let text = |path: &str| fs::read_to_string(Path::new(&share).join(path)).expect("a file");
    let page = text("man/man1/uds_dist.1");
    for word in ["uds_dist\\-ping(1)", "Exit codes:", "UDS_DIST_DIR"] {
        assert!(page.contains(word), "{word} is not in {page}");
    }
    assert!(text("man/man1/uds_dist-eval.1").contains("Charlists are lists"));
    for file in [
        "bash-completion/completions/uds_dist",
        "zsh/site-functions/_uds_dist",
        "fish/vendor_completions.d/uds_dist.fish",
    ] {
        assert!(text(file).contains("allow-uid"), "{file}");
    }
    let file = directory.path("file");
    fs::write(&file, "").expect("a file");
    write_docs::write(&file).expect_err("a file is no directory");
}
