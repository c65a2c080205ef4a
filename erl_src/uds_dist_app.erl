%% The application. Distribution runs without it; its start is the moment at which the application
%% environment is complete, wherever it came from: config/runtime.exs of an Elixir release, or the
%% configuration of a Mix project or a rebar3 shell, all of which come after distribution.
-module(uds_dist_app).
-behaviour(application).
-behaviour(supervisor).

-export([start/2, stop/1]).
-export([init/1]).

%% With a wrong setting it does not start, so that a release does not run half reachable.
-spec start(application:start_type(), []) -> {ok, pid()} | {error, Reason :: term()}.
start(_Type, []) ->
    case uds_dist_port:configure() of
        ok -> supervisor:start_link({local, ?MODULE}, ?MODULE, []);
        {error, _} = Error -> Error
    end.

-spec stop(term()) -> ok.
stop(_State) ->
    ok.

%% The processes of distribution belong to net_sup, and none to the application.
-spec init([]) -> {ok, {supervisor:sup_flags(), []}}.
init([]) ->
    {ok, {#{}, []}}.
