%% What the controller and the input handler of a connection need of its transport: how bytes get to
%% the peer, and how the peer's bytes get here.
%%
%% There are two transports. uds_dist_relay sends everything through the port of the sidecar, which has
%% the socket. uds_dist_direct uses a socket that the sidecar has handed over. Whatever is not about
%% moving bytes is the same for both, and stands in uds_dist_controller and uds_dist_input.
-module(uds_dist_transport).

-export_type([reason/0, output/0, input/0]).

%% Why a connection ended: connection_closed if the peer closed it, as with every carrier.
-type reason() :: connection_closed | {connection_failed, term()}.

%% The controller's half of a connection.
-type output() :: term().
%% The input handler's half of a connection.
-type input() :: term().

%% Bytes that may be written now.
-callback available(output()) -> non_neg_integer() | infinity.

%% Whether enough is available to make a write worthwhile. If not, a message will say when it is.
-callback is_open(output()) -> boolean().

%% Whether a message will come that lets more be written.
-callback is_awaited(output()) -> boolean().

%% Writes Size bytes, which must not be more than are available. After an error nothing more can be
%% written; what the peer sent before it can still be read.
-callback write(Size :: pos_integer(), iodata(), output()) ->
    {ok, output()} | {error, reason()}.

%% Takes a message of the controller: one of the transport's may make more bytes available.
-callback writable(Message :: term(), output()) ->
    {ok, output()} | {error, reason()} | ignored.

%% Takes a message of the input handler, or `timeout`, which stands for the next try after `again`.
%% Returns the next bytes of the peer, and whether there may be more without another message; or `ok` after
%% a message that is not about input.
-callback read(Message :: term(), input()) ->
    {Bytes :: binary(), again | wait, input()} | {ok, input()} | {ended, reason()} | ignored.

%% Count bytes that were read have been given to the VM.
-callback passed_on(Count :: non_neg_integer(), input()) -> input().
