%% Passes incoming connections to net_kernel, one at a time.
%%
%% net_kernel starts another acceptor when this one exits. So failures of connections and of the sidecar do
%% not end it; it ends with net_kernel. The queue of waiting connections is in uds_dist_connections, which
%% drops a connection that ends in the meantime.
-module(uds_dist_acceptor).
-behaviour(gen_server).

-export([start_link/0]).
%% Called by the owner of the port.
-export([accepted/2]).
-export([init/1, handle_continue/2, handle_call/3, handle_cast/2, handle_info/2, code_change/3]).

-record(state, {
    kernel :: pid(),
    %% The connection for which net_kernel has been asked to start a supervisor.
    connection :: undefined | uds_dist_connection:connection()
}).

%% Starts the acceptor. The caller is net_kernel, with which it then exchanges messages.
-spec start_link() -> pid().
start_link() ->
    Options = [{spawn_opt, [{priority, max}]}],
    {ok, Pid} = gen_server:start_link(?MODULE, self(), Options),
    Pid.

%% Gives an incoming connection to an acceptor that has said that it is ready.
-spec accepted(Acceptor :: pid(), uds_dist_connection:connection()) -> ok.
accepted(Acceptor, Connection) ->
    gen_server:cast(Acceptor, {accepted, Connection}).

-spec init(Kernel :: pid()) -> {ok, #state{}, {continue, ready}}.
init(Kernel) ->
    {ok, #state{kernel = Kernel}, {continue, ready}}.

-spec handle_continue(ready, #state{}) -> {noreply, #state{}}.
handle_continue(ready, State) ->
    {noreply, ready(State)}.

-spec handle_call(term(), gen_server:from(), #state{}) -> {noreply, #state{}}.
handle_call(_Request, _From, State) ->
    {noreply, State}.

-spec handle_cast({accepted, uds_dist_connection:connection()}, #state{}) -> {noreply, #state{}}.
handle_cast({accepted, Connection}, State = #state{kernel = Kernel, connection = undefined}) ->
    Kernel ! {accept, self(), Connection, local, stream},
    {noreply, State#state{connection = Connection}}.

-spec handle_info(term(), #state{}) -> {noreply, #state{}} | {stop, unsupported_protocol, #state{}}.
handle_info({Kernel, controller, Supervisor}, State = #state{kernel = Kernel}) ->
    %% An error means that the connection is gone already; the supervisor finds that out from its first
    %% receive.
    _ = uds_dist_controller:supervise(State#state.connection, Supervisor),
    Supervisor ! {self(), controller},
    {noreply, ready(State)};
handle_info({Kernel, unsupported_protocol}, State = #state{kernel = Kernel}) ->
    {stop, unsupported_protocol, State};
handle_info(_, State) ->
    {noreply, State}.

-spec code_change(term(), #state{}, term()) -> {ok, #state{}}.
code_change(_OldVersion, State, _Extra) ->
    {ok, State}.

ready(State) ->
    ok = uds_dist_owner:accept(self()),
    State#state{connection = undefined}.
