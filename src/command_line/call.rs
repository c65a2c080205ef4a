//! Requests to a connected node, and its answers.
//!
//! The node interprets [`AGENT`], a piece of Erlang, which carries out the request. It is sent in a spawn request
//! for `erl_eval:exprs/2`, so the node needs neither a module of ours nor a server that answers calls.

use crate::etf::{Item, Malformed, Reader, Writer};
use crate::failure::{Failure, Kind};
use crate::link::Link;

/// Erlang expressions that the node interprets.
const AGENT: &str = include_str!("agent.exprs");

/// The control messages of erl_dist_protocol that we use.
mod control {
    pub const SEND: i32 = 2;
    pub const REG_SEND: i32 = 6;
    pub const MONITOR_P_EXIT: i32 = 21;
    pub const SPAWN_REQUEST: i32 = 29;
    pub const SPAWN_REPLY: i32 = 31;
}

/// First byte of every message, because we use no distribution header.
const PASS_THROUGH: u8 = 112;

/// A program for a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Job {
    /// Calls a function.
    Call {
        /// The module.
        module: String,
        /// The name of the function.
        function: String,
        /// The list of arguments, as Erlang text.
        arguments: String,
    },
    /// Evaluates Erlang expressions.
    Erlang(String),
    /// Evaluates Elixir expressions.
    Elixir(String),
}

/// What makes a node ready, besides answering.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// Its boot has to be complete.
    pub started: bool,
    /// These applications have to be running.
    pub applications: Vec<String>,
}

/// The form of the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Text, as the shell of the language prints it.
    Shell,
    /// The result is a text itself.
    Text,
    /// The term.
    Term,
}

/// The end of a job.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It returned this result.
    Result(Received),
    /// It raised this exception, as text, which is truncated if it is very long.
    Raised(Vec<u8>),
}

/// A term within a received message.
#[derive(Debug, PartialEq, Eq)]
pub struct Received {
    message: Vec<u8>,
    start: usize,
}

impl Received {
    /// A reader for the term.
    pub fn reader(&self) -> Reader<'_> {
        Reader::within(&self.message[self.start..])
    }
}

/// Asks the node's net_kernel whether we are connected, as `net_adm:ping/1` does.
pub fn ping(link: &mut Link) -> Result<(), Failure> {
    let us = &link.identity;
    let mut message = vec![PASS_THROUGH];
    Writer::new(&mut message)
        .tuple(4)
        .integer(control::REG_SEND)
        .pid(us)
        .atom("")
        .atom("net_kernel");
    Writer::new(&mut message)
        .tuple(3)
        .atom("$gen_call")
        .tuple(2)
        .pid(us)
        .reference(us)
        .tuple(2)
        .atom("is_auth")
        .atom(&us.node);
    link.send(&message)?;
    loop {
        let message = link.receive()?;
        let event = decode(&message).map_err(|malformed| invalid_message(link, malformed))?;
        if let Some(Event::Message(answer)) = event {
            return is_yes(answer).map_err(|malformed| invalid_message(link, malformed));
        }
    }
}

/// Checks the answer `{Reference, yes}`.
fn is_yes(mut answer: Reader<'_>) -> Result<(), Malformed> {
    answer.tuple("answer")?;
    answer.skip()?;
    match answer.atom("answer")?.as_ref() {
        "yes" => Ok(()),
        _ => Err(Malformed::Invalid("answer")),
    }
}

/// Asks whether the node is ready.
pub fn check(link: &mut Link, readiness: &Readiness) -> Result<(), Failure> {
    let mut lacking = Vec::new();
    if readiness.started {
        lacking.push(
            "case init:get_status() of {started, _} -> []; \
             {Status, _} -> [[\"it is \", atom_to_list(Status)]] end"
                .to_owned(),
        );
    }
    lacking.extend(readiness.applications.iter().map(|name| {
        let name = name.replace('\\', r"\\").replace('"', "\\\"");
        format!(
            "case [found || {{Name, _, _}} <- application:which_applications(), \
             atom_to_binary(Name, utf8) =:= <<\"{name}\"/utf8>>] of [] -> \
             [<<\"the application {name} is not running\"/utf8>>]; _ -> [] end"
        )
    }));
    if lacking.is_empty() {
        return Ok(());
    }
    let job = Job::Erlang(format!("lists:join(\", \", {}).", lacking.join(" ++ ")));
    let problem = match run(link, &job, Form::Text, |_| Ok(()))? {
        Outcome::Result(received) => {
            let text = received.reader().binary("text").map(<[u8]>::to_vec);
            text.map_err(|malformed| invalid_message(link, malformed))?
        }
        Outcome::Raised(text) => [b"cannot say whether it is ready: ", &text[..]].concat(),
    };
    if problem.is_empty() {
        return Ok(());
    }
    let problem = String::from_utf8_lossy(&problem);
    let explanation = format!("{} answers, but {problem}", link.node);
    Err(Failure::new(Kind::NotReady, explanation))
}

/// Text that arrives while a job is running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Text<'a> {
    /// Printed by the job.
    Output(&'a [u8]),
    /// A warning or an error of Elixir's compiler.
    Diagnostic(&'a [u8]),
}

/// Runs a job. Passes text on to `show` as it arrives.
pub fn run(
    link: &mut Link,
    job: &Job,
    form: Form,
    mut show: impl FnMut(Text<'_>) -> Result<(), Failure>,
) -> Result<Outcome, Failure> {
    link.send(&request(link, job, form))?;
    loop {
        let message = link.receive()?;
        match decode(&message).map_err(|malformed| invalid_message(link, malformed))? {
            None | Some(Event::Spawned) => (),
            Some(Event::NotSpawned(reason)) => {
                return Err(lost(link, &format!("could not start the call: {reason}")));
            }
            Some(Event::Ended) => {
                return Err(lost(link, "ended the call without a result; see its log"));
            }
            Some(Event::Message(term)) => {
                let answer =
                    outcome(&term).map_err(|malformed| invalid_message(link, malformed))?;
                match answer {
                    Answer::Text(text) => show(text)?,
                    Answer::Raised(text) => return Ok(Outcome::Raised(shortened(text))),
                    Answer::Result(rest) => {
                        let start = message.len() - rest;
                        return Ok(Outcome::Result(Received { message, start }));
                    }
                }
            }
        }
    }
}

// --- to the node ---------------------------------------------------------------------------------

fn request(link: &Link, job: &Job, form: Form) -> Vec<u8> {
    let us = &link.identity;
    let mut message = vec![PASS_THROUGH];
    Writer::new(&mut message)
        .tuple(6)
        .integer(control::SPAWN_REQUEST)
        .reference(us)
        .pid(us)
        .pid(us)
        .tuple(3)
        .atom("erl_eval")
        .atom("exprs")
        .integer(2)
        .list(1)
        .atom("monitor")
        .nil();
    let mut arguments = Writer::new(&mut message);
    arguments.list(2);
    bootstrap(&mut arguments);
    bindings(&mut arguments, link, job, form);
    arguments.nil();
    message
}

/// Writes expressions in abstract format that parse the agent and interpret it:
///
/// ```erlang
/// {ok, Tokens, _} = erl_scan:string(Agent),
/// {ok, Exprs} = erl_parse:parse_exprs(Tokens),
/// erl_eval:exprs(Exprs, Bindings)
/// ```
fn bootstrap(out: &mut Writer<'_>) {
    out.list(3);
    matched(out, |out| {
        out.list(3);
        atom(out, "ok");
        variable(out, "Tokens");
        variable(out, "_");
    });
    call(out, "erl_scan", "string", &["Agent"]);
    matched(out, |out| {
        out.list(2);
        atom(out, "ok");
        variable(out, "Exprs");
    });
    call(out, "erl_parse", "parse_exprs", &["Tokens"]);
    call(out, "erl_eval", "exprs", &["Exprs", "Bindings"]);
    out.nil();
}

const ANNOTATION: i32 = 0;

/// Writes a match of a tuple with these elements; its right side is the expression that is written next.
fn matched(out: &mut Writer<'_>, elements: impl FnOnce(&mut Writer<'_>)) {
    out.tuple(4).atom("match").integer(ANNOTATION);
    out.tuple(3).atom("tuple").integer(ANNOTATION);
    elements(out);
    out.nil();
}

fn call(out: &mut Writer<'_>, module: &str, function: &str, arguments: &[&str]) {
    out.tuple(4).atom("call").integer(ANNOTATION);
    out.tuple(4).atom("remote").integer(ANNOTATION);
    atom(out, module);
    atom(out, function);
    out.list(arguments.len());
    for name in arguments {
        variable(out, name);
    }
    out.nil();
}

fn atom(out: &mut Writer<'_>, name: &str) {
    out.tuple(3).atom("atom").integer(ANNOTATION).atom(name);
}

fn variable(out: &mut Writer<'_>, name: &str) {
    out.tuple(3).atom("var").integer(ANNOTATION).atom(name);
}

/// Writes the bindings of the expressions. They are orddicts, so they have to be sorted by name.
fn bindings(out: &mut Writer<'_>, link: &Link, job: &Job, form: Form) {
    out.list(2);
    out.tuple(2).atom("Agent").charlist(AGENT);
    out.tuple(2).atom("Bindings").list(3);
    out.tuple(2).atom("Client").pid(&link.identity);
    out.tuple(2).atom("Form").atom(match form {
        Form::Shell => "shell",
        Form::Text => "text",
        Form::Term => "term",
    });
    out.tuple(2).atom("Job");
    match job {
        Job::Call {
            module,
            function,
            arguments,
        } => {
            out.tuple(4).atom("call");
            for text in [module, function, arguments] {
                out.binary(text.as_bytes());
            }
        }
        Job::Erlang(text) => {
            out.tuple(2).atom("erlang").binary(text.as_bytes());
        }
        Job::Elixir(text) => {
            out.tuple(2).atom("elixir").binary(text.as_bytes());
        }
    }
    out.nil().nil();
}

// --- from the node -------------------------------------------------------------------------------

/// A message from the node that concerns our request.
enum Event<'a> {
    /// The process was spawned.
    Spawned,
    /// The process was not spawned, for this reason.
    NotSpawned(String),
    /// The process has ended.
    Ended,
    /// A process has sent us this term.
    Message(Reader<'a>),
}

/// Decodes a message. Returns `None` for messages that every node receives, such as monitors and links of our
/// process and log events.
fn decode(message: &[u8]) -> Result<Option<Event<'_>>, Malformed> {
    let Some((&PASS_THROUGH, terms)) = message.split_first() else {
        return Err(Malformed::Invalid("message type"));
    };
    let mut control = Reader::new(terms)?;
    let arity = control.tuple("control message")?;
    let operation = control.integer("operation")?;
    for _ in 1..arity.saturating_sub(usize::from(operation == control::SPAWN_REPLY)) {
        control.skip()?;
    }
    Ok(match operation {
        control::SEND => Some(Event::Message(Reader::new(control.rest())?)),
        control::MONITOR_P_EXIT => Some(Event::Ended),
        control::SPAWN_REPLY => Some(match control.item()? {
            Item::Atom(reason) => Event::NotSpawned(reason.into()),
            _ => Event::Spawned,
        }),
        _ => None,
    })
}

/// A message from the agent.
enum Answer<'a> {
    Text(Text<'a>),
    Raised(&'a [u8]),
    /// The result consists of this number of bytes at the end of the message.
    Result(usize),
}

fn outcome<'a>(term: &Reader<'a>) -> Result<Answer<'a>, Malformed> {
    let mut term = term.clone();
    if term.tuple("answer")? != 2 {
        return Err(Malformed::Invalid("answer"));
    }
    match term.atom("answer")?.as_ref() {
        "output" => Ok(Answer::Text(Text::Output(term.binary("output")?))),
        "diagnostic" => Ok(Answer::Text(Text::Diagnostic(term.binary("diagnostic")?))),
        "raised" => Ok(Answer::Raised(term.binary("exception")?)),
        "result" => Ok(Answer::Result(term.rest().len())),
        _ => Err(Malformed::Invalid("answer")),
    }
}

/// Truncates the text of an exception to a length that somebody might read.
fn shortened(text: &[u8]) -> Vec<u8> {
    const MOST: usize = 1 << 20;
    let text = text.trim_ascii_end();
    match text.split_at_checked(MOST) {
        None | Some((_, [])) => text.into(),
        Some((start, rest)) => {
            let note = format!("\n... and {} bytes more", rest.len());
            [start, note.as_bytes()].concat()
        }
    }
}

fn invalid_message(link: &Link, malformed: Malformed) -> Failure {
    lost(link, &format!("sent an invalid message: {malformed}"))
}

fn lost(link: &Link, problem: &str) -> Failure {
    Failure::new(Kind::Lost, format!("{} {problem}", link.node))
}
