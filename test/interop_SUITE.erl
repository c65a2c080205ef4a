%% Other carriers and other OTPs at the other end of the socket.
-module(interop_SUITE).

-export([all/0, suite/0, groups/0, init_per_group/2, end_per_group/2]).
-export([init_per_testcase/2, end_per_testcase/2]).
-export([
    erl_uds_dist_connects_to_us/1,
    we_connect_to_erl_uds_dist/1,
    older_and_newer_otp_connect/1
]).

-import(test_node, [start/3, call/4, name/1, expect_nodes/2]).

-include_lib("stdlib/include/assert.hrl").

%% Small payloads, payloads around the size of a fragment, and payloads of many fragments.
-define(SIZES, [0, 1, 1000, 65535, 65536, 65537, 1 bsl 20, 16 bsl 20]).

all() ->
    test_node:transports().

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

%% A node with OTP's example carrier dials our socket.
erl_uds_dist_connects_to_us(Config) ->
    with_erl_uds_dist(fun(Ours, Theirs) -> talk(Theirs, Ours) end, Config).

%% We dial the socket of a node with OTP's example carrier.
we_connect_to_erl_uds_dist(Config) ->
    with_erl_uds_dist(fun talk/2, Config).

%% This OTP with each other OTP of the matrix; both sides dial.
older_and_newer_otp_connect(Config) ->
    case test_node:other_otps() of
        [] ->
            {skip, "no other OTP in UDS_DIST_TEST_PEERS"};
        Others ->
            Ours = start("this", #{}, Config),
            lists:foreach(
                fun({Major, Otp}) ->
                    Theirs = start("otp" ++ Major, #{otp => Otp}, Config),
                    ?assertEqual(Major, call(Theirs, erlang, system_info, [otp_release])),
                    talk(Ours, Theirs),
                    part(Ours, Theirs),
                    talk(Theirs, Ours),
                    test_node:stop(Theirs)
                end,
                Others
            )
    end.

%% The example listens at ./name and we listen at ./name.sock, so symbolic links connect the two.
with_erl_uds_dist(Talk, Config) ->
    case test_node:erl_uds_dist(Config) of
        {ok, Options} ->
            Dir = test_node:dir(Config),
            ok = file:make_symlink("theirs", filename:join(Dir, "theirs.sock")),
            ok = file:make_symlink("ours.sock", filename:join(Dir, "ours")),
            Ours = start("ours", #{}, Config),
            Theirs = start("theirs", Options, Config),
            Talk(Ours, Theirs);
        {skip, _} = Skip ->
            Skip
    end.

%% From dials To. Then both call each other and send payloads.
talk(From, To) ->
    true = call(From, net_kernel, connect_node, [name(To)]),
    expect_nodes(From, [name(To)]),
    expect_nodes(To, [name(From)]),
    ?assertEqual(name(To), call(From, erpc, call, [name(To), erlang, node, []])),
    ?assertEqual(name(From), call(To, erpc, call, [name(From), erlang, node, []])),
    ok = call(From, test_traffic, exchange, [name(To), [?SIZES, ?SIZES], 1]).

part(A, B) ->
    true = call(A, erlang, disconnect_node, [name(B)]),
    expect_nodes(A, []),
    expect_nodes(B, []).
