%% An epmd that only knows the ports on the command line (-epmd_module test_epmd -test_ports a 4001 b 4002).
%% With it, inet_tcp listens without a real epmd, at the given port or at any free one.
-module(test_epmd).

-export([start_link/0, register_node/3, listen_port_please/2]).
-export([port_please/2, port_please/3, address_please/3, names/1]).

-define(DISTRIBUTION_VERSION, 6).

start_link() -> ignore.

register_node(_Name, _Port, _Family) -> {ok, 4}.

listen_port_please(Name, _Host) -> {ok, port(Name, 0)}.

port_please(Name, Host) -> port_please(Name, Host, infinity).

port_please(Name, _Host, _Timeout) ->
    case port(Name, none) of
        none -> noport;
        Port -> {port, Port, ?DISTRIBUTION_VERSION}
    end.

address_please(_Name, Host, Family) -> inet:getaddr(Host, Family).

names(_Host) -> {error, address}.

port(Name, Default) ->
    Ports =
        case init:get_argument(test_ports) of
            {ok, [Words]} -> pairs(Words);
            error -> []
        end,
    proplists:get_value(lists:concat([Name]), Ports, Default).

pairs([Name, Port | More]) -> [{Name, list_to_integer(Port)} | pairs(More)];
pairs([]) -> [].
