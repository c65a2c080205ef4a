%% Rate limits for log lines that peers can cause: one line for each user and kind of event in an interval,
%% with the number of events since the line before. The sidecar has the same limit for its lines, in
%% src/log_limit.rs. The owner and input handlers count here, so the table is public.
-module(uds_dist_log_limit).

-export([new/0, count/3]).

-export_type([kind/0, user/0]).

-type kind() :: atom().
%% The numeric user id of the peer, or `any` if all users share the limit.
-type user() :: non_neg_integer() | any.

%% Each user causes at most one line of a kind in this time, in milliseconds.
-define(INTERVAL, 5000).

%% Most users and kinds that are remembered, and therefore logged, in one interval. A host has few users, but
%% whoever controls a user namespace may have 65536.
-define(MAX_REMEMBERED, 100).

%% Creates the table, which ends with the calling process.
-spec new() -> ok.
new() ->
    ?MODULE = ets:new(?MODULE, [named_table, public, {write_concurrency, true}]),
    ok.

%% Counts an event at a time in milliseconds. If a line is due, returns the number of events since the last
%% line, including this one.
-spec count(kind(), user(), Now :: integer()) -> {due, pos_integer()} | not_due.
count(Kind, User, Now) ->
    try
        count({Kind, User}, Now)
    catch
        %% Distribution is going down, and the table with it.
        error:badarg -> {due, 1}
    end.

count(Key, Now) ->
    case ets:lookup(?MODULE, Key) of
        [{Key, Logged, _}] when Now - Logged < ?INTERVAL ->
            _ = ets:update_counter(?MODULE, Key, {3, 1}),
            not_due;
        [{Key, _, Since}] ->
            true = ets:insert(?MODULE, {Key, Now, 0}),
            {due, Since + 1};
        [] ->
            begin_to_remember(Key, Now)
    end.

begin_to_remember(Key, Now) ->
    _ = ets:info(?MODULE, size) >= ?MAX_REMEMBERED andalso forget_before(Now - ?INTERVAL),
    case ets:info(?MODULE, size) < ?MAX_REMEMBERED of
        true ->
            true = ets:insert(?MODULE, {Key, Now, 0}),
            {due, 1};
        false ->
            not_due
    end.

forget_before(Time) ->
    ets:select_delete(?MODULE, [{{'_', '$1', '_'}, [{'=<', '$1', Time}], [true]}]).
