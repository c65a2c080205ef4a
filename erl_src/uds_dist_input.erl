%% The input handler: one process per connection, which handles all of its input.
%%
%% During the handshake it gives dist_util one packet at a time. After the handshake, it splits the bytes into
%% frames and gives them to the VM, beginning with bytes that arrived before the VM was ready. Everything that
%% the peer sent reaches the VM before the end of the connection does. The bytes come from the transport.
%%
%% The input handler is linked to the controller, and both end together.
-module(uds_dist_input).
-behaviour(gen_server).

-export([start/3]).
-export([recv/2]).
%% For the controller.
-export([established/3, output_failed/2]).
%% For the owner of the port.
-export([handed_over/3]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, code_change/3]).

-record(state, {
    owner :: pid(),
    called :: undefined | node(),
    transport = uds_dist_relay :: module(),
    input :: uds_dist_transport:input(),
    %% What the transport wants to do next: read again, or wait for a message.
    next = wait :: again | wait,
    counters :: uds_dist_counters:counters(),
    turn = uds_dist_turn:new() :: uds_dist_turn:turn(),
    phase ::
        %% Bytes that dist_util has not asked for yet, and the call that waits for a complete packet.
        {handshake, binary(), undefined | gen_server:from()}
        | {up, Controller :: pid(), erlang:dist_handle(), uds_dist_frames:buffer()},
    %% Why no more bytes will come.
    ended :: undefined | uds_dist_transport:reason(),
    %% Why the controller cannot send any more, and how many bytes are still read.
    output_failure :: undefined | {uds_dist_transport:reason(), BytesLeft :: integer()}
}).

%% Most bytes that are read after the output has failed, so that a peer which goes on sending cannot keep the
%% connection. This is far more than what a socket and this process hold of what was sent before.
-define(AFTER_FAILURE, (16 * 1048576)).

-type next() :: {noreply, #state{}} | {noreply, #state{}, 0}.

%% Starts the handler of a connection that the sidecar has opened. The caller is the owner of the port.
%% Called is the node that we are connecting to; undefined if the peer has connected to us.
-spec start(uds_dist_relay:link(), Called :: undefined | node(), uds_dist_counters:counters()) ->
    pid().
start(Link, Called, Counters) ->
    State = #state{
        owner = self(),
        called = Called,
        input = uds_dist_relay:input(Link),
        phase = {handshake, <<>>, undefined},
        counters = Counters
    },
    %% max: a message is passed on at once, however many processes of the node are runnable.
    %% off_heap: a garbage collection must not copy input that waits in the message queue.
    %% 0: binaries that have been passed on are freed while they are still in the processor's cache.
    SpawnOptions = [{priority, max}, {message_queue_data, off_heap}, {fullsweep_after, 0}],
    {ok, Pid} = gen_server:start(?MODULE, State, [{spawn_opt, SpawnOptions}]),
    Pid.

%% Receives a packet of the handshake.
-spec recv(InputHandler :: pid(), timeout()) -> {ok, [byte()]} | {error, closed | timeout}.
recv(InputHandler, Timeout) ->
    try
        gen_server:call(InputHandler, recv, Timeout)
    catch
        exit:{timeout, _} -> {error, timeout};
        exit:_ -> {error, closed}
    end.

%% Reports that the handshake is complete, and that the input handler may give frames to the VM.
-spec established(InputHandler :: pid(), Controller :: pid(), erlang:dist_handle()) -> ok.
established(InputHandler, Controller, DHandle) ->
    gen_server:cast(InputHandler, {established, Controller, DHandle}).

%% Reports that nothing more can be sent. Bytes that the peer sent before are still read.
-spec output_failed(InputHandler :: pid(), uds_dist_transport:reason()) -> ok.
output_failed(InputHandler, Reason) ->
    gen_server:cast(InputHandler, {output_failed, Reason}).

%% Gives the input handler the connection's socket, after everything that the sidecar read from it has been
%% passed on. Spin is the busy-poll budget in microseconds.
-spec handed_over(InputHandler :: pid(), uds_dist_channel:handles(), Spin :: non_neg_integer()) -> ok.
handed_over(InputHandler, Handles, Spin) ->
    gen_server:cast(InputHandler, {handed_over, Handles, Spin}).

%% ---------------------------------------------------------------------------------------------

-spec init(#state{}) -> {ok, #state{}}.
init(State) ->
    {ok, State}.

-spec handle_call(recv, gen_server:from(), #state{}) -> next().
handle_call(recv, From, State = #state{phase = {handshake, Bytes, _}}) ->
    go_on(handshake(Bytes, From, State));
handle_call(recv, From, State) ->
    gen_server:reply(From, {error, closed}),
    go_on(State).

-spec handle_cast(term(), #state{}) -> next().
handle_cast({established, Controller, DHandle}, State = #state{phase = {handshake, Bytes, _}}) ->
    State1 = State#state{phase = {up, Controller, DHandle, uds_dist_frames:new()}},
    go_on(end_if_over(pass_on(Bytes, State1)));
handle_cast({handed_over, Handles, Spin}, State) ->
    Input = uds_dist_direct:input(Handles, Spin),
    go_on(State#state{transport = uds_dist_direct, input = Input, next = again});
handle_cast({output_failed, Reason}, State) ->
    go_on(read_rest(State#state{output_failure = {Reason, ?AFTER_FAILURE}})).

-spec handle_info(term(), #state{}) -> next().
handle_info(Message, State = #state{transport = Transport, input = Input}) ->
    case Transport:read(Message, Input) of
        {<<>>, wait, Input1} ->
            go_on(end_if_output_failed(State#state{input = Input1, next = wait}));
        {Bytes, wait, Input1} ->
            go_on(read_rest(give(Bytes, State#state{input = Input1, next = wait})));
        {Bytes, again, Input1} ->
            go_on(give(Bytes, State#state{input = Input1, next = again}));
        {ok, Input1} ->
            go_on(State#state{input = Input1});
        {ended, Reason} ->
            go_on(ended(Reason, State#state{next = wait}));
        ignored ->
            go_on(read_rest(State))
    end.

%% Whatever message came before the next read, it does not replace that.
go_on(State = #state{next = wait}) -> {noreply, State};
go_on(State = #state{next = again}) -> {noreply, State, 0}.

read_rest(State = #state{output_failure = undefined}) ->
    State;
read_rest(State = #state{transport = Transport}) ->
    case Transport:after_failed_output() of
        read_rest -> State#state{next = again};
        wait -> State
    end.

-spec code_change(term(), #state{}, term()) -> {ok, #state{}}.
code_change(_OldVersion, State, _Extra) ->
    {ok, State}.

%% ---------------------------------------------------------------------------------------------

give(<<>>, State) ->
    State;
give(Bytes, State = #state{counters = Counters}) ->
    ok = uds_dist_counters:received(byte_size(Bytes), Counters),
    count_after_failure(byte_size(Bytes), pass_on(Bytes, State)).

count_after_failure(_, State = #state{output_failure = undefined}) ->
    State;
count_after_failure(Size, State = #state{output_failure = {Reason, Left}}) when Size < Left ->
    State#state{output_failure = {Reason, Left - Size}};
count_after_failure(_, State) ->
    end_if_output_failed(State).

pass_on(_, State = #state{phase = {handshake, _, _}, ended = Ended}) when Ended =/= undefined ->
    State;
pass_on(Bytes, State = #state{phase = {handshake, Before, Waiter}}) ->
    handshake(<<Before/binary, Bytes/binary>>, Waiter, State);
pass_on(Bytes, State = #state{phase = {up, Controller, DHandle, Buffer}}) ->
    #state{transport = Transport, input = Input} = State,
    {Frames, Buffer1} = uds_dist_frames:push(Bytes, Buffer),
    ok = put_data(DHandle, Frames),
    %% The VM would not preempt this process: it counts little work for input of any length.
    State#state{
        phase = {up, Controller, DHandle, Buffer1},
        input = Transport:passed_on(byte_size(Bytes), Input),
        turn = uds_dist_turn:after_input(length(Frames), byte_size(Bytes), State#state.turn)
    }.

%% Answers the waiting call when a packet is complete or cannot become so. Nothing is acknowledged yet: the
%% sidecar forwards no more than the handshake window of a peer that has not proved that it knows the
%% cookie.
handshake(Bytes, undefined, State) ->
    State#state{phase = {handshake, Bytes, undefined}};
handshake(Bytes, Waiter, State = #state{ended = Ended}) ->
    case uds_dist_frames:handshake_frame(Bytes) of
        {ok, Packet, Rest} ->
            case uds_dist_reflection:is_ours(Packet) of
                false ->
                    ok = look_at_name(Packet, State),
                    gen_server:reply(Waiter, {ok, binary_to_list(Packet)}),
                    State#state{phase = {handshake, binary:copy(Rest), undefined}};
                true ->
                    ok = uds_dist_log:reflected(),
                    refuse(Waiter, State)
            end;
        more when Ended =:= undefined ->
            State#state{phase = {handshake, Bytes, Waiter}};
        more ->
            refuse(Waiter, State);
        {error, {too_long, Length}} ->
            ok = too_long(Length, State),
            refuse(Waiter, State)
    end.

too_long(Length, #state{called = undefined}) ->
    uds_dist_log:too_long(Length);
too_long(Length, #state{owner = Owner, called = Called}) ->
    uds_dist_owner:not_a_node(Owner, Called, Length).

%% The challenge holds the name of the node that answers, in Latin-1. If that is not the node that was called,
%% dist_util ends the handshake without a message to anyone.
look_at_name(<<$N, _Flags:64, _Challenge:32, _Creation:32, Size:16, Latin1:Size/binary>>, State) ->
    #state{owner = Owner, called = Called} = State,
    Name = unicode:characters_to_binary(Latin1, latin1),
    case Called =:= undefined orelse atom_to_binary(Called, utf8) =:= Name of
        true -> ok;
        false -> uds_dist_owner:another_node(Owner, Called, Name)
    end;
look_at_name(_, _) ->
    ok.

%% Makes dist_util end the handshake, and ignores all further packets.
refuse(Waiter, State) ->
    gen_server:reply(Waiter, {error, closed}),
    State#state{phase = {handshake, <<>>, undefined}, ended = connection_closed}.

%% Gives the VM frames of the other node.
put_data(DHandle, Frames) ->
    try
        lists:foreach(fun(Frame) -> erlang:dist_ctrl_put_data(DHandle, Frame) end, Frames)
    catch
        %% The VM has ended the connection, and this process is no longer its input handler. The exit of the
        %% controller will end it.
        error:notsup -> ok
    end.

%% Handles the end of the input. The VM has got the last byte of the peer, or dist_util gets it when it asks.
ended(Reason, State = #state{phase = {handshake, Bytes, Waiter}}) ->
    handshake(Bytes, Waiter, State#state{ended = Reason});
ended(Reason, State) ->
    end_if_over(State#state{ended = Reason}).

end_if_over(State = #state{ended = undefined}) ->
    State;
end_if_over(State = #state{phase = {up, Controller, _, _}, ended = Ended, output_failure = Failure}) ->
    Reason =
        case {Ended, Failure} of
            {connection_closed, {{connection_failed, _} = Failed, _}} -> Failed;
            _ -> Ended
        end,
    ok = uds_dist_connection:stop(Controller, Reason),
    State.

%% After the output has failed, the connection ends as soon as the peer's input is exhausted.
end_if_output_failed(State = #state{output_failure = undefined}) -> State;
end_if_output_failed(State = #state{output_failure = {Reason, _}}) -> ended(Reason, State).
