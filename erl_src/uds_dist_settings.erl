%% The settings in force. While this node listens, they stay as they are unless they are applied again,
%% because listening and dialling must use the same. Otherwise each request reads them anew.
%%
%% A state machine: settings go in, effects come out, and uds_dist_port carries them out. It reads the sources
%% of the settings, but changes nothing.
-module(uds_dist_settings).

-export([new/0, place/3, address/3, use/2]).
-export([put_off_notice/2, boot_is_over/1]).
-export([admit/1, want_channel/1, transport/1, spin/1, program/1, describe/1]).
-export([default_hint/1, case_hint/2]).

-export_type([settings/0, effect/0]).

-type config() :: uds_dist_config:config().
-type explanation() :: uds_dist_text:explanation().
-type effect() ::
    %% Tell the sidecar, if it is up, whom to admit.
    {admit, uds_dist_protocol:policy()}
    %% Ask the sidecar, if it is up, for a channel in this socket_dir, because the transport is direct.
    | {want_channel, Dir :: binary()}
    | {log, notice, explanation()}.

-record(settings, {
    %% Undefined before the first use.
    config :: undefined | config(),
    %% Notices to be logged when the boot is over. Before that, logger would print them twice in a shell.
    notices = [] :: [explanation()]
}).

-opaque settings() :: #settings{}.
-type result() :: {[effect()], settings()}.

-spec new() -> settings().
new() ->
    #settings{}.

%% ---------------------------------------------------------------------------------------------
%% The settings for a request

%% Where this node listens under a name, and the settings that say so, which the caller then uses. Returns
%% put_off if the configuration is not complete yet.
-spec place(Name :: atom(), IsListening :: boolean(), settings()) ->
    {ok, uds_dist_address:place(), config()} | put_off | {error, explanation()}.
place(Name, IsListening, Settings) ->
    find(fun uds_dist_address:place/2, Name, IsListening, Settings).

%% Where another node listens. Returns the same as place/3.
-spec address(node(), IsListening :: boolean(), settings()) ->
    {ok, uds_dist_protocol:address(), config()} | put_off | {error, explanation()}.
address(Node, IsListening, Settings) ->
    find(fun uds_dist_address:of_node/2, Node, IsListening, Settings).

find(Where, Name, IsListening, Settings) ->
    case current(IsListening, Settings) of
        {ok, Config} ->
            case Where(Name, Config) of
                {ok, Found} -> {ok, Found, Config};
                {error, _} = Error -> Error
            end;
        Other ->
            Other
    end.

current(true, #settings{config = Config}) when Config =/= undefined -> {ok, Config};
current(_, #settings{}) -> uds_dist_config:read_if_complete().

%% Puts settings in force.
-spec use(config(), settings()) -> result().
use(Config, Settings = #settings{config = Config}) ->
    {[], Settings};
use(Config, #settings{config = Before} = Settings) ->
    Settings1 = Settings#settings{config = Config},
    Admit = [Effect || Before =:= undefined orelse not is_same_policy(Config, Before), Effect <- admit(Settings1)],
    {overridden(Config, Before) ++ want_channel(Settings1) ++ Admit, Settings1}.

is_same_policy(Config, Before) ->
    uds_dist_config:policy(Config) =:= uds_dist_config:policy(Before).

%% Settings that a source of higher precedence has overridden, unless they were listed before.
overridden(#{overridden := Lines}, #{overridden := Lines}) -> [];
overridden(#{overridden := Lines}, _) -> [{log, notice, Line} || Line <- Lines].

%% ---------------------------------------------------------------------------------------------
%% Notices

%% Keeps a notice until the boot is over.
-spec put_off_notice(explanation(), settings()) -> settings().
put_off_notice(Notice, Settings = #settings{notices = Notices}) ->
    Settings#settings{notices = lists:delete(Notice, Notices) ++ [Notice]}.

-spec boot_is_over(settings()) -> result().
boot_is_over(Settings = #settings{notices = Notices}) ->
    {[{log, notice, Notice} || Notice <- Notices], Settings#settings{notices = []}}.

%% ---------------------------------------------------------------------------------------------
%% What follows from the settings. Before the first use, only transport/1, describe/1 and the hints know what.

%% What a sidecar has to be told when it has come up.
-spec admit(settings()) -> [effect()].
admit(#settings{config = Config}) -> [{admit, uds_dist_config:policy(Config)}].

%% The same, after it has been told where to listen.
-spec want_channel(settings()) -> [effect()].
want_channel(#settings{config = #{transport := direct, socket_dir := Dir}}) -> [{want_channel, Dir}];
want_channel(#settings{config = #{transport := relay}}) -> [].

%% The transport that is configured, which may not be available.
-spec transport(settings()) -> relay | direct.
transport(#settings{config = undefined}) -> relay;
transport(#settings{config = #{transport := Transport}}) -> Transport.

%% Busy-poll budget of the VM's readers, in microseconds.
-spec spin(settings()) -> non_neg_integer().
spin(#settings{config = #{spin := Spin}}) -> Spin.

%% The settings with which the sidecar's program is started.
-spec program(settings()) -> uds_dist_program:settings().
program(#settings{config = #{spin := Spin, log := Log}}) -> #{spin => Spin, log => Log}.

%% All settings, as uds_dist:info/0 shows them.
-spec describe(settings()) -> undefined | uds_dist_config:settings().
describe(#settings{config = undefined}) -> undefined;
describe(#settings{config = Config}) -> uds_dist_config:settings(Config).

%% Additions to the explanation why a node cannot be reached.
-spec default_hint(settings()) -> explanation().
default_hint(#settings{config = Config}) -> uds_dist_socket_dir:default_hint(Config).

-spec case_hint(node(), settings()) -> explanation().
case_hint(Node, #settings{config = Config}) -> uds_dist_address:case_hint(Node, Config).
