%% The cases. Each of them takes a group of nodes and returns figures.
%%
%% The names of figures contain their unit: p50_us is in microseconds, and mb_s in megabytes (10^6 bytes) per second.
%% If a name ends with _s, more is better, and otherwise less. A figure whose name ends with _sidecars is the sidecars'
%% part of the figure with the rest of the name.
-module(bench_cases).

-export([all/0, stages/0, plan/1, stage/1, peers/1, run/3, floor/2]).

-export_type([bench_case/0, figure/0, stage/0, plan/0]).

-type bench_case() ::
    {round_trips, alone | beside | flooded | busy | mesh}
    | {stream, one | both | four | mesh, Senders :: pos_integer(), bytes()}
    | {busy_stream, into | out_of, Busy :: pos_integer(), Senders :: pos_integer(), bytes()}
    | connect
    | {fan_out, Peers :: pos_integer()}
    | {idle, Connections :: pos_integer()}.

%% The size of a message.
-type bytes() :: pos_integer().

-type figure() :: {Name :: string(), number()}.

%% The cases of a stage share their nodes.
-type stage() :: few_nodes | busy_nodes | fan_out | crowd.

-type plan() :: #{
    title := string(),
    %% Whether the nodes of all carriers run at the same time. With many nodes, carriers take turns.
    together := boolean(),
    %% Whether it is measured in each round, or only in the first one.
    repeated := boolean(),
    %% Arguments of all nodes.
    arguments := [string()]
}.

-define(KIB, 1024).
-define(MIB, (1024 * 1024)).
%% The rate of payloads up to this size is given in messages, and of longer ones in bytes.
-define(MESSAGE, ?KIB).
%% Size of the messages that saturate a connection.
-define(FLOOD_SIZE, (64 * ?KIB)).
%% Number of processes that compute all the time in each of the busy nodes.
-define(COMPUTING, 20).

%% In each stage, long messages are measured before short ones. Many short messages in a mailbox can leave the VM's
%% allocators in a state in which each long message costs a page fault for every 4 KiB.
-spec all() -> [{Name :: string(), bench_case()}].
all() ->
    [
        {"rtt", {round_trips, alone}},
        {"rtt_beside", {round_trips, beside}},
        {"rtt_flooded", {round_trips, flooded}},
        {"rtt_busy", {round_trips, busy}},
        {"rtt_mesh", {round_trips, mesh}},
        {"connect", connect}
    ] ++
        [
            {Before ++ Name ++ After, {stream, Which, Senders, Size}}
         || {Name, Size} <- sizes(),
            {Before, Which, After, Senders} <- ways(Name)
        ] ++
        [
            {"into_busy_bulk1m", {busy_stream, into, 300, 4, ?MIB}},
            {"out_of_busy_bulk1m", {busy_stream, out_of, 300, 50, ?MIB}},
            {"out_of_busy_bulk64k", {busy_stream, out_of, 100, 50, 64 * ?KIB}},
            {"fan_out2", {fan_out, 2}},
            {"fan_out8", {fan_out, 8}},
            {"fan_out19", {fan_out, 19}},
            {"idle50", {idle, 50}}
        ].

sizes() ->
    [
        {"bulk16m", 16 * ?MIB},
        {"bulk1m", ?MIB},
        {"bulk64k", 64 * ?KIB},
        {"bulk16k", 16 * ?KIB},
        {"msg1k", ?KIB},
        {"msg256", 256},
        {"msg16", 16}
    ].

ways(Name) when Name =:= "msg16"; Name =:= "bulk64k" ->
    [{"", one, "", 1}, {"", one, "x8", 8}] ++
        [{"both_", both, "", 1}, {"four_", four, "", 1}, {"mesh_", mesh, "", 1}];
ways(_) ->
    [{"", one, "", 1}, {"", one, "x8", 8}].

%% The cases, in the order in which they are run.
-spec stages() -> [stage()].
stages() ->
    [few_nodes, busy_nodes, fan_out, crowd].

-spec plan(stage()) -> plan().
plan(few_nodes) ->
    #{title => "few nodes", together => true, repeated => true, arguments => []};
plan(busy_nodes) ->
    #{title => "busy nodes", together => true, repeated => true, arguments => []};
plan(fan_out) ->
    #{title => "fan-out", together => false, repeated => true, arguments => ["+S", "1:1"]};
plan(crowd) ->
    #{title => "crowd", together => false, repeated => false, arguments => []}.

-spec stage(bench_case()) -> stage().
stage({busy_stream, _, _, _, _}) -> busy_nodes;
stage({fan_out, _}) -> fan_out;
stage({idle, _}) -> crowd;
stage(_) -> few_nodes.

%% Number of nodes to which the hub has to be connected.
-spec peers(bench_case()) -> pos_integer().
peers({round_trips, beside}) -> 2;
peers({round_trips, mesh}) -> 2;
peers({stream, mesh, _, _}) -> 2;
peers({stream, four, _, _}) -> 4;
peers({fan_out, Peers}) -> Peers;
peers({idle, Connections}) -> Connections;
peers(_) -> 1.

%% Time is the length of a measurement in milliseconds. Cases that use a count instead make it proportional.
-spec run(bench_case(), Time :: pos_integer(), bench_carrier:group()) -> [figure()].
run({round_trips, alone}, Time, Group) ->
    [Peer | _] = bench_carrier:peers(Group),
    Count = pings(Time),
    Percentiles = percentiles(traffic(Group, round_trips, [Peer, Count])),
    Processes = bench_carrier:processes(Group),
    %% Measured once more, without the processor time for the percentiles.
    {ok, Cpu, Switches} = used(fun() -> traffic(Group, trips, [Peer, Count]) end, Processes),
    Percentiles ++
        by_kind("cpu_us_trip", fun(Ns) -> Ns / 1000 / Count end, Cpu) ++
        by_kind("switches_trip", fun(Number) -> Number / Count end, Switches);
run({round_trips, beside}, Time, Group) ->
    [Peer, Busy | _] = bench_carrier:peers(Group),
    percentiles(traffic(Group, round_trips_beside, [Peer, Busy, ?FLOOD_SIZE, 8 * Time]));
run({round_trips, flooded}, Time, Group) ->
    [Peer | _] = bench_carrier:peers(Group),
    [{"mean_us", traffic(Group, round_trips_flooded, [Peer, ?FLOOD_SIZE, 2 * Time])}];
run({round_trips, busy}, Time, Group) ->
    [Peer | _] = bench_carrier:peers(Group),
    percentiles(traffic(Group, round_trips_busy, [Peer, ?COMPUTING, 6 * Time]));
run({round_trips, mesh}, Time, Group) ->
    InMesh = fun(Nodes) -> traffic(Group, round_trips_mesh, [Nodes, Time]) end,
    percentiles(bench_carrier:with_mesh(InMesh, Group));
run({stream, mesh, Senders, Size}, Time, Group) ->
    bench_carrier:with_mesh(
        fun(Nodes) -> flow(stream_all, [Nodes, Senders, Size, Time], Size, Group) end, Group
    );
run({stream, both, Senders, Size}, Time, Group) ->
    [Peer | _] = bench_carrier:peers(Group),
    Nodes = [bench_carrier:hub(Group), Peer],
    flow(stream_all, [Nodes, Senders, Size, Time], Size, Group);
run({stream, Which, Senders, Size}, Time, Group) ->
    Peers = lists:sublist(bench_carrier:peers(Group), receivers(Which)),
    flow(stream, [Peers, Senders, Size, Time], Size, Group);
run({busy_stream, Direction, Busy, Senders, Size}, Time, Group) ->
    [Peer | _] = bench_carrier:peers(Group),
    BusyNode = busy_node(Direction, bench_carrier:hub(Group), Peer),
    %% As in flow/4, but the first run is without busy processes, because some carriers take very long with them. The
    %% measurement takes longer, because each end of a stream waits for its turn among them, and because it takes
    %% seconds until one sees that messages arrive faster than their receivers run.
    _ = traffic(Group, stream, [[Peer], Senders, Size, Time]),
    Flow = fun() ->
        traffic(Group, stream_busy, [BusyNode, Busy, Peer, Senders, Size, 16 * Time])
    end,
    {{Messages, Microseconds}, Peaks} =
        bench_memory:peaks(Flow, bench_carrier:members(Group), bench_carrier:processes(Group)),
    [{"mb_s", Messages * Size / Microseconds}] ++
        by_kind("memory_mib", fun(Bytes) -> Bytes / ?MIB end, Peaks);
run(connect, Time, Group) ->
    [Peer | _] = bench_carrier:peers(Group),
    Count = max(1, Time div 5),
    Times = [reconnect(Peer, Group) || _ <- lists:seq(1, Count)],
    [{"connects_s", Count * 1000000 / lists:sum(Times)}];
run({fan_out, Count}, Time, Group) ->
    Peers = lists:sublist(bench_carrier:peers(Group), Count),
    %% There are too few calls for the slowest one in a thousand.
    {P50, P99, _} = traffic(Group, multicalls, [Peers, 2 * Time]),
    [{"p50_us", P50}, {"p99_us", P99}];
run({idle, _}, Time, Group) ->
    Processes = bench_carrier:processes_of_hub(Group),
    Wait = 10 * Time,
    Idle = fun() ->
        receive
        after Wait -> ok
        end
    end,
    {ok, Cpu, _Switches} = used(Idle, Processes),
    Rss = [{Kind, test_system:resident_kib(Pid)} || {Kind, Pid} <- Processes],
    by_kind("rss_mib", fun(KiB) -> KiB / 1024 end, Rss) ++
        by_kind("cpu_ms_idle_second", fun(Ns) -> Ns / 1000 / Wait end, Cpu).

busy_node(into, _Hub, Peer) -> Peer;
busy_node(out_of, Hub, _Peer) -> Hub.

receivers(one) -> 1;
receivers(four) -> 4.

reconnect(Peer, Group) ->
    ok = bench_carrier:disconnect(Peer, Group),
    case traffic(Group, connect, [Peer]) of
        {Microseconds, true} ->
            Microseconds;
        {Microseconds, false} ->
            throw(io_lib:format("connecting failed after ~b ms", [Microseconds div 1000]))
    end.

%% The rate of messages of this size, and the processor time that they take.
flow(Function, Arguments, Size, Group) ->
    Flow = fun() -> traffic(Group, Function, Arguments) end,
    %% It first runs for the same time without measuring, because memory for the first large messages is new to the
    %% node and to the system.
    _ = Flow(),
    {{Messages, Microseconds}, Cpu, _} = used(Flow, bench_carrier:processes(Group)),
    transfer(Size, Messages, Microseconds, Cpu).

traffic(Group, Function, Arguments) ->
    bench_carrier:call_hub(Group, bench_traffic, Function, Arguments).

percentiles({P50, P99, P999}) ->
    [{"p50_us", P50}, {"p99_us", P99}, {"p999_us", P999}].

transfer(Size, Messages, Microseconds, Cpu) when Size =< ?MESSAGE ->
    PerMessage = fun(Ns) -> Ns / 1000 / Messages end,
    [{"msg_s", Messages * 1000000 / Microseconds} | by_kind("cpu_us_msg", PerMessage, Cpu)];
transfer(Size, Messages, Microseconds, Cpu) ->
    Bytes = Messages * Size,
    %% Nanoseconds per byte are seconds per gigabyte.
    PerByte = fun(Ns) -> Ns / Bytes end,
    [{"mb_s", Bytes / Microseconds} | by_kind("cpu_s_gb", PerByte, Cpu)].

%% The sum over all processes, and that over the sidecars among them.
by_kind(Name, Scale, Measured) ->
    [{Name, Scale(lists:sum([Value || {_, Value} <- Measured]))}] ++
        case [Value || {sidecar, Value} <- Measured] of
            [] -> [];
            OfSidecars -> [{Name ++ "_sidecars", Scale(lists:sum(OfSidecars))}]
        end.

%% Runs Fun. Returns the processor time in nanoseconds and the context switches of each process meanwhile.
used(Fun, Processes) ->
    {CpuBefore, SwitchesBefore} = {cpu(Processes), switches(Processes)},
    Result = Fun(),
    {Result, grown(CpuBefore, cpu(Processes)), grown(SwitchesBefore, switches(Processes))}.

cpu(Processes) ->
    [{Kind, bench_machine:cpu_ns(Pid)} || {Kind, Pid} <- Processes].

switches(Processes) ->
    [{Kind, bench_machine:switches(Pid)} || {Kind, Pid} <- Processes].

grown(Before, After) ->
    [{Kind, Now - Then} || {{Kind, Then}, {Kind, Now}} <- lists:zip(Before, After)].

%% Arguments of the tool that measures the same without a VM, if that makes sense.
-spec floor(bench_case(), Time :: pos_integer()) -> [string()] | none.
floor({round_trips, alone}, Time) ->
    ["floor-round-trips", integer_to_list(pings(Time))];
floor({stream, one, 1, Size}, Time) when Size > ?MESSAGE ->
    ["floor-stream", integer_to_list(Size), integer_to_list(Time)];
floor(_, _) ->
    none.

pings(Time) ->
    40 * Time.
