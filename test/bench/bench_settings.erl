%% What a run of the benchmark is asked to do; scripts/bench describes it.
-module(bench_settings).

-export([read/2]).

-export_type([settings/0]).

-type settings() :: #{
    rounds := pos_integer(),
    %% Milliseconds of a measurement.
    time := pos_integer(),
    cases := [{Name :: string(), bench_cases:bench_case()}],
    carriers := [bench_carrier:carrier() | floor]
}.

%% From the environment. Dir is for what carriers have made for the run. A wrong setting is explained
%% in one line.
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

%% Ours, those of OTP, and others that are given as "name:ebin-dir:proto ...".
carriers(OurEbin, Dir, Others) ->
    Known = [
        #{name => "uds", ebin => filename:absname(OurEbin), proto => "uds"},
        #{name => "inet_tcp", ebin => Dir, proto => "inet_tcp"},
        #{name => "inet_tls", ebin => Dir, proto => "inet_tls"},
        #{name => "erl_uds", ebin => Dir, proto => "erl_uds"}
    ],
    Given = [other_carrier(Other) || Other <- string:lexemes(Others, " ")],
    Named = [{Name, Carrier} || #{name := Name} = Carrier <- Known ++ Given] ++ [{"floor", floor}],
    Names = [Name || {Name, _} <- Named],
    case Names -- lists:usort(Names) of
        [] -> Named;
        [Name | _] -> throw(["BENCH_CARRIERS: there would be two carriers ", Name])
    end.

other_carrier(Other) ->
    case string:split(Other, ":", all) of
        [[_ | _] = Name, [_ | _] = Ebin, [_ | _] = Proto] ->
            #{name => Name, ebin => filename:absname(Ebin), proto => Proto};
        _ ->
            throw(["BENCH_CARRIERS: \"", Other, "\" is not of the form name:ebin-dir:proto"])
    end.

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

%% Those that are named, in the order of the list; all of them if none is.
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
