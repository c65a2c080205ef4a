%% Erlang distribution over Unix domain sockets: the callbacks that net_kernel asks for.
%%
%%     erl -pa _build/default/lib/uds_dist/ebin -proto_dist uds -no_epmd -sname myapp
%%
%% The node listens at <socket_dir>/myapp.sock and connects to other nodes of the host in the same
%% directory. There is no TCP listener and no epmd. The callbacks are those of the alt_dist chapter
%% of the ERTS User's Guide ("How to Implement an Alternative Carrier for the Erlang Distribution").
%%
%% Who does what, and who ends with whom:
%%
%%     net_sup
%%      |-- uds_dist_sidecar      the owner: the sidecar's port                 childspecs/0
%%      |    '== port ==> sidecar (an OS process), restarted when it dies
%%      '-- net_kernel
%%           |-- uds_dist_acceptor     gives peers that come in to net_kernel   accept/1
%%           '-- supervisor            handshake, ticks (dist_util)             setup/5,
%%                |                                                             accept_connection/5
%%                '-- uds_dist_connection   distribution controller: all output
%%                     '-- uds_dist_input   input handler: all input
%%
%% Lines are links. The owner and the acceptor never exit while distribution is up, since net_sup
%% or net_kernel would end with them. A connection's supervisor, controller and input handler end
%% together, and with the controller the socket, which it owns.
%%
%% Until the handshake is through, and for good where the sidecar keeps the socket, the input comes
%% through the owner. It monitors the controller and has the sidecar close the socket; when that or
%% the sidecar ends, the owner ends the controller.
-module(uds_dist).

%% For users.
-export([names/0, names/1]).
%% Callbacks of net_kernel and erl_distribution.
-export([listen/1, listen/2, accept/1, accept_connection/5, setup/5, close/1, select/1]).
-export([address/0, address/1, childspecs/0, is_node_name/1, setopts/2, getopts/2]).
%% Processes.
-export([init_accepted/6, init_setup/6]).

-include_lib("kernel/include/net_address.hrl").
-include_lib("kernel/include/dist.hrl").
-include_lib("kernel/include/dist_util.hrl").

%% Nodes that reach each other without epmd all speak this version (OTP 23 and later).
-define(DISTRIBUTION_VERSION, 6).

-type listener() :: uds_dist_sidecar:handle().
-type connection() :: uds_dist_connection:connection().

%% Names of the nodes that live in this node's socket_dir, as "myapp" of myapp@host.
-spec names() -> {ok, [string()]} | {error, Reason :: file:posix() | uds_dist_config:explanation()}.
names() ->
    case uds_dist_config:read() of
        {ok, #{socket_dir := Dir}} -> uds_dist_names:list(Dir);
        {error, _} = Error -> Error
    end.

%% Those of another one.
-spec names(SocketDir :: string() | binary()) ->
    {ok, [string()]} | {error, Reason :: file:posix() | uds_dist_config:explanation()}.
names(SocketDir) ->
    case uds_dist_config:check_socket_dir(SocketDir, "the argument", os:type()) of
        {ok, Dir} -> uds_dist_names:list(Dir);
        {error, _} = Error -> Error
    end.

%% What has to run before net_kernel does. It starts whatever else is wrong: a start that fails
%% here would end the boot in a crash dump instead of a line that says why.
-spec childspecs() -> {ok, [supervisor:child_spec()]}.
childspecs() ->
    {ok, [
        #{
            id => uds_dist_sidecar,
            start => {uds_dist_sidecar, start_link, []},
            restart => permanent,
            shutdown => 2000,
            type => worker,
            modules => [uds_dist_sidecar]
        }
    ]}.

%% Owns the name and listens. Errors have been explained in the log.
-spec listen(Name :: atom()) ->
    {ok, {listener(), #net_address{}, Creation :: 4..16#FFFFFFFF}} | {error, Reason :: atom()}.
listen(Name) ->
    case uds_dist_sidecar:listen(Name) of
        {ok, Listener, Address} ->
            {ok, {Listener, net_address(Address), creation()}};
        {error, _} = Error ->
            Error
    end.

%% The host makes no difference: every node is on this one.
-spec listen(Name :: atom(), Host :: string()) ->
    {ok, {listener(), #net_address{}, Creation :: 4..16#FFFFFFFF}} | {error, Reason :: atom()}.
listen(Name, _Host) ->
    listen(Name).

%% What a node that does not listen has instead (-dist_listen false).
-spec address() -> #net_address{}.
address() ->
    net_address(undefined).

-spec address(Host :: string()) -> #net_address{}.
address(_Host) ->
    address().

-spec close(listener()) -> ok.
close(Listener) ->
    uds_dist_sidecar:close_listener(Listener).

-spec accept(listener()) -> Acceptor :: pid().
accept(Listener) ->
    uds_dist_acceptor:start_link(Listener).

%% Starts the supervisor of a connection that a peer made.
-spec accept_connection(
    Acceptor :: pid(), connection(), MyNode :: node(), Allowed :: list(), SetupTime
) -> Supervisor :: pid() when
    SetupTime :: non_neg_integer().
accept_connection(Acceptor, Connection, MyNode, Allowed, SetupTime) ->
    spawn_opt(
        ?MODULE,
        init_accepted,
        [self(), Acceptor, Connection, MyNode, Allowed, SetupTime],
        dist_util:net_ticker_spawn_options()
    ).

-spec init_accepted(
    Kernel :: pid(), Acceptor :: pid(), connection(), node(), list(), non_neg_integer()
) -> no_return().
init_accepted(Kernel, Acceptor, Connection, MyNode, Allowed, SetupTime) ->
    receive
        {Acceptor, controller} ->
            Timer = dist_util:start_timer(SetupTime),
            HsData = hs_data(Kernel, Connection, MyNode, Timer, undefined),
            dist_util:handshake_other_started(HsData#hs_data{allowed = Allowed})
    end.

%% Starts the supervisor of a connection to Node.
-spec setup(
    node(), Type :: normal | hidden, MyNode :: node(), shortnames | longnames, SetupTime
) -> Supervisor :: pid() when
    SetupTime :: non_neg_integer().
setup(Node, Type, MyNode, _LongOrShortNames, SetupTime) ->
    spawn_opt(
        ?MODULE,
        init_setup,
        [self(), Node, Type, MyNode, SetupTime, erlang:monotonic_time(millisecond)],
        dist_util:net_ticker_spawn_options()
    ).

-spec init_setup(Kernel :: pid(), node(), normal | hidden, node(), SetupTime, Started) ->
    no_return()
when
    SetupTime :: non_neg_integer(), Started :: integer().
init_setup(Kernel, Node, Type, MyNode, SetupTime, Started) ->
    Timer = dist_util:start_timer(SetupTime),
    case uds_dist_sidecar:connect(Node, Started + SetupTime) of
        {ok, Connection, Address} ->
            dist_util:reset_timer(Timer),
            HsData = hs_data(Kernel, Connection, MyNode, Timer, Address),
            dist_util:handshake_we_started(HsData#hs_data{
                other_node = Node,
                other_version = ?DISTRIBUTION_VERSION,
                request_type = Type
            });
        {error, Reason} ->
            ?shutdown2(Node, {connect_failed, Reason})
    end.

%% What dist_util needs of a connection, whoever made it.
hs_data(Kernel, Connection, MyNode, Timer, Address) ->
    #hs_data{
        kernel_pid = Kernel,
        this_node = MyNode,
        socket = Connection,
        timer = Timer,
        this_flags = 0,
        f_send = fun uds_dist_connection:send/2,
        f_recv = fun uds_dist_connection:recv/3,
        f_setopts_pre_nodeup = fun(_) -> ok end,
        f_setopts_post_nodeup = fun(_) -> ok end,
        f_getll = fun(Conn) -> {ok, uds_dist_connection:pid(Conn)} end,
        f_address = fun(_, _) -> net_address(Address) end,
        f_handshake_complete = fun uds_dist_connection:established/3,
        mf_tick = fun uds_dist_connection:tick/1,
        %% The VM's own counters (erlang:dist_get_stat/1): asking a process instead would let a
        %% busy one stop the ticks, and with them the detection of dead nodes.
        mf_getstat = undefined,
        mf_setopts = fun setopts/2,
        mf_getopts = fun getopts/2
    }.

%% Whether Node is for this carrier. Alone it takes every node. Beside other carriers
%% (-proto_dist inet_tls uds) it takes those of this host and leaves the others to them.
-spec select(node()) -> boolean().
select(Node) ->
    case {split(Node), init:get_argument(proto_dist)} of
        {error, _} -> false;
        {{_Name, Host}, {ok, [[_, _ | _] | _]}} -> is_this_host(Host, split(node()));
        {{_Name, _Host}, _} -> true
    end.

is_this_host(Host, {"nonode", "nohost"}) ->
    %% A node that will be given its name by the first one it connects to.
    {ok, This} = inet:gethostname(),
    hd(string:split(Host, ".")) =:= This;
is_this_host(Host, {_Name, This}) ->
    Host =:= This.

split(Node) ->
    case string:split(atom_to_list(Node), "@", all) of
        [[_ | _] = Name, [_ | _] = Host] -> {Name, Host};
        _ -> error
    end.

-spec is_node_name(Node :: term()) -> boolean().
is_node_name(Node) when is_atom(Node) -> split(Node) =/= error;
is_node_name(_) -> false.

%% The options of net_kernel:setopts/2 are those of an inet socket. There is none.
-spec setopts(listener() | connection(), [term()]) -> ok | {error, enotsup}.
setopts(_, []) -> ok;
setopts(_, [_ | _]) -> {error, enotsup}.

%% As inet:getopts/2: options that a socket does not have are left out.
-spec getopts(listener() | connection(), [term()]) -> {ok, []}.
getopts(_, _) -> {ok, []}.

net_address(Address) ->
    #net_address{
        address = {local, Address},
        host = localhost,
        protocol = stream,
        family = local
    }.

%% Tells this incarnation of the node from earlier ones. 0 to 3 have other meanings.
creation() ->
    3 + rand:uniform((1 bsl 32) - 4).
