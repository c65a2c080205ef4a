%% Runs the commands in README.md and docs/*.md. Like a reader, the suite follows each page from top to bottom, in a
%% directory that looks like a clone in which `make` has been run.
%%
%% The fence of a code block says what happens to it:
%%
%%     ```sh run              typed into the page's shell (one for the whole page); has to succeed
%%     ```text output         lines that the block before it prints, in this order; other lines may be
%%                            between them, and numbers and spaces may differ
%%     ```sh run terminal     typed into a terminal of its own, which stays open
%%     ```erlang run          a session in the shell of the last terminal: what follows a prompt is
%%                            typed, and the other lines are expected
%%     ```sh not-run: WHY     not run, for this reason, in one word
-module(docs_SUITE).

-export([all/0, suite/0, init_per_testcase/2, end_per_testcase/2]).
-export([
    commands_work/1,
    every_command_says_whether_it_is_run/1,
    links_lead_somewhere/1,
    wrong_commands_are_found/1
]).

-include_lib("stdlib/include/assert.hrl").

%% Time limit of every wait, in milliseconds. It is long because test machines are busy.
-define(LIMIT, 60000).
%% The text that the shell of a page prints at its end, before its status.
-define(ENDED, "the shell has ended: ").

-type block() :: #{
    page := string(), line := pos_integer(), info := [string()], text := binary()
}.

all() ->
    test_node:cases(?MODULE).

suite() ->
    test_node:suite().

init_per_testcase(_Case, Config) ->
    test_node:init(Config).

end_per_testcase(_Case, Config) ->
    ok = end_all_in(test_node:dir(Config)),
    test_node:cleanup(Config).

%% Ends the processes that a page has started, which have its working directory. Sidecars end with their nodes and
%% remove the sockets.
end_all_in(Dir) ->
    %% Processes may end meanwhile.
    _ = os:cmd(lists:flatten(["kill -KILL" | [[$\s | Pid] || Pid <- started_in(Dir)]])),
    true = test_node:expect(
        fun() ->
            Patterns = ["*.sock", "*/*.sock", "*/*/*.sock"],
            Left = [File || Pattern <- Patterns, File <- filelib:wildcard(Pattern, Dir)],
            Left =:= [] orelse Left
        end,
        {no_socket_in, Dir}
    ),
    ok.

started_in(Dir) ->
    [
        Pid
     || Pid <- filelib:wildcard("[0-9]*", "/proc"),
        {ok, Cwd} <- [file:read_link(filename:join(["/proc", Pid, "cwd"]))],
        lists:prefix(Dir, Cwd)
    ].

%% ---------------------------------------------------------------------------------------------

%% All pages run at the same time, because most of the time is spent waiting for nodes.
commands_work(Config) ->
    Pages = [{Page, blocks(Page)} || Page <- pages()],
    Followed = [
        {Page, spawn_monitor(fun() -> follow(Blocks, Page, Config) end)}
     || {Page, Blocks} <- Pages, lists:any(fun is_run/1, Blocks)
    ],
    ?assert(length(Followed) >= 4),
    Results = [{Page, result(Process)} || {Page, Process} <- Followed],
    ?assertEqual([], [Failed || {_, {failed, _}} = Failed <- Results]).

result({Pid, Monitor}) ->
    receive
        {'DOWN', Monitor, process, Pid, normal} -> ok;
        {'DOWN', Monitor, process, Pid, Why} -> {failed, Why}
    end.

%% Every block of commands is either run or marked as not run.
every_command_says_whether_it_is_run(_Config) ->
    Shell = [Block || Page <- pages(), #{info := ["sh" | _]} = Block <- blocks(Page)],
    ?assert(length(Shell) > 10),
    ?assertEqual([], [where(Block) || Block <- Shell, not is_marked(Block)]).

is_marked(#{info := ["sh", "run"]}) -> true;
is_marked(#{info := ["sh", "run", "terminal"]}) -> true;
is_marked(#{info := ["sh", "not-run:", _Why]}) -> true;
is_marked(#{}) -> false.

%% Links lead to existing files, and to headings within pages.
links_lead_somewhere(_Config) ->
    Links = [{Page, Link} || Page <- documents(), Link <- links(Page)],
    ?assert(length(Links) > 30),
    ?assertEqual([], [{Page, Link} || {Page, Link} <- Links, not leads_somewhere(Link, Page)]).

%% The suite notices commands that fail, and commands with other output than expected.
wrong_commands_are_found(Config) ->
    Follow = fun(Text) -> follow(blocks("page.md", iolist_to_binary(Text)), "page.md", Config) end,
    ok = Follow("```sh run\ntrue\necho 3 b\n```\n```text output\n7   b\n```\n"),
    ?assertError({failed, "page.md:1", <<"1">>, _}, Follow("```sh run\nfalse\ntrue\n```\n")),
    ?assertError(
        {does_not_print, "page.md:4", _, _},
        Follow("```sh run\necho a\n```\n```text output\nb\n```\n")
    ).

%% ---------------------------------------------------------------------------------------------
%% Following a page

-record(page, {
    shell :: port(),
    %% The output of the last block of the shell.
    printed = <<>> :: binary(),
    %% The terminals, latest first, each with everything that it has shown so far.
    terminals = [] :: [{port(), Seen :: binary()}],
    dir :: file:filename(),
    env :: [{string(), string() | false}]
}).

follow(Blocks, Page, Config) ->
    ct:log("~ts", [Page]),
    Dir = clone(Page, Config),
    Env = environment(Dir),
    State = #page{shell = shell(Dir, Env), dir = Dir, env = Env},
    #page{shell = Shell, terminals = Terminals} =
        lists:foldl(fun step/2, State, [Block || Block <- Blocks, is_run(Block)]),
    lists:foreach(fun port_close/1, [Shell | [Terminal || {Terminal, _} <- Terminals]]),
    end_all_in(Dir).

is_run(#{info := [_, "run" | _]}) -> true;
is_run(#{info := ["text", "output"]}) -> true;
is_run(#{}) -> false.

step(#{info := ["sh", "run"]} = Block, State = #page{shell = Shell}) ->
    Mark = "done " ++ where(Block),
    File = write(Block, State),
    true = port_command(Shell, [". ", File, " </dev/null; echo '", Mark, "'\n"]),
    State#page{printed = until(Mark, Shell, <<>>, Block)};
step(#{info := ["sh", "run", "terminal"]} = Block, State = #page{terminals = Terminals}) ->
    Terminal = terminal(write(Block, State), State),
    Seen = see("\\d+> ", Terminal, <<>>, Block),
    State#page{terminals = [{Terminal, Seen} | Terminals]};
step(#{info := ["text", "output"], text := Text} = Block, State = #page{printed = Printed}) ->
    Expected = lists:join(".*?", [pattern(Line) || Line <- lines(Text)]),
    case re:run(Printed, Expected, [dotall, {capture, none}]) of
        match -> State;
        nomatch -> error({does_not_print, where(Block), Text, Printed})
    end;
step(#{info := ["erlang", "run"], text := Text} = Block, State) ->
    #page{terminals = [{Terminal, Seen} | Others]} = State,
    Seen1 = lists:foldl(fun(Line, S) -> say(Line, Terminal, S, Block) end, Seen, lines(Text)),
    State#page{terminals = [{Terminal, Seen1} | Others]}.

%% Runs a session line by line.
say(Line, Terminal, Seen, Block) ->
    case re:run(Line, "^(\\([^()]+\\)\\d+> )(.*)$", [{capture, [1, 2], list}]) of
        {match, [Prompt, Input]} ->
            Rest = await(pattern(string:trim(Prompt)), Terminal, Seen, Block),
            true = port_command(Terminal, [Input, $\n]),
            %% The echo of the typed line is not its answer.
            await("\n", Terminal, Rest, Block);
        nomatch ->
            await(pattern(Line), Terminal, Seen, Block)
    end.

%% The text after a match of the pattern.
await(Pattern, Terminal, Seen, Block) ->
    Seen1 = see(Pattern, Terminal, Seen, Block),
    {match, [{Start, Length}]} = re:run(Seen1, Pattern, [{capture, first, index}]),
    binary:part(Seen1, Start + Length, byte_size(Seen1) - Start - Length).

%% Everything that a terminal shows until the pattern matches.
see(Pattern, Terminal, Seen, Block) ->
    case re:run(Seen, Pattern, [{capture, none}]) of
        match ->
            Seen;
        nomatch ->
            receive
                {Terminal, {data, Bytes}} ->
                    see(Pattern, Terminal, <<Seen/binary, Bytes/binary>>, Block);
                {Terminal, {exit_status, Status}} ->
                    error({failed, where(Block), Status, Seen})
            after ?LIMIT ->
                error({does_not_print, where(Block), Pattern, Seen})
            end
    end.

%% A pattern for a line, in which numbers and spaces may differ.
pattern(Line) ->
    Escaped = replace(Line, "[\\\\.\\[\\](){}|?*+^$]", "\\\\&"),
    Numbers = replace(Escaped, "\\d+", "\\\\d+"),
    replace(Numbers, " +", "\\\\s+").

replace(Text, Regexp, By) ->
    re:replace(Text, Regexp, By, [global, unicode, {return, list}]).

until(Mark, Shell, Printed, Block) ->
    case {string:split(Printed, Mark), string:split(Printed, ?ENDED)} of
        {[Before, _], _} ->
            Before;
        {_, [Before, Status]} ->
            error({failed, where(Block), string:trim(Status), Before});
        _ ->
            receive
                {Shell, {data, Bytes}} ->
                    until(Mark, Shell, <<Printed/binary, Bytes/binary>>, Block)
            after ?LIMIT ->
                error({does_not_end, where(Block), Printed})
            end
    end.

write(#{line := Line, text := Text}, #page{dir = Dir}) ->
    File = filename:join(Dir, lists:concat([".block-", Line])),
    ok = file:write_file(File, Text),
    File.

%% The shell prints a text at its end, because processes in the background may keep its output open.
shell(Dir, Env) ->
    Options = [{args, ["-c", "exec sh -e 2>&1"]}, {cd, Dir}, {env, Env}, binary],
    Shell = open_port({spawn_executable, "/bin/sh"}, Options),
    true = port_command(Shell, ["trap 'echo \"", ?ENDED, "$?\"' EXIT\n"]),
    Shell.

terminal(File, #page{dir = Dir, env = Env}) ->
    open_port({spawn_executable, "/bin/sh"}, [
        {args, ["-c", "exec script -qec \"$COMMAND\" /dev/null"]},
        {env, [{"COMMAND", "sh -e " ++ File}, {"TERM", "vt100"} | Env]},
        {cd, Dir},
        exit_status,
        binary
    ]).

%% ---------------------------------------------------------------------------------------------
%% The built clone

%% Creates a copy of the tree, with the modules that are compiled for this OTP.
clone(Page, Config) ->
    Dir = test_node:dir("p" ++ integer_to_list(erlang:phash2({Page, make_ref()}, 1000000)), Config),
    Root = test_project:root(),
    {ok, Names} = file:list_dir_all(Root),
    [
        ok = file:make_symlink(filename:join(Root, Name), filename:join(Dir, Name))
     || Name <- Names, Name =/= "_build"
    ],
    Application = filename:dirname(filename:dirname(code:which(uds_dist))),
    Lib = filename:join(Dir, "_build/default/lib"),
    ok = filelib:ensure_path(Lib),
    ok = file:make_symlink(Application, filename:join(Lib, "uds_dist")),
    ok = filelib:ensure_path(filename:join(Dir, ".home")),
    stand_in_for_make(Root, Dir),
    Dir.

%% `make` has been run already, so only the existence of the target is checked.
stand_in_for_make(Root, Dir) ->
    Make = filename:join([Dir, ".bin", "make"]),
    ok = filelib:ensure_dir(Make),
    Exec = ["exec '", os:find_executable("make"), "' -n -C '", Root, "' \"$@\" >/dev/null\n"],
    ok = file:write_file(Make, ["#!/bin/sh\n", Exec]),
    ok = file:change_mode(Make, 8#755).

%% The environment, without variables that the user has set for other nodes, and that rebar3 has set for tests.
environment(Dir) ->
    Erlang = filename:dirname(test_node:erl()),
    Path = [filename:join(Dir, ".bin"), ":", Erlang, ":", os:getenv("PATH")],
    Unset = [
        "UDS_DIST_DIR",
        "UDS_DIST_SIDECAR",
        "UDS_DIST_LOG",
        "UDS_DIST_SPIN",
        "ELIXIR_ERL_OPTIONS",
        "ERL_FLAGS",
        "ERL_AFLAGS",
        "ERL_ZFLAGS",
        "ERL_LIBS",
        "ERLANG_COOKIE",
        "RELEASE_COOKIE",
        "REBAR_BASE_DIR",
        "XDG_CONFIG_HOME"
    ],
    [{Name, false} || Name <- Unset] ++
        [
            {"PATH", lists:flatten(Path)},
            {"HOME", filename:join(Dir, ".home")},
            %% Rust may be installed in the home directory.
            {"CARGO_HOME", os:getenv("CARGO_HOME", in_home(".cargo"))},
            {"RUSTUP_HOME", os:getenv("RUSTUP_HOME", in_home(".rustup"))},
            {"TMPDIR", Dir},
            {"LANG", "C.UTF-8"}
        ].

in_home(Name) ->
    filename:join(os:getenv("HOME", "/"), Name).

%% ---------------------------------------------------------------------------------------------
%% Pages

%% Pages with commands.
pages() ->
    ["README.md" | docs()].

documents() ->
    ["README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md" | docs()].

docs() ->
    [_ | _] = Docs = filelib:wildcard("docs/*.md", test_project:root()),
    Docs.

read(Page) ->
    {ok, Text} = file:read_file(filename:join(test_project:root(), Page)),
    Text.

-spec blocks(string()) -> [block()].
blocks(Page) ->
    blocks(Page, read(Page)).

blocks(Page, Text) ->
    Numbered = lists:enumerate(binary:split(Text, <<"\n">>, [global])),
    outside(Numbered, Page).

outside([], _) ->
    [];
outside([{Number, Line} | Lines], Page) ->
    case re:run(Line, "^( *)```(.*)$", [{capture, [1, 2], list}]) of
        {match, [Indent, Info]} ->
            IsInside = fun({_, L}) -> not is_fence(L, Indent) end,
            {Inside, [_ | Rest]} = lists:splitwith(IsInside, Lines),
            Text = [[without(Indent, L), "\n"] || {_, L} <- Inside],
            Block = #{
                page => Page,
                line => Number,
                info => string:lexemes(Info, " "),
                text => iolist_to_binary(Text)
            },
            [Block | outside(Rest, Page)];
        nomatch ->
            outside(Lines, Page)
    end.

is_fence(Line, Indent) ->
    string:trim(Line, trailing) =:= list_to_binary([Indent, "```"]).

without(Indent, Line) ->
    case string:prefix(Line, Indent) of
        nomatch -> Line;
        Rest -> Rest
    end.

where(#{page := Page, line := Line}) ->
    lists:concat([Page, ":", Line]).

lines(Text) ->
    string:lexemes(Text, "\n").

links(Page) ->
    Found = re:run(read(Page), "\\]\\(([^)\\s]+)\\)", [global, {capture, [1], list}]),
    {match, Links} = case Found of nomatch -> {match, []}; _ -> Found end,
    [Link || [Link] <- Links, string:find(Link, "://") =:= nomatch].

leads_somewhere("#" ++ Heading, Page) ->
    lists:member(Heading, headings(Page));
leads_somewhere(Link, Page) ->
    [Path | Heading] = string:split(Link, "#"),
    File = flatten(filename:join(filename:dirname(Page), Path)),
    filelib:is_file(filename:join(test_project:root(), File)) andalso
        (Heading =:= [] orelse lists:member(hd(Heading), headings(File))).

flatten(Path) ->
    lists:foldl(
        fun
            ("..", Above) -> filename:dirname(Above);
            (".", Above) -> Above;
            (Name, Above) -> filename:join(Above, Name)
        end,
        ".",
        filename:split(Path)
    ).

%% The anchor that code hosts make of a heading.
headings(Page) ->
    case re:run(read(Page), "^#+ +(.*)$", [global, multiline, unicode, {capture, [1], list}]) of
        {match, Found} -> [anchor(Heading) || [Heading] <- Found];
        nomatch -> []
    end.

anchor(Heading) ->
    Kept = replace(string:lowercase(Heading), "[^\\w\\- ]", ""),
    replace(Kept, " ", "-").
