//! Properties of the parts that do no I/O, tested with random input: encoded packets are decoded however the stream
//! is cut, the windows keep their rule, and the crowd at the door is bounded.

#[path = "port/understood.rs"]
mod understood;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::RngSeed;
use std::io;
use std::time::{Duration, Instant};
use uds_dist::door::crowd::{Crowd, HANDSHAKE_GRACE, MAX_HANDSHAKES, SILENCE_GRACE};
use uds_dist::door::gate::{Gate, MAX_HELD, MAX_MESSAGE, Verdict};
use uds_dist::failure::Reason;
use uds_dist::ids::MAX_CONN;
use uds_dist::log_line::{Cause, Level, Line, Subject};
use uds_dist::peer::{Base, Credentials, Policy};
use uds_dist::peers::window::{ReceiveWindow, RuleBroken, SendWindow};
use uds_dist::port::codec::data_head;
use uds_dist::port::protocol::{Command, PACKET_HEAD, Report, Status};
use uds_dist::port::queue::{MAX_READ, MAX_SPLICE, Next, ReportQueue};
use uds_dist::port::reader::CommandReader;
use understood::{Said, understood, understood_with};

/// All runs use the same random input. PROPTEST_RNG_SEED and PROPTEST_CASES change that.
fn config(cases: u32) -> ProptestConfig {
    let mut config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(1);
    }
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = cases;
    }
    config
}

// --- codec ---------------------------------------------------------------------------------------

proptest! {
    #![proptest_config(config(1000))]

    #[test]
    fn commands_survive_encoding(command in command()) {
        let mut encoded = Vec::new();
        command.encode(&mut encoded);
        prop_assert_eq!(Command::decode(body(&encoded)), Ok(command));
    }

    #[test]
    fn reports_survive_encoding(report in report()) {
        let mut encoded = Vec::new();
        report.encode(&mut encoded);
        prop_assert_eq!(Report::decode(body(&encoded)), Ok(report));
    }

    /// A packet that is not rejected is encoded to the same bytes again.
    #[test]
    fn garbage_is_rejected_or_decoded_without_loss(garbage in vec(any::<u8>(), 0..64)) {
        if let Ok(command) = Command::decode(&garbage) {
            let mut encoded = Vec::new();
            command.encode(&mut encoded);
            prop_assert_eq!(body(&encoded), &garbage);
        }
        if let Ok(report) = Report::decode(&garbage) {
            let mut encoded = Vec::new();
            report.encode(&mut encoded);
            prop_assert_eq!(body(&encoded), &garbage);
        }
    }

    #[test]
    fn a_cut_command_is_rejected_or_another_command(command in command(), cut in any::<Index>()) {
        let mut encoded = Vec::new();
        command.encode(&mut encoded);
        let whole = body(&encoded);
        prop_assert_ne!(Command::decode(&whole[..cut.index(whole.len())]), Ok(command));
    }
}

// --- the VM's stream -----------------------------------------------------------------------------

proptest! {
    #![proptest_config(config(200))]

    #[test]
    fn a_stream_means_the_same_however_it_is_cut(
        items in vec(said(), 0..20),
        cuts in vec(any::<Index>(), 0..40),
    ) {
        let stream = encoded(&items);
        let expected = (put_together(items), None);
        prop_assert_eq!(&understood(&mut CommandReader::default(), [&stream[..]]), &expected);
        let cut = understood(&mut CommandReader::default(), pieces(&stream, &cuts));
        prop_assert_eq!(&cut, &expected);
    }

    #[test]
    fn a_stream_means_the_same_when_large_data_is_spliced(
        items in vec(said(), 0..20),
        cuts in vec(any::<Index>(), 0..40),
        spliced in vec(any::<Index>(), 1..10),
    ) {
        let stream = encoded(&items);
        let mut spliced = spliced.iter().cycle();
        let understood = understood_with(
            &mut CommandReader::default(),
            pieces(&stream, &cuts),
            |count| spliced.next().expect("a cycle").index(count + 1),
        );
        prop_assert_eq!(understood, (put_together(items), None));
    }

    #[test]
    fn a_stream_means_the_same_byte_by_byte(items in vec(small_said(), 0..10)) {
        let stream = encoded(&items);
        let read = understood(&mut CommandReader::default(), stream.chunks(1));
        prop_assert_eq!(read, (put_together(items), None));
    }

    #[test]
    fn what_stands_before_garbage_is_understood(
        items in vec(small_said(), 0..10),
        garbage in vec(any::<u8>(), 0..100),
        cuts in vec(any::<Index>(), 0..10),
    ) {
        let stream = [encoded(&items), garbage].concat();
        let (whole, error) = understood(&mut CommandReader::default(), [&stream[..]]);
        let (cut, same_error) = understood(&mut CommandReader::default(), pieces(&stream, &cuts));
        prop_assert_eq!(&cut, &whole);
        prop_assert_eq!(error, same_error);
        prop_assert!(encoded(&whole).starts_with(&encoded(&put_together(items))));
    }

    #[test]
    fn an_error_is_final(
        items in vec(small_said(), 1..10),
        place in any::<Index>(),
        value in any::<u8>(),
        more in vec(small_said(), 1..10),
    ) {
        let mut stream = encoded(&items);
        *place.get_mut(&mut stream) = value;
        let mut reader = CommandReader::default();
        if let (_, Some(error)) = understood(&mut reader, [&stream[..]]) {
            prop_assert_eq!(reader.next(), Err(error.clone()));
            let read = understood(&mut reader, [&encoded(&more)[..]]);
            prop_assert_eq!(read, (Vec::new(), Some(error)));
        }
    }
}

fn said() -> impl Strategy<Value = Said> {
    let large = (conn(), 0..600_000_usize).prop_map(|(conn, size)| Said::Data(conn, pattern(size)));
    prop_oneof![8 => small_said(), 1 => large]
}

fn small_said() -> impl Strategy<Value = Said> {
    prop_oneof![
        command().prop_map(Said::Command),
        (1..4_u32, vec(any::<u8>(), 0..50)).prop_map(|(conn, bytes)| Said::Data(conn, bytes)),
    ]
}

fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at ^ (at >> 8)) as u8).collect()
}

fn encoded(items: &[Said]) -> Vec<u8> {
    let mut stream = Vec::new();
    for item in items {
        match item {
            Said::Command(command) => command.encode(&mut stream),
            Said::Data(conn, bytes) => {
                stream.extend(data_head(*conn, bytes.len()));
                stream.extend(bytes);
            }
        }
    }
    stream
}

/// The result that [`understood`] must have. Adjacent DATA of one connection is joined.
fn put_together(items: Vec<Said>) -> Vec<Said> {
    let mut together: Vec<Said> = Vec::new();
    for item in items {
        match (together.last_mut(), item) {
            (_, Said::Data(_, bytes)) if bytes.is_empty() => (),
            (Some(Said::Data(last, before)), Said::Data(conn, bytes)) if *last == conn => {
                before.extend(bytes);
            }
            (_, item) => together.push(item),
        }
    }
    together
}

fn pieces<'a>(stream: &'a [u8], cuts: &[Index]) -> Vec<&'a [u8]> {
    let mut places: Vec<_> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
    places.extend([0, stream.len()]);
    places.sort_unstable();
    let pairs = places.windows(2);
    pairs.map(|pair| &stream[pair[0]..pair[1]]).collect()
}

// --- the stream to the VM ------------------------------------------------------------------------

#[derive(Debug, Clone)]
enum QueueStep {
    Push(Report),
    Data {
        conn: u32,
        limit: usize,
        count: usize,
    },
    FailingRead {
        limit: usize,
    },
    Splice {
        conn: u32,
        count: usize,
    },
    /// The socket cannot be spliced, so it is read.
    Instead(Index),
    Written(Index),
}

fn queue_step() -> impl Strategy<Value = QueueStep> {
    prop_oneof![
        report().prop_map(QueueStep::Push),
        (conn(), 1..=MAX_READ, any::<Index>()).prop_map(|(conn, limit, count)| QueueStep::Data {
            conn,
            limit,
            count: count.index(limit + 1),
        }),
        (1..=MAX_READ).prop_map(|limit| QueueStep::FailingRead { limit }),
        (conn(), 1..=MAX_SPLICE).prop_map(|(conn, count)| QueueStep::Splice { conn, count }),
        any::<Index>().prop_map(QueueStep::Instead),
        any::<Index>().prop_map(QueueStep::Written),
        any::<Index>().prop_map(QueueStep::Written),
        any::<Index>().prop_map(QueueStep::Written),
    ]
}

proptest! {
    #![proptest_config(config(100))]

    #[test]
    fn reports_wait_in_order_and_none_is_lost(steps in vec(queue_step(), 0..60)) {
        let mut queue = ReportQueue::default();
        let mut expected: Vec<u8> = Vec::new();
        // The connection, and the bytes that are expected before and after those of its socket.
        let mut splice: Option<(u32, usize, usize)> = None;
        // Bytes of the socket that are queued like all others.
        let mut instead: Vec<u8> = Vec::new();
        for step in steps {
            match step {
                QueueStep::Push(report) => {
                    queue.push(&report);
                    report.encode(&mut expected);
                }
                QueueStep::Data { conn, limit, count } => {
                    let bytes = pattern(count);
                    let read = queue.push_data(conn, limit, |space| {
                        assert_eq!(space.len(), limit);
                        space.fill(0xee); // a read may leave anything behind its end
                        space[..count].copy_from_slice(&bytes);
                        Ok(count)
                    });
                    prop_assert_eq!(read.expect("a count"), count);
                    if count > 0 {
                        expected.extend(data_head(conn, count));
                        expected.extend(bytes);
                    }
                }
                QueueStep::FailingRead { limit } => {
                    let read = queue.push_data(1, limit, |space| {
                        space.fill(0xee);
                        Err(io::ErrorKind::WouldBlock.into())
                    });
                    prop_assert!(read.is_err());
                }
                // There is never a second one, because the queue reports no room for sockets.
                QueueStep::Splice { .. } if splice.is_some() => prop_assert!(!queue.has_room()),
                QueueStep::Splice { conn, count } => {
                    queue.push_splice(conn, count);
                    expected.extend(data_head(conn, count));
                    splice = Some((conn, expected.len(), count));
                }
                QueueStep::Instead(count) => match splice {
                    Some((_, 0, missing)) if instead.is_empty() => {
                        instead = pattern(count.index(missing + 1));
                        queue.instead(&instead);
                    }
                    _ => (),
                },
                QueueStep::Written(count) => match &mut splice {
                    Some((_, 0, missing)) if !instead.is_empty() => {
                        let count = count.index(instead.len() + 1);
                        queue.written(count);
                        instead.drain(..count);
                        *missing -= count;
                        if *missing == 0 {
                            splice = None;
                        }
                    }
                    Some((_, 0, missing)) => {
                        let count = count.index(*missing + 1);
                        queue.spliced(count);
                        *missing -= count;
                        if *missing == 0 {
                            splice = None;
                        }
                    }
                    _ => {
                        let end = splice.map_or(expected.len(), |(_, before, _)| before);
                        let count = count.index(end + 1);
                        queue.written(count);
                        expected.drain(..count);
                        if let Some((_, before, _)) = &mut splice {
                            *before -= count;
                        }
                    }
                },
            }
            let next = match splice {
                Some((_, 0, _)) if !instead.is_empty() => Next::Bytes(&instead),
                Some((conn, 0, missing)) => Next::Splice(conn, missing),
                Some((_, before, _)) => Next::Bytes(&expected[..before]),
                None if expected.is_empty() => Next::Nothing,
                None => Next::Bytes(&expected),
            };
            prop_assert!(queue.next() == next);
            prop_assert!(queue.has_room() || next != Next::Nothing);
        }
    }
}

// --- windows -------------------------------------------------------------------------------------

#[derive(Debug, Clone)]
enum WindowStep {
    /// The sender wants to send this number of bytes.
    Send(u32),
    /// The receiver passes on this number of the bytes that have arrived.
    PassOn(u32),
    /// The oldest acknowledgement on its way arrives.
    DeliverAck,
}

fn window_steps(size: u32) -> impl Strategy<Value = Vec<WindowStep>> {
    let step = prop_oneof![
        (0..=size * 2).prop_map(WindowStep::Send),
        (0..=size).prop_map(WindowStep::PassOn),
        Just(WindowStep::DeliverAck),
    ];
    vec(step, 0..200)
}

proptest! {
    #![proptest_config(config(300))]

    #[test]
    fn two_ends_of_a_window_keep_to_its_rule(
        (size, steps) in (1..2000_u32).prop_flat_map(|size| (Just(size), window_steps(size)))
    ) {
        let mut sender = SendWindow::new(size);
        let mut receiver = ReceiveWindow::new(size);
        let (mut sent, mut passed_on, mut acknowledged, mut acks_seen) = (0, 0, 0, 0);
        let mut acks = std::collections::VecDeque::new();
        for step in steps {
            match step {
                WindowStep::Send(count) => {
                    let count = count.min(sender.available());
                    sender.sent(count);
                    sent += count;
                    prop_assert_eq!(receiver.received(count as usize), Ok(()));
                }
                WindowStep::PassOn(count) => {
                    let count = count.min(sent - passed_on);
                    receiver.passed_on(count as usize);
                    passed_on += count;
                    if let Some(count) = receiver.take_acknowledgement() {
                        acknowledged += count;
                        acks.push_back(count);
                        prop_assert_eq!(acknowledged, passed_on);
                    } else {
                        prop_assert!(passed_on - acknowledged < (size / 4).max(1));
                    }
                }
                WindowStep::DeliverAck => {
                    let count = acks.pop_front().unwrap_or(0);
                    prop_assert_eq!(sender.acknowledged(count), Ok(()));
                    acks_seen += count;
                }
            }
            prop_assert_eq!(sender.unacknowledged(), sent - acks_seen);
            prop_assert_eq!(sender.available(), size - (sent - acks_seen));
            // The sender may send exactly as much as the receiver would accept.
            if acks.is_empty() {
                let too_many = sender.available() as usize + 1;
                prop_assert_eq!(receiver.received(too_many), Err(RuleBroken));
            }
        }
        // Once everything is passed on and all acknowledgements have arrived, the sender can continue.
        receiver.passed_on((sent - passed_on) as usize);
        acks.extend(receiver.take_acknowledgement());
        for count in acks {
            prop_assert_eq!(sender.acknowledged(count), Ok(()));
        }
        prop_assert!(sender.available() > 0);
        let too_many = sender.unacknowledged() + 1;
        prop_assert_eq!(sender.acknowledged(too_many), Err(RuleBroken));
    }
}

// --- the gate ------------------------------------------------------------------------------------

/// A valid or nearly valid first message.
fn first_message() -> impl Strategy<Value = Vec<u8>> {
    let text = prop_oneof![
        4 => "[a-z0-9_-]{1,20}@[a-z0-9.-]{1,20}".prop_map(String::into_bytes),
        1 => "[a-z]{1,250}@?[a-z]{1,250}".prop_map(String::into_bytes),
        1 => vec(any::<u8>(), 0..300),
    ];
    let flags = prop_oneof![
        Just(0x0d_07df_7fbd_u64),
        Just(0x0f_07df_7fbd_u64),
        any::<u64>()
    ];
    let name = (
        any::<bool>(),
        flags,
        any::<u32>(),
        text,
        vec(any::<u8>(), 0..5),
    );
    name.prop_map(|(is_new, flags, creation, name, more)| match is_new {
        true => [
            b"N",
            &flags.to_be_bytes()[..],
            &creation.to_be_bytes(),
            &(name.len() as u16).to_be_bytes(),
            &name,
            &more,
        ]
        .concat(),
        false => [b"n\0\x05", &creation.to_be_bytes()[..], &name].concat(),
    })
}

/// The rules of erl_dist_protocol and of atoms for a first message, written differently than in the gate.
fn can_be_a_node(message: &[u8]) -> bool {
    let (name, is_host) = match message {
        [b'N', rest @ ..] if rest.len() >= 14 => {
            let flags = u64::from_be_bytes(rest[..8].try_into().expect("8 bytes"));
            let length = usize::from(rest[12]) << 8 | usize::from(rest[13]);
            let is_of_23 = flags & (1 << 24 | 0x3f << 26) != 0;
            match rest.get(14..14 + length) {
                Some(name) if is_of_23 => (name, flags & 1 << 33 != 0),
                _ => return false,
            }
        }
        [b'n', _, _, _, _, _, _, name @ ..] => (name, false),
        _ => return false,
    };
    let name: String = name.iter().map(|byte| char::from(*byte)).collect();
    let node = match is_host {
        true => format!("{}@{name}", "x".repeat(13)),
        false => name,
    };
    let parts: Vec<_> = node.split('@').collect();
    parts.len() == 2
        && parts.iter().all(|part| !part.is_empty())
        && node.chars().count() <= 255
        && !node.contains(|c: char| c.is_control() || c.is_whitespace() && c != '\u{a0}')
}

/// The last verdict of the gate, and the bytes that it has accepted.
fn judged<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Verdict, Vec<u8>) {
    let mut gate = Gate::default();
    let mut taken = Vec::new();
    for mut piece in pieces {
        while !piece.is_empty() {
            let count = piece.len().min(gate.room());
            taken.extend(&piece[..count]);
            match gate.push(&piece[..count]) {
                Verdict::Incomplete => piece = &piece[count..],
                verdict => {
                    let passed = gate.pass().map(|(_, bytes)| bytes);
                    let expected = (verdict == Verdict::Plausible).then(|| taken.clone());
                    assert_eq!(passed, expected);
                    return (verdict, taken);
                }
            }
        }
    }
    (Verdict::Incomplete, taken)
}

proptest! {
    #![proptest_config(config(2000))]

    #[test]
    fn the_gate_lets_in_what_can_be_a_node_however_it_is_cut(
        message in first_message(),
        more in vec(any::<u8>(), 0..20),
        cuts in vec(any::<Index>(), 0..8),
    ) {
        let stream = [&(message.len() as u16).to_be_bytes(), &message[..], &more].concat();
        let (whole, kept) = judged([&stream[..]]);
        let expected = can_be_a_node(&message) && message.len() <= MAX_MESSAGE;
        prop_assert_eq!(whole == Verdict::Plausible, expected, "{:?}", whole);
        prop_assert!(stream.starts_with(&kept) && kept.len() <= MAX_HELD);
        let (cut, _) = judged(pieces(&stream, &cuts));
        prop_assert_eq!(cut == Verdict::Plausible, expected, "{:?}", cut);
        // It waits only if the message can still become valid.
        if !expected && message.len() <= MAX_MESSAGE {
            prop_assert!(matches!(whole, Verdict::Implausible(_)), "{:?}", whole);
        }
    }

    #[test]
    fn the_gate_survives_garbage(
        garbage in vec(any::<u8>(), 0..2000),
        cuts in vec(any::<Index>(), 0..8),
    ) {
        let (verdict, kept) = judged(pieces(&garbage, &cuts));
        prop_assert!(garbage.starts_with(&kept) && kept.len() <= MAX_HELD);
        if verdict == Verdict::Incomplete {
            prop_assert_eq!(kept.len(), garbage.len());
        }
    }
}

// --- the crowd at the door -----------------------------------------------------------------------

#[derive(Debug, Clone)]
enum CrowdStep {
    /// A connection is accepted if there is a place, or another one ends to make room.
    Arrive,
    /// A visitor sends its first bytes.
    Begin(Index),
    /// A connection ends by itself.
    End(Index),
    /// The VM is done with a connection, perhaps for the second time.
    Leave(Index),
    /// Time passes.
    Wait(u64),
}

fn crowd_step() -> impl Strategy<Value = CrowdStep> {
    prop_oneof![
        20 => Just(CrowdStep::Arrive),
        4 => any::<Index>().prop_map(CrowdStep::Begin),
        1 => any::<Index>().prop_map(CrowdStep::End),
        2 => any::<Index>().prop_map(CrowdStep::Leave),
        1 => (0..60_u64).prop_map(CrowdStep::Wait),
    ]
}

proptest! {
    #![proptest_config(config(300))]

    #[test]
    fn a_crowd_is_bounded_and_who_is_late_makes_room(
        steps in vec(crowd_step(), 0..600),
    ) {
        let mut crowd = Crowd::new();
        let mut now = Instant::now();
        let mut last_conn = 0;
        // For each connection that has a place: whether it is a visitor, and the time from which it has to make
        // room, or none if it has ended.
        let mut model: Vec<(u32, bool, Option<Instant>)> = Vec::new();
        for step in steps {
            match step {
                CrowdStep::Arrive if crowd.has_room() => {
                    last_conn += 2;
                    crowd.enter(last_conn, now);
                    model.push((last_conn, true, Some(now + SILENCE_GRACE)));
                }
                CrowdStep::Arrive => {
                    if let Some((_, conn)) = crowd.makes_room().filter(|(time, _)| *time <= now) {
                        let at = model.iter().position(|(other, ..)| *other == conn);
                        let at = at.expect("somebody who is here");
                        match model[at].1 {
                            true => {
                                crowd.leave(conn);
                                model.remove(at);
                            }
                            false => {
                                crowd.ended(conn);
                                model[at].2 = None;
                            }
                        }
                    }
                }
                _ if model.is_empty() => (),
                CrowdStep::Begin(index) => {
                    // Only visitors begin a handshake. The call has no effect on others.
                    let at = index.index(model.len());
                    let (conn, is_visitor, time) = &mut model[at];
                    if std::mem::take(is_visitor) {
                        *time = time.map(|time| time + (HANDSHAKE_GRACE - SILENCE_GRACE));
                    }
                    crowd.begin(*conn);
                }
                CrowdStep::End(index) => {
                    let at = index.index(model.len());
                    model[at].1 = false;
                    model[at].2 = None;
                    crowd.ended(model[at].0);
                }
                CrowdStep::Leave(index) => {
                    let conn = (index.index(last_conn as usize / 2) as u32 + 1) * 2;
                    crowd.leave(conn);
                    model.retain(|(other, ..)| *other != conn);
                    // Its number is free again.
                    crowd.ended(conn);
                    crowd.begin(conn);
                }
                CrowdStep::Wait(milliseconds) => now += Duration::from_millis(milliseconds),
            }
            prop_assert_eq!(crowd.len(), model.len());
            prop_assert!(crowd.len() <= MAX_HANDSHAKES);
            prop_assert_eq!(crowd.has_room(), model.len() < MAX_HANDSHAKES);
            // No handshake has to go while a place is about to be free.
            let is_one_leaving = model.iter().any(|(_, _, time)| time.is_none());
            let here = model.iter().filter_map(|(conn, is_visitor, time)| {
                Some(((*time)?, *conn, *is_visitor))
            });
            let first = here.min().filter(|(_, _, is_visitor)| *is_visitor || !is_one_leaving);
            prop_assert_eq!(crowd.makes_room(), first.map(|(time, conn, _)| (time, conn)));
        }
    }
}

// --- random packets ------------------------------------------------------------------------------

fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        (
            any::<u32>(),
            any::<u32>(),
            any::<u16>(),
            any::<u32>(),
            address()
        )
            .prop_map(
                |(listener, backlog, mode, vm_pid, address)| Command::Listen {
                    listener,
                    backlog,
                    mode,
                    vm_pid,
                    address,
                }
            ),
        any::<u32>().prop_map(|listener| Command::Unlisten { listener }),
        (conn(), address()).prop_map(|(conn, address)| Command::Connect { conn, address }),
        (conn(), any::<String>()).prop_map(|(conn, node)| Command::Established { conn, node }),
        (conn(), any::<String>()).prop_map(|(conn, node)| Command::HandOver { conn, node }),
        conn().prop_map(|conn| Command::Close { conn }),
        policy().prop_map(Command::Admit),
        (any::<u32>(), vec(any::<u8>(), 0..200))
            .prop_map(|(vm_pid, directory)| Command::OpenChannel { vm_pid, directory }),
        Just(Command::AskStatus),
        (conn(), any::<u32>()).prop_map(|(conn, count)| Command::Ack { conn, count }),
    ]
}

fn policy() -> impl Strategy<Value = Policy> {
    let base = prop_oneof![
        Just(Base::Nobody),
        Just(Base::OwnUserAndRoot),
        Just(Base::Anybody)
    ];
    let ids = || vec(any::<u32>(), 0..250);
    (base, ids(), ids()).prop_map(|(base, uids, gids)| Policy { base, uids, gids })
}

fn report() -> impl Strategy<Value = Report> {
    prop_oneof![
        (any::<u16>(), any::<u32>(), any::<String>()).prop_map(|(version, window, release)| {
            Report::Hello {
                version,
                window,
                release,
            }
        }),
        line().prop_map(Report::Log),
        (any::<u32>(), any::<u32>(), any::<u64>()).prop_map(
            |(descriptors, descriptor_limit, memory)| {
                Report::Status(Status {
                    descriptors,
                    descriptor_limit,
                    memory,
                })
            }
        ),
        conn().prop_map(|conn| Report::HandedOver { conn }),
        conn().prop_map(|conn| Report::Relayed { conn }),
        vec(any::<u8>(), 1..200).prop_map(|address| Report::Channel { address }),
        any::<String>().prop_map(|explanation| Report::ChannelFailed { explanation }),
        (any::<u32>(), any::<String>()).prop_map(|(listener, explanation)| {
            Report::ListenerLost {
                listener,
                explanation,
            }
        }),
        any::<u32>().prop_map(|listener| Report::Listening { listener }),
        (any::<u32>(), a_reason(), any::<String>()).prop_map(|(listener, reason, explanation)| {
            Report::ListenFailed {
                listener,
                reason,
                explanation,
            }
        }),
        any::<u32>().prop_map(|listener| Report::Unlistened { listener }),
        (conn(), credentials(), vec(any::<u8>(), 0..108)).prop_map(|(conn, peer, address)| {
            Report::Accepted {
                conn,
                peer,
                address,
            }
        }),
        (conn(), credentials()).prop_map(|(conn, peer)| Report::Connected { conn, peer }),
        (conn(), a_reason(), any::<String>()).prop_map(|(conn, reason, explanation)| {
            Report::ConnectFailed {
                conn,
                reason,
                explanation,
            }
        }),
        (conn(), any::<u32>()).prop_map(|(conn, count)| Report::Ack { conn, count }),
        (conn(), a_reason(), any::<String>()).prop_map(|(conn, reason, explanation)| {
            Report::Closed {
                conn,
                reason,
                explanation,
            }
        }),
    ]
}

fn line() -> impl Strategy<Value = Line> {
    let subject = prop_oneof![
        Just(Subject::Nothing),
        any::<String>().prop_map(Subject::Address),
        any::<String>().prop_map(Subject::Node)
    ];
    let cause = option::of(select(Cause::ALL.to_vec()));
    let level = select(Level::ALL.to_vec());
    (level, cause, credentials(), subject, any::<String>()).prop_map(
        |(level, cause, peer, subject, text)| Line {
            level,
            cause,
            peer,
            subject,
            text,
        },
    )
}

fn conn() -> impl Strategy<Value = u32> {
    prop_oneof![1..MAX_CONN, Just(1), Just(MAX_CONN - 1)]
}

fn address() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 1..=108)
}

fn a_reason() -> impl Strategy<Value = Reason> {
    select(Reason::ALL.to_vec())
}

fn credentials() -> impl Strategy<Value = Credentials> {
    (any::<u32>(), any::<u32>(), any::<u32>()).prop_map(|(uid, gid, pid)| Credentials {
        uid,
        gid,
        pid,
    })
}

/// The body of the only packet in `encoded`, whose length must be correct.
fn body(encoded: &[u8]) -> &[u8] {
    let (length, body) = encoded.split_at(PACKET_HEAD);
    assert_eq!(length, (body.len() as u32).to_be_bytes());
    body
}
