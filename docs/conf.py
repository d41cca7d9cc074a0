from importlib.metadata import version as distribution_version

project = "Flask-TaskFlow"
author = "The Flask-TaskFlow authors"
copyright = "2026, The Flask-TaskFlow authors"
release = version = distribution_version(project)

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"

html_theme = "furo"
html_title = f"{project} {release}"
