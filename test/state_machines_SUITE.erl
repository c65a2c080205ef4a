%% Tests the pure state machines uds_dist_listener and uds_dist_dialer with random events, in a small model of their
%% world: a sidecar that comes and goes, two pipes with packets to and from it, a clock, and callers with requests at
%% any time. Also tests uds_dist_settings and uds_dist_requests with all cases that make a difference,
%% uds_dist_backoff, uds_dist_diagnosis, uds_dist_busy_poll and uds_dist_log_limit; and uds_dist_channel with real
%% sockets.
%%
%% Each sequence of events has its own seed, and all runs test the same sequences. Of the sequences that fail, the
%% shortest is shown with its seed. UDS_DIST_SEQUENCES sets their number.
-module(state_machines_SUITE).

-export([all/0, groups/0]).
-export([
    listener_keeps_its_promises/1,
    failed_move_at_the_same_address_restores_the_place/1,
    second_move_waits_for_the_first/1,
    move_after_a_failed_open_opens_nothing/1,
    move_to_the_same_place_is_no_news/1,
    put_off_waits_for_the_listener_to_be_closed/1,
    each_close_is_answered/1,
    late_answer_is_not_taken_for_the_next_one/1,
    unavailable_place_is_retried_with_a_backoff/1,
    place_lost_repeatedly_is_retried_with_a_backoff/1,
    busy_name_is_retried_until_the_caller_gives_up/1,
    request_survives_one_death_of_the_sidecar/1
]).
-export([
    dialer_keeps_its_promises/1,
    full_backlog_is_retried_until_the_caller_gives_up/1,
    requests_that_were_put_off_keep_their_order/1,
    unreachable_node_is_logged_once_a_minute/1
]).
-export([
    settings_are_kept_while_the_node_listens/1,
    sidecar_is_told_what_has_changed/1,
    overridden_settings_are_logged_once/1,
    notices_wait_for_the_end_of_the_boot/1
]).
-export([
    each_caller_gets_one_reply/1,
    failure_is_logged_once/1,
    settings_are_put_in_force_once_they_work/1,
    failure_at_the_end_of_the_boot_ends_the_vm/1
]).
-export([
    delays_double_up_to_the_limit/1,
    failure_is_news_when_its_text_changes/1
]).
-export([
    blocks_until_a_wait_was_short/1,
    blocks_after_a_wait_that_was_long/1,
    blocks_while_a_bulk_transfer_continues/1,
    spins_less_often_while_it_is_in_vain/1,
    spin_that_something_interrupted_was_in_vain/1,
    never_spins_without_a_budget/1,
    lines_that_peers_cause_are_limited/1
]).
-export([channel_is_usable_again_with_the_next_socket/1]).
-export([
    peer_refuses_what_follows_its_challenge/1,
    garbage_is_no_challenge/1
]).

-include_lib("stdlib/include/assert.hrl").

%% Number of random sequences for each machine, and their greatest length.
-define(SEQUENCES, "10000").
-define(LONGEST, 60).

%% Longest time in milliseconds until a full backlog is tried again.
-define(BACKLOG_RETRY, 20).
-define(MINUTE, 60000).

all() ->
    [
        {group, listener},
        {group, dialer},
        {group, settings},
        {group, requests},
        {group, backoff},
        {group, busy_poll},
        {group, log_limit},
        {group, channel},
        {group, diagnosis}
    ].

groups() ->
    [
        {listener, [parallel], [
            listener_keeps_its_promises,
            failed_move_at_the_same_address_restores_the_place,
            second_move_waits_for_the_first,
            move_after_a_failed_open_opens_nothing,
            move_to_the_same_place_is_no_news,
            put_off_waits_for_the_listener_to_be_closed,
            each_close_is_answered,
            late_answer_is_not_taken_for_the_next_one,
            unavailable_place_is_retried_with_a_backoff,
            place_lost_repeatedly_is_retried_with_a_backoff,
            busy_name_is_retried_until_the_caller_gives_up,
            request_survives_one_death_of_the_sidecar
        ]},
        {dialer, [parallel], [
            dialer_keeps_its_promises,
            full_backlog_is_retried_until_the_caller_gives_up,
            requests_that_were_put_off_keep_their_order,
            unreachable_node_is_logged_once_a_minute
        ]},
        {settings, [parallel], [
            settings_are_kept_while_the_node_listens,
            sidecar_is_told_what_has_changed,
            overridden_settings_are_logged_once,
            notices_wait_for_the_end_of_the_boot
        ]},
        {requests, [parallel], [
            each_caller_gets_one_reply,
            failure_is_logged_once,
            settings_are_put_in_force_once_they_work,
            failure_at_the_end_of_the_boot_ends_the_vm
        ]},
        {backoff, [parallel], [
            delays_double_up_to_the_limit,
            failure_is_news_when_its_text_changes
        ]},
        {busy_poll, [parallel], [
            blocks_until_a_wait_was_short,
            blocks_after_a_wait_that_was_long,
            blocks_while_a_bulk_transfer_continues,
            spins_less_often_while_it_is_in_vain,
            spin_that_something_interrupted_was_in_vain,
            never_spins_without_a_budget
        ]},
        {log_limit, [], [
            lines_that_peers_cause_are_limited
        ]},
        {channel, [], [
            channel_is_usable_again_with_the_next_socket
        ]},
        {diagnosis, [], [
            peer_refuses_what_follows_its_challenge,
            garbage_is_no_challenge
        ]}
    ].

%% ---------------------------------------------------------------------------------------------
%% Random sequences

%% Run creates a world and applies events to it. It throws {broken, What, Events} if a promise is broken.
each_sequence(Run) ->
    Count = list_to_integer(os:getenv("UDS_DIST_SEQUENCES", ?SEQUENCES)),
    case lists:append([sequence(Seed, Run) || Seed <- lists:seq(1, Count)]) of
        [] ->
            ok;
        Failures ->
            {_, Seed, What, Events} = lists:min(Failures),
            ct:fail("~b of ~b sequences failed; the shortest one has seed ~b:~n~p~nafter~n~p", [
                length(Failures), Count, Seed, What, Events
            ])
    end.

sequence(Seed, Run) ->
    _ = rand:seed(exsss, Seed),
    try
        Run(rand:uniform(?LONGEST)),
        []
    catch
        throw:{broken, What, Events} -> [{length(Events), Seed, What, Events}]
    end.

one_of(List) ->
    lists:nth(rand:uniform(length(List)), List).

%% Chooses an event according to the weights.
choose(Weighted) ->
    choose(rand:uniform(lists:sum([Weight || {Weight, _} <- Weighted])), Weighted).

choose(Left, [{Weight, Event} | _]) when Left =< Weight -> Event;
choose(Left, [{Weight, _} | More]) -> choose(Left - Weight, More).

%% ---------------------------------------------------------------------------------------------
%% The listener's world

-record(world, {
    listener = uds_dist_listener:new(),
    now = 0,
    timer :: undefined | integer(),
    %% needed: the listener has asked for a sidecar, but there is none.
    sidecar = down :: down | needed | up,
    %% Packets on their way to and from the sidecar, oldest first.
    commands = [],
    reports = [],
    %% Listeners that the sidecar has open, and those that it has lost, which the VM may not know yet.
    open = #{} :: #{0..15 => uds_dist_address:place()},
    lost = [] :: [0..15],
    %% The listeners that are open according to the VM.
    told = #{} :: #{0..15 => {uds_dist_address:place(), opening | open | closing}},
    %% Pending requests, oldest first, and the result of the completed ones.
    pending = [] :: [{Tag :: pos_integer(), Request :: term()}],
    wanted = none,
    last_tag = 0,
    lines = [] :: [binary()],
    %% The events so far, latest first.
    events = []
}).

-define(PLACE, {<<"/a">>, 5, 8#600}).
-define(SAME_ADDRESS, {<<"/a">>, 100, 8#600}).
-define(ELSEWHERE, {<<"/b">>, 5, 8#600}).

%% Everything that can happen next, with its weight.
possible(#world{sidecar = Sidecar, wanted = Wanted} = World) ->
    IsAnyTime = rand:uniform(20) =:= 1,
    lists:append([
        [{3, {move, place(), patience()}}, {1, close}, {2, {time, one_of([1, 15, 300, 3000])}}],
        [{4, {open, place(), patience()}} || Wanted =:= none orelse IsAnyTime],
        [{1, put_off} || Wanted =:= none orelse IsAnyTime],
        [{8, comes_up} || Sidecar =:= needed],
        [{3, cannot_start} || Sidecar =:= needed],
        [{2, {dies, rand:uniform(length(World#world.reports) + 1) - 1}} || Sidecar =:= up],
        [{15, {obeys, outcome()}} || World#world.commands =/= []],
        [{15, reports} || World#world.reports =/= []],
        [{2, {loses, Id}} || Id <- maps:keys(World#world.open)],
        [{4, timer} || World#world.timer =/= undefined]
    ]).

%% Few addresses, so that requests collide, and two ways to listen at each of them.
place() ->
    {one_of([<<"/a">>, <<"/b">>, <<"/c">>]), one_of([5, 100]), 8#600}.

%% Milliseconds that a caller waits for a name to become free.
patience() ->
    one_of([0, 1000]).

outcome() ->
    one_of([
        ok,
        ok,
        ok,
        {failed, name_busy, <<"somebody is just leaving">>},
        {failed, duplicate_name, <<"somebody has it">>},
        {failed, permission_denied, <<"not for you">>},
        {failed, system_error, <<"no space">>}
    ]).

%% Requests of callers.
event({open, Place, Patience}, World) ->
    Request =
        case is_taken(World) of
            true -> refused;
            false -> {open, Place}
        end,
    {Tag, World1} = request(Request, World),
    GiveUp = World#world.now + Patience,
    drive(fun(L) -> uds_dist_listener:open(name, Place, {Tag, GiveUp}, L) end, World1);
event(put_off, World) ->
    Request =
        case is_taken(World) of
            true -> refused;
            false -> put_off
        end,
    {Tag, World1} = request(Request, World),
    drive(fun(L) -> uds_dist_listener:put_off(name, Tag, L) end, World1);
event({move, Place, Patience}, World) ->
    {Tag, World1} = request({move, Place}, World),
    GiveUp = World#world.now + Patience,
    drive(fun(L) -> uds_dist_listener:move(Place, Tag, GiveUp, L) end, World1);
event(close, World) ->
    {Tag, World1} = request(close, World#world{wanted = none}),
    drive(fun(L) -> uds_dist_listener:close(Tag, L) end, World1);
%% Events of the sidecar.
event(comes_up, World) ->
    drive(fun uds_dist_listener:up/1, World#world{sidecar = up});
event(cannot_start, World) ->
    gone(not_started, World);
event({dies, Heard}, World = #world{reports = Reports}) ->
    %% Some packets that it has sent before are still read.
    gone(died, lists:foldl(fun hear/2, World, lists:sublist(Reports, Heard)));
event({obeys, Outcome}, World = #world{commands = [Command | Commands]}) ->
    obey(Command, Outcome, World#world{commands = Commands});
event({loses, Id}, World = #world{open = Open, lost = Lost}) ->
    say({lost, Id}, World#world{open = maps:remove(Id, Open), lost = [Id | Lost]});
event(reports, World = #world{reports = [Report | Reports]}) ->
    hear(Report, World#world{reports = Reports});
%% Time passes.
event({time, Milliseconds}, World = #world{now = Now}) ->
    World#world{now = Now + Milliseconds};
event(timer, World = #world{now = Now, timer = Due}) when is_integer(Due) ->
    drive(fun uds_dist_listener:timeout/1, World#world{now = max(Now, Due), timer = undefined}).

%% Whether this node already has a name, or has not given up the previous one yet.
is_taken(#world{wanted = Wanted, pending = Pending}) ->
    Wanted =/= none orelse
        [Request || {_, Request} <- Pending, Request =:= close orelse element(1, Request) =:= open] =/= [].

request(Request, World = #world{last_tag = Last, pending = Pending}) ->
    {Last + 1, World#world{last_tag = Last + 1, pending = Pending ++ [{Last + 1, Request}]}}.

gone(How, World) ->
    drive(fun(L) -> uds_dist_listener:down(How, L) end, World#world{
        sidecar = down, commands = [], reports = [], open = #{}, lost = [], told = #{}
    }).

%% The sidecar receives a command. It ends if a number is used twice, and refuses an address that it has already.
obey({listen, Id, Place}, Outcome, World = #world{open = Open, lost = Lost}) ->
    ?assertNot(is_map_key(Id, Open)),
    ?assertNot(lists:member(element(1, Place), [Address || {Address, _, _} <- maps:values(Open)])),
    World1 = World#world{lost = lists:delete(Id, Lost)},
    case Outcome of
        ok -> say({listening, Id}, World1#world{open = Open#{Id => Place}});
        {failed, Reason, Explanation} -> say({listen_failed, Id, Reason, Explanation}, World1)
    end;
obey({unlisten, Id}, _, World = #world{open = Open, lost = Lost}) ->
    %% It answers even if it has just lost the listener.
    ?assert(is_map_key(Id, Open) orelse lists:member(Id, Lost)),
    say({unlistened, Id}, World#world{open = maps:remove(Id, Open), lost = lists:delete(Id, Lost)}).

say(Report, World = #world{reports = Reports}) ->
    World#world{reports = Reports ++ [Report]}.

hear({listening, Id}, World = #world{told = Told, now = Now}) ->
    #{Id := {Place, opening}} = Told,
    World1 = World#world{told = Told#{Id := {Place, open}}},
    drive(fun(L) -> uds_dist_listener:listening(Id, Now, L) end, World1);
hear({listen_failed, Id, Reason, Explanation}, World = #world{told = Told, now = Now}) ->
    Failed = fun(L) -> uds_dist_listener:listen_failed(Id, Reason, Explanation, Now, L) end,
    drive(Failed, World#world{told = maps:remove(Id, Told)});
hear({unlistened, Id}, World = #world{told = Told}) ->
    World1 =
        case Told of
            #{Id := {_, closing}} -> World#world{told = maps:remove(Id, Told)};
            %% The answer is about a listener that the VM already knows to be lost.
            #{} -> World
        end,
    drive(fun(L) -> uds_dist_listener:unlistened(Id, L) end, World1);
hear({lost, Id}, World = #world{told = Told, now = Now}) ->
    World1 = World#world{told = maps:remove(Id, Told)},
    drive(fun(L) -> uds_dist_listener:lost(Id, <<"it was removed">>, Now, L) end, World1).

drive(Event, World = #world{listener = Listener}) ->
    {Effects, Listener1} = Event(Listener),
    ?assert(length([timer || {timer, _} <- Effects]) =< 1),
    check(lists:foldl(fun effect/2, World#world{listener = Listener1}, Effects)).

%% The promises of the listener for each effect.
effect({listen, Id, Place}, World = #world{told = Told, commands = Commands}) ->
    ?assertEqual(up, World#world.sidecar),
    ?assert(Id >= 0 andalso Id =< 15),
    ?assertNot(is_map_key(Id, Told)),
    World#world{told = Told#{Id => {Place, opening}}, commands = Commands ++ [{listen, Id, Place}]};
effect({unlisten, Id}, World = #world{told = Told, commands = Commands}) ->
    ?assertEqual(up, World#world.sidecar),
    #{Id := {Place, open}} = Told,
    World#world{told = Told#{Id := {Place, closing}}, commands = Commands ++ [{unlisten, Id}]};
effect(need_sidecar, World = #world{sidecar = Sidecar}) ->
    ?assertNotEqual(up, Sidecar),
    World#world{sidecar = needed};
effect({timer, Milliseconds}, World = #world{now = Now}) when Milliseconds >= 0 ->
    World#world{timer = Now + Milliseconds};
effect({log, Level, Line}, World = #world{lines = Lines}) when Level =:= notice; Level =:= error ->
    Text = unicode:characters_to_binary(Line),
    ?assert(is_binary(Text)),
    World#world{lines = [Text | Lines]};
effect({done, Tag, Result}, World = #world{pending = Pending}) ->
    {value, {Tag, Request}, Pending1} = lists:keytake(Tag, 1, Pending),
    World1 = World#world{pending = Pending1},
    %% Requests complete in order, except for those that complete at once, and a close that waits for the sidecar.
    First = [Other || {_, Kind} = Other <- Pending, Kind =/= close],
    ?assert(lists:member(Request, [close, refused]) orelse [{Tag, Request}] =:= lists:sublist(First, 1)),
    case {Request, Result} of
        {refused, {error, already_listening, _}} -> World1;
        {{open, Place}, ok} -> arrived(Place, World1);
        {{open, _}, {error, Reason, _}} when Reason =/= already_listening -> World1;
        {put_off, ok} -> World1#world{wanted = undecided};
        {{move, _}, ok} when World#world.wanted =:= none -> World1;
        {{move, Place}, ok} -> arrived(Place, World1);
        {{move, _}, {error, _, _}} -> World1;
        {close, ok} when World#world.told =:= #{} -> World1
    end.

%% The sidecar listens at this address and at no other.
arrived(Place, World = #world{told = Told}) ->
    ?assertEqual([{Place, open}], maps:values(Told)),
    World#world{wanted = Place}.

%% The promises of the listener at any time.
check(World = #world{listener = Listener, told = Told}) ->
    Open = [Place || {Place, open} <- maps:values(Told)],
    case uds_dist_listener:actual(Listener) of
        none -> ?assertEqual([], Open);
        Actual -> ?assert(lists:member(Actual, Open))
    end,
    _ =
        [] =:= [Tag || {Tag, Request} <- World#world.pending, Request =/= close] andalso
            ?assertEqual(World#world.wanted, uds_dist_listener:wanted(Listener)),
    World.

happen(Event, World = #world{events = Before}) ->
    Events = [Event | Before],
    try
        event(Event, World#world{events = Events})
    catch
        Class:What:Stack when Class =/= throw ->
            throw({broken, {What, Stack}, lists:reverse(Events)})
    end.

%% From now on, all requests succeed within a bounded number of steps.
calm_down(World = #world{pending = Pending}) ->
    calm_down(40 + 10 * length(Pending), World).

calm_down(0, World = #world{events = Events}) ->
    throw({broken, {does_not_settle, World}, lists:reverse(Events)});
calm_down(StepsLeft, World) ->
    case World of
        #world{sidecar = needed} -> calm_down(StepsLeft - 1, happen(comes_up, World));
        #world{commands = [_ | _]} -> calm_down(StepsLeft - 1, happen({obeys, ok}, World));
        #world{reports = [_ | _]} -> calm_down(StepsLeft - 1, happen(reports, World));
        #world{timer = Due} when Due =/= undefined -> calm_down(StepsLeft - 1, happen(timer, World));
        #world{} -> settled(World)
    end.

%% The actual listener is the wanted one.
settled(World = #world{listener = Listener, wanted = Wanted, events = Events}) ->
    Open =
        case Wanted of
            {_, _, _} -> [Wanted];
            _ -> []
        end,
    Expected = {[], Wanted, Open, Open},
    case {World#world.pending, uds_dist_listener:wanted(Listener), maps:values(World#world.open), [
        Actual || Actual <- [uds_dist_listener:actual(Listener)], Actual =/= none
    ]} of
        Expected -> World;
        Seen -> throw({broken, {expected, Expected, seen, Seen}, lists:reverse(Events)})
    end.

%% ---------------------------------------------------------------------------------------------
%% The listener

listener_keeps_its_promises(_Config) ->
    each_sequence(fun(Length) -> calm_down(disturb(Length, #world{})) end).

disturb(0, World) -> World;
disturb(Length, World) -> disturb(Length - 1, happen(choose(possible(World)), World)).

failed_move_at_the_same_address_restores_the_place(_Config) ->
    World = run([{move, ?SAME_ADDRESS, 0}, {obeys, ok}, reports, refuse(), reports], listening()),
    ?assertEqual([], World#world.pending),
    #world{open = Open} = calm_down(World),
    ?assertEqual([?PLACE], maps:values(Open)).

%% The sidecar may end at any moment in between.
second_move_waits_for_the_first(_Config) ->
    Moves = [{move, ?ELSEWHERE, 0}, {move, ?SAME_ADDRESS, 0}],
    #world{open = Open} = calm_down(run(Moves, listening())),
    ?assertEqual([?SAME_ADDRESS], maps:values(Open)),
    #world{open = Open1} = calm_down(run(Moves ++ [{obeys, ok}, reports, {dies, 0}], listening())),
    ?assertEqual([?SAME_ADDRESS], maps:values(Open1)).

move_after_a_failed_open_opens_nothing(_Config) ->
    Opening = run([{open, ?PLACE, 0}, {move, ?ELSEWHERE, 0}, comes_up], #world{}),
    Failed = run([refuse(), reports], Opening),
    ?assertMatch(#world{open = Open, pending = [], wanted = none} when Open =:= #{}, calm_down(Failed)).

move_to_the_same_place_is_no_news(_Config) ->
    ?assertMatch(#world{pending = [], lines = []}, run([{move, ?PLACE, 0}], listening())),
    ?assertMatch(#world{lines = [_]}, calm_down(run([{move, ?ELSEWHERE, 0}], listening()))).

put_off_waits_for_the_listener_to_be_closed(_Config) ->
    ?assertMatch(#world{pending = [{_, close}]}, run([close, put_off], listening())),
    ?assertMatch(#world{pending = [], wanted = none}, calm_down(run([close, put_off], listening()))).

each_close_is_answered(_Config) ->
    ?assertMatch(#world{pending = []}, calm_down(run([close, close], listening()))).

%% The sidecar loses its listener while the command to close it is on its way, and the number is reused.
late_answer_is_not_taken_for_the_next_one(_Config) ->
    Crossing = run([{loses, 0}, {move, ?SAME_ADDRESS, 0}, reports], listening()),
    #world{open = Open} = calm_down(Crossing),
    ?assertEqual([?SAME_ADDRESS], maps:values(Open)).

unavailable_place_is_retried_with_a_backoff(_Config) ->
    Lost = run([{loses, 0}, reports], listening()),
    World = run_until(?MINUTE, fun(_) -> [refuse()] end, Lost),
    ?assertMatch([_, _], World#world.lines),
    Tries = length([Obeyed || {obeys, _} = Obeyed <- World#world.events]),
    ?assert(Tries > 20 andalso Tries < 50, Tries),
    #world{lines = [Back | _]} = calm_down(World),
    ?assertMatch({match, _}, re:run(Back, "listening again at /a, after \\d+ tries")).

%% Somebody else removes the socket each time it appears.
place_lost_repeatedly_is_retried_with_a_backoff(_Config) ->
    Lose = fun(#world{commands = [{listen, Id, _} | _]}) -> [{obeys, ok}, {loses, Id}] end,
    World = run_until(?MINUTE, Lose, run([{loses, 0}, reports], listening())),
    Tries = length([Obeyed || {obeys, _} = Obeyed <- World#world.events]),
    ?assert(Tries > 20 andalso Tries < 50, Tries),
    ?assert(length(World#world.lines) =< 2 * Tries),
    #world{open = Open} = calm_down(World),
    ?assertEqual([?PLACE], maps:values(Open)).

request_survives_one_death_of_the_sidecar(_Config) ->
    Moving = run([{move, ?ELSEWHERE, 0}, {dies, 0}], listening()),
    ?assertMatch(#world{pending = [_]}, Moving),
    ?assertMatch(#world{wanted = ?ELSEWHERE, pending = []}, calm_down(Moving)),
    ?assertMatch(#world{wanted = ?PLACE, pending = []}, run([cannot_start], Moving)),
    Failed = run([comes_up, {dies, 0}], Moving),
    ?assertMatch(#world{pending = []}, Failed),
    #world{open = Open} = calm_down(Failed),
    ?assertEqual([?PLACE], maps:values(Open)).

busy_name_is_retried_until_the_caller_gives_up(_Config) ->
    Busy = {obeys, {failed, name_busy, <<"somebody is just leaving">>}},
    Started = run([{open, ?PLACE, 1000}, comes_up], #world{}),
    World = run_until(?MINUTE, fun(_) -> [Busy] end, Started),
    ?assertMatch(#world{pending = [], wanted = none, commands = [], timer = undefined}, World),
    Tries = length([Obeyed || {obeys, _} = Obeyed <- World#world.events]),
    ?assert(Tries > 20 andalso Tries =< 51, Tries).

%% A listener that is open at ?PLACE.
listening() ->
    run([{open, ?PLACE, 0}, comes_up, {obeys, ok}, reports], #world{}).

refuse() ->
    {obeys, {failed, system_error, <<"no space">>}}.

run(Events, World) ->
    lists:foldl(fun happen/2, World, Events).

%% For each command of the sidecar, the event that Answer returns happens. Timers fire when they are due.
run_until(Time, Answer, World = #world{events = Events}) ->
    ?assert(length(Events) < 1000),
    case World of
        #world{commands = [_ | _]} -> run_until(Time, Answer, run(Answer(World), World));
        #world{reports = [_ | _]} -> run_until(Time, Answer, happen(reports, World));
        #world{timer = Due} when Due =< Time -> run_until(Time, Answer, happen(timer, World));
        #world{} -> World
    end.

%% ---------------------------------------------------------------------------------------------
%% The dialer's world

-record(dials, {
    dialer = uds_dist_dialer:new(),
    now = 0,
    timer :: undefined | integer(),
    %% needed: the dialer has asked for a sidecar, but there is none.
    sidecar = down :: down | needed | up,
    %% Pending requests.
    pending = #{} :: #{Tag :: pos_integer() => {node(), GiveUp :: integer()}},
    %% Requests that were put off, and requests that wait for a sidecar, oldest first.
    put_off = [] :: [Tag :: pos_integer()],
    waiting = [] :: [Tag :: pos_integer()],
    %% Commands on their way to the sidecar, oldest first.
    connecting = [] :: [{uds_dist_dialer:key(), Tag :: pos_integer()}],
    %% Requests that are tried again, each with its deadline.
    retries = #{} :: #{Tag :: pos_integer() => By :: integer()},
    %% The time of the last line that reported each node as unreachable, unless it was reached since.
    logged = #{} :: #{node() => integer()},
    last_tag = 0,
    last_key = -1,
    %% The events so far, latest first.
    events = []
}).

possible_dials(#dials{sidecar = Sidecar} = Dials) ->
    lists:append([
        [{6, {asks, node_to_call(), one_of([0, 10, 7000])}}],
        [{2, {is_put_off, node_to_call(), 7000}}, {1, configured}],
        [{2, {time, one_of([1, 15, 300, 30000])}}, {1, {reached, node_to_call()}}],
        [{8, comes_up} || Sidecar =:= needed],
        [{2, dies} || Sidecar =/= down],
        [{12, {answers, Key, answer()}} || {Key, _} <- Dials#dials.connecting],
        [{6, timer} || Dials#dials.timer =/= undefined]
    ]).

node_to_call() ->
    one_of([a@host, b@host, c@host]).

answer() ->
    one_of([connected, backlog_full, backlog_full, not_listening, refused]).

dial_event({asks, Node, Patience}, Dials) ->
    {Tag, Dials1} = ask(Node, Patience, Dials),
    dial(Tag, Dials1);
dial_event({is_put_off, Node, Patience}, Dials = #dials{put_off = PutOff}) ->
    {Tag, Dials1} = ask(Node, Patience, Dials),
    #{Tag := {Node, GiveUp}} = Dials1#dials.pending,
    Dialer = uds_dist_dialer:put_off(Node, Tag, GiveUp, Dials#dials.dialer),
    Dials1#dials{put_off = PutOff ++ [Tag], dialer = Dialer};
dial_event(configured, Dials = #dials{put_off = PutOff, pending = Pending}) ->
    {Requests, Dialer} = uds_dist_dialer:take_put_off(Dials#dials.dialer),
    ?assertEqual(PutOff, [Tag || {_, Tag, _} <- Requests]),
    [?assertEqual({Node, GiveUp}, map_get(Tag, Pending)) || {Node, Tag, GiveUp} <- Requests],
    lists:foldl(fun dial/2, Dials#dials{dialer = Dialer, put_off = []}, PutOff);
dial_event(comes_up, Dials = #dials{waiting = Waiting}) ->
    Dials1 = drive_dials(fun uds_dist_dialer:up/1, Dials#dials{sidecar = up}),
    %% All waiting requests, in the order of their arrival.
    Connecting = [Tag || {_, Tag} <- Dials1#dials.connecting, lists:member(Tag, Waiting)],
    ?assertEqual(Waiting, Connecting),
    Dials1;
dial_event(dies, Dials = #dials{waiting = Waiting, connecting = Connecting}) ->
    Dials1 = drive_dials(fun uds_dist_dialer:down/1, Dials#dials{sidecar = down, connecting = []}),
    %% All requests that used the sidecar have failed.
    Lost = Waiting ++ [Tag || {_, Tag} <- Connecting],
    ?assertEqual([], [Tag || Tag <- Lost, is_map_key(Tag, Dials1#dials.pending)]),
    Dials1;
dial_event({answers, Key, connected}, Dials = #dials{connecting = Connecting, pending = Pending}) ->
    {value, {Key, Tag}, Connecting1} = lists:keytake(Key, 1, Connecting),
    {{Node, _}, Pending1} = maps:take(Tag, Pending),
    {Connected, Dialer} = uds_dist_dialer:connected(Key, Dials#dials.dialer),
    ?assertEqual({Node, Tag, address(Tag)}, Connected),
    Dials#dials{dialer = Dialer, connecting = Connecting1, pending = Pending1};
dial_event({answers, Key, Reason}, Dials = #dials{connecting = Connecting, now = Now}) ->
    {value, {Key, Tag}, Connecting1} = lists:keytake(Key, 1, Connecting),
    #dials{pending = #{Tag := {_, GiveUp}}, retries = Retries} = Dials,
    IsTriedAgain = Reason =:= backlog_full andalso Now < GiveUp,
    Retries1 = maps:from_list([{Tag, Now + ?BACKLOG_RETRY} || IsTriedAgain]),
    Failed = fun(D) -> uds_dist_dialer:connect_failed(Key, Reason, <<"why">>, Now, D) end,
    Dials1 = drive_dials(Failed, Dials#dials{
        connecting = Connecting1, retries = maps:merge(Retries, Retries1)
    }),
    ?assertEqual(IsTriedAgain, is_map_key(Tag, Dials1#dials.pending)),
    Dials1;
dial_event({reached, Node}, Dials = #dials{dialer = Dialer, logged = Logged}) ->
    Dials#dials{dialer = uds_dist_dialer:reached(Node, Dialer), logged = maps:remove(Node, Logged)};
dial_event({time, Milliseconds}, Dials = #dials{now = Now}) ->
    Dials#dials{now = Now + Milliseconds};
dial_event(timer, Dials = #dials{now = Before, timer = Due}) when is_integer(Due) ->
    Now = max(Before, Due),
    Timeout = fun(D) -> uds_dist_dialer:timeout(Now, D) end,
    Dials1 = drive_dials(Timeout, Dials#dials{now = Now, timer = undefined}),
    %% A request that cannot be tried again without a sidecar waits for one.
    ?assert(overdue(Now, Dials1#dials.retries) =:= [] orelse Dials1#dials.sidecar =:= needed),
    Dials1.

overdue(Now, Retries) ->
    [Tag || {Tag, By} <- maps:to_list(Retries), By =< Now].

ask(Node, Patience, Dials = #dials{now = Now, last_tag = Last, pending = Pending}) ->
    Tag = Last + 1,
    {Tag, Dials#dials{last_tag = Tag, pending = Pending#{Tag => {Node, Now + Patience}}}}.

dial(Tag, Dials = #dials{pending = Pending, waiting = Waiting}) ->
    #{Tag := {Node, GiveUp}} = Pending,
    Dial = fun(D) -> uds_dist_dialer:dial(Node, address(Tag), {Tag, GiveUp}, D) end,
    Dials1 = drive_dials(Dial, Dials#dials{waiting = Waiting ++ [Tag]}),
    ?assert(lists:member(Tag, Dials1#dials.waiting) =:= (Dials#dials.sidecar =/= up)),
    Dials1.

%% Each request has its own address, which tells the request of an effect.
address(Tag) ->
    <<"/", (integer_to_binary(Tag))/binary>>.

drive_dials(Event, Dials = #dials{dialer = Dialer}) ->
    {Effects, Dialer1} = Event(Dialer),
    ?assert(length([timer || {timer, _} <- Effects]) =< 1),
    Dials1 = lists:foldl(fun dial_effect/2, Dials#dials{dialer = Dialer1}, Effects),
    _ = Dials1#dials.waiting =/= [] andalso ?assertEqual(needed, Dials1#dials.sidecar),
    Dials1.

%% The promises of the dialer for each effect.
dial_effect({connect, Key, <<"/", Text/binary>>}, Dials = #dials{sidecar = up}) ->
    Tag = binary_to_integer(Text),
    #dials{connecting = Connecting, waiting = Waiting, retries = Retries} = Dials,
    ?assert(is_map_key(Tag, Dials#dials.pending)),
    ?assert(lists:member(Tag, Waiting) orelse is_map_key(Tag, Retries)),
    ?assert(Key > Dials#dials.last_key),
    Dials#dials{
        last_key = Key,
        connecting = Connecting ++ [{Key, Tag}],
        waiting = lists:delete(Tag, Waiting),
        retries = maps:remove(Tag, Retries)
    };
dial_effect(need_sidecar, Dials = #dials{sidecar = Sidecar}) ->
    ?assertNotEqual(up, Sidecar),
    Dials#dials{sidecar = needed};
dial_effect({timer, Milliseconds}, Dials = #dials{now = Now}) when Milliseconds >= 0 ->
    Dials#dials{timer = Now + Milliseconds};
dial_effect({failed, Tag, _Reason}, Dials = #dials{pending = Pending}) ->
    ?assert(is_map_key(Tag, Pending)),
    ?assertNot(lists:member(Tag, Dials#dials.put_off)),
    Dials#dials{
        pending = maps:remove(Tag, Pending),
        waiting = lists:delete(Tag, Dials#dials.waiting),
        retries = maps:remove(Tag, Dials#dials.retries)
    };
dial_effect({unreachable, Node, _Reason, <<"why">>}, Dials = #dials{now = Now, logged = Logged}) ->
    ?assert(Now - maps:get(Node, Logged, Now - ?MINUTE) >= ?MINUTE),
    Dials#dials{logged = Logged#{Node => Now}}.

dials(Event, Dials = #dials{events = Before}) ->
    Events = [Event | Before],
    try
        dial_event(Event, Dials#dials{events = Events})
    catch
        Class:What:Stack when Class =/= throw ->
            throw({broken, {What, Stack}, lists:reverse(Events)})
    end.

%% From now on, every peer can be reached, and every request ends.
all_end(Dials = #dials{pending = Pending}) ->
    all_end(20 + 3 * map_size(Pending), Dials).

all_end(StepsLeft, Dials) ->
    case Dials of
        #dials{pending = Pending} when map_size(Pending) =:= 0 -> Dials;
        #dials{} when StepsLeft =:= 0 -> throw({broken, Dials, lists:reverse(Dials#dials.events)});
        #dials{put_off = [_ | _]} -> all_end(StepsLeft - 1, dials(configured, Dials));
        #dials{sidecar = needed} -> all_end(StepsLeft - 1, dials(comes_up, Dials));
        #dials{connecting = [{Key, _} | _]} ->
            all_end(StepsLeft - 1, dials({answers, Key, connected}, Dials));
        #dials{} -> all_end(StepsLeft - 1, dials(timer, Dials))
    end.

%% ---------------------------------------------------------------------------------------------
%% The dialer

dialer_keeps_its_promises(_Config) ->
    each_sequence(fun(Length) -> all_end(disturb_dials(Length, #dials{})) end).

disturb_dials(0, Dials) -> Dials;
disturb_dials(Length, Dials) -> disturb_dials(Length - 1, dials(choose(possible_dials(Dials)), Dials)).

full_backlog_is_retried_until_the_caller_gives_up(_Config) ->
    Ended = fill_backlogs(run_dials([{asks, a@host, 7000} || _ <- lists:seq(1, 50)])),
    ?assertMatch(#dials{pending = Pending} when map_size(Pending) =:= 0, Ended),
    ?assert(Ended#dials.now >= 7000 andalso Ended#dials.now =< 7000 + ?BACKLOG_RETRY),
    %% Fifty callers try, each of them at most about once a millisecond.
    ?assert(Ended#dials.last_key < 50 * 7000).

%% Reports a full backlog for each connecting request, until there are none.
fill_backlogs(Dials) ->
    case Dials of
        #dials{sidecar = needed} -> fill_backlogs(dials(comes_up, Dials));
        #dials{connecting = [{Key, _} | _]} -> fill_backlogs(dials({answers, Key, backlog_full}, Dials));
        #dials{timer = Due} when Due =/= undefined -> fill_backlogs(dials(timer, Dials));
        #dials{} -> Dials
    end.

%% The order also includes a request that came later and only had to wait for a sidecar.
requests_that_were_put_off_keep_their_order(_Config) ->
    Dials = run_dials([{is_put_off, Node, 7000} || Node <- [a@host, b@host, a@host, c@host]]),
    #dials{connecting = Connecting} = run_dials([configured, {asks, b@host, 0}, comes_up], Dials),
    ?assertEqual([1, 2, 3, 4, 5], [Tag || {_, Tag} <- Connecting]).

unreachable_node_is_logged_once_a_minute(_Config) ->
    Fail = fun(Dials) ->
        #dials{connecting = [{Key, _}]} = Asked = dials({asks, a@host, 0}, Dials),
        dials({answers, Key, not_listening}, Asked)
    end,
    LoggedAt = fun(#dials{logged = Logged}) -> maps:get(a@host, Logged, never) end,
    First = Fail(run_dials([{asks, b@host, 0}, comes_up, {answers, 0, connected}])),
    ?assertEqual(0, LoggedAt(First)),
    Soon = Fail(dials({time, ?MINUTE - 1}, First)),
    ?assertEqual(0, LoggedAt(Soon)),
    ?assertEqual(?MINUTE, LoggedAt(Fail(dials({time, 1}, Soon)))),
    %% The node was reached meanwhile, so the failure is logged.
    ?assertEqual(?MINUTE - 1, LoggedAt(Fail(dials({reached, a@host}, Soon)))),
    %% A refusal is not logged again.
    Refuse = fun(Now, Dialer) -> uds_dist_dialer:failed(a@host, peer_closed, "refused", Now, Dialer) end,
    {[_], Refused} = Refuse(0, uds_dist_dialer:new()),
    ?assertMatch({[], _}, Refuse(?MINUTE - 1, uds_dist_dialer:reached(a@host, Refused))),
    ?assertMatch({[_], _}, Refuse(?MINUTE, uds_dist_dialer:reached(a@host, Refused))).

run_dials(Events) ->
    run_dials(Events, #dials{}).

run_dials(Events, Dials) ->
    lists:foldl(fun dials/2, Dials, Events).

%% ---------------------------------------------------------------------------------------------
%% The settings

settings_are_kept_while_the_node_listens(_Config) ->
    Config = config(<<"/kept">>, relay, [], []),
    Settings = in_force(Config),
    ?assertEqual({ok, <<"/kept/b.sock">>, Config}, uds_dist_settings:address(b@host, true, Settings)),
    ?assertEqual(
        {ok, {<<"/kept/a.sock">>, 5, 8#600}, Config}, uds_dist_settings:place(a, true, Settings)
    ),
    ?assertMatch({error, _}, uds_dist_settings:address('../b@host', true, Settings)),
    %% A node that does not listen has the current ones.
    {ok, _, Current} = uds_dist_settings:address(b@host, false, Settings),
    ?assertNotEqual(Config, Current),
    ?assertMatch({ok, _, Current}, uds_dist_settings:address(b@host, true, uds_dist_settings:new())).

%% A sidecar that comes up is told everything, and one that is up what has changed.
sidecar_is_told_what_has_changed(_Config) ->
    [
        begin
            {Effects, Settings} = uds_dist_settings:use(After, in_force(Before)),
            #{allowed_uids := Uids, transport := Transport, socket_dir := Dir} = After,
            Policy = policy(Uids),
            Channel = [{want_channel, Dir} || Transport =:= direct],
            ?assertEqual([{admit, Policy}], uds_dist_settings:admit(Settings)),
            ?assertEqual(Channel, uds_dist_settings:want_channel(Settings)),
            ?assertEqual(Transport, uds_dist_settings:transport(Settings)),
            IsNew = Before =:= undefined orelse Uids =/= maps:get(allowed_uids, Before),
            ?assertEqual([{admit, Policy} || IsNew], [Told || {admit, _} = Told <- Effects]),
            Asked = [Told || {want_channel, _} = Told <- Effects],
            ?assertEqual([Told || Told <- Channel, Before =/= After], Asked)
        end
     || Before <- [undefined | configs()], After <- configs()
    ].

overridden_settings_are_logged_once(_Config) ->
    [First, Second] = [config(<<"/a">>, relay, Uids, ["x is not used"]) || Uids <- [[], any]],
    Third = config(<<"/a">>, relay, any, ["y is not used"]),
    Logged = fun(Config, Settings) ->
        {Effects, Settings1} = uds_dist_settings:use(Config, Settings),
        {[Line || {log, notice, Line} <- Effects], Settings1}
    end,
    {Lines, _} = lists:mapfoldl(Logged, uds_dist_settings:new(), [First, Second, Second, Third]),
    ?assertEqual([["x is not used"], [], [], ["y is not used"]], Lines).

notices_wait_for_the_end_of_the_boot(_Config) ->
    Settings = lists:foldl(fun uds_dist_settings:put_off_notice/2, uds_dist_settings:new(), ["a", "b", "a"]),
    {Effects, Settings1} = uds_dist_settings:boot_is_over(Settings),
    ?assertEqual(["a", "b"], lists:sort([Line || {log, notice, Line} <- Effects])),
    %% Init says as often as it was asked that the boot is over.
    ?assertEqual({[], Settings1}, uds_dist_settings:boot_is_over(Settings1)).

in_force(undefined) ->
    uds_dist_settings:new();
in_force(Config) ->
    {_, Settings} = uds_dist_settings:use(Config, uds_dist_settings:new()),
    Settings.

configs() ->
    [
        config(Dir, Transport, Uids, [])
     || Dir <- [<<"/a">>, <<"/b">>], Transport <- [relay, direct], Uids <- [[], own_user_and_root, any, [7]]
    ].

policy(own_user_and_root) -> {own_user_and_root, [], []};
policy(any) -> {anybody, [], []};
policy(Uids) -> {nobody, Uids, []}.

config(Dir, Transport, Uids, Overridden) ->
    #{
        socket_dir => Dir,
        is_set => true,
        backlog => 5,
        socket_mode => 8#600,
        allowed_uids => Uids,
        allowed_gids => [],
        transport => Transport,
        spin => 0,
        log => info,
        sources => #{},
        overridden => Overridden
    }.

%% ---------------------------------------------------------------------------------------------
%% Requests

-define(FROM, {self(), tag}).

each_caller_gets_one_reply(_Config) ->
    [
        begin
            Replies = [Reply || {reply, _, Reply} <- uds_dist_requests:done(Request, Result)],
            ?assertEqual(replies(Request, Result), Replies, {Request, Result})
        end
     || {Request, Result} <- outcomes()
    ].

replies({close, _}, ok) -> [ok];
replies({boot, _, _}, _) -> [];
replies({{listen, _, Address}, _, _}, ok) -> [{ok, Address}];
replies({{configure, _}, _, _}, ok) -> [ok];
%% net_kernel knows only this reason.
replies(_, {error, name_busy, _}) -> [{error, duplicate_name}];
replies(_, {error, Reason, _}) -> [{error, Reason}].

%% There is no line if the process that closed the listener knows why, or the line about the sidecar says it.
failure_is_logged_once(_Config) ->
    [
        begin
            Lines = [
                unicode:characters_to_list(Line)
             || {log, error, Line} <- uds_dist_requests:done(Request, Result)
            ],
            case Result of
                {error, Reason, _} when Reason =/= closed, Reason =/= sidecar_failed ->
                    [Line] = Lines,
                    ?assertNotEqual(nomatch, string:find(Line, "why"));
                _ ->
                    ?assertEqual([], Lines, {Request, Result})
            end
        end
     || {Request, Result} <- outcomes()
    ].

%% Those of a new listener are in force already, because the sidecar that opens it needs them.
settings_are_put_in_force_once_they_work(_Config) ->
    [
        begin
            Used = [Config || {configured, Config} <- uds_dist_requests:done(Request, Result)],
            case {Request, Result} of
                {{{listen, _, _}, _, _}, ok} -> ?assertEqual([], Used);
                {{_, _, Config}, ok} -> ?assertEqual([Config], Used);
                _ -> ?assertEqual([], Used)
            end
        end
     || {Request, Result} <- outcomes()
    ].

failure_at_the_end_of_the_boot_ends_the_vm(_Config) ->
    Fatal = [
        {Request, Result}
     || {Request, Result} <- outcomes(), lists:member(end_vm, uds_dist_requests:done(Request, Result))
    ],
    Failed = [
        {Request, Result}
     || {{boot, _, _} = Request, {error, Reason, _} = Result} <- outcomes(), Reason =/= closed
    ],
    ?assertEqual(Failed, Fatal).

%% Each kind of request with each of its results.
outcomes() ->
    Config = config(<<"/a">>, relay, nobody, []),
    Reasons = [closed, name_busy, duplicate_name, sidecar_failed, bad_configuration],
    [{{close, ?FROM}, ok}] ++
        [
            {{Whose, name, Config}, Result}
         || Whose <- [{listen, ?FROM, <<"/a/name.sock">>}, {configure, ?FROM}, boot],
            Result <- [ok | [{error, Reason, "why"} || Reason <- Reasons]]
        ].

%% ---------------------------------------------------------------------------------------------
%% Backoff

delays_double_up_to_the_limit(_Config) ->
    ?assertEqual([0, 25, 50, 100, 200, 400, 500, 500], delays(8, 500, uds_dist_backoff:new(25))),
    ?assertEqual([0, 1, 2, 4, 8, 10], delays(6, 10, uds_dist_backoff:new(1))),
    ?assertEqual([0, 7, 7], delays(3, 7, uds_dist_backoff:new(100))),
    %% This holds for any number of failures.
    ?assertEqual(5000, lists:last(delays(10000, 5000, uds_dist_backoff:new(25)))).

delays(Count, Max, Backoff) ->
    {Delays, Backoff1} = lists:mapfoldl(
        fun(_, B) ->
            {Delay, _, B1} = uds_dist_backoff:failed("the same", Max, B),
            {Delay, B1}
        end,
        Backoff,
        lists:seq(1, Count)
    ),
    ?assertEqual(Count, uds_dist_backoff:tries(Backoff1)),
    Delays.

failure_is_news_when_its_text_changes(_Config) ->
    Texts = ["no space", ["no ", <<"space">>], "no file", <<"no space">>, "ä", <<"ä"/utf8>>],
    {News, _} = lists:mapfoldl(
        fun(Text, B) ->
            {_, IsNews, B1} = uds_dist_backoff:failed(Text, 500, B),
            {IsNews, B1}
        end,
        uds_dist_backoff:new(25),
        Texts
    ),
    ?assertEqual([true, false, true, true, true, false], News).

%% ---------------------------------------------------------------------------------------------
%% uds_dist_log_limit

%% Each user has a limit for each kind of line, and there is a limit of users.
lines_that_peers_cause_are_limited(_Config) ->
    ok = uds_dist_log_limit:new(),
    Count = fun(Kind, User, Now) -> uds_dist_log_limit:count(Kind, User, Now) end,
    ?assertEqual({due, 1}, Count(ended, 1000, 0)),
    ?assertEqual([not_due, not_due], [Count(ended, 1000, Now) || Now <- [1, 4999]]),
    ?assertEqual({due, 1}, Count(ended, 1001, 4999)),
    ?assertEqual({due, 1}, Count(reflected, any, 4999)),
    ?assertEqual({due, 3}, Count(ended, 1000, 5000)),
    ?assertEqual(not_due, Count(ended, 1000, 9999)),
    Due = [User || User <- lists:seq(2000, 3000), {due, 1} =:= Count(ended, User, 6000)],
    ?assertEqual(97, length(Due)),
    ?assertEqual({due, 2}, Count(ended, 1000, 10000)),
    %% Those that were silent for the interval make room.
    ?assertEqual({due, 1}, Count(ended, 4000, 11000)),
    ?assertEqual(not_due, Count(ended, 1000, 11000)).

%% ---------------------------------------------------------------------------------------------
%% uds_dist_channel, at the other end of which this process plays the sidecar

%% After a socket that could not be taken over, none is asked for until a timer fires, or until one that was on
%% its way is taken over.
channel_is_usable_again_with_the_next_socket(_Config) ->
    {ok, Listener} = socket:open(local, stream),
    %% The kernel chooses an abstract name.
    ok = socket:bind(Listener, #{family => local, path => <<>>}),
    ok = socket:listen(Listener),
    {ok, #{path := Path}} = socket:sockname(Listener),
    {[{send, _}], Asked} = uds_dist_channel:want(<<"@x">>, uds_dist_channel:new()),
    {[], Open} = uds_dist_channel:offered(Path, Asked),
    {ok, Sidecar} = socket:accept(Listener),
    ?assert(uds_dist_channel:is_usable(Open)),
    {{error, _}, [{timer, Delay}], Paused} = uds_dist_channel:take(Open),
    ?assert(Delay >= 1000),
    ?assertNot(uds_dist_channel:is_usable(Paused)),
    ok = send_descriptor(Sidecar, Listener),
    {{ok, Handles}, [restored], Again} = uds_dist_channel:take(Paused),
    ?assert(uds_dist_channel:is_usable(Again)),
    ?assertEqual({[], Again}, uds_dist_channel:retry(Again)),
    ok = uds_dist_channel:close_handles(Handles),
    _ = uds_dist_channel:close(Again),
    [ok = socket:close(Socket) || Socket <- [Sidecar, Listener]].

send_descriptor(To, Socket) ->
    {ok, Descriptor} = socket:getopt(Socket, {otp, fd}),
    socket:sendmsg(To, #{
        iov => [<<0>>], ctrl => [#{level => socket, type => rights, data => <<Descriptor:32/native>>}]
    }).

%% ---------------------------------------------------------------------------------------------
%% uds_dist_diagnosis

%% In pieces of every size: nothing, a status or a part of it, and a status with a challenge.
peer_refuses_what_follows_its_challenge(_Config) ->
    Status = <<3:16, "sok">>,
    Challenge = <<22:16, $N, 0:64, 1:32, 1:32, 3:16, "a@b">>,
    Parts = [binary:part(Status, 0, Size) || Size <- lists:seq(1, byte_size(Status))],
    Cases = [{silent, <<>>}, {refused, <<Status/binary, Challenge/binary>>} | [{unclear, Part} || Part <- Parts]],
    [
        ?assertEqual(Expected, uds_dist_diagnosis:verdict(received(Sent, Piece)), {Sent, Piece})
     || {Expected, Sent} <- Cases, Piece <- lists:seq(1, 29)
    ].

received(Bytes, Piece) ->
    received(Bytes, Piece, uds_dist_diagnosis:new()).

received(<<>>, _, Greeting) ->
    Greeting;
received(Bytes, Piece, Greeting) ->
    Size = min(Piece, byte_size(Bytes)),
    <<First:Size/binary, Rest/binary>> = Bytes,
    received(Rest, Piece, uds_dist_diagnosis:received(First, Greeting)).

garbage_is_no_challenge(_Config) ->
    Garbage = <<"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n">>,
    ?assertEqual(unclear, uds_dist_diagnosis:verdict(received(Garbage, byte_size(Garbage)))).

%% ---------------------------------------------------------------------------------------------
%% uds_dist_busy_poll, with the same cases as the sidecar's policy in src/wait.rs

-define(BUDGET, 100).
-define(SHORT, 199).
-define(LONG, 200).

blocks_until_a_wait_was_short(_) ->
    New = uds_dist_busy_poll:new(?BUDGET),
    ?assertEqual(0, uds_dist_busy_poll:budget(New)),
    Slow = uds_dist_busy_poll:blocked(?LONG, New),
    ?assertEqual(0, uds_dist_busy_poll:budget(Slow)),
    Fast = uds_dist_busy_poll:blocked(?SHORT, Slow),
    ?assertEqual(?BUDGET, uds_dist_busy_poll:budget(Fast)),
    ?assertEqual(?BUDGET, uds_dist_busy_poll:budget(uds_dist_busy_poll:spun(?BUDGET, Fast))).

blocks_after_a_wait_that_was_long(_) ->
    Slow = blocked_after_a_spin(?LONG, fast()),
    ?assertEqual(0, uds_dist_busy_poll:budget(Slow)).

blocks_while_a_bulk_transfer_continues(_) ->
    Bulk = uds_dist_busy_poll:received_bulk(fast()),
    ?assertEqual(0, uds_dist_busy_poll:budget(Bulk)),
    ?assertEqual(?BUDGET, uds_dist_busy_poll:budget(uds_dist_busy_poll:blocked(?SHORT, Bulk))).

spins_less_often_while_it_is_in_vain(_) ->
    After = lists:foldl(
        fun(Expected, BusyPoll) ->
            {Count, Next} = blocks(blocked_after_a_spin(?SHORT, BusyPoll)),
            ?assertEqual(Expected, Count),
            Next
        end,
        fast(),
        [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1024]
    ),
    ?assertMatch({1, _}, blocks(blocked_after_a_spin(?SHORT, uds_dist_busy_poll:spun(?BUDGET, After)))).

spin_that_something_interrupted_was_in_vain(_) ->
    _ = lists:foldl(
        fun(Expected, BusyPoll) ->
            {Count, Next} = blocks(uds_dist_busy_poll:spun(?BUDGET + 1, BusyPoll)),
            ?assertEqual(Expected, Count),
            Next
        end,
        fast(),
        [1, 2, 4]
    ),
    ok.

never_spins_without_a_budget(_) ->
    Fast = uds_dist_busy_poll:blocked(0, uds_dist_busy_poll:new(0)),
    ?assertEqual(0, uds_dist_busy_poll:budget(Fast)).

fast() ->
    uds_dist_busy_poll:blocked(?SHORT, uds_dist_busy_poll:new(?BUDGET)).

blocked_after_a_spin(Time, BusyPoll) ->
    uds_dist_busy_poll:blocked(Time, uds_dist_busy_poll:spun_in_vain(BusyPoll)).

%% The number of short waits that block until the next one spins, and the policy then.
blocks(BusyPoll) ->
    blocks(BusyPoll, 0).

blocks(BusyPoll, Count) ->
    case uds_dist_busy_poll:budget(BusyPoll) of
        0 -> blocks(uds_dist_busy_poll:blocked(?SHORT, BusyPoll), Count + 1);
        _ -> {Count, BusyPoll}
    end.
