"""The accuracies of a protocol's classifiers on real training images, and their CPU seconds.

    python benchmarks/protocol.py [mnist|fashion_mnist|digits] [--images 20000] [--protocol standard] [--validate]

`--validate` judges by the last training images instead of the test images; choose a learning rate only by these.
"""

import argparse
import os

from dpdm.data import ImageSet
from dpdm.evaluation import classifiers, registry
from dpdm.sources import SOURCES

VALIDATION = 10_000  # images, or a sixth of a small set


def cpu_seconds() -> float:
    """User and system time of this process."""
    return sum(os.times()[:2])


def main() -> None:
    """Prints a line per classifier."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", nargs="?", default="mnist", choices=SOURCES)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--protocol", default="standard", choices=registry.PROTOCOLS)
    parser.add_argument("--validate", action="store_true")
    args = parser.parse_args()
    splits = SOURCES[args.source]().load()
    train, test = splits["train"], splits["test"]
    if args.validate:
        kept = len(train.labels) - min(VALIDATION, len(train.labels) // 6)
        test = ImageSet(train.images[kept:], train.labels[kept:], train.num_classes, "validation")
        train = ImageSet(train.images[:kept], train.labels[:kept], train.num_classes, train.origin)
    train = ImageSet(train.images[: args.images], train.labels[: args.images], train.num_classes, train.origin)
    print(f"{args.source}, protocol {args.protocol}, {len(train.labels)} training images, {len(test.labels)} judged")
    for name in registry.PROTOCOLS[args.protocol]:
        start = cpu_seconds()
        (row,) = classifiers.measure(train, test, [name], 0, args.protocol)
        print(f"{name:8} {row['value']:.2f} %  {cpu_seconds() - start:.0f} CPU seconds", flush=True)


if __name__ == "__main__":
    main()
