%% Resource limits: no descriptors, no disk space, and a thousand peers.
-module(limits_SUITE).

-export([suite/0, all/0, groups/0, init_per_group/2, end_per_group/2]).
-export([init_per_testcase/2, end_per_testcase/2]).
-export([accepting_pauses_without_descriptors/1, sidecar_cannot_be_started_without_descriptors/1]).
-export([names_are_complete_with_few_descriptors/1, names_are_complete_with_the_other_backend/1]).
-export([names_are_an_error_without_a_probe/1]).
-export([full_disk_is_a_clear_error/1, read_only_directory_is_a_clear_error/1]).
-export([thousand_connections/1]).
-export([earlier_handshakes_cost_nothing/1]).
%% Run in the nodes.
-export([send_to_all/1, use_up_ports/0]).

-include_lib("stdlib/include/assert.hrl").

suite() ->
    test_node:suite().

all() ->
    test_node:transports().

groups() ->
    [
        {relay, [], [
            accepting_pauses_without_descriptors,
            sidecar_cannot_be_started_without_descriptors,
            names_are_complete_with_few_descriptors,
            names_are_complete_with_the_other_backend,
            names_are_an_error_without_a_probe,
            full_disk_is_a_clear_error,
            read_only_directory_is_a_clear_error,
            thousand_connections,
            earlier_handshakes_cost_nothing
        ]},
        {direct, [], [
            accepting_pauses_without_descriptors,
            names_are_complete_with_few_descriptors,
            thousand_connections
        ]}
    ].

init_per_group(Group, Config) ->
    test_node:init_group(Group, Config).

end_per_group(_Group, _Config) ->
    ok.

init_per_testcase(_Case, Config) ->
    test_node:init(Config).

end_per_testcase(_Case, Config) ->
    test_node:cleanup(Config).

%% A sidecar without free descriptors accepts no connections, and logs one line. Existing connections are
%% unaffected. When a descriptor is free, it accepts connections again. limits.rs checks that it does not spin
%% meanwhile.
accepting_pauses_without_descriptors(Config) ->
    case os:find_executable("prlimit") of
        false -> {skip, "prlimit (util-linux) is not there to lower a limit"};
        Prlimit -> accepting_pauses(Prlimit, Config)
    end.

accepting_pauses(Prlimit, Config) ->
    [A, B] = Nodes = [test_node:start(Name, Config) || Name <- ["a", "b"]],
    [ok = test_load:prepare(Node) || Node <- Nodes],
    true = connect(A, B),
    Sidecar = test_node:sidecar(A),
    %% There is room for three more descriptors.
    Limit = length(test_node:descriptors(Sidecar)) + 3,
    "" = os:cmd(io_lib:format("~s --pid ~b --nofile=~b", [Prlimit, Sidecar, Limit])),
    Peers = [test_peer:connect("a", Config) || _ <- lists:seq(1, 5)],
    test_node:expect_output(A, "cannot accept connections: .*; raise the limit of open files"),
    [ok = round_trip(From, To) || _ <- lists:seq(1, 100), {From, To} <- [{A, B}, {B, A}]],
    [ok = socket:close(Peer) || Peer <- Peers],
    C = test_node:start("c", Config),
    test_node:expect(fun() -> connect(C, A) end, accepted_again),
    ok = round_trip(C, A),
    test_node:expect_output(A, "accepting connections again"),
    [_, _] = string:split(test_node:output(A), "cannot accept connections", all),
    Sidecar = test_node:sidecar(A),
    0 = test_load:downs(B).

%% A VM that cannot open more files cannot start another sidecar. It says so, and starts one when there is room.
sidecar_cannot_be_started_without_descriptors(Config) ->
    A = test_node:start("a", test_node:few_descriptors(), Config),
    ok = test_node:call(A, test_node, use_up_descriptors, []),
    Old = test_node:sidecar(A),
    ok = test_node:signal("KILL", Old),
    test_node:expect_output(A, "the sidecar .* did not start: .* no file descriptor left .*ulimit -n"),
    ok = test_node:call(A, test_node, give_back_descriptors, []),
    test_node:expect_output(A, "the sidecar is back, after [0-9]+ tries"),
    test_node:expect_listening(A, Old, Config).

%% A node that has fewer descriptors than there are sockets asks these a few at a time, down to one by one. If it
%% cannot even read the directory, it says so: an empty list would mean that nobody is there.
names_are_complete_with_few_descriptors(Config) ->
    names_are_complete([], Config).

%% gen_tcp has another implementation, with other errors, which a node may have as its default.
names_are_complete_with_the_other_backend(Config) ->
    names_are_complete(["-kernel", "inet_backend", "socket"], Config).

names_are_complete(Args, Config) ->
    Options = #{args => ["-epmd_module", "uds_dist_epmd" | Args]},
    A = test_node:start("a", maps:merge(Options, test_node:few_descriptors()), Config),
    {Names, Sockets} = listeners(300, Config),
    [Dead | _] = lists:reverse(Sockets),
    ok = socket:close(Dead),
    All = {ok, ["a" | lists:droplast(Names)]},
    ?assertEqual(All, test_node:call(A, uds_dist, names, [])),
    %% This loads the modules that are needed to ask the stand-in for epmd.
    Please = fun(Name) -> test_node:call(A, uds_dist_epmd, port_please, [Name, "localhost"]) end,
    ?assertMatch({ok, [{"a", 0} | _]}, test_node:call(A, net_adm, names, [])),
    ?assertEqual([{port, 0, 6}, noport], [Please(Name) || Name <- [hd(Names), lists:last(Names)]]),
    [
        begin
            ok = test_node:call(A, test_node, use_up_descriptors, [Left]),
            ?assertEqual({Left, All}, {Left, test_node:call(A, uds_dist, names, [])}),
            ok = test_node:call(A, test_node, give_back_descriptors, [])
        end
     || Left <- [20, 3, 2, 1]
    ],
    ok = test_node:call(A, test_node, use_up_descriptors, []),
    ?assertEqual({error, emfile}, test_node:call(A, uds_dist, names, [])),
    ?assertEqual({error, emfile}, test_node:call(A, net_adm, names, [])),
    ?assertEqual({error, emfile}, Please(hd(Names))),
    ok = test_node:call(A, test_node, give_back_descriptors, []),
    ?assertEqual(All, test_node:call(A, uds_dist, names, [])),
    [ok = socket:close(Socket) || Socket <- Sockets, Socket =/= Dead].

%% Reading a directory takes no port of the VM, while asking a socket does.
names_are_an_error_without_a_probe(Config) ->
    A = test_node:start("a", #{args => ["+Q", "1024"]}, Config),
    {Names, Sockets} = listeners(40, Config),
    All = {ok, ["a" | Names]},
    ?assertEqual(All, test_node:call(A, uds_dist, names, [])),
    ok = test_node:call(A, ?MODULE, use_up_ports, []),
    ?assertEqual({error, system_limit}, test_node:call(A, uds_dist, names, [])),
    [ok = socket:close(Socket) || Socket <- Sockets].

%% Sockets with the names of nodes, in the order of their names.
listeners(Count, Config) ->
    Names = ["s" ++ integer_to_list(Number) || Number <- lists:seq(100, 99 + Count)],
    {Names, [listener(Name, Config) || Name <- Names]}.

listener(Name, Config) ->
    {ok, Socket} = socket:open(local, stream),
    Path = filename:join(test_node:dir(Config), Name ++ ".sock"),
    ok = socket:bind(Socket, #{family => local, path => Path}),
    ok = socket:listen(Socket),
    Socket.

%% If no file can be created, the error explains that, and what to do.
full_disk_is_a_clear_error(Config) ->
    with_tmpfs(
        "size=64k",
        fun(Dir) ->
            {error, enospc} = file:write_file(filename:join(Dir, "full"), rand:bytes(1 bsl 20)),
            refused(Dir, "No space left on device", Config)
        end,
        Config
    ).

%% The same holds on a read-only file system.
read_only_directory_is_a_clear_error(Config) ->
    with_tmpfs(
        "ro",
        fun(Dir) -> refused(Dir, "Read-only file system", Config) end,
        Config
    ).

with_tmpfs(Options, Run, Config) ->
    Dir = test_node:dir("tmpfs", Config),
    case os:cmd(io_lib:format("mount -t tmpfs -o ~s uds_dist_test ~s 2>&1", [Options, Dir])) of
        "" ->
            try
                Run(Dir)
            after
                "" = os:cmd("umount " ++ Dir ++ " 2>&1")
            end;
        Refused ->
            {skip, "a file system cannot be mounted here: " ++ Refused}
    end.

refused(Dir, Why, Config) ->
    Options = #{
        name => "a",
        dir => Dir,
        args => ["-noinput"],
        env => [{"ERL_CRASH_DUMP_SECONDS", "0"}]
    },
    {Status, Output} = test_node:expect_exit(test_node:launch(Options, Config)),
    true = Status =/= 0,
    test_node:expect_output_of(Output, [
        "cannot listen as a: cannot .*: ", Why, " .*; set socket_dir to another directory"
    ]),
    ok.

%% A thousand hidden nodes connect to one node. This process plays all of them in the handshake.
thousand_connections(Config) ->
    Backlog = [{uds_dist, [{backlog, 128}]}],
    Hub = test_node:start("hub", #{config => Backlog}, Config),
    Other = test_node:start("other", Config),
    [ok = test_load:prepare(Node) || Node <- [Hub, Other]],
    true = connect(Other, Hub),
    Processes = [{"VM", test_node:os_pid(Hub)}, {"sidecar", test_node:sidecar(Hub)}],
    Before = usage(Processes),
    Start = test_system:now_ms(),
    Peers = [shake_hands(Number, Config) || Number <- lists:seq(4, 1003)],
    %% The hub takes a node for connected only after it has sent the last packet of the handshake.
    test_node:expect(
        fun() ->
            case length(test_node:call(Hub, erlang, nodes, [connected])) of
                1001 -> true;
                Count -> Count
            end
        end,
        all_connected
    ),
    Connected = test_system:now_ms(),
    After = usage(Processes),
    ok = test_node:call(Hub, ?MODULE, send_to_all, [message]),
    lists:foreach(fun test_peer:expect_frame/1, Peers),
    Sent = test_system:now_ms(),
    Later = usage(Processes),
    test_runner:note("1000 connections in ~b ms, a message to each in ~b ms", [
        Connected - Start, Sent - Connected
    ]),
    [
        test_runner:note("~s: ~b KiB before, ~b KiB after; CPU ~b ms to connect, ~b ms to send", [
            Name, Kib0, Kib1, Cpu1 - Cpu0, Cpu2 - Cpu1
        ])
     || {{Name, _}, {Kib0, Cpu0}, {Kib1, Cpu1}, {_, Cpu2}} <- zip(Processes, Before, After, Later)
    ],
    ok = round_trip(Other, Hub),
    [ok = socket:close(Peer) || Peer <- Peers],
    test_node:expect_nodes(Hub, [test_node:name(Other)]),
    ok = round_trip(Other, Hub),
    0 = test_load:downs(Other),
    [_] = test_node:call(Hub, test_load, controllers, []).

%% A node remembers the packets that it has sent in handshakes. Others may connect and disconnect again and again.
earlier_handshakes_cost_nothing(_Config) ->
    ok = uds_dist_reflection:new(),
    [First | _] = Costs = [cost_of_handshakes(Round) || Round <- lists:seq(1, 20)],
    test_runner:note("reductions for a thousand packets: ~p", [Costs]),
    true = lists:last(Costs) < 3 * First.

cost_of_handshakes(Round) ->
    Packets = [<<$a, Round:64, Number:64>> || Number <- lists:seq(1, 1000)],
    {reductions, Before} = process_info(self(), reductions),
    lists:foreach(fun uds_dist_reflection:remember/1, Packets),
    {reductions, After} = process_info(self(), reductions),
    After - Before.

usage(Processes) ->
    [{test_system:resident_kib(Pid), test_system:cpu_ms(Pid)} || {_, Pid} <- Processes].

zip([A | As], [B | Bs], [C | Cs], [D | Ds]) -> [{A, B, C, D} | zip(As, Bs, Cs, Ds)];
zip([], [], [], []) -> [].

%% Connects this process as another hidden node.
shake_hands(Number, Config) ->
    Socket = test_peer:connect("hub", Config),
    Name = list_to_binary(io_lib:format("peer~b@host", [Number])),
    ok = test_peer:shake_hands(Socket, #{name => Name, number => Number}),
    Socket.

connect(From, To) ->
    test_node:call(From, net_kernel, connect_node, [test_node:name(To)]).

round_trip(From, To) ->
    Name = test_node:name(To),
    Name = test_node:call(From, erpc, call, [Name, erlang, node, []]),
    ok.

%% ---------------------------------------------------------------------------------------------
%% In the nodes

send_to_all(Message) ->
    lists:foreach(fun(Node) -> {nobody, Node} ! Message end, nodes(hidden)).

%% A process that stays keeps the ports.
use_up_ports() ->
    Self = self(),
    spawn(fun() ->
        ok = open_ports(),
        Self ! used_up,
        receive
        after infinity -> ok
        end
    end),
    receive
        used_up -> ok
    end.

open_ports() ->
    try open_port({spawn_driver, "udp_inet"}, [binary]) of
        Port when is_port(Port) -> open_ports()
    catch
        error:system_limit -> ok
    end.
