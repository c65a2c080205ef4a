%% The transport `relay`, which is the default: the sidecars have the sockets, and the bytes of all
%% connections pass through them. The suites about connections show how it carries traffic; this suite has the
%% cases for `relay` only.
-module(relay_SUITE).

-export([suite/0, all/0, init_per_testcase/2, end_per_testcase/2]).
-export([bytes_pass_both_sidecars/1, vm_has_no_socket_of_a_peer/1]).

-import(test_node, [start_all/2, start_all/3, call/4, name/1, os_pid/1, sidecar/1]).

-include_lib("stdlib/include/assert.hrl").

suite() ->
    test_node:suite().

all() ->
    [bytes_pass_both_sidecars, vm_has_no_socket_of_a_peer].

init_per_testcase(_Case, Config) ->
    test_node:init(Config).

end_per_testcase(_Case, Config) ->
    test_node:cleanup(Config).

%% If messages are sent one at a time, each sidecar reads them from the pipe of its VM or writes them to it.
%% (The kernel counts neither bytes of sockets nor spliced bytes, so long messages would not be counted.)
bytes_pass_both_sidecars(Config) ->
    [A, B] = start_all(["a", "b"], Config),
    pong = call(A, net_adm, ping, [name(B)]),
    {Count, Size} = {100, 1000},
    Before = [test_node:work(sidecar(Node)) || Node <- [A, B]],
    ok = call(A, test_traffic, round_trips, [name(B), Count, Size]),
    After = [test_node:work(sidecar(Node)) || Node <- [A, B]],
    [
        ?assert(maps:get(Key, New) - maps:get(Key, Old) >= Count * Size)
     || {Old, New} <- lists:zip(Before, After), Key <- [rchar, wchar]
    ].

%% The VM has no more sockets than one without distribution, whatever the number of connections. Its sidecar
%% has one for each connection.
vm_has_no_socket_of_a_peer(Config) ->
    Options = #{args => test_node:on_demand()},
    [A, B, C, Undistributed] = start_all(["a", "b", "c", undefined], Options, Config),
    SidecarHas = length(test_node:sockets(sidecar(A))),
    [true = call(A, net_kernel, connect_node, [name(Node)]) || Node <- [B, C]],
    Usual = length(test_node:sockets(os_pid(Undistributed))),
    [?assertEqual(Usual, length(test_node:sockets(os_pid(Node)))) || Node <- [A, B, C]],
    ?assertEqual(SidecarHas + 2, length(test_node:sockets(sidecar(A)))).
