%% The traffic between the nodes of a benchmark, and its measurement. Runs in the nodes, and does not depend on the
%% carrier.
-module(bench_traffic).

-export([round_trips/2, round_trips_beside/4, round_trips_flooded/3, round_trips_busy/3]).
-export([round_trips_mesh/2, trips/2, multicalls/2]).
-export([stream/4, stream_all/4, stream_busy/6, connect/1]).
%% Run in other nodes.
-export([round_trips_to_all/2, echo/1, sink/1, workers/3]).
%% Processes.
-export([send/5, flood/3, compute/1, serve/1]).

%% The median and the percentiles 99 and 99.9 of round trips, in microseconds.
-type percentiles() :: {P50 :: float(), P99 :: float(), P999 :: float()}.

%% Number of messages, and the microseconds from the first one sent until all have arrived.
-type transfer() :: {Messages :: pos_integer(), Microseconds :: pos_integer()}.

%% A process repeatedly sends a small message to a process of another node and waits for the answer.
-spec round_trips(node(), Count :: pos_integer()) -> percentiles().
round_trips(Node, Count) ->
    Echo = start_echo(Node),
    _ = ping(Echo, Count div 10 + 1, []),
    Times = ping(Echo, Count, []),
    Echo ! stop,
    percentiles(Times).

%% The same without measuring the time.
-spec trips(node(), Count :: pos_integer()) -> ok.
trips(Node, Count) ->
    Echo = start_echo(Node),
    _ = ping(Echo, Count, []),
    Echo ! stop,
    ok.

%% Each node has round trips with each other node at the same time, for Time milliseconds.
-spec round_trips_mesh([node()], Time :: pos_integer()) -> percentiles().
round_trips_mesh(Nodes, Time) ->
    percentiles(lists:append(on_each(Nodes, round_trips_to_all, [Time]))).

-spec round_trips_to_all([node()], Time :: pos_integer()) -> Native :: [integer()].
round_trips_to_all(Nodes, Time) ->
    Starter = self(),
    Pingers = [spawn_link(fun() -> Starter ! {self(), ping_for(Time, Node)} end) || Node <- Nodes],
    lists:append([
        receive
            {Pinger, Times} -> Times
        end
     || Pinger <- Pingers
    ]).

%% The first tenth only warms up.
ping_for(Time, Node) ->
    Echo = start_echo(Node),
    _ = ping_until(now_us() + 100 * Time, Echo, []),
    Times = ping_until(now_us() + 1000 * Time, Echo, []),
    Echo ! stop,
    Times.

%% A process calls a trivial function on all nodes at once, Count times.
-spec multicalls([node()], Count :: pos_integer()) -> percentiles().
multicalls(Nodes, Count) ->
    _ = [multicall(Nodes) || _ <- lists:seq(0, Count div 10)],
    percentiles([multicall(Nodes) || _ <- lists:seq(1, Count)]).

multicall(Nodes) ->
    Start = erlang:monotonic_time(),
    Results = erpc:multicall(Nodes, erlang, node, []),
    Time = erlang:monotonic_time() - Start,
    Results = [{ok, Node} || Node <- Nodes],
    Time.

%% The same while another process sends messages of Size bytes to Busy as fast as possible.
-spec round_trips_beside(node(), Busy :: node(), Size :: pos_integer(), Count :: pos_integer()) ->
    percentiles().
round_trips_beside(Node, Busy, Size, Count) ->
    with_flood(Busy, Size, fun(_) -> round_trips(Node, Count) end).

%% The mean time of a round trip in microseconds, while another process sends messages of Size bytes on the same
%% connection as fast as possible, for Time milliseconds. If that process lets no other one send, there is only one
%% round trip, which ends after it.
-spec round_trips_flooded(node(), Size :: pos_integer(), Time :: pos_integer()) -> float().
round_trips_flooded(Node, Size, Time) ->
    Echo = start_echo(Node),
    Mean = with_flood(Node, Size, fun(Flood) ->
        true = unlink(Flood),
        {ok, _} = timer:kill_after(Time, Flood),
        Start = now_us(),
        Times = ping_until(Start + 1000 * Time, Echo, []),
        (now_us() - Start) / length(Times)
    end),
    Echo ! stop,
    Mean.

with_flood(Busy, Size, Fun) ->
    {Flood, Monitor} = spawn_opt(?MODULE, flood, [self(), Busy, Size], [link, monitor]),
    receive
        {Flood, flooding} -> ok
    end,
    Result = Fun(Flood),
    true = unlink(Flood),
    true = exit(Flood, kill),
    receive
        {'DOWN', Monitor, process, Flood, _} -> Result
    end.

%% The same while a number of processes compute in both nodes, each of which has one scheduler.
-spec round_trips_busy(node(), Processes :: pos_integer(), Count :: pos_integer()) -> percentiles().
round_trips_busy(Node, Processes, Count) ->
    Nodes = [node(), Node],
    Online = [erpc:call(N, erlang, system_flag, [schedulers_online, 1]) || N <- Nodes],
    Percentiles = while_working(Nodes, compute, Processes, fun() -> round_trips(Node, Count) end),
    _ = [
        1 = erpc:call(N, erlang, system_flag, [schedulers_online, Before])
     || {N, Before} <- lists:zip(Nodes, Online)
    ],
    Percentiles.

start_echo(Node) ->
    spawn_link(Node, ?MODULE, echo, [self()]).

ping_until(Deadline, Echo, Times) ->
    Times1 = ping(Echo, 1, Times),
    case now_us() < Deadline of
        true -> ping_until(Deadline, Echo, Times1);
        false -> Times1
    end.

ping(_Echo, 0, Times) ->
    Times;
ping(Echo, Count, Times) ->
    Start = erlang:monotonic_time(),
    Echo ! {self(), Count},
    receive
        {Echo, Count} -> ping(Echo, Count - 1, [erlang:monotonic_time() - Start | Times])
    end.

now_us() ->
    erlang:monotonic_time(microsecond).

percentiles(Times) ->
    Sorted = lists:sort(Times),
    {percentile(0.5, Sorted), percentile(0.99, Sorted), percentile(0.999, Sorted)}.

percentile(Part, Sorted) ->
    Time = lists:nth(max(1, ceil(Part * length(Sorted))), Sorted),
    erlang:convert_time_unit(Time, native, nanosecond) / 1000.

-spec echo(pid()) -> ok.
echo(From) ->
    receive
        {From, Number} ->
            From ! {self(), Number},
            echo(From);
        stop ->
            ok
    end.

%% ---------------------------------------------------------------------------------------------

%% Runs Fun while a number of processes run a function of this module in each of the nodes.
while_working(Nodes, Function, Count, Fun) ->
    Leaders = [start_workers(Node, Function, Count) || Node <- Nodes],
    Result = Fun(),
    lists:foreach(fun stop_workers/1, Leaders),
    Result.

%% The leader has a high priority, so that it runs in time.
start_workers(Node, Function, Count) ->
    Options = [link, {priority, high}],
    Leader = spawn_opt(Node, ?MODULE, workers, [self(), Function, Count], Options),
    receive
        {Leader, working} -> Leader
    end.

stop_workers(Leader) ->
    Leader ! {stop, self()},
    receive
        {Leader, stopped} -> ok
    end.

-spec workers(pid(), Function :: atom(), Count :: pos_integer()) -> term().
workers(Starter, Function, Count) ->
    Workers = [
        spawn_opt(?MODULE, Function, [Number], [link, monitor])
     || Number <- lists:seq(1, Count)
    ],
    Starter ! {self(), working},
    receive
        {stop, Starter} -> ok
    end,
    lists:foreach(
        fun({Pid, _}) ->
            true = unlink(Pid),
            true = exit(Pid, kill)
        end,
        Workers
    ),
    lists:foreach(
        fun({Pid, Monitor}) ->
            receive
                {'DOWN', Monitor, process, Pid, killed} -> ok
            end
        end,
        Workers
    ),
    Starter ! {self(), stopped}.

%% The time slice of such a process ends after a few microseconds, because its reductions are cheap.
-spec compute(non_neg_integer()) -> no_return().
compute(Number) ->
    compute((Number + 1) band 16#FFFF).

%% Ordinary work: allocating, encoding, decoding and garbage collection. The time slice of such a process takes some
%% tenths of a millisecond.
-spec serve(non_neg_integer()) -> no_return().
serve(Number) ->
    Terms = maps:from_list([{Key, {Number, Key}} || Key <- lists:seq(1, 300)]),
    Terms = binary_to_term(term_to_binary(Terms)),
    serve(Number + 1).

%% ---------------------------------------------------------------------------------------------

%% A number of processes for each other node send messages of Size bytes for Time milliseconds, each of them to a
%% process of its own.
-spec stream([node()], Senders :: pos_integer(), Size :: pos_integer(), Time) -> transfer() when
    Time :: pos_integer().
stream(Nodes, Senders, Size, Time) ->
    Payload = binary:copy(<<"x">>, Size),
    Workers = [
        spawn_link(?MODULE, send, [self(), Node, Payload, Size, Time])
     || Node <- Nodes, _ <- lists:seq(1, Senders)
    ],
    lists:foreach(fun await_ready/1, Workers),
    Start = now_us(),
    _ = [Worker ! start || Worker <- Workers],
    Messages = lists:sum([await_count(Worker) || Worker <- Workers]),
    {Messages, now_us() - Start}.

%% The same from each of the nodes to all others at once. Returns the sum, and the longest time.
-spec stream_all([node()], Senders :: pos_integer(), Size :: pos_integer(), Time) -> transfer() when
    Time :: pos_integer().
stream_all(Nodes, Senders, Size, Time) ->
    {Messages, Times} = lists:unzip(on_each(Nodes, stream, [Senders, Size, Time])),
    {lists:sum(Messages), lists:max(Times)}.

%% The same as stream/4 to one node, while a number of processes work all the time in Busy, which is one of the two
%% nodes.
-spec stream_busy(Busy, Processes, node(), Senders, Size, Time) -> transfer() when
    Busy :: node(),
    Processes :: pos_integer(),
    Senders :: pos_integer(),
    Size :: pos_integer(),
    Time :: pos_integer().
stream_busy(Busy, Processes, Node, Senders, Size, Time) ->
    %% This process measures the time, so it must not wait among the busy processes.
    _ = process_flag(priority, high),
    while_working([Busy], serve, Processes, fun() -> stream([Node], Senders, Size, Time) end).

%% Runs a function of this module on all nodes at once. Its first argument is the list of the other nodes.
on_each(Nodes, Function, Arguments) ->
    Requests = [
        erpc:send_request(Node, ?MODULE, Function, [lists:delete(Node, Nodes) | Arguments])
     || Node <- Nodes
    ],
    [erpc:receive_response(Request) || Request <- Requests].

await_ready(Worker) ->
    receive
        {Worker, ready} -> ok
    end.

await_count(Worker) ->
    receive
        {Worker, count, Count} -> Count
    end.

-spec send(pid(), node(), binary(), Size :: pos_integer(), Time :: pos_integer()) -> term().
send(Starter, Node, Payload, Size, Time) ->
    Sink = start_sink(Node),
    Starter ! {self(), ready},
    receive
        start -> ok
    end,
    Deadline = erlang:monotonic_time(millisecond) + Time,
    %% Reading the clock costs about as much as a tenth of a message.
    Sent = send_until(Deadline, Sink, Payload, max(1, min(64, 65536 div Size)), 0),
    Sink ! {ended, self()},
    receive
        {Sink, Sent} -> Starter ! {self(), count, Sent}
    end.

send_until(Deadline, Sink, Payload, Batch, Sent) ->
    ok = send_batch(Batch, Sink, Payload),
    case erlang:monotonic_time(millisecond) < Deadline of
        true -> send_until(Deadline, Sink, Payload, Batch, Sent + Batch);
        false -> Sent + Batch
    end.

send_batch(0, _Sink, _Payload) ->
    ok;
send_batch(Left, Sink, Payload) ->
    Sink ! Payload,
    send_batch(Left - 1, Sink, Payload).

%% Its mailbox is off the heap, because the garbage collection of a long mailbox is not the carrier's cost.
start_sink(Node) ->
    Sink = spawn_opt(Node, ?MODULE, sink, [self()], [link, {message_queue_data, off_heap}]),
    receive
        {Sink, ready} -> Sink
    end.

-spec sink(pid()) -> term().
sink(Sender) ->
    Sender ! {self(), ready},
    count(0).

count(Count) ->
    receive
        Payload when is_binary(Payload) -> count(Count + 1);
        {ended, Sender} -> Sender ! {self(), Count}
    end.

-spec flood(pid(), node(), Size :: pos_integer()) -> no_return().
flood(Starter, Node, Size) ->
    Sink = start_sink(Node),
    Payload = binary:copy(<<"x">>, Size),
    ok = send_batch(64, Sink, Payload),
    Starter ! {self(), flooding},
    keep_sending(Sink, Payload).

keep_sending(Sink, Payload) ->
    Sink ! Payload,
    keep_sending(Sink, Payload).

%% ---------------------------------------------------------------------------------------------

%% Connects to a node. Returns whether that succeeded, and the time in microseconds.
-spec connect(node()) -> {Microseconds :: non_neg_integer(), IsConnected :: boolean()}.
connect(Node) ->
    timer:tc(net_kernel, connect_node, [Node]).
