//! What a node is asked, once there is a connection to it.
//!
//! The question itself is put by [`AGENT`], Erlang that the node interprets. It comes to it by a
//! spawn request for `erl_eval:exprs/2`, and so neither needs a module of ours in the node nor a
//! server that answers calls.

use crate::etf::{Item, Malformed, Reader, Writer};
use crate::failure::{Failure, Kind};
use crate::link::Link;

/// Interpreted in the node.
const AGENT: &str = include_str!("agent.exprs");

/// Control messages of erl_dist_protocol that concern us.
mod control {
    pub const SEND: i32 = 2;
    pub const REG_SEND: i32 = 6;
    pub const MONITOR_P_EXIT: i32 = 21;
    pub const SPAWN_REQUEST: i32 = 29;
    pub const SPAWN_REPLY: i32 = 31;
}

/// Stands before every message, since we have no distribution header.
const PASS_THROUGH: u8 = 112;

/// Work for a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Job {
    /// A function, and the text of its list of arguments.
    Call {
        /// Its module.
        module: String,
        /// Its name.
        function: String,
        /// Erlang.
        arguments: String,
    },
    /// Erlang expressions.
    Erlang(String),
    /// Elixir expressions.
    Elixir(String),
}

/// What a node has to be besides there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// All that it starts with is started.
    pub started: bool,
    /// These applications run.
    pub applications: Vec<String>,
}

/// How the result is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Printed as the language's shell does.
    Shell,
    /// It is a text.
    Text,
    /// The term itself.
    Term,
}

/// How a job ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The message with the result, and where in it that begins.
    Result(Received),
    /// The exception, as text, or what there is room for of it.
    Raised(Vec<u8>),
}

/// A term in the message that brought it.
#[derive(Debug, PartialEq, Eq)]
pub struct Received {
    message: Vec<u8>,
    start: usize,
}

impl Received {
    /// Reads the term.
    pub fn reader(&self) -> Reader<'_> {
        Reader::within(&self.message[self.start..])
    }
}

/// Asks the node's net_kernel whether we are connected to it, as net_adm:ping/1 does.
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
        let understood =
            understand(&message).map_err(|malformed| not_understood(link, malformed))?;
        if let Some(Told::Message(answer)) = understood {
            return is_yes(answer).map_err(|malformed| not_understood(link, malformed));
        }
    }
}

/// `{Reference, yes}`
fn is_yes(mut answer: Reader<'_>) -> Result<(), Malformed> {
    answer.tuple("answer")?;
    answer.skip()?;
    match answer.atom("answer")?.as_ref() {
        "yes" => Ok(()),
        _ => Err(Malformed::Invalid("answer")),
    }
}

/// Asks whether the node is as far as it should be.
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
             [<<\"the application {name} does not run\"/utf8>>]; _ -> [] end"
        )
    }));
    if lacking.is_empty() {
        return Ok(());
    }
    let job = Job::Erlang(format!("lists:join(\", \", {}).", lacking.join(" ++ ")));
    let problem = match run(link, &job, Form::Text, |_| Ok(()))? {
        Outcome::Result(received) => {
            let text = received.reader().binary("text").map(<[u8]>::to_vec);
            text.map_err(|malformed| not_understood(link, malformed))?
        }
        Outcome::Raised(text) => [b"cannot say how far it is: ", &text[..]].concat(),
    };
    if problem.is_empty() {
        return Ok(());
    }
    let problem = String::from_utf8_lossy(&problem);
    let explanation = format!("{} answers, but {problem}", link.node);
    Err(Failure::new(Kind::NotReady, explanation))
}

/// Text that arrives while a job runs.
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
        match understand(&message).map_err(|malformed| not_understood(link, malformed))? {
            None | Some(Told::Spawned) => (),
            Some(Told::NotSpawned(reason)) => {
                return Err(lost(link, &format!("could not start the call: {reason}")));
            }
            Some(Told::Ended) => {
                return Err(lost(link, "ended the call without a result; see its log"));
            }
            Some(Told::Message(term)) => {
                let told = outcome(&term).map_err(|malformed| not_understood(link, malformed))?;
                match told {
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

/// Two expressions in abstract format, which parse the agent and interpret it:
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

/// `{Elements} = ` the next expression.
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

/// Sorted by name: they are orddicts.
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

/// What a message of the distribution says to us.
enum Told<'a> {
    /// Our request is carried out.
    Spawned,
    /// It is not.
    NotSpawned(String),
    /// The process has ended.
    Ended,
    /// Somebody has sent this.
    Message(Reader<'a>),
}

/// `None` are those that every node gets: monitors and links of our process, log events.
fn understand(message: &[u8]) -> Result<Option<Told<'_>>, Malformed> {
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
        control::SEND => Some(Told::Message(Reader::new(control.rest())?)),
        control::MONITOR_P_EXIT => Some(Told::Ended),
        control::SPAWN_REPLY => Some(match control.item()? {
            Item::Atom(reason) => Told::NotSpawned(reason.into()),
            _ => Told::Spawned,
        }),
        _ => None,
    })
}

/// What the agent says.
enum Answer<'a> {
    Text(Text<'a>),
    Raised(&'a [u8]),
    /// The message's last bytes, so many, are the result.
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

/// Nobody reads an exception of megabytes.
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

fn not_understood(link: &Link, malformed: Malformed) -> Failure {
    lost(
        link,
        &format!("sent what cannot be understood: {malformed}"),
    )
}

fn lost(link: &Link, problem: &str) -> Failure {
    Failure::new(Kind::Lost, format!("{} {problem}", link.node))
}
