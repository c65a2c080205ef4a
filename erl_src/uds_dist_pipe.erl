%% The way into the sidecar's standard input, for one process: its packets go out in their order and never
%% suspend it. A packet that the pipe has no room for waits, and those behind it.
%%
%% In port_command/2 the process itself would wait: one connection that fills the pipe would stop the input
%% of all others, which has to be acknowledged through it, and a second load of a module would end every
%% process that waits. So one that runs none of our code waits, for as long as the packet takes.
-module(uds_dist_pipe).

-export([new/1, send/2, handle/2, is_free/1]).

-export_type([pipe/0]).

-record(pipe, {
    port :: port(),
    %% The owner of the port: who sends it a message must say so.
    owner :: pid(),
    %% The process that waits for room, and the packets behind its own, last one first.
    sender :: undefined | (Monitor :: reference()),
    waiting = [] :: [iodata()]
}).

-opaque pipe() :: #pipe{}.

%% The caller is the owner of the port. Others may use what it has made, each their own.
-spec new(port()) -> pipe().
new(Port) ->
    #pipe{port = Port, owner = self()}.

%% Sends a packet after those before it. `closed` means that the sidecar is gone.
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

%% A message to a port suspends its sender as port_command/2 does, and is no error when the port is gone.
send_later(Packet, Pipe = #pipe{port = Port, owner = Owner}) ->
    Arguments = [Port, {Owner, {command, Packet}}],
    {_Pid, Monitor} = spawn_opt(erlang, send, Arguments, [monitor, {priority, max}]),
    Pipe#pipe{sender = Monitor}.

%% Takes a message of the process: one of them says that there is room again.
-spec handle(Message :: term(), pipe()) -> {ok, pipe()} | closed | ignored.
handle({'DOWN', Monitor, process, _, _}, Pipe = #pipe{sender = Monitor, waiting = Waiting}) ->
    send_all(lists:reverse(Waiting), {ok, Pipe#pipe{sender = undefined, waiting = []}});
handle(_, _) ->
    ignored.

send_all([Packet | Packets], {ok, Pipe}) -> send_all(Packets, send(Packet, Pipe));
send_all(_, Result) -> Result.

%% Whether nothing waits.
-spec is_free(pipe()) -> boolean().
is_free(#pipe{sender = Sender}) ->
    Sender =:= undefined.
