%% A peer that is not a VM: a process of the test speaks the distribution protocol on its own socket,
%% following "Distribution Protocol" in the ERTS User's Guide, and closes it when the test wants it to.
-module(test_peer).

-export([connect/2, shake_hands/2, answer_challenge/2]).
-export([message/3, expect_frame/1, await_end/1]).

-export_type([t/0]).

%% Time limit in milliseconds.
-define(LIMIT, 60000).
-define(COOKIE, "uds_dist_test").

%% Tags of the external term format.
-define(VERSION, 131).
-define(SMALL_TUPLE, 104).
-define(SMALL_INTEGER, 97).
-define(SMALL_ATOM, 119).
-define(NEW_PID, 88).

%% Tags of the distribution protocol.
-define(PASS_THROUGH, 112).
-define(REG_SEND, 6).

-type t() :: #{
    name := binary(),
    %% The peer's creation, which is also its challenge.
    number := 4..16#FFFFFFFF
}.

%% Connects to the node of this name in the test case's directory.
-spec connect(Name :: string(), Config :: list()) -> socket:socket().
connect(Name, Config) ->
    {ok, Socket} = socket:open(local, stream),
    Path = filename:join(test_node:dir(Config), Name ++ ".sock"),
    ok = socket:connect(Socket, #{family => local, path => Path}),
    Socket.

%% The handshake of distribution protocol 6, on the connecting side.
-spec shake_hands(socket:socket(), t()) -> ok.
shake_hands(Socket, Peer) ->
    ok = socket:send(Socket, answer_challenge(Socket, Peer)),
    %% The node has to prove that it knows the cookie too.
    #{number := Number} = Peer,
    Expected = <<$a, (digest(Number))/binary>>,
    Expected = recv(Socket, 2),
    ok.

%% The first part of the handshake, up to the node's challenge. Returns the answer, which is still to be sent.
-spec answer_challenge(socket:socket(), t()) -> Packet :: iodata().
answer_challenge(Socket, #{name := Name, number := Number}) ->
    %% The mandatory flags. DFLAG_PUBLISHED is not among them, so the peer is hidden.
    {erts_dflags, _, Flags, _, _, _} = erts_internal:get_dflags(),
    Packet = <<$N, Flags:64, Number:32, (byte_size(Name)):16, Name/binary>>,
    ok = socket:send(Socket, packet(Packet)),
    <<"sok">> = recv(Socket, 2),
    <<$N, _:64, Theirs:32, _/binary>> = recv(Socket, 2),
    packet(<<$r, Number:32, (digest(Theirs))/binary>>).

digest(Challenge) ->
    erlang:md5([?COOKIE, integer_to_list(Challenge)]).

packet(Packet) ->
    [<<(byte_size(Packet)):16>>, Packet].

%% A frame with a message to a registered process.
-spec message(t(), To :: atom(), Message :: term()) -> Frame :: iodata().
message(#{name := Name, number := Number}, To, Message) ->
    From = <<?NEW_PID, (atom(Name))/binary, 1:32, 0:32, Number:32>>,
    Control = [
        <<?VERSION, ?SMALL_TUPLE, 4, ?SMALL_INTEGER, ?REG_SEND>>,
        From,
        atom(<<>>),
        atom(atom_to_binary(To, utf8))
    ],
    Frame = iolist_to_binary([?PASS_THROUGH, Control, term_to_binary(Message)]),
    [<<(byte_size(Frame)):32>>, Frame].

atom(Name) ->
    <<?SMALL_ATOM, (byte_size(Name)), Name/binary>>.

%% Waits for a frame that is not a tick.
-spec expect_frame(socket:socket()) -> ok.
expect_frame(Socket) ->
    case recv(Socket, 4) of
        <<>> -> expect_frame(Socket);
        _ -> ok
    end.

%% Waits until the node has closed the connection, and ignores what it sends before.
-spec await_end(socket:socket()) -> ok.
await_end(Socket) ->
    case socket:recv(Socket, 0, ?LIMIT) of
        {ok, _} -> await_end(Socket);
        {error, Reason} when Reason =:= closed; Reason =:= econnreset -> ok
    end.

%% Receives a frame whose length field has this many bytes.
recv(Socket, Head) ->
    {ok, Length} = socket:recv(Socket, Head, ?LIMIT),
    case binary:decode_unsigned(Length) of
        0 ->
            <<>>;
        Size ->
            {ok, Frame} = socket:recv(Socket, Size, ?LIMIT),
            Frame
    end.
