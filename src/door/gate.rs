//! The gate: checks whether the first message of an incoming peer can be that of a node. No I/O.
//!
//! A node says its name first: a frame with a 16-bit length and the message `send_name` of
//! erl_dist_protocol, in one of two forms.
//!
//! ```text
//! N flags:64 creation:32 length:16 name:length ...   since OTP 23; more fields may follow
//! n version:16 flags:32 name:rest                    of older ones, and of OTP 23 and 24 without epmd
//! ```
//!
//! A node that asks to be given a name sets the flag NAME_ME and sends its host instead. The VM challenges
//! every peer that passes; whatever cannot be a node never reaches it. The gate does not look at anything
//! that follows this message.

/// Bytes of the length field at the start of a handshake frame.
const HEAD: usize = 2;

/// Longest first message in bytes. Today's need 270 at most; the rest is room for fields that a later OTP may
/// append.
pub const MAX_MESSAGE: usize = 512;

/// Most bytes that a gate holds.
pub const MAX_HELD: usize = HEAD + MAX_MESSAGE;

/// Bytes before the name, in the two forms of the message.
const BEFORE_NAME: usize = 15;
const BEFORE_OLD_NAME: usize = 7;

/// Longest node name in bytes: an atom has at most 255 characters, and each is one byte here, as dist_util of
/// every OTP release sends and reads names in Latin-1.
pub const MAX_NAME: usize = 255;

/// Bytes of the name that net_kernel gives to a node that asks for one: 64 random bits in base 36.
const GIVEN_NAME: usize = 13;

/// Longest host in bytes that still leaves room for a given name and the `@`.
pub const MAX_HOST: usize = MAX_NAME - GIVEN_NAME - 1;

// Capabilities, numbered as in OTP's dist.hrl.
const HANDSHAKE_23: u64 = 0x0100_0000;
/// Since OTP 25, one bit stands for HANDSHAKE_23 and other mandatory flags. The bits above it are reserved
/// for those of later releases.
const DIGESTS: u64 = 0xfc00_0000;
const NAME_ME: u64 = 1 << 33;

/// The result of examining a first message, or its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The message is not complete, and valid so far.
    Incomplete,
    /// The message can be that of a node.
    Plausible,
    /// The message cannot be that of a node, for this reason.
    Implausible(&'static str),
}

/// The node name of an incoming peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// The name that the peer sent.
    Own(String),
    /// The peer asks for a name, and the VM will choose one that was never used before.
    ToBeGiven,
}

/// The gate for one incoming peer.
#[derive(Debug, Default)]
pub struct Gate {
    /// The bytes received so far, [`MAX_HELD`] at most.
    bytes: Vec<u8>,
}

impl Gate {
    /// Number of bytes that [`push`](Self::push) takes now; never 0 while the message is incomplete.
    pub fn room(&self) -> usize {
        MAX_HELD - self.bytes.len()
    }

    /// Adds the next bytes of the peer, and examines what has been received.
    ///
    /// # Panics
    /// If there are more bytes than [`room`](Self::room).
    pub fn push(&mut self, bytes: &[u8]) -> Verdict {
        assert!(bytes.len() <= self.room());
        self.bytes.extend(bytes);
        examine(&self.bytes)
    }

    /// The peer's name and all bytes received, for the VM; `None` if the message is not that of a node.
    pub fn pass(self) -> Option<(Name, Vec<u8>)> {
        let name = parse(&self.bytes).ok()??.name();
        Some((name, self.bytes))
    }
}

/// Examines the beginning of a message, and rejects it as early as possible.
fn examine(bytes: &[u8]) -> Verdict {
    match parse(bytes) {
        Ok(Some(_)) => Verdict::Plausible,
        Ok(None) => Verdict::Incomplete,
        Err(problem) => Verdict::Implausible(problem),
    }
}

fn parse(bytes: &[u8]) -> Result<Option<Claim<'_>>, &'static str> {
    let Some((head, frame)) = bytes.split_first_chunk::<HEAD>() else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes(*head));
    if length > MAX_MESSAGE {
        return Err("the message is too long");
    }
    let message = &frame[..frame.len().min(length)];
    let is_complete = message.len() == length;
    let claim = match message.first() {
        Some(b'N') => name(message, length)?,
        Some(b'n') => old_name(message, length)?,
        Some(_) => return Err("it is not the message with which a handshake begins"),
        None if is_complete => return Err("the message is empty"),
        None => None,
    };
    match claim {
        Some(claim) if is_complete => claim.check().map(|()| Some(claim)),
        _ => Ok(None),
    }
}

/// The content of a first message.
#[derive(Debug, Clone, Copy)]
enum Claim<'a> {
    /// The node's name.
    Name(&'a [u8]),
    /// The host of a node that asks to be given a name.
    Host(&'a [u8]),
}

/// Parses a message of `length` bytes of which `message` has been received; `None` until that includes the
/// name.
fn name(message: &[u8], length: usize) -> Result<Option<Claim<'_>>, &'static str> {
    if length < BEFORE_NAME {
        return Err("the message is too short");
    }
    let Some((before, rest)) = message.split_first_chunk::<BEFORE_NAME>() else {
        return Ok(None);
    };
    let [_, flags @ .., _, _, _, _, high, low] = before;
    let flags = u64::from_be_bytes(*flags);
    if flags & (HANDSHAKE_23 | DIGESTS) == 0 {
        return Err("its flags are those of a node that does not know this message");
    }
    let name_length = usize::from(u16::from_be_bytes([*high, *low]));
    if name_length > length - BEFORE_NAME {
        return Err("the name is longer than the message");
    }
    let name = rest.get(..name_length);
    Ok(name.map(|name| match flags & NAME_ME {
        0 => Claim::Name(name),
        _ => Claim::Host(name),
    }))
}

fn old_name(message: &[u8], length: usize) -> Result<Option<Claim<'_>>, &'static str> {
    if length < BEFORE_OLD_NAME {
        return Err("the message is too short");
    }
    let name = message.get(BEFORE_OLD_NAME..length);
    Ok(name.map(Claim::Name))
}

impl Claim<'_> {
    fn name(&self) -> Name {
        match self {
            Claim::Name(name) => Name::Own(name.iter().map(|byte| char::from(*byte)).collect()),
            Claim::Host(_) => Name::ToBeGiven,
        }
    }

    fn check(&self) -> Result<(), &'static str> {
        let (text, limit, parts) = match *self {
            Claim::Name(name) => (name, MAX_NAME, 2),
            Claim::Host(host) => (host, MAX_HOST, 1),
        };
        if text.len() > limit {
            return Err("the name is too long");
        }
        if !text.iter().all(is_printable) {
            return Err("the name contains characters that are not allowed in node names");
        }
        let mut found = 0;
        for part in text.split(|byte| *byte == b'@') {
            if part.is_empty() {
                return Err("the name or the host is empty");
            }
            found += 1;
        }
        match found == parts {
            true => Ok(()),
            false => Err("it is not name@host"),
        }
    }
}

/// True for the characters that net_kernel allows in a host: `!` to `ÿ` of Latin-1, without control
/// characters.
fn is_printable(byte: &u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xa0..=0xff)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Verdict::{Implausible, Incomplete, Plausible};

    /// The flags that OTP 27 sends, which include MANDATORY_25_DIGEST.
    const FLAGS: u64 = 0x0d_07df_7fbd;

    fn framed(message: &[u8]) -> Vec<u8> {
        [&(message.len() as u16).to_be_bytes(), message].concat()
    }

    fn new(flags: u64, name: &[u8]) -> Vec<u8> {
        let length = (name.len() as u16).to_be_bytes();
        let creation = 0x1234_5678_u32.to_be_bytes();
        framed(&[b"N", &flags.to_be_bytes()[..], &creation, &length, name].concat())
    }

    fn old(name: &[u8]) -> Vec<u8> {
        framed(&[b"n\0\x05\x01\x03\x7f\xff", name].concat())
    }

    fn long(count: usize, host: &str) -> Vec<u8> {
        [&vec![b'a'; count - host.len()], host.as_bytes()].concat()
    }

    #[test]
    fn accepts_the_messages_of_nodes() {
        for frame in [
            new(FLAGS, b"a@b"),
            new(FLAGS, b"app_1-x@host.example.org"),
            new(FLAGS, b"caf\xe9@h\xf6st"),
            new(FLAGS, &long(MAX_NAME, "@host")),
            new(FLAGS | NAME_ME, b"host"),
            new(FLAGS | NAME_ME, &long(MAX_HOST, "host")),
            new(HANDSHAKE_23, b"c1@host"),
            new(0x8000_0000, b"later@host"),
            old(b"a@host"),
            old(&long(MAX_NAME, "@host")),
        ] {
            assert_eq!(examine(&frame), Plausible, "{frame:?}");
            for end in 0..frame.len() {
                assert_eq!(examine(&frame[..end]), Incomplete, "{end} of {frame:?}");
            }
        }
    }

    #[test]
    fn fields_of_later_versions_may_follow_the_name() {
        let mut frame = new(FLAGS, b"a@b");
        frame.extend(b"later");
        frame[1] += 5;
        assert_eq!(examine(&frame), Plausible);
        assert_eq!(examine(&frame[..frame.len() - 1]), Incomplete);
    }

    #[test]
    fn ignores_bytes_after_the_frame() {
        let mut frame = new(FLAGS, b"a@b");
        frame.extend(b"\xff\xff\0\x01");
        assert_eq!(examine(&frame), Plausible);
    }

    #[test]
    fn rejects_messages_that_no_node_sends() {
        for (frame, problem) in [
            (framed(b""), "empty"),
            (framed(&[b'N'; MAX_MESSAGE + 1]), "too long"),
            (b"\xff\xff".to_vec(), "too long"),
            (b"GET / HTTP".to_vec(), "too long"),
            (framed(b"s"), "not the message"),
            (framed(b"a12345678"), "not the message"),
            (framed(b"N"), "too short"),
            (framed(b"n12345"), "too short"),
            (new(FLAGS, b""), "empty"),
            (new(FLAGS, b"a"), "not name@host"),
            (new(FLAGS, b"a@b@c"), "not name@host"),
            (new(FLAGS, b"a@"), "empty"),
            (new(FLAGS, b"@b"), "empty"),
            (new(FLAGS, &long(MAX_NAME + 1, "@host")), "too long"),
            (new(FLAGS, b"a b@host"), "characters"),
            (new(FLAGS, b"a\n@host"), "characters"),
            (new(FLAGS, b"a@host\0"), "characters"),
            (new(FLAGS, b"a\x1b[2J@host"), "characters"),
            (new(FLAGS, b"a\x9b2J@host"), "characters"),
            (new(FLAGS, b"a@host\x7f"), "characters"),
            (new(FLAGS | NAME_ME, b""), "empty"),
            (new(FLAGS | NAME_ME, b"a@b"), "not name@host"),
            (new(FLAGS | NAME_ME, &long(MAX_HOST + 1, "h")), "too long"),
            (new(0, b"a@b"), "flags"),
            (new(NAME_ME, b"host"), "flags"),
            (old(b""), "empty"),
            (old(b"host"), "not name@host"),
            (old(&long(MAX_NAME + 1, "@host")), "too long"),
        ] {
            let verdict = examine(&frame);
            let Implausible(why) = verdict else {
                panic!("{verdict:?}: {frame:?}");
            };
            assert!(why.contains(problem), "{why}: {frame:?}");
        }
    }

    #[test]
    fn rejects_a_name_longer_than_its_message() {
        let mut frame = new(FLAGS, b"a@b");
        frame[16] += 1;
        assert!(matches!(examine(&frame), Implausible(_)));
        assert!(matches!(examine(&frame[..17]), Implausible(_)));
        assert_eq!(examine(&frame[..16]), Incomplete);
    }

    #[test]
    fn rejects_a_wrong_beginning_at_once() {
        assert!(matches!(examine(b"\x02\x01"), Implausible(_)));
        assert!(matches!(examine(b"\0\x20s"), Implausible(_)));
        assert!(matches!(examine(b"\0\x0eN"), Implausible(_)));
    }

    #[test]
    fn keeps_all_received_bytes_up_to_its_limit() {
        let mut frame = new(FLAGS, b"a@b");
        frame.resize(HEAD + MAX_MESSAGE, 7);
        let mut gate = Gate::default();
        assert_eq!(gate.push(&frame[..5]), Incomplete);
        assert_eq!(gate.room(), frame.len() - 5);
        assert_eq!(gate.push(&frame[5..]), Plausible);
        assert_eq!(gate.pass(), Some((Name::Own("a@b".into()), frame)));
    }

    #[test]
    fn returns_the_name_of_a_node() {
        for (frame, name) in [
            (
                new(FLAGS, b"caf\xe9@h"),
                Some(Name::Own("caf\u{e9}@h".into())),
            ),
            (old(b"a@b"), Some(Name::Own("a@b".into()))),
            (new(FLAGS | NAME_ME, b"host"), Some(Name::ToBeGiven)),
            (new(FLAGS, b"host"), None),
        ] {
            let mut gate = Gate::default();
            gate.push(&frame);
            assert_eq!(gate.pass().map(|(name, _)| name), name);
        }
    }
}
