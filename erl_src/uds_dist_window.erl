%% The two ends of flow control, by the rule of src/port/protocol.rs. Pure.
%%
%% A sender has at most a window of bytes of a connection sent and not acknowledged. The receiver
%% acknowledges bytes when it has passed them on, at the latest when a quarter of the window waits
%% for its acknowledgement.
-module(uds_dist_window).

-export([sender/1, available/1, unacknowledged/1, is_open/1, sent/2, acknowledged/2]).
-export([receiver/1, passed_on/2]).

-export_type([sender/0, receiver/0]).

-opaque sender() :: {Unacknowledged :: non_neg_integer(), Size :: pos_integer()}.
-opaque receiver() :: {Waiting :: non_neg_integer(), Quarter :: pos_integer()}.

%% The sender's end of a window of Size bytes, all of which may be sent.
-spec sender(Size :: pos_integer()) -> sender().
sender(Size) ->
    {0, Size}.

%% The number of bytes that may be sent now.
-spec available(sender()) -> non_neg_integer().
available({Unacknowledged, Size}) ->
    Size - Unacknowledged.

%% Bytes that were sent and not acknowledged.
-spec unacknowledged(sender()) -> non_neg_integer().
unacknowledged({Unacknowledged, _}) ->
    Unacknowledged.

%% Whether sending is worthwhile: at least half of the window is available. If not, an acknowledgement is on
%% its way, or will be once the receiver has passed on what was sent.
-spec is_open(sender()) -> boolean().
is_open({Unacknowledged, Size}) ->
    Unacknowledged =< Size div 2.

%% Records that Count bytes were sent, which must not be more than are available.
-spec sent(non_neg_integer(), sender()) -> sender().
sent(Count, {Unacknowledged, Size}) when Unacknowledged + Count =< Size ->
    {Unacknowledged + Count, Size}.

%% Records that the receiver acknowledged Count bytes.
-spec acknowledged(non_neg_integer(), sender()) -> sender().
acknowledged(Count, {Unacknowledged, Size}) when Count =< Unacknowledged ->
    {Unacknowledged - Count, Size}.

%% The receiver's end of a window of Size bytes, none of which has been received.
-spec receiver(Size :: pos_integer()) -> receiver().
receiver(Size) ->
    {0, max(1, Size div 4)}.

%% Records that Count bytes were received and passed on. Returns the number of bytes to acknowledge now, 0 if
%% no acknowledgement is due.
-spec passed_on(non_neg_integer(), receiver()) -> {non_neg_integer(), receiver()}.
passed_on(Count, {Waiting, Quarter}) when Waiting + Count >= Quarter ->
    {Waiting + Count, {0, Quarter}};
passed_on(Count, {Waiting, Quarter}) ->
    {0, {Waiting + Count, Quarter}}.
