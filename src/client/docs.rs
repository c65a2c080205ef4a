//! Man pages and completions, made from the arguments themselves.

use super::arguments;
use super::failure::{Failure, Kind};
use clap_complete::{Shell, generate_to};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where programs look for completions below /usr/share, and how the file is called there.
const COMPLETIONS: [(Shell, &str, &str); 3] = [
    (Shell::Bash, "bash-completion/completions", "uds_dist"),
    (Shell::Zsh, "zsh/site-functions", "_uds_dist"),
    (Shell::Fish, "fish/vendor_completions.d", "uds_dist.fish"),
];

/// Writes them below a directory, laid out as /usr/share is.
pub fn write(directory: &Path) -> Result<(), Failure> {
    man_pages(&directory.join("man/man1"))
        .and_then(|()| completions(directory))
        .map_err(|error| {
            let place = directory.display();
            Failure::new(Kind::Output, format!("cannot write below {place}: {error}"))
        })
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
