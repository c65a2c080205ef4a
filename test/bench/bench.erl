%% The benchmark of the carriers. They take turns, so that other load on the machine affects all of them alike.
%% scripts/bench runs it, and describes the settings.
%%
%% A round has stages. In each stage, every carrier gets its own nodes. Each case is run on one carrier after the
%% other before the next case begins, and the first carrier changes from round to round. If the nodes of all carriers
%% would be too many, each carrier runs all cases before the next one. The figures are written to a file, in lines
%% whose fields are separated by tabs:
%%
%%     machine  KEY    VALUE
%%     figure   ROUND  CARRIER  CASE  NAME  VALUE
-module(bench).

-export([main/0]).

-record(run, {
    settings :: bench_settings:settings(),
    %% Measures the floor.
    tool :: file:filename(),
    file :: file:io_device(),
    failures = 0 :: non_neg_integer()
}).

%% Ends with status 0 if everything was measured, 1 if some figures are missing, and 2 if the settings are wrong.
-spec main() -> no_return().
main() ->
    [OurEbin, Tool, Dir, File] = init:get_plain_arguments(),
    case bench_settings:read(OurEbin, Dir) of
        {ok, Settings} ->
            {ok, Device} = file:open(File, [write, {encoding, utf8}]),
            Run = #run{settings = Settings, tool = Tool, file = Device},
            lists:foreach(fun(Fact) -> write(["machine" | Fact], Run) end, bench_machine:facts()),
            #run{failures = Failures} = rounds(leave_out(Run)),
            ok = file:close(Device),
            halt(min(1, Failures));
        {error, Why} ->
            give_up(Why)
    end.

-spec give_up(unicode:chardata()) -> no_return().
give_up(Why) ->
    say(["make bench: ", Why]),
    halt(2).

%% Drops the carriers that cannot run here.
leave_out(Run = #run{settings = #{carriers := Carriers} = Settings}) ->
    {Tried, Run1} = lists:mapfoldl(fun try_out/2, Run, Carriers),
    case lists:append(Tried) of
        [] -> give_up("no carrier is left to measure");
        Usable -> Run1#run{settings = Settings#{carriers := Usable}}
    end.

try_out(floor, Run) ->
    {[floor], Run};
try_out(Carrier, Run) ->
    try
        ok = bench_carrier:prepare(Carrier),
        bench_carrier:stop(bench_carrier:start(Carrier, 1, [])),
        {[Carrier], Run}
    catch
        Class:Reason -> {[], failed([name(Carrier), " is left out"], Class, Reason, Run)}
    end.

rounds(Run = #run{settings = #{rounds := Rounds}}) ->
    Stages = [
        {Round, Stage}
     || Round <- lists:seq(1, Rounds),
        Stage <- bench_cases:stages(),
        Round =:= 1 orelse maps:get(repeated, bench_cases:plan(Stage))
    ],
    lists:foldl(fun stage/2, Run, Stages).

stage({Round, Stage}, Run = #run{settings = Settings}) ->
    #{rounds := Rounds, cases := All, carriers := Carriers} = Settings,
    Cases = [Case || {_, What} = Case <- All, bench_cases:stage(What) =:= Stage],
    #{title := Title, together := Together, arguments := Arguments} = bench_cases:plan(Stage),
    lists:foldl(
        fun(Some, Done) ->
            Names = lists:join(" ", [name(Carrier) || Carrier <- Some]),
            say(io_lib:format("round ~b of ~b, ~s: ~s", [Round, Rounds, Title, Names])),
            measure_all(Round, Cases, Arguments, Some, Done)
        end,
        Run,
        [Some || Cases =/= [], Some <- turns(Together, rotate(Round - 1, Carriers))]
    ).

%% The groups of carriers that have nodes at the same time.
turns(true, Carriers) -> [Carriers];
turns(false, Carriers) -> [[Carrier] || Carrier <- Carriers, Carrier =/= floor].

measure_all(Round, Cases, Arguments, Carriers, Run) ->
    Peers = lists:max([bench_cases:peers(Case) || {_, Case} <- Cases]),
    Started = lists:foldl(
        fun(Carrier, Done) -> start(Carrier, Peers, Arguments, Done) end, {#{}, Run}, Carriers
    ),
    {Groups, Run1} = lists:foldl(
        fun({Case, Carrier}, Done) -> measure(Case, Carrier, Round, Done) end,
        Started,
        [{Case, Carrier} || Case <- Cases, Carrier <- Carriers]
    ),
    maps:foreach(fun(_, Group) -> stop(Group) end, Groups),
    Run1.

rotate(Turns, Carriers) ->
    {Last, First} = lists:split(Turns rem length(Carriers), Carriers),
    First ++ Last.

start(Carrier, Peers, Arguments, {Groups, Run}) ->
    try start(Carrier, Peers, Arguments) of
        Group -> {Groups#{name(Carrier) => Group}, Run}
    catch
        Class:Reason -> {Groups, failed([name(Carrier), " does not start"], Class, Reason, Run)}
    end.

start(floor, _Peers, _Arguments) -> floor;
start(Carrier, Peers, Arguments) -> bench_carrier:start(Carrier, Peers, Arguments).

stop(floor) -> ok;
stop(Group) -> bench_carrier:stop(Group).

%% A carrier that fails is left out of the rest of the stage.
measure({CaseName, Case}, Carrier, Round, {Groups, Run}) ->
    Name = name(Carrier),
    case Groups of
        #{Name := Group} ->
            try figures(Case, Group, Run) of
                Figures ->
                    Where = ["figure", integer_to_list(Round), Name, CaseName],
                    lists:foreach(fun(Figure) -> write(Where ++ Figure, Run) end, Figures),
                    {Groups, Run}
            catch
                Class:Reason ->
                    stop(Group),
                    What = io_lib:format("~s fails in round ~b, case ~s", [Name, Round, CaseName]),
                    {maps:remove(Name, Groups), failed(What, Class, Reason, Run)}
            end;
        #{} ->
            {Groups, Run}
    end.

figures(Case, floor, #run{tool = Tool, settings = #{time := Time}}) ->
    case bench_cases:floor(Case, Time) of
        none -> [];
        Arguments -> [parse_figure(Line) || Line <- bench_program:lines(Tool, Arguments)]
    end;
figures(Case, Group, #run{settings = #{time := Time}}) ->
    [
        [Name, io_lib:format("~.4f", [float(Value)])]
     || {Name, Value} <- bench_cases:run(Case, Time, Group)
    ].

parse_figure(Line) ->
    case string:lexemes(Line, "\t") of
        [_Name, _Value] = Figure -> Figure;
        _ -> throw(Line)
    end.

name(floor) -> "floor";
name(#{name := Name}) -> Name.

write(Fields, #run{file = Device}) ->
    ok = io:put_chars(Device, [lists:join($\t, Fields), $\n]).

%% ---------------------------------------------------------------------------------------------

failed(What, Class, Reason, Run = #run{failures = Failures}) ->
    say([What, ": ", explain(Class, Reason)]),
    Run#run{failures = Failures + 1}.

explain(throw, Why) ->
    Why;
explain(error, {did_not_boot, Reason, Output}) ->
    case string:lexemes(unicode:characters_to_list(Output), "\n") of
        [] -> io_lib:format("the node did not boot: ~0tp", [Reason]);
        [Line | _] -> ["the node did not boot: ", Line]
    end;
explain(Class, Reason) ->
    io_lib:format("~s: ~0tP", [Class, Reason, 30]).

say(Line) ->
    io:put_chars(standard_error, [Line, $\n]).
