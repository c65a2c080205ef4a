%% Configuration that comes after distribution has started, the default that depends on the processors, and
%% the names of a directory's nodes.
-module(configuration_SUITE).

-export([all/0, suite/0, groups/0, init_per_group/2, end_per_group/2]).
-export([init_per_testcase/2, end_per_testcase/2]).
-export([
    listener_moves_when_the_application_starts/1,
    dials_during_the_boot_do_not_stop_the_listener/1,
    settings_of_the_same_place_count/1,
    nothing_changes_without_new_settings/1,
    wrong_settings_change_nothing/1,
    name_in_use_changes_nothing/1,
    new_sidecar_listens_where_the_listener_moved/1,
    moved_listener_is_closed/1,
    application_starts_without_distribution/1,
    spinning_depends_on_the_affinity/1,
    spinning_depends_on_the_quota/1,
    names_are_those_of_living_nodes/1,
    names_in_the_abstract_namespace/1,
    names_reports_a_missing_or_invalid_directory/1,
    names_are_those_beside_the_listener/1,
    asking_for_names_is_not_logged/1,
    epmd_module_answers_net_adm/1
]).

-import(test_node, [start/2, start/3, call/4, name/1, dir/1, sidecar/1, expect_output/2]).

-include_lib("stdlib/include/assert.hrl").

all() ->
    test_node:transports().

groups() ->
    [
        {relay, [], test_node:cases(?MODULE)},
        {direct, [], [
            listener_moves_when_the_application_starts,
            settings_of_the_same_place_count
        ]}
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

%% ---------------------------------------------------------------------------------------------
%% Late configuration

%% From the working directory to the configured one: connections stay, and both ways of connecting
%% lead to the new place.
listener_moves_when_the_application_starts(Config) ->
    [Before, After] = [test_node:dir(Name, Config) || Name <- ["before", "after"]],
    A = start("a", #{dir => none, cwd => Before}, Config),
    B = start("b", #{dir => Before}, Config),
    C = start("c", #{dir => After}, Config),
    pong = ping(B, A),
    Connection = call(A, net_kernel, node_info, [name(B), owner]),
    ok = configure(A, [{socket_dir, After}]),
    expect_output(A, ["listening at ", After, "/a\\.sock, as configured"]),
    ?assertEqual(["b.sock"], sockets_in(Before)),
    ?assertEqual(["a.sock", "c.sock"], sockets_in(After)),
    ?assertEqual(Connection, call(A, net_kernel, node_info, [name(B), owner])),
    pong = ping(C, A),
    D = start("d", #{dir => After}, Config),
    pong = ping(A, D),
    test_node:stop(A),
    ?assertEqual(["c.sock", "d.sock"], sockets_in(After)).

%% In a release that does not start the application, the settings count from the end of the boot. If an application
%% dials before that, the dial waits too, and changes nothing. This release looks like one of Elixir, whose settings
%% may come late.
dials_during_the_boot_do_not_stop_the_listener(Config) ->
    Dir = test_node:dir("release", Config),
    Source = filename:join(Dir, "dials_early.erl"),
    ok = file:write_file(Source, [
        "-module(dials_early).\n-export([start/2, stop/1]).\n"
        "start(_, Names) ->\n"
        "    [spawn(net_kernel, connect_node, [Name]) || Name <- Names],\n"
        "    timer:sleep(100),\n"
        "    {ok, spawn_link(timer, sleep, [infinity])}.\n"
        "stop(_) -> ok.\n"
    ]),
    {ok, dials_early} = compile:file(Source, [{outdir, Dir}]),
    B = start("b", #{dir => none, cwd => Dir}, Config),
    Names = [name(B), nobody@localhost, nobody_else@localhost],
    test_project:write(Dir, "elixir.app", [
        {application, elixir, [
            {description, ""},
            {vsn, "1"},
            {modules, [dials_early]},
            {registered, []},
            {applications, [kernel, stdlib]},
            {mod, {dials_early, Names}},
            {env, [{config_provider_init, true}]}
        ]}
    ]),
    Versions = [{App, version(App)} || App <- [kernel, stdlib]],
    Release = {release, {"late", "1"}, {erts, erlang:system_info(version)}, Versions ++ [{elixir, "1"}]},
    test_project:write(Dir, "late.rel", [Release]),
    {ok, _, []} = systools:make_script(filename:join(Dir, "late"), [{path, [Dir]}, {outdir, Dir}, silent, no_warn_sasl]),
    Args = ["-boot", filename:join(Dir, "late"), "-pa", Dir],
    A = start("a", #{dir => none, cwd => Dir, args => Args}, Config),
    expect_output(A, "listening at .*/a\\.sock, as configured"),
    pong = ping(B, A),
    ?assertEqual(nomatch, string:find(test_node:output(A), "internal error")).

version(App) ->
    {App, _, Version} = lists:keyfind(App, 1, application:loaded_applications()),
    Version.

%% Without another directory, too.
settings_of_the_same_place_count(Config) ->
    A = start("a", Config),
    B = start("b", Config),
    pong = ping(B, A),
    ok = configure(A, [{socket_mode, 8#666}, {allowed_uids, [0, 12345]}]),
    ?assertEqual("666\n", stat("%a", "a", Config)),
    ?assertEqual([name(B)], call(A, erlang, nodes, [])),
    C = start("c", Config),
    pong = ping(C, A).

nothing_changes_without_new_settings(Config) ->
    A = start("a", Config),
    Before = stat("%i", "a", Config),
    ok = configure(A, []),
    ?assertEqual(Before, stat("%i", "a", Config)).

%% The application does not start, and the node continues as before.
wrong_settings_change_nothing(Config) ->
    A = start("a", Config),
    {error, _} = configure(A, [{socket_dirr, "/run/x"}]),
    expect_output(A, "uds_dist has no setting socket_dirr"),
    ?assertEqual(["a.sock"], sockets_in(dir(Config))),
    pong = ping(start("b", Config), A).

name_in_use_changes_nothing(Config) ->
    [Before, After] = [test_node:dir(Name, Config) || Name <- ["before", "after"]],
    A = start("a", #{dir => none, cwd => Before}, Config),
    start("a", #{dir => After}, Config),
    B = start("b", #{dir => Before}, Config),
    {error, _} = configure(A, [{socket_dir, After}]),
    expect_output(A, "cannot apply the settings: the name is in use by process"),
    ?assertEqual(["a.sock", "b.sock"], sockets_in(Before)),
    pong = ping(A, B).

new_sidecar_listens_where_the_listener_moved(Config) ->
    [Before, After] = [test_node:dir(Name, Config) || Name <- ["before", "after"]],
    A = start("a", #{dir => none, cwd => Before}, Config),
    ok = configure(A, [{socket_dir, After}]),
    test_node:signal("KILL", sidecar(A)),
    expect_output(A, ["listening again at ", After, "/a\\.sock"]),
    ?assertEqual([], sockets_in(Before)),
    pong = ping(start("b", #{dir => After}, Config), A).

moved_listener_is_closed(Config) ->
    [Before, After] = [test_node:dir(Name, Config) || Name <- ["before", "after"]],
    Bare = start(undefined, #{dir => none, cwd => Before}, Config),
    {ok, _} = call(Bare, net_kernel, start, [a, #{name_domain => shortnames}]),
    ?assertEqual(["a.sock"], sockets_in(Before)),
    ok = configure(Bare, [{socket_dir, After}]),
    ?assertEqual(["a.sock"], sockets_in(After)),
    ok = call(Bare, net_kernel, stop, []),
    ?assertEqual([], sockets_in(After)).

application_starts_without_distribution(Config) ->
    Bare = start(undefined, #{dir => none}, Config),
    Dir = test_node:dir("x", Config),
    ok = configure(Bare, [{socket_dir, Dir}]),
    ?assertEqual([], sockets_in(Dir)).

%% Sets what a configuration would have set, and starts the application.
configure(Node, Settings) ->
    [ok = call(Node, application, set_env, [uds_dist, Key, Value]) || {Key, Value} <- Settings],
    case call(Node, application, ensure_all_started, [uds_dist]) of
        {ok, [uds_dist]} -> ok;
        {error, _} = Error -> Error
    end.

%% ---------------------------------------------------------------------------------------------
%% Processors

%% A node that may only use one processor spins no more than one on a machine that has no other.
spinning_depends_on_the_affinity(Config) ->
    case {os:find_executable("taskset"), may_use_several()} of
        {false, _} ->
            {skip, "taskset (util-linux) is not there to set an affinity"};
        {_, false} ->
            {skip, "these tests may only use one processor"};
        {Taskset, true} ->
            {match, [Processor]} = re:run(
                os:cmd("cat /proc/self/status"),
                "^Cpus_allowed_list:\\s*(\\d+)",
                [multiline, {capture, all_but_first, list}]
            ),
            assert_spin(100, start("a", Config)),
            assert_spin(0, start("b", #{prefix => [Taskset, "-c", Processor]}, Config))
    end.

%% The quota of a container, which sees all processors of its machine.
spinning_depends_on_the_quota(Config) ->
    case may_use_several() of
        false ->
            {skip, "these tests may only use one processor"};
        true ->
            case with_quota(0.5, Config, fun(Node) -> assert_spin(0, Node) end) of
                ok -> with_quota(2, Config, fun(Node) -> assert_spin(100, Node) end);
                {skip, _} = Skip -> Skip
            end
    end.

may_use_several() ->
    Items = [logical_processors_available, cpu_quota],
    not lists:member(1, [erlang:system_info(Item) || Item <- Items]).

%% The node and its sidecar have the same budget, in microseconds.
assert_spin(Spin, Node) ->
    #{settings := Settings} = call(Node, uds_dist, info, []),
    ?assertMatch(#{spin := Spin, sources := #{spin := <<"the default">>}}, Settings),
    Environment = string:lexemes(test_system:environment(sidecar(Node)), [0]),
    ?assertEqual(
        ["UDS_DIST_SPIN=" ++ integer_to_list(Spin)],
        [Variable || "UDS_DIST_SPIN=" ++ _ = Variable <- Environment]
    ).

%% Runs a node in a cgroup of its own that may use so many processors.
with_quota(Processors, Config, Test) ->
    case new_cgroup(Processors, ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup"]) of
        {ok, Cgroup} ->
            Enter = "echo $$ >" ++ Cgroup ++ "/cgroup.procs && exec \"$@\"",
            try
                Node = start("a", #{prefix => ["/bin/sh", "-c", Enter, "sh"]}, Config),
                case call(Node, erlang, system_info, [cpu_quota]) of
                    %% OTP 25 does not see quotas of version 1 if there is version 2, too. It has the usual default.
                    unknown -> assert_spin(100, Node);
                    _ -> Test(Node)
                end
            after
                true = test_node:expect(fun() -> remove_cgroup(Cgroup) end, {removed, Cgroup})
            end;
        none ->
            {skip, "no cgroup with a quota can be made here"}
    end.

%% Version 1 has a directory for each controller. In version 2, the parent must have passed the controller on.
new_cgroup(_Processors, []) ->
    none;
new_cgroup(Processors, [Parent | Parents]) ->
    Period = 100000,
    Quota = integer_to_list(round(Processors * Period)),
    Unique = erlang:unique_integer([positive]),
    Cgroup = lists:concat([Parent, "/uds_dist_test.", os:getpid(), ".", Unique]),
    Writes = [
        [{"cpu.cfs_period_us", integer_to_list(Period)}, {"cpu.cfs_quota_us", Quota}],
        [{"cpu.max", lists:concat([Quota, " ", Period])}]
    ],
    case file:make_dir(Cgroup) =:= ok andalso lists:any(fun(Pairs) -> write_all(Pairs, Cgroup) end, Writes) of
        true ->
            {ok, Cgroup};
        false ->
            _ = file:del_dir(Cgroup),
            new_cgroup(Processors, Parents)
    end.

write_all(Pairs, Cgroup) ->
    Write = fun({Name, Text}) ->
        %% Only the kernel can create a file there.
        Path = filename:join(Cgroup, Name),
        filelib:is_regular(Path) andalso file:write_file(Path, Text) =:= ok
    end,
    lists:all(Write, Pairs).

%% A cgroup can be removed when its last process has ended.
remove_cgroup(Cgroup) ->
    _ = os:cmd("kill -KILL $(cat " ++ Cgroup ++ "/cgroup.procs)"),
    file:del_dir(Cgroup) =:= ok.

%% ---------------------------------------------------------------------------------------------
%% Names

%% Names of killed nodes and other files are left out.
names_are_those_of_living_nodes(Config) ->
    A = start("a", Config),
    start("b", Config),
    Dead = start("dead", Config),
    test_node:kill(Dead),
    ok = file:write_file(filename:join(dir(Config), "file.sock"), ""),
    ?assertEqual({ok, ["a", "b"]}, call(A, uds_dist, names, [])),
    Elsewhere = start("c", #{dir => test_node:dir("elsewhere", Config)}, Config),
    ?assertEqual({ok, ["c"]}, call(Elsewhere, uds_dist, names, [])),
    ?assertEqual({ok, ["a", "b"]}, call(Elsewhere, uds_dist, names, [dir(Config)])),
    ?assertEqual(
        {ok, ["a", "b"]}, call(Elsewhere, uds_dist, names, [list_to_binary(dir(Config))])
    ).

names_in_the_abstract_namespace(Config) ->
    %% The kernel's table has blanks between its fields.
    Namespace = "@" ++ filename:basename(dir(Config)) ++ " @ b",
    A = start("a", #{dir => Namespace}, Config),
    B = start("b", #{dir => Namespace}, Config),
    start("c", #{dir => Namespace ++ "x"}, Config),
    ?assertEqual({ok, ["a", "b"]}, call(A, uds_dist, names, [])),
    test_node:kill(B),
    test_node:expect(
        fun() ->
            case call(A, uds_dist, names, []) of
                {ok, ["a"]} -> {ok, gone};
                Other -> Other
            end
        end,
        gone
    ).

names_reports_a_missing_or_invalid_directory(Config) ->
    A = start("a", Config),
    Missing = filename:join(dir(Config), "missing"),
    ?assertEqual({error, enoent}, call(A, uds_dist, names, [Missing])),
    {error, Explanation} = call(A, uds_dist, names, [1]),
    ?assert(io_lib:printable_list(Explanation), Explanation).

%% Settings that are not applied yet do not count.
names_are_those_beside_the_listener(Config) ->
    Other = test_node:dir("other", Config),
    A = start("a", #{dir => none, cwd => dir(Config)}, Config),
    _ = start("b", #{dir => Other}, Config),
    ok = call(A, application, set_env, [uds_dist, socket_dir, Other]),
    ?assertEqual({ok, ["a"]}, call(A, uds_dist, names, [])),
    ok = call(A, application, set_env, [uds_dist, backlog, none]),
    ?assertEqual({ok, ["a"]}, call(A, uds_dist, names, [])),
    ?assertEqual({ok, ["b"]}, call(A, uds_dist, names, [Other])).

%% The output of a release's rpc command does not contain it either.
asking_for_names_is_not_logged(Config) ->
    [A, B] = test_node:start_all(["a", "b"], #{args => ["-kernel", "logger_level", "info"]}, Config),
    ?assertEqual({ok, ["a", "b"]}, call(A, uds_dist, names, [])),
    pong = ping(A, B),
    expect_output(B, ["connected with ", atom_to_list(name(A))]),
    [
        ?assertEqual(nomatch, string:find(test_node:output(Node), "handshake"))
     || Node <- [A, B]
    ].

%% For the shell, and for libraries that ask epmd for nodes.
epmd_module_answers_net_adm(Config) ->
    Options = #{args => ["-epmd_module", "uds_dist_epmd"]},
    A = start("a", Options, Config),
    B = start("b", Options, Config),
    ?assertEqual({ok, [{"a", 0}, {"b", 0}]}, call(A, net_adm, names, [])),
    ?assertEqual({ok, [{"a", 0}, {"b", 0}]}, call(A, net_adm, names, [localhost])),
    ?assertEqual({error, address}, call(A, net_adm, names, ["elsewhere"])),
    [_, Host] = string:split(atom_to_list(name(B)), "@"),
    [_ | _] = Found = call(A, net_adm, world_list, [[list_to_atom(Host)]]),
    ?assertEqual(lists:sort([name(A), name(B)]), lists:sort(Found)),
    ?assertEqual([name(B)], call(A, erlang, nodes, [])),
    ?assertEqual({port, 0, 6}, call(A, uds_dist_epmd, port_please, ["b", "localhost"])),
    ?assertEqual(noport, call(A, uds_dist_epmd, port_please, ["c", "localhost"])).

%% ---------------------------------------------------------------------------------------------

ping(From, To) ->
    call(From, net_adm, ping, [name(To)]).

sockets_in(Dir) ->
    lists:sort(filelib:wildcard("*.sock", Dir)).

stat(Format, Name, Config) ->
    os:cmd(lists:concat(["stat -c ", Format, " ", filename:join(dir(Config), Name), ".sock"])).
