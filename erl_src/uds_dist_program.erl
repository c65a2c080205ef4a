%% The sidecar as a program of the operating system: how it is started and ended.
-module(uds_dist_program).

-export([start/1, close/1, exit_status/1]).

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
