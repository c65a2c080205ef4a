//! The reports of the command line: values, tables and sections, times and sizes.

use uds_dist_command_line::etf::{Malformed, Reader};
use uds_dist_command_line::layout::Reader as Whom;
use uds_dist_command_line::value::Value;
use uds_dist_command_line::{peers, status, units};

const TERMINAL: Whom = Whom::Person { color: true };

fn object<const N: usize>(pairs: [(&str, Value); N]) -> Value {
    Value::Object(pairs.map(|(key, value)| (key.into(), value)).into())
}

fn text(text: &str) -> Value {
    Value::Text(text.into())
}

// --- values --------------------------------------------------------------------------------------

/// Terms that `term_to_binary/1` has written.
#[test]
fn terms_are_values() {
    let pairs = b"l\0\0\0\x02h\x02w\x01ba\x01h\x02w\x01aw\x04nonej";
    for (term, json) in [
        (&b"b\xff\xff\xff\xff"[..], "-1"),
        (
            b"n\x08\0\xff\xff\xff\xff\xff\xff\xff\x7f",
            "9223372036854775807",
        ),
        (b"m\0\0\0\x02\"\n", r#""\"\n""#),
        (b"w\x09undefined", "null"),
        (b"w\x04true", "true"),
        (b"j", "[]"),
        (b"k\0\x02\x01\x02", "[1,2]"),
        (b"l\0\0\0\x01w\x01aj", r#"["a"]"#),
        (b"t\0\0\0\x01w\x01aj", r#"{"a":[]}"#),
        // Keys keep their order.
        (pairs, r#"{"b":1,"a":"none"}"#),
    ] {
        let mut reader = Reader::within(term);
        assert_eq!(Value::read(&mut reader).expect("a value").json(), json);
        assert_eq!(reader.rest(), b"");
    }
}

#[test]
fn other_terms_are_refused() {
    let deep = [&b"l\0\0\0\x01"[..]; 10].concat();
    for (term, problem) in [
        (
            &b"n\x08\0\xff\xff\xff\xff\xff\xff\xff\xff"[..],
            Malformed::Invalid("integer"),
        ),
        (
            &[&b"n\x11\0"[..], &[1; 17]].concat(),
            Malformed::Invalid("integer"),
        ),
        (b"F\0\0\0\0\0\0\0\0", Malformed::Invalid("value")),
        (b"h\x01a\x01", Malformed::Invalid("value")),
        (b"l\0\0\0\x01a\x01a\x02", Malformed::Invalid("tail")),
        (
            b"l\0\0\0\x02h\x02w\x01aa\x01a\x01j",
            Malformed::Invalid("pair"),
        ),
        (b"l\0\0\0\x01h\x02a\x01a\x01j", Malformed::Invalid("key")),
        (b"l\xff\xff\xff\xffa\x01", Malformed::Truncated("tag")),
        (&deep, Malformed::Invalid("depth")),
    ] {
        assert_eq!(Value::read(&mut Reader::within(term)), Err(problem));
    }
}

#[test]
fn more_values_than_anybody_has_are_refused() {
    let length = 3_000_000u32;
    let many = [
        &b"l"[..],
        &length.to_be_bytes(),
        &b"j".repeat(length as usize),
        b"j",
    ]
    .concat();
    let read = Value::read(&mut Reader::within(&many));
    assert_eq!(read, Err(Malformed::Invalid("length")));
}

// --- times and sizes -----------------------------------------------------------------------------

#[test]
fn times_have_two_units() {
    for (seconds, shown) in [
        (0, "0s"),
        (59, "59s"),
        (60, "1m 0s"),
        (3599, "59m 59s"),
        (3600, "1h 0m"),
        (86_399, "23h 59m"),
        (273_600, "3d 4h"),
        (u64::MAX, "213503982334601d 7h"),
    ] {
        assert_eq!(units::duration(seconds), shown);
    }
}

#[test]
fn sizes_have_one_unit() {
    for (bytes, shown) in [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1_048_524, "1023.9 KiB"),
        (1_048_525, "1.0 MiB"),
        (u64::MAX, "16.0 EiB"),
    ] {
        assert_eq!(units::bytes(bytes), shown);
    }
}

#[test]
fn percents_are_rounded_down() {
    for (used, limit, percent) in [(0, 0, 0), (99, 100, 99), (999, 1000, 99), (3, 2, 150)] {
        assert_eq!(units::percent(used, limit), percent);
    }
    assert_eq!(units::percent(u64::MAX, u64::MAX), 100);
}

// --- peers ---------------------------------------------------------------------------------------

fn peer(node: Value, queued: i64) -> Value {
    object([
        ("node", node),
        ("direction", text("in")),
        ("transport", text("relay")),
        ("state", text("up")),
        ("uid", Value::Number(4_000_000_000)),
        ("pid", Value::Number(0)),
        ("age", Value::Number(273_600)),
        ("bytes_sent", Value::Number(1536)),
        ("queued", Value::Number(queued)),
        ("queue_limit", Value::Number(1000)),
    ])
}

#[test]
fn peers_are_rows() {
    let peers = Value::List(vec![peer(text("b@h"), 700), peer(Value::Null, 0)]);
    let expected = "\
NODE\tDIR\tVIA\tUSER\tPID\tAGE\tSENT\tRECEIVED\tQUEUED\tSTATE
b@h\tin\trelay\t4000000000\t-\t3d 4h\t1.5 KiB\t-\t700 B (70 %)\tup
-\tin\trelay\t4000000000\t-\t3d 4h\t1.5 KiB\t-\t0 B (0 %)\tup
";
    assert_eq!(peers::table(&peers, Whom::Program), expected);
    let expected = "\
NODE  DIR  VIA    USER        PID    AGE     SENT  RECEIVED        QUEUED  STATE
b@h   in   relay  4000000000    -  3d 4h  1.5 KiB         -  \x1b[33m700 B (70 %)\x1b[0m  \x1b[32mup\x1b[0m
-     in   relay  4000000000    -  3d 4h  1.5 KiB         -     0 B (0 %)  \x1b[32mup\x1b[0m
";
    assert_eq!(peers::table(&peers, TERMINAL), expected);
    assert_eq!(peers::bare(&peers), "b@h\n");
}

/// The names of users are added and the command itself is removed, in a list of peers and in a status.
#[test]
fn peers_are_completed() {
    let root = object([
        ("node", text("b@h")),
        ("uid", Value::Number(0)),
        ("gid", Value::Number(0)),
    ]);
    let peers = Value::List(vec![root, object([("node", text("own@h"))])]);
    let json = r#"[{"node":"b@h","uid":0,"user":"root","gid":0}]"#;
    assert_eq!(peers::completed(peers.clone(), "own@h").json(), json);
    let status = object([("nodes", Value::List(vec![text("b@h")])), ("peers", peers)]);
    let json = format!(r#"{{"nodes":["b@h"],"peers":{json}}}"#);
    assert_eq!(peers::completed(status, "own@h").json(), json);
}

// --- a status ------------------------------------------------------------------------------------

fn usage(used: i64) -> Value {
    object([("used", Value::Number(used)), ("limit", Value::Number(100))])
}

/// Unknown values have no row, and sections without rows are left out.
#[test]
fn a_status_has_the_sections_that_there_are() {
    let carrier = object([
        ("listening_at", Value::Null),
        ("should_listen_at", text("/run/a.sock")),
        (
            "settings",
            object([
                ("socket_mode", Value::Number(0o600)),
                ("allowed_uids", text("own_user_and_root")),
                (
                    "allowed_gids",
                    Value::List(vec![Value::Number(4_000_000_000)]),
                ),
            ]),
        ),
        (
            "sidecar",
            object([
                ("status", text("up")),
                ("up_for", Value::Number(60)),
                ("restarts", Value::Number(1)),
                ("descriptors", Value::Number(95)),
                ("descriptor_limit", Value::Number(100)),
            ]),
        ),
    ]);
    let status = object([
        ("node", text("a@h")),
        ("boot", text("starting")),
        ("atoms", usage(7)),
        ("carrier", carrier),
        ("peers", Value::List(Vec::new())),
    ]);
    let expected = "\
Node\tname\ta@h
Node\tboot\tstarting
Use\tatoms\t7 of 100 (7 %)
Socket\tlistens at\tnowhere
Socket\tshould be at\t/run/a.sock
Socket\tmode\t600
Socket\tadmits\tits own user and root, the group 4000000000
Sidecar\tstatus\tup for 1m 0s
Sidecar\trestarts\t1
Sidecar\tdescriptors\t95 of 100 (95 %)
";
    assert_eq!(status::text(&status, Whom::Program), expected);
    let shown = status::text(&status, TERMINAL);
    let start =
        "\x1b[1mNode\x1b[0m\n  name  a@h\n  boot  \x1b[33mstarting\x1b[0m\n\n\x1b[1mUse\x1b[0m\n";
    assert!(shown.starts_with(start), "{shown:?}");
    for colored in [
        "\x1b[31m/run/a.sock\x1b[0m",
        "\x1b[33m1\x1b[0m",
        "\x1b[31m95 of 100 (95 %)\x1b[0m",
    ] {
        assert!(shown.contains(colored), "{colored:?} is not in {shown:?}");
    }
    let plain = status::text(&status, Whom::Person { color: false });
    assert!(!plain.contains('\x1b'), "{plain:?}");
}

#[test]
fn a_node_of_another_carrier_says_so() {
    let status = object([
        ("node", text("a@h")),
        ("nodes", Value::List(vec![text("b@h"), text("c@h")])),
        ("carrier", Value::Null),
        ("peers", Value::Null),
        ("unanswered", text("its carrier is erl_uds,\nnot uds")),
    ]);
    let expected = "\
Node\tname\ta@h
Node\tconnected to\tb@h, c@h
Socket\tcarrier\tcannot be shown, since its carrier is erl_uds,\\nnot uds
";
    assert_eq!(status::text(&status, Whom::Program), expected);
}
