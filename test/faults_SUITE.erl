%% Faults in the middle of an operation: a change of settings that fails halfway, a sidecar that dies or is
%% stopped during a request of the VM, a peer that disconnects right after connecting, code that is reloaded.
%% Connections, names and the VM survive all of them.
-module(faults_SUITE).

-export([suite/0, all/0, groups/0, init_per_group/2, end_per_group/2]).
-export([init_per_testcase/2, end_per_testcase/2]).
%% Changes of settings.
-export([failed_change_at_the_same_address_keeps_the_listener/1]).
-export([sidecar_killed_in_the_middle_of_a_change_keeps_the_listener/1]).
-export([changes_at_the_same_time_all_succeed/1]).
%% Sidecars that die or are stopped.
-export([stopped_sidecar_with_full_pipe_does_not_suspend_the_owner/1]).
-export([distribution_stops_in_time_with_a_stopped_sidecar/1]).
-export([sidecar_of_a_node_without_its_name_stays_up/1]).
-export([name_that_was_taken_meanwhile_is_taken_back/1]).
%% Connections.
-export([message_before_an_immediate_disconnect_arrives/1]).
-export([message_before_the_end_of_the_handshake_arrives/1]).
-export([reloaded_code_keeps_connections/1]).
%% Names, and nodes that do not answer.
-export([long_names_in_the_directory_are_no_error/1]).
-export([silent_listeners_are_probed_at_the_same_time/1]).
%% A node without `direct`.
-export([relay_prepares_nothing_for_direct/1]).
%% Run in the nodes.
-export([reconfigure/1, configure_twice/0, is_configuring/1, reload/0]).

-import(test_node, [
    start/2,
    start/3,
    start_all/2,
    start_all/3,
    call/4,
    call/5,
    name/1,
    os_pid/1,
    sidecar/1,
    dir/1,
    expect/2,
    expect_nodes/2,
    expect_output/2
]).

-include_lib("kernel/include/file.hrl").
-include_lib("stdlib/include/assert.hrl").

%% Time limit, in milliseconds, for an answer of a process that is not blocked, on a busy machine.
-define(PROMPT, 5000).
%% Time limit, in milliseconds, for the end of distribution, whatever the sidecar does. net_kernel and net_sup
%% have limits of 2 s.
-define(ORDERLY_END, 15000).
%% Number of repetitions for an operation that fails only now and then.
-define(OFTEN, 200).

suite() ->
    test_node:suite().

all() ->
    test_node:transports().

groups() ->
    [
        {relay, [], test_node:cases(?MODULE) -- (of_direct_alone() ++ run_in_nodes())},
        {direct, [], of_direct_alone() ++ of_connections()}
    ].

run_in_nodes() ->
    [reconfigure, is_configuring].

of_direct_alone() ->
    [name_that_was_taken_meanwhile_is_taken_back].

of_connections() ->
    [
        message_before_an_immediate_disconnect_arrives,
        message_before_the_end_of_the_handshake_arrives,
        reloaded_code_keeps_connections
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
%% Changes of settings

%% The old socket has to be removed before the new one can be made, and making the new one fails. The node
%% listens again with its old settings as soon as it can.
failed_change_at_the_same_address_keeps_the_listener(Config) ->
    [A, B] = start_all(["a", "b"], #{args => test_node:on_demand()}, Config),
    lists:foreach(
        fun(Settings) ->
            %% No socket is made in a directory where everybody may replace files.
            ok = file:change_mode(dir(Config), 8#777),
            {error, _} = call(A, ?MODULE, reconfigure, [Settings]),
            ok = file:change_mode(dir(Config), 8#700),
            expect_reachable(A, B),
            {ok, #file_info{mode = Mode}} = file:read_link_info(test_node:socket(A, Config)),
            ?assertEqual(8#600, Mode band 8#777),
            %% The next sidecar also listens with the old settings.
            Old = sidecar(A),
            test_node:signal("KILL", Old),
            test_node:expect_listening(A, Old, Config),
            expect_reachable(A, B)
        end,
        [[{backlog, 9}], [{socket_mode, 8#660}]]
    ).

%% The sidecar dies before it answers. Another one listens, whatever becomes of the change.
sidecar_killed_in_the_middle_of_a_change_keeps_the_listener(Config) ->
    [A, B] = start_all(["a", "b"], #{args => test_node:on_demand()}, Config),
    lists:foreach(
        fun(Settings) ->
            Old = sidecar(A),
            test_node:signal("STOP", Old),
            ok = test_load:cast(A, ?MODULE, reconfigure, [Settings]),
            expect(fun() -> call(A, ?MODULE, is_configuring, [1]) end, configuring),
            test_node:signal("KILL", Old),
            test_node:expect_listening(A, Old, Config),
            expect_reachable(A, B),
            expect(fun() -> call(A, ?MODULE, is_configuring, [0]) end, configured)
        end,
        [[{backlog, 9}], [{socket_mode, 8#660}]]
    ).

%% Two processes start the application at the same time, while the listener moves. Neither of them finds that
%% the node itself uses the name.
changes_at_the_same_time_all_succeed(Config) ->
    [Before, After] = [test_node:dir(Name, Config) || Name <- ["before", "after"]],
    A = start("a", #{dir => none, cwd => Before}, Config),
    ok = call(A, application, set_env, [uds_dist, socket_dir, After]),
    Sidecar = sidecar(A),
    test_node:signal("STOP", Sidecar),
    Self = self(),
    Caller = spawn_link(fun() -> Self ! {self(), call(A, ?MODULE, configure_twice, [])} end),
    expect(fun() -> call(A, ?MODULE, is_configuring, [2]) end, both_configuring),
    test_node:signal("CONT", Sidecar),
    receive
        {Caller, Results} -> ?assertEqual([ok, ok], Results)
    end,
    ?assertEqual([], filelib:wildcard("*.sock", Before)),
    ?assertEqual(["a.sock"], filelib:wildcard("*.sock", After)),
    B = start("b", #{dir => After}, Config),
    expect_reachable(A, B).

%% ---------------------------------------------------------------------------------------------
%% Sidecars that die or are stopped

%% Messages on several connections fill the pipe to the sidecar, and then the owner has to send it a command.
stopped_sidecar_with_full_pipe_does_not_suspend_the_owner(Config) ->
    A = start("a", Config),
    Sidecar = stop_and_fill(A, Config),
    Owner = call(A, test_load, owner, []),
    ?assertMatch({status, _, _, _}, call(A, sys, get_status, [Owner, ?PROMPT])),
    ok = test_load:cast(A, net_kernel, connect_node, ['nobody@nowhere']),
    [
        ?assertMatch({status, _, _, _}, call(A, sys, get_status, [Owner, ?PROMPT]))
     || _ <- lists:seq(1, 10)
    ],
    %% It works as before after that.
    test_node:signal("CONT", Sidecar),
    D = start("d", Config),
    expect(fun() -> ping(D, A) =:= pong end, connected).

%% net_kernel:stop/0 returns within its time limit, and the VM continues.
distribution_stops_in_time_with_a_stopped_sidecar(Config) ->
    A = start(undefined, Config),
    Start = [a, #{name_domain => shortnames}],
    {ok, _} = call(A, net_kernel, start, Start),
    true = call(A, erlang, set_cookie, [uds_dist_test]),
    Named = A#{name => call(A, erlang, node, [])},
    Sidecar = stop_and_fill(Named, Config),
    ok = test_load:cast(A, net_kernel, connect_node, ['nobody@nowhere']),
    ok = call(A, net_kernel, stop, [], ?ORDERLY_END),
    expect(fun() -> call(A, erlang, is_alive, []) =:= false end, stopped),
    expect_output(A, "the sidecar did not confirm that it stopped listening; it may be stopped"),
    ?assertEqual(nomatch, re:run(test_node:output(A), "CRASH REPORT")),
    test_node:signal("CONT", Sidecar),
    {ok, _} = test_system:await_end(Sidecar, ?ORDERLY_END),
    {ok, _} = call(A, net_kernel, start, Start),
    true = call(A, erlang, set_cookie, [uds_dist_test]),
    expect_reachable(Named, start("d", Config)).

%% Stops the sidecar of a node that sends to two others, until all senders are suspended: the messages exceed
%% what the pipe holds.
stop_and_fill(A, Config) ->
    Others = start_all(["b", "c"], Config),
    [ok = test_load:prepare(Node) || Node <- [A | Others]],
    [true = call(A, net_kernel, connect_node, [name(Node)]) || Node <- Others],
    [ok = test_load:start_sink(Node) || Node <- Others],
    Sidecar = sidecar(A),
    test_node:signal("STOP", Sidecar),
    [
        begin
            ok = test_load:start_flood(A, Node, 8, 100000),
            ok = test_load:await_suspended(A)
        end
     || Node <- Others
    ],
    Sidecar.

%% Another node has the name, and each new sidecar dies while the VM waits for its next attempt. Once the
%% sidecars are left alone and the name is free, the sidecar stays up.
sidecar_of_a_node_without_its_name_stays_up(Config) ->
    Binary = test_node:own_sidecar(Config),
    A = start("a", #{env => [{"UDS_DIST_SIDECAR", Binary}]}, Config),
    %% It starts so slowly that an attempt of the VM may fall into the start.
    Slow = ["sleep 1.2\nexec ", uds_dist_program:path(), " \"$@\"\n"],
    test_node:replace_by_script(Binary, Slow),
    Other = take_name(A, Config),
    First = next_sidecar(none, A),
    Last = lists:foldl(
        fun(_, Sidecar) ->
            %% Time for an attempt in which the VM is refused the name.
            pause(300),
            test_node:signal("KILL", Sidecar),
            next_sidecar(Sidecar, A)
        end,
        First,
        lists:seq(1, 5)
    ),
    stays(Last, 3000, A),
    ?assertMatch([_], lines("cannot listen again", A)),
    test_node:stop(Other),
    test_node:expect_listening(A, none, Config),
    stays(Last, 4000, A),
    expect_reachable(A, start("b", Config)).

%% The process of the next sidecar, once the script has executed the real program.
next_sidecar(Old, A) ->
    {ok, #file_info{inode = Inode}} = file:read_file_info(uds_dist_program:path()),
    expect(
        fun() ->
            case [Pid || Pid <- test_node:sidecars(os_pid(A)), Pid =/= Old] of
                [Pid] ->
                    case test_system:executable(Pid) of
                        {_, Inode} -> {ok, Pid};
                        Script -> Script
                    end;
                Others ->
                    Others
            end
        end,
        next_sidecar
    ).

%% Checks that the sidecar does not change for this time in milliseconds.
stays(Sidecar, Time, Node) ->
    pause(Time),
    ?assertEqual([Sidecar], test_node:sidecars(os_pid(Node))).

lines(Text, Node) ->
    Lines = string:split(unicode:characters_to_list(test_node:output(Node)), "\n", all),
    [Line || Line <- Lines, string:find(Line, Text) =/= nomatch].

%% While the node had no sidecar, another VM has taken its name, so there are two nodes with that name. The
%% first one keeps its connections, logs who has the name, and takes it back when the other one ends.
name_that_was_taken_meanwhile_is_taken_back(Config) ->
    [A, B] = start_all(["a", "b"], #{args => test_node:on_demand()}, Config),
    [ok = test_load:prepare(Node) || Node <- [A, B]],
    true = call(A, net_kernel, connect_node, [name(B)]),
    ok = call(A, test_traffic, round_trips, [name(B), 1, 0]),
    Other = take_name(A, Config),
    expect_output(A, [
        "uds_dist: cannot listen again at .*/a\\.sock.* in use by process ",
        integer_to_list(os_pid(Other)),
        "\\b"
    ]),
    ok = call(A, test_traffic, round_trips, [name(B), 100, 1000]),
    ok = call(B, test_traffic, round_trips, [name(A), 100, 1000]),
    test_node:stop(Other),
    expect_output(A, "uds_dist: listening again at .*/a\\.sock"),
    test_node:expect_listening(A, none, Config),
    ok = call(B, test_traffic, round_trips, [name(A), 100, 1000]),
    ?assertEqual([0, 0], [test_load:downs(Node) || Node <- [A, B]]),
    C = start("c", #{args => test_node:on_demand()}, Config),
    expect(fun() -> call(C, net_kernel, connect_node, [name(A)]) end, reachable).

%% Starts another VM with the name of a VM whose sidecar is dead and which is stopped.
take_name(A, Config) ->
    Sidecar = sidecar(A),
    test_node:signal("STOP", os_pid(A)),
    test_node:signal("KILL", Sidecar),
    {ok, _} = test_system:await_end(Sidecar, ?PROMPT),
    Other = start("a", #{args => test_node:on_demand()}, Config),
    test_node:signal("CONT", os_pid(A)),
    Other.

%% ---------------------------------------------------------------------------------------------
%% Connections

%% A peer sends a message as soon as the handshake is complete, and disconnects.
message_before_an_immediate_disconnect_arrives(Config) ->
    Say = fun(Socket, Peer, Message) ->
        ok = test_peer:shake_hands(Socket, Peer),
        ok = socket:send(Socket, Message),
        ok = socket:close(Socket)
    end,
    everything_is_heard(Say, Config).

%% The peer sends everything before it has seen the end of the handshake: its messages and its end have
%% arrived when the node first looks at the connection.
message_before_the_end_of_the_handshake_arrives(Config) ->
    Say = fun(Socket, Peer, Message) ->
        Answer = test_peer:answer_challenge(Socket, Peer),
        ok = socket:send(Socket, [Answer, Message]),
        ok = socket:shutdown(Socket, write),
        ok = test_peer:await_end(Socket),
        ok = socket:close(Socket)
    end,
    everything_is_heard(Say, Config).

everything_is_heard(Say, Config) ->
    Hub = start("hub", Config),
    ok = test_load:start_ledger(Hub),
    Numbers = lists:seq(4, 3 + ?OFTEN),
    [
        begin
            Peer = #{name => iolist_to_binary(io_lib:format("peer~b@host", [I])), number => I},
            Say(test_peer:connect("hub", Config), Peer, message(I, Peer))
        end
     || I <- Numbers
    ],
    expect_nodes(Hub, []),
    expect(
        fun() ->
            case Numbers -- test_load:ledger(Hub) of
                [] -> true;
                Missing -> {missing, length(Missing), Missing}
            end
        end,
        all_messages
    ).

message(I, Peer) ->
    test_peer:message(Peer, ledger, {number, I, <<>>}).

%% Code is reloaded, as by rebar3's shell or a relup. Neither busy nor idle connections are lost, and later
%% calls of the kernel still work.
reloaded_code_keeps_connections(Config) ->
    [A, B, C] = Nodes = start_all(["a", "b", "c"], #{args => test_node:on_demand()}, Config),
    [ok = test_load:prepare(Node) || Node <- Nodes],
    [true = call(A, net_kernel, connect_node, [name(Node)]) || Node <- [B, C]],
    [ok = call(A, test_traffic, round_trips, [name(Node), 1, 0]) || Node <- [B, C]],
    [
        ok = test_load:start_traffic(Node, Other, Size)
     || {Node, Other} <- [{A, B}, {B, A}], Size <- [16, 100000]
    ],
    Processes = [processes_of(Node) || Node <- Nodes],
    [
        begin
            [ok = call(Node, ?MODULE, reload, []) || Node <- Nodes],
            [ok = test_load:expect_traffic(Node) || Node <- [A, B]]
        end
     || _ <- lists:seq(1, 4)
    ],
    ?assertEqual(Processes, [processes_of(Node) || Node <- Nodes]),
    [
        begin
            ?assertEqual({ok, []}, call(From, net_kernel, getopts, [name(To), [nodelay]])),
            ?assertEqual(
                {error, enotsup}, call(From, net_kernel, setopts, [name(To), [{nodelay, true}]])
            )
        end
     || {From, To} <- [{A, B}, {A, C}, {B, A}, {C, A}]
    ],
    [ok = call(C, test_traffic, round_trips, [name(A), 10, Size]) || Size <- [100, 1 bsl 20]],
    [ok = test_load:expect_traffic(Node) || Node <- [A, B]],
    ?assertEqual([0, 0, 0], [test_load:downs(Node) || Node <- Nodes]),
    %% New connections work too.
    true = call(B, net_kernel, connect_node, [name(C)]),
    ok = call(B, test_traffic, round_trips, [name(C), 10, 1000]).

processes_of(Node) ->
    {
        call(Node, test_load, owner_and_acceptor, []),
        lists:sort(call(Node, test_load, controllers, []))
    }.

%% ---------------------------------------------------------------------------------------------
%% Names

%% A name that is too long for the address of a socket is not the name of a node.
long_names_in_the_directory_are_no_error(Config) ->
    A = start("a", Config),
    Name = lists:duplicate(120, $x) ++ ".sock",
    ok = file:write_file(filename:join(dir(Config), Name), ""),
    ?assertEqual({ok, ["a"]}, call(A, uds_dist, names, [])),
    ?assertEqual({ok, ["a"]}, call(A, uds_dist, names, [dir(Config)])),
    %% In a directory with a long path, no address is short enough.
    Deep = test_node:dir(lists:duplicate(120, $d), Config),
    ok = file:write_file(filename:join(Deep, "b.sock"), ""),
    ?assertEqual({ok, []}, call(A, uds_dist, names, [Deep])).

%% A socket whose backlog is full has a live owner, which may never answer.
silent_listeners_are_probed_at_the_same_time(Config) ->
    A = start("a", Config),
    Silent = ["silent" ++ integer_to_list(I) || I <- lists:seq(1, 8)],
    Sockets = lists:append([full_listener(Name, Config) || Name <- Silent]),
    {Time, Names} = timer:tc(fun() -> call(A, uds_dist, names, []) end),
    ct:log("~b ms", [Time div 1000]),
    ?assertEqual({ok, ["a" | Silent]}, Names),
    ?assert(Time < 3000000),
    [ok = socket:close(Socket) || Socket <- Sockets].

full_listener(Name, Config) ->
    Address = #{family => local, path => filename:join(dir(Config), Name ++ ".sock")},
    {ok, Listener} = socket:open(local, stream),
    ok = socket:bind(Listener, Address),
    ok = socket:listen(Listener, 0),
    [Listener | fill(Address)].

fill(Address) ->
    {ok, Client} = socket:open(local, stream),
    case socket:connect(Client, Address, nowait) of
        ok -> [Client | fill(Address)];
        %% The socket module cannot tell a full backlog from a connect in progress.
        _ -> [Client]
    end.

%% ---------------------------------------------------------------------------------------------
%% A node without `direct`

%% No channel, no argument with the VM's process id, and no module that only `direct` needs.
relay_prepares_nothing_for_direct(Config) ->
    [A, B] = start_all(["a", "b"], Config),
    pong = ping(A, B),
    Sidecar = sidecar(A),
    CommandLine = test_system:command_line(Sidecar),
    ?assertEqual(nomatch, string:find(CommandLine, integer_to_list(os_pid(A)))),
    ?assertMatch([_], test_node:listeners(Sidecar)),
    ?assertEqual(false, call(A, code, is_loaded, [socket])).

%% ---------------------------------------------------------------------------------------------

ping(From, To) ->
    call(From, net_adm, ping, [name(To)]).

%% Checks that the first node can be reached, by a new connection of the second one.
expect_reachable(Node, From) ->
    _ = call(From, erlang, disconnect_node, [name(Node)]),
    expect(fun() -> call(From, net_kernel, connect_node, [name(Node)]) end, {reachable, Node}).

%% Waits for a fixed time. The time is part of the test, because it shows that something does not happen.
pause(Time) ->
    receive
    after Time -> ok
    end.

%% ---------------------------------------------------------------------------------------------
%% In the nodes

%% Changes settings, and starts the application, which applies them.
reconfigure(Settings) ->
    _ = application:stop(uds_dist),
    [ok = application:set_env(uds_dist, Key, Value) || {Key, Value} <- Settings],
    application:start(uds_dist).

%% Two processes do what the start of the application does. Only one of them could start its supervisor.
configure_twice() ->
    Self = self(),
    Processes = [
        spawn_link(fun() ->
            Result =
                case uds_dist_app:start(normal, []) of
                    {ok, _} -> ok;
                    {error, {already_started, _}} -> ok;
                    Other -> Other
                end,
            Self ! {self(), Result},
            receive
                done -> ok
            end
        end)
     || _ <- [1, 2]
    ],
    Results = [
        receive
            {Process, Result} -> Result
        end
     || Process <- Processes
    ],
    _ = [Process ! done || Process <- Processes],
    Results.

%% Whether Count processes wait for the owner to answer the start of the application, and the owner has
%% received their calls.
is_configuring(Count) ->
    Waiting = [
        Pid
     || Pid <- processes(),
        {current_stacktrace, Stack} <- [process_info(Pid, current_stacktrace)],
        lists:keymember(uds_dist_app, 1, Stack),
        {status, waiting} <- [process_info(Pid, status)]
    ],
    _ = sys:get_state(test_load:owner()),
    length(Waiting) =:= Count orelse {waiting, length(Waiting)}.

%% Loads each module once. A second time would kill processes that still run the code before the previous
%% version.
reload() ->
    _ = application:load(uds_dist),
    {ok, Modules} = application:get_key(uds_dist, modules),
    lists:foreach(
        fun(Module) ->
            _ = code:purge(Module),
            {module, Module} = code:load_file(Module)
        end,
        Modules
    ).
