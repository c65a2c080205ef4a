%% The transport that goes around the sidecar, for those who ask for it (`transport` is `direct`): after
%% the handshake the sidecar hands over the connection's socket (see uds_dist_channel), and this VM reads
%% and writes it.
%%
%% Such a connection outlives its sidecar. It costs a descriptor in the VM, and what the controller has
%% taken and the socket has not is lost at halt(), which flushes ports only.
-module(uds_dist_direct).
-behaviour(uds_dist_transport).

-export([output/1, input/2]).
-export([available/1, is_open/1, is_awaited/1, write/3, writable/2, read/2, passed_on/2]).

-export_type([output/0, input/0]).

-record(output, {
    socket :: socket:socket(),
    %% What the socket has not taken yet, and what the VM will say when it takes more.
    rest = [] :: erlang:iovec(),
    handle :: undefined | reference()
}).
-record(input, {
    socket :: socket:socket(),
    %% What the VM will say when there is something to read.
    handle :: undefined | reference(),
    %% When the wait for it began.
    since = 0 :: integer(),
    %% Busy-poll budget: how long a wait may be spent polling, in native time units.
    spin :: non_neg_integer(),
    %% Whether the next wait is expected to be that short.
    is_short = false :: boolean(),
    turn = uds_dist_turn:new() :: uds_dist_turn:turn()
}).

-opaque output() :: #output{}.
-opaque input() :: #input{}.

%% Smaller writes are flattened: one copy is cheaper than building an iovec.
-define(FLATTEN, 65536).

%% Bytes to read at once.
-define(READ, 131072).

%% A read this long is part of a bulk transfer. The next piece is there before it is waited for, and
%% polling for it would take processor time from its sender.
-define(LONG, 16384).

%% A wait that took up to so many times the budget may still be followed by one within it: much of it
%% was the time that two wake-ups take.
-define(HOPE, 4).

%% ---------------------------------------------------------------------------------------------
%% Output

%% Writes into a socket, which the caller owns.
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

%% Reads from a socket. Spin is the busy-poll budget in microseconds.
-spec input(socket:socket(), Spin :: non_neg_integer()) -> input().
input(Socket, Spin) ->
    %% Once: all that fits, and not all that the peer sends meanwhile as well.
    _ = socket:setopt(Socket, {otp, rcvbuf}, {1, ?READ}),
    #input{socket = Socket, spin = erlang:convert_time_unit(Spin, microsecond, native)}.

%% What comes is handled at once, however many processes of a busy node want to run; those have their turns
%% while a wait is spent polling, and after long pieces (passed_on/2).
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
    IsShort = erlang:monotonic_time() - Since < ?HOPE * Spin,
    receive_now(Input#input{handle = undefined, is_short = IsShort});
read({'$socket', Socket, abort, {Handle, Reason}}, #input{socket = Socket, handle = Handle}) ->
    {ended, reason(Reason)};
read(_, _) ->
    ignored.

%% Waking up a sleeping processor takes tens of microseconds, and so does waking up a thread that has to
%% be told that a socket is ready. A wait that is likely to be short begins with polling; in between,
%% other processes of the node run.
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
passed_on(Count, Input) when Count < ?LONG ->
    Input;
passed_on(_, Input) ->
    %% The receiver of a long message takes it while the processor has it at hand, and before there is
    %% much more. The VM counts a read as little work, whatever its length, and would let this process
    %% go on.
    Input#input{is_short = false, turn = uds_dist_turn:give(Input#input.turn)}.
