%% Every line that the carrier logs, one function for each kind. Other modules tell what has happened, and
%% not how it is worded or at which level.
%%
%% Each is one line, with metadata for handlers and filters that want more than text: `subsystem`, which is
%% [uds_dist], or [uds_dist, sidecar] for what the sidecar says, and peer_node, uid, gid, os_pid, address and
%% reason, as far as they are known. There is no domain: the filters of OTP's default handler (stop all but
%% the domains [otp], [otp, sasl] and none) would drop every line.
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
    level/1,
    connected/3,
    ended/2,
    reflected/0,
    too_long/1,
    unreachable/3,
    sidecar_line/1,
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

%% The level at which the coming and going of a node is logged. Tools, probes and shells come as hidden nodes
%% or let the other node choose their name; they are none of the operator's business.
-spec level(node()) -> info | debug.
level(Node) ->
    case uds_dist_config:is_dynamic(Node) orelse lists:member(Node, nodes(hidden)) of
        true -> debug;
        false -> info
    end.

%% Once a connection, where it comes in: a release's remote and rpc commands, which call, often have
%% a logger that shows everything on stdout.
-spec connected(node(), info | debug, {called, node()} | {called_by, uds_dist_protocol:peer()}) -> ok.
connected(Node, Level, {called_by, #{uid := Uid, gid := Gid, pid := Pid} = Peer}) ->
    Line = format("connected with ~ts, uid ~b, gid ~b, pid ~b", [Node, Uid, Gid, Pid]),
    log(Level, Line, (metadata(Peer))#{peer_node => Node});
connected(_, _, _) ->
    ok.

%% What has ended, and why: by a word of the sidecar's, or as a process ended.
-spec ended(uds_dist_connections:ended(), {closed, uds_dist_protocol:reason(), line()} | {exit, term()}) ->
    ok.
ended(none, _) ->
    ok;
ended({node, Node, Level}, Why) ->
    Line = format("the connection with ~ts ended: ~ts", [Node, why(Why)]),
    log(at_least_notice(Level, Why), Line, #{peer_node => Node, reason => reason(Why)});
ended({handshake, #{uid := Uid, pid := Pid} = Peer}, Why) ->
    Line = format("the handshake with process ~b of uid ~b ended: ~ts", [Pid, Uid, why(Why)]),
    log(info, Line, (metadata(Peer))#{reason => reason(Why)}).

%% A connection that somebody has closed is one thing, and one that was lost another.
at_least_notice(Level, Why) ->
    case lists:member(reason(Why), [peer_closed, normal, shutdown, disconnect, killed]) of
        true -> Level;
        false -> notice
    end.

reason({closed, Reason, _}) -> Reason;
reason({exit, connection_closed}) -> peer_closed;
reason({exit, Reason}) -> Reason.

why({closed, _, Explanation}) -> Explanation;
why({exit, connection_closed}) -> "the peer closed the connection";
why({exit, Reason}) -> format("~0tp", [Reason]).

%% A handshake of this node came back to it.
-spec reflected() -> ok.
reflected() ->
    log(
        warning,
        "refused a connection on which a handshake of this node came back to it: a process that is "
        "allowed to connect (allowed_uids, allowed_gids) has passed it on",
        #{reason => reflected}
    ).

%% A packet of a handshake announced more bytes than any has.
-spec too_long(pos_integer()) -> ok.
too_long(Length) ->
    Line = format("refused a connection with a handshake packet of ~b bytes", [Length]),
    log(notice, Line, #{reason => too_long}).

-spec unreachable(node(), Reason :: atom(), line()) -> ok.
unreachable(Node, Reason, Explanation) ->
    Line = format("cannot connect to ~ts: ~ts", [Node, Explanation]),
    notice(Line, #{peer_node => Node, reason => Reason}).

%% What the sidecar says, in its words. The names of nodes that it knows are those that this VM has told it.
-spec sidecar_line(uds_dist_protocol:line()) -> ok.
sidecar_line(#{level := Level, text := Text} = Line) ->
    Facts = maps:with([reason, address], Line),
    Node = maps:from_list([{peer_node, binary_to_atom(Name, utf8)} || #{node := Name} <- [Line]]),
    Peer =
        case Line of
            #{peer := Known} -> metadata(Known);
            #{} -> #{}
        end,
    log(Level, ["sidecar: ", Text], maps:merge(Facts, maps:merge(Node, Peer)), [uds_dist, sidecar]).

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

notice(Line, Metadata) ->
    log(notice, Line, Metadata).

%% While kernel starts there is no handler that would print an error before the VM ends, which is what an
%% error does to a boot; then the line goes to stderr right away.
error_line(Line, Metadata) ->
    case whereis(kernel_safe_sup) of
        undefined -> uds_dist_log_writer:display(["uds_dist: ", Line]);
        _ -> log(error, Line, Metadata)
    end.

log(Level, Line, Metadata) ->
    log(Level, Line, Metadata, [uds_dist]).

log(Level, Line, Metadata, Subsystem) ->
    case is_wanted(Level) andalso logger:allow(Level, ?MODULE) of
        true ->
            Text = unicode:characters_to_binary(["uds_dist: ", Line]),
            %% With mfa, the level of this module counts, and not only the primary one.
            uds_dist_log_writer:write(Level, Text, Metadata#{
                subsystem => Subsystem, mfa => {?MODULE, log, 3}
            });
        false ->
            ok
    end.

%% Elixir nodes log at debug if nobody says otherwise, and would show each probe.
is_wanted(debug) -> uds_dist_config:is_debugged();
is_wanted(_) -> true.
