%% What goes wrong at people's hands: one line says what happened, where, and what to do; the VM
%% ends in an orderly way or continues, and never hangs.
-module(errors_SUITE).

-export([all/0, suite/0, init_per_testcase/2, end_per_testcase/2]).
-export([
    sidecar_is_missing/1,
    sidecar_is_in_an_archive/1,
    sidecar_is_not_executable/1,
    sidecar_is_on_a_noexec_mount/1,
    sidecar_is_of_another_architecture/1,
    sidecar_is_of_another_libc/1,
    sidecar_needs_a_newer_libc/1,
    sidecar_lacks_a_shared_library/1,
    sidecar_is_no_program/1,
    sidecar_is_being_written/1,
    sidecar_speaks_another_version/1,
    sidecar_breaks_the_protocol/1,
    sidecar_does_not_say_hello/1,
    sidecar_exits_at_once/1,
    sidecar_is_missing_at_run_time/1,
    directory_lacks_its_parent/1,
    directory_is_a_file/1,
    directory_is_a_loop_of_links/1,
    socket_path_is_too_long/1,
    something_else_is_in_the_way/1,
    abstract_namespace_elsewhere/1,
    settings_are_invalid/1,
    node_without_a_listener_reports_settings/1,
    nobody_is_there/1,
    node_that_does_not_answer_is_reported/1,
    strangers_are_cut_off/1,
    flood_fills_no_memory/1
]).

-import(test_node, [
    start/3,
    start_all/3,
    call/4,
    name/1,
    os_pid/1,
    sidecar/1,
    dir/1,
    expect/2,
    expect_nodes/2,
    expect_output/2
]).

-include_lib("stdlib/include/assert.hrl").

all() ->
    test_node:cases(?MODULE).

suite() ->
    test_node:suite().

init_per_testcase(_Case, Config) ->
    test_node:init(Config).

end_per_testcase(_Case, Config) ->
    test_node:cleanup(Config).

%% ---------------------------------------------------------------------------------------------
%% The sidecar

%% UDS_DIST_SIDECAR names it. packaging_SUITE tests an incomplete installation.
sidecar_is_missing(Config) ->
    Path = filename:join(dir(Config), "no_such_sidecar"),
    refuses_to_boot(
        sidecar_options(Path),
        ["the sidecar ", Path, " did not start: there is no such file; correct UDS_DIST_SIDECAR, .*or unset it"],
        Config
    ).

%% The application is in an archive, as in an escript. The node runs if UDS_DIST_SIDECAR names a file.
sidecar_is_in_an_archive(Config) ->
    Archive = filename:join(dir(Config), "uds_dist.ez"),
    Ebin = filename:dirname(code:which(uds_dist)),
    Modules = [
        {filename:join("uds_dist/ebin", Name), element(2, {ok, _} = file:read_file(filename:join(Ebin, Name)))}
     || Name <- filelib:wildcard("uds_dist*", Ebin)
    ],
    {ok, _} = zip:create(Archive, [{"uds_dist/priv/uds_dist_sidecar", sidecar_binary()} | Modules]),
    Options = #{otp => {test_node:erl(), Archive ++ "/uds_dist/ebin"}},
    Path = Archive ++ "/uds_dist/priv/uds_dist_sidecar",
    refuses_to_boot(
        Options,
        ["the sidecar ", Path, " did not start: it is inside the archive ", Archive, ", .*UDS_DIST_SIDECAR"],
        Config
    ),
    Beside = sidecar_file("uds_dist_sidecar", sidecar_binary(), 8#755, Config),
    A = start("a", maps:merge(Options, sidecar_options(Beside)), Config),
    ?assertEqual({ok, ["a"]}, call(A, uds_dist, names, [])).

%% A binary that lost its mode, for instance when it was unpacked.
sidecar_is_not_executable(Config) ->
    Path = sidecar_file("sidecar", "#!/bin/sh\n", 8#644, Config),
    refuses_to_boot(
        sidecar_options(Path),
        ["the sidecar ", Path, " did not start: this user may not execute it; chmod \\+x"],
        Config
    ).

%% Only root may mount, in a mount namespace of the node's own.
sidecar_is_on_a_noexec_mount(Config) ->
    Mount = test_node:dir("noexec", Config),
    Path = filename:join(Mount, "sidecar"),
    Prefix = [
        "unshare",
        "-m",
        "sh",
        "-c",
        "mount -t tmpfs -o noexec tmpfs \"$0\" && cp \"$1\" \"$2\" && shift 2 && exec \"$@\"",
        Mount,
        uds_dist_program:path(),
        Path
    ],
    case os:cmd("unshare -m mount -t tmpfs -o noexec tmpfs '" ++ Mount ++ "'") of
        "" ->
            refuses_to_boot(
                maps:put(prefix, Prefix, sidecar_options(Path)),
                ["the sidecar ", Path, " did not start: .* noexec; .*UDS_DIST_SIDECAR"],
                Config
            );
        Error ->
            {skip, "mount: " ++ Error}
    end.

%% A binary of another machine.
sidecar_is_of_another_architecture(Config) ->
    <<Ident:18/binary, _Machine:16, Rest/binary>> = sidecar_binary(),
    Path = sidecar_file("sidecar", <<Ident/binary, 16#FFFE:16, Rest/binary>>, 8#755, Config),
    refuses_to_boot(
        sidecar_options(Path),
        ["the sidecar ", Path, " did not start: it exited with status 8, .* architecture; build it"],
        Config
    ).

%% The sidecar was built for another C library, such as musl on a system with glibc.
sidecar_is_of_another_libc(Config) ->
    [Before, After] = binary:split(sidecar_binary(), <<"/ld-linux">>),
    Path = sidecar_file("sidecar", [Before, "/ld-other", After], 8#755, Config),
    refuses_to_boot(
        sidecar_options(Path),
        ["the sidecar ", Path, " did not start: it exited with status 2, .* C library, .*build it"],
        Config
    ).

%% The sidecar was built on a newer system. The loader reports that.
sidecar_needs_a_newer_libc(Config) ->
    Binary = binary:replace(sidecar_binary(), <<0, "GLIBC_2.">>, <<0, "GLIBC_9.">>, [global]),
    Path = sidecar_file("sidecar", Binary, 8#755, Config),
    Line = ["the sidecar ", Path, " did not start: it exited with status 1; standard error says why"],
    {_, Output} = refuses_to_boot(sidecar_options(Path), Line, Config),
    test_node:expect_output_of(Output, [Path, ": .*libc.* not found"]).

%% This happens on Alpine, where libgcc is a separate package.
sidecar_lacks_a_shared_library(Config) ->
    [Before, After] = binary:split(sidecar_binary(), <<0, "libgcc_s.so">>),
    Path = sidecar_file("sidecar", [Before, 0, "libgcc_x.so", After], 8#755, Config),
    Line = [
        "the sidecar ", Path, " did not start: it exited with status 127, because a shared library that it needs is missing"
    ],
    {_, Output} = refuses_to_boot(sidecar_options(Path), Line, Config),
    test_node:expect_output_of(Output, "libgcc_x").

sidecar_binary() ->
    {ok, Binary} = file:read_file(uds_dist_program:path()),
    Binary.

%% What else a path can lead to.
sidecar_is_no_program(Config) ->
    Cases = [
        {"directory", directory, "status 13, since it is a directory and not a file"},
        {"empty", <<>>, "status 8, since the file is empty; build it"},
        {"text", <<"hello">>, "status 8, since it is not a program; build it"},
        {"script", <<"#!/bin/sh\r\n">>, "status 2, since the interpreter that its first line names is not"}
    ],
    [
        begin
            Path =
                case Content of
                    directory -> test_node:dir(Name, Config);
                    _ -> sidecar_file(Name, Content, 8#755, Config)
                end,
            Line = ["the sidecar ", Path, " did not start: it exited with ", Why],
            refuses_to_boot(sidecar_options(Path), Line, Config)
        end
     || {Name, Content, Why} <- Cases
    ].

%% As while a deployment copies it.
sidecar_is_being_written(Config) ->
    Path = sidecar_file("sidecar", sidecar_binary(), 8#755, Config),
    {ok, File} = file:open(Path, [read, write, raw]),
    Line = ["the sidecar ", Path, " did not start: it exited with status 26, since somebody is writing to it"],
    refuses_to_boot(sidecar_options(Path), Line, Config),
    ok = file:close(File).

%% Both versions are named.
sidecar_speaks_another_version(Config) ->
    Hello = <<32, 99:16, "whatever a later version has here">>,
    Path = fake_sidecar(Hello, Config),
    refuses_to_boot(
        sidecar_options(Path),
        ["the sidecar ", Path, " did not start: it speaks version 99 .* this node speaks [0-9]+;"],
        Config
    ).

%% Anything else than HELLO is none.
sidecar_breaks_the_protocol(Config) ->
    Path = fake_sidecar(<<33, 0:32>>, Config),
    refuses_to_boot(
        sidecar_options(Path),
        ["the sidecar ", Path, " did not start: it broke the port protocol"],
        Config
    ).

%% It is not waited for without end.
sidecar_does_not_say_hello(Config) ->
    Path = sidecar_file("sidecar", "#!/bin/sh\nexec cat >/dev/null\n", 8#755, Config),
    refuses_to_boot(
        sidecar_options(Path),
        ["the sidecar ", Path, " did not start: it did not say hello within .*; .*check UDS_DIST_SIDECAR"],
        Config
    ).

%% Its exit status is named.
sidecar_exits_at_once(Config) ->
    Path = sidecar_file("sidecar", "#!/bin/sh\nexit 7\n", 8#755, Config),
    refuses_to_boot(
        sidecar_options(Path),
        ["the sidecar ", Path, " did not start: it exited with status 7"],
        Config
    ),
    Other = sidecar_file("other", "#!/bin/sh\nexit 0\n", 8#755, Config),
    refuses_to_boot(
        sidecar_options(Other),
        ["the sidecar ", Other, " did not start: it exited with status 0; .*check UDS_DIST_SIDECAR"],
        Config
    ).

%% net_kernel:start/2 returns an error, and the VM continues.
sidecar_is_missing_at_run_time(Config) ->
    Path = filename:join(dir(Config), "no_such_sidecar"),
    Node = start(undefined, sidecar_options(Path), Config),
    ?assertMatch({error, _}, call(Node, net_kernel, start, [a, #{name_domain => shortnames}])),
    expect_output(Node, ["uds_dist: the sidecar ", Path, " did not start"]),
    ?assertEqual(nonode@nohost, call(Node, erlang, node, [])).

sidecar_options(Path) ->
    #{env => [{"UDS_DIST_SIDECAR", Path}]}.

sidecar_file(Name, Content, Mode, Config) ->
    Path = filename:join(dir(Config), Name),
    ok = file:write_file(Path, Content),
    ok = file:change_mode(Path, Mode),
    Path.

%% Says one packet, and then reads until the VM closes the port.
fake_sidecar(Packet, Config) ->
    Says = sidecar_file("packet", <<(byte_size(Packet)):32, Packet/binary>>, 8#644, Config),
    Script = ["#!/bin/sh\ncat ", Says, "\nexec cat >/dev/null\n"],
    sidecar_file("sidecar", Script, 8#755, Config).

%% ---------------------------------------------------------------------------------------------
%% The directory

%% Only the last component is created, in case of a mistyped path.
directory_lacks_its_parent(Config) ->
    Dir = filename:join([dir(Config), "no", "sockets"]),
    refuses_to_boot(#{dir => Dir}, ["directory ", Dir, " does not exist, .*socket_dir"], Config).

directory_is_a_loop_of_links(Config) ->
    Loop = filename:join(dir(Config), "loop"),
    ok = file:make_symlink(Loop, Loop),
    refuses_to_boot(#{dir => Loop}, [Loop, ": Too many levels .*; .*set socket_dir to a directory"], Config).

%% A file is no directory.
directory_is_a_file(Config) ->
    File = filename:join(dir(Config), "file"),
    ok = file:write_file(File, ""),
    refuses_to_boot(#{dir => File}, [File, ".*set socket_dir to one"], Config).

%% The line has the length and the limit.
socket_path_is_too_long(Config) ->
    Dir = filename:join(dir(Config), lists:duplicate(100, $x)),
    Length = integer_to_list(length(Dir ++ "/a.sock")),
    Limit = integer_to_list(uds_dist_address:limit(os:type())),
    refuses_to_boot(
        #{dir => Dir},
        [Dir, "/a\\.sock has ", Length, " bytes, .*no more than ", Limit, "; choose a socket_dir .*, or a shorter name"],
        Config
    ).

%% What is not a socket is left alone.
something_else_is_in_the_way(Config) ->
    File = filename:join(dir(Config), "a.sock"),
    ok = file:write_file(File, "precious"),
    refuses_to_boot(#{}, [File, " is in the way and is not a socket; remove it"], Config),
    ?assertEqual({ok, <<"precious">>}, file:read_file(File)).

%% ---------------------------------------------------------------------------------------------
%% Settings

%% Without Linux there is no abstract namespace, and no fallback.
abstract_namespace_elsewhere(_Config) ->
    {error, Line} = uds_dist_socket_dir:check("@ns", "the command line", {unix, darwin}),
    test_node:expect_output_of(
        Line, "socket_dir @ns \\(the command line\\) .*only Linux has; set it to a directory"
    ),
    ?assertEqual(
        {ok, <<"@ns">>},
        uds_dist_socket_dir:check("@ns", "the command line", {unix, linux})
    ).

%% Each line names the setting, its value, and what is allowed.
settings_are_invalid(Config) ->
    Wrong = [
        {config(socket_dir, 7), "socket_dir 7 \\(the application environment\\) must be a string"},
        {config(socket_dir, ""), "socket_dir \\(the application environment\\) is empty"},
        {config(socket_dir, "@"), "socket_dir \"@\" .* lacks the name of the abstract namespace; set it to @name"},
        {config(socket_dir, "a\0b"), "socket_dir a.x00b .* contains a control character; remove it"},
        {config(sockets_dir, "/x"), "no setting sockets_dir; it has socket_dir, backlog, socket_mode"},
        {#{args => ["-uds_dist_socket_dir", "/x"]}, "there is no flag -uds_dist_socket_dir; use -uds_dist_dir"},
        {#{dir => none, args => ["-uds_dist", "socket_dir"]}, "-uds_dist socket_dir has no value; use -uds_dist_dir"},
        {config(backlog, 0), "backlog 0 must be an integer from 1 to 65535"},
        {config(transport, relayed), "transport relayed must be relay or direct"},
        {config(transport, "direct"), "transport \"direct\" must be relay or direct"},
        {config(relay, true), "no setting relay; it has .*transport"},
        {spin("soon"), "UDS_DIST_SPIN=soon must be a number of microseconds from 0 to 1000"},
        {spin("1001"), "UDS_DIST_SPIN=1001 must be a number of microseconds"},
        {spin("-1"), "UDS_DIST_SPIN=-1 must be a number of microseconds"},
        {log_level("loud"), "UDS_DIST_LOG=loud must be off, error, warn, info or debug"},
        {log_level("uds_dist=debug"), "UDS_DIST_LOG=uds_dist=debug must be off, error"},
        {config(backlog, many), "backlog many must be an integer from 1 to 65535"},
        {arguments(["-uds_dist", "socket_dir", "/x"]), "socket_dir /x is not an Erlang string"},
        {arguments(["-uds_dist_dir"]), "-uds_dist_dir takes one directory"},
        {arguments(["-uds_dist", "backlog", "6x"]), "-uds_dist backlog 6x is not an Erlang term; quote it"},
        {arguments(["-uds_dist", "allowed_uids", "1000,0"]), "-uds_dist allowed_uids 1000,0 is not an Erlang term"},
        {arguments(["-uds_dist", "backlog", "7", "transport"]), "-uds_dist transport has no value"},
        {arguments(["-uds_dist", "backlog"]), "-uds_dist backlog has no value"},
        {arguments(["-uds_dist", "backlog", "-uds_dist", "transport", "direct"]), "-uds_dist backlog has no value"},
        {arguments(["-uds_dist_dir", "/x", "/y"]), "-uds_dist_dir takes one directory"}
    ],
    Launched = [{launch(Options, Config), Line} || {Options, Line} <- Wrong],
    [expect_refusal(Node, Line, Config) || {Node, Line} <- Launched].

config(Key, Value) ->
    #{dir => none, config => [{uds_dist, [{Key, Value}]}]}.

spin(Text) ->
    #{env => [{"UDS_DIST_SPIN", Text}]}.

log_level(Text) ->
    #{env => [{"UDS_DIST_LOG", Text}]}.

arguments(Arguments) ->
    #{dir => none, args => Arguments}.

%% A node that does not listen reports the error when it first connects.
node_without_a_listener_reports_settings(Config) ->
    Options = (config(backlog, 0))#{args => ["-dist_listen", "false"]},
    Node = start("a", Options, Config),
    ?assertEqual(pang, call(Node, net_adm, ping, [b@nowhere])),
    expect_output(Node, "uds_dist: .*b@nowhere.* backlog 0 must be an integer").

%% ---------------------------------------------------------------------------------------------
%% The other end

%% A node that is not there, or no more: an answer before the end of the setup time, and one line however
%% often one asks.
nobody_is_there(Config) ->
    [A, B] = start_all(["a", "b"], #{args => ["-kernel", "net_setuptime", "60"]}, Config),
    NeverThere = list_to_atom("c@" ++ host(A)),
    {Time, pang} = timer:tc(fun() -> call(A, net_adm, ping, [NeverThere]) end),
    ?assert(Time < 30000000),
    pang = call(A, net_adm, ping, [NeverThere]),
    expect_output(A, ["uds_dist: cannot connect to c@.*: there is no socket .*/c\\.sock"]),
    Sidecar = sidecar(B),
    test_node:signal("STOP", os_pid(B)),
    test_node:signal("KILL", Sidecar),
    test_node:kill(B),
    {Time1, pang} = timer:tc(fun() -> call(A, net_adm, ping, [name(B)]) end),
    ?assert(Time1 < 30000000),
    expect_output(A, ["uds_dist: cannot connect to b@.*: nobody listens at .*/b\\.sock"]),
    ?assertMatch([_, _], lines("uds_dist: cannot connect", test_node:output(A))).

%% The sidecar of a stopped VM, or the kernel for a stopped sidecar, still accepts the connection.
node_that_does_not_answer_is_reported(Config) ->
    [A, B, C] = start_all(["a", "b", "c"], #{args => ["-kernel", "net_setuptime", "2"]}, Config),
    ok = test_node:signal("STOP", [os_pid(B), sidecar(C)]),
    [
        begin
            pang = call(A, net_adm, ping, [name(Node)]),
            expect_output(A, [
                "uds_dist: cannot connect to ", atom_to_list(name(Node)),
                ": it did not complete the handshake within net_setuptime; it may be stopped"
            ])
        end
     || Node <- [B, C]
    ],
    test_node:signal("CONT", [os_pid(B), sidecar(C)]).

host(Node) ->
    [_, Host] = string:split(atom_to_list(name(Node)), "@"),
    Host.

%% Fifty strangers at once: a node that connects meanwhile need not wait for their end, and all of
%% them are cut off when the setup time is over, if not before.
strangers_are_cut_off(Config) ->
    Options = #{
        args => ["-kernel", "net_setuptime", "3"],
        config => [{uds_dist, [{backlog, 64}]}]
    },
    [A, B] = start_all(["a", "b"], Options, Config),
    pong = call(A, net_adm, ping, [name(A)]),
    Before = descriptors_of_sidecar(A),
    %% Nothing at all, one byte, a length and the beginning of a name.
    HalfOpen = [<<>>, <<0>>, <<100:16, $N>>],
    %% The longest length, any bytes, a handshake packet that is none.
    Garbage = [<<16#FFFF:16, 0:800>>, crypto:strong_rand_bytes(1000), <<5:16, "bogus">>],
    Waiting = [stranger(Bytes, A, Config) || _ <- lists:seq(1, 9), Bytes <- HalfOpen],
    Talking = [stranger(Bytes, A, Config) || _ <- lists:seq(1, 9), Bytes <- Garbage],
    pong = call(B, net_adm, ping, [name(A)]),
    [?assertEqual({error, timeout}, gen_tcp:recv(Client, 0, 0)) || Client <- Waiting],
    [?assertEqual({error, closed}, gen_tcp:recv(Client, 0, 20000)) || Client <- Waiting ++ Talking],
    expect_nodes(A, [name(B)]),
    %% One of them belongs to the connection with B.
    expect(
        fun() ->
            case descriptors_of_sidecar(A) - Before of
                1 -> true;
                More -> {more, More}
            end
        end,
        one_descriptor_more
    ).

%% A stranger that sends without end does not fill the VM's memory: what the VM does not read stays in the
%% socket.
flood_fills_no_memory(Config) ->
    A = start("a", #{args => ["-kernel", "net_setuptime", "2"]}, Config),
    Before = memory(A),
    %% The beginning of a packet that the VM waits for the end of.
    Client = stranger(<<2048:16>>, A, Config),
    ok = inet:setopts(Client, [{send_timeout, 500}, {sndbuf, 4096}]),
    Taken = flood(Client, 0),
    ?assert(Taken < 1 bsl 20),
    [?assert(After - Pre < 8 bsl 20) || {Pre, After} <- lists:zip(Before, memory(A))].

flood(_Client, Sent) when Sent > 64 bsl 20 ->
    Sent;
flood(Client, Sent) ->
    Bytes = binary:copy(<<0>>, 4096),
    case gen_tcp:send(Client, Bytes) of
        ok -> flood(Client, Sent + byte_size(Bytes));
        {error, _} -> Sent
    end.

%% Bytes of the VM's memory that is in use, and of the sidecar's that is resident.
memory(Node) ->
    [call(Node, erlang, memory, [total]), test_node:resident(sidecar(Node))].

stranger(Bytes, Node, Config) ->
    [Name, _] = string:split(atom_to_list(name(Node)), "@"),
    Socket = filename:join(dir(Config), Name ++ ".sock"),
    {ok, Client} = gen_tcp:connect({local, Socket}, 0, [local, binary, {active, false}]),
    ok = gen_tcp:send(Client, Bytes),
    Client.

descriptors_of_sidecar(Node) ->
    length(test_node:descriptors(sidecar(Node))).

%% ---------------------------------------------------------------------------------------------

%% Runs erl as node a, which must end for the reason that the line tells.
refuses_to_boot(Options, Line, Config) ->
    expect_refusal(launch(Options, Config), Line, Config).

launch(Options, Config) ->
    Arguments = maps:get(args, Options, []) ++ ["-noinput"],
    test_node:launch(Options#{name => "a", args => Arguments}, Config).

expect_refusal(Node, Line, Config) ->
    {Status, Output} = test_node:expect_exit(Node),
    test_node:expect_output_of(Output, ["^(=.*\n)?uds_dist: .*", Line]),
    ct:log("Status ~p~n~ts", [Status, Output]),
    ?assertMatch([_], lines("uds_dist: ", Output)),
    ?assertNotEqual(0, Status),
    ?assertNot(filelib:is_file(filename:join(dir(Config), "erl_crash.dump"))),
    {Status, Output}.

lines(Text, Output) ->
    [Line || Line <- string:split(Output, "\n", all), string:find(Line, Text) =/= nomatch].
