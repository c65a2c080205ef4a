%% Runs programs.
-module(bench_program).

-export([lines/2]).

%% Milliseconds that a program may be silent, far above what any is.
-define(LIMIT, 120000).

%% The lines that a program prints. It fails with the last one if the program does.
-spec lines(file:filename(), Arguments :: [string()]) -> [string()].
lines(Program, Arguments) ->
    Options = [{args, Arguments}, {line, 1000}, exit_status, stderr_to_stdout, in],
    collect(open_port({spawn_executable, Program}, Options), [Program]).

collect(Port, Lines) ->
    receive
        {Port, {data, {_, Line}}} ->
            collect(Port, [Line | Lines]);
        {Port, {exit_status, 0}} ->
            tl(lists:reverse(Lines));
        {Port, {exit_status, Status}} ->
            throw(["status ", integer_to_list(Status), " of ", hd(Lines)])
    after ?LIMIT ->
        throw([hd(Lines), " has been silent for too long"])
    end.
