//! The messages of the distribution handshake (erl_dist_protocol, version 6), for a client that asks the node for
//! a name. Pure.
//!
//! ```text
//!           client                                  node
//!            | name: flags, host -------------------> |
//!            | <---------- status: named, name for us |   or another status, such as not_allowed
//!            | <- challenge: flags, number, its name  |
//!            | reply: our number, digest of its ----> |   if it is wrong, the node closes
//!            | <----------------- ack: digest of ours |
//! ```
//!
//! The node reuses names that it gives. If we chose names of our own, each would stay in the node's table of atoms
//! for ever, and a health check every few seconds would fill the table.

use crate::cookie::Cookie;
use crate::etf::Identity;
use md5::{Digest, Md5};
use std::fmt;

/// Longest message in bytes. The longest node name takes 255 of them, and later versions of the protocol may append fields.
pub const MAX_MESSAGE: usize = 2048;

/// Our capabilities, numbered as in OTP's dist.hrl. Without DIST_HDR_ATOM_CACHE and FRAGMENTS, each message arrives
/// in one piece and contains all its atoms. Without PUBLISHED, we are a hidden node.
const FLAGS: u64 = EXTENDED_REFERENCES
    | DIST_MONITOR
    | FUN_TAGS
    | NEW_FUN_TAGS
    | EXTENDED_PIDS_PORTS
    | EXPORT_PTR_TAG
    | BIT_BINARIES
    | NEW_FLOATS
    | UNICODE_IO
    | SMALL_ATOM_TAGS
    | UTF8_ATOMS
    | MAP_TAG
    | BIG_CREATION
    | HANDSHAKE_23
    | UNLINK_ID
    | MANDATORY_25_DIGEST
    | SPAWN
    | NAME_ME
    | V4_NC;

const EXTENDED_REFERENCES: u64 = 0x4;
const DIST_MONITOR: u64 = 0x8;
const FUN_TAGS: u64 = 0x10;
const NEW_FUN_TAGS: u64 = 0x80;
const EXTENDED_PIDS_PORTS: u64 = 0x100;
const EXPORT_PTR_TAG: u64 = 0x200;
const BIT_BINARIES: u64 = 0x400;
const NEW_FLOATS: u64 = 0x800;
const UNICODE_IO: u64 = 0x1000;
const SMALL_ATOM_TAGS: u64 = 0x4000;
const UTF8_ATOMS: u64 = 0x1_0000;
const MAP_TAG: u64 = 0x2_0000;
const BIG_CREATION: u64 = 0x4_0000;
const HANDSHAKE_23: u64 = 0x100_0000;
const UNLINK_ID: u64 = 0x200_0000;
const MANDATORY_25_DIGEST: u64 = 0x400_0000;
const SPAWN: u64 = 1 << 32;
const NAME_ME: u64 = 1 << 33;
const V4_NC: u64 = 1 << 34;

/// Capabilities that a node must have. Every OTP since 23 has them.
const NEEDED: u64 = HANDSHAKE_23 | SPAWN;

/// A digest that proves the knowledge of the cookie.
pub type Proof = [u8; 16];

/// The proof for a challenge.
pub fn proof(cookie: &Cookie, challenge: u32) -> Proof {
    Md5::new()
        .chain_update(cookie.as_bytes())
        .chain_update(challenge.to_string())
        .finalize()
        .into()
}

/// The first message, with which we ask for a name on this host.
pub fn name(host: &str) -> Vec<u8> {
    let creation = 0u32; // the node chooses it with the name
    let mut message = vec![b'N'];
    message.extend(FLAGS.to_be_bytes());
    message.extend(creation.to_be_bytes());
    message.extend((host.len() as u16).to_be_bytes());
    message.extend(host.as_bytes());
    message
}

/// The status that the node answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// The handshake continues, and this is our name.
    Named(Identity),
    /// The node refuses, for example with `not_allowed`.
    Other(String),
}

impl Status {
    /// Decodes the message.
    pub fn decode(message: &[u8]) -> Result<Status, Malformed> {
        let mut fields = Fields(message);
        fields.tag(b's', "status")?;
        match fields.0.strip_prefix(b"named:") {
            None => Ok(Status::Other(fields.0.escape_ascii().to_string())),
            Some(rest) => {
                let mut fields = Fields(rest);
                let node = fields.name()?;
                let creation = fields.u32("creation")?;
                Ok(Status::Named(Identity { node, creation }))
            }
        }
    }
}

/// The node's challenge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// The number to digest together with the cookie.
    pub number: u32,
    /// The node's name.
    pub node: String,
}

impl Challenge {
    /// Decodes the message.
    pub fn decode(message: &[u8]) -> Result<Challenge, Malformed> {
        let mut fields = Fields(message);
        fields.tag(b'N', "challenge")?;
        let flags = u64::from_be_bytes(fields.array("flags")?);
        let number = fields.u32("challenge")?;
        fields.u32("creation")?;
        let node = fields.name()?;
        if flags & NEEDED != NEEDED {
            return Err(Malformed("capabilities"));
        }
        Ok(Challenge { number, node })
    }
}

/// Our answer to the challenge, which also contains a challenge of ours.
pub fn reply(challenge: u32, proof: Proof) -> Vec<u8> {
    let mut message = vec![b'r'];
    message.extend(challenge.to_be_bytes());
    message.extend(proof);
    message
}

/// Decodes the node's answer to our challenge.
pub fn decode_ack(message: &[u8]) -> Result<Proof, Malformed> {
    let mut fields = Fields(message);
    fields.tag(b'a', "acknowledgement")?;
    fields.array("digest")
}

/// A message of the handshake is not valid. The text names its invalid field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "its {} is not that of a node of OTP 25 or later", self.0)
    }
}

/// The fields of a message that have not been read. Bytes after the last known field belong to later versions of
/// the protocol and are ignored.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn tag(&mut self, expected: u8, field: &'static str) -> Result<(), Malformed> {
        match self.array(field)? {
            [tag] if tag == expected => Ok(()),
            [_] => Err(Malformed(field)),
        }
    }

    fn u32(&mut self, field: &'static str) -> Result<u32, Malformed> {
        Ok(u32::from_be_bytes(self.array(field)?))
    }

    /// A name, which is in Latin-1 in the handshake.
    fn name(&mut self) -> Result<String, Malformed> {
        let malformed = Malformed("name");
        let length = u16::from_be_bytes(self.array("name")?);
        let (name, rest) = self.0.split_at_checked(length.into()).ok_or(malformed)?;
        self.0 = rest;
        let name: String = name.iter().map(|byte| char::from(*byte)).collect();
        // The name is printed before the node has proved anything, so it must not control a terminal.
        match name.contains('@') && !name.contains(char::is_control) {
            true => Ok(name),
            false => Err(malformed),
        }
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], Malformed> {
        let (array, rest) = self.0.split_first_chunk().ok_or(Malformed(field))?;
        self.0 = rest;
        Ok(*array)
    }
}
