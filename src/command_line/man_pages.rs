//! Generates the manual pages, one for the program and one for each command, in man(7) with tables of tbl(1).
//! Synopsis, options and exit codes come from the definition of the arguments. Text that only the manual has is
//! here.

use clap::{Arg, ArgAction, Command};
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};
use uds_dist_command_line::arguments::{self, ENVIRONMENT, NAMES, STATES};
use uds_dist_command_line::failure::EXIT_CODES;
use uds_dist_command_line::units;

/// Writes all pages to a directory.
pub fn write(directory: &Path, date: SystemTime) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let mut program = arguments::command();
    program.build();
    let commands: Vec<_> = program
        .get_subcommands()
        .filter(|command| command.get_name() != "help")
        .collect();
    let date = &units::rfc3339(date)[..10];
    let page = |command| {
        let file = format!("{}.1", title(command));
        fs::write(directory.join(file), page(command, &commands, date))
    };
    page(&program)?;
    commands.iter().copied().try_for_each(page)
}

/// The date of the pages: that of a reproducible build, or now.
pub fn date(source_date_epoch: Option<&str>) -> SystemTime {
    let seconds = source_date_epoch.and_then(|seconds| seconds.parse().ok());
    seconds.map_or_else(SystemTime::now, |seconds| {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    })
}

// --- text of the manual --------------------------------------------------------------------------

/// The description of a command in paragraphs, and examples with explanations.
struct Text {
    description: &'static [&'static str],
    examples: &'static [(&'static str, &'static str)],
}

fn text_of(command: &str) -> Text {
    match command {
        "ping" => Text {
            description: &[
                "Checks whether the node's distribution answers. That tells whether the node is alive, not \
                 whether it is ready: a node also answers while it starts, and after an application has \
                 stopped.",
                "With --started, all applications of the node's boot script must have started. With --app, \
                 an application must be running. The options can be combined, and with --wait, the command \
                 waits until all conditions are met.",
                "Use neither option for a liveness probe, --started for a startup probe, and --app for a \
                 readiness probe.",
            ],
            examples: &[
                ("uds_dist ping my_app", "Is it alive?"),
                (
                    "uds_dist ping my_app --started --wait 60s --pid $MAINPID",
                    "Wait until it has started, but give up at once if its process ends.",
                ),
                (
                    "uds_dist ping my_app --app my_app",
                    "Is it ready for requests?",
                ),
            ],
        },
        "names" => Text {
            description: &[
                "Lists the nodes of a directory without speaking to them. They log nothing, and no cookie \
                 is needed.",
                NAMES,
            ],
            examples: &[
                ("uds_dist names --dir /run/my_app", "Who is there?"),
                ("uds_dist names -q", "Only the names, for scripts."),
            ],
        },
        "status" => Text {
            description: &[
                "Shows the node's versions, whether it has started, how close it is to its limits, where it \
                 listens, its sidecar, its peers and its applications. On a terminal, values that are close \
                 to a limit or not as they should be are coloured. If standard output is not a terminal, \
                 each row begins with its section, and columns are separated by tabs.",
                "If the node uses another carrier, the sections about the carrier are missing, and the \
                 output says why.",
            ],
            examples: &[
                ("uds_dist status my_app", "How is it?"),
                (
                    "uds_dist status my_app --json | jq .carrier.sidecar.restarts",
                    "A single number, for monitoring.",
                ),
            ],
        },
        "peers" => Text {
            description: &[
                "Shows a row for each connection of the node: the name of the peer; DIR, which is in if the \
                 peer connected to this node and out otherwise; VIA, the transport; the user and the process \
                 at the other end, which is the peer's sidecar or a command; the age of the connection; bytes \
                 in each direction; bytes in the VM's queue, also in percent of the limit at which senders \
                 are suspended; and the state. The command's own connection is left out.",
            ],
            examples: &[
                ("uds_dist peers my_app", "Who is connected?"),
                ("uds_dist peers my_app -q", "Only the names, for scripts."),
            ],
        },
        "rpc" => Text {
            description: &[
                "Calls a function in the node and prints its result as the node's own shell would: as an \
                 Elixir term if Elixir runs there. Output of the function is passed on, and its input is \
                 empty. If the command is ended, so is the call.",
            ],
            examples: &[
                (
                    "uds_dist rpc my_app erlang node",
                    "A function without arguments.",
                ),
                (
                    "uds_dist rpc my_app lists reverse '[[1, 2, 3]]'",
                    "The arguments are given as a list.",
                ),
                (
                    "uds_dist rpc my_app --elixir 'Node.list()'",
                    "A call in Elixir.",
                ),
            ],
        },
        "eval" => Text {
            description: &[
                "Evaluates expressions in the node and prints the value of the last one as the node's own \
                 shell would. All of them are parsed before the first is evaluated.",
            ],
            examples: &[
                (
                    "uds_dist eval my_app 'X = nodes(), length(X).'",
                    "Expressions in an argument.",
                ),
                (
                    "uds_dist eval my_app --file check.erl",
                    "Expressions in a file.",
                ),
                (
                    "echo 'length(Node.list())' | uds_dist eval my_app --elixir -",
                    "Elixir expressions from standard input.",
                ),
            ],
        },
        "pid" => Text {
            description: &["Prints the process id of the node's VM."],
            examples: &[(
                "kill -0 \"$(uds_dist pid my_app)\"",
                "Does the process exist?",
            )],
        },
        "stop" => Text {
            description: &[
                "Stops the node like init:stop/0, which stops its applications first. Returns when the node \
                 has ended and its name is free for the next node.",
            ],
            examples: &[("uds_dist stop my_app --timeout 2m", "Allow it two minutes.")],
        },
        _ => Text {
            description: &[
                "Talks to Erlang and Elixir nodes over Unix domain sockets, without booting another node. \
                 The nodes have to run with the distribution carrier uds_dist, for which they are started \
                 with the flags -proto_dist uds -no_epmd.",
                "To the node, the command is a hidden node, whose name the node chooses. The node has to run \
                 as the same user or as root, unless --allow-uid or --allow-gid allows another user or group.",
            ],
            examples: &[
                ("uds_dist names", "Who is there?"),
                ("uds_dist ping my_app --started", "Has it started?"),
                ("uds_dist help rpc", "How do I call a function?"),
            ],
        },
    }
}

const FILES: [(&str, &str); 3] = [
    (
        "<dir>/<name>.sock",
        "The socket at which the node <name> listens.",
    ),
    (
        "<dir>/<name>.sock.lock",
        "The lock file, which the node's sidecar keeps locked while it owns the name.",
    ),
    (
        "~/.erlang.cookie",
        "The cookie, if neither an option nor the environment contains it. It must not be readable by others.",
    ),
];

// --- a page --------------------------------------------------------------------------------------

fn title(command: &Command) -> String {
    match command.get_name() {
        "uds_dist" => "uds_dist".into(),
        name => format!("uds_dist-{name}"),
    }
}

fn page(command: &Command, commands: &[&Command], date: &str) -> String {
    let (title, version) = (title(command), env!("CARGO_PKG_VERSION"));
    let is_program = command.has_subcommands();
    let text = text_of(command.get_name());
    let about = command.get_about().map(ToString::to_string);
    let about = about.as_deref().and_then(|about| about.lines().next());

    let mut out = Page(format!(
        "'\\\" t\n.TH {} 1 {date} \"uds_dist {version}\" \"User Commands\"\n.nh\n.ad l\n",
        escaped(&title.to_uppercase())
    ));
    out.section("NAME");
    out.line(&format!(
        "{title} \u{2013} {}",
        about.unwrap_or_default().trim_end_matches('.')
    ));
    out.section("SYNOPSIS");
    synopsis(&mut out, command);
    out.section("DESCRIPTION");
    out.paragraphs(text.description);
    if is_program {
        out.section("COMMANDS");
        for command in commands {
            let about = command.get_about().map(ToString::to_string);
            out.tagged(command.get_name(), about.as_deref().unwrap_or_default());
        }
    }
    arguments_of(&mut out, command);
    if command.get_name() == "names" {
        out.section("STATES");
        out.table(&STATES);
    }
    out.section("ENVIRONMENT");
    for (name, meaning) in ENVIRONMENT {
        out.tagged(name, meaning);
    }
    out.section("FILES");
    for (name, meaning) in FILES {
        out.tagged(name, meaning);
    }
    out.section("EXIT STATUS");
    out.table(&EXIT_CODES);
    out.section("EXAMPLES");
    for (example, meaning) in text.examples {
        out.paragraphs(&[meaning]);
        out.example(example);
    }
    out.section("SEE ALSO");
    let pages = commands.iter().map(|command| self::title(command));
    let mut pages: Vec<_> = pages.chain(["uds_dist".into(), "erl".into()]).collect();
    pages.sort();
    pages.retain(|page| *page != title);
    for (index, page) in pages.iter().enumerate() {
        let comma = if index + 1 < pages.len() { " ," } else { "" };
        out.control(&format!("BR {} (1){comma}", escaped(page)));
    }
    out.0
}

/// The lines of the SYNOPSIS.
fn synopsis(out: &mut Page, command: &Command) {
    let usage = command.clone().render_usage().to_string();
    let usage = usage.strip_prefix("Usage: ").unwrap_or(&usage);
    for (index, line) in usage.lines().enumerate() {
        if index > 0 {
            out.control("br");
        }
        out.line(line.trim());
    }
}

fn arguments_of(out: &mut Page, command: &Command) {
    let shown = |arg: &&Arg| !arg.is_hide_set();
    let positionals: Vec<_> = command.get_positionals().filter(shown).collect();
    if !positionals.is_empty() {
        out.section("ARGUMENTS");
        for arg in positionals {
            out.tagged(&arg.to_string(), &help(arg));
        }
    }
    out.section("OPTIONS");
    for arg in command.get_opts().filter(shown) {
        out.tagged(&tag(arg), &help(arg));
    }
    // get_opts leaves out options without values.
    let flags = command
        .get_arguments()
        .filter(shown)
        .filter(|arg| !arg.is_positional() && !arg.get_action().takes_values());
    for arg in flags {
        out.tagged(&tag(arg), &help(arg));
    }
}

fn tag(arg: &Arg) -> String {
    let short = arg.get_short().map(|short| format!("-{short}"));
    let long = arg.get_long().map(|long| format!("--{long}"));
    let mut tag: Vec<_> = short.into_iter().chain(long).collect::<Vec<_>>();
    if arg.get_action().takes_values() {
        let names = arg.get_value_names().unwrap_or_default();
        let last = tag.pop().unwrap_or_default();
        tag.push(format!("{last} {}", names.join(" ")));
    }
    tag.join(", ")
}

fn help(arg: &Arg) -> String {
    let help = arg.get_long_help().or_else(|| arg.get_help());
    let mut help = help.map(ToString::to_string).unwrap_or_default();
    let default = arg.get_default_values().first();
    if let (Some(default), false) = (default, arg.is_hide_default_value_set()) {
        if !matches!(arg.get_action(), ArgAction::SetTrue) {
            help += &format!(" (default: {})", default.to_string_lossy());
        }
    }
    help
}

// --- man(7) --------------------------------------------------------------------------------------

struct Page(String);

impl Page {
    fn control(&mut self, line: &str) {
        writeln!(self.0, ".{line}").expect("a string takes everything");
    }

    fn section(&mut self, name: &str) {
        self.control(&format!("SH {name}"));
    }

    /// Text, wrapped into short source lines.
    fn line(&mut self, text: &str) {
        const WIDTH: usize = 76;
        let mut line = String::new();
        for word in text.split_whitespace().map(escaped) {
            if !line.is_empty() && line.len() + 1 + word.len() > WIDTH {
                self.source_line(&line);
                line.clear();
            }
            line.push_str(if line.is_empty() { "" } else { " " });
            line.push_str(&word);
        }
        self.source_line(&line);
    }

    /// A line of text. A point or a quote at its beginning is guarded, because it would start a request.
    fn source_line(&mut self, line: &str) {
        let guard = if line.starts_with(['.', '\'']) {
            "\\&"
        } else {
            ""
        };
        writeln!(self.0, "{guard}{line}").expect("a string takes everything");
    }

    fn paragraphs(&mut self, paragraphs: &[&str]) {
        for (index, paragraph) in paragraphs.iter().enumerate() {
            if index > 0
                || !self
                    .0
                    .lines()
                    .last()
                    .is_some_and(|line| line.starts_with(".SH"))
            {
                self.control("PP");
            }
            self.line(paragraph);
        }
    }

    fn tagged(&mut self, tag: &str, meaning: &str) {
        self.control("TP");
        writeln!(self.0, ".B \"{}\"", escaped(tag)).expect("a string takes everything");
        self.line(meaning);
    }

    fn example(&mut self, line: &str) {
        self.0.push_str(".PP\n.RS 4\n.nf\n");
        self.source_line(&escaped(line));
        self.0.push_str(".fi\n.RE\n");
    }

    /// A table with two columns. The text of the second one is filled.
    fn table(&mut self, rows: &[(&str, &str)]) {
        self.0.push_str(".TS\nl lx.\n");
        for (word, meaning) in rows {
            writeln!(self.0, "{}\tT{{", escaped(word)).expect("a string takes everything");
            self.line(meaning);
            self.0.push_str("T}\n");
        }
        self.0.push_str(".TE\n");
    }
}

/// Escapes characters that roff would interpret. Quotes and dashes are printed as a shell reads them.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\e"),
            '-' => out.push_str("\\-"),
            '\u{2013}' => out.push_str("\\-"),
            '\'' => out.push_str("\\(aq"),
            '"' => out.push_str("\\(dq"),
            '`' => out.push_str("\\(ga"),
            '~' => out.push_str("\\(ti"),
            '^' => out.push_str("\\(ha"),
            other => out.push(other),
        }
    }
    out
}
