%% The transport `direct`: after the handshake, the VM has the socket of a connection, and its sidecar is no
%% longer involved. The suites about connections also run with it; this suite has the cases for `direct` only.
-module(direct_SUITE).

-export([suite/0, all/0, init_per_testcase/2, end_per_testcase/2]).
-export([bytes_bypass_the_sidecar/1, vm_has_the_sockets_of_its_peers/1]).
-export([connections_outlive_their_sidecars/1, stopped_sidecar_delays_no_message/1]).
-export([ends_may_use_different_transports/1, bytes_stay_in_order_however_they_are_read/1]).
-export([stray_messages_do_not_stop_the_input/1, suspended_input_handler_holds_few_messages/1]).
-export([peer_that_cannot_be_written_to_is_let_go/1]).
-export([node_without_descriptors_loses_one_new_connection/1]).
-export([ended_connections_leave_no_descriptor/1, killed_vms_leave_no_descriptor/1]).
-export([connections_are_relayed_without_a_channel/1, transport_may_change_later/1]).
%% Run in the nodes.
-export([set_transport/1, disturb_input_handlers/0]).
-export([receive_numbers/0, suspend_input_handler/0, resume_input_handler/1]).
-export([await_stop/1, await_messages/2, await_failure/2]).
-export([deafen/0]).

-import(test_node, [
    start/3, start_all/2, start_all/3, call/4, name/1, os_pid/1, sidecar/1, expect_output/2
]).

-include_lib("stdlib/include/assert.hrl").

-define(MIB, (1 bsl 20)).

suite() ->
    test_node:suite().

all() ->
    [
        bytes_bypass_the_sidecar,
        vm_has_the_sockets_of_its_peers,
        connections_outlive_their_sidecars,
        stopped_sidecar_delays_no_message,
        ends_may_use_different_transports,
        bytes_stay_in_order_however_they_are_read,
        stray_messages_do_not_stop_the_input,
        suspended_input_handler_holds_few_messages,
        peer_that_cannot_be_written_to_is_let_go,
        node_without_descriptors_loses_one_new_connection,
        ended_connections_leave_no_descriptor,
        killed_vms_leave_no_descriptor,
        connections_are_relayed_without_a_channel,
        transport_may_change_later
    ].

%% Nodes use `direct` unless a test overrides it.
init_per_testcase(_Case, Config) ->
    test_node:init(test_node:init_group(direct, Config)).

end_per_testcase(_Case, Config) ->
    test_node:cleanup(Config).

%% ---------------------------------------------------------------------------------------------

%% After two nodes have connected, their messages do not involve their sidecars.
bytes_bypass_the_sidecar(Config) ->
    [A, B] = start_all(["a", "b"], Config),
    connect(A, B),
    %% When the sidecars have said this, they have nothing left to do.
    test_node:signal("USR1", [sidecar(Node) || Node <- [A, B]]),
    [expect_output(Node, "0 connections, 0 in handshake, 1 handed over so far") || Node <- [A, B]],
    Before = [test_node:work(sidecar(Node)) || Node <- [A, B]],
    ok = call(A, test_traffic, exchange, [name(B), [[16 * ?MIB], [100, 100]], 1]),
    ?assertEqual(Before, [test_node:work(sidecar(Node)) || Node <- [A, B]]).

%% The VM has a socket for each connection, with two descriptors, in addition to its end of the channel, which
%% is open from the start. It does not listen.
vm_has_the_sockets_of_its_peers(Config) ->
    Options = #{args => test_node:on_demand()},
    [A, B, C, Undistributed] = start_all(["a", "b", "c", undefined], Options, Config),
    Usual = length(test_node:sockets(os_pid(Undistributed))),
    connect(A, B),
    ?assertEqual(Usual + 1 + 2, length(test_node:sockets(os_pid(A)))),
    SidecarHas = length(test_node:descriptors(sidecar(A))),
    connect(A, C),
    ?assertEqual(Usual + 1 + 4, length(test_node:sockets(os_pid(A)))),
    ?assertEqual(SidecarHas, length(test_node:descriptors(sidecar(A)))),
    ?assertEqual([], test_node:listeners(os_pid(A))),
    ?assertMatch([_], test_node:listeners(sidecar(A))).

%% Connections survive the death of their sidecars, each in turn and both at once, while both nodes exchange
%% messages. Everything arrives in order.
connections_outlive_their_sidecars(Config) ->
    [A, B] = Nodes = pair(Config),
    Before = [call(Node, test_load, owner_and_acceptor, []) || Node <- Nodes],
    Controllers = [call(Node, test_load, controllers, []) || Node <- Nodes],
    [
        ok = test_load:start_traffic(Node, Other, Size)
     || {Node, Other} <- [{A, B}, {B, A}], Size <- [16, 100000]
    ],
    ok = test_load:start_ledger(B),
    ok = test_load:start_numbers(A, B, 10000),
    [
        begin
            Old = [{Node, sidecar(Node)} || Node <- Victims],
            ok = test_node:signal("KILL", [Sidecar || {_, Sidecar} <- Old]),
            [test_node:expect_listening(Node, Sidecar, Config) || {Node, Sidecar} <- Old]
        end
     || _ <- lists:seq(1, 4), Victims <- [[A], [B], [A, B]]
    ],
    expect_output(A, "sidecar .* is gone: it was ended by signal 9; connections unaffected: 1"),
    [test_load:expect_traffic(Node) || Node <- Nodes],
    Count = test_load:stop_numbers(A),
    test_runner:note("~b messages were sent", [Count]),
    test_node:expect(
        fun() ->
            case test_load:ledger(B) of
                All when length(All) =:= Count -> All =:= lists:seq(1, Count);
                Some -> {received, length(Some)}
            end
        end,
        {in_order, Count}
    ),
    [0, 0] = [test_load:downs(Node) || Node <- Nodes],
    Controllers = [call(Node, test_load, controllers, []) || Node <- Nodes],
    Before = [call(Node, test_load, owner_and_acceptor, []) || Node <- Nodes],
    C = start("c", #{}, Config),
    [true = call(C, net_kernel, connect_node, [name(Node)]) || Node <- Nodes].

%% A stopped sidecar delays no message.
stopped_sidecar_delays_no_message(Config) ->
    [A, B] = Nodes = pair(Config),
    Sidecars = [sidecar(Node) || Node <- Nodes],
    ok = test_node:signal("STOP", Sidecars),
    ok = call(A, test_traffic, exchange, [name(B), [[16 * ?MIB], [100, 100]], 1]),
    ok = test_node:signal("CONT", Sidecars).

%% Each end may have its own transport, because the bytes on the socket are the same.
ends_may_use_different_transports(Config) ->
    A = start("a", #{}, Config),
    B = start("b", #{transport => relay}, Config),
    pong = call(B, net_adm, ping, [name(A)]),
    Sizes = [[1, 100, 16 * ?MIB, 70000], [65536, 10, ?MIB]],
    ok = call(A, test_traffic, exchange, [name(B), Sizes, 2]),
    test_node:signal("USR1", [sidecar(Node) || Node <- [A, B]]),
    expect_output(A, "0 connections, 0 in handshake, 1 handed over so far"),
    expect_output(B, "1 connections, 0 in handshake, 0 handed over so far").

%% An input handler spins, waits for a port, or reads the socket itself, depending on the length of what it read
%% and of its waits. Messages of lengths around the limits, in bursts and one at a time, make it change.
bytes_stay_in_order_however_they_are_read(Config) ->
    [A, B] = pair(Config),
    Short = [1, 100, 4000],
    Around = [16000, 16370, 16384, 16400, 131072],
    [
        begin
            ok = call(A, test_traffic, exchange, [name(B), Processes, 50]),
            ok = call(A, test_traffic, round_trips, [name(B), 300, 1])
        end
     || Processes <- [[Short], [Around], [Short, Around, [300000, 10]]]
    ].

%% Any process can send an input handler a message, also between two reads.
stray_messages_do_not_stop_the_input(Config) ->
    [A, B] = Nodes = pair(Config),
    Disturbers = [{Node, call(Node, ?MODULE, disturb_input_handlers, [])} || Node <- Nodes],
    ok = call(A, test_traffic, exchange, [name(B), [[100, 16384, ?MIB], [1, 2, 3]], 50]),
    [true = call(Node, erlang, exit, [Pid, kill]) || {Node, Pid} <- Disturbers],
    ok = call(A, test_traffic, exchange, [name(B), [[100, ?MIB]], 1]),
    [?assertMatch([#{transport := direct}], call(Node, uds_dist, peers, [])) || Node <- Nodes].

disturb_input_handlers() ->
    [_ | _] = Handlers = input_handlers(),
    spawn(fun() -> disturb(Handlers) end).

input_handlers() ->
    [Pid || Pid <- processes(), proc_lib:translate_initial_call(Pid) =:= {uds_dist_input, init, 1}].

disturb(Handlers) ->
    [Pid ! stray || Pid <- Handlers],
    erlang:yield(),
    disturb(Handlers).

%% While an input handler cannot run, the port gives it a limited number of messages, and what follows waits in the
%% socket.
suspended_input_handler_holds_few_messages(Config) ->
    Most = 64,
    [A, B] = pair(Config),
    Receiver = call(B, ?MODULE, receive_numbers, []),
    Suspended = {Handler, _} = call(B, ?MODULE, suspend_input_handler, []),
    [
        begin
            _ = call(A, erlang, send, [Receiver, Number]),
            ok = call(B, ?MODULE, await_messages, [Handler, min(Number, Most div 2)])
        end
     || Number <- lists:seq(1, 3 * Most)
    ],
    Count = call(B, ?MODULE, await_stop, [Handler]),
    ?assert(Count > Most div 2 andalso Count =< Most, Count),
    ok = call(B, ?MODULE, resume_input_handler, [Suspended]),
    ok = call(B, ?MODULE, await_messages, [Receiver, 3 * Most]),
    ?assertEqual({messages, lists:seq(1, 3 * Most)}, call(B, erlang, process_info, [Receiver, messages])),
    ok = call(A, test_traffic, exchange, [name(B), [[1000, ?MIB]], 2]).

%% A process that keeps its messages.
receive_numbers() ->
    spawn(fun() ->
        receive
            stop -> ok
        end
    end).

%% Suspends the only input handler, which waits, until the other process that is returned ends.
suspend_input_handler() ->
    [Handler] = input_handlers(),
    Caller = self(),
    Holder = spawn(fun() ->
        ok = await_info(Handler, status, fun(Status) -> Status =:= waiting end),
        true = erlang:suspend_process(Handler),
        Caller ! {self(), suspended},
        receive
            resume -> true = erlang:resume_process(Handler)
        end
    end),
    receive
        {Holder, suspended} -> {Handler, Holder}
    end.

resume_input_handler({_, Holder}) ->
    Holder ! resume,
    ok.

%% Waits until the port has stopped, and returns the number of its messages before that.
await_stop(Handler) ->
    ok = await_info(Handler, messages, fun(Messages) ->
        [] =/= [stopped || {tcp_passive, _} <- Messages]
    end),
    {messages, Messages} = process_info(Handler, messages),
    {tcp_passive, _} = lists:last(Messages),
    length(Messages) - 1.

await_messages(Pid, Count) ->
    await_info(Pid, message_queue_len, fun(Length) -> Length >= Count end).

%% Waits until the failure of the output is in the queue of a suspended input handler, and so many messages of the
%% socket after it. The acknowledgement of an earlier unlink may come before.
await_failure(Handler, Count) ->
    await_info(Handler, messages, fun(Messages) ->
        case lists:dropwhile(fun(Message) -> not is_failure(Message) end, Messages) of
            [_ | After] -> length([tcp || {tcp, _, _} <- After]) >= Count;
            [] -> false
        end
    end).

is_failure({'$gen_cast', {output_failed, _}}) -> true;
is_failure(_) -> false.

await_info(Pid, Item, Wanted) ->
    true = test_node:expect(
        fun() ->
            {Item, Value} = process_info(Pid, Item),
            Wanted(Value) orelse Value
        end,
        Item
    ),
    ok.

%% A peer that reads no longer, but goes on sending, does not keep the connection until the tick time is over. What it
%% sent before the failure arrives. Without `global`, neither node sends anything else once the input handler is
%% suspended, but what was sent before may still arrive.
peer_that_cannot_be_written_to_is_let_go(Config) ->
    [A, B] = pair(#{args => test_node:on_demand() ++ ["-kernel", "net_ticktime", "600"]}, Config),
    Receiver = call(A, ?MODULE, receive_numbers, []),
    Suspended = {Handler, _} = call(A, ?MODULE, suspend_input_handler, []),
    ok = call(B, ?MODULE, deafen, []),
    _ = call(A, erlang, send, [{nobody, name(B)}, hello]),
    ok = call(A, ?MODULE, await_failure, [Handler, 0]),
    Send = fun(Number) -> Number = call(B, erlang, send, [Receiver, Number]) end,
    Send(1),
    ok = call(A, ?MODULE, await_failure, [Handler, 1]),
    ok = call(A, ?MODULE, resume_input_handler, [Suspended]),
    Sent = send_until(fun() -> call(A, erlang, nodes, []) =:= [] end, Send, 2),
    {messages, Received} = call(A, erlang, process_info, [Receiver, messages]),
    ?assertEqual(lists:seq(1, length(Received)), Received),
    ?assert(length(Received) >= 1 andalso length(Received) =< Sent, Received).

%% Sends numbers, one for each time that it looks whether to stop. Returns the last one.
send_until(IsOver, Send, First) ->
    Last = counters:new(1, []),
    ok = counters:put(Last, 1, First - 1),
    true = test_node:expect(
        fun() ->
            ok = counters:add(Last, 1, 1),
            Send(counters:get(Last, 1)),
            IsOver()
        end,
        connection_ends
    ),
    counters:get(Last, 1).

%% Makes this node read nothing more from its only peer.
deafen() ->
    [Controller] = test_load:controllers(),
    _ = suspend_input_handler(),
    [Socket] = [S || S <- socket:which_sockets(), maps:get(owner, socket:info(S)) =:= Controller],
    socket:shutdown(Socket, read).

%% A node that has run out of descriptors keeps its connections. It loses one that it should take over, and relays the
%% next ones, however often they are made. With descriptors, it takes over connections again.
node_without_descriptors_loses_one_new_connection(Config) ->
    Options = #{args => test_node:on_demand()},
    A = start("a", maps:merge(Options, test_node:few_descriptors()), Config),
    [B, C] = start_all(["b", "c"], Options, Config),
    true = call(B, net_kernel, connect_node, [name(A)]),
    %% This loads the modules that are needed to log and to answer calls.
    ok = call(A, logger, error, ["before"]),
    expect_output(A, "before"),
    ok = call(A, test_traffic, exchange, [name(B), [[1000]], 1]),
    ?assertEqual([direct], transports(A)),
    test_node:expect_nodes(A, [name(B)]),
    ok = call(A, test_node, use_up_descriptors, []),
    _ = call(C, net_kernel, connect_node, [name(A)]),
    Lost = "the connection with .*c@.* is lost: .* no file descriptor left .*ulimit -n.* are relayed for a while",
    expect_output(A, Lost),
    test_node:expect_nodes(C, []),
    test_node:expect_nodes(A, [name(B)]),
    %% On a slow machine, the time of relaying may be over before the next connection; it doubles each time.
    Relayed = fun() ->
        _ = call(C, net_kernel, connect_node, [name(A)]),
        transports(A) =:= [direct, relay]
    end,
    test_node:expect(Relayed, relayed),
    ok = call(A, test_traffic, exchange, [name(C), [[1000]], 1]),
    ok = call(A, test_node, give_back_descriptors, []),
    test_node:expect(fun() -> maps:get(transport, call(A, uds_dist, info, [])) =:= direct end, direct_again),
    true = call(C, erlang, disconnect_node, [name(A)]),
    test_node:expect_nodes(A, [name(B)]),
    true = call(C, net_kernel, connect_node, [name(A)]),
    expect_output(A, "transport is direct again"),
    ok = call(A, test_traffic, exchange, [name(C), [[1000]], 1]),
    ?assertEqual([direct, direct], transports(A)),
    ok = call(A, test_traffic, exchange, [name(B), [[1000]], 1]).

transports(Node) ->
    lists:sort([Transport || #{transport := Transport} <- call(Node, uds_dist, peers, [])]).

%% What is tested with `relay` too. How a VM closes descriptors that it has received depends on the OTP, and this
%% suite runs on each.
ended_connections_leave_no_descriptor(Config) ->
    carrier_SUITE:ended_connections_leave_no_descriptor(Config).

killed_vms_leave_no_descriptor(Config) ->
    carrier_SUITE:killed_vms_leave_no_descriptor(Config).

%% A sidecar in its own PID namespace cannot identify its VM at the channel. The node logs that once, and its
%% connections are relayed.
connections_are_relayed_without_a_channel(Config) ->
    case os:cmd("unshare --pid --fork true && echo yes") of
        "yes\n" -> without_a_channel(Config);
        Problem -> {skip, "no PID namespace can be made here: " ++ Problem}
    end.

without_a_channel(Config) ->
    Binary = filename:join(test_node:dir(Config), "other_namespace_sidecar"),
    Script = ["#!/bin/sh\nexec unshare --pid --fork ", uds_dist_program:path(), "\n"],
    ok = file:write_file(Binary, Script),
    ok = file:change_mode(Binary, 8#755),
    A = start("a", #{env => [{"UDS_DIST_SIDECAR", Binary}]}, Config),
    B = start("b", #{}, Config),
    pong = call(B, net_adm, ping, [name(A)]),
    ok = call(A, test_traffic, exchange, [name(B), [[16 * ?MIB], [100]], 1]),
    expect_output(A, "transport is relay instead of direct"),
    [#{transport := relay}] = call(A, uds_dist, peers, []).

%% As with every setting, the start of the application applies a change to new connections.
transport_may_change_later(Config) ->
    Options = #{args => test_node:on_demand(), transport => relay},
    [A, B] = start_all(["a", "b"], Options, Config),
    [
        begin
            ok = call(A, ?MODULE, set_transport, [Transport]),
            connect(A, B),
            test_node:signal("USR1", sidecar(A)),
            expect_output(A, Line),
            true = call(A, erlang, disconnect_node, [name(B)]),
            test_node:expect_nodes(B, [])
        end
     || {Transport, Line} <- [
            {direct, "0 connections, 0 in handshake, 1 handed over so far"},
            {relay, "1 connections, 0 in handshake, 1 handed over so far"},
            {direct, "0 connections, 0 in handshake, 2 handed over so far"}
        ]
    ].

set_transport(Transport) ->
    _ = application:stop(uds_dist),
    ok = application:set_env(uds_dist, transport, Transport),
    application:start(uds_dist).

%% ---------------------------------------------------------------------------------------------

%% Two connected nodes, which count their connections that go down and answer round trips.
pair(Config) ->
    pair(#{}, Config).

pair(Options, Config) ->
    [A, B] = Nodes = start_all(["a", "b"], Options, Config),
    [ok = test_load:prepare(Node) || Node <- Nodes],
    connect(A, B),
    Nodes.

%% When an answer has come, both nodes have the socket.
connect(From, To) ->
    true = call(From, net_kernel, connect_node, [name(To)]),
    ok = call(From, test_traffic, round_trips, [name(To), 1, 0]).
