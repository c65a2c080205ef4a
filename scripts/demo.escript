#!/usr/bin/env escript
%% The demonstration of scripts/demo. Both nodes are controlled through their standard input and output (peer), so
%% that everything between them goes over the sockets.
%%
%%     scripts/demo.escript EBIN DIRECTORY
-mode(compile).

-define(DESCRIPTORS, "maps:get(descriptors, maps:get(sidecar, uds_dist:info())).").

main([Ebin, Dir]) ->
    title("Two nodes start"),
    line("erl -pa ebin -proto_dist uds -no_epmd -sname alice -uds_dist_dir ~ts", [Dir]),
    line("erl -pa ebin -proto_dist uds -no_epmd -sname bob   -uds_dist_dir ~ts", [Dir]),
    [Alice, Bob] = Nodes = [start(Name, Ebin, Dir) || Name <- [alice, bob]],
    title("How many file descriptors does alice's sidecar have?"),
    Started = show_shell(Alice, ?DESCRIPTORS, []),
    Before = processes(Nodes),
    show_talk(Alice, Bob),
    show_descriptors(Alice, Started),
    show_files(Dir),
    Now = processes(Nodes),
    show_processes(Before, Now),
    [ok = peer:stop(Peer) || #{peer := Peer} <- Nodes],
    await_end([Pid || {_, Pid, _} <- Now, Pid =/= os:getpid()], 500),
    title("Both are stopped, no process of them is left").

start(Name, Ebin, Dir) ->
    Args = ["-pa", Ebin, "-proto_dist", "uds", "-no_epmd", "-uds_dist_dir", Dir],
    {ok, Peer, Node} = peer:start_link(#{name => Name, connection => standard_io, args => Args}),
    Pid = peer:call(Peer, os, getpid, []),
    #{name => Name, peer => Peer, node => Node, pid => Pid}.

show_talk(Alice, #{node := Bob}) ->
    title("They connect and talk"),
    show_shell(Alice, "net_adm:ping(~p).", [Bob]),
    show_shell(Alice, "erpc:call(~p, erlang, nodes, []).", [Bob]),
    line("How many ms do 64 MiB take to bob and back?", []),
    show_shell(Alice, "X = <<0:(64 bsl 23)>>, {T, X} = timer:tc(erpc, call, [~p, binary, copy, [X]]), T div 1000.", [Bob]).

show_shell(#{name := Name, peer := Peer}, Format, Args) ->
    Input = lists:flatten(io_lib:format(Format, Args)),
    line("~s> ~ts", [Name, Input]),
    %% In a fun, so that only the value comes back, and no variable.
    {ok, Tokens, _} = erl_scan:string("(fun() -> " ++ lists:droplast(Input) ++ " end)()."),
    {ok, Expressions} = erl_parse:parse_exprs(Tokens),
    {value, Value, _} = peer:call(Peer, erl_eval, exprs, [Expressions, []], 30000),
    line("~p", [Value]),
    Value.

show_descriptors(Alice, Started) ->
    title("For the connection, it has one more"),
    Connected = show_shell(Alice, ?DESCRIPTORS, []),
    %% This ends here if that is not so. Some systems do not report it.
    true = Started =:= undefined orelse Connected > Started.

show_files(Dir) ->
    title("Each listens at a socket in that directory"),
    Files = string:lexemes(os:cmd("ls -l '" ++ Dir ++ "' | grep sock$"), "\n"),
    [line("~ts", [File]) || File <- Files].

show_processes([], []) ->
    title("There is no /proc here to see the sockets of a process in: try lsof");
show_processes(Before, Now) ->
    case [Pid || {_, Pid, hidden} <- Now] of
        [] -> title("Their sidecars have the sockets. No process listens at a TCP port");
        _ -> title("The VMs have no sockets of peers. Only root can look into their sidecars")
    end,
    line("process                   sockets at start  connected  TCP listeners", []),
    %% This ends here if the table does not show what its title says.
    true = [] =:= [Who || {{Who, _, Old}, {_, _, New}} <- lists:zip(Before, Now), Old =/= New, lists:suffix("VM", Who)],
    [
        line("~-16s ~7s ~17s ~10s ~14s", [Who, Pid, count(Old), count(New), tcp_listeners(New)])
     || {{Who, Pid, Old}, {_, _, New}} <- lists:zip(Before, Now)
    ],
    line("The one socket of a VM leads to the process that starts its ports.", []).

count(hidden) -> "for root";
count(Sockets) -> integer_to_list(length(Sockets)).

%% Waits for the sidecars, which end after their VMs.
await_end(Pids, Tries) ->
    case [Pid || Pid <- Pids, filelib:is_dir("/proc/" ++ Pid)] of
        [] ->
            ok;
        Left when Tries =:= 0 ->
            title("Still there: " ++ lists:join(" ", Left)),
            halt(1);
        Left ->
            receive after 10 -> await_end(Left, Tries - 1) end
    end.

%% --- /proc ---------------------------------------------------------------------------------------

%% The VMs of the nodes, their sidecars, and the VM that runs this, with their open sockets.
processes(Nodes) ->
    case filelib:is_dir("/proc/self/fd") of
        true ->
            Pids = [
                {lists:flatten(io_lib:format("~s's ~s", [Name, What])), Pid}
             || #{name := Name, pid := Vm} <- Nodes, {What, Pid} <- [{"VM", Vm}, {"sidecar", sidecar(Vm)}]
            ],
            [{Who, Pid, sockets(Pid)} || {Who, Pid} <- Pids ++ [{"a VM, no node", os:getpid()}]];
        false ->
            []
    end.

sidecar(Vm) ->
    %% The kernel truncates the name of a program to 15 bytes.
    [Sidecar] = [Pid || {"erl_child_setup", Starter} <- children(Vm), {"uds_dist_sideca", Pid} <- children(Starter)],
    Sidecar.

children(Parent) ->
    [
        {Name, Pid}
     || Stat <- filelib:wildcard("/proc/[0-9]*/stat"),
        {ok, Text} <- [file:read_file(Stat)],
        {match, [Pid, Name, Parent0]} <- [re:run(Text, "^(\\d+) \\((.*)\\) . (\\d+)", [{capture, all_but_first, list}])],
        Parent0 =:= Parent
    ].

%% Only root can inspect a sidecar.
sockets(Pid) ->
    Dir = "/proc/" ++ Pid ++ "/fd",
    case file:list_dir(Dir) of
        {ok, Fds} ->
            [
                lists:droplast(Inode)
             || Fd <- Fds,
                {ok, "socket:[" ++ Inode} <- [file:read_link(filename:join(Dir, Fd))]
            ];
        {error, _} ->
            hidden
    end.

tcp_listeners(hidden) ->
    "for root";
tcp_listeners(Sockets) ->
    Lines = [
        string:lexemes(Line, " ")
     || {ok, Table} <- [file:read_file("/proc/net/tcp"), file:read_file("/proc/net/tcp6")],
        Line <- string:lexemes(binary_to_list(Table), "\n")
    ],
    integer_to_list(length([Inode || [_, _, _, "0A", _, _, _, _, _, Inode | _] <- Lines, lists:member(Inode, Sockets)])).

%% --- output --------------------------------------------------------------------------------------

title(Text) ->
    io:format("~n~s~ts~s~n", [os:getenv("BOLD", ""), Text, os:getenv("PLAIN", "")]).

line(Format, Args) ->
    io:format("  " ++ Format ++ "~n", Args).
