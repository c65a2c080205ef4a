%% The benchmark of the carriers: all of them side by side, so that whatever else the machine does
%% meets all alike. It is run by scripts/bench, which describes the settings.
%%
%% In each round every carrier gets nodes of its own. A case is run on one carrier after the other,
%% then comes the next case; who is first changes from round to round. The figures go to a file of
%% lines, their fields separated by tabs:
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

%% Ends with status 0 when all that was asked for has been measured, 1 when some of it is missing,
%% 2 when it was asked for wrongly.
-spec main() -> no_return().
main() ->
    [OurEbin, Tool, Dir, File] = init:get_plain_arguments(),
    case bench_settings:read(OurEbin, Dir) of
        {ok, Settings} ->
            {ok, Device} = file:open(File, [write, {encoding, utf8}]),
            Run = #run{settings = Settings, tool = Tool, file = Device},
            lists:foreach(fun(Fact) -> write(["machine" | Fact], Run) end, bench_machine:facts()),
            #run{failures = Failures} = crowds(rounds(leave_out(Run))),
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
        bench_carrier:stop(bench_carrier:start(Carrier, 1)),
        {[Carrier], Run}
    catch
        Class:Reason -> {[], failed([name(Carrier), " is left out"], Class, Reason, Run)}
    end.

%% What needs a few nodes is measured in rounds.
rounds(Run = #run{settings = #{cases := Cases, carriers := Carriers, rounds := Rounds}}) ->
    Few = [Case || {_, What} = Case <- Cases, not bench_cases:is_crowd(What)],
    lists:foldl(
        fun(Round, Done) ->
            say(io_lib:format("round ~b of ~b", [Round, Rounds])),
            round(Round, Few, rotate(Round - 1, Carriers), Done)
        end,
        Run,
        [Round || Few =/= [], Round <- lists:seq(1, Rounds)]
    ).

%% What needs a crowd of them is measured once, and one carrier at a time.
crowds(Run = #run{settings = #{cases := Cases, carriers := Carriers}}) ->
    Crowds = [Case || {_, What} = Case <- Cases, bench_cases:is_crowd(What)],
    lists:foldl(
        fun(Carrier, Done) ->
            say(["crowd, ", name(Carrier)]),
            round(1, Crowds, [Carrier], Done)
        end,
        Run,
        [Carrier || Crowds =/= [], Carrier <- Carriers, Carrier =/= floor]
    ).

round(Round, Cases, Carriers, Run) ->
    Peers = lists:max([bench_cases:peers(Case) || {_, Case} <- Cases]),
    Started = lists:foldl(
        fun(Carrier, Done) -> start(Carrier, Peers, Done) end, {#{}, Run}, Carriers
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

start(Carrier, Peers, {Groups, Run}) ->
    try start(Carrier, Peers) of
        Group -> {Groups#{name(Carrier) => Group}, Run}
    catch
        Class:Reason -> {Groups, failed([name(Carrier), " does not start"], Class, Reason, Run)}
    end.

start(floor, _Peers) -> floor;
start(Carrier, Peers) -> bench_carrier:start(Carrier, Peers).

stop(floor) -> ok;
stop(Group) -> bench_carrier:stop(Group).

%% A carrier that fails is out of this round.
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
