%% Traffic between nodes that is checked at the receiving end. All of this runs in the nodes, which all have
%% this module, perhaps compiled for different OTPs.
-module(test_traffic).

-export([exchange/3, count_up/4, start_counting/1, stop_counting/1, keep_small/4]).
-export([start_receiver/2, await_receiver/0, send_until_busy/3, status/1]).
-export([priorities/0, turns/2, longest_queue/4, round_trips/3, flooded_round_trips/3, shares/4]).
-export([start_greeter/1, greeted/3, await_ends/2]).
-export([at/4, cut/2]).
%% Entry points of processes.
-export([sender/2, receiver/1, counter/3, counted/3, keep_counting/2, greeter/2]).
-export([receive_in_order/3, send_in_order/3, keeper/1, echo/0, flooded/3, flood/2, tally/3]).

%% Time limit in milliseconds.
-define(LIMIT, 60000).

%% Processes that compute beside a receiver.
-define(COMPUTING, 14).

%% Sends payloads of these sizes between this node and another one, in both directions at once, with a process
%% for each list of sizes and direction. Checks the digest and the order of what arrives.
-spec exchange(node(), [[Size :: non_neg_integer()]], Repeat :: pos_integer()) -> ok.
exchange(Node, SizesOfProcesses, Repeat) ->
    Pairs = [
        spawn_pair(From, To, lists:append(lists:duplicate(Repeat, Sizes)))
     || Sizes <- SizesOfProcesses,
        {From, To} <- [{node(), Node}, {Node, node()}]
    ],
    lists:foreach(fun expect_normal/1, lists:append(Pairs)).

spawn_pair(From, To, Sizes) ->
    Receiver = spawn_monitor(To, ?MODULE, receiver, [length(Sizes)]),
    Sender = spawn_monitor(From, ?MODULE, sender, [element(1, Receiver), Sizes]),
    [Receiver, Sender].

expect_normal({Pid, Monitor}) ->
    receive
        {'DOWN', Monitor, process, Pid, normal} -> ok;
        {'DOWN', Monitor, process, Pid, Reason} -> exit({Pid, Reason})
    after ?LIMIT ->
        exit({Pid, does_not_end})
    end.

sender(Receiver, Sizes) ->
    Digests = send_payloads(Receiver, 1, Sizes),
    Receiver ! {sent, self()},
    receive
        {received, Received} when Received =:= Digests -> ok;
        {received, Received} -> exit({received, Received, sent, Digests})
    end.

send_payloads(_Receiver, _Index, []) ->
    [];
send_payloads(Receiver, Index, [Size | Sizes]) ->
    Payload = crypto:strong_rand_bytes(Size),
    Receiver ! {payload, Index, Payload},
    Digest = {Index, Size, crypto:hash(sha256, Payload)},
    [Digest | send_payloads(Receiver, Index + 1, Sizes)].

receiver(Count) ->
    Digests = [receive_payload() || _ <- lists:seq(1, Count)],
    receive
        {sent, Sender} -> Sender ! {received, Digests}
    end.

receive_payload() ->
    receive
        {payload, Index, Payload} ->
            {Index, byte_size(Payload), crypto:hash(sha256, Payload)}
    end.

%% Sends Count binaries of Small bytes to a process of the other node, each after one of Large bytes to a
%% process that drops it. Returns the bytes that the first process keeps alive by them.
-spec keep_small(node(), Count, Small, Large) -> non_neg_integer() when
    Count :: pos_integer(), Small :: pos_integer(), Large :: pos_integer().
keep_small(Node, Count, Small, Large) ->
    [Keeper, Dropper] = [spawn_link(Node, ?MODULE, keeper, [Keeps]) || Keeps <- [true, false]],
    [SmallOnes, LargeOnes] = [binary:copy(<<"x">>, Size) || Size <- [Small, Large]],
    _ = [
        begin
            Dropper ! {Number, LargeOnes},
            Keeper ! {Number, SmallOnes}
        end
     || Number <- lists:seq(1, Count)
    ],
    Count = kept(Keeper),
    Held = held_binaries(Node, Keeper),
    _ = [unlink(Pid) andalso exit(Pid, kill) || Pid <- [Keeper, Dropper]],
    Held.

%% Total size of the binaries of which a process holds at least a part, after a garbage collection.
held_binaries(Node, Pid) ->
    true = erpc:call(Node, erlang, garbage_collect, [Pid]),
    {binary, Binaries} = erpc:call(Node, erlang, process_info, [Pid, binary]),
    lists:sum([Size || {_Id, Size} <- lists:usort([{Id, Size} || {Id, Size, _} <- Binaries])]).

kept(Receiver) ->
    Receiver ! {count, self()},
    receive
        {Receiver, Count} -> Count
    after ?LIMIT ->
        exit({Receiver, does_not_answer})
    end.

keeper(Keeps) ->
    keep(Keeps, []).

keep(Keeps, Kept) ->
    receive
        {count, From} ->
            From ! {self(), length(Kept)},
            keep(Keeps, Kept);
        {_Number, Payload} when Keeps ->
            keep(Keeps, [Payload | Kept]);
        {_Number, _Payload} ->
            keep(Keeps, Kept)
    end.

%% Senders on both nodes count to Last, with Size bytes in each message. A receiver on each node checks that
%% the numbers of each sender arrive in order and without gaps.
-spec count_up(node(), Senders, Last, Size) -> ok when
    Senders :: pos_integer(), Last :: pos_integer(), Size :: non_neg_integer().
count_up(Node, Senders, Last, Size) ->
    Arguments = [Senders, Last, #{}],
    Counters = [spawn_monitor(N, ?MODULE, counted, Arguments) || N <- [node(), Node]],
    [{Here, _}, {There, _}] = Counters,
    Counting = [
        spawn_monitor(From, ?MODULE, counter, [To, Last, binary:copy(<<"x">>, Size)])
     || {From, To} <- [{node(), There}, {Node, Here}],
        _ <- lists:seq(1, Senders)
    ],
    lists:foreach(fun expect_normal/1, Counting ++ Counters).

counter(To, Last, Filling) ->
    [To ! {self(), Number, Filling} || Number <- lists:seq(1, Last)],
    ok.

counted(0, _Last, _Next) ->
    ok;
counted(Senders, Last, Next) ->
    receive
        {Sender, Number, _Filling} ->
            case maps:get(Sender, Next, 1) of
                Last when Number =:= Last -> counted(Senders - 1, Last, Next);
                Number -> counted(Senders, Last, Next#{Sender => Number + 1});
                Other -> exit({Sender, sent, Number, instead_of, Other})
            end
    end.

%% Starts to count up, in both directions, again and again.
-spec start_counting(node()) -> pid().
start_counting(Node) ->
    spawn(?MODULE, keep_counting, [Node, 0]).

keep_counting(Node, Rounds) ->
    ok = count_up(Node, 2, 1000, 1000),
    receive
        {stop_counting, From} -> From ! {self(), Rounds + 1}
    after 0 -> keep_counting(Node, Rounds + 1)
    end.

%% Ends it after the next round, and returns the number of rounds. Exits if anything was lost before.
-spec stop_counting(pid()) -> Rounds :: pos_integer().
stop_counting(Pid) ->
    Monitor = monitor(process, Pid),
    Pid ! {stop_counting, self()},
    receive
        {Pid, Rounds} ->
            demonitor(Monitor, [flush]),
            Rounds;
        {'DOWN', Monitor, process, Pid, Reason} ->
            exit({Pid, Reason})
    end.

%% ---------------------------------------------------------------------------------------------

%% Starts a greeter, which sends numbered greetings to its counterpart on each node that comes up, at once. It
%% checks that the greetings that it receives are in order and without duplicates; greeted/3 checks that they
%% are complete.
-spec start_greeter(Greetings :: pos_integer()) -> ok.
start_greeter(Greetings) ->
    {_, Monitor} = spawn_monitor(?MODULE, greeter, [self(), Greetings]),
    receive
        greeting -> ok;
        {'DOWN', Monitor, process, _, Reason} -> exit(Reason)
    end.

greeter(Starter, Greetings) ->
    true = register(?MODULE, self()),
    ok = net_kernel:monitor_nodes(true, [{node_type, all}]),
    Starter ! greeting,
    greet(#{
        greetings => Greetings,
        ups => 0,
        downs => 0,
        last => {0, 0},
        %% Number of greetings on the last connection.
        count => 0,
        waiting => []
    }).

greet(State = #{ups := Ups, downs := Downs, greetings := Greetings}) ->
    receive
        {nodeup, Node, _} ->
            [greeting(Node, Ups + 1, Number) || Number <- lists:seq(1, Greetings)],
            greet(State#{ups := Ups + 1});
        {nodedown, _Node, _} ->
            greet(serve(State#{downs := Downs + 1}));
        {greeting, Connection, Number, Filling} ->
            Filling = filling(Number),
            greet(serve(greeted({Connection, Number}, State)));
        {await, Condition, From} ->
            greet(serve(State#{waiting := [{Condition, From} | maps:get(waiting, State)]}))
    end.

%% Each connection has its own number. If it is down again already, the greeting is lost.
greeting(Node, Connection, Number) ->
    Greeting = {greeting, Connection, Number, filling(Number)},
    erlang:send({?MODULE, Node}, Greeting, [noconnect]).

filling(Number) ->
    binary:copy(<<Number>>, Number * 100).

greeted({Connection, _} = This, State = #{last := {Connection, _} = Last, count := Count}) when
    This > Last
->
    State#{last := This, count := Count + 1};
greeted(This, State = #{last := Last}) when This > Last ->
    State#{last := This, count := 1};
greeted(This, #{last := Last}) ->
    exit({greeting, This, comes_after, Last}).

serve(State = #{waiting := Waiting}) ->
    {Served, Left} = lists:partition(fun({Condition, _}) -> holds(Condition, State) end, Waiting),
    [From ! {?MODULE, Condition} || {Condition, From} <- Served],
    State#{waiting := Left}.

holds({greeted, Connection, Count}, State) ->
    #{last := {Last, _}, count := LastCount} = State,
    Last =:= Connection andalso LastCount =:= Count;
holds({ends, Count}, #{downs := Downs}) ->
    Downs >= Count.

%% Waits until all greetings have arrived on the other node's connection of this number.
-spec greeted(Connection :: pos_integer(), Greetings :: pos_integer(), timeout()) -> ok.
greeted(Connection, Greetings, Timeout) ->
    await({greeted, Connection, Greetings}, Timeout).

%% Waits until this many connections have ended.
-spec await_ends(Count :: pos_integer(), timeout()) -> ok.
await_ends(Count, Timeout) ->
    await({ends, Count}, Timeout).

await(Condition, Timeout) ->
    Monitor = monitor(process, ?MODULE),
    ?MODULE ! {await, Condition, self()},
    receive
        {?MODULE, Condition} ->
            demonitor(Monitor, [flush]),
            ok;
        {'DOWN', Monitor, process, _, Reason} ->
            exit(Reason)
    after Timeout ->
        exit({not_yet, Condition})
    end.

%% ---------------------------------------------------------------------------------------------

%% Receives this many numbered messages, with Size bytes in each, in order.
start_receiver(Count, Size) ->
    true = register(test_receiver, spawn(?MODULE, receive_in_order, [1, Count, Size])),
    ok.

receive_in_order(Number, Count, _Size) when Number > Count ->
    receive
        {ended, From} -> From ! {test_receiver, ok}
    end;
receive_in_order(Number, Count, Size) ->
    receive
        {Number, <<_:Size/binary>>} -> receive_in_order(Number + 1, Count, Size);
        {Other, _} when is_integer(Other) -> exit({Other, instead_of, Number})
    end.

await_receiver() ->
    Monitor = monitor(process, test_receiver),
    test_receiver ! {ended, self()},
    receive
        {test_receiver, ok} -> ok;
        {'DOWN', Monitor, process, _, Reason} -> exit(Reason)
    end.

%% Sends the messages, and returns when the sender is suspended.
send_until_busy(Node, Count, Size) ->
    Arguments = [Node, Count, binary:copy(<<"x">>, Size)],
    true = register(test_sender, start_busy(send_in_order, Arguments)),
    ok.

%% Starts a process, and returns when it is suspended at a connection.
start_busy(Function, Arguments) ->
    undefined = erlang:system_monitor(self(), [busy_dist_port]),
    Sender = spawn(?MODULE, Function, Arguments),
    receive
        {monitor, Sender, busy_dist_port, _} -> _ = erlang:system_monitor(undefined)
    end,
    Sender.

send_in_order(Node, Count, Filling) ->
    [{test_receiver, Node} ! {Number, Filling} || Number <- lists:seq(1, Count)],
    ok.

status(Name) ->
    erlang:process_info(whereis(Name), status).

%% Priorities of the carrier's processes: the owner of the port, and the controller of each connection.
-spec priorities() -> {Owner :: atom(), Controllers :: [atom()]}.
priorities() ->
    {priority(test_load:owner()), [priority(Controller) || Controller <- test_load:controllers()]}.

priority(Pid) ->
    {priority, Priority} = process_info(Pid, priority),
    Priority.

%% How often the controller of the only connection gives a turn to other processes while it sends Size bytes
%% to Node.
-spec turns(node(), Size :: non_neg_integer()) -> non_neg_integer().
turns(Node, Size) ->
    [Controller] = test_load:controllers(),
    Echo = spawn_link(Node, ?MODULE, echo, []),
    Calls = {erlang, process_flag, 2},
    1 = erlang:trace_pattern(Calls, [{[priority, normal], [], []}], []),
    1 = erlang:trace(Controller, true, [call]),
    _ = round_trip(Echo, binary:copy(<<"x">>, Size)),
    1 = erlang:trace(Controller, false, [call]),
    1 = erlang:trace_pattern(Calls, false, []),
    Delivered = erlang:trace_delivered(Controller),
    receive
        {trace_delivered, Controller, Delivered} -> count_calls(Controller, 0)
    end.

count_calls(Controller, Count) ->
    receive
        {trace, Controller, call, _} -> count_calls(Controller, Count + 1)
    after 0 -> Count
    end.

%% Several processes send Count messages in all of Size bytes to a process of Node, in which several others compute.
%% Returns how many messages waited for the receiver at most.
-spec longest_queue(node(), Senders :: pos_integer(), Size :: pos_integer(), Count :: pos_integer()) ->
    non_neg_integer().
longest_queue(Node, Senders, Size, Count) ->
    Flooded = spawn_link(Node, ?MODULE, flooded, [self(), Count, ?COMPUTING]),
    Receiver =
        receive
            {Flooded, Pid} -> Pid
        end,
    Payload = binary:copy(<<"x">>, Size),
    Floods = [spawn_link(?MODULE, flood, [Receiver, {message, Payload}]) || _ <- lists:seq(1, Senders)],
    receive
        {Flooded, longest_queue, Length} ->
            _ = [unlink(Flood) andalso exit(Flood, kill) || Flood <- Floods],
            Length
    after ?LIMIT ->
        exit(too_slow)
    end.

flooded(Client, Count, Computing) ->
    {Receiver, Monitor} = spawn_monitor(fun() -> receive_messages(Count) end),
    Computers = [spawn_link(fun compute/0) || _ <- lists:seq(1, Computing)],
    %% The measurement must not wait for its turn.
    _ = process_flag(priority, high),
    Client ! {self(), Receiver},
    Length = longest_queue(Receiver, Monitor, 0),
    Client ! {self(), longest_queue, Length},
    _ = [unlink(Pid) andalso exit(Pid, kill) || Pid <- Computers],
    ok.

receive_messages(0) ->
    ok;
receive_messages(Count) ->
    receive
        {message, _} -> receive_messages(Count - 1)
    end.

compute() ->
    _ = lists:sum(lists:seq(1, 300)),
    compute().

longest_queue(Receiver, Monitor, Longest) ->
    receive
        {'DOWN', Monitor, process, Receiver, normal} -> Longest
    after 5 ->
        case process_info(Receiver, message_queue_len) of
            {message_queue_len, Length} -> longest_queue(Receiver, Monitor, max(Length, Longest));
            undefined -> longest_queue(Receiver, Monitor, Longest)
        end
    end.

%% Sends a message of Size bytes to Node and back, repeatedly.
-spec round_trips(node(), Count :: pos_integer(), Size :: non_neg_integer()) -> ok.
round_trips(Node, Count, Size) ->
    Echo = spawn_link(Node, ?MODULE, echo, []),
    Payload = binary:copy(<<"x">>, Size),
    _ = [{Number, Payload} = round_trip(Echo, {Number, Payload}) || Number <- lists:seq(1, Count)],
    true = unlink(Echo),
    true = exit(Echo, kill),
    ok.

%% Floods Node with messages of Size bytes from one process, and times round trips of another process.
-spec flooded_round_trips(node(), Size :: pos_integer(), Count :: pos_integer()) -> ok.
flooded_round_trips(Node, Size, Count) ->
    Dropper = spawn_link(Node, ?MODULE, keeper, [false]),
    Flood = start_busy(flood, [Dropper, {0, binary:copy(<<"x">>, Size)}]),
    true = link(Flood),
    Echo = spawn_link(Node, ?MODULE, echo, []),
    _ = [Number = round_trip(Echo, Number) || Number <- lists:seq(1, Count)],
    _ = [unlink(Pid) andalso exit(Pid, kill) || Pid <- [Flood, Dropper, Echo]],
    ok.

flood(To, Message) ->
    To ! Message,
    flood(To, Message).

%% Several processes send messages of Size bytes to Node as fast as they can. Returns how many of the first
%% Count messages came from each of them.
-spec shares(node(), Senders :: pos_integer(), Size :: pos_integer(), Count :: pos_integer()) ->
    [non_neg_integer()].
shares(Node, Senders, Size, Count) ->
    Tally = spawn_link(Node, ?MODULE, tally, [self(), Count, maps:from_keys(lists:seq(1, Senders), 0)]),
    Payload = binary:copy(<<"x">>, Size),
    Floods = [
        spawn_link(?MODULE, flood, [Tally, {Sender, Payload}])
     || Sender <- lists:seq(1, Senders)
    ],
    receive
        {Tally, Shares} ->
            _ = [unlink(Pid) andalso exit(Pid, kill) || Pid <- Floods],
            Shares
    after ?LIMIT -> exit({Tally, does_not_end})
    end.

tally(Whose, 0, Shares) ->
    Whose ! {self(), maps:values(Shares)};
tally(Whose, Left, Shares) ->
    receive
        {Sender, _} -> tally(Whose, Left - 1, maps:update_with(Sender, fun(N) -> N + 1 end, Shares))
    end.

round_trip(Echo, Message) ->
    Echo ! {self(), Message},
    receive
        {Echo, Answer} -> Answer
    after ?LIMIT -> exit({Echo, does_not_answer})
    end.

echo() ->
    receive
        {From, Message} -> From ! {self(), Message}
    end,
    echo().

%% ---------------------------------------------------------------------------------------------

%% Connects and disconnects repeatedly, and returns how often a connection was made.
cut(Node, Rounds) ->
    length([cut || _ <- lists:seq(1, Rounds), net_kernel:connect_node(Node), disconnect(Node)]).

disconnect(Node) ->
    true = erlang:disconnect_node(Node),
    ok =:= test_node:await_nodes([], 10000).

%% Calls a function at an instant on which all nodes of a machine agree.
-spec at(Instant :: integer(), module(), atom(), [term()]) -> term().
at(Instant, Module, Function, Arguments) ->
    case Instant - erlang:system_time(microsecond) of
        Early when Early > 2000 ->
            receive
            after Early div 1000 - 1 -> at(Instant, Module, Function, Arguments)
            end;
        Early when Early > 0 ->
            at(Instant, Module, Function, Arguments);
        _ ->
            apply(Module, Function, Arguments)
    end.
