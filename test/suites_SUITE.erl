%% Checks the suites themselves, because a test case that is never run proves nothing.
-module(suites_SUITE).

-export([all/0]).
-export([every_test_case_is_run/1, missing_test_case_is_found/1, helper_is_told_from_a_test_case/1]).

-include_lib("stdlib/include/assert.hrl").

%% Functions that Common Test also calls with a Config.
-define(CONFIGURATION, [init_per_suite, end_per_suite]).

all() ->
    [every_test_case_is_run, missing_test_case_is_found, helper_is_told_from_a_test_case].

%% Each exported test case of each suite is in all/0, directly or in a group.
every_test_case_is_run(_Config) ->
    Beams = filelib:wildcard(filename:join(filename:dirname(code:which(?MODULE)), "*_SUITE.beam")),
    Suites = [list_to_atom(filename:basename(Beam, ".beam")) || Beam <- Beams],
    ?assert(length(Suites) > 15),
    ?assertEqual([], [{Suite, Case} || Suite <- Suites, Case <- left_out(forms(Suite), Suite)]).

%% The check notices a case that is in no group, and one in a group that all/0 does not name.
missing_test_case_is_found(_Config) ->
    Cases = [First, Second] = lists:sublist(test_cases(forms(?MODULE)), 2),
    Groups = [{outer, [], [{group, inner}, First]}, {inner, [parallel], [Second]}],
    ?assertEqual([], Cases -- expand([{group, outer}], Groups)),
    ?assertEqual([First], Cases -- expand([{group, inner}], Groups)),
    ?assertEqual([Second], Cases -- expand([First], Groups)).

%% A test case may ignore its Config under any name.
helper_is_told_from_a_test_case(_Config) ->
    Forms = [
        begin
            {ok, Tokens, _} = erl_scan:string(Text),
            {ok, Form} = erl_parse:parse_form(Tokens),
            Form
        end
     || Text <- [
            "-export([all/0, named/1, ignored/1, config/1, remote/1, called/1]).",
            "all() -> [named, ignored].",
            "named(C) -> run(node, remote, C), called(C).",
            "ignored(_) -> config([]).",
            "config(Config) -> Config.",
            "remote(_) -> ok.",
            "called(X) -> X.",
            "local(_) -> ok."
        ]
    ],
    ?assertEqual([named, ignored, config], test_cases(Forms)).

left_out(Forms, Suite) ->
    test_cases(Forms) -- expand(Suite:all(), groups(Suite)).

groups(Suite) ->
    case erlang:function_exported(Suite, groups, 0) of
        true -> Suite:groups();
        false -> []
    end.

%% Cases take a Config, but may call it anything. The other exported functions with one argument are helpers,
%% which run in nodes: the code of the cases names them, while only lists, which have no arguments, name a case.
test_cases(Forms) ->
    Exported = lists:append([Functions || {attribute, _, export, Functions} <- Forms]),
    Named = atoms([Clauses || {function, _, _, Arity, Clauses} <- Forms, Arity > 0]),
    [
        Name
     || {function, _, Name, 1, Clauses} <- Forms,
        lists:member({Name, 1}, Exported),
        not lists:member(Name, ?CONFIGURATION),
        takes_config(Clauses) orelse not lists:member(Name, Named)
    ].

takes_config([{clause, _, [{var, _, Argument}], _, _} | _]) ->
    Argument =:= 'Config' orelse Argument =:= '_Config';
takes_config(_) ->
    false.

%% The atoms in abstract code.
atoms({atom, _, Atom}) -> [Atom];
atoms(Tuple) when is_tuple(Tuple) -> atoms(tuple_to_list(Tuple));
atoms([Head | Tail]) -> atoms(Head) ++ atoms(Tail);
atoms(_) -> [].

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
