%% The behaviour of a transport, which moves the bytes of a connection to the peer and from the peer.
%%
%% There are two transports. uds_dist_relay sends everything through the port of the sidecar, which owns the
%% socket. uds_dist_direct uses a socket that the sidecar has handed over. Everything else is the same for
%% both, and is found in uds_dist_controller and uds_dist_input.
-module(uds_dist_transport).

-export_type([reason/0, output/0, input/0]).

%% Why a connection ended: connection_closed if the peer closed it, as with any carrier.
-type reason() :: connection_closed | {connection_failed, term()}.

%% The output half of a connection, which belongs to its controller.
-type output() :: term().
%% The input half of a connection, which belongs to its input handler.
-type input() :: term().

%% The number of bytes that may be written now.
-callback available(output()) -> non_neg_integer() | infinity.

%% Whether enough is available to make a write worthwhile. If not, a message will announce when it is.
-callback is_open(output()) -> boolean().

%% Writes Size bytes, which must not be more than are available. After an error nothing more can be written,
%% but what the peer sent before can still be read.
-callback write(Size :: pos_integer(), iodata(), output()) ->
    {ok, output()} | {error, reason()}.

%% Bytes that were written and that the other end of the transport has not taken, as far as it tells.
-callback unacknowledged(output()) -> non_neg_integer().

%% Handles a message to the controller. One that belongs to the transport may make more bytes available.
-callback writable(Message :: term(), output()) ->
    {ok, output()} | {error, reason()} | ignored.

%% Handles a message to the input handler, or `timeout`, with which the caller reads again after `again`.
%% Returns the next bytes of the peer, and whether to read again or to wait for a message; `ok` after a
%% message of the transport that is not about input.
-callback read(Message :: term(), input()) ->
    {Bytes :: binary(), again | wait, input()} | {ok, input()} | {ended, reason()} | ignored.

%% What the input handler does after the output has failed: it reads what is left without waiting and then
%% ends the connection, or it waits for `ended`, which is sure to come.
-callback after_failed_output() -> read_rest | wait.

%% Notes that Count bytes that were read have been given to the VM.
-callback passed_on(Count :: non_neg_integer(), input()) -> input().
