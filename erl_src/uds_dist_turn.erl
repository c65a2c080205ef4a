%% The scheduling policy: when the processes of a connection let ordinary processes run before them.
%%
%% Controllers and input handlers run at priority max, so that a short message goes on at once however many
%% processes want to run. Bulk must not keep the processor from everybody else, so before a long batch such
%% a process takes priority normal and yields: a process that has just got a message from another
%% connection then has its turn, and its answer goes first. In an idle node that costs a microsecond. In a
%% node with 300 runnable processes one such turn takes a tenth of a second and more, and a turn for each
%% batch of 256 KiB carried 16 MB/s where TCP carries 600. So turns are paid for in time: after one that
%% took T, none is given for T, at most for LIMIT, and other processes have at least half of the time.
%%
%% In such a node the first of several senders fills the VM's queue, and those behind it in the run queue
%% are suspended, for as long as it takes a controller to empty it. A controller that gives a turn then
%% lets all of them wait for a round of the run queue, again and again: 22 MB/s instead of 480. But it
%% keeps nobody waiting for long, since it works only after an ordinary process has had its turn. So where
%% turns take long, none is given before PATIENCE of work without a rest.
%%
%% There is_busy/0 also tells the controller to empty the queue ahead of what the output takes.
-module(uds_dist_turn).

-export([new/0, give/1, give/0, rest/1, is_busy/0]).

-export_type([turn/0]).

-record(turn, {
    %% No turn is given before, in native time units.
    next = erlang:monotonic_time() :: integer(),
    %% When the first long batch after a rest came, in native time units.
    began :: undefined | integer()
}).

-opaque turn() :: #turn{}.

%% Milliseconds for which ordinary processes may be kept waiting after a turn.
-define(LIMIT, 100).

%% Milliseconds of work without a rest after which a turn is given even if it takes long.
-define(PATIENCE, 20).

%% So many processes that want to run, for each scheduler, make a turn a long one.
-define(BUSY, 8).

-spec new() -> turn().
new() ->
    #turn{}.

%% Lets ordinary processes run if it is time to. The caller has priority max again when this returns.
-spec give(turn()) -> turn().
give(Turn = #turn{began = undefined}) ->
    give(Turn#turn{began = erlang:monotonic_time()});
give(Turn = #turn{next = Next, began = Began}) ->
    Start = erlang:monotonic_time(),
    case Start >= Next andalso (Start - Began >= native(?PATIENCE) orelse not is_busy()) of
        true ->
            ok = give(),
            End = erlang:monotonic_time(),
            #turn{next = End + min(End - Start, native(?LIMIT)), began = End};
        false ->
            Turn
    end.

native(Milliseconds) ->
    erlang:convert_time_unit(Milliseconds, millisecond, native).

%% Lets ordinary processes run now. The caller has priority max again when this returns.
-spec give() -> ok.
give() ->
    _ = process_flag(priority, normal),
    true = erlang:yield(),
    _ = process_flag(priority, max),
    ok.

%% The caller is about to wait for a message. Others run meanwhile, unless there is one already.
-spec rest(turn()) -> turn().
rest(Turn = #turn{began = undefined}) ->
    Turn;
rest(Turn) ->
    case process_info(self(), message_queue_len) of
        {message_queue_len, 0} -> Turn#turn{began = undefined};
        _ -> Turn
    end.

%% Whether many processes want to run.
-spec is_busy() -> boolean().
is_busy() ->
    erlang:statistics(total_run_queue_lengths) > ?BUSY * erlang:system_info(schedulers_online).
