%% Checks whether the commands of a relx release will find this node. Its start script runs ping, rpc, stop
%% and the like in nodes of their own, and passes on only whole lines of vm.args that begin with certain
%% flags, such as -proto_dist. If the directory is on another line, the commands look for the socket in the
%% wrong place, and daemon waits for ever. The same happens if lines end as on Windows: Erlang drops the
%% carriage returns, but the script takes them for a part of the node's name.
-module(uds_dist_start_script).

-export([check/0]).

%% Also returns ok if this is not such a release, or if its vm.args cannot be found.
-spec check() -> ok | {error, uds_dist_text:explanation()}.
check() ->
    %% Only the scripts of relx export it.
    case {uds_dist_system:variable("RELX_RPC_TIMEOUT"), uds_dist_system:argument(boot)} of
        {Timeout, [_ | _] = Boots} when Timeout =/= undefined ->
            %% The boot script of a release is beside its vm.args.
            check_file(filename:join(filename:dirname(hd(lists:last(Boots))), <<"vm.args">>));
        _ ->
            ok
    end.

%% Does not use the file server, which may not have started yet.
check_file(Path) ->
    case prim_file:read_file(Path) of
        {ok, Text} ->
            case check_text(Text) of
                ok -> ok;
                {error, Problem} -> {error, [Problem, " (", uds_dist_text:printable(Path), ")"]}
            end;
        {error, _} ->
            ok
    end.

check_text(Text) ->
    case binary:match(Text, <<"\r\n">>) of
        nomatch ->
            %% UDS_DIST_DIR reaches every command.
            case {uds_dist_system:argument(uds_dist_dir), uds_dist_system:variable("UDS_DIST_DIR")} of
                {[_ | _], undefined} -> check_lines(Text);
                _ -> ok
            end;
        _ ->
            {error, problem("vm.args has Windows line ends; give it Unix ones")}
    end.

%% Checks the text of a vm.args that names the directory somewhere.
check_lines(Text) ->
    Lines = binary:split(Text, <<"\n">>, [global]),
    case [Line || <<"-proto_dist", _/binary>> = Line <- Lines] of
        [] ->
            %% The line may be indented, or begin with the directory.
            case [Line || Line <- Lines, is_with_dir(string:trim(Line, leading))] of
                [] -> ok;
                _ -> {error, problem("no line begins with -proto_dist; begin that of -uds_dist_dir with it")}
            end;
        Passed ->
            Has = fun(Part) -> binary:match(iolist_to_binary(Passed), Part) =/= nomatch end,
            %% The script passes a comment on as well, word by word.
            case {Has(<<"-uds_dist_dir">>), Has(<<"#">>)} of
                {true, false} ->
                    ok;
                {true, true} ->
                    {error, problem("a comment follows -proto_dist; put it on a line of its own")};
                {false, _} ->
                    {error, problem("-uds_dist_dir is not on the line of -proto_dist; put it there")}
            end
    end.

is_with_dir(<<"#", _/binary>>) -> false;
is_with_dir(Line) -> binary:match(Line, <<"-uds_dist_dir">>) =/= nomatch.

problem(What) ->
    ["the commands of this release (ping, rpc, stop, daemon) will not find this node: ", What].
