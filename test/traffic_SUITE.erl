%% What connections carry: everything, in order, from the first millisecond on; and what happens
%% to those who send when the other end does not read.
-module(traffic_SUITE).

-export([all/0, suite/0, groups/0, init_per_group/2, end_per_group/2]).
-export([init_per_testcase/2, end_per_testcase/2]).
-export([
    payloads_of_all_sizes_go_both_ways/1,
    messages_of_each_sender_stay_in_order/1,
    kept_message_holds_no_other_message/1,
    traffic_in_the_first_millisecond/1,
    connection_that_is_cut_loses_only_its_end/1,
    messages_connect_by_themselves/1,
    simultaneous_connects_meet/1,
    fifty_nodes_dial_one_hub_at_once/1,
    sender_waits_for_a_node_that_stands_still/1,
    bulk_takes_turns_and_what_is_short_goes_first/1,
    a_flood_leaves_others_their_turn/1
]).

-import(test_node, [
    start/3,
    start_all/2,
    start_all/3,
    call/4,
    name/1,
    os_pid/1,
    sidecar/1,
    expect/2,
    expect_nodes/2
]).

-include_lib("stdlib/include/assert.hrl").

-define(ROUNDS, 500).
-define(GREETINGS, 10).

all() ->
    [{group, relay}, {group, direct}].

groups() ->
    [
        {relay, [], test_node:cases(?MODULE)},
        {direct, [], test_node:cases(?MODULE)}
    ].

suite() ->
    test_node:suite().

init_per_group(Group, Config) ->
    test_node:init_group(Group, Config).

end_per_group(_Group, _Config) ->
    ok.

init_per_testcase(_Case, Config) ->
    test_node:init(Config).

end_per_testcase(_Case, Config) ->
    test_node:cleanup(Config).

%% ---------------------------------------------------------------------------------------------
%% What is sent arrives

%% Sizes around the limits of buffers and frames, up to 64 MiB, from many processes at once.
payloads_of_all_sizes_go_both_ways(Config) ->
    [A, B] = start_all(["a", "b"], Config),
    Small = [0, 1, 63, 64, 65, 1024, 65535, 65536, 65537, 1 bsl 20],
    Large = [[16 bsl 20], [16 bsl 20], [64 bsl 20]],
    ok = call(A, test_traffic, exchange, [name(B), lists:duplicate(20, Small), 2]),
    ok = call(A, test_traffic, exchange, [name(B), Large ++ lists:duplicate(8, Small), 1]).

%% Many senders, one receiver on either side.
messages_of_each_sender_stay_in_order(Config) ->
    [A, B] = start_all(["a", "b"], Config),
    ok = call(A, test_traffic, count_up, [name(B), 20, 5000, 0]),
    ok = call(A, test_traffic, count_up, [name(B), 20, 500, 10000]).

%% Many frames arrive in one packet. A process that keeps a small message must not keep the others in memory.
kept_message_holds_no_other_message(Config) ->
    [A, B] = start_all(["a", "b"], Config),
    {Count, Small, Large} = {500, 100, 65536},
    Held = call(A, test_traffic, keep_small, [name(B), Count, Small, Large]),
    ?assert(Held >= Count * Small),
    ?assert(Held < Count * Large div 10).

%% 500 connections: both nodes send as soon as they know of the other one, and all of it arrives.
traffic_in_the_first_millisecond(Config) ->
    [A, B] = Nodes = greeters([], Config),
    [
        begin
            true = call(A, net_kernel, connect_node, [name(B)]),
            [ok = call(Node, test_traffic, greeted, [Round, ?GREETINGS, 10000]) || Node <- Nodes],
            true = call(A, erlang, disconnect_node, [name(B)]),
            [ok = call(Node, test_traffic, await_ends, [Round, 10000]) || Node <- Nodes]
        end
     || Round <- lists:seq(1, ?ROUNDS)
    ].

%% The same, but the connection is ended at once, in the middle of it: what arrives has no gap,
%% and nothing hangs.
connection_that_is_cut_loses_only_its_end(Config) ->
    %% A connect that meets the end of the one before fails now and then, with any carrier:
    %% net_kernel takes it for one of two simultaneous ones, and gives it up at the end of the setup
    %% time.
    [A, B] = greeters(["-kernel", "net_setuptime", "1"], Config),
    Cut = call(A, test_traffic, cut, [name(B), ?ROUNDS]),
    ?assert(Cut > ?ROUNDS * 9 div 10),
    expect_nodes(B, []),
    true = call(B, net_kernel, connect_node, [name(A)]),
    [true = is_pid(call(Node, erlang, whereis, [test_traffic])) || Node <- [A, B]].

greeters(Arguments, Config) ->
    Nodes = start_all(["a", "b"], #{args => test_node:on_demand() ++ Arguments}, Config),
    [ok = call(Node, test_traffic, start_greeter, [?GREETINGS]) || Node <- Nodes],
    Nodes.

%% A message to a node that is not connected waits for the handshake, and those behind it too.
messages_connect_by_themselves(Config) ->
    [A, B] = start_all(["a", "b"], #{args => ["-connect_all", "false"]}, Config),
    [
        begin
            ok = call(A, test_traffic, count_up, [name(B), 5, 20, 100]),
            true = call(A, erlang, disconnect_node, [name(B)]),
            expect_nodes(A, []),
            expect_nodes(B, [])
        end
     || _ <- lists:seq(1, 50)
    ].

%% ---------------------------------------------------------------------------------------------
%% Many at once

%% Two nodes that dial each other at the same instant have one connection, and both know it.
simultaneous_connects_meet(Config) ->
    [A, B] = Nodes = start_all(["a", "b"], #{args => test_node:on_demand()}, Config),
    [
        begin
            ?assertEqual({Round, [true, true]}, {Round, connect_at_once([{A, B}, {B, A}], 5)}),
            expect_nodes(A, [name(B)]),
            expect_nodes(B, [name(A)]),
            ?assertEqual(name(B), call(A, erpc, call, [name(B), erlang, node, []])),
            ?assertEqual(name(A), call(B, erpc, call, [name(A), erlang, node, []])),
            true = call(A, erlang, disconnect_node, [name(B)]),
            [expect_nodes(Node, []) || Node <- Nodes]
        end
     || Round <- lists:seq(1, 100)
    ].

%% Connects at an instant so many milliseconds from now.
connect_at_once(FromTo, Milliseconds) ->
    Instant = erlang:system_time(microsecond) + Milliseconds * 1000,
    Self = self(),
    Callers = [
        spawn_link(fun() ->
            Arguments = [Instant, net_kernel, connect_node, [name(To)]],
            Self ! {self(), call(From, test_traffic, at, Arguments)}
        end)
     || {From, To} <- FromTo
    ],
    [
        receive
            {Caller, Result} -> Result
        end
     || Caller <- Callers
    ].

%% They come at the same instant, and the hub lets five wait. Then all are killed.
fifty_nodes_dial_one_hub_at_once(Config) ->
    Count = 50,
    Small = #{args => ["-connect_all", "false", "+S", "1:1", "+A", "1"]},
    Hub = start("hub", #{args => ["-connect_all", "false"]}, Config),
    Nodes = start_all(["n" ++ integer_to_list(I) || I <- lists:seq(1, Count)], Small, Config),
    Before = descriptors(Hub),
    Results = connect_at_once([{Node, Hub} || Node <- Nodes], 500),
    ?assertEqual(lists:duplicate(Count, true), Results),
    expect_nodes(Hub, [name(Node) || Node <- Nodes]),
    Hubs = call(Hub, erpc, multicall, [[name(Node) || Node <- Nodes], erlang, nodes, []]),
    ?assertEqual(lists:duplicate(Count, {ok, [name(Hub)]}), Hubs),
    %% The answers have come by way of the transport that the connections stay with.
    ?assertEqual(more_descriptors(Count, Before, Config), descriptors(Hub)),
    test_node:signal("KILL", [os_pid(Node) || Node <- Nodes]),
    expect_nodes(Hub, []),
    expect(fun() -> descriptors(Hub) =:= Before end, no_descriptor_is_left).

descriptors(Node) ->
    #{
        relay => length(test_node:descriptors(sidecar(Node))),
        direct => length(test_node:sockets(os_pid(Node)))
    }.

%% A connection takes one of the sidecar or one of the VM.
more_descriptors(Count, Before, Config) ->
    maps:update_with(test_node:transport(Config), fun(Number) -> Number + Count end, Before).

%% ---------------------------------------------------------------------------------------------
%% Who does not read

%% Senders wait (busy_dist_port) for a node that stands still, those to other nodes do not; and
%% when it goes on, everything arrives in order.
sender_waits_for_a_node_that_stands_still(Config) ->
    [A, B, C] = start_all(["a", "b", "c"], Config),
    Size = 65536,
    Count = 1000,
    pong = call(A, net_adm, ping, [name(C)]),
    ok = call(B, test_traffic, start_receiver, [Count, Size]),
    pong = call(A, net_adm, ping, [name(B)]),
    Sidecars = [sidecar(A), sidecar(B)],
    Before = [test_node:resident(Sidecar) || Sidecar <- Sidecars],
    test_node:signal("STOP", os_pid(B)),
    Work = [test_node:work(Sidecar) || Sidecar <- Sidecars],
    ok = call(A, test_traffic, send_until_busy, [name(B), Count, Size]),
    %% It is the relay's sidecars that have to bear what is sent.
    HasWorked = [test_node:work(Sidecar) || Sidecar <- Sidecars] =/= Work,
    ?assertEqual(test_node:transport(Config) =:= relay, HasWorked),
    ok = call(A, test_traffic, exchange, [name(C), [[1 bsl 20, 1, 1 bsl 20]], 1]),
    ?assertEqual({status, suspended}, call(A, test_traffic, status, [test_sender])),
    %% No more than a window each way, and what the allocator keeps.
    [
        ?assert(test_node:resident(Sidecar) - Resident < 8 bsl 20)
     || {Sidecar, Resident} <- lists:zip(Sidecars, Before)
    ],
    test_node:signal("CONT", os_pid(B)),
    ok = call(B, test_traffic, await_receiver, []),
    expect(fun() -> call(A, erlang, whereis, [test_sender]) =:= undefined end, sender_has_sent).

%% What a node with many processes that want to run, and one that sends bulk, owe to those that wait for
%% an answer.
bulk_takes_turns_and_what_is_short_goes_first(Config) ->
    [A, B] = start_all(["a", "b"], Config),
    pong = call(A, net_adm, ping, [name(B)]),
    GoFirst = fun() -> call(A, test_traffic, priorities, []) =:= {max, [max]} end,
    expect(GoFirst, priorities),
    ?assertEqual(0, call(A, test_traffic, turns, [name(B), 1000])),
    ?assert(call(A, test_traffic, turns, [name(B), 4 bsl 20]) >= 4),
    expect(GoFirst, priorities).

%% Neither the order in which the VM resumes those who wait, nor a single scheduler, keeps one of them
%% waiting for as long as another one floods the connection.
a_flood_leaves_others_their_turn(Config) ->
    [A, B] = start_all(["a", "b"], Config),
    pong = call(A, net_adm, ping, [name(B)]),
    _ = [
        begin
            call(A, erlang, system_flag, [schedulers_online, Schedulers]),
            ok = call(A, test_traffic, flooded_round_trips, [name(B), Size, 100])
        end
     || Schedulers <- [call(A, erlang, system_info, [schedulers]), 1],
        Size <- [1024, 4096, 65536, 1 bsl 20]
    ],
    pong = call(A, net_adm, ping, [name(B)]).
