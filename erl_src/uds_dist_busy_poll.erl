%% Decides whether an input handler of the transport `direct` spins or blocks while it waits for input. No I/O
%% and no clock: the input handler waits. The sidecar has the same policy in src/wait.rs.
%%
%% Waking a sleeping processor takes tens of microseconds. So if the last wait was short, the next one is
%% expected to be short too, and begins with a period of busy polling. An idle connection blocks. Polling in
%% vain takes time from whoever is to send the answer, for example where many nodes share few processors, so
%% it is not repeated soon.
-module(uds_dist_busy_poll).

-export([new/1, budget/1, spun/2, spun_in_vain/1, blocked/2, received_bulk/1]).

-export_type([busy_poll/0]).

-record(busy_poll, {
    %% How long a wait may spin before it blocks, in native time units.
    budget :: non_neg_integer(),
    last_wait_was_short = false :: boolean(),
    %% Whether the current wait has spun in vain.
    in_vain = false :: boolean(),
    %% Number of short waits that block before the next one spins, and the same after the next spin in vain.
    skip = 0 :: non_neg_integer(),
    penalty = 1 :: pos_integer()
}).

-opaque busy_poll() :: #busy_poll{}.

%% A wait that blocked for up to this many budgets may be followed by one within the budget, as much of it was
%% spent on two wake-ups.
-define(SHORT_WAIT, 2).

%% Largest number of short waits that block after a wait that spun in vain.
-define(MAX_PENALTY, 1024).

%% A policy that blocks until a wait was short. With a budget of zero it always blocks.
-spec new(Budget :: non_neg_integer()) -> busy_poll().
new(Budget) ->
    #busy_poll{budget = Budget}.

%% How long the next wait may spin, in native time units.
-spec budget(busy_poll()) -> non_neg_integer().
budget(#busy_poll{budget = Budget, last_wait_was_short = true, skip = 0}) -> Budget;
budget(#busy_poll{}) -> 0.

%% Records that a wait took Time, in native time units, and ended while it spun. If that is more than the
%% budget, something else had the processor meanwhile, and spinning did not help.
-spec spun(Time :: non_neg_integer(), busy_poll()) -> busy_poll().
spun(Time, Policy = #busy_poll{budget = Budget}) when Time =< Budget ->
    Policy#busy_poll{in_vain = false, penalty = 1};
spun(_, Policy) ->
    punish(Policy).

%% Records that a wait has spun in vain, and blocks now.
-spec spun_in_vain(busy_poll()) -> busy_poll().
spun_in_vain(Policy) ->
    Policy#busy_poll{in_vain = true}.

%% Records that a wait blocked and took Time in all, in native time units.
-spec blocked(Time :: non_neg_integer(), busy_poll()) -> busy_poll().
blocked(Time, Policy = #busy_poll{budget = Budget, in_vain = InVain, skip = Skip}) ->
    IsShort = Time < ?SHORT_WAIT * Budget,
    Policy1 = Policy#busy_poll{last_wait_was_short = IsShort},
    case InVain of
        true -> punish(Policy1);
        false when IsShort -> Policy1#busy_poll{skip = max(0, Skip - 1)};
        false -> Policy1
    end.

punish(Policy = #busy_poll{penalty = Penalty}) ->
    Policy#busy_poll{in_vain = false, skip = Penalty, penalty = min(2 * Penalty, ?MAX_PENALTY)}.

%% Records that the last input was part of a bulk transfer. Its next piece arrives before anyone waits for it,
%% and polling for it would only take processor time from its sender.
-spec received_bulk(busy_poll()) -> busy_poll().
received_bulk(Policy) ->
    Policy#busy_poll{last_wait_was_short = false}.
