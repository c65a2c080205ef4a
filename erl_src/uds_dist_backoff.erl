%% When to try again after a failure, and whether the failure is news. Pure.
%%
%% Every retry of the carrier asks this module, so that none of them repeats or logs faster than its
%% limits: the first retry comes at once, the following ones after a delay that doubles.
-module(uds_dist_backoff).

-export([new/1, failed/3, tries/1]).

-export_type([backoff/0]).

%% The delay before the second retry in milliseconds, the failures in a row, and the last one's text.
-opaque backoff() :: {First :: pos_integer(), Tries :: non_neg_integer(), LastFailure :: binary()}.

%% Nothing has failed yet.
-spec new(First :: pos_integer()) -> backoff().
new(First) ->
    {First, 0, <<>>}.

%% Something failed: the delay until the next try in milliseconds, Max at most, and whether this
%% failure differs from the one before it and so belongs into the log.
-spec failed(Failure :: unicode:chardata(), Max :: pos_integer(), backoff()) ->
    {Delay :: non_neg_integer(), IsNews :: boolean(), backoff()}.
failed(Failure, Max, {First, Tries, LastFailure}) ->
    Text = unicode:characters_to_binary(Failure),
    {delay(First, Max, Tries), Text =/= LastFailure, {First, Tries + 1, Text}}.

%% 2^16 is beyond every limit; more would only make large numbers.
delay(_, _, 0) -> 0;
delay(First, Max, Tries) -> min(Max, First bsl min(Tries - 1, 16)).

%% Failures since new/1.
-spec tries(backoff()) -> non_neg_integer().
tries({_, Tries, _}) ->
    Tries.
