%% What comes with Erlang and starts nodes of its own: erl -remsh, peer, Common Test.
-module(tools_SUITE).

-export([all/0, suite/0, init_per_testcase/2, end_per_testcase/2]).
-export([
    remote_shell_with_a_name/1,
    remote_shell_with_nothing_but_the_node/1,
    peer_connects_to_its_origin/1,
    common_test_runs_as_a_node/1
]).

-import(test_node, [start/2, call/4, name/1, dir/1]).

-include_lib("stdlib/include/assert.hrl").

all() ->
    test_node:cases(?MODULE).

suite() ->
    test_node:suite().

init_per_testcase(_Case, Config) ->
    test_node:init(Config).

end_per_testcase(_Case, Config) ->
    test_node:cleanup(Config).

remote_shell_with_a_name(Config) ->
    remote_shell("-sname b", Config).

%% It gets its name from the node.
remote_shell_with_nothing_but_the_node(Config) ->
    remote_shell("", Config).

remote_shell(Name, Config) ->
    A = atom_to_list(name(start("a", Config))),
    {0, _} = test_project:terminal(
        lists:join(" ", ["exec", test_node:erl(), flags(Config), Name, "-remsh", A]),
        [
            {"\\(" ++ A ++ "\\)1> ", "{shell_of, node()}.\n"},
            {"{shell_of,'?" ++ A, ""},
            {"\\(" ++ A ++ "\\)2> ", [7]},
            {"--> ", "q\n"}
        ],
        #{dir => dir(Config)}
    ),
    ?assertEqual(["a.sock"], filelib:wildcard("*.sock", dir(Config))).

%% By default a peer is controlled over distribution.
peer_connects_to_its_origin(Config) ->
    A = start("a", Config),
    Options = #{name => peer, args => string:lexemes(flags(Config), " "), peer_down => continue},
    {ok, Peer, Node} = call(A, peer, start, [Options]),
    ?assertEqual([Node], call(A, erlang, nodes, [])),
    ?assertEqual({ok, ["a", "peer"]}, call(A, erpc, call, [Node, uds_dist, names, []])),
    ok = call(A, peer, stop, [Peer]),
    ?assertEqual([], call(A, erlang, nodes, [])).

common_test_runs_as_a_node(Config) ->
    A = name(start("a", Config)),
    Suite = [
        "-module(node_SUITE).\n-export([all/0, is_connected/1]).\nall() -> [is_connected].\n",
        io_lib:format("is_connected(_) -> pong = net_adm:ping('~s').~n", [A])
    ],
    ok = file:write_file(filename:join(dir(Config), "node_SUITE.erl"), Suite),
    {0, Output} = test_project:output(
        "exec \"$0\" -noinput -sname ct -dir . -suite node_SUITE -logdir .",
        #{
            dir => dir(Config),
            argument => filename:join(filename:dirname(test_node:erl()), "ct_run"),
            env => [{"ERL_FLAGS", flags(Config)}, {"HOME", dir(Config)}]
        }
    ),
    test_node:expect_output_of(Output, "1 ok, 0 failed").

flags(Config) ->
    lists:flatten([
        "-proto_dist uds -no_epmd -setcookie uds_dist_test -uds_dist_dir ",
        dir(Config),
        " -pa ",
        filename:dirname(code:which(uds_dist))
    ]).
