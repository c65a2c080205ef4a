%% On what a benchmark ran.
-module(bench_machine).

-export([facts/0]).

-spec facts() -> [[Field :: unicode:chardata()]].
facts() ->
    [
        ["processor", first_match("/proc/cpuinfo", "model name\\s*: (.*)")],
        ["cores", integer_to_list(erlang:system_info(schedulers_online))],
        ["memory", first_match("/proc/meminfo", "MemTotal:\\s*(.*)")],
        ["system", first_match("/proc/version", "^(\\S+ \\S+ \\S+)")],
        ["otp", erlang:system_info(otp_release)],
        ["erts", erlang:system_info(version)]
    ].

first_match(File, Regexp) ->
    case bench_program:lines("/bin/cat", [File]) of
        Lines ->
            Matches = [
                Match
             || Line <- Lines,
                {match, [Match]} <- [re:run(Line, Regexp, [{capture, all_but_first, list}])]
            ],
            hd(Matches ++ ["unknown"])
    end.
