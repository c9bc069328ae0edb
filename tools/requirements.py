"""Prints what pyproject.toml asks for: `requirements.py build`, or an extra (attnpy's own extras are followed)."""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))


def extra(name):
    for requirement in project["project"]["optional-dependencies"][name]:
        own = re.fullmatch(r"attnpy\[(.+)\]", requirement)
        if own:
            for other in own[1].split(","):
                yield from extra(other.strip())
        else:
            yield requirement


build = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
wanted = build if sys.argv[1] == "build" else extra(sys.argv[1])
print(*(requirement.replace(" ", "") for requirement in wanted))  # one word each, for the shell
