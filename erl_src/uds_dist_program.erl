%% The sidecar as a program of the operating system: how it is started, spoken to and ended.
-module(uds_dist_program).

-export([start/1, send/2, await_room/2, close/1, exit_status/1]).
%% A process.
-export([send_waiting/2]).

%% Starts one. The caller is the owner of its port. Spin is the busy-poll budget in microseconds.
-spec start(Spin :: non_neg_integer()) -> {ok, port()} | {error, uds_dist_config:explanation()}.
start(Spin) ->
    Options = [
        {env, environment(Spin)},
        {packet, 4},
        %% Only a full pipe makes a sender wait, and not what is on its way to the port.
        {busy_limits_msgq, disabled},
        binary,
        use_stdio,
        exit_status
    ],
    try
        {ok, open_port({spawn_executable, uds_dist_config:sidecar_path()}, Options)}
    catch
        error:Reason -> {error, start_error(Reason)}
    end.

%% Nothing of the VM's environment but what the sidecar reads: there are often secrets in it.
environment(Spin) ->
    [
        {Name, false}
     || Variable <- os:getenv(),
        [Name, _] <- [string:split(Variable, "=")],
        Name =/= "UDS_DIST_LOG",
        Name =/= "UDS_DIST_SPIN"
    ] ++ [{"UDS_DIST_SPIN", integer_to_list(Spin)}].

start_error(enoent) ->
    "there is no such file; build it (rebar3 compile) or set UDS_DIST_SIDECAR to its path";
start_error(eacces) ->
    "it is not an executable file, or this user may not execute it (chmod +x)";
start_error(Reason) ->
    io_lib:format("it cannot be started (~0tp)", [Reason]).

%% Sends a packet without waiting. `busy` means that the pipe is full and nothing was sent. Of a port
%% that is gone, its owner gets a message that says so.
-spec send(port(), iodata()) -> ok | busy.
send(Port, Packet) ->
    try port_command(Port, Packet, [nosuspend]) of
        true -> ok;
        false -> busy
    catch
        error:badarg -> ok
    end.

%% Starts a process that sends a packet as soon as the pipe has room, and then ends with reason normal.
-spec await_room(port(), iodata()) -> Monitor :: reference().
await_room(Port, Packet) ->
    {_Pid, Monitor} = spawn_monitor(?MODULE, send_waiting, [Port, Packet]),
    Monitor.

-spec send_waiting(port(), iodata()) -> ok.
send_waiting(Port, Packet) ->
    try port_command(Port, Packet) of
        true -> ok
    catch
        %% The sidecar is gone.
        error:badarg -> ok
    end.

%% The sidecar sees the end of its input, and ends.
-spec close(port()) -> ok.
close(Port) ->
    try port_close(Port) of
        true -> ok
    catch
        error:badarg -> ok
    end.

%% Why it is gone, for people.
-spec exit_status(non_neg_integer()) -> uds_dist_config:explanation().
exit_status(Status) when Status > 128 ->
    io_lib:format("it was ended by signal ~b", [Status - 128]);
exit_status(Status) ->
    io_lib:format("it exited with status ~b", [Status]).
