"""The peers' side of each benchmark: scripts that run in `.venv-peers` and import no Loam."""
