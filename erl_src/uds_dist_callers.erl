%% Callers of the owner that have no reply yet, and what each of them waits for.
%%
%% A reply is kept until send/1, when the whole message that led to it has been handled. So an exception on
%% the way leaves no caller with two replies, or with none.
-module(uds_dist_callers).

-export([new/0, add/3, reply/3, waits_for/2, waiting/2, all/1, send/1]).

-export_type([callers/0, part/0]).

-record(callers, {
    waiting = #{} :: #{gen_server:from() => part()},
    %% Those to be sent, last one first.
    replies = [] :: [{gen_server:from(), Reply :: term()}]
}).

-opaque callers() :: #callers{}.
%% The part of the owner on which a reply depends.
-type part() :: listener | dialer | status | state.

-spec new() -> callers().
new() ->
    #callers{}.

-spec add(gen_server:from(), part(), callers()) -> callers().
add(From, Part, Callers = #callers{waiting = Waiting}) ->
    Callers#callers{waiting = Waiting#{From => Part}}.

%% Nothing happens for a caller whose request was given up, since it has its reply already.
-spec reply(gen_server:from(), Reply :: term(), callers()) -> callers().
reply(From, Reply, Callers = #callers{waiting = Waiting, replies = Replies}) ->
    case maps:take(From, Waiting) of
        {_, Waiting1} -> Callers#callers{waiting = Waiting1, replies = [{From, Reply} | Replies]};
        error -> Callers
    end.

-spec waits_for(gen_server:from(), callers()) -> part() | nothing.
waits_for(From, #callers{waiting = Waiting}) ->
    maps:get(From, Waiting, nothing).

-spec waiting(part(), callers()) -> [gen_server:from()].
waiting(Part, #callers{waiting = Waiting}) ->
    [From || {From, P} <- maps:to_list(Waiting), P =:= Part].

-spec all(callers()) -> [gen_server:from()].
all(#callers{waiting = Waiting}) ->
    maps:keys(Waiting).

-spec send(callers()) -> callers().
send(Callers = #callers{replies = []}) ->
    Callers;
send(Callers = #callers{replies = Replies}) ->
    lists:foreach(fun({From, Reply}) -> gen_server:reply(From, Reply) end, lists:reverse(Replies)),
    Callers#callers{replies = []}.
