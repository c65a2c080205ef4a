%% A stand-in for epmd (-epmd_module uds_dist_epmd), for tools that query epmd, such as net_adm:names/0,
%% net_adm:world/0 and libraries that discover nodes that way. Distribution over Unix domain sockets does not
%% need it. The answers are the nodes in the socket_dir; nothing is registered anywhere.
%%
%% The callbacks are those of erl_epmd.
-module(uds_dist_epmd).

-export([start_link/0, register_node/2, register_node/3]).
-export([names/1, port_please/2, port_please/3, listen_port_please/2, address_please/3]).

%% Sockets have no ports.
-define(PORT, 0).
-define(DISTRIBUTION_VERSION, 6).

%% Why it is unknown which nodes are running on this host.
-type names_error() :: file:posix() | system_limit | uds_dist_text:explanation().

-spec start_link() -> ignore.
start_link() ->
    ignore.

-spec register_node(string(), inet:port_number()) -> {ok, Creation :: 1..3}.
register_node(Name, Port) ->
    register_node(Name, Port, inet).

%% Called by other carriers that run beside this one.
-spec register_node(string(), inet:port_number(), atom()) -> {ok, Creation :: 1..3}.
register_node(_Name, _Port, _Family) ->
    {ok, rand:uniform(3)}.

-spec names(Host :: inet:ip_address() | inet:hostname()) ->
    {ok, [{Name :: string(), inet:port_number()}]} | {error, address | names_error()}.
names(Host) ->
    case is_this_host(Host) andalso uds_dist:names() of
        false -> {error, address};
        {ok, Names} -> {ok, [{Name, ?PORT} || Name <- Names]};
        {error, _} = Error -> Error
    end.

is_this_host(Host) when is_tuple(Host) ->
    {ok, Interfaces} = inet:getifaddrs(),
    lists:any(fun({_, Options}) -> lists:member({addr, Host}, Options) end, Interfaces);
is_this_host(Host) when is_atom(Host) ->
    is_this_host(atom_to_list(Host));
is_this_host(Host) ->
    {ok, This} = inet:gethostname(),
    Host =:= "localhost" orelse hd(string:split(Host, ".")) =:= hd(string:split(This, ".")).

-spec port_please(string(), term()) -> {port, 0, 6} | noport | {error, names_error()}.
port_please(Name, Host) ->
    port_please(Name, Host, infinity).

%% Returns a port if the node is running. An error is that of names/1, if that is unknown.
-spec port_please(string(), term(), timeout()) -> {port, 0, 6} | noport | {error, names_error()}.
port_please(Name, Host, _Timeout) ->
    case names(Host) of
        {ok, Names} ->
            case lists:keymember(Name, 1, Names) of
                true -> {port, ?PORT, ?DISTRIBUTION_VERSION};
                false -> noport
            end;
        {error, address} ->
            noport;
        {error, _} = Error ->
            Error
    end.

-spec listen_port_please(atom(), inet:hostname()) -> {ok, 0}.
listen_port_please(_Name, _Host) ->
    {ok, ?PORT}.

-spec address_please(string(), inet:hostname() | inet:ip_address(), atom()) ->
    {ok, inet:ip_address()} | {error, inet:posix()}.
address_please(_Name, Host, Family) ->
    inet:getaddr(Host, Family).
