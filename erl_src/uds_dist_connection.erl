%% The distribution controller: one process per connection.
%%
%% It sends: handshake packets, then what the VM has for the other node, and ticks. What comes in
%% goes through the owner of the sidecar's port (uds_dist_sidecar), which reads the port anyway and
%% is the connection's input handler.
%%
%% It is linked to the connection's supervisor, the process of dist_util that setup/5 or
%% accept_connection/5 returned, and monitored by the owner: whichever ends, all of it ends.
-module(uds_dist_connection).

-export([start/4, supervise/2, pid/1]).
%% Called by the supervisor, as the funs of its #hs_data{}.
-export([send/2, recv/3, established/3, tick/1]).
%% Called by the owner.
-export([acknowledged/2]).
-export([init/2]).

-export_type([connection/0]).

%% What dist_util carries around as the "socket".
-opaque connection() :: {uds_dist_protocol:conn(), Controller :: pid()}.

-record(state, {
    conn :: uds_dist_protocol:conn(),
    port :: port(),
    owner :: pid(),
    window :: uds_dist_window:sender(),
    %% From f_handshake_complete on.
    dhandle :: undefined | erlang:dist_handle(),
    %% The last part of a batch that did not fit the window; it goes first.
    rest = [] :: erlang:iovec(),
    %% The last batch was a long one: others have their turn before the next.
    bulk = false :: boolean(),
    %% Whether the VM will say `dist_data` when it has something to send. If not, there is
    %% something already, and it waits for the window to open.
    notified = false :: boolean()
}).

%% Bytes to collect for one port_command/2: enough to make system calls and wake-ups cheap, and no more,
%% since other connections wait while they are copied. A quarter of the window.
-define(BATCH, 262144).

%% Frames to collect at most: what is kept of each until then should stay in the processor's cache.
-define(FRAMES, 1024).

%% Bytes of a batch that takes the VM longer, to copy and to write, than a process should run.
-define(LONG, 65536).

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
        port = Port,
        owner = self(),
        window = uds_dist_window:sender(Window)
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
            output(drain(State#state{dhandle = DHandle}))
    end.

output(State = #state{}) ->
    receive
        dist_data ->
            output(drain(State#state{notified = false}));
        {acknowledged, Count} ->
            State1 = widen(Count, State),
            case State1#state.notified of
                true -> output(State1);
                false -> output(drain(State1))
            end;
        tick ->
            output(send_tick(State))
    end.

%% Sends until the VM has nothing more, and then wants to be told; or until the window is used up.
%% What does not fit stays in the VM's queue for the connection, where it makes senders wait
%% (busy_dist_port).
drain(State = #state{rest = Rest, window = Window, dhandle = DHandle}) ->
    case uds_dist_window:is_open(Window) of
        false ->
            State;
        true when Rest =/= [] ->
            drain(transmit_part(Rest, State#state{rest = []}));
        true ->
            ok = let_others_run(State),
            case collect(DHandle, ?FRAMES, 0, []) of
                {0, []} ->
                    erlang:dist_ctrl_get_data_notification(DHandle),
                    State#state{notified = true};
                {Size, Batch} ->
                    drain(transmit_batch(Size, Batch, State))
            end
    end.

%% Before another long batch, a process that has just got a message of another connection has its
%% turn, and its answer goes first. The VM counts port_command/2 as little work, whatever its length,
%% and would let this process go on.
let_others_run(#state{bulk = Bulk}) ->
    _ = Bulk andalso erlang:yield(),
    ok.

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

transmit_batch(Size, Batch, State = #state{window = Window}) ->
    case Size =< uds_dist_window:available(Window) of
        true -> transmit(Size, Batch, State);
        false -> transmit_part(Batch, State)
    end.

%% Sends as much as the window takes and keeps the rest.
transmit_part(Data, State = #state{window = Window}) ->
    {Now, Rest} = split(uds_dist_window:available(Window), erlang:iolist_to_iovec(Data), []),
    transmit(iolist_size(Now), Now, State#state{rest = Rest}).

split(_, [], Now) ->
    {lists:reverse(Now), []};
split(0, Rest, Now) ->
    {lists:reverse(Now), Rest};
split(Count, [Piece | Pieces], Now) when byte_size(Piece) =< Count ->
    split(Count - byte_size(Piece), Pieces, [Piece | Now]);
split(Count, [Piece | Pieces], Now) ->
    <<Head:Count/binary, Tail/binary>> = Piece,
    {lists:reverse(Now, [Head]), [Tail | Pieces]}.

%% When bytes wait, here or at the sidecar, the other node has those to see that this one lives;
%% and between two parts of a frame a tick would be taken for a piece of it.
send_tick(State = #state{rest = [], window = Window}) ->
    case uds_dist_window:available(Window) >= 4 of
        true -> transmit(4, <<0:32>>, State);
        false -> State
    end;
send_tick(State) ->
    State.

transmit(Size, Data, State = #state{conn = Conn, port = Port, window = Window}) ->
    try port_command(Port, [uds_dist_protocol:data_head(Conn) | Data]) of
        true -> take_turns(Size >= ?LONG, State#state{window = uds_dist_window:sent(Size, Window)})
    catch
        %% The sidecar has gone; its owner says so in the log.
        error:badarg -> exit(connection_closed)
    end.

%% What is short goes out at once, however many processes of a busy node want to run; what is long
%% takes turns with them.
take_turns(Bulk, State = #state{bulk = Bulk}) ->
    State;
take_turns(true, State) ->
    max = process_flag(priority, normal),
    State#state{bulk = true};
take_turns(false, State) ->
    normal = process_flag(priority, max),
    State#state{bulk = false}.

widen(Count, State = #state{window = Window}) ->
    State#state{window = uds_dist_window:acknowledged(Count, Window)}.
