%% Random combinations of faults: nodes exchange messages while sidecars and nodes are killed, stopped,
%% flooded and sent garbage. Every acknowledged message must have arrived, connections must have kept the
%% order, and at the end nothing may be left behind. One more case repeats one fault, a killed sidecar.
%%
%% `make chaos` runs it for longer: UDS_DIST_CHAOS_SECONDS sets the duration, and UDS_DIST_CHAOS_SEED the
%% random choices. The same seed makes the same choices, though not at the same microseconds.
-module(chaos_SUITE).

-export([suite/0, all/0, groups/0, init_per_group/2, end_per_group/2]).
-export([init_per_testcase/2, end_per_testcase/2]).
-export([everything_at_once/1, hundred_kills_under_traffic/1]).

-define(DEFAULT_SECONDS, "5").
-define(DEFAULT_SEED, "1").
-define(NODES, 4).
%% Most garbage clients that are connected at the same time.
-define(CLIENTS, 20).
%% Number of connects or of made-up names in one burst.
-define(CONNECTS, 200).
-define(NEW_NAMES, 5).
%% Bounds of the pause between two disturbances, in milliseconds.
-define(PAUSE, {20, 300}).
-define(TICKTIME, 4).
%% Time limit, in milliseconds, until all nodes exchange messages again.
-define(SETTLED, 90000).

-record(member, {
    name :: string(),
    node :: test_node:t(),
    otp :: default | test_node:otp(),
    transport :: relay | direct,
    incarnation = 0 :: non_neg_integer(),
    %% Stopped processes, and the number of disturbances after which they continue.
    stopped = [] :: [pos_integer()],
    stopped_for = 0 :: non_neg_integer()
}).

-record(state, {
    config :: list(),
    members :: #{1..?NODES => #member{}},
    clients = [] :: [socket:socket()],
    counts = #{} :: #{atom() => pos_integer()}
}).

suite() ->
    test_node:suite(2 * seconds()).

all() ->
    [{group, relay}, {group, mixed}, hundred_kills_under_traffic].

%% In `mixed`, the two ends of a connection may have different transports.
groups() ->
    [{Group, [], [everything_at_once]} || Group <- [relay, mixed]].

init_per_group(Group, Config) ->
    [{transports, Group} | Config].

end_per_group(_Group, _Config) ->
    ok.

init_per_testcase(_Case, Config) ->
    test_node:init(Config).

end_per_testcase(_Case, Config) ->
    test_node:cleanup(Config).

seconds() ->
    list_to_integer(os:getenv("UDS_DIST_CHAOS_SECONDS", ?DEFAULT_SECONDS)).

%% Random disturbances of four nodes, of several OTPs if there are several.
everything_at_once(Config) ->
    Seed = list_to_integer(os:getenv("UDS_DIST_CHAOS_SEED", ?DEFAULT_SEED)),
    say("~b s with seed ~b", [seconds(), Seed]),
    _ = rand:seed(exsss, Seed),
    Dir = test_node:dir(Config),
    Started = #state{config = Config, members = start_members(Config)},
    End = test_system:now_ms() + 1000 * seconds(),
    Ended = calm_down(disturb(End, Started)),
    say("~0p", [Ended#state.counts]),
    %% All nodes exchange messages again.
    Members = maps:values(Ended#state.members),
    [
        ok = test_node:call(Node, chaos_member, write_more, [], ?SETTLED)
     || #member{node = Node} <- Members
    ],
    [ok = test_node:stop(Node) || #member{node = Node} <- Members],
    test_node:expect(fun() -> processes_of(Dir) =:= [] end, no_process_left),
    [] = filelib:wildcard(filename:join(Dir, "*.sock*")),
    [] = chaos_member:violations(Dir),
    {Missing, Acknowledged} = chaos_member:missing(Dir),
    say("~b messages were acknowledged, ~b of them are missing", [Acknowledged, length(Missing)]),
    [] = Missing.

%% Prints to the terminal too, also if the test passes.
say(Format, Arguments) ->
    ct:log("chaos: " ++ Format, Arguments),
    io:format(user, "chaos: " ++ Format ++ "~n", Arguments).

start_members(Config) ->
    Otps = [default | [Otp || {_Major, Otp} <- test_node:other_otps()]],
    maps:from_list([
        {I, start_member(new_member(I, Otp, Config), Config)}
     || I <- lists:seq(1, ?NODES), Otp <- [lists:nth(1 + I rem length(Otps), Otps)]
    ]).

new_member(I, Otp, Config) ->
    Transport =
        case proplists:get_value(transports, Config, relay) of
            mixed when I =< ?NODES div 2 -> direct;
            _ -> relay
        end,
    #member{name = name(I), node = #{}, otp = Otp, transport = Transport}.

start_member(Member, Config) ->
    #member{name = Name, otp = Otp, transport = Transport, incarnation = Incarnation} = Member,
    Options = #{
        args => ["-kernel", "net_ticktime", integer_to_list(?TICKTIME)], transport => Transport
    },
    Node = test_node:start(
        Name,
        case Otp of
            default -> Options;
            _ -> Options#{otp => Otp}
        end,
        Config
    ),
    [_, Host] = string:split(atom_to_list(test_node:name(Node)), "@"),
    Others = [
        list_to_atom(name(I) ++ "@" ++ Host)
     || I <- lists:seq(1, ?NODES), name(I) =/= Name
    ],
    ok = test_node:call(Node, chaos_member, start, [test_node:dir(Config), Incarnation, Others]),
    Member#member{node = Node, incarnation = Incarnation + 1, stopped = []}.

name(I) ->
    "node" ++ integer_to_list(I).

%% ---------------------------------------------------------------------------------------------
%% Disturbances

disturb(End, State) ->
    case test_system:now_ms() < End of
        true ->
            {Low, High} = ?PAUSE,
            pause(Low + rand:uniform(High - Low)),
            disturb(End, go_on(disturb_once(chosen(disturbances()), State)));
        false ->
            State
    end.

%% Waits for a fixed time, which is part of the test.
pause(Time) ->
    receive
    after Time -> ok
    end.

%% The disturbances, with their relative frequency.
disturbances() ->
    [
        kill_sidecar,
        kill_sidecar,
        kill_sidecar,
        kill_vm,
        kill_both,
        stop_vm,
        stop_vm,
        stop_sidecar,
        stop_sidecar,
        stop_both,
        flood,
        flood,
        flood,
        garbage,
        garbage,
        garbage,
        connects,
        connects,
        new_names,
        new_names,
        out_of_band,
        disconnect,
        restart
    ].

chosen(List) ->
    lists:nth(rand:uniform(length(List)), List).

disturb_once(What, State = #state{counts = Counts, members = Members, config = Config}) ->
    I = rand:uniform(?NODES),
    Other = maps:get(1 + I rem ?NODES, Members),
    Member = maps:get(I, Members),
    Number = rand:uniform(1 bsl 30),
    State1 = State#state{counts = maps:update_with(What, fun(N) -> N + 1 end, 1, Counts)},
    case What of
        garbage -> garbage(Member, Number, State1);
        connects -> connects(Member, State1);
        new_names -> new_names(Member, Number, State1);
        out_of_band -> out_of_band(Member, Number, State1);
        _ -> State1#state{members = Members#{I := do(What, Member, Other, Number, Config)}}
    end.

do(kill_sidecar, Member, _, _, _) ->
    ok = signal_if_alive("KILL", sidecars(Member)),
    Member;
do(kill_vm, Member, _, _, Config) ->
    Continued = continue(Member),
    ok = test_node:kill(Continued#member.node),
    start_member(Continued, Config);
do(kill_both, #member{node = Node} = Member, _, _, Config) ->
    ok = test_node:signal("STOP", test_node:os_pid(Node)),
    ok = signal_if_alive("KILL", sidecars(Member)),
    ok = test_node:kill(Node),
    start_member(Member, Config);
do(restart, Member, _, _, Config) ->
    Continued = continue(Member),
    ok = test_node:stop(Continued#member.node),
    start_member(Continued, Config);
do(stop_vm, #member{node = Node} = Member, _, Number, _) ->
    stop([test_node:os_pid(Node)], Number, Member);
do(stop_sidecar, Member, _, Number, _) ->
    stop(sidecars(Member), Number, Member);
do(stop_both, #member{node = Node} = Member, _, Number, _) ->
    stop([test_node:os_pid(Node) | sidecars(Member)], Number, Member);
do(flood, #member{node = Node} = Member, Other, Number, _) ->
    Arguments = [test_node:name(Other#member.node), 1 + Number rem 8, 1 + Number rem 500],
    ok = test_load:cast(Node, chaos_member, flood, Arguments),
    Member;
do(disconnect, #member{node = Node} = Member, Other, _, _) ->
    Arguments = [test_node:name(Other#member.node)],
    ok = test_load:cast(Node, erlang, disconnect_node, Arguments),
    Member.

%% There are none while the VM starts another one.
sidecars(#member{node = Node}) ->
    test_node:sidecars(test_node:os_pid(Node)).

%% Stops processes. Most continue in time, but some are stopped for long enough to be taken for dead.
stop(Pids, Number, Member) ->
    Continued = continue(Member),
    ok = signal_if_alive("STOP", Pids),
    Rounds =
        case Number rem 5 of
            0 -> 40;
            _ -> 1 + Number rem 8
        end,
    Continued#member{stopped = Pids, stopped_for = Rounds}.

continue(#member{stopped = Pids} = Member) ->
    ok = signal_if_alive("CONT", Pids),
    Member#member{stopped = []}.

%% Sidecars are replaced all the time, so a process may have ended since it was found.
signal_if_alive(Signal, Pids) ->
    _ = [os:cmd(io_lib:format("kill -~s ~b 2>&1", [Signal, Pid])) || Pid <- Pids],
    ok.

%% Counts a disturbance, and lets processes continue that were stopped for long enough.
go_on(State = #state{members = Members}) ->
    State#state{
        members = maps:map(
            fun
                (_, #member{stopped = []} = Member) -> Member;
                (_, #member{stopped_for = 0} = Member) -> continue(Member);
                (_, #member{stopped_for = Left} = Member) -> Member#member{stopped_for = Left - 1}
            end,
            Members
        )
    }.

%% A client that is not a node sends something, and stays connected for a while.
garbage(Member, Number, State = #state{clients = Clients}) ->
    Client = client(Member, nonsense(Number rem 6), State),
    {Kept, Gone} = lists:split(min(?CLIENTS - 1, length(Clients)), Clients),
    _ = [socket:close(Old) || Old <- Gone],
    State#state{clients = [Client | Kept]}.

%% Clients connect and disconnect, again and again.
connects(Member, State) ->
    _ = [socket:close(client(Member, <<>>, State)) || _ <- lists:seq(1, ?CONNECTS)],
    State.

%% Clients that do not know the cookie start handshakes under ever new names.
new_names(Member, Number, State) ->
    Names = ["new" ++ integer_to_list(Number + I) ++ "@host" || I <- lists:seq(1, ?NEW_NAMES)],
    _ = [socket:close(client(Member, introduction(Name), State)) || Name <- Names],
    State.

%% A client sends a byte of out-of-band data (MSG_OOB) after its handshake.
out_of_band(Member, Number, State = #state{clients = Clients}) ->
    Client = client(Member, introduction("urgent" ++ integer_to_list(Number) ++ "@host"), State),
    _ = socket:send(Client, <<1>>, [oob], 100),
    State#state{clients = [Client | Clients]}.

client(#member{name = Name}, Bytes, #state{config = Config}) ->
    Path = filename:join(test_node:dir(Config), Name ++ ".sock"),
    {ok, Client} = socket:open(local, stream),
    case socket:connect(Client, #{family => local, path => Path}, 100) of
        ok -> _ = socket:send(Client, Bytes, 100);
        {error, _} -> ok
    end,
    Client.

%% The first packet of a handshake.
introduction(Name) ->
    {erts_dflags, _, Flags, _, _, _} = erts_internal:get_dflags(),
    Packet = [<<$N, Flags:64, 1:32, (length(Name)):16>>, Name],
    [<<(iolist_size(Packet)):16>>, Packet].

nonsense(0) -> <<>>;
nonsense(1) -> rand:bytes(1000);
%% The head of a frame that never follows.
nonsense(2) -> <<16#FFFF:16>>;
nonsense(3) -> <<0:16, 0:16, 0:16>>;
%% A valid first message with a name that leads nowhere.
nonsense(4) -> <<21:16, $N, 0:64, 1:32, 6:16, "x@host">>;
nonsense(5) -> rand:bytes(100000).

calm_down(State = #state{members = Members, clients = Clients}) ->
    _ = [socket:close(Client) || Client <- Clients],
    State#state{members = maps:map(fun(_, Member) -> continue(Member) end, Members), clients = []}.

%% The processes with the directory of this run in their environment: VMs and sidecars.
processes_of(Dir) ->
    {ok, Entries} = file:list_dir("/proc"),
    [
        Pid
     || Entry <- Entries,
        {Pid, ""} <- [string:to_integer(Entry)],
        Environment <- [test_system:environment(Pid)],
        string:find(Environment, Dir) =/= nomatch
    ].

%% ---------------------------------------------------------------------------------------------
%% The same fault, again and again

%% A hundred kills, of each sidecar in turn and of both at once, while both nodes exchange messages. The nodes
%% reconnect each time.
hundred_kills_under_traffic(Config) ->
    [A, B] = Nodes = test_node:start_all(["a", "b"], Config),
    [ok = test_load:prepare(Node) || Node <- Nodes],
    true = test_node:call(A, net_kernel, connect_node, [test_node:name(B)]),
    test_node:expect_nodes(B, [test_node:name(A)]),
    Before = [test_node:call(Node, test_load, owner_and_acceptor, []) || Node <- Nodes],
    [
        ok = test_load:start_traffic(Node, Other, Size)
     || {Node, Other} <- [{A, B}, {B, A}], Size <- [16, 100000]
    ],
    Times = [
        kill_and_recover(Victims, Nodes)
     || _ <- lists:seq(1, 25), Victims <- [[A], [B], [A, B]]
    ],
    test_runner:note("from kill to connected again, ms: median ~b, slowest ~b", [
        test_system:percentile(50, Times), lists:max(Times)
    ]),
    [test_load:expect_traffic(Node) || Node <- Nodes],
    Before = [test_node:call(Node, test_load, owner_and_acceptor, []) || Node <- Nodes],
    [1 = length(test_node:call(Node, test_load, controllers, [])) || Node <- Nodes],
    [
        ok = test_node:call(From, test_traffic, round_trips, [test_node:name(To), 1, 0])
     || {From, To} <- [{A, B}, {B, A}]
    ].

kill_and_recover(Victims, Nodes) ->
    Downs = [{Node, test_load:downs(Node)} || Node <- Nodes],
    Sidecars = [test_node:sidecar(Victim) || Victim <- Victims],
    Start = test_system:now_ms(),
    ok = test_node:signal("KILL", Sidecars),
    [ok = test_load:await_reconnected(Node, Count) || {Node, Count} <- Downs],
    test_system:now_ms() - Start.
