%% The operating system's view of processes and sockets, for the suites that count them.
-module(test_system).

-export([is_listening/1, await_end/2, now_ms/0]).
-export([resident_kib/1, cpu_ms/1, executable/1, environment/1, command_line/1]).
-export([percentile/2]).

-include_lib("kernel/include/file.hrl").

%% Interval in milliseconds at which conditions without an event are checked.
-define(POLL, 5).

%% Whether a live process listens at the path. The socket file alone does not show that.
-spec is_listening(string()) -> boolean().
is_listening(Path) ->
    %% proc(5): address, references, protocol, flags, type, state, inode, path. The flag is that of
    %% a listening socket.
    [] =/=
        [
            listening
         || Line <- string:lexemes(read(["/proc/net/unix"]), "\n"),
            [_, _, _, "00010000", _, _, _, Bound] <- [string:lexemes(Line, " ")],
            Bound =:= Path
        ].

%% Waits until a process has ended, and returns the time that this took, in milliseconds.
-spec await_end(pos_integer(), timeout()) -> {ok, non_neg_integer()} | {error, still_alive}.
await_end(Pid, Limit) ->
    Start = now_ms(),
    await_end(Pid, Start, Start + Limit).

await_end(Pid, Start, Deadline) ->
    Now = now_ms(),
    case test_node:is_alive(Pid) of
        false ->
            {ok, Now - Start};
        true when Now > Deadline ->
            {error, still_alive};
        true ->
            receive
            after ?POLL -> await_end(Pid, Start, Deadline)
            end
    end.

-spec now_ms() -> integer().
now_ms() ->
    erlang:monotonic_time(millisecond).

%% Resident memory of a process in KiB.
-spec resident_kib(pos_integer()) -> non_neg_integer().
resident_kib(Pid) ->
    Status = read(["/proc/", integer_to_list(Pid), "/status"]),
    {match, [KiB]} = re:run(Status, "VmRSS:\\s+(\\d+) kB", [{capture, all_but_first, list}]),
    list_to_integer(KiB).

%% CPU time of a process in milliseconds. A tick of proc(5) is 10 ms on every Linux.
-spec cpu_ms(pos_integer()) -> non_neg_integer().
cpu_ms(Pid) ->
    [_, Rest] = string:split(read(["/proc/", integer_to_list(Pid), "/stat"]), ") ", trailing),
    Fields = string:lexemes(Rest, " "),
    10 * (list_to_integer(lists:nth(12, Fields)) + list_to_integer(lists:nth(13, Fields))).

%% The inode of the program that a process runs.
-spec executable(pos_integer()) -> {Path :: string(), Inode :: non_neg_integer()}.
executable(Pid) ->
    Link = "/proc/" ++ integer_to_list(Pid) ++ "/exe",
    {ok, Path} = file:read_link(Link),
    {ok, #file_info{inode = Inode}} = file:read_file_info(Link, [raw]),
    {Path, Inode}.

%% The environment with which a process was started; empty if it has ended, or if we may not read it.
-spec environment(pos_integer()) -> string().
environment(Pid) ->
    read_if_there(["/proc/", integer_to_list(Pid), "/environ"]).

-spec command_line(pos_integer()) -> string().
command_line(Pid) ->
    Words = read_if_there(["/proc/", integer_to_list(Pid), "/cmdline"]),
    lists:flatten(lists:join(" ", string:lexemes(Words, [0]))).

read_if_there(Path) ->
    try
        read(Path)
    catch
        error:{badmatch, {error, _}} -> ""
    end.

%% Files of proc have size 0, so they are read in pieces.
read(Path) ->
    {ok, File} = file:open(Path, [read, raw, binary]),
    try
        read_all(File, [])
    after
        ok = file:close(File)
    end.

read_all(File, Read) ->
    case file:read(File, 65536) of
        {ok, Bytes} ->
            read_all(File, [Read, Bytes]);
        %% If the process ends meanwhile, reading its environment fails before the end of the file.
        End when End =:= eof; End =:= {error, esrch} ->
            binary_to_list(iolist_to_binary(Read))
    end.

%% A percentile: Percent of the values are not above the result.
-spec percentile(1..100, [number(), ...]) -> number().
percentile(Percent, Values) ->
    Sorted = lists:sort(Values),
    lists:nth(max(1, (length(Sorted) * Percent + 99) div 100), Sorted).
