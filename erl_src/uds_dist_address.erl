%% Where nodes listen, which follows from their names and the settings, and what a name alone shows. The
%% command line has the same rules (src/command_line/location.rs).
-module(uds_dist_address).

-export([place/2, of_node/2, limit/1, format/1, printable/1]).
-export([explain_name/1, is_dynamic/1, case_hint/2]).

-export_type([place/0]).

%% The address, the backlog of listen(2), and the mode of the socket file.
-type place() :: {uds_dist_protocol:address(), Backlog :: pos_integer(), Mode :: 0..8#777}.
-type config() :: uds_dist_config:config().
-type explanation() :: uds_dist_text:explanation().

%% The address, backlog and mode with which this node listens under a name.
-spec place(Name :: atom(), config()) -> {ok, place()} | {error, explanation()}.
place(Name, #{backlog := Backlog, socket_mode := Mode} = Config) ->
    case of_node(Name, Config) of
        {ok, Address} -> {ok, {Address, Backlog, Mode}};
        {error, _} = Error -> Error
    end.

%% The address at which the node of this name listens. Everything from the @ on is ignored.
-spec of_node(node() | atom(), config()) ->
    {ok, uds_dist_protocol:address()} | {error, explanation()}.
of_node(Node, #{socket_dir := Dir}) ->
    [Name | _] = binary:split(atom_to_binary(Node, utf8), <<"@">>),
    %% Any process may ask for a connection to any name, and the name must not lead out of the directory.
    case binary:match(Name, [<<"/">>, <<0>>]) of
        nomatch when Name =/= <<>> -> join(Dir, Name);
        _ -> {error, io_lib:format("~0tp is not a node name", [Node])}
    end.

join(<<"@", Namespace/binary>> = Dir, Name) ->
    check_length(<<0, Namespace/binary, "/", Name/binary>>, limit(os:type()) + 1, Dir);
join(Dir, Name) ->
    check_length(<<(strip(Dir))/binary, "/", Name/binary, ".sock">>, limit(os:type()), Dir).

strip(<<"/">>) -> <<>>;
strip(Dir) -> Dir.

check_length(Address, Limit, _Dir) when byte_size(Address) =< Limit ->
    {ok, Address};
check_length(Address, Limit, Dir) ->
    {error,
        io_lib:format(
            "the socket address ~ts has ~b bytes, and the system takes no more than ~b; "
            "choose a socket_dir shorter than ~ts, or a shorter name",
            [printable(Address), byte_size(Address), Limit, uds_dist_text:printable(Dir)]
        )}.

%% Longest path of a socket in bytes: sun_path of unix(7) without its NUL.
-spec limit(uds_dist_system:os_type()) -> pos_integer().
limit({unix, linux}) -> 107;
limit(_) -> 103.

%% An address as it is written in settings, in the bytes that it has.
-spec format(uds_dist_protocol:address()) -> binary().
format(<<0, Name/binary>>) -> <<"@", Name/binary>>;
format(Path) -> Path.

%% An address for people.
-spec printable(uds_dist_protocol:address()) -> unicode:chardata().
printable(Address) -> uds_dist_text:printable(format(Address)).

%% Explains what is wrong with an atom that is not the name of a node.
-spec explain_name(atom()) -> explanation().
explain_name(Node) ->
    case string:split(atom_to_list(Node), "@", all) of
        [[_ | _] = Name | Host] when Host =:= []; Host =:= [""] ->
            io_lib:format("it has no host; ask for ~ts@~ts", [Name, our_host(node())]);
        _ ->
            "it is not a node name, which has the form name@host"
    end.

our_host(nonode@nohost) ->
    "host";
our_host(Node) ->
    [_, Host] = string:split(atom_to_list(Node), "@"),
    Host.

%% Whether a node got its name from the node that it connected to, such as a remote shell does. These names
%% are numbers in base 36 of at most thirteen digits, and seldom many fewer.
-spec is_dynamic(node()) -> boolean().
is_dynamic(Node) ->
    [Name | _] = string:split(atom_to_list(Node), "@"),
    length(Name) >= 10 andalso
        length(Name) =< 13 andalso
        lists:all(
            fun(C) -> (C >= $0 andalso C =< $9) orelse (C >= $A andalso C =< $Z) end, Name
        ).

%% An addition to an explanation, for the case that a node with the same name in lower case listens. One look
%% at one file, because the caller must not wait for a whole directory.
-spec case_hint(node(), undefined | config()) -> explanation().
case_hint(Node, #{socket_dir := <<"/", _/binary>> = Dir}) ->
    [Name | _] = binary:split(atom_to_binary(Node), <<"@">>),
    Lower = string:lowercase(Name),
    case Lower =/= Name andalso join(Dir, Lower) of
        {ok, Path} ->
            case prim_file:read_file_info(Path) of
                {ok, _} ->
                    Shown = uds_dist_text:printable(Lower),
                    ["; there is ", Shown, ", and case makes a difference in names"];
                {error, _} ->
                    ""
            end;
        _ ->
            ""
    end;
case_hint(_, _) ->
    "".
