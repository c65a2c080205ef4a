//! Reads the golden vectors. Their format is described in the file.

use std::collections::BTreeMap;
use uds_dist::failure::Reason;
use uds_dist::log_line::{Cause, Level, Line, Subject};
use uds_dist::peer::{Base, Credentials, Policy};
use uds_dist::port::protocol::{Command, Report, Status};

const VECTORS: &str = include_str!("../port_protocol.vectors");

/// The sender of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    Vm,
    Sidecar,
}

#[derive(Debug)]
pub struct Vector {
    pub name: &'static str,
    pub from: Sender,
    pub body: Vec<u8>,
    /// The packet, unless it is rejected.
    pub packet: Option<Packet>,
    /// The reason why it is rejected, or an empty text.
    pub rejected: String,
}

impl Vector {
    /// The bytes of the packet in the stream.
    pub fn with_length(&self) -> Vec<u8> {
        [&(self.body.len() as u32).to_be_bytes(), &self.body[..]].concat()
    }
}

#[derive(Debug)]
pub struct Packet {
    pub name: &'static str,
    fields: BTreeMap<&'static str, Value>,
}

#[derive(Debug)]
enum Value {
    Number(u64),
    Bytes(Vec<u8>),
}

impl Packet {
    pub fn number<T: TryFrom<u64>>(&self, field: &str) -> T {
        match self.fields.get(field) {
            Some(Value::Number(number)) => T::try_from(*number)
                .unwrap_or_else(|_| panic!("{} {field}={number} is too high", self.name)),
            other => panic!("{} {field} is {other:?}", self.name),
        }
    }

    pub fn bytes(&self, field: &str) -> &[u8] {
        match self.fields.get(field) {
            Some(Value::Bytes(bytes)) => bytes,
            other => panic!("{} {field} is {other:?}", self.name),
        }
    }

    fn text(&self, field: &str) -> String {
        String::from_utf8(self.bytes(field).to_vec()).expect("a text")
    }

    fn reason(&self) -> Reason {
        let number: u8 = self.number("reason");
        Reason::ALL[usize::from(number) - 1]
    }

    fn policy(&self) -> Policy {
        let base: u8 = self.number("base");
        let bases = [Base::Nobody, Base::OwnUserAndRoot, Base::Anybody];
        Policy {
            base: bases[usize::from(base)],
            uids: self.numbers("uids"),
            gids: self.numbers("gids"),
        }
    }

    fn numbers(&self, field: &str) -> Vec<u32> {
        let text = self.text(field);
        let numbers = text.split_whitespace().map(str::parse);
        numbers.collect::<Result<_, _>>().expect("numbers")
    }

    fn peer(&self) -> Credentials {
        Credentials {
            uid: self.number("uid"),
            gid: self.number("gid"),
            pid: self.number("pid"),
        }
    }

    fn line(&self) -> Line {
        let level: u8 = self.number("level");
        let cause: usize = self.number("reason");
        let subject: u8 = self.number("subject");
        let name = self.text("name");
        Line {
            level: Level::ALL[usize::from(level) - 3],
            cause: cause.checked_sub(1).map(|index| Cause::ALL[index]),
            peer: self.peer(),
            subject: match subject {
                0 => Subject::Nothing,
                1 => Subject::Address(name),
                _ => Subject::Node(name),
            },
            text: self.text("text"),
        }
    }

    pub fn command(&self) -> Command {
        match self.name {
            "LISTEN" => Command::Listen {
                listener: self.number("listener"),
                backlog: self.number("backlog"),
                mode: self.number("mode"),
                vm_pid: self.number("vm_pid"),
                address: self.bytes("address").to_vec(),
            },
            "UNLISTEN" => Command::Unlisten {
                listener: self.number("listener"),
            },
            "CONNECT" => Command::Connect {
                conn: self.number("conn"),
                address: self.bytes("address").to_vec(),
            },
            "ESTABLISHED" => Command::Established {
                conn: self.number("conn"),
                node: self.text("node"),
            },
            "CLOSE" => Command::Close {
                conn: self.number("conn"),
            },
            "HAND_OVER" => Command::HandOver {
                conn: self.number("conn"),
                node: self.text("node"),
            },
            "OPEN_CHANNEL" => Command::OpenChannel {
                vm_pid: self.number("vm_pid"),
                directory: self.bytes("directory").to_vec(),
            },
            "ADMIT" => Command::Admit(self.policy()),
            "ASK_STATUS" => Command::AskStatus,
            "ACK" => Command::Ack {
                conn: self.number("conn"),
                count: self.number("count"),
            },
            other => panic!("{other} is no packet of the VM"),
        }
    }

    pub fn report(&self) -> Report {
        match self.name {
            "HELLO" => Report::Hello {
                version: self.number("version"),
                window: self.number("window"),
                release: self.text("release"),
            },
            "LISTENING" => Report::Listening {
                listener: self.number("listener"),
            },
            "LISTEN_FAILED" => Report::ListenFailed {
                listener: self.number("listener"),
                reason: self.reason(),
                explanation: self.text("explanation"),
            },
            "UNLISTENED" => Report::Unlistened {
                listener: self.number("listener"),
            },
            "ACCEPTED" => Report::Accepted {
                conn: self.number("conn"),
                peer: self.peer(),
                address: self.bytes("address").to_vec(),
            },
            "CONNECTED" => Report::Connected {
                conn: self.number("conn"),
                peer: self.peer(),
            },
            "CONNECT_FAILED" => Report::ConnectFailed {
                conn: self.number("conn"),
                reason: self.reason(),
                explanation: self.text("explanation"),
            },
            "ACK" => Report::Ack {
                conn: self.number("conn"),
                count: self.number("count"),
            },
            "CLOSED" => Report::Closed {
                conn: self.number("conn"),
                reason: self.reason(),
                explanation: self.text("explanation"),
            },
            "HANDED_OVER" => Report::HandedOver {
                conn: self.number("conn"),
            },
            "RELAYED" => Report::Relayed {
                conn: self.number("conn"),
            },
            "CHANNEL" => Report::Channel {
                address: self.bytes("address").to_vec(),
            },
            "CHANNEL_FAILED" => Report::ChannelFailed {
                explanation: self.text("explanation"),
            },
            "LISTENER_LOST" => Report::ListenerLost {
                listener: self.number("listener"),
                explanation: self.text("explanation"),
            },
            "LOG" => Report::Log(self.line()),
            "STATUS" => Report::Status(Status {
                descriptors: self.number("descriptors"),
                descriptor_limit: self.number("descriptor_limit"),
                memory: self.number("memory"),
            }),
            other => panic!("{other} is no packet of the sidecar"),
        }
    }
}

/// The vectors of one sender.
pub fn vectors_of(sender: Sender) -> Vec<Vector> {
    let mut vectors = vectors();
    vectors.retain(|vector| vector.from == sender);
    vectors
}

/// All vectors.
pub fn vectors() -> Vec<Vector> {
    let lines: Vec<_> = VECTORS
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect();
    lines.chunks(4).map(vector).collect()
}

fn vector(lines: &[&'static str]) -> Vector {
    let value = |index: usize, key: &str| -> &'static str {
        let line = lines.get(index).copied().unwrap_or_default();
        let value = line.strip_prefix(key);
        value
            .unwrap_or_else(|| panic!("not a {key} line: {line}"))
            .trim()
    };
    let name = value(0, "packet");
    let is = value(3, "is");
    let rejected = is.strip_prefix("rejected ");
    Vector {
        name,
        from: match value(1, "from") {
            "vm" => Sender::Vm,
            "sidecar" => Sender::Sidecar,
            other => panic!("{name} is from {other}"),
        },
        body: value(2, "body")
            .split_whitespace()
            .flat_map(hexadecimal)
            .collect(),
        packet: match rejected {
            Some(_) => None,
            None => Some(packet(is)),
        },
        rejected: rejected.unwrap_or_default().to_owned(),
    }
}

/// Parses bytes: `6162*2` stands for 61 62 61 62.
fn hexadecimal(word: &str) -> Vec<u8> {
    let (digits, count) = match word.split_once('*') {
        None => (word, 1),
        Some((digits, count)) => (digits, count.parse().expect("a count")),
    };
    let pairs = (0..digits.len()).step_by(2);
    let bytes: Vec<_> = pairs
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hexadecimal"))
        .collect();
    bytes.repeat(count)
}

/// Parses `NAME field=value ...`.
fn packet(text: &'static str) -> Packet {
    let (name, mut rest) = text.split_once(' ').unwrap_or((text, ""));
    let mut fields = BTreeMap::new();
    while let Some((field, value)) = rest.split_once('=') {
        let value_of = if value.starts_with('"') {
            strings(value)
        } else {
            number(value)
        };
        fields.insert(field.trim_start(), value_of.0);
        rest = value_of.1;
    }
    assert_eq!(rest, "", "{text}");
    Packet { name, fields }
}

fn number(text: &'static str) -> (Value, &'static str) {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let number = text[..end].parse().expect("a number");
    (Value::Number(number), &text[end..])
}

/// Parses text: `"ab"*2"c"` stands for the bytes of ababc.
fn strings(mut text: &'static str) -> (Value, &'static str) {
    let mut bytes = Vec::new();
    while let Some(opened) = text.strip_prefix('"') {
        let (inside, rest) = opened.split_once('"').expect("an end of the string");
        text = rest;
        let mut count = 1;
        if let Some(repeated) = text.strip_prefix('*') {
            let (times, rest) = number(repeated);
            if let Value::Number(times) = times {
                count = times as usize;
            }
            text = rest;
        }
        bytes.extend(unescaped(inside).repeat(count));
    }
    (Value::Bytes(bytes), text)
}

fn unescaped(text: &str) -> Vec<u8> {
    let mut parts = text.split('\\');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let end = match part.as_bytes() {
            [b'0', ..] => {
                bytes.push(0);
                1
            }
            [b'x', ..] => {
                bytes.extend(hexadecimal(&part[1..3]));
                3
            }
            _ => panic!("escape \\{part}"),
        };
        bytes.extend(&part.as_bytes()[end..]);
    }
    bytes
}
