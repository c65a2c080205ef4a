%% The input handler of a connection whose socket this VM has: one process, which reads the socket
%% and gives the VM the frames.
%%
%% It is linked to the controller: whichever ends, both end.
-module(uds_dist_input).

-export([start_link/4]).
%% For uds_dist_sidecar, which is the input handler of other connections.
-export([put_data/2]).
-export([init/1]).

-record(state, {
    socket :: socket:socket(),
    dhandle :: erlang:dist_handle(),
    buffer = uds_dist_frames:new() :: uds_dist_frames:buffer(),
    %% How long a wait may be spent awake, in native time units.
    limit :: non_neg_integer(),
    %% Whether the next wait is expected to be that short.
    is_alert = false :: boolean()
}).

%% A wait that has ended so many times as late as one may be spent awake still lets hope for a shorter
%% one: much of it was waking up, here and there.
-define(HOPE, 4).

%% Bytes to read at once.
-define(READ, 131072).

%% Where pieces this long come in, throughput counts: the next one is there before it is waited for,
%% and to look for it would take time from those who send it.
-define(LONG, 16384).

%% Starts the handler for a connection of the calling process, its controller. Bytes came in before
%% the socket did. Limit, in microseconds, is how long it may stay awake in a wait.
-spec start_link(socket:socket(), erlang:dist_handle(), Bytes, Limit) -> ok when
    Bytes :: binary(),
    Limit :: non_neg_integer().
start_link(Socket, DHandle, Bytes, Limit) ->
    %% Once: all that fits, and not all that a peer sends meanwhile as well.
    ok = socket:setopt(Socket, {otp, rcvbuf}, {1, ?READ}),
    State = #state{
        socket = Socket,
        dhandle = DHandle,
        limit = erlang:convert_time_unit(Limit, microsecond, native)
    },
    %% Little lives on the heap but references to binaries, which old ones must not keep alive.
    Options = [link, {message_queue_data, off_heap}, {fullsweep_after, 0}],
    Pid = spawn_opt(?MODULE, init, [State], Options),
    %% Only the input handler may put data.
    ok = erlang:dist_ctrl_input_handler(DHandle, Pid),
    Pid ! {start, Bytes},
    ok.

-spec init(#state{}) -> no_return().
init(State) ->
    receive
        {start, Bytes} -> read(push(Bytes, State))
    end.

%% Only the first piece after a sleep goes before others: as long as there is more, they have their turn.
read(State = #state{is_alert = IsAlert}) ->
    _ = process_flag(priority, normal),
    case IsAlert of
        true -> stay_awake(erlang:monotonic_time(), State);
        false -> sleep(erlang:monotonic_time(), State)
    end.

%% A processor that has gone to sleep takes tens of microseconds to be woken up, and so does a thread
%% that has to be told that a socket is ready. So a wait that is likely to be short begins with looking
%% again and again; whoever else wants to run does so in between.
stay_awake(Start, State = #state{socket = Socket, limit = Limit}) ->
    case socket:recv(Socket, 0, [], 0) of
        {ok, Bytes} ->
            read(push(Bytes, State));
        {error, timeout} ->
            case erlang:monotonic_time() - Start < Limit of
                true ->
                    true = erlang:yield(),
                    stay_awake(Start, State);
                false ->
                    sleep(Start, State)
            end;
        {error, Reason} ->
            ended(Reason)
    end.

sleep(Start, State = #state{socket = Socket, limit = Limit}) ->
    case socket:recv(Socket, 0, [], nowait) of
        {ok, Bytes} ->
            read(push(Bytes, State));
        {select, {select_info, _, Handle}} ->
            %% What comes goes on at once, however many processes of a busy node want to run.
            _ = process_flag(priority, max),
            receive
                {'$socket', Socket, select, Handle} -> ok
            end,
            IsAlert = erlang:monotonic_time() - Start < ?HOPE * Limit,
            sleep(Start, State#state{is_alert = IsAlert});
        {error, Reason} ->
            ended(Reason)
    end.

push(Bytes, State = #state{dhandle = DHandle, buffer = Buffer}) ->
    {Frames, Buffer1} = uds_dist_frames:push(Bytes, Buffer),
    put_data(DHandle, Frames),
    rest(byte_size(Bytes), State#state{buffer = Buffer1}).

%% Gives the VM frames of the other node.
-spec put_data(erlang:dist_handle(), [iodata()]) -> ok.
put_data(DHandle, Frames) ->
    try
        lists:foreach(fun(Frame) -> erlang:dist_ctrl_put_data(DHandle, Frame) end, Frames)
    catch
        %% The VM has ended the connection, and this process is its input handler no longer; the
        %% controller's end is on its way.
        error:notsup -> ok
    end.

rest(Size, State) when Size < ?LONG ->
    State;
rest(_, State) ->
    %% Who receives it takes it while the processor has it at hand, and before there is much more. The
    %% VM counts reading as little work, whatever its length, and would let this process go on.
    _ = process_flag(priority, normal),
    true = erlang:yield(),
    State#state{is_alert = false}.

%% All that the peer has sent is read.
-spec ended(term()) -> no_return().
ended(Reason) when Reason =:= closed; Reason =:= econnreset ->
    exit(connection_closed);
ended(Reason) ->
    exit({connection_failed, Reason}).
