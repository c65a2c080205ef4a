%% The connections of this node: which processes belong to which number of the sidecar's, and which peers
%% wait for the acceptor. Its owner, uds_dist_port, keeps this state and routes by it.
%%
%% A connection is here from the sidecar's first word of it until its controller has ended. The number of
%% a connection that the sidecar has no more, because the socket was handed over or the sidecar is gone,
%% means nothing any longer.
-module(uds_dist_connections).

-export([new/0, dial/2, dialled/2]).
-export([accepted/3, connected/5]).
-export([data/3, acknowledged/3, closed/3]).
-export([established/4, await_handover/2, relayed/2, handed_over/4, handover_failed/3]).
-export([acceptor/2, controller_ended/2, sidecar_ended/1]).
-export([count/1, list/1, totals/1]).

-export_type([connections/0, ended/0, entry/0]).

-record(conn, {
    %% When it was opened, in seconds of system time.
    since = erlang:system_time(second) :: integer(),
    counters = uds_dist_counters:new() :: uds_dist_counters:counters(),
    transport = relay :: relay | direct,
    %% Once the handshake is through.
    dhandle :: undefined | erlang:dist_handle(),
    controller :: pid(),
    input_handler :: pid(),
    peer :: uds_dist_protocol:peer(),
    %% The node that we called; undefined if the peer called us.
    called :: undefined | node(),
    %% The node at the other end, once the handshake is through.
    node :: undefined | node(),
    stage = handshake ::
        handshake
        %% Its socket is to come from the sidecar.
        | handing_over
        | up
        %% The sidecar has said that it ended.
        | ended,
    %% Something came in.
    has_data = false :: boolean()
}).

-record(connections, {
    by_number = #{} :: #{
        uds_dist_protocol:conn() => {dialling, uds_dist_dialer:key()} | {reference(), #conn{}}
    },
    by_monitor = #{} :: #{
        reference() => {number, uds_dist_protocol:conn()} | {handed_over, #conn{}} | {lost, #conn{}}
    },
    %% The last number of ours.
    last = -1 :: integer(),
    acceptor :: undefined | pid(),
    %% Whether the acceptor waits for a connection, and the peers that wait for it.
    is_ready = false :: boolean(),
    unclaimed = [] :: [uds_dist_protocol:conn()],
    %% Of connections that have ended.
    totals = uds_dist_counters:totals([]) :: uds_dist_counters:totals(),
    opened = #{in => 0, out => 0} :: #{in | out => non_neg_integer()}
}).

-opaque connections() :: #connections{}.

%% What is known of a connection.
-type entry() :: #{
    node := undefined | node(),
    direction := in | out,
    transport := relay | direct,
    state := handshake | up | ending,
    since := integer(),
    peer := uds_dist_protocol:peer(),
    counters := uds_dist_counters:counters(),
    dhandle := undefined | erlang:dist_handle()
}.

%% What has ended, if it is worth a line in the log.
-type ended() ::
    {node, node()}
    | {handshake, uds_dist_protocol:peer()}
    %% The node that we called has said nothing at all.
    | {silent_node, node()}
    | none.

-define(MAX_CONN, 16#3FFFFFFF).

-spec new() -> connections().
new() ->
    #connections{}.

%% Connections that the sidecar has, and those that were handed over.
-spec count(connections()) -> {Relayed :: non_neg_integer(), HandedOver :: non_neg_integer()}.
count(#connections{by_number = ByNumber, by_monitor = ByMonitor}) ->
    {
        length([Monitor || {Monitor, #conn{}} <- maps:values(ByNumber), is_reference(Monitor)]),
        length([C || {handed_over, C} <- maps:values(ByMonitor)])
    }.

%% Every connection, however its bytes travel.
-spec list(connections()) -> [entry()].
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
        counters => C#conn.counters,
        dhandle => C#conn.dhandle
    }.

direction(#conn{called = undefined}) -> in;
direction(#conn{}) -> out.

%% What only rises: connections that were opened in each direction, and bytes each way.
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

%% A number for a connection that we make. Odd numbers are the VM's.
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

%% The sidecar has answered for this number.
-spec dialled(uds_dist_protocol:conn(), connections()) ->
    {uds_dist_dialer:key(), connections()} | error.
dialled(Conn, Connections = #connections{by_number = ByNumber}) ->
    case ByNumber of
        #{Conn := {dialling, Key}} ->
            {Key, Connections#connections{by_number = maps:remove(Conn, ByNumber)}};
        #{} ->
            error
    end.

%% A peer came in: it is given to the acceptor in its turn.
-spec accepted(uds_dist_relay:link(), uds_dist_protocol:peer(), connections()) -> connections().
accepted(Link, Peer, Connections = #connections{unclaimed = Unclaimed}) ->
    {_, Connections1} = add(Link, Peer, {undefined, undefined}, Connections),
    claim(Connections1#connections{unclaimed = Unclaimed ++ [uds_dist_relay:number(Link)]}).

%% We have connected to Node, which listens at Address, for the process Supervisor.
-spec connected(uds_dist_relay:link(), uds_dist_protocol:peer(), Called, Address, connections()) ->
    {uds_dist_controller:connection(), connections()}
when
    Called :: {node(), Supervisor :: pid()}, Address :: uds_dist_protocol:address().
connected(Link, Peer, Called, Address, Connections) ->
    {C, Connections1} = add(Link, Peer, Called, Connections),
    {connection(C, Address), Connections1}.

connection(#conn{controller = Controller, input_handler = InputHandler}, Address) ->
    uds_dist_controller:connection(Controller, InputHandler, Address).

add(Link, Peer, {Called, Supervisor}, Connections) ->
    #connections{by_number = ByNumber, by_monitor = ByMonitor, opened = Opened} = Connections,
    Counters = uds_dist_counters:new(),
    InputHandler = uds_dist_input:start(Link, Called, Counters),
    Controller = uds_dist_controller:start(Link, #{
        input_handler => InputHandler, supervisor => Supervisor, counters => Counters
    }),
    Monitor = monitor(process, Controller),
    Conn = uds_dist_relay:number(Link),
    C = #conn{
        controller = Controller,
        input_handler = InputHandler,
        peer = Peer,
        called = Called,
        counters = Counters
    },
    {C, Connections#connections{
        by_number = ByNumber#{Conn => {Monitor, C}},
        by_monitor = ByMonitor#{Monitor => {number, Conn}},
        opened = maps:update_with(direction(C), fun(Count) -> Count + 1 end, Opened)
    }}.

%% The acceptor is ready for a connection. Another one than before stands in for one that has ended.
-spec acceptor(pid(), connections()) -> connections().
acceptor(Acceptor, Connections) ->
    claim(Connections#connections{acceptor = Acceptor, is_ready = true}).

claim(Connections = #connections{is_ready = true, unclaimed = [Conn | Unclaimed]}) ->
    #connections{acceptor = Acceptor, by_number = ByNumber} = Connections,
    #{Conn := {_, C}} = ByNumber,
    ok = uds_dist_acceptor:accepted(Acceptor, connection(C, undefined)),
    Connections#connections{is_ready = false, unclaimed = Unclaimed};
claim(Connections) ->
    Connections.

%% ---------------------------------------------------------------------------------------------
%% Packets about a connection. One that this node has ended already is ignored: both ends cross.

-spec data(uds_dist_protocol:conn(), binary(), connections()) -> connections().
data(Conn, Bytes, Connections = #connections{by_number = ByNumber}) ->
    case ByNumber of
        #{Conn := {_, #conn{input_handler = InputHandler, has_data = true}}} ->
            ok = uds_dist_relay:data(InputHandler, Bytes),
            Connections;
        #{Conn := {Monitor, #conn{input_handler = InputHandler} = C}} ->
            ok = uds_dist_relay:data(InputHandler, Bytes),
            update(Conn, Monitor, C#conn{has_data = true}, Connections);
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

%% The socket has ended, and all that it had to say has been passed on. Tells what there is to log.
-spec closed(uds_dist_protocol:conn(), uds_dist_transport:reason(), connections()) ->
    {ended(), connections()}.
closed(Conn, Reason, Connections = #connections{by_number = ByNumber, unclaimed = Unclaimed}) ->
    case ByNumber of
        #{Conn := {Monitor, #conn{stage = Stage} = C}} when Stage =/= ended ->
            case lists:member(Conn, Unclaimed) of
                true -> ok = uds_dist_controller:stop(C#conn.controller, Reason);
                false -> ok = end_input(C, Reason)
            end,
            Connections1 = Connections#connections{unclaimed = lists:delete(Conn, Unclaimed)},
            {what_ended(C), update(Conn, Monitor, C#conn{stage = ended}, Connections1)};
        #{} ->
            {none, Connections}
    end.

%% The transport of a connection whose socket does not come any more is the sidecar.
end_input(C = #conn{controller = Controller, input_handler = InputHandler}, Reason) ->
    _ = C#conn.stage =:= handing_over andalso uds_dist_controller:relayed(Controller),
    uds_dist_relay:closed(InputHandler, Reason).

what_ended(#conn{node = Node}) when Node =/= undefined -> {node, Node};
what_ended(#conn{called = Node, has_data = false}) when Node =/= undefined -> {silent_node, Node};
%% Somebody looked whether this node lives, such as uds_dist:names/0 of another one.
what_ended(#conn{has_data = false}) -> none;
what_ended(#conn{peer = Peer}) -> {handshake, Peer}.

%% ---------------------------------------------------------------------------------------------
%% The end of the handshake, and the choice of the transport

%% The handshake is through. Tells who called whom, if the sidecar still has the connection.
-spec established(
    {uds_dist_protocol:conn(), Controller :: pid()}, node(), erlang:dist_handle(), connections()
) -> {{called, node()} | {called_by, uds_dist_protocol:peer()} | ended, connections()}.
established({Conn, Controller}, Node, DHandle, Connections = #connections{by_number = ByNumber}) ->
    case ByNumber of
        #{Conn := {Monitor, #conn{controller = Controller, stage = handshake} = C}} ->
            C1 = C#conn{node = Node, dhandle = DHandle},
            {caller(C), update(Conn, Monitor, C1, Connections)};
        #{} ->
            %% The peer or the sidecar has ended meanwhile. What had come in is still given to the VM.
            ok = uds_dist_controller:relayed(Controller),
            {ended, Connections}
    end.

caller(#conn{called = undefined, peer = Peer}) -> {called_by, Peer};
caller(#conn{called = Node}) -> {called, Node}.

%% The sidecar has been asked for the socket.
-spec await_handover(uds_dist_protocol:conn(), connections()) -> connections().
await_handover(Conn, Connections) ->
    stage(handing_over, Conn, Connections).

%% The sidecar keeps the socket.
-spec relayed(uds_dist_protocol:conn(), connections()) -> connections().
relayed(Conn, Connections = #connections{by_number = ByNumber}) ->
    case ByNumber of
        #{Conn := {_, #conn{controller = Controller, stage = Stage}}} when Stage =/= ended ->
            ok = uds_dist_controller:relayed(Controller),
            stage(up, Conn, Connections);
        #{} ->
            Connections
    end.

stage(Stage, Conn, Connections = #connections{by_number = ByNumber}) ->
    #{Conn := {Monitor, C}} = ByNumber,
    update(Conn, Monitor, C#conn{stage = Stage}, Connections).

%% The socket is here, and its number means nothing to the sidecar any more.
-spec handed_over(uds_dist_protocol:conn(), socket:socket(), Spin, connections()) ->
    connections()
when
    Spin :: non_neg_integer().
handed_over(Conn, Socket, Spin, Connections) ->
    #connections{by_number = ByNumber, by_monitor = ByMonitor} = Connections,
    case maps:take(Conn, ByNumber) of
        {{Monitor, #conn{stage = handing_over} = C}, ByNumber1} ->
            #conn{controller = Controller, input_handler = InputHandler} = C,
            ok = uds_dist_controller:handed_over(Controller, Socket),
            ok = uds_dist_input:handed_over(InputHandler, Socket, Spin),
            C1 = C#conn{transport = direct},
            Connections#connections{
                by_number = ByNumber1, by_monitor = ByMonitor#{Monitor := {handed_over, C1}}
            };
        _ ->
            %% Its controller has ended meanwhile.
            ok = uds_dist_channel:close_socket(Socket),
            Connections
    end.

%% The socket has left the sidecar and did not get here. Tells with which node the connection was.
-spec handover_failed(uds_dist_protocol:conn(), uds_dist_transport:reason(), connections()) ->
    {node() | undefined, connections()}.
handover_failed(Conn, Reason, Connections = #connections{by_number = ByNumber}) ->
    case ByNumber of
        #{Conn := {Monitor, #conn{stage = handing_over, node = Node} = C}} ->
            ok = end_input(C, Reason),
            {Node, update(Conn, Monitor, C#conn{stage = ended}, Connections)};
        #{} ->
            {undefined, Connections}
    end.

update(Conn, Monitor, C, Connections = #connections{by_number = ByNumber}) ->
    Connections#connections{by_number = ByNumber#{Conn := {Monitor, C}}}.

%% ---------------------------------------------------------------------------------------------
%% The end of a connection

%% A controller has ended. Tells whether the sidecar has to close the connection, and what to log.
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
        {{handed_over, C}, ByMonitor1} ->
            {none, what_to_log(C), forget(C, Connections#connections{by_monitor = ByMonitor1})};
        {{lost, C}, ByMonitor1} ->
            {none, none, forget(C, Connections#connections{by_monitor = ByMonitor1})};
        error ->
            error
    end.

forget(#conn{counters = Counters}, Connections = #connections{totals = Totals}) ->
    Connections#connections{totals = uds_dist_counters:totals([Totals, Counters])}.

%% What has ended at the sidecar has been logged with its reason.
what_to_log(#conn{stage = ended}) -> none;
what_to_log(#conn{node = Node}) when Node =/= undefined -> {node, Node};
what_to_log(#conn{peer = Peer}) -> {handshake, Peer}.

%% The sidecar is gone with every socket that it had. Input handlers end their connections when they have
%% given the VM what came before.
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
                    true -> uds_dist_controller:stop(C#conn.controller, connection_closed);
                    false -> end_input(C, connection_closed)
                end
        end,
        Lost
    ),
    Connections#connections{
        by_number = #{},
        by_monitor = lists:foldl(fun({_, M, C}, Map) -> Map#{M := {lost, C#conn{stage = ended}}} end, ByMonitor, Lost),
        unclaimed = []
    }.
