%% Passes lines to logger, in a process of its own.
%%
%% Handlers and filters of logger run in the process that logs. They may be slow, and a handler that sends its
%% events to another node waits for the very connection that the owner of the port serves. So the owner and
%% all other processes of the carrier leave their lines here and continue. When too many lines are waiting,
%% the newest are dropped, and one line reports how many.
-module(uds_dist_log_writer).
-behaviour(gen_server).

-export([start_link/0, write/3, display/1]).
%% The report callback of logged events, which returns their line of text.
-export([one_line/1]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, code_change/3]).

-define(SERVER, ?MODULE).

%% Most lines that may wait. None is lost if a handler is slow for a moment, and a handler that hangs costs
%% little memory.
-define(MAX_WAITING, 1000).

-record(state, {
    counters :: counters:counters_ref(),
    %% Whether this VM runs a script, which needs stdout for its own output.
    is_script :: boolean()
}).

%% Key of the counters. They exist because process_info/2 for the length of the message queue would wait for
%% the process.
-define(COUNTERS, {?MODULE, counters}).
-define(WAITING, 1).
-define(DROPPED, 2).

%% Starts a writer that is linked to the caller. When the caller ends, it logs its remaining lines and ends.
-spec start_link() -> {ok, pid()}.
start_link() ->
    {ok, _} = gen_server:start_link(?MODULE, [], []).

%% Logs a line with its metadata, after the lines before it. If distribution is down, and the writer with it,
%% the caller logs the line itself.
-spec write(logger:level(), Line :: binary(), logger:metadata()) -> ok.
write(Level, Line, Metadata) ->
    Event = {Level, Line, Metadata#{time => logger:timestamp(), pid => self()}},
    case {whereis(?SERVER), persistent_term:get(?COUNTERS, undefined)} of
        {Pid, Counters} when is_pid(Pid), Counters =/= undefined ->
            case counters:get(Counters, ?WAITING) < ?MAX_WAITING of
                true ->
                    ok = counters:add(Counters, ?WAITING, 1),
                    gen_server:cast(Pid, Event);
                false ->
                    counters:add(Counters, ?DROPPED, 1)
            end;
        _ ->
            log(Event, is_script())
    end.

-spec one_line(logger:report()) -> {io:format(), [term()]}.
one_line(#{text := Text}) ->
    {"~ts", [Text]}.

%% ---------------------------------------------------------------------------------------------

-spec init([]) -> {ok, #state{}}.
init([]) ->
    process_flag(trap_exit, true),
    Counters = counters:new(2, []),
    ok = persistent_term:put(?COUNTERS, Counters),
    ok = take_name(),
    {ok, #state{counters = Counters, is_script = is_script()}}.

%% The writer of an owner that has ended may still have the name while it logs its last lines.
take_name() ->
    try
        true = unregister(?SERVER)
    catch
        error:badarg -> ok
    end,
    true = register(?SERVER, self()),
    ok.

-spec handle_call(term(), gen_server:from(), #state{}) -> {noreply, #state{}}.
handle_call(_Request, _From, State) ->
    {noreply, State}.

-spec handle_cast({logger:level(), binary(), logger:metadata()}, #state{}) -> {noreply, #state{}}.
handle_cast(Event, State = #state{counters = Counters, is_script = IsScript}) ->
    ok = counters:sub(Counters, ?WAITING, 1),
    ok = log(Event, IsScript),
    case {counters:get(Counters, ?WAITING), counters:get(Counters, ?DROPPED)} of
        {0, Count} when Count > 0 ->
            ok = counters:sub(Counters, ?DROPPED, Count),
            Line = io_lib:format("uds_dist: ~b lines were dropped: a logger handler is too slow", [Count]),
            Metadata = #{subsystem => [uds_dist], reason => lines_dropped},
            ok = log({warning, iolist_to_binary(Line), Metadata}, IsScript);
        _ ->
            ok
    end,
    {noreply, State}.

-spec handle_info(term(), #state{}) -> {noreply, #state{}}.
handle_info(_, State) ->
    {noreply, State}.

-spec code_change(term(), #state{}, term()) -> {ok, #state{}}.
code_change(_OldVersion, State, _Extra) ->
    {ok, State}.

log({notice, Line, Metadata}, _IsScript = true) ->
    case prints_on_stdout() of
        true ->
            ok = display(Line),
            %% Other handlers still get the event; OTP's default handler drops events of a foreign domain.
            to_logger(notice, Line, Metadata#{domain => [uds_dist]});
        false ->
            to_logger(notice, Line, Metadata)
    end;
log({Level, Line, Metadata}, _) ->
    to_logger(Level, Line, Metadata).

to_logger(Level, Line, Metadata) ->
    case whereis(kernel_safe_sup) of
        undefined ->
            %% The primitive handler of the early boot would print a report as a map.
            logger:log(Level, "~ts", [Line], Metadata);
        _ ->
            Facts = maps:without([time, pid, mfa, subsystem, domain], Metadata),
            Metadata1 = Metadata#{report_cb => fun ?MODULE:one_line/1},
            logger:log(Level, Facts#{text => Line}, Metadata1)
    end.

is_script() ->
    lists:any(fun(Flag) -> init:get_argument(Flag) =/= error end, [noinput, noshell]) andalso
        not uds_dist_system:is_embedded().

%% Whether OTP's default handler, unchanged, would print the line on stdout.
prints_on_stdout() ->
    case logger:get_handler_config(default) of
        {ok, #{module := logger_std_h, filter_default := stop, config := #{type := standard_io}}} ->
            true;
        %% In the early boot there is only the primitive handler, which prints on stdout too.
        {error, _} ->
            whereis(kernel_safe_sup) =:= undefined;
        _ ->
            false
    end.

%% Writes a line to stderr at once, without logger.
-spec display(unicode:chardata()) -> ok.
display(Line) ->
    Text = unicode:characters_to_list([Line, $\n]),
    case erlang:function_exported(erlang, display_string, 2) of
        true ->
            true = apply(erlang, display_string, [stderr, Text]),
            ok;
        false ->
            %% OTP 25 only has display_string/1, which writes to stderr.
            true = erlang:display_string(Text),
            ok
    end.
