"""Builds the wheel (pyproject.toml says the rest): also the files that dpdm/layout.py looks for in the package."""

import shutil
import tomllib
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["dpdm"]["shipped"]
KEPT = ("jobs.csv", "study.json")  # of a kept result: what `dpdm check` estimates hours from


class BuildPy(build_py):
    """Copies SHIPPED into dpdm/_shipped of a wheel; an editable installation reads the clone."""

    def run(self):
        """Raises OSError where one of SHIPPED is missing."""
        super().run()
        if self.editable_mode:
            return
        for name in (*SHIPPED, *(str(path) for file in KEPT for path in Path().glob(f"results/*/kept/{file}"))):
            target = Path(self.build_lib, "dpdm", "_shipped", name)
            target.parent.mkdir(parents=True, exist_ok=True)
            if Path(name).is_dir():
                shutil.copytree(name, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(name, target)


setup(cmdclass={"build_py": BuildPy})
