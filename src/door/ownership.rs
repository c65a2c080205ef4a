//! Who owns the name of a socket file. Listening there is not known here.
//!
//! A name is owned by the process that holds the flock(2) of `<socket>.lock`, from before the socket
//! appears until after it is gone. So starters at the same instant cannot both find a dead node's
//! socket stale and remove each other's new one. Carriers that know nothing of the lock are
//! respected too: under the lock, a socket that answers has an owner.

use super::probe::{Probe, probe};
use crate::address::Address;
use crate::directory;
use crate::failure::{Failure, Reason};
use crate::journal::NOTICE;
use crate::os;
use crate::peer::Credentials;
use crate::port::protocol::Cause;
use crate::process;
use crate::sockets;
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const ROOT: u32 = 0;

/// Device and inode: the identity of a file, whatever its path says later.
type Identity = (u64, u64);

/// A name that is ours until this is dropped; then its socket and lock file are removed.
#[derive(Debug)]
pub struct OwnedName {
    path: PathBuf,
    /// The socket file, once we have bound it.
    socket: Option<Identity>,
    lock_path: PathBuf,
    /// Somebody has taken it away, and the VM is told.
    is_lost: bool,
    // Dropped last: the name is free when nothing of it is left.
    lock: File,
}

impl OwnedName {
    /// Takes the name of the socket file `path` and removes a dead owner's socket.
    ///
    /// # Errors
    /// [`Reason::DuplicateName`] when a live process owns it, [`Reason::NameBusy`] when one holds
    /// the lock but does not answer (yet, or any more: ask again), [`Reason::BadAddress`] when
    /// there can be no socket, [`Reason::PermissionDenied`] or [`Reason::SystemError`] otherwise.
    pub fn claim(path: &Path, vm_pid: u32) -> Result<OwnedName, Failure> {
        let lock_path = lock_path(path);
        let mut lock = take_lock(&lock_path, path)?;
        // From here on, dropping the name gives it up and leaves what is not ours alone.
        let noted = lock.set_len(0).and_then(|()| writeln!(lock, "{vm_pid}"));
        let name = OwnedName {
            path: path.to_owned(),
            socket: None,
            lock_path,
            is_lost: false,
            lock,
        };
        noted.map_err(|error| failure(&error, "write", &name.lock_path))?;
        name.remove_stale_socket()?;
        Ok(name)
    }

    /// The socket now stands at the path: remember it as ours.
    pub fn bound(&mut self) -> io::Result<()> {
        self.socket = Some(identity(&fs::symlink_metadata(&self.path)?));
        Ok(())
    }

    /// Finds out whether somebody has removed or replaced the socket or the lock file, and says what has
    /// happened. What is still ours is removed when this is dropped. A file that cannot be looked at
    /// counts as ours: that says nothing about who put it there.
    pub fn is_lost(&mut self) -> Option<String> {
        let lock = self.lock.metadata().ok().map(|ours| identity(&ours));
        let files = [(&self.path, self.socket), (&self.lock_path, lock)];
        let lost = files
            .into_iter()
            .find_map(|(path, ours)| what_became_of(path, ours?));
        self.is_lost = lost.is_some();
        lost
    }

    fn remove_stale_socket(&self) -> Result<(), Failure> {
        let path = &self.path;
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failure(&error, "look at", path)),
            Ok(found) if !found.file_type().is_socket() => {
                return Err(Failure::new(
                    Reason::BadAddress,
                    format!(
                        "{} is in the way and is not a socket; remove it, or choose another \
                         node name or socket_dir",
                        path.display()
                    ),
                ));
            }
            Ok(_) => (),
        }
        match probe(&Address::Path(path.clone())) {
            Probe::Nobody => match fs::remove_file(path) {
                Ok(()) => {
                    log::info!(
                        target: NOTICE, reason = Cause::TookOver, address:% = path.display();
                        "took over {}, whose owner is dead",
                        path.display()
                    );
                    Ok(())
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(failure(&error, "remove the stale socket", path)),
            },
            Probe::Answers(owner) => Err(duplicate(path, owner.as_ref().and_then(node_of))),
            Probe::Failed(error) => Err(failure(&error, "find out who listens at", path)),
        }
    }
}

impl Drop for OwnedName {
    fn drop(&mut self) {
        if let Some(ours) = self.socket {
            match fs::symlink_metadata(&self.path) {
                Ok(found) if identity(&found) == ours => remove(&self.path),
                _ if self.is_lost => (),
                Ok(_) => not_ours(&self.path, "is no longer ours; left alone"),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    not_ours(&self.path, "was removed by somebody else");
                }
                Err(error) => log::warn!("cannot look at {}: {error}", self.path.display()),
            }
        }
        // Ours is locked; another one has replaced it and is its owner's to remove.
        let lock = fs::symlink_metadata(&self.lock_path).map(|found| identity(&found));
        match (lock, self.lock.metadata()) {
            (Ok(found), Ok(ours)) if found == identity(&ours) => remove(&self.lock_path),
            _ if self.is_lost => (),
            _ => not_ours(&self.lock_path, "is no longer ours; left alone"),
        }
    }
}

fn not_ours(path: &Path, what: &str) {
    let path = path.display();
    log::warn!(reason = Cause::FileTaken, address:% = path; "{path} {what}");
}

/// What has happened to a file of ours, if anything.
fn what_became_of(path: &Path, ours: Identity) -> Option<String> {
    use io::ErrorKind::{NotADirectory, NotFound};
    match fs::symlink_metadata(path) {
        Ok(found) if identity(&found) == ours => None,
        Ok(_) => Some(format!("somebody has replaced {}", path.display())),
        Err(error) if matches!(error.kind(), NotFound | NotADirectory) => {
            Some(format!("somebody has removed {}", path.display()))
        }
        Err(error) => {
            log::debug!("cannot look at {}: {error}", path.display());
            None
        }
    }
}

/// The file whose lock says who owns the socket `path`. It has the number of that VM, for people who look
/// into it; nobody believes it.
pub fn lock_path(path: &Path) -> PathBuf {
    let mut lock_path = OsString::from(path);
    lock_path.push(".lock");
    PathBuf::from(lock_path)
}

/// Names in a directory that are looked at: a directory full of them must not delay a node's start.
const MAX_SWEPT: usize = 1024;

/// Removes what killed nodes have left beside the socket file `path`: sockets at which nobody
/// listens, with a lock file of our user's that nobody holds. Other nodes see to their own names, but
/// those of commands that are run once (`rpc-1f3a-myapp`) are never taken again.
pub fn sweep(path: &Path) {
    let Some(entries) = path.parent().and_then(|parent| fs::read_dir(parent).ok()) else {
        return; // A directory may be writable and not readable.
    };
    for entry in entries.take(MAX_SWEPT).flatten() {
        let lock_path = entry.path();
        if lock_path.extension() == Some(OsStr::new("lock")) {
            let name = lock_path.with_extension("");
            if name != path && name.extension() == Some(OsStr::new("sock")) {
                sweep_name(&name, &lock_path);
            }
        }
    }
}

fn sweep_name(path: &Path, lock_path: &Path) {
    let file = match lock_options().open(lock_path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            if let Err(failure) = remove_roots_files(lock_path, path) {
                log::debug!("{}", failure.explanation);
            }
            return;
        }
        Err(_) => return,
    };
    let Ok(opened) = file.metadata() else {
        return;
    };
    if !opened.is_file() || opened.uid() != os::own_uid() {
        return;
    }
    // Held to the end of this function: a node that starts under this name meanwhile tries again.
    if os::lock(&file).is_err() {
        return;
    }
    let is_current = |found: io::Result<fs::Metadata>| {
        found.is_ok_and(|found| identity(&found) == identity(&opened))
    };
    if !is_current(fs::symlink_metadata(lock_path)) {
        return;
    }
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return,
        Ok(_) => match probe(&Address::Path(path.to_owned())) {
            Probe::Nobody => remove(path),
            Probe::Answers(_) | Probe::Failed(_) => return,
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => (),
        Err(_) => return,
    }
    remove(lock_path);
    let path = path.display();
    log::info!(reason = Cause::TookOver, address:% = path; "removed {path}, whose owner is dead");
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        log::warn!("cannot remove {}: {error}", path.display());
    }
}

/// Opens and locks the lock file; what we hold in the end is the file that stands at the path.
fn take_lock(lock_path: &Path, path: &Path) -> Result<File, Failure> {
    let directory = lock_path.parent().unwrap_or(Path::new("/"));
    make_directory(directory)?;
    let mut is_second_try = false;
    loop {
        let file = match open_lock(lock_path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                if !is_second_try && remove_roots_files(lock_path, path)? {
                    is_second_try = true;
                    continue;
                }
                return Err(unopenable(&error, lock_path));
            }
            Err(error) => return Err(unopenable(&error, lock_path)),
        };
        let opened = file
            .metadata()
            .map_err(|error| failure(&error, "look at", lock_path))?;
        check_lock(&opened, lock_path)?;
        match os::lock(&file) {
            Ok(()) => (),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(held_by_another(&opened, lock_path, path));
            }
            Err(error) => return Err(failure(&error, "lock", lock_path)),
        }
        match fs::symlink_metadata(lock_path) {
            Ok(found) if identity(&found) == identity(&opened) => return Ok(file),
            // Its owner removed it between our open and our lock: what we hold is nobody's.
            Ok(_) => continue,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failure(&error, "look at", lock_path)),
        }
    }
}

/// Removes the lock file of a node of root's that is dead, in a directory that is ours by now, and the socket
/// beside it. We cannot open the lock file, and so cannot lock it either; root's nodes start in no directory
/// of another user, so nobody takes it meanwhile. Returns true if it is gone, or is another one by now.
///
/// The lock of the directory stands in for that of the file: of two starters of ours, the second one must not
/// remove what the first one has put there instead.
fn remove_roots_files(lock_path: &Path, path: &Path) -> Result<bool, Failure> {
    let parent = lock_path.parent().unwrap_or(Path::new("/"));
    let Ok(directory) = File::open(parent) else {
        return Ok(false);
    };
    let Ok(our_directory) = directory.metadata() else {
        return Ok(false);
    };
    if our_directory.uid() != os::own_uid() {
        return Ok(false);
    }
    match os::lock(&directory) {
        Ok(()) => (),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            return Err(Failure::new(
                Reason::NameBusy,
                format!(
                    "another process removes {}, or has locked its directory",
                    lock_path.display()
                ),
            ));
        }
        Err(error) => return Err(failure(&error, "lock", parent)),
    }
    let found = match fs::symlink_metadata(lock_path) {
        Ok(found) => found,
        Err(error) => return Ok(error.kind() == io::ErrorKind::NotFound),
    };
    if found.uid() == os::own_uid() {
        return Ok(true);
    }
    // A node that is just starting or ending has no socket, but holds the lock.
    let may_be_dead = found.uid() == ROOT
        && check_lock(&found, lock_path).is_ok()
        && process::lock_holder(&found).is_none();
    if !may_be_dead {
        return Ok(false);
    }
    let socket = fs::symlink_metadata(path);
    let socket = socket.ok().filter(|found| found.file_type().is_socket());
    let is_dead = match (probe(&Address::Path(path.to_owned())), &socket) {
        (Probe::Nobody, _) => true,
        (Probe::Answers(_), _) | (Probe::Failed(_), None) => false,
        // Its mode does not let us in.
        (Probe::Failed(_), Some(socket)) => {
            process::sees_lock_holders(&our_directory) && is_unused(socket)
        }
    };
    if !is_dead {
        return Ok(false);
    }
    if socket.is_some() {
        fs::remove_file(path).map_err(|error| failure(&error, "remove", path))?;
    }
    fs::remove_file(lock_path).map_err(|error| failure(&error, "remove", lock_path))?;
    log::info!(
        target: NOTICE, reason = Cause::TookOver, address:% = path.display();
        "removed {}, which a node of root's has left behind",
        lock_path.display()
    );
    Ok(true)
}

/// True if the kernel says that no socket which listens is bound to this one of root's. Carriers that take no
/// lock are respected too.
fn is_unused(socket: &fs::Metadata) -> bool {
    let file = sockets::File::of(socket);
    socket.uid() == ROOT
        && sockets::listening()
            .is_ok_and(|listening| listening.iter().all(|socket| socket.file != Some(file)))
}

/// Somebody else's lock file could be held for ever, to keep us from our name; and one that is also
/// another file, by a hard link, would be that file which we empty.
fn check_lock(lock: &fs::Metadata, lock_path: &Path) -> Result<(), Failure> {
    if !lock.is_file() {
        Err(in_the_way(lock_path, "is not a lock file"))
    } else if !os::is_trusted_owner(lock.uid()) {
        let problem = format!("belongs to uid {}", lock.uid());
        Err(in_the_way(lock_path, &problem))
    } else if lock.nlink() > 1 {
        Err(in_the_way(lock_path, "is a hard link to another file"))
    } else {
        Ok(())
    }
}

fn in_the_way(lock_path: &Path, problem: &str) -> Failure {
    Failure::new(
        Reason::BadAddress,
        format!(
            "{} is in the way and {problem}; remove it, or set socket_dir to a directory of this \
             node's user",
            lock_path.display()
        ),
    )
}

/// The error of open(2) says little about why: a link, another user's file.
fn unopenable(error: &io::Error, lock_path: &Path) -> Failure {
    let Ok(found) = fs::symlink_metadata(lock_path) else {
        return failure(error, "open", lock_path);
    };
    if let Err(failure) = check_lock(&found, lock_path) {
        return failure;
    }
    match error.kind() {
        io::ErrorKind::PermissionDenied => roots_alone(&found, lock_path),
        _ => failure(error, "open", lock_path),
    }
}

/// A node of root's holds this lock, or has left it behind; only root can find out.
fn roots_alone(lock: &fs::Metadata, lock_path: &Path) -> Failure {
    let directory = lock_path.parent().unwrap_or(Path::new("/"));
    let may_remove = match fs::metadata(directory) {
        Ok(found) if found.uid() == os::own_uid() => "this node's user, who owns the directory,",
        _ => "only root",
    };
    Failure::new(
        Reason::BadAddress,
        format!(
            "{} is in the way and belongs to uid {} alone; if no node of root's runs there, {may_remove} \
             may remove it and the socket beside it; or set socket_dir to a directory of this node's user",
            lock_path.display(),
            lock.uid()
        ),
    )
}

fn open_lock(lock_path: &Path) -> io::Result<File> {
    lock_options()
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(lock_path)
}

fn lock_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(os::OPEN_WARILY);
    options
}

/// Sees to a directory in which nobody but those we trust can put a socket in our place. A missing
/// one is created, but not the ones above it: a mistyped path should be an error, not a new tree.
fn make_directory(directory: &Path) -> Result<(), Failure> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => log::info!("created the directory {}", directory.display()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (),
        // It may exist all the same, in a place where we cannot create anything.
        Err(error) if directory.is_dir() => log::debug!("{}: {error}", directory.display()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Failure::new(
                Reason::BadAddress,
                format!(
                    "the directory {} does not exist, and neither does the one above it; create \
                     it, or set socket_dir to another",
                    directory.display()
                ),
            ));
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(Failure::new(
                Reason::PermissionDenied,
                format!(
                    "cannot create the directory {0}: {error}; create it for the user of this node \
                     (install -d -o {1} -m 0700 {0}), or set socket_dir to another",
                    directory.display(),
                    os::own_uid()
                ),
            ));
        }
        Err(error) => return Err(failure(&error, "create the directory", directory)),
    }
    match directory::distrust(directory) {
        Ok(None) => Ok(()),
        Ok(Some(problem)) => Err(Failure::new(
            Reason::BadAddress,
            format!("the directory {} {problem}", directory.display()),
        )),
        Err(error) => Err(failure(&error, "look at", directory)),
    }
}

/// Who has the name is for the kernel to say, and not for the file.
fn held_by_another(lock: &fs::Metadata, lock_path: &Path, path: &Path) -> Failure {
    let holder = || {
        let holder = process::lock_holder(lock)?;
        Some(process::node_of(holder, lock.uid()))
    };
    match probe(&Address::Path(path.to_owned())) {
        Probe::Answers(Some(listener)) => duplicate(path, node_of(&listener)),
        Probe::Answers(None) => duplicate(path, holder()),
        Probe::Nobody | Probe::Failed(_) => Failure::new(
            Reason::NameBusy,
            format!(
                "the name is taken: {} is locked{}, but nobody answers at {}",
                lock_path.display(),
                by_process(holder()),
                path.display()
            ),
        ),
    }
}

/// `None` for a process that we cannot see, as in another pid namespace.
fn node_of(listener: &Credentials) -> Option<u32> {
    Some(process::node_of(listener.process()?, listener.uid))
}

fn duplicate(path: &Path, pid: Option<u32>) -> Failure {
    Failure::new(
        Reason::DuplicateName,
        format!(
            "the name is in use{}: a live node answers at {}",
            by_process(pid),
            path.display()
        ),
    )
}

fn by_process(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" by process {pid}"))
        .unwrap_or_default()
}

fn identity(metadata: &fs::Metadata) -> Identity {
    (metadata.dev(), metadata.ino())
}

/// What to do where a file in a directory may not be touched. Wider permissions are not the answer: whoever
/// may write there could stand in for the node.
fn whose_directory(path: &Path) -> &'static str {
    let directory = path.parent().unwrap_or(Path::new("/"));
    match fs::metadata(directory) {
        Ok(found) if found.uid() == os::own_uid() => {
            "; the directory belongs to this user, who needs all permissions (chmod u+rwx)"
        }
        _ => {
            "; the directory belongs to another user: run this as the user that it is for, or set \
             socket_dir to a directory of this user's own"
        }
    }
}

/// One line for an operating system's error, with what to do where we know it.
fn failure(error: &io::Error, what: &str, path: &Path) -> Failure {
    let (reason, advice) = match error.kind() {
        io::ErrorKind::PermissionDenied => (Reason::PermissionDenied, whose_directory(path)),
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::StorageFull => {
            (Reason::SystemError, "; set socket_dir to another directory")
        }
        io::ErrorKind::NotADirectory => (Reason::BadAddress, "; set socket_dir to a directory"),
        _ => (Reason::SystemError, ""),
    };
    Failure::new(
        reason,
        format!("cannot {what} {}: {error}{advice}", path.display()),
    )
}
