%% Nothing that happens to a sidecar, a VM or a name takes another VM down, hangs it, loses data silently, or
%% leaves files or processes behind. The tests use real nodes, processes and signals.
-module(resilience_SUITE).

-export([suite/0, all/0, groups/0, init_per_group/2, end_per_group/2]).
-export([init_per_testcase/2, end_per_testcase/2]).
%% Death of the sidecar.
-export([killed_sidecar_is_replaced/1, restarts_are_paced/1]).
-export([replaced_binary_is_taken_by_the_next_start/1, other_protocol_version_is_refused/1]).
%% End of the VM.
-export([sidecar_ends_with_its_idle_vm/1, sidecar_ends_with_its_flooding_vm/1]).
-export([halt_does_not_wait_for_a_stopped_peer/1, stop_does_not_wait_for_a_stopped_peer/1]).
-export([killed_together_is_taken_over/1, closed_port_is_opened_again/1]).
-export([sent_before_stop_arrives/1, sent_before_halt_arrives/1]).
%% Signals.
-export([signals_leave_connections_up/1, sigusr1_logs_a_table/1]).
%% Names.
-export([one_of_twenty_nodes_gets_the_name/1, full_backlog_is_not_stale/1]).
-export([file_or_directory_is_never_deleted/1]).
%% Run in the nodes.
-export([close_port/0, start_time/0]).

-include_lib("kernel/include/file.hrl").
-include_lib("stdlib/include/assert.hrl").

-define(LIMIT, 30000).
%% The recovery time that the README promises, in milliseconds.
-define(RECOVERY, 1000).
-define(OUTLIVES, 5000).
%% Time limit of an orderly end, whatever the peers do, in milliseconds.
-define(ORDERLY_END, 30000).
%% Size in bytes of the messages that flood a peer.
-define(FLOOD, 100000).

suite() ->
    test_node:suite().

all() ->
    test_node:transports().

groups() ->
    [
        {relay, [], [{group, sidecar_dies}, {group, vm_dies}, {group, signals}, {group, names}]},
        %% direct_SUITE shows that direct connections survive their sidecars.
        {direct, [], [{group, vm_dies}]},
        {sidecar_dies, [], [
            killed_sidecar_is_replaced,
            restarts_are_paced,
            replaced_binary_is_taken_by_the_next_start,
            other_protocol_version_is_refused
        ]},
        {vm_dies, [], [
            sidecar_ends_with_its_idle_vm,
            sidecar_ends_with_its_flooding_vm,
            halt_does_not_wait_for_a_stopped_peer,
            stop_does_not_wait_for_a_stopped_peer,
            killed_together_is_taken_over,
            closed_port_is_opened_again,
            sent_before_stop_arrives,
            sent_before_halt_arrives
        ]},
        {signals, [], [signals_leave_connections_up, sigusr1_logs_a_table]},
        {names, [], [
            one_of_twenty_nodes_gets_the_name,
            full_backlog_is_not_stale,
            file_or_directory_is_never_deleted
        ]}
    ].

init_per_group(Group, Config) ->
    test_node:init_group(Group, Config).

end_per_group(_Group, _Config) ->
    ok.

init_per_testcase(_Case, Config) ->
    test_node:init(Config).

end_per_testcase(_Case, Config) ->
    test_node:cleanup(Config).

%% ---------------------------------------------------------------------------------------------
%% Death of the sidecar

%% After kill -9, both sides report nodedown, no Erlang process is replaced, a new sidecar listens at the same
%% path within a second, and the nodes connect again, by a message and by connect_node.
killed_sidecar_is_replaced(Config) ->
    [A, B] = Nodes = pair(Config),
    Processes = test_node:call(A, test_load, owner_and_acceptor, []),
    lists:foreach(
        fun({Round, Reconnect}) ->
            Downs = [{Node, test_load:downs(Node)} || Node <- Nodes],
            Old = test_node:sidecar(A),
            ok = test_node:signal("KILL", Old),
            test_node:expect_listening(A, Old, Config),
            [ok = test_load:await_down(Node, Before) || {Node, Before} <- Downs],
            Took = recovery(Round, A),
            Start = test_node:call(A, ?MODULE, start_time, []),
            test_runner:note("a new sidecar listened ~b ms after the VM had missed the old one; to start a "
                   "program takes ~b ms now", [Took, Start]),
            ?assert(Took =< ?RECOVERY + 10 * Start),
            Reconnect(),
            test_node:expect_nodes(A, [test_node:name(B)]),
            test_node:expect_nodes(B, [test_node:name(A)])
        end,
        lists:enumerate([
            fun() -> true = connect(A, B) end,
            fun() -> true = connect(B, A) end,
            fun() -> ok = round_trip(A, B) end,
            fun() -> ok = round_trip(B, A) end
        ])
    ),
    Processes = test_node:call(A, test_load, owner_and_acceptor, []).

%% How long this VM takes to run the sidecar's binary without work, in milliseconds: a measure of the
%% machine's load.
start_time() ->
    {Time, "uds_dist_sidecar: " ++ _} = timer:tc(os, cmd, [uds_dist_program:path() ++ " - 2>&1"]),
    Time div 1000.

%% Milliseconds between the reports that the sidecar has ended and that a new one listens. (A measurement in
%% this VM would include the machine's load.)
recovery(Round, Node) ->
    test_node:expect_output(Node, io_lib:format("(?s:listening again at.*){~b}", [Round])),
    {match, Reports} = re:run(
        test_node:output(Node),
        "::(\\d+):(\\d+):(\\d+)\\.(\\d{3})\\d* ===\\suds_dist: (?:the sidecar|listening again)",
        [global, {capture, all_but_first, list}]
    ),
    Times = [
        ((Hour * 60 + Minute) * 60 + Second) * 1000 + Millisecond
     || Report <- Reports,
        [Hour, Minute, Second, Millisecond] <- [lists:map(fun list_to_integer/1, Report)]
    ],
    [Listening, Gone | _] = lists:reverse(Times),
    Day = 24 * 60 * 60 * 1000,
    (Listening - Gone + Day) rem Day.

%% A sidecar that ends as soon as it has started is restarted less and less often. One line reports that, and
%% another one that it is back, with the number of attempts. The VM continues.
restarts_are_paced(Config) ->
    Binary = test_node:own_sidecar(Config),
    A = test_node:start("a", #{env => [{"UDS_DIST_SIDECAR", Binary}]}, Config),
    Starts = filename:join(test_node:dir(Config), "starts"),
    test_node:replace_by_script(Binary, ["echo >>", Starts, "\nexit 3\n"]),
    ok = test_node:signal("KILL", test_node:sidecar(A)),
    Begin = test_system:now_ms(),
    test_node:expect(fun() -> filelib:file_size(Starts) >= 7 end, seven_starts),
    Took = test_system:now_ms() - Begin,
    %% The starts follow at once, and then after 25, 50, ... 800 ms.
    test_runner:note("7 starts took ~b ms", [Took]),
    true = Took >= 25 + 50 + 100 + 200 + 400 + 800,
    test_node:replace_binary(Binary),
    test_node:expect_output(A, "the sidecar is back, after [0-9]+ tries"),
    test_node:expect_listening(A, none, Config),
    1 = length(string:split(test_node:output(A), "exited with status 3", all)) - 1.

%% If the binary is replaced on disk, the next start uses the new one: an upgrade needs no restart of the
%% node.
replaced_binary_is_taken_by_the_next_start(Config) ->
    Binary = test_node:own_sidecar(Config),
    A = test_node:start("a", #{env => [{"UDS_DIST_SIDECAR", Binary}]}, Config),
    B = test_node:start("b", Config),
    ok = test_load:prepare(B),
    true = connect(A, B),
    Old = test_node:sidecar(A),
    {Binary, OldInode} = test_system:executable(Old),
    test_node:replace_binary(Binary),
    %% The running sidecar continues.
    ok = round_trip(A, B),
    {_, OldInode} = test_system:executable(Old),
    ok = test_node:signal("KILL", Old),
    test_node:expect_listening(A, Old, Config),
    {Binary, NewInode} = test_system:executable(test_node:sidecar(A)),
    true = NewInode =/= OldInode,
    ok = round_trip(B, A).

%% A binary with another version of the port protocol is refused with an explanation. The node runs without
%% connections until the right one is back.
other_protocol_version_is_refused(Config) ->
    Binary = test_node:own_sidecar(Config),
    A = test_node:start("a", #{env => [{"UDS_DIST_SIDECAR", Binary}]}, Config),
    B = test_node:start("b", Config),
    Processes = test_node:call(A, test_load, owner_and_acceptor, []),
    %% HELLO of src/port/protocol.rs, with version 99 and an empty release.
    Hello = "\\000\\000\\000\\017 \\000\\143\\0\\0\\0\\0\\000\\020\\0\\0\\0\\0\\100\\0",
    test_node:replace_by_script(Binary, ["printf '", Hello, "'\nexec cat\n"]),
    Old = test_node:sidecar(A),
    ok = test_node:signal("KILL", Old),
    [_, Path] = test_node:expect_output(
        A, "the sidecar (.*) did not start: it speaks version 99 of the port protocol, and this"
    ),
    Binary = binary_to_list(Path),
    Processes = test_node:call(A, test_load, owner_and_acceptor, []),
    false = connect(B, A),
    test_node:replace_binary(Binary),
    test_node:expect_listening(A, Old, Config),
    ok = round_trip(B, A).

%% ---------------------------------------------------------------------------------------------
%% End of the VM

%% However an idle VM ends, its sidecar ends too, and removes the socket and its lock file.
sidecar_ends_with_its_idle_vm(Config) ->
    B = test_node:start("b", Config),
    lists:foreach(
        fun(End) ->
            A = test_node:start("a", Config),
            true = connect(A, B),
            expect_end(End, A, Config),
            test_node:expect_nodes(B, [])
        end,
        [kill, halt, stop]
    ).

%% The same happens while megabytes are on their way to a stopped peer.
sidecar_ends_with_its_flooding_vm(Config) ->
    A = flooding_a_stopped_peer(Config),
    expect_end(kill, A, Config).

%% halt() returns in time, even if a stopped peer leaves megabytes unread.
halt_does_not_wait_for_a_stopped_peer(Config) ->
    A = flooding_a_stopped_peer(Config),
    expect_end(halt, A, Config).

%% init:stop() does so too.
stop_does_not_wait_for_a_stopped_peer(Config) ->
    A = flooding_a_stopped_peer(Config),
    expect_end(stop, A, Config).

flooding_a_stopped_peer(Config) ->
    [A, B] = pair(Config),
    ok = test_load:start_sink(B),
    ok = test_node:signal("STOP", [test_node:sidecar(B), test_node:os_pid(B)]),
    ok = test_load:start_flood(A, B, 8, ?FLOOD),
    ok = test_load:await_suspended(A),
    case test_node:transport(Config) of
        relay -> expect_waiting_bytes(A);
        direct -> ok
    end,
    A.

%% Waits until the sidecar holds at least one message that the peer does not read.
expect_waiting_bytes(Node) ->
    ok = test_node:signal("USR1", test_node:sidecar(Node)),
    [_, Waiting] = test_node:expect_output(Node, "out, (\\d+) wait for the peer"),
    ct:log("~s bytes wait in the sidecar", [Waiting]),
    true = binary_to_integer(Waiting) >= ?FLOOD.

expect_end(How, A, Config) ->
    OsPid = test_node:os_pid(A),
    Sidecar = test_node:sidecar(A),
    Path = test_node:socket(A, Config),
    true = test_system:is_listening(Path),
    case How of
        kill -> ok = test_node:signal("KILL", OsPid);
        halt -> ok = test_load:cast(A, erlang, halt, []);
        stop -> ok = test_load:cast(A, init, stop, [])
    end,
    {ok, VmTook} = test_system:await_end(OsPid, ?ORDERLY_END),
    {ok, SidecarTook} = test_system:await_end(Sidecar, ?OUTLIVES),
    test_runner:note("~p: the VM took ~b ms, its sidecar ~b ms more", [How, VmTook, SidecarTook]),
    [] = left_in(Config, "a").

%% If both are killed together, the socket file is left. The next node with the name takes it over.
killed_together_is_taken_over(Config) ->
    [A, B] = pair(Config),
    leave_stale_socket(A, Config),
    test_node:expect_nodes(B, []),
    Next = test_node:start("a", Config),
    true = connect(B, Next),
    ok = test_node:stop(Next),
    [] = left_in(Config, "a").

%% Kills VM and sidecar at once, as the OOM killer or a power failure would.
leave_stale_socket(A, Config) ->
    Sidecar = test_node:sidecar(A),
    OsPid = test_node:os_pid(A),
    %% Both are stopped first, because each of them would notice the end of the other.
    ok = test_node:signal("STOP", OsPid),
    ok = test_node:signal("KILL", Sidecar),
    {ok, _} = test_system:await_end(Sidecar, ?LIMIT),
    ok = test_node:signal("KILL", OsPid),
    {ok, _} = test_system:await_end(OsPid, ?LIMIT),
    ["a.sock", "a.sock.lock"] = left_in(Config, "a").

%% The port is closed. The sidecar ends, even if a peer is stopped and megabytes are on their way to it, and
%% another one listens at the same path.
closed_port_is_opened_again(Config) ->
    A = flooding_a_stopped_peer(Config),
    Processes = test_node:call(A, test_load, owner_and_acceptor, []),
    Old = test_node:sidecar(A),
    ok = test_load:cast(A, ?MODULE, close_port, []),
    {ok, Took} = test_system:await_end(Old, ?LIMIT),
    test_node:expect_listening(A, Old, Config),
    Processes = test_node:call(A, test_load, owner_and_acceptor, []),
    true = Took =< ?OUTLIVES.

%% init:stop() delivers everything that the VM has written, in order.
sent_before_stop_arrives(Config) ->
    expect_sent_arrives(init, stop, Config).

%% halt() does so too. From then on, no process writes any more.
sent_before_halt_arrives(Config) ->
    expect_sent_arrives(erlang, halt, Config).

expect_sent_arrives(Module, Function, Config) ->
    [A, B] = pair(Config),
    ok = test_load:start_ledger(B),
    %% Several windows, so that the pipe, both sidecars and the socket are full at the end.
    Count = 5000,
    ok = test_load:send_numbered(A, B, Count, 1000),
    ok = test_load:await_sent(A, B),
    ok = test_load:cast(A, Module, Function, []),
    {ok, _} = test_system:await_end(test_node:os_pid(A), ?ORDERLY_END),
    test_node:expect_nodes(B, []),
    Expected = lists:seq(1, Count),
    Expected = test_load:ledger(B).

%% ---------------------------------------------------------------------------------------------
%% Signals

%% systemd signals every process of a service at once. Only the VM may decide when the sidecar ends.
signals_leave_connections_up(Config) ->
    [A, B] = pair(Config),
    Sidecar = test_node:sidecar(A),
    ok = test_node:call(A, logger, set_primary_config, [level, info]),
    lists:foreach(
        fun({Signal, Logged}) ->
            ok = test_node:signal(Signal, Sidecar),
            test_node:expect_output(A, [Logged, ": continuing until the VM ends"]),
            ok = round_trip(A, B)
        end,
        [{"TERM", "SIGTERM"}, {"INT", "SIGINT"}, {"HUP", "SIGHUP"}]
    ),
    ok = test_node:signal("PIPE", Sidecar),
    ok = round_trip(A, B),
    [0 = test_load:downs(Node) || Node <- [A, B]],
    Sidecar = test_node:sidecar(A).

%% SIGUSR1 makes the sidecar log its connections, with peer nodes and byte counts.
sigusr1_logs_a_table(Config) ->
    [A, B] = pair(Config),
    ok = test_node:signal("USR1", test_node:sidecar(A)),
    [_, Bytes] = test_node:expect_output(A, [
        "(?s)1 connections, 0 in handshake, 0 handed over so far.*to ",
        atom_to_list(test_node:name(B)),
        " uid \\d+ gid \\d+ pid \\d+, \\d+ s old: (\\d+) bytes in, \\d+ out, 0 wait for the peer, ",
        "\\d+ of the window of \\d+ for the VM"
    ]),
    true = binary_to_integer(Bytes) > 0.

%% ---------------------------------------------------------------------------------------------
%% Names

%% Twenty VMs start at the same instant with the same name, and with the socket file of a dead node. One gets
%% the name and can be reached; the others report that the name is in use. (test/ownership_race.rs has many
%% more rounds, with sidecars only.)
one_of_twenty_nodes_gets_the_name(Config) ->
    Probe = test_node:start("probe", Config),
    Dead = test_node:start("a", Config),
    leave_stale_socket(Dead, Config),
    lists:foreach(
        fun(_Round) ->
            Winner = race(Probe, test_node:name(Dead), Config),
            leave_stale_socket(Winner, Config),
            test_node:expect_nodes(Probe, [])
        end,
        lists:seq(1, 2)
    ).

race(Probe, Name, Config) ->
    Started = [
        test_node:launch(
            #{name => "a", args => ["-noinput"], env => [{"ERL_CRASH_DUMP_SECONDS", "0"}]},
            Config
        )
     || _ <- lists:seq(1, 20)
    ],
    test_node:expect(
        fun() -> test_node:call(Probe, net_kernel, connect_node, [Name]) end, reachable
    ),
    OsPid = list_to_integer(test_node:call(Probe, erpc, call, [Name, os, getpid, []])),
    {[Winner], Losers} = lists:partition(
        fun(Node) -> test_node:os_pid(Node) =:= OsPid end, Started
    ),
    lists:foreach(
        fun(Node) ->
            {Status, Output} = test_node:expect_exit(Node),
            true = Status =/= 0,
            test_node:expect_output_of(Output, "cannot listen as a: the name is in use"),
            test_node:expect_output_of(Output, "seems to be in use by another Erlang node")
        end,
        Losers
    ),
    pong = test_node:call(Probe, net_adm, ping, [Name]),
    true = test_node:is_alive(OsPid),
    Winner.

%% A socket whose backlog is full has a live owner.
full_backlog_is_not_stale(Config) ->
    Path = filename:join(test_node:dir(Config), "a.sock"),
    {ok, Listener} = socket:open(local, stream),
    ok = socket:bind(Listener, #{family => local, path => Path}),
    ok = socket:listen(Listener, 0),
    Clients = fill_backlog(Path, []),
    {ok, #file_info{inode = Inode}} = file:read_link_info(Path),
    {Status, Output} = refused(Config),
    true = Status =/= 0,
    test_node:expect_output_of(Output, "cannot listen as a: the name is in use"),
    test_node:expect_output_of(Output, "seems to be in use by another Erlang node"),
    {ok, #file_info{type = other, inode = Inode}} = file:read_link_info(Path),
    [ok = socket:close(Socket) || Socket <- [Listener | Clients]].

fill_backlog(Path, Clients) ->
    {ok, Client} = socket:open(local, stream),
    case socket:connect(Client, #{family => local, path => Path}, nowait) of
        ok ->
            fill_backlog(Path, [Client | Clients]);
        %% The socket module cannot tell a full backlog from a connect in progress.
        Full ->
            ct:log("~b connections fill the backlog: ~p", [length(Clients), Full]),
            [Client | Clients]
    end.

%% Anything that is not a socket causes an error, and is not removed.
file_or_directory_is_never_deleted(Config) ->
    Path = filename:join(test_node:dir(Config), "a.sock"),
    lists:foreach(
        fun({Make, Remove}) ->
            ok = Make(),
            {Status, Output} = refused(Config),
            true = Status =/= 0,
            test_node:expect_output_of(
                Output, "cannot listen as a: .*/a.sock is in the way and is not a socket"
            ),
            %% This fails if it was removed.
            ok = Remove()
        end,
        [
            {fun() -> file:write_file(Path, "data") end, fun() ->
                {ok, <<"data">>} = file:read_file(Path),
                file:delete(Path)
            end},
            {fun() -> file:make_dir(Path) end, fun() -> file:del_dir(Path) end}
        ]
    ),
    [] = left_in(Config, "a").

refused(Config) ->
    Env = [{"ERL_CRASH_DUMP_SECONDS", "0"}],
    test_node:expect_exit(
        test_node:launch(#{name => "a", args => ["-noinput"], env => Env}, Config)
    ).

%% ---------------------------------------------------------------------------------------------

%% Two connected nodes, which count their connections that go down and answer round trips.
pair(Config) ->
    [A, B] = Nodes = [test_node:start(Name, Config) || Name <- ["a", "b"]],
    [ok = test_load:prepare(Node) || Node <- Nodes],
    true = connect(A, B),
    test_node:expect_nodes(B, [test_node:name(A)]),
    Nodes.

connect(From, To) ->
    test_node:call(From, net_kernel, connect_node, [test_node:name(To)]).

round_trip(From, To) ->
    Name = test_node:name(To),
    Name = test_node:call(From, erpc, call, [Name, erlang, node, []]),
    ok.

%% The socket and lock files of a name.
left_in(Config, Name) ->
    {ok, Files} = file:list_dir(test_node:dir(Config)),
    lists:sort([File || File <- Files, lists:prefix(Name ++ ".sock", File)]).

%% ---------------------------------------------------------------------------------------------
%% In the nodes

close_port() ->
    Owner = test_load:owner(),
    [Port] = [
        Port
     || Port <- erlang:ports(),
        erlang:port_info(Port, connected) =:= {connected, Owner}
    ],
    port_close(Port).
