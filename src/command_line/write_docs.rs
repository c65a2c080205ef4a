//! Writes the man pages and shell completions below a directory that is laid out like /usr/share. `make install`
//! runs this program. Both are generated from the definition of the arguments, so they cannot differ from it.
//! Only the names of nodes are looked up when a shell completes a word.

#![allow(dead_code)] // a test includes this file and does not call `main`

mod man_pages;

use clap_complete::{Shell, generate};
use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use uds_dist_command_line::arguments;

/// For each shell: the directory below /usr/share for completions, the name of the file in it, and the code
/// that completes names of nodes.
const COMPLETIONS: [(Shell, &str, &str, &str); 3] = [
    (
        Shell::Bash,
        "bash-completion/completions",
        "uds_dist",
        include_str!("completions/nodes.bash"),
    ),
    (
        Shell::Zsh,
        "zsh/site-functions",
        "_uds_dist",
        include_str!("completions/nodes.zsh"),
    ),
    (
        Shell::Fish,
        "fish/vendor_completions.d",
        "uds_dist.fish",
        include_str!("completions/nodes.fish"),
    ),
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

/// Writes all man pages and completions.
pub fn write(directory: &Path) -> io::Result<()> {
    let date = env::var("SOURCE_DATE_EPOCH").ok();
    man_pages::write(
        &directory.join("man/man1"),
        man_pages::date(date.as_deref()),
    )?;
    completions(directory)
}

fn completions(directory: &Path) -> io::Result<()> {
    for (shell, place, name, nodes) in COMPLETIONS {
        let place: PathBuf = directory.join(place);
        fs::create_dir_all(&place)?;
        let mut made = Vec::new();
        generate(shell, &mut arguments::command(), "uds_dist", &mut made);
        let made = String::from_utf8(made).map_err(io::Error::other)?;
        fs::write(place.join(name), with_nodes(shell, &made, nodes))?;
    }
    Ok(())
}

fn with_nodes(shell: Shell, made: &str, nodes: &str) -> String {
    let (options, commands) = words();
    let separator = if shell == Shell::Bash { " | " } else { " " };
    let nodes = nodes
        .replace("@OPTIONS@", &options.join(separator))
        .replace("@COMMANDS@", &commands.join(" "));
    match shell {
        // zsh calls the last function.
        Shell::Zsh => {
            let head = "#compdef uds_dist\n\n";
            let made = made.strip_prefix(head).expect("it begins so");
            let node = "Name of the node, with or without a host:";
            let (before, after) = (format!("{node}'"), format!("{node}_uds_dist_nodes'"));
            assert!(made.contains(&before), "a node is an argument");
            [head, &nodes, &made.replace(&before, &after)].concat()
        }
        _ => [made, &nodes].concat(),
    }
}

/// The options that take values, and the commands that take a node.
fn words() -> (Vec<String>, Vec<String>) {
    let command = arguments::command();
    let with_node: Vec<_> = command
        .get_subcommands()
        .filter(|command| command.get_arguments().any(|arg| arg.get_id() == "NODE"))
        .collect();
    let mut options: Vec<_> = with_node
        .iter()
        .flat_map(|command| command.get_opts())
        .filter(|option| option.get_action().takes_values())
        .filter_map(|option| Some(format!("--{}", option.get_long()?)))
        .collect();
    options.sort();
    options.dedup();
    let names = with_node
        .iter()
        .map(|command| command.get_name().to_owned());
    (options, names.collect())
}
