%% RabbitMQ of Debian, set up as examples/rabbitmq says: a cluster of three nodes.
-module(rabbitmq_SUITE).

-export([all/0, suite/0, groups/0, init_per_suite/1, end_per_suite/1]).
-export([init_per_group/2, end_per_group/2, init_per_testcase/2, end_per_testcase/2]).
-export([
    nodes_form_a_cluster/1,
    tools_reach_the_nodes/1,
    no_confirmed_message_is_lost/1,
    stop_leaves_nothing/1,
    missing_lines_are_named/1
]).

-include_lib("stdlib/include/assert.hrl").

-define(USER, "rabbitmq").
-define(BIN, "/usr/lib/rabbitmq/bin/").
-define(NAMES, ["rabbit1", "rabbit2", "rabbit3"]).
%% Messages for each of six phases; something is killed in each but the first.
-define(PHASE, 1000).

%% Longest time that RabbitMQ takes to recover, in milliseconds. Its second attempt comes after a minute.
-define(RECOVERY, 180000).

%% RabbitMQ takes almost a minute to miss the last of the lines, and only waits meanwhile.
all() ->
    [{group, all}].

groups() ->
    Cases = [
        nodes_form_a_cluster,
        tools_reach_the_nodes,
        no_confirmed_message_is_lost,
        stop_leaves_nothing
    ],
    [
        {all, [parallel], [missing_lines_are_named, {group, transports}]},
        {transports, [], [{group, relay}, {group, direct}]},
        {relay, [sequence], Cases},
        {direct, [sequence], Cases}
    ].

suite() ->
    test_node:suite().

init_per_suite(Config) ->
    test_package:init_suite("rabbitmq-server", ?BIN "rabbitmq-server", ?USER, Config).

end_per_suite(_Config) ->
    ok.

init_per_group(Group, Config) when Group =:= all; Group =:= transports ->
    Config;
init_per_group(Group, Config) ->
    Package = set_up(test_package:transport(Group)),
    Keep = fun(Text) -> Text end,
    install("rabbitmq-env.conf", Keep, Package),
    install("rabbitmq.conf", Keep, Package),
    Ports = lists:zip(?NAMES, test_package:free_ports(length(?NAMES))),
    [{package, Package}, {ports, Ports} | Config].

install(File, Edit, Package) ->
    test_package:install_example("rabbitmq/" ++ File, "/run/rabbitmq", Edit, Package).

%% Where RabbitMQ looks for its files.
set_up(Env) ->
    #{dir := Dir, env := Base} = Package = test_package:set_up(?USER, Env),
    In = fun(Name) -> filename:join(Dir, Name) end,
    ok = file:write_file(In("plugins"), "[].\n"),
    Package#{
        env :=
            Base ++
                [
                    {"RABBITMQ_CONF_ENV_FILE", In("rabbitmq-env.conf")},
                    {"RABBITMQ_CONFIG_FILE", In("rabbitmq.conf")},
                    {"RABBITMQ_ENABLED_PLUGINS_FILE", In("plugins")},
                    {"RABBITMQ_MNESIA_BASE", In("mnesia")},
                    {"RABBITMQ_LOG_BASE", In("log")},
                    {"RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1"}
                ]
    }.

end_per_group(Group, _Config) when Group =:= all; Group =:= transports ->
    ok;
end_per_group(_Group, Config) ->
    ok = test_package:remove(package(Config)).

init_per_testcase(_Case, Config) ->
    test_node:init(Config).

end_per_testcase(_Case, Config) ->
    test_node:cleanup(Config).

%% ---------------------------------------------------------------------------------------------

%% They started at the same time. Nothing but AMQP listens to TCP, and no epmd has come up.
nodes_form_a_cluster(Config) ->
    start(?NAMES, Config),
    expect_cluster(?NAMES, Config),
    Listeners = [length(test_node:tcp_listeners(Vm)) || Vm <- test_package:vms(package(Config))],
    ?assertEqual([1, 1, 1], Listeners),
    ?assertEqual("", os:cmd("pgrep -u " ?USER " -x epmd")).

tools_reach_the_nodes(Config) ->
    [
        begin
            {0, Output} = test_package:command(?BIN ++ Command, env("rabbit1", Config), package(Config)),
            test_node:expect_output_of(Output, Expected)
        end
     || {Command, Expected} <- [
            {"rabbitmqctl cluster_status", "rabbit3@localhost: RabbitMQ .* on Erlang"},
            {"rabbitmqctl eval 'uds_dist:info().'", "listening_at"},
            {"rabbitmq-diagnostics check_port_connectivity", "Successfully connected to ports"},
            {"rabbitmq-queues check_if_node_is_quorum_critical", "."}
        ]
    ],
    ?assertEqual({0, "pong from rabbit2@localhost\n"}, uds_dist("ping rabbit2 --app rabbit", Config)),
    ?assertEqual({0, "rabbit1\nrabbit2\nrabbit3\n"}, uds_dist("names -q", Config)),
    ?assertEqual({0, "rabbit2@localhost\nrabbit3@localhost\n"}, uds_dist("peers rabbit1 -q", Config)),
    {0, Status} = uds_dist("status rabbit1", Config),
    test_node:expect_output_of(Status, "(?s)rabbit1@localhost.*rabbit2@localhost.*rabbit3@localhost").

%% Six phases of a thousand messages each, into a queue with a replica on each node. In the middle of
%% each but the first, a sidecar or a node is killed. RabbitMQ must always recover by itself.
no_confirmed_message_is_lost(Config) ->
    Client = client(Config),
    Queue = <<"numbers">>,
    Urls = [url(Name, Config) || Name <- ?NAMES],
    Publisher = test_node:call(Client, test_amqp, start, [Urls, Queue]),
    Faults = [
        fun() -> ok end,
        fun() -> kill_sidecar("rabbit1", Config) end,
        fun() -> kill_sidecar("rabbit2", Config) end,
        fun() -> kill("rabbit3", Config) end,
        fun() -> kill_sidecar("rabbit3", Config) end,
        fun() -> kill_sidecar_unseen("rabbit1", Config) end
    ],
    Last = length(Faults) * ?PHASE,
    Connects = lists:foldl(
        fun({Phase, Fault}, _) ->
            ok = test_node:call(Client, test_amqp, publish, [Phase * ?PHASE, Publisher]),
            Middle = Phase * ?PHASE - ?PHASE div 2,
            _ = test_node:call(Client, test_amqp, await_confirmed, [Middle, Publisher], infinity),
            ok = Fault(),
            Await = [Phase * ?PHASE, Publisher],
            Connects = test_node:call(Client, test_amqp, await_confirmed, Await, infinity),
            %% What was published is safe with two of three nodes; the next fault is for all of them.
            expect_cluster(?NAMES, Config),
            Connects
        end,
        0,
        lists:enumerate(Faults)
    ),
    Numbers = test_node:call(Client, test_amqp, drain, [Urls, Queue], infinity),
    Lost = lists:seq(1, Last) -- lists:usort(Numbers),
    test_runner:note("~b messages confirmed, ~b lost, ~b doubled; ~b connections of the publisher", [
        Last, length(Lost), length(Numbers) - length(lists:usort(Numbers)), Connects
    ]),
    ?assertEqual([], Lost).

%% rabbitmqctl stop returns when the node has gone.
stop_leaves_nothing(Config) ->
    Stop = ?BIN "rabbitmqctl stop",
    Stopping = [test_package:background(Stop, env(Name, Config), package(Config)) || Name <- ?NAMES],
    [{0, _} = test_project:collect(Port) || Port <- Stopping],
    test_package:expect_none_left(package(Config)).

%% Each line of the template in turn. What shows that it is missing or wrong, docs/applications.md has too.
missing_lines_are_named(Config) ->
    Without = fun(Flag) -> {"ERL_FLAGS=\"$ERL_FLAGS " ++ Flag, "WITHOUT=\""} end,
    Mistakes = [
        {{"-proto_dist uds ", ""}, "erlexec: Missing -proto_dist option"},
        {Without("-pa"), "Protocol 'uds': not supported"},
        {{"/run/rabbitmq", "/nowhere/run"}, "the directory /nowhere/run does not exist"},
        {Without("-epmd_module"), "ERROR: epmd error for host localhost: address"},
        {Without("-erl_epmd_port"), "Error during startup: {error,no_epmd_port}"}
    ],
    %% All at once: the last one takes ten tries.
    Started = [
        {start_with(Mistake, Port, Config), Expected}
     || {{Mistake, Expected}, Port} <- lists:zip(Mistakes, test_package:free_ports(length(Mistakes)))
    ],
    [
        begin
            {Status, Output} = test_project:collect(Port),
            ct:log("~ts~nended with status ~b", [Output, Status]),
            test_node:expect_output_of(Output, Expected),
            ok = test_package:remove(Package)
        end
     || {{Port, Package}, Expected} <- Started
    ].

start_with({Line, By}, Port, Config) ->
    Package = set_up([]),
    install("rabbitmq-env.conf", test_package:mistake(Line, By), Package),
    Env = env("rabbit1", [{ports, [{"rabbit1", Port}]} | Config]),
    {test_package:background(?BIN "rabbitmq-server", Env, Package), Package}.

%% ---------------------------------------------------------------------------------------------

package(Config) ->
    proplists:get_value(package, Config).

start(Names, Config) ->
    Command = ?BIN "rabbitmq-server",
    lists:foreach(
        fun(Name) ->
            %% It runs on after this test case.
            Start = fun() -> keep_running(test_package:background(Command, env(Name, Config), package(Config))) end,
            spawn(Start)
        end,
        Names
    ).

keep_running(Port) ->
    {Status, Output} = test_project:collect(Port),
    ct:log("a node ended with status ~b:~n~ts", [Status, Output]).

env(Name, Config) ->
    Port = integer_to_list(proplists:get_value(Name, proplists:get_value(ports, Config))),
    [
        {"RABBITMQ_NODENAME", Name ++ "@localhost"},
        {"RABBITMQ_NODE_PORT", Port},
        %% It looks whether it could listen there, and never does. The default, 20000 more, may be too high.
        {"RABBITMQ_DIST_PORT", Port}
    ].

uds_dist(Arguments, Config) ->
    test_package:uds_dist(Arguments, [], package(Config)).

%% Waits until all of them run and see each other running, and none is recovering from the fault before: if another
%% fault comes meanwhile, RabbitMQ may need more than a minute.
expect_cluster(Names, Config) ->
    [{0, _} = uds_dist("ping " ++ Name ++ " --app rabbit --wait 60s", Config) || Name <- Names],
    Nodes = [Name ++ "@localhost" || Name <- Names],
    Settled = lists:flatten(["{[", lists:join(",", Nodes), "],undefined,[]}\n"]),
    Asked =
        " '{lists:sort(rabbit_nodes:all_running()),"
        " whereis(rabbit_outside_app_process), rabbit_node_monitor:partitions()}'",
    Ask = fun(Name) -> fun() -> uds_dist("rpc " ++ Name ++ Asked, Config) end end,
    [expect_answer(Ask(Name), {0, Settled}, Name, Config) || Name <- Names].

expect_answer(Ask, Expected, Name, Config) ->
    Answer = fun() ->
        Seen = Ask(),
        Seen =:= Expected orelse Seen
    end,
    try
        test_node:expect(Answer, {Name, answers, Expected}, ?RECOVERY)
    catch
        error:Reason -> error({Reason, recovery(Name, Config)})
    end.

%% The last lines of a node's log about partitions.
recovery(Name, Config) ->
    #{dir := Dir} = package(Config),
    {ok, Log} = file:read_file(filename:join([Dir, "log", Name ++ "@localhost.log"])),
    About = "uds_dist: |(node|rabbit on node) .* (up|down)|Autoheal|inconsistent_database",
    Lines = [Line || Line <- binary:split(Log, <<"\n">>, [global]), re:run(Line, About) =/= nomatch],
    lists:nthtail(max(0, length(Lines) - 20), Lines).

vm(Name, Config) ->
    {0, OsPid} = uds_dist("pid " ++ Name, Config),
    list_to_integer(string:trim(OsPid)).

kill_sidecar(Name, Config) ->
    [Sidecar] = test_node:sidecars(vm(Name, Config)),
    ok = test_node:signal("KILL", Sidecar),
    {ok, _} = test_system:await_end(Sidecar, 10000),
    ok.

%% RabbitMQ's monitor of nodes is late, as on a busy machine: when it looks, the connections are back.
kill_sidecar_unseen(Name, Config) ->
    Peers = lists:flatten([[Peer, "@localhost\n"] || Peer <- ?NAMES, Peer =/= Name]),
    Monitor = fun(Action) -> uds_dist("rpc " ++ Name ++ " 'sys:" ++ Action ++ "(rabbit_node_monitor)'", Config) end,
    {0, "ok\n"} = Monitor("suspend"),
    ok = kill_sidecar(Name, Config),
    expect_answer(fun() -> uds_dist("peers " ++ Name ++ " -q", Config) end, {0, Peers}, Name, Config),
    {0, "ok\n"} = Monitor("resume"),
    ok.

%% It comes back, as it does with systemd.
kill(Name, Config) ->
    Vm = vm(Name, Config),
    ok = test_node:signal("KILL", Vm),
    {ok, _} = test_system:await_end(Vm, 10000),
    start([Name], Config).

%% A node with the client's modules, whose distribution plays no part.
client(Config) ->
    Ebins = filelib:wildcard("/usr/lib/rabbitmq/lib/rabbitmq_server-*/plugins/*/ebin"),
    test_node:start("client", #{args => ["-pa" | Ebins]}, Config).

url(Name, Config) ->
    Port = proplists:get_value(Name, proplists:get_value(ports, Config)),
    lists:flatten(io_lib:format("amqp://guest:guest@127.0.0.1:~b", [Port])).
