%% What a node tells about its carrier, for people and for monitoring. It asks the owner of the port once,
%% which answers at once, and reads counters; no process that carries messages is asked.
-module(uds_dist_info).

-export([info/0, peers/0]).

-export_type([info/0, known/0, settings/0, sidecar/0, totals/0, peer/0]).

-type info() :: #{
    %% Of the application; undefined if its .app file is not on the path.
    version := undefined | binary(),
    %% The node's name without its host, where it listens, and where it should; undefined if it does not
    %% listen.
    name := undefined | atom(),
    listening_at := undefined | binary(),
    should_listen_at := undefined | binary(),
    %% The settings in force, undefined before the first use.
    settings := undefined | settings(),
    %% What a new connection gets.
    transport := relay | direct,
    sidecar := sidecar(),
    connections := non_neg_integer(),
    totals := totals()
}.
-type settings() :: #{
    socket_dir := binary(),
    %% Where socket_dir comes from, such as "UDS_DIST_DIR".
    socket_dir_source := binary(),
    backlog := pos_integer(),
    %% As in chmod(2).
    socket_mode := 0..8#777,
    allowed_uids := any | own_user_and_root | [non_neg_integer()],
    allowed_gids := [non_neg_integer()],
    transport := relay | direct,
    %% Busy-poll budget in microseconds.
    spin := non_neg_integer(),
    %% The least important level of the sidecar's log.
    log := uds_dist_config:log_level(),
    %% Such as "UDS_DIST_DIR", "the application environment" or "the default".
    sources := #{uds_dist_config:setting() => binary()}
}.
%% What the owner of the port knows.
-type known() :: map().
-type sidecar() :: #{
    status := down | starting | up | resting,
    program := binary(),
    os_pid := undefined | non_neg_integer(),
    %% The release of the program, when it came up in seconds of Unix time, and how many seconds ago;
    %% undefined while it is not up.
    version := undefined | binary(),
    started := undefined | integer(),
    up_for := undefined | non_neg_integer(),
    %% How often one had to be started again, failed tries included.
    restarts := non_neg_integer(),
    %% Sidecars that were up and have ended.
    ended := non_neg_integer(),
    %% Open file descriptors, their limit, and resident memory in bytes; undefined where the system does not
    %% tell, and while the sidecar does not answer.
    descriptors := undefined | non_neg_integer(),
    descriptor_limit := undefined | non_neg_integer(),
    memory := undefined | non_neg_integer()
}.
%% Numbers that only rise while the node is distributed.
-type totals() :: #{
    connections_accepted := non_neg_integer(),
    connections_made := non_neg_integer(),
    bytes_sent := non_neg_integer(),
    bytes_received := non_neg_integer()
}.
-type peer() :: #{
    %% Undefined during the handshake of a connection that came in.
    node := undefined | node(),
    %% in: the peer has connected to this node.
    direction := in | out,
    transport := relay | direct,
    state := handshake | up | ending,
    %% What the kernel says of the process at the other end; pid 0 if it does not tell.
    uid := non_neg_integer(),
    gid := non_neg_integer(),
    pid := non_neg_integer(),
    %% When the connection was opened, in seconds of Unix time.
    since := integer(),
    bytes_sent := non_neg_integer(),
    bytes_received := non_neg_integer(),
    %% Frames of the distribution, ticks included; undefined during the handshake.
    frames_sent := undefined | non_neg_integer(),
    frames_received := undefined | non_neg_integer(),
    %% Bytes that wait in the VM's queue for the connection; senders wait from +zdbbl on.
    queued := undefined | non_neg_integer(),
    %% Most bytes that may be on their way to the socket of the peer, and those that are and have not been
    %% acknowledged; undefined with the transport direct.
    window := undefined | pos_integer(),
    unacknowledged := undefined | non_neg_integer(),
    %% Of the socket at the other end, if it has one.
    address := undefined | binary()
}.

-spec info() -> info() | {error, not_distributed}.
info() ->
    ask(fun() ->
        #{sidecar := Sidecar} = Known = uds_dist_port:info(),
        Known#{
            version => version(), sidecar := maps:merge(Sidecar, uds_dist_port:sidecar_status())
        }
    end).

version() ->
    case application:get_key(uds_dist, vsn) of
        {ok, Version} -> list_to_binary(Version);
        undefined -> undefined
    end.

-spec peers() -> [peer()] | {error, not_distributed}.
peers() ->
    case ask(fun uds_dist_port:connections/0) of
        {error, _} = Error -> Error;
        Entries -> [peer(Entry) || Entry <- Entries]
    end.

ask(Question) ->
    try
        Question()
    catch
        exit:{noproc, _} -> {error, not_distributed}
    end.

peer(#{peer := Peer, address := Address, counters := Counters, dhandle := DHandle} = Entry) ->
    #{uid := Uid, gid := Gid, pid := Pid} = Peer,
    #{bytes_sent := Sent, bytes_received := Received} = uds_dist_counters:read(Counters),
    maps:merge(
        maps:with([node, direction, transport, state, since], Entry),
        lists:foldl(fun maps:merge/2, frames(DHandle), [
            window(Entry),
            #{uid => Uid, gid => Gid, pid => Pid, address => address(Address)},
            #{bytes_sent => Sent, bytes_received => Received}
        ])
    ).

address(undefined) -> undefined;
address(Address) -> iolist_to_binary(uds_dist_config:format_address(Address)).

window(#{transport := direct}) ->
    #{window => undefined, unacknowledged => undefined};
window(#{window := Window, counters := Counters}) ->
    #{window => Window, unacknowledged => uds_dist_counters:unacknowledged(Counters)}.

frames(undefined) ->
    #{frames_sent => undefined, frames_received => undefined, queued => undefined};
frames(DHandle) ->
    try erlang:dist_get_stat(DHandle) of
        {ok, Received, Sent, Queued} ->
            #{frames_sent => Sent, frames_received => Received, queued => Queued}
    catch
        %% The connection has just ended.
        error:badarg -> frames(undefined)
    end.
