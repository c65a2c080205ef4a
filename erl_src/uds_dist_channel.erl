%% The channel through which the sidecar hands over the sockets of connections, as SCM_RIGHTS messages of
%% unix(7). It exists only with the transport `direct`; src/port/protocol.rs specifies what goes through it,
%% and when. uds_dist_port keeps its state.
-module(uds_dist_channel).

-export([new/0, want/2, offered/2, failed/2, retry/1, close/1]).
-export([is_usable/1, take/1, give/2, close_handles/1]).

-export_type([channel/0, event/0, handles/0]).

%% The delay before the channel or a socket is tried again after a failure, in milliseconds. It doubles with
%% each failure.
-define(FIRST_DELAY, 1000).
-define(MAX_DELAY, 60000).

-record(channel, {
    status = none ::
        none
        | asked_for
        | {connecting, uds_dist_protocol:address(), TriesLeft :: non_neg_integer()}
        | {open, socket:socket()}
        %% The last socket could not be taken over, so none is asked for until the timer fires.
        | {paused, socket:socket()}
        %% There is no channel. Once the sidecar has reported that too, a timer starts with this delay.
        | {given_up, Delay :: pos_integer()}
        %% There is no channel until the timer fires, and this VM asks for one again.
        | failed
        %% This VM cannot take over sockets.
        | unavailable,
    %% The failures since the last socket that was taken over.
    backoff = uds_dist_backoff:new(?FIRST_DELAY) :: uds_dist_backoff:backoff()
}).

-opaque channel() :: #channel{}.

-type event() ::
    %% Send this packet to the sidecar.
    {send, binary()}
    %% Call retry/1 after this many milliseconds.
    | {timer, pos_integer()}
    %% Call want/2, if a channel is still wanted.
    | ask_again
    %% Connections are relayed for now, for a reason that has not been logged yet.
    | {failed, uds_dist_text:explanation()}
    %% Sockets are taken over again.
    | restored.

%% The two handles of a socket in this VM, each with a descriptor of its own (see uds_dist_direct), and the
%% descriptor of the port.
-type handles() :: #{
    socket := socket:socket(), port := gen_tcp:socket(), descriptor := non_neg_integer()
}.

%% How often to retry while strangers fill the channel's backlog, and the delay in milliseconds.
-define(TRIES, 20).
-define(RETRY, 50).

%% Time limit for receiving a socket, in milliseconds. The sidecar sends it before it reports that it did, so
%% it is there; the owner must not wait for one that is not.
-define(TAKE_TIMEOUT, 0).

%% The port is closed together with its descriptor, not when the peer closes the connection.
-define(PORT_OPTIONS, [
    {inet_backend, inet}, local, binary, {active, false}, {exit_on_close, false}
]).

%% Bytes for a control message with one descriptor, which needs 24 on 64-bit Linux.
-define(CONTROL_SIZE, 64).

-spec new() -> channel().
new() ->
    #channel{}.

%% Asks the sidecar, which is running, for a channel. Dir is the directory where it may create a socket file.
%% If Dir is an abstract namespace, the kernel chooses an abstract name.
-spec want(Dir :: binary(), channel()) -> {[event()], channel()}.
want(Dir, Channel = #channel{status = none}) ->
    case check() of
        ok ->
            Packet = uds_dist_protocol:open_channel(vm_pid(), directory(Dir)),
            {[{send, Packet}], Channel#channel{status = asked_for}};
        {error, Explanation} ->
            {[{failed, Explanation}], Channel#channel{status = unavailable}}
    end;
want(_, Channel) ->
    {[], Channel}.

directory(<<"@", _/binary>>) -> <<>>;
directory(Dir) -> Dir.

vm_pid() ->
    list_to_integer(os:getpid()).

%% Modules that a connection with the transport `direct` needs. A node that has run out of file descriptors
%% cannot load modules.
-define(NEEDED, [gen_tcp, socket, uds_dist_busy_poll, uds_dist_direct]).

%% Whether this VM can take over sockets.
check() ->
    lists:foreach(fun code:ensure_loaded/1, ?NEEDED),
    case os:type() of
        {unix, linux} ->
            case erlang:function_exported(prim_file, file_desc_to_ref, 2) of
                true -> check_socket();
                false -> {error, "this Erlang/OTP cannot close descriptors that it receives"}
            end;
        _ ->
            {error, "direct is available on Linux only"}
    end.

check_socket() ->
    try socket:is_supported(local) of
        true -> ok;
        false -> {error, "the module socket of this VM does not support Unix domain sockets"}
    catch
        error:_ -> {error, "this VM was built without the module socket"}
    end.

%% The sidecar has opened the channel at Address.
-spec offered(uds_dist_protocol:address(), channel()) -> {[event()], channel()} | not_asked_for.
offered(Address, Channel = #channel{status = asked_for}) -> connect(Address, ?TRIES, Channel);
offered(_, _) -> not_asked_for.

%% The sidecar could not open the channel, or closed it before it had seen us connect.
-spec failed(uds_dist_text:explanation(), channel()) -> {[event()], channel()} | not_asked_for.
failed(_, #channel{status = Status}) when Status =:= none; Status =:= failed; Status =:= unavailable ->
    not_asked_for;
failed(_, Channel = #channel{status = {given_up, Delay}}) ->
    {[{timer, Delay}], Channel#channel{status = failed}};
failed(Explanation, Channel) ->
    {Events, Delay, Channel1} = record_failure(Explanation, Channel),
    {[{timer, Delay} | Events], (close(Channel1))#channel{status = failed}}.

%% The timer has fired.
-spec retry(channel()) -> {[event()], channel()}.
retry(Channel = #channel{status = {connecting, Address, TriesLeft}}) ->
    connect(Address, TriesLeft, Channel);
retry(Channel = #channel{status = {paused, Socket}}) ->
    {[], Channel#channel{status = {open, Socket}}};
retry(Channel = #channel{status = failed}) ->
    {[ask_again], Channel#channel{status = none}};
retry(Channel) ->
    {[], Channel}.

connect(Address, TriesLeft, Channel) ->
    case open(Address) of
        {ok, Socket} ->
            {[], Channel#channel{status = {open, Socket}}};
        busy when TriesLeft > 0 ->
            {[{timer, ?RETRY}], Channel#channel{status = {connecting, Address, TriesLeft - 1}}};
        busy ->
            give_up("other processes keep the sidecar's channel busy", Channel);
        {error, Explanation} ->
            give_up(Explanation, Channel)
    end.

%% The sidecar does not know yet, and must not be asked again before it has closed its end.
give_up(Explanation, Channel) ->
    {Events, Delay, Channel1} = record_failure(Explanation, Channel),
    {Events, Channel1#channel{status = {given_up, Delay}}}.

record_failure(Explanation, Channel = #channel{backoff = Backoff}) ->
    {Delay, IsNews, Backoff1} = uds_dist_backoff:failed(Explanation, ?MAX_DELAY, Backoff),
    Events = [{failed, Explanation} || IsNews],
    {Events, max(?FIRST_DELAY, Delay), Channel#channel{backoff = Backoff1}}.

open(Address) ->
    case socket:open(local, stream) of
        {ok, Socket} ->
            case connect_socket(Socket, Address) of
                ok ->
                    {ok, Socket};
                {error, Reason} when Reason =:= eagain; Reason =:= timeout; Reason =:= enotconn ->
                    close_socket(Socket),
                    busy;
                {error, Reason} ->
                    close_socket(Socket),
                    {error, io_lib:format("cannot connect to the sidecar (~0tp)", [Reason])}
            end;
        {error, Reason} ->
            {error, io_lib:format("cannot create a socket (~0tp)", [Reason])}
    end.

%% OTP 25 takes a full backlog for a connection in progress, and may report one that does not exist.
connect_socket(Socket, Address) ->
    case socket:connect(Socket, #{family => local, path => Address}, 0) of
        ok ->
            case socket:peername(Socket) of
                {ok, _} -> ok;
                {error, _} = Error -> Error
            end;
        {error, _} = Error ->
            Error
    end.

%% Whether the sidecar may be asked for the socket of a connection.
-spec is_usable(channel()) -> boolean().
is_usable(#channel{status = {open, _}}) -> true;
is_usable(_) -> false.

%% Closes the channel after the sidecar has ended.
-spec close(channel()) -> channel().
close(Channel = #channel{status = {Status, Socket}}) when Status =:= open; Status =:= paused ->
    close_socket(Socket),
    Channel#channel{status = none};
close(Channel = #channel{status = unavailable}) ->
    Channel;
close(Channel) ->
    Channel#channel{status = none}.

%% ---------------------------------------------------------------------------------------------
%% Sockets that come through the channel

%% Receives the next socket that the sidecar has sent. The caller becomes its owner. If this VM cannot take it
%% over, such as for want of a descriptor, the next connections are relayed.
-spec take(channel()) -> {Taken, [event()], channel()} | not_asked_for when
    Taken :: {ok, handles()} | {error, uds_dist_text:explanation()}.
take(Channel = #channel{status = {Status, Socket}}) when Status =:= open; Status =:= paused ->
    case {receive_handles(Socket), Status} of
        {{ok, _} = Taken, _} ->
            {Events, Channel1} = record_success(Channel),
            {Taken, Events, Channel1#channel{status = {open, Socket}}};
        {{error, _} = Failed, paused} ->
            {Failed, [], Channel};
        {{error, Explanation} = Failed, open} ->
            %% The line about the lost connection has the explanation.
            {_, Delay, Channel1} = record_failure(Explanation, Channel),
            {Failed, [{timer, Delay}], Channel1#channel{status = {paused, Socket}}}
    end;
take(_) ->
    not_asked_for.

record_success(Channel = #channel{backoff = Backoff}) ->
    Events = [restored || uds_dist_backoff:tries(Backoff) > 0],
    {Events, Channel#channel{backoff = uds_dist_backoff:new(?FIRST_DELAY)}}.

receive_handles(Socket) ->
    case socket:recvmsg(Socket, 1, ?CONTROL_SIZE, [cmsg_cloexec], ?TAKE_TIMEOUT) of
        {ok, #{ctrl := [#{data := <<Descriptor:32/native-signed>>}]}} ->
            adopt(Descriptor);
        {ok, #{ctrl := []}} ->
            %% The kernel had no descriptor left for it.
            {error, explain(emfile)};
        {error, Reason} ->
            {error, explain(Reason)}
    end.

adopt(Descriptor) ->
    case open_handles(Descriptor) of
        {ok, Handles} ->
            {ok, Handles};
        {error, Reason} ->
            close_descriptor(Descriptor),
            {error, explain(Reason)}
    end.

%% The port uses the received descriptor, and the module socket a duplicate of it, so that each can wait for
%% input in its own way.
open_handles(Descriptor) ->
    case socket:open(Descriptor, #{dup => true}) of
        {ok, Socket} ->
            case gen_tcp:fdopen(Descriptor, ?PORT_OPTIONS) of
                {ok, Port} ->
                    {ok, #{socket => Socket, port => Port, descriptor => Descriptor}};
                {error, Reason} ->
                    close_socket(Socket),
                    {error, Reason}
            end;
        {error, Reason} ->
            {error, Reason}
    end.

explain(Reason) when Reason =:= emfile; Reason =:= enfile ->
    uds_dist_system:no_descriptor();
explain(Reason) ->
    io_lib:format("its socket cannot be taken over (~0tp)", [Reason]).

%% Gives Pid the socket, which is closed when that process ends.
-spec give(handles(), pid()) -> ok.
give(#{socket := Socket}, Pid) ->
    case socket:setopt(Socket, {otp, controlling_process}, Pid) of
        ok -> ok;
        %% The process has ended already.
        {error, _} -> close_socket(Socket)
    end.

%% Closes what is left after the end of a connection. The caller is the process that has received the socket.
-spec close_handles(handles()) -> ok.
close_handles(#{socket := Socket, port := Port, descriptor := Descriptor}) ->
    %% The port has to be gone before its descriptor, whose number may be used again at once.
    unlink(Port),
    try
        true = port_close(Port)
    catch
        error:badarg -> closed
    end,
    close_descriptor(Descriptor),
    close_socket(Socket).

close_socket(Socket) ->
    _ = socket:close(Socket),
    ok.

%% Neither a port nor the module socket closes a descriptor that it was given. The only function that does is
%% undocumented.
close_descriptor(Descriptor) ->
    {ok, File} = prim_file:file_desc_to_ref(Descriptor, [raw]),
    ok = prim_file:close(File).
