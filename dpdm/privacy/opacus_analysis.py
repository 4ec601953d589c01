"""Opacus' accounting without its training, in a fraction of the time."""

import importlib
import importlib.util
import sys
from types import ModuleType

_NAME = "dpdm.privacy._opacus_accountants"


def analysis(name: str) -> ModuleType:
    """The installed Opacus' module `opacus.accountants.analysis.NAME`.

    These modules need only numpy and scipy, but `import opacus.accountants` also loads the optimizers with
    torch.distributed and sympy: 4 s in every job. So the folder is imported as another package with an empty
    `__init__`.
    """
    if _NAME not in sys.modules:
        (root,) = importlib.util.find_spec("opacus").submodule_search_locations
        package, accountant = ModuleType(_NAME), ModuleType(f"{_NAME}.rdp")
        package.__path__ = [f"{root}/accountants"]
        accountant.RDPAccountant = None  # `analysis.prv.domain` imports it for a function that is not called here
        sys.modules.update({one.__name__: one for one in (package, accountant)})
    return importlib.import_module(f"{_NAME}.analysis.{name}")
