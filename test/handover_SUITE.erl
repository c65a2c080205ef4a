%% Connections that the sidecar hands over to the VM, and those that it keeps.
-module(handover_SUITE).

-export([suite/0, all/0, groups/0]).
-export([init_per_group/2, end_per_group/2, init_per_testcase/2, end_per_testcase/2]).
%% Handed over.
-export([bytes_do_not_pass_the_sidecar/1, one_end_is_handed_over_and_the_other_kept/1]).
-export([node_without_descriptors_loses_the_connection_alone/1]).
-export([channel_that_cannot_be_had_is_done_without/1, relay_may_be_changed_later/1]).
%% Kept: what other suites ask of connections that are handed over.
-export([payloads_of_all_sizes_go_both_ways/1, messages_of_each_sender_stay_in_order/1]).
-export([who_keeps_a_message_keeps_nothing_else/1, traffic_in_the_first_millisecond/1]).
-export([connection_that_is_cut_loses_only_its_end/1, simultaneous_connects_meet/1]).
-export([sender_waits_for_a_node_that_stands_still/1, a_flood_leaves_others_their_turn/1]).
-export([stopped_peer_delays_no_other/1, everything_arrives_in_order_after_a_stop/1]).
-export([silent_peer_is_down_in_time_with_bulk_pending/1, handed_over_before_halt_arrives/1]).
%% Run in the nodes.
-export([use_up_descriptors/0, give_back_descriptors/0, set_relay/1]).

-import(test_node, [
    start/3, start_all/2, start_all/3, call/4, name/1, sidecar/1, expect_output/2
]).

-include_lib("stdlib/include/assert.hrl").

-define(MIB, (1 bsl 20)).

suite() ->
    test_node:suite().

all() ->
    [{group, handed_over}, {group, kept}].

groups() ->
    [
        {handed_over, [], [
            bytes_do_not_pass_the_sidecar,
            one_end_is_handed_over_and_the_other_kept,
            node_without_descriptors_loses_the_connection_alone,
            channel_that_cannot_be_had_is_done_without,
            relay_may_be_changed_later
        ]},
        {kept, [], [
            payloads_of_all_sizes_go_both_ways,
            messages_of_each_sender_stay_in_order,
            who_keeps_a_message_keeps_nothing_else,
            traffic_in_the_first_millisecond,
            connection_that_is_cut_loses_only_its_end,
            simultaneous_connects_meet,
            sender_waits_for_a_node_that_stands_still,
            a_flood_leaves_others_their_turn,
            stopped_peer_delays_no_other,
            everything_arrives_in_order_after_a_stop,
            silent_peer_is_down_in_time_with_bulk_pending,
            handed_over_before_halt_arrives
        ]}
    ].

init_per_group(kept, Config) -> [{relayed, true} | Config];
init_per_group(handed_over, Config) -> Config.

end_per_group(_Group, _Config) ->
    ok.

init_per_testcase(_Case, Config) ->
    test_node:init(Config).

end_per_testcase(_Case, Config) ->
    test_node:cleanup(Config).

%% ---------------------------------------------------------------------------------------------
%% Handed over

%% Once two nodes are connected, their sidecars have nothing to do with what they say.
bytes_do_not_pass_the_sidecar(Config) ->
    [A, B] = start_all(["a", "b"], Config),
    pong = call(A, net_adm, ping, [name(B)]),
    Before = [work(Node) || Node <- [A, B]],
    ok = call(A, test_traffic, exchange, [name(B), [[16 * ?MIB], [100, 100]], 1]),
    ?assertEqual(Before, [work(Node) || Node <- [A, B]]).

%% What the sidecar has read, written, and waited for, when it has come to rest.
work(Node) ->
    Proc = ["/proc/", integer_to_list(sidecar(Node))],
    test_node:expect(
        fun() ->
            {ok, Status} = file:read_file([Proc, "/status"]),
            {ok, Io} = file:read_file([Proc, "/io"]),
            case re:run(Status, "^State:\\s+S", [multiline]) of
                {match, _} -> {ok, counts([Status, Io])};
                nomatch -> Status
            end
        end,
        asleep
    ).

counts(Text) ->
    {match, Counts} = re:run(
        Text,
        "^(?:syscr|syscw|rchar|wchar|voluntary_ctxt_switches):\\s+(\\d+)$",
        [global, multiline, {capture, all_but_first, list}]
    ),
    5 = length(Counts),
    Counts.

%% Each end has what it has; on the socket it makes no difference.
one_end_is_handed_over_and_the_other_kept(Config) ->
    A = start("a", #{}, Config),
    B = start("b", test_node:relayed(), Config),
    pong = call(B, net_adm, ping, [name(A)]),
    Sizes = [[1, 100, 16 * ?MIB, 70000], [65536, 10, ?MIB]],
    ok = call(A, test_traffic, exchange, [name(B), Sizes, 2]),
    test_node:signal("USR1", [sidecar(Node) || Node <- [A, B]]),
    expect_output(A, "0 connections, 0 shaking hands, 1 handed over so far"),
    expect_output(B, "1 connections, 0 shaking hands, 0 handed over so far").

%% A VM that may open no more files cannot take a socket: that connection is lost, and a line says why.
%% Those that are there go on, and when there is room again, so do new ones.
node_without_descriptors_loses_the_connection_alone(Config) ->
    Limited = #{prefix => ["/bin/sh", "-c", "ulimit -n 200 && exec \"$@\"", "sh"]},
    Options = #{args => test_node:on_demand()},
    A = start("a", maps:merge(Options, Limited), Config),
    [B, C] = start_all(["b", "c"], Options, Config),
    true = call(B, net_kernel, connect_node, [name(A)]),
    %% So that the modules are loaded that it needs to log, and to be asked.
    ok = call(A, logger, error, ["before"]),
    expect_output(A, "before"),
    test_node:expect_nodes(A, [name(B)]),
    ok = call(A, ?MODULE, use_up_descriptors, []),
    _ = call(C, net_kernel, connect_node, [name(A)]),
    expect_output(A, "the connection with .*c@.* is lost: .* no file descriptor left .*ulimit -n"),
    test_node:expect_nodes(C, []),
    test_node:expect_nodes(A, [name(B)]),
    ok = call(A, ?MODULE, give_back_descriptors, []),
    true = call(C, net_kernel, connect_node, [name(A)]),
    ok = call(A, test_traffic, exchange, [name(B), [[1000]], 1]).

use_up_descriptors() ->
    Self = self(),
    spawn(fun() ->
        register(holder, self()),
        Files = open_all([]),
        Self ! {holder, length(Files)},
        receive
            {give_back, From} ->
                [ok = file:close(File) || File <- Files],
                From ! given_back
        end
    end),
    receive
        {holder, Count} when Count > 0 -> ok
    end.

open_all(Files) ->
    case file:open("/dev/null", [read, raw]) of
        {ok, File} -> open_all([File | Files]);
        {error, emfile} -> Files
    end.

give_back_descriptors() ->
    holder ! {give_back, self()},
    receive
        given_back -> ok
    end.

%% A sidecar that is made believe that somebody else is its VM lets this one not in.
channel_that_cannot_be_had_is_done_without(Config) ->
    Binary = filename:join(test_node:dir(Config), "other_vm"),
    Script = ["#!/bin/sh\nexec ", uds_dist_config:sidecar_path(), " 1\n"],
    ok = file:write_file(Binary, Script),
    ok = file:change_mode(Binary, 8#755),
    A = start("a", #{env => [{"UDS_DIST_SIDECAR", Binary}]}, Config),
    B = start("b", #{}, Config),
    pong = call(B, net_adm, ping, [name(A)]),
    expect_output(A, "turned away a process that is not the VM"),
    expect_output(A, "the connection with .*b@.* is not handed over to the VM"),
    ok = call(A, test_traffic, exchange, [name(B), [[16 * ?MIB], [100]], 1]).

%% As every setting, when the application starts; for the connections that follow.
relay_may_be_changed_later(Config) ->
    [A, B] = start_all(["a", "b"], #{args => test_node:on_demand()}, Config),
    [
        begin
            ok = call(A, ?MODULE, set_relay, [Relay]),
            true = call(A, net_kernel, connect_node, [name(B)]),
            test_node:signal("USR1", sidecar(A)),
            expect_output(A, Line),
            true = call(A, erlang, disconnect_node, [name(B)]),
            test_node:expect_nodes(B, [])
        end
     || {Relay, Line} <- [
            {false, "0 connections, 0 shaking hands, 1 handed over so far"},
            {true, "1 connections, 0 shaking hands, 1 handed over so far"},
            {false, "0 connections, 0 shaking hands, 2 handed over so far"}
        ]
    ].

set_relay(Relay) ->
    _ = application:stop(uds_dist),
    ok = application:set_env(uds_dist, relay, Relay),
    application:start(uds_dist).

%% ---------------------------------------------------------------------------------------------
%% Kept

payloads_of_all_sizes_go_both_ways(Config) ->
    traffic_SUITE:payloads_of_all_sizes_go_both_ways(Config).

messages_of_each_sender_stay_in_order(Config) ->
    traffic_SUITE:messages_of_each_sender_stay_in_order(Config).

who_keeps_a_message_keeps_nothing_else(Config) ->
    traffic_SUITE:who_keeps_a_message_keeps_nothing_else(Config).

traffic_in_the_first_millisecond(Config) ->
    traffic_SUITE:traffic_in_the_first_millisecond(Config).

connection_that_is_cut_loses_only_its_end(Config) ->
    traffic_SUITE:connection_that_is_cut_loses_only_its_end(Config).

simultaneous_connects_meet(Config) ->
    traffic_SUITE:simultaneous_connects_meet(Config).

sender_waits_for_a_node_that_stands_still(Config) ->
    traffic_SUITE:sender_waits_for_a_node_that_stands_still(Config).

a_flood_leaves_others_their_turn(Config) ->
    traffic_SUITE:a_flood_leaves_others_their_turn(Config).

stopped_peer_delays_no_other(Config) ->
    peers_SUITE:stopped_peer_delays_no_other(Config).

everything_arrives_in_order_after_a_stop(Config) ->
    peers_SUITE:everything_arrives_in_order_after_a_stop(Config).

silent_peer_is_down_in_time_with_bulk_pending(Config) ->
    peers_SUITE:silent_peer_is_down_in_time_with_bulk_pending(Config).

handed_over_before_halt_arrives(Config) ->
    resilience_SUITE:handed_over_before_halt_arrives(Config).
