%% An AMQP client that publishes numbered messages, reconnects when its connection ends, and records which
%% messages were confirmed. It runs in a node that has the modules of RabbitMQ's client on its path. Its
%% records are written as tuples, because their definitions are not available here.
-module(test_amqp).

-export([start/2, publish/2, await_confirmed/2, drain/2, loop/1]).

%% Most messages that may wait for their confirmation at the same time.
-define(IN_FLIGHT, 100).
%% Milliseconds between two attempts to connect.
-define(RETRY, 100).
%% Longest time, in milliseconds, in which a queue that has lost its leader must recover.
-define(LIMIT, 60000).

-record(publisher, {
    urls :: [string(), ...],
    queue :: binary(),
    channel :: undefined | pid(),
    connection :: undefined | pid(),
    monitors = [] :: [reference()],
    %% Numbers up to this one may be published.
    allowed = 0 :: non_neg_integer(),
    next = 1 :: pos_integer(),
    %% Numbers that have to be published again.
    again = [] :: [pos_integer()],
    in_flight = #{} :: #{Sequence :: pos_integer() => pos_integer()},
    confirmed = 0 :: non_neg_integer(),
    connects = 0 :: non_neg_integer(),
    waiting = [] :: [{Count :: non_neg_integer(), pid(), reference()}]
}).

%% Starts a publisher, which declares a quorum queue.
-spec start(Urls :: [string(), ...], Queue :: binary()) -> pid().
start(Urls, Queue) ->
    {ok, _} = application:ensure_all_started(amqp_client),
    %% It is not linked to its connections, and learns of their end from monitors.
    spawn(?MODULE, loop, [#publisher{urls = Urls, queue = Queue}]).

%% Lets the publisher publish messages up to this number.
-spec publish(UpTo :: pos_integer(), pid()) -> ok.
publish(UpTo, Publisher) ->
    Publisher ! {publish, UpTo},
    ok.

%% Waits until Count messages are confirmed, and returns how often the publisher had to connect.
-spec await_confirmed(Count :: pos_integer(), pid()) -> Connects :: pos_integer().
await_confirmed(Count, Publisher) ->
    Monitor = monitor(process, Publisher),
    Publisher ! {await_confirmed, Count, self(), Monitor},
    receive
        {Monitor, Connects} ->
            true = demonitor(Monitor, [flush]),
            Connects;
        {'DOWN', Monitor, process, _, Reason} ->
            error({publisher, Reason})
    after ?LIMIT ->
        error({not_confirmed, Count, process_info(Publisher, messages)})
    end.

%% Takes all messages out of the queue, in order.
-spec drain(Urls :: [string(), ...], Queue :: binary()) -> [pos_integer()].
drain([Url | _], Queue) ->
    {ok, Connection, Channel} = connect(Url),
    {'queue.declare_ok', Queue, _, _} = amqp_channel:call(Channel, declare(Queue)),
    Numbers = drain(Channel, Queue, []),
    ok = amqp_connection:close(Connection),
    Numbers.

drain(Channel, Queue, Numbers) ->
    case amqp_channel:call(Channel, {'basic.get', 0, Queue, true}) of
        {{'basic.get_ok', _, _, _, _, _}, {amqp_msg, _, Number}} ->
            drain(Channel, Queue, [binary_to_integer(Number) | Numbers]);
        {'basic.get_empty', _} ->
            lists:reverse(Numbers)
    end.

declare(Queue) ->
    Arguments = [{<<"x-queue-type">>, longstr, <<"quorum">>}],
    {'queue.declare', 0, Queue, false, true, false, false, false, Arguments}.

connect(Url) ->
    {ok, Parameters} = amqp_uri:parse(Url),
    maybe_channel(amqp_connection:start(Parameters)).

maybe_channel({ok, Connection}) ->
    case amqp_connection:open_channel(Connection) of
        {ok, Channel} -> {ok, Connection, Channel};
        Error -> {error, Error}
    end;
maybe_channel(Error) ->
    {error, Error}.

%% ---------------------------------------------------------------------------------------------

-spec loop(#publisher{}) -> no_return().
loop(Publisher = #publisher{channel = undefined}) ->
    ?MODULE:loop(fill(open(Publisher)));
loop(Publisher = #publisher{monitors = Monitors}) ->
    receive
        {publish, UpTo} ->
            ?MODULE:loop(fill(Publisher#publisher{allowed = UpTo}));
        {await_confirmed, Count, From, Tag} ->
            Waiting = [{Count, From, Tag} | Publisher#publisher.waiting],
            ?MODULE:loop(answer(Publisher#publisher{waiting = Waiting}));
        {'basic.ack', Sequence, Multiple} ->
            {Done, Publisher1} = take(Sequence, Multiple, Publisher),
            Confirmed = Publisher1#publisher.confirmed + length(Done),
            ?MODULE:loop(fill(answer(Publisher1#publisher{confirmed = Confirmed})));
        {'basic.nack', Sequence, Multiple, _Requeue} ->
            {Refused, Publisher1} = take(Sequence, Multiple, Publisher),
            ?MODULE:loop(fill(again(Refused, Publisher1)));
        {'DOWN', Monitor, process, _, _} ->
            case lists:member(Monitor, Monitors) of
                true -> ?MODULE:loop(closed(Publisher));
                false -> ?MODULE:loop(Publisher)
            end;
        %% A message from an earlier connection.
        _ ->
            ?MODULE:loop(Publisher)
    end.

%% Connects to the first node that accepts the connection.
open(Publisher = #publisher{urls = [Url | Urls], queue = Queue, connects = Connects}) ->
    Publisher1 = Publisher#publisher{urls = Urls ++ [Url]},
    try
        {ok, Connection, Channel} = connect(Url),
        Monitors = [monitor(process, Pid) || Pid <- [Connection, Channel]],
        {'queue.declare_ok', Queue, _, _} = amqp_channel:call(Channel, declare(Queue)),
        {'confirm.select_ok'} = amqp_channel:call(Channel, {'confirm.select', false}),
        ok = amqp_channel:register_confirm_handler(Channel, self()),
        Publisher1#publisher{
            connection = Connection, channel = Channel, monitors = Monitors, connects = Connects + 1
        }
    catch
        _:_ ->
            receive
            after ?RETRY -> open(Publisher1)
            end
    end.

%% Messages that were not confirmed may have been lost, so they are published again.
closed(Publisher = #publisher{connection = Connection, monitors = Monitors, in_flight = InFlight}) ->
    lists:foreach(fun(Monitor) -> demonitor(Monitor, [flush]) end, Monitors),
    exit(Connection, kill),
    flush(),
    Publisher1 = Publisher#publisher{channel = undefined, in_flight = #{}},
    again(maps:values(InFlight), Publisher1).

%% Drops the confirmations of a channel that has ended.
flush() ->
    receive
        {'basic.ack', _, _} -> flush();
        {'basic.nack', _, _, _} -> flush()
    after 0 -> ok
    end.

again(Numbers, Publisher = #publisher{again = Again}) ->
    Publisher#publisher{again = lists:sort(Numbers) ++ Again}.

take(Sequence, Multiple, Publisher = #publisher{in_flight = InFlight}) ->
    IsMeant = fun(Key, _) -> Key =:= Sequence orelse (Multiple andalso Key < Sequence) end,
    Taken = maps:filter(IsMeant, InFlight),
    {maps:values(Taken), Publisher#publisher{in_flight = maps:without(maps:keys(Taken), InFlight)}}.

answer(Publisher = #publisher{confirmed = Confirmed, connects = Connects, waiting = Waiting}) ->
    {Ready, Rest} = lists:partition(fun({Count, _, _}) -> Count =< Confirmed end, Waiting),
    [From ! {Tag, Connects} || {_, From, Tag} <- Ready],
    Publisher#publisher{waiting = Rest}.

fill(Publisher = #publisher{channel = undefined}) ->
    Publisher;
fill(Publisher = #publisher{in_flight = InFlight}) when map_size(InFlight) >= ?IN_FLIGHT ->
    Publisher;
fill(Publisher = #publisher{again = [Number | Again]}) ->
    send(Number, Publisher#publisher{again = Again});
fill(Publisher = #publisher{next = Next, allowed = Allowed}) when Next =< Allowed ->
    send(Next, Publisher#publisher{next = Next + 1});
fill(Publisher) ->
    Publisher.

send(Number, Publisher = #publisher{channel = Channel, queue = Queue, in_flight = InFlight}) ->
    Properties = erlang:make_tuple(15, undefined, [{1, 'P_basic'}, {5, 2}]),
    Message = {amqp_msg, Properties, integer_to_binary(Number)},
    try
        Sequence = amqp_channel:next_publish_seqno(Channel),
        ok = amqp_channel:call(Channel, {'basic.publish', 0, <<>>, Queue, false, false}, Message),
        fill(Publisher#publisher{in_flight = InFlight#{Sequence => Number}})
    catch
        _:_ -> closed(again([Number], Publisher))
    end.
