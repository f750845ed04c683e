"""How Sphinx builds these pages: `python -m sphinx -W docs FOLDER`."""

project = "jaxlab"
author = "the jaxlab authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = "jaxlab"
myst_heading_anchors = 3  # links to a page's sections
default_role = "code"  # docstrings mark code with single backticks
autodoc_typehints = "none"  # docstrings give shapes and dtypes, which types do not
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
html_static_path = ["_static"]
html_css_files = ["jaxlab.css"]
