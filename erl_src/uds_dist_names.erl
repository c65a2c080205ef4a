%% Finds the nodes that listen in a socket_dir, without epmd: by the sockets in the directory, or in the
%% abstract namespace.
-module(uds_dist_names).

-export([list/1]).
%% Entry point of a process.
-export([ask/1]).

%% Time limit for connecting to a socket, in milliseconds: a stopped process with a full backlog does not
%% answer.
-define(CONNECT_TIMEOUT, 1000).
%% Number of sockets that are asked at once. Each takes a file descriptor, which connections need as well.
-define(ASKED_AT_ONCE, 32).
%% Modules that are needed to ask. A node that has run out of file descriptors cannot load modules.
-define(NEEDED, [gen_tcp, local_tcp]).

%% The sorted names of the nodes that are alive. Files that cannot be the socket of a node are left out, as
%% anyone who can write to the directory can put anything there.
-spec list(Dir :: binary()) -> {ok, [string()]} | {error, Reason :: file:posix() | system_limit}.
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
                byte_size(Path) =< uds_dist_address:limit(os:type())
            ],
            lists:foreach(fun code:ensure_loaded/1, ?NEEDED),
            alive(Candidates, ?ASKED_AT_ONCE, #{}, []);
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

%% Asks at most Limit sockets at once. A process that gets no descriptor leaves its socket for later, when
%% others have given theirs back, and lowers the limit, so that some are left for the rest of the node. The
%% error is for a node in which not even a process that is alone gets one.
alive([{_, Path} = Candidate | Waiting], Limit, Asked, Alive) when map_size(Asked) < Limit ->
    {_, Monitor} = spawn_monitor(?MODULE, ask, [Path]),
    alive(Waiting, Limit, Asked#{Monitor => {Candidate, Limit}}, Alive);
alive([], _, Asked, Alive) when map_size(Asked) =:= 0 ->
    {ok, lists:sort(Alive)};
alive(Waiting, Limit, Asked, Alive) ->
    receive
        {'DOWN', Monitor, process, _, Answer} when is_map_key(Monitor, Asked) ->
            {{{Name, _} = Candidate, LimitThen}, Others} = maps:take(Monitor, Asked),
            case Answer of
                {shutdown, alive} ->
                    alive(Waiting, Limit, Others, [Name | Alive]);
                {shutdown, dead} ->
                    alive(Waiting, Limit, Others, Alive);
                {shutdown, {not_asked, _}} when LimitThen > 1 ->
                    Lower = max(1, min(Limit, map_size(Others) div 2)),
                    alive([Candidate | Waiting], Lower, Others, Alive);
                {shutdown, {not_asked, Reason}} ->
                    {error, Reason};
                Crash ->
                    %% Without this answer, the list might lack a node.
                    _ = [demonitor(Other, [flush]) || Other <- maps:keys(Others)],
                    exit(Crash)
            end
    end.

%% Asks whether a process listens at a socket, and exits with the answer. It only connects, which works with
%% any carrier. The backend `socket`, which a node may have as its default, has other errors.
-spec ask(Path :: binary()) -> no_return().
ask(Path) ->
    Options = [{inet_backend, inet}, local, {active, false}],
    case gen_tcp:connect({local, Path}, 0, Options, ?CONNECT_TIMEOUT) of
        {ok, Socket} ->
            %% The port of an ended process might be closed only after the next process needs its descriptor.
            ok = gen_tcp:close(Socket),
            exit({shutdown, alive});
        {error, Reason} ->
            exit({shutdown, answer(Reason)})
    end.

%% What it means that a socket cannot be connected to. Only an error of connect(2) that proves that no node
%% listens for this user counts as dead: nobody does, the file is gone, it is no socket or not that of a node,
%% it is a link that leads nowhere, or its mode keeps this user out. The other errors include eagain and
%% timeout, which come from a full backlog.
answer(Reason) when
    Reason =:= econnrefused;
    Reason =:= eacces;
    Reason =:= enoent;
    Reason =:= enotdir;
    Reason =:= eloop;
    Reason =:= enametoolong;
    Reason =:= enotsock;
    Reason =:= eprototype
->
    dead;
answer(Reason) when
    Reason =:= emfile;
    Reason =:= enfile;
    Reason =:= enobufs;
    Reason =:= enomem;
    Reason =:= system_limit
->
    {not_asked, Reason};
answer(_) ->
    alive.

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
