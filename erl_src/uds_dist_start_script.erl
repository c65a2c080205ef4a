%% What the start script of a release will pass on to its commands, as far as this node can tell. Scripts of
%% relx run `ping`, `rpc`, `stop` and so on in nodes of their own, which see of vm.args only whole lines that
%% begin with certain flags, -proto_dist among them. With a directory on another line, they look for the node
%% where it is not, and `daemon` waits for it for ever.
-module(uds_dist_start_script).

-export([check/0, check_lines/1]).

%% Ok as well where this is no such release, or what it was started with cannot be found.
-spec check() -> ok | {error, uds_dist_config:explanation()}.
check() ->
    %% Only the scripts of relx export it. UDS_DIST_DIR reaches every command.
    IsRelx = os:getenv("RELX_RPC_TIMEOUT", "") =/= "" andalso os:getenv("UDS_DIST_DIR", "") =:= "",
    IsOnCommandLine = init:get_argument(uds_dist_dir) =/= error,
    case IsRelx andalso IsOnCommandLine andalso init:get_argument(boot) of
        %% The boot script of a release is beside its vm.args.
        {ok, Boots} -> check_file(filename:join(filename:dirname(hd(lists:last(Boots))), "vm.args"));
        _ -> ok
    end.

%% Not by the file server, which may not be there yet.
check_file(Path) ->
    case prim_file:read_file(Path) of
        {ok, Text} ->
            case check_lines(Text) of
                ok -> ok;
                {error, Problem} -> {error, [Problem, " (", Path, ")"]}
            end;
        {error, _} ->
            ok
    end.

%% Of a vm.args that has the directory somewhere.
-spec check_lines(binary()) -> ok | {error, uds_dist_config:explanation()}.
check_lines(Text) ->
    Lines = binary:split(Text, <<"\n">>, [global]),
    case [Line || <<"-proto_dist", _/binary>> = Line <- Lines] of
        [] ->
            %% Such as an indented line, or one that begins with the directory.
            case [Line || Line <- Lines, is_with_dir(string:trim(Line, leading))] of
                [] -> ok;
                _ -> {error, problem("no line begins with -proto_dist; begin that of -uds_dist_dir with it")}
            end;
        Passed ->
            Has = fun(Part) -> binary:match(iolist_to_binary(Passed), Part) =/= nomatch end,
            %% A comment is passed on as well, word by word.
            case {Has(<<"-uds_dist_dir">>), Has(<<"#">>)} of
                {true, false} -> ok;
                {true, true} -> {error, problem("a comment stands behind -proto_dist; give it a line of its own")};
                {false, _} -> {error, problem("-uds_dist_dir is not on the line of -proto_dist; put it there")}
            end
    end.

is_with_dir(<<"#", _/binary>>) -> false;
is_with_dir(Line) -> binary:match(Line, <<"-uds_dist_dir">>) =/= nomatch.

problem(What) ->
    ["the commands of this release (ping, rpc, stop, daemon) will not find this node: ", What].
