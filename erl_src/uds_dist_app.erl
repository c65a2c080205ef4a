%% The application. Distribution runs without it, but its start is the moment at which the application
%% environment is complete. Settings from config/runtime.exs of an Elixir release, or from the configuration
%% of a Mix project or a rebar3 shell, arrive only after distribution has started.
-module(uds_dist_app).
-behaviour(application).
-behaviour(supervisor).

-export([start/2, stop/1]).
-export([init/1]).

%% Fails on an invalid setting, so that a release does not run while nobody can reach it.
-spec start(application:start_type(), []) -> {ok, pid()} | {error, Reason :: term()}.
start(_Type, []) ->
    case uds_dist_owner:configure() of
        ok -> supervisor:start_link({local, ?MODULE}, ?MODULE, []);
        {error, _} = Error -> Error
    end.

-spec stop(term()) -> ok.
stop(_State) ->
    ok.

%% There are no children: the processes of distribution belong to net_sup.
-spec init([]) -> {ok, {supervisor:sup_flags(), []}}.
init([]) ->
    {ok, {#{}, []}}.
