%% The nodes that listen in a socket_dir, found without asking any of them: they share a directory,
%% and need no epmd.
-module(uds_dist_names).

-export([list/1]).

-define(CONNECT_TIMEOUT, 1000).

%% Names of those that live, sorted.
-spec list(Dir :: binary()) -> {ok, [string()]} | {error, Reason :: file:posix()}.
list(<<"@", Namespace/binary>>) ->
    %% The kernel lists abstract sockets, and forgets them with their owner.
    case read_file("/proc/net/unix") of
        {ok, Table} -> {ok, lists:usort(abstract_names(Table, <<"@", Namespace/binary, "/">>))};
        {error, _} = Error -> Error
    end;
list(Dir) ->
    case prim_file:list_dir(Dir) of
        {ok, Files} ->
            {ok, [
                filename:basename(File, ".sock")
             || File <- lists:sort(Files),
                filename:extension(File) =:= ".sock",
                is_alive(filename:join(Dir, File))
            ]};
        {error, _} = Error ->
            Error
    end.

%% Connecting is what a carrier of any kind answers to. A full backlog is a sign of life as well.
is_alive(Path) ->
    case gen_tcp:connect({local, Path}, 0, [local, {active, false}], ?CONNECT_TIMEOUT) of
        {ok, Socket} ->
            ok = gen_tcp:close(Socket),
            true;
        {error, Reason} ->
            Reason =:= eagain orelse Reason =:= timeout
    end.

%% Lines as in proc_pid_net(5): "Num RefCount Protocol Flags Type St Inode Path".
abstract_names(Table, Prefix) ->
    Length = byte_size(Prefix),
    [
        unicode:characters_to_list(binary:part(Path, Length, byte_size(Path) - Length))
     || Line <- binary:split(Table, <<"\n">>, [global]),
        [_, _, _, <<"00010000">>, _, _, _, Path] <- [string:lexemes(Line, " ")],
        string:prefix(Path, Prefix) =/= nomatch
    ].

%% A file of /proc has no size.
read_file(Path) ->
    case file:open(Path, [read, raw, binary]) of
        {ok, File} ->
            Text = read_all(File, []),
            ok = file:close(File),
            Text;
        {error, _} = Error ->
            Error
    end.

read_all(File, Read) ->
    case file:read(File, 1 bsl 16) of
        {ok, Bytes} -> read_all(File, [Bytes | Read]);
        eof -> {ok, iolist_to_binary(lists:reverse(Read))};
        {error, _} = Error -> Error
    end.
