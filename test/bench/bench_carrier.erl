%% The carriers that are compared, and groups of nodes that use one: a hub and peers that it is
%% connected to.
-module(bench_carrier).

-export([prepare/1, start/2, stop/1]).
-export([peers/1, call_hub/4, disconnect/2, processes/1, processes_of_hub/1]).

-export_type([carrier/0, group/0]).

-type carrier() :: #{
    name := string(),
    %% Where its modules are, if not in OTP, and what else it needs.
    ebin := file:filename(),
    %% The value of -proto_dist.
    proto := string()
}.

-type group() :: #{
    config := list(),
    hub := test_node:t(),
    peers := [test_node:t()]
}.

-type process() :: {vm | sidecar, OsPid :: pos_integer()}.

%% Milliseconds that one call of a node may take, far above what any does.
-define(LIMIT, 120000).

%% Nodes that boot at once.
-define(BOOTING, 8).

-define(TLS_OPTIONS, "inet_tls.conf").
%% As strong as those that people use, and quickly made.
-define(TLS_CERTIFICATE, [{key, {namedCurve, secp256r1}}, {digest, sha256}]).

%% Makes what the carrier needs; fails with the reason why it cannot run here, as far as that shows
%% before a node starts.
-spec prepare(carrier()) -> ok.
prepare(#{proto := "inet_tcp"}) ->
    ok;
prepare(#{proto := "inet_tls", ebin := Ebin}) ->
    write_tls_options(filename:join(Ebin, ?TLS_OPTIONS));
prepare(#{name := "erl_uds", ebin := Ebin}) ->
    Examples = filename:join([code:lib_dir(kernel), "examples", "erl_uds_dist", "src"]),
    Source = filename:join(Examples, "erl_uds_dist.erl"),
    case compile:file(Source, [{outdir, Ebin}]) of
        {ok, erl_uds_dist} -> ok;
        error -> throw(["this OTP has come without ", Source])
    end;
prepare(#{ebin := Ebin, proto := Proto}) ->
    Beam = filename:join(Ebin, Proto ++ "_dist.beam"),
    case filelib:is_regular(Beam) of
        true -> ok;
        false -> throw(["there is no ", Beam])
    end.

%% ---------------------------------------------------------------------------------------------

%% Starts a hub and its peers, in a directory of their own, and connects them.
-spec start(carrier(), Peers :: pos_integer()) -> group().
start(Carrier, Count) ->
    Config = test_node:init([]),
    try
        Names = ["peer" ++ integer_to_list(N) || N <- lists:seq(1, Count)],
        [Hub | Peers] = boot(["hub" | Names], options(Carrier), Config),
        Group = #{config => Config, hub => Hub, peers => Peers},
        lists:foreach(fun(Peer) -> connect(Peer, Group) end, peers(Group)),
        Group
    catch
        Class:Reason:Stack ->
            ok = clean_up(Config),
            erlang:raise(Class, Reason, Stack)
    end.

connect(Peer, Group) ->
    case call_hub(Group, net_kernel, connect_node, [Peer]) of
        true -> ok;
        false -> throw(["the hub cannot connect to ", atom_to_list(Peer)])
    end.

-spec stop(group()) -> ok.
stop(#{config := Config}) ->
    clean_up(Config).

%% It tells of sidecars that were left; they are for the tests to judge.
clean_up(Config) ->
    _ = test_node:cleanup(Config),
    ok.

%% Not more at once than come up in time.
boot([], _Options, _Config) ->
    [];
boot(Names, Options, Config) ->
    {Now, Later} = lists:split(min(?BOOTING, length(Names)), Names),
    test_node:start_all(Now, Options, Config) ++ boot(Later, Options, Config).

%% Beside their own modules, the nodes need those of the benchmark.
options(#{proto := Proto, ebin := Ebin} = Carrier) ->
    #{
        carrier => ["-proto_dist", Proto | arguments(Carrier)],
        otp => {test_node:erl(), Ebin},
        args => ["-pa", filename:dirname(code:which(?MODULE)) | test_node:on_demand()]
    }.

arguments(#{proto := "inet_tcp"}) ->
    ["-start_epmd", "false", "-epmd_module", "bench_epmd"] ++
        ["-kernel", "inet_dist_use_interface", "{127,0,0,1}"];
arguments(#{proto := "inet_tls", ebin := Ebin} = Carrier) ->
    OfTcp = arguments(Carrier#{proto := "inet_tcp"}),
    ["-ssl_dist_optfile", filename:join(Ebin, ?TLS_OPTIONS) | OfTcp];
arguments(#{}) ->
    ["-no_epmd"].

%% Keys and certificates for this run alone; each side knows the other's authority.
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

-spec peers(group()) -> [node()].
peers(#{peers := Peers}) -> [test_node:name(Peer) || Peer <- Peers].

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

%% The processes of the operating system that the group consists of.
-spec processes(group()) -> [process()].
processes(#{hub := Hub, peers := Peers}) ->
    lists:append([processes_of(Node) || Node <- [Hub | Peers]]).

-spec processes_of_hub(group()) -> [process()].
processes_of_hub(#{hub := Hub}) ->
    processes_of(Hub).

processes_of(Node) ->
    Vm = test_node:os_pid(Node),
    [{vm, Vm} | [{sidecar, Sidecar} || Sidecar <- test_node:sidecars(Vm)]].
