%% A scripted sidecar, which sends and receives what a test wants, in place of the real one.
%%
%% The VM under test starts it through UDS_DIST_SIDECAR. It is a small VM, which connects back to the test
%% over a socket: it forwards its standard input to the test, and what the test sends to its standard output.
%% It only reads when the test tells it to, so that a test can fill its input.
-module(test_sidecar).

%% Called by tests.
-export([start/1, stop/1, path/1, next/1, next/2, os_pid/1, started_at/1]).
-export([say/2, say_bytes/2, read/1, pause/1, hear/1, hear/2, hear_end/1, exit/2, kill/1]).
-export([hello/0, serve/1, packets/1]).
%% Entry point of the program.
-export([main/1]).

-export_type([scripted/0, t/0]).

%% The program with its control socket, and one running instance of it.
-opaque scripted() :: #{listener := gen_tcp:socket(), path := file:filename()}.
-opaque t() :: #{socket := gen_tcp:socket(), os_pid := pos_integer(), started_at := integer()}.

%% A packet of the VM, as hear/1 returns it.
-type command() ::
    {listen, 0..15, uds_dist_address:place(), VmPid :: pos_integer()}
    | {unlisten, 0..15}
    | {connect, uds_dist_protocol:conn(), uds_dist_protocol:address()}
    | {established | hand_over, uds_dist_protocol:conn(), Node :: binary()}
    | {close, uds_dist_protocol:conn()}
    | {admit, Policy :: binary()}
    | {open_channel, VmPid :: pos_integer(), Directory :: binary()}
    | ask_status
    | {data, uds_dist_protocol:conn(), binary()}
    | {ack, uds_dist_protocol:conn(), non_neg_integer()}.

%% Time limit of every wait, in milliseconds.
-define(LIMIT, 30000).
%% The real sidecar's window in bytes.
-define(WINDOW, (1 bsl 20)).

%% ---------------------------------------------------------------------------------------------
%% For tests

%% Creates the sidecar's program, in a directory with a short path.
-spec start(Dir :: file:filename()) -> scripted().
start(Dir) ->
    Socket = filename:join(Dir, "sidecar.socket"),
    Path = filename:join(Dir, "sidecar"),
    {ok, Listener} = gen_tcp:listen(0, [
        {ifaddr, {local, Socket}}, binary, {packet, 4}, {active, false}, {backlog, 128}
    ]),
    %% The VM under test starts its sidecar without an environment.
    Erl = filename:join([code:root_dir(), "bin", "erl"]),
    Ebin = filename:dirname(code:which(?MODULE)),
    Script = [
        "#!/bin/sh\n",
        "PATH=/usr/bin:/bin HOME=/ ERL_CRASH_DUMP_SECONDS=0 exec '", Erl, "' +S1:1 +SDio1 -noinput",
        " -boot start_clean -pa '", Ebin, "' -run ", atom_to_list(?MODULE), " main '", Socket, "'\n"
    ],
    ok = file:write_file(Path, Script),
    ok = file:change_mode(Path, 8#700),
    #{listener => Listener, path => Path}.

-spec stop(scripted()) -> ok.
stop(#{listener := Listener}) ->
    gen_tcp:close(Listener).

%% The value of UDS_DIST_SIDECAR.
-spec path(scripted()) -> file:filename().
path(#{path := Path}) ->
    Path.

%% Waits for the next sidecar that the VM starts.
-spec next(scripted()) -> t().
next(Scripted) ->
    {ok, Sidecar} = next(Scripted, ?LIMIT),
    Sidecar.

-spec next(scripted(), timeout()) -> {ok, t()} | none.
next(#{listener := Listener}, Timeout) ->
    case gen_tcp:accept(Listener, Timeout) of
        {ok, Socket} ->
            {ok, Bytes} = gen_tcp:recv(Socket, 0, ?LIMIT),
            {started, OsPid} = binary_to_term(Bytes),
            Now = erlang:monotonic_time(millisecond),
            {ok, #{socket => Socket, os_pid => OsPid, started_at => Now}};
        {error, timeout} ->
            none
    end.

-spec os_pid(t()) -> pos_integer().
os_pid(#{os_pid := OsPid}) ->
    OsPid.

-spec started_at(t()) -> integer().
started_at(#{started_at := Time}) ->
    Time.

%% Sends reports to the VM, all at once.
-spec say(t(), uds_dist_protocol:report() | [uds_dist_protocol:report()]) -> ok.
say(Sidecar, Reports) ->
    say_bytes(Sidecar, packets(Reports)).

%% The packets of reports, as bytes.
-spec packets(uds_dist_protocol:report() | [uds_dist_protocol:report()]) -> iodata().
packets(Reports) ->
    [packet(body(Report)) || Report <- lists:flatten([Reports])].

packet(Body) ->
    [<<(iolist_size(Body)):32>>, Body].

%% Sends arbitrary bytes to the VM.
-spec say_bytes(t(), iodata()) -> ok.
say_bytes(Sidecar, Bytes) ->
    tell(Sidecar, {say, iolist_to_binary(Bytes)}).

%% Starts reading the VM's packets.
-spec read(t()) -> ok.
read(Sidecar) ->
    tell(Sidecar, read).

%% Stops reading, after one more packet at most, until read/1.
-spec pause(t()) -> ok.
pause(#{socket := Socket} = Sidecar) ->
    ok = tell(Sidecar, pause),
    {ok, Bytes} = gen_tcp:recv(Socket, 0, ?LIMIT),
    paused = binary_to_term(Bytes),
    ok.

%% Waits for the next packet of the VM.
-spec hear(t()) -> command().
hear(Sidecar) ->
    {ok, Command} = hear(Sidecar, ?LIMIT),
    Command.

%% Waits for the next packet of the VM, up to a time limit. Returns `closed` if the VM has closed its end of
%% the pipe, or the sidecar has ended.
-spec hear(t(), timeout()) -> {ok, command()} | none | closed.
hear(#{socket := Socket}, Timeout) ->
    case gen_tcp:recv(Socket, 0, Timeout) of
        {ok, Bytes} ->
            {heard, Body} = binary_to_term(Bytes),
            {ok, command(Body)};
        {error, timeout} ->
            none;
        {error, _} ->
            closed
    end.

%% Waits until the VM has closed its end of the pipe, and ignores packets before that.
-spec hear_end(t()) -> ok.
hear_end(Sidecar) ->
    case hear(Sidecar, ?LIMIT) of
        {ok, _} -> hear_end(Sidecar);
        closed -> ok
    end.

%% Ends the sidecar with an exit status, after the VM has received everything.
-spec exit(t(), byte()) -> ok.
exit(Sidecar, Status) ->
    ok = tell(Sidecar, {exit, Status}),
    hear_end(Sidecar).

-spec kill(t()) -> ok.
kill(#{os_pid := OsPid} = Sidecar) ->
    "" = os:cmd(io_lib:format("kill -KILL ~b", [OsPid])),
    hear_end(Sidecar).

tell(#{socket := Socket}, Command) ->
    case gen_tcp:send(Socket, term_to_binary(Command)) of
        ok -> ok;
        %% The VM has killed it.
        {error, closed} -> ok
    end.

-spec hello() -> uds_dist_protocol:report().
hello() ->
    {hello, #{version => uds_dist_protocol:version(), window => ?WINDOW, release => <<"0.0.0">>}}.

%% Sends HELLO, and answers the VM's LISTEN. Returns the listener's number and place.
-spec serve(t()) -> {Listener :: 0..15, uds_dist_address:place()}.
serve(Sidecar) ->
    ok = say(Sidecar, hello()),
    ok = read(Sidecar),
    {admit, _} = hear(Sidecar),
    {listen, Id, Place, _} = hear(Sidecar),
    ok = say(Sidecar, {listening, Id}),
    {Id, Place}.

%% ---------------------------------------------------------------------------------------------
%% The sidecar's side of the codec: the inverse of uds_dist_protocol

%% The body of a report's packet.
-spec body(uds_dist_protocol:report()) -> iodata().
body({data, Conn, Bytes}) -> [<<16, Conn:32>>, Bytes];
body({ack, Conn, Count}) -> <<17, Conn:32, Count:32>>;
body({hello, #{version := Version, window := Window} = Hello}) ->
    [<<32, Version:16, Window:32>>, maps:get(release, Hello, <<>>)];
body({listening, Id}) -> <<33, Id:32>>;
body({listen_failed, Id, Reason, Text}) -> [<<34, Id:32, (reason(Reason))>>, text(Text)];
body({unlistened, Id}) -> <<35, Id:32>>;
body({accepted, Conn, Peer, undefined}) -> <<36, Conn:32, (peer(Peer))/binary>>;
body({accepted, Conn, Peer, Address}) -> [<<36, Conn:32>>, peer(Peer), Address];
body({connected, Conn, Peer}) -> <<37, Conn:32, (peer(Peer))/binary>>;
body({connect_failed, Conn, Reason, Text}) -> [<<38, Conn:32, (reason(Reason))>>, text(Text)];
body({closed, Conn, Reason, Text}) -> [<<39, Conn:32, (reason(Reason))>>, text(Text)];
body({handed_over, Conn}) -> <<40, Conn:32>>;
body({relayed, Conn}) -> <<41, Conn:32>>;
body({channel, Address}) -> [42, Address];
body({channel_failed, Text}) -> [43, text(Text)];
body({listener_lost, Id, Text}) -> [<<44, Id:32>>, text(Text)];
%% A line without facts.
body({log, #{level := Level, text := Text}}) ->
    [<<45, (level(Level)), 0, -1:32, -1:32, 0:32, 0, 0:16>>, text(Text)];
body({status, #{descriptors := Descriptors, descriptor_limit := Limit, memory := Memory}}) ->
    <<46, Descriptors:32, Limit:32, Memory:64>>.

level(error) -> 3;
level(warning) -> 4;
level(notice) -> 5;
level(info) -> 6;
level(debug) -> 7.

text(Text) ->
    unicode:characters_to_binary(Text).

reason(duplicate_name) -> 1;
reason(name_busy) -> 2;
reason(backlog_full) -> 3;
reason(not_listening) -> 4;
reason(permission_denied) -> 5;
reason(bad_address) -> 6;
reason(peer_closed) -> 7;
reason(system_error) -> 8;
reason(refused) -> 9.

peer(#{uid := Uid, gid := Gid, pid := Pid}) ->
    <<Uid:32, Gid:32, Pid:32>>.

command(<<1, Id:32, Backlog:32, Mode:16, VmPid:32, Address/binary>>) ->
    {listen, Id, {Address, Backlog, Mode}, VmPid};
command(<<2, Id:32>>) ->
    {unlisten, Id};
command(<<3, Conn:32, Address/binary>>) ->
    {connect, Conn, Address};
command(<<4, Conn:32, Node/binary>>) ->
    {established, Conn, Node};
command(<<5, Conn:32>>) ->
    {close, Conn};
command(<<6, Policy/binary>>) ->
    {admit, Policy};
command(<<7, Conn:32, Node/binary>>) ->
    {hand_over, Conn, Node};
command(<<8, VmPid:32, Directory/binary>>) ->
    {open_channel, VmPid, Directory};
command(<<9>>) ->
    ask_status;
command(<<16, Conn:32, Bytes/binary>>) ->
    {data, Conn, Bytes};
command(<<17, Conn:32, Count:32>>) ->
    {ack, Conn, Count}.

%% ---------------------------------------------------------------------------------------------
%% The program

-spec main([Socket :: string()]) -> no_return().
main([Path]) ->
    {ok, Socket} = gen_tcp:connect({local, Path}, 0, [binary, {packet, 4}, {active, true}]),
    ok = gen_tcp:send(Socket, term_to_binary({started, list_to_integer(os:getpid())})),
    Main = self(),
    Reader = spawn_link(fun() -> start_reading(Main) end),
    loop(Socket, Reader, open_port({fd, 1, 1}, [out, binary])).

loop(Socket, Reader, Out) ->
    receive
        {tcp, Socket, Bytes} ->
            ok = obey(binary_to_term(Bytes), {Socket, Reader, Out}),
            loop(Socket, Reader, Out);
        {tcp_closed, Socket} ->
            halt(0);
        {heard, Body} ->
            ok = gen_tcp:send(Socket, term_to_binary({heard, Body})),
            loop(Socket, Reader, Out)
    end.

obey({say, Bytes}, {_Socket, _Reader, Out}) ->
    try port_command(Out, Bytes) of
        true -> ok
    catch
        %% The VM has closed the other end, as it does with a sidecar that breaks the protocol.
        error:badarg -> halt(1)
    end;
obey({exit, Status}, _) ->
    halt(Status);
obey(read, {_Socket, Reader, _Out}) ->
    Reader ! read,
    ok;
obey(pause, {Socket, Reader, _Out}) ->
    Reader ! pause,
    gen_tcp:send(Socket, term_to_binary(paused)).

start_reading(Main) ->
    receive
        read ->
            {ok, Input} = file:open("/dev/stdin", [read, raw, binary]),
            read_packets(Input, Main)
    end.

%% It reads from a file, because a port would continue to read during a pause.
read_packets(Input, Main) ->
    case file:read(Input, 4) of
        {ok, <<Size:32>>} ->
            Main ! {heard, read_body(Input, Size)},
            receive
                pause ->
                    receive
                        read -> read_packets(Input, Main)
                    end
            after 0 -> read_packets(Input, Main)
            end;
        eof ->
            halt(0)
    end.

read_body(_, 0) ->
    <<>>;
read_body(Input, Size) ->
    {ok, Body} = file:read(Input, Size),
    Body.
