%% The owner of the sidecar's port, as other processes see it: what they ask it for and report to it.
%%
%% The owner starts the processes of connections, and these report to it. If the functions for that were in
%% its own module, uds_dist_port, all these modules would depend on each other.
-module(uds_dist_owner).

%% For uds_dist.
-export([listen/1, close_listener/1, connect/2, not_a_name/1]).
%% For uds_dist_app.
-export([configure/0]).
%% For uds_dist_info.
-export([info/0, sidecar_status/0, connections/0]).
%% For uds_dist_acceptor.
-export([accept/1]).
%% For uds_dist_controller and uds_dist_input.
-export([established/4, another_node/3, not_a_node/3]).

-export_type([call/0, cast/0, known/0, entry/0]).

%% The messages, which uds_dist_port handles.
-type call() ::
    {listen, Name :: atom()}
    | {close_listener, Name :: atom()}
    | configure
    | {connect, node(), GiveUp :: integer()}
    | info
    | sidecar_status
    | connections.
-type cast() ::
    {not_a_name, atom()}
    | {accept, Acceptor :: pid()}
    | {established, {uds_dist_protocol:conn(), Controller :: pid()}, node(), erlang:dist_handle()}
    | {another_node, Called :: node(), Name :: binary()}
    | {not_a_node, Called :: node(), Length :: pos_integer()}.

%% The part of uds_dist_info:info() that the owner knows.
-type known() :: map().
%% What the owner knows of a connection.
-type entry() :: #{
    node := undefined | node(),
    direction := in | out,
    transport := relay | direct,
    state := handshake | up | ending,
    since := integer(),
    peer := uds_dist_protocol:peer(),
    address := undefined | uds_dist_protocol:address(),
    counters := uds_dist_counters:counters(),
    window := pos_integer(),
    dhandle := undefined | erlang:dist_handle()
}.

%% The registered name of the owner.
-define(OWNER, uds_dist_port).

%% Milliseconds. net_kernel waits for listen/1 and close_listener/1 and must not wait for ever. At the end of
%% distribution, kernel kills net_sup if it takes more than a second, and all its processes report a crash.
-define(LISTEN_TIMEOUT, 10000).
-define(CLOSE_TIMEOUT, 500).

%% Takes the node's name and listens under it. If the configuration is not complete yet, this is put off until
%% configure/0, and there is no address yet.
-spec listen(Name :: atom()) ->
    {ok, undefined | uds_dist_protocol:address()} | {error, Reason :: atom()}.
listen(Name) ->
    try
        gen_server:call(?OWNER, {listen, Name}, ?LISTEN_TIMEOUT)
    catch
        exit:{timeout, _} ->
            ok = uds_dist_log:no_answer(["listen as ", atom_to_list(Name)]),
            {error, timeout}
    end.

%% Gives up the name. When it returns, the socket file is gone, unless the sidecar is stuck.
-spec close_listener(Name :: atom()) -> ok.
close_listener(Name) ->
    try
        gen_server:call(?OWNER, {close_listener, Name}, ?CLOSE_TIMEOUT)
    catch
        exit:{Reason, _} -> uds_dist_log:unconfirmed_close(Reason)
    end.

%% Connects to a node. The caller becomes the connection's supervisor. While the node's backlog is full, it
%% retries until GiveUp, in monotonic milliseconds.
-spec connect(node(), GiveUp :: integer()) ->
    {ok, uds_dist_connection:connection()} | {error, Reason :: atom()}.
connect(Node, GiveUp) ->
    gen_server:call(?OWNER, {connect, Node, GiveUp}, infinity).

%% Reports that somebody wants to connect to an atom that is not the name of a node.
-spec not_a_name(atom()) -> ok.
not_a_name(Node) ->
    gen_server:cast(?OWNER, {not_a_name, Node}).

%% Reads the settings again, after the application environment is complete. If they give the listener another
%% address, it moves there; connections are unaffected. An error is logged, and changes nothing.
-spec configure() -> ok | {error, Reason :: atom()}.
configure() ->
    try
        gen_server:call(?OWNER, configure, ?LISTEN_TIMEOUT)
    catch
        %% This VM is not distributed.
        exit:{noproc, _} ->
            ok;
        exit:{timeout, _} ->
            ok = uds_dist_log:no_answer("change the configuration"),
            {error, timeout}
    end.

%% All information but the list of connections and what only the sidecar knows.
-spec info() -> known().
info() ->
    gen_server:call(?OWNER, info).

%% The sidecar's use of resources. If the sidecar takes longer than half a second, the values are undefined.
-spec sidecar_status() -> uds_dist_protocol:status().
sidecar_status() ->
    gen_server:call(?OWNER, sidecar_status).

-spec connections() -> [entry()].
connections() ->
    gen_server:call(?OWNER, connections).

%% Reports that the acceptor is ready for the next incoming connection.
-spec accept(Acceptor :: pid()) -> ok.
accept(Acceptor) ->
    gen_server:cast(?OWNER, {accept, Acceptor}).

%% Reports that the handshake of a connection is complete. The owner then chooses the transport and tells
%% the connection's processes.
-spec established(
    Owner :: pid(), {uds_dist_protocol:conn(), Controller :: pid()}, node(), erlang:dist_handle()
) -> ok.
established(Owner, Connection, Node, DHandle) ->
    gen_server:cast(Owner, {established, Connection, Node, DHandle}).

%% Reports that the node at the address of Called has another name, which is in UTF-8.
-spec another_node(Owner :: pid(), Called :: node(), Name :: binary()) -> ok.
another_node(Owner, Called, Name) ->
    gen_server:cast(Owner, {another_node, Called, Name}).

%% Reports that the process at the address of Called announced a handshake packet of this length in bytes,
%% which no node sends.
-spec not_a_node(Owner :: pid(), Called :: node(), Length :: pos_integer()) -> ok.
not_a_node(Owner, Called, Length) ->
    gen_server:cast(Owner, {not_a_node, Called, Length}).
