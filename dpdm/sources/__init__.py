"""The data sets that a study can name, one file each: the keys of the study file, and the loader.

A new one is a file with a subclass of `dpdm.sources.base.Source`, and its class in `SOURCES`. The schema of a study
imports these files, so numerical libraries are imported inside their functions only.
"""

from dpdm.sources.base import Source
from dpdm.sources.celeba import Celeba
from dpdm.sources.cifar10 import Cifar10
from dpdm.sources.digits import Digits
from dpdm.sources.fashion_mnist import FashionMnist
from dpdm.sources.folder import Folder
from dpdm.sources.mnist import Mnist
from dpdm.sources.npz import Npz

SOURCES: dict[str, type[Source]] = {
    kind.model_fields["source"].default: kind for kind in (Digits, Mnist, FashionMnist, Cifar10, Celeba, Folder, Npz)
}
