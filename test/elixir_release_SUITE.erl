%% Releases of Mix: their commands, and the sources of their settings. The suite builds examples/elixir_release
%% unchanged, and with other configurations instead of its env.sh.
-module(elixir_release_SUITE).

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1]).
-export([init_per_testcase/2, end_per_testcase/2]).
-export([
    commands_reach_the_node/1,
    helper_reaches_the_node/1,
    remote_opens_a_shell_in_the_node/1,
    restarted_node_listens_again/1,
    daemon_is_a_node_like_any/1,
    start_iex_is_a_shell_of_the_node/1,
    long_names_work_as_well/1,
    config_exs_says_where_to_listen/1,
    runtime_exs_says_where_to_listen/1,
    runtime_exs_is_enough_for_another_user/1,
    first_steps_of_a_user_who_is_not_root/1,
    runtime_exs_with_reboot_says_where_to_listen/1,
    vm_args_reach_all_commands/1,
    files_for_the_package_of_hex_go_on_working/1,
    wrong_settings_end_the_boot/1,
    nodes_share_a_volume_that_all_may_write_to/1,
    probes_tell_starting_from_ready/1,
    probes_fail_with_the_start/1,
    deployment_files_fit_the_template/1,
    iex_sessions_of_a_project_connect/1
]).

-include_lib("stdlib/include/assert.hrl").

-define(COOKIE, "uds_dist_test").
%% Two users without accounts.
-define(ALICE, 12345).
-define(BOB, 23456).

all() ->
    test_node:cases(?MODULE) -- [init_per_suite, end_per_suite].

suite() ->
    test_node:suite().

%% Builds each release once. They share the compiled code.
init_per_suite(Config) ->
    case os:find_executable("mix") of
        false ->
            %% CI installs it, and must not pass without these tests.
            os:getenv("CI") =:= "true" andalso error("there is no Elixir (mix) on PATH"),
            {skip, "there is no Elixir (mix) on PATH"};
        _ ->
            Dir = test_project:temporary(),
            %% Other users run a release in this directory.
            ok = file:change_mode(Dir, 8#755),
            ok = test_project:copy_tree(filename:join(Dir, "uds_dist"), built),
            Config1 = [{project_dir, Dir} | Config],
            mix_release(template, Config1),
            SocketDir = setting({"socket_dir", in_project_dir("sockets", Config1)}),
            build(config_exs, [{"config/config.exs", exs([SocketDir])}], Config1),
            build(runtime_exs, [{"config/runtime.exs", exs([])}], Config1),
            Reboot = [{"config/runtime.exs", exs([])}, {"mix.exs", rebooting(Config1)}],
            build(reboot, Reboot, Config1),
            build(starting, [{"lib/my_app.ex", starting_application()}], Config1),
            Config1
    end.

end_per_suite(Config) ->
    ok = file:del_dir_r(proplists:get_value(project_dir, Config)).

%% The template with flags in vm.args instead of env.sh, and with other files.
build(Name, Files, Config) ->
    Project = project(Name, Config),
    ok = test_project:run("cp -R elixir_release \"$0\" && rm \"$0/rel/env.sh.eex\"", #{
        dir => filename:dirname(Project), argument => Project
    }),
    Flags = "-proto_dist uds\n-no_epmd\n",
    [
        write(Project, File, Text)
     || {File, Text} <- [{"rel/vm.args.eex", Flags}, {"rel/remote.vm.args.eex", Flags} | Files]
    ],
    mix_release(Name, Config).

mix_release(Name, Config) ->
    ok = test_project:run("mix release --quiet --path \"$0\"", #{
        dir => project(Name, Config),
        env => [{"MIX_BUILD_PATH", in_project_dir("build", Config)} | mix_env("prod", Config)],
        argument => release(Name, Config)
    }).

%% From there, the path of the dependency, ../.., leads to the tree.
project(template, Config) -> in_project_dir("uds_dist/examples/elixir_release", Config);
project(Name, Config) -> in_project_dir(lists:concat(["uds_dist/examples/", Name]), Config).

release(Name, Config) -> in_project_dir(lists:concat(["release/", Name]), Config).

in_project_dir(Name, Config) ->
    filename:join(proplists:get_value(project_dir, Config), Name).

mix_env(Env, Config) ->
    [
        {"MIX_ENV", Env},
        {"MIX_HOME", in_project_dir("mix", Config)},
        {"TMPDIR", proplists:get_value(project_dir, Config)},
        {"MIX_REBAR3", os:find_executable("rebar3")},
        {"LANG", "C.UTF-8"}
    ].

%% The template's mix.exs, for a release that reboots once its configuration is complete.
rebooting(Config) ->
    {ok, Mix} = file:read_file(filename:join(project(template, Config), "mix.exs")),
    [Before, After] = string:split(Mix, "app: :my_app,"),
    Releases = "app: :my_app, releases: [my_app: [reboot_system_after_config: true]],",
    [Before, Releases, After].

%% The start of this application waits for a file, or fails.
starting_application() ->
    "defmodule MyApp do\n"
    "  use Application\n"
    "  def start(_type, _args) do\n"
    "    case System.fetch_env!(\"MY_APP_START\") do\n"
    "      \"failing\" -> raise \"cannot start\"\n"
    "      file -> wait_for(file)\n"
    "    end\n"
    "    Supervisor.start_link([], strategy: :one_for_one)\n"
    "  end\n"
    "  defp wait_for(file) do\n"
    "    unless File.exists?(file) do\n"
    "      Process.sleep(50)\n"
    "      wait_for(file)\n"
    "    end\n"
    "  end\n"
    "end\n".

exs(Lines) ->
    ["import Config\n" | [[Line, "\n"] || Line <- Lines]].

write(Dir, Name, Text) ->
    File = filename:join(Dir, Name),
    ok = filelib:ensure_dir(File),
    ok = file:write_file(File, Text).

init_per_testcase(_Case, Config) ->
    test_release:init(Config).

end_per_testcase(_Case, Config) ->
    test_release:cleanup(in_project_dir("release", Config), Config).

%% ---------------------------------------------------------------------------------------------
%% Commands of the template

commands_reach_the_node(Config) ->
    Env = [{"UDS_DIST_DIR", sockets(Config)}],
    Started = start(template, Env, Config),
    Run = fun(Command) -> command(Command, template, Env, Config) end,
    ?assertEqual({0, test_release:os_pid(Started) ++ "\n"}, Run("pid")),
    ?assertEqual({0, atom_to_list(node_name()) ++ "\n"}, Run("rpc 'IO.puts(node())'")),
    %% The command is a node of its own, which is in the list.
    Names = "{:ok, names} = :uds_dist.names()\nIO.puts(names |> Enum.take(2) |> Enum.join(\" \"))",
    ?assertEqual({0, "my_app probe\n"}, Run("rpc '" ++ Names ++ "'")),
    ?assertEqual({0, "false\n"}, Run("eval 'IO.puts(Node.alive?())'")),
    true = test_release:expect_sockets(["my_app.sock", "probe.sock"], sockets(Config)),
    stop(Started, template, Env, Config),
    true = test_release:expect_sockets(["probe.sock"], sockets(Config)).

%% The script takes directory, cookie and name from the same places as the commands of the release. The cookie is that
%% of the release, unless the environment has another one.
helper_reaches_the_node(Config) ->
    {ok, Cookie} = file:read_file(filename:join(release(template, Config), "releases/COOKIE")),
    Dir = sockets(Config),
    Env = [{"UDS_DIST_DIR", Dir}, {"RELEASE_COOKIE", false}],
    Probe = test_release:probe(Dir, binary_to_list(Cookie), Config),
    Port = start_command(template, Env, Config),
    test_release:expect_started(Probe, node_name()),
    Started = #{port => Port, probe => Probe},
    Node = atom_to_list(node_name()),
    Help = fun(Command) -> probe(Command, template, Env, Config) end,
    ?assertEqual({0, "pong from " ++ Node ++ "\n"}, Help("ping --started --app my_app")),
    ?assertEqual({0, test_release:os_pid(Started) ++ "\n"}, Help("pid")),
    ?assertEqual({0, Node ++ "\n:ok\n"}, Help("rpc 'IO.puts(node())'")),
    ?assertEqual({0, "3\n"}, Help("rpc Enum sum '[[1, 2]]'")),
    ?assertEqual({0, "[a: 1]\n"}, Help("eval '[a: 1]'")),
    ?assertMatch({0, "NODE" ++ _}, Help("peers")),
    ?assertEqual({0, "probe@" ++ test_project:host() ++ "\n"}, Help("peers -q")),
    {0, Status} = Help("status"),
    test_node:expect_output_of([Status], "^Node\tElixir\t1\\."),
    ?assertEqual({0, "my_app\nprobe\n"}, Help("names -q")),
    ?assertMatch({0, "Talks to Erlang and Elixir nodes" ++ _}, Help("")),
    ?assertMatch({0, "uds_dist " ++ _}, Help("--version")),
    %% It works through a symbolic link, such as one in /usr/local/bin, and from any directory.
    Link = filename:join(test_node:dir(Config), "asks"),
    ok = file:make_symlink(script(template, Config) ++ "-node", Link),
    ?assertMatch({0, "pong from" ++ _}, test_release:command("'" ++ Link ++ "' ping", env(Env))),
    ?assertEqual({0, ""}, Help("stop")),
    test_release:expect_end(Started),
    ?assertMatch({1, "uds_dist: my_app at " ++ _}, Help("ping")).

remote_opens_a_shell_in_the_node(Config) ->
    Env = [{"UDS_DIST_DIR", sockets(Config)}],
    Started = start(template, Env, Config),
    {0, _} = test_project:terminal(
        "exec '" ++ script(template, Config) ++ "' remote",
        [
            {"iex\\(my_app@.*\\)1> ", "IO.puts(\"shell of #{node()}\")\n"},
            {"shell of my_app@", ""},
            {"iex\\(my_app@.*\\)2> ", [7]},
            {"--> ", "q\n"}
        ],
        #{env => env(Env)}
    ),
    true = test_release:expect_sockets(["my_app.sock", "probe.sock"], sockets(Config)),
    stop(Started, template, Env, Config).

restarted_node_listens_again(Config) ->
    Env = [{"UDS_DIST_DIR", sockets(Config)}],
    #{probe := Probe} = Started = start(template, Env, Config),
    Before = test_release:creation(Probe, node_name()),
    {0, ""} = command("restart", template, Env, Config),
    test_release:expect_restarted(Probe, node_name(), Before),
    ?assertEqual({0, test_release:os_pid(Started) ++ "\n"}, command("pid", template, Env, Config)),
    stop(Started, template, Env, Config).

daemon_is_a_node_like_any(Config) ->
    Env = [{"UDS_DIST_DIR", sockets(Config)}, {"RELEASE_TMP", test_node:dir("tmp", Config)}],
    Probe = test_release:probe(sockets(Config), ?COOKIE, Config),
    [
        begin
            {0, ""} = command(Command, template, Env, Config),
            test_release:expect_started(Probe, node_name()),
            ?assertMatch({0, [_ | _]}, command("pid", template, Env, Config)),
            {0, _} = command("stop", template, Env, Config),
            Running = fun() -> test_project:running_of(release(template, Config)) end,
            test_node:expect(fun() -> Running() =:= [] orelse Running() end, {Command, ends}),
            true = test_release:expect_sockets(["probe.sock"], sockets(Config))
        end
     || Command <- ["daemon", "daemon_iex"]
    ].

start_iex_is_a_shell_of_the_node(Config) ->
    {0, _} = test_project:terminal(
        "exec '" ++ script(template, Config) ++ "' start_iex",
        [
            {"iex\\(my_app@.*\\)1> ", "IO.puts(\"listening as #{elem(:uds_dist.names(), 1)}\")\n"},
            {"listening as my_app", ""},
            {"iex\\(my_app@.*\\)2> ", "System.stop()\n"}
        ],
        #{env => env([{"UDS_DIST_DIR", sockets(Config)}])}
    ),
    true = test_release:expect_sockets([], sockets(Config)).

long_names_work_as_well(Config) ->
    Env = [
        {"UDS_DIST_DIR", sockets(Config)},
        {"RELEASE_DISTRIBUTION", "name"},
        {"RELEASE_NODE", "other@127.0.0.1"}
    ],
    Port = start_command(template, Env, Config),
    Socket = filename:join(sockets(Config), "other.sock"),
    test_node:expect(fun() -> test_system:is_listening(Socket) end, listening),
    ?assertEqual(
        {0, "other@127.0.0.1\n"}, command("rpc 'IO.puts(node())'", template, Env, Config)
    ),
    {0, _} = command("stop", template, Env, Config),
    test_release:expect_end(#{port => Port}).

%% ---------------------------------------------------------------------------------------------
%% Sources of socket_dir

%% The commands do not read this source, so they need the variable.
config_exs_says_where_to_listen(Config) ->
    node_listens_in(in_project_dir("sockets", Config), config_exs, Config).

runtime_exs_says_where_to_listen(Config) ->
    Dir = sockets(Config),
    configure(runtime_exs, [{"socket_dir", Dir}], Config),
    node_listens_in(Dir, runtime_exs, Config).

%% With this option, Elixir does not start distribution before the configuration is complete.
runtime_exs_with_reboot_says_where_to_listen(Config) ->
    Dir = sockets(Config),
    configure(reboot, [{"socket_dir", Dir}], Config),
    node_listens_in(Dir, reboot, Config).

node_listens_in(Dir, Name, Config) ->
    Started = start(Name, [], Dir, Config),
    ?assertEqual([], sockets_in("/")),
    Env = [{"UDS_DIST_DIR", Dir}],
    ?assertEqual({0, test_release:os_pid(Started) ++ "\n"}, command("pid", Name, Env, Config)),
    %% In the root directory, it would listen for a moment, and another test checks that directory.
    Elsewhere = test_node:dir("elsewhere", Config),
    {Status, Output} = test_project:output("exec \"$0\" pid", #{
        dir => Elsewhere, argument => script(Name, Config), env => test_release:env(env([]))
    }),
    ?assertNotEqual(0, Status),
    Why = ["there is no socket ", Elsewhere, "/my_app\\.sock; .*set UDS_DIST_DIR or -uds_dist_dir"],
    test_node:expect_output_of(Output, Why),
    {0, _} = command("stop", Name, Env, Config),
    ?assertEqual(nomatch, string:find(test_release:expect_end(Started), "[error]")).

%% The service is started in the root directory with an empty environment, as by an init system.
runtime_exs_is_enough_for_another_user(Config) ->
    Dir = filename:join(owned_dir(?ALICE, Config), "run"),
    case test_project:may_run_as(?ALICE, script(runtime_exs, Config)) of
        false ->
            {skip, "only root can start a release as another user, who must be able to read it"};
        true ->
            configure(runtime_exs, [{"socket_dir", Dir}], Config),
            Tmp = filename:join(release(runtime_exs, Config), "tmp"),
            ok = filelib:ensure_path(Tmp),
            ok = file:change_owner(Tmp, ?ALICE, ?ALICE),
            Before = file:list_dir("/"),
            Port = test_project:background(
                "exec env -i PATH=\"$PATH\" " ++ test_project:as(?ALICE) ++ " \"$0\" start",
                #{argument => script(runtime_exs, Config)}
            ),
            {os_pid, OsPid} = erlang:port_info(Port, os_pid),
            Socket = filename:join(Dir, "my_app.sock"),
            test_node:expect(fun() -> test_system:is_listening(Socket) end, listening),
            ?assertEqual(Before, file:list_dir("/")),
            ok = test_node:signal("TERM", OsPid),
            test_release:expect_end(#{port => Port}),
            true = test_release:expect_sockets([], Dir)
    end.

%% Only root may create directories in the parent directory, as in /run. The message names the missing step.
first_steps_of_a_user_who_is_not_root(Config) ->
    Dir = filename:join(test_node:dir("run", Config), "my_app"),
    Tmp = owned_dir(?ALICE, Config),
    Env = env([{"UDS_DIST_DIR", Dir}, {"RELEASE_TMP", Tmp}, {"HOME", Tmp}]),
    As = fun(Uid, Command) -> test_project:as(Uid) ++ " '" ++ script(template, Config) ++ Command end,
    Run = fun(Uid, Command) -> test_release:command(As(Uid, Command), Env) end,
    case test_project:may_run_as(?ALICE, script(template, Config)) of
        false ->
            {skip, "only root can start a release as another user, who must be able to read it"};
        true ->
            Step = "install -d -o 12345 -m 0700 " ++ Dir,
            {Status, Output} = Run(?ALICE, "' start"),
            ?assertNotEqual(0, Status),
            test_node:expect_output_of(Output, [
                "^uds_dist: cannot listen as my_app: cannot create the directory ", Dir, ": .*", Step
            ]),
            [] = os:cmd(Step),
            Port = test_release:start_command(As(?ALICE, "' start"), Env),
            Socket = filename:join(Dir, "my_app.sock"),
            test_node:expect(fun() -> test_system:is_listening(Socket) end, listening),
            Node = atom_to_list(node_name()),
            OsPid = test_release:os_pid(#{port => Port}),
            Ping = "-node' ping --started --wait 30s",
            ?assertEqual({0, "pong from " ++ Node ++ "\n"}, Run(?ALICE, Ping)),
            ?assertEqual({0, OsPid ++ "\n"}, Run(?ALICE, "' pid")),
            ?assertEqual({0, Node ++ "\n"}, Run(?ALICE, "' rpc 'IO.puts(node())'")),
            %% Root is refused too, because the user could replace the socket.
            [
                begin
                    {1, Refused} = Run(Uid, "' rpc 'IO.puts(node())'"),
                    test_node:expect_output_of(Refused, [
                        "the directory ", Dir, " belongs to uid 12345, .*as that user"
                    ])
                end
             || Uid <- [?BOB, 0]
            ],
            ?assertEqual({0, ""}, Run(?ALICE, "' stop")),
            test_release:expect_end(#{port => Port}),
            true = test_release:expect_sockets([], Dir)
    end.

vm_args_reach_all_commands(Config) ->
    Dir = sockets(Config),
    configure(runtime_exs, [], Config),
    Files = [
        filename:join([release(runtime_exs, Config), "releases/0.1.0", File])
     || File <- ["vm.args", "remote.vm.args"]
    ],
    Before = [file:read_file(File) || File <- Files],
    [ok = file:write_file(File, ["-uds_dist_dir ", Dir, "\n"], [append]) || File <- Files],
    try
        Started = start(runtime_exs, [], Config),
        OsPid = test_release:os_pid(Started),
        ?assertEqual({0, OsPid ++ "\n"}, command("pid", runtime_exs, [], Config)),
        stop(Started, runtime_exs, [], Config)
    after
        [ok = file:write_file(File, Text) || {File, {ok, Text}} <- lists:zip(Files, Before)]
    end.

%% The files are from the documentation of hex's uds_dist, with a directory of the test instead of /run, and with the
%% line that docs/migrating.md adds to env.sh.
files_for_the_package_of_hex_go_on_working(Config) ->
    Run = sockets(Config),
    ok = file:make_dir(Run),
    Directory = [Run, "/${RELEASE_NAME}"],
    Files = [
        {"releases/0.1.0/remote.vm.args", "-dist_listen false\n"},
        {"releases/0.1.0/env.sh", ["\nmkdir -p \"", Directory, "\"\n"]},
        {"releases/0.1.0/env.sh", ["export UDS_DIST_DIR=\"", Directory, "\"\n"]}
    ],
    Release = release(runtime_exs, Config),
    Before = [{File, file:read_file(filename:join(Release, File))} || {File, _} <- Files],
    SocketDir = ["config :uds_dist, socket_dir: \"", Run, "/#{System.get_env(\"RELEASE_NAME\", \"myapp\")}\""],
    write(Release, "releases/0.1.0/runtime.exs", exs([SocketDir, "config :uds_dist, backlog: 128"])),
    try
        [ok = file:write_file(filename:join(Release, File), Text, [append]) || {File, Text} <- Files],
        Started = start(runtime_exs, [], filename:join(Run, "my_app"), Config),
        %% No command creates a socket of its own.
        Names = "{:ok, names} = :uds_dist.names()\nIO.inspect(Enum.map(names, &to_string/1))",
        Rpc = command("rpc '" ++ Names ++ "'", runtime_exs, [], Config),
        ?assertEqual({0, "[\"my_app\", \"probe\"]\n"}, Rpc),
        ?assertEqual({0, test_release:os_pid(Started) ++ "\n"}, command("pid", runtime_exs, [], Config)),
        stop(Started, runtime_exs, [], Config)
    after
        [ok = file:write_file(filename:join(Release, File), Text) || {File, {ok, Text}} <- Before]
    end.

%% One line says what is wrong, and the node does not run unreachable. Here the settings arrive late;
%% erlang_release_SUITE tests settings that are there from the start.
wrong_settings_end_the_boot(Config) ->
    Private = owned_dir(?BOB, Config),
    [
        begin
            configure(runtime_exs, [Setting], Config),
            {Status, Output} = command("start", runtime_exs, [], Config),
            ?assertNotEqual({0, Setting}, {Status, Setting}),
            test_node:expect_output_of(Output, ["uds_dist: .*", Message]),
            ?assertEqual([], sockets_in("/") ++ sockets_in(Private))
        end
     || {Setting, Message} <- [
            {{"socket_dirr", "/run/x"}, "uds_dist has no setting socket_dirr; it has socket_dir"},
            {{"socket_dir", Private}, ["the directory ", Private, " belongs to uid 23456"]}
        ]
    ].

%% ---------------------------------------------------------------------------------------------
%% Deployment

%% The setup of examples/kubernetes/pod.yaml.
nodes_share_a_volume_that_all_may_write_to(Config) ->
    Volume = test_node:dir("volume", Config),
    ok = file:change_mode(Volume, 8#777),
    Dir = filename:join(Volume, "nodes"),
    App = [{"UDS_DIST_DIR", Dir}],
    Worker = [{"RELEASE_NODE", "worker"} | App],
    Ports = [
        begin
            Port = start_command(template, Env, Config),
            Socket = filename:join(Dir, Name ++ ".sock"),
            test_node:expect(fun() -> test_system:is_listening(Socket) end, {listening, Name}),
            Port
        end
     || {Name, Env} <- [{"my_app", App}, {"worker", Worker}]
    ],
    Connect = io_lib:format("rpc 'IO.inspect(Node.connect(:\"~s\"))'", [node_name()]),
    ?assertEqual({0, "true\n"}, command(Connect, template, Worker, Config)),
    [
        ?assertEqual({0, "pong from " ++ Name ++ "@" ++ test_project:host() ++ "\n"}, Result)
     || {Name, Env} <- [{"my_app", App}, {"worker", Worker}],
        {_, Probe} <- probes(Config),
        Result <- [probe(Probe ++ " --wait 30s", template, Env, Config)]
    ],
    [?assertEqual({0, ""}, command("stop", template, Env, Config)) || Env <- [App, Worker]],
    [test_release:expect_end(#{port => Port}) || Port <- Ports],
    [
        ?assertMatch({Name, {1, _}}, {Name, probe(Probe, template, Env, Config)})
     || Env <- [App, Worker], {Name, Probe} <- probes(Config)
    ].

%% The probes of the pod (startup, readiness, liveness), and that of the systemd unit, after which other units start.
probes_tell_starting_from_ready(Config) ->
    Start = filename:join(test_node:dir(Config), "start"),
    Env = [{"UDS_DIST_DIR", sockets(Config)}, {"MY_APP_START", Start}],
    Port = start_command(starting, Env, Config),
    Unit = unit_waits(Port, Env, Config),
    Probe = fun(Name) ->
        {Status, _} = probe(proplists:get_value(Name, probes(Config)), starting, Env, Config),
        {Name, Status}
    end,
    {0, _} = probe("ping --wait 30s", starting, Env, Config),
    ?assertEqual({liveness, 0}, Probe(liveness)),
    ?assertEqual({startup, 6}, Probe(startup)),
    ?assertEqual({readiness, 6}, Probe(readiness)),
    %% It is still waiting.
    ?assertMatch({os_pid, _}, erlang:port_info(Unit, os_pid)),
    ok = file:write_file(Start, ""),
    ?assertMatch({0, "pong from " ++ _}, test_project:collect(Unit)),
    [?assertEqual({Name, 0}, Probe(Name)) || Name <- [startup, readiness, liveness]],
    %% The liveness probe succeeds even if an application has stopped.
    ?assertEqual({0, ""}, command("rpc 'Application.stop(:my_app)'", starting, Env, Config)),
    [
        ?assertEqual(Expected, Probe(Name))
     || {Name, _} = Expected <- [{startup, 0}, {readiness, 6}, {liveness, 0}]
    ],
    {0, _} = command("stop", starting, Env, Config),
    test_release:expect_end(#{port => Port}).

%% The command stops waiting once the node has ended.
probes_fail_with_the_start(Config) ->
    Env = [{"UDS_DIST_DIR", sockets(Config)}, {"MY_APP_START", "failing"}],
    Port = start_command(starting, Env, Config),
    {os_pid, OsPid} = erlang:port_info(Port, os_pid),
    Unit = unit_waits(Port, Env, Config),
    {Status, _} = test_project:collect(Port),
    ?assertNotEqual(0, Status),
    Begin = erlang:monotonic_time(millisecond),
    {1, Output} = test_project:collect(Unit),
    ?assert(erlang:monotonic_time(millisecond) - Begin < 30000),
    test_node:expect_output_of(Output, ["; process ", integer_to_list(OsPid), " has ended"]),
    [
        ?assertMatch({Name, {1, _}}, {Name, probe(Probe, starting, Env, Config)})
     || {Name, Probe} <- probes(Config)
    ].

%% Runs the commands with which systemd waits for the node.
unit_waits(Node, Env, Config) ->
    [_, Unit | _] = deployment_files(Config),
    [Line] = all_of("^ExecStartPost=/opt/my_app/bin/my_app-node (.*)$", Unit),
    {os_pid, OsPid} = erlang:port_info(Node, os_pid),
    Words = string:replace(Line, "$MAINPID", integer_to_list(OsPid)),
    ?assertMatch([_, _, _], Words),
    helper(lists:flatten(Words), starting, Env, Config).

%% The probes in the deployment files, without the path of the program, such as "ping --started".
probes(Config) ->
    [_, _, Dockerfile, Pod] = deployment_files(Config),
    Words = "\\[\"/opt/my_app/bin/my_app-node\", \"([^]]*)\"\\]",
    Health = all_of(["HEALTHCHECK .*\\\\\\s+CMD ", Words], Dockerfile),
    Kinds = [startup, readiness, liveness],
    Probes = [
        {Kind, all_of([atom_to_list(Kind), "Probe:\\s+exec:\\s+command: ", Words], Pod)}
     || Kind <- Kinds
    ],
    %% Both containers have the same probes.
    [
        {Kind, lists:append(string:replace(Probe, "\", \"", " ", all))}
     || {Kind, [Probe | Others]} <- [{health, Health ++ Health} | Probes], Others =:= [Probe]
    ].

probe(Probe, Name, Env, Config) ->
    test_project:collect(helper(Probe, Name, Env, Config)).

helper(Command, Name, Env, Config) ->
    test_release:start_command("'" ++ script(Name, Config) ++ "-node' " ++ Command, env(Env)).

deployment_files(Config) ->
    [
        element(2, file:read_file(in_project_dir("uds_dist/examples/" ++ File, Config)))
     || File <- [
            "elixir_release/rel/env.sh.eex",
            "systemd/my_app.service",
            "kubernetes/Dockerfile",
            "kubernetes/pod.yaml"
        ]
    ].

%% The paths in the files agree with the template.
deployment_files_fit_the_template(Config) ->
    [EnvSh, Unit, Dockerfile, Pod] = deployment_files(Config),
    [Dir] = all_of("UDS_DIST_DIR:-(.*)}", EnvSh),
    [Start] = all_of("^ExecStart=(.*)$", Unit),
    [Script, "start"] = string:lexemes(Start, " "),
    ?assertEqual([Dir], all_of("^Environment=UDS_DIST_DIR=(.*)$", Unit)),
    ?assertEqual([Dir], ["/run/" ++ Name || Name <- all_of("^RuntimeDirectory=(.*)$", Unit)]),
    ?assertEqual([Script], all_of("^ENTRYPOINT \\[\"(.*)\"\\]$", Dockerfile)),
    ?assertEqual([Script], [Path ++ "/bin/my_app" || Path <- all_of("--path (.*)$", Dockerfile)]),
    ?assertEqual([Dir], all_of("^RUN install .* (/.*)$", Dockerfile)),
    ?assertEqual([Dir, Dir], all_of("mountPath: (.*)$", Pod)),
    [Shared, Shared] = all_of("UDS_DIST_DIR\\s+value: (.*)$", Pod),
    ?assertEqual(Dir, filename:dirname(Shared)),
    ?assertEqual(all_of("^USER (\\d+):", Dockerfile), all_of("runAsUser: (.*)$", Pod)),
    ?assertEqual([Script, Script, Script ++ "-node"], all_of("-- (/\\S+)", Pod)),
    ?assertEqual([health, startup, readiness, liveness], [Kind || {Kind, _} <- probes(Config)]),
    verify_unit(string:replace(Unit, Script, script(template, Config), all), Config).

all_of(Regexp, Text) ->
    {match, Found} = re:run(Text, Regexp, [global, multiline, {capture, [1], list}]),
    lists:append(Found).

verify_unit(Unit, Config) ->
    case os:find_executable("systemd-analyze") of
        false ->
            {comment, "the systemd unit is not verified: there is no systemd-analyze"};
        SystemdAnalyze ->
            File = filename:join(test_node:dir(Config), "my_app.service"),
            ok = file:write_file(File, Unit),
            ok = test_project:run("'" ++ SystemdAnalyze ++ "' verify --man=no \"$0\"", #{
                argument => File
            })
    end.

%% ---------------------------------------------------------------------------------------------
%% Development

%% The commands are those of the README.
iex_sessions_of_a_project_connect(Config) ->
    Project = project(template, Config),
    Env = mix_env("dev", Config),
    ok = test_project:run("mix compile", #{dir => Project, env => Env}),
    Iex = fun(Name) ->
        "exec iex --sname " ++ Name ++
            " --erl '-proto_dist uds -no_epmd -pa _build/dev/lib/uds_dist/ebin' -S " ++ mix()
    end,
    Options = #{dir => Project, env => Env},
    Self = self(),
    A = spawn_link(fun() ->
        Dialogue = [{"iex\\(a@.*\\)1> ", "File.write!(\"ready\", \"\")\n"}],
        Self ! {self(), test_project:terminal(Iex("a"), Dialogue, Options)}
    end),
    Ready = filename:join(Project, "ready"),
    test_node:expect(fun() -> filelib:is_file(Ready) end, first_session_is_ready),
    ?assertEqual(["a.sock"], sockets_in(Project)),
    NameOfA = ":\"a@" ++ test_project:host() ++ "\"",
    {0, _} = test_project:terminal(
        Iex("b"),
        [
            {"iex\\(b@.*\\)1> ", "Node.connect(" ++ NameOfA ++ ")\n"},
            {"true", ":rpc.call(" ++ NameOfA ++ ", System, :stop, [])\n"},
            {":ok", "System.stop()\n"}
        ],
        Options
    ),
    receive
        {A, Result} -> ?assertMatch({0, _}, Result)
    end.

%% The real iex, because the one on PATH may be a shell script that calls it.
mix() ->
    {0, Lib} = test_project:output("elixir -e 'IO.write(:code.lib_dir(:elixir))'", #{}),
    filename:join(Lib, "../../bin/mix").

%% ---------------------------------------------------------------------------------------------

start(Name, Env, Config) ->
    start(Name, Env, sockets(Config), Config).

start(Name, Env, Dir, Config) ->
    Probe = test_release:probe(Dir, ?COOKIE, Config),
    Port = start_command(Name, Env, Config),
    test_release:expect_started(Probe, node_name()),
    #{port => Port, probe => Probe}.

start_command(Name, Env, Config) ->
    test_release:start_command("'" ++ script(Name, Config) ++ "' start", env(Env)).

stop(Started, Name, Env, Config) ->
    ?assertEqual({0, ""}, command("stop", Name, Env, Config)),
    test_release:expect_end(Started).

command(Command, Name, Env, Config) ->
    test_release:command("'" ++ script(Name, Config) ++ "' " ++ Command, env(Env)).

env(Env) ->
    [{"RELEASE_COOKIE", ?COOKIE} | Env].

script(Name, Config) ->
    filename:join(release(Name, Config), "bin/my_app").

node_name() ->
    list_to_atom("my_app@" ++ test_project:host()).

configure(Name, Settings, Config) ->
    Lines = lists:map(fun setting/1, Settings),
    write(release(Name, Config), "releases/0.1.0/runtime.exs", exs(Lines)).

setting({Key, Value}) ->
    io_lib:format("config :uds_dist, ~s: \"~s\"", [Key, Value]).

sockets(Config) ->
    test_release:sockets(Config).

sockets_in(Dir) ->
    test_release:sockets_in(Dir).

owned_dir(Uid, Config) ->
    Dir = test_node:dir("owned", Config),
    ok = file:change_owner(Dir, Uid, Uid),
    Dir.
