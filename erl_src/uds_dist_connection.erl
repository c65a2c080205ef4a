%% A connection as net_kernel and dist_util see it: the term that they treat as a socket.
-module(uds_dist_connection).

-export([new/3, controller/1, input_handler/1, low_level/1, address/1, stop/2]).

-export_type([connection/0]).

%% The two processes, and the address of the peer's socket, if that is bound.
-opaque connection() :: {
    Controller :: pid(), InputHandler :: pid(), undefined | uds_dist_protocol:address()
}.

-spec new(Controller :: pid(), InputHandler :: pid(), Address) -> connection() when
    Address :: undefined | uds_dist_protocol:address().
new(Controller, InputHandler, Address) ->
    {Controller, InputHandler, Address}.

-spec controller(connection()) -> pid().
controller({Controller, _, _}) ->
    Controller.

-spec input_handler(connection()) -> pid().
input_handler({_, InputHandler, _}) ->
    InputHandler.

%% The process to which the VM sends distribution data (f_getll).
-spec low_level(connection()) -> {ok, pid()}.
low_level({Controller, _, _}) ->
    {ok, Controller}.

%% The address of the peer's socket; undefined if it is not bound.
-spec address(connection()) -> undefined | uds_dist_protocol:address().
address({_, _, Address}) ->
    Address.

%% Ends the connection of a controller, with all of its processes.
-spec stop(Controller :: pid(), Reason :: term()) -> ok.
stop(Controller, Reason) ->
    %% With an exit signal, monitors of the node see this reason, and no crash is logged.
    exit(Controller, Reason),
    ok.
