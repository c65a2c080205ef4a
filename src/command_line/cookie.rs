//! Where the cookie comes from, and who else may know it.

use crate::failure::{Failure, Kind};
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The first of these that is set and not empty has the cookie.
pub const VARIABLES: [&str; 2] = ["ERLANG_COOKIE", "RELEASE_COOKIE"];

/// Bytes of the longest cookie: it is an atom in the node, and every character is one byte here.
const MAX_LENGTH: u64 = 255;

/// What nodes show each other that they know. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Cookie(String);

impl Cookie {
    /// Checks it as erl does: printable ASCII, and line ends after it do not count.
    fn new(text: &str, source: &str) -> Result<Cookie, Failure> {
        let cookie = text.trim_end_matches(['\n', '\r', ' ']);
        if cookie.is_empty() {
            Err(unusable(format!(
                "{source} is empty; write the cookie into it"
            )))
        } else if cookie.bytes().any(|byte| !(b' '..=b'~').contains(&byte)) {
            Err(unusable(format!(
                "{source} has characters that are not printable ASCII; is it the right one?"
            )))
        } else if cookie.len() as u64 > MAX_LENGTH {
            Err(unusable(format!(
                "{source} has more than {MAX_LENGTH} characters; is it the right one?"
            )))
        } else {
            Ok(Cookie(cookie.into()))
        }
    }

    /// For the digest.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Cookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cookie")
    }
}

/// What the arguments say about the cookie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Nothing: environment, then home directory.
    Default,
    /// It is in this file.
    File(PathBuf),
    /// It is this one.
    Argument(String),
}

impl Source {
    /// Finds the cookie; `variable` looks into the environment.
    pub fn read(&self, variable: impl Fn(&str) -> Option<OsString>) -> Result<Cookie, Failure> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        match self {
            Source::Argument(text) => return Cookie::new(text, "--cookie"),
            // Secrets of containers are often readable by a group, so that a user without
            // privileges can read what root owns.
            Source::File(path) => return from_file(path, 0o007, "everybody"),
            Source::Default => (),
        }
        for name in VARIABLES {
            if let Some(value) = variable(name) {
                // Bytes that are no text are not ASCII either.
                return Cookie::new(&value.to_string_lossy(), name);
            }
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
            Some(path) => from_file(path, 0o077, "others than its owner"),
            None => Err(unusable(format!(
                "no cookie: there is no ~/.erlang.cookie, and neither {} nor {} is set; give the \
                 node's with --cookie-file",
                VARIABLES[0], VARIABLES[1]
            ))),
        }
    }
}

/// Reads a file that nobody else can read or write: `others` are the bits of its mode that must not
/// be set.
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
    let metadata = fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() {
        return Err(unusable(format!("the cookie file {shown} is not a file")));
    }
    if metadata.mode() & others != 0 {
        return Err(unusable(format!(
            "the cookie in {shown} is open to {whom} (mode {:03o}); chmod 400 it, and change the \
             cookie if somebody may have read it",
            metadata.mode() & 0o777
        )));
    }
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_LENGTH + 2).read_to_end(&mut text))
        .map_err(failed)?;
    Cookie::new(&String::from_utf8_lossy(&text), &format!("{shown}"))
}

fn unusable(explanation: String) -> Failure {
    Failure::new(Kind::Usage, explanation)
}
