%% Nodes of several users: which of them are admitted, and what the others can learn and do. Each test case plays an
%% attacker of SECURITY.md, or a user who must not be kept out.
-module(security_SUITE).

-export([all/0, suite/0, groups/0, init_per_suite/1, end_per_suite/1]).
-export([init_per_group/2, end_per_group/2]).
-export([init_per_testcase/2, end_per_testcase/2]).
%% Admission.
-export([
    another_user_is_kept_out_by_the_file_mode/1,
    another_user_is_kept_out_by_its_credentials/1,
    names_leave_out_those_that_keep_this_user_out/1,
    a_squatter_is_not_spoken_to/1,
    a_squatter_of_an_abstract_name_is_not_spoken_to/1,
    a_handshake_that_comes_back_is_refused/1,
    a_process_that_is_not_the_node_is_explained/1,
    users_that_are_listed_get_in/1,
    anybody_gets_in/1,
    groups_that_are_listed_get_in/1,
    the_cookie_is_still_needed/1,
    users_share_a_directory_of_their_group/1,
    root_gets_in_by_default/1,
    a_list_replaces_the_default/1,
    the_log_says_who_is_connected/1,
    a_new_sidecar_keeps_to_the_policy/1,
    commands_keep_to_the_policy/1,
    settings_are_invalid/1
]).
%% Attacks.
-export([
    a_flood_costs_little/1,
    failed_handshakes_do_not_fill_the_log/1,
    the_sidecar_gets_nothing_of_the_vm/1,
    the_cookie_stays_in_the_vm/1
]).
%% Run in the nodes.
-export([timed_connect/1, memory/0]).

-import(test_node, [
    start/3,
    call/2,
    call/4,
    name/1,
    os_pid/1,
    sidecar/1,
    dir/1,
    expect/2,
    expect_nodes/2,
    expect_output/2
]).

-include_lib("stdlib/include/assert.hrl").

%% Users and groups. These numbers need no accounts.
-define(ALICE, 61011).
-define(BOB, 61012).
-define(CAROL, 61013).
-define(STAFF, 61020).

%% The setup time of the nodes in seconds, and the longest time in milliseconds until a refused node knows it. The
%% latter is much shorter, even on a busy machine.
-define(SETUP_TIME, 60).
-define(PROMPT, 20000).

all() ->
    test_node:transports().

groups() ->
    [
        {relay, [], test_node:cases(?MODULE) -- [timed_connect, init_per_suite, end_per_suite]},
        {direct, [], [
            users_that_are_listed_get_in,
            groups_that_are_listed_get_in,
            root_gets_in_by_default,
            a_flood_costs_little
        ]}
    ].

suite() ->
    test_node:suite().

%% Other users may not be able to reach this tree, so they get a copy of what they need.
init_per_suite(Config) ->
    Copy = filename:join("/tmp", "uds_dist_security." ++ os:getpid()),
    Lib = filename:dirname(filename:dirname(code:which(uds_dist))),
    "" = os:cmd(
        lists:flatten(
            io_lib:format("mkdir ~s && cp -RL ~s/ebin ~s/test ~s ~s ~s && chmod -R a+rX ~s", [
                Copy, Lib, Lib, uds_dist_program:path(), test_project:command_line(), Copy, Copy
            ])
        )
    ),
    Config1 = [{copy, Copy} | Config],
    Reason = "only root can start nodes of other users, who must be able to run this Erlang",
    case is_root() andalso may_run_erlang() of
        true ->
            Config1;
        false ->
            ct:log("security_SUITE is skipped: ~s", [Reason]),
            _ = end_per_suite(Config1),
            {skip, Reason}
    end.

end_per_suite(Config) ->
    file:del_dir_r(proplists:get_value(copy, Config)).

is_root() ->
    string:trim(os:cmd("id -u")) =:= "0".

may_run_erlang() ->
    Command = as(?ALICE, ?ALICE, []) ++ ["test", "-x", test_node:erl(), "&& echo yes"],
    string:trim(os:cmd(lists:append(lists:join(" ", Command)))) =:= "yes".

init_per_group(Group, Config) ->
    test_node:init_group(Group, Config).

end_per_group(_Group, _Config) ->
    ok.

%% A directory like /tmp, where everybody may create files, but only remove their own.
init_per_testcase(_Case, Config) ->
    Config1 = test_node:init(Config),
    ok = file:change_mode(dir(Config1), 8#755),
    Tmp = filename:join(dir(Config1), "tmp"),
    ok = file:make_dir(Tmp),
    %% file:change_mode/2 drops the sticky bit.
    "" = os:cmd("chmod 1777 " ++ Tmp),
    [{tmp, Tmp} | Config1].

end_per_testcase(_Case, Config) ->
    test_node:cleanup(Config).

%% A command prefix for a user with these supplementary groups.
as(Uid, Gid, Groups) ->
    [
        "setpriv",
        "--reuid=" ++ integer_to_list(Uid),
        "--regid=" ++ integer_to_list(Gid),
        case [integer_to_list(Group) || Group <- Groups] of
            [] -> "--clear-groups";
            Numbers -> "--groups=" ++ lists:append(lists:join(",", Numbers))
        end
    ].

%% Starts a node of a user, whose group has the user's number, with these settings of uds_dist.
node_of(User, Name, Settings, Config) ->
    node_of(User, User, Name, Settings, #{}, Config).

node_of(User, Group, Name, Settings, Options, Config) ->
    start(Name, user_options(User, Group, Settings, Options, Config), Config).

user_options(User, Group, Settings, Options, Config) ->
    Copy = proplists:get_value(copy, Config),
    Env = [
        {"UDS_DIST_SIDECAR", filename:join(Copy, "uds_dist_sidecar")},
        {"HOME", dir(Config)}
        | maps:get(env, Options, [])
    ],
    Defaults = #{
        dir => proplists:get_value(tmp, Config),
        prefix =>
            as(User, Group, maps:get(groups, Options, [])) ++ maps:get(after_prefix, Options, []),
        otp => {test_node:erl(), filename:join(Copy, "ebin")},
        config => [
            {uds_dist, Settings}, {kernel, [{logger_level, info}, {net_setuptime, ?SETUP_TIME}]}
        ]
    },
    maps:merge(Defaults, maps:without([after_prefix, groups], Options#{env => Env})).

%% Runs in a node: connects to another one.
timed_connect(Node) ->
    {Us, Result} = timer:tc(fun() -> net_kernel:connect_node(Node) end),
    {Us div 1000, Result}.

assert_connects(From, To) ->
    ?assertMatch({_, true}, call(From, ?MODULE, timed_connect, [name(To)])).

assert_kept_out(From, To) ->
    {Ms, Connected} = call(From, ?MODULE, timed_connect, [name(To)]),
    ?assertNot(Connected),
    ?assert(Ms < ?PROMPT, Ms),
    ?assertEqual([], call(From, erlang, nodes, [connected])),
    ?assertEqual([], call(To, erlang, nodes, [connected])).

numbers(Format, Arguments) ->
    io_lib:format(Format, Arguments).

%% ---------------------------------------------------------------------------------------------
%% Admission

%% By default, only the owner may connect to the socket file.
another_user_is_kept_out_by_the_file_mode(Config) ->
    Alice = node_of(?ALICE, "alice", [], Config),
    Bob = node_of(?BOB, "bob", [{allowed_uids, any}], Config),
    assert_kept_out(Bob, Alice),
    expect_output(Bob, "cannot connect to alice@.*: the connect to .*/alice\\.sock failed: Permission denied").

%% The mode of the file lets everybody connect, and both sides of the connection log the refusal.
another_user_is_kept_out_by_its_credentials(Config) ->
    Alice = node_of(?ALICE, "alice", [{socket_mode, 8#666}], Config),
    Bob = node_of(?BOB, "bob", [{allowed_uids, any}], Config),
    assert_kept_out(Bob, Alice),
    expect_output(
        Alice,
        numbers("refused a peer, uid ~b, gid ~b, pid ~b: allowed_uids", [?BOB, ?BOB, sidecar(Bob)])
    ),
    expect_output(
        Bob, "cannot connect to alice@.* before it said anything; it may not allow .*allowed_uids"
    ).

names_leave_out_those_that_keep_this_user_out(Config) ->
    _Alice = node_of(?ALICE, "alice", [], Config),
    Bob = node_of(?BOB, "bob", [], Config),
    ?assertEqual({ok, ["bob"]}, call(Bob, uds_dist, names, [])).

%% A node of another user has the name of the expected node.
a_squatter_is_not_spoken_to(Config) ->
    Alice = node_of(?ALICE, "alice", [], Config),
    Bob = node_of(?BOB, "bob", [{allowed_uids, any}, {socket_mode, 8#666}], Config),
    assert_squatter_is_refused(Alice, Bob).

a_squatter_of_an_abstract_name_is_not_spoken_to(Config) ->
    Options = #{dir => "@uds_dist." ++ os:getpid()},
    Alice = node_of(?ALICE, ?ALICE, "alice", [], Options, Config),
    Bob = node_of(?BOB, ?BOB, "bob", [{allowed_uids, any}], Options, Config),
    %% It is not admitted either if the mode of the file lets it connect.
    assert_kept_out(Bob, Alice),
    expect_output(Alice, numbers("refused a peer, uid ~b,", [?BOB])),
    assert_squatter_is_refused(Alice, Bob).

assert_squatter_is_refused(Alice, Bob) ->
    assert_kept_out(Alice, Bob),
    expect_output(
        Alice,
        numbers("cannot connect to bob@.* belongs to uid ~b, gid ~b, pid ~b, .*allowed_uids", [
            ?BOB, ?BOB, sidecar(Bob)
        ])
    ),
    %% If it had sent anything, Bob would log its end.
    ?assertEqual(nomatch, re:run(test_node:output(Bob), "handshake with process|rejected")).

%% A process that is allowed to connect, but does not know the cookie, is in the middle of two connections of one
%% node. It sends each end the expected names, and relays the proofs.
a_handshake_that_comes_back_is_refused(Config) ->
    SetupTime = ["-kernel", "net_setuptime", integer_to_list(?SETUP_TIME)],
    A = start("a", #{args => SetupTime ++ test_node:on_demand()}, Config),
    [_, Host] = string:split(atom_to_list(name(A)), "@"),
    Between = {"between@" ++ Host, "caller@" ++ Host},
    {ok, Listener} = listen(filename:join(dir(Config), "between.sock")),
    Call = spawn_monitor(fun() ->
        exit({connected, call(A, net_kernel, connect_node, [list_to_atom("between@" ++ Host)])})
    end),
    {ok, Outgoing} = gen_tcp:accept(Listener, ?PROMPT),
    {ok, Incoming} = gen_tcp:connect(
        {local, filename:join(dir(Config), "a.sock")}, 0, [local, binary, {packet, 2}, {active, false}]
    ),
    ok = pass_on(Outgoing, Incoming, Between),
    expect_output(A, "a handshake of this node came back to it"),
    ok = gen_tcp:close(Outgoing),
    expect_not_connected(Call),
    ?assertEqual([], call(A, erlang, nodes, [connected])).

%% A process without the cookie that repeats its handshake cannot fill the log with lines of this carrier.
failed_handshakes_do_not_fill_the_log(Config) ->
    A = start("a", #{args => ["-kernel", "logger_level", "info"]}, Config),
    [_, Host] = string:split(atom_to_list(name(A)), "@"),
    Ended = "uds_dist: the handshake with process [0-9]+ of uid [0-9]+ ended",
    Count = 50,
    Start = erlang:monotonic_time(millisecond),
    [ok = break_off_handshake("stranger@" ++ Host, Config) || _ <- lists:seq(1, Count)],
    expect_output(A, Ended),
    Seconds = (erlang:monotonic_time(millisecond) - Start) div 1000,
    {match, Lines} = re:run(test_node:output(A), Ended, [global]),
    ?assert(length(Lines) =< 1 + Seconds div 5, {length(Lines), Seconds}),
    %% The next line, when it is due, has the number of those that were not logged.
    Again = fun() ->
        ok = break_off_handshake("stranger@" ++ Host, Config),
        re:run(test_node:output(A), Ended ++ ".*\\([0-9]+ such lines since the last one\\)") =/= nomatch
    end,
    test_node:expect(Again, counted).

%% Calls node a, and closes the connection when a has sent its challenge. Returns when a has closed it too.
break_off_handshake(Name, Config) ->
    {ok, Socket} = gen_tcp:connect(
        {local, filename:join(dir(Config), "a.sock")}, 0, [local, binary, {packet, 2}, {active, false}]
    ),
    {erts_dflags, _, Flags, _, _, _} = erts_internal:get_dflags(),
    ok = gen_tcp:send(Socket, [<<$N, Flags:64, 7:32>>, name_field(Name)]),
    {ok, <<$s, _/binary>>} = gen_tcp:recv(Socket, 0, ?PROMPT),
    {ok, <<$N, _/binary>>} = gen_tcp:recv(Socket, 0, ?PROMPT),
    ok = gen_tcp:shutdown(Socket, write),
    {error, closed} = gen_tcp:recv(Socket, 0, ?PROMPT),
    gen_tcp:close(Socket).

%% It may be another node, whose name must not forge lines of the log, or no node at all.
a_process_that_is_not_the_node_is_explained(Config) ->
    A = start("a", #{}, Config),
    [_, Host] = string:split(atom_to_list(name(A)), "@"),
    {erts_dflags, _, Flags, _, _, _} = erts_internal:get_dflags(),
    Challenge = fun(Name) -> [<<$N, Flags:64, 7:32, 9:32>>, name_field(Name)] end,
    [
        begin
            {ok, Listener} = listen(filename:join(dir(Config), Name ++ ".sock")),
            Call = spawn_monitor(fun() ->
                exit({connected, call(A, net_kernel, connect_node, [list_to_atom(Name ++ "@" ++ Host)])})
            end),
            {ok, Socket} = gen_tcp:accept(Listener, ?PROMPT),
            {ok, <<$N, _/binary>>} = gen_tcp:recv(Socket, 0, ?PROMPT),
            [ok = gen_tcp:send(Socket, Packet) || Packet <- Packets],
            %% Many servers close a connection on which they do not understand the request.
            _ = Name =:= "d" andalso gen_tcp:close(Socket),
            expect_output(A, ["uds_dist: cannot connect to ", Name, "@.*", Line]),
            expect_not_connected(Call)
        end
     || {Name, Packets, Line} <- [
            {"b", [<<"sok">>, Challenge("b\nerror: \e[2J@x")], "is another one, b.nerror: .x1b.2J@x; ask"},
            {"c", [lists:duplicate(3000, $x)], "is not a node, as it sent a handshake packet of 3000 bytes; find"},
            {"d", [lists:duplicate(3000, $x)], "is not a node, as it sent a handshake packet of 3000 bytes; find"}
        ]
    ].

expect_not_connected({Pid, Monitor}) ->
    receive
        {'DOWN', Monitor, process, Pid, Result} -> ?assertEqual({connected, false}, Result)
    end.

listen(Path) ->
    gen_tcp:listen(0, [{ifaddr, {local, Path}}, local, binary, {packet, 2}, {active, false}]).

%% The packets of the handshake in order: name, status, challenge, and the reply, which is refused.
pass_on(Outgoing, Incoming, {Called, Caller}) ->
    {ok, <<$N, Flags:64, Creation:32, _/binary>>} = gen_tcp:recv(Outgoing, 0, ?PROMPT),
    ok = gen_tcp:send(Incoming, [<<$N, Flags:64, Creation:32>>, name_field(Caller)]),
    {ok, <<$s, _/binary>> = Status} = gen_tcp:recv(Incoming, 0, ?PROMPT),
    ok = gen_tcp:send(Outgoing, Status),
    {ok, <<$N, Flags1:64, Challenge:32, Creation1:32, _/binary>>} = gen_tcp:recv(Incoming, 0, ?PROMPT),
    ok = gen_tcp:send(
        Outgoing, [<<$N, Flags1:64, Challenge:32, Creation1:32>>, name_field(Called)]
    ),
    {ok, <<$r, Challenge1:32, Digest:16/binary>>} = gen_tcp:recv(Outgoing, 0, ?PROMPT),
    ok = gen_tcp:send(Incoming, <<$r, Challenge1:32, Digest/binary>>),
    {error, closed} = gen_tcp:recv(Incoming, 0, ?PROMPT),
    ok.

name_field(Name) ->
    [<<(length(Name)):16>>, Name].

%% Each node has the user of the other one in its list.
users_that_are_listed_get_in(Config) ->
    Settings = [{allowed_uids, [?ALICE, ?BOB]}, {socket_mode, 8#666}],
    Alice = node_of(?ALICE, "alice", Settings, Config),
    Bob = node_of(?BOB, "bob", Settings, Config),
    Carol = node_of(?CAROL, "carol", [{allowed_uids, any}], Config),
    assert_connects(Bob, Alice),
    {_, false} = call(Carol, ?MODULE, timed_connect, [name(Alice)]),
    expect_nodes(Alice, [name(Bob)]).

anybody_gets_in(Config) ->
    Settings = [{allowed_uids, any}, {socket_mode, 8#666}],
    Alice = node_of(?ALICE, "alice", Settings, Config),
    Bob = node_of(?BOB, "bob", Settings, Config),
    assert_connects(Bob, Alice).

%% Nodes are admitted by the effective or supplementary groups of their processes, and not by their users.
groups_that_are_listed_get_in(Config) ->
    Settings = [{allowed_gids, [?STAFF]}, {socket_mode, 8#666}],
    Alice = node_of(?ALICE, ?STAFF, "alice", Settings, #{}, Config),
    Bob = node_of(?BOB, ?BOB, "bob", Settings, #{groups => [?CAROL, ?STAFF]}, Config),
    Carol = node_of(?CAROL, "carol", [{allowed_uids, any}], Config),
    assert_connects(Bob, Alice),
    {_, false} = call(Carol, ?MODULE, timed_connect, [name(Alice)]),
    expect_nodes(Alice, [name(Bob)]),
    %% The listening side is checked in the same way.
    true = call(Alice, erlang, disconnect_node, [name(Bob)]),
    assert_connects(Alice, Bob).

%% An admitted user still needs the cookie.
the_cookie_is_still_needed(Config) ->
    Settings = [{allowed_uids, any}, {socket_mode, 8#666}],
    Alice = node_of(?ALICE, "alice", Settings, Config),
    Bob = node_of(?BOB, ?BOB, "bob", Settings, #{cookie => "another"}, Config),
    assert_kept_out(Bob, Alice).

%% The setup for several users in docs/configuration.md. None of the nodes has the shared group as its effective group.
users_share_a_directory_of_their_group(Config) ->
    Run = filename:join(dir(Config), "run"),
    ok = file:make_dir(Run),
    ok = file:change_owner(Run, 0, ?STAFF),
    %% The module file cannot set the sticky bit.
    [] = os:cmd("chmod 3770 " ++ Run),
    Settings = [{socket_mode, 8#660}, {allowed_gids, [?STAFF]}],
    Shared = #{dir => Run, groups => [?STAFF]},
    Alice = node_of(?ALICE, ?ALICE, "alice", Settings, Shared, Config),
    Bob = node_of(?BOB, ?BOB, "bob", Settings, Shared, Config),
    assert_connects(Bob, Alice),
    true = call(Bob, erlang, disconnect_node, [name(Alice)]),
    assert_connects(Alice, Bob),
    %% Without the sticky bit, a line says that others could replace the socket.
    [] = os:cmd("chmod -t " ++ Run),
    Options = #{dir => Run, args => ["-noinput"], name => "carol"},
    Carol = test_node:launch(
        user_options(?CAROL, ?CAROL, [{allowed_uids, any}], Options, Config), Config
    ),
    {_, Output} = test_node:expect_exit(Carol),
    test_node:expect_output_of(Output, ["^uds_dist: .*", Run, " is writable by gid ", integer_to_list(?STAFF)]).

%% A node of an administrator. Distribution works both ways, so it has to be configured to trust the user.
root_gets_in_by_default(Config) ->
    Alice = node_of(?ALICE, "alice", [], Config),
    Careful = node_of(0, "careful", [], Config),
    Root = node_of(0, "root", [{allowed_uids, [?ALICE]}], Config),
    assert_kept_out(Careful, Alice),
    expect_output(Careful, numbers("belongs to uid ~b,", [?ALICE])),
    assert_connects(Root, Alice).

%% Even the node's own user is refused if it is not in the list.
a_list_replaces_the_default(Config) ->
    Alice = node_of(?ALICE, "alice", [{allowed_uids, [?BOB]}], Config),
    Other = node_of(?ALICE, "other", [], Config),
    assert_kept_out(Other, Alice),
    expect_output(Alice, numbers("refused a peer, uid ~b,", [?ALICE])).

%% It is logged once, by the node that accepts the connection, at level info.
the_log_says_who_is_connected(Config) ->
    Settings = [{allowed_uids, any}, {socket_mode, 8#666}],
    Alice = node_of(?ALICE, ?STAFF, "alice", Settings, #{}, Config),
    Bob = node_of(?BOB, "bob", Settings, Config),
    assert_connects(Bob, Alice),
    Line = "uds_dist: connected with ~s, uid ~b, gid ~b, pid ~b\\b",
    expect_output(Alice, numbers(Line, [name(Bob), ?BOB, ?BOB, sidecar(Bob)])),
    ?assertEqual(nomatch, string:find(test_node:output(Bob), "connected with")).

%% Both sides check, like two nodes.
commands_keep_to_the_policy(Config) ->
    Alice = node_of(?ALICE, "alice", [{socket_mode, 8#666}], Config),
    _ = node_of(?ALICE, "careful", [], Config),
    Pong = "pong from " ++ atom_to_list(name(Alice)) ++ "\n",
    AllowAlice = "--allow-uid " ++ integer_to_list(?ALICE),
    ?assertEqual({0, Pong}, ping_as(?ALICE, "alice", Config)),
    ?assertEqual({0, Pong}, ping_as(0, "alice " ++ AllowAlice, Config)),
    [
        begin
            {Status, Output} = ping_as(User, Arguments, Config),
            ?assertEqual(2, Status, Output),
            test_node:expect_output_of(Output, Line)
        end
     || {User, Arguments, Line} <- [
            {0, "alice", numbers("belongs to another user: uid ~b.* --allow-uid ~b", [?ALICE, ?ALICE])},
            {?BOB, "alice", numbers("belongs to another user: uid ~b", [?ALICE])},
            {?BOB, "alice " ++ AllowAlice, numbers("it does not allow uid ~b", [?BOB])},
            {?BOB, "careful --allow-uid any", "permission denied; run this as the node's user"}
        ]
    ],
    expect_output(Alice, numbers("refused a peer, uid ~b,", [?BOB])).

ping_as(User, Arguments, Config) ->
    Binary = filename:join(proplists:get_value(copy, Config), "uds_dist"),
    Command = lists:join(" ", as(User, User, []) ++ [Binary, "ping", Arguments]),
    Env = [{"UDS_DIST_DIR", proplists:get_value(tmp, Config)}, {"ERLANG_COOKIE", "uds_dist_test"}],
    test_project:output(lists:append(Command), #{env => Env}).

%% A sidecar that replaces a dead one uses the configured policy, and not the default.
a_new_sidecar_keeps_to_the_policy(Config) ->
    Alice = node_of(?ALICE, "alice", [{allowed_uids, [?BOB]}, {socket_mode, 8#666}], Config),
    Bob = node_of(?BOB, "bob", [{allowed_uids, any}], Config),
    Other = node_of(?ALICE, "other", [], Config),
    ok = test_node:signal("KILL", sidecar(Alice)),
    expect_output(Alice, "listening again at"),
    assert_kept_out(Other, Alice),
    assert_connects(Bob, Alice).

%% One line names the setting, and what is allowed.
settings_are_invalid(Config) ->
    Long = lists:seq(1, 251),
    [
        begin
            Options = #{name => "a", config => [{uds_dist, [Setting]}], args => ["-noinput"]},
            Node = test_node:launch(Options, Config),
            {Status, Output} = test_node:expect_exit(Node),
            ?assertNotEqual(0, Status),
            test_node:expect_output_of(Output, ["^uds_dist: cannot listen as a: ", Line]),
            ?assertMatch([_], [Found || "uds_dist: " ++ Found <- lines(Output)])
        end
     || {Setting, Line} <- [
            {{socket_mode, 8#1000}, "socket_mode 512 must be an integer from 0 to 8#777"},
            {{socket_mode, "0600"}, "socket_mode \"0600\" must be an integer"},
            {{allowed_uids, all}, "allowed_uids all must be own_user_and_root, any, or a list"},
            {{allowed_uids, [-1]}, "allowed_uids \\[-1\\] must be"},
            {{allowed_uids, [16#FFFFFFFF]}, "allowed_uids \\[4294967295\\] must be"},
            {{allowed_uids, ["alice"]}, "allowed_uids .*alice.* user numbers"},
            {{allowed_uids, [1 | 2]}, "allowed_uids \\[1\\|2\\] must be"},
            {{allowed_gids, any}, "allowed_gids any must be a list of at most 250 group numbers"},
            {{allowed_gids, Long}, "allowed_gids \\[1,2,.* must be a list of at most 250"},
            {{allowed_user, [1]}, "uds_dist has no setting allowed_user; it has .*allowed_uids"}
        ]
    ].

lines(Output) ->
    string:split(unicode:characters_to_list(Output), "\n", all).

%% ---------------------------------------------------------------------------------------------
%% Attacks

%% An allowed user connects 10 000 times. A node can connect meanwhile, and memory is the same afterwards.
a_flood_costs_little(Config) ->
    Alice = node_of(?ALICE, "alice", [], Config),
    Bob = node_of(?ALICE, "bob", [], Config),
    Socket = filename:join(proplists:get_value(tmp, Config), "alice.sock"),
    Before = memory(Alice),
    Self = self(),
    {Flood, Monitor} = spawn_monitor(fun() ->
        flood(Socket, 100),
        Self ! {self(), begun},
        flood(Socket, 9900)
    end),
    receive
        {Flood, begun} -> ok
    end,
    {Ms, true} = call(Bob, ?MODULE, timed_connect, [name(Alice)]),
    receive
        {'DOWN', Monitor, process, Flood, Reason} -> ?assertEqual(normal, Reason)
    end,
    true = call(Bob, net_kernel, disconnect, [name(Alice)]),
    {MsAfter, true} = call(Bob, ?MODULE, timed_connect, [name(Alice)]),
    After = expect(
        fun() ->
            Now = memory(Alice),
            case lists:all(fun({B, N}) -> N < B + (8 bsl 20) end, lists:zip(Before, Now)) of
                true -> {ok, Now};
                false -> Now
            end
        end,
        little_memory
    ),
    test_runner:note(
        "a node was in after ~b ms during the flood, ~b ms after it; "
        "bytes of [VM, sidecar]: ~w before, ~w after",
        [Ms, MsAfter, Before, After]
    ).

flood(_Socket, 0) ->
    ok;
flood(Socket, Left) ->
    case gen_tcp:connect({local, Socket}, 0, [local, binary, {active, false}]) of
        {ok, Client} -> ok = gen_tcp:close(Client);
        %% The backlog is full.
        {error, eagain} -> ok
    end,
    flood(Socket, Left - 1).

memory(Node) ->
    [call(Node, ?MODULE, memory, []), test_system:resident_kib(sidecar(Node)) * 1024].

%% Runs in a node: bytes in use after a garbage collection.
memory() ->
    lists:foreach(fun erlang:garbage_collect/1, processes()),
    erlang:memory(total).

%% It inherits neither descriptors of the VM nor its environment.
the_sidecar_gets_nothing_of_the_vm(Config) ->
    File = filename:join(dir(Config), "inherited"),
    ok = file:write_file(File, ""),
    %% Some names and values are not valid UTF-8.
    Script =
        "exec 9<" ++ File ++
            " && exec env \"$(printf 'N\\377=V\\377')\" SECRET=hidden UDS_DIST_LOG=debug \"$@\"",
    Options = #{after_prefix => ["/bin/sh", "-c", Script, "sh"]},
    Alice = node_of(?ALICE, ?ALICE, "alice", [], Options, Config),
    call(Alice, fun() ->
        {ok, _} = file:open(File, [read, raw]),
        {ok, _} = gen_tcp:listen(0, []),
        ok
    end),
    ?assertMatch([_ | _], [D || D <- test_node:descriptors(os_pid(Alice)), D =:= File]),
    Pid = sidecar(Alice),
    ?assertMatch(["UDS_DIST_LOG=debug", "UDS_DIST_SPIN=" ++ _], lists:sort(environment(Pid))),
    Descriptors = test_node:descriptors(Pid),
    test_runner:note("descriptors of the sidecar: ~p", [Descriptors]),
    Lock = filename:join(proplists:get_value(tmp, Config), "alice.sock.lock"),
    Kinds = [hd(string:split(D, ":")) || D <- Descriptors, D =/= Lock],
    %% stdin, stdout, stderr.
    ?assertEqual(3, length([pipe || "pipe" <- Kinds])),
    %% A socket pair for signals, and the listener.
    ?assertEqual(3, length([socket || "socket" <- Kinds])),
    ?assertEqual([], lists:usort(Kinds) -- ["pipe", "socket", "anon_inode"]),
    {ok, "/"} = file:read_link(proc(Pid, "cwd")),
    ?assertEqual([], test_node:tcp_listeners(Pid)).

%% The cookie is not in the sidecar's arguments, environment or files, and is never sent on a socket.
the_cookie_stays_in_the_vm(Config) ->
    Cookie = "a_very_secret_cookie",
    Options = #{
        cookie => Cookie,
        env => [{"ERLANG_COOKIE", Cookie}, {"RELEASE_COOKIE", Cookie}]
    },
    Alice = node_of(?ALICE, ?ALICE, "alice", [{allowed_uids, any}], Options, Config),
    Pid = sidecar(Alice),
    {ok, CommandLine} = read(proc(Pid, "cmdline")),
    ?assertMatch([_, <<>>], binary:split(CommandLine, <<0>>, [global])),
    ?assertMatch(["UDS_DIST_LOG=info", "UDS_DIST_SPIN=" ++ _], lists:sort(environment(Pid))),
    %% A process that connects to it and sends nothing receives nothing.
    Tmp = proplists:get_value(tmp, Config),
    {ok, Client} = connect(filename:join(Tmp, "alice.sock")),
    ?assertEqual({error, timeout}, gen_tcp:recv(Client, 0, 200)),
    %% A process that it connects to receives its name.
    Impostor = filename:join(Tmp, "bob.sock"),
    {ok, Listener} = gen_tcp:listen(0, [
        {ifaddr, {local, Impostor}}, binary, {active, false}
    ]),
    "" = os:cmd("chmod 666 " ++ Impostor),
    [_, Host] = string:split(atom_to_list(name(Alice)), "@"),
    Bob = list_to_atom("bob@" ++ Host),
    spawn(fun() -> call(Alice, net_kernel, connect_node, [Bob]) end),
    {ok, Called} = gen_tcp:accept(Listener, ?PROMPT),
    {ok, Said} = gen_tcp:recv(Called, 0, ?PROMPT),
    ?assertNotEqual(nomatch, binary:match(Said, atom_to_binary(name(Alice), utf8))),
    ?assertEqual(nomatch, binary:match(Said, list_to_binary(Cookie))),
    Written = unicode:characters_to_binary(test_node:output(Alice)),
    ?assertEqual(nomatch, binary:match(Written, list_to_binary(Cookie))),
    [
        ?assertEqual(nomatch, binary:match(Content, list_to_binary(Cookie)))
     || File <- filelib:wildcard(filename:join(Tmp, "*.lock")),
        {ok, Content} <- [file:read_file(File)]
    ].

connect(Socket) ->
    gen_tcp:connect({local, Socket}, 0, [local, binary, {active, false}]).

environment(Pid) ->
    {ok, Text} = read(proc(Pid, "environ")),
    [binary_to_list(Variable) || Variable <- binary:split(Text, <<0>>, [global, trim_all])].

proc(Pid, Name) ->
    filename:join(["/proc", integer_to_list(Pid), Name]).

%% Files of proc have size 0.
read(Path) ->
    {ok, File} = file:open(Path, [read, raw, binary]),
    Result = file:read(File, 65536),
    ok = file:close(File),
    case Result of
        eof -> {ok, <<>>};
        _ -> Result
    end.
