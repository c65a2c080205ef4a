%% The sidecar as a program of the operating system: where it is, and how it is started and ended.
-module(uds_dist_program).

-export([start/2, close/1, exit_status/2, path/0]).

-export_type([settings/0]).

%% What a sidecar is told when it starts: its busy-poll budget in microseconds, and the level of its log.
-type settings() :: #{spin := non_neg_integer(), log := uds_dist_config:log_level()}.

%% Starts the program at Path as the sidecar. The caller becomes the owner of its port.
-spec start(Path :: file:filename_all(), settings()) -> {ok, port()} | {error, uds_dist_text:explanation()}.
start(Path, Settings) ->
    Options = [
        {env, environment(Settings)},
        {packet, 4},
        %% Only a full pipe may make senders wait, not the length of the port's message queue.
        {busy_limits_msgq, disabled},
        binary,
        use_stdio,
        exit_status
    ],
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

%% Explains the exit status of the program at Path, for people.
-spec exit_status(non_neg_integer(), Path :: file:filename_all()) -> uds_dist_text:explanation().
exit_status(Status, _Path) when Status > 128 ->
    io_lib:format("it was ended by signal ~b", [Status - 128]);
exit_status(Status, Path) ->
    Why = uds_dist_executable:explain_status(Status, Path),
    io_lib:format("it exited with status ~b~ts", [Status, Why]).

%% Path of the sidecar's program, made absolute: `-pa` and UDS_DIST_SIDECAR may be relative. It comes from the
%% code server, which may be busy for long.
-spec path() -> file:filename_all().
path() ->
    Path =
        case uds_dist_system:variable("UDS_DIST_SIDECAR") of
            undefined -> uds_dist_system:bytes(filename:join(priv_dir(), "uds_dist_sidecar"));
            Given -> Given
        end,
    case uds_dist_system:absolute(Path) of
        {ok, Absolute} -> filename(Absolute);
        error -> filename(Path)
    end.

%% A path as a string, if its bytes are valid in the VM's encoding of file names.
filename(Bytes) ->
    case unicode:characters_to_list(Bytes, file:native_name_encoding()) of
        Chars when is_list(Chars) -> Chars;
        _ -> Bytes
    end.

priv_dir() ->
    case code:priv_dir(uds_dist) of
        {error, bad_name} ->
            %% The application's directory is not called uds_dist.
            filename:join(filename:dirname(filename:dirname(code:which(?MODULE))), "priv");
        Dir ->
            Dir
    end.
