//! Bytes that a VM has written reach its peers, even if the VM ends before the sidecar has read them; and nothing
//! but its peers delays the end of a sidecar.

mod port;

use byteorder::{BigEndian, ReadBytesExt};
use port::*;
use rustix::process::Signal;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, ChildStdin, ChildStdout, Command as Program, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use uds_dist::port::codec::data_head;
use uds_dist::port::protocol::{Command, Report, WINDOW};

/// This is more than the sidecar reads before it acknowledges. So it notices that nobody reads its reports while there
/// is more input.
const COUNT: usize = WINDOW as usize * 3 / 4;

/// The pipes of a VM to its sidecar, which has connected to a peer as connection 1.
struct Vm {
    sidecar: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
    peer: UnixStream,
}

fn vm(program: &mut Program, directory: &TempDir) -> Vm {
    let path = directory.path("peer.sock");
    let listener = UnixListener::bind(&path).expect("a listener");
    let mut sidecar = program
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the sidecar starts");
    let mut stdin = sidecar.stdin.take().expect("a pipe");
    let mut stdout = sidecar.stdout.take().expect("a pipe");
    assert!(matches!(report(&mut stdout), Report::Hello { .. }));
    let mut packet = Vec::new();
    let address = path.as_os_str().as_encoded_bytes().to_vec();
    Command::Connect { conn: 1, address }.encode(&mut packet);
    stdin.write_all(&packet).expect("room");
    assert!(matches!(
        report(&mut stdout),
        Report::Connected { conn: 1, .. }
    ));
    let (peer, _) = listener.accept().expect("a connection");
    Vm {
        sidecar,
        stdin,
        stdout,
        peer,
    }
}

fn report(stdout: &mut ChildStdout) -> Report {
    let length = stdout.read_u32::<BigEndian>().expect("a packet");
    let mut body = vec![0; length as usize];
    stdout.read_exact(&mut body).expect("a packet");
    Report::decode(&body).expect("a packet of the protocol")
}

fn write(sent: &[u8], stdin: &mut ChildStdin) {
    for part in sent.chunks(16 << 10) {
        let head = data_head(1, part.len());
        stdin
            .write_all(&[&head[..], part].concat())
            .expect("a pipe of 1 MiB");
    }
}

#[test]
fn what_the_vm_wrote_before_it_ended_is_read_to_its_end() {
    let directory = TempDir::new();
    let mut vm = vm(&mut Program::new(BINARY), &directory);
    // The sidecar is stopped while the VM writes and ends.
    let pid = vm.sidecar.id();
    kill(pid, Signal::STOP).expect("a live process");
    let sent = bytes(1, COUNT);
    write(&sent, &mut vm.stdin);
    drop((vm.stdin, vm.stdout));
    kill(pid, Signal::CONT).expect("a live process");
    assert_same(&read_to_end(&mut limited(vm.peer)), &sent);
    assert!(vm.sidecar.wait().expect("a child").success());
}

/// The collector of a node's log may be stuck. The sidecar logs a line at its end if peers have not read everything.
#[test]
fn a_full_stderr_does_not_delay_the_end() {
    const LIMIT: Duration = Duration::from_secs(30);
    let directory = TempDir::new();
    let mut shell = Program::new("sh");
    // As much as a pipe holds.
    shell.args(["-c", "head -c 65536 /dev/zero >&2; exec \"$0\"", BINARY]);
    let mut vm = vm(shell.stderr(Stdio::piped()), &directory);
    write(&bytes(1, COUNT), &mut vm.stdin);
    drop((vm.stdin, vm.stdout));
    let start = Instant::now();
    let status = loop {
        match vm.sidecar.try_wait().expect("a child") {
            Some(status) => break status,
            None if start.elapsed() > LIMIT => {
                vm.sidecar.kill().expect("a child");
                panic!("the sidecar waits for somebody to read its stderr");
            }
            None => thread::sleep(Duration::from_millis(10)),
        }
    };
    assert!(status.success());
}
