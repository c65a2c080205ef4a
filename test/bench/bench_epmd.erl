%% An epmd that consists of files (-epmd_module bench_epmd). Each node writes its port to the directory, so carriers
%% over TCP need no daemon.
-module(bench_epmd).

-export([start_link/0, register_node/3, listen_port_please/2]).
-export([address_please/3, names/1]).

-define(DISTRIBUTION_VERSION, 6).

-spec start_link() -> ignore.
start_link() ->
    ignore.

%% On OTP 25, distribution starts before the file server, which prim_file does not need.
-spec register_node(string() | atom(), inet:port_number(), inet:address_family()) ->
    {ok, Creation :: 4..16#FFFFFFFF}.
register_node(Name, Port, _Family) ->
    ok = prim_file:write_file(file(Name), integer_to_binary(Port)),
    {ok, 3 + rand:uniform((1 bsl 32) - 4)}.

-spec listen_port_please(atom() | string(), string()) -> {ok, 0}.
listen_port_please(_Name, _Host) ->
    {ok, 0}.

%% Nodes listen only at the loopback address, whatever the name of the host is.
-spec address_please(string(), string(), inet:address_family()) ->
    {ok, inet:ip4_address(), inet:port_number(), Version :: pos_integer()} | {error, file:posix()}.
address_please(Name, _Host, _Family) ->
    case prim_file:read_file(file(Name)) of
        {ok, Port} -> {ok, {127, 0, 0, 1}, binary_to_integer(Port), ?DISTRIBUTION_VERSION};
        {error, _} = Error -> Error
    end.

-spec names(term()) -> {error, address}.
names(_Host) ->
    {error, address}.

file(Name) when is_atom(Name) -> file(atom_to_list(Name));
file(Name) -> Name ++ ".port".
