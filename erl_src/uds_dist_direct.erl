%% The transport `direct`, which bypasses the sidecar. After the handshake, the sidecar hands over the
%% connection's socket (see uds_dist_channel), and this VM reads and writes it.
%%
%% Such a connection outlives its sidecar. It costs a descriptor in the VM. At halt(), which flushes only
%% ports, data is lost that the controller has taken but the socket has not.
-module(uds_dist_direct).
-behaviour(uds_dist_transport).

-export([output/1, input/2]).
-export([available/1, is_open/1, is_awaited/1, write/3, unacknowledged/1, writable/2]).
-export([read/2, passed_on/2]).

-export_type([output/0, input/0]).

-record(output, {
    socket :: socket:socket(),
    %% Data that the socket has not taken yet, and the handle of the message that it can take more.
    rest = [] :: erlang:iovec(),
    handle :: undefined | reference()
}).
-record(input, {
    socket :: socket:socket(),
    %% Handle of the message that there is something to read.
    handle :: undefined | reference(),
    %% Start of the current wait, in native time units.
    since = 0 :: integer(),
    %% Busy-poll budget: how long a wait may spin before it blocks, in native time units.
    spin :: non_neg_integer(),
    %% Whether the next wait is expected to end within the budget.
    is_short = false :: boolean()
}).

-opaque output() :: #output{}.
-opaque input() :: #input{}.

%% Smaller writes are flattened: one copy is cheaper than building an iovec.
-define(FLATTEN, 65536).

%% Most bytes of one read.
-define(READ, 131072).

%% A read of this many bytes is part of a bulk transfer. The next piece arrives before anyone waits for it,
%% and polling for it would only take processor time from its sender.
-define(LONG, 16384).

%% A blocking wait of up to this many budgets may be followed by one within the budget, as much of it was
%% spent on two wake-ups.
-define(SHORT_WAIT, 4).

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

-spec is_awaited(output()) -> boolean().
is_awaited(#output{handle = Handle}) -> Handle =/= undefined.

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
-spec input(socket:socket(), Spin :: non_neg_integer()) -> input().
input(Socket, Spin) ->
    %% A receive reads the socket once, and does not go on while the peer sends more.
    _ = socket:setopt(Socket, {otp, rcvbuf}, {1, ?READ}),
    #input{socket = Socket, spin = erlang:convert_time_unit(Spin, microsecond, native)}.

%% Input is handled at once, even in a node with many runnable processes. Those get their turns between polls.
-spec read(term(), input()) ->
    {binary(), again | wait, input()} | {ended, uds_dist_transport:reason()} | ignored.
read(timeout, Input = #input{is_short = IsShort}) ->
    Input1 = Input#input{since = erlang:monotonic_time()},
    case IsShort of
        true -> poll(Input1);
        false -> receive_now(Input1)
    end;
read({'$socket', Socket, select, Handle}, #input{socket = Socket, handle = Handle} = Input) ->
    #input{since = Since, spin = Spin} = Input,
    IsShort = erlang:monotonic_time() - Since < ?SHORT_WAIT * Spin,
    receive_now(Input#input{handle = undefined, is_short = IsShort});
read({'$socket', Socket, abort, {Handle, Reason}}, #input{socket = Socket, handle = Handle}) ->
    {ended, reason(Reason)};
read(_, _) ->
    ignored.

%% Waking a sleeping processor takes tens of microseconds, and so does waking the thread that reports a
%% ready socket. So a wait that is likely to be short begins with polling. Between polls, other processes
%% of the node run.
poll(Input = #input{socket = Socket, since = Since, spin = Spin}) ->
    case socket:recv(Socket, 0, [], 0) of
        {ok, Bytes} ->
            {Bytes, again, Input};
        {error, timeout} ->
            case erlang:monotonic_time() - Since < Spin of
                true ->
                    ok = uds_dist_turn:give(),
                    poll(Input);
                false ->
                    receive_now(Input)
            end;
        {error, Reason} ->
            {ended, reason(Reason)}
    end.

receive_now(Input = #input{socket = Socket}) ->
    case socket:recv(Socket, 0, [], nowait) of
        {ok, Bytes} ->
            {Bytes, again, Input};
        {select, {select_info, _, Handle}} ->
            {<<>>, wait, Input#input{handle = Handle}};
        {error, Reason} ->
            {ended, reason(Reason)}
    end.

-spec passed_on(non_neg_integer(), input()) -> input().
passed_on(Count, Input) ->
    Input#input{is_short = Input#input.is_short andalso Count < ?LONG}.
