"""iCassava 2019 (FGVC6): leaves of cassava, healthy or with one of four diseases.

Tree (as ``cassavaleafdata.zip`` unpacks)::

    cassavaleafdata/
      train/cbb/train-cbb-1.jpg        and cbsd, cgm, cmd, healthy
      validation/cbb/...  test/cbb/...

Counts: 5 classes, 5,656 train, 1,889 val, 1,885 test, official: the splits that the organisers published with
labels after the competition, 9,430 in all. The paper counts 9,436 labelled and 12,595 unlabelled photographs;
these two numbers stand as train and test in the "FGVC7 Plant Pathology" row of the multi-stage ViT's table,
so that row cannot be repeated as it stands. The Kaggle competition has other folders, and a test without
labels: give its ``train`` with ``--data``.

Mwebaze, Gebru, Frome, Nsumba, Tusubira: iCassava 2019 Fine-Grained Visual Categorization Challenge.
arXiv:1908.02900, 2019. https://www.kaggle.com/c/cassava-disease
"""

from __future__ import annotations

from pathlib import Path

from fgvc_cli.data.labelled import load_labelled
from fgvc_cli.data.listing import LabelledSet
from fgvc_cli.datasets.registry import Archive, KnownSet
from fgvc_cli.errors import FgvcError


def read_icassava(root: Path) -> LabelledSet:
    """The official listing; classes are the folder names.

    Raises:
        ValueError: the folders do not divide the photographs into the three splits.
    """
    try:
        return load_labelled(root)
    except FgvcError as error:
        raise ValueError(error.message) from error


ENTRIES = (
    KnownSet(
        key="icassava2019",
        title="iCassava 2019",
        folder="cassavaleafdata",
        needs=("train/", "validation/", "test/"),
        classes=5,
        train=5656,
        val=1889,
        test=1885,
        source="https://storage.googleapis.com/emcassavadata/cassavaleafdata.zip",
        load=read_icassava,
        archives=(Archive("https://storage.googleapis.com/emcassavadata/cassavaleafdata.zip"),),
    ),
)
