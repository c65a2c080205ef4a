%% The command line with real nodes. command_line.rs tests it with peers that are not nodes.
-module(command_line_SUITE).

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1]).
-export([init_per_testcase/2, end_per_testcase/2]).
%% Nodes.
-export([
    ping_answers/1,
    a_hundred_pings_at_once/1,
    pings_leave_nothing_behind/1,
    abstract_sockets_work/1,
    another_cookie_is_refused/1,
    cookies_are_those_that_the_nodes_own_commands_use/1,
    a_cookie_may_end_in_a_line_end/1,
    tools_are_excluded_by_an_allow_list_and_say_so/1,
    a_killed_node_is_stale/1,
    a_stopped_node_runs_into_the_time_limit/1,
    names_lists_who_is_there/1,
    erl_uds_dist_answers/1,
    ready_is_not_alive/1,
    an_application_that_does_not_start_is_not_ready/1,
    a_node_that_does_not_start_is_not_ready/1
]).
%% Calls.
-export([
    rpc_calls/1,
    eval_evaluates/1,
    eval_reads_files_and_stdin/1,
    eval_speaks_elixir/1,
    elixir_that_is_taken_for_erlang_is_recognized/1,
    slips_of_beginners_are_explained/1,
    exceptions_fail/1,
    output_is_forwarded/1,
    input_is_at_its_end/1,
    log_events_are_the_nodes/1,
    large_results_arrive/1,
    terms_of_every_type_arrive/1
]).
%% The life of a command, and reports.
-export([
    the_command_is_hidden/1,
    a_call_ends_with_its_caller/1,
    a_node_that_goes_down_is_no_slow_one/1,
    ticks_keep_a_call_alive/1,
    pid_and_status_tell_of_the_node/1,
    peers_tells_who_is_connected/1,
    peers_answers_beside_a_saturated_connection/1,
    status_tells_how_far_the_boot_is/1,
    another_carrier_cannot_answer/1,
    another_package_of_our_name_cannot_answer/1,
    stop_waits_for_the_end/1
]).
%% Run in the nodes.
-export([remember_terms/2, printed/1, mapped/1]).

-import(test_node, [start/2, start/3, call/4, name/1, os_pid/1, dir/1, expect/2]).

-include_lib("stdlib/include/assert.hrl").

%% Exit codes, as listed in `uds_dist --help`.
-define(RAISED, 1).
-define(DOWN, 1).
-define(REFUSED, 2).
-define(TIMED_OUT, 3).
-define(LOST, 4).
-define(NOT_THERE, 5).
-define(NOT_READY, 6).
-define(UNANSWERED, 7).

-define(PINGS, 100).
-define(TERMS, 500).
-define(LARGE, 16 bsl 20).

-define(JOB, uds_dist_test_job).
-define(APPLICATION, command_line_application).

all() ->
    test_node:cases(?MODULE) -- [init_per_suite, end_per_suite, printed, mapped].

suite() ->
    test_node:suite().

%% Starts one node for all cases that do not change it. It has a directory of its own.
init_per_suite(Config) ->
    Config1 = test_node:init(Config),
    Node = start("shared", Config1),
    [{shared, {Node, dir(Config1)}} | Config1].

end_per_suite(Config) ->
    test_node:cleanup(Config).

init_per_testcase(_Case, Config) ->
    test_node:init(Config).

end_per_testcase(_Case, Config) ->
    test_node:cleanup(Config).

%% ---------------------------------------------------------------------------------------------
%% Nodes

%% The node is named with or without a host, or by its socket.
ping_answers(Config) ->
    {Node, Dir} = proplists:get_value(shared, Config),
    Socket = filename:join(Dir, "shared.sock"),
    assert_prints(pong(Node), shared(["ping", "shared"], Config)),
    assert_prints(pong(Node), shared(["ping", atom_to_list(name(Node))], Config)),
    assert_prints(pong(Node), run(["ping", "shared", "--socket", Socket], Config)),
    assert_fails(?REFUSED, "is another node", shared(["ping", "shared@elsewhere"], Config)),
    assert_fails(?DOWN, "is not there", shared(["ping", "nobody"], Config)),
    assert_fails(?NOT_THERE, "is not there", shared(["pid", "nobody"], Config)).

a_hundred_pings_at_once(Config) ->
    Ping = ["ping", "shared", "--timeout", "60s"],
    Ports = [open(Ping, of_shared(Config)) || _ <- lists:seq(1, ?PINGS)],
    Ended = [test_project:collect(Port) || Port <- Ports],
    ?assertEqual([], [Failed || {Status, _} = Failed <- Ended, Status =/= 0]).

%% A health check every few seconds must not fill the table of atoms.
pings_leave_nothing_behind(Config) ->
    {Node, _} = proplists:get_value(shared, Config),
    Atoms = fun() -> call(Node, erlang, system_info, [atom_count]) end,
    %% A command that comes before the node has seen the end of the last one gets another name.
    Ping = fun(_) ->
        expect_unconnected(Node),
        {0, _} = shared(["ping", "shared"], Config)
    end,
    lists:foreach(Ping, lists:seq(1, 3)),
    Before = Atoms(),
    lists:foreach(Ping, lists:seq(1, 30)),
    ?assert(Atoms() - Before < 10, {Before, Atoms()}).

expect_unconnected(Node) ->
    expect(
        fun() ->
            case call(Node, erlang, nodes, [connected]) of
                [] -> true;
                Others -> Others
            end
        end,
        no_connection
    ).

abstract_sockets_work(Config) ->
    Dir = "@uds_dist_command." ++ os:getpid(),
    Node = start("a", #{dir => Dir}, Config),
    assert_prints(pong(Node), run(["ping", "a"], #{dir => Dir})),
    assert_prints(pong(Node), run(["ping", "a", "--socket", Dir ++ "/a"], Config)),
    {0, Table} = run(["names"], #{dir => Dir}),
    ?assertMatch([_, ["a", _, _, _, "up"]], rows(Table)).

another_cookie_is_refused(Config) ->
    Options = (of_shared(Config))#{cookie => "another"},
    Mismatch = "\\(cookie mismatch\\): this command uses the one from ERLANG_COOKIE;",
    assert_fails(?REFUSED, Mismatch, run(["ping", "shared"], Options)).

%% The command uses the same cookie as the commands of a release.
cookies_are_those_that_the_nodes_own_commands_use(Config) ->
    {Node, _} = proplists:get_value(shared, Config),
    Right = (of_shared(Config))#{cookie => "old", env => [{"RELEASE_COOKIE", "uds_dist_test"}]},
    assert_prints(pong(Node), run(["ping", "shared"], Right)),
    Wrong = (of_shared(Config))#{env => [{"RELEASE_COOKIE", "old"}]},
    Origin = "the one from RELEASE_COOKIE \\(ERLANG_COOKIE has a different one, which is not",
    assert_fails(?REFUSED, Origin, run(["ping", "shared"], Wrong)).

%% As with erl, the end of a line is part of the cookie.
a_cookie_may_end_in_a_line_end(Config) ->
    Cookie = "uds_dist_test\n",
    Node = start("a", #{cookie => Cookie}, Config),
    Options = #{dir => dir(Config), cookie => Cookie},
    assert_prints(pong(Node), run(["ping", "a"], Options)),
    assert_fails(?REFUSED, "cookie mismatch", run(["ping", "a"], Config)).

%% The line says what to add to the list of the node.
tools_are_excluded_by_an_allow_list_and_say_so(Config) ->
    Node = start("a", Config),
    ok = call(Node, net_kernel, allow, [[x@nowhere]]),
    {?REFUSED, Output} = run(["ping", "a"], Config),
    test_node:expect_output_of(unicode:characters_to_binary(Output), "list of allowed nodes"),
    {match, [Host]} = re:run(Output, "net_kernel:allow\\(\\['(.*)'\\]\\)", [{capture, [1], list}]),
    ok = call(Node, net_kernel, allow, [[list_to_atom(Host)]]),
    assert_prints(pong(Node), run(["ping", "a"], Config)).

a_killed_node_is_stale(Config) ->
    Node = start("a", Config),
    Sidecar = test_node:sidecar(Node),
    %% Otherwise, the VM would start another sidecar, which would remove the socket at its end.
    ok = test_node:signal("STOP", os_pid(Node)),
    ok = test_node:signal("KILL", [Sidecar, os_pid(Node)]),
    expect(fun() -> not test_node:is_alive(Sidecar) end, end_of_sidecar),
    assert_fails(?DOWN, "nobody listens at its socket", run(["ping", "a"], Config)),
    {0, Table} = run(["names"], Config),
    ?assertMatch([_, ["a", "-", "-", "-", "stale"]], rows(Table)).

%% The sidecar of the node accepts the command, but the VM does not answer.
a_stopped_node_runs_into_the_time_limit(Config) ->
    Node = start("a", Config),
    ok = test_node:signal("STOP", os_pid(Node)),
    Ping = ["ping", "a", "--timeout", "200ms"],
    assert_fails(?TIMED_OUT, "is there and does not answer", run(Ping, Config)),
    ok = test_node:signal("CONT", os_pid(Node)),
    assert_prints(pong(Node), run(["ping", "a"], Config)).

names_lists_who_is_there(Config) ->
    [A, B] = test_node:start_all(["a", "b"], Config),
    User = string:trim(os:cmd("id -un")),
    Row = fun(Name, Node) -> [Name, integer_to_list(os_pid(Node)), User, "up"] end,
    {0, Table} = run(["names"], Config),
    [Head | Rows] = rows(Table),
    ?assertEqual(["NAME", "PID", "USER", "SINCE", "STATE"], Head),
    ?assertEqual([Row("a", A), Row("b", B)], [lists:delete(lists:nth(4, R), R) || R <- Rows]),
    Started = [calendar:rfc3339_to_system_time(lists:nth(4, R)) || R <- Rows],
    Now = os:system_time(second),
    ?assert(lists:all(fun(Time) -> Now - 60 < Time andalso Time =< Now end, Started)).

rows(Table) ->
    [string:lexemes(Line, "\t") || Line <- string:lexemes(Table, "\n")].

%% The command works with any node that speaks the protocol, such as this one, which has none of our modules.
erl_uds_dist_answers(Config) ->
    case test_node:erl_uds_dist(Config) of
        {ok, Options} ->
            Node = start("a", Options, Config),
            Socket = ["--socket", filename:join(dir(Config), "a")],
            assert_prints(pong(Node), run(["ping", "a" | Socket], Config)),
            assert_prints("6\n", run(["eval", "a", "lists:sum([1, 2, 3])." | Socket], Config));
        {skip, _} = Skip ->
            Skip
    end.

%% While an application starts, the node answers, but is not ready. A command with --wait succeeds once it is.
ready_is_not_alive(Config) ->
    Node = boot_with(when_told, Config),
    App = ["--app", atom_to_list(?APPLICATION)],
    Ping = fun(Options) -> run(["ping", "a", "--timeout", "30s" | Options], Config) end,
    ?assertMatch({0, "pong from a@" ++ _}, Ping(["--wait", "30s"])),
    assert_fails(?NOT_READY, "a@.* answers, but it is starting$", Ping(["--started"])),
    assert_fails(?NOT_READY, "the application .* is not running", Ping(App)),
    Both = "it is starting, the application .* is not running",
    assert_fails(?NOT_READY, Both, Ping(["--started", "--wait", "200ms" | App])),
    Waiting = [
        open(["ping", "a", "--wait", "60s" | Options], options(Config))
     || Options <- [["--started"], App]
    ],
    tell_to_start(Node, Config),
    [?assertMatch({0, "pong from a@" ++ _}, test_project:collect(Port)) || Port <- Waiting],
    ?assertMatch({0, _}, Ping(["--started", "--app", "kernel" | App])),
    assert_fails(?NOT_READY, "the application kern is not running", Ping(["--app", "kern"])),
    Strange = "\"'\x{E9}",
    NotThere = "the application " ++ Strange ++ " is not running",
    assert_fails(?NOT_READY, NotThere, Ping(["--app", Strange])).

%% The node starts without the application.
an_application_that_does_not_start_is_not_ready(Config) ->
    _ = boot_with(failing, Config),
    Ping = fun(Options) -> run(["ping", "a", "--wait", "30s" | Options], Config) end,
    ?assertMatch({0, _}, Ping(["--started"])),
    App = ["--app", atom_to_list(?APPLICATION), "--wait", "1s"],
    assert_fails(?NOT_READY, "is not running", run(["ping", "a" | App], Config)).

%% A node that ends because an application does not start is never ready.
a_node_that_does_not_start_is_not_ready(Config) ->
    Node = boot_with(fatal, Config),
    Waiting = open(["ping", "a", "--started", "--wait", "15s"], options(Config)),
    {Status, _} = test_node:expect_exit(Node),
    ?assertNotEqual(0, Status),
    assert_fails(?DOWN, "is not there", test_project:collect(Waiting)).

%% Starts a node that starts an application when it boots.
boot_with(How, Config) ->
    Boot = ["-s", atom_to_list(?APPLICATION), "boot", atom_to_list(How)],
    test_node:launch(#{name => "a", args => ["-noinput" | Boot]}, Config).

%% The node may answer before the application is registered.
tell_to_start(Node, Config) ->
    test_node:expect_output(Node, "waiting to be told"),
    assert_prints("go\n", run(["eval", "a", atom_to_list(?APPLICATION) ++ " ! go."], Config)).

%% ---------------------------------------------------------------------------------------------
%% Calls

rpc_calls(Config) ->
    {Node, _} = proplists:get_value(shared, Config),
    Rpc = fun(Call) -> shared(["rpc", "shared" | Call], Config) end,
    Green = "\"gr\x{FC}n\"",
    assert_prints([atom_to_list(name(Node)), "\n"], Rpc(["erlang", "node"])),
    assert_prints("6\n", Rpc(["lists", "sum", "[[1, 2, 3]]"])),
    assert_prints("6\n", Rpc(["lists:sum([1, 2, 3])"])),
    assert_prints("[self]\n", Rpc(["erlang", "apply", "[fun() -> [self] end, []]"])),
    assert_prints([Green, "\n"], Rpc(["lists", "append", ["[[", Green, "]]"]])).

eval_evaluates(Config) ->
    Eval = fun(Text) -> shared(["eval", "shared", Text], Config) end,
    assert_prints("3\n", Eval("1 + 2")),
    assert_prints("3\n", Eval("X = 1, X + 2.")),
    assert_prints("6\n", Eval("X = 1. Y = 2 + X.\nF = fun(Z) -> X + Y + Z end. F(2).")),
    assert_prints("-1\n", Eval("-1")),
    assert_prints("ok\n", Eval("")).

eval_reads_files_and_stdin(Config) ->
    File = filename:join(dir(Config), "expressions"),
    ok = file:write_file(File, "%% A comment.\nX = 20.\nX + 1.\n"),
    assert_prints("21\n", shared(["eval", "shared", "--file", File], Config)),
    Options = (of_shared(Config))#{stdin => File},
    assert_prints("21\n", run(["eval", "shared", "-"], Options)).

eval_speaks_elixir(Config) ->
    Nowhere = shared(["eval", "shared", "--elixir", "1"], Config),
    assert_fails(?RAISED, "there is no Elixir in this node; without --elixir, .* Erlang$", Nowhere),
    case os:find_executable("elixir") of
        false ->
            {skip, "no elixir on PATH"};
        Elixir ->
            Lib = os:cmd(Elixir ++ " -e 'IO.puts(:code.lib_dir(:elixir))'"),
            Ebin = filename:join(string:trim(Lib), "ebin"),
            %% Elixir does not start with the standard input and output of a test.
            _ = test_node:launch(#{name => "a", args => ["-noinput", "-pa", Ebin]}, Config),
            Start = "{ok, _} = application:ensure_all_started(elixir), ok.",
            assert_prints("ok\n", run(["eval", "a", Start, "--wait", "30s"], Config)),
            Eval = fun(Text) -> run(["eval", "a", "--elixir" | Text], Config) end,
            Rpc = fun(Call) -> run(["rpc", "a" | Call], Config) end,
            assert_prints("6\n", Eval(["Enum.sum([1, 2, 3])"])),
            assert_prints("6\n", Rpc(["Enum.sum([1, 2, 3])", "--elixir"])),
            assert_prints("6\n", Rpc(["--elixir", "Enum", "sum", "[[1, 2, 3]]"])),
            assert_prints("%{a: :b}\n", Rpc(["--elixir", ":maps", "from_list", "[[a: :b]]"])),
            %% A node with Elixir prints results as Elixir terms, even for calls in Erlang.
            assert_prints("{:ok, nil, \"b\"}\n", Rpc(["{ok, nil, <<\"b\">>}"])),
            assert_prints(":a\n", Rpc(["lists", "nth", "[1, [a]]"])),
            assert_fails(?RAISED, "\\*\\* \\(ArithmeticError\\) bad argument", Rpc(["1 / 0"])),
            assert_prints("hello\n%{a: \"b\"}\n", Eval(["IO.puts(\"hello\"); %{a: \"b\"}"])),
            assert_prints("[1,null]\n", Eval(["--json", "{1, nil}"])),
            assert_fails(?RAISED, "\\*\\* \\(ArithmeticError\\) bad argument", Eval(["1 / 0"])),
            assert_fails(?RAISED, "\\*\\* \\(TokenMissingError\\)", Eval(["(1"])),
            assert_fails(?RAISED, "This looks like Elixir, which --elixir is for", Rpc([":ok"])),
            compiler_speaks_to_the_caller(Config)
    end.

%% Messages of Elixir's compiler do not go to the log of the node, and have no colours.
compiler_speaks_to_the_caller(Config) ->
    Eval = fun(Options) -> run(["eval", "a", "--elixir" | Options], Config) end,
    {0, Collects} = Eval(["function_exported?(Code, :with_diagnostics, 2)"]),
    case Collects of
        "true\n" ->
            assert_prints("1\n", Eval(["Application.put_env(:elixir, :ansi_enabled, true); 1"])),
            {0, Warned} = Eval([":\"foo\""]),
            ?assertMatch("1:1: warning: found quoted atom" ++ _, Warned),
            ?assertEqual(":foo", lists:last(string:lexemes(Warned, "\n"))),
            {?RAISED, Undefined} = Eval(["x = 1\nx + y"]),
            ?assertEqual(
                "2: error: undefined variable \"y\"\n** (CompileError) nofile: cannot compile file\n",
                Undefined
            ),
            {?RAISED, Missing} = Eval(["if true do"]),
            ?assertEqual(nomatch, re:run(Missing, "x1b|code\\.ex|elixir\\.erl", [unicode])),
            {?RAISED, Raised} = Eval(["Enum.foo([1])"]),
            ?assertEqual(nomatch, re:run(Raised, "erl_eval|elixir\\.erl|parallel_checker", [unicode]));
        "false\n" ->
            %% Elixir before 1.15 writes them to the node's standard error.
            assert_fails(?RAISED, "CompileError", Eval(["x = 1\nx + y"]))
    end.

%% Elixir is recognized by its syntax, or by the name of a module.
elixir_that_is_taken_for_erlang_is_recognized(Config) ->
    Hint = "This looks like Elixir, but there is none in this node: write Erlang",
    Fails = fun(Call) ->
        {?RAISED, Text} = shared(Call, Config),
        string:find(Text, Hint) =/= nomatch
    end,
    Eval = fun(Text) -> Fails(["eval", "shared", Text]) end,
    Elixir = [
        "Enum.sum([1])",
        "x = :ok",
        ":hola",
        "f a: 1",
        "\"a\" <> \"b\"",
        "[1] |> hd",
        "fn x -> x end",
        "%{a: 1}",
        "a != b",
        "Enum.map([1], &(&1 + 1))",
        "IO.puts \"x\""
    ],
    ?assertEqual([], [Text || Text <- Elixir, not Eval(Text)]),
    ?assert(Fails(["rpc", "shared", "Enum", "sum", "[[1]]"])),
    ?assert(Fails(["rpc", "shared", "lists", "sum", "[%{}]"])),
    Erlang = [
        "1 +",
        "lists:map(fun(X) -> X end [1])",
        "\"text",
        "[X || X <- [1]",
        "#{a => 1",
        "A#r{b = 1",
        "receive X when X /= 1 -> X end end",
        "lists:foldl(fun(X, Y) -> X + Y end, 0, [1)"
    ],
    ?assertEqual([], [Text || Text <- Erlang, Eval(Text)]),
    ?assertNot(Fails(["rpc", "shared", "nomodule", "f"])),
    assert_prints("ok\n", shared(["eval", "shared", "% a comment"], Config)).

slips_of_beginners_are_explained(Config) ->
    Rpc = fun(Words, Call) ->
        {?RAISED, Text} = shared(["rpc", "shared" | Call], Config),
        ?assertNotEqual(nomatch, string:find(Text, Words), Text)
    end,
    Rpc("A call has parentheses: erlang:nodes()", ["erlang:nodes"]),
    Rpc("words of their own, as in: erlang nodes", ["erlang", "nodes()"]),
    Rpc("words of their own, as in: erlang nodes", ["erlang:memory", "total"]),
    Rpc("lists:sum/1 takes one argument, and", ["lists", "sum", "[1, 2, 3]"]),
    Rpc("write '[[1, 2, 3]]'", ["lists", "sum", "[1, 2, 3]"]),
    Rpc("write '[\"hello~n\"]'", ["io", "format", "\"hello~n\""]),
    Rpc("foo is not a list of arguments: write '[foo]'", ["erlang", "is_atom", "foo"]),
    %% There is no advice if it would be wrong.
    {?RAISED, Without} = shared(["rpc", "shared", "lists", "sum"], Config),
    ?assertEqual("** exception error: undefined function lists:sum/0\n", Without).

%% Exceptions look like those in the shell, without frames of the command's own code.
exceptions_fail(Config) ->
    Eval = fun(Text) -> shared(["eval", "shared", Text], Config) end,
    Fails = fun(Words, Text) -> assert_fails(?RAISED, Words, Eval(Text)) end,
    Fails("^\\*\\* exception error: no match of right hand side value 2$", "1 = 2."),
    Fails("^\\*\\* exception throw: ball$", "throw(ball)"),
    Fails("^\\*\\* exception exit: reason$", "exit(reason)"),
    Fails("in call from lists:map/2", "lists:map(fun(X) -> 1 / X end, [0])"),
    Fails("undefined function nomodule:f/0", "nomodule:f()"),
    Fails("^2:3: syntax error before: ", "1 +\n  )."),
    Fails("^1:[12]: unterminated", "\"text"),
    Fails("the process that ran the code was ended: killed", "exit(self(), kill), timer:sleep(9000)"),
    %% Everything is parsed before the first expression is evaluated.
    {?RAISED, Read} = Eval("io:put_chars(\"begun\"). 1 + ."),
    ?assertEqual(nomatch, string:find(Read, "begun")),
    {?RAISED, Trace} = Eval("lists:nth(0, [])"),
    ?assertEqual(nomatch, string:find(Trace, "erl_eval")).

output_is_forwarded(Config) ->
    Eval = fun(Text) -> shared(["eval", "shared", Text], Config) end,
    assert_prints(
        "gr\x{FC}n \x{3A9}\n\x{FC}done\n",
        Eval(
            "io:format(\"~ts~n\", [\"gr\x{FC}n \x{3A9}\"]), "
            "io:put_chars(<<\"\x{FC}\"/utf8>>), done"
        )
    ),
    %% Output of processes that the job has started is printed too, and so are several I/O requests in one.
    assert_prints(
        "a\nnormal\n",
        Eval(
            "spawn_monitor(fun() -> io:requests([{put_chars, unicode, \"a\"}, nl]) end), "
            "receive {'DOWN', _, _, _, Reason} -> Reason end"
        )
    ),
    %% Old functions write Latin-1.
    assert_prints("\x{FC}ok\n", Eval("file:write(group_leader(), <<252>>)")),
    assert_fails(?RAISED, "exception error", Eval("io:put_chars(<<255>>)")).

input_is_at_its_end(Config) ->
    Text =
        "[io:get_line(\"> \"), io:get_chars(\"> \", 3), io:read(\"> \"), "
        "proplists:get_value(encoding, io:getopts()), io:setopts([binary]), io:columns()]",
    Result = shared(["eval", "shared", Text], Config),
    assert_prints("[eof,eof,eof,unicode,ok,{error,enotsup}]\n", Result).

%% Log events of a process whose group leader is on another node would be dropped.
log_events_are_the_nodes(Config) ->
    Node = start("a", Config),
    assert_prints("ok\n", run(["eval", "a", "logger:error(\"said by the job\")."], Config)),
    test_node:expect_output(Node, "said by the job").

%% Large results are printed as JSON, as output, and in the lines of the shell.
large_results_arrive(Config) ->
    {Node, _} = proplists:get_value(shared, Config),
    Large = binary:copy(<<"x">>, ?LARGE),
    Make = lists:flatten(io_lib:format("binary:copy(<<\"x\">>, ~b)", [?LARGE])),
    Long = lists:seq(1, 100000),
    Eval = fun(Text) ->
        Arguments = ["eval", "shared", "--timeout", "60s" | Text],
        hash(open(Arguments, of_shared(Config)))
    end,
    ?assertEqual(erlang:md5(["\"", Large, "\"\n"]), Eval(["--json", Make])),
    ?assertEqual(erlang:md5([Large, "ok\n"]), Eval(["io:put_chars(" ++ Make ++ ")"])),
    Printed = call(Node, ?MODULE, printed, [Long]),
    ?assertEqual(erlang:md5([Printed, "\n"]), Eval(["lists:seq(1, 100000)"])).

%% A digest of the output of a command.
hash(Port) ->
    hash(Port, erlang:md5_init()).

hash(Port, Context) ->
    receive
        {Port, {data, Bytes}} -> hash(Port, erlang:md5_update(Context, Bytes));
        {Port, {exit_status, 0}} -> erlang:md5_final(Context)
    end.

%% Random terms that the node has created are printed as by its shell, and in JSON according to the mapping.
terms_of_every_type_arrive(Config) ->
    {Node, _} = proplists:get_value(shared, Config),
    Seed = erlang:unique_integer([positive]),
    test_runner:note("seed ~b", [Seed]),
    ok = call(Node, ?MODULE, remember_terms, [Seed, ?TERMS]),
    Terms = "persistent_term:get(" ++ atom_to_list(?MODULE) ++ ")",
    [
        begin
            Expected = [call(Node, ?MODULE, Format, [remembered]), "\n"],
            assert_prints(Expected, shared(["eval", "shared", Terms | Option], Config))
        end
     || {Format, Option} <- [{printed, []}, {mapped, ["--json"]}]
    ].

%% In the node.
remember_terms(Seed, Count) ->
    Random = rand:seed_s(exsss, Seed),
    {Terms, _} = lists:mapfoldl(fun(_, R) -> random_term(3, R) end, Random, lists:seq(1, Count)),
    persistent_term:put(?MODULE, Terms).

printed(remembered) -> printed(persistent_term:get(?MODULE));
printed(Term) -> unicode:characters_to_binary(io_lib:format("~tp", [Term])).

random_term(0, R) ->
    random_leaf(R);
random_term(Depth, R) ->
    {Kind, R1} = rand:uniform_s(8, R),
    {Length, R2} = rand:uniform_s(4, R1),
    {Terms, R3} = lists:mapfoldl(
        fun(_, S) -> random_term(Depth - 1, S) end, R2, lists:seq(1, Length)
    ),
    case Kind of
        1 -> {Terms, R3};
        2 -> {list_to_tuple(Terms), R3};
        3 -> {maps:from_list(lists:zip(Terms, lists:reverse(Terms))), R3};
        4 when Length > 1 -> {lists:droplast(Terms) ++ tail(lists:last(Terms)), R3};
        _ -> random_leaf(R3)
    end.

%% The tail of an improper list.
tail(Term) when is_list(Term) -> {Term};
tail(Term) -> Term.

random_leaf(R) ->
    {Bits, R1} = rand:uniform_s(200, R),
    {Number, R2} = rand:uniform_s(1 bsl Bits, R1),
    Leaves = [
        Number,
        -Number,
        Number rem 256,
        %% These floats look the same in all formats.
        (Number rem 8000 - 4000) / 8,
        <<Number:Bits>>,
        <<Number:(8 * (Bits div 8))>>,
        unicode:characters_to_binary([32 + Number rem 16#D000, $", $\\, $\n]),
        "text",
        [Number rem 256, 255],
        lists:nth(1 + Number rem 7, [true, false, null, nil, undefined, '', '\x{E9} \x{3A9}']),
        [],
        {},
        #{},
        self(),
        hd(erlang:ports()),
        make_ref(),
        fun lists:map/2,
        fun() -> R end
    ],
    {Which, R3} = rand:uniform_s(length(Leaves), R2),
    {lists:nth(Which, Leaves), R3}.

%% In the node: the mapping to JSON that `uds_dist eval --help` describes.
mapped(remembered) ->
    unicode:characters_to_binary(mapped(persistent_term:get(?MODULE)));
mapped(Term) when is_integer(Term) -> integer_to_list(Term);
mapped(Term) when is_float(Term) -> float_to_list(Term, [short]);
mapped(Term) when is_boolean(Term) -> atom_to_list(Term);
mapped(Term) when Term =:= null; Term =:= nil; Term =:= undefined -> "null";
mapped(Term) when is_atom(Term) -> quoted(atom_to_list(Term));
mapped(Term) when is_bitstring(Term) ->
    case is_binary(Term) andalso unicode:characters_to_list(Term) of
        Text when is_list(Text) -> quoted(Text);
        _ -> quoted(io_lib:format("~w", [Term]))
    end;
mapped(Term) when is_list(Term) -> ["[", lists:join(",", elements(Term)), "]"];
mapped(Term) when is_tuple(Term) -> mapped(tuple_to_list(Term));
mapped(Term) when is_map(Term) ->
    Pairs = [[key(Key), ":", mapped(Value)] || {Key, Value} <- maps:to_list(Term)],
    ["{", lists:join(",", Pairs), "}"];
mapped(Term) ->
    quoted(io_lib:format("~w", [Term])).

elements([First | Rest]) -> [mapped(First) | elements(Rest)];
elements([]) -> [];
elements(Tail) -> [mapped(Tail)].

key(Key) when is_atom(Key) ->
    quoted(atom_to_list(Key));
key(Key) ->
    case unicode:characters_to_list(mapped(Key)) of
        "\"" ++ _ = String -> String;
        Text -> quoted(Text)
    end.

quoted(Text) ->
    Escape = fun
        ($") -> "\\\"";
        ($\\) -> "\\\\";
        ($\n) -> "\\n";
        ($\r) -> "\\r";
        ($\t) -> "\\t";
        (Char) ->
            case is_active(Char) of
                true -> io_lib:format("\\u~4.16.0b", [Char]);
                false -> Char
            end
    end,
    ["\"", lists:map(Escape, lists:flatten(Text)), "\""].

%% Control characters, and characters that change the direction of the text around them.
is_active(Char) ->
    Ranges = [
        {0, 31},
        {127, 159},
        {16#61C, 16#61C},
        {16#200E, 16#200F},
        {16#2028, 16#202E},
        {16#2066, 16#2069}
    ],
    lists:any(fun({First, Last}) -> First =< Char andalso Char =< Last end, Ranges).

%% ---------------------------------------------------------------------------------------------
%% The life of a command, and reports

%% Other nodes are not told of the command.
the_command_is_hidden(Config) ->
    {Node, _} = proplists:get_value(shared, Config),
    expect_unconnected(Node),
    Text = "{nodes(), length(nodes(hidden)), node(group_leader()) =:= node()}",
    assert_prints("{[],1,true}\n", shared(["eval", "shared", Text], Config)).

%% A call is ended when its command ends or times out.
a_call_ends_with_its_caller(Config) ->
    {Node, _} = proplists:get_value(shared, Config),
    Port = open(["eval", "shared", job(), "--timeout", "60s"], of_shared(Config)),
    expect_job(Node),
    {os_pid, OsPid} = erlang:port_info(Port, os_pid),
    %% A shell that runs these tests in the background makes all of them ignore SIGINT.
    ok = test_node:signal("TERM", OsPid),
    expect(fun() -> call(Node, erlang, whereis, [?JOB]) =:= undefined end, end_of_job),
    %% The timeout leaves a busy machine the time for the handshake.
    Late = open(["eval", "shared", job(), "--timeout", "5s"], of_shared(Config)),
    expect_job(Node),
    assert_fails(?TIMED_OUT, "did not answer in time", test_project:collect(Late)),
    expect(fun() -> call(Node, erlang, whereis, [?JOB]) =:= undefined end, end_of_job).

job() ->
    "register(" ++ atom_to_list(?JOB) ++ ", self()), timer:sleep(infinity)".

expect_job(Node) ->
    expect(fun() -> is_pid(call(Node, erlang, whereis, [?JOB])) end, job).

a_node_that_goes_down_is_no_slow_one(Config) ->
    Node = start("a", Config),
    Port = open(["eval", "a", job(), "--timeout", "60s"], options(Config)),
    expect_job(Node),
    ok = test_node:kill(Node),
    assert_fails(?LOST, "it went down", test_project:collect(Port)).

%% The job takes twice as long as the tick time, after which the node disconnects a silent peer.
ticks_keep_a_call_alive(Config) ->
    _ = start("a", #{args => ["-kernel", "net_ticktime", "4"]}, Config),
    assert_prints("done\n", run(["eval", "a", "timer:sleep(8000), done."], Config)).

pid_and_status_tell_of_the_node(Config) ->
    {Node, Dir} = proplists:get_value(shared, Config),
    OsPid = integer_to_list(os_pid(Node)),
    Release = erlang:system_info(otp_release),
    assert_prints([OsPid, "\n"], shared(["pid", "shared"], Config)),
    {0, Status} = shared(["status", "shared"], Config),
    Rows = [{{Section, Label}, Text} || [Section, Label, Text] <- rows(Status)],
    Row = fun(Section, Label) -> proplists:get_value({Section, Label}, Rows) end,
    ?assertEqual(atom_to_list(name(Node)), Row("Node", "name")),
    ?assertEqual(OsPid, Row("Node", "process")),
    ?assertEqual("started", Row("Node", "boot")),
    ?assertMatch({match, _}, re:run(Row("Node", "Erlang/OTP"), ["^", Release, " \\(ERTS "])),
    ?assertMatch({match, _}, re:run(Row("Use", "processes"), "^\\d+ of \\d+ \\(0 %\\)$")),
    ?assertEqual(filename:join(Dir, "shared.sock"), Row("Socket", "listens at")),
    ?assertEqual("its own user and root", Row("Socket", "admits")),
    ?assertEqual(integer_to_list(test_node:sidecar(Node)), Row("Sidecar", "process")),
    ?assertMatch("up for " ++ _, Row("Sidecar", "status")),
    ?assertNotEqual(undefined, Row("Applications", "kernel")),
    %% The command itself is not listed as a peer.
    ?assertEqual([], [Words || ["Peers" | _] = Words <- rows(Status)]),
    {0, Json} = shared(["status", "shared", "--json"], Config),
    ?assertEqual(keys_of("status"), keys(Json)),
    Answer = [Json, "\n"],
    test_node:expect_output_of(Answer, ["\"pid\":", OsPid, ","]),
    test_node:expect_output_of(Answer, ["\"otp\":\"", Release, "\""]),
    test_node:expect_output_of(Answer, "\"peers\":\\[\\],\"unanswered\":null}$").

%% All keys of the JSON in their order, because scripts rely on them. The keys below applications vary.
keys(Json) ->
    Shorter = re:replace(Json, "\"applications\":{[^}]*}", "\"applications\":0", [{return, list}]),
    {match, Keys} = re:run(Shorter, "\"(\\w+)\":", [global, {capture, [1], list}]),
    lists:append(Keys).

%% The keys in the tables of docs/command-line.md.
keys_of(Command) ->
    {ok, Page} = file:read_file(filename:join(test_project:root(), "docs/command-line.md")),
    [_, Rest] = string:split(Page, ["### Keys of `", Command, " --json`"]),
    [Section | _] = string:split(Rest, "\n#"),
    {match, Rows} = re:run(Section, "^\\| (`[^|]*`) \\|", [
        global, multiline, {capture, [1], list}
    ]),
    {match, Keys} = re:run(lists:append(Rows), "`(\\w+)`", [global, {capture, [1], list}]),
    lists:append(Keys).

%% Each node shows the connection from its own side.
peers_tells_who_is_connected(Config) ->
    [A, B] = test_node:start_all(["a", "b"], Config),
    pong = call(A, net_adm, ping, [name(B)]),
    User = string:trim(os:cmd("id -un")),
    Peers = fun(Name) ->
        {0, Table} = run(["peers", Name], Config),
        [["NODE", "DIR", "VIA", "USER", "PID" | _] | Rows] = rows(Table),
        [{Node, Direction, Via, Owner, Pid, lists:last(R)} || [Node, Direction, Via, Owner, Pid | R] <- Rows]
    end,
    Sidecar = fun(Node) -> integer_to_list(test_node:sidecar(Node)) end,
    Transport = atom_to_list(test_node:transport(Config)),
    Row = fun(Node, Direction) ->
        {atom_to_list(name(Node)), Direction, Transport, User, Sidecar(Node), "up"}
    end,
    ?assertEqual([Row(B, "out")], Peers("a")),
    ?assertEqual([Row(A, "in")], Peers("b")),
    assert_prints([atom_to_list(name(B)), "\n"], run(["peers", "a", "-q"], Config)),
    {0, Json} = run(["peers", "a", "--json"], Config),
    ?assertEqual(keys_of("peers"), keys(Json)),
    {0, Status} = run(["status", "a"], Config),
    ?assertMatch([["Peers", "NODE" | _], ["Peers" | _]], [R || ["Peers" | _] = R <- rows(Status)]).

%% The answer does not depend on processes that carry messages, so a peer that does not read cannot delay it.
peers_answers_beside_a_saturated_connection(Config) ->
    [A, B] = test_node:start_all(["a", "b"], Config),
    pong = call(A, net_adm, ping, [name(B)]),
    ok = test_node:signal("STOP", [os_pid(B), test_node:sidecar(B)]),
    Flood = io_lib:format(
        "[spawn(fun F() -> {x, '~s'} ! binary:copy(<<0>>, 100000), F() end) || _ <- [1, 2, 3]], ok.",
        [name(B)]
    ),
    assert_prints("ok\n", run(["eval", "a", lists:flatten(Flood)], Config)),
    test_node:expect(
        fun() ->
            {0, Table} = run(["peers", "a"], Config),
            [_, Row] = rows(Table),
            Queued = lists:nth(9, Row),
            re:run(Queued, "\\((\\d{3,}|[1-9]\\d) %\\)", [{capture, none}]) =:= match orelse Queued
        end,
        full_queue
    ),
    ok = test_node:signal("CONT", [os_pid(B), test_node:sidecar(B)]).

status_tells_how_far_the_boot_is(Config) ->
    Node = boot_with(when_told, Config),
    Status = fun() -> run(["status", "a", "--wait", "30s"], Config) end,
    {0, Starting} = Status(),
    ?assert(lists:member(["Node", "boot", "starting"], rows(Starting))),
    tell_to_start(Node, Config),
    {0, _} = run(["ping", "a", "--started", "--wait", "30s"], Config),
    {0, Started} = Status(),
    ?assert(lists:member(["Node", "boot", "started"], rows(Started))),
    ?assert(lists:member(["Applications", atom_to_list(?APPLICATION), "-"], rows(Started))).

%% One line says what is missing and why.
another_carrier_cannot_answer(Config) ->
    case test_node:erl_uds_dist(Config) of
        {ok, Options} ->
            [A, B] = [start(Name, Options, Config) || Name <- ["a", "b"]],
            pong = call(A, net_adm, ping, [name(B)]),
            Socket = ["--socket", filename:join(dir(Config), "a")],
            cannot_answer("its carrier is erl_uds, not uds", Socket, Config),
            {0, Status} = run(["status", "a" | Socket], Config),
            Connected = ["Node", "connected to", atom_to_list(name(B))],
            ?assert(lists:member(Connected, rows(Status)), Status),
            {0, Json} = run(["status", "a", "--json" | Socket], Config),
            test_node:expect_output_of([Json, "\n"], "\"carrier\":null,\"peers\":null,\"unanswered\":\"");
        {skip, _} = Skip ->
            Skip
    end.

%% OTP's example carrier stands in for the other package.
another_package_of_our_name_cannot_answer(Config) ->
    case test_node:erl_uds_dist(Config) of
        {ok, #{args := ["-pa", Ebin]} = Options} ->
            Source = filename:join([
                code:lib_dir(kernel), "examples/erl_uds_dist/src/erl_uds_dist.erl"
            ]),
            {ok, Text} = file:read_file(Source),
            Renamed = re:replace(Text, "-module\\(erl_uds_dist\\)", "-module(uds_dist)"),
            File = filename:join(Ebin, "uds_dist.erl"),
            ok = file:write_file(File, Renamed),
            {ok, uds_dist} = compile:file(File, [{outdir, Ebin}]),
            _ = start("a", Options#{carrier => ["-proto_dist", "uds", "-no_epmd"]}, Config),
            Socket = ["--socket", filename:join(dir(Config), "a")],
            cannot_answer("its uds_dist is older than this command, or another", Socket, Config);
        {skip, _} = Skip ->
            Skip
    end.

cannot_answer(Why, Socket, Config) ->
    assert_fails(?UNANSWERED, ["cannot answer, since ", Why], run(["peers", "a" | Socket], Config)),
    {0, Status} = run(["status", "a" | Socket], Config),
    test_node:expect_output_of([Status, "\n"], ["^Socket\tcarrier\tcannot be shown, since ", Why]),
    test_node:expect_output_of([Status, "\n"], "^Node\tboot\tstarted$").

%% The name of the node is free when the command returns.
stop_waits_for_the_end(Config) ->
    _ = start("a", Config),
    ?assertEqual({0, ""}, run(["stop", "a"], Config)),
    assert_fails(?DOWN, "is not there", run(["ping", "a"], Config)),
    ?assertEqual([], sockets(Config)),
    Node = start("a", Config),
    assert_prints(pong(Node), run(["ping", "a"], Config)).

sockets(Config) ->
    {ok, Files} = file:list_dir(dir(Config)),
    [File || "a.sock" ++ _ = File <- Files].

%% ---------------------------------------------------------------------------------------------

shared(Arguments, Config) ->
    run(Arguments, of_shared(Config)).

of_shared(Config) ->
    {_, Dir} = proplists:get_value(shared, Config),
    #{dir => Dir}.

options(Config) when is_list(Config) -> #{dir => dir(Config)};
options(Options) -> Options.

%% Runs a command. Returns its exit code and its output, including standard error. The default time limit for an
%% answer is too short for a busy machine.
run(Arguments, ConfigOrOptions) ->
    Patient =
        case hd(Arguments) =:= "names" orelse lists:member("--timeout", Arguments) of
            true -> Arguments;
            false -> Arguments ++ ["--timeout", "60s"]
        end,
    test_project:collect(open(Patient, options(ConfigOrOptions))).

open(Arguments, Options = #{dir := Dir}) ->
    Script = "exec \"$0\" \"$@\" 2>&1 <" ++ maps:get(stdin, Options, "/dev/null"),
    Words = [unicode:characters_to_binary(Argument) || Argument <- Arguments],
    open_port({spawn_executable, "/bin/sh"}, [
        {args, ["-c", Script, test_project:command_line() | Words]},
        {env, [
            {"UDS_DIST_DIR", Dir},
            {"ERLANG_COOKIE", maps:get(cookie, Options, "uds_dist_test")},
            {"RELEASE_COOKIE", false},
            {"HOME", false}
            | maps:get(env, Options, [])
        ]},
        exit_status,
        binary
    ]).

pong(Node) ->
    ["pong from ", atom_to_list(name(Node)), "\n"].

assert_prints(Expected, Result) ->
    ?assertEqual({0, unicode:characters_to_list(Expected)}, Result).

assert_fails(Code, Words, {Status, Output}) ->
    ?assertEqual(Code, Status, Output),
    test_node:expect_output_of(unicode:characters_to_binary(Output), Words).
