%% The project as others build it: as a dependency that is a git repository, by `rebar3 compile` and
%% `rebar3 release` alone.
-module(packaging_SUITE).

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1]).
-export([init_per_testcase/2, end_per_testcase/2]).
-export([
    dependency_needs_only_compile/1,
    second_compile_rebuilds_nothing/1,
    release_runs_with_its_own_sidecar/1,
    install_needs_only_cargo/1,
    missing_cargo_fails_with_what_to_install/1,
    failing_cargo_fails_with_its_error/1,
    clean_removes_what_was_built/1
]).

-include_lib("stdlib/include/assert.hrl").

all() ->
    [
        dependency_needs_only_compile,
        second_compile_rebuilds_nothing,
        release_runs_with_its_own_sidecar,
        install_needs_only_cargo,
        missing_cargo_fails_with_what_to_install,
        failing_cargo_fails_with_its_error,
        clean_removes_what_was_built
    ].

%% A release build of the sidecar is part of it.
suite() ->
    [{timetrap, {minutes, 10}}].

%% A repository with the tree as it is, and a project that depends on it, compiled.
init_per_suite(Config) ->
    Dir = test_project:temporary(),
    Repository = filename:join(Dir, "uds_dist"),
    ok = test_project:copy_tree(Repository, clean),
    ok = run("git init -q -b main && git add -A && "
             "git -c user.name=test -c user.email=test@localhost commit -qm test", Repository, []),
    Project = filename:join(Dir, "project"),
    ok = filelib:ensure_dir(filename:join(Project, "src/x")),
    test_project:write(Project, "rebar.config", [
        {deps, [{uds_dist, {git, "file://" ++ Repository, {branch, "main"}}}]},
        {relx, [
            {release, {probe, "1"}, [probe]},
            {mode, prod},
            {include_erts, false},
            {extended_start_script, true},
            {vm_args, "vm.args"}
        ]}
    ]),
    test_project:write(Project, "src/probe.app.src", [
        {application, probe, [{vsn, "1"}, {applications, [kernel, stdlib, uds_dist]}]}
    ]),
    %% With a host: to find one, the start script would start a node, and with it an epmd.
    Vm = "-sname probe@localhost\n-proto_dist uds\n-no_epmd\n-setcookie uds_dist_test\n",
    ok = file:write_file(filename:join(Project, "vm.args"), Vm),
    ok = run("rebar3 compile", Project, []),
    [{packaging, Dir}, {repository, Repository}, {project, Project} | Config].

end_per_suite(Config) ->
    ok = file:del_dir_r(proplists:get_value(packaging, Config)).

init_per_testcase(_Case, Config) ->
    test_node:init(Config).

end_per_testcase(_Case, Config) ->
    test_node:cleanup(Config).

%% Two nodes with what `rebar3 compile` has put into _build.
dependency_needs_only_compile(Config) ->
    Otp = {test_node:erl(), filename:join(dependency(Config), "ebin")},
    Args = ["-pa", filename:dirname(code:which(?MODULE))],
    [A, B] = [test_node:start(Name, #{otp => Otp, args => Args}, Config) || Name <- ["a", "b"]],
    ?assertEqual(
        filename:join(dependency(Config), "priv/uds_dist_sidecar"),
        test_node:call(A, uds_dist_config, sidecar_path, [])
    ),
    ?assertEqual(pong, test_node:call(A, net_adm, ping, [test_node:name(B)])).

%% Both programs stay the same files.
second_compile_rebuilds_nothing(Config) ->
    Programs = [filename:join([dependency(Config), "priv", Name]) || Name <- ["uds_dist", "uds_dist_sidecar"]],
    Before = [mtime(file:read_file_info(Program)) || Program <- Programs],
    {0, Output} = output("rebar3 compile", project(Config), []),
    ?assertEqual(nomatch, string:find(Output, "Compiling uds_dist v")),
    ?assertEqual(Before, [mtime(file:read_file_info(Program)) || Program <- Programs]).

mtime({ok, Info}) -> element(6, Info).

%% The release has the sidecar in its lib, and its node connects over it.
release_runs_with_its_own_sidecar(Config) ->
    ok = run("rebar3 release", project(Config), []),
    Release = filename:join(project(Config), "_build/default/rel/probe"),
    [Sidecar] = filelib:wildcard(filename:join(Release, "lib/uds_dist-*/priv/uds_dist_sidecar")),
    CommandLine = filename:join(filename:dirname(Sidecar), "uds_dist"),
    {0, "uds_dist " ++ _} = output("'" ++ CommandLine ++ "' --version", "/", []),
    Sockets = filename:join(test_node:dir(Config), "sockets"),
    Node = test_node:start("a", #{dir => Sockets}, Config),
    Script = filename:join(Release, "bin/probe"),
    Port = test_project:background("exec \"$0\" foreground", #{
        argument => Script, env => [{"UDS_DIST_DIR", Sockets}]
    }),
    test_node:expect(
        fun() ->
            case test_node:call(Node, net_adm, ping, [probe@localhost]) of
                pong -> {ok, pong};
                pang -> {pang, os:cmd("ls -la '" ++ Sockets ++ "'")}
            end
        end,
        release_is_up
    ),
    Path = test_node:call(Node, erpc, call, [probe@localhost, uds_dist_config, sidecar_path, []]),
    ?assertEqual(real(Sidecar), real(Path)),
    %% The command line beside it works, also for a release in embedded mode.
    Env = [{"UDS_DIST_DIR", Sockets}, {"ERLANG_COOKIE", "uds_dist_test"}],
    ?assertEqual({0, "3\n"}, output("'" ++ CommandLine ++ "' eval probe '1 + 2'", "/", Env)),
    ?assertEqual({0, ""}, output("'" ++ CommandLine ++ "' stop probe", "/", Env)),
    ?assertMatch({0, _}, test_project:collect(Port)).

%% No Erlang is on the PATH.
install_needs_only_cargo(Config) ->
    Prefix = filename:join(test_node:dir(Config), "usr"),
    Bin = programs(["erl", "escript", "rebar3"], Config),
    ok = run("make install PREFIX=\"$0\"", dependency(Config), [{"PATH", Bin}], Prefix),
    {0, "uds_dist " ++ _} = output("'" ++ Prefix ++ "/bin/uds_dist' --version", "/", []),
    ?assertMatch([_ | _], filelib:wildcard(filename:join(Prefix, "share/man/man1/uds_dist*.1"))),
    Completions = filename:join(Prefix, "share/bash-completion/completions/uds_dist"),
    ?assert(filelib:is_regular(Completions)).

real(Path) ->
    string:trim(os:cmd("realpath '" ++ Path ++ "'")).

missing_cargo_fails_with_what_to_install(Config) ->
    Bin = programs(["cargo", "rustc"], Config),
    {Status, Output} = output("rebar3 compile", copy(Config), [{"PATH", Bin}]),
    ?assertNotEqual(0, Status),
    ?assertMatch([_ | _], string:find(Output, "cargo and rustc >= 1.85 are needed")),
    ?assertMatch([_ | _], string:find(Output, "install them")).

%% A directory with every program of PATH but these.
programs(Missing, Config) ->
    Bin = test_node:dir("bin", Config),
    ok = run(
        "IFS=:; for d in $PATH; do [ -d \"$d\" ] && ln -s \"$d\"/* . 2>/dev/null; done; "
        "rm -f " ++ lists:append(lists:join(" ", Missing)),
        Bin,
        []
    ),
    Bin.

%% What the compiler says is shown, and what it means.
failing_cargo_fails_with_its_error(Config) ->
    Copy = copy(Config),
    ok = run("cp -a \"$0/target\" . && echo 'no rust' >> src/sidecar/main.rs", Copy, [], dependency(Config)),
    {Status, Output} = output("rebar3 compile", Copy, []),
    ?assertNotEqual(0, Status),
    ?assertMatch([_ | _], string:find(Output, "src/sidecar/main.rs")),
    ?assertMatch([_ | _], string:find(Output, "cargo could not build the sidecar")).

%% Neither the programs nor what cargo made is left.
clean_removes_what_was_built(Config) ->
    Copy = copy(Config),
    ok = run("mkdir target && touch target/x priv/uds_dist priv/uds_dist_sidecar && rebar3 clean", Copy, []),
    ?assertNot(filelib:is_dir(filename:join(Copy, "target"))),
    ?assertEqual([], filelib:wildcard(filename:join(Copy, "priv/uds_dist*"))).

%% ---------------------------------------------------------------------------------------------

project(Config) ->
    proplists:get_value(project, Config).

dependency(Config) ->
    filename:join(project(Config), "_build/default/lib/uds_dist").

%% A clone to spoil.
copy(Config) ->
    Copy = filename:join(test_node:dir(Config), "copy"),
    Repository = proplists:get_value(repository, Config),
    ok = run("git clone -q \"$0\" copy", test_node:dir(Config), [], Repository),
    Copy.

run(Command, Dir, Env) ->
    test_project:run(Command, #{dir => Dir, env => Env}).

run(Command, Dir, Env, Argument) ->
    test_project:run(Command, #{dir => Dir, env => Env, argument => Argument}).

output(Command, Dir, Env) ->
    test_project:output(Command, #{dir => Dir, env => Env}).
