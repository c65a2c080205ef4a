//! The nodes of a directory, found without speaking to any of them.
//!
//! Others may be able to create files there, so nothing in it is opened or followed, and all that is
//! shown of a node but its name are the kernel's words.

use crate::escape;
use crate::failure::{Failure, Kind};
use crate::json;
use crate::location::Directory;
use crate::process;
use std::fmt::Write;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::str;
use std::thread;
use std::time::{Duration, Instant};
use uds_dist::address::Address;
use uds_dist::probe::{Probe, probe};
use uds_dist::protocol::Credentials;

/// How long to wait for those that accept nobody at the moment: their backlogs are full. It is one
/// time for all of them.
const PATIENCE: Duration = Duration::from_millis(500);

/// Between two looks at them: no event tells.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// A name, and what is known of its owner.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    name: Vec<u8>,
    pid: Option<u32>,
    uid: Option<u32>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Up,
    /// Somebody listens, and accepts nobody.
    Busy,
    /// Nobody listens there: what a killed node has left.
    Stale,
    /// It is not for us to know.
    Closed,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            State::Up => "up",
            State::Busy => "busy",
            State::Stale => "stale",
            State::Closed => "closed",
        }
    }
}

/// Lists a directory, sorted by name.
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
    let entries = names.into_iter().zip(probes);
    Ok(entries
        .filter_map(|(name, probe)| entry(name, probe, directory))
        .collect())
}

type Listed = Result<Vec<Vec<u8>>, (String, io::Error)>;

/// Nodes' sockets are files called so.
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

/// Reads the kernel's table. A name that has a newline in it can pretend to be a line of that: only
/// asking tells whether there is such a socket.
fn abstract_names(namespace: &[u8]) -> Listed {
    const TABLE: &str = "/proc/net/unix";
    let table = fs::read(TABLE).map_err(|error| (TABLE.into(), error))?;
    let prefix = [b"@", namespace, b"/"].concat();
    let names = table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| listening(line)?.strip_prefix(&prefix[..]));
    Ok(names.map(<[u8]>::to_vec).collect())
}

/// The name in a line of the table if its socket listens: "Num RefCount Protocol Flags Type St Inode
/// Path" of proc_pid_net(5).
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

/// Asks all of them at once, and waits for those that do not answer until the deadline.
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
            // The kernel forgets abstract names with their owners.
            Directory::Namespace(_) => return None,
        },
        Probe::Failed(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            (State::Closed, None)
        }
        // Gone between listing and looking, or no socket that a node could have: of another type,
        // or at a path that is too long for a node to listen there.
        Probe::Failed(_) => return None,
    };
    Some(Entry {
        name,
        pid: owner.as_ref().and_then(process::node_of),
        uid: owner.map(|owner| owner.uid),
        state,
    })
}

/// Names, processes, users and states in columns.
pub fn table(entries: &[Entry]) -> String {
    const NAME: &str = "NAME";
    let names: Vec<_> = entries
        .iter()
        .map(|entry| escape::name(&entry.name))
        .collect();
    let width = names.iter().map(|name| name.chars().count());
    let width = width.max().unwrap_or_default().max(NAME.len());
    let mut table = format!("{NAME:width$}  {:>7}  {:>6}  STATE\n", "PID", "UID");
    let number = |number: Option<u32>| number.map_or("-".into(), |number| number.to_string());
    for (entry, name) in entries.iter().zip(names) {
        writeln!(
            table,
            "{name:width$}  {:>7}  {:>6}  {}",
            number(entry.pid),
            number(entry.uid),
            entry.state.word()
        )
        .expect("a string takes everything");
    }
    table
}

/// The same as an array of objects. A name that is no text is escaped as in the table.
pub fn json(entries: &[Entry]) -> String {
    let number = |number: Option<u32>| number.map_or("null".into(), |number| number.to_string());
    let objects = entries.iter().map(|entry| {
        let name = match str::from_utf8(&entry.name) {
            Ok(name) => json::quoted(name),
            Err(_) => json::quoted(&escape::name(&entry.name)),
        };
        format!(
            r#"{{"name":{name},"pid":{},"uid":{},"state":"{}"}}"#,
            number(entry.pid),
            number(entry.uid),
            entry.state.word()
        )
    });
    format!("[{}]\n", objects.collect::<Vec<_>>().join(","))
}

/// The names alone, one a line.
pub fn bare(entries: &[Entry]) -> String {
    let lines = entries.iter().map(|entry| escape::name(&entry.name) + "\n");
    lines.collect()
}
