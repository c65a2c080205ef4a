%% The VM's side of the port protocol's codec. Pure.
%%
%% The protocol is specified in src/port/protocol.rs and nowhere else. Both codecs are tested against
%% test/port_protocol.vectors.
-module(uds_dist_protocol).

-export([version/0]).
-export([admit/1, listen/5, unlisten/1, connect/2]).
-export([established/2, open_channel/2, hand_over/2, close/1, ask_status/0, data_head/1, ack/2]).
-export([decode/1, concerns/1]).

-export_type([conn/0, listener/0, address/0, policy/0, peer/0, reason/0, line/0, status/0, report/0]).

-type conn() :: 1..16#3FFFFFFF.
-type listener() :: 0..15.
%% An address of unix(7): a path, or NUL and an abstract name.
-type address() :: binary().
%% The policy that decides which users and groups are admitted as peers.
-type policy() :: {
    nobody | own_user_and_root | anybody,
    AndUids :: [non_neg_integer()],
    AndGids :: [non_neg_integer()]
}.
%% Credentials of the process at the other end of a socket, as reported by the kernel.
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
%% A line of the sidecar's log, with those of its facts that are known.
-type line() :: #{
    level := logger:level(),
    text := binary(),
    reason => atom(),
    peer => peer(),
    address => binary(),
    node => binary()
}.
%% Number and limit of the sidecar's file descriptors, and its resident memory in bytes. Values that the
%% system does not report are undefined.
-type status() :: #{
    descriptors := undefined | pos_integer(),
    descriptor_limit := undefined | pos_integer(),
    memory := undefined | pos_integer()
}.
-type report() ::
    {data, conn(), binary()}
    | {ack, conn(), non_neg_integer()}
    | {hello, #{
        version := non_neg_integer(), window := non_neg_integer(), release := binary()
    }}
    %% A HELLO of another version, whose other fields cannot be decoded.
    | {hello, #{version := non_neg_integer()}}
    | {listening, listener()}
    | {listen_failed, listener(), reason(), Explanation :: binary()}
    | {unlistened, listener()}
    | {accepted, conn(), peer(), undefined | address()}
    | {connected, conn(), peer()}
    | {connect_failed, conn(), reason(), Explanation :: binary()}
    | {closed, conn(), reason(), Explanation :: binary()}
    | {handed_over, conn()}
    | {relayed, conn()}
    | {channel, address()}
    | {channel_failed, Explanation :: binary()}
    | {listener_lost, listener(), Explanation :: binary()}
    | {log, line()}
    | {status, status()}.

-define(VERSION, 5).

%% Limits in bytes, for the reasons given in src/port/protocol.rs.
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
-define(ASK_STATUS, 9).
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
-define(LOG, 45).
-define(STATUS, 46).

%% The version of the protocol.
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

%% Asks for a channel in Directory, or under a name that the kernel chooses if Directory is empty.
-spec open_channel(VmPid :: non_neg_integer(), Directory :: binary()) -> binary().
open_channel(VmPid, Directory) ->
    <<?OPEN_CHANNEL, VmPid:32, Directory/binary>>.

-spec hand_over(conn(), node()) -> binary().
hand_over(Conn, Node) ->
    <<?HAND_OVER, Conn:32, (atom_to_binary(Node, utf8))/binary>>.

-spec close(conn()) -> binary().
close(Conn) ->
    <<?CLOSE, Conn:32>>.

-spec ask_status() -> binary().
ask_status() ->
    <<?ASK_STATUS>>.

%% The head of a DATA packet. The payload follows it in the same port_command/2.
-spec data_head(conn()) -> binary().
data_head(Conn) ->
    <<?DATA, Conn:32>>.

-spec ack(conn(), non_neg_integer()) -> binary().
ack(Conn, Count) ->
    <<?ACK, Conn:32, Count:32>>.

%% Decodes one packet of the sidecar.
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

%% The part of the VM that a packet of the sidecar concerns.
-spec concerns(binary()) -> {connection, conn()} | listener | channel | sidecar | status | log.
concerns(Packet) ->
    case decode(Packet) of
        {hello, _} -> sidecar;
        {error, _} -> sidecar;
        {status, _} -> status;
        {log, _} -> log;
        {channel, _} -> channel;
        {channel_failed, _} -> channel;
        {listening, _} -> listener;
        {listen_failed, _, _, _} -> listener;
        {unlistened, _} -> listener;
        {listener_lost, _, _} -> listener;
        Report -> {connection, element(2, Report)}
    end.

control(<<?ACK, Conn:32, Count:32>>) when ?IS_CONN(Conn) ->
    {ack, Conn, Count};
control(<<?HELLO, ?VERSION:16, Window:32, Release/binary>>) ->
    with_text(Release, {hello, #{version => ?VERSION, window => Window, release => Release}});
control(<<?HELLO, Version:16, _/binary>>) when Version =/= ?VERSION ->
    {hello, #{version => Version}};
control(<<?LISTENING, Listener:32>>) ->
    {listening, Listener};
control(<<?LISTEN_FAILED, Listener:32, Reason, Explanation/binary>>) ->
    failure(listen_failed, Listener, reason(Reason), Explanation);
control(<<?UNLISTENED, Listener:32>>) ->
    {unlistened, Listener};
control(<<?ACCEPTED, Conn:32, Peer:12/binary, Address/binary>>) when ?IS_CONN(Conn) ->
    {accepted, Conn, peer(Peer), bound(Address)};
control(<<?CONNECTED, Conn:32, Peer:12/binary>>) when ?IS_CONN(Conn) ->
    {connected, Conn, peer(Peer)};
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
control(<<?LOG, Level, Cause, Peer:12/binary, Subject, Size:16, Name:Size/binary, Text/binary>>) ->
    line([level(Level), cause(Cause), about(peer(Peer)), subject(Subject, Name), text(Text)]);
control(<<?STATUS, Descriptors:32, Limit:32, Memory:64>>) ->
    {status, #{
        descriptors => known(Descriptors), descriptor_limit => known(Limit), memory => known(Memory)
    }};
control(_) ->
    invalid.

peer(<<Uid:32, Gid:32, Pid:32>>) ->
    #{uid => Uid, gid => Gid, pid => Pid}.

bound(<<>>) -> undefined;
bound(Address) -> Address.

known(0) -> undefined;
known(Number) -> Number.

line(Facts) ->
    case lists:member(invalid, Facts) of
        true -> invalid;
        false -> {log, maps:from_list(lists:append(Facts))}
    end.

level(3) -> [{level, error}];
level(4) -> [{level, warning}];
level(5) -> [{level, notice}];
level(6) -> [{level, info}];
level(7) -> [{level, debug}];
level(_) -> invalid.

cause(0) -> [];
cause(1) -> [{reason, refused}];
cause(2) -> [{reason, implausible_name}];
cause(3) -> [{reason, handshakes_failed}];
cause(4) -> [{reason, cannot_accept}];
cause(5) -> [{reason, accepts_again}];
cause(6) -> [{reason, took_over}];
cause(7) -> [{reason, file_taken}];
cause(8) -> [{reason, not_handed_over}];
cause(9) -> [{reason, undelivered}];
cause(10) -> [{reason, signal}];
cause(11) -> [{reason, lines_lost}];
cause(_) -> invalid.

%% All ones means that the line is not about a peer.
about(#{uid := 16#FFFFFFFF}) -> [];
about(Peer) -> [{peer, Peer}].

subject(0, <<>>) -> [];
subject(1, Name) -> with_text(Name, [{address, Name}]);
subject(2, Name) -> with_text(Name, [{node, Name}]);
subject(_, _) -> invalid.

text(Text) ->
    with_text(Text, [{text, Text}]).

failure(_, _, unknown, _) -> invalid;
failure(Type, Id, Reason, Explanation) -> with_text(Explanation, {Type, Id, Reason, Explanation}).

with_text(Text, Result) ->
    case unicode:characters_to_binary(Text) of
        Text -> Result;
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
