"""TFLite files: converting, rewriting, reading and running them. Needs the packages of the extra `export`."""

import importlib.util

_missing = [name for name in ("ai_edge_litert", "flatbuffers") if importlib.util.find_spec(name) is None]
if _missing:
    raise ImportError(
        f"TFLite files need {' and '.join(_missing)}, which is not installed: pip install 'na-keras[export]', or in a "
        "checkout pip install -e '.[export]'"
    )
