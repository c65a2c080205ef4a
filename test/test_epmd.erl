%% An epmd that knows nobody (-epmd_module test_epmd): with it, inet_tcp listens without one.
-module(test_epmd).

-export([start_link/0, register_node/3, listen_port_please/2]).
-export([port_please/3, address_please/3, names/1]).

start_link() -> ignore.

register_node(_Name, _Port, _Family) -> {ok, 4}.

listen_port_please(_Name, _Host) -> {ok, 0}.

port_please(_Name, _Host, _Timeout) -> noport.

address_please(_Name, Host, Family) -> inet:getaddr(Host, Family).

names(_Host) -> {error, address}.
