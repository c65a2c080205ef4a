//! The nodes of a directory, found without speaking to any of them.

use crate::failure::{Failure, Kind};
use crate::json;
use crate::location::Directory;
use std::fmt::Write;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use uds_dist::address::Address;
use uds_dist::door::ownership::lock_path;
use uds_dist::door::probe::{Probe, probe};

/// A name, and what is known of its owner.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    name: String,
    pid: Option<u32>,
    uid: Option<u32>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Up,
    /// Nobody listens there: what a killed node has left.
    Stale,
    /// It is not for us to know.
    Closed,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            State::Up => "up",
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
    let entries = names.into_iter().filter_map(|name| {
        let address = directory.address(&name);
        look_at(name, &address)
    });
    Ok(entries.collect())
}

type Listed = Result<Vec<String>, (String, io::Error)>;

fn files(directory: &Path) -> Listed {
    let failed = |error| (directory.display().to_string(), error);
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let file = entry.file_name();
        // A node's name is text.
        let name = file.to_str().and_then(|file| file.strip_suffix(".sock"));
        // Connecting to another file is refused as well. A link may lead to a socket.
        let is_socket = fs::metadata(entry.path()).is_ok_and(|found| found.file_type().is_socket());
        names.extend(name.filter(|_| is_socket).map(str::to_owned));
    }
    Ok(names)
}

/// The kernel's table, of lines as in proc_pid_net(5): "Num RefCount Protocol Flags Type St Inode
/// Path". It forgets abstract sockets with their owner.
fn abstract_names(namespace: &[u8]) -> Listed {
    const TABLE: &str = "/proc/net/unix";
    const LISTENING: &str = "00010000";
    let table = fs::read(TABLE).map_err(|error| (TABLE.into(), error))?;
    let table = String::from_utf8_lossy(&table);
    let prefix = format!("@{}/", String::from_utf8_lossy(namespace));
    let paths = table.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let flags = fields.nth(3)?;
        let path = fields.nth(3)?;
        (flags == LISTENING).then_some(path)?.strip_prefix(&prefix)
    });
    Ok(paths.map(str::to_owned).collect())
}

fn look_at(name: String, address: &Address) -> Option<Entry> {
    let (state, owner) = match probe(address) {
        Probe::Answers(owner) => (State::Up, owner),
        Probe::Nobody => (State::Stale, None),
        // Gone between listing and looking.
        Probe::Failed(error) if error.kind() != io::ErrorKind::PermissionDenied => return None,
        Probe::Failed(_) => (State::Closed, None),
    };
    let listener = owner.and_then(|owner| owner.process());
    Some(Entry {
        name,
        pid: vm_of(address).filter(|_| state == State::Up).or(listener),
        uid: owner.map(|owner| owner.uid),
        state,
    })
}

/// Who listens is a sidecar; its lock file names the VM. Other carriers have neither.
fn vm_of(address: &Address) -> Option<u32> {
    let text = fs::read_to_string(lock_path(address.path()?)).ok()?;
    text.trim_end().parse().ok()
}

/// Names, processes, users and states in columns.
pub fn table(entries: &[Entry]) -> String {
    const NAME: &str = "NAME";
    let width = entries.iter().map(|entry| entry.name.chars().count());
    let width = width.max().unwrap_or_default().max(NAME.len());
    let mut table = format!("{NAME:width$}  {:>7}  {:>6}  STATE\n", "PID", "UID");
    let number = |number: Option<u32>| number.map_or("-".into(), |number| number.to_string());
    for entry in entries {
        writeln!(
            table,
            "{:width$}  {:>7}  {:>6}  {}",
            entry.name,
            number(entry.pid),
            number(entry.uid),
            entry.state.word()
        )
        .expect("a string takes everything");
    }
    table
}

/// The same as an array of objects.
pub fn json(entries: &[Entry]) -> String {
    let number = |number: Option<u32>| number.map_or("null".into(), |number| number.to_string());
    let objects = entries.iter().map(|entry| {
        format!(
            r#"{{"name":{},"pid":{},"uid":{},"state":"{}"}}"#,
            json::quoted(&entry.name),
            number(entry.pid),
            number(entry.uid),
            entry.state.word()
        )
    });
    format!("[{}]\n", objects.collect::<Vec<_>>().join(","))
}
