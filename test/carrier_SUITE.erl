%% The carrier as users see it: nodes, names, settings, and what is left when nodes have ended.
-module(carrier_SUITE).

-export([all/0, suite/0, groups/0, init_per_group/2, end_per_group/2]).
-export([init_per_testcase/2, end_per_testcase/2]).
-export([
    connects_and_calls_both_ways/1,
    carries_hidden_nodes/1,
    ignores_the_host_part_of_long_names/1,
    ignores_the_host_part_of_short_names/1,
    takes_socket_dir_from_each_source/1,
    overridden_sources_are_logged/1,
    empty_environment_variable_is_unset/1,
    directory_is_the_working_directory_by_default/1,
    creates_the_last_directory/1,
    listens_in_the_abstract_namespace/1,
    backlog_is_configurable/1,
    node_that_does_not_listen_connects_out/1,
    dynamic_name_comes_from_the_other_node/1,
    remote_shell_without_a_name/1,
    duplicate_name_is_refused/1,
    stale_socket_is_taken_over/1,
    sidecar_ends_with_its_vm/1,
    node_info_counts/1,
    socket_options_are_answered/1,
    starts_and_stops_at_run_time/1,
    disconnects_on_demand/1,
    wrong_cookie_is_refused/1,
    sidecar_that_dies_is_replaced/1,
    ended_connections_leave_no_descriptor/1,
    killed_sidecars_leave_no_descriptor/1,
    killed_vms_leave_no_descriptor/1,
    vm_has_no_listener/1,
    full_backlog_is_retried/1,
    full_backlog_ends_with_the_setup_time/1,
    local_nodes_use_sockets_beside_another_carrier/1,
    remote_nodes_use_tcp_beside_sockets/1,
    select_takes_the_nodes_of_this_host/1,
    names_do_not_leave_the_directory/1
]).
%% Run in the nodes.
-export([ping_repeatedly/2]).

-import(test_node, [
    start/2,
    start/3,
    start_all/2,
    start_all/3,
    call/4,
    name/1,
    os_pid/1,
    sidecar/1,
    dir/1,
    expect/2,
    expect_nodes/2,
    expect_output/2
]).

-include_lib("kernel/include/net_address.hrl").
-include_lib("stdlib/include/assert.hrl").

%% Enough repetitions to tell a leaked descriptor from those that are opened and closed normally.
-define(MANY, 100).

%% A setup time in seconds that is over long after a busy machine has done what has to be done before.
-define(PATIENT, ["-kernel", "net_setuptime", "60"]).

%% With inet_tcp as the first carrier, erl would start an epmd that outlives the tests.
-define(BESIDE_INET_TCP, #{
    carrier => ["-proto_dist", "inet_tcp", "uds", "-start_epmd", "false", "-epmd_module", "test_epmd"]
}).

all() ->
    test_node:transports().

groups() ->
    [
        {relay, [], test_node:cases(?MODULE)},
        {direct, [], [
            connects_and_calls_both_ways,
            carries_hidden_nodes,
            node_that_does_not_listen_connects_out,
            dynamic_name_comes_from_the_other_node,
            node_info_counts,
            socket_options_are_answered,
            starts_and_stops_at_run_time,
            disconnects_on_demand,
            vm_has_no_listener,
            local_nodes_use_sockets_beside_another_carrier
        ]}
    ].

suite() ->
    test_node:suite().

init_per_group(Group, Config) ->
    test_node:init_group(Group, Config).

end_per_group(_Group, _Config) ->
    ok.

init_per_testcase(_Case, Config) ->
    test_node:init(Config).

end_per_testcase(_Case, Config) ->
    test_node:cleanup(Config).

%% ---------------------------------------------------------------------------------------------
%% Connections

%% Two nodes connect, and each calls the other.
connects_and_calls_both_ways(Config) ->
    [A, B] = start_all(["a", "b"], Config),
    pong = ping(A, B),
    connected(A, B),
    ?assertEqual(name(B), rpc(A, B, erlang, node, [])),
    ?assertEqual(name(A), rpc(B, A, erlang, node, [])).

%% Connects to a hidden node, which is not among the visible nodes.
carries_hidden_nodes(Config) ->
    A = start("a", Config),
    B = start("b", #{args => ["-hidden"]}, Config),
    pong = ping(A, B),
    connected(A, B),
    ?assertEqual([], call(A, erlang, nodes, [])),
    ?assertEqual([name(B)], call(A, erlang, nodes, [hidden])),
    ?assertEqual(name(A), rpc(B, A, erlang, node, [])).

%% The path does not contain the host part, so nodes with different hosts can connect.
ignores_the_host_part_of_long_names(Config) ->
    [A, B] = start_all(["a@foo.example", "b@127.0.0.1"], #{long => true}, Config),
    pong = ping(A, B),
    ?assertEqual('b@127.0.0.1', rpc(A, B, erlang, node, [])),
    ?assertEqual(["a.sock", "b.sock"], sockets_in(dir(Config))).

%% Short names work in the same way.
ignores_the_host_part_of_short_names(Config) ->
    [A, B] = start_all(["a@whatever", "b"], Config),
    pong = ping(B, A),
    ?assertEqual(a@whatever, rpc(B, A, erlang, node, [])),
    ?assertEqual(["a.sock", "b.sock"], sockets_in(dir(Config))).

%% disconnect_node/1 ends the connection at both ends, and the nodes can connect again.
disconnects_on_demand(Config) ->
    [A, B] = start_all(["a", "b"], #{args => test_node:on_demand()}, Config),
    connect_and_disconnect(A, B),
    connect_and_disconnect(B, A).

%% A node with another cookie is refused at once, and the refusing node logs that.
wrong_cookie_is_refused(Config) ->
    A = start("a", Config),
    B = start("b", #{cookie => "another", args => ?PATIENT}, Config),
    {Time, pang} = timer:tc(fun() -> ping(B, A) end),
    ?assert(Time < 30000000),
    expect_output(A, "Connection attempt from.* node .*b@.* rejected"),
    Line = "it closed the connection during the handshake; most often the cookies differ",
    expect_output(B, ["uds_dist: cannot connect to ", atom_to_list(name(A)), ": ", Line]),
    ?assertEqual([], call(A, erlang, nodes, [connected])),
    ?assertEqual([], call(B, erlang, nodes, [connected])).

%% When the sidecar dies, its connections go down, and another one listens at the same place.
sidecar_that_dies_is_replaced(Config) ->
    [A, B] = start_all(["a", "b"], #{args => test_node:on_demand()}, Config),
    connect(A, B),
    Before = sidecar(A),
    test_node:signal("KILL", Before),
    expect_nodes(A, []),
    expect_nodes(B, []),
    expect_output(A, "\\(process \\d+, up for \\d+ s\\) is gone: it was ended by signal 9; connections lost with it: 1"),
    expect_output(A, "listening again at .*/a\\.sock"),
    ?assertNotEqual(Before, sidecar(A)),
    connect(B, A).

%% ---------------------------------------------------------------------------------------------
%% Settings

%% Each source of socket_dir is used when it is the only one, as a string and as a binary.
takes_socket_dir_from_each_source(Config) ->
    Sources = [
        {"flag", fun(Dir) -> #{dir => Dir} end},
        {"argument", fun(Dir) -> argument(["\"", Dir, "\""]) end},
        {"binary_argument", fun(Dir) -> argument(["<<\"", Dir, "\">>"]) end},
        {"environment", fun(Dir) -> #{env => [{"UDS_DIST_DIR", Dir}]} end},
        {"config", fun(Dir) -> #{config => [{uds_dist, [{socket_dir, Dir}]}]} end},
        {"binary_config", fun(Dir) ->
            #{config => [{uds_dist, [{socket_dir, list_to_binary(Dir)}]}]}
        end}
    ],
    lists:foreach(
        fun({Name, Options}) ->
            Dir = test_node:dir(Name, Config),
            A = start("a", maps:merge(#{dir => none}, Options(Dir)), Config),
            B = start("b", #{dir => Dir}, Config),
            ?assertEqual({Name, ["a.sock", "b.sock"]}, {Name, sockets_in(Dir)}),
            ?assertEqual({Name, pong}, {Name, ping(A, B)})
        end,
        Sources
    ).

argument(Term) ->
    #{args => ["-uds_dist", "socket_dir", lists:flatten(Term)]}.

%% The order is command line, environment, configuration. The log names the values that are ignored.
overridden_sources_are_logged(Config) ->
    [Flag, Argument, Environment, Configured] =
        [test_node:dir(Name, Config) || Name <- ["flag", "argument", "environment", "configured"]],
    Options = #{
        dir => none,
        env => [{"UDS_DIST_DIR", Environment}],
        config => [{uds_dist, [{socket_dir, Configured}]}]
    },
    A = start("a", Options#{dir => Flag}, Config),
    ?assertEqual(["a.sock"], sockets_in(Flag)),
    expect_output(A, [Flag, " .*", Environment]),
    expect_output(A, [Flag, " .*", Configured]),
    B = start("b", Options, Config),
    ?assertEqual(["b.sock"], sockets_in(Environment)),
    expect_output(B, [Environment, " .*", Configured]),
    C = start("c", maps:merge(Options, argument(["\"", Argument, "\""])), Config),
    ?assertEqual(["c.sock"], sockets_in(Argument)),
    expect_output(C, [Argument, " .*", Environment]),
    ?assertEqual([], sockets_in(Configured)).

%% UDS_DIST_DIR= in a start script does not hide the configured value.
empty_environment_variable_is_unset(Config) ->
    Dir = test_node:dir("configured", Config),
    start(
        "a",
        #{
            dir => none,
            env => [{"UDS_DIST_DIR", ""}],
            config => [{uds_dist, [{socket_dir, Dir}]}]
        },
        Config
    ),
    ?assertEqual(["a.sock"], sockets_in(Dir)).

%% The default is the directory in which the VM was started, even if it changes its directory later.
directory_is_the_working_directory_by_default(Config) ->
    [Start, Elsewhere] = [test_node:dir(Name, Config) || Name <- ["start", "elsewhere"]],
    [A, B] = start_all(["a", "b"], #{dir => none, cwd => Start}, Config),
    ?assertEqual(["a.sock", "b.sock"], sockets_in(Start)),
    ok = call(A, file, set_cwd, [Elsewhere]),
    pong = ping(A, B),
    test_node:stop(A),
    ?assertEqual(["b.sock"], sockets_in(Start)).

%% A missing directory is created with access for its owner only.
creates_the_last_directory(Config) ->
    Dir = filename:join(dir(Config), "new"),
    start("a", #{dir => Dir}, Config),
    ?assertEqual(["a.sock"], sockets_in(Dir)),
    ?assertEqual(8#40700, mode(Dir)),
    ?assertEqual(8#140600, mode(socket(Dir, "a"))).

mode(Path) ->
    %% On some OTPs, file:read_file_info/1 does not return the type bits.
    list_to_integer(string:trim(os:cmd("stat -c %f " ++ Path)), 16).

%% @name needs no directory and leaves no file.
listens_in_the_abstract_namespace(Config) ->
    Namespace = "@" ++ filename:basename(dir(Config)),
    [A, B] = start_all(["a", "b"], #{dir => Namespace}, Config),
    pong = ping(A, B),
    ?assertEqual(name(A), rpc(B, A, erlang, node, [])),
    ?assertEqual([], filelib:wildcard("*.sock*", dir(Config))),
    Address = {local, [0, tl(Namespace), "/a"]},
    {ok, Client} = gen_tcp:connect(Address, 0, [local]),
    ok = gen_tcp:close(Client),
    test_node:stop(A),
    ?assertEqual({error, econnrefused}, gen_tcp:connect(Address, 0, [local])).

%% The kernel lets backlog + 1 clients wait.
backlog_is_configurable(Config) ->
    A = start("a", #{config => [{uds_dist, [{backlog, 7}]}]}, Config),
    B = start("b", Config),
    ?assertEqual({a, 7 + 1}, {a, length(fill_backlog(A, Config))}),
    ?assertEqual({default, 5 + 1}, {default, length(fill_backlog(B, Config))}).

%% Stops the sidecar, and connects until the backlog is full.
fill_backlog(Node, Config) ->
    Sidecar = sidecar(Node),
    test_node:signal("STOP", Sidecar),
    expect(fun() -> is_stopped(Sidecar) end, stopped),
    fill(socket(dir(Config), short_name(Node)), []).

%% gen_tcp takes a full backlog for a connect in progress, and so does the socket module of OTP 25.
fill(Address, Clients) ->
    {ok, Client} = socket:open(local, stream),
    case socket:connect(Client, #{family => local, path => Address}, nowait) of
        ok ->
            fill(Address, [Client | Clients]);
        {Full, _} when Full =:= error; Full =:= select ->
            ok = socket:close(Client),
            Clients
    end.

is_stopped(Pid) ->
    {ok, Status} = file:open(["/proc/", integer_to_list(Pid), "/status"], [read]),
    {ok, Text} = file:read(Status, 200),
    ok = file:close(Status),
    re:run(Text, "^State:\\sT", [multiline, {capture, none}]) =:= match.

%% ---------------------------------------------------------------------------------------------
%% Names

%% With -dist_listen false there are neither socket nor lock file, and the node can connect to others.
node_that_does_not_listen_connects_out(Config) ->
    A = start("a", Config),
    B = start("b", #{args => ["-dist_listen", "false"]}, Config),
    pong = ping(B, A),
    ?assertEqual(["a.sock"], sockets_in(dir(Config))),
    ?assertEqual(name(A), rpc(B, A, erlang, node, [])),
    ?assertEqual(name(B), rpc(A, B, erlang, node, [])).

%% With -sname undefined, the first node that it connects to gives the node its name.
dynamic_name_comes_from_the_other_node(Config) ->
    A = start("a", Config),
    B = start("undefined", Config),
    ?assertEqual(nonode@nohost, call(B, erlang, node, [])),
    ?assert(call(B, net_kernel, connect_node, [name(A)])),
    Name = call(B, erlang, node, []),
    ?assertNotEqual(nonode@nohost, Name),
    expect_nodes(A, [Name]),
    ?assertEqual(["a.sock"], sockets_in(dir(Config))).

%% Runs erl -sname undefined -remsh, which people type to get a shell in a node.
remote_shell_without_a_name(Config) ->
    A = start("a", Config),
    Remsh = ["-sname", "undefined", "-remsh", atom_to_list(name(A)), "-hidden"],
    %% script(1) provides a terminal, and takes one string for the shell.
    Script = "exec script -qec \"$*\" /dev/null",
    Shell = test_node:launch(
        #{
            name => undefined,
            args => Remsh,
            env => [{"TERM", "vt100"}],
            prefix => ["/bin/sh", "-c", Script, "sh"]
        },
        Config
    ),
    expect_output(Shell, "\\(a@.*\\)1>"),
    test_node:type(Shell, "{the_node_is, node()}.\n"),
    expect_output(Shell, ["{the_node_is,'?", atom_to_list(name(A)), "'?}"]),
    test_node:type(Shell, "erlang:halt(self()).\n").

%% The second node with a name exits, and reports which process has the name. The first one continues.
duplicate_name_is_refused(Config) ->
    [A, B] = start_all(["a", "b"], Config),
    Second = test_node:launch(#{name => "a", args => ["-noinput"]}, Config),
    {Status, Output} = test_node:expect_exit(Second),
    ?assertNotEqual(0, Status),
    test_node:expect_output_of(Output, "uds_dist: .*in use by process " ++ os_pid_text(A)),
    test_node:expect_output_of(Output, "the name a@.* seems to be in use by another Erlang node"),
    pong = ping(B, A).

os_pid_text(Node) ->
    integer_to_list(os_pid(Node)) ++ "\\b".

%% A socket file whose VM and sidecar were killed does not block the name.
stale_socket_is_taken_over(Config) ->
    A = start("a", Config),
    Sidecar = sidecar(A),
    %% The VM must not start another sidecar, and this sidecar must not clean up.
    test_node:signal("STOP", os_pid(A)),
    test_node:signal("KILL", Sidecar),
    test_node:kill(A),
    ?assertEqual(["a.sock"], sockets_in(dir(Config))),
    [A1, B] = start_all(["a", "b"], Config),
    pong = ping(B, A1).

%% A VM that is killed leaves neither a sidecar nor a file behind.
sidecar_ends_with_its_vm(Config) ->
    A = start("a", Config),
    Sidecar = sidecar(A),
    test_node:kill(A),
    expect(fun() -> not test_node:is_alive(Sidecar) end, sidecar_ended),
    ?assertEqual([], filelib:wildcard("*.sock*", dir(Config))).

%% net_kernel:start/2 and stop/0 are called many times with the same name.
starts_and_stops_at_run_time(Config) ->
    [A, B] = start_all([undefined, "b"], Config),
    ?assertEqual(false, call(A, erlang, is_alive, [])),
    lists:foreach(
        fun(Round) ->
            {ok, _} = call(A, net_kernel, start, [a, #{name_domain => shortnames}]),
            ?assertEqual({Round, ["a.sock", "b.sock"]}, {Round, sockets_in(dir(Config))}),
            true = call(A, erlang, set_cookie, [uds_dist_test]),
            Name = call(A, erlang, node, []),
            ?assertEqual({Round, pong}, {Round, call(B, net_adm, ping, [Name])}),
            ok = call(A, net_kernel, stop, []),
            ?assertEqual({Round, ["b.sock"]}, {Round, sockets_in(dir(Config))}),
            expect_nodes(B, [])
        end,
        lists:seq(1, 20)
    ).

%% A name that would lead out of the directory is not a node, even if a socket is there.
names_do_not_leave_the_directory(Config) ->
    start("a", Config),
    Inner = test_node:dir("inner", Config),
    B = start("b", #{dir => Inner}, Config),
    ?assertEqual(pang, call(B, net_adm, ping, ['../a@host'])),
    expect_output(B, "uds_dist: .*'../a@host'.* is not a node name"),
    ?assertEqual(pang, call(B, net_adm, ping, ['@host'])),
    ?assertEqual(pang, call(B, net_adm, ping, [list_to_atom("a\0@host")])),
    ?assertEqual([], call(B, erlang, nodes, [connected])).

%% ---------------------------------------------------------------------------------------------
%% Information

%% node_info/1 and nodes_info/0 answer at both ends, and their counters increase with traffic.
node_info_counts(Config) ->
    [A, B] = start_all(["a", "b"], Config),
    pong = ping(A, B),
    connected(A, B),
    Before = [info(A, B), info(B, A)],
    Large = binary:copy(<<"x">>, 100000),
    Large = rpc(A, B, erlang, list_to_binary, [[Large]]),
    After = [info(A, B), info(B, A)],
    [
        begin
            ?assertEqual(up, proplists:get_value(state, Info1)),
            ?assertEqual(normal, proplists:get_value(type, Info1)),
            ?assertMatch(#net_address{family = local}, proplists:get_value(address, Info1)),
            ?assert(proplists:get_value(in, Info1) > proplists:get_value(in, Info)),
            ?assert(proplists:get_value(out, Info1) > proplists:get_value(out, Info))
        end
     || {Info, Info1} <- lists:zip(Before, After)
    ].

info(Node, Other) ->
    OtherName = name(Other),
    {ok, Info} = call(Node, net_kernel, node_info, [OtherName]),
    {ok, [{OtherName, _}]} = call(Node, net_kernel, nodes_info, []),
    Info.

%% There are no socket options: setting one is an error, and getting one returns nothing, both at once.
socket_options_are_answered(Config) ->
    [A, B] = start_all(["a", "b"], Config),
    pong = ping(A, B),
    ?assertEqual({error, enotsup}, call(A, net_kernel, setopts, [name(B), [{nodelay, true}]])),
    ?assertEqual({error, enotsup}, call(A, net_kernel, setopts, [new, [{nodelay, true}]])),
    ?assertEqual(ok, call(A, net_kernel, setopts, [name(B), []])),
    ?assertEqual({ok, []}, call(A, net_kernel, getopts, [name(B), [nodelay]])).

%% Beside another carrier, nodes of this host are reached through their sockets.
local_nodes_use_sockets_beside_another_carrier(Config) ->
    [A, B] = start_all(["a", "b"], ?BESIDE_INET_TCP, Config),
    ?assertMatch([_], test_node:tcp_listeners(os_pid(A))),
    pong = ping(A, B),
    ?assertMatch(#net_address{family = local}, proplists:get_value(address, info(A, B))),
    ?assertMatch(#net_address{family = local}, proplists:get_value(address, info(B, A))).

%% Two network namespaces stand for two machines. Nodes in the same one connect by a socket, others by TCP.
%% The death of a sidecar only affects the former.
remote_nodes_use_tcp_beside_sockets(Config) ->
    case make_machines(Config) of
        {ok, Here, There} ->
            try
                connect_machines(Here, There, Config)
            after
                remove_machines([Here, There])
            end;
        {error, Reason} ->
            {skip, "network namespaces cannot be made here: " ++ Reason}
    end.

connect_machines(Here, There, Config) ->
    [A, B, C] = [
        start(Name ++ "@" ++ Address, on_machine(Machine), Config)
     || {Name, #{address := Address} = Machine} <- [{"a", Here}, {"b", Here}, {"c", There}]
    ],
    [true = call(A, net_kernel, connect_node, [name(Node)]) || Node <- [B, C]],
    [expect_nodes(Node, [name(Other) || Other <- [A, B, C] -- [Node]]) || Node <- [A, B, C]],
    Family = fun(Node, Other) ->
        {ok, Info} = call(Node, net_kernel, node_info, [name(Other)]),
        (proplists:get_value(address, Info))#net_address.family
    end,
    ?assertEqual([local, local], [Family(A, B), Family(B, A)]),
    ?assertEqual([inet, inet], [Family(A, C), Family(C, A)]),
    ?assertEqual([inet, inet], [Family(B, C), Family(C, B)]),
    Sizes = [[1 bsl 20, 10, 65536], lists:duplicate(100, 100)],
    [
        ok = call(From, test_traffic, exchange, [name(To), Sizes, 1])
     || {From, To} <- [{A, B}, {A, C}, {C, B}]
    ],
    [ok = test_load:prepare(Node) || Node <- [B, C]],
    test_node:signal("KILL", sidecar(A)),
    ok = test_load:await_down(B, 0),
    expect(fun() -> ping(B, A) =:= pong end, connected_again),
    expect_nodes(C, [name(A), name(B)]),
    ?assertEqual(0, test_load:downs(C)).

%% Each machine has its own directory and its own loopback.
on_machine(#{namespace := Namespace, dir := Dir}) ->
    Ports = ["-test_ports", "a", "4001", "b", "4002", "c", "4003"],
    %% By default, global would make a third node disconnect from one of two nodes that have lost each other.
    Kernel = ["-kernel", "prevent_overlapping_partitions", "false"],
    maps:merge(?BESIDE_INET_TCP, #{
        long => true,
        dir => Dir,
        args => Ports ++ Kernel,
        prefix => ["ip", "netns", "exec", Namespace]
    }).

make_machines(Config) ->
    Unique = filename:basename(dir(Config)),
    [Here, There] = Machines = [
        #{
            namespace => Unique ++ "." ++ Name,
            address => Address,
            dir => test_node:dir(Name, Config)
        }
     || {Name, Address} <- [{"here", "192.0.2.1"}, {"there", "192.0.2.2"}]
    ],
    Cable = "link add link0 netns ~s type veth peer name link0 netns ~s",
    Steps =
        [["netns add ", Namespace] || #{namespace := Namespace} <- Machines] ++
            [io_lib:format(Cable, [Namespace || #{namespace := Namespace} <- Machines])] ++
            [
                ["-n ", Namespace, Step]
             || #{namespace := Namespace, address := Address} <- Machines,
                Step <- [
                    [" address add ", Address, "/24 dev link0"],
                    " link set link0 up",
                    " link set lo up"
                ]
            ],
    case [Output || Step <- Steps, Output <- [ip(Step)], Output =/= ""] of
        [] ->
            {ok, Here, There};
        [Reason | _] ->
            remove_machines(Machines),
            {error, Reason}
    end.

%% All processes in the namespaces end with the test case.
remove_machines(Machines) ->
    [ip(["netns delete ", Namespace]) || #{namespace := Namespace} <- Machines],
    ok.

ip(Arguments) ->
    os:cmd(lists:flatten(["ip ", Arguments, " 2>&1"])).

%% As the only carrier, it handles every node. Beside other carriers, it handles the nodes of this host.
select_takes_the_nodes_of_this_host(Config) ->
    Nodes = ['x@here', 'x@there', 'x', 'x@', '@here', 'x@here@there'],
    Select = fun(Node) -> [N || N <- Nodes, call(Node, uds_dist, select, [N])] end,
    Alone = start("a@here", Config),
    ?assertEqual(['x@here', 'x@there'], Select(Alone)),
    Mixed = start("b@here", ?BESIDE_INET_TCP, Config),
    ?assertEqual(['x@here'], Select(Mixed)),
    ?assertEqual([false, true, false], [
        call(Mixed, uds_dist, is_node_name, [N])
     || N <- ['x', 'x@here', "x@here"]
    ]).

%% ---------------------------------------------------------------------------------------------
%% Leftovers

%% However a connection ends, neither the sidecars nor the VMs keep its descriptors.
ended_connections_leave_no_descriptor(Config) ->
    [A, B] = start_all(["a", "b"], #{args => test_node:on_demand()}, Config),
    Stranger = start("c", #{cookie => "another"}, Config),
    connect_and_disconnect(A, B),
    Nodes = [A, B, Stranger],
    Before = open_descriptors(Nodes),
    [connect_and_disconnect(A, B) || _ <- lists:seq(1, ?MANY)],
    expect(fun() -> no_more(Before, open_descriptors(Nodes)) end, {disconnected, Before}),
    pang = test_node:call(Stranger, ?MODULE, ping_repeatedly, [name(A), ?MANY], infinity),
    expect(fun() -> no_more(Before, open_descriptors(Nodes)) end, {refused, Before}),
    [ok = send_garbage(socket(dir(Config), "a")) || _ <- lists:seq(1, ?MANY)],
    expect(fun() -> no_more(Before, open_descriptors(Nodes)) end, {garbage, Before}),
    connect(B, A).

connect_and_disconnect(A, B) ->
    connect(A, B),
    true = call(A, erlang, disconnect_node, [name(B)]),
    ok = expect_nodes(A, []),
    ok = expect_nodes(B, []).

ping_repeatedly(Node, Times) ->
    [pang] = lists:usort([net_adm:ping(Node) || _ <- lists:seq(1, Times)]),
    pang.

%% Its length field says 65535 bytes, which no handshake has.
send_garbage(Socket) ->
    {ok, Client} = gen_tcp:connect({local, Socket}, 0, [local, binary, {active, false}]),
    ok = gen_tcp:send(Client, <<16#FFFF:16, (crypto:strong_rand_bytes(100))/binary>>),
    {error, closed} = gen_tcp:recv(Client, 0, 10000),
    ok = gen_tcp:close(Client).

%% The sidecars at the other end, which have the connections, are killed.
killed_sidecars_leave_no_descriptor(Config) ->
    {Hub, Peers} = start_hub(Config),
    connect_to_hub(Peers, Hub),
    Before = open_descriptors([Hub]),
    [
        begin
            test_node:signal("KILL", [sidecar(Peer) || Peer <- Peers]),
            expect_nodes(Hub, []),
            [expect_nodes(Peer, []) || Peer <- Peers],
            connect_to_hub(Peers, Hub)
        end
     || _ <- lists:seq(1, ?MANY div (2 * length(Peers)))
    ],
    expect(fun() -> no_more(Before, open_descriptors([Hub])) end, {killed_sidecars, Before}).

%% The VMs at the other end are killed.
killed_vms_leave_no_descriptor(Config) ->
    {Hub, [First | Peers]} = start_hub(Config),
    connect(First, Hub),
    ok = hear_from(Hub, First),
    Before = open_descriptors([Hub]),
    connect_to_hub(Peers, Hub),
    expect_nodes(Hub, [name(Peer) || Peer <- [First | Peers]]),
    [test_node:kill(Peer) || Peer <- Peers],
    expect_nodes(Hub, [name(First)]),
    expect(fun() -> no_more(Before, open_descriptors([Hub])) end, {killed_vms, Before}).

start_hub(Config) ->
    Options = #{args => test_node:on_demand()},
    Names = ["n" ++ integer_to_list(I) || I <- lists:seq(1, 10)],
    {start("hub", Options, Config), start_all(Names, Options, Config)}.

connect_to_hub(Peers, Hub) ->
    [true = call(Peer, net_kernel, connect_node, [name(Hub)]) || Peer <- Peers],
    [expect_nodes(Peer, [name(Hub)]) || Peer <- Peers],
    ok.

%% With `direct`, a node is up before the VM has its socket. An answer has come through this socket.
hear_from(Hub, Node) ->
    Name = name(Hub),
    Name = call(Node, erpc, call, [Name, erlang, node, []]),
    ok.

open_descriptors(Nodes) ->
    [
        {length(test_node:descriptors(os_pid(Node))), length(test_node:descriptors(sidecar(Node)))}
     || Node <- Nodes
    ].

%% The previous connection may have been counted in part.
no_more(Before, Now) ->
    case [After || {{A, B}, {C, D} = After} <- lists:zip(Before, Now), C > A orelse D > B] of
        [] -> true;
        More -> {more, More}
    end.

%% Only the sidecar listens.
vm_has_no_listener(Config) ->
    [A, B] = start_all(["a", "b"], Config),
    pong = ping(A, B),
    connected(A, B),
    [
        begin
            ?assertEqual([], test_node:listeners(os_pid(Node))),
            ?assertMatch([_ | _], test_node:listeners(sidecar(Node))),
            ?assertEqual([], test_node:tcp_listeners(os_pid(Node))),
            ?assertEqual([], test_node:tcp_listeners(sidecar(Node)))
        end
     || Node <- [A, B]
    ].

%% While a node's backlog is full, the connect is retried, and succeeds as soon as there is room.
full_backlog_is_retried(Config) ->
    A = start("a", #{config => [{uds_dist, [{backlog, 1}]}]}, Config),
    B = start("b", #{args => ?PATIENT}, Config),
    Clients = fill_backlog(A, Config),
    Ping = pinging(B, A),
    receive
        {Ping, Result} -> error({connected_through_a_full_backlog, Result})
    after 300 ->
        test_node:signal("CONT", sidecar(A))
    end,
    receive
        {Ping, Result1} ->
            ?assertEqual(pong, Result1),
            [ok = socket:close(Client) || Client <- Clients]
    end.

pinging(From, To) ->
    Self = self(),
    spawn_link(fun() -> Self ! {self(), ping(From, To)} end).

%% If the backlog stays full, the attempt ends after the setup time.
full_backlog_ends_with_the_setup_time(Config) ->
    A = start("a", #{config => [{uds_dist, [{backlog, 1}]}]}, Config),
    B = start("b", #{args => ["-kernel", "net_setuptime", "1"]}, Config),
    _Clients = fill_backlog(A, Config),
    {Time, pang} = timer:tc(fun() -> ping(B, A) end),
    ?assert(Time < 30000000),
    test_node:signal("CONT", sidecar(A)),
    pong = ping(B, A).

%% ---------------------------------------------------------------------------------------------

ping(From, To) ->
    call(From, net_adm, ping, [name(To)]).

connect(A, B) ->
    true = call(A, net_kernel, connect_node, [name(B)]),
    connected(A, B).

connected(A, B) ->
    ok = expect_nodes(A, [name(B)]),
    ok = expect_nodes(B, [name(A)]).

rpc(From, To, Module, Function, Arguments) ->
    call(From, erpc, call, [name(To), Module, Function, Arguments]).

short_name(Node) ->
    hd(string:split(atom_to_list(name(Node)), "@")).

socket(Dir, Name) ->
    filename:join(Dir, Name ++ ".sock").

sockets_in(Dir) ->
    lists:sort(filelib:wildcard("*.sock", Dir)).
