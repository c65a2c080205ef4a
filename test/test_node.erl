%% Real nodes for the suites. Each is a VM of its own, controlled over its standard input and output (peer),
%% so that no test depends on the distribution that it tests.
%%
%% init/1 gives a test case a new directory, and cleanup/1 ends everything that the test case has started
%% there. cleanup/1 fails if a sidecar outlives its VM, and shows the output of the nodes if the test case has
%% failed. Every expect_* waits for an event, up to a time limit, and fails with what it saw instead.
-module(test_node).

-export([cases/1, suite/0, suite/1, transports/0, init_group/2, init/1, cleanup/1, dir/1, dir/2]).
%% Running nodes, and erl commands that may end by themselves.
-export([start/2, start/3, start_all/2, start_all/3, boot/3, expect_up/1]).
-export([launch/2, expect_exit/1]).
-export([on_demand/0, transport/1, erl_uds_dist/1, erl/0, other_otps/0]).
-export([name/1, os_pid/1, sidecar/1, sidecars/1, socket/2, expect_listening/3]).
-export([own_sidecar/1, replace_binary/1, replace_by_script/2]).
-export([call/2, call/4, call/5]).
-export([stop/1, kill/1, signal/2]).
-export([output/1, expect_output/2, expect_output_of/2, type/2]).
-export([expect_nodes/2, expect/2, expect/3]).
%% The operating system's view of a process.
-export([work/1, descriptors/1, sockets/1, listeners/1, tcp_listeners/1, resident/1, is_alive/1]).
%% Options of a node with few descriptors.
-export([few_descriptors/0]).
%% Run in the nodes.
-export([await_nodes/2, use_up_descriptors/0, use_up_descriptors/1, give_back_descriptors/0]).

-export_type([t/0, options/0, work/0]).

%% A VM under test.
-type t() :: #{
    console := pid(),
    os_pid := pos_integer(),
    peer => pid(),
    name => node()
}.

-type options() :: #{
    %% The argument of -sname or -name; undefined for a VM without distribution.
    name => string() | undefined,
    long => boolean(),
    %% The value of -uds_dist_dir; by default the test case's directory.
    dir => string() | none,
    cookie => string(),
    %% The value of -uds_dist transport; by default that of the Config.
    transport => relay | direct,
    %% Terms of a sys.config.
    config => [{atom(), [{atom(), term()}]}],
    args => [string()],
    env => [{string(), string() | false}],
    cwd => string(),
    %% Flags that select the carrier, and a command that is put before erl.
    carrier => [string()],
    prefix => [string()],
    otp => otp()
}.

-type work() :: #{
    rchar | wchar | syscr | syscw => non_neg_integer()
}.

%% An erl command, and the ebin directory that was compiled for it.
-type otp() :: {Erl :: string(), Ebin :: string()}.

%% Time limit of every wait, in milliseconds. It is long because test machines are busy, and it does not slow
%% down tests that pass.
-define(LIMIT, 60000).
%% Interval in milliseconds at which conditions without an event are checked.
-define(POLL, 10).
%% Longest time in milliseconds for which a sidecar delivers what its VM has left behind, before it ends.
-define(SIDECAR_LIMIT, 20000).

%% The test cases of a suite: all its exported functions with one argument.
cases(Suite) ->
    [Case || {Case, 1} <- Suite:module_info(exports), Case =/= module_info].

%% Settings that all suites share. Every wait has a limit of its own, so this one is only for a case that hangs;
%% it is long because a busy machine needs minutes for what takes seconds elsewhere.
suite() ->
    suite(0).

%% The same for cases that work for so many seconds on purpose.
suite(Seconds) ->
    [{timetrap, {seconds, 600 + Seconds}}].

%% The groups of suites that test connections with each transport. scripts/test may leave one of them out.
transports() ->
    Wanted = string:lexemes(os:getenv("UDS_DIST_TEST_TRANSPORTS", "relay direct"), " "),
    [{group, Transport} || Transport <- [relay, direct], lists:member(atom_to_list(Transport), Wanted)].

%% Configures these groups. Nodes in `relay` get no setting, so this also tests the default.
init_group(direct, Config) -> [{transport, direct} | Config];
init_group(_Group, Config) -> Config.

%% Creates a new directory. Unlike that of Common Test, its path is short enough for sockets.
init(Config) ->
    Dir = filename:join("/tmp", io_lib:format("uds_dist.~s.~b", [os:getpid(), unique()])),
    case file:make_dir(Dir) of
        ok -> [{dir, Dir}, {keeper, spawn(fun() -> keep([]) end)} | Config];
        %% It was left by a run that was killed.
        {error, eexist} -> init(Config)
    end.

unique() ->
    erlang:unique_integer([positive]).

dir(Config) ->
    proplists:get_value(dir, Config).

%% Creates a directory in that of the test case.
dir(Name, Config) ->
    Dir = filename:join(dir(Config), Name),
    ok = file:make_dir(Dir),
    Dir.

%% Ends all VMs, whatever their state, and checks that their sidecars end.
cleanup(Config) ->
    Keeper = proplists:get_value(keeper, Config),
    Keeper ! {take, self()},
    Started =
        receive
            {Keeper, Items} -> Items
        end,
    %% The number of a VM that has ended may belong to another process by now.
    Running = [Pid || #{os_pid := Pid, started := Time} <- Started, start_time(Pid) =:= Time],
    %% A VM that is not stopped might start a new sidecar meanwhile.
    _ = kill_os("STOP", Running),
    Sidecars =
        try
            lists:append([sidecars(Pid) || Pid <- Running])
        after
            kill_os("KILL", Running)
        end,
    _ = kill_os("CONT", Sidecars),
    case proplists:get_value(tc_status, Config, ok) of
        ok -> ok;
        _ -> lists:foreach(fun show/1, Started)
    end,
    _ = [exit(Pid, kill) || #{console := Console} = Item <- Started, Pid <- [Console | peer(Item)]],
    Left = wait_while_alive(Sidecars, deadline(?SIDECAR_LIMIT)),
    _ = kill_os("KILL", Left),
    ok = file:del_dir_r(dir(Config)),
    case Left of
        [] -> ok;
        _ -> {fail, {sidecars_without_a_vm, Left}}
    end.

peer(#{peer := Peer}) -> [Peer];
peer(#{}) -> [].

show(#{console := Console, os_pid := OsPid} = Item) ->
    test_runner:note("~s (process ~b) printed:~n~ts", [
        maps:get(title, Item), OsPid, output(#{console => Console})
    ]).

wait_while_alive(Pids, Deadline) ->
    case {[Pid || Pid <- Pids, is_alive(Pid)], now_ms() > Deadline} of
        {[], _} -> [];
        {Left, true} -> Left;
        {Left, false} -> poll(fun() -> wait_while_alive(Left, Deadline) end)
    end.

keep(Items) ->
    receive
        {started, Item} -> keep([Item | Items]);
        {take, From} -> From ! {self(), lists:reverse(Items)}
    end.

%% ---------------------------------------------------------------------------------------------
%% Nodes

start(Name, Config) ->
    start(Name, #{}, Config).

%% Starts a node and waits until it is up.
-spec start(string(), options(), list()) -> t().
start(Name, Options, Config) ->
    expect_up(boot(Name, Options, Config)).

start_all(Names, Config) ->
    start_all(Names, #{}, Config).

%% Starts several nodes at once and waits until all are up.
-spec start_all([string()], options(), list()) -> [t()].
start_all(Names, Options, Config) ->
    Booting = [boot(Name, Options, Config) || Name <- Names],
    [expect_up(Node) || Node <- Booting].

%% Starts a node without waiting for it.
boot(Name, Options, Config) ->
    Options1 = Options#{name => Name},
    [Program | Arguments] = command(Options1, Config),
    Tag = make_ref(),
    Console = spawn(fun() -> console(#{}) end),
    PeerOptions = #{
        connection => standard_io,
        exec => {Program, Arguments},
        args => arguments(Options1, Config),
        env => environment(Options1, Config),
        wait_boot => {self(), Tag}
    },
    GroupLeader = group_leader(),
    group_leader(Console, self()),
    {ok, Peer} =
        try
            peer:start(PeerOptions)
        after
            group_leader(GroupLeader, self())
        end,
    Node = #{peer => Peer, console => Console, os_pid => peer_os_pid(Peer), tag => Tag},
    keep(Node, Name, Config).

peer_os_pid(Peer) ->
    [OsPid] = [
        OsPid
     || Port <- erlang:ports(),
        erlang:port_info(Port, connected) =:= {connected, Peer},
        {os_pid, OsPid} <- [erlang:port_info(Port, os_pid)]
    ],
    OsPid.

keep(#{os_pid := OsPid} = Node, Name, Config) ->
    Item = Node#{title => io_lib:format("~s", [Name]), started => start_time(OsPid)},
    proplists:get_value(keeper, Config) ! {started, Item},
    Node.

%% Waits until a booting node is up.
expect_up(#{tag := Tag, peer := Peer} = Node) ->
    receive
        {Tag, {started, Name, Peer}} -> maps:remove(tag, Node#{name => Name});
        {Tag, Other} -> error({did_not_boot, Other, output(Node)})
    after ?LIMIT ->
        error({does_not_boot, output(Node)})
    end.

%% Runs erl without a control connection, for example because it is expected not to boot.
-spec launch(options(), list()) -> t().
launch(Options, Config) ->
    [Program | Arguments] = command(Options, Config),
    PortOptions = [
        {args, Arguments ++ arguments(Options, Config)},
        {env, environment(Options, Config)},
        binary,
        exit_status,
        hide
    ],
    Self = self(),
    Console = spawn(fun() ->
        Port = open_port({spawn_executable, Program}, PortOptions),
        {os_pid, OsPid} = erlang:port_info(Port, os_pid),
        Self ! {self(), OsPid},
        console(#{port => Port})
    end),
    receive
        {Console, OsPid} ->
            Title = maps:get(name, Options, "erl"),
            keep(#{console => Console, os_pid => OsPid}, Title, Config)
    end.

%% Waits until a launched command ends.
-spec expect_exit(t()) -> {Status :: non_neg_integer(), Output :: unicode:chardata()}.
expect_exit(#{console := Console} = Node) ->
    Console ! {exit_status, self()},
    receive
        {Console, exit_status, Status} -> {Status, output(Node)}
    after ?LIMIT ->
        error({does_not_end, output(Node)})
    end.

%% The shell changes to the working directory, and redirects stderr to stdout.
command(Options, Config) ->
    {Erl, _Ebin} = maps:get(otp, Options, this_otp()),
    Script = "cd \"$0\" && exec \"$@\" 2>&1",
    Cwd = maps:get(cwd, Options, dir(Config)),
    ["/bin/sh", "-c", Script, Cwd] ++ maps:get(prefix, Options, []) ++ [Erl].

arguments(Options, Config) ->
    {_Erl, Ebin} = maps:get(otp, Options, this_otp()),
    lists:append([
        maps:get(carrier, Options, ["-proto_dist", "uds", "-no_epmd"]),
        name_arguments(Options),
        ["-pa", Ebin, test_dir(Ebin), "-setcookie", maps:get(cookie, Options, "uds_dist_test")],
        case maps:get(dir, Options, dir(Config)) of
            none -> [];
            Dir -> ["-uds_dist_dir", Dir]
        end,
        case Options of
            #{config := Terms} -> ["-config", write_config(Terms, Config)];
            #{} -> []
        end,
        case maps:get(transport, Options, proplists:get_value(transport, Config)) of
            undefined -> [];
            Transport -> ["-uds_dist", "transport", atom_to_list(Transport)]
        end,
        maps:get(args, Options, [])
    ]).

name_arguments(#{name := undefined}) -> [];
name_arguments(#{name := Name, long := true}) -> ["-name", Name];
name_arguments(#{name := Name}) -> ["-sname", Name].

write_config(Terms, Config) ->
    File = filename:join(dir(Config), io_lib:format("sys.~b.config", [unique()])),
    ok = file:write_file(File, io_lib:format("~tp.~n", [Terms])),
    unicode:characters_to_list(File).

%% Variables that the user of this machine has set for other nodes are unset.
environment(Options, Config) ->
    Unset = [
        "UDS_DIST_DIR",
        "UDS_DIST_SIDECAR",
        "UDS_DIST_LOG",
        "UDS_DIST_SPIN",
        "ERL_FLAGS",
        "ERL_AFLAGS",
        "ERL_ZFLAGS",
        "ERL_LIBS"
    ],
    Default =
        [{Name, false} || Name <- Unset] ++
            [{"ERL_CRASH_DUMP", filename:join(dir(Config), "erl_crash.dump")}],
    Given = maps:get(env, Options, []),
    [Pair || {Name, _} = Pair <- Default, not lists:keymember(Name, 1, Given)] ++ Given.

this_otp() ->
    {erl(), filename:dirname(code:which(uds_dist))}.

%% Arguments for a node that only has the connections that the test makes. Otherwise, rpc and global would
%% send to nodes that have come up, and reconnect to them when they are down.
on_demand() ->
    ["-connect_all", "false", "-kernel", "dist_auto_connect", "never"].

%% The default transport of the nodes in this Config.
-spec transport(list()) -> relay | direct.
transport(Config) ->
    proplists:get_value(transport, Config, relay).

%% Options of a node that runs OTP's example carrier, which listens at ./name.
-spec erl_uds_dist(list()) -> {ok, options()} | {skip, string()}.
erl_uds_dist(Config) ->
    Examples = filename:join([code:lib_dir(kernel), "examples", "erl_uds_dist", "src"]),
    Source = filename:join(Examples, "erl_uds_dist.erl"),
    case filelib:is_regular(Source) of
        false ->
            {skip, "this OTP has come without " ++ Source};
        true ->
            Ebin = dir("ebin", Config),
            {ok, erl_uds_dist} = compile:file(Source, [{outdir, Ebin}]),
            {ok, #{
                carrier => ["-proto_dist", "erl_uds", "-no_epmd"],
                dir => none,
                args => ["-pa", Ebin]
            }}
    end.

%% The erl of this VM.
erl() ->
    filename:join([code:root_dir(), "bin", "erl"]).

%% rebar3 compiles the suites of an application into its directory.
test_dir(Ebin) ->
    filename:join(filename:dirname(Ebin), "test").

%% Other OTPs to test with, of UDS_DIST_TEST_PEERS="MAJOR:ERL:EBIN ...".
-spec other_otps() -> [{Major :: string(), otp()}].
other_otps() ->
    [
        {Major, {Erl, Ebin}}
     || Peer <- string:lexemes(os:getenv("UDS_DIST_TEST_PEERS", ""), " "),
        [Major, Erl, Ebin] <- [string:split(Peer, ":", all)]
    ].

-spec name(t()) -> node().
name(#{name := Name}) -> Name.

-spec os_pid(t()) -> pos_integer().
os_pid(#{os_pid := OsPid}) -> OsPid.

%% The process of the one sidecar that a VM has.
-spec sidecar(t()) -> pos_integer().
sidecar(#{os_pid := OsPid} = Node) ->
    expect(
        fun() ->
            case sidecars(OsPid) of
                [Sidecar] -> {ok, Sidecar};
                Others -> {sidecars, Others}
            end
        end,
        {one_sidecar, Node}
    ).

%% The path of the socket at which a node listens in the test case's directory.
-spec socket(t(), list()) -> string().
socket(#{name := NodeName}, Config) ->
    [Name, _Host] = string:split(atom_to_list(NodeName), "@"),
    filename:join(dir(Config), Name ++ ".sock").

%% Waits until the node listens there with another sidecar than Old.
-spec expect_listening(t(), Old :: pos_integer() | none, list()) -> true.
expect_listening(Node, Old, Config) ->
    Path = socket(Node, Config),
    expect(
        fun() ->
            %% In this order: a socket of the old one is gone when its process is.
            case sidecar(Node) of
                Old -> {old_sidecar, Old};
                _ -> test_system:is_listening(Path)
            end
        end,
        {listening_again, Path}
    ).

%% A copy of the sidecar's binary, which the test may replace.
-spec own_sidecar(list()) -> file:filename().
own_sidecar(Config) ->
    Binary = filename:join(dir(Config), "sidecar"),
    ok = replace_binary(Binary),
    Binary.

-spec replace_binary(file:filename()) -> ok.
replace_binary(Binary) ->
    {ok, _} = file:copy(uds_dist_program:path(), Binary ++ ".new"),
    replace(Binary).

%% Replaces the binary by a script.
-spec replace_by_script(file:filename(), iodata()) -> ok.
replace_by_script(Binary, Script) ->
    %% The interpreter opens its script some time after the kernel has started it. By then, Binary may be another
    %% program, so the script is in a file of its own.
    File = lists:concat([Binary, ".script", unique()]),
    ok = file:write_file(File, ["shift\n", Script]),
    ok = file:write_file(Binary ++ ".new", ["#!/bin/sh ", File, $\n]),
    replace(Binary).

replace(Binary) ->
    ok = file:change_mode(Binary ++ ".new", 8#755),
    file:rename(Binary ++ ".new", Binary).

%% Runs a fun in a process of the node, which has the fun's module on its path.
-spec call(t(), fun(() -> Result)) -> Result.
call(Node, Fun) ->
    call(Node, erlang, apply, [Fun, []]).

-spec call(t(), module(), atom(), [term()]) -> term().
call(Node, Module, Function, Arguments) ->
    call(Node, Module, Function, Arguments, ?LIMIT).

-spec call(t(), module(), atom(), [term()], timeout()) -> term().
call(#{peer := Peer}, Module, Function, Arguments, Timeout) ->
    peer:call(Peer, Module, Function, Arguments, Timeout).

%% Stops a node by init:stop/0, and waits until it has ended.
-spec stop(t()) -> ok.
stop(#{peer := Peer} = Node) ->
    Monitor = monitor(process, Peer),
    ok = peer:cast(Peer, init, stop, []),
    expect_down(Monitor, Node).

%% Kills a VM, and waits until it has ended.
-spec kill(t()) -> ok.
kill(#{peer := Peer, os_pid := OsPid} = Node) ->
    Monitor = monitor(process, Peer),
    ok = signal("KILL", OsPid),
    expect_down(Monitor, Node).

expect_down(Monitor, Node) ->
    receive
        {'DOWN', Monitor, process, _, _} -> ok
    after ?LIMIT ->
        error({does_not_end, output(Node)})
    end.

%% Sends a signal to a process or to a list of processes. Waits until a stopped process has really stopped: on
%% a busy machine, some of its threads continue for a while.
-spec signal(string(), pos_integer() | [pos_integer()]) -> ok.
signal("STOP", Pids) ->
    "" = kill_os("STOP", Pids),
    _ = [true = expect(fun() -> is_stopped(Pid) end, stopped) || Pid <- lists:flatten([Pids])],
    ok;
signal(Signal, Pids) ->
    "" = kill_os(Signal, Pids),
    ok.

is_stopped(Pid) ->
    Tasks = filelib:wildcard(lists:concat(["/proc/", Pid, "/task/*/stat"])),
    States = [
        State
     || Task <- Tasks, {ok, Stat} <- [read_proc([Task])], {_, _, State} <- [parse_stat(Stat)]
    ],
    case lists:usort(States) of
        "T" -> true;
        %% The process has ended.
        "" -> true;
        Running -> {states, Running}
    end.

kill_os(_Signal, []) ->
    "";
kill_os(Signal, Pids) ->
    os:cmd("kill -" ++ Signal ++ [[$\s | integer_to_list(Pid)] || Pid <- lists:flatten([Pids])]).

%% ---------------------------------------------------------------------------------------------
%% Output of nodes

%% A console collects the output of a VM. It is the group leader of a peer, or the owner of a port.
console(State) ->
    console(State#{text => [], waiting => [], status_to => undefined}, <<>>).

console(State = #{waiting := Waiting}, Text) ->
    {Served, Waiting1} = lists:partition(fun(Waiter) -> serve(Waiter, Text) end, Waiting),
    _ = Served,
    State1 = serve_status(State#{waiting := Waiting1}),
    receive
        {io_request, From, ReplyAs, Request} ->
            {Reply, Printed} = io_request(Request),
            From ! {io_reply, ReplyAs, Reply},
            console(State1, <<Text/binary, Printed/binary>>);
        {Port, {data, Bytes}} when is_port(Port) ->
            console(State1, <<Text/binary, Bytes/binary>>);
        {Port, {exit_status, Status}} when is_port(Port) ->
            console(State1#{status => Status}, Text);
        {output, From} ->
            From ! {self(), output, Text},
            console(State1, Text);
        {expect, From, Ref, Regexp} ->
            console(State1#{waiting := [{From, Ref, Regexp} | Waiting1]}, Text);
        {exit_status, From} ->
            console(State1#{status_to := From}, Text);
        {type, Typed} ->
            #{port := Port} = State1,
            true = port_command(Port, Typed),
            console(State1, Text)
    end.

serve({From, Ref, Regexp}, Text) ->
    case re:run(Text, Regexp, [unicode, multiline, {capture, all, binary}]) of
        {match, Groups} ->
            From ! {Ref, Groups},
            true;
        nomatch ->
            false
    end.

serve_status(#{status_to := From, status := Status} = State) when From =/= undefined ->
    From ! {self(), exit_status, Status},
    State#{status_to := undefined};
serve_status(State) ->
    State.

io_request({put_chars, Encoding, Chars}) ->
    case unicode:characters_to_binary(Chars, Encoding) of
        Printed when is_binary(Printed) -> {ok, Printed};
        %% Another program may have printed this, in another encoding. Its bytes are taken for Latin-1.
        _ -> {ok, unicode:characters_to_binary(Chars, latin1)}
    end;
io_request({put_chars, Encoding, Module, Function, Arguments}) ->
    io_request({put_chars, Encoding, apply(Module, Function, Arguments)});
io_request({requests, Requests}) ->
    {ok, iolist_to_binary([Printed || {ok, Printed} <- lists:map(fun io_request/1, Requests)])};
io_request(_) ->
    {{error, enotsup}, <<>>}.

%% Everything that a node has printed so far.
-spec output(#{console := pid(), _ => _}) -> unicode:chardata().
output(#{console := Console}) ->
    Monitor = monitor(process, Console),
    Console ! {output, self()},
    receive
        {Console, output, Text} ->
            demonitor(Monitor, [flush]),
            Text;
        {'DOWN', Monitor, process, Console, Reason} ->
            io_lib:format("(lost: the process that collects the output has ended: ~tp)", [Reason])
    end.

%% Waits until the node has printed something that the regular expression matches.
-spec expect_output(t(), iodata()) -> [Group :: binary()].
expect_output(#{console := Console} = Node, Regexp) ->
    Ref = make_ref(),
    Console ! {expect, self(), Ref, Regexp},
    receive
        {Ref, Groups} -> Groups
    after ?LIMIT ->
        error({not_printed, Regexp, output(Node)})
    end.

%% Expects the same from the complete output of a command, after it has ended.
-spec expect_output_of(unicode:chardata(), iodata()) -> [Group :: binary()].
expect_output_of(Text, Regexp) ->
    case re:run(Text, Regexp, [unicode, multiline, {capture, all, binary}]) of
        {match, Groups} -> Groups;
        nomatch -> error({not_printed, Regexp, Text})
    end.

%% Types into a launched command.
-spec type(t(), iodata()) -> ok.
type(#{console := Console}, Text) ->
    Console ! {type, Text},
    ok.

%% ---------------------------------------------------------------------------------------------
%% Events

%% Waits until a node is connected to exactly these nodes.
-spec expect_nodes(t(), [node()]) -> ok.
expect_nodes(Node, Names) ->
    case call(Node, ?MODULE, await_nodes, [Names, ?LIMIT], ?LIMIT + 5000) of
        ok -> ok;
        {error, Connected} -> error({connected_with, Connected, instead_of, Names})
    end.

%% Runs in the node: waits until it is connected to exactly these nodes.
-spec await_nodes([node()], timeout()) -> ok | {error, [node()]}.
await_nodes(Names, Timeout) ->
    ok = net_kernel:monitor_nodes(true, [{node_type, all}]),
    await_sorted_nodes(lists:sort(Names), deadline(Timeout)).

await_sorted_nodes(Names, Deadline) ->
    case lists:sort(nodes(connected)) of
        Names ->
            ok;
        Others ->
            receive
                {Event, _, _} when Event =:= nodeup; Event =:= nodedown ->
                    await_sorted_nodes(Names, Deadline)
            after max(0, Deadline - now_ms()) ->
                {error, Others}
            end
    end.

%% For conditions without an event: checks repeatedly until the fun returns {ok, Result} or true.
-spec expect(fun(() -> {ok, Result} | true | Seen :: term()), What :: term()) -> Result | true.
expect(Fun, What) ->
    expect(Fun, What, ?LIMIT).

-spec expect(fun(() -> {ok, Result} | true | Seen :: term()), What :: term(), Limit :: pos_integer()) -> Result | true.
expect(Fun, What, Limit) ->
    expect_until(deadline(Limit), Fun, What).

expect_until(Deadline, Fun, What) ->
    case {Fun(), now_ms() > Deadline} of
        {{ok, Result}, _} -> Result;
        {true, _} -> true;
        {Seen, true} -> error({expected, What, seen, Seen});
        {_, false} -> poll(fun() -> expect_until(Deadline, Fun, What) end)
    end.

poll(Next) ->
    receive
    after ?POLL -> Next()
    end.

deadline(Timeout) ->
    now_ms() + Timeout.

now_ms() ->
    erlang:monotonic_time(millisecond).

%% ---------------------------------------------------------------------------------------------
%% The operating system's view

%% The sidecars of a VM, which starts its ports through a child process. A sidecar is recognized by its
%% command line, because tests replace its binary.
sidecars(OsPid) ->
    Processes = processes_of_the_system(),
    [
        Pid
     || {ChildSetup, Parent, "erl_child_setup"} <- Processes,
        Parent =:= OsPid,
        {Pid, Grandparent, _Command} <- Processes,
        Grandparent =:= ChildSetup,
        {ok, CommandLine} <- [read_proc(["/proc/", integer_to_list(Pid), "/cmdline"])],
        string:find(CommandLine, "sidecar") =/= nomatch
    ].

processes_of_the_system() ->
    {ok, Entries} = file:list_dir("/proc"),
    [
        {list_to_integer(Entry), Parent, Command}
     || [First | _] = Entry <- Entries,
        First >= $0,
        First =< $9,
        {ok, Stat} <- [read_proc(["/proc/", Entry, "/stat"])],
        {Parent, Command, State} <- [parse_stat(Stat)],
        State =/= $Z
    ].

%% Start time of a process, which distinguishes it from other processes with the same number.
start_time(Pid) ->
    case read_proc(["/proc/", integer_to_list(Pid), "/stat"]) of
        {ok, Stat} ->
            [_, FromState] = string:split(Stat, ")", trailing),
            lists:nth(20, string:lexemes(FromState, " "));
        {error, _} ->
            ended
    end.

%% proc(5): pid (command) state ppid ...
parse_stat(Stat) ->
    [_, Rest] = string:split(Stat, "("),
    [Command, [$\s, State, $\s | Numbers]] = string:split(Rest, ")", trailing),
    [Parent | _] = string:lexemes(Numbers, " "),
    {list_to_integer(Parent), Command, State}.

-spec is_alive(pos_integer()) -> boolean().
is_alive(Pid) ->
    case read_proc(["/proc/", integer_to_list(Pid), "/stat"]) of
        {ok, Stat} -> element(3, parse_stat(Stat)) =/= $Z;
        {error, _} -> false
    end.

%% Resident memory of a process in bytes.
-spec resident(pos_integer()) -> non_neg_integer().
resident(Pid) ->
    {ok, Status} = read_proc(["/proc/", integer_to_list(Pid), "/status"]),
    [_, KiB] = expect_output_of(Status, "^VmRSS:\\s*(\\d+) kB"),
    binary_to_integer(KiB) * 1024.

%% Files of proc have size 0, so file:read_file/1 cannot read all of them on all OTPs.
read_proc(Path) ->
    case file:open(Path, [read, raw, binary]) of
        {ok, File} ->
            Result = read_all(File, []),
            ok = file:close(File),
            Result;
        {error, _} = Error ->
            Error
    end.

read_all(File, Read) ->
    case file:read(File, 65536) of
        {ok, Bytes} -> read_all(File, [Read, Bytes]);
        eof -> {ok, binary_to_list(iolist_to_binary(Read))};
        {error, _} = Error -> Error
    end.

%% Counts of what a process has read and written, in system calls and bytes. Waits first until the process
%% sleeps.
-spec work(pos_integer()) -> work().
work(Pid) ->
    Proc = ["/proc/", integer_to_list(Pid)],
    expect(
        fun() ->
            {ok, Status} = read_proc([Proc, "/status"]),
            {ok, Io} = read_proc([Proc, "/io"]),
            case re:run(Status, "^State:\\s+S", [multiline]) of
                {match, _} -> {ok, counts(Io)};
                nomatch -> Status
            end
        end,
        asleep
    ).

counts(Text) ->
    Names = [rchar, wchar, syscr, syscw],
    maps:from_list([
        {Name, binary_to_integer(Count)}
     || Name <- Names,
        [_, Count] <- [expect_output_of(Text, ["^", atom_to_list(Name), ":\\s+(\\d+)$"])]
    ]).

%% The targets of a process's descriptors.
-spec descriptors(pos_integer()) -> [string()].
descriptors(Pid) ->
    Dir = filename:join(["/proc", integer_to_list(Pid), "fd"]),
    {ok, Names} = file:list_dir(Dir),
    [Target || Name <- Names, {ok, Target} <- [file:read_link(filename:join(Dir, Name))]].

%% The inodes of a process's sockets.
-spec sockets(pos_integer()) -> [string()].
sockets(Pid) ->
    [Socket || "socket:[" ++ Socket <- descriptors(Pid)].

%% The inodes of a process's listening Unix domain sockets.
-spec listeners(pos_integer()) -> [string()].
listeners(Pid) ->
    {ok, Text} = read_proc(["/proc/", integer_to_list(Pid), "/net/unix"]),
    Listening = [
        Inode ++ "]"
     || Line <- string:lexemes(Text, "\n"),
        %% __SO_ACCEPTCON
        [_, _, _, "00010000", _, _, Inode | _] <- [string:lexemes(Line, " ")]
    ],
    [Socket || Socket <- sockets(Pid), lists:member(Socket, Listening)].

%% The inodes of a process's listening TCP sockets.
-spec tcp_listeners(pos_integer()) -> [string()].
tcp_listeners(Pid) ->
    Listening = [
        Inode ++ "]"
     || Table <- ["tcp", "tcp6"],
        {ok, Text} <- [read_proc(["/proc/", integer_to_list(Pid), "/net/", Table])],
        [_, _, _, "0A", _, _, _, _, _, Inode | _] <- [
            string:lexemes(Line, " ")
         || Line <- string:lexemes(Text, "\n")
        ]
    ],
    [Socket || Socket <- sockets(Pid), lists:member(Socket, Listening)].

%% ---------------------------------------------------------------------------------------------
%% Nodes that run out of descriptors

-spec few_descriptors() -> options().
few_descriptors() ->
    #{prefix => ["/bin/sh", "-c", "ulimit -n 200 && exec \"$@\"", "sh"]}.

%% Runs in the node: opens files until no descriptor is left.
use_up_descriptors() ->
    use_up_descriptors(0).

%% The same, until only so many descriptors are left.
use_up_descriptors(Spare) ->
    Self = self(),
    spawn(fun() ->
        register(holder, self()),
        {Closed, Files} = lists:split(Spare, open_all([])),
        [ok = file:close(File) || File <- Closed],
        Self ! {holder, length(Files)},
        receive
            {give_back, From} ->
                [ok = file:close(File) || File <- Files],
                From ! given_back
        end
    end),
    receive
        {holder, Count} when Count > 0 -> ok
    end.

open_all(Files) ->
    case file:open("/dev/null", [read, raw]) of
        {ok, File} -> open_all([File | Files]);
        {error, emfile} -> Files
    end.

give_back_descriptors() ->
    holder ! {give_back, self()},
    receive
        given_back -> ok
    end.
