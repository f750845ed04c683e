"""Test how `--resume` treats each setting."""

from jaxlab.config import (
    NOT_COMPARED,
    PER_PROCESS,
    RESOLVED_FROM_DATA,
    Config,
    fields_that,
)

# These sets repeat jaxlab.config on purpose: a setting that may differ when a run is
# resumed must be listed here too, so that none is marked so by accident.
ON_RESUME = {
    PER_PROCESS: {"out", "resume", "overwrite", "debug", "offline"},
    NOT_COMPARED: {"epochs", "workers", "keep", "checkpoint_every"}
    | {"feature_cache_size", "data_dir", "manual_dir"},
    RESOLVED_FROM_DATA: {"train_size", "test_size", "batch_size"},
}


def test_each_setting_says_what_it_may_do_when_a_run_goes_on():
    for kind, names in ON_RESUME.items():
        assert fields_that(kind) == names
    rest = set(Config.__dataclass_fields__).difference(*ON_RESUME.values())
    assert fields_that(None) == rest
    assert {"seed", "lr", "freeze", "weights", "dataset"} <= rest
