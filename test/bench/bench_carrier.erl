%% The carriers that are compared, and groups of nodes with one of them. A group consists of a hub and the peers to
%% which it is connected.
-module(bench_carrier).

-export([prepare/1, start/3, stop/1]).
-export([hub/1, peers/1, members/1, call_hub/4, disconnect/2, with_mesh/2]).
-export([processes/1, processes_of_hub/1]).

-export_type([carrier/0, group/0, process/0]).

-type carrier() :: #{
    name := string(),
    %% The value of -proto_dist.
    proto := string(),
    %% Other arguments of its nodes.
    args := [string()],
    %% Things that have to be made for the run: the modules of the benchmark, an example of OTP, certificates.
    dir := file:filename()
}.

-type group() :: #{
    config := list(),
    hub := test_node:t(),
    peers := [test_node:t()]
}.

%% A process of the operating system.
-type process() :: {vm | sidecar, OsPid :: pos_integer()}.

%% Longest time for a call of a node, in milliseconds. No call takes nearly as long.
-define(LIMIT, 300000).

%% Most nodes that boot at the same time.
-define(BOOTING, 8).

-define(TLS_OPTIONS, "inet_tls.conf").
%% Certificates as strong as usual ones, but quick to make.
-define(TLS_CERTIFICATE, [{key, {namedCurve, secp256r1}}, {digest, sha256}]).

%% Makes everything that the carrier needs. Throws the reason if the carrier cannot run here, as far as this is known
%% before a node starts.
-spec prepare(carrier()) -> ok.
prepare(#{proto := "inet_tls", dir := Dir}) ->
    write_tls_options(filename:join(Dir, ?TLS_OPTIONS));
prepare(#{proto := "erl_uds", dir := Dir}) ->
    Examples = filename:join([code:lib_dir(kernel), "examples", "erl_uds_dist", "src"]),
    Source = filename:join(Examples, "erl_uds_dist.erl"),
    case compile:file(Source, [{outdir, Dir}]) of
        {ok, erl_uds_dist} -> ok;
        error -> throw(["this OTP has come without ", Source])
    end;
prepare(#{proto := Proto, args := Arguments}) ->
    Beam = Proto ++ "_dist.beam",
    Paths = paths(Arguments),
    case file:path_open(Paths ++ code:get_path(), Beam, [read, raw]) of
        {ok, Device, _} ->
            file:close(Device);
        {error, _} ->
            throw(["there is no ", Beam, [[" in ", Path, " or"] || Path <- Paths], " in this OTP"])
    end.

%% The directories that arguments of erl add to the code path, one with each flag.
paths([Flag, Path | Rest]) when Flag =:= "-pa"; Flag =:= "-pz" -> [Path | paths(Rest)];
paths([_ | Rest]) -> paths(Rest);
paths([]) -> [].

%% ---------------------------------------------------------------------------------------------

%% Starts a hub and its peers in a new directory, and connects them. Arguments are added to the command line of each
%% node.
-spec start(carrier(), Peers :: pos_integer(), Arguments :: [string()]) -> group().
start(Carrier, Count, Arguments) ->
    Config = test_node:init([]),
    try
        Names = ["peer" ++ integer_to_list(N) || N <- lists:seq(1, Count)],
        [Hub | Peers] = boot(["hub" | Names], options(Carrier, Arguments), Config),
        Group = #{config => Config, hub => Hub, peers => Peers},
        lists:foreach(fun(Peer) -> connect(Hub, Peer) end, Peers),
        Group
    catch
        Class:Reason:Stack ->
            ok = clean_up(Config),
            erlang:raise(Class, Reason, Stack)
    end.

connect(From, To) ->
    Name = test_node:name(To),
    case test_node:call(From, net_kernel, connect_node, [Name]) of
        true ->
            ok;
        false ->
            throw([atom_to_list(test_node:name(From)), " cannot connect to ", atom_to_list(Name)])
    end.

-spec stop(group()) -> ok.
stop(#{config := Config}) ->
    clean_up(Config).

%% This does not check that sidecars end with their VMs, because the tests do.
clean_up(Config) ->
    _ = test_node:cleanup(Config),
    ok.

%% Nodes that all boot at once might not come up in time.
boot([], _Options, _Config) ->
    [];
boot(Names, Options, Config) ->
    {Now, Later} = lists:split(min(?BOOTING, length(Names)), Names),
    test_node:start_all(Now, Options, Config) ++ boot(Later, Options, Config).

options(#{proto := Proto, args := Args, dir := Dir} = Carrier, Arguments) ->
    #{
        carrier => ["-proto_dist", Proto | own_arguments(Carrier)],
        otp => {test_node:erl(), Dir},
        args => Args ++ Arguments ++ test_node:on_demand()
    }.

own_arguments(#{proto := "inet_tls", dir := Dir}) ->
    ["-ssl_dist_optfile", filename:join(Dir, ?TLS_OPTIONS) | loopback()];
own_arguments(#{proto := Proto}) when Proto =:= "inet_tcp"; Proto =:= "inet_epmd" ->
    loopback();
own_arguments(#{}) ->
    ["-no_epmd"].

%% Arguments for carriers over TCP, so that they use neither the epmd of this machine nor other interfaces.
loopback() ->
    ["-start_epmd", "false", "-epmd_module", "bench_epmd"] ++
        ["-kernel", "inet_dist_use_interface", "{127,0,0,1}"].

%% Makes keys and certificates for this run only. Each side knows the authority of the other.
write_tls_options(File) ->
    case code:ensure_loaded(public_key) of
        {module, public_key} ->
            Chain = #{
                root => ?TLS_CERTIFICATE, intermediates => [], peer => ?TLS_CERTIFICATE
            },
            #{server_config := Server, client_config := Client} =
                public_key:pkix_test_data(#{server_chain => Chain, client_chain => Chain}),
            Options = [{server, [{verify, verify_peer} | Server]}, {client, verify_client(Client)}],
            file:write_file(File, io_lib:format("~p.~n", [Options]));
        {error, _} ->
            throw("this OTP has come without public_key")
    end.

%% The certificate does not contain the name of the host, so that is not checked.
verify_client(Options) ->
    [{verify, verify_peer}, {server_name_indication, disable} | Options].

%% ---------------------------------------------------------------------------------------------

-spec hub(group()) -> node().
hub(#{hub := Hub}) -> test_node:name(Hub).

-spec peers(group()) -> [node()].
peers(#{peers := Peers}) -> [test_node:name(Peer) || Peer <- Peers].

-spec members(group()) -> [test_node:t()].
members(#{hub := Hub, peers := Peers}) -> [Hub | Peers].

-spec call_hub(group(), module(), atom(), [term()]) -> term().
call_hub(#{hub := Hub}, Module, Function, Arguments) ->
    test_node:call(Hub, Module, Function, Arguments, ?LIMIT).

%% Disconnects a peer, and waits until both sides have noticed.
-spec disconnect(node(), group()) -> ok.
disconnect(Name, #{hub := Hub, peers := Peers}) ->
    true = test_node:call(Hub, erlang, disconnect_node, [Name]),
    [Peer] = [Peer || Peer <- Peers, test_node:name(Peer) =:= Name],
    ok = test_node:expect_nodes(Peer, []),
    test_node:expect_nodes(Hub, [test_node:name(Other) || Other <- Peers, Other =/= Peer]).

%% Connects the first two peers to each other while Fun runs. Its arguments are the names of the three nodes.
-spec with_mesh(fun(([node()]) -> Result), group()) -> Result.
with_mesh(Fun, #{hub := Hub, peers := [A, B | _]}) ->
    [HubName, AName, BName] = Names = [test_node:name(Node) || Node <- [Hub, A, B]],
    ok = connect(A, B),
    ok = test_node:expect_nodes(A, [HubName, BName]),
    ok = test_node:expect_nodes(B, [HubName, AName]),
    Result = Fun(Names),
    true = test_node:call(A, erlang, disconnect_node, [BName]),
    ok = test_node:expect_nodes(A, [HubName]),
    ok = test_node:expect_nodes(B, [HubName]),
    Result.

%% The operating system's processes of the group.
-spec processes(group()) -> [process()].
processes(Group) ->
    lists:append([processes_of(Node) || Node <- members(Group)]).

-spec processes_of_hub(group()) -> [process()].
processes_of_hub(#{hub := Hub}) ->
    processes_of(Hub).

processes_of(Node) ->
    Vm = test_node:os_pid(Node),
    [{vm, Vm} | [{sidecar, Sidecar} || Sidecar <- test_node:sidecars(Vm)]].
