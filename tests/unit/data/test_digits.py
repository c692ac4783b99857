"""The embedded digits are scikit-learn's, read without importing it."""

import subprocess
import sys

import numpy as np
import pytest

from core.config import DataConfig
from core.errors import DataError
from data.digits import load


def test_images_and_labels_are_those_that_scikit_learn_loads() -> None:
    from sklearn.datasets import load_digits

    source, digits = load(DataConfig(), seed=0), load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    np.testing.assert_array_equal(source.train.images.numpy(), pixels[:, None])
    np.testing.assert_array_equal(source.train.labels.numpy(), digits.target)
    assert source.class_names == tuple(str(name) for name in digits.target_names)


def test_scikit_learn_is_not_imported() -> None:
    script = (
        "import sys; from core.config import DataConfig; from data.digits import load; "
        "load(DataConfig(), 0); print(any(m.partition('.')[0] == 'sklearn' for m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_without_scikit_learn_there_are_no_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.digits.importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install"):
        load(DataConfig(), seed=0)
