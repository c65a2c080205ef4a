%% The two ends of flow control, as src/protocol.rs words it. Pure.
%%
%% A sender has at most a window of bytes of a connection sent and not acknowledged. The receiver
%% acknowledges bytes when it has passed them on, at the latest when a quarter of the window waits
%% for its acknowledgement.
-module(uds_dist_window).

-export([sender/1, available/1, is_open/1, is_awaited/1, sent/2, acknowledged/2]).
-export([receiver/1, passed_on/2]).

-export_type([sender/0, receiver/0]).

-opaque sender() :: {Unacknowledged :: non_neg_integer(), Size :: pos_integer()}.
-opaque receiver() :: {Waiting :: non_neg_integer(), Quarter :: pos_integer()}.

%% The sender's end: nothing sent yet.
-spec sender(Size :: pos_integer()) -> sender().
sender(Size) ->
    {0, Size}.

%% Bytes that may be sent now.
-spec available(sender()) -> non_neg_integer().
available({Unacknowledged, Size}) ->
    Size - Unacknowledged.

%% Whether it is worth sending: at least half of the window is available. If not, an acknowledgement
%% is on its way, or will be when what is sent has been passed on.
-spec is_open(sender()) -> boolean().
is_open({Unacknowledged, Size}) ->
    Unacknowledged =< Size div 2.

%% Whether an acknowledgement is on its way, or will be when what is sent has been passed on.
-spec is_awaited(sender()) -> boolean().
is_awaited({Unacknowledged, Size}) ->
    Unacknowledged >= Size div 4.

%% Count bytes, no more than are available, are on their way.
-spec sent(non_neg_integer(), sender()) -> sender().
sent(Count, {Unacknowledged, Size}) when Unacknowledged + Count =< Size ->
    {Unacknowledged + Count, Size}.

%% The receiver has passed on Count bytes.
-spec acknowledged(non_neg_integer(), sender()) -> sender().
acknowledged(Count, {Unacknowledged, Size}) when Count =< Unacknowledged ->
    {Unacknowledged - Count, Size}.

%% The receiver's end: nothing received yet.
-spec receiver(Size :: pos_integer()) -> receiver().
receiver(Size) ->
    {0, max(1, Size div 4)}.

%% Count bytes came in and went on: what to acknowledge now, 0 if it is not yet time.
-spec passed_on(non_neg_integer(), receiver()) -> {non_neg_integer(), receiver()}.
passed_on(Count, {Waiting, Quarter}) when Waiting + Count >= Quarter ->
    {Waiting + Count, {0, Quarter}};
passed_on(Count, {Waiting, Quarter}) ->
    {0, {Waiting + Count, Quarter}}.
