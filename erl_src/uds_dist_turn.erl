%% The scheduling policy: when the processes of a connection let ordinary processes run before them.
%%
%% Controllers and input handlers run at priority max, so that a short message is passed on at once however
%% many processes are runnable. Bulk transfers must not starve the other processes, so before a long batch
%% these processes drop to priority normal and yield: a process that has just received a message from another
%% connection then runs, and its answer goes first. In an idle node, giving a turn costs a microsecond. In
%% a node with 300 runnable processes it takes a tenth of a second or more, and a turn for each batch of
%% 256 KiB limited a connection to 16 MB/s where TCP reaches 600. So the time of turns is limited: after
%% a turn that took T, none is given for T, or for LIMIT if that is less. Other processes still have at least
%% half of the time.
%%
%% In such a busy node, the first of several senders fills the VM's queue, and the senders behind it in the
%% run queue are suspended until a controller has emptied it. If the controller gives a turn then, all of
%% them wait for a round of the run queue, again and again: about 20 MB/s, where several hundred are possible.
%% The controller does not starve anyone meanwhile, since it has work only after an ordinary process has run.
%% So while turns take long, none is given before output until PATIENCE of work without a rest is over. The
%% rate is still low for some time if all senders are suspended before the controller wakes up on another
%% scheduler.
%%
%% Input has no such patience. A receiver with a long message queue is slow, because each of its garbage
%% collections looks at the whole queue. So once input is far ahead of its receivers, they cannot catch up, and
%% the messages fill the memory. Ordinary processes run in rounds of the run queue, and a receiver handles some
%% hundred messages in each round. The input of a connection is therefore limited to a share of each round,
%% counted in bytes and in frames, and then gives a turn. If the others still run after that, it sleeps, which
%% lets its scheduler take over a receiver from another one.
%%
%% The share was measured with three processes that sent to one receiver for two seconds, beside 0 to 300
%% processes that computed, on two processors. With messages of 1 KB and 14 such processes, the receiver handled
%% 88,000 messages a second with relay, 100,000 with direct and 28,000 with TCP, the queue was shorter than 300,
%% and the node had 60 MB. When input had half of the time and 8 MiB for each turn, the receiver handled 17,000
%% and 23,000, and 290,000 and 490,000 messages waited for it. Without the sleep, 300,000 did. With messages of
%% 100 KB, TCP is faster while less than 40 processes compute.
%%
%% In a busy node, is_busy/0 also makes the controller empty the queue before the output has room.
-module(uds_dist_turn).

-export([new/0, before_output/1, after_input/3, give/0, rest/1, is_busy/0]).

-export_type([turn/0]).

-record(turn, {
    %% Earliest time of the next turn, in native time units.
    next = erlang:monotonic_time() :: integer(),
    %% Time of the first long batch of output since the last rest, in native time units.
    began :: undefined | integer(),
    %% Long input since its last turn, in bytes, with FRAME for each frame; and how long that turn took, in
    %% milliseconds.
    input = 0 :: non_neg_integer(),
    took = 0 :: non_neg_integer()
}).

-opaque turn() :: #turn{}.

%% Longest time without a turn after a turn, in milliseconds.
-define(LIMIT, 100).

%% Time of work without a rest, in milliseconds, after which output gives a turn even if turns take long.
-define(PATIENCE, 20).

%% Size in bytes from which a piece of input is long. Input that comes in shorter pieces keeps up with the peer,
%% and has no limit.
-define(LONG, 16384).

%% The share of input in a round of the run queue, in bytes. A frame counts as FRAME bytes more than it has,
%% because small messages keep receivers busy too. In long rounds, the share grows by as much with each STEP
%% milliseconds, and it is never more than MOST. While nobody waits in the run queue, it is MOST too.
-define(SHARE, 1048576).
-define(FRAME, 4096).
-define(STEP, 10).
-define(MOST, (8 * ?SHARE)).

%% How long input waits for other processes in a turn without a sleep, in microseconds, and how long it sleeps
%% after that, in milliseconds.
-define(AWAKE, 300).
-define(SLEEP, 1).

%% Number of runnable processes per scheduler above which turns take long.
-define(BUSY, 8).

-spec new() -> turn().
new() ->
    #turn{}.

%% Lets ordinary processes run before a long batch of output, if a turn is due. The caller has priority max
%% again when this returns.
-spec before_output(turn()) -> turn().
before_output(Turn = #turn{began = undefined}) ->
    before_output(Turn#turn{began = erlang:monotonic_time()});
before_output(Turn = #turn{next = Next, began = Began}) ->
    Now = erlang:monotonic_time(),
    case Now >= Next andalso (Now - Began >= native(?PATIENCE) orelse not is_busy()) of
        true -> give_at(Now, Turn);
        false -> Turn
    end.

%% Lets ordinary processes run after a piece of input of so many frames and bytes, if the run queue is short or
%% input has had its share. The caller has priority max again when this returns.
-spec after_input(Frames :: non_neg_integer(), Bytes :: non_neg_integer(), turn()) -> turn().
after_input(_, Bytes, Turn) when Bytes < ?LONG ->
    Turn;
after_input(Frames, Bytes, Turn = #turn{input = Before}) ->
    after_long_input(Turn#turn{input = Before + Bytes + ?FRAME * Frames}).

after_long_input(Turn = #turn{input = Input, took = Took}) ->
    Waiting = erlang:statistics(total_run_queue_lengths),
    IsShort = Waiting =< erlang:system_info(schedulers_online),
    case share(Waiting, Took) of
        Share when Input >= Share ->
            Took1 = let_others_run(erlang:monotonic_time()),
            %% A piece with many small frames can be worth several shares.
            after_long_input(Turn#turn{input = Input - Share, took = Took1});
        %% The turn takes no time, and the receiver handles the piece while it is in the processor's cache.
        _ when IsShort ->
            ok = give(),
            Turn;
        _ ->
            Turn
    end.

share(0, _Took) -> ?MOST;
share(_Waiting, Took) -> min(?SHARE * (1 + Took div ?STEP), ?MOST).

%% Returns how long it took in milliseconds, without the sleep.
let_others_run(Start) ->
    ok = give(),
    Took = erlang:convert_time_unit(erlang:monotonic_time() - Start, native, microsecond),
    %% This process is one of the active ones.
    case erlang:statistics(total_active_tasks) > 1 of
        true when Took < ?AWAKE ->
            let_others_run(Start);
        true when Took < 1000 * ?SLEEP ->
            receive
            after ?SLEEP -> 0
            end;
        _ ->
            Took div 1000
    end.

give_at(Start, Turn) ->
    ok = give(),
    End = erlang:monotonic_time(),
    Turn#turn{next = End + min(End - Start, native(?LIMIT)), began = End}.

native(Milliseconds) ->
    erlang:convert_time_unit(Milliseconds, millisecond, native).

%% Lets ordinary processes run now. The caller has priority max again when this returns.
-spec give() -> ok.
give() ->
    _ = process_flag(priority, normal),
    true = erlang:yield(),
    _ = process_flag(priority, max),
    ok.

%% Notes that the caller is about to wait for a message. Unless one has arrived already, that is a rest.
-spec rest(turn()) -> turn().
rest(Turn = #turn{began = undefined}) ->
    Turn;
rest(Turn) ->
    case process_info(self(), message_queue_len) of
        {message_queue_len, 0} -> Turn#turn{began = undefined};
        _ -> Turn
    end.

%% Whether so many processes are runnable that turns take long.
-spec is_busy() -> boolean().
is_busy() ->
    erlang:statistics(total_run_queue_lengths) > ?BUSY * erlang:system_info(schedulers_online).
