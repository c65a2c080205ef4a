%% An application for nodes of command_line_SUITE, which starts when it is told to, or fails.
-module(command_line_application).
-behaviour(application).
-behaviour(supervisor).

-export([boot/1]).
-export([start/2, stop/1, init/1]).

%% Called by `erl -s`. The boot of the node is complete when this returns.
boot([How]) ->
    Keys = [{mod, {?MODULE, How}}, {applications, [kernel, stdlib]}],
    ok = application:load({application, ?MODULE, Keys}),
    case {How, application:start(?MODULE)} of
        {when_told, ok} -> ok;
        {failing, {error, _}} -> ok
    end.

%% With `fatal`, the application fails like with `failing`, and boot/1 fails too.
start(normal, when_told) ->
    true = register(?MODULE, self()),
    io:put_chars("waiting to be told\n"),
    receive
        go -> ok
    end,
    supervisor:start_link(?MODULE, []);
start(normal, _) ->
    {error, cannot_start}.

stop(_) ->
    ok.

init([]) ->
    {ok, {#{}, []}}.
