//! Ownership of the name of a socket file. Listening is not known here.
//!
//! The process that holds the flock(2) of `<socket>.lock` owns the name, from before the socket appears until
//! after it is gone. Without it, two nodes that start at the same time could both find the socket of a dead
//! node, and one could remove the new socket of the other. Carriers that do not use the lock keep their names
//! too: even with the lock, we never take over a socket that answers.

use super::probe::{Probe, probe};
use crate::address::Address;
use crate::directory;
use crate::failure::{Failure, Reason};
use crate::log_line::{Cause, NOTICE};
use crate::os;
use crate::peer::Credentials;
use crate::process;
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const ROOT: u32 = 0;

/// Device and inode, which identify a file even after something else has taken its path.
type Identity = (u64, u64);

/// A name that we own. Dropping it removes its socket and its lock file.
#[derive(Debug)]
pub struct OwnedName {
    path: PathBuf,
    /// The socket file, once we have bound it.
    socket: Option<Identity>,
    lock_path: PathBuf,
    /// Somebody has removed or replaced a file. This was reported, so dropping the name logs nothing about it.
    is_lost: bool,
    // Dropped last, because the name is free once the lock is released.
    lock: File,
}

impl OwnedName {
    /// Takes the name of the socket file `path`, and removes the socket of a dead owner.
    ///
    /// # Errors
    /// [`Reason::DuplicateName`] if a live process owns it. [`Reason::NameBusy`] if a process holds the lock
    /// but does not answer; it may be starting or ending, so try again. [`Reason::BadAddress`] if there can be
    /// no socket at this path. [`Reason::PermissionDenied`] or [`Reason::SystemError`] in all other cases.
    pub fn claim(path: &Path, vm_pid: u32) -> Result<OwnedName, Failure> {
        let lock_path = lock_path(path);
        let mut lock = take_lock(&lock_path, path)?;
        // From here on, dropping the name gives it up. Files that are not ours are left alone.
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

    /// Records that we have bound our socket to the path.
    pub fn bound(&mut self) -> io::Result<()> {
        self.socket = Some(identity(&fs::symlink_metadata(&self.path)?));
        Ok(())
    }

    /// Checks whether somebody has removed or replaced the socket or the lock file, and if so, explains what
    /// happened. A file that is still ours is removed when this is dropped. A file that cannot be examined
    /// counts as ours, because the error does not tell whose it is.
    pub fn is_lost(&mut self) -> Option<String> {
        let lock = self.lock.metadata().ok().map(|ours| identity(&ours));
        let files = [(&self.path, self.socket), (&self.lock_path, lock)];
        let lost = files
            .into_iter()
            .find_map(|(path, ours)| explain_loss(path, ours?));
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
                Ok(_) => warn_not_ours(&self.path, "is no longer ours; left alone"),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    warn_not_ours(&self.path, "was removed by somebody else");
                }
                Err(error) => log::warn!("cannot look at {}: {error}", self.path.display()),
            }
        }
        // A file that has replaced ours belongs to another owner, who removes it.
        let lock = fs::symlink_metadata(&self.lock_path).map(|found| identity(&found));
        match (lock, self.lock.metadata()) {
            (Ok(found), Ok(ours)) if found == identity(&ours) => remove(&self.lock_path),
            _ if self.is_lost => (),
            _ => warn_not_ours(&self.lock_path, "is no longer ours; left alone"),
        }
    }
}

fn warn_not_ours(path: &Path, what: &str) {
    let path = path.display();
    log::warn!(reason = Cause::FileTaken, address:% = path; "{path} {what}");
}

/// Explains what somebody has done to a file of ours; `None` if it is still there.
fn explain_loss(path: &Path, ours: Identity) -> Option<String> {
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

/// Path of the file whose lock decides who owns the socket `path`. The file contains the process id of the
/// owner's VM. That is for people who look into it; no program relies on it.
pub fn lock_path(path: &Path) -> PathBuf {
    let mut lock_path = OsString::from(path);
    lock_path.push(".lock");
    PathBuf::from(lock_path)
}

/// Most directory entries that [`sweep`] examines. A full directory must not delay the start of a node.
const MAX_SWEPT: usize = 1024;

/// Removes the files that killed nodes have left beside the socket file `path`: sockets at which nobody
/// listens, if their lock file belongs to our user and nobody holds the lock. A node that starts again takes
/// over its own name, but commands use each name only once (`rpc-1f3a-myapp`), so nobody else would remove
/// their files.
pub fn sweep(path: &Path) {
    let Some(entries) = path.parent().and_then(|parent| fs::read_dir(parent).ok()) else {
        return; // A directory may be writable but not readable.
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
    // We hold the lock until the end of this function. A node that starts under this name meanwhile tries again.
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

/// Opens and locks the lock file. The file that we hold in the end is the one at the path.
fn take_lock(lock_path: &Path, path: &Path) -> Result<File, Failure> {
    let directory = lock_path.parent().unwrap_or(Path::new("/"));
    ensure_directory(directory)?;
    let mut is_second_try = false;
    loop {
        let file = match open_lock(lock_path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                if !is_second_try && remove_roots_files(lock_path, path)? {
                    is_second_try = true;
                    continue;
                }
                return Err(cannot_open(&error, lock_path));
            }
            Err(error) => return Err(cannot_open(&error, lock_path)),
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
            // Its owner removed it after we opened it and before we locked it, so our lock protects nothing.
            Ok(_) => continue,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failure(&error, "look at", lock_path)),
        }
    }
}

/// Removes the files that a dead node of root has left in a directory that belongs to us now: its lock file,
/// and the socket beside it. Returns true if the lock file is gone, or is another one by now.
///
/// We cannot open the file, and therefore cannot lock it. No node of root can take the lock meanwhile,
/// because root's nodes do not start in directories of other users. If two of our own nodes start at the same
/// time, the second one must not remove the new files of the first one, so both lock the directory instead.
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
                    "another process is removing {}, or has locked its directory",
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
    // A node that is starting or ending has no socket, but holds the lock.
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
        // The mode of the socket does not let us connect.
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
        "removed {}, which a node of root has left behind",
        lock_path.display()
    );
    Ok(true)
}

/// True if this socket file belongs to root, and the kernel reports that nobody listens there. This also covers
/// carriers that do not use the lock.
fn is_unused(socket: &fs::Metadata) -> bool {
    let file = os::socket_file(socket);
    socket.uid() == ROOT
        && os::listening_sockets()
            .is_ok_and(|listening| listening.iter().all(|socket| socket.file != Some(file)))
}

/// Refuses files that must not be locked or written. Another user could hold the lock of their own file for
/// ever, to keep us from our name. A hard link could make us truncate some other file.
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

/// Explains why the lock file cannot be opened. The error of open(2) does not tell a symbolic link from
/// another user's file.
fn cannot_open(error: &io::Error, lock_path: &Path) -> Failure {
    let Ok(found) = fs::symlink_metadata(lock_path) else {
        return failure(error, "open", lock_path);
    };
    if let Err(failure) = check_lock(&found, lock_path) {
        return failure;
    }
    match error.kind() {
        io::ErrorKind::PermissionDenied => belongs_to_root(&found, lock_path),
        _ => failure(error, "open", lock_path),
    }
}

/// The explanation for a lock file that belongs to root. A live or a dead node may have created it, and only
/// root can find out which.
fn belongs_to_root(lock: &fs::Metadata, lock_path: &Path) -> Failure {
    let directory = lock_path.parent().unwrap_or(Path::new("/"));
    let may_remove = match fs::metadata(directory) {
        Ok(found) if found.uid() == os::own_uid() => "this node's user, who owns the directory,",
        _ => "only root",
    };
    Failure::new(
        Reason::BadAddress,
        format!(
            "{} is in the way and belongs to root (uid {}); if no node of root runs there, {may_remove} \
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

/// Makes sure that the directory exists and that no other user can replace our socket in it. Creates the
/// directory if it is missing, but not those above it, so that a mistyped path is an error and not a new tree.
fn ensure_directory(directory: &Path) -> Result<(), Failure> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => log::info!("created the directory {}", directory.display()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (),
        // It may exist in a place where we cannot create anything.
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

/// Explains who owns the name. We ask the kernel, because anybody could have written the content of the file.
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

/// Process id of the node; `None` for a process that we cannot see, such as one in another PID namespace.
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

/// Advice for an error of permission. It never recommends wider permissions, because everybody who can write
/// to the directory could impersonate the node.
fn permission_advice(path: &Path) -> &'static str {
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

/// Explains an error of the operating system in one line, with advice if there is any.
fn failure(error: &io::Error, what: &str, path: &Path) -> Failure {
    let (reason, advice) = match error.kind() {
        io::ErrorKind::PermissionDenied => (Reason::PermissionDenied, permission_advice(path)),
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::StorageFull => {
            (Reason::SystemError, "; set socket_dir to another directory")
        }
        io::ErrorKind::NotADirectory => (Reason::BadAddress, "; set socket_dir to a directory"),
        _ if os::is_link_loop(error) => (
            Reason::BadAddress,
            "; these links lead back to themselves, so set socket_dir to a directory",
        ),
        _ => (Reason::SystemError, ""),
    };
    Failure::new(
        reason,
        format!("cannot {what} {}: {error}{advice}", path.display()),
    )
}
