%% The owner of the sidecar's port: it starts the sidecar, speaks the port protocol with it, and
%% keeps what belongs to it: listeners, and connections until the sidecar hands over their sockets.
%% Of those that it does not hand over, it is the input handler, since all input comes through its port.
%%
%% net_sup ends all of distribution, and with it the VM, when this process exits. So it never does:
%% what goes wrong here is a reply, a log line, and another try. A sidecar that dies takes the
%% connections along that it has; another one is started, and listens again where the first one did.
-module(uds_dist_sidecar).
-behaviour(gen_server).

-export([start_link/0]).
%% For uds_dist and uds_dist_acceptor.
-export([listen/1, close_listener/1, accept/1, connect/2]).
%% For uds_dist_app.
-export([configure/0]).
%% For uds_dist_connection.
-export([recv/2, established/3]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).

-export_type([handle/0]).

-include_lib("kernel/include/logger.hrl").

-define(SERVER, ?MODULE).

%% Milliseconds. net_kernel waits for listen/1 and close_listener/1 and must not wait for ever.
-define(LISTEN_TIMEOUT, 10000).
-define(CLOSE_TIMEOUT, 2000).
%% From the start of a sidecar to its HELLO. It takes about two; a loaded machine is patient.
-define(HELLO_TIMEOUT, 5000).
%% A name whose owner is just going away is asked for again, this long and this often.
-define(BUSY_TIMEOUT, 1000).
-define(BUSY_RETRY, 20).
%% A full backlog is emptied within a millisecond or so, unless the peer is stuck.
-define(BACKLOG_RETRY, 20).
%% Between the starts of a sidecar that keeps dying: none before the first, then doubling. One that
%% cannot even start (its binary is gone, or of another version) is not worth many tries.
-define(FIRST_BACKOFF, 25).
-define(MAX_BACKOFF_DIED, 500).
-define(MAX_BACKOFF_NOT_STARTED, 10000).
%% A sidecar that has lived this long was a good one.
-define(GOOD_LIFE, 10000).
%% A name that somebody took while our sidecar was down is asked for again this often.
-define(REOPEN_RETRY, 1000).
%% The same unreachable node is logged once in this time.
-define(UNREACHABLE_LOG_INTERVAL, 60000).
-define(MAX_UNREACHABLE, 1000).

-define(MAX_CONN, 16#3FFFFFFF).

%% A node that has run out of file descriptors cannot load modules, and must not fail for want of one.
-define(NEEDED, [
    uds_dist_connection,
    uds_dist_frames,
    uds_dist_handover,
    uds_dist_input,
    uds_dist_log,
    uds_dist_output,
    uds_dist_protocol,
    uds_dist_window
]).

%% What net_kernel and the acceptor know a listener by. The port protocol numbers sockets, and a
%% listener that moves has two of them for a moment.
-type handle() :: reference().

-record(listener, {
    handle :: handle(),
    name :: atom(),
    %% Of a listener that is put off: until there is a configuration.
    place :: undefined | place(),
    status ::
        {opening, Purpose :: opening(), GiveUp :: integer()}
        %% It was open, and the sidecar died or lost the name to somebody.
        | reopening
        | open
        | put_off,
    acceptor :: undefined | pid(),
    %% Connections that came in before the acceptor was there, last one first.
    unclaimed = [] :: [uds_dist_connection:connection()]
}).

%% What of the configuration decides where and how a node listens.
-type place() :: {uds_dist_protocol:address(), Backlog :: pos_integer(), Mode :: non_neg_integer()}.
-type opening() ::
    {listen, gen_server:from()}
    %% In place of the socket with this number; if that fails, these settings are in force again.
    | {move, gen_server:from() | boot, uds_dist_protocol:listener(), Before :: config()}.
-type config() :: undefined | uds_dist_config:config().

%% A connect/2 that waits for the sidecar, or for its next try.
-record(connect, {
    from :: gen_server:from(),
    node :: node(),
    address :: uds_dist_protocol:address(),
    give_up :: integer()
}).

-record(conn, {
    connection :: undefined | uds_dist_connection:connection(),
    monitor :: undefined | reference(),
    peer :: uds_dist_protocol:peer(),
    %% The node we called, if we made it.
    called :: undefined | node(),
    %% Something came in.
    heard = false :: boolean(),
    %% Bytes that came in, and who waits for a frame of them, until the handshake is through.
    stage ::
        undefined
        %% The socket has ended, and this is what dist_util has not asked for yet.
        | {ended, binary()}
        | {handshake, binary(), undefined | gen_server:from()}
        %% It is through, and the sidecar has been asked for the socket.
        | {handing_over, node(), erlang:dist_handle(), binary()}
        %% The sidecar keeps it.
        | {up, node(), erlang:dist_handle(), uds_dist_frames:buffer(), uds_dist_window:receiver()}
}).

-record(state, {
    %% `starting` until HELLO; `resting` between a failure and the next start.
    sidecar = down :: down | starting | up | resting,
    port :: undefined | port(),
    %% Where its sockets come through, if it can hand them over. The VM connects to it when the first
    %% connection is to be `direct`, so that a node that never asks for one has no such descriptor.
    channel :: undefined | {offered, uds_dist_protocol:address()} | uds_dist_handover:channel(),
    timer :: undefined | reference(),
    started = 0 :: integer(),
    failures = 0 :: non_neg_integer(),
    window = 0 :: non_neg_integer(),
    %% Packets that wait for HELLO, last one first.
    queue = [] :: [iodata()],
    %% In force. Chosen when the first listener was opened and kept while there is one, unless
    %% configure/0 changes them: listening and dialling must not disagree.
    config :: config(),
    %% Those of connect/2 that wait for a configuration.
    put_off = [] :: [{node(), GiveUp :: integer(), gen_server:from()}],
    listeners = #{} :: #{uds_dist_protocol:listener() => #listener{}},
    closing = #{} :: #{uds_dist_protocol:listener() => undefined | boot | gen_server:from()},
    connecting = #{} :: #{uds_dist_protocol:conn() => #connect{}},
    conns = #{} :: #{uds_dist_protocol:conn() => #conn{}},
    monitors = #{} :: #{reference() => uds_dist_protocol:conn()},
    %% Connections that the sidecar has no more, by the monitor of their controller.
    handed_over = #{} :: #{reference() => node()},
    last_conn = -1 :: integer(),
    unreachable = #{} :: #{node() => LoggedAt :: integer()}
}).

-spec start_link() -> {ok, pid()} | {error, term()}.
start_link() ->
    %% max: everything that comes in passes here, and a node may have many processes that want to run.
    %% off_heap: bulk input waits here as messages, and must not be copied by each collection.
    %% 0: binaries that have been passed on are freed while the processor still has them at hand.
    SpawnOptions = [{priority, max}, {message_queue_data, off_heap}, {fullsweep_after, 0}],
    Options = [{spawn_opt, SpawnOptions}],
    gen_server:start_link({local, ?SERVER}, ?MODULE, [], Options).

%% Owns the node's name and listens under it. While the configuration is still to be made, that is
%% put off until configure/0, and there is no address yet.
-spec listen(Name :: atom()) ->
    {ok, handle(), undefined | uds_dist_protocol:address()} | {error, Reason :: atom()}.
listen(Name) ->
    try
        gen_server:call(?SERVER, {listen, Name}, ?LISTEN_TIMEOUT)
    catch
        exit:{timeout, _} ->
            uds_dist_log:error("cannot listen as ~ts: the sidecar does not answer", [Name]),
            {error, timeout}
    end.

%% Gives the name up. When it returns, the socket file is gone, unless the sidecar is stuck.
-spec close_listener(handle()) -> ok.
close_listener(Handle) ->
    try
        gen_server:call(?SERVER, {close_listener, Handle}, ?CLOSE_TIMEOUT)
    catch
        exit:Reason ->
            ?LOG_WARNING("uds_dist: the sidecar did not confirm that it stopped listening: ~0tp", [
                Reason
            ]),
            ok
    end.

%% The caller is told {accepted, Connection} from now on.
-spec accept(handle()) -> ok.
accept(Handle) ->
    gen_server:cast(?SERVER, {accept, Handle, self()}).

%% The application environment is complete: reads it again. A listener whose place is another now
%% moves there; connections stay. An error has been explained in the log, and changes nothing.
-spec configure() -> ok | {error, Reason :: atom()}.
configure() ->
    try
        gen_server:call(?SERVER, configure, ?LISTEN_TIMEOUT)
    catch
        %% This VM is not distributed.
        exit:{noproc, _} ->
            ok;
        exit:{timeout, _} ->
            uds_dist_log:error("cannot change the configuration: the sidecar does not answer", []),
            {error, timeout}
    end.

%% Connects to a node. The caller becomes the connection's supervisor. A node whose backlog is full
%% is tried again until GiveUp, in monotonic milliseconds.
-spec connect(node(), GiveUp :: integer()) ->
    {ok, uds_dist_connection:connection(), uds_dist_protocol:address()} | {error, Reason :: atom()}.
connect(Node, GiveUp) ->
    gen_server:call(?SERVER, {connect, Node, GiveUp}, infinity).

%% Receives a frame of the handshake.
-spec recv(uds_dist_protocol:conn(), timeout()) -> {ok, [byte()]} | {error, closed | timeout}.
recv(Conn, Timeout) ->
    try
        gen_server:call(?SERVER, {recv, Conn}, Timeout)
    catch
        exit:{timeout, _} -> {error, timeout}
    end.

%% The handshake is through and the owner is the input handler. The caller is the connection's
%% controller, and is told whether its socket is handed over or kept by the sidecar.
-spec established(uds_dist_protocol:conn(), node(), erlang:dist_handle()) -> ok.
established(Conn, Node, DHandle) ->
    gen_server:cast(?SERVER, {established, Conn, self(), Node, DHandle}).

%% ---------------------------------------------------------------------------------------------

-spec init([]) -> {ok, #state{}}.
init([]) ->
    process_flag(trap_exit, true),
    lists:foreach(fun code:ensure_loaded/1, ?NEEDED),
    {ok, #state{}}.

-spec handle_call(term(), gen_server:from(), #state{}) ->
    {reply, term(), #state{}} | {noreply, #state{}}.
handle_call(Request, From, State) ->
    survive(fun() -> call(Request, From, State) end, State).

-spec handle_cast(term(), #state{}) -> {noreply, #state{}}.
handle_cast(Request, State) ->
    survive(fun() -> cast(Request, State) end, State).

-spec handle_info(term(), #state{}) -> {noreply, #state{}}.
handle_info(Message, State) ->
    survive(fun() -> {noreply, info(Message, State)} end, State).

-spec terminate(term(), #state{}) -> ok.
terminate(_Reason, #state{port = Port}) ->
    %% The sidecar sees the end of its stdin and removes the socket.
    uds_dist_program:close(Port).

%% A mistake in this module should cost the connections, as the loss of a sidecar does, and not the
%% VM. Who waits for a reply gets one, or finds the time limit of the handshake.
survive(Callback, State) ->
    try
        Callback()
    catch
        Class:Reason:Stack ->
            uds_dist_log:error("internal error ~0tp:~0tp in ~0tp", [Class, Reason, Stack]),
            {noreply, sidecar_ended("it is replaced after an error of this node", State)}
    end.

%% ---------------------------------------------------------------------------------------------
%% What others ask for

call({listen, Name}, From, State) ->
    Handle = make_ref(),
    case settings(State) of
        put_off ->
            {reply, {ok, Handle, undefined}, put_off(Handle, Name, State)};
        {ok, Config} ->
            case place(Name, Config) of
                {ok, Place} ->
                    Listener = #listener{
                        handle = Handle,
                        name = Name,
                        place = Place,
                        status = {opening, {listen, From}, now_ms() + ?BUSY_TIMEOUT}
                    },
                    {noreply, open_listener(free_listener(State), Listener, use(Config, State))};
                {error, Explanation} ->
                    {reply, cannot_listen(Name, bad_configuration, Explanation), State}
            end;
        {error, Explanation} ->
            {reply, cannot_listen(Name, bad_configuration, Explanation), State}
    end;
call({close_listener, Handle}, From, State) ->
    close_sockets(sockets(Handle, State), From, State);
call(configure, From, State) ->
    configure(From, State);
call({connect, Node, GiveUp}, From, State) ->
    {noreply, connect(Node, GiveUp, From, State)};
call({recv, Id}, From, State = #state{conns = Conns}) ->
    case Conns of
        #{Id := #conn{stage = {handshake, Bytes, undefined}} = Conn} ->
            {noreply, handshake_input(Id, Conn, Bytes, From, State)};
        #{Id := #conn{stage = {ended, Bytes}} = Conn} ->
            case uds_dist_frames:handshake_frame(Bytes) of
                {ok, Frame, Rest} ->
                    Conn1 = Conn#conn{stage = {ended, Rest}},
                    {reply, {ok, binary_to_list(Frame)}, State#state{conns = Conns#{Id := Conn1}}};
                _ ->
                    {reply, {error, closed}, State}
            end;
        #{} ->
            {reply, {error, closed}, State}
    end.

cast({accept, Handle, Acceptor}, State) ->
    Claim = fun
        (_, #listener{handle = H, unclaimed = Unclaimed} = Listener) when H =:= Handle ->
            lists:foreach(
                fun(Connection) -> Acceptor ! {accepted, Connection} end,
                lists:reverse(Unclaimed)
            ),
            Listener#listener{acceptor = Acceptor, unclaimed = []};
        (_, Listener) ->
            Listener
    end,
    {noreply, State#state{listeners = maps:map(Claim, State#state.listeners)}};
cast({established, Id, Controller, Node, DHandle}, State) ->
    #state{conns = Conns} = State,
    case Conns of
        #{Id := #conn{stage = {handshake, Bytes, undefined}} = Conn} ->
            log_accepted(Node, Conn),
            State1 = open_channel(
                State#state{unreachable = maps:remove(Node, State#state.unreachable)}
            ),
            case transport(State1) of
                relay ->
                    State2 = transmit(uds_dist_protocol:established(Id, Node), State1),
                    {noreply, kept(Id, Conn, Node, DHandle, Bytes, State2)};
                direct ->
                    Conn1 = Conn#conn{stage = {handing_over, Node, DHandle, Bytes}},
                    State2 = State1#state{conns = Conns#{Id := Conn1}},
                    {noreply, transmit(uds_dist_protocol:hand_over(Id, Node), State2)}
            end;
        #{} ->
            %% It ended just before the handshake did.
            exit(Controller, connection_closed),
            {noreply, State}
    end.

info({Port, {data, Packet}}, State = #state{port = Port}) ->
    report(uds_dist_protocol:decode(Packet), State);
info({Port, {exit_status, Status}}, State = #state{port = Port}) ->
    sidecar_ended(uds_dist_program:exit_status(Status), State);
info({'EXIT', Port, Reason}, State = #state{port = Port}) ->
    sidecar_ended(io_lib:format("its port was closed (~0tp)", [Reason]), State);
info({'DOWN', Monitor, process, _, Reason}, State = #state{monitors = Monitors}) ->
    case {Monitors, State#state.handed_over} of
        {#{Monitor := Id}, _} ->
            controller_ended(Id, Reason, State);
        {_, #{Monitor := Node} = HandedOver} ->
            log_end(Node, end_of_controller(Reason)),
            State#state{handed_over = maps:remove(Monitor, HandedOver)};
        _ ->
            State
    end;
info({timeout, Timer, Event}, State = #state{timer = Timer}) ->
    timeout(Event, State#state{timer = undefined});
info({init, started}, State) ->
    boot_is_over(State);
info({timeout, _, {reopen, Id}}, State = #state{listeners = Listeners}) ->
    case Listeners of
        #{Id := #listener{status = Status}} when Status =:= open; Status =:= put_off -> State;
        #{Id := Listener} -> open_listener(Id, Listener, State);
        #{} -> State
    end;
info({timeout, _, {reconnect, Connect}}, State) ->
    start_connect(Connect, State);
info(_, State) ->
    %% Left over from a sidecar that is gone.
    State.

%% ---------------------------------------------------------------------------------------------
%% What the sidecar reports

report(Report, State = #state{sidecar = starting}) when element(1, Report) =/= hello ->
    broke_protocol(Report, State);
report({data, Id, Bytes}, State = #state{conns = Conns}) ->
    case Conns of
        #{Id := #conn{stage = {handshake, Before, Waiter}} = Conn} ->
            Conn1 = Conn#conn{heard = true},
            handshake_input(Id, Conn1, <<Before/binary, Bytes/binary>>, Waiter, State);
        #{Id := #conn{stage = {up, _, _, _, _}} = Conn} ->
            input(Id, Conn, Bytes, State);
        #{Id := #conn{stage = {handing_over, Node, DHandle, Before}} = Conn} ->
            Stage = {handing_over, Node, DHandle, <<Before/binary, Bytes/binary>>},
            State#state{conns = Conns#{Id := Conn#conn{stage = Stage}}};
        #{} ->
            %% It was closed while this was on its way.
            State
    end;
report({ack, Id, Count}, State = #state{conns = Conns}) ->
    case Conns of
        #{Id := #conn{connection = Connection}} ->
            uds_dist_connection:acknowledged(Connection, Count),
            State;
        #{} ->
            State
    end;
report({closed, Id, _Reason, Explanation}, State = #state{conns = Conns}) ->
    case Conns of
        #{Id := #conn{called = Node, heard = false} = Conn} when Node =/= undefined ->
            %% A peer that refuses us says nothing at all.
            Hint = " before it said anything; it may not allow this node's user (allowed_uids)",
            end_connection(Id, Conn, log_unreachable(Node, [Explanation, Hint], State));
        #{Id := #conn{heard = false} = Conn} ->
            %% Somebody looked whether this node lives, as uds_dist:names() does.
            end_connection(Id, Conn, State);
        #{Id := Conn} ->
            log_end(Conn, Explanation),
            end_connection(Id, Conn, State);
        #{} ->
            State
    end;
report({accepted, Id, ListenerId, Peer}, State = #state{listeners = Listeners}) ->
    {Connection, State1} = add_connection(Id, #conn{peer = Peer}, undefined, State),
    case Listeners of
        #{ListenerId := #listener{acceptor = undefined, unclaimed = Unclaimed} = Listener} ->
            Listener1 = Listener#listener{unclaimed = [Connection | Unclaimed]},
            State1#state{listeners = Listeners#{ListenerId := Listener1}};
        #{ListenerId := #listener{acceptor = Acceptor}} ->
            Acceptor ! {accepted, Connection},
            State1;
        #{} ->
            exit(uds_dist_connection:pid(Connection), listener_closed),
            State1
    end;
report({connected, Id, Peer}, State = #state{connecting = Connecting}) when
    is_map_key(Id, Connecting)
->
    {#connect{from = From, node = Node, address = Address}, Connecting1} =
        maps:take(Id, Connecting),
    {Supervisor, _Tag} = From,
    {Connection, State1} = add_connection(Id, #conn{peer = Peer, called = Node}, Supervisor, State),
    gen_server:reply(From, {ok, Connection, Address}),
    State1#state{connecting = Connecting1};
report({connect_failed, Id, Reason, Explanation}, State = #state{connecting = Connecting}) when
    is_map_key(Id, Connecting)
->
    {Connect, Connecting1} = maps:take(Id, Connecting),
    connect_failed(Connect, Reason, Explanation, State#state{connecting = Connecting1});
report({listening, Id}, State = #state{listeners = Listeners}) ->
    case Listeners of
        #{Id := Listener} -> listening(Id, Listener, State);
        %% It was closed while it was being opened.
        #{} when not is_map_key(Id, State#state.closing) -> close_socket(Id, undefined, State);
        #{} -> State
    end;
report({listen_failed, Id, Reason, Explanation}, State = #state{listeners = Listeners}) ->
    case Listeners of
        #{Id := Listener} -> listen_failed(Id, Listener, Reason, Explanation, State);
        #{} -> State
    end;
report({unlistened, Id}, State = #state{closing = Closing}) ->
    case maps:take(Id, Closing) of
        {From, Closing1} ->
            answer(From, ok),
            State#state{closing = Closing1};
        error ->
            State
    end;
report({handed_over, Id}, State = #state{channel = Channel}) when Channel =/= undefined ->
    handed_over(Id, uds_dist_handover:take(Channel), State);
report({kept, Id}, State = #state{conns = Conns}) ->
    case Conns of
        #{Id := #conn{stage = {handing_over, Node, DHandle, Bytes}} = Conn} ->
            kept(Id, Conn, Node, DHandle, Bytes, State);
        #{} ->
            State
    end;
report({hello, #{version := Version} = Hello}, State = #state{sidecar = starting}) ->
    case {Version, uds_dist_protocol:version()} of
        {Same, Same} ->
            sidecar_up(Hello, State);
        {Theirs, Ours} ->
            sidecar_ended(
                io_lib:format(
                    "it speaks version ~b of the port protocol, and this node speaks ~b; "
                    "build both from the same release (rebar3 compile)",
                    [Theirs, Ours]
                ),
                State
            )
    end;
report(Other, State) ->
    broke_protocol(Other, State).

broke_protocol(Report, State) ->
    sidecar_ended(io_lib:format("it broke the port protocol with ~0tP", [Report, 12]), State).

%% ---------------------------------------------------------------------------------------------
%% The sidecar's life

%% Sends a packet, or starts a sidecar that it will be sent to.
transmit(Packet, State = #state{sidecar = up, port = Port}) ->
    ok = uds_dist_program:send(Port, Packet),
    State;
transmit(Packet, State = #state{sidecar = down, queue = Queue}) ->
    start_sidecar(State#state{queue = [Packet | Queue]});
transmit(Packet, State = #state{queue = Queue}) ->
    State#state{queue = [Packet | Queue]}.

start_sidecar(State) ->
    case uds_dist_program:start() of
        {ok, Port} ->
            State#state{
                sidecar = starting,
                port = Port,
                started = now_ms(),
                timer = erlang:start_timer(?HELLO_TIMEOUT, self(), hello)
            };
        {error, Explanation} ->
            sidecar_ended(Explanation, State)
    end.

sidecar_up(#{window := Window, channel := Address}, State) ->
    #state{timer = Timer, config = Config, queue = Queue} = State,
    cancel(Timer),
    State1 = State#state{
        sidecar = up,
        channel = offered(Address),
        timer = undefined,
        window = Window,
        queue = []
    },
    #{policy := Policy} = Config,
    Again = [
        listen_packet(Id, Listener)
     || {Id, #listener{status = reopening} = Listener} <- maps:to_list(State#state.listeners)
    ],
    lists:foldr(fun transmit/2, State1, Queue ++ Again ++ [uds_dist_protocol:admit(Policy)]).

offered(<<>>) -> undefined;
offered(Address) -> {offered, Address}.

open_channel(State = #state{channel = {offered, Address}, config = #{transport := direct}}) ->
    case uds_dist_handover:open(Address) of
        {ok, Channel} ->
            State#state{channel = Channel};
        {error, Explanation} ->
            ?LOG_NOTICE("uds_dist: connections stay with the sidecar: ~ts", [Explanation]),
            State#state{channel = undefined}
    end;
open_channel(State) ->
    State.

%% What the settings say, and what can be.
transport(#state{channel = undefined}) -> relay;
transport(#state{config = #{transport := Transport}}) -> Transport.

close_channel({offered, _}) -> ok;
close_channel(Channel) -> uds_dist_handover:close(Channel).

timeout(hello, State) ->
    sidecar_ended(
        io_lib:format("it did not say hello within ~b ms", [?HELLO_TIMEOUT]),
        State
    );
timeout(start, State = #state{sidecar = resting}) ->
    start_sidecar(State#state{sidecar = down}).

%% Whatever belonged to the sidecar is gone, and what it has handed over is not. Those who waited for
%% an answer get one; listeners that were open are opened again by the next sidecar.
sidecar_ended(Explanation, State = #state{sidecar = Before, port = Port, conns = Conns}) ->
    uds_dist_program:close(Port),
    close_channel(State#state.channel),
    cancel(State#state.timer),
    log_sidecar_end(Before, Explanation, map_size(Conns), map_size(State#state.handed_over)),
    maps:foreach(fun(Id, Conn) -> end_connection(Id, Conn, State) end, Conns),
    maps:foreach(
        fun(_, #connect{from = From}) -> gen_server:reply(From, {error, sidecar_failed}) end,
        State#state.connecting
    ),
    maps:foreach(fun(_, From) -> answer(From, ok) end, State#state.closing),
    State1 = State#state{
        sidecar = down,
        port = undefined,
        channel = undefined,
        timer = undefined,
        queue = [],
        closing = #{},
        connecting = #{},
        conns = #{},
        monitors = #{}
    },
    State2 = maps:fold(fun listener_lost/3, State1, State#state.listeners),
    case lists:keymember(reopening, #listener.status, maps:values(State2#state.listeners)) of
        true -> rest(Before, State2);
        false -> State2
    end.

listener_lost(Id, #listener{status = {opening, Purpose, _}}, State) ->
    not_opened(Id, Purpose, {error, sidecar_failed}, State);
listener_lost(_, #listener{status = put_off}, State) ->
    State;
listener_lost(Id, Listener, State = #state{listeners = Listeners}) ->
    Listener1 = Listener#listener{status = reopening, unclaimed = []},
    State#state{listeners = Listeners#{Id := Listener1}}.

%% Waits a little before the next start, longer each time, unless the last one lived well.
rest(Before, State = #state{started = Started, failures = Failures}) ->
    Failures1 =
        case now_ms() - Started > ?GOOD_LIFE of
            true -> 0;
            false -> Failures
        end,
    State#state{
        sidecar = resting,
        failures = Failures1 + 1,
        timer = erlang:start_timer(backoff(Failures1, Before), self(), start)
    }.

backoff(0, _) -> 0;
backoff(Failures, up) -> min(?MAX_BACKOFF_DIED, doubled(Failures));
backoff(Failures, _) -> min(?MAX_BACKOFF_NOT_STARTED, doubled(Failures)).

doubled(Failures) ->
    ?FIRST_BACKOFF bsl min(Failures - 1, 10).

log_sidecar_end(Before, Explanation, Down, GoOn) ->
    uds_dist_log:error("the sidecar ~ts ~ts: ~ts~ts", [
        uds_dist_config:sidecar_path(),
        case Before of
            up -> "is gone";
            _ -> "did not start"
        end,
        Explanation,
        [
            io_lib:format("; connections that ~ts: ~b", [What, Count])
         || {What, Count} <- [{"are down with it", Down}, {"go on", GoOn}], Count > 0
        ]
    ]).

%% ---------------------------------------------------------------------------------------------
%% Listeners

%% The settings that count: those that are in force, or what is set now. When nothing says where to
%% listen yet, but the config provider of a release may, it is too early to tell.
settings(#state{config = Config, listeners = Listeners}) when
    Config =/= undefined, map_size(Listeners) > 0
->
    {ok, Config};
settings(_) ->
    case uds_dist_config:read() of
        {ok, #{is_set := IsSet} = Config} ->
            case IsSet orelse not uds_dist_config:is_incomplete() of
                true ->
                    log_overridden(Config),
                    {ok, Config};
                false ->
                    put_off
            end;
        {error, _} = Error ->
            Error
    end.

log_overridden(#{overridden := Lines}) ->
    lists:foreach(fun(Line) -> ?LOG_NOTICE("uds_dist: ~ts", [Line]) end, Lines).

place(Name, #{backlog := Backlog, socket_mode := Mode} = Config) ->
    case uds_dist_config:address(Name, Config) of
        {ok, Address} -> {ok, {Address, Backlog, Mode}};
        {error, _} = Error -> Error
    end.

%% Where it matters that the default is meant.
in_default(#{is_set := true}) ->
    "";
in_default(#{is_set := false}) ->
    "; socket_dir is set nowhere, so it is the working directory: set UDS_DIST_DIR or -uds_dist_dir".

cannot_listen(Name, Reason, Explanation) ->
    uds_dist_log:error("cannot listen as ~ts: ~ts", [Name, Explanation]),
    {error, Reason}.

%% These settings are in force from now on.
use(undefined, State) ->
    State#state{config = undefined};
use(#{policy := Policy} = Config, State = #state{config = Before, sidecar = Sidecar}) ->
    State1 = State#state{config = Config},
    case Before of
        #{policy := Policy} -> State1;
        _ when Sidecar =:= up -> transmit(uds_dist_protocol:admit(Policy), State1);
        %% The sidecar is told when it is up.
        _ -> State1
    end.

free_listener(#state{listeners = Listeners, closing = Closing}) ->
    hd([Id || Id <- lists:seq(0, 15), not is_map_key(Id, Listeners), not is_map_key(Id, Closing)]).

open_listener(Id, Listener, State = #state{listeners = Listeners}) ->
    transmit(listen_packet(Id, Listener), State#state{listeners = Listeners#{Id => Listener}}).

listen_packet(Id, #listener{place = {Address, Backlog, Mode}}) ->
    uds_dist_protocol:listen(Id, Backlog, Mode, list_to_integer(os:getpid()), Address).

listening(Id, #listener{place = {Address, _, _}, status = Status} = Listener, State) ->
    State1 = State#state{
        listeners = (State#state.listeners)#{Id := Listener#listener{status = open}}
    },
    case Status of
        {opening, {listen, From}, _} ->
            gen_server:reply(From, {ok, Listener#listener.handle, Address}),
            State1;
        {opening, {move, From, OldId, _}, _} ->
            ?LOG_NOTICE("uds_dist: listening at ~ts, as configured", [format(Address)]),
            start_put_off(close_socket(OldId, From, State1));
        reopening ->
            ?LOG_NOTICE("uds_dist: listening again at ~ts", [format(Address)]),
            State1
    end.

listen_failed(
    Id,
    Listener = #listener{name = Name, status = {opening, Purpose, GiveUp}},
    Reason,
    Explanation,
    State = #state{listeners = Listeners}
) ->
    case Reason =:= name_busy andalso now_ms() < GiveUp of
        true ->
            _ = erlang:start_timer(?BUSY_RETRY, self(), {reopen, Id}),
            State#state{listeners = Listeners#{Id := Listener}};
        false ->
            Whole = [Explanation, in_default(State#state.config)],
            Reply = cannot_listen(Name, listen_error(Reason), Whole),
            not_opened(Id, Purpose, Reply, State)
    end;
listen_failed(Id, #listener{place = {Address, _, _}}, _Reason, Explanation, State) ->
    uds_dist_log:error("cannot listen again at ~ts, and will try every second: ~ts", [
        format(Address), Explanation
    ]),
    _ = erlang:start_timer(?REOPEN_RETRY, self(), {reopen, Id}),
    State.

not_opened(Id, Purpose, Reply, State = #state{listeners = Listeners}) ->
    State1 = State#state{listeners = maps:remove(Id, Listeners)},
    case Purpose of
        {listen, From} ->
            gen_server:reply(From, Reply),
            State1;
        {move, From, _, Before} ->
            answer(From, Reply),
            use(Before, State1)
    end.

%% To whoever wants to know.
answer(undefined, _Reply) -> ok;
answer(boot, Reply) -> boot_ends_with(Reply);
answer(From, Reply) -> gen_server:reply(From, Reply).

%% A listener has one socket; two while it moves.
sockets(Handle, #state{listeners = Listeners}) ->
    [Id || {Id, #listener{handle = H}} <- lists:sort(maps:to_list(Listeners)), H =:= Handle].

close_sockets([Id | More], From, State = #state{sidecar = up}) ->
    State1 = lists:foldl(fun(Other, S) -> close_socket(Other, undefined, S) end, State, More),
    {noreply, close_socket(Id, From, State1)};
close_sockets(Ids, _From, State = #state{listeners = Listeners}) ->
    {reply, ok, State#state{listeners = maps:without(Ids, Listeners)}}.

close_socket(Id, From, State = #state{listeners = Listeners, closing = Closing}) ->
    State1 = State#state{listeners = maps:remove(Id, Listeners)},
    case Listeners of
        #{Id := #listener{status = put_off}} ->
            answer(From, ok),
            State1;
        #{} ->
            transmit(uds_dist_protocol:unlisten(Id), State1#state{closing = Closing#{Id => From}})
    end.

%% net_kernel has a message of its own for a name in use.
listen_error(name_busy) -> duplicate_name;
listen_error(Reason) -> Reason.

%% ---------------------------------------------------------------------------------------------
%% Configuration that comes late: distribution starts with kernel, the config providers of an Elixir
%% release run after it, and the application uds_dist starts after them.

put_off(Handle, Name, State = #state{listeners = Listeners}) ->
    Listener = #listener{handle = Handle, name = Name, status = put_off},
    await_boot(State#state{listeners = Listeners#{free_listener(State) => Listener}}).

%% The end of the boot is the last time at which it can become known where to listen, for releases
%% that do not start the application.
await_boot(State) ->
    case init:notify_when_started(self()) of
        ok ->
            State;
        started ->
            self() ! {init, started},
            State
    end.

boot_is_over(State) ->
    IsPutOff =
        State#state.put_off =/= [] orelse
            lists:keymember(put_off, #listener.status, maps:values(State#state.listeners)),
    case IsPutOff andalso configure(boot, State) of
        false ->
            State;
        {noreply, State1} ->
            State1;
        {reply, Reply, State1} ->
            boot_ends_with(Reply),
            State1
    end.

%% As when kernel finds that it cannot start distribution.
boot_ends_with(ok) -> ok;
boot_ends_with({error, _}) -> init:stop(1).

configure(From, State = #state{listeners = Listeners}) ->
    case uds_dist_config:read() of
        {ok, Config} ->
            log_overridden(Config),
            move(maps:to_list(Listeners), Config, From, State);
        {error, Explanation} ->
            uds_dist_log:error("~ts", [Explanation]),
            {reply, {error, bad_configuration}, State}
    end.

move([], Config, _From, State) ->
    {reply, ok, start_put_off(use(Config, State))};
move([{Id, #listener{name = Name, place = Before} = Listener} | _], Config, From, State) ->
    case place(Name, Config) of
        {ok, Before} ->
            {reply, ok, use(Config, State)};
        {ok, Place} when Listener#listener.status =:= reopening ->
            Listeners = (State#state.listeners)#{Id := Listener#listener{place = Place}},
            {reply, ok, use(Config, State#state{listeners = Listeners})};
        {ok, Place} ->
            Purpose = {move, From, Id, State#state.config},
            Listener1 = Listener#listener{
                place = Place,
                status = {opening, Purpose, now_ms() + ?BUSY_TIMEOUT},
                unclaimed = []
            },
            State1 = make_room(Before, Place, Id, use(Config, State)),
            {noreply, open_listener(free_listener(State1), Listener1, State1)};
        {error, Explanation} ->
            {reply, cannot_listen(Name, bad_configuration, Explanation), State}
    end.

%% The new socket stands before the old one goes, unless both are to be at the same address.
make_room({Address, _, _}, {Address, _, _}, Id, State) ->
    close_socket(Id, undefined, State);
make_room(_, _, _, State) ->
    State.

start_put_off(State = #state{put_off = PutOff}) ->
    lists:foldr(
        fun({Node, GiveUp, From}, S) -> connect(Node, GiveUp, From, S) end,
        State#state{put_off = []},
        PutOff
    ).

%% ---------------------------------------------------------------------------------------------
%% Connections

connect(Node, GiveUp, From, State = #state{put_off = PutOff}) ->
    case settings(State) of
        put_off ->
            await_boot(State#state{put_off = [{Node, GiveUp, From} | PutOff]});
        {ok, Config} ->
            case uds_dist_config:address(Node, Config) of
                {ok, Address} ->
                    Connect = #connect{
                        from = From, node = Node, address = Address, give_up = GiveUp
                    },
                    start_connect(Connect, use(Config, State));
                {error, Explanation} ->
                    cannot_connect(Node, Explanation, From, State)
            end;
        {error, Explanation} ->
            cannot_connect(Node, Explanation, From, State)
    end.

cannot_connect(Node, Explanation, From, State) ->
    gen_server:reply(From, {error, bad_configuration}),
    log_unreachable(Node, Explanation, State).

start_connect(Connect = #connect{address = Address}, State) ->
    {Id, State1 = #state{connecting = Connecting}} = next_conn(State),
    transmit(
        uds_dist_protocol:connect(Id, Address),
        State1#state{connecting = Connecting#{Id => Connect}}
    ).

%% Odd numbers are the VM's.
next_conn(State = #state{last_conn = Last, conns = Conns, connecting = Connecting}) ->
    Id =
        case Last + 2 of
            Next when Next =< ?MAX_CONN -> Next;
            _ -> 1
        end,
    State1 = State#state{last_conn = Id},
    case is_map_key(Id, Conns) orelse is_map_key(Id, Connecting) of
        true -> next_conn(State1);
        false -> {Id, State1}
    end.

connect_failed(Connect, Reason, Explanation, State) ->
    #connect{from = From, node = Node, give_up = GiveUp} = Connect,
    case Reason =:= backlog_full andalso now_ms() < GiveUp of
        true ->
            %% Not all at once again.
            _ = erlang:start_timer(rand:uniform(?BACKLOG_RETRY), self(), {reconnect, Connect}),
            State;
        false ->
            gen_server:reply(From, {error, Reason}),
            log_unreachable(Node, [Explanation, in_default(State#state.config)], State)
    end.

%% Whoever asks for a node that is not there tends to ask again and again.
log_unreachable(Node, Explanation, State = #state{unreachable = Unreachable}) ->
    Now = now_ms(),
    case Unreachable of
        #{Node := LoggedAt} when Now - LoggedAt < ?UNREACHABLE_LOG_INTERVAL ->
            State;
        #{} ->
            ?LOG_NOTICE("uds_dist: cannot connect to ~ts: ~ts", [Node, Explanation]),
            Kept =
                case map_size(Unreachable) < ?MAX_UNREACHABLE of
                    true -> Unreachable;
                    false -> #{}
                end,
            State#state{unreachable = Kept#{Node => Now}}
    end.

add_connection(Id, Conn, Supervisor, State = #state{port = Port, window = Window}) ->
    {Connection, Monitor} = uds_dist_connection:start(Id, Port, Window, Supervisor),
    Conn1 = Conn#conn{
        connection = Connection,
        monitor = Monitor,
        stage = {handshake, <<>>, undefined}
    },
    {Connection, State#state{
        conns = (State#state.conns)#{Id => Conn1},
        monitors = (State#state.monitors)#{Monitor => Id}
    }}.

%% Hands a frame to the waiter when there is one of each. Nothing is acknowledged yet: the sidecar
%% forwards no more than the handshake window of a peer that has not shown that it knows the cookie.
handshake_input(Id, Conn, Bytes, Waiter, State = #state{conns = Conns}) ->
    case Waiter =/= undefined andalso uds_dist_frames:handshake_frame(Bytes) of
        {ok, Frame, Rest} ->
            gen_server:reply(Waiter, {ok, binary_to_list(Frame)}),
            Stage = {handshake, binary:copy(Rest), undefined},
            State#state{conns = Conns#{Id := Conn#conn{stage = Stage}}};
        {error, {too_long, Length}} ->
            log_end(Conn, io_lib:format("it sent a handshake packet of ~b bytes", [Length])),
            Conn1 = Conn#conn{stage = {handshake, <<>>, Waiter}},
            end_connection(Id, Conn1, transmit(uds_dist_protocol:close(Id), State));
        _ ->
            State#state{conns = Conns#{Id := Conn#conn{stage = {handshake, Bytes, Waiter}}}}
    end.

%% The sidecar goes on with the connection.
kept(Id, Conn = #conn{connection = Connection}, Node, DHandle, Bytes, State) ->
    uds_dist_connection:kept(Connection),
    Window = uds_dist_window:receiver(State#state.window),
    Stage = {up, Node, DHandle, uds_dist_frames:new(), Window},
    input(Id, Conn#conn{stage = Stage}, Bytes, State).

%% The controller goes on with it, and the sidecar knows nothing of it any more.
handed_over(Id, Taken, State = #state{conns = Conns, monitors = Monitors, config = Config}) ->
    case {Conns, Taken} of
        {#{Id := #conn{stage = {handing_over, Node, _, Bytes}} = Conn}, {ok, Socket}} ->
            #conn{connection = Connection, monitor = Monitor} = Conn,
            #{spin := Spin} = Config,
            uds_dist_connection:handed_over(Connection, Socket, Bytes, Spin),
            State#state{
                conns = maps:remove(Id, Conns),
                monitors = maps:remove(Monitor, Monitors),
                handed_over = (State#state.handed_over)#{Monitor => Node}
            };
        {#{Id := #conn{stage = {handing_over, Node, _, _}} = Conn}, {error, Explanation}} ->
            uds_dist_log:error("the connection with ~ts is lost: ~ts", [Node, Explanation]),
            end_connection(Id, Conn, State);
        {_, {ok, Socket}} ->
            %% Its controller has ended meanwhile.
            uds_dist_handover:close(Socket),
            State;
        {_, {error, _}} ->
            State
    end.

%% Gives the VM what came in, and acknowledges it.
input(Id, Conn = #conn{stage = {up, Node, DHandle, Buffer, Window}}, Bytes, State) ->
    {Frames, Buffer1} = uds_dist_frames:push(Bytes, Buffer),
    uds_dist_input:put_data(DHandle, Frames),
    {Count, Window1} = uds_dist_window:passed_on(byte_size(Bytes), Window),
    Conn1 = Conn#conn{stage = {up, Node, DHandle, Buffer1, Window1}},
    State1 = State#state{conns = (State#state.conns)#{Id := Conn1}},
    case Count of
        0 -> State1;
        _ -> transmit(uds_dist_protocol:ack(Id, Count), State1)
    end.

%% The controller has ended: disconnect_node, a missed tick, a failed handshake, net_kernel:stop.
controller_ended(Id, Reason, State = #state{conns = Conns, monitors = Monitors}) ->
    #{Id := #conn{monitor = Monitor} = Conn} = Conns,
    log_end(Conn, end_of_controller(Reason)),
    transmit(uds_dist_protocol:close(Id), State#state{
        conns = maps:remove(Id, Conns),
        monitors = maps:remove(Monitor, Monitors)
    }).

end_of_controller(connection_closed) -> "the peer closed the connection";
end_of_controller(Reason) -> io_lib:format("~0tp", [Reason]).

%% The socket has ended. The controller of a connection that is up ends with it. In the handshake,
%% dist_util is told when it asks, and first gets what came before the end, as from any socket: this
%% attempt may just have lost against the one of the other node, which is no failure to connect.
end_connection(Id, Conn = #conn{stage = {handshake, Bytes, undefined}}, State) ->
    %% Until its controller ends.
    State#state{conns = (State#state.conns)#{Id := Conn#conn{stage = {ended, Bytes}}}};
end_connection(Id, #conn{connection = Connection, monitor = Monitor, stage = Stage}, State) ->
    demonitor(Monitor, [flush]),
    case Stage of
        {up, _, _, _, _} -> exit(uds_dist_connection:pid(Connection), connection_closed);
        {handing_over, _, _, _} -> exit(uds_dist_connection:pid(Connection), connection_closed);
        {handshake, _, Waiter} -> gen_server:reply(Waiter, {error, closed});
        {ended, _} -> ok
    end,
    State#state{
        conns = maps:remove(Id, State#state.conns),
        monitors = maps:remove(Monitor, State#state.monitors)
    }.

%% Once a connection, where it comes in: a release's remote and rpc commands, which call, often have
%% a logger that shows everything on stdout.
log_accepted(Node, #conn{called = undefined, peer = #{uid := Uid, gid := Gid, pid := Pid}}) ->
    ?LOG_INFO("uds_dist: connected with ~ts, uid ~b, gid ~b, pid ~b", [Node, Uid, Gid, Pid]);
log_accepted(_, _) ->
    ok.

log_end(Node, Why) when is_atom(Node) ->
    ?LOG_INFO("uds_dist: the connection with ~ts ended: ~ts", [Node, Why]);
log_end(#conn{stage = {up, Node, _, _, _}}, Why) ->
    log_end(Node, Why);
log_end(#conn{stage = {handing_over, Node, _, _}}, Why) ->
    log_end(Node, Why);
log_end(#conn{stage = {ended, _}}, _) ->
    ok;
log_end(#conn{stage = {handshake, _, _}, peer = #{uid := Uid, pid := Pid}}, Why) ->
    ?LOG_INFO("uds_dist: the handshake with process ~b of uid ~b ended: ~ts", [Pid, Uid, Why]).

%% ---------------------------------------------------------------------------------------------

format(Address) ->
    uds_dist_config:format_address(Address).

now_ms() ->
    erlang:monotonic_time(millisecond).

cancel(undefined) ->
    ok;
cancel(Timer) ->
    _ = erlang:cancel_timer(Timer),
    ok.
