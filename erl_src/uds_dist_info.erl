%% What a node tells about its carrier, for people and for monitoring. It asks the owner of the port once,
%% which answers at once, and reads counters; no process that carries messages is asked.
-module(uds_dist_info).

-export([info/0, peers/0]).

-export_type([info/0, settings/0, sidecar/0, totals/0, peer/0]).

-type info() :: #{
    %% The node's name without its host, where it listens, and where it should; undefined if it does not
    %% listen.
    name := undefined | atom(),
    listening_at := undefined | binary(),
    should_listen_at := undefined | binary(),
    %% The settings in force, undefined before the first use.
    settings := undefined | settings(),
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
    spin := non_neg_integer()
}.
-type sidecar() :: #{
    status := down | starting | up | resting,
    program := binary(),
    os_pid := undefined | non_neg_integer(),
    %% Seconds since it said hello; undefined while it is not up.
    up_for := undefined | non_neg_integer(),
    %% Sidecars before this one that were up and have ended.
    ended := non_neg_integer()
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
    queued := undefined | non_neg_integer()
}.

-spec info() -> info() | {error, not_distributed}.
info() ->
    ask(fun uds_dist_port:info/0).

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

peer(#{peer := Peer, counters := Counters, dhandle := DHandle} = Entry) ->
    #{uid := Uid, gid := Gid, pid := Pid} = Peer,
    #{bytes_sent := Sent, bytes_received := Received} = uds_dist_counters:read(Counters),
    maps:merge(
        maps:with([node, direction, transport, state, since], Entry),
        maps:merge(frames(DHandle), #{
            uid => Uid, gid => Gid, pid => Pid, bytes_sent => Sent, bytes_received => Received
        })
    ).

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
