%% Finds the nodes that listen in a socket_dir, without epmd: by the sockets in the directory, or in the
%% abstract namespace.
-module(uds_dist_names).

-export([list/1]).
%% Entry point of a process.
-export([ask/1]).

%% Time limit for connecting to a socket, in milliseconds: a stopped process with a full backlog does not
%% answer.
-define(CONNECT_TIMEOUT, 1000).
%% Number of sockets that are probed in parallel.
-define(ASKED_AT_ONCE, 256).

%% The sorted names of the nodes that are alive. Files that cannot be the socket of a node are left out, as
%% anyone who can write to the directory can put anything there.
-spec list(Dir :: binary()) -> {ok, [string()]} | {error, Reason :: file:posix()}.
list(<<"@", Namespace/binary>>) ->
    %% The kernel lists abstract sockets, which do not outlive their owners.
    case uds_dist_system:read_proc("/proc/net/unix") of
        {ok, Table} -> {ok, lists:usort(abstract_names(Table, <<"@", Namespace/binary, "/">>))};
        {error, _} = Error -> Error
    end;
list(Dir) ->
    case prim_file:list_dir_all(Dir) of
        {ok, Files} ->
            Candidates = [
                {Name, Path}
             || File <- Files,
                Bytes <- [uds_dist_system:bytes(File)],
                filename:extension(Bytes) =:= <<".sock">>,
                Name <- [unicode:characters_to_list(filename:basename(Bytes, <<".sock">>))],
                is_name(Name),
                Path <- [<<Dir/binary, "/", Bytes/binary>>],
                byte_size(Path) =< uds_dist_config:limit(os:type())
            ],
            {ok, alive(lists:sort(Candidates))};
        {error, _} = Error ->
            Error
    end.

%% False for names that are not text or that contain control characters. No node of ours has such a name, and
%% it would end up in terminals and log lines.
is_name([_ | _] = Name) ->
    lists:all(fun(Char) -> is_integer(Char) andalso Char >= 32 andalso not is_control(Char) end, Name);
is_name(_) ->
    false.

is_control(Char) -> Char >= 127 andalso Char =< 159.

alive([]) ->
    [];
alive(Candidates) ->
    {Now, Later} = lists:split(min(?ASKED_AT_ONCE, length(Candidates)), Candidates),
    Asked = [{Name, spawn_monitor(?MODULE, ask, [Path])} || {Name, Path} <- Now],
    [Name || {Name, Process} <- Asked, answer(Process)] ++ alive(Later).

answer({Pid, Monitor}) ->
    receive
        {'DOWN', Monitor, process, Pid, Reason} -> Reason =:= {shutdown, alive}
    end.

%% Probes a socket, and exits with {shutdown, alive} if a process listens there. It only connects, which works
%% with any carrier. A full backlog is a sign of life as well.
-spec ask(Path :: binary()) -> no_return().
ask(Path) ->
    case gen_tcp:connect({local, Path}, 0, [local, {active, false}], ?CONNECT_TIMEOUT) of
        {ok, _} -> exit({shutdown, alive});
        {error, Reason} when Reason =:= eagain; Reason =:= timeout -> exit({shutdown, alive});
        {error, _} -> exit({shutdown, dead})
    end.

%% The format of a line is that of proc_pid_net(5): "Num RefCount Protocol Flags Type St Inode Path". Only the
%% path can contain an @, and it may contain blanks.
abstract_names(Table, Prefix) ->
    Length = byte_size(Prefix),
    [
        Name
     || Line <- binary:split(Table, <<"\n">>, [global]),
        [Fields, AfterAt] <- [binary:split(Line, <<" @">>)],
        [_, _, _, <<"00010000">>, _, _, _] <- [binary:split(Fields, <<" ">>, [global, trim_all])],
        Path <- [<<"@", AfterAt/binary>>],
        binary:longest_common_prefix([Path, Prefix]) =:= Length,
        Name <- [unicode:characters_to_list(binary:part(Path, Length, byte_size(Path) - Length))],
        is_name(Name)
    ].
