%% Every line that the carrier logs, one function for each kind. Other modules tell what has happened, and
%% not how it is worded or at which level.
%%
%% Each is one line, with metadata for handlers and filters that want more than text: `subsystem`, which is uds_dist, and peer_node,
%% uid, gid, os_pid and reason, as far as they are known. There is no domain: the filters of OTP's default
%% handler drop every event of a domain that is not OTP's own.
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
-type line() :: uds_dist_config:explanation().

%% ---------------------------------------------------------------------------------------------
%% The listener and the settings

-spec cannot_listen(Name :: atom(), line()) -> ok.
cannot_listen(Name, Explanation) ->
    error_line(["cannot listen as ", atom_to_list(Name), ": ", Explanation], #{}).

-spec wrong_settings(line()) -> ok.
wrong_settings(Explanation) ->
    error_line(Explanation, #{}).

%% Settings that a stronger source has overridden, unless that is known already.
-spec overridden(uds_dist_config:config(), Before :: undefined | uds_dist_config:config()) -> ok.
overridden(#{overridden := Lines}, #{overridden := Lines}) ->
    ok;
overridden(#{overridden := Lines}, _) ->
    lists:foreach(fun(Line) -> notice(Line, #{}) end, Lines).

%% What has become of the listener.
-spec listener(notice | error, line()) -> ok.
listener(notice, Line) -> notice(Line, #{});
listener(error, Line) -> error_line(Line, #{}).

%% A call was given up.
-spec no_answer(line()) -> ok.
no_answer(What) ->
    error_line(["cannot ", What, ": the sidecar does not answer"], #{}).

-spec unconfirmed_close(Reason :: term()) -> ok.
unconfirmed_close(Reason) ->
    Line = format("the sidecar did not confirm that it stopped listening: ~0tp", [Reason]),
    log(warning, Line, #{reason => Reason}).

%% ---------------------------------------------------------------------------------------------
%% The sidecar

%% It is there, at the last of so many tries.
-spec sidecar_up(Tries :: pos_integer()) -> ok.
sidecar_up(1) -> ok;
sidecar_up(Tries) -> notice(format("the sidecar is back, after ~b tries", [Tries]), #{}).

%% It is gone or did not start; so many connections were with it and with this VM.
-spec sidecar_ended(Down, {Relayed :: non_neg_integer(), HandedOver :: non_neg_integer()}) -> ok when
    Down :: #{was_up := boolean(), is_news := boolean(), explanation := line()}.
sidecar_ended(#{is_news := false}, _) ->
    ok;
sidecar_ended(#{was_up := WasUp, explanation := Explanation}, {Relayed, HandedOver}) ->
    What =
        case WasUp of
            true -> "is gone";
            false -> "did not start"
        end,
    Connections = [
        format("; connections that ~ts: ~b", [Which, Count])
     || {Which, Count} <- [{"are down with it", Relayed}, {"go on", HandedOver}], Count > 0
    ],
    Path = uds_dist_config:sidecar_path(),
    Line = format("the sidecar ~ts ~ts: ~ts~ts", [Path, What, Explanation, Connections]),
    error_line(Line, #{reason => Explanation}).

%% The transport direct cannot be had.
-spec no_channel(line()) -> ok.
no_channel(Explanation) ->
    notice(["transport is relay instead of direct: ", Explanation], #{}).

-spec lost_handover(node(), line()) -> ok.
lost_handover(Node, Explanation) ->
    Line = format("the connection with ~ts is lost: ~ts", [Node, Explanation]),
    error_line(Line, #{peer_node => Node}).

%% ---------------------------------------------------------------------------------------------
%% Connections

%% Once a connection, where it comes in: a release's remote and rpc commands, which call, often have
%% a logger that shows everything on stdout.
-spec connected(node(), {called, node()} | {called_by, uds_dist_protocol:peer()}) -> ok.
connected(Node, {called_by, #{uid := Uid, gid := Gid, pid := Pid} = Peer}) ->
    Line = format("connected with ~ts, uid ~b, gid ~b, pid ~b", [Node, Uid, Gid, Pid]),
    log(info, Line, (metadata(Peer))#{peer_node => Node});
connected(_, _) ->
    ok.

-spec ended(Which, Why :: line() | {exit, term()}) -> ok when
    Which :: none | {node, node()} | {handshake, uds_dist_protocol:peer()}.
ended(none, _) ->
    ok;
ended(What, {exit, connection_closed}) ->
    ended(What, "the peer closed the connection");
ended(What, {exit, Reason}) ->
    ended(What, format("~0tp", [Reason]));
ended({node, Node}, Why) ->
    Line = format("the connection with ~ts ended: ~ts", [Node, Why]),
    log(info, Line, #{peer_node => Node, reason => Why});
ended({handshake, #{uid := Uid, pid := Pid} = Peer}, Why) ->
    Line = format("the handshake with process ~b of uid ~b ended: ~ts", [Pid, Uid, Why]),
    log(info, Line, (metadata(Peer))#{reason => Why}).

%% A handshake of this node came back to it.
-spec reflected() -> ok.
reflected() ->
    log(
        warning,
        "refused a connection on which a handshake of this node came back to it: a process that is "
        "allowed to connect (allowed_uids, allowed_gids) has passed it on",
        #{}
    ).

%% A packet of a handshake announced more bytes than any has.
-spec too_long(pos_integer()) -> ok.
too_long(Length) ->
    log(info, format("refused a connection with a handshake packet of ~b bytes", [Length]), #{}).

-spec unreachable(node(), line()) -> ok.
unreachable(Node, Explanation) ->
    Line = format("cannot connect to ~ts: ~ts", [Node, Explanation]),
    notice(Line, #{peer_node => Node, reason => Explanation}).

%% ---------------------------------------------------------------------------------------------

%% The carrier itself has made a mistake.
-spec mistake(Class :: atom(), Reason :: term(), Stack :: list()) -> ok.
mistake(Class, Reason, Stack) ->
    Line = format("internal error ~0tp:~0tp in ~0tp", [Class, Reason, Stack]),
    error_line(Line, #{reason => Reason}).

metadata(#{uid := Uid, gid := Gid, pid := Pid}) ->
    #{uid => Uid, gid => Gid, os_pid => Pid}.

format(Format, Arguments) ->
    io_lib:format(Format, Arguments).

%% The stdout of a script belongs to the script: there a notice goes to stderr.
notice(Line, Metadata) ->
    case is_script() andalso logger:allow(notice, ?MODULE) of
        true ->
            ok = log(info, Line, Metadata),
            display(["uds_dist: ", Line, $\n]);
        false ->
            log(notice, Line, Metadata)
    end.

is_script() ->
    lists:any(fun(Flag) -> init:get_argument(Flag) =/= error end, [noinput, noshell]) andalso
        not uds_dist_config:is_embedded() andalso
        logs_to_stdout().

logs_to_stdout() ->
    case logger:get_handler_config(default) of
        {ok, #{module := logger_std_h, config := #{type := standard_io}}} -> true;
        %% In the early boot there is only the primitive handler, which writes there too.
        {error, _} -> whereis(kernel_safe_sup) =:= undefined;
        _ -> false
    end.

%% While kernel starts there is no handler that would print an error before the VM ends, which is what an
%% error does to a boot; then the line goes to stderr right away.
error_line(Line, Metadata) ->
    case whereis(kernel_safe_sup) of
        undefined -> display(["uds_dist: ", Line, $\n]);
        _ -> log(error, Line, Metadata)
    end.

%% As a format and not as a report: the primitive handler, which is there in the early boot, would print a
%% report as a map.
log(Level, Line, Metadata) ->
    case logger:allow(Level, ?MODULE) of
        true ->
            Text = unicode:characters_to_binary(["uds_dist: ", Line]),
            logger:log(Level, "~ts", [Text], Metadata#{subsystem => uds_dist});
        false ->
            ok
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
