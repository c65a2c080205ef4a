%% The setting socket_dir, which says where nodes have their sockets: its sources, which of them wins, and the
%% values that it may have. Like uds_dist_config, this must work in the earliest boot.
-module(uds_dist_socket_dir).

-export([read/0, check/3, default_hint/1]).

-type explanation() :: uds_dist_text:explanation().
%% The parts of uds_dist_config:config() that come from here.
-type found() :: #{
    socket_dir := binary(),
    is_set := boolean(),
    overridden := [explanation()]
}.

%% Reads and checks socket_dir.
-spec read() -> {ok, Source :: string(), found()} | {error, explanation()}.
read() ->
    Sources = [
        {"the command line", fun command_line/0},
        {"UDS_DIST_DIR", fun environment/0},
        {"the application environment", fun() -> application:get_env(uds_dist, socket_dir) end}
    ],
    case read_sources(Sources) of
        {error, _} = Error ->
            Error;
        {ok, []} ->
            Lines = [misspelt(Name) || Name <- uds_dist_system:variables(), is_misspelt(Name)],
            accept(".", "the default", [], #{is_set => false, overridden => Lines});
        {ok, [{Source, Value} | Weaker]} ->
            case is_relative(Value) andalso uds_dist_system:is_embedded() of
                false ->
                    accept(Value, Source, Weaker, #{is_set => true, overridden => []});
                true ->
                    invalid(
                        "socket_dir ~ts (~ts) is a relative path, and in a release each command may "
                        "have another working directory; set it to an absolute one",
                        [show(Value), Source]
                    )
            end
    end.

%% A variable that somebody has set instead of UDS_DIST_DIR. Others may have a use of their own, so this is
%% not an error.
is_misspelt(Name) ->
    lists:prefix("UDS_DIST", Name) andalso string:find(Name, "DIR") =/= nomatch.

misspelt(Name) ->
    [Name, " is set but has no effect: the variable for socket_dir is UDS_DIST_DIR"].

read_sources([]) ->
    {ok, []};
read_sources([{Source, Read} | More]) ->
    case {Read(), read_sources(More)} of
        {{error, _} = Error, _} -> Error;
        {_, {error, _} = Error} -> Error;
        {undefined, Rest} -> Rest;
        {{ok, Value}, {ok, Rest}} -> {ok, [{Source, Value} | Rest]}
    end.

accept(Value, Source, Weaker, Found = #{overridden := Lines}) ->
    case check(Value, Source, os:type()) of
        {ok, Dir} ->
            {ok, Source, Found#{
                socket_dir => Dir,
                overridden := [
                    io_lib:format("socket_dir is ~ts (~ts), so ~ts (~ts) is not used", [
                        uds_dist_text:printable(Dir), Source, show(Other), OtherSource
                    ])
                 || {OtherSource, Other} <- Weaker, not is_same(Other, Value)
                ] ++ Lines
            }};
        {error, _} = Error ->
            Error
    end.

%% A value that has not been checked, for people.
show(Value) ->
    try to_bytes(Value) of
        <<Bytes/binary>> -> uds_dist_text:printable(Bytes);
        _ -> io_lib:format("~0tp", [Value])
    catch
        error:badarg -> io_lib:format("~0tp", [Value])
    end.

%% Whether two values are the same place: /run/x/ is /run/x.
is_same(A, B) ->
    Check = fun(Value) -> check(Value, "", os:type()) end,
    case {Check(A), Check(B)} of
        {{ok, Dir}, {ok, Dir}} -> true;
        _ -> false
    end.

%% Reads `-uds_dist_dir /run/x`, which needs no quoting, or the form that OTP has for every application:
%% `-uds_dist socket_dir '"/run/x"'`. As with other flags of erl, the last one wins.
command_line() ->
    case uds_dist_system:argument(uds_dist_dir) of
        [] ->
            application_argument();
        Occurrences ->
            case lists:last(Occurrences) of
                [Dir] -> {ok, Dir};
                _ -> invalid("-uds_dist_dir takes one directory", [])
            end
    end.

application_argument() ->
    case [Values || [<<"socket_dir">> | Values] <- uds_dist_system:argument(uds_dist)] of
        [] ->
            undefined;
        Values ->
            application_value(lists:last(Values))
    end.

application_value([]) ->
    invalid("-uds_dist socket_dir has no value; use -uds_dist_dir and a directory", []);
application_value([Text | _]) ->
    case uds_dist_system:term(Text) of
        {ok, Value} ->
            {ok, Value};
        error ->
            invalid(
                "-uds_dist socket_dir ~ts is not an Erlang string; quote it twice, '\"~ts\"', "
                "or use -uds_dist_dir ~ts",
                lists:duplicate(3, uds_dist_text:printable(Text))
            )
    end.

environment() ->
    case uds_dist_system:variable("UDS_DIST_DIR") of
        undefined -> undefined;
        Dir -> {ok, Dir}
    end.

%% The bytes of a configured value, in UTF-8 if it is a string.
to_bytes(Value) when is_binary(Value) -> Value;
to_bytes(Value) -> unicode:characters_to_binary(Value).

%% Whether a value is a relative path. Namespaces and values that are not paths are not relative.
is_relative(Value) ->
    try to_bytes(Value) of
        <<"@", _/binary>> -> false;
        <<_, _/binary>> = Dir -> filename:pathtype(Dir) =:= relative;
        _ -> false
    catch
        error:badarg -> false
    end.

%% Checks a socket_dir and makes it absolute, so that it stays the same when the VM changes its directory.
-spec check(Value :: term(), Source :: string(), uds_dist_system:os_type()) ->
    {ok, binary()} | {error, explanation()}.
check(Value, Source, OsType) when is_list(Value); is_binary(Value) ->
    try to_bytes(Value) of
        Bytes when is_binary(Bytes) ->
            case uds_dist_text:blemish(Bytes) of
                none ->
                    check_place(Bytes, Source, OsType);
                Blemish ->
                    invalid("socket_dir ~ts (~ts) ~ts", [
                        uds_dist_text:printable(Bytes), Source, Blemish
                    ])
            end;
        _ ->
            not_a_directory(Value, Source)
    catch
        error:badarg -> not_a_directory(Value, Source)
    end;
check(Value, Source, _OsType) ->
    not_a_directory(Value, Source).

check_place(<<>>, Source, _OsType) ->
    invalid("socket_dir (~ts) is empty; set it to a directory", [Source]);
check_place(<<"@">>, Source, _OsType) ->
    invalid("socket_dir \"@\" (~ts) lacks the name of the abstract namespace; set it to @name", [Source]);
check_place(<<"@", _/binary>> = Namespace, _Source, {unix, linux}) ->
    {ok, Namespace};
check_place(<<"@", _/binary>> = Namespace, Source, _OsType) ->
    invalid(
        "socket_dir ~ts (~ts) is an abstract namespace, which only Linux has; "
        "set it to a directory",
        [uds_dist_text:printable(Namespace), Source]
    );
check_place(Dir, Source, _OsType) ->
    case uds_dist_system:absolute(Dir) of
        {ok, Absolute} -> {ok, Absolute};
        error -> no_working_directory(Dir, Source)
    end.

no_working_directory(Value, Source) ->
    invalid(
        "socket_dir ~ts (~ts) is a relative path, and the working directory does not exist any more; "
        "set it to an absolute one",
        [show(Value), Source]
    ).

not_a_directory(Value, Source) ->
    invalid("socket_dir ~0tp (~ts) must be a string or binary: a directory, or @namespace", [
        Value, Source
    ]).

%% An addition to an explanation, for the case that socket_dir is the default.
-spec default_hint(undefined | #{is_set := boolean(), atom() => term()}) -> explanation().
default_hint(#{is_set := false}) ->
    "; socket_dir is set nowhere, so it is the working directory: set UDS_DIST_DIR or -uds_dist_dir";
default_hint(_) ->
    "".

invalid(Format, Arguments) ->
    {error, io_lib:format(Format, Arguments)}.
