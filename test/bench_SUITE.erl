%% Tests that the benchmark works, with short runs whose figures mean nothing.
-module(bench_SUITE).

-export([all/0, suite/0, init_per_testcase/2, end_per_testcase/2]).
-export([
    measures_every_case_and_reports/1,
    names_and_leaves_out_carriers_that_cannot_run/1,
    refuses_an_earlier_record_of_another_format/1,
    wrong_settings_get_one_line/1,
    lists_ratios_that_have_fallen/1,
    compares_runs_on_the_same_processor_only/1
]).

-include_lib("stdlib/include/assert.hrl").

all() ->
    test_node:cases(?MODULE).

suite() ->
    test_node:suite().

init_per_testcase(_Case, Config) ->
    [{results, test_project:temporary()} | Config].

end_per_testcase(_Case, Config) ->
    file:del_dir_r(results(Config)).

%% Cases with many nodes, or with long messages out of a busy node, would take too long here. They use the same code
%% with other numbers.
measures_every_case_and_reports(Config) ->
    Cases =
        "rtt rtt_beside rtt_flooded rtt_busy rtt_mesh connect bulk64k both_bulk64k mesh_bulk64k "
        "msg16 four_msg16 into_busy_bulk1m out_of_busy_bulk64k fan_out2",
    {0, Output} = bench([{"CASES", Cases}, {"CARRIERS", "uds uds_direct inet_tcp floor"}], Config),
    [
        test_node:expect_output_of(Output, ["^", Case, ", .* [0-9.]+ "])
     || Case <- string:lexemes(Cases, " ")
    ],
    [
        test_node:expect_output_of(Output, ["^", Line])
     || Line <- [
            "rtt, CPU .*/round trip  .* [0-9.]+ ",
            "rtt, context switches/round trip  .* [0-9.]+ ",
            "into_busy_bulk1m, MiB at most  .* [0-9.]+ ",
            "uds to +inet_tcp",
            "uds_direct to +inet_tcp"
        ]
    ],
    [
        ?assert(filelib:is_regular(filename:join(results(Config), File)))
     || File <- ["bench.json", "bench.md", "bench.svg"]
    ].

names_and_leaves_out_carriers_that_cannot_run(Config) ->
    Ours = "uds -pa " ++ our_ebin(),
    Carriers = [
        "again=" ++ Ours ++ " -uds_dist transport direct",
        "gone=uds -pa /gone",
        "lame=" ++ Ours ++ " -uds_dist transport lame"
    ],
    Settings = [
        {"CASES", "rtt"},
        {"CARRIERS", "uds again gone lame"},
        {"BENCH_CARRIERS", lists:flatten(lists:join("; ", Carriers))}
    ],
    {1, Output} = bench(Settings, Config),
    test_node:expect_output_of(
        Output, "^gone is left out: there is no uds_dist.beam in /gone or in this OTP$"
    ),
    test_node:expect_output_of(Output, "^lame is left out: the node did not boot: .*lame"),
    test_node:expect_output_of(Output, "^ +uds +again$"),
    test_node:expect_output_of(Output, "^rtt, p50, .* [0-9.]+ +[0-9.]+$").

refuses_an_earlier_record_of_another_format(Config) ->
    Earlier = filename:join(results(Config), "earlier.json"),
    ok = file:write_file(Earlier, "{\"machine\":{},\"rounds\":5,\"carriers\":[],\"rows\":[]}"),
    {1, Output} = report([{"bulk64k", 2000, 1000}], Earlier, Config),
    test_node:expect_output_of(Output, "earlier.json: this is no record of format [0-9]+").

wrong_settings_get_one_line(Config) ->
    Wrong = [
        {[{"CASES", "rtt nonsense"}], "CASES: there is no \"nonsense\""},
        {[{"CARRIERS", "udp"}], "CARRIERS: there is no \"udp\""},
        {[{"ROUNDS", "0"}], "ROUNDS=0: "},
        {[{"MS", "1s"}], "MS=1s: "},
        {[{"BENCH_CARRIERS", "a:b"}], "BENCH_CARRIERS: \"a:b\" is not "}
    ],
    [
        begin
            {2, Output} = bench(Settings, Config),
            [Line] = string:lexemes(Output, "\n"),
            ?assertNotEqual(nomatch, string:prefix(Line, "make bench: " ++ Why))
        end
     || {Settings, Why} <- Wrong
    ].

%% In rounds in which 64 KiB are as slow as 16 KiB, after some in which they were not.
lists_ratios_that_have_fallen(Config) ->
    {0, _} = report([{"bulk16k", 500, 1000}, {"bulk64k", 2000, 1000}], none, Config),
    Earlier = filename:join(results(Config), "earlier.json"),
    ok = file:rename(filename:join(results(Config), "bench.json"), Earlier),
    {1, Output} = report([{"bulk16k", 500, 1000}, {"bulk64k", 500, 1000}], Earlier, Config),
    ?assertMatch(
        {match, [_]},
        re:run(Output, "^worse than before: .*$", [global, multiline, {capture, all, binary}])
    ),
    test_node:expect_output_of(
        Output, "^worse than before: bulk64k mb_s, uds to inet_tcp 0.50 .*, was 2.00 "
    ).

compares_runs_on_the_same_processor_only(Config) ->
    Fast = [{"bulk64k", 2000, 1000}],
    Slow = [{"bulk64k", 500, 1000}],
    {0, _} = report("Fast 1", Fast, none, Config),
    Earlier = filename:join(results(Config), "earlier.json"),
    ok = file:rename(filename:join(results(Config), "bench.json"), Earlier),
    {0, Output} = report("Slow 2", Slow, Earlier, Config),
    test_node:expect_output_of(Output, "^No earlier run was on this processor, "),
    {1, Compared} = report("Fast 1", Slow, Earlier, Config),
    test_node:expect_output_of(Compared, "^worse than before: bulk64k ").

%% ---------------------------------------------------------------------------------------------

bench(Settings, Config) ->
    Short = [{"ROUNDS", "1"}, {"MS", "10"}],
    All = [{Name, false} || Name <- ["CASES", "CARRIERS", "BENCH_CARRIERS", "BENCH_ARGS"]],
    run(["scripts/bench '", our_ebin(), "' '", results(Config), "'"], All ++ Short ++ Settings).

report(Cases, Earlier, Config) ->
    report("Fast 1", Cases, Earlier, Config).

report(Processor, Cases, Earlier, Config) ->
    Path = filename:join(results(Config), "figures"),
    Figures = [
        ["figure", Round, Carrier, Case, "mb_s", integer_to_list(Value)]
     || {Case, Ours, Theirs} <- Cases,
        Round <- ["1", "2", "3", "4"],
        {Carrier, Value} <- [{"uds", Ours}, {"inet_tcp", Theirs}]
    ],
    Lines = [["machine", "processor", Processor] | Figures],
    ok = file:write_file(Path, [[lists:join($\t, Line), $\n] || Line <- Lines]),
    Arguments = [Path, results(Config)] ++ [Earlier || Earlier =/= none],
    Cargo =
        "cargo run --quiet --release --locked --target-dir target/bench "
        "--manifest-path test/bench/Cargo.toml -- report",
    run([Cargo, [[" '", Argument, "'"] || Argument <- Arguments]], []).

run(Command, Environment) ->
    test_project:output(lists:flatten(Command), #{
        dir => test_project:root(), env => Environment
    }).

our_ebin() ->
    filename:dirname(code:which(uds_dist)).

results(Config) ->
    proplists:get_value(results, Config).
