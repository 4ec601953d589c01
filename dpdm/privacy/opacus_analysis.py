"""Opacus' accounting without its training, in a fraction of the time."""

import importlib
import importlib.util
import sys
from types import ModuleType

_NAME = "dpdm.privacy._opacus_accountants"


def analysis(name: str) -> ModuleType:
    """The installed Opacus' module `opacus.accountants.analysis.NAME`.

    These modules need numpy and scipy only, but `import opacus.accountants` loads the optimizers as well, with
    torch.distributed and sympy: 4 s in every job. So the folder is imported as another package, whose `__init__` is
    empty.
    """
    if _NAME not in sys.modules:
        (root,) = importlib.util.find_spec("opacus").submodule_search_locations
        package, accountant = ModuleType(_NAME), ModuleType(f"{_NAME}.rdp")
        package.__path__ = [f"{root}/accountants"]
        accountant.RDPAccountant = None  # `analysis.prv.domain` imports it for a function that nobody calls here
        sys.modules.update({one.__name__: one for one in (package, accountant)})
    return importlib.import_module(f"{_NAME}.analysis.{name}")
