%% Runs programs.
-module(bench_program).

-export([lines/2]).

%% Longest time without output of a program, in milliseconds. No program is silent for nearly as long.
-define(LIMIT, 120000).

%% Runs a program and returns the lines that it prints. If the program fails, the error is its last line.
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
