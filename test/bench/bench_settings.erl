%% The settings of a run. scripts/bench describes them.
-module(bench_settings).

-export([read/2]).

-export_type([settings/0]).

-type settings() :: #{
    rounds := pos_integer(),
    %% Length of a measurement in milliseconds.
    time := pos_integer(),
    cases := [{Name :: string(), bench_cases:bench_case()}],
    carriers := [bench_carrier:carrier() | floor]
}.

%% Reads the environment. Dir is for files that carriers make for the run. A wrong setting is explained in one line.
-spec read(OurEbin :: file:filename(), Dir :: file:filename()) ->
    {ok, settings()} | {error, unicode:chardata()}.
read(OurEbin, Dir) ->
    try
        Carriers = carriers(OurEbin, Dir, os:getenv("BENCH_CARRIERS", "")),
        {ok, #{
            rounds => number("ROUNDS", 5),
            time => number("MS", 500),
            cases => chosen("CASES", bench_cases:all()),
            carriers => [Carrier || {_, Carrier} <- chosen("CARRIERS", Carriers)]
        }}
    catch
        throw:Why -> {error, Why}
    end.

%% Our two transports, the carriers of OTP, and those of BENCH_CARRIERS.
carriers(OurEbin, Dir, Others) ->
    Ours = ["-pa", filename:absname(OurEbin)],
    Known = [
        #{name => "uds", proto => "uds", args => Ours},
        #{
            name => "uds_direct",
            proto => "uds",
            args => Ours ++ ["-uds_dist", "transport", "direct"]
        },
        #{name => "inet_tcp", proto => "inet_tcp", args => []},
        #{name => "inet_epmd", proto => "inet_epmd", args => ["-inet_epmd", "socket"]},
        #{name => "inet_tls", proto => "inet_tls", args => []},
        #{name => "erl_uds", proto => "erl_uds", args => []}
    ],
    Given = [
        other_carrier(Trimmed)
     || Other <- string:lexemes(Others, ";\n"), Trimmed <- [string:trim(Other)], Trimmed =/= ""
    ],
    OfAll = string:lexemes(os:getenv("BENCH_ARGS", ""), " "),
    Named =
        [
            {Name, Carrier#{args := Args ++ OfAll, dir => Dir}}
         || #{name := Name, args := Args} = Carrier <- Known ++ Given
        ] ++ [{"floor", floor}],
    Names = [Name || {Name, _} <- Named],
    case Names -- lists:usort(Names) of
        [] -> Named;
        [Name | _] -> throw(["BENCH_CARRIERS: there would be two carriers ", Name])
    end.

other_carrier(Other) ->
    [Name | Command] = string:split(Other, "="),
    case {string:lexemes(Name, " \t"), string:lexemes(Command, " \t")} of
        {[Name], [Proto | Arguments]} ->
            #{name => Name, proto => Proto, args => absolute(Arguments)};
        _ ->
            throw(["BENCH_CARRIERS: \"", Other, "\" is not of the form name=proto arguments"])
    end.

%% Paths are made absolute, because nodes run in other directories than this VM.
absolute([Flag, Dir | Rest]) when Flag =:= "-pa"; Flag =:= "-pz" ->
    [Flag, filename:absname(Dir) | absolute(Rest)];
absolute([Word | Rest]) ->
    [Word | absolute(Rest)];
absolute([]) ->
    [].

number(Variable, Default) ->
    case os:getenv(Variable, "") of
        "" ->
            Default;
        Text ->
            case string:to_integer(Text) of
                {Number, ""} when Number > 0 -> Number;
                _ -> throw([Variable, "=", Text, ": a whole number above 0 is wanted"])
            end
    end.

%% The named elements, in the order of the list; all of them if none is named.
chosen(Variable, Named) ->
    Names = [Name || {Name, _} <- Named],
    Chosen = string:lexemes(os:getenv(Variable, ""), " "),
    case {Chosen, Chosen -- Names} of
        {[], _} ->
            Named;
        {_, []} ->
            [One || {Name, _} = One <- Named, lists:member(Name, Chosen)];
        {_, [Unknown | _]} ->
            Known = lists:join(" ", Names),
            throw([Variable, ": there is no \"", Unknown, "\"; there are: ", Known])
    end.
