"""Sphinx: ``python -m pip install ".[docs]" && sphinx-build -W -n docs docs/_build``.

Every page is text. Code cells are executed at each build and their outputs are stored nowhere; a
cell that raises, or a name that does not resolve, fails the build. Nothing is read from the
network, neither by the build nor by a page: MathJax lies in ``_static``, and the few names of
Python and NumPy that the types mention lie in ``inventories``.
"""

import os
import sys
from pathlib import Path

# The pages describe this checkout, whatever is installed; the cells' processes inherit the path.
root = str(Path(__file__).resolve().parents[1])
sys.path[:0] = [root, str(Path(__file__).parent / "_ext")]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))

import gptoss_ref  # noqa: E402

project = "gptoss_ref"
author = "The gptoss_ref authors"
copyright = "2026, The gptoss_ref authors"
version = release = gptoss_ref.__version__

extensions = [
    "docstrings",
    "names",
    "notebooks",
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
]
exclude_patterns = [
    "_build",
    "jupyter_execute",
    "_ext",
    "README.md",
    "inventories/README.md",
    "**/solutions/**",
]
nitpicky = True
nitpick_ignore = [("py:class", "gptoss_ref.verify.search.fit.Bug")]  # a type variable
default_role = "code"

# Cells: executed at each build, never stored; a chapter has a minute, on a slow machine three.
nb_execution_mode = "force"
nb_execution_timeout = 180
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
add_module_names = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # fields as one list; their types are in the signature
napoleon_attr_annotations = False

# Their documentation is linked to; the list of names is here, see inventories/README.md.
intersphinx_mapping = {
    "python": ("https://docs.python.org/3", "inventories/python.txt"),
    "numpy": ("https://numpy.org/doc/stable", "inventories/numpy.txt"),
    "matplotlib": ("https://matplotlib.org/stable", "inventories/matplotlib.txt"),
}

mathjax_path = "mathjax/tex-svg.js"
# The menu would load what is not in the bundle.
mathjax3_config = {"options": {"enableMenu": False}}

html_theme = "furo"
html_title = "gptoss_ref"
html_static_path = ["_static"]
html_css_files = ["gptoss_ref.css"]
html_copy_source = False
html_show_sourcelink = False
