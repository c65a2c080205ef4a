//! Writes the man pages and shell completions below a directory, laid out as /usr/share is:
//! `make install` runs this. They are made from the definition of the arguments itself, so that
//! they cannot say anything else.

#![allow(dead_code)] // a test includes this file, and calls no `main`

use clap_complete::{Shell, generate_to};
use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use uds_dist_command_line::arguments;

/// Where programs look for completions below /usr/share, and how the file is called there.
const COMPLETIONS: [(Shell, &str, &str); 3] = [
    (Shell::Bash, "bash-completion/completions", "uds_dist"),
    (Shell::Zsh, "zsh/site-functions", "_uds_dist"),
    (Shell::Fish, "fish/vendor_completions.d", "uds_dist.fish"),
];

fn main() -> ExitCode {
    let mut arguments = env::args_os().skip(1).map(PathBuf::from);
    let (Some(directory), None) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: write_docs DIRECTORY");
        return ExitCode::from(64);
    };
    match write(&directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot write below {}: {error}", directory.display());
            ExitCode::from(74)
        }
    }
}

/// Writes all of them.
pub fn write(directory: &Path) -> io::Result<()> {
    man_pages(&directory.join("man/man1"))?;
    completions(directory)
}

fn man_pages(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    clap_mangen::generate_to(arguments::command(), directory)
}

fn completions(directory: &Path) -> io::Result<()> {
    for (shell, place, name) in COMPLETIONS {
        let place: PathBuf = directory.join(place);
        fs::create_dir_all(&place)?;
        let made = generate_to(shell, &mut arguments::command(), "uds_dist", &place)?;
        fs::rename(made, place.join(name))?;
    }
    Ok(())
}
