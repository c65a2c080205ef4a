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
%% Input has no such patience. Receivers run only in a turn, and until then their messages fill the memory. So
%% a turn is also given after every FILL bytes. While four processes sent 1 MiB messages into a node with 300
%% busy processes for four seconds, both nodes held 269 MiB with relay, 283 with direct and 295 with TCP, at
%% rates of 99, 127 and 95 MB/s. With a limit of 4 MiB, relay lost a third of its rate; with one of 12 MiB,
%% direct held twice as much.
%%
%% In a busy node, is_busy/0 also makes the controller empty the queue before the output has room.
-module(uds_dist_turn).

-export([new/0, before_output/1, after_input/2, give/0, rest/1, is_busy/0]).

-export_type([turn/0]).

-record(turn, {
    %% Earliest time of the next turn, in native time units.
    next = erlang:monotonic_time() :: integer(),
    %% Time of the first long batch of output since the last rest, in native time units.
    began :: undefined | integer(),
    %% Bytes of long input since the last turn.
    filled = 0 :: non_neg_integer()
}).

-opaque turn() :: #turn{}.

%% Longest time without a turn after a turn, in milliseconds.
-define(LIMIT, 100).

%% Time of work without a rest, in milliseconds, after which output gives a turn even if turns take long.
-define(PATIENCE, 20).

%% Bytes of input after which a turn is given even if turns take long.
-define(FILL, (8 * 1048576)).

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
        true -> give_at(Now);
        false -> Turn
    end.

%% The same after a long piece of input of Size bytes.
-spec after_input(Size :: non_neg_integer(), turn()) -> turn().
after_input(Size, Turn = #turn{next = Next, filled = Filled}) ->
    Now = erlang:monotonic_time(),
    case Now >= Next orelse Filled + Size >= ?FILL of
        true -> give_at(Now);
        false -> Turn#turn{filled = Filled + Size}
    end.

give_at(Start) ->
    ok = give(),
    End = erlang:monotonic_time(),
    #turn{next = End + min(End - Start, native(?LIMIT)), began = End}.

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
