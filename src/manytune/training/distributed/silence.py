"""What libraries print while they work, which one process says for all."""

from __future__ import annotations

import warnings

import datasets
import transformers


def silence_libraries() -> None:
    """Keep this process's libraries from printing warnings and progress bars.

    Mutates: the settings of warnings, transformers and datasets, for good.
    """
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
