%% Starts and ends the sidecar as a program of the operating system.
-module(uds_dist_program).

-export([start/1, close/1, exit_status/1]).

-export_type([settings/0]).

%% What a sidecar is told when it starts: its busy-poll budget in microseconds, and the level of its log.
-type settings() :: #{spin := non_neg_integer(), log := uds_dist_config:log_level()}.

%% Starts a sidecar. The caller becomes the owner of its port.
-spec start(settings()) -> {ok, port()} | {error, uds_dist_text:explanation()}.
start(Settings) ->
    Options = [
        {env, environment(Settings)},
        {packet, 4},
        %% Only a full pipe may make senders wait, not the length of the port's message queue.
        {busy_limits_msgq, disabled},
        binary,
        use_stdio,
        exit_status
    ],
    Path = uds_dist_config:sidecar_path(),
    try
        {ok, open_port({spawn_executable, Path}, Options)}
    catch
        error:Reason -> {error, uds_dist_executable:explain(Reason, Path)}
    end.

%% Removes everything from the environment that the sidecar does not read, as it often contains secrets.
environment(#{spin := Spin, log := Level}) ->
    Given = [{"UDS_DIST_SPIN", integer_to_list(Spin)}, {"UDS_DIST_LOG", atom_to_list(Level)}],
    [
        {Name, false}
     || Variable <- os:getenv(),
        [Name, _] <- [string:split(Variable, "=")],
        not lists:keymember(Name, 1, Given)
    ] ++ Given.

%% Ends the sidecar: it exits when its input is closed.
-spec close(port()) -> ok.
close(Port) ->
    try port_close(Port) of
        true -> ok
    catch
        error:badarg -> ok
    end.

%% Explains an exit status, for people.
-spec exit_status(non_neg_integer()) -> uds_dist_text:explanation().
exit_status(Status) when Status > 128 ->
    io_lib:format("it was ended by signal ~b", [Status - 128]);
exit_status(Status) ->
    Why = uds_dist_executable:explain_status(Status, uds_dist_config:sidecar_path()),
    io_lib:format("it exited with status ~b~ts", [Status, Why]).
