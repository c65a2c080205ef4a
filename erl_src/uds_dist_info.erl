%% Information about a node's carrier, for people and for monitoring. It comes from one call to the owner of
%% the port, which answers at once, and from counters. The processes of the connections are not called.
-module(uds_dist_info).

-export([info/0, peers/0]).

-export_type([info/0, sidecar/0, totals/0, peer/0]).

-type info() :: #{
    %% Version of the application; undefined if its .app file is not on the path.
    version := undefined | binary(),
    %% The node's name without its host, the address where it listens, and the address where it should listen;
    %% undefined if it does not listen.
    name := undefined | atom(),
    listening_at := undefined | binary(),
    should_listen_at := undefined | binary(),
    %% The settings in force, undefined before the first use.
    settings := undefined | uds_dist_config:settings(),
    %% Transport of new connections.
    transport := relay | direct,
    sidecar := sidecar(),
    connections := non_neg_integer(),
    totals := totals()
}.
-type sidecar() :: #{
    status := down | starting | up | resting,
    program := binary(),
    os_pid := undefined | non_neg_integer(),
    %% Version of the program, the time when it came up in seconds of Unix time, and how many seconds ago that
    %% was; undefined while it is not up.
    version := undefined | binary(),
    started := undefined | integer(),
    up_for := undefined | non_neg_integer(),
    %% Number of starts after the first one, failed ones included.
    restarts := non_neg_integer(),
    %% Number of sidecars that were up and have ended.
    ended := non_neg_integer(),
    %% Open file descriptors, their limit, and resident memory in bytes; undefined if the system does not
    %% report them or the sidecar does not answer.
    descriptors := undefined | non_neg_integer(),
    descriptor_limit := undefined | non_neg_integer(),
    memory := undefined | non_neg_integer()
}.
%% Counters, which never decrease while the node is distributed.
-type totals() :: #{
    connections_accepted := non_neg_integer(),
    connections_made := non_neg_integer(),
    bytes_sent := non_neg_integer(),
    bytes_received := non_neg_integer()
}.
-type peer() :: #{
    %% Undefined during the handshake of an incoming connection.
    node := undefined | node(),
    %% in: the peer has connected to this node.
    direction := in | out,
    transport := relay | direct,
    state := handshake | up | ending,
    %% Credentials of the process at the other end, from the kernel; pid is 0 if it is not known.
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
    %% Bytes in the VM's queue for the connection; senders are suspended from +zdbbl on.
    queued := undefined | non_neg_integer(),
    %% Most bytes that may be on their way to the peer's socket, and the number that are, unacknowledged;
    %% undefined with the transport direct.
    window := undefined | pos_integer(),
    unacknowledged := undefined | non_neg_integer(),
    %% Address of the peer's socket; undefined if it is not bound.
    address := undefined | binary()
}.

-spec info() -> info() | {error, not_distributed}.
info() ->
    ask(fun() ->
        #{sidecar := Sidecar} = Known = uds_dist_owner:info(),
        Known#{
            version => version(), sidecar := maps:merge(Sidecar, uds_dist_owner:sidecar_status())
        }
    end).

version() ->
    case application:get_key(uds_dist, vsn) of
        {ok, Version} -> list_to_binary(Version);
        undefined -> undefined
    end.

-spec peers() -> [peer()] | {error, not_distributed}.
peers() ->
    case ask(fun uds_dist_owner:connections/0) of
        {error, _} = Error -> Error;
        Entries -> lists:sort(fun by_node/2, [peer(Entry) || Entry <- Entries])
    end.

by_node(#{node := A}, #{node := B}) -> A =< B.

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
        lists:foldl(fun maps:merge/2, frames(DHandle, uds_dist_counters:held(Counters)), [
            window(Entry),
            #{uid => Uid, gid => Gid, pid => Pid, address => address(Address)},
            #{bytes_sent => Sent, bytes_received => Received}
        ])
    ).

address(undefined) -> undefined;
address(Address) -> uds_dist_address:format(Address).

window(#{transport := direct}) ->
    #{window => undefined, unacknowledged => undefined};
window(#{window := Window, counters := Counters}) ->
    #{window => Window, unacknowledged => uds_dist_counters:unacknowledged(Counters)}.

frames(undefined, _Held) ->
    #{frames_sent => undefined, frames_received => undefined, queued => undefined};
frames(DHandle, Held) ->
    try erlang:dist_get_stat(DHandle) of
        {ok, Received, Sent, Queued} ->
            #{frames_sent => Sent, frames_received => Received, queued => Queued + Held}
    catch
        %% The connection has just ended.
        error:badarg -> frames(undefined, Held)
    end.
