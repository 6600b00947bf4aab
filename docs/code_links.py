"""A hook of MkDocs: code that a page links to is put into the site as text, under `code/`.

So `../model/scale.py` leads to that file where the page is read in the repository, and to its copy in the site.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel

LINK = re.compile(r"\]\(\.\./([\w./-]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what the pages link to outside of their own folder; a link to nothing is left for MkDocs to refuse."""
    project = Path(config.docs_dir).parent
    linked = {path for page in files.documentation_pages() for path in LINK.findall(page.content_string)}
    for path in sorted(linked):
        if (project / path).is_file():
            # By its name alone, which begins with a dot, it would be left out.
            included = InclusionLevel.INCLUDED
            file = File.generated(config, f"../{path}", abs_src_path=str(project / path), inclusion=included)
            file.dest_uri = f"code/{path}.txt"
            files.append(file)
    return files
