%% Releases of rebar3: the commands of their start script, and the sources of settings. The suite builds
%% examples/erlang_release unchanged, and with other options of relx.
-module(erlang_release_SUITE).

-export([all/0, suite/0, groups/0, init_per_suite/1, end_per_suite/1]).
-export([init_per_group/2, end_per_group/2, init_per_testcase/2, end_per_testcase/2]).
-export([
    commands_reach_the_node/1,
    helper_reaches_the_node/1,
    remote_console_opens_a_shell_in_the_node/1,
    restarted_node_listens_again/1,
    daemon_is_a_node_like_any/1,
    console_is_a_shell_of_the_node/1,
    commands_without_a_node_say_so/1,
    name_needs_no_host/1,
    names_come_from_the_directory_instead_of_epmd/1,
    environment_reaches_all_commands/1,
    sys_config_reaches_the_node_alone/1,
    plain_script_starts_a_node/1,
    directory_that_the_commands_lose_is_told_of/1,
    windows_line_ends_are_told_of/1,
    wrong_settings_end_the_boot/1,
    running_node_is_upgraded_and_downgraded/1
]).

-include_lib("stdlib/include/assert.hrl").

-define(COOKIE, "change_me").
-define(BOB, 23456).

all() ->
    [
        {group, with_erts},
        {group, without_erts},
        name_needs_no_host,
        names_come_from_the_directory_instead_of_epmd,
        environment_reaches_all_commands,
        sys_config_reaches_the_node_alone,
        plain_script_starts_a_node,
        directory_that_the_commands_lose_is_told_of,
        windows_line_ends_are_told_of,
        wrong_settings_end_the_boot,
        {group, upgrade}
    ].

groups() ->
    %% Commands that may run another Erlang than that of the release.
    Commands = [
        commands_reach_the_node,
        helper_reaches_the_node,
        remote_console_opens_a_shell_in_the_node
    ],
    [
        {with_erts, [
            restarted_node_listens_again,
            daemon_is_a_node_like_any,
            console_is_a_shell_of_the_node,
            commands_without_a_node_say_so
            | Commands
        ]},
        {without_erts, Commands},
        {upgrade, [{group, relay}, {group, direct}]},
        {relay, [running_node_is_upgraded_and_downgraded]},
        {direct, [running_node_is_upgraded_and_downgraded]}
    ].

suite() ->
    test_node:suite().

init_per_suite(Config) ->
    Dir = test_project:temporary(),
    Project = filename:join(Dir, "uds_dist/examples/erlang_release"),
    ok = test_project:copy_tree(filename:join(Dir, "uds_dist"), built),
    Config1 = [{project_dir, Dir}, {project, Project} | Config],
    ok = test_project:run("mkdir _checkouts && ln -s ../../.. _checkouts/uds_dist", #{
        dir => Project
    }),
    {ok, Options} = file:consult(filename:join(Project, "rebar.config")),
    build(with_erts, [], Options, Config1),
    build(without_erts, [{include_erts, false}], Options, Config1),
    [] = filelib:wildcard("my_app/erts-*", release(without_erts, Config1)),
    build(plain, [{extended_start_script, false}], Options, Config1),
    [{options, Options} | Config1].

end_per_suite(Config) ->
    ok = file:del_dir_r(proplists:get_value(project_dir, Config)).

build(Name, More, Options, Config) ->
    {value, {relx, Relx}, Others} = lists:keytake(relx, 1, Options),
    test_project:write(project(Config), "rebar.config", [{relx, Relx ++ More} | Others]),
    rebar3("release", Name, Config).

rebar3(Command, Name, Config) ->
    ok = test_project:run("rebar3 " ++ Command ++ " -o \"$0\"", #{
        dir => project(Config), argument => release(Name, Config)
    }).

project(Config) -> proplists:get_value(project, Config).

release(Name, Config) ->
    filename:join([proplists:get_value(project_dir, Config), "release", Name]).

init_per_group(upgrade, Config) ->
    ok = build_upgrade(Config),
    Config;
init_per_group(Group, Config) when Group =:= relay; Group =:= direct ->
    [{release, upgrade} | test_node:init_group(Group, Config)];
init_per_group(Group, Config) ->
    [{release, Group} | Config].

end_per_group(_Group, _Config) ->
    ok.

%% Builds two versions of a release in one place, as rebar3 needs them for a relup, and a package of the second
%% one. They differ in every module of uds_dist.
build_upgrade(Config) ->
    Options = proplists:get_value(options, Config),
    {relx, Relx} = lists:keyfind(relx, 1, Options),
    %% Only sasl has a release handler.
    Version = fun(Number) ->
        Release = {release, {my_app, Number}, [my_app, sasl]},
        lists:keyreplace(relx, 1, Options, {relx, lists:keyreplace(release, 1, Relx, Release)})
    end,
    ok = build(upgrade, [], Version("0.1.0"), Config),
    ok = test_project:run("cp -a my_app first", #{dir => release(upgrade, Config)}),
    ok = test_project:run(
        "sed -i 's/{vsn, *\"0.1.0\"}/{vsn, \"0.1.1\"}/' uds_dist.app.src && "
        "sed -i '0,/^-export/s//-export([version_0_1_1\\/0]).\\n-export/; "
        "$s/$/\\n\\n-spec version_0_1_1() -> ok.\\nversion_0_1_1() -> ok./' *.erl",
        #{dir => filename:join(project(Config), "_checkouts/uds_dist/erl_src")}
    ),
    ok = build(upgrade, [], Version("0.2.0"), Config),
    ok = rebar3("relup --relname my_app --relvsn 0.2.0 --upfrom 0.1.0", upgrade, Config),
    ok = rebar3("tar", upgrade, Config),
    test_project:run("mv my_app/my_app-0.2.0.tar.gz . && rm -r my_app", #{dir => release(upgrade, Config)}).

%% Each case has a directory of its own, instead of the one in the template.
init_per_testcase(_Case, Config) ->
    Config1 = test_release:init(Config),
    {ok, Template} = file:read_file(filename:join(project(Config), "config/vm.args")),
    [_, _] = Parts = string:split(Template, "/run/my_app"),
    [
        ok = file:write_file(vm_args(Name, Config), lists:join(sockets(Config1), Parts))
     || Name <- [with_erts, without_erts, plain]
    ],
    Config1.

end_per_testcase(_Case, Config) ->
    test_release:cleanup(release("", Config), Config).

%% ---------------------------------------------------------------------------------------------
%% Commands of the template

commands_reach_the_node(Config) ->
    Started = start(Config),
    OsPid = test_release:os_pid(Started),
    [
        begin
            ?assertEqual({Command, {0, Output}}, {Command, command(Command, Config)}),
            expect_sockets(["my_app.sock", "probe.sock"], Config)
        end
     || {Command, Output} <- [
            {"ping", "pong\n"},
            {"pid", OsPid ++ "\n"},
            {"rpc erlang node", "my_app@localhost\n"},
            {"rpc lists reverse '[[1,2]]'", "[2,1]\n"},
            {"eval 'application:get_application(uds_dist_app).'", "{ok,uds_dist}\n"},
            {"status", ""}
        ]
    ],
    stop(Started, Config).

%% The script takes directory, cookie and name from vm.args, like the start script of the release.
helper_reaches_the_node(Config) ->
    Started = start(Config),
    Help = fun(Command) ->
        test_release:command("'" ++ script(Config) ++ "-node' " ++ Command, env([]))
    end,
    [
        ?assertEqual({Command, {0, Output}}, {Command, Help(Command)})
     || {Command, Output} <- [
            {"ping --started --app my_app", "pong from my_app@localhost\n"},
            {"pid", test_release:os_pid(Started) ++ "\n"},
            {"rpc lists reverse '[[1,2]]'", "[2,1]\n"},
            {"eval 'node().'", "my_app@localhost\n"},
            {"peers -q", "probe@" ++ test_project:host() ++ "\n"},
            {"names -q", "my_app\nprobe\n"}
        ]
    ],
    {0, Status} = Help("status"),
    test_node:expect_output_of([Status], "^Applications\tmy_app\t0\\.1\\.0$"),
    ?assertMatch({0, "Talks to Erlang and Elixir nodes" ++ _}, Help("")),
    ?assertEqual({0, ""}, Help("stop")),
    test_release:expect_end(Started),
    ?assertMatch({1, "uds_dist: my_app@localhost at " ++ _}, Help("ping")).

remote_console_opens_a_shell_in_the_node(Config) ->
    Started = start(Config),
    {0, _} = test_project:terminal(
        "exec '" ++ script(Config) ++ "' remote_console",
        [
            {"\\(my_app@localhost\\)1> ", "{shell_of, node()}.\n"},
            {"{shell_of,my_app@localhost}", ""},
            {"\\(my_app@localhost\\)2> ", [7]},
            {"--> ", "q\n"}
        ],
        #{env => env([])}
    ),
    expect_sockets(["my_app.sock", "probe.sock"], Config),
    stop(Started, Config).

restarted_node_listens_again(Config) ->
    #{probe := Probe} = Started = start(Config),
    Before = test_release:creation(Probe, my_app@localhost),
    {0, _} = command("restart", Config),
    test_release:expect_restarted(Probe, my_app@localhost, Before),
    ?assertEqual({0, test_release:os_pid(Started) ++ "\n"}, command("pid", Config)),
    stop(Started, Config).

daemon_is_a_node_like_any(Config) ->
    Pipes = {"PIPE_DIR", filename:join(test_node:dir(Config), "pipes") ++ "/"},
    {0, ""} = command("daemon", [Pipes], Config),
    ?assertEqual({0, "pong\n"}, command("ping", Config)),
    {0, OsPid} = command("pid", Config),
    ?assertEqual({0, ""}, command("stop", Config)),
    ?assertNot(test_node:is_alive(list_to_integer(string:trim(OsPid)))),
    expect_sockets([], Config).

console_is_a_shell_of_the_node(Config) ->
    {0, _} = test_project:terminal(
        "exec '" ++ script(Config) ++ "' console",
        [
            {"\\(my_app@localhost\\)1> ", "uds_dist:names().\n"},
            {"{ok,\\[\"my_app\"\\]}", ""},
            {"\\(my_app@localhost\\)2> ", "q().\n"}
        ],
        #{env => env([])}
    ),
    expect_sockets([], Config).

commands_without_a_node_say_so(Config) ->
    ?assertEqual({1, "Node is not running!\n"}, command("ping", Config)),
    expect_sockets([], Config).

%% The start script finds a host.
name_needs_no_host(Config) ->
    Config1 = [{release, with_erts} | Config],
    edit_vm_args("my_app@localhost", "my_app", Config1),
    Name = list_to_atom("my_app@" ++ test_project:host()),
    Started = start(Name, [], Config1),
    ?assertEqual({0, atom_to_list(Name) ++ "\n"}, command("rpc erlang node", Config1)),
    stop(Started, Config1).

%% A line of vm.args that the script passes on is used too.
names_come_from_the_directory_instead_of_epmd(Config) ->
    Config1 = [{release, with_erts} | Config],
    edit_vm_args("-start_epmd false", "-start_epmd false\n-epmd_module uds_dist_epmd", Config1),
    #{probe := Probe} = Started = start(Config1),
    ?assertEqual(
        {ok, [{"my_app", 0}, {"probe", 0}]},
        test_node:call(Probe, rpc, call, [my_app@localhost, net_adm, names, []])
    ),
    ?assertEqual({0, "pong\n"}, command("ping", Config1)),
    stop(Started, Config1).

%% ---------------------------------------------------------------------------------------------
%% Sources of socket_dir

environment_reaches_all_commands(Config) ->
    Config1 = [{release, with_erts} | Config],
    edit_vm_args(["-uds_dist_dir ", sockets(Config)], "", Config1),
    Env = [{"UDS_DIST_DIR", sockets(Config)}],
    Started = start(my_app@localhost, Env, Config1),
    ?assertEqual({0, test_release:os_pid(Started) ++ "\n"}, command("pid", Env, Config1)),
    stop(Started, Env, Config1).

%% The commands do not read this source, so they need the variable.
sys_config_reaches_the_node_alone(Config) ->
    Config1 = [{release, with_erts} | Config],
    edit_vm_args(["-uds_dist_dir ", sockets(Config)], "", Config1),
    SysConfig = sys_config([{socket_dir, sockets(Config)}], Config),
    Started = start(my_app@localhost, [SysConfig], Config1),
    ?assertMatch({1, "Node is not running!\n"}, command("ping", Config1)),
    true = test_release:expect_sockets([], release_root(Config1)),
    Env = [{"UDS_DIST_DIR", sockets(Config)}],
    ?assertEqual({0, "pong\n"}, command("ping", Env, Config1)),
    stop(Started, Env, Config1).

%% The other start script of relx has no commands. It starts the node and passes its arguments on.
plain_script_starts_a_node(Config) ->
    Config1 = [{release, plain} | Config],
    Probe = test_release:probe(sockets(Config), ?COOKIE, Config),
    Port = start_command("-noinput", [], Config1),
    test_release:expect_started(Probe, my_app@localhost),
    expect_sockets(["my_app.sock", "probe.sock"], Config),
    ok = test_node:call(Probe, rpc, call, [my_app@localhost, init, stop, []]),
    test_release:expect_end(#{port => Port}),
    expect_sockets(["probe.sock"], Config).

%% The script passes on whole lines of vm.args, so a flag on a line of its own does not reach the commands. The node
%% logs that, even if `daemon` waits for it for ever.
directory_that_the_commands_lose_is_told_of(Config) ->
    Config1 = [{release, with_erts} | Config],
    edit_vm_args("-proto_dist uds ", "-proto_dist uds\n", Config1),
    Lost = "^.*uds_dist: the commands of this release .*-uds_dist_dir is not on the line of -proto_dist",
    #{probe := Probe} = Started = start(Config1),
    ?assertEqual({1, "Node is not running!\n"}, command("ping", Config1)),
    stop_by(Probe),
    test_node:expect_output_of(test_release:expect_end(Started), Lost),
    Pipes = {"PIPE_DIR", filename:join(test_node:dir(Config), "pipes") ++ "/"},
    Logs = test_node:dir("log", Config),
    Daemon = start_command("daemon", [Pipes, {"RUNNER_LOG_DIR", Logs}], Config1),
    test_release:expect_started(Probe, my_app@localhost),
    Log = fun() -> [element(2, file:read_file(File)) || File <- filelib:wildcard(Logs ++ "/erlang.log.*")] end,
    test_node:expect(fun() -> re:run(Log(), Lost, [multiline]) =/= nomatch orelse Log() end, line),
    ?assertMatch({os_pid, _}, erlang:port_info(Daemon, os_pid)),
    test_node:signal("KILL", list_to_integer(test_release:os_pid(#{port => Daemon}))),
    stop_by(Probe).

%% Erlang ignores carriage returns in vm.args, but the script takes them for a part of the name.
windows_line_ends_are_told_of(Config) ->
    Config1 = [{release, with_erts} | Config],
    {ok, Text} = file:read_file(vm_args(with_erts, Config)),
    ok = file:write_file(vm_args(with_erts, Config), binary:replace(Text, <<"\n">>, <<"\r\n">>, [global])),
    #{probe := Probe} = Started = start(Config1),
    ?assertEqual({1, "Node is not running!\n"}, command("ping", Config1)),
    stop_by(Probe),
    test_node:expect_output_of(
        test_release:expect_end(Started),
        "uds_dist: the commands of this release .*: vm.args has Windows line ends; give it Unix ones \\(.*vm.args\\)"
    ).

stop_by(Probe) ->
    ok = test_node:call(Probe, rpc, call, [my_app@localhost, init, stop, []]).

%% One line says what is wrong, and the node does not run unreachable.
wrong_settings_end_the_boot(Config) ->
    Config1 = [{release, with_erts} | Config],
    edit_vm_args(["-uds_dist_dir ", sockets(Config)], "", Config1),
    Private = test_node:dir("private", Config),
    ok = file:change_owner(Private, ?BOB, ?BOB),
    [
        begin
            SysConfig = sys_config([Setting], Config),
            {Status, Output} = command("foreground", [SysConfig], Config1),
            ?assertNotEqual({0, Setting}, {Status, Setting}),
            test_node:expect_output_of(Output, ["^uds_dist: .*", Message]),
            ?assertEqual([], test_release:sockets_in(release_root(Config1)))
        end
     || {Setting, Message} <- [
            {{socket_dirr, "/run/x"}, "uds_dist has no setting socket_dirr; it has socket_dir"},
            {{socket_dir, 1}, "socket_dir 1 \\(the application environment\\) must be a string"},
            {{socket_dir, "run"}, "socket_dir run .* is a relative path, and in a release"},
            {{backlog, ten}, "backlog ten must be an integer from 1 to 65535"},
            {{socket_dir, Private}, ["the directory ", Private, " belongs to uid 23456"]}
        ]
    ].

%% ---------------------------------------------------------------------------------------------
%% Another version

%% Messages are on their way in both directions, and none is lost. The sidecar keeps running, and the next one is that
%% of the new version.
running_node_is_upgraded_and_downgraded(Config) ->
    ok = test_project:run("rm -rf my_app && cp -a first my_app && cp my_app-0.2.0.tar.gz my_app/releases/", #{
        dir => release(upgrade, Config)
    }),
    ok = configure_version("0.1.0", Config),
    #{probe := Probe} = Started = start(Config),
    Code = test_node:call(Probe, code, get_object_code, [test_traffic]),
    {_, Beam, File} = Code,
    {module, _} = in_release(Probe, code, load_binary, [test_traffic, File, Beam]),
    Sidecar = in_release(Probe, uds_dist_program, path, []),
    Running = sidecar_process(Probe),
    Controller = controller(Probe),
    Modules = modules(Probe),

    ok = during_traffic(Probe, fun() ->
        expect_command("unpack 0.2.0", "Unpacked successfully: \"0.2.0\"", Config),
        ok = configure_version("0.2.0", Config),
        expect_command("upgrade 0.2.0", "Made release permanent: \"0.2.0\"", Config)
    end),
    ?assertMatch(#{version := <<"0.1.1">>}, in_release(Probe, uds_dist, info, [])),
    ?assertEqual(Modules, [M || M <- modules(Probe), has_changed(M, Probe)]),
    ?assertEqual(Controller, controller(Probe)),
    ?assertEqual(Running, sidecar_process(Probe)),

    ok = test_node:signal("KILL", Running),
    expect_other_sidecar(Running, Probe),
    Next = in_release(Probe, uds_dist_program, path, []),
    ?assertNotEqual(Sidecar, Next),
    ?assertEqual(file:read_link_all("/proc/" ++ integer_to_list(sidecar_process(Probe)) ++ "/exe"), {ok, Next}),

    Controller1 = controller(Probe),
    ok = during_traffic(Probe, fun() ->
        expect_command("downgrade 0.1.0", "Made release permanent: \"0.1.0\"", Config)
    end),
    ?assertMatch(#{version := <<"0.1.0">>}, in_release(Probe, uds_dist, info, [])),
    ?assertEqual([], [M || M <- Modules, has_changed(M, Probe)]),
    ?assertEqual(Controller1, controller(Probe)),
    stop(Started, Config),
    file:del_dir_r(release_root(Config)).

configure_version(Version, Config) ->
    Options = [[" -uds_dist transport ", atom_to_list(T)] || {transport, T} <- Config],
    File = filename:join(release_root(Config), "releases/" ++ Version ++ "/vm.args"),
    {ok, Text} = file:read_file(File),
    [Before, After] = string:split(Text, "/run/my_app"),
    file:write_file(File, [Before, sockets(Config), Options, After]).

during_traffic(Probe, Fun) ->
    Counting = test_node:call(Probe, test_traffic, start_counting, [my_app@localhost]),
    Fun(),
    Rounds = test_node:call(Probe, test_traffic, stop_counting, [Counting]),
    ct:log("~b rounds", [Rounds]),
    ok.

expect_command(Command, Output, Config) ->
    {0, Printed} = command(Command, Config),
    test_node:expect_output_of(Printed, Output).

in_release(Probe, Module, Function, Arguments) ->
    test_node:call(Probe, erpc, call, [my_app@localhost, Module, Function, Arguments]).

sidecar_process(Probe) ->
    #{sidecar := #{os_pid := OsPid}} = in_release(Probe, uds_dist, info, []),
    OsPid.

expect_other_sidecar(Old, Probe) ->
    test_node:expect(
        fun() ->
            case test_node:call(Probe, rpc, call, [my_app@localhost, uds_dist, info, []]) of
                #{sidecar := #{status := up, os_pid := Other}} when Other =/= Old -> true;
                Info -> Info
            end
        end,
        {other_sidecar_than, Old}
    ).

%% The probe's process for the connection, which exists as long as the connection.
controller(Probe) ->
    [{_, Controller}] = test_node:call(Probe, erlang, system_info, [dist_ctrl]),
    Controller.

modules(Probe) ->
    {ok, Modules} = in_release(Probe, application, get_key, [uds_dist, modules]),
    lists:sort(Modules).

has_changed(Module, Probe) ->
    lists:member({version_0_1_1, 0}, in_release(Probe, Module, module_info, [exports])).

%% ---------------------------------------------------------------------------------------------

start(Config) ->
    start(my_app@localhost, [], Config).

%% Starts the release in the foreground, and waits until it has booted.
start(Name, Env, Config) ->
    Probe = test_release:probe(sockets(Config), ?COOKIE, Config),
    Port = start_command("foreground", Env, Config),
    test_release:expect_started(Probe, Name),
    #{port => Port, probe => Probe}.

start_command(Command, Env, Config) ->
    test_release:start_command("'" ++ script(Config) ++ "' " ++ Command, env(Env)).

stop(Started, Config) ->
    stop(Started, [], Config).

stop(Started, Env, Config) ->
    ?assertEqual({0, ""}, command("stop", Env, Config)),
    test_release:expect_end(Started),
    expect_sockets(["probe.sock"], Config).

command(Command, Config) ->
    command(Command, [], Config).

command(Command, Env, Config) ->
    test_release:command("'" ++ script(Config) ++ "' " ++ Command, env(Env)).

%% The start script of rebar3 3.19 needs this variable.
env(Env) ->
    [{"USE_NODETOOL", "1"} | Env].

sys_config(Settings, Config) ->
    Dir = test_node:dir(Config),
    test_project:write(Dir, "sys.config", [[{uds_dist, Settings}]]),
    {"RELX_CONFIG_PATH", filename:join(Dir, "sys.config")}.

release_root(Config) ->
    filename:join(release(proplists:get_value(release, Config), Config), "my_app").

script(Config) ->
    filename:join(release_root(Config), "bin/my_app").

edit_vm_args(From, To, Config) ->
    File = vm_args(proplists:get_value(release, Config), Config),
    {ok, Text} = file:read_file(File),
    [Before, After] = string:split(Text, lists:flatten(From)),
    ok = file:write_file(File, [Before, To, After]).

vm_args(Name, Config) ->
    filename:join(release(Name, Config), "my_app/releases/0.1.0/vm.args").

sockets(Config) ->
    test_release:sockets(Config).

expect_sockets(Sockets, Config) ->
    test_release:expect_sockets(Sockets, sockets(Config)).
