%% Settings, where they come from, and the addresses that follow from them.
%%
%% This module must work in the earliest boot: distribution starts before file servers and loggers.
%% It reads; it starts nothing and remembers nothing.
-module(uds_dist_config).

-export([read/0, is_incomplete/0, address/2, format_address/1, sidecar_path/0]).
-export([check_socket_dir/3, limit/1]).

-export_type([config/0, explanation/0]).

-type config() :: #{
    %% Absolute path, or "@" and the name of an abstract namespace.
    socket_dir := binary(),
    %% Some source has a socket_dir: it is not the default.
    is_set := boolean(),
    %% Connections that may wait to be accepted, as in listen(2).
    backlog := 1..65535,
    %% Mode of the socket file, as in chmod(2).
    socket_mode := 0..8#777,
    %% Who may be a peer.
    policy := uds_dist_protocol:policy(),
    %% Which process has the socket of a connection after the handshake: with `relay` the sidecar
    %% keeps it and the bytes go through its port; with `direct` the VM gets it, where that can be.
    transport := relay | direct,
    %% Microseconds that a wait for input may be spent awake.
    spin := non_neg_integer(),
    %% Settings that a stronger source has overridden, each as a line for the log.
    overridden := [explanation()]
}.
%% What is wrong, where, and what to do: one line.
-type explanation() :: unicode:chardata().

-define(DEFAULT_BACKLOG, 5).
-define(DEFAULT_SOCKET_MODE, 8#600).
%% Several times what a message and its answer take between two nodes that are awake.
-define(DEFAULT_SPIN, 50).
%% More than this would be no short wait on any machine.
-define(MAX_SPIN, 1000).
%% Users or groups in one list: the port protocol takes five hundred of both.
-define(MAX_IDS, 250).
%% (uid_t)-1 is nobody.
-define(MAX_ID, 16#FFFFFFFE).

%% Reads and checks every setting.
-spec read() -> {ok, config()} | {error, explanation()}.
read() ->
    %% Settings of sys.config and of `-uds_dist Key Value` become visible by loading. Without an
    %% .app file on the path there are none, and nothing else is lost.
    _ = application:load(uds_dist),
    maybe_read(
        [
            fun known_keys/1,
            fun socket_dir/1,
            fun backlog/1,
            fun socket_mode/1,
            fun policy/1,
            fun transport/1,
            fun spin/1
        ],
        #{overridden => []}
    ).

maybe_read([], Config) ->
    {ok, Config};
maybe_read([Read | More], Config) ->
    case Read(Config) of
        {ok, Read1} -> maybe_read(More, Read1);
        {error, _} = Error -> Error
    end.

%% Whether the application environment is still to be completed: distribution starts with kernel, and
%% the config providers of an Elixir release (config/runtime.exs) run after it. They are through when
%% the boot is, and when the application starts.
-spec is_incomplete() -> boolean().
is_incomplete() ->
    application:get_env(elixir, config_provider_init) =/= undefined andalso
        application:get_env(elixir, config_provider_booted) =:= undefined andalso
        element(1, init:get_status()) =:= starting andalso
        whereis(uds_dist_app) =:= undefined.

%% A misspelt key would be a setting that silently does nothing.
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

socket_dir(Config) ->
    Sources = [
        {"the command line", fun command_line/0},
        {"UDS_DIST_DIR", fun environment/0},
        {"the application environment", fun() -> application:get_env(uds_dist, socket_dir) end}
    ],
    case read_sources(Sources) of
        {error, _} = Error ->
            Error;
        {ok, []} ->
            accept_socket_dir(".", "the default", [], Config#{is_set => false});
        {ok, [{Source, Value} | Weaker]} ->
            case is_relative(Value) andalso is_embedded() of
                false ->
                    accept_socket_dir(Value, Source, Weaker, Config#{is_set => true});
                true ->
                    invalid(
                        "socket_dir ~ts (~ts) is a relative path, and in a release each command may "
                        "have another working directory; set it to an absolute one",
                        [Value, Source]
                    )
            end
    end.

read_sources([]) ->
    {ok, []};
read_sources([{Source, Read} | More]) ->
    case {Read(), read_sources(More)} of
        {{error, _} = Error, _} -> Error;
        {_, {error, _} = Error} -> Error;
        {undefined, Rest} -> Rest;
        {{ok, Value}, {ok, Rest}} -> {ok, [{Source, Value} | Rest]}
    end.

accept_socket_dir(Value, Source, Weaker, Config = #{overridden := Lines}) ->
    case check_socket_dir(Value, Source, os:type()) of
        {ok, Dir} ->
            {ok, Config#{
                socket_dir => Dir,
                overridden := [
                    io_lib:format("socket_dir is ~ts (~ts); ~0tp of ~ts is not used", [
                        Dir, Source, Other, OtherSource
                    ])
                 || {OtherSource, Other} <- Weaker, not is_same(Other, Value)
                ] ++ Lines
            }};
        {error, _} = Error ->
            Error
    end.

is_same(A, B) ->
    try
        unicode:characters_to_binary(A) =:= unicode:characters_to_binary(B)
    catch
        error:badarg -> false
    end.

%% `-uds_dist_dir /run/x`, which needs no quoting, or the form that OTP has for every application:
%% `-uds_dist socket_dir '"/run/x"'`. As everywhere in erl, the last of several counts.
command_line() ->
    case init:get_argument(uds_dist_dir) of
        {ok, Values} ->
            case lists:last(Values) of
                [Dir] -> {ok, Dir};
                _ -> invalid("-uds_dist_dir takes one directory", [])
            end;
        error ->
            application_argument()
    end.

application_argument() ->
    Pairs = [
        Value
     || {ok, Values} <- [init:get_argument(uds_dist)],
        ["socket_dir", Value] <- lists:map(fun first_two/1, Values)
    ],
    case Pairs of
        [] ->
            undefined;
        _ ->
            Text = lists:last(Pairs),
            case parse_term(Text) of
                {ok, Value} ->
                    {ok, Value};
                error ->
                    invalid(
                        "-uds_dist socket_dir ~ts is not an Erlang string; quote it twice, '\"~ts\"', "
                        "or use -uds_dist_dir ~ts",
                        [Text, Text, Text]
                    )
            end
    end.

first_two([Key, Value | _]) -> [Key, Value];
first_two(Other) -> Other.

parse_term(Text) ->
    case erl_scan:string(Text ++ ".") of
        {ok, Tokens, _} ->
            case erl_parse:parse_term(Tokens) of
                {ok, Term} -> {ok, Term};
                {error, _} -> error
            end;
        {error, _, _} ->
            error
    end.

environment() ->
    case os:getenv("UDS_DIST_DIR", "") of
        "" -> undefined;
        Dir -> {ok, Dir}
    end.

%% Namespaces and what is no path at all are not.
is_relative(Value) ->
    try unicode:characters_to_binary(Value) of
        <<"@", _/binary>> -> false;
        <<_, _/binary>> = Dir -> filename:pathtype(Dir) =:= relative;
        _ -> false
    catch
        error:badarg -> false
    end.

%% As the start scripts of releases start a VM.
is_embedded() ->
    case init:get_argument(mode) of
        {ok, Modes} -> lists:member(["embedded"], Modes);
        error -> false
    end.

%% Makes a socket_dir absolute, so that it stays the same when the VM changes its directory.
-spec check_socket_dir(Value :: term(), Source :: string(), os_type()) ->
    {ok, binary()} | {error, explanation()}.
-type os_type() :: {atom(), atom()}.
check_socket_dir(Value, Source, OsType) when is_list(Value); is_binary(Value) ->
    try unicode:characters_to_binary(Value) of
        <<"@">> ->
            invalid("socket_dir \"@\" (~ts) lacks the name of the abstract namespace", [Source]);
        <<"@", _/binary>> = Namespace when OsType =:= {unix, linux} ->
            no_nul(Namespace, Value, Source);
        <<"@", _/binary>> = Namespace ->
            invalid(
                "socket_dir ~ts (~ts) is an abstract namespace, which only Linux has; "
                "set it to a directory",
                [Namespace, Source]
            );
        <<>> ->
            invalid("socket_dir (~ts) is empty; set it to a directory", [Source]);
        Dir when is_binary(Dir) ->
            no_nul(absolute(Dir), Value, Source);
        _ ->
            not_a_directory(Value, Source)
    catch
        error:badarg -> not_a_directory(Value, Source)
    end;
check_socket_dir(Value, Source, _OsType) ->
    not_a_directory(Value, Source).

absolute(<<".">>) -> cwd();
absolute(Dir) -> unicode:characters_to_binary(filename:absname(Dir, cwd())).

%% file:get_cwd/0 would ask a file server that is not there yet.
cwd() ->
    {ok, Dir} = prim_file:get_cwd(),
    unicode:characters_to_binary(Dir).

no_nul(Dir, Value, Source) ->
    case binary:match(Dir, <<0>>) of
        nomatch -> {ok, Dir};
        _ -> not_a_directory(Value, Source)
    end.

not_a_directory(Value, Source) ->
    invalid("socket_dir ~0tp (~ts) must be a string or binary: a directory, or @namespace", [
        Value, Source
    ]).

backlog(Config) ->
    case application:get_env(uds_dist, backlog, ?DEFAULT_BACKLOG) of
        Backlog when is_integer(Backlog), Backlog >= 1, Backlog =< 65535 ->
            {ok, Config#{backlog => Backlog}};
        Other ->
            invalid("backlog ~0tp must be an integer from 1 to 65535", [Other])
    end.

socket_mode(Config) ->
    case application:get_env(uds_dist, socket_mode, ?DEFAULT_SOCKET_MODE) of
        Mode when is_integer(Mode), Mode >= 0, Mode =< 8#777 ->
            {ok, Config#{socket_mode => Mode}};
        Other ->
            invalid("socket_mode ~0tp must be an integer from 0 to 8#777, as 8#660", [Other])
    end.

policy(Config) ->
    Gids = application:get_env(uds_dist, allowed_gids, []),
    case {users(application:get_env(uds_dist, allowed_uids)), is_ids(Gids, ?MAX_IDS)} of
        {{error, _} = Error, _} ->
            Error;
        {_, false} ->
            invalid("allowed_gids ~0tp must be a list of at most ~b group numbers", [
                Gids, ?MAX_IDS
            ]);
        {{Base, Uids}, true} ->
            {ok, Config#{policy => {Base, Uids, Gids}}}
    end.

users(undefined) ->
    {own_user_and_root, []};
users({ok, any}) ->
    {anybody, []};
users({ok, Uids}) ->
    case is_ids(Uids, ?MAX_IDS) of
        true ->
            {nobody, Uids};
        false ->
            invalid("allowed_uids ~0tp must be a list of at most ~b user numbers, or any", [
                Uids, ?MAX_IDS
            ])
    end.

is_ids([], _) ->
    true;
is_ids([Id | Ids], Left) when Left > 0, is_integer(Id), Id >= 0, Id =< ?MAX_ID ->
    is_ids(Ids, Left - 1);
is_ids(_, _) ->
    false.

transport(Config) ->
    case application:get_env(uds_dist, transport, relay) of
        Transport when Transport =:= relay; Transport =:= direct ->
            {ok, Config#{transport => Transport}};
        Other ->
            invalid("transport ~0tp must be relay or direct", [Other])
    end.

%% Where there is one processor, to stay awake would keep the others from it.
spin(Config) ->
    case {os:getenv("UDS_DIST_SPIN", ""), erlang:system_info(logical_processors_available)} of
        {"", 1} ->
            {ok, Config#{spin => 0}};
        {"", _} ->
            {ok, Config#{spin => ?DEFAULT_SPIN}};
        {Text, _} ->
            case string:to_integer(Text) of
                {Spin, ""} when Spin >= 0, Spin =< ?MAX_SPIN ->
                    {ok, Config#{spin => Spin}};
                _ ->
                    invalid(
                        "UDS_DIST_SPIN=~ts must be a number of microseconds from 0 to ~b",
                        [Text, ?MAX_SPIN]
                    )
            end
    end.

%% Where the node of this name listens: everything after @ is ignored.
-spec address(node() | atom(), config()) ->
    {ok, uds_dist_protocol:address()} | {error, explanation()}.
address(Node, #{socket_dir := Dir}) ->
    [Name | _] = binary:split(atom_to_binary(Node, utf8), <<"@">>),
    %% A name comes from whoever asks for a connection: it must not lead out of the directory.
    case binary:match(Name, [<<"/">>, <<0>>]) of
        nomatch when Name =/= <<>> -> join(Dir, Name);
        _ -> {error, io_lib:format("~0tp is not a node name", [Node])}
    end.

join(<<"@", Namespace/binary>> = Dir, Name) ->
    check_length(<<0, Namespace/binary, "/", Name/binary>>, limit(os:type()) + 1, Dir);
join(Dir, Name) ->
    check_length(<<(strip(Dir))/binary, "/", Name/binary, ".sock">>, limit(os:type()), Dir).

strip(<<"/">>) -> <<>>;
strip(Dir) -> Dir.

check_length(Address, Limit, _Dir) when byte_size(Address) =< Limit ->
    {ok, Address};
check_length(Address, Limit, Dir) ->
    {error,
        io_lib:format(
            "the socket address ~ts has ~b bytes, and the system takes no more than ~b; "
            "choose a socket_dir shorter than ~ts",
            [format_address(Address), byte_size(Address), Limit, Dir]
        )}.

%% Bytes of the longest path of a socket: sun_path of unix(7) without its NUL.
-spec limit(os_type()) -> pos_integer().
limit({unix, linux}) -> 107;
limit(_) -> 103.

%% An address for people.
-spec format_address(uds_dist_protocol:address()) -> unicode:chardata().
format_address(<<0, Name/binary>>) -> ["@", Name];
format_address(Path) -> Path.

%% The sidecar's binary.
-spec sidecar_path() -> file:filename_all().
sidecar_path() ->
    case os:getenv("UDS_DIST_SIDECAR", "") of
        "" -> filename:join(priv_dir(), "uds_dist_sidecar");
        Path -> Path
    end.

priv_dir() ->
    case code:priv_dir(uds_dist) of
        {error, bad_name} ->
            %% The ebin directory is on the path under another name than uds_dist.
            filename:join(filename:dirname(filename:dirname(code:which(?MODULE))), "priv");
        Dir ->
            Dir
    end.

invalid(Format, Arguments) ->
    {error, io_lib:format(Format, Arguments)}.
