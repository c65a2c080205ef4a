//! Sockets that are handed over to the VM after the handshake: completely, in order, and to no other process.

mod port;

use port::*;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use rustix::process::Signal;
use std::ffi::OsStr;
use std::io::{ErrorKind, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread;
use std::time::Instant;
use uds_dist::address::Address;
use uds_dist::channel::DEADLINE;
use uds_dist::failure::Reason;
use uds_dist::ids::ConnId;
use uds_dist::os;
use uds_dist::port::protocol::Report;

/// A listening sidecar, the VM's end of its channel, and the address for peers.
struct Vm {
    sidecar: Sidecar,
    channel: UnixStream,
    directory: TempDir,
}

impl Vm {
    fn start() -> Vm {
        let directory = TempDir::new();
        let mut sidecar = Sidecar::start();
        let address = sidecar.open_channel(std::process::id(), directory.root());
        let channel = enter(&address).expect("the channel");
        sidecar.listen(directory.path("a.sock"));
        Vm {
            sidecar,
            channel,
            directory,
        }
    }

    /// Accepts a connection. Returns it with its peer.
    fn peer(&mut self) -> (ConnId, UnixStream) {
        let peer = connect_node(self.directory.path("a.sock"));
        (self.sidecar.accepted().0, peer)
    }

    /// Requests a socket and receives it.
    fn take(&mut self, conn: ConnId) -> UnixStream {
        self.sidecar.send_hand_over(conn);
        assert_eq!(
            self.sidecar.expect_report("HANDED_OVER"),
            Report::HandedOver { conn }
        );
        self.receive()
    }

    /// Receives the next socket from the channel.
    fn receive(&mut self) -> UnixStream {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [7];
        let message = recvmsg(
            &self.channel,
            &mut [IoSliceMut::new(&mut byte)],
            &mut control,
            RecvFlags::DONTWAIT,
        )
        .expect("it is there before its report is");
        assert_eq!((message.bytes, byte), (1, [0]));
        assert_eq!(message.flags & ReturnFlags::CTRUNC, ReturnFlags::empty());
        let mut descriptors: Vec<OwnedFd> = control
            .drain()
            .flat_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect::<Vec<_>>(),
                _ => panic!("no descriptor"),
            })
            .collect();
        let descriptor = descriptors.pop().expect("a descriptor");
        assert!(descriptors.is_empty(), "one descriptor for one byte");
        limited(UnixStream::from(descriptor))
    }
}

/// Connects to the channel like the VM.
fn enter(address: &[u8]) -> std::io::Result<UnixStream> {
    let address = os::socket_address(&Address::from_bytes(address)).expect("an address");
    Ok(limited(UnixStream::from(os::connect(&address)?)))
}

fn assert_connected(one: &mut UnixStream, other: &mut UnixStream) {
    one.write_all(b"there").expect("room");
    assert_eq!(read(other, 5), b"there");
    other.write_all(b"and back").expect("room");
    assert_eq!(read(one, 8), b"and back");
}

// --- sockets that are handed over ----------------------------------------------------------------

#[test]
fn the_vm_gets_the_socket_of_a_peer_that_came_in() {
    let mut vm = Vm::start();
    let (conn, mut peer) = vm.peer();
    let mut socket = vm.take(conn);
    assert_connected(&mut socket, &mut peer);
}

#[test]
fn the_vm_gets_the_socket_of_a_peer_that_it_called() {
    let mut vm = Vm::start();
    let listener = UnixListener::bind(vm.directory.path("b.sock")).expect("a free path");
    let (conn, _) = vm.sidecar.connect(vm.directory.path("b.sock"));
    let (peer, _) = listener.accept().expect("the sidecar");
    let mut socket = vm.take(conn);
    assert_connected(&mut socket, &mut limited(peer));
}

#[test]
fn bytes_sent_before_the_handover_go_first() {
    let mut vm = Vm::start();
    let (conn, mut peer) = vm.peer();
    vm.sidecar.send_data(conn, b"by the sidecar, ");
    let mut socket = vm.take(conn);
    socket.write_all(b"by the VM").expect("room");
    assert_eq!(read(&mut peer, 25), b"by the sidecar, by the VM");
}

#[test]
fn bytes_read_before_the_handover_come_as_data() {
    let mut vm = Vm::start();
    let (conn, mut peer) = vm.peer();
    let sent: Vec<u8> = (0..100_000_u32).flat_map(u32::to_be_bytes).collect();
    let writer = thread::spawn({
        let sent = sent.clone();
        move || {
            peer.write_all(&sent).expect("a reader");
            peer.shutdown(Shutdown::Write).expect("a connection");
            peer
        }
    });
    let mut came = vm.sidecar.receive(conn, 1000);
    vm.sidecar.send_hand_over(conn);
    vm.sidecar.expect_this(&Report::HandedOver { conn });
    let more = vm.sidecar.untaken(conn);
    came.extend(vm.sidecar.receive(conn, more));
    let mut socket = vm.receive();
    came.extend(read_to_end(&mut socket));
    assert!(came == sent, "{} of {} bytes came", came.len(), sent.len());
    writer.join().expect("the peer");
}

#[test]
fn sockets_come_in_the_order_of_their_reports() {
    let mut vm = Vm::start();
    let mut peers: Vec<_> = (0..20).map(|_| vm.peer()).collect();
    peers.reverse();
    for (conn, _) in &peers {
        vm.sidecar.send_hand_over(*conn);
    }
    for (conn, peer) in &mut peers {
        vm.sidecar.expect_this(&Report::HandedOver { conn: *conn });
        assert_connected(&mut vm.receive(), peer);
    }
}

#[test]
fn the_end_of_the_stream_is_the_vms_to_see() {
    let mut vm = Vm::start();
    let (conn, mut peer) = vm.peer();
    let mut socket = vm.take(conn);
    peer.write_all(b"last words").expect("room");
    drop(peer);
    assert_eq!(read_to_end(&mut socket), b"last words");
    vm.sidecar.settle();
    vm.sidecar.expect_no_report();
}

#[test]
fn the_peer_sees_the_end_when_the_vm_closes() {
    let mut vm = Vm::start();
    let (conn, mut peer) = vm.peer();
    drop(vm.take(conn));
    // The sidecar has closed its descriptor, which would keep the connection open.
    assert_eq!(read_to_end(&mut peer), b"");
}

#[test]
fn a_handed_over_connection_leaves_nothing_in_the_sidecar() {
    let mut vm = Vm::start();
    vm.sidecar.settle();
    let before = descriptors(vm.sidecar.pid());
    let mut sockets = Vec::new();
    for _ in 0..10 {
        let (conn, peer) = vm.peer();
        sockets.push((vm.take(conn), peer));
        // The VM may send this at any time, and the sidecar ignores unknown numbers.
        vm.sidecar.close(conn);
    }
    vm.sidecar.settle();
    assert_eq!(descriptors(vm.sidecar.pid()), before);
    for (socket, peer) in &mut sockets {
        assert_connected(socket, peer);
    }
    vm.sidecar.signal(rustix::process::Signal::USR1);
    vm.sidecar
        .expect_log("0 in handshake, 10 handed over so far");
}

#[test]
fn the_connection_outlives_the_sidecar() {
    let mut vm = Vm::start();
    let (conn, mut peer) = vm.peer();
    let mut socket = vm.take(conn);
    vm.sidecar.kill();
    assert_connected(&mut socket, &mut peer);
}

#[test]
fn a_connection_that_has_ended_is_not_handed_over() {
    let mut vm = Vm::start();
    let (conn, peer) = vm.peer();
    drop(peer);
    assert_eq!(vm.sidecar.closed(conn).0, Reason::PeerClosed);
    vm.sidecar.send_hand_over(conn);
    vm.sidecar.settle();
    vm.sidecar.expect_no_report();
}

// --- when a socket cannot be handed over ----------------------------------------------------------

fn assert_relayed(sidecar: &mut Sidecar, conn: ConnId, peer: &mut UnixStream) {
    sidecar.send_hand_over(conn);
    assert_eq!(sidecar.expect_report("RELAYED"), Report::Relayed { conn });
    sidecar.deliver(conn, b"there");
    assert_eq!(read(peer, 5), b"there");
    // This exceeds the window of a handshake.
    let much = vec![1; 100_000];
    peer.write_all(&much).expect("a reader");
    assert!(sidecar.receive(conn, much.len()) == much);
}

#[test]
fn connections_are_relayed_if_the_vm_does_not_connect() {
    let directory = TempDir::new();
    let mut sidecar = Sidecar::start();
    sidecar.open_channel(std::process::id(), directory.root());
    sidecar.listen(directory.path("a.sock"));
    let mut peer = connect_node(directory.path("a.sock"));
    let (conn, _) = sidecar.accepted();
    assert_relayed(&mut sidecar, conn, &mut peer);
    sidecar.expect_log("is not handed over to the VM: the VM has not connected to the channel");
}

#[test]
fn there_is_no_channel_before_the_vm_asks_for_one() {
    let mut sidecar = Sidecar::start();
    let directory = TempDir::new();
    sidecar.settle();
    assert_eq!(sockets_in(&directory), Vec::<String>::new());
    sidecar.listen(directory.path("a.sock"));
    let mut peer = connect_node(directory.path("a.sock"));
    let (conn, _) = sidecar.accepted();
    assert_relayed(&mut sidecar, conn, &mut peer);
}

#[test]
fn connections_that_a_full_channel_cannot_take_are_relayed() {
    let mut vm = Vm::start();
    let mut handed_over = Vec::new();
    let (conn, mut peer) = loop {
        let (conn, peer) = vm.peer();
        vm.sidecar.send_hand_over(conn);
        match vm.sidecar.expect_report("HANDED_OVER or RELAYED") {
            Report::HandedOver { conn: same } if same == conn => handed_over.push(peer),
            Report::Relayed { conn: same } if same == conn => break (conn, peer),
            other => vm
                .sidecar
                .fail(&format!("HANDED_OVER or RELAYED, not {other:?}")),
        }
        assert!(handed_over.len() < 5000, "the channel has no end");
    };
    vm.sidecar.expect_log("is not handed over to the VM");
    vm.sidecar.deliver(conn, b"still there");
    assert_eq!(read(&mut peer, 11), b"still there");
    for peer in &mut handed_over {
        assert_connected(&mut vm.receive(), peer);
    }
    // There is room again.
    let (conn, mut peer) = vm.peer();
    assert_connected(&mut vm.take(conn), &mut peer);
}

#[test]
fn an_ended_channel_costs_no_connection() {
    let mut vm = Vm::start();
    vm.channel.shutdown(Shutdown::Both).expect("a connection");
    let (conn, mut peer) = vm.peer();
    assert_relayed(&mut vm.sidecar, conn, &mut peer);
}

// --- the address of the channel -------------------------------------------------------------------

fn sockets_in(directory: &TempDir) -> Vec<String> {
    let entries = std::fs::read_dir(directory.root()).expect("a directory");
    let mut names: Vec<_> = entries
        .map(|entry| entry.expect("an entry").file_name().into_string())
        .collect::<Result<_, _>>()
        .expect("names");
    names.retain(|name| name.ends_with(".channel"));
    names
}

#[test]
fn in_a_private_directory_the_channel_is_a_private_socket() {
    let directory = TempDir::new();
    let mut sidecar = Sidecar::start();
    let address = sidecar.open_channel(std::process::id(), directory.root());
    let path = PathBuf::from(OsStr::from_bytes(&address));
    assert_eq!(path.parent(), Some(directory.root()));
    let found = std::fs::symlink_metadata(&path).expect("a socket");
    assert!(found.file_type().is_socket());
    assert_eq!(found.mode() & 0o777, 0o600);
    // The file is removed once the VM has connected.
    let _channel = enter(&address).expect("the channel");
    sidecar.settle();
    assert_eq!(sockets_in(&directory), Vec::<String>::new());
}

#[test]
fn the_channel_is_abstract_unless_its_directory_is_private() {
    let directory = TempDir::new();
    let link = directory.path("link");
    std::os::unix::fs::symlink(directory.root(), &link).expect("a link");
    let long = directory.path(&"l".repeat(100));
    std::fs::create_dir(&long).expect("a directory");
    for (mode, place, abstract_name) in [
        (0o700, directory.root().to_owned(), false),
        (0o755, directory.root().to_owned(), false),
        (0o700, link, false),
        (0o770, directory.root().to_owned(), true),
        (0o1777, directory.root().to_owned(), true),
        (0o3770, directory.root().to_owned(), true),
        (0o700, directory.path("missing"), true),
        (0o700, long, true),
        (0o700, "relative".into(), true),
        (0o700, "".into(), true),
    ] {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(directory.root(), permissions).expect("ours");
        let mut sidecar = Sidecar::start();
        let address = sidecar.open_channel(std::process::id(), &place);
        assert_eq!(address[0] == 0, abstract_name, "{mode:o} {place:?}");
        enter(&address).expect("the channel");
        sidecar.settle();
        assert_eq!(sockets_in(&directory), Vec::<String>::new());
    }
}

#[test]
fn in_the_directory_of_another_user_the_channel_is_abstract() {
    let directory = TempDir::new();
    let Some(mut program) = as_nobody(&directory) else {
        return;
    };
    let mut sidecar = Sidecar::start_program(&mut program);
    assert_eq!(
        sidecar.open_channel(std::process::id(), directory.root())[0],
        0
    );
}

#[test]
fn a_socket_that_a_killed_sidecar_left_is_replaced_and_a_live_one_is_not() {
    let directory = TempDir::new();
    for is_live in [false, true] {
        // The shell becomes the sidecar, so it has the same process id.
        let place = directory.root().display();
        let setup = format!("mv {place}/left {place}/.uds_dist-$$.channel");
        let left = UnixListener::bind(directory.path("left")).expect("a free path");
        let live = is_live.then(|| left.try_clone().expect("a listener"));
        drop(left);
        let mut sidecar = Sidecar::start_program(&mut after_shell(&setup));
        let address = sidecar.open_channel(std::process::id(), directory.root());
        assert_eq!(address[0] == 0, is_live);
        drop(live);
        enter(&address).expect("the channel");
    }
}

#[test]
fn a_vm_that_is_late_is_told_and_may_ask_again() {
    let directory = TempDir::new();
    let mut sidecar = Sidecar::start();
    for _ in 0..2 {
        let address = sidecar.open_channel(std::process::id(), directory.root());
        let begin = Instant::now();
        match sidecar.expect_report("CHANNEL_FAILED") {
            Report::ChannelFailed { explanation } => {
                assert!(explanation.contains("in time"), "{explanation}")
            }
            other => sidecar.fail(&format!("CHANNEL_FAILED, not {other:?}")),
        }
        let took = begin.elapsed();
        assert!(took > DEADLINE / 2 && took < DEADLINE * 2, "{took:?}");
        assert_eq!(
            enter(&address).expect_err("no socket").kind(),
            ErrorKind::NotFound
        );
    }
    let address = sidecar.open_channel(std::process::id(), directory.root());
    enter(&address).expect("the channel");
    sidecar.settle();
    sidecar.expect_idle_for(DEADLINE + DEADLINE / 5);
    sidecar.expect_no_report();
}

#[test]
fn the_socket_goes_with_the_sidecar() {
    let directory = TempDir::new();
    let mut sidecar = Sidecar::start();
    sidecar.open_channel(std::process::id(), directory.root());
    assert_eq!(sockets_in(&directory).len(), 1);
    sidecar.hang_up();
    assert!(sidecar.expect_exit().success());
    assert_eq!(sockets_in(&directory), Vec::<String>::new());
}

#[test]
fn a_vm_that_asks_twice_breaks_the_protocol() {
    for enters in [false, true] {
        let directory = TempDir::new();
        let mut sidecar = Sidecar::start();
        let address = sidecar.open_channel(std::process::id(), directory.root());
        let _channel = enters.then(|| enter(&address).expect("the channel"));
        sidecar.send_open_channel(std::process::id(), directory.root());
        sidecar.expect_log("OPEN_CHANNEL while there is a channel");
        assert!(!sidecar.expect_exit().success());
    }
}

// --- processes that are refused -------------------------------------------------------------------

#[test]
fn the_channel_accepts_one_connection_only() {
    for place in [TempDir::new().root().to_owned(), "".into()] {
        let mut sidecar = Sidecar::start();
        let address = sidecar.open_channel(std::process::id(), place);
        let _channel = enter(&address).expect("the channel");
        sidecar.settle();
        enter(&address).expect_err("no listener any more");
    }
}

#[test]
fn processes_other_than_the_vm_are_turned_away() {
    // The VM of this sidecar is said to be init, which is not this test.
    let mut sidecar = Sidecar::start();
    let address = sidecar.open_channel(1, "");
    for _ in 0..100 {
        let mut stranger = enter(&address).expect("the listener");
        assert_eq!(read_to_end(&mut stranger), b"");
    }
    let line = sidecar.expect_log("turned away a process that is not the VM");
    assert!(line.contains("(1 of this uid)"), "{line}");
    let lines = |sidecar: &mut Sidecar| {
        let log = sidecar.log().iter();
        log.filter(|line| line.contains("turned away")).count()
    };
    assert_eq!(lines(&mut sidecar), 1, "one line for a hundred of them");
    let directory = TempDir::new();
    sidecar.listen(directory.path("a.sock"));
    let mut peer = connect_node(directory.path("a.sock"));
    let (conn, _) = sidecar.accepted();
    let mut stranger = enter(&address).expect("the listener");
    assert_relayed(&mut sidecar, conn, &mut peer);
    assert_eq!(read_to_end(&mut stranger), b"");
}

#[test]
fn the_vm_gets_in_after_strangers_in_the_backlog() {
    let directory = TempDir::new();
    let mut sidecar = Sidecar::start();
    let address = sidecar.open_channel(std::process::id(), directory.root());
    sidecar.signal(Signal::STOP);
    let mut stranger = Sidecar::start();
    for _ in 0..16 {
        stranger.connect(OsStr::from_bytes(&address));
    }
    let channel = enter(&address).expect("the last place");
    assert_eq!(
        enter(&address).expect_err("no place").kind(),
        ErrorKind::WouldBlock
    );
    sidecar.send_listen(0, directory.path("a.sock"), 0o600);
    sidecar.signal(Signal::CONT);
    sidecar.expect_this(&Report::Listening { listener: 0 });
    let mut peer = connect_node(directory.path("a.sock"));
    let (conn, _) = sidecar.accepted();
    let mut vm = Vm {
        sidecar,
        channel,
        directory,
    };
    assert_connected(&mut vm.take(conn), &mut peer);
}
