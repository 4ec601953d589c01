"""The data sets that a study can name, one file each with the keys in the study file and the loader.

To add one, write a file with a subclass of `dpdm.sources.base.Source`, and add the class to `SOURCES`. The schema of a
study imports these files, so they import numerical libraries only inside their functions.
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
