%% The owner of the port, uds_dist_port, with a scripted sidecar: packets that are late, wrong, truncated,
%% missing or unexpected. Whatever the sidecar does, the owner does not exit, every caller gets an answer, and
%% restarts and log lines keep to their backoff.
-module(owner_SUITE).

-export([suite/0, all/0, groups/0, init_per_testcase/2, end_per_testcase/2]).
-export([
    hello_may_be_late/1,
    sidecar_without_hello_is_given_up/1,
    hello_of_another_version_is_refused/1,
    first_packet_must_be_hello/1,
    hello_without_a_window_is_refused/1,
    garbage_ends_the_sidecar/1,
    answer_without_a_question_ends_the_sidecar/1,
    number_in_use_ends_the_sidecar/1,
    truncated_packet_is_rejected/1
]).
-export([
    end_before_the_listener_is_open/1,
    end_while_listening/1,
    end_in_a_move_at_the_same_address/1,
    end_in_a_move_to_another_address/1,
    end_with_connections/1,
    lost_listener_is_opened_again/1,
    deaths_do_not_multiply_attempts_to_listen/1,
    close_ends_a_move/1,
    starts_keep_to_the_backoff/1,
    missing_program_is_retried_with_a_backoff/1
]).
-export([
    full_pipe_does_not_stop_the_owner/1,
    suspended_input_handler_does_not_stop_the_owner/1,
    handshake_packets_are_delivered_before_the_end/1,
    refusal_by_a_node_is_logged_once/1,
    ends_of_handshakes_are_explained/1,
    random_reports_are_survived/1
]).
-export([
    mistake_about_a_call_is_that_callers/1,
    mistake_about_a_connection_ends_that_one/1,
    controller_that_does_not_start_leaves_no_input_handler/1,
    mistake_about_the_listener_answers_who_waits_for_it/1,
    mistake_about_a_timer_does_not_end_the_retries/1,
    mistake_about_the_status_leaves_it_unknown/1,
    mistake_about_the_sidecar_ends_that/1,
    mistake_in_a_mistake_answers_everybody/1
]).
-export([
    frames_after_the_handshake_are_delivered_before_the_end/1,
    nodes_go_down_with_the_sidecar/1,
    suspended_input_handler_stops_no_other_connection/1,
    stopped_sidecar_does_not_stop_the_owner/1
]).
-export([
    failed_channel_means_relay/1,
    failed_channel_is_asked_for_again/1,
    node_that_is_not_handed_over_is_relayed/1,
    socket_that_does_not_arrive_ends_that_connection/1,
    end_of_a_connection_crosses_its_handover/1,
    end_of_the_sidecar_during_a_handover/1,
    first_read_comes_whatever_is_before_it/1
]).
-export([
    modules_are_loaded_again_and_again/1,
    modules_are_loaded_while_the_pipe_is_full/1,
    processes_obey_sys/1
]).
%% Callback of a logger handler.
-export([log/2]).
%% Run in the nodes.
-export([start_collector/0, collected/1, send_to/1, send_one_to/1, expect_full_pipe/0]).
-export([load_modules/0, processes_of/1, obey_sys/0, resume_with_a_call/1]).

-include_lib("stdlib/include/assert.hrl").

%% Time limit of every wait, in milliseconds.
-define(LIMIT, 30000).
%% Longest time, in milliseconds, that an owner that does not wait for anything needs on a busy machine. It
%% waits for a HELLO for 5000 ms.
-define(AT_ONCE, 4000).
-define(LOG, owner_SUITE_log).
-define(PEER, #{uid => 1000, gid => 1000, pid => 4711}).
%% Number of messages of send_to/1, and their size in bytes. Together they exceed a window.
-define(MESSAGES, 20).
-define(SIZE, 100000).

suite() ->
    test_node:suite().

all() ->
    [{group, hello}, {group, life}, {group, port}, {group, mistakes}, {group, nodes}, {group, direct}, {group, code}].

groups() ->
    [
        {hello, [], [
            hello_may_be_late,
            sidecar_without_hello_is_given_up,
            hello_of_another_version_is_refused,
            first_packet_must_be_hello,
            hello_without_a_window_is_refused,
            garbage_ends_the_sidecar,
            answer_without_a_question_ends_the_sidecar,
            number_in_use_ends_the_sidecar,
            truncated_packet_is_rejected
        ]},
        {life, [], [
            end_before_the_listener_is_open,
            end_while_listening,
            end_in_a_move_at_the_same_address,
            end_in_a_move_to_another_address,
            end_with_connections,
            lost_listener_is_opened_again,
            deaths_do_not_multiply_attempts_to_listen,
            close_ends_a_move,
            starts_keep_to_the_backoff,
            missing_program_is_retried_with_a_backoff
        ]},
        {port, [], [
            full_pipe_does_not_stop_the_owner,
            suspended_input_handler_does_not_stop_the_owner,
            handshake_packets_are_delivered_before_the_end,
            refusal_by_a_node_is_logged_once,
            ends_of_handshakes_are_explained,
            random_reports_are_survived
        ]},
        {mistakes, [], [
            mistake_about_a_call_is_that_callers,
            mistake_about_a_connection_ends_that_one,
            controller_that_does_not_start_leaves_no_input_handler,
            mistake_about_the_listener_answers_who_waits_for_it,
            mistake_about_a_timer_does_not_end_the_retries,
            mistake_about_the_status_leaves_it_unknown,
            mistake_about_the_sidecar_ends_that,
            mistake_in_a_mistake_answers_everybody
        ]},
        {nodes, [], [
            frames_after_the_handshake_are_delivered_before_the_end,
            nodes_go_down_with_the_sidecar,
            suspended_input_handler_stops_no_other_connection,
            stopped_sidecar_does_not_stop_the_owner
        ]},
        {direct, [], [
            failed_channel_means_relay,
            failed_channel_is_asked_for_again,
            node_that_is_not_handed_over_is_relayed,
            socket_that_does_not_arrive_ends_that_connection,
            end_of_a_connection_crosses_its_handover,
            end_of_the_sidecar_during_a_handover,
            first_read_comes_whatever_is_before_it
        ]},
        {code, [], [
            modules_are_loaded_again_and_again,
            modules_are_loaded_while_the_pipe_is_full,
            processes_obey_sys
        ]}
    ].

%% The owner runs in this VM, which is not distributed, and reads its settings here.
init_per_testcase(_Case, Config) ->
    Config1 = test_node:init(Config),
    Dir = test_node:dir(Config1),
    Scripted = test_sidecar:start(Dir),
    true = os:putenv("UDS_DIST_SIDECAR", test_sidecar:path(Scripted)),
    true = os:putenv("UDS_DIST_DIR", Dir),
    ?LOG = ets:new(?LOG, [named_table, public, ordered_set]),
    #{level := Level} = logger:get_primary_config(),
    ok = logger:set_primary_config(level, info),
    ok = logger:add_handler(?MODULE, ?MODULE, #{level => info}),
    {ok, Owner} = uds_dist_port:start_link(),
    [{scripted, Scripted}, {owner, Owner}, {level, Level} | Config1].

end_per_testcase(_Case, Config) ->
    Owner = proplists:get_value(owner, Config),
    IsAlive = is_process_alive(Owner),
    Writer = monitor(process, uds_dist_log_writer),
    _ = IsAlive andalso gen_server:stop(Owner),
    %% Otherwise, the lines that it still has to write would appear in the next test case.
    receive
        {'DOWN', Writer, _, _, _} -> ok
    after ?LIMIT -> error(log_writer_has_not_ended)
    end,
    ok = logger:remove_handler(?MODULE),
    ok = logger:set_primary_config(level, proplists:get_value(level, Config)),
    true = ets:delete(?LOG),
    true = os:unsetenv("UDS_DIST_SIDECAR"),
    true = os:unsetenv("UDS_DIST_DIR"),
    _ = [ok = application:unset_env(uds_dist, Setting) || Setting <- [backlog, transport]],
    ok = test_sidecar:stop(proplists:get_value(scripted, Config)),
    case {proplists:get_value(tc_status, Config), test_node:cleanup(Config)} of
        {ok, ok} when not IsAlive -> {fail, the_owner_has_exited};
        {_, Result} -> Result
    end.

%% ---------------------------------------------------------------------------------------------
%% The start of a sidecar

hello_may_be_late(Config) ->
    Listening = ask(fun() -> uds_dist_owner:listen(name) end),
    Sidecar = test_sidecar:next(scripted(Config)),
    Connecting = ask(fun() -> connect(b@host) end),
    ok = test_sidecar:read(Sidecar),
    ok = answers_at_once(),
    ?assertEqual(none, test_sidecar:hear(Sidecar, 0)),
    ok = test_sidecar:say(Sidecar, test_sidecar:hello()),
    {admit, _} = test_sidecar:hear(Sidecar),
    {listen, 0, {Address, 5, 8#600}, VmPid} = test_sidecar:hear(Sidecar),
    ?assertEqual(os:getpid(), integer_to_list(VmPid)),
    ?assertEqual(socket("name", Config), Address),
    ?assertEqual({connect, 1, socket("b", Config)}, test_sidecar:hear(Sidecar)),
    ok = test_sidecar:say(Sidecar, [{listening, 0}, {connect_failed, 1, not_listening, "nobody"}]),
    ?assertEqual({ok, Address}, answer(Listening)),
    ?assertEqual({error, not_listening}, answer(Connecting)),
    ?assertEqual(1, lines("cannot connect to b@host: nobody")).

%% Only this test case has to wait for the time limit of five seconds.
sidecar_without_hello_is_given_up(Config) ->
    Connecting = ask(fun() -> connect(b@host) end),
    Sidecar = test_sidecar:next(scripted(Config)),
    ok = test_sidecar:read(Sidecar),
    ok = test_sidecar:hear_end(Sidecar),
    ?assertEqual({error, sidecar_failed}, answer(Connecting)),
    ?assertEqual(1, lines("did not start: it did not say hello within 5000 ms")).

hello_of_another_version_is_refused(Config) ->
    is_refused([{hello, #{version => 2, window => 1}}], "it speaks version 2 of the port protocol", Config).

first_packet_must_be_hello(Config) ->
    is_refused([{listening, 0}, test_sidecar:hello()], "it broke the port protocol with", Config).

hello_without_a_window_is_refused(Config) ->
    Hello = {hello, #{version => uds_dist_protocol:version(), window => 0}},
    is_refused([Hello], "it broke the port protocol with", Config).

is_refused(Reports, Why, Config) ->
    Listening = ask(fun() -> uds_dist_owner:listen(name) end),
    Sidecar = test_sidecar:next(scripted(Config)),
    ok = test_sidecar:read(Sidecar),
    ok = test_sidecar:say(Sidecar, Reports),
    ok = test_sidecar:hear_end(Sidecar),
    ?assertEqual({error, sidecar_failed}, answer(Listening)),
    ?assertEqual(1, lines(["did not start: ", Why])),
    %% The next sidecar may be valid.
    _ = listening(Config),
    ?assertEqual(1, lines("the sidecar is back")).

%% A second HELLO, an unknown type, a command of the VM, an empty packet, and an oversized one.
garbage_ends_the_sidecar(Config) ->
    Bodies = [<<32, 3:16, 1048576:32>>, <<200, 1, 2>>, <<1, 0:32, 5:32>>, <<>>, <<33, 0:(2048 * 8)>>],
    each_ends_a_sidecar([[<<(byte_size(Body)):32>>, Body] || Body <- Bodies], Config).

answer_without_a_question_ends_the_sidecar(Config) ->
    Answers = [
        {connected, 1, ?PEER},
        {connect_failed, 1, refused, ""},
        [{accepted, 2, ?PEER, undefined}, {relayed, 2}],
        %% The owner has not asked for it.
        [{status, #{descriptors => 1, descriptor_limit => 2, memory => 3}}],
        {handed_over, 2},
        {channel, "/nowhere"},
        {channel_failed, "no reason"}
    ],
    each_ends_a_sidecar([test_sidecar:packets(Answer) || Answer <- Answers], Config).

each_ends_a_sidecar(Streams, Config) ->
    _ = lists:foldl(
        fun(Stream, Sidecar) ->
            ok = test_sidecar:say_bytes(Sidecar, Stream),
            listens_again(Sidecar, Config)
        end,
        listening(Config),
        Streams
    ),
    ?assertEqual(length(Streams), lines("is gone: it broke the port protocol with")),
    ?assertEqual(0, lines("internal error|crasher")).

%% If an incoming connection could use the number of one that is being opened, they would be confused.
number_in_use_ends_the_sidecar(Config) ->
    Sidecar = listening(Config),
    Connecting = ask(fun() -> connect(b@host) end),
    {connect, 1, _} = test_sidecar:hear(Sidecar),
    ok = test_sidecar:say(Sidecar, {accepted, 1, ?PEER, undefined}),
    _ = listens_again(Sidecar, Config),
    ?assertEqual({error, sidecar_failed}, answer(Connecting)),
    ?assertEqual(1, lines("is gone: it broke the port protocol with {accepted,1")).

%% The sidecar ends in the middle of a packet.
truncated_packet_is_rejected(Config) ->
    Sidecar = listening(Config),
    Connecting = ask(fun() -> connect(b@host) end),
    {connect, 1, _} = test_sidecar:hear(Sidecar),
    ok = test_sidecar:say_bytes(Sidecar, <<17:32, 37, 1:32, 0:64>>),
    ok = test_sidecar:exit(Sidecar, 3),
    ?assertEqual({error, sidecar_failed}, answer(Connecting)),
    _ = listens_again(Sidecar, Config),
    ?assertEqual(1, lines("is gone: it exited with status 3")).

%% ---------------------------------------------------------------------------------------------
%% The end of a sidecar

%% A sidecar that did not start fails the request. One that died says nothing about it, so the next one gets it.
end_before_the_listener_is_open(Config) ->
    First = ask(fun() -> uds_dist_owner:listen(name) end),
    ok = test_sidecar:exit(test_sidecar:next(scripted(Config)), 1),
    ?assertEqual({error, sidecar_failed}, answer(First)),
    Second = ask(fun() -> uds_dist_owner:listen(name) end),
    ok = dies_when_it_should_listen(Config),
    ok = dies_when_it_should_listen(Config),
    ?assertEqual({error, sidecar_failed}, answer(Second)),
    Third = ask(fun() -> uds_dist_owner:listen(name) end),
    ok = dies_when_it_should_listen(Config),
    {0, {Address, _, _}} = test_sidecar:serve(test_sidecar:next(scripted(Config))),
    ?assertEqual({ok, Address}, answer(Third)),
    ?assertEqual(3, lines("is gone: it exited with status 1")).

dies_when_it_should_listen(Config) ->
    Sidecar = says_hello(Config),
    {listen, 0, _, _} = test_sidecar:hear(Sidecar),
    test_sidecar:exit(Sidecar, 1).

end_while_listening(Config) ->
    Sidecar = listening(Config),
    ok = test_sidecar:kill(Sidecar),
    Sidecar1 = listens_again(Sidecar, Config),
    expect_lines(1, "listening again at .*/name.sock"),
    ?assertEqual(1, lines("is gone: it was ended by signal 9")),
    Closing = ask(fun() -> uds_dist_owner:close_listener(name) end),
    {unlisten, 0} = test_sidecar:hear(Sidecar1),
    ok = test_sidecar:exit(Sidecar1, 0),
    %% The socket has ended with the sidecar.
    ?assertEqual(ok, answer(Closing)).

%% The old socket has to be closed before the new one is made at the same address.
end_in_a_move_at_the_same_address(Config) ->
    Sidecar = listening(Config),
    ok = application:set_env(uds_dist, backlog, 7),
    Moving = ask(fun uds_dist_owner:configure/0),
    {unlisten, 0} = test_sidecar:hear(Sidecar),
    ok = test_sidecar:say(Sidecar, {unlistened, 0}),
    {listen, 0, {_, 7, _}, _} = test_sidecar:hear(Sidecar),
    ok = test_sidecar:exit(Sidecar, 1),
    Sidecar1 = says_hello(Config),
    {listen, 0, {_, 7, _}, _} = test_sidecar:hear(Sidecar1),
    ok = test_sidecar:exit(Sidecar1, 1),
    ?assertEqual({error, sidecar_failed}, answer(Moving)),
    Sidecar2 = listens_again(Sidecar1, Config),
    %% The second attempt succeeds.
    Again = ask(fun uds_dist_owner:configure/0),
    {unlisten, 0} = test_sidecar:hear(Sidecar2),
    ok = test_sidecar:say(Sidecar2, {unlistened, 0}),
    {listen, 0, {_, 7, _}, _} = test_sidecar:hear(Sidecar2),
    ok = test_sidecar:say(Sidecar2, {listening, 0}),
    ?assertEqual(ok, answer(Again)).

%% The sidecar ends before it has the new socket, and when it should close the old one.
end_in_a_move_to_another_address(Config) ->
    Sidecar = listening(Config),
    Other = test_node:dir("other", Config),
    true = os:putenv("UDS_DIST_DIR", Other),
    Moving = ask(fun uds_dist_owner:configure/0),
    {listen, 1, _, _} = test_sidecar:hear(Sidecar),
    ok = test_sidecar:exit(Sidecar, 1),
    Sidecar1 = test_sidecar:next(scripted(Config)),
    {0, Place} = test_sidecar:serve(Sidecar1),
    ?assertEqual({unicode:characters_to_binary(filename:join(Other, "name.sock")), 5, 8#600}, Place),
    ?assertEqual(ok, answer(Moving)),
    true = os:putenv("UDS_DIST_DIR", test_node:dir(Config)),
    Back = ask(fun uds_dist_owner:configure/0),
    {listen, 1, _, _} = test_sidecar:hear(Sidecar1),
    ok = test_sidecar:say(Sidecar1, {listening, 1}),
    {unlisten, 0} = test_sidecar:hear(Sidecar1),
    ok = test_sidecar:exit(Sidecar1, 1),
    _ = listens_again(Sidecar1, Config),
    ?assertEqual(ok, answer(Back)).

%% One connection is being opened, one is in its handshake, one has no supervisor yet, and one waits for the
%% acceptor.
end_with_connections(Config) ->
    Sidecar = listening(Config),
    ok = start_acceptor(),
    {Controller, _, _} = Accepted = connect_peer(2, Sidecar),
    ok = test_sidecar:say(Sidecar, [{accepted, 4, ?PEER, undefined}, {accepted, 6, ?PEER, undefined}]),
    receive
        {accept, _, Untaken, local, stream} ->
            Receiving = ask(fun() -> uds_dist_controller:recv(Accepted, 0, ?LIMIT) end),
            Connecting = ask(fun() -> connect(b@host) end),
            {connect, 1, _} = test_sidecar:hear(Sidecar),
            ok = test_sidecar:exit(Sidecar, 1),
            ?assertEqual({error, sidecar_failed}, answer(Connecting)),
            ?assertEqual({error, closed}, answer(Receiving)),
            ?assertEqual({error, closed}, uds_dist_controller:recv(Untaken, 0, ?LIMIT)),
            ?assertEqual({error, closed}, uds_dist_controller:send(Accepted, "too late")),
            ok = uds_dist_connection:stop(Controller, connection_closed),
            _ = listens_again(Sidecar, Config),
            ok
    end.

lost_listener_is_opened_again(Config) ->
    Sidecar = listening(Config),
    ok = test_sidecar:say(Sidecar, {listener_lost, 0, "somebody removed it"}),
    {listen, 0, {Address, 5, 8#600}, _} = test_sidecar:hear(Sidecar),
    ?assertEqual(socket("name", Config), Address),
    ok = test_sidecar:say(Sidecar, {listening, 0}),
    expect_lines(1, "listening again at .*/name.sock"),
    ?assertEqual(1, lines("no longer listening at .*/name.sock: somebody removed it")).

%% The backoff of the listener after the loss of its place, in milliseconds.
-define(FIRST_BACKOFF, 100).
-define(MAX_BACKOFF, 2000).

%% Each sidecar refuses to listen, and ends while the next attempt waits for its timer. The next sidecar is asked
%% at once. If a timer survived the death of a sidecar, two attempts would follow each other too soon.
deaths_do_not_multiply_attempts_to_listen(Config) ->
    ok = test_sidecar:exit(listening(Config), 0),
    First = is_asked_to_listen(Config),
    %% After these, a pause is longer than the start of a sidecar.
    {Early, Backoff} = refuse(6, First, uds_dist_backoff:new(?FIRST_BACKOFF)),
    {Last, Backoff1} = lists:foldl(
        fun(_, {Sidecar, B}) ->
            ok = test_sidecar:say(Sidecar, {listen_failed, 0, system_error, "no space"}),
            ok = test_sidecar:exit(Sidecar, 0),
            {is_asked_to_listen(Config), element(3, uds_dist_backoff:failed("no space", ?MAX_BACKOFF, B))}
        end,
        {First, Backoff},
        [1, 2, 3]
    ),
    {Late, _} = refuse(2, Last, Backoff1),
    test_runner:note("pauses between attempts, and the backoff: ~w ms, after the deaths ~w ms", [Early, Late]),
    ?assertEqual([], [Short || {Pause, Delay} = Short <- Early ++ Late, Pause < Delay]),
    ok = test_sidecar:say(Last, {listening, 0}),
    expect_lines(1, "listening again at .*/name.sock, after 12 tries"),
    ?assertEqual(1, lines("cannot listen again at .*: no space")).

is_asked_to_listen(Config) ->
    Sidecar = says_hello(Config),
    {listen, 0, _, _} = test_sidecar:hear(Sidecar),
    Sidecar.

%% Refuses to listen so many times, and waits for the next attempt each time. Returns how long that took and
%% the backoff, in milliseconds.
refuse(Count, Sidecar, Backoff) ->
    lists:mapfoldl(
        fun(_, B) ->
            {Delay, _, B1} = uds_dist_backoff:failed("no space", ?MAX_BACKOFF, B),
            Start = now_ms(),
            ok = test_sidecar:say(Sidecar, {listen_failed, 0, system_error, "no space"}),
            {listen, 0, _, _} = test_sidecar:hear(Sidecar),
            {{now_ms() - Start, Delay}, B1}
        end,
        Backoff,
        lists:seq(1, Count)
    ).

close_ends_a_move(Config) ->
    Sidecar = listening(Config),
    ok = application:set_env(uds_dist, backlog, 7),
    Moving = ask(fun uds_dist_owner:configure/0),
    {unlisten, 0} = test_sidecar:hear(Sidecar),
    Closing = ask(fun() -> uds_dist_owner:close_listener(name) end),
    ?assertEqual({error, closed}, answer(Moving)),
    ok = test_sidecar:say(Sidecar, {unlistened, 0}),
    ?assertEqual(ok, answer(Closing)),
    ?assertEqual(0, lines("")).

%% The program ends at once each time. The pauses between its starts double, and two lines are logged.
starts_keep_to_the_backoff(Config) ->
    Sidecar = listening(Config),
    Starts = filename:join(test_node:dir(Config), "starts"),
    Restore = replace_program(["date +%s%N >>", Starts, "\nexit 3\n"], Config),
    ok = test_sidecar:exit(Sidecar, 0),
    Times = test_node:expect(
        fun() ->
            case file:read_file(Starts) of
                {ok, Text} -> enough(8, [binary_to_integer(T) || T <- string:lexemes(Text, "\n")]);
                Error -> Error
            end
        end,
        starts
    ),
    Pauses = lists:zipwith(fun(A, B) -> (B - A) div 1000000 end, lists:droplast(Times), tl(Times)),
    test_runner:note("pauses between starts: ~w ms", [Pauses]),
    Short = [{P, D} || {P, D} <- lists:zip(Pauses, [25, 50, 100, 200, 400, 800, 1600]), P < D],
    ?assertEqual([], Short),
    ok = Restore(),
    _ = listens_again(Sidecar, Config),
    expect_lines(1, "the sidecar is back, after \\d+ tries"),
    ?assertEqual(1, lines("is gone: it exited with status 0")),
    ?assertEqual(1, lines("did not start: it exited with status 3")).

enough(Count, List) when length(List) >= Count -> {ok, lists:sublist(List, Count)};
enough(_, List) -> List.

missing_program_is_retried_with_a_backoff(Config) ->
    Sidecar = listening(Config),
    Path = test_sidecar:path(scripted(Config)),
    ok = file:rename(Path, Path ++ ".gone"),
    ok = test_sidecar:exit(Sidecar, 0),
    Connecting = ask(fun() -> connect(b@host) end),
    expect_lines(1, "did not start: there is no such file"),
    ?assertEqual({error, sidecar_failed}, answer(Connecting)),
    Tries = [answer(ask(fun() -> connect(b@host) end)) || _ <- lists:seq(1, 5)],
    ?assertEqual([{error, sidecar_failed}], lists:usort(Tries)),
    ok = file:rename(Path ++ ".gone", Path),
    _ = listens_again(Sidecar, Config),
    ?assertEqual(1, lines("did not start: there is no such file")).

%% ---------------------------------------------------------------------------------------------
%% Traffic through the port

%% While the sidecar reads nothing, the owner continues to work. When the sidecar reads again, it gets all
%% packets in order.
full_pipe_does_not_stop_the_owner(Config) ->
    Nodes = [list_to_atom(lists:concat(["node", N, "@host"])) || N <- lists:seq(1, 3000)],
    [First | Others] = Nodes,
    Callers = [ask(fun() -> connect(First) end)],
    Sidecar = test_sidecar:next(scripted(Config)),
    ok = test_sidecar:say(Sidecar, test_sidecar:hello()),
    Callers1 = Callers ++ [ask(fun() -> connect(Node) end) || Node <- Others],
    ok = expect_full_pipe(),
    ok = answers_at_once(),
    ok = test_sidecar:say(Sidecar, {accepted, 2, ?PEER, undefined}),
    ok = start_acceptor(),
    ok = test_sidecar:say(Sidecar, {data, 2, <<5:16, "hello">>}),
    Accepted = accept(),
    ?assertEqual({ok, "hello"}, uds_dist_controller:recv(Accepted, 0, ?LIMIT)),
    ok = test_sidecar:read(Sidecar),
    {admit, _} = test_sidecar:hear(Sidecar),
    Connects = [test_sidecar:hear(Sidecar) || _ <- Nodes],
    Numbers = [Conn || {connect, Conn, _} <- Connects],
    ?assertEqual(lists:seq(1, 5999, 2), Numbers),
    ok = test_sidecar:say(Sidecar, [{connect_failed, Conn, refused, ""} || Conn <- Numbers]),
    ?assertEqual([{error, refused}], lists:usort([answer(Caller) || Caller <- Callers1])).

suspended_input_handler_does_not_stop_the_owner(Config) ->
    Sidecar = listening(Config),
    ok = start_acceptor(),
    [{_, InputHandler, _} = Slow, Other] = [connect_peer(Conn, Sidecar) || Conn <- [2, 4]],
    ok = sys:suspend(InputHandler),
    Packets = [<<5:16, "hello">> || _ <- lists:seq(1, 1000)],
    ok = test_sidecar:say(Sidecar, [{data, Conn, Packet} || Packet <- Packets, Conn <- [2, 4]]),
    Receive = fun(Connection) ->
        lists:usort([uds_dist_controller:recv(Connection, 0, ?LIMIT) || _ <- Packets])
    end,
    ?assertEqual([{ok, "hello"}], Receive(Other)),
    ok = answers_at_once(),
    ok = sys:resume(InputHandler),
    ?assertEqual([{ok, "hello"}], Receive(Slow)).

handshake_packets_are_delivered_before_the_end(Config) ->
    Sidecar = listening(Config),
    ok = start_acceptor(),
    [
        begin
            ok = test_sidecar:say(Sidecar, [
                {accepted, Conn, ?PEER, undefined},
                {data, Conn, <<3:16, "one", 3:16, "t">>},
                {data, Conn, <<"wo", 9:16, "cut">>},
                {closed, Conn, peer_closed, "it closed"}
            ]),
            Accepted = accept(),
            ?assertEqual({ok, "one"}, uds_dist_controller:recv(Accepted, 0, ?LIMIT)),
            ?assertEqual({ok, "two"}, uds_dist_controller:recv(Accepted, 0, ?LIMIT)),
            ?assertEqual({error, closed}, uds_dist_controller:recv(Accepted, 0, ?LIMIT))
        end
     || Conn <- lists:seq(2, 40, 2)
    ].

%% A peer that refuses this node closes the connection silently, and callers tend to retry often.
refusal_by_a_node_is_logged_once(Config) ->
    Sidecar = listening(Config),
    [
        begin
            Connecting = ask(fun() -> connect(b@host) end),
            {connect, Conn, _} = test_sidecar:hear(Sidecar),
            ok = test_sidecar:say(Sidecar, [
                {connected, Conn, ?PEER}, {closed, Conn, peer_closed, "it closed the connection"}
            ]),
            {ok, {Controller, _, _} = Connection} = answer(Connecting),
            ?assertEqual({error, closed}, uds_dist_controller:recv(Connection, 0, ?LIMIT)),
            ok = uds_dist_connection:stop(Controller, closed),
            {close, Conn} = test_sidecar:hear(Sidecar)
        end
     || _ <- lists:seq(1, 10)
    ],
    ?assertEqual(1, lines("cannot connect to b@host: it closed the connection")).

%% In words, and not with the reasons of net_kernel's processes. Each user causes one line of this kind at most.
ends_of_handshakes_are_explained(Config) ->
    Sidecar = listening(Config),
    ok = start_acceptor(),
    [
        begin
            ok = test_sidecar:say(Sidecar, {accepted, Conn, maps:put(uid, Conn, ?PEER), undefined}),
            {Controller, _, _} = accept(),
            ok = uds_dist_connection:stop(Controller, Reason),
            {close, Conn} = test_sidecar:hear(Sidecar),
            expect_lines(1, io_lib:format("of uid ~b ended: ~ts", [Conn, Words]))
        end
     || {Conn, Reason, Words} <- [
            {2, remarked, "both nodes connected to each other at once"},
            {4, noproc, "the process that asked for the connection has ended"}
        ]
    ].

%% ---------------------------------------------------------------------------------------------
%% Random reports

%% Duration in seconds, and most log lines per second. The start of a sidecar and the loss of a listener log a
%% few lines each, and both have a backoff.
-define(SECONDS, 6).
-define(LINES, 15).
%% Lines about calls and about single incoming connections are not counted.
-define(OF_CALLERS, "this node is already listening|with process|handshake packet|crasher|Generic").

random_reports_are_survived(Config) ->
    Seed = list_to_integer(os:getenv("UDS_DIST_SEED", "1")),
    test_runner:note("seed ~b", [Seed]),
    _ = rand:seed(exsss, Seed),
    _Kernel = spawn_link(fun kernel/0),
    Start = now_ms(),
    {Sidecar, Callers, Starts} = talk(Start + 1000 * ?SECONDS, none, [], [], Config),
    %% The VM may just have killed it.
    _ = Sidecar =/= none andalso test_sidecar:exit(Sidecar, 1),
    %% From now on the sidecar behaves, and every caller gets its answer.
    Answers = serve_all(Callers, none, Config),
    Said = [Line || {_, Line} <- ets:tab2list(?LOG), re:run(Line, ?OF_CALLERS) =:= nomatch],
    test_runner:note("~b callers, sidecars started at ~w, ~b lines:~n~ts", [
        length(Callers), [Time - Start || Time <- lists:reverse(Starts)], length(Said), summary(Said)
    ]),
    ?assertEqual([], [Answer || {error, timeout} = Answer <- Answers]),
    ?assertEqual(0, lines("internal error")),
    _ = length(Said) < ?LINES * ?SECONDS orelse
        error({too_many_lines, length(Said), unicode:characters_to_binary(summary(Said))}),
    %% A second start may follow at once, the next ones after 25, 50, 100 ms, and so on.
    Delays = [0, 0, 25, 50, 100, 200, 400 | lists:duplicate(length(Starts), 500)],
    ?assert(lists:sum(lists:sublist(Delays, length(Starts))) =< hd(Starts) - Start).

summary(Lines) ->
    Counts = lists:foldl(
        fun(Line, Map) ->
            Kind = re:replace(Line, "[0-9]+|<<.*", "_", [global, {return, binary}]),
            maps:update_with(Kind, fun(Count) -> Count + 1 end, 1, Map)
        end,
        #{},
        Lines
    ),
    [io_lib:format("~b  ~ts~n", [Count, Kind]) || {Kind, Count} <- maps:to_list(Counts)].

%% Accepts incoming connections as net_kernel does.
kernel() ->
    ok = start_acceptor(),
    accept_all().

accept_all() ->
    Connection = accept(),
    _ = ask(fun() -> receive_all(Connection) end),
    accept_all().

receive_all(Connection) ->
    case uds_dist_controller:recv(Connection, 0, infinity) of
        {ok, _} -> receive_all(Connection);
        Ended -> Ended
    end.

%% Callers make random calls, and the sidecar sends random reports, until End.
talk(End, Sidecar, Callers, Starts, Config) ->
    case {now_ms() > End, Sidecar} of
        {true, _} ->
            {Sidecar, Callers, Starts};
        {false, none} ->
            case test_sidecar:next(scripted(Config), 20) of
                {ok, Next} ->
                    ok = test_sidecar:read(Next),
                    ok = test_sidecar:say(Next, choose([{9, test_sidecar:hello()}, {1, report()}])),
                    talk(End, Next, Callers, [test_sidecar:started_at(Next) | Starts], Config);
                none ->
                    talk(End, none, [call() | Callers], Starts, Config)
            end;
        {false, _} ->
            Doing = choose([{90, reports}, {6, call}, {1, exit}]),
            case test_sidecar:hear(Sidecar, 0) of
                closed ->
                    talk(End, none, Callers, Starts, Config);
                {ok, {connect, Conn, _} = Command} ->
                    Connected = {connected, Conn, ?PEER},
                    ok = test_sidecar:say(Sidecar, choose([{2, duty(Command)}, {2, Connected}, {1, []}])),
                    talk(End, Sidecar, Callers, Starts, Config);
                {ok, Command} ->
                    ok = test_sidecar:say(Sidecar, choose([{4, duty(Command)}, {1, []}])),
                    talk(End, Sidecar, Callers, Starts, Config);
                none when Doing =:= reports ->
                    ok = test_sidecar:say(Sidecar, [report() || _ <- lists:seq(1, rand:uniform(20))]),
                    ok = answers_at_once(),
                    talk(End, Sidecar, Callers, Starts, Config);
                none when Doing =:= call ->
                    talk(End, Sidecar, [call() | Callers], Starts, Config);
                none when Doing =:= exit ->
                    ok = test_sidecar:exit(Sidecar, rand:uniform(3)),
                    talk(End, none, Callers, Starts, Config)
            end
    end.

call() ->
    Transport = choose([{1, relay}, {1, direct}]),
    Call = choose([
        {2, fun() -> uds_dist_owner:listen(name) end},
        {1, fun() -> uds_dist_owner:close_listener(name) end},
        {1, fun() -> configure(Transport) end},
        {4, fun() -> connect(choose([{1, a@host}, {1, b@host}, {1, c@host}])) end}
    ]),
    ask(Call).

configure(Transport) ->
    ok = application:set_env(uds_dist, transport, Transport),
    uds_dist_owner:configure().

%% A proper answer to a command.
duty({listen, Id, _, _}) -> {listening, Id};
duty({unlisten, Id}) -> {unlistened, Id};
duty({connect, Conn, _}) -> {connect_failed, Conn, not_listening, "nobody"};
duty({open_channel, _, _}) -> {channel_failed, "none"};
duty(_) -> [].

%% A random report. Most of them have numbers that are not in use, and some are about an existing connection
%% or listener. The rare ones break the protocol, which ends the sidecar.
report() ->
    Conn = rand:uniform(200),
    Id = rand:uniform(20) - 1,
    Text = choose([{1, ""}, {1, "ünknown"}]),
    Reason = choose([{1, peer_closed}, {1, system_error}, {1, name_busy}, {1, backlog_full}]),
    choose([
        {200, {data, Conn, rand:bytes(rand:uniform(100) - 1)}},
        {100, {ack, Conn, rand:uniform(100) - 1}},
        {30, {listening, Id}},
        {30, {listen_failed, Id, Reason, Text}},
        {30, {unlistened, Id}},
        {30, {listener_lost, Id, Text}},
        {100, {closed, Conn, Reason, Text}},
        {10, {relayed, Conn}},
        {10, {accepted, 2 * Conn, ?PEER, undefined}},
        {1, {accepted, Conn, ?PEER, undefined}},
        {1, {channel_failed, Text}},
        {1, {channel, "/nowhere"}},
        {1, {handed_over, Conn}},
        {1, {connected, Conn, ?PEER}},
        {1, {connect_failed, Conn, Reason, Text}},
        {1, test_sidecar:hello()}
    ]).

%% Answers the commands of each sidecar until all callers have their answers.
serve_all([], _, _) ->
    [];
serve_all([Caller | Others] = Callers, Sidecar, Config) ->
    receive
        {Caller, Answer} -> [Answer | serve_all(Others, Sidecar, Config)]
    after 0 ->
        case Sidecar of
            none ->
                case test_sidecar:next(scripted(Config), 20) of
                    {ok, Next} ->
                        ok = test_sidecar:read(Next),
                        ok = test_sidecar:say(Next, test_sidecar:hello()),
                        serve_all(Callers, Next, Config);
                    none ->
                        serve_all(Callers, none, Config)
                end;
            _ ->
                case test_sidecar:hear(Sidecar, 20) of
                    {ok, Command} ->
                        ok = test_sidecar:say(Sidecar, duty(Command)),
                        serve_all(Callers, Sidecar, Config);
                    none ->
                        serve_all(Callers, Sidecar, Config);
                    closed ->
                        serve_all(Callers, none, Config)
                end
        end
    end.

choose(Weighted) ->
    choose(rand:uniform(lists:sum([Weight || {Weight, _} <- Weighted])), Weighted).

choose(Left, [{Weight, What} | _]) when Left =< Weight -> What;
choose(Left, [{Weight, _} | More]) -> choose(Left - Weight, More).

%% ---------------------------------------------------------------------------------------------
%% Exceptions in the owner. The tests break one element of its state while it handles a message that needs
%% it. The sidecar stays, unless the message is about the life of the sidecar.

%% The elements of the owner's state.
-define(SIDECAR, 2).
-define(WINDOW, 3).
-define(CONNECTIONS, 4).
-define(LISTENER, 5).
-define(DIALER, 6).
-define(SETTINGS, 8).
-define(CALLERS, 9).

mistake_about_a_call_is_that_callers(Config) ->
    Sidecar = listening(Config),
    First = ask(fun() -> connect(b@host) end),
    {connect, 1, _} = test_sidecar:hear(Sidecar),
    ok = broken(?SETTINGS, fun() ->
        ?assertEqual({error, internal_error}, answer(ask(fun() -> connect(c@host) end)))
    end),
    ok = test_sidecar:say(Sidecar, {connect_failed, 1, not_listening, "nobody"}),
    ?assertEqual({error, not_listening}, answer(First)),
    ok = is_unharmed(Sidecar, 3, 1).

%% One that is being opened, and one that is open.
mistake_about_a_connection_ends_that_one(Config) ->
    Sidecar = listening(Config),
    [First, Second] = [calling(Conn, Sidecar) || Conn <- [1, 3]],
    ok = start_acceptor(),
    Connection = connect_peer(2, Sidecar),
    ok = broken(?WINDOW, fun() ->
        ok = test_sidecar:say(Sidecar, {connected, 1, ?PEER}),
        ?assertEqual({error, internal_error}, answer(First))
    end),
    ?assertEqual({close, 1}, test_sidecar:hear(Sidecar)),
    ok = test_sidecar:say(Sidecar, {connected, 3, ?PEER}),
    ?assertMatch({ok, _}, answer(Second)),
    ok = broken(?DIALER, fun() ->
        %% The dialer remembers which nodes could not be reached.
        ok = test_sidecar:say(Sidecar, {closed, 3, peer_closed, ""}),
        ?assertEqual({close, 3}, test_sidecar:hear(Sidecar)),
        ok
    end),
    ok = test_sidecar:say(Sidecar, {data, 2, <<5:16, "hello">>}),
    ?assertEqual({ok, "hello"}, uds_dist_controller:recv(Connection, 0, ?LIMIT)),
    ok = is_unharmed(Sidecar, 5, 2).

%% In a VM that has room for only one more process.
controller_that_does_not_start_leaves_no_input_handler(Config) ->
    Sidecar = listening(Config),
    Caller = calling(1, Sidecar),
    Before = processes_of(uds_dist_input),
    ok = without_room_for(uds_dist_controller, fun() ->
        ok = test_sidecar:say(Sidecar, {connected, 1, ?PEER}),
        ?assertEqual({error, internal_error}, answer(Caller))
    end),
    ?assertEqual({close, 1}, test_sidecar:hear(Sidecar)),
    true = test_node:expect(
        fun() -> processes_of(uds_dist_input) -- Before =:= [] end, no_other_input_handler
    ),
    ok = is_unharmed(Sidecar, 3, 1).

%% Runs Test while the processes of a module cannot be started.
without_room_for(Module, Test) ->
    Limit = {call, 0, {remote, 0, {atom, 0, erlang}, {atom, 0, error}}, [{atom, 0, system_limit}]},
    {ok, Module, Code} = compile:forms([
        {attribute, 0, module, Module},
        {attribute, 0, export, [{start, 2}]},
        {function, 0, start, 2, [{clause, 0, [{var, 0, '_'}, {var, 0, '_'}], [], [Limit]}]}
    ]),
    File = code:which(Module),
    _ = code:purge(Module),
    {module, Module} = code:load_binary(Module, File, Code),
    try
        ok = Test()
    after
        _ = code:purge(Module),
        {module, Module} = code:load_file(Module)
    end.

mistake_about_the_listener_answers_who_waits_for_it(Config) ->
    Listening = ask(fun() -> uds_dist_owner:listen(name) end),
    Sidecar = says_hello(Config),
    {listen, 0, _, _} = test_sidecar:hear(Sidecar),
    Calling = calling(1, Sidecar),
    ok = broken(?LISTENER, fun() ->
        ok = test_sidecar:say(Sidecar, {listening, 0}),
        ?assertEqual({error, internal_error}, answer(Listening))
    end),
    ok = test_sidecar:say(Sidecar, {connect_failed, 1, not_listening, "nobody"}),
    ?assertEqual({error, not_listening}, answer(Calling)),
    %% The listener can still be closed. A caller that has its reply gets no other.
    ok = test_sidecar:say(Sidecar, {listening, 0}),
    Closing = ask(fun() -> uds_dist_owner:close_listener(name) end),
    ?assertEqual({unlisten, 0}, test_sidecar:hear(Sidecar)),
    ok = broken(?LISTENER, fun() ->
        ok = test_sidecar:say(Sidecar, {unlistened, 0}),
        ?assertEqual({error, internal_error}, answer(Closing))
    end),
    ok = is_unharmed(Sidecar, 3, 2).

%% The node has lost its place, and waits to listen there again.
mistake_about_a_timer_does_not_end_the_retries(Config) ->
    Sidecar = listening(Config),
    ok = test_sidecar:say(Sidecar, {listener_lost, 0, "somebody removed it"}),
    {listen, 0, _, _} = test_sidecar:hear(Sidecar),
    _ = refuse(4, Sidecar, uds_dist_backoff:new(?FIRST_BACKOFF)),
    Calling = calling(1, Sidecar),
    ok = test_sidecar:say(Sidecar, [
        {listen_failed, 0, system_error, "no space"}, {connect_failed, 1, not_listening, "nobody"}
    ]),
    ?assertEqual({error, not_listening}, answer(Calling)),
    ok = broken(?LISTENER, fun() -> expect_lines(1, "internal error") end),
    {listen, 0, _, _} = test_sidecar:hear(Sidecar),
    ok = test_sidecar:say(Sidecar, {listening, 0}),
    expect_lines(1, "listening again at .*/name.sock"),
    ok = is_unharmed(Sidecar, 3, 1).

mistake_about_the_status_leaves_it_unknown(Config) ->
    Sidecar = listening(Config),
    Calling = calling(1, Sidecar),
    Asking = ask(fun uds_dist_owner:sidecar_status/0),
    ?assertEqual(ask_status, test_sidecar:hear(Sidecar)),
    ok = broken(?SIDECAR, fun() ->
        ok = test_sidecar:say(
            Sidecar, {status, #{descriptors => 1, descriptor_limit => 2, memory => 3}}
        ),
        ?assertEqual(uds_dist_sidecar:unknown_status(), answer(Asking))
    end),
    ok = test_sidecar:say(Sidecar, {connect_failed, 1, not_listening, "nobody"}),
    ?assertEqual({error, not_listening}, answer(Calling)),
    ok = is_unharmed(Sidecar, 3, 1).

%% The HELLO is lost, and the sidecar sends it only once.
mistake_about_the_sidecar_ends_that(Config) ->
    Calling = ask(fun() -> connect(b@host) end),
    Sidecar = test_sidecar:next(scripted(Config)),
    ok = test_sidecar:read(Sidecar),
    ok = broken(?SETTINGS, fun() ->
        ok = test_sidecar:say(Sidecar, test_sidecar:hello()),
        ?assertEqual({error, sidecar_failed}, answer(Calling))
    end),
    ok = test_sidecar:hear_end(Sidecar),
    Next = listening(Config),
    ok = is_unharmed(Next, 1, 1).

%% The owner cannot find out which request to give up.
mistake_in_a_mistake_answers_everybody(Config) ->
    Sidecar = listening(Config),
    Callers = [calling(Conn, Sidecar) || Conn <- [1, 3]],
    ok = broken(?CONNECTIONS, fun() ->
        ok = test_sidecar:say(Sidecar, {connected, 1, ?PEER}),
        ?assertEqual([{error, internal_error}, {error, internal_error}], [answer(C) || C <- Callers])
    end),
    ok = is_unharmed(Sidecar, 5, 2).

calling(Conn, Sidecar) ->
    Caller = ask(fun() -> connect(list_to_atom(integer_to_list(Conn) ++ "@host")) end),
    {connect, Conn, _} = test_sidecar:hear(Sidecar),
    Caller.

%% Runs Test while an element of the owner's state is broken.
broken(Element, Test) ->
    Kept = element(Element, sys:get_state(uds_dist_port)),
    _ = sys:replace_state(uds_dist_port, fun(State) -> setelement(Element, State, broken) end),
    ok = Test(),
    _ = sys:replace_state(uds_dist_port, fun(State) -> setelement(Element, State, Kept) end),
    ok.

%% The sidecar is still running, the next call is served, and each exception was logged.
is_unharmed(Sidecar, Conn, Mistakes) ->
    Calling = calling(Conn, Sidecar),
    ok = test_sidecar:say(Sidecar, {connect_failed, Conn, not_listening, "nobody"}),
    ?assertEqual({error, not_listening}, answer(Calling)),
    ?assertEqual(Mistakes, lines("internal error")),
    ?assertEqual(uds_dist_callers:new(), element(?CALLERS, sys:get_state(uds_dist_port))),
    ok.

%% ---------------------------------------------------------------------------------------------
%% A node with a scripted sidecar

%% The answer to the challenge, frames, and the end have all arrived before the node handles any of them.
frames_after_the_handshake_are_delivered_before_the_end(Config) ->
    {Node, Sidecar} = start_node(Config),
    lists:foreach(
        fun(Round) ->
            Conn = 2 * Round,
            Proof = challenge(Conn, Sidecar),
            Frames = [frame(N) || N <- lists:seq(1, 20)],
            Stream = iolist_to_binary([Proof | Frames]),
            {First, Second} = split_binary(Stream, rand:uniform(byte_size(Stream))),
            ok = test_sidecar:say(Sidecar, [
                {data, Conn, First}, {data, Conn, Second}, {closed, Conn, peer_closed, "it closed"}
            ]),
            ?assertEqual([up | lists:seq(1, 20)] ++ [down], collected(22, Node)),
            ok = expect_close(Conn, Sidecar)
        end,
        lists:seq(1, 50)
    ).

nodes_go_down_with_the_sidecar(Config) ->
    {Node, Sidecar} = start_node(Config),
    ok = shake_hands(2, Sidecar),
    ok = test_sidecar:say(Sidecar, {data, 2, frame(1)}),
    ?assertEqual([up, 1], collected(2, Node)),
    %% Reports that the sidecar has sent before its end are still handled.
    ok = test_sidecar:say(Sidecar, [{data, 2, frame(N)} || N <- lists:seq(2, 100)]),
    ok = test_sidecar:exit(Sidecar, 1),
    ?assertEqual(lists:seq(2, 100) ++ [down], collected(100, Node)),
    Next = test_sidecar:next(scripted(Config)),
    {0, _} = test_sidecar:serve(Next),
    ok = shake_hands(2, Next),
    ok = test_sidecar:say(Next, {data, 2, frame(101)}),
    ?assertEqual([up, 101], collected(2, Node)).

suspended_input_handler_stops_no_other_connection(Config) ->
    {Node, Sidecar} = start_node(Config),
    ok = shake_hands(2, Sidecar),
    [Suspended] = test_node:call(Node, ?MODULE, processes_of, [uds_dist_input]),
    ok = shake_hands(4, <<"q@host">>, Sidecar),
    ok = test_node:call(Node, sys, suspend, [Suspended]),
    %% More than the pipe and the port can hold.
    ok = test_sidecar:say(Sidecar, [{data, 2, frame(1, <<"p@host">>, 10000)} || _ <- lists:seq(1, 100)]),
    ok = test_sidecar:say(Sidecar, {data, 4, frame(2, <<"q@host">>, 0)}),
    ?assertEqual([up, up, 2], collected(3, Node)),
    ok = test_node:call(Node, sys, resume, [Suspended]),
    ?assertEqual([1 || _ <- lists:seq(1, 100)], collected(100, Node)).

%% The connection's controller waits for room in the pipe, but the owner does not.
stopped_sidecar_does_not_stop_the_owner(Config) ->
    {Node, Sidecar} = start_node(Config),
    ok = shake_hands(2, Sidecar),
    ok = shake_hands(4, <<"q@host">>, Sidecar),
    ok = fill_pipe(Node, Sidecar),
    _ = test_node:call(Node, sys, get_state, [uds_dist_port, ?AT_ONCE]),
    #{sidecar := #{status := up}} = test_node:call(Node, uds_dist_owner, info, []),
    %% Enough input to require an acknowledgement.
    ok = test_sidecar:say(Sidecar, [{data, 4, frame(N, <<"q@host">>, 100000)} || N <- [1, 2, 3, 4, 5, 6]]),
    ?assertEqual([up, up, 1, 2, 3, 4, 5, 6], collected(8, Node)),
    {ack, 4, _} = heard_or_next(expect_all(2, Sidecar), Sidecar),
    ok.

%% The test plays the sidecar while the VM boots.
start_node(Config) ->
    {Node, Sidecar, []} = start_node(fun(_) -> [] end, Config),
    {Node, Sidecar}.

%% The same; Serve plays what follows LISTENING.
start_node(Serve, Config) ->
    Environment = [{"UDS_DIST_SIDECAR", test_sidecar:path(scripted(Config))}],
    Booting = test_node:boot("a", #{env => Environment}, Config),
    Sidecar = test_sidecar:next(scripted(Config)),
    {0, _} = test_sidecar:serve(Sidecar),
    Served = Serve(Sidecar),
    Node = test_node:expect_up(Booting),
    ok = test_node:call(Node, ?MODULE, start_collector, []),
    {Node, Sidecar, Served}.

shake_hands(Conn, Sidecar) ->
    shake_hands(Conn, <<"p@host">>, Sidecar).

%% The handshake of distribution protocol 6, as a connecting hidden node: see "Distribution Handshake" in the
%% ERTS User's Guide.
shake_hands(Conn, Name, Sidecar) ->
    {established, Conn, Name} = complete_handshake(Conn, Name, Sidecar),
    ok.

%% Returns the packet in which the VM says which transport it wants.
complete_handshake(Conn, Name, Sidecar) ->
    ok = test_sidecar:say(Sidecar, {data, Conn, challenge(Conn, Name, Sidecar)}),
    {data, Conn, <<17:16, $a, _:16/binary>>} = hear(Sidecar),
    hear(Sidecar).

challenge(Conn, Sidecar) ->
    challenge(Conn, <<"p@host">>, Sidecar).

%% Runs the handshake up to the node's challenge, and returns the answer to it.
challenge(Conn, Name, Sidecar) ->
    %% Only the mandatory flags, which exclude fragments and the atom cache.
    {erts_dflags, _, Flags, _, _, _} = erts_internal:get_dflags(),
    Hello = <<$N, Flags:64, 1:32, (byte_size(Name)):16, Name/binary>>,
    ok = test_sidecar:say(Sidecar, [
        {accepted, Conn, ?PEER, undefined}, {data, Conn, [<<(byte_size(Hello)):16>>, Hello]}
    ]),
    {data, Conn, <<3:16, "sok">>} = hear(Sidecar),
    {data, Conn, <<_:16, $N, _:64, Challenge:32, _/binary>>} = hear(Sidecar),
    Digest = erlang:md5(["uds_dist_test", integer_to_list(Challenge)]),
    <<21:16, $r, 1:32, Digest/binary>>.

%% The next packet that is not about the channel, for which the VM may ask again after a failure.
hear(Sidecar) ->
    case test_sidecar:hear(Sidecar) of
        {open_channel, _, _} -> hear(Sidecar);
        Packet -> Packet
    end.

%% A message to the collector from a process of the other node, with ballast.
frame(Number) ->
    frame(Number, <<"p@host">>, 0).

frame(Number, Name, Size) ->
    From = <<88, 119, (byte_size(Name)), Name/binary, 1:32, 0:32, 1:32>>,
    To = <<"collector">>,
    %% REG_SEND of the distribution protocol.
    Control = <<131, 104, 4, 97, 6, From/binary, 119, 0, 119, (byte_size(To)), To/binary>>,
    Message = term_to_binary({collect, Number, binary:copy(<<0>>, Size)}),
    Frame = <<112, Control/binary, Message/binary>>,
    <<(byte_size(Frame)):32, Frame/binary>>.

%% Waits for the VM's CLOSE of the connection.
expect_close(Conn, Sidecar) ->
    case test_sidecar:hear(Sidecar) of
        {close, Conn} -> ok;
        {close, _} = Other -> error(Other);
        _ -> expect_close(Conn, Sidecar)
    end.

%% Makes the sidecar stop reading, and the node send more to p@host than the pipe holds.
fill_pipe(Node, Sidecar) ->
    ok = test_sidecar:pause(Sidecar),
    ok = test_node:call(Node, ?MODULE, send_to, ['p@host']),
    test_node:call(Node, ?MODULE, expect_full_pipe, []).

%% Makes the sidecar read again, and checks that it gets everything. Returns the other packets that it has
%% read.
expect_all(Conn, Sidecar) ->
    ok = test_sidecar:read(Sidecar),
    expect_all(Conn, ?MESSAGES * ?SIZE, Sidecar).

expect_all(_, Left, _) when Left =< 0 ->
    [];
expect_all(Conn, Left, Sidecar) ->
    case test_sidecar:hear(Sidecar) of
        {data, Conn, Bytes} ->
            ok = test_sidecar:say(Sidecar, {ack, Conn, byte_size(Bytes)}),
            expect_all(Conn, Left - byte_size(Bytes), Sidecar);
        Other ->
            [Other | expect_all(Conn, Left, Sidecar)]
    end.

heard_or_next([Heard | _], _) -> Heard;
heard_or_next([], Sidecar) -> test_sidecar:hear(Sidecar).

%% The events that the node's collector has recorded, in order: numbers of messages, and nodes that went up or
%% down.
collected(Count, Node) ->
    test_node:call(Node, ?MODULE, collected, [Count]).

%% ---------------------------------------------------------------------------------------------
%% A node with the transport `direct`. The test is the sidecar's end of the channel.

failed_channel_means_relay(Config) ->
    {Node, Sidecar, {open_channel, _, _}} = start_node(fun test_sidecar:hear/1, direct(Config)),
    ok = test_sidecar:say(Sidecar, {channel_failed, "no abstract names here"}),
    _ = test_node:expect_output(Node, "transport is relay instead of direct: no abstract names here"),
    ok = shake_hands(2, Sidecar),
    ok = test_sidecar:say(Sidecar, {data, 2, frame(1)}),
    ?assertEqual([up, 1], collected(2, Node)),
    ?assertMatch([_, _], string:split(test_node:output(Node), "no abstract names here", all)).

%% Strangers fill the backlog of the channel. The VM gives up, and asks again once the sidecar has closed it. It says so
%% when the first socket has arrived.
failed_channel_is_asked_for_again(Config) ->
    {Node, Sidecar, {open_channel, _, _} = Asked} = start_node(fun test_sidecar:hear/1, direct(Config)),
    {Full, Address} = listen(),
    Strangers = fill_backlog(Address),
    ok = test_sidecar:say(Sidecar, {channel, Address}),
    _ = test_node:expect_output(Node, "transport is relay instead of direct: other processes keep .* busy"),
    ok = shake_hands(2, <<"q@host">>, Sidecar),
    ?assertEqual(none, test_sidecar:hear(Sidecar, 0)),
    _ = [ok = socket:close(Socket) || Socket <- [Full | Strangers]],
    ok = test_sidecar:say(Sidecar, {channel_failed, "the VM did not connect"}),
    ?assertEqual(Asked, test_sidecar:hear(Sidecar)),
    Channel = answer_with_channel(Sidecar),
    {hand_over, 4, <<"p@host">>} = complete_handshake(4, <<"p@host">>, Sidecar),
    Peer = hand_over(4, Sidecar, Channel),
    _ = test_node:expect_output(Node, "transport is direct again"),
    ok = socket:send(Peer, frame(1)),
    ?assertEqual([up, up, 1], collected(3, Node)),
    ?assertEqual([{'p@host', direct}, {'q@host', relay}], transports(Node)).

fill_backlog(Address) ->
    {ok, Socket} = socket:open(local, stream),
    %% OTP 25 may report a connection that does not exist.
    case {socket:connect(Socket, #{family => local, path => Address}, 0), socket:peername(Socket)} of
        {ok, {ok, _}} ->
            [Socket | fill_backlog(Address)];
        {_, {error, enotconn}} ->
            ok = socket:close(Socket),
            []
    end.

%% The VM sends nothing before it knows the transport.
node_that_is_not_handed_over_is_relayed(Config) ->
    {Node, Sidecar, _} = start_direct(Config),
    {hand_over, 2, <<"p@host">>} = complete_handshake(2, <<"p@host">>, Sidecar),
    ?assertEqual([up], collected(1, Node)),
    ok = test_node:call(Node, ?MODULE, send_one_to, ['p@host']),
    Asking = ask(fun() -> test_node:call(Node, uds_dist_owner, sidecar_status, []) end),
    ?assertEqual(ask_status, test_sidecar:hear(Sidecar)),
    Status = #{descriptors => 1, descriptor_limit => 2, memory => 3},
    ok = test_sidecar:say(Sidecar, [{status, Status}, {relayed, 2}]),
    ?assertEqual(Status, answer(Asking)),
    ?assertMatch({data, 2, _}, test_sidecar:hear(Sidecar)),
    ok = test_sidecar:say(Sidecar, {data, 2, frame(1)}),
    ?assertEqual([1], collected(1, Node)),
    ?assertMatch([{_, relay}], transports(Node)).

%% The sidecar says that it has passed on the socket, but the channel is empty.
socket_that_does_not_arrive_ends_that_connection(Config) ->
    {Node, Sidecar, _} = start_direct(Config),
    ok = relay_by_refusal(2, <<"q@host">>, Sidecar),
    {hand_over, 4, <<"p@host">>} = complete_handshake(4, <<"p@host">>, Sidecar),
    ok = test_sidecar:say(Sidecar, [{data, 4, frame(1)}, {handed_over, 4}]),
    ?assertEqual([up, up, 1, down], collected(4, Node)),
    _ = test_node:expect_output(Node, "the connection with p@host is lost: "),
    %% The number is not closed, because the sidecar may have given it to another peer.
    {established, 4, <<"r@host">>} = complete_handshake(4, <<"r@host">>, Sidecar),
    ?assertEqual([up], collected(1, Node)),
    other_connection_stays(4, <<"r@host">>, Sidecar, Node),
    other_connection_stays(2, <<"q@host">>, Sidecar, Node).

%% The peer disconnects after HAND_OVER was sent and before the sidecar has read it, so there is no answer.
end_of_a_connection_crosses_its_handover(Config) ->
    {Node, Sidecar, _} = start_direct(Config),
    ok = relay_by_refusal(2, <<"q@host">>, Sidecar),
    {hand_over, 4, <<"p@host">>} = complete_handshake(4, <<"p@host">>, Sidecar),
    ok = test_sidecar:say(Sidecar, [{data, 4, frame(1)}, {closed, 4, system_error, "its socket broke"}]),
    ?assertEqual([up, up, 1, down], collected(4, Node)),
    ok = expect_close(4, Sidecar),
    _ = test_node:expect_output(Node, "the connection with p@host ended: its socket broke"),
    other_connection_stays(2, <<"q@host">>, Sidecar, Node).

%% One node waits for its socket, and another one has got it.
end_of_the_sidecar_during_a_handover(Config) ->
    {Node, Sidecar, Channel} = start_direct(Config),
    {hand_over, 2, <<"q@host">>} = complete_handshake(2, <<"q@host">>, Sidecar),
    Peer = hand_over(2, Sidecar, Channel),
    {hand_over, 4, <<"p@host">>} = complete_handshake(4, <<"p@host">>, Sidecar),
    ok = test_sidecar:say(Sidecar, {data, 4, frame(1)}),
    ok = test_sidecar:exit(Sidecar, 1),
    ?assertEqual([up, up, 1, down], collected(4, Node)),
    _ = test_node:expect_output(Node, "is gone: .*; connections lost with it: 1; connections unaffected: 1"),
    ok = socket:send(Peer, frame(2, <<"q@host">>, 0)),
    ?assertEqual([2], collected(1, Node)),
    %% The next sidecar has a channel of its own.
    Next = test_sidecar:next(scripted(Config)),
    {0, _} = test_sidecar:serve(Next),
    Channel1 = open_channel(Next),
    {hand_over, 2, <<"p@host">>} = complete_handshake(2, <<"p@host">>, Next),
    Peer1 = hand_over(2, Next, Channel1),
    ok = socket:send(Peer1, frame(3)),
    ?assertEqual([up, 3], collected(2, Node)),
    ?assertMatch([{'p@host', direct}, {'q@host', direct}], transports(Node)).

%% A message that an input handler gets together with its socket does not keep it from reading.
first_read_comes_whatever_is_before_it(Config) ->
    {Node, Sidecar, Channel} = start_direct(Config),
    {hand_over, 2, <<"q@host">>} = complete_handshake(2, <<"q@host">>, Sidecar),
    [Handler] = test_node:call(Node, ?MODULE, processes_of, [uds_dist_input]),
    ok = test_node:call(Node, sys, suspend, [Handler]),
    Peer = hand_over(2, Sidecar, Channel),
    ok = test_node:call(Node, ?MODULE, resume_with_a_call, [Handler]),
    ok = socket:send(Peer, frame(1, <<"q@host">>, 0)),
    ?assertEqual([up, 1], collected(2, Node)).

%% Once its socket waits in the message queue of a suspended input handler, adds a call to that and resumes it.
resume_with_a_call(Handler) ->
    true = test_node:expect(
        fun() -> {message_queue_len, 1} =:= process_info(Handler, message_queue_len) end, handed_over
    ),
    Call = gen_server:send_request(Handler, recv),
    ok = sys:resume(Handler),
    {reply, {error, closed}} = gen_server:wait_response(Call, ?LIMIT),
    ok.

direct(Config) ->
    test_node:init_group(direct, Config).

%% Returns the sidecar's end of the channel, too.
start_direct(Config) ->
    start_node(fun open_channel/1, direct(Config)).

open_channel(Sidecar) ->
    {open_channel, _, _} = test_sidecar:hear(Sidecar),
    answer_with_channel(Sidecar).

answer_with_channel(Sidecar) ->
    {Listener, Address} = listen(),
    ok = test_sidecar:say(Sidecar, {channel, Address}),
    {ok, Channel} = socket:accept(Listener, ?LIMIT),
    ok = socket:close(Listener),
    Channel.

%% Listens at an abstract address that the kernel chooses.
listen() ->
    {ok, Listener} = socket:open(local, stream),
    ok = socket:bind(Listener, #{family => local, path => <<>>}),
    ok = socket:listen(Listener, 16),
    {ok, #{path := Address}} = socket:sockname(Listener),
    {Listener, Address}.

%% Passes a socket to the VM as the socket of a connection. Returns the peer's end. Our copy stays open until the
%% test case ends: the module socket makes a socket blocking before it closes it, for all that share it.
hand_over(Conn, Sidecar, Channel) ->
    {Listener, Address} = listen(),
    {ok, Peer} = socket:open(local, stream),
    ok = socket:connect(Peer, #{family => local, path => Address}),
    {ok, Socket} = socket:accept(Listener, ?LIMIT),
    {ok, Descriptor} = socket:getopt(Socket, {otp, fd}),
    ok = socket:sendmsg(Channel, #{
        iov => [<<0>>], ctrl => [#{level => socket, type => rights, data => <<Descriptor:32/native>>}]
    }),
    ok = test_sidecar:say(Sidecar, {handed_over, Conn}),
    ok = socket:close(Listener),
    Peer.

%% Connects a node that is relayed, because the sidecar keeps its socket.
relay_by_refusal(Conn, Name, Sidecar) ->
    {hand_over, Conn, Name} = complete_handshake(Conn, Name, Sidecar),
    test_sidecar:say(Sidecar, {relayed, Conn}).

%% The node gets a message on a relayed connection, and sends one.
other_connection_stays(Conn, Name, Sidecar, Node) ->
    ok = test_sidecar:say(Sidecar, {data, Conn, frame(100, Name, 0)}),
    ?assertEqual([100], collected(1, Node)),
    ok = test_node:call(Node, ?MODULE, send_one_to, [binary_to_atom(Name)]),
    expect_data(Conn, Sidecar).

expect_data(Conn, Sidecar) ->
    case test_sidecar:hear(Sidecar) of
        {data, Conn, _} -> ok;
        _ -> expect_data(Conn, Sidecar)
    end.

%% The transport of each connection.
transports(Node) ->
    Connections = test_node:call(Node, uds_dist_owner, connections, []),
    lists:sort([{Name, Transport} || #{node := Name, transport := Transport} <- Connections]).

%% ---------------------------------------------------------------------------------------------
%% Code loading. Loading a module kills every process that still runs the code before the previous version.

modules_are_loaded_again_and_again(Config) ->
    {Node, Sidecar} = start_node(Config),
    ok = shake_hands(2, Sidecar),
    Before = processes(Node),
    ok = test_node:call(Node, ?MODULE, load_modules, []),
    ?assertEqual(Before, processes(Node)),
    %% Everything still works: input, output, a handshake, and the end of a connection.
    ok = test_sidecar:say(Sidecar, {data, 2, frame(1)}),
    ok = shake_hands(4, <<"q@host">>, Sidecar),
    ?assertEqual([up, 1, up], collected(3, Node)),
    ok = test_node:call(Node, ?MODULE, send_to, ['p@host']),
    [] = expect_all(2, Sidecar),
    ok = test_sidecar:say(Sidecar, {closed, 2, peer_closed, "it closed"}),
    ok = expect_close(2, Sidecar),
    ?assertEqual([down], collected(1, Node)).

%% Code can also be loaded while a controller and packets of the owner wait for room in the pipe.
modules_are_loaded_while_the_pipe_is_full(Config) ->
    {Node, Sidecar} = start_node(Config),
    ok = shake_hands(2, Sidecar),
    ok = fill_pipe(Node, Sidecar),
    Before = processes(Node),
    ok = test_sidecar:say(Sidecar, [{accepted, 4, ?PEER, undefined}, {closed, 4, peer_closed, "it closed"}]),
    ok = test_node:call(Node, ?MODULE, load_modules, []),
    true = test_node:expect(fun() -> processes(Node) =:= Before orelse processes(Node) end, Before),
    {close, 4} = heard_or_next(expect_all(2, Sidecar), Sidecar),
    ok.

%% The processes answer system messages, which release handlers send.
processes_obey_sys(Config) ->
    {Node, Sidecar} = start_node(Config),
    ok = shake_hands(2, Sidecar),
    ok = test_node:call(Node, ?MODULE, obey_sys, []),
    ok = test_sidecar:say(Sidecar, {data, 2, frame(1)}),
    ?assertEqual([up, 1], collected(2, Node)).

processes(Node) ->
    Modules = [uds_dist_port, uds_dist_acceptor, uds_dist_controller, uds_dist_input],
    [{Module, test_node:call(Node, ?MODULE, processes_of, [Module])} || Module <- Modules].

%% ---------------------------------------------------------------------------------------------

scripted(Config) ->
    proplists:get_value(scripted, Config).

socket(Name, Config) ->
    unicode:characters_to_binary(filename:join(test_node:dir(Config), Name ++ ".sock")).

%% A sidecar that listens for this node.
listening(Config) ->
    Listening = ask(fun() -> uds_dist_owner:listen(name) end),
    Sidecar = test_sidecar:next(scripted(Config)),
    {0, {Address, _, _}} = test_sidecar:serve(Sidecar),
    ?assertEqual({ok, Address}, answer(Listening)),
    ?assertEqual(socket("name", Config), Address),
    Sidecar.

%% The sidecar that follows Sidecar, and listens at the same place.
listens_again(Sidecar, Config) ->
    ok = test_sidecar:hear_end(Sidecar),
    Next = test_sidecar:next(scripted(Config)),
    {0, Place} = test_sidecar:serve(Next),
    ?assertEqual({socket("name", Config), 5, 8#600}, Place),
    Next.

says_hello(Config) ->
    Sidecar = test_sidecar:next(scripted(Config)),
    ok = test_sidecar:say(Sidecar, test_sidecar:hello()),
    ok = test_sidecar:read(Sidecar),
    {admit, _} = test_sidecar:hear(Sidecar),
    Sidecar.

%% Replaces the sidecar's program by another shell script. Returns a fun that restores it.
replace_program(Script, Config) ->
    Path = test_sidecar:path(scripted(Config)),
    Kept = Path ++ ".kept",
    New = Path ++ ".new",
    ok = file:rename(Path, Kept),
    ok = file:write_file(New, ["#!/bin/sh\n", Script]),
    ok = file:change_mode(New, 8#700),
    ok = file:rename(New, Path),
    fun() -> file:rename(Kept, Path) end.

connect(Node) ->
    uds_dist_owner:connect(Node, now_ms() + 7000).

%% Connects a peer, and gives the connection to a supervisor.
connect_peer(Conn, Sidecar) ->
    ok = test_sidecar:say(Sidecar, {accepted, Conn, ?PEER, undefined}),
    accept().

%% Starts an acceptor; this process stands in for net_kernel.
start_acceptor() ->
    is_ready(uds_dist_acceptor:start_link()).

is_ready(Acceptor) ->
    _ = sys:get_state(Acceptor),
    answers_at_once().

%% Accepts an incoming connection as net_kernel does, and waits until the acceptor is ready for the next one:
%% a connection that ends before it is accepted is forgotten.
accept() ->
    receive
        {accept, Acceptor, Connection, local, stream} ->
            Acceptor ! {self(), controller, ask(fun() -> supervises end)},
            ok = is_ready(Acceptor),
            Connection
    after ?LIMIT -> error(no_connection)
    end.

%% Makes a call in a new process, which lives as long as the test case because it may become the supervisor of
%% a connection.
ask(Call) ->
    Test = self(),
    spawn(fun() ->
        Monitor = monitor(process, Test),
        Test ! {self(), Call()},
        receive
            {'DOWN', Monitor, process, _, _} -> ok
        end
    end).

answer(Caller) ->
    receive
        {Caller, Answer} -> Answer
    after ?LIMIT -> error(no_answer)
    end.

%% Checks that the owner does not wait for anything, and answers the next call.
answers_at_once() ->
    _ = sys:get_state(uds_dist_port, ?AT_ONCE),
    ok.

now_ms() ->
    erlang:monotonic_time(millisecond).

%% ---------------------------------------------------------------------------------------------
%% In the nodes

%% Starts a process that records messages from other nodes, and when these go up and down.
start_collector() ->
    Caller = self(),
    Collector = spawn(fun() ->
        true = register(collector, self()),
        ok = net_kernel:monitor_nodes(true, [{node_type, all}]),
        Caller ! {self(), ready},
        collect([])
    end),
    receive
        {Collector, ready} -> ok
    end.

collect(Events) ->
    receive
        {collect, Number, _Ballast} ->
            collect(Events ++ [Number]);
        {nodeup, _, _} ->
            collect(Events ++ [up]);
        {nodedown, _, _} ->
            collect(Events ++ [down]);
        {take, Count, Caller} when length(Events) >= Count ->
            {Taken, Left} = lists:split(Count, Events),
            Caller ! {collected, Taken},
            collect(Left);
        {show, Caller} ->
            Caller ! {collected, Events},
            collect(Events)
    end.

collected(Count) ->
    collector ! {take, Count, self()},
    receive
        {collected, Events} -> Events
    after ?LIMIT ->
        collector ! {show, self()},
        receive
            {collected, Events} -> error({collected, Events, instead_of, Count})
        end
    end.

%% Sends messages from a new process, which is suspended when there is no room.
send_to(Node) ->
    Message = binary:copy(<<0>>, ?SIZE),
    _ = spawn(fun() -> [{nobody, Node} ! Message || _ <- lists:seq(1, ?MESSAGES)] end),
    ok.

%% Sends a message, and waits until the controller has dealt with the VM's notice of it.
send_one_to(Node) ->
    {nobody, Node} ! message,
    _ = [sys:get_state(Controller) || Controller <- processes_of(uds_dist_controller)],
    ok.

%% Loads all modules four times in a row, as developers do.
load_modules() ->
    Beams = filelib:wildcard(filename:join(filename:dirname(code:which(uds_dist)), "uds_dist*.beam")),
    Modules = [list_to_atom(filename:basename(Beam, ".beam")) || Beam <- Beams],
    true = length(Modules) > 20,
    lists:foreach(
        fun(Module) ->
            _ = code:purge(Module),
            {module, Module} = code:load_file(Module)
        end,
        lists:append(lists:duplicate(4, Modules))
    ).

%% Waits until the port suspends senders.
expect_full_pipe() ->
    Owner = whereis(uds_dist_port),
    [Port] = [P || P <- erlang:ports(), erlang:port_info(P, connected) =:= {connected, Owner}],
    true = test_node:expect(
        fun() ->
            {queue_size, Size} = erlang:port_info(Port, queue_size),
            Size > 8192 orelse Size
        end,
        full_pipe
    ),
    ok.

processes_of(Module) ->
    [P || P <- processes(), proc_lib:translate_initial_call(P) =:= {Module, init, 1}].

obey_sys() ->
    lists:foreach(
        fun(Module) ->
            [_ | _] = Processes = processes_of(Module),
            [
                begin
                    _ = sys:get_state(P),
                    ok = sys:suspend(P),
                    ok = sys:change_code(P, Module, undefined, []),
                    ok = sys:resume(P)
                end
             || P <- Processes
            ]
        end,
        [uds_dist_port, uds_dist_acceptor, uds_dist_controller, uds_dist_input]
    ).

%% ---------------------------------------------------------------------------------------------
%% Log lines

%% Callback of a logger handler.
-spec log(logger:log_event(), logger:handler_config()) -> ok.
log(Event, _Config) ->
    Line = logger_formatter:format(Event, #{template => [msg], single_line => true}),
    try ets:insert(?LOG, {erlang:unique_integer([monotonic]), unicode:characters_to_binary(Line)}) of
        true -> ok
    catch
        %% The test case has ended.
        error:badarg -> ok
    end.

%% The number of lines that match a regular expression, after the owner has finished its current work.
lines(Regexp) ->
    ok = answers_at_once(),
    %% The answer shows that all earlier lines of the owner have been logged.
    _ = sys:get_state(uds_dist_log_writer),
    length([Line || {_, Line} <- ets:tab2list(?LOG), re:run(Line, Regexp, [unicode]) =/= nomatch]).

expect_lines(Count, Regexp) ->
    true = test_node:expect(fun() -> lines(Regexp) =:= Count orelse ets:tab2list(?LOG) end, Regexp),
    ok.
