%% Detects handshakes of this node that an attacker relays back to it.
%%
%% The handshake of the distribution binds neither names nor the socket: a process in the middle can relay
%% the proof that one end knows the cookie. If both ends are connections of this VM, a digest that it has sent
%% comes back, and the connection is refused: no other node could have made that digest. Names and challenges
%% are not compared, because a process in the middle can rewrite them.
%%
%% Controllers record what they send, and input handlers look up what they receive. The table belongs to
%% uds_dist_port.
-module(uds_dist_reflection).

-export([new/0, remember/1, is_ours/1]).

-define(TABLE, ?MODULE).

%% Time for which a packet is remembered, in milliseconds. It exceeds the time limit of a handshake, unless
%% net_setuptime is set to a larger value.
-define(LIFE, 60000).

%% Shortest time between two removals of old entries, in milliseconds. Each of them looks at the whole table.
-define(REMOVAL_INTERVAL, 10000).

%% Key of the entry with the time from which the next removal is due.
-define(DUE, due).

-spec new() -> ok.
new() ->
    ?TABLE = ets:new(?TABLE, [named_table, public, {write_concurrency, true}]),
    postpone_removal(erlang:monotonic_time(millisecond)).

%% Records a handshake packet that this node sends.
-spec remember(Packet :: iodata()) -> ok.
remember(Packet) ->
    Now = erlang:monotonic_time(millisecond),
    case proof(iolist_to_binary(Packet)) of
        none ->
            ok;
        Proof ->
            true = ets:insert(?TABLE, {Proof, Now}),
            forget(ets:lookup(?TABLE, ?DUE), Now)
    end.

forget([{?DUE, Due}], Now) when Now < Due ->
    ok;
forget(_, Now) ->
    ok = postpone_removal(Now),
    _ = ets:select_delete(?TABLE, [{{'_', '$1'}, [{'<', '$1', Now - ?LIFE}], [true]}]),
    ok.

postpone_removal(Now) ->
    true = ets:insert(?TABLE, {?DUE, Now + ?REMOVAL_INTERVAL}),
    ok.

%% Whether the proof in a received packet is one that this node has sent.
-spec is_ours(Packet :: binary()) -> boolean().
is_ours(Packet) ->
    case proof(Packet) of
        none -> false;
        Proof -> ets:member(?TABLE, Proof)
    end.

%% The digest of a challenge reply or a challenge acknowledgement ("Distribution Handshake" in the ERTS User's
%% Guide).
proof(<<$r, _Challenge:32, Digest:16/binary>>) -> Digest;
proof(<<$a, Digest:16/binary>>) -> Digest;
proof(_) -> none.
