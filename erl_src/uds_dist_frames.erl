%% A peer's byte stream becomes the frames of the distribution protocol. Pure.
%%
%% A frame is a length and as many bytes: 16 bits of length during the handshake, 32 after it
%% (alt_dist, "The Distribution Protocol"). The stream may be cut anywhere.
-module(uds_dist_frames).

-export([handshake_frame/1]).
-export([new/0, push/2]).

-export_type([buffer/0]).

%% Longest handshake frame: one with a node name of 255 characters has less than 1100 bytes. A
%% longer one is no handshake, and its end is not waited for.
-define(MAX_HANDSHAKE_FRAME, 2048).

%% Bytes in hand, bytes that the first frame needs, and the pieces in hand, last one first.
-opaque buffer() :: {Size :: non_neg_integer(), Needed :: pos_integer(), [binary()]}.

%% Takes the first frame of the handshake off a stream.
-spec handshake_frame(binary()) ->
    {ok, Frame :: binary(), Rest :: binary()} | more | {error, {too_long, pos_integer()}}.
handshake_frame(<<Length:16, _/binary>>) when Length > ?MAX_HANDSHAKE_FRAME ->
    {error, {too_long, Length}};
handshake_frame(<<Length:16, Frame:Length/binary, Rest/binary>>) ->
    {ok, Frame, Rest};
handshake_frame(_) ->
    more.

%% The empty beginning of a stream after the handshake.
-spec new() -> buffer().
new() ->
    {0, 4, []}.

%% Adds bytes to the stream and takes all frames that are complete. A tick is an empty frame.
-spec push(binary(), buffer()) -> {[Frame :: iodata()], buffer()}.
push(<<>>, Buffer) ->
    {[], Buffer};
push(Bytes, {Size, Needed, Pieces}) when Size + byte_size(Bytes) < Needed ->
    {[], {Size + byte_size(Bytes), Needed, [Bytes | Pieces]}};
push(Bytes, {0, _, []}) ->
    split(Bytes, []);
push(Bytes, {Size, 4, Pieces}) ->
    %% The length itself was cut: take it whole first. It has less than 4 bytes in hand.
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
