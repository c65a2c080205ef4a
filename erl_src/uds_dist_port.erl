%% The owner of the sidecar's port. It passes each report of the sidecar on to the part that it concerns: the
%% input handler or controller of a connection, the listener, or the dialer. In the other direction, it sends
%% their commands to the sidecar.
%%
%% When this process exits, net_sup ends all of distribution, and with it the VM. So it never exits: every
%% failure becomes a reply, a log line, and another try. It never waits for the sidecar, a connection or
%% a peer, so that none of them can delay the others.
-module(uds_dist_port).
-behaviour(gen_server).

-export([start_link/0]).
%% For uds_dist.
-export([listen/1, close_listener/1, connect/2, not_a_name/1]).
%% For uds_dist_app.
-export([configure/0]).
%% For uds_dist_info.
-export([info/0, sidecar_status/0, connections/0]).
%% For uds_dist_acceptor.
-export([accept/1]).
%% For uds_dist_controller and uds_dist_input.
-export([established/4, another_node/3]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2, code_change/3]).

-define(SERVER, ?MODULE).

%% Milliseconds. net_kernel waits for listen/1 and close_listener/1 and must not wait for ever.
-define(LISTEN_TIMEOUT, 10000).
-define(CLOSE_TIMEOUT, 2000).
%% How long to retry a name whose previous owner is just shutting down, in milliseconds.
-define(BUSY_TIMEOUT, 1000).

%% A node that has run out of file descriptors cannot load modules, so these are loaded at the start.
-define(NEEDED, [
    uds_dist_acceptor,
    uds_dist_backoff,
    uds_dist_callers,
    uds_dist_channel,
    uds_dist_config,
    uds_dist_connections,
    uds_dist_controller,
    uds_dist_counters,
    uds_dist_dialer,
    uds_dist_frames,
    uds_dist_input,
    uds_dist_listener,
    uds_dist_log,
    uds_dist_log_writer,
    uds_dist_pipe,
    uds_dist_program,
    uds_dist_protocol,
    uds_dist_reflection,
    uds_dist_relay,
    uds_dist_sidecar,
    uds_dist_start_script,
    uds_dist_system,
    uds_dist_turn,
    uds_dist_window
]).

-type config() :: uds_dist_config:config().

-record(state, {
    sidecar = uds_dist_sidecar:new() :: uds_dist_sidecar:sidecar(),
    %% Window of a connection in bytes, which the sidecar announces.
    window = 0 :: non_neg_integer(),
    connections = uds_dist_connections:new() :: uds_dist_connections:connections(),
    listener = uds_dist_listener:new() :: uds_dist_listener:listener(),
    dialer = uds_dist_dialer:new() :: uds_dist_dialer:dialer(),
    timers = #{} :: #{listener | dialer | channel => reference()},
    %% The settings in force. They are read when the listener is opened, and kept while there is one unless
    %% configure/0 changes them: listening and dialling must use the same.
    config :: undefined | config(),
    channel = uds_dist_channel:new() :: uds_dist_channel:channel(),
    callers = uds_dist_callers:new() :: uds_dist_callers:callers(),
    %% Notices to be logged when the boot is over. Before that, logger would print them twice in a shell.
    notices = [] :: [uds_dist_config:explanation()]
}).

-spec start_link() -> {ok, pid()} | {error, term()}.
start_link() ->
    %% max: all input passes through here, and a node may have many runnable processes.
    %% off_heap: a garbage collection must not copy input that waits in the message queue.
    %% 0: binaries that have been passed on are freed while they are still in the processor's cache.
    SpawnOptions = [{priority, max}, {message_queue_data, off_heap}, {fullsweep_after, 0}],
    gen_server:start_link({local, ?SERVER}, ?MODULE, [], [{spawn_opt, SpawnOptions}]).

%% Takes the node's name and listens under it. If the configuration is not complete yet, this is put off until
%% configure/0, and there is no address yet.
-spec listen(Name :: atom()) ->
    {ok, undefined | uds_dist_protocol:address()} | {error, Reason :: atom()}.
listen(Name) ->
    try
        gen_server:call(?SERVER, {listen, Name}, ?LISTEN_TIMEOUT)
    catch
        exit:{timeout, _} ->
            ok = uds_dist_log:no_answer(["listen as ", atom_to_list(Name)]),
            {error, timeout}
    end.

%% Gives up the name. When it returns, the socket file is gone, unless the sidecar is stuck.
-spec close_listener(Name :: atom()) -> ok.
close_listener(Name) ->
    try
        gen_server:call(?SERVER, {close_listener, Name}, ?CLOSE_TIMEOUT)
    catch
        exit:Reason -> uds_dist_log:unconfirmed_close(Reason)
    end.

%% All information but the list of connections and what only the sidecar knows.
-spec info() -> uds_dist_info:known().
info() ->
    gen_server:call(?SERVER, info).

%% The sidecar's use of resources. If the sidecar takes longer than half a second, the values are undefined.
-spec sidecar_status() -> uds_dist_protocol:status().
sidecar_status() ->
    gen_server:call(?SERVER, sidecar_status).

-spec connections() -> [uds_dist_connections:entry()].
connections() ->
    gen_server:call(?SERVER, connections).

%% Reports that the acceptor is ready for the next incoming connection.
-spec accept(Acceptor :: pid()) -> ok.
accept(Acceptor) ->
    gen_server:cast(?SERVER, {accept, Acceptor}).

%% Reads the settings again, after the application environment is complete. If they give the listener another
%% address, it moves there; connections are unaffected. An error is logged, and changes nothing.
-spec configure() -> ok | {error, Reason :: atom()}.
configure() ->
    try
        gen_server:call(?SERVER, configure, ?LISTEN_TIMEOUT)
    catch
        %% This VM is not distributed.
        exit:{noproc, _} ->
            ok;
        exit:{timeout, _} ->
            ok = uds_dist_log:no_answer("change the configuration"),
            {error, timeout}
    end.

%% Connects to a node. The caller becomes the connection's supervisor. While the node's backlog is full, it
%% retries until GiveUp, in monotonic milliseconds.
-spec connect(node(), GiveUp :: integer()) ->
    {ok, uds_dist_controller:connection()} | {error, Reason :: atom()}.
connect(Node, GiveUp) ->
    gen_server:call(?SERVER, {connect, Node, GiveUp}, infinity).

%% Reports that somebody wants to connect to an atom that is not the name of a node.
-spec not_a_name(atom()) -> ok.
not_a_name(Node) ->
    gen_server:cast(?SERVER, {not_a_name, Node}).

%% Reports that the handshake of a connection is complete. The owner then chooses the transport and tells
%% the connection's processes.
-spec established(
    Owner :: pid(), {uds_dist_protocol:conn(), Controller :: pid()}, node(), erlang:dist_handle()
) -> ok.
established(Owner, Connection, Node, DHandle) ->
    gen_server:cast(Owner, {established, Connection, Node, DHandle}).

%% Reports that the node at the address of Called has another name.
-spec another_node(Owner :: pid(), Called :: node(), Name :: binary()) -> ok.
another_node(Owner, Called, Name) ->
    gen_server:cast(Owner, {another_node, Called, Name}).

%% ---------------------------------------------------------------------------------------------

-spec init([]) -> {ok, #state{}}.
init([]) ->
    process_flag(trap_exit, true),
    ok = uds_dist_system:remember_working_directory(),
    ok = uds_dist_reflection:new(),
    {ok, _} = uds_dist_log_writer:start_link(),
    lists:foreach(fun code:ensure_loaded/1, ?NEEDED),
    {ok, #state{}}.

-spec handle_call(term(), gen_server:from(), #state{}) -> {noreply, #state{}}.
handle_call(Request, From, State = #state{callers = Callers}) ->
    State1 = State#state{callers = uds_dist_callers:add(From, part(Request), Callers)},
    Call = fun() ->
        case call(Request, From, State1) of
            {reply, Reply, State2} -> reply(From, Reply, State2);
            {noreply, State2} -> State2
        end
    end,
    {noreply, survive(Call, {caller, From}, State1)}.

-spec handle_cast(term(), #state{}) -> {noreply, #state{}}.
handle_cast(Request, State) ->
    {noreply, survive(fun() -> cast(Request, State) end, Request, State)}.

-spec handle_info(term(), #state{}) -> {noreply, #state{}}.
handle_info(Message, State) ->
    {noreply, survive(fun() -> info(Message, State) end, Message, State)}.

-spec terminate(term(), #state{}) -> ok.
terminate(_Reason, #state{sidecar = Sidecar}) ->
    %% The sidecar reads the end of its stdin, and removes the socket.
    _ = uds_dist_sidecar:close(Sidecar),
    ok.

-spec code_change(term(), #state{}, term()) -> {ok, #state{}}.
code_change(_OldVersion, State, _Extra) ->
    {ok, State}.

%% ---------------------------------------------------------------------------------------------
%% Exceptions in this module, and replies

%% An exception in this module must not end the VM. Only what the message was about is given up. If that fails
%% too, all callers get a reply, so that nobody waits in vain.
survive(Callback, Message, State) ->
    try
        send_replies(Callback())
    catch
        Class:Reason:Stack ->
            ok = uds_dist_log:mistake(Class, Reason, Stack),
            try
                send_replies(give_up(about(Message), State))
            catch
                Class1:Reason1:Stack1 ->
                    ok = uds_dist_log:mistake(Class1, Reason1, Stack1),
                    send_replies(give_up(all, State))
            end
    end.

about({caller, _} = Caller) -> Caller;
about({established, {Conn, _}, _, _}) -> {connection, Conn};
about({Port, {data, Packet}}) when is_port(Port) -> uds_dist_protocol:concerns(Packet);
about({Port, {exit_status, _}}) when is_port(Port) -> sidecar;
about({'EXIT', Port, _}) when is_port(Port) -> sidecar;
about({timeout, _, Part}) when Part =:= listener; Part =:= dialer; Part =:= channel; Part =:= status -> Part;
about({timeout, _, _}) -> sidecar;
about({init, started}) -> dialer;
about(_) -> nothing.

give_up({connection, Conn}, State = #state{connections = Connections, dialer = Dialer}) ->
    case uds_dist_connections:dialled(Conn, Connections) of
        {Key, Connections1} ->
            {{_, From, _}, Dialer1} = uds_dist_dialer:connected(Key, Dialer),
            State1 = State#state{connections = Connections1, dialer = Dialer1},
            transmit(uds_dist_protocol:close(Conn), give_up({caller, From}, State1));
        error ->
            case uds_dist_connections:stop(Conn, Connections) of
                ok -> State;
                unknown -> transmit(uds_dist_protocol:close(Conn), State)
            end
    end;
give_up(sidecar, State = #state{sidecar = Sidecar}) ->
    {Event, Sidecar1} = uds_dist_sidecar:give_up("this node ended it because of the error above", Sidecar),
    sidecar(Event, State#state{sidecar = Sidecar1});
give_up(What, State) when What =:= channel; What =:= log; What =:= nothing ->
    %% No caller waits for it.
    State;
give_up(What, State = #state{callers = Callers}) ->
    State#state{callers = uds_dist_callers:give_up(What, Callers)}.

reply(From, Reply, State = #state{callers = Callers}) ->
    State#state{callers = uds_dist_callers:reply(From, Reply, Callers)}.

send_replies(State = #state{callers = Callers}) ->
    case uds_dist_callers:send(Callers) of
        Callers -> State;
        Sent -> State#state{callers = Sent}
    end.

%% ---------------------------------------------------------------------------------------------
%% What this node wants

call({listen, Name}, From, State) ->
    case settings(State) of
        put_off ->
            Tag = {{listen, From}, undefined},
            PutOff = fun(L) -> uds_dist_listener:put_off(Name, Tag, L) end,
            {noreply, await_boot(listener(PutOff, State))};
        {ok, Config} ->
            case uds_dist_config:place(Name, Config) of
                {ok, Place} ->
                    Request = {{{listen, From}, Config}, now_ms() + ?BUSY_TIMEOUT},
                    Open = fun(L) -> uds_dist_listener:open(Name, Place, Request, L) end,
                    {noreply, listener(Open, use(Config, State))};
                {error, Explanation} ->
                    {reply, cannot_listen(Name, bad_configuration, Explanation), State}
            end;
        {error, Explanation} ->
            {reply, cannot_listen(Name, bad_configuration, Explanation), State}
    end;
call({close_listener, _Name}, From, State) ->
    {noreply, listener(fun(L) -> uds_dist_listener:close({close, From}, L) end, State)};
call(configure, From, State) ->
    {noreply, configure({configure, From}, State)};
call({connect, Node, GiveUp}, From, State) ->
    {noreply, connect(Node, From, GiveUp, State)};
call(info, _From, State) ->
    {reply, describe(State), State};
call(sidecar_status, _From, State = #state{sidecar = Sidecar}) ->
    case uds_dist_sidecar:is_up(Sidecar) of
        true -> {noreply, State#state{sidecar = uds_dist_sidecar:ask_status(Sidecar)}};
        false -> {reply, uds_dist_sidecar:unknown_status(), State}
    end;
call(connections, _From, State = #state{connections = Connections}) ->
    {reply, uds_dist_connections:list(Connections), State}.

%% What the reply to a request depends on.
part({listen, _}) -> listener;
part({close_listener, _}) -> listener;
part(configure) -> listener;
part({connect, _, _}) -> dialer;
part(sidecar_status) -> status;
part(_) -> state.

describe(#state{listener = Listener, config = Config} = State) ->
    #state{sidecar = Sidecar, connections = Connections} = State,
    #{
        name => uds_dist_listener:name(Listener),
        listening_at => address(uds_dist_listener:actual(Listener)),
        should_listen_at => address(uds_dist_listener:wanted(Listener)),
        transport => transport(State),
        settings =>
            case Config of
                undefined -> undefined;
                _ -> uds_dist_config:settings(Config)
            end,
        sidecar => uds_dist_sidecar:info(Sidecar),
        connections => length(uds_dist_connections:list(Connections)),
        totals => uds_dist_connections:totals(Connections)
    }.

%% The transport of new connections.
transport(#state{config = #{transport := direct}, channel = Channel}) ->
    case uds_dist_channel:is_open(Channel) of
        true -> direct;
        false -> relay
    end;
transport(#state{}) ->
    relay.

address({Address, _, _}) -> uds_dist_config:format_address(Address);
address(_) -> undefined.

cast({another_node, Called, Name}, State) ->
    Explanation = io_lib:format("the node there is another one, ~ts; ask for that one", [Name]),
    unreachable(Called, another_node, Explanation, State);
cast({not_a_name, Node}, State) ->
    unreachable(Node, not_a_name, uds_dist_config:explain_name(Node), State);
cast({accept, Acceptor}, State = #state{connections = Connections}) ->
    State#state{connections = uds_dist_connections:acceptor(Acceptor, Connections)};
cast({established, {Conn, _} = Connection, Node, DHandle}, State = #state{connections = Connections}) ->
    Level = uds_dist_log:level(Node),
    {Called, Connections1} =
        uds_dist_connections:established(Connection, {Node, Level}, DHandle, Connections),
    State1 = State#state{
        connections = Connections1, dialer = uds_dist_dialer:reached(Node, State#state.dialer)
    },
    case Called of
        ended ->
            State1;
        _ ->
            ok = uds_dist_log:connected(Node, Level, Called),
            choose_transport(Conn, Node, State1)
    end.

choose_transport(Conn, Node, State = #state{connections = Connections}) ->
    case transport(State) of
        direct ->
            Connections1 = uds_dist_connections:await_handover(Conn, Connections),
            transmit(uds_dist_protocol:hand_over(Conn, Node), State#state{connections = Connections1});
        relay ->
            Connections1 = uds_dist_connections:relayed(Conn, Connections),
            transmit(uds_dist_protocol:established(Conn, Node), State#state{connections = Connections1})
    end.

%% ---------------------------------------------------------------------------------------------
%% What happens

info({timeout, Timer, Whose}, State = #state{timers = Timers}) when is_map_key(Whose, Timers) ->
    case Timers of
        #{Whose := Timer} -> timeout(Whose, State#state{timers = maps:remove(Whose, Timers)});
        #{} -> State
    end;
info({init, started}, State) ->
    boot_is_over(State);
info(Message, State = #state{sidecar = Sidecar}) ->
    case uds_dist_sidecar:handle(Message, Sidecar) of
        {Event, Sidecar1} -> sidecar(Event, State#state{sidecar = Sidecar1});
        ignored -> other(Message, State)
    end.

other({'DOWN', Monitor, process, _, Reason}, State = #state{connections = Connections}) ->
    case uds_dist_connections:controller_ended(Monitor, Connections) of
        {Close, What, Connections1} ->
            ok = uds_dist_log:ended(What, {exit, Reason}),
            close_connection(Close, State#state{connections = Connections1});
        error ->
            State
    end;
other({'EXIT', _, _}, State) ->
    _ = whereis(uds_dist_log_writer) =:= undefined andalso uds_dist_log_writer:start_link(),
    State;
other(_, State) ->
    %% A message of a sidecar that has ended.
    State.

close_connection(none, State) -> State;
close_connection(Conn, State) -> transmit(uds_dist_protocol:close(Conn), State).

timeout(listener, State) ->
    listener(fun uds_dist_listener:timeout/1, State);
timeout(dialer, State) ->
    Now = now_ms(),
    dialer(fun(D) -> uds_dist_dialer:timeout(Now, D) end, State);
timeout(channel, State) ->
    channel(fun uds_dist_channel:retry/1, State).

sidecar(none, State) ->
    State;
sidecar({report, Report}, State) ->
    report(Report, State);
sidecar({status, Status}, State) ->
    status(Status, State);
sidecar({up, Window, Tries}, State = #state{config = #{policy := Policy} = Config}) ->
    ok = uds_dist_log:sidecar_up(Tries),
    State1 = transmit(uds_dist_protocol:admit(Policy), State#state{window = Window}),
    %% Listening comes first, because it creates the directory, which the channel needs too.
    State2 = want_channel(Config, listener(fun uds_dist_listener:up/1, State1)),
    dialer(fun uds_dist_dialer:up/1, State2);
sidecar({down, #{is_news := IsNews} = Down}, State = #state{connections = Connections}) ->
    %% A caller that waits for the listener has to see each failure in the log.
    IsAwaited = uds_dist_listener:is_requested(State#state.listener),
    ok = uds_dist_log:sidecar_ended(
        Down#{is_news := IsNews orelse IsAwaited}, uds_dist_connections:count(Connections)
    ),
    State1 = State#state{
        connections = uds_dist_connections:sidecar_ended(Connections),
        channel = uds_dist_channel:close(State#state.channel)
    },
    State2 = listener(fun uds_dist_listener:down/1, State1),
    State3 = dialer(fun uds_dist_dialer:down/1, State2),
    status(uds_dist_sidecar:unknown_status(), State3).

%% Replies to all callers that wait for the sidecar's status.
status(Status, State = #state{callers = Callers}) ->
    State#state{callers = uds_dist_callers:reply_all(status, Status, Callers)}.

report({data, Conn, Bytes}, State = #state{connections = Connections}) ->
    State#state{connections = uds_dist_connections:data(Conn, Bytes, Connections)};
report({ack, Conn, Count}, State = #state{connections = Connections}) ->
    ok = uds_dist_connections:acknowledged(Conn, Count, Connections),
    State;
report({closed, Conn, Reason, Explanation}, State = #state{connections = Connections}) ->
    {What, Connections1} =
        uds_dist_connections:closed(Conn, end_reason(Reason, Explanation), Connections),
    ended(What, {closed, Reason, Explanation}, State#state{connections = Connections1});
report({accepted, Conn, _Listener, Peer, Address} = Report, State) ->
    case
        uds_dist_connections:accepted(relay_link(Conn, State), Peer, Address, State#state.connections)
    of
        {ok, Connections1} -> State#state{connections = Connections1};
        wrong_number -> broke_protocol(Report, State)
    end;
report({log, Line}, State) ->
    ok = uds_dist_log:sidecar_line(Line),
    State;
report({connected, Conn, _} = Report, State) ->
    dialled(uds_dist_connections:dialled(Conn, State#state.connections), Report, State);
report({connect_failed, Conn, _, _} = Report, State) ->
    dialled(uds_dist_connections:dialled(Conn, State#state.connections), Report, State);
report({listening, Id}, State) ->
    Now = now_ms(),
    listener(fun(L) -> uds_dist_listener:listening(Id, Now, L) end, State);
report({listen_failed, Id, Reason, Explanation}, State) ->
    Now = now_ms(),
    listener(fun(L) -> uds_dist_listener:listen_failed(Id, Reason, Explanation, Now, L) end, State);
report({unlistened, Id}, State) ->
    listener(fun(L) -> uds_dist_listener:unlistened(Id, L) end, State);
report({listener_lost, Id, Explanation}, State) ->
    Now = now_ms(),
    listener(fun(L) -> uds_dist_listener:lost(Id, Explanation, Now, L) end, State);
report({relayed, Conn} = Report, State = #state{connections = Connections}) ->
    case uds_dist_connections:not_handed_over(Conn, Connections) of
        {ok, Connections1} -> State#state{connections = Connections1};
        not_asked_for -> broke_protocol(Report, State)
    end;
report({handed_over, Conn} = Report, State = #state{channel = Channel}) ->
    case uds_dist_channel:is_open(Channel) of
        true -> handed_over(Conn, uds_dist_channel:take(Channel), State);
        false -> broke_protocol(Report, State)
    end;
report({channel, Address} = Report, State = #state{channel = Channel}) ->
    channel(uds_dist_channel:offered(Address, Channel), Report, State);
report({channel_failed, Explanation} = Report, State = #state{channel = Channel}) ->
    channel(uds_dist_channel:failed(Explanation, Channel), Report, State);
report(Report, State) ->
    broke_protocol(Report, State).

end_reason(peer_closed, _) -> connection_closed;
end_reason(_, Explanation) -> {connection_failed, Explanation}.

ended({silent_node, Node}, {closed, Reason, Explanation}, State) ->
    unreachable(Node, Reason, Explanation, State);
ended({refusing_node, Node}, {closed, Reason, _}, State) ->
    Explanation = "it closed the connection during the handshake; most often the cookies differ, and its log says so",
    unreachable(Node, Reason, Explanation, State);
ended(What, Why, State) ->
    ok = uds_dist_log:ended(What, Why),
    State.

%% The dialer limits how often this is logged.
unreachable(Node, Reason, Explanation, State) ->
    Now = now_ms(),
    dialer(fun(D) -> uds_dist_dialer:failed(Node, Reason, Explanation, Now, D) end, State).

%% Handles the answer to a CONNECT.
dialled({Key, Connections}, {connected, Conn, Peer}, State = #state{dialer = Dialer}) ->
    {{Node, From, Address}, Dialer1} = uds_dist_dialer:connected(Key, Dialer),
    {Supervisor, _Tag} = From,
    Called = {Node, Supervisor},
    {Connection, Connections1} =
        uds_dist_connections:connected(relay_link(Conn, State), Peer, Called, Address, Connections),
    reply(From, {ok, Connection}, State#state{connections = Connections1, dialer = Dialer1});
dialled({Key, Connections}, {connect_failed, _, Reason, Explanation}, State) ->
    Now = now_ms(),
    Whole = [Explanation, uds_dist_config:default_hint(State#state.config)],
    dialer(
        fun(D) -> uds_dist_dialer:connect_failed(Key, Reason, Whole, Now, D) end,
        State#state{connections = Connections}
    );
dialled(error, Report, State) ->
    broke_protocol(Report, State).

relay_link(Conn, #state{sidecar = Sidecar, window = Window}) ->
    uds_dist_relay:link(uds_dist_sidecar:port(Sidecar), Conn, Window).

broke_protocol(Report, State = #state{sidecar = Sidecar}) ->
    {Event, Sidecar1} = uds_dist_sidecar:broke_protocol(Report, Sidecar),
    sidecar(Event, State#state{sidecar = Sidecar1}).

%% ---------------------------------------------------------------------------------------------
%% Effects

transmit(Packet, State = #state{sidecar = Sidecar}) ->
    case uds_dist_sidecar:is_up(Sidecar) of
        true -> State#state{sidecar = uds_dist_sidecar:send(Packet, Sidecar)};
        %% The connection or listener that it is about has ended with the sidecar.
        false -> State
    end.

listener(Event, State) ->
    {Effects, Listener} = Event(State#state.listener),
    lists:foldl(fun listener_effect/2, State#state{listener = Listener}, Effects).

listener_effect({listen, Id, {Address, Backlog, Mode}}, State) ->
    VmPid = list_to_integer(os:getpid()),
    transmit(uds_dist_protocol:listen(Id, Backlog, Mode, VmPid, Address), State);
listener_effect({unlisten, Id}, State) ->
    transmit(uds_dist_protocol:unlisten(Id), State);
listener_effect(need_sidecar, State) ->
    need_sidecar(State);
listener_effect({timer, Milliseconds}, State) ->
    start_timer(listener, Milliseconds, State);
listener_effect({log, Level, Line}, State) ->
    ok = uds_dist_log:listener(Level, Line),
    State;
listener_effect({done, Tag, Result}, State) ->
    request_done(Tag, Result, State).

dialer(Event, State) ->
    {Effects, Dialer} = Event(State#state.dialer),
    lists:foldl(fun dialer_effect/2, State#state{dialer = Dialer}, Effects).

dialer_effect({connect, Key, Address}, State = #state{connections = Connections}) ->
    {Conn, Connections1} = uds_dist_connections:dial(Key, Connections),
    transmit(uds_dist_protocol:connect(Conn, Address), State#state{connections = Connections1});
dialer_effect(need_sidecar, State) ->
    need_sidecar(State);
dialer_effect({timer, Milliseconds}, State) ->
    start_timer(dialer, Milliseconds, State);
dialer_effect({failed, From, Reason}, State) ->
    reply(From, {error, Reason}, State);
dialer_effect({unreachable, Node, not_listening, Explanation}, State = #state{config = Config}) ->
    Hint = uds_dist_config:case_hint(Node, Config),
    ok = uds_dist_log:unreachable(Node, not_listening, [Explanation, Hint]),
    State;
dialer_effect({unreachable, Node, Reason, Explanation}, State) ->
    ok = uds_dist_log:unreachable(Node, Reason, Explanation),
    State.

need_sidecar(State = #state{sidecar = Sidecar, config = Config}) ->
    Settings =
        case Config of
            undefined -> #{spin => 0, log => info};
            _ -> maps:with([spin, log], Config)
        end,
    State#state{sidecar = uds_dist_sidecar:need(Settings, Sidecar)}.

start_timer(Whose, Milliseconds, State = #state{timers = Timers}) ->
    _ = [erlang:cancel_timer(Timer) || #{Whose := Timer} <- [Timers]],
    State#state{timers = Timers#{Whose => erlang:start_timer(Milliseconds, self(), Whose)}}.

%% ---------------------------------------------------------------------------------------------
%% Settings

%% The settings in force if there is a listener; otherwise the current ones.
settings(#state{config = Config, listener = Listener}) ->
    case uds_dist_listener:wanted(Listener) of
        {_, _, _} when Config =/= undefined -> {ok, Config};
        _ -> uds_dist_config:read_if_complete()
    end.

%% Puts settings in force.
use(Config, State = #state{config = Config}) ->
    State;
use(#{policy := Policy} = Config, State = #state{config = Before}) ->
    ok = uds_dist_log:overridden(Config, Before),
    State1 = want_channel(Config, State#state{config = Config}),
    case Before of
        #{policy := Policy} -> State1;
        %% A sidecar that is not up yet gets the policy when it comes up.
        _ -> transmit(uds_dist_protocol:admit(Policy), State1)
    end.

%% Settings can become known late: distribution starts with kernel, the config providers of an Elixir release
%% run after it, and the application uds_dist starts after them. In releases that do not start the
%% application, the end of the boot is the last chance to read them.
await_boot(State) ->
    case init:notify_when_started(self()) of
        ok ->
            State;
        started ->
            self() ! {init, started},
            State
    end.

boot_is_over(State = #state{listener = Listener, notices = Notices}) ->
    ok = lists:foreach(fun notice/1, Notices),
    State1 = State#state{notices = []},
    case uds_dist_listener:wanted(Listener) of
        undecided -> configure(boot, State1);
        _ -> dial_put_off(State1)
    end.

configure(Whose, State = #state{listener = Listener}) ->
    case uds_dist_config:read() of
        {ok, Config} ->
            Name = uds_dist_listener:name(Listener),
            case uds_dist_listener:wanted(Listener) of
                none -> request_done({Whose, Config}, ok, State);
                undecided -> move(Whose, uds_dist_config:place(Name, Config), Config, use(Config, State));
                _ -> move(Whose, uds_dist_config:place(Name, Config), Config, State)
            end;
        {error, Explanation} ->
            request_done({Whose, undefined}, {error, bad_configuration, Explanation}, State)
    end.

move(Whose, {ok, Place}, Config, State) ->
    Tag = {Whose, Config},
    GiveUp = now_ms() + ?BUSY_TIMEOUT,
    listener(fun(L) -> uds_dist_listener:move(Place, Tag, GiveUp, L) end, State);
move(Whose, {error, Explanation}, Config, State) ->
    request_done({Whose, Config}, {error, bad_configuration, Explanation}, State).

%% Answers a completed listen/1, configure/0 or close_listener/1, or ends the configuration after the boot.
request_done({close, From}, ok, State) ->
    reply(From, ok, State);
request_done({boot, _}, {error, closed, _}, State) ->
    State;
request_done({{_, From}, _}, {error, closed, _}, State) ->
    %% The process that closed the listener knows why, so nothing is logged.
    reply(From, {error, closed}, State);
request_done({{listen, From}, Config}, ok, State = #state{listener = Listener}) ->
    Address =
        case uds_dist_listener:wanted(Listener) of
            undecided -> undefined;
            {Wanted, _, _} -> Wanted
        end,
    ok = check_commands(Config, State),
    State1 =
        case uds_dist_config:check_epmd() of
            ok -> State;
            {error, Notice} -> await_boot(State#state{notices = [Notice]})
        end,
    reply(From, {ok, Address}, State1);
request_done({{listen, From}, Config}, {error, Reason, Explanation}, State) ->
    Name = uds_dist_listener:name(State#state.listener),
    Hint =
        case Reason of
            name_busy -> "; stop that node, or start this one under another name";
            _ -> uds_dist_config:default_hint(Config)
        end,
    reply(From, cannot_listen(Name, Reason, [Explanation, Hint]), State);
request_done({Whose, Config}, ok, State) ->
    State1 = dial_put_off(use(Config, State)),
    ok = check_commands(Config, State1),
    case Whose of
        {configure, From} -> reply(From, ok, State1);
        boot -> State1
    end;
request_done({Whose, _}, {error, Reason, Explanation}, State) ->
    Reply =
        case uds_dist_listener:name(State#state.listener) of
            undefined ->
                ok = uds_dist_log:wrong_settings(Explanation),
                {error, Reason};
            Name ->
                cannot_listen(Name, Reason, Explanation)
        end,
    case Whose of
        {configure, From} ->
            reply(From, Reply, State);
        %% Kernel does the same if it cannot start distribution.
        boot ->
            ok = init:stop(1),
            State
    end.

%% The commands of a release run in their own nodes, with longer names and perhaps without a flag.
check_commands(Config, #state{listener = Listener}) ->
    Checks = [
        uds_dist_config:check_command_name(uds_dist_listener:name(Listener), Config),
        uds_dist_start_script:check()
    ],
    lists:foreach(fun notice/1, [Explanation || {error, Explanation} <- Checks]).

notice(Explanation) ->
    uds_dist_log:listener(notice, Explanation).

%% net_kernel has its own message for a name in use, which it prints for duplicate_name.
cannot_listen(_Name, sidecar_failed, _Explanation) ->
    %% The line about the sidecar has been logged, and explains this failure too.
    {error, sidecar_failed};
cannot_listen(Name, Reason, Explanation) ->
    ok = uds_dist_log:cannot_listen(Name, Explanation),
    case Reason of
        name_busy -> {error, duplicate_name};
        _ -> {error, Reason}
    end.

%% ---------------------------------------------------------------------------------------------
%% Connections that we make

connect(Node, From, GiveUp, State = #state{dialer = Dialer}) ->
    case settings(State) of
        put_off ->
            await_boot(State#state{dialer = uds_dist_dialer:put_off(Node, From, GiveUp, Dialer)});
        {ok, Config} ->
            case uds_dist_config:address(Node, Config) of
                {ok, Address} ->
                    dialer(
                        fun(D) -> uds_dist_dialer:dial(Node, Address, {From, GiveUp}, D) end,
                        use(Config, State)
                    );
                {error, Explanation} ->
                    cannot_connect(Node, From, Explanation, State)
            end;
        {error, Explanation} ->
            cannot_connect(Node, From, Explanation, State)
    end.

cannot_connect(Node, From, Explanation, State) ->
    unreachable(Node, bad_configuration, Explanation, reply(From, {error, bad_configuration}, State)).

dial_put_off(State = #state{dialer = Dialer}) ->
    {Requests, Dialer1} = uds_dist_dialer:take_put_off(Dialer),
    lists:foldl(
        fun({Node, From, GiveUp}, S) -> connect(Node, From, GiveUp, S) end,
        State#state{dialer = Dialer1},
        Requests
    ).

%% ---------------------------------------------------------------------------------------------
%% Sockets that the sidecar hands over, where the transport is direct

want_channel(#{transport := direct, socket_dir := Dir}, State = #state{sidecar = Sidecar}) ->
    case uds_dist_sidecar:is_up(Sidecar) of
        true -> channel(fun(C) -> uds_dist_channel:want(Dir, C) end, State);
        false -> State
    end;
want_channel(_, State) ->
    State.

channel(Event, State) ->
    {Effect, Channel} = Event(State#state.channel),
    channel_effect(Effect, State#state{channel = Channel}).

channel(not_asked_for, Report, State) -> broke_protocol(Report, State);
channel({Effect, Channel}, _, State) -> channel_effect(Effect, State#state{channel = Channel}).

channel_effect(none, State) ->
    State;
channel_effect({send, Packet}, State) ->
    transmit(Packet, State);
channel_effect({timer, Milliseconds}, State) ->
    start_timer(channel, Milliseconds, State);
channel_effect({failed, Explanation}, State) ->
    ok = uds_dist_log:no_channel(Explanation),
    State.

handed_over(Conn, {ok, Socket}, State = #state{connections = Connections, config = Config}) ->
    #{spin := Spin} = Config,
    State#state{
        connections = uds_dist_connections:handed_over(Conn, Socket, Spin, Connections)
    };
handed_over(Conn, {error, Explanation}, State = #state{connections = Connections}) ->
    Reason = {connection_failed, handover},
    {Node, Connections1} = uds_dist_connections:handover_failed(Conn, Reason, Connections),
    ok = uds_dist_log:lost_handover(Node, Explanation),
    State#state{connections = Connections1}.

%% ---------------------------------------------------------------------------------------------

now_ms() ->
    erlang:monotonic_time(millisecond).
