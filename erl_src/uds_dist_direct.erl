%% The transport `direct`, which bypasses the sidecar. After the handshake, the sidecar hands over the
%% connection's socket (see uds_dist_channel), and this VM reads and writes it.
%%
%% Such a connection outlives its sidecar. It costs two descriptors in the VM. At halt(), which flushes only
%% ports, data is lost that the controller has taken but the socket has not.
-module(uds_dist_direct).
-behaviour(uds_dist_transport).

-export([output/1, input/2]).
-export([available/1, is_open/1, write/3, unacknowledged/1, writable/2]).
-export([read/2, after_failed_output/0, passed_on/2]).

-export_type([output/0, input/0]).

-record(output, {
    socket :: socket:socket(),
    %% Data that the socket has not taken yet, and the handle of the message that it can take more.
    rest = [] :: erlang:iovec(),
    handle :: undefined | reference()
}).
-record(input, {
    %% The two handles of the socket. Only one of them reads at a time: the order of the bytes depends on it.
    socket :: socket:socket(),
    port :: gen_tcp:socket(),
    %% What the input handler waits for, if it has blocked: the port, which reads by itself, or a message
    %% that the socket can be read.
    wait = none :: none | port | {select, Handle :: reference()},
    %% Most messages that the port may still send.
    quota = 0 :: non_neg_integer(),
    %% Start of the current wait, in native time units.
    since = 0 :: integer(),
    busy_poll :: uds_dist_busy_poll:busy_poll(),
    %% Number of waits for which a bulk transfer is taken to continue.
    bulk = 0 :: non_neg_integer()
}).

-opaque output() :: #output{}.
-opaque input() :: #input{}.

%% Smaller writes are flattened: one copy is cheaper than building an iovec.
-define(FLATTEN, 65536).

%% Most bytes of one read.
-define(READ, 131072).

%% A read of this many bytes is part of a bulk transfer.
-define(BULK_INPUT, 16384).

%% After a read of a bulk transfer, the transfer is taken to continue for this many waits.
-define(BULK_WAITS, 8).

%% Most messages that the port sends before the input handler has to ask for more. If the input handler is
%% suspended, they are all that its message queue has to hold. It asks after half of them: when the port
%% stops, the schedulers no longer poll its descriptor, and for the next ten messages the VM's poll thread
%% has to wake a scheduler.
-define(PORT_MESSAGES, 64).

%% ---------------------------------------------------------------------------------------------
%% Output

%% The output half for a socket that the caller owns.
-spec output(socket:socket()) -> output().
output(Socket) ->
    #output{socket = Socket}.

-spec available(output()) -> 0 | infinity.
available(#output{handle = undefined}) -> infinity;
available(#output{}) -> 0.

-spec is_open(output()) -> boolean().
is_open(#output{handle = Handle}) -> Handle =:= undefined.

-spec write(pos_integer(), iodata(), output()) ->
    {ok, output()} | {error, uds_dist_transport:reason()}.
write(Size, Data, Output = #output{socket = Socket}) when Size < ?FLATTEN ->
    sent(socket:send(Socket, iolist_to_binary(Data), [], nowait), Data, Output);
write(_Size, Data, Output) ->
    send(erlang:iolist_to_iovec(Data), Output).

%% The kernel does not tell.
-spec unacknowledged(output()) -> 0.
unacknowledged(#output{}) -> 0.

-spec writable(term(), output()) ->
    {ok, output()} | {error, uds_dist_transport:reason()} | ignored.
writable({'$socket', Socket, select, Handle}, #output{socket = Socket, handle = Handle} = Output) ->
    send(Output#output.rest, Output);
writable(_, _) ->
    ignored.

send(Data, Output = #output{socket = Socket}) ->
    sent(socket:sendmsg(Socket, #{iov => Data}, [], nowait), Data, Output).

sent(ok, _Data, Output) ->
    {ok, Output#output{rest = [], handle = undefined}};
sent({ok, Rest}, _Data, Output) ->
    send(iovec(Rest), Output);
sent({select, {{select_info, _, Handle}, Rest}}, _Data, Output) ->
    {ok, Output#output{rest = iovec(Rest), handle = Handle}};
sent({select, {select_info, _, Handle}}, Data, Output) ->
    {ok, Output#output{rest = iovec(Data), handle = Handle}};
sent({error, {Reason, _Rest}}, _Data, _Output) ->
    {error, reason(Reason)};
sent({error, Reason}, _Data, _Output) ->
    {error, reason(Reason)}.

iovec(Data) ->
    erlang:iolist_to_iovec(Data).

reason(Reason) when Reason =:= closed; Reason =:= epipe; Reason =:= econnreset ->
    connection_closed;
reason(Reason) ->
    {connection_failed, Reason}.

%% ---------------------------------------------------------------------------------------------
%% Input

%% The input half for a socket. Spin is the busy-poll budget in microseconds.
-spec input(uds_dist_channel:handles(), Spin :: non_neg_integer()) -> input().
input(#{socket := Socket, port := Port}, Spin) ->
    ok = connect_port(Port),
    %% A receive reads the socket once, and does not go on while the peer sends more.
    _ = socket:setopt(Socket, {otp, rcvbuf}, {1, ?READ}),
    #input{
        socket = Socket,
        port = Port,
        busy_poll = uds_dist_busy_poll:new(erlang:convert_time_unit(Spin, microsecond, native))
    }.

%% The port sends its messages to this process. The owner of the port closes it when the connection has ended.
connect_port(Port) ->
    try
        true = port_connect(Port, self()),
        true = unlink(Port),
        %% An error means the same as badarg.
        _ = inet:setopts(Port, [{buffer, ?BULK_INPUT}]),
        ok
    catch
        %% The connection has ended already.
        error:badarg -> ok
    end.

%% Input is handled at once, even in a node with many runnable processes. Those get their turns between polls.
-spec read(term(), input()) ->
    {binary(), again | wait, input()} | {ended, uds_dist_transport:reason()} | ignored.
read(timeout, Input = #input{wait = port}) ->
    %% The input handler wants to know whether there is anything left to read.
    {<<>>, again, stop_port(Input)};
read(timeout, Input) ->
    wait(Input#input{since = erlang:monotonic_time()});
read({tcp, Port, Bytes}, Input = #input{port = Port, wait = port}) ->
    Input1 = woken(Input),
    case byte_size(Bytes) >= ?BULK_INPUT orelse may_spin(Input1) of
        true -> {Bytes, again, stop_port(Input1)};
        false -> {Bytes, wait, renew_quota(Input1)}
    end;
read({tcp, Port, Bytes}, Input = #input{port = Port}) ->
    %% The port sent this before it was stopped.
    {Bytes, again, Input};
read({tcp_passive, Port}, Input = #input{port = Port}) ->
    %% It may have been asked for more since it sent this.
    {<<>>, again, stop_port(Input)};
read({tcp_closed, Port}, #input{port = Port}) ->
    {ended, connection_closed};
read({tcp_error, Port, Reason}, #input{port = Port}) ->
    {ended, reason(Reason)};
read({'$socket', Socket, select, Handle}, Input = #input{socket = Socket, wait = {select, Handle}}) ->
    #input{bulk = Bulk} = Input1 = woken(Input),
    receive_now(Input1#input{wait = none, bulk = Bulk - 1});
read({'$socket', Socket, abort, {Handle, Reason}}, #input{socket = Socket, wait = {select, Handle}}) ->
    {ended, reason(Reason)};
read(_, Input = #input{wait = none}) ->
    %% Whatever this message is, it must not keep the input handler from going on.
    {<<>>, again, Input};
read(_, _) ->
    ignored.

%% Notes the end of a wait that blocked.
woken(Input = #input{since = Since, busy_poll = BusyPoll}) ->
    Now = erlang:monotonic_time(),
    Input#input{since = Now, busy_poll = uds_dist_busy_poll:blocked(Now - Since, BusyPoll)}.

may_spin(#input{busy_poll = BusyPoll}) ->
    uds_dist_busy_poll:budget(BusyPoll) > 0.

wait(Input = #input{since = Since, busy_poll = BusyPoll}) ->
    case uds_dist_busy_poll:budget(BusyPoll) of
        0 -> block(Input);
        Budget -> poll(Since + Budget, Input)
    end.

%% Between polls, other processes of the node run.
poll(End, Input = #input{socket = Socket, since = Since, busy_poll = BusyPoll}) ->
    case socket:recv(Socket, 0, [], 0) of
        {ok, Bytes} ->
            Time = erlang:monotonic_time() - Since,
            {Bytes, again, Input#input{busy_poll = uds_dist_busy_poll:spun(Time, BusyPoll)}};
        {error, timeout} ->
            case erlang:monotonic_time() < End of
                true ->
                    ok = uds_dist_turn:give(),
                    poll(End, Input);
                false ->
                    block(Input#input{busy_poll = uds_dist_busy_poll:spun_in_vain(BusyPoll)})
            end;
        {error, Reason} ->
            {ended, reason(Reason)}
    end.

%% The schedulers poll the descriptor of a port themselves, while a separate thread polls the sockets of the
%% module socket and then wakes a scheduler. That costs two more switches, and the thread may have to wait for
%% a processor in a busy node. But a port copies what it reads, and reads less at once. So it is used unless
%% a bulk transfer is going on.
block(Input = #input{bulk = 0, socket = Socket}) ->
    case socket:recv(Socket, 0, [], 0) of
        {ok, Bytes} -> {Bytes, again, Input};
        {error, timeout} -> start_port(Input);
        {error, Reason} -> {ended, reason(Reason)}
    end;
block(Input) ->
    receive_now(Input).

start_port(Input = #input{port = Port}) ->
    case inet:setopts(Port, [{active, ?PORT_MESSAGES}]) of
        ok -> {<<>>, wait, Input#input{wait = port, quota = ?PORT_MESSAGES}};
        {error, Reason} -> {ended, reason(Reason)}
    end.

%% Notes a message of the port.
renew_quota(Input = #input{quota = Quota}) when Quota > ?PORT_MESSAGES div 2 ->
    Input#input{quota = Quota - 1};
renew_quota(Input = #input{port = Port, quota = Quota}) ->
    %% The port adds the number to what is left. If it has ended, it has sent a message about that.
    _ = inet:setopts(Port, [{active, ?PORT_MESSAGES - Quota}]),
    Input#input{quota = ?PORT_MESSAGES - 1}.

stop_port(Input = #input{port = Port}) ->
    _ = inet:setopts(Port, [{active, false}]),
    Input#input{wait = none}.

receive_now(Input = #input{socket = Socket}) ->
    case socket:recv(Socket, 0, [], nowait) of
        {ok, Bytes} ->
            {Bytes, again, Input};
        {select, {select_info, _, Handle}} ->
            {<<>>, wait, Input#input{wait = {select, Handle}}};
        {error, Reason} ->
            {ended, reason(Reason)}
    end.

-spec after_failed_output() -> read_rest.
after_failed_output() -> read_rest.

-spec passed_on(non_neg_integer(), input()) -> input().
passed_on(Count, Input = #input{busy_poll = BusyPoll}) when Count >= ?BULK_INPUT ->
    Input#input{bulk = ?BULK_WAITS, busy_poll = uds_dist_busy_poll:received_bulk(BusyPoll)};
passed_on(_, Input) ->
    Input.
