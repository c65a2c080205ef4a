%% The VM's side of the port protocol's codec. Pure.
%%
%% The protocol is described in one place, at the top of src/port/protocol.rs; test/port_protocol.vectors
%% holds both sides to it.
-module(uds_dist_protocol).

-export([version/0]).
-export([admit/1, listen/5, unlisten/1, connect/2]).
-export([established/2, open_channel/2, hand_over/2, close/1, data_head/1, ack/2]).
-export([decode/1]).

-export_type([conn/0, listener/0, address/0, policy/0, peer/0, reason/0, report/0]).

-type conn() :: 1..16#3FFFFFFF.
-type listener() :: 0..15.
%% As in unix(7): a path, or NUL and an abstract name.
-type address() :: binary().
%% Users and groups that may be peers.
-type policy() :: {
    nobody | own_user_and_root | anybody,
    AndUids :: [non_neg_integer()],
    AndGids :: [non_neg_integer()]
}.
%% What the kernel says about the process at the other end of a socket.
-type peer() :: #{uid := non_neg_integer(), gid := non_neg_integer(), pid := non_neg_integer()}.
-type reason() ::
    duplicate_name
    | name_busy
    | backlog_full
    | not_listening
    | permission_denied
    | bad_address
    | peer_closed
    | system_error
    | refused.
-type report() ::
    {data, conn(), binary()}
    | {ack, conn(), non_neg_integer()}
    | {hello, #{version := non_neg_integer(), window := non_neg_integer()}}
    %% A HELLO of another version: its other fields cannot be understood.
    | {hello, #{version := non_neg_integer()}}
    | {listening, listener()}
    | {listen_failed, listener(), reason(), Explanation :: binary()}
    | {unlistened, listener()}
    | {accepted, conn(), listener(), peer()}
    | {connected, conn(), peer()}
    | {connect_failed, conn(), reason(), Explanation :: binary()}
    | {closed, conn(), reason(), Explanation :: binary()}
    | {handed_over, conn()}
    | {relayed, conn()}
    | {channel, address()}
    | {channel_failed, Explanation :: binary()}
    | {listener_lost, listener(), Explanation :: binary()}.

-define(VERSION, 3).

%% Longest packets, for the reasons that src/port/protocol.rs gives.
-define(MAX_DATA, (1 bsl 20)).
-define(MAX_CONTROL_BODY, 2048).
-define(IS_CONN(Conn), (Conn >= 1 andalso Conn =< 16#3FFFFFFF)).

-define(LISTEN, 1).
-define(UNLISTEN, 2).
-define(CONNECT, 3).
-define(ESTABLISHED, 4).
-define(CLOSE, 5).
-define(ADMIT, 6).
-define(HAND_OVER, 7).
-define(OPEN_CHANNEL, 8).
-define(DATA, 16).
-define(ACK, 17).
-define(HELLO, 32).
-define(LISTENING, 33).
-define(LISTEN_FAILED, 34).
-define(UNLISTENED, 35).
-define(ACCEPTED, 36).
-define(CONNECTED, 37).
-define(CONNECT_FAILED, 38).
-define(CLOSED, 39).
-define(HANDED_OVER, 40).
-define(RELAYED, 41).
-define(CHANNEL, 42).
-define(CHANNEL_FAILED, 43).
-define(LISTENER_LOST, 44).

%% The version of the protocol that this module speaks.
-spec version() -> pos_integer().
version() ->
    ?VERSION.

-spec admit(policy()) -> binary().
admit({Base, Uids, Gids}) ->
    Number =
        case Base of
            nobody -> 0;
            own_user_and_root -> 1;
            anybody -> 2
        end,
    Ids = <<<<Id:32>> || Id <- Uids ++ Gids>>,
    <<?ADMIT, Number, (length(Uids)):16, Ids/binary>>.

-spec listen(listener(), Backlog, Mode, VmPid, address()) -> binary() when
    Backlog :: pos_integer(),
    Mode :: 0..8#777,
    VmPid :: non_neg_integer().
listen(Listener, Backlog, Mode, VmPid, Address) ->
    <<?LISTEN, Listener:32, Backlog:32, Mode:16, VmPid:32, Address/binary>>.

-spec unlisten(listener()) -> binary().
unlisten(Listener) ->
    <<?UNLISTEN, Listener:32>>.

-spec connect(conn(), address()) -> binary().
connect(Conn, Address) ->
    <<?CONNECT, Conn:32, Address/binary>>.

-spec established(conn(), node()) -> binary().
established(Conn, Node) ->
    <<?ESTABLISHED, Conn:32, (atom_to_binary(Node, utf8))/binary>>.

%% Asks for a channel in Directory, or under a name that the kernel chooses if that is empty.
-spec open_channel(VmPid :: non_neg_integer(), Directory :: binary()) -> binary().
open_channel(VmPid, Directory) ->
    <<?OPEN_CHANNEL, VmPid:32, Directory/binary>>.

-spec hand_over(conn(), node()) -> binary().
hand_over(Conn, Node) ->
    <<?HAND_OVER, Conn:32, (atom_to_binary(Node, utf8))/binary>>.

-spec close(conn()) -> binary().
close(Conn) ->
    <<?CLOSE, Conn:32>>.

%% What stands before the bytes of a DATA packet; they follow in the same port_command/2.
-spec data_head(conn()) -> binary().
data_head(Conn) ->
    <<?DATA, Conn:32>>.

-spec ack(conn(), non_neg_integer()) -> binary().
ack(Conn, Count) ->
    <<?ACK, Conn:32, Count:32>>.

%% Reads one packet of the sidecar.
-spec decode(binary()) -> report() | {error, {bad_packet, binary()}}.
decode(<<?DATA, Conn:32, Bytes/binary>>) when ?IS_CONN(Conn), byte_size(Bytes) =< ?MAX_DATA ->
    {data, Conn, Bytes};
decode(Packet) when byte_size(Packet) =< ?MAX_CONTROL_BODY ->
    case control(Packet) of
        invalid -> {error, {bad_packet, Packet}};
        Report -> Report
    end;
decode(Packet) ->
    {error, {bad_packet, Packet}}.

control(<<?ACK, Conn:32, Count:32>>) when ?IS_CONN(Conn) ->
    {ack, Conn, Count};
control(<<?HELLO, ?VERSION:16, Window:32>>) ->
    {hello, #{version => ?VERSION, window => Window}};
control(<<?HELLO, Version:16, _/binary>>) when Version =/= ?VERSION ->
    {hello, #{version => Version}};
control(<<?LISTENING, Listener:32>>) ->
    {listening, Listener};
control(<<?LISTEN_FAILED, Listener:32, Reason, Explanation/binary>>) ->
    failure(listen_failed, Listener, reason(Reason), Explanation);
control(<<?UNLISTENED, Listener:32>>) ->
    {unlistened, Listener};
control(<<?ACCEPTED, Conn:32, Listener:32, Uid:32, Gid:32, Pid:32>>) when ?IS_CONN(Conn) ->
    {accepted, Conn, Listener, #{uid => Uid, gid => Gid, pid => Pid}};
control(<<?CONNECTED, Conn:32, Uid:32, Gid:32, Pid:32>>) when ?IS_CONN(Conn) ->
    {connected, Conn, #{uid => Uid, gid => Gid, pid => Pid}};
control(<<?CONNECT_FAILED, Conn:32, Reason, Explanation/binary>>) when ?IS_CONN(Conn) ->
    failure(connect_failed, Conn, reason(Reason), Explanation);
control(<<?CLOSED, Conn:32, Reason, Explanation/binary>>) when ?IS_CONN(Conn) ->
    failure(closed, Conn, reason(Reason), Explanation);
control(<<?HANDED_OVER, Conn:32>>) when ?IS_CONN(Conn) ->
    {handed_over, Conn};
control(<<?RELAYED, Conn:32>>) when ?IS_CONN(Conn) ->
    {relayed, Conn};
control(<<?CHANNEL, Address/binary>>) when Address =/= <<>> ->
    {channel, Address};
control(<<?CHANNEL_FAILED, Explanation/binary>>) ->
    with_text(Explanation, {channel_failed, Explanation});
control(<<?LISTENER_LOST, Listener:32, Explanation/binary>>) ->
    with_text(Explanation, {listener_lost, Listener, Explanation});
control(_) ->
    invalid.

failure(_, _, unknown, _) -> invalid;
failure(Type, Id, Reason, Explanation) -> with_text(Explanation, {Type, Id, Reason, Explanation}).

with_text(Text, Report) ->
    case unicode:characters_to_binary(Text) of
        Text -> Report;
        _ -> invalid
    end.

-spec reason(byte()) -> reason() | unknown.
reason(1) -> duplicate_name;
reason(2) -> name_busy;
reason(3) -> backlog_full;
reason(4) -> not_listening;
reason(5) -> permission_denied;
reason(6) -> bad_address;
reason(7) -> peer_closed;
reason(8) -> system_error;
reason(9) -> refused;
reason(_) -> unknown.
