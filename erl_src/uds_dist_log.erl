%% Every line that the carrier logs, with one function for each kind. Other modules report what has happened;
%% this one decides on wording and level, except for lines about the listener, the settings and the requests,
%% which come with their explanations.
%%
%% Each event is one line of text, with metadata for handlers and filters: `subsystem`, which is [uds_dist],
%% or [uds_dist, sidecar] for lines of the sidecar, and peer_node, uid, gid, os_pid, address and reason, where
%% they are known. There is no domain, because the filters of OTP's default handler (which stop all but the
%% domains [otp], [otp, sasl] and none) would drop every line.
-module(uds_dist_log).

-export([
    listener/2,
    no_answer/1,
    unconfirmed_close/1,
    sidecar_up/1,
    sidecar_ended/2,
    no_channel/1,
    channel_restored/0,
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

-export_type([ended/0]).

-type line() :: uds_dist_text:explanation().

%% What has ended: the connection with a node, whose lines have this level, or the handshake with a peer; none
%% if it is not worth a line.
-type ended() :: {node, node(), info | debug} | {handshake, uds_dist_protocol:peer()} | none.

-define(MAY_BE_STOPPED, "; it may be stopped (SIGSTOP), or the machine is very busy").

%% ---------------------------------------------------------------------------------------------
%% The listener and the settings

%% A line about the listener or the settings, in the words of the module that it comes from.
-spec listener(notice | error, line()) -> ok.
listener(notice, Line) -> notice(Line, #{});
listener(error, Line) -> error_line(Line, #{}).

%% A call was given up after its time limit.
-spec no_answer(line()) -> ok.
no_answer(What) ->
    error_line(["cannot ", What, ": the sidecar does not answer", ?MAY_BE_STOPPED], #{}).

%% The owner did not reply when it was asked to stop listening, because of its own end or a timeout.
-spec unconfirmed_close(Reason :: term()) -> ok.
unconfirmed_close(Reason) ->
    Why =
        case Reason of
            timeout -> ?MAY_BE_STOPPED;
            _ -> format(": ~0tp", [Reason])
        end,
    log(warning, ["the sidecar did not confirm that it stopped listening", Why], #{reason => Reason}).

%% ---------------------------------------------------------------------------------------------
%% The sidecar

%% The sidecar is up. Tries counts those before it that ended or did not start, one after another.
-spec sidecar_up(Tries :: non_neg_integer()) -> ok.
sidecar_up(0) -> ok;
sidecar_up(1) -> notice("the sidecar is back", #{});
sidecar_up(Tries) -> notice(format("the sidecar is back, after ~b tries", [Tries]), #{}).

%% The sidecar has ended or did not start. It relayed the connections counted first; the others had been
%% handed over to this VM.
-spec sidecar_ended(Down, {Relayed :: non_neg_integer(), HandedOver :: non_neg_integer()}) -> ok when
    Down :: #{
        was_up := boolean(),
        program := file:filename_all(),
        os_pid := undefined | non_neg_integer(),
        up_for := non_neg_integer(),
        is_news := boolean(),
        explanation := line()
    }.
sidecar_ended(#{is_news := false}, _) ->
    ok;
sidecar_ended(#{explanation := Explanation, program := Path} = Down, {Relayed, HandedOver}) ->
    {What, Metadata} =
        case Down of
            #{was_up := true, os_pid := OsPid, up_for := UpFor} ->
                {format("(process ~0tp, up for ~b s) is gone", [OsPid, UpFor]), #{os_pid => OsPid}};
            #{was_up := false} ->
                {"did not start", #{}}
        end,
    Connections = [
        format("; connections ~ts: ~b", [Which, Count])
     || {Which, Count} <- [{"lost with it", Relayed}, {"unaffected", HandedOver}], Count > 0
    ],
    Program = uds_dist_text:printable(uds_dist_system:bytes(Path)),
    Line = format("the sidecar ~ts ~ts: ~ts~ts", [Program, What, Explanation, Connections]),
    error_line(Line, Metadata#{reason => Explanation}).

%% The transport direct is configured, but not available.
-spec no_channel(line()) -> ok.
no_channel(Explanation) ->
    notice(["transport is relay instead of direct: ", Explanation], #{}).

-spec channel_restored() -> ok.
channel_restored() ->
    notice("transport is direct again", #{}).

%% The channel has a backoff, so that few connections are lost in this way.
-spec lost_handover(node(), line()) -> ok.
lost_handover(Node, Explanation) ->
    Line = format(
        "the connection with ~ts is lost: ~ts; the next connections are relayed for a while",
        [Node, Explanation]
    ),
    error_line(Line, #{peer_node => Node}).

%% ---------------------------------------------------------------------------------------------
%% Connections

%% The level at which connections to a node are logged. Tools, probes and shells connect as hidden nodes or
%% let the other node choose their name; operators do not want to see them.
-spec level(node()) -> info | debug.
level(Node) ->
    case uds_dist_address:is_dynamic(Node) orelse lists:member(Node, nodes(hidden)) of
        true -> debug;
        false -> info
    end.

%% Each connection is logged once, by the node that accepts it. A release's remote and rpc commands, which
%% connect, often have a logger that shows everything on stdout.
-spec connected(node(), info | debug, {called, node()} | {called_by, uds_dist_protocol:peer()}) -> ok.
connected(Node, Level, {called_by, #{uid := Uid, gid := Gid, pid := Pid} = Peer}) ->
    Line = format("connected with ~ts, uid ~b, gid ~b, pid ~b", [Node, Uid, Gid, Pid]),
    log(Level, Line, (metadata(Peer))#{peer_node => Node});
connected(_, _, _) ->
    ok.

%% The end of a connection, with the reason that the sidecar reported or with which a process exited.
-spec ended(ended(), {closed, uds_dist_protocol:reason(), line()} | {exit, term()}) -> ok.
ended(none, _) ->
    ok;
ended({node, Node, Level}, Why) ->
    Line = format("the connection with ~ts ended: ~ts", [Node, why(Why)]),
    log(at_least_notice(Level, Why), Line, #{peer_node => Node, reason => reason(Why)});
ended({handshake, #{uid := Uid, pid := Pid} = Peer}, Why) ->
    Line = format("the handshake with process ~b of uid ~b ended: ~ts", [Pid, Uid, why(Why)]),
    limited(info, Line, (metadata(Peer))#{reason => reason(Why)}, handshake_ended, Uid).

%% A lost connection is at least a notice, unlike one that was closed on purpose.
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
%% From net_kernel, for the connection that the other node has opened at the same time.
why({exit, remarked}) -> "both nodes connected to each other at once, and the other connection is used";
why({exit, noproc}) -> "the process that asked for the connection has ended";
why({exit, Reason}) -> format("~0tp", [Reason]).

%% A handshake of this node came back to it.
-spec reflected() -> ok.
reflected() ->
    limited(
        warning,
        "refused a connection on which a handshake of this node came back to it: a process that is "
        "allowed to connect (allowed_uids, allowed_gids) has passed it on",
        #{reason => reflected},
        reflected,
        any
    ).

%% A peer that has connected to this node announced a handshake packet of a length that none has. The line
%% about the end of the handshake says which process it was.
-spec too_long(pos_integer()) -> ok.
too_long(Length) ->
    Line = format("refused a handshake packet of ~b bytes, which no node sends", [Length]),
    limited(info, Line, #{reason => too_long}, too_long, any).

-spec unreachable(node(), Reason :: atom(), line()) -> ok.
unreachable(Node, Reason, Explanation) ->
    %% Any atom can be asked for, with any characters.
    Name = uds_dist_text:printable(atom_to_binary(Node)),
    Line = format("cannot connect to ~ts: ~ts", [Name, Explanation]),
    notice(Line, #{peer_node => Node, reason => Reason}).

%% A line of the sidecar's log. Creating atoms for node names is safe: the sidecar only knows names that this
%% VM has sent to it.
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

%% An exception in the carrier's own code.
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

%% An error while kernel starts usually ends the boot, and no handler would print the line before the VM
%% exits. So it goes to stderr at once.
error_line(Line, Metadata) ->
    case whereis(kernel_safe_sup) of
        undefined -> uds_dist_log_writer:display(["uds_dist: ", Line]);
        _ -> log(error, Line, Metadata)
    end.

%% Logs a line that a peer can cause as often as it likes.
limited(Level, Line, Metadata, Kind, User) ->
    case uds_dist_log_limit:count(Kind, User, erlang:monotonic_time(millisecond)) of
        {due, 1} -> log(Level, Line, Metadata);
        {due, Count} -> log(Level, format("~ts (~b such lines since the last one)", [Line, Count]), Metadata);
        not_due -> ok
    end.

log(Level, Line, Metadata) ->
    log(Level, Line, Metadata, [uds_dist]).

log(Level, Line, Metadata, Subsystem) ->
    case is_wanted(Level) andalso logger:allow(Level, ?MODULE) of
        true ->
            Text = unicode:characters_to_binary(["uds_dist: ", Line]),
            %% With mfa, the level set for this module applies, and not only the primary one.
            uds_dist_log_writer:write(Level, Text, Metadata#{
                subsystem => Subsystem, mfa => {?MODULE, log, 3}
            });
        false ->
            ok
    end.

%% Elixir nodes log at debug by default, and would show each probe.
is_wanted(debug) -> uds_dist_config:is_debugged();
is_wanted(_) -> true.
