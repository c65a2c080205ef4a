%% Advice for the person who started this node, if a command beside it will not work or an epmd is not needed.
%% This module looks at how the node was started, and changes nothing.
-module(uds_dist_advice).

-export([on_commands/2, on_epmd/0]).

-type explanation() :: uds_dist_text:explanation().

%% On the commands of a release, which run in nodes of their own, with longer names and perhaps without
%% a flag. The name and the settings are undefined if they are not known yet.
-spec on_commands(Name :: undefined | atom(), undefined | uds_dist_config:config()) -> [explanation()].
on_commands(Name, Config) ->
    Checks = [check_command_name(Name, Config), uds_dist_start_script:check()],
    [Explanation || {error, Explanation} <- Checks].

%% `remote`, `rpc` and similar commands listen too, under names that are nine characters longer.
check_command_name(Name, Config) when Name =:= undefined; Config =:= undefined ->
    ok;
check_command_name(Name, Config) ->
    case uds_dist_address:of_node(list_to_atom("rpc-xxxx-" ++ atom_to_list(Name)), Config) of
        {ok, _} ->
            ok;
        {error, Explanation} ->
            {error, [
                "the commands of an Elixir release that connect under longer names (remote, rpc) will not work: ",
                Explanation
            ]}
    end.

%% On an epmd that was started together with this node, which does not need it. `erl` starts one for a name on
%% its command line, unless -no_epmd or -start_epmd false forbids it. Other carriers do need one. Remote
%% shells and the commands of releases get no advice, because their output belongs to the user.
-spec on_epmd() -> [explanation()].
on_epmd() ->
    Is = fun(Flag) -> init:get_argument(Flag) =/= error end,
    IsOnly = init:get_argument(proto_dist) =:= {ok, [["uds"]]},
    IsForbidden =
        case init:get_argument(start_epmd) of
            {ok, Values} -> lists:last(Values) =:= ["false"];
            error -> Is(no_epmd)
        end,
    IsNamed = Is(sname) orelse Is(name),
    case IsOnly andalso IsNamed andalso not (IsForbidden orelse Is(hidden) orelse Is(remsh)) of
        false ->
            [];
        true ->
            [
                "erl has started an epmd, if none was running, and this node does not use it: start the node "
                "with -no_epmd or, in vm.args of an Erlang release, with -start_epmd false"
            ]
    end.
