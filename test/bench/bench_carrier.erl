%% The carriers that are compared, and groups of nodes that use one of them. A group is a hub and the
%% peers that it is connected to.
-module(bench_carrier).

-export([prepare/1, start/3, stop/1]).
-export([hub/1, peers/1, members/1, call_hub/4, disconnect/2, with_mesh/2]).
-export([processes/1, processes_of_hub/1]).

-export_type([carrier/0, group/0, process/0]).

-type carrier() :: #{
    name := string(),
    %% The value of -proto_dist.
    proto := string(),
    %% What its nodes get on their command line beside that.
    args := [string()],
    %% What is made for this run: the modules of the benchmark, an example of OTP, certificates.
    dir := file:filename()
}.

-type group() :: #{
    config := list(),
    hub := test_node:t(),
    peers := [test_node:t()]
}.

%% A process of the operating system.
-type process() :: {vm | sidecar, OsPid :: pos_integer()}.

%% Milliseconds that one call of a node may take, far above what any does.
-define(LIMIT, 300000).

%% Nodes that boot at once.
-define(BOOTING, 8).

-define(TLS_OPTIONS, "inet_tls.conf").
%% Certificates as strong as those that people use, but quickly made.
-define(TLS_CERTIFICATE, [{key, {namedCurve, secp256r1}}, {digest, sha256}]).

%% Makes what the carrier needs. It throws the reason why the carrier cannot run here, as far as that
%% shows before a node starts.
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

%% Starts a hub and its peers in a directory of their own, and connects them. Arguments are what the
%% case wants on the command line of each node.
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

%% Whether a sidecar has outlived its VM is a question for the tests.
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

%% For carriers over TCP, which need neither the epmd of this machine nor its other interfaces.
loopback() ->
    ["-start_epmd", "false", "-epmd_module", "bench_epmd"] ++
        ["-kernel", "inet_dist_use_interface", "{127,0,0,1}"].

%% The keys and certificates are for this run alone; each side knows the other's authority.
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

%% The certificate is not made out to the host.
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

%% Takes the connection of a peer down, and waits until both sides have seen that.
-spec disconnect(node(), group()) -> ok.
disconnect(Name, #{hub := Hub, peers := Peers}) ->
    true = test_node:call(Hub, erlang, disconnect_node, [Name]),
    [Peer] = [Peer || Peer <- Peers, test_node:name(Peer) =:= Name],
    ok = test_node:expect_nodes(Peer, []),
    test_node:expect_nodes(Hub, [test_node:name(Other) || Other <- Peers, Other =/= Peer]).

%% Connects the first two peers to each other while Fun runs, which gets the names of the three nodes.
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

%% The processes of the operating system that the group consists of.
-spec processes(group()) -> [process()].
processes(Group) ->
    lists:append([processes_of(Node) || Node <- members(Group)]).

-spec processes_of_hub(group()) -> [process()].
processes_of_hub(#{hub := Hub}) ->
    processes_of(Hub).

processes_of(Node) ->
    Vm = test_node:os_pid(Node),
    [{vm, Vm} | [{sidecar, Sidecar} || Sidecar <- test_node:sidecars(Vm)]].
