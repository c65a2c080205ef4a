%% What the operating system has given to this VM: environment variables, arguments of the command line, and
%% the working directory, all of them as bytes.
%%
%% The VM decodes what it gets according to the locale. Paths must be the original bytes, because other
%% programs look at the same path in another locale, or in none.
-module(uds_dist_system).

-export([variable/1, variables/0, argument/1, term/1, is_embedded/0]).
-export([remember_working_directory/0, working_directory/0, absolute/1]).
-export([bytes/1, read_proc/1, no_descriptor/0]).
-export([notify_when_booted/2]).
%% Entry point of a process.
-export([await_boot/2]).

-export_type([os_type/0]).

%% As os:type/0 returns it.
-type os_type() :: {Family :: atom(), Name :: atom()}.

%% Key of the directory in which the node was started.
-define(CWD, {?MODULE, working_directory}).

%% The value of an environment variable; an empty one counts as unset.
-spec variable(Name :: string()) -> undefined | binary().
variable(Name) ->
    case os:getenv(Name, "") of
        "" -> undefined;
        Text -> original(Name, Text)
    end.

%% In a UTF-8 locale, the VM decodes a value that is not valid UTF-8 as Latin-1, so that the byte FF and the
%% text U+00FF look the same. Linux has the environment with which the VM was started; a value that a program
%% has set since then is text. Without that file, the value is taken for text.
original(Name, Text) ->
    case file:native_name_encoding() =:= utf8 andalso is_ambiguous(Text) of
        true ->
            Latin1 = list_to_binary(Text),
            case lists:member(iolist_to_binary([Name, "=", Latin1]), first_environment()) of
                true -> Latin1;
                false -> bytes(Text)
            end;
        false ->
            bytes(Text)
    end.

first_environment() ->
    case read_proc("/proc/self/environ") of
        {ok, Entries} -> binary:split(Entries, <<0>>, [global]);
        {error, _} -> []
    end.

is_ambiguous(Text) ->
    lists:max(Text) >= 128 andalso lists:max(Text) =< 255.

%% The names of all environment variables that are not empty.
-spec variables() -> [string()].
variables() ->
    [Name || Variable <- os:getenv(), [Name, [_ | _]] <- [string:split(Variable, "=")]].

%% Sends a message when the boot is over. A process of its own waits for it: init's notice looks like an answer to
%% the questions that a process asks init, and would be taken for one.
-spec notify_when_booted(pid(), Message :: term()) -> ok.
notify_when_booted(Pid, Message) ->
    _ = spawn(?MODULE, await_boot, [Pid, Message]),
    ok.

-spec await_boot(pid(), Message :: term()) -> ok.
await_boot(Pid, Message) ->
    case init:notify_when_started(self()) of
        ok ->
            receive
                {init, started} -> ok
            end;
        started ->
            ok
    end,
    Pid ! Message,
    ok.

%% The values of each occurrence of a flag, as init:get_argument/1 has them; none if there is no such flag.
-spec argument(Flag :: atom()) -> [[binary()]].
argument(Flag) ->
    case init:get_argument(Flag) of
        {ok, Occurrences} -> [lists:map(fun bytes/1, Values) || Values <- Occurrences];
        error -> []
    end.

%% The Erlang term in a value of the command line.
-spec term(binary()) -> {ok, term()} | error.
term(Text) ->
    case unicode:characters_to_list(Text) of
        Chars when is_list(Chars) -> parse(erl_scan:string(Chars ++ "."));
        _NotUtf8 -> error
    end.

parse({ok, Tokens, _}) ->
    case erl_parse:parse_term(Tokens) of
        {ok, Term} -> {ok, Term};
        {error, _} -> error
    end;
parse({error, _, _}) ->
    error.

%% Whether this node is a release, whose start scripts start the VM in embedded mode.
-spec is_embedded() -> boolean().
is_embedded() ->
    case init:get_argument(mode) of
        {ok, Modes} -> lists:member(["embedded"], Modes);
        error -> false
    end.

%% The original bytes of what the VM has decoded. init passes on the result of its decoder even if decoding
%% has failed.
-spec bytes(binary() | string() | {error | incomplete, string(), binary()}) -> binary().
bytes(Bytes) when is_binary(Bytes) ->
    Bytes;
bytes({_, Valid, Rest}) ->
    <<(bytes(Valid))/binary, Rest/binary>>;
bytes(Text) ->
    case unicode:characters_to_binary(Text, unicode, file:native_name_encoding()) of
        Bytes when is_binary(Bytes) -> Bytes;
        _ -> unicode:characters_to_binary(Text)
    end.

%% Remembers the current working directory, against which relative paths are resolved from now on. If
%% a program changes its directory later, the paths of the node's socket and sidecar must stay the same.
-spec remember_working_directory() -> ok.
remember_working_directory() ->
    case persistent_term:get(?CWD, undefined) of
        undefined -> persistent_term:put(?CWD, {cwd, read_working_directory()});
        {cwd, _} -> ok
    end.

%% The remembered or current working directory; undefined if it was removed.
-spec working_directory() -> undefined | binary().
working_directory() ->
    case persistent_term:get(?CWD, undefined) of
        undefined -> read_working_directory();
        {cwd, Cwd} -> Cwd
    end.

%% The absolute form of a path, relative to the directory in which the node was started; error if that was
%% removed.
-spec absolute(binary()) -> {ok, binary()} | error.
absolute(Path) ->
    case {filename:pathtype(Path), working_directory()} of
        {relative, undefined} -> error;
        {relative, Cwd} when Path =:= <<".">> -> {ok, Cwd};
        {relative, Cwd} -> {ok, filename:absname(Path, Cwd)};
        _ -> {ok, filename:absname(Path, <<"/">>)}
    end.

%% file:get_cwd/0 would call the file server, which may not have started yet.
read_working_directory() ->
    case prim_file:get_cwd() of
        {ok, Dir} -> bytes(Dir);
        {error, _} -> undefined
    end.

%% Explains emfile and enfile, and says what to do.
-spec no_descriptor() -> uds_dist_text:explanation().
no_descriptor() ->
    "this node has no file descriptor left for it; raise the limit of open files (ulimit -n, LimitNOFILE=)".

%% Reads a file in /proc. These report no size, so prim_file:read_file/1 cannot be used on all OTPs; and this
%% works before there is a file server.
-spec read_proc(file:filename()) -> {ok, binary()} | {error, file:posix() | badarg}.
read_proc(Path) ->
    case prim_file:open(Path, [read, raw, binary]) of
        {ok, File} ->
            Text = read_all(File, []),
            _ = prim_file:close(File),
            Text;
        {error, _} = Error ->
            Error
    end.

read_all(File, Read) ->
    case prim_file:read(File, 1 bsl 16) of
        {ok, Bytes} -> read_all(File, [Bytes | Read]);
        eof -> {ok, iolist_to_binary(lists:reverse(Read))};
        {error, _} = Error -> Error
    end.
