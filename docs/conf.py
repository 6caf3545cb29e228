"""How the documentation is built."""

import pathlib

from heartbeat_core import TRANSITIONS

project = "heartbeat-core"
author = "the heartbeat-core contributors"
copyright = "2026, the heartbeat-core contributors"  # noqa: A001 - Sphinx's name for it
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.doctest",
    "sphinxcontrib.mermaid",
]
exclude_patterns = ["_build", "changelog.d", "_generated"]
myst_enable_extensions = ["colon_fence", "deflist"]
html_theme = "furo"
html_title = "heartbeat-core"
nitpicky = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"

# The diagram is drawn from the table that the code runs on.
_lines = ["```{mermaid}", "stateDiagram-v2"]
for (_before, _cause), _after in TRANSITIONS.items():
    _from = _before.name if _before else "[*]"
    _to = _after.name if _after else "[*]"
    _lines.append(f"    {_from} --> {_to}: {_cause.value}")
_lines.append("```\n")
_table = ["| from | because of | to |", "| --- | --- | --- |"]
for (_before, _cause), _after in TRANSITIONS.items():
    _from = f"`{_before.name}`" if _before else "unknown"
    _to = f"`{_after.name}`" if _after else "gone"
    _table.append(f"| {_from} | {_cause.value} | {_to} |")
_generated = pathlib.Path(__file__).parent / "_generated"
_generated.mkdir(exist_ok=True)
(_generated / "transitions.md").write_text("\n".join([*_table, ""]))
(_generated / "diagram.md").write_text("\n".join(_lines))
