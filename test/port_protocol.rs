//! Tests the sidecar's codec of the port protocol against the golden vectors. `port_protocol_SUITE.erl` tests the VM's
//! codec against the same ones.

#[path = "port/understood.rs"]
mod understood;
#[path = "port/vectors.rs"]
mod vectors;

use std::collections::BTreeSet;
use uds_dist::log_line::Cause;
use uds_dist::port::codec::{DecodeError, data_head};
use uds_dist::port::protocol::{Command, DATA, MAX_CONTROL_BODY, Report};
use uds_dist::port::reader::CommandReader;
use understood::{Said, understood};
use vectors::{Sender, Vector, vectors, vectors_of};

#[test]
fn every_type_of_packet_has_a_vector() {
    let names = |from| -> BTreeSet<&str> {
        let of_sender = vectors().into_iter().filter(|vector| vector.from == from);
        of_sender
            .filter_map(|vector| Some(vector.packet?.name))
            .collect()
    };
    let vm = "LISTEN UNLISTEN CONNECT ESTABLISHED HAND_OVER OPEN_CHANNEL CLOSE ADMIT \
              ASK_STATUS DATA ACK";
    let sidecar = "HELLO LISTENING LISTEN_FAILED UNLISTENED ACCEPTED CONNECTED CONNECT_FAILED \
                   CLOSED HANDED_OVER RELAYED CHANNEL CHANNEL_FAILED LISTENER_LOST LOG STATUS \
                   DATA ACK";
    assert_eq!(names(Sender::Vm), vm.split(' ').collect());
    assert_eq!(names(Sender::Sidecar), sidecar.split(' ').collect());
}

#[test]
fn packets_are_encoded_as_in_the_vectors() {
    for vector in vectors() {
        let Some(packet) = &vector.packet else {
            continue;
        };
        let mut encoded = Vec::new();
        match (vector.from, packet.name) {
            (_, "DATA") => {
                encoded.extend(data_head(
                    packet.number("conn"),
                    packet.bytes("bytes").len(),
                ));
                encoded.extend(packet.bytes("bytes"));
            }
            (Sender::Vm, _) => packet.command().encode(&mut encoded),
            (Sender::Sidecar, _) => packet.report().encode(&mut encoded),
        }
        assert_eq!(encoded, vector.with_length(), "{}", vector.name);
    }
}

#[test]
fn packets_of_the_vm_are_decoded_as_in_the_vectors() {
    for vector in vectors_of(Sender::Vm) {
        let expected = match &vector.packet {
            None => continue,
            Some(packet) if packet.name == "DATA" => {
                let bytes = packet.bytes("bytes").to_vec();
                let conn = packet.number("conn");
                Vec::from_iter((!bytes.is_empty()).then_some(Said::Data(conn, bytes)))
            }
            Some(packet) => {
                assert_eq!(
                    Command::decode(&vector.body),
                    Ok(packet.command()),
                    "{}",
                    vector.name
                );
                vec![Said::Command(packet.command())]
            }
        };
        assert_eq!(read(&vector), (expected, None), "{}", vector.name);
    }
}

#[test]
fn packets_of_the_vm_are_rejected_as_in_the_vectors() {
    for vector in vectors_of(Sender::Vm) {
        if vector.packet.is_none() {
            let (said, error) = read(&vector);
            assert_eq!(said, [], "{}", vector.name);
            assert_eq!(
                error.map(reason),
                Some(vector.rejected.clone()),
                "{}",
                vector.name
            );
        }
    }
}

#[test]
fn packets_of_the_sidecar_are_decoded_as_in_the_vectors() {
    for vector in vectors_of(Sender::Sidecar) {
        match &vector.packet {
            Some(packet) if packet.name != "DATA" => {
                let decoded = Report::decode(&vector.body);
                assert_eq!(decoded, Ok(packet.report()), "{}", vector.name);
            }
            _ => (),
        }
    }
}

#[test]
fn packets_of_the_sidecar_are_rejected_as_in_the_vectors() {
    for vector in vectors_of(Sender::Sidecar) {
        if vector.packet.is_none() && vector.body.first() != Some(&DATA) {
            let decoded = Report::decode(&vector.body);
            assert_eq!(
                decoded.map_err(reason),
                Err(vector.rejected),
                "{}",
                vector.name
            );
        }
    }
}

#[test]
fn every_reason_of_a_line_has_a_vector() {
    let causes: BTreeSet<u8> = vectors_of(Sender::Sidecar)
        .into_iter()
        .filter_map(|vector| match vector.packet?.name {
            "LOG" => Some(vector.body[2]),
            _ => None,
        })
        .collect();
    let all = Cause::ALL.into_iter().map(|cause| cause as u8);
    assert_eq!(causes, all.chain([0]).collect());
}

#[test]
fn the_longest_control_body_is_that_of_the_vectors() {
    let longest = |name: &str| {
        let vector = vectors().into_iter().find(|vector| vector.name == name);
        vector.expect("a vector of this name").body.len()
    };
    assert_eq!(longest("listen_longest_body"), MAX_CONTROL_BODY);
    assert_eq!(longest("listen_over_the_cap"), MAX_CONTROL_BODY + 1);
}

/// Reads a vector from a stream, like the sidecar, length first.
fn read(vector: &Vector) -> (Vec<Said>, Option<DecodeError>) {
    let stream = vector.with_length();
    understood(&mut CommandReader::default(), [&stream[..]])
}

/// The name of a [`DecodeError`] in the vectors.
fn reason(error: DecodeError) -> String {
    match error {
        DecodeError::Missing(field) => format!("missing {field}"),
        DecodeError::Invalid(field) => format!("invalid {field}"),
        DecodeError::Trailing(_) => "trailing".into(),
        DecodeError::UnknownType(_) => "unknown_type".into(),
        DecodeError::TooLong(_) => "too_long".into(),
    }
}
