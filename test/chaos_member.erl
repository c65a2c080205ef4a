%% What runs in each node of a chaos run: a ledger that writes down every message that it gets
%% before it acknowledges it, and a writer for each other node that writes down what was
%% acknowledged.
%%
%% Both write to files, which outlive a killed VM. An entry is a writer's number and a message's.
%% The ledger also watches the order. In one connection messages neither overtake each other nor
%% get lost: unless the connection with a writer has gone down, its next message is the next number.
%% What was on its way when the ledger began to look does not count, for there may have been a
%% connection before that one: so the ledger monitors a writer, gives it the monitor's reference,
%% and holds those messages to it that carry the reference.
-module(chaos_member).

-export([start/3, write_more/0, flood/3]).
-export([violations/1, missing/1]).

%% Unacknowledged messages of a writer.
-define(WINDOW, 64).
%% Milliseconds. A node that is down is asked for again after a while.
-define(RETRY, 20).
-define(LIMIT, 60000).

-record(writer, {
    id :: non_neg_integer(),
    to :: node(),
    acked :: file:fd(),
    monitor :: undefined | reference(),
    %% Of the ledger, when it has one.
    watch :: undefined | reference(),
    next = 1 :: pos_integer(),
    unacknowledged = 0 :: non_neg_integer(),
    %% Who waits for an acknowledgement of a message that is yet to be sent.
    waiting = [] :: [{pid(), reference(), pos_integer()}]
}).

%% Starts the ledger of this node and its writers to others.
-spec start(file:filename(), non_neg_integer(), [node()]) -> ok.
start(Dir, Incarnation, Others) ->
    _ = spawn(fun() ->
        true = register(ledger, self()),
        Ledger = open(Dir, "ledger", node(), Incarnation),
        Violations = open(Dir, "violations", node(), Incarnation),
        ledger(Ledger, Violations, #{}, #{})
    end),
    _ = spawn(fun() ->
        true = register(sink, self()),
        sink()
    end),
    Writers = [
        spawn(fun() ->
            Id = rand:uniform(1 bsl 64) - 1,
            Acked = open(Dir, "acked." ++ atom_to_list(node()), Other, Id),
            write(#writer{id = Id, to = Other, acked = Acked})
        end)
     || Other <- Others
    ],
    persistent_term:put(writers, Writers).

%% A raw file is for the process that has opened it.
open(Dir, Kind, Node, Number) ->
    Name = io_lib:format("~s.~s.~b", [Kind, Node, Number]),
    {ok, File} = file:open(filename:join(Dir, Name), [append, raw, binary]),
    File.

%% Waits until each writer has got an acknowledgement of a message that it had not sent yet.
-spec write_more() -> ok.
write_more() ->
    lists:foreach(
        fun({Writer, Ref}) ->
            receive
                {Ref, acknowledged} -> ok
            after ?LIMIT -> error({not_acknowledged, seen(Writer)})
            end
        end,
        [
            begin
                Ref = make_ref(),
                Writer ! {write_more, self(), Ref},
                {Writer, Ref}
            end
         || Writer <- persistent_term:get(writers)
        ]
    ).

seen(Writer) ->
    {process_info(Writer, [status, message_queue_len, current_stacktrace]), nodes(connected)}.

%% Sends large messages to the sink of another node for so long.
-spec flood(node(), pos_integer(), pos_integer()) -> ok.
flood(To, Processes, Time) ->
    Message = rand:bytes(200000),
    Flooders = [
        spawn(fun() -> send_for_ever({sink, To}, Message) end)
     || _ <- lists:seq(1, Processes)
    ],
    _ = [timer:kill_after(Time, Flooder) || Flooder <- Flooders],
    ok.

send_for_ever(To, Message) ->
    To ! Message,
    send_for_ever(To, Message).

sink() ->
    receive
        _ -> sink()
    end.

%% ---------------------------------------------------------------------------------------------
%% Writers

write(Writer = #writer{monitor = undefined, to = To}) ->
    write(Writer#writer{monitor = monitor(process, {ledger, To}), unacknowledged = 0});
write(Writer = #writer{unacknowledged = ?WINDOW}) ->
    receive
        Message -> write(handle(Message, Writer))
    end;
write(Writer = #writer{id = Id, to = To, watch = Watch, next = Next, unacknowledged = Count}) ->
    receive
        Message -> write(handle(Message, Writer))
    after 0 ->
        {ledger, To} ! {entry, self(), Id, Next, Watch, payload(Next)},
        write(Writer#writer{next = Next + 1, unacknowledged = Count + 1})
    end.

handle({ack, Id, Number}, Writer = #writer{id = Id, unacknowledged = Count, waiting = Waiting}) ->
    ok = file:write(Writer#writer.acked, entry(Id, Number)),
    {Served, Waiting1} = lists:partition(fun({_, _, Since}) -> Number >= Since end, Waiting),
    _ = [From ! {Ref, acknowledged} || {From, Ref, _} <- Served],
    %% Those of a connection that went down come late, or never.
    Writer#writer{unacknowledged = max(0, Count - 1), waiting = Waiting1};
handle({watch, Watch}, Writer) ->
    Writer#writer{watch = Watch};
handle({'DOWN', Monitor, process, _, _}, Writer = #writer{monitor = Monitor}) ->
    receive
    after ?RETRY -> Writer#writer{monitor = undefined}
    end;
handle({write_more, From, Ref}, Writer = #writer{next = Next, waiting = Waiting}) ->
    Writer#writer{waiting = [{From, Ref, Next} | Waiting]}.

%% Mostly small, some larger than a batch, a few of many windows.
payload(Number) when Number rem 997 =:= 0 -> <<0:(8 * 3000000)>>;
payload(Number) when Number rem 97 =:= 0 -> <<0:(8 * 150000)>>;
payload(Number) -> <<0:(8 * (Number rem 500))>>.

%% ---------------------------------------------------------------------------------------------
%% The ledger

%% Last: the last number of each writer. Watches: of the writers whose connection has been up since
%% the ledger began to look, and whether a message that carries it has come.
ledger(File, Violations, Last, Watches) ->
    receive
        {entry, From, Id, Number, Carried, Payload} ->
            {IsNext, Watches1} = watch(Id, From, Carried, Watches),
            Before = maps:get(Id, Last, 0),
            InOrder = Number =:= Before + 1 orelse (Number > Before andalso not IsNext),
            case InOrder andalso Payload =:= payload(Number) of
                true ->
                    ok;
                false ->
                    Line = io_lib:format("~b after ~b~n", [Number, Before]),
                    ok = file:write(Violations, Line)
            end,
            ok = file:write(File, entry(Id, Number)),
            From ! {ack, Id, Number},
            ledger(File, Violations, Last#{Id => Number}, Watches1);
        {'DOWN', Watch, process, _, _} ->
            Left = maps:filter(fun(_, {Other, _}) -> Other =/= Watch end, Watches),
            ledger(File, Violations, Last, Left)
    end.

%% Whether a message must have the number after that of the message before.
watch(Id, From, Carried, Watches) ->
    case Watches of
        #{Id := {Carried, true}} ->
            {true, Watches};
        #{Id := {Carried, false}} ->
            {false, Watches#{Id := {Carried, true}}};
        #{Id := _} ->
            {false, Watches};
        #{} ->
            Watch = monitor(process, From),
            From ! {watch, Watch},
            {false, Watches#{Id => {Watch, false}}}
    end.

%% ---------------------------------------------------------------------------------------------
%% What the files say in the end

entry(Id, Number) ->
    <<Id:64, Number:64>>.

%% What the ledgers have seen come out of order.
-spec violations(file:filename()) -> [binary()].
violations(Dir) ->
    [Text || File <- files(Dir, "violations"), {ok, Text} <- [file:read_file(File)], Text =/= <<>>].

%% Messages that were acknowledged and that no ledger has, of how many.
-spec missing(file:filename()) -> {Missing :: [binary()], Acknowledged :: non_neg_integer()}.
missing(Dir) ->
    Entries = maps:from_keys(entries(Dir, "ledger"), true),
    Acked = entries(Dir, "acked"),
    {[Entry || Entry <- Acked, not is_map_key(Entry, Entries)], length(Acked)}.

entries(Dir, Kind) ->
    lists:append([
        [Entry || <<Entry:16/binary>> <= Bytes]
     || File <- files(Dir, Kind), {ok, Bytes} <- [file:read_file(File)]
    ]).

files(Dir, Kind) ->
    filelib:wildcard(filename:join(Dir, Kind ++ ".*")).
