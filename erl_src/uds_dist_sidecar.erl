%% The life of the sidecar: it is started when it is needed, has to say hello in time, and is started again
%% with a backoff when it ends. Its owner, uds_dist_port, keeps this state and hands on every message.
%% Nothing here waits for the sidecar.
-module(uds_dist_sidecar).

-export([new/0, need/2, send/2, ask_status/1, handle/2, broke_protocol/2, give_up/2, close/1]).
-export([is_up/1, port/1, info/1, unknown_status/0]).

-export_type([sidecar/0, event/0]).

-record(sidecar, {
    status = down ::
        down
        | starting
        | up
        %% Between an end and the next start.
        | resting,
    port :: undefined | port(),
    pipe :: undefined | uds_dist_pipe:pipe(),
    %% The end of the time for HELLO, or of the rest.
    timer :: undefined | reference(),
    %% Another one is needed after the rest.
    is_needed = false :: boolean(),
    settings = #{spin => 0, log => info} :: uds_dist_program:settings(),
    %% Release and process of the program that is up, and the time of its HELLO, in milliseconds of monotonic
    %% time. Once a port is closed, the VM does not tell the process any more.
    release :: undefined | binary(),
    os_pid :: undefined | non_neg_integer(),
    up_since = 0 :: integer(),
    %% Asked for its status again only when it has answered. The timer runs while somebody waits for it.
    is_asked = false :: boolean(),
    status_timer :: undefined | reference(),
    %% Starts so far, whether or not it came up.
    starts = 0 :: non_neg_integer(),
    %% Sidecars that were up and have ended.
    ended = 0 :: non_neg_integer(),
    backoff = uds_dist_backoff:new(25) :: uds_dist_backoff:backoff()
}).

-opaque sidecar() :: #sidecar{}.

-type event() ::
    %% It is there; its window in bytes, and after how many that have ended or did not start.
    {up, Window :: pos_integer(), Tries :: non_neg_integer()}
    | {report, uds_dist_protocol:report()}
    %% The answer for all callers that wait for its status. If the sidecar ends first, only `down` comes.
    | {status, uds_dist_protocol:status()}
    %% It is gone, or could not be started.
    | {down, #{
        was_up := boolean(),
        %% Its process, and for how many seconds it was up.
        os_pid := undefined | non_neg_integer(),
        up_for := non_neg_integer(),
        explanation := uds_dist_config:explanation(),
        %% Whether this belongs into the log: not if it is the same as before.
        is_news := boolean()
    }}
    | none.

%% Milliseconds from the start of a sidecar to its HELLO. It takes about two; a loaded machine is patient.
-define(HELLO_TIMEOUT, 5000).
%% Milliseconds until a question for its status is answered without it.
-define(STATUS_TIMEOUT, 500).
%% The longest backoff in milliseconds: of a sidecar that keeps dying, and of one that cannot even start
%% (its binary is gone, or of another version).
-define(MAX_BACKOFF_DIED, 500).
-define(MAX_BACKOFF_NOT_STARTED, 5000).
%% A sidecar that has been up for so many milliseconds was a good one, and the backoff begins anew.
-define(GOOD_LIFE, 10000).

%% There is none, and none is needed yet.
-spec new() -> sidecar().
new() ->
    #sidecar{}.

-spec is_up(sidecar()) -> boolean().
is_up(#sidecar{status = Status}) -> Status =:= up.

%% Of one that is up.
-spec port(sidecar()) -> port().
port(#sidecar{status = up, port = Port}) -> Port.

%% All that uds_dist_info:sidecar() has but what only the sidecar knows.
-spec info(sidecar()) -> #{atom() => term()}.
info(#sidecar{status = Status, port = Port, starts = Starts, ended = Ended} = Sidecar) ->
    maps:merge(age(Sidecar), #{
        status => Status,
        program => uds_dist_system:bytes(uds_dist_config:sidecar_path()),
        os_pid => os_pid(Port),
        restarts => max(0, Starts - 1),
        ended => Ended
    }).

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

%% One is needed: starts it if there is none, after the rest if the last one has just ended.
-spec need(uds_dist_program:settings(), sidecar()) -> sidecar().
need(Settings, Sidecar = #sidecar{status = down}) ->
    start(Sidecar#sidecar{settings = Settings});
need(Settings, Sidecar) ->
    Sidecar#sidecar{is_needed = true, settings = Settings}.

start(Sidecar = #sidecar{settings = Settings, starts = Starts}) ->
    Sidecar1 = Sidecar#sidecar{status = starting, is_needed = false, starts = Starts + 1},
    case uds_dist_program:start(Settings) of
        {ok, Port} ->
            Timer = timer(?HELLO_TIMEOUT, hello),
            Sidecar1#sidecar{port = Port, pipe = uds_dist_pipe:new(Port), timer = Timer};
        {error, Explanation} ->
            %% Told like every other end.
            Sidecar1#sidecar{timer = timer(0, {cannot_start, Explanation})}
    end.

timer(Milliseconds, Event) ->
    erlang:start_timer(Milliseconds, self(), Event).

%% Sends a packet to a sidecar that is up.
-spec send(iodata(), sidecar()) -> sidecar().
send(Packet, Sidecar = #sidecar{status = up, pipe = Pipe}) ->
    sent(uds_dist_pipe:send(Packet, Pipe), Sidecar).

sent({ok, Pipe}, Sidecar) -> Sidecar#sidecar{pipe = Pipe};
%% A message that says so is on its way.
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

%% Takes a message of the owner; `ignored` if it is not about the sidecar.
-spec handle(Message :: term(), sidecar()) -> {event(), sidecar()} | ignored.
handle({Port, {data, Packet}}, Sidecar = #sidecar{port = Port}) ->
    packet(uds_dist_protocol:decode(Packet), Sidecar);
handle({Port, {exit_status, Status}}, Sidecar = #sidecar{port = Port}) ->
    ended(uds_dist_program:exit_status(Status), Sidecar);
handle({'EXIT', Port, epipe}, Sidecar = #sidecar{port = Port}) ->
    %% The VM closes the port then, and does not tell the exit status any more.
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
    %% No connection could ever send anything.
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

%% It said what it must not say, and nothing that it says next can be trusted.
-spec broke_protocol(What :: term(), sidecar()) -> {event(), sidecar()}.
broke_protocol(What, Sidecar) ->
    ended(io_lib:format("it broke the port protocol with ~0tP", [What, 12]), Sidecar).

%% Ends the sidecar for a reason that lies in this node.
-spec give_up(uds_dist_config:explanation(), sidecar()) -> {event(), sidecar()}.
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
    ended(io_lib:format("it did not say hello within ~b ms", [?HELLO_TIMEOUT]), Sidecar);
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
    {Delay, IsNews, Backoff2} = uds_dist_backoff:failed(Explanation, Max, Backoff1),
    {
        {down, #{
            was_up => WasUp,
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

%% The sidecar sees the end of its input, removes its sockets and ends.
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
