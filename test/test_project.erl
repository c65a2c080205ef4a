%% Projects and releases under test: a copy of this tree, programs that are run, terminals.
-module(test_project).

-export([temporary/0, root/0, copy_tree/2, run/2, output/2, collect/1]).
-export([background/2, terminal/3]).
-export([write/3, epmds/0, host/0]).

-export_type([options/0]).

-define(LIMIT, 60000).

-type options() :: #{
    dir => file:filename(),
    env => [{string(), string() | false}],
    %% What is $0 in the command.
    argument => string()
}.

-spec temporary() -> file:filename().
temporary() ->
    string:trim(os:cmd("mktemp -d /tmp/uds_dist_project.XXXXXX")).

%% The tree that is under test, with what cargo has built of it or without; not what else was made.
-spec copy_tree(file:filename(), built | clean) -> ok.
copy_tree(To, What) ->
    Exclude =
        case What of
            built -> "--exclude=./target/debug --exclude=./target/tmp --exclude=./target/bench";
            clean -> "--exclude=./target --exclude=./priv/uds_dist"
        end,
    run(
        "mkdir -p \"$0\" && tar --exclude=./_build --exclude=./.toolchain --exclude=./.git " ++ Exclude ++
            " -c . | tar -C \"$0\" -x",
        #{dir => root(), argument => To}
    ).

%% Where that is: rebar3 links its directories into _build.
-spec root() -> file:filename().
root() ->
    Source = proplists:get_value(source, uds_dist:module_info(compile)),
    Root = filename:dirname(filename:dirname(real(Source))),
    true = filelib:is_regular(filename:join(Root, "Cargo.toml")),
    Root.

real(Path) ->
    string:trim(os:cmd("realpath '" ++ Path ++ "'")).

%% Runs a shell command that must end well.
-spec run(string(), options()) -> ok.
run(Command, Options) ->
    case output(Command, Options) of
        {0, _} -> ok;
        {Status, Output} -> ct:fail("~ts~n~ts~nended with status ~b", [Command, Output, Status])
    end.

%% Runs a shell command; what it prints, on both outputs, and its exit status.
-spec output(string(), options()) -> {Status :: non_neg_integer(), Output :: string()}.
output(Command, Options) ->
    collect(background(Command, Options)).

%% Starts a shell command, and does not wait.
-spec background(string(), options()) -> port().
background(Command, Options) ->
    start(Command ++ "\n", "exec 2>&1 </dev/null; ", Options).

start(Command, Before, Options) ->
    open_port({spawn_executable, "/bin/sh"}, [
        {args, ["-c", Before ++ Command, maps:get(argument, Options, "sh")]},
        {cd, maps:get(dir, Options, "/")},
        %% The tests have settings for rebar3 that are not for other projects.
        {env,
            [{"REBAR_BASE_DIR", false}, {"TERM", "dumb"}, {"ERL_LIBS", false}] ++
                maps:get(env, Options, [])},
        exit_status,
        binary
    ]).

%% What a program prints until it ends.
-spec collect(port()) -> {Status :: non_neg_integer(), Output :: string()}.
collect(Port) ->
    collect(Port, <<>>).

collect(Port, Output) ->
    receive
        {Port, {data, Bytes}} -> collect(Port, <<Output/binary, Bytes/binary>>);
        {Port, {exit_status, Status}} -> {Status, unicode:characters_to_list(Output)}
    end.

%% Runs a shell command on a terminal. Whenever it has printed what stands in the dialogue, it gets
%% the answer typed.
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

%% A file of terms.
-spec write(file:filename(), file:filename(), [term()]) -> ok.
write(Dir, Name, Terms) ->
    Text = [io_lib:format("~tp.~n", [Term]) || Term <- Terms],
    ok = file:write_file(filename:join(Dir, Name), unicode:characters_to_binary(Text)).

%% Those that run on this machine, whoever started them.
-spec epmds() -> [string()].
epmds() ->
    string:lexemes(os:cmd("pgrep -x epmd"), "\n").

%% Host part of a short name.
-spec host() -> string().
host() ->
    {ok, Host} = inet:gethostname(),
    hd(string:split(Host, ".")).
