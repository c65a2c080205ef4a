%% Handshakes of this node that come back to it.
%%
%% The handshake of the distribution binds neither names nor the socket: whoever stands between two ends
%% can pass on the proof that one of them knows the cookie. Where both ends are connections of this VM, a
%% digest that it has sent comes in again, which no other node could have made, and the connection is
%% refused. Names and challenges are not looked at: who stands between can rewrite them.
%%
%% Controllers remember here what they send, input handlers ask about what they receive. The table belongs
%% to uds_dist_port.
-module(uds_dist_reflection).

-export([new/0, remember/1, is_ours/1]).

-define(TABLE, ?MODULE).

%% Milliseconds for which a packet is remembered: longer than a handshake may take, unless somebody has
%% raised net_setuptime beyond that.
-define(LIFE, 60000).

%% Entries from which on old ones are looked for and removed.
-define(MANY, 1000).

-spec new() -> ok.
new() ->
    ?TABLE = ets:new(?TABLE, [named_table, public, {write_concurrency, true}]),
    ok.

%% This node sends a packet of a handshake.
-spec remember(Packet :: iodata()) -> ok.
remember(Packet) ->
    Now = erlang:monotonic_time(millisecond),
    case proof(iolist_to_binary(Packet)) of
        none ->
            ok;
        Proof ->
            true = ets:insert(?TABLE, {Proof, Now}),
            forget(ets:info(?TABLE, size), Now)
    end.

forget(Size, Now) when Size > ?MANY ->
    _ = ets:select_delete(?TABLE, [{{'_', '$1'}, [{'<', '$1', Now - ?LIFE}], [true]}]),
    ok;
forget(_, _) ->
    ok.

%% Whether this node has sent the proof in a packet that came in.
-spec is_ours(Packet :: binary()) -> boolean().
is_ours(Packet) ->
    case proof(Packet) of
        none -> false;
        Proof -> ets:member(?TABLE, Proof)
    end.

%% The digest of a challenge reply or of its acknowledgement ("Distribution Handshake" of the ERTS User's
%% Guide).
proof(<<$r, _Challenge:32, Digest:16/binary>>) -> Digest;
proof(<<$a, Digest:16/binary>>) -> Digest;
proof(_) -> none.
