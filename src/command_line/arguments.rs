//! The definition of the command line, and its parser. Reads environment variables and the names of users and
//! groups, and does no other I/O.

use crate::call::{Job, Readiness};
use crate::cookie::{self, Source};
use crate::escape;
use crate::failure::EXIT_CODES;
use crate::json;
use crate::layout::definitions;
use crate::location::{self, Directory, Location};
use crate::users;
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command, ValueHint, value_parser};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;
use uds_dist::peer::{Base, Policy};

const DIRECTORY_VARIABLE: &str = "UDS_DIST_DIR";

/// Default of --timeout.
const TIMEOUT: &str = "5s";

/// Default of --timeout for `stop`, which has to wait until the node's applications have stopped.
const STOP_TIMEOUT: &str = "60s";

/// A parsed command line.
#[derive(Debug)]
pub struct Invocation {
    /// The command and its arguments.
    pub request: Request,
    /// How much to print beside the result.
    pub talk: Talk,
}

/// How much a command prints beside its result. Errors are always printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Talk {
    /// Nothing (`-q`).
    Quiet,
    /// Warnings.
    Normal,
    /// Each step as well (`-v`).
    Verbose,
}

/// A command and its arguments.
#[derive(Debug)]
pub enum Request {
    /// Asks whether the node answers and is ready. Stops waiting once the process with this id has ended.
    Ping(Access, Readiness, Option<u32>),
    /// Prints the process id of the node.
    Pid(Access),
    /// Stops the node.
    Stop(Access),
    /// Shows the state of the node.
    Status(Access, Printed),
    /// Shows the connections of the node.
    Peers(Access, Printed),
    /// Runs a program in the node.
    Run(Access, Program, Printed),
    /// Lists the nodes of a directory.
    Names(Directory, Printed),
}

/// The node to talk to, and how to reach it.
#[derive(Debug)]
pub struct Access {
    /// The node's name: `name` or `name@host`.
    pub node: String,
    /// Where its socket is.
    pub location: Location,
    /// The users and groups that the node may run as.
    pub policy: Policy,
    /// Where its cookie is.
    pub cookie: Source,
    /// How long to wait until the node is there.
    pub wait: Duration,
    /// How long everything else may take.
    pub timeout: Duration,
}

/// A program for the node.
#[derive(Debug)]
pub enum Program {
    /// The arguments contain it.
    Given(Job),
    /// It has to be read from this file, or from standard input.
    From(Option<PathBuf>, Language),
}

/// The language of expressions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    /// Erlang.
    Erlang,
    /// Elixir.
    Elixir,
}

impl Language {
    /// A job that evaluates expressions in this language.
    pub fn job(self, text: String) -> Job {
        match self {
            Language::Erlang => Job::Erlang(text),
            Language::Elixir => Job::Elixir(text),
        }
    }
}

/// The format of a printed result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Printed {
    /// Text for people.
    Plain,
    /// JSON for scripts.
    Json,
}

/// Parses the arguments, which do not include the program's name. `variable` reads the environment.
pub fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<Invocation, clap::Error> {
    let program = OsString::from("uds_dist");
    let matches = command().try_get_matches_from(std::iter::once(program).chain(arguments))?;
    let (name, matches) = matches.subcommand().expect("a subcommand is required");
    let talk = match (matches.get_flag("quiet"), matches.get_flag("verbose")) {
        (true, _) => Talk::Quiet,
        (false, true) => Talk::Verbose,
        (false, false) => Talk::Normal,
    };
    let request = match name {
        "ping" => Request::Ping(
            access(matches, &variable)?,
            readiness(matches),
            value(matches, "pid"),
        ),
        "pid" => Request::Pid(access(matches, &variable)?),
        "stop" => Request::Stop(access(matches, &variable)?),
        "status" => Request::Status(access(matches, &variable)?, printed(matches)),
        "peers" => Request::Peers(access(matches, &variable)?, printed(matches)),
        "rpc" => Request::Run(
            access(matches, &variable)?,
            Program::Given(call(matches)),
            printed(matches),
        ),
        "eval" => Request::Run(
            access(matches, &variable)?,
            expressions(matches),
            printed(matches),
        ),
        "names" => Request::Names(directory(matches, &variable)?, printed(matches)),
        other => unreachable!("{other} is defined below, but not handled here"),
    };
    Ok(Invocation { request, talk })
}

/// Display order of options that all commands have: behind the command's own.
const LAST: usize = 900;

/// The definition of all commands and their arguments.
pub fn command() -> Command {
    Command::new("uds_dist")
        .version(env!("CARGO_PKG_VERSION"))
        .about(
            "Talks to Erlang and Elixir nodes over Unix domain sockets, without booting another node.\n\n\
             The nodes have to run with the distribution carrier uds_dist:\n\n    \
             erl -pa <uds_dist>/ebin -proto_dist uds -no_epmd -sname myapp",
        )
        .after_help(format!(
            "Environment:\n{}\n{}",
            definitions(&ENVIRONMENT),
            exit_codes()
        ))
        .subcommand_required(true)
        .arg(
            Arg::new("quiet")
                .short('q')
                .long("quiet")
                .display_order(LAST)
                .global(true)
                .action(ArgAction::SetTrue)
                .conflicts_with("verbose")
                .help("Print only results and errors"),
        )
        .arg(
            Arg::new("verbose")
                .short('v')
                .long("verbose")
                .display_order(LAST)
                .global(true)
                .action(ArgAction::SetTrue)
                .help("Print each step on standard error: socket, cookie, connection, time"),
        )
        .subcommand(
            with_access(
                Command::new("ping")
                    .about("Check whether the node answers (health checks)"),
                TIMEOUT,
            )
            .arg(
                Arg::new("started")
                    .long("started")
                    .action(ArgAction::SetTrue)
                    .help("Also check that the node has started with all its applications"),
            )
            .arg(
                Arg::new("app")
                    .long("app")
                    .value_name("NAME")
                    .action(ArgAction::Append)
                    .value_parser(application)
                    .value_hint(ValueHint::Other)
                    .help("Also check that this application is running (can be repeated)"),
            )
            .arg(
                Arg::new("pid")
                    .long("pid")
                    .value_name("PID")
                    .value_parser(process_id)
                    .value_hint(ValueHint::Other)
                    .help("Stop waiting (--wait) when this process, the node's, has ended"),
            ),
        )
        .subcommand(
            Command::new("names")
                .about("List the nodes of a directory: name, process, user, start time, state")
                .after_help(format!("States:\n{}\n{NAMES}", definitions(&STATES)))
                .arg(dir_arg())
                .arg(schema_arg(
                    "Print a JSON array of objects: name, pid, uid, user, since, state",
                )),
        )
        .subcommand(
            with_access(
                Command::new("status").about(
                    "Show the node's state: versions, boot, limits, socket, peers, applications",
                ),
                TIMEOUT,
            )
            .arg(schema_arg("Print the same as a JSON object, for scripts")),
        )
        .subcommand(
            with_access(
                Command::new("peers")
                    .about("Show the node's connections: peer, user, process, age, bytes, queue"),
                TIMEOUT,
            )
            .arg(schema_arg(
                "Print a JSON array with an object for each connection, for scripts",
            )),
        )
        .subcommand(
            with_access(
                Command::new("rpc").about("Call a function in the node and print its result"),
                TIMEOUT,
            )
            .override_usage(
                "uds_dist rpc [OPTIONS] <NODE> <MODULE> <FUNCTION> [ARGUMENTS]\n       \
                 uds_dist rpc [OPTIONS] <NODE> <EXPRESSION>",
            )
            .arg(
                Arg::new("CALL")
                    .num_args(1..=3)
                    .value_hint(ValueHint::Other)
                    .required(true)
                    .allow_negative_numbers(true)
                    .help("erlang memory '[total]', or as one expression: 'erlang:memory(total)'"),
            )
            .arg(elixir_arg(
                "The call is Elixir: Enum sum '[[1, 2]]', or 'Enum.sum([1, 2])'",
            ))
            .arg(json_arg()),
        )
        .subcommand(
            with_access(
                Command::new("eval")
                    .about("Evaluate expressions in the node and print the value of the last one"),
                TIMEOUT,
            )
            .arg(
                Arg::new("EXPRESSIONS")
                    .value_hint(ValueHint::Other)
                    .required_unless_present("file")
                    .allow_negative_numbers(true)
                    .help("'lists:sum([1, 2, 3]).', or - for standard input"),
            )
            .arg(
                Arg::new("file")
                    .long("file")
                    .value_name("FILE")
                    .conflicts_with("EXPRESSIONS")
                    .value_parser(value_parser!(PathBuf))
                    .help("Evaluate the expressions of a file"),
            )
            .arg(elixir_arg("The expressions are Elixir, for Code.eval_string/1"))
            .arg(json_arg()),
        )
        .subcommand(with_access(
            Command::new("pid").about("Print the process id of the node"),
            TIMEOUT,
        ))
        .subcommand(with_access(
            Command::new("stop").about("Stop the node in an orderly way, and wait until it has ended"),
            STOP_TIMEOUT,
        ))
}

/// The states that `names` shows, and what they mean.
pub const STATES: [(&str, &str); 5] = [
    ("up", "it listens"),
    ("busy", "it listens, but accepts nobody at the moment"),
    (
        "closed",
        "this user may not connect, so it is unknown who listens",
    ),
    (
        "stale",
        "nobody listens: a killed node left it behind, and the next one takes it over",
    ),
    (
        "gone",
        "it runs, but nobody can reach it: its socket file was removed or replaced",
    ),
];

/// Notes on the table that `names` prints.
pub const NAMES: &str = "\
The process is the node's VM if the system reveals it, and the process that listens otherwise.
If standard output is not a terminal, columns are separated by tabs. -q prints only the names.
Unknown values are - in the table and null in JSON.";

/// The environment variables that are read, and what they mean.
pub const ENVIRONMENT: [(&str, &str); 5] = [
    (
        DIRECTORY_VARIABLE,
        "directory of the sockets, or @name of an abstract namespace; --dir takes precedence",
    ),
    (
        cookie::VARIABLES[0],
        "the cookie; --cookie-file takes precedence",
    ),
    (
        cookie::VARIABLES[1],
        "the cookie, if RELEASE_COOKIE is not set; without either, it is read from ~/.erlang.cookie",
    ),
    (
        "XDG_CONFIG_HOME",
        "has the cookie in erlang/.erlang.cookie, if there is none in the home directory",
    ),
    ("NO_COLOR", "never print colours"),
];

fn exit_codes() -> String {
    format!("Exit codes:\n{}", definitions(&EXIT_CODES))
}

fn with_access(command: Command, timeout: &'static str) -> Command {
    command
        .after_help(exit_codes())
        .arg(
            Arg::new("NODE")
                .required(true)
                .value_hint(ValueHint::Other)
                .help("Name of the node, with or without a host"),
        )
        .arg(dir_arg())
        .arg(
            Arg::new("socket")
                .long("socket")
                .value_name("PATH")
                .conflicts_with("dir")
                .value_parser(not_empty())
                .value_hint(ValueHint::FilePath)
                .help("The node's socket, if it is not <dir>/<name>.sock"),
        )
        .arg(
            Arg::new("cookie-file")
                .long("cookie-file")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help("File with the node's cookie; others must not be able to read it"),
        )
        .arg(
            Arg::new("cookie")
                .long("cookie")
                .value_name("COOKIE")
                .value_hint(ValueHint::Other)
                .conflicts_with("cookie-file")
                .help("The cookie itself; everybody who can list processes sees it"),
        )
        .arg(
            Arg::new("allow-uid")
                .long("allow-uid")
                .value_name("USER")
                .value_hint(ValueHint::Username)
                .action(ArgAction::Append)
                .value_parser(admitted)
                .help("Also talk to nodes of this user (number, name or \"any\")"),
        )
        .arg(
            Arg::new("allow-gid")
                .long("allow-gid")
                .value_name("GROUP")
                .value_hint(ValueHint::Other)
                .action(ArgAction::Append)
                .value_parser(users::gid)
                .help("Also talk to nodes of this group (number or name)"),
        )
        .arg(
            Arg::new("wait")
                .long("wait")
                .value_name("TIME")
                .value_hint(ValueHint::Other)
                .default_value("0s")
                .hide_default_value(true)
                .value_parser(duration)
                .help("How long to wait until the node is there (ping: and ready), such as 30s"),
        )
        .arg(
            Arg::new("timeout")
                .long("timeout")
                .value_name("TIME")
                .value_hint(ValueHint::Other)
                .default_value(timeout)
                .value_parser(time_limit)
                .help("How long the answer may take, such as 500ms, 5s, 2m or 1h"),
        )
}

fn dir_arg() -> Arg {
    Arg::new("dir")
        .long("dir")
        .value_name("DIR")
        .value_parser(not_empty())
        .value_hint(ValueHint::DirPath)
        .help(
            "Directory of the sockets, or @name of an abstract namespace [default: UDS_DIST_DIR, or .]",
        )
}

fn elixir_arg(help: &'static str) -> Arg {
    Arg::new("elixir")
        .long("elixir")
        .action(ArgAction::SetTrue)
        .help(help)
}

/// The option --json of commands whose JSON has a fixed schema.
fn schema_arg(help: &'static str) -> Arg {
    Arg::new("json")
        .long("json")
        .action(ArgAction::SetTrue)
        .help(help)
}

/// The option --json of commands that print the result of the user's code.
fn json_arg() -> Arg {
    Arg::new("json")
        .long("json")
        .action(ArgAction::SetTrue)
        .help("Print JSON, for scripts; output of the called code goes to standard error")
        .long_help(format!(
            "Print JSON, for scripts; output of the called code goes to standard error.\n{}",
            json::MAPPING
        ))
}

fn access(
    matches: &ArgMatches,
    variable: &impl Fn(&str) -> Option<OsString>,
) -> Result<Access, clap::Error> {
    let location = match value::<OsString>(matches, "socket") {
        Some(socket) => Location::socket(&socket),
        None => Location::In(directory(matches, variable)?),
    };
    let cookie = match (value(matches, "cookie-file"), value(matches, "cookie")) {
        (Some(file), _) => Source::File(file),
        (None, Some(cookie)) => Source::Argument(cookie),
        (None, None) => Source::Default,
    };
    Ok(Access {
        node: value(matches, "NODE").expect("it is required"),
        location,
        policy: policy(matches),
        cookie,
        wait: value(matches, "wait").expect("it has a default"),
        timeout: value(matches, "timeout").expect("it has a default"),
    })
}

/// An empty variable counts as unset, as with the carrier.
fn directory(
    matches: &ArgMatches,
    variable: &impl Fn(&str) -> Option<OsString>,
) -> Result<Directory, clap::Error> {
    let from_environment = || {
        let value = variable(DIRECTORY_VARIABLE).filter(|value| !value.is_empty())?;
        Some((value, DIRECTORY_VARIABLE))
    };
    let argument = value::<OsString>(matches, "dir").map(|value| (value, "--dir"));
    let Some((dir, source)) = argument.or_else(from_environment) else {
        return Ok(Directory::new(OsStr::from_bytes(b".")));
    };
    match location::blemish(dir.as_bytes()) {
        None => Ok(Directory::new(&dir)),
        Some(blemish) => Err(command().error(
            ErrorKind::InvalidValue,
            format!("{} ({source}) {blemish}", escape::name(dir.as_bytes())),
        )),
    }
}

fn policy(matches: &ArgMatches) -> Policy {
    let mut policy = Policy::just(Base::OwnUserAndRoot);
    for admitted in matches
        .get_many::<Admitted>("allow-uid")
        .into_iter()
        .flatten()
    {
        match admitted {
            Admitted::User(uid) => policy.uids.push(*uid),
            Admitted::Anybody => policy.base = Base::Anybody,
        }
    }
    let gids = matches.get_many("allow-gid").into_iter().flatten();
    policy.gids.extend::<Vec<u32>>(gids.copied().collect());
    policy
}

fn readiness(matches: &ArgMatches) -> Readiness {
    let applications = matches.get_many("app").into_iter().flatten();
    Readiness {
        started: matches.get_flag("started"),
        applications: applications.cloned().collect(),
    }
}

/// Checks the name of an application, which is an atom.
fn application(text: &str) -> Result<String, String> {
    match text.chars().count() {
        1..=255 if !text.contains(char::is_control) => Ok(text.into()),
        _ => Err("an application's name has 1 to 255 characters".into()),
    }
}

fn process_id(text: &str) -> Result<u32, String> {
    text.parse()
        .ok()
        .filter(|pid| (1..=i32::MAX as u32).contains(pid))
        .ok_or_else(|| "it must be a process id, such as 4711".into())
}

fn call(matches: &ArgMatches) -> Job {
    let words: Vec<String> = matches
        .get_many("CALL")
        .expect("it is required")
        .cloned()
        .collect();
    let language = language(matches);
    let [module, function, rest @ ..] = &words[..] else {
        return language.job(words.concat());
    };
    let arguments = rest.first().map_or("[]", String::as_str);
    match language {
        Language::Erlang => Job::Call {
            module: module.clone(),
            function: function.clone(),
            arguments: arguments.into(),
        },
        Language::Elixir => {
            let function = elixir_atom(function);
            Job::Elixir(format!("apply({module}, {function}, {arguments})"))
        }
    }
}

/// An atom in Elixir's syntax, quoted only if necessary, because the compiler warns of unnecessary quotes.
fn elixir_atom(name: &str) -> String {
    let stem = name.strip_suffix(['?', '!']).unwrap_or(name);
    let is_letter = |character: char| character.is_ascii_alphabetic() || character == '_';
    let is_plain = stem.starts_with(is_letter)
        && stem
            .chars()
            .all(|character| is_letter(character) || character.is_ascii_digit());
    if is_plain {
        return format!(":{name}");
    }
    let quoted = name.replace('\\', r"\\").replace('"', "\\\"");
    format!(":\"{}\"", quoted.replace("#{", r"\#{"))
}

fn language(matches: &ArgMatches) -> Language {
    match matches.get_flag("elixir") {
        true => Language::Elixir,
        false => Language::Erlang,
    }
}

fn expressions(matches: &ArgMatches) -> Program {
    let language = language(matches);
    match value::<String>(matches, "EXPRESSIONS") {
        Some(text) if text != "-" => Program::Given(language.job(text)),
        _ => Program::From(value(matches, "file"), language),
    }
}

fn printed(matches: &ArgMatches) -> Printed {
    match matches.get_flag("json") {
        true => Printed::Json,
        false => Printed::Plain,
    }
}

fn value<T: Clone + Send + Sync + 'static>(matches: &ArgMatches, id: &str) -> Option<T> {
    matches.get_one(id).cloned()
}

#[derive(Debug, Clone)]
enum Admitted {
    User(u32),
    Anybody,
}

fn admitted(text: &str) -> Result<Admitted, String> {
    match text {
        "any" => Ok(Admitted::Anybody),
        _ => users::uid(text).map(Admitted::User),
    }
}

/// Takes any bytes except an empty value, which is most likely a shell variable that was not set.
fn not_empty() -> impl TypedValueParser<Value = OsString> {
    OsStringValueParser::new().try_map(|value| match value.is_empty() {
        true => Err("it is empty"),
        false => Ok(value),
    })
}

/// Parses a number with a unit; without a unit, it is in seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err("the units of time are ms, s, m and h".into()),
    };
    let number: f64 = digits
        .parse()
        .map_err(|_| "a time is a number and a unit, such as 30s")?;
    // Longer times could overflow when they are added to the current time.
    Duration::try_from_secs_f64(number * unit)
        .ok()
        .filter(|time| *time <= MAX_TIME)
        .ok_or_else(|| "a time must be from 0s to 10000h".into())
}

const MAX_TIME: Duration = Duration::from_secs(10_000 * 3600);

fn time_limit(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("it must be more than 0s".into()),
        time => Ok(time),
    }
}
