%% What becomes of the requests to listen, to stop listening, and to apply the settings again: the reply to
%% the caller, the lines in the log, and whether the settings that came with the request are put in force.
%% Results go in, effects come out, and uds_dist_port carries them out. It asks for advice about how this node
%% was started, but changes nothing.
-module(uds_dist_requests).

-export([done/2]).

-export_type([request/0, effect/0]).

-type request() ::
    {whose(), Name :: undefined | atom(), Settings :: undefined | uds_dist_config:config()}
    | {close, gen_server:from()}.
-type whose() ::
    %% The address at which to listen; undefined if it is not known yet.
    {listen, gen_server:from(), undefined | uds_dist_protocol:address()}
    | {configure, gen_server:from()}
    %% The settings are applied when the boot is over, and no caller waits for that.
    | boot.
-type result() :: ok | {error, Reason :: atom(), uds_dist_text:explanation()}.
-type effect() ::
    {reply, gen_server:from(), Reply :: term()}
    %% Put these settings in force, and dial the nodes that have waited for them.
    | {configured, uds_dist_config:config()}
    | {log, notice | error, uds_dist_text:explanation()}
    %% Log this notice when the boot is over.
    | {put_off_notice, uds_dist_text:explanation()}
    %% End the VM, as kernel does if it cannot start distribution.
    | end_vm.

-spec done(request(), result()) -> [effect()].
done({close, From}, ok) ->
    [{reply, From, ok}];
done({{listen, _, Address} = Whose, Name, Config}, ok) ->
    advise_on_commands(Name, Config) ++ advise_on_epmd() ++ reply(Whose, {ok, Address});
done({Whose, Name, Config}, ok) ->
    [{configured, Config}] ++ advise_on_commands(Name, Config) ++ reply(Whose, ok);
done({Whose, _, _}, {error, closed, _}) ->
    %% The process that closed the listener knows why, so nothing is logged.
    reply(Whose, {error, closed});
done({Whose, Name, Config}, {error, Reason, Explanation}) ->
    failure(Whose, Name, Reason, [Explanation, hint(Whose, Reason, Config)]) ++ refuse(Whose, Reason).

reply({listen, From, _}, Reply) -> [{reply, From, Reply}];
reply({configure, From}, Reply) -> [{reply, From, Reply}];
reply(boot, _) -> [].

refuse(boot, _) -> [end_vm];
%% net_kernel has its own message for a name in use, which it prints for duplicate_name.
refuse(Whose, name_busy) -> reply(Whose, {error, duplicate_name});
refuse(Whose, Reason) -> reply(Whose, {error, Reason}).

failure(_, _, sidecar_failed, _) ->
    %% The line about the sidecar has been logged, and explains this failure too.
    [];
failure(_, undefined, _, Explanation) ->
    [{log, error, Explanation}];
failure({configure, _}, _, _, Explanation) ->
    [{log, error, ["cannot apply the settings: ", Explanation]}];
failure(_, Name, _, Explanation) ->
    [{log, error, ["cannot listen as ", atom_to_list(Name), ": ", Explanation]}].

hint({listen, _, _}, duplicate_name, _) -> "; stop that node, or start this one under another name";
hint({listen, _, _}, name_busy, _) -> "; wait until that process has ended, or end it";
hint({listen, _, _}, _, Config) -> uds_dist_socket_dir:default_hint(Config);
hint(_, _, _) -> "".

%% Once, although the settings may be applied again during the boot.
advise_on_commands(Name, Config) ->
    [{put_off_notice, Advice} || Advice <- uds_dist_advice:on_commands(Name, Config)].

advise_on_epmd() ->
    [{put_off_notice, Advice} || Advice <- uds_dist_advice:on_epmd()].
