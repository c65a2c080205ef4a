%% The project as others build it: as a dependency that is a git repository or a package, by `rebar3
%% compile` and `rebar3 release` alone.
-module(packaging_SUITE).

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1]).
-export([init_per_testcase/2, end_per_testcase/2]).
-export([
    dependency_needs_only_compile/1,
    second_compile_rebuilds_nothing/1,
    release_runs_with_its_own_sidecar/1,
    install_needs_only_cargo/1,
    package_builds_without_a_network/1,
    sidecar_that_was_built_elsewhere_is_taken/1,
    programs_that_are_there_need_no_cargo/1,
    read_only_tree_is_left_alone/1,
    crates_can_be_packaged/1,
    missing_cargo_fails_with_what_to_install/1,
    missing_linker_fails_with_what_to_install/1,
    missing_network_fails_with_what_to_read/1,
    failing_cargo_fails_with_its_error/1,
    dependencies_are_built_before_the_project/1,
    mix_has_cargo_build_a_removed_sidecar_again/1,
    mix_cures_what_errors_are_about/1,
    rebar3_cures_what_errors_are_about/1,
    clean_removes_what_was_built/1
]).

-include_lib("stdlib/include/assert.hrl").
-include_lib("kernel/include/file.hrl").

-define(NOT_OPTIMIZED, [
    {"CARGO_PROFILE_RELEASE_OPT_LEVEL", "0"},
    {"CARGO_PROFILE_RELEASE_LTO", "off"},
    {"CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"}
]).

all() ->
    [
        dependency_needs_only_compile,
        second_compile_rebuilds_nothing,
        release_runs_with_its_own_sidecar,
        install_needs_only_cargo,
        package_builds_without_a_network,
        sidecar_that_was_built_elsewhere_is_taken,
        programs_that_are_there_need_no_cargo,
        read_only_tree_is_left_alone,
        crates_can_be_packaged,
        missing_cargo_fails_with_what_to_install,
        missing_linker_fails_with_what_to_install,
        missing_network_fails_with_what_to_read,
        failing_cargo_fails_with_its_error,
        dependencies_are_built_before_the_project,
        mix_has_cargo_build_a_removed_sidecar_again,
        mix_cures_what_errors_are_about,
        %% It removes what cargo has built.
        rebar3_cures_what_errors_are_about,
        clean_removes_what_was_built
    ].

suite() ->
    test_node:suite().

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
    %% The name includes a host. Otherwise, the start script would start a node to find it, and with it an epmd.
    Vm = "-sname probe@localhost\n-proto_dist uds\n-no_epmd\n-setcookie uds_dist_test\n",
    ok = file:write_file(filename:join(Project, "vm.args"), Vm),
    %% The compiler does not optimize, which would take most of the time.
    [true = os:putenv(Name, Value) || {Name, Value} <- ?NOT_OPTIMIZED],
    {0, Output} = output("rebar3 compile", Project, []),
    %% A line at the beginning and one at the end, in place of one for each crate.
    [_, Rest] = string:split(Output, "uds_dist: building the sidecar with cargo"),
    [_, _] = string:split(Rest, "uds_dist: built uds_dist_sidecar uds_dist in /"),
    nomatch = string:find(Output, "Compiling uds_dist v"),
    [{packaging, Dir}, {repository, Repository}, {project, Project} | Config].

end_per_suite(Config) ->
    [true = os:unsetenv(Name) || {Name, _} <- ?NOT_OPTIMIZED],
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
        test_node:call(A, uds_dist_program, path, [])
    ),
    ?assertEqual(pong, test_node:call(A, net_adm, ping, [test_node:name(B)])),
    ?assert(filelib:is_regular(filename:join(dependency(Config), "ebin/uds_dist.appup"))).

%% Both programs stay the same files.
second_compile_rebuilds_nothing(Config) ->
    Programs = [filename:join([dependency(Config), "priv", Name]) || Name <- ["uds_dist", "uds_dist_sidecar"]],
    Before = [mtime(file:read_file_info(Program)) || Program <- Programs],
    {0, Output} = output("rebar3 compile", project(Config), []),
    ?assertEqual(nomatch, string:find(Output, "uds_dist: ")),
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
    Path = test_node:call(Node, erpc, call, [probe@localhost, uds_dist_program, path, []]),
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
    ?assert(filelib:is_regular(Completions)),
    ok = run("make uninstall PREFIX=\"$0\"", dependency(Config), [{"PATH", Bin}], Prefix),
    ?assertEqual("", os:cmd("find '" ++ Prefix ++ "' -type f")).

real(Path) ->
    string:trim(os:cmd("realpath '" ++ Path ++ "'")).

%% What a package of hex has, with vendored crates, in a network namespace with nothing in it. Cargo is
%% told to build for a target, and elsewhere.
package_builds_without_a_network(Config) ->
    Project = test_node:dir("offline", Config),
    Dir = filename:join(Project, "_checkouts/uds_dist"),
    ok = unpack_package(Dir, Config),
    {match, [Vendor]} = re:run(
        element(2, file:read_file(filename:join(test_project:root(), "docs/releases.md"))),
        "^ *(mkdir -p .cargo && cargo vendor .*)$",
        [multiline, {capture, [1], list}]
    ),
    ok = run(Vendor, Dir, []),
    test_project:write(Project, "rebar.config", [{deps, [uds_dist]}]),
    ok = filelib:ensure_dir(filename:join(Project, "src/x")),
    App = {application, project, [{vsn, "1"}, {applications, [kernel, stdlib, uds_dist]}]},
    test_project:write(Project, "src/project.app.src", [App]),
    Elsewhere = filename:join(Project, "elsewhere"),
    {match, [Host]} = re:run(os:cmd("rustc -vV"), "host: (.*)", [{capture, [1], list}]),
    Env = [
        {"CARGO_HOME", test_node:dir("cargo", Config)},
        {"CARGO_TARGET_DIR", Elsewhere},
        {"CARGO_BUILD_TARGET", Host}
    ],
    case output("exec unshare -n true", Project, []) of
        {0, _} ->
            ok = run("exec unshare -n rebar3 compile", Project, Env),
            Built = filename:join([Elsewhere, Host, "release"]),
            [
                {ok, _} = file:read_file_info(filename:join(Built, Program))
             || Program <- ["uds_dist", "uds_dist_sidecar"]
            ],
            ?assertNot(filelib:is_dir(filename:join(Dir, "target"))),
            {0, "uds_dist " ++ _} = output("exec priv/uds_dist --version", Dir, []),
            Otp = {test_node:erl(), filename:join(Project, "_build/default/checkouts/uds_dist/ebin")},
            Args = ["-pa", filename:dirname(code:which(?MODULE))],
            A = test_node:start("a", #{otp => Otp, args => Args}, Config),
            ?assertEqual(
                filename:join(Project, "_build/default/checkouts/uds_dist/priv/uds_dist_sidecar"),
                test_node:call(A, uds_dist_program, path, [])
            );
        {_, Error} ->
            {skip, "only root can make a network namespace: " ++ Error}
    end.

%% As rebar3_hex makes a package: the files of the application's `files`, in contents.tar.gz, beside a
%% metadata.config that has what hex asks for. It is unpacked as rebar3 unpacks it.
unpack_package(Dir, Config) ->
    Repository = proplists:get_value(repository, Config),
    {ok, [{application, uds_dist, App}]} = file:consult(filename:join(Repository, "erl_src/uds_dist.app.src")),
    Get = fun(Key) -> proplists:get_value(Key, App) end,
    Files = lists:append([files(Repository, Pattern) || Pattern <- Get(files)]),
    ?assertEqual([], [File || File <- Files, string:find(File, "target/") =/= nomatch]),
    Metadata = [
        {<<"name">>, <<"uds_dist">>},
        {<<"version">>, list_to_binary(Get(vsn))},
        {<<"description">>, list_to_binary(Get(description))},
        {<<"licenses">>, [list_to_binary(L) || L <- Get(licenses)]},
        {<<"links">>, [{list_to_binary(K), list_to_binary(V)} || {K, V} <- Get(links)]},
        {<<"build_tools">>, [<<"rebar3">>]},
        {<<"requirements">>, []},
        {<<"files">>, [list_to_binary(File) || File <- Files]}
    ],
    ?assertEqual([], [Key || {Key, Value} <- Metadata, Value =:= <<>>]),
    ?assertMatch([_ | _], Get(licenses)),
    Contents = filename:join(test_node:dir(Config), "contents.tar.gz"),
    ok = erl_tar:create(Contents, [{F, filename:join(Repository, F)} || F <- Files], [compressed]),
    {ok, #file_info{size = Size}} = file:read_file_info(Contents),
    %% Hex takes 8 MiB.
    ?assert(Size < 8 bsl 20),
    erl_tar:extract(Contents, [compressed, {cwd, Dir}]).

%% A file, or all in a directory.
files(Root, Pattern) ->
    [_ | _] = Found = filelib:wildcard(Pattern, Root),
    lists:append([
        case filelib:is_dir(filename:join(Root, Name)) of
            true -> lists:append([files(Root, filename:join(Name, F)) || F <- names(Root, Name)]);
            false -> [Name]
        end
     || Name <- Found
    ]).

names(Root, Dir) ->
    {ok, Names} = file:list_dir(filename:join(Root, Dir)),
    Names.

%% Cargo is not asked. The command line comes along if it is beside the sidecar.
sidecar_that_was_built_elsewhere_is_taken(Config) ->
    Copy = copy(Config),
    Sidecar = filename:join(dependency(Config), "priv/uds_dist_sidecar"),
    Path = {"PATH", programs(["cargo", "rustc"], Config)},
    {Status, Output} = output("rebar3 compile", Copy, [Path, {"UDS_DIST_SIDECAR", Sidecar ++ "x"}]),
    ?assertNotEqual(0, Status),
    test_node:expect_output_of(Output, "UDS_DIST_SIDECAR=.*x is not an executable file"),
    ok = run("rebar3 compile", Copy, [Path, {"UDS_DIST_SIDECAR", Sidecar}]),
    ok = run("cmp priv/uds_dist_sidecar \"$0\"", Copy, [], Sidecar),
    ?assert(filelib:is_regular(filename:join(Copy, "priv/uds_dist"))).

%% Sources that are newer than the programs need it.
programs_that_are_there_need_no_cargo(Config) ->
    Copy = copy(Config),
    Path = {"PATH", programs(["cargo", "rustc"], Config)},
    ok = run("cp \"$0\"/priv/uds_dist* priv/ && touch priv/uds_dist*", Copy, [], dependency(Config)),
    ok = run("rebar3 compile", Copy, [Path]),
    ok = run("touch -d '1 hour' src/lib.rs", Copy, []),
    {Status, Output} = output("rebar3 compile", Copy, [Path]),
    ?assertNotEqual(0, Status),
    test_node:expect_output_of(Output, "or use a sidecar that was built elsewhere: UDS_DIST_SIDECAR=path").

%% The tree is read-only, as in the store of Nix.
read_only_tree_is_left_alone(Config) ->
    Tree = dependency(Config),
    Mount = "mount --bind . . && mount -o remount,ro,bind . && cd \"$PWD\"",
    case output("exec unshare -m sh -c '" ++ Mount ++ " && ! touch x 2>/dev/null'", Tree, []) of
        {0, _} -> ok = run("exec unshare -m sh -c '" ++ Mount ++ " && scripts/build-programs'", Tree, []);
        {_, Error} -> {skip, "only root can mount: " ++ Error}
    end.

%% Their metadata is complete, and the sidecar's package contains all its sources.
crates_can_be_packaged(Config) ->
    Tree = proplists:get_value(repository, Config),
    {0, Listed} = output("cargo package --list --offline --package uds_dist", Tree, []),
    Files = string:lexemes(Listed, "\n"),
    ?assertEqual(["Cargo.lock", "Cargo.toml", "LICENSE", "README.md", "src/lib.rs"], [
        File
     || File <- ["Cargo.lock", "Cargo.toml", "LICENSE", "README.md", "src/lib.rs"], lists:member(File, Files)
    ]),
    ?assertEqual([], [File || File <- Files, string:prefix(File, "test/") =/= nomatch]),
    ?assertEqual(nomatch, string:find(Listed, "warning")).

missing_cargo_fails_with_what_to_install(Config) ->
    Bin = programs(["cargo", "rustc"], Config),
    Copy = copy(Config),
    {Status, Output} = output("rebar3 compile", Copy, [{"PATH", Bin}]),
    ?assertNotEqual(0, Status),
    ?assertMatch([_ | _], string:find(Output, "cargo and rustc >= 1.85 are needed")),
    ?assertMatch([_ | _], string:find(Output, "install them")),
    %% As with rustup before a toolchain was chosen.
    Fails = "#!/bin/sh\necho 'error: no default toolchain.' >&2\nexit 1\n",
    [
        begin
            File = filename:join(Bin, Name),
            ok = file:write_file(File, Fails),
            ok = file:change_mode(File, 8#755)
        end
     || Name <- ["cargo", "rustc"]
    ],
    {_, Output1} = output("rebar3 compile", Copy, [{"PATH", Bin}]),
    ?assertMatch([_ | _], string:find(Output1, "but rustc fails (no default toolchain): install them")).

%% The line comes before what rustc says about it.
missing_linker_fails_with_what_to_install(Config) ->
    Bin = programs(["cc"], Config),
    {Status, Output} = output("rebar3 compile", copy(Config), [{"PATH", Bin}]),
    ?assertNotEqual(0, Status),
    test_node:expect_output_of(
        Output, "(?s)cc is missing, and rustc needs it .*apt install gcc libc6-dev.*linker `cc` not found"
    ).

%% Crates have to be downloaded, and there is no network.
missing_network_fails_with_what_to_read(Config) ->
    case output("exec unshare -n true", "/", []) of
        {0, _} ->
            Home = {"CARGO_HOME", test_node:dir("cargo", Config)},
            {Status, Output} = output("exec unshare -n rebar3 compile", copy(Config), [Home]),
            ?assertNotEqual(0, Status),
            test_node:expect_output_of(
                Output, "(?s)downloads missing crates.*Without a network, see Builds in docs/releases.md"
            );
        {_, Error} ->
            {skip, "only root can make a network namespace: " ++ Error}
    end.

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

%% The messages of the compiler are shown and explained.
failing_cargo_fails_with_its_error(Config) ->
    Copy = copy(Config),
    %% The library of both programs comes first.
    ok = run("cp -a \"$0/target\" . && echo 'no rust' >>src/lib.rs", Copy, [], dependency(Config)),
    {Status, Output} = output("rebar3 compile", Copy, []),
    ?assertNotEqual(0, Status),
    ?assertMatch([_ | _], string:find(Output, "src/lib.rs")),
    ?assertMatch([_ | _], string:find(Output, "cargo could not build the sidecar")).

%% `rebar3 compile` alone does nothing to a dependency that it has compiled.
rebar3_cures_what_errors_are_about(Config) ->
    Elsewhere = copy_programs(Config),
    Rebar3 = fun(Command) -> ok = run(Command, project(Config), [{"UDS_DIST_SIDECAR", Elsewhere}]) end,
    Sidecar = filename:join(dependency(Config), "priv/uds_dist_sidecar"),
    Ebin = filename:join(dependency(Config), "ebin"),
    cure_all(damages(Sidecar), Ebin, Sidecar, "(rebar3 .*?), or", Rebar3, Config),
    ok = file:delete(Sidecar),
    Rebar3("rebar3 compile"),
    ?assertNot(filelib:is_regular(Sidecar)).

%% A git repository is the dependency.
mix_cures_what_errors_are_about(Config) ->
    with_mix(
        fun(Mix) ->
            Url = "file://" ++ proplists:get_value(repository, Config),
            Project = mix_project("git: \"" ++ Url ++ "\", branch: \"main\"", Config),
            Given = {"UDS_DIST_SIDECAR", copy_programs(Config)},
            ok = Mix("mix deps.get && mix compile", Project, [Given]),
            Cure = fun(Command) -> ok = Mix(Command, Project, [Given]) end,
            Sidecar = filename:join(Project, "deps/uds_dist/priv/uds_dist_sidecar"),
            Ebin = filename:join(Project, "_build/dev/lib/uds_dist/ebin"),
            %% These are enough, because mix runs the same script as rebar3.
            Damages = damages(Sidecar),
            cure_all([hd(Damages), lists:last(Damages)], Ebin, Sidecar, "or (mix .*?)\\)", Cure, Config)
        end,
        Config
    ).

%% The command of the Dockerfile builds the dependency with only mix.exs. Files that are copied later do not change it.
dependencies_are_built_before_the_project(Config) ->
    {ok, Dockerfile} = file:read_file(
        filename:join(test_project:root(), "examples/kubernetes/Dockerfile")
    ),
    [_, Command] = test_node:expect_output_of(Dockerfile, "^COPY mix.exs .*\nRUN (mix .*)$"),
    with_mix(
        fun(Mix) ->
            Url = "file://" ++ proplists:get_value(repository, Config),
            Project = mix_project("git: \"" ++ Url ++ "\", branch: \"main\"", Config),
            Env = [{"MIX_ENV", "prod"}, {"UDS_DIST_SIDECAR", copy_programs(Config)}],
            ok = Mix(binary_to_list(Command), Project, Env),
            Sidecar = filename:join(Project, "_build/prod/lib/uds_dist/priv/uds_dist_sidecar"),
            Built = mtime(file:read_file_info(Sidecar)),
            ok = filelib:ensure_dir(filename:join(Project, "lib/x")),
            ok = file:write_file(filename:join(Project, "lib/probe.ex"), "defmodule Probe do\nend\n"),
            %% It would fail if it built the dependency again.
            Again = [{"MIX_ENV", "prod"}, {"UDS_DIST_SIDECAR", "/nowhere"}],
            ok = Mix("mix compile", Project, Again),
            ?assertEqual(Built, mtime(file:read_file_info(Sidecar)))
        end,
        Config
    ).

%% A directory is the dependency, in which cargo has built before.
mix_has_cargo_build_a_removed_sidecar_again(Config) ->
    with_mix(
        fun(Mix) ->
            Project = mix_project("path: \"" ++ dependency(Config) ++ "\"", Config),
            ok = Mix("mix compile", Project, []),
            Sidecar = filename:join(dependency(Config), "priv/uds_dist_sidecar"),
            Ebin = filename:join(Project, "_build/dev/lib/uds_dist/ebin"),
            cure(
                {fun() -> ok = file:delete(Sidecar) end, "there is no such file", build},
                Ebin,
                Sidecar,
                "or (mix .*?)\\)",
                fun(Command) -> ok = Mix(Command, Project, []) end,
                Config
            )
        end,
        Config
    ).

%% Damages the sidecar in ways that an error explains, and follows the advice of the error.
cure_all(Damages, Ebin, Sidecar, Tool, Run, Config) ->
    [cure(Damage, Ebin, Sidecar, Tool, Run, Config) || Damage <- Damages].

%% Every way, with the explanation, and what cures it.
damages(Sidecar) ->
    {ok, Good} = file:read_file(Sidecar),
    <<Ident:18/binary, _Machine:16, Rest/binary>> = Good,
    [BeforeLibc, AfterLibc] = binary:split(Good, <<"/ld-linux">>),
    %% The last one may still be running.
    Write = fun(Bytes) ->
        fun() ->
            ok = file:write_file(Sidecar ++ ".new", Bytes),
            ok = file:change_mode(Sidecar ++ ".new", 8#755),
            ok = file:rename(Sidecar ++ ".new", Sidecar)
        end
    end,
    Directory = fun() ->
        ok = file:delete(Sidecar),
        ok = file:make_dir(Sidecar)
    end,
    [
        {fun() -> ok = file:delete(Sidecar) end, "there is no such file", build},
        {Write([Ident, <<16#FFFE:16>>, Rest]), "another architecture", build},
        {Write([BeforeLibc, "/ld-other", AfterLibc]), "another C library", build},
        {fun() -> ok = file:change_mode(Sidecar, 8#644) end, "may not execute it", mode},
        {Directory, "it is a directory and not a file", build}
    ].

cure({Damage, Problem, Kind}, Ebin, Sidecar, Tool, Run, Config) ->
    Options = #{otp => {test_node:erl(), Ebin}, name => "a", args => ["-noinput"]},
    Damage(),
    {1, Output} = test_node:expect_exit(test_node:launch(Options, Config)),
    test_node:expect_output_of(Output, Problem),
    case Kind of
        build ->
            [_, Command] = test_node:expect_output_of(Output, "\\(as a dependency: .*?" ++ Tool),
            Run(binary_to_list(Command));
        mode ->
            [_, Command] = test_node:expect_output_of(Output, "; (chmod \\S+)"),
            ok = run(binary_to_list(Command) ++ " \"$0\"", "/", [], Sidecar)
    end,
    A = test_node:start("a", #{otp => {test_node:erl(), Ebin}}, Config),
    ok = test_node:stop(A).

%% Cargo would take a minute for each.
copy_programs(Config) ->
    Dir = test_node:dir("elsewhere", Config),
    ok = run("cp priv/uds_dist priv/uds_dist_sidecar \"$0\"", dependency(Config), [], Dir),
    filename:join(Dir, "uds_dist_sidecar").

with_mix(Fun, Config) ->
    case os:find_executable("mix") of
        false ->
            {skip, "there is no mix on PATH"};
        _ ->
            Env = [
                {"MIX_HOME", test_node:dir("mix", Config)},
                {"MIX_REBAR3", os:find_executable("rebar3")},
                {"LANG", "C.UTF-8"}
            ],
            Fun(fun(Command, Dir, More) -> run(Command, Dir, Env ++ More) end)
    end.

mix_project(Source, Config) ->
    Dir = test_node:dir("mix_project", Config),
    Mix = [
        "defmodule Probe.MixProject do\n  use Mix.Project\n"
        "  def project, do: [app: :probe, version: \"0.1.0\", deps: [{:uds_dist, ",
        Source,
        ", manager: :rebar3}]]\nend\n"
    ],
    ok = file:write_file(filename:join(Dir, "mix.exs"), Mix),
    Dir.

%% Neither the programs nor cargo's build results are left.
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
