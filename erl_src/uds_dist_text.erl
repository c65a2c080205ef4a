%% Text for people: explanations, and how bytes that came from elsewhere are shown in them. Pure.
-module(uds_dist_text).

-export([printable/1, blemish/1]).

-export_type([explanation/0]).

%% One line for people: what is wrong, where, and what to do about it.
-type explanation() :: unicode:chardata().

%% Bytes as text on one line. Those that are no text, and control characters, are shown as escapes.
-spec printable(binary()) -> unicode:chardata().
printable(Bytes) ->
    case unicode:characters_to_list(Bytes) of
        Text when is_list(Text) ->
            lists:map(fun escape/1, Text);
        {_, Text, <<Byte, Rest/binary>>} ->
            [lists:map(fun escape/1, Text), hexadecimal(Byte), printable(Rest)]
    end.

escape($\r) -> "\\r";
escape($\n) -> "\\n";
escape($\t) -> "\\t";
escape(Char) when Char < 32; Char >= 127, Char =< 159 -> hexadecimal(Char);
escape(Char) -> Char.

hexadecimal(Byte) ->
    io_lib:format("\\x~2.16.0b", [Byte]).

%% What is wrong with a text that looks right on a screen, but is not what anybody meant. The command line
%% refuses the same (src/command_line/location.rs).
-spec blemish(binary()) -> none | explanation().
blemish(<<>>) ->
    none;
blemish(Text) ->
    IsControl = fun(Byte) -> Byte < 32 orelse Byte =:= 127 end,
    case {binary:last(Text), lists:any(IsControl, binary_to_list(Text)), binary:first(Text)} of
        {$\r, _, _} ->
            "ends in a carriage return; remove it: the file that sets it may have Windows line ends";
        {_, true, _} ->
            "contains a control character; remove it";
        {Last, _, First} when Last =:= $\s; First =:= $\s ->
            "begins or ends with a blank; remove it";
        _ ->
            none
    end.
