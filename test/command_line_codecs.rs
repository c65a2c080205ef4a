//! The parts of the command line that do no I/O: terms, JSON, messages of the handshake, and arguments. Also the sources
//! of the cookie.

mod fixtures;

use fixtures::{LIMIT, TempDir};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};
use uds_dist::address::Address;
#[cfg(target_os = "linux")]
use uds_dist::os::sock_diag;
use uds_dist::peer::{Base, Policy};
use uds_dist_command_line::arguments::{
    self, Access, Invocation, Language, Printed, Program, Request, Talk,
};
use uds_dist_command_line::call::Job;
use uds_dist_command_line::cookie::{Cookie, Source};
use uds_dist_command_line::escape;
use uds_dist_command_line::etf::{Identity, Item, Malformed, Reader, Writer};
use uds_dist_command_line::failure::{Failure, Kind};
use uds_dist_command_line::handshake::{self, Challenge, Status};
use uds_dist_command_line::json::{self, Limits};
use uds_dist_command_line::location::{Directory, Location};
use uds_dist_command_line::names;
use uds_dist_command_line::units::rfc3339;

// --- terms ---------------------------------------------------------------------------------------

/// Terms as `erlang:term_to_binary/1` writes them, with their JSON.
const TERMS: &[(&str, &[u8], &str)] = &[
    ("0", &[131, 97, 0], "0"),
    ("-1", &[131, 98, 255, 255, 255, 255], "-1"),
    ("1 bsl 31", &[131, 110, 4, 0, 0, 0, 0, 128], "2147483648"),
    (
        "-(1 bsl 64)",
        &[131, 110, 9, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        "-18446744073709551616",
    ),
    (
        "10000000000000000000, with groups of digits that are 0",
        &[131, 110, 8, 0, 0, 0, 232, 137, 4, 35, 199, 138],
        "10000000000000000000",
    ),
    ("an integer without a byte", &[131, 110, 0, 0], "0"),
    ("1.5", &[131, 70, 63, 248, 0, 0, 0, 0, 0, 0], "1.5"),
    ("1.0e300", &[131, 70, 126, 55, 228, 60, 136, 0, 117, 156], "1e300"),
    ("true", &[131, 119, 4, 116, 114, 117, 101], "true"),
    ("undefined", b"\x83w\x09undefined", "null"),
    ("'\u{e9}'", &[131, 119, 2, 195, 169], "\"\u{e9}\""),
    ("'\u{e9}' of an old peer", &[131, 100, 0, 1, 233], "\"\u{e9}\""),
    ("<<\"a\\\"\\n\">>", b"\x83m\0\0\0\x03a\"\n", r#""a\"\n""#),
    ("<<0>>", &[131, 109, 0, 0, 0, 1, 0], r#""\u0000""#),
    ("<<255, 1>>", &[131, 109, 0, 0, 0, 2, 255, 1], r#""<<255,1>>""#),
    ("<<5:3>>", &[131, 77, 0, 0, 0, 1, 3, 160], r#""<<5:3>>""#),
    ("<<9, 1:1>>", &[131, 77, 0, 0, 0, 2, 1, 9, 128], r#""<<9,1:1>>""#),
    ("[]", &[131, 106], "[]"),
    ("[1, 2]", &[131, 107, 0, 2, 1, 2], "[1,2]"),
    ("[a | b]", b"\x83l\0\0\0\x01w\x01aw\x01b", r#"["a","b"]"#),
    ("[[]]", &[131, 108, 0, 0, 0, 1, 106, 106], "[[]]"),
    ("a tail alone", &[131, 108, 0, 0, 0, 0, 97, 7], "[7]"),
    ("{}", &[131, 104, 0], "[]"),
    ("{1, {2}}", &[131, 104, 2, 97, 1, 104, 1, 97, 2], "[1,[2]]"),
    (
        "#{a => 1, 2 => b, {} => 3}",
        b"\x83t\0\0\0\x03w\x01aa\x01a\x02w\x01bh\0a\x03",
        r#"{"a":1,"2":"b","[]":3}"#,
    ),
    ("#{true => 1}", b"\x83t\0\0\0\x01w\x04truea\x01", r#"{"true":1}"#),
    (
        "#nr:vec{x = 5, y = {}}",
        b"\x83C\0\0\0\x02\0w\x02nrw\x03vecw\x01xw\x01ya\x05h\0",
        r#"{"x":5,"y":[]}"#,
    ),
    (
        "a pid",
        b"\x83Xw\x03a@b\0\0\0\x54\0\0\0\x01\x01\x02\x03\x04",
        r#""<0.84.1>""#,
    ),
    (
        "a port",
        b"\x83xw\x03a@b\0\0\0\x01\0\0\0\0\0\0\0\0",
        "\"#Port<0.4294967296>\"",
    ),
    (
        "a port of an old peer",
        b"\x83Yw\x03a@b\0\0\0\x05\0\0\0\0",
        "\"#Port<0.5>\"",
    ),
    (
        "a reference",
        b"\x83Z\0\x03w\x03a@b\0\0\0\x07\0\0\0\x01\0\0\0\x02\0\0\0\x03",
        "\"#Ref<0.3.2.1>\"",
    ),
    (
        "fun lists:map/2",
        b"\x83qw\x05listsw\x03mapa\x02",
        r#""fun lists:map/2""#,
    ),
    (
        "a fun with an environment that is passed over",
        b"\x83p\0\0\0\x32\x01uuuuuuuuuuuuuuuu\0\0\0\x03\0\0\0\x01w\x01mb\0\0\x01\x02b\0\0\0\x07whatever",
        "\"#Fun<m.258.7>\"",
    ),
];

/// Translates with limits that only special tests reach.
fn translate(term: &mut Reader<'_>) -> Result<String, json::Untranslatable> {
    let limits = Limits {
        bytes: 1 << 20,
        deadline: Instant::now() + LIMIT,
    };
    json::translate(term, &limits)
}

#[test]
fn every_term_has_its_json() {
    for (erlang, bytes, expected) in TERMS {
        let mut term = Reader::new(bytes).expect("a term");
        assert_eq!(translate(&mut term).as_deref(), Ok(*expected), "{erlang}");
        assert_eq!(term.rest(), b"", "{erlang}");
    }
}

#[test]
fn every_term_can_be_passed_over() {
    for (erlang, bytes, _) in TERMS {
        let bytes = [bytes, &b"rest"[..]].concat();
        let mut term = Reader::new(&bytes).expect("a term");
        assert_eq!(term.skip(), Ok(()), "{erlang}");
        assert_eq!(term.rest(), b"rest", "{erlang}");
    }
}

#[test]
fn a_term_that_ends_early_is_refused() {
    for (erlang, bytes, _) in TERMS {
        for length in 1..bytes.len() {
            let mut term = Reader::new(&bytes[..length]).expect("a version");
            assert!(translate(&mut term).is_err(), "{erlang} of {length} bytes");
        }
    }
}

#[test]
fn refuses_what_is_no_term() {
    assert_eq!(
        Reader::new(b"").err(),
        Some(Malformed::Truncated("version"))
    );
    assert_eq!(
        Reader::new(b"\x50").err(),
        Some(Malformed::Invalid("version"))
    );
    let item = |bytes: &[u8]| Reader::within(bytes).item().err();
    assert_eq!(item(&[80, 0]), Some(Malformed::Tag(80)));
    assert_eq!(item(&[82, 0]), Some(Malformed::Tag(82)));
    let infinite = [&[70][..], &f64::INFINITY.to_be_bytes()].concat();
    assert_eq!(item(&infinite), Some(Malformed::Invalid("float")));
    let no_text = Some(Malformed::Invalid("atom"));
    assert_eq!(item(&[119, 1, 255]), no_text);
    let bits = Some(Malformed::Invalid("number of bits"));
    assert_eq!(item(&[77, 0, 0, 0, 1, 9, 0]), bits);
    assert_eq!(item(&[77, 0, 0, 0, 1, 0, 0]), bits);
    assert_eq!(item(&[77, 0, 0, 0, 0, 1]), bits);
    assert_eq!(item(&[110, 1, 2, 0]), Some(Malformed::Invalid("sign")));
    assert_eq!(item(&[112, 0, 0, 0, 3]), Some(Malformed::Invalid("size")));
    assert_eq!(item(&[90, 0, 6]), Some(Malformed::Invalid("length")));
}

/// Lists whose announced length is 4 GiB. No memory is allocated for them.
#[test]
fn lengths_are_not_believed() {
    for tag in [67, 105, 108, 116, 109, 111] {
        let bytes = [tag, 255, 255, 255, 255, 0, 97, 1];
        assert!(translate(&mut Reader::within(&bytes)).is_err());
        assert!(Reader::within(&bytes).skip().is_err());
    }
}

#[test]
fn depth_is_bounded() {
    let nested = |depth: usize| {
        let mut bytes = [104, 1].repeat(depth);
        bytes.push(106);
        bytes
    };
    assert!(translate(&mut Reader::within(&nested(500))).is_ok());
    for depth in [501, 1_000_000] {
        let bytes = nested(depth);
        let too_deep = Err(json::Untranslatable::TooDeep);
        assert_eq!(translate(&mut Reader::within(&bytes)), too_deep);
        assert_eq!(Reader::within(&bytes).skip(), Ok(()));
    }
}

/// In maps that are keys of maps, each level has twice as many bytes as the one within it.
#[test]
fn json_has_a_limit_of_bytes() {
    let nested = [
        &b"t\0\0\0\x01".repeat(100)[..],
        b"w\x01a",
        &b"j".repeat(100),
    ]
    .concat();
    let too_long = Err(json::Untranslatable::TooLong(1 << 20));
    assert_eq!(translate(&mut Reader::within(&nested)), too_long);

    let limits = |bytes| Limits {
        bytes,
        deadline: Instant::now() + LIMIT,
    };
    let term = b"m\0\0\0\x02\x1bx";
    let fitting = json::translate(&mut Reader::within(term), &limits(9));
    assert_eq!(fitting.as_deref(), Ok(r#""\u001bx""#));
    for bytes in 0..9 {
        let cut = json::translate(&mut Reader::within(term), &limits(bytes));
        assert_eq!(cut, Err(json::Untranslatable::TooLong(bytes)));
    }
    let digits = [&b"o\0\x10\0\0\0"[..], &[255; 1 << 20]].concat();
    assert_eq!(translate(&mut Reader::within(&digits)), too_long);
}

/// The time to print an integer grows with the square of its length, and keys that are lists are copied once for each
/// level.
#[test]
fn json_has_a_deadline() {
    let integer = [&b"o\0\x08\0\0\0"[..], &[255; 1 << 19]].concat();
    let list = [&b"k\xff\xff"[..], &[100; 65535]].concat();
    let lists = [&b"l\0\0\0\x64"[..], &list.repeat(100), b"j"].concat();
    let keys = [
        &b"t\0\0\0\x01h\x01".repeat(200)[..],
        &lists,
        &b"j".repeat(200),
    ]
    .concat();
    for term in [integer, keys] {
        let begin = Instant::now();
        let limits = Limits {
            bytes: 100 << 20,
            deadline: begin + Duration::from_millis(50),
        };
        let late = json::translate(&mut Reader::within(&term), &limits);
        assert_eq!(late, Err(json::Untranslatable::TimedOut));
        let time = begin.elapsed();
        assert!(time < Duration::from_secs(2), "{time:?}");
    }
}

#[test]
fn what_is_written_can_be_read() {
    let us = Identity {
        node: "x@h".into(),
        creation: 77,
    };
    let mut bytes = Vec::new();
    Writer::new(&mut bytes)
        .tuple(7)
        .atom("\u{e9}")
        .integer(-5)
        .binary(b"bytes")
        .pid(&us)
        .reference(&us)
        .charlist("text")
        .list(1)
        .nil()
        .nil();
    let mut reader = Reader::new(&bytes).expect("a term");
    assert_eq!(reader.tuple("t"), Ok(7));
    assert_eq!(reader.atom("a").as_deref(), Ok("\u{e9}"));
    assert_eq!(reader.integer("i"), Ok(-5));
    assert_eq!(reader.binary("b"), Ok(&b"bytes"[..]));
    assert_eq!(reader.item(), Ok(Item::Pid { id: (1, 0) }));
    let words = vec![1, 0, 0];
    assert_eq!(reader.item(), Ok(Item::Reference { words }));
    assert_eq!(reader.item(), Ok(Item::Bytes(b"text")));
    assert_eq!(reader.item(), Ok(Item::List(1)));
    assert_eq!(reader.item(), Ok(Item::Nil));
    assert_eq!(reader.item(), Ok(Item::Nil));
    assert_eq!(reader.rest(), b"");
}

proptest! {
    /// Any input is translated or refused, in bounded time and memory.
    #[test]
    fn bytes_are_terms_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Reader::within(&bytes).skip();
        let _ = translate(&mut Reader::within(&bytes));
        let _ = Status::decode(&bytes);
        let _ = Challenge::decode(&bytes);
        let _ = handshake::decode_ack(&bytes);
    }

    #[test]
    fn a_spoiled_term_is_read_or_refused(
        index in 0..TERMS.len(), at in any::<prop::sample::Index>(), byte in any::<u8>()
    ) {
        let mut bytes = TERMS[index].1.to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(mut term) = Reader::new(&bytes) {
            let _ = term.clone().skip();
            let _ = translate(&mut term);
        }
    }

    #[test]
    fn integers_keep_their_digits(negative in any::<bool>(), value in any::<u128>()) {
        let magnitude = value.to_le_bytes();
        let bytes = [&[110, 16, u8::from(negative)][..], &magnitude].concat();
        let sign = if negative { "-" } else { "" };
        prop_assert_eq!(translate(&mut Reader::within(&bytes)), Ok(format!("{sign}{value}")));
    }

    #[test]
    fn texts_are_quoted(text in any::<String>()) {
        let quoted = json::quoted(&text);
        let inner = quoted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
        prop_assert_eq!(unquoted(inner.expect("quotes")), text);
        prop_assert!(!quoted.contains(char::is_control));
    }
}

/// Parses a JSON string.
fn unquoted(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text.chars();
    while let Some(character) = rest.next() {
        let escaped = match character {
            '\\' => rest.next().expect("an escape"),
            '"' => panic!("a quote in {text}"),
            _ => {
                out.push(character);
                continue;
            }
        };
        out.push(match escaped {
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => {
                let digits: String = rest.by_ref().take(4).collect();
                let number = u32::from_str_radix(&digits, 16).expect("digits");
                char::from_u32(number).expect("a character")
            }
            other => other,
        });
    }
    out
}

// --- the handshake -------------------------------------------------------------------------------

fn cookie(text: &str) -> Cookie {
    let source = Source::Argument(text.into());
    source.read(|_| None).expect("a cookie")
}

#[test]
fn the_name_is_that_of_a_hidden_node_which_wants_one() {
    let message = handshake::name("host");
    assert_eq!(message[0], b'N');
    let flags = u64::from_be_bytes(message[1..9].try_into().expect("8 bytes"));
    // PUBLISHED, DIST_HDR_ATOM_CACHE, FRAGMENTS
    assert_eq!(flags & (0x1 | 0x2000 | 0x80_0000), 0);
    // MANDATORY_25 with its digest, MANDATORY_26, NAME_ME
    let mandatory = 0x507_0f94 | 0x6 << 32 | 0x200_0000;
    assert_eq!(flags & mandatory, mandatory);
    assert_eq!(&message[9..], b"\0\0\0\0\0\x04host");
}

#[test]
fn statuses() {
    let named = Status::Named(Identity {
        node: "x@h".into(),
        creation: 0x0102_0304,
    });
    let message = b"snamed:\0\x03x@h\x01\x02\x03\x04";
    assert_eq!(Status::decode(message), Ok(named.clone()));
    assert_eq!(
        Status::decode(&[&message[..], b"later"].concat()),
        Ok(named)
    );
    for status in ["ok", "ok_simultaneous", "nok", "not_allowed", "alive"] {
        let message = format!("s{status}");
        assert_eq!(
            Status::decode(message.as_bytes()),
            Ok(Status::Other(status.into()))
        );
    }
    let strange = Status::decode(b"s\x1b[2J\n");
    assert_eq!(strange, Ok(Status::Other("\\x1b[2J\\n".into())));
    for length in 7..message.len() {
        let result = Status::decode(&message[..length]);
        assert!(result.is_err(), "{length} bytes: {result:?}");
    }
    for name in [&b"x.h"[..], b"\n@h", b"\x9b@h"] {
        let message = [b"snamed:\0\x03", name, &[0; 4]].concat();
        assert_eq!(Status::decode(&message), Err(handshake::Malformed("name")));
    }
    assert!(Status::decode(b"").is_err());
    assert!(Status::decode(b"nok").is_err());
}

fn challenge(flags: u64) -> Vec<u8> {
    let mut message = vec![b'N'];
    message.extend(flags.to_be_bytes());
    message.extend(b"\x01\x02\x03\x04\0\0\0\x09\0\x03a@b");
    message
}

#[test]
fn challenges() {
    let message = challenge(u64::MAX);
    let read = Challenge {
        number: 0x0102_0304,
        node: "a@b".into(),
    };
    assert_eq!(Challenge::decode(&message), Ok(read));
    for length in 0..message.len() {
        assert!(
            Challenge::decode(&message[..length]).is_err(),
            "{length} bytes"
        );
    }
    // dist_util sends names in Latin-1.
    let latin1 = [&message[..message.len() - 1], b"\xf6"].concat();
    let decoded = Challenge::decode(&latin1).map(|challenge| challenge.node);
    assert_eq!(decoded, Ok("a@\u{f6}".into()));
    let too_old = challenge(u64::MAX ^ 1 << 32);
    assert_eq!(
        Challenge::decode(&too_old),
        Err(handshake::Malformed("capabilities"))
    );
}

/// The digest of dist_util, `erlang:md5("secret" ++ "4294967295")`.
#[test]
fn the_digest_is_that_of_cookie_and_decimal_number() {
    let digest = handshake::proof(&cookie("secret"), u32::MAX);
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, DIGEST);
    let reply = handshake::reply(1, digest);
    assert_eq!(reply[..5], *b"r\0\0\0\x01");
    assert_eq!(
        handshake::decode_ack(&[&b"a"[..], &digest].concat()),
        Ok(digest)
    );
    assert!(handshake::decode_ack(&digest).is_err());
}

const DIGEST: &str = "5dfd181e69aa587cc812eb333e6536b6";

// --- arguments -----------------------------------------------------------------------------------

fn parse(arguments: &[&str]) -> Result<Request, String> {
    parse_in(arguments, &[])
}

fn parse_in(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Request, String> {
    invocation(arguments, environment).map(|invocation| invocation.request)
}

fn invocation(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Invocation, String> {
    let environment: BTreeMap<_, _> = environment.iter().copied().collect();
    let variable = |name: &str| environment.get(name).map(OsString::from);
    arguments::parse(arguments.iter().map(OsString::from), variable)
        .map_err(|error| error.to_string())
}

fn access(arguments: &[&str], environment: &[(&str, &str)]) -> Access {
    match parse_in(arguments, environment) {
        Ok(Request::Ping(access, _, _) | Request::Pid(access) | Request::Stop(access)) => access,
        other => panic!("{arguments:?} is {other:?}"),
    }
}

#[test]
fn defaults() {
    let access = access(&["ping", "a@h"], &[]);
    assert_eq!(access.node, "a@h");
    assert_eq!(access.location, Location::In(Directory::Path(".".into())));
    assert_eq!(access.policy, Policy::just(Base::OwnUserAndRoot));
    assert_eq!(access.cookie, Source::Default);
    assert_eq!(access.wait, Duration::ZERO);
    assert_eq!(access.timeout, Duration::from_secs(5));
}

#[test]
fn an_orderly_end_may_take_longer() {
    let access = access(&["stop", "a"], &[]);
    assert_eq!(access.timeout, Duration::from_secs(60));
}

#[test]
fn where_the_socket_is() {
    let set = [("UDS_DIST_DIR", "/run/x")];
    let address = |arguments: &[&str], environment: &[_]| {
        let access = access(&[&["ping", "a@h"], arguments].concat(), environment);
        access.location.address(&access.node).expect("an address")
    };
    let path = |path: &str| Address::Path(path.into());
    assert_eq!(address(&[], &[]), path("./a.sock"));
    assert_eq!(address(&[], &[("UDS_DIST_DIR", "")]), path("./a.sock"));
    assert_eq!(address(&[], &set), path("/run/x/a.sock"));
    assert_eq!(address(&["--dir", "/y"], &set), path("/y/a.sock"));
    assert_eq!(
        address(&["--dir", "@ns"], &set),
        Address::Abstract(b"ns/a".to_vec())
    );
    assert_eq!(address(&["--socket", "/z/s"], &set), path("/z/s"));
    assert_eq!(
        address(&["--socket", "@z/s"], &set),
        Address::Abstract(b"z/s".to_vec())
    );
    assert!(parse(&["ping", "a", "--socket", "/z", "--dir", "/y"]).is_err());
    // An unset variable in a script does not stand for the working directory.
    for option in ["--dir", "--socket", "--cookie-file"] {
        let error = parse(&["ping", "a", option, ""]).expect_err("an empty path");
        assert!(error.contains(option), "{error}");
    }
    assert!(parse(&["names", "--dir", ""]).is_err());
}

/// The carrier refuses the same values with the same words.
#[test]
fn refuses_a_directory_that_nobody_can_have_meant() {
    for (dir, words) in [
        ("/run/x\r", r"/run/x\r (--dir) ends in a carriage return"),
        ("/run/\u{1b}x", "(--dir) contains a control character"),
        ("/run/x ", "(--dir) begins or ends with a blank"),
    ] {
        let error = parse(&["names", "--dir", dir]).expect_err(words);
        assert!(error.contains(words), "{error}");
        let variable = words.replace("--dir", "UDS_DIST_DIR");
        let error = parse_in(&["ping", "a"], &[("UDS_DIST_DIR", dir)]).expect_err(words);
        assert!(error.contains(&variable), "{error}");
    }
    assert!(parse(&["names", "--dir", "/run/my app"]).is_ok());
}

#[test]
fn how_much_is_said() {
    let talk = |arguments: &[&str]| invocation(arguments, &[]).map(|invocation| invocation.talk);
    assert_eq!(talk(&["ping", "a"]), Ok(Talk::Normal));
    for arguments in [
        ["-q", "ping", "a"],
        ["ping", "--quiet", "a"],
        ["ping", "a", "-q"],
    ] {
        assert_eq!(talk(&arguments), Ok(Talk::Quiet));
    }
    assert_eq!(talk(&["names", "-v"]), Ok(Talk::Verbose));
    assert!(talk(&["ping", "a", "-q", "-v"]).is_err());
}

#[test]
fn a_name_leads_nowhere_else() {
    for name in ["", "@h", "a@", "a@h@", "a@h@i", "../a", "a/b@h", "a\0b"] {
        let location = Location::In(Directory::Path("/run".into()));
        let Err(Failure {
            kind, explanation, ..
        }) = location.address(name)
        else {
            panic!("{name:?} is a name");
        };
        assert_eq!(kind, Kind::Usage);
        assert!(explanation.contains("is not a node name"), "{explanation}");
    }
}

#[test]
fn times() {
    let timeout = |time: &str| access(&["ping", "a", "--timeout", time], &[]).timeout;
    assert_eq!(timeout("500ms"), Duration::from_millis(500));
    assert_eq!(timeout("5"), Duration::from_secs(5));
    assert_eq!(timeout("1.5s"), Duration::from_millis(1500));
    assert_eq!(timeout("2m"), Duration::from_secs(120));
    assert_eq!(timeout("1h"), Duration::from_secs(3600));
    assert_eq!(
        access(&["ping", "a", "--wait", "0"], &[]).wait,
        Duration::ZERO
    );
    for wrong in [
        "", "s", "5 s", "5d", "-1s", "0", "0ms", "inf", "NaN", "1e300", "9999999h",
    ] {
        let argument = format!("--timeout={wrong}");
        assert!(parse(&["ping", "a", &argument]).is_err(), "{wrong:?}");
    }
}

/// Users and groups are given by name or by number.
#[test]
fn users_and_groups() {
    let policy = |arguments: &[&str]| access(&[&["ping", "a"], arguments].concat(), &[]).policy;
    let listed = policy(&["--allow-uid", "1000", "--allow-uid", "root"]);
    assert_eq!(listed.base, Base::OwnUserAndRoot);
    assert_eq!(listed.uids, [1000, 0]);
    assert_eq!(policy(&["--allow-uid", "any"]).base, Base::Anybody);
    let groups = policy(&["--allow-gid", "daemon", "--allow-gid", "50"]);
    assert_eq!(groups.gids, [1, 50]);
    assert_eq!(groups.uids, []);
    for wrong in [
        "",
        "nobody_of_this_name",
        "-1",
        "4294967295",
        "4294967296",
        "1 ",
    ] {
        for option in ["--allow-uid", "--allow-gid"] {
            let argument = format!("{option}={wrong}");
            assert!(parse(&["ping", "a", &argument]).is_err(), "{argument}");
        }
    }
    assert!(parse(&["ping", "a", "--allow-gid", "any"]).is_err());
}

#[test]
fn what_a_node_has_to_be() {
    let readiness = |arguments: &[&str]| match parse(&[&["ping", "a"], arguments].concat()) {
        Ok(Request::Ping(_, readiness, _)) => Ok((readiness.started, readiness.applications)),
        other => Err(format!("{other:?}")),
    };
    assert_eq!(readiness(&[]), Ok((false, vec![])));
    assert_eq!(readiness(&["--started"]), Ok((true, vec![])));
    let both = readiness(&[
        "--app",
        "my_app",
        "--app",
        "other",
        "--started",
        "--wait",
        "9s",
    ]);
    assert_eq!(both, Ok((true, vec!["my_app".into(), "other".into()])));
    for wrong in ["", "a\nb", &"x".repeat(256)] {
        assert!(readiness(&["--app", wrong]).is_err(), "{wrong:?}");
    }
    assert!(parse(&["pid", "a", "--started"]).is_err());
}

fn program(arguments: &[&str]) -> (Program, Printed) {
    match parse(arguments) {
        Ok(Request::Run(access, program, printed)) => {
            assert_eq!(access.node, "a");
            (program, printed)
        }
        other => panic!("{arguments:?} is {other:?}"),
    }
}

fn given(arguments: &[&str]) -> Job {
    match program(arguments) {
        (Program::Given(job), _) => job,
        other => panic!("{arguments:?} is {other:?}"),
    }
}

#[test]
fn what_to_call() {
    let call = |arguments: &str| Job::Call {
        module: "erlang".into(),
        function: "memory".into(),
        arguments: arguments.into(),
    };
    assert_eq!(given(&["rpc", "a", "erlang", "memory"]), call("[]"));
    assert_eq!(
        given(&["rpc", "a", "erlang", "memory", "[total]"]),
        call("[total]")
    );
    assert_eq!(given(&["rpc", "a", "node()"]), Job::Erlang("node()".into()));
    let elixir = |call: &[&str]| given(&[&["rpc", "a", "--elixir"], call].concat());
    assert_eq!(
        elixir(&["Enum.sum([1])"]),
        Job::Elixir("Enum.sum([1])".into())
    );
    let apply = r#"apply(Enum, :sum, [[1]])"#;
    assert_eq!(elixir(&["Enum", "sum", "[[1]]"]), Job::Elixir(apply.into()));
    let quoted = r##"apply(:m, :"\"\\\#{f", [])"##;
    assert_eq!(elixir(&[":m", r##""\#{f"##]), Job::Elixir(quoted.into()));
    assert!(parse(&["rpc", "a"]).is_err());
    assert!(parse(&["rpc", "a", "m", "f", "[]", "more"]).is_err());
}

#[test]
fn what_to_evaluate() {
    assert_eq!(given(&["eval", "a", "1."]), Job::Erlang("1.".into()));
    assert_eq!(given(&["eval", "a", "-1"]), Job::Erlang("-1".into()));
    assert_eq!(
        given(&["eval", "--elixir", "a", "1"]),
        Job::Elixir("1".into())
    );
    let (from_stdin, printed) = program(&["eval", "a", "-", "--json"]);
    assert!(
        matches!(from_stdin, Program::From(None, Language::Erlang)),
        "{from_stdin:?}"
    );
    assert_eq!(printed, Printed::Json);
    let (from_file, printed) = program(&["eval", "a", "--file", "f", "--elixir"]);
    assert!(
        matches!(&from_file, Program::From(Some(file), Language::Elixir) if file.as_os_str() == "f"),
        "{from_file:?}"
    );
    assert_eq!(printed, Printed::Plain);
    assert!(parse(&["eval", "a"]).is_err());
    assert!(parse(&["eval", "a", "1", "--file", "f"]).is_err());
}

#[test]
fn names_need_no_node() {
    let Ok(Request::Names(directory, Printed::Json)) = parse(&["names", "--json", "--dir", "@x"])
    else {
        panic!("names");
    };
    assert_eq!(directory, Directory::Namespace(b"x".to_vec()));
    assert!(parse(&["names", "a"]).is_err());
}

#[test]
fn only_what_is_known_is_taken() {
    for arguments in [
        &["--loud"][..],
        &["reboot", "a"],
        &["ping"],
        &["ping", "a", "b"],
        &["ping", "a", "--json"],
        &["ping", "a", "--cookie", "c", "--cookie-file", "f"],
        &["sidecar"],
        &["docs", "d"],
        &[],
        &[""],
    ] {
        assert!(parse(arguments).is_err(), "{arguments:?}");
    }
}

#[test]
fn the_definition_is_sound() {
    arguments::command().debug_assert();
}

// --- names -----------------------------------------------------------------------------------------

#[test]
fn times_of_day() {
    for (seconds, shown) in [
        (0, "1970-01-01T00:00:00Z"),
        (951_782_399, "2000-02-28T23:59:59Z"),
        (951_782_400, "2000-02-29T00:00:00Z"),
        (1_709_251_200, "2024-03-01T00:00:00Z"),
        (1_795_791_823, "2026-11-27T15:03:43Z"),
        (4_107_542_399, "2100-02-28T23:59:59Z"),
        (4_107_542_400, "2100-03-01T00:00:00Z"),
    ] {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(rfc3339(time), shown);
    }
}

#[cfg(target_os = "linux")]
proptest! {
    /// Any answer of the system about sockets is parsed or skipped.
    #[test]
    fn sockets_of_any_bytes(
        mut bytes in proptest::collection::vec(any::<u8>(), 16..200), kind in 0..30u16
    ) {
        let length = bytes.len() as u32;
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        let mut found = Vec::new();
        let _ = sock_diag::read(&bytes, &mut found);
        bytes[16..].fill(4);
        let _ = sock_diag::read(&bytes, &mut found);
    }
}

proptest! {
    /// Listening sockets of the namespace are found in a table that contains any other lines.
    #[test]
    fn tables_of_any_bytes(
        before in proptest::collection::vec(any::<u8>(), 0..100),
        name in "[^\n]{0,20}",
        after in proptest::collection::vec(any::<u8>(), 0..100),
        spoiled in any::<prop::sample::Index>(), byte in any::<u8>()
    ) {
        let line = format!("0: 00000002 00000000 00010000 0001 01 4711 @run/{name}");
        let table = [&before[..], b"\n", line.as_bytes(), b"\n", &after[..]].concat();
        prop_assert!(names::listed(&table, b"run").contains(&name.clone().into_bytes()));
        let mut table = table;
        let spoiled = spoiled.index(table.len());
        table[spoiled] = byte;
        let _ = names::listed(&table, b"run");
    }

    /// Any name of a file, and any text, is printed on one line without control characters.
    #[test]
    fn names_and_texts_of_any_bytes_are_shown_on_one_line(
        bytes in proptest::collection::vec(any::<u8>(), 0..100), text in any::<String>()
    ) {
        prop_assert!(!escape::name(&bytes).contains(char::is_control));
        prop_assert!(!escape::line(&text).contains(char::is_control));
        prop_assert!(!escape::line(&String::from_utf8_lossy(&bytes)).contains(char::is_control));
        let shown: String = escape::lines(&bytes).collect();
        let stays = |character| matches!(character, '\n' | '\t');
        prop_assert!(!shown.contains(|c: char| c.is_control() && !stays(c)));
    }
}

// --- cookies -------------------------------------------------------------------------------------

struct Home(TempDir);

impl Home {
    fn new() -> Home {
        Home(TempDir::new())
    }

    fn write(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.0.path(name);
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        fs::write(&path, text).expect("a file");
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("a mode");
        path
    }

    fn read(&self, source: &Source, environment: &[(&str, &str)]) -> Result<Cookie, String> {
        let home = self.0.path("");
        let read = source.read(|name| match name {
            "HOME" => Some(home.clone().into()),
            _ => environment
                .iter()
                .find(|(set, _)| *set == name)
                .map(|(_, value)| value.into()),
        });
        read.map_err(|failure| {
            assert_eq!(failure.kind, Kind::Usage);
            failure.explanation
        })
    }

    /// Returns the cookie and its source.
    fn found(&self, source: &Source, environment: &[(&str, &str)]) -> (String, String) {
        let cookie = self.read(source, environment).expect("a cookie");
        let text = String::from_utf8(cookie.as_bytes().to_vec()).expect("a text");
        (text, cookie.origin().into())
    }
}

/// The variable that the commands of a release use comes first.
#[test]
fn the_first_cookie_that_is_set_counts() {
    let home = Home::new();
    let file = home.write("f", "of_the_file\n", 0o400);
    let set = |release, erlang| [("ERLANG_COOKIE", erlang), ("RELEASE_COOKIE", release)];
    let both = set("first", "second");
    let none = home.read(&Source::Default, &[]).expect_err("no cookie");
    assert!(
        none.contains("pass the node's with --cookie-file"),
        "{none}"
    );
    let found = |source: &Source, environment: &[_], text: &str, origin: &str| {
        assert_eq!(
            home.found(source, environment),
            (text.into(), origin.into())
        );
    };
    let path = home.write(".config/erlang/.erlang.cookie", "of_the_config", 0o600);
    let shown = |path: &PathBuf| path.display().to_string();
    found(&Source::Default, &[], "of_the_config", &shown(&path));
    let path = home.write(".erlang.cookie", "of_the_home\r\n", 0o400);
    found(&Source::Default, &[], "of_the_home", &shown(&path));
    found(
        &Source::Default,
        &set("", "second"),
        "second",
        "ERLANG_COOKIE",
    );
    found(
        &Source::Default,
        &set("same", "same"),
        "same",
        "RELEASE_COOKIE",
    );
    let origin = "RELEASE_COOKIE (ERLANG_COOKIE has a different one, which is not used)";
    found(&Source::Default, &both, "first", origin);
    let shown = shown(&file);
    found(&Source::File(file), &both, "of_the_file", &shown);
    let argument = Source::Argument("given".into());
    found(&argument, &both, "given", "--cookie");
}

/// The rules are those of `erl -setcookie` and of erl's cookie file.
#[test]
fn white_space_counts_where_erl_counts_it() {
    let home = Home::new();
    let of_variable = home.found(&Source::Default, &[("RELEASE_COOKIE", "c \n")]);
    let origin = "RELEASE_COOKIE (it ends in white space, which is part of it)";
    assert_eq!(of_variable, ("c \n".into(), origin.into()));
    for (written, read) in [
        ("c\n", "c"),
        ("c\r\n\n", "c"),
        ("c \n ", "c "),
        (" c", " c"),
    ] {
        let file = Source::File(home.write("f", written, 0o600));
        assert_eq!(home.found(&file, &[]).0, read);
    }
}

#[test]
fn a_cookie_that_others_can_read_is_refused() {
    let home = Home::new();
    for mode in [0o440, 0o604, 0o610, 0o622] {
        home.write(".erlang.cookie", "secret", 0o600);
        let path = home.write(".erlang.cookie", "secret", mode);
        let error = home
            .read(&Source::Default, &[])
            .expect_err("others can read it");
        assert!(
            error.contains(&format!("{} can be read", path.display())),
            "{error}"
        );
        assert!(error.contains("chmod 400"), "{error}");
        fs::remove_file(path).expect("a file");
    }
}

/// Files with secrets in a container are often readable by its group.
#[test]
fn a_file_that_is_named_may_be_readable_by_a_group() {
    let home = Home::new();
    let file = Source::File(home.write("f", "secret", 0o440));
    assert_eq!(home.found(&file, &[]).0, "secret");
    let file = Source::File(home.write("g", "secret", 0o444));
    assert!(home.read(&file, &[]).is_err());
}

/// Opening a FIFO that nobody writes to must not wait.
#[test]
fn a_cookie_comes_from_a_file() {
    let home = Home::new();
    let fifo = home.0.path("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .expect("a FIFO");
    for path in [fifo, home.0.root().into(), "/dev/null".into()] {
        let error = home
            .read(&Source::File(path), &[])
            .expect_err("it is not a file");
        assert!(error.contains("is not a file"), "{error}");
    }
}

#[test]
fn what_is_no_cookie_is_refused() {
    let home = Home::new();
    for (text, problem) in [
        ("", "is empty"),
        ("\n", "is empty"),
        ("a\nb", "not printable"),
        ("\u{fc}", "not printable"),
        (&"x".repeat(256), "more than 255"),
        (&"x".repeat(10_000), "more than 255"),
    ] {
        let file = Source::File(home.write("f", text, 0o600));
        for source in [file, Source::Argument(text.trim_end().into())] {
            let error = home.read(&source, &[]).expect_err(problem);
            assert!(error.contains(problem), "{error}");
            assert!(!error.contains("xx"), "{error}");
        }
    }
    let longest = "x".repeat(255);
    let file = Source::File(home.write("f", &format!("{longest}\r\n"), 0o600));
    assert_eq!(home.found(&file, &[]).0, longest);
    for missing in ["none", ""] {
        assert!(home.read(&Source::File(home.0.path(missing)), &[]).is_err());
    }
}

#[test]
fn a_cookie_is_not_shown() {
    assert_eq!(format!("{:?}", cookie("secret")), "Cookie");
}
