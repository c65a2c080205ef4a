//! Who can put something into a directory. A leaf.

use crate::os;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Permission of the group and of others to write.
const OTHERS_WRITE: u32 = 0o022;

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
        && target.mode() & OTHERS_WRITE == 0)
}
