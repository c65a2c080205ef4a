%% Every line that the carrier logs, one function for each kind. Other modules tell what has happened, and
%% not how it is worded or at which level.
-module(uds_dist_log).

-export([
    cannot_listen/2,
    wrong_settings/1,
    overridden/2,
    listener/2,
    no_answer/1,
    unconfirmed_close/1,
    sidecar_up/1,
    sidecar_ended/2,
    no_channel/1,
    lost_handover/2,
    connected/2,
    ended/2,
    reflected/0,
    too_long/1,
    unreachable/2,
    mistake/3
]).

-include_lib("kernel/include/logger.hrl").

-type line() :: uds_dist_config:explanation().

%% ---------------------------------------------------------------------------------------------
%% The listener and the settings

-spec cannot_listen(Name :: atom(), line()) -> ok.
cannot_listen(Name, Explanation) ->
    failure("cannot listen as ~ts: ~ts", [Name, Explanation]).

-spec wrong_settings(line()) -> ok.
wrong_settings(Explanation) ->
    failure("~ts", [Explanation]).

%% Settings that a stronger source has overridden, unless that is known already.
-spec overridden(uds_dist_config:config(), Before :: undefined | uds_dist_config:config()) -> ok.
overridden(#{overridden := Lines}, #{overridden := Lines}) ->
    ok;
overridden(#{overridden := Lines}, _) ->
    lists:foreach(fun notice/1, Lines).

%% What has become of the listener.
-spec listener(notice | error, line()) -> ok.
listener(notice, Line) -> notice(Line);
listener(error, Line) -> failure("~ts", [Line]).

%% A call was given up.
-spec no_answer(line()) -> ok.
no_answer(What) ->
    failure("cannot ~ts: the sidecar does not answer", [What]).

-spec unconfirmed_close(Reason :: term()) -> ok.
unconfirmed_close(Reason) ->
    ?LOG_WARNING("uds_dist: the sidecar did not confirm that it stopped listening: ~0tp", [Reason]).

%% ---------------------------------------------------------------------------------------------
%% The sidecar

%% It is there, at the last of so many tries.
-spec sidecar_up(Tries :: pos_integer()) -> ok.
sidecar_up(1) -> ok;
sidecar_up(Tries) -> notice(io_lib:format("the sidecar is back, after ~b tries", [Tries])).

%% It is gone or did not start; so many connections were with it and with this VM.
-spec sidecar_ended(Down, {Relayed :: non_neg_integer(), HandedOver :: non_neg_integer()}) -> ok when
    Down :: #{was_up := boolean(), is_news := boolean(), explanation := line()}.
sidecar_ended(#{is_news := false}, _) ->
    ok;
sidecar_ended(#{was_up := WasUp, explanation := Explanation}, {Relayed, HandedOver}) ->
    failure("the sidecar ~ts ~ts: ~ts~ts", [
        uds_dist_config:sidecar_path(),
        case WasUp of
            true -> "is gone";
            false -> "did not start"
        end,
        Explanation,
        [
            io_lib:format("; connections that ~ts: ~b", [What, Count])
         || {What, Count} <- [{"are down with it", Relayed}, {"go on", HandedOver}], Count > 0
        ]
    ]).

%% The transport direct cannot be had.
-spec no_channel(line()) -> ok.
no_channel(Explanation) ->
    notice(["transport is relay instead of direct: ", Explanation]).

-spec lost_handover(node(), line()) -> ok.
lost_handover(Node, Explanation) ->
    failure("the connection with ~ts is lost: ~ts", [Node, Explanation]).

%% ---------------------------------------------------------------------------------------------
%% Connections

%% Once a connection, where it comes in: a release's remote and rpc commands, which call, often have
%% a logger that shows everything on stdout.
-spec connected(node(), {called, node()} | {called_by, uds_dist_protocol:peer()}) -> ok.
connected(Node, {called_by, #{uid := Uid, gid := Gid, pid := Pid}}) ->
    ?LOG_INFO("uds_dist: connected with ~ts, uid ~b, gid ~b, pid ~b", [Node, Uid, Gid, Pid]);
connected(_, _) ->
    ok.

-spec ended(uds_dist_connections:ended(), Why :: line() | {exit, term()}) -> ok.
ended(none, _) ->
    ok;
ended(What, {exit, connection_closed}) ->
    ended(What, "the peer closed the connection");
ended(What, {exit, Reason}) ->
    ended(What, io_lib:format("~0tp", [Reason]));
ended({node, Node}, Why) ->
    ?LOG_INFO("uds_dist: the connection with ~ts ended: ~ts", [Node, Why]);
ended({handshake, #{uid := Uid, pid := Pid}}, Why) ->
    ?LOG_INFO("uds_dist: the handshake with process ~b of uid ~b ended: ~ts", [Pid, Uid, Why]);
ended({silent_node, Node}, Why) ->
    %% A peer that refuses us says nothing at all.
    Hint = " before it said anything; it may not allow this node's user (allowed_uids)",
    unreachable(Node, [Why, Hint]).

%% A handshake of this node came back to it.
-spec reflected() -> ok.
reflected() ->
    ?LOG_WARNING(
        "uds_dist: refused a connection on which a handshake of this node came back to it: a process that "
        "is allowed to connect (allowed_uids, allowed_gids) has passed it on"
    ).

%% A packet of a handshake announced more bytes than any has.
-spec too_long(pos_integer()) -> ok.
too_long(Length) ->
    ?LOG_INFO("uds_dist: refused a connection with a handshake packet of ~b bytes", [Length]).

-spec unreachable(node(), line()) -> ok.
unreachable(Node, Explanation) ->
    notice(io_lib:format("cannot connect to ~ts: ~ts", [Node, Explanation])).

%% ---------------------------------------------------------------------------------------------

%% The carrier itself has made a mistake.
-spec mistake(Class :: atom(), Reason :: term(), Stack :: list()) -> ok.
mistake(Class, Reason, Stack) ->
    failure("internal error ~0tp:~0tp in ~0tp", [Class, Reason, Stack]).

%% The stdout of a script belongs to the script: there a notice goes to stderr.
notice(Line) ->
    case is_script() of
        true ->
            ?LOG_INFO("uds_dist: ~ts", [Line]),
            io:put_chars(standard_error, ["uds_dist: ", Line, $\n]);
        false ->
            ?LOG_NOTICE("uds_dist: ~ts", [Line])
    end.

is_script() ->
    lists:any(fun(Flag) -> init:get_argument(Flag) =/= error end, [noinput, noshell]) andalso
        not uds_dist_config:is_embedded() andalso
        whereis(standard_error) =/= undefined andalso
        logs_to_stdout().

logs_to_stdout() ->
    case logger:get_handler_config(default) of
        {ok, #{module := logger_std_h, config := #{type := standard_io}}} -> true;
        _ -> false
    end.

%% While kernel starts there is no handler that would print an error before the VM ends, which is what an
%% error does to a boot; then the line goes to stderr right away.
failure(Format, Arguments) ->
    case whereis(kernel_safe_sup) of
        undefined -> display(io_lib:format("uds_dist: " ++ Format ++ "~n", Arguments));
        _ -> ?LOG_ERROR("uds_dist: " ++ Format, Arguments)
    end.

display(Line) ->
    Bytes = binary_to_list(unicode:characters_to_binary(Line)),
    case erlang:function_exported(erlang, display_string, 2) of
        true ->
            true = apply(erlang, display_string, [stderr, Bytes]),
            ok;
        false ->
            %% OTP 25 has it with one argument, and writes to stderr.
            true = erlang:display_string(Bytes),
            ok
    end.
