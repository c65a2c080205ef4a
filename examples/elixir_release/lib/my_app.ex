defmodule MyApp do
  @moduledoc "The smallest application that stays up."
  use Application

  @impl true
  def start(_type, _args), do: Supervisor.start_link([], strategy: :one_for_one)
end
