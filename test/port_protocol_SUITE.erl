%% The VM's side of the port protocol, without a port: the codec, frames in a stream, and windows. The codec is tested
%% against the golden vectors, with which test/port_protocol.rs tests the sidecar's codec.
-module(port_protocol_SUITE).

-export([all/0, groups/0, init_per_testcase/2, end_per_testcase/2]).
-export([
    every_type_of_packet_has_a_vector/1,
    packets_of_the_vm_are_encoded_as_in_the_vectors/1,
    packets_of_the_sidecar_are_decoded_as_in_the_vectors/1,
    packets_of_the_sidecar_are_rejected_as_in_the_vectors/1,
    packets_of_the_vm_are_not_taken_for_the_sidecars/1,
    hello_of_another_version_needs_only_its_version/1,
    hello_of_our_version_is_in_the_vectors/1
]).
-export([
    handshake_frame_waits_for_its_end/1,
    handshake_frame_leaves_what_follows/1,
    handshake_frame_over_the_cap_is_not_waited_for/1,
    stream_is_cut_into_frames/1,
    tick_is_an_empty_frame/1,
    stream_may_come_byte_by_byte/1,
    stream_may_be_cut_anywhere/1,
    large_frame_may_come_in_many_pieces/1
]).
-export([
    sender_stops_at_exactly_a_window/1,
    sender_waits_for_half_a_window/1,
    sender_rejects_acknowledgement_of_bytes_it_never_sent/1,
    receiver_acknowledges_at_a_quarter_and_not_before/1,
    full_window_is_never_stuck/1,
    two_ends_of_a_window_keep_to_its_rule/1
]).

-include_lib("stdlib/include/assert.hrl").

-define(ROUNDS, 300).
-define(MAX_HANDSHAKE_FRAME, 2048).

all() ->
    [{group, codec}, {group, frames}, {group, window}].

groups() ->
    [
        {codec, [parallel], [
            every_type_of_packet_has_a_vector,
            packets_of_the_vm_are_encoded_as_in_the_vectors,
            packets_of_the_sidecar_are_decoded_as_in_the_vectors,
            packets_of_the_sidecar_are_rejected_as_in_the_vectors,
            packets_of_the_vm_are_not_taken_for_the_sidecars,
            hello_of_another_version_needs_only_its_version,
            hello_of_our_version_is_in_the_vectors
        ]},
        {frames, [parallel], [
            handshake_frame_waits_for_its_end,
            handshake_frame_leaves_what_follows,
            handshake_frame_over_the_cap_is_not_waited_for,
            stream_is_cut_into_frames,
            tick_is_an_empty_frame,
            stream_may_come_byte_by_byte,
            stream_may_be_cut_anywhere,
            large_frame_may_come_in_many_pieces
        ]},
        {window, [parallel], [
            sender_stops_at_exactly_a_window,
            sender_waits_for_half_a_window,
            sender_rejects_acknowledgement_of_bytes_it_never_sent,
            receiver_acknowledges_at_a_quarter_and_not_before,
            full_window_is_never_stuck,
            two_ends_of_a_window_keep_to_its_rule
        ]}
    ].

init_per_testcase(Case, Config) ->
    %% All runs use the same random input.
    _ = rand:seed(exsss, erlang:phash2(Case)),
    Config.

end_per_testcase(_Case, _Config) ->
    ok.

%% ---------------------------------------------------------------------------------------------
%% Codec

%% This fails if one side adds a packet that the vectors do not contain.
every_type_of_packet_has_a_vector(Config) ->
    Names = fun(Sender) ->
        lists:usort([Name || #{is := {Name, _}} <- vectors(Sender, Config)])
    end,
    ?assertEqual(
        lists:sort([
            "LISTEN", "UNLISTEN", "CONNECT", "ESTABLISHED", "OPEN_CHANNEL", "HAND_OVER", "CLOSE", "ADMIT",
            "ASK_STATUS", "DATA", "ACK"
        ]),
        Names("vm")
    ),
    ?assertEqual(
        lists:sort([
            "HELLO", "LISTENING", "LISTEN_FAILED", "UNLISTENED", "ACCEPTED", "CONNECTED",
            "CONNECT_FAILED", "CLOSED", "HANDED_OVER", "RELAYED", "CHANNEL", "CHANNEL_FAILED",
            "LISTENER_LOST", "LOG", "STATUS", "DATA", "ACK"
        ]),
        Names("sidecar")
    ).

packets_of_the_vm_are_encoded_as_in_the_vectors(Config) ->
    check([
        {Name, Body, iolist_to_binary(encode(Packet, Fields))}
     || #{name := Name, body := Body, is := {Packet, Fields}} <- vectors("vm", Config)
    ]).

packets_of_the_sidecar_are_decoded_as_in_the_vectors(Config) ->
    check([
        {Name, report(Packet, Fields), uds_dist_protocol:decode(Body)}
     || #{name := Name, body := Body, is := {Packet, Fields}} <- vectors("sidecar", Config)
    ]).

packets_of_the_sidecar_are_rejected_as_in_the_vectors(Config) ->
    check([
        {Name, {error, {bad_packet, Body}}, uds_dist_protocol:decode(Body)}
     || #{name := Name, body := Body, is := rejected} <- vectors("sidecar", Config)
    ]).

packets_of_the_vm_are_not_taken_for_the_sidecars(Config) ->
    check([
        {Name, {error, {bad_packet, Body}}, uds_dist_protocol:decode(Body)}
     || #{name := Name, body := Body, is := {Packet, _}} <- vectors("vm", Config),
        %% These two are sent in both directions.
        Packet =/= "DATA",
        Packet =/= "ACK"
    ]).

%% In a HELLO of another version, everything after the number is unknown.
hello_of_another_version_needs_only_its_version(_Config) ->
    Other = uds_dist_protocol:version() + 1,
    Hello = {hello, #{version => Other}},
    check([
        {"HELLO", Hello, uds_dist_protocol:decode(<<32, Other:16, Rest/binary>>)}
     || Rest <- [<<>>, <<1>>, <<0:(14 * 8)>>, <<255, 255>>]
    ]).

hello_of_our_version_is_in_the_vectors(Config) ->
    [#{is := {"HELLO", #{"version" := Version}}}] =
        [Vector || #{name := "hello"} = Vector <- vectors("sidecar", Config)],
    ?assertEqual(Version, uds_dist_protocol:version()).

encode("LISTEN", #{"listener" := Listener, "address" := Address} = Fields) ->
    #{"backlog" := Backlog, "mode" := Mode, "vm_pid" := Pid} = Fields,
    uds_dist_protocol:listen(Listener, Backlog, Mode, Pid, Address);
encode("UNLISTEN", #{"listener" := Listener}) ->
    uds_dist_protocol:unlisten(Listener);
encode("CONNECT", #{"conn" := Conn, "address" := Address}) ->
    uds_dist_protocol:connect(Conn, Address);
encode("ESTABLISHED", #{"conn" := Conn, "node" := Node}) ->
    uds_dist_protocol:established(Conn, binary_to_atom(Node, utf8));
encode("OPEN_CHANNEL", #{"vm_pid" := Pid, "directory" := Directory}) ->
    uds_dist_protocol:open_channel(Pid, Directory);
encode("HAND_OVER", #{"conn" := Conn, "node" := Node}) ->
    uds_dist_protocol:hand_over(Conn, binary_to_atom(Node, utf8));
encode("CLOSE", #{"conn" := Conn}) ->
    uds_dist_protocol:close(Conn);
encode("ADMIT", #{"base" := Number, "uids" := Uids, "gids" := Gids}) ->
    Base = lists:nth(Number + 1, [nobody, own_user_and_root, anybody]),
    uds_dist_protocol:admit({Base, numbers(Uids), numbers(Gids)});
encode("ASK_STATUS", #{}) ->
    uds_dist_protocol:ask_status();
encode("DATA", #{"conn" := Conn, "bytes" := Bytes}) ->
    [uds_dist_protocol:data_head(Conn) | Bytes];
encode("ACK", #{"conn" := Conn, "count" := Count}) ->
    uds_dist_protocol:ack(Conn, Count).

numbers(Text) ->
    [binary_to_integer(Number) || Number <- string:lexemes(Text, " ")].

report("DATA", #{"conn" := Conn, "bytes" := Bytes}) ->
    {data, Conn, Bytes};
report("ACK", #{"conn" := Conn, "count" := Count}) ->
    {ack, Conn, Count};
report("HELLO", #{"version" := Version} = Fields) ->
    case uds_dist_protocol:version() of
        Version ->
            Pairs = [{list_to_atom(Field), Value} || {Field, Value} <- maps:to_list(Fields)],
            {hello, maps:from_list(Pairs)};
        _ ->
            {hello, #{version => Version}}
    end;
report("LISTENING", #{"listener" := Listener}) ->
    {listening, Listener};
report("LISTEN_FAILED", #{"listener" := Listener, "reason" := Reason, "explanation" := Text}) ->
    {listen_failed, Listener, reason(Reason), Text};
report("UNLISTENED", #{"listener" := Listener}) ->
    {unlistened, Listener};
report("ACCEPTED", #{"conn" := Conn, "address" := Address} = Fields) ->
    {accepted, Conn, peer(Fields), hd([A || A <- [Address, undefined], A =/= <<>>])};
report("CONNECTED", #{"conn" := Conn} = Fields) ->
    {connected, Conn, peer(Fields)};
report("CONNECT_FAILED", #{"conn" := Conn, "reason" := Reason, "explanation" := Text}) ->
    {connect_failed, Conn, reason(Reason), Text};
report("CLOSED", #{"conn" := Conn, "reason" := Reason, "explanation" := Text}) ->
    {closed, Conn, reason(Reason), Text};
report("HANDED_OVER", #{"conn" := Conn}) ->
    {handed_over, Conn};
report("RELAYED", #{"conn" := Conn}) ->
    {relayed, Conn};
report("CHANNEL", #{"address" := Address}) ->
    {channel, Address};
report("CHANNEL_FAILED", #{"explanation" := Text}) ->
    {channel_failed, Text};
report("LISTENER_LOST", #{"listener" := Listener, "explanation" := Text}) ->
    {listener_lost, Listener, Text};
report("LOG", #{"level" := Level, "reason" := Reason, "text" := Text} = Fields) ->
    #{"uid" := Uid, "subject" := Subject, "name" := Name} = Fields,
    Facts = [
        {level, lists:nth(Level - 2, [error, warning, notice, info, debug])},
        {text, Text}
        | [{reason, cause(Reason)} || Reason =/= 0] ++
            [{peer, peer(Fields)} || Uid =/= 16#FFFFFFFF] ++
            [{address, Name} || Subject =:= 1] ++
            [{node, Name} || Subject =:= 2]
    ],
    {log, maps:from_list(Facts)};
report("STATUS", Fields) ->
    Known = fun
        (_, 0) -> undefined;
        (_, Number) -> Number
    end,
    Named = maps:from_list([{list_to_atom(Field), Value} || {Field, Value} <- maps:to_list(Fields)]),
    {status, maps:map(Known, Named)}.

%% In the order of Cause in src/log_line.rs.
cause(Number) ->
    lists:nth(Number, [
        refused,
        implausible_name,
        handshakes_failed,
        cannot_accept,
        accepts_again,
        took_over,
        file_taken,
        not_handed_over,
        undelivered,
        signal,
        lines_lost
    ]).

peer(#{"uid" := Uid, "gid" := Gid, "pid" := Pid}) ->
    #{uid => Uid, gid => Gid, pid => Pid}.

%% In the order of Reason in src/failure.rs.
reason(Number) ->
    lists:nth(Number, [
        duplicate_name,
        name_busy,
        backlog_full,
        not_listening,
        permission_denied,
        bad_address,
        peer_closed,
        system_error,
        refused
    ]).

%% Shows all vectors that differ, and not only the first one. Some have a megabyte.
check(Cases) ->
    ?assertNotEqual([], Cases),
    case [Case || {_, Expected, Actual} = Case <- Cases, Expected =/= Actual] of
        [] ->
            ok;
        Wrong ->
            Line = fun({Name, Expected, Actual}) ->
                io_lib:format("~n~ts: ~0P instead of ~0P", [Name, Actual, 20, Expected, 20])
            end,
            ct:fail("~ts", [lists:map(Line, Wrong)])
    end.

%% ---------------------------------------------------------------------------------------------
%% The format is described in the file of the vectors.

vectors(Sender, Config) ->
    [Vector || #{from := From} = Vector <- vectors(Config), From =:= Sender].

vectors(Config) ->
    DataDir = proplists:get_value(data_dir, Config),
    File = filename:join(filename:dirname(filename:dirname(DataDir)), "port_protocol.vectors"),
    {ok, Text} = file:read_file(File),
    Lines = [binary_to_list(Line) || Line <- binary:split(Text, <<"\n">>, [global])],
    vectors_of_lines([Line || [First | _] = Line <- Lines, First =/= $#]).

vectors_of_lines(["packet" ++ Name, "from" ++ From, "body" ++ Body, "is" ++ Is | Lines]) ->
    Vector = #{
        name => string:trim(Name),
        from => string:trim(From),
        body => iolist_to_binary([hexadecimal(Word) || Word <- string:lexemes(Body, " ")]),
        is => packet(string:trim(Is))
    },
    [Vector | vectors_of_lines(Lines)];
vectors_of_lines([]) ->
    [].

%% Parses bytes: "6162*2" stands for 61 62 61 62.
hexadecimal(Word) ->
    {Digits, Count} =
        case string:split(Word, "*") of
            [All] -> {All, 1};
            [Part, Times] -> {Part, list_to_integer(Times)}
        end,
    binary:copy(<<<<(list_to_integer([A, B], 16))>> || <<A, B>> <= list_to_binary(Digits)>>, Count).

packet("rejected " ++ _) ->
    rejected;
packet(Text) ->
    case string:split(Text, " ") of
        [Name, Fields] -> {Name, maps:from_list(fields(Fields))};
        [Name] -> {Name, #{}}
    end.

fields("") ->
    [];
fields(Text) ->
    [Field, Value] = string:split(string:trim(Text, leading), "="),
    {Term, Rest} =
        case Value of
            "\"" ++ _ -> strings(Value, <<>>);
            _ -> string:to_integer(Value)
        end,
    [{Field, Term} | fields(Rest)].

%% Parses text: "ab"*2"c" stands for the bytes of ababc.
strings("\"" ++ Opened, Before) ->
    {Bytes, Behind} = string_of(Opened, []),
    {Count, Rest} =
        case Behind of
            "*" ++ Times -> string:to_integer(Times);
            _ -> {1, Behind}
        end,
    strings(Rest, <<Before/binary, (binary:copy(Bytes, Count))/binary>>);
strings(Rest, Bytes) ->
    {Bytes, Rest}.

string_of("\"" ++ Rest, Bytes) ->
    {list_to_binary(lists:reverse(Bytes)), Rest};
string_of("\\0" ++ Rest, Bytes) ->
    string_of(Rest, [0 | Bytes]);
string_of([$\\, $x, A, B | Rest], Bytes) ->
    string_of(Rest, [list_to_integer([A, B], 16) | Bytes]);
string_of([Byte | Rest], Bytes) ->
    string_of(Rest, [Byte | Bytes]).

%% ---------------------------------------------------------------------------------------------
%% Frames

handshake_frame_waits_for_its_end(_Config) ->
    Whole = <<5:16, "hello">>,
    [
        ?assertEqual(more, uds_dist_frames:handshake_frame(binary:part(Whole, 0, Size)))
     || Size <- lists:seq(0, byte_size(Whole) - 1)
    ],
    ?assertEqual({ok, <<"hello">>, <<>>}, uds_dist_frames:handshake_frame(Whole)).

handshake_frame_leaves_what_follows(_Config) ->
    ?assertEqual({ok, <<"a">>, <<0, 1>>}, uds_dist_frames:handshake_frame(<<1:16, "a", 0, 1>>)),
    ?assertEqual({ok, <<>>, <<7>>}, uds_dist_frames:handshake_frame(<<0:16, 7>>)).

handshake_frame_over_the_cap_is_not_waited_for(_Config) ->
    Longest = binary:copy(<<"a">>, ?MAX_HANDSHAKE_FRAME),
    ?assertEqual(more, uds_dist_frames:handshake_frame(<<?MAX_HANDSHAKE_FRAME:16>>)),
    ?assertEqual(
        {ok, Longest, <<>>},
        uds_dist_frames:handshake_frame(<<?MAX_HANDSHAKE_FRAME:16, Longest/binary>>)
    ),
    [
        ?assertEqual({error, {too_long, Length}}, uds_dist_frames:handshake_frame(<<Length:16>>))
     || Length <- [?MAX_HANDSHAKE_FRAME + 1, 65535]
    ],
    ok.

stream_is_cut_into_frames(_Config) ->
    Frames = [<<"one">>, <<"two, longer">>, <<>>, <<"3">>],
    {Cut, Buffer} = uds_dist_frames:push(stream(Frames), uds_dist_frames:new()),
    ?assertEqual(Frames, [iolist_to_binary(Frame) || Frame <- Cut]),
    ?assertEqual(uds_dist_frames:new(), Buffer).

tick_is_an_empty_frame(_Config) ->
    ?assertMatch({[<<>>], _}, uds_dist_frames:push(<<0:32>>, uds_dist_frames:new())),
    ?assertMatch({[<<>>, <<>>], _}, uds_dist_frames:push(<<0:64>>, uds_dist_frames:new())),
    %% In two pieces.
    {[], Half} = uds_dist_frames:push(<<0:16>>, uds_dist_frames:new()),
    {[<<>>], Empty} = uds_dist_frames:push(<<0:16>>, Half),
    ?assertEqual(uds_dist_frames:new(), Empty).

stream_may_come_byte_by_byte(_Config) ->
    Frames = [<<>>, <<"a">>, <<>>, <<>>, <<"four">>, random_frame(300), <<0, 0, 0, 0>>, <<>>],
    Bytes = [<<Byte>> || <<Byte>> <= stream(Frames)],
    ?assert({Frames, uds_dist_frames:new()} =:= push_all(Bytes)).

stream_may_be_cut_anywhere(_Config) ->
    [
        begin
            Frames = [random_frame(rand:uniform(40) - 1) || _ <- lists:seq(1, rand:uniform(20))],
            Pieces = cut(stream(Frames), rand:uniform(25)),
            ?assert({Frames, uds_dist_frames:new()} =:= push_all(Pieces))
        end
     || _ <- lists:seq(1, ?ROUNDS)
    ],
    ok.

large_frame_may_come_in_many_pieces(_Config) ->
    Frames = [random_frame(3000000), <<>>, random_frame(70000), <<"last">>],
    [
        ?assert({Frames, uds_dist_frames:new()} =:= push_all(cut(stream(Frames), MaxPiece)))
     || MaxPiece <- [1000, 65536, 131072, 10000000]
    ],
    ok.

stream(Frames) ->
    <<<<(byte_size(Frame)):32, Frame/binary>> || Frame <- Frames>>.

random_frame(Size) ->
    rand:bytes(Size).

%% Cuts into pieces of 1 to MaxPiece bytes.
cut(Stream, MaxPiece) ->
    case rand:uniform(MaxPiece) of
        Size when Size >= byte_size(Stream) ->
            [Stream];
        Size ->
            <<Piece:Size/binary, Rest/binary>> = Stream,
            [Piece | cut(Rest, MaxPiece)]
    end.

push_all(Pieces) ->
    {Frames, Buffer} = lists:foldl(
        fun(Piece, {Before, Buffer0}) ->
            {Frames, Buffer1} = uds_dist_frames:push(Piece, Buffer0),
            {[Before, [iolist_to_binary(Frame) || Frame <- Frames]], Buffer1}
        end,
        {[], uds_dist_frames:new()},
        Pieces
    ),
    {lists:flatten(Frames), Buffer}.

%% ---------------------------------------------------------------------------------------------
%% Windows, at the same boundaries as in src/peers/window.rs

sender_stops_at_exactly_a_window(_Config) ->
    Sender = uds_dist_window:sent(99, uds_dist_window:sender(100)),
    ?assertEqual(1, uds_dist_window:available(Sender)),
    Full = uds_dist_window:sent(1, Sender),
    ?assertEqual(0, uds_dist_window:available(Full)),
    ?assertError(_, uds_dist_window:sent(1, Full)),
    ?assertEqual(1, uds_dist_window:available(uds_dist_window:acknowledged(1, Full))).

sender_waits_for_half_a_window(_Config) ->
    Half = uds_dist_window:sent(50, uds_dist_window:sender(100)),
    ?assert(uds_dist_window:is_open(Half)),
    Less = uds_dist_window:sent(1, Half),
    ?assertNot(uds_dist_window:is_open(Less)),
    ?assert(uds_dist_window:is_open(uds_dist_window:acknowledged(1, Less))).

sender_rejects_acknowledgement_of_bytes_it_never_sent(_Config) ->
    Sender = uds_dist_window:sent(10, uds_dist_window:sender(100)),
    ?assertError(_, uds_dist_window:acknowledged(11, Sender)),
    Sender1 = uds_dist_window:acknowledged(10, Sender),
    ?assertError(_, uds_dist_window:acknowledged(1, Sender1)).

receiver_acknowledges_at_a_quarter_and_not_before(_Config) ->
    {0, Receiver} = uds_dist_window:passed_on(24, uds_dist_window:receiver(100)),
    {25, Receiver1} = uds_dist_window:passed_on(1, Receiver),
    {0, Receiver2} = uds_dist_window:passed_on(0, Receiver1),
    {0, Receiver3} = uds_dist_window:passed_on(24, Receiver2),
    {100, _} = uds_dist_window:passed_on(76, Receiver3),
    ok.

%% If everything was passed on, less than a quarter is unacknowledged.
full_window_is_never_stuck(_Config) ->
    [
        lists:foldl(
            fun(_, {Sender, Receiver}) ->
                Count = uds_dist_window:available(Sender),
                ?assert(Count > 0),
                {Acknowledged, Receiver1} = uds_dist_window:passed_on(Count, Receiver),
                Sender1 = uds_dist_window:sent(Count, Sender),
                {uds_dist_window:acknowledged(Acknowledged, Sender1), Receiver1}
            end,
            {uds_dist_window:sender(Size), uds_dist_window:receiver(Size)},
            lists:seq(1, 100)
        )
     || Size <- [1, 2, 3, 4, 5, 7, 100, 1048576]
    ],
    ok.

two_ends_of_a_window_keep_to_its_rule(_Config) ->
    [
        begin
            Size = rand:uniform(2000),
            Ends = {uds_dist_window:sender(Size), uds_dist_window:receiver(Size), 0, 0, []},
            Step = fun(_, Ends1) -> window_step(rand:uniform(3), Size, Ends1) end,
            lists:foldl(Step, Ends, lists:seq(1, 200))
        end
     || _ <- lists:seq(1, ?ROUNDS)
    ],
    ok.

%% OnTheWay counts bytes that have arrived and were not passed on, Waiting those that were passed on and not
%% acknowledged. Acks are on their way back, oldest first.
window_step(1, Size, {Sender, Receiver, OnTheWay, Waiting, Acks}) ->
    Count = min(rand:uniform(Size), uds_dist_window:available(Sender)),
    {uds_dist_window:sent(Count, Sender), Receiver, OnTheWay + Count, Waiting, Acks};
window_step(2, Size, {Sender, Receiver, OnTheWay, Waiting, Acks}) ->
    Count = min(rand:uniform(Size), OnTheWay),
    case uds_dist_window:passed_on(Count, Receiver) of
        {0, Receiver1} ->
            ?assert(Waiting + Count < max(1, Size div 4)),
            {Sender, Receiver1, OnTheWay - Count, Waiting + Count, Acks};
        {Acknowledged, Receiver1} ->
            ?assertEqual(Waiting + Count, Acknowledged),
            {Sender, Receiver1, OnTheWay - Count, 0, Acks ++ [Acknowledged]}
    end;
window_step(3, _Size, {_, _, _, _, []} = Ends) ->
    Ends;
window_step(3, Size, {Sender, Receiver, OnTheWay, Waiting, [Ack | Acks]}) ->
    Sender1 = uds_dist_window:acknowledged(Ack, Sender),
    ?assertEqual(Size - OnTheWay - Waiting - lists:sum(Acks), uds_dist_window:available(Sender1)),
    {Sender1, Receiver, OnTheWay, Waiting, Acks}.
