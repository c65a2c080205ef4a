//! The report of `peers`: the connections of a node. Pure, except that it looks up names of users.

use crate::escape;
use crate::layout::{self, Cell, Color, Reader};
use crate::units;
use crate::users;
use crate::value::Value;
use std::iter;

/// Percentages of a limit from which a value is shown as doubtful and as bad.
const DOUBTFUL: u64 = 70;
const BAD: u64 = 90;

/// Removes the command's own connection and adds the names of users. The answer is either a list of peers or an
/// object that contains one.
pub fn completed(answer: Value, own_node: &str) -> Value {
    match answer {
        Value::List(peers) => {
            let is_other = |peer: &Value| peer.at("node").text() != Some(own_node);
            let others = peers.into_iter().filter(is_other).map(with_user);
            Value::List(others.collect())
        }
        Value::Object(pairs) => {
            let completed = |(key, value)| match key == PEERS {
                true => (key, completed(value, own_node)),
                false => (key, value),
            };
            Value::Object(pairs.into_iter().map(completed).collect())
        }
        other => other,
    }
}

/// Key of the list of peers in a status.
pub const PEERS: &str = "peers";

fn with_user(peer: Value) -> Value {
    let Value::Object(mut pairs) = peer else {
        return peer;
    };
    if let Some(at) = pairs.iter().position(|(key, _)| key == "uid") {
        let name = uid(&pairs[at].1).and_then(users::name_of);
        let user = name.map_or(Value::Null, Value::Text);
        pairs.insert(at + 1, ("user".into(), user));
    }
    Value::Object(pairs)
}

fn uid(value: &Value) -> Option<u32> {
    value.count().and_then(|uid| uid.try_into().ok())
}

/// Only the names, one on each line.
pub fn bare(peers: &Value) -> String {
    let nodes = peers
        .elements()
        .iter()
        .filter_map(|peer| peer.at("node").text());
    nodes.map(|node| escape::line(node) + "\n").collect()
}

/// Formats a table with a row for each connection.
pub fn table(peers: &Value, reader: Reader) -> String {
    layout::table(&rows(peers), reader)
}

/// The rows of the table, including its head.
pub fn rows(peers: &Value) -> Vec<Vec<Cell>> {
    let head = [
        Cell::from("NODE"),
        Cell::from("DIR"),
        Cell::from("VIA"),
        Cell::from("USER"),
        Cell::from("PID").right(),
        Cell::from("AGE").right(),
        Cell::from("SENT").right(),
        Cell::from("RECEIVED").right(),
        Cell::from("QUEUED").right(),
        Cell::from("STATE"),
    ];
    let rows = peers.elements().iter().map(row);
    iter::once(head.into()).chain(rows).collect()
}

fn row(peer: &Value) -> Vec<Cell> {
    let bytes = |key: &str| cell(peer.at(key).count().map(units::bytes)).right();
    let state = peer.at("state").text();
    // A process in another PID namespace has no number here.
    let pid = peer.at("pid").count().filter(|pid| *pid > 0);
    vec![
        text(peer.at("node")),
        text(peer.at("direction")),
        text(peer.at("transport")),
        cell(uid(peer.at("uid")).map(users::short)),
        cell(pid.map(|pid| pid.to_string())).right(),
        cell(peer.at("age").count().map(units::duration)).right(),
        bytes("bytes_sent"),
        bytes("bytes_received"),
        queued(peer).right(),
        text(peer.at("state")).colored(match state {
            Some("up") => Color::Good,
            _ => Color::Doubtful,
        }),
    ]
}

/// The length of the VM's queue. At its limit, senders are suspended.
fn queued(peer: &Value) -> Cell {
    let Some(queued) = peer.at("queued").count() else {
        return cell(None);
    };
    match peer.at("queue_limit").count() {
        Some(limit) => of_limit(queued, limit, units::bytes(queued), ""),
        None => Cell::from(units::bytes(queued)),
    }
}

/// A quantity and its percentage of a limit, coloured if it is close to the limit.
pub fn of_limit(used: u64, limit: u64, shown: String, of: &str) -> Cell {
    let percent = units::percent(used, limit);
    let cell = Cell::from(format!("{shown}{of} ({percent} %)"));
    match percent {
        BAD.. => cell.colored(Color::Bad),
        DOUBTFUL.. => cell.colored(Color::Doubtful),
        _ => cell,
    }
}

/// A cell with this text, or with a dash if it is not known.
pub fn cell(text: Option<String>) -> Cell {
    Cell::from(text.unwrap_or_else(|| "-".into()))
}

fn text(value: &Value) -> Cell {
    cell(value.text().map(escape::line))
}
