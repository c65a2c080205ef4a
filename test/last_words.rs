//! Bytes that a VM has written reach its peers, even if the VM ends before the sidecar has read them.

mod port;

use byteorder::{BigEndian, ReadBytesExt};
use port::*;
use rustix::process::Signal;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::process::{Command as Program, Stdio};
use uds_dist::port::codec::data_head;
use uds_dist::port::protocol::{Command, Report, WINDOW};

/// This is more than the sidecar reads before it acknowledges. So it notices that nobody reads its reports while there
/// is more input.
const COUNT: usize = WINDOW as usize * 3 / 4;

#[test]
fn what_the_vm_wrote_before_it_ended_is_read_to_its_end() {
    let directory = TempDir::new();
    let path = directory.path("peer.sock");
    let listener = UnixListener::bind(&path).expect("a listener");
    let mut sidecar = Program::new(BINARY)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the sidecar starts");
    let mut stdin = sidecar.stdin.take().expect("a pipe");
    let mut stdout = sidecar.stdout.take().expect("a pipe");
    let mut report = || {
        let length = stdout.read_u32::<BigEndian>().expect("a packet");
        let mut body = vec![0; length as usize];
        stdout.read_exact(&mut body).expect("a packet");
        Report::decode(&body).expect("a packet of the protocol")
    };
    assert!(matches!(report(), Report::Hello { .. }));
    let mut packet = Vec::new();
    let address = path.as_os_str().as_encoded_bytes().to_vec();
    Command::Connect { conn: 1, address }.encode(&mut packet);
    stdin.write_all(&packet).expect("room");
    assert!(matches!(report(), Report::Connected { conn: 1, .. }));
    let (peer, _) = listener.accept().expect("a connection");

    // The sidecar is stopped while the VM writes and ends.
    let pid = sidecar.id();
    kill(pid, Signal::STOP).expect("a live process");
    let sent = bytes(1, COUNT);
    for part in sent.chunks(16 << 10) {
        let head = data_head(1, part.len());
        stdin
            .write_all(&[&head[..], part].concat())
            .expect("a pipe of 1 MiB");
    }
    drop((stdin, stdout));
    kill(pid, Signal::CONT).expect("a live process");
    assert_same(&read_to_end(&mut limited(peer)), &sent);
    assert!(sidecar.wait().expect("a child").success());
}
