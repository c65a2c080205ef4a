%% The state machine of this node's listener. It knows the place where the node should listen and the
%% sockets that exist, and decides how to make the two agree. Pure: events go in, effects come out, and
%% uds_dist_port carries them out.
%%
%% A place stays wanted until it is closed. Whatever happens to the socket, such as the death of the sidecar
%% or a new configuration that does not work, the listener returns to the place that it had, with one timer
%% and a backoff. It knows nothing of ports, processes or the time of day; all times are in milliseconds of
%% the caller's clock.
-module(uds_dist_listener).

-export([new/0, open/4, put_off/3, move/4, close/2]).
-export([up/1, down/2, listening/3, listen_failed/5, unlistened/2, lost/4, timeout/1]).
-export([name/1, wanted/1, has_place/1, actual/1, is_requested/1]).

-export_type([listener/0, tag/0, effect/0]).

-type place() :: uds_dist_address:place().
%% The term by which the caller recognizes its request.
-type tag() :: term().
-type id() :: uds_dist_protocol:listener().
-type effect() ::
    %% Send this command to the sidecar.
    {listen, id(), place()}
    | {unlisten, id()}
    %% Start the sidecar if there is none.
    | need_sidecar
    %% Tell the caller the result of its request.
    | {done, tag(), ok | {error, Reason :: atom(), uds_dist_text:explanation()}}
    %% Set the timer, and cancel the previous one.
    | {timer, Milliseconds :: non_neg_integer()}
    | {log, notice | error, uds_dist_text:explanation()}.

%% Delay between attempts to get a name whose owner is going away, in milliseconds.
-define(BUSY_RETRY, 20).
%% The delay before the second attempt to get back a lost place, and the longest delay, in milliseconds.
-define(FIRST_BACKOFF, 100).
-define(MAX_BACKOFF, 2000).
%% A socket that lasted this many milliseconds resets the backoff: it is reopened at once when it is lost.
-define(GOOD_LIFE, 10000).

-record(request, {
    tag :: tag(),
    place :: place(),
    %% What was wanted before the request, and will be again if it fails.
    before :: wanted(),
    %% Time until which the request is retried if the name's owner is just going away.
    give_up :: integer(),
    %% A sidecar has died while it carried out the request.
    has_survived = false :: boolean()
}).

-type wanted() :: none | undecided | place().

-record(listener, {
    name :: undefined | atom(),
    wanted = none :: wanted(),
    %% Usually one socket; two during a move.
    sockets = #{} :: #{id() => {place(), opening | open | closing}},
    %% Whether the sidecar is running.
    is_up = false :: boolean(),
    %% The request that is being carried out, and those that follow.
    request :: undefined | #request{},
    next = [] :: [{place(), tag(), GiveUp :: integer()}],
    %% Requests to close, which are done when no socket is left; the latest first.
    closing = [] :: [tag()],
    %% Whether an attempt has failed and the next one waits for the timer.
    awaits_timer = false :: boolean(),
    %% Defined from the loss of a place until the node listens there again.
    backoff :: undefined | uds_dist_backoff:backoff(),
    %% Time at which the socket was opened, and the backoff for sockets that are lost soon after that.
    since = 0 :: integer(),
    losses = uds_dist_backoff:new(?FIRST_BACKOFF) :: uds_dist_backoff:backoff()
}).

-opaque listener() :: #listener{}.
-type result() :: {[effect()], listener()}.

%% A listener that should not listen anywhere.
-spec new() -> listener().
new() ->
    #listener{}.

-spec name(listener()) -> undefined | atom().
name(#listener{name = Name}) -> Name.

-spec wanted(listener()) -> wanted().
wanted(#listener{wanted = Wanted}) -> Wanted.

%% Whether this node should listen, and it is decided where.
-spec has_place(listener()) -> boolean().
has_place(#listener{wanted = {_, _, _}}) -> true;
has_place(#listener{}) -> false.

%% Whether a request is being carried out.
-spec is_requested(listener()) -> boolean().
is_requested(#listener{request = Request}) -> Request =/= undefined.

%% The place where the node listens now.
-spec actual(listener()) -> none | place().
actual(#listener{sockets = Sockets}) ->
    case [Place || {Place, open} <- maps:values(Sockets)] of
        [Place | _] -> Place;
        [] -> none
    end.

%% ---------------------------------------------------------------------------------------------
%% Requests

%% Requests to listen as Name at Place.
-spec open(atom(), place(), {tag(), GiveUp :: integer()}, listener()) -> result().
open(Name, Place, {Tag, GiveUp}, Listener = #listener{wanted = none, closing = []}) ->
    start({Place, Tag, GiveUp}, Listener#listener{name = Name});
open(_, _, {Tag, _}, Listener) ->
    {[already_listening(Tag)], Listener}.

%% Requests to listen as Name, at a place that move/4 will give later.
-spec put_off(atom(), tag(), listener()) -> result().
put_off(Name, Tag, Listener = #listener{wanted = none, closing = []}) ->
    {[{done, Tag, ok}], Listener#listener{name = Name, wanted = undecided}};
put_off(_, Tag, Listener) ->
    {[already_listening(Tag)], Listener}.

already_listening(Tag) ->
    {done, Tag, {error, already_listening, "this node is already listening"}}.

%% Requests to listen at another place from now on. The new socket is opened before the old one is closed,
%% unless both have the same address. If it cannot be opened, nothing changes.
-spec move(place(), tag(), GiveUp :: integer(), listener()) -> result().
move(_, Tag, _, Listener = #listener{wanted = none}) ->
    {[{done, Tag, ok}], Listener};
move(Place, Tag, GiveUp, Listener = #listener{request = undefined}) ->
    start({Place, Tag, GiveUp}, Listener);
move(Place, Tag, GiveUp, Listener = #listener{next = Next}) ->
    {[], Listener#listener{next = Next ++ [{Place, Tag, GiveUp}]}}.

%% Requests to stop listening. The request is done when the socket is gone.
-spec close(tag(), listener()) -> result().
close(Tag, Listener = #listener{request = Request, next = Next, closing = Closing}) ->
    Given = [{T, closed} || #request{tag = T} <- [Request]] ++ [{T, closed} || {_, T, _} <- Next],
    Effects = [{done, T, {error, Reason, "this node stopped listening"}} || {T, Reason} <- Given],
    add(
        Effects,
        settle(Listener#listener{
            wanted = none,
            request = undefined,
            next = [],
            closing = [Tag | Closing],
            awaits_timer = false,
            backoff = undefined
        })
    ).

start({Place, Tag, GiveUp}, Listener = #listener{wanted = Before}) ->
    Request = #request{tag = Tag, place = Place, before = Before, give_up = GiveUp},
    settle(Listener#listener{wanted = Place, request = Request, awaits_timer = false}).

%% ---------------------------------------------------------------------------------------------
%% Events

%% The sidecar is running.
-spec up(listener()) -> result().
up(Listener) ->
    settle(Listener#listener{is_up = true, awaits_timer = false}).

%% The sidecar is gone, and all sockets with it; or it could not be started. A request survives one death of
%% a sidecar, which says nothing about the request.
-spec down(died | not_started, listener()) -> result().
down(How, Listener = #listener{request = Request}) ->
    Listener1 = Listener#listener{is_up = false, sockets = #{}},
    case Request of
        undefined ->
            settle(Listener1);
        #request{has_survived = false} when How =:= died ->
            settle(Listener1#listener{request = Request#request{has_survived = true}});
        #request{} ->
            failed(sidecar_failed, "the sidecar failed", Listener1)
    end.

-spec listening(id(), Now :: integer(), listener()) -> result().
listening(Id, Now, Listener = #listener{sockets = Sockets, wanted = Wanted, backoff = Backoff}) ->
    Listener1 = Listener#listener{since = Now},
    case Sockets of
        #{Id := {Wanted, opening}} when Backoff =/= undefined ->
            Line = ["listening again at ", address(Wanted), tries(Backoff)],
            add([{log, notice, Line}], opened(Id, Wanted, Listener1#listener{backoff = undefined}));
        #{Id := {Place, opening}} ->
            opened(Id, Place, Listener1);
        #{} ->
            {[], Listener}
    end.

opened(Id, Place, Listener = #listener{sockets = Sockets}) ->
    settle(Listener#listener{sockets = Sockets#{Id := {Place, open}}}).

-spec listen_failed(id(), Reason :: atom(), uds_dist_text:explanation(), Now, listener()) ->
    result()
when
    Now :: integer().
listen_failed(Id, Reason, Explanation, Now, Listener = #listener{sockets = Sockets}) ->
    case maps:take(Id, Sockets) of
        {{Place, opening}, Sockets1} ->
            Listener1 = Listener#listener{sockets = Sockets1},
            case Listener#listener.request of
                #request{place = Place, give_up = GiveUp} when Reason =:= name_busy, Now < GiveUp ->
                    {[{timer, ?BUSY_RETRY}], Listener1#listener{awaits_timer = true}};
                #request{place = Place} ->
                    failed(Reason, Explanation, Listener1);
                _ when Listener#listener.wanted =:= Place ->
                    retry_later(Place, Explanation, Listener1);
                _ ->
                    settle(Listener1)
            end;
        _ ->
            {[], Listener}
    end.

-spec unlistened(id(), listener()) -> result().
unlistened(Id, Listener = #listener{sockets = Sockets}) ->
    case Sockets of
        #{Id := {_, closing}} -> settle(Listener#listener{sockets = maps:remove(Id, Sockets)});
        %% The socket was lost while UNLISTEN was on its way; its number may belong to another one by now.
        #{} -> {[], Listener}
    end.

%% The socket file was removed or replaced while the sidecar was running.
-spec lost(id(), uds_dist_text:explanation(), Now :: integer(), listener()) -> result().
lost(Id, Explanation, Now, Listener = #listener{sockets = Sockets}) ->
    Listener1 = Listener#listener{sockets = maps:remove(Id, Sockets)},
    case Sockets of
        #{Id := {Place, open}} ->
            Line = ["no longer listening at ", address(Place), ": ", Explanation],
            add([{log, error, Line}], listen_again(Explanation, Now, remember_loss(Listener1)));
        #{Id := {_, closing}} ->
            settle(Listener1);
        #{} ->
            {[], Listener}
    end.

%% Listens again at once, unless the socket has been taken away again and again.
listen_again(Explanation, Now, Listener = #listener{since = Since, losses = Losses}) ->
    Losses1 =
        case Now - Since >= ?GOOD_LIFE of
            true -> uds_dist_backoff:new(?FIRST_BACKOFF);
            false -> Losses
        end,
    {Delay, _, Losses2} = uds_dist_backoff:failed(Explanation, ?MAX_BACKOFF, Losses1),
    Listener1 = Listener#listener{losses = Losses2, awaits_timer = true},
    add([{timer, Delay}], settle(Listener1)).

%% The timer has fired.
-spec timeout(listener()) -> result().
timeout(Listener) ->
    settle(Listener#listener{awaits_timer = false}).

%% The request has failed: the listener goes back to what was wanted before.
failed(Reason, Explanation, Listener = #listener{request = Request}) ->
    #request{tag = Tag, before = Before} = Request,
    Listener1 = Listener#listener{request = undefined, wanted = Before, awaits_timer = false},
    add([{done, Tag, {error, Reason, Explanation}}], next(remember_loss(Listener1))).

%% Schedules another attempt to listen at a place that this node had before.
retry_later(Place, Explanation, Listener) ->
    #listener{backoff = Backoff} = Listener1 = remember_loss(Listener),
    {Delay, IsNews, Backoff1} = uds_dist_backoff:failed(Explanation, ?MAX_BACKOFF, Backoff),
    Line = [
        "cannot listen again at ",
        address(Place),
        io_lib:format(", and will retry at once and then after up to ~b ms: ", [?MAX_BACKOFF]),
        Explanation
    ],
    {
        [{log, error, Line} || IsNews] ++ [{timer, Delay}],
        Listener1#listener{backoff = Backoff1, awaits_timer = true}
    }.

%% Notes that the place was lost: the next socket there is logged as "listening again".
remember_loss(Listener = #listener{wanted = {_, _, _}, backoff = undefined, request = undefined}) ->
    case actual(Listener) of
        none -> Listener#listener{backoff = uds_dist_backoff:new(?FIRST_BACKOFF)};
        _ -> Listener
    end;
remember_loss(Listener) ->
    Listener.

tries(Backoff) ->
    case uds_dist_backoff:tries(Backoff) of
        0 -> "";
        Failures -> io_lib:format(", after ~b tries", [Failures + 1])
    end.

%% ---------------------------------------------------------------------------------------------
%% Making the sockets agree with what is wanted

settle(Listener = #listener{wanted = none, sockets = Sockets}) ->
    {Effects, Listener1} = unlisten([Id || {Id, {_, open}} <- maps:to_list(Sockets)], Listener),
    add(Effects, closed(Listener1));
settle(Listener = #listener{wanted = undecided}) ->
    {[], Listener};
settle(Listener = #listener{is_up = false}) ->
    {[need_sidecar], remember_loss(Listener)};
settle(Listener = #listener{wanted = Wanted, sockets = Sockets, awaits_timer = AwaitsTimer}) ->
    case socket(Wanted, Sockets) of
        {_, opening} ->
            {[], Listener};
        {Id, open} ->
            Others = [Other || {Other, {_, open}} <- maps:to_list(Sockets), Other =/= Id],
            add(unlisten(Others, Listener), fun arrived/1);
        none when AwaitsTimer ->
            {[], Listener};
        none ->
            case same_address(Wanted, Sockets) of
                [] -> listen(Wanted, Listener);
                Ids -> unlisten([Id || Id <- Ids, is_open(Id, Sockets)], Listener)
            end
    end.

socket(Place, Sockets) ->
    case [{Id, S} || {Id, {P, S}} <- maps:to_list(Sockets), P =:= Place, S =/= closing] of
        [Found | _] -> Found;
        [] -> none
    end.

same_address({Address, _, _}, Sockets) ->
    [Id || {Id, {{A, _, _}, _}} <- maps:to_list(Sockets), A =:= Address].

is_open(Id, Sockets) ->
    element(2, maps:get(Id, Sockets)) =:= open.

listen(Place, Listener = #listener{sockets = Sockets}) ->
    case [Id || Id <- lists:seq(0, 15), not is_map_key(Id, Sockets)] of
        [Id | _] ->
            {[{listen, Id, Place}], Listener#listener{sockets = Sockets#{Id => {Place, opening}}}};
        [] ->
            %% A number becomes free when a socket has been closed.
            {[], Listener}
    end.

unlisten(Ids, Listener) ->
    lists:foldl(
        fun(Id, {Effects, L = #listener{sockets = Sockets}}) ->
            #{Id := {Place, open}} = Sockets,
            {Effects ++ [{unlisten, Id}], L#listener{sockets = Sockets#{Id := {Place, closing}}}}
        end,
        {[], Listener},
        Ids
    ).

%% The wanted socket is open. A request is done when it is the only one left.
arrived(Listener = #listener{request = Request, sockets = Sockets}) when map_size(Sockets) =:= 1 ->
    case Request of
        undefined ->
            {[], Listener};
        #request{tag = Tag, before = Before} ->
            add(
                [{done, Tag, ok}] ++ moved(Before, Listener),
                next(Listener#listener{request = undefined})
            )
    end;
arrived(Listener) ->
    {[], Listener}.

moved(none, _) -> [];
moved(Wanted, #listener{wanted = Wanted}) -> [];
moved(_, #listener{wanted = Wanted}) ->
    [{log, notice, ["listening at ", address(Wanted), ", as configured"]}].

%% Nothing is wanted: the listener is closed once no socket is left.
closed(Listener = #listener{closing = Tags = [_ | _], sockets = Sockets}) when
    map_size(Sockets) =:= 0
->
    Effects = [{done, Tag, ok} || Tag <- lists:reverse(Tags)],
    {Effects, Listener#listener{closing = [], name = undefined}};
closed(Listener) ->
    {[], Listener}.

%% A request is done; the next one starts.
next(Listener = #listener{next = []}) ->
    settle(Listener);
next(Listener = #listener{next = [{_, Tag, _} | Next], wanted = none}) ->
    %% The listener could not be opened, and there is nothing to move.
    add([{done, Tag, ok}], next(Listener#listener{next = Next}));
next(Listener = #listener{next = [Request | Next]}) ->
    start(Request, Listener#listener{next = Next}).

add({Effects, Listener}, Then) when is_function(Then, 1) -> add(Effects, Then(Listener));
add(Effects, {More, Listener}) -> {Effects ++ More, Listener}.

address({Address, _, _}) ->
    uds_dist_address:printable(Address).
