defmodule MyApp.MixProject do
  use Mix.Project

  def project do
    [
      app: :my_app,
      version: "0.1.0",
      deps: [
        # In a project of your own:
        # {:uds_dist, git: "https://example.org/uds_dist.git", branch: "main", manager: :rebar3}
        {:uds_dist, path: "../..", manager: :rebar3}
      ]
    ]
  end

  def application do
    [extra_applications: [:logger], mod: {MyApp, []}]
  end
end
