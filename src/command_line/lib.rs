//! The command line, program `uds_dist`: asks nodes without booting another one.
//!
//! To the node, a command is a hidden node, whose name exists as long as its connection. It does not listen,
//! and `nodes()` does not list it. A command passes through these modules from top to bottom:
//!
//! | module        | what it is                                                                  |
//! |---------------|-----------------------------------------------------------------------------|
//! | [`arguments`] | the definition of the command line, and its parser                          |
//! | [`location`]  | where the socket of a node is                                               |
//! | [`cookie`]    | where its cookie is                                                         |
//! | [`link`]      | the connection: socket, handshake, messages, ticks, one deadline            |
//! | [`handshake`] | the messages of the handshake                                               |
//! | [`call`]      | requests to the node and its answers                                        |
//! | `agent.exprs` | the Erlang code that carries out a request in the node                      |
//! | [`etf`]       | the external term format                                                    |
//! | [`json`]      | translation of terms to JSON                                                |
//! | [`value`]     | answers to our own questions (`*.exprs`), in memory                         |
//! | [`status`]    | the report of `status`                                                      |
//! | [`peers`]     | the report of `peers`                                                       |
//! | [`names`]     | the nodes of a directory                                                    |
//! | [`process`]   | what the kernel knows about their processes                                 |
//! | [`users`]     | users and groups by name                                                    |
//! | [`layout`]    | tables and sections, for people and for programs                            |
//! | [`units`]     | times and sizes for people                                                  |
//! | [`escape`]    | text from others, escaped                                                   |
//! | [`failure`]   | exit codes, and the line that says what is wrong                            |
//!
//! `location`, `handshake`, `etf`, `json`, `value`, `layout`, `units` and `escape` do no I/O.
//! `write_docs.rs` is a separate program, which `make install` runs: it generates man pages and completions from
//! `arguments`.

pub mod arguments;
pub mod call;
pub mod cookie;
pub mod escape;
pub mod etf;
pub mod failure;
pub mod handshake;
pub mod json;
pub mod layout;
pub mod link;
pub mod location;
pub mod names;
pub mod peers;
pub mod process;
pub mod status;
pub mod units;
pub mod users;
pub mod value;

use arguments::{Access, Invocation, Printed, Program, Request, Talk};
use call::{Form, Job, Outcome, Readiness, Text};
use cookie::Source;
use failure::{Failure, Kind, RAISED};
use json::{Limits, Untranslatable};
use layout::Reader;
use link::{Link, Peer};
use location::Directory;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};
use uds_dist::door::probe::{Probe, probe};
use value::Value;

/// Time between two attempts while waiting for a node to appear or to end. There is no event to wait for.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The same for a node that is not ready, which has some work with each question.
const READY_INTERVAL: Duration = Duration::from_millis(100);

/// Longest JSON result in bytes. It is more than anybody reads, and far less than the memory of a machine.
const MAX_JSON: usize = 128 << 20;

/// Carries out a command line.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let begin = Instant::now();
    let Invocation { request, talk } = match arguments::parse(arguments, |name| env::var_os(name)) {
        Ok(invocation) => invocation,
        Err(error) => return explain(&error),
    };
    let is_ping = matches!(request, Request::Ping(..));
    let done = carry_out(request, talk);
    tell(talk, || format!("done after {:.1?}", begin.elapsed()));
    let failure = match done {
        Ok(code) => return code,
        Err(failure) => failure,
    };
    if failure.kind != Kind::NoReader {
        say(&format!("uds_dist: {failure}"));
    }
    match failure.kind {
        Kind::NotThere if is_ping => Kind::Down.into(),
        kind => kind.into(),
    }
}

/// Prints what clap has to say. `--help` and `--version` are not errors.
fn explain(error: &clap::Error) -> ExitCode {
    match (error.print(), error.use_stderr()) {
        (Err(failed), _) => unwritten(&failed).kind.into(),
        (Ok(()), true) => Kind::Usage.into(),
        (Ok(()), false) => ExitCode::SUCCESS,
    }
}

fn carry_out(request: Request, talk: Talk) -> Result<ExitCode, Failure> {
    match request {
        Request::Ping(access, readiness, process) => {
            let node = ping(&access, &readiness, process, talk)?;
            match talk {
                Talk::Quiet => Ok(ExitCode::SUCCESS),
                _ => print(&format!("pong from {}\n", escape::line(&node))),
            }
        }
        Request::Pid(access) => evaluate(&access, talk, r#"[os:getpid(), "\n"]."#, Form::Text),
        Request::Stop(access) => stop(&access, talk),
        Request::Status(access, printed) => {
            let status = ask(&access, talk, STATUS)?;
            print(&match printed {
                Printed::Json => status.json() + "\n",
                Printed::Plain => status::text(&status, reader()),
            })
        }
        Request::Peers(access, printed) => {
            let peers = ask(&access, talk, PEERS)?;
            print(&match (printed, talk) {
                (Printed::Json, _) => peers.json() + "\n",
                (Printed::Plain, Talk::Quiet) => peers::bare(&peers),
                (Printed::Plain, _) => peers::table(&peers, reader()),
            })
        }
        Request::Run(access, program, printed) => {
            let job = job(program)?;
            let form = match printed {
                Printed::Plain => Form::Shell,
                Printed::Json => Form::Term,
            };
            finish(&mut open(&access, talk)?, &job, form)
        }
        Request::Names(directory, printed) => {
            let entries = names::list(&directory)?;
            if entries.is_empty() && printed == Printed::Plain {
                nobody_in(&directory, talk);
                return Ok(ExitCode::SUCCESS);
            }
            print(&match (printed, talk) {
                (Printed::Json, _) => names::json(&entries),
                (Printed::Plain, Talk::Quiet) => names::bare(&entries),
                (Printed::Plain, _) => names::table(&entries, reader()),
            })
        }
    }
}

/// Standard output stays empty, for scripts. People may have looked in the wrong place.
fn nobody_in(directory: &Directory, talk: Talk) {
    if talk != Talk::Quiet {
        say(&format!(
            "uds_dist: no node has a socket in {directory}; name its socket_dir with --dir or UDS_DIST_DIR"
        ));
    }
}

/// The reader of standard output. NO_COLOR is the variable of no-color.org.
fn reader() -> Reader {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty());
    match io::stdout().is_terminal() {
        true => Reader::Person {
            color: set("NO_COLOR").is_none() && set("TERM").is_some_and(|term| term != "dumb"),
        },
        false => Reader::Program,
    }
}

/// Expressions for the node, whose values are read by [`Value::read`].
const STATUS: &str = concat!(include_str!("carrier.exprs"), include_str!("status.exprs"));
const PEERS: &str = concat!(include_str!("carrier.exprs"), include_str!("peers.exprs"));

/// Asks the node one of our own questions. Our own connection is left out of the answer. If the answer is a
/// text, it is the reason why the node cannot answer.
fn ask(access: &Access, talk: Talk, question: &str) -> Result<Value, Failure> {
    let mut link = open(access, talk)?;
    let job = Job::Erlang(question.into());
    let outcome = call::run(&mut link, &job, Form::Term, |_| Ok(()))?;
    let failed = |kind, problem: &str| Err(Failure::new(kind, format!("{} {problem}", link.node)));
    let answer = match outcome {
        Outcome::Result(received) => Value::read(&mut received.reader()),
        Outcome::Raised(text) => {
            let text = String::from_utf8_lossy(&text);
            // An Erlang term may have several lines.
            let lines: Vec<_> = text.lines().map(str::trim).collect();
            let problem = format!("could not answer: {}", lines.join(" "));
            return failed(Kind::Unanswered, &problem);
        }
    };
    match answer {
        Ok(Value::Text(why)) => failed(Kind::Unanswered, &format!("cannot answer, since {why}")),
        Ok(answer @ (Value::List(_) | Value::Object(_))) => {
            Ok(peers::completed(answer, &link.identity.node))
        }
        Ok(_) => failed(Kind::Lost, "sent something other than an answer"),
        Err(malformed) => failed(Kind::Lost, &format!("sent an invalid answer: {malformed}")),
    }
}

fn evaluate(access: &Access, talk: Talk, text: &str, form: Form) -> Result<ExitCode, Failure> {
    finish(&mut open(access, talk)?, &Job::Erlang(text.into()), form)
}

/// Stops the node, and waits until nobody listens at its socket. Then its name is free for the next node.
fn stop(access: &Access, talk: Talk) -> Result<ExitCode, Failure> {
    let address = access.location.address(&access.node)?;
    let mut link = open(access, talk)?;
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
            let problem =
                format!("has closed its connections, but has not stopped listening at {address}");
            return Err(still_there(&link.node, &problem));
        }
        thread::sleep(POLL_INTERVAL);
    }
    Ok(ExitCode::SUCCESS)
}

fn still_there(node: &str, problem: &str) -> Failure {
    let explanation =
        format!("{node} {problem} in time; it may still do so; --timeout allows more");
    Failure::new(Kind::TimedOut, explanation)
}

/// Runs a job and prints its output and its result.
fn finish(link: &mut Link, job: &Job, form: Form) -> Result<ExitCode, Failure> {
    // If a script reads standard output, it contains only the result. Otherwise it also contains the output of
    // the user's code, unchanged, because that code may want to control the terminal.
    let show = |text: Text<'_>| match (text, form) {
        (Text::Diagnostic(bytes), _) | (Text::Output(bytes), Form::Term) => {
            // An error here does not matter, because the result is what was asked for.
            let _ = write_escaped(io::stderr().lock(), bytes);
            Ok(())
        }
        (Text::Output(bytes), Form::Text) => write_escaped(io::stdout().lock(), bytes),
        (Text::Output(bytes), Form::Shell) => write(io::stdout().lock(), bytes),
    };
    match call::run(link, job, form, show)? {
        Outcome::Raised(text) => {
            // If nobody reads it, there is still the exit code.
            let _ = write_escaped(io::stderr().lock(), &[&text[..], b"\n"].concat());
            Ok(ExitCode::from(RAISED))
        }
        Outcome::Result(received) => {
            let mut term = received.reader();
            if form == Form::Term {
                let limits = Limits {
                    bytes: MAX_JSON,
                    deadline: link.deadline(),
                };
                let text = json::translate(&mut term, &limits)
                    .map_err(|problem| unprintable(link, &problem))?;
                print(&text)?;
            } else {
                let text = term
                    .binary("text")
                    .map_err(|problem| unprintable(link, &problem.into()))?;
                match form == Form::Text || io::stdout().is_terminal() {
                    true => write_escaped(io::stdout().lock(), text)?,
                    false => write(io::stdout().lock(), text)?,
                }
            }
            print(if form == Form::Text { "" } else { "\n" })
        }
    }
}

fn unprintable(link: &Link, problem: &Untranslatable) -> Failure {
    let (kind, advice) = match problem {
        Untranslatable::TimedOut => (Kind::TimedOut, "; allow more with --timeout"),
        Untranslatable::TooLong(_) => (Kind::Output, "; have it write large results to a file"),
        Untranslatable::Malformed(_) | Untranslatable::TooDeep => (Kind::Output, ""),
    };
    let node = &link.node;
    let explanation = format!("the result of {node} cannot be printed: {problem}{advice}");
    Failure::new(kind, explanation)
}

/// Asks until the node answers and is ready, at most for the time of `--wait`. Returns the node's name.
fn ping(
    access: &Access,
    readiness: &Readiness,
    process: Option<u32>,
    talk: Talk,
) -> Result<String, Failure> {
    let peer = peer(access, talk)?;
    patiently(access, talk, || {
        // Checked first: if the process ended before this attempt, a node that is not there now will not come.
        let ended = process.filter(|pid| !process::is_there(*pid));
        connect(&peer, access, talk)
            .and_then(|mut link| {
                call::ping(&mut link)?;
                call::check(&mut link, readiness)?;
                Ok(link.node)
            })
            .map_err(|failure| match ended {
                Some(pid) => {
                    let explanation = format!("{failure}; process {pid} has ended");
                    Failure {
                        may_pass: false,
                        ..Failure::new(failure.kind, explanation)
                    }
                }
                None => Failure {
                    // A node that goes down may be about to start again.
                    may_pass: failure.may_pass || failure.kind == Kind::Lost,
                    ..failure
                },
            })
    })
}

/// Connects, and keeps trying for the time of `--wait`.
fn open(access: &Access, talk: Talk) -> Result<Link, Failure> {
    let peer = peer(access, talk)?;
    patiently(access, talk, || connect(&peer, access, talk))
}

/// Tries until it succeeds, it fails for good, or the time of `--wait` is over.
fn patiently<T>(
    access: &Access,
    talk: Talk,
    mut attempt: impl FnMut() -> Result<T, Failure>,
) -> Result<T, Failure> {
    let patience = Instant::now() + access.wait;
    let mut last = String::new();
    loop {
        match attempt() {
            Err(failure) if failure.may_pass && Instant::now() < patience => {
                if failure.explanation != last {
                    tell(talk, || format!("waiting: {failure}"));
                }
                thread::sleep(match failure.kind {
                    Kind::NotReady => READY_INTERVAL,
                    _ => POLL_INTERVAL,
                });
                last = failure.explanation;
            }
            result => return result,
        }
    }
}

fn peer(access: &Access, talk: Talk) -> Result<Peer, Failure> {
    let peer = Peer {
        node: access.node.clone(),
        address: access.location.address(&access.node)?,
        policy: access.policy.clone(),
        cookie: access.cookie.read(|name| env::var_os(name))?,
    };
    if let (Source::Argument(_), true) = (&access.cookie, talk != Talk::Quiet) {
        say(
            "uds_dist: warning: everybody who can list processes can see --cookie; use --cookie-file",
        );
    }
    tell(talk, || {
        let origin = peer.cookie.origin();
        format!(
            "connecting to {}, with the cookie from {origin}",
            peer.address
        )
    });
    Ok(peer)
}

fn connect(peer: &Peer, access: &Access, talk: Talk) -> Result<Link, Failure> {
    let link = Link::open(peer, Instant::now() + access.timeout)?;
    tell(talk, || {
        let (us, node, listener) = (&link.identity.node, &link.node, &link.listener);
        let (user, process) = (users::shown(listener.uid), listener.pid);
        format!("connected to {node} as {us}; process {process} of {user} listens there")
    });
    Ok(link)
}

fn tell(talk: Talk, step: impl FnOnce() -> String) {
    if talk == Talk::Verbose {
        say(&format!("uds_dist: {}", step()));
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
        .map_err(|error| unwritten(&error))
}

fn unwritten(error: &io::Error) -> Failure {
    let kind = match error.kind() {
        ErrorKind::BrokenPipe => Kind::NoReader,
        _ => Kind::Output,
    };
    Failure::new(kind, format!("cannot print the result: {error}"))
}

/// Writes text from a node, without control characters other than newlines and tabs.
fn write_escaped(mut to: impl Write, bytes: &[u8]) -> Result<(), Failure> {
    escape::lines(bytes).try_for_each(|piece| write(&mut to, piece.as_bytes()))
}

/// Prints one line for people. If nobody reads it, there is still the exit code.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{}", escape::line(line));
}
