%% The settings: which sources they come from, and which values they may have.
%%
%% This module must work in the earliest boot, because distribution starts before file servers and loggers.
%% It starts no process, and remembers nothing.
-module(uds_dist_config).

-export([read/0, read_if_complete/0, is_debugged/0, settings/1]).

-export_type([config/0, settings/0, log_level/0, setting/0]).

-type config() :: #{
    %% Absolute path, or "@" and the name of an abstract namespace.
    socket_dir := binary(),
    %% True if a source sets socket_dir; false if it is the default.
    is_set := boolean(),
    %% Connections that may wait to be accepted, as in listen(2).
    backlog := 1..65535,
    %% Mode of the socket file, as in chmod(2).
    socket_mode := 0..8#777,
    %% The peers that are admitted.
    policy := uds_dist_protocol:policy(),
    %% Transport of established connections.
    transport := relay | direct,
    %% Busy-poll budget in microseconds: how long a reader may spin before it blocks.
    spin := non_neg_integer(),
    %% Lowest level of the sidecar's log.
    log := log_level(),
    %% Source of each setting, such as "UDS_DIST_DIR" or "the default".
    sources := #{setting() => string()},
    %% Settings that a source of higher precedence has overridden, each as a line for the log.
    overridden := [explanation()]
}.
%% The settings as uds_dist:info/0 shows them.
-type settings() :: #{
    socket_dir := binary(),
    %% Source of socket_dir, such as "UDS_DIST_DIR".
    socket_dir_source := binary(),
    backlog := pos_integer(),
    %% Mode of the socket file, as in chmod(2).
    socket_mode := 0..8#777,
    allowed_uids := any | own_user_and_root | [non_neg_integer()],
    allowed_gids := [non_neg_integer()],
    transport := relay | direct,
    %% Busy-poll budget in microseconds.
    spin := non_neg_integer(),
    %% Lowest level of the sidecar's log.
    log := log_level(),
    %% Source of each setting, such as "UDS_DIST_DIR", "the application environment" or "the default".
    sources := #{setting() => binary()}
}.
-type log_level() :: off | error | warn | info | debug.
-type setting() ::
    socket_dir
    | backlog
    | socket_mode
    | allowed_uids
    | allowed_gids
    | transport
    | spin
    | log.
-type explanation() :: uds_dist_text:explanation().

-define(DEFAULT_BACKLOG, 5).
-define(DEFAULT_SOCKET_MODE, 8#600).
%% Microseconds: long enough for an answer that comes through a sidecar that has to be woken first. With
%% less, two nodes that have begun to block go on blocking.
-define(DEFAULT_SPIN, 100).
%% Microseconds. A longer budget would be a waste on any machine.
-define(MAX_SPIN, 1000).
%% Most ids in one list. The port protocol has room for five hundred in both lists together.
-define(MAX_IDS, 250).
%% (uid_t)-1 is reserved: no user has it.
-define(MAX_ID, 16#FFFFFFFE).

%% Reads and checks every setting.
-spec read() -> {ok, config()} | {error, explanation()}.
read() ->
    %% Loading makes the settings of sys.config and of `-uds_dist Key Value` visible. Without an .app file on
    %% the path, these do not exist, and everything else works.
    _ = application:load(uds_dist),
    maybe_read(
        [
            fun known_keys/1,
            fun known_flags/1,
            fun socket_dir/1,
            fun backlog/1,
            fun socket_mode/1,
            fun policy/1,
            fun transport/1,
            fun spin/1,
            fun log/1,
            fun sidecar/1
        ],
        #{sources => #{}}
    ).

maybe_read([], Config) ->
    {ok, Config};
maybe_read([Read | More], Config) ->
    case Read(Config) of
        {ok, Read1} -> maybe_read(More, Read1);
        {error, _} = Error -> Error
    end.

%% Reads the settings. Returns put_off if no source sets socket_dir yet, and one still may.
-spec read_if_complete() -> {ok, config()} | put_off | {error, explanation()}.
read_if_complete() ->
    case read() of
        {ok, #{is_set := false} = Config} ->
            case is_incomplete() of
                true -> put_off;
                false -> {ok, Config}
            end;
        Read ->
            Read
    end.

%% Whether settings may still be added. Distribution starts with kernel, and the config providers of an Elixir
%% release (config/runtime.exs) run after it. They are done when the boot ends or the application starts.
is_incomplete() ->
    application:get_env(elixir, config_provider_init) =/= undefined andalso
        application:get_env(elixir, config_provider_booted) =:= undefined andalso
        element(1, init:get_status()) =:= starting andalso
        whereis(uds_dist_app) =:= undefined.

%% Without this check, a misspelt key would be ignored silently.
known_keys(Config) ->
    Settings = [socket_dir, backlog, socket_mode, allowed_uids, allowed_gids, transport],
    Known = [included_applications | Settings],
    case [Key || {Key, _} <- application:get_all_env(uds_dist), not lists:member(Key, Known)] of
        [] ->
            {ok, Config};
        [Key | _] ->
            Names = lists:join(", ", [atom_to_list(Setting) || Setting <- Settings]),
            invalid("uds_dist has no setting ~0tp; it has ~ts", [Key, Names])
    end.

%% The same for flags of the command line.
known_flags(Config) ->
    Unknown = [
        Flag
     || {Flag, _} <- init:get_arguments(),
        lists:prefix("uds_dist", atom_to_list(Flag)),
        not lists:member(Flag, [uds_dist, uds_dist_dir])
    ],
    case Unknown of
        [] -> {ok, Config};
        [Flag | _] -> invalid("there is no flag -~ts; use -uds_dist_dir or -uds_dist SETTING VALUE", [Flag])
    end.

socket_dir(Config) ->
    case uds_dist_socket_dir:read() of
        {ok, Source, Found} -> {ok, from(socket_dir, Source, maps:merge(Config, Found))};
        {error, _} = Error -> Error
    end.

backlog(Config) ->
    case configured(backlog, ?DEFAULT_BACKLOG, Config) of
        {Backlog, Config1} when is_integer(Backlog), Backlog >= 1, Backlog =< 65535 ->
            {ok, Config1#{backlog => Backlog}};
        {Other, _} ->
            invalid("backlog ~0tp must be an integer from 1 to 65535", [Other])
    end.

socket_mode(Config) ->
    case configured(socket_mode, ?DEFAULT_SOCKET_MODE, Config) of
        {Mode, Config1} when is_integer(Mode), Mode >= 0, Mode =< 8#777 ->
            {ok, Config1#{socket_mode => Mode}};
        {Other, _} ->
            invalid("socket_mode ~0tp must be an integer from 0 to 8#777, such as 8#660", [Other])
    end.

%% The value of a setting in the application environment or its default, and the config with its source.
configured(Setting, Default, Config) ->
    case application:get_env(uds_dist, Setting) of
        {ok, Value} -> {Value, from(Setting, "the application environment", Config)};
        undefined -> {Default, from(Setting, "the default", Config)}
    end.

from(Setting, Source, Config = #{sources := Sources}) ->
    Config#{sources := Sources#{Setting => Source}}.

policy(Config) ->
    {AllowedUids, Config1} = configured(allowed_uids, own_user_and_root, Config),
    {Gids, Config2} = configured(allowed_gids, [], Config1),
    case {users(AllowedUids), is_ids(Gids, ?MAX_IDS)} of
        {{error, _} = Error, _} ->
            Error;
        {_, false} ->
            invalid("allowed_gids ~0tp must be a list of at most ~b group numbers", [
                Gids, ?MAX_IDS
            ]);
        {{Base, Uids}, true} ->
            {ok, Config2#{policy => {Base, Uids, Gids}}}
    end.

users(own_user_and_root) ->
    {own_user_and_root, []};
users(any) ->
    {anybody, []};
users(Uids) ->
    case is_ids(Uids, ?MAX_IDS) of
        true ->
            {nobody, Uids};
        false ->
            invalid(
                "allowed_uids ~0tp must be own_user_and_root, any, or a list of at most ~b user numbers",
                [Uids, ?MAX_IDS]
            )
    end.

is_ids([], _) ->
    true;
is_ids([Id | Ids], Left) when Left > 0, is_integer(Id), Id >= 0, Id =< ?MAX_ID ->
    is_ids(Ids, Left - 1);
is_ids(_, _) ->
    false.

transport(Config) ->
    case configured(transport, relay, Config) of
        {Transport, Config1} when Transport =:= relay; Transport =:= direct ->
            {ok, Config1#{transport => Transport}};
        {Other, _} ->
            invalid("transport ~0tp must be relay or direct", [Other])
    end.

%% The sidecar gets this budget too. On a single processor, polling would only delay the process that is
%% waited for.
spin(Config) ->
    case {variable("UDS_DIST_SPIN", spin, Config), processors()} of
        {{error, _} = Error, _} ->
            Error;
        {{undefined, Config1}, 1} ->
            {ok, Config1#{spin => 0}};
        {{undefined, Config1}, _} ->
            {ok, Config1#{spin => ?DEFAULT_SPIN}};
        {{Text, Config1}, _} ->
            case string:to_integer(Text) of
                {Spin, <<>>} when Spin >= 0, Spin =< ?MAX_SPIN ->
                    {ok, Config1#{spin => Spin}};
                _ ->
                    invalid(
                        "UDS_DIST_SPIN=~ts must be a number of microseconds from 0 to ~b",
                        [uds_dist_text:printable(Text), ?MAX_SPIN]
                    )
            end
    end.

%% The sidecar filters its lines by this level before it sends them to this VM.
log(Config) ->
    Levels = [off, error, warn, info, debug],
    case variable("UDS_DIST_LOG", log, Config) of
        {error, _} = Error ->
            Error;
        {undefined, Config1} ->
            {ok, Config1#{log => info}};
        {Text, Config1} ->
            case [Level || Level <- Levels, atom_to_binary(Level) =:= Text] of
                [Level] ->
                    {ok, Config1#{log => Level}};
                [] ->
                    invalid("UDS_DIST_LOG=~ts must be off, error, warn, info or debug", [
                        uds_dist_text:printable(Text)
                    ])
            end
    end.

%% Whether debug lines were requested. The level of logger alone does not show that, because it is debug by
%% default in Elixir nodes.
-spec is_debugged() -> boolean().
is_debugged() ->
    os:getenv("UDS_DIST_LOG") =:= "debug".

%% The value of an environment variable, and the config with the setting's source.
variable(Name, Setting, Config) ->
    case checked_variable(Name) of
        {ok, undefined} -> {undefined, from(Setting, "the default", Config)};
        {ok, Text} -> {Text, from(Setting, Name, Config)};
        {error, _} = Error -> Error
    end.

checked_variable(Name) ->
    case uds_dist_system:variable(Name) of
        undefined ->
            {ok, undefined};
        Text ->
            case uds_dist_text:blemish(Text) of
                none -> {ok, Text};
                Blemish -> invalid("~ts=~ts ~ts", [Name, uds_dist_text:printable(Text), Blemish])
            end
    end.

%% The sidecar's path is read where it is started. It is not a setting, but is checked with the others.
sidecar(Config) ->
    case checked_variable("UDS_DIST_SIDECAR") of
        {ok, _} -> {ok, Config};
        {error, _} = Error -> Error
    end.

%% Number of processors that this VM may use, according to its affinity and the quota of its cgroup. If the
%% system reports neither, there may be only one.
processors() ->
    Known = [
        Number
     || Item <- [logical_processors_available, cpu_quota],
        Number <- [erlang:system_info(Item)],
        is_integer(Number)
    ],
    case Known of
        [] -> 1;
        _ -> lists:min(Known)
    end.

%% The settings as uds_dist:info/0 shows them.
-spec settings(config()) -> settings().
settings(#{policy := {Base, Uids, Gids}, sources := Sources} = Config) ->
    Settings = maps:with([socket_dir, backlog, socket_mode, transport, spin, log], Config),
    Binaries = maps:map(fun(_, Source) -> list_to_binary(Source) end, Sources),
    Settings#{
        socket_dir_source => maps:get(socket_dir, Binaries),
        sources => Binaries,
        allowed_uids =>
            case Base of
                anybody -> any;
                own_user_and_root -> own_user_and_root;
                nobody -> Uids
            end,
        allowed_gids => Gids
    }.

invalid(Format, Arguments) ->
    {error, io_lib:format(Format, Arguments)}.
