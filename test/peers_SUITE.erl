%% Peers that are slow, stopped or silent delay no other peer, lose nothing when they continue, and are
%% detected as dead as fast as with inet_tcp.
-module(peers_SUITE).

-export([suite/0, all/0, groups/0, init_per_group/2, end_per_group/2]).
-export([init_per_testcase/2, end_per_testcase/2]).
%% Slow peers.
-export([stopped_peer_delays_no_other/1, senders_to_a_stopped_peer_are_suspended/1]).
-export([little_is_held_with_a_small_queue/1, everything_arrives_in_order_after_a_stop/1]).
%% Dead peers.
-export([silent_peer_is_down_in_time/1, silent_peer_is_down_in_time_with_bulk_pending/1]).
-export([idle_connection_stays_up/1, saturated_connection_stays_up/1]).
-export([net_ticktime_can_be_changed/1, counters_move/1]).
%% Run in the nodes.
-export([round_trips/2, next_busy/1]).

-include_lib("stdlib/include/assert.hrl").

%% Time limit in milliseconds.
-define(LIMIT, 30000).
%% Longest time, in microseconds, for which other processes may take the machine during a measurement.
-define(BUSY, 5000000).
%% Longest time, in milliseconds, after which a node with a tick time of 4 s notices a silent one on a busy machine.
-define(DOWN, 20000).

suite() ->
    test_node:suite().

all() ->
    test_node:transports().

groups() ->
    [
        {relay, [], [{group, slow}, {group, dead}]},
        {direct, [], [{group, slow}, {group, dead}]},
        {slow, [], [
            stopped_peer_delays_no_other,
            senders_to_a_stopped_peer_are_suspended,
            little_is_held_with_a_small_queue,
            everything_arrives_in_order_after_a_stop
        ]},
        %% These mostly wait for ticks, so they can run in parallel.
        {dead, [parallel], [
            silent_peer_is_down_in_time,
            silent_peer_is_down_in_time_with_bulk_pending,
            idle_connection_stays_up,
            saturated_connection_stays_up,
            net_ticktime_can_be_changed,
            counters_move
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

%% ---------------------------------------------------------------------------------------------
%% Slow and stopped peers

%% While eight processes flood a stopped peer, round trips to another peer continue.
stopped_peer_delays_no_other(Config) ->
    [A, B, C] = connected(["a", "b", "c"], #{}, Config),
    ok = test_load:start_sink(B),
    Before = measure_round_trips(A, C),
    ok = test_node:signal("STOP", test_node:os_pid(B)),
    ok = test_load:start_flood(A, B, 8, 100000),
    ok = test_load:await_suspended(A),
    During = measure_round_trips(A, C),
    test_runner:note("round trips, us: p50 ~b p99 ~b; beside a flooded stopped peer: p50 ~b p99 ~b", [
        test_system:percentile(Percent, Times)
     || Times <- [Before, During], Percent <- [50, 99]
    ]),
    test_runner:note("resident memory of the sidecar: ~b KiB", [
        test_system:resident_kib(test_node:sidecar(A))
    ]),
    true = lists:sum(During) =< 20 * lists:sum(Before) + ?BUSY,
    0 = test_load:downs(A).

measure_round_trips(From, To) ->
    Name = test_node:name(To),
    _ = test_node:call(From, ?MODULE, round_trips, [Name, 1000]),
    test_node:call(From, ?MODULE, round_trips, [Name, 5000]).

%% With the smallest queue, where each message suspends its sender, the node holds no more than some batches.
little_is_held_with_a_small_queue(Config) ->
    [A, B] = connected(["a", "b"], #{args => ["+zdbbl", "1"]}, Config),
    ok = test_load:start_sink(B),
    ok = test_node:signal("STOP", test_node:os_pid(B)),
    ok = test_load:start_flood(A, B, 8, 5000),
    ok = test_load:await_suspended(A),
    [#{queued := Queued}] = test_node:call(A, uds_dist, peers, []),
    test_runner:note("~b bytes are held", [Queued]),
    ?assert(Queued =< 4 * 262144),
    0 = test_load:downs(A).

%% As with every carrier, senders to a stopped peer are suspended: system_monitor reports busy_dist_port, and
%% nosuspend does not wait.
senders_to_a_stopped_peer_are_suspended(Config) ->
    [A, B] = connected(["a", "b"], #{}, Config),
    ok = test_load:start_sink(B),
    ok = test_node:signal("STOP", test_node:os_pid(B)),
    ok = test_load:start_flood(A, B, 8, 100000),
    ok = test_load:await_suspended(A),
    nosuspend = test_node:call(A, erlang, send, [
        {sink, test_node:name(B)}, message, [nosuspend, noconnect]
    ]),
    {monitor, Sender, busy_dist_port, _} = test_node:call(A, ?MODULE, next_busy, [
        {sink, test_node:name(B)}
    ]),
    true = is_pid(Sender),
    ok = test_node:signal("CONT", test_node:os_pid(B)),
    Name = test_node:name(B),
    Name = test_node:call(A, erpc, call, [Name, erlang, node, []]),
    0 = test_load:downs(A).

%% When a stopped peer continues, it gets everything that was sent to it meanwhile, in order.
everything_arrives_in_order_after_a_stop(Config) ->
    [A, B] = connected(["a", "b"], #{}, Config),
    ok = test_load:start_ledger(B),
    ok = test_node:signal("STOP", [test_node:os_pid(B), test_node:sidecar(B)]),
    Count = 3000,
    Caller = self(),
    {Sender, Monitor} = spawn_monitor(fun() ->
        ok = test_load:send_numbered(A, B, Count, 10000),
        Caller ! {self(), sent}
    end),
    test_node:expect(fun() -> test_load:is_sender_suspended(A) end, suspended_sender),
    ok = test_node:signal("CONT", [test_node:os_pid(B), test_node:sidecar(B)]),
    receive
        {Sender, sent} -> demonitor(Monitor, [flush]);
        {'DOWN', Monitor, process, _, Reason} -> error(Reason)
    after ?LIMIT -> error(still_suspended)
    end,
    test_node:expect(fun() -> length(test_load:ledger(B)) =:= Count end, all_messages),
    Expected = lists:seq(1, Count),
    Expected = test_load:ledger(B),
    0 = test_load:downs(A).

%% ---------------------------------------------------------------------------------------------
%% Dead peers

%% A stopped peer without traffic is nodedown within the tick time, as with inet_tcp.
silent_peer_is_down_in_time(Config) ->
    compare_with_inet_tcp("silent", fun(_) -> ok end, Config).

%% So is a stopped peer with megabytes on their way to it. (With inet_tcp it may stay up for minutes, because
%% ticks wait behind the bulk.)
silent_peer_is_down_in_time_with_bulk_pending(Config) ->
    Flood = fun([A, B]) ->
        ok = test_load:start_sink(B),
        ok = test_load:start_flood(A, B, 2, 100000)
    end,
    compare_with_inet_tcp("silent, with bulk pending", Flood, Config).

compare_with_inet_tcp(What, Prepare, Config) ->
    Args = ticktime(4),
    Pairs = [connected(["a", "b"], #{args => Args}, Config), inet_tcp_pair(Args, Config)],
    lists:foreach(Prepare, Pairs),
    Stopped = os:system_time(millisecond),
    [ok = test_node:signal("STOP", test_node:os_pid(B)) || [_, B] <- Pairs],
    %% The second one may be up for minutes.
    [Ours, Theirs] = [down_after(A, Stopped, Limit) || {[A, _], Limit} <- lists:zip(Pairs, [?DOWN, 8000])],
    test_runner:note("~s: nodedown after ~p ms, with inet_tcp after ~p ms", [What, Ours, Theirs]),
    true = is_in_time(Ours).

%% net_kernel checks four times per tick time, and gives up at the fourth check without input: 3 to 5 seconds
%% after the last input, which may be a second older than the stop. A busy machine is late, so only ?DOWN limits
%% it from above.
is_in_time(Took) ->
    is_integer(Took) andalso Took >= 1500.

%% The time from the stop until the other node was down, both in milliseconds; `up` if it is not down within
%% this limit.
down_after(Node, Stopped, Limit) ->
    case test_load:is_up_for(Node, max(0, Stopped + Limit - os:system_time(millisecond))) of
        true -> up;
        false -> test_load:down_at(Node) - Stopped
    end.

%% Two nodes with inet_tcp and without an epmd: the port is agreed on beforehand.
inet_tcp_pair(Args, Config) ->
    {ok, Socket} = gen_tcp:listen(0, [{ip, {127, 0, 0, 1}}]),
    {ok, Port} = inet:port(Socket),
    ok = gen_tcp:close(Socket),
    Carrier = [
        "-proto_dist",
        "inet_tcp",
        "-start_epmd",
        "false",
        "-erl_epmd_port",
        integer_to_list(Port)
    ],
    Options = #{carrier => Carrier, dir => none, long => true},
    B = test_node:start("b@127.0.0.1", Options#{args => Args}, Config),
    A = test_node:start("a@127.0.0.1", Options#{args => ["-dist_listen", "false" | Args]}, Config),
    connect([A, B]).

%% Ticks keep an idle connection up, even after two tick times. A shorter tick time would end it when the busy
%% machine stalls a node for two seconds.
idle_connection_stays_up(Config) ->
    [A, B] = connected(["a", "b"], #{args => ticktime(8)}, Config),
    %% A silent peer would be down after 10 s.
    true = test_load:is_up_for(A, 20000),
    [0 = test_load:downs(Node) || Node <- [A, B]].

%% A connection full of bulk data in one direction is not taken for dead, neither by the sender nor by the
%% receiver, after more than a tick time.
saturated_connection_stays_up(Config) ->
    [A, B] = connected(["a", "b"], #{args => ticktime(4)}, Config),
    ok = test_load:start_sink(B),
    ok = test_load:start_flood(A, B, 4, 1000000),
    %% A silent peer would be down after 5 s. The flood takes all processors, so it is short.
    true = test_load:is_up_for(A, 5500),
    [0 = test_load:downs(Node) || Node <- [A, B]],
    {ok, Info} = test_node:call(A, net_kernel, node_info, [test_node:name(B)]),
    test_runner:note("packets in and out meanwhile: ~p", [[proplists:lookup(Key, Info) || Key <- [in, out]]]).

%% net_kernel:set_net_ticktime/1,2 work as with every carrier.
net_ticktime_can_be_changed(Config) ->
    [A, B] = connected(["a", "b"], #{}, Config),
    60 = test_node:call(A, net_kernel, get_net_ticktime, []),
    [
        change_initiated = test_node:call(Node, net_kernel, set_net_ticktime, [4, 0])
     || Node <- [A, B]
    ],
    test_node:expect(
        fun() -> test_node:call(A, net_kernel, get_net_ticktime, []) =:= 4 end, ticktime_4
    ),
    Stopped = os:system_time(millisecond),
    ok = test_node:signal("STOP", test_node:os_pid(B)),
    Took = down_after(A, Stopped, ?DOWN),
    test_runner:note("after a change to 4 s: nodedown after ~p ms", [Took]),
    true = is_in_time(Took),
    change_initiated = test_node:call(A, net_kernel, set_net_ticktime, [8]),
    {ongoing_change_to, 8} = test_node:call(A, net_kernel, get_net_ticktime, []).

%% The counters of net_kernel:nodes_info/0 increase in both directions.
counters_move(Config) ->
    [A, B] = connected(["a", "b"], #{}, Config),
    Before = counters(A, B),
    Name = test_node:name(B),
    [Name = test_node:call(A, erpc, call, [Name, erlang, node, []]) || _ <- lists:seq(1, 10)],
    After = counters(A, B),
    [true = New >= Old + 10 || {Old, New} <- lists:zip(Before, After)].

counters(From, To) ->
    {ok, Nodes} = test_node:call(From, net_kernel, nodes_info, []),
    Info = proplists:get_value(test_node:name(To), Nodes),
    [proplists:get_value(Key, Info) || Key <- [in, out]].

%% ---------------------------------------------------------------------------------------------

ticktime(Seconds) ->
    ["-kernel", "net_ticktime", integer_to_list(Seconds)].

%% Starts nodes, and connects the first one with the others.
connected(Names, Options, Config) ->
    connect([test_node:start(Name, Options, Config) || Name <- Names]).

connect([First | Others] = Nodes) ->
    [ok = test_load:prepare(Node) || Node <- Nodes],
    [
        true = test_node:call(First, net_kernel, connect_node, [test_node:name(Other)])
     || Other <- Others
    ],
    test_node:expect_nodes(First, [test_node:name(Other) || Other <- Others]),
    %% With any carrier, dist_util does not detect missing ticks of a node that has never sent a frame.
    [
        ok = test_node:call(First, test_traffic, round_trips, [test_node:name(Other), 1, 0])
     || Other <- Others
    ],
    Nodes.

%% ---------------------------------------------------------------------------------------------
%% In the nodes

%% The time of each round trip to the echo process of another node, in microseconds.
round_trips(Node, Count) ->
    [round_trip({echo, Node}) || _ <- lists:seq(1, Count)].

round_trip(Echo) ->
    Ref = make_ref(),
    Start = erlang:monotonic_time(),
    Echo ! {self(), Ref, <<>>},
    receive
        {Ref, <<>>} ->
            erlang:convert_time_unit(erlang:monotonic_time() - Start, native, microsecond)
    after ?LIMIT -> error(no_answer)
    end.

%% Reports of the system monitor about a process that sends to a busy node.
next_busy(To) ->
    _ = erlang:system_monitor(self(), [busy_dist_port]),
    _ = spawn(fun() -> To ! message end),
    receive
        {monitor, _, _, _} = Report -> Report
    after ?LIMIT -> error(not_reported)
    end.
