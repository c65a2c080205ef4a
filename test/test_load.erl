%% Traffic between the nodes of a suite, and checks of its outcome: round trips, floods, numbered messages
%% with a record of those that arrived, and a count of the connections that went down.
%%
%% The first half is called by suites, with nodes of test_node; the second half runs in the nodes.
-module(test_load).

-export([prepare/1, downs/1, down_at/1, await_down/2, await_reconnected/2, is_up_for/2]).
-export([start_traffic/3, expect_traffic/1]).
-export([start_sink/1, start_flood/4, await_suspended/1]).
-export([start_ledger/1, ledger/1, send_numbered/4, is_sender_suspended/1, await_sent/2]).
-export([start_numbers/3, stop_numbers/1]).
-export([owner/0, owner_and_acceptor/0, controllers/0, cast/4]).
%% Run in the nodes.
-export([prepare_here/0, ask_watcher/1, is_up_for_here/1]).
-export([start_traffic_here/2, expect_traffic_here/0]).
-export([start_sink_here/0, start_flood_here/3, await_suspended_here/1]).
-export([start_ledger_here/0, ledger_here/0, send_numbered_here/3, is_sender_suspended_here/0]).
-export([await_sent_here/1]).
-export([start_numbers_here/2, stop_numbers_here/0]).

%% Milliseconds, as in test_node.
-define(LIMIT, 60000).
-define(POLL, 20).
%% Pause in milliseconds between two messages of a process that sends without end. Without it, these processes
%% would use up the machine, which also runs other tests.
-define(PAUSE, 1).

%% ---------------------------------------------------------------------------------------------
%% For suites

%% Prepares a node: it answers round trips, and counts its connections that go down.
prepare(Node) ->
    test_node:call(Node, ?MODULE, prepare_here, []).

%% Number of connections that have gone down.
downs(Node) ->
    test_node:call(Node, ?MODULE, ask_watcher, [downs]).

%% Time when the last connection went down, in milliseconds of os:system_time/1.
down_at(Node) ->
    test_node:call(Node, ?MODULE, ask_watcher, [down_at]).

%% Waits until more than Downs connections have gone down.
await_down(Node, Downs) ->
    test_node:call(Node, ?MODULE, ask_watcher, [{down, Downs}], ?LIMIT).

%% Waits until more than Downs connections have gone down, and the node is connected again.
await_reconnected(Node, Downs) ->
    test_node:call(Node, ?MODULE, ask_watcher, [{reconnected, Downs}], ?LIMIT).

%% Whether all connections of the node stay up for this time in milliseconds. No event shows that, so it waits
%% for the whole time. It returns false at once if a connection goes down or is already down.
is_up_for(Node, Time) ->
    test_node:call(Node, ?MODULE, is_up_for_here, [Time], Time + ?LIMIT).

%% Starts endless round trips to the echo process of another node, which continue through all failures.
start_traffic(Node, To, Size) ->
    test_node:call(Node, ?MODULE, start_traffic_here, [test_node:name(To), Size]).

%% Waits until a round trip that begins now has succeeded.
expect_traffic(Node) ->
    test_node:call(Node, ?MODULE, expect_traffic_here, []).

%% Starts a process that drops all messages.
start_sink(Node) ->
    test_node:call(Node, ?MODULE, start_sink_here, []).

%% Starts Count processes that send messages of Size bytes to the sink of another node as fast as possible.
start_flood(Node, To, Count, Size) ->
    test_node:call(Node, ?MODULE, start_flood_here, [test_node:name(To), Count, Size]).

%% Waits until all processes of the flood are suspended (busy_dist_port).
await_suspended(Node) ->
    test_node:call(Node, ?MODULE, await_suspended_here, [?LIMIT], ?LIMIT + 5000).

%% Starts a process that records the numbers of the messages that it receives, in order.
start_ledger(Node) ->
    test_node:call(Node, ?MODULE, start_ledger_here, []).

ledger(Node) ->
    test_node:call(Node, ?MODULE, ledger_here, []).

%% Starts a process that sends messages with a number from 1 to Count and Size bytes.
send_numbered(Node, To, Count, Size) ->
    test_node:call(Node, ?MODULE, send_numbered_here, [test_node:name(To), Count, Size]).

%% Starts a process that sends such messages without end. stop_numbers/1 ends it and returns how many it has
%% sent.
start_numbers(Node, To, Size) ->
    test_node:call(Node, ?MODULE, start_numbers_here, [test_node:name(To), Size]).

stop_numbers(Node) ->
    test_node:call(Node, ?MODULE, stop_numbers_here, []).

%% Whether the process that sends numbered messages is suspended (busy_dist_port).
is_sender_suspended(Node) ->
    test_node:call(Node, ?MODULE, is_sender_suspended_here, []).

%% Waits until the VM has written all pending data for another node to the sidecar or the socket.
await_sent(Node, To) ->
    test_node:call(Node, ?MODULE, await_sent_here, [test_node:name(To)]).

%% Calls a function of a node that may end before it answers.
cast(#{peer := Peer}, Module, Function, Arguments) ->
    peer:cast(Peer, Module, Function, Arguments).

%% ---------------------------------------------------------------------------------------------
%% In the nodes

prepare_here() ->
    ok = start(echo, fun echo/0),
    ok = start(watcher, fun() ->
        ok = net_kernel:monitor_nodes(true, [{node_type, all}]),
        watch(0, undefined, [])
    end).

%% Starts a registered process, which is ready when this returns.
start(Name, Run) ->
    Self = self(),
    {Pid, Monitor} = spawn_monitor(fun() ->
        register(Name, self()),
        Self ! {self(), started},
        Run()
    end),
    receive
        {Pid, started} ->
            demonitor(Monitor, [flush]),
            ok;
        {'DOWN', Monitor, process, Pid, Reason} ->
            error({not_started, Name, Reason})
    end.

echo() ->
    receive
        {From, Ref, Payload} -> From ! {Ref, Payload}
    end,
    echo().

watch(Downs, DownAt, Waiters) ->
    Left = [Waiter || Waiter <- Waiters, not answer(Waiter, Downs, DownAt)],
    receive
        {nodedown, _, _} -> watch(Downs + 1, os:system_time(millisecond), Left);
        {nodeup, _, _} -> watch(Downs, DownAt, Left);
        {ask, From, Ref, What} -> watch(Downs, DownAt, [{From, Ref, What} | Left])
    end.

answer({From, Ref, What}, Downs, DownAt) ->
    Answer =
        case What of
            downs -> {ok, Downs};
            down_at -> {ok, DownAt};
            {down, Before} when Downs > Before -> {ok, ok};
            {reconnected, Before} when Downs > Before -> connected();
            _ -> later
        end,
    case Answer of
        {ok, Value} ->
            From ! {Ref, Value},
            true;
        later ->
            false
    end.

connected() ->
    case nodes(connected) of
        [] -> later;
        _ -> {ok, ok}
    end.

ask_watcher(What) ->
    Ref = make_ref(),
    watcher ! {ask, self(), Ref, What},
    receive
        {Ref, Answer} -> Answer
    end.

is_up_for_here(Time) ->
    ok = net_kernel:monitor_nodes(true, [{node_type, all}]),
    nodes(connected) =/= [] andalso
        receive
            {nodedown, _, _} -> false
        after Time -> true
        end.

start_traffic_here(To, Size) ->
    RoundTrips = persistent_term:get(round_trips, counters:new(1, [])),
    persistent_term:put(round_trips, RoundTrips),
    _ = spawn(fun() -> traffic(To, rand:bytes(Size), RoundTrips) end),
    ok.

traffic(To, Payload, RoundTrips) ->
    Monitor = monitor(process, {echo, To}),
    {echo, To} ! {self(), Monitor, Payload},
    receive
        {Monitor, Payload} ->
            demonitor(Monitor, [flush]),
            counters:add(RoundTrips, 1, 1),
            pause(?PAUSE);
        {'DOWN', Monitor, process, _, _} ->
            pause(?POLL)
    end,
    traffic(To, Payload, RoundTrips).

pause(Time) ->
    receive
    after Time -> ok
    end.

expect_traffic_here() ->
    RoundTrips = persistent_term:get(round_trips),
    Before = counters:get(RoundTrips, 1),
    poll(fun() -> counters:get(RoundTrips, 1) > Before + 10 end, ?LIMIT).

start_sink_here() ->
    start(sink, fun sink/0).

sink() ->
    receive
        _ -> sink()
    end.

start_flood_here(To, Count, Size) ->
    Message = rand:bytes(Size),
    Flooders = [spawn(fun() -> flood({sink, To}, Message) end) || _ <- lists:seq(1, Count)],
    persistent_term:put(flooders, Flooders).

flood(To, Message) ->
    To ! Message,
    flood(To, Message).

await_suspended_here(Limit) ->
    Flooders = persistent_term:get(flooders),
    poll(fun() -> stands_still(Flooders, work(Flooders), 5) end, Limit).

stands_still(_, _, 0) ->
    true;
stands_still(Flooders, Work, Looks) ->
    receive
    after ?POLL -> ok
    end,
    case lists:all(fun({Status, _}) -> Status =:= {status, suspended} end, Work) of
        true -> work(Flooders) =:= Work andalso stands_still(Flooders, Work, Looks - 1);
        false -> false
    end.

work(Pids) ->
    [{process_info(Pid, status), process_info(Pid, reductions)} || Pid <- Pids].

start_ledger_here() ->
    start(ledger, fun() -> ledger_loop([]) end).

ledger_loop(Numbers) ->
    receive
        {number, Number, _Payload} ->
            ledger_loop([Number | Numbers]);
        {numbers, From, Ref} ->
            From ! {Ref, lists:reverse(Numbers)},
            ledger_loop(Numbers)
    end.

ledger_here() ->
    Ref = make_ref(),
    ledger ! {numbers, self(), Ref},
    receive
        {Ref, Numbers} -> Numbers
    end.

send_numbered_here(To, Count, Size) ->
    Payload = rand:bytes(Size),
    true = register(sender, self()),
    lists:foreach(
        fun(Number) -> {ledger, To} ! {number, Number, Payload} end,
        lists:seq(1, Count)
    ),
    true = unregister(sender),
    ok.

start_numbers_here(To, Size) ->
    start(numbers, fun() -> numbers({ledger, To}, rand:bytes(Size), 1) end).

numbers(To, Payload, Number) ->
    To ! {number, Number, Payload},
    receive
        {stop, From, Ref} -> From ! {Ref, Number}
    after ?PAUSE -> numbers(To, Payload, Number + 1)
    end.

stop_numbers_here() ->
    Ref = make_ref(),
    numbers ! {stop, self(), Ref},
    receive
        {Ref, Count} -> Count
    end.

is_sender_suspended_here() ->
    case whereis(sender) of
        undefined -> false;
        Sender -> process_info(Sender, status) =:= {status, suspended}
    end.

%% The elements of a controller's state.
-define(TRANSPORT, 8).
-define(OUTPUT, 9).
-define(HELD, 13).

%% Waits until neither the VM's queue of the connection nor a controller holds any data.
await_sent_here(Node) ->
    [Connection] = ets:lookup(sys_dist, Node),
    DHandle = element(3, Connection),
    poll(
        fun() ->
            {ok, _, _, Pending} = erlang:dist_get_stat(DHandle),
            Pending =:= 0 andalso lists:all(fun has_sent_all/1, controllers())
        end,
        ?LIMIT
    ).

%% A controller that has emptied the VM's queue may still wait until its output has room.
has_sent_all(Controller) ->
    State = sys:get_state(Controller),
    Transport = element(?TRANSPORT, State),
    element(?HELD, State) =:= 0 andalso Transport:is_open(element(?OUTPUT, State)).

%% The processes that must survive for net_sup and net_kernel to survive.
owner_and_acceptor() ->
    {owner(), acceptor(), whereis(net_kernel)}.

%% The owner of the sidecar's port, which runs under net_sup.
owner() ->
    {ok, [#{id := Id}]} = uds_dist:childspecs(),
    {Id, Owner, worker, _} = lists:keyfind(Id, 1, supervisor:which_children(net_sup)),
    Owner.

acceptor() ->
    [Acceptor] = [
        Pid
     || Pid <- processes(),
        {uds_dist_acceptor, init, _} <- [initial_call(Pid)]
    ],
    Acceptor.

%% The initial call of a process. For processes of a behaviour, proc_lib knows it.
initial_call(Pid) ->
    case proc_lib:initial_call(Pid) of
        false ->
            case process_info(Pid, initial_call) of
                {initial_call, Call} -> Call;
                %% The process has ended meanwhile.
                undefined -> undefined
            end;
        Call ->
            Call
    end.

%% The distribution controllers of this node's connections.
controllers() ->
    [Controller || {_Node, Controller} <- erlang:system_info(dist_ctrl)].

poll(Fun, Limit) when Limit > 0 ->
    case Fun() of
        true ->
            ok;
        false ->
            receive
            after ?POLL -> poll(Fun, Limit - ?POLL)
            end
    end.
