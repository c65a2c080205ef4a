%% The distribution controller: one process per connection, which does all of its output.
%%
%% It sends the packets of the handshake, and after that the VM's distribution data and ticks. The transport
%% moves the bytes to the peer: during the handshake it is the relay through the sidecar, and after the
%% handshake the owner of the port tells the controller which transport to use.
%%
%% The controller is linked to the connection's supervisor, which is the process of dist_util that
%% setup/5 or accept_connection/5 returned, and to the input handler. All three end together, and the
%% owner, which monitors the controller, then makes the sidecar close the connection.
-module(uds_dist_controller).
-behaviour(gen_server).

-export([start/2, supervise/2]).
%% Called by the supervisor, as the funs of its #hs_data{}.
-export([send/2, recv/3, established/3, tick/1]).
%% Called by the owner of the port, uds_dist_port, after the handshake.
-export([relayed/1, handed_over/2]).
-export([init/1, handle_continue/2, handle_call/3, handle_cast/2, handle_info/2, code_change/3]).

-type connection() :: uds_dist_connection:connection().
-type batch() :: {Size :: pos_integer(), iodata()}.

-record(state, {
    conn :: uds_dist_protocol:conn(),
    owner :: pid(),
    input_handler :: pid(),
    %% Ends an accepted connection that gets no supervisor.
    timer :: undefined | reference(),
    %% The caller that waits until its handshake packet is sent.
    sender :: undefined | gen_server:from(),
    phase = handshake ::
        handshake
        %% The handshake is complete, and nothing may be sent until the transport is known.
        | awaiting_transport
        | up
        %% Nothing more can be sent. The input handler ends the connection after the last byte of the peer.
        | broken,
    transport = uds_dist_relay :: module(),
    output :: uds_dist_transport:output(),
    counters :: uds_dist_counters:counters(),
    %% Undefined until f_handshake_complete.
    dhandle :: undefined | erlang:dist_handle(),
    %% Batches that were taken from the VM's queue and wait until the output has room, and their size in bytes.
    waiting = queue:new() :: queue:queue(batch()),
    held = 0 :: non_neg_integer(),
    %% Whether the VM will send `dist_data` when there is something to send.
    notified = false :: boolean(),
    %% Size in bytes of the VM's queue for the connection at which senders are suspended (+zdbbl), or that of
    %% a batch if that is more.
    busy_limit :: pos_integer(),
    %% Bytes taken since the senders last took turns.
    taken = 0 :: non_neg_integer(),
    %% Bytes that are still taken as soon as the queue has them, so that the senders take turns.
    ahead = 0 :: integer(),
    turn = uds_dist_turn:new() :: uds_dist_turn:turn()
}).

%% Size in bytes at which a batch is written: large enough to make system calls and wake-ups cheap, and no
%% larger, since other processes wait while it is copied. A quarter of the window.
-define(BATCH, 262144).

%% Most frames in a batch. The heads that are built for them should stay in the processor's cache.
-define(FRAMES, 1024).

%% Size in bytes from which a batch takes the VM longer to copy and write than a process should run.
-define(LONG_BATCH, 65536).

%% Suspended senders take turns. The VM resumes all of them when its queue has room, in the order in which
%% they were suspended. The first one fills the queue again before the next one runs, so it stays the first,
%% and would starve the others as long as it sends as fast as it can. So after the limit of the queue was
%% taken FILLED times, this process empties the queue, and does so again each time that a sender has filled
%% it, until ROTATION times the limit has been taken: then another sender is the first. With a larger FILLED,
%% senders wait longer; what is taken ahead of the output falls out of the processor's cache, and a short
%% message waits behind it.
-define(FILLED, 16).
-define(ROTATION, 2).

%% Most bytes that are taken from the VM's queue before the output has room for them, in a node where senders
%% wait long for their next turn.
-define(AHEAD, (32 * 1048576)).

%% Longest time that net_kernel may take to hand an accepted connection to its supervisor, in milliseconds.
-define(UNSUPERVISED, 10000).

%% ---------------------------------------------------------------------------------------------
%% For the owner and the acceptor

%% Starts the controller of a connection that the sidecar has opened. The caller is the owner of the port.
-spec start(uds_dist_relay:link(), #{
    input_handler := pid(),
    supervisor := pid() | undefined,
    counters := uds_dist_counters:counters()
}) -> pid().
start(Link, #{input_handler := InputHandler, supervisor := Supervisor, counters := Counters}) ->
    State = #state{
        conn = uds_dist_relay:number(Link),
        owner = self(),
        input_handler = InputHandler,
        output = uds_dist_relay:output(Link),
        counters = Counters,
        busy_limit = max(?BATCH, erlang:system_info(dist_buf_busy_limit))
    },
    %% The heap holds little but references to binaries, and garbage must not keep these alive.
    SpawnOptions = [{priority, max}, {message_queue_data, off_heap}, {fullsweep_after, 0}],
    {ok, Pid} = gen_server:start(?MODULE, {State, Supervisor}, [{spawn_opt, SpawnOptions}]),
    Pid.

%% Links an accepted connection to its supervisor.
-spec supervise(connection(), Supervisor :: pid()) -> ok | {error, closed}.
supervise(Connection, Supervisor) ->
    call(Connection, {supervise, Supervisor}).

%% Tells the controller that the sidecar relays the connection.
-spec relayed(Controller :: pid()) -> ok.
relayed(Controller) ->
    gen_server:cast(Controller, relayed).

%% Gives the controller the connection's socket, which the sidecar has handed over.
-spec handed_over(Controller :: pid(), uds_dist_channel:handles()) -> ok.
handed_over(Controller, #{socket := Socket} = Handles) ->
    ok = uds_dist_channel:give(Handles, Controller),
    gen_server:cast(Controller, {handed_over, Socket}).

%% ---------------------------------------------------------------------------------------------
%% For dist_util

%% Sends a packet of the handshake.
-spec send(connection(), iodata()) -> ok | {error, closed}.
send(Connection, Packet) ->
    call(Connection, {send, Packet}).

%% Receives a packet of the handshake.
-spec recv(connection(), Length :: 0, timeout()) -> {ok, [byte()]} | {error, closed | timeout}.
recv(Connection, 0, Timeout) ->
    uds_dist_input:recv(uds_dist_connection:input_handler(Connection), Timeout).

%% Reports that the handshake is complete: the connection carries distribution from now on.
-spec established(connection(), node(), erlang:dist_handle()) -> ok | {error, closed}.
established(Connection, Node, DHandle) ->
    call(Connection, {established, Node, DHandle}).

%% Sends a tick, which shows the other node that this one is alive.
-spec tick(connection()) -> ok.
tick(Connection) ->
    uds_dist_connection:controller(Connection) ! tick,
    ok.

call(Connection, Request) ->
    try
        gen_server:call(uds_dist_connection:controller(Connection), Request, infinity)
    catch
        exit:_ -> {error, closed}
    end.

%% ---------------------------------------------------------------------------------------------

-spec init({#state{}, undefined | pid()}) ->
    {ok, #state{}} | {ok, #state{}, {continue, {supervise, pid()}}}.
init({State = #state{input_handler = InputHandler}, Supervisor}) ->
    link(InputHandler),
    case Supervisor of
        undefined ->
            Timer = erlang:start_timer(?UNSUPERVISED, self(), unsupervised),
            {ok, State#state{timer = Timer}};
        _ ->
            {ok, State, {continue, {supervise, Supervisor}}}
    end.

-spec handle_continue({supervise, pid()}, #state{}) -> {noreply, #state{}}.
handle_continue({supervise, Supervisor}, State) ->
    {noreply, link_supervisor(Supervisor, State)}.

-spec handle_call(term(), gen_server:from(), #state{}) ->
    {reply, ok | {error, closed}, #state{}} | {noreply, #state{}}.
handle_call({supervise, Supervisor}, _From, State) ->
    {reply, ok, link_supervisor(Supervisor, State)};
handle_call({send, Packet}, From, State = #state{phase = handshake}) ->
    ok = uds_dist_reflection:remember(Packet),
    Size = iolist_size(Packet),
    {noreply, answer_sender(write(2 + Size, [<<Size:16>>, Packet], State#state{sender = From}))};
handle_call({send, _}, _From, State) ->
    {reply, {error, closed}, State};
handle_call({established, Node, DHandle}, _From, State) ->
    #state{conn = Conn, owner = Owner, input_handler = InputHandler} = State,
    %% Only the input handler may put data, and only the controller may register the input handler.
    ok = erlang:dist_ctrl_input_handler(DHandle, InputHandler),
    ok = uds_dist_input:established(InputHandler, self(), DHandle),
    ok = uds_dist_owner:established(Owner, {Conn, self()}, Node, DHandle),
    _ = erlang:dist_ctrl_set_opt(DHandle, get_size, true),
    Phase =
        case State#state.phase of
            handshake -> awaiting_transport;
            broken -> broken
        end,
    {reply, ok, State#state{phase = Phase, dhandle = DHandle}}.

-spec handle_cast(term(), #state{}) -> {noreply, #state{}}.
handle_cast(relayed, State = #state{phase = awaiting_transport}) ->
    {noreply, work(take(State#state{phase = up}))};
handle_cast({handed_over, Socket}, State = #state{phase = awaiting_transport}) ->
    Output = uds_dist_direct:output(Socket),
    {noreply, work(take(State#state{phase = up, transport = uds_dist_direct, output = Output}))};
handle_cast(_, State = #state{phase = broken}) ->
    {noreply, State}.

-spec handle_info(term(), #state{}) -> {noreply, #state{}}.
handle_info(dist_data, State = #state{phase = up}) ->
    {noreply, work(take(State#state{notified = false}))};
handle_info(dist_data, State) ->
    {noreply, State};
handle_info(tick, State) ->
    {noreply, send_tick(State)};
handle_info({timeout, Timer, unsupervised}, State = #state{timer = Timer}) ->
    ok = uds_dist_connection:stop(self(), not_supervised),
    {noreply, State};
handle_info(Message, State = #state{transport = Transport, output = Output}) ->
    case Transport:writable(Message, Output) of
        {ok, Output1} -> {noreply, go_on(output(Output1, State))};
        {error, Reason} -> {noreply, go_on(broken(Reason, State))};
        %% For example, an acknowledgement from the sidecar for the handshake of a direct connection.
        ignored -> {noreply, State}
    end.

-spec code_change(term(), #state{}, term()) -> {ok, #state{}}.
code_change(_OldVersion, State, _Extra) ->
    {ok, State}.

go_on(State = #state{phase = up}) -> work(State);
go_on(State) -> answer_sender(State).

%% The sender is answered only when the packet is on its way: packets that the owner sends at the end of the
%% handshake must not overtake it.
answer_sender(State = #state{sender = undefined}) ->
    State;
answer_sender(State = #state{sender = Sender, phase = broken}) ->
    gen_server:reply(Sender, {error, closed}),
    State#state{sender = undefined};
answer_sender(State = #state{sender = Sender, transport = Transport, output = Output}) ->
    case Transport:is_open(Output) of
        true ->
            gen_server:reply(Sender, ok),
            State#state{sender = undefined};
        false ->
            State
    end.

%% The supervisor may have ended meanwhile, for example by disconnect_node.
link_supervisor(Supervisor, State = #state{timer = Timer}) ->
    try
        link(Supervisor)
    catch
        error:noproc -> uds_dist_connection:stop(self(), not_supervised)
    end,
    _ = Timer =/= undefined andalso erlang:cancel_timer(Timer),
    State#state{timer = undefined}.

%% ---------------------------------------------------------------------------------------------
%% Output

%% Sends as much as possible, before the controller waits for its next message.
work(State) ->
    State1 = #state{turn = Turn, held = Held, counters = Counters} = drain(State),
    ok = uds_dist_counters:held(Held, Counters),
    State1#state{turn = uds_dist_turn:rest(Turn)}.

%% Sends until the VM has nothing more, and then asks for a notification; or until the output has no room.
%% Further data stays in the VM's queue for the connection, which suspends senders when it is full
%% (busy_dist_port).
drain(State = #state{phase = broken}) ->
    State;
drain(State = #state{taken = Taken, busy_limit = Limit}) when Taken > ?FILLED * Limit ->
    %% With a very large queue, the second time would cost too much memory.
    drain(State#state{taken = 0, ahead = min(?ROTATION * Limit, max(?AHEAD, Limit))});
drain(State = #state{notified = false, ahead = Ahead, taken = Taken}) when Ahead > 0 ->
    State1 = #state{taken = Taken1} = take(State),
    drain(State1#state{ahead = Ahead - (Taken1 - Taken)});
drain(State = #state{transport = Transport, output = Output}) ->
    drain(Transport:is_open(Output), State).

drain(false, State = #state{notified = false, held = Held}) ->
    case Held < ?AHEAD andalso uds_dist_turn:is_busy() of
        true -> drain(false, take(State));
        false -> State
    end;
drain(false, State) ->
    State;
drain(true, State = #state{held = 0, notified = true}) ->
    State;
drain(true, State = #state{held = 0}) ->
    drain(take(State));
drain(true, State) ->
    drain(transmit_waiting(State)).

take(State = #state{dhandle = DHandle, waiting = Waiting, held = Held, taken = Taken}) ->
    case collect(DHandle, ?FRAMES, 0, []) of
        {0, []} ->
            erlang:dist_ctrl_get_data_notification(DHandle),
            State#state{notified = true};
        {Size, _} = Batch ->
            State#state{waiting = queue:in(Batch, Waiting), held = Held + Size, taken = Taken + Size}
    end.

%% Takes frames from the VM's queue, each with its length, in the order they were sent.
collect(_DHandle, Left, Size, Frames) when Left =:= 0; Size >= ?BATCH ->
    {Size, lists:reverse(Frames)};
collect(DHandle, Left, Size, Frames) ->
    case erlang:dist_ctrl_get_data(DHandle) of
        none ->
            {Size, lists:reverse(Frames)};
        {FrameSize, Frame} ->
            Frames1 = [[<<FrameSize:32>> | Frame] | Frames],
            collect(DHandle, Left - 1, Size + 4 + FrameSize, Frames1)
    end.

%% Sends the first batch, or as much of it as the output takes.
transmit_waiting(State = #state{transport = Transport, output = Output, held = Held}) ->
    {{value, {Size, Data}}, Waiting} = queue:out(State#state.waiting),
    case Transport:available(Output) of
        %% This holds for `infinity` too: an atom is greater than any number.
        Available when Size =< Available ->
            transmit(Size, Data, State#state{waiting = Waiting, held = Held - Size});
        Available ->
            {Now, Rest} = split(Available, erlang:iolist_to_iovec(Data), []),
            Waiting1 = queue:in_r({Size - Available, Rest}, Waiting),
            transmit(Available, Now, State#state{waiting = Waiting1, held = Held - Available})
    end.

split(0, Rest, Now) ->
    {lists:reverse(Now), Rest};
split(Count, [Piece | Pieces], Now) when byte_size(Piece) =< Count ->
    split(Count - byte_size(Piece), Pieces, [Piece | Now]);
split(Count, [Piece | Pieces], Now) ->
    <<Head:Count/binary, Tail/binary>> = Piece,
    {lists:reverse(Now, [Head]), [Tail | Pieces]}.

%% No tick is needed while bytes are waiting here or behind the output, because they also show the other node
%% that this one is alive. Between two parts of a frame, a tick would be taken for a part of it.
send_tick(State = #state{phase = up, held = 0, transport = Transport, output = Output}) ->
    case Transport:available(Output) >= 4 of
        true -> write(4, <<0:32>>, State);
        false -> State
    end;
send_tick(State) ->
    State.

%% A short batch is written at once. Before a long one, other processes may get a turn: the VM counts few
%% reductions for a write of any length, and would not preempt this process. While senders take turns, the one
%% that was resumed first would use that to fill the queue.
transmit(Size, Data, State = #state{ahead = Ahead}) when Size < ?LONG_BATCH; Ahead > 0 ->
    write(Size, Data, State);
transmit(Size, Data, State = #state{turn = Turn}) ->
    write(Size, Data, State#state{turn = uds_dist_turn:before_output(Turn)}).

write(Size, Data, State = #state{transport = Transport, output = Output, counters = Counters}) ->
    case Transport:write(Size, Data, Output) of
        {ok, Output1} ->
            ok = uds_dist_counters:sent(Size, Counters),
            output(Output1, State);
        {error, Reason} ->
            broken(Reason, State)
    end.

output(Output, State = #state{transport = Transport, counters = Counters}) ->
    ok = uds_dist_counters:unacknowledged(Transport:unacknowledged(Output), Counters),
    State#state{output = Output}.

%% The input handler ends the connection when it has read what the peer sent before the failure.
broken(Reason, State = #state{input_handler = InputHandler}) ->
    ok = uds_dist_input:output_failed(InputHandler, Reason),
    State#state{phase = broken, waiting = queue:new(), held = 0}.
