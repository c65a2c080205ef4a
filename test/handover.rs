//! Sockets that go to the VM once the handshake is through: through the channel, whole, in order, and
//! to nobody else.

mod port;

use port::*;
use rustix::net::SocketAddrUnix;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use std::io::{ErrorKind, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use uds_dist::failure::Reason;
use uds_dist::os;
use uds_dist::port::protocol::{ConnId, Report};

/// A sidecar that listens, the VM's end of its channel, and where peers connect.
struct Vm {
    sidecar: Sidecar,
    channel: UnixStream,
    directory: TempDir,
}

impl Vm {
    fn start() -> Vm {
        let (mut sidecar, address) = Sidecar::start_with_channel(std::process::id());
        let channel = enter(&address).expect("the channel");
        let directory = TempDir::new();
        sidecar.listen(directory.path("a.sock"));
        Vm {
            sidecar,
            channel,
            directory,
        }
    }

    /// A connection that a peer has made, and the peer.
    fn peer(&mut self) -> (ConnId, UnixStream) {
        let peer = connect_peer(self.directory.path("a.sock"));
        (self.sidecar.accepted().0, peer)
    }

    /// Asks for a socket and gets it.
    fn take(&mut self, conn: ConnId) -> UnixStream {
        self.sidecar.send_hand_over(conn);
        assert_eq!(
            self.sidecar.expect_report("HANDED_OVER"),
            Report::HandedOver { conn }
        );
        self.receive()
    }

    /// The next socket in the channel.
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

/// Connects to the channel as the VM does.
fn enter(address: &[u8]) -> std::io::Result<UnixStream> {
    let name = address.strip_prefix(&[0]).expect("an abstract name");
    let address = SocketAddrUnix::new_abstract_name(name).expect("an address");
    Ok(limited(UnixStream::from(os::connect(&address)?)))
}

fn assert_connected(one: &mut UnixStream, other: &mut UnixStream) {
    one.write_all(b"there").expect("room");
    assert_eq!(read(other, 5), b"there");
    other.write_all(b"and back").expect("room");
    assert_eq!(read(one, 8), b"and back");
}

// --- what the VM gets ----------------------------------------------------------------------------

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
fn what_was_sent_before_goes_first() {
    let mut vm = Vm::start();
    let (conn, mut peer) = vm.peer();
    vm.sidecar.send_data(conn, b"by the sidecar, ");
    let mut socket = vm.take(conn);
    socket.write_all(b"by the VM").expect("room");
    assert_eq!(read(&mut peer, 25), b"by the sidecar, by the VM");
}

#[test]
fn what_came_before_comes_as_data_and_the_rest_in_the_socket() {
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
    // The sidecar has no descriptor of it that would keep the connection open.
    assert_eq!(read_to_end(&mut peer), b"");
}

#[test]
fn the_sidecar_keeps_nothing_of_it() {
    let mut vm = Vm::start();
    vm.sidecar.settle();
    let before = descriptors(vm.sidecar.pid());
    let mut sockets = Vec::new();
    for _ in 0..10 {
        let (conn, peer) = vm.peer();
        sockets.push((vm.take(conn), peer));
        // The VM says it at any time; a number that means nothing is none of the sidecar's business.
        vm.sidecar.close(conn);
    }
    vm.sidecar.settle();
    assert_eq!(descriptors(vm.sidecar.pid()), before);
    for (socket, peer) in &mut sockets {
        assert_connected(socket, peer);
    }
    vm.sidecar.signal(rustix::process::Signal::USR1);
    vm.sidecar
        .expect_log("0 shaking hands, 10 handed over so far");
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

// --- when it cannot be ---------------------------------------------------------------------------

fn assert_kept(sidecar: &mut Sidecar, conn: ConnId, peer: &mut UnixStream) {
    sidecar.send_hand_over(conn);
    assert_eq!(sidecar.expect_report("KEPT"), Report::Kept { conn });
    sidecar.deliver(conn, b"there");
    assert_eq!(read(peer, 5), b"there");
    // More than a handshake may have.
    let much = vec![1; 100_000];
    peer.write_all(&much).expect("a reader");
    assert!(sidecar.receive(conn, much.len()) == much);
}

#[test]
fn the_sidecar_goes_on_if_the_vm_does_not_connect() {
    let (mut sidecar, _) = Sidecar::start_with_channel(std::process::id());
    let directory = TempDir::new();
    sidecar.listen(directory.path("a.sock"));
    let mut peer = connect_peer(directory.path("a.sock"));
    let (conn, _) = sidecar.accepted();
    assert_kept(&mut sidecar, conn, &mut peer);
    sidecar.expect_log("is not handed over to the VM: the VM has not connected to the channel");
}

#[test]
fn without_a_vm_process_there_is_no_channel() {
    let mut sidecar = Sidecar::start();
    let directory = TempDir::new();
    sidecar.listen(directory.path("a.sock"));
    let mut peer = connect_peer(directory.path("a.sock"));
    let (conn, _) = sidecar.accepted();
    assert_kept(&mut sidecar, conn, &mut peer);
}

#[test]
fn the_sidecar_goes_on_with_what_the_channel_does_not_take() {
    let mut vm = Vm::start();
    let mut handed_over = Vec::new();
    let (conn, mut peer) = loop {
        let (conn, peer) = vm.peer();
        vm.sidecar.send_hand_over(conn);
        match vm.sidecar.expect_report("HANDED_OVER or KEPT") {
            Report::HandedOver { conn: same } if same == conn => handed_over.push(peer),
            Report::Kept { conn: same } if same == conn => break (conn, peer),
            other => vm
                .sidecar
                .fail(&format!("HANDED_OVER or KEPT, not {other:?}")),
        }
        assert!(handed_over.len() < 5000, "the channel has no end");
    };
    vm.sidecar.expect_log("is not handed over to the VM");
    vm.sidecar.deliver(conn, b"still there");
    assert_eq!(read(&mut peer, 11), b"still there");
    for peer in &mut handed_over {
        assert_connected(&mut vm.receive(), peer);
    }
    // And there is room again.
    let (conn, mut peer) = vm.peer();
    assert_connected(&mut vm.take(conn), &mut peer);
}

#[test]
fn an_ended_channel_costs_no_connection() {
    let mut vm = Vm::start();
    vm.channel.shutdown(Shutdown::Both).expect("a connection");
    let (conn, mut peer) = vm.peer();
    assert_kept(&mut vm.sidecar, conn, &mut peer);
}

// --- who does not get it -------------------------------------------------------------------------

#[test]
fn the_channel_is_for_one_who_comes_once() {
    let (mut sidecar, address) = Sidecar::start_with_channel(std::process::id());
    let _channel = enter(&address).expect("the channel");
    sidecar.settle();
    let error = enter(&address).expect_err("no listener any more");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn who_is_not_the_vm_is_turned_away() {
    // The sidecar's VM is init, and this test is not.
    let (mut sidecar, address) = Sidecar::start_with_channel(1);
    for _ in 0..3 {
        let mut stranger = enter(&address).expect("the listener");
        assert_eq!(read_to_end(&mut stranger), b"");
        sidecar.expect_log("turned away a process that is not the VM");
    }
    let directory = TempDir::new();
    sidecar.listen(directory.path("a.sock"));
    let mut peer = connect_peer(directory.path("a.sock"));
    let (conn, _) = sidecar.accepted();
    let mut stranger = enter(&address).expect("the listener");
    assert_kept(&mut sidecar, conn, &mut peer);
    assert_eq!(read_to_end(&mut stranger), b"");
}
