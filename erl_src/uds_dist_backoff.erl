%% Decides when to retry after a failure, and whether to log it. Pure.
%%
%% Retries after failures that may last use this module, so that none repeats without a limit. The first retry comes
%% at once, the following ones after a delay that doubles. Waits for something that is just ending or that is full
%% for a moment have a constant delay and an end: see uds_dist_listener, uds_dist_dialer and uds_dist_channel.
-module(uds_dist_backoff).

-export([new/1, failed/3, tries/1]).

-export_type([backoff/0]).

%% The delay before the second retry in milliseconds, the number of failures in a row, and the text of the
%% last one.
-opaque backoff() :: {First :: pos_integer(), Tries :: non_neg_integer(), LastFailure :: binary()}.

%% A backoff without failures. First is the delay before the second retry, in milliseconds.
-spec new(First :: pos_integer()) -> backoff().
new(First) ->
    {First, 0, <<>>}.

%% Records a failure. Returns the delay before the next attempt in milliseconds, which is Max at most, and
%% whether the failure differs from the previous one and should be logged.
-spec failed(Failure :: unicode:chardata(), Max :: pos_integer(), backoff()) ->
    {Delay :: non_neg_integer(), IsNews :: boolean(), backoff()}.
failed(Failure, Max, {First, Tries, LastFailure}) ->
    Text = unicode:characters_to_binary(Failure),
    {delay(First, Max, Tries), Text =/= LastFailure, {First, Tries + 1, Text}}.

%% A factor of 2^16 exceeds every limit; larger ones would only make bignums.
delay(_, _, 0) -> 0;
delay(First, Max, Tries) -> min(Max, First bsl min(Tries - 1, 16)).

%% The number of failures since new/1.
-spec tries(backoff()) -> non_neg_integer().
tries({_, Tries, _}) ->
    Tries.
