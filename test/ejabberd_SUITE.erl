%% A cluster of two nodes of Debian's ejabberd, configured according to examples/ejabberd.
-module(ejabberd_SUITE).

-export([all/0, suite/0, groups/0, init_per_suite/1, end_per_suite/1]).
-export([init_per_group/2, end_per_group/2, init_per_testcase/2, end_per_testcase/2]).
-export([
    node_joins_a_cluster/1,
    commands_reach_the_node/1,
    killed_node_comes_back/1,
    killed_sidecar_splits_nothing/1,
    leaving_and_stopping_leaves_nothing/1,
    missing_lines_are_named/1
]).

-include_lib("stdlib/include/assert.hrl").

-define(USER, "ejabberd").
-define(CTL, "/usr/sbin/ejabberdctl").
%% The first node has the name of the template.
-define(NAMES, ["ejabberd", "ejabberd2"]).

all() ->
    [{group, relay}, {group, direct}, missing_lines_are_named].

groups() ->
    [
        {relay, [sequence], [
            node_joins_a_cluster,
            commands_reach_the_node,
            killed_node_comes_back,
            leaving_and_stopping_leaves_nothing
        ]},
        {direct, [sequence], [
            node_joins_a_cluster,
            killed_sidecar_splits_nothing,
            killed_node_comes_back,
            leaving_and_stopping_leaves_nothing
        ]}
    ].

suite() ->
    test_node:suite().

init_per_suite(Config) ->
    test_package:init_suite("ejabberd", ?CTL, ?USER, Config).

end_per_suite(_Config) ->
    ok.

init_per_group(Group, Config) ->
    Package = set_up(test_package:transport(Group)),
    install(fun(Text) -> Text end, Package),
    [{package, Package} | Config].

set_up(Env) ->
    #{dir := Dir} = Package = test_package:set_up(?USER, Env),
    %% There are no listeners, because the test does not need them, and everything that a cluster replicates.
    Lines = [
        "hosts: [localhost]\n",
        "loglevel: info\n",
        "listen: []\n",
        "api_permissions: {console: {from: [ejabberd_ctl], who: all, what: '*'}}\n",
        "modules: {mod_roster: {}}\n"
    ],
    ok = file:write_file(filename:join(Dir, "ejabberd.yml"), Lines),
    Package.

install(Edit, Package) ->
    test_package:install_example("ejabberd/ejabberdctl.cfg", "/run/ejabberd", Edit, Package).

end_per_group(_Group, Config) ->
    ok = test_package:remove(package(Config)).

init_per_testcase(_Case, Config) ->
    test_node:init(Config).

end_per_testcase(_Case, Config) ->
    test_node:cleanup(Config).

%% ---------------------------------------------------------------------------------------------

%% Accounts are in mnesia, so an account that is created on one node exists on the other. No TCP port is open, and no
%% epmd was started.
node_joins_a_cluster(Config) ->
    [start(Name, Config) || Name <- ?NAMES],
    {0, _} = ctl("ejabberd2", "join_cluster ejabberd@localhost", Config),
    expect_cluster(Config),
    {0, _} = ctl("ejabberd", "register alice localhost secret", Config),
    ?assertEqual({0, "alice\n"}, ctl("ejabberd2", "registered_users localhost", Config)),
    ?assertEqual([[], []], [test_node:tcp_listeners(Vm) || Vm <- test_package:vms(package(Config))]),
    ?assertEqual("", os:cmd("pgrep -u " ?USER " -x epmd")).

%% The commands create no socket of their own, because they do not listen.
commands_reach_the_node(Config) ->
    #{dir := Dir} = package(Config),
    {0, Status} = ctl("ejabberd", "status", Config),
    test_node:expect_output_of(Status, "The node ejabberd@localhost is started"),
    ?assertMatch({0, "pong" ++ _}, ctl("ejabberd", "ping", Config)),
    ?assertEqual({0, ""}, ctl("ejabberd", "started", Config)),
    Sockets = test_release:sockets_in(filename:join(Dir, "run")),
    ?assertEqual(["ejabberd.sock", "ejabberd2.sock"], Sockets),
    ?assertEqual({0, "pong from ejabberd2@localhost\n"}, uds_dist("ping ejabberd2 --app ejabberd", Config)),
    ?assertEqual({0, "ejabberd\nejabberd2\n"}, uds_dist("names -q", Config)),
    ?assertEqual({0, "ejabberd2@localhost\n"}, uds_dist("peers ejabberd -q", Config)).

killed_node_comes_back(Config) ->
    Vm = vm("ejabberd2", Config),
    ok = test_node:signal("KILL", Vm),
    {ok, _} = test_system:await_end(Vm, 10000),
    {0, _} = ctl("ejabberd", "register bob localhost secret", Config),
    start("ejabberd2", Config),
    expect_cluster(Config),
    ?assertEqual({0, "alice\nbob\n"}, ctl("ejabberd2", "registered_users localhost", Config)).

%% With the transport direct, connections outlive the sidecar, and mnesia sees no partition.
killed_sidecar_splits_nothing(Config) ->
    #{dir := Dir} = package(Config),
    [Sidecar] = test_node:sidecars(vm("ejabberd", Config)),
    ok = test_node:signal("KILL", Sidecar),
    {0, _} = uds_dist("ping ejabberd --wait 30s", Config),
    {0, _} = ctl("ejabberd", "register carol localhost secret", Config),
    {0, Users} = ctl("ejabberd2", "registered_users localhost", Config),
    ?assertEqual("alice\ncarol\n", Users),
    {0, _} = ctl("ejabberd", "unregister carol localhost", Config),
    {ok, Log} = file:read_file(filename:join(Dir, "ejabberd/ejabberd.log")),
    ?assertEqual(nomatch, string:find(Log, "inconsistent_database")).

leaving_and_stopping_leaves_nothing(Config) ->
    {0, _} = ctl("ejabberd", "leave_cluster ejabberd2@localhost", Config),
    test_node:expect(
        fun() ->
            Cluster = ctl("ejabberd", "list_cluster", Config),
            Cluster =:= {0, "ejabberd@localhost\n"} orelse Cluster
        end,
        {cluster_without, "ejabberd2"}
    ),
    [{0, _} = ctl(Name, Command, Config) || Name <- ["ejabberd"], Command <- ["stop", "stopped"]],
    %% A node that has left the cluster stops by itself, or when it is told to.
    _ = ctl("ejabberd2", "stop", Config),
    test_package:expect_none_left(package(Config)).

%% Removes or breaks each part of the template in turn. docs/applications.md lists the symptoms.
missing_lines_are_named(Config) ->
    Package = set_up([]),
    Config1 = [{package, Package} | Config],
    Mistakes = [
        {{"-proto_dist uds ", ""}, "erlexec: Missing -proto_dist option"},
        {{"-pa /opt/uds_dist/ebin", ""}, "Protocol 'uds': not supported"},
        {{"/run/ejabberd", "/nowhere/run"}, "the directory /nowhere/run does not exist"}
    ],
    [
        begin
            install(test_package:mistake(Line, By), Package),
            {Status, Output} = ctl("ejabberd", "foreground", Config1),
            ct:log("~ts~nended with status ~b", [Output, Status]),
            test_node:expect_output_of(Output, Expected)
        end
     || {{Line, By}, Expected} <- Mistakes
    ],
    ok = test_package:remove(Package).

%% ---------------------------------------------------------------------------------------------

package(Config) ->
    proplists:get_value(package, Config).

start(Name, Config) ->
    {0, _} = ctl(Name, "start", Config),
    {0, _} = uds_dist("ping " ++ Name ++ " --app ejabberd --wait 60s", Config).

%% Each node has a directory for its logs and its database.
ctl(Name, Command, Config) ->
    #{dir := Dir} = Package = package(Config),
    Options = [
        ["--", Option, $\s, filename:join(Dir, Value), $\s]
     || {Option, Value} <- [
            {"config", "ejabberd.yml"},
            {"ctl-config", "ejabberdctl.cfg"},
            {"logs", Name},
            {"spool", Name ++ "/database"}
        ]
    ],
    test_package:command(
        lists:flatten([?CTL, $\s, Options, "--node ", Name, "@localhost ", Command]), [], Package
    ).

uds_dist(Arguments, Config) ->
    test_package:uds_dist(Arguments, [], package(Config)).

vm(Name, Config) ->
    {0, OsPid} = uds_dist("pid " ++ Name, Config),
    list_to_integer(string:trim(OsPid)).

expect_cluster(Config) ->
    Cluster = {0, "ejabberd2@localhost\nejabberd@localhost\n"},
    [
        test_node:expect(
            fun() ->
                {Status, Output} = ctl(Name, "list_cluster", Config),
                Sorted = {Status, lists:flatten([[L, $\n] || L <- lists:sort(string:lexemes(Output, "\n"))])},
                Sorted =:= Cluster orelse Sorted
            end,
            {Name, sees, Cluster}
        )
     || Name <- ?NAMES
    ].
