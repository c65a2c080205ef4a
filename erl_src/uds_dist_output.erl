%% Where the bytes of a controller go: into the connection's socket, or to the sidecar that has it.
-module(uds_dist_output).

-export([relay/3, socket/1]).
-export([available/1, is_open/1, is_awaited/1, write/3, acknowledged/2, writable/2]).

-export_type([output/0]).

-record(relay, {
    port :: port(),
    conn :: uds_dist_protocol:conn(),
    window :: uds_dist_window:sender()
}).

-record(socket, {
    socket :: socket:socket(),
    %% What the socket has not taken yet, and what the VM will say when it takes more.
    rest = [] :: erlang:iovec(),
    handle :: undefined | reference() | broken
}).

-opaque output() :: #relay{} | #socket{}.

%% Less is flattened: a copy costs less than to list the pieces.
-define(FLATTEN, 65536).

%% To the sidecar, within a window.
-spec relay(port(), uds_dist_protocol:conn(), Window :: pos_integer()) -> output().
relay(Port, Conn, Window) ->
    #relay{port = Port, conn = Conn, window = uds_dist_window:sender(Window)}.

%% Into a socket, which the caller owns.
-spec socket(socket:socket()) -> output().
socket(Socket) ->
    #socket{socket = Socket}.

%% Bytes that may be written now.
-spec available(output()) -> non_neg_integer() | infinity.
available(#relay{window = Window}) -> uds_dist_window:available(Window);
available(#socket{handle = undefined}) -> infinity;
available(#socket{}) -> 0.

%% Whether it is worth writing. If not, a message will say when it is.
-spec is_open(output()) -> boolean().
is_open(#relay{window = Window}) -> uds_dist_window:is_open(Window);
is_open(#socket{handle = Handle}) -> Handle =:= undefined.

%% Whether a message will come that lets more be written.
-spec is_awaited(output()) -> boolean().
is_awaited(#relay{window = Window}) -> uds_dist_window:is_awaited(Window);
is_awaited(#socket{handle = Handle}) -> Handle =/= undefined.

%% Writes Size bytes, no more than are available.
-spec write(Size :: pos_integer(), iodata(), output()) -> output().
write(Size, Data, Output = #relay{port = Port, conn = Conn, window = Window}) ->
    try port_command(Port, [uds_dist_protocol:data_head(Conn) | Data]) of
        true -> Output#relay{window = uds_dist_window:sent(Size, Window)}
    catch
        %% The sidecar has gone; its owner says so in the log.
        error:badarg -> exit(connection_closed)
    end;
write(Size, Data, Output = #socket{socket = Socket}) when Size < ?FLATTEN ->
    sent(socket:send(Socket, iolist_to_binary(Data), [], nowait), Data, Output);
write(_Size, Data, Output) ->
    send(erlang:iolist_to_iovec(Data), Output).

send(Data, Output = #socket{socket = Socket}) ->
    sent(socket:sendmsg(Socket, #{iov => Data}, [], nowait), Data, Output).

sent(ok, _Data, Output) ->
    Output#socket{rest = [], handle = undefined};
sent({ok, Rest}, _Data, Output) ->
    send(iovec(Rest), Output);
sent({select, {{select_info, _, Handle}, Rest}}, _Data, Output) ->
    Output#socket{rest = iovec(Rest), handle = Handle};
sent({select, {select_info, _, Handle}}, Data, Output) ->
    Output#socket{rest = iovec(Data), handle = Handle};
sent({error, _Reason}, _Data, Output) ->
    %% The peer is gone. The input handler reads what it sent before that, and ends the connection.
    Output#socket{rest = [], handle = broken}.

iovec(Data) ->
    erlang:iolist_to_iovec(Data).

%% The sidecar has passed on Count bytes.
-spec acknowledged(non_neg_integer(), output()) -> output().
acknowledged(Count, Output = #relay{window = Window}) ->
    Output#relay{window = uds_dist_window:acknowledged(Count, Window)};
acknowledged(_Count, Output) ->
    %% Of the handshake, which went by way of the sidecar.
    Output.

%% The VM says that the socket takes more.
-spec writable(reference(), output()) -> output().
writable(Handle, Output = #socket{rest = Rest, handle = Handle}) ->
    send(Rest, Output);
writable(_, Output) ->
    Output.
