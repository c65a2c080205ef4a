//! Users and groups by name and by number, from the system's database.

use crate::escape;

/// Parses a user id or a user's name.
pub fn uid(text: &str) -> Result<u32, String> {
    number_of(text, "user", |name| {
        Some(uzers::get_user_by_name(name)?.uid())
    })
}

/// Parses a group id or a group's name.
pub fn gid(text: &str) -> Result<u32, String> {
    number_of(text, "group", |name| {
        Some(uzers::get_group_by_name(name)?.gid())
    })
}

fn number_of(text: &str, kind: &str, find: impl Fn(&str) -> Option<u32>) -> Result<u32, String> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return match text.parse() {
            // The largest id is reserved; see chown(2).
            Ok(u32::MAX) | Err(_) => Err(format!("no {kind} has this number")),
            Ok(number) => Ok(number),
        };
    }
    // A name that contains a NUL cannot be passed to the database.
    let found = (!text.contains('\0')).then(|| find(text)).flatten();
    found.ok_or_else(|| format!("there is no {kind} with this name"))
}

/// The name of a user, if it has one.
pub fn name_of(uid: u32) -> Option<String> {
    let user = uzers::get_user_by_uid(uid)?;
    Some(user.name().to_string_lossy().into())
}

/// The name of a user, or its number if it has no name, for a column of a table.
pub fn short(uid: u32) -> String {
    name_of(uid).map_or_else(|| uid.to_string(), |name| escape::line(&name))
}

/// The name of a group, or its number if it has no name.
pub fn short_group(gid: u32) -> String {
    let group = uzers::get_group_by_gid(gid);
    let name = group.map(|group| group.name().to_string_lossy().into_owned());
    name.map_or_else(|| gid.to_string(), |name| escape::line(&name))
}

/// A user for a sentence: number and name.
pub fn shown(uid: u32) -> String {
    match name_of(uid) {
        Some(name) => format!("uid {uid} ({name})"),
        None => format!("uid {uid}"),
    }
}
