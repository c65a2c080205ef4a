//! Who can put something into a directory, or take something out of it. A leaf.

use crate::os;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const GROUP_WRITES: u32 = 0o020;
const OTHERS_WRITE: u32 = 0o002;
/// Only who owns a file may remove or rename it: restricted deletion of chmod(1).
const STICKY: u32 = 0o1000;

/// Whether nobody but our own user, and root, can put something into a directory: it is ours, and only we
/// can write to it.
///
/// # Errors
/// When it cannot be looked at.
pub fn is_private(directory: &Path) -> io::Result<bool> {
    let entry = fs::symlink_metadata(directory)?;
    let target = fs::metadata(directory)?;
    Ok(os::is_trusted_owner(entry.uid())
        && target.is_dir()
        && target.uid() == os::own_uid()
        && target.mode() & (GROUP_WRITES | OTHERS_WRITE) == 0)
}

/// Why others could take away or replace a file that we put into a directory, and what to do about it;
/// `None` if nobody could. Of a symbolic link, what it leads to counts, and who can lead it elsewhere.
///
/// A group is not trusted here, whoever may be in it: who is admitted as a peer may talk to the node, and
/// not stand in for it.
///
/// # Errors
/// When it cannot be looked at.
pub fn distrust(directory: &Path) -> io::Result<Option<String>> {
    let entry = fs::symlink_metadata(directory)?;
    let target = fs::metadata(directory)?;
    let mode = target.mode();
    Ok(
        if entry.is_symlink() && !os::is_trusted_owner(entry.uid()) {
            Some(format!(
                "is a symbolic link of uid {}, who can lead it elsewhere; name the directory itself",
                entry.uid()
            ))
        } else if !target.is_dir() {
            Some("is not a directory; set socket_dir to a directory".into())
        } else if !os::is_trusted_owner(target.uid()) {
            Some(format!(
                "belongs to uid {}, who can replace the socket; use one of this node's user or root",
                target.uid()
            ))
        } else if mode & STICKY != 0 {
            None
        } else if mode & OTHERS_WRITE != 0 {
            Some(
            "is writable by everybody, who can replace the socket; chmod o-w, or +t to keep it so"
                .into(),
        )
        } else if mode & GROUP_WRITES != 0 {
            Some(format!(
                "is writable by gid {}, which can replace the socket; chmod g-w, or +t to share it with \
             this group",
                target.gid()
            ))
        } else {
            None
        },
    )
}
