%% The transport through the sidecar: bytes travel in DATA packets of the port, and a window in each
%% direction keeps a slow peer or a slow VM from filling the memory.
%%
%% Every connection uses this transport for its handshake. If a connection keeps it, and this VM ends, the VM
%% flushes its ports, and the sidecar delivers everything that was written before it closes the connection. It
%% gives up after half a second if the peer does not read.
-module(uds_dist_relay).
-behaviour(uds_dist_transport).

-export([link/3, number/1, window/1, output/1, input/1]).
%% For the owner of the port.
-export([data/2, closed/2, acknowledged/2]).
-export([available/1, is_open/1, write/3, unacknowledged/1, writable/2]).
-export([read/2, after_failed_output/0, passed_on/2]).

-export_type([link/0, output/0, input/0]).

%% A connection at the sidecar: the pipe to the sidecar, the connection's number, and its window in bytes.
-opaque link() :: {uds_dist_pipe:pipe(), uds_dist_protocol:conn(), Window :: pos_integer()}.

-record(output, {
    pipe :: uds_dist_pipe:pipe(),
    conn :: uds_dist_protocol:conn(),
    window :: uds_dist_window:sender()
}).
-record(input, {
    pipe :: uds_dist_pipe:pipe(),
    conn :: uds_dist_protocol:conn(),
    window :: uds_dist_window:receiver()
}).

-opaque output() :: #output{}.
-opaque input() :: #input{}.

%% The caller is the owner of the port.
-spec link(port(), uds_dist_protocol:conn(), Window :: pos_integer()) -> link().
link(Port, Conn, Window) ->
    {uds_dist_pipe:new(Port), Conn, Window}.

-spec number(link()) -> uds_dist_protocol:conn().
number({_, Conn, _}) ->
    Conn.

%% Most bytes that may be unacknowledged in each direction.
-spec window(link()) -> pos_integer().
window({_, _, Window}) ->
    Window.

-spec output(link()) -> output().
output({Pipe, Conn, Window}) ->
    #output{pipe = Pipe, conn = Conn, window = uds_dist_window:sender(Window)}.

-spec input(link()) -> input().
input({Pipe, Conn, Window}) ->
    #input{pipe = Pipe, conn = Conn, window = uds_dist_window:receiver(Window)}.

%% ---------------------------------------------------------------------------------------------
%% Messages from the owner of the port. Messages of one process stay in order, so the end of a connection
%% arrives after all of its data.

%% Gives an input handler bytes of its peer.
-spec data(InputHandler :: pid(), binary()) -> ok.
data(InputHandler, Bytes) ->
    InputHandler ! {data, Bytes},
    ok.

%% Tells an input handler that no more bytes will come.
-spec closed(InputHandler :: pid(), uds_dist_transport:reason()) -> ok.
closed(InputHandler, Reason) ->
    InputHandler ! {closed, Reason},
    ok.

%% Tells a controller that the sidecar has passed on Count bytes.
-spec acknowledged(Controller :: pid(), non_neg_integer()) -> ok.
acknowledged(Controller, Count) ->
    Controller ! {acknowledged, Count},
    ok.

%% ---------------------------------------------------------------------------------------------
%% Output

-spec available(output()) -> non_neg_integer().
available(#output{pipe = Pipe, window = Window}) ->
    case uds_dist_pipe:is_free(Pipe) of
        true -> uds_dist_window:available(Window);
        false -> 0
    end.

-spec is_open(output()) -> boolean().
is_open(#output{pipe = Pipe, window = Window}) ->
    uds_dist_pipe:is_free(Pipe) andalso uds_dist_window:is_open(Window).

-spec write(pos_integer(), iodata(), output()) ->
    {ok, output()} | {error, uds_dist_transport:reason()}.
write(Size, Data, Output = #output{pipe = Pipe, conn = Conn, window = Window}) ->
    Packet = [uds_dist_protocol:data_head(Conn) | Data],
    Output1 = Output#output{window = uds_dist_window:sent(Size, Window)},
    sent(uds_dist_pipe:send(Packet, Pipe), Output1).

sent({ok, Pipe}, Output) -> {ok, Output#output{pipe = Pipe}};
%% The sidecar is gone. The owner of the port tells the input handler, and logs it.
sent(closed, _) -> {error, connection_closed}.

-spec unacknowledged(output()) -> non_neg_integer().
unacknowledged(#output{window = Window}) ->
    uds_dist_window:unacknowledged(Window).

-spec writable(term(), output()) ->
    {ok, output()} | {error, uds_dist_transport:reason()} | ignored.
writable({acknowledged, Count}, Output = #output{window = Window}) ->
    {ok, Output#output{window = uds_dist_window:acknowledged(Count, Window)}};
writable(Message, Output = #output{pipe = Pipe}) ->
    case uds_dist_pipe:handle(Message, Pipe) of
        ignored -> ignored;
        Sent -> sent(Sent, Output)
    end.

%% ---------------------------------------------------------------------------------------------
%% Input

-spec read(term(), input()) ->
    {binary(), wait, input()} | {ok, input()} | {ended, uds_dist_transport:reason()} | ignored.
read({data, Bytes}, Input) ->
    {Bytes, wait, Input};
read({closed, Reason}, _) ->
    {ended, Reason};
read(Message, Input = #input{pipe = Pipe}) ->
    case uds_dist_pipe:handle(Message, Pipe) of
        ignored -> ignored;
        Sent -> {ok, ack_sent(Sent, Input)}
    end.

%% The sidecar is gone. A message reports that, after everything that it passed on.
-spec after_failed_output() -> wait.
after_failed_output() -> wait.

%% Counts bytes as passed on, and acknowledges them when an acknowledgement is due.
-spec passed_on(non_neg_integer(), input()) -> input().
passed_on(Count, Input = #input{pipe = Pipe, conn = Conn, window = Window}) ->
    {Acknowledged, Window1} = uds_dist_window:passed_on(Count, Window),
    Input1 = Input#input{window = Window1},
    case Acknowledged of
        0 -> Input1;
        _ -> ack_sent(uds_dist_pipe:send(uds_dist_protocol:ack(Conn, Acknowledged), Pipe), Input1)
    end.

ack_sent({ok, Pipe}, Input) -> Input#input{pipe = Pipe};
%% The sidecar is gone, and a message about the end of the connection will follow.
ack_sent(closed, Input) -> Input.
