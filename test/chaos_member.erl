%% The processes in each node of a chaos run: a ledger, which records every message before it acknowledges it, and a
%% writer for each other node, which records the acknowledgements.
%%
%% Both write to files, which survive a killed VM. An entry consists of the number of the writer and that of the
%% message. The ledger also checks the order. Within a connection, messages neither overtake each other nor get lost:
%% unless the connection with a writer has gone down, its next message has the next number. Messages that were on
%% their way when the ledger started to check do not count, because they may belong to an earlier connection. So the
%% ledger monitors a writer, sends it the reference of the monitor, and only checks messages with this reference.
-module(chaos_member).

-export([start/3, write_more/0, flood/3]).
-export([violations/1, missing/1]).

%% Most unacknowledged messages of a writer.
-define(WINDOW, 64).
%% Milliseconds until a writer tries a node that is down again.
-define(RETRY, 20).
-define(LIMIT, 60000).

-record(writer, {
    id :: non_neg_integer(),
    to :: node(),
    acked :: file:fd(),
    monitor :: undefined | reference(),
    %% The reference of the ledger's monitor, once it is known.
    watch :: undefined | reference(),
    next = 1 :: pos_integer(),
    unacknowledged = 0 :: non_neg_integer(),
    %% Callers that wait for the acknowledgement of a message that has not been sent yet.
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

%% Only the process that has opened a raw file may use it.
open(Dir, Kind, Node, Number) ->
    Name = io_lib:format("~s.~s.~b", [Kind, Node, Number]),
    {ok, File} = file:open(filename:join(Dir, Name), [append, raw, binary]),
    File.

%% Waits until each writer has received the acknowledgement of a message that it had not sent yet at the beginning.
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

%% Sends large messages to the sink of another node for a time.
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
    %% Acknowledgements from a connection that went down arrive late, or never.
    Writer#writer{unacknowledged = max(0, Count - 1), waiting = Waiting1};
handle({watch, Watch}, Writer) ->
    Writer#writer{watch = Watch};
handle({'DOWN', Monitor, process, _, _}, Writer = #writer{monitor = Monitor}) ->
    receive
    after ?RETRY -> Writer#writer{monitor = undefined}
    end;
handle({write_more, From, Ref}, Writer = #writer{next = Next, waiting = Waiting}) ->
    Writer#writer{waiting = [{From, Ref, Next} | Waiting]}.

%% Sizes of messages: most are small, some exceed a batch, and a few exceed the window many times.
payload(Number) when Number rem 997 =:= 0 -> <<0:(8 * 3000000)>>;
payload(Number) when Number rem 97 =:= 0 -> <<0:(8 * 150000)>>;
payload(Number) -> <<0:(8 * (Number rem 500))>>.

%% ---------------------------------------------------------------------------------------------
%% The ledger

%% Last has the last number of each writer. Watches has the monitors of writers whose connections have been up since
%% the ledger started to check, and whether a message with the reference has arrived.
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
%% Evaluation of the files

entry(Id, Number) ->
    <<Id:64, Number:64>>.

%% The messages that the ledgers have seen out of order.
-spec violations(file:filename()) -> [binary()].
violations(Dir) ->
    [Text || File <- files(Dir, "violations"), {ok, Text} <- [file:read_file(File)], Text =/= <<>>].

%% The messages that were acknowledged but are in no ledger, and the number of all acknowledged messages.
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
