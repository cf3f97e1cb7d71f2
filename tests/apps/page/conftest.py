"""These tests need the extra `serve`, which `make setup` installs; without it they are left out."""

from importlib.util import find_spec

NEEDED = ("fastapi", "gradio", "httpx", "prometheus_client", "uvicorn")

collect_ignore_glob = [] if all(map(find_spec, NEEDED)) else ["test_*.py"]
