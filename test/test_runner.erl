%% Runs compiled suites, and prints one line for each test case. If it fails, its reason and its notes follow. The
%% last line is "N passed, N failed, N skipped". Everything else is in the report of Common Test.
%%
%%   erl -noinput -pa EBIN TEST -run test_runner main REPORT GROUP CASE SUITE...
%%
%% REPORT is the directory of the report. GROUP and CASE may be empty, which means all.
%%
%% This module is also the hook that Common Test calls for each test case.
-module(test_runner).

-export([main/1, note/2]).
-export([id/1, init/2, pre_init_per_group/4, post_end_per_group/5]).
-export([post_end_per_testcase/5, on_tc_fail/4, on_tc_skip/4]).

%% What the running test case has noted, in this order.
-define(NOTES, ?MODULE).

%% The groups in which Common Test is, from the innermost outwards.
-type state() :: [atom()].

-spec main([string()]) -> no_return().
main([Report, Group, Case | Suites]) ->
    Options = [
        {dir, filename:dirname(code:which(?MODULE))},
        {suite, [list_to_atom(Suite) || Suite <- Suites]},
        {logdir, Report},
        {auto_compile, false},
        {ct_hooks, [?MODULE]}
        | [{Key, list_to_atom(Value)} || {Key, Value} <- [{group, Group}, {testcase, Case}], Value =/= ""]
    ],
    ?NOTES = ets:new(?NOTES, [named_table, public, ordered_set]),
    %% Common Test adds what is logged to the report.
    ok = logger:remove_handler(default),
    ok = filelib:ensure_dir(filename:join(Report, "x")),
    {ok, Output} = file:open(filename:join(Report, "output.log"), [write, {encoding, utf8}]),
    true = group_leader(Output, self()),
    halt(status(ct:run_test(Options))).

%% A case that could not run because something before it failed, such as init_per_suite, counts as failed.
status({Passed, Failed, {Skipped, NotRun}}) ->
    print("~b passed, ~b failed, ~b skipped", [Passed, Failed + NotRun, Skipped]),
    case Failed + NotRun of
        0 -> 0;
        _ -> 1
    end;
status(Error) ->
    print("Common Test could not run the suites: ~0tp", [Error]),
    1.

print(Format, Arguments) ->
    io:format(user, Format ++ "~n", Arguments).

%% Adds a note to the report, and to what is printed if the test case fails.
-spec note(io:format(), [term()]) -> ok.
note(Format, Arguments) ->
    ok = ct:log(Format, Arguments),
    IsPrinting = ets:whereis(?NOTES) =/= undefined,
    IsPrinting andalso ets:insert(?NOTES, {erlang:unique_integer([monotonic]), io_lib:format(Format, Arguments)}),
    ok.

take_notes() ->
    Notes = [Text || {_, Text} <- ets:tab2list(?NOTES)],
    ets:delete_all_objects(?NOTES),
    Notes.

%% ---------------------------------------------------------------------------------------------
%% The hook

-spec id(term()) -> module().
id(_Options) ->
    ?MODULE.

-spec init(module(), term()) -> {ok, state()}.
init(?MODULE, _Options) ->
    {ok, []}.

-spec pre_init_per_group(module(), atom(), term(), state()) -> {term(), state()}.
pre_init_per_group(_Suite, Group, Config, Groups) ->
    {Config, [Group | Groups]}.

-spec post_end_per_group(module(), atom(), term(), term(), state()) -> {term(), state()}.
post_end_per_group(_Suite, Group, _Config, Return, Groups) ->
    {Return, lists:delete(Group, Groups)}.

-spec post_end_per_testcase(module(), atom(), term(), term(), state()) -> {term(), state()}.
post_end_per_testcase(Suite, Case, Config, Return, Groups) ->
    case lists:keyfind(tc_status, 1, Config) of
        {tc_status, ok} when Return =:= ok ->
            _ = take_notes(),
            print("~ts ok", [name(Suite, Case, Groups)]);
        %% on_tc_fail or on_tc_skip follows.
        _ ->
            ok
    end,
    {Return, Groups}.

-spec on_tc_fail(module(), term(), term(), state()) -> state().
on_tc_fail(Suite, Case, Reason, Groups) ->
    print("~ts FAILED", [name(Suite, Case, Groups)]),
    lists:foreach(
        fun(Text) -> [print("  ~ts", [Line]) || Line <- string:split(string:trim(Text), "\n", all)] end,
        [io_lib:format("~tp", [Reason]) | take_notes()]
    ),
    Groups.

-spec on_tc_skip(module(), term(), term(), state()) -> state().
on_tc_skip(Suite, Case, {tc_user_skip, Reason}, Groups) ->
    print("~ts skipped: ~ts", [name(Suite, Case, Groups), text(Reason)]),
    Groups;
on_tc_skip(Suite, Case, {_, Reason}, Groups) ->
    print("~ts FAILED~n  did not run: ~0tp", [name(Suite, Case, Groups), Reason]),
    Groups.

text(Reason) ->
    case io_lib:printable_unicode_list(Reason) of
        true -> Reason;
        false -> io_lib:format("~0tp", [Reason])
    end.

name(Suite, Case, Groups) ->
    Path = lists:reverse(Groups, [function(Case)]),
    [atom_to_list(Suite), ": ", lists:join(".", [atom_to_list(Name) || Name <- Path])].

%% Common Test adds the group to some names, but not the groups around it.
function({Case, _Group}) -> Case;
function(Case) -> Case.
