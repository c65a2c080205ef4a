%% Callers of the owner that have no reply yet, and what each of them waits for.
%%
%% A reply is kept until send/1, when the whole message that led to it has been handled. So an exception on
%% the way leaves no caller with two replies, or with none.
-module(uds_dist_callers).

-export([new/0, add/3, reply/3, reply_all/3, give_up/2, send/1]).

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

%% Replies to everybody who waits for a part.
-spec reply_all(part(), Reply :: term(), callers()) -> callers().
reply_all(Part, Reply, Callers = #callers{waiting = Waiting}) ->
    Those = [From || {From, P} <- maps:to_list(Waiting), P =:= Part],
    lists:foldl(fun(From, C) -> reply(From, Reply, C) end, Callers, Those).

%% Gives up the request of a caller, everything that depends on a part, or everything. Whoever waits for it is
%% told so, because an exception must leave nobody waiting in vain.
-spec give_up({caller, gen_server:from()} | part() | all, callers()) -> callers().
give_up({caller, From}, Callers = #callers{waiting = Waiting}) ->
    case Waiting of
        #{From := Part} -> reply(From, given_up(Part), Callers);
        #{} -> Callers
    end;
give_up(all, Callers) ->
    lists:foldl(fun give_up/2, Callers, [listener, dialer, status, state]);
give_up(Part, Callers) ->
    reply_all(Part, given_up(Part), Callers).

given_up(status) -> uds_dist_sidecar:unknown_status();
given_up(_) -> {error, internal_error}.

-spec send(callers()) -> callers().
send(Callers = #callers{replies = []}) ->
    Callers;
send(Callers = #callers{replies = Replies}) ->
    lists:foreach(fun({From, Reply}) -> gen_server:reply(From, Reply) end, lists:reverse(Replies)),
    Callers#callers{replies = []}.
