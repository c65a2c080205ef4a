%% Error lines that people must see, at any time of a VM's life.
-module(uds_dist_log).

-export([error/2]).

-include_lib("kernel/include/logger.hrl").

%% Logs one line. While kernel starts there is no handler that would print it before the VM ends,
%% which is what an error does to a boot; then the line goes to stderr right away.
-spec error(io:format(), [term()]) -> ok.
error(Format, Arguments) ->
    case whereis(kernel_safe_sup) of
        undefined -> display(io_lib:format("uds_dist: " ++ Format ++ "~n", Arguments));
        _ -> ?LOG_ERROR("uds_dist: " ++ Format, Arguments)
    end.

display(Line) ->
    Bytes = binary_to_list(unicode:characters_to_binary(Line)),
    case erlang:function_exported(erlang, display_string, 2) of
        true ->
            true = apply(erlang, display_string, [stderr, Bytes]),
            ok;
        false ->
            %% OTP 25 has it with one argument, and writes to stderr.
            true = erlang:display_string(Bytes),
            ok
    end.
