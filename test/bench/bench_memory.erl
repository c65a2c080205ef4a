%% Measures the peak memory of VMs and sidecars.
-module(bench_memory).

-export([peaks/3]).
%% Run in the nodes too.
-export([watch_vm/0, peak/1]).

%% Milliseconds between two samples.
-define(POLL, 20).

%% Runs Fun. Returns its result, and the peaks in bytes: of each VM by erlang:memory(total), and of each sidecar by its
%% resident set. Memory that a VM retains from earlier work does not count, as it would in its resident set.
-spec peaks(fun(() -> Result), [test_node:t()], [bench_carrier:process()]) ->
    {Result, [{vm | sidecar, Bytes :: non_neg_integer()}]}.
peaks(Fun, Nodes, Processes) ->
    Vms = [{Node, test_node:call(Node, ?MODULE, watch_vm, [])} || Node <- Nodes],
    Sidecars = [watch(normal, fun() -> resident(Pid) end) || {sidecar, Pid} <- Processes],
    Result = Fun(),
    {Result,
        [{vm, test_node:call(Node, ?MODULE, peak, [Watcher])} || {Node, Watcher} <- Vms] ++
            [{sidecar, peak(Watcher)} || Watcher <- Sidecars]}.

resident(OsPid) ->
    1024 * test_system:resident_kib(OsPid).

%% The watcher has a high priority, so that it runs in time even in a busy VM.
-spec watch_vm() -> pid().
watch_vm() ->
    watch(high, fun() -> erlang:memory(total) end).

watch(Priority, Read) ->
    spawn_opt(fun() -> watch_until_asked(Read, Read()) end, [{priority, Priority}]).

watch_until_asked(Read, Peak) ->
    receive
        {peak, From} -> From ! {self(), max(Peak, Read())}
    after ?POLL -> watch_until_asked(Read, max(Peak, Read()))
    end.

%% Ends the watcher.
-spec peak(pid()) -> non_neg_integer().
peak(Watcher) ->
    Monitor = monitor(process, Watcher),
    Watcher ! {peak, self()},
    receive
        {Watcher, Peak} ->
            true = demonitor(Monitor, [flush]),
            Peak;
        {'DOWN', Monitor, process, Watcher, Reason} ->
            error({watcher, Reason})
    end.
