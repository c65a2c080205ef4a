//! The report of `status`: the state of a node, in sections. Pure, except that it looks up names of users.

use crate::escape;
use crate::layout::{self, Cell, Color, Reader};
use crate::peers::{self, of_limit};
use crate::units;
use crate::users;
use crate::value::Value;

type Rows = Vec<Vec<Cell>>;

/// Formats the node's answer. Unknown values have no row.
pub fn text(status: &Value, reader: Reader) -> String {
    let carrier = status.at("carrier");
    let unanswered = status.at("unanswered").text().map(|why| {
        let text = format!("cannot be shown, since {}", escape::line(why));
        vec![row("carrier", Cell::from(text).colored(Color::Doubtful))]
    });
    let peers = match status.at("peers") {
        Value::List(list) if !list.is_empty() => peers::rows(status.at("peers")),
        _ => Vec::new(),
    };
    let mut node = node(status);
    if unanswered.is_some() {
        node.extend(nodes(status.at("nodes")));
    }
    layout::sections(
        &[
            ("Node", node),
            ("Use", usage(status)),
            ("Socket", unanswered.unwrap_or_else(|| socket(carrier))),
            ("Sidecar", sidecar(carrier.at("sidecar"))),
            ("Traffic", traffic(carrier.at("totals"))),
            ("Peers", peers),
            ("Applications", applications(status.at("applications"))),
        ],
        reader,
    )
}

fn row(label: &str, cell: impl Into<Cell>) -> Vec<Cell> {
    vec![Cell::from(label), cell.into()]
}

/// The rows that exist.
fn rows<const N: usize>(rows: [Option<Vec<Cell>>; N]) -> Rows {
    rows.into_iter().flatten().collect()
}

fn shown(label: &str, value: &Value) -> Option<Vec<Cell>> {
    Some(row(label, word(value)?))
}

/// A value on one line, if there is one.
fn word(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::Text(text) => Some(escape::line(text)),
        other => Some(other.json()),
    }
}

fn bytes(label: &str, value: &Value) -> Option<Vec<Cell>> {
    Some(row(label, units::bytes(value.count()?)))
}

fn limited(label: &str, used: &Value, limit: &Value) -> Option<Vec<Cell>> {
    let used = used.count()?;
    let Some(limit) = limit.count() else {
        return Some(row(label, used.to_string()));
    };
    let of = format!(" of {limit}");
    Some(row(label, of_limit(used, limit, used.to_string(), &of)))
}

fn node(status: &Value) -> Rows {
    let versions = status.at("versions");
    let otp = word(versions.at("otp")).map(|otp| match word(versions.at("erts")) {
        Some(erts) => format!("{otp} (ERTS {erts})"),
        None => otp,
    });
    let boot = word(status.at("boot")).map(|boot| {
        let color = match &boot[..] {
            "started" => Color::Good,
            _ => Color::Doubtful,
        };
        row("boot", Cell::from(boot).colored(color))
    });
    let uptime = status.at("uptime").count().map(units::duration);
    rows([
        shown("name", status.at("node")),
        shown("process", status.at("pid")),
        boot,
        uptime.map(|uptime| row("up for", uptime)),
        otp.map(|otp| row("Erlang/OTP", otp)),
        shown("Elixir", versions.at("elixir")),
        shown("uds_dist", status.at("carrier").at("version")),
    ])
}

/// The names of connected nodes, which are known with any carrier.
fn nodes(nodes: &Value) -> Option<Vec<Cell>> {
    let names: Vec<_> = nodes.elements().iter().filter_map(word).collect();
    (!names.is_empty()).then(|| row("connected to", names.join(", ")))
}

fn usage(status: &Value) -> Rows {
    let memory = status.at("memory");
    let part = |(key, label)| Some(format!("{label} {}", units::bytes(memory.at(key).count()?)));
    let parts: Vec<_> = [
        ("processes", "processes"),
        ("binary", "binaries"),
        ("ets", "ETS"),
        ("code", "code"),
    ]
    .into_iter()
    .filter_map(part)
    .collect();
    let total = memory.at("total").count().map(units::bytes);
    let of = |label| {
        limited(
            label,
            status.at(label).at("used"),
            status.at(label).at("limit"),
        )
    };
    let queue = word(status.at("run_queue")).map(|length| match word(status.at("schedulers")) {
        Some(schedulers) => format!("{length}, on {schedulers} schedulers"),
        None => length,
    });
    rows([
        total.map(|total| row("memory", format!("{total}: {}", parts.join(", ")))),
        of("processes"),
        of("ports"),
        of("atoms"),
        queue.map(|queue| row("run queue", queue)),
    ])
}

fn socket(carrier: &Value) -> Rows {
    let settings = carrier.at("settings");
    let (actual, wanted) = (carrier.at("listening_at"), carrier.at("should_listen_at"));
    let moved = (actual != wanted).then(|| {
        let place = word(wanted).unwrap_or_else(|| "nowhere".into());
        row("should be at", Cell::from(place).colored(Color::Bad))
    });
    let mode = settings.at("socket_mode").count();
    // The configured transport may not be available.
    let transport = match carrier.at("transport") {
        Value::Null => settings.at("transport"),
        available => available,
    };
    rows([
        Some(row(
            "listens at",
            word(actual).unwrap_or_else(|| "nowhere".into()),
        )),
        moved.filter(|_| *carrier != Value::Null),
        directory(settings),
        mode.map(|mode| row("mode", format!("{mode:03o}"))),
        admitted(settings),
        shown("backlog", settings.at("backlog")),
        shown("transport", transport),
    ])
}

fn directory(settings: &Value) -> Option<Vec<Cell>> {
    let directory = word(settings.at("socket_dir"))?;
    let from = match word(settings.at("sources").at("socket_dir")) {
        Some(source) => format!("{directory} ({source})"),
        None => directory,
    };
    Some(row("directory", from))
}

/// The users and groups that may connect.
fn admitted(settings: &Value) -> Option<Vec<Cell>> {
    let numbers = |value: &Value| -> Vec<u32> {
        let numbers = value.elements().iter().filter_map(Value::count);
        numbers
            .filter_map(|number| number.try_into().ok())
            .collect()
    };
    let mut whom = Vec::new();
    match settings.at("allowed_uids") {
        Value::Null => return None,
        Value::Text(word) if word == "own_user_and_root" => {
            whom.push("its own user and root".into())
        }
        Value::Text(word) if word == "any" => whom.push("everybody".into()),
        uids => whom.extend(numbers(uids).into_iter().map(users::short)),
    }
    let groups = numbers(settings.at("allowed_gids")).into_iter();
    whom.extend(groups.map(|gid| format!("the group {}", users::short_group(gid))));
    if whom.is_empty() {
        whom.push("nobody".into());
    }
    Some(row("admits", whom.join(", ")))
}

fn sidecar(sidecar: &Value) -> Rows {
    let status = word(sidecar.at("status")).map(|status| {
        let color = match &status[..] {
            "up" => Color::Good,
            _ => Color::Doubtful,
        };
        let since = sidecar.at("up_for").count().map(units::duration);
        let text = match since {
            Some(since) => format!("{status} for {since}"),
            None => status,
        };
        row("status", Cell::from(text).colored(color))
    });
    rows([
        status,
        shown("process", sidecar.at("os_pid")),
        shown("version", sidecar.at("version")),
        restarts(sidecar.at("restarts")),
        limited(
            "descriptors",
            sidecar.at("descriptors"),
            sidecar.at("descriptor_limit"),
        ),
        bytes("memory", sidecar.at("memory")),
    ])
}

/// Number of restarts, coloured if there were any, because the log tells why.
fn restarts(count: &Value) -> Option<Vec<Cell>> {
    let count = count.count()?;
    let cell = Cell::from(count.to_string());
    Some(row(
        "restarts",
        match count {
            0 => cell,
            _ => cell.colored(Color::Doubtful),
        },
    ))
}

fn traffic(totals: &Value) -> Rows {
    rows([
        shown("connections accepted", totals.at("connections_accepted")),
        shown("connections made", totals.at("connections_made")),
        bytes("sent", totals.at("bytes_sent")),
        bytes("received", totals.at("bytes_received")),
    ])
}

fn applications(applications: &Value) -> Rows {
    let mut names: Vec<_> = applications
        .pairs()
        .iter()
        .map(|(name, version)| {
            // An application that was created in a running node may have no version.
            let version = word(version).filter(|version| !version.is_empty());
            vec![Cell::from(escape::line(name)), peers::cell(version)]
        })
        .collect();
    names.sort_by(|a, b| a[0].text().cmp(b[0].text()));
    names
}
