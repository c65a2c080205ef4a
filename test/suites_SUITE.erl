%% Checks the suites themselves, because a test case that is never run proves nothing.
-module(suites_SUITE).

-export([all/0]).
-export([every_test_case_is_run/1, missing_test_case_is_found/1]).

-include_lib("stdlib/include/assert.hrl").

%% Functions that Common Test also calls with a Config.
-define(CONFIGURATION, [init_per_suite, end_per_suite]).

all() ->
    [every_test_case_is_run, missing_test_case_is_found].

%% Each exported test case of each suite is in all/0, directly or in a group.
every_test_case_is_run(_Config) ->
    Beams = filelib:wildcard(filename:join(filename:dirname(code:which(?MODULE)), "*_SUITE.beam")),
    Suites = [list_to_atom(filename:basename(Beam, ".beam")) || Beam <- Beams],
    ?assert(length(Suites) > 15),
    ?assertEqual([], [{Suite, Case} || Suite <- Suites, Case <- left_out(forms(Suite), Suite)]).

%% The check notices a case that is in no group, and one in a group that all/0 does not name.
missing_test_case_is_found(_Config) ->
    [First, Second] = Cases = test_cases(forms(?MODULE)),
    Groups = [{outer, [], [{group, inner}, First]}, {inner, [parallel], [Second]}],
    ?assertEqual([], Cases -- expand([{group, outer}], Groups)),
    ?assertEqual([First], Cases -- expand([{group, inner}], Groups)),
    ?assertEqual([Second], Cases -- expand([First], Groups)).

left_out(Forms, Suite) ->
    test_cases(Forms) -- expand(Suite:all(), groups(Suite)).

groups(Suite) ->
    case erlang:function_exported(Suite, groups, 0) of
        true -> Suite:groups();
        false -> []
    end.

%% Other exported functions, which nodes call, do not take a Config.
test_cases(Forms) ->
    Exported = lists:append([Functions || {attribute, _, export, Functions} <- Forms]),
    [
        Name
     || {function, _, Name, 1, [{clause, _, [{var, _, Argument}], _, _} | _]} <- Forms,
        Argument =:= 'Config' orelse Argument =:= '_Config',
        lists:member({Name, 1}, Exported),
        not lists:member(Name, ?CONFIGURATION)
    ].

forms(Suite) ->
    Beam = code:which(Suite),
    {ok, {Suite, [{abstract_code, {_, Forms}}]}} = beam_lib:chunks(Beam, [abstract_code]),
    Forms.

%% The test cases in an element of all/0 or of a group.
expand(Items, Groups) ->
    lists:append([expand_item(Item, Groups) || Item <- Items]).

expand_item({group, Name}, Groups) -> expand_item(lists:keyfind(Name, 1, Groups), Groups);
expand_item({_Name, Items}, Groups) -> expand(Items, Groups);
expand_item({_Name, _Properties, Items}, Groups) -> expand(Items, Groups);
expand_item(Case, _Groups) when is_atom(Case) -> [Case].
