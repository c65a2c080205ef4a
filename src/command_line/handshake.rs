//! The messages of the distribution handshake, protocol version 6 (erl_dist_protocol), as the side
//! sees them that connects, and that lets the node choose its name. Pure.
//!
//! ```text
//!           client                                  node
//!            | name: flags, host -------------------> |
//!            | <---------- status: named, name for us |   or: not_allowed, and others
//!            | <- challenge: flags, number, its name  |
//!            | reply: our number, digest of its ----> |   a node that cannot check it closes
//!            | <----------------- ack: digest of ours |
//! ```
//!
//! A name that the node gives is one that it takes back and gives to the next one: names of our own
//! would each stay in its table of atoms for ever, and a health check every few seconds would fill that.

use crate::cookie::Cookie;
use crate::etf::Identity;
use md5::{Digest, Md5};
use std::fmt;
use std::str;

/// Bytes of the longest message: the longest node name has 255 characters, of 4 bytes at most.
pub const MAX_MESSAGE: usize = 2048;

/// Capabilities, numbered as in OTP's dist.hrl. Without DIST_HDR_ATOM_CACHE and FRAGMENTS each
/// message comes whole, with all its atoms; without PUBLISHED we are hidden.
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

/// What a node must have for us to talk to it: every OTP since 23 has it.
const NEEDED: u64 = HANDSHAKE_23 | SPAWN;

/// Shows that somebody knows the cookie.
pub type Proof = [u8; 16];

/// The digest of a challenge.
pub fn proof(cookie: &Cookie, challenge: u32) -> Proof {
    Md5::new()
        .chain_update(cookie.as_bytes())
        .chain_update(challenge.to_string())
        .finalize()
        .into()
}

/// The first message: whoever we are, we are on this host.
pub fn name(host: &str) -> Vec<u8> {
    let creation = 0u32; // the node chooses it with the name
    let mut message = vec![b'N'];
    message.extend(FLAGS.to_be_bytes());
    message.extend(creation.to_be_bytes());
    message.extend((host.len() as u16).to_be_bytes());
    message.extend(host.as_bytes());
    message
}

/// The node's first answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// It goes on, and this is who we are.
    Named(Identity),
    /// It does not: `not_allowed` for one.
    Other(String),
}

impl Status {
    /// Reads the message.
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
    /// To be digested with the cookie.
    pub number: u32,
    /// The node's name.
    pub node: String,
}

impl Challenge {
    /// Reads the message.
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

/// Our answer to the challenge, with a challenge of ours.
pub fn reply(challenge: u32, proof: Proof) -> Vec<u8> {
    let mut message = vec![b'r'];
    message.extend(challenge.to_be_bytes());
    message.extend(proof);
    message
}

/// The node's answer to our challenge.
pub fn decode_ack(message: &[u8]) -> Result<Proof, Malformed> {
    let mut fields = Fields(message);
    fields.tag(b'a', "acknowledgement")?;
    fields.array("digest")
}

/// A message of the handshake that has not what it should have here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "its {} is not that of a node of OTP 25 or later", self.0)
    }
}

/// What follows the last field belongs to later versions of the protocol and is ignored.
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

    fn name(&mut self) -> Result<String, Malformed> {
        let malformed = Malformed("name");
        let length = u16::from_be_bytes(self.array("name")?);
        let (name, rest) = self.0.split_at_checked(length.into()).ok_or(malformed)?;
        self.0 = rest;
        match str::from_utf8(name) {
            // It is shown to people before the node has proved anything.
            Ok(name) if name.contains('@') && !name.contains(char::is_control) => Ok(name.into()),
            _ => Err(malformed),
        }
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], Malformed> {
        let (array, rest) = self.0.split_first_chunk().ok_or(Malformed(field))?;
        self.0 = rest;
        Ok(*array)
    }
}
