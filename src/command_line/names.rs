//! Lists the nodes of a directory, without speaking to any of them.
//!
//! Other users may be able to create files in the directory. So nothing in it is opened or followed, and except
//! for the name, everything that is shown of a node comes from the kernel.

use crate::escape;
use crate::failure::{Failure, Kind};
use crate::json;
use crate::layout::{self, Cell, Color, Reader};
use crate::location::Directory;
use crate::process;
use crate::units;
use crate::users;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::iter;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::str;
use std::thread;
use std::time::{Duration, Instant, SystemTime};
use uds_dist::address::Address;
use uds_dist::door::ownership::lock_path;
use uds_dist::door::probe::{Probe, probe};
use uds_dist::os;
use uds_dist::peer::Credentials;
use uds_dist::process::{is_of, lock_holder};
use uds_dist::sockets::Listening;

/// How long to wait for nodes whose backlog is full. All of them are waited for at the same time.
const PATIENCE: Duration = Duration::from_millis(500);

/// Time between two attempts to connect to them. There is no event to wait for.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// A name, and what is known about its owner.
#[derive(Debug)]
pub struct Entry {
    name: Vec<u8>,
    pid: Option<u32>,
    uid: Option<u32>,
    /// The start time of the process.
    since: Option<SystemTime>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Up,
    /// A process listens, but accepts no connections at the moment.
    Busy,
    /// Nobody listens. A killed node has left the socket file behind.
    Stale,
    /// This user may not connect, so nothing is known.
    Closed,
    /// A node listens, but its socket file was removed or replaced, so nobody can reach it.
    Gone,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            State::Up => "up",
            State::Busy => "busy",
            State::Stale => "stale",
            State::Closed => "closed",
            State::Gone => "gone",
        }
    }

    fn color(self) -> Color {
        match self {
            State::Up => Color::Good,
            State::Busy | State::Closed => Color::Doubtful,
            State::Stale | State::Gone => Color::Bad,
        }
    }
}

/// Lists the nodes of a directory, sorted by name.
pub fn list(directory: &Directory) -> Result<Vec<Entry>, Failure> {
    let mut names = match directory {
        Directory::Path(path) => files(path),
        Directory::Namespace(namespace) => abstract_names(namespace),
    }
    .map_err(|(place, error)| {
        Failure::new(
            Kind::Usage,
            format!("cannot list {place}: {error}; give another --dir"),
        )
    })?;
    names.sort();
    names.dedup();
    let addresses: Vec<_> = names.iter().map(|name| directory.address(name)).collect();
    let probes = probe_all(&addresses, Instant::now() + PATIENCE);
    let found = names.into_iter().zip(probes);
    let mut entries: Vec<_> = found
        .filter_map(|(name, probe)| entry(name, probe, directory))
        .collect();
    if let Directory::Path(path) = directory {
        entries.extend(without_file(path, &entries));
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

type Listed = Result<Vec<Vec<u8>>, (String, io::Error)>;

/// Ending of the names of socket files.
const EXTENSION: &[u8] = b".sock";

fn files(directory: &Path) -> Listed {
    let failed = |error| (directory.display().to_string(), error);
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let is_socket = entry.file_type().is_ok_and(|found| found.is_socket());
        let mut name = entry.file_name().into_vec();
        if is_socket && name.ends_with(EXTENSION) {
            name.truncate(name.len() - EXTENSION.len());
            names.push(name);
        }
    }
    Ok(names)
}

/// Reads the names from the kernel's table. A name that contains a newline can pretend to be another line of the
/// table. Probing shows whether such a socket exists.
fn abstract_names(namespace: &[u8]) -> Listed {
    const TABLE: &str = "/proc/net/unix";
    let table = fs::read(TABLE).map_err(|error| (TABLE.into(), error))?;
    Ok(listed(&table, namespace))
}

/// The names in a namespace that are listed in such a table.
pub fn listed(table: &[u8], namespace: &[u8]) -> Vec<Vec<u8>> {
    let prefix = [b"@", namespace, b"/"].concat();
    let names = table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| listening(line)?.strip_prefix(&prefix[..]));
    names.map(<[u8]>::to_vec).collect()
}

/// The name in a line of the table, if its socket listens. The fields are "Num RefCount Protocol Flags Type St
/// Inode Path"; see proc_pid_net(5).
fn listening(line: &[u8]) -> Option<&[u8]> {
    const LISTENING: &[u8] = b"00010000";
    const FIELDS: usize = 7;
    const FLAGS: usize = 3;
    let mut rest = line;
    let mut is_listening = false;
    for index in 0..FIELDS {
        let field = rest.trim_ascii_start();
        let end = field.iter().position(|byte| *byte == b' ')?;
        is_listening |= index == FLAGS && &field[..end] == LISTENING;
        rest = &field[end + 1..];
    }
    is_listening.then_some(rest)
}

/// Probes all addresses at once, and keeps probing those whose backlog is full until the deadline.
fn probe_all(addresses: &[Address], deadline: Instant) -> Vec<Probe> {
    let mut probes: Vec<_> = addresses.iter().map(probe).collect();
    loop {
        let mut waiting = false;
        for (found, address) in probes.iter_mut().zip(addresses) {
            if matches!(found, Probe::Answers(None)) {
                *found = probe(address);
                waiting |= matches!(found, Probe::Answers(None));
            }
        }
        if !waiting || Instant::now() >= deadline {
            return probes;
        }
        thread::sleep(POLL_INTERVAL);
    }
}

fn entry(name: Vec<u8>, probe: Probe, directory: &Directory) -> Option<Entry> {
    let (state, owner): (_, Option<Credentials>) = match probe {
        Probe::Answers(Some(owner)) => (State::Up, Some(owner)),
        Probe::Answers(None) => (State::Busy, None),
        Probe::Nobody => match directory {
            Directory::Path(_) => (State::Stale, None),
            // An abstract name disappears with its owner.
            Directory::Namespace(_) => return None,
        },
        Probe::Failed(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            (State::Closed, None)
        }
        // The file was removed after listing, or no node can have such a socket: it is of another type, or its
        // path is too long.
        Probe::Failed(_) => return None,
    };
    Some(Entry::new(name, owner, state))
}

/// Nodes that listen at a path in this directory at which there is now another file, or none. So two living
/// nodes can have the same name. Empty if the system does not tell.
fn without_file(directory: &Path, entries: &[Entry]) -> Vec<Entry> {
    let mut by_name: BTreeMap<Vec<u8>, Vec<Listening>> = BTreeMap::new();
    for (name, socket) in bound_in(directory).unwrap_or_default() {
        by_name.entry(name).or_default().push(socket);
    }
    let mut gone = Vec::new();
    for (name, mut sockets) in by_name {
        let path = directory.join(OsStr::from_bytes(&[&name, EXTENSION].concat()));
        let file = fs::symlink_metadata(&path).ok();
        let is_at = |socket: &Listening| socket.file == file.as_ref().map(os::socket_file);
        let is_alive = entries
            .iter()
            .any(|entry| entry.name == name && entry.is_alive());
        match sockets.iter().position(is_at) {
            Some(index) => _ = sockets.remove(index),
            // On some file systems, the kernel's number of a file differs from the one that programs see.
            None if is_alive => _ = sockets.pop(),
            None => (),
        }
        // If this is the only node of that name, it is the one that holds the lock.
        let lock_holder = match &sockets[..] {
            [_] if !is_alive => fs::symlink_metadata(lock_path(&path))
                .ok()
                .and_then(|lock| lock_holder(&lock)),
            _ => None,
        };
        let owner = |socket: &Listening| {
            let uid = socket.uid?;
            let lock_holder = lock_holder.filter(|pid| is_of(*pid, uid));
            let pid = process::holder_of(socket.inode).or(lock_holder);
            Some(Credentials {
                uid,
                pid: pid.unwrap_or(Credentials::UNKNOWN.pid),
                ..Credentials::UNKNOWN
            })
        };
        let found = sockets.iter().map(owner);
        gone.extend(found.map(|owner| Entry::new(name.clone(), owner, State::Gone)));
    }
    gone
}

/// Sockets that are bound to paths in this directory, with their names. Another container may have a directory
/// with the same path on a different file system, so the file system is compared too.
fn bound_in(directory: &Path) -> io::Result<Vec<(Vec<u8>, Listening)>> {
    let device = os::socket_file(&fs::metadata(directory)?).device;
    let resolved = fs::canonicalize(directory)?;
    let name_of = |socket: &Listening| {
        let path = Path::new(OsStr::from_bytes(&socket.path));
        let parent = path.parent()?;
        let is_here = (parent == directory || parent == resolved)
            && socket.file.is_some_and(|file| file.device == device);
        let name = path.file_name()?.as_bytes().strip_suffix(EXTENSION)?;
        is_here.then(|| name.to_vec())
    };
    let sockets = os::listening_sockets()?.into_iter();
    let named = sockets.filter_map(|socket| Some((name_of(&socket)?, socket)));
    Ok(named.collect())
}

impl Entry {
    fn new(name: Vec<u8>, owner: Option<Credentials>, state: State) -> Entry {
        let pid = owner.as_ref().and_then(process::node_of);
        Entry {
            name,
            pid,
            uid: owner.map(|owner| owner.uid),
            since: pid.and_then(process::started),
            state,
        }
    }

    fn is_alive(&self) -> bool {
        matches!(self.state, State::Up | State::Busy | State::Closed)
    }
}

/// Formats the entries as a table.
pub fn table(entries: &[Entry], reader: Reader) -> String {
    let unknown = || "-".to_owned();
    let head = ["NAME", "PID", "USER", "SINCE", "STATE"].map(Cell::from);
    let rows = entries.iter().map(|entry| {
        vec![
            Cell::from(escape::name(&entry.name)),
            Cell::from(entry.pid.map_or_else(unknown, |pid| pid.to_string())).right(),
            Cell::from(entry.uid.map_or_else(unknown, users::short)),
            Cell::from(entry.since.map_or_else(unknown, units::rfc3339)),
            Cell::from(entry.state.word()).colored(entry.state.color()),
        ]
    });
    let rows: Vec<_> = iter::once(head.into()).chain(rows).collect();
    layout::table(&rows, reader)
}

/// Formats the entries as a JSON array of objects. A name that is not valid UTF-8 is escaped as in the table.
pub fn json(entries: &[Entry]) -> String {
    let number = |number: Option<u32>| number.map_or("null".into(), |number| number.to_string());
    let text = |text: Option<String>| text.map_or("null".into(), |text| json::quoted(&text));
    let objects = entries.iter().map(|entry| {
        let name = match str::from_utf8(&entry.name) {
            Ok(name) => name.to_owned(),
            Err(_) => escape::name(&entry.name),
        };
        format!(
            r#"{{"name":{},"pid":{},"uid":{},"user":{},"since":{},"state":"{}"}}"#,
            json::quoted(&name),
            number(entry.pid),
            number(entry.uid),
            text(entry.uid.and_then(users::name_of)),
            text(entry.since.map(units::rfc3339)),
            entry.state.word()
        )
    });
    format!("[{}]\n", objects.collect::<Vec<_>>().join(","))
}

/// Only the names, one on each line.
pub fn bare(entries: &[Entry]) -> String {
    let mut lines: Vec<_> = entries
        .iter()
        .map(|entry| escape::name(&entry.name) + "\n")
        .collect();
    lines.dedup();
    lines.concat()
}
