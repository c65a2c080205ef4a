%% Splits a peer's byte stream into the frames of the distribution protocol. Pure.
%%
%% A frame is a length followed by that many bytes. The length has 16 bits during the handshake and 32 after
%% it (alt_dist, "The Distribution Protocol"). The stream may be cut anywhere.
-module(uds_dist_frames).

-export([handshake_frame/1]).
-export([new/0, push/2]).

-export_type([buffer/0]).

%% Longest handshake frame in bytes. One with a node name of 255 characters has less than 1100; a longer one
%% is not part of a handshake, and is rejected without waiting for its end.
-define(MAX_HANDSHAKE_FRAME, 2048).

%% The number of bytes received, the number that the first frame needs, and the pieces received, the latest
%% first.
-opaque buffer() :: {Size :: non_neg_integer(), Needed :: pos_integer(), [binary()]}.

%% Takes the first handshake frame off a stream.
-spec handshake_frame(binary()) ->
    {ok, Frame :: binary(), Rest :: binary()} | more | {error, {too_long, pos_integer()}}.
handshake_frame(<<Length:16, _/binary>>) when Length > ?MAX_HANDSHAKE_FRAME ->
    {error, {too_long, Length}};
handshake_frame(<<Length:16, Frame:Length/binary, Rest/binary>>) ->
    {ok, Frame, Rest};
handshake_frame(_) ->
    more.

%% An empty buffer, for the stream after the handshake.
-spec new() -> buffer().
new() ->
    {0, 4, []}.

%% Adds bytes to the stream, and takes all complete frames off it. A tick is an empty frame.
-spec push(binary(), buffer()) -> {[Frame :: iodata()], buffer()}.
push(<<>>, Buffer) ->
    {[], Buffer};
push(Bytes, {Size, Needed, Pieces}) when Size + byte_size(Bytes) < Needed ->
    {[], {Size + byte_size(Bytes), Needed, [Bytes | Pieces]}};
push(Bytes, {0, _, []}) ->
    split(Bytes, []);
push(Bytes, {Size, 4, Pieces}) ->
    %% The length itself was cut: complete it first. Less than 4 bytes have been received.
    Missing = 4 - Size,
    <<Head:Missing/binary, Rest/binary>> = Bytes,
    <<Length:32>> = Start = iolist_to_binary(lists:reverse([Head | Pieces])),
    case Length of
        0 -> split(Rest, [<<>>]);
        _ -> push(Rest, {4, 4 + Length, [Start]})
    end;
push(Bytes, {Size, Needed, Pieces}) ->
    Missing = Needed - Size,
    <<Last:Missing/binary, Rest/binary>> = Bytes,
    <<_Length:32, Frame/binary>> = iolist_to_binary(lists:reverse([Last | Pieces])),
    split(Rest, [Frame]).

split(<<Length:32, Frame:Length/binary, Rest/binary>>, Frames) ->
    split(Rest, [Frame | Frames]);
split(<<>>, Frames) ->
    {lists:reverse(Frames), new()};
split(<<Length:32, _/binary>> = Bytes, Frames) ->
    {lists:reverse(Frames), {byte_size(Bytes), 4 + Length, [Bytes]}};
split(Bytes, Frames) ->
    {lists:reverse(Frames), {byte_size(Bytes), 4, [Bytes]}}.
