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
%% Where turns take long, senders wait for their own turns as well, and come to find the VM's queue full
%% again and again. is_busy/1 tells the controller to empty the queue ahead of what the output takes.
-module(uds_dist_turn).

-export([new/0, give/1, give/0, is_busy/1]).

-export_type([turn/0]).

-record(turn, {
    %% No turn is given before, in native time units.
    next = erlang:monotonic_time() :: integer(),
    %% How long the last one took, in native time units.
    took = 0 :: non_neg_integer()
}).

-opaque turn() :: #turn{}.

%% Milliseconds for which ordinary processes may be kept waiting.
-define(LIMIT, 100).

%% A turn that takes so many microseconds shows that many processes want to run.
-define(BUSY, 1000).

-spec new() -> turn().
new() ->
    #turn{}.

%% Lets ordinary processes run if it is time to. The caller has priority max again when this returns.
-spec give(turn()) -> turn().
give(Turn = #turn{next = Next}) ->
    case erlang:monotonic_time() of
        Start when Start < Next ->
            Turn;
        Start ->
            ok = give(),
            End = erlang:monotonic_time(),
            Limit = erlang:convert_time_unit(?LIMIT, millisecond, native),
            #turn{next = End + min(End - Start, Limit), took = End - Start}
    end.

%% Lets ordinary processes run now. The caller has priority max again when this returns.
-spec give() -> ok.
give() ->
    _ = process_flag(priority, normal),
    true = erlang:yield(),
    _ = process_flag(priority, max),
    ok.

%% Whether the last turn took long.
-spec is_busy(turn()) -> boolean().
is_busy(#turn{took = Took}) ->
    Took > erlang:convert_time_unit(?BUSY, microsecond, native).
