%% Packaged software of the distribution that runs over our sockets. It runs as the package's own user, but in
%% directories and on ports of the test, and is set up according to the templates in examples/.
-module(test_package).

-export([init_suite/4, transport/1, set_up/2, install_example/4, mistake/2, remove/1]).
-export([background/3, command/3, uds_dist/3, free_ports/1]).
-export([vms/1, processes/1, expect_none_left/1]).

-export_type([t/0]).

-type t() :: #{
    user := string(),
    %% A directory that the user can read; run/ in it is for the sockets.
    dir := file:filename(),
    env := [{string(), string()}]
}.

%% Debian's Erlang, which its packages run on.
-define(ERL, "/usr/bin/erl").
%% The carrier's directory in the templates.
-define(OPT, "/opt/uds_dist").

%% Skips a suite unless the software is installed, and these modules are compiled for its Erlang.
-spec init_suite(Package :: string(), Program :: file:filename(), User :: string(), Config) ->
    Config | {skip, string()}
when
    Config :: list().
init_suite(Package, Program, User, Config) ->
    This = erlang:system_info(otp_release),
    case {filelib:is_regular(Program), os:cmd("id -u"), otp_release()} of
        {false, _, _} -> {skip, Package ++ " is not installed: apt-get install " ++ Package};
        {true, "0\n", This} -> Config;
        {true, "0\n", Other} -> {skip, Package ++ " runs on OTP " ++ Other ++ ": make test OTP=" ++ Other};
        {true, _, _} -> {skip, "only root can run it as the user " ++ User}
    end.

otp_release() ->
    Eval = "io:put_chars(erlang:system_info(otp_release)), halt().",
    {0, Release} = test_project:output("exec \"$0\" -noinput -eval '" ++ Eval ++ "'", #{argument => ?ERL}),
    Release.

%% The variables that select a transport, which is the one thing that the templates do not have.
-spec transport(relay | direct) -> [{string(), string()}].
transport(relay) -> [];
transport(direct) -> [{"ERL_ZFLAGS", "-uds_dist transport direct"}].

%% Creates a directory with the carrier in opt/, which stands for /opt/uds_dist, and a home with a cookie.
-spec set_up(User :: string(), Env :: [{string(), string()}]) -> t().
set_up(User, Env) ->
    Dir = test_project:temporary(),
    ok = test_project:run(
        "install -d -m 0755 -o \"$PACKAGE_USER\" . opt"
        " && install -d -m 0700 -o \"$PACKAGE_USER\" run home log"
        " && cp -rL \"$APPLICATION/ebin\" \"$APPLICATION/priv\" opt/ && chmod -R go+rX opt"
        " && printf uds_dist_test >home/.erlang.cookie && chmod 0400 home/.erlang.cookie"
        " && chown -R \"$PACKAGE_USER\" home",
        #{
            dir => Dir,
            env => [
                {"PACKAGE_USER", User},
                {"APPLICATION", filename:dirname(filename:dirname(code:which(uds_dist)))}
            ]
        }
    ),
    Home = filename:join(Dir, "home"),
    %% No epmd answers, even if one runs on this machine.
    [NoEpmd] = free_ports(1),
    Base = [
        {"PATH", "/usr/sbin:/usr/bin:/bin"},
        {"HOME", Home},
        {"LANG", "C.UTF-8"},
        {"ERL_EPMD_PORT", integer_to_list(NoEpmd)}
    ],
    #{user => User, dir => Dir, env => Base ++ Env}.

%% Installs a file of a template, with directories of the test instead of /opt/uds_dist and of the template's
%% directory Sockets. Edit may introduce mistakes.
-spec install_example(File :: file:filename(), Sockets :: string(), Edit, t()) -> ok when
    Edit :: fun((string()) -> unicode:chardata()).
install_example(File, Sockets, Edit, #{dir := Dir}) ->
    {ok, Text} = file:read_file(filename:join([test_project:root(), "examples", File])),
    Edited = Edit(unicode:characters_to_list(Text)),
    Moved = lists:foldl(
        fun({From, To}, In) -> string:replace(In, From, filename:join(Dir, To), all) end,
        Edited,
        [{?OPT, "opt"}, {Sockets, "run"}]
    ),
    file:write_file(filename:join(Dir, filename:basename(File)), unicode:characters_to_binary(Moved)).

%% A mistake in a template: other text in place of Line, which occurs once.
-spec mistake(Line :: string(), By :: string()) -> fun((string()) -> unicode:chardata()).
mistake(Line, By) ->
    fun(Text) ->
        [Before, After] = string:split(Text, Line, all),
        [Before, By, After]
    end.

%% Ends what is left of a test, and removes its directory.
-spec remove(t()) -> ok.
remove(#{dir := Dir} = Package) ->
    ok = test_node:signal("KILL", vms(Package)),
    true = expect_none_left(Package),
    file:del_dir_r(Dir).

%% Starts a command of the package as its user, without waiting for it.
-spec background(Command :: string(), Env :: [{string(), string()}], t()) -> port().
background(Command, Env, Package) ->
    test_project:background(as_user(Command, Env, Package), options(Package)).

-spec command(Command :: string(), Env :: [{string(), string()}], t()) -> {non_neg_integer(), string()}.
command(Command, Env, Package) ->
    test_project:output(as_user(Command, Env, Package), options(Package)).

%% Runs our own command line.
-spec uds_dist(Arguments :: string(), Env :: [{string(), string()}], t()) ->
    {non_neg_integer(), string()}.
uds_dist(Arguments, Env, #{dir := Dir} = Package) ->
    Sockets = {"UDS_DIST_DIR", filename:join(Dir, "run")},
    command(filename:join(Dir, "opt/priv/uds_dist") ++ " " ++ Arguments, [Sockets | Env], Package).

options(#{dir := Dir}) ->
    #{dir => filename:join(Dir, "home")}.

%% Prefixes a command so that it runs as the user, without the environment of the tests.
as_user(Command, Env, #{user := User, env := Base}) ->
    Variables = [[$\s, Name, "='", Value, $'] || {Name, Value} <- Base ++ Env],
    lists:flatten([
        "exec setpriv --reuid ", User, " --regid ", User, " --init-groups env -i", Variables, $\s, Command
    ]).

%% Ports on which nothing listens.
-spec free_ports(pos_integer()) -> [inet:port_number()].
free_ports(Count) ->
    Sockets = [
        element(2, {ok, _} = gen_tcp:listen(0, [{ip, {127, 0, 0, 1}}]))
     || _ <- lists:seq(1, Count)
    ],
    Ports = [element(2, {ok, _} = inet:port(Socket)) || Socket <- Sockets],
    lists:foreach(fun gen_tcp:close/1, Sockets),
    Ports.

%% The VMs of the test.
-spec vms(t()) -> [OsPid :: pos_integer()].
vms(Package) ->
    [OsPid || {OsPid, CommandLine} <- processes(Package), is_vm(CommandLine)].

is_vm(CommandLine) ->
    filename:basename(hd(string:lexemes(CommandLine, " "))) =:= "beam.smp".

%% All processes that run in the test's directory.
-spec processes(t()) -> [{OsPid :: pos_integer(), CommandLine :: string()}].
processes(#{dir := Dir}) ->
    test_project:running_of(Dir).

%% Waits until nothing is left of the test: no processes, sockets or epmd.
-spec expect_none_left(t()) -> true.
expect_none_left(#{user := User, dir := Dir} = Package) ->
    test_node:expect(
        fun() ->
            Sockets = test_release:sockets_in(filename:join(Dir, "run")),
            Epmd = os:cmd("pgrep -u " ++ User ++ " -x epmd"),
            {processes(Package), Sockets, Epmd} =:= {[], [], ""} orelse
                {processes(Package), Sockets, Epmd}
        end,
        nothing_left
    ).
