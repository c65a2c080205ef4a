%% What operators see: log lines of the carrier and its sidecar with their metadata, no lines when nothing has
%% happened, and the answers of info/0 and peers/0.
-module(log_SUITE).

-export([suite/0, all/0, groups/0, init_per_testcase/2, end_per_testcase/2]).
%% Lines.
-export([lines_of_the_sidecar_have_facts/1, lines_of_the_boot_are_not_lost/1]).
-export([default_handler_drops_foreign_domains/1, sidecar_table_is_logged/1]).
-export([slow_handler_does_not_delay_the_carrier/1, handler_may_ask_another_node/1]).
-export([an_epmd_that_nobody_needs_is_reported_once/1]).
%% Silence.
-export([probes_are_not_logged/1, probes_are_not_logged_by_elixir/1]).
-export([hidden_nodes_are_logged_at_debug/1, lost_connection_is_a_notice/1]).
-export([stdout_of_a_script_is_its_own/1]).
%% Information.
-export([info_is_complete/1, info_does_not_wait_for_a_stopped_sidecar/1]).
-export([peers_answer_while_a_connection_is_saturated/1, nodes_info_names_the_address_of_a_peer/1]).
%% Callbacks of logger handlers and formatters, which run in the nodes.
-export([format/2, log/2, install/2, gate/1]).

-include_lib("stdlib/include/assert.hrl").
-include_lib("kernel/include/net_address.hrl").

-import(test_node, [start/2, start/3, call/4, expect/2, expect_output/2, sidecar/1, os_pid/1]).

suite() ->
    test_node:suite().

all() ->
    [{group, lines}, {group, quiet}, {group, answers}].

groups() ->
    [
        {lines, [parallel], [
            lines_of_the_sidecar_have_facts,
            lines_of_the_boot_are_not_lost,
            default_handler_drops_foreign_domains,
            sidecar_table_is_logged,
            slow_handler_does_not_delay_the_carrier,
            handler_may_ask_another_node,
            an_epmd_that_nobody_needs_is_reported_once
        ]},
        {quiet, [parallel], [
            probes_are_not_logged,
            probes_are_not_logged_by_elixir,
            hidden_nodes_are_logged_at_debug,
            lost_connection_is_a_notice,
            stdout_of_a_script_is_its_own
        ]},
        {answers, [parallel], [
            info_is_complete,
            info_does_not_wait_for_a_stopped_sidecar,
            peers_answer_while_a_connection_is_saturated,
            nodes_info_names_the_address_of_a_peer
        ]}
    ].

init_per_testcase(_Case, Config) ->
    test_node:init(Config).

end_per_testcase(_Case, Config) ->
    test_node:cleanup(Config).

%% ---------------------------------------------------------------------------------------------
%% Lines

%% A refused peer is logged to a file that programs can read.
lines_of_the_sidecar_have_facts(Config) ->
    Node = start("a", logging(#{config => [{uds_dist, [{allowed_uids, [1]}]}]}, Config), Config),
    ok = test_peer:await_end(test_peer:connect("a", Config)),
    [Line] = expect_lines("refused a peer", Config),
    Uid = own("-u"),
    Gid = own("-g"),
    OsPid = list_to_integer(os:getpid()),
    ?assertMatch(
        #{
            "level" := "warning",
            "subsystem" := "[uds_dist,sidecar]",
            "reason" := "refused",
            "uid" := Uid,
            "gid" := Gid,
            "os_pid" := OsPid
        },
        Line
    ),
    %% The text is a single line.
    expect_output(Node, io_lib:format("WARNING REPORT.*\nuds_dist: sidecar: refused a peer, uid ~b, ", [Uid])).

own(Which) ->
    list_to_integer(string:trim(os:cmd("id " ++ Which))).

%% Distribution starts before the handlers. The primitive handler keeps its lines for them, or in OTP 29 only
%% for the default handler.
lines_of_the_boot_are_not_lost(Config) ->
    Socket = filename:join(test_node:dir(Config), "a.sock"),
    {ok, Dead} = gen_tcp:listen(0, [{ifaddr, {local, Socket}}]),
    ok = gen_tcp:close(Dead),
    Text = "uds_dist: sidecar: took over " ++ Socket ++ ", whose owner is dead",
    _ = start("a", logging(default, #{}, Config), Config),
    [Line] = expect_lines("took over", Config),
    ?assertMatch(#{"level" := "notice", "reason" := "took_over", "address" := Socket, "text" := Text}, Line).

%% OTP's default handler drops events of other domains, which is why our events have none.
default_handler_drops_foreign_domains(Config) ->
    Node = start("a", #{}, Config),
    ok = call(Node, logger, warning, ["foreign", #{domain => [uds_dist, sidecar]}]),
    ok = call(Node, logger, warning, ["our own", #{subsystem => [uds_dist, sidecar]}]),
    expect_output(Node, "our own"),
    ?assertEqual(nomatch, re:run(test_node:output(Node), "foreign")).

sidecar_table_is_logged(Config) ->
    [A, B] = test_node:start_all(["a", "b"], #{transport => relay}, Config),
    pong = call(A, net_adm, ping, [test_node:name(B)]),
    ok = test_node:signal("USR1", sidecar(B)),
    expect_output(B, ["NOTICE REPORT.*\nuds_dist: sidecar: listening at ", test_node:socket(B, Config)]),
    expect_output(B, "uds_dist: sidecar: 1 connections, 0 in handshake"),
    expect_output(B, "uds_dist: sidecar: \\d+ descriptors of \\d+ are open; \\d+ KiB"),
    expect_output(B, ["uds_dist: sidecar: 2 from ", atom_to_list(test_node:name(A)), " uid \\d+ gid \\d+ pid \\d+"]).

%% While a handler hangs, the carrier continues, and then logs how many lines it has dropped.
slow_handler_does_not_delay_the_carrier(Config) ->
    [A, B] = test_node:start_all(["a", "b"], #{}, Config),
    Gate = call(A, erlang, spawn, [?MODULE, gate, [closed]]),
    ok = call(A, ?MODULE, install, [#{action => {wait_for, Gate}}, {file, file("slow", Config)}]),
    Lines = 1500,
    [
        ok = call(A, uds_dist_log, unreachable, [list_to_atom(integer_to_list(N) ++ "@x"), refused, "no"])
     || N <- lists:seq(1, Lines)
    ],
    pong = call(A, net_adm, ping, [test_node:name(B)]),
    #{connections := 1} = call(A, uds_dist, info, []),
    _ = call(A, erlang, send, [Gate, open]),
    [#{"text" := Text, "level" := "warning"}] = expect_lines("lines were dropped", "slow", Config),
    ["uds_dist:", Count | _] = string:lexemes(Text, " "),
    Seen = length(lines("cannot connect to", "slow", Config)),
    ?assertEqual(Lines, Seen + list_to_integer(Count)).

%% A handler sends its events to another node, as those of log collectors do, over the carrier that has logged
%% the event.
handler_may_ask_another_node(Config) ->
    [A, B] = test_node:start_all(["a", "b"], #{args => ["-kernel", "logger_level", "info"]}, Config),
    Ask = {ask, test_node:name(B)},
    ok = call(A, ?MODULE, install, [#{action => Ask}, {file, file("asking", Config)}]),
    C = start("c", Config),
    pong = call(C, net_adm, ping, [test_node:name(A)]),
    [_] = expect_lines(["connected with ", atom_to_list(test_node:name(C))], "asking", Config).

%% A program that does nothing stands in for epmd.
an_epmd_that_nobody_needs_is_reported_once(Config) ->
    Uds = ["-proto_dist", "uds"],
    [
        begin
            Args = ["-epmd", "true" | Flags],
            Node = start("a", #{carrier => Carrier, args => Args}, Config),
            [expect_output(Node, "erl has started an epmd") || Count > 0],
            %% The owner may be told again, if it asks again later.
            _ = call(Node, erlang, send, [uds_dist_port, boot_is_over]),
            #{version := _} = call(Node, uds_dist, info, []),
            %% Lines of this module are written in order.
            ok = call(Node, uds_dist_log, listener, [notice, "that is all"]),
            expect_output(Node, "uds_dist: that is all"),
            Parts = string:split(test_node:output(Node), "erl has started an epmd", all),
            ?assertEqual(Count, length(Parts) - 1, {Carrier, Flags, test_node:output(Node)}),
            ok = test_node:stop(Node)
        end
     || {Carrier, Flags, Count} <- [
            {Uds, [], 1},
            {Uds ++ ["-no_epmd"], [], 0},
            {Uds ++ ["-start_epmd", "false"], [], 0},
            {Uds, ["-hidden"], 0},
            %% The other carrier may need it.
            {["-proto_dist", "inet_tcp", "uds"], ["-epmd_module", "test_epmd"], 0}
        ]
    ].

%% ---------------------------------------------------------------------------------------------
%% Silence

%% Commands and tools that connect to a node are not logged at the level info.
probes_are_not_logged(Config) ->
    Node = start("a", logging(#{args => ["-kernel", "logger_level", "info"]}, Config), Config),
    ok = probe("a", 20, Config),
    %% A node that connects is logged.
    B = start("b", Config),
    pong = call(B, net_adm, ping, [test_node:name(Node)]),
    [_] = expect_lines("connected with b@", Config),
    ?assertEqual([], lines("uds_dist: (?!connected with b@)", Config)).

%% The default level of Elixir nodes is debug.
probes_are_not_logged_by_elixir(Config) ->
    case os:find_executable("elixir") of
        false ->
            {skip, "there is no Elixir"};
        Elixir ->
            Command = Elixir ++ " -e 'IO.puts(:code.lib_dir(:elixir))'",
            Libraries = filename:dirname(string:trim(os:cmd("LANG=C.UTF-8 " ++ Command))),
            Code = "Application.ensure_all_started(:logger); IO.puts(\"level #{Logger.level()}\")",
            Node = test_node:launch(
                #{
                    name => "a",
                    args => [
                        "-noinput", "-elixir_root", Libraries,
                        "-pa", Libraries ++ "/elixir/ebin", "-pa", Libraries ++ "/logger/ebin",
                        "-s", "elixir", "start_cli", "-extra", "--no-halt", "-e", Code
                    ]
                },
                Config
            ),
            expect_output(Node, "level debug"),
            ok = probe("a", 20, Config),
            {match, _} = re:run(command(["eval a 'logger:debug(\"that is all\").' --quiet --cookie-file ", file("cookie", Config)], Config), "0$"),
            expect_output(Node, "\\[debug\\] that is all"),
            ?assertEqual(nomatch, re:run(test_node:output(Node), "uds_dist"))
    end.

%% Probes a node with the command line, with another node's names/0, and with a silent connection.
probe(Name, Times, Config) ->
    Cookie = file("cookie", Config),
    ok = file:write_file(Cookie, "uds_dist_test"),
    ok = file:change_mode(Cookie, 8#600),
    lists:foreach(
        fun(_) ->
            "0" = command(["ping ", Name, " --quiet --cookie-file ", Cookie], Config),
            {match, _} = re:run(command("names", Config), "0$"),
            {ok, [_ | _]} = uds_dist:names(test_node:dir(Config)),
            ok = socket:close(test_peer:connect(Name, Config))
        end,
        lists:seq(1, Times)
    ).

%% Output and exit status of the command line.
command(Command, Config) ->
    Program = filename:join(filename:dirname(uds_dist_program:path()), "uds_dist"),
    Line = [Program, " ", Command, " --dir ", test_node:dir(Config), "; echo $?"],
    string:trim(os:cmd(lists:flatten(Line))).

hidden_nodes_are_logged_at_debug(Config) ->
    Debug = #{args => ["-kernel", "logger_level", "debug"], env => [{"UDS_DIST_LOG", "debug"}]},
    Node = start("a", logging(Debug, Config), Config),
    Hidden = start("h", #{args => ["-hidden"]}, Config),
    pong = call(Hidden, net_adm, ping, [test_node:name(Node)]),
    [#{"level" := "debug", "peer_node" := "h@" ++ _}] = expect_lines("connected with h@", Config),
    ok = test_node:stop(Hidden),
    [#{"level" := "debug"}] = expect_lines("the connection with h@.* ended", Config).

%% The connection is lost by a missing tick, and not closed by the peer.
lost_connection_is_a_notice(Config) ->
    Ticks = ["-kernel", "net_ticktime", "4", "-connect_all", "false"],
    Node = start("a", logging(#{args => Ticks ++ ["-kernel", "logger_level", "info"]}, Config), Config),
    [B, C] = test_node:start_all(["b", "c"], #{args => Ticks}, Config),
    [pong = call(Other, net_adm, ping, [test_node:name(Node)]) || Other <- [B, C]],
    ok = test_node:stop(B),
    [#{"level" := "info", "reason" := "peer_closed"}] = expect_lines("the connection with b@.* ended", Config),
    ok = test_node:signal("STOP", os_pid(C)),
    [#{"level" := "notice", "reason" := "net_tick_timeout", "peer_node" := "c@" ++ _}] =
        expect_lines("the connection with c@.* ended", Config).

%% A handler that the user has added gets the line too.
stdout_of_a_script_is_its_own(Config) ->
    Dir = test_node:dir(Config),
    Ebin = filename:dirname(code:which(uds_dist)),
    Script = "[pang = net_adm:ping(list_to_atom(\"nobody@\" ++ lists:last(string:split(atom_to_list(node()), [$@]))))"
        " || _ <- lists:seq(1, 3)], _ = sys:get_state(uds_dist_log_writer), ok = logger_std_h:filesync(json), io:put_chars(\"done\"), halt().",
    #{config := Terms} = logging(#{}, Config),
    ok = file:write_file(file("sys.config", Config), io_lib:format("~tp.~n", [Terms])),
    Command = [
        "cd ", Dir, " && ", test_node:erl(), " -noinput -proto_dist uds -no_epmd -sname a -uds_dist_dir ", Dir,
        " -pa ", Ebin, " -pa ", filename:dirname(code:which(?MODULE)), " -config sys -eval '",
        string:replace(Script, "'", "'\\''", all), "' 2>", file("stderr", Config)
    ],
    ?assertEqual("done", os:cmd(lists:flatten(Command))),
    {ok, Stderr} = file:read_file(file("stderr", Config)),
    ?assertMatch([_], [Line || Line <- string:lexemes(Stderr, "\n"), string:find(Line, "cannot connect to") =/= nomatch]),
    [#{"level" := "notice", "reason" := "not_listening", "peer_node" := "nobody@" ++ _}] =
        expect_lines("cannot connect to nobody@", Config).

%% ---------------------------------------------------------------------------------------------
%% Information

info_is_complete(Config) ->
    Env = [{"UDS_DIST_SPIN", "7"}],
    Node = start("a", #{env => Env, config => [{uds_dist, [{backlog, 9}]}]}, Config),
    Path = list_to_binary(test_node:socket(Node, Config)),
    Dir = list_to_binary(test_node:dir(Config)),
    {ok, Version} = call(Node, application, get_key, [uds_dist, vsn]),
    Release = list_to_binary(Version),
    Sidecar = sidecar(Node),
    Info = call(Node, uds_dist, info, []),
    ?assertMatch(
        #{
            version := Release,
            name := a,
            listening_at := Path,
            should_listen_at := Path,
            transport := relay,
            connections := 0,
            settings := #{
                socket_dir := Dir,
                socket_dir_source := <<"the command line">>,
                backlog := 9,
                spin := 7,
                log := info,
                sources := #{
                    socket_dir := <<"the command line">>,
                    backlog := <<"the application environment">>,
                    socket_mode := <<"the default">>,
                    spin := <<"UDS_DIST_SPIN">>,
                    log := <<"the default">>,
                    allowed_uids := <<"the default">>,
                    allowed_gids := <<"the default">>,
                    transport := <<"the default">>
                }
            },
            sidecar := #{
                status := up, os_pid := Sidecar, version := Release, restarts := 0, ended := 0
            },
            totals := #{connections_accepted := 0, connections_made := 0}
        },
        Info
    ),
    #{
        sidecar := #{
            started := Started, descriptors := Descriptors, descriptor_limit := Limit, memory := Memory
        }
    } = Info,
    ?assert(abs(Started - erlang:system_time(second)) =< 60),
    ?assertEqual(length(test_node:descriptors(Sidecar)), Descriptors),
    ?assert(Descriptors < Limit),
    ?assert(abs(Memory div 1024 - test_system:resident_kib(Sidecar)) < 1024),
    ok = test_node:signal("KILL", Sidecar),
    true = test_node:expect_listening(Node, Sidecar, Config),
    true = expect(
        fun() ->
            case call(Node, uds_dist, info, []) of
                #{sidecar := #{restarts := 1, ended := 1, memory := M}} when M > 0 -> true;
                Other -> Other
            end
        end,
        restarted
    ).

%% Values that only the sidecar knows are left out while it is stopped, and queried again when it continues.
info_does_not_wait_for_a_stopped_sidecar(Config) ->
    Node = start("a", Config),
    Sidecar = sidecar(Node),
    ok = test_node:signal("STOP", Sidecar),
    {Time, Info} = timer:tc(fun() -> call(Node, uds_dist, info, []) end),
    ?assert(Time < 5000000),
    ?assertMatch(#{sidecar := #{status := up, descriptors := undefined, memory := undefined}}, Info),
    ?assertMatch(#{sidecar := #{memory := undefined}}, call(Node, uds_dist, info, [])),
    ok = test_node:signal("CONT", Sidecar),
    true = expect(
        fun() ->
            #{sidecar := #{memory := Memory}} = call(Node, uds_dist, info, []),
            is_integer(Memory)
        end,
        answers_again
    ).

peers_answer_while_a_connection_is_saturated(Config) ->
    [A, B] = test_node:start_all(["a", "b"], #{transport => relay}, Config),
    NameB = test_node:name(B),
    pong = call(A, net_adm, ping, [NameB]),
    ok = test_node:signal("STOP", os_pid(B)),
    Flood = fun Flood() ->
        {nobody, NameB} ! <<0:(64 * 1024 * 8)>>,
        Flood()
    end,
    _ = call(A, erlang, spawn, [Flood]),
    true = expect(
        fun() ->
            case call(A, uds_dist, peers, []) of
                [#{queued := Queued, unacknowledged := Unacknowledged}] when
                    Queued > 0, Unacknowledged > 262144
                ->
                    true;
                Other ->
                    Other
            end
        end,
        saturated
    ),
    {Time, [Peer]} = timer:tc(fun() -> call(A, uds_dist, peers, []) end),
    ?assert(Time < 5000000),
    Address = list_to_binary(test_node:socket(B, Config)),
    Uid = own("-u"),
    ?assertMatch(
        #{
            node := NameB,
            direction := out,
            transport := relay,
            state := up,
            window := 1048576,
            uid := Uid,
            address := Address
        },
        Peer
    ),
    #{unacknowledged := Unacknowledged, window := Window} = Peer,
    ?assert(Unacknowledged =< Window),
    ?assertMatch(#{sidecar := #{memory := Memory}} when is_integer(Memory), call(A, uds_dist, info, [])),
    ok = test_node:signal("CONT", os_pid(B)).

%% The address of an incoming peer, if its socket is bound.
nodes_info_names_the_address_of_a_peer(Config) ->
    Node = start("a", Config),
    Ours = file("peer.sock", Config),
    {ok, Socket} = socket:open(local, stream),
    ok = socket:bind(Socket, #{family => local, path => Ours}),
    ok = socket:connect(Socket, #{family => local, path => test_node:socket(Node, Config)}),
    ok = test_peer:shake_hands(Socket, #{name => <<"peer@host">>, number => 4711}),
    Address = list_to_binary(Ours),
    true = expect(
        fun() ->
            case call(Node, net_kernel, node_info, [peer@host, address]) of
                {ok, #net_address{address = {local, Address}}} -> true;
                Other -> Other
            end
        end,
        address
    ),
    ?assertMatch([#{address := Address, node := peer@host}], call(Node, uds_dist, peers, [])).

%% ---------------------------------------------------------------------------------------------
%% Handlers and formatters in the nodes

%% Options for a node that logs JSON to the file "log", in addition to its usual output.
logging(Options, Config) ->
    logging(json, Options, Config).

logging(Id, Options, Config) ->
    Handler =
        {handler, Id, logger_std_h, #{
            config => #{file => file("log", Config)}, formatter => {?MODULE, #{}}
        }},
    Before = maps:get(config, Options, []),
    Options#{config => [{kernel, [{logger, [Handler]}]} | Before]}.

file(Name, Config) ->
    filename:join(test_node:dir(Config), Name).

%% A formatter that writes each event as a line of JSON with strings and numbers.
-spec format(logger:log_event(), logger:formatter_config()) -> unicode:chardata().
format(#{level := Level, meta := Meta} = Event, _Config) ->
    Text = logger_formatter:format(Event, #{template => [msg], single_line => false}),
    Known = maps:with([subsystem, peer_node, uid, gid, os_pid, address, reason], Meta),
    Fields = [{level, Level}, {text, unicode:characters_to_binary(Text)} | maps:to_list(Known)],
    ["{", lists:join(",", [[string(Key), ":", value(Value)] || {Key, Value} <- Fields]), "}\n"].

value(Value) when is_integer(Value) -> integer_to_list(Value);
value(Value) -> string(Value).

string(Atom) when is_atom(Atom) -> string(atom_to_binary(Atom, utf8));
string(Text) when is_binary(Text) -> [$", [escaped(C) || C <- unicode:characters_to_list(Text)], $"];
string(Term) -> string(unicode:characters_to_binary(io_lib:format("~0tp", [Term]))).

escaped(C) when C =:= $"; C =:= $\\; C < $\s -> io_lib:format("\\u~4.16.0b", [C]);
escaped(C) -> C.

%% Installs a handler that runs an action for each event of the carrier before it writes the event.
-spec install(map(), {file, file:filename()}) -> ok.
install(Settings, {file, File}) ->
    {ok, Device} = file:open(File, [append, raw, {delayed_write, 1, 1}]),
    ok = file:close(Device),
    logger:add_handler(?MODULE, ?MODULE, #{config => Settings#{file => File}}).

-spec log(logger:log_event(), logger:handler_config()) -> ok.
log(#{meta := #{subsystem := _}} = Event, #{config := #{action := Action, file := File}}) ->
    ok = act(Action),
    file:write_file(File, unicode:characters_to_binary(format(Event, #{})), [append]);
log(_, _) ->
    ok.

act({ask, Node}) ->
    Node = erpc:call(Node, erlang, node, []),
    ok;
act({wait_for, Gate}) ->
    Monitor = monitor(process, Gate),
    Gate ! {self(), Monitor},
    receive
        {Monitor, is_open} ->
            true = demonitor(Monitor, [flush]),
            ok
    end.

%% A process that keeps its callers waiting until it is open.
-spec gate(closed | open) -> no_return().
gate(closed) ->
    receive
        open -> gate(open)
    end;
gate(open) ->
    receive
        {Pid, Tag} -> Pid ! {Tag, is_open}
    end,
    gate(open).

%% Waits for lines that match a regular expression.
expect_lines(Regexp, Config) ->
    expect_lines(Regexp, "log", Config).

expect_lines(Regexp, File, Config) ->
    expect(
        fun() ->
            case lines(Regexp, File, Config) of
                [] -> {none, file:read_file(file(File, Config))};
                Lines -> {ok, Lines}
            end
        end,
        Regexp
    ).

lines(Regexp, Config) ->
    lines(Regexp, "log", Config).

lines(Regexp, File, Config) ->
    {ok, Text} = file:read_file(file(File, Config)),
    %% The last line may not be complete yet.
    Lines = [parse(Line) || Line <- lists:droplast(binary:split(Text, <<"\n">>, [global]))],
    [Line || #{"text" := T} = Line <- Lines, re:run(T, Regexp, [unicode]) =/= nomatch].

%% Parses the output of format/2.
parse(<<"{", Line/binary>>) ->
    {match, Pairs} = re:run(Line, "\"([^\"]*)\":(?:\"([^\"]*)\"|(\\d+))", [global, {capture, all_but_first, list}]),
    maps:from_list([pair(Pair) || Pair <- Pairs]).

pair([Key, "", Number]) -> {Key, list_to_integer(Number)};
pair([Key, Text]) -> {Key, Text}.
