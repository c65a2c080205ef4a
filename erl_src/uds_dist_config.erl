%% The settings: which sources they come from, and which values they may have.
%%
%% This module must work in the earliest boot, because distribution starts before file servers and loggers.
%% It starts no process, and remembers nothing.
-module(uds_dist_config).

-export([read/0, read_if_complete/0, is_debugged/0, policy/1, settings/1]).

-export_type([config/0, settings/0, log_level/0, setting/0]).

%% Microseconds: long enough for an answer that comes through a sidecar that has to be woken first. With
%% less, two nodes that have begun to block go on blocking.
-define(DEFAULT_SPIN, 100).
%% Microseconds. A longer budget would be a waste on any machine.
-define(MAX_SPIN, 1000).
%% Most ids in one list. The port protocol has room for five hundred in both lists together.
-define(MAX_IDS, 250).
%% (uid_t)-1 is reserved: no user has it.
-define(MAX_ID, 16#FFFFFFFE).

-type config() :: #{
    %% Absolute path, or "@" and the name of an abstract namespace.
    socket_dir := binary(),
    %% True if a source sets socket_dir; false if it is the default.
    is_set := boolean(),
    %% Connections that may wait to be accepted, as in listen(2).
    backlog := 1..65535,
    %% Mode of the socket file, as in chmod(2).
    socket_mode := 0..8#777,
    allowed_uids := any | own_user_and_root | [id()],
    allowed_gids := [id()],
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
    allowed_uids := any | own_user_and_root | [id()],
    allowed_gids := [id()],
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
%% The number of a user or of a group.
-type id() :: 0..?MAX_ID.
-type explanation() :: uds_dist_text:explanation().

%% The settings other than socket_dir: where each is set, its default, and the check of a value that is set.
table() ->
    [
        {backlog, application_environment, 5, fun backlog/1},
        {socket_mode, application_environment, 8#600, fun socket_mode/1},
        {allowed_uids, application_environment, own_user_and_root, fun allowed_uids/1},
        {allowed_gids, application_environment, [], fun allowed_gids/1},
        {transport, application_environment, relay, fun transport/1},
        {spin, {variable, "UDS_DIST_SPIN"}, default_spin(), fun spin/1},
        {log, {variable, "UDS_DIST_LOG"}, info, fun log/1}
    ].

%% Reads and checks every setting.
-spec read() -> {ok, config()} | {error, explanation()}.
read() ->
    Settings = [fun(Config) -> setting(Setting, Config) end || Setting <- table()],
    Reads =
        [fun known_flags/1, fun values/1, fun load/1, fun known_keys/1, fun socket_dir/1] ++
            Settings ++ [fun sidecar/1],
    maybe_read(Reads, #{sources => #{}}).

maybe_read([], Config) ->
    {ok, Config};
maybe_read([Read | More], Config) ->
    case Read(Config) of
        {ok, Read1} -> maybe_read(More, Read1);
        {error, _} = Error -> Error
    end.

setting({Setting, Where, Default, Check}, Config) ->
    case value(Setting, Where) of
        undefined ->
            {ok, add(Setting, Default, "the default", Config)};
        {ok, Value, Source} ->
            case Check(Value) of
                {ok, Checked} -> {ok, add(Setting, Checked, Source, Config)};
                {error, _} = Error -> Error
            end;
        {error, _} = Error ->
            Error
    end.

value(Setting, application_environment) ->
    case application:get_env(uds_dist, Setting) of
        {ok, Value} -> {ok, Value, "the application environment"};
        undefined -> undefined
    end;
value(_, {variable, Name}) ->
    case checked_variable(Name) of
        {ok, Text} -> {ok, Text, Name};
        NotSetOrError -> NotSetOrError
    end.

add(Setting, Value, Source, Config = #{sources := Sources}) ->
    Config#{Setting => Value, sources := Sources#{Setting => Source}}.

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

%% Each `-uds_dist Setting Value`. OTP ignores all settings of the command line and of sys.config if one of these
%% values is not a term, and a setting without a value in any case.
values(Config) ->
    maybe_read([fun(C) -> pairs(Words, C) end || Words <- uds_dist_system:argument(uds_dist)], Config).

pairs([], Config) ->
    {ok, Config};
%% Its value has rules of its own.
pairs([<<"socket_dir">>], Config) ->
    {ok, Config};
pairs([<<"socket_dir">>, _ | More], Config) ->
    pairs(More, Config);
pairs([Setting], _) ->
    invalid("-uds_dist ~ts has no value", [uds_dist_text:printable(Setting)]);
pairs([Setting, Value | More], Config) ->
    case uds_dist_system:term(Value) of
        {ok, _} ->
            pairs(More, Config);
        error ->
            invalid("-uds_dist ~ts ~ts is not an Erlang term; quote it for the shell, such as '[1000, 0]'", [
                uds_dist_text:printable(Setting), uds_dist_text:printable(Value)
            ])
    end.

%% Makes the settings of sys.config and of `-uds_dist Setting Value` visible. Without an .app file on the path,
%% these do not exist, and everything else works. The application controller is only asked if it has to be,
%% because it may be waiting for this process to end.
load(Config) ->
    _ = application:get_key(uds_dist, vsn) =/= undefined orelse application:load(uds_dist),
    {ok, Config}.

%% Without this check, a misspelt key would be ignored silently.
known_keys(Config) ->
    Settings = [socket_dir | [Setting || {Setting, application_environment, _, _} <- table()]],
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
        {ok, Source, #{socket_dir := Dir} = Found} ->
            {ok, add(socket_dir, Dir, Source, maps:merge(Config, Found))};
        {error, _} = Error ->
            Error
    end.

backlog(Backlog) when is_integer(Backlog), Backlog >= 1, Backlog =< 65535 ->
    {ok, Backlog};
backlog(Other) ->
    invalid("backlog ~0tp must be an integer from 1 to 65535", [Other]).

socket_mode(Mode) when is_integer(Mode), Mode >= 0, Mode =< 8#777 ->
    {ok, Mode};
socket_mode(Other) ->
    invalid("socket_mode ~0tp must be an integer from 0 to 8#777, such as 8#660", [Other]).

allowed_uids(Uids) ->
    case Uids =:= own_user_and_root orelse Uids =:= any orelse is_ids(Uids, ?MAX_IDS) of
        true ->
            {ok, Uids};
        false ->
            invalid(
                "allowed_uids ~0tp must be own_user_and_root, any, or a list of at most ~b user numbers",
                [Uids, ?MAX_IDS]
            )
    end.

allowed_gids(Gids) ->
    case is_ids(Gids, ?MAX_IDS) of
        true -> {ok, Gids};
        false -> invalid("allowed_gids ~0tp must be a list of at most ~b group numbers", [Gids, ?MAX_IDS])
    end.

is_ids([], _) ->
    true;
is_ids([Id | Ids], Left) when Left > 0, is_integer(Id), Id >= 0, Id =< ?MAX_ID ->
    is_ids(Ids, Left - 1);
is_ids(_, _) ->
    false.

transport(Transport) when Transport =:= relay; Transport =:= direct ->
    {ok, Transport};
transport(Other) ->
    invalid("transport ~0tp must be relay or direct", [Other]).

%% On a single processor, polling would only delay the process that is waited for.
default_spin() ->
    case processors() of
        1 -> 0;
        _ -> ?DEFAULT_SPIN
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

%% The sidecar gets this budget too.
spin(Text) ->
    case string:to_integer(Text) of
        {Spin, <<>>} when Spin >= 0, Spin =< ?MAX_SPIN ->
            {ok, Spin};
        _ ->
            invalid(
                "UDS_DIST_SPIN=~ts must be a number of microseconds from 0 to ~b",
                [uds_dist_text:printable(Text), ?MAX_SPIN]
            )
    end.

%% The sidecar filters its lines by this level before it sends them to this VM.
log(Text) ->
    case [Level || Level <- [off, error, warn, info, debug], atom_to_binary(Level) =:= Text] of
        [Level] ->
            {ok, Level};
        [] ->
            invalid("UDS_DIST_LOG=~ts must be off, error, warn, info or debug", [
                uds_dist_text:printable(Text)
            ])
    end.

%% Whether debug lines were requested. The level of logger alone does not show that, because it is debug by
%% default in Elixir nodes.
-spec is_debugged() -> boolean().
is_debugged() ->
    os:getenv("UDS_DIST_LOG") =:= "debug".

checked_variable(Name) ->
    case uds_dist_system:variable(Name) of
        undefined ->
            undefined;
        Text ->
            case uds_dist_text:blemish(Text) of
                none -> {ok, Text};
                Blemish -> invalid("~ts=~ts ~ts", [Name, uds_dist_text:printable(Text), Blemish])
            end
    end.

%% The sidecar's path is read where it is started. It is not a setting, but is checked with the others.
sidecar(Config) ->
    case checked_variable("UDS_DIST_SIDECAR") of
        {error, _} = Error -> Error;
        _ -> {ok, Config}
    end.

%% The peers that are admitted, as the sidecar is told.
-spec policy(config()) -> uds_dist_protocol:policy().
policy(#{allowed_uids := own_user_and_root, allowed_gids := Gids}) -> {own_user_and_root, [], Gids};
policy(#{allowed_uids := any, allowed_gids := Gids}) -> {anybody, [], Gids};
policy(#{allowed_uids := Uids, allowed_gids := Gids}) -> {nobody, Uids, Gids}.

%% The settings as uds_dist:info/0 shows them.
-spec settings(config()) -> settings().
settings(#{sources := Sources} = Config) ->
    Binaries = maps:map(fun(_, Source) -> list_to_binary(Source) end, Sources),
    Settings = maps:with(maps:keys(Sources), Config),
    Settings#{socket_dir_source => maps:get(socket_dir, Binaries), sources => Binaries}.

invalid(Format, Arguments) ->
    {error, io_lib:format(Format, Arguments)}.
