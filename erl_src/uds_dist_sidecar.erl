%% The life of the sidecar. It is started when it is needed, has to send HELLO in time, and is started again
%% with a backoff when it has ended. Its owner, uds_dist_port, keeps this state and passes all its messages
%% on. Nothing here waits for the sidecar.
-module(uds_dist_sidecar).

-export([new/0, need/2, send/2, ask_status/1, handle/2, broke_protocol/2, give_up/2, close/1]).
-export([is_up/1, port/1, info/1, unknown_status/0]).

-export_type([sidecar/0, event/0]).

-record(sidecar, {
    status = down ::
        down
        | starting
        | up
        %% The backoff between an end and the next start.
        | resting,
    port :: undefined | port(),
    pipe :: undefined | uds_dist_pipe:pipe(),
    %% The end of the time for HELLO, or of the backoff.
    timer :: undefined | reference(),
    %% A sidecar is needed again after the backoff.
    is_needed = false :: boolean(),
    settings = #{spin => 0, log => info} :: uds_dist_program:settings(),
    %% Path of the program that was started last. It is another one after the code of a newer release is loaded.
    program :: undefined | file:filename_all(),
    %% Release and process of the program that is up, and the time of its HELLO, in milliseconds of monotonic
    %% time. Once a port is closed, the VM does not tell the process any more.
    release :: undefined | binary(),
    os_pid :: undefined | non_neg_integer(),
    up_since = 0 :: integer(),
    %% The sidecar has been asked for its status, and is asked again only after it has answered. The timer
    %% runs while a caller waits for the answer.
    is_asked = false :: boolean(),
    status_timer :: undefined | reference(),
    %% Number of starts, including failed ones.
    starts = 0 :: non_neg_integer(),
    %% Number of sidecars that were up and have ended.
    ended = 0 :: non_neg_integer(),
    backoff = uds_dist_backoff:new(25) :: uds_dist_backoff:backoff()
}).

-opaque sidecar() :: #sidecar{}.

-type event() ::
    %% The sidecar is up. Its window is in bytes, and Tries counts those before it that ended or did not
    %% start.
    {up, Window :: pos_integer(), Tries :: non_neg_integer()}
    | {report, uds_dist_protocol:report()}
    %% The answer for all callers that wait for its status. If the sidecar ends first, there is only `down`.
    | {status, uds_dist_protocol:status()}
    %% The sidecar has ended, or could not be started.
    | {down, #{
        was_up := boolean(),
        program := file:filename_all(),
        %% Its process id, and the time in seconds for which it was up.
        os_pid := undefined | non_neg_integer(),
        up_for := non_neg_integer(),
        explanation := uds_dist_text:explanation(),
        %% Whether to log this. It is not logged if the failure is the same as the one before.
        is_news := boolean()
    }}
    | none.

%% Most milliseconds from the start of a sidecar to its HELLO. It usually takes two, and longer on a busy
%% machine.
-define(HELLO_TIMEOUT, 5000).
%% Milliseconds until a request for its status is answered without it.
-define(STATUS_TIMEOUT, 500).
%% The longest backoff in milliseconds, for a sidecar that dies again and again, and for one that cannot be
%% started, for example because its binary is missing or has another version.
-define(MAX_BACKOFF_DIED, 500).
-define(MAX_BACKOFF_NOT_STARTED, 5000).
%% If a sidecar has been up for this number of milliseconds, the backoff starts from the beginning.
-define(GOOD_LIFE, 10000).

%% The state without a sidecar, before one is needed.
-spec new() -> sidecar().
new() ->
    #sidecar{}.

-spec is_up(sidecar()) -> boolean().
is_up(#sidecar{status = Status}) -> Status =:= up.

%% The port of a sidecar that is up.
-spec port(sidecar()) -> port().
port(#sidecar{status = up, port = Port}) -> Port.

%% The part of uds_dist_info:sidecar() that the VM knows without asking the sidecar.
-spec info(sidecar()) -> #{atom() => term()}.
info(#sidecar{status = Status, port = Port, starts = Starts, ended = Ended} = Sidecar) ->
    maps:merge(age(Sidecar), #{
        status => Status,
        program => uds_dist_system:bytes(program(Sidecar)),
        os_pid => os_pid(Port),
        restarts => max(0, Starts - 1),
        ended => Ended
    }).

program(#sidecar{program = undefined}) -> uds_dist_program:path();
program(#sidecar{program = Path}) -> Path.

age(#sidecar{status = up, release = Release, up_since = UpSince}) ->
    UpFor = (now_ms() - UpSince) div 1000,
    #{version => Release, started => erlang:system_time(second) - UpFor, up_for => UpFor};
age(#sidecar{}) ->
    #{version => undefined, started => undefined, up_for => undefined}.

os_pid(undefined) ->
    undefined;
os_pid(Port) ->
    case erlang:port_info(Port, os_pid) of
        {os_pid, Pid} -> Pid;
        undefined -> undefined
    end.

%% A sidecar is needed. Starts one if there is none, or after the backoff if the last one has just ended.
-spec need(uds_dist_program:settings(), sidecar()) -> sidecar().
need(Settings, Sidecar = #sidecar{status = down}) ->
    start(Sidecar#sidecar{settings = Settings});
need(Settings, Sidecar) ->
    Sidecar#sidecar{is_needed = true, settings = Settings}.

start(Sidecar = #sidecar{settings = Settings, starts = Starts}) ->
    Path = uds_dist_program:path(),
    Sidecar1 = Sidecar#sidecar{status = starting, program = Path, is_needed = false, starts = Starts + 1},
    case uds_dist_program:start(Path, Settings) of
        {ok, Port} ->
            Timer = timer(?HELLO_TIMEOUT, hello),
            Sidecar1#sidecar{port = Port, pipe = uds_dist_pipe:new(Port), timer = Timer};
        {error, Explanation} ->
            %% Reported with an event, like every other end.
            Sidecar1#sidecar{timer = timer(0, {cannot_start, Explanation})}
    end.

timer(Milliseconds, Event) ->
    erlang:start_timer(Milliseconds, self(), Event).

%% Sends a packet to a sidecar that is up.
-spec send(iodata(), sidecar()) -> sidecar().
send(Packet, Sidecar = #sidecar{status = up, pipe = Pipe}) ->
    sent(uds_dist_pipe:send(Packet, Pipe), Sidecar).

sent({ok, Pipe}, Sidecar) -> Sidecar#sidecar{pipe = Pipe};
%% The port's own message about its end will follow.
sent(closed, Sidecar) -> Sidecar.

%% Asks a sidecar that is up for its status, which comes as an event. If the sidecar does not answer in time,
%% the event says that the status is unknown.
-spec ask_status(sidecar()) -> sidecar().
ask_status(Sidecar = #sidecar{status = up, is_asked = IsAsked, status_timer = Timer}) ->
    Sidecar1 =
        case IsAsked of
            true -> Sidecar;
            false -> send(uds_dist_protocol:ask_status(), Sidecar)
        end,
    Timer1 =
        case Timer of
            undefined -> timer(?STATUS_TIMEOUT, status);
            _ -> Timer
        end,
    Sidecar1#sidecar{is_asked = true, status_timer = Timer1}.

-spec unknown_status() -> uds_dist_protocol:status().
unknown_status() ->
    #{descriptors => undefined, descriptor_limit => undefined, memory => undefined}.

%% Handles a message of the owner. Returns `ignored` if it is not about the sidecar.
-spec handle(Message :: term(), sidecar()) -> {event(), sidecar()} | ignored.
handle({Port, {data, Packet}}, Sidecar = #sidecar{port = Port}) ->
    packet(uds_dist_protocol:decode(Packet), Sidecar);
handle({Port, {exit_status, Status}}, Sidecar = #sidecar{port = Port}) ->
    ended(uds_dist_program:exit_status(Status, program(Sidecar)), Sidecar);
handle({'EXIT', Port, epipe}, Sidecar = #sidecar{port = Port}) ->
    %% In this case, the VM closes the port and does not report the exit status.
    ended("it ended while it was written to", Sidecar);
handle({'EXIT', Port, Reason}, Sidecar = #sidecar{port = Port}) ->
    ended(io_lib:format("its port was closed (~0tp)", [Reason]), Sidecar);
handle({timeout, Timer, Event}, Sidecar = #sidecar{timer = Timer}) ->
    timeout(Event, Sidecar#sidecar{timer = undefined});
handle({timeout, Timer, status}, Sidecar = #sidecar{status_timer = Timer}) ->
    {{status, unknown_status()}, Sidecar#sidecar{status_timer = undefined}};
handle(_, #sidecar{pipe = undefined}) ->
    ignored;
handle(Message, Sidecar = #sidecar{pipe = Pipe}) ->
    case uds_dist_pipe:handle(Message, Pipe) of
        ignored -> ignored;
        Sent -> {none, sent(Sent, Sidecar)}
    end.

packet({error, {bad_packet, Packet}}, Sidecar) ->
    broke_protocol(Packet, Sidecar);
packet({hello, #{window := 0}} = Hello, Sidecar) ->
    %% With such a window, no connection could ever send anything.
    broke_protocol(Hello, Sidecar);
packet({hello, Hello}, Sidecar = #sidecar{status = starting}) ->
    hello(Hello, Sidecar);
packet({status, Status}, Sidecar = #sidecar{status = up, is_asked = true, status_timer = Timer}) ->
    ok = cancel(Timer),
    {{status, Status}, Sidecar#sidecar{is_asked = false, status_timer = undefined}};
packet(Report, Sidecar = #sidecar{status = up}) when element(1, Report) =/= hello ->
    {{report, Report}, Sidecar};
packet(Report, Sidecar) ->
    broke_protocol(Report, Sidecar).

%% Ends a sidecar that broke the protocol, because its next packets cannot be trusted either.
-spec broke_protocol(What :: term(), sidecar()) -> {event(), sidecar()}.
broke_protocol(What, Sidecar) ->
    ended(io_lib:format("it broke the port protocol with ~0tP", [What, 12]), Sidecar).

%% Ends the sidecar because of a failure in this node.
-spec give_up(uds_dist_text:explanation(), sidecar()) -> {event(), sidecar()}.
give_up(Explanation, Sidecar) ->
    ended(Explanation, Sidecar).

hello(#{version := Version, window := Window, release := Release}, Sidecar) ->
    #sidecar{timer = Timer, backoff = Backoff, port = Port} = Sidecar,
    Version = uds_dist_protocol:version(),
    ok = cancel(Timer),
    Tries = uds_dist_backoff:tries(Backoff),
    {{up, Window, Tries}, Sidecar#sidecar{
        status = up,
        timer = undefined,
        release = Release,
        os_pid = os_pid(Port),
        up_since = now_ms()
    }};
hello(#{version := Theirs}, Sidecar) ->
    Ours = uds_dist_protocol:version(),
    ended(
        io_lib:format(
            "it speaks version ~b of the port protocol, and this node speaks ~b; "
            "build both from the same release (rebar3 compile)",
            [Theirs, Ours]
        ),
        Sidecar
    ).

timeout(hello, Sidecar) ->
    ended(
        io_lib:format(
            "it did not say hello within ~b ms; it may be another program (check UDS_DIST_SIDECAR), "
            "or the machine is very busy",
            [?HELLO_TIMEOUT]
        ),
        Sidecar
    );
timeout({cannot_start, Explanation}, Sidecar) ->
    ended(Explanation, Sidecar);
timeout(rested, Sidecar = #sidecar{is_needed = true}) ->
    {none, start(Sidecar)};
timeout(rested, Sidecar) ->
    {none, Sidecar#sidecar{status = down}}.

ended(Explanation, Sidecar) ->
    #sidecar{status = Status, timer = Timer, up_since = UpSince, backoff = Backoff} = Sidecar,
    ok = cancel(Timer),
    ok = cancel(Sidecar#sidecar.status_timer),
    Sidecar1 = close(Sidecar),
    WasUp = Status =:= up,
    Life = now_ms() - UpSince,
    Backoff1 =
        case WasUp andalso Life >= ?GOOD_LIFE of
            true -> uds_dist_backoff:new(25);
            false -> Backoff
        end,
    Max =
        case WasUp of
            true -> ?MAX_BACKOFF_DIED;
            false -> ?MAX_BACKOFF_NOT_STARTED
        end,
    %% A start can fail for the same reason as a life has ended, and is news then.
    Failure = [atom_to_list(Status), ": ", Explanation],
    {Delay, IsNews, Backoff2} = uds_dist_backoff:failed(Failure, Max, Backoff1),
    {
        {down, #{
            was_up => WasUp,
            program => program(Sidecar),
            os_pid => Sidecar#sidecar.os_pid,
            up_for => max(0, Life) div 1000,
            explanation => Explanation,
            is_news => WasUp orelse IsNews
        }},
        Sidecar1#sidecar{
            status = resting,
            timer = timer(Delay, rested),
            is_needed = false,
            is_asked = false,
            status_timer = undefined,
            ended = Sidecar#sidecar.ended + length([was_up || WasUp]),
            backoff = Backoff2
        }
    }.

%% Closes the port. The sidecar then sees the end of its input, removes its sockets and ends.
-spec close(sidecar()) -> sidecar().
close(Sidecar = #sidecar{port = undefined}) ->
    Sidecar;
close(Sidecar = #sidecar{port = Port}) ->
    ok = uds_dist_program:close(Port),
    Sidecar#sidecar{port = undefined, pipe = undefined}.

cancel(undefined) ->
    ok;
cancel(Timer) ->
    _ = erlang:cancel_timer(Timer),
    ok.

now_ms() ->
    erlang:monotonic_time(millisecond).
