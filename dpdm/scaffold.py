"""The start of a new method: this repository's smallest method under another name, and its entry of a study."""

import ast
import importlib.util
import keyword
import re
from pathlib import Path

from dpdm import artifacts, layout
from dpdm.config import ANCHORS
from dpdm.errors import UserError
from dpdm.specs import NAME

EXAMPLE = layout.BASELINES / "class_mean.py"
BASELINES = "baselines"  # where a new method goes if the current folder has it

DOCSTRING = '''"""{name}: say here what it is, in one sentence.

Released: class counts and class sums, by two Gaussian mechanisms. Say here what one record changes, at most.
Cost: one-shot releases.

`plan` declares every mechanism from public facts, `fit` asks for each of them, and nothing else looks at a record:
docs/adding_a_method.md explains the parts. As it is here it releases noised class means.
"""'''

ENTRY = """methods:
  {name}:
    impl: {impl}
    params: {{max_image_norm: 4.0}}  # for digits of 8x8
"""


def new_method(name: str, out: str | None = None) -> tuple[str, str]:
    """Writes a minimal working method; returns its file, and its entry of a study as YAML.

    Its file `out` is below the current folder, from which methods are imported: by default baselines/NAME.py, or
    NAME.py without such a folder. UserError if the name is invalid, or if the file exists or cannot be imported by its
    path.
    """
    if not re.fullmatch(NAME, name) or keyword.iskeyword(name) or name in ANCHORS:
        raise UserError(
            f"{name!r} is no name for a method: write lower-case letters, digits and underscores, a letter first, and "
            f"neither a word of Python nor {' nor '.join(ANCHORS)}"
        )
    path = Path(out or (f"{BASELINES}/{name}.py" if Path(BASELINES).is_dir() else f"{name}.py"))
    class_name = "".join(part.capitalize() for part in name.split("_"))
    impl = f"{_module(path)}:{class_name}"
    if path.exists():
        raise UserError(f"{path} is there already; choose another name, or another file by --out")
    first = impl.partition(".")[0].partition(":")[0]
    if not Path(first).is_dir() and importlib.util.find_spec(first):
        raise UserError(f"{path} would hide the Python module {first}; choose another name, or another file by --out")
    code = EXAMPLE.read_text().split('"""', 2)[2]
    needed = {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}
    if keyword.iskeyword(class_name) or class_name in needed:
        raise UserError(
            f"{name!r} is no name for a method: its class would be {class_name}, a name that its file needs"
        )
    code = code.replace("class ClassMean", f"class {class_name}")
    artifacts.write_text(path, DOCSTRING.format(name=name) + code)
    return str(path), ENTRY.format(name=name, impl=impl)


def _module(path: Path) -> str:
    """The module name of a file, relative to the current folder."""
    try:
        parts = path.resolve().relative_to(Path.cwd().resolve()).with_suffix("").parts
    except ValueError as error:
        raise UserError(f"--out {path} is outside the current folder, from where methods are imported") from error
    wrong = [part for part in parts if not part.isidentifier() or keyword.iskeyword(part)]
    if path.suffix != ".py" or wrong:
        raise UserError(f"--out {path} cannot be imported; end it in .py, and use only Python names for its folders")
    return ".".join(parts)
