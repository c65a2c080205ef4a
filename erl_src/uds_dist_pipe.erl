%% Writes packets to the sidecar's standard input on behalf of one process: in order, and without ever
%% suspending it. If the pipe has no room for a packet, the packet and those after it are queued.
%%
%% port_command/2 would suspend the process itself. Then a connection that fills the pipe would stop the input
%% of all others, whose acknowledgements go through the same pipe. Loading a module twice would also kill
%% every suspended process. So a helper process that runs none of our code waits in its place.
-module(uds_dist_pipe).

-export([new/1, send/2, handle/2, is_free/1]).

-export_type([pipe/0]).

-record(pipe, {
    port :: port(),
    %% The owner of the port, which a message to the port has to name.
    owner :: pid(),
    %% Monitor of the process that waits for room, and the packets after its own, the latest first.
    sender :: undefined | (Monitor :: reference()),
    waiting = [] :: [iodata()]
}).

-opaque pipe() :: #pipe{}.

%% A pipe to a port that the caller owns. Each process that sends needs a copy of its own.
-spec new(port()) -> pipe().
new(Port) ->
    #pipe{port = Port, owner = self()}.

%% Sends a packet, after those sent before. Returns `closed` if the sidecar is gone.
-spec send(iodata(), pipe()) -> {ok, pipe()} | closed.
send(Packet, Pipe = #pipe{port = Port, sender = undefined}) ->
    try port_command(Port, Packet, [nosuspend]) of
        true -> {ok, Pipe};
        false -> {ok, send_later(Packet, Pipe)}
    catch
        error:badarg -> closed
    end;
send(Packet, Pipe = #pipe{waiting = Waiting}) ->
    {ok, Pipe#pipe{waiting = [Packet | Waiting]}}.

%% A message to a port suspends its sender just as port_command/2 does, but is no error if the port is gone.
send_later(Packet, Pipe = #pipe{port = Port, owner = Owner}) ->
    Arguments = [Port, {Owner, {command, Packet}}],
    {_Pid, Monitor} = spawn_opt(erlang, send, Arguments, [monitor, {priority, max}]),
    Pipe#pipe{sender = Monitor}.

%% Handles a message to the calling process, which may announce that there is room again.
-spec handle(Message :: term(), pipe()) -> {ok, pipe()} | closed | ignored.
handle({'DOWN', Monitor, process, _, _}, Pipe = #pipe{sender = Monitor, waiting = Waiting}) ->
    send_all(lists:reverse(Waiting), {ok, Pipe#pipe{sender = undefined, waiting = []}});
handle(_, _) ->
    ignored.

send_all([Packet | Packets], {ok, Pipe}) -> send_all(Packets, send(Packet, Pipe));
send_all(_, Result) -> Result.

%% Whether no packet is queued.
-spec is_free(pipe()) -> boolean().
is_free(#pipe{sender = Sender}) ->
    Sender =:= undefined.
