%% Tools to test projects and releases: a copy of this tree, commands, and terminals.
-module(test_project).

-export([temporary/0, root/0, copy_tree/2, run/2, output/2, collect/1]).
-export([background/2, terminal/3]).
-export([write/3, epmds/0, host/0, command_line/0]).
-export([as/1, may_run_as/2, running_of/1]).

-export_type([options/0]).

-define(LIMIT, 60000).
-define(TEMPORARY, "/tmp/uds_dist_project.").

-type options() :: #{
    dir => file:filename(),
    env => [{string(), string() | false}],
    %% The value of $0 in the command.
    argument => string()
}.

-spec temporary() -> file:filename().
temporary() ->
    string:trim(os:cmd("mktemp -d " ?TEMPORARY "XXXXXX")).

%% Copies the tree under test, with or without what cargo has built, and without all other build results.
-spec copy_tree(file:filename(), built | clean) -> ok.
copy_tree(To, What) ->
    Exclude =
        case What of
            %% Everything in target/ but release/.
            built -> "--exclude='./target/[!r]*' --exclude='./target/r[!e]*'";
            clean -> "--exclude=./target --exclude='./priv/uds_dist*'"
        end,
    run(
        "mkdir -p \"$0\" && tar --exclude=./_build --exclude=./.toolchain --exclude=./.git " ++
            Exclude ++ " -c . | tar -C \"$0\" -x",
        #{dir => root(), argument => To}
    ).

%% The root of the tree. rebar3 links its directories into _build, so the path has to be resolved.
-spec root() -> file:filename().
root() ->
    Source = proplists:get_value(source, uds_dist:module_info(compile)),
    Root = filename:dirname(filename:dirname(real(Source))),
    true = filelib:is_regular(filename:join(Root, "Cargo.toml")),
    Root.

real(Path) ->
    string:trim(os:cmd("realpath '" ++ Path ++ "'")).

%% Runs a shell command that must succeed.
-spec run(string(), options()) -> ok.
run(Command, Options) ->
    case output(Command, Options) of
        {0, _} -> ok;
        {Status, Output} -> ct:fail("~ts~n~ts~nended with status ~b", [Command, Output, Status])
    end.

%% Runs a shell command, and returns its exit status and its output, stderr included.
-spec output(string(), options()) -> {Status :: non_neg_integer(), Output :: string()}.
output(Command, Options) ->
    collect(background(Command, Options)).

%% Starts a shell command without waiting for it.
-spec background(string(), options()) -> port().
background(Command, Options) ->
    start(Command ++ "\n", "exec 2>&1 </dev/null; ", Options).

start(Command, Before, Options) ->
    open_port({spawn_executable, "/bin/sh"}, [
        {args, ["-c", Before ++ Command, maps:get(argument, Options, "sh")]},
        {cd, maps:get(dir, Options, "/")},
        %% Settings for the tests must not apply to other projects, and their sidecar not to other nodes.
        {env,
            [
                {"REBAR_BASE_DIR", false},
                {"UDS_DIST_SIDECAR", false},
                {"TERM", "dumb"},
                {"ERL_LIBS", false}
            ] ++ maps:get(env, Options, [])},
        exit_status,
        binary
    ]).

%% Collects the output of a program until it ends.
-spec collect(port()) -> {Status :: non_neg_integer(), Output :: string()}.
collect(Port) ->
    collect(Port, <<>>).

collect(Port, Output) ->
    receive
        {Port, {data, Bytes}} -> collect(Port, <<Output/binary, Bytes/binary>>);
        {Port, {exit_status, Status}} -> {Status, unicode:characters_to_list(Output)}
    end.

%% Runs a shell command on a terminal. Whenever it has printed the next expected text of the dialogue, the
%% answer is typed.
-spec terminal(string(), [{Regexp :: string(), Answer :: string()}], options()) ->
    {Status :: non_neg_integer(), Output :: string()}.
terminal(Command, Dialogue, Options) ->
    Env = [{"TERM", "vt100"}, {"COMMAND", Command} | maps:get(env, Options, [])],
    Port = start("exec script -qec \"$COMMAND\" /dev/null", "", Options#{env => Env}),
    converse(Port, Dialogue, <<>>).

converse(Port, [], Seen) ->
    collect(Port, Seen);
converse(Port, [{Regexp, Answer} | More] = Dialogue, Seen) ->
    case re:run(Seen, Regexp, [unicode, {capture, first, index}]) of
        {match, [{Start, Length}]} ->
            true = port_command(Port, unicode:characters_to_binary(Answer)),
            After = Start + Length,
            <<_:After/binary, Rest/binary>> = Seen,
            converse(Port, More, Rest);
        nomatch ->
            receive
                {Port, {data, Bytes}} -> converse(Port, Dialogue, <<Seen/binary, Bytes/binary>>);
                {Port, {exit_status, Status}} -> error({ended, Status, waiting_for, Regexp, Seen})
            after ?LIMIT ->
                error({nothing_like, Regexp, in, Seen})
            end
    end.

%% Writes a file of terms.
-spec write(file:filename(), file:filename(), [term()]) -> ok.
write(Dir, Name, Terms) ->
    Text = [io_lib:format("~tp.~n", [Term]) || Term <- Terms],
    ok = file:write_file(filename:join(Dir, Name), unicode:characters_to_binary(Text)).

%% The epmds of this Erlang, or of a release that includes it.
-spec epmds() -> [OsPid :: string()].
epmds() ->
    [
        OsPid
     || OsPid <- string:lexemes(os:cmd("pgrep -x epmd"), "\n"),
        {ok, Path} <- [file:read_link(["/proc/", OsPid, "/exe"])],
        Root <- [real(code:root_dir()), ?TEMPORARY],
        lists:prefix(Root, Path)
    ].

%% The host part of a short name.
-spec host() -> string().
host() ->
    {ok, Host} = inet:gethostname(),
    hd(string:split(Host, ".")).

%% Path of the command line, which is built beside the sidecar.
-spec command_line() -> file:filename().
command_line() ->
    filename:join(filename:dirname(uds_dist_program:path()), "uds_dist").

%% A command prefix to run as another user, whose group has the same number.
-spec as(Uid :: non_neg_integer()) -> string().
as(Uid) ->
    lists:flatten(io_lib:format("setpriv --reuid ~b --regid ~b --clear-groups", [Uid, Uid])).

%% Whether this user can run the program and Erlang.
-spec may_run_as(Uid :: pos_integer(), file:filename()) -> boolean().
may_run_as(Uid, Program) ->
    Command = as(Uid) ++ " test -x '" ++ Program ++ "' -a -x '" ++ test_node:erl() ++ "'",
    string:trim(os:cmd("id -u")) =:= "0" andalso
        element(1, output(Command, #{})) =:= 0.

%% The processes whose command lines contain the path of a directory.
-spec running_of(file:filename()) -> [{OsPid :: pos_integer(), CommandLine :: string()}].
running_of(Dir) ->
    [
        {OsPid, CommandLine}
     || Entry <- filelib:wildcard("[0-9]*", "/proc"),
        OsPid <- [list_to_integer(Entry)],
        CommandLine <- [test_system:command_line(OsPid)],
        string:find(CommandLine, Dir) =/= nomatch
    ].
