%% Erlang distribution over Unix domain sockets: the callbacks that net_kernel asks for.
%%
%%     erl -pa _build/default/lib/uds_dist/ebin -proto_dist uds -no_epmd -sname myapp
%%
%% The node listens at <socket_dir>/myapp.sock and connects to other nodes of the host in the same
%% directory. There is no TCP listener and no epmd. The callbacks are those of the alt_dist chapter
%% of the ERTS User's Guide ("How to Implement an Alternative Carrier for the Erlang Distribution").
%%
%% The processes, and how they end:
%%
%%     net_sup
%%      |-- uds_dist_port         the owner of the sidecar's port               childspecs/0
%%      |    |== port ==> sidecar (an OS process), restarted when it dies
%%      |    '-- uds_dist_log_writer     runs the handlers of logger
%%      '-- net_kernel
%%           |-- uds_dist_acceptor     gives incoming peers to net_kernel       accept/1
%%           '-- supervisor            handshake, ticks (dist_util)             setup/5,
%%                |                                                             accept_connection/5
%%                '-- uds_dist_controller   distribution controller: all output
%%                     '-- uds_dist_input   input handler: all input
%%
%% Lines are links. The owner never exits while distribution is up, since net_sup would end with it.
%% net_kernel starts another acceptor if one exits. A connection's supervisor, controller and input
%% handler end together. The owner monitors the controller, and makes the sidecar close the socket
%% when the controller ends.
%%
%% Other processes call the owner through uds_dist_owner. The owner only routes. What to do is
%% decided by modules that keep a part of its state each: uds_dist_sidecar, uds_dist_connections,
%% uds_dist_listener, uds_dist_dialer, uds_dist_channel and uds_dist_settings; and by
%% uds_dist_requests, which decides what callers are told.
%%
%% The path of a message to another node: the VM's queue for the connection -> uds_dist_controller ->
%% uds_dist_relay -> uds_dist_pipe -> port -> sidecar -> socket; and from another node: socket -> sidecar ->
%% port -> uds_dist_port -> uds_dist_input -> the VM. With the transport `direct`, uds_dist_direct connects
%% the two processes with the socket, and neither the port nor the sidecar takes part.
-module(uds_dist).
-if(?OTP_RELEASE >= 27).
-moduledoc "Erlang distribution over Unix domain sockets: functions that inspect it.

The other functions are callbacks for net_kernel.".
-endif.

%% The API for users.
-export([names/0, names/1, info/0, peers/0]).
%% Callbacks of net_kernel and erl_distribution.
-export([listen/1, listen/2, accept/1, accept_connection/5, setup/5, close/1, select/1]).
-export([address/0, address/1, childspecs/0, is_node_name/1, setopts/2, getopts/2]).
%% Entry points of processes, and funs of #hs_data{}.
-export([init_accepted/6, init_setup/6]).
-export([keep_options/1, peer_address/2]).

-include_lib("kernel/include/net_address.hrl").
-include_lib("kernel/include/dist.hrl").
-include_lib("kernel/include/dist_util.hrl").

%% All nodes that connect without epmd speak this version (OTP 23 and later).
-define(DISTRIBUTION_VERSION, 6).

%% The term with which net_kernel identifies the listener: the name of the node.
-type listener() :: atom().
-type connection() :: uds_dist_connection:connection().

-if(?OTP_RELEASE >= 27).
-doc "Names of the nodes that are up in this node's `socket_dir`, sorted: `my_app` for `my_app@host`.

It contacts none of the nodes, so none of them logs anything. Nodes that were killed, files that are not
sockets, and sockets that do not let this node's user in are left out.

The list is never incomplete. If the directory cannot be read or its sockets cannot be asked, there is an
error: the reason, such as `emfile` if no file descriptor is left and `system_limit` if no port is, or an
explanation of what is wrong with the settings.".
-endif.
-spec names() ->
    {ok, [string()]} | {error, Reason :: file:posix() | system_limit | Explanation :: string()}.
names() ->
    list(socket_dir()).

%% The one in force, or what it would be if this node began to listen now.
socket_dir() ->
    try uds_dist_owner:info() of
        #{should_listen_at := <<_/binary>>, settings := #{socket_dir := Dir}} -> {ok, Dir};
        #{} -> configured_socket_dir()
    catch
        exit:{noproc, _} -> configured_socket_dir()
    end.

configured_socket_dir() ->
    case uds_dist_config:read() of
        {ok, #{socket_dir := Dir}} -> {ok, Dir};
        {error, _} = Error -> Error
    end.

list({ok, Dir}) -> uds_dist_names:list(Dir);
list({error, Explanation}) -> {error, unicode:characters_to_list(Explanation)}.

-if(?OTP_RELEASE >= 27).
-doc "Names of the nodes that are up in another directory, or in the abstract namespace `@name`.".
-endif.
-spec names(SocketDir :: string() | binary()) ->
    {ok, [string()]} | {error, Reason :: file:posix() | system_limit | Explanation :: string()}.
names(SocketDir) ->
    list(uds_dist_socket_dir:check(SocketDir, "the argument", os:type())).

-if(?OTP_RELEASE >= 27).
-doc "The state of this node's carrier: where it listens, its settings, its sidecar, and total counts.

It returns at once, even while connections are saturated, and after half a second if the sidecar does
not answer.

- `version`: version of the application.
- `name`: the node's name without its host.
- `listening_at`, `should_listen_at`: the address where it listens, and the one where it should;
  `undefined` if it does not listen.
- `transport`: the transport of new connections.
- `settings`: the settings in force; `sources` has the source of each of them.
- `sidecar`: its `status` (`up`, `starting`, `resting` before the next try, or `down` if none is
  needed yet), `os_pid`, `program` and `version`; `started` in seconds of Unix time and `up_for` in
  seconds; `restarts`, the number of starts after the first one, failed ones included; `ended`, the
  number of sidecars that were up and have ended; open `descriptors`, `descriptor_limit`, and resident
  `memory` in bytes, each `undefined` if it is not known.
- `connections`: number of connections, in any state.
- `totals`: `connections_accepted`, `connections_made`, `bytes_sent`, `bytes_received`. These never
  decrease while the node is distributed.

In a VM that is not distributed over Unix domain sockets, it returns `{error, not_distributed}`.".
-endif.
-spec info() -> uds_dist_info:info() | {error, not_distributed}.
info() ->
    uds_dist_info:info().

-if(?OTP_RELEASE >= 27).
-doc "The connections of this node, in any state, one map for each, sorted by the name of the node.

- `node`: name of the peer node; `undefined` during the handshake of an incoming connection.
- `direction`: `in` if the peer has connected to this node, otherwise `out`.
- `transport`: `relay` or `direct`. `state`: `handshake`, `up` or `ending`.
- `uid`, `gid`, `pid`: credentials of the process at the other end, which is the peer's sidecar or
  a command, as reported by the kernel. `pid` is 0 for a process in another PID namespace.
- `since`: time when the connection was opened, in seconds of Unix time.
- `bytes_sent`, `bytes_received`: bytes of the connection so far.
- `frames_sent`, `frames_received`: frames of the distribution, ticks included; `undefined` during
  the handshake.
- `queued`: bytes that wait to be sent. Senders are suspended from `+zdbbl` in the VM's queue on.
- `window`, `unacknowledged`: with `relay`, the most bytes that may be on their way to the peer's
  socket, and the number that have been sent but not acknowledged; with `direct`, `undefined`.
- `address`: address of the peer's socket; `undefined` if it is not bound, which is the case for most
  incoming connections.

Like `info/0`, it does not call the processes of the connections.".
-endif.
-spec peers() -> [uds_dist_info:peer()] | {error, not_distributed}.
peers() ->
    uds_dist_info:peers().

%% The processes that must run before net_kernel. They start even if the configuration is wrong, because
%% a failure here would end the boot with a crash dump instead of a line that explains it.
-spec childspecs() -> {ok, [supervisor:child_spec()]}.
childspecs() ->
    {ok, [
        #{
            id => uds_dist_port,
            start => {uds_dist_port, start_link, []},
            restart => permanent,
            shutdown => 2000,
            type => worker,
            modules => [uds_dist_port]
        }
    ]}.

%% Takes the name and listens. Errors have been logged with an explanation when it returns.
-spec listen(Name :: atom()) ->
    {ok, {listener(), #net_address{}, Creation :: 4..16#FFFFFFFF}} | {error, Reason :: atom()}.
listen(Name) ->
    case uds_dist_owner:listen(Name) of
        {ok, Address} ->
            {ok, {Name, net_address(Address), creation()}};
        {error, _} = Error ->
            Error
    end.

%% The host is ignored: every node is on this host.
-spec listen(Name :: atom(), Host :: string()) ->
    {ok, {listener(), #net_address{}, Creation :: 4..16#FFFFFFFF}} | {error, Reason :: atom()}.
listen(Name, _Host) ->
    listen(Name).

%% The address of a node that does not listen (-dist_listen false).
-spec address() -> #net_address{}.
address() ->
    net_address(undefined).

-spec address(Host :: string()) -> #net_address{}.
address(_Host) ->
    address().

-spec close(listener()) -> ok.
close(Listener) ->
    uds_dist_owner:close_listener(Listener).

-spec accept(listener()) -> Acceptor :: pid().
accept(_Listener) ->
    uds_dist_acceptor:start_link().

%% Starts the supervisor of an incoming connection.
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
            HsData = hs_data(Kernel, Connection, MyNode, Timer),
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
    case uds_dist_owner:connect(Node, Started + SetupTime) of
        {ok, Connection} ->
            dist_util:reset_timer(Timer),
            HsData = hs_data(Kernel, Connection, MyNode, Timer),
            dist_util:handshake_we_started(HsData#hs_data{
                other_node = Node,
                other_version = ?DISTRIBUTION_VERSION,
                request_type = Type
            });
        {error, Reason} ->
            ?shutdown2(Node, {connect_failed, Reason})
    end.

%% The data that dist_util needs for a connection in either direction. Every fun names its module: loading
%% a module twice kills processes that hold a local fun of its old version.
hs_data(Kernel, Connection, MyNode, Timer) ->
    #hs_data{
        kernel_pid = Kernel,
        this_node = MyNode,
        socket = Connection,
        timer = Timer,
        this_flags = 0,
        f_send = fun uds_dist_controller:send/2,
        f_recv = fun uds_dist_controller:recv/3,
        f_setopts_pre_nodeup = fun ?MODULE:keep_options/1,
        f_setopts_post_nodeup = fun ?MODULE:keep_options/1,
        f_getll = fun uds_dist_connection:low_level/1,
        f_address = fun ?MODULE:peer_address/2,
        f_handshake_complete = fun uds_dist_controller:established/3,
        mf_tick = fun uds_dist_controller:tick/1,
        %% Undefined means the VM's own counters (erlang:dist_get_stat/1). If a process were called instead,
        %% it could delay the ticks while it is busy, and with them the detection of dead nodes.
        mf_getstat = undefined,
        mf_setopts = fun ?MODULE:setopts/2,
        mf_getopts = fun ?MODULE:getopts/2
    }.

%% A connection has no options to set before or after nodeup.
-spec keep_options(connection()) -> ok.
keep_options(_Connection) ->
    ok.

%% The address of the peer, which net_kernel:node_info/1 shows.
-spec peer_address(connection(), node()) -> #net_address{}.
peer_address(Connection, _Node) ->
    net_address(uds_dist_connection:address(Connection)).

%% Whether this carrier handles Node. If it is the only carrier, it handles every node. Beside other carriers
%% (-proto_dist inet_tls uds), it handles the nodes of this host only.
-spec select(node()) -> boolean().
select(Node) ->
    case {split(Node), init:get_argument(proto_dist)} of
        {error, {ok, [[_, _ | _] | _]}} ->
            false;
        {error, _} ->
            %% No carrier handles such a name, and net_kernel does not say so.
            ok = uds_dist_owner:not_a_name(Node),
            false;
        {{_Name, Host}, {ok, [[_, _ | _] | _]}} ->
            is_this_host(Host, split(node()));
        {{_Name, _Host}, _} ->
            true
    end.

is_this_host(Host, {"nonode", "nohost"}) ->
    %% This node will get its name from the first node that it connects to.
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

%% net_kernel:setopts/2 sets options of inet sockets, and this carrier has none.
-spec setopts(listener() | connection(), [term()]) -> ok | {error, enotsup}.
setopts(_, []) -> ok;
setopts(_, [_ | _]) -> {error, enotsup}.

%% Returns no options: like inet:getopts/2, it leaves out options that a socket does not have.
-spec getopts(listener() | connection(), [term()]) -> {ok, []}.
getopts(_, _) -> {ok, []}.

net_address(Address) ->
    #net_address{
        address = {local, Address},
        host = localhost,
        protocol = stream,
        family = local
    }.

%% Distinguishes this incarnation of the node from earlier ones. 0 to 3 have other meanings.
creation() ->
    3 + rand:uniform((1 bsl 32) - 4).
