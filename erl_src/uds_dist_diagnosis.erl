%% Why a handshake failed, as far as the bytes that the peer has sent tell, and how to explain that. Pure.
-module(uds_dist_diagnosis).

-export([new/0, received/2, verdict/1]).
-export([refusal/0, timeout/0, another_node/1, not_a_node/1]).

-export_type([greeting/0]).

%% Bytes of the handshake that the peer has sent.
-opaque greeting() :: non_neg_integer().

-type explanation() :: uds_dist_text:explanation().

%% Bytes of the shortest status and challenge, which are more than a status alone. See "Distribution
%% Handshake" in the ERTS User's Guide.
-define(CHALLENGE, 28).

-spec new() -> greeting().
new() ->
    0.

%% Adds bytes of the peer. Those that cannot begin a handshake count as one byte, so that they are not taken for
%% a challenge.
-spec received(binary(), greeting()) -> greeting().
received(Bytes, 0) ->
    case uds_dist_frames:handshake_frame(Bytes) of
        {error, _} -> 1;
        _ -> byte_size(Bytes)
    end;
received(Bytes, Greeting) ->
    Greeting + byte_size(Bytes).

%% What a peer did which we dialled and which closed the connection: it said nothing, or it refused our answer
%% to its challenge, or neither is clear.
-spec verdict(greeting()) -> silent | refused | unclear.
verdict(0) -> silent;
verdict(Greeting) when Greeting >= ?CHALLENGE -> refused;
verdict(_) -> unclear.

%% The explanation of `refused`.
-spec refusal() -> explanation().
refusal() ->
    "it closed the connection during the handshake; most often the cookies differ, and its log says so".

%% The handshake took too long.
-spec timeout() -> explanation().
timeout() ->
    "it did not complete the handshake within net_setuptime; it may be stopped (SIGSTOP), or very busy".

%% The peer gave another name than that of the node that was called. The process that listens there can say
%% anything, and has not proved that it knows the cookie.
-spec another_node(Name :: binary()) -> explanation().
another_node(Name) ->
    ["the node there is another one, ", uds_dist_text:printable(Name), "; ask for that one"].

%% The peer announced a packet that is too long for a handshake.
-spec not_a_node(Length :: pos_integer()) -> explanation().
not_a_node(Length) ->
    io_lib:format(
        "the process that listens there is not a node, as it sent a handshake packet of ~b bytes; "
        "find out what it is",
        [Length]
    ).
