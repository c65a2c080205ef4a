%% The machine on which a benchmark runs, the arguments of all nodes, and the resources that processes have used.
-module(bench_machine).

-export([facts/0, cpu_ns/1, switches/1]).

-spec facts() -> [[Field :: unicode:chardata()]].
facts() ->
    [
        ["processor", first_match("/proc/cpuinfo", "model name\\s*: (.*)")],
        ["cores", integer_to_list(erlang:system_info(schedulers_online))],
        ["memory", memory()],
        ["system", first_match("/proc/version", "^(\\S+) version (\\S+)")],
        ["otp", erlang:system_info(otp_release)],
        ["erts", erlang:system_info(version)]
        | [["arguments", Arguments] || Arguments <- [os:getenv("BENCH_ARGS", "")], Arguments =/= ""]
    ].

memory() ->
    KiB = list_to_integer(lists:flatten(first_match("/proc/meminfo", "MemTotal:\\s*(\\d+) kB"))),
    io_lib:format("~b GiB", [round(KiB / (1024 * 1024))]).

first_match(File, Regexp) ->
    case re:run(read(File), Regexp, [{capture, all_but_first, list}]) of
        {match, Matches} -> lists:join(" ", Matches);
        nomatch -> "unknown"
    end.

%% Processor time of the threads of a process in nanoseconds (proc-schedstat). The ticks of proc(5) are too long to
%% measure a sidecar.
-spec cpu_ns(pos_integer()) -> non_neg_integer().
cpu_ns(Pid) ->
    sum_of_threads(Pid, "schedstat", "^(\\d+) ").

%% Number of context switches of the threads of a process, voluntary or not.
-spec switches(pos_integer()) -> non_neg_integer().
switches(Pid) ->
    sum_of_threads(Pid, "status", "^(?:non)?voluntary_ctxt_switches:\\s+(\\d+)$").

sum_of_threads(Pid, File, Regexp) ->
    Threads = filename:join(["/proc", integer_to_list(Pid), "task"]),
    {ok, Tids} = file:list_dir(Threads),
    lists:sum([
        list_to_integer(Number)
     || Tid <- Tids, Number <- numbers(read(filename:join([Threads, Tid, File])), Regexp)
    ]).

numbers(Text, Regexp) ->
    {match, Found} = re:run(Text, Regexp, [global, multiline, {capture, all_but_first, list}]),
    lists:append(Found).

%% Files of proc have size 0, so file:read_file/1 cannot read all of them on all OTPs.
read(Path) ->
    {ok, File} = file:open(Path, [read, raw, binary]),
    try
        {ok, Bytes} = file:read(File, 65536),
        Bytes
    after
        ok = file:close(File)
    end.
