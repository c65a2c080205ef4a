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
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2, code_change/3]).

%% How long to retry a name whose previous owner is just shutting down, in milliseconds.
-define(BUSY_TIMEOUT, 1000).
%% Milliseconds until a timer fires again whose message was not handled because of an exception.
-define(RETRY, 1000).

%% A node that has run out of file descriptors cannot load modules, so these are loaded at the start.
-define(NEEDED, [
    uds_dist_acceptor,
    uds_dist_address,
    uds_dist_advice,
    uds_dist_backoff,
    uds_dist_callers,
    uds_dist_channel,
    uds_dist_config,
    uds_dist_connection,
    uds_dist_connections,
    uds_dist_controller,
    uds_dist_counters,
    uds_dist_diagnosis,
    uds_dist_dialer,
    uds_dist_executable,
    uds_dist_frames,
    uds_dist_info,
    uds_dist_input,
    uds_dist_listener,
    uds_dist_log,
    uds_dist_log_limit,
    uds_dist_log_writer,
    uds_dist_names,
    uds_dist_owner,
    uds_dist_pipe,
    uds_dist_program,
    uds_dist_protocol,
    uds_dist_reflection,
    uds_dist_relay,
    uds_dist_requests,
    uds_dist_settings,
    uds_dist_sidecar,
    uds_dist_socket_dir,
    uds_dist_start_script,
    uds_dist_system,
    uds_dist_text,
    uds_dist_turn,
    uds_dist_window
]).

-record(state, {
    sidecar = uds_dist_sidecar:new() :: uds_dist_sidecar:sidecar(),
    %% Window of a connection in bytes, which the sidecar announces.
    window = 0 :: non_neg_integer(),
    connections = uds_dist_connections:new() :: uds_dist_connections:connections(),
    listener = uds_dist_listener:new() :: uds_dist_listener:listener(),
    dialer = uds_dist_dialer:new() :: uds_dist_dialer:dialer(),
    channel = uds_dist_channel:new() :: uds_dist_channel:channel(),
    settings = uds_dist_settings:new() :: uds_dist_settings:settings(),
    callers = uds_dist_callers:new() :: uds_dist_callers:callers(),
    %% A message will say that the boot is over.
    awaits_boot = false :: boolean(),
    timers = #{} :: #{listener | dialer | channel => reference()}
}).

-spec start_link() -> {ok, pid()} | {error, term()}.
start_link() ->
    %% max: all input passes through here, and a node may have many runnable processes.
    %% off_heap: a garbage collection must not copy input that waits in the message queue.
    %% 0: binaries that have been passed on are freed while they are still in the processor's cache.
    SpawnOptions = [{priority, max}, {message_queue_data, off_heap}, {fullsweep_after, 0}],
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], [{spawn_opt, SpawnOptions}]).

%% ---------------------------------------------------------------------------------------------

-spec init([]) -> {ok, #state{}}.
init([]) ->
    process_flag(trap_exit, true),
    ok = uds_dist_system:remember_working_directory(),
    ok = uds_dist_reflection:new(),
    {ok, _} = uds_dist_log_writer:start_link(),
    ok = uds_dist_log_limit:new(),
    lists:foreach(fun code:ensure_loaded/1, ?NEEDED),
    {ok, #state{}}.

-spec handle_call(uds_dist_owner:call(), gen_server:from(), #state{}) -> {noreply, #state{}}.
handle_call(Request, From, State = #state{callers = Callers}) ->
    State1 = State#state{callers = uds_dist_callers:add(From, part(Request), Callers)},
    {noreply, survive(fun() -> call(Request, From, State1) end, {caller, From}, State1)}.

-spec handle_cast(uds_dist_owner:cast(), #state{}) -> {noreply, #state{}}.
handle_cast(Request, State) ->
    {noreply, survive(fun() -> cast(Request, State) end, Request, State)}.

-spec handle_info(term(), #state{}) -> {noreply, #state{}}.
handle_info(Message, State) ->
    {noreply, survive(fun() -> info(Message, State) end, Message, State)}.

-spec terminate(term(), #state{}) -> ok.
terminate(_Reason, #state{sidecar = Sidecar, connections = Connections}) ->
    %% The sidecar reads the end of its stdin, and removes the socket.
    _ = uds_dist_sidecar:close(Sidecar),
    uds_dist_connections:close_handles(Connections).

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
about({timeout, _, Part}) when Part =:= listener; Part =:= dialer; Part =:= channel -> {timer, Part};
about({timeout, _, status}) -> status;
about({timeout, _, _}) -> sidecar;
about(boot_is_over) -> boot;
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
give_up({timer, Part}, State) ->
    effects(Part, [{timer, ?RETRY}], give_up(Part, State));
give_up(boot, State) ->
    give_up(dialer, State#state{awaits_boot = false});
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
%% Requests of other processes

call({listen, Name}, From, State) ->
    listen(Name, From, State);
call({close_listener, _Name}, From, State) ->
    listener(fun(L) -> uds_dist_listener:close({close, From}, L) end, State);
call(configure, From, State) ->
    configure({configure, From}, State);
call({connect, Node, GiveUp}, From, State) ->
    connect(Node, From, GiveUp, State);
call(info, From, State) ->
    reply(From, describe(State), State);
call(sidecar_status, From, State = #state{sidecar = Sidecar}) ->
    case uds_dist_sidecar:is_up(Sidecar) of
        true -> State#state{sidecar = uds_dist_sidecar:ask_status(Sidecar)};
        false -> reply(From, uds_dist_sidecar:unknown_status(), State)
    end;
call(connections, From, State = #state{connections = Connections}) ->
    reply(From, uds_dist_connections:list(Connections), State).

%% What the reply to a request depends on.
part({listen, _}) -> listener;
part({close_listener, _}) -> listener;
part(configure) -> listener;
part({connect, _, _}) -> dialer;
part(sidecar_status) -> status;
part(_) -> state.

listen(Name, From, State = #state{settings = Settings}) ->
    case uds_dist_settings:place(Name, is_listening(State), Settings) of
        {ok, {Address, _, _} = Place, Config} ->
            Request = {{listen, From, Address}, Name, Config},
            Open = fun(L) -> uds_dist_listener:open(Name, Place, {Request, busy_until()}, L) end,
            listener(Open, use(Config, State));
        put_off ->
            Request = {{listen, From, undefined}, Name, undefined},
            await_boot(listener(fun(L) -> uds_dist_listener:put_off(Name, Request, L) end, State));
        {error, Explanation} ->
            Request = {{listen, From, undefined}, Name, undefined},
            request_done(Request, {error, bad_configuration, Explanation}, State)
    end.

%% Reads the settings again, for a caller or because the boot is over.
configure(Whose, State = #state{listener = Listener}) ->
    Name = uds_dist_listener:name(Listener),
    case {uds_dist_config:read(), uds_dist_listener:wanted(Listener)} of
        {{ok, Config}, none} ->
            request_done({Whose, Name, Config}, ok, State);
        {{ok, Config}, undecided} ->
            %% The sidecar, which opens the listener, needs them.
            move({Whose, Name, Config}, use(Config, State));
        {{ok, Config}, _} ->
            move({Whose, Name, Config}, State);
        {{error, Explanation}, _} ->
            request_done({Whose, Name, undefined}, {error, bad_configuration, Explanation}, State)
    end.

move({_, Name, Config} = Request, State) ->
    case uds_dist_address:place(Name, Config) of
        {ok, Place} ->
            listener(fun(L) -> uds_dist_listener:move(Place, Request, busy_until(), L) end, State);
        {error, Explanation} ->
            request_done(Request, {error, bad_configuration, Explanation}, State)
    end.

busy_until() ->
    now_ms() + ?BUSY_TIMEOUT.

connect(Node, From, GiveUp, State = #state{dialer = Dialer, settings = Settings}) ->
    case uds_dist_settings:address(Node, is_listening(State), Settings) of
        {ok, Address, Config} ->
            Dial = fun(D) -> uds_dist_dialer:dial(Node, Address, {From, GiveUp}, D) end,
            dialer(Dial, use(Config, State));
        put_off ->
            await_boot(State#state{dialer = uds_dist_dialer:put_off(Node, From, GiveUp, Dialer)});
        {error, Explanation} ->
            unreachable(Node, bad_configuration, Explanation, reply(From, {error, bad_configuration}, State))
    end.

is_listening(#state{listener = Listener}) ->
    uds_dist_listener:has_place(Listener).

use(Config, State) ->
    settings(fun(S) -> uds_dist_settings:use(Config, S) end, State).

%% Settings can become known late: distribution starts with kernel, the config providers of an Elixir release
%% run after it, and the application uds_dist starts after them. In releases that do not start the
%% application, the end of the boot is the last chance to read them.
await_boot(State = #state{awaits_boot = true}) ->
    State;
await_boot(State) ->
    ok = uds_dist_system:notify_when_booted(self(), boot_is_over),
    State#state{awaits_boot = true}.

boot_is_over(State) ->
    State1 = settings(fun uds_dist_settings:boot_is_over/1, State#state{awaits_boot = false}),
    case uds_dist_listener:wanted(State1#state.listener) of
        undecided -> configure(boot, State1);
        _ -> dial_put_off(State1)
    end.

dial_put_off(State = #state{dialer = Dialer}) ->
    {Requests, Dialer1} = uds_dist_dialer:take_put_off(Dialer),
    lists:foldl(
        fun({Node, From, GiveUp}, S) -> connect(Node, From, GiveUp, S) end,
        State#state{dialer = Dialer1},
        Requests
    ).

describe(State = #state{sidecar = Sidecar, connections = Connections, listener = Listener}) ->
    #{
        name => uds_dist_listener:name(Listener),
        listening_at => address(uds_dist_listener:actual(Listener)),
        should_listen_at => address(uds_dist_listener:wanted(Listener)),
        transport => transport(State),
        settings => uds_dist_settings:describe(State#state.settings),
        sidecar => uds_dist_sidecar:info(Sidecar),
        connections => length(uds_dist_connections:list(Connections)),
        totals => uds_dist_connections:totals(Connections)
    }.

address({Address, _, _}) -> uds_dist_address:format(Address);
address(_) -> undefined.

cast({another_node, Called, Name}, State) ->
    unreachable(Called, another_node, uds_dist_diagnosis:another_node(Name), State);
cast({not_a_node, Called, Length}, State) ->
    unreachable(Called, not_a_node, uds_dist_diagnosis:not_a_node(Length), State);
cast({not_a_name, Node}, State) ->
    unreachable(Node, not_a_name, uds_dist_address:explain_name(Node), State);
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

%% The transport of new connections.
transport(#state{settings = Settings, channel = Channel}) ->
    case uds_dist_settings:transport(Settings) =:= direct andalso uds_dist_channel:is_usable(Channel) of
        true -> direct;
        false -> relay
    end.

%% ---------------------------------------------------------------------------------------------
%% Messages of the sidecar, and others

info({timeout, Timer, Whose}, State = #state{timers = Timers}) when is_map_key(Whose, Timers) ->
    case Timers of
        #{Whose := Timer} -> timeout(Whose, State#state{timers = maps:remove(Whose, Timers)});
        #{} -> State
    end;
info(boot_is_over, State) ->
    boot_is_over(State);
info(Message, State = #state{sidecar = Sidecar}) ->
    case uds_dist_sidecar:handle(Message, Sidecar) of
        {Event, Sidecar1} -> sidecar(Event, State#state{sidecar = Sidecar1});
        ignored -> other(Message, State)
    end.

other({'DOWN', Monitor, process, _, Reason}, State = #state{connections = Connections}) ->
    case uds_dist_connections:controller_ended(Monitor, Connections) of
        {Close, What, Connections1} ->
            close_connection(Close, ended(What, {exit, Reason}, State#state{connections = Connections1}));
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
    dialer(fun(D) -> uds_dist_dialer:timeout(now_ms(), D) end, State);
timeout(channel, State) ->
    channel(fun uds_dist_channel:retry/1, State).

sidecar(none, State) ->
    State;
sidecar({report, Report}, State) ->
    report(Report, State);
sidecar({status, Status}, State) ->
    status(Status, State);
sidecar({up, Window, Tries}, State = #state{settings = Settings}) ->
    ok = uds_dist_log:sidecar_up(Tries),
    State1 = effects(settings, uds_dist_settings:admit(Settings), State#state{window = Window}),
    %% Listening comes first, because it creates the directory, which the channel needs too.
    State2 = listener(fun uds_dist_listener:up/1, State1),
    State3 = effects(settings, uds_dist_settings:want_channel(Settings), State2),
    dialer(fun uds_dist_dialer:up/1, State3);
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
    How = how_it_ended(Down),
    State2 = listener(fun(L) -> uds_dist_listener:down(How, L) end, State1),
    State3 = dialer(fun uds_dist_dialer:down/1, State2),
    status(uds_dist_sidecar:unknown_status(), State3).

how_it_ended(#{was_up := true}) -> died;
how_it_ended(#{was_up := false}) -> not_started.

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
report({accepted, Conn, Peer, Address} = Report, State) ->
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
    listener(fun(L) -> uds_dist_listener:listening(Id, now_ms(), L) end, State);
report({listen_failed, Id, Reason, Explanation}, State) ->
    listener(fun(L) -> uds_dist_listener:listen_failed(Id, Reason, Explanation, now_ms(), L) end, State);
report({unlistened, Id}, State) ->
    listener(fun(L) -> uds_dist_listener:unlistened(Id, L) end, State);
report({listener_lost, Id, Explanation}, State) ->
    listener(fun(L) -> uds_dist_listener:lost(Id, Explanation, now_ms(), L) end, State);
report({relayed, Conn} = Report, State = #state{connections = Connections}) ->
    case uds_dist_connections:not_handed_over(Conn, Connections) of
        {ok, Connections1} -> State#state{connections = Connections1};
        not_asked_for -> broke_protocol(Report, State)
    end;
report({handed_over, Conn} = Report, State = #state{channel = Channel}) ->
    case uds_dist_channel:take(Channel) of
        {Taken, Events, Channel1} ->
            handed_over(Conn, Taken, effects(channel, Events, State#state{channel = Channel1}));
        not_asked_for ->
            broke_protocol(Report, State)
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
    unreachable(Node, Reason, uds_dist_diagnosis:refusal(), State);
ended({dialled_node, Node, _}, {exit, setup_timer_timeout}, State) ->
    unreachable(Node, timeout, uds_dist_diagnosis:timeout(), State);
ended({dialled_node, _, Peer}, Why, State) ->
    ended({handshake, Peer}, Why, State);
ended(What, Why, State) ->
    ok = uds_dist_log:ended(What, Why),
    State.

%% The dialer limits how often this is logged.
unreachable(Node, Reason, Explanation, State) ->
    dialer(fun(D) -> uds_dist_dialer:failed(Node, Reason, Explanation, now_ms(), D) end, State).

%% Handles the answer to a CONNECT.
dialled({Key, Connections}, {connected, Conn, Peer}, State = #state{dialer = Dialer}) ->
    {{Node, From, Address}, Dialer1} = uds_dist_dialer:connected(Key, Dialer),
    {Supervisor, _Tag} = From,
    Called = {Node, Supervisor},
    {Connection, Connections1} =
        uds_dist_connections:connected(relay_link(Conn, State), Peer, Called, Address, Connections),
    reply(From, {ok, Connection}, State#state{connections = Connections1, dialer = Dialer1});
dialled({Key, Connections}, {connect_failed, _, Reason, Explanation}, State = #state{settings = Settings}) ->
    %% Only then may the node be elsewhere.
    Hint = [uds_dist_settings:default_hint(Settings) || Reason =:= not_listening],
    Whole = [Explanation, Hint],
    dialer(
        fun(D) -> uds_dist_dialer:connect_failed(Key, Reason, Whole, now_ms(), D) end,
        State#state{connections = Connections}
    );
dialled(error, Report, State) ->
    broke_protocol(Report, State).

relay_link(Conn, #state{sidecar = Sidecar, window = Window}) ->
    uds_dist_relay:link(uds_dist_sidecar:port(Sidecar), Conn, Window).

broke_protocol(Report, State = #state{sidecar = Sidecar}) ->
    {Event, Sidecar1} = uds_dist_sidecar:broke_protocol(Report, Sidecar),
    sidecar(Event, State#state{sidecar = Sidecar1}).

%% Sockets that the sidecar hands over, where the transport is direct.
handed_over(Conn, {ok, Handles}, State = #state{connections = Connections, settings = Settings}) ->
    Spin = uds_dist_settings:spin(Settings),
    State#state{connections = uds_dist_connections:handed_over(Conn, Handles, Spin, Connections)};
handed_over(Conn, {error, Explanation}, State = #state{connections = Connections}) ->
    Reason = {connection_failed, handover},
    {Node, Connections1} = uds_dist_connections:handover_failed(Conn, Reason, Connections),
    _ = Node =:= undefined orelse uds_dist_log:lost_handover(Node, Explanation),
    State#state{connections = Connections1}.

%% ---------------------------------------------------------------------------------------------
%% The state machines, and the effects that come out of them

listener(Event, State) ->
    {Effects, Listener} = Event(State#state.listener),
    effects(listener, Effects, State#state{listener = Listener}).

dialer(Event, State) ->
    {Effects, Dialer} = Event(State#state.dialer),
    effects(dialer, Effects, State#state{dialer = Dialer}).

settings(Event, State) ->
    {Effects, Settings} = Event(State#state.settings),
    effects(settings, Effects, State#state{settings = Settings}).

request_done(Request, Result, State) ->
    effects(request, uds_dist_requests:done(Request, Result), State).

channel(Event, State) ->
    {Effects, Channel} = Event(State#state.channel),
    effects(channel, Effects, State#state{channel = Channel}).

channel(not_asked_for, Report, State) -> broke_protocol(Report, State);
channel({Effects, Channel}, _, State) -> effects(channel, Effects, State#state{channel = Channel}).

effects(Part, Effects, State) ->
    lists:foldl(fun(Effect, S) -> effect(Part, Effect, S) end, State, Effects).

effect(Part, {timer, Milliseconds}, State = #state{timers = Timers}) ->
    _ = [erlang:cancel_timer(Timer) || #{Part := Timer} <- [Timers]],
    State#state{timers = Timers#{Part => erlang:start_timer(Milliseconds, self(), Part)}};
effect(_, {log, Level, Line}, State) ->
    ok = uds_dist_log:listener(Level, Line),
    State;
effect(_, need_sidecar, State = #state{sidecar = Sidecar, settings = Settings}) ->
    State#state{sidecar = uds_dist_sidecar:need(uds_dist_settings:program(Settings), Sidecar)};
effect(listener, {listen, Id, {Address, Backlog, Mode}}, State) ->
    VmPid = list_to_integer(os:getpid()),
    transmit(uds_dist_protocol:listen(Id, Backlog, Mode, VmPid, Address), State);
effect(listener, {unlisten, Id}, State) ->
    transmit(uds_dist_protocol:unlisten(Id), State);
effect(listener, {done, Request, Result}, State) ->
    request_done(Request, Result, State);
effect(request, {reply, From, Reply}, State) ->
    reply(From, Reply, State);
effect(request, {configured, Config}, State) ->
    dial_put_off(use(Config, State));
effect(request, {put_off_notice, Notice}, State = #state{settings = Settings}) ->
    await_boot(State#state{settings = uds_dist_settings:put_off_notice(Notice, Settings)});
effect(request, end_vm, State) ->
    ok = init:stop(1),
    State;
effect(dialer, {connect, Key, Address}, State = #state{connections = Connections}) ->
    {Conn, Connections1} = uds_dist_connections:dial(Key, Connections),
    transmit(uds_dist_protocol:connect(Conn, Address), State#state{connections = Connections1});
effect(dialer, {failed, From, Reason}, State) ->
    reply(From, {error, Reason}, State);
effect(dialer, {unreachable, Node, not_listening, Explanation}, State = #state{settings = Settings}) ->
    Hint = uds_dist_settings:case_hint(Node, Settings),
    ok = uds_dist_log:unreachable(Node, not_listening, [Explanation, Hint]),
    State;
effect(dialer, {unreachable, Node, Reason, Explanation}, State) ->
    ok = uds_dist_log:unreachable(Node, Reason, Explanation),
    State;
effect(settings, {admit, Policy}, State) ->
    transmit(uds_dist_protocol:admit(Policy), State);
effect(settings, {want_channel, Dir}, State = #state{sidecar = Sidecar}) ->
    case uds_dist_sidecar:is_up(Sidecar) of
        true -> channel(fun(C) -> uds_dist_channel:want(Dir, C) end, State);
        false -> State
    end;
effect(channel, {send, Packet}, State) ->
    transmit(Packet, State);
effect(channel, ask_again, State = #state{settings = Settings}) ->
    effects(settings, uds_dist_settings:want_channel(Settings), State);
effect(channel, {failed, Explanation}, State) ->
    ok = uds_dist_log:no_channel(Explanation),
    State;
effect(channel, restored, State) ->
    ok = uds_dist_log:channel_restored(),
    State.

transmit(Packet, State = #state{sidecar = Sidecar}) ->
    case uds_dist_sidecar:is_up(Sidecar) of
        true -> State#state{sidecar = uds_dist_sidecar:send(Packet, Sidecar)};
        %% The connection or listener that it is about has ended with the sidecar.
        false -> State
    end.

%% ---------------------------------------------------------------------------------------------

now_ms() ->
    erlang:monotonic_time(millisecond).
