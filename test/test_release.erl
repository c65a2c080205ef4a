%% Releases under test, of any build tool: how to start, watch and query their nodes.
%%
%% A suite keeps its releases in one directory. After each test case, no process of theirs and no new epmd may
%% be left.
-module(test_release).

-export([init/1, cleanup/2, sockets/1, sockets_in/1]).
-export([start_command/2, command/2, env/1, os_pid/1, expect_end/1]).
-export([probe/3, expect_started/2, creation/2, expect_restarted/3, expect_sockets/2]).

-export_type([t/0, env/0]).

%% A node that was started by its script, and a node that can query it.
-type t() :: #{port := port(), probe := test_node:t()}.
-type env() :: [{string(), string() | false}].

-spec init(list()) -> list().
init(Config) ->
    [{epmds, test_project:epmds()} | test_node:init(Config)].

%% Ends everything that the test case has started, and fails if something has not ended by itself.
-spec cleanup(Releases :: file:filename(), list()) -> ok | {fail, term()}.
cleanup(Releases, Config) ->
    Left = still_running(Releases, 100),
    ok = test_node:signal("KILL", [OsPid || {OsPid, _} <- Left]),
    Epmds = test_project:epmds() -- proplists:get_value(epmds, Config),
    Status = proplists:get_value(tc_status, Config, ok),
    case {test_node:cleanup(Config), Status, Left, Epmds} of
        {ok, ok, [], []} -> ok;
        {ok, ok, _, _} -> {fail, {left_behind, Left, epmds, Epmds}};
        {Result, _, _, _} -> Result
    end.

%% A sidecar ends after its VM, because it delivers what was sent before, for half a second at most.
still_running(Releases, Looks) ->
    case test_project:running_of(Releases) of
        [_ | _] when Looks > 0 ->
            receive
            after 50 -> still_running(Releases, Looks - 1)
            end;
        Left ->
            Left
    end.

%% The directory where the nodes of a test case listen by default.
-spec sockets(list()) -> file:filename().
sockets(Config) ->
    filename:join(test_node:dir(Config), "run").

-spec sockets_in(file:filename()) -> [file:filename()].
sockets_in(Dir) ->
    lists:sort(filelib:wildcard("*.sock", Dir)).

%% Starts a command in the root directory, without waiting for it.
-spec start_command(string(), env()) -> port().
start_command(Command, Env) ->
    test_project:background("exec " ++ Command, #{env => env(Env)}).

%% Runs a command, and returns its exit status and its output.
-spec command(string(), env()) -> {Status :: non_neg_integer(), Output :: string()}.
command(Command, Env) ->
    test_project:output("exec " ++ Command, #{env => env(Env)}).

%% The environment of a command, with variables that would affect it unset.
-spec env(env()) -> env().
env(Env) ->
    [{"UDS_DIST_DIR", false}, {"LANG", "C.UTF-8"}, {"ERL_CRASH_DUMP_SECONDS", "0"} | Env].

-spec os_pid(t()) -> string().
os_pid(#{port := Port}) ->
    {os_pid, OsPid} = erlang:port_info(Port, os_pid),
    integer_to_list(OsPid).

%% Waits until the node has ended with status 0, and returns its output.
-spec expect_end(t()) -> string().
expect_end(#{port := Port}) ->
    {0, Output} = test_project:collect(Port),
    Output.

%% Starts a hidden node that can query the nodes of a release.
-spec probe(Dir :: file:filename(), Cookie :: string(), list()) -> test_node:t().
probe(Dir, Cookie, Config) ->
    test_node:start("probe", #{dir => Dir, cookie => Cookie, args => ["-hidden"]}, Config).

-spec expect_started(Probe :: test_node:t(), node()) -> true.
expect_started(Probe, Node) ->
    test_node:expect(
        fun() ->
            case test_node:call(Probe, rpc, call, [Node, init, get_status, []]) of
                {started, _} -> true;
                Other -> Other
            end
        end,
        {started, Node}
    ).

%% The creation of a node, which distinguishes its incarnations.
-spec creation(Probe :: test_node:t(), node()) -> pos_integer() | {badrpc, term()}.
creation(Probe, Node) ->
    test_node:call(Probe, rpc, call, [Node, erlang, system_info, [creation]]).

-spec expect_restarted(Probe :: test_node:t(), node(), Before :: pos_integer()) -> true.
expect_restarted(Probe, Node, Before) ->
    test_node:expect(
        fun() ->
            Now = creation(Probe, Node),
            (is_integer(Now) andalso Now =/= Before) orelse Now
        end,
        {restarted, Node}
    ),
    expect_started(Probe, Node).

%% Waits for the sockets, because a sidecar removes its own when it ends, shortly after its VM.
-spec expect_sockets([file:filename()], Dir :: file:filename()) -> true.
expect_sockets(Sockets, Dir) ->
    test_node:expect(
        fun() -> sockets_in(Dir) =:= Sockets orelse sockets_in(Dir) end, {sockets, Sockets}
    ).
