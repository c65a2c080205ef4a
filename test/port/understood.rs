//! Decodes the VM's stream with the sidecar's reader.

use uds_dist::port::codec::DecodeError;
use uds_dist::port::protocol::Command;
use uds_dist::port::reader::{CommandReader, Input};

/// An [`Input`] that owns its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    Command(Command),
    Data(u32, Vec<u8>),
}

/// Everything that the VM sends with these bytes, which arrive in `pieces`, and the error that ends the stream. Adjacent
/// DATA of one connection is joined.
pub fn understood<'a>(
    reader: &mut CommandReader,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<Said>, Option<DecodeError>) {
    understood_with(reader, pieces, |_| 0)
}

/// The same, but parts of large DATA are spliced: the function returns their size, given the bytes that have arrived.
pub fn understood_with<'a>(
    reader: &mut CommandReader,
    pieces: impl IntoIterator<Item = &'a [u8]>,
    mut spliced: impl FnMut(usize) -> usize,
) -> (Vec<Said>, Option<DecodeError>) {
    let mut said = Vec::new();
    for piece in pieces {
        let mut rest = piece;
        while !rest.is_empty() {
            if let Some((conn, missing)) = reader.spliceable() {
                let count = spliced(rest.len().min(missing));
                if count > 0 {
                    reader.spliced(count);
                    push_data(&mut said, conn, &rest[..count]);
                    rest = &rest[count..];
                    continue;
                }
            }
            let space = reader.space();
            let count = rest.len().min(space.len());
            assert!(count > 0, "there is always space");
            space[..count].copy_from_slice(&rest[..count]);
            reader.filled(count);
            rest = &rest[count..];
            if let Some(error) = take_all(reader, &mut said) {
                return (said, Some(error));
            }
        }
    }
    (said, None)
}

fn take_all(reader: &mut CommandReader, said: &mut Vec<Said>) -> Option<DecodeError> {
    loop {
        match reader.next() {
            Ok(None) => return None,
            Err(error) => return Some(error),
            Ok(Some(Input::Command(command))) => said.push(Said::Command(command)),
            Ok(Some(Input::Data { conn, bytes })) => {
                assert!(!bytes.is_empty());
                push_data(said, conn, bytes);
            }
        }
    }
}

fn push_data(said: &mut Vec<Said>, conn: u32, bytes: &[u8]) {
    match said.last_mut() {
        Some(Said::Data(last, before)) if *last == conn => before.extend(bytes),
        _ => said.push(Said::Data(conn, bytes.to_vec())),
    }
}
