//! The command line, program `uds_dist`: what one asks of a node without booting another one.
//!
//! It is a hidden node with a name that lasts as long as its connection: it listens nowhere, and
//! `nodes()` does not have it. The way of a command goes through these rooms from top to bottom:
//!
//! | module        | what it is                                                                  |
//! |---------------|-----------------------------------------------------------------------------|
//! | [`arguments`] | the words of the command line, and what is to be done                       |
//! | [`location`]  | where a node's socket is                                                    |
//! | [`cookie`]    | where its cookie is                                                         |
//! | [`link`]      | the connection: socket, handshake, messages, ticks, one deadline for all    |
//! | [`handshake`] | the handshake's messages                                                    |
//! | [`call`]      | what the node is asked, and what it answers                                 |
//! | `agent.exprs` | the Erlang that does it in the node                                         |
//! | [`etf`]       | terms on the wire                                                           |
//! | [`json`]      | terms as JSON                                                               |
//! | [`names`]     | the nodes of a directory                                                    |
//! | [`failure`]   | exit codes, and the line that says what is wrong                            |
//!
//! `arguments`, `location`, `handshake`, `etf` and `json` do no I/O. `write_docs.rs` is a program of its
//! own, for `make install`: it makes man pages and completions of `arguments`.

pub mod arguments;
pub mod call;
pub mod cookie;
pub mod etf;
pub mod failure;
pub mod handshake;
pub mod json;
pub mod link;
pub mod location;
pub mod names;

use arguments::{Access, Printed, Program, Request};
use call::{Form, Job, Outcome};
use cookie::Source;
use failure::{Failure, Kind, RAISED};
use link::{Link, Peer};
use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};
use uds_dist::door::probe::{Probe, probe};

/// Between two looks at a node that is not there yet, or still there: no event tells.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Carries out a command line.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let request = match arguments::parse(arguments, |name| env::var_os(name)) {
        Ok(request) => request,
        Err(error) => return explain(&error),
    };
    let is_ping = matches!(request, Request::Ping(_));
    let failure = match carry_out(request) {
        Ok(code) => return code,
        Err(failure) => failure,
    };
    say(&format!("uds_dist: {failure}"));
    match failure.kind {
        Kind::NotThere if is_ping => Kind::Down.into(),
        kind => kind.into(),
    }
}

/// `--help` and `--version` are no errors.
fn explain(error: &clap::Error) -> ExitCode {
    match (error.print(), error.use_stderr()) {
        (Err(_), _) => Kind::Output.into(),
        (Ok(()), true) => Kind::Usage.into(),
        (Ok(()), false) => ExitCode::SUCCESS,
    }
}

fn carry_out(request: Request) -> Result<ExitCode, Failure> {
    match request {
        Request::Ping(access) => {
            let mut link = open(&access)?;
            call::ping(&mut link)?;
            print(&format!("pong from {}\n", link.node))
        }
        Request::Pid(access) => evaluate(&access, r#"[os:getpid(), "\n"]."#, Form::Text),
        Request::Stop(access) => stop(&access),
        Request::Info(access, Printed::Plain) => evaluate(&access, &info(INFO_TEXT), Form::Text),
        Request::Info(access, Printed::Json) => evaluate(&access, &info(INFO_MAP), Form::Term),
        Request::Run(access, program, printed) => {
            let job = job(program)?;
            let form = match printed {
                Printed::Plain => Form::Shell,
                Printed::Json => Form::Term,
            };
            finish(&mut open(&access)?, &job, form)
        }
        Request::Names(directory, Printed::Plain) => {
            print(&names::table(&names::list(&directory)?))
        }
        Request::Names(directory, Printed::Json) => print(&names::json(&names::list(&directory)?)),
    }
}

const INFO: &str = include_str!("info.exprs");
const INFO_TEXT: &str = r#"[
    case is_binary(Value) of
        true -> io_lib:format("~-20s ~ts~n", [Key, Value]);
        false -> io_lib:format("~-20s ~0tp~n", [Key, Value])
    end || {Key, Value} <- Info]."#;
const INFO_MAP: &str = "maps:from_list(Info).";

fn info(shown: &str) -> String {
    format!("{INFO}{shown}")
}

fn evaluate(access: &Access, text: &str, form: Form) -> Result<ExitCode, Failure> {
    finish(&mut open(access)?, &Job::Erlang(text.into()), form)
}

/// The node is gone when nobody listens any more: then its name is free for the next one.
fn stop(access: &Access) -> Result<ExitCode, Failure> {
    let address = access.location.address(&access.node)?;
    let mut link = open(access)?;
    let deadline = Instant::now() + access.timeout;
    let job = Job::Erlang("init:stop().".into());
    call::run(&mut link, &job, Form::Term, |_| Ok(()))
        .map(|_| ())
        .and_then(|()| link.wait_for_end())
        .or_else(|failure| match failure.kind {
            Kind::Lost => Ok(()),
            Kind::TimedOut => Err(still_there(&link.node, "has not ended")),
            _ => Err(failure),
        })?;
    while let Probe::Answers(_) = probe(&address) {
        if Instant::now() >= deadline {
            let problem = format!("has closed its connections and still listens at {address}");
            return Err(still_there(&link.node, &problem));
        }
        thread::sleep(POLL_INTERVAL);
    }
    Ok(ExitCode::SUCCESS)
}

fn still_there(node: &str, problem: &str) -> Failure {
    let explanation = format!("{node} {problem} in time; it may still do so, or --timeout more");
    Failure::new(Kind::TimedOut, explanation)
}

/// Runs a job, and shows what comes of it.
fn finish(link: &mut Link, job: &Job, form: Form) -> Result<ExitCode, Failure> {
    // Where a script reads the result, nothing else may be.
    let mut printed = |bytes: &[u8]| match form {
        Form::Term => write(io::stderr().lock(), bytes),
        Form::Shell | Form::Text => write(io::stdout().lock(), bytes),
    };
    match call::run(link, job, form, &mut printed)? {
        Outcome::Raised(text) => {
            say(text.trim_end());
            Ok(ExitCode::from(RAISED))
        }
        Outcome::Result(received) => {
            let mut term = received.reader();
            let failed = |problem: &dyn std::fmt::Display| {
                Failure::new(
                    Kind::Output,
                    format!("the result of {} cannot be printed: {problem}", link.node),
                )
            };
            if form == Form::Term {
                let text = json::translate(&mut term).map_err(|problem| failed(&problem))?;
                print(&text)?;
            } else {
                let text = term.binary("text").map_err(|problem| failed(&problem))?;
                write(io::stdout().lock(), text)?;
            }
            print(if form == Form::Text { "" } else { "\n" })
        }
    }
}

/// Connects, and keeps trying until the node is there if that is wanted.
fn open(access: &Access) -> Result<Link, Failure> {
    let peer = Peer {
        node: access.node.clone(),
        address: access.location.address(&access.node)?,
        policy: access.policy.clone(),
        cookie: access.cookie.read(|name| env::var_os(name))?,
    };
    if let Source::Argument(_) = access.cookie {
        say("uds_dist: warning: everybody who can list processes sees --cookie; use --cookie-file");
    }
    let patience = Instant::now() + access.wait;
    loop {
        match Link::open(&peer, Instant::now() + access.timeout) {
            Err(failure) if failure.may_pass && Instant::now() < patience => {
                thread::sleep(POLL_INTERVAL);
            }
            result => return result,
        }
    }
}

fn job(program: Program) -> Result<Job, Failure> {
    let (file, language) = match program {
        Program::Given(job) => return Ok(job),
        Program::From(file, language) => (file, language),
    };
    let (read, source) = match &file {
        Some(path) => (fs::read(path), path.display().to_string()),
        None => {
            let mut text = Vec::new();
            let read = io::stdin().read_to_end(&mut text).map(|_| text);
            (read, "standard input".into())
        }
    };
    let failed = |problem: &dyn std::fmt::Display| {
        Failure::new(Kind::Usage, format!("cannot read {source}: {problem}"))
    };
    let text = read.map_err(|error| failed(&error))?;
    let text = String::from_utf8(text).map_err(|error| failed(&error))?;
    Ok(language.job(text))
}

fn print(text: &str) -> Result<ExitCode, Failure> {
    write(io::stdout().lock(), text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn write(mut to: impl Write, bytes: &[u8]) -> Result<(), Failure> {
    to.write_all(bytes)
        .and_then(|()| to.flush())
        .map_err(|error| Failure::new(Kind::Output, format!("cannot print the result: {error}")))
}

/// To people. If nobody reads it, the exit code still tells.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
