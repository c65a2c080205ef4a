//! The command line with peers that are not nodes. Whatever they send, a command ends with an exit code and one line.

mod fixtures;
#[path = "../src/command_line/write_docs.rs"]
mod write_docs;

use fixtures::{
    TempDir, bytes, copy_program, fill_backlog, kill, limited, listen_only, read, read_to_end,
};
use rustix::fs::{FlockOperation, flock};
use rustix::net::SocketAddrUnix;
use rustix::process::Signal;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command as Program, Output, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use uds_dist_command_line::cookie::{Cookie, Source};
use uds_dist_command_line::etf::{Identity, Reader, Writer};
use uds_dist_command_line::handshake::proof;

/// The program.
const BINARY: &str = env!("CARGO_BIN_EXE_uds_dist");

const COOKIE: &str = "secret";

/// A command whose environment contains only the cookie and the directory.
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

/// Runs a program on a terminal. Returns the bytes that it prints there, and its exit code.
fn on_a_terminal(program: &mut Program) -> (Vec<u8>, Option<i32>) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use rustix::termios::{OptionalActions, OutputModes, tcgetattr, tcsetattr};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&master).expect("a terminal");
    unlockpt(&master).expect("a terminal");
    let path = ptsname(&master, Vec::new()).expect("a terminal");
    let path = OsStr::from_bytes(path.as_bytes());
    let terminal = fs::File::options().read(true).write(true).open(path);
    let terminal = terminal.expect("a terminal");
    let mut modes = tcgetattr(&terminal).expect("a terminal");
    modes.output_modes -= OutputModes::OPOST;
    tcsetattr(&terminal, OptionalActions::Now, &modes).expect("a terminal");
    let mut child = program.stdout(terminal).spawn().expect("it starts");
    // Without this, our own descriptor would keep the terminal open.
    program.stdout(Stdio::null());
    let mut output = Vec::new();
    let end = fs::File::from(master).read_to_end(&mut output);
    assert_eq!(end.map_err(|error| error.raw_os_error()), Err(Some(5))); // EIO
    (output, child.wait().expect("it ends").code())
}

/// Asserts that a command has failed with this code, and with one line that contains all these words.
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

/// Plays a node called `n`, for one connection.
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

    /// A peer that performs the handshake correctly and then runs the script.
    fn connected(script: impl FnOnce(&mut UnixStream) + Send + 'static) -> Peer {
        Peer::new(|stream| {
            shake_hands(stream, |challenge| proof(&cookie(), challenge).to_vec());
            script(stream);
        })
    }

    /// Runs a command against this peer.
    fn asked(self, arguments: &[&str]) -> Output {
        let output = run(&self.directory, arguments);
        self.join();
        output
    }

    /// The same with a terminal as standard output. Returns the output and the exit code.
    fn asked_on_a_terminal(self, arguments: &[&str]) -> (Vec<u8>, Option<i32>) {
        let asked = on_a_terminal(&mut command(&self.directory, arguments));
        self.join();
        asked
    }

    fn join(self) {
        self.thread
            .join()
            .expect("the peer has seen what it should");
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

/// Performs the handshake up to the answer to the command's challenge.
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

/// Receives the next message that is not a tick.
fn receive_frame(stream: &mut UnixStream) -> Vec<u8> {
    loop {
        let head = read(stream, 4);
        match u32::from_be_bytes(head.try_into().expect("4 bytes")) {
            0 => (),
            length => return read(stream, length as usize),
        }
    }
}

/// A message with this term to the command's process.
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

/// Splits each line of a table into words.
fn rows(output: &Output) -> Vec<Vec<String>> {
    let table = String::from_utf8(output.stdout.clone()).expect("a text");
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect();
    table.lines().map(words).collect()
}

fn our_uid() -> String {
    rustix::process::geteuid().as_raw().to_string()
}

/// Scripts read nothing from standard output, and people are told where it has looked.
#[test]
fn an_empty_directory_is_named() {
    let directory = TempDir::new();
    let shown = directory.path("").display().to_string();
    let shown = shown.trim_end_matches('/');
    let nobody = format!(
        "uds_dist: no node has a socket in {shown}; name its socket_dir with --dir or UDS_DIST_DIR\n"
    );
    let seen = |arguments: &[&str]| {
        let mut program = command(&directory, arguments);
        let output = program.current_dir(directory.path("")).output();
        let output = output.expect("it starts");
        assert_eq!(output.status.code(), Some(0));
        let texts = [output.stdout, output.stderr];
        texts.map(|bytes| String::from_utf8(bytes).expect("a text"))
    };
    assert_eq!(seen(&["names"]), ["", &nobody]);
    assert_eq!(seen(&["names", "--dir", "."]), ["", &nobody]);
    assert_eq!(seen(&["names", "-q"]), ["", ""]);
    assert_eq!(seen(&["names", "--json"]), ["[]\n", ""]);
}

#[test]
fn names_are_listed_with_what_is_known_of_them() {
    let directory = TempDir::new();
    let _up = UnixListener::bind(directory.path("up.sock")).expect("a socket");
    drop(UnixListener::bind(directory.path("dead.sock")).expect("a socket"));
    fs::write(directory.path("file.sock"), "").expect("a file");
    let before = utc("-1 day");
    let rows = rows(&run(&directory, &["names"]));
    assert_eq!(rows[0], ["NAME", "PID", "USER", "SINCE", "STATE"]);
    assert_eq!(rows[1], ["dead", "-", "-", "-", "stale"]);
    let (pid, since) = (std::process::id().to_string(), &rows[2][3]);
    assert_eq!(rows[2], ["up", &pid, &our_user(), since, "up"]);
    assert!(before < *since && *since <= utc("now"), "{since}");
    let output = run(&directory, &["names", "--json"]);
    let expected = format!(
        r#"[{{"name":"dead","pid":null,"uid":null,"user":null,"since":null,"state":"stale"}},{{"name":"up","pid":{pid},"uid":{},"user":"{}","since":"{since}","state":"up"}}]"#,
        our_uid(),
        our_user(),
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected + "\n");
    assert_eq!(output.status.code(), Some(0));
}

/// A time in the format of `names`.
fn utc(time: &str) -> String {
    let mut program = Program::new("date");
    let date = program.args(["-u", "-d", time, "+%Y-%m-%dT%H:%M:%SZ"]);
    text(&date.output().expect("it starts").stdout)
        .trim()
        .into()
}

fn our_user() -> String {
    let output = Program::new("id").arg("-un").output().expect("it starts");
    text(&output.stdout).trim().into()
}

/// A node cannot be reached any more if its socket file was removed, or replaced by that of another node.
#[cfg(target_os = "linux")]
#[test]
fn nodes_whose_file_is_gone_are_marked() {
    let directory = TempDir::new();
    let listen = |name: &str| UnixListener::bind(directory.path(name)).expect("a socket");
    let remove = |name: &str| fs::remove_file(directory.path(name)).expect("a file");
    let _removed = listen("removed.sock");
    remove("removed.sock");
    let _first = listen("replaced.sock");
    remove("replaced.sock");
    let _second = listen("replaced.sock");
    let _killed = listen("killed.sock");
    remove("killed.sock");
    drop(listen("killed.sock"));
    let seen = |output: &Output| -> Vec<_> {
        let rows = rows(output).into_iter().skip(1);
        rows.map(|row| [row[0].clone(), row[1].clone(), row[4].clone()])
            .collect()
    };
    let pid = &std::process::id().to_string()[..];
    let expected = [
        ["killed", "-", "stale"],
        ["killed", pid, "gone"],
        ["removed", pid, "gone"],
        ["replaced", pid, "up"],
        ["replaced", pid, "gone"],
    ];
    assert_eq!(seen(&run(&directory, &["names"])), expected);
    let link = directory.path("link");
    symlink(directory.path(""), &link).expect("a link");
    let through_link = run(&directory, &["names", "--dir", &link.to_string_lossy()]);
    assert_eq!(seen(&through_link), expected);
    let names = run(&directory, &["names", "-q"]).stdout;
    assert_eq!(names, b"killed\nremoved\nreplaced\n");
}

/// A sidecar hides its descriptors even from its own user, but the kernel tells who holds the lock file.
#[cfg(target_os = "linux")]
#[test]
fn a_node_whose_file_is_gone_is_found_by_its_lock() {
    const NOBODY: u32 = 65534;
    if our_uid() != "0" {
        return; // Only root can run a command as another user.
    }
    let directory = TempDir::new();
    fs::set_permissions(directory.path(""), Permissions::from_mode(0o755)).expect("a directory");
    let _socket = UnixListener::bind(directory.path("n.sock")).expect("a socket");
    fs::remove_file(directory.path("n.sock")).expect("a file");
    let copy = directory.path("uds_dist");
    copy_program(BINARY, &copy); // into a directory that everybody can enter
    let row = || {
        let mut program = Program::new(&copy);
        let output = program.arg("names").arg("--dir").arg(directory.path(""));
        let output = output.env_clear().uid(NOBODY).output().expect("it starts");
        rows(&output).remove(1)
    };
    assert_eq!(row(), ["n", "-", "root", "-", "gone"]);
    let lock = fs::File::create(directory.path("n.sock.lock")).expect("a file");
    flock(&lock, FlockOperation::LockExclusive).expect("a lock");
    let (pid, found) = (std::process::id().to_string(), row());
    assert_eq!(found, ["n", &pid, "root", &found[3], "gone"]);
    assert_ne!(found[3], "-");
}

/// On a terminal, columns are aligned and states are coloured, unless the user turns colours off.
#[test]
fn a_table_is_made_for_who_reads_it() {
    let directory = TempDir::new();
    let _up = UnixListener::bind(directory.path("up.sock")).expect("a socket");
    drop(UnixListener::bind(directory.path("long_dead.sock")).expect("a socket"));
    let output = run(&directory, &["names"]);
    for line in text(&output.stdout).lines() {
        assert_eq!(line.split('\t').count(), 5, "{line:?}");
        assert!(!line.contains([' ', '\x1b']), "{line:?}");
    }
    let on_terminal = |variables: &[(&str, &str)]| {
        let mut program = command(&directory, &["names"]);
        let (output, code) = on_a_terminal(program.envs(variables.iter().copied()));
        assert_eq!(code, Some(0));
        String::from_utf8(output).expect("a text")
    };
    let colored = on_terminal(&[("TERM", "xterm"), ("NO_COLOR", "")]);
    assert!(colored.contains("\x1b[31mstale\x1b[0m\n"), "{colored:?}");
    assert!(colored.contains("\x1b[32mup\x1b[0m\n"), "{colored:?}");
    let plain = on_terminal(&[("TERM", "xterm"), ("NO_COLOR", "1")]);
    assert_eq!(plain, on_terminal(&[("TERM", "dumb")]));
    assert_eq!(plain, on_terminal(&[]));
    let ends: Vec<_> = plain
        .lines()
        .map(|line| line.rfind("  ").expect("columns"))
        .collect();
    assert!(ends.windows(2).all(|pair| pair[0] == pair[1]), "{plain}");
}

/// Files that others create in the directory can neither block the command nor mislead it.
#[test]
fn names_trusts_nobody_who_can_create_files() {
    let directory = TempDir::new();
    let _listeners = ["fifo", "forged", "long", "zero"]
        .map(|name| UnixListener::bind(directory.path(&format!("{name}.sock"))).expect("a socket"));
    let fifo = |name: &str| {
        let path = directory.path(name);
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &path, kind, 0o600.into(), 0).expect("a FIFO");
    };
    fifo("fifo.sock.lock");
    symlink("/dev/zero", directory.path("zero.sock.lock")).expect("a link");
    fs::write(directory.path("forged.sock.lock"), "1\n").expect("a file");
    let long = fs::File::create(directory.path("long.sock.lock")).expect("a file");
    long.set_len(1 << 40).expect("a file with a hole");
    // None of these is the socket of a node.
    fifo("pipe.sock");
    fs::create_dir(directory.path("directory.sock")).expect("a directory");
    symlink("/dev/zero", directory.path("device.sock")).expect("a link");
    symlink(directory.path("fifo.sock"), directory.path("link.sock")).expect("a link");
    let _datagrams = UnixDatagram::bind(directory.path("datagrams.sock")).expect("a socket");

    let output = in_little_memory(&directory, 64, &["names"]);
    let rows = rows(&output);
    let pid = std::process::id().to_string();
    let expected = ["fifo", "forged", "long", "zero"];
    assert_eq!(rows.len(), 1 + expected.len());
    for (row, name) in rows[1..].iter().zip(expected) {
        assert_eq!(
            (&row[..2], &row[4]),
            (&[name.into(), pid.clone()][..], &"up".into())
        );
    }
}

/// Runs a command with a memory limit in MiB.
fn in_little_memory(directory: &TempDir, most: u32, arguments: &[&str]) -> Output {
    let script = format!("ulimit -v {} && exec \"$0\" \"$@\"", most * 1024);
    let mut program = Program::new("/bin/sh");
    program
        .args(["-c", &script, BINARY])
        .args(arguments)
        .env("UDS_DIST_DIR", directory.path(""))
        .env("ERLANG_COOKIE", COOKIE)
        .env_remove("RELEASE_COOKIE");
    program.output().expect("it starts")
}

#[test]
fn names_of_any_bytes_are_one_row_each() {
    let directory = TempDir::new();
    let names: [(&[u8], &str, &str); 8] = [
        (b"\x1b[2J\r", r"\x1b[2J\r", r"\u001b[2J\r"),
        (
            b"a\nroot  1  0  up",
            r"a\nroot  1  0  up",
            r"a\nroot  1  0  up",
        ),
        (b"back\\slash", r"back\\slash", r"back\\slash"),
        ("c1\u{9b}2J".as_bytes(), r"c1\x{9b}2J", r"c1\u009b2J"),
        ("gr\u{fc}n".as_bytes(), "gr\u{fc}n", "gr\u{fc}n"),
        (b"latin1\xfc", r"latin1\xfc", r"latin1\\xfc"),
        (b"tab\t", r"tab\t", r"tab\t"),
        (
            "turned\u{202e}".as_bytes(),
            r"turned\x{202e}",
            r"turned\u202e",
        ),
    ];
    let _listeners = names.map(|(name, ..)| {
        let file = [name, b".sock"].concat();
        let path = directory.path("").join(OsStr::from_bytes(&file));
        UnixListener::bind(path).expect("a socket")
    });
    let output = run(&directory, &["names"]);
    let table = String::from_utf8(output.stdout).expect("a text");
    let rows: Vec<_> = table.lines().skip(1).collect();
    assert_eq!(rows.len(), names.len(), "{table}");
    for (row, (_, shown, _)) in rows.iter().zip(names) {
        assert!(
            row.starts_with(&format!("{shown}\t")),
            "{shown:?} in {row:?}"
        );
    }
    let output = run(&directory, &["names", "--json"]);
    let json = String::from_utf8(output.stdout).expect("a text");
    assert!(!json.trim_end().contains(char::is_control), "{json:?}");
    for (_, _, name) in names {
        let object = format!(r#"{{"name":"{name}","pid""#);
        assert!(json.contains(&object), "{object} in {json}");
    }
}

/// No node can listen at such a path.
#[cfg(target_os = "linux")]
#[test]
fn sockets_at_paths_that_are_too_long_are_left_out() {
    let directory = TempDir::new();
    let deep = directory.path(&"d".repeat(90));
    fs::create_dir(&deep).expect("a directory");
    let opened = fs::File::open(&deep).expect("a directory");
    let short = format!("/proc/self/fd/{}/a.sock", opened.as_raw_fd());
    let _listener = UnixListener::bind(short).expect("a socket");
    let output = run(&directory, &["names", "--dir", &deep.to_string_lossy()]);
    assert_eq!(text(&output.stdout), "");
    assert!(text(&output.stderr).contains("no node has a socket in"));
    assert_eq!(output.status.code(), Some(0));
}

/// This holds for any locale, and for bytes that are not valid text.
#[test]
fn the_bytes_of_a_path_stay_what_they_are() {
    for name in [&b"jos\xc3\xa9"[..], b"jos\xe9"] {
        let parent = TempDir::new();
        let directory = parent.path("").join(OsStr::from_bytes(name));
        fs::create_dir(&directory).expect("a directory");
        let _listener = UnixListener::bind(directory.join("n.sock")).expect("a socket");
        for locale in ["C", "C.UTF-8"] {
            let mut by_variable = command(&parent, &["names"]);
            by_variable.env("UDS_DIST_DIR", &directory);
            let words = [
                OsStr::new("names"),
                OsStr::new("--dir"),
                directory.as_os_str(),
            ];
            let mut by_argument = command(&parent, &words);
            for command in [&mut by_variable, &mut by_argument] {
                let output = command.env("LC_ALL", locale).output().expect("it starts");
                assert_eq!(rows(&output)[1][0], "n");
            }
        }
    }
}

/// The command waits for all of them at the same time, and not for one after the other.
#[test]
fn nodes_that_accept_nobody_are_asked_together() {
    let directory = TempDir::new();
    let full: Vec<_> = (0..20)
        .map(|number| {
            let path = directory.path(&format!("full{number:02}.sock"));
            let address = SocketAddrUnix::new(&path).expect("an address");
            let listener = listen_only(&address, 1);
            (fill_backlog(&address), listener)
        })
        .collect();
    let begin = Instant::now();
    let output = run(&directory, &["names"]);
    let time = begin.elapsed();
    let rows = rows(&output);
    assert_eq!(rows.len(), 1 + full.len());
    for row in &rows[1..] {
        assert_eq!(row[1..], ["-", "-", "-", "busy"]);
    }
    assert!(time < Duration::from_secs(5), "{time:?}");
}

#[test]
fn a_node_that_accepts_in_time_is_up() {
    let directory = TempDir::new();
    let address = SocketAddrUnix::new(directory.path("a.sock")).expect("an address");
    let listener = UnixListener::from(listen_only(&address, 1));
    let _clients = fill_backlog(&address);
    let asked = command(&directory, &["names"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    listener.set_nonblocking(false).expect("a socket");
    let (_peer, _) = listener.accept().expect("a connection");
    let output = asked.wait_with_output().expect("it ends");
    assert_eq!(rows(&output)[1][4], "up");
}

#[cfg(target_os = "linux")]
#[test]
fn abstract_names_are_listed() {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::SocketAddr;
    let namespace = format!("uds_dist_test.{}", std::process::id());
    // The name of the second one contains a line that looks like another node in the kernel's table.
    let line = format!("x\n0: 2 0 00010000 0001 01 1 @{namespace}/forged");
    let _listeners = ["n", &line].map(|name| {
        let name = format!("{namespace}/{name}");
        let address = SocketAddr::from_abstract_name(name).expect("an address");
        UnixListener::bind_addr(&address).expect("a socket")
    });
    let directory = format!("@{namespace}");
    let output = run(&TempDir::new(), &["names", "--dir", &directory]);
    let rows = rows(&output);
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[1][..2], ["n", &std::process::id().to_string()]);
    assert_eq!(rows[1][4], "up");
}

/// The node comes up while the command waits.
#[test]
fn waiting_until_a_node_is_there() {
    let directory = TempDir::new();
    let waiting = command(&directory, &["ping", "n", "--wait", "10s"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let listener = UnixListener::bind(directory.path("n.sock")).expect("a socket");
    // The command keeps waiting if a peer hangs up, like a node that goes down.
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

/// A command does not keep waiting for a node that will not come.
#[test]
fn waiting_ends_with_the_process() {
    let directory = TempDir::new();
    let mut process = Program::new("sleep").arg("60").spawn().expect("it starts");
    let pid = process.id().to_string();
    let waiting = command(&directory, &["ping", "n", "--wait", "60s", "--pid", &pid])
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    process.kill().expect("a process");
    process.wait().expect("a process");
    let output = waiting.wait_with_output().expect("it ends");
    let words = ["is not there", &format!("; process {pid} has ended")];
    assert_fails(&output, 1, &words);
    for wrong in ["0", "-1", "abc", "", "2147483648", "4294967296"] {
        let output = run(&directory, &["ping", "n", &format!("--pid={wrong}")]);
        assert_eq!(output.status.code(), Some(64));
        let stderr = text(&output.stderr);
        assert!(stderr.contains("--pid <PID>"), "{stderr}");
        assert!(
            stderr.contains("it must be a process id, such as 4711"),
            "{stderr}"
        );
    }
}

#[test]
fn a_peer_that_answers_is_there() {
    let peer = Peer::connected(|stream| {
        let asked = receive_frame(stream);
        let mut control = Reader::new(&asked[1..]).expect("a term");
        assert_eq!(control.tuple("control"), Ok(4));
        assert_eq!(control.integer("operation"), Ok(6));
        // Messages that every node can receive, and that have nothing to do with the request.
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

/// The command asks again and again, on a new connection each time, even if the node goes down meanwhile.
#[test]
fn waiting_until_a_node_is_ready() {
    let directory = TempDir::new();
    let listener = UnixListener::bind(directory.path("n.sock")).expect("a socket");
    let waiting = command(
        &directory,
        &["ping", "n", "--app", "my_app", "--wait", "10s", "-v"],
    )
    .stdout(Stdio::piped())
    .stderr(Stdio::piped())
    .spawn()
    .expect("it starts");
    let binary = |text: &[u8]| [&b"m\0\0\0"[..], &[text.len() as u8], text].concat();
    for answer in [Some(&b"it does not run\x1b"[..]), None, Some(b"")] {
        let (stream, _) = listener.accept().expect("a connection");
        let mut stream = limited(stream);
        shake_hands(&mut stream, |challenge| {
            proof(&cookie(), challenge).to_vec()
        });
        receive_frame(&mut stream);
        send_frame(&mut stream, &message(yes));
        let asked = receive_frame(&mut stream);
        assert!(String::from_utf8_lossy(&asked).contains("<<\"my_app\"/utf8>>"));
        if let Some(answer) = answer {
            send_frame(&mut stream, &result(&binary(answer)));
            read_until_reset(&mut stream);
        }
    }
    let output = waiting.wait_with_output().expect("it ends");
    assert_eq!(output.stdout, b"pong from n@h\n");
    let steps = text(&output.stderr);
    assert!(
        steps.contains("waiting: n@h answers, but it does not run\\x1b\n"),
        "{steps}"
    );
    assert!(
        steps.contains("waiting: n@h closed the connection"),
        "{steps}"
    );
}

#[test]
fn more_or_less_is_said_of_what_is_done() {
    let script = |stream: &mut UnixStream| {
        receive_frame(stream);
        send_frame(stream, &message(yes));
    };
    let output = Peer::connected(script).asked(&["ping", "n", "-q"]);
    assert_eq!((text(&output.stdout), text(&output.stderr)), ("", ""));
    assert_eq!(output.status.code(), Some(0));
    let output = Peer::connected(script).asked(&["ping", "n", "-v"]);
    assert_eq!(output.stdout, b"pong from n@h\n");
    let steps = text(&output.stderr);
    let us = format!("process {} of uid {}", std::process::id(), our_uid());
    for word in [
        "/n.sock",
        "ERLANG_COOKIE",
        "connected to n@h as x@h",
        &us,
        "done after",
    ] {
        assert!(steps.contains(word), "{word} is not in {steps}");
    }
    // -v does not change errors.
    assert_fails(
        &run(&TempDir::new(), &["-q", "ping", "n"]),
        1,
        &["is not there"],
    );
    let directory = TempDir::new();
    let _listener = UnixListener::bind(directory.path("n.sock")).expect("a socket");
    assert_eq!(run(&directory, &["names", "-q"]).stdout, b"n\n");
}

/// A node admits its own user unless its allowed_uids leaves that out.
#[test]
fn a_peer_that_hangs_up_at_once() {
    let peer = Peer::new(|_| ());
    let output = peer.asked(&["ping", "n"]);
    let words = [
        "closed the connection without an answer: it is starting or going down, or",
        &format!(
            "its allowed_uids leaves out uid {}",
            rustix::process::geteuid().as_raw()
        ),
    ];
    assert_fails(&output, 2, &words);
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

/// The other side may close the connection without reading our bytes.
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
    assert_fails(&peer.asked(&["ping", "n"]), 2, &["closed the connection"]);
}

#[test]
fn a_peer_that_refuses() {
    for status in ["nok", "alive", "ok", "ok_simultaneous"] {
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
fn a_peer_with_a_list_of_whom_it_allows() {
    let peer = Peer::new(|stream| {
        receive(stream);
        send(stream, b"snot_allowed");
        read_to_end(stream);
    });
    let words = ["its list of allowed nodes", "net_kernel:allow(['"];
    assert_fails(&peer.asked(&["ping", "n"]), 2, &words);
}

#[test]
fn a_peer_of_another_name() {
    for (asked, name) in [("n", "m@h"), ("n@g", "n@h"), ("n", "nn@h")] {
        let peer = Peer::new(move |stream| {
            receive(stream);
            send(stream, NAMED);
            send(stream, &challenge(name));
            // The peer has not received our proof yet.
            assert_eq!(read_to_end(stream), b"");
        });
        assert_fails(&peer.asked(&["ping", asked]), 2, &["is another node", name]);
    }
}

/// The peer keeps listening after it has refused the proof.
#[test]
fn a_peer_with_another_cookie() {
    let directory = TempDir::new();
    let listener = UnixListener::bind(directory.path("n.sock")).expect("a socket");
    let peer = thread::spawn(move || {
        refuse_proof(&mut limited(listener.accept().expect("a connection").0));
        listener
    });
    let output = run(&directory, &["ping", "n"]);
    let words = [
        "cookie mismatch",
        "uses the one from ERLANG_COOKIE;",
        "--cookie-file",
    ];
    assert_fails(&output, 2, &words);
    peer.join().expect("a connection");
}

fn refuse_proof(stream: &mut UnixStream) {
    receive(stream);
    send(stream, NAMED);
    send(stream, &challenge("n@h"));
    receive(stream);
}

/// The peer does the same as if it refused the cookie, but also stops listening.
#[test]
fn a_peer_that_goes_down_when_it_should_check_the_cookie() {
    let peer = Peer::new(refuse_proof);
    assert_fails(
        &peer.asked(&["ping", "n"]),
        4,
        &["went down during the handshake"],
    );
    let peer = Peer::new(refuse_proof);
    let output = peer.asked(&["ping", "n", "--wait", "200ms"]);
    assert_fails(&output, 1, &["is not there"]);
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
    let output = peer.asked(&["rpc", "n", "m", "f", "--timeout", "1s"]);
    assert_fails(&output, 3, &["did not answer in time", "--timeout"]);
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

/// No memory is allocated for a length that was only announced, so a memory limit below it does not matter.
#[test]
fn a_long_message_that_does_not_come() {
    let peer = Peer::connected(|stream| {
        receive_frame(stream);
        let announced = 250u32 << 20;
        stream
            .write_all(&announced.to_be_bytes())
            .expect("somebody who reads");
    });
    let output = in_little_memory(&peer.directory, 64, &["rpc", "n", "m", "f"]);
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
        (b"\x44anything".to_vec(), "sent an invalid message"),
        (b"p".to_vec(), "sent an invalid message"),
        (b"p\x83h".to_vec(), "sent an invalid message"),
        (
            b"p\x83h\x02w\x01aw\x01b".to_vec(),
            "sent an invalid message",
        ),
        (message(|_| ())[..20].to_vec(), "sent an invalid message"),
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

/// The names of the fields take much less memory in the message than in a vector.
#[test]
fn a_record_of_very_many_fields_takes_little_memory() {
    const FIELDS: usize = 3_000_000;
    let head = [&b"C"[..], &(FIELDS as u32).to_be_bytes(), b"\0w\x01mw\x01r"].concat();
    let record = [&head[..], &b"w\0".repeat(FIELDS), &b"j".repeat(FIELDS)].concat();
    let peer = Peer::connected(move |stream| {
        receive_frame(stream);
        send_frame(stream, &result(&record));
    });
    let arguments = ["rpc", "n", "m", "f", "--json", "--timeout", "60s"];
    let output = in_little_memory(&peer.directory, 112, &arguments);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(output.stdout.len(), FIELDS * 6 + 2);
}

/// The time limit applies to the whole command.
#[test]
fn digits_take_no_longer_than_the_time_limit() {
    let peer = Peer::connected(|stream| {
        receive_frame(stream);
        let integer = [&b"o\0\x08\0\0\0"[..], &[255; 1 << 19]].concat();
        send_frame(stream, &result(&integer));
    });
    let begin = Instant::now();
    let output = peer.asked(&["rpc", "n", "m", "f", "--json", "--timeout", "300ms"]);
    assert_fails(&output, 3, &["takes too long", "--timeout"]);
    let time = begin.elapsed();
    assert!(time < Duration::from_secs(5), "{time:?}");
}

// --- control characters --------------------------------------------------------------------------

/// Text that contains three ways to move the cursor.
const HOSTILE: &[u8] = b"\x1b[2J a\tb\n \xc2\x9b2J \x7f\xff.";
const SHOWN: &str = "\\x1b[2J a\tb\n \\x{9b}2J \\x7f\\xff.";

fn says(stream: &mut UnixStream, kind: &str, bytes: &[u8]) {
    let term = |out: &mut Writer<'_>| {
        out.tuple(2).atom(kind).binary(bytes);
    };
    send_frame(stream, &message(term));
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("a text")
}

#[test]
fn exceptions_cannot_control_a_terminal() {
    let peer = Peer::connected(|stream| {
        receive_frame(stream);
        says(stream, "raised", HOSTILE);
    });
    let output = peer.asked(&["eval", "n", "1"]);
    assert_eq!(text(&output.stderr), format!("{SHOWN}\n"));
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_very_long_exception_is_cut() {
    let peer = Peer::connected(|stream| {
        receive_frame(stream);
        says(stream, "raised", &b"x".repeat((1 << 20) + 7));
    });
    let output = peer.asked(&["eval", "n", "1"]);
    let expected = format!("{}\n... and 7 bytes more\n", "x".repeat(1 << 20));
    assert!(output.stderr == expected.as_bytes());
}

#[test]
fn reasons_cannot_control_a_terminal() {
    let peer = Peer::connected(|stream| {
        receive_frame(stream);
        let mut bytes = vec![112];
        let mut out = Writer::new(&mut bytes);
        let out = out.tuple(5).integer(31).integer(1).integer(1).integer(0);
        out.atom("\x1b[2J\n\u{9b}");
        send_frame(stream, &bytes);
        read_until_reset(stream);
    });
    let output = peer.asked(&["rpc", "n", "m", "f"]);
    assert_fails(&output, 4, &[r"could not start the call: \x1b[2J\n\x{9b}"]);
}

/// Output of the called code is not changed on standard output, not even on a terminal. On standard error, it is
/// escaped, because it is mixed with our own lines.
#[test]
fn printed_text_is_escaped_beside_what_we_say() {
    let script = |stream: &mut UnixStream| {
        receive_frame(stream);
        says(stream, "output", HOSTILE);
        send_frame(stream, &result(b"m\0\0\0\x02ok"));
    };
    let output = Peer::connected(script).asked(&["rpc", "n", "m", "f"]);
    assert_eq!(output.stdout, [HOSTILE, b"ok\n"].concat());
    let output = Peer::connected(script).asked(&["rpc", "n", "m", "f", "--json"]);
    assert_eq!(text(&output.stderr), SHOWN);
    let (output, code) = Peer::connected(script).asked_on_a_terminal(&["rpc", "n", "m", "f"]);
    assert_eq!(output, [HOSTILE, b"ok\n"].concat());
    assert_eq!(code, Some(0));
}

#[test]
fn results_cannot_control_a_terminal() {
    let script = |stream: &mut UnixStream| {
        receive_frame(stream);
        let length = (HOSTILE.len() as u32).to_be_bytes();
        send_frame(stream, &result(&[b"m", &length[..], HOSTILE].concat()));
    };
    for arguments in [&["rpc", "n", "m", "f"][..], &["eval", "n", "1"]] {
        let (output, _) = Peer::connected(script).asked_on_a_terminal(arguments);
        assert_eq!(text(&output), format!("{SHOWN}\n"));
        let output = Peer::connected(script).asked(arguments);
        assert_eq!(output.stdout, [HOSTILE, b"\n"].concat());
    }
    // Text that does not come from the user's code is always escaped.
    let output = Peer::connected(script).asked(&["pid", "n"]);
    assert_eq!(text(&output.stdout), SHOWN);
    let c1 = b"m\0\0\0\x03\xc2\x9bx";
    let peer = Peer::connected(|stream| {
        receive_frame(stream);
        send_frame(stream, &result(c1));
    });
    let output = peer.asked(&["rpc", "n", "m", "f", "--json"]);
    assert_eq!(text(&output.stdout), "\"\\u009bx\"\n");
}

/// Answers of any form, and messages that are not answers.
#[test]
fn answers_of_a_peer_to_our_own_questions() {
    let sends = |term: &'static [u8]| {
        Peer::connected(move |stream| {
            receive_frame(stream);
            send_frame(stream, &result(term));
        })
    };
    for command in ["status", "peers"] {
        let ask = [command, "n"];
        let why = b"m\0\0\0\x08it is ol";
        assert_fails(
            &sends(why).asked(&ask),
            7,
            &["n@h cannot answer, since it is ol"],
        );
        assert_fails(
            &sends(b"a\x07").asked(&ask),
            4,
            &["something other than an answer"],
        );
        assert_fails(
            &sends(b"l\xff\xff\xff\xffa\x07").asked(&ask),
            4,
            &["n@h sent an invalid answer"],
        );
        let raises = Peer::connected(|stream| {
            receive_frame(stream);
            says(stream, "raised", b"** ended: {undef,\n      [{m,f}]}\n");
        });
        assert_fails(
            &raises.asked(&ask),
            7,
            &["n@h could not answer: ** ended: {undef, [{m,f}]}\n"],
        );
    }
    // A peer whose name would move the cursor: [[{node, <<"\e[2J">>}]].
    let hostile = b"l\0\0\0\x01l\0\0\0\x01h\x02w\x04nodem\0\0\0\x04\x1b[2Jjj";
    let table = sends(hostile).asked(&["peers", "n"]);
    assert!(text(&table.stdout).contains("\n\\x1b[2J\t-\t"), "{table:?}");
    let json = sends(hostile).asked(&["peers", "n", "--json"]);
    assert_eq!(text(&json.stdout), "[{\"node\":\"\\u001b[2J\"}]\n");
    let names = sends(hostile).asked(&["peers", "n", "-q"]);
    assert_eq!(text(&names.stdout), "\\x1b[2J\n");
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

// --- help and version ----------------------------------------------------------------------------

/// Exit code, output and errors of a command that needs no node.
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
fn help_of_a_command() {
    let (status, long, stderr) = run_alone(&["help", "rpc"]);
    assert_eq!((status, &stderr[..]), (Some(0), ""));
    assert!(long.contains("Charlists are lists"), "{long}");
    assert_eq!(run_alone(&["rpc", "--help"]).1, long);
    assert!(run_alone(&["rpc", "-h"]).1.len() < long.len());
    let (status, all, _) = run_alone(&["help"]);
    assert_eq!(status, Some(0));
    assert!(!all.contains("sidecar"), "{all}");
    assert_eq!(run_alone(&["help", "reboot"]).0, Some(64));
}

#[test]
fn unknown_arguments_are_refused() {
    for arguments in [&["--loud"][..], &["sidecar"], &[""]] {
        let (status, stdout, stderr) = run_alone(arguments);
        assert_eq!((status, &stdout[..]), (Some(64), ""));
        assert!(stderr.starts_with("error: "), "{stderr}");
        assert!(stderr.contains("Usage:"), "{stderr}");
    }
    let not_a_text = command(&TempDir::new(), &[OsStr::from_bytes(b"\xff")]).output();
    assert_eq!(not_a_text.expect("it starts").status.code(), Some(64));
}

/// This happens with `| head -1`.
#[test]
fn output_that_nobody_reads_any_more_is_no_failure_to_talk_of() {
    let peer = Peer::connected(|stream| {
        receive_frame(stream);
        says(stream, "output", b"a line\n");
        read_until_reset(stream);
    });
    let alone = TempDir::new();
    let _listener = UnixListener::bind(alone.path("a.sock")).expect("a socket");
    for (directory, arguments) in [
        (&peer.directory, &["rpc", "n", "m", "f"][..]),
        (&alone, &["names"]),
        (&alone, &["--help"]),
        (&alone, &["--version"]),
    ] {
        let (ours, theirs) = UnixStream::pair().expect("a pipe");
        drop(ours);
        let output = command(directory, arguments)
            .stdout(OwnedFd::from(theirs))
            .output()
            .expect("it starts");
        assert_eq!(text(&output.stderr), "");
        assert_eq!(output.status.code(), Some(141), "{arguments:?}");
    }
    peer.join();
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
fn completions_are_written() {
    let directory = TempDir::new();
    let share = directory.path("share");
    write_docs::write(&share).expect("a directory");
    for file in [
        "bash-completion/completions/uds_dist",
        "zsh/site-functions/_uds_dist",
        "fish/vendor_completions.d/uds_dist.fish",
    ] {
        let text = fs::read_to_string(Path::new(&share).join(file)).expect("a file");
        assert!(text.contains("allow-uid"), "{file}");
    }
    let file = directory.path("file");
    fs::write(&file, "").expect("a file");
    write_docs::write(&file).expect_err("a file is no directory");
}

const PAGES: [&str; 9] = [
    "uds_dist",
    "uds_dist-eval",
    "uds_dist-names",
    "uds_dist-peers",
    "uds_dist-pid",
    "uds_dist-ping",
    "uds_dist-rpc",
    "uds_dist-status",
    "uds_dist-stop",
];

/// Each page has all sections, and refers to the others.
#[test]
fn a_manual_page_is_written_for_each_command() {
    let directory = TempDir::new();
    write_docs::write(&directory.path("share")).expect("a directory");
    let man = Path::new(&directory.path("share")).join("man/man1");
    let mut files: Vec<_> = fs::read_dir(&man)
        .expect("a directory")
        .map(|entry| {
            entry
                .expect("a file")
                .file_name()
                .into_string()
                .expect("a text")
        })
        .collect();
    files.sort();
    let mut expected = PAGES.map(|page| format!("{page}.1"));
    expected.sort();
    assert_eq!(files, expected);
    for page in PAGES {
        let text = fs::read_to_string(man.join(format!("{page}.1"))).expect("a file");
        let sections = [
            "NAME",
            "SYNOPSIS",
            "DESCRIPTION",
            "OPTIONS",
            "ENVIRONMENT",
            "FILES",
            "EXIT STATUS",
            "EXAMPLES",
            "SEE ALSO",
        ];
        let mut rest = &text[..];
        for section in sections {
            let heading = format!(".SH {section}\n");
            let after = rest.split_once(&heading);
            (_, rest) = after.unwrap_or_else(|| panic!("no {section} in {page}"));
        }
        for other in PAGES.iter().filter(|other| **other != page) {
            let reference = format!(".BR {} (1)", other.replace('-', "\\-"));
            assert!(rest.contains(&reference), "{other} is not in {page}");
        }
        let example = text.split_once(".SH EXAMPLES").expect("a section").1;
        assert!(example.contains(&page.replace('-', " ")), "{page}");
    }
}

/// Runs only if the tools are installed.
#[test]
fn manual_pages_are_what_formatters_expect() {
    let directory = TempDir::new();
    write_docs::write(&directory.path("share")).expect("a directory");
    for page in PAGES {
        let file = directory.path(&format!("share/man/man1/{page}.1"));
        let format = |tool: &str, arguments: &[&str]| match Program::new(tool)
            .args(arguments)
            .arg(&file)
            .output()
        {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            output => Some(output.expect("it starts")),
        };
        if let Some(output) = format("mandoc", &["-Tlint"]) {
            assert_eq!(text(&output.stdout), "", "{page}");
        }
        let groff = ["-t", "-man", "-ww", "-Tutf8", "-rLL=80n", "-P-cbou"];
        if let Some(output) = format("groff", &groff) {
            assert_eq!(text(&output.stderr), "", "{page}");
            for line in text(&output.stdout).lines() {
                assert!(line.chars().count() <= 80, "{page}: {line}");
            }
        }
    }
}

/// Tests the shells that are installed, at least bash.
#[test]
fn shells_complete_nodes_and_cookie_files() {
    let directory = TempDir::new();
    let share = directory.path("share");
    write_docs::write(&share).expect("a directory");
    fs::create_dir(directory.path("d")).expect("a directory");
    let _listeners = [
        "here.sock",
        "d/alpha.sock",
        "d/alto.sock",
        "d/beta.sock",
        "d/$(touch x).sock",
    ]
    .map(|name| UnixListener::bind(directory.path(name)).expect("a socket"));
    fs::write(directory.path("cookie_file"), "").expect("a file");

    let bash = r#"
        source share/bash-completion/completions/uds_dist
        set -- $1 "$2"
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
        _uds_dist_nodes "$1" "${!#}" "${COMP_WORDS[COMP_CWORD - 1]}" 2>/dev/null
        printf '%s\n' "${COMPREPLY[@]}""#;
    let fish = r#"
        set fish_complete_path
        source share/fish/vendor_completions.d/uds_dist.fish
        complete -C "$argv[1] $argv[2]" | string replace -r '\t.*' ''"#;
    // Runs a shell on a terminal of its own, in which compadd prints what would be shown.
    let set_up = r#"
        fpath=($PWD/share/zsh/site-functions $fpath)
        autoload -Uz compinit
        compinit -u -D
        bindkey '^I' complete-word
        compadd() {
            if [[ ${@[1,(i)(-|--)]} == *-(O|A|D)\ * ]]; then builtin compadd "$@"; return; fi
            local -a hits
            builtin compadd -A hits "$@"
            for hit in "${hits[@]}"; do print -r "HIT:$hit"; done
        }
        # What is typed before would be the terminal's own to edit.
        zle-line-init() { print -r READY }
        zle -N zle-line-init"#;
    fs::write(directory.path("share/set_up.zsh"), set_up).expect("a file");
    let zsh = r#"
        zmodload zsh/zpty
        zpty z zsh -f -i
        zpty -w z 'PS1=; source share/set_up.zsh'
        zpty -r z out '*READY*'
        zpty -n -w z "$1 $2"$'\t'
        zpty -n -w z $'\x15print -r EN""D\n'
        zpty -r z out '*END*'
        print -r -- "$out" | tr -d '\r' | sed -n 's/.*HIT://p'"#;
    // Bash splits such a word.
    let split = |words: &str| words.replace('=', " = ");
    let path = format!(
        "{}:{}",
        Path::new(BINARY).parent().expect("a directory").display(),
        std::env::var("PATH").expect("a path")
    );
    let completed = |shell: &str, script: &str, words: &str, word: &str| {
        let mut program = Program::new(shell);
        program.args(["-c", script]);
        if shell == "bash" {
            program.args(["bash", &split(words), word]);
        } else if shell == "zsh" {
            program.args(["zsh", words, word]);
        } else {
            program.args([words, word]);
        }
        let output = program
            .current_dir(directory.path(""))
            .env("PATH", &path)
            .env("TERM", "vt100")
            .env_remove("UDS_DIST_DIR")
            .output();
        match output {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            output => Some(text(&output.expect("it starts").stdout).trim().to_owned()),
        }
    };
    for (shell, script, dollar) in [
        ("bash", bash, r"\$\(touch\ x\)"),
        ("fish", fish, "$(touch x)"),
        ("zsh", zsh, r"\$\(touch\ x\)"),
    ] {
        let all = format!("{dollar}\nalpha\nalto\nbeta");
        for (words, word, expected) in [
            ("uds_dist ping", "", "here"),
            ("uds_dist ping --dir d", "", &all[..]),
            ("uds_dist -q rpc --timeout 5s --dir=d", "al", "alpha\nalto"),
            ("uds_dist stop --cookie-file", "coo", "cookie_file"),
            ("uds_dist ping --dir d beta", "al", ""),
            ("uds_dist ping --allow-uid", "roo", "root"),
        ] {
            match completed(shell, script, words, word) {
                Some(seen) => assert_eq!(seen, expected, "{shell}: {words} {word}"),
                None => assert_ne!(shell, "bash", "it is not there"),
            }
        }
    }
    // No code in a name was executed.
    assert_eq!(
        directory.names(),
        ["cookie_file", "d", "here.sock", "share"]
    );
}
