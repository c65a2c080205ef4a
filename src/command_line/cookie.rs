//! Reads the cookie, and refuses one that others could know.

use crate::failure::{Failure, Kind};
use rustix::fs::OFlags;
use std::ffi::OsString;
use std::fmt;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Environment variables with the cookie. The first one that is set and not empty is used. The commands of a
/// release only use RELEASE_COOKIE.
pub const VARIABLES: [&str; 2] = ["RELEASE_COOKIE", "ERLANG_COOKIE"];

/// Longest cookie in bytes. It is an atom in the node, and each of its characters is one byte.
const MAX_LENGTH: usize = 255;

/// A cookie. It is never printed.
#[derive(Clone)]
pub struct Cookie {
    text: String,
    origin: String,
}

impl Cookie {
    /// A cookie from an argument or the environment. All characters count, as with `erl -setcookie`.
    fn given(text: &str, source: &str) -> Result<Cookie, Failure> {
        let ends_in_space = text.ends_with([' ', '\t', '\n', '\r']);
        let remark = match ends_in_space {
            true => " (it ends in white space, which is part of it)",
            false => "",
        };
        if text.is_empty() {
            return Err(unusable(format!("{source} is empty; set it to the cookie")));
        }
        if !text.trim_end().bytes().all(is_printable) {
            return Err(not_printable(source));
        }
        if text.len() > MAX_LENGTH {
            return Err(too_long(source));
        }
        Ok(Cookie {
            text: text.into(),
            origin: format!("{source}{remark}"),
        })
    }

    /// A cookie from a file. As with erl, line ends and spaces after them do not count.
    fn written(bytes: &[u8], file: &str) -> Result<Cookie, Failure> {
        let end = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
        let (line, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
        let is_end = |byte: &u8| matches!(byte, b'\n' | b'\r' | b' ');
        if !line.iter().copied().all(is_printable) || !rest.iter().all(is_end) {
            Err(not_printable(file))
        } else if line.trim_ascii().is_empty() {
            Err(unusable(format!("{file} is empty; write the cookie to it")))
        } else if line.len() > MAX_LENGTH {
            Err(too_long(file))
        } else {
            Ok(Cookie {
                text: String::from_utf8_lossy(line).into(),
                origin: file.into(),
            })
        }
    }

    /// The bytes of the cookie, for the digest.
    pub fn as_bytes(&self) -> &[u8] {
        self.text.as_bytes()
    }

    /// The source of the cookie, for people.
    pub fn origin(&self) -> &str {
        &self.origin
    }
}

fn is_printable(byte: u8) -> bool {
    (b' '..=b'~').contains(&byte)
}

fn not_printable(source: &str) -> Failure {
    unusable(format!(
        "{source} has characters that are not printable ASCII; is it the right one?"
    ))
}

fn too_long(source: &str) -> Failure {
    unusable(format!(
        "{source} has more than {MAX_LENGTH} characters; is it the right one?"
    ))
}

impl fmt::Debug for Cookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cookie")
    }
}

/// Where to read the cookie, according to the arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// From the environment, or else from the home directory.
    Default,
    /// From this file.
    File(PathBuf),
    /// This is the cookie.
    Argument(String),
}

impl Source {
    /// Reads the cookie. `variable` reads the environment.
    ///
    /// # Errors
    /// If there is no cookie, it is not valid, or others could read it.
    pub fn read(&self, variable: impl Fn(&str) -> Option<OsString>) -> Result<Cookie, Failure> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        match self {
            Source::Argument(text) => return Cookie::given(text, "--cookie"),
            // In containers, files with secrets often belong to root and are readable by a group.
            Source::File(path) => return from_file(path, 0o007, "everybody"),
            Source::Default => (),
        }
        if let Some(cookie) = from_environment(VARIABLES.map(|name| (name, variable(name)))) {
            return cookie;
        }
        let home = variable("HOME").map(PathBuf::from);
        let config = variable("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(home.as_ref()?.join(".config")));
        let places = [
            home.map(|home| home.join(".erlang.cookie")),
            config.map(|config| config.join("erlang/.erlang.cookie")),
        ];
        match places.iter().flatten().find(|path| path.exists()) {
            Some(path) => from_file(path, 0o077, "users other than its owner"),
            None => Err(unusable(format!(
                "no cookie: there is no ~/.erlang.cookie, and neither {} nor {} is set; pass the \
                 node's with --cookie-file",
                VARIABLES[0], VARIABLES[1]
            ))),
        }
    }
}

/// Takes the first variable that is set. If the other one differs, the origin says so, because that may be why a
/// node refuses the cookie.
fn from_environment(values: [(&str, Option<OsString>); 2]) -> Option<Result<Cookie, Failure>> {
    let mut set = values
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)));
    let (name, value) = set.next()?;
    // Invalid UTF-8 is not ASCII, and will be refused.
    let mut cookie = Cookie::given(&value.to_string_lossy(), name);
    if let (Ok(cookie), Some((other, another))) = (&mut cookie, set.next()) {
        if another != value {
            cookie.origin += &format!(" ({other} has a different one, which is not used)");
        }
    }
    Some(cookie)
}

/// Reads a file that nobody else can read or write. The bits `others` must not be set in its mode.
fn from_file(path: &Path, others: u32, whom: &str) -> Result<Cookie, Failure> {
    let shown = path.display();
    let failed = |error: std::io::Error| {
        let advice = match error.kind() {
            ErrorKind::PermissionDenied => "; run this as the node's user",
            _ => "",
        };
        unusable(format!(
            "cannot read the cookie in {shown}: {error}{advice}"
        ))
    };
    // The file that is checked has to be the one that is read. Opening a FIFO must not wait for a writer.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(path)
        .map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(unusable(format!("the cookie file {shown} is not a file")));
    }
    if metadata.mode() & others != 0 {
        return Err(unusable(format!(
            "the cookie in {shown} can be read or changed by {whom} (mode {:03o}); chmod 400 the file, \
             and change the cookie if somebody may have read it",
            metadata.mode() & 0o777
        )));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    Cookie::written(&bytes, &format!("{shown}"))
}

/// Most bytes of a file that are read. This is more than the longest cookie, for line ends.
const MAX_FILE: u64 = 1024;

fn unusable(explanation: String) -> Failure {
    Failure::new(Kind::Usage, explanation)
}
