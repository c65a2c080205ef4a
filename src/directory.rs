//! Checks who can create, remove or replace files in a directory.

use crate::os;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const GROUP_WRITES: u32 = 0o020;
const OTHERS_WRITE: u32 = 0o002;
/// Only the owner of a file may remove or rename it: the restricted deletion flag of chmod(1).
const STICKY: u32 = 0o1000;

/// True if only our own user and root can create files in `directory`: our user owns it, and neither the
/// group nor others can write to it.
///
/// # Errors
/// If the metadata of `directory` cannot be read.
pub fn is_private(directory: &Path) -> io::Result<bool> {
    let entry = fs::symlink_metadata(directory)?;
    let target = fs::metadata(directory)?;
    Ok(os::is_trusted_owner(entry.uid())
        && target.is_dir()
        && target.uid() == os::own_uid()
        && target.mode() & (GROUP_WRITES | OTHERS_WRITE) == 0)
}

/// Explains how another user could remove or replace a file of ours in `directory`, and how to prevent it;
/// `None` if no other user could. For a symbolic link, both the owner of the link and the directory that
/// it points to are checked.
///
/// No group is trusted here, not even one that is admitted as a peer: its members may talk to the node,
/// but must not be able to impersonate it.
///
/// # Errors
/// If the metadata of `directory` cannot be read.
pub fn distrust(directory: &Path) -> io::Result<Option<String>> {
    let entry = fs::symlink_metadata(directory)?;
    let target = match fs::metadata(directory) {
        Err(error) if entry.is_symlink() && error.kind() == io::ErrorKind::NotFound => {
            return Ok(Some(
                "is a symbolic link to a directory that does not exist; create that, or set \
                 socket_dir to another"
                    .into(),
            ));
        }
        found => found?,
    };
    let mode = target.mode();
    Ok(
        if entry.is_symlink() && !os::is_trusted_owner(entry.uid()) {
            Some(format!(
                "is a symbolic link owned by uid {}, which could redirect it; name the directory itself",
                entry.uid()
            ))
        } else if !target.is_dir() {
            Some("is not a directory; set socket_dir to one".into())
        } else if !os::is_trusted_owner(target.uid()) {
            Some(format!(
                "belongs to uid {}, which could replace the socket; run this as that user, or use \
                 a directory of this user's own",
                target.uid()
            ))
        } else if mode & STICKY != 0 {
            None
        } else if mode & OTHERS_WRITE != 0 {
            Some(
                "is writable by everybody, so any user could replace the socket; chmod o-w, or +t to keep \
                 it shared"
                    .into(),
        )
        } else if mode & GROUP_WRITES != 0 {
            Some(format!(
                "is writable by gid {}, so its members could replace the socket; chmod g-w, or +t to keep \
                 it shared with the group",
                target.gid()
            ))
        } else {
            None
        },
    )
}
