"""Leave these tests out where the clients of vector databases are not installed: `make test-integrations` runs them."""

from importlib.util import find_spec

if not find_spec("pymilvus"):
    collect_ignore_glob = ["test_*.py"]
