%% The distribution controller: one process per connection.
%%
%% It sends: handshake packets, then what the VM has for the other node, and ticks.
%%
%% The handshake goes by way of the sidecar, and what comes in then through the owner of its port
%% (uds_dist_sidecar). After it the controller gets the connection's socket, writes into it, and
%% starts an input handler that reads it (uds_dist_input). If the sidecar keeps the socket, all goes
%% on as in the handshake, and the owner is the input handler.
%%
%% The controller is linked to the connection's supervisor, the process of dist_util that setup/5 or
%% accept_connection/5 returned, and monitored by the owner: whichever ends, all of it ends.
-module(uds_dist_connection).

-export([start/4, supervise/2, pid/1]).
%% Called by the supervisor, as the funs of its #hs_data{}.
-export([send/2, recv/3, established/3, tick/1]).
%% Called by the owner.
-export([acknowledged/2, handed_over/4, kept/1]).
-export([init/2]).

-export_type([connection/0]).

%% What dist_util carries around as the "socket".
-opaque connection() :: {uds_dist_protocol:conn(), Controller :: pid()}.

-type batch() :: {Size :: pos_integer(), iodata()}.

-record(state, {
    conn :: uds_dist_protocol:conn(),
    owner :: pid(),
    output :: uds_dist_output:output(),
    %% From f_handshake_complete on.
    dhandle :: undefined | erlang:dist_handle(),
    %% What was taken from the VM and waits for the output to open. It goes first.
    waiting = [] :: [batch()],
    %% Whether the VM will say `dist_data` when it has something to send.
    notified = false :: boolean(),
    %% Bytes in the VM's queue for the connection that make senders wait (+zdbbl).
    busy_limit :: pos_integer(),
    %% Bytes that were taken since the queue was last emptied.
    taken = 0 :: non_neg_integer()
}).

%% Bytes to collect for one write: enough to make system calls and wake-ups cheap, and no more, since
%% others wait while they are copied. A quarter of the window.
-define(BATCH, 262144).

%% Frames to collect at most: what is kept of each until then should stay in the processor's cache.
-define(FRAMES, 1024).

%% Bytes of a batch that takes the VM longer, to copy and to write, than a process should run.
-define(LONG, 65536).

%% How often senders may fill the queue until it is emptied for those who wait. Less often they wait
%% longer; more often, what was taken falls out of the processor's cache.
-define(FILLED, 8).

%% Milliseconds that net_kernel may take to hand an accepted connection to its supervisor.
-define(UNSUPERVISED, 10000).

%% Starts the controller of a connection that the sidecar has opened.
-spec start(uds_dist_protocol:conn(), port(), Window :: pos_integer(), Supervisor) ->
    {connection(), reference()}
when
    Supervisor :: pid() | undefined.
start(Conn, Port, Window, Supervisor) ->
    %% Little lives on the heap but references to binaries, which old ones must not keep alive.
    Options = [
        monitor, {priority, max}, {message_queue_data, off_heap}, {fullsweep_after, 0}
    ],
    State = #state{
        conn = Conn,
        owner = self(),
        output = uds_dist_output:relay(Port, Conn, Window),
        busy_limit = erlang:system_info(dist_buf_busy_limit)
    },
    {Pid, Monitor} = spawn_opt(?MODULE, init, [State, Supervisor], Options),
    {{Conn, Pid}, Monitor}.

%% Links an accepted connection to its supervisor.
-spec supervise(connection(), Supervisor :: pid()) -> ok.
supervise(Connection, Supervisor) ->
    call(Connection, {supervise, Supervisor}).

-spec pid(connection()) -> pid().
pid({_Conn, Pid}) ->
    Pid.

%% Sends a packet of the handshake.
-spec send(connection(), iodata()) -> ok | {error, closed}.
send(Connection, Packet) ->
    call(Connection, {send, Packet}).

%% Receives a packet of the handshake.
-spec recv(connection(), Length :: 0, timeout()) -> {ok, [byte()]} | {error, closed | timeout}.
recv({Conn, _Pid}, 0, Timeout) ->
    uds_dist_sidecar:recv(Conn, Timeout).

%% The handshake is through: the connection carries distribution from here on.
-spec established(connection(), node(), erlang:dist_handle()) -> ok.
established(Connection, Node, DHandle) ->
    call(Connection, {established, Node, DHandle}).

%% Shows the other node that this one lives.
-spec tick(connection()) -> ok.
tick({_Conn, Pid}) ->
    Pid ! tick,
    ok.

%% The sidecar has passed on Count bytes.
-spec acknowledged(connection(), non_neg_integer()) -> ok.
acknowledged({_Conn, Pid}, Count) ->
    Pid ! {acknowledged, Count},
    ok.

%% The connection's socket is this VM's now. Bytes were read from it before; Spin, in microseconds, is
%% how long a wait for more may be spent awake.
-spec handed_over(connection(), socket:socket(), Bytes, Spin) -> ok when
    Bytes :: binary(),
    Spin :: non_neg_integer().
handed_over({_Conn, Pid}, Socket, Bytes, Spin) ->
    ok = uds_dist_handover:give(Socket, Pid),
    Pid ! {handed_over, Socket, Bytes, Spin},
    ok.

%% The sidecar keeps the connection's socket.
-spec kept(connection()) -> ok.
kept({_Conn, Pid}) ->
    Pid ! kept,
    ok.

call({_Conn, Pid}, Request) ->
    Ref = monitor(process, Pid),
    Pid ! {Ref, self(), Request},
    receive
        {Ref, Reply} ->
            demonitor(Ref, [flush]),
            Reply;
        {'DOWN', Ref, process, Pid, _Reason} ->
            {error, closed}
    end.

-spec init(#state{}, Supervisor :: pid() | undefined) -> no_return().
init(State, undefined) ->
    receive
        {Ref, From, {supervise, Supervisor}} ->
            link_supervisor(Supervisor),
            From ! {Ref, ok},
            handshake(State)
    after ?UNSUPERVISED ->
        exit(not_supervised)
    end;
init(State, Supervisor) ->
    link_supervisor(Supervisor),
    handshake(State).

%% The supervisor may have been ended meanwhile, for instance by disconnect_node.
link_supervisor(Supervisor) ->
    try
        link(Supervisor)
    catch
        error:noproc -> exit(not_supervised)
    end.

handshake(State = #state{conn = Conn, owner = Owner}) ->
    receive
        {Ref, From, {send, Packet}} ->
            Size = iolist_size(Packet),
            State1 = transmit(2 + Size, [<<Size:16>>, Packet], State),
            From ! {Ref, ok},
            handshake(State1);
        {acknowledged, Count} ->
            handshake(widen(Count, State));
        {Ref, From, {established, Node, DHandle}} ->
            %% In this order: the owner may put data only once it is the input handler.
            ok = erlang:dist_ctrl_input_handler(DHandle, Owner),
            ok = uds_dist_sidecar:established(Conn, Node, DHandle),
            _ = erlang:dist_ctrl_set_opt(DHandle, get_size, true),
            From ! {Ref, ok},
            await_handover(State#state{dhandle = DHandle})
    end.

%% Nothing may be sent until it is known where to. A tick is not missed: the handshake is just over.
await_handover(State = #state{dhandle = DHandle}) ->
    receive
        {handed_over, Socket, Bytes, Spin} ->
            ok = uds_dist_input:start_link(Socket, DHandle, Bytes, Spin),
            output(drain(State#state{output = uds_dist_output:socket(Socket)}));
        kept ->
            output(drain(State));
        {acknowledged, Count} ->
            await_handover(widen(Count, State))
    end.

output(State = #state{output = Output}) ->
    receive
        dist_data ->
            output(drain(take(State#state{notified = false})));
        {'$socket', _, select, Handle} ->
            output(drain(State#state{output = uds_dist_output:writable(Handle, Output)}));
        {acknowledged, Count} ->
            output(drain(widen(Count, State)));
        tick ->
            output(send_tick(State))
    end.

%% Sends until the VM has nothing more, and then wants to be told; or until the output takes no more.
%% What does not fit stays in the VM's queue for the connection, where it makes senders wait
%% (busy_dist_port).
drain(State = #state{taken = Taken, busy_limit = Limit, output = Output}) ->
    case Taken > ?FILLED * Limit andalso uds_dist_output:is_awaited(Output) of
        true -> empty_queue(State);
        false -> drain(uds_dist_output:is_open(Output), State)
    end.

drain(false, State) ->
    State;
drain(true, State = #state{waiting = [], notified = true}) ->
    State;
drain(true, State = #state{waiting = []}) ->
    drain(take(State));
drain(true, State) ->
    drain(transmit_waiting(State)).

%% Lets everyone send who waits for that. The VM resumes them all when there is room for one frame, and
%% the first of them uses it before the next one runs: as long as it sends as fast as it can, the
%% others wait. So now and then all is taken that is there, and this process waits for the next
%% acknowledgement. The others run meanwhile; and if the first one has filled the queue before that,
%% `dist_data` lets this process, which comes before them, make room again.
empty_queue(State = #state{busy_limit = Limit}) ->
    take_batches(Limit div ?BATCH + 1, State#state{taken = 0}).

take_batches(Count, State = #state{notified = false}) when Count > 0 ->
    take_batches(Count - 1, take(State));
take_batches(_, State) ->
    State.

take(State = #state{dhandle = DHandle, waiting = Waiting, taken = Taken}) ->
    case collect(DHandle, ?FRAMES, 0, []) of
        {0, []} ->
            erlang:dist_ctrl_get_data_notification(DHandle),
            State#state{notified = true};
        {Size, _} = Batch ->
            State#state{waiting = Waiting ++ [Batch], taken = Taken + Size}
    end.

%% Frames, each with its length, in the order they were sent.
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
transmit_waiting(State = #state{waiting = [{Size, Data} | Waiting], output = Output}) ->
    case uds_dist_output:available(Output) of
        %% Of `infinity` too, which is more than any number.
        Available when Size =< Available ->
            transmit(Size, Data, State#state{waiting = Waiting});
        Available ->
            {Now, Rest} = split(Available, erlang:iolist_to_iovec(Data), []),
            transmit(Available, Now, State#state{waiting = [{Size - Available, Rest} | Waiting]})
    end.

split(0, Rest, Now) ->
    {lists:reverse(Now), Rest};
split(Count, [Piece | Pieces], Now) when byte_size(Piece) =< Count ->
    split(Count - byte_size(Piece), Pieces, [Piece | Now]);
split(Count, [Piece | Pieces], Now) ->
    <<Head:Count/binary, Tail/binary>> = Piece,
    {lists:reverse(Now, [Head]), [Tail | Pieces]}.

%% When bytes wait, here or behind the output, the other node has those to see that this one lives;
%% and between two parts of a frame a tick would be taken for a piece of it.
send_tick(State = #state{waiting = [], output = Output}) ->
    case uds_dist_output:available(Output) >= 4 of
        true -> transmit(4, <<0:32>>, State);
        false -> State
    end;
send_tick(State) ->
    State.

%% What is short goes out at once, however many processes of a busy node want to run. Before what is
%% long, one that has just got a message of another connection has its turn, and its answer goes first.
%% The VM counts a write as little work, whatever its length, and would let this process go on.
transmit(Size, Data, State) when Size < ?LONG ->
    write(Size, Data, State);
transmit(Size, Data, State) ->
    max = process_flag(priority, normal),
    true = erlang:yield(),
    State1 = write(Size, Data, State),
    normal = process_flag(priority, max),
    State1.

write(Size, Data, State = #state{output = Output}) ->
    State#state{output = uds_dist_output:write(Size, Data, Output)}.

widen(Count, State = #state{output = Output}) ->
    State#state{output = uds_dist_output:acknowledged(Count, Output)}.
