%% Takes the connections that peers make and gives each to net_kernel.
%%
%% net_kernel stops when its acceptor exits, so this process outlives every trouble of a
%% connection and of the sidecar; it ends with net_kernel.
-module(uds_dist_acceptor).

-export([start_link/1]).
-export([init/2]).

%% Called by net_kernel, which becomes the acceptor's other half.
-spec start_link(uds_dist_sidecar:handle()) -> pid().
start_link(Listener) ->
    spawn_opt(?MODULE, init, [self(), Listener], [link, {priority, max}]).

-spec init(Kernel :: pid(), uds_dist_sidecar:handle()) -> no_return().
init(Kernel, Listener) ->
    ok = uds_dist_sidecar:accept(Listener),
    loop(Kernel).

loop(Kernel) ->
    receive
        {accepted, Connection} ->
            hand_over(Connection, Kernel),
            loop(Kernel)
    end.

hand_over(Connection, Kernel) ->
    Kernel ! {accept, self(), Connection, local, stream},
    receive
        {Kernel, controller, Supervisor} ->
            %% An error means that the connection is already gone; the supervisor then finds that
            %% out from its first receive.
            _ = uds_dist_connection:supervise(Connection, Supervisor),
            Supervisor ! {self(), controller},
            ok;
        {Kernel, unsupported_protocol} ->
            exit(unsupported_protocol)
    end.
