%% The channel through which the sidecar hands over the sockets of connections, as SCM_RIGHTS of
%% unix(7). src/protocol.rs says what goes through it, and when.
-module(uds_dist_handover).

-export([open/1, close/1, take/1, give/2]).

-export_type([channel/0]).

-opaque channel() :: socket:socket().

%% Milliseconds for what the sidecar has sent before it said so.
-define(TAKE_TIMEOUT, 1000).

%% Bytes for the control message with one descriptor; it needs 24 on a 64-bit Linux.
-define(CONTROL_SIZE, 64).

%% Connects to where HELLO says.
-spec open(uds_dist_protocol:address()) ->
    {ok, channel()} | {error, uds_dist_config:explanation()}.
open(Address) ->
    case erlang:function_exported(prim_file, file_desc_to_ref, 2) of
        true -> connect(Address);
        false -> {error, "this Erlang/OTP cannot close a descriptor that it was given"}
    end.

connect(Address) ->
    try socket:open(local, stream) of
        {ok, Channel} ->
            case socket:connect(Channel, #{family => local, path => Address}) of
                ok ->
                    {ok, Channel};
                {error, Reason} ->
                    close(Channel),
                    {error, io_lib:format("cannot connect to the sidecar (~0tp)", [Reason])}
            end;
        {error, Reason} ->
            {error, io_lib:format("cannot make a socket (~0tp)", [Reason])}
    catch
        error:Reason when Reason =:= notsup; Reason =:= undef ->
            {error, "this Erlang VM was built without the module socket"}
    end.

-spec close(undefined | channel() | socket:socket()) -> ok.
close(undefined) ->
    ok;
close(Socket) ->
    _ = socket:close(Socket),
    ok.

%% Takes the next socket, which the sidecar has sent. The caller owns it.
-spec take(channel()) -> {ok, socket:socket()} | {error, uds_dist_config:explanation()}.
take(Channel) ->
    case socket:recvmsg(Channel, 1, ?CONTROL_SIZE, [cmsg_cloexec], ?TAKE_TIMEOUT) of
        {ok, #{ctrl := [#{data := <<Descriptor:32/native-signed>>}]}} ->
            adopt(Descriptor);
        {ok, #{ctrl := []}} ->
            %% The kernel had nowhere to put it.
            {error, explain(emfile)};
        {error, Reason} ->
            {error, explain(Reason)}
    end.

%% The module socket closes only descriptors that it has made itself. So it duplicates this one, and the
%% only function that closes what another one has made is this undocumented one.
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

%% Makes a process the owner of a socket: when it ends, the socket is closed. If it has ended, now.
-spec give(socket:socket(), pid()) -> ok.
give(Socket, Pid) ->
    case socket:setopt(Socket, {otp, controlling_process}, Pid) of
        ok -> ok;
        {error, _} -> close(Socket)
    end.
