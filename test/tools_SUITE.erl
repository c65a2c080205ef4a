%% Developers' tools that start nodes, find them, or inspect them. The table in docs/applications.md says what each of
%% them needs.
-module(tools_SUITE).

-export([all/0, suite/0, init_per_testcase/2, end_per_testcase/2]).
-export([
    remote_shell_with_a_name/1,
    remote_shell_with_nothing_but_the_node/1,
    peer_connects_to_its_origin/1,
    peer_inherits_flags_of_the_environment/1,
    local_cluster_starts_members/1,
    common_test_runs_as_a_node/1,
    rebar3_shell_is_a_node/1,
    rebar3_ct_runs_as_a_node/1,
    launchers_need_erl_aflags/1,
    iex_opens_a_remote_shell/1,
    libcluster_finds_nodes/1,
    nodes_look_into_each_other/1,
    release_handler_upgrades_a_running_node/1
]).
%% Run in nodes.
-export([trace/2, cover/2, load_everywhere/2]).

-import(test_node, [start/2, call/4, name/1, dir/1]).

-include_lib("stdlib/include/assert.hrl").

%% Milliseconds in which a peer boots, even on a busy machine.
-define(BOOT, 50000).

all() ->
    test_node:cases(?MODULE).

suite() ->
    test_node:suite().

init_per_testcase(_Case, Config) ->
    test_node:init(Config).

end_per_testcase(_Case, Config) ->
    test_node:cleanup(Config).

remote_shell_with_a_name(Config) ->
    remote_shell("-sname b", Config).

%% The remote shell gets its name from the node.
remote_shell_with_nothing_but_the_node(Config) ->
    remote_shell("", Config).

remote_shell(Name, Config) ->
    A = atom_to_list(name(start("a", Config))),
    {0, _} = test_project:terminal(
        lists:join(" ", ["exec", test_node:erl(), flags(Config), Name, "-remsh", A]),
        [
            {"\\(" ++ A ++ "\\)1> ", "{shell_of, node()}.\n"},
            {"{shell_of,'?" ++ A, ""},
            {"\\(" ++ A ++ "\\)2> ", [7]},
            {"--> ", "q\n"}
        ],
        #{dir => dir(Config)}
    ),
    ?assertEqual(["a.sock"], filelib:wildcard("*.sock", dir(Config))).

%% By default, a peer is controlled over distribution.
peer_connects_to_its_origin(Config) ->
    A = start("a", Config),
    Options = #{name => peer, args => string:lexemes(flags(Config), " "), peer_down => continue},
    {ok, Peer, Node} = call(A, peer, start, [Options#{wait_boot => ?BOOT}]),
    ?assertEqual([Node], call(A, erlang, nodes, [])),
    ?assertEqual({ok, ["a", "peer"]}, call(A, erpc, call, [Node, uds_dist, names, []])),
    ok = call(A, peer, stop, [Peer]),
    ?assertEqual([], call(A, erlang, nodes, [])).

%% Each has its own arguments, but both read the environment.
peer_inherits_flags_of_the_environment(Config) ->
    A = start_with_environment("a", #{}, Config),
    {ok, Peer, Node} = call(A, peer, start, [#{name => peer, peer_down => continue, wait_boot => ?BOOT}]),
    ?assertEqual([Node], call(A, erlang, nodes, [])),
    ?assertEqual({ok, ["a", "peer"]}, call(A, erpc, call, [Node, uds_dist, names, []])),
    ok = call(A, peer, stop, [Peer]).

%% Does the same as LocalCluster.start_link/2, whose members load their modules from their origin. Its server has a
%% fixed port, so the nodes have a network of their own.
local_cluster_starts_members(Config) ->
    Namespace = ["unshare", "-n", "sh", "-c", "ip link set lo up && exec \"$@\"", "sh"],
    case test_project:output("exec unshare -n ip link set lo up", #{}) of
        {0, _} ->
            A = start_with_environment("a@127.0.0.1", #{long => true, prefix => Namespace}, Config),
            {ok, _} = call(A, erl_boot_server, start, [[{127, 0, 0, 1}]]),
            Cookie = atom_to_list(call(A, erlang, get_cookie, [])),
            Member = #{
                host => "127.0.0.1",
                name => member1,
                args => ["-loader", "inet", "-hosts", "127.0.0.1", "-setcookie", Cookie],
                peer_down => continue,
                wait_boot => ?BOOT
            },
            {ok, Peer, Node} = call(A, peer, start, [Member]),
            ?assertEqual(['member1@127.0.0.1'], call(A, erlang, nodes, [])),
            ?assertEqual({ok, ["a", "member1"]}, call(A, erpc, call, [Node, uds_dist, names, []])),
            ok = call(A, peer, stop, [Peer]);
        {_, Error} ->
            {skip, "only root can make a network namespace, by ip(8): " ++ Error}
    end.

%% The cookie is in the usual file, because a VM with two -setcookie flags uses neither.
start_with_environment(Name, Options, Config) ->
    Cookie = filename:join(dir(Config), ".erlang.cookie"),
    ok = file:write_file(Cookie, "uds_dist_test"),
    ok = file:change_mode(Cookie, 8#400),
    Environment = #{
        carrier => [], dir => none, env => [{"ERL_AFLAGS", carrier(Config)}, {"HOME", dir(Config)}]
    },
    test_node:start(Name, maps:merge(Options, Environment), Config).

common_test_runs_as_a_node(Config) ->
    A = name(start("a", Config)),
    Suite = [
        "-module(node_SUITE).\n-export([all/0, is_connected/1]).\nall() -> [is_connected].\n",
        io_lib:format("is_connected(_) -> pong = net_adm:ping('~s').~n", [A])
    ],
    ok = file:write_file(filename:join(dir(Config), "node_SUITE.erl"), Suite),
    {0, Output} = test_project:output(
        "exec \"$0\" -noinput -sname ct -dir . -suite node_SUITE -logdir .",
        #{
            dir => dir(Config),
            argument => filename:join(filename:dirname(test_node:erl()), "ct_run"),
            env => [{"ERL_FLAGS", flags(Config)}, {"HOME", dir(Config)}]
        }
    ),
    test_node:expect_output_of(Output, "1 ok, 0 failed").

%% rebar3 starts an epmd if net_adm:names() fails. Its prompt appears while it still starts; a q() that comes then
%% sometimes makes it fail, with every carrier. Afterwards, init:get_status() says that the node has started.
rebar3_shell_is_a_node(Config) ->
    A = atom_to_list(name(start("a", Config))),
    Dir = rebar3_project(Config),
    {0, Output} = test_project:terminal(
        "exec rebar3 shell --sname shell",
        [
            {"shell@[^)]*\\)1> ", ["net_adm:ping('", A, "').\n"]},
            {"pong", ""},
            {"shell@[^)]*\\)2> ", [
                "(fun Wait() -> case init:get_status() of {started, started} -> complete; ",
                "_ -> timer:sleep(20), Wait() end end)().\n"
            ]},
            {"complete\r", ""},
            {"shell@[^)]*\\)3> ", "q().\n"}
        ],
        #{dir => Dir, env => rebar3_env(Config)}
    ),
    %% When a shell ends, OTP 25 sometimes complains of the driver of its own terminal.
    Errors = [
        Line
     || Line <- string:split(Output, "\n", all),
        string:find(Line, "rror") =/= nomatch,
        string:find(Line, "driver gone away without deselecting") =:= nomatch
    ],
    ?assertEqual([], Errors).

rebar3_ct_runs_as_a_node(Config) ->
    A = name(start("a", Config)),
    Dir = rebar3_project(Config),
    Suite = [
        "-module(node_SUITE).\n-export([all/0, is_connected/1]).\nall() -> [is_connected].\n",
        io_lib:format("is_connected(_) -> pong = net_adm:ping('~s').~n", [A])
    ],
    ok = filelib:ensure_dir(filename:join(Dir, "test/x")),
    ok = file:write_file(filename:join(Dir, "test/node_SUITE.erl"), Suite),
    {0, Output} = test_project:output("exec rebar3 ct --sname ct", #{
        dir => Dir, env => rebar3_env(Config)
    }),
    test_node:expect_output_of(Output, "All 1 tests passed").

rebar3_project(Config) ->
    Dir = test_node:dir("project", Config),
    test_project:write(Dir, "rebar.config", []),
    ok = filelib:ensure_dir(filename:join(Dir, "src/x")),
    App = {application, project, [{vsn, "1"}, {applications, [kernel, stdlib]}]},
    test_project:write(Dir, "src/project.app.src", [App]),
    Dir.

rebar3_env(Config) ->
    [
        {"ERL_FLAGS", flags(Config) ++ " -epmd_module uds_dist_epmd"},
        {"HOME", dir(Config)},
        {"LANG", "C.UTF-8"}
    ].

%% Livebook and others set ELIXIR_ERL_OPTIONS themselves.
launchers_need_erl_aflags(Config) ->
    with_elixir(fun() ->
        A = atom_to_list(name(start("a", Config))),
        {0, Output} = test_project:output(
            "ELIXIR_ERL_OPTIONS='-epmd_module uds_dist_epmd' exec elixir --sname launched -e \"$0\"",
            #{
                argument => lists:concat(["IO.inspect(Node.connect(:\"", A, "\"))"]),
                env => [{"ERL_AFLAGS", flags(Config)}, {"LANG", "C.UTF-8"}]
            }
        ),
        ?assertEqual("true\n", Output)
    end).

iex_opens_a_remote_shell(Config) ->
    with_elixir(fun() ->
        Env = [{"ERL_AFLAGS", flags(Config)}, {"LANG", "C.UTF-8"}],
        Node = test_project:background("exec elixir --sname a --no-halt -e :ok", #{env => Env}),
        Socket = filename:join(dir(Config), "a.sock"),
        test_node:expect(fun() -> test_system:is_listening(Socket) end, {listening, Socket}),
        Name = "a@" ++ test_project:host(),
        {0, _} = test_project:terminal(
            "exec iex --sname iex --remsh " ++ Name,
            [
                {"iex\\(" ++ Name ++ "\\)1> ", "IO.puts(\"shell of #{node()}\")\n"},
                {"shell of " ++ Name, ""},
                {"iex\\(" ++ Name ++ "\\)2> ", [7]},
                {"--> ", "q\n"}
            ],
            #{dir => dir(Config), env => Env}
        ),
        Stop = "exec \"$0\" stop a --cookie uds_dist_test --dir '" ++ dir(Config) ++ "'",
        {0, _} = test_project:output(Stop, #{argument => test_project:command_line()}),
        {0, _} = test_project:collect(Node)
    end).

%% The strategy is that of docs/applications.md.
libcluster_finds_nodes(Config) ->
    with_elixir(fun() ->
        [A, B] = [name(start(Name, Config)) || Name <- ["a", "b"]],
        {ok, Page} = file:read_file(filename:join(test_project:root(), "docs/applications.md")),
        {match, [Strategy]} = re:run(
            Page, "```elixir\n(defmodule MyApp.UdsStrategy.*?)```", [dotall, {capture, [1], binary}]
        ),
        Main = [
            "state = %Cluster.Strategy.State{\n"
            "  topology: :here, connect: {:net_kernel, :connect_node, []},\n"
            "  list_nodes: {:erlang, :nodes, [:connected]}}\n"
            "%{start: {module, function, args}} = MyApp.UdsStrategy.child_spec([state])\n"
            "IO.inspect({apply(module, function, args), Enum.sort(Node.list())})\n"
        ],
        Script = filename:join(dir(Config), "main.exs"),
        ok = file:write_file(Script, [Strategy, Main]),
        {0, Output} = test_project:output("exec elixir --sname c -r \"$0\" " ++ Script, #{
            argument => filename:join(test_project:root(), "test/fixtures/libcluster.ex"),
            env => [{"ERL_AFLAGS", flags(Config)}, {"LANG", "C.UTF-8"}]
        }),
        Expected = lists:flatten(io_lib:format("{:ignore, [:~ts@~ts, :~ts@~ts]}", parts(A) ++ parts(B))),
        ?assertEqual(Expected, string:trim(lists:flatten(string:replace(Output, "\"", "", all))))
    end).

parts(Node) ->
    string:split(atom_to_list(Node), "@").

with_elixir(Fun) ->
    case os:find_executable("elixir") of
        false -> {skip, "there is no Elixir on PATH"};
        _ -> Fun()
    end.

%% Tests dbg, cover, nl/1 of the shell, and the requests that observer sends to a node.
nodes_look_into_each_other(Config) ->
    [A, B] = [start(Name, Config) || Name <- ["a", "b"]],
    pong = call(A, net_adm, ping, [name(B)]),
    ?assertEqual([1, 2, 3], call(A, ?MODULE, trace, [name(B), [1, 3]])),
    Source = filename:join(dir(Config), "probe.erl"),
    ok = file:write_file(Source, "-module(probe).\n-export([f/0]).\nf() -> here.\n"),
    ?assertEqual({ok, {probe, 1}}, call(A, ?MODULE, cover, [name(B), Source])),
    ?assertEqual(here, call(A, ?MODULE, load_everywhere, [name(B), Source])),
    System = call(A, rpc, call, [name(B), observer_backend, sys_info, []]),
    ?assert(is_integer(proplists:get_value(process_count, System))).

%% Upgrades and downgrades by the instructions of uds_dist.appup, while messages are on their way in both
%% directions. All of them arrive in order.
release_handler_upgrades_a_running_node(Config) ->
    Old = filename:dirname(filename:dirname(code:which(uds_dist))),
    New = test_node:dir("uds_dist-0.1.1", Config),
    Ebin = test_node:dir("uds_dist-0.1.1/ebin", Config),
    ok = test_project:run("cp \"$0\"/ebin/* ebin/ && ln -s \"$0\"/priv .", #{dir => New, argument => Old}),
    Appup = filename:join(Old, "ebin/uds_dist.appup"),
    [
        begin
            {ok, Text} = file:read_file(From),
            [Before, After] = binary:split(Text, <<"\"0.1.0\"">>),
            ok = file:write_file(filename:join(Ebin, filename:basename(From)), [Before, "\"0.1.1\"", After])
        end
     || From <- [Appup, filename:join(Old, "ebin/uds_dist.app")]
    ],
    [A, B] = [start(Name, Config) || Name <- ["a", "b"]],
    [{ok, _} = call(Node, application, ensure_all_started, [App]) || Node <- [A, B], App <- [sasl, uds_dist]],
    true = call(A, net_kernel, connect_node, [name(B)]),
    Controller = call(A, erlang, system_info, [dist_ctrl]),
    Loaded = fun() -> call(A, uds_dist, module_info, [md5]) end,
    Md5 = Loaded(),
    [ok = test_load:start_ledger(Node) || Node <- [A, B]],
    [ok = test_load:start_numbers(From, To, 10000) || {From, To} <- [{A, B}, {B, A}]],
    ok = expect_more_numbers([A, B]),
    {ok, Unpurged} = call(A, release_handler, upgrade_app, [uds_dist, New]),
    ?assertEqual([], Unpurged),
    ?assertEqual({ok, "0.1.1"}, call(A, application, get_key, [uds_dist, vsn])),
    ?assertEqual(Ebin ++ "/uds_dist.beam", call(A, code, which, [uds_dist])),
    ?assertEqual(pong, call(A, net_adm, ping, [name(B)])),
    ok = expect_more_numbers([A, B]),
    {ok, []} = call(A, release_handler, downgrade_app, [uds_dist, "0.1.0", Old]),
    ?assertEqual({ok, "0.1.0"}, call(A, application, get_key, [uds_dist, vsn])),
    ?assertEqual(Md5, Loaded()),
    ?assertEqual(Controller, call(A, erlang, system_info, [dist_ctrl])),
    ok = expect_more_numbers([A, B]),
    [
        begin
            Sent = lists:seq(1, test_load:stop_numbers(From)),
            true = test_node:expect(
                fun() ->
                    case test_load:ledger(To) of
                        Sent -> true;
                        Numbers -> {received, length(Numbers), length(Sent)}
                    end
                end,
                all_in_order
            )
        end
     || {From, To} <- [{A, B}, {B, A}]
    ],
    ok = call(A, test_traffic, exchange, [name(B), [[1, 100000], [1, 100000]], 1]),
    %% The .appup includes all modules.
    {ok, [{_, [{_, Up}], [{_, Down}]}]} = file:consult(Appup),
    {ok, Modules} = call(A, application, get_key, [uds_dist, modules]),
    [
        ?assertEqual(lists:sort(Modules), lists:sort([M || {load_module, M, _, _, _} <- Instructions]))
     || Instructions <- [Up, Down]
    ].

%% Waits until each of these nodes has received messages that it does not have now.
expect_more_numbers(Nodes) ->
    Count = fun(Node) -> length(test_load:ledger(Node)) end,
    lists:foreach(
        fun({Node, Before}) -> true = test_node:expect(fun() -> Count(Node) > Before end, more_numbers) end,
        [{Node, Count(Node)} || Node <- Nodes]
    ).

%% Runs in a node: traces a call in the other node.
trace(Node, Range) ->
    Self = self(),
    {ok, _} = dbg:tracer(process, {fun(Message, _) -> Self ! Message end, none}),
    {ok, Node} = dbg:n(Node),
    {ok, _} = dbg:tp(lists, seq, 2, []),
    {ok, _} = dbg:p(all, call),
    [1, 2, 3] = rpc:call(Node, lists, seq, Range),
    receive
        {trace, Pid, call, {lists, seq, Range}} when node(Pid) =:= Node ->
            _ = dbg:stop(),
            apply(lists, seq, Range)
    end.

%% Runs in a node: counts the calls of a module in the other one.
cover(Node, Source) ->
    {ok, [Node]} = cover:start([Node]),
    {ok, probe} = cover:compile_module(Source),
    here = rpc:call(Node, probe, f, []),
    Calls = cover:analyse(probe, calls, module),
    ok = cover:stop(),
    Calls.

%% Runs in a node: loads a module that is compiled here into the other one.
load_everywhere(Node, Source) ->
    {ok, probe} = compile:file(Source, [{outdir, filename:dirname(Source)}]),
    true = code:add_patha(filename:dirname(Source)),
    _ = c:nl(probe),
    rpc:call(Node, probe, f, []).

flags(Config) ->
    "-setcookie uds_dist_test " ++ carrier(Config).

carrier(Config) ->
    lists:flatten([
        "-proto_dist uds -no_epmd -uds_dist_dir ",
        dir(Config),
        " -pa ",
        filename:dirname(code:which(uds_dist))
    ]).
