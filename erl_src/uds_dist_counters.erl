%% The byte counters of a connection. Its controller and its input handler update them, and any process can
%% read them without asking either.
-module(uds_dist_counters).

-export([new/0, sent/2, received/2, unacknowledged/2, held/2, read/1, unacknowledged/1, held/1, totals/1]).

-export_type([counters/0, totals/0]).

-opaque counters() :: counters:counters_ref().
-type totals() :: #{bytes_sent := non_neg_integer(), bytes_received := non_neg_integer()}.

-define(SENT, 1).
-define(RECEIVED, 2).
-define(UNACKNOWLEDGED, 3).
-define(HELD, 4).

%% New counters, which are zero.
-spec new() -> counters().
new() ->
    counters:new(4, []).

%% Adds to the bytes sent.
-spec sent(non_neg_integer(), counters()) -> ok.
sent(Bytes, Counters) ->
    counters:add(Counters, ?SENT, Bytes).

%% Adds to the bytes received.
-spec received(non_neg_integer(), counters()) -> ok.
received(Bytes, Counters) ->
    counters:add(Counters, ?RECEIVED, Bytes).

%% So many bytes of those that went out are not acknowledged.
-spec unacknowledged(non_neg_integer(), counters()) -> ok.
unacknowledged(Bytes, Counters) ->
    counters:put(Counters, ?UNACKNOWLEDGED, Bytes).

-spec unacknowledged(counters()) -> non_neg_integer().
unacknowledged(Counters) ->
    counters:get(Counters, ?UNACKNOWLEDGED).

%% So many bytes have left the VM's queue, and wait in the controller.
-spec held(non_neg_integer(), counters()) -> ok.
held(Bytes, Counters) ->
    counters:put(Counters, ?HELD, Bytes).

-spec held(counters()) -> non_neg_integer().
held(Counters) ->
    counters:get(Counters, ?HELD).

-spec read(counters()) -> totals().
read(Counters) ->
    #{
        bytes_sent => counters:get(Counters, ?SENT),
        bytes_received => counters:get(Counters, ?RECEIVED)
    }.

%% The sums of several counters and totals.
-spec totals([counters() | totals()]) -> totals().
totals(All) ->
    lists:foldl(
        fun(Some, #{bytes_sent := Sent, bytes_received := Received}) ->
            #{bytes_sent := S, bytes_received := R} = read_totals(Some),
            #{bytes_sent => Sent + S, bytes_received => Received + R}
        end,
        #{bytes_sent => 0, bytes_received => 0},
        All
    ).

read_totals(Totals) when is_map(Totals) -> Totals;
read_totals(Counters) -> read(Counters).
