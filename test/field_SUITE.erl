%% Situations that people get into, one case for each kind: what the smallest input of it does now. The
%% kinds `cookies` and `tools` are those of the command line, and have their cases in command_line_SUITE;
%% releases as they are built have theirs in elixir_release_SUITE and erlang_release_SUITE.
-module(field_SUITE).

-export([all/0, suite/0, groups/0, init_per_group/2, end_per_group/2]).
-export([init_per_testcase/2, end_per_testcase/2]).
%% With both transports.
-export([
    retries_have_a_backoff_and_one_line_when_they_begin_and_end/1,
    path_that_vanishes_is_noticed_and_listened_at_again/1,
    host_part_that_is_wrong_is_explained_once/1,
    names_that_are_none_are_explained_once/1,
    requester_gets_a_reply_where_the_owner_makes_a_mistake/1
]).
-export([
    retries_without_a_listener_are_one_line/1,
    retries_for_a_path_that_was_taken_are_one_line/1,
    working_directory_matters_at_the_start_only/1,
    working_directory_of_a_relative_code_path/1,
    working_directory_that_was_removed/1,
    character_sets_leave_the_bytes_of_a_path_alone/1,
    character_sets_do_not_matter_to_bytes_that_are_no_text/1,
    character_sets_do_not_garble_the_first_lines/1,
    character_sets_do_not_matter_to_hosts/1,
    line_ends_of_windows_are_refused/1,
    variables_that_are_misspelt_are_told_of/1,
    advice_is_to_run_it_as_the_nodes_user/1,
    advice_about_allowed_uids_needs_a_reason/1,
    advice_names_no_process_of_another_pid_namespace/1,
    limits_of_names_are_told_at_the_start/1,
    start_scripts_that_lose_the_directory_are_told_of/1,
    first_try_without_a_directory_names_the_step/1,
    environments_keep_what_they_have/1,
    quiet_scripts_print_nothing_but_their_own/1,
    leftovers_of_remote_shells_are_no_news/1
]).
%% Run in the nodes.
-export([break_dialer/0, mend_dialer/0]).

-import(test_node, [
    start/2,
    start/3,
    start_all/2,
    start_all/3,
    call/4,
    name/1,
    os_pid/1,
    sidecar/1,
    socket/2,
    dir/1,
    expect/2,
    expect_nodes/2,
    expect_output/2
]).

-include_lib("stdlib/include/assert.hrl").

all() ->
    test_node:transports() ++ of_no_connection().

groups() ->
    [{relay, [], of_connections()}, {direct, [], of_connections()}].

of_connections() ->
    [
        retries_have_a_backoff_and_one_line_when_they_begin_and_end,
        path_that_vanishes_is_noticed_and_listened_at_again,
        host_part_that_is_wrong_is_explained_once,
        names_that_are_none_are_explained_once,
        requester_gets_a_reply_where_the_owner_makes_a_mistake
    ].

of_no_connection() ->
    test_node:cases(?MODULE) -- of_connections().

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
%% Retries

%% Whatever the cause: a sidecar that has lived for ten seconds is replaced at once, and then cannot be.
retries_have_a_backoff_and_one_line_when_they_begin_and_end(Config) ->
    Binary = test_node:own_sidecar(Config),
    A = start("a", #{env => [{"UDS_DIST_SIDECAR", Binary}]}, Config),
    pause(11000),
    ok = file:delete(Binary),
    test_node:signal("KILL", sidecar(A)),
    expect_output(A, "uds_dist: the sidecar .* is gone"),
    expect_output(A, "uds_dist: the sidecar .* did not start: there is no such file"),
    pause(3000),
    ?assertMatch([_, _], lines("uds_dist: ", A)),
    ok = test_node:replace_binary(Binary),
    test_node:expect_listening(A, none, Config),
    [_, Tries] = expect_output(A, "uds_dist: .* after (\\d+) tries"),
    %% At once, after 25 ms, 50 ms, and so on.
    ?assert(binary_to_integer(Tries) < 20),
    B = start("b", Config),
    expect(fun() -> call(B, net_kernel, connect_node, [name(A)]) end, reachable).

%% With -dist_listen false, only connecting processes wait for the sidecar, each time anew.
retries_without_a_listener_are_one_line(Config) ->
    Options = #{
        args => ["-dist_listen", "false"],
        env => [{"UDS_DIST_SIDECAR", filename:join(dir(Config), "no_such_sidecar")}]
    },
    A = start("a", Options, Config),
    [?assertEqual(pang, call(A, net_adm, ping, [b@nowhere])) || _ <- lists:seq(1, 20)],
    expect_output(A, "uds_dist: the sidecar .* did not start"),
    ?assertMatch([_], lines("uds_dist: ", A)).

%% Somebody is in the way of a node that had no sidecar for a while.
retries_for_a_path_that_was_taken_are_one_line(Config) ->
    Binary = test_node:own_sidecar(Config),
    A = start("a", #{env => [{"UDS_DIST_SIDECAR", Binary}]}, Config),
    ok = file:delete(Binary),
    test_node:signal("KILL", sidecar(A)),
    expect_output(A, "uds_dist: the sidecar .* did not start"),
    %% The sidecar was killed, and its files are still there.
    ok = file:delete(socket(A, Config)),
    ok = file:make_dir(socket(A, Config)),
    ok = test_node:replace_binary(Binary),
    expect_output(A, "uds_dist: cannot listen again at .* is in the way and is not a socket"),
    pause(5000),
    ?assertMatch([_], lines("cannot listen again", A)),
    ok = file:del_dir(socket(A, Config)),
    expect_output(A, "uds_dist: listening again at .*, after \\d+ tries").

%% ---------------------------------------------------------------------------------------------
%% Working directory

working_directory_matters_at_the_start_only(Config) ->
    [W1, W2] = [test_node:dir(Name, Config) || Name <- ["w1", "w2"]],
    Args = test_node:on_demand(),
    [A, B] = start_all(["na", "nb"], #{dir => none, cwd => W1, args => Args}, Config),
    ok = call(A, file, set_cwd, [W2]),
    ?assertEqual({ok, ["na", "nb"]}, call(A, uds_dist, names, [])),
    ok = call(A, application, start, [uds_dist]),
    true = call(B, net_kernel, connect_node, [name(A)]),
    true = call(B, erlang, disconnect_node, [name(A)]),
    true = call(B, net_kernel, connect_node, [name(A)]),
    C = start(undefined, #{dir => none, cwd => W1}, Config),
    Distribution = [nc, #{name_domain => shortnames}],
    {ok, _} = call(C, net_kernel, start, Distribution),
    ok = call(C, file, set_cwd, [W2]),
    ok = call(C, net_kernel, stop, []),
    {ok, _} = call(C, net_kernel, start, Distribution),
    ?assertEqual(["na.sock", "nb.sock", "nc.sock"], filelib:wildcard("*.sock", W1)),
    ?assertEqual([], filelib:wildcard("*", W2)).

%% `-pa ebin`: the sidecar's binary is found from it, later too.
working_directory_of_a_relative_code_path(Config) ->
    Ebin = filename:dirname(code:which(uds_dist)),
    Library = test_node:dir("library", Config),
    ok = file:make_symlink(Ebin, filename:join(Library, "ebin")),
    Priv = filename:dirname(uds_dist_program:path()),
    ok = file:make_symlink(Priv, filename:join(Library, "priv")),
    Elsewhere = test_node:dir("elsewhere", Config),
    A = start("a", #{cwd => Library, otp => {test_node:erl(), "ebin"}}, Config),
    ok = call(A, file, set_cwd, [Elsewhere]),
    Sidecar = sidecar(A),
    test_node:signal("KILL", Sidecar),
    test_node:expect_listening(A, Sidecar, Config),
    B = start("b", Config),
    expect(fun() -> call(B, net_kernel, connect_node, [name(A)]) end, reachable).

%% A running node says what is wrong when it needs another sidecar, and takes one when it can. Erlang itself
%% starts no VM there.
working_directory_that_was_removed(Config) ->
    Gone = test_node:dir("gone", Config),
    A = start("a", #{cwd => Gone}, Config),
    ok = file:del_dir(Gone),
    Sidecar = sidecar(A),
    ?assertEqual({ok, ["a"]}, call(A, uds_dist, names, [])),
    test_node:signal("KILL", Sidecar),
    expect_output(A, "did not start: the node's working directory was removed, .* file:set_cwd/1 to"),
    ok = call(A, file, set_cwd, [dir(Config)]),
    test_node:expect_listening(A, Sidecar, Config).

%% ---------------------------------------------------------------------------------------------
%% Paths

%% Two units share a directory, and the one that stops removes the files of the other one.
path_that_vanishes_is_noticed_and_listened_at_again(Config) ->
    C = start("c", Config),
    D = start("d", #{args => test_node:on_demand()}, Config),
    ok = file:delete(socket(C, Config)),
    ok = file:delete(socket(C, Config) ++ ".lock"),
    expect_output(C, "uds_dist: no longer listening at .*/c\\.sock: somebody has removed .*/c\\.sock"),
    test_node:expect_listening(C, none, Config),
    ?assertMatch([_], lines("no longer listening", C)),
    true = call(D, net_kernel, connect_node, [name(C)]),
    Second = test_node:launch(#{name => "c", args => ["-noinput"]}, Config),
    {Status, Output} = test_node:expect_exit(Second),
    ?assertNotEqual(0, Status),
    test_node:expect_output_of(Output, ["in use by process ", integer_to_list(os_pid(C)), ":"]).

%% The locale says nothing about the bytes of a path.
character_sets_leave_the_bytes_of_a_path_alone(Config) ->
    Dir = filename:join(list_to_binary(dir(Config)), <<"jos", 16#C3, 16#A9>>),
    ok = file:make_dir(Dir),
    Env = [{"LC_ALL", "C"}],
    Options = #{name => "v", dir => none, cwd => Dir, env => Env, args => ["-noinput"]},
    V = test_node:launch(Options, Config),
    Path = <<Dir/binary, "/v.sock">>,
    expect(
        fun() -> element(1, file:read_file_info(Path)) =:= ok orelse test_node:output(V) end,
        {listening, Path}
    ),
    {ok, Entries} = prim_file:list_dir_all(dir(Config)),
    ?assertMatch([_], [Entry || Entry <- Entries, lists:prefix("jos", filename_list(Entry))]),
    Names = lists:append(["cd ", dir(Config), "/jos* && LC_ALL=C ", program(), " names"]),
    ?assertMatch({match, _}, re:run(os:cmd(Names), "\\bv\\b.*\\bup\\b")).

%% A flag and a variable name the same directory, whatever the locale, and so does that of the command line.
character_sets_do_not_matter_to_bytes_that_are_no_text(Config) ->
    %% A shell writes the bytes, because ports encode all of their arguments.
    Bytes = "\"$(printf '" ++ dir(Config) ++ "/x\\377')\"",
    [] = os:cmd("mkdir " ++ Bytes),
    Nodes = [
        start(Name, #{dir => none, env => [{"LC_ALL", Locale}], prefix => ["sh", "-c", Script, "sh"]}, Config)
     || {Name, Locale, Script} <- [
            {"a", "C.UTF-8", "export UDS_DIST_DIR=" ++ Bytes ++ "; exec \"$@\""},
            {"b", "C.UTF-8", "exec \"$@\" -uds_dist_dir " ++ Bytes},
            {"c", "C", "export UDS_DIST_DIR=" ++ Bytes ++ "; exec \"$@\""},
            {"d", "C", "exec \"$@\" -uds_dist_dir " ++ Bytes}
        ]
    ],
    [?assertEqual({ok, ["a", "b", "c", "d"]}, call(Node, uds_dist, names, [])) || Node <- Nodes],
    [pong = call(A, net_adm, ping, [name(B)]) || A <- Nodes, B <- Nodes, A =/= B],
    ?assertEqual("a\nb\nc\nd\n", os:cmd(program() ++ " names -q --dir " ++ Bytes)),
    [A | _] = Nodes,
    #{settings := #{socket_dir := Dir}} = call(A, uds_dist, info, []),
    ?assertEqual(<<(list_to_binary(dir(Config)))/binary, "/x", 16#FF>>, Dir),
    %% It is shown as text, and nothing breaks where it is.
    ok = prim_file:delete(<<Dir/binary, "/a.sock">>),
    expect_output(A, "uds_dist: no longer listening at .*/x\\\\xff/a\\.sock: somebody has removed").

%% A host may have any letters of Latin-1, in which names are sent in the handshake.
character_sets_do_not_matter_to_hosts(Config) ->
    [A, B] = start_all(["a@h\x{f6}st", "b@h\x{f6}st"], Config),
    pong = call(A, net_adm, ping, [name(B)]),
    pang = call(A, net_adm, ping, [c@nowhere]),
    expect_output(A, "cannot connect to c@nowhere"),
    ?assertMatch([_], lines("cannot connect to", A)),
    Ping = "RELEASE_COOKIE=uds_dist_test " ++ program() ++ " ping a --dir " ++ dir(Config) ++ " 2>&1",
    test_node:expect_output_of(os:cmd(Ping), "^pong from a@h").

%% Before there is a logger.
character_sets_do_not_garble_the_first_lines(Config) ->
    Dir = filename:join([dir(Config), "jos" ++ [16#E9], "missing"]),
    [
        begin
            Options = #{name => "a", dir => Dir, env => [{"LC_ALL", Locale}], args => ["-noinput"]},
            {_, Output} = test_node:expect_exit(test_node:launch(Options, Config)),
            test_node:expect_output_of(Output, ["the directory ", Dir, " does not exist"])
        end
     || Locale <- ["C.UTF-8", "C"]
    ].

%% Of the file that sets a variable, or of a vm.args that a start script reads. It looks right on a screen.
line_ends_of_windows_are_refused(Config) ->
    Dir = dir(Config),
    Return = " ends in a carriage return; remove it: .* Windows line ends",
    Variable = fun(Name, Value) -> #{dir => none, env => [{Name, Value}]} end,
    [
        begin
            Launched = test_node:launch(Options#{name => "a", args => ["-noinput"]}, Config),
            {Status, Output} = test_node:expect_exit(Launched),
            ?assertNotEqual(0, Status),
            test_node:expect_output_of(Output, ["^uds_dist: .*", Line]),
            ?assertEqual(["sys" || #{config := _} <- [Options]], entries(Dir))
        end
     || {Options, Line} <- [
            {#{dir => Dir ++ "/x\r"}, ["socket_dir ", Dir, "/x\\\\r \\(the command line\\)", Return]},
            {#{dir => Dir ++ "/x "}, "socket_dir .* \\(the command line\\) begins or ends with a blank"},
            {Variable("UDS_DIST_DIR", Dir ++ "/x\r"), ["/x\\\\r \\(UDS_DIST_DIR\\)", Return]},
            {Variable("UDS_DIST_DIR", "@ns\r"), ["@ns\\\\r \\(UDS_DIST_DIR\\)", Return]},
            {Variable("UDS_DIST_DIR", " " ++ Dir), "\\(UDS_DIST_DIR\\) begins or ends with a blank"},
            {Variable("UDS_DIST_SIDECAR", Dir ++ "/x\r"), ["UDS_DIST_SIDECAR=.*/x\\\\r", Return]},
            {Variable("UDS_DIST_LOG", "debug\r"), ["UDS_DIST_LOG=debug\\\\r", Return]},
            {Variable("UDS_DIST_SPIN", "50\r"), ["UDS_DIST_SPIN=50\\\\r", Return]},
            {
                #{dir => none, config => [{uds_dist, [{socket_dir, Dir ++ "/x\e[2J"}]}]},
                "/x\\\\x1b\\[2J \\(the application environment\\) contains a control character"
            }
        ]
    ],
    %% Erlang itself drops them from the file of -args_file.
    File = filename:join(Dir, "vm.args"),
    ok = file:write_file(File, ["-uds_dist_dir ", Dir, "\r\n-uds_dist backlog 7\r\n"]),
    %% The same place, written otherwise, is no news.
    Env = [{"UDS_DIST_DIR", Dir ++ "/"}],
    A = start("a", #{dir => none, env => Env, args => ["-args_file", File]}, Config),
    ?assertEqual([], lines("uds_dist: ", A)),
    #{settings := Settings} = call(A, uds_dist, info, []),
    ?assertMatch(#{backlog := 7}, Settings),
    ?assertEqual(list_to_binary(Dir), maps:get(socket_dir, Settings)).

%% The node starts, since the variable may be meant for others, in its working directory.
variables_that_are_misspelt_are_told_of(Config) ->
    Misspelt = [{"UDS_DIST_SOCKET_DIR", dir(Config)}],
    A = start("a", #{dir => none, env => Misspelt}, Config),
    expect_output(A, "uds_dist: UDS_DIST_SOCKET_DIR is set but has no effect: .* UDS_DIST_DIR"),
    B = start("b", #{env => Misspelt}, Config),
    ?assertEqual({ok, ["a", "b"]}, call(B, uds_dist, names, [])),
    ?assertEqual([], lines("uds_dist: ", B)).

%% The names of the files in a directory, without numbers and extensions.
entries(Dir) ->
    [hd(string:split(Entry, ".")) || Entry <- filelib:wildcard("*", Dir)].

filename_list(Name) when is_binary(Name) -> binary_to_list(Name);
filename_list(Name) -> Name.

%% ---------------------------------------------------------------------------------------------
%% Advice

%% The host is not a part of the path, and so the wrong one reaches the right node.
host_part_that_is_wrong_is_explained_once(Config) ->
    Srv = start("srv", Config),
    A = start("a", Config),
    Wrong = srv@wrong,
    [?assertEqual(pang, call(A, net_adm, ping, [Wrong])) || _ <- lists:seq(1, 3)],
    Line = ["uds_dist: cannot connect to srv@wrong: .* is another one, ", atom_to_list(name(Srv)), ";"],
    expect_output(A, Line),
    ?assertMatch([_], lines("cannot connect to", A)).

%% People leave out the host, or write a name in another case.
names_that_are_none_are_explained_once(Config) ->
    Srv = start("srv", Config),
    [_, Host] = string:split(atom_to_list(name(Srv)), "@"),
    A = start("a", Config),
    Lines = [
        {srv, ["srv: it has no host; ask for srv@", Host, "$"]},
        {'srv@', ["srv@: it has no host; ask for srv@", Host, "$"]},
        {'SRV@nowhere', "SRV@nowhere: there is no socket .*/SRV.sock; there is srv, and case makes"},
        {'X@nowhere', "X@nowhere: there is no socket .*/X.sock$"},
        {'@nowhere', "@nowhere: it is not a node name, which has the form name@host"},
        {srv@a@b, "srv@a@b: it is not a node name"},
        {'srv\e[2J', "srv\\\\x1b\\[2J: it has no host"}
    ],
    [?assertEqual(pang, call(A, net_adm, ping, [Wrong])) || {Wrong, _} <- Lines, _ <- [1, 2, 3]],
    [expect_output(A, ["uds_dist: cannot connect to ", Line]) || {_, Line} <- Lines],
    ?assertEqual(length(Lines), length(lines("cannot connect to", A))).

%% Somebody else's directory is not to be opened up.
advice_is_to_run_it_as_the_nodes_user(Config) ->
    with_nobody(Config, fun() ->
        Roots = test_node:dir("roots", Config),
        Closed = test_node:dir("closed", Config),
        ok = file:change_mode(Closed, 8#555),
        [] = os:cmd("chown 65534 " ++ Closed),
        Theirs = test_node:dir("theirs", Config),
        [] = os:cmd("chown 65533 " ++ Theirs),
        Cases = [
            {Roots, "cannot open .*/a\\.sock\\.lock: .* run this as the user that it is for"},
            {Closed, "cannot open .*/a\\.sock\\.lock: .*chmod u\\+rwx"},
            {Theirs, "belongs to uid 65533, which could replace the socket; run this as that user"}
        ],
        [
            begin
                Output = fails_as_nobody(Dir, Config),
                test_node:expect_output_of(Output, ["uds_dist: .*", Line]),
                ?assertEqual(nomatch, re:run(Output, "write access|chmod .*[og]\\+|777"))
            end
         || {Dir, Line} <- Cases
        ]
    end).

%% /run belongs to root: the step that was left out is in the message.
first_try_without_a_directory_names_the_step(Config) ->
    with_nobody(Config, fun() ->
        Dir = filename:join(test_node:dir("run", Config), "my_app"),
        Output = fails_as_nobody(Dir, Config),
        Step = "install -d -o 65534 -m 0700 " ++ Dir,
        test_node:expect_output_of(Output, ["cannot create the directory ", Dir, ": .*", Step]),
        [] = os:cmd(Step),
        Options = #{dir => Dir, prefix => as_nobody()},
        ?assertEqual({ok, ["a"]}, call(start("a", Options, Config), uds_dist, names, []))
    end).

fails_as_nobody(Dir, Config) ->
    Options = #{name => "a", dir => Dir, prefix => as_nobody(), args => ["-noinput"]},
    {Status, Output} = test_node:expect_exit(test_node:launch(Options, Config)),
    ?assertNotEqual(0, Status),
    Output.

with_nobody(Config, Case) ->
    case string:trim(os:cmd("id -u")) =:= "0" andalso is_readable_for_all(Config) of
        true -> Case();
        false -> {skip, "only root can start a node as another user, who must be able to read it"}
    end.

as_nobody() ->
    ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"].

is_readable_for_all(Config) ->
    ok = file:change_mode(dir(Config), 8#755),
    Beam = filename:join(filename:dirname(code:which(uds_dist)), "uds_dist.beam"),
    lists:all(
        fun(Path) ->
            Command = lists:join(" ", as_nobody() ++ ["test", "-r", Path, "&& echo yes"]),
            string:trim(os:cmd(lists:append(Command))) =:= "yes"
        end,
        [Beam, test_node:erl(), uds_dist_program:path()]
    ).

%% A node of our own user that does not answer was killed, or is stopped.
advice_about_allowed_uids_needs_a_reason(Config) ->
    Quick = #{args => ["-kernel", "net_setuptime", "2" | test_node:on_demand()]},
    [A, B] = start_all(["a", "b"], Quick, Config),
    Sidecar = sidecar(B),
    test_node:signal("STOP", os_pid(B)),
    false = call(A, net_kernel, connect_node, [name(B)]),
    test_node:signal("KILL", os_pid(B)),
    false = call(A, net_kernel, connect_node, [name(B)]),
    expect(fun() -> not test_node:is_alive(Sidecar) end, sidecar_ends),
    false = call(A, net_kernel, connect_node, [name(B)]),
    expect_output(A, "cannot connect to b@"),
    ?assertEqual([], lines("allowed_uids", A)).

%% Containers that share a directory. The kernel translates the number, or there is none.
advice_names_no_process_of_another_pid_namespace(Config) ->
    Unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"],
    case os:cmd(lists:append(lists:join(" ", Unshare ++ ["echo yes"]))) of
        "yes\n" ->
            A = start("a", Config),
            Inside = test_node:launch(#{name => "a", prefix => Unshare, args => ["-noinput"]}, Config),
            {_, Output} = test_node:expect_exit(Inside),
            test_node:expect_output_of(Output, "the name is in use: a live node answers at .*/a\\.sock"),
            B = start("b", #{prefix => Unshare}, Config),
            pong = call(A, net_adm, ping, [name(B)]),
            Second = test_node:launch(#{name => "b", args => ["-noinput"]}, Config),
            {_, Output1} = test_node:expect_exit(Second),
            [_, Number] = test_node:expect_output_of(Output1, "in use by process (\\d+): .*/b\\.sock"),
            ?assertNotEqual(call(B, os, getpid, []), binary_to_list(Number)),
            ?assertEqual("beam.smp\n", os:cmd("cat /proc/" ++ binary_to_list(Number) ++ "/comm"));
        Other ->
            {skip, "this user cannot make a PID namespace: " ++ Other}
    end.

%% ---------------------------------------------------------------------------------------------
%% Releases

%% The node itself fits, and `remote` and `rpc` will not.
limits_of_names_are_told_at_the_start(Config) ->
    Room = uds_dist_address:limit(os:type()) - length(dir(Config) ++ "/" ++ "/a.sock"),
    Narrow = test_node:dir(lists:duplicate(Room - 5, $d), Config),
    A = start("a", #{dir => Narrow}, Config),
    expect_output(A, "uds_dist: the commands of an Elixir release .*\\(remote, rpc\\) will not work: .* bytes"),
    Wide = test_node:dir("wide", Config),
    B = start("b", #{dir => Wide}, Config),
    ?assertEqual({ok, ["b"]}, call(B, uds_dist, names, [])),
    ?assertEqual([], lines("uds_dist: ", B)).

%% relx passes whole lines of vm.args on to its commands, if they begin with -proto_dist.
start_scripts_that_lose_the_directory_are_told_of(Config) ->
    Root = dir(Config),
    File = filename:join([Root, "releases", "1.0", "vm.args"]),
    ok = filelib:ensure_dir(File),
    %% The boot script of a release is beside it.
    Boot = filename:rootname(File, "vm.args") ++ "start",
    {ok, _} = file:copy(filename:join([code:root_dir(), "bin", "start_clean.boot"]), Boot ++ ".boot"),
    Relx = [{"RELX_RPC_TIMEOUT", "60"}],
    Own = "-sname a\n-proto_dist uds\n-uds_dist_dir /run/x\n",
    Comment = "-proto_dist uds -uds_dist_dir /run/x # here\n",
    Behind = "-uds_dist_dir /run/x -proto_dist uds\n",
    Right = "# -proto_dist uds # here\n-proto_dist uds -uds_dist_dir /run/x\n",
    Lost = "the commands of this release .* will not find this node: ",
    Cases = [
        {Own, Relx, [Lost, "-uds_dist_dir is not on the line of -proto_dist; put it there .*vm\\.args"]},
        {Comment, Relx, [Lost, "a comment follows -proto_dist"]},
        {Behind, Relx, [Lost, "no line begins with -proto_dist"]},
        {Right, Relx, none},
        %% The environment reaches every command, and other releases have other scripts.
        {Own, [{"UDS_DIST_DIR", Root} | Relx], none},
        {Own, [], none}
    ],
    [
        begin
            ok = file:write_file(File, Text),
            A = start("a", #{env => Env, args => ["-boot", Boot]}, Config),
            ?assertEqual({ok, ["a"]}, call(A, uds_dist, names, [])),
            case Line of
                none -> ?assertEqual([], lines("will not find this node", A));
                _ -> expect_output(A, ["uds_dist: ", Line])
            end,
            test_node:stop(A)
        end
     || {Text, Env, Line} <- Cases
    ].

%% Flags are appended, however often the file is read.
environments_keep_what_they_have(_Config) ->
    Root = filename:dirname(filename:dirname(code:which(?MODULE))),
    Template = filename:join(source_root(Root), "examples/elixir_release/rel/env.sh.eex"),
    Read = ". " ++ Template ++ "; ",
    Script = "ELIXIR_ERL_OPTIONS=-heart; " ++ Read ++ Read ++ "echo $ELIXIR_ERL_OPTIONS",
    ?assertEqual("-heart -proto_dist uds -no_epmd\n", os:cmd(Script)).

%% The tree in which _build is.
source_root(Dir) ->
    case filelib:is_file(filename:join(Dir, "Cargo.toml")) of
        true -> Dir;
        false -> source_root(filename:dirname(Dir))
    end.

quiet_scripts_print_nothing_but_their_own(Config) ->
    Eval =
        "io:format(\"~p~n\",[net_adm:ping(nobody@nowhere)]),"
        "_ = sys:get_state(uds_dist_log_writer),halt().",
    Ebin = filename:dirname(code:which(uds_dist)),
    Command = io_lib:format(
        "cd ~ts && ~ts -noinput -pa ~ts -proto_dist uds -no_epmd -setcookie c -sname q "
        "-uds_dist_dir ~ts -eval '~ts' 2>stderr",
        [dir(Config), test_node:erl(), Ebin, dir(Config), Eval]
    ),
    ?assertEqual("pang\n", os:cmd(unicode:characters_to_list(Command))),
    {ok, Notice} = file:read_file(filename:join(dir(Config), "stderr")),
    ?assertMatch({match, _}, re:run(Notice, "uds_dist: cannot connect to nobody@nowhere: there is no socket")).

%% Names that other nodes give never listen.
leftovers_of_remote_shells_are_no_news(Config) ->
    A = start("a", Config),
    ?assertEqual(pang, call(A, net_adm, ping, ['2OLZHJVNVAL78@nowhere'])),
    ?assertEqual(pang, call(A, net_adm, ping, [nobody@nowhere])),
    expect_output(A, "uds_dist: cannot connect to nobody@nowhere"),
    ?assertMatch([_], lines("uds_dist: ", A)).

%% ---------------------------------------------------------------------------------------------
%% Mistakes of our own

%% They cost what was asked for, and neither the time of whoever asks, nor a connection, nor the sidecar.
requester_gets_a_reply_where_the_owner_makes_a_mistake(Config) ->
    [A, B] = start_all(["a", "b"], Config),
    pong = call(A, net_adm, ping, [name(B)]),
    Sidecar = sidecar(A),
    ok = call(A, ?MODULE, break_dialer, []),
    {Time, Result} = timer:tc(fun() -> call(A, net_kernel, connect_node, [c@nowhere]) end),
    ?assertEqual(false, Result),
    ?assert(Time < 2000000),
    expect_output(A, "uds_dist: internal error"),
    ok = call(A, ?MODULE, mend_dialer, []),
    ?assertEqual(Sidecar, sidecar(A)),
    expect_nodes(A, [name(B)]),
    C = start("c", Config),
    pong = call(A, net_adm, ping, [name(C)]).

%% Runs in a node. The owner's state is a record, whose sixth element is the dialer.
break_dialer() ->
    replace_dialer(broken).

mend_dialer() ->
    replace_dialer(uds_dist_dialer:up(uds_dist_dialer:new())).

replace_dialer({[], Dialer}) ->
    replace_dialer(Dialer);
replace_dialer(Dialer) ->
    _ = sys:replace_state(uds_dist_port, fun(State) -> setelement(6, State, Dialer) end),
    ok.

%% ---------------------------------------------------------------------------------------------

program() ->
    filename:join(filename:dirname(uds_dist_program:path()), "uds_dist").

lines(Text, Node) ->
    Lines = string:split(unicode:characters_to_list(test_node:output(Node)), "\n", all),
    [Line || Line <- Lines, string:find(Line, Text) =/= nomatch].

%% The time is part of the test: it shows that something does not happen.
pause(Time) ->
    receive
    after Time -> ok
    end.
