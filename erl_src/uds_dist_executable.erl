%% Explains why the system does not execute the sidecar, and what to do about it. It changes nothing.
-module(uds_dist_executable).

-export([explain/2, explain_status/2]).

-include_lib("kernel/include/file.hrl").

%% Mode bits of chmod(1) +x.
-define(EXECUTE, 8#111).
%% For a dependency, `rebar3 compile` alone does not build it again.
-define(BUILD_IT,
    "build it (as a dependency: rebar3 clean -a && rebar3 compile, or "
    "mix deps.compile uds_dist --force)"
).
-define(POINT_TO_IT, "point UDS_DIST_SIDECAR to a copy elsewhere").

%% Explains the error with which the VM could not start the program at Path.
-spec explain(Error :: term(), file:filename_all()) -> uds_dist_text:explanation().
explain(Error, Path) when Error =:= enoent; Error =:= enotdir ->
    case prim_file:get_cwd() of
        {ok, _} ->
            is_missing(Path);
        {error, _} ->
            %% This holds for every program and every directory in which it should run.
            "the node's working directory was removed, and a VM can start no program from there; "
            "file:set_cwd/1 to one that exists"
    end;
explain(eacces, Path) ->
    case file:read_file_info(Path, [raw]) of
        {ok, #file_info{type = regular, mode = Mode}} when Mode band ?EXECUTE =:= ?EXECUTE ->
            "it may be executed, but not on this file system, which is mounted noexec; " ?POINT_TO_IT;
        {ok, #file_info{type = regular}} ->
            "this user may not execute it; chmod +x";
        {ok, #file_info{type = Type}} ->
            io_lib:format("it is a ~ts and not a file; ~ts", [Type, unless_named(?BUILD_IT)]);
        {error, eacces} ->
            "this user may not enter its directory; run the node as a user who may, or build it elsewhere";
        {error, Reason} ->
            io_lib:format("it cannot be examined (~ts)", [file:format_error(Reason)])
    end;
explain(Error, _Path) when Error =:= emfile; Error =:= enfile ->
    uds_dist_system:no_descriptor();
explain(Error, _Path) ->
    io_lib:format("it cannot be started (~0tp)", [Error]).

is_missing(Path) ->
    case archive(filename:dirname(Path)) of
        {ok, Archive} ->
            [
                "it is inside the archive ",
                printable(Archive),
                ", and the system can only execute files; put it beside the archive, and set "
                "UDS_DIST_SIDECAR to its path"
            ];
        none ->
            ["there is no such file; ", unless_named(?BUILD_IT ", or set UDS_DIST_SIDECAR to its path")]
    end.

%% What to do about a path at which no program can be. A build does not put one where a variable points.
unless_named(Remedy) ->
    case uds_dist_system:variable("UDS_DIST_SIDECAR") of
        undefined -> Remedy;
        _ -> "correct UDS_DIST_SIDECAR, which names it, or unset it to use the one in priv/ of uds_dist"
    end.

%% The file that a path treats as a directory: an escript or an .ez.
archive(Path) ->
    case {file:read_file_info(Path, [raw]), filename:dirname(Path)} of
        {{ok, #file_info{type = regular}}, _} -> {ok, Path};
        {{ok, _}, _} -> none;
        {{error, _}, Path} -> none;
        {{error, _}, Above} -> archive(Above)
    end.

printable(Path) when is_binary(Path) -> io_lib:format("~ts", [Path]);
printable(Path) -> Path.

%% Explains an exit status, which is the errno with which the VM's exec(2) failed, or the sidecar's own.
-spec explain_status(non_neg_integer(), file:filename_all()) -> uds_dist_text:explanation().
explain_status(0, _Path) ->
    "; it may be another program: check UDS_DIST_SIDECAR";
explain_status(8, Path) ->
    case {head(Path), os:type()} of
        {<<>>, _} ->
            ", since the file is empty; " ?BUILD_IT;
        {<<Head/binary>>, {unix, linux}} when Head =/= <<16#7F, "ELF">> ->
            ", since it is not a program; " ?BUILD_IT;
        _ ->
            ", since it was built for another architecture; " ?BUILD_IT " where it runs"
    end;
explain_status(2, Path) ->
    %% The file may also have been removed between the VM's check and exec(2).
    case head(Path) of
        none ->
            [", since ", explain(enoent, Path)];
        <<"#!", _/binary>> ->
            ", since the interpreter that its first line names is not here; the line may end as on Windows";
        _ ->
            ", since it was built for another C library, whose loader is not here; " ?BUILD_IT
            " where it runs"
    end;
explain_status(13, Path) ->
    case file:read_file_info(Path, [raw]) of
        {ok, #file_info{type = regular}} ->
            "; a security module, such as SELinux or AppArmor, may forbid executing it";
        _ ->
            [", since ", explain(eacces, Path)]
    end;
%% ETXTBSY.
explain_status(26, _Path) ->
    ", since somebody is writing to it; replace it by renaming a complete copy";
%% What a program's loader exits with; what it says is on the node's standard error.
explain_status(127, _Path) ->
    ", because a shared library that it needs is missing; standard error says which";
explain_status(1, _Path) ->
    "; standard error says why";
explain_status(_Status, _Path) ->
    "".

%% The first bytes of a file, which tell what it is; none if there is no such file.
head(Path) ->
    case prim_file:open(Path, [read, raw, binary]) of
        {ok, File} ->
            Read = prim_file:read(File, 4),
            _ = prim_file:close(File),
            case Read of
                {ok, Head} -> Head;
                eof -> <<>>;
                {error, _} -> unknown
            end;
        {error, enoent} ->
            none;
        {error, _} ->
            unknown
    end.
