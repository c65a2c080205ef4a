%% Outgoing connections: requests that wait for a configuration or for the sidecar, those in progress, and
%% those that are retried because the peer's backlog is full. Pure: events go in, effects come out, and
%% uds_dist_port carries them out. All times are in milliseconds of the caller's clock.
-module(uds_dist_dialer).

-export([new/0, dial/4, put_off/4, take_put_off/1]).
-export([up/1, down/1, connected/2, connect_failed/5, timeout/2]).
-export([reached/2, failed/5]).

-export_type([dialer/0, key/0, tag/0, effect/0]).

%% The term by which the caller recognizes its request.
-type tag() :: term().
%% The number of a request that has been passed to the sidecar.
-type key() :: non_neg_integer().
-type effect() ::
    %% Tell the sidecar to connect.
    {connect, key(), uds_dist_protocol:address()}
    %% Start the sidecar if there is none.
    | need_sidecar
    %% Tell the caller that its request has failed.
    | {failed, tag(), Reason :: atom()}
    %% Set the timer, and cancel the previous one.
    | {timer, Milliseconds :: non_neg_integer()}
    %% Log that the node cannot be reached.
    | {unreachable, node(), Reason :: atom(), uds_dist_text:explanation()}.

-record(request, {
    node :: node(),
    address :: undefined | uds_dist_protocol:address(),
    %% Time until which a full backlog is retried.
    give_up :: integer(),
    tag :: tag()
}).

-record(dialer, {
    is_up = false :: boolean(),
    next_key = 0 :: key(),
    %% Requests that wait for a configuration.
    put_off = [] :: [#request{}],
    %% Requests that wait for the sidecar, the latest first.
    waiting = [] :: [#request{}],
    connecting = #{} :: #{key() => #request{}},
    %% Requests to retry, ordered by time.
    retries = [] :: [{Due :: integer(), #request{}}],
    %% When each unreachable node was last logged.
    unreachable = #{} :: #{node() | {refused_by, node()} => LoggedAt :: integer()}
}).

-opaque dialer() :: #dialer{}.
-type result() :: {[effect()], dialer()}.

%% Longest delay before a full backlog is tried again, in milliseconds. A live peer empties it in about one.
-define(BACKLOG_RETRY, 20).
%% Shortest time between two log lines about the same unreachable node, in milliseconds.
-define(LOG_INTERVAL, 60000).
%% Most unreachable nodes that are remembered.
-define(MAX_UNREACHABLE, 1000).

-spec new() -> dialer().
new() ->
    #dialer{}.

%% Requests a connection to a node that listens at Address.
-spec dial(node(), uds_dist_protocol:address(), {tag(), GiveUp :: integer()}, dialer()) -> result().
dial(Node, Address, {Tag, GiveUp}, Dialer) ->
    Request = #request{node = Node, address = Address, give_up = GiveUp, tag = Tag},
    connect(Request, Dialer).

%% Requests a connection to a node once there is a configuration that says where it listens.
-spec put_off(node(), tag(), GiveUp :: integer(), dialer()) -> dialer().
put_off(Node, Tag, GiveUp, Dialer = #dialer{put_off = PutOff}) ->
    Request = #request{node = Node, give_up = GiveUp, tag = Tag},
    Dialer#dialer{put_off = PutOff ++ [Request]}.

%% Removes and returns the requests that were put off, in order. The caller, which now knows the addresses,
%% dials them.
-spec take_put_off(dialer()) -> {[{node(), tag(), GiveUp :: integer()}], dialer()}.
take_put_off(Dialer = #dialer{put_off = PutOff}) ->
    Requests = [{N, T, G} || #request{node = N, tag = T, give_up = G} <- PutOff],
    {Requests, Dialer#dialer{put_off = []}}.

connect(Request, Dialer = #dialer{is_up = false, waiting = Waiting}) ->
    {[need_sidecar], Dialer#dialer{waiting = [Request | Waiting]}};
connect(Request, Dialer = #dialer{next_key = Key, connecting = Connecting}) ->
    {
        [{connect, Key, Request#request.address}],
        Dialer#dialer{next_key = Key + 1, connecting = Connecting#{Key => Request}}
    }.

%% The sidecar is running.
-spec up(dialer()) -> result().
up(Dialer = #dialer{waiting = Waiting}) ->
    connect_all(lists:reverse(Waiting), Dialer#dialer{is_up = true, waiting = []}).

connect_all(Requests, Dialer) ->
    lists:foldl(
        fun(Request, {Effects, D}) ->
            {More, D1} = connect(Request, D),
            {Effects ++ More, D1}
        end,
        {[], Dialer},
        Requests
    ).

%% The sidecar is gone, or could not be started.
-spec down(dialer()) -> result().
down(Dialer = #dialer{waiting = Waiting, connecting = Connecting}) ->
    Requests = lists:reverse(Waiting) ++ maps:values(Connecting),
    {
        [{failed, Tag, sidecar_failed} || #request{tag = Tag} <- Requests],
        Dialer#dialer{is_up = false, waiting = [], connecting = #{}}
    }.

%% The sidecar has connected to the peer. Returns the request, which is done.
-spec connected(key(), dialer()) -> {{node(), tag(), uds_dist_protocol:address()}, dialer()}.
connected(Key, Dialer = #dialer{connecting = Connecting}) ->
    {#request{node = Node, tag = Tag, address = Address}, Connecting1} = maps:take(Key, Connecting),
    {{Node, Tag, Address}, Dialer#dialer{connecting = Connecting1}}.

%% The peer could not be reached.
-spec connect_failed(key(), Reason :: atom(), uds_dist_text:explanation(), Now, dialer()) ->
    result()
when
    Now :: integer().
connect_failed(Key, Reason, Explanation, Now, Dialer = #dialer{connecting = Connecting}) ->
    {Request, Connecting1} = maps:take(Key, Connecting),
    #request{node = Node, tag = Tag, give_up = GiveUp} = Request,
    Dialer1 = Dialer#dialer{connecting = Connecting1},
    case Reason =:= backlog_full andalso Now < GiveUp of
        true ->
            %% Spread the retries, so that they do not all arrive at once again.
            Due = Now + 1 + (Key * 7) rem ?BACKLOG_RETRY,
            Retries = lists:merge(Dialer#dialer.retries, [{Due, Request}]),
            {timer(Retries, Now), Dialer1#dialer{retries = Retries}};
        false ->
            {Effects, Dialer2} =
                %% A remote shell never listens. When it is gone, somebody may still ask for it.
                case Reason =:= not_listening andalso uds_dist_address:is_dynamic(Node) of
                    true -> {[], Dialer1};
                    false -> failed(Node, Reason, Explanation, Now, Dialer1)
                end,
            {[{failed, Tag, Reason} | Effects], Dialer2}
    end.

%% The timer has fired.
-spec timeout(Now :: integer(), dialer()) -> result().
timeout(Now, Dialer = #dialer{retries = Retries}) ->
    {Due, Later} = lists:splitwith(fun({At, _}) -> At =< Now end, Retries),
    {Effects, Dialer1} = connect_all([R || {_, R} <- Due], Dialer#dialer{retries = Later}),
    {Effects ++ timer(Later, Now), Dialer1}.

timer([], _) -> [];
timer([{Due, _} | _], Now) -> [{timer, max(0, Due - Now)}].

%% A node cannot be reached: it has no address to connect to, the connect failed, or the connection ended before its
%% handshake was complete. Callers tend to retry it again and again, so the line is logged only now and then.
-spec failed(node(), Reason :: atom(), uds_dist_text:explanation(), Now :: integer(), dialer()) ->
    result().
failed(Node, Reason, Explanation, Now, Dialer = #dialer{unreachable = Unreachable}) ->
    Keys = [Node | [{refused_by, Node} || Reason =:= peer_closed]],
    case [At || Key <- Keys, #{Key := At} <- [Unreachable], Now - At < ?LOG_INTERVAL] of
        [] ->
            Remembered =
                case map_size(Unreachable) < ?MAX_UNREACHABLE of
                    true -> Unreachable;
                    false -> #{}
                end,
            Logged = maps:from_list([{Key, Now} || Key <- Keys]),
            Dialer1 = Dialer#dialer{unreachable = maps:merge(Remembered, Logged)},
            {[{unreachable, Node, Reason, Explanation}], Dialer1};
        _ ->
            {[], Dialer}
    end.

%% The node was reached, so the next failure is logged again. Only a refusal is not news so soon: when two nodes
%% connect and disconnect at the same time, one of them often ends the other's handshake.
-spec reached(node(), dialer()) -> dialer().
reached(Node, Dialer = #dialer{unreachable = Unreachable}) ->
    Dialer#dialer{unreachable = maps:remove(Node, Unreachable)}.
