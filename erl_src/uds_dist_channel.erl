%% The channel through which the sidecar hands over the sockets of connections, as SCM_RIGHTS of unix(7):
%% from the request for it to its end. It exists only where the transport is direct; src/port/protocol.rs
%% says what goes through it, and when. Its owner, uds_dist_port, keeps this state.
-module(uds_dist_channel).

-export([new/0, want/2, offered/2, failed/2, retry/1, close/1]).
-export([is_open/1, take/1, give/2, close_socket/1]).

-export_type([channel/0, event/0]).

-opaque channel() ::
    none
    | asked_for
    | {connecting, uds_dist_protocol:address(), TriesLeft :: non_neg_integer()}
    | {open, socket:socket()}
    %% There will be none until there is another sidecar.
    | failed.

-type event() ::
    none
    %% For the sidecar.
    | {send, binary()}
    %% Call retry/1 after so many milliseconds.
    | {timer, pos_integer()}
    %% Connections are relayed instead.
    | {failed, uds_dist_config:explanation()}.

%% Strangers who are in front of us at the channel are waited for so often, at intervals of so many
%% milliseconds.
-define(TRIES, 20).
-define(RETRY, 50).

%% Milliseconds for what the sidecar has sent before it said so.
-define(TAKE_TIMEOUT, 1000).

%% Bytes for the control message with one descriptor; it needs 24 on a 64-bit Linux.
-define(CONTROL_SIZE, 64).

-spec new() -> channel().
new() ->
    none.

%% There is a sidecar, and sockets are wanted. Dir is where the channel may have its socket; an abstract
%% namespace is no directory, and the kernel chooses a name.
-spec want(Dir :: binary(), channel()) -> {event(), channel()}.
want(Dir, none) ->
    case check() of
        ok -> {{send, uds_dist_protocol:open_channel(vm_pid(), directory(Dir))}, asked_for};
        {error, Explanation} -> {{failed, Explanation}, failed}
    end;
want(_, Channel) ->
    {none, Channel}.

directory(<<"@", _/binary>>) -> <<>>;
directory(Dir) -> Dir.

vm_pid() ->
    list_to_integer(os:getpid()).

%% Whether this VM can take over sockets.
check() ->
    _ = code:ensure_loaded(socket),
    case os:type() of
        {unix, linux} ->
            case erlang:function_exported(prim_file, file_desc_to_ref, 2) of
                true -> check_socket();
                false -> {error, "this Erlang/OTP cannot close a descriptor that it was given"}
            end;
        _ ->
            {error, "only Linux has it"}
    end.

check_socket() ->
    try socket:is_supported(local) of
        true -> ok;
        false -> {error, "the module socket of this VM knows no Unix domain sockets"}
    catch
        error:_ -> {error, "this VM was built without the module socket"}
    end.

%% The sidecar has opened the channel at Address.
-spec offered(uds_dist_protocol:address(), channel()) -> {event(), channel()}.
offered(Address, asked_for) ->
    connect(Address, ?TRIES).

%% The sidecar could not open it, or has closed it before we came in.
-spec failed(uds_dist_config:explanation(), channel()) -> {event(), channel()}.
failed(Explanation, Channel) ->
    close(Channel),
    {{failed, Explanation}, failed}.

%% The time of `timer` is over.
-spec retry(channel()) -> {event(), channel()}.
retry({connecting, Address, TriesLeft}) -> connect(Address, TriesLeft);
retry(Channel) -> {none, Channel}.

connect(Address, TriesLeft) ->
    case open(Address) of
        {ok, Socket} ->
            {none, {open, Socket}};
        busy when TriesLeft > 0 ->
            {{timer, ?RETRY}, {connecting, Address, TriesLeft - 1}};
        busy ->
            {{failed, "others keep the sidecar's channel busy"}, failed};
        {error, Explanation} ->
            {{failed, Explanation}, failed}
    end.

open(Address) ->
    case socket:open(local, stream) of
        {ok, Socket} ->
            case socket:connect(Socket, #{family => local, path => Address}, 0) of
                ok ->
                    {ok, Socket};
                {error, Reason} when Reason =:= eagain; Reason =:= timeout ->
                    close_socket(Socket),
                    busy;
                {error, Reason} ->
                    close_socket(Socket),
                    {error, io_lib:format("cannot connect to the sidecar (~0tp)", [Reason])}
            end;
        {error, Reason} ->
            {error, io_lib:format("cannot make a socket (~0tp)", [Reason])}
    end.

-spec is_open(channel()) -> boolean().
is_open({open, _}) -> true;
is_open(_) -> false.

%% The sidecar is gone.
-spec close(channel()) -> channel().
close({open, Socket}) ->
    close_socket(Socket),
    none;
close(_) ->
    none.

%% ---------------------------------------------------------------------------------------------
%% What comes through it

%% Takes the next socket, which the sidecar has sent. The caller owns it.
-spec take(channel()) -> {ok, socket:socket()} | {error, uds_dist_config:explanation()}.
take({open, Socket}) ->
    case socket:recvmsg(Socket, 1, ?CONTROL_SIZE, [cmsg_cloexec], ?TAKE_TIMEOUT) of
        {ok, #{ctrl := [#{data := <<Descriptor:32/native-signed>>}]}} ->
            adopt(Descriptor);
        {ok, #{ctrl := []}} ->
            %% The kernel had nowhere to put it.
            {error, explain(emfile)};
        {error, Reason} ->
            {error, explain(Reason)}
    end.

%% The module socket closes only descriptors that it has made itself. So it duplicates this one, and the
%% only function that closes a descriptor from elsewhere is this undocumented one.
adopt(Descriptor) ->
    Opened = socket:open(Descriptor, #{dup => true}),
    {ok, File} = prim_file:file_desc_to_ref(Descriptor, [raw]),
    ok = prim_file:close(File),
    case Opened of
        {ok, Socket} -> {ok, Socket};
        {error, Reason} -> {error, explain(Reason)}
    end.

explain(Reason) when Reason =:= emfile; Reason =:= enfile ->
    "this node has no file descriptor left for it; raise the limit of open files "
    "(ulimit -n, LimitNOFILE=)";
explain(Reason) ->
    io_lib:format("its socket cannot be taken over (~0tp)", [Reason]).

%% Makes a process the owner of a socket: when the process ends, the socket is closed.
-spec give(socket:socket(), pid()) -> ok.
give(Socket, Pid) ->
    case socket:setopt(Socket, {otp, controlling_process}, Pid) of
        ok -> ok;
        %% The process has ended already.
        {error, _} -> close_socket(Socket)
    end.

-spec close_socket(socket:socket()) -> ok.
close_socket(Socket) ->
    _ = socket:close(Socket),
    ok.
