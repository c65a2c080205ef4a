%% The table of this node's connections: the processes that belong to each of the sidecar's connection
%% numbers, and the incoming connections that wait for the acceptor. uds_dist_port keeps this state and
%% routes packets by it.
%%
%% A connection is in the table from the sidecar's first packet about it until its controller ends. Once its
%% socket has been handed over, or the sidecar is gone, its number no longer means anything.
-module(uds_dist_connections).

-export([new/0, dial/2, dialled/2]).
-export([accepted/4, connected/5]).
-export([data/3, acknowledged/3, closed/3]).
-export([established/4, await_handover/2, relayed/2, not_handed_over/2]).
-export([handed_over/4, handover_failed/3]).
-export([acceptor/2, stop/2, controller_ended/2, sidecar_ended/1, close_handles/1]).
-export([count/1, list/1, totals/1]).

-export_type([connections/0]).

-record(conn, {
    %% Time at which the connection was opened, in seconds of system time.
    since = erlang:system_time(second) :: integer(),
    counters :: uds_dist_counters:counters(),
    window :: pos_integer(),
    transport = relay :: relay | direct,
    %% Known once the handshake is complete.
    dhandle :: undefined | erlang:dist_handle(),
    controller :: pid(),
    input_handler :: pid(),
    peer :: uds_dist_protocol:peer(),
    %% Where the peer's socket is bound.
    address :: undefined | uds_dist_protocol:address(),
    %% At which its end is logged, once the node is known.
    level = info :: info | debug,
    %% The node that we dialled; undefined if the peer dialled us.
    called :: undefined | node(),
    %% The node at the other end; known once the handshake is complete.
    node :: undefined | node(),
    stage = handshake ::
        handshake
        %% The socket has been requested from the sidecar.
        | handing_over
        | up
        %% The sidecar has reported the end of the connection.
        | ended,
    greeting = uds_dist_diagnosis:new() :: uds_dist_diagnosis:greeting()
}).

-record(connections, {
    by_number = #{} :: #{
        uds_dist_protocol:conn() => {dialling, uds_dist_dialer:key()} | {reference(), #conn{}}
    },
    by_monitor = #{} :: #{
        reference() =>
            {number, uds_dist_protocol:conn()}
            | {{handed_over, uds_dist_channel:handles()}, #conn{}}
            | {lost, #conn{}}
    },
    %% The latest number given to an outgoing connection.
    last = -1 :: integer(),
    acceptor :: undefined | pid(),
    %% Whether the acceptor is waiting for a connection, and the connections that are waiting for it.
    is_ready = false :: boolean(),
    unclaimed = [] :: [uds_dist_protocol:conn()],
    %% Bytes of connections that have ended.
    totals = uds_dist_counters:totals([]) :: uds_dist_counters:totals(),
    opened = #{in => 0, out => 0} :: #{in | out => non_neg_integer()}
}).

-opaque connections() :: #connections{}.

%% What has ended, for the log or for whoever dialled.
-type ended() ::
    uds_dist_log:ended()
    %% The node that we dialled, which closed the connection without sending anything.
    | {silent_node, node()}
    %% The node that we dialled, which closed the connection when it had our answer to its challenge.
    | {refusing_node, node()}
    %% The node that we dialled, with which this node did not complete the handshake.
    | {dialled_node, node(), uds_dist_protocol:peer()}.

-define(MAX_CONN, 16#3FFFFFFF).

-spec new() -> connections().
new() ->
    #connections{}.

%% The number of connections that the sidecar relays, and of those handed over to this VM.
-spec count(connections()) -> {Relayed :: non_neg_integer(), HandedOver :: non_neg_integer()}.
count(#connections{by_number = ByNumber, by_monitor = ByMonitor}) ->
    {
        length([Monitor || {Monitor, #conn{}} <- maps:values(ByNumber), is_reference(Monitor)]),
        length([C || {{handed_over, _}, C} <- maps:values(ByMonitor)])
    }.

%% All connections, with either transport.
-spec list(connections()) -> [uds_dist_owner:entry()].
list(Connections) ->
    [entry(C) || C <- conns(Connections)].

conns(#connections{by_number = ByNumber, by_monitor = ByMonitor}) ->
    [C || {_, #conn{} = C} <- maps:values(ByNumber)] ++
        [C || {_, #conn{} = C} <- maps:values(ByMonitor)].

entry(C = #conn{called = Called, node = Node, stage = Stage}) ->
    #{
        node =>
            case Node of
                undefined -> Called;
                _ -> Node
            end,
        direction => direction(C),
        transport => C#conn.transport,
        state =>
            case {Stage, Node} of
                {ended, _} -> ending;
                {_, undefined} -> handshake;
                _ -> up
            end,
        since => C#conn.since,
        peer => C#conn.peer,
        address => C#conn.address,
        counters => C#conn.counters,
        window => C#conn.window,
        dhandle => C#conn.dhandle
    }.

direction(#conn{called = undefined}) -> in;
direction(#conn{}) -> out.

%% Counters that only rise: connections opened in each direction, and bytes each way.
-spec totals(connections()) ->
    #{
        connections_accepted := non_neg_integer(),
        connections_made := non_neg_integer(),
        bytes_sent := non_neg_integer(),
        bytes_received := non_neg_integer()
    }.
totals(Connections = #connections{totals = Totals, opened = #{in := In, out := Out}}) ->
    Sum = uds_dist_counters:totals([Totals | [C#conn.counters || C <- conns(Connections)]]),
    Sum#{connections_accepted => In, connections_made => Out}.

%% ---------------------------------------------------------------------------------------------
%% The beginning of a connection

%% Reserves a number for an outgoing connection. The VM uses odd numbers.
-spec dial(uds_dist_dialer:key(), connections()) -> {uds_dist_protocol:conn(), connections()}.
dial(Key, Connections = #connections{last = Last, by_number = ByNumber}) ->
    Conn =
        case Last + 2 of
            Next when Next =< ?MAX_CONN -> Next;
            _ -> 1
        end,
    Connections1 = Connections#connections{last = Conn},
    case ByNumber of
        #{Conn := _} -> dial(Key, Connections1);
        #{} -> {Conn, Connections1#connections{by_number = ByNumber#{Conn => {dialling, Key}}}}
    end.

%% Takes the request back out of the table once the sidecar has answered it.
-spec dialled(uds_dist_protocol:conn(), connections()) ->
    {uds_dist_dialer:key(), connections()} | error.
dialled(Conn, Connections = #connections{by_number = ByNumber}) ->
    case ByNumber of
        #{Conn := {dialling, Key}} ->
            {Key, Connections#connections{by_number = maps:remove(Conn, ByNumber)}};
        #{} ->
            error
    end.

%% Adds an incoming connection, which is given to the acceptor in its turn. The sidecar uses even numbers.
-spec accepted(uds_dist_relay:link(), uds_dist_protocol:peer(), Address, connections()) ->
    {ok, connections()} | wrong_number
when
    Address :: undefined | uds_dist_protocol:address().
accepted(Link, Peer, Address, Connections) ->
    #connections{by_number = ByNumber, unclaimed = Unclaimed} = Connections,
    case uds_dist_relay:number(Link) of
        Conn when Conn rem 2 =:= 0, not is_map_key(Conn, ByNumber) ->
            {_, Connections1} = add(Link, {Peer, Address}, {undefined, undefined}, Connections),
            {ok, claim(Connections1#connections{unclaimed = Unclaimed ++ [Conn]})};
        _ ->
            wrong_number
    end.

%% Adds an outgoing connection to a node that listens at Address. Supervisor is the process that asked for it.
-spec connected(uds_dist_relay:link(), uds_dist_protocol:peer(), Called, Address, connections()) ->
    {uds_dist_connection:connection(), connections()}
when
    Called :: {node(), Supervisor :: pid()}, Address :: uds_dist_protocol:address().
connected(Link, Peer, Called, Address, Connections) ->
    {C, Connections1} = add(Link, {Peer, Address}, Called, Connections),
    {connection(C), Connections1}.

connection(#conn{controller = Controller, input_handler = InputHandler, address = Address}) ->
    uds_dist_connection:new(Controller, InputHandler, Address).

add(Link, {Peer, Address}, {Called, Supervisor}, Connections) ->
    #connections{by_number = ByNumber, by_monitor = ByMonitor, opened = Opened} = Connections,
    Counters = uds_dist_counters:new(),
    InputHandler = uds_dist_input:start(Link, Called, Counters),
    Processes = #{input_handler => InputHandler, supervisor => Supervisor, counters => Counters},
    Controller = start_controller(Link, Processes),
    Monitor = monitor(process, Controller),
    Conn = uds_dist_relay:number(Link),
    C = #conn{
        controller = Controller,
        input_handler = InputHandler,
        peer = Peer,
        address = Address,
        called = Called,
        counters = Counters,
        window = uds_dist_relay:window(Link)
    },
    {C, Connections#connections{
        by_number = ByNumber#{Conn => {Monitor, C}},
        by_monitor = ByMonitor#{Monitor => {number, Conn}},
        opened = maps:update_with(direction(C), fun(Count) -> Count + 1 end, Opened)
    }}.

%% If the VM has no room for a controller, nobody else would end the input handler.
start_controller(Link, Processes = #{input_handler := InputHandler}) ->
    try
        uds_dist_controller:start(Link, Processes)
    catch
        Class:Reason:Stack ->
            true = exit(InputHandler, kill),
            erlang:raise(Class, Reason, Stack)
    end.

%% Records that the acceptor is ready for a connection. A new one replaces an acceptor that has ended.
-spec acceptor(pid(), connections()) -> connections().
acceptor(Acceptor, Connections) ->
    claim(Connections#connections{acceptor = Acceptor, is_ready = true}).

claim(Connections = #connections{is_ready = true, unclaimed = [Conn | Unclaimed]}) ->
    #connections{acceptor = Acceptor, by_number = ByNumber} = Connections,
    case is_process_alive(Acceptor) of
        true ->
            #{Conn := {_, C}} = ByNumber,
            ok = uds_dist_acceptor:accepted(Acceptor, connection(C)),
            Connections#connections{is_ready = false, unclaimed = Unclaimed};
        false ->
            %% The next acceptor gets them.
            Connections#connections{is_ready = false}
    end;
claim(Connections) ->
    Connections.

%% ---------------------------------------------------------------------------------------------
%% Packets about a connection. If this node has ended it already, the packet is ignored: the two ends have
%% crossed on the way.

-spec data(uds_dist_protocol:conn(), binary(), connections()) -> connections().
data(Conn, Bytes, Connections = #connections{by_number = ByNumber}) ->
    case ByNumber of
        #{Conn := {Monitor, #conn{input_handler = InputHandler, stage = handshake} = C}} ->
            ok = uds_dist_relay:data(InputHandler, Bytes),
            Greeting = uds_dist_diagnosis:received(Bytes, C#conn.greeting),
            update(Conn, Monitor, C#conn{greeting = Greeting}, Connections);
        #{Conn := {_, #conn{input_handler = InputHandler}}} ->
            ok = uds_dist_relay:data(InputHandler, Bytes),
            Connections;
        #{} ->
            Connections
    end.

-spec acknowledged(uds_dist_protocol:conn(), non_neg_integer(), connections()) -> ok.
acknowledged(Conn, Count, #connections{by_number = ByNumber}) ->
    case ByNumber of
        #{Conn := {_, #conn{controller = Controller}}} ->
            uds_dist_relay:acknowledged(Controller, Count);
        #{} ->
            ok
    end.

%% Records that the socket has ended; all its data has been routed before. Returns what to log.
-spec closed(uds_dist_protocol:conn(), uds_dist_transport:reason(), connections()) ->
    {ended(), connections()}.
closed(Conn, Reason, Connections = #connections{by_number = ByNumber, unclaimed = Unclaimed}) ->
    case ByNumber of
        #{Conn := {Monitor, #conn{stage = Stage} = C}} when Stage =/= ended ->
            case lists:member(Conn, Unclaimed) of
                true -> ok = uds_dist_connection:stop(C#conn.controller, Reason);
                false -> ok = end_input(C, Reason)
            end,
            Connections1 = Connections#connections{unclaimed = lists:delete(Conn, Unclaimed)},
            {what_ended(C), update(Conn, Monitor, C#conn{stage = ended}, Connections1)};
        #{} ->
            {none, Connections}
    end.

%% If the socket was still being handed over, it will not arrive, so the connection ends as a relayed one.
end_input(C = #conn{controller = Controller, input_handler = InputHandler}, Reason) ->
    _ = C#conn.stage =:= handing_over andalso uds_dist_controller:relayed(Controller),
    uds_dist_relay:closed(InputHandler, Reason).

what_ended(#conn{node = Node, level = Level}) when Node =/= undefined ->
    {node, Node, Level};
what_ended(#conn{called = Called, peer = Peer, greeting = Greeting}) ->
    case {Called, uds_dist_diagnosis:verdict(Greeting)} of
        %% The peer only probed whether this node is alive, as uds_dist:names/0 on another node does.
        {undefined, silent} -> none;
        {undefined, _} -> {handshake, Peer};
        {Node, silent} -> {silent_node, Node};
        {Node, refused} -> {refusing_node, Node};
        {_, unclear} -> {handshake, Peer}
    end.

%% ---------------------------------------------------------------------------------------------
%% The end of the handshake, and the choice of the transport

%% Records that the handshake is complete, with a node whose end is logged at Level. Returns which side
%% dialled, or that the connection has ended.
-spec established(
    {uds_dist_protocol:conn(), Controller :: pid()},
    {node(), Level :: info | debug},
    erlang:dist_handle(),
    connections()
) -> {{called, node()} | {called_by, uds_dist_protocol:peer()} | ended, connections()}.
established({Conn, Controller}, {Node, Level}, DHandle, Connections) ->
    #connections{by_number = ByNumber} = Connections,
    case ByNumber of
        #{Conn := {Monitor, #conn{controller = Controller, stage = handshake} = C}} ->
            C1 = C#conn{node = Node, level = Level, dhandle = DHandle},
            {caller(C), update(Conn, Monitor, C1, Connections)};
        #{} ->
            %% The peer or the sidecar has ended in the meantime. Data that has arrived still goes to the VM.
            ok = uds_dist_controller:relayed(Controller),
            {ended, Connections}
    end.

caller(#conn{called = undefined, peer = Peer}) -> {called_by, Peer};
caller(#conn{called = Node}) -> {called, Node}.

%% Records that the sidecar has been asked for the socket.
-spec await_handover(uds_dist_protocol:conn(), connections()) -> connections().
await_handover(Conn, Connections) ->
    stage(handing_over, Conn, Connections).

%% Records that the sidecar keeps the socket, and relays the connection.
-spec relayed(uds_dist_protocol:conn(), connections()) -> connections().
relayed(Conn, Connections = #connections{by_number = ByNumber}) ->
    case ByNumber of
        #{Conn := {_, #conn{controller = Controller, stage = Stage}}} when Stage =/= ended ->
            ok = uds_dist_controller:relayed(Controller),
            stage(up, Conn, Connections);
        #{} ->
            Connections
    end.

%% The same, as the sidecar's answer to a request for the socket.
-spec not_handed_over(uds_dist_protocol:conn(), connections()) ->
    {ok, connections()} | not_asked_for.
not_handed_over(Conn, Connections = #connections{by_number = ByNumber}) ->
    case ByNumber of
        #{Conn := {_, #conn{stage = handing_over}}} -> {ok, relayed(Conn, Connections)};
        #{Conn := {_, #conn{stage = Stage}}} when Stage =/= ended -> not_asked_for;
        #{} -> {ok, Connections}
    end.

stage(Stage, Conn, Connections = #connections{by_number = ByNumber}) ->
    #{Conn := {Monitor, C}} = ByNumber,
    update(Conn, Monitor, C#conn{stage = Stage}, Connections).

%% Gives the socket, which has arrived in this VM, to the processes of the connection. The number is free now.
-spec handed_over(uds_dist_protocol:conn(), uds_dist_channel:handles(), Spin, connections()) ->
    connections()
when
    Spin :: non_neg_integer().
handed_over(Conn, Handles, Spin, Connections) ->
    #connections{by_number = ByNumber, by_monitor = ByMonitor} = Connections,
    case maps:take(Conn, ByNumber) of
        {{Monitor, #conn{stage = handing_over} = C}, ByNumber1} ->
            #conn{controller = Controller, input_handler = InputHandler} = C,
            ok = uds_dist_controller:handed_over(Controller, Handles),
            ok = uds_dist_input:handed_over(InputHandler, Handles, Spin),
            C1 = C#conn{transport = direct},
            Connections#connections{
                by_number = ByNumber1, by_monitor = ByMonitor#{Monitor := {{handed_over, Handles}, C1}}
            };
        _ ->
            %% The controller has ended in the meantime.
            ok = uds_dist_channel:close_handles(Handles),
            Connections
    end.

%% Ends a connection whose socket has left the sidecar but did not arrive. The number is free now. Returns the node
%% at the other end.
-spec handover_failed(uds_dist_protocol:conn(), uds_dist_transport:reason(), connections()) ->
    {node() | undefined, connections()}.
handover_failed(Conn, Reason, Connections) ->
    #connections{by_number = ByNumber, by_monitor = ByMonitor} = Connections,
    case maps:take(Conn, ByNumber) of
        {{Monitor, #conn{stage = handing_over, node = Node} = C}, ByNumber1} ->
            ok = end_input(C, Reason),
            {Node, Connections#connections{
                by_number = ByNumber1, by_monitor = ByMonitor#{Monitor := lost(C)}
            }};
        _ ->
            {undefined, Connections}
    end.

%% The sidecar has no socket with this connection's number any more, and its end is logged already.
lost(C) ->
    {lost, C#conn{stage = ended}}.

update(Conn, Monitor, C, Connections = #connections{by_number = ByNumber}) ->
    Connections#connections{by_number = ByNumber#{Conn := {Monitor, C}}}.

%% ---------------------------------------------------------------------------------------------
%% The end of a connection

%% Ends a connection: its controller, whose end is reported as every other.
-spec stop(uds_dist_protocol:conn(), connections()) -> ok | unknown.
stop(Conn, #connections{by_number = ByNumber}) ->
    case ByNumber of
        #{Conn := {_, #conn{controller = Controller}}} ->
            uds_dist_connection:stop(Controller, internal_error);
        #{} ->
            unknown
    end.

%% Removes the connection of a controller that has ended. Returns the number that the sidecar has to close,
%% if any, and what to log.
-spec controller_ended(Monitor :: reference(), connections()) ->
    {Close, ended(), connections()} | error
when
    Close :: uds_dist_protocol:conn() | none.
controller_ended(Monitor, Connections = #connections{by_monitor = ByMonitor}) ->
    case maps:take(Monitor, ByMonitor) of
        {{number, Conn}, ByMonitor1} ->
            #connections{by_number = ByNumber, unclaimed = Unclaimed} = Connections,
            {{_, C}, ByNumber1} = maps:take(Conn, ByNumber),
            {Conn, what_to_log(C), forget(C, Connections#connections{
                by_number = ByNumber1,
                by_monitor = ByMonitor1,
                unclaimed = lists:delete(Conn, Unclaimed)
            })};
        {{{handed_over, Handles}, C}, ByMonitor1} ->
            ok = uds_dist_channel:close_handles(Handles),
            {none, what_to_log(C), forget(C, Connections#connections{by_monitor = ByMonitor1})};
        {{lost, C}, ByMonitor1} ->
            {none, none, forget(C, Connections#connections{by_monitor = ByMonitor1})};
        error ->
            error
    end.

forget(#conn{counters = Counters}, Connections = #connections{totals = Totals}) ->
    Connections#connections{totals = uds_dist_counters:totals([Totals, Counters])}.

%% An end that the sidecar reported has been logged already, with its reason.
what_to_log(#conn{stage = ended}) -> none;
what_to_log(#conn{node = Node, level = Level}) when Node =/= undefined -> {node, Node, Level};
what_to_log(#conn{called = undefined, peer = Peer}) -> {handshake, Peer};
what_to_log(#conn{called = Called, peer = Peer}) -> {dialled_node, Called, Peer}.

%% Ends all connections whose sockets died with the sidecar. Input handlers first give the VM the data that
%% arrived before.
-spec sidecar_ended(connections()) -> connections().
sidecar_ended(Connections = #connections{by_number = ByNumber, by_monitor = ByMonitor}) ->
    #connections{unclaimed = Unclaimed} = Connections,
    Lost = [{Conn, Monitor, C} || {Conn, {Monitor, #conn{} = C}} <- maps:to_list(ByNumber)],
    lists:foreach(
        fun
            ({_, _, #conn{stage = ended}}) ->
                ok;
            ({Conn, _, C}) ->
                case lists:member(Conn, Unclaimed) of
                    true -> uds_dist_connection:stop(C#conn.controller, connection_closed);
                    false -> end_input(C, connection_closed)
                end
        end,
        Lost
    ),
    Connections#connections{
        by_number = #{},
        by_monitor = lists:foldl(
            fun({_, Monitor, C}, Map) -> Map#{Monitor := lost(C)} end, ByMonitor, Lost
        ),
        unclaimed = []
    }.

%% Closes all sockets in this VM, when nobody will see the ends of their connections any more.
-spec close_handles(connections()) -> ok.
close_handles(#connections{by_monitor = ByMonitor}) ->
    lists:foreach(
        fun uds_dist_channel:close_handles/1,
        [Handles || {{handed_over, Handles}, _} <- maps:values(ByMonitor)]
    ).
